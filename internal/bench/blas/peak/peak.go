// Package peak measures what a processor can do at most.
package peak

// GFLOPS measures the multiply-add units of one processor, in vectors for
// AVX-512 or else AVX2.
func GFLOPS(f64, avx512 bool, clock func() float64) float64 {
	const n = 1_000_000
	start := clock()
	flops := fmaLoop(n, avx512)
	rate := float64(flops) * n / (clock() - start) / 1e9
	if f64 {
		rate /= 2
	}
	return rate
}
