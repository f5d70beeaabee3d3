package quantize

import (
	"context"
	"math"

	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/layer"
)

// Half-quadratic quantization as its authors set it: the norm's power p, the
// splitting's weight β and its growth, and the most iterations.
const (
	hqqPower      = 0.7
	hqqBeta       = 10
	hqqGrowth     = 1.01
	hqqIterations = 20
)

// hqq fits each piece of the min-max grid by half-quadratic splitting and rounds
// to nearest.
//
// Cost: out·in·20 roundings at most.
func (s *solver) hqq(ctx context.Context) error {
	grid := &s.solution.Grid
	perRow := grid.GroupsPerRow(s.target.Cols)
	span := s.target.Cols / perRow
	err := s.Pool.For(ctx, s.target.Rows, func(r int) error {
		row := linalg.Row(s.target, r)
		for k := range perRow {
			at := r*perRow + k
			setStep(grid, at, s.grid.halfQuadratic(row[k*span:][:span], stepAt(grid, at)))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.nearest(ctx)
}

// halfQuadratic returns the step with the least Σ|w − ŵ|^p of nearest rounding
// among start, which must be the weights' min-max step, and those that HQQ's
// iteration passes through (Badri and Shaji 2023, "Half-Quadratic Quantization
// of Large Machine Learning Models", section "Solving"): with the codes q of the
// step so far,
//
//	e = shrink(w − ŵ),  shrink(x) = sign(x)·max(|x| − |x|^(p−1)/β, 0)
//
// takes large errors out, and the step that fits w − e best by least squares
// comes next. The iteration ends when Σ|w − ŵ| stops to fall.
//
// HQQ fits zero points that are not rounded, and keeps scales. Zero points here
// are codes, so the values of a step are multiples of its scale, of which the
// min-max step already gives each weight the nearest: with its scale no zero
// point is better. So the scale is fitted as well,
//
//	s = Σ(q − z)(w − e) / Σ(q − z)²,  z = round(mean(q − (w − e)/s))
//
// and of all steps met the best counts, not the last as in the authors' code.
func (f ranger) halfQuadratic(w []float64, start step) step {
	lo, hi := layer.CodeRange(f.bits)
	best, least := start, f.normError(w, start)
	at, residual, beta := start, math.Inf(1), float64(hqqBeta)
	for i := 0; i < hqqIterations && least > 0; i++ {
		small := math.Pow(beta, -1/(2-hqqPower)) // what shrink makes 0
		scale := float64(at.scale)
		var sum, product, square, targets, codes float64
		for _, v := range w {
			code := at.code(v, lo, hi)
			q := float64(code - at.zero)
			e := v - scale*q
			sum += math.Abs(e)
			target := v
			if a := math.Abs(e); a > small {
				target -= math.Copysign(a-math.Pow(a, hqqPower-1)/beta, e)
			}
			product += q * target
			square += q * q
			targets += target
			codes += float64(code)
		}
		if sum >= residual || !(product > 0) {
			break
		}
		residual = sum
		last := at
		at.scale = f.storable(product / square)
		if !f.symmetric {
			z := math.RoundToEven((codes - targets/float64(at.scale)) / float64(len(w)))
			at.zero = int(min(max(z, float64(lo)), float64(hi)))
		}
		if at == last {
			break
		}
		if e := f.normError(w, at); e < least {
			best, least = at, e
		}
		beta *= hqqGrowth
	}
	return best
}

// normError returns Σ|w − ŵ|^p of nearest rounding.
func (f ranger) normError(w []float64, s step) float64 {
	lo, hi := layer.CodeRange(f.bits)
	sum := 0.0
	for _, v := range w {
		if e := math.Abs(v - float64(s.value(s.code(v, lo, hi)))); e > 0 {
			sum += math.Pow(e, hqqPower)
		}
	}
	return sum
}
