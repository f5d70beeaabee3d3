// Package pack holds the bit layouts that quantized codes are stored in, both
// ways.
//
// The layout of integers is that of compressed-tensors' pack_to_int32 from
// version 0.17 on; floating-point codes are stored as FP4 and FP8 say. A signed code of b bits is stored as code + 2^(b−1). The
// codes of a row follow each other without a gap, least significant bit first,
// in little-endian 32-bit words; a code may lie across two words. Each row
// starts at a word of its own, and the bits after its last code are zero.
//
// Versions before 0.17 let no code cross a word, which differs for the bits
// that do not divide 32.
package pack

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The smallest and the largest number of bits that the layouts hold.
const (
	MinBits = 2
	MaxBits = 8
)

// What can be wrong with an argument; test with errors.Is.
var (
	ErrBits   = errors.New("pack: bits outside 2…8")
	ErrLength = errors.New("pack: wrong length")
)

// RangeError is a code that the given bits cannot hold.
type RangeError struct {
	Index, Code, Bits int
}

// Error names the code and its place.
func (e *RangeError) Error() string {
	return fmt.Sprintf("pack: code %d at index %d does not fit %d bits", e.Code, e.Index, e.Bits)
}

// Words returns how many 32-bit words n codes of the given bits take.
func Words(n, bits int) int {
	// Not (n·bits + 31)/32, which overflows for shapes that a hostile file claims.
	return n/32*bits + (n%32*bits+31)/32
}

// Rows packs each row of the rows×cols matrix codes into dst, which must be
// 4·rows·Words(cols, bits) bytes long: an int32 matrix [rows, Words(cols, bits)].
func Rows(dst []byte, codes []int8, rows, cols, bits int) error {
	if err := check(dst, codes, rows, cols, Words(cols, bits), rows, bits); err != nil || len(codes) == 0 {
		return err
	}
	stride := 4 * Words(cols, bits)
	for r := range rows {
		w := writer{dst: dst, at: r * stride, step: 4}
		for c, code := range codes[r*cols:][:cols] {
			if !w.put(code, bits) {
				return &RangeError{Index: r*cols + c, Code: int(code), Bits: bits}
			}
		}
		w.flush()
	}
	return nil
}

// UnpackRows is the inverse of Rows. It ignores the bits after a row's last
// code.
func UnpackRows(codes []int8, src []byte, rows, cols, bits int) error {
	if err := check(src, codes, rows, cols, Words(cols, bits), rows, bits); err != nil || len(codes) == 0 {
		return err
	}
	stride := 4 * Words(cols, bits)
	for r := range rows {
		rd := reader{src: src, at: r * stride, step: 4}
		row := codes[r*cols:][:cols]
		for c := range row {
			row[c] = rd.get(bits)
		}
	}
	return nil
}

// Columns packs each column of the rows×cols matrix codes, that is along
// dimension 0, into dst, which must be 4·Words(rows, bits)·cols bytes long: an
// int32 matrix [Words(rows, bits), cols]. Zero points are stored so.
func Columns(dst []byte, codes []int8, rows, cols, bits int) error {
	if err := check(dst, codes, rows, cols, Words(rows, bits), cols, bits); err != nil || len(codes) == 0 {
		return err
	}
	for c := range cols {
		w := writer{dst: dst, at: 4 * c, step: 4 * cols}
		for r := range rows {
			if code := codes[r*cols+c]; !w.put(code, bits) {
				return &RangeError{Index: r*cols + c, Code: int(code), Bits: bits}
			}
		}
		w.flush()
	}
	return nil
}

// UnpackColumns is the inverse of Columns. It ignores the bits after a
// column's last code.
func UnpackColumns(codes []int8, src []byte, rows, cols, bits int) error {
	if err := check(src, codes, rows, cols, Words(rows, bits), cols, bits); err != nil || len(codes) == 0 {
		return err
	}
	for c := range cols {
		rd := reader{src: src, at: 4 * c, step: 4 * cols}
		for r := range rows {
			codes[r*cols+c] = rd.get(bits)
		}
	}
	return nil
}

// check holds the arguments of all four functions against each other: lines
// rows or columns of the packed matrix take words words each.
func check(packed []byte, codes []int8, rows, cols, words, lines, bits int) error {
	if bits < MinBits || bits > MaxBits {
		return fmt.Errorf("%w: %d", ErrBits, bits)
	}
	if rows < 0 || cols < 0 || !product(len(codes), rows, cols) {
		return fmt.Errorf("%w: %d codes for %d×%d", ErrLength, len(codes), rows, cols)
	}
	if len(packed)%4 != 0 || !product(len(packed)/4, words, lines) {
		return fmt.Errorf("%w: %d bytes for %d×%d codes of %d bits", ErrLength, len(packed), rows, cols, bits)
	}
	return nil
}

// product reports whether n = a·b, without overflow.
func product(n, a, b int) bool {
	if a == 0 || b == 0 {
		return n == 0
	}
	return n%a == 0 && n/a == b
}

// writer puts codes into words that lie step bytes apart.
type writer struct {
	dst  []byte
	step int
	at   int
	bits uint64
	n    int // valid bits in bits, fewer than 32 between calls
}

func (w *writer) put(code int8, bits int) bool {
	u := int(code) + 1<<(bits-1)
	if u < 0 || u >= 1<<bits {
		return false
	}
	w.bits |= uint64(u) << w.n
	if w.n += bits; w.n >= 32 {
		w.word()
		w.bits >>= 32
		w.n -= 32
	}
	return true
}

func (w *writer) flush() {
	if w.n > 0 {
		w.word()
	}
}

func (w *writer) word() {
	binary.LittleEndian.PutUint32(w.dst[w.at:], uint32(w.bits))
	w.at += w.step
}

// reader is the inverse of writer.
type reader struct {
	src  []byte
	step int
	at   int
	bits uint64
	n    int
}

func (r *reader) get(bits int) int8 {
	if r.n < bits {
		r.bits |= uint64(binary.LittleEndian.Uint32(r.src[r.at:])) << r.n
		r.at += r.step
		r.n += 32
	}
	u := int(r.bits & (1<<bits - 1))
	r.bits >>= bits
	r.n -= bits
	return int8(u - 1<<(bits-1))
}
