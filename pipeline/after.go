package pipeline

import (
	"slices"

	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/model"
)

// activations are the operations that a layer's problem can hold.
var activations = map[model.OpKind]layer.Activation{
	model.ReLU: layer.ReLU, model.LeakyReLU: layer.LeakyReLU, model.Sigmoid: layer.Sigmoid,
	model.Tanh: layer.Tanh, model.GELU: layer.GELU, model.GELUTanh: layer.GELUTanh,
}

// activationAfter returns the activation that alone reads what operation i gives,
// and the batch normalization between the two or nil; activation is nil where
// something else reads it, such as a residual sum or a product of two values.
func activationAfter(g *model.Graph, i int) (norm *model.BatchNorm, activation *model.Op) {
	value := g.Ops[i].Output
	if norm = onlyBatchNorm(g, value); norm != nil {
		value = g.Ops[g.Readers(value)[0]].Output
	}
	readers := g.Readers(value)
	if len(readers) != 1 || value == g.Output {
		return nil, nil
	}
	next := &g.Ops[readers[0]]
	if _, ok := activations[next.Kind]; !ok {
		return nil, nil
	}
	return norm, next
}

// after returns what operation i's outputs go through; nil for no activation.
func (c *compression) after(i int) (*layer.After, error) {
	norm, activation := activationAfter(c.graph, i)
	if activation == nil {
		return nil, nil
	}
	a := &layer.After{Activation: activations[activation.Kind], Slope: activation.Slope}
	var err error
	if bias := c.graph.Ops[i].Bias; bias != "" {
		if a.Shift, err = c.weights.original(bias); err != nil {
			return nil, err
		}
	}
	if norm == nil {
		return a, nil
	}
	if a.Scale, err = c.normFactor(norm); err != nil {
		return nil, err
	}
	var shift, mean []float32
	if shift, err = c.weights.original(norm.Shift); err != nil {
		return nil, err
	}
	if mean, err = c.weights.original(norm.Mean); err != nil {
		return nil, err
	}
	for o, factor := range a.Scale {
		offset := -float64(mean[o])
		if a.Shift != nil {
			offset += float64(a.Shift[o])
		}
		shift[o] = float32(float64(shift[o]) + float64(factor)*offset)
	}
	a.Shift = shift
	return a, nil
}

// sampleRows returns how many rows a stop's layers ask for; 0 for none.
func (s *stop) sampleRows() int {
	return slices.MaxFunc(s.layers, func(a, b *PlanLayer) int { return a.sampleRows() - b.sampleRows() }).sampleRows()
}
