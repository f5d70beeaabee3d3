package model

import (
	"errors"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/vec"
)

// ALiBi lowers the score of a key by its distance from the query, times a slope
// that each head has of its own and times Factor (Press et al. 2021, section 3).
// The slopes follow from the number of heads; see slope.
type ALiBi struct {
	Factor float64 `json:"factor"`
	// BFloat16 rounds slopes, positions and their products to bfloat16, as
	// Transformers computes Falcon: from position 257 on neighbours may then be as
	// far.
	BFloat16 bool `json:"bfloat16,omitempty"`
}

func (l *ALiBi) String() string {
	text := fmt.Sprintf("ALiBi times %.4g", l.Factor)
	if l.BFloat16 {
		text += " in bfloat16"
	}
	return text
}

func (l *ALiBi) check(a *Attention) error {
	if l == nil {
		return nil
	}
	if !(l.Factor > 0 && l.Factor < math.MaxFloat32) {
		return fmt.Errorf("ALiBi times %v", l.Factor)
	}
	if !a.Causal || a.Rope != nil {
		return errors.New("ALiBi needs causal attention without a rope")
	}
	return nil
}

// slope returns the slope of a head. Those of 2ᵏ heads are 2^(−8/2ᵏ) to the
// powers 1, 2, …; where the number is no power of two, the next lower one gives
// the first, and twice that number every other slope for the rest.
func slope(head, heads int) float64 {
	lower := 1
	for lower*2 <= heads {
		lower *= 2
	}
	if head < lower {
		return math.Exp2(-8 * float64(head+1) / float64(lower))
	}
	return math.Exp2(-8 * float64(2*(head-lower)+1) / float64(2*lower))
}

// bias writes what a head adds to the scores of keys 0 … len(dst)−1: in float32
// that of the last query, which is 0 at its own place, in bfloat16 that of any.
func (l *ALiBi) bias(dst []float32, head, heads int) {
	m := slope(head, heads)
	if l.BFloat16 {
		round := func(v float64) float64 { return float64(dtype.BF16.Round(float32(v))) }
		m = round(m)
		for j := range dst {
			dst[j] = float32(l.Factor * round(m*round(float64(j))))
		}
		return
	}
	for j := range dst {
		dst[j] = float32(l.Factor * m * float64(j-len(dst)+1))
	}
}

// lean adds the biases to the scores of query q and keys from … on.
func (h *attentionHead) lean(scores []float32, query, from int) {
	if h.ALiBi == nil {
		return
	}
	if !h.ALiBi.BFloat16 {
		from += h.rows - 1 - query // as far from the last as from to query
	}
	vec.Add(scores, scores, h.biases[from:])
}

// interleavedParts returns q, k and v of a head from a value that holds them for
// one head of keys after the other.
func (a *Attention) interleavedParts(in blas32.General, head int) (q, k, v blas32.General) {
	share := a.Heads / a.KVHeads
	group := head / share * (share + 2)
	at := func(slot int) blas32.General { return part(in, 0, slot*a.HeadDim) }
	return at(group + head%share), at(group + share), at(group + share + 1)
}
