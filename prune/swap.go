package prune

import (
	"context"
	"fmt"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// SwapOptions are the settings of Swap.
type SwapOptions struct {
	Rounds int // times that rows are searched for swaps and polished, at most
	Polish PolishOptions
}

// DefaultSwap finds most of what more rounds would find.
func DefaultSwap() SwapOptions { return SwapOptions{Rounds: 4, Polish: DefaultPolish()} }

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
// With the gradient g = (w̃−ŵ)A, taking survivor s out costs ŵ_s²A_ss + 2ŵ_s·g_s,
// and the best value of t then gains (g_t + ŵ_s·A_st)²/A_tt, the others being left
// as they are: both are exact. Survivors that cost least are tried with all t.
//
// Cost: a swap takes about 20·in operations, a round one product in float64 and a
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
	case mask == nil:
		return nil, 0, &ShapeError{"no mask to begin with"}
	case o.Rounds < 0:
		return nil, 0, fmt.Errorf("prune: %d rounds of swaps: want none or more", o.Rounds)
	}
	s := swapper{pattern: pattern, rounds: o.Rounds, swaps: make([]int, w.Rows)}
	if s.polisher, err = newPolisher(ctx, p, a, target, w, mask, o.Polish); err != nil {
		return nil, 0, err
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
	for range s.rounds {
		if err := s.gradients(ctx, rows, diff, grad); err != nil {
			return err
		}
		going := rows[:0]
		for i, r := range rows {
			before[r-from] = s.damped[r]
			copy(row64(weights, r-from), row64(s.w, r))
			copy(masks.Row(r-from), s.mask.Row(r))
			if made := s.row(r, row64(grad, i)); made > 0 {
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
			copy(row64(s.w, r), row64(weights, r-from))
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

// row makes swaps in one row, whose gradient it keeps up to date, and returns how
// many.
func (s *swapper) row(r int, grad []float64) int {
	w := row64(s.w, r)
	damped := s.damped[r]
	for made := 0; ; made++ {
		best := s.best(r, w, grad)
		if made == len(w) || !(best.delta < -swapGain*damped) {
			return made
		}
		damped += best.delta
		vec.Axpy64(w[best.out], row64(s.a, best.out), grad)
		vec.Axpy64(-best.value, row64(s.a, best.in), grad)
		w[best.out], w[best.in] = 0, best.value
		s.mask.Set(r, best.out, false)
		s.mask.Set(r, best.in, true)
	}
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
	cost, a := s.cost(out, w, grad), row64(s.a, out)
	for in := from; in < to; in++ {
		g := (grad[in] + w[out]*a[in]) / s.norm[in]
		if delta := cost - g*g; delta < best.delta && !s.mask.At(r, in) {
			*best = swap{out, in, g / s.norm[in], delta}
		}
	}
}
