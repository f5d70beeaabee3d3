package model

import (
	"fmt"

	"github.com/fettle-dev/fettle/loader"
)

// phi is Phi 1, 1.5 and 2 (Gunasekar et al. 2023; Li et al. 2023) in the naming
// of Transformers: GPT-J's blocks with a rope over part of each head and biases.
const phi = "phi"

func buildPhi(tensors []loader.Tensor, o Options) (*Graph, error) {
	d := newDecoder(phi, "PhiForCausalLM", "model.", tensors, o)
	c := d.c
	only(c, "qk_layernorm", false)
	d.hidden, d.layers = c.count("hidden_size", 0), c.count("num_hidden_layers", 0)
	d.g.Context = c.count("max_position_embeddings", 2048)
	attention := d.heads("num_attention_heads", "num_key_value_heads")
	attention.Rope = c.partialRope(attention.HeadDim, get(c, "rope_theta", 10000.0), get(c, "partial_rotary_factor", .5))
	channels, tied := c.count("intermediate_size", 4*d.hidden), get(c, "tie_word_embeddings", false)
	kind := c.activation("hidden_act", "gelu_new")
	f := &normedBlocks{
		attentionNorm: "input_layernorm", parallel: true, norm: d.layerNormOf(c.eps("layer_norm_eps", 1e-5), true),
		attention: func(block string, x int, a *Attention) int {
			return d.splitAttention(block+"self_attn", "dense", x, a, true, true)
		},
		mlp: func(block string, x, channels int) int {
			return d.plainMLP(block+"mlp.fc1", block+"mlp.fc2", kind, x, channels, true)
		},
	}
	shapeOf := d.blockShapes(BlockShape{attention.Heads, attention.KVHeads, channels})
	return d.build(d.embed("embed_tokens", tied, nil), func(i, x int) int {
		return d.normedBlock(f, fmt.Sprintf("layers.%d.", i), x, attention, shapeOf(i))
	}, func(x int) int {
		return d.headWithBias(f.norm("final_layernorm", x), tied)
	})
}
