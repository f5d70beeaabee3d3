package model

import (
	"fmt"

	"github.com/fettle-dev/fettle/loader"
)

// stableLM is StableLM 1 to 2 in the naming of Transformers: Llama with LayerNorm
// and a rope over part of each head.
const stableLM = "stablelm"

func buildStableLM(tensors []loader.Tensor, o Options) (*Graph, error) {
	d := newDecoder(stableLM, "StableLmForCausalLM", "model.", tensors, o)
	c := d.c
	only(c, "qk_layernorm", false)
	if act := get(c, "hidden_act", "silu"); act != "silu" && act != "swish" {
		c.fail("hidden_act", "%q is not supported, want silu", act)
	}
	d.hidden, d.layers = c.count("hidden_size", 0), c.count("num_hidden_layers", 0)
	d.g.Context = c.count("max_position_embeddings", 4096)
	attention := d.heads("num_attention_heads", "num_key_value_heads")
	attention.Rope = c.partialRope(attention.HeadDim, get(c, "rope_theta", 10000.0), get(c, "partial_rotary_factor", .25))
	channels, tied := c.count("intermediate_size", 0), get(c, "tie_word_embeddings", false)
	bias := get(c, "use_qkv_bias", false)
	f := &normedBlocks{
		attentionNorm: "input_layernorm", mlpNorm: "post_attention_layernorm",
		parallel: get(c, "use_parallel_residual", false), norm: d.layerNormOf(c.eps("layer_norm_eps", 1e-5), true),
		attention: func(block string, x int, a *Attention) int {
			return d.splitAttention(block+"self_attn", "o_proj", x, a, bias, false)
		},
		mlp: func(block string, x, channels int) int { return d.gatedMLP(block+"mlp.", x, channels, false) },
	}
	if f.parallel {
		f.mlpNorm = ""
	}
	shapeOf := d.blockShapes(BlockShape{attention.Heads, attention.KVHeads, channels})
	return d.build(d.embed("embed_tokens", tied, nil), func(i, x int) int {
		return d.normedBlock(f, fmt.Sprintf("layers.%d.", i), x, attention, shapeOf(i))
	}, func(x int) int {
		return d.head(f.norm("norm", x), tied)
	})
}
