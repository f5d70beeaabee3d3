package export

import (
	"fmt"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// ownKey is config.json's key of what compressed-tensors has no place for.
const ownKey = "fettle"

// own is what stands under ownKey.
type own struct {
	Weights map[string]storage `json:"weights"` // by tensor name
}

// storage is what config.json tells of a weight beside its config group: all that
// its spec has and a quantized weight without mask and factors has not.
type storage struct {
	Values     string     `json:"values,omitempty"` // their dtype; none of codes
	Mask       MaskLayout `json:"mask,omitempty"`
	Survivors  int        `json:"survivors,omitempty"`
	Pattern    *[2]int    `json:"pattern,omitempty"` // N, M
	Shape      []int      `json:"shape,omitempty"`   // of a masked weight
	Rank       int        `json:"rank,omitempty"`
	FactorType string     `json:"factor_type,omitempty"`
	FactorBits int        `json:"factor_bits,omitempty"`
	Merged     bool       `json:"merged,omitempty"`
}

// storage returns what config.json must tell of the weight; ok is false where that
// is nothing.
func (s Spec) storage() (out storage, ok bool) {
	if s.valued() {
		out.Values = s.ValueType.String()
	}
	if p := s.Pruned; p.Layout != MaskNone {
		out.Mask, out.Survivors, out.Shape = p.Layout, p.Survivors, s.Shape
		if p.Of > 0 {
			out.Pattern = &[2]int{p.Keep, p.Of}
		}
	}
	if l := s.LowRank; l.Rank > 0 {
		out.Rank, out.FactorType, out.FactorBits, out.Merged = l.Rank, l.Type.String(), l.Bits, l.Merged
	}
	return out, s.valued() || s.masked() || s.LowRank.Rank > 0
}

// own returns what stands under ownKey; ok is false for nothing.
func (in Input) own() (out own, ok bool) {
	out.Weights = map[string]storage{}
	for _, t := range in.Checkpoint.Tensors() {
		spec, ok := in.specOf(t)
		if !ok {
			continue
		}
		if entry, ok := spec.storage(); ok {
			out.Weights[t.Name] = entry
		}
	}
	return out, len(out.Weights) > 0
}

// apply adds to a spec what config.json tells of the weight.
func (e storage) apply(s *Spec) (err error) {
	if e.Values != "" {
		if s.ValueType, err = dtype.Parse(e.Values); err != nil {
			return err
		}
	}
	s.Pruned = Sparsity{Layout: e.Mask, Survivors: e.Survivors}
	if e.Pattern != nil {
		s.Pruned.Keep, s.Pruned.Of = e.Pattern[0], e.Pattern[1]
	}
	s.LowRank = LowRank{Rank: e.Rank, Bits: e.FactorBits, Merged: e.Merged}
	if e.FactorType != "" {
		if s.LowRank.Type, err = dtype.Parse(e.FactorType); err != nil {
			return err
		}
	}
	if (len(e.Shape) > 0) != s.masked() || len(e.Shape) > maxDims {
		return fmt.Errorf("shape %v with mask layout %q", e.Shape, e.Mask)
	}
	for _, d := range e.Shape {
		if d < 1 {
			return fmt.Errorf("shape %v", e.Shape)
		}
	}
	s.Shape = e.Shape
	return nil
}
