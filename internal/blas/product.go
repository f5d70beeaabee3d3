package blas

import (
	"context"
	"sync"
	"unsafe"

	"github.com/fettle-dev/fettle/internal/pool"
)

// A product is computed as in BLIS (van Zee, van de Geijn, "BLIS: A Framework
// for Rapidly Instantiating BLAS Functionality", ACM TOMS 41, 2015): panels of
// A and B are packed so that a micro-kernel reads them in one run, and blocks
// of them stay in a cache while they are reused. One operand is shared: a part
// of it is packed by all workers together. The other is cut into slabs; a
// worker packs one, multiplies it by all that is shared, and takes the next.
//
// An output element is one chain of fused multiply-adds over each block of kc
// products, added to C block by block. That depends on nothing else, so the
// plan below may look at the shapes and at the number of workers as it likes.

// source is an operand: n panels' worth of rows of A or columns of B.
type source[T number] struct {
	data   []T
	ld     int
	kMajor bool      // element (i, l) is data[l·ld+i], else data[i·ld+l]
	packed []T       // panels packed before, for all of k
	image  *unfolded // columns are the patches of an image
}

type product[T number] struct {
	kr      *kernels
	m, n, k int
	a, b    source[T]
	alpha   T
	beta    T
	c       []T
	ldc     int
	bias    []T  // added once, nil for none
	perRow  bool // bias is for rows of C, else for columns
	master  []float64
	ldm     int
	upper   bool // B is A, and only what reaches the diagonal is wanted

	// The plan.
	shareA         bool
	rowPanels      int
	colPanels      int
	slabs          int
	chunk0, chunk1 int // panels of the shared side at hand
	block0, block1 int // blocks of k at hand
	shared         []T
	// The methods, bound once.
	packTask, slabTask, directTask func(t int) error
	buffer                         []T
}

// worker is what one goroutine needs for a slab.
type worker[T number] struct {
	tile tile
	slab []T
	edge [2][]T // a tile that does not fit its output, and what is added to it
	rows [16]unsafe.Pointer
	at   [panelGroup]int32
}

const (
	maxTile     = 16 * 256       // elements of an edge buffer
	slabSize    = 16 * 16 * kc32 // elements of a slab
	slabAim     = slabSize / 2   // what a slab has when there is enough work
	sharedSize  = 1 << 19        // elements of the shared part
	panelGroup  = 8              // panels that are packed together
	smallChains = 1 << 18        // products that are not worth a second worker
)

var (
	products [2]sync.Pool
	slabs    [2]sync.Pool
)

func typeIndex[T number]() int { return int(unsafe.Sizeof(T(0)))/4 - 1 }

func newProduct[T number]() *product[T] {
	p, ok := products[typeIndex[T]()].Get().(*product[T])
	if !ok {
		p = &product[T]{}
		p.packTask, p.slabTask, p.directTask = p.packShared, p.multiplySlab, p.multiplyColumns
	}
	p.kr = kernelsOf[T](use)
	return p
}

// release gives the product back without what it points to.
func (p *product[T]) release() {
	*p = product[T]{packTask: p.packTask, slabTask: p.slabTask, directTask: p.directTask, buffer: p.buffer}
	products[typeIndex[T]()].Put(p)
}

func newWorker[T number]() *worker[T] {
	w, ok := slabs[typeIndex[T]()].Get().(*worker[T])
	if !ok {
		all := make([]T, slabSize+2*maxTile)
		w = &worker[T]{slab: all[:slabSize]}
		w.edge = [2][]T{all[slabSize:][:maxTile], all[slabSize+maxTile:]}
	}
	return w
}

func (w *worker[T]) release() {
	w.tile = tile{}
	clear(w.rows[:])
	slabs[typeIndex[T]()].Put(w)
}

// run computes the product on the pool's workers.
func (p *product[T]) run(ctx context.Context, workers *pool.Pool) error {
	defer p.release()
	if p.m == 0 || p.n == 0 {
		return ctx.Err()
	}
	if p.k == 0 || p.alpha == 0 {
		if p.master == nil {
			p.scale(0, p.m, 0, p.n)
		}
		return ctx.Err()
	}
	each := workers.For
	n := 1
	if workers == nil || workers.Workers() == 1 || p.m*p.n*p.k <= smallChains {
		each = inTurn
	} else {
		n = workers.Workers()
	}
	if p.direct() {
		return p.runDirect(ctx, each)
	}
	return p.runPacked(ctx, n, each)
}

// inTurn calls the tasks on the caller.
func inTurn(ctx context.Context, n int, task func(int) error) error {
	for t := range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := task(t); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (p *product[T]) runPacked(ctx context.Context, workers int, each func(context.Context, int, func(int) error) error) error {
	p.rowPanels = ceil(p.m, p.kr.rows)
	p.colPanels = ceil(p.n, p.kr.cols)
	p.shareA = p.m < p.n && !p.upper || p.b.image != nil
	side, width, count := &p.b, p.kr.cols, p.colPanels
	slabWidth, slabPanels := p.kr.step, p.rowPanels
	if p.upper {
		slabWidth, slabPanels = p.kr.cols, p.colPanels
	}
	if p.shareA {
		side, width, count = &p.a, p.kr.step, p.rowPanels
		slabWidth, slabPanels = p.kr.cols, p.colPanels
	}
	perSlab := slabAim / (slabWidth * p.kr.kc)
	if workers > 1 {
		perSlab = max(1, min(perSlab, slabPanels/(4*workers)))
	}
	p.slabs = ceil(slabPanels, perSlab)
	if workers > 1 && p.slabs > workers {
		p.slabs = min(slabPanels, ceil(p.slabs, workers)*workers)
	}
	blocks := ceil(p.k, p.kr.kc)
	perChunk, perTurn := count, blocks
	if side.packed == nil {
		if !p.upper {
			perChunk = min(count, sharedSize/(width*p.kr.kc))
		}
		perTurn = max(1, min(blocks, sharedSize/(perChunk*width*p.kr.kc)))
		size := perChunk * width * min(p.k, perTurn*p.kr.kc)
		if cap(p.buffer) < size {
			p.buffer = make([]T, size)
		}
		p.shared = p.buffer[:cap(p.buffer)]
	} else {
		p.shared = side.packed
	}
	for p.chunk0 = 0; p.chunk0 < count; p.chunk0 += perChunk {
		p.chunk1 = min(p.chunk0+perChunk, count)
		for p.block0 = 0; p.block0 < blocks; p.block0 += perTurn {
			p.block1 = min(p.block0+perTurn, blocks)
			if side.packed == nil {
				if err := each(ctx, ceil(p.chunk1-p.chunk0, panelGroup)*(p.block1-p.block0), p.packTask); err != nil {
					return err
				}
			}
			if err := each(ctx, p.slabs, p.slabTask); err != nil {
				return err
			}
		}
	}
	return nil
}

func ceil(a, b int) int { return (a + b - 1) / b }

// rowPanel returns the first row, the number of rows and the width in memory of
// a panel of A. Panels differ by at most one row, so that none is left with few.
func (p *product[T]) rowPanel(i int) (at, rows, width int) {
	at = i * p.m / p.rowPanels
	return at, (i+1)*p.m/p.rowPanels - at, p.kr.step
}

// colPanel returns the first column, the number of columns and the width in
// memory of a panel of B.
func (p *product[T]) colPanel(j int) (at, cols, width int) {
	at = j * p.kr.cols
	cols = min(p.kr.cols, p.n-at)
	if cols <= p.kr.half {
		return at, cols, p.kr.half
	}
	return at, cols, p.kr.cols
}

func (p *product[T]) blockLen(b int) int { return min(p.kr.kc, p.k-b*p.kr.kc) }

// sharedPanel returns where a panel of the shared side begins.
func (p *product[T]) sharedPanel(block, panel int) []T {
	width := p.kr.cols
	if p.shareA {
		width = p.kr.step
	}
	at := (block - p.block0) * p.kr.kc * (p.chunk1 - p.chunk0) * width
	return p.shared[at+(panel-p.chunk0)*width*p.blockLen(block):]
}

func (p *product[T]) packShared(t int) error {
	w := newWorker[T]()
	defer w.release()
	groups := ceil(p.chunk1-p.chunk0, panelGroup)
	block, q := p.block0+t/groups, p.chunk0+t%groups*panelGroup
	p.pack(w, p.sharedPanel(block, q), p.shareA, block, q, min(q+panelGroup, p.chunk1))
	return nil
}

// pack writes panels q0 … q1−1 of A or B.
func (p *product[T]) pack(w *worker[T], dst []T, ofA bool, block, q0, q1 int) {
	k0, k := block*p.kr.kc, p.blockLen(block)
	side, width, panel := &p.b, p.kr.cols, p.colPanel
	if ofA {
		side, width, panel = &p.a, p.kr.step, p.rowPanel
	}
	for q0 < q1 && side.kMajor && p.kr.copyPanels != nil {
		n := min(panelGroup, q1-q0)
		done := p.packTogether(w, dst, side, width, k0, k, q0, n, panel)
		if done == 0 {
			break
		}
		q0 += done
		dst = dst[done*width*k:]
	}
	for ; q0 < q1; q0++ {
		at, n, width := panel(q0)
		if side.image != nil {
			packPatches(any(dst).([]float32), side.image, p.kr.lanes, at, n, width, k0, k)
		} else {
			packPanel(p.kr, w, dst, side, at, n, width, k0, k)
		}
		dst = dst[min(len(dst), width*k):]
	}
}

// packTogether packs panels row by row, as many of n as are of full width, and
// returns how many.
func (p *product[T]) packTogether(w *worker[T], dst []T, s *source[T], width, k0, k, q0, n int, panel func(int) (at, n, width int)) int {
	size := int(unsafe.Sizeof(T(0)))
	for ; n > 0; n-- {
		if _, _, full := panel(q0 + n - 1); full == width {
			break
		}
	}
	if n == 0 {
		return 0
	}
	first, _, _ := panel(q0)
	last, _, _ := panel(q0 + n - 1)
	for i := range n {
		at, _, _ := panel(q0 + i)
		w.at[i] = int32((at - first) * size)
	}
	// Whole vectors are read as far as they lie within the data.
	rows := 0
	if room := len(s.data) - k0*s.ld - last - width; room >= 0 {
		rows = min(k, room/s.ld+1)
		_ = dst[n*width*k-1]
		p.kr.copyPanels(unsafe.Pointer(&dst[0]), width*k*size, unsafe.Pointer(&s.data[k0*s.ld+first]), s.ld*size, rows, &w.at[0], n, width/p.kr.lanes)
	}
	if rows < k {
		for i := range n {
			at, count, _ := panel(q0 + i)
			packPanel(p.kr, w, dst[(i*k+rows)*width:], s, at, count, width, k0+rows, k-rows)
		}
	}
	return n
}

// packPanel writes n rows of A (or columns of B), from row at on and for k
// products from k0 on, as k groups of width elements. What fills a group up is
// any number: no kernel's result depends on it.
func packPanel[T number](kr *kernels, w *worker[T], dst []T, s *source[T], at, n, width, k0, k int) {
	size := int(unsafe.Sizeof(T(0)))
	_ = dst[width*k-1]
	d := unsafe.Pointer(&dst[0])
	if s.kMajor {
		_ = s.data[(k0+k-1)*s.ld+at+n-1]
		kr.copyPanel(d, unsafe.Pointer(&s.data[k0*s.ld+at]), s.ld*size, k, n*size/4, width/kr.lanes)
		return
	}
	for g := 0; g < n; g += kr.square {
		for r := range kr.square {
			w.rows[r] = unsafe.Pointer(&s.data[(at+min(g+r, n-1))*s.ld+k0 : (at+min(g+r, n-1))*s.ld+k0+k][0])
		}
		kr.transpose(unsafe.Add(d, g*size), width*size, &w.rows[0], 0, k)
	}
}

// multiplySlab multiplies slab t by the shared panels at hand.
func (p *product[T]) multiplySlab(t int) error {
	w := newWorker[T]()
	defer w.release()
	if p.upper {
		p.multiplyUpper(w, t)
		return nil
	}
	panels, width, packed := p.rowPanels, p.kr.step, p.a.packed
	if p.shareA {
		panels, width, packed = p.colPanels, p.kr.cols, p.b.packed
	}
	s0, s1 := t*panels/p.slabs, (t+1)*panels/p.slabs
	if p.block0 == 0 && p.master == nil && p.beta != 0 && (p.beta != 1 || p.bias != nil) {
		p.scaleSlab(s0, s1)
	}
	for block := p.block0; block < p.block1; block++ {
		k := p.blockLen(block)
		slab := w.slab
		if packed != nil {
			slab = packed[block*p.kr.kc*panels*width+s0*width*k:]
		} else {
			p.pack(w, slab, !p.shareA, block, s0, s1)
		}
		p.multiplyBlock(w, slab, width, s0, s1, block)
	}
	return nil
}

func (p *product[T]) multiplyBlock(w *worker[T], slab []T, width, s0, s1, block int) {
	k := p.blockLen(block)
	w.tile.k = k
	w.tile.alpha32, w.tile.alpha64 = float32(p.alpha), float64(p.alpha)
	for q := p.chunk0; q < p.chunk1; q++ {
		shared := unsafe.Pointer(&p.sharedPanel(block, q)[0])
		next := unsafe.Pointer(&p.sharedPanel(block, min(q+1, p.chunk1-1))[0])
		for s := s0; s < s1; s++ {
			p.ask(w, next, s-s0, s1-s0)
			own := unsafe.Pointer(&slab[(s-s0)*width*k])
			if p.shareA {
				p.multiplyTile(w, shared, own, q, s, block)
			} else {
				p.multiplyTile(w, own, shared, s, q, block)
			}
		}
	}
}

// ask has the kernel fetch part i of n of the next shared panel meanwhile.
func (p *product[T]) ask(w *worker[T], next unsafe.Pointer, i, n int) {
	width := p.kr.cols
	if p.shareA {
		width = p.kr.step
	}
	step := width * int(unsafe.Sizeof(T(0))) / n
	w.tile.next, w.tile.nextStep = unsafe.Add(next, i*step*w.tile.k), step
}

// multiplyTile computes tile (i, j) from packed panels.
func (p *product[T]) multiplyTile(w *worker[T], a, b unsafe.Pointer, i, j, block int) {
	i0, rows, _ := p.rowPanel(i)
	j0, cols, width := p.colPanel(j)
	t := &w.tile
	t.a, t.b = a, b
	t.lda, t.ldb = p.kr.step*int(unsafe.Sizeof(T(0))), width*int(unsafe.Sizeof(T(0)))
	p.finishTile(w, p.kr.tiles[rows][width/p.kr.lanes], i0, rows, j0, cols, width, block == 0)
}

// multiplyUpper multiplies slab t of AᵀA. Panels of B serve for A, cut into
// tiles of as many rows as a kernel takes.
func (p *product[T]) multiplyUpper(w *worker[T], slab int) {
	size := int(unsafe.Sizeof(T(0)))
	s0, s1 := slab*p.colPanels/p.slabs, (slab+1)*p.colPanels/p.slabs
	t := &w.tile
	t.alpha32, t.alpha64 = float32(p.alpha), float64(p.alpha)
	for block := p.block0; block < p.block1; block++ {
		t.k = p.blockLen(block)
		for q := s0; q < p.colPanels; q++ {
			j0, cols, width := p.colPanel(q)
			b := unsafe.Pointer(&p.sharedPanel(block, q)[0])
			next := unsafe.Pointer(&p.sharedPanel(block, min(q+1, p.colPanels-1))[0])
			for s := s0; s < min(s1, q+1); s++ {
				p.ask(w, next, s-s0, s1-s0)
				i0, rows, rowWidth := p.colPanel(s)
				a := unsafe.Pointer(&p.sharedPanel(block, s)[0])
				parts := ceil(rows, p.kr.rows)
				for i := range parts {
					r0, r1 := i*rows/parts, (i+1)*rows/parts
					t.a, t.lda, t.b, t.ldb = unsafe.Add(a, r0*size), rowWidth*size, b, width*size
					p.finishTile(w, p.kr.tiles[r1-r0][width/p.kr.lanes], i0+r0, r1-r0, j0, cols, width, block == 0)
				}
			}
		}
	}
}

// finishTile says where a tile goes and what is added to it, and runs it.
func (p *product[T]) finishTile(w *worker[T], kernel func(*tile), i0, rows, j0, cols, width int, first bool) {
	size := int(unsafe.Sizeof(T(0)))
	t := &w.tile
	if p.master != nil {
		d := unsafe.Pointer(&p.master[i0*p.ldm+j0 : (i0+rows-1)*p.ldm+j0+cols][0])
		t.c, t.ldc, t.mode = unsafe.Pointer(&w.edge[0][0]), width*size, overwrite
		t.ahead, t.ldahead, t.aheadBytes = d, p.ldm*8, cols*8-1
		kernel(t)
		addToMaster(d, p.ldm, w.edge[0], rows, cols, width)
		return
	}
	c := p.c[i0*p.ldc+j0 : (i0+rows-1)*p.ldc+j0+cols]
	t.c, t.ldc = unsafe.Pointer(&c[0]), p.ldc*size
	t.ahead, t.ldahead, t.aheadBytes = t.c, t.ldc, cols*size-1
	var in []T
	ldin := 0
	switch {
	case !first || p.beta != 0:
		t.mode, in, ldin = addMatrix, c, p.ldc
	case p.bias == nil:
		t.mode = overwrite
	case p.perRow:
		t.mode, in = addColumn, p.bias[i0:i0+rows]
	default:
		t.mode, in = addMatrix, p.bias[j0:j0+cols]
	}
	if t.mode != overwrite {
		t.in, t.ldin = unsafe.Pointer(&in[0]), ldin*size
	}
	if cols == width {
		kernel(t)
		return
	}
	out := w.edge[0]
	t.c, t.ldc = unsafe.Pointer(&out[0]), width*size
	if t.mode == addMatrix {
		own := w.edge[1]
		if ldin == 0 {
			copy(own, in)
		} else {
			for r := range rows {
				copy(own[r*width:][:cols], in[r*ldin:])
			}
			ldin = width
		}
		t.in, t.ldin = unsafe.Pointer(&own[0]), ldin*size
	}
	kernel(t)
	for r := range rows {
		copy(c[r*p.ldc:][:cols], out[r*width:])
	}
}

func (p *product[T]) scaleSlab(s0, s1 int) {
	rows := func(a, b int) (int, int) { return a * p.m / p.rowPanels, b * p.m / p.rowPanels }
	cols := func(a, b int) (int, int) { return a * p.kr.cols, min(b*p.kr.cols, p.n) }
	if p.shareA {
		i0, i1 := rows(p.chunk0, p.chunk1)
		j0, j1 := cols(s0, s1)
		p.scale(i0, i1, j0, j1)
		return
	}
	i0, i1 := rows(s0, s1)
	j0, j1 := cols(p.chunk0, p.chunk1)
	p.scale(i0, i1, j0, j1)
}

// scale computes C = βC + bias for a part of C.
func (p *product[T]) scale(i0, i1, j0, j1 int) {
	for i := i0; i < i1; i++ {
		c := p.c[i*p.ldc+j0:][:j1-j0]
		switch p.beta {
		case 0:
			clear(c)
		case 1:
		default:
			for j := range c {
				c[j] *= p.beta
			}
		}
		if p.bias == nil {
			continue
		}
		for j := range c {
			if p.perRow {
				c[j] += p.bias[i]
			} else {
				c[j] += p.bias[j0+j]
			}
		}
	}
}
