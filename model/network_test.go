package model

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/loader"
)

// describe turns a graph that a builder made into a description of it.
func describe(t *testing.T, g *Graph) []Node {
	t.Helper()
	kinds := map[OpKind]string{}
	for name, kind := range nodeOps {
		kinds[kind] = name
	}
	var nodes []Node
	for _, o := range g.Ops {
		n := Node{Op: kinds[o.Kind], Name: o.Name}
		for _, v := range o.Inputs {
			n.From = append(n.From, g.Values[v].Name)
		}
		switch o.Kind {
		case Conv2D:
			n.Op, n.Stride, n.Pad = nodeConv, o.Conv.StrideH, o.Conv.PadH
		case Linear:
			n.Op = nodeLinear
		case BatchNorm2D:
			n.Op, n.Layer = nodeBatchNorm, strings.TrimSuffix(o.BatchNorm.Scale, ".weight")
		}
		if o.Weight != "" {
			n.Layer = strings.TrimSuffix(o.Weight, ".weight")
		}
		if n.Op == "" {
			t.Fatalf("%s has no node", o.Kind)
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// TestNetworkIsTheBuilders describes a residual network that a builder knows: both
// graphs are the same.
func TestNetworkIsTheBuilders(t *testing.T) {
	var tensors []loader.Tensor
	add := func(name string, shape ...int) {
		tensors = append(tensors, loader.Tensor{Name: name, DType: dtype.F32, Shape: shape})
	}
	norm := func(name string, n int) {
		for _, part := range []string{"weight", "bias", "running_mean", "running_var"} {
			add(name+"."+part, n)
		}
	}
	add("conv1.weight", 4, 3, 3, 3)
	norm("bn1", 4)
	for stage, width := 1, 4; stage <= 3; stage, width = stage+1, 2*width {
		name, from := fmt.Sprintf("layer%d.0.", stage), width/2
		if stage == 1 {
			from = width
		}
		add(name+"conv1.weight", width, from, 3, 3)
		norm(name+"bn1", width)
		add(name+"conv2.weight", width, width, 3, 3)
		norm(name+"bn2", width)
		if stage > 1 {
			add(name+"shortcut.0.weight", width, from, 1, 1)
			norm(name+"shortcut.1", width)
		}
	}
	add("linear.weight", 10, 16)
	add("linear.bias", 10)
	want, err := Build(tensors, Options{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Build(tensors, Options{Network: describe(t, want), InputShape: []int{3, 32, 32}})
	if err != nil {
		t.Fatal(err)
	}
	got.Architecture, got.Normalize = want.Architecture, want.Normalize
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestNetworkComputes(t *testing.T) {
	tensors := []loader.Tensor{
		{Name: "a.weight", DType: dtype.F32, Shape: []int{2, 2}},
		{Name: "a.bias", DType: dtype.F32, Shape: []int{2}},
		{Name: "n.weight", DType: dtype.F32, Shape: []int{2}},
	}
	half := float32(.5)
	g, err := Build(tensors, Options{Network: []Node{
		{Op: "linear", Layer: "a"}, {Op: "leaky_relu", Slope: &half, Name: "act"},
		{Op: "add", From: []string{"act", "input"}}, {Op: "layernorm", Layer: "n"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	weights := map[string][]float32{"a.weight": {1, 0, 0, -2}, "a.bias": {1, 0}, "n.weight": {1, 3}}
	e := NewExecutor(g, nil, func(name string) ([]float32, error) { return weights[name], nil })
	y, err := e.Forward(context.Background(), &Tensor{Shape: []int{1, 2}, Data: []float32{3, 4}})
	if err != nil {
		t.Fatal(err)
	}
	// (4, −8) → (4, −4) → (7, 0) → ±1 by the layer norm.
	if diff := cmp.Diff([]float32{1, -3}, y.Data, cmp.Comparer(func(a, b float32) bool { return a-b < 1e-5 && b-a < 1e-5 })); diff != "" {
		t.Error(diff)
	}
}

func TestNetworkErrors(t *testing.T) {
	tensors := []loader.Tensor{
		{Name: "a.weight", DType: dtype.F32, Shape: []int{2, 3}},
		{Name: "b.weight", DType: dtype.F32, Shape: []int{5, 4}},
	}
	linear := func(name string) Node { return Node{Op: "linear", Layer: name} }
	for want, nodes := range map[string][]Node{
		"node 2, linear b: tensor b.weight has shape [5 4], want [any 2]":        {linear("a"), linear("b")},
		"node 2, linear c: tensor c.weight is missing; layers that are left: b":  {linear("a"), linear("c")},
		"there is a value \"a\" already":                                         {linear("a"), {Op: "relu", Name: "a"}},
		"reads \"x\", but no node before it has that name (there are: a, input)": {linear("a"), {Op: "relu", From: []string{"x"}}},
		"is no operation (known: linear, conv, batchnorm, layernorm, add":        {linear("a"), {Op: "swish"}},
		"reads values of shape [[2] [3]]: add of shapes [2] and [3]":             {linear("a"), {Op: "add", From: []string{"a", "input"}}},
		"has no stride, pad, dilation or groups":                                 {{Op: "linear", Layer: "a", Stride: 2}},
		"tensor b.weight: has no place in this architecture":                     {linear("a")},
		"it does not follow from the first layer":                                {{Op: "relu"}, linear("a")},
	} {
		_, err := Build(tensors, Options{Network: nodes})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	_, err := Build(tensors, Options{Network: []Node{linear("a"), linear("c")}})
	if bad, ok := errors.AsType[*NetworkError](err); !ok || bad.Node != 1 {
		t.Errorf("error %v names no node", err)
	}
}
