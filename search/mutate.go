package search

import (
	"math/rand/v2"
	"slices"
)

// switches draws how many level switches a mutation makes, min(U₁,U₂) with both
// uniform on {1,2,3}: 1, 2, 3 with probabilities 5/9, 3/9, 1/9 (EvoPress, §3).
func switches(r *rand.Rand) int { return 1 + min(r.IntN(3), r.IntN(3)) }

// mutation is a candidate being changed.
type mutation struct {
	*Space
	r     *rand.Rand
	c     Candidate
	cost  int64
	moved []int // by gene: 1 raised, -1 lowered by this mutation
	all   []int // every gene
}

func (s *Space) mutation(c Candidate, r *rand.Rand) *mutation {
	m := &mutation{s, r, slices.Clone(c), s.Cost(c), make([]int, len(c)), make([]int, len(c))}
	for i := range m.all {
		m.all[i] = i
	}
	return m
}

// mutate returns parent with some levels switched, within the budget, and with no
// more than the given waste where what is left has room for a step of some gene. It
// may be the parent again. Where steps are equal, as in the paper, a switch is one
// gene lowered and one raised, and changes no cost.
func (s *Space) mutate(parent Candidate, r *rand.Rand) Candidate {
	m := s.mutation(parent, r)
	for range switches(r) {
		group := s.groups[s.group[r.IntN(len(s.genes))]] // in proportion to its genes
		// Beginning with either half makes a change possible that only saves bytes,
		// or only uses what is left.
		if r.IntN(2) == 0 {
			m.step(group, raise)
			m.lowerToBudget(group)
		} else {
			m.step(group, lower)
			m.step(group, raiseWithin)
		}
	}
	m.lowerToBudget(m.all)
	m.fill()
	return m.c
}

// direction says which steps are drawn from.
type direction int

const (
	raise       direction = iota // up
	raiseWithin                  // up, within the budget
	fill                         // dearer, within the budget
	lower                        // down
	save                         // cheaper
)

// targets returns the levels that gene g may go to.
func (m *mutation) targets(g int, d direction) []int {
	from := m.c[g]
	steps := m.steps[g][from]
	switch d {
	case raise:
		return steps.up
	case raiseWithin:
		return m.fitting(g, steps.up)
	case fill:
		return m.fitting(g, steps.dearer)
	case lower:
		return steps.down
	default:
		return steps.cheaper
	}
}

// fitting returns those of the levels that gene g can have within the budget.
func (m *mutation) fitting(g int, levels []int) []int {
	left := m.budget.Bytes - m.cost + m.bytes(g, m.c[g])
	var out []int
	for _, l := range levels {
		if m.bytes(g, l) <= left {
			out = append(out, l)
		}
	}
	return out
}

// step moves one of the genes, drawn uniformly from those that can move and that this
// mutation has not moved the other way, to one of its targets. It reports whether
// there was one.
func (m *mutation) step(genes []int, d direction) bool {
	way := 1
	if d >= lower {
		way = -1
	}
	return m.draw(genes, d, way, func(g int) bool { return m.moved[g] != -way })
}

func (m *mutation) draw(genes []int, d direction, way int, may func(g int) bool) bool {
	var able []int
	for _, g := range genes {
		if may(g) && len(m.targets(g, d)) > 0 {
			able = append(able, g)
		}
	}
	if len(able) == 0 {
		return false
	}
	g := able[m.r.IntN(len(able))]
	to := m.targets(g, d)
	level := to[m.r.IntN(len(to))]
	m.cost += m.bytes(g, level) - m.bytes(g, m.c[g])
	m.c[g], m.moved[g] = level, way
	return true
}

// lowerToBudget lowers genes at random while the cost is over the budget and one of
// them can be lowered. With all genes it always ends within the budget.
func (m *mutation) lowerToBudget(genes []int) {
	for m.cost > m.budget.Bytes && m.step(genes, save) {
	}
	if len(genes) < len(m.all) {
		return
	}
	for m.cost > m.budget.Bytes && m.draw(genes, save, -1, anyGene) {
	}
}

// fill raises genes at random while too much of the budget is unused, first those
// that the mutation has not lowered.
func (m *mutation) fill() {
	wasted := m.wasted()
	for m.budget.Bytes-m.cost > wasted && (m.step(m.all, fill) || m.draw(m.all, fill, 1, anyGene)) {
	}
}

func anyGene(int) bool { return true }

// Random returns a candidate drawn by seed: a uniformly drawn level for each gene,
// then genes lowered at random until the budget is met, or raised while more than the
// given waste is unused and a step fits. It is the baseline of equal cost.
func (s *Space) Random(seed uint64) Candidate {
	return s.random(rand.New(rand.NewPCG(seed, 0)))
}

func (s *Space) random(r *rand.Rand) Candidate {
	c := make(Candidate, len(s.genes))
	for g, levels := range s.usable {
		c[g] = levels[r.IntN(len(levels))]
	}
	m := s.mutation(c, r)
	m.lowerToBudget(m.all)
	clear(m.moved)
	m.fill()
	return m.c
}
