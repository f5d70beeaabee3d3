//go:build amd64 && !purego

package linalg

//go:noescape
func dotAVX2(x, y *float64, n int) float64

//go:noescape
func dotAVX512(x, y *float64, n int) float64

//go:noescape
func axpyAVX2(alpha float64, x, y *float64, n int)

//go:noescape
func axpyAVX512(alpha float64, x, y *float64, n int)

//go:noescape
func symvAVX2(a, b, x, y *float64, n int, xa, xb float64) (da, db float64)

//go:noescape
func symvAVX512(a, b, x, y *float64, n int, xa, xb float64) (da, db float64)

//go:noescape
func forwardAVX2(n int, l, inverse, x *float64)

//go:noescape
func forwardAVX512(n int, l, inverse, x *float64)

// dot returns xᵀy. y is at least as long as x.
func dot(x, y []float64) float64 {
	n := len(x)
	if n == 0 {
		return 0
	}
	y = y[:n]
	switch kernels {
	case avx512:
		return dotAVX512(&x[0], &y[0], n)
	case avx2:
		return dotAVX2(&x[0], &y[0], n)
	}
	return dotGeneric(x, y)
}

// axpy adds alpha·x to y, which is at least as long as x.
func axpy(alpha float64, x, y []float64) {
	n := len(x)
	if n == 0 {
		return
	}
	y = y[:n]
	switch kernels {
	case avx512:
		axpyAVX512(alpha, &x[0], &y[0], n)
	case avx2:
		axpyAVX2(alpha, &x[0], &y[0], n)
	default:
		axpyGeneric(alpha, x, y)
	}
}

// symv adds xa·a + xb·b to y and returns aᵀx and bᵀx. All have the length of a.
func symv(a, b, x, y []float64, xa, xb float64) (da, db float64) {
	n := len(a)
	if n == 0 {
		return 0, 0
	}
	b, x, y = b[:n], x[:n], y[:n]
	switch kernels {
	case avx512:
		return symvAVX512(&a[0], &b[0], &x[0], &y[0], n, xa, xb)
	case avx2:
		return symvAVX2(&a[0], &b[0], &x[0], &y[0], n, xa, xb)
	}
	return symvGeneric(a, b, x, y, xa, xb)
}

// forward overwrites X with L⁻¹X for sides right-hand sides: L is the lower
// n×n corner of l, n ≤ block, inverse its diagonal's reciprocals, X the first n
// rows of x.
func forward(n int, l *[block * block]float64, inverse *[block]float64, x *[block * sides]float64) {
	switch kernels {
	case avx512:
		forwardAVX512(n, &l[0], &inverse[0], &x[0])
	case avx2:
		forwardAVX2(n, &l[0], &inverse[0], &x[0])
	default:
		forwardGeneric(n, l, inverse, x)
	}
}
