package model

import (
	"context"
	"errors"
	"math"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/vec"
)

// Attention goes through a head's queries and keys in tiles of these sizes, and
// holds one tile of scores at a time.
const (
	queryTile = 64
	keyTile   = 256
)

// attention computes, for each sequence and head, the average of the values
// weighted by softmax(scale·q·k). Rows of scores are never whole: a running
// maximum and sum correct what was added before (Milakov and Gimelshein 2018;
// Dao et al. 2022, algorithm 1). A task is one head of one sequence, and its
// memory is a tile of scores and, with a rope, the head's turned keys.
func (e *Executor) attention(ctx context.Context, a *Attention, in []*Tensor, y *Tensor) error {
	lengths := y.sequences()
	if lengths == nil {
		return errors.New("rows without the lengths of their sequences")
	}
	longest := 0
	starts := make([]int, len(lengths))
	for s, n := range lengths {
		longest = max(longest, n)
		if s > 0 {
			starts[s] = starts[s-1] + lengths[s-1]
		}
	}
	turns, err := e.turns(ctx, a.Rope, longest)
	if err != nil {
		return err
	}
	out, _ := a.widths()
	return e.pool.For(ctx, len(lengths)*a.Heads, func(t int) error {
		s, h := t/a.Heads, t%a.Heads
		q, k, v := a.parts(in, h)
		head := attentionHead{
			Attention: a, turns: turns, rows: lengths[s], head: h,
			q: part(q, starts[s], 0), k: part(k, starts[s], 0), v: part(v, starts[s], 0),
			y: part(blas32.General{Stride: out, Data: y.Data}, starts[s], h*a.HeadDim),
		}
		buf := e.borrow(head.scratch())
		defer e.give(buf)
		return head.run(ctx, *buf)
	})
}

// parts returns the queries, keys and values of a head, from their first row and
// number on.
func (a *Attention) parts(in []*Tensor, head int) (q, k, v blas32.General) {
	wide, narrow := a.widths()
	kv := head / (a.Heads / a.KVHeads) * a.HeadDim
	if len(in) == 1 {
		all := blas32.General{Stride: wide + 2*narrow, Data: in[0].Data}
		if a.Interleaved {
			return a.interleavedParts(all, head)
		}
		return part(all, 0, head*a.HeadDim), part(all, 0, wide+kv), part(all, 0, wide+narrow+kv)
	}
	of := func(t *Tensor, stride, col int) blas32.General {
		return part(blas32.General{Stride: stride, Data: t.Data}, 0, col)
	}
	return of(in[0], wide, head*a.HeadDim), of(in[1], narrow, kv), of(in[2], narrow, kv)
}

// part returns m from a row and a column on, without its size.
func part(m blas32.General, row, col int) blas32.General {
	return blas32.General{Stride: m.Stride, Data: m.Data[min(row*m.Stride+col, len(m.Data)):]}
}

// block returns rows from … from+n−1 of the first cols columns.
func block(m blas32.General, from, n, cols int) blas32.General {
	return blas32.General{Rows: n, Cols: cols, Stride: m.Stride, Data: m.Data[from*m.Stride:]}
}

// attentionHead is one head of one sequence. Of q, k, v and y only Stride and
// Data are set; Data begins at the head's first number.
type attentionHead struct {
	*Attention
	turns      *turns
	rows       int
	head       int
	biases     []float32 // ALiBi's, of rows keys
	q, k, v, y blas32.General
}

// scratch returns how many numbers run needs.
func (h *attentionHead) scratch() int {
	n := queryTile * keyTile
	if h.Rope != nil {
		n += (h.rows + queryTile) * h.HeadDim
	}
	if h.ALiBi != nil {
		n += h.rows
	}
	return n
}

func (h *attentionHead) run(ctx context.Context, buf []float32) error {
	scores, buf := buf[:queryTile*keyTile], buf[queryTile*keyTile:]
	keys := h.k
	if h.ALiBi != nil {
		h.biases, buf = buf[:h.rows], buf[h.rows:]
		h.ALiBi.bias(h.biases, h.head, h.Heads)
	}
	var turned blas32.General
	if h.Rope != nil {
		turned = blas32.General{Stride: h.HeadDim, Data: buf[:queryTile*h.HeadDim]}
		keys = blas32.General{Stride: h.HeadDim, Data: buf[queryTile*h.HeadDim:]}
		h.turns.turn(keys, h.k, 0, h.rows, h.HeadDim)
	}
	for q0 := 0; q0 < h.rows; q0 += queryTile {
		n := min(queryTile, h.rows-q0)
		queries := block(h.q, q0, n, h.HeadDim)
		if h.Rope != nil {
			h.turns.turn(turned, part(h.q, q0, 0), q0, n, h.HeadDim)
			queries = block(turned, 0, n, h.HeadDim)
		}
		if err := h.tile(ctx, q0, queries, keys, scores); err != nil {
			return err
		}
	}
	return nil
}

// tile computes the outputs of queries q0 …, which are zero, from key tile to
// key tile.
func (h *attentionHead) tile(ctx context.Context, q0 int, queries, keys blas32.General, scores []float32) error {
	n := queries.Rows
	out := block(h.y, q0, n, h.HeadDim)
	var top [queryTile]float32 // each row's largest score so far
	var sum [queryTile]float64 // Σ e^(score − top) so far
	for r := range top {
		top[r] = float32(math.Inf(-1))
	}
	first, _ := h.visible(q0)
	_, end := h.visible(q0 + n - 1)
	for k0 := first / keyTile * keyTile; k0 < end; k0 += keyTile {
		count := min(keyTile, end-k0)
		s := blas32.General{Rows: n, Cols: count, Stride: keyTile, Data: scores}
		if err := blas.Gemm(ctx, nil, blas.NoTrans, blas.Trans, float32(h.Scale), queries, block(keys, k0, count, h.HeadDim), 0, s); err != nil {
			return err
		}
		for r := range n {
			from, to := h.visible(q0 + r)
			from, to = min(max(from-k0, 0), count), min(max(to-k0, 0), count)
			row := scores[r*keyTile:][:count]
			clear(row[:from])
			clear(row[to:])
			if from == to {
				clear(row)
				continue
			}
			h.lean(row[from:to], q0+r, k0+from)
			weigh(row[from:to], out.Data[r*out.Stride:][:h.HeadDim], &top[r], &sum[r])
		}
		if err := blas.Gemm(ctx, nil, blas.NoTrans, blas.NoTrans, 1, s, block(h.v, k0, count, h.HeadDim), 1, out); err != nil {
			return err
		}
	}
	for r := range n {
		row := out.Data[r*out.Stride:][:h.HeadDim]
		vec.Scale(row, row, float32(1/sum[r]))
	}
	return nil
}

// visible returns the keys from … to−1 that a query sees.
func (h *attentionHead) visible(query int) (from, to int) {
	if !h.Causal {
		return 0, h.rows
	}
	if h.Window > 0 {
		from = max(0, query-h.Window+1)
	}
	return from, query + 1
}

// weigh turns scores into e^(score − top) after raising top to their maximum,
// and scales what is in out and sum for the new top.
func weigh(scores, out []float32, top *float32, sum *float64) {
	if high := vec.Max(scores); !(high <= *top) { // a NaN goes on
		fade := math.Exp(float64(*top) - float64(high))
		*top, *sum = high, *sum*fade
		vec.Scale(out, out, float32(fade))
	}
	vec.ScaleShift(scores, scores, 1, -*top)
	vec.Exp(scores, scores)
	*sum += vec.Sum(scores)
}

// turns holds the cosines and sines of a rope, positions × Dims/2 each.
type turns struct {
	rope     *Rope
	cos, sin []float32
}

// turns computes the rope's angles for positions below n in float64; nil for no
// rope.
func (e *Executor) turns(ctx context.Context, r *Rope, n int) (*turns, error) {
	if r == nil {
		return nil, nil
	}
	pairs := r.Dims / 2
	t := &turns{rope: r, cos: make([]float32, n*pairs), sin: make([]float32, n*pairs)}
	frequencies := r.frequencies()
	return t, e.perRow(ctx, n, 32*pairs, func(p int) error { // a pair takes as long as some 32 sums
		for i, f := range frequencies {
			sin, cos := math.Sincos(float64(p) * f)
			t.sin[p*pairs+i], t.cos[p*pairs+i] = float32(sin), float32(cos)
		}
		return nil
	})
}

// turn writes n rows of src, which stand at positions from …, turned, to dst.
func (t *turns) turn(dst, src blas32.General, from, n, headDim int) {
	pairs, step, apart := t.rope.Dims/2, 1, t.rope.Dims/2
	if t.rope.Interleaved {
		step, apart = 2, 1
	}
	for r := range n {
		cos, sin := t.cos[(from+r)*pairs:][:pairs], t.sin[(from+r)*pairs:][:pairs]
		x, y := src.Data[r*src.Stride:][:headDim], dst.Data[r*dst.Stride:][:headDim]
		copy(y[2*pairs:], x[2*pairs:])
		for i, c := range cos {
			a, b, s := x[i*step], x[i*step+apart], sin[i]
			// The conversions forbid fused products on processors that have them.
			y[i*step] = float32(a*c) - float32(b*s)
			y[i*step+apart] = float32(b*c) + float32(a*s)
		}
	}
}
