package blas

import "unsafe"

// The plain Go twin of the assembly: the same tiles, packing and order of
// additions, but a product and a sum round separately where the processor's
// compiler does not fuse them.

const twinRows, twinCols = 4, 4

var generic = &set{
	name: "generic",
	f32:  twin[float32](),
	f64:  twin[float64](),
	addTile: func(dst unsafe.Pointer, ldd int, src unsafe.Pointer, lds, rows, cols int) {
		for r := range rows {
			d := unsafe.Slice((*float64)(unsafe.Add(dst, r*ldd)), cols)
			for c, v := range unsafe.Slice((*float32)(unsafe.Add(src, r*lds)), cols) {
				d[c] += float64(v)
			}
		}
	},
}

func twin[T number]() *kernels {
	k := &kernels{kc: kc32, rows: twinRows, cols: twinCols, half: twinCols, step: twinRows, lanes: twinCols, square: twinRows}
	k.tiles = make([][]func(*tile), twinRows+1)
	for r := range k.tiles {
		k.tiles[r] = []func(*tile){nil, func(t *tile) { twinTile[T](t, r) }}
	}
	size := int(unsafe.Sizeof(T(0)))
	if size == 8 {
		k.kc = kc64
	}
	k.copyPanel = func(dst, src unsafe.Pointer, ld, n, words, _ int) {
		for i := range n {
			d := unsafe.Slice((*T)(unsafe.Add(dst, i*twinCols*size)), twinCols)
			clear(d)
			copy(d, unsafe.Slice((*T)(unsafe.Add(src, i*ld)), words*4/size))
		}
	}
	k.transpose = func(dst unsafe.Pointer, ldd int, row *unsafe.Pointer, from, n int) {
		rows := unsafe.Slice(row, twinRows)
		for i := range n {
			d := unsafe.Slice((*T)(unsafe.Add(dst, i*ldd)), twinRows)
			for r := range d {
				d[r] = *(*T)(unsafe.Add(rows[r], from+i*size))
			}
		}
	}
	return k
}

func twinTile[T number](t *tile, rows int) {
	size := int(unsafe.Sizeof(T(0)))
	var acc [twinRows][twinCols]T
	for l := range t.k {
		a := (*[twinRows]T)(unsafe.Add(t.a, l*t.lda))
		b := (*[twinCols]T)(unsafe.Add(t.b, l*t.ldb))
		for r := range rows {
			x, s := a[r], &acc[r]
			s[0] += x * b[0]
			s[1] += x * b[1]
			s[2] += x * b[2]
			s[3] += x * b[3]
		}
	}
	alpha := T(t.alpha32)
	if size == 8 {
		alpha = T(t.alpha64)
	}
	for r := range rows {
		c := (*[twinCols]T)(unsafe.Add(t.c, r*t.ldc))
		switch t.mode {
		case overwrite:
			for j := range c {
				c[j] = alpha * acc[r][j]
			}
		case addMatrix:
			in := (*[twinCols]T)(unsafe.Add(t.in, r*t.ldin))
			for j := range c {
				c[j] = in[j] + alpha*acc[r][j]
			}
		case addColumn:
			in := *(*T)(unsafe.Add(t.in, r*size))
			for j := range c {
				c[j] = in + alpha*acc[r][j]
			}
		}
	}
}
