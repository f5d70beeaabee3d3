package search

import (
	"context"
	"fmt"
	"math"
	"slices"
)

// Uniform returns the dearest level that all genes can have within the budget, a
// level being the same in two genes if it has the same name, then raises genes by one
// step each, in their order and again from the first, while a step fits. A gene that
// lacks the level begins at its cheapest; so do all if no level fits.
func (s *Space) Uniform() Candidate {
	best := s.cheapest()
	cost := int64(-1)
	tried := map[string]bool{}
	for _, g := range s.genes {
		for _, l := range g.Levels {
			if tried[l.Name] {
				continue
			}
			tried[l.Name] = true
			c := s.named(l.Name)
			if bytes := s.Cost(c); bytes <= s.budget.Bytes && bytes > cost {
				best, cost = c, bytes
			}
		}
	}
	m := s.mutation(best, nil)
	for raised := true; raised; {
		raised = false
		for g := range m.c {
			if to := m.targets(g, fill); len(to) > 0 {
				m.cost += s.bytes(g, to[0]) - s.bytes(g, m.c[g])
				m.c[g] = to[0]
				raised = true
			}
		}
	}
	return m.c
}

// named returns the candidate of the level of that name wherever it can be used.
func (s *Space) named(name string) Candidate {
	c := s.cheapest()
	for g, levels := range s.usable {
		for _, l := range levels {
			if s.genes[g].Levels[l].Name == name {
				c[g] = l
			}
		}
	}
	return c
}

// Greedy begins with the cheapest levels and takes, again and again, the change of one
// gene to a level of less error that fits and gains most per byte. errors holds a
// number for each gene and level, taken to add up over genes; +Inf, or a level that
// cannot be used, is never chosen.
//
// Cost: the number of all levels, squared at most.
func (s *Space) Greedy(ctx context.Context, errors [][]float64) (Candidate, error) {
	allowed, err := s.allowed(errors)
	if err != nil {
		return nil, err
	}
	c := make(Candidate, len(allowed))
	for g, levels := range allowed {
		c[g] = levels[0]
	}
	return s.improve(ctx, c, allowed, errors)
}

// improve takes the best change per byte while there is one that fits.
func (s *Space) improve(ctx context.Context, c Candidate, allowed [][]int, errors [][]float64) (Candidate, error) {
	left := s.budget.Bytes - s.Cost(c)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		gene, level, bestRate, bestGain := -1, 0, 0.0, 0.0
		for g, levels := range allowed {
			for _, l := range levels {
				gain := errors[g][c[g]] - errors[g][l]
				bytes := s.bytes(g, l) - s.bytes(g, c[g])
				if !(gain > 0) || bytes > left {
					continue
				}
				rate := math.Inf(1) // costs nothing
				if bytes > 0 {
					rate = gain / float64(bytes)
				}
				if rate > bestRate || rate == bestRate && gain > bestGain {
					gene, level, bestRate, bestGain = g, l, rate, gain
				}
			}
		}
		if gene < 0 {
			return c, nil
		}
		left -= s.bytes(gene, level) - s.bytes(gene, c[gene])
		c[gene] = level
	}
}

// allowed returns the usable levels of finite error, by bytes, of each gene.
func (s *Space) allowed(errors [][]float64) ([][]int, error) {
	if len(errors) != len(s.genes) {
		return nil, &TableError{fmt.Sprintf("has %d rows for %d genes", len(errors), len(s.genes))}
	}
	out, smallest := make([][]int, len(errors)), s.budget.Rest
	for g, row := range errors {
		gene := s.genes[g]
		if len(row) != len(gene.Levels) {
			return nil, &TableError{fmt.Sprintf("has %d numbers for gene %s, which has %d levels", len(row), gene.Name, len(gene.Levels))}
		}
		for _, l := range s.usable[g] {
			if math.IsNaN(row[l]) || math.IsInf(row[l], -1) {
				return nil, &TableError{fmt.Sprintf("has %v for gene %s at level %s, want a number or +Inf", row[l], gene.Name, gene.Levels[l].Name)}
			}
		}
		out[g] = slices.DeleteFunc(slices.Clone(s.usable[g]), func(l int) bool { return math.IsInf(row[l], 1) })
		if len(out[g]) == 0 {
			return nil, &TableError{fmt.Sprintf("has no finite number for gene %s", gene.Name)}
		}
		smallest += s.bytes(g, out[g][0])
	}
	if smallest > s.budget.Bytes {
		return nil, &BudgetError{s.budget.Bytes, smallest, s.largest}
	}
	return out, nil
}
