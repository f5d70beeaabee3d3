package quantize

import (
	"context"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// measureRows is the number of rows whose errors one task measures.
const measureRows = 64

// measure fills in the solution's errors, where there are moments to measure
// them with.
func (s *solver) measure(ctx context.Context) error {
	if s.prob.Moments == nil {
		return nil
	}
	sol := s.solution
	solved := make([]float32, len(sol.Codes))
	sol.Weight(solved)
	plain, err := s.nearestMinMax(ctx)
	if err != nil {
		return err
	}
	candidates := [][]float32{solved, plain}
	if s.soft != nil {
		candidates = append(candidates, s.soft)
	}
	sums, err := s.trueErrors(ctx, candidates)
	if err != nil {
		return err
	}
	for _, e := range s.prob.Energy() {
		sol.Errors.Energy += e
	}
	sol.Errors.Solved, sol.Errors.Nearest = sums[0], sums[1]
	if s.soft != nil {
		sol.Errors.Soft = sums[2]
	}
	return nil
}

// nearestMinMax returns W rounded to the nearest values of a min-max grid of
// the solution's shape.
func (s *solver) nearestMinMax(ctx context.Context) ([]float32, error) {
	f := s.grid
	f.search = MinMax
	grid, err := f.newGrid(ctx, s.pool, s.weight, s.o.Granularity, s.o.GroupSize)
	if err != nil {
		return nil, err
	}
	sol := layer.Solution{Rows: s.weight.Rows, Cols: s.weight.Cols, Grid: grid, Codes: make([]int8, len(s.solution.Codes))}
	if err := nearest(ctx, s.pool, s.weight, &grid, sol.Codes); err != nil {
		return nil, err
	}
	values := make([]float32, len(sol.Codes))
	sol.Weight(values)
	return values, nil
}

// trueErrors returns ‖XWᵀ − X̃Ŵᵀ‖², no damping, for each candidate Ŵ (values
// like W, row-major). Where both streams are the same it is tr(D·H·Dᵀ) with
// D = W − Ŵ; else Σ e − 2·ŵᵀGw + ŵᵀHŵ over the rows.
func (s *solver) trueErrors(ctx context.Context, candidates [][]float32) ([]float64, error) {
	m, n := s.prob.Moments, s.weight.Cols
	blocks := s.rowBlocks(measureRows)
	errs := make([]float64, len(blocks)*len(candidates))
	energy := s.prob.Energy()
	err := s.pool.For(ctx, len(blocks), func(i int) error {
		b := blocks[i]
		rows := b.to - b.from
		w := rowsOf(s.weight, b.from, b.to)
		gw, d, hd := linalg.NewGeneral(rows, n), linalg.NewGeneral(rows, n), linalg.NewGeneral(rows, n)
		if m.G != nil {
			if err := blas.Gemm64(ctx, s.pool, blas.NoTrans, blas.Trans, 1, w, m.G[b.group], 0, gw); err != nil {
				return err
			}
		}
		for c, values := range candidates {
			for k, v := range values[b.from*n : b.to*n] {
				d.Data[k] = float64(v)
				if m.G == nil {
					d.Data[k] -= w.Data[k]
				}
			}
			if err := blas.Gemm64(ctx, s.pool, blas.NoTrans, blas.NoTrans, 1, d, m.H[b.group], 0, hd); err != nil {
				return err
			}
			sum := 0.0
			for r := range rows {
				e := vec.Dot64(rowOf64(d, r), rowOf64(hd, r))
				if m.G != nil {
					e += energy[b.from+r] - 2*vec.Dot64(rowOf64(d, r), rowOf64(gw, r))
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
	m, n := s.prob.Moments, s.weight.Cols
	s.solution.Bias = make([]float64, s.weight.Rows)
	row := make([]float32, n)
	for r := range s.weight.Rows {
		s.solution.Grid.Dequantize(row, s.solution.Codes[r*n:][:n], r)
		at := s.prob.Group(r) * n
		sum := 0.0
		for c, w := range rowOf64(s.weight, r) {
			sum += w*m.SumX[at+c] - float64(row[c])*m.SumXt[at+c]
		}
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
