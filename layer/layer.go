// Package layer defines the data that travels through fettle: the second
// moments of what a layer reads, the problem of compressing it, and the
// solution. It knows neither how moments are measured nor how a solution is
// found, and it holds the one encoding of each on disk.
//
// Notation, here and everywhere in fettle: W (out×in) is a layer's weight, one
// row per output. X holds the layer's inputs in the original model and X̃ in
// the partly compressed one, one row per sample, token or image patch.
//
//	H = X̃ᵀX̃    G = X̃ᵀX (rows index X̃'s features, columns X's)
//
// The error of a candidate Ŵ for row w, with target energy e = ‖Xw‖², is
//
//	‖Xw − X̃ŵ‖² = e − 2·ŵᵀGw + ŵᵀHŵ
//
// so it follows from the moments alone.
package layer

import (
	"fmt"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// Kind says what a layer does with its weight.
type Kind string

// The kinds of layers.
const (
	Linear Kind = "linear"
	Conv2D Kind = "conv2d"
)

// Moments are the second moments of a value of the graph as a layer reads it:
// of its rows, or of its image patches. Layers that read the same value in the
// same way share them. They are sums, not means.
type Moments struct {
	Rows   int64 // rows summed: samples, tokens or patches
	Groups int   // a convolution's groups, else 1
	Inputs int   // inputs of one group: a row's length

	// H and G hold one Inputs×Inputs matrix per group. G is nil when the two
	// streams are the same here, and then equals H.
	H, G []blas64.General

	// SumX and SumXt are Σx and Σx̃, Groups·Inputs long, group after group.
	SumX, SumXt []float64

	// Energy holds, for each layer that reads the value this way, ‖Xwᵢ‖² of
	// each of its outputs in the original model, bias left out. It stands in
	// for XᵀX, which no method needs otherwise.
	Energy map[string][]float64

	// Residual is what layers that write into a residual sum are also to make
	// up for, by name. It is not part of the encoding.
	Residual map[string]*Residual

	// Sample is some of the rows themselves, for methods that need more of them
	// than their moments; nil where no layer asked for it.
	Sample *Sample
}

// Residual extends a layer's target by what the other term R of the sum that it
// writes into has lost: Y* = XWᵀ + (R − R̃), where a normalization between the
// layer and the sum divides R − R̃ by its factors.
type Residual struct {
	// Cross is X̃ᵀ(R − R̃), transposed: one (outputs of the group)×Inputs matrix
	// per group.
	Cross  []blas64.General
	Sum    []float64 // Σ(R − R̃) of each output
	Energy []float64 // ‖y*‖² of each output, the layer's bias left out
}

// Cross returns G of a group: H itself where the streams are the same.
func (m *Moments) Cross(group int) blas64.General {
	if m.G == nil {
		return m.H[group]
	}
	return m.G[group]
}

// Problem is one layer to compress, with all that a method needs to know.
// Solving it is a pure function of its content and the method's options.
type Problem struct {
	Layer  string // the layer's name, which also seeds its random numbers
	Kind   Kind
	Shape  []int // the weight's shape as stored
	Groups int   // a convolution's groups, else 1

	// Weight is out×in, where in counts the inputs of one group. Rows of group
	// g are rows g·out/Groups … (g+1)·out/Groups−1.
	Weight blas32.General

	// Type is that of the weight as stored, which pruned weights keep. Methods
	// that give codes do not look at it.
	Type dtype.DType

	// ScaleType is the type that scales are stored in, where the grid's format
	// leaves that open.
	ScaleType dtype.DType

	// FusedMax is max|w| over the weights of all layers that runtimes join with
	// this one, which share NVFP4's global scale. At most this weight's own: it
	// shares with none.
	FusedMax float64

	// Moments is nil for methods that need no data.
	Moments *Moments

	// After is the activation that alone reads the layer's outputs, perhaps through
	// a normalization; nil where something else reads them.
	After *After

	// Start is what steps before have made of the layer, nil for none. Quantizing
	// begins with its Values, and weights that its Mask lacks stay 0.
	Start *Solution

	// Aim, out×in, is what the weight should be in place of W or W̃: what is left of
	// that when a term that will be added is taken away. Empty where none is.
	Aim blas64.General
}

// Energy returns ‖Xwᵢ‖² for each output i; nil without moments.
func (p *Problem) Energy() []float64 {
	if p.Moments == nil {
		return nil
	}
	return p.Moments.Energy[p.Layer]
}

// Group returns the group that an output row belongs to.
func (p *Problem) Group(row int) int { return row / (p.Weight.Rows / p.Groups) }

// GroupRows returns the rows [from, to) of a group.
func (p *Problem) GroupRows(group int) (from, to int) {
	n := p.Weight.Rows / p.Groups
	return group * n, (group + 1) * n
}

// Check reports the first thing that makes the problem ill-formed.
func (p *Problem) Check() error {
	w := p.Weight
	switch {
	case p.Groups < 1 || w.Rows < 1 || w.Cols < 1 || w.Rows%p.Groups != 0:
		return fmt.Errorf("layer %s: %d×%d weight in %d groups", p.Layer, w.Rows, w.Cols, p.Groups)
	case w.Stride < w.Cols || len(w.Data) < (w.Rows-1)*w.Stride+w.Cols:
		return fmt.Errorf("layer %s: %d values with stride %d do not hold %d×%d", p.Layer, len(w.Data), w.Stride, w.Rows, w.Cols)
	case p.Moments == nil:
		return nil
	case p.Moments.Inputs != w.Cols || p.Moments.Groups != p.Groups:
		return fmt.Errorf("layer %s: moments of %d groups × %d inputs for a weight of %d groups × %d inputs",
			p.Layer, p.Moments.Groups, p.Moments.Inputs, p.Groups, w.Cols)
	case len(p.Energy()) != w.Rows:
		return fmt.Errorf("layer %s: %d target energies for %d outputs", p.Layer, len(p.Energy()), w.Rows)
	}
	return nil
}

// Solution is a compressed layer: codes on a grid, with what is known of the
// error that they cause.
type Solution struct {
	Layer  string
	Method string // as asked for, e.g. "adaround"
	Rows   int
	Cols   int

	Grid  Grid
	Codes []int8 // Rows×Cols, row-major, each within Grid.Range; pruned weights have the code of 0

	// Values are the weights themselves where a layer is pruned and not quantized:
	// Rows×Cols, each exact in ValueType, 0 where pruned. Grid and Codes are empty
	// then.
	Values    []float32
	ValueType dtype.DType

	Mask    *Mask    // the survivors; nil where nothing is pruned
	LowRank *LowRank // added to the weight; nil for none

	// Transposed says that the checkpoint stores the weight as Cols×Rows.
	Transposed bool

	// Bias is added to the layer's outputs, one value per row; nil for none.
	Bias []float64

	// InputScale, one value per input, is what the layer's inputs must be divided
	// by: the codes stand for W·diag(InputScale), and so do the errors of nearest
	// rounding below. nil for none.
	InputScale []float64

	Errors    Errors
	Fallbacks []Fallback
}

// Errors are sums over the calibration rows, all outputs together, in the true
// moments (no damping). They are zero for a method that was given no moments.
type Errors struct {
	Energy  float64 // ‖XWᵀ‖²
	Solved  float64 // ‖Y* − X̃Ŵᵀ‖² of this solution, less its mean where inputs were centred; Y* is XWᵀ or the residual target
	Nearest float64 // the same for nearest rounding on a min-max grid of the same shape, and where nothing is quantized for magnitude pruning of the same pattern
	Soft    float64 // AdaRound: of the relaxed weights before they were rounded; else 0
	Damping float64 // the λ that was added to H's diagonal, relative to its mean

	Pruned float64 `json:",omitempty"` // of the pruned weight, where it was quantized or compensated after
	Base   float64 `json:",omitempty"` // before a low-rank term was added, where there is one

	// Bound is what Solved cannot exceed, by the theory of GPFQ and SPFQ; 0 where
	// no bound is known, and with a low-rank term.
	Bound float64 `json:",omitempty"`
}

// Relative returns Solved/Energy, or 0 where no energy was measured.
func (e Errors) Relative() float64 { return ratio(e.Solved, e.Energy) }

// NearestRelative returns Nearest/Energy, or 0 where no energy was measured.
func (e Errors) NearestRelative() float64 { return ratio(e.Nearest, e.Energy) }

// BoundRelative returns Bound/Energy, or 0 where there is none.
func (e Errors) BoundRelative() float64 { return ratio(e.Bound, e.Energy) }

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// Fallback says where a layer did not get what was asked for.
type Fallback struct {
	Asked  string `json:"asked"`
	Got    string `json:"got"`
	Reason string `json:"reason"`
}

// Weight writes the rebuilt weight Ŵ to dst, row-major in the shape in which
// the checkpoint stores it: Base plus the low-rank term. Of that, an element is
//
//	t = (…((0 + b₀·a₀) + b₁·a₁) + …) + bᵣ₋₁·aᵣ₋₁
//
// over the components in their order, every product and every sum rounded to
// float32 and none fused; t is then added to the base in float32. The cost is
// that of one product of the factors, on the caller alone.
func (s *Solution) Weight(dst []float32) { s.rebuild(dst, s.LowRank) }

// Base writes the weight without the low-rank term to dst, as Weight does: the
// values that every reader of the written codes computes, scale·(code − zero
// point) or scale·value(code) in float32, or those that are stored themselves.
func (s *Solution) Base(dst []float32) { s.rebuild(dst, nil) }

// RowWriter returns a function that writes rows of the out×in weight, the low-rank term
// included, as Weight does. It may not be called side by side.
func (s *Solution) RowWriter() func(r int, dst []float32) {
	sum := newSum(s.LowRank)
	return func(r int, dst []float32) {
		s.baseRow(dst, r)
		sum.addRow(dst, r)
	}
}

// BaseRow writes row r of the out×in weight without the low-rank term.
func (s *Solution) BaseRow(r int, dst []float32) { s.baseRow(dst, r) }

func (s *Solution) rebuild(dst []float32, add *LowRank) {
	sum := newSum(add)
	if !s.Transposed {
		for r := range s.Rows {
			row := dst[r*s.Cols:][:s.Cols]
			s.baseRow(row, r)
			sum.addRow(row, r)
		}
		return
	}
	row := make([]float32, s.Cols)
	for r := range s.Rows {
		s.baseRow(row, r)
		sum.addRow(row, r)
		for c, v := range row {
			dst[c*s.Rows+r] = v
		}
	}
}

// baseRow writes row r of the out×in weight without the low-rank term.
func (s *Solution) baseRow(dst []float32, r int) {
	if s.Values != nil {
		copy(dst, s.Values[r*s.Cols:][:s.Cols])
		return
	}
	s.Grid.Dequantize(dst, s.Codes[r*s.Cols:][:s.Cols], r)
}
