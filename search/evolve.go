package search

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// Batch says on which samples candidates are to be evaluated.
type Batch struct {
	Seed       uint64 // draws the samples; another in each generation and stage
	Samples    int    // how many
	Generation int    // from 1; 0 for the choice of the first parent
	Stage      int    // from 0

	// Survivors is how many of the candidates go on. A candidate that can no longer
	// be among them need not be evaluated to the end: +Inf does.
	Survivors int
}

// Fitness evaluates candidates, all on the same batch, and returns a number for each,
// better when lower; +Inf for one that fails. It may evaluate them together, in
// parallel or in any order, as long as the numbers of those that survive do not depend
// on that. It must not change the candidates. In the last stage the parent is the last
// of them.
type Fitness func(ctx context.Context, candidates []Candidate, batch Batch) ([]float64, error)

// State is all that a search needs to go on. It encodes to JSON.
type State struct {
	Seed       uint64    `json:"seed"`
	Generation int       `json:"generation"` // how many are done
	Parent     Candidate `json:"parent"`
}

// Progress tells of a generation that is done.
type Progress struct {
	State     State
	Fitness   float64 // the parent's, on this generation's last batch; NaN if not measured
	Cost      int64   // the parent's bytes
	Offspring int     // how many distinct mutants there were
	Improved  bool    // a mutant took the parent's place
}

// Result is what a search has found.
type Result struct {
	Candidate  Candidate
	Fitness    float64 // on the last batch of the last generation; NaN if none was run
	Cost       int64
	Generation int // how many are done: fewer than asked for if the parent has no mutants
}

// Evolve is EvoPress (Sieberling et al., arXiv 2410.14649, Algorithm 1), a (1+λ)
// evolution: in each generation λ distinct mutants of the parent go through stages of
// fewer candidates and more samples, each on a fresh batch, and in the last stage
// against the parent, evaluated anew on the same batch. A mutant as good as the parent
// takes its place; of equal mutants the first does.
//
// Cost: in each generation λ mutants of time genes × steps, and the evaluations: λ in
// the first stage, the survivors of the stage before in the others, and one more in
// the last. Errors are those of the fitness, the context's, *FitnessError,
// *OptionError and *CandidateError.
func Evolve(ctx context.Context, s *Space, o Options, fitness Fitness) (Result, error) {
	if err := o.Check(); err != nil {
		return Result{}, err
	}
	report := o.Progress
	if report == nil {
		report = func(Progress) {}
	}
	var at Progress
	if o.Resume != nil {
		if err := s.Check(o.Resume.Parent); err != nil {
			return Result{}, err
		}
		at = s.progress(*o.Resume, math.NaN())
	} else {
		var err error
		if at, err = s.start(ctx, o, fitness); err != nil {
			return Result{}, err
		}
		report(at)
	}
	for at.State.Generation < o.Generations {
		if err := ctx.Err(); err != nil {
			return Result{}, err
		}
		next, err := s.generation(ctx, o, at.State, fitness)
		if err != nil {
			return Result{}, err
		}
		if next.Offspring == 0 {
			break
		}
		at = next
		report(at)
	}
	return Result{slices.Clone(at.State.Parent), at.Fitness, at.Cost, at.State.Generation}, nil
}

func (s *Space) progress(state State, fitness float64) Progress {
	state.Parent = slices.Clone(state.Parent)
	return Progress{State: state, Fitness: fitness, Cost: s.Cost(state.Parent)}
}

// start chooses the first parent.
func (s *Space) start(ctx context.Context, o Options, fitness Fitness) (Progress, error) {
	first := o.Start
	if first == nil {
		first = s.Uniform()
	}
	if err := s.Check(first); err != nil {
		return Progress{}, err
	}
	state := State{Seed: o.Seed, Parent: first}
	if o.Random == 0 {
		return s.progress(state, math.NaN()), nil
	}
	r := stream(o.Seed, 0, 0)
	candidates := []Candidate{slices.Clone(first)}
	seen := map[string]bool{first.key(): true}
	distinct(&candidates, o.Random, seen, func() Candidate { return s.random(r) })
	batch := Batch{Seed: r.Uint64(), Samples: o.RandomSamples, Survivors: 1}
	values, err := evaluate(ctx, fitness, candidates, batch)
	if err != nil {
		return Progress{}, err
	}
	best := survivors(values, 1)[0]
	state.Parent = candidates[best]
	return s.progress(state, values[best]), nil
}

// generation replaces the parent by the best of its mutants and itself.
func (s *Space) generation(ctx context.Context, o Options, state State, fitness Fitness) (Progress, error) {
	state.Generation++
	r := stream(o.Seed, state.Generation, 0)
	parent := slices.Clone(state.Parent)
	var candidates []Candidate
	seen := map[string]bool{parent.key(): true}
	distinct(&candidates, o.Offspring, seen, func() Candidate { return s.mutate(parent, r) })
	offspring := len(candidates)
	if offspring == 0 {
		return Progress{}, nil
	}
	var best float64
	for i, stage := range o.Stages {
		last := i == len(o.Stages)-1
		if last {
			candidates = append(candidates, parent)
		}
		batch := Batch{
			Seed: stream(o.Seed, state.Generation, 1+i).Uint64(), Samples: stage.Samples,
			Generation: state.Generation, Stage: i, Survivors: stage.Survivors,
		}
		values, err := evaluate(ctx, fitness, candidates, batch)
		if err != nil {
			return Progress{}, err
		}
		keep := survivors(values, stage.Survivors)
		if last && math.IsInf(values[keep[0]], 1) {
			keep[0] = len(candidates) - 1 // nothing tells them apart: the parent stays
		}
		best = values[keep[0]]
		next := make([]Candidate, len(keep))
		for j, k := range keep {
			next[j] = candidates[k]
		}
		candidates = next
	}
	state.Parent = candidates[0]
	p := s.progress(state, best)
	p.Offspring, p.Improved = offspring, !slices.Equal(candidates[0], parent)
	return p, nil
}

// attempts is how many draws in a row may give a candidate that is there already
// before there are taken to be no more.
const attempts = 200

// distinct appends n candidates that draw gives and seen does not hold, or fewer.
func distinct(to *[]Candidate, n int, seen map[string]bool, draw func() Candidate) {
	for failed := 0; n > 0 && failed < attempts; {
		c := draw()
		if k := c.key(); !seen[k] {
			seen[k] = true
			*to = append(*to, c)
			n--
			failed = 0
		} else {
			failed++
		}
	}
}

func (c Candidate) key() string {
	var b []byte
	for _, l := range c {
		b = binary.AppendUvarint(b, uint64(l))
	}
	return string(b)
}

// stream returns the random numbers of one purpose in a generation: 0 for its
// candidates, 1+i for the batch of stage i.
func stream(seed uint64, generation, purpose int) *rand.Rand {
	return rand.New(rand.NewPCG(seed, uint64(generation)<<16|uint64(purpose)))
}

func evaluate(ctx context.Context, fitness Fitness, candidates []Candidate, batch Batch) ([]float64, error) {
	values, err := fitness(ctx, candidates, batch)
	if err != nil {
		return nil, err
	}
	if len(values) != len(candidates) {
		return nil, &FitnessError{batch, fmt.Sprintf("%d numbers for %d candidates", len(values), len(candidates))}
	}
	for i, v := range values {
		if math.IsNaN(v) {
			return nil, &FitnessError{batch, fmt.Sprintf("candidate %d has NaN: return +Inf for one that fails", i)}
		}
	}
	return values, nil
}

// survivors returns the indices of the n lowest values, ascending, so that nothing
// later depends on the values of those that go. Of equal values the first are kept.
func survivors(values []float64, n int) []int {
	order := make([]int, len(values))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case values[a] < values[b]:
			return -1
		case values[a] > values[b]:
			return 1
		}
		return 0
	})
	order = order[:min(n, len(order))]
	slices.Sort(order)
	return order
}
