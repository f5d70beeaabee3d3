package main

import "fmt"

// each is a kernel that computes dst[i] from in[i]…, with masked tails.
type each struct {
	dst    string
	in     []string
	lane   int // bytes of a lane
	unroll int
	regs   int                           // registers that one unrolled copy uses
	setup  func(g *gen)                  // loads scalars into registers from 13 down
	body   func(g *gen, v reg) (dst reg) // input i is in register v+i
}

func (e each) write(g *gen) {
	streams := g.open()
	n := g.lanes(e.lane)
	if e.setup != nil {
		e.setup(g)
	}
	copies := func(count int, masked bool) {
		for u := range count {
			for i, name := range e.in {
				g.load(streams[name], u*n, e.lane, reg(u*e.regs+i), masked)
			}
		}
		for u := range count {
			g.store(streams[e.dst], u*n, e.body(g, reg(u*e.regs)), masked)
		}
	}
	for _, count := range []int{e.unroll, 1} {
		loop, next := g.newLabel("loop"), g.newLabel("next")
		g.label(loop)
		g.op("CMPQ", "CX", count*n)
		g.op("JLT", next)
		copies(count, false)
		g.advance(streams, count*n)
		g.op("JMP", loop)
		g.label(next)
		if count == 1 {
			break
		}
	}
	g.op("TESTQ", "CX", "CX")
	g.op("JEQ", "done")
	g.mask(e.lane)
	copies(1, true)
	g.label("done")
	g.ret()
}

// reduce is a kernel that folds all elements into one number: element i into
// lane i mod lanes, then lane l with lane l + lanes/2, and so on.
type reduce struct {
	in    []string
	lane  int // bytes of a lane
	lanes int
	start func(g *gen, acc reg)                 // sets a register of lanes
	step  func(g *gen, acc, v reg, masked bool) // folds inputs v, v+1, … into acc
	fold  string                                // the instruction that joins lanes, less its P/S and D/S
	heavy bool                                  // step uses registers beyond the inputs
	end   func(g *gen)                          // completes register 0's lowest lane
}

func (r reduce) write(g *gen) {
	streams := g.open()
	n := g.lanes(r.lane)
	accs := r.lanes / n
	for j := range accs {
		r.start(g, reg(j))
	}
	step := func(j, offset int, masked bool) {
		v := reg(accs)
		if !r.heavy && j%2 == 1 { // the next one's loads need not wait
			v += reg(len(r.in))
		}
		for i, name := range r.in {
			g.load(streams[name], offset, r.lane, v+reg(i), masked)
		}
		r.step(g, reg(j), v, masked)
	}
	g.label("loop")
	g.op("CMPQ", "CX", r.lanes)
	g.op("JLT", "rest0")
	for j := range accs {
		step(j, j*n, false)
	}
	g.advance(streams, r.lanes)
	g.op("JMP", "loop")
	for j := range accs {
		g.label(fmt.Sprintf("rest%d", j))
		if j < accs-1 {
			g.op("CMPQ", "CX", n)
			g.op("JLT", fmt.Sprintf("tail%d", j))
			step(j, 0, false)
			g.advance(streams, n)
		}
	}
	for j := accs - 1; j >= 0; j-- {
		g.label(fmt.Sprintf("tail%d", j))
		g.op("TESTQ", "CX", "CX")
		g.op("JEQ", "done")
		g.mask(r.lane)
		step(j, 0, true)
		g.op("JMP", "done")
	}
	g.label("done")
	r.join(g, accs)
	if r.end != nil {
		r.end(g)
	}
	g.op(map[int]string{4: "VMOVSS", 8: "VMOVSD"}[r.lane], "X0", g.returned())
	g.ret()
}

// join folds the lanes of the first registers into the lowest of register 0.
func (r reduce) join(g *gen, accs int) {
	p, s := r.fold+"PS", r.fold+"SS"
	if r.lane == 8 {
		p, s = r.fold+"PD", r.fold+"SD"
	}
	for h := accs / 2; h > 0; h /= 2 {
		for j := range h {
			g.op(p, reg(j+h), reg(j), reg(j))
		}
	}
	if g.wide {
		g.op("VEXTRACTF64X4", 1, "Z0", "Y1")
		g.op(p, "Y1", "Y0", "Y0")
	}
	g.op("VEXTRACTF128", 1, "Y0", "X1")
	g.op(p, "X1", "X0", "X0")
	if r.lane == 4 {
		g.op("VPERMILPD", 1, "X0", "X1")
		g.op(p, "X1", "X0", "X0")
		g.op("VMOVSHDUP", "X0", "X1")
	} else {
		g.op("VPERMILPD", 1, "X0", "X1")
	}
	g.op(s, "X1", "X0", "X0")
}

// blocks is a kernel over a multiple of 16 elements: its body does the given
// number of elements at the streams' positions.
type blocks struct {
	setup func(g *gen)
	count func(g *gen) int
	body  func(g *gen, at map[string]string)
}

func (b blocks) write(g *gen) {
	streams := g.open()
	if s, ok := streams["half"]; ok { // bytes that hold elements of two
		streams["half"] = stream{s.ptr, 2}
		if s.ptr == pointers[0] {
			g.op("SHRQ", 1, "CX")
		}
	}
	if b.setup != nil {
		b.setup(g)
	}
	at := map[string]string{}
	for name, s := range streams {
		at[name] = "(" + s.ptr + ")"
	}
	g.label("loop")
	g.op("TESTQ", "CX", "CX")
	g.op("JEQ", "done")
	b.body(g, at)
	g.advance(streams, b.count(g))
	g.op("JMP", "loop")
	g.label("done")
	g.ret()
}
