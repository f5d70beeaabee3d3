package export

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
)

// View returns the checkpoint in which every compressed weight is a tensor of F32 that
// is decoded as it is read (loader.Tensor.Decoded), in the place of what is stored of
// it. It reads the model's files, which must stay open.
func (m *Model) View() (*loader.Checkpoint, error) {
	weightOf := map[string]string{}
	for weight := range m.specs {
		for _, name := range m.tensorsOf(weight) {
			weightOf[name] = weight
		}
	}
	for weight := range m.affines {
		for _, name := range m.tensorsOf(weight) {
			weightOf[name] = weight
		}
	}
	var parts []loader.Part
	for _, t := range m.file.Tensors() {
		weight, ok := weightOf[t.Name]
		switch {
		case !ok:
			parts = append(parts, loader.Part{Name: t.Name})
		case t.Name == m.codesOf(weight):
			parts = append(parts, loader.Part{Name: weight, Decoded: m.decoded(weight)})
		}
	}
	return m.file.View(parts)
}

// decoded describes a compressed weight to package loader.
func (m *Model) decoded(weight string) *loader.Decoded {
	d := &loader.Decoded{
		Name: weight, Shape: m.denseTensor(weight).Shape, Encoding: m.encoding(weight),
		Read: func(dst []float32) error { return m.ReadFloat32(weight, dst) },
	}
	for _, name := range m.tensorsOf(weight) {
		t, _ := m.file.Lookup(name)
		d.Bytes += t.Bytes()
	}
	if a := m.affines[weight]; a != nil {
		d.Key = fmt.Sprintf("%+v", *a)
	} else {
		d.Key = fmt.Sprintf("%+v", m.specs[weight])
	}
	return d
}

// tensorsOf lists the tensors that a compressed weight is stored in, its codes first.
func (m *Model) tensorsOf(weight string) []string {
	var names []string
	if a := m.affines[weight]; a != nil {
		names = slices.Clone(a.tensors)
		at := slices.Index(names, a.codesName())
		names[0], names[at] = names[at], names[0]
	} else {
		for _, t := range m.specs[weight].tensors(nil) {
			names = append(names, t.Name)
		}
	}
	return append(names, m.activations[weight]...)
}

// StoredType returns the type that a compressed weight's own values or scales have in
// the files, or had in the original where that is told.
func (m *Model) StoredType(weight string) loader.DType { return m.denseTensor(weight).DType }

// Quantized reports whether a compressed weight is stored as codes, and not as values
// that are pruned alone.
func (m *Model) Quantized(weight string) bool {
	spec, ok := m.specs[weight]
	return !ok || !spec.valued()
}

// Activations reports whether the config quantizes the activations that go into some
// of the weights, which takes place when the model runs and is not simulated.
func (m *Model) Activations() bool {
	for _, g := range m.groups {
		if g.activations {
			return true
		}
	}
	return false
}

// encoding says in a few words how a weight is stored.
func (m *Model) encoding(weight string) string {
	if a := m.affines[weight]; a != nil {
		return a.describe()
	}
	return m.specs[weight].describe()
}

func (s affineScheme) describe() string {
	name := map[string]string{layoutGPTQ: "GPTQ", layoutGPTQv2: "GPTQ", layoutAWQ: "AWQ"}[s.layout]
	if name == "" {
		name = s.layout
	}
	text := fmt.Sprintf("%s %d bits", name, s.bits)
	if s.float {
		text = "FP8"
	}
	switch {
	case s.strategy == "block":
		text += fmt.Sprintf(" in blocks of %d×%d", s.block[0], s.block[1])
	case s.groupSize > 0:
		text += fmt.Sprintf(" g%d", s.groupSize)
	default:
		text += " per " + s.strategy
	}
	if s.actOrder {
		text += " act-order"
	}
	return text
}

func (s Spec) describe() string {
	text := "values in " + s.ValueType.String()
	if !s.valued() {
		text = strings.ToUpper(string(s.Format))
		if s.Format == layer.Integer {
			text = fmt.Sprintf("%s %d bits", layoutPacked, s.Bits)
		}
		if s.Granularity == layer.PerGroup {
			text += fmt.Sprintf(" g%d", s.GroupSize)
		} else {
			text += fmt.Sprintf(" per %s", s.Granularity)
		}
	}
	if s.masked() {
		text += fmt.Sprintf(", %.3g %% pruned (%s)", 100*(1-float64(s.Pruned.Survivors)/float64(s.Rows*s.Cols)), s.Pruned.Layout)
	}
	if s.LowRank.Rank > 0 && !s.LowRank.Merged {
		text += fmt.Sprintf(", rank %d", s.LowRank.Rank)
	}
	return text
}

// keptAs returns the name in the source of a tensor that is written as it is stored
// there, and whether it is one.
func (in Input) keptAs(t loader.Tensor) (weight string, ok bool) {
	d := t.Decoded()
	if d == nil || in.Source == nil {
		return "", false
	}
	_, compressed := in.Specs[t.Name]
	_, replaced := in.Replaced[t.Name]
	return d.Name, !compressed && !replaced && in.Source.has(d.Name)
}

// keptSpec returns the spec of such a weight, under its name in the output; ok is false
// for a layout that fettle does not write.
func (in Input) keptSpec(t loader.Tensor) (spec Spec, ok bool) {
	weight, kept := in.keptAs(t)
	if !kept {
		return spec, false
	}
	spec, ok = in.Source.specs[weight]
	spec.Name = t.Name
	return spec, ok
}

// specOf returns how a weight is stored in the output, new or kept, where fettle writes
// such.
func (in Input) specOf(t loader.Tensor) (Spec, bool) {
	if spec, ok := in.Specs[t.Name]; ok {
		return spec, true
	}
	return in.keptSpec(t)
}

// keptSources are the tensors of a weight that is written as it is stored.
func (s *source) keptSources(t loader.Tensor, weight string) []safetensors.Source {
	var list []safetensors.Source
	for _, name := range s.Source.tensorsOf(weight) {
		stored, _ := s.Source.file.Lookup(name)
		one := streamed(stored, s.stored)
		one.Name = renamed(name, weight, t.Name)
		list = append(list, one)
	}
	return list
}

// renamed returns the name that a tensor of a weight has when the weight has another.
func renamed(tensor, weight, to string) string {
	if part, ok := strings.CutPrefix(tensor, weight); ok {
		return to + part
	}
	return moduleOf(to) + strings.TrimPrefix(tensor, moduleOf(weight))
}

// stored returns the bytes of a tensor of the source's files.
func (s *source) stored(t loader.Tensor) ([]byte, error) {
	if err := s.ctx.Err(); err != nil {
		return nil, err
	}
	s.raw = grow(s.raw, int(t.Bytes()))
	if err := s.Source.file.ReadBytes(t.Name, s.raw); err != nil {
		return nil, fmt.Errorf("tensor %s: %w", t.Name, err)
	}
	return s.raw, checkFinite(t.Name, t.DType, s.raw)
}

// verbatim returns the quantization_config of the source where the output's is to be
// the same: nothing else has codes or a layout of its own, and the source's is not
// compressed-tensors', whose groups name each weight.
func (in Input) verbatim() any {
	if in.Source == nil || in.Source.config.gptq == nil || len(in.Specs) > 0 {
		return nil
	}
	kept := false
	for _, t := range in.Checkpoint.Tensors() {
		weight, ok := in.keptAs(t)
		if ok && weight != t.Name && len(in.Source.config.gptq.dynamic) > 0 {
			return nil // its patterns are of other names
		}
		kept = kept || ok
	}
	if !kept {
		return nil
	}
	return in.Source.config.quantization
}

// OnlyFettle reports whether other readers refuse the output since weights that are
// kept in a layout of GPTQ or AWQ stand beside others: no config of theirs can say so.
func (in Input) OnlyFettle() bool {
	if in.Source == nil || in.Source.config.gptq == nil && len(in.Source.affines) == 0 || in.verbatim() != nil {
		return false
	}
	for _, t := range in.Checkpoint.Tensors() {
		weight, ok := in.keptAs(t)
		if a := in.Source.affines[weight]; ok && a != nil && a.packedByInputs() {
			return true
		}
	}
	return false
}
