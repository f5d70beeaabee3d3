// Package safetensors reads and writes the safetensors container: a length, a
// JSON header, then the tensors' bytes.
//
// Reading is as strict as the reference implementation, and it also refuses
// duplicate keys and headers beyond MaxTensors. It reads the header alone: tensor bytes are the caller's to
// read, at DataOffset + Info.Begin.
package safetensors

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// MaxHeader is the longest header in bytes that the format allows.
const MaxHeader = 100_000_000

// Limits that the format does not have, so that a file cannot take memory out of
// proportion: tensors of a file, keys of its metadata, dimensions of a tensor.
// PyTorch has the last one too.
const (
	MaxTensors = 1 << 17
	maxDims    = 64
)

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
			return invalid("tensor %.80q starts at byte %d of the data, want %d: %s", t.Name, t.Begin, at, what)
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

// parseHeader parses the JSON.
func parseHeader(text []byte) (*Header, error) {
	if !utf8.Valid(text) {
		return nil, invalid("the header is not UTF-8")
	}
	if len(text) == 0 || text[0] != '{' {
		return nil, invalid("the header does not start with '{'")
	}
	h := &Header{}
	seen := map[string]struct{}{}
	r := &jsonReader{what: "header", text: text}
	err := r.object(func(name string) error {
		if _, again := seen[name]; again {
			return invalid("the header names %.80q twice", name)
		}
		seen[name] = struct{}{}
		if name == metadataKey {
			return h.parseMetadata(r)
		}
		if len(h.Tensors) == MaxTensors {
			return invalid("the header names more than %d tensors", MaxTensors)
		}
		return h.parseTensor(r, name)
	})
	if err != nil {
		return nil, err
	}
	if r.peek() != 0 || r.at < len(text) {
		return nil, invalid("%d bytes follow the header's JSON", len(text)-r.at)
	}
	return h, nil
}

func (h *Header) parseMetadata(r *jsonReader) error {
	if r.word("null") {
		return nil
	}
	h.Metadata = map[string]string{}
	return r.object(func(key string) error {
		if _, again := h.Metadata[key]; again {
			return invalid("the metadata names %.80q twice", key)
		}
		if len(h.Metadata) == MaxTensors {
			return invalid("the metadata has more than %d keys", MaxTensors)
		}
		if r.peek() != '"' {
			return invalid("metadata %.80q is not a string", key)
		}
		value, err := r.string()
		h.Metadata[key] = value
		return err
	})
}

func (h *Header) parseTensor(r *jsonReader, name string) error {
	t := Info{Name: name}
	var offsets []int64
	seen := [3]bool{}
	fields := [...]string{"dtype", "shape", "data_offsets"}
	err := r.object(func(key string) (err error) {
		i := slices.Index(fields[:], key)
		if i < 0 { // the reference implementation skips fields that it does not know
			return r.skip(3)
		}
		if seen[i] {
			return invalid("tensor %.80q has %.80q twice", name, key)
		}
		seen[i] = true
		switch key {
		case "dtype":
			t.DType, err = parseDType(r, name)
		case "shape":
			var dims []int64
			dims, err = parseInts(r, name, key, maxDims)
			t.Shape = make([]int, len(dims))
			for i, n := range dims {
				if n > math.MaxInt {
					return invalid("tensor %.80q has a dimension of %d", name, n)
				}
				t.Shape[i] = int(n)
			}
		case "data_offsets":
			offsets, err = parseInts(r, name, key, 2)
		}
		return err
	})
	if err != nil {
		return err
	}
	for i, key := range fields {
		if !seen[i] {
			return invalid("tensor %.80q has no %s", name, key)
		}
	}
	if len(offsets) != 2 || offsets[0] > offsets[1] {
		return invalid("tensor %.80q has data_offsets %v, want a begin and an end", name, offsets)
	}
	t.Begin, t.End = offsets[0], offsets[1]
	n, ok := byteSize(t.DType, t.Shape)
	if !ok {
		return invalid("the shape %v of tensor %.80q overflows", t.Shape, name)
	}
	if n != t.End-t.Begin {
		return invalid("tensor %.80q has %d bytes of data, but %s of shape %v needs %d", name, t.End-t.Begin, t.DType, t.Shape, n)
	}
	h.Tensors = append(h.Tensors, t)
	return nil
}

func parseDType(r *jsonReader, name string) (dtype.DType, error) {
	if r.peek() != '"' {
		return dtype.Invalid, invalid("the dtype of tensor %.80q is not a string", name)
	}
	s, err := r.string()
	if err != nil {
		return dtype.Invalid, err
	}
	dt, err := dtype.Parse(s)
	if err != nil {
		return dtype.Invalid, invalid("tensor %.80q: %v", name, err)
	}
	return dt, nil
}

// parseInts reads an array of integers that are not negative.
func parseInts(r *jsonReader, name, key string, most int) ([]int64, error) {
	var ints []int64
	err := r.list(func() error {
		text, err := r.number()
		if err != nil {
			return err
		}
		v, err := strconv.ParseUint(string(text[:min(len(text), 20)]), 10, 63) // 20 digits are too many
		if err != nil {
			return invalid("the %s of tensor %.80q must be a list of integers from 0 to 2^63-1, not %.40s", key, name, text)
		}
		if len(ints) == most {
			return invalid("the %s of tensor %.80q has more than %d numbers", key, name, most)
		}
		ints = append(ints, int64(v))
		return nil
	})
	return ints, err
}

// ReadIndex reads the index of a sharded checkpoint, which is JSON, and returns
// the file that holds each tensor. A malformed one gives an *Error.
func ReadIndex(text []byte) (map[string]string, error) {
	if !utf8.Valid(text) {
		return nil, invalid("the index is not UTF-8")
	}
	shardOf := map[string]string{}
	files := map[string]string{} // so that a name is in memory once
	r := &jsonReader{what: "index", text: text}
	err := r.object(func(key string) error {
		if key != "weight_map" {
			return r.skip(2)
		}
		if len(shardOf) > 0 {
			return invalid("the index has two weight_maps")
		}
		return r.object(func(tensor string) error {
			if _, again := shardOf[tensor]; again {
				return invalid("the index names %.80q twice", tensor)
			}
			if len(shardOf) == 2*MaxTensors {
				return invalid("the index names more than %d tensors", 2*MaxTensors)
			}
			file, err := r.string()
			if known, ok := files[file]; ok {
				file = known
			}
			files[file], shardOf[tensor] = file, file
			return err
		})
	})
	if err == nil && (r.peek() != 0 || r.at < len(text)) {
		err = invalid("%d bytes follow the index's JSON", len(text)-r.at)
	}
	if err == nil && len(shardOf) == 0 {
		err = invalid("the index has no weight_map")
	}
	return shardOf, err
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
