package loader

import (
	"io"
	"slices"
	"sync"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// Decoded is a tensor that a checkpoint's files hold only as codes, in tensors of
// other names and types. A view that has it reads it as F32.
type Decoded struct {
	Name     string // of the weight that it is in the checkpoint
	Shape    []int
	Encoding string // for people, such as "GPTQ 4 bits g128"
	Key      string // all that the values depend on beside the files
	Bytes    int64  // of what is stored of it

	// Read writes all values, row-major, to dst. It may be called side by side.
	Read func(dst []float32) error
}

// tensor returns the tensor that reads as the decoded values.
func (d *Decoded) tensor(last *lastDecoded) (Tensor, string) {
	n, ok := product(d.Shape)
	if !ok || n > 1<<60 || len(d.Shape) > maxDims {
		return Tensor{}, "the shape is negative or too large"
	}
	r := &decodedReader{Decoded: d, elements: int(n), last: last}
	return Tensor{
		DType: dtype.F32, Shape: slices.Clone(d.Shape), strides: denseStrides(d.Shape),
		storage: &storage{data: r, size: 4 * n},
	}, ""
}

// Decoded says how the files hold the tensor as codes; nil where they hold its
// elements, and for what a view has cut.
func (t Tensor) Decoded() *Decoded {
	if r := t.decodedReader(); r != nil && t.keep == nil {
		return r.Decoded
	}
	return nil
}

func (t Tensor) decodedReader() *decodedReader {
	if t.storage == nil {
		return nil
	}
	r, _ := t.storage.data.(*decodedReader)
	return r
}

// decodedReader gives decoded values as if they were stored as little-endian F32.
type decodedReader struct {
	*Decoded
	elements int
	last     *lastDecoded
}

// lastDecoded keeps the values of the tensor that was last read in pieces, of all
// tensors of a view.
type lastDecoded struct {
	sync.Mutex
	of     *Decoded
	values []float32
}

// ReadAt decodes the whole tensor, unless it was the last one that was asked for.
func (r *decodedReader) ReadAt(p []byte, off int64) (int, error) {
	r.last.Lock()
	defer r.last.Unlock()
	if r.last.of != r.Decoded {
		r.last.of, r.last.values = nil, nil // so that it can go before the next one comes
		values := make([]float32, r.elements)
		if err := r.Read(values); err != nil {
			return 0, err
		}
		r.last.of, r.last.values = r.Decoded, values
	}
	first := int(off / 4)
	n := min(len(p)/4, r.elements-first)
	if n <= 0 {
		return 0, io.EOF
	}
	if err := dtype.F32.FromFloat32(p[:4*n], r.last.values[first:first+n]); err != nil {
		return 0, err
	}
	if 4*n < len(p) {
		return 4 * n, io.EOF
	}
	return len(p), nil
}
