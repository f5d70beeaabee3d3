package model

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/loader"
)

// stored writes random values for tensors into a checkpoint.
func stored(t testing.TB, r *rand.Rand, tensors []loader.Tensor) *loader.Checkpoint {
	t.Helper()
	var sources []safetensors.Source
	for _, one := range tensors {
		values := random(r, size(one.Shape))
		if len(one.Shape) == 0 {
			values = make([]float32, 1)
		}
		for i := range values {
			values[i] *= .5
			if strings.HasSuffix(one.Name, "running_var") {
				values[i] = .2 + float32(math.Abs(float64(values[i])))
			}
		}
		raw := make([]byte, len(values)*one.DType.Size())
		if one.DType == dtype.F32 {
			if err := one.DType.FromFloat32(raw, values); err != nil {
				t.Fatal(err)
			}
		}
		sources = append(sources, safetensors.Source{Name: one.Name, DType: one.DType, Shape: one.Shape, Write: func(w io.Writer) error {
			_, err := w.Write(raw)
			return err
		}})
	}
	var file bytes.Buffer
	if err := safetensors.Write(&file, sources, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "model.safetensors")
	if err := os.WriteFile(path, file.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := loader.Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// silenced are the weights of a model in which what is to be removed adds
// nothing to what comes after it: consumers do not read the units, and sublayers
// end in zero.
func silenced(t testing.TB, g *Graph, w Weights, shapes map[string][]int, removals []Removal) Weights {
	t.Helper()
	zero := map[string]func(values []float32){}
	also := func(name string, f func(values []float32)) {
		before := zero[name]
		zero[name] = func(values []float32) {
			if before != nil {
				before(values)
			}
			f(values)
		}
	}
	all := func(values []float32) { clear(values) }
	for _, one := range removals {
		s, err := g.Site(one.Kind, one.Site)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range s.Ops { // what writes into a sum
			if !slices.Contains([]OpKind{Add, Combine, ScaleRows}, g.Ops[i].Kind) {
				continue
			}
			for _, j := range s.Ops {
				op := &g.Ops[j]
				if !slices.Contains(g.Ops[i].Inputs, op.Output) || op.Kind == Add {
					continue
				}
				for _, name := range op.Tensors() {
					if op.BatchNorm == nil || name == op.BatchNorm.Scale || name == op.BatchNorm.Shift {
						also(name, all)
					}
				}
			}
		}
		for _, c := range s.Consumers {
			op := &g.Ops[c.Op]
			rows, columns := op.Outputs, 1
			for _, n := range shapes[op.Weight] {
				columns *= n
			}
			columns /= rows
			also(op.Weight, func(values []float32) {
				for u := range s.Units {
					if slices.Contains(one.Keep, u) {
						continue
					}
					for col := u * c.Columns; col < (u+1)*c.Columns; col++ {
						for row := range rows {
							at := row*columns + col
							if op.Transposed {
								at = col*rows + row
							}
							values[at] = 0
						}
					}
				}
			})
		}
	}
	return func(name string) ([]float32, error) {
		values, err := w(name)
		if f := zero[name]; f != nil && err == nil {
			values = slices.Clone(values)
			f(values)
		}
		return values, err
	}
}

// keepUnits returns a random choice that a site allows.
func keepUnits(r *rand.Rand, s *Site) []int {
	if s.Whole() {
		return nil
	}
	var keep []int
	n := 1 + r.IntN(s.Run)
	for first := 0; first < s.Units; first += s.Run {
		run := r.Perm(s.Run)[:n]
		slices.Sort(run)
		for _, u := range run {
			keep = append(keep, first+u)
		}
	}
	return keep
}

// checkRemoval removes units and holds the smaller model's outputs against those
// of the whole one with the units silenced.
func checkRemoval(t testing.TB, what string, c *loader.Checkpoint, o Options, x *Tensor, removals []Removal) *Remainder {
	t.Helper()
	g, err := Build(c.Tensors(), o)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Remove(g, c.Tensors(), o, removals)
	if err != nil {
		t.Fatalf("%s: %+v: %v", what, removals, err)
	}
	view, err := c.View(m.Parts)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	again := o
	again.Config = m.Config
	rebuilt, err := Build(view.Tensors(), again)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if rebuilt.Hash() != m.Graph.Hash() {
		t.Errorf("%s: the view's graph is another", what)
	}
	shapes := map[string][]int{}
	for _, one := range c.Tensors() {
		shapes[one.Name] = one.Shape
	}
	want := forward(t, NewExecutor(g, pool.New(2), silenced(t, g, Stored(c), shapes, removals)), x)
	got := forward(t, NewExecutor(rebuilt, pool.New(2), Stored(view)), x)
	worst := 0.0
	for i, v := range want.Data {
		worst = max(worst, math.Abs(float64(got.Data[i]-v))/(1+math.Abs(float64(v))))
	}
	if !(worst < 2e-4) || len(want.Data) != len(got.Data) {
		t.Errorf("%s: %+v: outputs differ by %.1e", what, removals, worst)
	}
	return m
}

// checkSites removes from each site by itself, and then from random ones at
// once.
func checkSites(t testing.TB, what string, r *rand.Rand, c *loader.Checkpoint, o Options, x *Tensor, rounds int) (kinds map[SiteKind]int) {
	t.Helper()
	g, err := Build(c.Tensors(), o)
	if err != nil {
		t.Fatal(err)
	}
	kinds = map[SiteKind]int{}
	blocks := map[string]int{}
	for _, s := range g.Sites() {
		kinds[s.Kind]++
		if s.Kind == BlockSite {
			blocks[stageOf(s.Name+".")]++
		}
	}
	removable := func(s *Site) bool {
		if s.Kind != BlockSite || s.Block < 0 {
			return s.Kind != BlockSite || blocks[stageOf(s.Name+".")] > 1
		}
		// A block without its normalizations in the stream is not the block with its
		// layers silenced: TestEncoderRemovals holds such against the graph itself.
		return !slices.ContainsFunc(s.Ops, func(i int) bool {
			o := &g.Ops[i]
			return o.Norm != nil && (i == s.Ops[len(s.Ops)-1] || slices.ContainsFunc(g.Readers(o.Output), func(r int) bool { return g.Ops[r].Kind == Add }))
		})
	}
	total := 0
	for _, s := range g.Sites() {
		if removable(&s) {
			checkRemoval(t, what, c, o, x, []Removal{{s.Kind, s.Name, keepUnits(r, &s)}})
		}
	}
	for range rounds {
		var removals []Removal
		whole := false
		for _, s := range g.Sites() {
			if r.IntN(2) == 0 || (s.Whole() && whole) || !removable(&s) {
				continue
			}
			whole = whole || s.Whole() // one at most, so that something stays
			removals = append(removals, Removal{s.Kind, s.Name, keepUnits(r, &s)})
		}
		total += len(removals)
		checkRemoval(t, what, c, o, x, removals)
	}
	if rounds > 0 && total == 0 {
		t.Errorf("%s: nothing was removed", what)
	}
	return kinds
}

func TestRemoveFromFamilies(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, name := range tinyModels {
		c, config, x, _ := tiny(t, name)
		kinds := checkSites(t, name, r, c, Options{Config: config}, x, 10)
		layers := kinds[BlockSite]
		if layers < 2 || kinds[AttentionSite] != layers || kinds[MLPSite] != layers || kinds[KVGroupSite] != layers || kinds[ChannelSite] != layers-mixtures(buildTiny(t, c, config)) {
			t.Errorf("%s: sites %v", name, kinds)
		}
	}
}

// llamaTensors lists the tensors of a llama-like model.
func llamaTensors(hidden, inner, heads, kv, dim, blocks, vocabulary int, bias bool) []loader.Tensor {
	list := []loader.Tensor{float("model.embed_tokens.weight", vocabulary, hidden)}
	linear := func(name string, out, in int, bias bool) {
		list = append(list, float(name+".weight", out, in))
		if bias {
			list = append(list, float(name+".bias", out))
		}
	}
	for i := range blocks {
		name := fmt.Sprintf("model.layers.%d.", i)
		list = append(list, float(name+"input_layernorm.weight", hidden), float(name+"post_attention_layernorm.weight", hidden),
			float(name+"self_attn.rotary_emb.inv_freq", dim/2))
		linear(name+"self_attn.q_proj", heads*dim, hidden, bias)
		linear(name+"self_attn.k_proj", kv*dim, hidden, bias)
		linear(name+"self_attn.v_proj", kv*dim, hidden, bias)
		linear(name+"self_attn.o_proj", hidden, heads*dim, bias)
		linear(name+"mlp.gate_proj", inner, hidden, bias)
		linear(name+"mlp.up_proj", inner, hidden, bias)
		linear(name+"mlp.down_proj", hidden, inner, bias)
	}
	return append(list, float("model.norm.weight", hidden), float("lm_head.weight", vocabulary, hidden))
}

func TestRemoveFromRandomLlamas(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for round := range 8 {
		kv, share, dim := 1+r.IntN(3), 1+r.IntN(4), 2*(1+r.IntN(4))
		hidden, inner, blocks, bias := 5+r.IntN(12), 1+r.IntN(20), 2+r.IntN(2), r.IntN(2) == 0
		c := stored(t, r, llamaTensors(hidden, inner, kv*share, kv, dim, blocks, 11, bias))
		config := fmt.Appendf(nil, `{"model_type": "llama", "vocab_size": 11, "hidden_size": %d, "intermediate_size": %d, "num_hidden_layers": %d,
			"num_attention_heads": %d, "num_key_value_heads": %d, "head_dim": %d, "attention_bias": %t, "mlp_bias": %t}`,
			hidden, inner, blocks, kv*share, kv, dim, bias, bias)
		x := NewTokens([]uint32{1, 5, 3, 8}, []uint32{0, 10})
		kinds := checkSites(t, fmt.Sprint("llama ", round), r, c, Options{Config: config}, x, 6)
		if (kinds[QueryHeadSite] > 0) != (share > 1) {
			t.Errorf("%d heads to %d: sites %v", kv*share, kv, kinds)
		}
	}
}

func TestRemoveFromResNets(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, b := range []bool{false, true} {
		for _, prefix := range []string{"", "module."} {
			c := stored(t, r, resNetTensors(prefix, 4, 2, 3, 5, b))
			o := Options{InputShape: []int{2, 9, 8}}
			kinds := checkSites(t, fmt.Sprint("resnet ", prefix, b), r, c, o, batch(r, 3, 2, 9, 8), 8)
			// The first blocks of stages 2 and 3 have other shortcuts.
			if want := (map[SiteKind]int{ChannelSite: 9, BlockSite: 7}); !maps.Equal(kinds, want) {
				t.Errorf("sites %v, want %v", kinds, want)
			}
		}
	}
}

func TestRemoveFromMLPs(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for activation := range activations {
		widths := []int{2 + r.IntN(5), 1 + r.IntN(9), 1 + r.IntN(9), 1 + r.IntN(4)}
		var list []loader.Tensor
		for i := 1; i < len(widths); i++ {
			list = append(list, float(fmt.Sprintf("fc%d.weight", i), widths[i], widths[i-1]))
			if r.IntN(2) == 0 {
				list = append(list, float(fmt.Sprintf("fc%d.bias", i), widths[i]))
			}
		}
		c := stored(t, r, list)
		kinds := checkSites(t, activation, r, c, Options{Architecture: mlp, Activation: activation}, batch(r, 4, widths[0]), 6)
		if want := (map[SiteKind]int{ChannelSite: 2}); !maps.Equal(kinds, want) {
			t.Errorf("sites %v, want %v", kinds, want)
		}
	}
}

// A filter's outputs may be flattened before a layer reads them.
func TestChannelsThroughFlatten(t *testing.T) {
	b := newGraphBuilder("test", []int{2, 4, 4})
	x := b.conv("conv", 0, "conv.weight", 3, 3, 1, 1)
	x = b.add(Op{Kind: Flatten, Name: "flatten", Inputs: []int{x}})
	x = b.add(Op{Kind: Linear, Name: "fc", Inputs: []int{x}, Weight: "fc.weight", Outputs: 5})
	g, err := b.finish(x)
	if err != nil {
		t.Fatal(err)
	}
	s, err := g.Site(ChannelSite, "conv")
	if err != nil {
		t.Fatal(err)
	}
	if want := []Slice{{"conv.weight", 0, 0, 1}, {"fc.weight", 1, 0, 16}}; !slices.Equal(s.Slices, want) {
		t.Errorf("slices %v, want %v", s.Slices, want)
	}
	if want := []Consumer{{2, 16}}; !slices.Equal(s.Consumers, want) {
		t.Errorf("consumers %v, want %v", s.Consumers, want)
	}
}

// smallLlama is a llama of the given blocks, 4 heads to 2 and 6 channels.
func smallLlama(t testing.TB, blocks int) (*loader.Checkpoint, Options, *Tensor) {
	c := stored(t, rand.New(rand.NewPCG(9, 9)), llamaTensors(8, 6, 4, 2, 2, blocks, 11, false))
	config := fmt.Appendf(nil, `{"model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": %d,
		"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 10000.0, "tie_word_embeddings": false}`, blocks)
	return c, Options{Config: config}, NewTokens([]uint32{1, 5, 3, 8})
}

// everywhere takes the same units away from all sites of a kind.
func everywhere(t testing.TB, c *loader.Checkpoint, o Options, kind SiteKind, keep ...int) []Removal {
	t.Helper()
	g, err := Build(c.Tensors(), o)
	if err != nil {
		t.Fatal(err)
	}
	var list []Removal
	for _, s := range g.Sites() {
		if s.Kind == kind {
			list = append(list, Removal{kind, s.Name, keep})
		}
	}
	return list
}

func keysOf(t testing.TB, config []byte) map[string]string {
	t.Helper()
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(config, &raw); err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{}
	for key, value := range raw {
		var b bytes.Buffer
		if err := json.Compact(&b, value); err != nil {
			t.Fatal(err)
		}
		keys[key] = b.String()
	}
	return keys
}

// What all blocks lose alike is told by the family's own keys, else by fettle's.
func TestRemainderConfig(t *testing.T) {
	c, o, x := smallLlama(t, 3)
	even := slices.Concat(everywhere(t, c, o, ChannelSite, 0, 2, 3), everywhere(t, c, o, KVGroupSite, 1))
	for what, one := range map[string]struct {
		removals []Removal
		want     map[string]string // what changes; "" is gone
		own      string
	}{
		"nothing": {nil, map[string]string{}, ""},
		"even": {even, map[string]string{
			"intermediate_size": "3", "num_attention_heads": "2", "num_key_value_heads": "1", "head_dim": "2",
		}, ""},
		"queries":        {everywhere(t, c, o, QueryHeadSite, 1, 2), map[string]string{"num_attention_heads": "2", "num_key_value_heads": "2", "head_dim": "2"}, ""},
		"a block":        {[]Removal{{BlockSite, "layers.1", nil}}, map[string]string{"num_hidden_layers": "2"}, ""},
		"a block in two": {[]Removal{{AttentionSite, "layers.0.self_attn", nil}, {MLPSite, "layers.0.mlp", nil}}, map[string]string{"num_hidden_layers": "2"}, ""},
		"uneven, but for the block that goes": {
			[]Removal{{BlockSite, "layers.0", nil}, {ChannelSite, "layers.1.mlp.up_proj", []int{5}}, {ChannelSite, "layers.2.mlp.gate_proj", []int{0}}},
			map[string]string{"num_hidden_layers": "2", "intermediate_size": "1"},
			"",
		},
		"an attention": {[]Removal{{AttentionSite, "layers.1.self_attn", nil}}, map[string]string{
			"model_type":    `"fettle-llama"`,
			"fettle_blocks": `[{"heads":4,"kv_heads":2,"channels":6},{"heads":0,"kv_heads":0,"channels":6},{"heads":4,"kv_heads":2,"channels":6}]`,
		}, "block 1 has no attention"},
		"uneven": {[]Removal{{MLPSite, "layers.2.mlp", nil}, {BlockSite, "layers.1", nil}, {KVGroupSite, "layers.0.self_attn", []int{0}}, {ChannelSite, "layers.0.mlp.gate_proj", []int{0, 1}}}, map[string]string{
			"model_type": `"fettle-llama"`, "num_hidden_layers": "2",
			"fettle_blocks": `[{"heads":2,"kv_heads":1,"channels":2},{"heads":4,"kv_heads":2,"channels":0}]`,
		}, "block 1 has no MLP"},
	} {
		m := checkRemoval(t, what, c, o, x, one.removals)
		want := keysOf(t, o.Config)
		maps.Copy(want, one.want)
		if got := keysOf(t, m.Config); !maps.Equal(got, want) {
			t.Errorf("%s: config %v\nwant %v", what, got, want)
		}
		if m.Own != one.own {
			t.Errorf("%s: own %q, want %q", what, m.Own, one.own)
		}
	}
}

// A model that was cut may be cut again, and when its blocks are alike again the
// family's keys do.
func TestRemoveTwice(t *testing.T) {
	c, o, x := smallLlama(t, 3)
	m := checkRemoval(t, "first", c, o, x, []Removal{{AttentionSite, "layers.1.self_attn", nil}, {ChannelSite, "layers.2.mlp.gate_proj", []int{1, 4}}, {KVGroupSite, "layers.0.self_attn", []int{0}}})
	view, err := c.View(m.Parts)
	if err != nil {
		t.Fatal(err)
	}
	o.Config = m.Config
	checkSites(t, "again", rand.New(rand.NewPCG(1, 1)), view, o, x, 10)
	second := checkRemoval(t, "second", view, o, x, []Removal{{MLPSite, "layers.1.mlp", nil}, {ChannelSite, "layers.0.mlp.gate_proj", []int{0, 5}}, {KVGroupSite, "layers.2.self_attn", []int{1}}})
	keys := keysOf(t, second.Config)
	if second.Own != "" || keys["model_type"] != `"llama"` || keys["fettle_blocks"] != "" || keys["num_hidden_layers"] != "2" || keys["intermediate_size"] != "2" || keys["head_dim"] != "2" {
		t.Errorf("own %q, %v", second.Own, keys)
	}
}

// Windows stay with their blocks.
func TestRemoveBlocksWithWindows(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	c := stored(t, r, llamaTensors(8, 6, 2, 2, 4, 4, 11, false))
	var tensors []loader.Tensor
	for _, one := range c.Tensors() {
		tensors = append(tensors, one)
		if stem, ok := strings.CutSuffix(one.Name, "_proj.weight"); ok && strings.Contains(stem, "self_attn") && !strings.HasSuffix(stem, ".o") {
			tensors = append(tensors, float(stem+"_proj.bias", 8))
		}
	}
	c = stored(t, r, tensors)
	x := NewTokens([]uint32{1, 2, 3, 4, 5, 6, 7})
	base := `{"model_type": "qwen2", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 4, "num_attention_heads": 2,
		"use_sliding_window": true, "sliding_window": 2, `
	for key, rest := range map[string]string{
		"max_window_layers": `"max_window_layers": 2}`,
		"layer_types":       `"max_window_layers": 0, "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]}`,
	} {
		o := Options{Config: []byte(base + rest)}
		g, err := Build(c.Tensors(), o)
		if err != nil {
			t.Fatal(err)
		}
		all := windows(g)
		for block := range 4 {
			m := checkRemoval(t, key, c, o, x, []Removal{{BlockSite, fmt.Sprintf("layers.%d", block), nil}})
			if want := slices.Delete(slices.Clone(all), block, block+1); !slices.Equal(windows(m.Graph), want) {
				t.Errorf("%s: without block %d windows are %v, want %v", key, block, windows(m.Graph), want)
			}
		}
	}
}

// GPT-2's blocks keep their numbers where the scale of attention depends on them.
func TestRemoveKeepsNumbers(t *testing.T) {
	for _, name := range tinyModels {
		c, config, x, _ := tiny(t, name)
		if !strings.HasPrefix(name, "gpt2") {
			continue
		}
		o := Options{Config: config}
		fixed := strings.Contains(string(config), `"scale_attn_by_inverse_layer_idx": true`)
		m := checkRemoval(t, name, c, o, x, []Removal{{BlockSite, "h.0", nil}})
		if (m.Own != "") != fixed {
			t.Errorf("%s: own %q", name, m.Own)
		}
		m = checkRemoval(t, name, c, o, x, everywhere(t, c, o, KVGroupSite, 0))
		if !strings.Contains(m.Own, "fewer heads") {
			t.Errorf("%s: own %q", name, m.Own)
		}
		m = checkRemoval(t, name, c, o, x, everywhere(t, c, o, ChannelSite, 0, 3))
		if keys := keysOf(t, m.Config); m.Own != "" || keys["n_inner"] != "2" {
			t.Errorf("%s: own %q, %v", name, m.Own, keys)
		}
	}
}

func TestRemovalErrors(t *testing.T) {
	c, o, _ := smallLlama(t, 2)
	g, err := Build(c.Tensors(), o)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	nets := stored(t, r, resNetTensors("", 4, 3, 1, 5, false))
	net, err := Build(nets.Tensors(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range []struct {
		g        *Graph
		c        *loader.Checkpoint
		o        Options
		problem  string
		removals []Removal
	}{
		{g, c, o, "nothing of this name", []Removal{{ChannelSite, "layers.7.mlp.up_proj", []int{0}}}},
		{g, c, o, "nothing of this name", []Removal{{BlockSite, "layers.2", nil}}},
		{g, c, o, "nothing of this name", []Removal{{ChannelSite, "embed_tokens", []int{0}}}},
		{g, c, o, "the model's outputs", []Removal{{ChannelSite, "lm_head", []int{0}}}},
		{g, c, o, "residual stream", []Removal{{ChannelSite, "layers.0.mlp.down_proj", []int{0}}}},
		{g, c, o, "residual stream", []Removal{{ChannelSite, "layers.1.self_attn.o_proj", []int{0}}}},
		{g, c, o, "remove heads", []Removal{{ChannelSite, "layers.1.self_attn.k_proj", []int{0}}}},
		{g, c, o, "none of its 6 units", []Removal{{ChannelSite, "layers.0.mlp.up_proj", nil}}},
		{g, c, o, "out of range", []Removal{{ChannelSite, "layers.0.mlp.up_proj", []int{6}}}},
		{g, c, o, "out of order", []Removal{{ChannelSite, "layers.0.mlp.up_proj", []int{1, 1}}}},
		{g, c, o, "each run of 2", []Removal{{QueryHeadSite, "layers.0.self_attn", []int{0, 1, 2}}}},
		{g, c, o, "each run of 2", []Removal{{QueryHeadSite, "layers.0.self_attn", []int{0, 1}}}},
		{g, c, o, "as a whole", []Removal{{BlockSite, "layers.0", []int{0}}}},
		{g, c, o, "twice", []Removal{{ChannelSite, "layers.0.mlp.up_proj", []int{0}}, {ChannelSite, "layers.0.mlp.gate_proj", []int{0}}}},
		{g, c, o, "no block would stay", []Removal{{BlockSite, "layers.0", nil}, {BlockSite, "layers.1", nil}}},
		{net, nets, Options{}, "no block of layer1", []Removal{{BlockSite, "layer1.0", nil}}},
		{net, nets, Options{}, "shortcut has operations", []Removal{{BlockSite, "layer2.0", nil}}},
		{net, nets, Options{}, "residual stream", []Removal{{ChannelSite, "layer1.0.conv2", []int{0}}}},
		{net, nets, Options{}, "residual stream", []Removal{{ChannelSite, "conv1", []int{0}}}},
		{net, nets, Options{}, "the model's outputs", []Removal{{ChannelSite, "linear", []int{0}}}},
		{net, nets, Options{}, "nothing of this name", []Removal{{KVGroupSite, "layer1.0", []int{0}}}},
	} {
		_, err := Remove(one.g, one.c.Tensors(), one.o, one.removals)
		bad, ok := errors.AsType[*RemovalError](err)
		if !ok || !strings.Contains(bad.Error(), one.problem) {
			t.Errorf("%+v: %v, want %q", one.removals, err, one.problem)
		}
	}

	// Heads that each have keys of their own are kv_groups.
	c, config, _, _ := tiny(t, "gpt2")
	if _, err := buildTiny(t, c, config).Site(QueryHeadSite, "h.0.attn"); err == nil || !strings.Contains(err.Error(), "kv_group") {
		t.Errorf("query heads of GPT-2: %v", err)
	}
}

// A tensor that two operations read is never cut.
func TestSharedTensorsAreNotCut(t *testing.T) {
	b := newGraphBuilder("test", []int{4})
	x := b.add(Op{Kind: Linear, Name: "a", Inputs: []int{0}, Weight: "a.weight", Bias: "shared", Outputs: 4})
	x = b.add(Op{Kind: ReLU, Name: "relu", Inputs: []int{x}})
	x = b.add(Op{Kind: Linear, Name: "b", Inputs: []int{x}, Weight: "b.weight", Bias: "shared", Outputs: 4})
	g, err := b.finish(x)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Site(ChannelSite, "a"); err == nil || !strings.Contains(err.Error(), "shared with another") {
		t.Errorf("%v", err)
	}
	if s := g.Sites(); len(s) != 0 {
		t.Errorf("sites %v", s)
	}
}

func TestOwnConfigErrors(t *testing.T) {
	c, o, x := smallLlama(t, 2)
	m := checkRemoval(t, "own", c, o, x, []Removal{{MLPSite, "layers.1.mlp", nil}})
	view, err := c.View(m.Parts)
	if err != nil {
		t.Fatal(err)
	}
	good := `[{"heads":4,"kv_heads":2,"channels":6},{"heads":4,"kv_heads":2,"channels":0}]`
	for what, replace := range map[string][2]string{
		"model_type":  {`"fettle-llama"`, `"llama"`},
		"too few":     {good, `[{"heads":4,"kv_heads":2,"channels":6}]`},
		"no blocks":   {good, `null`},
		"heads":       {good, `[{"heads":4,"kv_heads":3,"channels":6},{"heads":4,"kv_heads":2}]`},
		"no keys":     {good, `[{"heads":4,"kv_heads":0,"channels":6},{"heads":4,"kv_heads":2}]`},
		"negative":    {good, `[{"heads":4,"kv_heads":2,"channels":-6},{"heads":4,"kv_heads":2}]`},
		"another":     {good, `[{"heads":4,"kv_heads":2,"channels":5},{"heads":4,"kv_heads":2}]`},
		"there is it": {good, `[{"heads":4,"kv_heads":2,"channels":6},{"heads":0,"kv_heads":0}]`},
	} {
		var compact bytes.Buffer
		if err := json.Compact(&compact, m.Config); err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(compact.String(), replace[0], replace[1], 1)
		if text == compact.String() {
			t.Fatalf("%s: nothing is replaced in %s", what, text)
		}
		_, err := Build(view.Tensors(), Options{Config: []byte(text)})
		var badConfig *ConfigError
		var badTensor *TensorError
		if !errors.As(err, &badConfig) && !errors.As(err, &badTensor) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
