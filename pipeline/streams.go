package pipeline

import (
	"context"
	"math"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/scratch"
	"github.com/fettle-dev/fettle/internal/vec"
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
	hold    func(*model.Tensor)
	drop    func(*model.Tensor)
	passes  map[int]int // for some operations, the value that stands for what they would write
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
	if v, ok := s.passes[i]; ok {
		s.finish(i, s.values[v])
		s.release(v)
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

// finish notes that operation i has run and gave out; nil where nothing has yet to
// read what it would have given.
func (s *stream) finish(i int, out *model.Tensor) {
	op := &s.graph.Ops[i]
	s.ran[i] = true
	if out != nil {
		s.values[op.Output] = out
		s.hold(out)
	}
	for _, v := range op.Inputs {
		s.release(v)
	}
}

// release drops a value when its last reader is done with it.
func (s *stream) release(v int) {
	if s.readers[v]--; s.readers[v] == 0 && s.values[v] != nil {
		dropped := s.values[v]
		s.values[v] = nil
		s.drop(dropped)
	}
}

// pass lets values stand for what operations would write, before the first step.
func (s *stream) pass(passes map[int]int) {
	s.passes = passes
	for _, v := range passes {
		s.readers[v]++
	}
}

// streams are the original's activations and the compressed model's. A value
// that is the same in both is one tensor.
type streams struct {
	original, compressed *stream
	pool                 *pool.Pool
	space                *scratch.Space
	held                 map[*model.Tensor]int // by how many of the two streams
	enter                func(Stage)
	// same says of an operation that only the original stream has run whether
	// its inputs were the same in both.
	same map[int]bool
	// divide holds for values by what the compressed stream divides their
	// channels, until it has: 1/s for each, of AWQ's scales. The file has the scales in
	// a normalization's tensors instead. The stream does not, as the value may
	// have been there before the scales were known, and bytes must not depend on
	// that.
	divide map[int][]float32
}

func newStreams(g *model.Graph, p *pool.Pool, w *weights, input *model.Tensor, space *scratch.Space, enter func(Stage)) *streams {
	s := &streams{
		original: newStream(g, p, w.original, input), compressed: newStream(g, p, w.compressed, input),
		pool: p, space: space, held: map[*model.Tensor]int{input: 2}, enter: enter, same: map[int]bool{},
	}
	for _, one := range []*stream{s.original, s.compressed} {
		one.exec.AllocateWith(space)
		one.exec.ReadRows(w.ckpt.ReadRowFloat32)
		one.hold, one.drop = func(t *model.Tensor) { s.held[t]++ }, s.drop
	}
	return s
}

// drop frees a value that one stream is done with, unless the other one has yet
// to read it.
func (s *streams) drop(t *model.Tensor) {
	if s.held[t]--; s.held[t] == 0 {
		delete(s.held, t)
		s.space.Free(t.Data)
	}
}

// free gives back all values that the streams still hold.
func (s *streams) free() {
	if s == nil {
		return
	}
	for t := range s.held {
		s.space.Free(t.Data)
	}
	clear(s.held)
}

// catchUp runs all operations before operation end, in the original stream and
// then in the compressed one. changed says which operations compute with
// compressed weights.
func (s *streams) catchUp(ctx context.Context, end int, changed []bool) error {
	for i := range end {
		if err := s.stepOriginal(ctx, i); err != nil {
			return err
		}
		if err := s.adopt(ctx, i, changed); err != nil {
			return err
		}
	}
	for i := range end {
		if err := s.stepCompressed(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// advance runs operation i, whose inputs are there, in both streams.
func (s *streams) advance(ctx context.Context, i int, changed []bool) error {
	if err := s.stepOriginal(ctx, i); err != nil {
		return err
	}
	if err := s.adopt(ctx, i, changed); err != nil {
		return err
	}
	return s.stepCompressed(ctx, i)
}

// adopt lets the compressed stream take the original's tensor where operation i
// has given the same to both. It also takes the original's routing of tokens to
// experts: the rows of an expert's inputs are then of the same tokens in both, and
// G = X̃ᵀX pairs them.
func (s *streams) adopt(ctx context.Context, i int, changed []bool) error {
	routes := s.original.graph.Ops[i].Kind == model.Route
	if s.compressed.ran[i] || !routes && (!s.same[i] || changed[i]) {
		return nil
	}
	output := s.original.graph.Ops[i].Output
	s.compressed.finish(i, s.original.values[output])
	return s.rescale(ctx, output)
}

// stepCompressed runs operation i in the compressed stream unless it has run, and
// divides what it gave where that is still to be done.
func (s *streams) stepCompressed(ctx context.Context, i int) error {
	output := s.compressed.graph.Ops[i].Output
	if !s.compressed.ran[i] && s.compressed.readers[output] == 0 && output != s.compressed.graph.Output {
		s.compressed.finish(i, nil) // a router, in the place of which the original's counts
	}
	if !s.compressed.ran[i] {
		s.enter(StageCompressed)
		if err := s.compressed.step(ctx, i); err != nil {
			return err
		}
	}
	return s.rescale(ctx, output)
}

// rescale divides the channels of a value that the compressed stream has come
// to, as divide says. What the original stream has yet to read is copied first.
func (s *streams) rescale(ctx context.Context, value int) error {
	factors, t := s.divide[value], s.compressed.values[value]
	if factors == nil || t == nil {
		return nil
	}
	delete(s.divide, value)
	y := t
	if s.held[t] > 1 {
		data, err := s.space.Floats(len(t.Data))
		if err != nil {
			return err
		}
		y = &model.Tensor{Shape: t.Shape, Lengths: t.Lengths, Data: data}
		s.compressed.values[value] = y
		s.compressed.hold(y)
		s.drop(t)
	}
	const chunk = 64 // rows of a task
	n := len(factors)
	rows := len(t.Data) / n
	return s.pool.For(ctx, (rows+chunk-1)/chunk, func(i int) error {
		for r := i * chunk; r < min((i+1)*chunk, rows); r++ {
			vec.Mul(y.Data[r*n:][:n], t.Data[r*n:][:n], factors)
		}
		return nil
	})
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
	ckpt     *loader.Checkpoint
	store    *store
	keys     map[string]string // of the solutions, by weight
	replaced map[string][]float32
	merged   map[string]dtype.DType // of weights that a low-rank term is merged into: their type

	// made returns what stands for a tensor while units are removed; nil at other
	// times.
	made func(name string) (data []float32, ok bool, err error)
}

func newWeights(ckpt *loader.Checkpoint, s *store, p *Plan) *weights {
	w := &weights{ckpt: ckpt, store: s, keys: map[string]string{}, replaced: map[string][]float32{}, merged: map[string]dtype.DType{}}
	for i := range p.Layers {
		if l := &p.Layers[i]; l.Compensate != nil && l.Compensate.Merge {
			w.merged[l.Weight] = l.Spec.ValueType
		}
	}
	return w
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

// solution reads the solution of a weight, which must have one.
func (w *weights) solution(name string) (*layer.Solution, error) {
	s, ok := load(w.store, w.keys[name], layer.DecodeSolution)
	if !ok {
		return nil, &CacheError{Dir: w.store.dir, Err: errLostUnit}
	}
	return s, nil
}

func (w *weights) compressed(name string) ([]float32, error) {
	if _, ok := w.keys[name]; ok {
		s, err := w.solution(name)
		if err != nil {
			return nil, err
		}
		data := make([]float32, s.Rows*s.Cols)
		s.Weight(data)
		if d, ok := w.merged[name]; ok { // as the file has it
			for i, v := range data {
				data[i] = d.Round(v)
			}
		}
		return data, finite(name, data)
	}
	if w.made != nil {
		if data, ok, err := w.made(name); ok {
			return data, err
		}
	}
	if data, ok := w.replaced[name]; ok {
		return data, nil
	}
	return w.original(name)
}

// finite refuses a tensor that holds a NaN or an infinity.
func finite(name string, data []float32) error {
	if sum := vec.Sum(data); sum-sum == 0 { // no sum of finite float32 overflows float64
		return nil
	}
	for i, v := range data {
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return &NonFiniteError{Tensor: name, Index: i, Value: f}
		}
	}
	return nil
}
