package main

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
)

// A reg numbers a whole vector register, Y on AVX2 and Z on AVX-512; a half
// its lower half, X and Y. A quarter is X on both.
type (
	reg     int
	half    int
	quarter int
)

// A konst is a constant in every lane, read from memory: broadcast by the
// instruction on AVX-512, 32 bytes of repeated value on AVX2.
type konst string

// param is a parameter of a kernel, in Go's terms.
type param struct{ name, typ string }

// kernel is one function: its Go signature and what writes its body.
type kernel struct {
	name   string
	params []param
	result string // type, empty for none
	body   func(g *gen)
}

// gen writes the kernels of one instruction set.
type gen struct {
	wide   bool // AVX-512
	text   bytes.Buffer
	table  *constants
	fn     *kernel
	labels int
}

// constants is the read-only table that both instruction sets share.
type constants struct {
	at   map[string]int
	data bytes.Buffer
	size int
}

func (g *gen) width() int {
	if g.wide {
		return 64
	}
	return 32
}

// lanes returns how many elements of the given size a register holds.
func (g *gen) lanes(size int) int { return g.width() / size }

func (g *gen) suffix() string {
	if g.wide {
		return "AVX512"
	}
	return "AVX2"
}

// f32, u32 and f64 return constants.
func (g *gen) f32(v float32) konst { return g.u32(math.Float32bits(v)) }
func (g *gen) u32(v uint32) konst  { return g.konst(fmt.Sprintf("$0x%08x%08x", v, v)) }
func (g *gen) f64(v float64) konst { return g.u64(math.Float64bits(v)) }
func (g *gen) u64(v uint64) konst  { return g.konst(fmt.Sprintf("$0x%016x", v)) }

func (g *gen) konst(value string) konst {
	t := g.table
	at, ok := t.at[value]
	if !ok {
		at = t.size
		t.at[value] = at
		for range 4 {
			fmt.Fprintf(&t.data, "DATA consts<>+%d(SB)/8, %s\n", t.size, value)
			t.size += 8
		}
	}
	return konst(fmt.Sprintf("consts<>+%d(SB)", at))
}

// wideNames are the AVX-512 names of instructions that have another there.
var wideNames = map[string]string{
	"VPAND": "VPANDD", "VPOR": "VPORD", "VPXOR": "VPXORD",
	"VROUNDPD": "VRNDSCALEPD",
}

// op writes an instruction, its operands in Go's order.
func (g *gen) op(name string, args ...any) {
	var list []string
	broadcast := false
	for _, a := range args {
		switch a := a.(type) {
		case reg:
			list = append(list, g.pick("Y", "Z", int(a)))
		case half:
			list = append(list, g.pick("X", "Y", int(a)))
		case quarter:
			list = append(list, fmt.Sprintf("X%d", a))
		case int:
			list = append(list, fmt.Sprintf("$%d", a))
		case konst:
			broadcast = true
			list = append(list, string(a))
		case string:
			list = append(list, a)
		}
	}
	if g.wide {
		if w, ok := wideNames[name]; ok {
			name = w
		}
		if broadcast && !strings.HasPrefix(name, "VBROADCAST") {
			name += ".BCST"
		}
	}
	fmt.Fprintf(&g.text, "\t%s %s\n", name, strings.Join(list, ", "))
}

func (g *gen) pick(narrow, wide string, i int) string {
	if g.wide {
		return fmt.Sprintf("%s%d", wide, i)
	}
	return fmt.Sprintf("%s%d", narrow, i)
}

// newLabel returns a label that is new in the function.
func (g *gen) newLabel(name string) string {
	g.labels++
	return fmt.Sprintf("%s%d", name, g.labels)
}

func (g *gen) label(l string) { fmt.Fprintf(&g.text, "%s:\n", l) }

// set puts a constant into every lane.
func (g *gen) set32(k konst, dst reg) { g.op("VBROADCASTSS", k, dst) }
func (g *gen) set64(k konst, dst reg) { g.op("VBROADCASTSD", k, dst) }

// Predicates of comparisons; none traps.
const (
	equal     = 0x00
	unordered = 0x03
	less      = 0x11
)

// choose sets dst to yes where a (predicate) b holds, else to no. It uses tmp
// on AVX2 and K2 on AVX-512. ps is PS or PD.
func (g *gen) choose(ps string, predicate int, a reg, b any, yes, no, dst, tmp reg) {
	if g.wide {
		g.op("VCMP"+ps, predicate, b, a, "K2")
		g.op("VBLENDM"+ps, yes, no, "K2", dst)
		return
	}
	g.op("VCMP"+ps, predicate, b, a, tmp)
	g.op("VBLENDV"+ps, tmp, yes, no, dst)
}

// size returns a type's bytes as a parameter.
func size(typ string) int {
	switch {
	case strings.HasPrefix(typ, "[]"):
		return 24
	case typ == "float32" || typ == "int32":
		return 4
	}
	return 8
}

// elemSize returns the bytes of a slice's element.
func elemSize(typ string) int {
	switch typ {
	case "[]byte", "[]int8":
		return 1
	case "[]float32":
		return 4
	}
	return 8
}

// layout returns the offsets of the parameters and of the result, and the size
// of all.
func (k *kernel) layout() (offsets map[string]int, result, total int) {
	offsets = map[string]int{}
	at := 0
	for _, p := range k.params {
		n := size(p.typ)
		align := min(n, 8)
		at = (at + align - 1) / align * align
		offsets[p.name] = at
		at += n
	}
	if k.result == "" {
		return offsets, at, at
	}
	at = (at + 7) / 8 * 8
	return offsets, at, at + size(k.result)
}

// arg returns the operand of a scalar parameter.
func (g *gen) arg(name string) string {
	offsets, _, _ := g.fn.layout()
	return fmt.Sprintf("%s+%d(FP)", name, offsets[name])
}

// returned returns the operand of the result.
func (g *gen) returned() string {
	_, at, _ := g.fn.layout()
	return fmt.Sprintf("ret+%d(FP)", at)
}

// pointers are the general registers that hold slices' positions. CX holds
// the elements that are left, R8, R9 and AX are free.
var pointers = []string{"DI", "SI", "DX", "BX"}

// stream is a slice that a kernel walks along.
type stream struct {
	ptr  string
	size int // bytes of an element
}

// open loads the slices' pointers, and the first one's length into CX.
func (g *gen) open() map[string]stream {
	streams := map[string]stream{}
	offsets, _, _ := g.fn.layout()
	for _, p := range g.fn.params {
		if !strings.HasPrefix(p.typ, "[]") {
			continue
		}
		s := stream{pointers[len(streams)], elemSize(p.typ)}
		g.op("MOVQ", fmt.Sprintf("%s_base+%d(FP)", p.name, offsets[p.name]), s.ptr)
		if len(streams) == 0 {
			g.op("MOVQ", fmt.Sprintf("%s_len+%d(FP)", p.name, offsets[p.name]+8), "CX")
		}
		streams[p.name] = s
	}
	return streams
}

// advance moves all streams by n elements and counts them off.
func (g *gen) advance(streams map[string]stream, n int) {
	for _, ptr := range pointers {
		for _, s := range streams {
			if s.ptr == ptr {
				g.op("ADDQ", n*s.size, ptr)
			}
		}
	}
	g.op("SUBQ", n, "CX")
}

// maskReg holds the tail's mask on AVX2, K1 does on AVX-512.
const maskReg = reg(15)

// mask makes the tail's mask: the first CX of a register's lanes of the given
// size. CX is less than the lanes.
func (g *gen) mask(size int) {
	if g.wide {
		g.op("MOVL", 1, "AX")
		g.op("SHLL", "CX", "AX")
		g.op("DECL", "AX")
		g.op("KMOVW", "AX", "K1")
		return
	}
	g.op("LEAQ", "mask<>+32(SB)", "AX")
	g.op("MOVQ", "CX", "R8")
	g.op("IMULQ", size, "R8")
	g.op("SUBQ", "R8", "AX")
	g.op("VMOVDQU", "(AX)", maskReg)
}

// load reads a register's worth of elements as lanes of the given size:
// float32 widens to float64. masked reads the tail, zero beyond it.
func (g *gen) load(s stream, offset, lane int, dst reg, masked bool) {
	from := fmt.Sprintf("%d(%s)", offset*s.size, s.ptr)
	widen := s.size < lane
	var to any = dst
	if widen {
		to = half(dst)
	}
	switch {
	case masked && widen && !g.wide: // a mask of half-size lanes
		g.op("VPERMILPS", 0x88, maskReg, reg(14))
		g.op("VPERMQ", 0x08, reg(14), reg(14))
		g.op("VMASKMOVPS", from, half(14), to)
		g.op("VCVTPS2PD", to, dst)
	case masked:
		if g.wide {
			g.op(map[int]string{4: "VMOVUPS.Z", 8: "VMOVUPD.Z"}[s.size], from, "K1", to)
		} else {
			g.op(map[int]string{4: "VMASKMOVPS", 8: "VMASKMOVPD"}[s.size], from, maskReg, to)
		}
		if widen {
			g.op("VCVTPS2PD", to, dst)
		}
	case widen:
		g.op("VCVTPS2PD", from, dst)
	default:
		g.op("VMOVUPS", from, dst)
	}
}

// store writes a register.
func (g *gen) store(s stream, offset int, src reg, masked bool) {
	to := fmt.Sprintf("%d(%s)", offset*s.size, s.ptr)
	ps := map[int]string{4: "PS", 8: "PD"}[s.size]
	switch {
	case !masked:
		g.op("VMOVUPS", src, to)
	case g.wide:
		g.op("VMOVU"+ps, src, "K1", to)
	default:
		g.op("VMASKMOV"+ps, src, maskReg, to)
	}
}

func (g *gen) ret() {
	g.op("VZEROUPPER")
	g.op("RET")
}

// write writes one kernel.
func (g *gen) write(k *kernel) {
	g.fn, g.labels = k, 0
	_, _, total := k.layout()
	fmt.Fprintf(&g.text, "\n// func %s%s\n", k.name+g.suffix(), k.signature())
	fmt.Fprintf(&g.text, "TEXT ·%s(SB), NOSPLIT, $0-%d\n", k.name+g.suffix(), total)
	k.body(g)
}

// signature returns the parameters and the result as Go writes them.
func (k *kernel) signature() string {
	var list []string
	for i, p := range k.params {
		if i+1 < len(k.params) && k.params[i+1].typ == p.typ {
			list = append(list, p.name)
		} else {
			list = append(list, p.name+" "+p.typ)
		}
	}
	return strings.TrimSpace("(" + strings.Join(list, ", ") + ") " + k.result)
}

// call returns the arguments of a call with the parameters' own names.
func (k *kernel) call() string {
	var list []string
	for _, p := range k.params {
		list = append(list, p.name)
	}
	return "(" + strings.Join(list, ", ") + ")"
}

// params parses "dst, x []float32, a float32".
func params(s string) []param {
	var all []param
	typ := ""
	parts := strings.Split(s, ", ")
	slices.Reverse(parts)
	for _, p := range parts {
		name, t, ok := strings.Cut(p, " ")
		if ok {
			typ = t
		}
		all = append(all, param{name, typ})
	}
	slices.Reverse(all)
	return all
}
