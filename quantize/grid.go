package quantize

import (
	"context"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// step is one scale and its zero point: a piece of a grid.
type step struct {
	scale float32
	zero  int
	float *dtype.Minifloat // of a floating-point grid; nil for integers
}

// value returns what a code stands for, as every reader computes it.
func (s step) value(code int) float32 {
	if s.float != nil {
		return s.scale * s.float.Value(code)
	}
	return s.scale * float32(code-s.zero)
}

// level returns what the scale multiplies for a code, before the zero point is
// taken away.
func (s step) level(code int) float64 {
	if s.float != nil {
		return float64(s.float.Value(code))
	}
	return float64(code)
}

// code returns the nearest code to w within lo…hi, half to even.
func (s step) code(w float64, lo, hi int) int {
	if s.float != nil {
		return min(max(s.float.Nearest(w/float64(s.scale)), lo), hi)
	}
	q := math.RoundToEven(w/float64(s.scale)) + float64(s.zero)
	return int(min(max(q, float64(lo)), float64(hi)))
}

// floor returns the code of the largest value that is at most w, on a grid
// without ends.
func (s step) floor(w float64) float64 {
	if s.float != nil {
		return float64(s.float.Floor(w / float64(s.scale)))
	}
	return math.Floor(w/float64(s.scale)) + float64(s.zero)
}

// Of scales that only few values can be, the search tries the neighbours of the
// min-max range's: powers of two down to a quarter, and NVFP4's local scales, of
// which an octave holds 8, from 5 above, which puts the largest weight near the
// value 4 instead of 6, to 8 below.
const (
	exponentCandidates = 3
	localCandidates    = 14
	localsAbove        = 5
)

// ranger finds steps for sets of weights.
type ranger struct {
	bits      int
	symmetric bool
	search    Range
	scaleType dtype.DType

	format     layer.Format
	global     float32 // NVFP4's global scale
	powerOfTwo bool    // an Integer grid's scales are powers of two
}

// newRanger returns the ranger of checked options for a problem.
func newRanger(o Options, prob *layer.Problem) ranger {
	f := ranger{
		bits: o.StoredBits(), symmetric: o.Symmetric, search: o.Range, scaleType: o.Format.ScaleType(prob.ScaleType),
		format: o.Format, powerOfTwo: o.PowerOfTwo,
	}
	if o.Format == layer.NVFP4 {
		f.global = globalScale(max(prob.FusedMax, largestOf(prob.Weight)))
	}
	return f
}

// globalScale returns NVFP4's global scale of weights up to largest: it maps
// the largest to E2M1's largest value at E4M3's largest local scale. It is kept
// to where no value of the grid overflows and no scale is denormal.
func globalScale(largest float64) float32 {
	const least, most = 0x1p-115, 0x1p100
	if largest == 0 {
		return 1
	}
	return float32(min(max(dtype.E4M3.Largest()*dtype.E2M1.Largest()/largest, least), most))
}

// largestOf returns max|w|.
func largestOf(w blas32.General) float64 {
	largest := float32(0)
	for r := range w.Rows {
		row := rowOf32(w, r)
		largest = max(largest, slices.Max(row), -slices.Min(row))
	}
	return float64(largest)
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
		row := linalg.Row(w, r)
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

// emptyGrid returns a grid of the given shape with steps for no weights but 0.
func (f ranger) emptyGrid(rows, cols int, granularity layer.Granularity, groupSize int) layer.Grid {
	g := layer.Grid{
		Format: f.format, Bits: f.bits, Granularity: granularity, GroupSize: groupSize,
		Symmetric: f.symmetric, ScaleType: f.scaleType, Global: f.global,
	}
	n := max(1, rows*g.GroupsPerRow(cols))
	g.Scales = make([]float32, n)
	for i := range g.Scales {
		g.Scales[i] = f.unit()
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

func stepAt(g *layer.Grid, i int) step { return step{g.Scales[i], g.Zero(i), g.Format.Float()} }

// step returns the step for weights that share one.
func (f ranger) step(w []float64) step {
	lo, hi := slices.Min(w), slices.Max(w)
	if f.search == MinMax || (lo == 0 && hi == 0) {
		return f.affine(lo, hi)
	}
	return f.bestShrink(lo, hi, func(s step, bound float64) float64 { return f.error(w, s, bound) })
}

// tensorStep returns the step for all weights of a matrix. Errors are summed
// row by row, then over the rows in their order.
func (f ranger) tensorStep(ctx context.Context, p *pool.Pool, w blas64.General) (step, error) {
	lo, hi := 0.0, 0.0
	for r := range w.Rows {
		lo, hi = min(lo, slices.Min(linalg.Row(w, r))), max(hi, slices.Max(linalg.Row(w, r)))
	}
	if f.search == MinMax || (lo == 0 && hi == 0) {
		return f.affine(lo, hi), ctx.Err()
	}
	errs := make([]float64, w.Rows)
	var failed error
	best := f.bestShrink(lo, hi, func(s step, _ float64) float64 {
		if failed == nil {
			failed = p.For(ctx, w.Rows, func(r int) error {
				errs[r] = f.error(linalg.Row(w, r), s, math.Inf(1))
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
// the best of them and its neighbours; of all where there are few. cost may stop
// at the bound.
func (f ranger) bestShrink(lo, hi float64, cost func(s step, bound float64) float64) step {
	var best step
	least, at := math.Inf(1), 0
	try := func(i int) {
		s := f.candidate(lo, hi, i)
		if s == best {
			return
		}
		if e := cost(s, least); e < least || (e == least && i < at) {
			best, least, at = s, e, i
		}
	}
	if few := f.fewScales(); few > 0 {
		for i := range few {
			try(i)
		}
		return best
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

// fewScales returns how many candidates are worth a try where scales can only be
// few values; 0 where they can be many.
func (f ranger) fewScales() int {
	switch {
	case f.format == layer.NVFP4:
		return localCandidates
	case f.format == layer.MXFP4 || f.powerOfTwo:
		return exponentCandidates
	default:
		return 0
	}
}

// candidate returns step i of the range search, from the widest on.
func (f ranger) candidate(lo, hi float64, i int) step {
	switch {
	case f.format == layer.NVFP4:
		s := f.affine(lo, hi)
		local := dtype.E4M3.Nearest(float64(s.scale)*float64(f.global)) + localsAbove - i
		s.scale = dtype.E4M3.Value(min(max(local, 1), dtype.E4M3.Most())) / f.global
		return s
	case f.fewScales() > 0:
		shrink := math.Ldexp(1, -i)
		return f.affine(lo*shrink, hi*shrink)
	default:
		shrink := 1 - rangeStep*float64(i)
		return f.affine(lo*shrink, hi*shrink)
	}
}

// error returns Σ|w − ŵ|^rangePower of nearest rounding, or something at least
// as large as bound once the sum has reached it.
func (f ranger) error(w []float64, s step, bound float64) float64 {
	lo, hi := layer.CodeRange(f.bits)
	sum := 0.0
	for len(w) > 0 && sum < bound {
		n := min(len(w), errorChunk)
		if s.float != nil {
			sum += floatError(w[:n], s)
		} else {
			sum += vec.RangeError(w[:n], s.scale, s.zero, lo, hi, rangePower)
		}
		w = w[n:]
	}
	return sum
}

// floatError is error of at most errorChunk weights on a floating-point grid.
func floatError(w []float64, s step) float64 {
	var off [errorChunk]float64
	most := s.float.Most()
	for i, v := range w {
		off[i] = v - float64(s.value(s.code(v, -most, most)))
	}
	return vec.RangeError(off[:len(w)], 1, 0, 0, 0, rangePower) // on a grid of 0 alone: Σ|off|^rangePower
}

// affine returns the step whose codes span lo…hi. An asymmetric range is
// extended to hold 0, so the zero point is a code and 0 is exact. The largest
// value of a floating-point step is the larger magnitude of the two.
//
// The scale is rounded to what is stored of it, and the zero point follows from
// the rounded scale. Where all weights are 0 it is unit. Where it underflows
// it becomes the smallest positive value; where it is too large it becomes the
// largest with which every code's value is finite.
func (f ranger) affine(lo, hi float64) step {
	s, zero := f.affineScale(lo, hi)
	if !f.symmetric && s.float == nil {
		s.zero = f.zeroCode(math.RoundToEven(zero))
	}
	return s
}

// affineZero is affine with the zero point rounded down, or up by one more.
func (f ranger) affineZero(lo, hi float64, up int) step {
	s, zero := f.affineScale(lo, hi)
	if !f.symmetric && s.float == nil {
		s.zero = f.zeroCode(math.Floor(zero) + float64(up))
	}
	return s
}

// affineScale returns the scale, and where the zero point would be exactly.
func (f ranger) affineScale(lo, hi float64) (s step, zero float64) {
	least, most := layer.CodeRange(f.bits)
	lo, hi = min(lo, 0), max(hi, 0)
	float := f.format.Float()
	if lo == 0 && hi == 0 {
		return step{scale: f.unit(), float: float}, 0
	}
	if float != nil {
		return step{scale: f.floatScale(max(-lo, hi)), float: float}, 0
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

// unit is the scale of weights that are all 0.
func (f ranger) unit() float32 {
	if f.format == layer.NVFP4 {
		return 1 / f.global // a local scale of 1
	}
	return 1
}

// floatScale returns the scale of a floating-point grid for weights up to
// largest, which becomes the largest value. MXFP4 clips what lies less than half
// a step above that: its scale is the smallest power of two for which the
// largest weight stays below 7, as compressed-tensors chooses it.
func (f ranger) floatScale(largest float64) float32 {
	switch f.format {
	case layer.NVFP4:
		return layer.LocalScale(largest/dtype.E2M1.Largest()*float64(f.global)) / f.global
	case layer.MXFP4:
		fraction, exponent := math.Frexp(largest / 8) // in [½, 1)
		if fraction >= 7.0/8 {
			exponent++
		}
		return float32(math.Ldexp(1, min(max(exponent, -127), 125)))
	default:
		return f.storable(largest / f.format.Float().Largest())
	}
}

// nearScale returns the scale that can be stored and is nearest, in ratio for
// powers of two.
func (f ranger) nearScale(scale float64) float32 {
	switch {
	case f.format == layer.NVFP4:
		return layer.LocalScale(scale*float64(f.global)) / f.global
	case f.format == layer.MXFP4:
		return float32(math.Ldexp(1, int(min(max(math.Round(math.Log2(scale)), -127), 125))))
	case f.powerOfTwo:
		return f.storable(math.Exp2(math.Round(math.Log2(scale))))
	}
	return f.storable(scale)
}

// storable rounds a positive scale to the type it is stored in, and up to a
// power of two where it must be one.
func (f ranger) storable(scale float64) float32 {
	smallest, largest := 0x1p-149, math.Ldexp(1, 127-f.bits)
	switch {
	case f.scaleType == dtype.F16:
		smallest, largest = 0x1p-24, 65504
	case f.format == layer.FP8:
		smallest = 0x1p-126 // so that no value is lost below the smallest float32
	case f.scaleType == dtype.BF16:
		smallest = 0x1p-133
	}
	scale = min(max(scale, smallest), largest)
	if f.powerOfTwo {
		fraction, exponent := math.Frexp(scale)
		if fraction == 0.5 || math.Ldexp(1, exponent) > largest {
			exponent--
		}
		scale = math.Ldexp(1, exponent)
	}
	return f.scaleType.Round(float32(scale))
}
