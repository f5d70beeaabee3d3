package gram

import (
	"context"
	"math"
	"sync"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// Target is a layer's problem beside the factors of its H and what follows from
// both: the weights of least error, and the error that no weights can take back.
type Target struct {
	Pool    *pool.Pool
	Problem *layer.Problem
	Grams   []Gram // one per group of a convolution; nil without moments

	// Anchor is W̃ = W(G+λI)ᵀ(H+λI)⁻¹, the weights of least damped error, or
	// (P+λW)(H+λI)⁻¹ with P = Y*ᵀX̃ of another target Y*. It is W where the streams
	// are the same, and without moments.
	Anchor blas64.General

	// Floor is what no weights can take back of each row's error; nil where the
	// streams are the same.
	Floor []float64

	residual *layer.Residual // the layer's, where it is asked for; else nil

	// scratch are rows that tasks have worked on. Not a sync.Pool, which would
	// keep them from the collector for a while.
	scratch [][]float64
	mu      sync.Mutex
}

// Target returns a layer's target, whose moments must be those of the factors. p
// may not be nil. residual extends the target by what the other term of the sum
// that the layer writes into has lost, where the moments say that.
//
// Cost, beside that of the factors: 2·out·in² multiply-adds where the streams
// differ. Memory: an out×in matrix of float64.
func (f *Factors) Target(ctx context.Context, p *pool.Pool, prob *layer.Problem, kind Kind, residual bool) (*Target, error) {
	t := &Target{Pool: p, Problem: prob}
	if m := prob.Moments; m != nil && residual {
		t.residual = m.Residual[prob.Layer]
	}
	var err error
	if t.Grams, err = f.Grams(ctx, p, kind); err != nil {
		return nil, err
	}
	return t, t.align(ctx)
}

// Crossed reports whether the target may differ from W: whether there are
// moments, and the streams differ.
func (t *Target) Crossed() bool {
	m := t.Problem.Moments
	return m != nil && (m.G != nil || t.residual != nil)
}

// Original returns a copy of W in float64.
func (t *Target) Original() blas64.General {
	w := linalg.NewGeneral(t.Problem.Weight.Rows, t.Problem.Weight.Cols)
	for r := range w.Rows {
		linalg.Widen(linalg.Row(w, r), t.row(r))
	}
	return w
}

func (t *Target) row(r int) []float32 {
	w := t.Problem.Weight
	return w.Data[r*w.Stride:][:w.Cols]
}

func (t *Target) align(ctx context.Context) error {
	if !t.Crossed() {
		t.Anchor = t.Original()
		return nil
	}
	w := t.Problem.Weight
	t.Anchor, t.Floor = linalg.NewGeneral(w.Rows, w.Cols), make([]float64, w.Rows)
	for _, b := range t.Blocks(alignRows) {
		if err := t.alignBlock(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// alignRows is how many rows of W are in float64 at once.
const alignRows = 1024

func (t *Target) alignBlock(ctx context.Context, b Block) error {
	gram, m, n := &t.Grams[b.Group], t.Problem.Moments, t.Problem.Weight.Cols
	w, a := linalg.NewGeneral(b.To-b.From, n), linalg.Rows(t.Anchor, b.From, b.To)
	for r := range w.Rows {
		linalg.Widen(linalg.Row(w, r), t.row(b.From+r))
		copy(linalg.Row(a, r), linalg.Row(w, r))
	}
	if err := blas.Gemm64(ctx, t.Pool, blas.NoTrans, blas.Trans, 1/gram.Unit, w, m.Cross(b.Group), gram.Lambda, a); err != nil {
		return err
	}
	floor := t.Floor[b.From:b.To]
	energy := make([]float64, len(floor))
	for r := range energy {
		energy[r] = t.energy()[b.From+r]
		if t.residual != nil {
			first, _ := t.Problem.GroupRows(b.Group)
			vec.Axpy64(1/gram.Unit, linalg.Row(t.residual.Cross[b.Group], b.From+r-first), linalg.Row(a, r))
		}
		if gram.Sum != nil {
			mean := t.Sum(b.From+r, linalg.Row(w, r)) / math.Sqrt(float64(m.Rows))
			vec.Axpy64(-mean/gram.Unit, gram.Sum[:n], linalg.Row(a, r))
			energy[r] -= mean * mean
		}
	}
	if err := gram.Solve(ctx, t.Pool, a, floor); err != nil {
		return err
	}
	for r, reached := range floor {
		reached -= gram.Lambda * vec.Dot64(linalg.Row(w, r), linalg.Row(w, r))
		floor[r] = energy[r] - gram.Unit*reached
	}
	return nil
}

// energy returns ‖y*‖² of each output.
func (t *Target) energy() []float64 {
	if t.residual != nil {
		return t.residual.Energy
	}
	return t.Problem.Energy()
}

// Sum returns Σy* of output r, whose weights are w.
func (t *Target) Sum(r int, w []float64) float64 {
	m := t.Problem.Moments
	sum := vec.Dot64(w, m.SumX[t.Problem.Group(r)*m.Inputs:][:m.Inputs])
	if t.residual != nil {
		sum += t.residual.Sum[r]
	}
	return sum
}

// Block is one task: rows From … To−1, all of one group.
type Block struct{ Group, From, To int }

// Blocks cuts the weight's rows into blocks of at most size rows, none of which
// crosses a group's border.
func (t *Target) Blocks(size int) []Block {
	var blocks []Block
	for g := range t.Problem.Groups {
		from, to := t.Problem.GroupRows(g)
		for r := from; r < to; r += size {
			blocks = append(blocks, Block{g, r, min(r+size, to)})
		}
	}
	return blocks
}

// Borrow returns a rows×cols matrix of any content, and how to give it back.
func (t *Target) Borrow(rows, cols int) (m blas64.General, giveBack func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var data []float64
	if last := len(t.scratch) - 1; last >= 0 {
		data, t.scratch = t.scratch[last], t.scratch[:last]
	}
	if cap(data) < rows*cols {
		data = make([]float64, rows*cols)
	}
	return blas64.General{Rows: rows, Cols: cols, Stride: cols, Data: data[:rows*cols]}, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.scratch = append(t.scratch, data)
	}
}

// measureRows is the number of rows whose errors one task measures.
const measureRows = 256

// Errors returns ‖XWᵀ − X̃Ŵᵀ‖², no damping, for each candidate Ŵ, a function
// that writes a row of it. With b = (G+λI)w and w̃ = (H+λI)⁻¹b, a row's error is
//
//	(ŵ−w̃)ᵀ(H+λI)(ŵ−w̃) − λ‖ŵ−w‖² + (e − w̃ᵀb + λ‖w‖²)
//
// whose last part is what no Ŵ can take back: 0 where both streams are the same,
// which makes w̃ = w. known are the first candidate's damped errors over H's
// unit, by row, where they are known; else nil.
//
// Cost: out·in² multiply-adds for each candidate.
func (t *Target) Errors(ctx context.Context, known []float64, candidates ...func(r int, dst []float32)) ([]float64, error) {
	n := t.Anchor.Cols
	blocks := t.Blocks(min(measureRows, max(16, t.Anchor.Rows/8)))
	errs := make([]float64, len(blocks)*len(candidates))
	err := t.Pool.For(ctx, len(blocks), func(i int) error {
		b := blocks[i]
		g := &t.Grams[b.Group]
		d, giveBack := t.Borrow(b.To-b.From, n)
		defer giveBack()
		damped := make([]float64, b.To-b.From)
		apart := make([]float64, len(damped)) // ‖ŵ − w‖²
		values := make([]float32, n)
		for c, write := range candidates {
			for r := range d.Rows {
				write(b.From+r, values)
				row := linalg.Row(d, r)
				linalg.Widen(row, values)
				vec.Axpy64(-1, linalg.Row(t.Anchor, b.From+r), row)
				apart[r] = 0
				for j, w := range t.row(b.From + r) {
					off := float64(values[j]) - float64(w)
					apart[r] += off * off
				}
			}
			if c == 0 && known != nil {
				copy(damped, known[b.From:b.To])
			} else if err := g.Energies(ctx, t.Pool, d, damped); err != nil {
				return err
			}
			sum := 0.0
			for r, e := range damped {
				e = g.Unit * (e - g.Lambda*apart[r])
				if t.Floor != nil {
					e += t.Floor[b.From+r]
				}
				sum += max(e, 0) // below 0 by rounding only
			}
			errs[i*len(candidates)+c] = sum
		}
		return nil
	})
	sums := make([]float64, len(candidates))
	for i, e := range errs {
		sums[i%len(candidates)] += e
	}
	return sums, err
}

// Bias returns the mean error of each output over the calibration rows, which is
// what to add to the layer's bias: (Σy* − Ŵ·Σx̃)/rows. write gives a row of Ŵ.
func (t *Target) Bias(write func(r int, dst []float32)) []float64 {
	m, n := t.Problem.Moments, t.Anchor.Cols
	bias := make([]float64, t.Anchor.Rows)
	row, wide := make([]float32, n), make([]float64, n)
	for r := range bias {
		linalg.Widen(wide, t.row(r))
		sum := t.Sum(r, wide)
		write(r, row)
		linalg.Widen(wide, row)
		sum -= vec.Dot64(wide, m.SumXt[t.Problem.Group(r)*n:][:n])
		bias[r] = sum / float64(m.Rows)
	}
	return bias
}
