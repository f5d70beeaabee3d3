package pipeline

import (
	"context"
	"io"
	"os"
	"runtime"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/evaluate"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/scratch"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/record"
)

// evaluationTokens is about how many tokens go through a block at once, and
// headRows how many tokens' logits exist at once. Results do not depend on them.
const (
	evaluationTokens = 4096
	headRows         = 256
)

// source is a model to run: its graph, and where its tensors are read from.
type source struct {
	graph   *model.Graph
	weights model.Weights
	rows    model.Rows
}

// window is a sequence to run: a document, or a part of one.
type window struct {
	ids      []uint32
	targets  []int // for each token the next one, −1 where it is not counted
	document int
}

// languageRun measures language models on windows of text. All windows go
// through one block of a model before the next, so that memory holds the weights
// of one block, and the activations between blocks.
type languageRun struct {
	pool    *pool.Pool
	space   *scratch.Space
	batches [][]window
	bytes   int64
	tokens  int64           // that are predicted
	done    func(share int) // in 1/1000 of a model
}

func newLanguageRun(p *pool.Pool, data textSamples, space *scratch.Space) (*languageRun, error) {
	r := &languageRun{pool: p, space: space, bytes: data.Bytes(), done: func(int) {}}
	size := 0
	add := func(w window) {
		if last := len(r.batches) - 1; last >= 0 && size+len(w.ids) <= evaluationTokens {
			r.batches[last] = append(r.batches[last], w)
			size += len(w.ids)
		} else {
			r.batches = append(r.batches, []window{w})
			size = len(w.ids)
		}
		for _, t := range w.targets {
			if t >= 0 {
				r.tokens++
			}
		}
	}
	for i := range data.N {
		ids := data.Tokens(i)
		if data.stride == 0 {
			add(window{ids, evaluate.NextTokens(ids), i})
			continue
		}
		windows, err := evaluate.Windows(ids, data.length, data.stride)
		if err != nil {
			return nil, err
		}
		for w := range windows {
			add(window{w.IDs, w.Targets, i})
		}
	}
	return r, nil
}

// blockWeights keeps the weights of the block at hand.
type blockWeights struct {
	read model.Weights
	kept map[string][]float32
}

func (b *blockWeights) get(name string) ([]float32, error) {
	if v, ok := b.kept[name]; ok {
		return v, nil
	}
	v, err := b.read(name)
	if err == nil {
		b.kept[name] = v
	}
	return v, err
}

// answers are a model's hidden states of each batch and the head that turns
// them into logits; nil where the hidden states are what the model gives.
type answers struct {
	head   *model.Head
	width  int // of what of returns
	hidden []*model.Tensor
	logits blas32.General
}

// run brings all batches through a model but for its head.
func (r *languageRun) run(ctx context.Context, s source) (*answers, error) {
	block := &blockWeights{read: s.weights, kept: map[string][]float32{}}
	exec := model.NewExecutor(s.graph, r.pool, block.get)
	exec.AllocateWith(r.space)
	exec.ReadRows(s.rows)
	values := make([][]*model.Tensor, len(r.batches))
	for i, batch := range r.batches {
		sequences := make([][]uint32, len(batch))
		for j, w := range batch {
			sequences[j] = w.ids
		}
		values[i] = make([]*model.Tensor, len(s.graph.Values))
		values[i][s.graph.Input] = model.NewTokens(sequences...)
	}
	segments := s.graph.Segments()
	for n, segment := range segments {
		for i := range values {
			if err := exec.Run(ctx, segment, values[i]); err != nil {
				return nil, err
			}
			r.done(1000 * (n*len(values) + i + 1) / (len(segments) * len(values)))
		}
		clear(block.kept)
		runtime.GC() // a block's weights are large: the next one's take their place
	}
	if !s.graph.HasHead() {
		a := &answers{width: elements(s.graph.Values[s.graph.Output].Shape)}
		for _, v := range values {
			a.hidden = append(a.hidden, v[s.graph.Output])
		}
		return a, nil
	}
	head, err := exec.Head()
	if err != nil {
		return nil, err
	}
	a := &answers{head: head, width: head.Outputs, logits: blas32.General{Cols: head.Outputs, Stride: head.Outputs, Data: make([]float32, headRows*head.Outputs)}}
	for _, v := range values {
		a.hidden = append(a.hidden, v[s.graph.Ops[len(s.graph.Ops)-1].Inputs[0]])
	}
	return a, nil
}

// free gives back the hidden states.
func (r *languageRun) free(a *answers) {
	for _, h := range a.hidden {
		r.space.Free(h.Data)
	}
}

// of computes logits of rows row … row+n−1 of a batch.
func (a *answers) of(ctx context.Context, batch, row, n int) (blas32.General, error) {
	if a.head == nil {
		return blas32.General{Rows: n, Cols: a.width, Stride: a.width, Data: a.hidden[batch].Data[row*a.width:]}, nil
	}
	width := a.head.Inputs
	a.logits.Rows = n
	hidden := blas32.General{Rows: n, Cols: width, Stride: width, Data: a.hidden[batch].Data[row*width:]}
	return a.logits, a.head.Logits(ctx, hidden, a.logits)
}

// eachBlock calls do for some rows of one window after the other.
func (r *languageRun) eachBlock(do func(batch, row int, targets []int, document int) error) error {
	for b, batch := range r.batches {
		row := 0
		for _, w := range batch {
			for targets := w.targets; len(targets) > 0; {
				n := min(headRows, len(targets))
				if err := do(b, row, targets[:n], w.document); err != nil {
					return err
				}
				row += n
				targets = targets[n:]
			}
		}
	}
	return nil
}

// measure runs one model, or an original and a compressed one beside it.
func (r *languageRun) measure(ctx context.Context, models ...source) (*record.LanguageEvaluation, error) {
	var all []*answers
	defer func() {
		for _, a := range all {
			r.free(a)
		}
	}()
	for _, m := range models {
		a, err := r.run(ctx, m)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	l := evaluate.NewLanguage(all[0].head.Outputs)
	l.Bytes, l.Pool = r.bytes, r.pool
	err := r.eachBlock(func(batch, row int, targets []int, document int) error {
		var logits [2]blas32.General
		for i, a := range all {
			var err error
			if logits[i], err = a.of(ctx, batch, row, len(targets)); err != nil {
				return err
			}
		}
		return l.Add(logits[0], logits[1], targets, document)
	})
	if err != nil {
		return nil, err
	}
	return l.Result()
}

// writeTargets runs a model and writes its answers for measureCached.
func (r *languageRun) writeTargets(ctx context.Context, w io.Writer, kept int, m source) error {
	a, err := r.run(ctx, m)
	if err != nil {
		return err
	}
	defer r.free(a)
	t, err := evaluate.NewTargetsWriter(w, r.tokens, a.head.Outputs, kept)
	if err != nil {
		return err
	}
	t.Pool = r.pool
	err = r.eachBlock(func(batch, row int, targets []int, _ int) error {
		logits, err := a.of(ctx, batch, row, len(targets))
		if err != nil {
			return err
		}
		return t.Add(logits, targets)
	})
	if err != nil {
		return err
	}
	return t.Close()
}

// measureCached measures a compressed model against the original's answers in a
// file of writeTargets.
func (r *languageRun) measureCached(ctx context.Context, path string, m source) (*record.LanguageEvaluation, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	t, err := evaluate.OpenTargets(f, info.Size())
	if err != nil {
		return nil, err
	}
	a, err := r.run(ctx, m)
	if err != nil {
		return nil, err
	}
	defer r.free(a)
	l := evaluate.NewLanguage(a.head.Outputs)
	l.Bytes, l.Pool = r.bytes, r.pool
	at := int64(0)
	err = r.eachBlock(func(batch, row int, targets []int, document int) error {
		logits, err := a.of(ctx, batch, row, len(targets))
		if err != nil {
			return err
		}
		from := at
		for _, t := range targets {
			if t >= 0 {
				at++
			}
		}
		return l.AddCached(t, from, logits, targets, document)
	})
	if err != nil {
		return nil, err
	}
	return l.Result()
}
