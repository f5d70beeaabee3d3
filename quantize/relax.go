package quantize

import (
	"context"
	"math"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/vec"
)

// The rectified sigmoid h = clip(σ(V)(ζ−γ)+γ, 0, 1) (AdaRound, eq. 23).
const (
	zeta  = 1.1
	gamma = -0.1
)

// Adam's constants, and when learning stops early: when at most the share
// undecidedShare of the weights has an h within undecidedMargin…1−undecidedMargin.
const (
	adamBeta1, adamBeta2, adamEpsilon = 0.9, 0.999, 1e-8

	undecidedShare  = 0.001
	undecidedMargin = 0.01
)

// reconstruction is what a relaxation and the choice after it minimise: the
// change of the outputs of some rows.
type reconstruction interface {
	// derive writes the derivative by moved = ŵ − ŵ(V₀) to dst, both rows×n in units
	// of the row's step, for step t.
	derive(ctx context.Context, t int, moved, dst blas32.General) error
	// best writes for each row the codes of the best of some choices.
	best(ctx context.Context, candidates [][]bool, codes []int8) error
}

// relaxation is AdaRound's continuous problem for some rows: minimise over V
//
//	error(ŵ) + λ Σ 1 − |2h−1|^β,   ŵ = down + h·(up − down)
//
// with an error of such units that both terms mean the same in every layer.
// Slices are row-major.
type relaxation struct {
	rows, n int
	error   reconstruction

	free  []bool    // whether there is a choice
	width []float32 // (up − down) in the row's steps
	start []float32 // h at V₀, where the relaxed weight is the target

	v, gradient  []float32
	sigmoid, hv  []float32      // σ(V), h(V)
	moved, slope blas32.General // ŵ − ŵ(V₀), and the error's derivative by it
	mean, square []float32      // Adam's
}

// newRelaxation starts at V₀, where h is the fraction that rounding loses.
func newRelaxation(c *choices, e reconstruction) *relaxation {
	rows, n := c.target.Rows, c.target.Cols
	size := rows * n
	floats := make([]float32, 10*size)
	next := func() []float32 {
		f := floats[:size:size]
		floats = floats[size:]
		return f
	}
	x := &relaxation{
		rows: rows, n: n, error: e, free: make([]bool, size),
		width: next(), start: next(), v: next(), gradient: next(),
		sigmoid: next(), hv: next(), mean: next(), square: next(),
		moved: blas32.General{Rows: rows, Cols: n, Stride: n, Data: next()},
		slope: blas32.General{Rows: rows, Cols: n, Stride: n, Data: next()},
	}
	for r := range rows {
		unit := c.rowStep(r)
		for k := r * n; k < (r+1)*n; k++ {
			frac, free := c.fraction(k)
			if x.free[k] = free; !free {
				continue
			}
			x.width[k] = float32((c.up[k] - c.down[k]) / unit)
			x.start[k] = float32(frac)
			x.v[k] = float32(-math.Log((zeta-gamma)/(frac-gamma) - 1))
		}
	}
	x.relax()
	return x
}

// rowStep is the root mean square of a row's steps, 1 where it has no choice.
func (c *choices) rowStep(r int) float64 {
	n := c.target.Cols
	largest := 0.0
	for k := r * n; k < (r+1)*n; k++ {
		largest = max(largest, c.up[k]-c.down[k])
	}
	if largest == 0 {
		return 1
	}
	sum, count := 0.0, 0
	for k := r * n; k < (r+1)*n; k++ {
		if t := (c.up[k] - c.down[k]) / largest; t > 0 {
			sum += t * t
			count++
		}
	}
	return largest * math.Sqrt(sum/float64(count))
}

// relax brings what depends on V up to date and returns how many weights are
// undecided.
func (x *relaxation) relax() (undecided int) {
	vec.Sigmoid(x.sigmoid, x.v)
	for k, free := range x.free {
		if !free {
			continue
		}
		h := min(max(x.sigmoid[k]*(zeta-gamma)+gamma, 0), 1)
		x.hv[k] = h
		x.moved.Data[k] = x.width[k] * (h - x.start[k])
		if h > undecidedMargin && h < 1-undecidedMargin {
			undecided++
		}
	}
	return undecided
}

// differentiate writes the gradient of step t's objective by V. Where h is clipped
// at 0 or 1 it is exactly 0: that is what freezes decisions.
func (x *relaxation) differentiate(ctx context.Context, t int, lambda, beta float64) error {
	if err := x.error.derive(ctx, t, x.moved, x.slope); err != nil {
		return err
	}
	for k, h := range x.hv {
		if !x.free[k] || h <= 0 || h >= 1 {
			x.gradient[k] = 0
			continue
		}
		byH := x.slope.Data[k] * x.width[k]
		if lambda > 0 {
			byH += float32(lambda * regularizerSlope(float64(2*h-1), beta))
		}
		sigmoid := x.sigmoid[k]
		x.gradient[k] = byH * (zeta - gamma) * sigmoid * (1 - sigmoid)
	}
	return nil
}

// regularizerSlope is the derivative of 1 − |t|^β by h, t = 2h−1.
func regularizerSlope(t, beta float64) float64 {
	if t == 0 {
		return 0
	}
	return -2 * beta * math.Copysign(math.Exp((beta-1)*math.Log(math.Abs(t))), t)
}

// adam takes Adam's step number t (from 1).
func (x *relaxation) adam(t int, rate float64) {
	correct1 := float32(1 / (1 - math.Pow(adamBeta1, float64(t))))
	correct2 := float32(1 / (1 - math.Pow(adamBeta2, float64(t))))
	for k, g := range x.gradient {
		m := adamBeta1*x.mean[k] + (1-adamBeta1)*g
		s := adamBeta2*x.square[k] + (1-adamBeta2)*g*g
		x.mean[k], x.square[k] = m, s
		x.v[k] -= float32(rate) * m * correct1 / (float32(math.Sqrt(float64(s*correct2))) + adamEpsilon)
	}
}

// learn runs the relaxation, writes the relaxed weights as they were before the
// decision to soft, and returns the choice, up where V ≥ 0.
func (a AdaRoundOptions) learn(ctx context.Context, c *choices, e reconstruction, soft []float32) ([]bool, error) {
	x := newRelaxation(c, e)
	freeWeights := 0
	for _, free := range x.free {
		if free {
			freeWeights++
		}
	}
	for t := range a.Steps {
		lambda, beta := a.regularizer(t)
		if err := x.differentiate(ctx, t, lambda, beta); err != nil {
			return nil, err
		}
		x.adam(t+1, a.LearningRate)
		if undecided := x.relax(); lambda > 0 && float64(undecided) <= undecidedShare*float64(freeWeights) {
			break
		}
	}
	ups := make([]bool, len(x.free))
	for k, free := range x.free {
		ups[k] = free && x.v[k] >= 0
		soft[k] = float32(c.down[k] + float64(x.hv[k])*(c.up[k]-c.down[k]))
	}
	return ups, nil
}

// regularizer returns λ and β for step t (from 0): nothing during the warm-up,
// then β falls from BetaStart to BetaEnd along a cosine.
func (a AdaRoundOptions) regularizer(t int) (lambda, beta float64) {
	warm := a.Warmup * float64(a.Steps)
	if float64(t) < warm {
		return 0, a.BetaStart
	}
	progress := (float64(t) - warm) / (float64(a.Steps) - warm)
	return a.Lambda, a.BetaEnd + (a.BetaStart-a.BetaEnd)/2*(1+math.Cos(math.Pi*progress))
}
