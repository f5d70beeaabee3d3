package layer

import "github.com/fettle-dev/fettle/internal/dtype"

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
