package dtype

import "math"

// Minifloat is a floating-point type of few bits, without infinities. Its finite
// values are numbered in their order: code 0 is 0, code c > 0 the c-th positive
// value and −c the same below 0. So the magnitude of a code is the value's bits
// without the sign, and −0 and NaN have no code.
type Minifloat struct {
	mantissa int // explicit bits of it
	least    int // exponent of the smallest normal value
	most     int // the largest code
	largest  float64
	values   [256]float32 // by uint8(int8(code))
}

// The types of weights that Open Compute's and NVIDIA's formats have: 4 bits
// with the values 0, ½, 1, 1½, 2, 3, 4, 6, and 8 bits up to 448 (E4M3FN).
var (
	E2M1 = newMinifloat(1, 0, 7)
	E4M3 = newMinifloat(3, -6, 126)
)

func newMinifloat(mantissa, least, most int) *Minifloat {
	m := &Minifloat{mantissa: mantissa, least: least, most: most}
	for c := range most + 1 {
		exponent, digits := c>>mantissa, c&(1<<mantissa-1)
		if exponent > 0 { // a normal value
			exponent--
			digits += 1 << mantissa
		}
		v := float32(math.Ldexp(float64(digits), least+exponent-mantissa))
		m.values[c], m.values[(256-c)%256] = v, -v
	}
	m.values[0] = 0 // not −0
	m.largest = float64(m.values[most])
	return m
}

// Most returns the largest code; the smallest is its negative.
func (m *Minifloat) Most() int { return m.most }

// Largest returns the largest value.
func (m *Minifloat) Largest() float64 { return m.largest }

// Value returns what a code within −Most…Most stands for.
func (m *Minifloat) Value(code int) float32 { return m.values[uint8(code)] }

// Nearest returns the code of the value nearest to x, of two equally near ones
// that with an even mantissa. Beyond the largest value it is Most.
func (m *Minifloat) Nearest(x float64) int {
	base, rest := m.split(math.Abs(x))
	code := base + int(math.RoundToEven(rest))
	negative := int(int64(math.Float64bits(x)) >> 63) // −1 or 0: signs are hard to predict
	return (code ^ negative) - negative
}

// Floor returns the code of the largest value that is at most x; −Most−1 where
// there is none.
func (m *Minifloat) Floor(x float64) int {
	base, rest := m.split(math.Abs(x))
	switch {
	case x >= 0:
		return base + int(rest)
	case -x > m.largest:
		return -m.most - 1
	default:
		return -base - int(math.Ceil(rest))
	}
}

// split returns the place of a ≥ 0 among the codes: base + rest, where rest is
// the distance in steps as wide as they are around a. It ends at Most.
func (m *Minifloat) split(a float64) (base int, rest float64) {
	if !(a < m.largest) {
		return m.most, 0
	}
	// The exponent from the bits: 2^least and what is below lie in one binade.
	binade := max(int(math.Float64bits(a)>>52)-1023-m.least, 0)
	steps := math.Float64frombits(uint64(1023+m.mantissa-m.least-binade) << 52) // in 1
	return binade << m.mantissa, a * steps
}
