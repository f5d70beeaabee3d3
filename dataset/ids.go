package dataset

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
)

// array is where a file's ids stand.
type array struct {
	element dtype.DType // U16, U32, I32 or I64
	shape   []int       // one or two axes
	begin   int64
}

// openArray finds the ids of a file and checks that they are all there.
func openArray(f *textFile, r io.ReaderAt, format string) (*array, error) {
	switch format {
	case U16:
		return rawArray(f, dtype.U16)
	case U32:
		return rawArray(f, dtype.U32)
	case NPY:
		a, err := parseNPY(r, f.size)
		if err != nil {
			return nil, &Error{Path: f.path, Problem: "is not an array of ids in NumPy's format", Help: "save it with numpy.save as uint16, uint32, int32 or int64, of one or two axes", Err: err}
		}
		return a, nil
	default:
		return safetensorsArray(f, r)
	}
}

func rawArray(f *textFile, element dtype.DType) (*array, error) {
	width := int64(element.Size())
	if f.size%width != 0 {
		return nil, &Error{Path: f.path, Problem: fmt.Sprintf("has %d bytes, no multiple of an id's %d", f.size, width), Help: "check that the file is whole and the format is its own"}
	}
	return &array{element: element, shape: []int{int(f.size / width)}}, nil
}

// safetensorsArray finds the tensor ids, or the only tensor.
func safetensorsArray(f *textFile, r io.ReaderAt) (*array, error) {
	header, err := safetensors.ReadHeader(r, f.size)
	if err != nil {
		return nil, &Error{Path: f.path, Problem: "is not a safetensors file", Help: "check the format", Err: err}
	}
	var t *safetensors.Info
	for i := range header.Tensors {
		if header.Tensors[i].Name == "ids" || len(header.Tensors) == 1 {
			t = &header.Tensors[i]
		}
	}
	const help = "store ids as U16, U32, I32 or I64 of one or two axes"
	if t == nil {
		return nil, &Error{Path: f.path, Problem: fmt.Sprintf("has %d tensors, none of them ids", len(header.Tensors)), Help: help}
	}
	switch t.DType {
	case dtype.U16, dtype.U32, dtype.I32, dtype.I64:
	default:
		return nil, &Error{Path: f.path, Problem: fmt.Sprintf("the tensor %s is %s", t.Name, t.DType), Help: help}
	}
	if len(t.Shape) < 1 || len(t.Shape) > 2 || t.Begin == t.End {
		return nil, &Error{Path: f.path, Problem: fmt.Sprintf("the tensor %s has shape %v", t.Name, t.Shape), Help: help}
	}
	return &array{element: t.DType, shape: t.Shape, begin: header.DataOffset + t.Begin}, nil
}

// indexIDs appends the documents of an array: its rows, or what the list of
// lengths says.
func (c *corpus) indexIDs(file int, a *array) error {
	f, width := &c.files[file], int64(a.element.Size())
	at := a.begin
	add := func(ids int64) error {
		d := document{file, at, at + ids*width}
		if at = d.end; d.end-d.begin > maxDocument {
			return &Error{Path: f.path, Problem: fmt.Sprintf("the document at byte %d has more than %d bytes", d.begin, maxDocument), Help: "divide the ids into documents with a list of lengths"}
		}
		c.documents = append(c.documents, d)
		return nil
	}
	if len(a.shape) == 2 {
		if c.options.Lengths != "" {
			return c.options.fail("a list of lengths is given for an array of two axes", "leave it out: each row is a document")
		}
		for range a.shape[0] {
			if err := add(int64(a.shape[1])); err != nil {
				return err
			}
		}
		return nil
	}
	lengths, err := c.lengths(f, a.shape[0])
	if err != nil {
		return err
	}
	for _, n := range lengths {
		if err := add(n); err != nil {
			return err
		}
	}
	return nil
}

// lengths returns the lengths of the documents of n ids: a list that must add
// up to n, or n alone.
func (c *corpus) lengths(f *textFile, n int) ([]int64, error) {
	path := c.options.Lengths
	if path == "" {
		path = strings.TrimSuffix(f.path, filepath.Ext(f.path)) + ".lengths.json"
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return []int64{int64(n)}, nil
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, &Error{Path: path, Problem: "cannot be read", Err: err}
	}
	var lengths []int64
	if err := json.Unmarshal(text, &lengths); err != nil {
		return nil, &Error{Path: path, Problem: "is not a JSON list of lengths", Help: "write it as [12, 7, …]", Err: err}
	}
	left := int64(n)
	for i, l := range lengths {
		if l < 0 || l > left {
			return nil, &Error{Path: path, Problem: fmt.Sprintf("document %d has length %d, and %d ids of %s are left", i, l, left, f.path), Help: "give the lengths of these ids"}
		}
		left -= l
	}
	if left != 0 {
		return nil, &Error{Path: path, Problem: fmt.Sprintf("the lengths leave %d ids of %s over", left, f.path), Help: "give the lengths of these ids"}
	}
	return lengths, nil
}

// appendIDs appends the ids that b holds, which must not be negative nor need
// more than 32 bits.
func appendIDs(ids []uint32, b []byte, element dtype.DType) ([]uint32, error) {
	width := element.Size()
	for at := range len(b) / width {
		p := b[at*width:]
		var v int64
		switch element {
		case dtype.U16:
			v = int64(binary.LittleEndian.Uint16(p))
		case dtype.U32:
			v = int64(binary.LittleEndian.Uint32(p))
		case dtype.I32:
			v = int64(int32(binary.LittleEndian.Uint32(p)))
		default:
			v = int64(binary.LittleEndian.Uint64(p))
		}
		if v < 0 || v > math.MaxUint32 {
			return nil, fmt.Errorf("%d at position %d is no id", v, at)
		}
		ids = append(ids, uint32(v))
	}
	return ids, nil
}
