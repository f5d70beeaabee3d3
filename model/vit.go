package model

import (
	"encoding/json"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/loader"
)

// vit is the Vision Transformer (Dosovitskiy et al. 2021) in the naming of
// Transformers. Without a classifier the output is the last hidden state; a
// pooler, where the checkpoint has one, is computed beside it.
const vit = "vit"

var vitBlock = blockNames{
	stem: "encoder.layer.", attention: "attention.attention",
	q: "attention.attention.query", k: "attention.attention.key", v: "attention.attention.value", o: "attention.output.dense",
	attendNorm: "layernorm_before", inner: "intermediate.dense", outer: "output.dense", mlpNorm: "layernorm_after",
	before: true,
}

func buildViT(tensors []loader.Tensor, o Options) (*Graph, error) {
	c := newConfig(vit, o.Config)
	channels := c.count("num_channels", 3)
	height, width := c.pair("image_size", 224)
	if c.err != nil {
		return nil, c.err
	}
	const classified = "ForImageClassification"
	e := newEncoder(vit, "ViT", []string{"vit."}, []string{headless, classified}, []int{channels, height, width}, tensors, o)
	c = e.c
	c.pass("num_channels image_size hidden_dropout_prob attention_probs_dropout_prob encoder_stride")
	e.sizes(encoderKeys{"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"}, c.eps("layer_norm_eps", 1e-12))
	block := vitBlock
	block.qBias = get(c, "qkv_bias", true)
	block.kBias = block.qBias
	patchH, patchW := c.pair("patch_size", 16)
	if height%patchH != 0 || width%patchW != 0 || max(patchH, patchW, height, width) > maxGeometry {
		c.fail("patch_size", "patches of %d×%d do not fill images of %d×%d", patchH, patchW, height, width)
		return nil, c.err
	}
	x := e.patches("embeddings.patch_embeddings.projection", blas.Patches{
		Channels: channels, Height: height, Width: width, KernelH: patchH, KernelW: patchW,
		StrideH: patchH, StrideW: patchW, DilationH: 1, DilationW: 1, Groups: 1,
	})
	s := Sequence{Prefix: []string{e.prefix + "embeddings.cls_token"}, Positions: e.prefix + "embeddings.position_embeddings"}
	e.s.take(s.Prefix[0], 1, 1, e.hidden)
	e.s.take(s.Positions, 1, 1+height/patchH*(width/patchW), e.hidden)
	e.s.ignore(e.prefix + "embeddings.mask_token") // of pretraining
	x = e.add(Op{Kind: ToTokens, Name: "embeddings", Inputs: []int{x}, Sequence: &s})
	half := make([]float32, channels)
	for i := range half {
		half[i] = .5
	}
	e.g.Normalize = Normalize{Mean: half, Std: half}
	return e.build(x, func(i, x int) int { return e.encoderBlock(&block, i, x) }, func(x int) int {
		x = e.norm("layernorm", x)
		poolerAct, poolerWidth := get(c, "pooler_act", "tanh"), c.count("pooler_output_size", e.hidden)
		pooler := e.prefix + "pooler.dense"
		if e.head == classified {
			e.s.ignore(pooler + ".weight") // stored by some and not read
			e.s.ignore(pooler + ".bias")
			return e.classify("classifier", e.first("classifier.first", x), "")
		}
		e.g.Task = Features
		if e.s.has(pooler + ".weight") {
			y := e.layer(e.prefix, "pooler.dense", e.first("pooler.first", x), poolerWidth, true, "")
			if poolerAct != "tanh" {
				c.fail("pooler_act", "%q is not supported, want tanh", poolerAct)
			}
			e.apply(Tanh, "pooler.activation", y)
		}
		return x
	})
}

// patches appends a convolution of the model's input with a bias.
func (e *encoder) patches(name string, p blas.Patches) int {
	op := Op{Kind: Conv2D, Name: name, Inputs: []int{0}, Weight: e.prefix + name + ".weight", Bias: e.prefix + name + ".bias", Outputs: e.hidden, Conv: &p}
	e.s.take(op.Weight, e.hidden, p.Channels, p.KernelH, p.KernelW)
	e.s.take(op.Bias, e.hidden)
	return e.add(op)
}

// pair reads a number, or two: of rows and columns.
func (c *config) pair(key string, absent int) (rows, columns int) {
	var list []int
	if c.set(key) && json.Unmarshal(c.raw[key], &list) == nil {
		c.read[key] = true
		if len(list) != 2 || min(list[0], list[len(list)-1]) < 1 || max(list[0], list[len(list)-1]) > maxCount {
			c.fail(key, "cannot be %v", list)
			return 1, 1
		}
		return list[0], list[1]
	}
	n := c.count(key, absent)
	return n, n
}
