package model

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/loader"
)

// network is the architecture of a graph that Options.Network describes.
const network = "network"

// Node is one operation of a network that is described, in order.
type Node struct {
	// Op is linear, conv, batchnorm or layernorm, whose tensors are Layer.weight,
	// Layer.bias and the like, or one of NodeOps, which have none.
	Op    string
	Layer string
	// Name is of the value that the operation writes; "" means Layer, or Op for one
	// without.
	Name string
	// From names the values that it reads: "input", or those of nodes before. nil
	// means that of the node before.
	From []string

	Stride, Pad, Dilation, Groups int      // conv; 0 means the usual 1, 0, 1, 1
	Slope                         *float32 // leaky_relu; nil means 0.01
	Eps                           *float64 // batchnorm, layernorm; nil means 1e-5
}

// The operations of a node that read tensors.
const (
	nodeLinear    = "linear"
	nodeConv      = "conv"
	nodeBatchNorm = "batchnorm"
	nodeLayerNorm = "layernorm"
)

// nodeOps are the operations of nodes without tensors.
var nodeOps = map[string]OpKind{
	"relu": ReLU, "leaky_relu": LeakyReLU, "sigmoid": Sigmoid, "tanh": Tanh, "gelu": GELU, "gelu_tanh": GELUTanh,
	"add": Add, "global_avg_pool": GlobalAvgPool, "flatten": Flatten,
}

// NodeOps returns the operations of nodes that have no tensors, sorted.
func NodeOps() []string {
	var names []string
	for name := range nodeOps {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// NetworkError says that a described network is at fault, or does not fit the
// tensors.
type NetworkError struct {
	Node    int // from 0
	Name    string
	Problem string
}

func (e *NetworkError) Error() string {
	return fmt.Sprintf("model: network: node %d, %s: %s", e.Node+1, e.Name, e.Problem)
}

// described is a network under construction.
type described struct {
	*graphBuilder
	s      *tensorSet
	values map[string]int
}

func buildNetwork(tensors []loader.Tensor, o Options) (*Graph, error) {
	switch {
	case len(o.Network) == 0:
		return nil, &OptionError{network, "network", "there is no description: list its operations under `model: {network: …}`"}
	case o.Activation != "":
		return nil, &OptionError{network, "activation", "the description says it: leave it out"}
	}
	d := described{s: newTensorSet(network, tensors), values: map[string]int{"input": 0}}
	input, err := d.inputShape(o)
	if err != nil {
		return nil, err
	}
	d.graphBuilder = newGraphBuilder(network, input)
	last := 0
	for i, n := range o.Network {
		if last, err = d.node(i, n, last); err != nil {
			return nil, err
		}
	}
	if err := d.s.finish(); err != nil {
		return nil, err
	}
	return d.finish(last)
}

// inputShape is what was asked for, or follows from a linear layer that comes first.
func (d *described) inputShape(o Options) ([]int, error) {
	if o.InputShape != nil {
		if size(o.InputShape) == 0 {
			return nil, &OptionError{network, "input shape", fmt.Sprintf("%v holds nothing", o.InputShape)}
		}
		return o.InputShape, nil
	}
	for _, n := range o.Network {
		if n.Op == "flatten" {
			continue
		}
		if t, ok := d.s.byName[n.Layer+".weight"]; ok && n.Op == nodeLinear && len(t.Shape) == 2 && size(t.Shape) > 0 {
			return t.Shape[1:2], nil
		}
		break
	}
	return nil, &OptionError{network, "input shape", "it does not follow from the first layer: say `input: {shape: [channels, height, width]}`"}
}

// node appends one operation and returns the value that it writes.
func (d *described) node(i int, n Node, last int) (int, error) {
	fail := func(format string, args ...any) (int, error) {
		name := n.Op
		if n.Layer != "" {
			name += " " + n.Layer
		}
		return 0, &NetworkError{i, name, fmt.Sprintf(format, args...)}
	}
	op, err := d.operation(n, last)
	if err != nil {
		return fail("%v", err)
	}
	op.Name = n.Name
	if op.Name == "" {
		op.Name = n.Layer
	}
	if op.Name == "" {
		op.Name = fmt.Sprintf("%s.%d", n.Op, i)
	}
	if _, ok := d.values[op.Name]; ok {
		return fail("there is a value %q already: give this one another name", op.Name)
	}
	if d.s.err != nil {
		return fail("%s", d.missing())
	}
	y := d.add(op)
	if d.err != nil {
		in := make([][]int, len(op.Inputs))
		for j, v := range op.Inputs {
			in[j] = d.g.Values[v].Shape
		}
		_, err := op.outputShape(in)
		return fail("reads values of shape %v: %v", in, err)
	}
	d.values[op.Name] = y
	return y, nil
}

// operation returns a node's operation without its name.
func (d *described) operation(n Node, last int) (Op, error) {
	op := Op{Inputs: []int{last}}
	if n.From != nil {
		op.Inputs = nil
	}
	for _, name := range n.From {
		v, ok := d.values[name]
		if !ok {
			return op, fmt.Errorf("reads %q, but no node before it has that name (there are: %s)", name, d.known())
		}
		op.Inputs = append(op.Inputs, v)
	}
	if len(op.Inputs) == 0 {
		return op, fmt.Errorf("reads nothing")
	}
	if n.Op != nodeConv && (n.Stride != 0 || n.Pad != 0 || n.Dilation != 0 || n.Groups != 0) {
		return op, fmt.Errorf("has no stride, pad, dilation or groups: those are a conv's")
	}
	x := d.g.Values[op.Inputs[0]].Shape
	switch n.Op {
	case nodeLinear:
		op.Kind, op.Weight = Linear, n.Layer+".weight"
		op.Outputs = d.s.take(op.Weight, -1, x[len(x)-1])[0]
		op.Bias = d.optional(n.Layer+".bias", op.Outputs)
	case nodeConv:
		return d.conv2d(op, n, x)
	case nodeBatchNorm:
		op.Kind = BatchNorm2D
		for _, part := range []string{".weight", ".bias", ".running_mean", ".running_var"} {
			d.s.take(n.Layer+part, x[0])
		}
		d.s.ignore(n.Layer + ".num_batches_tracked")
		op.BatchNorm = &BatchNorm{n.Layer + ".weight", n.Layer + ".bias", n.Layer + ".running_mean", n.Layer + ".running_var", or(n.Eps, bnEps)}
	case nodeLayerNorm:
		op.Kind = LayerNorm
		d.s.take(n.Layer+".weight", x[len(x)-1])
		op.Norm = &Norm{Weight: n.Layer + ".weight", Bias: d.optional(n.Layer+".bias", x[len(x)-1]), Eps: or(n.Eps, 1e-5)}
	default:
		kind, ok := nodeOps[n.Op]
		if !ok {
			return op, fmt.Errorf("is no operation (known: linear, conv, batchnorm, layernorm, %s)", strings.Join(NodeOps(), ", "))
		}
		op.Kind = kind
		if kind == LeakyReLU {
			op.Slope = or(n.Slope, leakySlope)
		}
	}
	return op, nil
}

func (d *described) conv2d(op Op, n Node, x []int) (Op, error) {
	if len(x) != 3 {
		return op, fmt.Errorf("reads a value of shape %v, want channels × height × width", x)
	}
	groups := max(n.Groups, 1)
	op.Kind, op.Weight = Conv2D, n.Layer+".weight"
	w := d.s.take(op.Weight, -1, x[0]/groups, -1, -1)
	op.Outputs = w[0]
	op.Bias = d.optional(n.Layer+".bias", op.Outputs)
	stride, dilation := max(n.Stride, 1), max(n.Dilation, 1)
	op.Conv = &blas.Patches{
		Channels: x[0], Height: x[1], Width: x[2], KernelH: w[2], KernelW: w[3], StrideH: stride, StrideW: stride,
		PadH: n.Pad, PadW: n.Pad, DilationH: dilation, DilationW: dilation, Groups: groups,
	}
	return op, nil
}

// optional takes a tensor that may be absent, and returns "" for one that is.
func (d *described) optional(name string, want int) string {
	if !d.s.has(name) {
		return ""
	}
	d.s.take(name, want)
	return name
}

// missing says what is wrong with a tensor, and what layers there are.
func (d *described) missing() string {
	e := d.s.err.(*TensorError)
	text := fmt.Sprintf("tensor %s %s", e.Tensor, e.Problem)
	if d.s.has(e.Tensor) {
		return text
	}
	var layers []string
	for _, name := range d.s.order {
		if layer, ok := strings.CutSuffix(name, ".weight"); ok && !d.s.taken[name] {
			layers = append(layers, layer)
		}
	}
	if len(layers) == 0 {
		return text + "; all layers of the checkpoint are taken"
	}
	return text + "; layers that are left: " + strings.Join(layers[:min(len(layers), 12)], ", ")
}

func (d *described) known() string {
	names := make([]string, 0, len(d.values))
	for name := range d.values {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func or[T any](p *T, absent T) T {
	if p == nil {
		return absent
	}
	return *p
}
