package main

// The registers of scalars.
const (
	scalarA = reg(13)
	scalarB = reg(12)
)

func broadcast32(names ...string) func(g *gen) {
	return func(g *gen) {
		for i, name := range names {
			g.op("VBROADCASTSS", g.arg(name), scalarA-reg(i))
		}
	}
}

func broadcast64(names ...string) func(g *gen) {
	return func(g *gen) {
		for i, name := range names {
			g.op("VBROADCASTSD", g.arg(name), scalarA-reg(i))
		}
	}
}

// one is a kernel of a single operation on two inputs.
func one(op string) func(g *gen, v reg) reg {
	return func(g *gen, v reg) reg {
		g.op(op, v+1, v, v)
		return v
	}
}

// unary is a kernel dst = f(x).
func unary(name string, f func(g *gen, v reg) reg) *kernel {
	return &kernel{name: name, params: params("dst, x []float32"), body: each{
		dst: "dst", in: []string{"x"}, lane: 4, unroll: 1, regs: 1, body: f,
	}.write}
}

func zeroSum(g *gen, acc reg) { g.op("VXORPS", acc, acc, acc) }

// addProduct32 and addProduct64 fold v·(v+1) into acc, rounded twice so that
// plain Go gives the same bytes.
func addProduct32(g *gen, acc, v reg, _ bool) {
	g.op("VMULPS", v+1, v, v)
	g.op("VADDPS", v, acc, acc)
}

func addProduct64(g *gen, acc, v reg, _ bool) {
	g.op("VMULPD", v+1, v, v)
	g.op("VADDPD", v, acc, acc)
}

func addSquare(g *gen, acc, v reg, _ bool) {
	g.op("VMULPD", v, v, v)
	g.op("VADDPD", v, acc, acc)
}

func addUp(g *gen, acc, v reg, _ bool) { g.op("VADDPD", v, acc, acc) }

// all lists the kernels.
func all() []*kernel {
	xy := []string{"x", "y"}
	sum := func(name, list string, in []string, lane, lanes int, step func(g *gen, acc, v reg, masked bool)) *kernel {
		result := map[int]string{4: "float32", 8: "float64"}[lane]
		return &kernel{name: name, params: params(list), result: result, body: reduce{
			in: in, lane: lane, lanes: lanes, start: zeroSum, step: step, fold: "VADD",
		}.write}
	}
	return []*kernel{
		sum("dot", "x, y []float32", xy, 4, 64, addProduct32),
		sum("dotWide", "x, y []float32", xy, 8, 32, addProduct64),
		sum("dot64", "x, y []float64", xy, 8, 32, addProduct64),
		sum("sumSquares", "x []float32", xy[:1], 8, 32, addSquare),
		sum("sum", "x []float32", xy[:1], 8, 32, addUp),
		sum("sum64", "x []float64", xy[:1], 8, 32, addUp),
		{name: "maximum", params: params("x []float32"), result: "float32", body: maximum},
		{name: "index", params: params("x []float32, v float32"), result: "int", body: index},
		{name: "axpy", params: params("y, x []float32, a float32"), body: each{
			dst: "y", in: []string{"y", "x"}, lane: 4, unroll: 4, regs: 2, setup: broadcast32("a"),
			body: func(g *gen, v reg) reg {
				g.op("VMULPS", scalarA, v+1, v+1)
				g.op("VADDPS", v+1, v, v)
				return v
			},
		}.write},
		{name: "axpy64", params: params("y, x []float64, a float64"), body: each{
			dst: "y", in: []string{"y", "x"}, lane: 8, unroll: 4, regs: 2, setup: broadcast64("a"),
			body: func(g *gen, v reg) reg {
				g.op("VMULPD", scalarA, v+1, v+1)
				g.op("VADDPD", v+1, v, v)
				return v
			},
		}.write},
		{name: "add", params: params("dst, x, y []float32"), body: each{
			dst: "dst", in: xy, lane: 4, unroll: 4, regs: 2, body: one("VADDPS"),
		}.write},
		{name: "mul", params: params("dst, x, y []float32"), body: each{
			dst: "dst", in: xy, lane: 4, unroll: 4, regs: 2, body: one("VMULPS"),
		}.write},
		{name: "scaleShift", params: params("dst, x []float32, a, b float32"), body: each{
			dst: "dst", in: xy[:1], lane: 4, unroll: 4, regs: 1, setup: broadcast32("a", "b"),
			body: func(g *gen, v reg) reg {
				g.op("VMULPS", scalarA, v, v)
				g.op("VADDPS", scalarB, v, v)
				return v
			},
		}.write},
		{name: "scale", params: params("dst, x []float32, a float32"), body: each{
			dst: "dst", in: xy[:1], lane: 4, unroll: 4, regs: 1, setup: broadcast32("a"),
			body: func(g *gen, v reg) reg {
				g.op("VMULPS", scalarA, v, v)
				return v
			},
		}.write},
		{name: "relu", params: params("dst, x []float32"), body: each{
			dst: "dst", in: xy[:1], lane: 4, unroll: 4, regs: 1,
			setup: func(g *gen) { g.op("VXORPS", scalarA, scalarA, scalarA) },
			body: func(g *gen, v reg) reg {
				g.op("VMAXPS", v, scalarA, v) // of −0 and of a NaN the second source stays
				return v
			},
		}.write},
		unary("exp", func(g *gen, v reg) reg { g.exp(v, v+1, true, nil); return v }),
		{name: "expSub", params: params("dst, x []float32, shift float32"), body: each{
			dst: "dst", in: xy[:1], lane: 4, unroll: 1, regs: 1, setup: broadcast32("shift"),
			body: func(g *gen, v reg) reg {
				g.op("VSUBPS", scalarA, v, v)
				g.exp(v, v+1, true, nil)
				return v
			},
		}.write},
		{name: "expSub64", params: params("dst []float64, x []float32, shift float64"), body: each{
			dst: "dst", in: xy[:1], lane: 8, unroll: 1, regs: 1, setup: broadcast64("shift"),
			body: func(g *gen, v reg) reg {
				g.op("VSUBPD", scalarA, v, v)
				g.exp64(v, v+1)
				return v
			},
		}.write},
		unary("sigmoid", func(g *gen, v reg) reg { g.sigmoid(v, v+1); return v }),
		unary("silu", func(g *gen, v reg) reg {
			g.op("VMOVAPS", v, v+1)
			g.sigmoid(v+1, v+2)
			g.op("VMULPS", v+1, v, v)
			return v
		}),
		unary("tanh", tanh),
		unary("gelu", gelu),
		unary("geluTanh", func(g *gen, v reg) reg {
			u := v + 1
			g.op("VMULPS", v, v, u)
			g.op("VMULPS", g.f32(geluCubic), u, u)
			g.op("VADDPS", g.f32(1), u, u)
			g.op("VMULPS", g.f32(geluTwice), v, v+2)
			g.op("VMULPS", v+2, u, u)
			g.sigmoid(u, v+2)
			g.op("VMULPS", u, v, v)
			return v
		}),
		{name: "round", params: params("codes []int8, x []float32, scale, zero, lo, hi float64"), body: roundTo(4)},
		{name: "round64", params: params("codes []int8, x []float64, scale, zero, lo, hi float64"), body: roundTo(8)},
		{name: "rangeError", params: params("x []float64, scale, zero, lo, hi, power float64"), result: "float64", body: rangeError},
		{name: "dequantize", params: params("dst []float32, codes []int8, scale float32, zero int32"), body: dequantize},
		{name: "fromF16", params: params("dst []float32, half []byte"), body: blocks{
			count: lanes32, body: func(g *gen, at map[string]string) {
				g.op("VCVTPH2PS", at["half"], reg(0))
				g.op("VMOVUPS", reg(0), at["dst"])
			},
		}.write},
		{name: "toF16", params: params("half []byte, x []float32"), body: blocks{
			count: lanes32, body: func(g *gen, at map[string]string) {
				g.op("VMOVUPS", at["x"], reg(0))
				g.op("VCVTPS2PH", 0, reg(0), at["half"])
			},
		}.write},
		{name: "fromBF16", params: params("dst []float32, half []byte"), body: blocks{
			count: lanes32, body: func(g *gen, at map[string]string) {
				g.op("VPMOVZXWD", at["half"], reg(0))
				g.op("VPSLLD", 16, reg(0), reg(0))
				g.op("VMOVUPS", reg(0), at["dst"])
			},
		}.write},
		{name: "toBF16", params: params("half []byte, x []float32"), body: blocks{
			count: lanes32, setup: setBF16, body: toBF16,
		}.write},
	}
}

func lanes32(g *gen) int { return g.lanes(4) }

// exp replaces x by eˣ, using t … t+3. low, where not nil, is subtracted from
// the exponent: it is the part that x has lost to rounding.
func (g *gen) exp(x, t reg, clamp bool, low *reg) {
	n, p := t+1, t+2
	if clamp { // x is the second source, so a NaN stays
		g.set32(g.f32(expTop), t)
		g.op("VMINPS", x, t, x)
		g.set32(g.f32(expBottom), t)
		g.op("VMAXPS", x, t, x)
	}
	g.set32(g.f32(roundMagic), p)
	g.op("VMULPS", g.f32(log2e), x, n)
	g.op("VADDPS", p, n, n) // the low bits are n
	g.op("VSUBPS", p, n, t) // n as a float
	g.op("VMULPS", g.f32(ln2High), t, p)
	g.op("VSUBPS", p, x, x)
	g.op("VMULPS", g.f32(ln2Low), t, p)
	g.op("VSUBPS", p, x, x)
	if low != nil {
		g.op("VSUBPS", *low, x, x)
	}
	g.polynomial(expPoly, x, p)
	g.op("VMULPS", x, p, p)
	g.op("VMULPS", x, p, p)
	g.op("VADDPS", p, x, x)
	g.op("VADDPS", g.f32(1), x, x)
	if g.wide {
		g.op("VSCALEFPS", t, x, x)
		return
	}
	// Twice, since 2ⁿ itself may be no float32.
	g.op("VPSUBD", g.u32(0x4b400000), n, n)
	g.op("VPSRAD", 1, n, p)
	g.op("VPSUBD", p, n, n)
	for _, part := range []reg{p, n} {
		g.op("VPADDD", g.u32(127), part, part)
		g.op("VPSLLD", 23, part, part)
		g.op("VMULPS", part, x, x)
	}
}

// polynomial sets p to c[0] + c[1]·x + …
func (g *gen) polynomial(c []float32, x, p reg) {
	g.set32(g.f32(c[len(c)-1]), p)
	for i := len(c) - 2; i >= 0; i-- {
		g.op("VMULPS", x, p, p)
		g.op("VADDPS", g.f32(c[i]), p, p)
	}
}

// exp64 replaces x by eˣ, using t … t+3.
func (g *gen) exp64(x, t reg) {
	n, p := t+1, t+2
	g.set64(g.f64(exp64Top), t)
	g.op("VMINPD", x, t, x)
	g.set64(g.f64(exp64Bottom), t)
	g.op("VMAXPD", x, t, x)
	g.set64(g.f64(roundMagic64), p)
	g.op("VMULPD", g.f64(log2e), x, n)
	g.op("VADDPD", p, n, n)
	g.op("VSUBPD", p, n, t)
	g.op("VMULPD", g.f64(ln2High64), t, p)
	g.op("VSUBPD", p, x, x)
	g.op("VMULPD", g.f64(ln2Low64), t, p)
	g.op("VSUBPD", p, x, x)
	g.set64(g.f64(exp64Poly[len(exp64Poly)-1]), p)
	for i := len(exp64Poly) - 2; i >= 0; i-- {
		g.op("VMULPD", x, p, p)
		g.op("VADDPD", g.f64(exp64Poly[i]), p, p)
	}
	g.op("VMULPD", x, p, p)
	g.op("VMULPD", x, p, p)
	g.op("VADDPD", p, x, x)
	g.op("VADDPD", g.f64(1), x, x)
	if g.wide {
		g.op("VSCALEFPD", t, x, x)
		return
	}
	// There is no arithmetic shift of 64 bits: n + 2048 is positive.
	g.op("VPSUBQ", g.u64(0x4338000000000000-2048), n, n)
	g.op("VPSRLQ", 1, n, p)
	g.op("VPSUBQ", p, n, n)
	for _, part := range []reg{p, n} {
		g.op("VPSUBQ", g.u64(1024-1023), part, part)
		g.op("VPSLLQ", 52, part, part)
		g.op("VMULPD", part, x, x)
	}
}

// sigmoid replaces x by 1/(1 + e⁻ˣ), using t … t+4: with e = e^−|x| it is
// 1/(1+e), or e/(1+e) where x < 0, so that nothing overflows.
func (g *gen) sigmoid(x, t reg) {
	e := t
	g.op("VORPS", g.u32(1<<31), x, e)
	g.exp(e, t+1, true, nil)
	g.set32(g.f32(1), t+1)
	g.op("VXORPS", t+2, t+2, t+2)
	g.choose("PS", less, x, t+2, e, t+1, x, t+3)
	g.op("VADDPS", e, t+1, t+1)
	g.op("VDIVPS", t+1, x, x)
}

func tanh(g *gen, v reg) reg {
	a, e, small := v+1, v+2, v+6
	g.op("VANDPS", g.u32(1<<31-1), v, a)
	g.op("VADDPS", a, a, e)
	g.exp(e, v+3, true, nil)
	g.op("VADDPS", g.f32(1), e, e)
	g.set32(g.f32(2), v+3)
	g.op("VDIVPS", e, v+3, e)
	g.set32(g.f32(1), v+3)
	g.op("VSUBPS", e, v+3, e) // 1 − 2/(e²ᵃ + 1)
	g.op("VMULPS", a, a, v+3)
	g.polynomial(tanhPoly, v+3, small)
	g.op("VMULPS", v+3, a, v+3)
	g.op("VMULPS", small, v+3, small)
	g.op("VADDPS", small, a, small)
	g.set32(g.f32(tanhBorder), v+3)
	g.choose("PS", less, a, v+3, small, e, e, v+4)
	g.op("VANDPS", g.u32(1<<31), v, v)
	g.op("VORPS", e, v, v)
	return v
}

// gelu is x·Φ(x). a²/2 is taken in two parts, the first of them exact, since
// e to its power multiplies its error by a².
func gelu(g *gen, v reg) reg {
	a, e, low, q, d := v+1, v+2, v+3, v+8, v+9
	t := v + 4
	g.op("VANDPS", g.u32(1<<31-1), v, a)
	g.set32(g.f32(normalTop), t)
	g.op("VMINPS", a, t, a)
	g.op("VANDPS", g.u32(0xfffff000), a, t)
	g.op("VMULPS", t, t, e)
	g.op("VMULPS", g.f32(-0.5), e, e)
	g.op("VSUBPS", t, a, low)
	g.op("VADDPS", t, a, t)
	g.op("VMULPS", t, low, low)
	g.op("VMULPS", g.f32(0.5), low, low)
	g.exp(e, t, false, &low)
	g.op("VADDPS", g.f32(normalCentre), a, d)
	g.set32(g.f32(1), q)
	g.op("VDIVPS", d, q, d)
	g.op("VSUBPS", g.f32(normalCentre), a, q)
	g.op("VMULPS", d, q, q)
	g.polynomial(normalPoly, q, t)
	g.op("VMULPS", d, t, t)
	g.op("VMULPS", e, t, t) // Φ(−a)
	g.set32(g.f32(1), e)
	g.op("VSUBPS", t, e, e)
	g.op("VXORPS", q, q, q)
	g.choose("PS", less, v, q, t, e, e, d)
	g.op("VMULPS", e, v, v)
	return v
}

// maximum is a reduction that also notes NaNs: bits in K3 or register 14.
func maximum(g *gen) {
	nan := reg(14)
	if g.wide {
		g.op("KXORW", "K3", "K3", "K3")
	} else {
		g.op("VXORPS", nan, nan, nan)
	}
	minusInf := g.u32(0xff800000)
	reduce{
		in: []string{"x"}, lane: 4, lanes: 64, fold: "VMAX",
		start: func(g *gen, acc reg) { g.set32(minusInf, acc) },
		step: func(g *gen, acc, v reg, masked bool) {
			if masked { // beyond the tail are zeros
				g.set32(minusInf, 13)
				if g.wide {
					g.op("VBLENDMPS", v, reg(13), "K1", v)
				} else {
					g.op("VBLENDVPS", maskReg, v, reg(13), v)
				}
			}
			if g.wide {
				g.op("VCMPPS", unordered, v, v, "K2")
				g.op("KORW", "K2", "K3", "K3")
			} else {
				g.op("VCMPPS", unordered, v, v, reg(12))
				g.op("VORPS", reg(12), nan, nan)
			}
			g.op("VMAXPS", v, acc, acc)
		},
		end: func(g *gen) {
			if g.wide {
				g.op("KMOVW", "K3", "AX")
			} else {
				g.op("VMOVMSKPS", nan, "AX")
			}
			g.op("TESTL", "AX", "AX")
			g.op("JEQ", "ordered")
			g.op("VMOVSS", string(g.u32(0x7fc00000)), "X0")
			g.label("ordered")
		},
	}.write(g)
}

// index looks for the first element that equals v.
func index(g *gen) {
	x := g.open()["x"]
	n := g.lanes(4)
	broadcast32("v")(g)
	compare := func(masked bool) {
		g.load(x, 0, 4, 0, masked)
		if g.wide {
			g.op("VCMPPS", equal, scalarA, reg(0), "K2")
			if masked {
				g.op("KANDW", "K1", "K2", "K2")
			}
			g.op("KMOVW", "K2", "R8")
		} else {
			g.op("VCMPPS", equal, scalarA, reg(0), reg(0))
			if masked {
				g.op("VANDPS", maskReg, reg(0), reg(0))
			}
			g.op("VMOVMSKPS", reg(0), "R8")
		}
		g.op("TESTL", "R8", "R8")
		g.op("JNE", "found")
	}
	g.op("MOVQ", x.ptr, "R9")
	g.label("loop")
	g.op("CMPQ", "CX", n)
	g.op("JLT", "tail")
	compare(false)
	g.advance(map[string]stream{"x": x}, n)
	g.op("JMP", "loop")
	g.label("tail")
	g.op("TESTQ", "CX", "CX")
	g.op("JEQ", "none")
	g.mask(4)
	compare(true)
	g.label("none")
	g.op("MOVQ", -1, g.returned())
	g.ret()
	g.label("found")
	g.op("BSFL", "R8", "R8")
	g.op("SUBQ", "R9", x.ptr)
	g.op("SHRQ", 2, x.ptr)
	g.op("ADDQ", "R8", x.ptr)
	g.op("MOVQ", x.ptr, g.returned())
	g.ret()
}

// roundTo computes 16 codes at a time, in float64 as quantize defines them.
func roundTo(size int) func(g *gen) {
	return blocks{
		setup: broadcast64("scale", "zero", "lo", "hi"),
		count: func(g *gen) int { return 16 },
		body: func(g *gen, at map[string]string) {
			n := g.lanes(8)
			parts := 16 / n
			for i := range parts {
				r := reg(i)
				g.load(stream{at["x"][1 : len(at["x"])-1], size}, i*n, 8, r, false)
				g.code(r, r)
				if g.wide {
					g.op("VCVTPD2DQ", r, half(r))
				} else {
					g.op("VCVTPD2DQY", r, half(r))
				}
			}
			if g.wide {
				g.op("VINSERTI64X4", 1, "Y1", "Z0", "Z0")
				g.op("VPMOVDB", "Z0", "X0")
			} else {
				g.op("VPACKSSDW", "X1", "X0", "X0")
				g.op("VPACKSSDW", "X3", "X2", "X2")
				g.op("VPACKSSWB", "X2", "X0", "X0")
			}
			g.op("VMOVDQU", "X0", at["codes"])
		},
	}.write
}

// code sets q to x's code on the grid whose scale, zero, lo and hi are in the
// scalars' registers.
func (g *gen) code(x, q reg) {
	scale, zero, lo, hi := scalarA, scalarA-1, scalarA-2, scalarA-3
	g.op("VDIVPD", scale, x, q)
	g.op("VROUNDPD", 8, q, q)
	g.op("VADDPD", zero, q, q)
	g.op("VMAXPD", lo, q, q) // lo is the second source: it replaces a NaN
	g.op("VMINPD", hi, q, q)
}

// rangeError sums |x − scale·(code − zero)|^power.
func rangeError(g *gen) {
	scale, zero := scalarA, scalarA-1
	broadcast64("scale", "zero", "lo", "hi")(g)
	reduce{
		in: []string{"x"}, lane: 8, lanes: 16, start: zeroSum, fold: "VADD", heavy: true,
		step: func(g *gen, acc, x reg, masked bool) {
			q := x + 1
			g.code(x, q)
			g.op("VSUBPD", zero, q, q)
			g.op("VMULPD", scale, q, q) // exact, so the next rounds once, as float32 would
			if g.wide {
				g.op("VCVTPD2PS", q, half(q))
			} else {
				g.op("VCVTPD2PSY", q, half(q))
			}
			g.op("VCVTPS2PD", half(q), q)
			g.op("VSUBPD", q, x, x)
			g.op("VANDPD", g.u64(1<<63-1), x, x)
			g.log64(x, x+1)
			g.op("VBROADCASTSD", g.arg("power"), x+1)
			g.op("VMULPD", x+1, x, x)
			g.exp64(x, x+1)
			if masked && g.wide {
				g.op("VMOVAPD.Z", x, "K1", x)
			} else if masked {
				g.op("VANDPD", maskReg, x, x)
			}
			g.op("VADDPD", x, acc, acc)
		},
	}.write(g)
}

// log64 replaces x ≥ 0 by log x, using t … t+4. Of 0 it is about −709.
func (g *gen) log64(x, t reg) {
	k, f, s, z, p := t, t+1, t+2, t+3, t+4
	g.op("VPADDQ", g.u64(one64-rootHalf), x, k)
	g.op("VANDPD", g.u64(1<<52-1), k, f)
	g.op("VPADDQ", g.u64(rootHalf), f, f) // m
	g.op("VPSRLQ", 52, k, k)
	g.op("VORPD", g.f64(1<<52), k, k)
	g.op("VSUBPD", g.f64(1<<52+1023), k, k) // the exponent
	g.op("VSUBPD", g.f64(1), f, f)
	g.op("VADDPD", g.f64(2), f, s)
	g.op("VDIVPD", s, f, s)
	g.op("VMULPD", s, s, z)
	g.set64(g.f64(log64Poly[len(log64Poly)-1]), p)
	for i := len(log64Poly) - 2; i >= 0; i-- {
		g.op("VMULPD", z, p, p)
		g.op("VADDPD", g.f64(log64Poly[i]), p, p)
	}
	g.op("VMULPD", z, p, p)
	g.op("VMULPD", f, f, z)
	g.op("VMULPD", g.f64(0.5), z, z)
	g.op("VADDPD", z, p, p)
	g.op("VMULPD", s, p, p)
	g.op("VMULPD", g.f64(ln2Low64), k, s)
	g.op("VADDPD", s, p, p)
	g.op("VSUBPD", p, z, z)
	g.op("VSUBPD", f, z, z)
	g.op("VMULPD", g.f64(ln2High64), k, k)
	g.op("VSUBPD", z, k, x)
}

// dequantize computes scale·(code − zero).
func dequantize(g *gen) {
	blocks{
		setup: broadcast32("scale", "zero"),
		count: lanes32,
		body: func(g *gen, at map[string]string) {
			g.op("VPMOVSXBD", at["codes"], reg(0))
			g.op("VPSUBD", scalarB, reg(0), reg(0))
			g.op("VCVTDQ2PS", reg(0), reg(0))
			g.op("VMULPS", scalarA, reg(0), reg(0))
			g.op("VMOVUPS", reg(0), at["dst"])
		},
	}.write(g)
}

// toBF16 rounds half to even by adding 0x7fff and the lowest bit that stays;
// a NaN keeps its upper bits and becomes quiet.
func setBF16(g *gen) {
	g.set32(g.u32(1), 13)
	g.set32(g.u32(0x7fff), 12)
	g.set32(g.u32(0x40), 11)
}

func toBF16(g *gen, at map[string]string) {
	x, high, rounded := reg(0), reg(1), reg(2)
	g.op("VMOVUPS", at["x"], x)
	g.op("VPSRLD", 16, x, high)
	g.op("VPAND", reg(13), high, rounded)
	g.op("VPADDD", reg(12), rounded, rounded)
	g.op("VPADDD", x, rounded, rounded)
	g.op("VPSRLD", 16, rounded, rounded)
	g.op("VPOR", reg(11), high, high)
	g.choose("PS", unordered, x, x, high, rounded, rounded, 3)
	if g.wide {
		g.op("VPMOVDW", "Z2", "Y2")
		g.op("VMOVDQU", "Y2", at["half"])
		return
	}
	g.op("VPACKUSDW", "Y2", "Y2", "Y2") // within halves of 128 bits
	g.op("VPERMQ", 0x08, "Y2", "Y2")
	g.op("VMOVDQU", "X2", at["half"])
}
