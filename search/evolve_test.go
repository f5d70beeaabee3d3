package search

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// EvoPress, Theorem: with m of the dropped blocks still wrong, a mutant of one swap is
// better with probability (5/9)·m²/(k(n−k)), so the optimum takes about
// Σ_m 1/(1−(1−(5/9)m²/(k(n−k)))^λ) generations.
func TestConvergence(t *testing.T) {
	for _, c := range []struct{ n, k, lambda int }{{16, 4, 4}, {32, 8, 8}, {32, 8, 32}, {24, 12, 16}} {
		want := 0.0
		for m := 1; m <= min(c.k, c.n-c.k); m++ {
			p := 5.0 / 9 * float64(m*m) / float64(c.k*(c.n-c.k))
			want += 1 / (1 - math.Pow(1-p, float64(c.lambda)))
		}
		s := mustSpace(t, equalGenes(c.n, 2, 10), Budget{Bytes: int64(10 * (c.n - c.k))})
		table := make([][]float64, c.n)
		start := make(Candidate, c.n)
		for g := range table {
			table[g] = []float64{0, 1} // the first k are best dropped, and the start drops others
			if g >= c.k {
				table[g] = []float64{1, 0}
			}
			if g < c.n-c.k {
				start[g] = 1
			}
		}
		total := 0
		const seeds = 30
		for seed := range uint64(seeds) {
			reached := 0
			_, err := Evolve(context.Background(), s, Options{
				Seed: seed, Generations: 2000, Offspring: c.lambda, Start: start, Stages: []Stage{{1, 1}},
				Progress: func(p Progress) {
					if reached == 0 && p.Fitness == 0 {
						reached = p.State.Generation
					}
				},
			}, stopAt(separable(table), func() bool { return reached > 0 }))
			if !errors.Is(err, errReached) {
				t.Fatalf("n %d, k %d, λ %d: not reached: %v", c.n, c.k, c.lambda, err)
			}
			total += reached
		}
		if ratio := float64(total) / seeds / want; ratio < 0.6 || ratio > 1.25 {
			t.Errorf("n %d, k %d, λ %d: %v of the expected %.1f generations", c.n, c.k, c.lambda, ratio, want)
		} else {
			t.Logf("n %d, k %d, λ %d: %.2f of the expected %.1f generations", c.n, c.k, c.lambda, ratio, want)
		}
	}
}

var errReached = errors.New("reached")

func stopAt(f Fitness, reached func() bool) Fitness {
	return func(ctx context.Context, c []Candidate, b Batch) ([]float64, error) {
		if reached() {
			return nil, errReached
		}
		return f(ctx, c, b)
	}
}

// Convex errors, 12 genes, 3 levels: the optimum in every run.
func TestReachesOptimumOfConvexErrors(t *testing.T) {
	for _, c := range []struct{ lambda, generations int }{{8, 90}, {32, 40}} {
		for seed := range uint64(40) {
			r := rand.New(rand.NewPCG(seed, 17))
			s := mustSpace(t, equalGenes(12, 3, 100), Budget{Bytes: 1200})
			table := convexTable(s, r)
			best, err := s.SumOfErrors(context.Background(), table, 0)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Evolve(context.Background(), s, Options{Seed: seed, Generations: c.generations, Offspring: c.lambda, Stages: []Stage{{1, 1}}}, separable(table))
			if err != nil {
				t.Fatal(err)
			}
			if got.Fitness > sumOf(table, best)+1e-12 {
				t.Errorf("λ %d, seed %d: %v, the optimum is %v", c.lambda, seed, got.Fitness, sumOf(table, best))
			}
		}
	}
}

// Over random spaces of unequal costs and kinds, with errors that fall as bytes grow:
// from the optimum of the sums a search never gets worse, and from the uniform start it
// nearly always reaches it, or all but 5 % of what can be gained.
func TestAgainstSumOfErrors(t *testing.T) {
	r := rand.New(rand.NewPCG(18, 19))
	reached, near := 0, 0
	const spaces = 60
	for range spaces {
		s := randomSpace(t, r)
		table := fallingTable(s, r)
		best, err := s.SumOfErrors(context.Background(), table, int(s.budget.Bytes)+1)
		if err != nil {
			t.Fatal(err)
		}
		least, uniform := sumOf(table, best), sumOf(table, s.Uniform())
		o := Options{Seed: 1, Generations: 60, Offspring: 32, Stages: []Stage{{4, 1}, {1, 2}}}
		free, err := Evolve(context.Background(), s, o, separable(table))
		if err != nil {
			t.Fatal(err)
		}
		got := sumOf(table, free.Candidate)
		if got < least-1e-12 {
			t.Fatalf("%v is below the optimum %v", got, least)
		}
		if got <= least+1e-12 {
			reached++
		}
		if got-least <= 0.05*(uniform-least)+1e-12 {
			near++
		}
		o.Start = best
		from, err := Evolve(context.Background(), s, o, separable(table))
		if err != nil {
			t.Fatal(err)
		}
		if sumOf(table, from.Candidate) > least+1e-12 {
			t.Errorf("from the optimum %v to %v", least, from.Fitness)
		}
	}
	t.Logf("of %d spaces, the optimum in %d, within 5 %% of the gain in %d", spaces, reached, near)
	if reached < 45 || near < 52 {
		t.Errorf("of %d spaces, the optimum in only %d, within 5 %% of the gain in %d", spaces, reached, near)
	}
}

// fallingTable has errors a·4^(−4·bytes/most) with a factor for each kind.
func fallingTable(s *Space, r *rand.Rand) [][]float64 {
	table := make([][]float64, len(s.genes))
	for g, gene := range s.genes {
		scale := map[string]float64{"": r.Float64(), "x": r.Float64()}
		most := 1.0
		for _, l := range gene.Levels {
			most = max(most, float64(l.Bytes))
		}
		for _, l := range gene.Levels {
			table[g] = append(table[g], scale[l.Kind]*math.Pow(4, -4*float64(l.Bytes)/most))
		}
	}
	return table
}

// Depth 3 of 8: every optimum of a fitness that is not separable, by brute force.
func TestDepthAgainstBruteForce(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 20))
		s := mustSpace(t, equalGenes(8, 2, 10), Budget{Bytes: 50})
		var pair [8][8]float64
		for i := range pair {
			for j := range pair {
				pair[i][j] = r.Float64()
			}
		}
		value := func(c Candidate) float64 {
			sum := 0.0
			for i := range c {
				for j := range c {
					if c[i]+c[j] == 0 {
						sum += pair[i][j]
					}
				}
			}
			return sum
		}
		best := math.Inf(1)
		for bits := range 256 {
			c := make(Candidate, 8)
			kept := 0
			for g := range c {
				c[g] = bits >> g & 1
				kept += c[g]
			}
			if kept == 5 {
				best = min(best, value(c))
			}
		}
		o := Depth(8, 3)
		o.Seed = seed
		got, err := Evolve(context.Background(), s, o, func(_ context.Context, cs []Candidate, _ Batch) ([]float64, error) {
			values := make([]float64, len(cs))
			for i, c := range cs {
				values[i] = value(c)
			}
			return values, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if got.Fitness > best+1e-12 {
			t.Errorf("seed %d: %v, brute force %v", seed, got.Fitness, best)
		}
	}
}

// noisy depends on the candidate and the batch only.
func noisy(c Candidate, b Batch) float64 {
	r := rand.New(rand.NewPCG(b.Seed, 21))
	sum := 0.0
	for _, l := range c {
		row := [8]float64{}
		for i := range row {
			row[i] = r.Float64() / float64(b.Samples)
		}
		sum += row[l] + math.Pow(2, -float64(l))
	}
	return sum
}

// Stages as in the pseudo code: all offspring first, then the best of each stage, in
// the last one the parent too, each on a fresh batch, all within the budget.
func TestStages(t *testing.T) {
	s := mustSpace(t, equalGenes(10, 5, 7), Budget{Bytes: 20 * 7})
	parent := s.Uniform()
	var mutants, keep []Candidate
	seeds := map[uint64]bool{}
	calls := 0
	o := Options{
		Seed: 5, Generations: 6, Offspring: 20, Stages: []Stage{{8, 10}, {1, 20}, {1, 30}},
		Progress: func(p Progress) {
			if p.State.Generation == 0 {
				return
			}
			if !slices.Equal(p.State.Parent, keep[0]) || p.Cost != s.Cost(keep[0]) || p.Offspring != 20 {
				t.Errorf("generation %d: %+v, want parent %v", p.State.Generation, p, keep[0])
			}
			if p.Improved == slices.Equal(keep[0], parent) {
				t.Errorf("improved is %v", p.Improved)
			}
			parent = keep[0]
		},
	}
	_, err := Evolve(context.Background(), s, o, func(_ context.Context, cs []Candidate, b Batch) ([]float64, error) {
		stage := calls % 3
		want := Batch{b.Seed, []int{10, 20, 30}[stage], 1 + calls/3, stage, []int{8, 1, 1}[stage]}
		if b != want {
			t.Errorf("call %d: batch %+v, want %+v", calls, b, want)
		}
		if seeds[b.Seed] {
			t.Errorf("call %d: a batch again", calls)
		}
		seeds[b.Seed] = true
		switch stage {
		case 0:
			mutants = cs
			distinct := map[string]bool{parent.key(): true}
			for _, c := range cs {
				if err := s.Check(c); err != nil || distinct[c.key()] {
					t.Errorf("call %d: %v, %v", calls, c, err)
				}
				distinct[c.key()] = true
			}
			if len(mutants) != 20 {
				t.Errorf("%d mutants", len(mutants))
			}
		case 1:
			if diff := cmp.Diff(keep, cs); diff != "" {
				t.Error(diff)
			}
		case 2: // the parent is here although the stage before has one survivor too
			if diff := cmp.Diff([]Candidate{keep[0], parent}, cs); diff != "" {
				t.Error(diff)
			}
		}
		calls++
		values := make([]float64, len(cs))
		for i, c := range cs {
			values[i] = noisy(c, b)
		}
		sorted := slices.Sorted(slices.Values(values))
		keep = nil
		for i, c := range cs {
			if values[i] <= sorted[b.Survivors-1] {
				keep = append(keep, slices.Clone(c))
			}
		}
		return values, nil
	})
	if err != nil || calls != 18 {
		t.Errorf("%d calls, want 18: %v", calls, err)
	}
}

func TestElitism(t *testing.T) {
	r := rand.New(rand.NewPCG(22, 23))
	for range 20 {
		s := randomSpace(t, r)
		before := math.Inf(1)
		_, err := Evolve(context.Background(), s, Options{
			Seed: 3, Generations: 20, Offspring: 8, Stages: []Stage{{2, 1}, {1, 1}}, Random: 5, RandomSamples: 1,
			Progress: func(p Progress) {
				if p.Fitness > before {
					t.Errorf("from %v to %v", before, p.Fitness)
				}
				before = p.Fitness
			},
		}, separable(randomTable(s, r)))
		if err != nil {
			t.Fatal(err)
		}
	}
}

func noisyFitness(_ context.Context, cs []Candidate, b Batch) ([]float64, error) {
	values := make([]float64, len(cs))
	for i, c := range cs {
		values[i] = noisy(c, b)
	}
	return values, nil
}

func history(t *testing.T, s *Space, o Options, f Fitness) ([]Progress, Result) {
	t.Helper()
	var out []Progress
	o.Progress = func(p Progress) { out = append(out, p) }
	result, err := Evolve(context.Background(), s, o, f)
	if err != nil {
		t.Fatal(err)
	}
	return out, result
}

func TestResume(t *testing.T) {
	s := mustSpace(t, equalGenes(10, 5, 7), Budget{Bytes: 23 * 7})
	o := Options{Seed: math.MaxUint64 - 3, Generations: 12, Offspring: 10, Stages: []Stage{{4, 3}, {1, 9}}, Random: 6, RandomSamples: 2}
	all, want := history(t, s, o, noisyFitness)
	for stop, p := range all {
		text, err := json.Marshal(p.State)
		if err != nil {
			t.Fatal(err)
		}
		var state State
		if err := json.Unmarshal(text, &state); err != nil {
			t.Fatal(err)
		}
		again := o
		again.Resume = &state
		rest, got := history(t, s, again, noisyFitness)
		if diff := cmp.Diff(all[stop+1:], rest, cmp.Comparer(func(a, b []Progress) bool { return fmt.Sprint(a) == fmt.Sprint(b) })); diff != "" {
			t.Fatalf("from generation %d: %s", stop, diff)
		}
		if stop < 12 && !cmp.Equal(want, got) {
			t.Errorf("from generation %d: %+v, want %+v", stop, got, want)
		}
		if stop == 12 && (!math.IsNaN(got.Fitness) || !slices.Equal(got.Candidate, want.Candidate)) {
			t.Errorf("nothing left to do: %+v", got)
		}
	}
}

// The order of evaluation and what becomes of the hopeless change nothing.
func TestAnyOrderOfEvaluation(t *testing.T) {
	s := mustSpace(t, equalGenes(10, 5, 7), Budget{Bytes: 23 * 7})
	o := Options{Seed: 8, Generations: 12, Offspring: 16, Stages: []Stage{{4, 3}, {2, 5}, {1, 9}}}
	want, _ := history(t, s, o, noisyFitness)
	parallel := func(_ context.Context, cs []Candidate, b Batch) ([]float64, error) {
		values := make([]float64, len(cs))
		var wait sync.WaitGroup
		for i := range slices.Backward(cs) {
			wait.Go(func() {
				runtime.Gosched()
				values[i] = noisy(cs[i], b)
			})
		}
		wait.Wait()
		return values, nil
	}
	early := func(ctx context.Context, cs []Candidate, b Batch) ([]float64, error) {
		values, err := parallel(ctx, cs, b)
		worst := slices.Sorted(slices.Values(values))[b.Survivors-1]
		for i := range values {
			if values[i] > worst {
				values[i] = math.Inf(1)
			}
		}
		return values, err
	}
	for name, f := range map[string]Fitness{"parallel": parallel, "stopped early": early} {
		if got, _ := history(t, s, o, f); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	o.Seed++
	if other, _ := history(t, s, o, noisyFitness); fmt.Sprint(other) == fmt.Sprint(want) {
		t.Error("another seed, the same search")
	}
}

func TestEvolveErrors(t *testing.T) {
	ctx := context.Background()
	s := mustSpace(t, equalGenes(4, 3, 10), Budget{Bytes: 40})
	good := Options{Generations: 2, Offspring: 3, Stages: []Stage{{2, 1}, {1, 1}}}
	var oe *OptionError
	for name, change := range map[string]func(*Options){
		"generations": func(o *Options) { o.Generations = 0 },
		"offspring":   func(o *Options) { o.Offspring = 0 },
		"no stages":   func(o *Options) { o.Stages = nil },
		"last stage":  func(o *Options) { o.Stages = []Stage{{2, 1}} },
		"more":        func(o *Options) { o.Stages = []Stage{{1, 1}, {2, 1}, {1, 1}} },
		"samples":     func(o *Options) { o.Stages = []Stage{{1, 0}} },
		"random":      func(o *Options) { o.Random = 3 },
		"no random":   func(o *Options) { o.RandomSamples = 3 },
		"seed":        func(o *Options) { o.Resume = &State{Seed: 1, Parent: s.Uniform()} },
	} {
		o := good
		change(&o)
		if _, err := Evolve(ctx, s, o, noisyFitness); !errors.As(err, &oe) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var ce *CandidateError
	for _, bad := range []Candidate{{}, {2, 2, 2, 2}, {0, 0, 0, 3}} {
		o := good
		o.Start = bad
		if _, err := Evolve(ctx, s, o, noisyFitness); !errors.As(err, &ce) {
			t.Errorf("start %v: %v", bad, err)
		}
		o = good
		o.Resume = &State{Parent: bad}
		if _, err := Evolve(ctx, s, o, noisyFitness); !errors.As(err, &ce) {
			t.Errorf("resume %v: %v", bad, err)
		}
	}
	var fe *FitnessError
	for name, values := range map[string][]float64{"short": {1}, "NaN": {1, 2, math.NaN()}} {
		_, err := Evolve(ctx, s, good, func(context.Context, []Candidate, Batch) ([]float64, error) { return values, nil })
		if !errors.As(err, &fe) || fe.Batch.Generation != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Evolve(done, s, good, noisyFitness); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// All fail: the parent stays. None other exists: the search ends.
func TestNothingToChoose(t *testing.T) {
	s := mustSpace(t, equalGenes(4, 3, 10), Budget{Bytes: 40})
	o := Options{Generations: 3, Offspring: 3, Stages: []Stage{{2, 1}, {1, 1}}}
	got, err := Evolve(context.Background(), s, o, func(_ context.Context, cs []Candidate, _ Batch) ([]float64, error) {
		return slices.Repeat([]float64{math.Inf(1)}, len(cs)), nil
	})
	if err != nil || !slices.Equal(got.Candidate, s.Uniform()) || got.Generation != 3 {
		t.Errorf("all fail: %+v, %v", got, err)
	}
	one := mustSpace(t, equalGenes(1, 1, 10), Budget{Bytes: 0})
	got, err = Evolve(context.Background(), one, o, noisyFitness)
	if err != nil || got.Generation != 0 || !slices.Equal(got.Candidate, Candidate{0}) {
		t.Errorf("one candidate: %+v, %v", got, err)
	}
}

func TestPresets(t *testing.T) {
	depth := Depth(32, 8)
	if depth.Generations != 128 || depth.Offspring != 32 || depth.Random != 64 {
		t.Errorf("depth 8 of 32: %+v", depth)
	}
	for name, o := range map[string]Options{"depth": depth, "sparsity": Sparsity(), "quantization": Quantization(), "super-fast": SuperFast()} {
		if err := o.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
