// Package safetensors reads and writes the safetensors container: a length, a
// JSON header, then the tensors' bytes.
//
// Reading is as strict as the reference implementation, and it also refuses
// duplicate keys. It reads the header alone: tensor bytes are the caller's to
// read, at DataOffset + Info.Begin.
package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// MaxHeader is the longest header in bytes that the format allows.
const MaxHeader = 100_000_000

// lengthSize is the size of the header's length field.
const lengthSize = 8

// metadataKey is the one key of the header that names no tensor.
const metadataKey = "__metadata__"

// Info is a tensor's entry in the header. Begin and End are offsets in bytes
// from the start of the data.
type Info struct {
	Name       string
	DType      dtype.DType
	Shape      []int
	Begin, End int64
}

// Header is all that a file says of itself.
type Header struct {
	Tensors    []Info // in the order of their data in the file
	Metadata   map[string]string
	DataOffset int64 // where the data starts in the file
}

// Error says why bytes are not a safetensors file, or why tensors cannot be
// written as one.
type Error struct{ Reason string }

func (e *Error) Error() string { return "safetensors: " + e.Reason }

func invalid(format string, args ...any) error {
	return &Error{Reason: fmt.Sprintf(format, args...)}
}

// ReadHeader reads the header of a file of the given size. It reads nothing
// but the header. A malformed file gives an *Error; a failing reader gives its
// own error.
func ReadHeader(r io.ReaderAt, size int64) (*Header, error) {
	if size < lengthSize {
		return nil, invalid("the file has %d bytes, fewer than the 8 of a header's length", size)
	}
	var prefix [lengthSize]byte
	if err := readFull(r, prefix[:], 0); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(prefix[:])
	if n > MaxHeader {
		return nil, invalid("the header claims %d bytes, more than the %d that the format allows", n, int64(MaxHeader))
	}
	if int64(n) > size-lengthSize {
		return nil, invalid("the header claims %d bytes, but only %d follow: the file is cut short", n, size-lengthSize)
	}
	text := make([]byte, n)
	if err := readFull(r, text, lengthSize); err != nil {
		return nil, err
	}
	h, err := parseHeader(text)
	if err != nil {
		return nil, err
	}
	h.DataOffset = lengthSize + int64(n)
	return h, h.checkLayout(size - h.DataOffset)
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return invalid("the file ends at byte %d, inside its header", off+int64(n))
	}
	return err
}

// checkLayout sorts the tensors by their place and holds them against the
// data: no hole, no overlap, nothing behind the last one.
func (h *Header) checkLayout(data int64) error {
	slices.SortStableFunc(h.Tensors, func(a, b Info) int {
		return cmp.Or(cmp.Compare(a.Begin, b.Begin), cmp.Compare(a.End, b.End))
	})
	var at int64
	for _, t := range h.Tensors {
		if t.Begin != at {
			what := "a hole"
			if t.Begin < at {
				what = "an overlap"
			}
			return invalid("tensor %q starts at byte %d of the data, want %d: %s", t.Name, t.Begin, at, what)
		}
		at = t.End
	}
	switch {
	case at > data:
		return invalid("the tensors need %d bytes of data, but the file holds %d: it is cut short", at, data)
	case at < data:
		return invalid("%d bytes follow the last tensor", data-at)
	}
	return nil
}

// parseHeader parses the JSON. encoding/json alone would let pass what the
// format forbids (duplicate keys, broken Unicode), so objects are read token by
// token.
func parseHeader(text []byte) (*Header, error) {
	if !utf8.Valid(text) {
		return nil, invalid("the header is not UTF-8")
	}
	if loneSurrogate(text) {
		return nil, invalid("the header escapes half of a surrogate pair")
	}
	if len(text) == 0 || text[0] != '{' {
		return nil, invalid("the header does not start with '{'")
	}
	h := &Header{}
	seen := map[string]bool{}
	d := json.NewDecoder(bytes.NewReader(text))
	err := eachKey(d, func(name string) error {
		if seen[name] {
			return invalid("the header names %q twice", name)
		}
		seen[name] = true
		if name == metadataKey {
			return h.parseMetadata(d)
		}
		return h.parseTensor(d, name)
	})
	if err != nil {
		return nil, err
	}
	if rest := bytes.Trim(text[d.InputOffset():], " \t\r\n"); len(rest) > 0 {
		return nil, invalid("%d bytes follow the header's JSON", len(rest))
	}
	return h, nil
}

// loneSurrogate reports whether JSON text holds a \u escape that is half of a
// UTF-16 pair. encoding/json would turn it into U+FFFD, and so make one name
// of two.
func loneSurrogate(text []byte) bool {
	unit := func(at int) rune {
		if at+6 > len(text) || text[at] != '\\' || text[at+1] != 'u' {
			return 0
		}
		v, err := strconv.ParseUint(string(text[at+2:at+6]), 16, 16)
		if err != nil {
			return 0 // not JSON: left to the parser
		}
		return rune(v)
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		if u := unit(i); utf16.IsSurrogate(u) {
			if utf16.DecodeRune(u, unit(i+6)) == utf8.RuneError {
				return true
			}
			i += 10
		}
		i++ // the escaped character, which may be a backslash
	}
	return false
}

// eachKey reads a JSON object and calls value after each of its keys; value
// reads what belongs to the key.
func eachKey(d *json.Decoder, value func(key string) error) error {
	t, err := d.Token()
	if err != nil {
		return badJSON(err)
	}
	if t != json.Delim('{') {
		return invalid("found %v where the header must have an object", t)
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return badJSON(err)
		}
		key, ok := t.(string)
		if !ok {
			return invalid("found %v where the header must have a key", t)
		}
		if err := value(key); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return badJSON(err)
	}
	return nil
}

func badJSON(err error) error { return invalid("the header is not valid JSON: %v", err) }

func (h *Header) parseMetadata(d *json.Decoder) error {
	h.Metadata = map[string]string{}
	return eachKey(d, func(key string) error {
		if _, ok := h.Metadata[key]; ok {
			return invalid("the metadata names %q twice", key)
		}
		t, err := d.Token()
		if err != nil {
			return badJSON(err)
		}
		s, ok := t.(string)
		if !ok {
			return invalid("metadata %q is not a string", key)
		}
		h.Metadata[key] = s
		return nil
	})
}

func (h *Header) parseTensor(d *json.Decoder, name string) error {
	t := Info{Name: name}
	var offsets []int64
	seen := map[string]bool{}
	err := eachKey(d, func(key string) (err error) {
		if seen[key] {
			return invalid("tensor %q has %q twice", name, key)
		}
		seen[key] = true
		switch key {
		case "dtype":
			t.DType, err = parseDType(d, name)
		case "shape":
			var dims []int64
			dims, err = parseInts(d, name, key)
			t.Shape = make([]int, len(dims))
			for i, n := range dims {
				if n > math.MaxInt {
					return invalid("tensor %q has a dimension of %d", name, n)
				}
				t.Shape[i] = int(n)
			}
		case "data_offsets":
			offsets, err = parseInts(d, name, key)
		default: // the reference implementation skips fields that it does not know
			var skipped json.RawMessage
			if err := d.Decode(&skipped); err != nil {
				return badJSON(err)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, key := range []string{"dtype", "shape", "data_offsets"} {
		if !seen[key] {
			return invalid("tensor %q has no %s", name, key)
		}
	}
	if len(offsets) != 2 || offsets[0] > offsets[1] {
		return invalid("tensor %q has data_offsets %v, want a begin and an end", name, offsets)
	}
	t.Begin, t.End = offsets[0], offsets[1]
	n, ok := byteSize(t.DType, t.Shape)
	if !ok {
		return invalid("the shape %v of tensor %q overflows", t.Shape, name)
	}
	if n != t.End-t.Begin {
		return invalid("tensor %q has %d bytes of data, but %s of shape %v needs %d", name, t.End-t.Begin, t.DType, t.Shape, n)
	}
	h.Tensors = append(h.Tensors, t)
	return nil
}

func parseDType(d *json.Decoder, name string) (dtype.DType, error) {
	t, err := d.Token()
	if err != nil {
		return dtype.Invalid, badJSON(err)
	}
	s, ok := t.(string)
	if !ok {
		return dtype.Invalid, invalid("the dtype of tensor %q is not a string", name)
	}
	dt, err := dtype.Parse(s)
	if err != nil {
		return dtype.Invalid, invalid("tensor %q: %v", name, err)
	}
	return dt, nil
}

// parseInts reads an array of integers that are not negative.
func parseInts(d *json.Decoder, name, key string) ([]int64, error) {
	bad := func() error {
		return invalid("the %s of tensor %q must be a list of integers, none negative", key, name)
	}
	var numbers []json.RawMessage
	if err := d.Decode(&numbers); err != nil {
		if _, isType := errors.AsType[*json.UnmarshalTypeError](err); isType {
			return nil, bad()
		}
		return nil, badJSON(err)
	}
	if numbers == nil { // null
		return nil, bad()
	}
	ints := make([]int64, len(numbers))
	for i, n := range numbers {
		v, err := strconv.ParseUint(string(n), 10, 63)
		if err != nil {
			return nil, bad()
		}
		ints[i] = int64(v)
	}
	return ints, nil
}

// byteSize returns the bytes of a dense tensor, false where they or the
// product of the dimensions overflow.
func byteSize(d dtype.DType, shape []int) (int64, bool) {
	n := int64(d.Size())
	for _, dim := range shape {
		if dim < 0 || (n > 0 && int64(dim) > math.MaxInt64/n) {
			return 0, false
		}
		n *= int64(dim)
	}
	return n, true
}
