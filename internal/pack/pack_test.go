package pack

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sequence(n int, code func(i int) int) []int8 {
	s := make([]int8, n)
	for i := range s {
		s[i] = int8(code(i))
	}
	return s
}

func words(packed []byte) []uint32 {
	w := make([]uint32, len(packed)/4)
	for i := range w {
		w[i] = binary.LittleEndian.Uint32(packed[4*i:])
	}
	return w
}

// The vectors were computed from compressed-tensors' published algorithm.
var vectors = []struct {
	name  string
	bits  int
	codes []int8
	want  []uint32
}{
	{"2 bits", 2, sequence(16, func(i int) int { return i%4 - 2 }), []uint32{0xe4e4e4e4}},
	{"3 bits across words", 3, sequence(32, func(i int) int { return i%8 - 4 }), []uint32{0x88fac688, 0xc688fac6, 0xfac688fa}},
	{"4 bits", 4, []int8{1, 2, 3, 4, 5, 6, 7, 0, -1, -2, -3, -4, -5, -6, -7, -8}, []uint32{0x8fedcba9, 0x01234567}},
	{"5 bits across words", 5, sequence(32, func(i int) int { return i - 16 }), []uint32{0x8a418820, 0xc5a92839, 0xca307b9a, 0x38bdab49, 0xffbbcdeb}},
	{"8 bits", 8, []int8{-128, -1, 0, 127}, []uint32{0xff807f00}},
	{"padded row", 4, []int8{-8, -7, -6}, []uint32{0x00000210}},
	{"6 bits padded", 6, []int8{-32, 31, -32, -32, -32, 31}, []uint32{0xc0000fc0, 0x0000000f}},
}

func TestVectors(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			n := len(v.codes)
			packed := make([]byte, 4*len(v.want))
			if err := Rows(packed, v.codes, 1, n, v.bits); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(v.want, words(packed)); diff != "" {
				t.Errorf("Rows (-want +got):\n%s", diff)
			}
			clear(packed)
			// A single column along dimension 0 is the same stream.
			if err := Columns(packed, v.codes, n, 1, v.bits); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(v.want, words(packed)); diff != "" {
				t.Errorf("Columns (-want +got):\n%s", diff)
			}
			got := make([]int8, n)
			if err := UnpackRows(got, packed, 1, n, v.bits); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(v.codes, got); diff != "" {
				t.Errorf("UnpackRows (-want +got):\n%s", diff)
			}
		})
	}
}

// Random shapes: what was packed reads back, rows start at whole words, and
// packing columns is packing the transpose's rows, transposed.
func TestRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		bits := MinBits + rng.IntN(MaxBits-MinBits+1)
		rows, cols := rng.IntN(70), rng.IntN(70)
		codes := sequence(rows*cols, func(int) int { return rng.IntN(1<<bits) - 1<<(bits-1) })
		transposed := sequence(rows*cols, func(i int) int { return int(codes[i%rows*cols+i/rows]) })

		byRow := make([]byte, 4*rows*Words(cols, bits))
		byCol := make([]byte, 4*Words(rows, bits)*cols)
		ofTransposed := make([]byte, len(byCol))
		for _, err := range []error{
			Rows(byRow, codes, rows, cols, bits),
			Columns(byCol, codes, rows, cols, bits),
			Rows(ofTransposed, transposed, cols, rows, bits),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		for w := range Words(rows, bits) {
			for c := range cols {
				a, b := byCol[4*(w*cols+c):][:4], ofTransposed[4*(c*Words(rows, bits)+w):][:4]
				if !slices.Equal(a, b) {
					t.Fatalf("%d bits, %d×%d: word (%d, %d) is %x, transposed %x", bits, rows, cols, w, c, a, b)
				}
			}
		}
		got := make([]int8, rows*cols)
		if err := UnpackRows(got, byRow, rows, cols, bits); err != nil || !slices.Equal(got, codes) {
			t.Fatalf("%d bits, %d×%d by rows: %v", bits, rows, cols, err)
		}
		clear(got)
		if err := UnpackColumns(got, byCol, rows, cols, bits); err != nil || !slices.Equal(got, codes) {
			t.Fatalf("%d bits, %d×%d by columns: %v", bits, rows, cols, err)
		}
	}
}

func TestWords(t *testing.T) {
	for bits := MinBits; bits <= MaxBits; bits++ {
		for n := range 200 {
			if got, want := Words(n, bits), (n*bits+31)/32; got != want {
				t.Errorf("Words(%d, %d) = %d, want %d", n, bits, got, want)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	codes, packed := make([]int8, 6), make([]byte, 8)
	big := int(^uint(0) >> 1)
	for name, err := range map[string]error{
		"bits 1":           Rows(packed, codes, 2, 3, 1),
		"bits 9":           UnpackRows(codes, packed, 2, 3, 9),
		"few codes":        Rows(packed, codes[1:], 2, 3, 4),
		"short output":     Rows(packed[4:], codes, 2, 3, 4),
		"long input":       UnpackRows(codes, append(packed, 0, 0, 0, 0), 2, 3, 4),
		"odd input":        UnpackRows(codes, packed[1:], 2, 3, 4),
		"columns":          Columns(packed, codes, 2, 3, 4),
		"unpack columns":   UnpackColumns(codes, packed, 2, 3, 4),
		"negative":         UnpackRows(codes, packed, -2, -3, 4),
		"overflow":         UnpackRows(nil, nil, big, big, 8),
		"overflow columns": UnpackColumns(nil, nil, big, 2, 8),
	} {
		if !errors.Is(err, ErrLength) && !errors.Is(err, ErrBits) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := UnpackRows(nil, nil, big, 0, 8); err != nil { // returns at once
		t.Error(err)
	}
	for bits := MinBits; bits < MaxBits; bits++ {
		for _, bad := range []int8{int8(1 << (bits - 1)), int8(-1<<(bits-1) - 1)} {
			codes := []int8{0, 0, 0, 0, bad, 0}
			var out *RangeError
			if err := Rows(packed, codes, 2, 3, bits); !errors.As(err, &out) || out.Index != 4 {
				t.Errorf("Rows of code %d in %d bits: %v", bad, bits, err)
			}
			if err := Columns(append(packed, packed[:4]...), codes, 2, 3, bits); !errors.As(err, &out) || out.Index != 4 {
				t.Errorf("Columns of code %d in %d bits: %v", bad, bits, err)
			}
		}
	}
}
