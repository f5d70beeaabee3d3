package lowrank

import (
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/layer"
)

func matrix(rows ...[]float64) blas64.General {
	m := linalg.NewGeneral(len(rows), len(rows[0]))
	for i, r := range rows {
		copy(linalg.Row(m, i), r)
	}
	return m
}

func identity(n int) blas64.General {
	m := linalg.NewGeneral(n, n)
	for i := range n {
		m.Data[i*n+i] = 1
	}
	return m
}

func zeros(a blas64.General) blas64.General { return linalg.NewGeneral(a.Rows, a.Cols) }

// multiply is the textbook a·op(b), on its own so that tests share no code with
// what they test.
func multiply(a, b blas64.General, transposed bool) blas64.General {
	cols := b.Cols
	if transposed {
		cols = b.Rows
	}
	c := linalg.NewGeneral(a.Rows, cols)
	for i := range c.Rows {
		for j := range c.Cols {
			sum := 0.0
			for k := range a.Cols {
				if transposed {
					sum += a.Data[i*a.Stride+k] * b.Data[j*b.Stride+k]
				} else {
					sum += a.Data[i*a.Stride+k] * b.Data[k*b.Stride+j]
				}
			}
			c.Data[i*c.Stride+j] = sum
		}
	}
	return c
}

// plain returns ‖(dw − Bᵀᵀ·A)·S^{1/2}‖² by its definition; nil factors are none.
func plain(dw, s blas64.General, bt, a *blas64.General) float64 {
	r := linalg.Clone(dw)
	if bt != nil {
		for k := range bt.Rows {
			for i := range r.Rows {
				for j := range r.Cols {
					r.Data[i*r.Stride+j] -= bt.Data[k*bt.Stride+i] * a.Data[k*a.Stride+j]
				}
			}
		}
	}
	rs := multiply(r, s, false)
	e := 0.0
	for i := range r.Rows {
		for j := range r.Cols {
			e += rs.Data[i*rs.Stride+j] * r.Data[i*r.Stride+j]
		}
	}
	return e
}

func plainTerm(dw, s blas64.General, t *layer.LowRank) float64 {
	bt, a := values(&t.B), values(&t.A)
	return plain(dw, s, &bt, &a)
}

// draw returns a random error and the Gram matrix of correlated inputs of unequal
// size, singular where samples < in.
func draw(seed uint64, out, in, samples int) (dw, s blas64.General) {
	rng := rand.New(rand.NewPCG(seed, 7))
	dw = linalg.NewGeneral(out, in)
	for i := range dw.Data {
		v := rng.NormFloat64()
		dw.Data[i] = 0.05 * v * math.Abs(v)
	}
	x := linalg.NewGeneral(in, samples)
	shared := make([]float64, samples)
	for k := range shared {
		shared[k] = rng.NormFloat64()
	}
	for j := range in {
		size := math.Exp(rng.NormFloat64())
		for k := range samples {
			last := 0.0
			if j > 0 {
				last = x.Data[(j-1)*samples+k]
			}
			x.Data[j*samples+k] = size * (rng.NormFloat64() + 0.5*shared[k] + 0.3*math.Tanh(last))
		}
	}
	return dw, multiply(x, x, true)
}

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance) {
		t.Errorf("%s is %.12g, want %.12g within %g", what, got, want, tolerance)
	}
}

// decaying returns an n×n error as rounding leaves it, all of one size, and a
// Gram matrix of n inputs with a long tail, cheaply.
func decaying(n int) (dw, s blas64.General) {
	rng := rand.New(rand.NewPCG(uint64(n), 9))
	dw, s = linalg.NewGeneral(n, n), linalg.NewGeneral(n, n)
	for i := range dw.Data {
		dw.Data[i] = 0.01 * (rng.Float64() - 0.5)
	}
	size := make([]float64, n)
	for j := range size {
		size[j] = math.Exp(rng.NormFloat64())
	}
	for i := range n { // of a stationary sequence, so positive definite
		for j := range n {
			s.Data[i*n+j] = size[i] * size[j] * math.Pow(0.9, math.Abs(float64(i-j)))
		}
	}
	return dw, s
}
