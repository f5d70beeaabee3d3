package model

import (
	"fmt"

	"github.com/fettle-dev/fettle/loader"
)

// falcon is Falcon 1 and 2 and Falcon RW (Almazrouei et al. 2023; Penedo et al.
// 2023) in the naming of Transformers.
const falcon = "falcon"

func buildFalcon(tensors []loader.Tensor, o Options) (*Graph, error) {
	d := newDecoder(falcon, "FalconForCausalLM", "transformer.", tensors, o)
	c := d.c
	c.pass("auto_map apply_residual_connection_post_layernorm") // code of the same model; a key that it does not read
	d.hidden = c.count(c.either("hidden_size", "n_embed"), 0)
	d.layers = c.count(c.either("num_hidden_layers", "n_layer"), 0)
	d.g.Context = c.count("max_position_embeddings", 2048)
	attention := d.heads(c.either("num_attention_heads", "n_head"), "")
	grouped, queries := get(c, "new_decoder_architecture", false), get(c, "multi_query", true)
	kvKey := c.either("num_kv_heads", "n_head_kv")
	switch kv := c.count(kvKey, attention.Heads); {
	case grouped:
		if attention.KVHeads = kv; attention.Heads%kv != 0 {
			c.fail(kvKey, "%d heads cannot share %d keys", attention.Heads, kv)
		}
		attention.Interleaved = true
	case queries:
		attention.KVHeads = 1 // whatever the key says
	default:
		if kv != attention.Heads {
			c.fail(kvKey, "is %d, but without multi_query or new_decoder_architecture each of %d heads has keys", kv, attention.Heads)
		}
		attention.Interleaved = true
	}
	if get(c, "alibi", false) {
		// Falcon scales the sum of products and biases.
		attention.ALiBi = &ALiBi{Factor: attention.Scale, BFloat16: true}
		c.pass("rope_theta rope_scaling rope_parameters")
	} else {
		attention.Rope = c.rope(attention.HeadDim)
	}
	f := &normedBlocks{attentionNorm: "input_layernorm", parallel: get(c, "parallel_attn", true)}
	norms := 1
	if grouped {
		norms = 2
	}
	norms = c.count("num_ln_in_parallel_attn", norms)
	switch {
	case grouped && !f.parallel:
		c.fail("parallel_attn", "must be true where new_decoder_architecture is")
	case !f.parallel:
		f.mlpNorm = "post_attention_layernorm"
	case norms == 2 && grouped:
		f.attentionNorm, f.mlpNorm = "ln_attn", "ln_mlp"
	case norms != 1:
		c.fail("num_ln_in_parallel_attn", "cannot be %d, want 1, or 2 with new_decoder_architecture", norms)
	}
	bias, kind := get(c, "bias", false), c.activation("activation", "gelu")
	channels, tied := c.count("ffn_hidden_size", 4*d.hidden), get(c, "tie_word_embeddings", true)
	f.norm = d.layerNormOf(c.eps("layer_norm_epsilon", 1e-5), true)
	f.attention = func(block string, x int, a *Attention) int {
		return d.fusedAttention(block+"self_attention", x, a, bias)
	}
	f.mlp = func(block string, x, channels int) int {
		return d.plainMLP(block+"mlp.dense_h_to_4h", block+"mlp.dense_4h_to_h", kind, x, channels, bias)
	}
	shapeOf := d.blockShapes(BlockShape{attention.Heads, attention.KVHeads, channels})
	return d.build(d.embed("word_embeddings", tied, nil), func(i, x int) int {
		return d.normedBlock(f, fmt.Sprintf("h.%d.", i), x, attention, shapeOf(i))
	}, func(x int) int {
		return d.head(f.norm("ln_f", x), tied)
	})
}
