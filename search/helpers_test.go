package search

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// equalGenes returns n genes with levels of 0, 1 … levels-1 times bytes.
func equalGenes(n, levels int, bytes int64) []Gene {
	genes := make([]Gene, n)
	for i := range genes {
		genes[i].Name = fmt.Sprint("layer", i)
		for l := range levels {
			genes[i].Levels = append(genes[i].Levels, Level{Name: fmt.Sprint(l), Bytes: int64(l) * bytes})
		}
	}
	return genes
}

func mustSpace(t *testing.T, genes []Gene, b Budget) *Space {
	t.Helper()
	s, err := NewSpace(genes, b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// randomSpace has genes of unequal sizes, kinds, groups and some unusable levels.
func randomSpace(t *testing.T, r *rand.Rand) *Space {
	genes := make([]Gene, 1+r.IntN(12))
	smallest, largest, rest := int64(0), int64(0), r.Int64N(1000)
	for i := range genes {
		g := Gene{Name: fmt.Sprint("g", i), Group: []string{"", "a", "b"}[r.IntN(3)]}
		size := 1 + r.Int64N(100000)
		least, most := int64(math.MaxInt64), int64(0)
		for l := range 1 + r.IntN(8) {
			level := Level{Name: fmt.Sprint(l), Kind: []string{"", "x"}[r.IntN(2)], Bytes: size * r.Int64N(9) / 8}
			if l > 0 && r.IntN(6) == 0 {
				level.Unusable = "diverged"
			} else {
				least, most = min(least, level.Bytes), max(most, level.Bytes)
			}
			g.Levels = append(g.Levels, level)
		}
		genes[i] = g
		smallest, largest = smallest+least, largest+most
	}
	return mustSpace(t, genes, Budget{Bytes: rest + smallest + r.Int64N(largest-smallest+1), Rest: rest})
}

func randomTable(s *Space, r *rand.Rand) [][]float64 {
	table := make([][]float64, len(s.genes))
	for g := range table {
		for range s.genes[g].Levels {
			table[g] = append(table[g], r.Float64())
		}
	}
	return table
}

func sumOf(table [][]float64, c Candidate) float64 {
	sum := 0.0
	for g, l := range c {
		sum += table[g][l]
	}
	return sum
}

func separable(table [][]float64) Fitness {
	return func(_ context.Context, candidates []Candidate, _ Batch) ([]float64, error) {
		values := make([]float64, len(candidates))
		for i, c := range candidates {
			values[i] = sumOf(table, c)
		}
		return values, nil
	}
}

// bruteForce returns the least sum within the budget.
func bruteForce(s *Space, table [][]float64) float64 {
	best := math.Inf(1)
	c := make(Candidate, len(s.genes))
	var try func(g int)
	try = func(g int) {
		if g == len(c) {
			if s.Check(c) == nil {
				best = min(best, sumOf(table, c))
			}
			return
		}
		for l := range s.genes[g].Levels {
			c[g] = l
			try(g + 1)
		}
	}
	try(0)
	return best
}
