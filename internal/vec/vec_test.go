package vec

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"
)

// paths returns the kernels that this machine has.
func paths() []kernels {
	all := []kernels{}
	for k := generic; k <= choose("", path); k++ {
		all = append(all, k)
	}
	return all
}

// with runs f on a path.
func with(k kernels, f func()) {
	defer func(old kernels) { path = old }(path)
	path = k
	f()
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		asked      string
		best, want kernels
	}{
		{"", avx512, avx512},
		{"", generic, generic},
		{"generic", avx512, generic},
		{"avx2", avx512, avx2},
		{"avx512", avx2, avx2},
		{"avx2", generic, generic},
		{"nonsense", avx2, avx2},
	} {
		if got := choose(c.asked, c.best); got != c.want {
			t.Errorf("%q on %v: %v, want %v", c.asked, c.best, got, c.want)
		}
	}
}

// TestForcedPath runs the package's tests again under each setting of the
// environment variable.
func TestForcedPath(t *testing.T) {
	if want := os.Getenv("FETTLE_KERNELS_TEST"); want != "" {
		if Path() != want {
			t.Fatalf("path %s, want %s", Path(), want)
		}
		return
	}
	for _, k := range paths() {
		cmd := exec.Command(os.Args[0], "-test.short", "-test.run", "ForcedPath|Worked|Twin")
		cmd.Env = append(os.Environ(), "FETTLE_KERNELS="+k.String(), "FETTLE_KERNELS_TEST="+k.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", k, err, out)
		}
	}
}

// input is what an operation computes with; its slices have n elements.
type input struct {
	n        int
	x, y     []float32
	x64, y64 []float64
	a, b     float32
	codes    []int8
}

// operations run every function of the package on an input. mem gives memory
// whose neighbours may not be touched.
var operations = []struct {
	name string
	run  func(in *input, mem *memory) any
}{
	{"Dot", func(in *input, _ *memory) any { return []float32{Dot(in.x, in.y)} }},
	{"DotWide", func(in *input, _ *memory) any { return []float64{DotWide(in.x, in.y)} }},
	{"Dot64", func(in *input, _ *memory) any { return []float64{Dot64(in.x64, in.y64)} }},
	{"SumSquares", func(in *input, _ *memory) any { return []float64{SumSquares(in.x)} }},
	{"Sum", func(in *input, _ *memory) any { return []float64{Sum(in.x)} }},
	{"Sum64", func(in *input, _ *memory) any { return []float64{Sum64(in.x64)} }},
	{"Max", func(in *input, _ *memory) any { return []float32{Max(in.x)} }},
	{"Argmax", func(in *input, _ *memory) any { return []float64{float64(Argmax(in.x))} }},
	{"LogSumExp", func(in *input, _ *memory) any { return []float64{LogSumExp(in.x)} }},
	{"Axpy", func(in *input, mem *memory) any {
		y := mem.float32s(in.n)
		copy(y, in.y)
		Axpy(in.a, in.x, y)
		return y
	}},
	{"Axpy64", func(in *input, mem *memory) any {
		y := mem.float64s(in.n)
		copy(y, in.y64)
		Axpy64(float64(in.a), in.x64, y)
		return y
	}},
	elementwise("Add", func(dst []float32, in *input) { Add(dst, in.x, in.y) }),
	elementwise("Mul", func(dst []float32, in *input) { Mul(dst, in.x, in.y) }),
	elementwise("Scale", func(dst []float32, in *input) { Scale(dst, in.x, in.a) }),
	elementwise("ScaleShift", func(dst []float32, in *input) { ScaleShift(dst, in.x, in.a, in.b) }),
	elementwise("ReLU", func(dst []float32, in *input) { ReLU(dst, in.x) }),
	elementwise("Exp", func(dst []float32, in *input) { Exp(dst, in.x) }),
	elementwise("Softmax", func(dst []float32, in *input) { Softmax(dst, in.x) }),
	elementwise("Sigmoid", func(dst []float32, in *input) { Sigmoid(dst, in.x) }),
	elementwise("SiLU", func(dst []float32, in *input) { SiLU(dst, in.x) }),
	elementwise("Tanh", func(dst []float32, in *input) { Tanh(dst, in.x) }),
	elementwise("GELU", func(dst []float32, in *input) { GELU(dst, in.x) }),
	elementwise("GELUTanh", func(dst []float32, in *input) { GELUTanh(dst, in.x) }),
	elementwise("FakeQuantize", func(dst []float32, in *input) { FakeQuantize(dst, in.x, in.step(), 3, -8, 7) }),
	{"ExpSub64", func(in *input, mem *memory) any {
		dst := mem.float64s(in.n)
		ExpSub64(dst, in.x, float64(in.b))
		return dst
	}},
	{"Round", func(in *input, mem *memory) any {
		dst := mem.int8s(in.n)
		Round(dst, in.x, in.step(), 3, -8, 7)
		return dst
	}},
	{"Round64", func(in *input, mem *memory) any {
		dst := mem.int8s(in.n)
		Round64(dst, in.x64, in.step(), -128, -128, 127)
		return dst
	}},
	{"RangeError", func(in *input, _ *memory) any {
		return []float64{RangeError(in.x64, in.step(), 3, -8, 7, 2.4)}
	}},
	{"Dequantize", func(in *input, mem *memory) any {
		dst := mem.float32s(in.n)
		Dequantize(dst, in.codes, in.step(), -128)
		return dst
	}},
	{"FromF16", func(in *input, mem *memory) any {
		dst := mem.float32s(in.n)
		FromF16(dst, in.bytes(mem))
		return dst
	}},
	{"FromBF16", func(in *input, mem *memory) any {
		dst := mem.float32s(in.n)
		FromBF16(dst, in.bytes(mem))
		return dst
	}},
	{"ToF16", func(in *input, mem *memory) any {
		dst := mem.take(2 * in.n)
		ToF16(dst, in.x)
		return dst
	}},
	{"ToBF16", func(in *input, mem *memory) any {
		dst := mem.take(2 * in.n)
		ToBF16(dst, in.x)
		return dst
	}},
	{"F32", func(in *input, mem *memory) any {
		b, dst := mem.take(4*in.n), mem.float32s(in.n)
		ToF32(b, in.x)
		FromF32(dst, b)
		return dst
	}},
}

type operation = struct {
	name string
	run  func(in *input, mem *memory) any
}

// elementwise runs f in place when the input's length is odd.
func elementwise(name string, f func(dst []float32, in *input)) operation {
	return operation{name, func(in *input, mem *memory) any {
		dst := mem.float32s(in.n)
		same := *in
		if in.n%2 == 1 {
			copy(dst, in.x)
			same.x = dst
		}
		f(dst, &same)
		return dst
	}}
}

// step is a scale from a.
func (in *input) step() float32 { return float32(math.Abs(float64(in.a))) + 0.01 }

func (in *input) bytes(mem *memory) []byte {
	b := mem.take(2 * in.n)
	for i, v := range in.x {
		binary.LittleEndian.PutUint16(b[2*i:], uint16(math.Float32bits(v)>>7))
	}
	return b
}

// newInput returns numbers of several sizes; special adds those that arithmetic
// treats in a way of their own.
func newInput(rng *rand.Rand, mem *memory, n int, special bool) *input {
	in := &input{n: n, a: float32(rng.NormFloat64()), b: float32(rng.NormFloat64())}
	take := []func(){
		func() { in.x = mem.float32s(n) },
		func() { in.y = mem.float32s(n) },
		func() { in.x64 = mem.float64s(n) },
		func() { in.y64 = mem.float64s(n) },
		func() { in.codes = mem.int8s(n) },
	}
	for _, i := range rng.Perm(len(take)) { // the first lies beside the guard
		take[i]()
	}
	inf := float32(math.Inf(1))
	odd := []float32{
		0, float32(math.Copysign(0, -1)), inf, -inf, float32(math.NaN()), float32from(0x7f812345), float32from(0xffc00007),
		1e-40, -1e-45, 3e38, -3e38, 88.7, 89, -87.5, -103, -104, 1e20, 0.5, 1.5, 2.5, -0.5, 65504, 65520, 6e-8,
	}
	sigma := math.Exp(3 * rng.NormFloat64())
	for i := range n {
		in.x[i], in.y[i] = float32(sigma*rng.NormFloat64()), float32(rng.NormFloat64())
		in.x64[i], in.y64[i] = sigma*rng.NormFloat64(), rng.NormFloat64()
		in.codes[i] = int8(rng.IntN(256))
		if special && rng.IntN(1+n/2) == 0 {
			in.x[i], in.y[i] = odd[rng.IntN(len(odd))], odd[rng.IntN(len(odd))]
			in.x64[i] = float64(odd[rng.IntN(len(odd))])
		}
	}
	return in
}

// number returns the bits of a result's element, all NaNs the same if asked.
func number(result any, oneNaN bool) []uint64 {
	var all []uint64
	switch r := result.(type) {
	case []float32:
		for _, v := range r {
			if oneNaN && v != v {
				v = float32(math.NaN())
			}
			all = append(all, uint64(math.Float32bits(v)))
		}
	case []float64:
		for _, v := range r {
			if oneNaN && v != v {
				v = math.NaN()
			}
			all = append(all, math.Float64bits(v))
		}
	case []int8:
		for _, v := range r {
			all = append(all, uint64(uint8(v)))
		}
	case []byte:
		for _, v := range r {
			all = append(all, uint64(v))
		}
	}
	return all
}

// compare runs all operations on all paths: the bytes of the twin, NaNs of one
// kind on both assembly paths. in lies in mem, results in out.
func compare(t *testing.T, in *input, mem, out *memory) {
	t.Helper()
	for _, op := range operations {
		var twin, first []uint64
		for _, k := range paths() {
			with(k, func() {
				result := op.run(in, out)
				exact, got := number(result, false), number(result, true)
				for _, m := range []*memory{mem, out} {
					if err := m.check(); err != nil {
						t.Fatalf("%s, %v, %d elements: %v", op.name, k, in.n, err)
					}
				}
				out.release([2]int{})
				if k == generic {
					twin = got
				} else if !slices.Equal(got, twin) {
					t.Fatalf("%s, %v, %d elements: %s", op.name, k, in.n, difference(got, twin))
				}
				if k == avx2 {
					first = exact
				} else if k == avx512 && !slices.Equal(exact, first) {
					t.Fatalf("%s, %d elements, AVX-512 and AVX2: %s", op.name, in.n, difference(exact, first))
				}
			})
		}
	}
}

func difference(got, want []uint64) string {
	for i := range got {
		if got[i] != want[i] {
			return fmt.Sprintf("element %d is %#x, want %#x", i, got[i], want[i])
		}
	}
	return "other lengths"
}

// TestTwin holds the paths equal on all lengths up to 300 and some larger, at
// both ends of guarded memory.
func TestTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	step := 1
	if testing.Short() {
		step = 7
	}
	for _, atEnd := range []bool{true, false} {
		mem, out := newMemory(t, 1<<18, atEnd), newMemory(t, 1<<18, atEnd)
		for n := 0; n <= 300; n += step {
			for _, special := range []bool{false, true} {
				mark := mem.mark()
				compare(t, newInput(rng, mem, n, special), mem, out)
				mem.release(mark)
			}
		}
		for _, n := range []int{511, 512, 513, 1000, 1999} {
			mark := mem.mark()
			compare(t, newInput(rng, mem, n, true), mem, out)
			mem.release(mark)
		}
	}
}

func FuzzTwin(f *testing.F) {
	f.Add([]byte{}, float32(1), float32(2))
	f.Add(make([]byte, 100), float32(0.1), float32(-3))
	f.Fuzz(func(t *testing.T, data []byte, a, b float32) {
		n := min(len(data)/4, 4000)
		mem, out := newMemory(t, 1<<18, n%2 == 0), newMemory(t, 1<<18, n%2 == 0)
		in := newInput(rand.New(rand.NewPCG(3, 4)), mem, n, false)
		in.a, in.b = a, b
		for i := range n {
			in.x[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
			in.x64[i] = float64(in.x[i]) * 1.0000001
		}
		compare(t, in, mem, out)
	})
}

func TestWorked(t *testing.T) {
	x := []float32{1, -2, 3, 0.5}
	y := []float32{2, 1, -1, 4}
	if got := Dot(x, y); got != -1 {
		t.Errorf("dot %v", got)
	}
	if got := DotWide(x, y); got != -1 {
		t.Errorf("dot %v", got)
	}
	if got := SumSquares(x); got != 14.25 {
		t.Errorf("sum of squares %v", got)
	}
	if got := Sum(x); got != 2.5 {
		t.Errorf("sum %v", got)
	}
	dst := make([]float32, 4)
	ScaleShift(dst, x, 2, 1)
	if !slices.Equal(dst, []float32{3, -3, 7, 2}) {
		t.Errorf("scale and shift %v", dst)
	}
	Axpy(-1, x, dst)
	if !slices.Equal(dst, []float32{2, -1, 4, 1.5}) {
		t.Errorf("axpy %v", dst)
	}
	codes := make([]int8, 4)
	Round(codes, []float32{0.25, 0.75, -9, 9}, 0.5, 1, -4, 3)
	if !slices.Equal(codes, []int8{1, 3, -4, 3}) {
		t.Errorf("codes %v", codes)
	}
	Dequantize(dst, codes, 0.5, 1)
	if !slices.Equal(dst, []float32{0, 1, -2.5, 1}) {
		t.Errorf("values %v", dst)
	}
	Softmax(dst, []float32{0, 0, float32(math.Inf(-1)), 0})
	if third := float32(1) / 3; !slices.Equal(dst, []float32{third, third, 0, third}) {
		t.Errorf("softmax %v", dst)
	}
	if got := LogSumExp([]float32{1000, 1000}); got != 1000+math.Ln2 {
		t.Errorf("log sum exp %v", got)
	}
}

func TestMaxAndArgmax(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, k := range paths() {
		with(k, func() {
			if !math.IsInf(float64(Max(nil)), -1) || Argmax(nil) != -1 || !math.IsInf(LogSumExp(nil), -1) {
				t.Errorf("%v: empty: %v at %d", k, Max(nil), Argmax(nil))
			}
			for n := 1; n < 200; n += 3 {
				x := make([]float32, n)
				for i := range x {
					x[i] = -inf
				}
				if Argmax(x) != 0 || Max(x) != -inf {
					t.Fatalf("%v: %d times −Inf: %v at %d", k, n, Max(x), Argmax(x))
				}
				for i := range x {
					x[i] = -5
				}
				for _, at := range []int{n - 1, n / 2, 0} { // the first of equal ones
					x[at] = -1
					if Argmax(x) != at || Max(x) != -1 {
						t.Fatalf("%v: %d: %v at %d, want −1 at %d", k, n, Max(x), Argmax(x), at)
					}
				}
				x[0] = inf
				x[n/2] = nan
				x[n-1] = nan
				if Argmax(x) != n/2 || Max(x) == Max(x) {
					t.Fatalf("%v: %d: %v at %d, want NaN at %d", k, n, Max(x), Argmax(x), n/2)
				}
			}
		})
	}
}

// TestSums holds the sums against float64 and big numbers of terms.
func TestSums(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, n := range []int{1, 10, 100, 5000, 100_003} {
		x, y := make([]float32, n), make([]float32, n)
		var dot, size, sum, squares float64
		for i := range x {
			x[i], y[i] = float32(rng.NormFloat64()), float32(rng.NormFloat64())
			p := float64(x[i]) * float64(y[i])
			dot += p
			size += math.Abs(p)
			sum += float64(x[i])
			squares += float64(x[i]) * float64(x[i])
		}
		bound := size * 0x1p-24 * (8 + float64(n)/64)
		if d := math.Abs(float64(Dot(x, y)) - dot); d > bound {
			t.Errorf("%d: dot is off by %g, bound %g", n, d, bound)
		}
		for name, d := range map[string]float64{
			"dot": DotWide(x, y) - dot, "sum": Sum(x) - sum, "squares": SumSquares(x) - squares,
		} {
			if math.Abs(d) > 1e-12*float64(n) {
				t.Errorf("%d: %s is off by %g", n, name, d)
			}
		}
	}
}

// TestRoundDefinition holds the codes against quantize's formula on values near
// ties.
func TestRoundDefinition(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	const n = 4096
	x, x64 := make([]float32, n), make([]float64, n)
	codes, codes64 := make([]int8, n), make([]int8, n)
	for range 50 {
		scale := float32(math.Exp(4 * rng.NormFloat64()))
		zero := rng.IntN(200) - 100
		lo, hi := [][2]int{{-8, 7}, {-128, 127}, {-2, 1}, {0, 1}}[rng.IntN(4)][0], 0
		hi = -lo - 1
		if lo == 0 {
			hi = 1
		}
		for i := range x {
			x[i] = float32((float64(rng.IntN(600)-300) / 2) * float64(scale))
			x64[i] = math.Nextafter(float64(x[i]), float64(rng.IntN(3)-1)*math.Inf(1))
			if rng.IntN(3) == 0 {
				x64[i] = float64(x[i])
			}
		}
		want := func(w float64) int8 {
			q := math.RoundToEven(w/float64(scale)) + float64(zero)
			return int8(min(max(q, float64(lo)), float64(hi)))
		}
		for _, k := range paths() {
			with(k, func() {
				Round(codes, x, scale, zero, lo, hi)
				Round64(codes64, x64, scale, zero, lo, hi)
			})
			for i := range x {
				if x64[i] != x64[i] {
					continue
				}
				if codes[i] != want(float64(x[i])) || codes64[i] != want(x64[i]) {
					t.Fatalf("%v: %v, %v with scale %v zero %d: codes %d, %d, want %d, %d", k, x[i], x64[i], scale, zero, codes[i], codes64[i], want(float64(x[i])), want(x64[i]))
				}
			}
		}
	}
}

// TestRangeError holds the sum against quantize's formula.
func TestRangeError(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 16))
	for _, power := range []float64{1.5, 2, 2.4} {
		for range 200 {
			x := make([]float64, rng.IntN(100))
			scale, zero := float32(math.Exp(5*rng.NormFloat64())), rng.IntN(16)-8
			want := 0.0
			for i := range x {
				x[i] = 5 * float64(scale) * rng.NormFloat64() * math.Pow(2, float64(-rng.IntN(40)))
				if rng.IntN(9) == 0 {
					x[i] = 0
				}
				q := math.RoundToEven(x[i]/float64(scale)) + float64(zero)
				code := int(min(max(q, -8), 7))
				want += math.Pow(math.Abs(x[i]-float64(scale*float32(code-zero))), power)
			}
			for _, k := range paths() {
				with(k, func() {
					if got := RangeError(x, scale, zero, -8, 7, power); math.Abs(got-want) > 2e-14*want {
						t.Errorf("%v: %d weights, power %v: %v, want %v", k, len(x), power, got, want)
					}
				})
			}
		}
	}
}
