//go:build !amd64 || purego

package linalg

func dot(x, y []float64) float64         { return dotGeneric(x, y) }
func axpy(alpha float64, x, y []float64) { axpyGeneric(alpha, x, y) }

func symv(a, b, x, y []float64, xa, xb float64) (da, db float64) {
	return symvGeneric(a, b, x, y, xa, xb)
}

func forward(n int, l *[block * block]float64, inverse *[block]float64, x *[block * sides]float64) {
	forwardGeneric(n, l, inverse, x)
}
