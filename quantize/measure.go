package quantize

import (
	"context"
)

// measure fills in the solution's errors, where there are moments to measure
// them with: of the solution, of nearest rounding on a min-max grid of the same
// shape, and of AdaRound's relaxed weights.
func (s *solver) measure(ctx context.Context) error {
	if s.Problem.Moments == nil {
		return nil
	}
	grid := s.grid.minMaxGrid(s.Problem.Weight, s.o.Granularity, s.o.GroupSize)
	n := s.target.Cols
	lo, hi := grid.Range()
	candidates := []func(r int, dst []float32){
		s.values,
		func(r int, dst []float32) {
			for c, w := range rowOf32(s.Problem.Weight, r) {
				at := stepAt(&grid, grid.Index(r, c, n))
				dst[c] = at.value(at.code(float64(w), lo, hi))
			}
		},
	}
	if s.soft != nil {
		candidates = append(candidates, func(r int, dst []float32) { copy(dst, s.soft[r*n:]) })
	}
	sums, err := s.Errors(ctx, s.damped, candidates...)
	if err != nil {
		return err
	}
	e := &s.solution.Errors
	for _, v := range s.Problem.Energy() {
		e.Energy += v
	}
	e.Solved, e.Nearest = sums[0], sums[1]
	if s.soft != nil {
		e.Soft = sums[2]
	}
	return nil
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
			return s.Problem.Bad(what, -1, "too large: float64 overflows")
		}
	}
	return nil
}
