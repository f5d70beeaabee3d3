package layer

import (
	"errors"
	"fmt"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// LowRank is what is added to a layer's compressed weight: B·A, of rank A.Rows.
type LowRank struct {
	B Factor // out×rank, stored transposed: its Rows are the rank, its Cols the outputs
	A Factor // rank×in
}

// Rank returns the rank.
func (l *LowRank) Rank() int { return l.A.Rows }

// Factor is one factor of a low-rank term, a Rows×Cols matrix with one row for
// each component: values as they are stored, or codes on a symmetric grid with one
// scale a row.
type Factor struct {
	Rows, Cols int
	Type       dtype.DType // of the values, or of the grid's scales
	Values     []float32   // row-major, each exact in Type; nil where there are codes
	Grid       Grid        // symmetric, per channel
	Codes      []int8      // row-major; nil where there are values
}

// Row writes row r of the factor to dst.
func (f *Factor) Row(dst []float32, r int) {
	if f.Codes == nil {
		copy(dst, f.Values[r*f.Cols:][:f.Cols])
		return
	}
	f.Grid.Dequantize(dst, f.Codes[r*f.Cols:][:f.Cols], r)
}

// check reports the first thing that makes the term unfit for a rows×cols weight.
func (l *LowRank) check(rows, cols int) error {
	if l.A.Rows < 1 || l.B.Rows != l.A.Rows || l.A.Cols != cols || l.B.Cols != rows {
		return fmt.Errorf("low-rank factors of %d×%d and %d×%d for a %d×%d weight", l.B.Cols, l.B.Rows, l.A.Rows, l.A.Cols, rows, cols)
	}
	if err := l.B.check(); err != nil {
		return errors.New("low-rank factor B: " + err.Error()) // not wrapped: a WeightError would not be of the weight
	}
	if err := l.A.check(); err != nil {
		return errors.New("low-rank factor A: " + err.Error())
	}
	return nil
}

func (f *Factor) check() error {
	if !storable(f.Type) {
		return fmt.Errorf("values or scales of type %s", f.Type)
	}
	if f.Codes == nil {
		return checkValues(f.Values, f.Rows, f.Cols, f.Type)
	}
	g := &f.Grid
	if f.Values != nil || g.Format != Integer || !g.Symmetric || g.Granularity != PerChannel || g.ScaleType != f.Type {
		return fmt.Errorf("codes on a grid that is not symmetric, one of integers and %s scales per channel, or values beside them", f.Type)
	}
	if err := g.Check(f.Rows, f.Cols); err != nil {
		return err
	}
	for i, scale := range g.Scales {
		if v := scale * 256; v-v != 0 {
			return fmt.Errorf("scale %d is %v: its codes would be infinite", i, scale)
		}
	}
	return checkCodes(g, f.Codes, f.Rows, f.Cols)
}

// lowRankSum adds B·A to rows of a weight; nil adds nothing.
type lowRankSum struct {
	b, a Factor    // of values
	row  []float32 // of the product
}

func newSum(l *LowRank) *lowRankSum {
	if l == nil {
		return nil
	}
	return &lowRankSum{b: l.B.dequantized(), a: l.A.dequantized(), row: make([]float32, l.A.Cols)}
}

// dequantized returns the factor with all its values.
func (f *Factor) dequantized() Factor {
	if f.Codes == nil {
		return *f
	}
	out := Factor{Rows: f.Rows, Cols: f.Cols, Type: f.Type, Values: make([]float32, f.Rows*f.Cols)}
	for r := range f.Rows {
		f.Row(out.Values[r*f.Cols:][:f.Cols], r)
	}
	return out
}

func (s *lowRankSum) addRow(dst []float32, r int) {
	if s == nil {
		return
	}
	sum := s.row[:len(dst)]
	clear(sum)
	k := 0
	for ; k+4 <= s.a.Rows; k += 4 { // four at a time, for fewer loads and stores
		b0, a0 := s.component(k, r)
		b1, a1 := s.component(k+1, r)
		b2, a2 := s.component(k+2, r)
		b3, a3 := s.component(k+3, r)
		for c, v := range sum {
			v += float32(b0 * a0[c]) // the conversions forbid fused multiply-adds
			v += float32(b1 * a1[c])
			v += float32(b2 * a2[c])
			v += float32(b3 * a3[c])
			sum[c] = v
		}
	}
	for ; k < s.a.Rows; k++ {
		b, a := s.component(k, r)
		for c, v := range a {
			sum[c] += float32(b * v)
		}
	}
	for c, v := range sum {
		dst[c] += v
	}
}

// component returns B's element of row r and A's row of a component.
func (s *lowRankSum) component(k, r int) (b float32, a []float32) {
	return s.b.Values[k*s.b.Cols+r], s.a.Values[k*s.a.Cols:][:len(s.row)]
}
