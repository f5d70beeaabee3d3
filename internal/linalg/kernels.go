package linalg

import "github.com/fettle-dev/fettle/internal/blas"

// The loops that are no matrix products have kernels in assembly
// (internal/asm/linalg) and a plain twin here. The two of assembly give the same
// bytes; the twin rounds otherwise.

type kernelSet int

const (
	generic kernelSet = iota
	avx2
	avx512
)

// kernels is the set in use, that of the matrix products.
var kernels = map[string]kernelSet{"avx2": avx2, "avx512": avx512}[blas.Kernels]

func dotGeneric(x, y []float64) float64 {
	return impl.Ddot(len(x), x, 1, y, 1)
}

func axpyGeneric(alpha float64, x, y []float64) {
	for i, v := range x {
		y[i] += alpha * v
	}
}

func symvGeneric(a, b, x, y []float64, xa, xb float64) (da, db float64) {
	for i, v := range a {
		da += v * x[i]
		db += b[i] * x[i]
		y[i] += xa*v + xb*b[i]
	}
	return da, db
}

func forwardGeneric(n int, l *[block * block]float64, inverse *[block]float64, x *[block * sides]float64) {
	for i := range n {
		xi := x[i*sides:][:sides]
		for j := range i {
			axpyGeneric(-l[i*block+j], x[j*sides:][:sides], xi)
		}
		for c := range xi {
			xi[c] *= inverse[i]
		}
	}
}
