package model

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/fettle-dev/fettle/loader"
)

// mlp is a chain of linear layers with one activation between them. Neither
// names nor shapes tell the activation, so it is built only when asked for.
const mlp = "mlp"

const leakySlope = 0.01 // PyTorch's default

var activations = map[string]Op{
	"relu":       {Kind: ReLU},
	"leaky_relu": {Kind: LeakyReLU, Slope: leakySlope},
	"sigmoid":    {Kind: Sigmoid},
	"tanh":       {Kind: Tanh},
}

// helpMLP says how to build tensors that look like a chain of linear layers.
func helpMLP(tensors []loader.Tensor) string {
	if _, err := mlpLayers(tensors); err != nil {
		return ""
	}
	return "these look like a chain of linear layers: set `architecture: mlp` and `activation`, which a checkpoint does not store, to relu, leaky_relu, sigmoid or tanh"
}

func buildMLP(tensors []loader.Tensor, o Options) (*Graph, error) {
	name := o.Activation
	if name == "" {
		name = "relu"
	}
	activation, ok := activations[name]
	if !ok {
		return nil, &OptionError{mlp, "activation", fmt.Sprintf("%q is unknown, want relu, leaky_relu, sigmoid or tanh", name)}
	}
	layers, err := mlpLayers(tensors)
	if err != nil {
		return nil, err
	}
	input := []int{layers[0].inputs}
	if o.InputShape != nil {
		input = o.InputShape
	}
	if size(input) != layers[0].inputs {
		return nil, &OptionError{mlp, "input shape", fmt.Sprintf("%v holds %d numbers, but %s reads %d", input, size(input), layers[0].weight, layers[0].inputs)}
	}
	b := newGraphBuilder(mlp, input)
	x := 0
	if len(input) > 1 {
		x = b.add(Op{Kind: Flatten, Name: "flatten", Inputs: []int{x}})
	}
	for i, l := range layers {
		if i > 0 {
			act := activation
			act.Name, act.Inputs = fmt.Sprintf("%s%d", name, i), []int{x}
			x = b.add(act)
		}
		x = b.add(Op{Kind: Linear, Name: strings.TrimSuffix(l.weight, ".weight"), Inputs: []int{x}, Weight: l.weight, Bias: l.bias, Outputs: l.outputs})
	}
	return b.finish(x)
}

type mlpLayer struct {
	weight, bias    string
	outputs, inputs int
}

// mlpLayers returns the 2-D weights with their biases, and fails when their
// widths are no chain or a tensor is neither.
func mlpLayers(tensors []loader.Tensor) ([]mlpLayer, error) {
	s := newTensorSet(mlp, tensors)
	var layers []mlpLayer
	for _, t := range orderWeights(tensors) {
		shape := s.take(t.Name, -1, -1)
		l := mlpLayer{weight: t.Name, outputs: shape[0], inputs: shape[1]}
		if stem, ok := strings.CutSuffix(t.Name, ".weight"); ok && s.has(stem+".bias") {
			l.bias = stem + ".bias"
			s.take(l.bias, l.outputs)
		}
		layers = append(layers, l)
	}
	if err := s.finish(); err != nil {
		return nil, err
	}
	if len(layers) == 0 {
		return nil, &OptionError{mlp, "architecture", "there is no tensor of two axes, outputs × inputs, to take as a linear layer"}
	}
	for i := 1; i < len(layers); i++ {
		if a, b := layers[i-1], layers[i]; a.outputs != b.inputs {
			s.fail(b.weight, "reads %d inputs, but %s before it has %d outputs (shapes are outputs × inputs)", b.inputs, a.weight, a.outputs)
			return nil, s.err
		}
	}
	return layers, nil
}

var digits = regexp.MustCompile(`\d+`)

// orderWeights returns the tensors of two axes in the order of the chain: by
// their numbers where the names differ in nothing else (writers may have
// sorted the file by name, fc10 before fc2), else as stored.
func orderWeights(tensors []loader.Tensor) []loader.Tensor {
	var weights []loader.Tensor
	place := make(map[string][]int)
	alike := true
	for _, t := range tensors {
		if len(t.Shape) != 2 {
			continue
		}
		weights = append(weights, t)
		alike = alike && withoutDigits(t.Name) == withoutDigits(weights[0].Name)
		for _, d := range digits.FindAllString(t.Name, -1) {
			n, err := strconv.Atoi(d)
			alike = alike && err == nil
			place[t.Name] = append(place[t.Name], n)
		}
	}
	if alike {
		slices.SortStableFunc(weights, func(a, b loader.Tensor) int { return slices.Compare(place[a.Name], place[b.Name]) })
	}
	return weights
}

func withoutDigits(name string) string { return digits.ReplaceAllString(name, "#") }
