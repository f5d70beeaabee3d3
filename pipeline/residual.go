package pipeline

import (
	"context"
	"math"
	"slices"

	"github.com/fettle-dev/fettle/calibrate"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/model"
)

// residualSum finds the sum that operation i writes into, by itself or through a
// batch normalization that alone reads it: the sum's other term, and the
// normalization or nil. ok is false where there is none.
func residualSum(g *model.Graph, i int) (other int, norm *model.BatchNorm, ok bool) {
	value := g.Ops[i].Output
	if norm = onlyBatchNorm(g, value); norm != nil {
		value = g.Ops[g.Readers(value)[0]].Output
	}
	readers := g.Readers(value)
	if len(readers) != 1 || value == g.Output || g.Ops[readers[0]].Kind != model.Add {
		return 0, nil, false
	}
	in := g.Ops[readers[0]].Inputs
	if len(in) != 2 || in[0] == in[1] {
		return 0, nil, false
	}
	other = in[0]
	if other == value {
		other = in[1]
	}
	return other, norm, !dependsOn(g, other, i)
}

// dependsOn reports whether a value is computed from what operation i gives.
func dependsOn(g *model.Graph, value, i int) bool {
	reached := map[int]bool{g.Ops[i].Output: true}
	for k := i + 1; k < len(g.Ops); k++ {
		if slices.ContainsFunc(g.Ops[k].Inputs, func(v int) bool { return reached[v] }) {
			reached[g.Ops[k].Output] = true
		}
	}
	return reached[value]
}

// residuals returns the residual targets of a stop's layers that ask for one
// and write into a sum whose other term differs between the streams.
func (c *compression) residuals(ctx context.Context, s *stop) (map[string]*layer.Residual, error) {
	targets := map[string]*layer.Residual{}
	for _, l := range s.layers {
		other, norm, ok := residualSum(c.graph, l.op)
		if !l.residual() || !ok {
			continue
		}
		ready, err := c.bring(ctx, other)
		if err != nil {
			return nil, err
		}
		if !ready || c.streams.sameValue(other) {
			continue
		}
		op := &c.graph.Ops[l.op]
		sum := calibrate.Sum{
			Outputs: op.Outputs, Y: c.streams.original.values[op.Output].Data,
			R: c.streams.original.values[other].Data, RT: c.streams.compressed.values[other].Data,
		}
		if op.Bias != "" {
			if sum.Bias, err = c.weights.original(op.Bias); err != nil {
				return nil, err
			}
		}
		if norm != nil {
			if sum.Factor, err = c.normFactor(norm); err != nil {
				return nil, err
			}
		}
		if targets[l.Weight], err = s.reading.Residual(ctx, c.pool, c.streams.compressed.values[s.value].Data, sum); err != nil {
			return nil, err
		}
	}
	return targets, nil
}

// bring computes a value in both streams. ready is false where that takes a
// layer that is to be compressed and has not been yet.
func (c *compression) bring(ctx context.Context, value int) (ready bool, err error) {
	if c.streams.compressed.values[value] != nil && c.streams.original.values[value] != nil {
		return true, nil
	}
	i := c.producer(value)
	if i < 0 {
		return false, nil
	}
	planned := slices.ContainsFunc(c.plan.Layers, func(l PlanLayer) bool { return l.op == i })
	if planned && !c.changed[i] {
		return false, nil
	}
	for _, v := range c.graph.Ops[i].Inputs {
		if ready, err := c.bring(ctx, v); err != nil || !ready {
			return false, err
		}
	}
	return true, c.streams.advance(ctx, i, c.changed)
}

// normFactor returns what a batch normalization multiplies each channel by.
func (c *compression) normFactor(norm *model.BatchNorm) ([]float32, error) {
	scale, err := c.weights.original(norm.Scale)
	if err != nil {
		return nil, err
	}
	variance, err := c.weights.original(norm.Var)
	if err != nil {
		return nil, err
	}
	factor := make([]float32, len(scale))
	for i := range factor {
		factor[i] = float32(float64(scale[i]) / math.Sqrt(float64(variance[i])+norm.Eps))
	}
	return factor, nil
}
