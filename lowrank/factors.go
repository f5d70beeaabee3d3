package lowrank

import (
	"context"
	"math"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// balance gives both factors of each component the same length, D^{1/2} with D the
// length of A's row, B's being 1: bt and a are overwritten. Both rows of a
// component without effect become 0.
func balance(bt, a blas64.General) {
	for i := range a.Rows {
		root := math.Sqrt(blas64.Nrm2(blas64.Vector{N: a.Cols, Inc: 1, Data: linalg.Row(a, i)}))
		inverse := 0.0
		if root > 0 {
			inverse = 1 / root
		}
		for j := range linalg.Row(bt, i) {
			linalg.Row(bt, i)[j] *= root
		}
		for j := range linalg.Row(a, i) {
			linalg.Row(a, i)[j] *= inverse
		}
	}
}

// sweeps is how often A and B are rounded in turns at most where they become
// codes; values change too little for a second time.
const sweeps = 4

// round returns the factors as they are stored, and their error. A is rounded
// first, then B is fitted to it in the method's metric, and rounded. Codes go on in turns
// as long as the error falls: A is fitted to the rounded B, and so on.
func (w *problem) round(ctx context.Context, bt, a blas64.General) (*layer.LowRank, float64, error) {
	var best *layer.LowRank
	least := math.Inf(1)
	turns := 1
	if w.o.Bits > 0 {
		turns = sweeps
	}
	for turn := range turns {
		if turn > 0 {
			var err error
			if a, err = w.refitA(ctx, bt, a); err != nil {
				return nil, 0, err
			}
		}
		term := &layer.LowRank{}
		var err error
		if term.A, a, err = w.store(ctx, a); err != nil {
			return nil, 0, err
		}
		if bt, err = w.refitB(ctx, bt, a); err != nil {
			return nil, 0, err
		}
		if term.B, bt, err = w.store(ctx, bt); err != nil {
			return nil, 0, err
		}
		e, err := w.error(ctx, bt, a)
		if err != nil {
			return nil, 0, err
		}
		if turn > 0 && e >= least {
			break
		}
		best, least = term, e
	}
	return best, least, nil
}

// store rounds a factor, and returns also the values that it then has.
func (w *problem) store(ctx context.Context, m blas64.General) (layer.Factor, blas64.General, error) {
	o := w.o
	f := layer.Factor{Rows: m.Rows, Cols: m.Cols, Type: o.FactorType}
	if o.Bits == 0 {
		f.Values = make([]float32, m.Rows*m.Cols)
	} else {
		f.Codes = make([]int8, m.Rows*m.Cols)
		f.Grid = layer.Grid{
			Format: layer.Integer, Bits: o.Bits, Granularity: layer.PerChannel, Symmetric: true,
			ScaleType: o.FactorType, Scales: make([]float32, m.Rows),
		}
	}
	err := w.pool.For(ctx, m.Rows, func(i int) error {
		finite := false
		if o.Bits == 0 {
			finite = roundValues(f.Values[i*m.Cols:][:m.Cols], linalg.Row(m, i), o.FactorType)
		} else {
			f.Grid.Scales[i], finite = findScale(linalg.Row(m, i), o)
			lo, hi := f.Grid.Range()
			vec.Round64(f.Codes[i*m.Cols:][:m.Cols], linalg.Row(m, i), f.Grid.Scales[i], 0, lo, hi)
		}
		if !finite {
			return &layer.InputError{Layer: w.layer, What: "low-rank factor", Index: -1, Reason: "beyond the range of " + o.FactorType.String() + ": choose another factor type"}
		}
		return nil
	})
	return f, values(&f), err
}

// roundValues reports whether all rounded values are finite.
func roundValues(dst []float32, x []float64, t dtype.DType) bool {
	finite := true
	for j, v := range x {
		dst[j] = t.Round(float32(v))
		finite = finite && !math.IsInf(float64(dst[j]), 0) && !math.IsNaN(float64(dst[j]))
	}
	return finite
}

// scaleSteps is how many scales are tried: the one that puts the largest
// magnitude on the largest code, times 1, 31/32, … ½.
const scaleSteps = 17

// findScale returns the scale, exact in its type, of least Σ(x − x̂)², and whether
// the type has one that is large enough. Where all of x is 0, or too small for
// the type, it is 1.
func findScale(x []float64, o Options) (float32, bool) {
	most := 0.0
	for _, v := range x {
		most = max(most, math.Abs(v))
	}
	lo, hi := layer.CodeRange(o.Bits)
	largest := o.FactorType.Round(float32(most / float64(hi)))
	if math.IsInf(float64(largest), 0) || math.IsNaN(float64(largest)) {
		return 1, false
	}
	best, least := float32(1), math.Inf(1)
	for step := range scaleSteps {
		scale := o.FactorType.Round(largest * float32(32-step) / 32)
		if scale == 0 {
			break
		}
		if e := vec.RangeError(x, scale, 0, lo, hi, 2); e < least {
			best, least = scale, e
		}
	}
	return best, true
}

// values returns what is stored of a factor.
func values(f *layer.Factor) blas64.General {
	m := linalg.NewGeneral(f.Rows, f.Cols)
	buf := make([]float32, f.Cols)
	for i := range f.Rows {
		f.Row(buf, i)
		for j, v := range buf {
			linalg.Row(m, i)[j] = float64(v)
		}
	}
	return m
}
