package blas

import (
	"context"
	"gonum.org/v1/gonum/blas/blas64"
	"math/rand/v2"
	"testing"
)

func BenchmarkGemm1024(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	n := 1024
	x, y, z := random32(rng, n, n), random32(rng, n, n), random32(rng, n, n)
	for b.Loop() {
		Gemm(context.Background(), nil, NoTrans, NoTrans, 1, x, y, 0, z)
	}
}
func BenchmarkGemm64(b *testing.B) {
	n := 1024
	x := blas64.General{Rows: n, Cols: n, Stride: n, Data: make([]float64, n*n)}
	z := blas64.General{Rows: n, Cols: n, Stride: n, Data: make([]float64, n*n)}
	for b.Loop() {
		Gemm64(context.Background(), nil, NoTrans, NoTrans, 1, x, x, 0, z)
	}
}
func BenchmarkGram(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	n := 1024
	x := random32(rng, 4096, n)
	z := blas64.General{Rows: n, Cols: n, Stride: n, Data: make([]float64, n*n)}
	for b.Loop() {
		AddGramUpper(context.Background(), nil, x, z)
	}
}
