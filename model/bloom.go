package model

import (
	"fmt"

	"github.com/fettle-dev/fettle/loader"
)

// bloom is BLOOM (Workshop et al. 2022) in the naming of Transformers: ALiBi, a
// LayerNorm after the embedding, and q, k and v of a head side by side.
const bloom = "bloom"

func buildBLOOM(tensors []loader.Tensor, o Options) (*Graph, error) {
	d := newDecoder(bloom, "BloomForCausalLM", "transformer.", tensors, o)
	c := d.c
	c.pass(`attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion skip_bias_add skip_bias_add_qkv
		slow_but_exact offset_alibi`) // how to compute, or of old versions
	d.hidden = c.count(c.either("hidden_size", "n_embed"), 0)
	d.layers = c.count(c.either("n_layer", "num_hidden_layers"), 0)
	d.g.Context = c.count("seq_length", 2048)
	attention := d.heads(c.either("n_head", "num_attention_heads"), "")
	attention.Interleaved, attention.ALiBi = true, &ALiBi{Factor: 1}
	channels := 4 * d.hidden
	if inner := c.count("n_inner", channels); inner != channels {
		c.fail("n_inner", "is %d, but BLOOM's MLPs have 4 times the hidden size %d", inner, d.hidden)
	}
	tied := get(c, "tie_word_embeddings", true)
	norm := d.layerNormOf(c.eps("layer_norm_epsilon", 1e-5), true)
	f := &normedBlocks{
		attentionNorm: "input_layernorm", mlpNorm: "post_attention_layernorm",
		fromNorm: get(c, "apply_residual_connection_post_layernorm", false), norm: norm,
		attention: func(block string, x int, a *Attention) int {
			return d.fusedAttention(block+"self_attention", x, a, true)
		},
		mlp: func(block string, x, channels int) int {
			return d.plainMLP(block+"mlp.dense_h_to_4h", block+"mlp.dense_4h_to_h", GELUTanh, x, channels, true)
		},
	}
	shapeOf := d.blockShapes(BlockShape{attention.Heads, attention.KVHeads, channels})
	x := norm("word_embeddings_layernorm", d.embed("word_embeddings", tied, nil))
	return d.build(x, func(i, x int) int {
		return d.normedBlock(f, fmt.Sprintf("h.%d.", i), x, attention, shapeOf(i))
	}, func(x int) int {
		return d.head(norm("ln_f", x), tied)
	})
}
