package linalg

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

// TestInverse32: A·A⁻¹ is I, A⁻¹ is symmetric to the bit, the upper triangle of A is
// not read, and any number of workers gives the same bytes.
func TestInverse32(t *testing.T) {
	rng := rand.New(rand.NewPCG(32, 1))
	for _, n := range []int{1, 2, 63, 128, 129, 200, 257, 400, 641} {
		x, a := NewGeneral(2*n, n), NewGeneral(n, n)
		for i := range x.Data {
			x.Data[i] = rng.NormFloat64()
			if i%n > 0 {
				x.Data[i] = 0.8*x.Data[i-1] + 0.6*x.Data[i]
			}
		}
		if err := blas.Gemm64(t.Context(), nil, blas.Trans, blas.NoTrans, 1/float64(2*n), x, x, 0, a); err != nil {
			t.Fatal(err)
		}
		stride := n + 3
		b := blas32.General{Rows: n, Cols: n, Stride: stride, Data: make([]float32, n*stride)}
		for i := range n {
			a.Data[i*n+i] += 0.1
			for j := range n {
				b.Data[i*stride+j] = float32(a.Data[i*n+j])
				if j > i {
					b.Data[i*stride+j] = float32(math.NaN())
				}
			}
		}
		other := b
		other.Data = slices.Clone(b.Data)
		if err := Inverse32(t.Context(), nil, b); err != nil {
			t.Fatal(err)
		}
		if err := Inverse32(t.Context(), pool.New(3), other); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			for j := range n {
				sum := 0.0
				for k := range n {
					sum += a.Data[i*n+k] * float64(b.Data[k*stride+j])
				}
				if want := float64(boolInt(i == j)); !(math.Abs(sum-want) < 1e-4) {
					t.Fatalf("n %d: A·A⁻¹ has %v at %d, %d", n, sum, i, j)
				}
				if v := b.Data[i*stride+j]; v != b.Data[j*stride+i] || v != other.Data[i*stride+j] {
					t.Fatalf("n %d: element %d, %d is %v, its mirror %v, with three workers %v", n, i, j, v, b.Data[j*stride+i], other.Data[i*stride+j])
				}
			}
		}
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestInverse32Refuses what is not positive definite, and says at which pivot.
func TestInverse32Refuses(t *testing.T) {
	const n = 300
	for _, bad := range []int{0, 5, 130, 299} {
		b := blas32.General{Rows: n, Cols: n, Stride: n, Data: make([]float32, n*n)}
		for i := range n {
			b.Data[i*n+i] = 1
		}
		b.Data[bad*n+bad] = -1
		var at *PivotError
		if err := Inverse32(t.Context(), nil, b); !errors.As(err, &at) || at.Pivot != bad {
			t.Errorf("pivot %d is negative: got %v", bad, err)
		}
	}
}
