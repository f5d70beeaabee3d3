package linalg

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

// matrixOperator is the Operator of a matrix that exists.
func matrixOperator(gamma blas64.General) Operator {
	return func(ctx context.Context, dst, x blas64.General) error {
		return blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, gamma, x, 0, dst)
	}
}

// captured returns tr(UᵀΓU).
func captured(t *testing.T, gamma, u blas64.General) float64 {
	t.Helper()
	gu := NewGeneral(u.Rows, u.Cols)
	if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, gamma, u, 0, gu); err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for i := range u.Rows {
		sum += dot(Row(u, i), Row(gu, i))
	}
	return sum
}

// errorMatrix returns ΔW·S·ΔWᵀ.
func errorMatrix(t *testing.T, dw, s blas64.General) blas64.General {
	t.Helper()
	a, gamma := NewGeneral(dw.Rows, dw.Cols), NewGeneral(dw.Rows, dw.Rows)
	if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, dw, s, 0, a); err != nil {
		t.Fatal(err)
	}
	if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.Trans, 1, a, dw, 0, gamma); err != nil {
		t.Fatal(err)
	}
	return symmetric(gamma)
}

func widen(a blas32.General) blas64.General {
	b := NewGeneral(a.Rows, a.Cols)
	for i := range a.Rows {
		for j, v := range a.Data[i*a.Stride:][:a.Cols] {
			b.Data[i*b.Stride+j] = float64(v)
		}
	}
	return b
}

// The worked example of EoRA: rank 1 of a 3×2 error in the metric S.
func TestLeadingWorkedExample(t *testing.T) {
	dw := blas64.General{Rows: 3, Cols: 2, Stride: 2, Data: []float64{1, .5, .2, 1, 0, .3}}
	s := blas64.General{Rows: 2, Cols: 2, Stride: 2, Data: []float64{4, 1, 1, 1}}
	apply, err := ErrorOperator(nil, dw, s)
	if err != nil {
		t.Fatal(err)
	}
	u, values, err := LeadingEigen(ctx, nil, 3, apply, 1, 2, 30, 1)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(values[0]-6.481782) > 1e-6 {
		t.Errorf("λ₁ = %g, want 6.481782", values[0])
	}
	want := []float64{.876017, .816499, .433467, .404017, .086088, .080239}
	for i := range 3 {
		for j := range 2 {
			a := 0.0
			for k := range 3 {
				a += u.Data[k] * dw.Data[k*2+j]
			}
			if got := u.Data[i] * a; math.Abs(got-want[i*2+j]) > 1e-6 {
				t.Errorf("BA(%d, %d) = %g, want %g", i, j, got, want[i*2+j])
			}
		}
	}
}

func TestLeadingAgainstTheWholeSpectrum(t *testing.T) {
	rng := rand.New(rand.NewPCG(10, 1))
	for _, n := range []int{1, 2, 20, 65, 200} {
		for name, value := range map[string]func(i int) float64{
			"fast":   func(i int) float64 { return math.Pow(0.5, float64(i)) },
			"slow":   func(i int) float64 { return 1 / float64(i+1) },
			"flat":   func(i int) float64 { return 1 + rng.Float64() },
			"rank 3": func(i int) float64 { return max(0, 3-float64(i)) },
			"zero":   func(i int) float64 { return 0 },
		} {
			spectrum := make([]float64, n)
			for i := range spectrum {
				spectrum[i] = value(i)
			}
			gamma := withSpectrum(t, rng, spectrum)
			exact, err := SymmetricEigen(ctx, nil, Clone(gamma), false)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range []int{1, n / 4, n} {
				if r == 0 {
					continue
				}
				u, values, err := LeadingEigen(ctx, pool.New(2), n, matrixOperator(gamma), r, 16, 3, 1)
				if err != nil {
					t.Fatal(err)
				}
				if o := orthonormality(t, u); o > 8*float64(n)*epsilon {
					t.Errorf("%s %d of %d: UᵀU − I is %g", name, r, n, o)
				}
				best := 0.0
				for i := range r {
					best += exact[n-1-i]
					if values[i] > exact[n-1-i]+1e-13*float64(n) || i > 0 && values[i] > values[i-1] {
						t.Errorf("%s %d of %d: value %d is %g, above %g", name, r, n, i, values[i], exact[n-1-i])
					}
				}
				tolerance := 1e-12
				switch name {
				case "slow":
					tolerance = 1e-3
				case "flat":
					tolerance = 0.05
				}
				if r+16 >= n {
					tolerance = 1e-12
				}
				if got := captured(t, gamma, u); !(best-got <= tolerance*best+1e-14*float64(n)) {
					t.Errorf("%s %d of %d: holds %g, possible is %g", name, r, n, got, best)
				}
			}
		}
	}
}

func TestErrorOperators(t *testing.T) {
	rng := rand.New(rand.NewPCG(10, 2))
	const out, in, r = 150, 110, 12
	dw := new32(out, in)
	for i := range out {
		for j := range in {
			dw.Data[i*in+j] = float32(rng.NormFloat64() / float64(1+j))
		}
	}
	s := randomDefinite(rng, in)
	gamma := errorMatrix(t, widen(dw), s)
	leading := func(p *pool.Pool, apply Operator, err error) (blas64.General, []float64) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		u, values, err := LeadingEigen(ctx, p, out, apply, r, 16, 3, 5)
		if err != nil {
			t.Fatal(err)
		}
		return u, values
	}
	apply, err := ErrorOperator(nil, widen(dw), s)
	u64, values64 := leading(nil, apply, err)
	apply, err = ErrorOperator32(ctx, nil, dw, s)
	u32, values32 := leading(nil, apply, err)
	e64, e32 := captured(t, gamma, u64), captured(t, gamma, u32)
	if math.Abs(e64-e32) > 0x1p-20*values64[0] {
		t.Errorf("f32 products hold %g, f64 ones %g", e32, e64)
	}
	for i := range r {
		if math.Abs(values32[i]-values64[i]) > 0x1p-20*values64[0] {
			t.Errorf("value %d is %g with f32 products, %g with f64 ones", i, values32[i], values64[i])
		}
	}
	// Powers of two change nothing but the values.
	for i := range dw.Data {
		dw.Data[i] *= 0x1p-90
	}
	scale(0x1p600, s.Data)
	apply, err = ErrorOperator32(ctx, pool.New(2), dw, s)
	u, values := leading(pool.New(2), apply, err)
	if !sameBytes(u.Data, u32.Data) {
		t.Error("the scale changes the vectors")
	}
	for i := range r {
		if values[i] != values32[i]*0x1p420 {
			t.Errorf("value %d is %g, want %g", i, values[i], values32[i]*0x1p420)
		}
	}
}

func TestLeadingArguments(t *testing.T) {
	gamma := NewGeneral(4, 4)
	for _, bad := range [][4]int{{-1, 0, 0, 1}, {4, 5, 0, 1}, {4, -1, 0, 1}, {4, 1, -1, 1}, {4, 1, 0, 0}} {
		if _, _, err := LeadingEigen(ctx, nil, bad[0], matrixOperator(gamma), bad[1], bad[2], bad[3], 1); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
	u, values, err := LeadingEigen(ctx, nil, 4, matrixOperator(gamma), 0, 3, 1, 1)
	if err != nil || u.Rows != 4 || u.Cols != 0 || len(values) != 0 {
		t.Errorf("none of 4: %v, %v, %v", u, values, err)
	}
	if _, err := ErrorOperator(nil, NewGeneral(3, 2), NewGeneral(3, 3)); err == nil {
		t.Error("shapes that do not fit are taken")
	}
	if _, err := ErrorOperator32(ctx, nil, new32(3, 2), NewGeneral(2, 3)); err == nil {
		t.Error("an S that is not square is taken")
	}
	failed := errors.New("failed")
	if _, _, err := LeadingEigen(ctx, nil, 4, func(context.Context, blas64.General, blas64.General) error { return failed }, 1, 1, 1, 1); !errors.Is(err, failed) {
		t.Errorf("the operator's error: %v", err)
	}
}
