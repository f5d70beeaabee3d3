package linalg

import (
	"context"
	"math"

	gonum "gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

const (
	// eigenPanel is the number of rows that are reduced before the rest of the
	// matrix is updated.
	eigenPanel = 32
	// eigenBack is the number of reflectors that eigenvectors are multiplied by
	// at once.
	eigenBack = 64
)

// SymmetricEigen returns the eigenvalues of the symmetric n×n matrix A in
// ascending order. With vectors it overwrites A with the orthonormal
// eigenvectors, of which column j belongs to value j; without, A is left
// undefined. Only A's upper triangle is read. It fails with a *NotFiniteError.
//
// A is reduced to tridiagonal form by blocked reflections (Dongarra, Sorensen
// and Hammarling 1989), which divide & conquer diagonalizes (Gu and Eisenstat
// 1995). Residual and orthogonality are small multiples of n·2⁻⁵²·‖A‖. Cost: 4n³/3
// operations for the values, about 4n³ with vectors, and 3n² numbers of memory.
func SymmetricEigen(ctx context.Context, p *pool.Pool, a blas64.General, vectors bool) ([]float64, error) {
	n := a.Rows
	most, err := largest(ctx, p, a, true)
	if err != nil || n == 0 {
		return nil, err
	}
	factor := safeScale(most)
	if factor != 1 {
		for i := range n {
			scale(factor, Row(a, i)[i:])
		}
	}
	t := tridiagonal{d: make([]float64, n), e: make([]float64, n-1)}
	tau := make([]float64, n)
	if err := tridiagonalize(ctx, p, a, t, tau); err != nil {
		return nil, err
	}
	if !vectors {
		err := t.values(ctx)
		scale(1/factor, t.d)
		return t.d, err
	}
	order, qt, err := t.vectors(ctx, p)
	if err != nil {
		return nil, err
	}
	for k := (n - 1) / eigenBack * eigenBack; k >= 0; k -= eigenBack {
		b := min(eigenBack, n-1-k)
		if b == 0 {
			continue
		}
		v := sub(a, k, k+1, b, n-k-1)
		c, err := compact(ctx, p, v, tau[k:k+b])
		if err != nil {
			return nil, err
		}
		if err := reflectRows(ctx, p, blas.Trans, v, c, sub(qt, 0, k+1, n, n-k-1)); err != nil {
			return nil, err
		}
	}
	values := make([]float64, n)
	for i, from := range order {
		values[i] = t.d[from] / factor
	}
	return values, each(ctx, p, (n+transposeTile-1)/transposeTile, func(tile int) error {
		for i0 := 0; i0 < n; i0 += transposeTile {
			for j := tile * transposeTile; j < min((tile+1)*transposeTile, n); j++ {
				for i, v := range Row(qt, order[j])[i0:min(i0+transposeTile, n)] {
					a.Data[(i0+i)*a.Stride+j] = v
				}
			}
		}
		return nil
	})
}

// tridiagonalize overwrites row j of A with the reflector vⱼ of the product
// Q = H₀H₁…, from element j+1 on and zero before, and returns T = QᵀAQ.
func tridiagonalize(ctx context.Context, p *pool.Pool, a blas64.General, t tridiagonal, tau []float64) error {
	n := a.Rows
	// With v and w of the panel's reflections, A becomes A − Σ(vwᵀ + wvᵀ): the
	// rows of left are v₀, w₀, v₁, w₁ …, those of right w₀, v₀, w₁, v₁ …
	left, right := NewGeneral(2*eigenPanel, n), NewGeneral(2*eigenPanel, n)
	parts := NewGeneral(symvParts, n)
	for k := 0; k < n; k += eigenPanel {
		b := min(eigenPanel, n-k)
		for c := range b {
			j := k + c
			x := Row(a, j)
			for s := range 2 * c {
				axpy(-Row(left, s)[j], Row(right, s)[j:], x[j:])
			}
			t.d[j] = x[j]
			clear(x[:j+1])
			if j == n-1 {
				break
			}
			v, w := x[j+1:], Row(left, 2*c+1)[j+1:]
			t.e[j], tau[j] = reflector(v)
			if err := symmetricProduct(ctx, p, sub(a, j+1, j+1, n-j-1, n-j-1), v, w, parts); err != nil {
				return err
			}
			for s := range 2 * c {
				axpy(-dot(Row(right, s)[j+1:], v), Row(left, s)[j+1:], w)
			}
			scale(tau[j], w)
			axpy(-tau[j]/2*dot(w, v), v, w)
			copy(Row(left, 2*c)[j+1:], v)
			copy(Row(right, 2*c)[j+1:], w)
			copy(Row(right, 2*c+1)[j+1:], v)
		}
		m := n - k - b
		if err := triangularProduct(ctx, p, gonum.Upper, blas.Trans, blas.NoTrans, -1,
			sub(left, 0, k+b, 2*b, m), sub(right, 0, k+b, 2*b, m), 1, sub(a, k+b, k+b, m, m)); err != nil {
			return err
		}
	}
	return nil
}

// A symmetric matrix's product with a vector is summed in at most symvParts
// parts of at least symvRows rows. Their number depends on the order alone.
// Below the order symvAlone the caller computes all of them.
const symvParts, symvRows, symvAlone = 8, 96, 640

// symmetricProduct computes y = A·x from A's upper triangle, each element of
// which it reads once. It spoils parts, symvParts rows of at least A's order.
func symmetricProduct(ctx context.Context, p *pool.Pool, a blas64.General, x, y []float64, parts blas64.General) error {
	m := a.Rows
	count := min(symvParts, max(1, m/symvRows))
	// begin is the first row of a part; all parts have about as many elements.
	begin := func(t int) int {
		if t == count {
			return m
		}
		return int(float64(m)*(1-math.Sqrt(1-float64(t)/float64(count)))) &^ 1
	}
	part := func(t int) error {
		from, to := begin(t), begin(t+1)
		sum := Row(parts, t)[:m]
		clear(sum[from:])
		i := from
		for ; i+1 < to; i += 2 {
			ri, rj := Row(a, i)[i:], Row(a, i+1)[i+1:]
			xi, xj := x[i], x[i+1]
			di, dj := symv(ri[2:], rj[1:], x[i+2:], sum[i+2:], xi, xj)
			sum[i] += ri[0]*xi + ri[1]*xj + di
			sum[i+1] += ri[1]*xi + rj[0]*xj + dj
		}
		if i < to {
			ri := Row(a, i)[i:]
			axpy(x[i], ri[1:], sum[i+1:])
			sum[i] += ri[0]*x[i] + dot(ri[1:], x[i+1:])
		}
		return nil
	}
	if m < symvAlone { // not worth waking a worker
		p = nil
	}
	err := each(ctx, p, count, part)
	copy(y, Row(parts, 0)[:m])
	for t := 1; t < count; t++ {
		from := begin(t)
		axpy(1, Row(parts, t)[from:m], y[from:])
	}
	return err
}
