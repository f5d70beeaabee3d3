package search

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Level is one way to compress a gene.
type Level struct {
	Name string // the same in every gene that can have it, such as "4 bits"

	// Kind joins levels that differ in degree only, such as bit widths of one method.
	// A mutation goes to the next level of any kind. All may be of the kind "".
	Kind string

	Bytes int64 // all that the gene takes in the file at this level

	// Unusable says why the level cannot be chosen. Such a level keeps its index and
	// is left out; Space.LeftOut lists it.
	Unusable string
}

// Gene is a layer, or a fusion group of layers, which gets one level.
type Gene struct {
	Name string

	// Group confines a switch to genes of the same group: those of equal size, as the
	// paper has it, or attention and MLP when blocks are dropped. Genes of the group ""
	// are a group as well, so that without groups any two genes switch.
	Group string

	Levels []Level // in any order
}

// Budget is what a whole model may take.
type Budget struct {
	Bytes int64 // never exceeded
	Rest  int64 // what is not up to the genes, counted in Bytes

	// Waste is the share of Bytes that a mutant or a random candidate may leave unused
	// before genes are raised at random. Zero means 0.005.
	Waste float64
}

// Candidate holds for each gene the index of a level.
type Candidate []int

// LeftOut names a level that cannot be chosen.
type LeftOut struct{ Gene, Level, Reason string }

// Space is what can be chosen. It does not change and can be used by many goroutines.
type Space struct {
	genes    []Gene
	budget   Budget
	smallest int64
	largest  int64

	// By gene.
	usable [][]int   // levels by bytes, then by index
	steps  [][]steps // by level

	groups [][]int // the genes of each group
	group  []int   // of each gene
}

// The greatest sum of bytes, well below what an int64 holds, and most levels of a
// gene, which SumOfErrors notes in 16 bits.
const (
	maxBytes  = 1 << 60
	maxLevels = math.MaxUint16
)

// NewSpace checks genes and budget. It copies neither names nor levels: they must not
// change afterwards. A budget that no candidate meets, or that even the largest does
// not reach, is a *BudgetError; all else that is wrong a *SpaceError or *OptionError.
func NewSpace(genes []Gene, b Budget) (*Space, error) {
	if b.Waste == 0 {
		b.Waste = 0.005
	}
	if !(b.Waste > 0 && b.Waste < 1) {
		return nil, &OptionError{"Waste", b.Waste, "a share between 0 and 1"}
	}
	if b.Rest < 0 || b.Rest > maxBytes {
		return nil, &OptionError{"Rest", b.Rest, "a number of bytes"}
	}
	if len(genes) == 0 {
		return nil, &SpaceError{"", "there are no genes"}
	}
	s := &Space{genes: genes, budget: b, smallest: b.Rest, largest: b.Rest}
	groups, names := map[string]int{}, map[string]bool{}
	for i, g := range genes {
		if names[g.Name] {
			return nil, &SpaceError{g.Name, "there are two of this name"}
		}
		names[g.Name] = true
		usable, err := usableLevels(g)
		if err != nil {
			return nil, err
		}
		s.usable = append(s.usable, usable)
		s.smallest += g.Levels[usable[0]].Bytes
		s.largest += g.Levels[usable[len(usable)-1]].Bytes
		if s.largest > maxBytes {
			return nil, &SpaceError{"", fmt.Sprintf("the largest size is over %d bytes", int64(maxBytes))}
		}
		s.steps = append(s.steps, stepsOf(g, usable))
		if _, ok := groups[g.Group]; !ok {
			groups[g.Group] = len(s.groups)
			s.groups = append(s.groups, nil)
		}
		at := groups[g.Group]
		s.groups[at] = append(s.groups[at], i)
		s.group = append(s.group, at)
	}
	if b.Bytes < s.smallest || b.Bytes > s.largest {
		return nil, &BudgetError{b.Bytes, s.smallest, s.largest}
	}
	return s, nil
}

func usableLevels(g Gene) ([]int, error) {
	if len(g.Levels) == 0 || len(g.Levels) > maxLevels {
		return nil, &SpaceError{g.Name, fmt.Sprintf("it has %d levels, want 1 to %d", len(g.Levels), maxLevels)}
	}
	var usable []int
	var reasons []string
	names := map[string]bool{}
	for i, l := range g.Levels {
		switch {
		case names[l.Name]:
			return nil, &SpaceError{g.Name, fmt.Sprintf("two levels are named %q", l.Name)}
		case l.Unusable != "":
			reasons = append(reasons, fmt.Sprintf("%s: %s", l.Name, l.Unusable))
		case l.Bytes < 0 || l.Bytes > maxBytes:
			return nil, &SpaceError{g.Name, fmt.Sprintf("level %s takes %d bytes", l.Name, l.Bytes)}
		default:
			usable = append(usable, i)
		}
		names[l.Name] = true
	}
	if len(usable) == 0 {
		return nil, &SpaceError{g.Name, "no level can be used (" + strings.Join(reasons, "; ") + ")"}
	}
	slices.SortStableFunc(usable, func(a, b int) int {
		return cmp.Compare(g.Levels[a].Bytes, g.Levels[b].Bytes)
	})
	return usable, nil
}

// steps are the levels that one step leads to from a level, those of its own kind
// first. All four hold at most the nearest level of each kind, and all of other kinds
// at equal cost.
type steps struct {
	up, down        []int // also to another kind, or the next of the same, at equal cost
	dearer, cheaper []int // only where bytes differ
}

func stepsOf(g Gene, usable []int) []steps {
	out := make([]steps, len(g.Levels))
	for at, from := range usable {
		here := g.Levels[from]
		var s steps
		for _, to := range usable[at+1:] {
			s.up = nearest(g, s.up, to)
			if g.Levels[to].Bytes > here.Bytes {
				s.dearer = nearest(g, s.dearer, to)
			}
		}
		for _, to := range slices.Backward(usable[:at]) {
			s.down = nearest(g, s.down, to)
			if g.Levels[to].Bytes < here.Bytes {
				s.cheaper = nearest(g, s.cheaper, to)
			}
		}
		// Among levels of equal cost, the order is only that of their indices, so those
		// of other kinds are a step up as well as a step down.
		for _, to := range usable {
			if l := g.Levels[to]; l.Bytes == here.Bytes && l.Kind != here.Kind {
				s.up, s.down = add(s.up, to), add(s.down, to)
			}
		}
		for _, levels := range [][]int{s.up, s.down, s.dearer, s.cheaper} {
			slices.SortStableFunc(levels, func(a, b int) int { return cmp.Compare(other(g, a, here), other(g, b, here)) })
		}
		out[from] = s
	}
	return out
}

// nearest appends a level unless there is one of its kind.
func nearest(g Gene, levels []int, to int) []int {
	if slices.ContainsFunc(levels, func(l int) bool { return g.Levels[l].Kind == g.Levels[to].Kind }) {
		return levels
	}
	return append(levels, to)
}

func add(levels []int, l int) []int {
	if slices.Contains(levels, l) {
		return levels
	}
	return append(levels, l)
}

// other is 0 for a level of the same kind, else 1.
func other(g Gene, l int, here Level) int {
	if g.Levels[l].Kind == here.Kind {
		return 0
	}
	return 1
}

// Genes returns the genes, which must not be changed.
func (s *Space) Genes() []Gene { return s.genes }

// Budget returns the budget, with Waste as it is used.
func (s *Space) Budget() Budget { return s.budget }

// Smallest returns the bytes of all genes at their cheapest levels, with the rest.
func (s *Space) Smallest() int64 { return s.smallest }

// Largest returns the bytes of all genes at their dearest levels, with the rest.
func (s *Space) Largest() int64 { return s.largest }

// LeftOut lists the levels that cannot be chosen, by gene.
func (s *Space) LeftOut() []LeftOut {
	var out []LeftOut
	for _, g := range s.genes {
		for _, l := range g.Levels {
			if l.Unusable != "" {
				out = append(out, LeftOut{g.Name, l.Name, l.Unusable})
			}
		}
	}
	return out
}

// Cost returns the bytes of a candidate of this space, with the rest.
func (s *Space) Cost(c Candidate) int64 {
	cost := s.budget.Rest
	for g, l := range c {
		cost += s.bytes(g, l)
	}
	return cost
}

// Check returns a *CandidateError unless c is a candidate of this space within the
// budget.
func (s *Space) Check(c Candidate) error {
	if len(c) != len(s.genes) {
		return &CandidateError{fmt.Sprintf("has %d levels for %d genes", len(c), len(s.genes))}
	}
	for i, l := range c {
		g := s.genes[i]
		if l < 0 || l >= len(g.Levels) {
			return &CandidateError{fmt.Sprintf("has level %d for gene %s, which has %d", l, g.Name, len(g.Levels))}
		}
		if reason := g.Levels[l].Unusable; reason != "" {
			return &CandidateError{fmt.Sprintf("has level %s for gene %s, which cannot be used: %s", g.Levels[l].Name, g.Name, reason)}
		}
	}
	if cost := s.Cost(c); cost > s.budget.Bytes {
		return &CandidateError{fmt.Sprintf("takes %d bytes, the budget is %d", cost, s.budget.Bytes)}
	}
	return nil
}

func (s *Space) bytes(gene, level int) int64 { return s.genes[gene].Levels[level].Bytes }

// wasted returns how many bytes may be left unused.
func (s *Space) wasted() int64 { return int64(s.budget.Waste * float64(s.budget.Bytes)) }

// cheapest returns the candidate of all genes' cheapest levels.
func (s *Space) cheapest() Candidate {
	c := make(Candidate, len(s.genes))
	for g, levels := range s.usable {
		c[g] = levels[0]
	}
	return c
}
