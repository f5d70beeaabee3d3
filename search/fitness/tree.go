package fitness

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/search"
)

// tree takes candidates through the graph with some items. It begins as one node and
// divides where candidates begin to differ.
type tree struct {
	e          *Evaluator
	candidates []search.Candidate
	items      []item
	rows       []countedRow // that count
	n          int          // all rows
	nodes      []*node
	held       map[key]Variant // of levels that operations at hand read
	count      bool            // operations are counted
}

// countedRow is a row whose answer counts.
type countedRow struct {
	item, at int // of the tree's items; the row within it
	row      int // within all of them
}

// node are candidates whose values are the same so far.
type node struct {
	members []int         // indices of candidates, rising
	values  []*value      // by the graph's values; nil: not there, or no more
	weights model.Weights // of the operation at hand
	rows    model.Rows    // of the operation at hand
	head    *model.Head   // of a language model, once the tree has ended
}

// value is shared by nodes, and freed by the last of them.
type value struct {
	tensor *model.Tensor
	refs   atomic.Int32
}

func newValue(t *model.Tensor) *value {
	v := &value{tensor: t}
	v.refs.Store(1)
	return v
}

func (v *value) share() *value {
	if v != nil {
		v.refs.Add(1)
	}
	return v
}

// drop takes a value from a node.
func (t *tree) drop(n *node, v int) {
	if n.values[v] != nil && n.values[v].refs.Add(-1) == 0 {
		t.e.space.Free(n.values[v].tensor.Data)
	}
	n.values[v] = nil
}

// free gives back all values.
func (t *tree) free() {
	for _, n := range t.nodes {
		for v := range n.values {
			t.drop(n, v)
		}
	}
}

// grow makes a tree of some candidates and takes it to the end, for a language model
// to its hidden states. The caller frees it.
func (e *Evaluator) grow(ctx context.Context, candidates []search.Candidate, members []int, items []item, count bool) (*tree, error) {
	t := &tree{e: e, candidates: candidates, items: items, held: map[key]Variant{}, count: count}
	for k, one := range items {
		for at := range e.data.counted(one) {
			t.rows = append(t.rows, countedRow{k, at, t.n + at})
		}
		t.n += one.rows
	}
	input, err := e.input(items, t.n)
	if err != nil {
		return t, err
	}
	root := &node{members: members, values: make([]*value, len(e.model.Graph.Values))}
	root.values[e.model.Graph.Input] = newValue(input)
	t.nodes = []*node{root}
	for i := range e.last() {
		if err := t.step(ctx, i); err != nil {
			return t, err
		}
	}
	if e.data.language() {
		return t, t.heads(ctx)
	}
	return t, nil
}

// input returns the items as the graph reads them.
func (e *Evaluator) input(items []item, rows int) (*model.Tensor, error) {
	if e.data.language() {
		sequences := make([][]uint32, len(items))
		for k, one := range items {
			sequences[k] = e.data.sequences[one.index][:one.rows]
		}
		return model.NewTokens(sequences...), nil
	}
	shape := e.model.Graph.Values[e.model.Graph.Input].Shape
	per := 1
	for _, d := range shape {
		per *= d
	}
	x := &model.Tensor{Shape: append([]int{rows}, shape...)}
	var err error
	if x.Data, err = e.space.Floats(rows * per); err != nil {
		return nil, err
	}
	for k, one := range items {
		if err := e.data.images.Read(x.Data[k*per:][:per], one.index, 1); err != nil {
			e.space.Free(x.Data)
			return nil, err
		}
	}
	return x, nil
}

// step computes one operation in all nodes.
func (t *tree) step(ctx context.Context, i int) error {
	if err := t.begin(ctx, i); err != nil {
		return err
	}
	run, err := t.prepare(ctx, i)
	if err != nil {
		return err
	}
	err = t.e.pool.For(ctx, len(run), func(k int) error { return t.compute(ctx, run[k], i) })
	if err != nil {
		return err
	}
	for _, n := range t.nodes {
		if t.skips(n, i) {
			t.forget(n, i)
		}
	}
	t.release(i)
	return nil
}

// compute runs an operation in one node.
func (t *tree) compute(ctx context.Context, n *node, i int) error {
	o := &t.e.model.Graph.Ops[i]
	in := make([]*model.Tensor, len(o.Inputs))
	for k, v := range o.Inputs {
		in[k] = n.values[v].tensor
	}
	y, err := t.e.exec.With(n.weights, n.rows).Step(ctx, i, in)
	if err != nil {
		return err
	}
	n.values[o.Output] = newValue(y)
	if t.e.lastUse[o.Output] < 0 {
		t.drop(n, o.Output)
	}
	t.forget(n, i)
	return nil
}

// forget takes from a node what no operation after i reads.
func (t *tree) forget(n *node, i int) {
	for _, v := range t.e.model.Graph.Ops[i].Inputs {
		if t.e.lastUse[v] == i {
			t.drop(n, v)
		}
	}
}

// begin divides the nodes by which candidates drop the sites that begin at an
// operation, and passes on the values that the dropped ones read.
func (t *tree) begin(ctx context.Context, i int) error {
	genes := t.e.ops[i].begins
	if len(genes) == 0 {
		return nil
	}
	var need []key
	for _, n := range t.nodes {
		for _, c := range n.members {
			for _, gene := range genes {
				k := key{gene: gene, level: t.level(c, gene)}
				if _, known := t.e.levels.isDropped(k); !known {
					need = append(need, k)
				}
			}
		}
	}
	if err := t.hold(ctx, need); err != nil {
		return err
	}
	t.divide(func(_ *node, c int) string {
		b := make([]byte, len(genes))
		for k, gene := range genes {
			if t.dropped(c, gene) {
				b[k] = 1
			}
		}
		return string(b)
	})
	for _, n := range t.nodes {
		for _, gene := range genes {
			s := &t.e.sites[gene]
			if t.dropped(n.members[0], gene) && n.values[s.out] == nil {
				n.values[s.out] = n.values[s.in].share() // nil within a larger site that is dropped
			}
		}
	}
	return nil
}

func (t *tree) level(candidate, gene int) int { return t.candidates[candidate][gene] }

func (t *tree) dropped(candidate, gene int) bool {
	dropped, _ := t.e.levels.isDropped(key{gene: gene, level: t.level(candidate, gene)})
	return dropped
}

// skips reports whether an operation is of a site that a node's candidates drop.
func (t *tree) skips(n *node, i int) bool {
	return slices.ContainsFunc(t.e.ops[i].inside, func(gene int) bool { return t.dropped(n.members[0], gene) })
}

// prepare divides the nodes by the tensors that an operation reads, and returns
// those that run it, with its weights at hand.
func (t *tree) prepare(ctx context.Context, i int) ([]*node, error) {
	o := &t.e.ops[i]
	var need []key
	for _, n := range t.nodes {
		if len(o.genes) == 0 || t.skips(n, i) {
			continue
		}
		for _, c := range n.members {
			for _, gene := range o.genes {
				if k := (key{gene: gene, level: t.level(c, gene)}); k.level != Original {
					need = append(need, k)
				}
			}
		}
	}
	if err := t.hold(ctx, need); err != nil {
		return nil, err
	}
	if len(need) > 0 {
		t.divide(func(n *node, c int) string {
			if t.skips(n, i) {
				return ""
			}
			var b []byte
			for _, gene := range o.genes {
				level := t.level(c, gene)
				if !t.replaces(key{gene: gene, level: level}, o.tensors) {
					level = Original
				}
				b = binary.AppendVarint(b, int64(level))
			}
			return string(b)
		})
	}
	originals := map[string]func() ([]float32, error){}
	for _, name := range o.tensors {
		originals[name] = sync.OnceValues(func() ([]float32, error) {
			v, err := t.e.levels.get(ctx, key{gene: -1, tensor: name})
			return v.Tensors[name], err
		})
	}
	var run []*node
	for _, n := range t.nodes {
		if t.skips(n, i) {
			continue
		}
		t.equip(n, i, originals)
		run = append(run, n)
		if t.count {
			t.e.operations.Add(int64(t.n))
		}
	}
	return run, nil
}

// replaces reports whether a level that is held has one of some tensors.
func (t *tree) replaces(k key, tensors []string) bool {
	return slices.ContainsFunc(tensors, func(name string) bool {
		_, ok := t.held[k].Tensors[name]
		return ok
	})
}

// equip gives a node the weights of an operation.
func (t *tree) equip(n *node, i int, originals map[string]func() ([]float32, error)) {
	n.rows = t.e.model.Rows
	own := map[string][]float32{}
	for _, gene := range t.e.ops[i].genes {
		k := key{gene: gene, level: t.level(n.members[0], gene)}
		for _, name := range t.e.ops[i].tensors {
			if values, ok := t.held[k].Tensors[name]; ok {
				own[name] = values
			}
		}
	}
	n.weights = func(name string) ([]float32, error) {
		if values, ok := own[name]; ok {
			return values, nil
		}
		return originals[name]()
	}
	o := &t.e.model.Graph.Ops[i]
	if o.Embedding == nil {
		return
	}
	if _, ok := own[o.Embedding.Table]; ok {
		n.rows = nil // the table is whole, and here
	}
}

// hold reads the levels that are not at hand, on all workers.
func (t *tree) hold(ctx context.Context, need []key) error {
	slices.SortFunc(need, func(a, b key) int {
		if a.gene != b.gene {
			return a.gene - b.gene
		}
		return a.level - b.level
	})
	need = slices.DeleteFunc(slices.Compact(need), func(k key) bool {
		_, ok := t.held[k]
		return ok
	})
	got := make([]Variant, len(need))
	err := t.e.pool.For(ctx, len(need), func(k int) (err error) {
		got[k], err = t.e.levels.get(ctx, need[k])
		return err
	})
	for k, v := range got {
		t.held[need[k]] = v
	}
	return err
}

// near is how many operations ahead a level is held that is read there, so that a
// gene of a few neighbouring layers is read once.
const near = 8

// release lets go of the levels that no operation soon after i reads.
func (t *tree) release(i int) {
	for k := range t.held {
		soon := false
		for j := i + 1; j <= min(i+near, len(t.e.ops)-1); j++ {
			soon = soon || slices.Contains(t.e.ops[j].genes, k.gene)
		}
		if !soon {
			delete(t.held, k)
		}
	}
}

// divide splits each node into one for each key of its members.
func (t *tree) divide(keyOf func(n *node, candidate int) string) {
	var nodes []*node
	for _, n := range t.nodes {
		if len(n.members) == 1 {
			nodes = append(nodes, n)
			continue
		}
		parts := map[string]*node{}
		members := n.members
		for _, c := range members {
			k := keyOf(n, c)
			part := parts[k]
			switch {
			case part != nil:
				part.members = append(part.members, c)
				continue
			case len(parts) == 0:
				part = n
				part.members = []int{c}
			default:
				part = &node{members: []int{c}, values: make([]*value, len(n.values))}
				for v := range n.values {
					part.values[v] = n.values[v].share()
				}
			}
			parts[k] = part
			nodes = append(nodes, part)
		}
	}
	t.nodes = nodes
}

// heads makes a language model's tree ready for logits.
func (t *tree) heads(ctx context.Context) error {
	i := len(t.e.ops) - 1
	run, err := t.prepare(ctx, i)
	if err != nil {
		return err
	}
	for _, n := range run {
		if n.head, err = t.e.exec.With(n.weights, n.rows).Head(); err != nil {
			return err
		}
	}
	clear(t.held)
	return nil
}

// answerOf returns what a node's last operation in the tree wrote, row by row.
func (t *tree) answerOf(n *node) blas32.General {
	data := n.values[t.e.answerValue()].tensor.Data
	width := len(data) / t.n
	return blas32.General{Rows: t.n, Cols: width, Stride: width, Data: data}
}
