// Package linalg holds the factorizations that fettle's methods solve with:
// Cholesky with escalating damping, triangular solves for many right-hand
// sides, the factors of an inverse, QR, the symmetric eigenvalue problem, and
// the leading eigenvectors of a matrix that is given by its products alone.
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

	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/blas/gonum"

	"github.com/fettle-dev/fettle/internal/hugepage"
	"github.com/fettle-dev/fettle/internal/pool"
)

// block is the order of the triangles that are factored, solved and inverted by
// loops; everything larger is split into matrix products.
const block = 64

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
	data := make([]float64, rows*cols)
	hugepage.Advise(data)
	return blas64.General{Rows: rows, Cols: cols, Stride: max(1, cols), Data: data}
}

// Clone returns a compact copy of a.
func Clone(a blas64.General) blas64.General {
	c := NewGeneral(a.Rows, a.Cols)
	for i := range a.Rows {
		copy(Row(c, i), Row(a, i))
	}
	return c
}

// Row returns row i of a, nil where it has no columns.
func Row(a blas64.General, i int) []float64 {
	if a.Cols == 0 {
		return nil
	}
	return a.Data[i*a.Stride:][:a.Cols]
}

// Rows returns rows from … to−1 of a, which share its data.
func Rows(a blas64.General, from, to int) blas64.General {
	return blas64.General{Rows: to - from, Cols: a.Cols, Stride: a.Stride, Data: a.Data[from*a.Stride:]}
}

// Widen writes src to dst.
func Widen(dst []float64, src []float32) {
	for i, v := range src {
		dst[i] = float64(v)
	}
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

// Damped calls factor with λ = damping·mean, the mean being that of a matrix's
// diagonal. While factor fails with a *PivotError, λ grows tenfold, at most six
// times. It returns the λ that factor took and how often it grew; the error of
// the last attempt says at which pivot it failed.
func Damped(damping, mean float64, factor func(lambda float64) error) (lambda float64, grown int, err error) {
	lambda = damping * mean
	for attempt := 0; ; attempt++ {
		err = factor(lambda)
		var pivot *PivotError
		if !errors.As(err, &pivot) {
			return lambda, attempt, err
		}
		if attempt == escalations {
			return lambda, attempt, fmt.Errorf("damped by %g: %w", lambda, err)
		}
		lambda *= 10
	}
}

// sub returns the rows×cols part of a that starts at (i, j).
func sub(a blas64.General, i, j, rows, cols int) blas64.General {
	s := blas64.General{Rows: rows, Cols: cols, Stride: a.Stride}
	if rows > 0 && cols > 0 {
		s.Data = a.Data[i*a.Stride+j:]
	}
	return s
}

// each calls task(0) … task(n−1) on p's workers, or on the caller alone.
func each(ctx context.Context, p *pool.Pool, n int, task func(i int) error) error {
	if p == nil {
		p = pool.New(1)
	}
	return p.For(ctx, n, task)
}

// eachRow is each in blocks of 16, for tasks as short as a row's.
func eachRow(ctx context.Context, p *pool.Pool, n int, task func(i int) error) error {
	const rows = 16
	return each(ctx, p, (n+rows-1)/rows, func(t int) error {
		for i := t * rows; i < min((t+1)*rows, n); i++ {
			if err := task(i); err != nil {
				return err
			}
		}
		return nil
	})
}
