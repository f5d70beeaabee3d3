package blas

import (
	"context"
	"unsafe"
)

// directRows is the most rows of C for which B is read where it lies, instead
// of being packed for a single use.
const directRows = 8

// direct says whether B is read once and unpacked: for few rows, where there is
// a kernel wide enough to make that worth while. Chains are the same.
func (p *product[T]) direct() bool {
	return p.m <= directRows && p.m <= p.kr.rows && p.kr.widest(p.m) > 2 && p.b.kMajor && p.b.packed == nil && p.b.image == nil && p.a.packed == nil && p.master == nil
}

// runDirect computes a product of few rows by columns as wide as the registers
// hold, so that rows of B are read in long runs.
func (p *product[T]) runDirect(ctx context.Context, each func(context.Context, int, func(int) error) error) error {
	p.rowPanels = ceil(p.m, p.kr.rows)
	size := p.rowPanels * p.kr.step * p.k
	if cap(p.buffer) < size {
		p.buffer = make([]T, size)
	}
	p.shareA, p.shared = true, p.buffer[:size]
	p.chunk0, p.chunk1, p.block0, p.block1 = 0, p.rowPanels, 0, ceil(p.k, p.kr.kc)
	w := newWorker[T]()
	for block := range p.block1 {
		p.pack(w, p.sharedPanel(block, 0), true, block, 0, p.rowPanels)
	}
	w.release()
	p.slabs = ceil(p.n, p.directWidth())
	return each(ctx, p.slabs, p.directTask)
}

// directWidth returns the columns of the widest tile of the tallest panel.
func (p *product[T]) directWidth() int {
	return p.kr.widest(ceil(p.m, p.rowPanels)) * p.kr.lanes
}

func (p *product[T]) multiplyColumns(t int) error {
	w := newWorker[T]()
	defer w.release()
	wide := p.directWidth()
	j0, j1 := t*wide, min(t*wide+wide, p.n)
	if p.beta != 0 && (p.beta != 1 || p.bias != nil) {
		p.scale(0, p.m, j0, j1)
	}
	for j0 < j1 {
		j0 += p.multiplyRun(w, j0, j1-j0)
	}
	return nil
}

// multiplyRun computes columns from j0 on, as many of n as one kernel takes,
// and returns how many.
func (p *product[T]) multiplyRun(w *worker[T], j0, n int) int {
	size := int(unsafe.Sizeof(T(0)))
	t := &w.tile
	t.alpha32, t.alpha64 = float32(p.alpha), float64(p.alpha)
	lanes := p.kr.lanes
	_, v := p.kr.wideTile(ceil(p.m, p.rowPanels), max(1, n/lanes))
	cols := min(n, v*lanes)
	for block := range p.block1 {
		k0 := block * p.kr.kc
		t.k = p.blockLen(block)
		for i := range p.rowPanels {
			i0, rows, _ := p.rowPanel(i)
			// A row shorter than a vector is packed after all.
			if n < lanes {
				packPanel(p.kr, w, w.slab, &p.b, j0, n, lanes, k0, t.k)
				t.b, t.ldb = unsafe.Pointer(&w.slab[0]), lanes*size
			} else {
				t.b, t.ldb = unsafe.Pointer(&p.b.data[k0*p.b.ld+j0]), p.b.ld*size
			}
			t.a, t.lda = unsafe.Pointer(&p.sharedPanel(block, i)[0]), p.kr.step*size
			t.next = t.a
			p.finishTile(w, p.kr.tiles[rows][v], i0, rows, j0, cols, v*lanes, block == 0)
		}
	}
	return cols
}
