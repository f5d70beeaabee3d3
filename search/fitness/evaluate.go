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
	r := newRace(e, candidates, items, batch.Samples)
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
	sums       [][]float64 // by candidate and item: added in the order of the item's rows
	failed     []bool      // it had a logit that is not finite, or was stopped
}

func newRace(e *Evaluator, candidates []search.Candidate, items []item, samples int) *race {
	r := &race{e: e, candidates: candidates, items: items, samples: samples, failed: make([]bool, len(candidates))}
	for range candidates {
		r.sums = append(r.sums, make([]float64, len(items)))
	}
	return r
}

// total adds up the items that are done. None is negative, so it only grows.
func (r *race) total(c int) float64 {
	if r.failed[c] {
		return math.Inf(1)
	}
	sum := 0.0
	for _, v := range r.sums[c] {
		sum += v
	}
	return sum
}

func (r *race) mean(c int) float64 { return r.total(c) / float64(r.samples) }

// run takes all candidates through all items, but for those that cannot survive.
func (r *race) run(ctx context.Context, survivors int) error {
	all := numbers(len(r.candidates))
	items := numbers(len(r.items))
	if r.e.options.Plain {
		for c := range all {
			if err := r.advance(ctx, all[c:c+1], items); err != nil {
				return err
			}
		}
		return nil
	}
	if survivors < 1 || survivors >= len(all) {
		return r.advance(ctx, all, items)
	}
	// No heat changes a number: what a candidate's items give is added in their order.
	for share := firstShare; ; share = heatShare {
		var heat []int
		heat, items = r.heat(items, share)
		if err := r.advance(ctx, all, heat); err != nil || len(items) == 0 {
			return err
		}
		front, rest := r.divide(all, survivors)
		if r.apart(all, front, rest, float64(len(items))/float64(len(r.items))) {
			return r.chase(ctx, front, rest, items)
		}
	}
}

// divide returns those in front so far, and the others.
func (r *race) divide(all []int, survivors int) (front, rest []int) {
	order := slices.Clone(all)
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(r.total(a), r.total(b)) })
	front, rest = order[:survivors], order[survivors:]
	slices.Sort(front)
	slices.Sort(rest)
	return front, rest
}

// apart foretells whether it takes fewer operations to bring those in front to the
// end and then to stop others, than to go on together, who share more. left is the
// share of items ahead; a candidate is taken to go on as it did.
func (r *race) apart(all, front, rest []int, left float64) bool {
	together := left * r.nodes(all)
	mark := r.highest(front)
	separate := left * r.nodes(front)
	const steps = heatShare
	for k := range steps {
		at := 1 - left + left*float64(k)/steps
		ahead := slices.DeleteFunc(slices.Clone(rest), func(c int) bool { return r.total(c)*at > mark*(1+rounding) })
		separate += left / steps * r.nodes(ahead)
	}
	return separate < together
}

// nodes returns how many operations a tree of candidates has, those of sites that
// are dropped included.
func (r *race) nodes(members []int) float64 {
	count, node := 0, make([]int, len(members))
	nodes := min(1, len(members))
	for i := range r.e.ops {
		for _, gene := range slices.Concat(r.e.ops[i].begins, r.e.ops[i].genes) {
			parts := map[[2]int]int{}
			for k, c := range members {
				at := [2]int{node[k], r.candidates[c][gene]}
				if _, ok := parts[at]; !ok {
					parts[at] = len(parts)
				}
				node[k] = parts[at]
			}
			nodes = len(parts)
		}
		count += nodes
	}
	return float64(count)
}

// highest returns the largest total of some candidates.
func (r *race) highest(candidates []int) float64 {
	mark := 0.0
	for _, c := range candidates {
		mark = max(mark, r.total(c))
	}
	return mark
}

// chase brings those in front to the end, so that the others have a mark to pass, and
// then these, until they pass it.
func (r *race) chase(ctx context.Context, front, rest, items []int) error {
	if err := r.advance(ctx, front, items); err != nil {
		return err
	}
	mark := r.highest(front)
	r.hardest(items, front)
	for len(items) > 0 {
		rest = slices.DeleteFunc(rest, func(c int) bool { return r.stop(c, mark) })
		var heat []int
		heat, items = r.heat(items, heatShare)
		if err := r.advance(ctx, rest, heat); err != nil {
			return err
		}
	}
	return nil
}

// rounding is more than sums of the same numbers in other orders differ by: a
// candidate is stopped only if its total will exceed the mark beyond doubt, so that
// ties stay ties.
const rounding = 1e-9

// stop reports whether a candidate is past the mark, and takes it out if so.
func (r *race) stop(c int, mark float64) bool {
	behind := r.total(c) > mark*(1+rounding)
	if behind && !r.failed[c] {
		r.failed[c] = true
		r.e.stopped.Add(1)
	}
	return behind
}

// hardest sorts items so that those come first that cost some candidates most, for
// a row of theirs: there the others pass the mark soonest.
func (r *race) hardest(items, candidates []int) {
	cost := make([]float64, len(r.items))
	for _, c := range candidates {
		for i, v := range r.sums[c] {
			cost[i] += v / float64(r.items[i].rows)
		}
	}
	slices.SortStableFunc(items, func(a, b int) int { return cmp.Compare(cost[b], cost[a]) })
}

// Candidates are stopped after so much of the samples, but not after fewer than
// these: with less at a time workers stand idle.
const (
	firstShare = 8
	heatShare  = 16
	heatImages = 32
	heatTokens = 512
)

// heat cuts items after 1/share of all samples.
func (r *race) heat(items []int, share int) (heat, left []int) {
	want := max(heatImages, r.samples/share)
	if r.e.data.language() {
		want = max(heatTokens, r.samples/share)
	}
	for i, at := range items {
		if want -= r.e.data.counted(r.items[at]); want <= 0 {
			return items[:i+1], items[i+1:]
		}
	}
	return items, nil
}

func numbers(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// The values of a tree take about partBytes, so that the processor's caches and
// freed buffers serve again, unless those are of fewer rows than make a weight worth
// reading; and then up to mostBytes.
const (
	partBytes = 8 << 20
	mostBytes = 1 << 30
	imageRows = 16
	tokenRows = 1024
)

// parts cuts a list of items so that the values of so many nodes fit into memory,
// unless one item does not.
func (e *Evaluator) parts(items []item, nodes int) [][2]int {
	limit := int64(mostBytes)
	if l := e.space.Limit(); l > 0 {
		limit = min(limit, l/2) // the rest is for answers and what waits to be freed
	}
	least := int64(imageRows)
	if e.data.language() {
		least = tokenRows
	}
	row := 4 * int64(e.live) * int64(nodes)
	most := int(min(max(partBytes/row, least), limit/row))
	var parts [][2]int
	from, rows := 0, 0
	for i, one := range items {
		if rows+one.rows > most && i > from {
			parts = append(parts, [2]int{from, i})
			from, rows = i, 0
		}
		rows += one.rows
	}
	if from < len(items) {
		parts = append(parts, [2]int{from, len(items)})
	}
	return parts
}

// advance takes candidates through more items, given by number, part by part.
func (r *race) advance(ctx context.Context, members, numbers []int) error {
	items := make([]item, len(numbers))
	for k, i := range numbers {
		items[k] = r.items[i]
	}
	for _, part := range r.e.parts(items, max(1, len(members))) {
		left := slices.DeleteFunc(slices.Clone(members), func(c int) bool { return r.failed[c] })
		if len(left) == 0 {
			return nil
		}
		if err := r.part(ctx, left, numbers[part[0]:part[1]], items[part[0]:part[1]]); err != nil {
			return err
		}
	}
	return nil
}

// part adds what some items give.
func (r *race) part(ctx context.Context, members, numbers []int, items []item) error {
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
			for i, v := range terms[k] {
				r.sums[c][numbers[t.rows[i].item]] += v
			}
			total := r.total(c)
			r.failed[c] = math.IsNaN(total) || math.IsInf(total, 0)
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
