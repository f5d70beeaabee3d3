package main

import (
	"archive/zip"
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
)

// tensorElements are those of each tensor but the last: a layer of 4096².
const tensorElements = 4096 * 4096

// kind is a kind of checkpoint.
type kind struct {
	name   string
	ending string
	dtype  dtype.DType
	format func(w io.Writer, d dtype.DType, sizes []int) error
}

var kinds = []kind{
	{"safetensors, F32", ".safetensors", dtype.F32, writeSafetensors},
	{"safetensors, F16", ".safetensors", dtype.F16, writeSafetensors},
	{"safetensors, BF16", ".safetensors", dtype.BF16, writeSafetensors},
	{"zip, F32", ".pt", dtype.F32, writeZip},
	{"legacy, F32", ".pt", dtype.F32, writeLegacy},
}

// write makes a file with size bytes of tensors.
func (k kind) write(path string, size int64) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var sizes []int
	for left := size / int64(k.dtype.Size()); left > 0; left -= tensorElements {
		sizes = append(sizes, int(min(left, tensorElements)))
	}
	w := bufio.NewWriterSize(f, 1<<20)
	return errors.Join(k.format(w, k.dtype, sizes), w.Flush())
}

// values writes n elements. What they are does not matter, as long as none is
// special.
func values(w io.Writer, d dtype.DType, n int) error {
	block := make([]float32, 1<<16)
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range block {
		block[i] = float32(rng.NormFloat64())
	}
	raw := make([]byte, len(block)*d.Size())
	if err := d.FromFloat32(raw, block); err != nil {
		return err
	}
	for left := n * d.Size(); left > 0; left -= len(raw) {
		if _, err := w.Write(raw[:min(left, len(raw))]); err != nil {
			return err
		}
	}
	return nil
}

func writeSafetensors(w io.Writer, d dtype.DType, sizes []int) error {
	var sources []safetensors.Source
	for i, n := range sizes {
		sources = append(sources, safetensors.Source{
			Name: fmt.Sprintf("layers.%d.weight", i), DType: d, Shape: []int{n},
			Write: func(w io.Writer) error { return values(w, d, n) },
		})
	}
	return safetensors.Write(w, sources, map[string]string{"format": "pt"})
}

func writeZip(w io.Writer, d dtype.DType, sizes []int) error {
	z := zip.NewWriter(w)
	entry := func(name string) (io.Writer, error) {
		return z.CreateHeader(&zip.FileHeader{Name: "archive/" + name, Method: zip.Store})
	}
	e, err := entry("data.pkl")
	if err == nil {
		_, err = io.WriteString(e, stateDict(sizes, ""))
	}
	for i, n := range sizes {
		if err != nil {
			return err
		}
		if e, err = entry(fmt.Sprintf("data/%d", i)); err == nil {
			err = values(e, d, n)
		}
	}
	if err == nil {
		if e, err = entry("version"); err == nil {
			_, err = io.WriteString(e, "3\n")
		}
	}
	return errors.Join(err, z.Close())
}

func writeLegacy(w io.Writer, d dtype.DType, sizes []int) error {
	head := "\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + "\x80\x02M\xe9\x03." +
		"\x80\x02}(" + text("protocol_version") + "M\xe9\x03" + text("little_endian") + "\x88" +
		text("type_sizes") + "}(" + text("short") + "K\x02" + text("int") + "K\x04" + text("long") + "K\x04uu."
	keys := "\x80\x02]("
	for i := range sizes {
		keys += text(fmt.Sprint(i))
	}
	if _, err := io.WriteString(w, head+stateDict(sizes, "N")+keys+"e."); err != nil {
		return err
	}
	for _, n := range sizes {
		if err := binary.Write(w, binary.LittleEndian, int64(n)); err != nil {
			return err
		}
		if err := values(w, d, n); err != nil {
			return err
		}
	}
	return nil
}

// stateDict is a pickled dict of float32 tensors, one to a storage. view is what
// a storage's id ends with: None in the legacy format, nothing in a zip.
func stateDict(sizes []int, view string) string {
	var b strings.Builder
	b.WriteString("\x80\x02}(")
	for i, n := range sizes {
		length := "J" + string(binary.LittleEndian.AppendUint32(nil, uint32(n)))
		b.WriteString(text(fmt.Sprintf("layers.%d.weight", i)) + "ctorch._utils\n_rebuild_tensor_v2\n((" +
			text("storage") + "ctorch\nFloatStorage\n" + text(fmt.Sprint(i)) + text("cpu") + length + view + "tQ" +
			"K\x00(" + length + "t(K\x01t\x89ccollections\nOrderedDict\n)RtR")
	}
	b.WriteString("u.")
	return b.String()
}

func text(s string) string {
	return "X" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s
}
