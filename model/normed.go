package model

import (
	"math"
	"strings"
)

// normedBlocks says how decoders with LayerNorm join the two sublayers of a
// block. They differ in where the normalizations stand, not in much else.
type normedBlocks struct {
	attentionNorm string
	mlpNorm       string // "": the attention's serves both
	parallel      bool   // both sublayers read the block's input
	after         bool   // normalizations stand after the sums, not before the sublayers
	fromNorm      bool   // the sums begin at the normalizations' outputs

	norm func(name string, x int) int
	// attention and mlp append a sublayer without its normalization and sum.
	// block is "layers.3." or the like.
	attention func(block string, x int, a *Attention) int
	mlp       func(block string, x, channels int) int
}

// normedBlock appends a block. A sublayer of no heads or channels is missing;
// its normalization then stands only where the residual stream goes through it.
func (d *decoder) normedBlock(f *normedBlocks, block string, x int, a Attention, shape BlockShape) int {
	through := f.after || f.fromNorm
	input := x // what a parallel MLP reads
	y := x
	shared := f.mlpNorm == "" && shape.Channels > 0
	if !f.after && (shape.Heads > 0 || through || shared) {
		y = f.norm(block+f.attentionNorm, x)
		if f.fromNorm {
			x = y
		}
	}
	if f.mlpNorm == "" {
		input = y
	}
	if shape.Heads > 0 {
		a.Heads, a.KVHeads = shape.Heads, shape.KVHeads
		x = d.sum(block+"attention_sum", x, f.attention(block, y, &a))
	}
	if f.after {
		x = f.norm(block+f.attentionNorm, x)
	}

	if !f.parallel {
		input = x
	}
	if f.mlpNorm != "" && !f.after && (shape.Channels > 0 || through) {
		input = f.norm(block+f.mlpNorm, input)
		if f.fromNorm {
			x = input
		}
	}
	if shape.Channels > 0 {
		y := input
		if f.after {
			y = x
		}
		x = d.sum(block+"mlp_sum", x, f.mlp(block, y, shape.Channels))
	}
	if f.after {
		x = f.norm(block+f.mlpNorm, x)
	}
	return x
}

// layerNormOf returns layerNorm with an eps, and without parameters unless affine.
func (d *decoder) layerNormOf(eps float64, affine bool) func(name string, x int) int {
	return func(name string, x int) int {
		n := &Norm{Eps: eps}
		if affine {
			n.Weight = d.prefix + name + ".weight"
			d.s.take(n.Weight, d.width(x))
			n.Bias = d.bias(name, d.width(x), true)
		}
		return d.add(Op{Kind: LayerNorm, Name: name, Inputs: []int{x}, Norm: n})
	}
}

// heads reads how many heads share d.hidden. kvKey "" means that each has keys of
// its own.
func (d *decoder) heads(key, kvKey string) Attention {
	heads := d.c.count(key, 0)
	a := Attention{Heads: heads, KVHeads: heads, HeadDim: max(d.hidden/heads, 1), Causal: true}
	if d.hidden%heads != 0 {
		d.c.fail(key, "%d heads cannot share a hidden size of %d", heads, d.hidden)
	}
	if kvKey != "" {
		if a.KVHeads = d.c.count(kvKey, heads); heads%a.KVHeads != 0 {
			d.c.fail(kvKey, "%d heads cannot share %d keys", heads, a.KVHeads)
		}
	}
	a.Scale = 1 / math.Sqrt(float64(a.HeadDim))
	return a
}

// activation reads the function between an MLP's layers.
func (c *config) activation(key, absent string) OpKind {
	name := get(c, key, absent)
	kind, ok := geluKinds[name]
	if !ok {
		c.fail(key, "%q is not supported, want gelu, gelu_new, gelu_fast, gelu_pytorch_tanh or relu", name)
	}
	return kind
}

// pass marks keys that change nothing of the forward pass.
func (c *config) pass(keys string) {
	for key := range strings.FieldsSeq(keys) {
		c.read[key] = true
	}
}

// either returns the one of two names of a key that is set, the first where
// neither is.
func (c *config) either(key, other string) string {
	if !c.set(other) {
		return key
	}
	if c.set(key) && string(c.raw[key]) != string(c.raw[other]) {
		c.fail(other, "%s contradicts %s %s", c.raw[other], key, c.raw[key])
	}
	c.read[key] = true
	return other
}

// fusedAttention appends an attention whose q, k and v come of one layer.
func (d *decoder) fusedAttention(name string, x int, a *Attention, bias bool) int {
	for _, old := range []string{".bias", ".masked_bias", ".rotary_emb.inv_freq", ".maybe_rotary.inv_freq"} {
		d.s.ignore(d.prefix + name + old) // masks and angles, which old versions stored
	}
	q, kv := a.widths()
	y := d.linear(name+".query_key_value", x, q+2*kv, bias, "")
	y = d.add(Op{Kind: Attend, Name: name, Inputs: []int{y}, Attention: a})
	return d.linear(name+".dense", y, d.hidden, bias, "")
}

// splitAttention appends an attention with layers for q, k and v, and out after
// it.
func (d *decoder) splitAttention(name, out string, x int, a *Attention, qkvBias, outBias bool) int {
	for _, old := range []string{".bias", ".masked_bias", ".rotary_emb.inv_freq"} {
		d.s.ignore(d.prefix + name + old)
	}
	q, kv := a.widths()
	inputs := []int{
		d.linear(name+".q_proj", x, q, qkvBias, name+".qkv"),
		d.linear(name+".k_proj", x, kv, qkvBias, name+".qkv"),
		d.linear(name+".v_proj", x, kv, qkvBias, name+".qkv"),
	}
	y := d.add(Op{Kind: Attend, Name: name, Inputs: inputs, Attention: a})
	return d.linear(name+"."+out, y, d.hidden, outBias, "")
}

// plainMLP appends down(activation(up(x))).
func (d *decoder) plainMLP(up, down string, kind OpKind, x, channels int, bias bool) int {
	y := d.linear(up, x, channels, bias, "")
	y = d.add(Op{Kind: kind, Name: up + "_act", Inputs: []int{y}})
	return d.linear(down, y, d.hidden, bias, "")
}
