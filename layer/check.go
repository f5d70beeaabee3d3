package layer

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas64"
)

// InputError names the part of a layer's problem that no method can work with.
type InputError struct {
	Layer  string
	What   string // e.g. "weight", "H of group 0"
	Index  int    // the element, row-major; −1 where it is none in particular
	Reason string
}

func (e *InputError) Error() string {
	at := ""
	if e.Index >= 0 {
		at = fmt.Sprintf(", element %d", e.Index)
	}
	return fmt.Sprintf("layer %s: %s%s: %s", e.Layer, e.What, at, e.Reason)
}

// CheckValues refuses what would make a solver fail or write a NaN: a weight, or
// moments if there are any, of the wrong shape or not finite. means asks for the
// sums of inputs too. The errors about single values are *InputError.
func (p *Problem) CheckValues(means bool) error {
	if err := p.Check(); err != nil {
		return err
	}
	if !finite(p.FusedMax) {
		return p.Bad("largest fused weight", -1, "%v is not finite", p.FusedMax)
	}
	w := p.Weight
	for r := range w.Rows {
		for c, v := range w.Data[r*w.Stride:][:w.Cols] {
			if !finite(float64(v)) {
				return p.Bad("weight", r*w.Cols+c, "%v is not finite", v)
			}
		}
	}
	if err := p.checkSample(); err != nil || p.Moments == nil {
		return err
	}
	return checkMoments(p, means)
}

func checkMoments(prob *Problem, means bool) error {
	m := prob.Moments
	if m.Rows < 1 {
		return prob.Bad("moments", -1, "they sum %d rows, want at least one", m.Rows)
	}
	if err := checkMatrices(prob, "H", m.H); err != nil {
		return err
	}
	if m.G != nil {
		if err := checkMatrices(prob, "G", m.G); err != nil {
			return err
		}
	}
	for g, h := range m.H {
		for i := range h.Rows {
			if v := h.Data[i*h.Stride+i]; v < 0 {
				return prob.Bad(fmt.Sprintf("H of group %d", g), i*h.Cols+i, "%v on the diagonal of a Gram matrix", v)
			}
		}
	}
	if err := checkVector(prob, "target energy", prob.Energy(), prob.Weight.Rows); err != nil {
		return err
	}
	if !means {
		return nil
	}
	if err := checkVector(prob, "Σx", m.SumX, m.Groups*m.Inputs); err != nil {
		return err
	}
	return checkVector(prob, "Σx̃", m.SumXt, m.Groups*m.Inputs)
}

func checkMatrices(prob *Problem, name string, list []blas64.General) error {
	m := prob.Moments
	if len(list) != m.Groups {
		return prob.Bad(name, -1, "%d matrices for %d groups", len(list), m.Groups)
	}
	n := m.Inputs
	for g, a := range list {
		what := fmt.Sprintf("%s of group %d", name, g)
		if a.Rows != n || a.Cols != n || a.Stride < n || len(a.Data) < (n-1)*a.Stride+n {
			return prob.Bad(what, -1, "%d×%d matrix with stride %d and %d values, want %d×%d", a.Rows, a.Cols, a.Stride, len(a.Data), n, n)
		}
		for i := range n {
			for j, v := range a.Data[i*a.Stride:][:a.Cols] {
				if !finite(v) {
					return prob.Bad(what, i*n+j, "%v is not finite", v)
				}
			}
		}
	}
	return nil
}

func checkVector(prob *Problem, name string, values []float64, want int) error {
	if len(values) != want {
		return prob.Bad(name, -1, "%d values, want %d", len(values), want)
	}
	for i, v := range values {
		if !finite(v) {
			return prob.Bad(name, i, "%v is not finite", v)
		}
	}
	return nil
}

// Bad returns an *InputError of the problem. An index of −1 is no element in
// particular.
func (p *Problem) Bad(what string, index int, format string, args ...any) error {
	return &InputError{p.Layer, what, index, fmt.Sprintf(format, args...)}
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
