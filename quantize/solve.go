package quantize

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// Solve quantizes one layer. The problem is read only; the solution's bytes
// depend on the problem and the options alone, not on the pool, which may be
// nil. Where the layer cannot have what was asked for (a group size that does
// not fit), the solution says so in Fallbacks.
//
// Errors: *OptionError, *InputError, ErrNoMoments (wrapped), the context's
// error soon after it is cancelled, and *linalg.PivotError (wrapped) when H is
// not positive definite even with 10⁶ times the damping asked for.
//
// Cost, for an out×in weight: nearest out·in·80 roundings for the range search;
// GPTQ adds about 1.5·in³ + out·in² multiply-adds; AdaRound adds out·in² for
// each step, and its search a few thousand times out·in.
func Solve(ctx context.Context, p *pool.Pool, prob *layer.Problem, o Options) (*layer.Solution, error) {
	o = o.WithDefaults()
	if err := o.Check(); err != nil {
		return nil, err
	}
	if err := checkProblem(prob, o); err != nil {
		return nil, err
	}
	if p == nil {
		p = pool.New(1)
	}
	s := newSolver(p, prob, o)
	for _, stage := range []func(context.Context) error{s.factor, s.align, s.round, s.measure} {
		if err := stage(ctx); err != nil {
			return nil, fmt.Errorf("layer %s: %w", prob.Layer, err)
		}
	}
	if o.BiasCorrection {
		s.correctBias()
	}
	return s.solution, s.checkFinite()
}

// solver is one problem on its way to a solution.
type solver struct {
	pool *pool.Pool
	prob *layer.Problem
	o    Options // with the granularity that the layer can have
	grid ranger

	grams  []gram         // one per group of a convolution; nil when not used
	weight blas64.General // W
	target blas64.General // what is quantized: W, or W̃ when aligned
	soft   []float32      // AdaRound's relaxed weights, like W; else nil

	solution *layer.Solution
}

func newSolver(p *pool.Pool, prob *layer.Problem, o Options) *solver {
	w := prob.Weight
	s := &solver{pool: p, prob: prob, o: o, weight: linalg.NewGeneral(w.Rows, w.Cols)}
	for r := range w.Rows {
		dst := rowOf64(s.weight, r)
		for c, v := range rowOf32(w, r) {
			dst[c] = float64(v)
		}
	}
	s.target = s.weight
	s.solution = &layer.Solution{
		Layer: prob.Layer, Method: string(o.Method), Rows: w.Rows, Cols: w.Cols,
		Codes: make([]int8, w.Rows*w.Cols),
	}
	s.grid = ranger{o.Bits, o.Symmetric, o.Range, prob.ScaleType}
	s.o, s.solution.Fallbacks = o.Fit(w.Cols)
	return s
}

func (s *solver) fallBack(asked, got, reason string) {
	s.solution.Fallbacks = append(s.solution.Fallbacks, layer.Fallback{Asked: asked, Got: got, Reason: reason})
}

// gram is what the methods need of one group's H. Everything is divided by
// unit, a power of two near the mean of H's diagonal, so that neither the
// factorizations nor float32 copies meet extreme numbers.
type gram struct {
	unit    float64
	lambda  float64        // λ/unit
	damping float64        // λ relative to the mean of H's diagonal
	h       blas64.General // (H + λI)/unit
	lower   blas64.General // its Cholesky factor
	dead    bool           // H is zero: no input was ever used, and h is I

	// For GPTQ's pass: the input at each of its places, nil for 0, 1, …, and U
	// of the inverse UᵀU of h in that order. Not for Nearest.
	order []int
	upper blas64.General
}

// factor damps and factors H of each group, where the method works on it.
func (s *solver) factor(ctx context.Context) error {
	if !s.o.usesDamping() {
		return nil
	}
	m := s.prob.Moments
	s.grams = make([]gram, m.Groups)
	err := s.pool.For(ctx, m.Groups, func(g int) (err error) {
		s.grams[g], err = s.newGram(ctx, m.H[g])
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("H of group %d: %w", g, err)
		}
		return err
	})
	if err != nil {
		return err
	}
	dead, damping := 0, s.o.Damping
	for _, g := range s.grams {
		if g.dead {
			dead++
		}
		damping = max(damping, g.damping)
	}
	if dead > 0 && s.o.Method != Nearest {
		s.fallBack(string(s.o.Method), string(Nearest), fmt.Sprintf("no calibration row uses any input of %d of %d groups", dead, m.Groups))
	}
	if damping > s.o.Damping {
		s.fallBack(fmt.Sprintf("damping %g", s.o.Damping), fmt.Sprintf("damping %g", damping), "H + λI was not positive definite with less")
	}
	s.solution.Errors.Damping = damping
	return nil
}

func (s *solver) newGram(ctx context.Context, h blas64.General) (gram, error) {
	n := h.Rows
	mean := linalg.MeanDiagonal(h)
	if mean == 0 {
		one := linalg.NewGeneral(n, n)
		for i := range n {
			one.Data[i*n+i] = 1
		}
		return gram{unit: 1, lambda: 1, h: one, lower: one, upper: one, dead: true}, nil
	}
	_, exp := math.Frexp(mean)
	exp = min(max(exp, -1000), 1000) // keep unit and its inverse finite and normal
	g := gram{unit: math.Ldexp(1, exp)}
	scaled := linalg.Clone(h)
	for i := range scaled.Data {
		scaled.Data[i] /= g.unit
	}
	if s.o.ActOrder || s.o.Method == AdaRound {
		g.order = descending(h)
	}
	lambda, err := linalg.Damped(scaled, s.o.Damping, func(a blas64.General) error {
		g.h = linalg.Clone(a)
		if s.o.Method != Nearest {
			g.upper = reordered(a, g.order)
			if err := linalg.InverseUpper(ctx, s.pool, g.upper); err != nil {
				return err
			}
		}
		g.lower = a
		return linalg.Cholesky(ctx, s.pool, g.lower)
	})
	g.lambda = lambda
	// λ was escalated by powers of ten; exact ones leave the ratio free of rounding.
	tens := math.Round(math.Log10(lambda / (s.o.Damping * linalg.MeanDiagonal(scaled))))
	g.damping = s.o.Damping * math.Pow10(int(tens))
	return g, err
}

// align replaces the target by W̃ = W(G+λI)ᵀ(H+λI)⁻¹. Where both streams are
// the same that is W itself.
func (s *solver) align(ctx context.Context) error {
	m := s.prob.Moments
	if !s.o.Align || m.G == nil {
		return nil
	}
	s.target = linalg.Clone(s.weight)
	return s.pool.For(ctx, m.Groups, func(g int) error {
		gram := &s.grams[g]
		if gram.dead {
			return nil // G is zero as well: λI is all there is, and gives W
		}
		from, to := s.prob.GroupRows(g)
		w, t := rowsOf(s.weight, from, to), rowsOf(s.target, from, to)
		if err := blas.Gemm64(ctx, s.pool, blas.NoTrans, blas.Trans, 1/gram.unit, w, m.G[g], gram.lambda, t); err != nil {
			return err
		}
		return linalg.SolveRows(ctx, s.pool, gram.lower, t)
	})
}

// round finds the grid and the codes.
func (s *solver) round(ctx context.Context) (err error) {
	grid := &s.solution.Grid
	if s.o.Method == GPTQ && s.o.Granularity == layer.PerGroup && !s.o.ActOrder {
		*grid = s.grid.emptyGrid(s.target.Rows, s.target.Cols, s.o.Granularity, s.o.GroupSize)
		return s.gptq(ctx)
	}
	*grid, err = s.grid.newGrid(ctx, s.pool, s.target, s.o.Granularity, s.o.GroupSize)
	if err != nil {
		return err
	}
	switch s.o.Method {
	case GPTQ:
		return s.gptq(ctx)
	case AdaRound:
		return s.adaRound(ctx)
	default:
		return nearest(ctx, s.pool, s.target, grid, s.solution.Codes)
	}
}

// nearest writes the nearest code of each weight.
func nearest(ctx context.Context, p *pool.Pool, w blas64.General, grid *layer.Grid, codes []int8) error {
	lo, hi := grid.Range()
	return p.For(ctx, w.Rows, func(r int) error {
		for c, v := range rowOf64(w, r) {
			codes[r*w.Cols+c] = int8(stepAt(grid, grid.Index(r, c, w.Cols)).code(v, lo, hi))
		}
		return nil
	})
}

// rowBlock is one task of a solver: rows of one group of a convolution.
type rowBlock struct{ group, from, to int }

// rowBlocks cuts the weight's rows into blocks of at most size rows, none of
// which crosses a group's border.
func (s *solver) rowBlocks(size int) []rowBlock {
	var blocks []rowBlock
	for g := range s.prob.Groups {
		from, to := s.prob.GroupRows(g)
		for r := from; r < to; r += size {
			blocks = append(blocks, rowBlock{g, r, min(r+size, to)})
		}
	}
	return blocks
}

func rowsOf(a blas64.General, from, to int) blas64.General {
	return blas64.General{Rows: to - from, Cols: a.Cols, Stride: a.Stride, Data: a.Data[from*a.Stride:]}
}
