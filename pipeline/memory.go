package pipeline

import (
	"fmt"
	"maps"
	"slices"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/quantize"
)

// Memory is what a run needs of it, in bytes.
type Memory struct {
	// Fixed is the most that weights, moments and solvers take at once, at the
	// layers that read one value. It does not depend on the data.
	Fixed int64
	At    string // the first of those layers

	// Activations is the most that both streams' values take at once, 0 where no
	// calibration data is used. Over a ceiling they lie in a file.
	Activations int64
}

// MemoryError says that a run needs more memory than it may have.
type MemoryError struct {
	Need, Ceiling int64
	At            string
}

func (e *MemoryError) Error() string {
	return fmt.Sprintf("at least %d MB of memory are needed, for layer %s; the ceiling is %d MB: raise --memory, or leave the layer as it is",
		e.Need/1e6+1, e.At, e.Ceiling/1e6)
}

// cover makes m the larger of two needs.
func (m *Memory) cover(other Memory) {
	if other.Fixed > m.Fixed {
		m.Fixed, m.At = other.Fixed, other.At
	}
}

// The smallest share of a ceiling that is left to activations, and what the
// program itself takes.
const (
	leastActivations = 16 << 20
	programBytes     = 64 << 20
)

// checkMemory refuses a ceiling (0: none) that the plan cannot keep.
func (p *Plan) checkMemory(ceiling int64) error {
	if need := p.Memory.Fixed + leastActivations; ceiling > 0 && need > ceiling {
		return &MemoryError{need, ceiling, p.Memory.At}
	}
	return nil
}

// activationLimit is how many bytes of activations may lie in memory when left
// of a ceiling are left; half of the machine's memory where there is no ceiling.
func activationLimit(left int64) int64 {
	if left > 0 {
		return left
	}
	return physicalMemory() / 2
}

// foretellMemory fills in what the plan and the choice of units need at most.
func (p *Plan) foretellMemory(g *model.Graph) {
	m := p.fixedMemory(g)
	m.cover(p.removing)
	p.Memory.Fixed, p.Memory.At = m.Fixed, m.At
}

// fixedMemory returns the largest need of weights, moments and solvers: of the
// layers that read one value, at one level after the other where a search chooses,
// and of evaluation's two heads.
func (p *Plan) fixedMemory(g *model.Graph) Memory {
	type need struct {
		moments int64
		layers  map[int]int64 // by level
		first   string
	}
	needs := map[int]*need{}
	for i := range p.Layers {
		l := &p.Layers[i]
		op := &g.Ops[l.op]
		v := op.Inputs[0]
		if needs[v] == nil {
			needs[v] = &need{first: l.Name, layers: map[int]int64{}}
		}
		n, out, groups := int64(l.Spec.Cols), int64(l.Spec.Rows), int64(op.Groups())
		// H, G and the factor; the blocks of rows that are summed.
		moments := groups * (3*8*n*n + 2*4*blas.GramRows*n)
		// The weight, its target in float64 twice, its codes.
		layers := out * n * (4 + 2*8 + 1)
		if o := l.Quantize; o != nil {
			if o.ActOrder && (o.Method == quantize.GPFQ || o.Method == quantize.SPFQ) {
				moments += groups * 2 * 8 * n * n // H and G in the order of the pass
			}
			switch o.Method {
			case quantize.AdaRound:
				moments += groups * 12 * n * n
				layers += out * n * 4
				// Both streams' rows, X̃'s centred and transposed; targets and outputs of
				// the rows of the weight that sixteen workers are at.
				moments += int64(o.SampleRows()) * 4 * 4 * groups * n
				layers += int64(o.SampleRows()) * 4 * 5 * min(out, 512)
			case quantize.Best:
				moments += groups * 8 * n * n
			}
		}
		if l.Prune != nil {
			// H damped and its inverse, in both precisions; scores, values, and what a
			// solver works on.
			moments += groups * 24 * n * n
			layers += out * n * 40
		}
		if l.Compensate != nil {
			small := min(out, n)
			moments += 8 * n * n
			layers += 24*out*n + 32*small*small
		}
		if l.residual() {
			layers += 8 * out * n
		}
		if l.needsMoments() {
			needs[v].moments = max(needs[v].moments, moments)
		}
		needs[v].layers[l.level] += layers
	}
	var m Memory
	for _, v := range slices.Sorted(maps.Keys(needs)) {
		for _, layers := range needs[v].layers {
			if total := needs[v].moments + layers; total > m.Fixed {
				m.Fixed, m.At = total, needs[v].first
			}
		}
	}
	if last := len(g.Ops) - 1; g.Ops[last].Kind == model.Linear {
		shape := g.Values[g.Ops[last].Inputs[0]].Shape
		weight := int64(g.Ops[last].Outputs) * int64(shape[len(shape)-1])
		if heads := 2*4*weight + 2*4*headRows*int64(g.Ops[last].Outputs); heads > m.Fixed {
			m.Fixed, m.At = heads, g.Ops[last].Name
		}
	}
	m.Fixed += programBytes
	return m
}

// activationMemory is the most that both streams' values take at once for a
// number of samples (a language model's: tokens).
func activationMemory(g *model.Graph, samples int64) int64 {
	last, numbers := g.LastUse(), g.RowNumbers()
	var live, most int64
	size := func(v int) int64 { return 4 * samples * int64(numbers[v]) }
	for i := range g.Ops {
		op := &g.Ops[i]
		live += size(op.Output)
		most = max(most, live)
		for j, v := range op.Inputs {
			if last[v] == i && v != g.Input && !slices.Contains(op.Inputs[:j], v) {
				live -= size(v)
			}
		}
	}
	return 2 * most
}
