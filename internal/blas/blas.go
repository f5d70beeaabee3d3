// Package blas holds the matrix products that fettle's time goes into.
//
// Matrices are gonum's row-major structs. Every function computes an output
// element on one worker in an order that depends on the shapes alone, so the
// bytes of a result do not depend on the number of workers.
package blas

import (
	"context"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/blas/gonum"

	"github.com/fettle-dev/fettle/internal/pool"
)

// Path names the kernels in use. It stands in records and in the keys of
// cached units, because other kernels may round differently.
const Path = "gonum"

// Transpose and its values are gonum's.
type Transpose = blas.Transpose

// NoTrans uses a matrix as it is, Trans its transpose.
const (
	NoTrans = blas.NoTrans
	Trans   = blas.Trans
)

// A tile of the output that one task computes. gonum runs products of up to
// three 64×64 blocks on the calling goroutine, which keeps its own parallelism
// out of ours.
const tileRows, tileCols = 64, 128

var impl gonum.Implementation

// Gemm computes C = alpha·op(A)·op(B) + beta·C in float32. Shapes: op(A) m×k,
// op(B) k×n, C m×n; C must not overlap A or B. A nil pool, or one worker,
// computes on the caller alone. It returns early, with C undefined, only when
// ctx is cancelled.
func Gemm(ctx context.Context, p *pool.Pool, tA, tB Transpose, alpha float32, a, b blas32.General, beta float32, c blas32.General) error {
	k := a.Cols
	if tA != NoTrans {
		k = a.Rows
	}
	return forTiles(ctx, p, c.Rows, c.Cols, func(i, j, m, n int) {
		aoff, boff := i*a.Stride, j
		if tA != NoTrans {
			aoff = i
		}
		if tB != NoTrans {
			boff = j * b.Stride
		}
		if k == 0 { // gonum wants non-empty operands; only beta is left to do
			aoff, boff = 0, 0
		}
		impl.Sgemm(tA, tB, m, n, k, alpha, a.Data[aoff:], a.Stride, b.Data[boff:], b.Stride, beta, c.Data[i*c.Stride+j:], c.Stride)
	})
}

// Gemm64 is Gemm in float64.
func Gemm64(ctx context.Context, p *pool.Pool, tA, tB Transpose, alpha float64, a, b blas64.General, beta float64, c blas64.General) error {
	k := a.Cols
	if tA != NoTrans {
		k = a.Rows
	}
	return forTiles(ctx, p, c.Rows, c.Cols, func(i, j, m, n int) {
		aoff, boff := i*a.Stride, j
		if tA != NoTrans {
			aoff = i
		}
		if tB != NoTrans {
			boff = j * b.Stride
		}
		if k == 0 {
			aoff, boff = 0, 0
		}
		impl.Dgemm(tA, tB, m, n, k, alpha, a.Data[aoff:], a.Stride, b.Data[boff:], b.Stride, beta, c.Data[i*c.Stride+j:], c.Stride)
	})
}

// AddGram adds AᵀB to the float64 master M. The block's own product is taken
// in float32, so A and B should have at most GramRows rows. Shapes: A r×m,
// B r×n, M m×n.
func AddGram(ctx context.Context, p *pool.Pool, a, b blas32.General, m blas64.General) error {
	return forTiles(ctx, p, m.Rows, m.Cols, func(i, j, rows, cols int) {
		addGramTile(a, b, m, i, j, rows, cols)
	})
}

// AddGramUpper is AddGram with B = A, for the tiles on and above the diagonal
// only. Mirror completes the master after the last block.
func AddGramUpper(ctx context.Context, p *pool.Pool, a blas32.General, m blas64.General) error {
	return forTiles(ctx, p, m.Rows, m.Cols, func(i, j, rows, cols int) {
		if j+cols > i {
			addGramTile(a, a, m, i, j, rows, cols)
		}
	})
}

// Mirror copies the strict upper triangle of the square M to its lower one.
func Mirror(m blas64.General) {
	for i := range m.Rows {
		for j := range i {
			m.Data[i*m.Stride+j] = m.Data[j*m.Stride+i]
		}
	}
}

// GramRows is the most rows that a block given to AddGram should have, so that
// float32 sums stay accurate.
const GramRows = 2048

func addGramTile(a, b blas32.General, m blas64.General, i, j, rows, cols int) {
	var t [tileRows * tileCols]float32
	impl.Sgemm(Trans, NoTrans, rows, cols, a.Rows, 1, a.Data[i:], a.Stride, b.Data[j:], b.Stride, 0, t[:rows*cols], cols)
	for r := range rows {
		dst := m.Data[(i+r)*m.Stride+j:][:cols]
		for c, v := range t[r*cols:][:cols] {
			dst[c] += float64(v)
		}
	}
}

// forTiles calls task for each tile of an m×n output, on p's workers.
func forTiles(ctx context.Context, p *pool.Pool, m, n int, task func(i, j, rows, cols int)) error {
	if m == 0 || n == 0 {
		return ctx.Err()
	}
	down, across := (m+tileRows-1)/tileRows, (n+tileCols-1)/tileCols
	one := func(t int) error {
		i, j := t/across*tileRows, t%across*tileCols
		task(i, j, min(tileRows, m-i), min(tileCols, n-j))
		return nil
	}
	if p == nil {
		for t := range down * across {
			if err := ctx.Err(); err != nil {
				return err
			}
			_ = one(t)
		}
		return nil
	}
	return p.For(ctx, down*across, one)
}
