package quantize

import (
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/vec"
)

// Qronos (Zhang et al., arXiv 2505.11695) rounds its first input as if the later
// weights stayed as they are,
//
//	q₀ = Q((G₀·w − Σ_{j≥1} H_0j·w_j) / H₀₀)
//
// then solves for all later weights given q₀, and goes on as GPTQ does. In H+λI
// and G+λI the second step is what GPTQ's feedback makes of w̃ = (H+λI)⁻¹(G+λI)w
// after the first input's error w̃₀ − q₀: so Qronos is GPTQ on an aligned target
// but for the value that gives q₀.

// leads returns what Qronos rounds in place of each row's first input in the
// order of the pass: w₀ + (G₀ − H₀)·w/(H₀₀+λ). Nil where both streams are the
// same: w̃ is w then, and Qronos is GPTQ.
func (s *solver) leads() []float64 {
	m, w := s.Problem.Moments, s.Problem.Weight
	if m.G == nil {
		return nil
	}
	leads, row, difference := make([]float64, w.Rows), make([]float64, w.Cols), make([]float64, w.Cols)
	for i := range s.Grams {
		gram, first := &s.Grams[i], 0
		if gram.Order != nil {
			first = gram.Order[0]
		}
		h, g := linalg.Row(gram.H, first), linalg.Row(m.G[i], first)
		for j := range difference {
			difference[j] = g[j] - h[j]
		}
		damped := h[first] + gram.Lambda*gram.Unit
		from, to := s.Problem.GroupRows(i)
		for r := from; r < to; r++ {
			linalg.Widen(row, rowOf32(w, r))
			leads[r] = row[first] + vec.Dot64(difference, row)/damped
		}
	}
	return leads
}
