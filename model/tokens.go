package model

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/vec"
)

// Rows reads one row of a table of Embedding.Rows × Embedding.Width. It may be
// called from several goroutines.
type Rows func(name string, row int, dst []float32) error

// ReadRows makes the executor read the rows of embeddings that it needs with
// r, in place of whole tables through its Weights. Call it before the first
// step.
func (e *Executor) ReadRows(r Rows) { e.rows = r }

// NewTokens returns a language model's input: the ids of some sequences, which
// it copies.
func NewTokens(sequences ...[]uint32) *Tensor {
	x := &Tensor{Lengths: make([]int, len(sequences))}
	for i, s := range sequences {
		x.Lengths[i] = len(s)
		x.Tokens = append(x.Tokens, s...)
	}
	x.Shape = []int{len(x.Tokens), 1}
	return x
}

// checkLengths checks that the sequences are those of another input of the same
// operation, and that they hold all rows.
func (t *Tensor) checkLengths(first *Tensor) error {
	if !slices.Equal(t.Lengths, first.Lengths) {
		return fmt.Errorf("sequences of %v tokens beside sequences of %v", t.Lengths, first.Lengths)
	}
	if t.Lengths == nil {
		return nil
	}
	left := t.Shape[0]
	for _, n := range t.Lengths {
		if n < 0 || n > left {
			return fmt.Errorf("sequences of %v tokens in %d rows", t.Lengths, t.Shape[0])
		}
		left -= n
	}
	if left != 0 {
		return fmt.Errorf("sequences of %v tokens in %d rows", t.Lengths, t.Shape[0])
	}
	return nil
}

// computeTokens is compute for the operations of language models.
func (e *Executor) computeTokens(ctx context.Context, o *Op, in []*Tensor, y *Tensor) error {
	switch o.Kind {
	case Embed:
		return e.embed(ctx, o.Embedding, in[0], y)
	case RMSNorm, LayerNorm:
		return e.norm(ctx, o, in[0], y)
	case Attend:
		return e.attention(ctx, o.Attention, in, y)
	case SiLUMul:
		a, b := in[0].Data, in[1].Data
		return e.flat(ctx, y, func(from, to int) {
			dst := y.Data[from:to]
			vec.SiLU(dst, a[from:to])
			vec.Mul(dst, dst, b[from:to])
		})
	case GELU:
		return e.flat(ctx, y, func(from, to int) { vec.GELU(y.Data[from:to], in[0].Data[from:to]) })
	case GELUTanh:
		return e.flat(ctx, y, func(from, to int) { vec.GELUTanh(y.Data[from:to], in[0].Data[from:to]) })
	case Route:
		return e.route(ctx, o, in[0], y)
	case Dispatch:
		return e.dispatch(ctx, o, in[0], in[1], y)
	case Combine:
		return e.combine(ctx, in, y)
	case ScaleRows:
		return e.scaleRows(ctx, in[0], in[1], y)
	}
	return e.computeEncoder(ctx, o, in, y)
}

// taskFloats is about how many numbers a task has where each takes little time.
const taskFloats = 1 << 14

// flat calls f for parts of y's numbers, in parallel.
func (e *Executor) flat(ctx context.Context, y *Tensor, f func(from, to int)) error {
	return e.pool.For(ctx, ceil(len(y.Data), taskFloats), func(t int) error {
		f(t*taskFloats, min((t+1)*taskFloats, len(y.Data)))
		return nil
	})
}

// perRow calls f for each of n rows of the given width, in parallel.
func (e *Executor) perRow(ctx context.Context, n, width int, f func(r int) error) error {
	per := max(1, taskFloats/width)
	return e.pool.For(ctx, ceil(n, per), func(t int) error {
		for r := t * per; r < min((t+1)*per, n); r++ {
			if err := f(r); err != nil {
				return err
			}
		}
		return nil
	})
}

func ceil(a, b int) int { return (a + b - 1) / b }

// TokenError says that a token cannot be looked up.
type TokenError struct {
	Sequence, Position int    // which token of the batch
	Token              uint32 // its id
	Rows               int    // of the table that has no row for it
	Positions          bool   // the table is that of positions
}

func (e *TokenError) Error() string {
	if e.Positions {
		return fmt.Sprintf("sequence %d is longer than the %d tokens that the model has positions for: cut it", e.Sequence, e.Rows)
	}
	return fmt.Sprintf("token %d of sequence %d has id %d, but the vocabulary has %d: the ids are of another tokenizer", e.Position, e.Sequence, e.Token, e.Rows)
}

// embed looks up each token and, where they are learned, its position.
func (e *Executor) embed(ctx context.Context, t *Embedding, x, y *Tensor) error {
	if x.Lengths == nil {
		return errors.New("tokens without the lengths of their sequences: use NewTokens")
	}
	positions := make([]int, 0, len(x.Tokens))
	for s, n := range x.Lengths {
		next := 0
		for p := range n {
			id := x.Tokens[len(positions)]
			if t.Table != "" && int64(id) >= int64(t.Rows) {
				return &TokenError{Sequence: s, Position: p, Token: id, Rows: t.Rows}
			}
			if t.isPadding(id) {
				positions = append(positions, -1)
				continue
			}
			if t.Positions != "" && next >= t.MaxPositions {
				return &TokenError{Sequence: s, Position: p, Token: id, Rows: t.MaxPositions, Positions: true}
			}
			positions = append(positions, next)
			next++
		}
	}
	if t.Table != "" {
		tokens, err := e.table(t.Table, t.Rows, t.Width)
		if err != nil {
			return err
		}
		err = e.perRow(ctx, len(x.Tokens), t.Width, func(r int) error {
			return tokens(int(x.Tokens[r]), y.Data[r*t.Width:][:t.Width])
		})
		if err != nil {
			return err
		}
	}
	if t.Types != "" {
		if err := e.addType(ctx, t, y); err != nil {
			return err
		}
	}
	if t.Positions == "" {
		return nil
	}
	learned, err := e.read(t.Positions, (t.MaxPositions+t.PositionOffset)*t.Width)
	if err != nil {
		return err
	}
	return e.perRow(ctx, len(x.Tokens), t.Width, func(r int) error {
		row := y.Data[r*t.Width:][:t.Width]
		vec.Add(row, row, learned[(positions[r]+t.PositionOffset)*t.Width:])
		return nil
	})
}

// table returns a reader of a table's rows.
func (e *Executor) table(name string, rows, width int) (func(row int, dst []float32) error, error) {
	if e.rows != nil {
		return func(row int, dst []float32) error { return e.rows(name, row, dst) }, nil
	}
	whole, err := e.read(name, rows*width)
	return func(row int, dst []float32) error {
		copy(dst, whole[row*width:])
		return nil
	}, err
}

// norm computes RMSNorm or LayerNorm; means and variances are sums in float64.
func (e *Executor) norm(ctx context.Context, o *Op, x, y *Tensor) error {
	width := x.Shape[len(x.Shape)-1]
	var weight, bias []float32
	var err error
	if o.Norm.Weight != "" {
		if weight, err = e.read(o.Norm.Weight, width); err != nil {
			return err
		}
	}
	if o.Norm.Bias != "" {
		if bias, err = e.read(o.Norm.Bias, width); err != nil {
			return err
		}
	}
	return e.perRow(ctx, len(x.Data)/width, width, func(r int) error {
		src, dst := x.Data[r*width:][:width], y.Data[r*width:][:width]
		if o.Kind == LayerNorm {
			mean := vec.Sum(src) / float64(width)
			for i, v := range src {
				dst[i] = float32(float64(v) - mean)
			}
			src = dst
		}
		vec.Scale(dst, src, float32(1/math.Sqrt(vec.SumSquares(src)/float64(width)+o.Norm.Eps)))
		if weight != nil {
			vec.Mul(dst, dst, weight)
		}
		if bias != nil {
			vec.Add(dst, dst, bias)
		}
		return nil
	})
}

// Hidden computes all of the graph but its head: tokens × Head.Inputs numbers.
func (e *Executor) Hidden(ctx context.Context, x *Tensor) (*Tensor, error) {
	o, err := e.headOp()
	if err != nil {
		return nil, err
	}
	values := make([]*Tensor, len(e.graph.Values))
	values[e.graph.Input] = x
	if err := e.Run(ctx, Segment{0, len(e.graph.Ops) - 1}, values); err != nil {
		return nil, err
	}
	return values[o.Inputs[0]], nil
}

func (e *Executor) headOp() (*Op, error) {
	if e.invalid != nil {
		return nil, e.invalid
	}
	if len(e.graph.Ops) == 0 {
		return nil, errors.New("model: a graph without operations has no head")
	}
	o := &e.graph.Ops[len(e.graph.Ops)-1]
	if o.Kind != Linear || o.Output != e.graph.Output {
		return nil, fmt.Errorf("model: %s, the last operation, is no linear head", o.Name)
	}
	return o, nil
}

// Head is the graph's last operation, which must be Linear, with its weights at
// hand: where a vocabulary is large, the logits of all tokens need many times the
// memory of the rest, and a Head gives them some rows at a time. It is safe for
// concurrent use.
type Head struct {
	Inputs  int // numbers of a row of hidden states
	Outputs int // logits of a row
	exec    *Executor
	op      *Op
	weight  []float32
	bias    []float32
}

// Head reads the head's weights.
func (e *Executor) Head() (*Head, error) {
	o, err := e.headOp()
	if err != nil {
		return nil, err
	}
	shape := e.graph.Values[o.Inputs[0]].Shape
	h := &Head{Inputs: shape[len(shape)-1], Outputs: o.Outputs, exec: e, op: o}
	if h.weight, err = e.read(o.Weight, h.Inputs*h.Outputs); err != nil {
		return nil, fmt.Errorf("model: %s: %w", o.Name, err)
	}
	if h.bias, err = e.bias(o); err != nil {
		return nil, fmt.Errorf("model: %s: %w", o.Name, err)
	}
	return h, nil
}

// Logits overwrites logits, n × Outputs, with those of n rows of hidden states,
// n × Inputs. The bytes of a row are those that Forward gives.
func (h *Head) Logits(ctx context.Context, hidden, logits blas32.General) error {
	if hidden.Rows != logits.Rows || hidden.Cols != h.Inputs || logits.Cols != h.Outputs {
		return fmt.Errorf("model: %d×%d logits of %d×%d hidden states, want %d of %d a row",
			logits.Rows, logits.Cols, hidden.Rows, hidden.Cols, h.Outputs, h.Inputs)
	}
	return h.exec.apply(ctx, h.op, h.weight, h.bias, hidden, logits)
}
