package main

import (
	gb "gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/blas/gonum"

	"github.com/fettle-dev/fettle/internal/blas"
)

func init() {
	var g gonum.Implementation
	peers = append(peers, peer{
		name: "gonum",
		gemm: func(tA, tB blas.Transpose, a, b, c blas32.General) {
			k, _ := shape(tB, b.Rows, b.Cols)
			g.Sgemm(tA, tB, c.Rows, c.Cols, k, 1, a.Data, a.Stride, b.Data, b.Stride, 0, c.Data, c.Stride)
		},
		gemm64: func(tA, tB blas.Transpose, a, b, c blas64.General) {
			k, _ := shape(tB, b.Rows, b.Cols)
			g.Dgemm(tA, tB, c.Rows, c.Cols, k, 1, a.Data, a.Stride, b.Data, b.Stride, 0, c.Data, c.Stride)
		},
		syrk: func(a, c blas32.General) {
			g.Ssyrk(gb.Upper, gb.Trans, a.Cols, a.Rows, 1, a.Data, a.Stride, 0, c.Data, c.Stride)
		},
		only: func(l line) bool { return l.m == 512 && l.n == 512 || l.gram && l.n <= 144 },
	})
}
