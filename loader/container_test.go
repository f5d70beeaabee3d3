package loader

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
)

// twoTensors is a pickle over storages 0 (2 elements) and 1 (3 elements).
var twoTensors = pickled(pDict(pW, pStr("b"), pTensor("1", 3, []int{3, 1}, []int{1, 1})))

func samples(t testing.TB) map[string][]byte {
	var st bytes.Buffer
	err := safetensors.Write(&st, []safetensors.Source{
		source("w", dtype.F32, floats(1, 2), 2), source("b", dtype.F32, floats(3, 4, 5), 3, 1),
	}, map[string]string{"format": "pt"})
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"zip":         torchZip(t, twoTensors, []float32{1, 2}, []float32{3, 4, 5}),
		"legacy":      torchLegacy(twoTensors, []float32{1, 2}, []float32{3, 4, 5}),
		"safetensors": st.Bytes(),
	}
}

func source(name string, d DType, data []byte, shape ...int) safetensors.Source {
	return safetensors.Source{Name: name, DType: d, Shape: shape, Write: writer(data)}
}

func TestCheckpoint(t *testing.T) {
	formats := map[string]Format{"zip": PyTorchZip, "legacy": PyTorchLegacy, "safetensors": Safetensors}
	for name, content := range samples(t) {
		path := write(t, "model.bin", content)
		c, err := Open(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		if c.Path() != path || c.Format() != formats[name] || c.Size() != int64(len(content)) {
			t.Errorf("%s: path %q, format %q, size %d", name, c.Path(), c.Format(), c.Size())
		}
		if diff := cmp.Diff([]string{"w", "b"}, names(c)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		b, ok := c.Lookup("b")
		if !ok || b.DType != dtype.F32 || !cmp.Equal(b.Shape, []int{3, 1}) || b.Elements() != 3 || b.Bytes() != 12 {
			t.Errorf("%s: b is %v, %v", name, b, ok)
		}
		if diff := cmp.Diff([]float32{3, 4, 5}, mustRead(t, c, "b")); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		raw := make([]byte, 12)
		if err := c.ReadBytes("b", raw); err != nil || !bytes.Equal(raw, floats(3, 4, 5)) {
			t.Errorf("%s: bytes %v, %v", name, raw, err)
		}
		if want := map[string]string{"format": "pt"}; name == "safetensors" && !cmp.Equal(c.Metadata(), want) {
			t.Errorf("metadata %v", c.Metadata())
		}
		if err := c.ReadFloat32("x", nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: unknown name: %v", name, err)
		}
		if err := c.ReadFloat32("b", make([]float32, 2)); err == nil {
			t.Errorf("%s: a destination of the wrong length is accepted", name)
		}
		if err := c.ReadBytes("b", make([]byte, 13)); err == nil {
			t.Errorf("%s: a destination of the wrong length is accepted", name)
		}
		testHash(t, c, content)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := c.ReadFloat32("b", make([]float32, 3)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: reading after Close: %v", name, err)
		}
	}
}

// TestPrefixes opens every prefix of every sample: each is an error, none a
// panic.
func TestPrefixes(t *testing.T) {
	for name, content := range samples(t) {
		for n := range content {
			if err := openFuzzed(t, content[:n]); err == nil {
				t.Errorf("%s: the first %d of %d bytes open", name, n, len(content))
			}
		}
	}
}

// TestDamage changes every byte of every sample in turn.
func TestDamage(t *testing.T) {
	for _, content := range samples(t) {
		for i := range content {
			for _, change := range []byte{0xff, 0x01, 0x80} {
				damaged := bytes.Clone(content)
				damaged[i] ^= change
				_ = openFuzzed(t, damaged) // may open or not, must not panic
			}
		}
	}
}

// openFuzzed opens content from memory and reads all its tensors. It fails the
// test when an error is not a *FormatError.
func openFuzzed(t testing.TB, content []byte) error {
	c := &Checkpoint{index: map[string]int{}}
	err := c.openReader(bytes.NewReader(content), int64(len(content)), false)
	if err == nil {
		err = c.buildIndex()
	}
	if err != nil {
		if _, ok := errors.AsType[*FormatError](err); !ok {
			t.Fatalf("error %v is not a *FormatError", err)
		}
		return err
	}
	for _, info := range c.tensors {
		if n := info.Bytes(); n < 0 || n > maxExpanded {
			t.Fatalf("tensor %q of %d bytes in a file of %d", info.Name, n, len(content))
		} else if n > 1<<20 {
			continue
		}
		if err := c.ReadBytes(info.Name, make([]byte, info.Bytes())); err != nil {
			if _, ok := errors.AsType[*FormatError](err); !ok {
				t.Fatalf("error %v is not a *FormatError", err)
			}
		}
	}
	return nil
}

func FuzzOpen(f *testing.F) {
	for _, content := range samples(f) {
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content []byte) { _ = openFuzzed(t, content) })
}

func TestZipLayouts(t *testing.T) {
	pkl := []byte(pickled(pDict(pW)))
	w := floats(1, 2)
	big := []byte{0x3f, 0x80, 0, 0, 0x40, 0, 0, 0}
	good := map[string][]entry{
		"no folder":     {{"data.pkl", pkl}, {"data/0", w}},
		"any folder":    {{"模型/data.pkl", pkl}, {"模型/data/0", w}, {"模型/version", nil}},
		"others beside": {{"a/data.pkl", pkl}, {"a/data/0", w}, {"b/data/0", nil}, {"a/b/data.pkl", nil}},
		"little-endian": {{"a/data.pkl", pkl}, {"a/data/0", w}, {"a/byteorder", []byte("little")}},
		"big-endian":    {{"a/data.pkl", pkl}, {"a/data/0", big}, {"a/byteorder", []byte("big")}},
		"longer":        {{"a/data.pkl", pkl}, {"a/data/0", floats(1, 2, 3)}},
	}
	for name, entries := range good {
		c := mustOpen(t, zipOf(t, entries...))
		if diff := cmp.Diff([]float32{1, 2}, mustRead(t, c, "w")); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	bad := map[string][]byte{
		"no data.pkl":       zipOf(t, entry{"a/data/0", w}),
		"empty":             zipOf(t),
		"two data.pkl":      zipOf(t, entry{"a/data.pkl", pkl}, entry{"b/data.pkl", pkl}, entry{"a/data/0", w}, entry{"b/data/0", w}),
		"duplicate entries": zipOf(t, entry{"a/data.pkl", pkl}, entry{"a/data/0", w}, entry{"a/data/0", w}),
		"other folder":      zipOf(t, entry{"a/data.pkl", pkl}, entry{"b/data/0", w}),
		"byte order":        zipOf(t, entry{"a/data.pkl", pkl}, entry{"a/data/0", w}, entry{"a/byteorder", []byte("middle")}),
		"bytes behind":      append(zipOf(t, entry{"a/data.pkl", pkl}, entry{"a/data/0", w}), 0),
		"encrypted":         encrypted(zipOf(t, entry{"a/data.pkl", pkl}, entry{"a/data/0", w})),
		"bomb":              bomb(t, pkl),
		"zip64, no record":  zip64End(zipOf(t, entry{"a/data.pkl", pkl}, entry{"a/data/0", w})),
	}
	for name, content := range bad {
		_, err := openBytes(t, content)
		if _, ok := errors.AsType[*FormatError](err); !ok {
			t.Errorf("%s: error %v, want a *FormatError", name, err)
		}
	}
}

// encrypted sets the flag in all headers.
func encrypted(z []byte) []byte {
	for i := range z {
		switch {
		case bytes.HasPrefix(z[i:], []byte("PK\x01\x02")):
			z[i+8] |= 1
		case bytes.HasPrefix(z[i:], []byte("PK\x03\x04")):
			z[i+6] |= 1
		}
	}
	return z
}

// zip64End says that a zip64 record holds the directory's place; there is none.
func zip64End(z []byte) []byte {
	copy(z[len(z)-6:], "\xff\xff\xff\xff")
	return z
}

// bomb claims a compressed storage of a terabyte.
func bomb(t testing.TB, pkl []byte) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create("a/data.pkl")
	if err == nil {
		_, err = w.Write(pkl)
	}
	if err != nil {
		t.Fatal(err)
	}
	if w, err = z.CreateRaw(&zip.FileHeader{Name: "a/data/0", Method: zip.Deflate, CompressedSize64: 10, UncompressedSize64: 1 << 40}); err == nil {
		_, err = w.Write(make([]byte, 10))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestCompressedEntries(t *testing.T) {
	for _, damage := range []bool{false, true} {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		for _, e := range []entry{{"a/data.pkl", []byte(pickled(pDict(pW)))}, {"a/data/0", floats(1, 2)}} {
			w, err := z.Create(e.name) // deflated
			if err == nil {
				_, err = w.Write(e.data)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		content := b.Bytes()
		if damage { // in the checksum of the last entry
			i := bytes.LastIndex(content, []byte("PK\x01\x02"))
			content[i+16] ^= 1
		}
		c := mustOpen(t, content)
		dst := make([]float32, 2)
		err := c.ReadFloat32("w", dst)
		if _, ok := errors.AsType[*FormatError](err); ok != damage {
			t.Errorf("damaged %v: error %v", damage, err)
		}
		if !damage && !cmp.Equal(dst, []float32{1, 2}) {
			t.Errorf("w = %v", dst)
		}
	}
}

func TestLegacyContainer(t *testing.T) {
	view := "(" + pStr("v") + pInt(1) + pInt(2) + "t"
	body := pickled(pDict(pStr("w"), pView(pStorage("0", 3, view), 0, []int{2}, []int{1})))
	c := mustOpen(t, torchLegacy(body, []float32{1, 2, 3}))
	if diff := cmp.Diff([]float32{2, 3}, mustRead(t, c, "w")); diff != "" {
		t.Error("part of a storage:", diff)
	}
	twice := append(torchLegacy(twoTensors, []float32{1, 2}, []float32{3, 4, 5}), legacyHeader...)
	if _, err := openBytes(t, twice); err != nil {
		t.Error("saved twice:", err)
	}
	bad := map[string][]byte{
		"other magic":         []byte(pickled("\x8a\x02xx")),
		"a plain pickle":      []byte(pickled(pDict(pStr("a"), pInt(1)))),
		"other version":       []byte(pickled("\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19") + pickled("K\x01")),
		"storage in the head": []byte(pickled(pStorage("0", 1))),
		"storage not listed":  torchLegacy(twoTensors, []float32{1, 2}),
		"unknown storage":     torchLegacy(pickled(pDict(pW)), []float32{1, 2}, []float32{3}),
		"wrong count":         torchLegacy(pickled(pDict(pW)), []float32{1}),
		"keys not a list":     []byte(legacyHeader + pickled(pDict(pW)) + pickled("N")),
		"view beyond": torchLegacy(pickled(pDict(pStr("w"), pView(pStorage("0", 3, "("+pStr("v")+pInt(2)+pInt(2)+"t"), 0, []int{1}, []int{1}))),
			[]float32{1, 2, 3}),
	}
	for name, content := range bad {
		_, err := openBytes(t, content)
		if _, ok := errors.AsType[*FormatError](err); !ok {
			t.Errorf("%s: error %v, want a *FormatError", name, err)
		}
	}
}

func TestNotACheckpoint(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "one byte": "x", "text": "hello, this is a text file", "GGUF": "GGUF\x03\x00\x00\x00", "zip start": "PK\x03\x04",
	} {
		_, err := openBytes(t, []byte(content))
		if _, ok := errors.AsType[*FormatError](err); !ok {
			t.Errorf("%s: error %v, want a *FormatError", name, err)
		}
	}
	if _, err := Open(context.Background(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := Open(context.Background(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "model.safetensors") {
		t.Errorf("an empty folder: %v", err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Open(cancelled, write(t, "a", nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestInflatedStorage reads a compressed storage of many chunks out of order.
func TestInflatedStorage(t *testing.T) {
	values := make([]float32, 300_000)
	for i := range values {
		values[i] = float32(i % 1009)
	}
	tensor := pTensor("0", len(values), []int{300, 1000}, []int{1000, 1})
	c := mustOpen(t, deflatedZip(t, entry{"a/data.pkl", []byte(pickled(pDict(pStr("w"), tensor)))}, entry{"a/data/0", floats(values...)}))
	row := make([]float32, 1000)
	for _, i := range []int{299, 3, 4, 0, 299, 150} {
		if err := c.ReadRowFloat32("w", i, row); err != nil || !cmp.Equal(row, values[1000*i:1000*i+1000]) {
			t.Fatalf("row %d: %v", i, err)
		}
	}
	if !cmp.Equal(mustRead(t, c, "w"), values) {
		t.Error("the whole differs")
	}
}

// TestOpeningReadsNoData opens files of 8 GiB that are holes but for their
// headers.
func TestOpeningReadsNoData(t *testing.T) {
	const elements = 2 << 30
	long := "\x8a\x05\x00\x00\x00\x80\x00" // 2^31
	storage := "(" + pStr("storage") + pGlobal("torch", "FloatStorage") + pStr("0") + pStr("cpu") + long + "tQ"
	tensor := pCall(pGlobal("torch._utils", "_rebuild_tensor_v2"), storage, pInt(0), "("+long+"t", pInts(1), "\x89", "N")
	legacy := legacyHeader + pickled(pDict(pStr("w"), tensor)) + pickled("]"+pStr("0")+"a") +
		string(binary.LittleEndian.AppendUint64(nil, elements))
	header := fmt.Sprintf(`{"w":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}`, elements, elements*4)
	st := string(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))) + header
	for name, head := range map[string]string{"legacy": legacy, "safetensors": st} {
		path := write(t, "big", []byte(head))
		if err := os.Truncate(path, int64(len(head))+4*elements); err != nil {
			t.Skipf("no sparse files here: %v", err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		c, err := Open(context.Background(), path)
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if info, _ := c.Lookup("w"); info.Elements() != elements {
			t.Errorf("%s: %d elements", name, info.Elements())
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 10<<20 || took > 2*time.Second {
			t.Errorf("%s: opening took %v and allocated %d bytes", name, took, n)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// holes writes to a file and leaves a hole for every large write.
type holes struct{ f *os.File }

func (h holes) Write(p []byte) (int, error) {
	if len(p) < 1<<20 {
		return h.f.Write(p)
	}
	_, err := h.f.Seek(int64(len(p)), io.SeekCurrent)
	return len(p), err
}

// TestZip64 opens a zip whose directory lies behind 5 GiB.
func TestZip64(t *testing.T) {
	path := filepath.Join(t.TempDir(), "big.pt")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(holes{f})
	add := func(name string, size uint64, data []byte) {
		w, err := z.CreateRaw(&zip.FileHeader{Name: name, Method: zip.Store, CompressedSize64: size, UncompressedSize64: size})
		for written := uint64(0); err == nil && written < size; written += uint64(len(data)) {
			_, err = w.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	const elements = 5 << 28
	long := "\x8a\x05\x00\x00\x00\x50\x00"
	storage := "(" + pStr("storage") + pGlobal("torch", "FloatStorage") + pStr("1") + pStr("cpu") + long + "tQ"
	last := pView(storage, 0, []int{2, 2}, []int{elements / 4 * 2, 1})
	pkl := []byte(pickled(pDict(pW, pStr("far"), last)))
	add("a/data.pkl", uint64(len(pkl)), pkl)
	add("a/data/1", 4*elements, make([]byte, 1<<26))
	add("a/data/0", 8, floats(1.5, -2))
	if err := errors.Join(z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	c := openPath(t, path)
	if c.Size() < 4*elements {
		t.Errorf("size %d", c.Size())
	}
	if v := mustRead(t, c, "w"); !cmp.Equal(v, []float32{1.5, -2}) {
		t.Errorf("w = %v", v)
	}
	if v := mustRead(t, c, "far"); !cmp.Equal(v, make([]float32, 4)) {
		t.Errorf("far = %v", v)
	}
}

func TestFileCutWhileOpen(t *testing.T) {
	for name, content := range samples(t) {
		path := write(t, "model", content)
		c, err := Open(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 10); err != nil {
			t.Fatal(err)
		}
		err = c.ReadFloat32("b", make([]float32, 3))
		if bad, ok := errors.AsType[*FormatError](err); !ok || bad.Path != path {
			t.Errorf("%s: error %v, want a *FormatError", name, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestFileChangedWhileOpen(t *testing.T) {
	for name, content := range samples(t) {
		path := write(t, "model", content)
		c := openPath(t, path)
		mustRead(t, c, "b")
		later := time.Now().Add(time.Minute)
		if err := errors.Join(os.WriteFile(path, content, 0o600), os.Chtimes(path, later, later)); err != nil {
			t.Fatal(err)
		}
		err := c.ReadFloat32("b", make([]float32, 3))
		if bad, ok := errors.AsType[*FormatError](err); !ok || !strings.Contains(bad.Reason, "changed") {
			t.Errorf("%s: error %v, want a *FormatError", name, err)
		}
	}
}

func TestConcurrentReads(t *testing.T) {
	for name, content := range samples(t) {
		c := mustOpen(t, content)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 20 {
					dst := make([]float32, 3)
					if err := c.ReadFloat32("b", dst); err != nil || !cmp.Equal(dst, []float32{3, 4, 5}) {
						t.Errorf("%s: %v, %v", name, dst, err)
					}
				}
			})
		}
		wg.Wait()
	}
}
