// Package vec holds the vector kernels: sums, elementwise arithmetic,
// activations, rounding to a grid, and conversions of half types.
//
// Every kernel exists as AVX2 and AVX-512 assembly, written by the program
// internal/asm/vec, and as plain Go. All three give the same bytes, NaNs'
// payloads aside: nothing is fused, and sums go through fixed lanes. Element i is
// folded into lane i mod 64 (float32) or i mod 32 (float64), then lane l takes
// in lane l + half, down to one. No result depends on alignment, or on other
// rows of a matrix.
//
// Slices of one call have the length of the first, or are longer; a shorter
// one panics. dst may be an input, but may not overlap one at another offset.
package vec

import "math"

// Path returns the name of the kernels in use: avx512, avx2 or generic. The
// environment variable FETTLE_KERNELS, read at start, asks for one of them; a
// processor that lacks it takes the best it has.
func Path() string { return path.String() }

// kernels is a set of instructions.
type kernels uint8

const (
	generic kernels = iota
	avx2
	avx512
)

func (k kernels) String() string { return [...]string{"generic", "avx2", "avx512"}[k] }

// choose returns the kernels asked for, or the best that are no better than
// the machine.
func choose(asked string, best kernels) kernels {
	for k := generic; k <= best; k++ {
		if k.String() == asked {
			return k
		}
	}
	return best
}

// Dot returns Σ xᵢ·yᵢ, summed in float32. Its relative error is up to about
// n/64 roundings.
func Dot(x, y []float32) float32 { return dotKernel(x, y[:len(x)]) }

// DotWide is Dot with exact products summed in float64.
func DotWide(x, y []float32) float64 { return dotWideKernel(x, y[:len(x)]) }

// Dot64 is Dot of float64.
func Dot64(x, y []float64) float64 { return dot64Kernel(x, y[:len(x)]) }

// SumSquares returns Σ xᵢ², summed in float64.
func SumSquares(x []float32) float64 { return sumSquaresKernel(x) }

// Sum returns Σ xᵢ, summed in float64.
func Sum(x []float32) float64 { return sumKernel(x) }

// Sum64 returns Σ xᵢ.
func Sum64(x []float64) float64 { return sum64Kernel(x) }

// Max returns the largest element, NaN where there is a NaN, −Inf where x is
// empty, and +0 where it is a zero.
func Max(x []float32) float32 {
	m := maximumKernel(x)
	if m == 0 {
		return 0
	}
	return m
}

// Argmax returns the first index of the largest element, the first NaN's where
// there is one, −1 where x is empty.
func Argmax(x []float32) int {
	m := maximumKernel(x)
	if m == m {
		return indexKernel(x, m)
	}
	for i, v := range x {
		if v != v {
			return i
		}
	}
	return -1
}

// Axpy adds a·x to y.
func Axpy(a float32, x, y []float32) { axpyKernel(y[:len(x)], x, a) }

// Axpy64 adds a·x to y.
func Axpy64(a float64, x, y []float64) { axpy64Kernel(y[:len(x)], x, a) }

// Add sets dst = x + y.
func Add(dst, x, y []float32) { addKernel(dst, x[:len(dst)], y[:len(dst)]) }

// Mul sets dst = x·y, element by element.
func Mul(dst, x, y []float32) { mulKernel(dst, x[:len(dst)], y[:len(dst)]) }

// Scale sets dst = a·x.
func Scale(dst, x []float32, a float32) { scaleKernel(dst, x[:len(dst)], a) }

// ScaleShift sets dst = x·a + b, rounded after the product and after the sum.
func ScaleShift(dst, x []float32, a, b float32) { scaleShiftKernel(dst, x[:len(dst)], a, b) }

// ReLU sets dst = 0 where x < 0, else x: −0 and NaN stay.
func ReLU(dst, x []float32) { reluKernel(dst, x[:len(dst)]) }

// Exp sets dst = eˣ with an error of at most 1 ulp, subnormal results
// included: 1 at 0, 0 below −103.98, +Inf above 88.73.
func Exp(dst, x []float32) { expKernel(dst, x[:len(dst)]) }

// Softmax sets dst = e^(x−max) / Σ e^(x−max). A NaN, a +Inf, or nothing but
// −Inf makes the whole row NaN.
func Softmax(dst, x []float32) {
	expSubKernel(dst, x[:len(dst)], Max(x[:len(dst)]))
	scaleKernel(dst, dst, float32(1/sumKernel(dst)))
}

// ExpSub64 sets dst = e^(x−shift) in float64, error at most 1 ulp.
func ExpSub64(dst []float64, x []float32, shift float64) {
	expSub64Kernel(dst, x[:len(dst)], shift)
}

// LogSumExp returns log Σ e^xᵢ in float64, shifted by the maximum so that it
// neither overflows nor underflows; −Inf where x is empty.
func LogSumExp(x []float32) float64 {
	top := float64(Max(x))
	if math.IsInf(top, 0) || math.IsNaN(top) {
		return top
	}
	var block [256]float64
	sum := 0.0
	for len(x) > 0 {
		e := block[:min(len(block), len(x))]
		expSub64Kernel(e, x[:len(e)], top)
		sum += sum64Kernel(e)
		x = x[len(e):]
	}
	return top + math.Log(sum)
}

// Sigmoid sets dst = 1/(1 + e⁻ˣ), error at most 3 ulp.
func Sigmoid(dst, x []float32) { sigmoidKernel(dst, x[:len(dst)]) }

// SiLU sets dst = x·sigmoid(x), NaN at −Inf as the formula says;
// error at most 4 ulp.
func SiLU(dst, x []float32) { siluKernel(dst, x[:len(dst)]) }

// Tanh sets dst = tanh x, error at most 2 ulp.
func Tanh(dst, x []float32) { tanhKernel(dst, x[:len(dst)]) }

// GELU sets dst = x·Φ(x), Φ being the normal distribution, with an error of at
// most 7 ulp also where Φ is tiny; NaN at −Inf as the formula says.
func GELU(dst, x []float32) { geluKernel(dst, x[:len(dst)]) }

// GELUTanh sets dst = x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))), taken as
// x·sigmoid(2…), which keeps the digits that 1 + tanh loses at negative x: the
// error is at most 10 ulp from −2 up, and below 3e-8 beyond.
func GELUTanh(dst, x []float32) { geluTanhKernel(dst, x[:len(dst)]) }
