package model

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/loader"
)

// decoder is the graph of a decoder-only transformer under construction: the
// pieces that families share. Names are those of the tensors without prefix
// and ending.
type decoder struct {
	*graphBuilder
	s      *tensorSet
	c      *config
	prefix string // "model." or the like, "" where the checkpoint has none

	hidden, layers, vocabulary int
	table                      string // the embedding's tensor
	tableWidth                 int    // numbers of a row of it; 0: hidden
	headName                   string // "lm_head" unless a family has another
}

// helpDecoder says how to build tensors that look like a language model's.
func helpDecoder(tensors []loader.Tensor) string {
	for _, t := range tensors {
		if slices.ContainsFunc([]string{"embed_tokens", "wte", "embed_in", "word_embeddings"}, func(name string) bool {
			return strings.HasSuffix(t.Name, name+".weight")
		}) {
			return "these look like a language model's: its folder's config.json must be there, and name a model_type"
		}
	}
	return ""
}

// newDecoder starts a graph whose tensors may have a prefix. class is the name
// that "architectures" must hold.
func newDecoder(architecture, class, prefix string, tensors []loader.Tensor, o Options) *decoder {
	d := &decoder{
		graphBuilder: newGraphBuilder(architecture, []int{1}),
		s:            newTensorSet(architecture, tensors), c: newConfig(architecture, o.Config),
	}
	if slices.ContainsFunc(tensors, func(t loader.Tensor) bool { return strings.HasPrefix(t.Name, prefix) }) {
		d.prefix = prefix
	}
	d.c.common(class)
	d.vocabulary, d.headName = d.c.count("vocab_size", 0), "lm_head"
	return d
}

// failed reports whether going on is of no use.
func (d *decoder) failed() bool { return d.err != nil || d.c.err != nil || d.s.err != nil }

// build appends the blocks, each of which turns the residual stream into the
// next one, and returns the graph. block appends one; finish what comes after
// the last.
func (d *decoder) build(x int, block func(i, x int) int, finish func(x int) int) (*Graph, error) {
	for i := 0; i < d.layers && !d.failed(); i++ {
		d.block = i
		x = block(i, x)
	}
	d.block = -1
	if !d.failed() {
		x = finish(x)
	}
	// The config's problem comes first: the tensors' may follow from it.
	if err := d.c.finish(); err != nil {
		return nil, err
	}
	if err := d.s.finish(); err != nil {
		return nil, err
	}
	return d.finish(x)
}

// linear appends a layer of the given outputs. fusion groups those of a block.
func (d *decoder) linear(name string, x, outputs int, bias bool, fusion string) int {
	op := Op{Kind: Linear, Name: name, Inputs: []int{x}, Weight: d.prefix + name + ".weight", Outputs: outputs, Fusion: fusion}
	d.s.take(op.Weight, outputs, d.width(x))
	op.Bias = d.bias(name, outputs, bias)
	return d.add(op)
}

// conv1D is linear for GPT-2's layers, whose weights are inputs × outputs.
func (d *decoder) conv1D(name string, x, outputs int) int {
	op := Op{Kind: Linear, Name: name, Inputs: []int{x}, Weight: d.prefix + name + ".weight", Outputs: outputs, Transposed: true}
	d.s.take(op.Weight, d.width(x), outputs)
	op.Bias = d.bias(name, outputs, true)
	return d.add(op)
}

func (d *decoder) bias(name string, outputs int, has bool) string {
	if !has {
		return ""
	}
	d.s.take(d.prefix+name+".bias", outputs)
	return d.prefix + name + ".bias"
}

func (d *decoder) width(x int) int { return d.g.Values[x].Shape[0] }

func (d *decoder) rmsNorm(name string, x int, eps float64) int {
	d.s.take(d.prefix+name+".weight", d.width(x))
	return d.add(Op{Kind: RMSNorm, Name: name, Inputs: []int{x}, Norm: &Norm{Weight: d.prefix + name + ".weight", Eps: eps}})
}

func (d *decoder) layerNorm(name string, x int, eps float64) int {
	return d.layerNormOf(eps, true)(name, x)
}

// sum appends a residual connection.
func (d *decoder) sum(name string, x, y int) int {
	return d.add(Op{Kind: Add, Name: name, Inputs: []int{x, y}})
}

// embed appends the embedding and finds the tensors of a tied head: the table
// may be stored under its own name, the head's, or both.
func (d *decoder) embed(name string, tied bool, positions *Embedding) int {
	head := d.headName + ".weight"
	width := d.hidden
	if d.tableWidth > 0 {
		width = d.tableWidth
	}
	d.table = d.prefix + name + ".weight"
	if tied && d.s.has(head) {
		if d.s.has(d.table) {
			d.s.ignore(head)
			d.g.Copies = append(d.g.Copies, Copy{Of: d.table, Name: head})
		} else {
			d.table = head
		}
	}
	d.s.take(d.table, d.vocabulary, width)
	t := Embedding{Table: d.table, Rows: d.vocabulary, Width: width}
	if positions != nil {
		t.Positions, t.MaxPositions = positions.Positions, positions.MaxPositions
		d.s.take(t.Positions, t.MaxPositions, width)
	}
	return d.add(Op{Kind: Embed, Name: name, Inputs: []int{0}, Embedding: &t})
}

// head appends the layer that gives the logits.
func (d *decoder) head(x int, tied bool) int {
	weight := d.headName + ".weight"
	if tied {
		weight = d.table
	}
	d.s.take(weight, d.vocabulary, d.width(x))
	return d.add(Op{Kind: Linear, Name: d.headName, Inputs: []int{x}, Weight: weight, Outputs: d.vocabulary})
}

// Copy is a tensor that is stored a second time.
type Copy struct {
	Of   string `json:"of"`
	Name string `json:"name"`
}

// CheckCopies compares the tensors of g.Copies with what they are copies of,
// and fails with a *TensorError for one that differs: the head is then not tied,
// whatever config.json says.
func CheckCopies(ctx context.Context, g *Graph, w Weights) error {
	for _, c := range g.Copies {
		if err := ctx.Err(); err != nil {
			return err
		}
		a, err := w(c.Of)
		if err != nil {
			return err
		}
		b, err := w(c.Name)
		if err != nil {
			return err
		}
		if !slices.EqualFunc(a, b, func(x, y float32) bool { return math.Float32bits(x) == math.Float32bits(y) }) {
			return &TensorError{g.Architecture, c.Name, fmt.Sprintf("differs from %s, but config.json ties them (tie_word_embeddings)", c.Of)}
		}
	}
	return nil
}
