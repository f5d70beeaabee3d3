package vec

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/x448/float16"
)

// ulps returns how far got is from the real number want, in units of the last
// place of float32 at want.
func ulps(got float32, want float64) float64 {
	if want != want {
		if got != got {
			return 0
		}
		return math.Inf(1)
	}
	if float64(got) == want {
		return 0
	}
	if r := float32(want); math.IsInf(float64(r), 0) || math.IsInf(float64(got), 0) {
		if got == r || math.Abs(want) > math.MaxFloat32*(1-0x1p-22) {
			return 0
		}
		return math.Inf(1)
	}
	_, e := math.Frexp(want)
	return math.Abs(float64(got)-want) / math.Ldexp(1, max(e-24, -149))
}

func realNormal(x float64) float64 { return math.Erfc(-x/math.Sqrt2) / 2 }

// TestAccuracy looks at one float32 in 1,999 and at the neighbourhood of
// special places; with FETTLE_LONG=1 at one in 7.
func TestAccuracy(t *testing.T) {
	functions := []struct {
		name  string
		f     func(dst, x []float32)
		exact func(x float64) float64
		ulps  float64
		tail  float64 // below it, where not 0, only the absolute error counts
	}{
		{"exp", Exp, math.Exp, 1, 0},
		{"sigmoid", Sigmoid, func(x float64) float64 { return 1 / (1 + math.Exp(-x)) }, 3, 0},
		{"tanh", Tanh, math.Tanh, 2, 0},
		{"silu", SiLU, func(x float64) float64 { return x / (1 + math.Exp(-x)) }, 4, -86},
		{"gelu", GELU, func(x float64) float64 { return x * realNormal(x) }, 7, -12.9},
		{"gelu tanh", GELUTanh, func(x float64) float64 {
			return x / (1 + math.Exp(-2*math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
		}, 10, -2},
	}
	stride := uint32(1999)
	if os.Getenv("FETTLE_LONG") == "1" {
		stride = 7
	}
	const n = 4096
	x, dst := make([]float32, 0, n), make([]float32, n)
	for _, c := range functions {
		worst, at := 0.0, float32(0)
		flush := func() {
			c.f(dst[:len(x)], x)
			for i, v := range x {
				want := c.exact(float64(v))
				if c.tail != 0 && float64(v) < c.tail {
					if d := math.Abs(float64(dst[i]) - want); d > 3e-8 && !math.IsInf(float64(v), 0) {
						t.Fatalf("%s(%v) = %v, want %v", c.name, v, dst[i], want)
					}
					continue
				}
				if u := ulps(dst[i], want); u > worst {
					worst, at = u, v
				}
			}
			x = x[:0]
		}
		add := func(v float32) {
			if x = append(x, v); len(x) == n {
				flush()
			}
		}
		for b := uint64(0); b < 1<<32; b += uint64(stride) {
			v := math.Float32frombits(uint32(b))
			if math.Abs(float64(v)) < 200 && math.Abs(float64(v)) > 1e-12 || b%16 == 0 {
				add(v)
			}
		}
		for _, v := range []float32{0, 88.72284, -87.33655, -103.97208, 0.625, 1, -1, 15, -13, 0.34657359, 10} {
			for d := range uint32(4000) {
				add(math.Float32frombits(math.Float32bits(v) + d))
				add(math.Float32frombits(max(math.Float32bits(v), d) - d))
			}
		}
		flush()
		t.Logf("%s: %.2f ulp at %v", c.name, worst, at)
		if worst > c.ulps {
			t.Errorf("%s: %.2f ulp at %v, want at most %v", c.name, worst, at, c.ulps)
		}
	}
}

func TestExpAtBorders(t *testing.T) {
	inf := float32(math.Inf(1))
	for _, c := range [][2]float32{{0, 1}, {float32(math.Copysign(0, -1)), 1}, {89, inf}, {inf, inf}, {-104, 0}, {-inf, 0}, {1e30, inf}, {-1e30, 0}} {
		var got [1]float32
		for _, k := range paths() {
			with(k, func() { Exp(got[:], c[:1]) })
			if got[0] != c[1] {
				t.Errorf("%v: exp(%v) = %v, want %v", k, c[0], got[0], c[1])
			}
		}
	}
}

func TestExpSub64(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	x, dst := make([]float32, 5000), make([]float64, 5000)
	for i := range x {
		x[i] = float32(-760 + 1480*rng.Float64())
	}
	copy(x, []float32{0, -745.2, -708, -740, 709.78, 710, float32(math.Inf(1)), float32(math.Inf(-1)), 1})
	ExpSub64(dst, x, 0)
	for i, v := range x {
		want := math.Exp(float64(v))
		if d := math.Abs(dst[i] - want); d > 2.3e-16*1.5*want && d > 5e-324 && dst[i] != want {
			t.Errorf("exp(%v) = %v, want %v", v, dst[i], want)
		}
	}
}

func TestSoftmaxAndLogSumExp(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for _, n := range []int{1, 2, 10, 255, 256, 257, 32_000} {
		x, dst := make([]float32, n), make([]float32, n)
		for i := range x {
			x[i] = float32(5 * rng.NormFloat64())
		}
		top := float64(Max(x))
		sum := 0.0
		for _, v := range x {
			sum += math.Exp(float64(v) - top)
		}
		if got, want := LogSumExp(x), top+math.Log(sum); math.Abs(got-want) > 1e-13*(1+math.Abs(want)) {
			t.Errorf("%d: log sum exp %v, want %v", n, got, want)
		}
		Softmax(dst, x)
		for i, v := range x {
			if u := ulps(dst[i], math.Exp(float64(v-float32(top)))/sum); u > 5 {
				t.Fatalf("%d: softmax %v, off by %v ulp", n, dst[i], u)
			}
		}
	}
	x := []float32{1, float32(math.NaN()), 2}
	Softmax(x, x)
	if x[0] == x[0] || x[2] == x[2] {
		t.Errorf("softmax of a row with a NaN: %v", x)
	}
	none := float32(math.Inf(-1))
	if got := LogSumExp([]float32{none, none}); !math.IsInf(got, -1) {
		t.Errorf("log sum exp of −Inf alone: %v", got)
	}
}

// TestHalves holds all halves against x448/float16, as float32 and back.
func TestHalves(t *testing.T) {
	src, dst, back := make([]byte, 1<<17), make([]float32, 1<<16), make([]byte, 1<<17)
	for i := range dst {
		binary.LittleEndian.PutUint16(src[2*i:], uint16(i))
	}
	for _, k := range paths() {
		with(k, func() {
			FromF16(dst, src)
			ToF16(back, dst)
		})
		for i, v := range dst {
			want := float16.Frombits(uint16(i)).Float32()
			if bits(v) != bits(want) {
				t.Fatalf("%v: half %#x is %#x, want %#x", k, i, bits(v), bits(want))
			}
			h := binary.LittleEndian.Uint16(back[2*i:])
			if quiet := float16.Fromfloat32(want).Bits(); h != quiet || want == want && h != uint16(i) {
				t.Fatalf("%v: half %#x comes back as %#x", k, i, h)
			}
		}
		with(k, func() {
			FromBF16(dst, src)
			ToBF16(back, dst)
		})
		for i, v := range dst {
			if bits(v) != uint32(i)<<16 {
				t.Fatalf("%v: bfloat16 %#x is %#x", k, i, bits(v))
			}
			if h := binary.LittleEndian.Uint16(back[2*i:]); h != uint16(i) && (v == v || h != uint16(i)|0x40) {
				t.Fatalf("%v: bfloat16 %#x comes back as %#x", k, i, h)
			}
		}
	}
}

// TestToHalves holds float32 → half against x448/float16, and → bfloat16
// against its two neighbours: every half, the ties between neighbours, what
// lies beside them, and random bits.
func TestToHalves(t *testing.T) {
	var x []float32
	around := func(b uint32) {
		for _, d := range []uint32{0, 1, 2, ^uint32(0), ^uint32(1)} {
			x = append(x, float32from(b+d), float32from(b+d|1<<31))
		}
	}
	for h := range uint32(0x7c01) {
		v := float16.Frombits(uint16(h)).Float32()
		next := float16.Frombits(uint16(h + 1)).Float32()
		around(bits(v))
		if v < 65504 {
			around(bits((v + next) / 2))
		}
	}
	for _, b := range []uint32{0, 1, 0x477fe000, 0x477fefff, 0x477ff000, 0x477ff001, 0x7f7fffff, 0x7f800000, 0x7f800001, 0x7fc00000, 0x7fffffff, 0x33000000, 0x33000001, 0x337fffff, 0x7f7f7fff, 0x7f7f8000, 0x00007fff, 0x00008000, 0x00018000} {
		around(b)
	}
	rng := rand.New(rand.NewPCG(13, 14))
	for range 1 << 20 {
		x = append(x, float32from(rng.Uint32()), float32from(0x33000000+rng.Uint32N(0x15000000)))
	}
	half, brain := make([]byte, 2*len(x)), make([]byte, 2*len(x))
	for _, k := range paths() {
		with(k, func() {
			ToF16(half, x)
			ToBF16(brain, x)
		})
		for i, v := range x {
			if got, want := binary.LittleEndian.Uint16(half[2*i:]), float16.Fromfloat32(v).Bits(); got != want {
				t.Fatalf("%v: %#x is half %#x, want %#x", k, bits(v), got, want)
			}
			if got, want := binary.LittleEndian.Uint16(brain[2*i:]), nearestBrain(v); got != want {
				t.Fatalf("%v: %#x is bfloat16 %#x, want %#x", k, bits(v), got, want)
			}
		}
	}
}

// nearestBrain picks the nearer of the two bfloat16 around v, the even one on a
// tie; what is beyond the last counts as the next power of two.
func nearestBrain(v float32) uint16 {
	low := uint16(bits(v) >> 16)
	if v != v {
		return low | 0x40
	}
	value := func(h uint16) float64 {
		if h&0x7fff == 0x7f80 {
			return math.Copysign(0x1p128, float64(v))
		}
		return float64(float32from(uint32(h) << 16))
	}
	if math.IsInf(float64(v), 0) {
		return low
	}
	below, above := math.Abs(float64(v)-value(low)), math.Abs(value(low+1)-float64(v))
	if above < below || above == below && low&1 == 1 {
		return low + 1
	}
	return low
}
