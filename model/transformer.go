package model

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Embedding turns token ids into vectors.
type Embedding struct {
	Table string `json:"table"` // the tensor of Rows × Width
	Rows  int    `json:"rows"`  // the vocabulary's size
	Width int    `json:"width"`
	// Positions names learned positions, of which row p + PositionOffset is added
	// to token p of a sequence; "" for none. The tensor is (MaxPositions +
	// PositionOffset) × Width. With Table "" the positions stand alone.
	Positions      string `json:"positions,omitempty"`
	MaxPositions   int    `json:"max_positions,omitempty"`
	PositionOffset int    `json:"position_offset,omitempty"`
	// PaddingUncounted says that the id PositionOffset − 1 is padding: such a token
	// gets the row of its id, and those after it count on as if it were not there.
	PaddingUncounted bool `json:"padding_uncounted,omitempty"`
	// Types names a table of token types, TypeRows × Width, of which row 0 is added
	// to every token; "" for none.
	Types    string `json:"types,omitempty"`
	TypeRows int    `json:"type_rows,omitempty"`
}

// isPadding reports whether a token is not counted among the positions.
func (t *Embedding) isPadding(id uint32) bool {
	return t.PaddingUncounted && int64(id) == int64(t.PositionOffset)-1
}

func (t *Embedding) String() string {
	var parts []string
	if t.Table != "" {
		parts = append(parts, fmt.Sprintf("%s, %d rows", t.Table, t.Rows))
	}
	if t.Positions != "" {
		parts = append(parts, fmt.Sprintf("%s, %d rows", t.Positions, t.MaxPositions))
	}
	text := strings.Join(parts, ", plus ")
	if t.PositionOffset > 0 {
		text += fmt.Sprintf(" from %d on", t.PositionOffset)
	}
	if t.Types != "" {
		text += fmt.Sprintf(", plus row 0 of %s", t.Types)
	}
	return text
}

func (t *Embedding) outputShape(x []int) ([]int, error) {
	if t == nil || t.Table == "" && t.Positions == "" || (t.Table != "") != (t.Rows > 0) || size([]int{max(t.Rows, 1), t.Width}) == 0 ||
		(t.Positions != "") != (t.MaxPositions > 0) || t.PositionOffset < 0 || t.PositionOffset > maxCount || t.Positions == "" && t.PositionOffset > 0 ||
		(t.Types != "") != (t.TypeRows > 0) || t.PositionOffset == 0 && t.PaddingUncounted {
		return nil, fmt.Errorf("embedding %+v", t)
	}
	if !slices.Equal(x, []int{1}) {
		return nil, fmt.Errorf("embedding of values of shape %v, want [1], a token's id", x)
	}
	return []int{t.Width}, nil
}

// Norm names the tensors of a normalization over a token's vector: Zhang and
// Sennrich 2019 for RMSNorm, Ba et al. 2016 for LayerNorm.
type Norm struct {
	Weight string  `json:"weight"`         // "" for a LayerNorm without parameters
	Bias   string  `json:"bias,omitempty"` // LayerNorm's, "" for none
	Eps    float64 `json:"eps"`
}

func (n *Norm) check(kind OpKind, x []int) error {
	if n == nil || ((n.Weight == "" || n.Bias != "") && kind != LayerNorm) || (n.Weight == "" && n.Bias != "") || !(n.Eps >= 0 && n.Eps < math.MaxFloat32) {
		return fmt.Errorf("%s needs its weight and a finite eps ≥ 0", kind)
	}
	if len(x) > 2 {
		return fmt.Errorf("%s of values of shape %v, want width, or tokens × width", kind, x)
	}
	return nil
}

// Attention is scaled dot-product attention (Vaswani et al. 2017, section 3.2)
// of Heads queries to KVHeads keys and values, each of HeadDim numbers; Heads /
// KVHeads neighbouring queries share a key (Ainslie et al. 2023). The inputs
// are q, k and v, or one value that holds the three: all queries, all keys and
// all values side by side, or, where Interleaved, for each head of keys its
// queries, the key and the value.
type Attention struct {
	Heads   int     `json:"heads"`
	KVHeads int     `json:"kv_heads"`
	HeadDim int     `json:"head_dim"`
	Scale   float64 `json:"scale"` // of q·k
	// Causal lets token i see tokens 0 … i only, Window > 0 the last Window of
	// these only, itself included.
	Causal bool  `json:"causal,omitempty"`
	Window int   `json:"window,omitempty"`
	Rope   *Rope `json:"rope,omitempty"` // nil: no rotation

	Interleaved bool   `json:"interleaved,omitempty"`
	ALiBi       *ALiBi `json:"alibi,omitempty"` // nil: no bias
}

// widths returns how many numbers a token's queries and its keys have.
func (a *Attention) widths() (q, kv int) { return a.Heads * a.HeadDim, a.KVHeads * a.HeadDim }

func (a *Attention) String() string {
	text := fmt.Sprintf("%d heads of %d, %d of keys", a.Heads, a.HeadDim, a.KVHeads)
	if a.Causal {
		text += ", causal"
	}
	if a.Window > 0 {
		text += fmt.Sprintf(", window %d", a.Window)
	}
	if a.Rope != nil {
		text += ", " + a.Rope.String()
	}
	if a.ALiBi != nil {
		text += ", " + a.ALiBi.String()
	}
	if a.Interleaved {
		text += ", q, k and v of one head after those of another"
	}
	return text
}

func (a *Attention) outputShape(in [][]int) ([]int, error) {
	if a == nil {
		return nil, errors.New("attention without its parameters")
	}
	if min(a.Heads, a.KVHeads, a.HeadDim) < 1 || max(a.Heads, a.KVHeads, a.HeadDim) > maxGeometry || a.Heads%a.KVHeads != 0 {
		return nil, fmt.Errorf("attention of %d heads to %d of %d numbers", a.Heads, a.KVHeads, a.HeadDim)
	}
	if !(a.Scale > 0 && a.Scale < math.MaxFloat32) || a.Window < 0 || (a.Window > 0 && !a.Causal) {
		return nil, fmt.Errorf("attention with scale %v, window %d, causal %v", a.Scale, a.Window, a.Causal)
	}
	if err := a.Rope.check(a.HeadDim); err != nil {
		return nil, err
	}
	if err := a.ALiBi.check(a); err != nil {
		return nil, err
	}
	if a.Interleaved && len(in) != 1 {
		return nil, errors.New("attention of q, k and v that are interleaved but not in one value")
	}
	q, kv := a.widths()
	want := [][]int{{q}, {kv}, {kv}}
	if len(in) == 1 {
		want = [][]int{{q + 2*kv}}
	}
	out := []int{q}
	if len(in[0]) == 2 { // tokens × width
		for i := range want {
			want[i] = []int{in[0][0], want[i][0]}
		}
		out = []int{in[0][0], q}
	}
	if !slices.EqualFunc(in, want, slices.Equal) {
		return nil, fmt.Errorf("attention of values of shapes %v, want %v", in, want)
	}
	return out, nil
}

// Rope rotates queries and keys by angles that grow with the token's position
// (Su et al. 2021, section 3.2.2). Of each head the first Dims numbers turn, in
// pairs: i and i + Dims/2, or 2i and 2i + 1 where Interleaved. Pair i turns by
// Theta^(−2i/Dims) a token, unless Scaling says else.
type Rope struct {
	Theta       float64      `json:"theta"`
	Dims        int          `json:"dims"`
	Interleaved bool         `json:"interleaved,omitempty"`
	Scaling     *RopeScaling `json:"scaling,omitempty"`
}

// RopeScaling stretches a rope to longer sequences than it was trained on.
type RopeScaling struct {
	// Type is "linear", all angles divided by Factor (Chen et al. 2023), or
	// "llama3", as Llama 3.1 has it: slow pairs divided by Factor, fast ones
	// left, those between blended. A pair is slow when it turns less than LowFreq
	// times in OriginalLength tokens, and fast from HighFreq times on.
	Type           string  `json:"type"`
	Factor         float64 `json:"factor"`
	LowFreq        float64 `json:"low_freq,omitempty"`
	HighFreq       float64 `json:"high_freq,omitempty"`
	OriginalLength int     `json:"original_length,omitempty"`
}

// The types of RopeScaling.
const (
	ropeLinear = "linear"
	ropeLlama3 = "llama3"
)

func (r *Rope) String() string {
	text := fmt.Sprintf("rope of %d with theta %v", r.Dims, r.Theta)
	if r.Interleaved {
		text += ", interleaved"
	}
	if r.Scaling != nil {
		text += fmt.Sprintf(", %s scaling by %v", r.Scaling.Type, r.Scaling.Factor)
	}
	return text
}

func (r *Rope) check(headDim int) error {
	if r == nil {
		return nil
	}
	if r.Dims < 2 || r.Dims%2 != 0 || r.Dims > headDim || !(r.Theta > 0 && r.Theta < math.MaxFloat64) {
		return fmt.Errorf("rope of %d with theta %v in heads of %d", r.Dims, r.Theta, headDim)
	}
	s := r.Scaling
	if s == nil {
		return nil
	}
	if !(s.Factor > 0 && s.Factor < math.MaxFloat64) {
		return fmt.Errorf("rope scaling by %v", s.Factor)
	}
	switch s.Type {
	case ropeLinear:
		return nil
	case ropeLlama3:
		if s.OriginalLength < 1 || !(s.LowFreq > 0 && s.LowFreq < s.HighFreq && s.HighFreq < math.MaxFloat64) {
			return fmt.Errorf("rope scaling between %v and %v turns in %d tokens", s.LowFreq, s.HighFreq, s.OriginalLength)
		}
		return nil
	}
	return fmt.Errorf("unknown rope scaling %q", s.Type)
}

// frequencies returns by how many radians a token each pair turns.
func (r *Rope) frequencies() []float64 {
	f := make([]float64, r.Dims/2)
	for i := range f {
		f[i] = math.Pow(r.Theta, -2*float64(i)/float64(r.Dims))
		if r.Scaling != nil {
			f[i] = r.Scaling.apply(f[i])
		}
	}
	return f
}

func (s *RopeScaling) apply(f float64) float64 {
	slow := f / s.Factor
	if s.Type == ropeLinear {
		return slow
	}
	turns := float64(s.OriginalLength) * f / (2 * math.Pi)
	fast := min(max((turns-s.LowFreq)/(s.HighFreq-s.LowFreq), 0), 1)
	return (1-fast)*slow + fast*f
}
