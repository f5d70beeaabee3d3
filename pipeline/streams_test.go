package pipeline

import (
	"context"
	"slices"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
)

// TestMergedWeights: the compressed stream computes with a merged weight as the file
// has it, rounded to its type.
func TestMergedWeights(t *testing.T) {
	s := &layer.Solution{
		Layer: "w", Method: "magnitude", Rows: 1, Cols: 2, ValueType: dtype.BF16, Values: []float32{1, 0},
		LowRank: &layer.LowRank{
			B: layer.Factor{Rows: 1, Cols: 1, Type: dtype.F32, Values: []float32{0x1p-12}},
			A: layer.Factor{Rows: 1, Cols: 2, Type: dtype.F32, Values: []float32{1, 1 + 0x1p-12}},
		},
	}
	keep := &store{dir: t.TempDir()}
	if err := save(keep, "0123", s, layer.EncodeSolution); err != nil {
		t.Fatal(err)
	}
	plan := &Plan{Layers: []PlanLayer{{Weight: "w", Compensate: &LayerTerm{Merge: true}}}}
	plan.Layers[0].Spec.ValueType = dtype.BF16
	w := newWeights(nil, keep, plan)
	w.keys["w"] = "0123"
	got, err := w.compressed("w")
	if err != nil || got[0] != 1 || got[1] != 0x1p-12 {
		t.Errorf("%v, %v; the file has 1 and 2⁻¹²", got, err)
	}
}

// A stream that passes over a block computes what the model without it does.
func TestStreamPassesOverABlock(t *testing.T) {
	ctx := t.Context()
	const folder = "../model/testdata/bert-masked"
	ckpt, err := loader.Open(ctx, folder)
	if err != nil {
		t.Fatal(err)
	}
	defer ckpt.Close()
	o := model.Options{Config: sourceConfig(folder)}
	g, err := model.Build(ckpt.Tensors(), o)
	if err != nil {
		t.Fatal(err)
	}
	input := model.NewTokens([]uint32{3, 1, 4, 1, 5}, []uint32{9, 2, 6})
	for _, name := range []string{"encoder.layer.0", "encoder.layer.1"} {
		site, err := g.Site(model.BlockSite, name)
		if err != nil {
			t.Fatal(err)
		}
		in, out, ok := g.Through(site.Ops)
		if !ok {
			t.Fatal("a block that is not from one value to one other")
		}
		s := newStream(g, nil, model.Stored(ckpt), input)
		held := map[*model.Tensor]int{input: 1}
		s.hold, s.drop = func(x *model.Tensor) { held[x]++ }, func(x *model.Tensor) { held[x]-- }
		s.pass(map[int]int{site.Ops[len(site.Ops)-1]: in})
		for i := range g.Ops {
			if err := s.step(ctx, i); err != nil {
				t.Fatal(err)
			}
			if i == site.Ops[len(site.Ops)-1] && s.values[out] == nil {
				t.Fatalf("%s: what it read was dropped", name)
			}
		}
		small, err := model.Remove(g, ckpt.Tensors(), o, []model.Removal{{Kind: model.BlockSite, Site: name}})
		if err != nil {
			t.Fatal(err)
		}
		view, err := ckpt.View(small.Parts)
		if err != nil {
			t.Fatal(err)
		}
		y, err := model.NewExecutor(small.Graph, nil, model.Stored(view)).Forward(ctx, input)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(y.Data, s.values[g.Output].Data) {
			t.Errorf("%s: the stream computes other numbers than the model without the block", name)
		}
		for x, n := range held {
			if want := map[bool]int{true: 1}[x == s.values[g.Output]]; n != want {
				t.Errorf("%s: a value of %v is held %d times at the end, want %d", name, x.Shape, n, want)
			}
		}
	}
}

// TestStreamsOfMixtures: experts' rows are of the same tokens in both streams, though
// the compressed one would route otherwise, and nothing is held that no operation has
// yet to read.
func TestStreamsOfMixtures(t *testing.T) {
	ctx := context.Background()
	for _, name := range []string{"mixtral", "mixtral-top1", "qwen2-moe"} {
		folder := "../model/testdata/" + name
		ckpt, err := loader.Open(ctx, folder)
		if err != nil {
			t.Fatal(err)
		}
		g, err := model.Build(ckpt.Tensors(), model.Options{Config: sourceConfig(folder)})
		if err != nil {
			t.Fatal(err)
		}
		w := newWeights(ckpt, nil, &Plan{})
		changed := make([]bool, len(g.Ops))
		first := slices.IndexFunc(g.Ops, func(o model.Op) bool { return o.Name == "layers.0.self_attn.v_proj" })
		changed[first] = true // of the first attention: all routers see something else
		values, err := w.original(g.Ops[first].Weight)
		if err != nil {
			t.Fatal(err)
		}
		for i := range values {
			values[i] *= -1
		}
		w.replaced[g.Ops[first].Weight] = values
		input := model.NewTokens([]uint32{1, 2, 3, 4, 5, 6, 7, 8}, []uint32{9, 10}, []uint32{30, 31, 32, 33})
		s := newStreams(g, pool.New(2), w, input, nil, func(Stage) {})
		routers, most := 0, 0
		for i := range g.Ops {
			op := &g.Ops[i]
			if err := s.catchUp(ctx, i+1, changed); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			x, xt := s.original.values[op.Output], s.compressed.values[op.Output]
			switch {
			case op.Kind == model.Route:
				routers++
				if x == nil || x != xt {
					t.Errorf("%s: %s differs between the streams", name, op.Name)
				}
			case op.Kind == model.Dispatch && (!slices.Equal(x.Lengths, xt.Lengths) || x.Shape[0] > 0 && slices.Equal(x.Data, xt.Data)):
				t.Errorf("%s: %s: sequences of %v and %v", name, op.Name, x.Lengths, xt.Lengths)
			}
			inner := 0 // values of one expert's own, but for its result
			for v := range g.Values {
				if g.Experts()[max(slices.IndexFunc(g.Ops, func(o model.Op) bool { return o.Output == v }), 0)] >= 0 && s.original.values[v] != nil &&
					!slices.ContainsFunc(g.Readers(v), func(r int) bool { return g.Ops[r].Kind == model.Combine }) {
					inner++
				}
			}
			most = max(most, inner)
		}
		if routers == 0 || most > 3 {
			t.Errorf("%s: %d values within experts are held at once", name, most)
		}
		if len(s.held) != 2 || s.held[s.original.values[g.Output]] != 1 || s.held[s.compressed.values[g.Output]] != 1 {
			t.Errorf("%s: %d values are held at the end", name, len(s.held))
		}
		for i := range g.Ops {
			if !s.compressed.ran[i] || !s.original.ran[i] {
				t.Errorf("%s: %s has not run", name, g.Ops[i].Name)
			}
		}
		_ = ckpt.Close()
	}
}
