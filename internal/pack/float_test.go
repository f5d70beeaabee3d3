package pack

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// TestFloatWorkedBytes: 0.5 beside −6 is 0xf1, as compressed-tensors packs it.
func TestFloatWorkedBytes(t *testing.T) {
	dst := make([]byte, 3)
	// 0.5 −6, 0 −0.5, 6 1
	if err := FP4(dst, []int8{1, -7, 0, -1, 7, 2}); err != nil || !bytes.Equal(dst, []byte{0xf1, 0x90, 0x27}) {
		t.Errorf("%x, %v", dst, err)
	}
	// 1 is 2⁰ with exponent bits 7, 448 and −448, the smallest, 0
	codes := []int8{0x38, 126, -126, -1, 0}
	dst = make([]byte, 5)
	if err := FP8(dst, codes); err != nil || !bytes.Equal(dst, []byte{0x38, 0x7e, 0xfe, 0x81, 0}) {
		t.Errorf("%x, %v", dst, err)
	}
}

// TestFloatRoundTrip: every code, both ways, and E4M3's bytes are the type's own.
func TestFloatRoundTrip(t *testing.T) {
	var all4, all8 []int8
	for c := -most4; c <= most4; c++ {
		all4 = append(all4, int8(c))
	}
	all4 = append(all4, 3)
	for c := -most8; c <= most8; c++ {
		all8 = append(all8, int8(c))
	}
	bits4, back4 := make([]byte, len(all4)/2), make([]int8, len(all4))
	if err := errors.Join(FP4(bits4, all4), UnpackFP4(back4, bits4)); err != nil || !slices.Equal(all4, back4) {
		t.Errorf("%v, %v", back4, err)
	}
	bits8, back8 := make([]byte, len(all8)), make([]int8, len(all8))
	if err := errors.Join(FP8(bits8, all8), UnpackFP8(back8, bits8)); err != nil || !slices.Equal(all8, back8) {
		t.Errorf("%v, %v", back8, err)
	}
	values := make([]float32, len(all8))
	if err := dtype.F8E4M3.ToFloat32(values, bits8); err != nil {
		t.Fatal(err)
	}
	for i, c := range all8 {
		if values[i] != dtype.E4M3.Value(int(c)) {
			t.Errorf("code %d reads as %v, want %v", c, values[i], dtype.E4M3.Value(int(c)))
		}
	}
	if most4 != dtype.E2M1.Most() || most8 != dtype.E4M3.Most() {
		t.Error("the largest codes differ from the types'")
	}
}

func TestFloatRefused(t *testing.T) {
	var far *RangeError
	for _, c := range []int8{8, -8, 127, -128} {
		if err := FP4(make([]byte, 1), []int8{0, c}); !errors.As(err, &far) || far.Index != 1 || far.Code != int(c) {
			t.Errorf("code %d: %v", c, err)
		}
		if err := FP4(make([]byte, 1), []int8{c, 0}); !errors.As(err, &far) || far.Index != 0 {
			t.Errorf("code %d: %v", c, err)
		}
	}
	for _, c := range []int8{127, -127, -128} {
		if err := FP8(make([]byte, 2), []int8{0, c}); !errors.As(err, &far) || far.Index != 1 || far.Code != int(c) {
			t.Errorf("code %d: %v", c, err)
		}
	}
	var nan *NaNError
	for _, b := range []byte{0x7f, 0xff} {
		if err := UnpackFP8(make([]int8, 3), []byte{0, 0x80, b}); !errors.As(err, &nan) || nan.Index != 2 {
			t.Errorf("byte %x: %v", b, err)
		}
	}
	codes := []int8{5, 5}
	if err := UnpackFP4(codes, []byte{0x08}); err != nil || codes[0] != 0 || codes[1] != 0 {
		t.Errorf("−0 reads as %d, %v", codes[0], err)
	}
	for _, err := range []error{
		FP4(make([]byte, 1), make([]int8, 3)), UnpackFP4(make([]int8, 1), make([]byte, 1)),
		FP8(make([]byte, 1), make([]int8, 2)), UnpackFP8(make([]int8, 2), make([]byte, 1)),
	} {
		if !errors.Is(err, ErrLength) {
			t.Error(err)
		}
	}
}
