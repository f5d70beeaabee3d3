package loader

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// Part is a tensor of a view: one of the checkpoint's, perhaps under another
// name, perhaps without some of its rows, columns or planes.
type Part struct {
	Name string
	From string // its name in the checkpoint; "" means Name

	// Keep has for each axis the indices that stay, in rising order; nil for an
	// axis of which all stay, and for a tensor that stays whole.
	Keep [][]int

	// Data holds the values in place of the checkpoint's: dense little-endian
	// elements of the tensor's type, in the shape that Keep leaves. nil: the
	// checkpoint's values.
	Data io.ReaderAt

	// Decoded is not nil for a tensor that the checkpoint has only as codes. From is
	// not looked at then, and Data must be nil.
	Decoded *Decoded
}

// ViewError says that a view cannot be had of a checkpoint.
type ViewError struct {
	Tensor  string // its name in the view
	Problem string
}

func (e *ViewError) Error() string {
	return fmt.Sprintf("view of a checkpoint: tensor %q: %s", e.Tensor, e.Problem)
}

// viewOf is what a view is made of.
type viewOf struct {
	source *Checkpoint
	parts  []Part
}

// View returns a checkpoint that holds the given parts of c, in their order, and
// nothing else. It reads no tensor data: what is cut off is left out while a
// tensor is read, of which no more than the larger of a MiB and one index of the
// first axis is held beside the destination. Path, Format, Metadata and Size
// are c's. The view reads c's files, so c must stay open; its own Close does
// nothing. A view of a view may be had too.
//
// It fails with a *ViewError, or with ErrNotFound for a part that c lacks.
func (c *Checkpoint) View(parts []Part) (*Checkpoint, error) {
	v := &Checkpoint{
		path: c.path, format: c.format, size: c.size, skipped: c.skipped, index: make(map[string]int, len(parts)),
		metadata: c.metadata, companions: c.companions, root: c.root, unknown: c.unknown, view: &viewOf{source: c, parts: slices.Clone(parts)},
	}
	last := &lastDecoded{}
	for _, p := range parts {
		t, err := c.part(p, last)
		if err != nil {
			return nil, err
		}
		if problem := t.cut(p.Keep); problem != "" {
			return nil, &ViewError{p.Name, problem}
		}
		if p.Data != nil {
			t.storage = &storage{data: p.Data, size: t.Bytes()}
			t.offset, t.strides, t.keep, t.whole, t.Quantized = 0, denseStrides(t.Shape), nil, nil, nil
		}
		t.Name = p.Name
		if _, taken := v.index[p.Name]; taken || p.Name == "" {
			return nil, &ViewError{p.Name, "the name is empty or taken by another part"}
		}
		v.index[p.Name] = len(v.tensors)
		v.tensors = append(v.tensors, t)
	}
	return v, nil
}

// part returns the tensor that a part is of, uncut and under its name in c.
func (c *Checkpoint) part(p Part, last *lastDecoded) (Tensor, error) {
	if p.Decoded == nil {
		return c.find(cmp.Or(p.From, p.Name))
	}
	t, problem := p.Decoded.tensor(last)
	if p.Data != nil {
		problem = "it has both values and codes to decode"
	}
	if problem != "" {
		return t, &ViewError{p.Name, problem}
	}
	return t, nil
}

// cut leaves the given indices of each axis, and returns what forbids it.
func (t *Tensor) cut(keep [][]int) (problem string) {
	if keep == nil {
		return ""
	}
	if len(keep) != len(t.Shape) {
		return fmt.Sprintf("indices are given for %d axes of %v", len(keep), t.Shape)
	}
	shape, all := slices.Clone(t.Shape), make([][]int, len(keep))
	copy(all, t.keep)
	for axis, list := range keep {
		if list == nil {
			continue
		}
		if len(list) == 0 {
			return fmt.Sprintf("nothing would stay of axis %d", axis)
		}
		stay := make([]int, len(list))
		for i, index := range list {
			if index < 0 || index >= t.Shape[axis] || (i > 0 && index <= list[i-1]) {
				return fmt.Sprintf("index %d of axis %d of %v is out of range or out of order", index, axis, t.Shape)
			}
			stay[i] = index
			if all[axis] != nil {
				stay[i] = all[axis][index]
			}
		}
		all[axis], shape[axis] = stay, len(list)
	}
	if !slices.ContainsFunc(all, func(list []int) bool { return list != nil }) {
		return ""
	}
	if t.keep == nil {
		t.whole = t.Shape
	}
	t.keep, t.Shape = all, shape
	return ""
}

// row returns index i of a tensor's first axis.
func (t Tensor) row(i int) Tensor {
	if t.keep != nil {
		if rows := t.keep[0]; rows != nil {
			i = rows[i]
		}
		t.keep, t.whole = t.keep[1:], t.whole[1:]
		if !slices.ContainsFunc(t.keep, func(list []int) bool { return list != nil }) {
			t.keep = nil
		}
	}
	t.offset += int64(i) * int64(t.strides[0])
	t.Shape, t.strides = t.Shape[1:], t.strides[1:]
	return t
}

// pieces calls f with the bytes of a cut tensor in order, some indices of the
// first axis at a time. What f gets is overwritten by the next call.
func (t *Tensor) pieces(f func(raw []byte) error) error {
	plain := *t
	plain.keep = nil
	inner := t.DType.Size() // bytes of one index of the first axis before the cut
	for _, n := range t.whole[1:] {
		inner *= n
	}
	most := max(1, chunk/max(inner, 1))
	var buf []byte
	for _, r := range runs(t.keep[0], t.whole[0]) {
		for from := r.from; from < r.to; from += most {
			n := min(most, r.to-from)
			if cap(buf) < n*inner {
				buf = make([]byte, n*inner)
			}
			plain.offset = t.offset + int64(from)*int64(t.strides[0])
			plain.Shape = append([]int{n}, t.whole[1:]...)
			if err := plain.readBytes(buf[:n*inner]); err != nil {
				return err
			}
			size := 0
			for i := range n {
				size += compact(buf[size:], buf[i*inner:][:inner], t.whole[1:], t.keep[1:])
			}
			if err := f(buf[:size]); err != nil {
				return err
			}
		}
	}
	return nil
}

// compact copies the kept elements of src, which has the given shape before the
// cut, to dst, and returns their bytes. dst may begin at or before src in the
// same memory.
func compact(dst, src []byte, whole []int, keep [][]int) int {
	last := len(keep) - 1
	for last >= 0 && keep[last] == nil {
		last--
	}
	if last < 0 {
		return copy(dst, src)
	}
	inner := len(src) / whole[0]
	n := 0
	for _, r := range runs(keep[0], whole[0]) {
		if last == 0 {
			n += copy(dst[n:], src[r.from*inner:r.to*inner])
			continue
		}
		for i := r.from; i < r.to; i++ {
			n += compact(dst[n:], src[i*inner:][:inner], whole[1:], keep[1:])
		}
	}
	return n
}

type run struct{ from, to int }

// runs joins indices that follow each other; nil stands for 0 … n−1.
func runs(keep []int, n int) []run {
	if keep == nil {
		return []run{{0, n}}
	}
	var list []run
	for _, i := range keep {
		if k := len(list); k > 0 && list[k-1].to == i {
			list[k-1].to++
		} else {
			list = append(list, run{i, i + 1})
		}
	}
	return list
}

// sha256 returns the hash of what a view depends on: the source's hash, the
// parts, and the values that stand in for the source's.
func (v *viewOf) sha256(ctx context.Context, c *Checkpoint) (string, error) {
	source, err := v.source.SHA256(ctx)
	if err != nil {
		return "", err
	}
	type described struct {
		Name, From string
		Keep       [][]int
		Data       string
		Decoded    string `json:",omitempty"`
	}
	list := make([]described, len(v.parts))
	for i, p := range v.parts {
		list[i] = described{Name: p.Name, From: p.From, Keep: p.Keep}
		if p.Decoded != nil {
			list[i].Decoded = p.Decoded.Key
		}
		if p.Data == nil {
			continue
		}
		h := sha256.New()
		if err := hashReader(ctx, h, io.NewSectionReader(p.Data, 0, c.tensors[i].Bytes())); err != nil {
			return "", err
		}
		list[i].Data = hex.EncodeToString(h.Sum(nil))
	}
	text, err := json.Marshal(list)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(bytes.Join([][]byte{[]byte(source), text}, []byte{'\n'}))
	return hex.EncodeToString(sum[:]), nil
}
