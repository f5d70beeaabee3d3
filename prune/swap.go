package prune

import (
	"context"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// SwapOptions are the settings of Swap.
type SwapOptions struct {
	Rounds int // times that rows are searched for swaps and polished, at most

	// Exact is the most inputs of a layer whose swaps are judged with all other
	// survivors refitted.
	Exact int

	Polish PolishOptions
}

// DefaultSwap finds most of what more rounds would find.
func DefaultSwap() SwapOptions { return SwapOptions{Rounds: 4, Exact: 320, Polish: DefaultPolish()} }

const (
	swapCandidates = 16   // survivors that are tried for each swap of an unstructured row
	swapGain       = 1e-5 // what a swap must take off the row's error, relatively
)

// Swap polishes w and then, in each row, exchanges survivors for pruned weights
// while that lowers the row's damped error, and polishes again, until no row has a
// swap that pays or the rounds are over. It overwrites w (out×in) and mask, and
// returns each row's damped error and how many swaps were made. Rows keep their
// number of survivors, N:M groups theirs. Patterns of blocks are refused. Shapes
// and the rest are as in Polish; no row's error grows.
//
// Where a layer has at most Exact inputs, a swap's effect is what it is after all
// other survivors are refitted, from a tableau that two sweeps bring up to date;
// the best of all swaps is made. Otherwise, with the gradient g = (w̃−ŵ)A, taking survivor s out costs ŵ_s²A_ss + 2ŵ_s·g_s,
// and the best value of t then gains (g_t + ŵ_s·A_st)²/A_tt, the others being left
// as they are: both are exact. Survivors that cost least are tried with all t.
//
// Cost: exact, in³/2 multiply-adds a row for the tableau and 2·in² a swap;
// otherwise about 20·in operations a swap, and a round one product in float64 and a
// polish of the rows that have changed.
func Swap(ctx context.Context, p *pool.Pool, a, target, w blas64.General, mask *layer.Mask, pattern Pattern, o SwapOptions) (damped []float64, swaps int, err error) {
	if p == nil {
		p = pool.New(1)
	}
	switch {
	case pattern.Check() != nil:
		return nil, 0, pattern.Check()
	case pattern.Kind == Blocks:
		return nil, 0, &PatternError{pattern.String(), "unstructured or N:M: whole blocks are not swapped"}
	case o.Rounds < 0:
		return nil, 0, &OptionError{"Rounds", o.Rounds, "none or more"}
	}
	s := swapper{pattern: pattern, rounds: o.Rounds, swaps: make([]int, w.Rows)}
	if s.polisher, err = newPolisher(ctx, p, a, target, w, mask, o.Polish); err != nil {
		return nil, 0, err
	}
	if w.Cols <= o.Exact {
		s.rounds = min(s.rounds, 1) // no more is found
		if err := s.prepare(ctx, p); err != nil {
			return nil, 0, err
		}
	}
	if err := s.each(ctx, p, func(rows []int) error { return s.run(ctx, rows) }); err != nil {
		return nil, 0, err
	}
	for _, n := range s.swaps {
		swaps += n
	}
	return s.damped, swaps, nil
}

type swapper struct {
	*polisher
	pattern Pattern
	rounds  int
	swaps   []int // made in each row

	// Scaled A, its inverse, W̃ and W̃A where swaps are judged with all survivors
	// refitted; else empty.
	unit, inverse, goal, products blas64.General
}

func (s *swapper) prepare(ctx context.Context, p *pool.Pool) (err error) {
	n := s.a.Rows
	s.unit = linalg.NewGeneral(n, n)
	if err := s.matrix(ctx, p, s.unit, s.a, 0); err != nil {
		return err
	}
	l := linalg.Clone(s.unit)
	if err := linalg.Cholesky(ctx, p, l); err != nil {
		return err
	}
	if s.inverse, err = linalg.Inverse(ctx, p, l); err != nil {
		return err
	}
	s.goal, s.products = linalg.Clone(s.target), linalg.NewGeneral(s.w.Rows, n)
	for r := range s.goal.Rows {
		for j, v := range s.norm {
			s.goal.Data[r*n+j] *= v / s.scaling.unit
		}
	}
	return blas.Gemm64(ctx, p, blas.NoTrans, blas.NoTrans, 1, s.goal, s.unit, 0, s.products)
}

// run polishes rows and refines their masks.
func (s *swapper) run(ctx context.Context, rows []int) error {
	from := rows[0]
	if err := s.polisher.run(ctx, from, append([]int(nil), rows...)); err != nil {
		return err
	}
	n := s.w.Cols
	before := make([]float64, len(rows)) // error, weights and survivors of row from+i
	weights, masks := linalg.NewGeneral(len(rows), n), layer.NewMask(len(rows), n)
	diff, grad := linalg.NewGeneral(len(rows), n), linalg.NewGeneral(len(rows), n)
	var t *tableau
	if s.unit.Rows > 0 {
		t = newTableau(n)
	}
	for range s.rounds {
		if err := s.gradients(ctx, rows, diff, grad); err != nil {
			return err
		}
		going := rows[:0]
		for i, r := range rows {
			before[r-from] = s.damped[r]
			copy(linalg.Row(weights, r-from), linalg.Row(s.w, r))
			copy(masks.Row(r-from), s.mask.Row(r))
			if made := s.row(t, r, linalg.Row(grad, i)); made > 0 {
				s.swaps[r] += made
				going = append(going, r)
			}
		}
		if err := s.polisher.run(ctx, from, append([]int(nil), going...)); err != nil {
			return err
		}
		rows = going[:0]
		for _, r := range going {
			if s.damped[r] < before[r-from] {
				rows = append(rows, r)
				continue
			}
			s.damped[r] = before[r-from] // by rounding only
			copy(linalg.Row(s.w, r), linalg.Row(weights, r-from))
			copy(s.mask.Row(r), masks.Row(r-from))
		}
	}
	return nil
}

// swap is one exchange: survivor out for the pruned weight in, which takes value.
type swap struct {
	out, in      int
	value, delta float64 // delta is what the error changes by
}

// row makes swaps in one row, whose gradient it may overwrite, and returns how
// many. t is nil where swaps are judged with the other survivors as they are.
func (s *swapper) row(t *tableau, r int, grad []float64) (made int) {
	w := linalg.Row(s.w, r)
	damped := s.damped[r]
	unit := s.scaling.unit
	if t != nil {
		t.begin(s.unit, s.inverse, linalg.Row(s.goal, r), linalg.Row(s.products, r), s.mask, r)
	}
	for ; made < len(w); made++ {
		var best swap
		if t != nil {
			best = t.best(s.pattern.M)
			best.delta *= unit * unit
		} else {
			best = s.best(r, w, grad)
		}
		if !(best.delta < -swapGain*damped) {
			break
		}
		damped += best.delta
		if t != nil {
			t.sweep(best.out)
			t.sweep(best.in)
		} else {
			vec.Axpy64(w[best.out], linalg.Row(s.a, best.out), grad)
			vec.Axpy64(-best.value, linalg.Row(s.a, best.in), grad)
			w[best.out], w[best.in] = 0, best.value
		}
		s.mask.Set(r, best.out, false)
		s.mask.Set(r, best.in, true)
	}
	if t != nil && made > 0 {
		for j := range w {
			w[j] = 0
			if t.inside[j] {
				w[j] = t.u[j] * unit / s.norm[j]
			}
		}
	}
	return made
}

// best returns the best swap of a row; its delta is 0 where there is none.
func (s *swapper) best(r int, w, grad []float64) (best swap) {
	if m := s.pattern.M; m > 0 {
		for out := range w {
			if s.mask.At(r, out) {
				s.try(&best, r, out, out/m*m, min(out/m*m+m, len(w)), w, grad)
			}
		}
		return best
	}
	var cheap [swapCandidates]int
	var costs [swapCandidates]float64
	n := 0
	for out := range w {
		if !s.mask.At(r, out) {
			continue
		}
		c := s.cost(out, w, grad)
		if n == swapCandidates && c >= costs[n-1] {
			continue
		}
		n = min(n+1, swapCandidates)
		i := n - 1
		for ; i > 0 && costs[i-1] > c; i-- {
			cheap[i], costs[i] = cheap[i-1], costs[i-1]
		}
		cheap[i], costs[i] = out, c
	}
	for _, out := range cheap[:n] {
		s.try(&best, r, out, 0, len(w), w, grad)
	}
	return best
}

// cost returns what a row's error grows by when a survivor goes.
func (s *swapper) cost(out int, w, grad []float64) float64 {
	return w[out] * (w[out]*s.a.Data[out*(s.a.Stride+1)] + 2*grad[out])
}

// try takes into best the best swap of a survivor with the pruned inputs from …
// to−1.
func (s *swapper) try(best *swap, r, out, from, to int, w, grad []float64) {
	cost, a := s.cost(out, w, grad), linalg.Row(s.a, out)
	for in := from; in < to; in++ {
		g := (grad[in] + w[out]*a[in]) / s.norm[in]
		if delta := cost - g*g; delta < best.delta && !s.mask.At(r, in) {
			*best = swap{out, in, g / s.norm[in], delta}
		}
	}
}
