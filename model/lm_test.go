package model

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/loader"
)

// tinyModels are the folders that testdata/make_lm.py writes.
var tinyModels = append([]string{"llama-linear", "llama-llama3", "mistral", "qwen2", "gpt2", "gpt2-options"}, tinyMixtures...)

// normedModels are those that testdata/make_ln.py writes.
var normedModels = []string{
	"opt", "opt-post", "opt-bare", "gpt-neox", "gpt-neox-row", "falcon", "falcon-grouped", "falcon-one-norm", "falcon-alibi",
	"bloom", "bloom-options", "gptj", "phi", "stablelm", "stablelm-parallel",
}

// tiny returns a tiny model's files, its sequences as one batch, and the logits
// that PyTorch has for them.
func tiny(t testing.TB, name string) (c *loader.Checkpoint, config []byte, x *Tensor, want []float64) {
	t.Helper()
	folder := filepath.Join("testdata", name)
	c, err := loader.Open(context.Background(), folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if config, err = os.ReadFile(filepath.Join(folder, "config.json")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(folder, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		IDs    []uint32
		Logits [][]float64
	}
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	var sequences [][]uint32
	for _, s := range cases {
		sequences = append(sequences, s.IDs)
		want = append(want, slices.Concat(s.Logits...)...)
	}
	return c, config, NewTokens(sequences...), want
}

func buildTiny(t testing.TB, c *loader.Checkpoint, config []byte) *Graph {
	t.Helper()
	g, err := Build(c.Tensors(), Options{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func forward(t testing.TB, e *Executor, x *Tensor) *Tensor {
	t.Helper()
	y, err := e.Forward(context.Background(), x)
	if err != nil {
		t.Fatal(err)
	}
	return y
}

func TestFamiliesAgainstPyTorch(t *testing.T) {
	for _, name := range slices.Concat(tinyModels, normedModels) {
		c, config, x, want := tiny(t, name)
		y := forward(t, NewExecutor(buildTiny(t, c, config), pool.New(2), Stored(c)), x)
		wantClose(t, name, y.Data, want, 1e-4)
	}
}

// Were a field of the graph another, the test above would notice.
func TestFamiliesDependOnEachField(t *testing.T) {
	for _, name := range slices.Concat(tinyModels, normedModels) {
		c, config, x, want := tiny(t, name)
		count := len(buildTiny(t, c, config).Ops)
		for i := range count {
			for what, spoil := range map[string]func(o *Op) bool{
				"eps": func(o *Op) bool { return o.Norm != nil && set(&o.Norm.Eps, .1) },
				"scale": func(o *Op) bool {
					return o.Attention != nil && set(&o.Attention.Scale, o.Attention.Scale*1.1)
				},
				"causal": func(o *Op) bool {
					return o.Attention != nil && o.Attention.Window == 0 && o.Attention.ALiBi == nil && set(&o.Attention.Causal, false)
				},
				"window": func(o *Op) bool {
					return o.Attention != nil && o.Attention.Window > 0 && set(&o.Attention.Window, o.Attention.Window+1)
				},
				"no window": func(o *Op) bool { return o.Attention != nil && o.Attention.Window > 0 && set(&o.Attention.Window, 0) },
				"theta":     func(o *Op) bool { return rope(o) && set(&o.Attention.Rope.Theta, o.Attention.Rope.Theta*1.5) },
				"pairs":     func(o *Op) bool { return rope(o) && set(&o.Attention.Rope.Interleaved, !o.Attention.Rope.Interleaved) },
				"no rope":   func(o *Op) bool { return rope(o) && set(&o.Attention.Rope, nil) },
				"no scaling": func(o *Op) bool {
					return rope(o) && o.Attention.Rope.Scaling != nil && set(&o.Attention.Rope.Scaling, nil)
				},
				"top_k":     func(o *Op) bool { return o.Routing != nil && set(&o.Routing.TopK, o.Routing.TopK+1) },
				"normalize": func(o *Op) bool { return o.Routing != nil && set(&o.Routing.Normalize, !o.Routing.Normalize) },
				"sigmoid":   func(o *Op) bool { return o.Kind == Sigmoid && set(&o.Kind, Tanh) },
				"type":      func(o *Op) bool { return scaled(o) && set(&o.Attention.Rope.Scaling.Type, ropeLinear) },
				"low":       func(o *Op) bool { return scaled(o) && set(&o.Attention.Rope.Scaling.LowFreq, .5) },
				"high":      func(o *Op) bool { return scaled(o) && set(&o.Attention.Rope.Scaling.HighFreq, 5) },
				"bias": func(o *Op) bool {
					// A key's bias adds the same to all scores of a query, but for its rope.
					silent := strings.HasSuffix(o.Name, "k_proj") && !slices.ContainsFunc(buildTiny(t, c, config).Ops, func(o Op) bool { return rope(&o) })
					return o.Bias != "" && !silent && set(&o.Bias, "")
				},
				"activation": func(o *Op) bool {
					return o.Kind == GELU && set(&o.Kind, ReLU) || o.Kind == GELUTanh && set(&o.Kind, ReLU) || o.Kind == ReLU && set(&o.Kind, GELU)
				},
				"offset": func(o *Op) bool {
					return o.Embedding != nil && o.Embedding.PositionOffset == 2 && set(&o.Embedding.PositionOffset, 1) && set(&o.Embedding.MaxPositions, o.Embedding.MaxPositions+1)
				},
				"packing": func(o *Op) bool {
					return o.Attention != nil && o.Attention.Interleaved && set(&o.Attention.Interleaved, false)
				},
				"no alibi": func(o *Op) bool {
					return o.Attention != nil && o.Attention.ALiBi != nil && set(&o.Attention.ALiBi, nil)
				},
				"alibi's factor": func(o *Op) bool {
					return o.Attention != nil && o.Attention.ALiBi != nil && set(&o.Attention.ALiBi, &ALiBi{Factor: o.Attention.ALiBi.Factor * 1.1, BFloat16: o.Attention.ALiBi.BFloat16})
				},
				"alibi's type": func(o *Op) bool {
					return o.Attention != nil && o.Attention.ALiBi != nil && o.Attention.ALiBi.BFloat16 && set(&o.Attention.ALiBi, &ALiBi{Factor: o.Attention.ALiBi.Factor})
				},
				"turning": func(o *Op) bool {
					return rope(o) && o.Attention.Rope.Dims > 2 && set(&o.Attention.Rope.Dims, o.Attention.Rope.Dims-2)
				},
				"norm's bias": func(o *Op) bool { return o.Norm != nil && o.Norm.Bias != "" && set(&o.Norm.Bias, "") },
				"positions": func(o *Op) bool {
					return o.Embedding != nil && o.Embedding.Positions != "" && o.Embedding.Table != "" && set(&o.Embedding.Positions, "") && set(&o.Embedding.MaxPositions, 0)
				},
			} {
				g := buildTiny(t, c, config)
				if !spoil(&g.Ops[i]) {
					continue
				}
				y := forward(t, NewExecutor(g, nil, Stored(c)), x)
				worst := 0.0
				for j, v := range want {
					worst = max(worst, math.Abs(float64(y.Data[j])-v)/(1+math.Abs(v)))
				}
				if worst < 5e-4 {
					t.Errorf("%s: another %s of %s changes the logits by %.1e", name, what, g.Ops[i].Name, worst)
				}
			}
		}
	}
}

func matrix(data []float32, rows, cols int) blas32.General {
	return blas32.General{Rows: rows, Cols: cols, Stride: cols, Data: data}
}

func set[T any](p *T, v T) bool { *p = v; return true }

func rope(o *Op) bool { return o.Attention != nil && o.Attention.Rope != nil }

func scaled(o *Op) bool {
	return rope(o) && o.Attention.Rope.Scaling != nil && o.Attention.Rope.Scaling.Type == ropeLlama3
}

// The bytes of a sequence's logits are the same alone, in any batch, for any
// number of workers, step by step, through the head, and with rows read singly.
func TestSequencesAreIndependent(t *testing.T) {
	ctx := context.Background()
	for _, name := range slices.Concat(tinyModels, normedModels) {
		c, config, x, _ := tiny(t, name)
		g := buildTiny(t, c, config)
		alone := NewExecutor(g, nil, Stored(c))
		var sequences [][]uint32
		var want []float32
		from := 0
		for _, n := range x.Lengths {
			s := x.Tokens[from : from+n]
			sequences = append(sequences, s)
			want = append(want, forward(t, alone, NewTokens(s)).Data...)
			from += n
		}
		same := func(what string, got []float32) {
			t.Helper()
			if !slices.Equal(got, want) {
				t.Errorf("%s: %s: other bytes", name, what)
			}
		}
		for _, workers := range []int{1, 3} {
			same(fmt.Sprint(workers, " workers"), forward(t, NewExecutor(g, pool.New(workers), Stored(c)), x).Data)
		}
		slices.Reverse(sequences)
		back := forward(t, alone, NewTokens(sequences...)).Data
		var turned []float32
		for end, i := len(back), 0; i < len(x.Lengths); i++ {
			n := x.Lengths[i] * g.Values[g.Output].Shape[0]
			turned = append(turned, back[end-n:end]...)
			end -= n
		}
		same("another order", turned)

		e := NewExecutor(g, pool.New(2), Stored(c))
		e.ReadRows(func(name string, row int, dst []float32) error {
			w, err := Stored(c)(name)
			copy(dst, w[row*len(dst):])
			return err
		})
		same("rows of the embedding", forward(t, e, x).Data)
		hidden, err := e.Hidden(ctx, x)
		if err != nil {
			t.Fatal(err)
		}
		head, err := e.Head()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]float32, len(want))
		for from := 0; from < hidden.Shape[0]; from += 5 {
			n := min(5, hidden.Shape[0]-from)
			err := head.Logits(ctx, matrix(hidden.Data[from*head.Inputs:], n, head.Inputs), matrix(got[from*head.Outputs:], n, head.Outputs))
			if err != nil {
				t.Fatal(err)
			}
		}
		same("through the head", got)
		if !slices.Equal(hidden.Lengths, x.Lengths) {
			t.Errorf("%s: the hidden states are of sequences of %v", name, hidden.Lengths)
		}
		if err := head.Logits(ctx, matrix(hidden.Data, 2, head.Inputs), matrix(got, 3, head.Outputs)); err == nil {
			t.Error("3 rows of logits for 2 of hidden states: no error")
		}
	}
}

func TestTokenErrors(t *testing.T) {
	ctx := context.Background()
	c, config, _, _ := tiny(t, "gpt2")
	e := NewExecutor(buildTiny(t, c, config), nil, Stored(c))
	long := make([]uint32, 33)
	for _, s := range []struct {
		x    *Tensor
		want TokenError
	}{
		{NewTokens([]uint32{1, 2}, []uint32{3, 37}), TokenError{Sequence: 1, Position: 1, Token: 37, Rows: 37}},
		{NewTokens([]uint32{math.MaxUint32}), TokenError{Token: math.MaxUint32, Rows: 37}},
		{NewTokens(nil, long), TokenError{Sequence: 1, Position: 32, Rows: 32, Positions: true}},
	} {
		_, err := e.Forward(ctx, s.x)
		if got, ok := errors.AsType[*TokenError](err); !ok || *got != s.want {
			t.Errorf("got %v", err)
		}
	}
	for name, x := range map[string]*Tensor{
		"no lengths":       {Shape: []int{2, 1}, Tokens: []uint32{1, 2}},
		"numbers":          {Shape: []int{2, 1}, Data: []float32{1, 2}, Lengths: []int{2}},
		"short lengths":    {Shape: []int{2, 1}, Tokens: []uint32{1, 2}, Lengths: []int{1}},
		"negative lengths": {Shape: []int{2, 1}, Tokens: []uint32{1, 2}, Lengths: []int{3, -1}},
	} {
		if _, err := e.Forward(ctx, x); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	y := forward(t, e, NewTokens(nil, []uint32{5}, nil))
	if !slices.Equal(y.Shape, []int{1, 37}) {
		t.Errorf("one token among empty sequences gives %v", y.Shape)
	}
	if y := forward(t, e, NewTokens()); y.Shape[0] != 0 {
		t.Errorf("no sequence gives %v", y.Shape)
	}
}

// edit returns config.json with some keys set; nil removes one.
func edit(t testing.TB, config []byte, keys map[string]any) []byte {
	t.Helper()
	var all map[string]any
	if err := json.Unmarshal(config, &all); err != nil {
		t.Fatal(err)
	}
	for k, v := range keys {
		all[k] = v
		if v == nil {
			delete(all, k)
		}
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type keys = map[string]any

// null is JSON's, where a nil removes a key.
var null = json.RawMessage("null")

func TestConfigErrors(t *testing.T) {
	for _, s := range []struct {
		model, key string
		edit       keys
	}{
		{"llama-llama3", "hidden_size", keys{"hidden_size": nil}},
		{"llama-llama3", "vocab_size", keys{"vocab_size": 0}},
		{"llama-llama3", "hidden_size", keys{"hidden_size": 16.5}},
		{"llama-llama3", "num_hidden_layers", keys{"num_hidden_layers": -1}},
		{"llama-llama3", "num_key_value_heads", keys{"num_key_value_heads": 3}},
		{"llama-llama3", "num_attention_heads", keys{"head_dim": nil, "num_attention_heads": 3, "num_key_value_heads": 3}},
		{"llama-llama3", "head_dim", keys{"head_dim": 3}},
		{"llama-llama3", "hidden_act", keys{"hidden_act": "gelu"}},
		{"llama-llama3", "rope_scaling.rope_type", keys{"rope_scaling": keys{"rope_type": "yarn", "factor": 2}}},
		{"llama-llama3", "rope_scaling.rope_type", keys{"rope_scaling": keys{"type": "dynamic", "factor": 2}}},
		{"llama-llama3", "rope_scaling.factor", keys{"rope_scaling": keys{"type": "linear"}}},
		{"llama-llama3", "rope_scaling.type", keys{"rope_scaling": keys{"type": "linear", "rope_type": "llama3"}}},
		{"llama-llama3", "rope_scaling.attention_factor", keys{"rope_scaling": keys{"type": "linear", "factor": 2, "attention_factor": 1.5}}},
		{"llama-llama3", "rope_scaling.original_max_position_embeddings", keys{"rope_scaling": keys{"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}}},
		{"llama-llama3", "rope_scaling.low_freq_factor", keys{"rope_scaling": keys{"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4, "original_max_position_embeddings": 32}}},
		{"llama-llama3", "rope_scaling", keys{"rope_parameters": keys{"rope_type": "default"}}},
		{"llama-llama3", "rope_theta", keys{"rope_theta": 0}},
		{"llama-llama3", "rms_norm_eps", keys{"rms_norm_eps": -1e-6}},
		{"llama-llama3", "partial_rotary_factor", keys{"partial_rotary_factor": .5}},
		{"llama-llama3", "attention_multiplier", keys{"attention_multiplier": .2}},
		{"llama-llama3", "sliding_window", keys{"sliding_window": 8}},
		{"llama-llama3", "layer_types", keys{"layer_types": []string{"full_attention", "sliding_attention"}}},
		{"llama-llama3", "layer_types", keys{"layer_types": []string{"full_attention"}}},
		{"llama-llama3", "layer_types", keys{"layer_types": []string{"full_attention", "chunked_attention"}}},
		{"llama-llama3", "quantization_config", keys{"quantization_config": keys{"bits": 4}}},
		{"llama-llama3", "auto_map", keys{"auto_map": keys{"AutoModel": "x.Y"}}},
		{"llama-llama3", "architectures", keys{"architectures": []string{"LlamaForSequenceClassification"}}},
		{"mistral", "layer_types", keys{"layer_types": []string{"full_attention", "sliding_attention"}}},
		{"mistral", "rope_parameters.rope_type", keys{"rope_parameters": keys{"rope_type": "longrope"}}},
		{"mistral", "sliding_window", keys{"sliding_window": 0}},
		{"qwen2", "sliding_window", keys{"sliding_window": -4}},
		{"qwen2", "layer_types", keys{"use_sliding_window": false, "layer_types": []string{"full_attention", "full_attention", "sliding_attention"}}},
		{"gpt2", "activation_function", keys{"activation_function": "mish"}},
		{"gpt2", "add_cross_attention", keys{"add_cross_attention": true}},
		{"gpt2", "n_head", keys{"n_head": 3}},
		{"gpt2", "rotary_dim", keys{"rotary_dim": 4}},
	} {
		c, config, _, _ := tiny(t, s.model)
		_, err := Build(c.Tensors(), Options{Config: edit(t, config, s.edit)})
		if got, ok := errors.AsType[*ConfigError](err); !ok || got.Key != s.key {
			t.Errorf("%s with %v: got %v, want an error of %s", s.model, s.edit, err, s.key)
		}
	}
}

// Ways of saying the same give the same graph.
func TestConfigsThatAreTheSame(t *testing.T) {
	for _, s := range []struct {
		model string
		edit  keys
	}{
		{"llama-llama3", keys{"attention_bias": false, "rms_norm_eps": 1e-5, "sliding_window": null, "partial_rotary_factor": 1}},
		{"llama-llama3", keys{"layer_types": []string{"full_attention", "full_attention"}, "architectures": nil}},
		{"llama-llama3", keys{"rope_theta": nil}}, // 10000 is what it is without
		{"llama-llama3", keys{"rope_theta": nil, "rope_scaling": nil, "rope_parameters": keys{"rope_theta": 10000, "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 32}}},
		{"mistral", keys{"rope_parameters": nil, "rope_theta": 1000, "rope_scaling": null}},
		{"mistral", keys{"layer_types": []string{"sliding_attention", "sliding_attention"}}},
		{"qwen2", keys{"layer_types": []string{"full_attention", "sliding_attention", "sliding_attention"}, "max_window_layers": 28}},
		{"gpt2", keys{"n_inner": null, "tie_word_embeddings": true, "reorder_and_upcast_attn": true, "scale_attn_weights": true}},
	} {
		c, config, _, _ := tiny(t, s.model)
		g, err := Build(c.Tensors(), Options{Config: edit(t, config, s.edit)})
		if err != nil {
			t.Errorf("%s with %v: %v", s.model, s.edit, err)
			continue
		}
		if diff := cmp.Diff(buildTiny(t, c, config), g); diff != "" {
			t.Errorf("%s with %v:\n%s", s.model, s.edit, diff)
		}
	}
}

// windows returns each block's sliding window.
func windows(g *Graph) []int {
	var w []int
	for i := range g.Ops {
		if a := g.Ops[i].Attention; a != nil {
			w = append(w, a.Window)
		}
	}
	return w
}

func TestWindows(t *testing.T) {
	for _, s := range []struct {
		model string
		edit  keys
		want  []int
	}{
		{"mistral", keys{"sliding_window": nil}, []int{4096, 4096}},
		{"mistral", keys{"sliding_window": null}, []int{0, 0}},
		{"mistral", nil, []int{5, 5}},
		{"qwen2", nil, []int{0, 4, 4}},
		{"qwen2", keys{"max_window_layers": nil}, []int{0, 0, 0}},
		{"qwen2", keys{"max_window_layers": 0, "sliding_window": nil}, []int{4096, 4096, 4096}},
		{"qwen2", keys{"sliding_window": null}, []int{0, 0, 0}},
		{"qwen2", keys{"use_sliding_window": nil}, []int{0, 0, 0}},
		{"qwen2", keys{"layer_types": []string{"sliding_attention", "full_attention", "full_attention"}}, []int{4, 0, 0}},
	} {
		c, config, _, _ := tiny(t, s.model)
		if got := windows(buildTiny(t, c, edit(t, config, s.edit))); !slices.Equal(got, s.want) {
			t.Errorf("%s with %v: windows %v, want %v", s.model, s.edit, got, s.want)
		}
	}
}

// Whatever is taken away, added or changed is an error that names a tensor.
func TestLanguageModelContradictions(t *testing.T) {
	for _, name := range slices.Concat(tinyModels, normedModels) {
		c, config, _, _ := tiny(t, name)
		list := c.Tensors()
		wantError := func(tensor string, list []loader.Tensor) {
			t.Helper()
			_, err := Build(list, Options{Config: config})
			if e, ok := errors.AsType[*TensorError](err); !ok || !strings.HasSuffix(e.Tensor, tensor) {
				t.Errorf("%s: %s: got %v", name, tensor, err)
			}
		}
		for i, x := range list {
			if slices.ContainsFunc([]string{"attn.bias", "attention.bias", "masked_bias", "inv_freq"}, func(old string) bool { return strings.HasSuffix(x.Name, old) }) {
				continue
			}
			wantError(x.Name, slices.Delete(slices.Clone(list), i, i+1))
			wantError(x.Name, append(slices.Clone(list), x))
			changed := slices.Clone(list)
			changed[i].DType = dtype.I8
			wantError(x.Name, changed)
			for axis := range x.Shape {
				changed := slices.Clone(list)
				changed[i].Shape = slices.Clone(x.Shape)
				changed[i].Shape[axis]++
				wantError(x.Name, changed)
			}
		}
		prefix := parentOf(strings.TrimSuffix(buildTiny(t, c, config).Ops[0].Embedding.Table, ".weight"))
		if prefix != "" {
			prefix += "."
		}
		for _, extra := range []string{"layers.2.mlp.up_proj.bias", "layers.3.x", "h.2.x", "h.0.attn.extra", "norm.bias", "score.weight"} {
			wantError(extra, append(slices.Clone(list), float(prefix+extra, 8)))
		}
	}
}

func TestTiedHeads(t *testing.T) {
	c, config, x, want := tiny(t, "llama-llama3")
	list, table := c.Tensors(), "model.embed_tokens.weight"
	head := float("lm_head.weight", 37, 16)

	both, err := Build(append(slices.Clone(list), head), Options{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(both.Copies, []Copy{{Of: table, Name: head.Name}}) || slices.Contains(both.Tensors(), head.Name) {
		t.Errorf("with both: copies %v", both.Copies)
	}
	stored := Stored(c)
	other := func(name string) ([]float32, error) {
		w, err := stored(table)
		if name != table {
			w[7] += 1e-6
		}
		return w, err
	}
	if e, ok := errors.AsType[*TensorError](CheckCopies(context.Background(), both, other)); !ok || e.Tensor != head.Name {
		t.Errorf("copies that differ: %v", e)
	}
	same := func(string) ([]float32, error) { return stored(table) }
	if err := CheckCopies(context.Background(), both, same); err != nil {
		t.Error(err)
	}

	g := buildTiny(t, c, config)
	if last := len(g.Ops) - 1; !g.Tied(last) || g.Tied(2) {
		t.Error("the head, and only it, is tied")
	}
	g, err = Build(rename(list, table, head.Name), Options{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	renamed := func(name string) ([]float32, error) { return stored(strings.Replace(name, head.Name, table, 1)) }
	wantClose(t, "under the head's name", forward(t, NewExecutor(g, nil, renamed), x).Data, want, 1e-4)

	_, err = Build(list, Options{Config: edit(t, config, keys{"tie_word_embeddings": nil})})
	if e, ok := errors.AsType[*TensorError](err); !ok || e.Tensor != head.Name {
		t.Errorf("not tied and without a head: %v", err)
	}
}

func TestPrefixesAndOldBuffers(t *testing.T) {
	for _, name := range tinyModels {
		c, config, x, want := tiny(t, name)
		list := c.Tensors()
		for _, prefix := range []string{"model.", "transformer."} {
			list = rename(list, prefix, "")
		}
		last := "layers.0.self_attn.rotary_emb.inv_freq"
		if strings.HasPrefix(name, "gpt2") {
			last = "h.1.attn.masked_bias"
		}
		for _, extra := range []loader.Tensor{float("lm_head.weight", 37, 16), float(last, 3)} {
			if !slices.ContainsFunc(list, func(t loader.Tensor) bool { return t.Name == extra.Name }) {
				list = append(list, extra)
			}
		}
		g, err := Build(list, Options{Config: config})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if slices.Contains(g.Tensors(), last) {
			t.Errorf("%s reads %s", name, last)
		}
		w := func(name string) ([]float32, error) {
			for _, prefix := range []string{"", "model.", "transformer."} {
				if _, ok := c.Lookup(prefix + name); ok {
					return Stored(c)(prefix + name)
				}
			}
			return nil, loader.ErrNotFound
		}
		wantClose(t, name, forward(t, NewExecutor(g, nil, w), x).Data, want, 1e-4)
	}
}

func TestConfigAndArchitecture(t *testing.T) {
	c, config, _, _ := tiny(t, "mistral")
	if _, err := Build(c.Tensors(), Options{Config: config, Architecture: "mistral"}); err != nil {
		t.Error(err)
	}
	if _, err := Build(c.Tensors(), Options{Config: edit(t, config, keys{"model_type": nil}), Architecture: "mistral"}); err != nil {
		t.Error(err)
	}
	chain := []loader.Tensor{float("a.weight", 4, 6)}
	if _, err := Build(chain, Options{Config: config, Architecture: "mlp"}); err != nil {
		t.Errorf("a config beside an architecture that needs none: %v", err)
	}
	for option, o := range map[string]Options{
		"architecture": {Config: config, Architecture: "llama"},
		"config":       {Architecture: "mistral"},
		"activation":   {Config: config, Activation: "relu"},
		"input shape":  {Config: config, InputShape: []int{3}},
	} {
		_, err := Build(c.Tensors(), o)
		if e, ok := errors.AsType[*OptionError](err); !ok || e.Option != option {
			t.Errorf("%s: got %v", option, err)
		}
	}
	for _, text := range []string{"", "[]", "{", `{"model_type": 3}`} {
		_, err := Build(c.Tensors(), Options{Config: []byte(text)})
		if _, ok := errors.AsType[*OptionError](err); !ok {
			t.Errorf("config %q: got %v", text, err)
		}
	}
}

func FuzzConfig(f *testing.F) {
	var lists [][]loader.Tensor
	for _, name := range slices.Concat(tinyModels, normedModels) {
		c, config, _, _ := tiny(f, name)
		f.Add(config)
		lists = append(lists, c.Tensors())
		if g, err := Build(c.Tensors(), Options{Config: config}); err == nil {
			for _, s := range g.Sites() { // configs of models from which something is removed
				if m, err := Remove(g, c.Tensors(), Options{Config: config}, []Removal{{Kind: s.Kind, Site: s.Name}}); err == nil && s.Whole() {
					f.Add(m.Config)
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, config []byte) {
		for _, list := range lists {
			g, err := Build(list, Options{Config: config})
			if err == nil && g.Check() != nil {
				t.Error(g.Check())
			}
		}
	})
}

func TestBlocksAndFusion(t *testing.T) {
	c, config, _, _ := tiny(t, "qwen2")
	g := buildTiny(t, c, config)
	groups := map[string][]string{}
	for i := range g.Ops {
		o := &g.Ops[i]
		block := -1
		if _, err := fmt.Sscanf(o.Name, "layers.%d.", &block); err != nil {
			block = -1
		}
		if o.Block != block {
			t.Errorf("%s is of block %d", o.Name, o.Block)
		}
		if o.Fusion != "" {
			groups[o.Fusion] = append(groups[o.Fusion], o.Weight)
		}
	}
	if len(groups) != 6 || len(groups["layers.1.self_attn.qkv"]) != 3 || len(groups["layers.2.mlp.gate_up"]) != 2 {
		t.Errorf("groups %v", groups)
	}
	if g.Context != 64 {
		t.Errorf("context %d", g.Context)
	}
	b, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	var again Graph
	if err := json.Unmarshal(b, &again); err != nil || again.Hash() != g.Hash() {
		t.Errorf("after JSON: %v, hash %s, want %s", err, again.Hash(), g.Hash())
	}
	if !strings.Contains(g.String(), "window 4, rope of 4 with theta 1e+06") {
		t.Errorf("the table is\n%s", g)
	}
}

// naiveAttention is the definition in float64.
func naiveAttention(a *Attention, q, k, v []float32, n int) []float64 {
	wide, narrow := a.widths()
	turned := func(x []float32, width, token, head int) []float64 {
		y := make([]float64, a.HeadDim)
		for i := range y {
			y[i] = float64(x[token*width+head*a.HeadDim+i])
		}
		if a.Rope == nil {
			return y
		}
		for i := range a.Rope.Dims / 2 {
			one, two := i, i+a.Rope.Dims/2
			if a.Rope.Interleaved {
				one, two = 2*i, 2*i+1
			}
			angle := float64(token) * math.Pow(a.Rope.Theta, -2*float64(i)/float64(a.Rope.Dims))
			y[one], y[two] = y[one]*math.Cos(angle)-y[two]*math.Sin(angle), y[one]*math.Sin(angle)+y[two]*math.Cos(angle)
		}
		return y
	}
	out := make([]float64, n*wide)
	for h := range a.Heads {
		kv := h * a.KVHeads / a.Heads
		for i := range n {
			query, sum := turned(q, wide, i, h), 0.0
			y := out[i*wide+h*a.HeadDim:][:a.HeadDim]
			for j := range n {
				if a.Causal && (j > i || a.Window > 0 && i-j >= a.Window) {
					continue
				}
				score := 0.0
				for d, x := range turned(k, narrow, j, kv) {
					score += query[d] * x
				}
				p := math.Exp(a.Scale * score)
				sum += p
				for d := range y {
					y[d] += p * float64(v[j*narrow+kv*a.HeadDim+d])
				}
			}
			for d := range y {
				y[d] /= sum
			}
		}
	}
	return out
}

func TestAttentionIsItsDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	for trial := range 60 {
		a := &Attention{KVHeads: 1 + r.IntN(3), HeadDim: 1 + r.IntN(20), Scale: .1 + r.Float64()/2, Causal: r.IntN(4) > 0}
		a.Heads = a.KVHeads * (1 + r.IntN(3))
		if a.Causal && r.IntN(2) == 0 {
			a.Window = 1 + r.IntN(90)
		}
		if a.HeadDim > 1 && r.IntN(2) == 0 {
			a.Rope = &Rope{Theta: 100, Dims: 2 * (1 + r.IntN(a.HeadDim/2)), Interleaved: r.IntN(2) == 0}
		}
		wide, narrow := a.widths()
		x := &Tensor{Lengths: []int{1 + r.IntN(150), r.IntN(3), 1 + r.IntN(70)}}
		if trial%6 == 0 {
			x.Lengths[0] = keyTile + r.IntN(keyTile)
		}
		n := x.Lengths[0] + x.Lengths[1] + x.Lengths[2]
		in := make([]*Tensor, 3)
		fused := &Tensor{Shape: []int{n, wide + 2*narrow}, Lengths: x.Lengths, Data: make([]float32, n*(wide+2*narrow))}
		at := 0
		for i, width := range []int{wide, narrow, narrow} {
			in[i] = batch(r, n, width)
			in[i].Lengths = x.Lengths
			for row := range n {
				copy(fused.Data[row*fused.Shape[1]+at:], in[i].Data[row*width:][:width])
			}
			at += width
		}
		g := &Graph{
			Values: []Value{{"q", []int{wide}}, {"k", []int{narrow}}, {"v", []int{narrow}}, {"y", []int{wide}}},
			Ops:    []Op{{Kind: Attend, Name: "attention", Inputs: []int{0, 1, 2}, Output: 3, Attention: a}}, Output: 3,
		}
		// The graph has one input, so that Check would refuse the other two.
		e := &Executor{graph: g, pool: pool.New(2), scratch: &sync.Pool{}}
		y, err := e.Step(context.Background(), 0, in)
		if err != nil {
			t.Fatal(err)
		}
		from := 0
		for s, n := range x.Lengths {
			rows := func(t *Tensor) []float32 { return t.Data[from*t.Shape[1] : (from+n)*t.Shape[1]] }
			want := naiveAttention(a, rows(in[0]), rows(in[1]), rows(in[2]), n)
			wantClose(t, fmt.Sprintf("%v, sequence %d of %d", a, s, n), rows(y), want, 1e-5)
			from += n
		}
		g.Ops[0].Inputs, g.Values[0].Shape = []int{0}, []int{wide + 2*narrow}
		again, err := e.Step(context.Background(), 0, []*Tensor{fused})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(y.Data, again.Data) {
			t.Errorf("%v: q, k and v side by side give other bytes", a)
		}
	}
}

// The beginning of a sequence gives what it gives alone, and large scores do
// not overflow.
func TestAttentionOfPrefixes(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 1))
	a := &Attention{Heads: 2, KVHeads: 1, HeadDim: 8, Scale: 40, Causal: true, Window: 100, Rope: &Rope{Theta: 1e4, Dims: 8}}
	g := &Graph{
		Values: []Value{{"qkv", []int{32}}, {"y", []int{16}}},
		Ops:    []Op{{Kind: Attend, Name: "attention", Inputs: []int{0}, Output: 1, Attention: a}}, Output: 1,
	}
	long := batch(r, 2*keyTile+9, 32)
	long.Lengths = []int{long.Shape[0]}
	want := step(t, g, nil, long)
	for _, v := range want.Data {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			t.Fatal("not finite")
		}
	}
	for _, n := range []int{1, queryTile, queryTile + 1, keyTile - 1, keyTile + 1, 2 * keyTile} {
		short := &Tensor{Shape: []int{n, 32}, Data: long.Data[:n*32], Lengths: []int{n}}
		y := step(t, g, nil, short)
		wide := make([]float64, len(y.Data))
		for i := range wide {
			wide[i] = float64(want.Data[i])
		}
		wantClose(t, fmt.Sprint(n, " rows"), y.Data, wide, 1e-6)
	}
	if _, err := NewExecutor(g, nil, nil).Step(context.Background(), 0, []*Tensor{batch(r, 4, 32)}); err == nil {
		t.Error("rows without lengths: no error")
	}
}

func TestTokenOpsAreTheirDefinitions(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 1))
	for range 20 {
		n, d := 1+r.IntN(40), 1+r.IntN(300)
		x, w := batch(r, n, d), map[string][]float32{"w": random(r, d), "b": random(r, d)}
		var rms, centred []float64
		for s := range n {
			squares, sum, variance := 0.0, 0.0, 0.0
			for _, v := range sample(x, s) {
				squares += float64(v) * float64(v)
				sum += float64(v)
			}
			for _, v := range sample(x, s) {
				variance += (float64(v) - sum/float64(d)) * (float64(v) - sum/float64(d))
			}
			for i, v := range sample(x, s) {
				rms = append(rms, float64(v)/math.Sqrt(squares/float64(d)+.01)*float64(w["w"][i]))
				centred = append(centred, (float64(v)-sum/float64(d))/math.Sqrt(variance/float64(d)+.01)*float64(w["w"][i])+float64(w["b"][i]))
			}
		}
		y := step(t, oneOp(t, Op{Kind: RMSNorm, Norm: &Norm{Weight: "w", Eps: .01}}, []int{d}), w, x)
		wantClose(t, "rmsnorm", y.Data, rms, 1e-6)
		y = step(t, oneOp(t, Op{Kind: LayerNorm, Norm: &Norm{Weight: "w", Bias: "b", Eps: .01}}, []int{d}), w, x)
		wantClose(t, "layernorm", y.Data, centred, 1e-6)

		gelu, tanh := make([]float64, n*d), make([]float64, n*d)
		for i, f := range x.Data {
			v := float64(f)
			gelu[i] = v / 2 * math.Erfc(-v/math.Sqrt2)
			tanh[i] = v / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(v+.044715*v*v*v)))
		}
		wantClose(t, "gelu", step(t, oneOp(t, Op{Kind: GELU}, []int{d}), nil, x).Data, gelu, 1e-6)
		wantClose(t, "gelu_tanh", step(t, oneOp(t, Op{Kind: GELUTanh}, []int{d}), nil, x).Data, tanh, 1e-6)

		b := batch(r, n, d)
		g := &Graph{Values: []Value{{"a", []int{d}}, {"y", []int{d}}}, Ops: []Op{{Kind: SiLUMul, Name: "act", Inputs: []int{0, 0}, Output: 1}}, Output: 1}
		silu := make([]float64, n*d)
		for i, f := range x.Data {
			silu[i] = float64(f) / (1 + math.Exp(-float64(f))) * float64(b.Data[i])
		}
		wantClose(t, "silu_mul", step(t, g, nil, x, b).Data, silu, 1e-6)

		outputs := 1 + r.IntN(20)
		m := map[string][]float32{"w": random(r, outputs*d), "t": make([]float32, outputs*d), "b": random(r, outputs)}
		for i := range outputs {
			for j := range d {
				m["t"][j*outputs+i] = m["w"][i*d+j]
			}
		}
		plain := step(t, oneOp(t, Op{Kind: Linear, Weight: "w", Bias: "b", Outputs: outputs}, []int{d}), m, x)
		turned := step(t, oneOp(t, Op{Kind: Linear, Weight: "t", Bias: "b", Outputs: outputs, Transposed: true}, []int{d}), m, x)
		if !slices.Equal(plain.Data, turned.Data) {
			t.Error("a transposed weight gives other bytes")
		}
	}
}

func TestCheckFindsBrokenLanguageModels(t *testing.T) {
	c, config, _, _ := tiny(t, "llama-llama3")
	at := func(g *Graph, kind OpKind) *Op {
		return &g.Ops[slices.IndexFunc(g.Ops, func(o Op) bool { return o.Kind == kind })]
	}
	for name, spoil := range map[string]func(g *Graph){
		"no table":      func(g *Graph) { g.Ops[0].Embedding = nil },
		"rows":          func(g *Graph) { g.Ops[0].Embedding.Rows = 0 },
		"positions":     func(g *Graph) { g.Ops[0].Embedding.Positions = "p" },
		"input":         func(g *Graph) { g.Values[0].Shape = []int{2} },
		"no norm":       func(g *Graph) { at(g, RMSNorm).Norm = nil },
		"norm's bias":   func(g *Graph) { at(g, RMSNorm).Norm.Bias = "b" },
		"eps":           func(g *Graph) { at(g, RMSNorm).Norm.Eps = math.NaN() },
		"no attention":  func(g *Graph) { at(g, Attend).Attention = nil },
		"heads":         func(g *Graph) { at(g, Attend).Attention.Heads = 3 },
		"kv heads":      func(g *Graph) { at(g, Attend).Attention.KVHeads = 0 },
		"scale":         func(g *Graph) { at(g, Attend).Attention.Scale = math.Inf(1) },
		"window":        func(g *Graph) { at(g, Attend).Attention.Window = -1 },
		"free window":   func(g *Graph) { a := at(g, Attend).Attention; a.Window, a.Causal = 3, false },
		"odd rope":      func(g *Graph) { at(g, Attend).Attention.Rope.Dims = 3 },
		"wide rope":     func(g *Graph) { at(g, Attend).Attention.Rope.Dims = 14 },
		"theta":         func(g *Graph) { at(g, Attend).Attention.Rope.Theta = 0 },
		"scaling":       func(g *Graph) { at(g, Attend).Attention.Rope.Scaling.Type = "yarn" },
		"factor":        func(g *Graph) { at(g, Attend).Attention.Rope.Scaling.Factor = 0 },
		"frequencies":   func(g *Graph) { at(g, Attend).Attention.Rope.Scaling.LowFreq = 9 },
		"two values":    func(g *Graph) { o := at(g, Attend); o.Inputs = o.Inputs[:2] },
		"one gate":      func(g *Graph) { o := at(g, SiLUMul); o.Inputs = o.Inputs[:1] },
		"transposed":    func(g *Graph) { at(g, SiLUMul).Transposed = true },
		"norm's weight": func(g *Graph) { at(g, RMSNorm).Weight = "w" },
	} {
		g := buildTiny(t, c, config)
		spoil(g)
		if g.Check() == nil {
			t.Errorf("%s: not found", name)
		}
	}
}
