package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// TestGather holds strided reads of random views against element by element
// copies.
func TestGather(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	types := []DType{dtype.F64, dtype.F32, dtype.F16, dtype.U8, dtype.C64}
	for range 300 {
		d := types[r.IntN(len(types))]
		size := d.Size()
		shape := make([]int, r.IntN(5))
		strides := make([]int, len(shape))
		last := 0
		for i := range shape {
			shape[i] = 1 + r.IntN(5)
			strides[i] = r.IntN(20)
			if r.IntN(8) == 0 { // spans more than one chunk
				strides[i] = chunk / size / 3
			}
			last += (shape[i] - 1) * strides[i]
		}
		offset := r.IntN(10)
		data := make([]byte, (offset+last+1)*size)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		view, err := newView(&storage{data: bytes.NewReader(data), size: int64(len(data))}, d, int64(offset), shape, strides)
		if err != nil {
			t.Fatal(err)
		}
		var want []byte
		var visit func(k, at int)
		visit = func(k, at int) {
			if k == len(shape) {
				want = append(want, data[at*size:][:size]...)
				return
			}
			for i := range shape[k] {
				visit(k+1, at+i*strides[k])
			}
		}
		visit(0, offset)
		got := make([]byte, view.Bytes())
		if err := view.readBytes(got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%s of shape %v, strides %v, offset %d differs", d, shape, strides, offset)
		}
		if d == dtype.C64 {
			continue
		}
		wide, narrow := make([]float32, view.Elements()), make([]float32, view.Elements())
		if err := errors.Join(view.readFloat32(narrow), d.ToFloat32(wide, want)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(bytesOf(wide), bytesOf(narrow)) {
			t.Fatalf("%s of shape %v, strides %v, offset %d differs as float32", d, shape, strides, offset)
		}
	}
}

func TestReadFloat32InChunks(t *testing.T) {
	for _, d := range []DType{dtype.F32, dtype.F16, dtype.I64} {
		n := 2*chunk/d.Size() + 5
		values := make([]float32, n)
		for i := range values {
			values[i] = float32(i % 1000)
		}
		data := make([]byte, n*d.Size())
		if d == dtype.I64 {
			for i, v := range values {
				binary.LittleEndian.PutUint64(data[8*i:], uint64(v))
			}
		} else if err := d.FromFloat32(data, values); err != nil {
			t.Fatal(err)
		}
		view, err := newView(&storage{data: bytes.NewReader(data), size: int64(len(data))}, d, 1, []int{n - 1}, []int{1})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]float32, n-1)
		if err := view.readFloat32(got); err != nil {
			t.Fatal(err)
		}
		for i, v := range got {
			if v != values[i+1] {
				t.Fatalf("%s: element %d is %v, want %v", d, i, v, values[i+1])
			}
		}
	}
}

func TestBigEndian(t *testing.T) {
	data := []byte{0, 1, 2, 3, 4, 5, 6, 7}
	for d, want := range map[DType][]byte{
		dtype.U8:  {0, 1, 2, 3, 4, 5, 6, 7},
		dtype.F16: {1, 0, 3, 2, 5, 4, 7, 6},
		dtype.F32: {3, 2, 1, 0, 7, 6, 5, 4},
		dtype.C64: {3, 2, 1, 0, 7, 6, 5, 4},
		dtype.F64: {7, 6, 5, 4, 3, 2, 1, 0},
	} {
		n := 8 / d.Size()
		view, err := newView(&storage{data: bytes.NewReader(data), size: 8, bigEndian: true}, d, 0, []int{n}, []int{1})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 8)
		if err := view.readBytes(got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", d, got, err, want)
		}
	}
}

func TestEmptyTensors(t *testing.T) {
	s := &storage{data: bytes.NewReader(nil)}
	for _, shape := range [][]int{{0}, {0, 4}, {4, 0, 1 << 40, 1 << 40}} {
		view, err := newView(s, dtype.F32, 0, shape, make([]int, len(shape)))
		if err != nil {
			t.Fatal(err)
		}
		if view.Elements() != 0 || view.Bytes() != 0 || view.readFloat32(nil) != nil || view.readBytes(nil) != nil {
			t.Errorf("shape %v: %d elements", shape, view.Elements())
		}
	}
}
