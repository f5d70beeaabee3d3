package layer

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
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
