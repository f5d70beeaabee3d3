package pipeline

import (
	"context"
	"slices"
	"testing"

	"github.com/fettle-dev/fettle/model"
)

// TestActivationsAfterLayers: which layers' outputs go into an activation alone;
// none of those that residual sums, products, pools and outputs take.
func TestActivationsAfterLayers(t *testing.T) {
	for path, want := range map[string][]string{
		"lm": nil,
		"resnet8.th, input: {shape: [1, 16, 16]}":                                  {"conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"},
		"mlp.th, architecture: mlp, activation: tanh, input: {shape: [1, 16, 16]}": {"fc1", "fc2"},
	} {
		recipe, err := ParseRecipe([]byte("version: 1\nmodel: {path: ../testmodels/"+path+"}\nrules: [{match: \"*\"}]\n"), "")
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
			norm, activation := activationAfter(graph, i)
			if activation == nil {
				continue
			}
			got = append(got, graph.Ops[i].Name)
			if (norm != nil) != (activation.Kind == model.ReLU) {
				t.Errorf("%s: %s after normalization %v", graph.Ops[i].Name, activation.Kind, norm)
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

// TestAfterIsTheModels: f(scale·y + shift) of a layer's outputs without bias is
// the value that the model computes.
func TestAfterIsTheModels(t *testing.T) {
	for _, text := range []string{"resnet8.th, input: {shape: [1, 16, 16]}", "mlp.th, architecture: mlp, activation: relu, input: {shape: [1, 16, 16]}"} {
		recipe, err := ParseRecipe([]byte("version: 1\nmodel: {path: ../testmodels/"+text+"}\nrules: [{match: \"*\"}]\n"), "")
		if err != nil {
			t.Fatal(err)
		}
		opened, err := openModel(context.Background(), recipe)
		if err != nil {
			t.Fatal(err)
		}
		ckpt, graph := opened.ckpt, opened.graph
		defer ckpt.Close()
		c := &compression{run: &run{graph: graph, weights: &weights{ckpt: ckpt}}}
		values := make([]*model.Tensor, len(graph.Values))
		values[graph.Input] = &model.Tensor{Shape: []int{2, 1, 16, 16}, Data: make([]float32, 512)}
		for i := range values[graph.Input].Data {
			values[graph.Input].Data[i] = float32(i*i%97)/40 - 1
		}
		exec := model.NewExecutor(graph, nil, c.weights.original)
		for i := range graph.Ops {
			var in []*model.Tensor
			for _, v := range graph.Ops[i].Inputs {
				in = append(in, values[v])
			}
			if values[graph.Ops[i].Output], err = exec.Step(context.Background(), i, in); err != nil {
				t.Fatal(err)
			}
		}
		checked := 0
		for i := range graph.Ops {
			op := &graph.Ops[i]
			if !op.IsLayer() {
				continue
			}
			a, err := c.after(i)
			if err != nil {
				t.Fatal(err)
			}
			if a == nil {
				continue
			}
			checked++
			_, activation := activationAfter(graph, i)
			y, want := values[op.Output], values[activation.Output]
			var bias []float32
			if op.Bias != "" {
				if bias, err = c.weights.original(op.Bias); err != nil {
					t.Fatal(err)
				}
			}
			area := len(y.Data) / y.Shape[0] / op.Outputs
			for k, v := range y.Data {
				o := k / area % op.Outputs
				if bias != nil {
					v -= bias[o]
				}
				z := v
				if a.Scale != nil {
					z *= a.Scale[o]
				}
				if got := max(z+a.Shift[o], 0); got-want.Data[k] > 1e-4 || want.Data[k]-got > 1e-4 {
					t.Fatalf("%s, output %d: %v, the model has %v", op.Name, k, got, want.Data[k])
				}
			}
		}
		if checked < 2 {
			t.Errorf("%s: %d layers before an activation", text, checked)
		}
	}
}
