package layer

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
)

func testMoments(rng *rand.Rand, groups, n int, same bool) *Moments {
	square := func() blas64.General {
		m := blas64.General{Rows: n, Cols: n, Stride: n, Data: make([]float64, n*n)}
		for i := range m.Data {
			m.Data[i] = rng.NormFloat64()
		}
		return m
	}
	m := &Moments{Rows: 1 << 40, Groups: groups, Inputs: n, SumXt: make([]float64, groups*n), Energy: map[string][]float64{"a.weight": {1, 2.5}, "b": {0.1}}}
	for range groups {
		m.H = append(m.H, square())
		if !same {
			m.G = append(m.G, square())
		}
	}
	for i := range m.SumXt {
		m.SumXt[i] = rng.NormFloat64()
	}
	m.SumX = m.SumXt
	m.Sample = &Sample{}
	for range groups {
		m.Sample.Xt = append(m.Sample.Xt, blas32.General{Rows: 2, Cols: n, Stride: n, Data: make([]float32, 2*n)})
		if !same {
			m.Sample.X = append(m.Sample.X, blas32.General{Rows: 2, Cols: n, Stride: n, Data: make([]float32, 2*n)})
		}
	}
	for i := range m.Sample.Xt[0].Data {
		m.Sample.Xt[0].Data[i] = float32(rng.NormFloat64())
	}
	if !same {
		m.SumX = []float64{}
		for range m.SumXt {
			m.SumX = append(m.SumX, rng.NormFloat64())
		}
	}
	return m
}

func testSolution() *Solution {
	return &Solution{
		Layer: "conv.weight", Method: "gptq", Rows: 2, Cols: 5,
		Grid: Grid{
			Bits: 4, Granularity: PerGroup, GroupSize: 3, ScaleType: dtype.F16,
			Scales: []float32{0.5, 0.25, 1, 2}, Zeros: []int8{-8, 7, 0, 1},
		},
		Codes: []int8{-8, -7, 0, 3, 7, 1, 2, 3, 4, -1},
		Bias:  []float64{0.125, -3},

		InputScale: []float64{1, 0.5, 2, 3, 1.0 / 3},

		Errors:    Errors{Energy: 10, Solved: 1.0 / 3, Nearest: 0.5, Soft: 0.25, Damping: 0.01},
		Fallbacks: []Fallback{{Asked: "a", Got: "b", Reason: "c"}},
	}
}

// floatSolutions are one of each floating-point format.
func floatSolutions() []*Solution {
	fp8 := &Solution{
		Layer: "a", Method: "nearest", Rows: 2, Cols: 3,
		Grid:  Grid{Format: FP8, Bits: 8, Granularity: PerChannel, Symmetric: true, ScaleType: dtype.BF16, Scales: []float32{0.5, 2}},
		Codes: []int8{126, -126, 1, 0, 0x38, -0x38},
	}
	nvfp4 := &Solution{
		Layer: "b", Method: "gptq", Rows: 1, Cols: 32,
		Grid: Grid{
			Format: NVFP4, Bits: 4, Granularity: PerGroup, GroupSize: 16, Symmetric: true, ScaleType: dtype.F8E4M3,
			Scales: []float32{448 / float32(2700), 1 / float32(2700)}, Global: 2700,
		},
		Codes: make([]int8, 32),
	}
	mxfp4 := &Solution{
		Layer: "c", Method: "gptq", Rows: 2, Cols: 32,
		Grid: Grid{
			Format: MXFP4, Bits: 4, Granularity: PerGroup, GroupSize: 32, Symmetric: true, ScaleType: dtype.F8E8M0,
			Scales: []float32{0x1p-127, 4},
		},
		Codes: make([]int8, 64),
	}
	for c := range 15 {
		nvfp4.Codes[c], nvfp4.Codes[16+c], mxfp4.Codes[32+c] = int8(c-7), int8(7-c), int8(c-7)
	}
	return []*Solution{fp8, nvfp4, mxfp4}
}

func TestFloatUnitsRoundTrip(t *testing.T) {
	for _, s := range floatSolutions() {
		var b bytes.Buffer
		if err := EncodeSolution(&b, s); err != nil {
			t.Fatal(err)
		}
		got, err := DecodeSolution(bytes.NewReader(b.Bytes()), int64(b.Len()))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s, got); d != "" {
			t.Error(d)
		}
	}
}

// TestFloatDequantize: worked values, in float32 and in this order of operations.
func TestFloatDequantize(t *testing.T) {
	all := floatSolutions()
	w := make([]float32, 6)
	all[0].Weight(w)
	if d := cmp.Diff([]float32{224, -224, 0x1p-10, 0, 2, -2}, w); d != "" {
		t.Error(d)
	}
	w = make([]float32, 32)
	all[1].Weight(w)
	local := float32(448) / float32(2700) // rounded before it is multiplied
	for i, v := range []float32{-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6} {
		if w[i] != v*local || w[16+i] != -v*(1/float32(2700)) {
			t.Errorf("value %d is %v and %v", i, w[i], w[16+i])
		}
	}
	if g := all[1].Grid; g.Stored(0) != 448 || g.Stored(1) != 1 {
		t.Errorf("stored scales %v and %v", g.Stored(0), g.Stored(1))
	}
	w = make([]float32, 64)
	all[2].Weight(w)
	if w[32] != -24 || w[46] != 24 || w[40] != 2 {
		t.Errorf("MXFP4: %v", w[32:])
	}
}

// TestFloatGridCheck: what a format does not allow is refused.
func TestFloatGridCheck(t *testing.T) {
	for name, change := range map[string]func(g *Grid){
		"format":       func(g *Grid) { g.Format = "fp6" },
		"bits":         func(g *Grid) { g.Bits = 8 },
		"zero points":  func(g *Grid) { g.Symmetric, g.Zeros = false, []int8{0, 0} },
		"granularity":  func(g *Grid) { g.Granularity, g.GroupSize, g.Scales = PerChannel, 0, g.Scales[:1] },
		"group size":   func(g *Grid) { g.GroupSize, g.Scales = 32, g.Scales[:1] },
		"scale type":   func(g *Grid) { g.ScaleType = dtype.F32 },
		"no global":    func(g *Grid) { g.Global = 0 },
		"other global": func(g *Grid) { g.Global *= 1.5 },
		"scale":        func(g *Grid) { g.Scales[1] *= 1 + 0x1p-20 },
		"zero scale":   func(g *Grid) { g.Scales[1] = 0 },
	} {
		g := floatSolutions()[1].Grid
		change(&g)
		if err := g.Check(1, 32); err == nil {
			t.Errorf("%s passes", name)
		}
	}
	g := floatSolutions()[2].Grid
	g.Scales[0] = 3
	if err := g.Check(2, 32); err == nil {
		t.Error("MXFP4 with a scale of 3 passes")
	}
	g = floatSolutions()[0].Grid
	g.Global = 1
	if err := g.Check(2, 3); err == nil {
		t.Error("FP8 with a global scale passes")
	}
}

func TestUnitsRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, same := range []bool{true, false} {
		m := testMoments(rng, 3, 4, same)
		var b bytes.Buffer
		if err := EncodeMoments(&b, m); err != nil {
			t.Fatal(err)
		}
		got, err := DecodeMoments(bytes.NewReader(b.Bytes()), int64(b.Len()))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(m, got); d != "" {
			t.Error(d)
		}
	}
	s := testSolution()
	var b bytes.Buffer
	if err := EncodeSolution(&b, s); err != nil {
		t.Fatal(err)
	}
	got, err := DecodeSolution(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s, got); d != "" {
		t.Error(d)
	}
	if _, err := DecodeMoments(bytes.NewReader(b.Bytes()), int64(b.Len())); !errors.Is(err, ErrUnit) {
		t.Errorf("a solution read as moments gives %v", err)
	}
}

func TestDamagedUnitsAreErrors(t *testing.T) {
	var b bytes.Buffer
	if err := EncodeSolution(&b, testSolution()); err != nil {
		t.Fatal(err)
	}
	for n := range b.Len() {
		if _, err := DecodeSolution(bytes.NewReader(b.Bytes()[:n]), int64(n)); !errors.Is(err, ErrUnit) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	for _, damage := range []func(*Solution){
		func(s *Solution) { s.Codes[3] = 8 },
		func(s *Solution) { s.Grid.Scales[1] = -1 },
		func(s *Solution) { s.Grid.Scales[1] = 0.1 }, // not exact in F16
		func(s *Solution) { s.Grid.Zeros[0] = 100 },
		func(s *Solution) { s.Grid.GroupSize = 0 },
		func(s *Solution) { s.Grid.Bits = 9 },
		func(s *Solution) { s.Rows = 3 },
		func(s *Solution) { s.Grid.Format = FP8 },
		func(s *Solution) { s.Grid.Format = "fp6" },
		func(s *Solution) { *s = *floatSolutions()[0]; s.Codes[0] = 127 },
		func(s *Solution) { *s = *floatSolutions()[1]; s.Codes[0] = -8 },
		func(s *Solution) { *s = *floatSolutions()[1]; s.Grid.Global = 1 },
	} {
		s := testSolution()
		damage(s)
		b.Reset()
		if err := EncodeSolution(&b, s); err != nil {
			continue // refused when written: as good
		}
		if _, err := DecodeSolution(bytes.NewReader(b.Bytes()), int64(b.Len())); !errors.Is(err, ErrUnit) {
			t.Errorf("damaged solution read back: %v", err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	var b bytes.Buffer
	if err := EncodeSolution(&b, testSolution()); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	for _, s := range append(floatSolutions(), sparseSolutions()...) {
		var b bytes.Buffer
		if err := EncodeSolution(&b, s); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	b.Reset()
	if err := EncodeMoments(&b, testMoments(rand.New(rand.NewPCG(1, 1)), 1, 2, false)); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		r, n := bytes.NewReader(data), int64(len(data))
		if s, err := DecodeSolution(r, n); err == nil {
			s.Weight(make([]float32, s.Rows*s.Cols))
		}
		if m, err := DecodeMoments(r, n); err == nil && len(m.H) != m.Groups {
			t.Error("moments without all their groups")
		}
	})
}

func TestDequantize(t *testing.T) {
	s := testSolution()
	w := make([]float32, 10)
	s.Weight(w)
	// Row 0: groups of inputs 0–2 and 3–4, scales 0.5 and 0.25, zeros −8 and 7.
	want := []float32{0, 0.5, 4, -1, 0, 1, 2, 3, 6, -4}
	if d := cmp.Diff(want, w); d != "" {
		t.Error(d)
	}
}
