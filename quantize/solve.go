package quantize

import (
	"context"
	"fmt"
	"math"
	"sync"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

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
// Errors: *OptionError, *InputError, ErrNoMoments (wrapped), the context's
// error soon after it is cancelled, and *linalg.PivotError (wrapped) when H is
// not positive definite even with 10⁶ times the damping asked for.
//
// Cost, for an out×in weight: nearest out·in·24 roundings for the range search;
// with moments n³/3 multiply-adds for the factor of H (see Prepare) and out·in²
// to measure two errors; alignment 2·out·in² more, GPTQ and Qronos out·in²/2; GPFQ
// and SPFQ up to 2·out·in² (see followPath); AdaRound
// out·in² for each step, and its search a few thousand times out·in. Memory: two
// out×in matrices of float64, and some rows for each worker.
func (f *Factors) Solve(ctx context.Context, p *pool.Pool, prob *layer.Problem, o Options) (*layer.Solution, error) {
	o = o.WithDefaults()
	if err := o.Check(); err != nil {
		return nil, err
	}
	if err := checkProblem(prob, o); err != nil {
		return nil, err
	}
	if prob.Moments != f.moments {
		return nil, inputError(prob, "moments", -1, "they are not those of the factors")
	}
	if p == nil {
		p = pool.New(1)
	}
	s := newSolver(p, prob, o)
	var err error
	if s.grams, err = f.grams(ctx, p, o); err != nil {
		return nil, fmt.Errorf("layer %s: %w", prob.Layer, err)
	}
	s.noteDamping()
	for _, stage := range []func(context.Context) error{s.align, s.round, s.measure} {
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

	grams  []gram         // one per group of a convolution; nil without moments
	target blas64.General // what is quantized: W, or W̃ when aligned
	soft   []float32      // AdaRound's relaxed weights, like W; else nil

	residual *layer.Residual // the layer's, where it is asked for; else nil

	// anchor is W̃, the weights of least damped error: W where the streams are
	// the same. floor is what no weights can take back of each row's error; nil
	// where the streams are the same.
	anchor blas64.General
	floor  []float64

	// damped is the damped error of each row, over H's unit, where the method has
	// found it in passing; else nil.
	damped []float64

	// scratch are rows that tasks have worked on. Not a sync.Pool, which would
	// keep the whole solver from the collector for a while.
	scratch [][]float64
	mu      sync.Mutex

	solution *layer.Solution
}

// borrow returns a rows×cols matrix of any content, and how to give it back.
func (s *solver) borrow(rows, cols int) (m blas64.General, giveBack func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var data []float64
	if last := len(s.scratch) - 1; last >= 0 {
		data, s.scratch = s.scratch[last], s.scratch[:last]
	}
	if cap(data) < rows*cols {
		data = make([]float64, rows*cols)
	}
	return blas64.General{Rows: rows, Cols: cols, Stride: cols, Data: data[:rows*cols]}, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.scratch = append(s.scratch, data)
	}
}

func newSolver(p *pool.Pool, prob *layer.Problem, o Options) *solver {
	w := prob.Weight
	s := &solver{pool: p, prob: prob, o: o}
	s.solution = &layer.Solution{
		Layer: prob.Layer, Method: string(o.Method), Rows: w.Rows, Cols: w.Cols,
		Codes: make([]int8, w.Rows*w.Cols),
	}

	s.o, s.solution.Fallbacks = o.Fit(w.Cols)
	s.grid = newRanger(s.o, prob)
	return s
}

func widen(dst []float64, src []float32) {
	for i, v := range src {
		dst[i] = float64(v)
	}
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
	for _, g := range s.grams {
		if g.dead {
			dead++
		}
		damping = max(damping, g.damping)
	}
	if dead > 0 && !s.o.Method.dataFree() && !s.o.followsPath() {
		s.fallBack(string(s.o.Method), string(Nearest), fmt.Sprintf("no calibration row uses any input of %d of %d groups", dead, len(s.grams)))
	}
	if damping > s.o.Damping {
		s.fallBack(fmt.Sprintf("damping %g", s.o.Damping), fmt.Sprintf("damping %g", damping), "H + λI was not positive definite with less")
	}
	s.solution.Errors.Damping = damping
}

// align finds W̃ = W(G+λI)ᵀ(H+λI)⁻¹, or (P+λW)(H+λI)⁻¹ with P = Y*ᵀX̃ of another
// target Y*, and makes the target it, if asked to, or W. Where both streams are
// the same it is W itself.
func (s *solver) align(ctx context.Context) error {
	w, m := s.prob.Weight, s.prob.Moments
	if m != nil {
		s.residual = m.Residual[s.prob.Layer]
	}
	if !s.o.Residual {
		s.residual = nil
	}
	crossed := m != nil && (m.G != nil || s.residual != nil)
	if !crossed || !s.o.Align {
		s.target = linalg.NewGeneral(w.Rows, w.Cols)
		for r := range w.Rows {
			widen(rowOf64(s.target, r), rowOf32(w, r))
		}
		s.anchor = s.target
	}
	if !crossed {
		return nil
	}
	s.anchor, s.floor = linalg.NewGeneral(w.Rows, w.Cols), make([]float64, w.Rows)
	for _, b := range s.rowBlocks(alignRows) {
		if err := s.alignBlock(ctx, b); err != nil {
			return err
		}
	}
	if s.o.Align {
		s.target = s.anchor
	}
	return nil
}

// alignRows is how many rows of W are in float64 at once.
const alignRows = 1024

func (s *solver) alignBlock(ctx context.Context, b rowBlock) error {
	gram, m, n := &s.grams[b.group], s.prob.Moments, s.prob.Weight.Cols
	w, a := linalg.NewGeneral(b.to-b.from, s.prob.Weight.Cols), rowsOf(s.anchor, b.from, b.to)
	for r := range w.Rows {
		widen(rowOf64(w, r), rowOf32(s.prob.Weight, b.from+r))
		copy(rowOf64(a, r), rowOf64(w, r))
	}
	if err := blas.Gemm64(ctx, s.pool, blas.NoTrans, blas.Trans, 1/gram.unit, w, m.Cross(b.group), gram.lambda, a); err != nil {
		return err
	}
	floor := s.floor[b.from:b.to]
	energy := make([]float64, len(floor))
	for r := range energy {
		energy[r] = s.energy()[b.from+r]
		if s.residual != nil {
			first, _ := s.prob.GroupRows(b.group)
			vec.Axpy64(1/gram.unit, rowOf64(s.residual.Cross[b.group], b.from+r-first), rowOf64(a, r))
		}
		if gram.sum != nil {
			mean := s.targetSum(b.from+r, rowOf64(w, r)) / math.Sqrt(float64(m.Rows))
			vec.Axpy64(-mean/gram.unit, gram.sum[:n], rowOf64(a, r))
			energy[r] -= mean * mean
		}
	}
	if err := gram.solve(ctx, s.pool, a, floor); err != nil {
		return err
	}
	for r, reached := range floor {
		reached -= gram.lambda * vec.Dot64(rowOf64(w, r), rowOf64(w, r))
		floor[r] = energy[r] - gram.unit*reached
	}
	return nil
}

// energy returns ‖y*‖² of each output.
func (s *solver) energy() []float64 {
	if s.residual != nil {
		return s.residual.Energy
	}
	return s.prob.Energy()
}

// targetSum returns Σy* of output r, whose weights are w.
func (s *solver) targetSum(r int, w []float64) float64 {
	m := s.prob.Moments
	sum := vec.Dot64(w, m.SumX[s.prob.Group(r)*m.Inputs:][:m.Inputs])
	if s.residual != nil {
		sum += s.residual.Sum[r]
	}
	return sum
}

// round finds the grid and the codes.
func (s *solver) round(ctx context.Context) (err error) {
	grid := &s.solution.Grid
	if s.o.gridOnTheWay() {
		*grid = s.grid.emptyGrid(s.target.Rows, s.target.Cols, s.o.Granularity, s.o.GroupSize)
		return s.gptq(ctx)
	}
	if s.o.Alphabet != "" {
		*grid, err = s.alphabetGrid(ctx, s.target)
	} else if s.o.Range == AWQ {
		*grid, err = s.clipGrid(ctx)
	} else {
		*grid, err = s.grid.newGrid(ctx, s.pool, s.target, s.o.Granularity, s.o.GroupSize)
	}
	if err != nil {
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
