package quantize

import (
	"cmp"
	"context"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// The method Best tries, for each row, GPTQ's pass on many grids, and improves
// the most promising results by descent over all codes and by fitting the scales
// and zero points to the codes, all in the damped error. Each row keeps the best
// it has seen.
const (
	bestRows     = 16   // rows of one task
	bestShrinks  = 16   // ranges that are tried, of rangeWidest … rangeNarrowest
	rangeWidest  = 1.05 // of the whole range
	rangeNarrows = 0.30
	bestKept     = 4  // results of a row that descent goes on with
	bestRounds   = 8  // turns of descent and fitting, at most
	bestSweeps   = 30 // passes of descent over a row's codes, at most
	leastGain    = 1e-9
)

// best solves all rows.
func (s *solver) best(ctx context.Context) error {
	blocks := s.rowBlocks(bestRows)
	problems := make([]quadratic, len(s.grams))
	for g := range problems {
		h, err := s.grams[g].damped(ctx, s.pool)
		if err != nil {
			return err
		}
		problems[g] = newQuadratic(h)
	}
	return s.pool.For(ctx, len(blocks), func(i int) error {
		b := blocks[i]
		t := bestTask{solver: s, q: &problems[b.group], gram: &s.grams[b.group], from: b.from, target: rowsOf(s.target, b.from, b.to)}
		return t.run(ctx)
	})
}

// quadratic is the damped error (ŵ−w̃)ᵀH(ŵ−w̃) of one group's rows.
type quadratic struct {
	h    blas64.General // H + λI over its unit
	ones []float64      // H·1, row after row of sums
}

func newQuadratic(h blas64.General) quadratic {
	q := quadratic{h: h, ones: make([]float64, h.Rows)}
	for i := range q.ones {
		q.ones[i] = vec.Sum64(rowOf64(h, i))
	}
	return q
}

// bestTask is some rows of one group.
type bestTask struct {
	*solver
	q      *quadratic
	gram   *gram
	from   int            // the first row, in the layer
	target blas64.General // w̃
}

// attempt is one row on one grid.
type attempt struct {
	steps []step // one for each group of the row
	codes []int8
	cost  float64
}

func (t *bestTask) run(ctx context.Context) error {
	rows := t.target.Rows
	kept, err := t.passes(ctx)
	if err != nil {
		return err
	}
	hw := linalg.NewGeneral(rows, t.target.Cols) // H·w̃ of each row
	if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, t.target, t.q.h, 0, hw); err != nil {
		return err
	}
	// The k-th best attempts of all rows together, so that H is read once.
	for k := range bestKept {
		if err := t.improve(ctx, kept, k, hw); err != nil {
			return err
		}
	}
	for r := range rows {
		best := slices.MinFunc(kept[r], func(a, b *attempt) int { return cmp.Compare(a.cost, b.cost) })
		t.accept(r, best)
	}
	return ctx.Err()
}

// accept makes an attempt the solution of row r.
func (t *bestTask) accept(r int, a *attempt) {
	n := t.target.Cols
	copy(t.solution.Codes[(t.from+r)*n:][:n], a.codes)
	if t.o.Granularity == layer.PerTensor {
		return // its step is the whole tensor's
	}
	for g, step := range a.steps {
		setStep(&t.solution.Grid, (t.from+r)*len(a.steps)+g, step)
	}
}

// span returns how many inputs share a step, and how many steps a row has.
func (t *bestTask) span() (span, groups int) {
	groups = max(1, t.solution.Grid.GroupsPerRow(t.target.Cols))
	return t.target.Cols / groups, groups
}

// passes runs GPTQ's pass over all rows on each grid, and returns for each row
// the results with the least damped error, best first.
func (t *bestTask) passes(ctx context.Context) ([][]*attempt, error) {
	rows, n := t.target.Rows, t.target.Cols
	kept := make([][]*attempt, rows)
	tries := t.grids()
	ordered := linalg.NewGeneral(rows, n)
	pass := recursion{upper: t.gram.upper, order: t.gram.order}
	pass.order64(ordered, t.target)
	w := linalg.NewGeneral(rows, n)
	codes := make([]int8, rows*n)
	damped := make([]float64, rows)
	for k := range tries {
		pass.grid, pass.damped = &tries[k], damped
		clear(damped)
		copy(w.Data, ordered.Data)
		if err := pass.run(ctx, w, 0, codes); err != nil {
			return nil, err
		}
		for r := range rows {
			kept[r] = keep(kept[r], damped[r], codes[r*n:][:n], func(i int) step { return stepAt(&tries[k], tries[k].Index(r, i, n)) }, t)
		}
	}
	return kept, nil
}

// keep adds an attempt to the best of a row, unless bestKept are better.
func keep(list []*attempt, cost float64, codes []int8, at func(col int) step, t *bestTask) []*attempt {
	if len(list) == bestKept && !(cost < list[len(list)-1].cost) {
		return list
	}
	span, groups := t.span()
	a := &attempt{cost: cost}
	if len(list) == bestKept {
		a, list = list[len(list)-1], list[:len(list)-1]
		a.cost = cost
	}
	a.codes = append(a.codes[:0], codes...)
	a.steps = a.steps[:0]
	for g := range groups {
		a.steps = append(a.steps, at(g*span))
	}
	place, _ := slices.BinarySearchFunc(list, cost, func(b *attempt, c float64) int {
		if b.cost <= c {
			return -1
		}
		return 1
	})
	return slices.Insert(list, place, a)
}

// grids returns the grids to try, each for all rows of the task: that of the
// range search, and ranges of different widths with the zero point rounded down
// and up. A tensor's one step is not searched here.
func (t *bestTask) grids() []layer.Grid {
	rows, n := t.target.Rows, t.target.Cols
	span, groups := t.span()
	if t.o.Granularity == layer.PerTensor {
		return []layer.Grid{t.solution.Grid}
	}
	empty := func() layer.Grid { return t.grid.emptyGrid(rows, n, t.o.Granularity, t.o.GroupSize) }
	first := empty()
	all := []layer.Grid{first}
	zeros := []int{0, 1}
	if t.o.Symmetric {
		zeros = zeros[:1]
	}
	for range bestShrinks * len(zeros) {
		all = append(all, empty())
	}
	for r := range rows {
		for g := range groups {
			at := r*groups + g
			w := rowOf64(t.target, r)[g*span:][:span]
			setStep(&first, at, stepAt(&t.solution.Grid, (t.from+r)*groups+g))
			lo, hi := slices.Min(w), slices.Max(w)
			for i := range bestShrinks {
				shrink := rangeWidest + (rangeNarrows-rangeWidest)*float64(i)/(bestShrinks-1)
				for k, up := range zeros {
					setStep(&all[1+i*len(zeros)+k], at, t.grid.affineZero(lo*shrink, hi*shrink, up))
				}
			}
		}
	}
	return all
}

// improve turns by descent and fitting the k-th attempt of each row into one
// that neither makes better.
func (t *bestTask) improve(ctx context.Context, kept [][]*attempt, k int, hw blas64.General) error {
	n := t.target.Cols
	var list []*attempt
	var at []int
	for r := range kept {
		if k < len(kept[r]) {
			list, at = append(list, kept[r][k]), append(at, r)
		}
	}
	if len(list) == 0 {
		return nil
	}
	d, hd := linalg.NewGeneral(len(list), n), linalg.NewGeneral(len(list), n)
	for i, a := range list {
		t.values(a, rowOf64(d, i))
		vec.Axpy64(-1, rowOf64(t.target, at[i]), rowOf64(d, i))
	}
	if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, d, t.q.h, 0, hd); err != nil {
		return err
	}
	for i, a := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		a.cost = vec.Dot64(rowOf64(d, i), rowOf64(hd, i))
		t.improveRow(a, rowOf64(t.target, at[i]), rowOf64(hw, at[i]), rowOf64(hd, i))
	}
	return nil
}

// improveRow alternates descent and fitting. hd is H(ŵ−w̃).
func (t *bestTask) improveRow(a *attempt, target, hw, hd []float64) {
	for range bestRounds {
		before := a.cost
		t.descend(a, hd)
		if t.o.Granularity != layer.PerTensor {
			t.fit(a, target, hw, hd)
		}
		if !(a.cost < before*(1-leastGain)) {
			return
		}
	}
	t.descend(a, hd)
}

// values writes an attempt's weights.
func (t *bestTask) values(a *attempt, dst []float64) {
	span, _ := t.span()
	for j, c := range a.codes {
		dst[j] = float64(a.steps[j/span].value(int(c)))
	}
}

// descend moves one code after another to where the others leave it best, until
// no single move helps. A move of input j by δ changes the error by
// 2δ·(Hd)_j + δ²·H_jj.
func (t *bestTask) descend(a *attempt, hd []float64) {
	lo, hi := layer.CodeRange(t.o.Bits)
	span, _ := t.span()
	h := t.q.h
	for range bestSweeps {
		moved := false
		for j, c := range a.codes {
			s := a.steps[j/span]
			old, diagonal := float64(s.value(int(c))), h.Data[j*h.Stride+j]
			code := s.code(old-hd[j]/diagonal, lo, hi)
			if code == int(c) {
				continue
			}
			delta := float64(s.value(code)) - old
			gain := delta * (2*hd[j] + delta*diagonal)
			if !(gain < -leastGain*a.cost) {
				continue
			}
			vec.Axpy64(delta, rowOf64(h, j), hd)
			a.codes[j], a.cost, moved = int8(code), a.cost+gain, true
		}
		if !moved {
			return
		}
	}
}

// fit moves the step of a row to the least squares fit of its codes, the zero
// point to the nearest code, where that lowers the error. With a = the codes and
// ŵ = s·a − t·1 it solves for s and t; then for s alone with t/s rounded.
func (t *bestTask) fit(a *attempt, target, hw, hd []float64) {
	if _, groups := t.span(); groups > 1 {
		return
	}
	n := len(a.codes)
	s := a.steps[0]
	codes, q := make([]float64, n), make([]float64, n)
	for j, c := range a.codes {
		codes[j] = float64(c)
		// H·(a−z·1) = (Hd + Hw̃)/s, and H·a adds z·H·1.
		q[j] = (hd[j]+hw[j])/float64(s.scale) + float64(s.zero)*t.q.ones[j]
	}
	aa, a1, ones := vec.Dot64(codes, q), vec.Dot64(codes, t.q.ones), vec.Sum64(t.q.ones)
	aw, w1, ww := vec.Dot64(codes, hw), vec.Sum64(hw), vec.Dot64(target, hw)
	best, least := s, a.cost*(1-leastGain)
	try := func(zero int) {
		z := float64(zero)
		cc := aa - 2*z*a1 + z*z*ones
		cw := aw - z*w1
		if !(cc > 0) || !(cw > 0) {
			return
		}
		fitted := step{t.grid.storable(cw / cc), zero}
		f := float64(fitted.scale)
		if cost := f*f*cc - 2*f*cw + ww; cost < least {
			best, least = fitted, cost
		}
	}
	try(s.zero)
	if !t.o.Symmetric {
		lo, hi := layer.CodeRange(t.o.Bits)
		if det := aa*ones - a1*a1; det > 0 {
			sa, ta := (aw*ones-a1*w1)/det, (aw*a1-aa*w1)/det
			if zero := math.Round(ta / sa); zero >= float64(lo) && zero <= float64(hi) {
				try(int(zero))
			}
		}
	}
	if best == s {
		return
	}
	a.steps[0], a.cost = best, least
	for j := range hd {
		hd[j] = float64(best.scale)*(q[j]-float64(best.zero)*t.q.ones[j]) - hw[j]
	}
}
