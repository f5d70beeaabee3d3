package model

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/loader"
)

// Task says what a model's output is, and so how two models are compared.
type Task string

// The tasks of encoders. Without one, a model's output is the logits of an
// image's classes, or of the token that comes next.
const (
	TokenClasses    Task = "token_classes"    // logits for each token: a masked language model, or labels
	SequenceClasses Task = "sequence_classes" // logits for each sequence
	Features        Task = "features"         // numbers that are no logits
)

// Sequence says how the positions of an image, row by row, become tokens of as
// many numbers as it has channels.
type Sequence struct {
	// Prefix names the tensors of tokens that stand before them, such as ViT's class
	// token.
	Prefix []string `json:"prefix,omitempty"`
	// Positions names what is added: a row for each token, those of Prefix included;
	// "" for nothing.
	Positions string `json:"positions,omitempty"`
}

func (s *Sequence) tensors() []string {
	names := slices.Clone(s.Prefix)
	if s.Positions != "" {
		names = append(names, s.Positions)
	}
	return names
}

func (s *Sequence) String() string {
	text := "positions as tokens"
	if len(s.Prefix) > 0 {
		text += " after " + strings.Join(s.Prefix, ", ")
	}
	if s.Positions != "" {
		text += ", plus " + s.Positions
	}
	return text
}

func (s *Sequence) outputShape(x []int) ([]int, error) {
	if s == nil {
		return nil, errors.New("tokens without their parameters")
	}
	if err := wantImage(x); err != nil {
		return nil, err
	}
	return []int{len(s.Prefix) + x[1]*x[2], x[0]}, nil
}

// sequences returns the tokens of each sequence in a batch of values of one axis
// or, a sequence a sample, of two; nil where that is not known.
func (t *Tensor) sequences() []int {
	if len(t.Shape) < 3 {
		return t.Lengths
	}
	return slices.Repeat([]int{t.Shape[1]}, t.Shape[0])
}

// computeEncoder is compute for the operations of encoders.
func (e *Executor) computeEncoder(ctx context.Context, o *Op, in []*Tensor, y *Tensor) error {
	switch o.Kind {
	case ToTokens:
		return e.toTokens(ctx, o.Sequence, in[0], y)
	case FirstToken:
		return e.firstToken(ctx, in[0], y)
	}
	return fmt.Errorf("unknown kind of operation %q", o.Kind)
}

func (e *Executor) toTokens(ctx context.Context, s *Sequence, x, y *Tensor) error {
	tokens, width := y.Shape[1], y.Shape[2]
	prefix := make([]float32, 0, len(s.Prefix)*width)
	for _, name := range s.Prefix {
		t, err := e.read(name, width)
		if err != nil {
			return err
		}
		prefix = append(prefix, t...)
	}
	var positions []float32
	if s.Positions != "" {
		var err error
		if positions, err = e.read(s.Positions, tokens*width); err != nil {
			return err
		}
	}
	area := tokens - len(s.Prefix)
	return e.perSample(ctx, []*Tensor{x}, y, func(in [][]float32, out []float32) error {
		rest := out[copy(out, prefix):]
		for c := range width {
			for p, v := range in[0][c*area:][:area] {
				rest[p*width+c] = v
			}
		}
		if positions != nil {
			vec.Add(out, out, positions)
		}
		return nil
	})
}

func (e *Executor) firstToken(ctx context.Context, x, y *Tensor) error {
	width := y.Shape[1]
	at := 0
	for s, n := range x.sequences() {
		if n == 0 {
			return fmt.Errorf("sequence %d has no token to take", s)
		}
		copy(y.Data[s*width:][:width], x.Data[at*width:])
		at += n
	}
	if x.Lengths == nil && len(x.Shape) < 3 {
		return errors.New("rows without the lengths of their sequences")
	}
	return ctx.Err()
}

// addType adds row 0 of the token types to every token.
func (e *Executor) addType(ctx context.Context, t *Embedding, y *Tensor) error {
	types, err := e.read(t.Types, t.TypeRows*t.Width)
	if err != nil {
		return err
	}
	return e.perRow(ctx, y.Shape[0], t.Width, func(r int) error {
		row := y.Data[r*t.Width:][:t.Width]
		vec.Add(row, row, types)
		return nil
	})
}

// encoder is the graph of a transformer's encoder under construction; a
// decoder's pieces serve it too.
type encoder struct {
	*decoder
	// head is what stands on the encoder: the name of the class in "architectures"
	// without that of its family, such as "ForMaskedLM".
	head      string
	attention Attention // of every block
	shapeOf   func(i int) BlockShape
	activate  OpKind
	eps       float64
}

// newEncoder starts a graph whose tensors may have one of the prefixes. class is
// what names of classes begin with, heads how they may end; the first is taken
// where config.json names no class.
func newEncoder(architecture, class string, prefixes, heads []string, input []int, tensors []loader.Tensor, o Options) *encoder {
	d := &decoder{
		graphBuilder: newGraphBuilder(architecture, input),
		s:            newTensorSet(architecture, tensors), c: newConfig(architecture, o.Config),
	}
	for _, prefix := range slices.Backward(prefixes) { // the first wins
		if slices.ContainsFunc(tensors, func(t loader.Tensor) bool { return strings.HasPrefix(t.Name, prefix) }) {
			d.prefix = prefix
		}
	}
	if architecture == whisper {
		delete(d.c.raw, "is_encoder_decoder") // of its two parts one is built
	}
	e := &encoder{decoder: d, head: heads[0]}
	classes := get(d.c, "architectures", []string{class + heads[0]})
	at := slices.IndexFunc(classes, func(name string) bool {
		head, ok := strings.CutPrefix(name, class)
		return ok && slices.Contains(heads, head)
	})
	if at < 0 {
		want := make([]string, len(heads))
		for i, head := range heads {
			want[i] = class + head
		}
		d.c.fail("architectures", "%s is not supported, want one of %s", strings.Join(classes, ", "), strings.Join(want, ", "))
		return e
	}
	e.head = strings.TrimPrefix(classes[at], class)
	d.c.common(classes[at])
	only(d.c, "is_decoder", false)
	return e
}

// helpEncoder says how to build tensors that look like an encoder's.
func helpEncoder(tensors []loader.Tensor) string {
	for _, t := range tensors {
		for _, end := range []string{"embeddings.word_embeddings.weight", "embeddings.cls_token", "encoder.embed_positions.weight"} {
			if strings.HasSuffix(t.Name, end) {
				return "these look like an encoder's: its folder's config.json must be there, and name a model_type"
			}
		}
	}
	return ""
}

// encoderKeys are the names of config.json's keys; those of gpt2's kind differ.
type encoderKeys struct{ hidden, layers, heads, inner, act string }

// sizes reads what all blocks are made of.
func (e *encoder) sizes(k encoderKeys, eps float64) {
	c := e.c
	e.hidden, e.layers = c.count(k.hidden, 0), c.count(k.layers, 0)
	heads := c.count(k.heads, 0)
	if e.hidden%heads != 0 {
		c.fail(k.heads, "%d heads cannot share %s %d", heads, k.hidden, e.hidden)
	}
	dim := max(e.hidden/heads, 1)
	e.attention = Attention{Heads: heads, KVHeads: heads, HeadDim: dim, Scale: 1 / math.Sqrt(float64(dim))}
	e.shapeOf = e.blockShapes(BlockShape{heads, heads, c.count(k.inner, 0)})
	e.activate, e.eps = e.activation(k.act, "gelu"), eps
}

// activation reads the key of an activation.
func (e *encoder) activation(key, absent string) OpKind {
	name := get(e.c, key, absent)
	kind, ok := geluKinds[name]
	if name == "tanh" {
		kind, ok = Tanh, true
	}
	if !ok {
		e.c.fail(key, "%q is not supported, want gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu or tanh", name)
	}
	return kind
}

// norm appends a LayerNorm, whose tensors old checkpoints call gamma and beta.
func (e *encoder) norm(name string, x int) int {
	weight, bias := e.prefix+name+".weight", e.prefix+name+".bias"
	if old := e.prefix + name + ".gamma"; e.s.has(old) && !e.s.has(weight) {
		weight, bias = old, e.prefix+name+".beta"
	}
	width := e.lastAxis(x)
	e.s.take(weight, width)
	e.s.take(bias, width)
	return e.add(Op{Kind: LayerNorm, Name: name, Inputs: []int{x}, Norm: &Norm{Weight: weight, Bias: bias, Eps: e.eps}})
}

func (e *encoder) lastAxis(x int) int {
	shape := e.g.Values[x].Shape
	return shape[len(shape)-1]
}

// layer appends a linear layer whose tensors have the given prefix.
func (e *encoder) layer(prefix, name string, x, outputs int, bias bool, fusion string) int {
	op := Op{Kind: Linear, Name: name, Inputs: []int{x}, Weight: prefix + name + ".weight", Outputs: outputs, Fusion: fusion}
	e.s.take(op.Weight, outputs, e.lastAxis(x))
	if bias {
		op.Bias = prefix + name + ".bias"
		e.s.take(op.Bias, outputs)
	}
	return e.add(op)
}

func (e *encoder) apply(kind OpKind, name string, x int) int {
	return e.add(Op{Kind: kind, Name: name, Inputs: []int{x}})
}

// blockNames are what a family calls the parts of a block.
type blockNames struct {
	stem       string // before the block's number
	attention  string // all of it
	q, k, v, o string
	attendNorm string
	inner      string
	outer      string
	mlpNorm    string

	before bool // a sublayer's normalization stands before it, not after its sum
	qBias  bool // of q and v
	kBias  bool
}

// encoderBlock appends a block: attention to all tokens and an MLP, each
// added to what it reads (Vaswani et al. 2017, section 3.1), with normalizations
// behind the sums or before the sublayers (Xiong et al. 2020).
func (e *encoder) encoderBlock(n *blockNames, i, x int) int {
	name := fmt.Sprintf("%s%d.", n.stem, i)
	shape := e.shapeOf(i)
	sublayer := func(norm, sum string, x int, compute func(x int) int) int {
		y := x
		if n.before {
			y = e.norm(norm, x)
		}
		x = e.sum(sum, x, compute(y))
		if !n.before {
			x = e.norm(norm, x)
		}
		return x
	}
	switch {
	case shape.Heads > 0:
		x = sublayer(name+n.attendNorm, name+"attention_sum", x, func(x int) int {
			a := e.attention
			a.Heads, a.KVHeads = shape.Heads, shape.KVHeads
			q, kv := a.widths()
			fusion := name + n.attention + ".qkv"
			qkv := []int{
				e.layer(e.prefix, name+n.q, x, q, n.qBias, fusion),
				e.layer(e.prefix, name+n.k, x, kv, n.kBias, fusion),
				e.layer(e.prefix, name+n.v, x, kv, n.qBias, fusion),
			}
			y := e.add(Op{Kind: Attend, Name: name + n.attention, Inputs: qkv, Attention: &a})
			return e.layer(e.prefix, name+n.o, y, e.hidden, true, "")
		})
	case !n.before: // the sublayer is gone, the normalization behind it is not
		x = e.norm(name+n.attendNorm, x)
	}
	switch {
	case shape.Channels > 0:
		x = sublayer(name+n.mlpNorm, name+"mlp_sum", x, func(x int) int {
			y := e.layer(e.prefix, name+n.inner, x, shape.Channels, true, "")
			return e.layer(e.prefix, name+n.outer, e.apply(e.activate, name+n.inner+"_act", y), e.hidden, true, "")
		})
	case !n.before:
		x = e.norm(name+n.mlpNorm, x)
	}
	return x
}

// classes returns how many outputs a classifier has, by its weight.
func (e *encoder) classes(weight string, inputs int) int { return e.s.take(weight, -1, inputs)[0] }

// classify appends a classifier over what x has for each token or sequence, and
// says of which sort its outputs are.
func (e *encoder) classify(name string, x int, task Task) int {
	n := e.classes(name+".weight", e.lastAxis(x))
	e.g.Task = task
	if n == 1 || get(e.c, "problem_type", "") == "regression" || get(e.c, "problem_type", "") == "multi_label_classification" {
		e.g.Task = Features // no distribution over classes
	}
	return e.layer("", name, x, n, true, "")
}

func (e *encoder) first(name string, x int) int { return e.apply(FirstToken, name, x) }
