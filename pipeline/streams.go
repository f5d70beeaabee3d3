package pipeline

import (
	"context"
	"math"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
)

// stream is one of the two passes of the calibration samples through the
// graph. It runs an operation once, over all samples, and drops a value when
// every operation that reads it has run.
type stream struct {
	graph   *model.Graph
	exec    *model.Executor
	values  []*model.Tensor
	ran     []bool // by operation
	readers []int  // by value: operations that have yet to read it
}

func newStream(g *model.Graph, p *pool.Pool, w model.Weights, input *model.Tensor) *stream {
	s := &stream{
		graph: g, exec: model.NewExecutor(g, p, w),
		values: make([]*model.Tensor, len(g.Values)), ran: make([]bool, len(g.Ops)), readers: make([]int, len(g.Values)),
	}
	for i := range g.Ops {
		for _, v := range g.Ops[i].Inputs {
			s.readers[v]++
		}
	}
	s.values[g.Input] = input
	return s
}

// step runs operation i unless it has run.
func (s *stream) step(ctx context.Context, i int) error {
	if s.ran[i] {
		return nil
	}
	op := &s.graph.Ops[i]
	in := make([]*model.Tensor, len(op.Inputs))
	for j, v := range op.Inputs {
		in[j] = s.values[v]
	}
	out, err := s.exec.Step(ctx, i, in)
	if err != nil {
		return err
	}
	s.finish(i, out)
	return nil
}

// finish notes that operation i has run and gave out.
func (s *stream) finish(i int, out *model.Tensor) {
	op := &s.graph.Ops[i]
	s.ran[i] = true
	s.values[op.Output] = out
	for _, v := range op.Inputs {
		if s.readers[v]--; s.readers[v] == 0 {
			s.values[v] = nil
		}
	}
}

// streams are the original's activations and the compressed model's. A value
// that is the same in both is one tensor.
type streams struct {
	original, compressed *stream
	enter                func(Stage)
	// same says of an operation that only the original stream has run whether
	// its inputs were the same in both.
	same map[int]bool
}

// catchUp runs all operations before operation end, in both streams. changed
// says which operations compute with compressed weights.
func (s *streams) catchUp(ctx context.Context, end int, changed []bool) error {
	for i := range end {
		if s.compressed.ran[i] {
			continue
		}
		if err := s.stepOriginal(ctx, i); err != nil {
			return err
		}
		if s.same[i] && !changed[i] {
			s.compressed.finish(i, s.original.values[s.original.graph.Ops[i].Output])
			continue
		}
		s.enter(StageCompressed)
		if err := s.compressed.step(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// stepOriginal runs operation i in the original stream unless it has run.
func (s *streams) stepOriginal(ctx context.Context, i int) error {
	if s.original.ran[i] {
		return nil
	}
	s.same[i] = true
	for _, v := range s.original.graph.Ops[i].Inputs {
		s.same[i] = s.same[i] && s.sameValue(v)
	}
	s.enter(StageOriginal)
	return s.original.step(ctx, i)
}

// sameValue reports whether a value is the same in both streams.
func (s *streams) sameValue(v int) bool { return s.original.values[v] == s.compressed.values[v] }

// weights gives the compressed stream its parameters: rebuilt weights and
// corrected biases where there are some, the original's elsewhere.
type weights struct {
	ckpt      *loader.Checkpoint
	solutions map[string]*layer.Solution
	replaced  map[string][]float32
}

func (w *weights) original(name string) ([]float32, error) {
	t, ok := w.ckpt.Lookup(name)
	if !ok {
		return nil, loader.ErrNotFound
	}
	data := make([]float32, t.Elements())
	if err := w.ckpt.ReadFloat32(name, data); err != nil {
		return nil, err
	}
	return data, finite(name, data)
}

func (w *weights) compressed(name string) ([]float32, error) {
	if s, ok := w.solutions[name]; ok {
		data := make([]float32, s.Rows*s.Cols)
		s.Weight(data)
		return data, nil
	}
	if data, ok := w.replaced[name]; ok {
		return data, nil
	}
	return w.original(name)
}

// finite refuses a tensor that holds a NaN or an infinity.
func finite(name string, data []float32) error {
	for i, v := range data {
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return &NonFiniteError{Tensor: name, Index: i, Value: f}
		}
	}
	return nil
}
