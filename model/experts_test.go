package model

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/loader"
)

// tinyMixtures are the folders that testdata/make_moe.py writes.
var tinyMixtures = []string{"mixtral", "mixtral-top1", "qwen2-moe", "qwen2-moe-sparse"}

// mixtures counts the blocks with experts.
func mixtures(g *Graph) (n int) {
	for i := range g.Ops {
		if g.Ops[i].Kind == Combine {
			n++
		}
	}
	return n
}

// mixtureGraph routes rows of width numbers by logits that the first experts of
// these are, to experts that multiply by e + 1. With base, their sum has the rows
// themselves too.
func mixtureGraph(width, experts int, r Routing, base bool) *Graph {
	b := newGraphBuilder("test", []int{width})
	logits := b.add(Op{Kind: Linear, Name: "router", Inputs: []int{0}, Weight: "router", Outputs: experts})
	weights := b.add(Op{Kind: Route, Name: "route", Inputs: []int{logits}, Routing: &r})
	in := []int{weights}
	for e := range experts {
		x := b.add(Op{Kind: Dispatch, Name: fmt.Sprint("expert", e), Inputs: []int{0, weights}, Expert: e})
		in = append(in, b.add(Op{Kind: Linear, Name: fmt.Sprint("linear", e), Inputs: []int{x}, Weight: fmt.Sprint("w", e), Outputs: width}))
	}
	if base {
		in = append(in, 0)
	}
	out := b.add(Op{Kind: Combine, Name: "combine", Inputs: in})
	g, _ := b.finish(out)
	return g
}

// mixtureWeights are those of mixtureGraph. missing holds experts whose weights
// must not be asked for.
func mixtureWeights(width, experts int, missing ...int) Weights {
	return func(name string) ([]float32, error) {
		if name == "router" {
			w := make([]float32, experts*width)
			for e := range experts {
				w[e*width+e] = 1
			}
			return w, nil
		}
		var e int
		if _, err := fmt.Sscanf(name, "w%d", &e); err != nil {
			return nil, err
		}
		if slices.Contains(missing, e) {
			return nil, fmt.Errorf("asked for %s, whose expert has no token", name)
		}
		w := make([]float32, width*width)
		for i := range width {
			w[i*width+i] = float32(e + 1)
		}
		return w, nil
	}
}

func TestMixtureWorked(t *testing.T) {
	inf := float32(math.Inf(-1))
	for _, s := range []struct {
		name   string
		r      Routing
		base   bool
		logits []float32 // the row itself
		want   float64   // by what it is multiplied
	}{
		{"top 1 as it is", Routing{TopK: 1}, false, []float32{0, 1, 0}, 2 * math.E / (math.E + 2)},
		{"top 1 of sum 1", Routing{TopK: 1, Normalize: true}, false, []float32{0, 1, 0}, 2},
		{"top 2 of sum 1", Routing{TopK: 2, Normalize: true}, false, []float32{1, 0, 3}, (1*math.E + 3*math.Exp(3)) / (math.E + math.Exp(3))},
		{"all", Routing{TopK: 3}, false, []float32{1, 1, 1}, 2},
		{"two tie, the first counts", Routing{TopK: 1, Normalize: true}, false, []float32{0, 5, 5}, 2},
		{"three tie, the first two count", Routing{TopK: 2, Normalize: true}, false, []float32{4, 4, 4}, 1.5},
		{"two tie for the second place", Routing{TopK: 2, Normalize: true}, false, []float32{7, 7 + 1, 7}, (1 + 2*math.E) / (1 + math.E)},
		{"large logits", Routing{TopK: 2}, false, []float32{1000, -1000, 1000}, 2},
		{"with a base", Routing{TopK: 1, Normalize: true}, true, []float32{0, 0, 2}, 4},
		{"excluded by −∞", Routing{TopK: 2, Normalize: true}, false, []float32{inf, 2, inf}, 2},
	} {
		g := mixtureGraph(3, 3, s.r, s.base)
		x := &Tensor{Shape: []int{1, 3}, Data: s.logits}
		if s.name == "excluded by −∞" { // 0·∞ would be NaN in the linear router: route alone
			w := &Tensor{Shape: []int{1, 3}, Data: s.logits}
			y, err := NewExecutor(g, nil, nil).Step(context.Background(), 1, []*Tensor{w})
			if err != nil || !slices.Equal(y.Data, []float32{0, 1, 0}) {
				t.Errorf("%s: %v, %v", s.name, y, err)
			}
			continue
		}
		y := forward(t, NewExecutor(g, nil, mixtureWeights(3, 3)), x)
		for i, v := range y.Data {
			if want := s.want * float64(s.logits[i]); math.Abs(float64(v)-want) > 1e-6*(1+math.Abs(want)) {
				t.Errorf("%s: number %d is %v, want %v", s.name, i, v, want)
			}
		}
	}
}

// Experts see their own tokens alone, with the sequences' lengths; one that sees
// none is not even read.
func TestDispatch(t *testing.T) {
	g := mixtureGraph(4, 4, Routing{TopK: 2, Normalize: true}, false)
	rows := [][]float32{{9, 8, 0, 0}, {9, 0, 0, 8}, {0, 9, 0, 8}, {9, 8, 0, 0}, {0, 8, 0, 9}}
	x := &Tensor{Shape: []int{5, 4}, Data: slices.Concat(rows...), Lengths: []int{2, 0, 3}}
	ctx := context.Background()
	e := NewExecutor(g, pool.New(2), mixtureWeights(4, 4, 2))
	forward(t, e, x)
	logits, err := e.Step(ctx, 0, []*Tensor{x})
	if err != nil {
		t.Fatal(err)
	}
	weights, err := e.Step(ctx, 1, []*Tensor{logits})
	if err != nil {
		t.Fatal(err)
	}
	var parts []*Tensor
	for expert, want := range []struct{ rows, lengths []int }{
		{[]int{0, 1, 3}, []int{2, 0, 1}}, {[]int{0, 2, 3, 4}, []int{1, 0, 3}}, {nil, []int{0, 0, 0}}, {[]int{1, 2, 4}, []int{1, 0, 2}},
	} {
		y, err := e.Step(ctx, 2+2*expert, []*Tensor{x, weights})
		if err != nil {
			t.Fatal(err)
		}
		var data []float32
		for _, r := range want.rows {
			data = append(data, rows[r]...)
		}
		if !slices.Equal(y.Data, data) || !slices.Equal(y.Lengths, want.lengths) || y.Shape[0] != len(want.rows) {
			t.Errorf("expert %d gets %v of sequences of %v", expert, y.Data, y.Lengths)
		}
		if y, err = e.Step(ctx, 3+2*expert, []*Tensor{y}); err != nil {
			t.Fatal(err)
		}
		parts = append(parts, y)
	}
	combine := len(g.Ops) - 1
	if _, err := e.Step(ctx, combine, append([]*Tensor{weights}, parts...)); err != nil {
		t.Error(err)
	}
	parts[0], parts[1] = parts[1], parts[0]
	if _, err := e.Step(ctx, combine, append([]*Tensor{weights}, parts...)); err == nil {
		t.Error("the tokens of another expert: no error")
	}
}

// A mixture is what each token's experts give it, whatever the shapes.
func TestMixtureProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 60 {
		experts := 1 + r.IntN(6)
		width, n := experts+r.IntN(3), r.IntN(40)
		routing := Routing{TopK: 1 + r.IntN(experts), Normalize: r.IntN(2) == 0}
		base := r.IntN(2) == 0
		g := mixtureGraph(width, experts, routing, base)
		if err := g.Check(); err != nil {
			t.Fatal(err)
		}
		x := &Tensor{Shape: []int{n, width}, Data: make([]float32, n*width), Lengths: []int{n / 3, n - n/3}}
		for i := range x.Data {
			x.Data[i] = float32(r.IntN(5)) // many ties
		}
		y := forward(t, NewExecutor(g, pool.New(1+r.IntN(3)), mixtureWeights(width, experts)), x)
		for row := range n {
			logits := x.Data[row*width:][:experts]
			order := make([]int, experts)
			all := 0.0
			for e, v := range logits {
				order[e] = e
				all += math.Exp(float64(v))
			}
			slices.SortStableFunc(order, func(a, b int) int { return int(logits[b] - logits[a]) })
			sum, factor := 0.0, 0.0
			for _, e := range order[:routing.TopK] {
				sum += math.Exp(float64(logits[e]))
				factor += math.Exp(float64(logits[e])) * float64(e+1)
			}
			if !routing.Normalize {
				sum = all
			}
			factor /= sum
			if base {
				factor++
			}
			for i := range width {
				got, want := float64(y.Data[row*width+i]), factor*float64(x.Data[row*width+i])
				if math.Abs(got-want) > 1e-5*(1+math.Abs(want)) {
					t.Fatalf("%d experts, %+v: row %d is %v times the input, want %v", experts, routing, row, got/float64(x.Data[row*width+i]), factor)
				}
			}
		}
	}
}

func TestMixtureGraphsChecked(t *testing.T) {
	for name, spoil := range map[string]func(g *Graph){
		"top 0":                    func(g *Graph) { g.Ops[1].Routing.TopK = 0 },
		"top 4 of 3":               func(g *Graph) { g.Ops[1].Routing.TopK = 4 },
		"no routing":               func(g *Graph) { g.Ops[1].Routing = nil },
		"expert 3 of 3":            func(g *Graph) { g.Ops[2].Expert = 3 },
		"experts in another order": func(g *Graph) { g.Ops[2].Expert, g.Ops[4].Expert = 1, 0 },
		"all rows for an expert":   func(g *Graph) { g.Ops[8].Inputs[1] = 0 },
		"an expert for all rows":   func(g *Graph) { g.Ops[8].Inputs[4] = g.Ops[3].Output },
		"one expert too few":       func(g *Graph) { g.Ops[8].Inputs = g.Ops[8].Inputs[:3] },
		"experts mixed": func(g *Graph) {
			g.Ops[5].Kind, g.Ops[5].Inputs, g.Ops[5].Weight, g.Ops[5].Outputs = Add, []int{3, 5}, "", 0
		},
		"an expert's output": func(g *Graph) { g.Output = g.Ops[3].Output },
	} {
		g := mixtureGraph(3, 3, Routing{TopK: 2}, true)
		if err := g.Check(); err != nil {
			t.Fatal(err)
		}
		spoil(g)
		if err := g.Check(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// What experts give takes TopK rows a token at most, whoever gets them.
func TestMixtureNumbers(t *testing.T) {
	g := mixtureGraph(5, 4, Routing{TopK: 2}, true)
	var got []int
	numbers := g.RowNumbers()
	for e := range 4 {
		got = append(got, numbers[g.Ops[3+2*e].Output])
	}
	if !slices.Equal(got, []int{5, 5, 0, 0}) || numbers[g.Ops[8].Output] != 5 || numbers[g.Ops[0].Output] != 4 {
		t.Errorf("experts' outputs count as %v", got)
	}
	if by := g.Experts(); !slices.Equal(by, []int{-1, -1, -1, 2, -1, 4, -1, 6, -1, 8, -1}[:len(by)]) {
		t.Errorf("operations are of %v", by)
	}
}

// Routers and shared experts' gates are gates; nothing else is.
func TestGates(t *testing.T) {
	for _, name := range tinyMixtures {
		c, config, _, _ := tiny(t, name)
		g := buildTiny(t, c, config)
		gates := 0
		for i := range g.Ops {
			named := strings.HasSuffix(g.Ops[i].Name, "moe.gate") || strings.HasSuffix(g.Ops[i].Name, "mlp.gate") || strings.HasSuffix(g.Ops[i].Name, "shared_expert_gate")
			if g.Gates(i) != named {
				t.Errorf("%s: gate %v: %s", name, g.Gates(i), g.Ops[i].Name)
			}
			if named {
				gates++
			}
		}
		if gates == 0 {
			t.Errorf("%s: no gate", name)
		}
		for _, s := range g.Segments() {
			weights := map[string]bool{}
			for _, o := range g.Ops[s.From:s.To] {
				if stem, rest, ok := strings.Cut(o.Weight, ".experts."); ok {
					weights[stem+rest[:1]] = true
				}
			}
			if len(weights) > 1 {
				t.Errorf("%s: a segment reads %v", name, weights)
			}
		}
	}
}

func TestMixtureConfigs(t *testing.T) {
	c, config, _, _ := tiny(t, "qwen2-moe")
	mixtral, mixtralConfig, _, _ := tiny(t, "mixtral")
	for _, s := range []struct {
		c        *loader.Checkpoint
		config   []byte
		from, to string
		want     string
	}{
		{c, config, `"num_experts_per_tok": 3`, `"num_experts_per_tok": 6`, "config.json: num_experts_per_tok: 6 experts a token of 5 (num_experts)"},
		{c, config, `"num_experts": 5`, `"num_experts": 4`, "tensor model.layers.0.mlp.gate.weight: has shape [5 16], want [4 16]"},
		{c, config, `"mlp_only_layers": []`, `"mlp_only_layers": [2]`, "mlp_only_layers: there is no block 2 of 2"},
		{c, config, `"mlp_only_layers": []`, `"mlp_only_layers": [1]`, "tensor model.layers.1.mlp.gate_proj.weight: is missing"},
		{c, config, `"decoder_sparse_step": 1`, `"decoder_sparse_step": 0`, "decoder_sparse_step: cannot be 0"},
		{c, config, `"moe_intermediate_size": 8`, `"moe_intermediate_size": 9`, "tensor model.layers.0.mlp.experts.0.gate_proj.weight: has shape [8 16], want [9 16]"},
		{c, config, `"shared_expert_intermediate_size": 12`, `"shared_expert_intermediate_size": 8`, "tensor model.layers.0.mlp.shared_expert.gate_proj.weight: has shape [12 16], want [8 16]"},
		{c, config, `"qwen2_moe"`, `"qwen2"`, "architectures: Qwen2MoeForCausalLM is not supported"},
		{mixtral, mixtralConfig, `"num_local_experts": 4`, `"num_local_experts": 0`, "num_local_experts: cannot be 0"},
		{mixtral, mixtralConfig, `"num_local_experts": 4`, `"n_group": 4, "num_local_experts": 4`, "n_group: is unknown for mixtral"},
		{mixtral, mixtralConfig, `"num_local_experts": 4`, `"num_local_experts": 3`, "has shape [4 16], want [3 16]"},
	} {
		changed := strings.Replace(string(s.config), s.from, s.to, 1)
		if changed == string(s.config) {
			t.Fatalf("no %s in the config", s.from)
		}
		_, err := Build(s.c.Tensors(), Options{Config: []byte(changed)})
		if err == nil || !strings.Contains(err.Error(), s.want) {
			t.Errorf("%s: %v, want %s", s.to, err, s.want)
		}
	}
	var tensors []loader.Tensor
	for _, one := range mixtral.Tensors() {
		if !strings.Contains(one.Name, "experts.3.w2") {
			tensors = append(tensors, one)
		}
	}
	_, err := Build(tensors, Options{Config: mixtralConfig})
	if bad, ok := errors.AsType[*TensorError](err); !ok || bad.Tensor != "model.layers.0.block_sparse_moe.experts.3.w2.weight" {
		t.Errorf("an expert without a layer: %v", err)
	}
	// Without rope_theta, Mixtral's own default.
	changed := strings.Replace(string(mixtralConfig), ` "rope_theta": 1000.0,`, "", 1)
	g, err := Build(mixtral.Tensors(), Options{Config: []byte(changed)})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range g.Ops {
		if o.Attention != nil && o.Attention.Rope.Theta != 1e6 {
			t.Errorf("theta %v", o.Attention.Rope.Theta)
		}
	}
}

// Channels of experts cannot go, and neither can a router's.
func TestMixtureRemoval(t *testing.T) {
	c, config, _, _ := tiny(t, "qwen2-moe-sparse")
	g := buildTiny(t, c, config)
	for _, name := range []string{"layers.3.mlp.experts.1.up_proj", "layers.3.mlp.shared_expert.gate_proj", "layers.3.mlp.gate"} {
		if _, err := g.Site(ChannelSite, name); err == nil {
			t.Errorf("%s: no error", name)
		} else {
			t.Log(err)
		}
	}
	// Blocks keep their numbers, on which their experts depend.
	o := Options{Config: config}
	m, err := Remove(g, c.Tensors(), o, []Removal{{Kind: BlockSite, Site: "layers.0"}})
	if err != nil {
		t.Fatal(err)
	}
	if m.Own == "" || mixtures(m.Graph) != 1 || m.Graph.Ops[len(m.Graph.Ops)-4].Block != 3 {
		t.Errorf("%q, %d mixtures, the last in block %d", m.Own, mixtures(m.Graph), m.Graph.Ops[len(m.Graph.Ops)-4].Block)
	}
}
