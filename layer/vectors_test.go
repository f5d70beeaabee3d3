package layer

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func encodedVectors(t testing.TB, v *Vectors) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := EncodeVectors(&b, v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestVectors: what is written is read, more than ten vectors in their order, and a
// file cut short or of another kind is not taken.
func TestVectors(t *testing.T) {
	many := &Vectors{}
	for i := range 12 {
		many.Of = append(many.Of, []float64{float64(i), -0.5, math.MaxFloat64, 1e-300})
	}
	for _, v := range []*Vectors{many, {Of: [][]float64{{1}, {2, 3}}}} {
		raw := encodedVectors(t, v)
		got, err := DecodeVectors(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(v, got); d != "" {
			t.Error(d)
		}
		for n := range raw {
			if _, err := DecodeVectors(bytes.NewReader(raw[:n]), int64(n)); !errors.Is(err, ErrUnit) {
				t.Fatalf("cut to %d bytes: %v", n, err)
			}
		}
	}
	var b bytes.Buffer
	if err := EncodeSolution(&b, testSolution()); err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeVectors(bytes.NewReader(b.Bytes()), int64(b.Len())); !errors.Is(err, ErrUnit) {
		t.Errorf("a solution read as vectors gives %v", err)
	}
}

// TestVectorsNotFinite: a curve may hold an infinity, for an amount that overflows.
func TestVectorsNotFinite(t *testing.T) {
	raw := encodedVectors(t, &Vectors{Of: [][]float64{{0, math.Inf(1)}}})
	v, err := DecodeVectors(bytes.NewReader(raw), int64(len(raw)))
	if err != nil || len(v.Of) != 1 || !math.IsInf(v.Of[0][1], 1) {
		t.Errorf("%+v, %v", v, err)
	}
}

func FuzzDecodeVectors(f *testing.F) {
	f.Add(encodedVectors(f, &Vectors{Of: [][]float64{{1, 2}, {3}}}))
	f.Add(encodedVectors(f, &Vectors{}))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := DecodeVectors(bytes.NewReader(data), int64(len(data)))
		if err == nil && v == nil || err != nil && !errors.Is(err, ErrUnit) {
			t.Errorf("%v, %v", v, err)
		}
	})
}
