package model

import (
	"fmt"
	"strings"

	"github.com/fettle-dev/fettle/loader"
)

// cifarResNet is the ResNet for 32×32 images of He et al. 2015, section 4.2,
// with 6n+2 layers, in the naming of torchvision: conv1, bn1, then blocks
// layer{1,2,3}.{i} of conv1, bn1, conv2, bn2, then linear or fc. Where a
// block changes the shape, its shortcut is a 1×1 convolution with BatchNorm
// (option B) when there are tensors for it, else every second pixel with zero
// channels (option A).
const cifarResNet = "cifar-resnet"

const bnEps = 1e-5 // PyTorch's default, which checkpoints do not store

const cifarFirstBlock = "layer1.0.conv1.weight"

// isCIFARResNet asks for what tells this family from its kin: three stages (a
// fourth makes a ResNet for ImageNet) of basic blocks.
func isCIFARResNet(tensors []loader.Tensor) bool {
	prefix, ok := cifarPrefix(tensors)
	if !ok {
		return false
	}
	s := newTensorSet(cifarResNet, tensors)
	for _, name := range []string{"conv1.weight", "layer2.0.conv1.weight", "layer3.0.conv1.weight"} {
		if !s.has(prefix + name) {
			return false
		}
	}
	return !s.has(prefix+"layer4.0.conv1.weight") && !s.has(prefix+"layer1.0.conv3.weight")
}

// cifarPrefix returns what stands before all names, such as "module.".
func cifarPrefix(tensors []loader.Tensor) (string, bool) {
	for _, t := range tensors {
		if prefix, ok := strings.CutSuffix(t.Name, cifarFirstBlock); ok && (prefix == "" || strings.HasSuffix(prefix, ".")) {
			return prefix, true
		}
	}
	return "", false
}

func buildCIFARResNet(tensors []loader.Tensor, o Options) (*Graph, error) {
	if o.Activation != "" && o.Activation != "relu" {
		return nil, &OptionError{cifarResNet, "activation", fmt.Sprintf("%q cannot be chosen: this architecture has relu", o.Activation)}
	}
	s := newTensorSet(cifarResNet, tensors)
	prefix, ok := cifarPrefix(tensors)
	if !ok {
		s.fail(cifarFirstBlock, "is missing")
		return nil, s.err
	}
	stem := s.take(prefix+"conv1.weight", -1, -1, 3, 3)
	input := []int{stem[1], 32, 32}
	if o.InputShape != nil {
		input = o.InputShape
	}
	if s.err == nil && (len(input) != 3 || input[0] != stem[1] || size(input) == 0) {
		return nil, &OptionError{cifarResNet, "input shape", fmt.Sprintf("%v, but %sconv1.weight reads images of shape [%d height width]", input, prefix, stem[1])}
	}
	r := resNet{graphBuilder: newGraphBuilder(cifarResNet, input), s: s, prefix: prefix}
	if s.err == nil {
		r.build(stem[0])
	}
	if err := s.finish(); err != nil {
		return nil, err
	}
	return r.finish(len(r.g.Values) - 1)
}

// resNet is a graph under construction.
type resNet struct {
	*graphBuilder
	s      *tensorSet
	prefix string
}

func (r *resNet) build(width int) {
	x := r.conv("conv1", 0, r.prefix+"conv1.weight", width, 3, 1, 1)
	x = r.relu("relu1", r.batchNorm("bn1", x))
	for stage := 1; stage <= 3 && r.s.err == nil; stage++ {
		for i := 0; r.s.err == nil && (i == 0 || r.s.has(fmt.Sprintf("%slayer%d.%d.conv1.weight", r.prefix, stage, i))); i++ {
			stride := 1
			if stage > 1 && i == 0 {
				stride = 2
			}
			x = r.block(fmt.Sprintf("layer%d.%d", stage, i), x, stride)
		}
	}
	if r.s.err != nil {
		return
	}
	x = r.add(Op{Kind: GlobalAvgPool, Name: "avgpool", Inputs: []int{x}})
	r.classifier(x)
	if r.channels(0) == 3 {
		r.g.Normalize = Normalize{Mean: []float32{.485, .456, .406}, Std: []float32{.229, .224, .225}}
	}
}

func (r *resNet) channels(value int) int { return r.g.Values[value].Shape[0] }

// block appends relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)). The
// channels between its convolutions are as many as conv1 has filters.
func (r *resNet) block(name string, x, stride int) int {
	inner := r.s.take(r.prefix+name+".conv1.weight", -1, r.channels(x), 3, 3)[0]
	y := r.conv(name+".conv1", x, r.prefix+name+".conv1.weight", inner, 3, stride, 1)
	y = r.relu(name+".relu1", r.batchNorm(name+".bn1", y))
	width := r.s.take(r.prefix+name+".conv2.weight", -1, inner, 3, 3)[0]
	y = r.conv(name+".conv2", y, r.prefix+name+".conv2.weight", width, 3, 1, 1)
	y = r.batchNorm(name+".bn2", y)
	y = r.add(Op{Kind: Add, Name: name + ".add", Inputs: []int{y, r.shortcut(name, x, width, stride)}})
	return r.relu(name+".relu2", y)
}

func (r *resNet) shortcut(name string, x, width, stride int) int {
	for _, kind := range []string{".shortcut", ".downsample"} {
		conv, bn := name+kind+".0", name+kind+".1"
		if weight := r.prefix + conv + ".weight"; r.s.has(weight) {
			r.s.take(weight, width, r.channels(x), 1, 1)
			return r.batchNorm(bn, r.conv(conv, x, weight, width, 1, stride, 0))
		}
	}
	from := r.channels(x)
	if stride == 1 && from == width {
		return x
	}
	pad := width / 4 // as its authors' code pads: right only where the width doubles
	if from+2*pad != width {
		r.s.fail(r.prefix+name+".shortcut.0.weight", "is missing, and a shortcut without weights (option A) cannot go from %d to %d channels", from, width)
		return r.g.Ops[len(r.g.Ops)-1].Output
	}
	return r.add(Op{Kind: SubsamplePad, Name: name + ".shortcut", Inputs: []int{x}, Stride: stride, PadChannels: pad})
}

func (r *resNet) batchNorm(name string, x int) int {
	full, channels := r.prefix+name, r.channels(x)
	for _, part := range []string{".weight", ".bias", ".running_mean", ".running_var"} {
		r.s.take(full+part, channels)
	}
	r.s.ignore(full + ".num_batches_tracked")
	return r.add(Op{Kind: BatchNorm2D, Name: name, Inputs: []int{x}, BatchNorm: &BatchNorm{
		Scale: full + ".weight", Shift: full + ".bias", Mean: full + ".running_mean", Var: full + ".running_var", Eps: bnEps,
	}})
}

func (r *resNet) relu(name string, x int) int {
	return r.add(Op{Kind: ReLU, Name: name, Inputs: []int{x}})
}

func (r *resNet) classifier(x int) {
	name := "linear"
	if !r.s.has(r.prefix+name+".weight") && r.s.has(r.prefix+"fc.weight") {
		name = "fc"
	}
	classes := r.s.take(r.prefix+name+".weight", -1, r.channels(x))[0]
	bias := r.prefix + name + ".bias"
	r.s.take(bias, classes)
	r.add(Op{Kind: Linear, Name: name, Inputs: []int{x}, Weight: r.prefix + name + ".weight", Bias: bias, Outputs: classes})
}
