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
	"slices"

	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
)

// Verify opens what CompressedTensors wrote into dir and compares every code,
// scale, zero point and kept tensor with the input; then what Dense wrote
// there, if it did. A difference is a *TensorError that is ErrMismatch and
// names the tensor and the index. It holds at most two tensors beside the
// solutions.
func Verify(ctx context.Context, dir string, in Input) error {
	if err := in.check(); err != nil {
		return err
	}
	m, err := Open(ctx, dir)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	defer m.Close()
	if err := m.verify(ctx, in); err != nil {
		return fmt.Errorf("verify %s: %w", filepath.Join(dir, ModelName), err)
	}
	for _, format := range []DenseFormat{Safetensors, PyTorch} {
		_, err := os.Stat(filepath.Join(dir, format.FileName()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := errors.Join(err, VerifyDense(ctx, dir, format, in)); err != nil {
			return err
		}
	}
	return nil
}

func (m *Model) verify(ctx context.Context, in Input) error {
	if err := verifyTensors(m.tensors, in.Checkpoint.Tensors()); err != nil {
		return err
	}
	specs := in.specs()
	for _, got := range m.Specs() {
		want, ok := specs[got.Name]
		if !ok {
			return bad(got.Name, ErrMismatch, "is compressed, but was to be kept")
		}
		if got.scheme() != want.scheme() || got.ScaleType != want.ScaleType {
			return bad(got.Name, ErrMismatch, "scheme %+v with scales of %s, want %+v of %s",
				got.scheme(), got.ScaleType, want.scheme(), want.ScaleType)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		if _, ok := m.specs[name]; !ok {
			return bad(name, ErrMismatch, "is not compressed")
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.verifySolution(name, in.Solutions[name]); err != nil {
			return err
		}
	}
	src := source{Input: in, ctx: ctx}
	for _, t := range in.Checkpoint.Tensors() {
		if _, ok := specs[t.Name]; ok {
			continue
		}
		if err := verifyBytes(m.file, t, src.kept); err != nil {
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
	if err := verifyEqual(name+packedSuffix, got.Codes, want.Codes); err != nil {
		return err
	}
	if err := verifyEqual(name+scaleSuffix, got.Grid.Scales, want.Grid.Scales); err != nil {
		return err
	}
	return verifyEqual(name+zeroSuffix, got.Grid.Zeros, want.Grid.Zeros)
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

// VerifyDense opens what Dense wrote into dir and compares the bytes of every
// tensor with the input. A difference is reported as Verify does it.
func VerifyDense(ctx context.Context, dir string, format DenseFormat, in Input) error {
	if err := in.check(); err != nil {
		return err
	}
	path := filepath.Join(dir, format.FileName())
	file, err := loader.Open(ctx, path)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	defer file.Close()
	if err := verifyTensors(file.Tensors(), in.Checkpoint.Tensors()); err != nil {
		return fmt.Errorf("verify %s: %w", path, err)
	}
	src := source{Input: in, ctx: ctx}
	for _, t := range in.Checkpoint.Tensors() {
		if err := verifyBytes(file, t, src.dense); err != nil {
			return fmt.Errorf("verify %s: %w", path, err)
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
