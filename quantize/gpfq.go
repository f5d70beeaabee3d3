package quantize

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"

	gonum "gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// path is GPFQ's pass over the inputs of some rows (Lybrand and Saab, arXiv
// 2010.11189; Zhang, Zhou and Saab, arXiv 2201.11113). With the columns X_t
// and X̃_t of the data it keeps an error u, from 0, and for each input in turn
//
//	u += w_t·X_t,  v = ⟨X̃_t, u⟩/‖X̃_t‖²,  q_t = Q(v),  u −= q_t·X̃_t
//
// so that q_t is the level that leaves the least ‖Σ_{j≤t} w_jX_j − q_jX̃_j‖². By
// the moments, v is
//
//	v = (Σ_{j≤t} G_tj·w_j − Σ_{j<t} H_tj·q_j) / H_tt
//
// and where G = H, v = w_t + Σ_{j<t} H_tj·(w_j − q_j)/H_tt. SPFQ (arXiv
// 2309.10975) differs in Q alone, which then rounds up or down at random, without bias.
type path struct {
	h     blas64.General // H, its inputs in the order of the pass
	g     blas64.General // G in that order; of no rows where the pass needs none
	diag  []float64      // what v is divided by; 0 for a dead input
	order []int          // the input that stands at each place; nil for 0, 1, …
	grid  *layer.Grid
	round rounding
	mask  *layer.Mask // the survivors; nil for all
	seed  uint64      // of stochastic rounding, beside the row
}

// followPath solves all rows by GPFQ or SPFQ. An aligned target is quantized
// with H + λI alone, λ being that of the alignment; else the pass takes the
// difference between the streams from G, and is not damped.
//
// Cost for an out×in weight: out·in²/2 multiply-adds, with G out·in²/2 for its
// part and out·in² for the bound; act_order copies H and G. Memory: some rows of
// float64 for each worker.
func (s *solver) followPath(ctx context.Context) error {
	paths, dead := make([]path, len(s.Grams)), 0
	for i := range paths {
		paths[i] = s.newPath(i)
		if s.Grams[i].Dead {
			dead++
		}
	}
	if dead > 0 {
		s.fallBack(string(s.o.Method), "weights of 0", fmt.Sprintf("no calibration row uses any input of %d of %d groups", dead, len(s.Grams)))
	}
	n := s.target.Cols
	bounds := make([]float64, s.target.Rows)
	blocks := s.Blocks(min(gptqRows, max(16, s.target.Rows/8)))
	err := s.Pool.For(ctx, len(blocks), func(i int) error {
		b := blocks[i]
		return s.followRows(ctx, &paths[b.Group], b, s.solution.Codes[b.From*n:b.To*n], bounds[b.From:b.To])
	})
	bound := 0.0
	for _, v := range bounds {
		bound += v
	}
	if err == nil && s.Problem.Start != nil {
		bound, err = s.boundFromStart(ctx, bound)
	}
	if finite(bound) {
		s.solution.Errors.Bound = bound
	}
	return err
}

// boundFromStart returns what the error cannot exceed where the pass begins with
// the values V that steps before have left, and its own error ‖X̃(V−Ŵ)ᵀ‖² cannot
// exceed a bound: ‖Y* − X̃Ŵᵀ‖ ≤ ‖Y* − X̃Vᵀ‖ + ‖X̃(V−Ŵ)ᵀ‖.
func (s *solver) boundFromStart(ctx context.Context, bound float64) (float64, error) {
	sums, err := s.Errors(ctx, nil, func(r int, dst []float32) { copy(dst, s.Problem.Start.Values[r*len(dst):]) })
	if err != nil {
		return 0, err
	}
	both := math.Sqrt(sums[0]) + math.Sqrt(bound)
	return both * both, nil
}

func (s *solver) newPath(group int) path {
	gram, m := &s.Grams[group], s.Problem.Moments
	p := path{h: gram.H, order: gram.Order, grid: &s.solution.Grid, round: s.o.rounding(), mask: s.mask, diag: make([]float64, gram.H.Rows)}
	if m.G != nil && !s.o.Align && s.Problem.Start == nil {
		p.g = m.G[group]
	}
	if p.order != nil || gram.Sum != nil {
		p.h = inOrderOf(p.h, gram.Sum, gram.Sum, p.order)
		if p.g.Rows > 0 {
			p.g = inOrderOf(p.g, gram.Sum, s.originalMean(group), p.order)
		}
	}
	for t := range p.diag {
		p.diag[t] = p.h.Data[t*p.h.Stride+t]
		if s.o.Align && p.diag[t] > 0 {
			p.diag[t] += gram.Lambda * gram.Unit
		}
	}
	hash := fnv.New64a()
	_, _ = hash.Write(binary.LittleEndian.AppendUint64(nil, s.o.GPFQ.Seed)) // never fails
	_, _ = hash.Write([]byte(s.Problem.Layer))
	p.seed = hash.Sum64()
	return p
}

// originalMean returns Σx/√rows of a group, nil where nothing is centred.
func (s *solver) originalMean(group int) []float64 {
	m := s.Problem.Moments
	if s.Grams[group].Sum == nil {
		return nil
	}
	mean := make([]float64, m.Inputs)
	for i, v := range m.SumX[group*m.Inputs:][:m.Inputs] {
		mean[i] = v / math.Sqrt(float64(m.Rows))
	}
	return mean
}

// centredEnergy returns ‖Xw‖² of some rows, less their mean where a bias takes
// that.
func (s *solver) centredEnergy(b gram.Block) []float64 {
	energy := slices.Clone(s.Problem.Energy()[b.From:b.To])
	if s.Grams[b.Group].Sum == nil {
		return energy
	}
	w := make([]float64, s.Problem.Weight.Cols)
	for r := range energy {
		linalg.Widen(w, rowOf32(s.Problem.Weight, b.From+r))
		sum := s.Sum(b.From+r, w)
		energy[r] = max(energy[r]-sum*sum/float64(s.Problem.Moments.Rows), 0)
	}
	return energy
}

// inOrderOf returns a copy of m − left·rightᵀ, its rows and columns in the given
// order. nil vectors are zeros, and a nil order is 0, 1, ….
func inOrderOf(m blas64.General, left, right []float64, order []int) blas64.General {
	a := linalg.NewGeneral(m.Rows, m.Cols)
	shifted := make([]float64, m.Cols)
	for i := range a.Rows {
		from := i
		if order != nil {
			from = order[i]
		}
		copy(shifted, linalg.Row(m, from))
		if left != nil {
			vec.Axpy64(-left[from], right, shifted)
		}
		gram.Gather(linalg.Row(a, i), shifted, order)
	}
	return a
}

// followRows writes the codes of a block of rows, and for each row what its
// error cannot exceed.
//
// The bound: let ε_t = v_t − q_t, D the diagonal of H and L its lower triangle
// with the diagonal. All steps together say L·q = T − Dε, T_t = Σ_{j≤t} G_tj·w_j,
// so q = q* − d with Lq* = T and Ld = Dε: q* is what the pass would give without
// rounding. H being L + Lᵀ − D,
//
//	dᵀHd = 2dᵀDε − dᵀDd = εᵀDε − (d−ε)ᵀD(d−ε) ≤ Σ H_tt·ε_t²
//
// and by the triangle inequality
//
//	‖Xw − X̃q‖ ≤ ‖Xw − X̃q*‖ + (Σ H_tt·ε_t²)^½
//
// Where G = H, q* is w and the first term 0; what a start adds, boundFromStart
// says. For an aligned target q* is w̃, and
// by the split of the squares in H + λI the error is at most the floor plus the
// sum. |ε_t| is at most half a step (SPFQ: a step) unless v_t lies outside the
// grid; then it counts as it is, so the bound holds whatever is clipped. Where
// nothing is, it is known before anything is rounded. SPFQ's expected sum is at
// most a quarter of what the bound takes.
func (s *solver) followRows(ctx context.Context, p *path, b gram.Block, codes []int8, bounds []float64) error {
	rows, n := b.To-b.From, s.target.Cols
	w, giveBack := s.Borrow(rows, n)
	defer giveBack()
	carry, giveBackToo := s.Borrow(rows, n)
	defer giveBackToo()
	for r := range rows {
		gram.Gather(linalg.Row(w, r), linalg.Row(s.target, b.From+r), p.order)
	}
	if p.g.Rows == 0 {
		clear(carry.Data)
		if err := p.run(ctx, w, carry, b.From, codes, bounds); err != nil {
			return err
		}
		for r := range bounds {
			if s.Floor != nil && s.Problem.Start == nil {
				bounds[r] += max(s.Floor[b.From+r], 0)
			}
		}
		return nil
	}
	rest := make([]float64, rows)
	if err := p.unrounded(ctx, w, carry, s.centredEnergy(b), rest); err != nil {
		return err
	}
	// T holds all that v takes from w, so the pass is that of weights 0 whose
	// carry begins with T.
	for r := range rows {
		gram.Gather(linalg.Row(carry, r), linalg.Row(s.target, b.From+r), p.order)
	}
	if err := linalg.MultiplyTriangular(ctx, nil, gonum.Lower, blas.Trans, p.g, carry); err != nil {
		return err
	}
	clear(w.Data)
	if err := p.run(ctx, w, carry, b.From, codes, bounds); err != nil {
		return err
	}
	for r, sum := range bounds {
		both := math.Sqrt(rest[r]) + math.Sqrt(sum)
		bounds[r] = both * both
	}
	return nil
}

// run writes the codes of some rows, the first of which stands at row first of
// the grid, and Σ diag·ε² of each to sums. w holds the rows in the order of the
// pass, carry what is added to diag·w before an input is divided by its diag.
// Both are overwritten, w with w − q.
func (p *path) run(ctx context.Context, w, carry blas64.General, first int, codes []int8, sums []float64) error {
	n := w.Cols
	draws := make([]rand.PCG, w.Rows)
	for r := range draws {
		draws[r].Seed(p.seed, uint64(first+r))
	}
	for start := 0; start < n; start += gptqBlock {
		end := min(start+gptqBlock, n)
		for r := range w.Rows {
			if err := ctx.Err(); err != nil {
				return err
			}
			sums[r] += p.runRow(linalg.Row(w, r), linalg.Row(carry, r), first+r, start, end, codes[r*n:][:n], &draws[r])
		}
		if end == n {
			break
		}
		done := blas64.General{Rows: w.Rows, Cols: end - start, Stride: w.Stride, Data: w.Data[start:]}
		later := blas64.General{Rows: w.Rows, Cols: n - end, Stride: carry.Stride, Data: carry.Data[end:]}
		h := blas64.General{Rows: end - start, Cols: n - end, Stride: p.h.Stride, Data: p.h.Data[start*p.h.Stride+end:]}
		if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, done, h, 1, later); err != nil {
			return err
		}
	}
	return nil
}

// roundOff widens steps in the bound for what values lose in float32.
const roundOff = 1 + 0x1p-15

// runRow rounds the inputs start … end−1 of one row and returns their Σ diag·ε²,
// with ε no less than what rounding within the grid may give.
func (p *path) runRow(w, carry []float64, row, start, end int, codes []int8, draw *rand.PCG) float64 {
	reach, sum := p.round.reach()*roundOff, 0.0
	for t := start; t < end; t++ {
		col := t
		if p.order != nil {
			col = p.order[t]
		}
		s := stepAt(p.grid, p.grid.Index(row, col, len(w)))
		diag := p.diag[t]
		if diag == 0 {
			codes[col] = int8(p.round.idle(w[t], s))
			w[t] = 0
			continue
		}
		v := w[t] + (carry[t]+vec.Dot64(p.h.Data[t*p.h.Stride+start:][:t-start], w[start:t]))/diag
		if math.IsNaN(v) {
			v = 0 // moments overflow, which the errors will say
		}
		code := p.round.code(v, s, draw)
		if p.mask != nil && !p.mask.At(row, col) {
			code = s.zero
		}
		codes[col] = int8(code)
		value := float64(s.value(code))
		w[t] -= value
		off := max(reach*float64(s.scale), math.Abs(v-value))
		sum += diag * off * off
	}
	return sum
}

// unrounded writes ‖Xw − X̃q*‖² of each row to rest, q* being what the pass gives
// without rounding. With S_t = Σ_{j>t} G_tj·w_j it is ‖Xw‖² − 2q*ᵀS − q*ᵀDq*,
// for q*ᵀHq* = 2q*ᵀT − q*ᵀDq* and Gw = T + S. w holds the rows in the order of
// the pass and is overwritten, and so is scratch.
func (p *path) unrounded(ctx context.Context, w, scratch blas64.General, energy, rest []float64) error {
	q := scratch
	copy(q.Data, w.Data)
	if err := linalg.MultiplyTriangular(ctx, nil, gonum.Lower, blas.Trans, p.g, q); err != nil {
		return err
	}
	h, cloned := p.h, false
	for t, d := range p.diag {
		if d > 0 {
			continue
		}
		if !cloned {
			h, cloned = linalg.Clone(p.h), true
		}
		clear(linalg.Row(h, t))
		h.Data[t*h.Stride+t] = 1
		for r := range q.Rows {
			q.Data[r*q.Stride+t] = 0
		}
	}
	if err := linalg.SolveTriangular(ctx, nil, gonum.Right, gonum.Lower, blas.Trans, h, q); err != nil {
		return err
	}
	for r := range q.Rows { // w_t's own part of what follows is not of S
		rest[r] = energy[r]
		for t, v := range linalg.Row(w, r) {
			qt := q.Data[r*q.Stride+t]
			rest[r] += 2*qt*p.g.Data[t*p.g.Stride+t]*v - qt*qt*p.diag[t]
		}
	}
	if err := linalg.MultiplyTriangular(ctx, nil, gonum.Upper, blas.Trans, p.g, w); err != nil {
		return err
	}
	for r := range q.Rows {
		rest[r] = max(rest[r]-2*vec.Dot64(linalg.Row(q, r), linalg.Row(w, r)), 0)
	}
	return nil
}
