package vec

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// Benchmarks of each path beside a plain loop ("loop"), on numbers that fit the
// first-level cache and on more than the caches hold. Copy is memory's speed.
func BenchmarkKernels(b *testing.B) {
	for _, n := range []int{1 << 10, 1 << 22} {
		rng := rand.New(rand.NewPCG(1, 1))
		x, y, dst := make([]float32, n), make([]float32, n), make([]float32, n)
		x64, y64 := make([]float64, n), make([]float64, n)
		half, codes := make([]byte, 2*n), make([]int8, n)
		for i := range x {
			x[i], y[i] = float32(rng.NormFloat64()), float32(rng.NormFloat64())
			x64[i], y64[i] = rng.NormFloat64(), rng.NormFloat64()
		}
		ToF16(half, x)
		var sink float64
		each := func(f func(float64) float64) func() {
			return func() {
				for i, v := range x {
					dst[i] = float32(f(float64(v)))
				}
			}
		}
		for _, c := range []struct {
			name      string
			bytes     int // moved for each element
			f, simple func()
		}{
			{"Copy", 8, func() { copy(dst, x) }, nil},
			{"Dot", 8, func() { sink += float64(Dot(x, y)) }, func() {
				s := float32(0)
				for i, v := range x {
					s += v * y[i]
				}
				sink += float64(s)
			}},
			{"DotWide", 8, func() { sink += DotWide(x, y) }, func() {
				for i, v := range x {
					sink += float64(v) * float64(y[i])
				}
			}},
			{"Dot64", 16, func() { sink += Dot64(x64, y64) }, func() {
				for i, v := range x64 {
					sink += v * y64[i]
				}
			}},
			{"SumSquares", 4, func() { sink += SumSquares(x) }, func() {
				for _, v := range x {
					sink += float64(v) * float64(v)
				}
			}},
			{"Argmax", 4, func() { sink += float64(Argmax(x)) }, func() {
				at := 0
				for i, v := range x {
					if v > x[at] {
						at = i
					}
				}
				sink += float64(at)
			}},
			{"Axpy", 12, func() { Axpy(1e-6, x, y) }, func() {
				for i, v := range x {
					y[i] += 1e-6 * v
				}
			}},
			{"Axpy64", 24, func() { Axpy64(1e-6, x64, y64) }, func() {
				for i, v := range x64 {
					y64[i] += 1e-6 * v
				}
			}},
			{"Add", 12, func() { Add(dst, x, y) }, func() {
				for i, v := range x {
					dst[i] = v + y[i]
				}
			}},
			{"ScaleShift", 8, func() { ScaleShift(dst, x, 2, 1) }, func() {
				for i, v := range x {
					dst[i] = v*2 + 1
				}
			}},
			{"ReLU", 8, func() { ReLU(dst, x) }, func() { reluGeneric(dst, x) }},
			{"Exp", 8, func() { Exp(dst, x) }, each(math.Exp)},
			{"Softmax", 8, func() { Softmax(dst, x) }, func() {
				sum := 0.0
				for i, v := range x {
					e := math.Exp(float64(v))
					dst[i] = float32(e)
					sum += e
				}
				for i := range dst {
					dst[i] = float32(float64(dst[i]) / sum)
				}
			}},
			{"LogSumExp", 4, func() { sink += LogSumExp(x) }, func() {
				for _, v := range x {
					sink += math.Exp(float64(v))
				}
			}},
			{"Sigmoid", 8, func() { Sigmoid(dst, x) }, each(func(v float64) float64 { return 1 / (1 + math.Exp(-v)) })},
			{"SiLU", 8, func() { SiLU(dst, x) }, each(func(v float64) float64 { return v / (1 + math.Exp(-v)) })},
			{"Tanh", 8, func() { Tanh(dst, x) }, each(math.Tanh)},
			{"GELU", 8, func() { GELU(dst, x) }, each(func(v float64) float64 { return v * realNormal(v) })},
			{"GELUTanh", 8, func() { GELUTanh(dst, x) }, each(func(v float64) float64 {
				return v / 2 * (1 + math.Tanh(0.7978845608*(v+0.044715*v*v*v)))
			})},
			{"Round", 5, func() { Round(codes, x, 0.1, 3, -8, 7) }, func() { roundGeneric(codes, x, 0.1, 3, -8, 7) }},
			{"Round64", 9, func() { Round64(codes, x64, 0.1, 3, -8, 7) }, func() { round64Generic(codes, x64, 0.1, 3, -8, 7) }},
			{"RangeError", 8, func() { sink += RangeError(x64, 0.3, 3, -8, 7, 2.4) }, func() {
				for _, v := range x64 {
					q := min(max(math.RoundToEven(v/float64(float32(0.3)))+3, -8), 7)
					if d := math.Abs(v - float64(0.3*float32(int(q)-3))); d > 0 {
						sink += math.Exp(2.4 * math.Log(d))
					}
				}
			}},
			{"Dequantize", 5, func() { Dequantize(dst, codes, 0.1, 3) }, func() { dequantizeGeneric(dst, codes, 0.1, 3) }},
			{"FromF16", 6, func() { FromF16(dst, half) }, func() { fromF16Generic(dst, half) }},
			{"ToF16", 6, func() { ToF16(half, x) }, func() { toF16Generic(half, x) }},
			{"FromBF16", 6, func() { FromBF16(dst, half) }, func() { fromBF16Generic(dst, half) }},
			{"ToBF16", 6, func() { ToBF16(half, x) }, func() { toBF16Generic(half, x) }},
		} {
			run := func(name string, k kernels, f func()) {
				b.Run(fmt.Sprintf("%s/n=%d/%s", c.name, n, name), func(b *testing.B) {
					b.SetBytes(int64(n * c.bytes))
					with(k, func() {
						for b.Loop() {
							f()
						}
					})
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/element")
				})
			}
			if c.simple != nil {
				run("loop", generic, c.simple)
				for _, k := range paths()[1:] {
					run(k.String(), k, c.f)
				}
			} else {
				run("copy", generic, c.f)
			}
		}
		_ = sink
	}
}
