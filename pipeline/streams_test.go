package pipeline

import (
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/layer"
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
