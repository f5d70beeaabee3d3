// Package dtype names the element types that checkpoints store and converts
// between them and float32.
//
// Names are those of the safetensors format. Bytes are little-endian, as every
// format that fettle reads or writes stores them.
package dtype

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/x448/float16"

	"github.com/fettle-dev/fettle/internal/vec"
)

var le = binary.LittleEndian

// DType is the type of a tensor's elements.
type DType uint8

// The element types, in the order of the table below.
const (
	Invalid DType = iota
	F64
	F32
	F16
	BF16
	F8E4M3
	F8E5M2
	F8E8M0
	I64
	I32
	I16
	I8
	U64
	U32
	U16
	U8
	Bool
	C64
)

var table = [...]struct {
	name string
	size int
}{
	Invalid: {"INVALID", 0},
	F64:     {"F64", 8}, F32: {"F32", 4}, F16: {"F16", 2}, BF16: {"BF16", 2},
	F8E4M3: {"F8_E4M3", 1}, F8E5M2: {"F8_E5M2", 1}, F8E8M0: {"F8_E8M0", 1},
	I64: {"I64", 8}, I32: {"I32", 4}, I16: {"I16", 2}, I8: {"I8", 1},
	U64: {"U64", 8}, U32: {"U32", 4}, U16: {"U16", 2}, U8: {"U8", 1},
	Bool: {"BOOL", 1}, C64: {"C64", 8},
}

// Parse returns the type with the given safetensors name.
func Parse(name string) (DType, error) {
	for d := F64; int(d) < len(table); d++ {
		if table[d].name == name {
			return d, nil
		}
	}
	return Invalid, fmt.Errorf("unknown dtype %q", name)
}

// String returns the safetensors name.
func (d DType) String() string {
	if int(d) < len(table) {
		return table[d].name
	}
	return fmt.Sprintf("DType(%d)", uint8(d))
}

// Size returns the bytes of one element, 0 for an invalid type.
func (d DType) Size() int {
	if int(d) < len(table) {
		return table[d].size
	}
	return 0
}

// IsFloat reports whether the type is a real floating-point type.
func (d DType) IsFloat() bool { return d >= F64 && d <= F8E8M0 }

// ToFloat32 converts len(dst) elements of type d at the start of src.
// Integers beyond 2^24 and F64 values round to the nearest float32.
// It fails when src is too short or the type has no float32 value (C64).
func (d DType) ToFloat32(dst []float32, src []byte) error {
	if len(src) < len(dst)*d.Size() {
		return fmt.Errorf("dtype: %d bytes hold fewer than %d elements of %s", len(src), len(dst), d)
	}
	switch d {
	case F64:
		each(dst, src, 8, func(b []byte) float32 { return float32(math.Float64frombits(le.Uint64(b))) })
	case F32:
		vec.FromF32(dst, src)
	case F16:
		vec.FromF16(dst, src)
	case BF16:
		vec.FromBF16(dst, src)
	case F8E4M3:
		lookUp(dst, src, &e4m3)
	case F8E5M2:
		lookUp(dst, src, &e5m2)
	case F8E8M0:
		lookUp(dst, src, &e8m0)
	case I64:
		each(dst, src, 8, func(b []byte) float32 { return float32(int64(le.Uint64(b))) })
	case I32:
		each(dst, src, 4, func(b []byte) float32 { return float32(int32(le.Uint32(b))) })
	case I16:
		each(dst, src, 2, func(b []byte) float32 { return float32(int16(le.Uint16(b))) })
	case I8:
		each(dst, src, 1, func(b []byte) float32 { return float32(int8(b[0])) })
	case U64:
		each(dst, src, 8, func(b []byte) float32 { return float32(le.Uint64(b)) })
	case U32:
		each(dst, src, 4, func(b []byte) float32 { return float32(le.Uint32(b)) })
	case U16:
		each(dst, src, 2, func(b []byte) float32 { return float32(le.Uint16(b)) })
	case U8, Bool:
		each(dst, src, 1, func(b []byte) float32 { return float32(b[0]) })
	default:
		return fmt.Errorf("dtype: %s has no float32 value", d)
	}
	return nil
}

// each converts elements of the given size one by one. It is small enough to be
// inlined, and load with it.
func each(dst []float32, src []byte, size int, load func(b []byte) float32) {
	for i := range dst {
		dst[i] = load(src[i*size:][:size])
	}
}

// lookUp converts elements of one byte.
func lookUp(dst []float32, src []byte, values *[256]float32) {
	for i, b := range src[:len(dst)] {
		dst[i] = values[b]
	}
}

// FromFloat32 writes src as type d to dst, rounding half to even. F64, F32,
// F16 and BF16 are the types that fettle writes computed weights in, F8E4M3 and
// F8E8M0 those of scales: values beyond their range become the nearest that is
// finite, of E8M0 the nearest power of two by its exponent. Others are an error,
// as is a dst that is too short.
func (d DType) FromFloat32(dst []byte, src []float32) error {
	if len(dst) < len(src)*d.Size() {
		return fmt.Errorf("dtype: %d bytes cannot hold %d elements of %s", len(dst), len(src), d)
	}
	switch d {
	case F64:
		for _, v := range src {
			le.PutUint64(dst, math.Float64bits(float64(v)))
			dst = dst[8:]
		}
	case F32:
		vec.ToF32(dst, src)
	case F16:
		vec.ToF16(dst, src)
	case BF16:
		vec.ToBF16(dst, src)
	case F8E4M3:
		for i, v := range src {
			dst[i] = toE4M3(v)
		}
	case F8E8M0:
		for i, v := range src {
			dst[i] = toE8M0(v)
		}
	default:
		return fmt.Errorf("dtype: cannot write float32 values as %s", d)
	}
	return nil
}

// Round returns v as it reads back after being stored as d.
func (d DType) Round(v float32) float32 {
	switch d {
	case F16:
		return float16.Fromfloat32(v).Float32()
	case BF16:
		var b [2]byte
		vec.ToBF16(b[:], []float32{v})
		return math.Float32frombits(uint32(le.Uint16(b[:])) << 16)
	case F8E4M3:
		return e4m3[toE4M3(v)]
	case F8E8M0:
		return e8m0[toE8M0(v)]
	default:
		return v
	}
}

// The values of the 8-bit types' codes.
var (
	e4m3 = codes(func(b byte) float32 { return f8ToFloat32(b, 4, 7, true) })
	e5m2 = codes(func(b byte) float32 { return f8ToFloat32(b, 5, 15, false) })
	e8m0 = codes(func(b byte) float32 {
		if b == 255 {
			return float32(math.NaN())
		}
		return float32(math.Ldexp(1, int(b)-127))
	})
)

func toE4M3(v float32) byte {
	code := E4M3.Nearest(float64(v))
	if code < 0 {
		return 0x80 | byte(-code)
	}
	return byte(code)
}

// toE8M0 returns the code of the power of two nearest to v by its exponent.
func toE8M0(v float32) byte {
	if !(v > 0) {
		return 0
	}
	fraction, exponent := math.Frexp(float64(v)) // fraction in [½, 1)
	if fraction < math.Sqrt2/2 {
		exponent--
	}
	return byte(min(max(exponent+127, 0), 254))
}

func codes(value func(b byte) float32) (values [256]float32) {
	for b := range values {
		values[b] = value(byte(b))
	}
	return values
}

// f8ToFloat32 decodes an 8-bit float with expBits exponent bits and the given
// bias. finite marks the E4M3FN variant, which has no infinities.
func f8ToFloat32(b byte, expBits, bias int, finite bool) float32 {
	manBits := 7 - expBits
	exp := int(b>>manBits) & (1<<expBits - 1)
	man := int(b) & (1<<manBits - 1)
	var v float64
	switch top := 1<<expBits - 1; {
	case exp == top && finite && man == 1<<manBits-1:
		v = math.NaN()
	case exp == top && !finite && man == 0:
		v = math.Inf(1)
	case exp == top && !finite:
		v = math.NaN()
	case exp == 0:
		v = math.Ldexp(float64(man), 1-bias-manBits)
	default:
		v = math.Ldexp(float64(man+1<<manBits), exp-bias-manBits)
	}
	if b&0x80 != 0 {
		v = -v
	}
	return float32(v)
}
