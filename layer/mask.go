package layer

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

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

// Bytes returns the mask as files hold it: uint8 [Rows, ⌈Cols/8⌉], column c at bit
// c%8 of byte c/8, bits past the last column 0.
func (m *Mask) Bytes() []byte {
	n := (m.Cols + 7) / 8
	raw := make([]byte, m.Rows*n)
	var word [8]byte
	for r := range m.Rows {
		row := raw[r*n:][:n]
		for i, w := range m.Row(r) {
			binary.LittleEndian.PutUint64(word[:], w)
			copy(row[8*i:], word[:])
		}
	}
	return raw
}

// MaskFromBytes is the inverse of Bytes. It refuses another length and bits past
// the last column.
func MaskFromBytes(rows, cols int, raw []byte) (*Mask, error) {
	n := cols / 8
	if cols%8 != 0 {
		n++
	}
	if rows < 1 || cols < 1 || len(raw)%rows != 0 || len(raw)/rows != n {
		return nil, fmt.Errorf("mask of %d×%d in %d bytes", rows, cols, len(raw))
	}
	m := NewMask(rows, cols)
	var word [8]byte
	for r := range rows {
		row := m.Row(r)
		for i := range row {
			clear(word[:])
			copy(word[:], raw[r*n+8*i:(r+1)*n])
			row[i] = binary.LittleEndian.Uint64(word[:])
		}
	}
	return m, m.check(rows, cols)
}

// check reports what makes the mask unfit for a rows×cols weight.
func (m *Mask) check(rows, cols int) error {
	if m.Rows != rows || m.Cols != cols || len(m.Bits) != rows*m.Stride() {
		return fmt.Errorf("mask of %d×%d in %d words for a %d×%d weight", m.Rows, m.Cols, len(m.Bits), rows, cols)
	}
	past := cols % 64
	if past == 0 {
		return nil
	}
	for r := range rows {
		if row := m.Row(r); row[len(row)-1]>>past != 0 {
			return fmt.Errorf("row %d of the mask has bits past its %d columns", r, cols)
		}
	}
	return nil
}
