package prune

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// UnitScore says how units, such as channels or heads, are compared. The least
// ones go.
type UnitScore string

// The scores of a unit u. Sums go over the layers that read it, W_u being the
// columns of such a layer that do; a layer of more outputs or larger ones counts
// more, as it should.
const (
	// UnitMagnitude is Σ w² over all weights of the unit, those that write it
	// included (Li et al. 2017 sum |w| over a filter). No data.
	UnitMagnitude UnitScore = "magnitude"
	// UnitEnergy is Σ_j ‖w_j‖²·H_jj over the unit's columns: the energy that it
	// adds to outputs if its inputs were uncorrelated (Wanda's |w|·‖x‖, Sun et
	// al. 2024, section 3, for whole columns).
	UnitEnergy UnitScore = "energy"
	// UnitError is tr(W_u·([A⁻¹]_uu)⁻¹·W_uᵀ) with A = H + λI of the units that
	// are left: by how much the layers' error grows when u goes and the others
	// make up for it as well as they can (Hassibi and Stork 1993; for whole
	// units Kurtic et al. 2023, ZipLM, section 3).
	UnitError UnitScore = "error"
)

// UnitProblem is the choice of which units of a site stay. Unit u of Units is
// the columns u·Columns … of each reader's weight.
type UnitProblem struct {
	Units int
	// Run is how many neighbouring units must keep the same number, a divisor of
	// Units; Units where nothing is tied.
	Run     int
	Readers []UnitReader
	// Squares is Σ w² of each unit over the weights that write it, see AddSquares.
	// Only UnitMagnitude reads it; nil counts as zeros.
	Squares []float64
}

// UnitReader is a layer that reads the units, with moments of all its inputs
// while none is removed. Its groups must be 1.
type UnitReader struct {
	Problem *layer.Problem
	Columns int // of the weight, for one unit
	// Centre says that the layer's bias can change, so that the other units need
	// not make up for what the removed ones add on average.
	Centre bool
}

// UnitOptions say how units are chosen and the rest is repaired.
type UnitOptions struct {
	Score UnitScore
	Keep  int // units that stay: at least one of each run, as many of each
	// Rounds is how often UnitError's scores are computed, each time before as many
	// units go; 0 means 32. As many as go, or more, is one unit a round, which is
	// best and takes the longest: each costs n³ for n inputs.
	Rounds int
	// Repair changes the weights of the units that stay so that they make up for
	// the others: least squares in the moments.
	Repair bool
	// Damping is λ relative to the mean diagonal of H; 0 means 1 %.
	Damping float64
}

// UnitSolution is what stays.
type UnitSolution struct {
	Keep    []int // units, in rising order
	Readers []UnitResult

	// Order lists the units that went, in the order in which they did, and Scores
	// what each had then. With UnitError and a unit a round, the sum of the first n
	// is by how much the first n raise the least error, damped.
	Order  []int
	Scores []float64
}

// UnitResult is a reader's weight after removal.
type UnitResult struct {
	Weight blas32.General // out × the columns that stay
	// Bias is to be added to the outputs, one value for each; nil without Centre
	// or Repair.
	Bias   []float64
	Errors layer.Errors // Nearest is the error without repair
}

// UnitInputError says what is wrong with a UnitProblem or its options.
type UnitInputError struct{ Problem string }

func (e *UnitInputError) Error() string { return "structured pruning: " + e.Problem }

func unitError(format string, args ...any) error {
	return &UnitInputError{fmt.Sprintf(format, args...)}
}

// AddSquares adds Σ w² of each unit to sums, of a row-major tensor of the given
// shape of which unit u has the indices offset + u·size … of an axis.
func AddSquares(sums []float64, values []float32, shape []int, axis, offset, size int) error {
	elements := 1
	for _, n := range shape {
		elements *= n
	}
	if axis < 0 || axis >= len(shape) || offset < 0 || size < 1 || offset+size*len(sums) > shape[axis] || len(values) != elements {
		return unitError("%d units of %d from %d on of axis %d of %v with %d values", len(sums), size, offset, axis, shape, len(values))
	}
	inner := 1
	for _, n := range shape[axis+1:] {
		inner *= n
	}
	for from := offset * inner; from < elements; from += shape[axis] * inner {
		for u := range sums {
			for _, v := range values[from+u*size*inner:][:size*inner] {
				sums[u] += float64(v) * float64(v)
			}
		}
	}
	return nil
}

// UnitCount returns how many units of a site stay when the given share of them
// goes: a multiple of the number of runs, the nearest, and at least one of each
// run. Ties go to more.
func UnitCount(units, run int, share float64) int {
	runs := units / run
	stay := math.Floor((1-share)*float64(run) + .5)
	return runs * int(min(max(stay, 1), float64(run)))
}

// unitSystem is a UnitReader prepared: what its weights are to be is the least of
// (ŵ−w̃)ᵀA(ŵ−w̃) for each row.
type unitSystem struct {
	UnitReader
	h    blas64.General // undamped; centred where asked for
	a    blas64.General // h + λI
	want blas64.General // out×in: (P + λWᵀ)ᵀ, so that W̃ = want·A⁻¹
	p    blas64.General // out×in: Pᵀ, P = X̃ᵀY*

	energy  []float64 // ‖y*‖² of each output, less its mean where centred
	mean    []float64 // ȳ* of each output
	inputs  []float64 // mean of each input
	damping float64   // λ relative to the mean diagonal
}

// SelectUnits chooses the units that stay and, where asked for, repairs the
// readers' weights: Ŵ = argmin ‖Y* − X̃_K·Ŵᵀ‖² + λ‖Ŵ − W_K‖², Y* being the
// original's outputs XWᵀ, with what a residual sum has lost where the moments
// tell. So Ŵ also makes up for errors of layers before it, as alignment does.
//
// All scores but UnitMagnitude, and Repair, need moments. It fails with a
// *UnitInputError, with a *linalg.PivotError where six escalations of the
// damping do not help, and with the context's error. Cost: UnitError takes n³ a
// round and reader, the others n³/3 in all for the repair, n being the inputs
// that stay.
func SelectUnits(ctx context.Context, workers *pool.Pool, prob *UnitProblem, o UnitOptions) (*UnitSolution, error) {
	if o.Damping == 0 {
		o.Damping = .01
	}
	if err := prob.check(o); err != nil {
		return nil, err
	}
	var readers []*unitSystem
	for _, one := range prob.Readers {
		r := &unitSystem{UnitReader: one}
		if one.Problem.Moments != nil {
			if err := r.prepare(ctx, workers, o.Damping); err != nil {
				return nil, err
			}
		}
		readers = append(readers, r)
	}
	s := &UnitSolution{}
	if err := prob.choose(ctx, workers, readers, o, s); err != nil {
		return nil, err
	}
	for _, r := range readers {
		done, err := r.finish(ctx, workers, s.Keep, o)
		if err != nil {
			return nil, err
		}
		s.Readers = append(s.Readers, done)
	}
	return s, nil
}

func (prob *UnitProblem) check(o UnitOptions) error {
	switch {
	case prob.Units < 1 || prob.Run < 1 || prob.Units%prob.Run != 0:
		return unitError("%d units in runs of %d", prob.Units, prob.Run)
	case o.Keep < 1 || o.Keep > prob.Units || o.Keep%(prob.Units/prob.Run) != 0:
		return unitError("%d of %d units cannot stay, as many of each of %d runs and at least one", o.Keep, prob.Units, prob.Units/prob.Run)
	case o.Rounds < 0 || !(o.Damping > 0) || math.IsInf(o.Damping, 0):
		return unitError("%d rounds with damping %v", o.Rounds, o.Damping)
	case o.Score != UnitMagnitude && o.Score != UnitEnergy && o.Score != UnitError:
		return unitError("unknown score %q", o.Score)
	case prob.Squares != nil && len(prob.Squares) != prob.Units:
		return unitError("%d sums of squares for %d units", len(prob.Squares), prob.Units)
	case len(prob.Readers) == 0:
		return unitError("no layer reads the units")
	}
	for _, r := range prob.Readers {
		p := r.Problem
		if err := p.Check(); err != nil {
			return unitError("%v", err)
		}
		if p.Groups != 1 || r.Columns < 1 || p.Weight.Cols != prob.Units*r.Columns {
			return unitError("layer %s: %d units of %d columns for %d inputs in %d groups", p.Layer, prob.Units, r.Columns, p.Weight.Cols, p.Groups)
		}
		if p.Moments == nil && (o.Repair || o.Score != UnitMagnitude) {
			return unitError("layer %s: moments are needed to score by %s or to repair", p.Layer, o.Score)
		}
		if p.Moments != nil && p.Moments.Rows < 1 {
			return unitError("layer %s: moments of no rows", p.Layer)
		}
	}
	return nil
}

// prepare reads the layer's moments.
func (r *unitSystem) prepare(ctx context.Context, workers *pool.Pool, damping float64) error {
	prob, m := r.Problem, r.Problem.Moments
	w := unitWide(prob.Weight)
	n, out := w.Cols, w.Rows
	r.h, r.p = linalg.Clone(m.H[0]), linalg.NewGeneral(out, n)
	if err := blas.Gemm64(ctx, workers, blas.NoTrans, blas.Trans, 1, w, m.Cross(0), 0, r.p); err != nil { // Pᵀ = W·Gᵀ
		return err
	}
	r.energy = slices.Clone(prob.Energy())
	target := m.Residual[prob.Layer]
	if target != nil {
		for i := range out {
			for j, v := range unitLine(target.Cross[0], i) {
				r.p.Data[i*n+j] += v
			}
			r.energy[i] = target.Energy[i]
		}
	}
	if r.Centre {
		r.centre(w, target)
	}
	grown := 0
	_, grown, err := linalg.Damped(damping, linalg.MeanDiagonal(r.h), func(lambda float64) error {
		r.a, r.want = linalg.Clone(r.h), linalg.Clone(r.p)
		if lambda == 0 { // no input is ever other than 0: keep the weights
			lambda = 1
		}
		for i := range n {
			r.a.Data[i*n+i] += lambda
		}
		for i := range out {
			for j, v := range unitLine(w, i) {
				r.want.Data[i*n+j] += lambda * v
			}
		}
		return linalg.Cholesky(ctx, workers, linalg.Clone(r.a))
	})
	r.damping = damping * math.Pow10(grown)
	return err
}

// centre takes the means out of the moments.
func (r *unitSystem) centre(w blas64.General, target *layer.Residual) {
	m := r.Problem.Moments
	n, rows := w.Cols, float64(m.Rows)
	r.inputs, r.mean = make([]float64, n), make([]float64, w.Rows)
	for j := range r.inputs {
		r.inputs[j] = m.SumXt[j] / rows
	}
	for i := range w.Rows {
		for j, v := range unitLine(w, i) {
			r.mean[i] += v * m.SumX[j] / rows
		}
		if target != nil {
			r.mean[i] += target.Sum[i] / rows
		}
		for j := range n {
			r.p.Data[i*n+j] -= rows * r.inputs[j] * r.mean[i]
		}
		r.energy[i] -= rows * r.mean[i] * r.mean[i]
	}
	for i := range n {
		for j := range n {
			r.h.Data[i*n+j] -= rows * r.inputs[i] * r.inputs[j]
		}
	}
}

// choose fills in which units go, and which stay.
func (prob *UnitProblem) choose(ctx context.Context, workers *pool.Pool, readers []*unitSystem, o UnitOptions, s *UnitSolution) error {
	for u := range prob.Units {
		s.Keep = append(s.Keep, u)
	}
	total, runs, rounds := prob.Units-o.Keep, prob.Units/prob.Run, 1
	if o.Score == UnitError {
		rounds = cmp.Or(o.Rounds, 32)
	}
	left := make([]int, runs) // units to go of each run
	for i := range left {
		left[i] = total / runs
	}
	scores := make([]float64, prob.Units)
	for round := 0; len(s.Order) < total; round++ {
		if err := prob.score(ctx, workers, readers, s.Keep, scores, o.Score); err != nil {
			return err
		}
		todo, rest := total-len(s.Order), max(rounds-round, 1)
		goes := make([]bool, prob.Units)
		for _, u := range prob.least(s.Keep, scores, left, (todo+rest-1)/rest) {
			s.Order, s.Scores, goes[u] = append(s.Order, u), append(s.Scores, scores[u]), true
		}
		s.Keep = slices.DeleteFunc(s.Keep, func(u int) bool { return goes[u] })
	}
	return nil
}

// least returns count of the least units, from no run more than left says, from
// which it takes them. Of equal ones the later goes first.
func (prob *UnitProblem) least(keep []int, scores []float64, left []int, count int) []int {
	order := slices.Clone(keep)
	slices.SortFunc(order, func(a, b int) int { return cmp.Or(cmp.Compare(scores[a], scores[b]), b-a) })
	var goes []int
	for _, u := range order {
		if run := u / prob.Run; len(goes) < count && left[run] > 0 {
			left[run]--
			goes = append(goes, u)
		}
	}
	return goes
}

// score overwrites the scores of the units that are left.
func (prob *UnitProblem) score(ctx context.Context, workers *pool.Pool, readers []*unitSystem, keep []int, scores []float64, how UnitScore) error {
	for _, u := range keep {
		scores[u] = 0
		if how == UnitMagnitude && prob.Squares != nil {
			scores[u] = prob.Squares[u]
		}
	}
	for _, r := range readers {
		if how == UnitError {
			if err := r.addErrors(ctx, workers, keep, scores); err != nil {
				return err
			}
			continue
		}
		for i := range r.Problem.Weight.Rows {
			row := r.Problem.Weight.Data[i*r.Problem.Weight.Stride:]
			for _, u := range keep {
				for j := u * r.Columns; j < (u+1)*r.Columns; j++ {
					e := float64(row[j]) * float64(row[j])
					if how == UnitEnergy {
						e *= r.h.Data[j*r.h.Stride+j]
					}
					scores[u] += e
				}
			}
		}
	}
	for _, u := range keep {
		if math.IsNaN(scores[u]) || math.IsInf(scores[u], 0) {
			return unitError("the score of unit %d is %v: weights or moments are not finite", u, scores[u])
		}
	}
	return nil
}

// columns returns the columns of some units.
func (r *unitSystem) columns(units []int) []int {
	list := make([]int, 0, len(units)*r.Columns)
	for _, u := range units {
		for j := range r.Columns {
			list = append(list, u*r.Columns+j)
		}
	}
	return list
}

// solve returns the factor of A_KK and the least-squares weights of columns K.
func (r *unitSystem) solve(ctx context.Context, workers *pool.Pool, cols []int) (factor, w blas64.General, err error) {
	factor, w = unitPart(r.a, cols, cols), unitPart(r.want, nil, cols)
	if err := linalg.Cholesky(ctx, workers, factor); err != nil {
		return factor, w, err
	}
	return factor, w, linalg.SolveRows(ctx, workers, factor, w)
}

// addErrors adds UnitError's scores.
func (r *unitSystem) addErrors(ctx context.Context, workers *pool.Pool, keep []int, scores []float64) error {
	factor, w, err := r.solve(ctx, workers, r.columns(keep))
	if err != nil {
		return err
	}
	inverse, err := linalg.Inverse(ctx, workers, factor)
	if err != nil {
		return err
	}
	return eachUnit(ctx, workers, len(keep), func(k int) error {
		cols := make([]int, r.Columns)
		for j := range cols {
			cols[j] = k*r.Columns + j
		}
		// With [A⁻¹]_uu = LLᵀ, tr(W_u·(LLᵀ)⁻¹·W_uᵀ) = ‖W_u·L⁻ᵀ‖².
		corner, part := unitPart(inverse, cols, cols), unitPart(w, nil, cols)
		if err := linalg.Cholesky(ctx, nil, corner); err != nil {
			return err
		}
		if err := linalg.SolveLower(ctx, nil, corner, part); err != nil {
			return err
		}
		for _, v := range part.Data {
			scores[keep[k]] += v * v
		}
		return nil
	})
}

// finish returns the weights of the units that stay, with their errors.
func (r *unitSystem) finish(ctx context.Context, workers *pool.Pool, keep []int, o UnitOptions) (UnitResult, error) {
	cols := r.columns(keep)
	plain := unitPart(unitWide(r.Problem.Weight), nil, cols)
	weight := plain
	var done UnitResult
	if o.Repair {
		_, repaired, err := r.solve(ctx, workers, cols)
		if err != nil {
			return done, err
		}
		weight = repaired
	}
	done.Weight = blas32.General{Rows: weight.Rows, Cols: weight.Cols, Stride: weight.Cols, Data: make([]float32, len(weight.Data))}
	for i, v := range weight.Data {
		if done.Weight.Data[i] = float32(v); math.IsNaN(v) || math.IsInf(float64(done.Weight.Data[i]), 0) {
			return done, unitError("layer %s: a repaired weight is %v", r.Problem.Layer, v)
		}
	}
	if r.Problem.Moments == nil {
		return done, nil
	}
	var err error
	if done.Errors.Solved, err = r.error(ctx, workers, unitWide(done.Weight), cols); err != nil {
		return done, err
	}
	if done.Errors.Nearest, err = r.error(ctx, workers, plain, cols); err != nil {
		return done, err
	}
	for _, e := range r.Problem.Energy() {
		done.Errors.Energy += e
	}
	if o.Repair {
		done.Errors.Damping = r.damping
	}
	if o.Repair && r.Centre {
		done.Bias = slices.Clone(r.mean)
		for i := range done.Bias {
			for k, j := range cols {
				done.Bias[i] -= float64(done.Weight.Data[i*len(cols)+k]) * r.inputs[j]
			}
		}
	}
	return done, nil
}

// error returns ‖Y* − X̃_K·Ŵᵀ‖² = Σ ‖y*‖² − 2·ŵᵀP_K + ŵᵀH_KK·ŵ, less the means
// where centred.
func (r *unitSystem) error(ctx context.Context, workers *pool.Pool, w blas64.General, cols []int) (float64, error) {
	product := linalg.NewGeneral(w.Rows, w.Cols)
	if err := blas.Gemm64(ctx, workers, blas.NoTrans, blas.NoTrans, 1, w, unitPart(r.h, cols, cols), 0, product); err != nil {
		return 0, err
	}
	sum := 0.0
	for i := range w.Rows {
		e := r.energy[i]
		for k, v := range unitLine(w, i) {
			e += v * (product.Data[i*product.Stride+k] - 2*r.p.Data[i*r.p.Stride+cols[k]])
		}
		sum += e
	}
	return max(sum, 0), nil
}

// unitPart returns some rows and columns of a matrix; nil stands for all.
func unitPart(a blas64.General, rows, cols []int) blas64.General {
	if rows == nil {
		rows = make([]int, a.Rows)
		for i := range rows {
			rows[i] = i
		}
	}
	b := linalg.NewGeneral(len(rows), len(cols))
	for i, row := range rows {
		src := unitLine(a, row)
		for j, col := range cols {
			b.Data[i*b.Stride+j] = src[col]
		}
	}
	return b
}

// unitWide returns a copy in float64.
func unitWide(a blas32.General) blas64.General {
	b := linalg.NewGeneral(a.Rows, a.Cols)
	for i := range a.Rows {
		for j, v := range a.Data[i*a.Stride:][:a.Cols] {
			b.Data[i*b.Stride+j] = float64(v)
		}
	}
	return b
}

func unitLine(a blas64.General, i int) []float64 { return a.Data[i*a.Stride:][:a.Cols] }

// eachUnit calls task for 0 … n−1 on the workers, or on the caller alone.
func eachUnit(ctx context.Context, workers *pool.Pool, n int, task func(i int) error) error {
	if workers == nil {
		workers = pool.New(1)
	}
	return workers.For(ctx, n, task)
}
