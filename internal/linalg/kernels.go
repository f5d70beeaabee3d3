package linalg

import "os"

// The loops that are no matrix products have kernels in assembly
// (internal/asm/linalg) and a plain twin here. The two of assembly give the same
// bytes; the twin rounds otherwise.

type kernelSet int

const (
	generic kernelSet = iota
	avx2
	avx512
)

// kernels is the set in use: the machine's best, or what FETTLE_KERNELS names
// as far as the machine has it.
var kernels = chooseKernels(os.Getenv("FETTLE_KERNELS"))

func chooseKernels(name string) kernelSet {
	best := generic
	switch {
	case haveAVX512:
		best = avx512
	case haveAVX2:
		best = avx2
	}
	switch name {
	case "generic":
		return generic
	case "avx2":
		return min(best, avx2)
	}
	return best
}

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
