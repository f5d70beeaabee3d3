package loader

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Pieces of pickles, written by hand.

func cat(parts ...string) string { return strings.Join(parts, "") }

func pStr(s string) string {
	return "X" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s
}

func pInt(n int) string {
	return "J" + string(binary.LittleEndian.AppendUint32(nil, uint32(int32(n))))
}

func pInts(ns ...int) string {
	s := "("
	for _, n := range ns {
		s += pInt(n)
	}
	return s + "t"
}

func pGlobal(module, name string) string { return "c" + module + "\n" + name + "\n" }

// pDict is a dict of alternating pickled keys and values.
func pDict(items ...string) string { return "}(" + cat(items...) + "u" }

// pCall calls a function with pickled arguments.
func pCall(function string, args ...string) string { return function + "(" + cat(args...) + "tR" }

// pStorage names a float32 storage of n elements.
func pStorage(key string, n int, rest ...string) string {
	return "(" + pStr("storage") + pGlobal("torch", "FloatStorage") + pStr(key) + pStr("cpu") + pInt(n) + cat(rest...) + "tQ"
}

// pTensor is a float32 tensor at the start of its storage of n elements.
func pTensor(key string, n int, shape, strides []int) string {
	return pView(pStorage(key, n), 0, shape, strides)
}

func pView(storage string, offset int, shape, strides []int) string {
	return pCall(pGlobal("torch._utils", "_rebuild_tensor_v2"), storage, pInt(offset), pInts(shape...), pInts(strides...), "\x89", "N")
}

func pickled(body ...string) string { return "\x80\x02" + cat(body...) + "." }

func floats(v ...float32) []byte {
	var b []byte
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return b
}

type entry struct {
	name string
	data []byte
}

// zipOf returns a zip of stored entries.
func zipOf(t testing.TB, entries ...entry) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, e := range entries {
		w, err := z.CreateHeader(&zip.FileHeader{Name: e.name, Method: zip.Store})
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
	return b.Bytes()
}

// torchZip returns a checkpoint with the given pickle and float32 storages 0, 1, …
func torchZip(t testing.TB, pickle string, storages ...[]float32) []byte {
	entries := []entry{{"archive/data.pkl", []byte(pickle)}}
	for i, s := range storages {
		entries = append(entries, entry{"archive/data/" + string(rune('0'+i)), floats(s...)})
	}
	return zipOf(t, append(entries, entry{"archive/version", []byte("3\n")})...)
}

// legacyHeader is what precedes the object's pickle.
var legacyHeader = cat(
	pickled("\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"),
	pickled("M\xe9\x03"),
	pickled(pDict(pStr("protocol_version"), "M\xe9\x03", pStr("little_endian"), "\x88")),
)

// torchLegacy returns a legacy checkpoint with float32 storages 0, 1, …
func torchLegacy(pickle string, storages ...[]float32) []byte {
	keys := "]("
	for i := range storages {
		keys += pStr(string(rune('0' + i)))
	}
	b := []byte(legacyHeader + pickle + pickled(keys+"e"))
	for _, s := range storages {
		b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, floats(s...)...)
	}
	return b
}

// write puts content into a file of the test's own folder.
func write(t testing.TB, name string, content []byte) string {
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// openBytes opens content as a file.
func openBytes(t testing.TB, content []byte) (*Checkpoint, error) {
	c, err := Open(context.Background(), write(t, "model.pt", content))
	if err == nil {
		t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

func mustOpen(t testing.TB, content []byte) *Checkpoint {
	t.Helper()
	c, err := openBytes(t, content)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustRead(t testing.TB, c *Checkpoint, name string) []float32 {
	t.Helper()
	info, ok := c.Lookup(name)
	if !ok {
		t.Fatalf("no tensor %q in %v", name, names(c))
	}
	dst := make([]float32, info.Elements())
	if err := c.ReadFloat32(name, dst); err != nil {
		t.Fatal(err)
	}
	return dst
}

func names(c *Checkpoint) []string {
	var all []string
	for _, t := range c.Tensors() {
		all = append(all, t.Name)
	}
	return all
}
