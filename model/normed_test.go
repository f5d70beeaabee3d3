package model

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/loader"
)

// The slopes of the ALiBi paper's section 3 for 8 and 16 heads, and those of 12:
// the eight of 8 and the first, third, … of 16.
func TestALiBiSlopes(t *testing.T) {
	for i := range 8 {
		if got := slope(i, 8); got != math.Pow(.5, float64(i+1)) {
			t.Errorf("slope %d of 8 is %v", i, got)
		}
	}
	for i := range 16 {
		if got, want := slope(i, 16), math.Pow(2, -.5*float64(i+1)); math.Abs(got-want) > 1e-15 {
			t.Errorf("slope %d of 16 is %v, want %v", i, got, want)
		}
	}
	for i := range 12 {
		want := slope(i, 8)
		if i >= 8 {
			want = slope(2*(i-8), 16)
		}
		if slope(i, 12) != want {
			t.Errorf("slope %d of 12 is %v, want %v", i, slope(i, 12), want)
		}
	}
	if slope(0, 1) != math.Pow(.5, 8) {
		t.Errorf("slope of a single head is %v", slope(0, 1))
	}
}

// In bfloat16 positions from 257 on are even numbers, ties to the even mantissa.
func TestALiBiInBFloat16(t *testing.T) {
	dst := make([]float32, 263)
	(&ALiBi{Factor: .5, BFloat16: true}).bias(dst, 1, 8) // slope 1/4
	for j, position := range map[int]float32{0: 0, 3: 3, 256: 256, 257: 256, 258: 258, 259: 260, 262: 262} {
		if dst[j] != position/8 {
			t.Errorf("position %d gives %v, want %v", j, dst[j], position/8)
		}
	}
	(&ALiBi{Factor: 1}).bias(dst, 1, 8)
	if dst[262] != 0 || dst[0] != -65.5 || dst[257] != -1.25 {
		t.Errorf("in float32 the biases are %v … %v", dst[0], dst[262])
	}
}

// Attention with ALiBi and interleaved q, k and v is that of the three apart, its
// scores lowered by the distance, over several tiles.
func TestInterleavedAttentionWithALiBi(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 1))
	for _, shape := range [][3]int{{6, 2, 5}, {4, 4, 3}, {3, 1, 8}} {
		a := &Attention{Heads: shape[0], KVHeads: shape[1], HeadDim: shape[2], Scale: .4, Causal: true, Interleaved: true, ALiBi: &ALiBi{Factor: .7}}
		q, kv := a.widths()
		g := &Graph{
			Values: []Value{{"qkv", []int{q + 2*kv}}, {"y", []int{q}}}, Output: 1,
			Ops: []Op{{Kind: Attend, Name: "attention", Inputs: []int{0}, Output: 1, Attention: a}},
		}
		n := keyTile + 30
		x := batch(r, n+3, q+2*kv)
		x.Lengths = []int{3, n}
		got := step(t, g, nil, x)
		share, rows := a.Heads/a.KVHeads, x.Data[3*(q+2*kv):]
		at := func(row, slot, d int) float64 { return float64(rows[row*(q+2*kv)+slot*a.HeadDim+d]) }
		var want []float64
		for i := range n {
			for h := range a.Heads {
				group, sum := h/share*(share+2), 0.0
				y := make([]float64, a.HeadDim)
				for j := range i + 1 {
					score := -.7 * slope(h, a.Heads) * float64(i-j)
					for d := range a.HeadDim {
						score += a.Scale * at(i, group+h%share, d) * at(j, group+share, d)
					}
					sum += math.Exp(score)
					for d := range y {
						y[d] += math.Exp(score) * at(j, group+share+1, d)
					}
				}
				for d := range y {
					want = append(want, y[d]/sum)
				}
			}
		}
		wantClose(t, a.String(), got.Data[3*q:], want, 1e-5)
	}
}

func TestNormedConfigErrors(t *testing.T) {
	for _, s := range []struct {
		model, key string
		edit       keys
	}{
		{"opt", "hidden_size", keys{"hidden_size": nil}},
		{"opt", "d_model", keys{"d_model": 20}},
		{"opt", "activation_function", keys{"activation_function": "silu"}},
		{"opt", "num_attention_heads", keys{"num_attention_heads": 3}},
		{"opt", "ffn_dim", keys{"ffn_dim": 0}},
		{"opt", "architectures", keys{"architectures": []string{"OPTForSequenceClassification"}}},
		{"opt", "auto_map", keys{"auto_map": keys{"AutoModel": "x.Y"}}},
		{"gpt-neox", "rotary_pct", keys{"rotary_pct": "half"}},
		{"gpt-neox", "partial_rotary_factor", keys{"rotary_pct": 1.5}},
		{"gpt-neox", "head_dim", keys{"rotary_pct": .1}},
		{"gpt-neox", "rope_theta", keys{"rope_theta": 501}},
		{"gpt-neox", "rope_scaling.rope_type", keys{"rope_scaling": keys{"type": "dynamic", "factor": 2}}},
		{"gpt-neox", "layer_norm_eps", keys{"layer_norm_eps": 2}},
		{"falcon", "parallel_attn", keys{"new_decoder_architecture": true, "parallel_attn": false}},
		{"falcon", "num_ln_in_parallel_attn", keys{"num_ln_in_parallel_attn": 2}},
		{"falcon", "num_kv_heads", keys{"multi_query": false, "num_kv_heads": 2}},
		{"falcon", "n_head", keys{"n_head": 2}},
		{"falcon-grouped", "num_kv_heads", keys{"num_kv_heads": 3}},
		{"falcon-grouped", "num_ln_in_parallel_attn", keys{"num_ln_in_parallel_attn": 3}},
		{"bloom", "n_inner", keys{"n_inner": 20}},
		{"bloom", "hidden_size", keys{"n_embed": nil}},
		{"bloom", "num_attention_heads", keys{"num_attention_heads": 3}},
		{"gptj", "rotary_dim", keys{"rotary_dim": 3}},
		{"gptj", "rotary", keys{"rotary": false}},
		{"phi", "qk_layernorm", keys{"qk_layernorm": true}},
		{"phi", "num_key_value_heads", keys{"num_key_value_heads": 3}},
		{"stablelm", "hidden_act", keys{"hidden_act": "gelu"}},
	} {
		c, config, _, _ := tiny(t, s.model)
		_, err := Build(c.Tensors(), Options{Config: edit(t, config, s.edit)})
		if got, ok := errors.AsType[*ConfigError](err); !ok || got.Key != s.key {
			t.Errorf("%s with %v: got %v, want an error of %s", s.model, s.edit, err, s.key)
		}
	}
}

// Where config.json contradicts the tensors, a tensor is named.
func TestNormedConfigsAgainstTensors(t *testing.T) {
	for _, s := range []struct {
		model, tensor string
		edit          keys
	}{
		{"opt", "model.decoder.embed_positions.weight", keys{"max_position_embeddings": 33}},
		{"opt", "model.decoder.embed_tokens.weight", keys{"word_embed_proj_dim": 12}},
		{"opt", "model.decoder.final_layer_norm.weight", keys{"_remove_final_layer_norm": true}},
		{"opt-post", "decoder.final_layer_norm.weight", keys{"do_layer_norm_before": true}},
		{"opt-bare", "model.decoder.layers.0.self_attn.q_proj.bias", keys{"enable_bias": true}},
		{"opt-bare", "model.decoder.layers.0.self_attn_layer_norm.weight", keys{"layer_norm_elementwise_affine": true}},
		{"gpt-neox-row", "gpt_neox.layers.0.attention.query_key_value.bias", keys{"attention_bias": true}},
		{"falcon", "transformer.h.0.self_attention.query_key_value.weight", keys{"multi_query": false}},
		{"falcon", "transformer.h.0.post_attention_layernorm.weight", keys{"parallel_attn": false}},
		{"falcon", "transformer.h.0.ln_attn.weight", keys{"new_decoder_architecture": true, "num_kv_heads": 1}},
		{"bloom-options", "lm_head.weight", nil},
		{"stablelm", "model.layers.0.post_attention_layernorm.weight", keys{"use_parallel_residual": true}},
	} {
		c, config, _, _ := tiny(t, s.model)
		list := c.Tensors()
		if s.edit == nil {
			list = slices.DeleteFunc(slices.Clone(list), func(x loader.Tensor) bool { return x.Name == s.tensor })
		}
		_, err := Build(list, Options{Config: edit(t, config, s.edit)})
		if got, ok := errors.AsType[*TensorError](err); !ok || got.Tensor != s.tensor {
			t.Errorf("%s with %v: got %v, want an error of %s", s.model, s.edit, err, s.tensor)
		}
	}
}

// Other names and prefixes, stored masks and a stored copy of a tied head change
// nothing.
func TestNormedNames(t *testing.T) {
	for _, s := range []struct {
		model, from, to string
		edit            keys
		extra           []loader.Tensor
	}{
		{"opt", "model.decoder.", "decoder.", nil, nil},
		{"opt", "model.decoder.", "", keys{"d_model": 16, "hidden_size": nil}, []loader.Tensor{float("lm_head.weight", 37, 16)}},
		{"gpt-neox", "gpt_neox.", "", keys{"rope_theta": 500, "rotary_emb_base": nil, "rotary_pct": nil, "partial_rotary_factor": .5}, nil},
		{"falcon", "transformer.", "", keys{"n_layer": 2, "num_hidden_layers": nil, "num_kv_heads": 4}, []loader.Tensor{float("lm_head.weight", 37, 16), float("h.0.self_attention.maybe_rotary.inv_freq", 2)}},
		{"bloom", "", "transformer.", keys{"hidden_size": 16, "n_embed": nil, "n_head": 4, "num_attention_heads": nil, "n_inner": null}, nil},
		{"gptj", "transformer.", "", nil, []loader.Tensor{float("h.1.attn.bias", 1, 1, 32, 32), float("h.1.attn.masked_bias")}},
		{"phi", "model.", "", nil, nil},
		{"stablelm", "model.", "", nil, []loader.Tensor{float("layers.0.self_attn.rotary_emb.inv_freq", 2)}},
	} {
		c, config, x, want := tiny(t, s.model)
		back := map[string]string{}
		var list []loader.Tensor
		for _, one := range c.Tensors() {
			name, old := one.Name, one.Name
			if rest, ok := strings.CutPrefix(name, s.from); ok && !strings.HasPrefix(name, "lm_head") && !strings.HasPrefix(name, "embed_out") {
				name = s.to + rest
			}
			one.Name, back[name] = name, old
			list = append(list, one)
		}
		g, err := Build(append(list, s.extra...), Options{Config: edit(t, config, s.edit)})
		if err != nil {
			t.Errorf("%s: %v", s.model, err)
			continue
		}
		y := forward(t, NewExecutor(g, pool.New(2), func(name string) ([]float32, error) { return Stored(c)(back[name]) }), x)
		wantClose(t, s.model, y.Data, want, 1e-4)
	}
}

func TestRemoveFromNormed(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 2))
	for _, name := range normedModels {
		c, config, x, _ := tiny(t, name)
		kinds := checkSites(t, name, r, c, Options{Config: config}, x, 8)
		want := map[SiteKind]int{BlockSite: 2, KVGroupSite: 2, AttentionSite: 2, MLPSite: 2, ChannelSite: 2}
		switch name {
		case "bloom", "bloom-options", "falcon-alibi":
			want[KVGroupSite] = 0
		case "falcon", "phi", "stablelm", "stablelm-parallel":
			want[QueryHeadSite] = 2
		}
		for kind, n := range want {
			if kinds[kind] != n {
				t.Errorf("%s: %d sites of kind %s, want %d", name, kinds[kind], kind, n)
			}
		}
	}
}

// What cannot be cut right is refused with the reason.
func TestNormedRemovalErrors(t *testing.T) {
	for _, s := range []struct {
		model  string
		kind   SiteKind
		site   string
		reason string
	}{
		{"bloom", KVGroupSite, "h.0.self_attention", "slope of ALiBi"},
		{"falcon-alibi", QueryHeadSite, "h.1.self_attention", "slope of ALiBi"},
		{"falcon-grouped", QueryHeadSite, "h.0.self_attention", "between keys"},
		{"gpt-neox", QueryHeadSite, "layers.0.attention", "keys of its own"},
		{"opt-post", ChannelSite, "project_in", "residual stream"},
		{"opt-bare", ChannelSite, "project_out", "part of no block"},
	} {
		c, config, _, _ := tiny(t, s.model)
		_, err := buildTiny(t, c, config).Site(s.kind, s.site)
		bad, ok := errors.AsType[*RemovalError](err)
		if !ok || !strings.Contains(bad.Problem, s.reason) {
			t.Errorf("%s: %s of %s: got %v", s.model, s.kind, s.site, err)
		}
	}
}

// Both sublayers of a block go one by one, with the normalization that they
// share; heads and channels of which a family's keys cannot tell are told by
// fettle's.
func TestNormedRemainders(t *testing.T) {
	for _, s := range []struct {
		model    string
		removals []Removal
		own      string
		keys     map[string]string
	}{
		{"falcon", []Removal{{AttentionSite, "h.0.self_attention", nil}, {MLPSite, "h.0.mlp", nil}}, "", map[string]string{"num_hidden_layers": "1"}},
		{"opt", []Removal{{AttentionSite, "layers.1.self_attn", nil}, {MLPSite, "layers.1.mlp", nil}}, "", map[string]string{"num_hidden_layers": "1"}},
		{"opt", []Removal{{MLPSite, "layers.1.mlp", nil}}, "block 1 has no MLP", nil},
		{"opt-post", []Removal{{AttentionSite, "layers.1.self_attn", nil}, {MLPSite, "layers.1.mlp", nil}}, "block 1 has neither", nil},
		{"bloom", []Removal{{BlockSite, "h.0", nil}}, "", map[string]string{"n_layer": "1"}},
	} {
		c, config, x, _ := tiny(t, s.model)
		m := checkRemoval(t, s.model, c, Options{Config: config}, x, s.removals)
		got := keysOf(t, m.Config)
		for key, value := range s.keys {
			if got[key] != value {
				t.Errorf("%s: %s is %s, want %s", s.model, key, got[key], value)
			}
		}
		if (m.Own != "") != (s.own != "") || !strings.HasPrefix(m.Own, s.own) {
			t.Errorf("%s: own %q, want %q", s.model, m.Own, s.own)
		}
	}
	for model, own := range map[string]string{"bloom": "how many channels", "opt": "", "gpt-neox": "", "gptj": "", "falcon": ""} {
		c, config, x, _ := tiny(t, model)
		o := Options{Config: config}
		m := checkRemoval(t, model, c, o, x, everywhere(t, c, o, ChannelSite, 1, 2, 7))
		if (m.Own != "") != (own != "") || !strings.Contains(m.Own, own) {
			t.Errorf("%s: own %q, want %q", model, m.Own, own)
		}
	}
	c, config, x, _ := tiny(t, "falcon-grouped")
	o := Options{Config: config}
	if m := checkRemoval(t, "falcon-grouped", c, o, x, everywhere(t, c, o, KVGroupSite, 1)); !strings.Contains(m.Own, "fewer heads") {
		t.Errorf("own %q", m.Own)
	}
}

// Each option of a family changes what its folder computes: were it read wrongly,
// the comparison with PyTorch would notice.
func TestNormedOptionsMatter(t *testing.T) {
	for _, s := range []struct {
		model string
		edit  keys
	}{
		{"opt", keys{"activation_function": "gelu"}},
		{"opt-post", keys{"activation_function": "relu"}},
		{"gpt-neox", keys{"use_parallel_residual": false}},
		{"gpt-neox", keys{"rotary_pct": .25}},
		{"gpt-neox", keys{"rotary_emb_base": 10000}},
		{"gpt-neox", keys{"rope_scaling": nil}},
		{"gpt-neox-row", keys{"use_parallel_residual": true}},
		{"gpt-neox-row", keys{"rope_parameters": keys{"rope_type": "default", "rope_theta": 300}}},
		{"falcon", keys{"alibi": true}},
		{"falcon", keys{"rope_theta": 500}},
		{"falcon-one-norm", keys{"rope_theta": 500}},
		{"falcon-alibi", keys{"alibi": false}},
		{"falcon-grouped", keys{"activation": "relu"}},
		{"bloom", keys{"apply_residual_connection_post_layernorm": true}},
		{"bloom-options", keys{"apply_residual_connection_post_layernorm": false}},
		{"gptj", keys{"rotary_dim": 4}},
		{"phi", keys{"partial_rotary_factor": .25}},
		{"stablelm", keys{"partial_rotary_factor": 1}},
	} {
		c, config, x, want := tiny(t, s.model)
		y := forward(t, NewExecutor(buildTiny(t, c, edit(t, config, s.edit)), nil, Stored(c)), x)
		worst := 0.0
		for i, v := range want {
			worst = max(worst, math.Abs(float64(y.Data[i])-v)/(1+math.Abs(v)))
		}
		if worst < 5e-4 {
			t.Errorf("%s with %v: the logits change by %.1e", s.model, s.edit, worst)
		}
	}
}
