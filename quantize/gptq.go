package quantize

import (
	"context"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

const (
	gptqBlock = 128 // inputs whose errors reach later blocks in one product
	gptqInner = 32  // inputs whose errors reach the rest of their block in one product
	gptqRows  = 256 // rows that one task solves, at most
)

// recursion is GPTQ's pass over the inputs of some rows (arXiv 2210.17323,
// §3.3): with H⁻¹ = UᵀU, each input's error e = (w − ŵ)/U_ii is taken from the
// inputs after it, w_j −= e·U_ij. All in float64.
type recursion struct {
	upper blas64.General // U, its inputs in the order of the pass
	order []int          // the input that stands at each place; nil for 0, 1, …
	grid  *layer.Grid

	// search finds a group's step when the pass reaches it, from the weights as
	// the errors before have left them. Nil when the grid is known.
	search *ranger

	// damped gets each row's damped error over H's unit: Σe². Nil where it is not
	// asked for.
	damped []float64

	// leads are rounded in place of each row's first input, by the grid's rows.
	// Nil for the input itself.
	leads []float64

	// mask says which weights survive, by the grid's rows; the others are rounded
	// to 0. Nil for all.
	mask *layer.Mask

	// floors and ceils, row-major like the rows given to run, bound each code.
	// Nil for all codes.
	floors, ceils []int8
}

// gptq solves all rows by GPTQ or Qronos, in the order of the inputs, or of descending diag(H).
func (s *solver) gptq(ctx context.Context) error {
	var search *ranger
	if s.o.gridOnTheWay() {
		search = &s.grid
	}
	var leads []float64
	if s.o.Method == Qronos && s.Problem.Start == nil {
		leads = s.leads()
	}
	if len(s.target.Data) > 0 && &s.target.Data[0] == &s.Anchor.Data[0] {
		s.damped = make([]float64, s.target.Rows)
	}
	blocks := s.Blocks(min(gptqRows, max(16, s.target.Rows/8)))
	return s.Pool.For(ctx, len(blocks), func(i int) error {
		b := blocks[i]
		g := &s.Grams[b.Group]
		q := recursion{upper: g.Upper, order: g.Order, grid: &s.solution.Grid, search: search, leads: leads, mask: s.mask}
		if s.damped != nil {
			q.damped = s.damped[b.From:b.To]
		}
		w, giveBack := s.Borrow(b.To-b.From, s.target.Cols)
		defer giveBack()
		q.order64(w, linalg.Rows(s.target, b.From, b.To))
		return q.run(ctx, w, b.From, s.solution.Codes[b.From*s.target.Cols:])
	})
}

// order64 writes rows to dst in the order of the pass.
func (q *recursion) order64(dst, rows blas64.General) {
	for r := range dst.Rows {
		gram.Gather(linalg.Row(dst, r), linalg.Row(rows, r), q.order)
	}
}

// run writes the codes of some rows, the first of which stands at row first of
// the grid. w has the rows in the order of the pass, and is overwritten.
func (q *recursion) run(ctx context.Context, w blas64.General, first int, codes []int8) error {
	n := w.Cols
	errs := linalg.NewGeneral(w.Rows, gptqBlock)
	for start := 0; start < n; {
		end := q.blockEnd(start, n)
		for from := start; from < end; {
			to := q.innerEnd(from, end)
			for r := range w.Rows {
				if err := ctx.Err(); err != nil {
					return err
				}
				e := linalg.Row(errs, r)[from-start : to-start]
				q.runRow(linalg.Row(w, r), e, first+r, from, to, codes[r*n:][:n], r*n)
				if q.damped != nil {
					q.damped[r] += vec.Dot64(e, e)
				}
			}
			if err := q.feed(ctx, colsOf(errs, from-start, to-from), from, w, to, end); err != nil {
				return err
			}
			from = to
		}
		if err := q.feed(ctx, colsOf(errs, 0, end-start), start, w, end, n); err != nil {
			return err
		}
		start = end
	}
	return nil
}

// feed takes the errors of the inputs from first on from those of from … to−1.
func (q *recursion) feed(ctx context.Context, errs blas64.General, first int, w blas64.General, from, to int) error {
	if from == to {
		return nil
	}
	u := blas64.General{Rows: errs.Cols, Cols: to - from, Stride: q.upper.Stride, Data: q.upper.Data[first*q.upper.Stride+from:]}
	return blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, -1, errs, u, 1, colsOf(w, from, to-from))
}

// innerEnd returns where the part of a block that starts at an input ends: a
// group whose step is searched on the way begins with a part or lies within one.
func (q *recursion) innerEnd(from, end int) int {
	if q.search != nil && q.grid.GroupSize%gptqInner != 0 && gptqInner%q.grid.GroupSize != 0 {
		return end
	}
	return min(from+gptqInner, end)
}

// blockEnd returns where the block that starts at an input ends. A group whose
// step is searched on the way must be up to date when the pass reaches it, so
// it begins with a block or lies within one.
func (q *recursion) blockEnd(start, n int) int {
	width := gptqBlock
	if q.search != nil {
		size := q.grid.GroupSize
		if size <= gptqBlock {
			width = gptqBlock / size * size
		} else {
			width = min(width, size-start%size)
		}
	}
	return min(start+width, n)
}

// runRow rounds the inputs start … end−1 of one row, keeps the block's later
// inputs up to date, and writes the errors to errs.
func (q *recursion) runRow(w, errs []float64, row, start, end int, codes []int8, bounds int) {
	lo, hi := q.grid.Range()
	for i := start; i < end; i++ {
		col := i
		if q.order != nil {
			col = q.order[i]
		}
		at := q.grid.Index(row, col, len(w))
		if size := q.grid.GroupSize; q.search != nil && i%size == 0 {
			setStep(q.grid, at, q.search.step(w[i:i+size]))
		}
		s := stepAt(q.grid, at)
		if q.floors != nil {
			lo, hi = int(q.floors[bounds+col]), int(q.ceils[bounds+col])
		}
		v := w[i]
		if i == 0 && q.leads != nil {
			v = q.leads[row]
		}
		code := s.code(v, lo, hi)
		if q.mask != nil && !q.mask.At(row%q.mask.Rows, col) {
			code = s.zero
		}
		codes[col] = int8(code)
		u := q.upper.Data[i*q.upper.Stride:]
		e := (w[i] - float64(s.value(code))) / u[i]
		errs[i-start] = e
		vec.Axpy64(-e, u[i+1:end], w[i+1:end])
	}
}
