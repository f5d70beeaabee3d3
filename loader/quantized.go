package loader

import (
	"encoding/binary"
	"io"
	"math"
	"math/big"
	"sync"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// Quantization says how a tensor was stored that a checkpoint holds as integer
// codes: value = scale · (code − zero point).
type Quantization struct {
	Codes DType // what is stored: I8, U8 or I32
	Axis  int   // the axis that has a scale and zero point for each index, −1 where one pair serves all
}

// dequantized gives the values of a quantized tensor as dense little-endian
// float32, as if they were stored. Scales are read with the first value.
type dequantized struct {
	codes  *Tensor
	axis   int
	scales parameters
	zeros  parameters

	once  sync.Once
	err   error
	scale []float32
	zero  []float64
}

// parameters are numbers that stand in the pickle, or in a tensor.
type parameters struct {
	values []float64
	tensor *Tensor
}

func (p parameters) count() int64 {
	if p.tensor != nil {
		return p.tensor.Elements()
	}
	return int64(len(p.values))
}

func (p parameters) read() ([]float64, error) {
	if p.tensor == nil {
		return p.values, nil
	}
	narrow := make([]float32, p.tensor.Elements())
	if err := p.tensor.readFloat32(narrow); err != nil {
		return nil, err
	}
	values := make([]float64, len(narrow))
	for i, v := range narrow {
		values[i] = float64(v)
	}
	return values, nil
}

// ReadAt reads whole elements.
func (d *dequantized) ReadAt(p []byte, off int64) (int, error) {
	d.once.Do(func() {
		var scales []float64
		if scales, d.err = d.scales.read(); d.err == nil {
			d.zero, d.err = d.zeros.read()
		}
		for _, v := range scales { // PyTorch computes with the scale as float32
			d.scale = append(d.scale, float32(v))
		}
	})
	if d.err != nil {
		return 0, d.err
	}
	first := off / 4
	n := min(int64(len(p)/4), d.codes.Elements()-first)
	if n <= 0 {
		return 0, io.EOF
	}
	raw, err := d.readCodes(first, n)
	if err != nil {
		return 0, err
	}
	codes := d.codes.DType
	inner, channels := int64(1), int64(1)
	if d.axis >= 0 {
		channels = int64(d.codes.Shape[d.axis])
		for _, dim := range d.codes.Shape[d.axis+1:] {
			inner *= int64(dim)
		}
	}
	for i := range n {
		c := (first + i) / inner % channels
		v := float64(d.scale[c]) * (code(codes, raw[i*int64(codes.Size()):]) - d.zero[c])
		binary.LittleEndian.PutUint32(p[4*i:], math.Float32bits(float32(v)))
	}
	if int(4*n) < len(p) {
		return int(4 * n), io.EOF
	}
	return len(p), nil
}

// readCodes returns n codes in the tensor's order.
func (d *dequantized) readCodes(first, n int64) ([]byte, error) {
	t, size := *d.codes, int64(d.codes.DType.Size())
	if t.contiguous() {
		raw := make([]byte, n*size)
		return raw, t.readRun(raw, t.offset+first)
	}
	// Whole indices of the first axis, which a tensor that is not contiguous has.
	inner := t.Elements() / int64(t.Shape[0])
	from, to := first/inner, (first+n+inner-1)/inner
	t.offset += from * int64(t.strides[0])
	t.Shape = append([]int{int(to - from)}, t.Shape[1:]...)
	raw := make([]byte, t.Bytes())
	err := t.readBytes(raw)
	return raw[(first-from*inner)*size:][:n*size], err
}

func code(d DType, raw []byte) float64 {
	switch d {
	case dtype.I8:
		return float64(int8(raw[0]))
	case dtype.U8:
		return float64(raw[0])
	}
	return float64(int32(binary.LittleEndian.Uint32(raw)))
}

// rebuildQuantized answers (storage, first element, sizes, strides, quantizer, …).
// The quantizer is (scheme, scale, zero point) or (scheme, scales, zero points,
// axis).
func rebuildQuantized(args []any) (any, error) {
	if len(args) < 5 {
		return nil, malformed("a quantized tensor is rebuilt from %d arguments, want 5 or more", len(args))
	}
	s, ok := args[0].(*pickledStorage)
	if !ok {
		return nil, malformed("a quantized tensor is rebuilt from something that is not a storage")
	}
	stored := s.class.codes
	if stored == dtype.Invalid {
		return &pickledTensor{unreadable: "a quantized tensor of " + s.class.name + " elements"}, nil
	}
	inner, err := tensorOver(s, element(stored), args[:4])
	if err != nil {
		return nil, err
	}
	codes := inner.(*pickledTensor).view
	quantizer := sequence(args[4])
	scheme := ""
	if len(quantizer) > 2 {
		if c, ok := quantizer[0].(*class); ok {
			scheme = c.name
		}
	}
	d := &dequantized{codes: codes, axis: -1}
	channels := int64(1)
	switch {
	case scheme == "torch.per_tensor_affine" || scheme == "torch.per_tensor_symmetric":
	case len(quantizer) == 4 && (scheme == "torch.per_channel_affine" || scheme == "torch.per_channel_symmetric" || scheme == "torch.per_channel_affine_float_qparams"):
		if d.axis, ok = quantizer[3].(int); !ok || d.axis < 0 || d.axis >= len(codes.Shape) {
			return nil, malformed("a quantized tensor of shape %v has the axis %v", codes.Shape, quantizer[3])
		}
		channels = int64(codes.Shape[d.axis])
	default:
		return &pickledTensor{unreadable: "a tensor quantized in a way that PyTorch does not document"}, nil
	}
	scales, ok1 := numbers(quantizer[1])
	zeros, ok2 := numbers(quantizer[2])
	if !ok1 || !ok2 || scales.count() != channels || zeros.count() != channels {
		return nil, malformed("a quantized tensor of shape %v has scales or zero points of another number", codes.Shape)
	}
	d.scales, d.zeros = scales, zeros
	return &pickledTensor{view: &Tensor{
		DType: dtype.F32, Shape: codes.Shape, Quantized: &Quantization{stored, d.axis},
		storage: &storage{data: d, size: 4 * codes.Elements()}, strides: denseStrides(codes.Shape),
	}}, nil
}

// numbers returns a number, a list of them, or those of a tensor.
func numbers(v any) (parameters, bool) {
	if t, ok := v.(*pickledTensor); ok {
		ok = t.view != nil && t.view.DType != dtype.C64
		return parameters{tensor: t.view}, ok
	}
	items := sequence(v)
	if items == nil {
		items = []any{v}
	}
	var p parameters
	for _, item := range items {
		switch n := item.(type) {
		case int:
			p.values = append(p.values, float64(n))
		case float64:
			p.values = append(p.values, n)
		case *big.Int:
			f, _ := new(big.Float).SetInt(n).Float64()
			p.values = append(p.values, f)
		default:
			return p, false
		}
	}
	return p, true
}
