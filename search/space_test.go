package search

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBudgetErrors(t *testing.T) {
	genes := equalGenes(4, 3, 100)
	for _, c := range []struct {
		bytes int64
		want  error
		says  string
	}{{49, ErrBudgetTooSmall, "smallest possible size is 50"}, {851, ErrBudgetTooLarge, "largest possible size is 850"}, {50, nil, ""}, {850, nil, ""}} {
		_, err := NewSpace(genes, Budget{Bytes: c.bytes, Rest: 50})
		if !errors.Is(err, c.want) {
			t.Fatalf("budget %d: %v, want %v", c.bytes, err, c.want)
		}
		var be *BudgetError
		if c.want != nil && (!errors.As(err, &be) || be.Smallest != 50 || be.Largest != 850 || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("budget %d: %v", c.bytes, err)
		}
	}
}

func TestUnusableLevels(t *testing.T) {
	genes := equalGenes(3, 3, 100)
	genes[1].Levels[0].Unusable = "no finite weights"
	s := mustSpace(t, genes, Budget{Bytes: 300})
	if s.Smallest() != 100 {
		t.Errorf("smallest %d, want 100", s.Smallest())
	}
	if diff := cmp.Diff([]LeftOut{{"layer1", "0", "no finite weights"}}, s.LeftOut()); diff != "" {
		t.Error(diff)
	}
	var ce *CandidateError
	if err := s.Check(Candidate{1, 0, 1}); !errors.As(err, &ce) || !strings.Contains(err.Error(), "no finite weights") {
		t.Errorf("unusable level: %v", err)
	}
	for _, bad := range []Candidate{nil, {1, 1}, {1, 1, 3}, {-1, 1, 1}, {2, 1, 1}} {
		if err := s.Check(bad); !errors.As(err, &ce) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	for l := range genes[1].Levels {
		genes[1].Levels[l].Unusable = "singular"
	}
	var se *SpaceError
	if _, err := NewSpace(genes, Budget{Bytes: 300}); !errors.As(err, &se) || !strings.Contains(err.Error(), "singular") {
		t.Errorf("no usable level: %v", err)
	}
}

func TestSpaceErrors(t *testing.T) {
	var se *SpaceError
	var oe *OptionError
	twice := append(equalGenes(1, 2, 1), equalGenes(1, 2, 1)...)
	named := []Gene{{Name: "a", Levels: []Level{{Name: "x"}, {Name: "x"}}}}
	for name, genes := range map[string][]Gene{
		"none": nil, "same names": twice, "same levels": named, "no levels": {{Name: "a"}},
		"negative": {{Name: "a", Levels: []Level{{Bytes: -1}}}},
		"overflow": {{Name: "a", Levels: []Level{{Bytes: maxBytes}}}, {Name: "b", Levels: []Level{{Bytes: maxBytes}}}},
	} {
		if _, err := NewSpace(genes, Budget{Bytes: 1}); !errors.As(err, &se) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, b := range []Budget{{Bytes: 1, Rest: -1}, {Bytes: 1, Waste: -1}, {Bytes: 1, Waste: 1}} {
		if _, err := NewSpace(equalGenes(2, 2, 1), b); !errors.As(err, &oe) {
			t.Errorf("%+v: %v", b, err)
		}
	}
}

// Kinds: a step goes to the next level of each, and either way at equal cost.
func TestStepsOverKinds(t *testing.T) {
	g := Gene{Name: "a", Levels: []Level{
		{Name: "q8", Kind: "q", Bytes: 8},
		{Name: "q4", Kind: "q", Bytes: 4},
		{Name: "q2", Kind: "q", Bytes: 2},
		{Name: "p4", Kind: "p", Bytes: 4},
		{Name: "p3", Kind: "p", Bytes: 3},
	}}
	s := mustSpace(t, []Gene{g}, Budget{Bytes: 8})
	want := map[int]steps{
		0: {nil, []int{1, 3}, nil, []int{1, 3}},
		1: {[]int{0, 3}, []int{2, 4}, []int{0}, []int{2, 4}},
		2: {[]int{1, 4}, nil, []int{1, 4}, nil},
		3: {[]int{0, 1}, []int{4, 1}, []int{0}, []int{4, 2}},
		4: {[]int{3, 1}, []int{2}, []int{3, 1}, []int{2}},
	}
	for l, w := range want {
		got := s.steps[0][l]
		for _, p := range [][2][]int{{got.up, w.up}, {got.dearer, w.dearer}, {got.cheaper, w.cheaper}} {
			if !slices.Equal(p[0], p[1]) {
				t.Errorf("from %s: got %v, want %v", g.Levels[l].Name, got, w)
			}
		}
	}
	// p4 at equal cost is a way down from q4, whichever index comes first.
	for _, pair := range [][2]int{{1, 3}, {3, 1}} {
		if !slices.Contains(s.steps[0][pair[0]].down, pair[1]) {
			t.Errorf("no step down from %d to %d", pair[0], pair[1])
		}
	}
}

// EvoPress, §3: P(1, 2, 3 switches) = 5/9, 3/9, 1/9.
func TestNumberOfSwitches(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const n = 90000
	var count [4]float64
	for range n {
		count[switches(r)]++
	}
	chi := 0.0
	for i, share := range []float64{5, 3, 1} {
		want := n * share / 9
		chi += (count[i+1] - want) * (count[i+1] - want) / want
	}
	if chi > 9.21 { // p = 0.01 at two degrees of freedom
		t.Errorf("counts %v: χ² %v", count[1:], chi)
	}
}

// With levels of equal steps, a mutation keeps the cost exactly, and the sum of levels
// within each group; one switch moves one gene up and one down.
func TestSwitchesAreNeutral(t *testing.T) {
	genes := equalGenes(12, 5, 70)
	for i := range genes {
		genes[i].Group = []string{"attn", "mlp"}[i%2]
	}
	s := mustSpace(t, genes, Budget{Bytes: 24 * 70})
	r := rand.New(rand.NewPCG(3, 4))
	parent := s.Uniform()
	changed := map[int]int{}
	for range 20000 {
		c := s.mutate(parent, r)
		sums, moved := [2]int{}, 0
		for g := range c {
			sums[g%2] += c[g] - parent[g]
			if c[g] > parent[g] {
				moved += c[g] - parent[g]
			}
		}
		if s.Cost(c) != s.Cost(parent) || sums != [2]int{} {
			t.Fatalf("%v to %v: cost %d, sums %v", parent, c, s.Cost(c), sums)
		}
		changed[moved]++
		parent = c
	}
	for n := range changed {
		if n > 3 {
			t.Errorf("%d switches", n)
		}
	}
	if share := float64(changed[1]) / 20000; share < 0.5 || share > 0.61 {
		t.Errorf("one switch in %v of the mutations, want about 5/9", share)
	}
}

// Dropping k of n: the swap is what switches come to, uniform over all pairs.
func TestDepthSwaps(t *testing.T) {
	s := mustSpace(t, equalGenes(6, 2, 1000), Budget{Bytes: 4000})
	parent := Candidate{0, 0, 1, 1, 1, 1}
	r := rand.New(rand.NewPCG(5, 6))
	pairs := map[string]int{}
	one := 0
	for range 16000 {
		c := s.mutate(parent, r)
		if s.Cost(c) != 4000 {
			t.Fatalf("%v: not two dropped", c)
		}
		if c[0]+c[1] == 1 {
			one++
			pairs[c.key()]++
		}
	}
	for k, n := range pairs {
		if want := one / 8; n < want*85/100 || n > want*115/100 {
			t.Errorf("pair %v: %d times, want about %d", []byte(k), n, want)
		}
	}
	if len(pairs) != 8 {
		t.Errorf("%d pairs, want 2·4", len(pairs))
	}
}

// Over random spaces: nothing exceeds the budget or uses an unusable level, and too
// much is unused only where no step fits.
func TestBudgetHolds(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 400 {
		s := randomSpace(t, r)
		check := func(what string, c Candidate) {
			t.Helper()
			if err := s.Check(c); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			left := s.budget.Bytes - s.Cost(c)
			m := s.mutation(c, r)
			if left > s.wasted() || what == "uniform" {
				for g := range c {
					if len(m.targets(g, fill)) > 0 {
						t.Fatalf("%s: %d of %d bytes unused, and gene %d could be raised", what, left, s.budget.Bytes, g)
					}
				}
			}
		}
		check("uniform", s.Uniform())
		parent := s.Random(r.Uint64())
		check("random", parent)
		for range 50 {
			parent = s.mutate(parent, r)
			check("mutant", parent)
		}
	}
}

// Where there are many genes of small steps, less than 0.5 % of the budget is unused.
func TestWaste(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for range 20 {
		genes := equalGenes(100, 5, 1)
		for i := range genes {
			size := 1000 + r.Int64N(9000)
			for l := range genes[i].Levels {
				genes[i].Levels[l].Bytes = size * int64(l+2) / 8
			}
		}
		all := mustSpace(t, genes, Budget{Bytes: 250000})
		s := mustSpace(t, genes, Budget{Bytes: (all.Smallest() + all.Largest()) / 2})
		c := s.Random(1)
		for range 200 {
			c = s.mutate(c, r)
			if left := s.budget.Bytes - s.Cost(c); left < 0 || float64(left) > 0.005*float64(s.budget.Bytes) {
				t.Fatalf("%d of %d bytes unused", left, s.budget.Bytes)
			}
		}
	}
}
