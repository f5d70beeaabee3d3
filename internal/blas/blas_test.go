package blas

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/pool"
)

func random32(rng *rand.Rand, rows, cols int) blas32.General {
	stride := cols + rng.IntN(3)
	m := blas32.General{Rows: rows, Cols: cols, Stride: max(stride, 1), Data: make([]float32, rows*max(stride, 1))}
	for i := range m.Data {
		m.Data[i] = float32(rng.NormFloat64())
	}
	return m
}

func at(m blas32.General, t Transpose, i, j int) float64 {
	if t == Trans {
		i, j = j, i
	}
	return float64(m.Data[i*m.Stride+j])
}

func TestGemmAgainstTheDefinition(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		m, n, k := rng.IntN(150), rng.IntN(200), rng.IntN(90)
		for _, tA := range []Transpose{NoTrans, Trans} {
			for _, tB := range []Transpose{NoTrans, Trans} {
				a, b := random32(rng, m, k), random32(rng, k, n)
				if tA == Trans {
					a = random32(rng, k, m)
				}
				if tB == Trans {
					b = random32(rng, n, k)
				}
				c := random32(rng, m, n)
				want := make([]float64, len(c.Data))
				for i := range m {
					for j := range n {
						sum := 0.5 * float64(c.Data[i*c.Stride+j])
						for l := range k {
							sum += 2 * at(a, tA, i, l) * at(b, tB, l, j)
						}
						want[i*c.Stride+j] = sum
					}
				}
				before := slices.Clone(c.Data)
				if err := Gemm(context.Background(), pool.New(2), tA, tB, 2, a, b, 0.5, c); err != nil {
					t.Fatal(err)
				}
				for i, v := range c.Data {
					if r, col := i/c.Stride, i%c.Stride; r < m && col < n {
						if math.Abs(float64(v)-want[i]) > 1e-5*float64(k+1) {
							t.Fatalf("%d×%d×%d %c%c: element (%d,%d) is %v, want %v", m, n, k, tA, tB, r, col, v, want[i])
						}
					} else if v != before[i] {
						t.Fatalf("wrote outside the matrix at %d", i)
					}
				}
			}
		}
	}
}

func TestGramHasTheSameBytesForAnyWorkers(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	x, y := random32(rng, 300, 170), random32(rng, 300, 170)
	var first [2][]float64
	for _, workers := range []int{1, 2, 5} {
		p := pool.New(workers)
		h := blas64.General{Rows: 170, Cols: 170, Stride: 170, Data: make([]float64, 170*170)}
		g := blas64.General{Rows: 170, Cols: 170, Stride: 170, Data: make([]float64, 170*170)}
		for range 2 {
			if err := AddGramUpper(context.Background(), p, x, h); err != nil {
				t.Fatal(err)
			}
			if err := AddGram(context.Background(), p, x, y, g); err != nil {
				t.Fatal(err)
			}
		}
		Mirror(h)
		if first[0] == nil {
			first = [2][]float64{h.Data, g.Data}
			checkGram(t, x, x, h)
			checkGram(t, x, y, g)
		}
		if !slices.Equal(first[0], h.Data) || !slices.Equal(first[1], g.Data) {
			t.Errorf("%d workers give other bytes than one", workers)
		}
	}
}

func checkGram(t *testing.T, x, y blas32.General, m blas64.General) {
	t.Helper()
	for i := range m.Rows {
		for j := range m.Cols {
			sum := 0.0
			for r := range x.Rows {
				sum += 2 * float64(x.Data[r*x.Stride+i]) * float64(y.Data[r*y.Stride+j])
			}
			if math.Abs(m.Data[i*m.Stride+j]-sum) > 1e-3 {
				t.Fatalf("element (%d,%d) is %v, want %v", i, j, m.Data[i*m.Stride+j], sum)
			}
		}
	}
}

func TestGatherAgainstTheDefinition(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		groups := 1 + rng.IntN(3)
		g := Patches{
			Channels: groups * (1 + rng.IntN(3)), Height: 1 + rng.IntN(8), Width: 1 + rng.IntN(8),
			KernelH: 1 + rng.IntN(3), KernelW: 1 + rng.IntN(3), StrideH: 1 + rng.IntN(2), StrideW: 1 + rng.IntN(3),
			PadH: rng.IntN(3), PadW: rng.IntN(3), DilationH: 1 + rng.IntN(2), DilationW: 1 + rng.IntN(2), Groups: groups,
		}
		if g.Height+2*g.PadH < g.DilationH*(g.KernelH-1)+1 || g.Width+2*g.PadW < g.DilationW*(g.KernelW-1)+1 {
			continue
		}
		image := random32(rng, g.Channels, g.Height*g.Width)
		image.Stride = g.Height * g.Width
		group, from := rng.IntN(groups), rng.IntN(g.Rows())
		n := 1 + rng.IntN(g.Rows()-from)
		got := make([]float32, n*g.Inputs())
		g.Gather(got, g.Inputs(), image.Data, group, from, n)
		i := 0
		for r := from; r < from+n; r++ {
			for c := range g.Channels / groups {
				for ky := range g.KernelH {
					for kx := range g.KernelW {
						y := r/g.OutW()*g.StrideH - g.PadH + ky*g.DilationH
						x := r%g.OutW()*g.StrideW - g.PadW + kx*g.DilationW
						want := float32(0)
						if y >= 0 && y < g.Height && x >= 0 && x < g.Width {
							want = image.Data[((group*g.Channels/groups+c)*g.Height+y)*g.Width+x]
						}
						if got[i] != want {
							t.Fatalf("%+v: patch %d element %d is %v, want %v", g, r, i%g.Inputs(), got[i], want)
						}
						i++
					}
				}
			}
		}
	}
}
