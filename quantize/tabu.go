package quantize

import (
	"math"

	"gonum.org/v1/gonum/blas/blas64"
)

// tabu searches a row's up/down choices by single flips: a tabu search with one
// flip per move for quadratic problems in bits (Glover, Kochenberger & Alidaee,
// Management Science 44, 1998). It first descends, each move the flip that
// lowers the error the most. At a local minimum it goes on with the flip that
// raises the error the least, and keeps a flipped bit for some moves, so that
// it leaves the minimum's surroundings. It is deterministic.
type tabu struct {
	h      blas64.General
	delta  []float64 // what a flip adds to a weight
	own    []float64 // delta²·Hⱼⱼ; +Inf where there is no choice
	frozen []int     // the move until which a bit stays
	now    []bool
}

// tenure returns for how many moves a flipped bit stays, of n. That it varies
// breaks cycles.
func tenure(n, move int) int { return min(n/2, 20) + move%3 }

// patience returns after how many moves without a new least error a search ends.
func patience(n int) int { return 100 + 2*n }

func newTabu(h blas64.General) *tabu {
	n := h.Rows
	return &tabu{h: h, delta: make([]float64, n), own: make([]float64, n), frozen: make([]int, n), now: make([]bool, n)}
}

// search replaces ups by the best choice met and returns by how much that
// changed the error dᵀHd: never more than 0. No single flip lowers it further.
// Given are the values of the two choices and hd = Hd, which is overwritten.
//
// A flip of δ in entry j changes the error by 2δ(Hd)ⱼ + δ²Hⱼⱼ, and Hd by δ times
// column j: O(n) per move.
func (t *tabu) search(down, up []float64, ups []bool, hd []float64) float64 {
	n := len(ups)
	copy(t.now, ups)
	clear(t.frozen)
	for j := range n {
		t.delta[j] = up[j] - down[j]
		t.own[j] = t.delta[j] * t.delta[j] * t.h.Data[j*t.h.Stride+j]
		if up[j] == down[j] {
			t.own[j] = math.Inf(1)
		}
		if ups[j] {
			t.delta[j] = -t.delta[j]
		}
	}
	noise := t.noise()
	cost, least := 0.0, 0.0
	for move, last := 1, 0; move-last <= patience(n); move++ {
		best, gain := -1, math.Inf(1)
		for j, own := range t.own {
			g := own + 2*t.delta[j]*hd[j]
			if g < gain && (t.frozen[j] < move || cost+g < least-noise) {
				best, gain = j, g
			}
		}
		if best < 0 {
			break
		}
		cost += gain
		delta := t.delta[best]
		t.delta[best] = -delta
		t.now[best] = !t.now[best]
		t.frozen[best] = move + tenure(n, move)
		vec.Daxpy(n, delta, rowOf64(t.h, best), 1, hd, 1)
		if cost < least-noise {
			least, last = cost, move
			copy(ups, t.now)
		}
	}
	return least
}

// noise returns what is too small a gain to count: a billionth of the mean of
// own, well above what rounding adds up to over a search's moves. Without it,
// a search could circle for ever, each round seemingly better.
func (t *tabu) noise() float64 {
	sum, count := 0.0, 0
	for _, own := range t.own {
		if !math.IsInf(own, 1) {
			sum += own
			count++
		}
	}
	return 1e-9 * sum / float64(max(count, 1))
}
