package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// file returns a file with the given header text and size of data.
func file(header string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	b = append(b, header...)
	return append(b, make([]byte, data)...)
}

func read(b []byte) (*Header, error) { return ReadHeader(bytes.NewReader(b), int64(len(b))) }

func raw(b []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}
}

func TestWriteKnownBytes(t *testing.T) {
	var b bytes.Buffer
	err := Write(&b, []Source{
		{"z<", dtype.F16, []int{2}, raw([]byte{1, 2, 3, 4})},
		{"a", dtype.U8, nil, raw([]byte{9})},
	}, map[string]string{"b": "é", "a": "x"})
	if err != nil {
		t.Fatal(err)
	}
	header := `{"__metadata__":{"a":"x","b":"é"},` +
		`"z<":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},` +
		`"a":{"dtype":"U8","shape":[],"data_offsets":[4,5]}}`
	for len(header)%8 != 0 {
		header += " "
	}
	want := append(file(header, 0), 1, 2, 3, 4, 9)
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var sources []Source
		var want []Info
		var data []byte
		for i := range r.IntN(6) {
			d := dtype.F64 + dtype.DType(r.IntN(int(dtype.C64-dtype.F64)+1))
			shape := make([]int, r.IntN(4))
			n := d.Size()
			for j := range shape {
				shape[j] = r.IntN(4)
				n *= shape[j]
			}
			bytes := make([]byte, n)
			for j := range bytes {
				bytes[j] = byte(r.Uint32())
			}
			name := fmt.Sprintf("%d.\"\\\t层\u2028", i)
			sources = append(sources, Source{name, d, shape, raw(bytes)})
			want = append(want, Info{name, d, shape, int64(len(data)), int64(len(data) + n)})
			data = append(data, bytes...)
		}
		var b bytes.Buffer
		if err := Write(&b, sources, map[string]string{"format": "pt"}); err != nil {
			t.Fatal(err)
		}
		if size, err := Size(sources, map[string]string{"format": "pt"}); err != nil || size != int64(b.Len()) {
			t.Errorf("Size = %d, %v; Write wrote %d", size, err, b.Len())
		}
		h, err := read(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if h.DataOffset%8 != 0 {
			t.Errorf("data at %d, want a multiple of 8", h.DataOffset)
		}
		if !bytes.Equal(b.Bytes()[h.DataOffset:], data) {
			t.Error("the data differ")
		}
		if diff := cmp.Diff(want, h.Tensors); diff != "" {
			t.Error(diff)
		}
		if h.Metadata["format"] != "pt" {
			t.Errorf("metadata %v", h.Metadata)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	one := []byte{0}
	for name, sources := range map[string][]Source{
		"a source that writes too little": {{"a", dtype.F16, nil, raw(one)}},
		"a source that writes too much":   {{"a", dtype.U8, nil, raw([]byte{0, 0})}},
		"a source that ignores the error": {{"a", dtype.U8, nil, func(w io.Writer) error {
			_, _ = w.Write(one)
			_, _ = w.Write(one)
			return nil
		}}},
		"the same name twice":  {{"a", dtype.U8, nil, raw(one)}, {"a", dtype.U8, nil, raw(one)}},
		"the metadata's name":  {{"__metadata__", dtype.U8, nil, raw(one)}},
		"a name not in UTF-8":  {{"\xff", dtype.U8, nil, raw(one)}},
		"an invalid type":      {{"a", dtype.Invalid, nil, raw(nil)}},
		"a negative dimension": {{"a", dtype.U8, []int{-1}, raw(nil)}},
		"an overflow":          {{"a", dtype.U8, []int{1 << 40, 1 << 40}, raw(nil)}},
		"an overflowing sum":   {{"a", dtype.U8, []int{1 << 62}, raw(nil)}, {"b", dtype.U8, []int{1 << 62}, raw(nil)}},
	} {
		var bad *Error
		if err := Write(io.Discard, sources, nil); !errors.As(err, &bad) {
			t.Errorf("%s: error %v, want an *Error", name, err)
		}
	}
	failed := errors.New("disk full")
	err := Write(io.Discard, []Source{{"a", dtype.U8, nil, func(io.Writer) error { return failed }}}, nil)
	if !errors.Is(err, failed) {
		t.Errorf("error %v, want the source's own", err)
	}
}

func TestReadHeader(t *testing.T) {
	const a = `"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}`
	good := map[string][]byte{
		"no tensors":        file(`{}`, 0),
		"trailing spaces":   file(`{`+a+"} \n\t ", 4),
		"unknown field":     file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"note":{"x":[1]}}}`, 4),
		"zero-size tensors": file(`{"b":{"dtype":"F32","shape":[0,9],"data_offsets":[4,4]},`+a+`,"c":{"dtype":"F32","shape":[3,0],"data_offsets":[0,0]}}`, 4),
		"surrogate pair":    file(`{"\ud83d\ude00":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4),
		"escaped backslash": file(`{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4),
	}
	for name, b := range good {
		if _, err := read(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := map[string][]byte{
		"empty":                  nil,
		"seven bytes":            make([]byte, 7),
		"no header":              file("", 0),
		"length beyond the file": file(`{}`, 0)[:9],
		"length of 2^64-1":       append(bytes.Repeat([]byte{0xff}, 8), '{', '}'),
		"length over 100 MB":     append(binary.LittleEndian.AppendUint64(nil, MaxHeader+1), '{', '}'),
		"array":                  file(`[]`, 0),
		"two objects":            file(`{}{}`, 0),
		"text behind":            file(`{} x`, 0),
		"unfinished":             file(`{`+a, 4),
		"no braces":              file(a, 4),
		"null tensor":            file(`{"a":null}`, 0),
		"list for a tensor":      file(`{"a":[]}`, 0),
		"null shape":             file(`{"a":{"dtype":"F32","shape":null,"data_offsets":[0,4]}}`, 4),
		"string dimension":       file(`{"a":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}}`, 4),
		"exponent":               file(`{"a":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}}`, 4),
		"minus zero":             file(`{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}`, 0),
		"shape twice":            file(`{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}`, 4),
		"three offsets":          file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}`, 4),
		"number for dtype":       file(`{"a":{"dtype":1,"shape":[1],"data_offsets":[0,4]}}`, 4),
		"null metadata value":    file(`{"__metadata__":{"a":null},`+a+`}`, 4),
		"metadata twice":         file(`{"__metadata__":{"a":"","a":""},`+a+`}`, 4),
		"two metadata":           file(`{"__metadata__":{},"__metadata__":{}}`, 0),
		"half a surrogate pair":  file(`{"\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4),
		"hole at the start":      file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8),
		"bytes without tensors":  file(`{}`, 1),
		"offset of 2^63":         file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[9223372036854775808,9223372036854775812]}}`, 4),
		"deep nesting":           file(`{"a":{"x":`+strings.Repeat("[", 100_000)+`}}`, 0),
	}
	for name, b := range bad {
		_, err := read(b)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: error %v, want an *Error", name, err)
		}
	}
}

func TestFileOrder(t *testing.T) {
	h, err := read(file(`{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 2))
	if err != nil {
		t.Fatal(err)
	}
	if h.Tensors[0].Name != "a" || h.Tensors[1].Name != "b" {
		t.Errorf("order %v, want that of the data", h.Tensors)
	}
}

func TestReaderErrorsPass(t *testing.T) {
	if _, err := ReadHeader(failing{}, 100); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error %v, want the reader's", err)
	}
	var bad *Error
	if _, err := ReadHeader(bytes.NewReader(nil), 100); !errors.As(err, &bad) {
		t.Errorf("error %v, want an *Error for a file that shrank", err)
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, io.ErrClosedPipe }

// shared returns a folder of real files, and skips where it is absent.
func shared(t *testing.T, path string) string {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	dir = filepath.Join(dir, "..", "shared", "data", path)
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("%s is absent", dir)
	}
	return dir
}

func TestTortureFiles(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(shared(t, "torture/gen-safetensors"), "*.safetensors"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = read(b)
		name := filepath.Base(path)
		if isBad := strings.HasPrefix(name, "bad_"); isBad != (err != nil) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func FuzzReadHeader(f *testing.F) {
	f.Add(file(`{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"b":{"dtype":"BOOL","shape":[],"data_offsets":[8,9]}}  `, 9))
	f.Add(file(`{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}`, 4))
	f.Add(file(`{"\ud83d\ude00\\":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}`, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := read(b)
		if err != nil {
			var bad *Error
			if !errors.As(err, &bad) {
				t.Fatalf("error %v is not an *Error", err)
			}
			return
		}
		// What reads must write and read back as the same.
		var sources []Source
		for _, i := range h.Tensors {
			sources = append(sources, Source{i.Name, i.DType, i.Shape, raw(b[h.DataOffset+i.Begin : h.DataOffset+i.End])})
		}
		var again bytes.Buffer
		if err := Write(&again, sources, h.Metadata); err != nil {
			t.Fatal(err)
		}
		h2, err := read(again.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(h.Tensors, h2.Tensors, func(a, b Info) bool { return cmp.Equal(a, b) }) || !cmp.Equal(h.Metadata, h2.Metadata) {
			t.Fatalf("read %v %v, wrote and read %v %v", h.Tensors, h.Metadata, h2.Tensors, h2.Metadata)
		}
	})
}
