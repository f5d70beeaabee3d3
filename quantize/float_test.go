package quantize

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// everyFloatRanger calls f with the floating-point formats, the searches and the
// scale types that are theirs.
func everyFloatRanger(f func(name string, r ranger)) {
	for _, format := range []layer.Format{layer.FP8, layer.NVFP4, layer.MXFP4} {
		for _, search := range []Range{MinMax, MSE} {
			for _, open := range []dtype.DType{dtype.F32, dtype.F16, dtype.BF16} {
				r := ranger{
					bits: format.Bits(), symmetric: true, search: search, scaleType: format.ScaleType(open), format: format,
				}
				if format == layer.NVFP4 {
					r.global = globalScale(map[dtype.DType]float64{dtype.F32: 1, dtype.F16: 1e30, dtype.BF16: 0x1p-149}[open])
				}
				f(fmt.Sprintf("%s, %s, %s", format, search, open), r)
			}
		}
	}
}

func TestFloatScalesWorkedValues(t *testing.T) {
	for _, c := range []struct {
		format  layer.Format
		global  float32
		largest float64
		want    float32
	}{
		{layer.FP8, 0, 448, 1},
		{layer.FP8, 0, 7, 1.0 / 64},
		{layer.MXFP4, 0, 6, 1},
		{layer.MXFP4, 0, 1, 0.25},
		{layer.MXFP4, 0, 1.7499999, 0.25}, // clipped to 1.5
		{layer.MXFP4, 0, 1.75, 0.5},
		{layer.MXFP4, 0, 7, 2},
		{layer.MXFP4, 0, math.MaxFloat32, 0x1p125},
		{layer.MXFP4, 0, 0x1p-149, 0x1p-127},
		{layer.NVFP4, 1, 2688, 448},
		{layer.NVFP4, 1, 6, 1},
		{layer.NVFP4, 1, 6.4, 1.125}, // 16/15 lies beyond 1.0625, between 1 and 1.125
		{layer.NVFP4, 1, 6.3, 1},
		{layer.NVFP4, 4, 6, 1},         // local scale 4
		{layer.NVFP4, 1, 1e-9, 0x1p-9}, // E4M3's smallest
	} {
		f := ranger{bits: c.format.Bits(), symmetric: true, search: MinMax, scaleType: c.format.ScaleType(dtype.F32), format: c.format, global: c.global}
		if got := f.affine(-c.largest, c.largest/2); got.scale != c.want || got.zero != 0 {
			t.Errorf("%s, largest %v: scale %v, want %v", c.format, c.largest, got.scale, c.want)
		}
	}
	if g := globalScale(1); g != 2688 {
		t.Errorf("global scale %v of weights up to 1", g)
	}
}

// TestFloatRounding: thresholds of E2M1 and ties to even, through a step.
func TestFloatRounding(t *testing.T) {
	s := step{scale: 0.5, float: dtype.E2M1}
	for w, want := range map[float64]float32{0.25: 0, 0.75: 1, 1.25: 1, 1.75: 2, 2.5: 2, 3.5: 4, 5: 4, 0.26: 0.5, 5.01: 6, 100: 6} {
		for _, sign := range []float64{1, -1} {
			if got := s.value(s.code(sign*w/2, -7, 7)); got != float32(sign)*want/2 {
				t.Errorf("%v becomes %v, want %v", sign*w/2, got, float32(sign)*want/2)
			}
		}
	}
	if got := s.code(3, -2, 4); got != 4 {
		t.Errorf("bounded code %d", got)
	}
	for w, want := range map[float64]float64{0.24: 0, 0.25: 1, -0.1: -1, -3: -7, -3.1: -8, 9: 7, 1.2: 4} {
		if got := s.floor(w); got != want {
			t.Errorf("floor of %v is %v, want %v", w, got, want)
		}
	}
}

// TestFloatGridOracle is TestGridOracle for floating-point grids.
func TestFloatGridOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 7))
	sets := map[string][]float64{
		"zeros": make([]float64, 8), "one zero": {0}, "one value": {-0.3}, "denormal": {0x1p-149, -0x1p-148, 0},
		"tiny": {1e-30, -3e-30, 2e-30}, "huge": {math.MaxFloat32, -math.MaxFloat32, 1}, "outlier": {1e6, 0.5, -0.25, 1, -1, 0.125},
	}
	for i := range 20 {
		w := make([]float64, 1+rng.IntN(40))
		for j := range w {
			w[j] = float64(float32(math.Exp(4*rng.NormFloat64()) * rng.NormFloat64()))
		}
		sets[fmt.Sprintf("random %d", i)] = w
	}
	everyFloatRanger(func(name string, f ranger) {
		granularity := layer.PerTensor
		if f.format.GroupSize() > 0 {
			granularity = layer.PerGroup
		}
		for set, w := range sets {
			s := f.step(w)
			g := f.emptyGrid(1, max(1, f.format.GroupSize()), granularity, f.format.GroupSize())
			if err := g.Check(1, max(1, f.format.GroupSize())); err != nil {
				t.Fatalf("%s: empty grid: %v", name, err)
			}
			setStep(&g, 0, s)
			if err := g.Check(1, max(1, f.format.GroupSize())); err != nil {
				t.Fatalf("%s, %s: %v", name, set, err)
			}
			if stepAt(&g, 0) != s {
				t.Fatalf("%s, %s: %v is %v in a grid", name, set, s, stepAt(&g, 0))
			}
			lo, hi := g.Range()
			if s.code(0, lo, hi) != 0 || s.value(0) != 0 {
				t.Fatalf("%s, %s: 0 becomes %v", name, set, s.value(s.code(0, lo, hi)))
			}
			for code := lo; code <= hi; code++ {
				value := float64(s.value(code))
				if !finite(value) || s.code(value, lo, hi) != code {
					t.Fatalf("%s, %s: value %v of code %d has code %d", name, set, value, code, s.code(value, lo, hi))
				}
			}
		}
	})
}

// TestPowerOfTwoScales are exact, span the range with minmax, and none is
// nearer than those that MSE has tried.
func TestPowerOfTwoScales(t *testing.T) {
	f := integerRanger(4, false, MinMax, dtype.F16)
	f.powerOfTwo = true
	if s := f.affine(-0.5, 1); s.scale != 0.125 || s.zero != -4 { // 1.5 in 15 steps of 0.1
		t.Errorf("%v", s)
	}
	if s := f.affine(0, 15*0.25); s.scale != 0.25 || s.zero != -8 {
		t.Errorf("%v", s)
	}
	rng := rand.New(rand.NewPCG(3, 3))
	everyRanger(func(name string, f ranger) {
		f.powerOfTwo = true
		for _, size := range []float64{1, 1e-44, 1e38} {
			w := make([]float64, 1+rng.IntN(30))
			for i := range w {
				w[i] = max(min(size*rng.NormFloat64(), math.MaxFloat32), -math.MaxFloat32)
			}
			s := f.step(w)
			if fraction, _ := math.Frexp(float64(s.scale)); fraction != 0.5 || f.scaleType.Round(s.scale) != s.scale {
				t.Fatalf("%s: scale %v is no power of two", name, s.scale)
			}
			if f.search == MSE {
				whole := f
				whole.search = MinMax
				if a, b := f.error(w, s, math.Inf(1)), f.error(w, whole.step(w), math.Inf(1)); a > b {
					t.Fatalf("%s: %v, more than min-max's %v", name, a, b)
				}
			}
		}
	})
}

// TestFloatSearch: never worse than min-max in its own objective, and the best
// of the scales that there are, between half the largest weight's and half as
// much again.
func TestFloatSearch(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 1))
	everyFloatRanger(func(name string, f ranger) {
		if f.search != MSE {
			return
		}
		f.global = min(f.global, 1e6)
		for range 20 {
			w := make([]float64, 32)
			for i := range w {
				v := rng.NormFloat64()
				w[i] = 0.01 * v * math.Abs(v)
			}
			whole := f
			whole.search = MinMax
			reached := f.error(w, f.step(w), math.Inf(1))
			if minmax := f.error(w, whole.step(w), math.Inf(1)); reached > minmax {
				t.Fatalf("%s: %v, more than min-max's %v", name, reached, minmax)
			}
			if f.format != layer.NVFP4 {
				continue
			}
			for local := 1; local <= dtype.E4M3.Most(); local++ {
				s := step{scale: dtype.E4M3.Value(local) / f.global, float: dtype.E2M1}
				ratio := float64(s.scale) / float64(whole.step(w).scale)
				if e := f.error(w, s, math.Inf(1)); e < reached && ratio > 0.6 && ratio < 1.4 {
					t.Fatalf("%s: %v, local code %d reaches %v", name, reached, local, e)
				}
			}
		}
	})
}

func floatOptions(method Method, format layer.Format) Options {
	return Options{Method: method, Format: format, Align: method != Nearest}
}

// TestFloatMethods: each method gives codes on a sound grid, the same for any
// number of workers; nearest gives the nearest values; the others leave less
// error than it.
func TestFloatMethods(t *testing.T) {
	ctx := context.Background()
	for _, format := range []layer.Format{layer.FP8, layer.NVFP4, layer.MXFP4} {
		d := newData(11, shape{out: 12, in: 64, groups: 1, samples: 200, mismatch: 0.1})
		errs := map[Method]float64{}
		for _, method := range []Method{Nearest, GPTQ, AdaRound} {
			var units [][]byte
			for _, workers := range []int{1, 5} {
				s, err := Solve(ctx, pool.New(workers), d.prob, floatOptions(method, format))
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Grid.Check(s.Rows, s.Cols); err != nil {
					t.Fatal(err)
				}
				var b bytes.Buffer
				if err := layer.EncodeSolution(&b, s); err != nil {
					t.Fatal(err)
				}
				if _, err := layer.DecodeSolution(bytes.NewReader(b.Bytes()), int64(b.Len())); err != nil {
					t.Fatal(err)
				}
				units = append(units, b.Bytes())
				errs[method] = s.Errors.Relative()
				if method == Nearest {
					checkNearest(t, d.prob, s)
				}
			}
			if !bytes.Equal(units[0], units[1]) {
				t.Errorf("%s, %s: other bytes with other workers", format, method)
			}
		}
		if errs[GPTQ] >= errs[Nearest] || errs[AdaRound] >= errs[Nearest] {
			t.Errorf("%s: errors %v", format, errs)
		}
	}
}

// checkNearest holds each weight against all values of its step.
func checkNearest(t *testing.T, prob *layer.Problem, s *layer.Solution) {
	t.Helper()
	lo, hi := s.Grid.Range()
	for i, w := range prob.Weight.Data {
		at := stepAt(&s.Grid, s.Grid.Index(i/s.Cols, i%s.Cols, s.Cols))
		got := math.Abs(float64(at.value(int(s.Codes[i])) - w))
		for code := lo; code <= hi; code++ {
			if e := math.Abs(float64(at.value(code) - w)); e < got*(1-1e-6) {
				t.Fatalf("weight %d, %v: code %d, but %d is nearer", i, w, s.Codes[i], code)
			}
		}
	}
}

// TestFusedMax: layers that runtimes join share NVFP4's global scale; a smaller
// maximum than the weight's own changes nothing.
func TestFusedMax(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	global := func(own float32, fused float64) float32 {
		prob := newProblem(4, 32, 1)
		for i := range prob.Weight.Data {
			prob.Weight.Data[i] = own * float32(2*rng.Float64()-1)
		}
		prob.Weight.Data[17] = -own
		prob.FusedMax = fused
		s, err := Solve(context.Background(), nil, prob, Options{Method: Nearest, Format: layer.NVFP4})
		if err != nil {
			t.Fatal(err)
		}
		return s.Grid.Global
	}
	if a, b := global(0.25, 2), global(2, 0); a != b || a != 2688.0/2 {
		t.Errorf("global scales %v and %v", a, b)
	}
	if g := global(2, 0.5); g != 2688.0/2 {
		t.Errorf("global scale %v", g)
	}
}

func TestFloatFits(t *testing.T) {
	for _, c := range []struct {
		o      Options
		inputs int
		format layer.Format
		size   int
	}{
		{Options{Format: layer.NVFP4}, 64, layer.NVFP4, 16},
		{Options{Format: layer.NVFP4}, 16, layer.NVFP4, 16}, // a row is one group
		{Options{Format: layer.NVFP4}, 27, layer.Integer, 0},
		{Options{Format: layer.MXFP4}, 48, layer.Integer, 0},
		{Options{Format: layer.FP8, Granularity: layer.PerGroup, GroupSize: 32}, 48, layer.FP8, 0},
		{Options{Format: layer.FP8}, 27, layer.FP8, 0},
	} {
		c.o.Method = Nearest
		o, fallbacks := c.o.WithDefaults().Fit(c.inputs)
		if o.Format != c.format || o.GroupSize != c.size || (len(fallbacks) > 0) != (c.o.WithDefaults().GroupSize != c.size) {
			t.Errorf("%+v with %d inputs: %+v, %v", c.o, c.inputs, o, fallbacks)
		}
		if err := o.Check(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
		prob := newProblem(3, c.inputs, 1)
		prob.Weight.Data[1] = 1
		s, err := Solve(context.Background(), nil, prob, c.o)
		if err != nil {
			t.Fatal(err)
		}
		if s.Grid.Format != c.format || s.Grid.Check(3, c.inputs) != nil || !slices.Equal(s.Fallbacks, fallbacks) {
			t.Errorf("%+v with %d inputs: %+v", c.o, c.inputs, s.Grid)
		}
	}
}

func TestFloatOptions(t *testing.T) {
	for field, o := range map[string]Options{
		"Format":      {Format: "fp6", Bits: 6},
		"Bits":        {Format: layer.FP8, Bits: 4},
		"Granularity": {Format: layer.NVFP4, Granularity: layer.PerChannel},
		"GroupSize":   {Format: layer.MXFP4, GroupSize: 16},
		"PowerOfTwo":  {Format: layer.FP8, PowerOfTwo: true},
	} {
		o.Method = Nearest
		var bad *OptionError
		if err := o.Check(); !errors.As(err, &bad) || bad.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	prob := newProblem(1, 16, 1)
	prob.FusedMax = math.Inf(1)
	var bad *layer.InputError
	if _, err := Solve(context.Background(), nil, prob, Options{Method: Nearest, Format: layer.NVFP4}); !errors.As(err, &bad) {
		t.Errorf("infinite maximum: %v", err)
	}
	prob.FusedMax, prob.ScaleType = 0, dtype.F8E8M0
	if _, err := Solve(context.Background(), nil, prob, Options{Method: Nearest, Format: layer.NVFP4}); !errors.As(err, &bad) {
		t.Errorf("another format's scales: %v", err)
	}
}

func TestLargestIgnoresStride(t *testing.T) {
	prob := newProblem(2, 3, 1)
	prob.Weight.Stride, prob.Weight.Data = 4, []float32{1, -2, 0, 99, 0.5, 0, 1}
	if got := largestOf(prob.Weight); got != 2 {
		t.Errorf("largest %v", got)
	}
}
