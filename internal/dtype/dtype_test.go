package dtype

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/x448/float16"
)

func all() []DType {
	var types []DType
	for d := F64; int(d) < len(table); d++ {
		types = append(types, d)
	}
	return types
}

func TestNames(t *testing.T) {
	for _, d := range all() {
		if got, err := Parse(d.String()); err != nil || got != d {
			t.Errorf("%s parses as %v, %v", d, got, err)
		}
		if d.Size() < 1 || d.Size() > 8 {
			t.Errorf("%s has %d bytes", d, d.Size())
		}
	}
	for _, name := range []string{"", "f32", "F128", "INVALID"} {
		if d, err := Parse(name); err == nil {
			t.Errorf("%q parses as %v", name, d)
		}
	}
	if got := DType(200); got.String() != "DType(200)" || got.Size() != 0 || got.IsFloat() {
		t.Errorf("%v, %d bytes", got, got.Size())
	}
	for _, d := range []DType{F64, F32, F16, BF16, F8E4M3, F8E5M2, F8E8M0} {
		if !d.IsFloat() {
			t.Errorf("%s is no float", d)
		}
	}
	for _, d := range []DType{Invalid, I64, U8, Bool, C64} {
		if d.IsFloat() {
			t.Errorf("%s is a float", d)
		}
	}
}

// TestEightBits derives all codes from the definitions in OCP's "8-bit floating
// point specification" and "microscaling formats": (−1)ˢ·2^(e−bias)·1.m, or
// 2^(1−bias)·0.m where e is 0.
func TestEightBits(t *testing.T) {
	src := make([]byte, 256)
	for i := range src {
		src[i] = byte(i)
	}
	nan, inf := math.NaN(), math.Inf(1)
	for _, c := range []struct {
		d             DType
		mantissa      int
		bias          int
		special       map[int]float64 // by the code without its sign
		largest, tiny float64
	}{
		{F8E4M3, 3, 7, map[int]float64{0x7f: nan}, 448, 0x1p-9},
		{F8E5M2, 2, 15, map[int]float64{0x7c: inf, 0x7d: nan, 0x7e: nan, 0x7f: nan}, 57344, 0x1p-16},
	} {
		dst := make([]float32, 256)
		if err := c.d.ToFloat32(dst, src); err != nil {
			t.Fatal(err)
		}
		largest, tiny := 0.0, inf
		for i, got := range dst {
			code := i & 0x7f
			exponent, m := code>>c.mantissa, code&(1<<c.mantissa-1)
			want := (1 + float64(m)/float64(int(1)<<c.mantissa)) * math.Pow(2, float64(exponent-c.bias))
			if exponent == 0 {
				want = float64(m) / float64(int(1)<<c.mantissa) * math.Pow(2, float64(1-c.bias))
			}
			if v, ok := c.special[code]; ok {
				want = v
			} else if code > 0 {
				largest, tiny = max(largest, float64(got)*math.Copysign(1, float64(got))), min(tiny, math.Abs(float64(got)))
			}
			if i >= 0x80 {
				want = -want
			}
			if want != want {
				if got == got {
					t.Errorf("%s %#x is %v, want NaN", c.d, i, got)
				}
			} else if math.Float32bits(got) != math.Float32bits(float32(want)) {
				t.Errorf("%s %#x is %v, want %v", c.d, i, got, want)
			}
		}
		if largest != c.largest || tiny != c.tiny {
			t.Errorf("%s spans %v to %v, want %v to %v", c.d, tiny, largest, c.tiny, c.largest)
		}
	}
	dst := make([]float32, 256)
	if err := F8E8M0.ToFloat32(dst, src); err != nil {
		t.Fatal(err)
	}
	for i, got := range dst[:255] {
		if want := math.Pow(2, float64(i-127)); float64(got) != want {
			t.Errorf("F8_E8M0 %#x is %v, want %v", i, got, want)
		}
	}
	if dst[255] == dst[255] {
		t.Errorf("F8_E8M0 0xff is %v, want NaN", dst[255])
	}
}

// TestToFloat32 holds each type against a conversion of one element, at odd
// offsets and lengths; src may be longer than dst needs.
func TestToFloat32(t *testing.T) {
	le := binary.LittleEndian
	one := map[DType]func(b []byte) float32{
		F64:  func(b []byte) float32 { return float32(math.Float64frombits(le.Uint64(b))) },
		F32:  func(b []byte) float32 { return math.Float32frombits(le.Uint32(b)) },
		F16:  func(b []byte) float32 { return float16.Frombits(le.Uint16(b)).Float32() },
		BF16: func(b []byte) float32 { return math.Float32frombits(uint32(le.Uint16(b)) << 16) },
		I64:  func(b []byte) float32 { return float32(int64(le.Uint64(b))) },
		I32:  func(b []byte) float32 { return float32(int32(le.Uint32(b))) },
		I16:  func(b []byte) float32 { return float32(int16(le.Uint16(b))) },
		I8:   func(b []byte) float32 { return float32(int8(b[0])) },
		U64:  func(b []byte) float32 { return float32(le.Uint64(b)) },
		U32:  func(b []byte) float32 { return float32(le.Uint32(b)) },
		U16:  func(b []byte) float32 { return float32(le.Uint16(b)) },
		U8:   func(b []byte) float32 { return float32(b[0]) },
		Bool: func(b []byte) float32 { return float32(b[0]) },
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for d, convert := range one {
		for n := range 70 {
			src := make([]byte, n*d.Size()+8)
			for i := range src {
				src[i] = byte(rng.Uint32())
			}
			src = src[n%8:]
			dst := make([]float32, n+1)
			dst[n] = 42
			if err := d.ToFloat32(dst[:n], src); err != nil {
				t.Fatal(err)
			}
			for i, got := range dst[:n] {
				want := convert(src[i*d.Size():])
				if math.Float32bits(got) != math.Float32bits(want) && (got == got || want == want) {
					t.Fatalf("%s: element %d of %d is %v, want %v", d, i, n, got, want)
				}
			}
			if dst[n] != 42 {
				t.Fatalf("%s: wrote beyond %d elements", d, n)
			}
		}
	}
	var v [3]float32
	if err := I64.ToFloat32(v[:1], []byte{0, 0, 0, 0, 0, 0, 0, 0x80}); err != nil || v[0] != -0x1p63 {
		t.Errorf("the least int64 is %v, %v", v[0], err)
	}
	if err := I32.ToFloat32(v[:2], []byte{1, 0, 0, 1, 3, 0, 0, 1}); err != nil || v[0] != 1<<24 || v[1] != 1<<24+4 {
		t.Errorf("2²⁴+1 and 2²⁴+3 are %v, %v: want half to even", v[:2], err)
	}
}

// TestRoundTrip writes and reads back: what comes back is Round's value, and is
// stable.
func TestRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	x := []float32{0, float32(math.Copysign(0, -1)), 1, -2.5, 65504, 65519, 65520, 1e-7, -1e-8, 3e38, float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.NaN()), 1e-45}
	for range 1000 {
		x = append(x, math.Float32frombits(rng.Uint32()))
	}
	for _, d := range []DType{F64, F32, F16, BF16} {
		b := make([]byte, len(x)*d.Size()+3)
		b[len(b)-3] = 0xee
		back := make([]float32, len(x))
		if err := d.FromFloat32(b, x); err != nil {
			t.Fatal(err)
		}
		if b[len(b)-3] != 0xee {
			t.Errorf("%s: wrote beyond %d elements", d, len(x))
		}
		if err := d.ToFloat32(back, b); err != nil {
			t.Fatal(err)
		}
		for i, v := range x {
			got, want := back[i], d.Round(v)
			if v != v {
				if got == got || want == want {
					t.Errorf("%s: NaN %#x comes back as %v, rounds to %v", d, math.Float32bits(v), got, want)
				}
				continue
			}
			if math.Float32bits(got) != math.Float32bits(want) || d.Round(want) != want {
				t.Errorf("%s: %v comes back as %v, rounds to %v", d, v, got, want)
			}
		}
	}
	if got := F16.Round(65520); !math.IsInf(float64(got), 1) {
		t.Errorf("65520 as F16 is %v", got)
	}
	if got := BF16.Round(1 + 0x1p-8); got != 1 {
		t.Errorf("a tie as BF16 is %v", got)
	}
}

// TestWriteEightBits: every value of the scales' types both ways, rounding, and
// what lies beyond the range.
func TestWriteEightBits(t *testing.T) {
	for b := range 256 {
		for _, d := range []DType{F8E4M3, F8E8M0} {
			value, back := make([]float32, 1), make([]byte, 1)
			if err := d.ToFloat32(value, []byte{byte(b)}); err != nil {
				t.Fatal(err)
			}
			if v := value[0]; v != v || v == 0 {
				continue
			}
			if err := d.FromFloat32(back, value); err != nil || back[0] != byte(b) || d.Round(value[0]) != value[0] {
				t.Errorf("%s %#x is %v, written as %#x", d, b, value[0], back[0])
			}
		}
	}
	for v, want := range map[float32]float32{0: 0, 1.0625: 1, 1.1875: 1.25, 460: 448, 1e9: 448, -1e9: -448, 0x1p-10: 0, 0x1.8p-10: 0x1p-9} {
		if got := F8E4M3.Round(v); got != want {
			t.Errorf("%v becomes %v, want %v", v, got, want)
		}
	}
	for v, want := range map[float32]float32{1: 1, 1.41: 1, 1.42: 2, 3: 4, math.MaxFloat32: 0x1p127, 0x1p-149: 0x1p-127, 0: 0x1p-127} {
		if got := F8E8M0.Round(v); got != want {
			t.Errorf("%v becomes %v, want %v", v, got, want)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, d := range all() {
		if d.Size() == 0 {
			continue
		}
		dst := make([]float32, 3)
		if err := d.ToFloat32(dst, make([]byte, 3*d.Size()-1)); err == nil || !strings.Contains(err.Error(), d.String()) {
			t.Errorf("%s from too few bytes: %v", d, err)
		}
		err := d.FromFloat32(make([]byte, 3*d.Size()-1), dst)
		if err == nil {
			t.Errorf("%s to too few bytes: no error", d)
		}
		err = d.FromFloat32(make([]byte, 3*d.Size()), dst)
		if writable := d == F64 || d == F32 || d == F16 || d == BF16 || d == F8E4M3 || d == F8E8M0; writable != (err == nil) {
			t.Errorf("%s: writing gives %v", d, err)
		}
	}
	for _, d := range []DType{C64, Invalid, 99} {
		if err := d.ToFloat32(make([]float32, 1), make([]byte, 100)); err == nil {
			t.Errorf("%s becomes float32", d)
		}
		if err := d.FromFloat32(make([]byte, 100), make([]float32, 1)); err == nil {
			t.Errorf("float32 is written as %s", d)
		}
	}
}

func BenchmarkToFloat32(b *testing.B) {
	dst := make([]float32, 1<<20)
	for _, d := range all()[:len(all())-1] {
		src := make([]byte, len(dst)*d.Size())
		b.Run(fmt.Sprint(d), func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			for b.Loop() {
				if err := d.ToFloat32(dst, src); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkFromFloat32(b *testing.B) {
	src := make([]float32, 1<<20)
	for _, d := range []DType{F64, F32, F16, BF16} {
		dst := make([]byte, len(src)*d.Size())
		b.Run(fmt.Sprint(d), func(b *testing.B) {
			b.SetBytes(int64(len(dst)))
			for b.Loop() {
				if err := d.FromFloat32(dst, src); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
