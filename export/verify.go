package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
)

// Verify opens what CompressedTensors wrote into dir and compares every code,
// scale, zero point and kept tensor with the input, and the index of shards;
// then what Dense wrote there, if it did. A difference is a *TensorError that is
// ErrMismatch and names the tensor and the index. It holds at most two tensors
// and two solutions.
func Verify(ctx context.Context, dir string, in Input) error {
	if err := in.check(); err != nil {
		return err
	}
	src := &source{Input: in, ctx: ctx}
	files, err := src.compressed()
	if err != nil {
		return err
	}
	m, err := Open(ctx, dir)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	defer m.Close()
	if err := m.verify(src, files); err != nil {
		return fmt.Errorf("verify %s: %w", m.file.Path(), err)
	}
	for _, format := range []DenseFormat{Safetensors, PyTorch} {
		_, err := os.Stat(filepath.Join(dir, src.denseEntry(format)))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := errors.Join(err, VerifyDense(ctx, dir, format, in)); err != nil {
			return err
		}
	}
	return nil
}

func (m *Model) verify(src *source, files layout) error {
	path := m.file.Path()
	if found := filepath.Base(path); found != files.entry() {
		return fmt.Errorf("%w: found %s, want %s", ErrMismatch, found, files.entry())
	}
	if err := files.verifyIndex(filepath.Dir(path)); err != nil {
		return err
	}
	var want []loader.Tensor
	for _, t := range src.Checkpoint.Tensors() {
		if weight, ok := src.keptAs(t); ok {
			t.DType = src.Source.denseTensor(weight).DType
			if err := m.verifyKept(src, t, weight); err != nil {
				return err
			}
		}
		want = append(want, t)
	}
	if err := verifyTensors(m.tensors, want); err != nil {
		return err
	}
	for _, got := range m.Specs() {
		t, _ := src.Checkpoint.Lookup(got.Name)
		want, ok := src.specOf(t)
		if !ok {
			return bad(got.Name, ErrMismatch, "is compressed, but was to be kept")
		}
		if !reflect.DeepEqual(got, want) {
			return bad(got.Name, ErrMismatch, "is %+v, want %+v", got, want)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(src.Specs)) {
		if _, ok := m.specs[name]; !ok {
			return bad(name, ErrMismatch, "is not compressed")
		}
		want, err := src.solution(name)
		if err != nil {
			return err
		}
		if err := m.verifySolution(name, want); err != nil {
			return err
		}
	}
	for _, t := range src.Checkpoint.Tensors() {
		_, compressed := src.Specs[t.Name]
		if _, kept := src.keptAs(t); compressed || kept {
			continue
		}
		if err := verifyBytes(m.file, t, src.kept); err != nil {
			return err
		}
	}
	return nil
}

// verifyKept compares what is stored of a kept weight with what the source has, and how
// both are read.
func (m *Model) verifyKept(src *source, t loader.Tensor, weight string) error {
	if !m.has(t.Name) {
		return bad(t.Name, ErrMismatch, "is not compressed")
	}
	if a, b := m.affines[t.Name], src.Source.affines[weight]; (a == nil) != (b == nil) || a != nil && (a.affineScheme != b.affineScheme || a.transposed != b.transposed) {
		return bad(t.Name, ErrMismatch, "would be read in another way than in the source")
	}
	if a, b := m.groups[t.Name], src.Source.groups[weight]; (a == nil) != (b == nil) || a != nil && a.text != b.text {
		return bad(t.Name, ErrMismatch, "its config group is not the source's")
	}
	for _, name := range src.Source.tensorsOf(weight) {
		stored, _ := src.Source.file.Lookup(name)
		out := renamed(name, weight, t.Name)
		if got, ok := m.file.Lookup(out); !ok || got.DType != stored.DType || !slices.Equal(got.Shape, stored.Shape) {
			return bad(out, ErrMismatch, "is not the source's %s", name)
		}
		want, err := src.stored(stored)
		if err != nil {
			return err
		}
		got, err := m.read(out)
		if err != nil {
			return err
		}
		if err := verifyEqual(out, got, want); err != nil {
			return err
		}
	}
	return nil
}

func (m *Model) verifySolution(name string, want *layer.Solution) error {
	got, err := m.Solution(name)
	if err != nil {
		return err
	}
	spec := m.specs[name]
	if spec.masked() {
		if err := verifyEqual(name, got.Mask.Bits, want.Mask.Bits); err != nil {
			return err
		}
	}
	if err := spec.verifyLowRank(got.LowRank, want.LowRank); err != nil {
		return err
	}
	if spec.valued() {
		return verifyValues(spec, got, want)
	}
	if err := verifyEqual(spec.codesName(), got.Codes, want.Codes); err != nil {
		return err
	}
	if err := verifyEqual(name+globalSuffix, []float32{got.Grid.Global}, []float32{want.Grid.Global}); err != nil {
		return err
	}
	if err := verifyEqual(name+scaleSuffix, got.Grid.Scales, want.Grid.Scales); err != nil {
		return err
	}
	return verifyEqual(name+zeroSuffix, got.Grid.Zeros, want.Grid.Zeros)
}

// verifyValues compares a weight's values, or what its values and low-rank term make
// together where they are merged.
func verifyValues(spec Spec, got, want *layer.Solution) error {
	if !spec.LowRank.Merged {
		return verifyEqual(spec.codesName(), got.Values, want.Values)
	}
	found, sums := make([]float32, spec.Rows*spec.Cols), make([]float32, spec.Rows*spec.Cols)
	got.Base(found)
	want.Weight(sums)
	for i, v := range sums {
		sums[i] = spec.ValueType.Round(v)
	}
	return verifyEqual(spec.codesName(), found, sums)
}

func verifyEqual[T comparable](name string, got, want []T) error {
	if len(got) != len(want) {
		return bad(name, ErrMismatch, "%d values, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			return badAt(name, i, ErrMismatch, "%v, want %v", got[i], want[i])
		}
	}
	return nil
}

// denseEntry returns the name of the file to open of a dense output.
func (s *source) denseEntry(format DenseFormat) string {
	if format == Safetensors {
		return s.denseFiles().entry()
	}
	return format.FileName()
}

// VerifyDense opens what Dense wrote into dir and compares the bytes of every
// tensor with the input, and the index of shards. A difference is reported as
// Verify does it.
func VerifyDense(ctx context.Context, dir string, format DenseFormat, in Input) error {
	if err := in.check(); err != nil {
		return err
	}
	src := &source{Input: in, ctx: ctx}
	path := filepath.Join(dir, src.denseEntry(format))
	file, err := loader.Open(ctx, path)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	defer file.Close()
	if err := verifyDense(file, dir, format, src); err != nil {
		return fmt.Errorf("verify %s: %w", path, err)
	}
	return nil
}

func verifyDense(file *loader.Checkpoint, dir string, format DenseFormat, src *source) error {
	if format == Safetensors {
		if err := src.denseFiles().verifyIndex(dir); err != nil {
			return err
		}
	}
	if err := verifyTensors(file.Tensors(), src.Checkpoint.Tensors()); err != nil {
		return err
	}
	for _, t := range src.Checkpoint.Tensors() {
		if err := verifyBytes(file, t, src.dense); err != nil {
			return err
		}
	}
	return nil
}

// verifyTensors compares names, dtypes and shapes in any order.
func verifyTensors(got, want []loader.Tensor) error {
	byName := make(map[string]loader.Tensor, len(got))
	for _, t := range got {
		byName[t.Name] = t
	}
	for _, w := range want {
		g, ok := byName[w.Name]
		if !ok {
			return bad(w.Name, ErrMismatch, "is missing")
		}
		if g.DType != w.DType || !slices.Equal(g.Shape, w.Shape) {
			return bad(w.Name, ErrMismatch, "%s %v, want %s %v", g.DType, g.Shape, w.DType, w.Shape)
		}
		delete(byName, w.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		return bad(name, ErrMismatch, "is not in the source")
	}
	return nil
}

// verifyBytes compares a tensor of a file with the bytes that were to be
// written.
func verifyBytes(file *loader.Checkpoint, t loader.Tensor, read func(loader.Tensor) ([]byte, error)) error {
	want, err := read(t)
	if err != nil {
		return err
	}
	got := make([]byte, len(want))
	if err := file.ReadBytes(t.Name, got); err != nil {
		return err
	}
	if bytes.Equal(got, want) {
		return nil
	}
	size := t.DType.Size()
	for i := 0; i < len(want); i += size {
		if g, w := got[i:i+size], want[i:i+size]; !bytes.Equal(g, w) {
			return badAt(t.Name, i/size, ErrMismatch, "bytes %x, want %x", g, w)
		}
	}
	return nil
}
