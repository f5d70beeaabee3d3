package search

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestSumOfErrorsAgainstBruteForce(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	ctx := context.Background()
	compared := 0
	for compared < 100 {
		s := randomSpace(t, r)
		if len(s.genes) > 5 {
			continue
		}
		compared++
		table := randomTable(s, r)
		best := bruteForce(s, table)
		// As many buckets as bytes: exact.
		c, err := s.SumOfErrors(ctx, table, int(s.budget.Bytes)+1)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Check(c); err != nil {
			t.Fatal(err)
		}
		if got := sumOf(table, c); math.Abs(got-best) > 1e-12 {
			t.Fatalf("sum %v, brute force %v", got, best)
		}
		// On few, still within the budget.
		for _, buckets := range []int{1, 7, 0} {
			c, err := s.SumOfErrors(ctx, table, buckets)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Check(c); err != nil || sumOf(table, c) < best-1e-12 {
				t.Fatalf("%d buckets: %v, sum %v, brute force %v", buckets, err, sumOf(table, c), best)
			}
		}
	}
}

func TestGreedy(t *testing.T) {
	// Convex curves of equal steps: greedy is optimal.
	r := rand.New(rand.NewPCG(13, 14))
	for range 50 {
		s := mustSpace(t, equalGenes(6, 4, 50), Budget{Bytes: 50 * (1 + r.Int64N(18))})
		table := convexTable(s, r)
		c, err := s.Greedy(context.Background(), table)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Check(c); err != nil {
			t.Fatal(err)
		}
		if got, best := sumOf(table, c), bruteForce(s, table); math.Abs(got-best) > 1e-12 {
			t.Fatalf("greedy %v, brute force %v", got, best)
		}
	}
}

// convexTable has errors that fall with the level, ever less.
func convexTable(s *Space, r *rand.Rand) [][]float64 {
	table := randomTable(s, r)
	for _, row := range table {
		slices.Sort(row)
		sum := 0.0
		for l, d := range row {
			row[l], sum = sum, sum+d
		}
		slices.Reverse(row)
	}
	return table
}

func TestTables(t *testing.T) {
	ctx := context.Background()
	s := mustSpace(t, equalGenes(2, 3, 10), Budget{Bytes: 20})
	inf := math.Inf(1)
	var te *TableError
	for name, table := range map[string][][]float64{
		"rows": {{1, 2, 3}}, "levels": {{1, 2, 3}, {1, 2}}, "NaN": {{1, 2, 3}, {1, math.NaN(), 3}}, "none": {{1, 2, 3}, {inf, inf, inf}},
	} {
		if _, err := s.Greedy(ctx, table); !errors.As(err, &te) {
			t.Errorf("%s: greedy %v", name, err)
		}
		if _, err := s.SumOfErrors(ctx, table, 0); !errors.As(err, &te) {
			t.Errorf("%s: sum of errors %v", name, err)
		}
	}
	// What +Inf leaves may need more than the budget.
	if _, err := s.SumOfErrors(ctx, [][]float64{{inf, inf, 1}, {inf, 1, 1}}, 0); !errors.Is(err, ErrBudgetTooSmall) {
		t.Errorf("got %v", err)
	}
	c, err := s.SumOfErrors(ctx, [][]float64{{inf, 1, 0}, {9, 1, 0}}, 0)
	if err != nil || !slices.Equal(c, Candidate{1, 1}) {
		t.Errorf("got %v, %v", c, err)
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.SumOfErrors(done, [][]float64{{3, 1, 0}, {9, 1, 0}}, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestUniform(t *testing.T) {
	genes := equalGenes(4, 5, 10)
	genes[2].Levels[2].Unusable = "singular"
	s := mustSpace(t, genes, Budget{Bytes: 75})
	// Level 2 takes 60 where it is usable; layer2 begins at 0. One step is left, for the
	// first gene.
	if c := s.Uniform(); !slices.Equal(c, Candidate{3, 2, 0, 2}) {
		t.Errorf("got %v", c)
	}
	if c := mustSpace(t, equalGenes(4, 5, 10), Budget{Bytes: 105}).Uniform(); !slices.Equal(c, Candidate{3, 3, 2, 2}) {
		t.Errorf("got %v", c)
	}
}

// No error table does better by chance: exact beats uniform and random.
func TestOrderOfBaselines(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 16))
	for range 100 {
		s := randomSpace(t, r)
		table := randomTable(s, r)
		best, err := s.SumOfErrors(context.Background(), table, int(s.budget.Bytes)+1)
		if err != nil {
			t.Fatal(err)
		}
		greedy, err := s.Greedy(context.Background(), table)
		if err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]Candidate{"greedy": greedy, "uniform": s.Uniform(), "random": s.Random(r.Uint64())} {
			if sumOf(table, best) > sumOf(table, c)+1e-12 {
				t.Errorf("%s has %v, the optimum %v", name, sumOf(table, c), sumOf(table, best))
			}
		}
	}
}
