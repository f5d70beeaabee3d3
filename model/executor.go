package model

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/scratch"
	"github.com/fettle-dev/fettle/loader"
)

// Tensor is a batch of activations: Shape is the number of samples followed by
// one sample's shape, Data is row-major.
//
// A language model's samples are tokens, those of one sequence after those of
// another: Lengths has the number of each sequence's, in order, and goes along
// from value to value. Tokens are the ids, in the graph's input only, which has
// no Data. NewTokens makes one.
type Tensor struct {
	Shape   []int
	Data    []float32
	Tokens  []uint32
	Lengths []int
}

// Weights returns the row-major values of a tensor. The executor asks once for
// each operation that it steps through, does not write to what it gets and
// does not keep it, so a caller that runs many batches may want to.
type Weights func(name string) ([]float32, error)

// Stored returns the weights as a checkpoint stores them, read anew each time.
func Stored(c *loader.Checkpoint) Weights {
	return func(name string) ([]float32, error) {
		t, ok := c.Lookup(name)
		if !ok {
			return nil, fmt.Errorf("model: the checkpoint has no tensor %s", name)
		}
		dst := make([]float32, t.Elements())
		return dst, c.ReadFloat32(name, dst)
	}
}

// Executor computes a graph in float32. It is safe for concurrent use when its
// Weights are.
//
// A sample's result is computed by one worker in an order that depends on the
// graph alone: it has the same bytes in any batch and for any number of
// workers. So has a token's, which depends on its own sequence alone.
type Executor struct {
	graph   *Graph
	invalid error // what Check said
	pool    *pool.Pool
	weights Weights
	rows    Rows           // nil: tables are read whole
	space   *scratch.Space // nil: values come from the heap
	lastUse []int
	scratch *sync.Pool // of *[]float32: attention's tiles, one for each busy worker
}

// ErrDetached says that a graph of layers alone cannot be run.
var ErrDetached = errors.New("model: what connects the layers is not known, so they cannot be run")

// NewExecutor returns an executor of g on p's workers (nil: on the caller
// alone). A graph that does not pass Check is reported by the first call.
func NewExecutor(g *Graph, p *pool.Pool, w Weights) *Executor {
	if p == nil {
		p = pool.New(1)
	}
	e := &Executor{graph: g, invalid: g.Check(), pool: p, weights: w, scratch: &sync.Pool{}}
	if e.invalid == nil && g.Detached {
		e.invalid = ErrDetached
	}
	if e.invalid == nil {
		e.lastUse = g.LastUse()
	}
	return e
}

// AllocateWith makes the numbers of values come from a space. Run and Forward
// free there what no later operation reads; what they and Step return is the
// caller's to free. Call it before the first step. Without it values are left to
// the collector.
func (e *Executor) AllocateWith(s *scratch.Space) { e.space = s }

// With returns an executor that differs in its weights and its rows alone. It
// costs nothing: the graph is not checked again.
func (e *Executor) With(w Weights, r Rows) *Executor {
	other := *e
	other.weights, other.rows = w, r
	return &other
}

// Step computes operation op for a batch, given the values that it reads in
// the order of Op.Inputs. It writes neither to its inputs nor to memory that
// they share.
func (e *Executor) Step(ctx context.Context, op int, in []*Tensor) (*Tensor, error) {
	if e.invalid != nil {
		return nil, e.invalid
	}
	if op < 0 || op >= len(e.graph.Ops) {
		return nil, fmt.Errorf("model: no operation %d in a graph of %d", op, len(e.graph.Ops))
	}
	o := &e.graph.Ops[op]
	n, err := e.samples(o, in)
	if err != nil {
		return nil, fmt.Errorf("model: %s: %w", o.Name, err)
	}
	shape, lengths := e.graph.Values[o.Output].Shape, in[0].Lengths
	switch {
	case o.Kind == Dispatch:
		n, lengths = routed(in[1], o.Expert)
	case o.Kind == FirstToken && lengths != nil: // a row for each sequence
		n, lengths = len(lengths), nil
	}
	y := &Tensor{Shape: append([]int{n}, shape...), Lengths: lengths}
	if y.Data, err = e.space.Floats(n * size(shape)); err != nil {
		return nil, fmt.Errorf("model: %s: %w", o.Name, err)
	}
	if n == 0 {
		return y, ctx.Err()
	}
	if err := e.compute(ctx, o, in, y); err != nil {
		return nil, fmt.Errorf("model: %s: %w", o.Name, err)
	}
	return y, nil
}

// samples checks the inputs against the graph and returns the batch's size.
func (e *Executor) samples(o *Op, in []*Tensor) (int, error) {
	if len(in) != len(o.Inputs) {
		return 0, fmt.Errorf("given %d inputs, reads %d", len(in), len(o.Inputs))
	}
	n := 0
	for i, t := range in {
		v := e.graph.Values[o.Inputs[i]]
		if t == nil || len(t.Shape) == 0 || !slices.Equal(t.Shape[1:], v.Shape) {
			return 0, fmt.Errorf("value %s is given as %s, want samples × %v", v.Name, t.describe(), v.Shape)
		}
		numbers := len(t.Data)
		if o.Kind == Embed {
			numbers = len(t.Tokens)
		}
		if t.Shape[0] < 0 || numbers/size(v.Shape) != t.Shape[0] || numbers%size(v.Shape) != 0 {
			return 0, fmt.Errorf("value %s has %d numbers for shape %v", v.Name, numbers, t.Shape)
		}
		rows, like := n, in[0]
		if o.Kind == Combine && i > 0 && i <= in[0].Shape[1] {
			like = &Tensor{}
			rows, like.Lengths = routed(in[0], i-1)
		}
		if err := t.checkLengths(like); err != nil {
			return 0, fmt.Errorf("value %s: %w", v.Name, err)
		}
		if i > 0 && t.Shape[0] != rows {
			return 0, fmt.Errorf("inputs of %d and %d samples", rows, t.Shape[0])
		}
		if i == 0 {
			n = t.Shape[0]
		}
	}
	return n, nil
}

func (t *Tensor) describe() string {
	if t == nil {
		return "nothing"
	}
	return fmt.Sprintf("%v", t.Shape)
}

// Forward computes the whole graph for a batch and frees each value after its
// last use. x holds samples × the input's shape, and is not written to.
func (e *Executor) Forward(ctx context.Context, x *Tensor) (*Tensor, error) {
	if e.invalid != nil {
		return nil, e.invalid
	}
	values := make([]*Tensor, len(e.graph.Values))
	values[e.graph.Input] = x
	if err := e.Run(ctx, Segment{0, len(e.graph.Ops)}, values); err != nil {
		return nil, err
	}
	return values[e.graph.Output], nil
}

// Run computes a segment for a batch. values, by the graph's values, must hold
// what the segment reads; afterwards it holds what later operations read, and
// nil in place of each value whose last reader has run.
func (e *Executor) Run(ctx context.Context, s Segment, values []*Tensor) error {
	if e.invalid != nil {
		return e.invalid
	}
	var in []*Tensor
	for i := s.From; i < s.To; i++ {
		o := &e.graph.Ops[i]
		in = in[:0]
		for _, v := range o.Inputs {
			in = append(in, values[v])
		}
		y, err := e.Step(ctx, i, in)
		if err != nil {
			return err
		}
		values[o.Output] = y
		for _, v := range o.Inputs {
			if e.lastUse[v] == i && values[v] != nil {
				e.space.Free(values[v].Data)
				values[v] = nil
			}
		}
	}
	return nil
}

// Logits computes the graph's output for n samples, batch by batch. load
// writes samples from … from+count−1 to dst (dataset.Images.Read is one). The
// result is n × outputs.
func (e *Executor) Logits(ctx context.Context, n, batch int, load func(dst []float32, from, count int) error) (blas32.General, error) {
	if e.invalid != nil {
		return blas32.General{}, e.invalid
	}
	if n < 0 || batch < 1 {
		return blas32.General{}, fmt.Errorf("model: %d samples in batches of %d", n, batch)
	}
	shape := e.graph.Values[e.graph.Input].Shape
	per, outputs := size(shape), size(e.graph.Values[e.graph.Output].Shape)
	logits := blas32.General{Rows: n, Cols: outputs, Stride: outputs, Data: make([]float32, n*outputs)}
	data := make([]float32, min(n, batch)*per)
	for from := 0; from < n; from += batch {
		count := min(batch, n-from)
		x := &Tensor{Shape: append([]int{count}, shape...), Data: data[:count*per]}
		if err := load(x.Data, from, count); err != nil {
			return blas32.General{}, err
		}
		y, err := e.Forward(ctx, x)
		if err != nil {
			return blas32.General{}, err
		}
		copy(logits.Data[from*outputs:], y.Data)
	}
	return logits, nil
}

// read returns a tensor's values after checking how many there are.
func (e *Executor) read(name string, want int) ([]float32, error) {
	w, err := e.weights(name)
	if err != nil {
		return nil, err
	}
	if len(w) != want {
		return nil, fmt.Errorf("tensor %s has %d values, the graph wants %d", name, len(w), want)
	}
	return w, nil
}

// bias returns the operation's bias, nil where it has none.
func (e *Executor) bias(o *Op) ([]float32, error) {
	if o.Bias == "" {
		return nil, nil
	}
	return e.read(o.Bias, o.Outputs)
}

// conv2d computes each sample's planes from its image.
func (e *Executor) conv2d(ctx context.Context, o *Op, x, y *Tensor) error {
	w, err := e.read(o.Weight, o.Outputs*o.Conv.Inputs())
	if err != nil {
		return err
	}
	bias, err := e.bias(o)
	if err != nil {
		return err
	}
	conv, err := blas.NewConv(*o.Conv, o.Outputs, w, bias)
	if err != nil {
		return err
	}
	return e.perSample(ctx, []*Tensor{x}, y, func(in [][]float32, out []float32) error {
		return conv.Forward(ctx, e.pool, in[0], out)
	})
}

// borrow takes a buffer of n floats; give returns it.
func (e *Executor) borrow(n int) *[]float32 {
	b, ok := e.scratch.Get().(*[]float32)
	if !ok || cap(*b) < n {
		s := make([]float32, n)
		return &s
	}
	*b = (*b)[:n]
	return b
}

func (e *Executor) give(b *[]float32) { e.scratch.Put(b) }

// linear computes Y = X·Wᵀ + bias over all rows of the batch at once.
func (e *Executor) linear(ctx context.Context, o *Op, x, y *Tensor) error {
	inputs := x.Shape[len(x.Shape)-1]
	w, err := e.read(o.Weight, o.Outputs*inputs)
	if err != nil {
		return err
	}
	bias, err := e.bias(o)
	if err != nil {
		return err
	}
	rows := len(x.Data) / inputs
	return e.apply(ctx, o, w, bias,
		blas32.General{Rows: rows, Cols: inputs, Stride: inputs, Data: x.Data},
		blas32.General{Rows: rows, Cols: o.Outputs, Stride: o.Outputs, Data: y.Data})
}

// apply computes a linear layer's outputs, which it overwrites.
func (e *Executor) apply(ctx context.Context, o *Op, w, bias []float32, in, out blas32.General) error {
	if !o.Transposed {
		weight := blas32.General{Rows: o.Outputs, Cols: in.Cols, Stride: in.Cols, Data: w}
		return blas.Linear(ctx, e.pool, in, weight, bias, out)
	}
	beta := float32(0)
	if bias != nil {
		beta = 1
		for r := range out.Rows {
			copy(out.Data[r*out.Stride:][:out.Cols], bias)
		}
	}
	weight := blas32.General{Rows: in.Cols, Cols: o.Outputs, Stride: o.Outputs, Data: w}
	return blas.Gemm(ctx, e.pool, blas.NoTrans, blas.NoTrans, 1, in, weight, beta, out)
}
