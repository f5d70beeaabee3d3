package pipeline

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/record"
)

// Layers that are stored compressed already, by fettle or another program, stay as they
// are stored unless a rule says requantize. Their decoded values take part in all else.

// keepsStored reports whether an operation's weight is stored compressed and its rule
// does not say to compress it again, and returns the layer's name.
func keepsStored(r *Recipe, ckpt *loader.Checkpoint, op *model.Op) (name string, stays bool) {
	if !op.IsLayer() {
		return "", false
	}
	t, _ := ckpt.Lookup(op.Weight)
	at := slices.IndexFunc(r.Rules, func(rule Rule) bool { return rule.matches(op.Name) })
	if t.Decoded() == nil || at < 0 || len(r.Rules[at].Steps)+len(r.Rules[at].levels) == 0 {
		return "", false
	}
	return op.Name, !r.Rules[at].Requantize
}

// storedAs says how a layer's weight is stored.
func storedAs(ckpt *loader.Checkpoint, graph *model.Graph, layer string) string {
	for i := range graph.Ops {
		if graph.Ops[i].Name == layer {
			t, _ := ckpt.Lookup(graph.Ops[i].Weight)
			return t.Encoding()
		}
	}
	return ""
}

// typeOf returns the type that a weight is taken to have: of one that is stored
// compressed that of its scales or values.
func typeOf(t loader.Tensor, stored *export.Model) dtype.DType {
	if d := t.Decoded(); d != nil && stored != nil {
		return stored.StoredType(d.Name)
	}
	return t.DType
}

// keptBytes returns the bytes that a tensor which is not compressed takes in the output.
func keptBytes(t loader.Tensor) int64 {
	if t.Decoded() != nil {
		return t.StoredBytes()
	}
	return t.Bytes() // GGUF's blocks are not written
}

// KeptBytes returns the bytes of the tensors that are kept, as they are written.
func (p *Plan) KeptBytes() (n int64) {
	for _, t := range p.Kept {
		n += keptBytes(t)
	}
	return n
}

// noteStored notes what is kept as it is stored: asked are layers that a rule would
// compress.
func (p *Plan) noteStored(graph *model.Graph, asked []string, stored *export.Model) {
	if stored == nil {
		return
	}
	layers := map[string]string{}
	for i := range graph.Ops {
		if graph.Ops[i].IsLayer() {
			layers[graph.Ops[i].Weight] = graph.Ops[i].Name
		}
	}
	names := map[string][]string{}
	for _, t := range p.Kept {
		d := t.Decoded()
		if d == nil {
			continue
		}
		name := layers[t.Name]
		if name == "" {
			name = t.Name
		}
		how := "already pruned, " + d.Encoding
		if stored.Quantized(d.Name) {
			how = "already quantized, " + d.Encoding
		}
		names[how] = append(names[how], name)
	}
	for _, how := range slices.Sorted(maps.Keys(names)) {
		list := names[how]
		text := strings.Join(list, ", ")
		if len(list) > 4 {
			text = fmt.Sprintf("%s, %s, … %s", list[0], list[1], list[len(list)-1])
		}
		p.Notes = append(p.Notes, fmt.Sprintf("kept: %s: %d layers (%s)", how, len(list), text))
	}
	if len(asked) > 0 {
		p.Notes = append(p.Notes, fmt.Sprintf("%d of the kept layers are matched by a rule, which compresses them again only with requantize: true", len(asked)))
	}
	if len(names) > 0 && stored.Activations() {
		p.Notes = append(p.Notes, "the source's config quantizes activations too; that takes place when the model runs and is not computed here")
	}
}

// checkCutStored refuses to take a part of a weight that is stored compressed, and then
// to store the rest in full.
func (r *run) checkCutStored() error {
	for _, name := range slices.Sorted(maps.Keys(r.cutStored)) {
		again := slices.ContainsFunc(r.plan.Layers, func(l PlanLayer) bool {
			return l.Weight == name && r.recipe.Rules[l.rule].Requantize
		})
		if !again {
			return &RecipeError{File: r.recipe.file, Where: "remove", Reason: fmt.Sprintf(
				"takes a part of %s, which is stored compressed already (%s) and cannot be cut as it is stored; give its layer a rule with requantize: true, or remove whole blocks, attentions or MLPs", name, r.cutStored[name])}
		}
	}
	return nil
}

// keptRecord is the record of a tensor that is not compressed.
func (r *run) keptRecord(t loader.Tensor) record.Tensor {
	out := record.Tensor{Name: t.Name, DType: t.DType.String(), Shape: t.Shape, Bytes: keptBytes(t)}
	if d := t.Decoded(); d != nil {
		out.DType, out.Stored = r.original.stored.StoredType(d.Name).String(), d.Encoding
	}
	return out
}
