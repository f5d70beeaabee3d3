package prune

import (
	"context"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas/blas32"
)

// LAMPScores writes the LAMP score of each weight of a layer to dst, which has w's
// shape and may be w itself (Lee et al., arXiv 2010.07611, eq. 3). With weights in
// the order of |w|, at a tie of their index,
//
//	score(u) = w_u² / Σ_{v≥u} w_v²
//
// so a layer's largest weight has score 1, and scores do not change when the layer
// is multiplied by a number. All weights of a layer of zeros have score 0. Sums run
// in float64 from the largest weight down; the scores are then rounded to float32.
// (The authors subtract float32 prefix sums from the whole, which for 200,000
// Gaussian weights gave the largest a score of 1.006.)
//
// Cost: a sort; memory for 8 bytes per weight.
func LAMPScores(ctx context.Context, dst, w blas32.General) error {
	if err := checkMatrix("weight", w); err != nil {
		return err
	}
	if err := checkMatrix("scores", dst); err != nil {
		return err
	}
	if dst.Rows != w.Rows || dst.Cols != w.Cols || w.Rows*w.Cols > math.MaxUint32 {
		return &ShapeError{"scores and weight differ in shape, or are over 4 Gi values"}
	}
	order := make([]uint64, 0, w.Rows*w.Cols) // |w|'s bits, then the index
	for r := range w.Rows {
		for c, v := range matrixRow(w, r) {
			if !(math.Abs(float64(v)) <= math.MaxFloat32) {
				return &ValueError{"weight", r, c, float64(v), "a finite number"}
			}
			order = append(order, uint64(magnitudeKey(v))<<32|uint64(len(order)))
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	slices.Sort(order)
	sum := 0.0
	for i := len(order) - 1; i >= 0; i-- {
		score, total := lampScore(uint32(order[i]>>32), sum)
		sum = total
		at := int(uint32(order[i]))
		dst.Data[at/w.Cols*dst.Stride+at%w.Cols] = score
	}
	return ctx.Err()
}

// magnitudeKey orders weights by |w|: its bits.
func magnitudeKey(w float32) uint32 { return math.Float32bits(w) &^ (1 << 31) }

// lampScore returns the score of a weight, and the sum of squares from it on, given
// that of the larger ones. Squares of float32 are exact in float64, so that scores
// never fall from one weight to a larger one.
func lampScore(key uint32, larger float64) (score float32, sum float64) {
	v := float64(math.Float32frombits(key))
	sum = larger + v*v
	if sum == 0 {
		return 0, 0
	}
	return float32(v * v / sum), sum
}

// lampKeys are the bits of the layer's LAMP scores.
func lampKeys(w blas32.General, visit func(keys []uint32)) error {
	keys := sortedMagnitudes(w)
	sum := 0.0
	for i := len(keys) - 1; i >= 0; i-- {
		var score float32
		score, sum = lampScore(keys[i], sum)
		keys[i] = math.Float32bits(score)
	}
	visit(keys)
	return nil
}

// sortedMagnitudes returns the bits of all |w|, ascending.
func sortedMagnitudes(w blas32.General) []uint32 {
	keys := make([]uint32, 0, w.Rows*w.Cols)
	for r := range w.Rows {
		for _, v := range matrixRow(w, r) {
			keys = append(keys, magnitudeKey(v))
		}
	}
	sortKeys(keys, 24)
	return keys
}

// sortKeys sorts in place, digit by digit of 8 bits from the one at shift: it counts
// the digits, swaps each key into its digit's part, and sorts the parts.
func sortKeys(keys []uint32, shift int) {
	if len(keys) < 64 || shift < 0 {
		slices.Sort(keys)
		return
	}
	var counts, next [256]int
	for _, k := range keys {
		counts[k>>shift&255]++
	}
	at := 0
	for d, n := range counts {
		next[d] = at
		at += n
	}
	start := 0
	for d, n := range counts {
		end := start + n
		for next[d] < end {
			k := keys[next[d]]
			if own := int(k >> shift & 255); own == d {
				next[d]++
			} else {
				keys[next[d]], keys[next[own]] = keys[next[own]], k
				next[own]++
			}
		}
		if shift > 0 {
			sortKeys(keys[start:end], shift-8)
		}
		start = end
	}
}
