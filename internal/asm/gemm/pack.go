package main

import "fmt"

// copyPanel writes the packing of a matrix whose panel index is contiguous: of
// each of k rows, lanes 32-bit words go to one or two vectors, the rest zero.
func copyPanel(f *file, a isa) {
	if a.elem == 8 {
		return // words are words
	}
	name := "copyPanel" + a.name[3:]
	f.text(name, "dst, src unsafe.Pointer, ld, k, words, vectors int", 48,
		name+" packs k rows of at most two vectors of 32-bit words; ld is in bytes.")
	f.p("MOVQ dst+0(FP), DI")
	f.p("MOVQ src+8(FP), SI")
	f.p("MOVQ ld+16(FP), R8")
	f.p("MOVQ k+24(FP), CX")
	f.p("MOVQ words+32(FP), AX")
	f.p("LEAQ (R8)(R8*2), R9")
	f.p("LEAQ (R8)(R8*1), R10")
	f.p("LEAQ (SI)(R8*8), R11") // prefetch
	f.p("TESTQ CX, CX")
	f.p("JZ   done")
	lanes := a.bytes / 4
	masks(f, a, lanes)
	f.p("CMPQ vectors+40(FP), $2")
	f.p("JEQ  two")
	load := func(src, mask, reg string) {
		if a.reg == "Z" {
			f.p("VMOVUPS.Z %s, %s, %s", src, mask, reg)
		} else {
			f.p("VMASKMOVPS %s, %s, %s", src, mask, reg)
		}
	}
	m0, m1 := "K1", "K2"
	if a.reg == "Y" {
		m0, m1 = "Y14", "Y15"
	}
	for _, n := range []int{1, 2} {
		loop := "one"
		if n == 2 {
			loop = "two"
		}
		f.label(loop)
		f.p("PREFETCHT0 (R11)")
		if n == 2 {
			f.p("PREFETCHT0 %d(R11)", 2*a.bytes-4)
		}
		load("(SI)", m0, a.v(0))
		if n == 2 {
			load(fmt.Sprintf("%d(SI)", a.bytes), m1, a.v(1))
		}
		f.p("VMOVUPS %s, (DI)", a.v(0))
		if n == 2 {
			f.p("VMOVUPS %s, %d(DI)", a.v(1), a.bytes)
		}
		f.p("ADDQ R8, SI")
		f.p("ADDQ R8, R11")
		f.p("ADDQ $%d, DI", n*a.bytes)
		f.p("DECQ CX")
		f.p("JNZ  %s", loop)
		if n == 1 {
			f.p("JMP  done")
		}
	}
	f.label("done")
	f.p("VZEROUPPER")
	f.p("RET")
}

// copyPanels writes the packing of several panels whose index is contiguous,
// row by row, so that a row is read in one run. It reads whole vectors.
func copyPanels(f *file, a isa) {
	if a.elem == 8 {
		return
	}
	name := "copyPanels" + a.name[3:]
	f.text(name, "dst unsafe.Pointer, ldp int, src unsafe.Pointer, ld, k int, at *int32, panels, vectors int", 64,
		name+" packs k rows of panels of one or two whole vectors, panel i read at src+at[i] and written at dst+i·ldp; all in bytes.")
	f.p("MOVQ dst+0(FP), DI")
	f.p("MOVQ ldp+8(FP), R8")
	f.p("MOVQ src+16(FP), SI")
	f.p("MOVQ ld+24(FP), R9")
	f.p("MOVQ k+32(FP), CX")
	f.p("MOVQ at+40(FP), R10")
	f.p("MOVQ panels+48(FP), R11")
	f.p("LEAQ (SI)(R9*4), R13")
	f.p("TESTQ CX, CX")
	f.p("JZ   done")
	f.p("CMPQ vectors+56(FP), $2")
	f.p("JEQ  two")
	for n := 1; n <= 2; n++ {
		row, panel := fmt.Sprintf("row%d", n), fmt.Sprintf("panel%d", n)
		if n == 2 {
			row = "two"
		}
		f.label(row)
		f.p("MOVQ DI, DX")
		f.p("XORQ BX, BX")
		f.label(panel)
		f.p("MOVLQSX (R10)(BX*4), R12")
		f.p("PREFETCHT0 (R13)(R12*1)")
		if n*a.bytes > 64 {
			f.p("PREFETCHT0 64(R13)(R12*1)")
		}
		for v := range n {
			f.p("VMOVUPS %d(SI)(R12*1), %s", v*a.bytes, a.v(v))
		}
		for v := range n {
			f.p("VMOVUPS %s, %d(DX)", a.v(v), v*a.bytes)
		}
		f.p("ADDQ R8, DX")
		f.p("INCQ BX")
		f.p("CMPQ BX, R11")
		f.p("JLT  %s", panel)
		f.p("ADDQ R9, SI")
		f.p("ADDQ R9, R13")
		f.p("ADDQ $%d, DI", n*a.bytes)
		f.p("DECQ CX")
		f.p("JNZ  %s", row)
		if n == 1 {
			f.p("JMP  done")
		}
	}
	f.label("done")
	f.p("VZEROUPPER")
	f.p("RET")
}

// masks sets K1 and K2, or Y14 and Y15, to the first AX words of two vectors.
func masks(f *file, a isa, lanes int) {
	if a.reg == "Z" {
		f.p("MOVQ $-1, BX")
		f.p("MOVQ $64, DX")
		f.p("SUBQ AX, DX")
		f.p("SHRXQ DX, BX, BX")
		f.p("KMOVW BX, K1")
		f.p("SHRQ $16, BX")
		f.p("KMOVW BX, K2")
		return
	}
	f.p("LEAQ ·maskWords(SB), BX")
	f.p("MOVQ $16, DX")
	f.p("SUBQ AX, DX")
	f.p("VMOVUPS (BX)(DX*4), Y14")
	f.p("VMOVUPS 32(BX)(DX*4), Y15")
}

// transpose writes the packing of a matrix whose k is contiguous: a square of
// as many rows as a vector has lanes at a time.
func transpose(f *file, a isa) {
	n := a.bytes / a.elem
	name := "transpose" + a.name
	f.text(name, "dst unsafe.Pointer, ldd int, rows *unsafe.Pointer, from, k int", 40,
		fmt.Sprintf("%s writes number i of each of %d rows, counted from byte from on, side by side at dst+i·ldd, for i < k.", name, n))
	f.p("MOVQ dst+0(FP), DI")
	f.p("MOVQ ldd+8(FP), R8")
	f.p("MOVQ rows+16(FP), SI")
	f.p("MOVQ from+24(FP), BX")
	f.p("MOVQ k+32(FP), CX")
	f.p("LEAQ (R8)(R8*2), R9")
	f.p("SUBQ $%d, CX", n)
	f.p("JL   tail")
	f.label("loop")
	for i := range n {
		f.p("MOVQ %d(SI), DX", 8*i)
		f.p("VMOVUPS (DX)(BX*1), %s", a.v(i))
	}
	out := square(f, a)
	for i := 0; i < n; i += 4 {
		if n == 4 || i < n {
			f.p("VMOVUPS %s, (DI)", out[i])
			f.p("VMOVUPS %s, (DI)(R8*1)", out[i+1])
			f.p("VMOVUPS %s, (DI)(R8*2)", out[i+2])
			f.p("VMOVUPS %s, (DI)(R9*1)", out[i+3])
			f.p("LEAQ (DI)(R8*4), DI")
		}
	}
	f.p("ADDQ $%d, BX", a.bytes)
	f.p("SUBQ $%d, CX", n)
	f.p("JGE  loop")
	f.label("tail")
	f.p("ADDQ $%d, CX", n)
	f.p("JZ   done")
	mask := "K1"
	if a.reg == "Z" {
		f.p("MOVQ $-1, AX")
		f.p("MOVQ $64, DX")
		f.p("SUBQ CX, DX")
		f.p("SHRXQ DX, AX, AX")
		f.p("KMOVW AX, K1")
	} else {
		f.p("LEAQ ·maskWords(SB), AX")
		f.p("MOVQ $16, DX")
		f.p("SUBQ CX, DX")
		if a.elem == 8 {
			f.p("SUBQ CX, DX")
		}
		mask = "Y15"
		f.p("VMOVUPS (AX)(DX*4), Y15")
	}
	for i := range n {
		f.p("MOVQ %d(SI), DX", 8*i)
		switch {
		case a.reg == "Z":
			f.p("%s (DX)(BX*1), %s, %s", a.op("VMOVUPS")+".Z", mask, a.v(i))
		default:
			f.p("VMASKMOVPS (DX)(BX*1), %s, %s", mask, a.v(i))
		}
	}
	out = square(f, a)
	for i := range n - 1 {
		f.p("VMOVUPS %s, (DI)", out[i])
		f.p("DECQ CX")
		f.p("JZ   done")
		f.p("ADDQ R8, DI")
	}
	f.label("done")
	f.p("VZEROUPPER")
	f.p("RET")
}

// square transposes the square in the first registers and returns where the
// columns are.
func square(f *file, a isa) []string {
	n, lanes, per := a.bytes/a.elem, a.bytes/16, 16/a.elem
	in := make([]string, n)
	free := make([]string, n)
	for i := range n {
		in[i], free[i] = a.v(i), a.v(n+i)
	}
	two := func(op, x, y, d string) { f.p("%s %s, %s, %s", op, y, x, d) }
	if a.elem == 4 {
		for i := 0; i < n; i += 2 {
			two("VUNPCKLPS", in[i], in[i+1], free[i])
			two("VUNPCKHPS", in[i], in[i+1], free[i+1])
		}
		in, free = free, in
		for g := 0; g < n; g += 4 {
			two("VUNPCKLPD", in[g], in[g+2], free[g])
			two("VUNPCKHPD", in[g], in[g+2], free[g+1])
			two("VUNPCKLPD", in[g+1], in[g+3], free[g+2])
			two("VUNPCKHPD", in[g+1], in[g+3], free[g+3])
		}
	} else {
		for i := 0; i < n; i += 2 {
			two("VUNPCKLPD", in[i], in[i+1], free[i])
			two("VUNPCKHPD", in[i], in[i+1], free[i+1])
		}
	}
	in, free = free, in
	// Register per·g + c holds in 128-bit lane l column per·l + c of row group g.
	out := make([]string, n)
	if lanes == 2 {
		for c := range per {
			f.p("VPERM2F128 $0x20, %s, %s, %s", in[per+c], in[c], free[c])
			f.p("VPERM2F128 $0x31, %s, %s, %s", in[per+c], in[c], free[per+c])
			out[c], out[per+c] = free[c], free[per+c]
		}
		return out
	}
	shuffle := func(imm int, x, y, d string) { f.p("VSHUFF64X2 $0x%x, %s, %s, %s", imm, y, x, d) }
	for c := range per {
		i0, i1, i2, i3 := in[c], in[per+c], in[2*per+c], in[3*per+c]
		v0, v1, v2, v3 := free[c], free[per+c], free[2*per+c], free[3*per+c]
		shuffle(0x88, i0, i1, v0)
		shuffle(0xdd, i0, i1, v1)
		shuffle(0x88, i2, i3, v2)
		shuffle(0xdd, i2, i3, v3)
		shuffle(0x88, v0, v2, i0)
		shuffle(0x88, v1, v3, i1)
		shuffle(0xdd, v0, v2, i2)
		shuffle(0xdd, v1, v3, i3)
		out[c], out[per+c], out[2*per+c], out[3*per+c] = i0, i1, i2, i3
	}
	return out
}

// addTile writes the addition of a float32 tile to a float64 master.
func addTile(f *file, a isa) {
	n := a.bytes / 8
	name := "addTile" + a.name[3:]
	f.text(name, "dst unsafe.Pointer, ldd int, src unsafe.Pointer, lds, rows, cols int", 48,
		fmt.Sprintf("%s adds a float32 tile to a float64 matrix; cols is a multiple of %d, strides are in bytes.", name, n))
	f.p("MOVQ dst+0(FP), DI")
	f.p("MOVQ ldd+8(FP), R8")
	f.p("MOVQ src+16(FP), SI")
	f.p("MOVQ lds+24(FP), R9")
	f.p("MOVQ rows+32(FP), CX")
	f.p("MOVQ cols+40(FP), AX")
	f.label("row")
	f.p("XORQ BX, BX")
	f.label("loop")
	f.p("CMPQ BX, AX")
	f.p("JGE  next")
	f.p("VCVTPS2PD (SI)(BX*4), %s", a.v(0))
	f.p("VADDPD (DI)(BX*8), %[1]s, %[1]s", a.v(0))
	f.p("VMOVUPD %s, (DI)(BX*8)", a.v(0))
	f.p("ADDQ $%d, BX", n)
	f.p("JMP  loop")
	f.label("next")
	f.p("ADDQ R8, DI")
	f.p("ADDQ R9, SI")
	f.p("DECQ CX")
	f.p("JNZ  row")
	f.p("VZEROUPPER")
	f.p("RET")
}

// window writes the packing of one vector of outputs of a convolution: for each
// of k offsets, up to four runs of the image are merged into one vector.
func window(f *file, a isa) {
	name := "window" + a.name[3:]
	f.text(name, "dst unsafe.Pointer, ldd int, image unsafe.Pointer, offsets unsafe.Pointer, k int, runs *[4]run", 48,
		name+" packs one vector of outputs for each of k offsets (32-bit, in elements) into an image.")
	f.p("MOVQ dst+0(FP), DI")
	f.p("MOVQ ldd+8(FP), R8")
	f.p("MOVQ image+16(FP), SI")
	f.p("MOVQ offsets+24(FP), R9")
	f.p("MOVQ k+32(FP), CX")
	f.p("MOVQ runs+40(FP), AX")
	f.p("TESTQ CX, CX")
	f.p("JZ   done")
	for i, r := range []string{"R10", "R11", "R12", "R13"} {
		f.p("MOVQ (run__size*%d+run_from)(AX), %s", i, r)
		f.p("LEAQ (SI)(%[1]s*4), %[1]s", r)
		if a.reg == "Z" {
			f.p("MOVQ (run__size*%d+run_mask)(AX), DX", i)
			f.p("KMOVW DX, K%d", i+1)
		}
	}
	if a.reg == "Y" {
		// Bit i of a mask goes to the sign of word i.
		f.p("VMOVUPS ·bitWords(SB), Y8")
		for i := range 4 {
			f.p("VPBROADCASTD (run__size*%d+run_mask)(AX), Y%d", i, 4+i)
			f.p("VPAND Y8, Y%[1]d, Y%[1]d", 4+i)
			f.p("VPCMPEQD Y8, Y%[1]d, Y%[1]d", 4+i)
		}
	}
	for _, n := range []int{4, 2, 1} {
		label := fmt.Sprintf("runs%d", n)
		next := map[int]string{4: "two", 2: "single"}[n]
		switch n {
		case 4:
			f.p("CMPQ (run__size*2+run_mask)(AX), $0")
			f.p("JEQ  %s", next)
		case 2:
			f.label("two")
			f.p("CMPQ (run__size*1+run_mask)(AX), $0")
			f.p("JEQ  %s", next)
		case 1:
			f.label("single")
		}
		f.label(label)
		f.p("MOVLQSX (R9), BX")
		f.p("ADDQ $4, R9")
		for i := range n {
			reg := fmt.Sprintf("R%d", 10+i)
			switch {
			case a.reg == "Z" && i == 0:
				f.p("VMOVUPS.Z (%s)(BX*4), K1, Z0", reg)
			case a.reg == "Z":
				f.p("VMOVUPS (%s)(BX*4), K%d, Z0", reg, i+1)
			default:
				f.p("VMASKMOVPS (%s)(BX*4), Y%d, Y%d", reg, 4+i, i)
			}
		}
		if a.reg == "Y" && n > 1 {
			f.p("VORPS Y1, Y0, Y0")
			if n > 2 {
				f.p("VORPS Y3, Y2, Y2")
				f.p("VORPS Y2, Y0, Y0")
			}
		}
		f.p("VMOVUPS %s, (DI)", a.v(0))
		f.p("ADDQ R8, DI")
		f.p("DECQ CX")
		f.p("JNZ  %s", label)
		if n > 1 {
			f.p("JMP  done")
		}
	}
	f.label("done")
	f.p("VZEROUPPER")
	f.p("RET")
}
