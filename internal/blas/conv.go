package blas

import (
	"context"
	"fmt"
	"unsafe"

	"github.com/fettle-dev/fettle/internal/pool"
)

// Conv is a convolution whose weight is packed once for many images. It is safe
// for concurrent use.
type Conv struct {
	geometry Patches
	outputs  int
	weight   []float32
	bias     []float32
	packed   [][]float32 // by group, nil where each group has one output
}

// NewConv prepares a convolution. The weight is outputs × Inputs(), row-major;
// bias has one number for each output, or is nil. Neither is to be changed
// while the Conv is in use.
func NewConv(g Patches, outputs int, weight, bias []float32) (*Conv, error) {
	inputs := g.Inputs()
	if outputs%g.Groups != 0 || len(weight) != outputs*inputs || bias != nil && len(bias) != outputs {
		return nil, fmt.Errorf("blas: a convolution of %d outputs in %d groups has %d weights of %d and %d biases",
			outputs, g.Groups, len(weight), outputs*inputs, len(bias))
	}
	c := &Conv{geometry: g, outputs: outputs, weight: weight, bias: bias}
	per := outputs / g.Groups
	if per == 1 && g.Groups > 1 && use.f32.direct != nil {
		return c, nil
	}
	c.packed = make([][]float32, g.Groups)
	for i := range c.packed {
		p := newProduct[float32]()
		p.m, p.k = per, inputs
		p.a = source[float32]{data: weight[i*per*inputs:][:per*inputs], ld: inputs}
		c.packed[i] = p.packAll(true)
		p.release()
	}
	return c, nil
}

// Forward computes one image's outputs. The image is Channels × Height × Width
// and out outputs × OutH × OutW. An output is bias + Σ weight·patch, in the
// order of the weight, as one product of weight and patches would give it; the
// patches are packed from the image and never stored whole.
func (c *Conv) Forward(ctx context.Context, workers *pool.Pool, image, out []float32) error {
	g := c.geometry
	area, per := g.Rows(), c.outputs/g.Groups
	if len(image) != g.Channels*g.Height*g.Width || len(out) != c.outputs*area {
		return fmt.Errorf("blas: a convolution is given %d numbers for %d and room for %d of %d",
			len(image), g.Channels*g.Height*g.Width, len(out), c.outputs*area)
	}
	for i := range g.Groups {
		dst := out[i*per*area:][:per*area]
		var bias []float32
		if c.bias != nil {
			bias = c.bias[i*per:][:per]
		}
		if c.packed == nil {
			if err := ctx.Err(); err != nil {
				return err
			}
			c.filter(image, i, bias, dst)
			continue
		}
		p := newProduct[float32]()
		p.m, p.n, p.k = per, area, g.Inputs()
		p.a = source[float32]{packed: c.packed[i]}
		p.alpha, p.c, p.ldc, p.bias, p.perRow = 1, dst, area, bias, true
		if g.KernelH*g.KernelW*g.StrideH*g.StrideW == 1 && g.PadH+g.PadW == 0 {
			p.b = source[float32]{data: image[i*g.Inputs()*area:][:g.Inputs()*area], ld: area, kMajor: true}
			if err := p.run(ctx, workers); err != nil {
				return err
			}
			continue
		}
		u := unfold(g, image, i, 0, g.OutH(), false)
		p.b = source[float32]{image: u}
		err := p.run(ctx, workers)
		u.release()
		if err != nil {
			return err
		}
	}
	return nil
}

// filter computes one output plane of a depthwise convolution straight from the
// image. It takes some rows at a time as one long row, with what lies between
// them, and leaves that out of the result.
func (c *Conv) filter(image []float32, channel int, bias, out []float32) {
	g, kr := c.geometry, use.f32
	w := newWorker[float32]()
	defer w.release()
	weight := c.weight[channel*g.Inputs():][:g.Inputs()]
	t := &w.tile
	t.alpha32, t.lda = 1, 4
	width, height, tile := g.OutW(), g.OutH(), 2*kr.lanes
	lines := max(1, (slabSize-tile)/(width+g.DilationW*(g.KernelW-1)))
	for top := 0; top < height; top += lines {
		rows := min(lines, height-top)
		u := unfold(g, image, channel, top, rows, true)
		n := (rows-1)*u.line + width
		plane := w.slab
		if n+tile > len(plane) { // one row is longer than a slab
			plane = make([]float32, n+tile)
		}
		for k0 := 0; k0 < len(weight); k0 += kr.kc {
			t.k = min(kr.kc, len(weight)-k0)
			t.a, t.offsets = unsafe.Pointer(&weight[k0]), unsafe.Pointer(&u.offsets[k0])
			for x := 0; x < n; x += tile {
				t.b, t.c, t.mode = unsafe.Pointer(&u.data[x]), unsafe.Pointer(&plane[x]), overwrite
				switch {
				case k0 > 0:
					t.mode, t.in = addMatrix, t.c
				case bias != nil:
					t.mode, t.in = addColumn, unsafe.Pointer(&bias[0])
				}
				kr.direct[2](t)
			}
		}
		for y := range rows {
			copy(out[(top+y)*width:][:width], plane[y*u.line:])
		}
		u.release()
	}
}
