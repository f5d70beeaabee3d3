package quantize

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

func integerRanger(bits int, symmetric bool, search Range, scaleType dtype.DType) ranger {
	return ranger{bits: bits, symmetric: symmetric, search: search, scaleType: scaleType}
}

func TestAffineWorkedValues(t *testing.T) {
	tests := []struct {
		bits      int
		symmetric bool
		lo, hi    float64
		want      step
	}{
		{4, false, -0.5, 1, step{scale: 0.1, zero: -3}},    // codes −8…7 are −0.5…1
		{4, false, 0.5, 1.5, step{scale: 0.1, zero: -8}},   // extended to 0
		{4, false, -1.5, -0.25, step{scale: 0.1, zero: 7}}, // on the other side
		{4, true, -1.5, 1, step{scale: 0.2, zero: 0}},
		{4, true, -0.75, 1.5, step{scale: 0.2, zero: 0}}, // 1.5 lies at code 7.5
		{2, true, 0, 3, step{scale: 2, zero: 0}},
		{8, false, 0, 0, step{scale: 1, zero: 0}},
		{8, true, 0, 0, step{scale: 1, zero: 0}},
	}
	for _, c := range tests {
		f := integerRanger(c.bits, c.symmetric, MinMax, dtype.F32)
		got := f.affine(c.lo, c.hi)
		if math.Abs(float64(got.scale-c.want.scale)) > 1e-7 || got.zero != c.want.zero {
			t.Errorf("%d bits, symmetric %v, %v…%v: %v, want %v", c.bits, c.symmetric, c.lo, c.hi, got, c.want)
		}
	}
}

func TestCodesRoundHalfToEven(t *testing.T) {
	s := step{scale: 0.5, zero: 1}
	for w, want := range map[float64]int{0.25: 1, 0.75: 3, -0.25: 1, -0.75: -1, 1.25: 3, 0: 1, 100: 7, -100: -8} {
		if got := s.code(w, -8, 7); got != want {
			t.Errorf("code of %v is %d, want %d", w, got, want)
		}
	}
}

// everyRanger calls f with bits, symmetry, search and scale type crossed.
func everyRanger(f func(name string, r ranger)) {
	for bits := 2; bits <= 8; bits++ {
		for _, symmetric := range []bool{false, true} {
			for _, search := range []Range{MinMax, MSE} {
				for _, scale := range []dtype.DType{dtype.F32, dtype.F16, dtype.BF16} {
					f(fmt.Sprintf("%d bits, symmetric %v, %s, %s", bits, symmetric, search, scale), integerRanger(bits, symmetric, search, scale))
				}
			}
		}
	}
}

// TestGridOracle: quantizing a grid's own values changes nothing, 0 is exact,
// scales are exact in their type, whatever the weights.
func TestGridOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	sets := map[string][]float64{
		"zeros": make([]float64, 8), "one zero": {0}, "one value": {-0.3}, "constant": {0.7, 0.7, 0.7},
		"denormal": {0x1p-149, -0x1p-148, 0}, "tiny": {1e-30, -3e-30, 2e-30},
		"huge":    {math.MaxFloat32, -math.MaxFloat32, 1},
		"outlier": {1e6, 0.5, -0.25, 1, -1, 0.125},
	}
	for i := range 20 {
		w := make([]float64, 1+rng.IntN(40))
		for j := range w {
			w[j] = float64(float32(math.Exp(4*rng.NormFloat64()) * rng.NormFloat64()))
		}
		sets[fmt.Sprintf("random %d", i)] = w
	}
	everyRanger(func(name string, f ranger) {
		lo, hi := layer.CodeRange(f.bits)
		for set, w := range sets {
			s := f.step(w)
			if !(s.scale > 0) || math.IsInf(float64(s.scale), 0) || f.scaleType.Round(s.scale) != s.scale {
				t.Fatalf("%s, %s: scale %v", name, set, s.scale)
			}
			if s.zero < lo || s.zero > hi || f.symmetric && s.zero != 0 {
				t.Fatalf("%s, %s: zero point %d", name, set, s.zero)
			}
			if s.value(s.code(0, lo, hi)) != 0 {
				t.Fatalf("%s, %s: 0 becomes %v", name, set, s.value(s.code(0, lo, hi)))
			}
			for _, v := range w {
				code := s.code(v, lo, hi)
				value := float64(s.value(code))
				if !finite(value) || s.code(value, lo, hi) != code {
					t.Fatalf("%s, %s: %v has code %d, value %v of code %d", name, set, v, code, value, s.code(value, lo, hi))
				}
			}
		}
	})
}

// TestMSENeverWorseThanMinMax, in its own objective, for each granularity.
func TestMSENeverWorseThanMinMax(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 1))
	everyRanger(func(name string, f ranger) {
		if f.search != MSE {
			return
		}
		w := linalg.NewGeneral(3, 24)
		for i := range w.Data {
			v := rng.NormFloat64()
			w.Data[i] = v * v * v
		}
		for _, granularity := range []layer.Granularity{layer.PerTensor, layer.PerChannel, layer.PerGroup} {
			size := 0
			if granularity == layer.PerGroup {
				size = 8
			}
			cost := func(search Range) float64 {
				f := f
				f.search = search
				g, err := f.newGrid(context.Background(), pool.New(1), w, granularity, size)
				if err != nil {
					t.Fatal(err)
				}
				if err := g.Check(w.Rows, w.Cols); err != nil {
					t.Fatal(err)
				}
				sum := 0.0
				for r := range w.Rows {
					for c := range w.Cols {
						sum += f.error(w.Data[r*w.Cols+c:][:1], stepAt(&g, g.Index(r, c, w.Cols)), math.Inf(1))
					}
				}
				return sum
			}
			if mse, minmax := cost(MSE), cost(MinMax); mse > minmax*(1+1e-12) {
				t.Errorf("%s, %s: %v, more than min-max's %v", name, granularity, mse, minmax)
			}
		}
	})
}

// TestMSEClipsOutliers: among many small weights one large one is clipped.
func TestMSEClipsOutliers(t *testing.T) {
	w := make([]float64, 4000)
	for i := range w {
		w[i] = math.Sin(float64(i))
	}
	w[7] = 3
	f := integerRanger(4, false, MSE, dtype.F32)
	if s := f.step(w); s.scale > 0.9*integerRanger(4, false, MinMax, dtype.F32).step(w).scale {
		t.Errorf("scale %v is hardly less than min-max's", s.scale)
	}
}

// FuzzStep holds what TestGridOracle does for any pair of finite weights.
func FuzzStep(f *testing.F) {
	f.Add(float32(1), float32(-1), uint8(4), true)
	f.Add(float32(math.MaxFloat32), float32(0x1p-149), uint8(8), false)
	f.Fuzz(func(t *testing.T, a, b float32, bits uint8, symmetric bool) {
		if !finite(float64(a)) || !finite(float64(b)) {
			return
		}
		n := 2 + int(bits)%7
		lo, hi := layer.CodeRange(n)
		for _, scale := range []dtype.DType{dtype.F32, dtype.F16, dtype.BF16} {
			for _, search := range []Range{MinMax, MSE} {
				s := integerRanger(n, symmetric, search, scale).step([]float64{float64(a), float64(b)})
				if !(s.scale > 0) || scale.Round(s.scale) != s.scale || s.zero < lo || s.zero > hi {
					t.Fatalf("step %v", s)
				}
				for _, code := range []int{lo, hi} {
					if !finite(float64(s.value(code))) {
						t.Fatalf("step %v: value of %d is not finite", s, code)
					}
				}
			}
		}
	})
}

func TestPerTensorStepIgnoresStride(t *testing.T) {
	wide := blas64.General{Rows: 2, Cols: 2, Stride: 3, Data: []float64{1, -1, 99, 0.5, 0.25}}
	s, err := integerRanger(4, true, MinMax, dtype.F32).tensorStep(context.Background(), pool.New(1), wide)
	if err != nil || s.scale != float32(2.0/15) {
		t.Errorf("%v, %v", s, err)
	}
}
