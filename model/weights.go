package model

import (
	"regexp"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/loader"
)

// WeightsAlone is the architecture of a checkpoint whose forward pass is not known:
// its layers by names and shapes, each for itself. It is built when asked for.
const WeightsAlone = "weights"

// buildWeights takes floating-point tensors of two axes as linear layers and those
// of four as convolutions, outputs first, but for those that isLayerWeight leaves
// out. A convolution's groups do not follow from its weight: Options.Groups has
// them, and otherwise there is one, which is right for all that looks at weights
// alone.
func buildWeights(tensors []loader.Tensor, o Options) (*Graph, error) {
	switch {
	case o.Activation != "":
		return nil, &OptionError{WeightsAlone, "activation", "nothing is computed: leave it out"}
	case o.InputShape != nil:
		return nil, &OptionError{WeightsAlone, "input shape", "nothing is computed: leave it out"}
	}
	s := newTensorSet(WeightsAlone, tensors)
	if s.err != nil {
		return nil, s.err
	}
	g := &Graph{Architecture: WeightsAlone, Detached: true}
	for _, t := range tensors {
		if !isLayerWeight(t) {
			continue
		}
		name := layerName(t.Name)
		op := Op{
			Kind: Linear, Name: name, Inputs: []int{len(g.Values)}, Output: len(g.Values) + 1,
			Weight: t.Name, Outputs: t.Shape[0], Block: -1,
		}
		if b, ok := s.byName[name+".bias"]; ok && b.DType.IsFloat() && slices.Equal(b.Shape, t.Shape[:1]) {
			op.Bias = b.Name
		}
		in, out := []int{t.Shape[1]}, []int{t.Shape[0]}
		if len(t.Shape) == 4 {
			groups := max(o.Groups[name], 1)
			if t.Shape[0]%groups != 0 {
				s.fail(t.Name, "has %d outputs, which are not %d equal groups", t.Shape[0], groups)
				return nil, s.err
			}
			op.Kind = Conv2D
			op.Conv = &blas.Patches{
				Channels: t.Shape[1] * groups, Height: t.Shape[2], Width: t.Shape[3], KernelH: t.Shape[2], KernelW: t.Shape[3],
				StrideH: 1, StrideW: 1, DilationH: 1, DilationW: 1, Groups: groups,
			}
			in, out = []int{t.Shape[1] * groups, t.Shape[2], t.Shape[3]}, []int{t.Shape[0], 1, 1}
		}
		g.Values = append(g.Values, Value{Name: name + ".input", Shape: in}, Value{Name: name, Shape: out})
		g.Ops = append(g.Ops, op)
	}
	if len(g.Ops) == 0 {
		return nil, &OptionError{WeightsAlone, "architecture", "there is no floating-point tensor of two or four axes that could be a layer's weight"}
	}
	g.Output = len(g.Values) - 1
	return g, nil
}

// layerName is a weight's name without its ending.
func layerName(tensor string) string {
	name := strings.TrimSuffix(tensor, ".weight")
	if name == "" {
		return tensor
	}
	return name
}

// notLayers matches the last parts of names whose tensors of two axes are no
// layer's weight: tables that are looked up, normalizations, routers, biases, and
// what is added or multiplied as it is.
var notLayers = regexp.MustCompile(`(?i)^(w[tp]e|shared|(\w+_)?(emb|embeds?|embeddings?)(_(tokens?|positions?|table|in|\d+))?` +
	`|\w*norm\d*|ln(_\w+|\d*)|bn\d*|gate|router|(\w*_)?(bias|biases|tokens?|pos|positions?|scales?|scale_inv|zeros|zero_points?|table|mask|mean|var|std)` +
	`|bias_\w+|relative_position\w*|gamma|beta|alpha|freqs\w*|inv_freq|cos|sin)$`)

// isLayerWeight reports whether a tensor is taken as a layer's weight where no
// forward pass is known.
func isLayerWeight(t loader.Tensor) bool {
	if !t.DType.IsFloat() || size(t.Shape) == 0 || slices.Max(t.Shape) > maxCount {
		return false
	}
	switch len(t.Shape) {
	case 2:
		name := layerName(t.Name)
		return min(t.Shape[0], t.Shape[1]) > 1 && !notLayers.MatchString(name[strings.LastIndexByte(name, '.')+1:])
	case 4:
		return t.Shape[0] > 1 && size(t.Shape[1:]) > 1 && max(t.Shape[2], t.Shape[3]) <= maxGeometry
	}
	return false
}
