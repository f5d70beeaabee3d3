package model

import (
	"fmt"
	"slices"
	"strings"
)

// term returns the operations of a block's sublayer that a sum adds to the
// residual stream, with the sum. They read nothing but each other, the stream, and
// normalizations that another sublayer reads too; nothing else reads them. The
// stream is the sum's other term, and the terms of the sums before it in the
// block, one of which a sublayer reads that stands beside another.
func (g *Graph) term(sum int) ([]int, error) {
	op := &g.Ops[sum]
	by := g.producers()
	for k, from := range op.Inputs {
		stream := []int{op.Inputs[1-k]}
		for i := 0; i < len(stream); i++ {
			if p := by[stream[i]]; p >= 0 && g.Ops[p].Kind == Add && g.Ops[p].Block == op.Block {
				stream = append(stream, g.Ops[p].Inputs...)
			}
		}
		if ops, ok := g.between(by, from, stream...); ok {
			return g.exclusive(append(ops, sum))
		}
	}
	return nil, &RemovalError{MLPSite, strings.TrimSuffix(op.Name, "_sum"), "it does not add a sublayer to the residual stream"}
}

// exclusive returns the operations without those normalizations that others read
// too, and fails where others read something else.
func (g *Graph) exclusive(ops []int) ([]int, error) {
	shared := func(i int) bool {
		return slices.ContainsFunc(g.Readers(g.Ops[i].Output), func(r int) bool { return !slices.Contains(ops, r) })
	}
	all := slices.Clone(ops[:len(ops)-1]) // the sum is what others read
	for _, i := range all {
		if g.Ops[i].Norm != nil && shared(i) {
			ops = slices.DeleteFunc(slices.Clone(ops), func(j int) bool { return i == j })
		}
	}
	for _, i := range ops[:len(ops)-1] {
		if shared(i) {
			return nil, &RemovalError{MLPSite, parentOf(g.Ops[i].Name), fmt.Sprintf("others than its own layers read what %s gives", g.Ops[i].Name)}
		}
	}
	return ops, nil
}

// unread returns the normalizations of a block that nothing reads once some
// operations have gone. A sum that has gone still passes on what it read.
func (g *Graph) unread(gone func(i int) bool) (list []int) {
	for i := range g.Ops {
		o := &g.Ops[i]
		if o.Norm == nil || o.Block < 0 || gone(i) || o.Output == g.Output {
			continue
		}
		if !slices.ContainsFunc(g.Readers(o.Output), func(r int) bool { return !gone(r) || g.Ops[r].Kind == Add }) {
			list = append(list, i)
		}
	}
	return list
}

// sublayerName names a sublayer by what its layers' names have in common, unless
// that is the block; then by its sum.
func (g *Graph) sublayerName(layer, sum int) string {
	name := parentOf(g.Ops[layer].Name)
	if name+"." == stemOf(g.Ops[layer].Name) {
		return strings.TrimSuffix(g.Ops[sum].Name, "_sum")
	}
	return name
}
