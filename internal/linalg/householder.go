package linalg

import (
	"context"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

// NotFiniteError says that a matrix to be factored holds a NaN or an infinity.
type NotFiniteError struct {
	Row, Col int
	Value    float64
}

func (e *NotFiniteError) Error() string {
	return fmt.Sprintf("matrix element (%d, %d) is %g", e.Row, e.Col, e.Value)
}

// largest returns the largest magnitude in a, of a square one's upper triangle
// alone when upper; or the *NotFiniteError of the first element that is none.
func largest(ctx context.Context, p *pool.Pool, a blas64.General, upper bool) (float64, error) {
	most := make([]float64, a.Rows)
	err := eachRow(ctx, p, a.Rows, func(i int) error {
		from := 0
		if upper {
			from = i
		}
		// Without its sign a float64's bits are ordered as it is, NaN after infinity.
		m := uint64(0)
		for _, v := range Row(a, i)[from:] {
			m = max(m, math.Float64bits(v)&^(1<<63))
		}
		most[i] = math.Float64frombits(m)
		if m < math.Float64bits(math.Inf(1)) {
			return nil
		}
		for j := from; ; j++ {
			if v := a.Data[i*a.Stride+j]; math.IsNaN(v) || math.IsInf(v, 0) {
				return &NotFiniteError{Row: i, Col: j, Value: v}
			}
		}
	})
	if err != nil || a.Rows == 0 {
		return 0, err
	}
	return slices.Max(most), nil
}

// safeScale returns a power of two that brings a matrix, whose largest magnitude
// is given, to where squares neither overflow nor vanish; 1 where it is already.
func safeScale(most float64) float64 {
	if most == 0 || (most > 0x1p-400 && most < 0x1p400) {
		return 1
	}
	return math.Ldexp(1, -exponent(most))
}

func scale(factor float64, x []float64) {
	for i := range x {
		x[i] *= factor
	}
}

// norm returns ‖x‖₂, also where the squares vanish.
func norm(x []float64) float64 {
	s := dot(x, x)
	if s > 0x1p-900 && s < 0x1p1000 {
		return math.Sqrt(s)
	}
	most := 0.0
	for _, v := range x {
		most = max(most, math.Abs(v))
	}
	if most == 0 {
		return 0
	}
	s = 0
	for _, v := range x {
		s += (v / most) * (v / most)
	}
	return most * math.Sqrt(s)
}

// reflector turns x into the v of the Householder reflection H = I − τvvᵀ with
// v[0] = 1 and H·x = β·e₀ (Golub & Van Loan, 5.1.3). For an x that is a multiple
// of e₀ already, τ is 0.
func reflector(x []float64) (beta, tau float64) {
	alpha, rest := x[0], x[1:]
	r := norm(rest)
	if r == 0 {
		x[0] = 1
		return alpha, 0
	}
	beta = -math.Copysign(math.Hypot(alpha, r), alpha)
	tau = (beta - alpha) / beta
	if d := alpha - beta; math.Abs(d) > 0x1p-1000 {
		scale(1/d, rest)
	} else {
		for i := range rest {
			rest[i] /= d
		}
	}
	x[0] = 1
	return beta, tau
}

// compact returns the k×k upper triangular T with H₁H₂…H_k = I − VᵀTV, of the
// reflectors in V's k rows (Schreiber and Van Loan 1989).
func compact(ctx context.Context, p *pool.Pool, v blas64.General, tau []float64) (blas64.General, error) {
	k := v.Rows
	t, g := NewGeneral(k, k), NewGeneral(k, k)
	if err := blas.Gemm64(ctx, p, blas.NoTrans, blas.Trans, 1, v, v, 0, g); err != nil {
		return t, err
	}
	for j := range k {
		t.Data[j*k+j] = tau[j]
		for i := range j {
			s := 0.0
			for l := i; l < j; l++ {
				s += t.Data[i*k+l] * g.Data[l*k+j]
			}
			t.Data[i*k+j] = -tau[j] * s
		}
	}
	return t, nil
}

// reflectRows overwrites C with C·(I − Vᵀ·op(T)·V).
func reflectRows(ctx context.Context, p *pool.Pool, op blas.Transpose, v, t, c blas64.General) error {
	if c.Rows == 0 {
		return ctx.Err()
	}
	cv, cvt := NewGeneral(c.Rows, v.Rows), NewGeneral(c.Rows, v.Rows)
	if err := blas.Gemm64(ctx, p, blas.NoTrans, blas.Trans, 1, c, v, 0, cv); err != nil {
		return err
	}
	if err := blas.Gemm64(ctx, p, blas.NoTrans, op, 1, cv, t, 0, cvt); err != nil {
		return err
	}
	return blas.Gemm64(ctx, p, blas.NoTrans, blas.NoTrans, -1, cvt, v, 1, c)
}

// transposeTile is the order of the tiles that transposing copies.
const transposeTile = 32

// transpose writes Aᵀ to dst.
func transpose(ctx context.Context, p *pool.Pool, dst, a blas64.General) error {
	return each(ctx, p, (a.Rows+transposeTile-1)/transposeTile, func(t int) error {
		from := t * transposeTile
		to := min(from+transposeTile, a.Rows)
		for j0 := 0; j0 < a.Cols; j0 += transposeTile {
			for j := j0; j < min(j0+transposeTile, a.Cols); j++ {
				d := Row(dst, j)[from:to]
				for i := range d {
					d[i] = a.Data[(from+i)*a.Stride+j]
				}
			}
		}
		return nil
	})
}
