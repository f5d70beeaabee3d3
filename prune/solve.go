package prune

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// Version grows whenever a solver's output changes for some input. It is part of
// the keys under which solutions are cached.
const Version = 3

// Method says how survivors are chosen.
type Method string

// The methods.
const (
	ByMagnitude Method = "magnitude" // |w|
	ByWanda     Method = "wanda"     // |w|·‖x‖₂ (arXiv 2306.11695)
	BySaliency  Method = "saliency"  // |w|/√[H⁻¹]_jj, optimal brain surgery's score (arXiv 2208.11580), survivors as they are
	BySparseGPT Method = "sparsegpt" // see SparseGPT
	ByADMM      Method = "admm"      // see ADMM
)

var allMethods = []Method{ByADMM, BySparseGPT, BySaliency, ByWanda, ByMagnitude}

// updates reports whether the method changes survivors by itself.
func (m Method) updates() bool { return m == BySparseGPT || m == ByADMM }

// Options say what is pruned of a layer, and how. The zero value of a field with a
// default means that default.
type Options struct {
	Method    Method // default ByADMM
	Pattern   Pattern
	Scope     Scope // default PerLayer
	Survivors int   // how many of the layer's weights stay; see Selection

	// Align, Residual, Damping, BiasCorrection and Centre are those of package
	// quantize: what the weights aim at, λ relative to the mean of H's diagonal
	// (default 0.01), and what the bias takes.
	Align, Residual        bool
	Damping                float64
	BiasCorrection, Centre bool

	// ADMM tunes that method; the zero value means DefaultADMM.
	ADMM ADMMOptions

	// Polish fits the survivors by least squares, with DefaultPolish.
	Polish bool

	// Swaps is in how many rounds survivors are exchanged for pruned weights while
	// that lowers the error; see Swap. It comes with Polish.
	Swaps int

	// Round is what survivors become in the pass of BySparseGPT; see
	// SparseGPTOptions. Nil leaves them as they are.
	Round func(row, col int, w float64) float64 `json:"-"`
}

// WithDefaults returns the options with defaults in place of zero values: what
// belongs into cache keys and records.
func (o Options) WithDefaults() Options {
	if o.Method == "" {
		o.Method = ByADMM
	}
	if o.Scope == "" {
		o.Scope = PerLayer
	}
	if o.Damping == 0 && o.usesDamping() {
		o.Damping = gram.DefaultDamping
	}
	if o.Method == ByADMM && o.ADMM == (ADMMOptions{}) {
		o.ADMM = DefaultADMM()
	}
	return o
}

func (o Options) usesDamping() bool {
	return o.Method.updates() || o.Method == BySaliency || o.Polish || o.Align
}

// NeedsMoments reports whether Solve needs the problem's moments.
func (o Options) NeedsMoments() bool {
	return o.Method != ByMagnitude || o.Polish || o.Align || o.BiasCorrection
}

// OptionError names an option that is out of its range, or that the other
// options leave without effect.
type OptionError struct {
	Field   string // the field of Options
	Value   any
	Allowed string // what would be accepted
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("prune: %s is %v, want %s", e.Field, e.Value, e.Allowed)
}

// ErrNoMoments says that a method that works on moments was given a problem
// without them.
var ErrNoMoments = errors.New("the method needs calibration moments, the problem has none")

// Check returns an *OptionError or a *PatternError for the first field that is out
// of its range or would have no effect. Survivors are not looked at.
func (o Options) Check() error {
	o = o.WithDefaults()
	switch {
	case !slices.Contains(allMethods, o.Method):
		return &OptionError{"Method", fmt.Sprintf("%q", string(o.Method)), "admm, sparsegpt, saliency, wanda or magnitude"}
	case o.Pattern.Check() != nil:
		return o.Pattern.Check()
	case o.Scope.Check(o.Pattern) != nil:
		return o.Scope.Check(o.Pattern)
	case o.Method != ByADMM && o.ADMM != ADMMOptions{}:
		return &OptionError{"ADMM", o.ADMM, "nothing unless the method is admm"}
	case o.Method == ByADMM && o.ADMM.Iterations < 1:
		return &OptionError{"ADMM.Iterations", o.ADMM.Iterations, "1 to 1000000, and at least the steps less one"}
	case o.Method == ByADMM && o.ADMM.check() != nil:
		return o.ADMM.check()
	case o.Swaps < 0 || o.Swaps > 1000:
		return &OptionError{"Swaps", o.Swaps, "0 to 1000 rounds"}
	case o.Swaps > 0 && !o.Polish:
		return &OptionError{"Swaps", o.Swaps, "0 without polish"}
	case o.Swaps > 0 && o.Pattern.Kind == Blocks:
		return &OptionError{"Swaps", o.Swaps, "0 for blocks, which are not swapped"}
	case o.Residual && !o.Align:
		return &OptionError{"Residual", o.Residual, "false without align"}
	case o.Centre && (!o.BiasCorrection || !o.usesDamping()):
		return &OptionError{"Centre", o.Centre, "false without bias correction, and for methods that leave weights as they are"}
	case !o.usesDamping() && o.Damping != 0:
		return &OptionError{"Damping", o.Damping, fmt.Sprintf("0 for %s without align and polish, which does not use it", o.Method)}
	case o.usesDamping() && !(o.Damping > 0 && o.Damping <= 1e6):
		return &OptionError{"Damping", o.Damping, "a positive number up to 1e6, relative to the mean of H's diagonal"}
	case o.Round != nil && (o.Method != BySparseGPT || o.Polish):
		return &OptionError{"Round", "given", "nothing unless the method is sparsegpt without polish"}
	}
	return nil
}

// kind is the factorization that the options work with. Inputs stay in their
// order, in which patterns are counted.
func (o Options) kind() gram.Kind {
	damping := o.Damping
	if damping == 0 {
		damping = gram.DefaultDamping
	}
	return gram.Kind{Damping: damping, Centred: o.Centre}
}

// Prepare makes what Solve with these options needs of factors, on all of p's
// workers.
func Prepare(ctx context.Context, p *pool.Pool, f *gram.Factors, o Options) error {
	_, err := f.Grams(ctx, p, o.WithDefaults().kind())
	return err
}

// Solve prunes one layer, whose moments must be those of the factors. The problem
// is read only; the solution's bytes depend on the problem and the options alone,
// not on the pool, which may be nil. The solution has a mask, and values of type
// problem.Type. In its errors Nearest is what plain magnitude pruning of the same
// pattern leaves. A layer that would lose everything keeps its best weight, and the
// solution says so in Fallbacks.
//
// Errors: *OptionError, *PatternError, *layer.InputError, ErrNoMoments (wrapped),
// the context's error soon after it is cancelled, and *linalg.PivotError (wrapped).
//
// Cost, for an out×in weight: with moments n³/3 multiply-adds for the factor of H,
// out·in² to measure each of two errors, 2·out·in² for alignment; then what
// SparseGPT, ADMM, Polish and Swap say. Memory: three out×in matrices of float64,
// and theirs.
func Solve(ctx context.Context, p *pool.Pool, f *gram.Factors, prob *layer.Problem, o Options) (*layer.Solution, error) {
	o = o.WithDefaults()
	if err := o.Check(); err != nil {
		return nil, err
	}
	if err := checkProblem(prob, f, o); err != nil {
		return nil, err
	}
	if p == nil {
		p = pool.New(1)
	}
	t, err := f.Target(ctx, p, prob, o.kind(), o.Residual)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", prob.Layer, err)
	}
	s := &solver{Target: t, o: o, solution: &layer.Solution{
		Layer: prob.Layer, Method: string(o.Method), Rows: prob.Weight.Rows, Cols: prob.Weight.Cols, ValueType: prob.Type,
	}}
	for _, stage := range []func(context.Context) error{s.prune, s.measure} {
		if err := stage(ctx); err != nil {
			return nil, fmt.Errorf("layer %s: %w", prob.Layer, err)
		}
	}
	if o.BiasCorrection {
		s.solution.Bias = t.Bias(s.values)
	}
	return s.solution, s.checkFinite()
}

// checkProblem refuses what would make a solver fail or write a NaN.
func checkProblem(prob *layer.Problem, f *gram.Factors, o Options) error {
	if err := prob.CheckValues(o.BiasCorrection); err != nil {
		return err
	}
	switch {
	case !prob.Type.IsFloat():
		return prob.Bad("type", -1, "%s, want that of the weight as stored", prob.Type)
	case prob.Moments != f.Moments():
		return prob.Bad("moments", -1, "they are not those of the factors")
	case prob.Moments == nil && o.NeedsMoments():
		return fmt.Errorf("layer %s: %s: %w", prob.Layer, o.Method, ErrNoMoments)
	case o.Survivors < 0 || o.Survivors > prob.Weight.Rows*prob.Weight.Cols:
		return &OptionError{"Survivors", o.Survivors, fmt.Sprintf("0 to %d, the weights of layer %s", prob.Weight.Rows*prob.Weight.Cols, prob.Layer)}
	}
	return nil
}

// solver is one problem on its way to a solution.
type solver struct {
	*gram.Target
	o        Options
	target   blas64.General // what survivors aim at: W, or W̃ when aligned
	solution *layer.Solution
}

func (s *solver) values(r int, dst []float32) { copy(dst, s.solution.Values[r*len(dst):]) }

func (s *solver) selection() Selection {
	return Selection{Pattern: s.o.Pattern, Scope: s.o.Scope, Survivors: s.o.Survivors}
}

// prune finds the mask and the survivors.
func (s *solver) prune(ctx context.Context) error {
	w := s.Problem.Weight
	s.target = s.Anchor
	if !s.o.Align && s.Crossed() {
		s.target = s.Original()
	}
	if s.Problem.Aim.Data != nil {
		s.target = s.Problem.Aim
	}
	pruned := linalg.Clone(s.target)
	// A single weight is compared over all groups, which a method sees one by one.
	byScore := !s.o.Method.updates() || s.o.Survivors == 0 && len(s.Grams) > 1
	if byScore {
		if err := s.maskByScore(ctx, pruned); err != nil {
			return err
		}
	}
	if s.o.usesDamping() {
		if s.solution.Mask == nil {
			s.solution.Mask = layer.NewMask(w.Rows, w.Cols)
		}
		for g := range s.Grams {
			if err := s.solveGroup(ctx, g, pruned, byScore); err != nil {
				return err
			}
			s.solution.Errors.Damping = max(s.solution.Errors.Damping, s.Grams[g].Damping)
		}
		if d := s.solution.Errors.Damping; d > s.o.Damping {
			s.solution.Fallbacks = append(s.solution.Fallbacks, layer.Fallback{
				Asked: fmt.Sprintf("damping %g", s.o.Damping), Got: fmt.Sprintf("damping %g", d), Reason: "H + λI was not positive definite with less",
			})
		}
	}
	if s.o.Survivors == 0 {
		s.solution.Fallbacks = append(s.solution.Fallbacks, layer.Fallback{
			Asked: "no survivors", Got: fmt.Sprintf("%d of them", s.solution.Mask.Survivors()), Reason: "a layer without weights gives the same outputs for all inputs",
		})
	}
	s.solution.Values = make([]float32, w.Rows*w.Cols)
	for r := range w.Rows {
		for c, v := range linalg.Row(pruned, r) {
			if s.solution.Mask.At(r, c) {
				kept := s.Problem.Type.Round(float32(v))
				if math.IsInf(float64(kept), 0) {
					return s.Problem.Bad("weight", r*w.Cols+c, "becomes %g, too large for %s", v, s.Problem.Type)
				}
				s.solution.Values[r*w.Cols+c] = kept
			}
		}
	}
	return nil
}

// maskByScore chooses the mask by the weights' scores, and clears the others.
func (s *solver) maskByScore(ctx context.Context, pruned blas64.General) (err error) {
	w := s.Problem.Weight
	scores := blas32.General{Rows: w.Rows, Cols: w.Cols, Stride: w.Cols, Data: make([]float32, w.Rows*w.Cols)}
	switch s.o.Method {
	case ByWanda:
		diag := make([][]float64, len(s.Problem.Moments.H))
		for g, h := range s.Problem.Moments.H {
			for i := range h.Rows {
				diag[g] = append(diag[g], h.Data[i*h.Stride+i])
			}
		}
		err = WandaScores(ctx, s.Pool, scores, w, diag)
	case BySaliency:
		err = SaliencyScores(ctx, s.Pool, scores, w, inverseDiagonals(s.Grams))
	default:
		err = MagnitudeScores(ctx, s.Pool, scores, w)
	}
	if err != nil {
		return err
	}
	if s.solution.Mask, _, err = Select(ctx, s.Pool, scores, s.selection()); err != nil {
		return err
	}
	clearPruned(pruned, s.solution.Mask)
	return nil
}

// inverseDiagonals returns the diagonals of (H + λI)⁻¹ = UᵀU.
func inverseDiagonals(grams []gram.Gram) [][]float64 {
	all := make([][]float64, len(grams))
	for g := range grams {
		u := grams[g].Upper
		all[g] = make([]float64, u.Cols)
		for i := range u.Rows {
			for j := i; j < u.Cols; j++ {
				v := u.Data[i*u.Stride+j]
				all[g][j] += v * v
			}
		}
	}
	return all
}

func clearPruned(w blas64.General, mask *layer.Mask) {
	for r := range w.Rows {
		for c := range w.Cols {
			if !mask.At(r, c) {
				w.Data[r*w.Stride+c] = 0
			}
		}
	}
}

// solveGroup prunes the rows of one group of a convolution, or all, by a method
// that works on H unless there is a mask already, and polishes.
func (s *solver) solveGroup(ctx context.Context, g int, pruned blas64.General, masked bool) error {
	from, to := s.Problem.GroupRows(g)
	rows := linalg.Rows(pruned, from, to)
	target := linalg.Rows(s.target, from, to)
	mask := maskRows(s.solution.Mask, from, to)
	sel := s.selection()
	sel.Survivors = s.groupSurvivors(g, rows.Rows, rows.Cols)
	switch {
	case masked && !s.o.Polish:
		return nil
	case !masked && sel.Survivors == 0 && len(s.Grams) > 1: // the others have some
		clearPruned(rows, mask)
		return nil
	}
	a, err := s.Grams[g].DampedH(ctx, s.Pool)
	if err != nil {
		return err
	}
	var found *layer.Mask
	switch {
	case masked:
	case s.o.Method == BySparseGPT:
		found, _, err = SparseGPT(ctx, s.Pool, s.Grams[g].Upper, s.Grams[g].Order, rows, sel, SparseGPTOptions{Round: s.rounded(from)})
	default:
		found, err = ADMM(ctx, s.Pool, a, rows, sel, s.o.ADMM)
	}
	if err != nil {
		return err
	}
	if found != nil {
		copy(mask.Bits, found.Bits)
	}
	switch {
	case s.o.Swaps > 0:
		o := DefaultSwap()
		o.Rounds = s.o.Swaps
		_, _, err = Swap(ctx, s.Pool, a, target, rows, mask, s.o.Pattern, o)
	case s.o.Polish:
		_, err = Polish(ctx, s.Pool, a, target, rows, mask, DefaultPolish())
	}
	return err
}

// groupSurvivors returns a group's share of the survivors, that of its rows×cols
// weights: the groups' sum is exact, in whole blocks where these divide a group.
func (s *solver) groupSurvivors(g, rows, cols int) int {
	groups, p := len(s.Grams), s.o.Pattern
	h, w := p.blockSize()
	switch {
	case groups == 1:
		return s.o.Survivors
	case p.Kind == NofM:
		return p.Survivors(rows, cols, 0)
	case p.Kind == Blocks && rows%h == 0 && cols%w == 0:
		blocks := groups * rows * cols / (h * w)
		all := Selection{Pattern: p, Survivors: s.o.Survivors}
		return share(blocks-all.losses(groups*rows, cols), g, groups) * h * w
	case p.Kind == Blocks:
		return p.Survivors(rows, cols, 1-float64(s.o.Survivors)/float64(groups*rows*cols))
	}
	return share(s.o.Survivors, g, groups)
}

// rounded is Options.Round of rows that begin at one of the layer.
func (s *solver) rounded(from int) func(row, col int, w float64) float64 {
	if s.o.Round == nil {
		return nil
	}
	return func(row, col int, w float64) float64 { return s.o.Round(from+row, col, w) }
}

// maskRows returns rows of a mask, which share its bits.
func maskRows(m *layer.Mask, from, to int) *layer.Mask {
	n := m.Stride()
	return &layer.Mask{Rows: to - from, Cols: m.Cols, Bits: m.Bits[from*n : to*n]}
}

// measure fills in the solution's errors, where there are moments to measure them
// with: of the solution, and of magnitude pruning with as many survivors.
func (s *solver) measure(ctx context.Context) error {
	if s.Problem.Moments == nil {
		return nil
	}
	w := s.Problem.Weight
	scores := blas32.General{Rows: w.Rows, Cols: w.Cols, Stride: w.Cols, Data: make([]float32, w.Rows*w.Cols)}
	if err := MagnitudeScores(ctx, s.Pool, scores, w); err != nil {
		return err
	}
	plain, _, err := Select(ctx, s.Pool, scores, s.selection())
	if err != nil {
		return err
	}
	sums, err := s.Errors(ctx, nil, s.values, func(r int, dst []float32) {
		for c, v := range w.Data[r*w.Stride:][:w.Cols] {
			dst[c] = 0
			if plain.At(r, c) {
				dst[c] = v
			}
		}
	})
	if err != nil {
		return err
	}
	e := &s.solution.Errors
	for _, v := range s.Problem.Energy() {
		e.Energy += v
	}
	e.Solved, e.Nearest = sums[0], sums[1]
	return nil
}

// checkFinite refuses a solution whose errors or bias overflowed.
func (s *solver) checkFinite() error {
	e := s.solution.Errors
	for _, v := range append([]float64{e.Energy, e.Solved, e.Nearest, e.Damping}, s.solution.Bias...) {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return s.Problem.Bad("moments", -1, "too large: float64 overflows")
		}
	}
	return nil
}
