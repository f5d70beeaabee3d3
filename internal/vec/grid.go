package vec

// Round writes the codes of x on a grid: round(x/scale) + zero within lo…hi,
// rounded half to even, computed in float64. lo and hi must be int8; a NaN
// becomes lo.
func Round(codes []int8, x []float32, scale float32, zero, lo, hi int) {
	x = x[:len(codes)]
	n := len(codes) &^ 15
	s, z, l, h := float64(scale), float64(zero), float64(lo), float64(hi)
	roundKernel(codes[:n], x[:n], s, z, l, h)
	roundGeneric(codes[n:], x[n:], s, z, l, h)
}

// Round64 is Round of float64.
func Round64(codes []int8, x []float64, scale float32, zero, lo, hi int) {
	x = x[:len(codes)]
	n := len(codes) &^ 15
	s, z, l, h := float64(scale), float64(zero), float64(lo), float64(hi)
	round64Kernel(codes[:n], x[:n], s, z, l, h)
	round64Generic(codes[n:], x[n:], s, z, l, h)
}

// RangeError returns Σ |x − x̂|^power, x̂ = scale·(code − zero) in float32 with
// Round64's codes: the error of a range search. Its terms are exact to a few
// units of 1e-15, and 0 where x̂ = x; power is at least 1.1.
func RangeError(x []float64, scale float32, zero, lo, hi int, power float64) float64 {
	return rangeErrorKernel(x, float64(scale), float64(zero), float64(lo), float64(hi), power)
}

// Dequantize sets dst = scale·(code − zero), rounded once.
func Dequantize(dst []float32, codes []int8, scale float32, zero int) {
	codes = codes[:len(dst)]
	n := len(dst) &^ 15
	dequantizeKernel(dst[:n], codes[:n], scale, int32(zero))
	dequantizeGeneric(dst[n:], codes[n:], scale, int32(zero))
}

// FakeQuantize sets dst to what the codes of x stand for: Round, then
// Dequantize.
func FakeQuantize(dst, x []float32, scale float32, zero, lo, hi int) {
	var block [256]int8
	for len(dst) > 0 {
		codes := block[:min(len(block), len(dst))]
		Round(codes, x, scale, zero, lo, hi)
		Dequantize(dst[:len(codes)], codes, scale, zero)
		dst, x = dst[len(codes):], x[len(codes):]
	}
}
