package loader

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// GGUF is the format of llama.cpp's files, versions 2 and 3, little-endian, in one
// file or split into several.
const GGUF Format = "gguf"

// Limits of a GGUF header. Real ones take some tens of megabytes, nearly all of it
// a vocabulary, which is passed over.
const (
	maxGGUFHeader = 256 << 20 // bytes before the tensors' data
	maxGGUFKeys   = 1 << 16
	maxGGUFText   = 16 << 20 // bytes of keys and values that are kept, together
	maxGGUFValue  = 64 << 10 // bytes of a value that is kept
	maxGGUFItems  = 64       // elements of an array that is kept
	maxGGUFNested = 4        // levels of arrays
	maxGGUFDims   = 4        // ggml's own limit
	maxGGUFNames  = 64 << 20 // bytes of tensors' names, together
)

// ggufMagic starts a GGUF file.
const ggufMagic = "GGUF"

// splitPattern matches the names of a split file's parts.
var splitPattern = regexp.MustCompile(`^(.*)-([0-9]{5})-of-([0-9]{5})\.gguf$`)

// splitParts returns the paths of all parts of the split file that path is a part
// of, nil where it is not.
func splitParts(path string) []string {
	m := splitPattern.FindStringSubmatch(filepath.Base(path))
	if m == nil {
		return nil
	}
	n, err := strconv.Atoi(m[3])
	if err != nil || n < 1 {
		return nil
	}
	parts := make([]string, n)
	for i := range parts {
		parts[i] = filepath.Join(filepath.Dir(path), fmt.Sprintf("%s-%05d-of-%05d.gguf", m[1], i+1, n))
	}
	return parts
}

// ggufIn returns the GGUF file of a folder that holds one, and the first part of
// one that is split; "" where there is none.
func ggufIn(folder string) (string, error) {
	found, err := filepath.Glob(filepath.Join(escapeGlob(folder), "*.gguf"))
	if err != nil || len(found) == 0 {
		return "", err
	}
	slices.Sort(found)
	if parts := splitParts(found[0]); slices.Equal(found, parts) || len(found) == 1 {
		return found[0], nil
	}
	return "", malformed("the folder holds %d GGUF files: name one of them", len(found))
}

// escapeGlob returns a pattern that matches path alone.
func escapeGlob(path string) string {
	return regexp.MustCompile(`[*?\[\\]`).ReplaceAllString(path, `\$0`)
}

// openSplit opens all parts of a split file. Metadata is the first part's.
func (c *Checkpoint) openSplit(ctx context.Context, parts []string) error {
	for i, path := range parts {
		if err := ctx.Err(); err != nil {
			return err
		}
		f, size, err := c.addFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return malformed("the part %s is missing: download it again", filepath.Base(path))
		}
		if err != nil {
			return err
		}
		if err := c.openPart(f, size, i, len(parts)); err != nil {
			if bad, ok := errors.AsType[*FormatError](err); ok {
				bad.Path = path
			}
			return err
		}
	}
	if n := c.metadata["split.tensors.count"]; n != "" && n != strconv.Itoa(len(c.tensors)+len(c.skipped)) {
		return malformed("the parts hold %d tensors, and the first says %s", len(c.tensors)+len(c.skipped), n)
	}
	return nil
}

func (c *Checkpoint) openPart(f io.ReaderAt, size int64, i, parts int) error {
	h, err := readGGUFHeader(f, size)
	if err != nil {
		return err
	}
	for key, want := range map[string]int{"split.no": i, "split.count": parts} {
		if got, ok := h.metadata[key]; ok && got != strconv.Itoa(want) {
			return malformed("its %s is %s, and its name says %d: parts have been renamed", key, got, want)
		}
	}
	return c.addGGUF(f, size, h)
}

// openGGUF adds the tensors of one file that is not split.
func (c *Checkpoint) openGGUF(f io.ReaderAt, size int64) error {
	h, err := readGGUFHeader(f, size)
	if err != nil {
		return err
	}
	return c.addGGUF(f, size, h)
}

// addGGUF adds the tensors of a file, in the order of their data. Like llama.cpp it
// wants them to follow each other without holes, and cares for nothing behind them.
func (c *Checkpoint) addGGUF(f io.ReaderAt, size int64, h *ggufHeader) error {
	c.format = GGUF
	if c.metadata == nil {
		c.metadata = h.metadata
	}
	slices.SortStableFunc(h.tensors, func(a, b ggufTensor) int { return cmp.Compare(a.offset, b.offset) })
	at := int64(0) // where the next tensor must start
	for _, t := range h.tensors {
		known := t.kind.size > 0
		bytes, err := t.bytes()
		switch {
		case err != nil:
			return err
		case t.offset%h.alignment != 0:
			return malformed("tensor %q starts at byte %d of the data, which is no multiple of the alignment %d", t.name, t.offset, h.alignment)
		case t.offset > size-h.data || bytes > size-h.data-t.offset:
			return malformed("tensor %q wants %d bytes at byte %d of the data, but the file holds %d: it is cut short", t.name, bytes, t.offset, size-h.data)
		case at >= 0 && t.offset != at:
			what := "a hole"
			if t.offset < at {
				what = "an overlap"
			}
			return malformed("tensor %q starts at byte %d of the data, want %d: %s", t.name, t.offset, at, what)
		}
		if at = -1; known { // what follows a tensor of unknown size is taken as it comes
			at = pad(t.offset+bytes, h.alignment)
		}
		if reason := t.kind.unreadable(); reason != "" {
			c.skipped = append(c.skipped, Skipped{t.name, reason})
			continue
		}
		c.tensors = append(c.tensors, t.tensor(f, h.data+t.offset, bytes))
	}
	return nil
}

// pad rounds a position up to the alignment. Neither exceeds a file's size by
// much, so that nothing overflows.
func pad(at, alignment int64) int64 { return (at + alignment - 1) / alignment * alignment }

// ggufTensor is a tensor's entry in the header.
type ggufTensor struct {
	name   string
	kind   ggufType
	shape  []int // row-major, as PyTorch has it: the file's dimensions turned round
	offset int64 // of the data's start
}

// bytes returns what the tensor takes in the file; 0 for a type of unknown size.
func (t *ggufTensor) bytes() (int64, error) {
	elements, ok := product(t.shape)
	if !ok || elements > math.MaxInt64/8 {
		return 0, malformed("the shape %v of tensor %q overflows", t.shape, t.name)
	}
	if t.kind.size == 0 {
		return 0, nil
	}
	row := 1
	if n := len(t.shape); n > 0 {
		row = t.shape[n-1]
	}
	if row%t.kind.block != 0 {
		return 0, malformed("rows of tensor %q have %d elements, but %s has blocks of %d", t.name, row, t.kind.name, t.kind.block)
	}
	return elements / int64(t.kind.block) * int64(t.kind.size), nil
}

// tensor returns the tensor whose bytes are at an offset of a file. One in blocks
// reads as F32.
func (t *ggufTensor) tensor(f io.ReaderAt, base, bytes int64) Tensor {
	s := &storage{data: f, base: base, size: bytes}
	d := t.kind.dtype
	if t.kind.decode != nil {
		d = dtype.F32
		r := &blockReader{kind: t.kind, data: f, base: base, size: bytes}
		s = &storage{data: r, size: r.blocks() * int64(t.kind.block) * int64(d.Size())}
	}
	return Tensor{Name: t.name, DType: d, Shape: t.shape, storage: s, strides: denseStrides(t.shape)}
}

// ggufHeader is what a file says of itself.
type ggufHeader struct {
	metadata  map[string]string
	tensors   []ggufTensor
	alignment int64
	data      int64 // where the data starts
}

// ggufParser reads a header from its start to its end, and nothing behind it.
type ggufParser struct {
	r     io.ReaderAt
	in    *bufio.Reader
	pos   int64 // of the next byte
	limit int64 // where the bytes end, or all that are allowed
	long  bool  // more bytes follow the limit
	kept  int   // bytes of keys and values

	number [8]byte // what uint reads
}

func readGGUFHeader(r io.ReaderAt, size int64) (*ggufHeader, error) {
	limit := min(size, maxGGUFHeader)
	p := &ggufParser{r: r, in: bufio.NewReaderSize(io.NewSectionReader(r, 0, limit), 1<<16), limit: limit, long: limit < size}
	if err := p.skip(uint64(len(ggufMagic))); err != nil {
		return nil, err
	}
	version, err := p.uint(4)
	switch {
	case err != nil:
		return nil, err
	case version != 0 && version&0xffff == 0:
		return nil, malformed("this GGUF file is big-endian, which cannot be read: turn it round with llama.cpp's gguf_convert_endian.py")
	case version < 2 || version > 3:
		return nil, malformed("this is version %d of GGUF, versions 2 and 3 can be read: convert the model again with a current llama.cpp", version)
	}
	tensors, err := p.count("tensors", maxTensors, 8+4+4+8)
	if err != nil {
		return nil, err
	}
	keys, err := p.count("metadata keys", maxGGUFKeys, 8+4+1)
	if err != nil {
		return nil, err
	}
	h := &ggufHeader{metadata: map[string]string{}, alignment: 32}
	if err := p.readMetadata(h, keys); err != nil {
		return nil, err
	}
	for range tensors {
		t, err := p.tensor()
		if err != nil {
			return nil, err
		}
		h.tensors = append(h.tensors, t)
	}
	h.data = p.pos
	if tensors > 0 { // a file without tensors may end without padding
		h.data = pad(p.pos, h.alignment)
	}
	if h.data > size {
		return nil, malformed("the file ends at byte %d, inside the padding behind its header: it is cut short", size)
	}
	return h, nil
}

func (p *ggufParser) bad(format string, args ...any) error {
	return malformed("the GGUF header is malformed at byte %d: "+format, append([]any{p.pos}, args...)...)
}

// short reports that more bytes are wanted than there are.
func (p *ggufParser) short() error {
	if p.long {
		return malformed("the GGUF header has more than the %d bytes that are allowed", int64(maxGGUFHeader))
	}
	return malformed("the file ends at byte %d, inside its GGUF header: it is cut short", p.limit)
}

// uint reads an unsigned integer of n bytes.
func (p *ggufParser) uint(n int) (uint64, error) {
	if int64(n) > p.limit-p.pos {
		return 0, p.short()
	}
	clear(p.number[n:])
	if err := p.fill(p.number[:n]); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(p.number[:]), nil
}

// fill reads bytes that are known to be below the limit.
func (p *ggufParser) fill(b []byte) error {
	if _, err := io.ReadFull(p.in, b); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return p.short() // the file has shrunk
		}
		return err
	}
	p.pos += int64(len(b))
	return nil
}

// skip passes over bytes without reading them all.
func (p *ggufParser) skip(n uint64) error {
	if n > uint64(p.limit-p.pos) {
		return p.short()
	}
	p.pos += int64(n)
	if n <= uint64(p.in.Buffered()) {
		_, err := p.in.Discard(int(n))
		return err
	}
	p.in.Reset(io.NewSectionReader(p.r, p.pos, p.limit-p.pos))
	return nil
}

// count reads how many items follow, of which each takes some bytes at least.
func (p *ggufParser) count(what string, most uint64, each int64) (int, error) {
	n, err := p.uint(8)
	if err != nil {
		return 0, err
	}
	if n > most {
		return 0, p.bad("it has %d %s, at most %d are allowed", n, what, most)
	}
	if n > uint64((p.limit-p.pos)/each) {
		return 0, p.bad("it has %d %s, more than the %d bytes that follow can hold: the file is damaged or cut short", n, what, p.limit-p.pos)
	}
	return int(n), nil
}

// length reads a string's length.
func (p *ggufParser) length() (uint64, error) {
	n, err := p.uint(8)
	if err == nil && n > uint64(p.limit-p.pos) {
		if p.long && n <= maxGGUFHeader {
			return 0, p.short()
		}
		return 0, p.bad("a string of %d bytes exceeds the %d that follow: the file is damaged or cut short", n, p.limit-p.pos)
	}
	return n, err
}

// name reads a key or a tensor's name.
func (p *ggufParser) name(what string) (string, error) {
	n, err := p.length()
	if err != nil {
		return "", err
	}
	if n > math.MaxUint16 {
		return "", p.bad("%s of %d bytes is too long", what, n)
	}
	b := make([]byte, n)
	if err := p.fill(b); err != nil {
		return "", err
	}
	if !utf8.Valid(b) {
		return "", p.bad("%s is not UTF-8", what)
	}
	return string(b), nil
}

func (p *ggufParser) readMetadata(h *ggufHeader, keys int) error {
	seen := make(map[string]bool, keys)
	for range keys {
		key, err := p.name("a metadata key")
		if err != nil {
			return err
		}
		if seen[key] {
			return p.bad("the metadata has %q twice", key)
		}
		seen[key] = true
		kind, err := p.uint(4)
		if err != nil {
			return err
		}
		text, keep, err := p.value(kind, 0)
		if err != nil {
			return err
		}
		if p.kept += len(key) + len(text); p.kept > maxGGUFText {
			return p.bad("the metadata has more than %d bytes of keys and short values", int64(maxGGUFText))
		}
		if keep {
			h.metadata[key] = text
		}
		if key == "general.alignment" {
			n, err := strconv.ParseUint(text, 10, 32)
			if kind != ggufUint32 || err != nil || n == 0 || n&(n-1) != 0 {
				return p.bad("general.alignment is %s, want a power of two", text)
			}
			h.alignment = int64(n)
		}
	}
	return nil
}

// Types of metadata values.
const (
	ggufUint32  = 4
	ggufFloat32 = 6
	ggufBool    = 7
	ggufString  = 8
	ggufArray   = 9
	ggufFloat64 = 12
)

// ggufSizes are the bytes of the types of fixed size.
var ggufSizes = [13]int{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}

// value reads a metadata value and returns it as text. keep is false for what is
// too long, which is passed over.
func (p *ggufParser) value(kind uint64, depth int) (text string, keep bool, err error) {
	switch {
	case kind == ggufString:
		n, err := p.length()
		if err != nil {
			return "", false, err
		}
		if n > maxGGUFValue {
			return "", false, p.skip(n)
		}
		b := make([]byte, n)
		err = p.fill(b)
		return strings.ToValidUTF8(string(b), "\uFFFD"), true, err
	case kind == ggufArray:
		return p.array(depth + 1)
	case kind >= uint64(len(ggufSizes)):
		return "", false, p.bad("a metadata value has the unknown type %d", kind)
	}
	bits, err := p.uint(ggufSizes[kind])
	if err != nil {
		return "", false, err
	}
	if kind == ggufBool && bits > 1 {
		return "", false, p.bad("a boolean is %d", bits)
	}
	return scalarText(kind, bits), true, nil
}

// scalarText writes a number or a boolean.
func scalarText(kind, bits uint64) string {
	shift := 64 - 8*ggufSizes[kind]
	switch kind {
	case 1, 3, 5, 11:
		return strconv.FormatInt(int64(bits<<shift)>>shift, 10)
	case ggufFloat32:
		return strconv.FormatFloat(float64(math.Float32frombits(uint32(bits))), 'g', -1, 32)
	case ggufFloat64:
		return strconv.FormatFloat(math.Float64frombits(bits), 'g', -1, 64)
	case ggufBool:
		return strconv.FormatBool(bits == 1)
	}
	return strconv.FormatUint(bits, 10)
}

// array reads an array. Those of few and short elements are kept, as a list in
// brackets.
func (p *ggufParser) array(depth int) (text string, keep bool, err error) {
	if depth > maxGGUFNested {
		return "", false, p.bad("arrays are nested more than %d levels deep", maxGGUFNested)
	}
	kind, err := p.uint(4)
	if err != nil {
		return "", false, err
	}
	if kind >= uint64(len(ggufSizes)) {
		return "", false, p.bad("an array has elements of the unknown type %d", kind)
	}
	each := ggufSizes[kind]
	switch kind {
	case ggufString:
		each = 8
	case ggufArray:
		each = 4 + 8
	}
	n, err := p.count("array elements", math.MaxInt64, int64(each))
	if err != nil {
		return "", false, err
	}
	switch many := n > maxGGUFItems; {
	case many && ggufSizes[kind] > 0:
		return "", false, p.skip(uint64(n) * uint64(each))
	case many && kind == ggufString: // a vocabulary
		return "", false, p.skipStrings(n)
	}
	var items []string
	keep, size := n <= maxGGUFItems, 0
	for range n {
		item, whole, err := p.value(kind, depth)
		if err != nil {
			return "", false, err
		}
		if kind == ggufString {
			item = strconv.Quote(item)
		}
		size += len(item)
		if keep = keep && whole && size <= maxGGUFValue; keep {
			items = append(items, item)
		}
	}
	if !keep {
		return "", false, nil
	}
	return "[" + strings.Join(items, ", ") + "]", true, nil
}

// skipStrings passes over n strings.
func (p *ggufParser) skipStrings(n int) error {
	for range n {
		length, err := p.length()
		if err != nil {
			return err
		}
		if err := p.skip(length); err != nil {
			return err
		}
	}
	return nil
}

func (p *ggufParser) tensor() (t ggufTensor, err error) {
	if t.name, err = p.name("a tensor's name"); err != nil {
		return t, err
	}
	if p.kept += len(t.name); p.kept > maxGGUFNames {
		return t, p.bad("the tensors' names have more than %d bytes", int64(maxGGUFNames))
	}
	dims, err := p.uint(4)
	if err != nil {
		return t, err
	}
	if dims > maxGGUFDims {
		return t, p.bad("tensor %q has %d dimensions, at most %d are allowed", t.name, dims, maxGGUFDims)
	}
	t.shape = make([]int, dims)
	for i := range t.shape {
		n, err := p.uint(8)
		if err != nil {
			return t, err
		}
		if n > math.MaxInt {
			return t, p.bad("tensor %q has a dimension of %d", t.name, n)
		}
		t.shape[len(t.shape)-1-i] = int(n)
	}
	kind, err := p.uint(4)
	if err != nil {
		return t, err
	}
	t.kind = ggufTypeOf(uint32(kind))
	offset, err := p.uint(8)
	if err == nil && offset > math.MaxInt64 {
		err = p.bad("tensor %q starts at byte %d", t.name, offset)
	}
	t.offset = int64(offset)
	return t, err
}
