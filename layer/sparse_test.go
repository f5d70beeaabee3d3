package layer

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/dtype"
)

func maskOf(rows, cols int, survivors ...int) *Mask {
	m := NewMask(rows, cols)
	for _, i := range survivors {
		m.Set(i/cols, i%cols, true)
	}
	return m
}

// sparseSolutions are pruned values, pruned codes with factors of codes, and codes
// with factors of values.
func sparseSolutions() []*Solution {
	values := &Solution{
		Layer: "v", Method: "sparsegpt", Rows: 2, Cols: 3, ValueType: dtype.BF16,
		Values: []float32{0, 1.5, 0, -2, 0, 0}, // one survivor is 0 itself
		Mask:   maskOf(2, 3, 1, 3, 5),
	}
	codes := &Solution{
		Layer: "c", Method: "gptq", Rows: 2, Cols: 3, Transposed: true,
		Grid: Grid{
			Bits: 4, Granularity: PerChannel, ScaleType: dtype.F32,
			Scales: []float32{0.5, 2}, Zeros: []int8{-3, 1},
		},
		Codes: []int8{-3, 4, -3, -8, 1, 7},
		Mask:  maskOf(2, 3, 1, 3, 5),
		LowRank: &LowRank{
			B: Factor{Rows: 2, Cols: 2, Type: dtype.F16, Grid: factorGrid(4, 0.5, 0.25), Codes: []int8{1, -8, 7, 0}},
			A: Factor{Rows: 2, Cols: 3, Type: dtype.F16, Grid: factorGrid(4, 1, 2), Codes: []int8{1, 2, 3, -1, 0, 1}},
		},
	}
	both := testSolution()
	both.LowRank = &LowRank{
		B: Factor{Rows: 1, Cols: 2, Type: dtype.F16, Values: []float32{0.5, -1}},
		A: Factor{Rows: 1, Cols: 5, Type: dtype.F16, Values: []float32{1, 2, 3, 4, 0.25}},
	}
	return []*Solution{values, codes, both}
}

func factorGrid(bits int, scales ...float32) Grid {
	return Grid{Bits: bits, Granularity: PerChannel, Symmetric: true, ScaleType: dtype.F16, Scales: scales}
}

func TestSparseWeights(t *testing.T) {
	all := sparseSolutions()
	w := make([]float32, 6)
	all[0].Weight(w)
	if d := cmp.Diff([]float32{0, 1.5, 0, -2, 0, 0}, w); d != "" {
		t.Error(d)
	}
	// Base rows (0, 3.5, 0) and (−18, 0, 12). B is (0.5, 1.75; −4, 0) with one
	// component a column, A is (1, 2, 3; −2, 0, 2). Stored as in×out.
	all[1].Base(w)
	if d := cmp.Diff([]float32{0, -18, 3.5, 0, 0, 12}, w); d != "" {
		t.Error(d)
	}
	all[1].Weight(w)
	if d := cmp.Diff([]float32{-3, -22, 4.5, -8, 5, 0}, w); d != "" {
		t.Error(d)
	}
	w = make([]float32, 10)
	all[2].Weight(w)
	if d := cmp.Diff([]float32{0.5, 1.5, 5.5, 1, 0.125, 0, 0, 0, 2, -4.25}, w); d != "" {
		t.Error(d)
	}
}

// The sum over the components is rounded after each, in their order, and the base
// comes last: 2²⁴ + 1 − 2²⁴ + 1 is 1 in float32 in this order, and 0 or 2 in others.
func TestLowRankOrder(t *testing.T) {
	s := &Solution{
		Rows: 1, Cols: 1, ValueType: dtype.F32, Values: []float32{1},
		LowRank: &LowRank{
			B: Factor{Rows: 3, Cols: 1, Type: dtype.F32, Values: []float32{1 << 24, 1, 1 << 24}},
			A: Factor{Rows: 3, Cols: 1, Type: dtype.F32, Values: []float32{1, 1, -1}},
		},
	}
	w := make([]float32, 1)
	s.Weight(w)
	if w[0] != 1 {
		t.Errorf("got %v", w)
	}
	// A product is rounded before it is added: (1+2⁻²³)² − (1+2⁻²²) is 2⁻⁴⁶ fused.
	x := float32(1 + 0x1p-23)
	s.LowRank.B.Values, s.Values[0] = []float32{-(1 + 0x1p-22), x, 0}, 0
	s.LowRank.A.Values = []float32{1, x, 0}
	if s.Weight(w); w[0] != 0 {
		t.Errorf("fused: got %v", w)
	}
}

// Any rank gives the plain sum.
func TestLowRankSum(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for rank := 1; rank < 12; rank++ {
		s := valuesWithFactors(rng, 3, 7, rank)
		got := make([]float32, 21)
		s.Weight(got)
		for r := range 3 {
			for c := range 7 {
				var sum float32
				for k := range rank {
					sum += float32(s.LowRank.B.Values[3*k+r] * s.LowRank.A.Values[7*k+c])
				}
				if want := s.Values[7*r+c] + sum; got[7*r+c] != want {
					t.Fatalf("rank %d: %v at (%d, %d), want %v", rank, got[7*r+c], r, c, want)
				}
			}
		}
	}
}

func valuesWithFactors(rng *rand.Rand, rows, cols, rank int) *Solution {
	random := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(rng.NormFloat64())
		}
		return v
	}
	return &Solution{
		Rows: rows, Cols: cols, ValueType: dtype.F32, Values: random(rows * cols),
		LowRank: &LowRank{
			B: Factor{Rows: rank, Cols: rows, Type: dtype.F32, Values: random(rank * rows)},
			A: Factor{Rows: rank, Cols: cols, Type: dtype.F32, Values: random(rank * cols)},
		},
	}
}

func TestSparseUnits(t *testing.T) {
	for _, s := range sparseSolutions() {
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
		for n := range b.Len() {
			if _, err := DecodeSolution(bytes.NewReader(b.Bytes()[:n]), int64(n)); !errors.Is(err, ErrUnit) {
				t.Fatalf("cut to %d bytes: %v", n, err)
			}
		}
	}
}

// A unit with a changed byte is refused, or well-formed: it never crashes a reader.
func TestSparseUnitsFlipped(t *testing.T) {
	for _, s := range sparseSolutions() {
		var b bytes.Buffer
		if err := EncodeSolution(&b, s); err != nil {
			t.Fatal(err)
		}
		for at := range b.Len() {
			for _, flip := range []byte{1, 0x80, 0xff} {
				raw := bytes.Clone(b.Bytes())
				raw[at] ^= flip
				got, err := DecodeSolution(bytes.NewReader(raw), int64(len(raw)))
				if err != nil && !errors.Is(err, ErrUnit) {
					t.Fatalf("byte %d: %v", at, err)
				}
				if err == nil {
					got.Weight(make([]float32, got.Rows*got.Cols))
				}
			}
		}
	}
}

func TestSparseCheck(t *testing.T) {
	for name, c := range map[string]struct {
		of     int
		damage func(s *Solution)
		index  int // of a WeightError; -1 for others
	}{
		"pruned value":  {0, func(s *Solution) { s.Values[2] = 1 }, 2},
		"inexact":       {0, func(s *Solution) { s.Values[1] = 0.1 }, 1},
		"NaN":           {0, func(s *Solution) { s.Values[1] = float32(math.NaN()) }, 1},
		"infinity":      {0, func(s *Solution) { s.Values[3] = float32(math.Inf(-1)) }, 3},
		"few values":    {0, func(s *Solution) { s.Values = s.Values[1:] }, -1},
		"value type":    {0, func(s *Solution) { s.ValueType = dtype.I32 }, -1},
		"no value type": {0, func(s *Solution) { s.ValueType = dtype.Invalid }, -1},
		"both":          {0, func(s *Solution) { s.Codes = make([]int8, 6) }, -1},
		"neither":       {0, func(s *Solution) { s.Values = nil }, -1},
		"mask shape":    {0, func(s *Solution) { s.Mask = NewMask(3, 2) }, -1},
		"mask words":    {0, func(s *Solution) { s.Mask.Bits = s.Mask.Bits[1:] }, -1},
		"mask past":     {0, func(s *Solution) { s.Mask.Bits[1] |= 8 }, -1},
		"pruned code":   {1, func(s *Solution) { s.Codes[4] = 0 }, 4},
		"code":          {1, func(s *Solution) { s.Codes[1] = 8 }, 1},
		"rank":          {1, func(s *Solution) { s.LowRank.A.Rows, s.LowRank.B.Rows = 0, 0 }, -1},
		"ranks":         {1, func(s *Solution) { s.LowRank.A.Rows = 1 }, -1},
		"inputs":        {1, func(s *Solution) { s.LowRank.A.Cols = 2 }, -1},
		"outputs":       {1, func(s *Solution) { s.LowRank.B.Cols = 3 }, -1},
		"factor code":   {1, func(s *Solution) { s.LowRank.A.Codes[0] = 8 }, -1},
		"factor codes":  {1, func(s *Solution) { s.LowRank.A.Codes = s.LowRank.A.Codes[:5] }, -1},
		"factor zeros":  {1, func(s *Solution) { s.LowRank.B.Grid.Symmetric = false }, -1},
		"factor scale":  {1, func(s *Solution) { s.LowRank.B.Grid.Scales[0] = 0.1 }, -1},
		"factor overflow": {1, func(s *Solution) {
			s.LowRank.B.Type, s.LowRank.B.Grid.ScaleType, s.LowRank.B.Grid.Scales[0] = dtype.F32, dtype.F32, 3e38
		}, -1},
		"factor type":      {2, func(s *Solution) { s.LowRank.B.Type = dtype.F8E4M3 }, -1},
		"factor both":      {2, func(s *Solution) { s.LowRank.B.Codes = []int8{0, 0} }, -1},
		"factor NaN":       {2, func(s *Solution) { s.LowRank.B.Values[1] = float32(math.NaN()) }, -1},
		"factor no values": {2, func(s *Solution) { s.LowRank.B.Values = nil }, -1},
	} {
		s := sparseSolutions()[c.of]
		c.damage(s)
		err := s.Check()
		var where *WeightError
		if err == nil || errors.As(err, &where) != (c.index >= 0) || where != nil && where.Index != c.index {
			t.Errorf("%s: %v", name, err)
		}
		if err := EncodeSolution(io.Discard, s); err == nil {
			t.Errorf("%s: is written", name)
		}
	}
	for _, s := range append(sparseSolutions(), append(floatSolutions(), testSolution())...) {
		if err := s.Check(); err != nil {
			t.Errorf("%s: %v", s.Layer, err)
		}
	}
}

func TestMaskBytes(t *testing.T) {
	// Columns 0, 3, 4, 6, 8 and 9 of 10, little-endian in bits and bytes.
	m := maskOf(2, 10, 10, 13, 14, 16, 18, 19)
	if d := cmp.Diff([]byte{0, 0, 0b01011001, 0b11}, m.Bytes()); d != "" {
		t.Error(d)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		rows, cols := 1+rng.IntN(5), 1+rng.IntN(150)
		m := NewMask(rows, cols)
		for i := range rows * cols {
			m.Set(i/cols, i%cols, rng.IntN(2) == 0)
		}
		got, err := MaskFromBytes(rows, cols, m.Bytes())
		if err != nil || cmp.Diff(m, got) != "" {
			t.Fatalf("%d×%d: %v", rows, cols, err)
		}
	}
	for name, raw := range map[string][]byte{"short": {0, 0, 0}, "past": {0, 0, 0, 4}, "empty": nil} {
		if _, err := MaskFromBytes(2, 10, raw); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}
