package quantize

import (
	"context"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// adaRows is the number of rows that one task solves: one matrix product for
// all of them in each step.
const adaRows = 32

// adaRound solves all rows, in blocks. Each row takes the best of these up/down
// choices: nearest rounding, GPTQ's pass in the order of descending diag(H) with
// codes bounded to up/down, and the learned one. The Gram form goes by the damped
// error, after a search by single flips from each; the sampled form by the error
// over the sample, the activation after the layer included.
func (s *solver) adaRound(ctx context.Context) error {
	form, err := s.form(ctx)
	if err != nil {
		return err
	}
	s.soft = make([]float32, len(s.solution.Codes))
	blocks := s.Blocks(adaRows)
	return s.Pool.For(ctx, len(blocks), func(i int) error {
		b := blocks[i]
		g, n := &s.Grams[b.Group], s.target.Cols
		codes, soft := s.solution.Codes[b.From*n:b.To*n], s.soft[b.From*n:b.To*n]
		c := newChoices(linalg.Rows(s.target, b.From, b.To), &s.solution.Grid, b.From, s.mask)
		e, err := form(c, b)
		if err != nil {
			return err
		}
		learned, err := s.o.AdaRound.learn(ctx, c, e, soft)
		if err != nil {
			return err
		}
		q := recursion{upper: g.Upper, order: g.Order, grid: &s.solution.Grid, floors: c.floors, ceils: c.ceils}
		w, giveBack := s.Borrow(b.To-b.From, n)
		defer giveBack()
		q.order64(w, c.target)
		if err := q.run(ctx, w, b.From, codes); err != nil {
			return err
		}
		return e.best(ctx, [][]bool{c.nearest, c.upsOf(codes), learned}, codes)
	})
}

// form prepares what all rows share and returns what to minimise for some rows.
func (s *solver) form(ctx context.Context) (func(*choices, gram.Block) (reconstruction, error), error) {
	if s.o.AdaRound.Sample {
		p := s.newSample()
		return func(c *choices, b gram.Block) (reconstruction, error) { return s.newSampled(ctx, c, b, p) }, nil
	}
	singles, doubles := make([]blas32.General, len(s.Grams)), make([]blas64.General, len(s.Grams))
	for g := range s.Grams {
		var err error
		if doubles[g], err = s.Grams[g].DampedH(ctx, s.Pool); err != nil {
			return nil, err
		}
		singles[g] = unitDiagonal32(doubles[g])
	}
	return func(c *choices, b gram.Block) (reconstruction, error) {
		return newGramForm(ctx, c, doubles[b.Group], singles[b.Group])
	}, nil
}

// gramForm is the reconstruction error from the Gram matrix, dᵀHd.
type gramForm struct {
	c     *choices
	exact blas64.General // H, in any unit
	h     blas32.General // H/mean diagonal
	fixed []float32      // Hd at V₀: what weights outside the grid's range cause
}

func newGramForm(ctx context.Context, c *choices, exact blas64.General, h blas32.General) (*gramForm, error) {
	rows, n := c.target.Rows, c.target.Cols
	clipped := linalg.NewGeneral(rows, n)
	anyClipped := false
	for r := range rows {
		unit := c.rowStep(r)
		for j, w := range linalg.Row(c.target, r) {
			if k := r*n + j; c.floors[k] == c.ceils[k] {
				clipped.Data[k] = (c.down[k] - w) / unit
				anyClipped = true
			}
		}
	}
	f := &gramForm{c: c, exact: exact, h: h, fixed: make([]float32, rows*n)}
	if !anyClipped {
		return f, nil
	}
	hd := linalg.NewGeneral(rows, n)
	if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1/linalg.MeanDiagonal(exact), clipped, exact, 0, hd); err != nil {
		return nil, err
	}
	for k, v := range hd.Data {
		f.fixed[k] = float32(min(max(v, -1e12), 1e12)) // its square stays finite in Adam
	}
	return f, nil
}

func (f *gramForm) derive(ctx context.Context, _ int, moved, dst blas32.General) error {
	if err := blas.Gemm(ctx, nil, blas.NoTrans, blas.NoTrans, 1, moved, f.h, 0, dst); err != nil {
		return err
	}
	for k, v := range f.fixed {
		dst.Data[k] = 2 * (v + dst.Data[k])
	}
	return nil
}

// unitDiagonal32 returns h divided by the mean of its diagonal.
func unitDiagonal32(h blas64.General) blas32.General {
	mean := linalg.MeanDiagonal(h)
	a := blas32.General{Rows: h.Rows, Cols: h.Cols, Stride: h.Cols, Data: make([]float32, h.Rows*h.Cols)}
	for i := range h.Rows {
		for j, v := range linalg.Row(h, i) {
			a.Data[i*a.Stride+j] = float32(v / mean)
		}
	}
	return a
}

// choices are the two codes that each weight of some rows may take: its floor
// on the grid and the code above, clipped to the grid's range. A weight outside
// the range has only one. All slices are row-major like target.
type choices struct {
	target        blas64.General // W̃
	floors, ceils []int8
	down, up      []float64 // the values of floors and ceils
	nearest       []bool    // whether nearest rounding goes up
}

func newChoices(target blas64.General, grid *layer.Grid, first int, mask *layer.Mask) *choices {
	n := target.Cols
	size := target.Rows * n
	c := &choices{
		target: target,
		floors: make([]int8, size), ceils: make([]int8, size),
		down: make([]float64, size), up: make([]float64, size),
		nearest: make([]bool, size),
	}
	lo, hi := grid.Range()
	for r := range target.Rows {
		for j, w := range linalg.Row(target, r) {
			s := stepAt(grid, grid.Index(first+r, j, n))
			f := s.floor(w)
			floor := int(min(max(f, float64(lo)), float64(hi)))
			ceil := int(min(max(f+1, float64(lo)), float64(hi)))
			if mask != nil && !mask.At(first+r, j) {
				floor, ceil = s.zero, s.zero
			}
			k := r*n + j
			c.floors[k], c.ceils[k] = int8(floor), int8(ceil)
			c.down[k], c.up[k] = float64(s.value(floor)), float64(s.value(ceil))
			c.nearest[k] = s.code(w, floor, ceil) != floor
		}
	}
	return c
}

// fraction returns where between down and up the target lies, 0…1, and whether
// there is a choice.
func (c *choices) fraction(k int) (r float64, free bool) {
	if c.floors[k] == c.ceils[k] {
		return 0, false
	}
	w := c.target.Data[k/c.target.Cols*c.target.Stride+k%c.target.Cols]
	return min(max((w-c.down[k])/(c.up[k]-c.down[k]), 0), 1), true
}

// upsOf returns the choice that codes stand for.
func (c *choices) upsOf(codes []int8) []bool {
	ups := make([]bool, len(codes))
	for k, code := range codes {
		ups[k] = code != c.floors[k]
	}
	return ups
}

// value returns the value of a choice.
func (c *choices) value(k int, up bool) float64 {
	if up {
		return c.up[k]
	}
	return c.down[k]
}

// write writes the codes of choices from ≤ k < to.
func (c *choices) write(codes []int8, ups []bool, from, to int) {
	for k := from; k < to; k++ {
		codes[k] = c.floors[k]
		if ups[k] {
			codes[k] = c.ceils[k]
		}
	}
}

// best writes for each row the codes of the candidate with the least damped
// error after search; the first of equals.
func (f *gramForm) best(ctx context.Context, candidates [][]bool, codes []int8) error {
	c, h := f.c, f.exact
	rows, n := c.target.Rows, c.target.Cols
	least := make([]float64, rows)
	d, hd := linalg.NewGeneral(rows, n), linalg.NewGeneral(rows, n)
	t := newTabu(h)
	for i, ups := range candidates {
		for r := range rows {
			for j, w := range linalg.Row(c.target, r) {
				k := r*n + j
				d.Data[k] = c.down[k] - w
				if ups[k] {
					d.Data[k] = c.up[k] - w
				}
			}
		}
		if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, d, h, 0, hd); err != nil {
			return err
		}
		for r := range rows {
			if err := ctx.Err(); err != nil {
				return err
			}
			at, to := r*n, (r+1)*n
			cost := vec.Dot64(linalg.Row(d, r), linalg.Row(hd, r))
			cost += t.search(ctx, c.down[at:to], c.up[at:to], ups[at:to], linalg.Row(hd, r))
			if i > 0 && cost >= least[r] {
				continue
			}
			least[r] = cost
			c.write(codes, ups, at, to)
		}
	}
	return ctx.Err()
}
