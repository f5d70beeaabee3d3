// Package fitness measures many candidates of one model on the same samples, as
// the search package asks for: how far each one's answers are from the original's.
//
// A candidate says for each gene which level replaces the gene's tensors. All
// candidates of a call go through the graph together, operation by operation, and
// those that agree so far share their values. What is shared, and in which parts the
// samples go through, changes no number.
package fitness

import (
	"context"
	"slices"
	"sync/atomic"

	"github.com/fettle-dev/fettle/dataset"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/scratch"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/search"
)

// Measure says what is averaged over the samples: images, or predicted tokens.
type Measure string

// The measures, all in nats. EvoPress (arXiv 2410.14649, section 4) uses KL.
const (
	KL     Measure = "kl"      // KL(original ‖ candidate), the default
	TopKKL Measure = "topk-kl" // the same over the original's TopK likeliest outputs, each softmax over these alone
	Loss   Measure = "loss"    // cross-entropy with the label or the next token
)

// Data are the samples: images, or documents that are already cut to length, of
// which those without a token to predict are passed over.
type Data struct {
	Images    *dataset.Images
	Sequences [][]uint32
}

// Gene is what gets one level.
type Gene struct {
	Tensors []string // all that a level may replace; no other gene's
	// Site are the operations that go when a level drops the gene, as model.Site.Ops
	// has them; nil where no level does. The value that they read is passed on in
	// place of the one that the last of them writes.
	Site []int
}

// Variant is what a level makes of a gene.
type Variant struct {
	Tensors map[string][]float32 // those that differ from the original's; not written to
	Dropped bool                 // the gene's site goes
}

// Model is the original and what can take the place of its tensors.
type Model struct {
	Graph   *model.Graph
	Weights model.Weights // the original's
	Rows    model.Rows    // the original's; nil: tables are read whole
	Genes   []Gene

	// Level reads a level of a gene, always the same one. It may take long, and may be
	// called by several goroutines.
	Level func(ctx context.Context, gene, level int) (Variant, error)
}

// Original is the level that leaves a gene as it is.
const Original = -1

const defaultTopK = 10

// Options say what is measured and how much memory that may take.
type Options struct {
	Measure Measure // "" means KL
	TopK    int     // for TopKKL; 0 means 10, more than there are outputs means all
	Cache   int64   // bytes of tensors that stay in memory between uses: levels, and the original's

	// Plain takes no shortcuts: each candidate goes alone through the whole graph, to
	// the last sample, with tensors that are read anew. The original's answers are
	// still computed once. It serves tests and benchmarks.
	Plain bool
}

// Counters say what was done since New. An operation counts once for each sample
// that goes through it; the original's are not counted.
type Counters struct {
	Operations int64 // computed
	Alone      int64 // what candidates would have taken alone, each to its last sample
	Levels     int64 // calls of Model.Level
	Stopped    int64 // candidates that were not evaluated to the end
}

// Evaluator measures candidates. It is not safe for concurrent use: a call uses
// all workers itself.
type Evaluator struct {
	pool    *pool.Pool
	space   *scratch.Space
	model   Model
	options Options
	exec    *model.Executor
	ops     []operation
	sites   []site // by gene
	lastUse []int
	live    int // most numbers of a row that are needed at once
	data    samples
	levels  *levels
	answers *answers

	operations, alone, stopped atomic.Int64
}

// operation is what the tree needs to know of one.
type operation struct {
	tensors []string
	genes   []int // those that have some of the tensors
	begins  []int // those whose site begins here
	inside  []int // those whose site has this operation
}

// New returns an evaluator that computes on p's workers with values in s (nil: in
// the heap). It reads no tensors. It fails with *Error, or *search.OptionError.
func New(p *pool.Pool, s *scratch.Space, m Model, d Data, o Options) (*Evaluator, error) {
	if o.Measure == "" {
		o.Measure = KL
	}
	if o.TopK == 0 {
		o.TopK = defaultTopK
	}
	switch {
	case !slices.Contains([]Measure{KL, TopKKL, Loss}, o.Measure):
		return nil, &search.OptionError{Field: "Measure", Value: o.Measure, Allowed: "kl, topk-kl or loss"}
	case o.TopK < 1:
		return nil, &search.OptionError{Field: "TopK", Value: o.TopK, Allowed: "at least 1"}
	case o.Cache < 0:
		return nil, &search.OptionError{Field: "Cache", Value: o.Cache, Allowed: "at least 0 bytes"}
	case m.Graph == nil || m.Weights == nil || (m.Level == nil && len(m.Genes) > 0):
		return nil, &Error{Problem: "a model needs a graph, weights and a function for its levels"}
	}
	if err := m.Graph.Check(); err != nil {
		return nil, &Error{Problem: "the graph does not work", Err: err}
	}
	if p == nil {
		p = pool.New(1)
	}
	if o.Plain {
		o.Cache = 0
	}
	e := &Evaluator{pool: p, space: s, model: m, options: o, lastUse: m.Graph.LastUse()}
	data, err := newSamples(m.Graph, d, o.Measure)
	if err != nil {
		return nil, err
	}
	e.data = data
	if err := e.plan(); err != nil {
		return nil, err
	}
	e.exec = model.NewExecutor(m.Graph, p, m.Weights)
	e.exec.AllocateWith(s)
	e.levels = newLevels(m, o.Cache)
	e.answers = &answers{rows: map[int][]float32{}}
	return e, nil
}

// Samples returns how many there are: images, or tokens to predict.
func (e *Evaluator) Samples() int { return e.data.total }

// Counters returns what was done so far.
func (e *Evaluator) Counters() Counters {
	return Counters{
		Operations: e.operations.Load(), Alone: e.alone.Load(),
		Levels: e.levels.read.Load(), Stopped: e.stopped.Load(),
	}
}

// Close gives back the original's answers and the tensors that were kept. The
// evaluator works on, and computes them again.
func (e *Evaluator) Close() {
	for _, rows := range e.answers.rows {
		e.space.Free(rows)
	}
	clear(e.answers.rows)
	e.levels.clear()
}

// last returns how many operations the tree runs: all but a language model's head.
func (e *Evaluator) last() int {
	if e.data.language() {
		return len(e.ops) - 1
	}
	return len(e.ops)
}

// answerValue is the value that the last operation of the tree writes.
func (e *Evaluator) answerValue() int {
	if e.data.language() {
		return e.model.Graph.Ops[len(e.ops)-1].Inputs[0]
	}
	return e.model.Graph.Output
}

// plan finds what each operation reads and where sites begin.
func (e *Evaluator) plan() error {
	g := e.model.Graph
	owner := map[string]int{}
	for i, gene := range e.model.Genes {
		for _, name := range gene.Tensors {
			if other, ok := owner[name]; ok && other != i {
				return problem("tensor %s is of gene %d and of gene %d", name, other, i)
			}
			owner[name] = i
		}
	}
	known := map[string]bool{}
	e.ops = make([]operation, len(g.Ops))
	for i := range g.Ops {
		o := &e.ops[i]
		o.tensors = g.Ops[i].Tensors()
		for _, name := range o.tensors {
			known[name] = true
			if gene, ok := owner[name]; ok && !slices.Contains(o.genes, gene) {
				o.genes = append(o.genes, gene)
			}
		}
	}
	for _, gene := range e.model.Genes {
		for _, name := range gene.Tensors {
			if !known[name] {
				return problem("no operation reads tensor %s of a gene", name)
			}
		}
	}
	e.sites = make([]site, len(e.model.Genes))
	for i, gene := range e.model.Genes {
		if gene.Site == nil {
			continue
		}
		s, err := newSite(g, gene.Site)
		if err != nil {
			return err
		}
		if s.ops[len(s.ops)-1] >= e.last() {
			return problem("the site of gene %d has the model's head", i)
		}
		e.sites[i] = s
		e.ops[s.ops[0]].begins = append(e.ops[s.ops[0]].begins, i)
		for _, op := range s.ops {
			e.ops[op].inside = append(e.ops[op].inside, i)
		}
	}
	e.live = liveNumbers(g, e.lastUse)
	return nil
}

// site is what goes when a gene is dropped.
type site struct {
	ops     []int // rising
	in, out int   // values; in is passed on as out
}

// newSite checks that operations read one value of the others and that the others
// read only what the last of them writes, and the same kind of value.
func newSite(g *model.Graph, ops []int) (site, error) {
	s := site{ops: slices.Clone(ops), in: -1}
	slices.Sort(s.ops)
	inside := map[int]bool{}
	for i, op := range s.ops {
		if op < 0 || op >= len(g.Ops) || (i > 0 && op == s.ops[i-1]) {
			return s, problem("a site has operation %d, twice or outside the graph's %d", op, len(g.Ops))
		}
		inside[g.Ops[op].Output] = true
	}
	if len(s.ops) == 0 {
		return s, problem("a site without operations: leave it nil")
	}
	s.out = g.Ops[s.ops[len(s.ops)-1]].Output
	for _, op := range s.ops {
		for _, v := range g.Ops[op].Inputs {
			if inside[v] {
				continue
			}
			if s.in >= 0 && s.in != v {
				return s, problem("the site that ends with %s reads %s and %s: only one value can be passed on", g.Ops[s.ops[len(s.ops)-1]].Name, g.Values[s.in].Name, g.Values[v].Name)
			}
			s.in = v
		}
	}
	for i := range g.Ops {
		for _, v := range g.Ops[i].Inputs {
			if inside[v] && v != s.out && !slices.Contains(s.ops, i) {
				return s, problem("%s reads %s from within a site", g.Ops[i].Name, g.Values[v].Name)
			}
		}
	}
	if s.in < 0 || !slices.Equal(g.Values[s.in].Shape, g.Values[s.out].Shape) || (inside[g.Output] && g.Output != s.out) {
		return s, problem("nothing can take the place of what %s writes", g.Ops[s.ops[len(s.ops)-1]].Name)
	}
	return s, nil
}

// liveNumbers returns the most numbers of one row that are needed at once.
func liveNumbers(g *model.Graph, lastUse []int) int {
	numbers := g.RowNumbers()
	width := func(v int) int { return numbers[v] }
	live := width(g.Input)
	most := live
	for i := range g.Ops {
		o := &g.Ops[i]
		live += width(o.Output)
		most = max(most, live)
		for k, v := range o.Inputs {
			if lastUse[v] == i && !slices.Contains(o.Inputs[:k], v) {
				live -= width(v)
			}
		}
	}
	return most
}
