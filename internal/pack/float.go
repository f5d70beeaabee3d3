package pack

import "fmt"

// Floating-point codes (dtype.Minifloat) are stored as their sign and magnitude:
// the bits of the value. −0 has no code and is never written; it reads as 0.

// most4 and most8 are the largest codes of E2M1 and E4M3.
const (
	most4 = 7
	most8 = 126
)

// FP4 packs E2M1 codes into nibbles of dst, two to a byte, the code that comes
// first in the low one, as nvfp4-pack-quantized and mxfp4-pack-quantized have
// them. dst must be half as long as codes; rows of even length follow each other.
func FP4(dst []byte, codes []int8) error {
	if len(codes) != 2*len(dst) {
		return fmt.Errorf("%w: %d bytes for %d codes of 4 bits", ErrLength, len(dst), len(codes))
	}
	for i := range dst {
		low, ok1 := signMagnitude(codes[2*i], most4, 3)
		high, ok2 := signMagnitude(codes[2*i+1], most4, 3)
		if !ok1 {
			return &RangeError{Index: 2 * i, Code: int(codes[2*i]), Bits: 4}
		}
		if !ok2 {
			return &RangeError{Index: 2*i + 1, Code: int(codes[2*i+1]), Bits: 4}
		}
		dst[i] = low | high<<4
	}
	return nil
}

// UnpackFP4 is the inverse of FP4.
func UnpackFP4(codes []int8, src []byte) error {
	if len(codes) != 2*len(src) {
		return fmt.Errorf("%w: %d bytes for %d codes of 4 bits", ErrLength, len(src), len(codes))
	}
	for i, b := range src {
		codes[2*i], codes[2*i+1] = signed(b&15, 3), signed(b>>4, 3)
	}
	return nil
}

// FP8 writes E4M3 codes to dst, which must be as long, one byte each.
func FP8(dst []byte, codes []int8) error {
	if len(codes) != len(dst) {
		return fmt.Errorf("%w: %d bytes for %d codes of 8 bits", ErrLength, len(dst), len(codes))
	}
	for i, code := range codes {
		b, ok := signMagnitude(code, most8, 7)
		if !ok {
			return &RangeError{Index: i, Code: int(code), Bits: 8}
		}
		dst[i] = b
	}
	return nil
}

// NaNError is a stored NaN.
type NaNError struct{ Index int }

// Error names the place.
func (e *NaNError) Error() string { return fmt.Sprintf("pack: NaN at index %d", e.Index) }

// UnpackFP8 is the inverse of FP8. A NaN, which has no code, is a *NaNError.
func UnpackFP8(codes []int8, src []byte) error {
	if len(codes) != len(src) {
		return fmt.Errorf("%w: %d bytes for %d codes of 8 bits", ErrLength, len(src), len(codes))
	}
	for i, b := range src {
		if b&0x7f > most8 {
			return &NaNError{Index: i}
		}
		codes[i] = signed(b, 7)
	}
	return nil
}

// signMagnitude returns a code's magnitude with its sign at the given bit.
func signMagnitude(code int8, most, sign int) (b byte, ok bool) {
	if c := int(code); c < 0 {
		return byte(-c | 1<<sign), -c <= most
	}
	return byte(code), int(code) <= most
}

func signed(b byte, sign int) int8 {
	magnitude := int8(b & (1<<sign - 1))
	if b>>sign != 0 {
		return -magnitude
	}
	return magnitude
}
