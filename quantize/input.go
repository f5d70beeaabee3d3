package quantize

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/layer"
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

// checkProblem refuses what would make a solver fail or write a NaN.
func checkProblem(prob *layer.Problem, o Options) error {
	if err := prob.Check(); err != nil {
		return err
	}
	switch prob.ScaleType {
	case dtype.F64, dtype.F32, dtype.F16, dtype.BF16:
	default:
		if fitted, _ := o.Fit(prob.Weight.Cols); prob.ScaleType != fitted.Format.ScaleType(dtype.Invalid) || prob.ScaleType == dtype.Invalid {
			return inputError(prob, "scale type", -1, "%s, want F32, F16, BF16 or F64", prob.ScaleType)
		}
	}
	if !finite(prob.FusedMax) {
		return inputError(prob, "largest fused weight", -1, "%v is not finite", prob.FusedMax)
	}
	w := prob.Weight
	for r := range w.Rows {
		for c, v := range rowOf32(w, r) {
			if !finite(float64(v)) {
				return inputError(prob, "weight", r*w.Cols+c, "%v is not finite", v)
			}
		}
	}
	if prob.Moments == nil {
		if o.NeedsMoments() {
			if o.Range == AWQ {
				return fmt.Errorf("layer %s: %s with range awq: %w", prob.Layer, o.Method, ErrNoMoments)
			}
			return fmt.Errorf("layer %s: %s: %w", prob.Layer, o.Method, ErrNoMoments)
		}
		return nil
	}
	return checkMoments(prob, o)
}

func checkMoments(prob *layer.Problem, o Options) error {
	m := prob.Moments
	if m.Rows < 1 {
		return inputError(prob, "moments", -1, "they sum %d rows, want at least one", m.Rows)
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
				return inputError(prob, fmt.Sprintf("H of group %d", g), i*h.Cols+i, "%v on the diagonal of a Gram matrix", v)
			}
		}
	}
	if err := checkVector(prob, "target energy", prob.Energy(), prob.Weight.Rows); err != nil {
		return err
	}
	if !o.BiasCorrection {
		return nil
	}
	if err := checkVector(prob, "Σx", m.SumX, m.Groups*m.Inputs); err != nil {
		return err
	}
	return checkVector(prob, "Σx̃", m.SumXt, m.Groups*m.Inputs)
}

func checkMatrices(prob *layer.Problem, name string, list []blas64.General) error {
	m := prob.Moments
	if len(list) != m.Groups {
		return inputError(prob, name, -1, "%d matrices for %d groups", len(list), m.Groups)
	}
	n := m.Inputs
	for g, a := range list {
		what := fmt.Sprintf("%s of group %d", name, g)
		if a.Rows != n || a.Cols != n || a.Stride < n || len(a.Data) < (n-1)*a.Stride+n {
			return inputError(prob, what, -1, "%d×%d matrix with stride %d and %d values, want %d×%d", a.Rows, a.Cols, a.Stride, len(a.Data), n, n)
		}
		for i := range n {
			for j, v := range rowOf64(a, i) {
				if !finite(v) {
					return inputError(prob, what, i*n+j, "%v is not finite", v)
				}
			}
		}
	}
	return nil
}

func checkVector(prob *layer.Problem, name string, values []float64, want int) error {
	if len(values) != want {
		return inputError(prob, name, -1, "%d values, want %d", len(values), want)
	}
	for i, v := range values {
		if !finite(v) {
			return inputError(prob, name, i, "%v is not finite", v)
		}
	}
	return nil
}

func inputError(prob *layer.Problem, what string, index int, format string, args ...any) error {
	return &InputError{prob.Layer, what, index, fmt.Sprintf(format, args...)}
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

func rowOf32(a blas32.General, i int) []float32 { return a.Data[i*a.Stride:][:a.Cols] }
func rowOf64(a blas64.General, i int) []float64 { return a.Data[i*a.Stride:][:a.Cols] }
