package prune

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// ADMMOptions are the settings of ADMM.
type ADMMOptions struct {
	Iterations int     // updates of the weights
	Steps      int     // choices of the mask, one before each update, up to one after the last; 0: one, of the final sparsity
	Rho        float64 // ρ, relative to the unit diagonal that A is scaled to

	// Relaxation is α, the part of an update that is taken: above 1, up to 2, it is
	// over-relaxed (Boyd et al. 2011, 3.4.3). Last is that of the last update, which
	// may go further: nothing follows that it could throw out of step. 0: 1, and
	// Relaxation.
	Relaxation, Last float64

	// Constant makes every choice of the mask one of the final sparsity.
	Constant bool

	// Mask is a mask to keep to; nil for one that ADMM chooses.
	Mask *layer.Mask
}

// DefaultADMM are the published settings.
func DefaultADMM() ADMMOptions { return ADMMOptions{Iterations: 20, Steps: 15, Rho: 1} }

// FastADMM are settings that reach about the error of DefaultADMM in a third of its
// updates.
func FastADMM() ADMMOptions {
	return ADMMOptions{Iterations: 7, Steps: 6, Rho: 0.6, Relaxation: 1.4, Last: 2.5, Constant: true}
}

// check reports settings that are out of range.
func (o ADMMOptions) check() error {
	switch {
	case o.Iterations < 0 || o.Iterations > 1e6 || o.Steps < 0 || o.Steps > o.Iterations+1:
		return &OptionError{"ADMM.Iterations", o.Iterations, "1 to 1000000, and at least the steps less one"}
	case !(o.Rho > 0 && o.Rho <= 1e6):
		return &OptionError{"ADMM.Rho", o.Rho, "a positive number up to 1e6"}
	case !(o.Relaxation >= 0 && o.Relaxation <= 2):
		return &OptionError{"ADMM.Relaxation", o.Relaxation, "above 0, up to 2"}
	case !(o.Last >= 0 && o.Last <= 4):
		return &OptionError{"ADMM.Last", o.Last, "above 0, up to 4"}
	}
	return nil
}

// relaxation returns α of an update, from 0.
func (o ADMMOptions) relaxation(update int) float32 {
	switch {
	case update == o.Iterations-1 && o.Last > 0:
		return float32(o.Last)
	case o.Relaxation > 0:
		return float32(o.Relaxation)
	}
	return 1
}

// share returns which part of what goes at last goes at choice t, from 0.
func (o ADMMOptions) share(t int) float64 {
	if o.Constant || o.Steps == 0 {
		return 1
	}
	left := 1 - float64(t+1)/float64(o.Steps)
	return 1 - left*left*left
}

// ADMM overwrites w, the target W̃ (out×in), with sparse weights Ŵ that make
// tr((Ŵ−W̃)A(Ŵ−W̃)ᵀ) small, and returns the survivors (arXiv 2401.02938,
// algorithms 1 and 2). A (in×in, left as it is) is symmetric positive definite,
// damped by the caller. Inputs are scaled so that A's diagonal is 1: then a
// weight's size is its score of Wanda.
//
// Before each of the first Steps updates t = 1, 2, … the mask is chosen anew, from
// W + U, with the share s·(1 − (1 − t/Steps)³) pruned, or s if Constant. For N:M the N
// largest of a group always stay.
//
// With V = W + U, Z is V where V survives, U is V where it is pruned, and both are 0
// elsewhere, so an iteration is one product, V' = V + α(W̃ − Z + ρ(±V − W̃)(A + ρI)⁻¹) with a minus
// where pruned. It and the inverse are in float32, whose rounding Polish takes away.
//
// Cost: in³/2 multiply-adds once, out·in² an iteration, all in float32, and memory
// for two in×in and four out×in float32 matrices. Settings out of range are an
// *OptionError, an A that is not positive definite a *linalg.PivotError.
func ADMM(ctx context.Context, p *pool.Pool, a, w blas64.General, sel Selection, o ADMMOptions) (*layer.Mask, error) {
	if p == nil {
		p = pool.New(1)
	}
	if err := checkSystem(a, w, o.Mask); err != nil {
		return nil, err
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Mask == nil {
		if err := sel.checkFor(w.Rows, w.Cols); err != nil {
			return nil, err
		}
	}
	sc := newScaling(a, w)
	b, err := sc.inverse(ctx, p, a, o.Rho)
	if err != nil {
		return nil, err
	}
	s := &admm{
		selector: selector{Selection: sel}, pool: p, b: b, rho: float32(o.Rho), mask: o.Mask,
		target: new32(w.Rows, w.Cols), v: new32(w.Rows, w.Cols), x: new32(w.Rows, w.Cols),
	}
	if s.mask == nil {
		s.mask = layer.NewMask(w.Rows, w.Cols)
	}
	if err := sc.in(ctx, p, s.target, w); err != nil {
		return nil, err
	}
	copy(s.v.Data, s.target.Data)
	goes := 0
	if o.Mask == nil {
		goes = sel.losses(w.Rows, w.Cols)
	}
	for it := range o.Iterations + 1 {
		if o.Mask == nil && (it < o.Steps || it == 0) {
			k := int(o.share(it) * float64(goes))
			if err := s.choose(ctx, p, s.v, s.mask, 0, k, func(r int) int { return share(k, r, w.Rows) }); err != nil {
				return nil, err
			}
		}
		if it < o.Iterations {
			if err := s.step(ctx, o.relaxation(it)); err != nil {
				return nil, err
			}
		}
	}
	return s.mask, sc.out(ctx, p, w, s.v, s.mask)
}

// admm is the state of an iteration, all of it out×in and scaled.
type admm struct {
	selector
	pool   *pool.Pool
	b      *blas.PackedB // (A + ρI)⁻¹
	rho    float32
	mask   *layer.Mask
	target blas32.General // W̃
	v      blas32.General // W + U
	x      blas32.General // Z − U − W̃
}

// step takes the part alpha of an update of V with the mask as it is.
func (s *admm) step(ctx context.Context, alpha float32) error {
	cols := s.v.Cols
	err := forRows(ctx, s.pool, s.v.Rows, cols, func(r int) error {
		v, x, target := matrixRow(s.v, r), matrixRow(s.x, r), matrixRow(s.target, r)
		for i, word := range s.mask.Row(r) {
			reflect(v[i*64:], x[i*64:], target[i*64:], ^word, alpha)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return blas.GemmPacked(ctx, s.pool, blas.NoTrans, alpha*s.rho, s.x, s.b, 1, s.v, nil)
}

// reflect writes ±V − W̃ to x and V + α(W̃ − Z) to v, for up to 64 weights of which
// those marked are pruned. It does not branch on the mask, which is as good as
// random.
func reflect(v, x, target []float32, pruned uint64, alpha float32) {
	n := min(len(v), 64)
	v, x, target = v[:n], x[:n], target[:n]
	// What is left of V: 1 where pruned.
	left := [2]float32{1 - alpha, 1}
	for i, w := range target {
		bits, goes := math.Float32bits(v[i]), uint32(pruned>>i)&1
		x[i] = math.Float32frombits(bits^goes<<31) - w
		v[i] = v[i]*left[goes] + alpha*w
	}
}

// scaling brings A to a unit diagonal, and the weights to the same inputs and to
// sizes below 1.
type scaling struct {
	norm []float64 // √A_jj
	unit float64   // a power of two above every |w_j|·√A_jj
}

func newScaling(a, w blas64.General) scaling {
	s := scaling{norm: make([]float64, a.Rows), unit: 1}
	for i := range s.norm {
		s.norm[i] = math.Sqrt(a.Data[i*a.Stride+i])
	}
	most := 0.0
	for r := range w.Rows {
		for j, v := range linalg.Row(w, r) {
			most = max(most, math.Abs(v)*s.norm[j])
		}
	}
	if most > 0 {
		_, exp := math.Frexp(most)
		s.unit = math.Ldexp(1, min(max(exp, -1000), 1000))
	}
	return s
}

// matrix writes the scaled A + ρI to dst.
func (s *scaling) matrix(ctx context.Context, p *pool.Pool, dst, a blas64.General, rho float64) error {
	return forRows(ctx, p, a.Rows, a.Cols, func(i int) error {
		row := linalg.Row(dst, i)
		for j, v := range linalg.Row(a, i) {
			row[j] = v / s.norm[i] / s.norm[j]
		}
		row[i] = 1 + rho
		return nil
	})
}

// inverse returns (A + ρI)⁻¹ for products in float32.
func (s *scaling) inverse(ctx context.Context, p *pool.Pool, a blas64.General, rho float64) (*blas.PackedB, error) {
	b := new32(a.Rows, a.Rows)
	err := forRows(ctx, p, a.Rows, a.Cols, func(i int) error {
		row := matrixRow(b, i)
		for j, v := range linalg.Row(a, i)[:i] {
			row[j] = float32(v / s.norm[i] / s.norm[j])
		}
		row[i] = float32(1 + rho)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := linalg.Inverse32(ctx, p, b); err != nil {
		return nil, err
	}
	return blas.PackB(blas.NoTrans, b)
}

// packed returns a matrix in float32, packed for products.
func packed(ctx context.Context, p *pool.Pool, a blas64.General) (*blas.PackedB, error) {
	b := new32(a.Rows, a.Cols)
	err := forRows(ctx, p, a.Rows, a.Cols, func(i int) error {
		row := matrixRow(b, i)
		for j, v := range linalg.Row(a, i) {
			row[j] = float32(v)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return blas.PackB(blas.NoTrans, b)
}

// in writes scaled weights to dst.
func (s *scaling) in(ctx context.Context, p *pool.Pool, dst blas32.General, w blas64.General) error {
	return forRows(ctx, p, w.Rows, w.Cols, func(r int) error {
		row := matrixRow(dst, r)
		for j, v := range linalg.Row(w, r) {
			row[j] = float32(v * s.norm[j] / s.unit)
		}
		return nil
	})
}

// out writes the survivors of v to w as they were before scaling.
func (s *scaling) out(ctx context.Context, p *pool.Pool, w blas64.General, v blas32.General, mask *layer.Mask) error {
	return forRows(ctx, p, w.Rows, w.Cols, func(r int) error {
		row := linalg.Row(w, r)
		for j, x := range matrixRow(v, r) {
			row[j] = 0
			if mask.At(r, j) {
				row[j] = float64(x) * s.unit / s.norm[j]
			}
		}
		return nil
	})
}

func new32(rows, cols int) blas32.General {
	return blas32.General{Rows: rows, Cols: cols, Stride: cols, Data: make([]float32, rows*cols)}
}

// checkSystem reports an A, weights and mask that do not belong together, or that
// are not finite.
func checkSystem(a, w blas64.General, mask *layer.Mask) error {
	switch {
	case w.Rows < 1 || w.Cols < 1 || a.Rows != w.Cols || a.Cols != w.Cols:
		return &ShapeError{fmt.Sprintf("a Gram of %d×%d for a weight of %d×%d", a.Rows, a.Cols, w.Rows, w.Cols)}
	case w.Stride < w.Cols || len(w.Data) < (w.Rows-1)*w.Stride+w.Cols || a.Stride < a.Cols || len(a.Data) < (a.Rows-1)*a.Stride+a.Cols:
		return &ShapeError{fmt.Sprintf("%d and %d values do not hold a weight of %d×%d and its Gram", len(w.Data), len(a.Data), w.Rows, w.Cols)}
	case mask != nil && (mask.Rows != w.Rows || mask.Cols != w.Cols):
		return &ShapeError{fmt.Sprintf("a mask of %d×%d for a weight of %d×%d", mask.Rows, mask.Cols, w.Rows, w.Cols)}
	}
	for i := range a.Rows {
		if d := a.Data[i*(a.Stride+1)]; !(d > 0) || math.IsInf(d, 0) {
			return &ValueError{"Gram's diagonal", -1, i, d, "a finite positive number: damp it"}
		}
	}
	for r := range w.Rows {
		for j, v := range linalg.Row(w, r) {
			if v-v != 0 {
				return &ValueError{"weight", r, j, v, "a finite number"}
			}
		}
	}
	return nil
}
