package linalg

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

// Operator computes dst = Γ·x for a symmetric positive semidefinite Γ of order
// dim that need not exist as a matrix. Shapes: dst and x dim×b. It must not keep
// either, and must give the same bytes for any number of workers.
type Operator func(ctx context.Context, dst, x blas64.General) error

// LeadingEigen returns approximations to the r leading eigenvectors of Γ, the
// orthonormal columns of U (dim×r), and their eigenvalues in descending order.
//
// It is subspace iteration from a random start (Halko, Martinsson and Tropp
// 2011, 4.4) on r+oversample vectors, which are made orthonormal after each use
// of Γ: one on the start, then iterations ones. Those are of Γ − sI, s being half
// of the least eigenvalue of Γ in the subspace, hence at most λ/2 of number
// r+oversample: what is outside is damped the faster, at no cost (dynamic
// shifts, Feng, Yu, Xie and Tang 2024). The last use gives the eigenvalues in the
// subspace (Rayleigh–Ritz, so none is too large); U is what it makes of their
// vectors, orthonormalized in order. Take oversample 32 or more and iterations 2
// to 4 where a spectrum is flat. The energy that U leaves is tr(Γ) − tr(UᵀΓU).
// The start is drawn from PCG(seed, 0), row by row.
func LeadingEigen(ctx context.Context, p *pool.Pool, dim int, apply Operator, r, oversample, iterations int, seed uint64) (u blas64.General, values []float64, err error) {
	if dim < 0 || r < 0 || r > dim || oversample < 0 || iterations < 1 {
		return u, nil, fmt.Errorf("leading %d of %d eigenvectors with %d more, %d iterations: want 0 ≤ r ≤ dimension, oversample ≥ 0, iterations ≥ 1", r, dim, oversample, iterations)
	}
	if r == 0 {
		return NewGeneral(dim, 0), nil, ctx.Err()
	}
	width := min(dim, r+oversample)
	q, y := NewGeneral(dim, width), NewGeneral(dim, width)
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range q.Data {
		q.Data[i] = rng.NormFloat64()
	}
	if err := apply(ctx, y, q); err != nil {
		return u, nil, err
	}
	small := NewGeneral(width, width)
	var ascending []float64
	for i := range iterations {
		if q, _, err = QR(ctx, p, y); err != nil {
			return u, nil, fmt.Errorf("product of the operator: %w", err)
		}
		if err := apply(ctx, y, q); err != nil {
			return u, nil, err
		}
		last := i == iterations-1
		if ascending, err = projected(ctx, p, q, y, small, last); err != nil {
			return u, nil, fmt.Errorf("product of the operator: %w", err)
		}
		if shift := ascending[0] / 2; shift > 0 {
			for i := range dim {
				axpy(-shift, Row(q, i), Row(y, i))
			}
		}
	}
	ritz := NewGeneral(width, r)
	values = make([]float64, r)
	for j := range r {
		values[j] = ascending[width-1-j]
		for i := range width {
			ritz.Data[i*r+j] = small.Data[i*width+width-1-j]
		}
	}
	u = NewGeneral(dim, r)
	if err := blas.Gemm64(ctx, p, blas.NoTrans, blas.NoTrans, 1, y, ritz, 0, u); err != nil {
		return u, nil, err
	}
	u, _, err = QR(ctx, p, u)
	return u, values, err
}

// projected returns the eigenvalues of QᵀΓQ from Q and Y = ΓQ, and leaves the
// eigenvectors in small where they are wanted.
func projected(ctx context.Context, p *pool.Pool, q, y, small blas64.General, vectors bool) ([]float64, error) {
	if err := blas.Gemm64(ctx, p, blas.Trans, blas.NoTrans, 1, q, y, 0, small); err != nil {
		return nil, err
	}
	for i := range small.Rows { // symmetric but for rounding
		for j := range i {
			upper := &small.Data[j*small.Stride+i]
			*upper = *upper/2 + small.Data[i*small.Stride+j]/2
		}
	}
	return SymmetricEigen(ctx, p, small, vectors)
}

// ErrorOperator returns Γ = ΔW·S·ΔWᵀ as an Operator, by three products in
// float64. Shapes: ΔW out×in, S in×in symmetric positive semidefinite, all of it
// read; the operator's dimension is out. Cost of a use on b vectors:
// b·(2·out·in + in²) multiply-adds.
func ErrorOperator(p *pool.Pool, dw, s blas64.General) (Operator, error) {
	if err := checkError(dw.Rows, dw.Cols, s); err != nil {
		return nil, err
	}
	return func(ctx context.Context, dst, x blas64.General) error {
		a, b := NewGeneral(dw.Cols, x.Cols), NewGeneral(dw.Cols, x.Cols)
		if err := blas.Gemm64(ctx, p, blas.Trans, blas.NoTrans, 1, dw, x, 0, a); err != nil {
			return err
		}
		if err := blas.Gemm64(ctx, p, blas.NoTrans, blas.NoTrans, 1, s, a, 0, b); err != nil {
			return err
		}
		return blas.Gemm64(ctx, p, blas.NoTrans, blas.NoTrans, 1, dw, b, 0, dst)
	}, nil
}

// ErrorOperator32 is ErrorOperator with products in float32, in half the time:
// it adds noise of about 2⁻²⁰ of Γ's largest eigenvalue, below which eigenvalues
// and their vectors mean nothing. The energy that U leaves suffers by no more
// than that. It scales ΔW, S and the vectors by powers of two, so that their
// magnitudes do not matter.
func ErrorOperator32(ctx context.Context, p *pool.Pool, dw blas32.General, s blas64.General) (Operator, error) {
	if err := checkError(dw.Rows, dw.Cols, s); err != nil {
		return nil, err
	}
	most, err := largest32(ctx, p, dw)
	if err != nil {
		return nil, fmt.Errorf("ΔW: %w", err)
	}
	dwScale := float32(math.Ldexp(1, max(-126, min(126, -exponent(most)))))
	mostS, err := largest(ctx, p, s, false)
	if err != nil {
		return nil, fmt.Errorf("S: %w", err)
	}
	sExponent := exponent(mostS)
	s32, err := narrow(ctx, p, s, -sExponent)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, dst, x blas64.General) error {
		most, err := largest(ctx, p, x, false)
		if err != nil {
			return err
		}
		xExponent := exponent(most)
		x32, err := narrow(ctx, p, x, -xExponent)
		if err != nil {
			return err
		}
		a, b := new32(dw.Cols, x.Cols), new32(dw.Cols, x.Cols)
		if err := blas.Gemm(ctx, p, blas.Trans, blas.NoTrans, dwScale, dw, x32, 0, a); err != nil {
			return err
		}
		if err := blas.Gemm(ctx, p, blas.NoTrans, blas.NoTrans, 1, s32, a, 0, b); err != nil {
			return err
		}
		if err := blas.Gemm(ctx, p, blas.NoTrans, blas.NoTrans, dwScale, dw, b, 0, x32); err != nil {
			return err
		}
		back := math.Ldexp(1/float64(dwScale)/float64(dwScale), sExponent+xExponent)
		for i := range dst.Rows {
			d := Row(dst, i)
			for j, v := range x32.Data[i*x32.Stride:][:len(d)] {
				d[j] = float64(v) * back
			}
		}
		return nil
	}, nil
}

func checkError(out, in int, s blas64.General) error {
	if s.Rows != s.Cols || s.Rows != in {
		return fmt.Errorf("ΔW is %d×%d and S %d×%d: S must be square, of ΔW's columns", out, in, s.Rows, s.Cols)
	}
	return nil
}

// exponent returns the e for which v·2⁻ᵉ lies in [½, 1), 0 for 0; for the most
// extreme v one for which 2⁻ᵉ is a normal number still.
func exponent(v float64) int {
	_, e := math.Frexp(v)
	return max(-1000, min(1000, e))
}

func new32(rows, cols int) blas32.General {
	return blas32.General{Rows: rows, Cols: cols, Stride: max(1, cols), Data: make([]float32, rows*cols)}
}

// narrow returns a·2ᵉ in float32.
func narrow(ctx context.Context, p *pool.Pool, a blas64.General, e int) (blas32.General, error) {
	to := new32(a.Rows, a.Cols)
	factor := math.Ldexp(1, e)
	return to, eachRow(ctx, p, a.Rows, func(i int) error {
		d := to.Data[i*to.Stride:][:a.Cols]
		for j, v := range Row(a, i) {
			d[j] = float32(v * factor)
		}
		return nil
	})
}

// largest32 is largest for a float32 matrix.
func largest32(ctx context.Context, p *pool.Pool, a blas32.General) (float64, error) {
	most := make([]float32, a.Rows)
	err := eachRow(ctx, p, a.Rows, func(i int) error {
		m := uint32(0)
		for _, v := range a.Data[i*a.Stride:][:a.Cols] {
			m = max(m, math.Float32bits(v)&^(1<<31))
		}
		most[i] = math.Float32frombits(m)
		if m < math.Float32bits(float32(math.Inf(1))) {
			return nil
		}
		for j := 0; ; j++ {
			v := float64(a.Data[i*a.Stride+j])
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return &NotFiniteError{Row: i, Col: j, Value: v}
			}
		}
	})
	if err != nil || a.Rows == 0 {
		return 0, err
	}
	return float64(slices.Max(most)), nil
}
