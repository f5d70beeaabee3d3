package lowrank

import (
	"context"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// Result says what a low-rank term has done for a layer. Errors are
// tr(R·S·Rᵀ), R being what of the target is missing, in the S that was given:
// found from the factors themselves, whichever way those were found.
type Result struct {
	Rank    int     // that of the term
	Before  float64 // without the term
	After   float64 // with its factors in float64
	Rounded float64 // with its factors as they are stored

	// Randomized says that the factors came from an iteration with a random start,
	// and may miss the optimum by a little. The errors are exact all the same.
	Randomized bool

	Bytes        int64 // of the stored factors, by Options.ComponentBytes
	Alternations int   // how often the weight was compressed again, to effect
}

// Compensate finds the low-rank term of a layer's error W̃ − Ŵ. Shapes: target W̃
// and current Ŵ out×in, S in×in, symmetric positive semidefinite and maybe
// singular, both of its triangles read. Nothing is overwritten. The factors'
// bytes depend on the input and the options alone, not on the pool, which may be
// nil. The rank is o.Rank, or the smaller side of the weight where that is less.
//
// Errors: *OptionError, *layer.InputError for shapes that do not fit, for what is not
// finite, for an S that is seen not to be semidefinite and for factors beyond
// their type, and the context's error soon after it is cancelled.
//
// Cost in multiply-adds: out·in² for ΔW·S, and then the least of about
// out²·(in + 8·out), in²·(out + 8·in) and 15·r·out·in, the last only where the
// others would take more than half a second (Result.Randomized). Memory, in
// float64: two out×in matrices, a third for ScaledSVD, beside 4·min(out, in)²
// numbers, or 10·r·max(out, in).
func Compensate(ctx context.Context, p *pool.Pool, name string, target, current, s blas64.General, o Options) (*layer.LowRank, Result, error) {
	o = o.WithDefaults()
	if err := o.checkLayer(); err != nil {
		return nil, Result{}, err
	}
	if o.Alternations != 0 {
		return nil, Result{}, &OptionError{"Alternations", o.Alternations, "0 where the weight is not compressed again"}
	}
	return compensate(ctx, p, name, target, current, s, o)
}

func compensate(ctx context.Context, p *pool.Pool, name string, target, current, s blas64.General, o Options) (*layer.LowRank, Result, error) {
	w, err := newProblem(ctx, p, name, target, current, s, o)
	if err != nil {
		return nil, Result{}, err
	}
	out, in := target.Rows, target.Cols
	r := min(o.Rank, out, in)
	by := chooseRoute(out, in, r)
	res := Result{Rank: r, Before: w.energy, Randomized: by == random, Bytes: int64(r) * o.ComponentBytes(out, in)}
	bt, a, err := w.factors(ctx, by, r)
	if err != nil {
		return nil, Result{}, err
	}
	if res.After, err = w.error(ctx, bt, a); err != nil {
		return nil, Result{}, err
	}
	balance(bt, a)
	term, rounded, err := w.round(ctx, bt, a)
	res.Rounded = rounded
	return term, res, err
}

// factors returns Uᵀ (r×out) and A = Uᵀ·ΔW.
func (w *problem) factors(ctx context.Context, by route, r int) (bt, a blas64.General, err error) {
	u, err := w.leading(ctx, by, r)
	if err != nil {
		return bt, a, err
	}
	bt = linalg.NewGeneral(r, u.Rows)
	for i := range u.Rows {
		for j, v := range linalg.Row(u, i) {
			bt.Data[j*bt.Stride+i] = v
		}
	}
	a, err = w.mul(ctx, blas.NoTrans, blas.NoTrans, bt, w.dw)
	return bt, a, err
}

// Requantize compresses a layer's weight for another target, of the same shape,
// and returns what the compressed one stands for. It must not keep or change the
// target.
type Requantize func(ctx context.Context, target blas64.General) (blas64.General, error)

// Alternate is Compensate with up to o.Alternations further turns: the weight is
// compressed again for W̃ − BA, with the factors as they are stored, and a new
// term is found for what that leaves. It ends with the first turn that does not
// lower the error, and undoes that one. The term belongs to the weight returned,
// which is current where no turn helped. Result.Before is current's error.
func Alternate(ctx context.Context, p *pool.Pool, name string, target, current, s blas64.General, requantize Requantize, o Options) (blas64.General, *layer.LowRank, Result, error) {
	o = o.WithDefaults()
	if err := o.checkLayer(); err != nil {
		return current, nil, Result{}, err
	}
	term, res, err := compensate(ctx, p, name, target, current, s, o)
	if err != nil {
		return current, nil, Result{}, err
	}
	for range o.Alternations {
		rest, err := without(ctx, p, target, term)
		if err != nil {
			return current, nil, Result{}, err
		}
		next, err := requantize(ctx, rest)
		if err != nil {
			return current, nil, Result{}, err
		}
		newTerm, newRes, err := compensate(ctx, p, name, target, next, s, o)
		if err != nil {
			return current, nil, Result{}, err
		}
		if newRes.Rounded >= res.Rounded {
			break
		}
		newRes.Before, newRes.Alternations = res.Before, res.Alternations+1
		current, term, res = next, newTerm, newRes
	}
	return current, term, res, nil
}

// without returns the target less the term.
func without(ctx context.Context, p *pool.Pool, target blas64.General, term *layer.LowRank) (blas64.General, error) {
	rest := linalg.Clone(target)
	return rest, blas.Gemm64(ctx, p, blas.Trans, blas.NoTrans, -1, values(&term.B), values(&term.A), 1, rest)
}
