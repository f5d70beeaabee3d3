package export

import (
	"fmt"
	"io"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pack"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/layer"
)

// LowRank says how a weight's low-rank term is stored. The zero value is none.
type LowRank struct {
	Rank int
	Type dtype.DType // of the factors' values, or of their codes' scales
	Bits int         // of the factors' codes; 0 for values

	// Merged says that the term is added to the weight's values, which must be
	// stored in full, and that no factors are written.
	Merged bool
}

func (l LowRank) check(s Spec) error {
	switch {
	case l == LowRank{}:
		return nil
	case l.Rank < 1:
		return fmt.Errorf("low-rank factors of rank %d", l.Rank)
	case !writable(l.Type):
		return fmt.Errorf("low-rank factors of dtype %s", l.Type)
	case l.Bits != 0 && (l.Bits < pack.MinBits || l.Bits > pack.MaxBits):
		return fmt.Errorf("low-rank factors of %d bits, want %d to %d, or 0 for values", l.Bits, pack.MinBits, pack.MaxBits)
	case l.Merged && (!s.valued() || s.Pruned.Layout != MaskNone):
		return fmt.Errorf("a low-rank term merged into codes or into survivors alone; it can only be merged into values stored in full")
	}
	return nil
}

// lowRankOf returns how a solution's term is stored.
func lowRankOf(l *layer.LowRank) LowRank {
	if l == nil {
		return LowRank{}
	}
	return LowRank{Rank: l.Rank(), Type: l.A.Type, Bits: l.A.Grid.Bits}
}

// fits reports what keeps a solution's factors, which are well-formed, from being
// stored so.
func (l LowRank) fits(of *layer.LowRank) error {
	got := lowRankOf(of)
	if got.Merged = l.Merged; got != l {
		return fmt.Errorf("low-rank term is %+v, its spec says %+v", got, l)
	}
	if of != nil && (of.B.Type != of.A.Type || of.B.Grid.Bits != of.A.Grid.Bits) {
		return fmt.Errorf("low-rank factors of %s in %d bits and of %s in %d bits, want one for both",
			of.B.Type, of.B.Grid.Bits, of.A.Type, of.A.Grid.Bits)
	}
	return nil
}

// factor is one of the two factors' place in a file.
type factor struct {
	name string // of its values
	cols int    // of its codes, one row for each component
	of   func(*layer.LowRank) *layer.Factor
}

func (s Spec) factors() [2]factor {
	module := moduleOf(s.Name)
	return [2]factor{
		{module + ".lora_A.weight", s.Cols, func(l *layer.LowRank) *layer.Factor { return &l.A }},
		{module + ".lora_B.weight", s.Rows, func(l *layer.LowRank) *layer.Factor { return &l.B }},
	}
}

// lowRankSources are the tensors of the factors.
func (s Spec) lowRankSources(from func(func(io.Writer, *layer.Solution) error) func(io.Writer) error) (list []safetensors.Source) {
	l := s.LowRank
	if l.Rank == 0 || l.Merged {
		return nil
	}
	for i, f := range s.factors() {
		if l.Bits > 0 {
			list = append(list, safetensors.Source{
				Name: f.name + packedSuffix, DType: dtype.I32, Shape: []int{l.Rank, pack.Words(f.cols, l.Bits)},
				Write: from(func(w io.Writer, s *layer.Solution) error { return writeFactorCodes(w, f.name, f.of(s.LowRank)) }),
			}, safetensors.Source{
				Name: f.name + scaleSuffix, DType: l.Type, Shape: []int{l.Rank, 1},
				Write: from(func(w io.Writer, s *layer.Solution) error {
					return writeFactorValues(w, f.name+scaleSuffix, l.Type, f.of(s.LowRank).Grid.Scales)
				}),
			})
			continue
		}
		list = append(list, safetensors.Source{
			Name: f.name, DType: l.Type, Shape: s.factorShape(i),
			Write: from(func(w io.Writer, s *layer.Solution) error {
				values := f.of(s.LowRank).Values
				if i == 1 {
					values = transposed(values, l.Rank, f.cols)
				}
				return writeFactorValues(w, f.name, l.Type, values)
			}),
		})
	}
	return list
}

// factorShape returns the shape of A's or B's values. A convolution's are those of
// two convolutions, the second 1×1.
func (s Spec) factorShape(i int) []int {
	shape := []int{s.LowRank.Rank, s.Cols}
	if i == 1 {
		shape = []int{s.Rows, s.LowRank.Rank}
	}
	if s.Transposed || len(s.Shape) <= 2 {
		return shape
	}
	if i == 0 {
		return append(shape[:1], s.Shape[1:]...)
	}
	for range s.Shape[2:] {
		shape = append(shape, 1)
	}
	return shape
}

// transposed returns the cols×rows transpose of a rows×cols matrix.
func transposed(v []float32, rows, cols int) []float32 {
	t := make([]float32, len(v))
	for r := range rows {
		for c := range cols {
			t[c*rows+r] = v[r*cols+c]
		}
	}
	return t
}

func writeFactorCodes(w io.Writer, name string, f *layer.Factor) error {
	raw := make([]byte, 4*f.Rows*pack.Words(f.Cols, f.Grid.Bits))
	if err := pack.Rows(raw, f.Codes, f.Rows, f.Cols, f.Grid.Bits); err != nil {
		return &TensorError{Tensor: name + packedSuffix, Index: -1, Err: err}
	}
	_, err := w.Write(raw)
	return err
}

func writeFactorValues(w io.Writer, name string, d dtype.DType, values []float32) error {
	raw := make([]byte, len(values)*d.Size())
	if err := d.FromFloat32(raw, values); err != nil {
		return bad(name, ErrUnsupported, "%v", err)
	}
	_, err := w.Write(raw)
	return err
}

// readLowRank reads a weight's factors. Their shapes have been checked.
func (m *Model) readLowRank(s Spec) (*layer.LowRank, error) {
	if s.LowRank.Rank == 0 || s.LowRank.Merged {
		return nil, nil
	}
	both := &layer.LowRank{}
	for i, f := range s.factors() {
		found, err := m.readFactor(s.LowRank, f, i == 1)
		if err != nil {
			return nil, err
		}
		*f.of(both) = found
	}
	return both, nil
}

func (m *Model) readFactor(l LowRank, f factor, transpose bool) (layer.Factor, error) {
	out := layer.Factor{Rows: l.Rank, Cols: f.cols, Type: l.Type}
	if l.Bits == 0 {
		out.Values = make([]float32, l.Rank*f.cols)
		if err := m.file.ReadFloat32(f.name, out.Values); err != nil {
			return out, err
		}
		if transpose {
			out.Values = transposed(out.Values, f.cols, l.Rank)
		}
		return out, nil
	}
	out.Grid = layer.Grid{Bits: l.Bits, Granularity: layer.PerChannel, Symmetric: true, ScaleType: l.Type, Scales: make([]float32, l.Rank)}
	if err := m.file.ReadFloat32(f.name+scaleSuffix, out.Grid.Scales); err != nil {
		return out, err
	}
	packed, err := m.read(f.name + packedSuffix)
	if err != nil {
		return out, err
	}
	out.Codes = make([]int8, l.Rank*f.cols)
	if err := pack.UnpackRows(out.Codes, packed, l.Rank, f.cols, l.Bits); err != nil {
		return out, bad(f.name+packedSuffix, ErrCorrupt, "%v", err)
	}
	return out, nil
}

// verifyLowRank compares factors that were read with those that were to be
// written.
func (s Spec) verifyLowRank(got, want *layer.LowRank) error {
	if s.LowRank.Rank == 0 || s.LowRank.Merged {
		return nil
	}
	for _, f := range s.factors() {
		g, w := f.of(got), f.of(want)
		if err := verifyEqual(f.name, g.Values, w.Values); err != nil {
			return err
		}
		if err := verifyEqual(f.name+packedSuffix, g.Codes, w.Codes); err != nil {
			return err
		}
		if err := verifyEqual(f.name+scaleSuffix, g.Grid.Scales, w.Grid.Scales); err != nil {
			return err
		}
	}
	return nil
}
