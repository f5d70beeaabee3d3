//go:build openblas

package main

/*
#cgo LDFLAGS: -lopenblas
#include <cblas.h>
*/
import "C"

import (
	"time"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
)

func trans(t blas.Transpose) C.enum_CBLAS_TRANSPOSE {
	if t == blas.Trans {
		return C.CblasTrans
	}
	return C.CblasNoTrans
}

func init() {
	f := func(s []float32) *C.float { return (*C.float)(&s[0]) }
	d := func(s []float64) *C.double { return (*C.double)(&s[0]) }
	peers = append(peers, peer{
		name:    "OpenBLAS",
		threads: func(n int) { C.openblas_set_num_threads(C.int(n)) },
		gemm: func(tA, tB blas.Transpose, a, b, c blas32.General) {
			k, _ := shape(tB, b.Rows, b.Cols)
			C.cblas_sgemm(C.CblasRowMajor, trans(tA), trans(tB), C.int(c.Rows), C.int(c.Cols), C.int(k), 1,
				f(a.Data), C.int(a.Stride), f(b.Data), C.int(b.Stride), 0, f(c.Data), C.int(c.Stride))
		},
		gemm64: func(tA, tB blas.Transpose, a, b, c blas64.General) {
			k, _ := shape(tB, b.Rows, b.Cols)
			C.cblas_dgemm(C.CblasRowMajor, trans(tA), trans(tB), C.int(c.Rows), C.int(c.Cols), C.int(k), 1,
				d(a.Data), C.int(a.Stride), d(b.Data), C.int(b.Stride), 0, d(c.Data), C.int(c.Stride))
		},
		syrk: func(a, c blas32.General) {
			C.cblas_ssyrk(C.CblasRowMajor, C.CblasUpper, C.CblasTrans, C.int(a.Cols), C.int(a.Rows), 1,
				f(a.Data), C.int(a.Stride), 0, f(c.Data), C.int(c.Stride))
		},
		// Its threads wait for work by spinning, for 2²⁸ cycles at most.
		idle: 150 * time.Millisecond,
	})
}
