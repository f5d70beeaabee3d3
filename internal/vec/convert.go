package vec

import (
	"encoding/binary"
	"unsafe"
)

// The conversions below take bytes in little-endian order, at any alignment.
// Bytes must be at least as many as the numbers need.

// FromF16 sets dst to the IEEE 754 halves at the start of src. A NaN keeps its
// payload and becomes quiet.
func FromF16(dst []float32, src []byte) {
	src = src[:2*len(dst)]
	n := len(dst) &^ 15
	fromF16Kernel(dst[:n], src[:2*n])
	fromF16Generic(dst[n:], src[2*n:])
}

// ToF16 writes src as halves, rounded half to even: Inf from 65,520, a NaN
// stays one.
func ToF16(dst []byte, src []float32) {
	dst = dst[:2*len(src)]
	n := len(src) &^ 15
	toF16Kernel(dst[:2*n], src[:n])
	toF16Generic(dst[2*n:], src[n:])
}

// FromBF16 sets dst to the bfloat16 at the start of src, bit by bit.
func FromBF16(dst []float32, src []byte) {
	src = src[:2*len(dst)]
	n := len(dst) &^ 15
	fromBF16Kernel(dst[:n], src[:2*n])
	fromBF16Generic(dst[n:], src[2*n:])
}

// ToBF16 writes src as bfloat16, rounded half to even; a NaN stays one, quiet.
func ToBF16(dst []byte, src []float32) {
	dst = dst[:2*len(src)]
	n := len(src) &^ 15
	toBF16Kernel(dst[:2*n], src[:n])
	toBF16Generic(dst[2*n:], src[n:])
}

// FromF32 sets dst to the float32 at the start of src.
func FromF32(dst []float32, src []byte) {
	src = src[:4*len(dst)]
	if littleEndian() {
		copy(asBytes(dst), src)
		return
	}
	for i := range dst {
		dst[i] = float32from(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

// ToF32 writes src as it is.
func ToF32(dst []byte, src []float32) {
	dst = dst[:4*len(src)]
	if littleEndian() {
		copy(dst, asBytes(src))
		return
	}
	for i, v := range src {
		binary.LittleEndian.PutUint32(dst[4*i:], bits(v))
	}
}

func littleEndian() bool { return binary.NativeEndian.Uint16([]byte{1, 0}) == 1 }

// asBytes returns the memory of x.
func asBytes(x []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), 4*len(x))
}
