package layer

import "math/bits"

// Mask marks the weights of a rows×cols matrix that survive pruning. Rows begin
// at a word of their own; bits past the last column are 0.
type Mask struct {
	Rows, Cols int
	Bits       []uint64 // Stride() words for each row, column c at bit c%64 of word c/64
}

// NewMask returns a mask in which no weight survives.
func NewMask(rows, cols int) *Mask {
	m := &Mask{Rows: rows, Cols: cols}
	m.Bits = make([]uint64, rows*m.Stride())
	return m
}

// Stride returns the words of a row.
func (m *Mask) Stride() int { return (m.Cols + 63) / 64 }

// Row returns the words of row r.
func (m *Mask) Row(r int) []uint64 { return m.Bits[r*m.Stride():][:m.Stride()] }

// At reports whether the weight at (r, c) survives.
func (m *Mask) At(r, c int) bool { return m.Bits[r*m.Stride()+c/64]>>(c%64)&1 != 0 }

// Set makes the weight at (r, c) survive, or not.
func (m *Mask) Set(r, c int, survives bool) {
	word, bit := &m.Bits[r*m.Stride()+c/64], uint64(1)<<(c%64)
	if survives {
		*word |= bit
	} else {
		*word &^= bit
	}
}

// Survivors counts the weights that survive.
func (m *Mask) Survivors() int {
	n := 0
	for _, w := range m.Bits {
		n += bits.OnesCount64(w)
	}
	return n
}

// Sparsity returns the share of weights that do not survive.
func (m *Mask) Sparsity() float64 {
	return 1 - float64(m.Survivors())/float64(m.Rows*m.Cols)
}
