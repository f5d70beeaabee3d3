package loader

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/x448/float16"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// ggufType is a tensor type of GGUF: plain elements, or blocks of values that share
// scales.
type ggufType struct {
	name  string
	block int         // values of a block, 1 of plain elements
	size  int         // bytes of a block; 0 where the type is unknown
	dtype dtype.DType // of plain elements
	// decode writes a block's values. nil for plain elements, and for types that
	// cannot be read. The order of its operations is that of ggml's reference code,
	// each rounded to float32, so that values are the same.
	decode func(dst []float32, b []byte)
}

// ggufTypes are GGUF's types by their number.
var ggufTypes = map[uint32]ggufType{
	0:  {name: "F32", block: 1, size: 4, dtype: dtype.F32},
	1:  {name: "F16", block: 1, size: 2, dtype: dtype.F16},
	2:  {name: "Q4_0", block: 32, size: 18, decode: decodeQ4_0},
	3:  {name: "Q4_1", block: 32, size: 20, decode: decodeQ4_1},
	6:  {name: "Q5_0", block: 32, size: 22, decode: decodeQ5_0},
	7:  {name: "Q5_1", block: 32, size: 24, decode: decodeQ5_1},
	8:  {name: "Q8_0", block: 32, size: 34, decode: decodeQ8_0},
	9:  {name: "Q8_1", block: 32, size: 36, decode: decodeQ8_1},
	10: {name: "Q2_K", block: 256, size: 84, decode: decodeQ2_K},
	11: {name: "Q3_K", block: 256, size: 110, decode: decodeQ3_K},
	12: {name: "Q4_K", block: 256, size: 144, decode: decodeQ4_K},
	13: {name: "Q5_K", block: 256, size: 176, decode: decodeQ5_K},
	14: {name: "Q6_K", block: 256, size: 210, decode: decodeQ6_K},
	15: {name: "Q8_K", block: 256, size: 292},
	16: {name: "IQ2_XXS", block: 256, size: 66},
	17: {name: "IQ2_XS", block: 256, size: 74},
	18: {name: "IQ3_XXS", block: 256, size: 98},
	19: {name: "IQ1_S", block: 256, size: 50},
	20: {name: "IQ4_NL", block: 32, size: 18, decode: decodeIQ4_NL},
	21: {name: "IQ3_S", block: 256, size: 110},
	22: {name: "IQ2_S", block: 256, size: 82},
	23: {name: "IQ4_XS", block: 256, size: 136, decode: decodeIQ4_XS},
	24: {name: "I8", block: 1, size: 1, dtype: dtype.I8},
	25: {name: "I16", block: 1, size: 2, dtype: dtype.I16},
	26: {name: "I32", block: 1, size: 4, dtype: dtype.I32},
	27: {name: "I64", block: 1, size: 8, dtype: dtype.I64},
	28: {name: "F64", block: 1, size: 8, dtype: dtype.F64},
	29: {name: "IQ1_M", block: 256, size: 56},
	30: {name: "BF16", block: 1, size: 2, dtype: dtype.BF16},
	34: {name: "TQ1_0", block: 256, size: 54},
	35: {name: "TQ2_0", block: 256, size: 66},
	39: {name: "MXFP4", block: 32, size: 17, decode: decodeMXFP4},
}

// ggufTypeOf returns the type of a number, without a size where it is unknown.
func ggufTypeOf(number uint32) ggufType {
	if t, ok := ggufTypes[number]; ok {
		return t
	}
	return ggufType{name: fmt.Sprintf("type %d", number)}
}

// unreadable returns why tensors of the type cannot be read, "" for others.
func (t ggufType) unreadable() string {
	switch {
	case t.size == 0:
		return fmt.Sprintf("GGUF's %s is unknown", t.name)
	case t.dtype == dtype.Invalid && t.decode == nil:
		return fmt.Sprintf("GGUF's %s blocks cannot be read", t.name)
	}
	return ""
}

// blockReader gives the values of blocks as little-endian F32, decoded as they are
// read. It stands in for the data of a tensor's storage, so that rows, views and
// all that reads tensors know nothing of blocks.
type blockReader struct {
	kind ggufType
	data io.ReaderAt
	base int64 // of the blocks in data
	size int64 // bytes of the blocks
}

func (r *blockReader) blocks() int64 { return r.size / int64(r.kind.size) }

// blockBuffer is how many bytes of blocks are read at once.
const blockBuffer = 32 << 10

// ReadAt decodes the values from byte off of the F32 values on.
func (r *blockReader) ReadAt(p []byte, off int64) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	wide := int64(4 * r.kind.block) // bytes of a block's values
	first, skip := off/wide, int(off%wide)
	left := min((int64(skip+len(p))+wide-1)/wide, r.blocks()-first)
	most := min(left, int64(blockBuffer/r.kind.size))
	if left <= 0 {
		return 0, io.EOF
	}
	raw := make([]byte, most*int64(r.kind.size))
	values := make([]float32, most*int64(r.kind.block))
	decoded := make([]byte, most*wide)
	for ; left > 0; left -= most {
		most = min(most, left)
		raw = raw[:most*int64(r.kind.size)]
		if err := readAt(r.data, raw, r.base+first*int64(r.kind.size)); err != nil {
			return n, err
		}
		for i := range int(most) {
			r.kind.decode(values[i*r.kind.block:][:r.kind.block], raw[i*r.kind.size:][:r.kind.size])
		}
		if err := dtype.F32.FromFloat32(decoded, values[:int(most)*r.kind.block]); err != nil {
			return n, err
		}
		n += copy(p[n:], decoded[skip:most*wide])
		first, skip = first+most, 0
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// stored returns the blocks of a tensor that is stored in blocks.
func (t Tensor) stored() (r *blockReader, ok bool) {
	if t.storage == nil || t.keep != nil {
		return nil, false
	}
	r, ok = t.storage.data.(*blockReader)
	return r, ok
}

// Encoding names the blocks that a GGUF file stores a tensor in, such as Q4_K, or what
// its Decoded says; the tensor reads as F32. It is "" where the elements are stored as
// they are, and for what a view has cut.
func (t Tensor) Encoding() string {
	if d := t.Decoded(); d != nil {
		return d.Encoding
	}
	if r, ok := t.stored(); ok {
		return r.kind.name
	}
	return ""
}

// StoredBytes returns the bytes of the tensor's blocks or codes in the file, and Bytes
// for a tensor without an Encoding.
func (t Tensor) StoredBytes() int64 {
	if d := t.Decoded(); d != nil {
		return d.Bytes
	}
	if r, ok := t.stored(); ok {
		return r.size
	}
	return t.Bytes()
}

// ReadStored reads a tensor's blocks as the file has them, and a tensor without an
// Encoding as ReadBytes does. len(dst) must be the tensor's StoredBytes. Errors are
// those of ReadFloat32.
func (c *Checkpoint) ReadStored(name string, dst []byte) error {
	t, err := c.find(name)
	if err != nil {
		return err
	}
	r, ok := t.stored()
	if !ok {
		return c.ReadBytes(name, dst)
	}
	if int64(len(dst)) != r.size {
		return fmt.Errorf("tensor %q has %d bytes of blocks, but the destination has room for %d", name, r.size, len(dst))
	}
	return c.explain(name, readAt(r.data, dst, r.base))
}

// half reads a float16.
func half(b []byte) float32 { return float16.Frombits(binary.LittleEndian.Uint16(b)).Float32() }

// Blocks of 32 values: a scale d, for some a least value m or a fifth bit of each
// code, and codes of four bits, those of values j and j+16 in byte j.

func decodeQ4_0(dst []float32, b []byte) {
	d := half(b)
	for j, q := range b[2:18] {
		dst[j] = float32(int(q&15)-8) * d
		dst[j+16] = float32(int(q>>4)-8) * d
	}
}

func decodeQ4_1(dst []float32, b []byte) {
	d, m := half(b), half(b[2:])
	for j, q := range b[4:20] {
		dst[j] = float32(float32(q&15)*d) + m
		dst[j+16] = float32(float32(q>>4)*d) + m
	}
}

func decodeQ5_0(dst []float32, b []byte) {
	d, high := half(b), binary.LittleEndian.Uint32(b[2:])
	for j, q := range b[6:22] {
		dst[j] = float32(int(q&15)|int(high>>j&1)<<4-16) * d
		dst[j+16] = float32(int(q>>4)|int(high>>(j+16)&1)<<4-16) * d
	}
}

func decodeQ5_1(dst []float32, b []byte) {
	d, m, high := half(b), half(b[2:]), binary.LittleEndian.Uint32(b[4:])
	for j, q := range b[8:24] {
		dst[j] = float32(float32(int(q&15)|int(high>>j&1)<<4)*d) + m
		dst[j+16] = float32(float32(int(q>>4)|int(high>>(j+16)&1)<<4)*d) + m
	}
}

func decodeQ8_0(dst []float32, b []byte) { decodeBytes(dst, b[2:34], half(b)) }

// decodeQ8_1 leaves out the block's sum, which dot products want.
func decodeQ8_1(dst []float32, b []byte) { decodeBytes(dst, b[4:36], half(b)) }

func decodeBytes(dst []float32, codes []byte, d float32) {
	for j, q := range codes {
		dst[j] = float32(int8(q)) * d
	}
}

// nonlinear are the values of IQ4's codes.
var nonlinear = [16]float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

func decodeIQ4_NL(dst []float32, b []byte) { decodeTable(dst, b[2:18], half(b), &nonlinear) }

// fp4 are the values of E2M1's codes, doubled.
var fp4 = [16]float32{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}

func decodeMXFP4(dst []float32, b []byte) {
	// Half of 2^(e−127), since the values are doubled.
	decodeTable(dst, b[1:17], float32(math.Ldexp(1, int(b[0])-128)), &fp4)
}

func decodeTable(dst []float32, codes []byte, d float32, table *[16]float32) {
	for j, q := range codes {
		dst[j] = d * table[q&15]
		dst[j+16] = d * table[q>>4]
	}
}

// Blocks of 256 values in sub-blocks of 16 or 32 with integer scales of their own,
// of which d is the unit (and dmin that of the least values).

func decodeQ2_K(dst []float32, b []byte) {
	scales, codes, d, dmin := b[:16], b[16:80], half(b[80:]), half(b[82:])
	for i, s := range scales { // 16 values each
		scale, least := d*float32(s&15), dmin*float32(s>>4)
		from, shift := codes[i/8*32+i%2*16:], i%8/2*2
		for j := range 16 {
			dst[16*i+j] = float32(scale*float32(from[j]>>shift&3)) - least
		}
	}
}

func decodeQ3_K(dst []float32, b []byte) {
	high, codes, scales, d := b[:32], b[32:96], b[96:108], half(b[108:])
	for i := range 16 { // 16 values each
		s := scales[i%8]>>(i/8*4)&15 | scales[8+i%4]>>(i/4*2)&3<<4
		scale := d * float32(int(s)-32)
		from, shift, bit, mask := codes[i/8*32+i%2*16:], i%8/2*2, i/2, high[i%2*16:]
		for j := range 16 {
			q := int(from[j] >> shift & 3)
			if mask[j]>>bit&1 == 0 {
				q -= 4
			}
			dst[16*i+j] = scale * float32(q)
		}
	}
}

// scaleMin returns the scale and the least value of sub-block i of 8, six bits each
// in 12 bytes.
func scaleMin(b []byte, i int) (scale, least byte) {
	if i < 4 {
		return b[i] & 63, b[i+4] & 63
	}
	return b[i+4]&15 | b[i-4]>>6<<4, b[i+4]>>4 | b[i]>>6<<4
}

func decodeQ4_K(dst []float32, b []byte) {
	d, dmin, scales, codes := half(b), half(b[2:]), b[4:16], b[16:144]
	for i := range 8 { // 32 values each
		s, m := scaleMin(scales, i)
		scale, least := d*float32(s), dmin*float32(m)
		from, shift := codes[i/2*32:], i%2*4
		for j := range 32 {
			dst[32*i+j] = float32(scale*float32(from[j]>>shift&15)) - least
		}
	}
}

func decodeQ5_K(dst []float32, b []byte) {
	d, dmin, scales, high, codes := half(b), half(b[2:]), b[4:16], b[16:48], b[48:176]
	for i := range 8 { // 32 values each
		s, m := scaleMin(scales, i)
		scale, least := d*float32(s), dmin*float32(m)
		from, shift := codes[i/2*32:], i%2*4
		for j := range 32 {
			q := from[j]>>shift&15 | high[j]>>i&1<<4
			dst[32*i+j] = float32(scale*float32(q)) - least
		}
	}
}

func decodeQ6_K(dst []float32, b []byte) {
	low, high, scales, d := b[:128], b[128:192], b[192:208], half(b[208:])
	for i, s := range scales { // 16 values each
		scale := d * float32(int8(s))
		half, part, at := i/8, i%8/2, i%2*16 // of 128, of 32, in 32
		l, h := low[half*64+part%2*32+at:], high[half*32+at:]
		for j := range 16 {
			q := l[j]>>(part/2*4)&15 | h[j]>>(part*2)&3<<4
			dst[16*i+j] = scale * float32(int(q)-32)
		}
	}
}

func decodeIQ4_XS(dst []float32, b []byte) {
	d, high, low, codes := half(b), binary.LittleEndian.Uint16(b[2:]), b[4:8], b[8:136]
	for i := range 8 { // 32 values each
		s := int(low[i/2]>>(i%2*4)&15) | int(high>>(2*i)&3)<<4
		decodeTable(dst[32*i:], codes[16*i:][:16], d*float32(s-32), &nonlinear)
	}
}
