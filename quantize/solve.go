package quantize

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// Factors are what the methods need of one value's H, made when first asked for.
// Layers that read the same value share them. They are safe for concurrent use.
type Factors struct{ *gram.Factors }

// NewFactors returns the factors of moments, which may be nil, none made yet.
func NewFactors(m *layer.Moments) Factors { return Factors{gram.NewFactors(m)} }

// Prepare makes what Solve with these options needs, on all of p's workers.
// Without it the first Solve does so, and Solves beside it wait.
//
// Cost: n³/3 multiply-adds for n inputs, and n² float64s that are kept.
func (f Factors) Prepare(ctx context.Context, p *pool.Pool, o Options) error {
	_, err := f.Grams(ctx, p, o.WithDefaults().kind())
	return err
}

// kind is the factorization that the options work with.
func (o Options) kind() gram.Kind {
	return gram.Kind{Damping: or(o.Damping, DefaultDamping), Ordered: o.ActOrder || o.Method == AdaRound || o.Method == Best, Centred: o.Centre}
}

// Solve quantizes one layer; layers that read the same value are better solved
// by Factors.Solve, which shares the work on H.
func Solve(ctx context.Context, p *pool.Pool, prob *layer.Problem, o Options) (*layer.Solution, error) {
	return NewFactors(prob.Moments).Solve(ctx, p, prob, o)
}

// Solve quantizes one layer, whose moments must be those of the factors. The
// problem is read only; the solution's bytes depend on the problem and the
// options alone, not on the pool, which may be nil. Where the layer cannot have
// what was asked for (a group size that does not fit), the solution says so in
// Fallbacks.
//
// Errors: *OptionError, *layer.InputError, ErrNoMoments (wrapped), the context's
// error soon after it is cancelled, and *linalg.PivotError (wrapped) when H is
// not positive definite even with 10⁶ times the damping asked for.
//
// Cost, for an out×in weight: nearest out·in·24 roundings for the range search;
// with moments n³/3 multiply-adds for the factor of H (see Prepare) and out·in²
// to measure two errors; alignment 2·out·in² more, GPTQ and Qronos out·in²/2; GPFQ
// and SPFQ up to 2·out·in² (see followPath); AdaRound
// out·in² for each step, and its search a few thousand times out·in; over a sample of
// m rows 2·out·in·min(m, 512) for each step, and up to 8·out·in·m. Memory: two
// out×in matrices of float64, and some rows for each worker.
func (f Factors) Solve(ctx context.Context, p *pool.Pool, prob *layer.Problem, o Options) (*layer.Solution, error) {
	if p == nil {
		p = pool.New(1)
	}
	s, err := f.prepare(ctx, p, prob, o)
	if err != nil {
		return nil, err
	}
	if err := s.round(ctx); err != nil {
		return nil, fmt.Errorf("layer %s: %w", prob.Layer, err)
	}
	return s.finish(ctx)
}

// prepare checks the input and returns a solver at the point where methods begin.
func (f Factors) prepare(ctx context.Context, p *pool.Pool, prob *layer.Problem, o Options) (*solver, error) {
	o = o.WithDefaults()
	if err := o.Check(); err != nil {
		return nil, err
	}
	if err := checkProblem(prob, o); err != nil {
		return nil, err
	}
	if prob.Moments != f.Moments() {
		return nil, prob.Bad("moments", -1, "they are not those of the factors")
	}
	t, err := f.Target(ctx, p, prob, o.kind(), o.Residual)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", prob.Layer, err)
	}
	s := newSolver(t, o)
	s.noteDamping()
	return s, nil
}

// finish measures a solution whose codes are there.
func (s *solver) finish(ctx context.Context) (*layer.Solution, error) {
	if err := s.measure(ctx); err != nil {
		return nil, fmt.Errorf("layer %s: %w", s.Problem.Layer, err)
	}
	if s.o.BiasCorrection {
		s.solution.Bias = s.Bias(s.values)
	}
	return s.solution, s.checkFinite()
}

// solver is one problem on its way to a solution.
type solver struct {
	*gram.Target
	o    Options // with the granularity that the layer can have
	grid ranger

	target blas64.General // what is quantized: W, W̃ when aligned, or what steps before have made of it
	aim    blas64.General // what the weights should be: W, or W̃ when aligned
	mask   *layer.Mask    // weights that it lacks stay 0; nil for all
	soft   []float32      // AdaRound's relaxed weights, like W; else nil

	// damped is the damped error of each row, over H's unit, where the method has
	// found it in passing; else nil.
	damped []float64

	solution *layer.Solution
}

func newSolver(t *gram.Target, o Options) *solver {
	prob := t.Problem
	w := prob.Weight
	s := &solver{Target: t, o: o, target: t.Anchor}
	if !o.Align && t.Crossed() {
		s.target = t.Original()
	}
	if prob.Aim.Data != nil {
		s.target = prob.Aim
	}
	s.aim = s.target
	if start := prob.Start; start != nil {
		s.target, s.mask = linalg.NewGeneral(w.Rows, w.Cols), start.Mask
		for r := range w.Rows {
			row := linalg.Row(s.target, r)
			linalg.Widen(row, start.Values[r*w.Cols:][:w.Cols])
			for c := range row {
				if prob.Aim.Data != nil && !s.pruned(r, c) {
					row[c] = linalg.Row(prob.Aim, r)[c]
				}
			}
		}
	}
	s.solution = &layer.Solution{
		Layer: prob.Layer, Method: string(o.Method), Rows: w.Rows, Cols: w.Cols,
		Codes: make([]int8, w.Rows*w.Cols), Mask: s.mask,
	}
	s.o, s.solution.Fallbacks = o.Fit(w.Cols)
	s.grid = newRanger(s.o, prob)
	return s
}

// values writes a row of the solution's weights.
func (s *solver) values(r int, dst []float32) {
	s.solution.Grid.Dequantize(dst, s.solution.Codes[r*len(dst):][:len(dst)], r)
}

func (s *solver) fallBack(asked, got, reason string) {
	s.solution.Fallbacks = append(s.solution.Fallbacks, layer.Fallback{Asked: asked, Got: got, Reason: reason})
}

// noteDamping records the damping and what it changed, where the method works
// with it: measuring alone does not depend on it.
func (s *solver) noteDamping() {
	if !s.o.usesDamping() {
		return
	}
	dead, damping := 0, s.o.Damping
	for _, g := range s.Grams {
		if g.Dead {
			dead++
		}
		damping = max(damping, g.Damping)
	}
	if dead > 0 && !s.o.Method.dataFree() && !s.o.followsPath() {
		s.fallBack(string(s.o.Method), string(Nearest), fmt.Sprintf("no calibration row uses any input of %d of %d groups", dead, len(s.Grams)))
	}
	if damping > s.o.Damping {
		s.fallBack(fmt.Sprintf("damping %g", s.o.Damping), fmt.Sprintf("damping %g", damping), "H + λI was not positive definite with less")
	}
	s.solution.Errors.Damping = damping
}

// round finds the grid and the codes.
func (s *solver) round(ctx context.Context) error {
	grid := &s.solution.Grid
	if s.o.gridOnTheWay() {
		*grid = s.grid.emptyGrid(s.target.Rows, s.target.Cols, s.o.Granularity, s.o.GroupSize)
		return s.gptq(ctx)
	}
	if err := s.findGrid(ctx); err != nil {
		return err
	}
	switch s.o.Method {
	case GPTQ, Qronos:
		return s.gptq(ctx)
	case AdaRound:
		return s.adaRound(ctx)
	case Best:
		return s.best(ctx)
	case GPFQ, SPFQ:
		return s.followPath(ctx)
	case HQQ:
		return s.hqq(ctx)
	default:
		return s.nearest(ctx)
	}
}

// findGrid finds the grid of the target as it is.
func (s *solver) findGrid(ctx context.Context) (err error) {
	grid := &s.solution.Grid
	switch {
	case s.o.Alphabet != "":
		*grid, err = s.alphabetGrid(ctx, s.target)
	case s.o.Range == AWQ:
		*grid, err = s.clipGrid(ctx)
	default:
		*grid, err = s.grid.newGrid(ctx, s.Pool, s.target, s.o.Granularity, s.o.GroupSize)
	}
	return err
}

// nearest writes the nearest code of each weight.
func (s *solver) nearest(ctx context.Context) error {
	grid, n := &s.solution.Grid, s.target.Cols
	lo, hi := grid.Range()
	return s.Pool.For(ctx, s.target.Rows, func(r int) error {
		for c, v := range linalg.Row(s.target, r) {
			at := stepAt(grid, grid.Index(r, c, n))
			s.solution.Codes[r*n+c] = int8(at.code(v, lo, hi))
			if s.pruned(r, c) {
				s.solution.Codes[r*n+c] = int8(at.zero)
			}
		}
		return nil
	})
}

// pruned reports whether a weight must be 0.
func (s *solver) pruned(r, c int) bool { return s.mask != nil && !s.mask.At(r, c) }

// checkProblem refuses what would make a solver fail or write a NaN.
func checkProblem(prob *layer.Problem, o Options) error {
	if err := prob.CheckValues(o.BiasCorrection); err != nil {
		return err
	}
	switch prob.ScaleType {
	case dtype.F64, dtype.F32, dtype.F16, dtype.BF16:
	default:
		if fitted, _ := o.Fit(prob.Weight.Cols); prob.ScaleType != fitted.Format.ScaleType(dtype.Invalid) || prob.ScaleType == dtype.Invalid {
			return prob.Bad("scale type", -1, "%s, want F32, F16, BF16 or F64", prob.ScaleType)
		}
	}
	if prob.Moments != nil && o.SampleRows() > 0 && prob.Moments.Sample == nil {
		return prob.Bad("moments", -1, "they hold no sample of rows, which adaround with sample learns from")
	}
	if start := prob.Start; start != nil {
		if size := prob.Weight.Rows * prob.Weight.Cols; len(start.Values) != size || start.Mask != nil && (start.Mask.Rows != prob.Weight.Rows || start.Mask.Cols != prob.Weight.Cols) {
			return prob.Bad("start", -1, "%d values for a %d×%d weight", len(start.Values), prob.Weight.Rows, prob.Weight.Cols)
		}
		if start.Mask != nil && o.Alphabet == AlphabetBinary {
			return &OptionError{"Alphabet", quote(o.Alphabet), "another: the binary one has no 0 for the weights that were pruned"}
		}
	}
	if prob.Moments == nil && o.NeedsMoments() {
		if o.Range == AWQ {
			return fmt.Errorf("layer %s: %s with range awq: %w", prob.Layer, o.Method, ErrNoMoments)
		}
		return fmt.Errorf("layer %s: %s: %w", prob.Layer, o.Method, ErrNoMoments)
	}
	return nil
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

func rowOf32(a blas32.General, i int) []float32 { return a.Data[i*a.Stride:][:a.Cols] }
