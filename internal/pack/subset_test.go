package pack

import (
	"bytes"
	"errors"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
)

// The numbers of the subsets of n of m elements are 0, 1, 2, … in the order of the
// subsets as binary numbers.
func TestSubsets(t *testing.T) {
	for m := 2; m <= 12; m++ {
		for n := 1; n <= m; n++ {
			next := uint32(0)
			for set := range uint32(1) << m {
				if bits.OnesCount32(set) != n {
					continue
				}
				if got := SubsetRank(set); got != next {
					t.Fatalf("%d of %d: %b has number %d, want %d", n, m, set, got, next)
				}
				if got, ok := Subset(next, n, m); !ok || got != set {
					t.Fatalf("%d of %d: number %d is %b, want %b", n, m, next, got, set)
				}
				next++
			}
			if _, ok := Subset(next, n, m); ok {
				t.Errorf("%d of %d: number %d is a subset's", n, m, next)
			}
			if n < m && SubsetBits(n, m) != bits.Len32(next-1) {
				t.Errorf("%d of %d: %d bits for %d subsets", n, m, SubsetBits(n, m), next)
			}
		}
	}
	if set := uint32(0xffff0000); SubsetRank(set) != 601080389 || SubsetBits(16, 32) != 30 {
		t.Errorf("16 of 32: %d in %d bits", SubsetRank(set), SubsetBits(16, 32))
	}
}

func TestFields(t *testing.T) {
	dst := make([]byte, 2)
	if err := Fields(dst, []uint32{5, 1, 6}, 3); err != nil || !bytes.Equal(dst, []byte{0b10_001_101, 1}) {
		t.Errorf("%b, %v", dst, err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		width, n := 1+rng.IntN(32), rng.IntN(40)
		fields, got := make([]uint32, n), make([]uint32, n)
		for i := range fields {
			fields[i] = uint32(rng.Uint64() & (1<<width - 1))
		}
		packed := make([]byte, FieldBytes(n, width))
		if len(packed) != (n*width+7)/8 {
			t.Fatalf("%d fields of %d bits in %d bytes", n, width, len(packed))
		}
		if err := errors.Join(Fields(packed, fields, width), UnpackFields(got, packed, width)); err != nil || !slices.Equal(got, fields) {
			t.Fatalf("%d fields of %d bits: %v", n, width, err)
		}
	}
	for name, err := range map[string]error{
		"short":    Fields(dst[:1], []uint32{1, 1, 1}, 3),
		"long":     UnpackFields(make([]uint32, 3), make([]byte, 3), 3),
		"no bits":  Fields(nil, nil, 0),
		"33 bits":  Fields(dst, nil, 33),
		"overflow": Fields(dst, []uint32{8, 0, 0}, 3),
	} {
		if !errors.Is(err, ErrLength) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
