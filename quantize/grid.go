package quantize

import (
	"context"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// step is one scale and its zero point: a piece of a grid.
type step struct {
	scale float32
	zero  int
}

// value returns what a code stands for, as every reader computes it.
func (s step) value(code int) float32 { return s.scale * float32(code-s.zero) }

// code returns the nearest code to w within lo…hi, half to even.
func (s step) code(w float64, lo, hi int) int {
	q := math.RoundToEven(w/float64(s.scale)) + float64(s.zero)
	return int(min(max(q, float64(lo)), float64(hi)))
}

// ranger finds steps for sets of weights.
type ranger struct {
	bits      int
	symmetric bool
	search    Range
	scaleType dtype.DType
}

// Range search (MSE): both ends of the min-max range are multiplied by one of
// 1, 1−1/100, … down to 1−79/100, and the error is Σ|w − ŵ|^rangePower. The
// error falls and rises once but for small waves: a fifth of the shrinks and
// then the neighbours of the best find a step as good as all 80 do.
const (
	rangeCandidates = 80
	rangeStep       = 0.01
	rangeCoarse     = 5
	rangePower      = 2.4
	errorChunk      = 32 // weights between looks at whether a candidate can still win
)

// newGrid returns the grid of the given granularity for a weight or target,
// its steps found row by row, group by group, or for all of it.
func (f ranger) newGrid(ctx context.Context, p *pool.Pool, w blas64.General, granularity layer.Granularity, groupSize int) (layer.Grid, error) {
	g := f.emptyGrid(w.Rows, w.Cols, granularity, groupSize)
	if granularity == layer.PerTensor {
		s, err := f.tensorStep(ctx, p, w)
		setStep(&g, 0, s)
		return g, err
	}
	perRow := g.GroupsPerRow(w.Cols)
	span := w.Cols / perRow
	err := p.For(ctx, w.Rows, func(r int) error {
		row := rowOf64(w, r)
		for k := range perRow {
			if ctx.Err() != nil {
				break
			}
			setStep(&g, r*perRow+k, f.step(row[k*span:][:span]))
		}
		return nil
	})
	return g, err
}

// minMaxGrid is newGrid for a stored weight and the whole range of each piece.
func (f ranger) minMaxGrid(w blas32.General, granularity layer.Granularity, groupSize int) layer.Grid {
	g := f.emptyGrid(w.Rows, w.Cols, granularity, groupSize)
	lows, highs := make([]float32, len(g.Scales)), make([]float32, len(g.Scales))
	span := w.Cols / max(1, g.GroupsPerRow(w.Cols))
	for r := range w.Rows {
		row := rowOf32(w, r)
		for c := 0; c < len(row); c += span {
			at := g.Index(r, c, w.Cols)
			lows[at] = min(lows[at], slices.Min(row[c:c+span]))
			highs[at] = max(highs[at], slices.Max(row[c:c+span]))
		}
	}
	for i := range lows {
		setStep(&g, i, f.affine(float64(lows[i]), float64(highs[i])))
	}
	return g
}

// emptyGrid returns a grid of the given shape with all steps 1.
func (f ranger) emptyGrid(rows, cols int, granularity layer.Granularity, groupSize int) layer.Grid {
	g := layer.Grid{
		Bits: f.bits, Granularity: granularity, GroupSize: groupSize,
		Symmetric: f.symmetric, ScaleType: f.scaleType,
	}
	n := max(1, rows*g.GroupsPerRow(cols))
	g.Scales = make([]float32, n)
	for i := range g.Scales {
		g.Scales[i] = 1
	}
	if !f.symmetric {
		g.Zeros = make([]int8, n)
	}
	return g
}

func setStep(g *layer.Grid, i int, s step) {
	g.Scales[i] = s.scale
	if g.Zeros != nil {
		g.Zeros[i] = int8(s.zero)
	}
}

func stepAt(g *layer.Grid, i int) step { return step{g.Scales[i], g.Zero(i)} }

// step returns the step for weights that share one.
func (f ranger) step(w []float64) step {
	lo, hi := slices.Min(w), slices.Max(w)
	if f.search == MinMax {
		return f.affine(lo, hi)
	}
	return f.bestShrink(lo, hi, func(s step, bound float64) float64 { return f.error(w, s, bound) })
}

// tensorStep returns the step for all weights of a matrix. Errors are summed
// row by row, then over the rows in their order.
func (f ranger) tensorStep(ctx context.Context, p *pool.Pool, w blas64.General) (step, error) {
	lo, hi := 0.0, 0.0
	for r := range w.Rows {
		lo, hi = min(lo, slices.Min(rowOf64(w, r))), max(hi, slices.Max(rowOf64(w, r)))
	}
	if f.search == MinMax {
		return f.affine(lo, hi), ctx.Err()
	}
	errs := make([]float64, w.Rows)
	var failed error
	best := f.bestShrink(lo, hi, func(s step, _ float64) float64 {
		if failed == nil {
			failed = p.For(ctx, w.Rows, func(r int) error {
				errs[r] = f.error(rowOf64(w, r), s, math.Inf(1))
				return nil
			})
		}
		sum := 0.0
		for _, e := range errs {
			sum += e
		}
		return sum
	})
	return best, failed
}

// bestShrink returns the step of the range search with the least error, the
// widest of equals: of every rangeCoarse-th shrink first, then of those between
// the best of them and its neighbours. error may stop at the bound.
func (f ranger) bestShrink(lo, hi float64, error func(s step, bound float64) float64) step {
	var best step
	least, at := math.Inf(1), 0
	try := func(i int) {
		shrink := 1 - rangeStep*float64(i)
		s := f.affine(lo*shrink, hi*shrink)
		if s == best {
			return
		}
		if e := error(s, least); e < least || (e == least && i < at) {
			best, least, at = s, e, i
		}
	}
	for i := 0; i < rangeCandidates; i += rangeCoarse {
		try(i)
	}
	for middle, off := at, 1; off < rangeCoarse; off++ {
		try(max(middle-off, 0))
		try(min(middle+off, rangeCandidates-1))
	}
	return best
}

// error returns Σ|w − ŵ|^rangePower of nearest rounding, or something at least
// as large as bound once the sum has reached it.
func (f ranger) error(w []float64, s step, bound float64) float64 {
	lo, hi := layer.CodeRange(f.bits)
	sum := 0.0
	for len(w) > 0 && sum < bound {
		n := min(len(w), errorChunk)
		sum += vec.RangeError(w[:n], s.scale, s.zero, lo, hi, rangePower)
		w = w[n:]
	}
	return sum
}

// affine returns the step whose codes span lo…hi. An asymmetric range is
// extended to hold 0, so the zero point is a code and 0 is exact.
//
// The scale is rounded to the type it is stored in, and the zero point follows
// from the rounded scale. Where all weights are 0 it is 1. Where it underflows
// in the type it becomes the type's smallest positive value; where it is too
// large it becomes the largest with which every code's value is finite.
func (f ranger) affine(lo, hi float64) step {
	s, zero := f.affineScale(lo, hi)
	if !f.symmetric {
		s.zero = f.zeroCode(math.RoundToEven(zero))
	}
	return s
}

// affineZero is affine with the zero point rounded down, or up by one more.
func (f ranger) affineZero(lo, hi float64, up int) step {
	s, zero := f.affineScale(lo, hi)
	if !f.symmetric {
		s.zero = f.zeroCode(math.Floor(zero) + float64(up))
	}
	return s
}

// affineScale returns the scale, and where the zero point would be exactly.
func (f ranger) affineScale(lo, hi float64) (s step, zero float64) {
	least, most := layer.CodeRange(f.bits)
	lo, hi = min(lo, 0), max(hi, 0)
	if lo == 0 && hi == 0 {
		return step{scale: 1}, 0
	}
	width := hi - lo
	if f.symmetric {
		width = 2 * max(-lo, hi)
	}
	s = step{scale: f.storable(width / float64(most-least))}
	return s, -lo/float64(s.scale) + float64(least)
}

// zeroCode brings a zero point into the range of codes.
func (f ranger) zeroCode(zero float64) int {
	least, most := layer.CodeRange(f.bits)
	return int(min(max(zero, float64(least)), float64(most)))
}

// storable rounds a positive scale to the type it is stored in.
func (f ranger) storable(scale float64) float32 {
	smallest, largest := 0x1p-149, math.Ldexp(1, 127-f.bits)
	switch f.scaleType {
	case dtype.F16:
		smallest, largest = 0x1p-24, 65504
	case dtype.BF16:
		smallest = 0x1p-133
	}
	return f.scaleType.Round(float32(min(max(scale, smallest), largest)))
}
