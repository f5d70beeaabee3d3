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
	Steps      int     // the first iterations, in which the mask grows to its sparsity; 0: it is chosen once, from the target
	Rho        float64 // ρ, relative to the unit diagonal that A is scaled to

	// Mask is a mask to keep to; nil for one that ADMM chooses.
	Mask *layer.Mask
}

// DefaultADMM are the published settings.
func DefaultADMM() ADMMOptions { return ADMMOptions{Iterations: 20, Steps: 15, Rho: 1} }

// ADMM overwrites w, the target W̃ (out×in), with sparse weights Ŵ that make
// tr((Ŵ−W̃)A(Ŵ−W̃)ᵀ) small, and returns the survivors (arXiv 2401.02938,
// algorithms 1 and 2). A (in×in, left as it is) is symmetric positive definite,
// damped by the caller. Inputs are scaled so that A's diagonal is 1: then a
// weight's size is its score of Wanda.
//
// In each of the first Steps iterations t the mask is chosen anew, from W + U,
// with the share s·(1 − (1 − t/Steps)³) pruned. For N:M the N largest of a group
// always stay.
//
// With V = W + U, U is V where V is pruned and 0 elsewhere, so an iteration is
// one product, V' = W̃ + U + ρ(±V − W̃)(A + ρI)⁻¹ with a minus where pruned.
// Products are in float32, whose rounding Polish takes away.
//
// Cost: in³/2 multiply-adds in float64 once, out·in² in float32 an iteration, and
// memory for two in×in float64 and four out×in float32 matrices.
func ADMM(ctx context.Context, p *pool.Pool, a, w blas64.General, c choice, o ADMMOptions) (*layer.Mask, error) {
	if p == nil {
		p = pool.New(1)
	}
	if err := checkSystem(a, w, o.Mask); err != nil {
		return nil, err
	}
	if o.Iterations < o.Steps || o.Steps < 0 || !(o.Rho > 0) || math.IsInf(o.Rho, 0) {
		return nil, fmt.Errorf("ADMM of %d iterations, %d of them with a growing mask, and rho %g: want no more steps than iterations, and a positive rho", o.Iterations, o.Steps, o.Rho)
	}
	sc := newScaling(a, w)
	b, err := sc.inverse(ctx, p, a, o.Rho)
	if err != nil {
		return nil, err
	}
	s := &admm{
		selector: selector{choice: c}, pool: p, b: b, rho: float32(o.Rho), mask: o.Mask,
		target: new32(w.Rows, w.Cols), v: new32(w.Rows, w.Cols), x: new32(w.Rows, w.Cols),
	}
	if s.mask == nil {
		s.mask = layer.NewMask(w.Rows, w.Cols)
	}
	if err := sc.in(ctx, p, s.target, w); err != nil {
		return nil, err
	}
	copy(s.v.Data, s.target.Data)
	for it := range o.Iterations + 1 {
		if o.Mask == nil && (it < o.Steps || it == 0) {
			share := 1.0
			if o.Steps > 0 {
				left := 1 - float64(it+1)/float64(o.Steps)
				share -= left * left * left
			}
			if err := s.choose(ctx, p, s.v, s.mask, 0, s.losing(share)); err != nil {
				return nil, err
			}
		}
		if it < o.Iterations {
			if err := s.step(ctx); err != nil {
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

// losing returns how many units choose is to take when the given share of the
// final sparsity is reached.
func (s *admm) losing(share float64) int {
	rows, cols := s.units(s.v.Rows, s.v.Cols)
	final := s.count(rows * cols)
	switch {
	case s.of > 0:
		final = rows * s.losses(cols)
	case s.perRow:
		final = s.count(cols)
	}
	return int(share * float64(final))
}

// step updates V with the mask as it is.
func (s *admm) step(ctx context.Context) error {
	cols := s.v.Cols
	chunk := rowChunk(cols)
	err := s.pool.For(ctx, (s.v.Rows+chunk-1)/chunk, func(t int) error {
		for r := t * chunk; r < min((t+1)*chunk, s.v.Rows); r++ {
			v, x, target := s.v.Data[r*cols:][:cols], s.x.Data[r*cols:][:cols], s.target.Data[r*cols:][:cols]
			for i, word := range s.mask.Row(r) {
				reflect(v[i*64:], x[i*64:], target[i*64:], ^word)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return blas.GemmPacked(ctx, s.pool, blas.NoTrans, s.rho, s.x, s.b, 1, s.v, nil)
}

// reflect writes ±V − W̃ to x and W̃ + U to v, for up to 64 weights of which
// those marked are pruned. It does not branch on the mask, which is as good as
// random.
func reflect(v, x, target []float32, pruned uint64) {
	n := min(len(v), 64)
	v, x, target = v[:n], x[:n], target[:n]
	for i, w := range target {
		bits, goes := math.Float32bits(v[i]), uint32(pruned>>i)&1
		x[i] = math.Float32frombits(bits^goes<<31) - w
		v[i] = math.Float32frombits(bits&-goes) + w
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
		for j, v := range row64(w, r) {
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
	return forRows(ctx, p, a.Rows, rowChunk(a.Cols), func(i int) {
		row := row64(dst, i)
		for j, v := range row64(a, i) {
			row[j] = v / s.norm[i] / s.norm[j]
		}
		row[i] = 1 + rho
	})
}

// inverse returns (A + ρI)⁻¹ for products in float32.
func (s *scaling) inverse(ctx context.Context, p *pool.Pool, a blas64.General, rho float64) (*blas.PackedB, error) {
	l := linalg.NewGeneral(a.Rows, a.Rows)
	if err := s.matrix(ctx, p, l, a, rho); err != nil {
		return nil, err
	}
	if err := linalg.Cholesky(ctx, p, l); err != nil {
		return nil, err
	}
	inverse, err := linalg.Inverse(ctx, p, l)
	if err != nil {
		return nil, err
	}
	return packed(ctx, p, inverse)
}

// packed returns a matrix in float32, packed for products.
func packed(ctx context.Context, p *pool.Pool, a blas64.General) (*blas.PackedB, error) {
	b := new32(a.Rows, a.Cols)
	err := forRows(ctx, p, a.Rows, rowChunk(a.Cols), func(i int) {
		row := row32(b, i)
		for j, v := range row64(a, i) {
			row[j] = float32(v)
		}
	})
	if err != nil {
		return nil, err
	}
	return blas.PackB(blas.NoTrans, b)
}

// in writes scaled weights to dst.
func (s *scaling) in(ctx context.Context, p *pool.Pool, dst blas32.General, w blas64.General) error {
	return forRows(ctx, p, w.Rows, rowChunk(w.Cols), func(r int) {
		row := row32(dst, r)
		for j, v := range row64(w, r) {
			row[j] = float32(v * s.norm[j] / s.unit)
		}
	})
}

// out writes the survivors of v to w as they were before scaling.
func (s *scaling) out(ctx context.Context, p *pool.Pool, w blas64.General, v blas32.General, mask *layer.Mask) error {
	return forRows(ctx, p, w.Rows, rowChunk(w.Cols), func(r int) {
		row := row64(w, r)
		for j, x := range row32(v, r) {
			row[j] = 0
			if mask.At(r, j) {
				row[j] = float64(x) * s.unit / s.norm[j]
			}
		}
	})
}

// forRows calls do for each of n rows, in tasks of chunk.
func forRows(ctx context.Context, p *pool.Pool, n, chunk int, do func(r int)) error {
	return p.For(ctx, (n+chunk-1)/chunk, func(t int) error {
		for r := t * chunk; r < min((t+1)*chunk, n); r++ {
			do(r)
		}
		return nil
	})
}

func new32(rows, cols int) blas32.General {
	return blas32.General{Rows: rows, Cols: cols, Stride: cols, Data: make([]float32, rows*cols)}
}

func row32(m blas32.General, r int) []float32 { return m.Data[r*m.Stride:][:m.Cols] }

func row64(m blas64.General, r int) []float64 { return m.Data[r*m.Stride:][:m.Cols] }

// checkSystem reports an A, weights and mask that do not belong together, or that
// are not finite.
func checkSystem(a, w blas64.General, mask *layer.Mask) error {
	switch {
	case w.Rows < 1 || w.Cols < 1 || a.Rows != w.Cols || a.Cols != w.Cols:
		return fmt.Errorf("prune: a weight of %d×%d needs a Gram of as many inputs, not %d×%d", w.Rows, w.Cols, a.Rows, a.Cols)
	case w.Stride < w.Cols || len(w.Data) < (w.Rows-1)*w.Stride+w.Cols || a.Stride < a.Cols || len(a.Data) < (a.Rows-1)*a.Stride+a.Cols:
		return fmt.Errorf("prune: the numbers given do not fill a weight of %d×%d and its Gram", w.Rows, w.Cols)
	case mask != nil && (mask.Rows != w.Rows || mask.Cols != w.Cols):
		return fmt.Errorf("prune: a mask of %d×%d for a weight of %d×%d", mask.Rows, mask.Cols, w.Rows, w.Cols)
	}
	for i := range a.Rows {
		if d := a.Data[i*a.Stride+i]; !(d > 0) || math.IsInf(d, 0) {
			return &linalg.PivotError{Pivot: i, Value: d}
		}
	}
	for r := range w.Rows {
		for j, v := range row64(w, r) {
			if v-v != 0 {
				return &linalg.NotFiniteError{Row: r, Col: j, Value: v}
			}
		}
	}
	return nil
}
