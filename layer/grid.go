package layer

import (
	"errors"
	"fmt"
	"math"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// Granularity says which weights share a scale and a zero point.
type Granularity string

// The granularities: one scale for the tensor, for each output channel (row),
// or for each group of consecutive inputs of a row.
const (
	PerTensor  Granularity = "tensor"
	PerChannel Granularity = "channel"
	PerGroup   Granularity = "group"
)

// Grid is a uniform quantization grid: a weight's value is
//
//	scale · (code − zero point)
//
// with signed codes in Range. A symmetric grid has zero point 0 everywhere.
type Grid struct {
	Bits        int
	Granularity Granularity
	GroupSize   int // consecutive inputs that share a scale; 0 unless PerGroup
	Symmetric   bool
	ScaleType   dtype.DType // the type that scales are stored in

	// Scales has one positive value for the tensor, for each row, or for each
	// group of each row (row-major). Each is exact in ScaleType.
	Scales []float32
	// Zeros are the zero points beside Scales; nil when symmetric.
	Zeros []int8
}

// CodeRange returns the smallest and the largest code of the given bits.
func CodeRange(bits int) (lo, hi int) { return -1 << (bits - 1), 1<<(bits-1) - 1 }

// Range returns the smallest and the largest code.
func (g *Grid) Range() (lo, hi int) { return CodeRange(g.Bits) }

// GroupsPerRow returns how many scales a row of cols inputs has of its own: 0
// where the whole tensor shares one.
func (g *Grid) GroupsPerRow(cols int) int {
	switch g.Granularity {
	case PerTensor:
		return 0
	case PerGroup:
		return (cols + g.GroupSize - 1) / g.GroupSize
	default:
		return 1
	}
}

// Index returns the place in Scales of the weight at (row, col) of a matrix
// with cols inputs.
func (g *Grid) Index(row, col, cols int) int {
	switch g.Granularity {
	case PerTensor:
		return 0
	case PerGroup:
		return row*g.GroupsPerRow(cols) + col/g.GroupSize
	default:
		return row
	}
}

// Zero returns the zero point at a place of Scales.
func (g *Grid) Zero(index int) int {
	if g.Zeros == nil {
		return 0
	}
	return int(g.Zeros[index])
}

// Dequantize writes the values of a row's codes to dst.
func (g *Grid) Dequantize(dst []float32, codes []int8, row int) {
	span := len(codes)
	if g.Granularity == PerGroup {
		span = g.GroupSize
	}
	for from := 0; from < len(codes); from += span {
		i := g.Index(row, from, len(codes))
		scale, zero := g.Scales[i], g.Zero(i)
		for c := from; c < min(from+span, len(codes)); c++ {
			dst[c] = scale * float32(int(codes[c])-zero)
		}
	}
}

// Check reports the first thing that makes the grid unfit for a rows×cols
// weight.
func (g *Grid) Check(rows, cols int) error {
	if g.Bits < 2 || g.Bits > 8 {
		return fmt.Errorf("grid of %d bits, want 2 to 8", g.Bits)
	}
	switch g.Granularity {
	case PerTensor, PerChannel, PerGroup:
	default:
		return fmt.Errorf("grid of unknown granularity %q", g.Granularity)
	}
	if (g.Granularity == PerGroup) != (g.GroupSize > 0) {
		return fmt.Errorf("grid of granularity %q with group size %d", g.Granularity, g.GroupSize)
	}
	want := max(1, rows*g.GroupsPerRow(cols))
	if len(g.Scales) != want {
		return fmt.Errorf("grid has %d scales, want %d", len(g.Scales), want)
	}
	if !g.Symmetric && len(g.Zeros) != want {
		return fmt.Errorf("grid has %d zero points, want %d", len(g.Zeros), want)
	}
	if g.Symmetric && g.Zeros != nil {
		return errors.New("symmetric grid with zero points")
	}
	lo, hi := g.Range()
	for i, s := range g.Scales {
		if !(s > 0) || math.IsInf(float64(s), 0) || g.ScaleType.Round(s) != s {
			return fmt.Errorf("scale %d is %v, want positive, finite and exact in %s", i, s, g.ScaleType)
		}
		if z := g.Zero(i); z < lo || z > hi {
			return fmt.Errorf("zero point %d is %d, outside %d…%d", i, z, lo, hi)
		}
	}
	return nil
}
