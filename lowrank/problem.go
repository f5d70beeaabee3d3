package lowrank

import (
	"context"
	"errors"
	"fmt"
	"math"

	gonum "gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// problem is the error of one layer and its metric. Factors have one row for each
// component: B is held transposed.
type problem struct {
	pool    *pool.Pool
	layer   string
	dw      blas64.General // ΔW = W̃ − Ŵ, out×in
	s       blas64.General // in×in
	product blas64.General // ΔW·S, out×in
	energy  float64        // tr(Γ), Γ = ΔW·S·ΔWᵀ

	o        Options
	weighted blas64.General // ΔW·M, M being the method's metric: S, I or diag(S)
}

// newProblem costs out·in² multiply-adds for ΔW·S, from which the energy and all
// later errors follow.
func newProblem(ctx context.Context, p *pool.Pool, name string, target, current, s blas64.General, o Options) (*problem, error) {
	if p == nil {
		p = pool.New(1)
	}
	out, in := target.Rows, target.Cols
	switch {
	case out < 1 || in < 1 || !holds(target):
		return nil, &layer.InputError{Layer: name, What: "target", Index: -1, Reason: fmt.Sprintf("%s: want at least one row and one column", form(target))}
	case current.Rows != out || current.Cols != in || !holds(current):
		return nil, &layer.InputError{Layer: name, What: "compressed weight", Index: -1, Reason: fmt.Sprintf("%s for a target of %d×%d", form(current), out, in)}
	case s.Rows != in || s.Cols != in || !holds(s):
		return nil, &layer.InputError{Layer: name, What: "S", Index: -1, Reason: fmt.Sprintf("%s for %d inputs", form(s), in)}
	}
	w := &problem{pool: p, layer: name, s: s, o: o, dw: linalg.NewGeneral(out, in), product: linalg.NewGeneral(out, in)}
	if err := p.For(ctx, out, func(i int) error {
		d, c := linalg.Row(w.dw, i), linalg.Row(current, i)
		for j, v := range linalg.Row(target, i) {
			d[j] = v - c[j]
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if err := blas.Gemm64(ctx, p, blas.NoTrans, blas.NoTrans, 1, w.dw, s, 0, w.product); err != nil {
		return nil, err
	}
	size := 0.0
	for i := range out {
		e := vec.Dot64(linalg.Row(w.dw, i), linalg.Row(w.product, i))
		w.energy += e
		size += math.Abs(e)
	}
	if math.IsNaN(size) || math.IsInf(size, 0) {
		return nil, &layer.InputError{Layer: name, What: "error of the compressed weight", Index: -1, Reason: "not finite: the weights or S hold a NaN, an infinity, or numbers too large to square"}
	}
	if w.energy < -1e-9*size {
		return nil, &layer.InputError{Layer: name, What: "S", Index: -1, Reason: fmt.Sprintf("not positive semidefinite: the compressed weight has the error %g", w.energy)}
	}
	w.energy = max(0, w.energy)
	switch o.Method {
	case SVD:
		w.weighted = w.dw
	case ScaledSVD:
		w.weighted = w.scaled(w.dw, func(s float64) float64 { return s })
	default:
		w.weighted = w.product
	}
	return w, nil
}

// holds reports whether a's slice holds its shape.
func holds(a blas64.General) bool {
	return a.Stride >= a.Cols && len(a.Data) >= (a.Rows-1)*a.Stride+a.Cols
}

func form(a blas64.General) string {
	return fmt.Sprintf("%d×%d with stride %d in %d values", a.Rows, a.Cols, a.Stride, len(a.Data))
}

// mul returns op(A)·op(B).
func (w *problem) mul(ctx context.Context, tA, tB blas.Transpose, a, b blas64.General) (blas64.General, error) {
	rows, cols := a.Rows, b.Cols
	if tA == blas.Trans {
		rows = a.Cols
	}
	if tB == blas.Trans {
		cols = b.Rows
	}
	c := linalg.NewGeneral(rows, cols)
	return c, blas.Gemm64(ctx, w.pool, tA, tB, 1, a, b, 0, c)
}

// error returns tr((ΔW−BA)·S·(ΔW−BA)ᵀ) of any factors, from
//
//	tr(Γ) − 2·tr(Bᵀ·ΔW·S·Aᵀ) + tr(BᵀB·A·S·Aᵀ),
//
// which for B = U and A = Uᵀ·ΔW is tr(Γ) − tr(UᵀΓU). Its rounding is a small
// multiple of 2⁻⁵²·tr(Γ). Cost: r·in·(out + in) multiply-adds.
func (w *problem) error(ctx context.Context, bt, a blas64.General) (float64, error) {
	cross, err := w.mul(ctx, blas.NoTrans, blas.Trans, a, w.product)
	if err != nil {
		return 0, err
	}
	as, err := w.mul(ctx, blas.NoTrans, blas.NoTrans, a, w.s)
	if err != nil {
		return 0, err
	}
	gram, err := w.mul(ctx, blas.NoTrans, blas.Trans, as, a)
	if err != nil {
		return 0, err
	}
	bb, err := w.mul(ctx, blas.NoTrans, blas.Trans, bt, bt)
	if err != nil {
		return 0, err
	}
	e := w.energy
	for i := range bt.Rows {
		e += vec.Dot64(linalg.Row(bb, i), linalg.Row(gram, i)) - 2*vec.Dot64(linalg.Row(bt, i), linalg.Row(cross, i))
	}
	return max(0, e), nil
}

// refitB returns the Bᵀ of least error with A in the method's metric, by
// A·M·Aᵀ·Bᵀ = A·M·ΔWᵀ, that nearest to bt where several are.
func (w *problem) refitB(ctx context.Context, bt, a blas64.General) (blas64.General, error) {
	rhs, err := w.mul(ctx, blas.NoTrans, blas.Trans, a, w.weighted)
	if err != nil {
		return rhs, err
	}
	am := a
	switch w.o.Method {
	case EoRA:
		if am, err = w.mul(ctx, blas.NoTrans, blas.NoTrans, a, w.s); err != nil {
			return rhs, err
		}
	case ScaledSVD:
		am = w.scaled(a, func(s float64) float64 { return s })
	}
	gram, err := w.mul(ctx, blas.NoTrans, blas.Trans, am, a)
	if err != nil {
		return rhs, err
	}
	return w.solveNear(ctx, gram, rhs, bt)
}

// refitA returns the A of least error with B, (BᵀB)⁻¹·Bᵀ·ΔW in any metric, that
// nearest to a where several are.
func (w *problem) refitA(ctx context.Context, bt, a blas64.General) (blas64.General, error) {
	rhs, err := w.mul(ctx, blas.NoTrans, blas.NoTrans, bt, w.dw)
	if err != nil {
		return rhs, err
	}
	gram, err := w.mul(ctx, blas.NoTrans, blas.Trans, bt, bt)
	if err != nil {
		return rhs, err
	}
	return w.solveNear(ctx, gram, rhs, a)
}

// refitDamping holds fits to where they start, relative to the mean diagonal of
// their equations: what rounding has turned towards inputs that S hardly sees
// would else be made up for by huge factors. It is too small to matter elsewhere.
const refitDamping = 1e-6

// solveNear solves gram·X = rhs for an X near to start: it minimises the error
// plus λ‖X − start‖². A component that the metric does not see stays what it is,
// as do all where the matrix is nothing but rounding. rhs is overwritten.
func (w *problem) solveNear(ctx context.Context, gram, rhs, start blas64.General) (blas64.General, error) {
	if err := blas.Gemm64(ctx, w.pool, blas.NoTrans, blas.NoTrans, -1, gram, start, 1, rhs); err != nil {
		return rhs, err
	}
	var l blas64.General
	_, _, err := linalg.Damped(refitDamping, linalg.MeanDiagonal(gram), func(lambda float64) error {
		l = linalg.Clone(gram)
		for i := range l.Rows {
			l.Data[i*l.Stride+i] += lambda
		}
		return linalg.Cholesky(ctx, w.pool, l)
	})
	var pivot *linalg.PivotError
	switch {
	case errors.As(err, &pivot):
		return linalg.Clone(start), nil
	case err != nil:
		return rhs, err
	}
	for _, op := range []blas.Transpose{blas.NoTrans, blas.Trans} {
		if err := linalg.SolveTriangular(ctx, w.pool, gonum.Left, gonum.Lower, op, l, rhs); err != nil {
			return rhs, err
		}
	}
	for i := range rhs.Rows {
		for j, v := range linalg.Row(start, i) {
			linalg.Row(rhs, i)[j] += v
		}
	}
	return rhs, nil
}
