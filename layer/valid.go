package layer

import (
	"fmt"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// WeightError is a weight that is not as its grid, its type or the mask asks for.
type WeightError struct {
	Index  int // row-major in the out×in matrix
	Reason string
}

// Error names the weight and the reason.
func (e *WeightError) Error() string { return fmt.Sprintf("weight %d: %s", e.Index, e.Reason) }

func weightError(index int, format string, args ...any) error {
	return &WeightError{Index: index, Reason: fmt.Sprintf(format, args...)}
}

// Check reports the first thing that makes the solution ill-formed: codes off
// their grid, values that their type does not hold exactly or that are not finite,
// a mask or factors of another shape, or a pruned weight that is not 0. What is
// wrong with a single weight is a *WeightError. It costs one pass over the weight.
func (s *Solution) Check() error {
	if s.Rows < 1 || s.Cols < 1 {
		return fmt.Errorf("a %d×%d weight", s.Rows, s.Cols)
	}
	if err := s.checkWeights(); err != nil {
		return err
	}
	if s.Mask != nil {
		if err := s.Mask.check(s.Rows, s.Cols); err != nil {
			return err
		}
		if err := s.checkPruned(); err != nil {
			return err
		}
	}
	if s.LowRank != nil {
		return s.LowRank.check(s.Rows, s.Cols)
	}
	return nil
}

func (s *Solution) checkWeights() error {
	if s.Values == nil {
		if s.ValueType != dtype.Invalid {
			return fmt.Errorf("no values of type %s", s.ValueType)
		}
		if err := s.Grid.Check(s.Rows, s.Cols); err != nil {
			return err
		}
		return checkCodes(&s.Grid, s.Codes, s.Rows, s.Cols)
	}
	if s.Codes != nil || s.Grid.Scales != nil {
		return fmt.Errorf("both values and codes or their grid")
	}
	return checkValues(s.Values, s.Rows, s.Cols, s.ValueType)
}

// checkPruned looks for a pruned weight that is not 0.
func (s *Solution) checkPruned() error {
	for r := range s.Rows {
		for c := range s.Cols {
			if s.Mask.At(r, c) {
				continue
			}
			i := r*s.Cols + c
			if s.Values != nil && s.Values[i] != 0 {
				return weightError(i, "pruned, but has the value %v", s.Values[i])
			}
			if s.Values == nil && int(s.Codes[i]) != s.Grid.Zero(s.Grid.Index(r, c, s.Cols)) {
				return weightError(i, "pruned, but has code %d, which does not stand for 0", s.Codes[i])
			}
		}
	}
	return nil
}

func checkCodes(g *Grid, codes []int8, rows, cols int) error {
	if len(codes) != rows*cols {
		return fmt.Errorf("%d codes for %d×%d", len(codes), rows, cols)
	}
	lo, hi := g.Range()
	for i, c := range codes {
		if int(c) < lo || int(c) > hi {
			return weightError(i, "code %d outside %d…%d", c, lo, hi)
		}
	}
	return nil
}

func checkValues(values []float32, rows, cols int, d dtype.DType) error {
	if !storable(d) {
		return fmt.Errorf("values of type %s", d)
	}
	if len(values) != rows*cols {
		return fmt.Errorf("%d values for %d×%d", len(values), rows, cols)
	}
	for i, v := range values {
		if v-v != 0 || d.Round(v) != v {
			return weightError(i, "value %v, want a finite one, exact in %s", v, d)
		}
	}
	return nil
}

// storable reports whether weights are stored as values of the type.
func storable(d dtype.DType) bool {
	return d == dtype.F64 || d == dtype.F32 || d == dtype.F16 || d == dtype.BF16
}
