package linalg

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

// ErrNoConvergence says that an iteration for eigenvalues did not end. It is not
// known to happen with finite input.
var ErrNoConvergence = errors.New("eigenvalue iteration does not converge")

// leaf is the largest order that is diagonalized by rotations.
const leaf = 32

// epsilon is the rounding error of float64.
const epsilon = 0x1p-53

// tridiagonal is a symmetric tridiagonal matrix: n elements on the diagonal,
// n−1 beside it. Its methods overwrite d with the eigenvalues and spoil e.
type tridiagonal struct{ d, e []float64 }

// normalize scales the matrix to a largest element in [½, 1) and returns the
// power of two to scale eigenvalues back with.
func (t tridiagonal) normalize() (back float64) {
	most := 0.0
	for _, v := range t.d {
		most = max(most, math.Abs(v))
	}
	for _, v := range t.e {
		most = max(most, math.Abs(v))
	}
	if most == 0 {
		return 1
	}
	_, e := math.Frexp(most)
	scale(math.Ldexp(1, -e), t.d)
	scale(math.Ldexp(1, -e), t.e)
	return math.Ldexp(1, e)
}

// values leaves the eigenvalues in d, in ascending order.
func (t tridiagonal) values(ctx context.Context) error {
	back := t.normalize()
	if err := implicitQL(ctx, t, blas64.General{}); err != nil {
		return err
	}
	slices.Sort(t.d)
	scale(back, t.d)
	return nil
}

// vectors returns the eigenvectors as rows, in no order: row i belongs to d[i].
// Ascending is the order that is returned.
func (t tridiagonal) vectors(ctx context.Context, p *pool.Pool) (order []int, qt blas64.General, err error) {
	n := len(t.d)
	back := t.normalize()
	c := conquest{tridiagonal: t, pool: p, order: make([]int, n), qt: NewGeneral(n, n)}
	if n > leaf {
		c.gathered, c.secular = make([]float64, n*n), make([]float64, n*n)
	}
	for i := range n {
		c.qt.Data[i*n+i] = 1
	}
	if err := c.solve(ctx, 0, n); err != nil {
		return nil, c.qt, err
	}
	scale(back, t.d)
	return c.order, c.qt, nil
}

// patience is the number of sweeps for one eigenvalue after which a coupling of
// rounding's size is taken for none, however small the elements beside it are.
const patience = 20

// implicitQL diagonalizes the normalized T by the QL algorithm with implicit
// shifts (Golub & Van Loan, 8.3) and applies its rotations to the rows of qt,
// where that has rows.
func implicitQL(ctx context.Context, t tridiagonal, qt blas64.General) error {
	d, n := t.d, len(t.d)
	e := append(slices.Clone(t.e), 0)
	// QL wants the large elements last.
	if n > 1 && math.Abs(d[0]) > math.Abs(d[n-1]) {
		slices.Reverse(d)
		slices.Reverse(e[:n-1])
		for i := range qt.Rows / 2 {
			swap(Row(qt, i), Row(qt, n-1-i))
		}
	}
	for l := range n {
		for sweep := 0; ; sweep++ {
			tiny := epsilon * epsilon
			if sweep > patience {
				tiny = epsilon / 2
			}
			m := l
			for m < n-1 && math.Abs(e[m]) > epsilon*(math.Abs(d[m])+math.Abs(d[m+1]))+tiny {
				m++
			}
			if m == l {
				break
			}
			if sweep == 4*patience {
				return ErrNoConvergence
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			g := (d[l+1] - d[l]) / (2 * e[l])
			g = d[m] - d[l] + e[l]/(g+math.Copysign(math.Hypot(g, 1), g))
			sin, cos, shift := 1.0, 1.0, 0.0
			i := m - 1
			for ; i >= l; i-- {
				f, b := sin*e[i], cos*e[i]
				r := math.Sqrt(f*f + g*g)
				if !(r > 0x1p-500) {
					r = math.Hypot(f, g)
				}
				e[i+1] = r
				if r == 0 { // the matrix splits here
					d[i+1] -= shift
					e[m] = 0
					break
				}
				sin, cos = f/r, g/r
				g = d[i+1] - shift
				r = (d[i]-g)*sin + 2*cos*b
				shift = sin * r
				d[i+1] = g + shift
				g = cos*r - b
				if qt.Rows > 0 {
					rotate(Row(qt, i), Row(qt, i+1), cos, -sin)
				}
			}
			if i < l {
				d[l] -= shift
				e[l], e[m] = g, 0
			}
		}
	}
	return nil
}

func swap(x, y []float64) {
	for i, v := range x {
		x[i], y[i] = y[i], v
	}
}

// rotate replaces x and y by cx + sy and cy − sx.
func rotate(x, y []float64, c, s float64) {
	for i, v := range x {
		w := y[i]
		x[i], y[i] = c*v+s*w, c*w-s*v
	}
}

// conquest is divide & conquer for a tridiagonal matrix T (Cuppen 1981; Gu and
// Eisenstat 1995): T less a coupling of rank one is two smaller matrices; from
// their eigenvectors, which are the rows of qt, follow T's.
type conquest struct {
	tridiagonal
	pool              *pool.Pool
	order             []int          // of each part's rows by eigenvalue, counted from the part's first
	qt                blas64.General // block diagonal, a block for each part
	gathered, secular []float64      // scratch; a part has the elements of its rows
}

func (c *conquest) solve(ctx context.Context, lo, hi int) error {
	n := hi - lo
	if n <= leaf {
		part := tridiagonal{c.d[lo:hi], c.e[lo : hi-1]}
		if err := implicitQL(ctx, part, sub(c.qt, lo, lo, n, n)); err != nil {
			return err
		}
		c.sort(lo, hi)
		return nil
	}
	mid := lo + n/2
	coupling := c.e[mid-1]
	c.d[mid-1] -= math.Abs(coupling)
	c.d[mid] -= math.Abs(coupling)
	if err := each(ctx, c.pool, 2, func(i int) error {
		if i == 0 {
			return c.solve(ctx, lo, mid)
		}
		return c.solve(ctx, mid, hi)
	}); err != nil {
		return err
	}
	return c.merge(ctx, lo, mid, hi, coupling)
}

// sort finds a part's order.
func (c *conquest) sort(lo, hi int) {
	order := c.order[lo:hi]
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		return cmp.Or(cmp.Compare(c.d[lo+i], c.d[lo+j]), cmp.Compare(i, j))
	})
}

// Where an eigenvector of the two halves is not zero.
const (
	first = iota
	both
	second
)

// merge couples two halves: their eigenvalues D and eigenvectors give T's as
// those of D + ρzzᵀ, in which z is made of the eigenvectors' elements beside the
// coupling.
func (c *conquest) merge(ctx context.Context, lo, mid, hi int, coupling float64) error {
	n, n1 := hi-lo, mid-lo
	d, z := c.d[lo:hi], make([]float64, n)
	where := make([]int, n)
	mostD, mostZ := 0.0, 0.0
	for i := range n {
		if i < n1 {
			z[i] = c.qt.Data[(lo+i)*c.qt.Stride+mid-1] * math.Sqrt2 / 2
		} else {
			where[i] = second
			z[i] = c.qt.Data[(lo+i)*c.qt.Stride+mid] * math.Copysign(math.Sqrt2/2, coupling)
		}
		mostD, mostZ = max(mostD, math.Abs(d[i])), max(mostZ, math.Abs(z[i]))
	}
	rho := 2 * math.Abs(coupling)
	tolerance := 8 * epsilon * max(mostD, mostZ)
	c.sort(lo, hi)
	if rho*mostZ <= tolerance {
		return nil
	}
	// Deflation: an eigenpair with hardly any z stays as it is, and of two with
	// nearly the same value a rotation leaves one without z.
	var kept, done []int
	last := -1
	for _, i := range c.order[lo:hi] {
		if rho*math.Abs(z[i]) <= tolerance {
			done = append(done, i)
			continue
		}
		if last >= 0 {
			r := math.Hypot(z[i], z[last])
			cos, sin := z[i]/r, -z[last]/r
			if math.Abs((d[i]-d[last])*cos*sin) > tolerance {
				kept = append(kept, last)
			} else {
				z[i], z[last] = r, 0
				if where[i] != where[last] {
					where[i], where[last] = both, both
				}
				rotate(Row(c.qt, lo+last)[lo:hi], Row(c.qt, lo+i)[lo:hi], cos, sin)
				d[last], d[i] = d[last]*cos*cos+d[i]*sin*sin, d[last]*sin*sin+d[i]*cos*cos
				done = append(done, last)
			}
		}
		last = i
	}
	kept = append(kept, last)
	k := len(kept)

	// Gather: the kept vectors' first halves, then their second ones, each
	// without those that are zero there; then the others, whole.
	column := make([]int, k) // of a kept vector among first, both, second
	var counts [3]int
	for _, i := range kept {
		counts[where[i]]++
	}
	next := [3]int{0, counts[first], counts[first] + counts[both]}
	k1, k2 := counts[first]+counts[both], counts[both]+counts[second]
	n2 := n - n1
	scratch := c.gathered[lo*len(c.d):]
	g1 := blas64.General{Rows: k1, Cols: n1, Stride: n1, Data: scratch[:k1*n1]}
	scratch = scratch[k1*n1:]
	g2 := blas64.General{Rows: k2, Cols: n2, Stride: n2, Data: scratch[:k2*n2]}
	others := blas64.General{Rows: n - k, Cols: n, Stride: n, Data: scratch[k2*n2:]}
	for j, i := range kept {
		column[j] = next[where[i]]
		next[where[i]]++
		q := Row(c.qt, lo+i)[lo:hi]
		if where[i] != second {
			copy(Row(g1, column[j]), q[:n1])
		}
		if where[i] != first {
			copy(Row(g2, column[j]-counts[first]), q[n1:])
		}
	}
	values := make([]float64, n)
	for j, i := range done {
		copy(Row(others, j), Row(c.qt, lo+i)[lo:hi])
		values[k+j] = d[i]
	}
	s := secularProblem{d: make([]float64, k), z: make([]float64, k), rho: rho, values: values[:k], column: column}
	for j, i := range kept {
		s.d[j], s.z[j] = d[i], z[i]
	}
	s.rows = blas64.General{Rows: k, Cols: k, Stride: k, Data: c.secular[lo*len(c.d):][:k*k]}
	if err := s.solve(ctx, c.pool); err != nil {
		return err
	}
	if err := blas.Gemm64(ctx, c.pool, blas.NoTrans, blas.NoTrans, 1, sub(s.rows, 0, 0, k, k1), g1, 0, sub(c.qt, lo, lo, k, n1)); err != nil {
		return err
	}
	if err := blas.Gemm64(ctx, c.pool, blas.NoTrans, blas.NoTrans, 1, sub(s.rows, 0, counts[first], k, k2), g2, 0, sub(c.qt, lo, mid, k, n2)); err != nil {
		return err
	}
	for j := range done {
		copy(Row(c.qt, lo+k+j)[lo:hi], Row(others, j))
	}
	copy(d, values)
	c.sort(lo, hi)
	return nil
}
