package blas

import (
	"context"
	"fmt"
	"unsafe"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/pool"
)

// GramRows is the most rows that a block given to AddGram should have where
// blocks are collected: a multiple of the rows that one float32 sum takes.
const GramRows = 5 * kc32

// AddGram adds AᵀB to the float64 master M. Sums of 384 products are taken in
// float32 and added to the master. Shapes: A r×m, B r×n, M m×n.
func AddGram(ctx context.Context, p *pool.Pool, a, b blas32.General, m blas64.General) error {
	return addGram(ctx, p, a, b, m, false)
}

// AddGramUpper is AddGram with B = A, for the triangle on and above the
// diagonal; some elements below it are changed too. Mirror completes the
// master after the last block.
func AddGramUpper(ctx context.Context, p *pool.Pool, a blas32.General, m blas64.General) error {
	return addGram(ctx, p, a, a, m, true)
}

func addGram(ctx context.Context, workers *pool.Pool, a, b blas32.General, m blas64.General, upper bool) error {
	if err := checkAll(of32(a), of32(b), matrix[float32]{}); err != nil {
		return err
	}
	if err := of64(m).check("the master"); err != nil {
		return err
	}
	if a.Rows != b.Rows || m.Rows != a.Cols || m.Cols != b.Cols {
		return fmt.Errorf("blas: the Gram of %d×%d and %d×%d does not fit a master of %d×%d", a.Rows, a.Cols, b.Rows, b.Cols, m.Rows, m.Cols)
	}
	p := newProduct[float32]()
	p.a, p.m, p.k = of32(a).operand(Trans, false)
	p.b, p.n, _ = of32(b).operand(NoTrans, true)
	p.alpha, p.master, p.ldm, p.upper = 1, m.Data, m.Stride, upper
	if p.m == 0 || p.n == 0 {
		p.release()
		return ctx.Err()
	}
	return p.run(ctx, workers)
}

// addToMaster adds a tile of the given width to rows × cols of the master.
func addToMaster[T number](dst unsafe.Pointer, ld int, tile []T, rows, cols, width int) {
	src := unsafe.Pointer(&tile[0])
	whole := cols &^ 7
	if whole > 0 {
		use.addTile(dst, ld*8, src, width*4, rows, whole)
	}
	if whole == cols {
		return
	}
	for r := range rows {
		d := unsafe.Slice((*float64)(unsafe.Add(dst, r*ld*8)), cols)
		for c := whole; c < cols; c++ {
			d[c] += float64(tile[r*width+c])
		}
	}
}

// AddColumns adds the sum of each column of A to sum, row by row in float64.
func AddColumns(sum []float64, a blas32.General) {
	if a.Rows == 0 || a.Cols == 0 {
		return
	}
	sum = sum[:a.Cols]
	data := a.Data[:(a.Rows-1)*a.Stride+a.Cols]
	// A row of the sums is a matrix of stride 0.
	addToMaster(unsafe.Pointer(&sum[0]), 0, data, a.Rows, a.Cols, a.Stride)
}

// Mirror copies the strict upper triangle of the square M to its lower one.
func Mirror(m blas64.General) {
	for i := range m.Rows {
		for j := range i {
			m.Data[i*m.Stride+j] = m.Data[j*m.Stride+i]
		}
	}
}
