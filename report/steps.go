package report

import (
	"strings"

	"github.com/fettle-dev/fettle/record"
)

// columns says what some layer has, and so which columns and figures there are
// beside those of every run.
type columns struct {
	Format, Scaled                      bool
	Pruned, PrunedError, Layout         bool
	LowRank, WithoutLowRank             bool
	Error, Nearest, Soft, Bound, Codes  bool
	WeightError                         bool
	Unquantized, UnevenGrids, UnevenAim bool
}

func newColumns(layers []layerRow) columns {
	var c columns
	var quantized *layerRow
	for i := range layers {
		l := &layers[i]
		c.Format = c.Format || l.Format != ""
		c.Scaled = c.Scaled || l.Scaled
		c.Pruned = c.Pruned || l.Prune != nil
		c.PrunedError = c.PrunedError || l.Prune != nil && l.Prune.RelativeError != nil
		c.Layout = c.Layout || l.Layout != ""
		c.LowRank = c.LowRank || l.Compensate != nil
		c.WithoutLowRank = c.WithoutLowRank || l.Compensate != nil && l.Compensate.RelativeError != nil
		c.Error = c.Error || l.RelativeError != nil
		c.Nearest = c.Nearest || l.NearestRelativeError != nil
		c.Soft = c.Soft || l.SoftRelativeError != nil
		c.WeightError = c.WeightError || l.RelativeWeightError != nil
		c.Bound = c.Bound || l.BoundRelativeError != nil
		c.Unquantized = c.Unquantized || l.Bits == 0
		c.UnevenAim = c.UnevenAim || l.Aligned != layers[0].Aligned
		if l.Bits == 0 {
			continue
		}
		c.Codes = true
		if quantized == nil {
			quantized = l
		}
		c.UnevenGrids = c.UnevenGrids || l.Symmetric != quantized.Symmetric
	}
	return c
}

// Stored lists what the bytes of layers are.
func (c columns) Stored() string {
	var parts []string
	if c.Codes {
		parts = append(parts, "codes")
	}
	if c.Unquantized {
		parts = append(parts, "values of layers that are not quantized")
	}
	return list(append(append(parts, c.beside()...), "shape"))
}

// Beside lists what average bits count beside codes and values.
func (c columns) Beside() string {
	if parts := c.beside(); len(parts) > 0 {
		return "with " + list(parts)
	}
	return "with nothing beside their values"
}

func (c columns) beside() []string {
	var parts []string
	if c.Codes {
		parts = append(parts, "scales", "zero points")
	}
	if c.Layout {
		parts = append(parts, "masks")
	}
	if c.LowRank {
		parts = append(parts, "low-rank factors")
	}
	return parts
}

// list joins the parts with commas and an "and".
func list(parts []string) string {
	last := len(parts) - 1
	if last < 1 {
		return strings.Join(parts, "")
	}
	return strings.Join(parts[:last], ", ") + " and " + parts[last]
}

// Pruned returns how many weights of the compressed layers were pruned, and how
// many these layers have in all: the first over the second is the run's
// sparsity. Layers that were not pruned count with all their weights.
func Pruned(run *record.Run) (pruned, weights int64) {
	for _, l := range run.Layers {
		pruned += prunedWeights(l)
		weights += l.Parameters
	}
	return pruned, weights
}

func prunedWeights(l record.Layer) int64 {
	if l.Prune == nil {
		return 0
	}
	return max(0, l.Parameters-l.Prune.Survivors)
}

// precision is what a layer's weights are afterwards, in words.
func precision(l record.Layer) string {
	if l.Bits == 0 {
		if l.Prune != nil {
			return "pruned only"
		}
		return "not quantized"
	}
	name := plural(l.Bits, "bit", "bits")
	if l.Format != "" {
		name += " " + l.Format
	}
	if l.Prune != nil {
		name += ", pruned"
	}
	return name
}

// precisionClass names the colour of what precision says: one for each bit
// width from 2 to 8, for each format and for layers that are only pruned. Those
// that are pruned and quantized have a paler one.
func precisionClass(l record.Layer) string {
	if l.Bits == 0 && l.Prune != nil {
		return "pruned"
	}
	class := bitsClass(l.Bits)
	switch l.Format {
	case "fp8", "nvfp4", "mxfp4":
		class = l.Format
	}
	if l.Prune != nil {
		class += " pale"
	}
	return class
}
