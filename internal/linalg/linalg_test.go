package linalg

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/mat"

	"github.com/fettle-dev/fettle/internal/pool"
)

var ctx = context.Background()

// sizes lie around the borders of blocks.
var sizes = []int{1, 2, 5, 63, 64, 65, 128, 150}

func randomGeneral(rng *rand.Rand, rows, cols int) blas64.General {
	a := NewGeneral(rows, cols)
	for i := range a.Data {
		a.Data[i] = rng.NormFloat64()
	}
	return a
}

// randomDefinite returns XᵀX + I/10 of a random X.
func randomDefinite(rng *rand.Rand, n int) blas64.General {
	x := randomGeneral(rng, n+3, n)
	var h mat.Dense
	h.Mul(dense(x).T(), dense(x))
	for i := range n {
		h.Set(i, i, h.At(i, i)+0.1)
	}
	return h.RawMatrix()
}

func dense(a blas64.General) *mat.Dense { return mat.NewDense(a.Rows, a.Cols, Clone(a).Data) }

func wantEqual(t *testing.T, what string, got, want mat.Matrix, tolerance float64) {
	t.Helper()
	if !mat.EqualApprox(got, want, tolerance) {
		var d mat.Dense
		d.Sub(got, want)
		t.Errorf("%s differs by up to %g", what, math.Max(mat.Max(&d), -mat.Min(&d)))
	}
}

func TestFactors(t *testing.T) {
	for _, n := range sizes {
		rng := rand.New(rand.NewPCG(1, uint64(n)))
		a := randomDefinite(rng, n)
		// Only the lower triangle may be read.
		l := Clone(a)
		for i := range n {
			for j := i + 1; j < n; j++ {
				l.Data[i*n+j] = math.NaN()
			}
		}
		if err := Cholesky(ctx, nil, l); err != nil {
			t.Fatal(err)
		}
		var product mat.Dense
		product.Mul(dense(l), dense(l).T())
		wantEqual(t, "LLᵀ", &product, dense(a), 1e-10*float64(n))

		inverse, err := Inverse(ctx, nil, l)
		if err != nil {
			t.Fatal(err)
		}
		product.Mul(dense(inverse), dense(a))
		identity := mat.NewDiagDense(n, slices.Repeat([]float64{1}, n))
		wantEqual(t, "A⁻¹A", &product, identity, 1e-8)

		u := Clone(a)
		if err := InverseUpper(ctx, nil, u); err != nil {
			t.Fatal(err)
		}
		product.Mul(dense(u).T(), dense(u))
		wantEqual(t, "UᵀU", &product, dense(inverse), 1e-8)
		for i := range n {
			for j := range i {
				if u.Data[i*n+j] != 0 || l.Data[j*n+i] != 0 {
					t.Fatalf("n=%d: factor is not triangular", n)
				}
			}
		}

		b := randomGeneral(rng, 37, n)
		x := Clone(b)
		if err := SolveRows(ctx, nil, l, x); err != nil {
			t.Fatal(err)
		}
		product.Reset()
		product.Mul(dense(x), dense(a))
		wantEqual(t, "XA", &product, dense(b), 1e-8)
		for name, solve := range map[string]func() (mat.Matrix, error){
			"L":  func() (mat.Matrix, error) { return dense(l), SolveLower(ctx, nil, l, x) },
			"Lᵀ": func() (mat.Matrix, error) { return dense(l).T(), SolveLowerTrans(ctx, nil, l, x) },
		} {
			copy(x.Data, b.Data)
			f, err := solve()
			if err != nil {
				t.Fatal(err)
			}
			product.Reset()
			product.Mul(f, dense(x).T())
			wantEqual(t, name, product.T(), dense(b), 1e-8)
		}
	}
}

func TestSameBytesForAnyWorkers(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	a, b := randomDefinite(rng, 200), randomGeneral(rng, 100, 200)
	run := func(p *pool.Pool) []float64 {
		l, u, x := Clone(a), Clone(a), Clone(b)
		for _, err := range []error{Cholesky(ctx, p, l), InverseUpper(ctx, p, u), SolveRows(ctx, p, l, x)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		inverse, err := Inverse(ctx, p, l)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Concat(l.Data, u.Data, x.Data, inverse.Data)
	}
	want := run(nil)
	for _, workers := range []int{1, 2, 5} {
		if !slices.Equal(run(pool.New(workers)), want) {
			t.Errorf("%d workers change the result", workers)
		}
	}
}

func TestStrides(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	a := randomDefinite(rng, 70)
	wide := blas64.General{Rows: 70, Cols: 70, Stride: 75, Data: slices.Repeat([]float64{math.NaN()}, 70*75)}
	for i := range 70 {
		copy(Row(wide, i), Row(a, i))
	}
	if err := InverseUpper(ctx, nil, a); err != nil {
		t.Fatal(err)
	}
	if err := InverseUpper(ctx, nil, wide); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(Clone(wide).Data, a.Data) {
		t.Error("the stride changes the result")
	}
}

func TestPivot(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	for _, bad := range []int{0, 1, 64, 99} {
		a := randomDefinite(rng, 100)
		a.Data[bad*100+bad] = -1
		var pivot *PivotError
		if err := Cholesky(ctx, nil, Clone(a)); !errors.As(err, &pivot) || pivot.Pivot != bad {
			t.Errorf("Cholesky: %v, want pivot %d", err, bad)
		}
		if err := InverseUpper(ctx, nil, Clone(a)); !errors.As(err, &pivot) || pivot.Pivot != bad {
			t.Errorf("InverseUpper: %v, want pivot %d", err, bad)
		}
	}
	a := matrixOfRank1(80)
	var pivot *PivotError
	if err := Cholesky(ctx, nil, a); !errors.As(err, &pivot) || pivot.Pivot != 1 {
		t.Errorf("rank 1: %v, want pivot 1 lost in rounding", err)
	}
	nan := randomDefinite(rng, 5)
	nan.Data[0] = math.NaN()
	if err := Cholesky(ctx, nil, nan); !errors.As(err, &pivot) {
		t.Errorf("NaN: %v", err)
	}
}

func matrixOfRank1(n int) blas64.General {
	a := NewGeneral(n, n)
	for i := range n {
		for j := range n {
			a.Data[i*n+j] = (1 + float64(i)/3) * (1 + float64(j)/3)
		}
	}
	return a
}

func TestDampingEscalates(t *testing.T) {
	factor := func(h blas64.General) func(float64) error {
		return func(lambda float64) error {
			a := Clone(h)
			for i := range a.Rows {
				a.Data[i*a.Stride+i] += lambda
			}
			return Cholesky(ctx, nil, a)
		}
	}
	// Eigenvalues 1 + 3 and 1 − 3: needs λ > 2, and the mean diagonal is 1.
	h := blas64.General{Rows: 2, Cols: 2, Stride: 2, Data: []float64{1, 3, 3, 1}}
	lambda, grown, err := Damped(0.01, 1, factor(h))
	if err != nil || math.Abs(lambda-10) > 1e-9 || grown != 3 {
		t.Errorf("λ = %v after %d, %v, want 10 after 3", lambda, grown, err)
	}
	var pivot *PivotError
	if _, _, err := Damped(1e-9, 1, factor(h)); !errors.As(err, &pivot) || pivot.Pivot != 1 {
		t.Errorf("%v, want pivot 1 after six escalations", err)
	}
	other := errors.New("other")
	calls := 0
	if _, _, err := Damped(0.01, 1, func(float64) error { calls++; return other }); !errors.Is(err, other) || calls != 1 {
		t.Errorf("%v after %d calls, want other errors returned at once", err, calls)
	}
	if lambda, _, err := Damped(0.01, 1, factor(matrixOfRank1(80))); err != nil || lambda <= 0 {
		t.Errorf("rank 1, damped: %v, %v", lambda, err)
	}
}

func TestCancelled(t *testing.T) {
	done, cancel := context.WithCancel(ctx)
	cancel()
	a := randomDefinite(rand.New(rand.NewPCG(5, 5)), 130)
	for name, err := range map[string]error{
		"Cholesky":     Cholesky(done, nil, Clone(a)),
		"InverseUpper": InverseUpper(done, pool.New(2), Clone(a)),
		"InverseLower": InverseLower(done, nil, Clone(a)),
		"SolveRows":    SolveRows(done, nil, a, Clone(a)),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
