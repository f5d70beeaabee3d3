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

// Grid is a quantization grid: what signed codes in Range stand for. A greater
// code is a greater value. That of an Integer grid is
//
//	scale · (code − zero point)
//
// and a symmetric one has zero point 0 everywhere. That of a floating-point
// format, which is symmetric, is
//
//	scale · value(code)
//
// with the values of Format.Float. Both are computed in float32 and rounded once.
type Grid struct {
	Format      Format
	Bits        int
	Granularity Granularity
	GroupSize   int // consecutive inputs that share a scale; 0 unless PerGroup
	Symmetric   bool
	ScaleType   dtype.DType // the type that scales are stored in

	// Scales has one positive value for the tensor, for each row, or for each
	// group of each row (row-major). Each is exact in ScaleType; NVFP4's are the
	// quotients, in float32, of an exact one and Global.
	Scales []float32
	// Global is NVFP4's global scale; 0 for all other formats.
	Global float32
	// Zeros are the zero points beside Scales; nil when symmetric.
	Zeros []int8
}

// CodeRange returns the smallest and the largest code of the given bits.
func CodeRange(bits int) (lo, hi int) { return -1 << (bits - 1), 1<<(bits-1) - 1 }

// Range returns the smallest and the largest code.
func (g *Grid) Range() (lo, hi int) {
	if f := g.Format.Float(); f != nil {
		return -f.Most(), f.Most()
	}
	return CodeRange(g.Bits)
}

// Stored returns the scale at a place of Scales as files hold it: for NVFP4 the
// E4M3 value that Global divides.
func (g *Grid) Stored(index int) float32 {
	s := g.Scales[index]
	if g.Format == NVFP4 {
		return LocalScale(float64(s) * float64(g.Global))
	}
	return s
}

// LocalScale rounds a group's scale, times the global scale, to what NVFP4
// stores: the nearest positive value of E4M3.
func LocalScale(scale float64) float32 {
	return dtype.E4M3.Value(max(dtype.E4M3.Nearest(scale), 1))
}

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

// Dequantize writes the values of a row's codes to dst: what readers of the
// formats compute in float32. NVFP4's order of operations is that of
// compressed-tensors, value · (local scale / global scale).
func (g *Grid) Dequantize(dst []float32, codes []int8, row int) {
	float := g.Format.Float()
	span := len(codes)
	if g.Granularity == PerGroup {
		span = g.GroupSize
	}
	for from := 0; from < len(codes); from += span {
		i := g.Index(row, from, len(codes))
		scale, zero := g.Scales[i], g.Zero(i)
		to := min(from+span, len(codes))
		if float != nil {
			for c := from; c < to; c++ {
				dst[c] = scale * float.Value(int(codes[c]))
			}
			continue
		}
		for c := from; c < to; c++ {
			dst[c] = scale * float32(int(codes[c])-zero)
		}
	}
}

// Check reports the first thing that makes the grid unfit for a rows×cols
// weight.
func (g *Grid) Check(rows, cols int) error {
	if err := g.checkFormat(); err != nil {
		return err
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
		if !(s > 0) || math.IsInf(float64(s), 0) || !g.exact(i) {
			return fmt.Errorf("scale %d is %v, want positive, finite and exact in %s", i, s, g.ScaleType)
		}
		if z := g.Zero(i); z < lo || z > hi {
			return fmt.Errorf("zero point %d is %d, outside %d…%d", i, z, lo, hi)
		}
	}
	return nil
}

// exact reports whether the scale at a place of Scales is one that can be
// stored.
func (g *Grid) exact(index int) bool {
	stored := g.Stored(index)
	if g.Format == NVFP4 {
		return stored/g.Global == g.Scales[index]
	}
	return g.ScaleType.Round(stored) == stored
}

// checkFormat reports what of the grid its format does not allow.
func (g *Grid) checkFormat() error {
	info := g.Format.info()
	switch {
	case !g.Format.Known():
		return fmt.Errorf("grid of unknown format %q", g.Format)
	case g.Format == NVFP4 && !(g.Global > 0 && g.Global <= math.MaxFloat32):
		return fmt.Errorf("global scale %v, want positive and finite", g.Global)
	case g.Format != NVFP4 && g.Global != 0:
		return fmt.Errorf("global scale %v, which only %s has", g.Global, NVFP4)
	case g.Format == Integer && (g.Bits < 2 || g.Bits > 8):
		return fmt.Errorf("grid of %d bits, want 2 to 8", g.Bits)
	case g.Format == Integer:
		return nil
	case g.Bits != info.bits:
		return fmt.Errorf("%s grid of %d bits, want %d", g.Format, g.Bits, info.bits)
	case !g.Symmetric:
		return fmt.Errorf("%s grid with zero points", g.Format)
	case info.groupSize != 0 && (g.Granularity != PerGroup || g.GroupSize != info.groupSize):
		return fmt.Errorf("%s grid of granularity %q with group size %d, want groups of %d", g.Format, g.Granularity, g.GroupSize, info.groupSize)
	case g.ScaleType != g.Format.ScaleType(g.ScaleType):
		return fmt.Errorf("%s grid with scales of %s, want %s", g.Format, g.ScaleType, info.scaleType)
	}
	return nil
}
