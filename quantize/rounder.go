package quantize

import (
	"context"
	"fmt"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// Rounder rounds a layer's weights one at a time, on grids that are found before
// the first is rounded: for passes that choose which weights survive and make up
// for the rounding of those that do. Rows may be rounded side by side.
type Rounder struct{ s *solver }

// NewRounder finds a layer's grids as Solve does for nearest rounding of its
// target. Options.Method names what the solution is said to come from. Input and
// errors are those of Solve.
func (f Factors) NewRounder(ctx context.Context, p *pool.Pool, prob *layer.Problem, o Options) (*Rounder, error) {
	if p == nil {
		p = pool.New(1)
	}
	s, err := f.prepare(ctx, p, prob, o)
	if err != nil {
		return nil, err
	}
	if err := s.findGrid(ctx); err != nil {
		return nil, fmt.Errorf("layer %s: %w", prob.Layer, err)
	}
	return &Rounder{s}, nil
}

// Round gives a weight its code and returns what that stands for.
func (r *Rounder) Round(row, col int, w float64) float64 {
	grid, n := &r.s.solution.Grid, r.s.target.Cols
	at := stepAt(grid, grid.Index(row, col, n))
	lo, hi := grid.Range()
	code := at.code(w, lo, hi)
	r.s.solution.Codes[row*n+col] = int8(code)
	return float64(at.value(code))
}

// Finish returns the solution of the survivors that were rounded.
func (r *Rounder) Finish(ctx context.Context, mask *layer.Mask) (*layer.Solution, error) {
	s := r.s
	grid, n := &s.solution.Grid, s.target.Cols
	s.solution.Mask = mask
	for row := range s.target.Rows {
		for col := range n {
			if !mask.At(row, col) {
				s.solution.Codes[row*n+col] = int8(grid.Zero(grid.Index(row, col, n)))
			}
		}
	}
	return s.finish(ctx)
}
