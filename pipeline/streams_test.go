package pipeline

import (
	"slices"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
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
