package quantize

import (
	"context"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// AWQ's searches (arXiv 2306.00978) as in its authors' code: weights are clipped
// at max|w|·(1 − i/20), i = 0 … 9, and inputs scaled by a power i/20, i = 0 … 19,
// of their size.
const (
	clipCandidates  = 10
	scaleCandidates = 20
	awqStep         = 1.0 / 20
	leastScale      = 1e-4 // before the scales are centred
	awqRows         = 256  // rows whose errors one task measures, at most
)

// clipGrid returns a grid each of whose pieces spans the target's weights
// clipped at ±max|w|·(1 − i/20), with the i of least output error of nearest
// rounding. AWQ's code measures it by the outputs of up to 512 tokens; their sum
// of squares over all calibration rows is dᵀH_gg·d, d being the weights' errors
// and H_gg the block of H that belongs to the inputs of the piece. A tensor's
// single piece sums it over the rows.
//
// Cost: 10·out·in·group multiply-adds, with one scale per row 10·out·in².
func (s *solver) clipGrid(ctx context.Context) (layer.Grid, error) {
	t := s.target
	grid := s.grid.emptyGrid(t.Rows, t.Cols, s.o.Granularity, s.o.GroupSize)
	perRow := max(1, grid.GroupsPerRow(t.Cols))
	span := t.Cols / perRow
	lows, highs := make([]float64, len(grid.Scales)), make([]float64, len(grid.Scales))
	least := make([]float64, len(grid.Scales))
	for r := range t.Rows {
		for k := range perRow {
			at := grid.Index(r, k*span, t.Cols)
			piece := linalg.Row(t, r)[k*span:][:span]
			lows[at], highs[at] = min(lows[at], slices.Min(piece)), max(highs[at], slices.Max(piece))
			least[at] = math.Inf(1)
		}
	}
	errs := make([]float64, t.Rows*perRow) // of a candidate, by row and group
	sums := make([]float64, len(grid.Scales))
	blocks := s.Blocks(min(awqRows, max(16, t.Rows/8)))
	for i := range clipCandidates {
		candidate := func(at int) step {
			most := max(-lows[at], highs[at]) * (1 - awqStep*float64(i))
			return s.grid.affine(max(lows[at], -most), min(highs[at], most))
		}
		err := s.Pool.For(ctx, len(blocks), func(n int) error {
			b := blocks[n]
			return s.clipErrors(ctx, b, span, func(row, col int) step { return candidate(grid.Index(row, col, t.Cols)) }, errs[b.From*perRow:])
		})
		if err != nil {
			return grid, err
		}
		clear(sums)
		for p, e := range errs {
			sums[grid.Index(p/perRow, p%perRow*span, t.Cols)] += e
		}
		for at, e := range sums {
			if i == 0 || e < least[at] {
				least[at] = e
				setStep(&grid, at, candidate(at))
			}
		}
	}
	return grid, nil
}

// clipErrors writes the output error of nearest rounding of each piece of span
// inputs of some rows, row after row. stepOf returns a piece's step.
func (s *solver) clipErrors(ctx context.Context, b gram.Block, span int, stepOf func(row, col int) step, errs []float64) error {
	n := s.target.Cols
	d, giveBack := s.Borrow(b.To-b.From, n)
	defer giveBack()
	hd, giveBack2 := s.Borrow(b.To-b.From, n)
	defer giveBack2()
	lo, hi := layer.CodeRange(s.o.Bits)
	for r := range d.Rows {
		for from := 0; from < n; from += span {
			at := stepOf(b.From+r, from)
			for c, v := range linalg.Row(s.target, b.From+r)[from : from+span] {
				d.Data[r*n+from+c] = float64(at.value(at.code(v, lo, hi))) - v
			}
		}
	}
	h := s.Problem.Moments.H[b.Group]
	for from := 0; from < n; from += span {
		block := blas64.General{Rows: span, Cols: span, Stride: h.Stride, Data: h.Data[from*h.Stride+from:]}
		if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, colsOf(d, from, span), block, 0, colsOf(hd, from, span)); err != nil {
			return err
		}
	}
	perRow := n / span
	for r := range d.Rows {
		for k := range perRow {
			errs[r*perRow+k] = vec.Dot64(linalg.Row(d, r)[k*span:][:span], linalg.Row(hd, r)[k*span:][:span])
		}
	}
	return nil
}

func colsOf(a blas64.General, from, cols int) blas64.General {
	return blas64.General{Rows: a.Rows, Cols: cols, Stride: a.Stride, Data: a.Data[from:]}
}

// InputScales returns by what AWQ multiplies the weights of each input of the
// layers that read one value, so that the inputs themselves are to be divided by
// it (arXiv 2306.00978, section 3.2): s = size^α, at least 1e-4, divided by
// √(max·min). Of α = 0, 0.05, … 0.95 that counts with the least sum over the
// layers of
//
//	‖XWᵀ − X̃Ŵᵀ‖²,  Ŵ = nearest(W·diag(s))·diag(s)⁻¹
//
// on min-max grids. α = 0 leaves all as it is. AWQ's size of an input is the mean
// of |x|; moments do not hold it, so it is the root of the mean of x² here.
//
// The problems must have the same moments and one group each; options[i] belongs
// to problems[i]. Both are read only. Errors: as Factors.Solve.
//
// Cost: 20·out·in² multiply-adds for each layer. Memory: an out×in matrix of
// float32, and one of float64 where the streams differ, for one layer at a time.
func InputScales(ctx context.Context, p *pool.Pool, problems []*layer.Problem, options []Options) ([]float64, error) {
	if p == nil {
		p = pool.New(1)
	}
	var candidates [scaleCandidates][]float64
	var errs [scaleCandidates]float64
	for i, prob := range problems {
		o := options[i].WithDefaults()
		o.BiasCorrection = false // not its sums' place to be refused
		if err := o.Check(); err != nil {
			return nil, err
		}
		if err := checkProblem(prob, o); err != nil {
			return nil, err
		}
		switch {
		case prob.Moments == nil:
			return nil, prob.Bad("moments", -1, "AWQ's scales need them, the problem has none")
		case prob.Moments != problems[0].Moments:
			return nil, prob.Bad("moments", -1, "they are not those of the first layer")
		case prob.Groups != 1:
			return nil, prob.Bad("groups", -1, "%d, want 1", prob.Groups)
		}
		if i == 0 {
			for a := range candidates {
				candidates[a] = powerScales(prob.Moments, awqStep*float64(a))
			}
		}
		o, _ = o.Fit(prob.Weight.Cols)
		s := &solver{Target: &gram.Target{Pool: p, Problem: prob}, o: o, grid: newRanger(o, prob)}
		if err := s.addScaleErrors(ctx, candidates[:], errs[:]); err != nil {
			return nil, err
		}
	}
	best := 0
	for a, e := range errs {
		if e < errs[best] {
			best = a
		}
	}
	return candidates[best], nil
}

// powerScales returns (H_jj/rows)^(α/2) of each input, at least leastScale, over
// the geometric mean of the largest and the smallest.
func powerScales(m *layer.Moments, alpha float64) []float64 {
	h := m.H[0]
	scales := make([]float64, h.Rows)
	for j := range scales {
		scales[j] = max(math.Pow(math.Sqrt(h.Data[j*h.Stride+j]/float64(m.Rows)), alpha), leastScale)
	}
	centre := math.Sqrt(slices.Max(scales)) * math.Sqrt(slices.Min(scales))
	for j := range scales {
		scales[j] /= centre
	}
	return scales
}

// addScaleErrors adds to each candidate's error what is the layer's. With
// d = ŵ − w a row's error is dᵀ(Hd + 2(H − G)w) and a constant, left out.
func (s *solver) addScaleErrors(ctx context.Context, candidates [][]float64, errs []float64) error {
	w, m := s.Problem.Weight, s.Problem.Moments
	blocks := s.Blocks(min(awqRows, max(16, w.Rows/8)))
	var pull blas64.General // (H − G)w of each row, where the streams differ
	if m.G != nil {
		pull = linalg.NewGeneral(w.Rows, w.Cols)
		err := s.Pool.For(ctx, len(blocks), func(i int) error {
			b := blocks[i]
			row, giveBack := s.Borrow(b.To-b.From, w.Cols)
			defer giveBack()
			for r := range row.Rows {
				linalg.Widen(linalg.Row(row, r), rowOf32(w, b.From+r))
			}
			dst := linalg.Rows(pull, b.From, b.To)
			if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, row, m.H[0], 0, dst); err != nil {
				return err
			}
			return blas.Gemm64(ctx, nil, blas.NoTrans, blas.Trans, -1, row, m.G[0], 1, dst)
		})
		if err != nil {
			return err
		}
	}
	scaled := blas32.General{Rows: w.Rows, Cols: w.Cols, Stride: w.Cols, Data: make([]float32, w.Rows*w.Cols)}
	sums := make([]float64, len(blocks))
	for a, scales := range candidates {
		for r := range w.Rows {
			copy(rowOf32(scaled, r), rowOf32(w, r))
		}
		ScaleWeight(scaled, scales)
		grid := s.grid.minMaxGrid(scaled, s.o.Granularity, s.o.GroupSize)
		err := s.Pool.For(ctx, len(blocks), func(i int) (err error) {
			sums[i], err = s.scaleError(ctx, blocks[i], scaled, scales, &grid, pull)
			return err
		})
		if err != nil {
			return err
		}
		for _, e := range sums {
			errs[a] += e
		}
	}
	return nil
}

// scaleError returns the error of some rows of W·diag(scales), rounded to
// nearest, without its constant.
func (s *solver) scaleError(ctx context.Context, b gram.Block, scaled blas32.General, scales []float64, grid *layer.Grid, pull blas64.General) (float64, error) {
	n := scaled.Cols
	d, giveBack := s.Borrow(b.To-b.From, n)
	defer giveBack()
	hd, giveBack2 := s.Borrow(b.To-b.From, n)
	defer giveBack2()
	lo, hi := grid.Range()
	for r := range d.Rows {
		row := linalg.Row(d, r)
		w := rowOf32(s.Problem.Weight, b.From+r)
		for c, v := range rowOf32(scaled, b.From+r) {
			at := stepAt(grid, grid.Index(b.From+r, c, n))
			row[c] = float64(at.value(at.code(float64(v), lo, hi)))/scales[c] - float64(w[c])
		}
	}
	if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, d, s.Problem.Moments.H[0], 0, hd); err != nil {
		return 0, err
	}
	sum := 0.0
	for r := range d.Rows {
		row := linalg.Row(d, r)
		sum += vec.Dot64(row, linalg.Row(hd, r))
		if pull.Data != nil {
			sum += 2 * vec.Dot64(row, linalg.Row(pull, b.From+r))
		}
	}
	return sum, nil
}

// ScaleWeight multiplies the column of each input by its scale, in place.
func ScaleWeight(w blas32.General, scales []float64) {
	for r := range w.Rows {
		for c, v := range rowOf32(w, r) {
			w.Data[r*w.Stride+c] = float32(float64(v) * scales[c])
		}
	}
}

// ScaleMoments makes moments of one group those of inputs that are divided by
// scales in both streams, in place. Of a weight that ScaleWeight has multiplied
// by the same scales the outputs stay, and so do their energies.
func ScaleMoments(m *layer.Moments, scales []float64) {
	matrices := slices.Concat(m.H, m.G)
	for _, a := range matrices {
		for i := range a.Rows {
			row := linalg.Row(a, i)
			for j := range row {
				row[j] /= scales[i] * scales[j]
			}
		}
	}
	for _, r := range m.Residual {
		for _, a := range r.Cross {
			for i := range a.Rows {
				for j, v := range linalg.Row(a, i) {
					a.Data[i*a.Stride+j] = v / scales[j]
				}
			}
		}
	}
	if m.Sample != nil {
		for _, a := range slices.Concat(m.Sample.X, m.Sample.Xt) {
			for i, v := range a.Data {
				a.Data[i] = float32(float64(v) / scales[i%a.Stride])
			}
		}
	}
	shared := len(m.SumX) > 0 && &m.SumX[0] == &m.SumXt[0]
	for j, s := range scales {
		m.SumXt[j] /= s
		if !shared {
			m.SumX[j] /= s
		}
	}
}
