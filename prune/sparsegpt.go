package prune

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// SparseGPTOptions are the settings of SparseGPT.
type SparseGPTOptions struct {
	// Mask is a mask to keep to; nil for one that the pass chooses.
	Mask *layer.Mask

	// Round returns what a survivor becomes, so that later inputs make up for its
	// rounding too; nil leaves survivors as they are. Rows are called side by side,
	// the inputs of one row in the order of the pass.
	Round func(row, col int, w float64) float64
}

const (
	passBlock = 128 // inputs whose errors reach later blocks in one product
	passInner = 32  // inputs whose errors reach the rest of their block in one product
	passRows  = 64  // rows of a task
)

// SparseGPT overwrites w, the target W̃ (out×in), with sparse weights Ŵ and
// returns the survivors and each row's damped error over A's unit, by one pass
// over the inputs (arXiv 2301.00774, §3 and algorithm 1). The upper triangular U,
// of A = unit·(UᵀU)⁻¹, has its inputs in the given order; nil for 0, 1, ….
//
// What input i loses, e = (w_i − ŵ_i)/U_ii, is taken from the inputs after it,
// w_j −= e·U_ij; the row's damped error is unit·Σe². The mask is chosen when the
// pass reaches a block of 128 inputs, by the least (w_i/U_ii)² among those of the
// block: so many that the blocks reached so far have lost their exact share. N:M
// groups are chosen one by one when the pass reaches them. N:M and blocks need an
// order that leaves inputs of a group or a block beside each other, in their
// places.
//
// Cost: out·in²/2 multiply-adds in float64.
func SparseGPT(ctx context.Context, p *pool.Pool, upper blas64.General, order []int, w blas64.General, sel Selection, o SparseGPTOptions) (*layer.Mask, []float64, error) {
	if p == nil {
		p = pool.New(1)
	}
	if err := checkSystem(upper, w, o.Mask); err != nil {
		return nil, nil, err
	}
	if o.Mask != nil {
		sel = Selection{}
	} else if err := sel.checkFor(w.Rows, w.Cols); err != nil {
		return nil, nil, err
	}
	if err := sel.Pattern.checkOrder(order, w.Cols); err != nil {
		return nil, nil, err
	}
	s := &pass{
		selector: selector{Selection: sel}, pool: p, upper: upper, order: order, given: o.Mask != nil, round: o.Round,
		w: linalg.NewGeneral(w.Rows, w.Cols), errs: linalg.NewGeneral(w.Rows, sel.Pattern.width(passBlock)),
		mask: layer.NewMask(w.Rows, w.Cols), damped: make([]float64, w.Rows),
	}
	err := forRows(ctx, p, w.Rows, w.Cols, func(r int) error {
		row, from := linalg.Row(s.w, r), linalg.Row(w, r)
		for i := range row {
			row[i] = from[s.input(i)]
			if s.given {
				s.mask.Set(r, i, o.Mask.At(r, s.input(i)))
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if err := s.run(ctx); err != nil {
		return nil, nil, err
	}
	mask := layer.NewMask(w.Rows, w.Cols)
	err = forRows(ctx, p, w.Rows, w.Cols, func(r int) error {
		row, to := linalg.Row(s.w, r), linalg.Row(w, r)
		for i, v := range row {
			to[s.input(i)] = v
			mask.Set(r, s.input(i), s.mask.At(r, i))
		}
		return nil
	})
	return mask, s.damped, err
}

// checkOrder reports an order that takes groups or blocks apart.
func (p Pattern) checkOrder(order []int, n int) error {
	if order == nil {
		return nil
	}
	if len(order) != n {
		return &ShapeError{fmt.Sprintf("an order of %d inputs for %d", len(order), n)}
	}
	size := p.span()
	for i, input := range order {
		if size > 1 && (input%size != i%size || input/size != order[i/size*size]/size) {
			return &ShapeError{fmt.Sprintf("the order of the inputs takes groups of %d apart: leave act-order off, or reorder whole groups", size)}
		}
	}
	return nil
}

// width returns the largest multiple of the group's or block's inputs up to n,
// or one of them where it is larger.
func (p Pattern) width(n int) int {
	size := p.span()
	return max(n/size, 1) * size
}

// pass is the state of one pass. Its matrices have their inputs in the order of
// the pass.
type pass struct {
	selector
	pool   *pool.Pool
	upper  blas64.General
	order  []int
	given  bool // the mask is
	round  func(row, col int, w float64) float64
	w      blas64.General // survivors and zeros before the pass, weights kept up to date after it
	errs   blas64.General // out × block
	mask   *layer.Mask
	damped []float64
}

// input returns the input at place i of the pass.
func (s *pass) input(i int) int {
	if s.order == nil {
		return i
	}
	return s.order[i]
}

func (s *pass) run(ctx context.Context) error {
	n := s.w.Cols
	inner := s.Pattern.width(passInner)
	for start, end := 0, 0; start < n; start = end {
		end = min(start+s.Pattern.width(passBlock), n)
		if !s.given && s.Pattern.M == 0 {
			if err := s.chooseBlock(ctx, start, end); err != nil {
				return err
			}
		}
		err := s.pool.For(ctx, (s.w.Rows+passRows-1)/passRows, func(t int) error {
			from, to := t*passRows, min((t+1)*passRows, s.w.Rows)
			for i := start; i < end; i += inner {
				stop := min(i+inner, end)
				for r := from; r < to; r++ {
					s.runRow(r, start, i, stop)
				}
				if err := s.feed(ctx, nil, from, to, i-start, i, stop, end); err != nil {
					return err
				}
			}
			for r := from; r < to; r++ {
				e := linalg.Row(s.errs, r)[:end-start]
				s.damped[r] += vec.Dot64(e, e)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := s.feed(ctx, s.pool, 0, s.w.Rows, 0, start, end, n); err != nil {
			return err
		}
	}
	return nil
}

// feed takes the errors of inputs start … stop−1, which begin at column errs of
// the block's, from inputs stop … end−1 of some rows.
func (s *pass) feed(ctx context.Context, p *pool.Pool, from, to, errs, start, stop, end int) error {
	if stop >= end {
		return nil
	}
	e := blas64.General{Rows: to - from, Cols: stop - start, Stride: s.errs.Stride, Data: s.errs.Data[from*s.errs.Stride+errs:]}
	u := blas64.General{Rows: stop - start, Cols: end - stop, Stride: s.upper.Stride, Data: s.upper.Data[start*s.upper.Stride+stop:]}
	w := blas64.General{Rows: to - from, Cols: end - stop, Stride: s.w.Stride, Data: s.w.Data[from*s.w.Stride+stop:]}
	return blas.Gemm64(ctx, p, blas.NoTrans, blas.NoTrans, -1, e, u, 1, w)
}

// runRow takes row r through inputs from … to−1 of the block that begins at
// start.
func (s *pass) runRow(r, start, from, to int) {
	w, errs := linalg.Row(s.w, r), linalg.Row(s.errs, r)
	for i := from; i < to; i++ {
		if s.Pattern.M > 0 && i%s.Pattern.M == 0 {
			s.chooseGroup(w, r, i, min(i+s.Pattern.M, len(w)))
		}
		u := s.upper.Data[i*s.upper.Stride:]
		kept := 0.0
		if s.mask.At(r, i) {
			kept = w[i]
			if s.round != nil {
				kept = s.round(r, s.input(i), kept)
			}
		}
		e := (w[i] - kept) / u[i]
		errs[i-start] = e
		w[i] = kept
		if e != 0 {
			vec.Axpy64(-e, u[i+1:to], w[i+1:to])
		}
	}
}

// chooseBlock chooses the survivors among inputs start … end−1, units counted so
// that all blocks together lose exactly what they should.
func (s *pass) chooseBlock(ctx context.Context, start, end int) error {
	most := 0.0
	for r := range s.w.Rows {
		for i, v := range linalg.Row(s.w, r)[start:end] {
			most = max(most, math.Abs(v)/s.upper.Data[(start+i)*(s.upper.Stride+1)])
		}
	}
	_, exp := math.Frexp(most)
	scale := math.Ldexp(1, -min(max(exp, -1000), 1000))
	scores := new32(s.w.Rows, end-start)
	err := forRows(ctx, s.pool, s.w.Rows, end-start, func(r int) error {
		row, w := matrixRow(scores, r), linalg.Row(s.w, r)[start:end]
		for i := range row {
			row[i] = float32(w[i] / s.upper.Data[(start+i)*(s.upper.Stride+1)] * scale)
		}
		return nil
	})
	if err != nil {
		return err
	}
	rows, all := s.Pattern.units(s.w.Rows, s.w.Cols)
	_, before := s.Pattern.units(s.w.Rows, start)
	_, after := s.Pattern.units(s.w.Rows, end)
	goes := s.losses(s.w.Rows, s.w.Cols)
	inBlock := func(k int) int { return k*after/all - k*before/all }
	return s.choose(ctx, s.pool, scores, s.mask, start, inBlock(goes), func(r int) int { return inBlock(share(goes, r, rows)) })
}

// chooseGroup chooses the survivors of a row's N:M group: those with the largest
// (w_i/U_ii)², of equal ones the last.
func (s *pass) chooseGroup(w []float64, r, from, to int) {
	for i := from; i < to; i++ {
		s.mask.Set(r, i, false)
	}
	for range s.Pattern.kept(to - from) {
		best, score := -1, 0.0
		for i := from; i < to; i++ {
			v := math.Abs(w[i]) / s.upper.Data[i*(s.upper.Stride+1)]
			if !s.mask.At(r, i) && (best < 0 || v >= score) {
				best, score = i, v
			}
		}
		s.mask.Set(r, best, true)
	}
}
