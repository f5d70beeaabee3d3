package search

import (
	"context"
	"math"
	"math/bits"
)

// leastBuckets is how finely a budget is divided at least.
const leastBuckets = 10000

// SumOfErrors returns the candidate with the least sum of errors within the budget, by
// dynamic programming over the bytes above the cheapest levels (Xu et al., arXiv
// 2308.10438; L-GreCo, arXiv 2210.17357, has its dual). errors is as for Greedy.
//
// The bytes are counted in units of their greatest common divisor. If that makes no
// more than the given number of buckets, the result is the exact optimum; otherwise
// costs are rounded up to buckets, so it still fits, and is the optimum of costs up to
// a bucket a gene higher; what is left by that goes where it gains most per byte.
// Zero buckets means 10,000, or 100 for each gene if that is more.
//
// Cost: levels × buckets additions, and two bytes for each gene and bucket.
func (s *Space) SumOfErrors(ctx context.Context, errors [][]float64, buckets int) (Candidate, error) {
	if buckets < 0 {
		return nil, &OptionError{"buckets", buckets, "at least 1, or 0 for the default"}
	}
	if buckets == 0 {
		buckets = max(leastBuckets, 100*len(s.genes))
	}
	allowed, err := s.allowed(errors)
	if err != nil {
		return nil, err
	}
	costs, buckets := s.inBuckets(allowed, buckets)
	best, next := make([]float64, buckets+1), make([]float64, buckets+1)
	choice := make([][]uint16, len(allowed))
	for g, levels := range allowed {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		choice[g] = make([]uint16, buckets+1)
		for j := range next {
			next[j] = math.Inf(1)
		}
		for i, l := range levels {
			cost, e := costs[g][i], errors[g][l]
			for j := cost; j <= buckets; j++ {
				if sum := best[j-cost] + e; sum < next[j] {
					next[j], choice[g][j] = sum, uint16(i)
				}
			}
		}
		best, next = next, best
	}
	c := make(Candidate, len(allowed))
	for g, j := len(allowed)-1, buckets; g >= 0; g-- {
		i := choice[g][j]
		c[g] = allowed[g][i]
		j -= costs[g][i]
	}
	return s.improve(ctx, c, allowed, errors)
}

// inBuckets returns what each allowed level costs above the gene's cheapest, in
// buckets, and how many buckets there are. A level that no budget has room for costs
// more than all of them.
func (s *Space) inBuckets(allowed [][]int, buckets int) ([][]int, int) {
	room, unit := s.budget.Bytes-s.budget.Rest, int64(0)
	for g, levels := range allowed {
		least := s.bytes(g, levels[0])
		room -= least
		for _, l := range levels {
			unit = gcd(unit, s.bytes(g, l)-least)
		}
	}
	unit = max(unit, 1)
	room /= unit
	buckets = int(min(int64(buckets), room))
	costs := make([][]int, len(allowed))
	for g, levels := range allowed {
		for _, l := range levels {
			above := (s.bytes(g, l) - s.bytes(g, levels[0])) / unit
			cost := buckets + 1
			if above <= room && room > 0 {
				cost = int(ceilMulDiv(uint64(above), uint64(buckets), uint64(room)))
			} else if above == 0 {
				cost = 0
			}
			costs[g] = append(costs[g], cost)
		}
	}
	return costs, buckets
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// ceilMulDiv returns ⌈a·b/c⌉ for a ≤ c.
func ceilMulDiv(a, b, c uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	q, r := bits.Div64(hi, lo, c)
	if r > 0 {
		q++
	}
	return q
}
