package model

import (
	"fmt"

	"github.com/fettle-dev/fettle/loader"
)

// gptJ is GPT-J (Wang and Komatsuzaki 2021) in the naming of Transformers: a rope
// that turns neighbouring numbers, and sublayers beside each other after one
// normalization.
const gptJ = "gptj"

func buildGPTJ(tensors []loader.Tensor, o Options) (*Graph, error) {
	d := newDecoder(gptJ, "GPTJForCausalLM", "transformer.", tensors, o)
	c := d.c
	c.pass("n_ctx")
	only(c, "rotary", true)
	only(c, "scale_attn_weights", true)
	d.hidden, d.layers = c.count("n_embd", 0), c.count("n_layer", 0)
	d.g.Context = c.count("n_positions", 2048)
	attention, channels := d.heads("n_head", ""), c.count("n_inner", 4*d.hidden)
	rope := Rope{Theta: 10000, Dims: c.count("rotary_dim", 64), Interleaved: true}
	if attention.Rope = &rope; rope.check(attention.HeadDim) != nil {
		c.fail("rotary_dim", "%d numbers of %d cannot be turned in pairs", rope.Dims, attention.HeadDim)
	}
	kind, tied := c.activation("activation_function", "gelu_new"), get(c, "tie_word_embeddings", false)
	f := &normedBlocks{
		attentionNorm: "ln_1", parallel: true, norm: d.layerNormOf(c.eps("layer_norm_epsilon", 1e-5), true),
		attention: func(block string, x int, a *Attention) int {
			return d.splitAttention(block+"attn", "out_proj", x, a, false, false)
		},
		mlp: func(block string, x, channels int) int {
			return d.plainMLP(block+"mlp.fc_in", block+"mlp.fc_out", kind, x, channels, true)
		},
	}
	shapeOf := d.blockShapes(BlockShape{attention.Heads, attention.KVHeads, channels})
	return d.build(d.embed("wte", tied, nil), func(i, x int) int {
		return d.normedBlock(f, fmt.Sprintf("h.%d.", i), x, attention, shapeOf(i))
	}, func(x int) int {
		return d.headWithBias(f.norm("ln_f", x), tied)
	})
}

// headWithBias is head with a bias.
func (d *decoder) headWithBias(x int, tied bool) int {
	y := d.head(x, tied)
	op := &d.g.Ops[len(d.g.Ops)-1]
	op.Bias = d.headName + ".bias"
	d.s.take(op.Bias, op.Outputs)
	return y
}
