package blas

import (
	"context"
	"fmt"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
)

// PackedB is op(B) in the order in which kernels read it, for weights that many
// products share.
type PackedB struct {
	n, k   int
	panels []float32
}

// PackB packs op(B), which is k×n. It holds as many numbers as B, rounded up to
// a multiple of a tile's columns.
func PackB(tB Transpose, b blas32.General) (*PackedB, error) {
	if err := of32(b).check("B"); err != nil {
		return nil, err
	}
	p := newProduct[float32]()
	defer p.release()
	p.b, p.n, p.k = of32(b).operand(tB, true)
	packed := &PackedB{n: p.n, k: p.k}
	packed.panels = p.packAll(false)
	return packed, nil
}

// packAll returns all panels of A or of B.
func (p *product[T]) packAll(ofA bool) []T {
	p.rowPanels, p.colPanels = ceil(p.m, p.kr.rows), ceil(p.n, p.kr.cols)
	p.shareA, p.block0, p.chunk0 = ofA, 0, 0
	width := p.kr.cols
	p.chunk1 = p.colPanels
	if ofA {
		width, p.chunk1 = p.kr.step, p.rowPanels
	}
	p.shared = make([]T, p.chunk1*width*p.k)
	if p.chunk1 == 0 {
		return nil
	}
	w := newWorker[T]()
	defer w.release()
	for block := range ceil(p.k, p.kr.kc) {
		p.pack(w, p.sharedPanel(block, 0), ofA, block, 0, p.chunk1)
	}
	return p.shared
}

// GemmPacked computes C = alpha·op(A)·op(B) + beta·C + bias, with bias (nil for
// none) added to every row. The bytes are those of Gemm with beta 1 into a C
// that holds beta·C + bias.
func GemmPacked(ctx context.Context, workers *pool.Pool, tA Transpose, alpha float32, a blas32.General, b *PackedB, beta float32, c blas32.General, bias []float32) error {
	if err := checkAll(of32(a), matrix[float32]{}, of32(c)); err != nil {
		return err
	}
	p := newProduct[float32]()
	p.a, p.m, p.k = of32(a).operand(tA, false)
	p.b, p.n = source[float32]{packed: b.panels}, b.n
	if b.k != p.k || c.Rows != p.m || c.Cols != p.n || bias != nil && len(bias) < p.n {
		m, k := p.m, p.k
		p.release()
		return fmt.Errorf("blas: %d×%d times %d×%d with %d biases does not give %d×%d", m, k, b.k, b.n, len(bias), c.Rows, c.Cols)
	}
	p.alpha, p.beta, p.c, p.ldc, p.bias = alpha, beta, c.Data, c.Stride, bias
	return p.run(ctx, workers)
}

// Linear computes Y = X·Wᵀ + bias, with bias (nil for none) added to every row.
// Shapes: X m×k, W n×k, Y m×n.
func Linear(ctx context.Context, workers *pool.Pool, x, w blas32.General, bias []float32, y blas32.General) error {
	if err := checkAll(of32(x), of32(w), of32(y)); err != nil {
		return err
	}
	if x.Cols != w.Cols || y.Rows != x.Rows || y.Cols != w.Rows || bias != nil && len(bias) < y.Cols {
		return fmt.Errorf("blas: %d×%d times the transpose of %d×%d with %d biases does not give %d×%d", x.Rows, x.Cols, w.Rows, w.Cols, len(bias), y.Rows, y.Cols)
	}
	p := newProduct[float32]()
	p.a, p.m, p.k = of32(x).operand(NoTrans, false)
	p.b, p.n, _ = of32(w).operand(Trans, true)
	p.alpha, p.c, p.ldc, p.bias = 1, y.Data, y.Stride, bias
	return p.run(ctx, workers)
}
