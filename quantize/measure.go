package quantize

import (
	"context"

	"github.com/fettle-dev/fettle/internal/vec"
)

// measureRows is the number of rows whose errors one task measures.
const measureRows = 256

// measure fills in the solution's errors, where there are moments to measure
// them with: of the solution, of nearest rounding on a min-max grid of the same
// shape, and of AdaRound's relaxed weights.
func (s *solver) measure(ctx context.Context) error {
	if s.prob.Moments == nil {
		return nil
	}
	grid := s.grid.minMaxGrid(s.prob.Weight, s.o.Granularity, s.o.GroupSize)
	n := s.target.Cols
	lo, hi := grid.Range()
	candidates := []func(r int, dst []float32){
		func(r int, dst []float32) { s.solution.Grid.Dequantize(dst, s.solution.Codes[r*n:][:n], r) },
		func(r int, dst []float32) {
			for c, w := range rowOf32(s.prob.Weight, r) {
				at := stepAt(&grid, grid.Index(r, c, n))
				dst[c] = at.value(at.code(float64(w), lo, hi))
			}
		},
	}
	if s.soft != nil {
		candidates = append(candidates, func(r int, dst []float32) { copy(dst, s.soft[r*n:]) })
	}
	sums, err := s.trueErrors(ctx, candidates)
	if err != nil {
		return err
	}
	e := &s.solution.Errors
	for _, v := range s.prob.Energy() {
		e.Energy += v
	}
	e.Solved, e.Nearest = sums[0], sums[1]
	if s.soft != nil {
		e.Soft = sums[2]
	}
	return nil
}

// trueErrors returns ‖XWᵀ − X̃Ŵᵀ‖², no damping, for each candidate Ŵ, a function
// that writes a row of it. With b = (G+λI)w and w̃ = (H+λI)⁻¹b, a row's error is
//
//	(ŵ−w̃)ᵀ(H+λI)(ŵ−w̃) − λ‖ŵ−w‖² + (e − w̃ᵀb + λ‖w‖²)
//
// whose last part is what no Ŵ can take back: 0 where both streams are the same,
// which makes w̃ = w.
func (s *solver) trueErrors(ctx context.Context, candidates []func(r int, dst []float32)) ([]float64, error) {
	n := s.target.Cols
	blocks := s.rowBlocks(min(measureRows, max(16, s.target.Rows/8)))
	errs := make([]float64, len(blocks)*len(candidates))
	err := s.pool.For(ctx, len(blocks), func(i int) error {
		b := blocks[i]
		g := &s.grams[b.group]
		d, giveBack := s.borrow(b.to-b.from, n)
		defer giveBack()
		damped := make([]float64, b.to-b.from)
		apart := make([]float64, len(damped)) // ‖ŵ − w‖²
		values := make([]float32, n)
		for c, write := range candidates {
			for r := range d.Rows {
				write(b.from+r, values)
				row := rowOf64(d, r)
				widen(row, values)
				vec.Axpy64(-1, rowOf64(s.anchor, b.from+r), row)
				apart[r] = 0
				for j, w := range rowOf32(s.prob.Weight, b.from+r) {
					off := float64(values[j]) - float64(w)
					apart[r] += off * off
				}
			}
			if c == 0 && s.damped != nil {
				copy(damped, s.damped[b.from:b.to])
			} else if err := g.energies(ctx, s.pool, d, damped); err != nil {
				return err
			}
			sum := 0.0
			for r, e := range damped {
				e = g.unit * (e - g.lambda*apart[r])
				if s.floor != nil {
					e += s.floor[b.from+r]
				}
				sum += max(e, 0) // below 0 by rounding only
			}
			errs[i*len(candidates)+c] = sum
		}
		return nil
	})
	sums := make([]float64, len(candidates))
	for i, e := range errs {
		sums[i%len(candidates)] += e
	}
	return sums, err
}

// correctBias sets the mean error of each output over the calibration rows.
func (s *solver) correctBias() {
	m, n := s.prob.Moments, s.target.Cols
	s.solution.Bias = make([]float64, s.target.Rows)
	row, wide := make([]float32, n), make([]float64, n)
	for r := range s.target.Rows {
		widen(wide, rowOf32(s.prob.Weight, r))
		sum := s.targetSum(r, wide)
		s.solution.Grid.Dequantize(row, s.solution.Codes[r*n:][:n], r)
		widen(wide, row)
		sum -= vec.Dot64(wide, m.SumXt[s.prob.Group(r)*n:][:n])
		s.solution.Bias[r] = sum / float64(m.Rows)
	}
}

// checkFinite refuses a solution whose errors or bias overflowed.
func (s *solver) checkFinite() error {
	e := s.solution.Errors
	for i, v := range append([]float64{e.Energy, e.Solved, e.Nearest, e.Soft, e.Damping}, s.solution.Bias...) {
		if !finite(v) {
			what := "moments"
			if i >= 5 {
				what = "bias correction"
			}
			return &InputError{s.prob.Layer, what, -1, "too large: float64 overflows"}
		}
	}
	return nil
}
