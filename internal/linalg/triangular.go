package linalg

import (
	"context"

	gonum "gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

// sides is the number of right-hand sides that the innermost solve takes at
// once.
const sides = 32

// solveChunk is the number of right-hand sides of one task. Each is solved on
// its own, so that the number has no influence on the result.
const solveChunk = 256

// triangle is op(A) for a triangular A.
type triangle struct {
	blas64.General
	uplo gonum.Uplo
	op   blas.Transpose
}

// lower says whether op(A) is lower triangular.
func (t triangle) lower() bool { return (t.uplo == gonum.Lower) == (t.op == blas.NoTrans) }

// split returns op(A)'s first triangle of order k, its second one, and the
// block of A that is neither triangle nor zero.
func (t triangle) split(k int) (first, second triangle, panel blas64.General) {
	n := t.Rows
	first, second = t, t
	first.General, second.General = sub(t.General, 0, 0, k, k), sub(t.General, k, k, n-k, n-k)
	if t.uplo == gonum.Lower {
		return first, second, sub(t.General, k, 0, n-k, k)
	}
	return first, second, sub(t.General, 0, k, k, n-k)
}

// SolveTriangular overwrites B with op(A)⁻¹·B (side Left; B n×m) or with
// B·op(A)⁻¹ (side Right; B m×n), A being n×n upper or lower triangular with no
// zero on its diagonal and op(A) A or Aᵀ. A's other triangle is not read. The
// diagonal is divided by through its reciprocals. Each of the m right-hand sides
// is solved with the same arithmetic whatever m is. Cost: m·n²/2 multiply-adds.
func SolveTriangular(ctx context.Context, p *pool.Pool, side gonum.Side, uplo gonum.Uplo, op blas.Transpose, a, b blas64.General) error {
	t := triangle{a, uplo, op}
	if a.Rows == 0 || b.Rows == 0 || b.Cols == 0 {
		return ctx.Err()
	}
	m := b.Cols
	if side == gonum.Right {
		m = b.Rows
	}
	chunk := min(solveChunk, max(sides, (m/4+sides-1)/sides*sides))
	return each(ctx, p, (m+chunk-1)/chunk, func(i int) error {
		from := i * chunk
		count := min(chunk, m-from)
		if side == gonum.Right {
			return solve(ctx, side, t, sub(b, from, 0, count, b.Cols))
		}
		return solve(ctx, side, t, sub(b, 0, from, b.Rows, count))
	})
}

// solve is SolveTriangular for one task: by halves, the half that depends on no
// other first.
func solve(ctx context.Context, side gonum.Side, t triangle, b blas64.General) error {
	n := t.Rows
	if n <= block {
		solveCorner(side, t, b)
		return nil
	}
	k := half(n)
	first, second, panel := t.split(k)
	var x, y blas64.General
	if side == gonum.Left {
		x, y = sub(b, 0, 0, k, b.Cols), sub(b, k, 0, n-k, b.Cols)
	} else {
		x, y = sub(b, 0, 0, b.Rows, k), sub(b, 0, k, b.Rows, n-k)
	}
	if t.lower() != (side == gonum.Left) {
		first, second, x, y = second, first, y, x
	}
	if err := solve(ctx, side, first, x); err != nil {
		return err
	}
	var err error
	if side == gonum.Left {
		err = blas.Gemm64(ctx, nil, t.op, blas.NoTrans, -1, panel, x, 1, y)
	} else {
		err = blas.Gemm64(ctx, nil, blas.NoTrans, t.op, -1, x, panel, 1, y)
	}
	if err != nil {
		return err
	}
	return solve(ctx, side, second, y)
}

// solveCorner solves with a triangle of at most block rows. It brings every case
// to forward substitution with a lower triangle, the right-hand sides side by
// side: an upper one becomes lower when the order of the unknowns is reversed.
func solveCorner(side gonum.Side, t triangle, b blas64.General) {
	var l [block * block]float64
	var inverse [block]float64
	var x [block * sides]float64
	n := t.Rows
	// Solving from the right is solving with the transpose from the left.
	trans := (t.op == blas.NoTrans) == (side == gonum.Right)
	backward := t.lower() != (side == gonum.Left)
	order := func(i int) int {
		if backward {
			return n - 1 - i
		}
		return i
	}
	for i := range n {
		for j := range i {
			r, c := order(i), order(j)
			if trans {
				r, c = c, r
			}
			l[i*block+j] = t.Data[r*t.Stride+c]
		}
		inverse[i] = 1 / t.Data[order(i)*(t.Stride+1)]
	}
	if side == gonum.Left {
		for from := 0; from < b.Cols; from += sides {
			count := min(sides, b.Cols-from)
			for i := range n {
				copy(x[i*sides:][:sides], b.Data[order(i)*b.Stride+from:][:count])
			}
			forward(n, &l, &inverse, &x)
			for i := range n {
				copy(b.Data[order(i)*b.Stride+from:][:count], x[i*sides:][:sides])
			}
		}
		return
	}
	for from := 0; from < b.Rows; from += sides {
		count := min(sides, b.Rows-from)
		for r := range count {
			for i, v := range Row(b, from+r) {
				x[order(i)*sides+r] = v
			}
		}
		forward(n, &l, &inverse, &x)
		for r := range count {
			br := Row(b, from+r)
			for i := range br {
				br[i] = x[order(i)*sides+r]
			}
		}
	}
}

// MultiplyTriangular overwrites B (m×n) with B·op(A), A being n×n upper or lower
// triangular and op(A) A or Aᵀ. A's other triangle is not read. Each row of B is
// multiplied with the same arithmetic whatever m is. Cost: m·n²/2 multiply-adds.
func MultiplyTriangular(ctx context.Context, p *pool.Pool, uplo gonum.Uplo, op blas.Transpose, a, b blas64.General) error {
	t := triangle{a, uplo, op}
	if a.Rows == 0 || b.Rows == 0 {
		return ctx.Err()
	}
	chunk := min(solveChunk, max(sides, (b.Rows/4+sides-1)/sides*sides))
	return each(ctx, p, (b.Rows+chunk-1)/chunk, func(i int) error {
		count := min(chunk, b.Rows-i*chunk)
		return multiply(ctx, t, sub(b, i*chunk, 0, count, b.Cols), NewGeneral(block, block), NewGeneral(count, block))
	})
}

// multiply is MultiplyTriangular for one task: by halves, the half that the
// other one needs last. corner and product are scratch memory.
func multiply(ctx context.Context, t triangle, b, corner, product blas64.General) error {
	n := t.Rows
	if n <= block {
		return multiplyCorner(ctx, t, b, sub(corner, 0, 0, n, n), sub(product, 0, 0, b.Rows, n))
	}
	k := half(n)
	first, second, panel := t.split(k)
	x, y := sub(b, 0, 0, b.Rows, k), sub(b, 0, k, b.Rows, n-k)
	if !t.lower() {
		first, second, x, y = second, first, y, x
	}
	if err := multiply(ctx, first, x, corner, product); err != nil {
		return err
	}
	if err := blas.Gemm64(ctx, nil, blas.NoTrans, t.op, 1, y, panel, 1, x); err != nil {
		return err
	}
	return multiply(ctx, second, y, corner, product)
}

func multiplyCorner(ctx context.Context, t triangle, b, corner, product blas64.General) error {
	for i := range corner.Rows {
		c := Row(corner, i)
		clear(c)
		from, to := 0, i+1
		if t.uplo == gonum.Upper {
			from, to = i, corner.Cols
		}
		copy(c[from:to], Row(t.General, i)[from:to])
	}
	if err := blas.Gemm64(ctx, nil, blas.NoTrans, t.op, 1, b, corner, 0, product); err != nil {
		return err
	}
	for i := range b.Rows {
		copy(Row(b, i), Row(product, i))
	}
	return nil
}

// updateTile is the order of the diagonal tiles of a symmetric update, which
// are computed whole.
const updateTile = 128

// RankUpdate computes C = alpha·op(A)·op(A)ᵀ + beta·C for the upper or the lower
// triangle of C, leaving the other one as it is. Shapes: op(A) n×k, C n×n.
// Cost: n²k/2 multiply-adds.
func RankUpdate(ctx context.Context, p *pool.Pool, uplo gonum.Uplo, op blas.Transpose, alpha float64, a blas64.General, beta float64, c blas64.General) error {
	other := blas.Trans
	if op != blas.NoTrans {
		other = blas.NoTrans
	}
	return triangularProduct(ctx, p, uplo, op, other, alpha, a, a, beta, c)
}

// triangularProduct computes one triangle of C = alpha·op(A)·op(B) + beta·C.
func triangularProduct(ctx context.Context, p *pool.Pool, uplo gonum.Uplo, tA, tB blas.Transpose, alpha float64, a, b blas64.General, beta float64, c blas64.General) error {
	n := c.Rows
	rows := func(from, count int) blas64.General {
		if tA == blas.NoTrans {
			return sub(a, from, 0, count, a.Cols)
		}
		return sub(a, 0, from, a.Rows, count)
	}
	cols := func(from, count int) blas64.General {
		if tB == blas.NoTrans {
			return sub(b, 0, from, b.Rows, count)
		}
		return sub(b, from, 0, count, b.Cols)
	}
	// product computes the block of C at (i, j).
	product := func(i, j, m, n int) error {
		return blas.Gemm64(ctx, p, tA, tB, alpha, rows(i, m), cols(j, n), beta, sub(c, i, j, m, n))
	}
	var split func(from, n int) error
	split = func(from, n int) error {
		if n <= updateTile {
			return nil
		}
		k := (n/updateTile + 1) / 2 * updateTile
		i, j, m, w := from+k, from, n-k, k
		if uplo == gonum.Upper {
			i, j, m, w = j, i, w, m
		}
		if err := product(i, j, m, w); err != nil {
			return err
		}
		if err := split(from, k); err != nil {
			return err
		}
		return split(from+k, n-k)
	}
	if err := split(0, n); err != nil {
		return err
	}
	return each(ctx, p, (n+updateTile-1)/updateTile, func(t int) error {
		from := t * updateTile
		w := min(updateTile, n-from)
		whole := NewGeneral(w, w)
		if err := blas.Gemm64(ctx, nil, tA, tB, alpha, rows(from, w), cols(from, w), 0, whole); err != nil {
			return err
		}
		for i := range w {
			lo, hi := 0, i+1
			if uplo == gonum.Upper {
				lo, hi = i, w
			}
			to := c.Data[(from+i)*c.Stride+from:][lo:hi]
			for j, v := range Row(whole, i)[lo:hi] {
				if beta == 0 { // C may hold NaN
					to[j] = v
				} else {
					to[j] = beta*to[j] + v
				}
			}
		}
		return nil
	})
}
