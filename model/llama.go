package model

import (
	"fmt"
	"math"

	"github.com/fettle-dev/fettle/loader"
)

// llama is Llama 1 to 3 (Touvron et al. 2023) in the naming of Transformers,
// and all else whose config.json says "llama".
const llama = "llama"

func buildLlama(tensors []loader.Tensor, o Options) (*Graph, error) {
	d := newDecoder(llama, "LlamaForCausalLM", "model.", tensors, o)
	attention, mlp := get(d.c, "attention_bias", false), get(d.c, "mlp_bias", false)
	return d.buildLlamaLike(llamaLike{qkvBias: attention, outBias: attention, mlpBias: mlp})
}

// llamaLike says in what a family differs from Llama.
type llamaLike struct {
	qkvBias, outBias, mlpBias bool
	// window returns the sliding window of block i, 0 for none; nil: none has
	// one. kind is the block's entry of "layer_types", "" where there is no
	// such key.
	window func(i int, kind string) int
	// experts appends what block i has in the place of an MLP, whose names begin
	// with block and which reads y; ok is false where it has an MLP. nil: all have.
	experts func(i int, block string, y int) (out int, ok bool)
}

// buildLlamaLike builds blocks of x + attention(norm(x)), then x + mlp(norm(x)),
// with RMSNorm, a rope and a gated MLP.
func (d *decoder) buildLlamaLike(f llamaLike) (*Graph, error) {
	c := d.c
	d.hidden, d.layers = c.count("hidden_size", 0), c.count("num_hidden_layers", 0)
	d.g.Context = c.count("max_position_embeddings", 2048)
	inner, heads := c.count("intermediate_size", 0), c.count("num_attention_heads", 0)
	attention := Attention{
		Heads: heads, KVHeads: c.count("num_key_value_heads", heads), Causal: true,
		HeadDim: c.count("head_dim", max(d.hidden/heads, 1)),
	}
	if !c.set("head_dim") && d.hidden%heads != 0 {
		c.fail("num_attention_heads", "%d heads cannot share hidden_size %d, and there is no head_dim", heads, d.hidden)
	}
	if heads%attention.KVHeads != 0 {
		c.fail("num_key_value_heads", "%d heads cannot share %d keys", heads, attention.KVHeads)
	}
	attention.Scale = 1 / math.Sqrt(float64(attention.HeadDim))
	attention.Rope = c.rope(attention.HeadDim)
	eps, tied := c.eps("rms_norm_eps", 1e-6), get(c, "tie_word_embeddings", false)
	switch act := get(c, "hidden_act", "silu"); act {
	case "silu", "swish":
	default:
		c.fail("hidden_act", "%q is not supported, want silu", act)
	}
	kinds := c.layerTypes(d.layers)
	shapeOf := d.blockShapes(BlockShape{heads, attention.KVHeads, inner})

	x := d.embed("embed_tokens", tied, nil)
	return d.build(x, func(i, x int) int {
		name := fmt.Sprintf("layers.%d.", i)
		shape := shapeOf(i)
		if shape.Heads == 0 {
			return d.llamaMLP(name, x, shape.Channels, eps, f)
		}
		a := attention
		a.Heads, a.KVHeads = shape.Heads, shape.KVHeads
		q, kv := a.widths()
		kind := ""
		if i < len(kinds) {
			kind = kinds[i]
		}
		if f.window != nil {
			a.Window = f.window(i, kind)
		}
		if kind != "" && (kind == slidingAttention) != (a.Window > 0) {
			c.fail("layer_types", "layer %d cannot have %s with a sliding window of %d", i, kind, a.Window)
		}
		y := d.rmsNorm(name+"input_layernorm", x, eps)
		qkv := []int{
			d.linear(name+"self_attn.q_proj", y, q, f.qkvBias, name+"self_attn.qkv"),
			d.linear(name+"self_attn.k_proj", y, kv, f.qkvBias, name+"self_attn.qkv"),
			d.linear(name+"self_attn.v_proj", y, kv, f.qkvBias, name+"self_attn.qkv"),
		}
		d.s.ignore(d.prefix + name + "self_attn.rotary_emb.inv_freq") // of old versions, not read by new ones
		y = d.add(Op{Kind: Attend, Name: name + "self_attn", Inputs: qkv, Attention: &a})
		x = d.sum(name+"attention_sum", x, d.linear(name+"self_attn.o_proj", y, d.hidden, f.outBias, ""))
		return d.llamaMLP(name, x, shape.Channels, eps, f)
	}, func(x int) int {
		return d.head(d.rmsNorm("norm", x, eps), tied)
	})
}

// llamaMLP appends a block's x + mlp(norm(x)), x itself where it has no channels.
func (d *decoder) llamaMLP(block string, x, channels int, eps float64, f llamaLike) int {
	if channels == 0 {
		return x
	}
	y := d.rmsNorm(block+"post_attention_layernorm", x, eps)
	if f.experts != nil {
		if out, ok := f.experts(d.block, block, y); ok {
			return d.sum(block+"mlp_sum", x, out)
		}
	}
	return d.sum(block+"mlp_sum", x, d.gatedMLP(block+"mlp.", y, channels, f.mlpBias))
}

// gatedMLP appends down(SiLU(gate(x))·up(x)) (Shazeer 2020, SwiGLU).
func (d *decoder) gatedMLP(name string, x, inner int, bias bool) int {
	return d.gated(name, [3]string{"gate_proj", "up_proj", "down_proj"}, x, inner, bias)
}

// gated is gatedMLP with other names of gate, up and down.
func (d *decoder) gated(name string, layers [3]string, x, inner int, bias bool) int {
	gate := d.linear(name+layers[0], x, inner, bias, name+"gate_up")
	up := d.linear(name+layers[1], x, inner, bias, name+"gate_up")
	y := d.add(Op{Kind: SiLUMul, Name: name + "act", Inputs: []int{gate, up}})
	return d.linear(name+layers[2], y, d.hidden, bias, "")
}

// mixture appends a router and experts that are gated MLPs, of which each token
// goes to some. base, unless it is negative, is added for every token.
func (d *decoder) mixture(name, router string, experts int, r Routing, y, base int, expert func(name string, x int) int) int {
	logits := d.linear(name+router, y, experts, false, "")
	weights := d.add(Op{Kind: Route, Name: name + "route", Inputs: []int{logits}, Routing: &r})
	sum := []int{weights}
	for e := 0; e < experts && !d.failed(); e++ {
		at := fmt.Sprintf("%sexperts.%d", name, e)
		x := d.add(Op{Kind: Dispatch, Name: at, Inputs: []int{y, weights}, Expert: e})
		sum = append(sum, expert(at+".", x))
	}
	if base >= 0 {
		sum = append(sum, base)
	}
	if d.failed() {
		return y
	}
	return d.add(Op{Kind: Combine, Name: name + "combine", Inputs: sum})
}
