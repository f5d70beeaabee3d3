package pipeline

import (
	"context"
	"slices"
	"testing"
)

// TestResidualSums: which layers write into a residual sum, and what the other
// term is.
func TestResidualSums(t *testing.T) {
	for path, want := range map[string][]string{
		"lm":         {"layers.0.self_attn.o_proj", "layers.0.mlp.down_proj", "layers.1.self_attn.o_proj", "layers.1.mlp.down_proj", "layers.2.self_attn.o_proj", "layers.2.mlp.down_proj"},
		"resnet8.th": {"layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2"},
	} {
		input := ""
		if path != "lm" {
			input = ", input: {shape: [1, 16, 16]}"
		}
		recipe, err := ParseRecipe([]byte("version: 1\nmodel: {path: ../testmodels/"+path+input+"}\nrules: [{match: \"*\"}]\n"), "")
		if err != nil {
			t.Fatal(err)
		}
		opened, err := openModel(context.Background(), recipe)
		if err != nil {
			t.Fatal(err)
		}
		ckpt, graph := opened.ckpt, opened.graph
		var got []string
		for i := range graph.Ops {
			if !graph.Ops[i].IsLayer() {
				continue
			}
			if other, norm, ok := residualSum(graph, i); ok {
				got = append(got, graph.Ops[i].Name)
				if (norm != nil) != (path == "resnet8.th") {
					t.Errorf("%s: normalization %v", graph.Ops[i].Name, norm)
				}
				if dependsOn(graph, other, i) {
					t.Errorf("%s: the other term depends on it", graph.Ops[i].Name)
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
		if err := ckpt.Close(); err != nil {
			t.Error(err)
		}
	}
}
