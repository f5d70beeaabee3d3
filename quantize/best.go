package quantize

import (
	"cmp"
	"context"
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
// it has seen.
const (
	bestRows       = 32       // rows of one task, at most
	bestBytes      = 32 << 20 // of the copies of its rows, one for each grid
	bestShrinks    = 16       // ranges that are tried, of rangeWidest … rangeNarrowest
	rangeWidest    = 1.05     // of the whole range
	rangeNarrowest = 0.30
	bestKept       = 4  // results of a row that descent goes on with
	bestRounds     = 8  // turns of descent and fitting, at most
	bestSweeps     = 30 // passes of descent over a row's codes, at most
	leastGain      = 1e-9
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
		t := bestTask{solver: s, q: &problems[b.Group], gram: &s.Grams[b.Group], from: b.From, target: linalg.Rows(s.target, b.From, b.To)}
		return t.run(ctx)
	})
}

// quadratic is the damped error (ŵ−w̃)ᵀH(ŵ−w̃) of one group of a convolution, or
// of the whole layer.
type quadratic struct {
	h    blas64.General // H + λI over its unit
	ones blas64.General // 1_kᵀ·H·1_l, 1_k being ones at the inputs that share a row's k-th step
}

func newQuadratic(h blas64.General, span int) quadratic {
	groups := h.Rows / span
	q := quadratic{h: h, ones: linalg.NewGeneral(groups, groups)}
	for i := range h.Rows {
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
	if err := t.improve(ctx, kept, hw); err != nil {
		return err
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
	pass := recursion{upper: t.gram.Upper, order: t.gram.Order, grid: grid, damped: make([]float64, grids*rows)}
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

// keep adds an attempt to the best of a row, unless bestKept are better.
func (t *bestTask) keep(list []*attempt, cost float64, codes []int8, at func(col int) step) []*attempt {
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

// grids returns the grids to try and how many they are: that of the range search,
// and ranges of different widths with the zero point rounded down and up. Row r
// of grid k is row k·rows + r. A tensor's one step is not searched here.
func (t *bestTask) grids() (grid *layer.Grid, grids int) {
	rows, n := t.target.Rows, t.target.Cols
	span, groups := t.span()
	if t.o.Granularity == layer.PerTensor {
		return &t.solution.Grid, 1
	}
	zeros := []int{0, 1}
	if t.o.Symmetric {
		zeros = zeros[:1]
	}
	grids = 1 + bestShrinks*len(zeros)
	all := t.grid.emptyGrid(grids*rows, n, t.o.Granularity, t.o.GroupSize)
	for r := range rows {
		for g := range groups {
			w := linalg.Row(t.target, r)[g*span:][:span]
			setStep(&all, r*groups+g, stepAt(&t.solution.Grid, (t.from+r)*groups+g))
			lo, hi := slices.Min(w), slices.Max(w)
			for i := range bestShrinks {
				shrink := rangeWidest + (rangeNarrowest-rangeWidest)*float64(i)/(bestShrinks-1)
				for k, up := range zeros {
					row := (1+i*len(zeros)+k)*rows + r
					setStep(&all, row*groups+g, t.grid.affineZero(lo*shrink, hi*shrink, up))
				}
			}
		}
	}
	return &all, grids
}

// improve turns by descent and fitting each attempt into one that neither makes
// better.
func (t *bestTask) improve(ctx context.Context, kept [][]*attempt, hw blas64.General) error {
	var rows []*bestRow
	for r := range kept {
		for _, a := range kept[r] {
			rows = append(rows, &bestRow{attempt: a, target: linalg.Row(t.target, r), hw: linalg.Row(hw, r)})
		}
	}
	for range bestRounds {
		if len(rows) == 0 {
			return nil
		}
		if err := t.multiply(ctx, rows); err != nil {
			return err
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
		rows = slices.DeleteFunc(rows, func(row *bestRow) bool { return !row.fitted || !(row.cost < row.before*(1-leastGain)) })
	}
	return nil
}

// bestRow is an attempt that is being improved.
type bestRow struct {
	*attempt
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
			if code == int(c) {
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
