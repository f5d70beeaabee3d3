package prune

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// Selection says which weights of a layer survive, given their scores.
type Selection struct {
	Pattern Pattern
	Scope   Scope // PerLayer unless the pattern is unstructured

	// Survivors is how many weights stay. For N:M it is what Pattern.Survivors
	// returns. For blocks, as many blocks go as the share of weights says, rounded
	// half to even.
	Survivors int
}

// Select returns the mask of the weights that survive: those with the highest
// scores, among equal ones those with the higher index. Blocks are compared by the
// root mean square of their scores, so that a smaller one at an edge competes by
// what pruning it costs for each weight.
//
// A layer that would lose everything keeps its best weight or block; rescued is how
// many weights that are, else 0.
//
// Cost: five passes over the scores at most, whatever the counts, and no copy of
// them; for N:M with M ≤ 64, M comparisons per score.
func Select(ctx context.Context, p *pool.Pool, scores blas32.General, s Selection) (mask *layer.Mask, rescued int, err error) {
	if err := s.check(ctx, p, scores); err != nil {
		return nil, 0, err
	}
	switch s.Pattern.Kind {
	case NofM:
		mask, err = selectNofM(ctx, p, scores, s.Pattern)
		return mask, 0, err
	case Blocks:
		return selectBlocks(ctx, p, scores, s)
	}
	size := scores.Rows * scores.Cols
	pruned := size - s.Survivors
	if pruned == size {
		pruned, rescued = size-1, 1
	}
	mask = layer.NewMask(scores.Rows, scores.Cols)
	if s.Scope != PerRow || rescued > 0 { // the one that is rescued is the layer's best
		keepHighest(mask, scores, pruned)
		return mask, rescued, ctx.Err()
	}
	quotient, remainder := pruned/scores.Rows, pruned%scores.Rows
	err = forRows(ctx, p, scores.Rows, scores.Cols, func(r int) error {
		k := quotient + (r+1)*remainder/scores.Rows - r*remainder/scores.Rows
		keepHighest(maskRow(mask, r), scoreRow(scores, r), k)
		return nil
	})
	return mask, 0, err
}

func (s Selection) check(ctx context.Context, p *pool.Pool, scores blas32.General) error {
	if err := s.Pattern.Check(); err != nil {
		return err
	}
	if err := s.Scope.Check(s.Pattern); err != nil {
		return err
	}
	if err := checkMatrix("scores", scores); err != nil {
		return err
	}
	size := scores.Rows * scores.Cols
	if s.Survivors < 0 || s.Survivors > size {
		return &ShapeError{fmt.Sprintf("%d survivors of %d weights", s.Survivors, size)}
	}
	if own := s.Pattern.Survivors(scores.Rows, scores.Cols, 0); s.Pattern.Kind == NofM && s.Survivors != own {
		return &ShapeError{fmt.Sprintf("%d survivors of %d×%d weights in pattern %s, which keeps %d",
			s.Survivors, scores.Rows, scores.Cols, s.Pattern, own)}
	}
	return forRows(ctx, p, scores.Rows, scores.Cols, func(r int) error {
		for c, v := range matrixRow(scores, r) {
			if !(v >= 0 && v <= math.MaxFloat32) {
				return &ValueError{"score", r, c, float64(v), "a finite number, at least 0"}
			}
		}
		return nil
	})
}

// scoreKey orders scores as integers: the bits of a float that is not negative.
// Adding 0 turns −0 into 0.
func scoreKey(score float32) uint32 { return math.Float32bits(score + 0) }

// keepHighest sets the mask of all but the pruned lowest scores, of which equal ones
// go in the order of their indices. The mask is empty before.
func keepHighest(mask *layer.Mask, scores blas32.General, pruned int) {
	limit, ties := cutAt(scores, pruned)
	for r := range scores.Rows {
		words := mask.Row(r)
		for c, v := range matrixRow(scores, r) {
			key := scoreKey(v)
			if key == limit && ties > 0 {
				ties--
				continue
			}
			if key >= limit {
				words[c/64] |= 1 << (c % 64)
			}
		}
	}
}

// cutAt returns where to cut the scores so that exactly pruned of them go: all
// whose key is below the limit, and the first ties of those at it. It counts the
// leading 11 bits of all keys, then the next 10 of those that lead like the limit,
// then the last 10.
func cutAt(scores blas32.General, pruned int) (limit uint32, ties int) {
	ties = pruned
	for shift := 20; shift >= 0; shift -= 10 {
		var counts [1 << 11]int
		above := shift + 10 // the lowest of the bits that are known already
		if shift == 20 {
			above = 31
		}
		for r := range scores.Rows {
			for _, v := range matrixRow(scores, r) {
				key := scoreKey(v)
				if key>>above == limit>>above {
					counts[key>>shift&(1<<(above-shift)-1)]++
				}
			}
		}
		digit := 0
		for ; ties > 0 && ties >= counts[digit]; digit++ {
			ties -= counts[digit]
		}
		limit |= uint32(digit) << shift
	}
	return limit, ties
}

// rankLimit is the longest group whose weights are ranked against each other.
const rankLimit = 64

func selectNofM(ctx context.Context, p *pool.Pool, scores blas32.General, pattern Pattern) (*layer.Mask, error) {
	mask := layer.NewMask(scores.Rows, scores.Cols)
	err := forRows(ctx, p, scores.Rows, scores.Cols, func(r int) error {
		row := matrixRow(scores, r)
		for from := 0; from < len(row); from += pattern.M {
			group := row[from:min(from+pattern.M, len(row))]
			pruned := len(group) - pattern.kept(len(group))
			if len(group) <= rankLimit {
				keepRanked(mask, r, from, group, pruned)
				continue
			}
			whole := layer.NewMask(1, len(group))
			keepHighest(whole, blas32.General{Rows: 1, Cols: len(group), Stride: len(group), Data: group}, pruned)
			for c := range group {
				if whole.At(0, c) {
					mask.Set(r, from+c, true)
				}
			}
		}
		return nil
	})
	return mask, err
}

// keepRanked sets the weights of a short group that at least pruned others precede.
func keepRanked(mask *layer.Mask, r, from int, group []float32, pruned int) {
	for c, v := range group {
		before := 0
		for _, other := range group[:c] {
			if other <= v {
				before++
			}
		}
		for _, other := range group[c+1:] {
			if other < v {
				before++
			}
		}
		if before >= pruned {
			mask.Set(r, from+c, true)
		}
	}
}

func selectBlocks(ctx context.Context, p *pool.Pool, scores blas32.General, s Selection) (*layer.Mask, int, error) {
	h, w := s.Pattern.Rows, s.Pattern.Cols
	rows, cols := (scores.Rows+h-1)/h, (scores.Cols+w-1)/w
	rms := blas32.General{Rows: rows, Cols: cols, Stride: cols, Data: make([]float32, rows*cols)}
	err := forRows(ctx, p, rows, h*scores.Cols, func(b int) error {
		sums := make([]float64, cols)
		last := min(scores.Rows, (b+1)*h)
		for r := b * h; r < last; r++ {
			for c, v := range matrixRow(scores, r) {
				sums[c/w] += float64(v) * float64(v)
			}
		}
		for i, sum := range sums {
			weights := (last - b*h) * (min(scores.Cols, (i+1)*w) - i*w)
			rms.Data[b*cols+i] = float32(math.Sqrt(sum / float64(weights)))
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	size, blocks := scores.Rows*scores.Cols, rows*cols
	pruned := Pruned(blocks, float64(size-s.Survivors)/float64(size))
	none := pruned == blocks
	if none {
		pruned--
	}
	kept := layer.NewMask(rows, cols)
	keepHighest(kept, rms, pruned)
	mask := layer.NewMask(scores.Rows, scores.Cols)
	for r := range scores.Rows {
		for c := range scores.Cols {
			if kept.At(r/h, c/w) {
				mask.Set(r, c, true)
			}
		}
	}
	if none {
		return mask, mask.Survivors(), nil
	}
	return mask, 0, nil
}

// maskRow returns row r of a mask as a mask that shares its words.
func maskRow(m *layer.Mask, r int) *layer.Mask {
	return &layer.Mask{Rows: 1, Cols: m.Cols, Bits: m.Row(r)}
}

func scoreRow(a blas32.General, r int) blas32.General {
	return blas32.General{Rows: 1, Cols: a.Cols, Stride: a.Cols, Data: matrixRow(a, r)}
}
