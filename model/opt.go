package model

import (
	"fmt"
	"strings"

	"github.com/fettle-dev/fettle/loader"
)

// opt is OPT (Zhang et al. 2022) in the naming of Transformers: learned positions
// of which the first two rows are unused, and in the 350M model normalizations
// after the sums and token vectors that are narrower than the rest.
const opt = "opt"

const optOffset = 2

func buildOPT(tensors []loader.Tensor, o Options) (*Graph, error) {
	prefix := "model.decoder."
	if !hasPrefix(tensors, prefix) {
		prefix = "decoder."
	}
	d := newDecoder(opt, "OPTForCausalLM", prefix, tensors, o)
	c := d.c
	c.pass("dropout activation_dropout layerdrop init_std")
	d.hidden, d.layers = c.count(c.either("hidden_size", "d_model"), 0), c.count("num_hidden_layers", 0)
	d.g.Context = c.count("max_position_embeddings", 2048)
	d.tableWidth = c.count("word_embed_proj_dim", d.hidden)
	attention, channels := d.heads("num_attention_heads", ""), c.count("ffn_dim", 0)
	kind, tied := c.activation("activation_function", "relu"), get(c, "tie_word_embeddings", true)
	before, bias := get(c, "do_layer_norm_before", true), get(c, "enable_bias", true)
	last := before && !get(c, "_remove_final_layer_norm", false)
	norm := d.layerNormOf(1e-5, get(c, "layer_norm_elementwise_affine", true))
	f := &normedBlocks{
		attentionNorm: "self_attn_layer_norm", mlpNorm: "final_layer_norm", after: !before, norm: norm,
		attention: func(block string, x int, a *Attention) int {
			return d.splitAttention(block+"self_attn", "out_proj", x, a, bias, bias)
		},
		mlp: func(block string, x, channels int) int {
			return d.plainMLP(block+"fc1", block+"fc2", kind, x, channels, bias)
		},
	}
	shapeOf := d.blockShapes(BlockShape{attention.Heads, attention.KVHeads, channels})

	x := d.embed("embed_tokens", tied, nil)
	if d.tableWidth != d.hidden {
		x = d.linear("project_in", x, d.hidden, false, "")
	}
	positions := Embedding{Width: d.hidden, Positions: d.prefix + "embed_positions.weight", MaxPositions: d.g.Context, PositionOffset: optOffset}
	d.s.take(positions.Positions, positions.MaxPositions+optOffset, d.hidden)
	x = d.sum("embed_sum", x, d.add(Op{Kind: Embed, Name: "embed_positions", Inputs: []int{0}, Embedding: &positions}))
	return d.build(x, func(i, x int) int {
		return d.normedBlock(f, fmt.Sprintf("layers.%d.", i), x, attention, shapeOf(i))
	}, func(x int) int {
		if last {
			x = norm("final_layer_norm", x)
		}
		if d.tableWidth != d.hidden {
			x = d.linear("project_out", x, d.tableWidth, false, "")
		}
		return d.head(x, tied)
	})
}

func hasPrefix(tensors []loader.Tensor, prefix string) bool {
	for _, t := range tensors {
		if strings.HasPrefix(t.Name, prefix) {
			return true
		}
	}
	return false
}
