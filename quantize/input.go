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
	fail := func(what string, index int, format string, args ...any) error {
		return &InputError{prob.Layer, what, index, fmt.Sprintf(format, args...)}
	}
	switch prob.ScaleType {
	case dtype.F64, dtype.F32, dtype.F16, dtype.BF16:
	default:
		return fail("scale type", -1, "%s, want F32, F16, BF16 or F64", prob.ScaleType)
	}
	w := prob.Weight
	for r := range w.Rows {
		for c, v := range rowOf32(w, r) {
			if !finite(float64(v)) {
				return fail("weight", r*w.Cols+c, "%v is not finite", v)
			}
		}
	}
	m := prob.Moments
	if m == nil {
		if o.NeedsMoments() {
			return fmt.Errorf("layer %s: %s: %w", prob.Layer, o.Method, ErrNoMoments)
		}
		return nil
	}
	if m.Rows < 1 {
		return fail("moments", -1, "they sum %d rows, want at least one", m.Rows)
	}
	matrices := map[string][]blas64.General{"H": m.H}
	if m.G != nil {
		matrices["G"] = m.G
	}
	for _, name := range []string{"H", "G"} {
		list, ok := matrices[name]
		if !ok {
			continue
		}
		if len(list) != m.Groups {
			return fail(name, -1, "%d matrices for %d groups", len(list), m.Groups)
		}
		for g, a := range list {
			what := fmt.Sprintf("%s of group %d", name, g)
			n := m.Inputs
			if a.Rows != n || a.Cols != n || a.Stride < n || len(a.Data) < (n-1)*a.Stride+n {
				return fail(what, -1, "%d×%d matrix with stride %d and %d values, want %d×%d", a.Rows, a.Cols, a.Stride, len(a.Data), n, n)
			}
			for i := range n {
				for j, v := range rowOf64(a, i) {
					if !finite(v) {
						return fail(what, i*n+j, "%v is not finite", v)
					}
					if i == j && v < 0 && name == "H" {
						return fail(what, i*n+j, "%v on the diagonal of a Gram matrix", v)
					}
				}
			}
		}
	}
	vectors := []struct {
		name   string
		values []float64
		want   int
	}{
		{"target energy", prob.Energy(), w.Rows},
		{"Σx", m.SumX, m.Groups * m.Inputs},
		{"Σx̃", m.SumXt, m.Groups * m.Inputs},
	}
	for _, v := range vectors {
		if v.name != "target energy" && !o.BiasCorrection {
			continue
		}
		if len(v.values) != v.want {
			return fail(v.name, -1, "%d values, want %d", len(v.values), v.want)
		}
		for i, x := range v.values {
			if !finite(x) {
				return fail(v.name, i, "%v is not finite", x)
			}
		}
	}
	return nil
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

func rowOf32(a blas32.General, i int) []float32 { return a.Data[i*a.Stride:][:a.Cols] }
func rowOf64(a blas64.General, i int) []float64 { return a.Data[i*a.Stride:][:a.Cols] }
