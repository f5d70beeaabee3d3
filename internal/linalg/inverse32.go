package linalg

import (
	"context"
	"errors"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

// inverse32Corner is the order up to which Inverse32 works in float64.
const inverse32Corner = 128

// Inverse32 overwrites the symmetric positive definite n×n matrix A with its
// inverse in float32, for matrices whose condition is far below 2²⁴: that of a
// Gram damped by a share of its diagonal. Only A's lower triangle is read; the
// result is symmetric to the bit. It fails with a *PivotError when A is not
// positive definite to working precision, and leaves A in no useful state then.
// No memory is needed beside A.
//
// By halves, with S = A₂₂ − A₂₁A₁₁⁻¹A₁₂: the inverse is
//
//	A₁₁⁻¹ + A₁₁⁻¹A₁₂S⁻¹A₂₁A₁₁⁻¹   its mirror
//	−S⁻¹A₂₁A₁₁⁻¹                  S⁻¹
//
// (Golub & Van Loan, 4th edition, 2.1.4 and 3.2.11). Cost: little more than n³/2
// multiply-adds.
func Inverse32(ctx context.Context, p *pool.Pool, a blas32.General) error {
	return inverse32(ctx, p, a, 0)
}

// inverse32 inverts the part of a matrix that starts at the given pivot.
func inverse32(ctx context.Context, p *pool.Pool, a blas32.General, pivot int) error {
	n := a.Rows
	if n <= inverse32Corner {
		return invertCorner32(ctx, a, pivot)
	}
	k := (n/inverse32Corner + 1) / 2 * inverse32Corner
	first, upper := sub32(a, 0, 0, k, k), sub32(a, 0, k, k, n-k)
	lower, second := sub32(a, k, 0, n-k, k), sub32(a, k, k, n-k, n-k)
	if err := inverse32(ctx, p, first, pivot); err != nil {
		return err
	}
	if err := blas.Gemm(ctx, p, blas.NoTrans, blas.Trans, 1, first, lower, 0, upper); err != nil {
		return err
	}
	if err := addLower32(ctx, p, lower, upper, second); err != nil {
		return err
	}
	if err := inverse32(ctx, p, second, pivot+k); err != nil {
		return err
	}
	if err := blas.Gemm(ctx, p, blas.NoTrans, blas.Trans, -1, second, upper, 0, lower); err != nil {
		return err
	}
	if err := addLower32(ctx, p, upper, lower, first); err != nil {
		return err
	}
	return mirror32(ctx, p, a, k)
}

// invertCorner32 inverts a diagonal block in float64.
func invertCorner32(ctx context.Context, a blas32.General, pivot int) error {
	l := NewGeneral(a.Rows, a.Rows)
	for i := range a.Rows {
		Widen(Row(l, i), a.Data[i*a.Stride:][:a.Rows])
	}
	if err := Cholesky(ctx, nil, l); err != nil {
		var at *PivotError
		if errors.As(err, &at) {
			at.Pivot += pivot
		}
		return err
	}
	inverse, err := Inverse(ctx, nil, l)
	if err != nil {
		return err
	}
	for i := range a.Rows {
		narrowRow(a.Data[i*a.Stride:][:a.Rows], inverse, i)
	}
	return nil
}

func narrowRow(dst []float32, a blas64.General, i int) {
	for j, v := range Row(a, i) {
		dst[j] = float32(v)
	}
}

// addLower32 subtracts A·B, which is symmetric, from the lower triangle of C. What
// it does to the upper one is of no use.
func addLower32(ctx context.Context, p *pool.Pool, a, b, c blas32.General) error {
	strip := max(inverse32Corner, (c.Rows/8+inverse32Corner-1)/inverse32Corner*inverse32Corner)
	for i := 0; i < c.Rows; i += strip {
		rows := min(strip, c.Rows-i)
		err := blas.Gemm(ctx, p, blas.NoTrans, blas.NoTrans, -1, sub32(a, i, 0, rows, a.Cols), sub32(b, 0, 0, b.Rows, i+rows), 1, sub32(c, i, 0, rows, i+rows))
		if err != nil {
			return err
		}
	}
	return nil
}

// mirror32 copies the strict lower triangle of a matrix to its upper one, except
// that of the part from row k on, which is symmetric already.
func mirror32(ctx context.Context, p *pool.Pool, a blas32.General, k int) error {
	tiles := (min(k, a.Rows) + transposeTile - 1) / transposeTile
	return each(ctx, p, tiles, func(t int) error {
		from := t * transposeTile
		to := min(from+transposeTile, k)
		for r := from; r < a.Rows; r += transposeTile {
			for i := r; i < min(r+transposeTile, a.Rows); i++ {
				row := a.Data[i*a.Stride:]
				for j := from; j < min(to, i); j++ {
					a.Data[j*a.Stride+i] = row[j]
				}
			}
		}
		return nil
	})
}

func sub32(a blas32.General, i, j, rows, cols int) blas32.General {
	return blas32.General{Rows: rows, Cols: cols, Stride: a.Stride, Data: a.Data[i*a.Stride+j:]}
}
