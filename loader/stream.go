package loader

import (
	"context"
	"fmt"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// streamed is how many elements StreamFloat32 hands out at once at most.
const streamed = chunk / 4

// StreamFloat32 reads a tensor from its first element to its last, row-major, as
// ReadFloat32 does, and calls visit with some hundred thousand elements at a time.
// What visit gets is overwritten by the next call. It holds a few MiB, whatever the
// tensor. An error of visit ends it and is returned as it is.
func (c *Checkpoint) StreamFloat32(ctx context.Context, name string, visit func(values []float32) error) error {
	t, err := c.find(name)
	if err != nil {
		return err
	}
	if t.DType == dtype.C64 {
		return fmt.Errorf("tensor %q is complex: read its bytes", name)
	}
	return t.stream(make([]float32, min(t.Elements(), streamed)), func(t Tensor, values []float32) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.explain(name, t.readFloat32(values)); err != nil {
			return err
		}
		return visit(values)
	})
}

// stream calls read with tensors that are t in pieces, each with as much of buf as
// it needs.
func (t Tensor) stream(buf []float32, read func(t Tensor, values []float32) error) error {
	n := t.Elements()
	if n == 0 {
		return nil
	}
	if n <= int64(len(buf)) {
		return read(t, buf[:n])
	}
	inner := n / int64(t.Shape[0])
	step := max(1, int(int64(len(buf))/inner))
	for from := 0; from < t.Shape[0]; from += step {
		piece := t.slice(from, min(step, t.Shape[0]-from))
		if inner > int64(len(buf)) {
			piece = t.row(from)
		}
		if err := piece.stream(buf, read); err != nil {
			return err
		}
	}
	return nil
}

// slice returns n indices of the first axis.
func (t Tensor) slice(from, n int) Tensor {
	t.Shape = append([]int{n}, t.Shape[1:]...)
	if t.keep != nil && t.keep[0] != nil {
		t.keep = append([][]int{t.keep[0][from : from+n]}, t.keep[1:]...)
		return t
	}
	if t.keep != nil {
		t.whole = append([]int{n}, t.whole[1:]...)
	}
	t.offset += int64(from) * int64(t.strides[0])
	return t
}

// Tied returns the tensors whose elements are those of a tensor before them, in the
// same place of the file, and that tensor's name. Only PyTorch's formats have such.
func (c *Checkpoint) Tied() map[string]string {
	type place struct {
		storage *storage
		dtype   DType
		offset  int64
		layout  string
	}
	first, tied := map[place]string{}, map[string]string{}
	for _, t := range c.tensors {
		if t.keep != nil || t.Elements() == 0 {
			continue
		}
		p := place{t.storage, t.DType, t.offset, fmt.Sprint(t.Shape, t.strides)}
		if name, ok := first[p]; ok {
			tied[t.Name] = name
		} else {
			first[p] = t.Name
		}
	}
	return tied
}
