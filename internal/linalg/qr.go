package linalg

import (
	"context"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

// qrPanel is the number of reflectors that are found one by one before they are
// applied to the rest together.
const qrPanel = 32

// QR returns the thin factors of the m×n matrix A = QR, which it leaves as it
// is: with k = min(m, n), Q m×k with orthonormal columns, R k×n upper triangular
// (its diagonal of either sign). It reflects after Householder, in blocks (Golub
// & Van Loan, 5.2), so that Q is orthonormal to rounding whatever A's rank. It
// fails with a *NotFiniteError. Cost: about 2mn² multiply-adds for m ≥ n.
func QR(ctx context.Context, p *pool.Pool, a blas64.General) (q, r blas64.General, err error) {
	m, n := a.Rows, a.Cols
	k := min(m, n)
	q, r = NewGeneral(m, k), NewGeneral(k, n)
	most, err := largest(ctx, p, a, false)
	if err != nil {
		return q, r, err
	}
	at := NewGeneral(n, m) // a column of A is a row
	if err := transpose(ctx, p, at, a); err != nil {
		return q, r, err
	}
	factor := safeScale(most)
	if factor != 1 {
		scale(factor, at.Data)
	}
	ts := make([]blas64.General, 0, (k+qrPanel-1)/qrPanel)
	tau := make([]float64, k)
	for j := 0; j < k; j += qrPanel {
		b := min(qrPanel, k-j)
		panel := sub(at, j, 0, b, m)
		if err := reflectPanel(ctx, p, panel, j, tau[j:], r); err != nil {
			return q, r, err
		}
		v := sub(panel, 0, j, b, m-j)
		t, err := compact(ctx, p, v, tau[j:j+b])
		if err != nil {
			return q, r, err
		}
		ts = append(ts, t)
		if err := reflectRows(ctx, p, blas.NoTrans, v, t, sub(at, j+b, j, n-j-b, m-j)); err != nil {
			return q, r, err
		}
	}
	for j := k; j < n; j++ { // a wide A's columns beyond the last reflector
		for i, v := range Row(at, j) {
			r.Data[i*r.Stride+j] = v
		}
	}
	if factor != 1 {
		scale(1/factor, r.Data)
	}
	qt := NewGeneral(k, m)
	for i := range k {
		qt.Data[i*m+i] = 1
	}
	for i := len(ts) - 1; i >= 0; i-- {
		j := i * qrPanel
		v := sub(at, j, j, ts[i].Rows, m-j)
		if err := reflectRows(ctx, p, blas.Trans, v, ts[i], sub(qt, j, j, k-j, m-j)); err != nil {
			return q, r, err
		}
	}
	return q, r, transpose(ctx, p, q, qt)
}

// reflectPanel finds the reflectors of a panel, whose rows are A's columns from
// the given one on. It leaves vᵢ in row i, zero before element column+i, and
// what the reflections leave of the columns in R.
func reflectPanel(ctx context.Context, p *pool.Pool, panel blas64.General, column int, tau []float64, r blas64.General) error {
	for i := range panel.Rows {
		x := Row(panel, i)
		for l, v := range x[:column+i] {
			r.Data[l*r.Stride+column+i] = v
		}
		clear(x[:column+i])
		v := x[column+i:]
		beta, t := reflector(v)
		r.Data[(column+i)*r.Stride+column+i] = beta
		tau[i] = t
		reflect := func(l int) error {
			y := Row(panel, i+1+l)[column+i:]
			axpy(-t*dot(v, y), v, y)
			return nil
		}
		rest := panel.Rows - i - 1
		if rest*len(v) < 1<<15 { // not worth waking a worker
			for l := range rest {
				_ = reflect(l)
			}
			continue
		}
		if err := each(ctx, p, rest, reflect); err != nil {
			return err
		}
	}
	return ctx.Err()
}
