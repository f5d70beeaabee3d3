package model

import (
	"fmt"
	"math"

	"github.com/fettle-dev/fettle/loader"
)

// gpt2 is GPT-2 (Radford et al. 2019) in the naming of Transformers: learned
// positions, LayerNorm, q, k and v in one layer, weights stored transposed.
const gpt2 = "gpt2"

// geluKinds are the activations by Transformers' names.
var geluKinds = map[string]OpKind{
	"gelu": GELU, "gelu_new": GELUTanh, "gelu_fast": GELUTanh, "gelu_pytorch_tanh": GELUTanh, "relu": ReLU,
}

func buildGPT2(tensors []loader.Tensor, o Options) (*Graph, error) {
	d := newDecoder(gpt2, "GPT2LMHeadModel", "transformer.", tensors, o)
	c := d.c
	d.hidden, d.layers = c.count("n_embd", 0), c.count("n_layer", 0)
	d.g.Context = c.count("n_positions", 1024)
	get(c, "n_ctx", 0) // of old versions, not read by new ones
	heads, inner := c.count("n_head", 0), c.count("n_inner", 4*d.hidden)
	if d.hidden%heads != 0 {
		c.fail("n_head", "%d heads cannot share n_embd %d", heads, d.hidden)
	}
	attention := Attention{Heads: heads, KVHeads: heads, HeadDim: max(d.hidden/heads, 1), Scale: 1, Causal: true}
	if get(c, "scale_attn_weights", true) {
		attention.Scale = 1 / math.Sqrt(float64(attention.HeadDim))
	}
	perBlock := get(c, "scale_attn_by_inverse_layer_idx", false)
	act := get(c, "activation_function", "gelu_new")
	kind, ok := geluKinds[act]
	if !ok {
		c.fail("activation_function", "%q is not supported", act)
	}
	eps, tied := c.eps("layer_norm_epsilon", 1e-5), get(c, "tie_word_embeddings", true)
	shapeOf := d.blockShapes(BlockShape{heads, heads, inner})

	x := d.embed("wte", tied, &Embedding{Positions: d.prefix + "wpe.weight", MaxPositions: d.g.Context})
	return d.build(x, func(i, x int) int {
		name := fmt.Sprintf("h.%d.", i)
		shape := shapeOf(i)
		if shape.Heads > 0 {
			a := attention
			a.Heads, a.KVHeads = shape.Heads, shape.KVHeads
			if perBlock {
				a.Scale /= float64(i + 1)
			}
			q, kv := a.widths()
			y := d.conv1D(name+"attn.c_attn", d.layerNorm(name+"ln_1", x, eps), q+2*kv)
			for _, mask := range []string{"attn.bias", "attn.masked_bias"} {
				d.s.ignore(d.prefix + name + mask) // the causal mask, which old versions stored
			}
			y = d.add(Op{Kind: Attend, Name: name + "attn", Inputs: []int{y}, Attention: &a})
			x = d.sum(name+"attn_sum", x, d.conv1D(name+"attn.c_proj", y, d.hidden))
		}
		if shape.Channels == 0 {
			return x
		}
		y := d.conv1D(name+"mlp.c_fc", d.layerNorm(name+"ln_2", x, eps), shape.Channels)
		y = d.add(Op{Kind: kind, Name: name + "mlp.act", Inputs: []int{y}})
		return d.sum(name+"mlp_sum", x, d.conv1D(name+"mlp.c_proj", y, d.hidden))
	}, func(x int) int {
		return d.head(d.layerNorm("ln_f", x, eps), tied)
	})
}
