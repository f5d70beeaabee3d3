package quantize

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/layer"
)

// TestHalfQuadraticByHand works iterations out. At 2 bits and from −1 to 0.5
// the scale is 0.5 and codes −2 … 1 stand for −1 … 0.5. In the first case
//
//	−1 → −1, 41 of −0.9 → −1 (error 0.1), −0.4 → −0.5 (0.1), 0.4 → 0.5 (−0.1), 0.5 → 0.5
//
// All errors are below 10^(−1/1.3) = 0.17, so shrink makes them 0, and
// s = (2·1 + 41·2·0.9 + 0.4 + 0.4 + 0.5)/(4 + 41·4 + 1 + 1 + 1) = 77.1/171. The
// next iteration rounds all to the same codes and ends. In the second case
//
//	−1 → −1, 9 of 0.26 → 0.5 (−0.24), 0.5 → 0.5
//
// shrink leaves e = −(0.24 − 0.24^−0.3/10) of −0.24, and
// s = (2·1 + 9·(0.26 − e) + 0.5)/(4 + 9 + 1).
func TestHalfQuadraticByHand(t *testing.T) {
	f := ranger{bits: 2, search: MinMax, scaleType: dtype.F32}
	start := f.affine(-1, 0.5)
	if start != (step{scale: 0.5, zero: 0}) {
		t.Fatalf("start %+v", start)
	}
	w := append([]float64{-1, -0.4, 0.4, 0.5}, slices.Repeat([]float64{-0.9}, 41)...)
	got := f.halfQuadratic(w, start)
	if math.Abs(float64(got.scale)-77.1/171) > 1e-7 || got.zero != 0 {
		t.Errorf("%+v, want scale 77.1/171 and zero point 0", got)
	}
	w = append([]float64{-1, 0.5}, slices.Repeat([]float64{0.26}, 9)...)
	e := -(0.24 - math.Pow(0.24, -0.3)/10)
	first := step{scale: float32((2.5 + 9*(0.26-e)) / 14), zero: 0}
	got = f.halfQuadratic(w, start)
	if before, once, now := f.normError(w, start), f.normError(w, first), f.normError(w, got); !(once < before && now <= once) {
		t.Errorf("errors %v at first, %v after one iteration by hand, %v in the end", before, once, now)
	}
	if e := f.normError([]float64{0.25}, step{scale: 1}); math.Abs(e-math.Pow(0.25, 0.7)) > 1e-15 {
		t.Errorf("error %v of 0.25", e)
	}
}

// TestHQQIsNeverWorse than nearest rounding on the min-max grid in its own norm,
// of each group, whatever the weights and the scales' type.
func TestHQQIsNeverWorse(t *testing.T) {
	better := 0
	for _, scale := range []dtype.DType{dtype.F32, dtype.F16, dtype.BF16} {
		for name, weights := range hardGroups() {
			for bits := 2; bits <= 8; bits++ {
				for _, symmetric := range []bool{false, true} {
					prob := newProblem(2, 2*len(weights), 1)
					prob.ScaleType = scale
					for i := range prob.Weight.Data {
						prob.Weight.Data[i] = weights[i%len(weights)]
					}
					o := Options{Method: HQQ, Bits: bits, Granularity: layer.PerGroup, GroupSize: len(weights), Symmetric: symmetric}
					got := solve(t, prob, o)
					o.Method, o.Range = Nearest, MinMax
					plain := solve(t, prob, o)
					f := integerRanger(bits, symmetric, MinMax, scale)
					wide := float64s(weights)
					for at := range got.Grid.Scales {
						e, bound := f.normError(wide, stepAt(&got.Grid, at)), f.normError(wide, stepAt(&plain.Grid, at))
						if !(e <= bound) {
							t.Errorf("%s, %d bits, %s: group %d: %v, min-max %v", name, bits, scale, at, e, bound)
						}
						if e < 0.99*bound {
							better++
						}
					}
					for i, w := range prob.Weight.Data {
						at := stepAt(&got.Grid, got.Grid.Index(i/prob.Weight.Cols, i%prob.Weight.Cols, prob.Weight.Cols))
						lo, hi := got.Grid.Range()
						if code := at.code(float64(w), lo, hi); int(got.Codes[i]) != code {
							t.Fatalf("%s: code %d of %v, nearest is %d", name, got.Codes[i], w, code)
						}
					}
					if got.Errors != (layer.Errors{}) || got.Fallbacks != nil {
						t.Errorf("%s: %+v, %v without data", name, got.Errors, got.Fallbacks)
					}
				}
			}
		}
	}
	if better < 50 {
		t.Errorf("only %d groups gained more than 1 %%", better)
	}
}

// TestZeroPointsAlone: with the scale of the min-max step no zero point is
// better, which is why HQQ fits the scale here.
func TestZeroPointsAlone(t *testing.T) {
	for name, weights := range hardGroups() {
		for bits := 2; bits <= 8; bits++ {
			f := integerRanger(bits, false, MinMax, dtype.F32)
			w := float64s(weights)
			start := f.step(w)
			lo, hi := layer.CodeRange(bits)
			for zero := lo; zero <= hi; zero++ {
				if e, least := f.normError(w, step{scale: start.scale, zero: zero}), f.normError(w, start); e < least*(1-1e-5) {
					t.Errorf("%s, %d bits: zero point %d has error %v, min-max's %d has %v", name, bits, zero, e, start.zero, least)
				}
			}
		}
	}
}

func hardGroups() map[string][]float32 {
	rng := rand.New(rand.NewPCG(3, 5))
	groups := map[string][]float32{
		"zero": make([]float32, 8), "constant": {0.7, 0.7, 0.7, 0.7}, "negative": {-3, -3, -3, -3},
		"one": {-0.3}, "denormal": {0x1p-149, -0x1p-148, 0, 0x1p-140}, "tiny": {1e-38, -2e-38, 3e-39, 0},
		"huge": {math.MaxFloat32, -math.MaxFloat32, 1, 0}, "positive": {1, 1.1, 1.2, 1.3, 5},
	}
	for i := range 20 {
		w := make([]float32, 32)
		for j := range w {
			w[j] = float32(rng.NormFloat64() * math.Exp2(float64(i%7-5)))
		}
		if i%3 == 0 {
			w[5] *= 1e3
		}
		groups[fmt.Sprint("normal ", i)] = w
	}
	return groups
}

// TestHQQWithMoments: it takes alignment and bias correction as nearest does.
func TestHQQWithMoments(t *testing.T) {
	d := newData(31, shape{out: 6, in: 24, groups: 2, samples: 60, mismatch: 0.2})
	plain := solve(t, d.prob, Options{Method: HQQ, Bits: 3})
	if want := d.directError(values(plain)); math.Abs(plain.Errors.Solved-want) > 1e-9*want || plain.Errors.Damping != 0 {
		t.Errorf("errors %+v, from the data %v", plain.Errors, want)
	}
	aligned := solve(t, d.prob, Options{Method: HQQ, Bits: 3, Align: true, BiasCorrection: true})
	if !(aligned.Errors.Solved < plain.Errors.Solved) || aligned.Bias == nil || aligned.Errors.Damping == 0 {
		t.Errorf("aligned %+v, plain %+v", aligned.Errors, plain.Errors)
	}
	d.prob.Moments = nil
	if again := solve(t, d.prob, Options{Method: HQQ, Bits: 3}); !bytes.Equal(bytesOf(again.Codes), bytesOf(plain.Codes)) {
		t.Error("moments change the codes")
	}
	for _, o := range []Options{
		{Method: HQQ, Bits: 3, Range: MSE},
		{Method: HQQ, Bits: 3, Granularity: layer.PerTensor},
		{Method: HQQ, Bits: 3, Damping: 0.1},
		{Method: HQQ, Bits: 3, ActOrder: true},
	} {
		var bad *OptionError
		if err := o.Check(); !errors.As(err, &bad) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func bytesOf(codes []int8) []byte {
	b := make([]byte, len(codes))
	for i, c := range codes {
		b[i] = byte(c)
	}
	return b
}

// FuzzHalfQuadratic: the step is storable and never worse than min-max.
func FuzzHalfQuadratic(f *testing.F) {
	f.Add(float32(1), float32(-1), float32(0.3), uint8(4), true)
	f.Add(float32(math.MaxFloat32), float32(0x1p-149), float32(-0x1p-149), uint8(8), false)
	f.Fuzz(func(t *testing.T, a, b, c float32, bits uint8, symmetric bool) {
		w := []float64{float64(a), float64(b), float64(c), float64(c), float64(c)}
		if !finite(w[0]) || !finite(w[1]) || !finite(w[2]) {
			return
		}
		n := 2 + int(bits)%7
		lo, hi := layer.CodeRange(n)
		for _, scale := range []dtype.DType{dtype.F32, dtype.F16, dtype.BF16} {
			r := integerRanger(n, symmetric, MinMax, scale)
			start := r.step(w)
			s := r.halfQuadratic(w, start)
			if !(s.scale > 0) || scale.Round(s.scale) != s.scale || s.zero < lo || s.zero > hi || symmetric && s.zero != 0 {
				t.Fatalf("step %v", s)
			}
			if e, bound := r.normError(w, s), r.normError(w, start); !(e <= bound) {
				t.Errorf("step %v: error %v, min-max %v", s, e, bound)
			}
		}
	})
}
