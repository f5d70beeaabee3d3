package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"maps"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// Source is a tensor to write. Write must write exactly the bytes that DType
// and Shape ask for: dense, row-major, little-endian.
type Source struct {
	Name  string
	DType dtype.DType
	Shape []int
	Write func(io.Writer) error
}

// Size returns the exact size in bytes of the file that Write makes of the
// same arguments. It calls no Source.Write.
func Size(tensors []Source, metadata map[string]string) (int64, error) {
	header, data, err := encodeHeader(tensors, metadata)
	if err != nil {
		return 0, err
	}
	return int64(len(header)) + data, nil
}

// Write writes the tensors in the given order. The header depends on nothing
// but the arguments: __metadata__ first with sorted keys, left out where
// metadata is nil, then the tensors in their order, then spaces up to a
// multiple of 8 bytes.
//
// It fails with an *Error, before writing anything, where a reader would refuse
// the file; and later where a Source writes more or fewer bytes than its shape
// asks for.
func Write(w io.Writer, tensors []Source, metadata map[string]string) error {
	header, _, err := encodeHeader(tensors, metadata)
	if err != nil {
		return err
	}
	if _, err := w.Write(header); err != nil {
		return err
	}
	for _, t := range tensors {
		want, _ := byteSize(t.DType, t.Shape) // encodeHeader has checked it
		c := &exactWriter{w: w, left: want}
		if err := t.Write(c); err != nil {
			return err
		}
		if c.over || c.left != 0 {
			return invalid("tensor %q wrote %d bytes, want %d", t.Name, want-c.left, want)
		}
	}
	return nil
}

// exactWriter passes on at most left bytes. Once more are written it passes on
// none of them and counts below zero, so that a Source that ignores its
// writer's errors is found out.
type exactWriter struct {
	w    io.Writer
	left int64
	over bool
}

func (c *exactWriter) Write(p []byte) (int, error) {
	if c.over || int64(len(p)) > c.left {
		c.over = true
		c.left -= int64(len(p))
		return 0, invalid("a tensor writes more bytes than its shape asks for")
	}
	n, err := c.w.Write(p)
	c.left -= int64(n)
	return n, err
}

// encodeHeader returns all bytes before the data, and the size of the data.
func encodeHeader(tensors []Source, metadata map[string]string) (header []byte, data int64, err error) {
	var b bytes.Buffer
	b.Write(make([]byte, lengthSize))
	b.WriteByte('{')
	separate := func() {
		if b.Len() > lengthSize+1 {
			b.WriteByte(',')
		}
	}
	if metadata != nil {
		if err := encodeMetadata(&b, metadata); err != nil {
			return nil, 0, err
		}
	}
	seen := map[string]bool{metadataKey: true}
	for _, t := range tensors {
		if seen[t.Name] {
			return nil, 0, invalid("the name %q is taken", t.Name)
		}
		seen[t.Name] = true
		if !utf8.ValidString(t.Name) {
			return nil, 0, invalid("the name %q is not UTF-8", t.Name)
		}
		n, ok := byteSize(t.DType, t.Shape)
		if !ok || t.DType.Size() == 0 || n > math.MaxInt64-MaxHeader-lengthSize-data {
			return nil, 0, invalid("tensor %q cannot be %s of shape %v", t.Name, t.DType, t.Shape)
		}
		separate()
		if err := encodeEntry(&b, t, data, data+n); err != nil {
			return nil, 0, err
		}
		data += n
	}
	b.WriteByte('}')
	for b.Len()%8 != 0 {
		b.WriteByte(' ')
	}
	header = b.Bytes()
	if len(header)-lengthSize > MaxHeader {
		return nil, 0, invalid("the header has %d bytes, more than the %d that the format allows", len(header)-lengthSize, int64(MaxHeader))
	}
	binary.LittleEndian.PutUint64(header, uint64(len(header)-lengthSize))
	return header, data, nil
}

func encodeMetadata(b *bytes.Buffer, metadata map[string]string) error {
	b.WriteString(`"` + metadataKey + `":{`)
	for i, key := range slices.Sorted(maps.Keys(metadata)) {
		if !utf8.ValidString(key) || !utf8.ValidString(metadata[key]) {
			return invalid("the metadata %q is not UTF-8", key)
		}
		if i > 0 {
			b.WriteByte(',')
		}
		if err := encodeJSON(b, key); err != nil {
			return err
		}
		b.WriteByte(':')
		if err := encodeJSON(b, metadata[key]); err != nil {
			return err
		}
	}
	b.WriteByte('}')
	return nil
}

func encodeEntry(b *bytes.Buffer, t Source, begin, end int64) error {
	if err := encodeJSON(b, t.Name); err != nil {
		return err
	}
	b.WriteByte(':')
	shape := t.Shape
	if shape == nil {
		shape = []int{} // a scalar's shape is [], never null
	}
	return encodeJSON(b, struct {
		DType   string   `json:"dtype"`
		Shape   []int    `json:"shape"`
		Offsets [2]int64 `json:"data_offsets"`
	}{t.DType.String(), shape, [2]int64{begin, end}})
}

// encodeJSON appends v without the newline that an Encoder adds.
func encodeJSON(b *bytes.Buffer, v any) error {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1)
	return nil
}
