package prune

import (
	"context"
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
)

// correlated returns a damped Gram of inputs of unequal size that follow each
// other, and random weights.
func correlated(rng *rand.Rand, out, in, samples int, damping float64) (a, w blas64.General) {
	x := linalg.NewGeneral(samples, in)
	size := make([]float64, in)
	for j := range size {
		size[j] = 0.2 + rng.ExpFloat64()
	}
	for i := range samples {
		last := 0.0
		for j := range in {
			last = 0.8*last + 0.6*rng.NormFloat64()
			x.Data[i*in+j] = size[j] * last
		}
	}
	a, w = linalg.NewGeneral(in, in), linalg.NewGeneral(out, in)
	if err := blas.Gemm64(context.Background(), pool.New(0), blas.Trans, blas.NoTrans, 1, x, x, 0, a); err != nil {
		panic(err)
	}
	lambda := damping * linalg.MeanDiagonal(a)
	for j := range in {
		a.Data[j*in+j] += lambda
	}
	for i := range w.Data {
		w.Data[i] = rng.NormFloat64()
	}
	return a, w
}

// loss returns tr((W−Ŵ)A(W−Ŵ)ᵀ).
func loss(t testing.TB, a, w, got blas64.General) float64 {
	t.Helper()
	d, da := linalg.Clone(w), linalg.NewGeneral(w.Rows, w.Cols)
	for i := range d.Data {
		d.Data[i] -= got.Data[i]
	}
	if err := blas.Gemm64(context.Background(), pool.New(0), blas.NoTrans, blas.NoTrans, 1, d, a, 0, da); err != nil {
		t.Fatal(err)
	}
	return vec.Dot64(d.Data, da.Data)
}

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance*max(1, math.Abs(want))) {
		t.Errorf("%s is %.10g, want %.10g", what, got, want)
	}
}
