package blas

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/pool"
)

// eachSet runs a test with every set of kernels that the processor has.
func eachSet(t *testing.T, f func(t *testing.T)) {
	was := use
	defer func() { use = was }()
	for _, s := range available() {
		use = s
		t.Run(s.name, f)
	}
}

// guarded returns a matrix with an odd stride whose data ends with its last
// element, inside a buffer whose other numbers are NaN; intact says whether
// they still are.
func guarded[T number](rng *rand.Rand, rows, cols int) (m matrix[T], intact func() bool) {
	stride := max(1, cols+rng.IntN(4))
	offset := rng.IntN(20)
	size := 0
	if rows > 0 && cols > 0 {
		size = (rows-1)*stride + cols
	}
	buf := make([]T, offset+size+64)
	for i := range buf {
		buf[i] = T(math.NaN())
	}
	m = matrix[T]{Rows: rows, Cols: cols, Stride: stride, Data: buf[offset : offset+size : offset+size]}
	for i := range rows {
		for j := range cols {
			m.Data[i*stride+j] = T(rng.NormFloat64())
		}
	}
	return m, func() bool {
		for i, v := range buf {
			at := i - offset
			if inside := at >= 0 && at < size && at%stride < cols; !inside && v == v {
				return false
			}
		}
		return true
	}
}

func (m matrix[T]) op(t Transpose, i, j int) float64 {
	if t == Trans {
		i, j = j, i
	}
	return float64(m.Data[i*m.Stride+j])
}

// clone copies what is in the matrix.
func (m matrix[T]) clone() matrix[T] {
	m.Data = slices.Clone(m.Data)
	return m
}

// bits returns the elements' bits, without what lies between rows.
func (m matrix[T]) bits() []uint64 {
	var b []uint64
	for i := range m.Rows {
		for j := range m.Cols {
			b = append(b, math.Float64bits(float64(m.Data[i*m.Stride+j])))
		}
	}
	return b
}

func randomSize(rng *rand.Rand, most int) int {
	if rng.IntN(3) == 0 {
		return rng.IntN(min(most, 20))
	}
	return rng.IntN(most)
}

// checkGemm compares one random product with its definition in float64.
func checkGemm[T number](t *testing.T, rng *rand.Rand, m, n, k int, workers int) {
	t.Helper()
	eps := 0x1p-23
	if typeIndex[T]() == 1 {
		eps = 0x1p-52
	}
	tA, tB := []Transpose{NoTrans, Trans}[rng.IntN(2)], []Transpose{NoTrans, Trans}[rng.IntN(2)]
	alpha, beta := []T{1, -1, 0, 0.3}[rng.IntN(4)], []T{0, 1, -0.7}[rng.IntN(3)]
	ar, ac, br, bc := m, k, k, n
	if tA == Trans {
		ar, ac = k, m
	}
	if tB == Trans {
		br, bc = n, k
	}
	a, _ := guarded[T](rng, ar, ac)
	b, _ := guarded[T](rng, br, bc)
	c, intact := guarded[T](rng, m, n)
	before := c.clone()
	if beta == 0 {
		for i := range c.Data {
			c.Data[i] = T(math.NaN())
		}
	}
	if err := gemm(context.Background(), pool.New(workers), tA, tB, alpha, a, b, beta, c); err != nil {
		t.Fatal(err)
	}
	what := fmt.Sprintf("%d×%d×%d %c%c %v %v", m, n, k, tA, tB, alpha, beta)
	if !intact() {
		t.Fatalf("%s: wrote outside C", what)
	}
	for i := range m {
		for j := range n {
			want, scale := 0.0, 1.0
			if beta != 0 {
				want = float64(beta) * before.op(NoTrans, i, j)
				scale += math.Abs(want)
			}
			for l := range k {
				p := float64(alpha) * a.op(tA, i, l) * b.op(tB, l, j)
				want += p
				scale += math.Abs(p)
			}
			if got := c.op(NoTrans, i, j); !(math.Abs(got-want) <= eps*scale*math.Sqrt(float64(k+4))) {
				t.Fatalf("%s: element (%d,%d) is %v, want %v", what, i, j, got, want)
			}
		}
	}
}

func TestProductsOfRandomShapes(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(7, 8))
		for range 120 {
			m, n, k := randomSize(rng, 120), randomSize(rng, 150), randomSize(rng, 130)
			checkGemm[float32](t, rng, m, n, k, 1+rng.IntN(3))
			checkGemm[float64](t, rng, m, n, k, 1+rng.IntN(3))
		}
		for range 6 { // several blocks of k, several slabs
			checkGemm[float32](t, rng, 1+rng.IntN(300), 1+rng.IntN(300), 350+rng.IntN(500), 2)
			checkGemm[float64](t, rng, 1+rng.IntN(300), 1+rng.IntN(300), 200+rng.IntN(400), 2)
		}
	})
}

func TestSeveralChunksOfTheSharedSide(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(9, 9))
		n := sharedSize/384 + 100
		checkGemm[float32](t, rng, 9, n, 8, 2)
		checkGemm[float32](t, rng, n, 9, 8, 2)
	})
}

// gemmBits computes one product with alpha and beta in every set, for given
// numbers of workers, and returns the bits of each.
func TestSameBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(10, 11))
	for range 25 {
		m, n, k := 1+randomSize(rng, 130), 1+randomSize(rng, 200), 1+rng.IntN(900)
		for _, tB := range []Transpose{NoTrans, Trans} {
			a, _ := guarded[float32](rng, m, k)
			b, _ := guarded[float32](rng, k, n)
			if tB == Trans {
				b, _ = guarded[float32](rng, n, k)
			}
			c, _ := guarded[float32](rng, m, n)
			alpha, beta := []float32{1, 0.3}[rng.IntN(2)], []float32{0, 1, 0.7}[rng.IntN(3)]
			bySet := map[string][]uint64{}
			eachSet(t, func(t *testing.T) {
				run := func(workers int) matrix[float32] {
					d := c.clone()
					if err := gemm(context.Background(), pool.New(workers), NoTrans, tB, alpha, a, b, beta, d); err != nil {
						t.Fatal(err)
					}
					return d
				}
				one := run(1)
				bySet[arithmetic(use)+use.name] = one.bits()
				if !slices.Equal(one.bits(), run(3).bits()) {
					t.Errorf("%d×%d×%d: three workers give other bytes than one", m, n, k)
				}
				// A row and a column alone.
				i, j := rng.IntN(m), rng.IntN(n)
				row := c.clone()
				row.Data, row.Rows = row.Data[i*row.Stride:], 1
				if err := gemm(context.Background(), nil, NoTrans, tB, alpha, matrix[float32]{1, k, k, a.Data[i*a.Stride:][:k]}, b, beta, row); err != nil {
					t.Fatal(err)
				}
				col := matrix[float32]{m, 1, c.Stride, slices.Clone(c.Data[j:])}
				bj := matrix[float32]{k, 1, b.Stride, nil}
				if tB == Trans {
					bj = matrix[float32]{1, k, b.Stride, b.Data[j*b.Stride:]}
				} else {
					bj.Data = b.Data[j:]
				}
				if err := gemm(context.Background(), nil, NoTrans, tB, alpha, a, bj, beta, col); err != nil {
					t.Fatal(err)
				}
				one.Data = one.Data[:len(one.Data):len(one.Data)]
				if !slices.Equal(row.bits(), (matrix[float32]{1, n, n, one.Data[i*one.Stride:]}).bits()) {
					t.Errorf("%d×%d×%d: row %d alone has other bytes", m, n, k, i)
				}
				if !slices.Equal(col.bits(), (matrix[float32]{m, 1, one.Stride, one.Data[j:]}).bits()) {
					t.Errorf("%d×%d×%d: column %d alone has other bytes", m, n, k, j)
				}
				// Packed weights.
				packed, err := PackB(tB, blas32.General(b))
				if err != nil {
					t.Fatal(err)
				}
				d := c.clone()
				if err := GemmPacked(context.Background(), pool.New(2), NoTrans, alpha, blas32.General(a), packed, beta, blas32.General(d), nil); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(one.bits(), d.bits()) {
					t.Errorf("%d×%d×%d: packed weights give other bytes", m, n, k)
				}
			})
			if x, y := bySet["fmaavx512"], bySet["fmaavx2"]; x != nil && !slices.Equal(x, y) {
				t.Fatalf("%d×%d×%d %c: AVX2 and AVX-512 give different bytes", m, n, k, tB)
			}
		}
	}
}

func TestSameBytes64(t *testing.T) {
	rng := rand.New(rand.NewPCG(12, 11))
	for range 20 {
		m, n, k := 1+randomSize(rng, 130), 1+randomSize(rng, 200), 1+rng.IntN(900)
		a, _ := guarded[float64](rng, m, k)
		b, _ := guarded[float64](rng, k, n)
		var first []uint64
		eachSet(t, func(t *testing.T) {
			if use == generic {
				return
			}
			for _, workers := range []int{1, 3} {
				c := matrix[float64]{m, n, n, make([]float64, m*n)}
				if err := gemm(context.Background(), pool.New(workers), NoTrans, NoTrans, 1, a, b, 0, c); err != nil {
					t.Fatal(err)
				}
				if first == nil {
					first = c.bits()
				}
				if !slices.Equal(first, c.bits()) {
					t.Errorf("%d×%d×%d: other bytes", m, n, k)
				}
			}
		})
	}
}

func TestBias(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(13, 11))
		for range 40 {
			m, n, k := 1+randomSize(rng, 60), 1+randomSize(rng, 90), randomSize(rng, 500)
			a, _ := guarded[float32](rng, m, k)
			b, _ := guarded[float32](rng, n, k)
			bias, _ := guarded[float32](rng, 1, n)
			c, intact := guarded[float32](rng, m, n)
			want := c.clone()
			beta := []float32{0, 1, 0.5}[rng.IntN(3)]
			for i := range m {
				for j := range n {
					x := &want.Data[i*want.Stride+j]
					*x = float32(*x*beta) + bias.Data[j]
					if beta == 0 {
						*x = bias.Data[j]
					}
				}
			}
			packed, err := PackB(Trans, blas32.General(b))
			if err != nil {
				t.Fatal(err)
			}
			if err := gemm(context.Background(), nil, NoTrans, Trans, 1, a, b, 1, want); err != nil {
				t.Fatal(err)
			}
			if err := GemmPacked(context.Background(), nil, NoTrans, 1, blas32.General(a), packed, beta, blas32.General(c), bias.Data); err != nil {
				t.Fatal(err)
			}
			if !intact() || !slices.Equal(c.bits(), want.bits()) {
				t.Fatalf("%d×%d×%d, beta %v: the fused bias gives other bytes", m, n, k, beta)
			}
		}
	})
}

func TestNaNAndInf(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		for _, m := range []int{3, 40} {
			a := blas32.General{Rows: m, Cols: 50, Stride: 50, Data: make([]float32, m*50)}
			b := blas32.General{Rows: 50, Cols: 70, Stride: 70, Data: make([]float32, 50*70)}
			c := blas32.General{Rows: m, Cols: 70, Stride: 70, Data: make([]float32, m*70)}
			for i := range a.Data {
				a.Data[i] = 1
			}
			for i := range b.Data {
				b.Data[i] = 1
			}
			a.Data[1*50+7] = float32(math.NaN())
			a.Data[2*50+7] = float32(math.Inf(1))
			b.Data[7*70+69] = 0
			if err := Gemm(context.Background(), nil, NoTrans, NoTrans, 1, a, b, 0, c); err != nil {
				t.Fatal(err)
			}
			for i := range m {
				for j, v := range c.Data[i*70:][:70] {
					nan := i == 1 || i == 2 && j == 69
					switch {
					case nan != (v != v):
						t.Fatalf("element (%d,%d) is %v", i, j, v)
					case i == 2 && !nan && !math.IsInf(float64(v), 1):
						t.Fatalf("element (%d,%d) is %v, want +Inf", i, j, v)
					case i != 1 && i != 2 && v != float32(50) && j != 69:
						t.Fatalf("element (%d,%d) is %v, want 50", i, j, v)
					}
				}
			}
		}
	})
}

func TestGrams(t *testing.T) {
	rng := rand.New(rand.NewPCG(14, 15))
	for range 20 {
		rows, n, m := randomSize(rng, 900), 1+randomSize(rng, 150), 1+randomSize(rng, 150)
		x, _ := guarded[float32](rng, rows, n)
		y, _ := guarded[float32](rng, rows, m)
		var first [2][]uint64
		eachSet(t, func(t *testing.T) {
			for _, workers := range []int{1, 3} {
				h, intact := guarded[float64](rand.New(rand.NewPCG(1, 1)), n, n)
				g, intactG := guarded[float64](rand.New(rand.NewPCG(1, 1)), n, m)
				h0, g0 := h.clone(), g.clone()
				h64, g64 := blas64.General{Rows: n, Cols: n, Stride: h.Stride, Data: h.Data}, blas64.General{Rows: n, Cols: m, Stride: g.Stride, Data: g.Data}
				p := pool.New(workers)
				if err := AddGramUpper(context.Background(), p, blas32.General(x), h64); err != nil {
					t.Fatal(err)
				}
				if err := AddGram(context.Background(), p, blas32.General(x), blas32.General(y), g64); err != nil {
					t.Fatal(err)
				}
				Mirror(h64)
				if !intact() || !intactG() {
					t.Fatalf("%d×%d, %d: wrote outside a master", rows, n, m)
				}
				for i := range n {
					for j := range max(n, m) {
						var hh, gg, scale float64
						for r := range rows {
							v := float64(x.Data[r*x.Stride+i])
							if j < n {
								hh += v * float64(x.Data[r*x.Stride+j])
							}
							if j < m {
								gg += v * float64(y.Data[r*y.Stride+j])
							}
							scale += v * v
						}
						if j < n {
							hh += h0.op(NoTrans, min(i, j), max(i, j))
							if got := h.op(NoTrans, i, j); math.Abs(got-hh) > 1e-5*(1+scale) {
								t.Fatalf("H(%d,%d) is %v, want %v", i, j, got, hh)
							}
						}
						if j < m {
							gg += g0.op(NoTrans, i, j)
							if got := g.op(NoTrans, i, j); math.Abs(got-gg) > 1e-5*(1+scale) {
								t.Fatalf("G(%d,%d) is %v, want %v", i, j, got, gg)
							}
						}
					}
				}
				if use == generic {
					continue
				}
				if first[0] == nil {
					first = [2][]uint64{h.bits(), g.bits()}
				}
				if !slices.Equal(first[0], h.bits()) || !slices.Equal(first[1], g.bits()) {
					t.Errorf("%d×%d, %d: other bytes", rows, n, m)
				}
			}
		})
	}
}

func randomPatches(rng *rand.Rand, most int) (Patches, bool) {
	groups := 1 + rng.IntN(3)
	g := Patches{
		Channels: groups * (1 + rng.IntN(5)), Height: 1 + rng.IntN(most), Width: 1 + rng.IntN(most),
		KernelH: 1 + rng.IntN(3), KernelW: 1 + rng.IntN(3), StrideH: 1 + rng.IntN(2), StrideW: 1 + rng.IntN(3),
		PadH: rng.IntN(3), PadW: rng.IntN(3), DilationH: 1 + rng.IntN(2), DilationW: 1 + rng.IntN(2), Groups: groups,
	}
	if rng.IntN(3) == 0 { // depthwise
		g.Groups = g.Channels
	}
	return g, g.Height+2*g.PadH >= g.DilationH*(g.KernelH-1)+1 && g.Width+2*g.PadW >= g.DilationW*(g.KernelW-1)+1
}

// TestConvolutions holds a convolution to the product of its weight and its
// gathered patches, byte for byte.
func TestConvolutions(t *testing.T) {
	rng := rand.New(rand.NewPCG(16, 17))
	for range 250 {
		g, ok := randomPatches(rng, 45)
		if !ok {
			continue
		}
		per := 1 + rng.IntN(20)
		if g.Groups == g.Channels {
			per = 1 + rng.IntN(2)
		}
		outs, n, area := g.Groups*per, g.Inputs(), g.Rows()
		weight := matrix[float32]{outs, n, n, make([]float32, outs*n)}
		for i := range weight.Data {
			weight.Data[i] = float32(rng.NormFloat64())
		}
		bias := make([]float32, outs)
		for i := range bias {
			bias[i] = float32(rng.NormFloat64())
		}
		image, _ := guarded[float32](rng, 1, g.Channels*g.Height*g.Width)
		var first []uint64
		eachSet(t, func(t *testing.T) {
			out, intact := guarded[float32](rng, 1, outs*area)
			conv, err := NewConv(g, outs, weight.Data, bias)
			if err != nil {
				t.Fatal(err)
			}
			if err := conv.Forward(context.Background(), pool.New(1+rng.IntN(2)), image.Data, out.Data); err != nil {
				t.Fatal(err)
			}
			if !intact() {
				t.Fatalf("%+v: wrote outside the output", g)
			}
			want := make([]float32, outs*area)
			patches := make([]float32, area*n)
			for i := range g.Groups {
				g.Gather(patches, n, image.Data, i, 0, area)
				dst := blas32.General{Rows: per, Cols: area, Stride: area, Data: want[i*per*area:]}
				for r := range per {
					for j := range area {
						dst.Data[r*area+j] = bias[i*per+r]
					}
				}
				w := blas32.General{Rows: per, Cols: n, Stride: n, Data: weight.Data[i*per*n:]}
				x := blas32.General{Rows: area, Cols: n, Stride: n, Data: patches}
				if err := Gemm(context.Background(), nil, NoTrans, Trans, 1, w, x, 1, dst); err != nil {
					t.Fatal(err)
				}
			}
			if !slices.Equal(out.Data, want) {
				t.Fatalf("%+v, %d outputs: not the product of weight and patches", g, outs)
			}
			if use != generic {
				if first == nil {
					first = out.bits()
				}
				if !slices.Equal(first, out.bits()) {
					t.Fatalf("%+v: AVX2 and AVX-512 give different bytes", g)
				}
			}
		})
	}
}

func TestShapesThatDoNotFit(t *testing.T) {
	ctx := context.Background()
	m := func(r, c int) blas32.General {
		return blas32.General{Rows: r, Cols: c, Stride: max(1, c), Data: make([]float32, r*c)}
	}
	short := m(3, 4)
	short.Data = short.Data[:11]
	packed, _ := PackB(NoTrans, m(4, 5))
	for i, err := range []error{
		Gemm(ctx, nil, NoTrans, NoTrans, 1, m(3, 4), m(5, 4), 0, m(3, 4)),
		Gemm(ctx, nil, NoTrans, NoTrans, 1, m(3, 4), m(4, 5), 0, m(3, 4)),
		Gemm(ctx, nil, NoTrans, NoTrans, 1, short, m(4, 5), 0, m(3, 5)),
		GemmPacked(ctx, nil, NoTrans, 1, m(3, 4), packed, 0, m(3, 5), make([]float32, 4)),
		AddGram(ctx, nil, m(3, 4), m(2, 4), blas64.General{Rows: 4, Cols: 4, Stride: 4, Data: make([]float64, 16)}),
	} {
		if err == nil {
			t.Errorf("case %d: no error", i)
		}
	}
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	if err := Gemm(stopped, pool.New(2), NoTrans, NoTrans, 1, m(30, 40), m(40, 50), 0, m(30, 50)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestNoAllocation(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes sync.Pool drop buffers at random")
	}
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(18, 19))
	a, b, c := random32(rng, 100, 500), random32(rng, 500, 100), random32(rng, 100, 100)
	h := blas64.General{Rows: 100, Cols: 100, Stride: 100, Data: make([]float64, 10000)}
	if n := testing.AllocsPerRun(50, func() {
		_ = Gemm(ctx, nil, NoTrans, NoTrans, 1, a, b, 0, c)
		_ = AddGramUpper(ctx, nil, b, h)
	}); n > 1 { // a collection in between may empty the pools
		t.Errorf("%v allocations", n)
	}
}

func TestChoice(t *testing.T) {
	for _, s := range available() {
		if got := choose(s.name); got != s {
			t.Errorf("asked for %s, got %s", s.name, got.name)
		}
	}
	if got := choose("avx9000"); got != available()[0] {
		t.Errorf("an unknown name gives %s", got.name)
	}
}

func FuzzGemm(f *testing.F) {
	f.Add(uint64(1), uint16(3), uint16(4), uint16(5))
	f.Add(uint64(2), uint16(14), uint16(32), uint16(384))
	f.Add(uint64(3), uint16(65), uint16(129), uint16(400))
	f.Fuzz(func(t *testing.T, seed uint64, m, n, k uint16) {
		rng := rand.New(rand.NewPCG(seed, 0))
		was := use
		defer func() { use = was }()
		for _, s := range available() {
			use = s
			checkGemm[float32](t, rng, int(m%200), int(n%200), int(k%600), 1)
			checkGemm[float64](t, rng, int(m%200), int(n%200), int(k%600), 1)
		}
	})
}
