// Package linalg holds the factorizations that fettle's methods solve with:
// Cholesky with escalating damping, triangular solves for many right-hand
// sides, and the factors of an inverse.
//
// Matrices are gonum's row-major structs in float64. A nil pool computes on the
// caller alone. Every element is computed on one worker in an order that depends
// on the shapes alone, so the bytes of a result do not depend on the number of
// workers. When ctx is cancelled a function returns the context's error, with
// what it overwrites undefined.
package linalg

import (
	"context"
	"errors"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/blas/gonum"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

// block is the width of a factorization's panels and of its tiles.
const block = 64

// solveRows is the number of right-hand sides that one task solves together,
// so that a row of the factor is read once for all of them.
const solveRows = 16

var impl gonum.Implementation

// PivotError says that a matrix is not positive definite in float64: what is
// left of a diagonal element after elimination is not positive, or is lost in
// rounding.
type PivotError struct {
	Pivot int     // the row where the factorization stopped
	Value float64 // what was left of its diagonal element
}

func (e *PivotError) Error() string {
	return fmt.Sprintf("matrix is not positive definite: pivot %d is %g", e.Pivot, e.Value)
}

// NewGeneral returns a zero rows×cols matrix.
func NewGeneral(rows, cols int) blas64.General {
	return blas64.General{Rows: rows, Cols: cols, Stride: max(1, cols), Data: make([]float64, rows*cols)}
}

// Clone returns a compact copy of a.
func Clone(a blas64.General) blas64.General {
	c := NewGeneral(a.Rows, a.Cols)
	for i := range a.Rows {
		copy(row(c, i), row(a, i))
	}
	return c
}

// MeanDiagonal returns the mean of a square matrix's diagonal, 0 for an empty
// one. It does not overflow where the mean itself is finite.
func MeanDiagonal(a blas64.General) float64 {
	mean := 0.0
	for i := range a.Rows {
		mean += a.Data[i*a.Stride+i] / float64(a.Rows)
	}
	return mean
}

// escalations is how often Damped multiplies λ by 10 before it gives up.
const escalations = 6

// Damped calls factor with a copy of h + λI, λ = damping·mean(diag h), which
// factor may overwrite. While factor fails with a *PivotError, λ grows tenfold,
// at most six times. It returns the λ that factor took; the error of the last
// attempt says at which pivot it failed.
func Damped(h blas64.General, damping float64, factor func(a blas64.General) error) (lambda float64, err error) {
	lambda = damping * MeanDiagonal(h)
	for attempt := 0; ; attempt++ {
		a := Clone(h)
		for i := range a.Rows {
			a.Data[i*a.Stride+i] += lambda
		}
		err = factor(a)
		var pivot *PivotError
		if !errors.As(err, &pivot) {
			return lambda, err
		}
		if attempt == escalations {
			return lambda, fmt.Errorf("damped by %g: %w", lambda, err)
		}
		lambda *= 10
	}
}

// Cholesky overwrites the symmetric positive definite n×n matrix A with the
// lower L of A = LLᵀ, and what is above the diagonal with zeros. Only A's lower
// triangle is read. It fails with a *PivotError when A is not positive definite
// to working precision. Cost: n³/3 multiply-adds.
func Cholesky(ctx context.Context, p *pool.Pool, a blas64.General) error {
	n := a.Rows
	diagonal := make([]float64, n)
	for i := range n {
		diagonal[i] = a.Data[i*a.Stride+i]
	}
	for k := 0; k < n; k += block {
		b := min(block, n-k)
		corner := sub(a, k, k, b, b)
		if err := choleskyCorner(corner, diagonal[k:], n); err != nil {
			err.Pivot += k
			return err
		}
		m := n - k - b
		panel := sub(a, k+b, k, m, b)
		if err := SolveLower(ctx, p, corner, panel); err != nil {
			return err
		}
		if err := downdate(ctx, p, sub(a, k+b, k+b, m, m), panel); err != nil {
			return err
		}
	}
	for i := range n {
		clear(row(a, i)[i+1:])
	}
	return ctx.Err()
}

// choleskyCorner factors one diagonal block in place. A pivot below
// n·2⁻⁵²·(the original diagonal element) is rounding error, not a pivot.
func choleskyCorner(a blas64.General, original []float64, n int) *PivotError {
	for j := range a.Rows {
		rj := row(a, j)
		d := rj[j] - impl.Ddot(j, rj, 1, rj, 1)
		if !(d > float64(n)*0x1p-52*original[j]) || math.IsInf(d, 1) {
			return &PivotError{Pivot: j, Value: d}
		}
		d = math.Sqrt(d)
		rj[j] = d
		for i := j + 1; i < a.Rows; i++ {
			ri := row(a, i)
			ri[j] = (ri[j] - impl.Ddot(j, ri, 1, rj, 1)) / d
		}
	}
	return nil
}

// downdate subtracts P·Pᵀ from the lower triangle of A, tile by tile.
func downdate(ctx context.Context, p *pool.Pool, a, panel blas64.General) error {
	tiles := (a.Rows + block - 1) / block
	return each(ctx, p, tiles*(tiles+1)/2, func(t int) error {
		i := int((math.Sqrt(float64(8*t+1)) - 1) / 2)
		j := t - i*(i+1)/2
		i, j = i*block, j*block
		rows, cols := min(block, a.Rows-i), min(block, a.Rows-j)
		return blas.Gemm64(ctx, nil, blas.NoTrans, blas.Trans, -1,
			sub(panel, i, 0, rows, panel.Cols), sub(panel, j, 0, cols, panel.Cols),
			1, sub(a, i, j, rows, cols))
	})
}

// SolveLower overwrites each row b of B with L⁻¹b. Shapes: L n×n lower
// triangular with a positive diagonal, B m×n. What is above L's diagonal is not
// read. Cost: m·n²/2 multiply-adds.
func SolveLower(ctx context.Context, p *pool.Pool, l, b blas64.General) error {
	return eachRows(ctx, p, b, func(b blas64.General) {
		for i := range l.Rows {
			li := row(l, i)
			for r := range b.Rows {
				x := row(b, r)
				x[i] = (x[i] - impl.Ddot(i, li, 1, x, 1)) / li[i]
			}
		}
	})
}

// SolveLowerTrans overwrites each row b of B with L⁻ᵀb. Shapes and cost as in
// SolveLower.
func SolveLowerTrans(ctx context.Context, p *pool.Pool, l, b blas64.General) error {
	return eachRows(ctx, p, b, func(b blas64.General) {
		for i := l.Rows - 1; i >= 0; i-- {
			li := row(l, i)
			for r := range b.Rows {
				x := row(b, r)
				x[i] /= li[i]
				impl.Daxpy(i, -x[i], li, 1, x, 1)
			}
		}
	})
}

// SolveRows overwrites each row b of B with A⁻¹b, given the lower Cholesky
// factor L of A = LLᵀ. Shapes: L n×n, B m×n. Cost: m·n² multiply-adds.
func SolveRows(ctx context.Context, p *pool.Pool, l, b blas64.General) error {
	if err := SolveLower(ctx, p, l, b); err != nil {
		return err
	}
	return SolveLowerTrans(ctx, p, l, b)
}

// InverseLower overwrites the lower triangular L with L⁻¹, whose upper part is
// zero. Cost: about 2n³/3 multiply-adds.
func InverseLower(ctx context.Context, p *pool.Pool, l blas64.General) error {
	n := l.Rows
	for k := 0; k < n; k += block {
		b := min(block, n-k)
		corner := sub(l, k, k, b, b)
		left := sub(l, k, 0, b, k)
		// Row block k of the inverse is −L_kk⁻¹·(L_k,<k · inverse_<k,<k).
		t := NewGeneral(b, k)
		if err := blas.Gemm64(ctx, p, blas.NoTrans, blas.NoTrans, -1, left, sub(l, 0, 0, k, k), 0, t); err != nil {
			return err
		}
		for i := range b {
			li := row(corner, i)
			for j := range i {
				impl.Daxpy(k, -li[j], row(t, j), 1, row(t, i), 1)
			}
			impl.Dscal(k, 1/li[i], row(t, i), 1)
		}
		for i := range b {
			copy(row(left, i), row(t, i))
		}
		invertCorner(corner)
		for i := range b {
			clear(row(l, k+i)[k+i+1:])
		}
	}
	return ctx.Err()
}

// invertCorner inverts one lower triangular diagonal block in place, row by row:
// row i of the inverse is (eᵢ − Σ_{j<i} L_ij·row j)/L_ii.
func invertCorner(a blas64.General) {
	var t [block]float64
	for i := range a.Rows {
		ai := row(a, i)
		clear(t[:i])
		for j := range i {
			impl.Daxpy(j+1, -ai[j], row(a, j), 1, t[:], 1)
		}
		d := 1 / ai[i]
		for j := range i {
			ai[j] = t[j] * d
		}
		ai[i] = d
	}
}

// Inverse returns A⁻¹ = L⁻ᵀL⁻¹ from the lower Cholesky factor L, which it
// leaves as it is. Solving with the factor is cheaper and more exact: this is
// for methods that read the inverse's elements.
func Inverse(ctx context.Context, p *pool.Pool, l blas64.General) (blas64.General, error) {
	m, inv := Clone(l), NewGeneral(l.Rows, l.Rows)
	if err := InverseLower(ctx, p, m); err != nil {
		return inv, err
	}
	return inv, blas.Gemm64(ctx, p, blas.Trans, blas.NoTrans, 1, m, m, 0, inv)
}

// InverseUpper overwrites the symmetric positive definite A with the upper U of
// A⁻¹ = UᵀU, the factor that GPTQ and SparseGPT feed errors back with. It fails
// as Cholesky does. No inverse is formed: with J the reversal of an index order,
// JAJ = LLᵀ gives A = RRᵀ for the upper R = JLJ, so U = R⁻¹ = J·L⁻¹·J.
// Cost: about n³ multiply-adds.
func InverseUpper(ctx context.Context, p *pool.Pool, a blas64.General) error {
	reverse(a)
	if err := Cholesky(ctx, p, a); err != nil {
		var pivot *PivotError
		if errors.As(err, &pivot) {
			pivot.Pivot = a.Rows - 1 - pivot.Pivot
		}
		return err
	}
	if err := InverseLower(ctx, p, a); err != nil {
		return err
	}
	reverse(a)
	return nil
}

// reverse reverses the order of a square matrix's rows and columns.
func reverse(a blas64.General) {
	n := a.Rows
	for i := range (n + 1) / 2 {
		x, y := row(a, i), row(a, n-1-i)
		count := n
		if i == n-1-i {
			count = n / 2
		}
		for j := range count {
			x[j], y[n-1-j] = y[n-1-j], x[j]
		}
	}
}

func row(a blas64.General, i int) []float64 {
	if a.Cols == 0 {
		return nil
	}
	return a.Data[i*a.Stride:][:a.Cols]
}

// sub returns the rows×cols part of a that starts at (i, j).
func sub(a blas64.General, i, j, rows, cols int) blas64.General {
	s := blas64.General{Rows: rows, Cols: cols, Stride: a.Stride}
	if rows > 0 && cols > 0 {
		s.Data = a.Data[i*a.Stride+j:]
	}
	return s
}

// eachRows calls task for blocks of solveRows rows of b.
func eachRows(ctx context.Context, p *pool.Pool, b blas64.General, task func(b blas64.General)) error {
	return each(ctx, p, (b.Rows+solveRows-1)/solveRows, func(t int) error {
		from := t * solveRows
		task(sub(b, from, 0, min(solveRows, b.Rows-from), b.Cols))
		return nil
	})
}

// each calls task(0) … task(n−1) on p's workers, or on the caller alone.
func each(ctx context.Context, p *pool.Pool, n int, task func(i int) error) error {
	if p == nil {
		p = pool.New(1)
	}
	return p.For(ctx, n, task)
}
