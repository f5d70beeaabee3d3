package model

import (
	"strings"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/loader"
)

// whisper is the encoder of Whisper (Radford et al. 2022) in the naming of
// Transformers. Of a whole model the decoder's tensors are no part of the graph:
// no rule matches them, and they are kept as they are. An input is
// num_mel_bins × 1 × frames, log-Mel features of twice max_source_positions
// frames; the output is the last hidden state.
const whisper = "whisper"

var whisperBlock = blockNames{
	stem: "layers.", attention: "self_attn",
	q: "self_attn.q_proj", k: "self_attn.k_proj", v: "self_attn.v_proj", o: "self_attn.out_proj",
	attendNorm: "self_attn_layer_norm", inner: "fc1", outer: "fc2", mlpNorm: "final_layer_norm",
	before: true, qBias: true,
}

func buildWhisper(tensors []loader.Tensor, o Options) (*Graph, error) {
	c := newConfig(whisper, o.Config)
	bins, positions := c.count("num_mel_bins", 80), c.count("max_source_positions", 1500)
	if max(bins, 2*positions) > maxGeometry {
		c.fail("max_source_positions", "%d positions of %d bins are too many", positions, bins)
	}
	if c.err != nil {
		return nil, c.err
	}
	e := newEncoder(whisper, "Whisper", []string{"model.encoder.", "encoder."}, []string{"Encoder", "Model", "ForConditionalGeneration"}, []int{bins, 1, 2 * positions}, tensors, o)
	c = e.c
	c.pass(`num_mel_bins max_source_positions decoder_layers decoder_attention_heads decoder_ffn_dim decoder_layerdrop encoder_layerdrop
		dropout activation_dropout init_std max_target_positions vocab_size num_hidden_layers scale_embedding tie_word_embeddings
		forced_decoder_ids median_filter_width use_weighted_layer_sum classifier_proj_size apply_spec_augment alignment_heads
		mask_time_prob mask_time_length mask_time_min_masks mask_feature_prob mask_feature_length mask_feature_min_masks`)
	e.sizes(encoderKeys{"d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "activation_function"}, 1e-5)
	for _, t := range tensors {
		if e.head != "Encoder" && (strings.HasPrefix(t.Name, "model.decoder.") || strings.HasPrefix(t.Name, "decoder.") || t.Name == "proj_out.weight") {
			e.s.ignore(t.Name)
		}
	}
	x := e.frames("conv1", 0, 1)
	x = e.frames("conv2", e.apply(GELU, "conv1_act", x), 2)
	s := Sequence{Positions: e.prefix + "embed_positions.weight"}
	e.s.take(s.Positions, positions, e.hidden)
	x = e.add(Op{Kind: ToTokens, Name: "embed_positions", Inputs: []int{e.apply(GELU, "conv2_act", x)}, Sequence: &s})
	return e.build(x, func(i, x int) int { return e.encoderBlock(&whisperBlock, i, x) }, func(x int) int {
		e.g.Task = Features
		return e.norm("layer_norm", x)
	})
}

// frames appends a convolution over time: three frames, every stride-th.
func (e *encoder) frames(name string, x, stride int) int {
	shape := e.g.Values[x].Shape
	op := Op{
		Kind: Conv2D, Name: name, Inputs: []int{x}, Weight: e.prefix + name + ".weight", Bias: e.prefix + name + ".bias", Outputs: e.hidden,
		Conv: &blas.Patches{
			Channels: shape[0], Height: 1, Width: shape[2], KernelH: 1, KernelW: 3,
			StrideH: 1, StrideW: stride, PadW: 1, DilationH: 1, DilationW: 1, Groups: 1,
		},
	}
	e.s.take(op.Weight, e.hidden, shape[0], 3)
	e.s.take(op.Bias, e.hidden)
	return e.add(op)
}
