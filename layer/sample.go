package layer

import (
	"fmt"
	"strconv"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// Sample holds some of the rows that moments sum, in the order in which they
// were drawn: the first n of them are a sample of n rows. X and X̃ hold one
// rows×Inputs matrix per group, its rows one behind the other, of the same rows.
type Sample struct {
	X  []blas32.General // nil where the two streams are the same
	Xt []blas32.General
}

// Rows returns how many rows there are.
func (s *Sample) Rows() int { return s.Xt[0].Rows }

// Original returns X of a group: X̃ itself where the streams are the same.
func (s *Sample) Original(group int) blas32.General {
	if s.X == nil {
		return s.Xt[group]
	}
	return s.X[group]
}

// Activation is a function of one number.
type Activation string

// The activations.
const (
	ReLU      Activation = "relu"       // max(z, 0)
	LeakyReLU Activation = "leaky_relu" // z, times After.Slope where negative
	Sigmoid   Activation = "sigmoid"    // 1/(1 + e⁻ᶻ)
	Tanh      Activation = "tanh"
	GELU      Activation = "gelu"      // z·Φ(z), Φ being the normal distribution
	GELUTanh  Activation = "gelu_tanh" // z/2·(1 + tanh(√(2/π)·(z + 0.044715·z³)))
)

// After is what a layer's outputs go through before anything else reads them:
// f(Scaleᵢ·y + Shiftᵢ), where y = X̃ŵᵢ is output i without the layer's bias.
type After struct {
	Activation Activation
	Slope      float32   // of LeakyReLU
	Scale      []float32 // one per output, of a normalization; nil for 1
	Shift      []float32 // one per output, the layer's bias in it; nil for 0
}

// checkSample refuses a sample, or what follows the layer, of the wrong shape or
// not finite.
func (p *Problem) checkSample() error {
	if a := p.After; a != nil {
		switch a.Activation {
		case ReLU, LeakyReLU, Sigmoid, Tanh, GELU, GELUTanh:
		default:
			return p.Bad("activation after it", -1, "%q is not known", a.Activation)
		}
		for what, v := range map[string][]float32{"scale of the normalization after it": a.Scale, "shift after it": a.Shift} {
			if v != nil && len(v) != p.Weight.Rows {
				return p.Bad(what, -1, "%d values for %d outputs", len(v), p.Weight.Rows)
			}
			for i, x := range v {
				if !finite(float64(x)) {
					return p.Bad(what, i, "%v is not finite", x)
				}
			}
		}
	}
	if p.Moments == nil || p.Moments.Sample == nil {
		return nil
	}
	m, s := p.Moments, p.Moments.Sample
	if len(s.Xt) != m.Groups || s.X != nil && len(s.X) != m.Groups || (s.X == nil) != (m.G == nil) {
		return p.Bad("sample", -1, "%d and %d matrices for %d groups", len(s.X), len(s.Xt), m.Groups)
	}
	for _, list := range [][]blas32.General{s.X, s.Xt} {
		for _, a := range list {
			if a.Rows != s.Rows() || a.Rows < 1 || int64(a.Rows) > m.Rows || a.Cols != m.Inputs || a.Stride != a.Cols || len(a.Data) < a.Rows*a.Cols {
				return p.Bad("sample", -1, "a %d×%d matrix of %d rows of %d inputs", a.Rows, a.Cols, m.Rows, m.Inputs)
			}
			for i := range a.Rows {
				for j, v := range a.Data[i*a.Cols:][:a.Cols] {
					if !finite(float64(v)) {
						return p.Bad("sample", i*a.Cols+j, "%v is not finite", v)
					}
				}
			}
		}
	}
	return nil
}

// sample adds the rows of a sample, unless it is nil.
func (u *unitWriter) sample(s *Sample) {
	if s == nil {
		return
	}
	for g, a := range s.Xt {
		u.add("sample_xt."+strconv.Itoa(g), dtype.F32, []int{a.Rows, a.Cols}, float32Bytes(a.Data[:a.Rows*a.Cols]))
	}
	for g, a := range s.X {
		u.add("sample_x."+strconv.Itoa(g), dtype.F32, []int{a.Rows, a.Cols}, float32Bytes(a.Data[:a.Rows*a.Cols]))
	}
}

// readSample reads what sample added; nil where that is nothing.
func (u *unitReader) readSample(head momentsHead) *Sample {
	info, ok := u.infos["sample_xt.0"]
	if !ok {
		return nil
	}
	if len(info.Shape) != 2 || info.Shape[1] != head.Inputs || info.Shape[0] < 1 {
		u.err = fmt.Errorf("%w: a sample of shape %v", ErrUnit, info.Shape)
		return nil
	}
	read := func(name string) blas32.General {
		a := blas32.General{Rows: info.Shape[0], Cols: head.Inputs, Stride: head.Inputs}
		if raw := u.bytes(name, dtype.F32, a.Rows*a.Cols); u.err == nil {
			a.Data = make([]float32, a.Rows*a.Cols)
			u.err = dtype.F32.ToFloat32(a.Data, raw)
		}
		return a
	}
	s := &Sample{}
	for g := range head.Groups {
		s.Xt = append(s.Xt, read("sample_xt."+strconv.Itoa(g)))
		if !head.Same {
			s.X = append(s.X, read("sample_x."+strconv.Itoa(g)))
		}
	}
	return s
}
