package prune

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas32"
)

// Curve returns the distortion of a layer pruned by 0, 1/levels, 2/levels … 1 of its
// weights, those with the lowest scores: the sum of the squared scores that go. For
// magnitudes that is ‖w − ŵ‖², for Wanda's scores ‖XWᵀ − XŴᵀ‖² as if inputs were
// uncorrelated. It is a cheap curve for RateDistortion; what the model's outputs lose
// is a better one.
//
// Cost: a sort; memory for 4 bytes per weight.
func Curve(ctx context.Context, scores blas32.General, levels int) ([]float64, error) {
	if err := checkMatrix("scores", scores); err != nil {
		return nil, err
	}
	if levels < 1 || levels > maxLevels {
		return nil, &AllocationError{"levels of a curve", levels, fmt.Sprintf("1 to %d", maxLevels)}
	}
	for r := range scores.Rows {
		for c, v := range matrixRow(scores, r) {
			if !(v >= 0 && v <= math.MaxFloat32) {
				return nil, &ValueError{"score", r, c, float64(v), "a finite number, at least 0"}
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	keys := sortedMagnitudes(scores)
	curve, sum, at := make([]float64, levels+1), 0.0, 0
	for d := range curve {
		for to := prunedAt(len(keys), d, levels); at < to; at++ {
			v := float64(math.Float32frombits(keys[at]))
			sum += v * v
		}
		curve[d] = sum
	}
	return curve, ctx.Err()
}

// maxLevels bounds a curve's levels, which the dynamic programme notes in 16 bits.
const maxLevels = math.MaxUint16

// prunedAt returns how many of n weights go at level d of levels: all but one at the
// last.
func prunedAt(n, d, levels int) int {
	return min(n-1, Pruned(n, float64(d)/float64(levels)))
}

// rateDistortion picks a level of each layer's curve, so that the sum of the
// distortions is least among all choices that fit the budget of survivors. The
// budget is divided into buckets, at least 10,000 and 100 for each layer, or as many
// as there are survivors, and a layer takes whole buckets, rounded up; so what is
// chosen always fits. With one bucket per survivor it is the exact optimum, else that
// of costs up to a bucket a layer higher. What is left over by that, and by the steps
// of the curves, then goes where a weight buys most.
//
// Cost: Σ levels × buckets additions, and two bytes for each layer and bucket.
func (b *budget) rateDistortion(ctx context.Context, curves [][]float64, buckets int) ([]Share, error) {
	if err := b.checkCurves(curves); err != nil {
		return nil, err
	}
	if buckets == 0 {
		buckets = max(leastBuckets, 100*len(b.layers))
	}
	buckets = min(buckets, b.survivors)
	costs := make([][]int, len(curves))
	needed := 0
	for i, curve := range curves {
		costs[i] = make([]int, len(curve))
		least := b.most[i]
		for d := range curve {
			survivors := b.most[i] - prunedAt(b.most[i], d, len(curve)-1)
			costs[i][d] = ceilMulDiv(survivors, buckets, b.survivors)
			if !math.IsInf(curve[d], 1) {
				least = min(least, survivors)
			}
		}
		needed += least
	}
	if needed > b.survivors {
		return nil, b.impossible(needed, "the fewest weights that the curves allow")
	}
	levels, err := cheapest(ctx, costs, curves, buckets)
	if err != nil {
		return nil, err
	}
	if levels == nil { // it fits but for the rounding of costs
		return nil, &AllocationError{"Buckets", buckets, "more: the curves leave too little room for rounding"}
	}
	shares, left := make([]Share, len(curves)), b.survivors
	for i, l := range b.layers {
		last := len(curves[i]) - 1
		survivors := b.most[i] - prunedAt(b.most[i], levels[i], last)
		shares[i] = Share{l.Name, b.most[i], survivors, levels[i] == last}
		left -= survivors
	}
	b.fill(shares, levels, curves, left)
	return shares, nil
}

func (b *budget) checkCurves(curves [][]float64) error {
	if len(curves) != len(b.layers) {
		return &AllocationError{"AllocationInput.Curves", fmt.Sprintf("of %d layers", len(curves)), fmt.Sprintf("one for each of %d", len(b.layers))}
	}
	for i, curve := range curves {
		if len(curve) < 2 || len(curve) > maxLevels+1 {
			return &AllocationError{"length of the curve of layer " + b.layers[i].Name, len(curve), fmt.Sprintf("2 to %d", maxLevels+1)}
		}
		for d, v := range curve {
			if math.IsNaN(v) || math.IsInf(v, -1) || d == 0 && math.IsInf(v, 1) {
				return &ValueError{"curve of layer " + b.layers[i].Name, -1, d, v, "a number, or +Inf after the first"}
			}
		}
	}
	return nil
}

// ceilMulDiv returns ⌈a·b/c⌉, for a ≤ 2⁵³ or so and b ≤ 10⁷, without overflow.
func ceilMulDiv(a, b, c int) int {
	whole, rest := a/c, a%c
	return whole*b + (rest*b+c-1)/c
}

// cheapest returns a level for each layer with the least sum of values among those
// whose costs sum to at most the budget; nil if there are none. Among equal sums it
// prefers lower levels of later layers.
func cheapest(ctx context.Context, costs [][]int, values [][]float64, budget int) ([]int, error) {
	best := make([]float64, budget+1) // by cost at most: no layer costs nothing
	picked := make([][]uint16, len(costs))
	for i := range costs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		next, pick := make([]float64, budget+1), make([]uint16, budget+1)
		for j := range next {
			next[j] = math.Inf(1)
		}
		for d, cost := range costs[i] {
			value := values[i][d]
			for j := cost; j <= budget; j++ {
				if v := best[j-cost] + value; v < next[j] {
					next[j], pick[j] = v, uint16(d)
				}
			}
		}
		best, picked[i] = next, pick
	}
	if math.IsInf(best[budget], 1) {
		return nil, nil
	}
	levels, left := make([]int, len(costs)), budget
	for i := len(costs) - 1; i >= 0; i-- {
		levels[i] = int(picked[i][left])
		left -= costs[i][levels[i]]
	}
	return levels, nil
}

// fill gives out the survivors that are left, one step of a curve after the other,
// first the one that lowers the distortion most per weight, at a tie that of the
// earlier layer. Steps to amounts that are not allowed come last.
func (b *budget) fill(shares []Share, levels []int, curves [][]float64, left int) {
	for left > 0 {
		best, most, gain := -1, 0, math.Inf(-1)
		for i := range shares {
			for levels[i] > 0 { // steps of no weights are no steps
				size := b.most[i] - prunedAt(b.most[i], levels[i]-1, len(curves[i])-1) - shares[i].Survivors
				if size > 0 {
					g := (curves[i][levels[i]] - curves[i][levels[i]-1]) / float64(size)
					if math.IsNaN(g) { // between two amounts that are not allowed
						g = math.Inf(-1)
					}
					if best < 0 || g > gain {
						best, most, gain = i, size, g
					}
					break
				}
				levels[i]--
			}
		}
		n := min(left, most)
		shares[best].Survivors += n
		shares[best].Rescued = false
		left -= n
		if n == most {
			levels[best]--
		}
	}
}
