package linalg

import (
	"context"
	"errors"
	"math"
	"slices"

	gonum "gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

// Cholesky overwrites the symmetric positive definite n×n matrix A with the
// lower L of A = LLᵀ, and what is above the diagonal with zeros. Only A's lower
// triangle is read. It fails with a *PivotError when A is not positive definite
// to working precision. Cost: n³/6 multiply-adds.
func Cholesky(ctx context.Context, p *pool.Pool, a blas64.General) error {
	n := a.Rows
	diagonal := make([]float64, n)
	for i := range n {
		diagonal[i] = a.Data[i*a.Stride+i]
	}
	if err := cholesky(ctx, p, a, 0, diagonal); err != nil {
		return err
	}
	for i := range n {
		clear(Row(a, i)[i+1:])
	}
	return ctx.Err()
}

// cholesky factors the part of a matrix that starts at the given pivot, whose
// original diagonal is known: its first half, the panel below, what that leaves
// of the second half, and the second half.
func cholesky(ctx context.Context, p *pool.Pool, a blas64.General, pivot int, diagonal []float64) error {
	n := a.Rows
	if n <= block {
		return choleskyCorner(a, pivot, diagonal)
	}
	k := half(n)
	corner, panel, rest := sub(a, 0, 0, k, k), sub(a, k, 0, n-k, k), sub(a, k, k, n-k, n-k)
	if err := cholesky(ctx, p, corner, pivot, diagonal); err != nil {
		return err
	}
	if err := SolveTriangular(ctx, p, gonum.Right, gonum.Lower, blas.Trans, corner, panel); err != nil {
		return err
	}
	if err := RankUpdate(ctx, p, gonum.Lower, blas.NoTrans, -1, panel, 1, rest); err != nil {
		return err
	}
	return cholesky(ctx, p, rest, pivot+k, diagonal)
}

// half returns where to split a matrix of order n > block: a multiple of block
// near its middle, so that no small triangle is left in between.
func half(n int) int { return (n/block + 1) / 2 * block }

// choleskyCorner factors one diagonal block in place. A pivot below
// n·2⁻⁵²·(the original diagonal element) is rounding error, not a pivot, n
// being the order of the whole matrix.
func choleskyCorner(a blas64.General, pivot int, diagonal []float64) error {
	rounding := float64(len(diagonal)) * 0x1p-52
	for j := range a.Rows {
		rj := Row(a, j)
		d := rj[j] - dot(rj[:j], rj)
		if !(d > rounding*diagonal[pivot+j]) || math.IsInf(d, 1) {
			return &PivotError{Pivot: pivot + j, Value: d}
		}
		d = math.Sqrt(d)
		rj[j] = d
		for i := j + 1; i < a.Rows; i++ {
			ri := Row(a, i)
			ri[j] = (ri[j] - dot(ri[:j], rj)) / d
		}
	}
	return nil
}

// SolveLower overwrites each row b of B with L⁻¹b. Shapes: L n×n lower
// triangular with a positive diagonal, B m×n. What is above L's diagonal is not
// read. Cost: m·n²/2 multiply-adds.
func SolveLower(ctx context.Context, p *pool.Pool, l, b blas64.General) error {
	return SolveTriangular(ctx, p, gonum.Right, gonum.Lower, blas.Trans, l, b)
}

// SolveLowerTrans overwrites each row b of B with L⁻ᵀb. Shapes and cost as in
// SolveLower.
func SolveLowerTrans(ctx context.Context, p *pool.Pool, l, b blas64.General) error {
	return SolveTriangular(ctx, p, gonum.Right, gonum.Lower, blas.NoTrans, l, b)
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
// zero. Cost: n³/6 multiply-adds.
func InverseLower(ctx context.Context, p *pool.Pool, l blas64.General) error {
	if err := inverseLower(ctx, p, l); err != nil {
		return err
	}
	for i := range l.Rows {
		clear(Row(l, i)[i+1:])
	}
	return ctx.Err()
}

// inverseLower inverts by halves: the panel P below the first triangle becomes
// −L₂⁻¹·P·L₁⁻¹.
func inverseLower(ctx context.Context, p *pool.Pool, l blas64.General) error {
	n := l.Rows
	if n <= block {
		invertCorner(l)
		return ctx.Err()
	}
	k := half(n)
	first, panel, second := sub(l, 0, 0, k, k), sub(l, k, 0, n-k, k), sub(l, k, k, n-k, n-k)
	if err := SolveTriangular(ctx, p, gonum.Right, gonum.Lower, blas.NoTrans, first, panel); err != nil {
		return err
	}
	if err := SolveTriangular(ctx, p, gonum.Left, gonum.Lower, blas.NoTrans, second, panel); err != nil {
		return err
	}
	if err := eachRow(ctx, p, panel.Rows, func(i int) error {
		scale(-1, Row(panel, i))
		return nil
	}); err != nil {
		return err
	}
	if err := inverseLower(ctx, p, first); err != nil {
		return err
	}
	return inverseLower(ctx, p, second)
}

// invertCorner inverts one lower triangular diagonal block in place, row by row:
// row i of the inverse is (eᵢ − Σ_{j<i} L_ij·row j)/L_ii.
func invertCorner(a blas64.General) {
	var t [block]float64
	for i := range a.Rows {
		ai := Row(a, i)
		clear(t[:i])
		for j := range i {
			axpy(-ai[j], Row(a, j)[:j+1], t[:])
		}
		d := 1 / ai[i]
		for j := range i {
			ai[j] = t[j] * d
		}
		ai[i] = d
	}
}

// inverseColumns is the width of the block columns that Inverse forms at once.
const inverseColumns = 256

// Inverse returns A⁻¹ = L⁻ᵀL⁻¹ from the lower Cholesky factor L, which it
// leaves as it is. Solving with the factor is cheaper and more exact: this is
// for methods that read the inverse's elements. Cost: n³/3 multiply-adds.
func Inverse(ctx context.Context, p *pool.Pool, l blas64.General) (blas64.General, error) {
	n := l.Rows
	m, inv := Clone(l), NewGeneral(n, n)
	if err := InverseLower(ctx, p, m); err != nil {
		return inv, err
	}
	for j := 0; j < n; j += inverseColumns {
		// Above row j, columns j and later of L⁻¹ are zero.
		b := min(inverseColumns, n-j)
		below := sub(m, j, 0, n-j, n)
		if err := blas.Gemm64(ctx, p, blas.Trans, blas.NoTrans, 1, sub(below, 0, 0, n-j, j+b), sub(below, 0, j, n-j, b), 0, sub(inv, 0, j, j+b, b)); err != nil {
			return inv, err
		}
	}
	blas.Mirror(inv)
	return inv, ctx.Err()
}

// InverseUpper overwrites the symmetric positive definite A with the upper U of
// A⁻¹ = UᵀU, the factor that GPTQ and SparseGPT feed errors back with. It fails
// as Cholesky does. No inverse is formed: with J the reversal of an index order,
// JAJ = LLᵀ gives A = RRᵀ for the upper R = JLJ, so U = R⁻¹ = J·L⁻¹·J.
// Cost: n³/3 multiply-adds.
func InverseUpper(ctx context.Context, p *pool.Pool, a blas64.General) error {
	if err := reverse(ctx, p, a); err != nil {
		return err
	}
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
	return reverse(ctx, p, a)
}

// reverse reverses the order of a square matrix's rows and columns.
func reverse(ctx context.Context, p *pool.Pool, a blas64.General) error {
	n := a.Rows
	return eachRow(ctx, p, (n+1)/2, func(i int) error {
		x, y := Row(a, i), Row(a, n-1-i)
		if i == n-1-i {
			slices.Reverse(x)
			return nil
		}
		for j, v := range x {
			x[j], y[n-1-j] = y[n-1-j], v
		}
		return nil
	})
}
