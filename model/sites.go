package model

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// SiteKind says what the units of a Site are.
type SiteKind string

// The kinds of sites.
const (
	// BlockSite is a whole block: all its sublayers, or a residual block of
	// convolutions whose shortcut is its input.
	BlockSite     SiteKind = "block"
	AttentionSite SiteKind = "attention"  // a whole attention sublayer with its normalization
	MLPSite       SiteKind = "mlp"        // a whole MLP sublayer with its normalization
	KVGroupSite   SiteKind = "kv_group"   // heads of keys, each with the queries that share it; plain heads where none is shared
	QueryHeadSite SiteKind = "query_head" // queries that share keys with others
	ChannelSite   SiteKind = "channel"    // hidden channels of an MLP, filters of a convolution
)

// Site is a place of the graph from which units can be taken away so that what
// is left runs as a smaller model: each unit is the same number of rows or
// columns of some tensors, or the site as a whole is some operations that add to
// a residual sum.
type Site struct {
	Kind  SiteKind
	Name  string // that of a layer, the attention, the sublayer or the block
	Block int    // as Op.Block
	Units int    // 1 where the whole site goes or stays

	// Run is how many neighbouring units belong together: each such run must keep
	// the same number of them, at least one. It is Units where nothing is tied.
	Run int

	Slices    []Slice    // what a unit has of tensors; nil where the whole site goes
	Consumers []Consumer // the layers that read the units' outputs
	Ops       []int      // the operations that go with the whole site
}

// Whole reports whether the site can only go or stay as a whole.
func (s *Site) Whole() bool { return s.Slices == nil }

// Slice says what units have of a tensor: unit u has the indices Offset + u·Size
// … Offset + (u+1)·Size − 1 of an axis.
type Slice struct {
	Tensor       string
	Axis         int
	Offset, Size int
}

// Consumer is a layer that reads units: of its out×in matrix, in counting a
// convolution's kernel, unit u is columns u·Columns … (u+1)·Columns − 1.
type Consumer struct {
	Op      int
	Columns int
}

// RemovalError says that something cannot be taken away, and why.
type RemovalError struct {
	Kind    SiteKind
	Site    string // a site, or the layer that it would be of
	Problem string
}

func (e *RemovalError) Error() string {
	return fmt.Sprintf("cannot remove %s of %s: %s", e.Kind, e.Site, e.Problem)
}

// Sites returns all sites of the graph, in the order of its operations.
func (g *Graph) Sites() []Site {
	var sites []Site
	seen := map[string]bool{}
	add := func(s *Site, err error) {
		if err == nil && !seen[string(s.Kind)+" "+s.Name] {
			seen[string(s.Kind)+" "+s.Name] = true
			sites = append(sites, *s)
		}
	}
	for i := range g.Ops {
		switch op := &g.Ops[i]; {
		case op.Kind == Add:
			add(g.blockSite(i))
			add(g.sublayerSite(i))
		case op.Attention != nil:
			add(g.headSite(i, KVGroupSite))
			add(g.headSite(i, QueryHeadSite))
		case op.IsLayer():
			add(g.channelSite(i))
		}
	}
	return sites
}

// Site returns the site of a kind and a name, or a *RemovalError that says why
// there is none. A ChannelSite answers to the name of each layer that writes its
// channels.
func (g *Graph) Site(kind SiteKind, name string) (*Site, error) {
	var first error
	for i := range g.Ops {
		op := &g.Ops[i]
		var s *Site
		var err error
		switch {
		case kind == BlockSite && op.Kind == Add:
			s, err = g.blockSite(i)
		case (kind == AttentionSite || kind == MLPSite) && op.Kind == Add:
			s, err = g.sublayerSite(i)
		case (kind == KVGroupSite || kind == QueryHeadSite) && op.Attention != nil:
			s, err = g.headSite(i, kind)
		case kind == ChannelSite && op.Name == name && op.IsLayer():
			return g.channelSite(i)
		default:
			continue
		}
		if err == nil && s.Kind == kind && s.Name == name {
			return s, nil
		}
		if bad, ok := errors.AsType[*RemovalError](err); ok && bad.Site == name && first == nil {
			first = bad
		}
	}
	if first == nil {
		first = &RemovalError{kind, name, "the model has nothing of this name that could go"}
	}
	return nil, first
}

// producers returns for each value the operation that writes it, −1 for none.
func (g *Graph) producers() []int {
	by := make([]int, len(g.Values))
	for v := range by {
		by[v] = -1
	}
	for i := range g.Ops {
		by[g.Ops[i].Output] = i
	}
	return by
}

// stemOf returns a name up to its first component that is a number, with the
// dot, such as "layers.3."; "" where it has none.
func stemOf(name string) string {
	at := 0
	for part := range strings.SplitSeq(name, ".") {
		at += len(part) + 1
		if part != "" && strings.IndexFunc(part, func(r rune) bool { return !unicode.IsDigit(r) }) < 0 && at <= len(name) {
			return name[:at]
		}
	}
	return ""
}

// parentOf returns a name without its last component.
func parentOf(name string) string { return name[:max(strings.LastIndex(name, "."), 0)] }

// branch returns the operations of the term that a sum adds to the value skip,
// with the sum itself: they read nothing but skip and each other, and nothing
// else reads them.
func (g *Graph) branch(sum int) (ops []int, skip int, err error) {
	op := &g.Ops[sum]
	by := g.producers()
	bad := &RemovalError{BlockSite, strings.TrimSuffix(stemOf(op.Name), "."), "its shortcut has operations of its own, so that nothing would carry its input on"}
	for k, from := range op.Inputs {
		skip = op.Inputs[1-k]
		if ops, ok := g.between(by, from, skip); ok {
			ops = append(ops, sum)
			for _, i := range ops[:len(ops)-1] {
				for _, reader := range g.Readers(g.Ops[i].Output) {
					if !slices.Contains(ops, reader) {
						bad.Problem = fmt.Sprintf("%s reads what %s gives", g.Ops[reader].Name, g.Ops[i].Name)
						return nil, 0, bad
					}
				}
			}
			return ops, skip, nil
		}
	}
	return nil, 0, bad
}

// between returns the operations from one value back to others, in order; false
// where they read more than those.
func (g *Graph) between(by []int, from int, back ...int) ([]int, bool) {
	var ops []int
	todo := []int{from}
	for len(todo) > 0 {
		v := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if slices.Contains(back, v) {
			continue
		}
		if by[v] < 0 {
			return nil, false
		}
		if !slices.Contains(ops, by[v]) {
			ops = append(ops, by[v])
			todo = append(todo, g.Ops[by[v]].Inputs...)
		}
	}
	slices.Sort(ops)
	return ops, len(ops) > 0
}

// sublayerSite returns the attention or MLP sublayer that a sum adds to the
// residual stream.
func (g *Graph) sublayerSite(sum int) (*Site, error) {
	if g.Ops[sum].Block < 0 {
		return nil, &RemovalError{MLPSite, strings.TrimSuffix(stemOf(g.Ops[sum].Name), "."), "it is of no transformer block; a residual block of convolutions goes as a block"}
	}
	ops, err := g.term(sum)
	if err != nil {
		return nil, err
	}
	s := &Site{Kind: MLPSite, Block: g.Ops[sum].Block, Units: 1, Run: 1, Ops: ops}
	for _, i := range ops {
		switch op := &g.Ops[i]; {
		case op.Kind == Combine: // which comes after its experts
			s.Name = parentOf(op.Name)
		case op.IsLayer():
			s.Name = g.sublayerName(i, sum)
		case op.Attention != nil:
			s.Kind = AttentionSite
		}
	}
	return s, g.checkOwned(s)
}

// blockSite returns the block that a sum is of.
func (g *Graph) blockSite(sum int) (*Site, error) {
	stem := stemOf(g.Ops[sum].Name)
	s := &Site{Kind: BlockSite, Name: strings.TrimSuffix(stem, "."), Block: g.Ops[sum].Block, Units: 1, Run: 1}
	if stem == "" {
		return nil, &RemovalError{BlockSite, g.Ops[sum].Name, "it is part of no numbered block"}
	}
	if s.Block >= 0 {
		for i := range g.Ops {
			if g.Ops[i].Kind == Add && g.Ops[i].Block == s.Block {
				part, err := g.sublayerSite(i)
				if err != nil {
					return nil, err
				}
				s.Ops = append(s.Ops, part.Ops...)
			}
		}
		return s, g.wholeBlock(s)
	}
	ops, skip, err := g.branch(sum)
	if err != nil {
		return nil, err
	}
	// What is left of relu(x + branch) is relu(x), which is x where x is a ReLU's.
	by, readers := g.producers(), g.Readers(g.Ops[sum].Output)
	if len(readers) != 1 || g.Ops[readers[0]].Kind != ReLU || by[skip] < 0 || g.Ops[by[skip]].Kind != ReLU {
		return nil, &RemovalError{BlockSite, s.Name, "it is not of the form relu(x + …) with x a ReLU's output"}
	}
	s.Ops = append(ops, readers[0])
	return s, g.checkOwned(s)
}

// wholeBlock adds to a block's sublayers what else it has, such as normalizations
// behind its sums. All of it must go from one value to one other, which its input
// can then stand for.
func (g *Graph) wholeBlock(s *Site) error {
	sublayers := len(s.Ops)
	for i := range g.Ops {
		if g.Ops[i].Block == s.Block && !slices.Contains(s.Ops, i) {
			s.Ops = append(s.Ops, i)
		}
	}
	if len(s.Ops) == sublayers {
		return nil
	}
	slices.Sort(s.Ops)
	if _, _, ok := g.Through(s.Ops); !ok {
		return &RemovalError{BlockSite, s.Name, "no one value could stand for what it gives"}
	}
	return g.checkOwned(s)
}

// Through returns the one value that operations, in rising order, read of the
// others, and the one that they give, the last one's; false where there are more or
// where the one cannot stand for the other.
func (g *Graph) Through(ops []int) (in, out int, ok bool) {
	inside := map[int]bool{}
	for _, i := range ops {
		inside[g.Ops[i].Output] = true
	}
	in, out = -1, g.Ops[ops[len(ops)-1]].Output
	for i := range g.Ops {
		for _, v := range g.Ops[i].Inputs {
			switch within := slices.Contains(ops, i); {
			case within && !inside[v]:
				if in >= 0 && in != v {
					return 0, 0, false
				}
				in = v
			case !within && inside[v] && v != out:
				return 0, 0, false
			}
		}
	}
	return in, out, in >= 0 && slices.Equal(g.Values[in].Shape, g.Values[out].Shape) && (!inside[g.Output] || g.Output == out)
}

// checkOwned fails where another operation reads a tensor of the site's.
func (g *Graph) checkOwned(s *Site) error {
	own := map[string]bool{}
	for _, sl := range s.Slices {
		own[sl.Tensor] = true
	}
	for _, i := range s.Ops {
		for _, name := range g.Ops[i].Tensors() {
			own[name] = true
		}
	}
	readers := map[string]int{}
	for i := range g.Ops {
		for _, name := range g.Ops[i].Tensors() {
			readers[name]++
		}
	}
	for _, c := range g.Copies {
		readers[c.Of]++
	}
	for name := range own {
		if readers[name] > 1 {
			return &RemovalError{s.Kind, s.Name, fmt.Sprintf("its tensor %s is shared with another operation, which needs all of it", name)}
		}
	}
	return nil
}

// headSite returns the heads of an attention. Taking away keys takes the queries
// along that share them.
func (g *Graph) headSite(i int, kind SiteKind) (*Site, error) {
	op := &g.Ops[i]
	a := op.Attention
	share := a.Heads / a.KVHeads
	s := &Site{Kind: kind, Name: op.Name, Block: op.Block, Units: a.KVHeads, Run: a.KVHeads}
	refuse := func(format string, args ...any) (*Site, error) {
		return nil, &RemovalError{kind, op.Name, fmt.Sprintf(format, args...)}
	}
	if a.ALiBi != nil {
		return refuse("a head's slope of ALiBi follows from its number and how many there are: remove the whole attention")
	}
	q, kv := a.widths()
	slice := func(layer, offset, size int) {
		l := &g.Ops[layer]
		s.Slices = append(s.Slices, Slice{l.Weight, l.outputAxis(), offset, size})
		if l.Bias != "" {
			s.Slices = append(s.Slices, Slice{l.Bias, 0, offset, size})
		}
	}
	by := g.producers()
	for part := range 3 {
		v := op.Inputs[min(part, len(op.Inputs)-1)]
		if by[v] < 0 || g.Ops[by[v]].Kind != Linear || len(g.Readers(v)) != 1 {
			return refuse("value %s is not written by a linear layer for this attention alone", g.Values[v].Name)
		}
		offset, size := 0, a.HeadDim
		if a.Interleaved {
			if kind == QueryHeadSite && share > 1 {
				return refuse("they stand between keys in %s: remove them as kv_group", g.Ops[by[v]].Name)
			}
			if part == 0 && kind == KVGroupSite {
				slice(by[v], 0, (share+2)*a.HeadDim)
			}
			continue
		}
		if len(op.Inputs) == 1 {
			offset = []int{0, q, q + kv}[part]
		}
		switch {
		case part == 0 && kind == KVGroupSite:
			size *= share
		case part > 0 && kind == QueryHeadSite:
			continue
		}
		slice(by[v], offset, size)
	}
	if kind == QueryHeadSite {
		if share == 1 {
			return refuse("each has keys of its own: remove them as kv_group")
		}
		s.Units, s.Run, share = a.Heads, share, 1
	}
	if op.Output == g.Output {
		return refuse("their outputs are the model's")
	}
	for _, r := range g.Readers(op.Output) {
		l := &g.Ops[r]
		if l.Kind != Linear {
			return refuse("their outputs go into %s, which is no linear layer", l.Name)
		}
		s.Slices = append(s.Slices, Slice{l.Weight, l.inputAxis(), 0, share * a.HeadDim})
		s.Consumers = append(s.Consumers, Consumer{r, share * a.HeadDim})
	}
	return s, g.checkOwned(s)
}

func (o *Op) outputAxis() int {
	if o.Transposed {
		return 1
	}
	return 0
}

func (o *Op) inputAxis() int { return 1 - o.outputAxis() }

// channelWalk follows a layer's output channels to all that must be cut with
// them.
type channelWalk struct {
	g    *Graph
	by   []int
	site *Site
	// width holds for each value met how many neighbouring channels a unit has.
	width map[int]int
	todo  []int
	done  map[int]bool // operations crossed
}

// channelSite returns the output channels of a layer, with those of the layers
// that they are multiplied with, up to the layers that read them.
func (g *Graph) channelSite(i int) (*Site, error) {
	op := &g.Ops[i]
	w := channelWalk{
		g: g, by: g.producers(), width: map[int]int{}, done: map[int]bool{},
		site: &Site{Kind: ChannelSite, Name: op.Name, Block: op.Block, Units: op.Outputs, Run: op.Outputs},
	}
	problem := w.meet(op.Output, 1)
	for len(w.todo) > 0 && problem == "" {
		v := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		problem = w.value(v)
	}
	if problem == "" && len(w.site.Consumers) == 0 {
		problem = "no layer reads them"
	}
	if problem == "" && op.Block < 0 && slices.ContainsFunc(g.Ops, func(o Op) bool { return o.Block >= 0 }) {
		problem = "it is part of no block, and its size is the hidden size, which all layers share"
	}
	if problem != "" {
		return nil, &RemovalError{ChannelSite, op.Name, problem}
	}
	for _, c := range w.site.Consumers {
		for _, r := range g.Readers(g.Ops[c.Op].Output) {
			if kind := g.Ops[r].Kind; kind == Combine || kind == ScaleRows {
				return nil, &RemovalError{ChannelSite, op.Name, "they are an expert's, and config.json has one size for the experts of all blocks"}
			}
		}
	}
	// The walk met layers in an order of its own; the graph's is the site's.
	slices.SortFunc(w.site.Consumers, func(a, b Consumer) int { return a.Op - b.Op })
	first := slices.IndexFunc(g.Ops, func(o Op) bool { return o.IsLayer() && w.width[o.Output] > 0 })
	w.site.Name = g.Ops[first].Name
	return w.site, g.checkOwned(w.site)
}

// meet notes that units have width channels each of a value.
func (w *channelWalk) meet(v, width int) (problem string) {
	if got, ok := w.width[v]; ok {
		if got != width {
			return fmt.Sprintf("value %s has them in two ways", w.g.Values[v].Name)
		}
		return ""
	}
	if v == w.g.Output {
		return "they are the model's outputs"
	}
	if v == w.g.Input {
		return "they are tied to the model's inputs"
	}
	w.width[v] = width
	w.todo = append(w.todo, v)
	return ""
}

// value follows a value to the operation that writes it and to those that read
// it.
func (w *channelWalk) value(v int) (problem string) {
	width := w.width[v]
	if problem = w.cross(w.by[v], v, width); problem != "" {
		return problem
	}
	for _, r := range w.g.Readers(v) {
		l := &w.g.Ops[r]
		switch {
		case !l.IsLayer():
			problem = w.cross(r, v, width)
		case l.Groups() > 1:
			problem = fmt.Sprintf("%s reads them in groups", l.Name)
		case l.Kind == Linear && len(w.g.Values[v].Shape) > 2:
			problem = fmt.Sprintf("%s reads another axis than theirs", l.Name)
		default:
			columns := width
			if l.Conv != nil {
				columns *= l.Conv.KernelH * l.Conv.KernelW
			}
			w.site.Slices = append(w.site.Slices, Slice{l.Weight, l.inputAxis(), 0, width})
			w.site.Consumers = append(w.site.Consumers, Consumer{r, columns})
		}
		if problem != "" {
			return problem
		}
	}
	return ""
}

// cross carries the channels of value v over an operation that writes or reads
// it, to its other values.
func (w *channelWalk) cross(i, v, width int) (problem string) {
	o := &w.g.Ops[i]
	if w.done[i] {
		return ""
	}
	w.done[i] = true
	cut := func(names ...string) {
		for _, name := range names {
			w.site.Slices = append(w.site.Slices, Slice{name, 0, 0, width})
		}
	}
	switch o.Kind {
	case Conv2D, Linear: // it writes v
		switch {
		case o.Groups() > 1:
			return fmt.Sprintf("%s writes them in groups", o.Name)
		case width != 1 || o.Outputs != w.site.Units || (o.Kind == Linear && len(w.g.Values[v].Shape) > 2):
			return fmt.Sprintf("%s writes them in another way", o.Name)
		}
		w.site.Slices = append(w.site.Slices, Slice{o.Weight, o.outputAxis(), 0, 1})
		if o.Bias != "" {
			cut(o.Bias)
		}
		return ""
	case BatchNorm2D:
		cut(o.BatchNorm.Scale, o.BatchNorm.Shift, o.BatchNorm.Mean, o.BatchNorm.Var)
	case ReLU, LeakyReLU, Sigmoid, Tanh, GELU, GELUTanh, SiLUMul, GlobalAvgPool:
	case Flatten:
		in := w.g.Values[o.Inputs[0]].Shape
		if v != o.Inputs[0] || len(in) == 2 {
			return fmt.Sprintf("%s gathers them from several axes", o.Name)
		}
		return w.meet(o.Output, width*size(in)/in[0])
	case Add, SubsamplePad:
		return fmt.Sprintf("they flow into the residual stream at %s, whose channels all blocks share", o.Name)
	case RMSNorm, LayerNorm:
		return fmt.Sprintf("%s normalizes over all of them", o.Name)
	case Attend:
		return "they are an attention's queries, keys or values: remove heads"
	default:
		return fmt.Sprintf("%s cannot do with fewer of them", o.Name)
	}
	for _, other := range append(slices.Clone(o.Inputs), o.Output) {
		if problem = w.meet(other, width); problem != "" {
			return problem
		}
	}
	return ""
}
