package model

import (
	"fmt"

	"github.com/fettle-dev/fettle/loader"
)

// gptNeoX is GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023) in
// the naming of Transformers: a rope over part of each head, q, k and v of a head
// side by side, and the two sublayers of a block beside each other.
const gptNeoX = "gpt_neox"

func buildGPTNeoX(tensors []loader.Tensor, o Options) (*Graph, error) {
	d := newDecoder(gptNeoX, "GPTNeoXForCausalLM", "gpt_neox.", tensors, o)
	d.headName = "embed_out"
	c := d.c
	c.pass("classifier_dropout")
	d.hidden, d.layers = c.count("hidden_size", 0), c.count("num_hidden_layers", 0)
	d.g.Context = c.count("max_position_embeddings", 2048)
	attention, channels := d.heads("num_attention_heads", ""), c.count("intermediate_size", 0)
	attention.Interleaved = true
	theta := get(c, c.either("rotary_emb_base", "rope_theta"), 10000.0)
	share := get(c, c.either("rotary_pct", "partial_rotary_factor"), .25)
	attention.Rope = c.partialRope(attention.HeadDim, theta, share)
	kind, tied := c.activation("hidden_act", "gelu"), get(c, "tie_word_embeddings", false)
	bias := get(c, "attention_bias", true)
	norm := d.layerNormOf(c.eps("layer_norm_eps", 1e-5), true)
	f := &normedBlocks{
		attentionNorm: "input_layernorm", mlpNorm: "post_attention_layernorm",
		parallel: get(c, "use_parallel_residual", true), norm: norm,
		attention: func(block string, x int, a *Attention) int {
			return d.fusedAttention(block+"attention", x, a, bias)
		},
		mlp: func(block string, x, channels int) int {
			return d.plainMLP(block+"mlp.dense_h_to_4h", block+"mlp.dense_4h_to_h", kind, x, channels, true)
		},
	}
	shapeOf := d.blockShapes(BlockShape{attention.Heads, attention.KVHeads, channels})
	return d.build(d.embed("embed_in", tied, nil), func(i, x int) int {
		return d.normedBlock(f, fmt.Sprintf("layers.%d.", i), x, attention, shapeOf(i))
	}, func(x int) int {
		return d.head(norm("final_layer_norm", x), tied)
	})
}
