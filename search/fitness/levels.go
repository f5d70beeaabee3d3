package fitness

import (
	"container/list"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// key names a level of a gene, or, of gene −1, a tensor of the original.
type key struct {
	gene, level int
	tensor      string
}

// levels reads tensors and keeps those used last.
type levels struct {
	model Model
	limit int64
	read  atomic.Int64 // calls of Model.Level

	mu      sync.Mutex
	bytes   int64
	entries map[key]*list.Element // of *entry
	order   *list.List            // the one used last in front
	dropped map[key]bool          // of all levels ever read
}

type entry struct {
	key     key
	variant Variant
	bytes   int64
}

func newLevels(m Model, limit int64) *levels {
	return &levels{model: m, limit: limit, entries: map[key]*list.Element{}, order: list.New(), dropped: map[key]bool{}}
}

func (l *levels) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.entries)
	l.order.Init()
	l.bytes = 0
}

// isDropped reports whether a level drops its gene; known is false where it was
// never read.
func (l *levels) isDropped(k key) (dropped, known bool) {
	if k.level == Original {
		return false, true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	dropped, known = l.dropped[k]
	return dropped, known
}

// get returns a level's tensors, or one of the original's.
func (l *levels) get(ctx context.Context, k key) (Variant, error) {
	l.mu.Lock()
	if at, ok := l.entries[k]; ok {
		l.order.MoveToFront(at)
		l.mu.Unlock()
		return at.Value.(*entry).variant, nil
	}
	l.mu.Unlock()
	v, err := l.load(ctx, k)
	if err != nil {
		return v, err
	}
	one := &entry{key: k, variant: v, bytes: 64}
	for _, t := range v.Tensors {
		one.bytes += int64(len(t)) * 4
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.gene >= 0 {
		l.dropped[k] = v.Dropped
	}
	if _, ok := l.entries[k]; ok || one.bytes > l.limit {
		return v, nil
	}
	l.entries[k] = l.order.PushFront(one)
	for l.bytes += one.bytes; l.bytes > l.limit; {
		old := l.order.Remove(l.order.Back()).(*entry)
		delete(l.entries, old.key)
		l.bytes -= old.bytes
	}
	return v, nil
}

func (l *levels) load(ctx context.Context, k key) (Variant, error) {
	if k.gene < 0 {
		t, err := l.model.Weights(k.tensor)
		return Variant{Tensors: map[string][]float32{k.tensor: t}}, err
	}
	l.read.Add(1)
	v, err := l.model.Level(ctx, k.gene, k.level)
	if err != nil {
		return v, &LevelError{k.gene, k.level, err}
	}
	gene := &l.model.Genes[k.gene]
	for name := range v.Tensors {
		if !slices.Contains(gene.Tensors, name) {
			return v, &LevelError{k.gene, k.level, fmt.Errorf("it has tensor %s, which is none of the gene's", name)}
		}
	}
	if v.Dropped && gene.Site == nil {
		return v, &LevelError{k.gene, k.level, fmt.Errorf("it drops a gene that has no site")}
	}
	return v, nil
}
