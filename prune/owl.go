package prune

import (
	"context"
	"math"

	"gonum.org/v1/gonum/blas/blas32"
)

// owl finds for each block the share D of scores that exceed M times their mean, and
// prunes its layers by s − (D − D̄)·scale, where D̄ is the mean over all weights, so
// that the whole's sparsity is s, and scale makes the largest difference from s equal
// to λ (Yin et al., arXiv 2310.05175, §3.2). Where s is nearer than λ to 0 or 1, that
// distance takes λ's place. The authors' code scales to a span of 2λ about the mean
// of the blocks, which can lie farther than λ from s on one side.
func (b *budget) owl(ctx context.Context, read Read, o OWLOptions) ([]Share, error) {
	blockOf := b.blocks()
	blocks := 0
	for _, k := range blockOf {
		blocks = max(blocks, k+1)
	}
	sums, sizes, outliers := make([]float64, blocks), make([]float64, blocks), make([]float64, blocks)
	err := b.each(ctx, read, func(i int, scores blas32.General) error {
		k := blockOf[i]
		sizes[k] += float64(b.most[i])
		for r := range scores.Rows {
			for _, v := range matrixRow(scores, r) {
				sums[k] += math.Abs(float64(v))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = b.each(ctx, read, func(i int, scores blas32.General) error {
		k := blockOf[i]
		bound := o.Threshold * sums[k] / sizes[k]
		for r := range scores.Rows {
			for _, v := range matrixRow(scores, r) {
				if math.Abs(float64(v)) > bound {
					outliers[k]++
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	mean := 0.0
	for _, n := range outliers {
		mean += n / float64(b.total)
	}
	farthest := 0.0
	for k := range outliers {
		farthest = max(farthest, math.Abs(outliers[k]/sizes[k]-mean))
	}
	scale := 0.0
	if farthest > 0 {
		scale = min(o.Lambda, b.sparsity, 1-b.sparsity) / farthest
	}
	targets := make([]float64, len(b.layers))
	for i, n := range b.most {
		k := blockOf[i]
		density := 1 - b.sparsity + (outliers[k]/sizes[k]-mean)*scale
		targets[i] = float64(n) * max(density, 1e-12) // apportion divides by it
	}
	return b.apportion(targets), nil
}

// blocks numbers the layers' blocks in the order in which they first come.
func (b *budget) blocks() []int {
	numbers, named, next := make([]int, len(b.layers)), map[string]int{}, 0
	for i, l := range b.layers {
		k, known := named[l.Block]
		if l.Block == "" || !known {
			k = next
			named[l.Block] = k
			next++
		}
		numbers[i] = k
	}
	return numbers
}
