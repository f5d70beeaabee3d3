package fitness

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/search"
)

// Evaluate returns the measure's mean over the batch's samples for each candidate;
// it is a search.Fitness. +Inf stands for a candidate with a logit that is NaN or
// infinite, and for one that cannot be among batch.Survivors, unless that is 0. All
// else has the same bytes for any number of workers, whatever other candidates there
// are, and with Options.Plain. A level may be Original.
//
// The samples are drawn by batch.Seed without repetition, exactly batch.Samples of
// them: of documents in the order drawn, the last is cut. If all samples are asked
// for, they come in their order.
//
// It fails with *SamplesError, *search.CandidateError, *LevelError, *Error, and what
// the weights, the executor or the context fail with.
func (e *Evaluator) Evaluate(ctx context.Context, candidates []search.Candidate, batch search.Batch) ([]float64, error) {
	for i, c := range candidates {
		if len(c) != len(e.model.Genes) {
			return nil, &search.CandidateError{Problem: fmt.Sprintf("%d has %d levels for %d genes", i, len(c), len(e.model.Genes))}
		}
		for gene, level := range c {
			if level < Original {
				return nil, &search.CandidateError{Problem: fmt.Sprintf("%d has level %d for gene %d", i, level, gene)}
			}
		}
	}
	items, err := e.data.draw(batch.Samples, batch.Seed)
	if err != nil || len(candidates) == 0 {
		return make([]float64, len(candidates)), err
	}
	if e.options.Measure != Loss {
		defer e.forgetCut()
		if err := e.answer(ctx, items); err != nil {
			return nil, err
		}
	}
	r := race{e: e, candidates: candidates, items: items, samples: batch.Samples, totals: make([]float64, len(candidates)), failed: make([]bool, len(candidates))}
	if err := r.run(ctx, batch.Survivors); err != nil {
		return nil, err
	}
	for c := range candidates {
		e.alone.Add(r.alone(c))
	}
	fitness := make([]float64, len(candidates))
	for c := range fitness {
		fitness[c] = r.mean(c)
	}
	return fitness, nil
}

// race is one evaluation of candidates.
type race struct {
	e          *Evaluator
	candidates []search.Candidate
	items      []item
	samples    int
	totals     []float64 // by candidate, added in the order of the samples
	failed     []bool    // it had a logit that is not finite, or was stopped
}

// mean is at least as large when more samples have been added.
func (r *race) mean(c int) float64 {
	if r.failed[c] {
		return math.Inf(1)
	}
	return r.totals[c] / float64(r.samples)
}

// run takes all candidates through all items, but for those that cannot survive.
func (r *race) run(ctx context.Context, survivors int) error {
	all := make([]int, len(r.candidates))
	for c := range all {
		all[c] = c
	}
	if r.e.options.Plain {
		for c := range all {
			if err := r.advance(ctx, all[c:c+1], r.items); err != nil {
				return err
			}
		}
		return nil
	}
	heats := r.heats(survivors)
	if err := r.advance(ctx, all, heats[0]); err != nil || len(heats) == 1 {
		return err
	}
	// Those in front go through to the end, so that the others have a mark to pass.
	order := slices.Clone(all)
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(r.mean(a), r.mean(b)) })
	front, rest := order[:survivors], order[survivors:]
	slices.Sort(front)
	slices.Sort(rest)
	if err := r.advance(ctx, front, slices.Concat(heats[1:]...)); err != nil {
		return err
	}
	mark := 0.0
	for _, c := range front {
		mark = max(mark, r.mean(c))
	}
	for _, heat := range heats[1:] {
		rest = slices.DeleteFunc(rest, func(c int) bool {
			behind := r.mean(c) > mark
			if behind && !r.failed[c] {
				r.failed[c] = true
				r.e.stopped.Add(1)
			}
			return behind
		})
		if err := r.advance(ctx, rest, heat); err != nil {
			return err
		}
	}
	return nil
}

// Samples are cut into heats so that candidates can be stopped in between, unless a
// heat would have fewer rows than this.
const (
	heatCount = 4
	heatRows  = 32
)

// heats cuts the items where candidates may be stopped.
func (r *race) heats(survivors int) [][]item {
	if survivors < 1 || survivors >= len(r.candidates) {
		return [][]item{r.items}
	}
	var heats [][]item
	from, done := 0, 0
	for i, one := range r.items {
		done += r.e.data.counted(one)
		if next := (len(heats) + 1) * max(heatRows, (r.samples+heatCount-1)/heatCount); done >= next && i+1 < len(r.items) {
			heats = append(heats, r.items[from:i+1])
			from = i + 1
		}
	}
	return append(heats, r.items[from:])
}

// valueBytes is how much memory the values of a tree take at most, unless one item
// takes more.
const valueBytes = 1 << 30

// parts cuts items so that the values of so many nodes fit into memory.
func (e *Evaluator) parts(items []item, nodes int) [][]item {
	limit := int64(valueBytes)
	if l := e.space.Limit(); l > 0 {
		limit = min(limit, l/2) // the rest is for answers and what waits to be freed
	}
	most := int(limit / (4 * int64(e.live) * int64(nodes)))
	var parts [][]item
	from, rows := 0, 0
	for i, one := range items {
		if rows+one.rows > most && i > from {
			parts = append(parts, items[from:i])
			from, rows = i, 0
		}
		rows += one.rows
	}
	if from < len(items) {
		parts = append(parts, items[from:])
	}
	return parts
}

// advance takes candidates through more items, part by part.
func (r *race) advance(ctx context.Context, members []int, items []item) error {
	for _, part := range r.e.parts(items, max(1, len(members))) {
		left := slices.DeleteFunc(slices.Clone(members), func(c int) bool { return r.failed[c] })
		if len(left) == 0 {
			return nil
		}
		if err := r.part(ctx, left, part); err != nil {
			return err
		}
	}
	return nil
}

// part adds what some items give to the totals.
func (r *race) part(ctx context.Context, members []int, items []item) error {
	t, err := r.e.grow(ctx, r.candidates, members, items, true)
	defer t.free()
	if err != nil {
		return err
	}
	terms, err := t.measure(ctx)
	if err != nil {
		return err
	}
	for k, n := range t.nodes {
		for _, c := range n.members {
			for _, v := range terms[k] {
				r.totals[c] += v
			}
			r.failed[c] = math.IsNaN(r.totals[c]) || math.IsInf(r.totals[c], 0)
		}
	}
	return nil
}

// alone returns how many operations a candidate would take without the others.
func (r *race) alone(c int) int64 {
	t := &tree{e: r.e, candidates: r.candidates}
	n := &node{members: []int{c}}
	var rows, ops int64
	for _, one := range r.items {
		rows += int64(one.rows)
	}
	for i := range r.e.ops {
		if !t.skips(n, i) {
			ops++
		}
	}
	return rows * ops
}

// Logits exist for so many rows at a time; results do not depend on it.
const (
	logitNumbers = 4 << 20
	logitRows    = 256
	logitLeast   = 16
)

// measure returns for each node what each row that counts adds to its total.
func (t *tree) measure(ctx context.Context) ([][]float64, error) {
	terms := make([][]float64, len(t.nodes))
	for k := range terms {
		terms[k] = make([]float64, len(t.rows))
	}
	step := max(logitLeast, min(logitRows, logitNumbers/t.e.data.outputs))
	head, err := t.originalHead(ctx)
	if err != nil {
		return nil, err
	}
	for from := 0; from < len(t.rows); from += step {
		rows := t.rows[from:min(from+step, len(t.rows))]
		reference, err := t.reference(ctx, head, rows)
		if err != nil {
			return nil, err
		}
		err = t.e.pool.For(ctx, len(t.nodes), func(k int) error {
			logits, err := logitsOf(ctx, t.nodes[k].head, pick(t.answerOf(t.nodes[k]), rows))
			if err != nil {
				return err
			}
			return reference.measureRows(ctx, t.e.pool, logits, terms[k][from:])
		})
		if err != nil {
			return nil, err
		}
	}
	return terms, nil
}

// originalHead returns the original's head; nil where none is needed.
func (t *tree) originalHead(ctx context.Context) (*model.Head, error) {
	if !t.e.data.language() || t.e.options.Measure == Loss {
		return nil, nil
	}
	return t.e.exec.With(func(name string) ([]float32, error) {
		v, err := t.e.levels.get(ctx, key{gene: -1, tensor: name})
		return v.Tensors[name], err
	}, nil).Head()
}

// reference gathers what the candidates' logits of some rows are held against.
func (t *tree) reference(ctx context.Context, head *model.Head, rows []countedRow) (*reference, error) {
	targets := make([]int, len(rows))
	for k, r := range rows {
		targets[k] = t.e.data.target(t.items[r.item], r.at)
	}
	var logits blas32.General
	if t.e.options.Measure != Loss {
		var err error
		if logits, err = logitsOf(ctx, head, t.original(rows)); err != nil {
			return nil, err
		}
	}
	return newReference(ctx, t.e.pool, t.e.options, logits, targets)
}

// logitsOf applies a head to answers; without a head they are logits.
func logitsOf(ctx context.Context, head *model.Head, answers blas32.General) (blas32.General, error) {
	if head == nil {
		return answers, nil
	}
	logits := blas32.General{Rows: answers.Rows, Cols: head.Outputs, Stride: head.Outputs, Data: make([]float32, answers.Rows*head.Outputs)}
	return logits, head.Logits(ctx, answers, logits)
}
