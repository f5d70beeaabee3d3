package dtype

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestMinifloatValues: every value of both types against the decoder of their
// bits, both ways.
func TestMinifloatValues(t *testing.T) {
	want := []float32{0, 0.5, 1, 1.5, 2, 3, 4, 6}
	for c, v := range want {
		if E2M1.Value(c) != v || E2M1.Value(-c) != -v {
			t.Errorf("E2M1 code %d: %v and %v, want %v", c, E2M1.Value(c), E2M1.Value(-c), v)
		}
	}
	for b := range 256 {
		v := f8ToFloat32(byte(b), 4, 7, true)
		if b&0x7f == 0x7f || b == 0x80 { // NaN, −0
			continue
		}
		code := b & 0x7f
		if b >= 0x80 {
			code = -code
		}
		if E4M3.Value(code) != v {
			t.Errorf("E4M3 code %d is %v, bits %#x are %v", code, E4M3.Value(code), b, v)
		}
	}
	for _, m := range []*Minifloat{E2M1, E4M3} {
		if m.Largest() != float64(m.Value(m.Most())) {
			t.Errorf("largest %v, code %d is %v", m.Largest(), m.Most(), m.Value(m.Most()))
		}
		for c := -m.Most(); c <= m.Most(); c++ {
			v := float64(m.Value(c))
			if m.Nearest(v) != c || m.Floor(v) != c {
				t.Errorf("%v of code %d has code %d, floor %d", v, c, m.Nearest(v), m.Floor(v))
			}
			if c > -m.Most() && m.Value(c-1) >= m.Value(c) {
				t.Errorf("codes %d and %d are not in order", c-1, c)
			}
		}
		if v := m.Value(0); math.Signbit(float64(v)) {
			t.Error("code 0 is −0")
		}
	}
}

// TestMinifloatThresholds: halfway between two values the code with the even
// mantissa, as hardware rounds, and the nearer one on either side.
func TestMinifloatThresholds(t *testing.T) {
	for threshold, even := range map[float64]float32{0.25: 0, 0.75: 1, 1.25: 1, 1.75: 2, 2.5: 2, 3.5: 4, 5: 4} {
		if got := E2M1.Value(E2M1.Nearest(threshold)); got != even {
			t.Errorf("%v becomes %v, want %v", threshold, got, even)
		}
	}
	for _, m := range []*Minifloat{E2M1, E4M3} {
		for c := range m.Most() {
			low, high := float64(m.Value(c)), float64(m.Value(c+1))
			half := (low + high) / 2
			for _, sign := range []float64{1, -1} {
				for x, want := range map[float64]int{
					half: c + c&1, math.Nextafter(half, 0): c, math.Nextafter(half, 1e9): c + 1,
				} {
					if got := m.Nearest(sign * x); got != int(sign)*want {
						t.Errorf("%v has code %d, want %d", sign*x, got, int(sign)*want)
					}
				}
			}
		}
		for _, x := range []float64{m.Largest(), 1.04 * m.Largest(), 1e300, math.Inf(1)} {
			if m.Nearest(x) != m.Most() || m.Nearest(-x) != -m.Most() || m.Floor(x) != m.Most() {
				t.Errorf("%v has code %d and %d", x, m.Nearest(x), m.Nearest(-x))
			}
		}
		if m.Floor(-m.Largest()) != -m.Most() || m.Floor(-1.01*m.Largest()) != -m.Most()-1 {
			t.Error("floor of the smallest value, or below it")
		}
	}
}

// TestMinifloatBruteForce holds Nearest and Floor against a search of all
// values.
func TestMinifloatBruteForce(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		x := rng.NormFloat64() * math.Exp2(float64(rng.IntN(30)-18))
		for _, m := range []*Minifloat{E2M1, E4M3} {
			best, floor := 0, -m.Most()-1
			for c := -m.Most(); c <= m.Most(); c++ {
				if d, least := math.Abs(x-float64(m.Value(c))), math.Abs(x-float64(m.Value(best))); d < least {
					best = c
				}
				if float64(m.Value(c)) <= x {
					floor = c
				}
			}
			if got := m.Nearest(x); got != best {
				t.Fatalf("%v has code %d, want %d", x, got, best)
			}
			if got := m.Floor(x); got != floor {
				t.Fatalf("%v has floor %d, want %d", x, got, floor)
			}
		}
	}
}
