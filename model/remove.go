package model

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/fettle-dev/fettle/loader"
)

// Removal takes units of one site away.
type Removal struct {
	Kind SiteKind
	Site string
	Keep []int // the units that stay, in rising order; nil for a site that goes as a whole
}

// Remainder is the smaller model that removals leave: what of the checkpoint's
// tensors it has, in the checkpoint's order, for loader.Checkpoint.View.
type Remainder struct {
	Graph  *Graph        // as Build makes it of the view
	Parts  []loader.Part // Data is not set
	Config []byte        // config.json for the output; nil where the source has none

	// Own says why config.json cannot describe the model to other readers than
	// fettle: its model_type is then one that they refuse. "" where the family's
	// keys can. Among these is head_dim where there are fewer heads of the same
	// size; readers that do not know it find tensors of shapes that they do not
	// expect.
	Own string
}

// Remove takes units away from the model of g, which Build made of tensors with
// the same options. The smaller model is built anew from what is left, by the
// ordinary builder, and compared with g operation by operation.
//
// Blocks that lose everything are taken out and the later ones renumbered, unless
// what a block computes depends on its number. Config keys follow where all
// blocks are cut alike; else see Remainder.Own. Tensors that are read by an
// operation that needs all of them, as an embedding's is, are never cut.
//
// It fails with a *RemovalError, or with what Build fails with. It reads no
// tensor data.
func Remove(g *Graph, tensors []loader.Tensor, o Options, removals []Removal) (*Remainder, error) {
	r := remover{g: g, tensors: tensors, options: o, gone: map[int]bool{}, lost: map[string]map[int]map[int]bool{}, drop: map[string]bool{}, lostKV: map[int]int{}}
	seen := map[string]bool{}
	for _, one := range removals {
		site, err := g.Site(one.Kind, one.Site)
		if err != nil {
			return nil, err
		}
		if seen[string(site.Kind)+" "+site.Name] {
			return nil, &RemovalError{one.Kind, one.Site, "it stands in the list twice"}
		}
		seen[string(site.Kind)+" "+site.Name] = true
		if err := r.take(site, one); err != nil {
			return nil, err
		}
	}
	for _, i := range g.unread(func(i int) bool { return r.gone[i] }) {
		r.gone[i] = true
	}
	if err := r.renumber(); err != nil {
		return nil, err
	}
	return r.remainder()
}

// remover gathers what goes.
type remover struct {
	g       *Graph
	tensors []loader.Tensor
	options Options

	gone map[int]bool                    // operations that go
	lost map[string]map[int]map[int]bool // indices that go, by tensor and axis
	drop map[string]bool                 // prefixes of tensors that go
	stem map[string]string               // "layers.3." to its new name; "" where the block goes
	keep []int                           // of a decoder, the old numbers of the blocks that stay

	lostKV map[int]int // how many heads of keys a block loses
}

// take notes one removal.
func (r *remover) take(s *Site, one Removal) error {
	refuse := func(format string, args ...any) error {
		return &RemovalError{one.Kind, one.Site, fmt.Sprintf(format, args...)}
	}
	if s.Whole() {
		if len(one.Keep) > 0 {
			return refuse("it goes as a whole, so no units of it can stay")
		}
		for _, i := range s.Ops {
			r.gone[i] = true
		}
		if s.Kind != BlockSite {
			r.drop[s.Name+"."] = true // with buffers that the graph does not read
		}
		return nil
	}
	stays := make([]bool, s.Units)
	for i, u := range one.Keep {
		if u < 0 || u >= s.Units || (i > 0 && u <= one.Keep[i-1]) {
			return refuse("unit %d of %d is out of range or out of order", u, s.Units)
		}
		stays[u] = true
	}
	if len(one.Keep) == 0 {
		return refuse("none of its %d units would stay: remove the whole of what it is part of", s.Units)
	}
	runs := s.Units / s.Run
	for first := 0; first < s.Units; first += s.Run {
		n := 0
		for u := first; u < first+s.Run; u++ {
			if stays[u] {
				n++
			}
		}
		if n*runs != len(one.Keep) {
			return refuse("each run of %d must keep the same number of units, at least one: that from unit %d on keeps %d of the %d in %d runs", s.Run, first, n, len(one.Keep), runs)
		}
	}
	if s.Kind == KVGroupSite {
		r.lostKV[s.Block] = s.Units - len(one.Keep)
	}
	for _, sl := range s.Slices {
		if r.lost[sl.Tensor] == nil {
			r.lost[sl.Tensor] = map[int]map[int]bool{}
		}
		if r.lost[sl.Tensor][sl.Axis] == nil {
			r.lost[sl.Tensor][sl.Axis] = map[int]bool{}
		}
		for u, stay := range stays {
			for k := 0; k < sl.Size && !stay; k++ {
				r.lost[sl.Tensor][sl.Axis][sl.Offset+u*sl.Size+k] = true
			}
		}
	}
	return nil
}

// tensorPrefix returns what the tensors' names have before the operations'.
func (r *remover) tensorPrefix() string {
	for i := range r.g.Ops {
		op := &r.g.Ops[i]
		if name, ok := strings.CutSuffix(op.Weight, op.Name+".weight"); ok && stemOf(op.Name) != "" {
			return name
		}
	}
	return ""
}

// stems returns the blocks' stems in order, and whether each has an operation
// left.
func (r *remover) stems() (all []string, left map[string]bool) {
	left = map[string]bool{}
	for i := range r.g.Ops {
		stem := stemOf(r.g.Ops[i].Name)
		if stem == "" {
			continue
		}
		if !slices.Contains(all, stem) {
			all = append(all, stem)
		}
		left[stem] = left[stem] || !r.gone[i]
	}
	return all, left
}

// stageOf returns a stem without its number.
func stageOf(stem string) string {
	return strings.TrimRight(strings.TrimSuffix(stem, "."), "0123456789")
}

// renumber gives the blocks that stay their new numbers.
func (r *remover) renumber() error {
	r.stem = map[string]string{}
	decoder := familyKeys(r.g.Architecture) != nil
	all, left := r.stems()
	if !decoder && r.g.Architecture != cifarResNet {
		return nil
	}
	fixed, layers, err := r.numbered()
	if err != nil {
		return err
	}
	next := map[string]int{}
	number := func(stem string) {
		stage := stageOf(stem)
		r.stem[stem] = stage + strconv.Itoa(next[stage]) + "."
		next[stage]++
	}
	if decoder {
		if !slices.ContainsFunc(all, func(stem string) bool { return left[stem] }) {
			return &RemovalError{BlockSite, r.g.Architecture, "no block would stay"}
		}
		stage := stageOf(all[0])
		for i := range layers {
			stem := stage + strconv.Itoa(i) + "."
			if fixed || left[stem] {
				number(stem)
				r.keep = append(r.keep, i)
			} else {
				r.stem[stem] = ""
			}
		}
		return nil
	}
	for _, stem := range all {
		if left[stem] {
			number(stem)
		} else {
			r.stem[stem] = ""
		}
	}
	for _, stem := range all {
		if stage := stageOf(stem); next[stage] == 0 {
			return &RemovalError{BlockSite, strings.TrimSuffix(stem, "."), fmt.Sprintf("no block of %s would stay, and each stage must keep one", strings.TrimSuffix(stage, "."))}
		}
	}
	return nil
}

// remainder returns what is left, built and checked.
func (r *remover) remainder() (*Remainder, error) {
	m := &Remainder{Parts: r.parts()}
	var err error
	if m.Config, m.Own, err = r.config(); err != nil {
		return nil, err
	}
	o := r.options
	o.Config = m.Config
	var tensors []loader.Tensor
	shapes := map[string]loader.Tensor{}
	for _, t := range r.tensors {
		shapes[t.Name] = t
	}
	for _, p := range m.Parts {
		t := shapes[p.From]
		shape := slices.Clone(t.Shape)
		for axis, keep := range p.Keep {
			if keep != nil {
				shape[axis] = len(keep)
			}
		}
		tensors = append(tensors, loader.Tensor{Name: p.Name, DType: t.DType, Shape: shape})
	}
	if m.Graph, err = Build(tensors, o); err != nil {
		return nil, err
	}
	return m, r.compare(m.Graph)
}

// parts returns what is left of the tensors.
func (r *remover) parts() []loader.Part {
	read := map[string]bool{} // by operations that go: true where one that stays reads it too
	for i := range r.g.Ops {
		for _, name := range r.g.Ops[i].Tensors() {
			read[name] = read[name] || !r.gone[i]
		}
	}
	prefix := r.tensorPrefix()
	var parts []loader.Part
	for _, t := range r.tensors {
		stays, known := read[t.Name]
		inner, inside := strings.CutPrefix(t.Name, prefix)
		for drop := range r.drop {
			if inside && strings.HasPrefix(inner, drop) && !read[t.Name] {
				stays, known = false, true
			}
		}
		p := loader.Part{Name: t.Name, From: t.Name}
		if inside {
			if old := stemOf(inner); old != "" {
				switch stem, ok := r.stem[old]; {
				case ok && stem == "":
					stays, known = false, true
				case ok:
					p.Name = prefix + stem + inner[len(old):]
				}
			}
		}
		if known && !stays {
			continue
		}
		if lost := r.lost[t.Name]; lost != nil {
			p.Keep = make([][]int, len(t.Shape))
			for axis, n := range t.Shape {
				if len(lost[axis]) == 0 {
					continue
				}
				for i := range n {
					if !lost[axis][i] {
						p.Keep[axis] = append(p.Keep[axis], i)
					}
				}
			}
		}
		parts = append(parts, p)
	}
	return parts
}

// errDiffers says that a smaller model does not compute what it should.
var errDiffers = errors.New("the smaller model differs from what is left of the larger one; please report this")

// compare holds the smaller graph against the operations that stay: but for
// names and sizes they must be the same.
func (r *remover) compare(small *Graph) error {
	at := 0
	for i := range r.g.Ops {
		if r.gone[i] {
			continue
		}
		if at == len(small.Ops) || !reflect.DeepEqual(bare(&r.g.Ops[i]), bare(&small.Ops[at])) {
			return fmt.Errorf("model: %w: %s", errDiffers, r.g.Ops[i].Name)
		}
		at++
	}
	if at != len(small.Ops) || !reflect.DeepEqual(r.g.Normalize, small.Normalize) || r.g.Context != small.Context {
		return fmt.Errorf("model: %w", errDiffers)
	}
	return nil
}

// bare returns an operation without names and what removals may change.
func bare(o *Op) Op {
	b := *o
	b.Name, b.Inputs, b.Output, b.Weight, b.Outputs, b.Block, b.Fusion = "", nil, 0, "", 0, 0, ""
	if b.Bias != "" {
		b.Bias = "some"
	}
	if o.Conv != nil {
		c := *o.Conv
		c.Channels = 0
		b.Conv = &c
	}
	if o.BatchNorm != nil {
		b.BatchNorm = &BatchNorm{Eps: o.BatchNorm.Eps}
	}
	if o.Norm != nil {
		b.Norm = &Norm{Eps: o.Norm.Eps}
	}
	if o.Attention != nil {
		a := *o.Attention
		a.Heads, a.KVHeads = 0, 0
		b.Attention = &a
	}
	return b
}
