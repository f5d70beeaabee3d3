package main

import (
	"bytes"
	"fmt"
)

// The numbers of the approximations, written to the assembly and, for the
// plain twin, to Go. Polynomials are given from the lowest degree and were
// fitted minimax in the relative error of the function.
var (
	// eˣ = 2ⁿ·eʳ, n = round(x·log2e), r = x − n·ln2 in two pieces,
	// eʳ = 1 + (r + r²·p(r)), |r| ≤ ln2/2, error 3.1e-9.
	expPoly = []float32{0.49999994, 0.166665211, 0.041668389, 0.00836871751, 0.00138145965}

	// tanh x = x + x³·p(x²), x < 0.625, error 4.4e-9.
	tanhPoly = []float32{-0.333332807, 0.133314416, -0.0537397116, 0.0206390787, -0.00570497848}

	// Φ(−a) = e^(−a²/2)·p((a−3)/(a+3))/(a+3), 0 ≤ a ≤ 15, error 9.4e-10.
	normalPoly = []float32{0.729083717, -0.509332001, 0.230017707, -0.0472626872, -0.0104625132, 0.00696931127, 0.0010247539, -0.0010325741, -0.000244730181, 0.000131330773, 5.44894028e-05}

	// The same for float64: p is Taylor's, 1/2!, 1/3! … 1/13!.
	exp64Poly = taylor(12)

	// log m = f − (f²/2 − s·(f²/2 + z·p(z))), f = m − 1, s = f/(2+f), z = s²,
	// √½ ≤ m < √2, error 2⁻⁵⁸ (the polynomial of FDLIBM's e_log.c).
	log64Poly = []float64{6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01, 2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01, 1.479819860511658591e-01}
)

const (
	normalCentre = 3
	normalTop    = 15 // Φ(−15) is 0 in float32

	log2e        = 1.44269504088896341
	ln2High      = 0.693359375 // 9 bits, so that n·ln2High is exact
	ln2Low       = -2.12194440e-4
	expTop       = 89      // overflows
	expBottom    = -104    // rounds to 0
	roundMagic   = 3 << 22 // x + 1.5·2²³ has round(x) in its low bits
	tanhBorder   = 0.625
	geluCubic    = 0.044715
	geluTwice    = 1.5957691216057308         // 2·√(2/π)
	ln2High64    = 6.93147180369123816490e-01 // 32 bits
	ln2Low64     = 1.90821492927058770002e-10
	exp64Top     = 710
	exp64Bottom  = -746
	one64        = 0x3ff0000000000000 // 1 and √½ as bits
	rootHalf     = 0x3fe6a09e667f3bcd
	roundMagic64 = 3 << 51
)

func taylor(n int) []float64 {
	p := make([]float64, n)
	factorial := 1.0
	for i := range p {
		factorial *= float64(i + 2)
		p[i] = 1 / factorial
	}
	return p
}

// goConstants is the Go file of the constants.
func goConstants() []byte {
	var b bytes.Buffer
	b.WriteString(header + `package vec

// The numbers of the approximations; constants.go of the generator says what
// they are.
const (
`)
	for _, c := range []struct {
		name  string
		value any
	}{
		{"normalCentre", normalCentre},
		{"normalTop", normalTop},
		{"log2e", log2e},
		{"ln2High", ln2High},
		{"ln2Low", ln2Low},
		{"expTop", expTop},
		{"expBottom", expBottom},
		{"roundMagic", roundMagic},
		{"tanhBorder", tanhBorder},
		{"geluCubic", geluCubic},
		{"geluTwice", geluTwice},
		{"ln2High64", ln2High64},
		{"ln2Low64", ln2Low64},
		{"exp64Top", exp64Top},
		{"exp64Bottom", exp64Bottom},
		{"roundMagic64", roundMagic64},
		{"one64", one64},
		{"rootHalf", rootHalf},
	} {
		fmt.Fprintf(&b, "\t%s = %v\n", c.name, c.value)
	}
	b.WriteString(")\n\nvar (\n")
	for _, p := range []struct {
		name string
		c    []float32
	}{{"expPoly", expPoly}, {"tanhPoly", tanhPoly}, {"normalPoly", normalPoly}} {
		fmt.Fprintf(&b, "\t%s = [...]float32{", p.name)
		for i, v := range p.c {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "%v", v)
		}
		b.WriteString("}\n")
	}
	for _, p := range []struct {
		name string
		c    []float64
	}{{"exp64Poly", exp64Poly}, {"log64Poly", log64Poly}} {
		fmt.Fprintf(&b, "\t%s = [...]float64{", p.name)
		for i, v := range p.c {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "%v", v)
		}
		b.WriteString("}\n")
	}
	b.WriteString(")\n")
	return b.Bytes()
}
