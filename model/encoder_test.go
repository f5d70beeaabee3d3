package model

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/loader"
)

// tinyEncoders are the folders that testdata/make_encoders.py writes.
var tinyEncoders = []string{
	"bert", "bert-masked", "bert-classes", "bert-answers", "roberta-masked", "roberta-classes", "xlm-roberta-tokens",
	"electra-masked", "electra-discriminator", "electra-classes", "distilbert-masked", "distilbert-classes",
	"vit", "vit-classes", "whisper",
}

// encoderCase is a tiny encoder, its inputs as one batch, and what PyTorch makes of
// them.
type encoderCase struct {
	c            *loader.Checkpoint
	config       []byte
	g            *Graph
	x            *Tensor
	want, beside []float64
}

func tinyEncoder(t testing.TB, name string) *encoderCase {
	t.Helper()
	folder := filepath.Join("testdata", name)
	e := &encoderCase{}
	var err error
	if e.c, err = loader.Open(context.Background(), folder); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.c.Close() })
	if e.config, err = os.ReadFile(filepath.Join(folder, "config.json")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(folder, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		IDs            []uint32
		Input          []float32
		Logits, Beside [][]float64
	}
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	e.g = buildTiny(t, e.c, e.config)
	var sequences [][]uint32
	var inputs []float32
	for _, s := range cases {
		sequences, inputs = append(sequences, s.IDs), append(inputs, s.Input...)
		e.want = append(e.want, slices.Concat(s.Logits...)...)
		e.beside = append(e.beside, slices.Concat(s.Beside...)...)
	}
	if e.x = NewTokens(sequences...); inputs != nil {
		e.x = &Tensor{Shape: append([]int{len(cases)}, e.g.Values[e.g.Input].Shape...), Data: inputs}
	}
	return e
}

func TestEncodersAgainstPyTorch(t *testing.T) {
	for _, name := range tinyEncoders {
		e := tinyEncoder(t, name)
		y := forward(t, NewExecutor(e.g, pool.New(2), Stored(e.c)), e.x)
		wantClose(t, name, y.Data, e.want, 1e-4)
		if e.beside != nil {
			e.g.Output = e.g.Ops[len(e.g.Ops)-1].Output
			wantClose(t, name+"'s pooler", forward(t, NewExecutor(e.g, nil, Stored(e.c)), e.x).Data, e.beside, 1e-4)
		}
	}
}

// Were a field of the graph another, the test above would notice.
func TestEncodersDependOnEachField(t *testing.T) {
	for _, name := range tinyEncoders {
		e := tinyEncoder(t, name)
		seen := map[string]bool{}
		for i := range e.g.Ops {
			for what, spoil := range map[string]func(o *Op) bool{
				"eps":    func(o *Op) bool { return o.Norm != nil && set(&o.Norm.Eps, .3) },
				"scale":  func(o *Op) bool { return o.Attention != nil && set(&o.Attention.Scale, o.Attention.Scale*1.2) },
				"causal": func(o *Op) bool { return o.Attention != nil && set(&o.Attention.Causal, true) },
				// A key's bias adds the same to all scores of a query.
				"bias": func(o *Op) bool {
					return o.Bias != "" && !strings.Contains(o.Name, "key") && !strings.HasSuffix(o.Name, "k_lin") && set(&o.Bias, "")
				},
				"activation": func(o *Op) bool {
					return (o.Kind == GELU || o.Kind == GELUTanh || o.Kind == Tanh) && set(&o.Kind, ReLU) || o.Kind == ReLU && set(&o.Kind, GELU)
				},
				"positions": func(o *Op) bool {
					return o.Embedding != nil && set(&o.Embedding.Positions, "") && set(&o.Embedding.MaxPositions, 0) &&
						set(&o.Embedding.PositionOffset, 0) && set(&o.Embedding.PaddingUncounted, false)
				},
				"types": func(o *Op) bool {
					return o.Embedding != nil && o.Embedding.Types != "" && set(&o.Embedding.Types, "") && set(&o.Embedding.TypeRows, 0)
				},
				"offset": func(o *Op) bool {
					return o.Embedding != nil && o.Embedding.PositionOffset > 0 && set(&o.Embedding.PaddingUncounted, false) &&
						set(&o.Embedding.MaxPositions, o.Embedding.MaxPositions+1) && set(&o.Embedding.PositionOffset, o.Embedding.PositionOffset-1)
				},
				"padding": func(o *Op) bool {
					return o.Embedding != nil && o.Embedding.PaddingUncounted && set(&o.Embedding.PaddingUncounted, false)
				},
				"stored positions": func(o *Op) bool { return o.Sequence != nil && set(&o.Sequence.Positions, "") },
			} {
				g := buildTiny(t, e.c, e.config)
				if !spoil(&g.Ops[i]) || g.LastUse()[g.Ops[i].Output] < 0 || strings.HasPrefix(g.Ops[i].Name, "pooler.") && g.Task == Features {
					continue
				}
				seen[what] = true
				y := forward(t, NewExecutor(g, nil, Stored(e.c)), e.x)
				worst := 0.0
				for j, v := range e.want {
					worst = max(worst, math.Abs(float64(y.Data[j])-v)/(1+math.Abs(v)))
				}
				if worst < 1e-3 {
					t.Errorf("%s: another %s of %s changes the outputs by %.1e", name, what, g.Ops[i].Name, worst)
				}
			}
		}
		for _, what := range []string{"eps", "scale", "causal", "bias", "activation"} {
			if !seen[what] {
				t.Errorf("%s: nothing has another %s", name, what)
			}
		}
	}
}

// A sample's bytes are the same alone, in any batch, and for any number of workers.
func TestEncodersSamplesAreIndependent(t *testing.T) {
	for _, name := range tinyEncoders {
		e := tinyEncoder(t, name)
		alone := NewExecutor(e.g, nil, Stored(e.c))
		var want []float32
		if e.x.Lengths != nil {
			from := 0
			for _, n := range e.x.Lengths {
				want = append(want, forward(t, alone, NewTokens(e.x.Tokens[from:from+n])).Data...)
				from += n
			}
		} else {
			per := len(e.x.Data) / e.x.Shape[0]
			for s := range e.x.Shape[0] {
				x := &Tensor{Shape: append([]int{1}, e.x.Shape[1:]...), Data: e.x.Data[s*per:][:per]}
				want = append(want, forward(t, alone, x).Data...)
			}
		}
		for _, workers := range []int{1, 3} {
			got := forward(t, NewExecutor(e.g, pool.New(workers), Stored(e.c)), e.x)
			if !slices.Equal(got.Data, want) {
				t.Errorf("%s: %d workers: other bytes", name, workers)
			}
			if perToken := len(e.x.Lengths) > 0 && e.g.Task != SequenceClasses; perToken != (got.Lengths != nil) {
				t.Errorf("%s: the outputs are of sequences of %v", name, got.Lengths)
			}
		}
	}
}

func TestEncoderTasks(t *testing.T) {
	for name, want := range map[string]Task{
		"bert": Features, "bert-masked": TokenClasses, "bert-classes": SequenceClasses, "bert-answers": Features,
		"xlm-roberta-tokens": TokenClasses, "electra-discriminator": Features, "vit": Features, "vit-classes": "", "whisper": Features,
	} {
		if e := tinyEncoder(t, name); e.g.Task != want {
			t.Errorf("%s: task %q, want %q", name, e.g.Task, want)
		}
	}
	e := tinyEncoder(t, "bert-classes")
	g := buildTiny(t, e.c, edit(t, e.config, keys{"problem_type": "multi_label_classification"}))
	if g.Task != Features {
		t.Errorf("several labels at once: task %q, want %q", g.Task, Features)
	}
}

func TestEncoderConfigErrors(t *testing.T) {
	for _, s := range []struct {
		model, key string
		edit       keys
	}{
		{"bert", "hidden_size", keys{"hidden_size": nil}},
		{"bert", "vocab_size", keys{"vocab_size": nil}},
		{"bert", "num_attention_heads", keys{"num_attention_heads": 3}},
		{"bert", "hidden_act", keys{"hidden_act": "mish"}},
		{"bert", "position_embedding_type", keys{"position_embedding_type": "relative_key"}},
		{"bert", "is_decoder", keys{"is_decoder": true}},
		{"bert", "add_cross_attention", keys{"add_cross_attention": true}},
		{"bert", "architectures", keys{"architectures": []string{"BertForMultipleChoice"}}},
		{"bert", "architectures", keys{"architectures": []string{"RobertaModel"}}},
		{"bert", "pruned_heads", keys{"pruned_heads": keys{"0": []int{1}}}},
		{"bert", "layer_norm_eps", keys{"layer_norm_eps": -1}},
		{"bert", "rope_theta", keys{"rope_theta": 10}},
		{"roberta-masked", "pad_token_id", keys{"pad_token_id": -1}},
		{"roberta-masked", "max_position_embeddings", keys{"max_position_embeddings": 2}},
		{"electra-masked", "embedding_size", keys{"embedding_size": 0}},
		{"distilbert-masked", "dim", keys{"dim": nil}},
		{"distilbert-masked", "n_heads", keys{"n_heads": 5}},
		{"vit", "image_size", keys{"image_size": []int{1, 2, 3}}},
		{"vit", "image_size", keys{"image_size": 0}},
		{"vit", "patch_size", keys{"patch_size": 5}},
		{"vit", "num_channels", keys{"num_channels": 0}},
		{"vit", "pooler_act", keys{"pooler_act": "relu"}},
		{"vit", "architectures", keys{"architectures": []string{"ViTForMaskedImageModeling"}}},
		{"whisper", "max_source_positions", keys{"max_source_positions": 1 << 20}},
		{"whisper", "architectures", keys{"architectures": []string{"WhisperForAudioClassification"}}},
		{"whisper", "d_model", keys{"d_model": nil}},
	} {
		e := tinyEncoder(t, s.model)
		_, err := Build(e.c.Tensors(), Options{Config: edit(t, e.config, s.edit)})
		if got, ok := errors.AsType[*ConfigError](err); !ok || got.Key != s.key {
			t.Errorf("%s with %v: got %v, want an error of %s", s.model, s.edit, err, s.key)
		}
	}
}

// Tensors that contradict the config, are missing, or have no place are named.
func TestEncoderTensorErrors(t *testing.T) {
	for _, s := range []struct {
		model, tensor string
		edit          keys
		drop          string // a tensor that is taken away
	}{
		{"bert", "embeddings.token_type_embeddings.weight", keys{"type_vocab_size": 3}, ""},
		{"bert", "embeddings.position_embeddings.weight", keys{"max_position_embeddings": 64}, ""},
		{"bert", "encoder.layer.0.intermediate.dense.weight", keys{"intermediate_size": 24}, ""},
		{"bert", "encoder.layer.1.attention.self.query.weight", keys{"num_hidden_layers": 1}, ""},
		{"bert", "encoder.layer.2.attention.self.query.weight", keys{"num_hidden_layers": 3}, ""},
		{"bert", "encoder.layer.0.output.LayerNorm.weight", nil, "encoder.layer.0.output.LayerNorm.gamma"},
		{"bert", "pooler.dense.bias", nil, "pooler.dense.bias"},
		{"bert", "cls.predictions.transform.dense.weight", keys{"architectures": []string{"BertForMaskedLM"}}, ""},
		{"bert-masked", "cls.predictions.bias", nil, "cls.predictions."},
		{"bert-masked", "cls.predictions.transform.dense.weight", keys{"architectures": []string{"BertModel"}}, ""},
		{"bert-classes", "bert.pooler.dense.weight", nil, "bert.pooler.dense.weight"},
		{"bert-classes", "classifier.weight", nil, "classifier.weight"},
		{"roberta-masked", "lm_head.decoder.weight", nil, "lm_head.decoder.weight"},
		{"roberta-masked", "roberta.embeddings.position_embeddings.weight", keys{"max_position_embeddings": 32}, ""},
		{"electra-masked", "electra.embeddings.word_embeddings.weight", keys{"embedding_size": 16}, ""},
		{"vit", "embeddings.position_embeddings", keys{"image_size": []int{8, 8}}, ""},
		{"vit", "embeddings.patch_embeddings.projection.weight", keys{"num_channels": 3}, ""},
		{"vit", "embeddings.patch_embeddings.projection.weight", keys{"patch_size": 2}, ""},
		{"vit", "encoder.layer.0.attention.attention.query.bias", keys{"qkv_bias": true}, ""},
		{"vit-classes", "vit.encoder.layer.0.attention.attention.query.bias", keys{"qkv_bias": false}, ""},
		{"whisper", "model.encoder.conv1.weight", keys{"num_mel_bins": 8}, ""},
		{"whisper", "model.encoder.embed_positions.weight", keys{"max_source_positions": 12}, ""},
		{"whisper", "model.decoder.embed_tokens.weight", keys{"architectures": []string{"WhisperEncoder"}}, ""},
	} {
		e := tinyEncoder(t, s.model)
		tensors := slices.DeleteFunc(slices.Clone(e.c.Tensors()), func(one loader.Tensor) bool {
			return s.drop != "" && strings.HasPrefix(one.Name, s.drop)
		})
		_, err := Build(tensors, Options{Config: edit(t, e.config, s.edit)})
		got, ok := errors.AsType[*TensorError](err)
		if s.drop == "cls.predictions." {
			ok, s.tensor = ok && strings.HasPrefix(got.Tensor, s.drop), got.Tensor
		}
		if !ok || got.Tensor != s.tensor {
			t.Errorf("%s with %v, without %q: got %v, want an error of %s", s.model, s.edit, s.drop, err, s.tensor)
		}
	}
}

// Ways of saying the same give the same graph.
func TestEncoderConfigsThatAreTheSame(t *testing.T) {
	for _, s := range []struct {
		model string
		edit  keys
	}{
		{"bert", keys{"type_vocab_size": nil, "architectures": nil, "layer_norm_eps": .001, "is_decoder": false, "pruned_heads": keys{}}},
		{"bert-masked", keys{"architectures": []string{"BertForPreTraining"}}},
		{"bert-masked", keys{"tie_word_embeddings": true, "position_embedding_type": nil}},
		{"vit-classes", keys{"image_size": []int{8, 8}, "patch_size": []int{4, 4}, "qkv_bias": nil}},
		{"whisper", keys{"architectures": []string{"WhisperModel"}}},
	} {
		e := tinyEncoder(t, s.model)
		g, err := Build(e.c.Tensors(), Options{Config: edit(t, e.config, s.edit)})
		if err != nil {
			t.Errorf("%s with %v: %v", s.model, s.edit, err)
			continue
		}
		if diff := cmp.Diff(e.g, g); diff != "" {
			t.Errorf("%s with %v:\n%s", s.model, s.edit, diff)
		}
	}
}

// Prefixes may be there or not.
func TestEncoderPrefixes(t *testing.T) {
	for model, prefixes := range map[string][]string{
		"bert": {"", "bert."}, "vit": {"", "vit."}, "whisper": {"model.encoder.", "encoder.", ""},
	} {
		e := tinyEncoder(t, model)
		for _, prefix := range prefixes {
			var tensors []loader.Tensor
			for _, one := range e.c.Tensors() {
				if model == "whisper" {
					inner, ok := strings.CutPrefix(one.Name, "model.encoder.")
					if !ok {
						continue
					}
					one.Name = inner
				}
				one.Name = prefix + one.Name
				tensors = append(tensors, one)
			}
			g, err := Build(tensors, Options{Config: e.config})
			if err != nil {
				t.Errorf("%s with prefix %q: %v", model, prefix, err)
				continue
			}
			for i := range g.Ops {
				if g.Ops[i].Name != e.g.Ops[i].Name {
					t.Errorf("%s with prefix %q: layer %s", model, prefix, g.Ops[i].Name)
				}
			}
		}
	}
}

func TestEncodersWithoutConfig(t *testing.T) {
	for _, name := range []string{"bert-masked", "distilbert-masked", "vit", "whisper"} {
		_, err := Build(tinyEncoder(t, name).c.Tensors(), Options{})
		if bad, ok := errors.AsType[*UnsupportedError](err); !ok || !strings.Contains(bad.Help, "config.json") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFirstTokenErrors(t *testing.T) {
	e := tinyEncoder(t, "bert-classes")
	x := NewExecutor(e.g, nil, Stored(e.c))
	if _, err := x.Forward(context.Background(), NewTokens([]uint32{1}, nil)); err == nil || !strings.Contains(err.Error(), "sequence 1 has no token") {
		t.Errorf("an empty sequence: %v", err)
	}
	long := make([]uint32, 33)
	if _, err := x.Forward(context.Background(), NewTokens(long)); err == nil || !strings.Contains(err.Error(), "32 tokens") {
		t.Errorf("a sequence that is too long: %v", err)
	}
	r := tinyEncoder(t, "roberta-classes")
	padded := append([]uint32{0, 1, 1}, slices.Repeat([]uint32{5}, 31)...)
	if _, err := NewExecutor(r.g, nil, Stored(r.c)).Forward(context.Background(), NewTokens(padded)); err != nil {
		t.Errorf("34 tokens of which two are padding: %v", err)
	}
}

// What is left after a removal computes what the larger model does with zeros in the
// place of what has gone, and the family's keys say so where they can.
func TestEncoderRemovals(t *testing.T) {
	for _, s := range []struct {
		model    string
		removals []Removal
		own      bool
	}{
		{"bert-masked", []Removal{{ChannelSite, "encoder.layer.0.intermediate.dense", rangeOf(13)}, {ChannelSite, "encoder.layer.1.intermediate.dense", rangeOf(13)}}, false},
		{"bert-classes", []Removal{{KVGroupSite, "encoder.layer.1.attention.self", []int{0, 3}}}, true},
		{"bert", []Removal{{AttentionSite, "encoder.layer.0.attention.output", nil}}, true},
		{"bert-masked", []Removal{{BlockSite, "encoder.layer.1", nil}}, false},
		{"bert-classes", []Removal{{BlockSite, "encoder.layer.0", nil}, {ChannelSite, "encoder.layer.1.intermediate.dense", rangeOf(9)}}, false},
		{"distilbert-masked", []Removal{{BlockSite, "transformer.layer.0", nil}}, false},
		{"roberta-masked", []Removal{{MLPSite, "encoder.layer.1.output", nil}}, true},
		{"distilbert-masked", []Removal{{MLPSite, "transformer.layer.0.ffn", nil}, {AttentionSite, "transformer.layer.1.attention", nil}}, true},
		{"distilbert-classes", []Removal{{KVGroupSite, "transformer.layer.0.attention", []int{2}}}, true},
		{"vit", []Removal{{AttentionSite, "encoder.layer.0.attention.output", nil}, {KVGroupSite, "encoder.layer.1.attention.attention", []int{1, 2}}}, true},
		{"vit-classes", []Removal{{BlockSite, "encoder.layer.0", nil}}, false},
		{"vit-classes", []Removal{{MLPSite, "encoder.layer.1.output", nil}}, true},
		{"whisper", []Removal{{BlockSite, "layers.1", nil}}, false},
		{"whisper", []Removal{{ChannelSite, "layers.0.fc1", rangeOf(7)}, {KVGroupSite, "layers.1.self_attn", []int{0, 1, 3}}}, true},
	} {
		e := tinyEncoder(t, s.model)
		tensors := e.c.Tensors()
		left, err := Remove(e.g, tensors, Options{Config: e.config}, s.removals)
		if err != nil {
			t.Errorf("%s: %v", s.model, err)
			continue
		}
		if (left.Own != "") != s.own {
			t.Errorf("%s: %v: own %q", s.model, s.removals, left.Own)
		}
		view, err := e.c.View(left.Parts)
		if err != nil {
			t.Fatal(err)
		}
		// The larger model, without what went.
		zero := map[string]func(data []float32){}
		pass := map[int]int{}
		for _, one := range s.removals {
			site, err := e.g.Site(one.Kind, one.Site)
			if err != nil {
				t.Fatal(err)
			}
			if last := len(site.Ops) - 1; one.Kind == BlockSite && e.g.Ops[site.Ops[last]].Kind == LayerNorm {
				in, out, ok := e.g.Through(site.Ops)
				if !ok {
					t.Fatal("not from one value to one other")
				}
				pass[in] = out
				continue
			}
			for _, i := range site.Ops {
				if op := &e.g.Ops[i]; op.IsLayer() {
					zero[op.Weight] = func(data []float32) { clear(data) }
					zero[op.Bias] = zero[op.Weight]
				}
			}
			for _, c := range site.Consumers {
				op := &e.g.Ops[c.Op]
				cols := e.g.Values[op.Inputs[0]].Shape
				width := cols[len(cols)-1]
				zero[op.Weight] = func(data []float32) {
					for u := range site.Units {
						for k := 0; k < c.Columns && !slices.Contains(one.Keep, u); k++ {
							for r := range op.Outputs {
								data[r*width+u*c.Columns+k] = 0
							}
						}
					}
				}
			}
		}
		large := NewExecutor(e.g, nil, func(name string) ([]float32, error) {
			data, err := Stored(e.c)(name)
			if f := zero[name]; f != nil && err == nil {
				f(data)
			}
			return data, err
		})
		y := forwardPast(t, large, e, pass)
		want := make([]float64, len(y.Data))
		for i, v := range y.Data {
			want[i] = float64(v)
		}
		wantClose(t, fmt.Sprint(s.model, s.removals), forward(t, NewExecutor(left.Graph, nil, Stored(view)), e.x).Data, want, 1e-4)
		// Read back, it is the same.
		again, err := Build(view.Tensors(), Options{Config: left.Config})
		if err != nil {
			t.Fatalf("%s: %v", s.model, err)
		}
		if again.Hash() != left.Graph.Hash() {
			t.Errorf("%s: another graph when read back", s.model)
		}
	}
}

// forwardPast computes a graph in which values stand for others: pass[in] is out.
func forwardPast(t *testing.T, x *Executor, e *encoderCase, pass map[int]int) *Tensor {
	t.Helper()
	values := make([]*Tensor, len(e.g.Values))
	values[e.g.Input] = e.x
	for i := range e.g.Ops {
		var in []*Tensor
		for _, v := range e.g.Ops[i].Inputs {
			in = append(in, values[v])
		}
		y, err := x.Step(context.Background(), i, in)
		if err != nil {
			t.Fatal(err)
		}
		values[e.g.Ops[i].Output] = y
		for from, to := range pass {
			if to == e.g.Ops[i].Output {
				values[to] = values[from]
			}
		}
	}
	return values[e.g.Output]
}

func rangeOf(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// What cannot be cut is refused with a reason.
func TestEncoderRefusedRemovals(t *testing.T) {
	for _, s := range []struct {
		model string
		kind  SiteKind
		site  string
		want  string
	}{
		{"bert", ChannelSite, "encoder.layer.0.output.dense", "residual"},
		{"bert", ChannelSite, "pooler.dense", "no layer reads them"},
		{"distilbert-classes", ChannelSite, "pre_classifier", "part of no block"},
		{"roberta-classes", ChannelSite, "classifier.dense", "part of no block"},
		{"bert-masked", ChannelSite, "cls.predictions.transform.dense", "normalizes over all"},
		{"electra-masked", ChannelSite, "embeddings_project", "residual"},
		{"vit", ChannelSite, "embeddings.patch_embeddings.projection", "cannot do with fewer"},
		{"whisper", ChannelSite, "conv2", "cannot do with fewer"},
		{"whisper", ChannelSite, "layers.0.self_attn.q_proj", "remove heads"},
		{"bert", QueryHeadSite, "encoder.layer.0.attention.self", "kv_group"},
	} {
		e := tinyEncoder(t, s.model)
		_, err := e.g.Site(s.kind, s.site)
		if bad, ok := errors.AsType[*RemovalError](err); !ok || !strings.Contains(bad.Problem, s.want) {
			t.Errorf("%s: %s of %s: %v", s.model, s.kind, s.site, err)
		}
	}
}

// Whatever a key holds, Build answers with a graph or an error that names it, and
// the graph runs or says why not.
func TestEncodersWithOddConfigs(t *testing.T) {
	odd := []any{nil, null, -1, 0, 1, 3, 1 << 30, 1e300, "x", true, []int{}, []int{0, 0}, []int{4, 4, 4}, []string{"x"}, keys{"a": 1}}
	for _, name := range []string{"bert-masked", "roberta-classes", "electra-masked", "distilbert-classes", "vit", "whisper"} {
		e := tinyEncoder(t, name)
		var all keys
		if err := json.Unmarshal(e.config, &all); err != nil {
			t.Fatal(err)
		}
		for key := range all {
			for _, value := range odd {
				config := edit(t, e.config, keys{key: value})
				g, err := Build(e.c.Tensors(), Options{Config: config})
				if err != nil {
					if !strings.HasPrefix(err.Error(), "model: ") {
						t.Errorf("%s with %s %v: %v", name, key, value, err)
					}
					continue
				}
				if _, err := NewExecutor(g, nil, Stored(e.c)).Forward(context.Background(), e.x); err != nil && !strings.Contains(err.Error(), "samples ×") {
					t.Errorf("%s with %s %v: %v", name, key, value, err)
				}
			}
		}
	}
}
