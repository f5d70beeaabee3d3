package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/record"
)

const levelLetters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

// searchSpec says how large a made-up search is.
type searchSpec struct {
	method      string
	budgets     []float64 // in bits per weight
	generations int
	offspring   int
	chosen      int
}

// newSearch returns a search over the run's layers, one gene each, as EvoPress would
// leave it: levels of 2 to 8 bits, errors that fall by four per bit, and a fitness that
// adds them up with noise. Its figures are made up.
func newSearch(run *record.Run, spec searchSpec) *record.Search {
	rng := rand.New(rand.NewPCG(7, 11))
	s := &record.Search{
		Method: spec.method, Fitness: "kl", Unit: "tokens", Samples: 47_363, Seed: 5, Chosen: spec.chosen, Seconds: 812.4,
	}
	weights := make([]float64, len(run.Layers))
	for i, l := range run.Layers {
		g := record.SearchGene{Name: l.Name, Layers: []string{l.Name}}
		weights[i] = math.Exp(1.2 * rng.NormFloat64())
		for b, bits := range []int{2, 3, 4, 5, 6, 8} {
			e := 0.3 * math.Pow(4, -float64(bits-2)) * math.Exp(0.4*rng.NormFloat64())
			g.Levels = append(g.Levels, record.SearchLevel{
				Name: fmt.Sprintf("%d bits", bits), Bytes: l.Parameters*int64(bits)/8 + 64, RelativeError: &e,
			})
			if b == 0 && i%9 == 4 {
				g.Levels[b].RelativeError, g.Levels[b].LeftOut = nil, "the error at 2 bits is above 0.5"
			}
		}
		first := slices.IndexFunc(g.Levels, func(l record.SearchLevel) bool { return l.LeftOut == "" })
		s.Smallest += g.Levels[first].Bytes
		s.Largest += g.Levels[len(g.Levels)-1].Bytes
		s.Genes = append(s.Genes, g)
	}
	const rest = 9000
	s.Smallest, s.Largest = s.Smallest+rest, s.Largest+rest
	cost := func(levels []int) int64 {
		sum := int64(rest)
		for i, l := range levels {
			sum += s.Genes[i].Levels[l].Bytes
		}
		return sum
	}
	measure := func(levels []int, noise float64) float64 {
		sum := 0.0
		for i, l := range levels {
			if e := s.Genes[i].Levels[l].RelativeError; e != nil {
				sum += weights[i] * *e
			}
		}
		return sum / float64(len(levels)) * math.Exp(noise*rng.NormFloat64())
	}
	fill := func(levels []int, budget int64, order []int) []int {
		levels = slices.Clone(levels)
		for raised := true; raised; {
			raised = false
			for _, i := range order {
				if l := levels[i] + 1; l < 6 {
					levels[i] = l
					if raised = cost(levels) <= budget; !raised {
						levels[i]--
					}
				}
			}
		}
		return levels
	}
	cheapest := make([]int, len(s.Genes))
	order := make([]int, len(s.Genes))
	for i := range s.Genes {
		order[i] = i
		if s.Genes[i].Levels[0].LeftOut != "" {
			cheapest[i] = 1
		}
	}
	for _, bits := range spec.budgets {
		r := record.SearchResult{Asked: fmt.Sprintf("%g bits", bits), Samples: 32_768}
		for _, l := range run.Layers {
			r.Budget += int64(bits*float64(l.Parameters)/8) + 64
		}
		r.Budget += rest
		uniform := fill(cheapest, r.Budget, order)
		byWeight := slices.Clone(order)
		slices.SortFunc(byWeight, func(a, b int) int { return int(math.Copysign(1, weights[b]-weights[a])) })
		random := fill(cheapest, r.Budget, rng.Perm(len(order)))
		for range 3 * len(order) { // uneven
			i, j := rng.IntN(len(order)), rng.IntN(len(order))
			c := slices.Clone(random)
			if c[i] > cheapest[i] && c[j] < 5 {
				c[i]--
				c[j]++
				if cost(c) <= r.Budget {
					random = c
				}
			}
		}
		greedy := slices.Clone(uniform)
		for range len(order) {
			greedy = improved(greedy, cheapest, cost, func(l []int) float64 { return measure(l, 0.05) }, r.Budget, rng)
		}
		for _, b := range []struct {
			name   string
			levels []int
		}{{"uniform", uniform}, {"dp", fill(greedy, r.Budget, byWeight)}, {"greedy", greedy}, {"random", random}} {
			r.Baselines = append(r.Baselines, record.SearchBaseline{Name: b.name, Bytes: cost(b.levels), Levels: b.levels, Fitness: measure(b.levels, 0)})
		}
		parent := greedy
		for g := range spec.generations + 1 {
			gen := record.SearchGeneration{Generation: g, Seconds: float64(g)}
			if g > 0 {
				for o := range spec.offspring {
					child := improved(parent, cheapest, cost, func([]int) float64 { return rng.Float64() }, r.Budget, rng)
					f, samples, stage := measure(child, 0.03), 32_768, 1
					if o%4 != 0 {
						samples, stage = 2048, 0
					}
					if o%7 == 6 {
						f = -1
					} else if stage == 1 && measure(child, 0) < measure(parent, 0) {
						parent, gen.Improved = child, true
					}
					r.Evaluations = append(r.Evaluations, record.SearchEvaluation{
						Generation: g, Stage: stage, Samples: samples, Bytes: cost(child), Fitness: f, Levels: letters(child),
					})
				}
			}
			gen.Fitness, gen.Bytes, gen.Levels = measure(parent, 0.03), cost(parent), parent
			r.Generations = append(r.Generations, gen)
		}
		if spec.generations == 0 {
			r.Generations = nil
		}
		r.Levels, r.Bytes, r.Fitness = parent, cost(parent), measure(parent, 0)
		s.Results = append(s.Results, r)
	}
	return s
}

// improved moves one level between two genes, where that keeps to the budget and is
// not worse.
func improved(levels, cheapest []int, cost func([]int) int64, measure func([]int) float64, budget int64, rng *rand.Rand) []int {
	for range 50 {
		c := slices.Clone(levels)
		i, j := rng.IntN(len(c)), rng.IntN(len(c))
		if c[i] == cheapest[i] || c[j] == 5 || i == j {
			continue
		}
		c[i]--
		c[j]++
		if b := cost(c); b <= budget && b > budget-budget/100 && measure(c) <= measure(levels) {
			return c
		}
	}
	return levels
}

func letters(levels []int) string {
	b := make([]byte, len(levels))
	for i, l := range levels {
		b[i] = levelLetters[l]
	}
	return string(b)
}

// searchSample is the record of a ResNet-20 whose levels EvoPress chose.
func searchSample(t testing.TB) *record.Run {
	run := sample(t)
	run.Search = newSearch(run, searchSpec{method: "evopress", budgets: []float64{3}, generations: 60, offspring: 16})
	run.Search.Unit = "images"
	return run
}

func paretoSample(t testing.TB) *record.Run {
	run := sample(t)
	run.Search = newSearch(run, searchSpec{method: "evopress", budgets: []float64{2.5, 3, 3.5, 4, 5}, generations: 40, offspring: 8, chosen: 1})
	return run
}

// longSearch has 224 genes and 20,000 evaluations.
func longSearch(t testing.TB) *record.Run {
	run := languageSample(t, 32)
	run.Layers = run.Layers[:224]
	run.Search = newSearch(run, searchSpec{method: "evopress", budgets: []float64{3}, generations: 400, offspring: 50})
	return run
}

func searchVariants(t testing.TB) map[string]*record.Run {
	dp := sample(t)
	dp.Search = newSearch(dp, searchSpec{method: "dp", budgets: []float64{3}})

	zero := searchSample(t)
	same := paretoSample(t)
	for i := range zero.Search.Results {
		setFitness(&zero.Search.Results[i], 0, zero.Search.Results[i].Bytes)
	}
	for i := range same.Search.Results {
		setFitness(&same.Search.Results[i], 0.25, 1000)
	}
	mixed := searchSample(t) // zeros on a logarithmic scale
	r := &mixed.Search.Results[0]
	r.Fitness, r.Baselines[0].Fitness, r.Generations[3].Fitness, r.Generations[9].Fitness = 0, 1e6, 0, -1

	extreme := paretoSample(t)
	for i := range extreme.Search.Results {
		r := &extreme.Search.Results[i]
		r.Bytes, r.Budget = math.MaxInt64, math.MinInt64
		r.Fitness, r.Baselines[0].Fitness, r.Baselines[1].Fitness = -math.MaxFloat64, math.MaxFloat64, math.SmallestNonzeroFloat64
		r.Levels, r.Baselines[0].Levels = []int{-1, 1 << 40}, nil
		r.Generations[1].Generation = math.MinInt
	}
	positive := paretoSample(t)
	for i := range positive.Search.Results {
		r := &positive.Search.Results[i]
		setFitness(r, math.SmallestNonzeroFloat64, 0)
		r.Baselines[0].Fitness = math.MaxFloat64
	}
	over := searchSample(t)
	over.Search.Results[0].Budget = over.Search.Results[0].Bytes - 100

	levels := searchSample(t) // more names than rows
	for i := range levels.Search.Genes {
		for j := range levels.Search.Genes[i].Levels {
			l := &levels.Search.Genes[i].Levels[j]
			l.Name = fmt.Sprintf("%s of layer %d", l.Name, i)
		}
	}
	unknown := searchSample(t)
	unknown.Search.Chosen = 7
	none := searchSample(t)
	none.Search.Results = nil
	empty := sample(t)
	empty.Search = &record.Search{Results: []record.SearchResult{{}, {Baselines: []record.SearchBaseline{{}}, Generations: []record.SearchGeneration{{}}, Evaluations: []record.SearchEvaluation{{}}}}}
	sizes := sample(t)
	sizes.Search = newSearch(sizes, searchSpec{method: "evopress", budgets: slices.Repeat([]float64{3, 4}, 20), generations: 2, offspring: 3})
	return map[string]*record.Run{
		"search": searchSample(t), "search, sizes": paretoSample(t), "search, dp": dp, "search, fitness 0": zero,
		"search, all the same": same, "search, some 0": mixed, "search, extreme": extreme, "search, widest": positive,
		"search, over": over, "search, many levels": levels, "search, chosen unknown": unknown,
		"search, no result": none, "search, empty": empty, "search, 40 sizes": sizes,
	}
}

// setFitness makes everything measured and all bytes of candidates the same.
func setFitness(r *record.SearchResult, fitness float64, bytes int64) {
	r.Fitness, r.Bytes, r.Budget = fitness, bytes, bytes
	for i := range r.Baselines {
		r.Baselines[i].Fitness, r.Baselines[i].Bytes = fitness, bytes
	}
	for i := range r.Generations {
		r.Generations[i].Fitness = fitness
	}
	for i := range r.Evaluations {
		r.Evaluations[i].Fitness, r.Evaluations[i].Bytes = fitness, bytes
	}
}

// sectionOf returns a section of the page.
func sectionOf(t *testing.T, html, id string) string {
	t.Helper()
	_, s, found := strings.Cut(html, `<section id="`+id+`">`)
	if !found {
		t.Fatalf("page has no section %s", id)
	}
	s, _, _ = strings.Cut(s, "</section>")
	return s
}
