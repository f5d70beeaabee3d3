package pipeline

import (
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/model"
)

// Node is one operation of a network in a recipe: the name of one without tensors,
// such as relu, or a mapping with one of the keys linear, conv, batchnorm, layernorm,
// add or op. The other fields are those of model.Node.
type Node struct {
	Linear    string   `yaml:"linear"` // the layer's name: that of its tensors without .weight
	Conv      string   `yaml:"conv"`
	BatchNorm string   `yaml:"batchnorm"`
	LayerNorm string   `yaml:"layernorm"`
	Add       []string `yaml:"add"` // the values that it reads
	Op        string   `yaml:"op"`  // one without tensors

	From     string   `yaml:"from"` // the value that it reads; default: that of the node before
	Name     string   `yaml:"name"` // of the value that it writes; default: the layer's
	Stride   int      `yaml:"stride"`
	Pad      int      `yaml:"pad"`
	Dilation int      `yaml:"dilation"`
	Groups   int      `yaml:"groups"`
	Slope    *float32 `yaml:"slope"`
	Eps      *float64 `yaml:"eps"`
}

// UnmarshalYAML takes a node's name alone for one without more to say.
func (n *Node) UnmarshalYAML(unmarshal func(any) error) error {
	if unmarshal(&n.Op) == nil {
		return nil
	}
	type plain Node
	return unmarshal((*plain)(n))
}

// node returns the operation that is asked for, and how many are.
func (n *Node) node() (node model.Node, asked int) {
	node = model.Node{
		Op: n.Op, Name: n.Name, Stride: n.Stride, Pad: n.Pad, Dilation: n.Dilation, Groups: n.Groups, Slope: n.Slope, Eps: n.Eps,
	}
	if n.Op != "" {
		asked++
	}
	if n.From != "" {
		node.From = []string{n.From}
	}
	for _, layer := range []struct{ op, name string }{
		{"linear", n.Linear}, {"conv", n.Conv}, {"batchnorm", n.BatchNorm}, {"layernorm", n.LayerNorm},
	} {
		if layer.name != "" {
			node.Op, node.Layer = layer.op, layer.name
			asked++
		}
	}
	if n.Add != nil {
		node.Op, node.From = "add", n.Add
		asked++
	}
	return node, asked
}

// check says what is wrong with a node, as far as it can be told without tensors.
func (n *Node) check() string {
	node, asked := n.node()
	known := append([]string{"linear", "conv", "batchnorm", "layernorm"}, model.NodeOps()...)
	switch {
	case asked != 1:
		return "is not one operation: a node is one of " + strings.Join(known, ", ") + ", such as `linear: fc1` or `relu`"
	case n.Add != nil && (len(n.Add) != 2 || n.From != ""):
		return "add: wants the names of two values, such as `add: [conv2, input]`"
	case node.Layer == "" && !slices.Contains(model.NodeOps(), node.Op):
		reason := "there is no operation " + node.Op
		if near := nearest(node.Op, known); near != "" {
			reason += "; did you mean " + near + "?"
		}
		return reason + " (known: " + strings.Join(known, ", ") + ")"
	case min(n.Stride, n.Pad, n.Dilation, n.Groups) < 0:
		return "stride, pad, dilation and groups cannot be negative"
	}
	return ""
}

// nodes returns the network that a recipe describes, nil for none.
func (m *Model) nodes() []model.Node {
	var nodes []model.Node
	for i := range m.Network {
		node, _ := m.Network[i].node()
		nodes = append(nodes, node)
	}
	return nodes
}
