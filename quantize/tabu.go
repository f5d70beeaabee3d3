package quantize

import (
	"context"
	"math"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/vec"
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
func patience(n int) int { return min(100+2*n, 1000) }

// tie is the share of δ²Hⱼⱼ that a gain must exceed: weights halfway between two
// codes stay where nearest rounding put them, though float32 values of the codes
// are not exactly as far away.
const tie = 1e-6

func newTabu(h blas64.General) *tabu {
	n := h.Rows
	return &tabu{h: h, delta: make([]float64, n), own: make([]float64, n), frozen: make([]int, n), now: make([]bool, n)}
}

// search replaces ups by the best choice met and returns by how much that
// changed the error dᵀHd: never more than 0. No single flip lowers it by more
// than rounding. Given are the values of the two choices and hd = Hd, which is
// overwritten. When ctx is cancelled it stops within 256 moves.
//
// A flip of δ in entry j changes the error by 2δ(Hd)ⱼ + δ²Hⱼⱼ, and Hd by δ times
// column j: O(n) per move.
func (t *tabu) search(ctx context.Context, down, up []float64, ups []bool, hd []float64) float64 {
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
	floor := t.floor()
	cost, least := 0.0, 0.0
	for move, last := 1, 0; move-last <= patience(n); move++ {
		best, gain := -1, math.Inf(1)
		for j, own := range t.own {
			g := own + 2*t.delta[j]*hd[j]
			if g < gain && (t.frozen[j] < move || cost+g < least-max(floor, tie*own)) {
				best, gain = j, g
			}
		}
		if best < 0 || move%256 == 0 && ctx.Err() != nil {
			break
		}
		cost += gain
		delta := t.delta[best]
		t.delta[best] = -delta
		t.now[best] = !t.now[best]
		t.frozen[best] = move + tenure(n, move)
		vec.Axpy64(delta, linalg.Row(t.h, best), hd)
		if cost < least-max(floor, tie*t.own[best]) {
			least, last = cost, move
			copy(ups, t.now)
		}
	}
	return least
}

// floor returns what rounding adds up to, at the most, over a search's moves.
// Were less to count as a gain, a search could circle for ever, each round
// seemingly better.
func (t *tabu) floor() float64 {
	sum := 0.0
	for _, own := range t.own {
		if !math.IsInf(own, 1) {
			sum += own
		}
	}
	return 1e-12 * sum
}
