package loader

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// Tensor is a tensor of a checkpoint: what it is, and where its elements are.
type Tensor struct {
	Name  string
	DType DType
	Shape []int // [] for a scalar

	// Quantized is not nil for a tensor that PyTorch stores as integer codes. DType
	// is F32 then, and reading gives the values that the codes stand for.
	Quantized *Quantization

	storage *storage
	offset  int64 // of the first element, in elements
	strides []int // in elements, one per dimension

	// Of a tensor that a view has cut: the shape before, and the indices that stay
	// of each axis, nil for all. keep is nil for other tensors.
	whole []int
	keep  [][]int
}

// Elements returns the number of elements.
func (t Tensor) Elements() int64 {
	n := int64(1)
	for _, d := range t.Shape {
		n *= int64(d)
	}
	return n
}

// Bytes returns the bytes of the dense tensor, as ReadBytes needs them.
func (t Tensor) Bytes() int64 { return t.Elements() * int64(t.DType.Size()) }

// storage is a run of bytes that tensors view.
type storage struct {
	data      io.ReaderAt
	base      int64 // of the storage in data
	size      int64 // in bytes
	bigEndian bool
}

// section returns the storage's bytes alone.
func (s *storage) section() io.ReaderAt { return io.NewSectionReader(s.data, s.base, s.size) }

// Limits on what a tensor may claim.
const (
	// maxDims is PyTorch's own limit.
	maxDims = 64
	// maxExpanded bounds the dense bytes of a tensor that repeats elements of
	// its storage (torch.expand), so that a few bytes of file cannot ask for
	// all memory.
	maxExpanded = 1 << 30
)

// denseStrides returns the strides of a contiguous row-major tensor.
func denseStrides(shape []int) []int {
	strides := make([]int, len(shape))
	n := 1
	for i, dim := range slices.Backward(shape) {
		strides[i] = n
		n *= max(dim, 1)
	}
	return strides
}

// newView returns a nameless tensor over a storage. It refuses a view with a
// negative or overflowing extent, or one that leaves its storage.
func newView(s *storage, d DType, offset int64, shape, strides []int) (*Tensor, error) {
	if len(shape) > maxDims || len(strides) != len(shape) {
		return nil, malformed("a tensor has %d sizes and %d strides, want as many of each and at most %d", len(shape), len(strides), maxDims)
	}
	size := int64(d.Size())
	elements, ok := product(shape)
	if !ok || elements > math.MaxInt64/size {
		return nil, malformed("a tensor's shape %v is negative or too large", shape)
	}
	t := &Tensor{DType: d, Shape: shape, storage: s, offset: offset, strides: strides}
	if offset < 0 || offset > s.size/size {
		return nil, malformed("a tensor starts at element %d of a storage of %d", offset, s.size/size)
	}
	if elements == 0 {
		return t, nil
	}
	last := offset
	for i, stride := range strides {
		span, ok := multiply(int64(shape[i])-1, int64(stride))
		if stride < 0 || !ok || span > math.MaxInt64-last {
			return nil, malformed("a tensor's stride %d is negative or too large", stride)
		}
		last += span
	}
	if last >= s.size/size {
		return nil, malformed("a tensor reaches element %d of a storage of %d: the file is damaged", last, s.size/size)
	}
	if elements > s.size/size && elements*size > maxExpanded {
		return nil, malformed("a tensor of %d bytes repeats a storage of %d, more than the %d bytes that are allowed", elements*size, s.size, int64(maxExpanded))
	}
	return t, nil
}

func product(shape []int) (int64, bool) {
	n := int64(1)
	for _, d := range shape {
		if d < 0 {
			return 0, false
		}
	}
	if slices.Contains(shape, 0) {
		return 0, true
	}
	for _, d := range shape {
		var ok bool
		if n, ok = multiply(n, int64(d)); !ok {
			return 0, false
		}
	}
	return n, true
}

// multiply returns a·b for factors that are not negative, false on overflow.
func multiply(a, b int64) (int64, bool) {
	if a != 0 && b > math.MaxInt64/a {
		return 0, false
	}
	return a * b, true
}

// contiguous reports whether the elements lie dense and row-major in the file.
func (t *Tensor) contiguous() bool {
	n := 1
	for i, dim := range slices.Backward(t.Shape) {
		if dim != 1 && t.strides[i] != n {
			return false
		}
		n *= dim
	}
	return true
}

// ReadFloat32 reads a tensor as contiguous row-major float32. Any real element
// type converts; integers beyond 2^24 and F64 values round to the nearest.
// len(dst) must be the tensor's Elements. The error is ErrNotFound for an
// unknown name, and a *FormatError where the file ends too early.
func (c *Checkpoint) ReadFloat32(name string, dst []float32) error {
	t, err := c.find(name)
	if err != nil {
		return err
	}
	if int64(len(dst)) != t.Elements() {
		return fmt.Errorf("tensor %q has %d elements, but the destination has room for %d", name, t.Elements(), len(dst))
	}
	if t.DType == dtype.C64 {
		return fmt.Errorf("tensor %q is complex: read its bytes", name)
	}
	return c.explain(name, t.readFloat32(dst))
}

// ReadRowFloat32 reads one row of a tensor of two dimensions, len(dst) elements,
// as ReadFloat32 reads all of it.
func (c *Checkpoint) ReadRowFloat32(name string, row int, dst []float32) error {
	t, err := c.find(name)
	if err != nil {
		return err
	}
	if len(t.Shape) != 2 || row < 0 || row >= t.Shape[0] || len(dst) != t.Shape[1] {
		return fmt.Errorf("tensor %q of shape %v has no row %d of %d elements", name, t.Shape, row, len(dst))
	}
	if t.DType == dtype.C64 {
		return fmt.Errorf("tensor %q is complex: read its bytes", name)
	}
	t = t.row(row)
	return c.explain(name, t.readFloat32(dst))
}

// ReadBytes reads a tensor in its stored type as contiguous row-major
// little-endian elements. len(dst) must be the tensor's Bytes. Errors are those
// of ReadFloat32.
func (c *Checkpoint) ReadBytes(name string, dst []byte) error {
	t, err := c.find(name)
	if err != nil {
		return err
	}
	if int64(len(dst)) != t.Bytes() {
		return fmt.Errorf("tensor %q has %d bytes, but the destination has room for %d", name, t.Bytes(), len(dst))
	}
	return c.explain(name, t.readBytes(dst))
}

func (c *Checkpoint) find(name string) (Tensor, error) {
	if t, ok := c.Lookup(name); ok {
		return t, nil
	}
	for _, s := range c.skipped {
		if s.Name == name {
			return Tensor{}, fmt.Errorf("%s: tensor %q cannot be read: %s", c.path, name, s.Reason)
		}
	}
	return Tensor{}, fmt.Errorf("%s: %w: %q", c.path, ErrNotFound, name)
}

// explain adds the file and the tensor to an error.
func (c *Checkpoint) explain(name string, err error) error {
	if bad, ok := errors.AsType[*FormatError](err); ok {
		return &FormatError{c.path, fmt.Sprintf("tensor %q: %s", name, bad.Reason)}
	}
	if err != nil {
		return fmt.Errorf("%s: tensor %q: %w", c.path, name, err)
	}
	return nil
}

// chunk is how many bytes are read at once where they are converted or copied
// afterwards, so that they are still in the processor's cache then.
const chunk = 1 << 18

func (t *Tensor) readFloat32(dst []float32) error {
	if len(dst) == 0 {
		return nil
	}
	if t.keep != nil {
		return t.pieces(func(raw []byte) error {
			n := len(raw) / t.DType.Size()
			defer func() { dst = dst[n:] }()
			return t.DType.ToFloat32(dst[:n], raw)
		})
	}
	if r := t.decodedReader(); r != nil && len(dst) == r.elements && t.contiguous() {
		return r.Read(dst)
	}
	if !t.contiguous() {
		return t.gather(bytesOf(dst), true)
	}
	size := t.DType.Size()
	if t.DType == dtype.F32 && littleEndian() { // nothing to convert
		return t.inParts(len(dst), 4*chunk/size, func(from, to int) error {
			return t.readRun(bytesOf(dst[from:to]), t.offset+int64(from))
		})
	}
	return t.inParts(len(dst), chunk/size, func(from, to int) error {
		buf := chunks.Get().(*[chunk]byte)
		defer chunks.Put(buf)
		raw := buf[:(to-from)*size]
		if err := t.readRun(raw, t.offset+int64(from)); err != nil {
			return err
		}
		return t.DType.ToFloat32(dst[from:to], raw)
	})
}

var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// readers is how many goroutines read one tensor at most: one processor does not
// copy and convert as fast as memory can take it, and two nearly do.
const readers = 4

// inParts calls read for the elements 0 … n−1 in parts, several at once where there
// are several. The error is that of the first part that fails, whatever the timing.
func (t *Tensor) inParts(n, part int, read func(from, to int) error) error {
	parts := (n + part - 1) / part
	workers := min(readers, parts, runtime.GOMAXPROCS(0))
	if _, ok := t.storage.data.(*inflated); ok { // which goes from its front to its end
		workers = 1
	}
	var next, failed atomic.Int64
	failed.Store(int64(parts))
	errs := make([]error, parts)
	work := func() {
		for {
			p := next.Add(1) - 1
			if p >= failed.Load() { // all parts before have been taken
				return
			}
			from := int(p) * part
			if errs[p] = read(from, min(from+part, n)); errs[p] != nil {
				for at := failed.Load(); p < at && !failed.CompareAndSwap(at, p); at = failed.Load() {
				}
				return
			}
		}
	}
	var wait sync.WaitGroup
	for range workers - 1 {
		wait.Go(work)
	}
	work()
	wait.Wait()
	if p := failed.Load(); p < int64(parts) {
		return errs[p]
	}
	return nil
}

func (t *Tensor) readBytes(dst []byte) error {
	if len(dst) == 0 {
		return nil
	}
	if t.keep != nil {
		return t.pieces(func(raw []byte) error {
			dst = dst[copy(dst, raw):]
			return nil
		})
	}
	if !t.contiguous() {
		return t.gather(dst, false)
	}
	size := t.DType.Size()
	return t.inParts(len(dst)/size, 4*chunk/size, func(from, to int) error {
		return t.readRun(dst[from*size:to*size], t.offset+int64(from))
	})
}

// readRun reads consecutive elements of the storage, the first one given.
func (t *Tensor) readRun(dst []byte, element int64) error {
	s := t.storage
	if err := readAt(s.data, dst, s.base+element*int64(t.DType.Size())); err != nil {
		return err
	}
	if s.bigEndian {
		swapBytes(dst, t.DType)
	}
	return nil
}

// swapBytes turns big-endian elements into little-endian ones. A complex
// element is two numbers.
func swapBytes(p []byte, d DType) {
	size := d.Size()
	if d == dtype.C64 {
		size /= 2
	}
	for i := 0; i+size <= len(p); i += size {
		slices.Reverse(p[i : i+size])
	}
}

func readAt(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return malformed("the file ends at byte %d, inside the tensors: it is cut short", off+int64(n))
	}
	return err
}

// axis is one dimension of a strided copy.
type axis struct{ n, src, dst int } // size; strides in elements

// gather copies the elements of a tensor that is not contiguous to dst, as they
// are or, where convert says so, as float32. It walks the storage in the order of
// the file, largest stride outermost, so that it reads long runs whatever the
// order of the tensor's own dimensions.
func (t *Tensor) gather(dst []byte, convert bool) error {
	dense := denseStrides(t.Shape)
	var axes []axis
	for i, n := range t.Shape {
		if n > 1 {
			axes = append(axes, axis{n, t.strides[i], dense[i]})
		}
	}
	slices.SortStableFunc(axes, func(a, b axis) int { return cmp.Compare(b.src, a.src) })

	// The innermost axes that span at most a chunk are read at once.
	size := t.DType.Size()
	inner, span := len(axes), 1
	for inner > 0 {
		a := axes[inner-1]
		more, ok := multiply(int64(a.n-1), int64(a.src))
		if !ok || more > int64(chunk/size-span) {
			break
		}
		span += int(more)
		inner--
	}
	raw := make([]byte, span*size)
	values, width := raw, size
	var floats []float32
	if convert {
		floats, width = make([]float32, span), 4
		values = bytesOf(floats)
	}
	var outer func(k int, element int64, to int) error
	outer = func(k int, element int64, to int) error {
		if k == inner {
			if err := t.readRun(raw, element); err != nil {
				return err
			}
			if convert {
				if err := t.DType.ToFloat32(floats, raw); err != nil {
					return err
				}
			}
			scatter(dst, values, axes[inner:], width, 0, to)
			return nil
		}
		for i := range axes[k].n {
			if err := outer(k+1, element+int64(i)*int64(axes[k].src), to+i*axes[k].dst); err != nil {
				return err
			}
		}
		return nil
	}
	return outer(0, t.offset, 0)
}

// bytesOf returns the memory of x.
func bytesOf(x []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), 4*len(x))
}

func littleEndian() bool { return binary.NativeEndian.Uint16([]byte{1, 0}) == 1 }

// scatter copies the elements of src that the axes name to their places in dst.
func scatter(dst, src []byte, axes []axis, size, from, to int) {
	switch {
	case len(axes) == 0:
		copy(dst[to*size:][:size], src[from*size:])
	case len(axes) == 1 && axes[0].src == 1 && axes[0].dst == 1:
		copy(dst[to*size:], src[from*size:(from+axes[0].n)*size])
	default:
		for i := range axes[0].n {
			scatter(dst, src, axes[1:], size, from+i*axes[0].src, to+i*axes[0].dst)
		}
	}
}
