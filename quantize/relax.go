package quantize

import (
	"context"
	"math"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
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

// relaxation is AdaRound's continuous problem for some rows: minimise over V
//
//	Σ_rows dᵀHd + λ Σ 1 − |2h−1|^β,   ŵ = down + h·(up − down), d = ŵ − w̃
//
// with d in units of the row's step and H in units of its mean diagonal, so
// that both terms mean the same in every layer. Slices are row-major.
type relaxation struct {
	rows, n int
	h       blas32.General // H/mean diagonal

	free  []bool    // whether there is a choice
	width []float32 // (up − down) in the row's steps
	start []float32 // h at V₀, where the relaxed weight is the target
	fixed []float32 // Hd at V₀: what weights outside the grid's range cause

	v, gradient  []float32
	sigmoid, hv  []float32      // σ(V), h(V)
	moved, hd    blas32.General // ŵ − ŵ(V₀), Hd
	mean, square []float32      // Adam's
}

// newRelaxation starts at V₀, where h is the fraction that rounding loses. exact
// is H in float64, in any unit.
func newRelaxation(ctx context.Context, c *choices, exact blas64.General, h blas32.General) (*relaxation, error) {
	rows, n := c.target.Rows, c.target.Cols
	size := rows * n
	floats := make([]float32, 10*size)
	next := func() []float32 {
		f := floats[:size:size]
		floats = floats[size:]
		return f
	}
	x := &relaxation{
		rows: rows, n: n, h: h, free: make([]bool, size),
		width: next(), start: next(), fixed: next(), v: next(), gradient: next(),
		sigmoid: next(), hv: next(), mean: next(), square: next(),
		moved: blas32.General{Rows: rows, Cols: n, Stride: n, Data: next()},
		hd:    blas32.General{Rows: rows, Cols: n, Stride: n, Data: make([]float32, size)},
	}
	clipped := linalg.NewGeneral(rows, n)
	anyClipped := false
	for r := range rows {
		unit := c.rowStep(r)
		for j, w := range linalg.Row(c.target, r) {
			k := r*n + j
			frac, free := c.fraction(k)
			x.free[k] = free
			if !free {
				clipped.Data[k] = (c.down[k] - w) / unit
				anyClipped = true
				continue
			}
			x.width[k] = float32((c.up[k] - c.down[k]) / unit)
			x.start[k] = float32(frac)
			x.v[k] = float32(-math.Log((zeta-gamma)/(frac-gamma) - 1))
		}
	}
	if anyClipped {
		hd := linalg.NewGeneral(rows, n)
		if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1/linalg.MeanDiagonal(exact), clipped, exact, 0, hd); err != nil {
			return nil, err
		}
		for k, v := range hd.Data {
			x.fixed[k] = float32(min(max(v, -1e12), 1e12)) // its square stays finite in Adam
		}
	}
	x.relax()
	return x, nil
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

// differentiate writes the gradient of the objective by V. Where h is clipped
// at 0 or 1 it is exactly 0: that is what freezes decisions.
func (x *relaxation) differentiate(ctx context.Context, lambda, beta float64) error {
	if err := blas.Gemm(ctx, nil, blas.NoTrans, blas.NoTrans, 1, x.moved, x.h, 0, x.hd); err != nil {
		return err
	}
	for k, h := range x.hv {
		if !x.free[k] || h <= 0 || h >= 1 {
			x.gradient[k] = 0
			continue
		}
		byH := 2 * (x.fixed[k] + x.hd.Data[k]) * x.width[k]
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
func (s *solver) learn(ctx context.Context, c *choices, exact blas64.General, h blas32.General, soft []float32) ([]bool, error) {
	a := s.o.AdaRound
	x, err := newRelaxation(ctx, c, exact, h)
	if err != nil {
		return nil, err
	}
	freeWeights := 0
	for _, free := range x.free {
		if free {
			freeWeights++
		}
	}
	for t := range a.Steps {
		lambda, beta := a.regularizer(t)
		if err := x.differentiate(ctx, lambda, beta); err != nil {
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
