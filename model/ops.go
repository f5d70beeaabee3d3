package model

import (
	"context"
	"math"

	"github.com/fettle-dev/fettle/internal/vec"
)

// compute fills y, whose numbers are zero, with operation o of in.
func (e *Executor) compute(ctx context.Context, o *Op, in []*Tensor, y *Tensor) error {
	switch o.Kind {
	case Conv2D:
		return e.conv2d(ctx, o, in[0], y)
	case Linear:
		return e.linear(ctx, o, in[0], y)
	case BatchNorm2D:
		return e.batchNorm(ctx, o, in[0], y)
	case ReLU:
		return e.flat(ctx, y, func(from, to int) { vec.ReLU(y.Data[from:to], in[0].Data[from:]) })
	case LeakyReLU:
		return e.each(ctx, in[0], y, func(v float32) float32 {
			if v < 0 {
				return v * o.Slope
			}
			return v
		})
	case Sigmoid:
		return e.each(ctx, in[0], y, func(v float32) float32 { return float32(1 / (1 + math.Exp(-float64(v)))) })
	case Tanh:
		return e.each(ctx, in[0], y, func(v float32) float32 { return float32(math.Tanh(float64(v))) })
	case Add:
		return e.flat(ctx, y, func(from, to int) { vec.Add(y.Data[from:to], in[0].Data[from:], in[1].Data[from:]) })
	case SubsamplePad:
		return e.subsamplePad(ctx, o, in[0], y)
	case GlobalAvgPool:
		return e.globalAvgPool(ctx, in[0], y)
	case Flatten:
		copy(y.Data, in[0].Data)
		return ctx.Err()
	}
	return e.computeTokens(ctx, o, in, y)
}

// perSample calls f with each sample of the inputs and of y, in parallel.
func (e *Executor) perSample(ctx context.Context, in []*Tensor, y *Tensor, f func(in [][]float32, out []float32) error) error {
	n := y.Shape[0]
	return e.pool.For(ctx, n, func(s int) error {
		var views [2][]float32
		for i, t := range in {
			views[i] = sample(t, s)
		}
		return f(views[:len(in)], sample(y, s))
	})
}

func sample(t *Tensor, s int) []float32 {
	per := len(t.Data) / t.Shape[0]
	return t.Data[s*per : (s+1)*per]
}

// each computes y = f(x) number by number.
func (e *Executor) each(ctx context.Context, x, y *Tensor, f func(float32) float32) error {
	return e.perSample(ctx, []*Tensor{x}, y, func(in [][]float32, out []float32) error {
		for i, v := range in[0] {
			out[i] = f(v)
		}
		return nil
	})
}

// batchNorm computes x·a + b for each channel, with a = scale/√(var + eps) and
// b = shift − mean·a taken in float64 and rounded once.
func (e *Executor) batchNorm(ctx context.Context, o *Op, x, y *Tensor) error {
	channels := x.Shape[1]
	var t [4][]float32
	for i, name := range []string{o.BatchNorm.Scale, o.BatchNorm.Shift, o.BatchNorm.Mean, o.BatchNorm.Var} {
		var err error
		if t[i], err = e.read(name, channels); err != nil {
			return err
		}
	}
	mul, add := make([]float32, channels), make([]float32, channels)
	for c := range channels {
		a := float64(t[0][c]) / math.Sqrt(float64(t[3][c])+o.BatchNorm.Eps)
		mul[c], add[c] = float32(a), float32(float64(t[1][c])-float64(t[2][c])*a)
	}
	area := x.Shape[2] * x.Shape[3]
	return e.perSample(ctx, []*Tensor{x}, y, func(in [][]float32, out []float32) error {
		for c := range channels {
			vec.ScaleShift(out[c*area:][:area], in[0][c*area:], mul[c], add[c])
		}
		return nil
	})
}

func (e *Executor) subsamplePad(ctx context.Context, o *Op, x, y *Tensor) error {
	channels, height, width := x.Shape[1], x.Shape[2], x.Shape[3]
	outArea := y.Shape[2] * y.Shape[3]
	return e.perSample(ctx, []*Tensor{x}, y, func(in [][]float32, out []float32) error {
		for c := range channels {
			plane := in[0][c*height*width:][:height*width]
			dst := out[(c+o.PadChannels)*outArea:][:outArea]
			i := 0
			for r := 0; r < height; r += o.Stride {
				for q := 0; q < width; q += o.Stride {
					dst[i] = plane[r*width+q]
					i++
				}
			}
		}
		return nil
	})
}

func (e *Executor) globalAvgPool(ctx context.Context, x, y *Tensor) error {
	area := x.Shape[2] * x.Shape[3]
	return e.perSample(ctx, []*Tensor{x}, y, func(in [][]float32, out []float32) error {
		for c := range out {
			var sum float64
			for _, v := range in[0][c*area:][:area] {
				sum += float64(v)
			}
			out[c] = float32(sum / float64(area))
		}
		return nil
	})
}
