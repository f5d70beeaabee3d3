package prune

import (
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// tableau is a row's problem with the survivors S solved for, by the sweep
// operator (Goodnight 1979). With A of a unit diagonal its matrix is −A_SS⁻¹ among
// survivors, the Schur complement A_tt − A_tS·A_SS⁻¹·A_St among the others, and
// A_tS·A_SS⁻¹ between them; its vector is the weights, minimizing over S, and the
// gradient (w̃−ŵ)A of the others. A sweep takes an input in or out.
type tableau struct {
	m      blas64.General
	u      []float64
	inside []bool
	row    []float64 // of the input that is swept, as it was
}

func newTableau(n int) *tableau {
	return &tableau{linalg.NewGeneral(n, n), make([]float64, n), make([]bool, n), make([]float64, n)}
}

// begin solves for the survivors of mask's row r. A and its inverse are scaled, as
// the target w̃ is, and b = w̃A.
func (t *tableau) begin(a, inverse blas64.General, target, b []float64, mask *layer.Mask, r int) {
	survivors := 0
	for i := range t.u {
		if mask.At(r, i) {
			survivors++
		}
	}
	all := survivors > len(t.u)/2 // begin with all inside
	if all {
		for i, v := range inverse.Data {
			t.m.Data[i] = -v
		}
		copy(t.u, target)
	} else {
		copy(t.m.Data, a.Data)
		copy(t.u, b)
	}
	for i := range t.inside {
		t.inside[i] = all
	}
	for i := range t.inside {
		if mask.At(r, i) != all {
			t.sweep(i)
		}
	}
}

// sweep takes input k in, or out where it is in.
func (t *tableau) sweep(k int) {
	copy(t.row, linalg.Row(t.m, k))
	d, u := t.row[k], t.u[k]
	for i, v := range t.row {
		if i != k && v != 0 {
			vec.Axpy64(-v/d, t.row, linalg.Row(t.m, i))
			t.u[i] -= v / d * u
		}
	}
	if t.inside[k] {
		d = -d
	}
	own := linalg.Row(t.m, k)
	for i, v := range t.row {
		own[i] = v / d
		t.m.Data[i*t.m.Stride+k] = v / d
	}
	own[k] = -1 / t.row[k]
	t.u[k] = u / d
	t.inside[k] = !t.inside[k]
}

// best returns the swap after which, with all survivors refitted, the error is
// least. in and out share an N:M group with m > 0.
func (t *tableau) best(m int) (best swap) {
	n := len(t.u)
	for out := range n {
		if !t.inside[out] {
			continue
		}
		from, to := 0, n
		if m > 0 {
			from, to = out/m*m, min(out/m*m+m, n)
		}
		row := linalg.Row(t.m, out)
		d, u := row[out], t.u[out]
		cost, ratio := -u*u/d, u/d
		for in := from; in < to; in++ {
			if t.inside[in] {
				continue
			}
			v := row[in]
			g, schur := t.u[in]-v*ratio, t.m.Data[in*(n+1)]-v*v/d
			if schur > 0 && (cost-best.delta)*schur < g*g {
				best = swap{out: out, in: in, delta: cost - g*g/schur}
			}
		}
	}
	return best
}
