package search

import (
	"fmt"
	"math"
)

// Stage is one round of a generation's selection.
type Stage struct {
	Survivors int // how many candidates go on
	Samples   int // how many tokens, images … each is evaluated on
}

// Options of Evolve. The functions below give the published ones.
type Options struct {
	Seed        uint64
	Generations int
	Offspring   int     // λ: mutants of a generation
	Stages      []Stage // the last has one survivor

	// Start is where the search begins. Nil means Uniform.
	Start Candidate
	// Random is how many random candidates are tried beside the start, on
	// RandomSamples samples; the best of all is the first parent.
	Random        int
	RandomSamples int

	// Resume continues a search with the same space and options from a state that
	// Progress reported; what comes is what would have come without the stop.
	Resume *State

	// Progress, if any, is called after the choice of the first parent and after each
	// generation.
	Progress func(Progress)
}

// Depth returns the published options for dropping k of n blocks: k(n−k)/1.5
// generations of 32, from the best of 64 random candidates. Attention and MLP are
// genes of two groups of n, each at the level 0 bytes or all.
func Depth(n, k int) Options {
	return Options{
		Generations: max(1, int(math.Ceil(float64(k)*float64(n-k)/1.5))), Offspring: 32,
		Stages: []Stage{{2, 2048}, {1, 32768}},
		Random: 64, RandomSamples: 2048,
	}
}

// Sparsity returns the published options for levels of sparsity, from a uniform one.
func Sparsity() Options {
	return Options{
		Generations: 400, Offspring: 64,
		Stages: []Stage{{8, 2048}, {2, 16384}, {1, 65536}},
	}
}

// Quantization returns the published options for bit widths, from a uniform one. For
// a budget between two of them the paper starts from the best of random ones: set Random
// and RandomSamples.
func Quantization() Options {
	return Options{
		Generations: 150, Offspring: 128,
		Stages: []Stage{{16, 2048}, {4, 16384}, {1, 131072}},
	}
}

// SuperFast returns the published options for a small part of the cost.
func SuperFast() Options {
	return Options{
		Generations: 400, Offspring: 16,
		Stages: []Stage{{1, 512}, {1, 8192}},
	}
}

// Check returns an *OptionError for the first field that is out of its range. The
// candidates in Start and Resume are checked by Evolve.
func (o Options) Check() error {
	switch {
	case o.Generations < 1:
		return &OptionError{"Generations", o.Generations, "at least 1"}
	case o.Offspring < 1:
		return &OptionError{"Offspring", o.Offspring, "at least 1"}
	case len(o.Stages) == 0:
		return &OptionError{"Stages", o.Stages, "at least one"}
	case o.Random < 0:
		return &OptionError{"Random", o.Random, "at least 0"}
	case (o.Random > 0) != (o.RandomSamples > 0) || o.RandomSamples < 0:
		return &OptionError{"RandomSamples", o.RandomSamples, "a number above 0 with Random, none without"}
	case o.Resume != nil && o.Resume.Seed != o.Seed:
		return &OptionError{"Seed", o.Seed, fmt.Sprintf("%d, as in Resume", o.Resume.Seed)}
	case o.Resume != nil && o.Resume.Generation < 0:
		return &OptionError{"Resume.Generation", o.Resume.Generation, "at least 0"}
	}
	before := math.MaxInt
	for i, s := range o.Stages {
		if s.Samples < 1 {
			return &OptionError{fmt.Sprintf("Stages[%d].Samples", i), s.Samples, "at least 1"}
		}
		if s.Survivors < 1 || s.Survivors > before {
			return &OptionError{fmt.Sprintf("Stages[%d].Survivors", i), s.Survivors, "at least 1 and no more than in the stage before"}
		}
		before = s.Survivors
	}
	if before != 1 {
		return &OptionError{"the last stage's Survivors", before, "1"}
	}
	return nil
}
