package main

import (
	"fmt"
	"io"
)

// shapes lists the tiles (rows, vectors) of an instruction set: every number of
// rows at one and two vectors, and for few rows wider tiles, which read longer
// runs of a matrix that is not packed.
func shapes(a isa) [][2]int {
	var s [][2]int
	for r := 1; r <= a.maxRows; r++ {
		s = append(s, [2]int{r, 1}, [2]int{r, 2})
	}
	for r := 1; r <= 8 && r <= a.maxRows; r++ {
		if w := wide(a, r); w > 2 {
			s = append(s, [2]int{r, w})
		}
	}
	return s
}

// wide is the most vectors of a tile of r rows: a power of two, or three
// halves of one, that leaves registers for B and for two broadcasts.
func wide(a isa, r int) int {
	best := 2
	for _, w := range []int{3, 4, 6, 8} {
		if r*w+w+2 <= a.regs {
			best = w
		}
	}
	return best
}

// directShapes lists the tiles that find the rows of B through a table.
func directShapes(a isa) [][2]int {
	if a.elem == 8 {
		return nil
	}
	return [][2]int{{1, 1}, {1, 2}}
}

func kernelName(a isa, rows, vectors int, table bool) string {
	kind := "tile"
	if table {
		kind = "direct"
	}
	return fmt.Sprintf("%s%dx%d%s", kind, rows, vectors, a.name)
}

// kernel writes the product of one tile: rows accumulators of so many vectors,
// each one chain of fused multiply-adds over k, then written as the mode says.
func kernel(f *file, a isa, rows, vectors int, table bool) {
	acc := func(r, v int) string { return a.v(r*vectors + v) }
	b := func(v int) string { return a.v(rows*vectors + v) }
	bc := func(r int) string { return a.v(rows*vectors + vectors + r%2) }
	if rows*vectors+vectors+2 > a.regs { // one broadcast register
		bc = func(int) string { return a.v(rows*vectors + vectors) }
	}
	name := kernelName(a, rows, vectors, table)
	how := "at a stride"
	if table {
		how = "through a table of offsets"
	}
	f.text(name, "t *tile", 8, fmt.Sprintf("%s multiplies a tile of %d rows and %d vectors, rows of B taken %s.", name, rows, vectors, how))
	f.p("MOVQ t+0(FP), AX")
	f.p("MOVQ tile_a(AX), SI")
	f.p("MOVQ tile_b(AX), DI")
	f.p("MOVQ tile_c(AX), DX")
	f.p("MOVQ tile_ldc(AX), R9")
	f.p("MOVQ tile_k(AX), CX")
	if table {
		f.p("MOVQ tile_offsets(AX), R8")
	} else {
		f.p("MOVQ tile_ldb(AX), R8")
	}
	// Ask for the tile's output now, so that it is near when it is written.
	f.p("MOVQ tile_ahead(AX), BX")
	f.p("TESTQ BX, BX")
	f.p("JZ   zero")
	f.p("MOVQ tile_ldahead(AX), R10")
	f.p("MOVQ tile_aheadBytes(AX), R12")
	f.p("MOVQ $%d, R11", rows)
	f.label("prefetch")
	f.p("MOVQ R12, R13")
	f.label("prefetchLine")
	f.p("PREFETCHT0 (BX)(R13*1)")
	f.p("SUBQ $64, R13")
	f.p("JGE  prefetchLine")
	f.p("ADDQ R10, BX")
	f.p("DECQ R11")
	f.p("JNZ  prefetch")
	f.label("zero")
	f.p("MOVQ tile_lda(AX), R12")
	packed := rows*vectors > 8 && vectors <= 2
	if packed {
		f.p("MOVQ tile_next(AX), R13")
		f.p("MOVQ tile_nextStep(AX), R10")
	}
	for i := range rows * vectors {
		f.p("VXORPS %[1]s, %[1]s, %[1]s", xy(a, i))
	}
	unroll := 1
	if (rows*vectors < 8 || a.reg == "Y") && !table {
		unroll = 4
	}
	step := func() {
		if vectors > 2 { // B is not packed: ask for a row further down
			for v := 0; v < vectors*a.bytes; v += 64 {
				f.p("PREFETCHT0 %d(DI)(R8*8)", v)
			}
		}
		if table {
			f.p("MOVLQSX (R8), R10")
			f.p("ADDQ $4, R8")
		}
		for v := range vectors {
			if table {
				f.p("VMOVUPS %d(DI)(R10*%d), %s", v*a.bytes, a.elem, b(v))
			} else {
				f.p("VMOVUPS %d(DI), %s", v*a.bytes, b(v))
			}
		}
		for r := range rows {
			f.p("%s %d(SI), %s", a.op("VBROADCASTSS"), r*a.elem, bc(r))
			for v := range vectors {
				f.p("%s %s, %s, %s", a.op("VFMADD231PS"), b(v), bc(r), acc(r, v))
			}
		}
		if !table {
			f.p("ADDQ R8, DI")
		}
		f.p("ADDQ R12, SI")
	}
	// fetch asks for what n steps will read of panels in the second-level cache,
	// and brings a panel that is farther away, for later, to that cache.
	fetch := func(n int) {
		if !packed {
			return
		}
		f.p("PREFETCHT1 (R13)")
		if n == 1 {
			f.p("ADDQ R10, R13")
		} else {
			f.p("LEAQ (R13)(R10*%d), R13", n)
		}
		for v := 0; v < n*vectors*a.bytes; v += 64 {
			f.p("PREFETCHT0 %d(DI)", v+1024)
		}
		for v := 0; v < n*a.step*a.elem; v += 64 {
			f.p("PREFETCHT0 %d(SI)", v+12*a.step*a.elem)
		}
	}
	if unroll > 1 {
		f.p("SUBQ $%d, CX", unroll)
		f.p("JL   rest")
		f.p("PCALIGN $32")
		f.label("unrolled")
		fetch(unroll)
		for range unroll {
			step()
		}
		f.p("SUBQ $%d, CX", unroll)
		f.p("JGE  unrolled")
		f.label("rest")
		f.p("ADDQ $%d, CX", unroll)
	}
	f.p("TESTQ CX, CX")
	f.p("JZ   finish")
	f.p("PCALIGN $32")
	f.label("loop")
	if unroll == 1 {
		fetch(1)
	}
	step()
	f.p("DECQ CX")
	f.p("JNZ  loop")

	f.label("finish")
	alpha := a.v(rows * vectors)
	if a.elem == 4 {
		f.p("VBROADCASTSS tile_alpha32(AX), %s", alpha)
	} else {
		f.p("VBROADCASTSD tile_alpha64(AX), %s", alpha)
	}
	f.p("MOVQ tile_mode(AX), BX")
	f.p("MOVQ tile_in(AX), R10")
	f.p("MOVQ tile_ldin(AX), R11")
	f.p("CMPQ BX, $const_addMatrix")
	f.p("JEQ  matrix")
	f.p("CMPQ BX, $const_addColumn")
	f.p("JEQ  column")
	for r := range rows {
		for v := range vectors {
			f.p("%s %s, %s, %s", a.op("VMULPS"), alpha, acc(r, v), acc(r, v))
		}
	}
	f.p("JMP  store")
	f.label("column")
	for r := range rows {
		f.p("%s %d(R10), %s", a.op("VBROADCASTSS"), r*a.elem, a.v(rows*vectors+1))
		for v := range vectors {
			f.p("%s %s, %s, %s", a.op("VFMADD213PS"), a.v(rows*vectors+1), alpha, acc(r, v))
		}
	}
	f.p("JMP  store")
	f.label("matrix")
	for r := range rows {
		for v := range vectors {
			f.p("%s %d(R10), %s, %s", a.op("VFMADD213PS"), v*a.bytes, alpha, acc(r, v))
		}
		if r < rows-1 {
			f.p("ADDQ R11, R10")
		}
	}
	f.label("store")
	for r := range rows {
		for v := range vectors {
			f.p("VMOVUPS %s, %d(DX)", acc(r, v), v*a.bytes)
		}
		if r < rows-1 {
			f.p("ADDQ R9, DX")
		}
	}
	f.p("VZEROUPPER")
	f.p("RET")
}

// xy names the register to clear: clearing the low half clears all, but above
// 15 only the long names exist.
func xy(a isa, i int) string { return a.v(i) }

// table writes the Go table of an instruction set's tiles.
func table(w io.Writer, a isa) {
	fmt.Fprintf(w, "\n// tiles%[1]s holds the kernels by rows and vectors.\nvar tiles%[1]s = tileTable{\n", a.name)
	for _, s := range shapes(a) {
		fmt.Fprintf(w, "\t{%d, %d}: %s,\n", s[0], s[1], kernelName(a, s[0], s[1], false))
	}
	fmt.Fprintf(w, "}\n")
}
