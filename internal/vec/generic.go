package vec

import (
	"encoding/binary"
	"math"

	"github.com/x448/float16"
)

// The plain twins of the kernels, in the same operations and order. A
// conversion around each product keeps compilers from fusing it into a sum.

func bits(v float32) uint32        { return math.Float32bits(v) }
func float32from(b uint32) float32 { return math.Float32frombits(b) }

// lanes are the partial sums of a reduction.
type (
	lanes32 [64]float32
	lanes64 [32]float64
)

func (l *lanes32) sum() float32 {
	for h := len(l) / 2; h > 0; h /= 2 {
		for i := range h {
			l[i] += l[i+h]
		}
	}
	return l[0]
}

func (l *lanes64) sum() float64 {
	for h := len(l) / 2; h > 0; h /= 2 {
		for i := range h {
			l[i] += l[i+h]
		}
	}
	return l[0]
}

func dotGeneric(x, y []float32) float32 {
	var l lanes32
	for i, v := range x {
		l[i%len(l)] += float32(v * y[i])
	}
	return l.sum()
}

func dotWideGeneric(x, y []float32) float64 {
	var l lanes64
	for i, v := range x {
		l[i%len(l)] += float64(float64(v) * float64(y[i]))
	}
	return l.sum()
}

func dot64Generic(x, y []float64) float64 {
	var l lanes64
	for i, v := range x {
		l[i%len(l)] += float64(v * y[i])
	}
	return l.sum()
}

func sumSquaresGeneric(x []float32) float64 { return dotWideGeneric(x, x) }

func sumGeneric(x []float32) float64 {
	var l lanes64
	for i, v := range x {
		l[i%len(l)] += float64(v)
	}
	return l.sum()
}

func sum64Generic(x []float64) float64 {
	var l lanes64
	for i, v := range x {
		l[i%len(l)] += v
	}
	return l.sum()
}

func maximumGeneric(x []float32) float32 {
	top := float32(math.Inf(-1))
	for _, v := range x {
		if v > top {
			top = v
		} else if v != v {
			return v
		}
	}
	return top
}

func indexGeneric(x []float32, v float32) int {
	for i := range x {
		if x[i] == v {
			return i
		}
	}
	return -1
}

func axpyGeneric(y, x []float32, a float32) {
	for i, v := range x {
		y[i] += float32(a * v)
	}
}

func axpy64Generic(y, x []float64, a float64) {
	for i, v := range x {
		y[i] += float64(a * v)
	}
}

func addGeneric(dst, x, y []float32) {
	for i := range dst {
		dst[i] = x[i] + y[i]
	}
}

func mulGeneric(dst, x, y []float32) {
	for i := range dst {
		dst[i] = x[i] * y[i]
	}
}

func scaleGeneric(dst, x []float32, a float32) {
	for i := range dst {
		dst[i] = a * x[i]
	}
}

func scaleShiftGeneric(dst, x []float32, a, b float32) {
	for i := range dst {
		dst[i] = float32(x[i]*a) + b
	}
}

func reluGeneric(dst, x []float32) {
	for i, v := range x {
		if v < 0 {
			v = 0
		}
		dst[i] = v
	}
}

func expGeneric(dst, x []float32) {
	for i, v := range x {
		dst[i] = exp(v)
	}
}

func expSubGeneric(dst, x []float32, shift float32) {
	for i, v := range x {
		dst[i] = exp(v - shift)
	}
}

func expSub64Generic(dst []float64, x []float32, shift float64) {
	for i, v := range x {
		dst[i] = exp64(float64(v) - shift)
	}
}

func sigmoidGeneric(dst, x []float32) {
	for i, v := range x {
		dst[i] = sigmoid(v)
	}
}

func siluGeneric(dst, x []float32) {
	for i, v := range x {
		dst[i] = v * sigmoid(v)
	}
}

func tanhGeneric(dst, x []float32) {
	for i, v := range x {
		dst[i] = tanh(v)
	}
}

func geluGeneric(dst, x []float32) {
	for i, v := range x {
		dst[i] = v * normal(v)
	}
}

func geluTanhGeneric(dst, x []float32) {
	for i, v := range x {
		u := float32(float32(float32(v*v)*geluCubic) + 1)
		dst[i] = v * sigmoid(float32(v*geluTwice)*u)
	}
}

// polynomial returns c[0] + c[1]·x + …
func polynomial(c []float32, x float32) float32 {
	p := c[len(c)-1]
	for i := len(c) - 2; i >= 0; i-- {
		p = float32(p*x) + c[i]
	}
	return p
}

func exp(x float32) float32 {
	if x != x {
		return x
	}
	return expLow(max(min(x, expTop), expBottom), 0)
}

// expLow returns e^(x−low) for x in −165…89. low is small.
func expLow(x, low float32) float32 {
	t := float32(x*log2e) + roundMagic
	n := int32(bits(t)) - 0x4b400000
	t -= roundMagic
	r := x - float32(t*ln2High)
	r -= float32(t * ln2Low)
	r -= low
	p := polynomial(expPoly[:], r)
	y := float32(float32(p*r)*r) + r
	y++
	half := n >> 1 // twice, since 2ⁿ itself may be no float32
	y *= float32from(uint32(half+127) << 23)
	return y * float32from(uint32(n-half+127)<<23)
}

func exp64(x float64) float64 {
	if x != x {
		return x
	}
	x = max(min(x, exp64Top), exp64Bottom)
	t := float64(x*log2e) + roundMagic64
	n := int64(math.Float64bits(t)) - 0x4338000000000000
	t -= roundMagic64
	r := x - float64(t*ln2High64)
	r -= float64(t * ln2Low64)
	p := exp64Poly[len(exp64Poly)-1]
	for i := len(exp64Poly) - 2; i >= 0; i-- {
		p = float64(p*r) + exp64Poly[i]
	}
	y := float64(float64(p*r)*r) + r
	y++
	half := n >> 1
	y *= math.Float64frombits(uint64(half+1023) << 52)
	return y * math.Float64frombits(uint64(n-half+1023)<<52)
}

func sigmoid(x float32) float32 {
	e := exp(-abs(x))
	if x < 0 {
		return e / (1 + e)
	}
	return 1 / (1 + e)
}

func tanh(x float32) float32 {
	a := abs(x)
	var y float32
	if a < tanhBorder {
		z := float32(a * a)
		y = a + float32(float32(a*z)*polynomial(tanhPoly[:], z))
	} else {
		y = 1 - 2/(exp(a+a)+1)
	}
	return float32from(bits(y) | bits(x)&(1<<31))
}

// normal returns Φ(x).
func normal(x float32) float32 {
	if x != x {
		return x
	}
	a := min(abs(x), normalTop)
	high := float32from(bits(a) & 0xfffff000) // its square is exact
	low := float32((a-high)*(a+high)) * 0.5
	e := expLow(float32(high*high)*-0.5, low)
	d := 1 / (a + normalCentre)
	below := float32(polynomial(normalPoly[:], (a-normalCentre)*d)*d) * e
	if x < 0 {
		return below
	}
	return 1 - below
}

func abs(x float32) float32 { return float32from(bits(x) &^ (1 << 31)) }

// log64 returns log x for x ≥ 0, about −709 for 0.
func log64(x float64) float64 {
	u := math.Float64bits(x) + (one64 - rootHalf)
	k := float64(u>>52) - 1023
	f := math.Float64frombits(u&(1<<52-1)+rootHalf) - 1
	s := f / (f + 2)
	z := float64(s * s)
	p := log64Poly[len(log64Poly)-1]
	for i := len(log64Poly) - 2; i >= 0; i-- {
		p = float64(p*z) + log64Poly[i]
	}
	p = float64(p * z)
	square := float64(f*f) * 0.5
	p = float64((p+square)*s) + float64(k*ln2Low64)
	return float64(k*ln2High64) - ((square - p) - f)
}

func roundGeneric(codes []int8, x []float32, scale, zero, lo, hi float64) {
	for i := range codes {
		codes[i] = code(float64(x[i]), scale, zero, lo, hi)
	}
}

func round64Generic(codes []int8, x []float64, scale, zero, lo, hi float64) {
	for i := range codes {
		codes[i] = code(x[i], scale, zero, lo, hi)
	}
}

func rangeErrorGeneric(x []float64, scale, zero, lo, hi, power float64) float64 {
	var l [16]float64
	for i, v := range x {
		q := clamped(v, scale, zero, lo, hi) - zero
		d := math.Abs(v - float64(float32(scale*q)))
		l[i%len(l)] += exp64(float64(log64(d) * power))
	}
	for h := len(l) / 2; h > 0; h /= 2 {
		for i := range h {
			l[i] += l[i+h]
		}
	}
	return l[0]
}

func code(x, scale, zero, lo, hi float64) int8 { return int8(clamped(x, scale, zero, lo, hi)) }

func clamped(x, scale, zero, lo, hi float64) float64 {
	q := math.RoundToEven(x/scale) + zero
	if !(q > lo) { // also a NaN
		q = lo
	}
	return min(q, hi)
}

func dequantizeGeneric(dst []float32, codes []int8, scale float32, zero int32) {
	for i := range dst {
		dst[i] = scale * float32(int32(codes[i])-zero)
	}
}

func fromF16Generic(dst []float32, half []byte) {
	for i := range dst {
		dst[i] = float16.Frombits(binary.LittleEndian.Uint16(half[2*i:])).Float32()
	}
}

func toF16Generic(half []byte, x []float32) {
	for i, v := range x {
		binary.LittleEndian.PutUint16(half[2*i:], float16.Fromfloat32(v).Bits())
	}
}

func fromBF16Generic(dst []float32, half []byte) {
	for i := range dst {
		dst[i] = float32from(uint32(binary.LittleEndian.Uint16(half[2*i:])) << 16)
	}
}

func toBF16Generic(half []byte, x []float32) {
	for i, v := range x {
		binary.LittleEndian.PutUint16(half[2*i:], bfloat16(v))
	}
}

func bfloat16(v float32) uint16 {
	b := bits(v)
	if v != v {
		return uint16(b>>16) | 0x40 // keep a NaN a NaN when its low bits go
	}
	b += 0x7fff + b>>16&1
	return uint16(b >> 16)
}
