package model

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// outputShape returns the shape that the operation gives for inputs of the
// given shapes. It is the one place that says which shapes and parameters an
// operation takes: builders derive values from it, Check compares with it.
func (o *Op) outputShape(in [][]int) ([]int, error) {
	want := 1
	switch {
	case o.Kind == Add || o.Kind == SiLUMul:
		want = 2
	case o.Kind == Attend && len(in) != 1: // one value may hold all three
		want = 3
	case o.expertInputs(in) > 0:
		want = o.expertInputs(in)
	}
	if len(in) != want {
		return nil, fmt.Errorf("%s reads %d values, want %d", o.Kind, len(in), want)
	}
	if layer := o.Kind == Conv2D || o.Kind == Linear; layer != (o.Weight != "") || layer != (o.Outputs > 0) {
		return nil, fmt.Errorf("%s with weight %q and %d outputs", o.Kind, o.Weight, o.Outputs)
	}
	if o.Transposed && o.Kind != Linear {
		return nil, fmt.Errorf("%s with a transposed weight", o.Kind)
	}
	x := in[0]
	switch o.Kind {
	case Conv2D:
		return o.convShape(x)
	case Linear:
		out := slices.Clone(x)
		out[len(out)-1] = o.Outputs
		return out, nil
	case BatchNorm2D:
		if o.BatchNorm == nil || !(o.BatchNorm.Eps >= 0 && o.BatchNorm.Eps < math.MaxFloat32) {
			return nil, errors.New("batchnorm2d needs its tensors and a finite eps ≥ 0")
		}
		return x, wantImage(x)
	case LeakyReLU:
		if s := float64(o.Slope); math.IsNaN(s) || math.IsInf(s, 0) {
			return nil, fmt.Errorf("leaky_relu with slope %v", o.Slope)
		}
		return x, nil
	case ReLU, Sigmoid, Tanh, GELU, GELUTanh:
		return x, nil
	case Add, SiLUMul:
		if !slices.Equal(x, in[1]) {
			return nil, fmt.Errorf("%s of shapes %v and %v", o.Kind, x, in[1])
		}
		return x, nil
	case SubsamplePad:
		if err := wantImage(x); err != nil {
			return nil, err
		}
		if o.Stride < 1 || o.PadChannels < 0 || max(o.Stride, o.PadChannels) > maxGeometry {
			return nil, fmt.Errorf("subsample_pad with stride %d and %d channels of padding", o.Stride, o.PadChannels)
		}
		return []int{x[0] + 2*o.PadChannels, (x[1]-1)/o.Stride + 1, (x[2]-1)/o.Stride + 1}, nil
	case GlobalAvgPool:
		return x[:1], wantImage(x)
	case Flatten:
		return []int{size(x)}, nil
	case Embed:
		return o.Embedding.outputShape(x)
	case RMSNorm, LayerNorm:
		return x, o.Norm.check(o.Kind, x)
	case Attend:
		return o.Attention.outputShape(in)
	case ToTokens:
		return o.Sequence.outputShape(x)
	case FirstToken:
		if len(x) > 2 {
			return nil, fmt.Errorf("first token of values of shape %v, want tokens × width, or width", x)
		}
		return x[len(x)-1:], nil
	case Route, Dispatch, Combine, ScaleRows:
		return o.expertShape(in)
	}
	return nil, fmt.Errorf("unknown kind of operation %q", o.Kind)
}

// maxGeometry bounds an operation's parameters so that products of two do not
// overflow.
const maxGeometry = 1 << 15

func (o *Op) convShape(x []int) ([]int, error) {
	c := o.Conv
	if err := wantImage(x); err != nil {
		return nil, err
	}
	if c == nil || !slices.Equal(x, []int{c.Channels, c.Height, c.Width}) {
		return nil, fmt.Errorf("conv2d geometry %+v for an input of shape %v", c, x)
	}
	if min(c.KernelH, c.KernelW, c.StrideH, c.StrideW, c.DilationH, c.DilationW, c.Groups) < 1 || min(c.PadH, c.PadW) < 0 ||
		max(c.KernelH, c.KernelW, c.StrideH, c.StrideW, c.DilationH, c.DilationW, c.PadH, c.PadW) > maxGeometry ||
		c.Channels%c.Groups != 0 || o.Outputs%c.Groups != 0 {
		return nil, fmt.Errorf("conv2d geometry %+v with %d output channels", *c, o.Outputs)
	}
	// A window that does not fit is caught before OutH's division, which
	// rounds toward zero.
	if c.Height+2*c.PadH < c.DilationH*(c.KernelH-1)+1 || c.Width+2*c.PadW < c.DilationW*(c.KernelW-1)+1 {
		return nil, fmt.Errorf("conv2d window larger than its input: %+v", *c)
	}
	return []int{o.Outputs, c.OutH(), c.OutW()}, nil
}

func wantImage(x []int) error {
	if len(x) != 3 {
		return fmt.Errorf("input of shape %v, want channels × height × width", x)
	}
	return nil
}

// size returns the number of elements, 0 for a shape with an axis below 1 or
// with more elements than an int32 can index.
func size(shape []int) int {
	n := 1
	for _, d := range shape {
		if d < 1 || d > math.MaxInt32/n {
			return 0
		}
		n *= d
	}
	return n
}
