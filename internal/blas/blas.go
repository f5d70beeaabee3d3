// Package blas holds the matrix products that fettle's time goes into.
//
// Matrices are gonum's row-major structs. An output element is one chain of
// fused multiply-adds over each block of 384 products, the blocks added in
// order. So the bytes of a result depend neither on the number of workers, nor
// on how many rows or columns are computed beside it, nor on whether the
// kernels are those for AVX2 or for AVX-512.
//
// Functions return an error, with the output undefined, only when the context
// is cancelled or when the shapes do not fit each other.
package blas

import (
	"context"
	"fmt"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/pool"
)

// Transpose and its values are gonum's.
type Transpose = blas.Transpose

// NoTrans uses a matrix as it is, Trans its transpose.
const (
	NoTrans = blas.NoTrans
	Trans   = blas.Trans
)

// Gemm computes C = alpha·op(A)·op(B) + beta·C in float32. Shapes: op(A) m×k,
// op(B) k×n, C m×n; C must not overlap A or B. With beta 0, C is not read. A
// nil pool, or one worker, computes on the caller alone.
func Gemm(ctx context.Context, p *pool.Pool, tA, tB Transpose, alpha float32, a, b blas32.General, beta float32, c blas32.General) error {
	return gemm(ctx, p, tA, tB, alpha, of32(a), of32(b), beta, of32(c))
}

// Gemm64 is Gemm in float64.
func Gemm64(ctx context.Context, p *pool.Pool, tA, tB Transpose, alpha float64, a, b blas64.General, beta float64, c blas64.General) error {
	return gemm(ctx, p, tA, tB, alpha, of64(a), of64(b), beta, of64(c))
}

// matrix is blas32.General or blas64.General.
type matrix[T number] struct {
	Rows, Cols int
	Stride     int
	Data       []T
}

func of32(m blas32.General) matrix[float32] { return matrix[float32](m) }

func of64(m blas64.General) matrix[float64] {
	return matrix[float64]{Rows: m.Rows, Cols: m.Cols, Stride: m.Stride, Data: m.Data}
}

// check reports a matrix that its data does not hold.
func (m matrix[T]) check(name string) error {
	if m.Rows < 0 || m.Cols < 0 || m.Rows > 0 && m.Cols > 0 && (m.Stride < m.Cols || len(m.Data) < (m.Rows-1)*m.Stride+m.Cols) {
		return fmt.Errorf("blas: %s is %d×%d with stride %d in %d numbers", name, m.Rows, m.Cols, m.Stride, len(m.Data))
	}
	return nil
}

// operand returns op(M) as a source whose panels run along its rows (for A) or
// its columns (for B), with the extent along them and along k.
func (m matrix[T]) operand(t Transpose, isB bool) (s source[T], n, k int) {
	s = source[T]{data: m.Data, ld: m.Stride, kMajor: (t == NoTrans) == isB}
	if s.kMajor {
		return s, m.Cols, m.Rows
	}
	return s, m.Rows, m.Cols
}

func checkAll[T number](a, b, c matrix[T]) error {
	if err := a.check("A"); err != nil {
		return err
	}
	if err := b.check("B"); err != nil {
		return err
	}
	return c.check("C")
}

func gemm[T number](ctx context.Context, workers *pool.Pool, tA, tB Transpose, alpha T, a, b matrix[T], beta T, c matrix[T]) error {
	if err := checkAll(a, b, c); err != nil {
		return err
	}
	p := newProduct[T]()
	var k int
	p.a, p.m, p.k = a.operand(tA, false)
	p.b, p.n, k = b.operand(tB, true)
	if k != p.k || c.Rows != p.m || c.Cols != p.n {
		m, n, ka := p.m, p.n, p.k
		p.release()
		return fmt.Errorf("blas: %d×%d times %d×%d does not give %d×%d", m, ka, k, n, c.Rows, c.Cols)
	}
	p.alpha, p.beta, p.c, p.ldc = alpha, beta, c.Data, c.Stride
	return p.run(ctx, workers)
}
