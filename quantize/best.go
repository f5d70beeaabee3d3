package quantize

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/fettle-dev/fettle/internal/gram"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// The method Best tries, for each row, GPTQ's pass on many grids, and improves
// the most promising results by descent over all codes and by fitting the scales
// and zero points to the codes, all in the damped error. Each row keeps the best
// it has seen, in layers that are not wide no worse than nearest rounding.
const (
	bestRows       = 32       // rows of one task, at most
	bestBytes      = 32 << 20 // of the copies of its rows, one for each grid
	bestShrinks    = 16       // ranges that are tried, of rangeWidest … rangeNarrowest
	bestInputs     = 640      // of the widest layer whose rows pass on all grids
	leastPasses    = 6        // grids that a row passes on, at least
	rangeWidest    = 1.05     // of the whole range
	rangeNarrowest = 0.30
	bestKept       = 4 // results of a row that descent goes on with; in wide layers wideKept
	wideKept       = 2
	bestRounds     = 8    // turns of descent and fitting, at most
	wideGain       = 1e-3 // share of the error that a turn must gain for another one in wide layers; else leastGain
	bestSweeps     = 30   // passes of descent over a row's codes, at most
	leastGain      = 1e-9
	exactBelow     = 1e-4 // costs below this share of w̃ᵀHw̃ are computed again in the end
)

// best solves all rows.
func (s *solver) best(ctx context.Context) error {
	copies := 8 * (1 + 2*bestShrinks) * s.target.Cols
	blocks := s.Blocks(min(bestRows, max(1, bestBytes/copies)))
	problems := make([]quadratic, len(s.Grams))
	for g := range problems {
		h, err := s.Grams[g].DampedH(ctx, s.Pool)
		if err != nil {
			return err
		}
		problems[g] = newQuadratic(h, s.target.Cols/max(1, s.solution.Grid.GroupsPerRow(s.target.Cols)))
	}
	return s.Pool.For(ctx, len(blocks), func(i int) error {
		b := blocks[i]
		t := bestTask{solver: s, q: &problems[b.Group], gram: &s.Grams[b.Group], from: b.From, target: linalg.Rows(s.target, b.From, b.To), aim: linalg.Rows(s.aim, b.From, b.To)}
		return t.run(ctx)
	})
}

// quadratic is the damped error (ŵ−w̃)ᵀH(ŵ−w̃) of one group of a convolution, or
// of the whole layer.
type quadratic struct {
	h    blas64.General // H + λI over its unit
	ones blas64.General // 1_kᵀ·H·1_l, 1_k being ones at the inputs that share a row's k-th step
	sums []float64      // H·1
}

func newQuadratic(h blas64.General, span int) quadratic {
	groups := h.Rows / span
	q := quadratic{h: h, ones: linalg.NewGeneral(groups, groups), sums: make([]float64, h.Rows)}
	for i := range h.Rows {
		q.sums[i] = vec.Sum64(linalg.Row(h, i))
		for l := range groups {
			q.ones.Data[i/span*groups+l] += vec.Sum64(linalg.Row(h, i)[l*span:][:span])
		}
	}
	return q
}

// bestTask is some rows of one group.
type bestTask struct {
	*solver
	q      *quadratic
	gram   *gram.Gram
	from   int            // the first row, in the layer
	target blas64.General // what passes begin with: w̃, or what is left of it after pruning
	aim    blas64.General // w̃
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
	if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, t.aim, t.q.h, 0, hw); err != nil {
		return err
	}
	if err := t.improve(ctx, kept, hw); err != nil {
		return err
	}
	if !t.wide() {
		if err := t.addNearest(ctx, kept, hw); err != nil {
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

// passes runs GPTQ's pass over all rows on all grids, and returns for each row
// the results with the least damped error, best first. A copy of the rows for
// each grid goes through one pass, so that its factor is read once.
func (t *bestTask) passes(ctx context.Context) ([][]*attempt, error) {
	rows, n := t.target.Rows, t.target.Cols
	grid, grids := t.grids()
	w, giveBack := t.Borrow(grids*rows, n)
	defer giveBack()
	pass := recursion{upper: t.gram.Upper, order: t.gram.Order, grid: grid, damped: make([]float64, grids*rows), mask: t.rowMask()}
	for k := range grids {
		pass.order64(linalg.Rows(w, k*rows, (k+1)*rows), t.target)
	}
	codes := make([]int8, grids*rows*n)
	if err := pass.run(ctx, w, 0, codes); err != nil {
		return nil, err
	}
	kept := make([][]*attempt, rows)
	for i, cost := range pass.damped {
		kept[i%rows] = t.keep(kept[i%rows], cost, codes[i*n:][:n], func(col int) step { return stepAt(grid, grid.Index(i, col, n)) })
	}
	return kept, nil
}

// rowMask returns the mask of the task's rows; nil for none.
func (t *bestTask) rowMask() *layer.Mask {
	if t.mask == nil {
		return nil
	}
	rows := t.target.Rows
	return &layer.Mask{Rows: rows, Cols: t.mask.Cols, Bits: t.mask.Bits[t.from*t.mask.Stride():][:rows*t.mask.Stride()]}
}

// keep adds an attempt to the best of a row, unless bestKept are better.
func (t *bestTask) keep(list []*attempt, cost float64, codes []int8, at func(col int) step) []*attempt {
	most := bestKept
	if t.wide() {
		most = wideKept
	}
	if len(list) == most && !(cost < list[len(list)-1].cost) {
		return list
	}
	span, groups := t.span()
	a := &attempt{cost: cost}
	if len(list) == most {
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

// grids returns the grids to try and how many they are for a row. Row r of grid k
// is row k·rows + r. A tensor's one step is not searched here.
func (t *bestTask) grids() (grid *layer.Grid, grids int) {
	rows, n := t.target.Rows, t.target.Cols
	if t.o.Granularity == layer.PerTensor {
		return &t.solution.Grid, 1
	}
	_, groups := t.span()
	grids = t.passCount()
	all := t.grid.emptyGrid(grids*rows, n, t.o.Granularity, t.o.GroupSize)
	for r := range rows {
		for k, steps := range t.candidates(r)[:grids] {
			for g, s := range steps {
				setStep(&all, (k*rows+r)*groups+g, s)
			}
		}
	}
	return &all, grids
}

// zeroPoints returns how many zero points are tried for a range.
func (t *bestTask) zeroPoints() int {
	if t.o.Symmetric || t.o.Format.Float() != nil {
		return 1
	}
	return 2
}

// wide reports whether a row has so many inputs that what is tried must be less.
func (t *bestTask) wide() bool { return t.target.Cols > bestInputs }

// passCount returns how many grids a row passes on. What a pass leaves of the
// error scatters the less the wider the layer is, and the passes cost the more: in
// wide layers only the grids that nearest rounding likes best are worth one.
func (t *bestTask) passCount() int {
	all := 1 + bestShrinks*t.zeroPoints()
	return min(all, max(leastPasses, all*bestInputs/t.target.Cols))
}

// candidates returns the grids to try for a row, a step for each group: that of
// the range search, then ranges of different widths with the zero point rounded
// down and up; where not all of them will pass, those of least Σ|w − ŵ|^2.4 first.
func (t *bestTask) candidates(r int) [][]step {
	span, groups := t.span()
	zeros := t.zeroPoints()
	list := make([][]step, 1+bestShrinks*zeros)
	costs := make([]float64, len(list))
	for i := range list {
		list[i] = make([]step, groups)
	}
	partial := t.passCount() < len(list)
	for g := range groups {
		w := linalg.Row(t.target, r)[g*span:][:span]
		lo, hi := slices.Min(w), slices.Max(w)
		list[0][g] = stepAt(&t.solution.Grid, (t.from+r)*groups+g)
		for i := range bestShrinks {
			shrink := rangeWidest + (rangeNarrowest-rangeWidest)*float64(i)/(bestShrinks-1)
			for up := range zeros {
				k := 1 + i*zeros + up
				list[k][g] = t.grid.affineZero(lo*shrink, hi*shrink, up)
				if partial {
					costs[k] += t.grid.error(w, list[k][g], math.Inf(1))
				}
			}
		}
	}
	if !partial {
		return list
	}
	costs[0] = -1 // always
	order := make([]int, len(list))
	for k := range order {
		order[k] = k
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(costs[a], costs[b]) })
	sorted := make([][]step, len(list))
	for i, k := range order {
		sorted[i] = list[k]
	}
	return sorted
}

// improve turns by descent and fitting each attempt into one that neither makes
// better.
func (t *bestTask) improve(ctx context.Context, kept [][]*attempt, hw blas64.General) error {
	var rows []*bestRow
	for r := range kept {
		for _, a := range kept[r] {
			rows = append(rows, &bestRow{attempt: a, row: t.from + r, target: linalg.Row(t.aim, r), hw: linalg.Row(hw, r)})
		}
	}
	all := slices.Clone(rows)
	_, groups := t.span()
	gain := leastGain
	if t.wide() {
		gain = wideGain
	}
	for round := 0; round < bestRounds && len(rows) > 0; round++ {
		if round == 0 || groups > 1 { // one step's fit brings Hd along
			if err := t.multiply(ctx, rows); err != nil {
				return err
			}
		}
		for _, row := range rows {
			if err := ctx.Err(); err != nil {
				return err
			}
			row.before = row.cost
			t.descend(row)
		}
		if err := t.fit(ctx, rows); err != nil {
			return err
		}
		// Only a new step opens new moves.
		rows = slices.DeleteFunc(rows, func(row *bestRow) bool { return !row.fitted || !(row.cost < row.before*(1-gain)) })
	}
	// Fits take ŵ for s·(code − zero), of which float32 loses a little.
	small := slices.DeleteFunc(all, func(row *bestRow) bool { return row.cost > exactBelow*vec.Dot64(row.target, row.hw) })
	if len(small) == 0 {
		return nil
	}
	return t.multiply(ctx, small)
}

// addNearest adds to a row's attempts nearest rounding on the grid of the range
// search where that is better than all of them, and improves it. Few inputs, or
// inputs that are all alike, can make it so.
func (t *bestTask) addNearest(ctx context.Context, kept [][]*attempt, hw blas64.General) error {
	grid, n := &t.solution.Grid, t.target.Cols
	lo, hi := grid.Range()
	span, groups := t.span()
	near := make([]*bestRow, len(kept))
	for r := range near {
		a := &attempt{codes: make([]int8, n), steps: make([]step, groups)}
		for g := range a.steps {
			a.steps[g] = stepAt(grid, grid.Index(t.from+r, g*span, n))
		}
		for j, w := range linalg.Row(t.target, r) {
			s := a.steps[j/span]
			a.codes[j] = int8(s.code(w, lo, hi))
			if t.pruned(t.from+r, j) {
				a.codes[j] = int8(s.zero)
			}
		}
		near[r] = &bestRow{attempt: a, target: linalg.Row(t.aim, r)}
	}
	if err := t.multiply(ctx, near); err != nil {
		return err
	}
	better := make([][]*attempt, len(kept))
	for r, row := range near {
		if !slices.ContainsFunc(kept[r], func(a *attempt) bool { return a.cost <= row.cost }) {
			better[r], kept[r] = []*attempt{row.attempt}, append(kept[r], row.attempt)
		}
	}
	return t.improve(ctx, better, hw)
}

// bestRow is an attempt that is being improved.
type bestRow struct {
	*attempt
	row        int       // in the layer
	target, hw []float64 // w̃ and H·w̃
	hd         []float64 // H(ŵ−w̃)
	before     float64   // the cost when the round began
	fitted     bool      // the last fit changed a step
}

// multiply brings hd and the cost of each row up to date.
func (t *bestTask) multiply(ctx context.Context, rows []*bestRow) error {
	n := t.target.Cols
	d, hd := linalg.NewGeneral(len(rows), n), linalg.NewGeneral(len(rows), n)
	for i, row := range rows {
		t.values(row.attempt, linalg.Row(d, i))
		vec.Axpy64(-1, row.target, linalg.Row(d, i))
	}
	if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, d, t.q.h, 0, hd); err != nil {
		return err
	}
	for i, row := range rows {
		row.hd = linalg.Row(hd, i)
		row.cost = vec.Dot64(linalg.Row(d, i), row.hd)
	}
	return nil
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
func (t *bestTask) descend(a *bestRow) {
	hd := a.hd
	lo, hi := t.solution.Grid.Range()
	span, _ := t.span()
	h := t.q.h
	for range bestSweeps {
		moved := false
		for j, c := range a.codes {
			s := a.steps[j/span]
			old, diagonal := float64(s.value(int(c))), h.Data[j*h.Stride+j]
			code := s.code(old-hd[j]/diagonal, lo, hi)
			if code == int(c) || t.pruned(a.row, j) {
				continue
			}
			delta := float64(s.value(code)) - old
			gain := delta * (2*hd[j] + delta*diagonal)
			if !(gain < -leastGain*a.cost) {
				continue
			}
			vec.Axpy64(delta, linalg.Row(h, j), hd)
			a.codes[j], a.cost, moved = int8(code), a.cost+gain, true
		}
		if !moved {
			return
		}
	}
}
