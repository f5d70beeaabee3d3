package pipeline

import (
	"context"
	"fmt"
	"math"

	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/quantize"
)

// checkScaled takes AWQ's scales from layers that cannot have them. The scales
// of a layer's inputs go into the normalization that writes them, which all that
// read the value must agree to.
func (p *Plan) checkScaled(r *Recipe, g *model.Graph) error {
	asked := map[int]bool{} // by operation
	for i := range p.Layers {
		if p.Layers[i].Scaled {
			asked[p.Layers[i].op] = true
		}
	}
	for i := range p.Layers {
		l := &p.Layers[i]
		if !l.Scaled {
			continue
		}
		reason := cannotScale(g, g.Ops[l.op].Inputs[0], asked)
		if reason == "" {
			continue
		}
		l.Scaled = false
		f := layer.Fallback{Asked: "awq scaling", Got: "none", Reason: reason}
		if r.OnFallback == "fail" {
			return &FallbackError{Layer: l.Name, Fallback: f}
		}
		l.Fallbacks = append(l.Fallbacks, f)
	}
	return nil
}

// cannotScale says why a value's channels cannot be divided by scales; "" where
// they can be.
func cannotScale(g *model.Graph, value int, asked map[int]bool) string {
	if g.NormBefore(value) == nil {
		return "no normalization of its own writes what the layer reads"
	}
	for _, i := range g.Readers(value) {
		if !asked[i] {
			return fmt.Sprintf("%s reads the same value and is not scaled", g.Ops[i].Name)
		}
	}
	return ""
}

// scale finds the scales of a stop's inputs, unless a solution on disk has them,
// and makes the moments those of the scaled inputs.
//
// The scales are those that the normalization can have: its weight over what is
// left of it when it has been divided and rounded to the type it is stored in.
// Where that is 0 or too large the scale is 1.
func (c *compression) scale(ctx context.Context, s *stop, m *layer.Moments) error {
	if !s.scaled() {
		return nil
	}
	if s.scale == nil {
		var problems []*layer.Problem
		var options []quantize.Options
		for _, l := range s.layers {
			prob, err := c.problem(l, m)
			if err != nil {
				return err
			}
			problems, options = append(problems, prob), append(options, *l.Quantize)
		}
		scale, err := quantize.InputScales(ctx, c.pool, problems, options)
		if err != nil {
			return err
		}
		name := c.graph.NormBefore(s.value).Norm.Weight
		weight, err := c.weights.original(name)
		if err != nil {
			return err
		}
		divided, err := c.divided(name, scale)
		if err != nil {
			return err
		}
		for i, w := range weight {
			scale[i] = float64(w) / float64(divided[i])
			if w == 0 || divided[i] == 0 || math.IsInf(scale[i], 0) || scale[i] == 0 {
				scale[i] = 1
			}
		}
		s.scale = scale
	}
	quantize.ScaleMoments(m, s.scale)
	return nil
}

// divided returns a tensor divided by scales, rounded to the type it is stored
// in.
func (c *compression) divided(name string, scale []float64) ([]float32, error) {
	t, ok := c.ckpt.Lookup(name)
	if !ok {
		return nil, fmt.Errorf("%w: %s", loader.ErrNotFound, name)
	}
	values, err := c.weights.original(name)
	if err != nil {
		return nil, err
	}
	for i, v := range values {
		values[i] = t.DType.Round(float32(float64(v) / scale[i]))
	}
	return values, nil
}

// fold divides the normalization before a stop's layers by their scales.
func (c *compression) fold(s *stop) (err error) {
	if !s.scaled() {
		return nil
	}
	norm := c.graph.NormBefore(s.value).Norm
	for _, name := range []string{norm.Weight, norm.Bias} {
		if name == "" {
			continue
		}
		if c.folded[name], err = c.divided(name, s.scale); err != nil {
			return err
		}
		if err := finite(name, c.folded[name]); err != nil {
			return err
		}
	}
	return nil
}

// passScaled lets the compressed stream go on with a value divided by scales.
func (c *compression) passScaled(ctx context.Context, s *stop) error {
	if !s.scaled() {
		return nil
	}
	factors := make([]float32, len(s.scale))
	for i, v := range s.scale {
		factors[i] = float32(1 / v)
	}
	c.divide[s.value] = factors
	if c.streams == nil {
		return nil
	}
	return c.streams.rescale(ctx, s.value)
}
