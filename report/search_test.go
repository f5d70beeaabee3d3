package report

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
		for range order {
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
	run.Search = newSearch(run, searchSpec{method: "evopress", budgets: []float64{2.5, 3, 3.5, 4, 5}, generations: 30, offspring: 8, chosen: 1})
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

func TestNoSearch(t *testing.T) {
	html := render(t, sample(t))
	for _, s := range []string{`id="search"`, `href="#search"`, "budget of the search"} {
		if strings.Contains(html, s) {
			t.Errorf("a run without a search has %s", s)
		}
	}
}

// smallSearch is a search whose figures can be worked out by hand.
func smallSearch() *record.Search {
	e := 0.125
	return &record.Search{
		Method: "evopress", Fitness: "topk-kl", TopK: 16, Unit: "images", Samples: 1024, Seed: 3, Smallest: 60_000, Largest: 200_000, Seconds: 90,
		Genes: []record.SearchGene{
			{Name: "a", Layers: []string{"a.q", "a.k"}, Levels: []record.SearchLevel{{Name: "dropped"}, {Name: "3 bits", Bytes: 300, RelativeError: &e}, {Name: "kept", Bytes: 1600}}},
			{Name: "b", Layers: []string{"b"}, Levels: []record.SearchLevel{{Name: "3 bits", Bytes: 600, LeftOut: "not a number"}, {Name: "kept", Bytes: 3200}}},
		},
		Results: []record.SearchResult{{
			Asked: "120KB", Budget: 120_000, Bytes: 119_871, Levels: []int{1, 1}, Fitness: 0.01, Samples: 512,
			Baselines: []record.SearchBaseline{
				{Name: "uniform", Bytes: 119_000, Levels: []int{2, 1}, Fitness: 0.025},
				{Name: "dp", Bytes: 119_500, Levels: []int{0, 1}, Fitness: 0.015},
			},
			Generations: []record.SearchGeneration{{Fitness: -1}, {Generation: 1, Fitness: 0.02, Improved: true}, {Generation: 2, Fitness: 0.011}},
			Evaluations: []record.SearchEvaluation{
				{Samples: 64, Fitness: 0.5, Bytes: 119_000},
				{Samples: 512, Fitness: 0.02, Bytes: 119_800},
				{Samples: 512, Fitness: -1, Bytes: 118_000},
				{Samples: 512, Fitness: 0.03, Bytes: 119_900},
			},
		}},
	}
}

func TestSearchShown(t *testing.T) {
	run := sample(t)
	run.Search = smallSearch()
	html := render(t, run)
	section := strings.ReplaceAll(textOf(sectionOf(t, html, "search")), thin, "")
	for _, s := range []string{
		"Asked for 120KB, found 119871 of 120000 bytes, 0.11 % unused. The KL divergence over the original&#39;s 16 likeliest outputs is 0.01000, " +
			"1.50× below the 0.01500 of the best baseline (dp) and 2.50× below the 0.02500 of uniform levels, all on the same 512 images.",
		"each of 2 genes", "60.0 KB", "200.0 KB", "All 2 are drawn. 2 evaluations on fewer samples or stopped early are left out.",
		"a better candidate took its place, 1 time.", "1 level could not be chosen", "2 generations, 4 evaluations, 1 min 30 s", "drawn from 1024 images, seed 3",
	} {
		if !strings.Contains(section, s) {
			t.Errorf("section lacks %q:\n%s", s, section)
		}
	}
	if s := "budget of the search 120000 bytes, 0.11 % unused"; !strings.Contains(strings.ReplaceAll(html, thin, ""), s) {
		t.Errorf("first screen lacks %q", s)
	}
	for start, want := range map[string][][]string{
		`aria-label="Result and baselines">`: {
			{"Choice of levels", "Bytes", "Fitness", "Better than uniform", "Bar of fitness", "How levels were chosen"},
			{"result lowest", "119871", "0.01000", "2.50×", "", methodNote("evopress")},
			{"uniform", "119000", "0.02500", "1.00×", "", methodNote("uniform")},
			{"dp", "119500", "0.01500", "1.67×", "", strings.ReplaceAll(methodNote("dp"), "'", "&#39;")},
		},
		`aria-label="Levels by gene">`: {
			{"#", "Gene", "Layers", "Level", "Bytes", "Error", "Uniform", "Could not be chosen"},
			{"1", "a", "a.q a.k", "3 bits", "300", "0.125", "kept", ""},
			{"2", "b", "b", "kept", "3200", "–", "kept", "3 bits: not a number"},
		},
	} {
		rows := table(t, html, start)
		if len(rows) == 0 {
			t.Fatalf("no rows after %s", start)
		}
		if start == `aria-label="Result and baselines">` { // the chosen row has a class
			rows = slices.Insert(rows, 1, want[1])
		}
		if diff := cmp.Diff(want, rows); diff != "" {
			t.Errorf("%s (-want +got):\n%s", start, diff)
		}
	}
	if !strings.Contains(html, `<tr class="chosen"><th scope="row">`) {
		t.Error("the result's row is not marked")
	}
}

// TestAgainst compares in words where there is no factor, too.
func TestAgainst(t *testing.T) {
	for _, c := range []struct {
		own, other float64
		want       string
	}{
		{0.5, 1, "2.00× below the 1.000"},
		{1, 0.5, "2.00× above the 0.5000"},
		{2, 2, "the same as the 2.000"},
		{0, 0, "the same as the 0"},
		{0, 1, "below the 1.000"},
		{1, 0, "above the 0"},
		{-1, 1, "below the 1.000"},
	} {
		if got := against(c.own, c.other); got != c.want {
			t.Errorf("%v against %v: %q, want %q", c.own, c.other, got, c.want)
		}
	}
}

func TestSizesShown(t *testing.T) {
	run := paretoSample(t)
	html := render(t, run)
	rows := regexp.MustCompile(`<tr( class="chosen")?><th scope="row">([0-9.]+ bits)`).FindAllStringSubmatch(sectionOf(t, html, "search"), -1)
	if len(rows) != len(run.Search.Results) {
		t.Fatalf("%d rows for %d sizes", len(rows), len(run.Search.Results))
	}
	for i, row := range rows {
		if chosen := row[1] != ""; chosen != (i == run.Search.Chosen) || row[2] != run.Search.Results[i].Asked {
			t.Errorf("row %d: %q", i, row)
		}
	}
}

// TestLongSearch holds a search of 224 genes and 20,000 evaluations to a small page
// with all genes in it.
func TestLongSearch(t *testing.T) {
	run := longSearch(t)
	if n := len(run.Search.Results[0].Evaluations); n != 20_000 || len(run.Search.Genes) != 224 {
		t.Fatalf("%d evaluations, %d genes", n, len(run.Search.Genes))
	}
	html := render(t, run)
	wellFormed(t, html)
	if len(html) > 1_200_000 {
		t.Errorf("page has %d bytes", len(html))
	}
	section := sectionOf(t, html, "search")
	if n := strings.Count(section, `class="after" x=`); n != 224 {
		t.Errorf("%d bars for 224 genes", n)
	}
	cloud := regexp.MustCompile(`class="cloud" d="([^"]*)"`).FindStringSubmatch(section)
	if n := strings.Count(cloud[1], "M"); n != mostPoints {
		t.Errorf("%d points, want %d", n, mostPoints)
	}
	for _, s := range []string{"without the search's 20\u202f000 evaluations", "Evenly thinned out: 1\u202f500 of 4\u202f400 are drawn"} {
		if !strings.Contains(html, s) {
			t.Errorf("page lacks %q", s)
		}
	}
	checkEmbedded(t, html, withoutEvaluations(run))
	if run.Search.Results[0].Evaluations == nil {
		t.Error("the record itself lost its evaluations")
	}
	if html != render(t, longSearch(t)) {
		t.Error("two reports of one record differ")
	}
}

// TestInFrame looks in all charts for places outside of the drawing.
func TestInFrame(t *testing.T) {
	plots := regexp.MustCompile(`(?s)<svg class="(?:plot|depth)" viewBox="0 0 (\S+) (\S+)".*?</svg>`)
	places := regexp.MustCompile(` (x|y|x1|x2|y1|y2|cx|cy)="([^"]*)"|M(\S+) ([^\s"h]+)`)
	for name, run := range searchVariants(t) {
		found := plots.FindAllStringSubmatch(sectionOf(t, render(t, run)+`<section id="search">`, "search"), -1)
		for _, plot := range found {
			width, _ := strconv.ParseFloat(plot[1], 64)
			height, _ := strconv.ParseFloat(plot[2], 64)
			for _, p := range places.FindAllStringSubmatch(plot[0], -1) {
				check := func(text string, most float64) {
					if x, err := strconv.ParseFloat(text, 64); err != nil || x < 0 || x > most {
						t.Errorf("%s: %q is outside of %v × %v", name, p[0], width, height)
					}
				}
				switch {
				case p[1] == "":
					x, _, _ := strings.Cut(p[3], "h")
					check(x, width)
				case strings.Contains(p[1], "x"):
					check(p[2], width)
				default:
					check(p[2], height)
				}
			}
		}
	}
}

// TestLabelsApart checks that no two labels of a chart of results lie on each other.
func TestLabelsApart(t *testing.T) {
	for name, run := range searchVariants(t) {
		v := newSearchView(run.Search)
		for _, ends := range [][]lineEnd{v.Front.Ends, v.Progress.Ends} {
			for i := 1; i < len(ends); i++ {
				if ends[i].Y-ends[i-1].Y < 12-1e-9 {
					t.Errorf("%s: %q and %q overlap", name, ends[i-1].Label, ends[i].Label)
				}
			}
		}
		last := px(math.Inf(-1))
		for _, b := range v.Front.Budgets {
			if b.Label == "" {
				continue
			}
			half := px(3 * len([]rune(b.Label)))
			if b.X-half < last {
				t.Errorf("%s: the label %q overlaps", name, b.Label)
			}
			last = b.X + half
		}
	}
}

func TestThinOut(t *testing.T) {
	for _, n := range []int{0, 1, 9, 10, 11, 12_345} {
		all := make([]int, n)
		for i := range all {
			all[i] = i
		}
		some := thinOut(all, 10)
		if len(some) != min(n, 10) || !slices.IsSorted(some) || len(slices.Compact(slices.Clone(some))) != len(some) {
			t.Fatalf("%d of %d: %v", len(some), n, some)
		}
		if n > 0 && (some[0] != 0 || some[len(some)-1] != n-1) {
			t.Errorf("%v lacks an end of %d", some, n)
		}
	}
}

// TestFinished takes only finished evaluations on the most samples.
func TestFinished(t *testing.T) {
	r := smallSearch().Results[0]
	got, samples := finished(r)
	if want := []record.SearchEvaluation{r.Evaluations[1], r.Evaluations[3]}; samples != 512 || !reflect.DeepEqual(got, want) {
		t.Errorf("%d samples, %v", samples, got)
	}
}

// TestAxis checks on random values that scales hold them, in their order, and that
// ticks are few, apart and labelled differently.
func TestAxis(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		values := make([]float64, 1+rng.IntN(8))
		center, spread := math.Pow(10, 12*rng.Float64()-6), math.Pow(10, 6*rng.Float64()-5)
		for i := range values {
			values[i] = center * math.Exp(spread*rng.NormFloat64())
		}
		a := newAxis(values, 300, 20)
		slices.Sort(values)
		if a.lo > values[0] || a.hi < values[len(values)-1] {
			t.Fatalf("%v…%v does not hold %v", a.lo, a.hi, values)
		}
		last := px(300)
		for _, v := range values {
			at := a.at(v)
			if at > last+1e-9 || at < 20 {
				t.Fatalf("%v at %v after %v", v, at, last)
			}
			last = at
		}
		ticks := a.ticks()
		if len(ticks) < 2 || len(ticks) > 13 {
			t.Fatalf("%d ticks for %v…%v", len(ticks), a.lo, a.hi)
		}
		for i := 1; i < len(ticks); i++ {
			if ticks[i-1].At-ticks[i].At < 12 || ticks[i-1].Label == ticks[i].Label {
				t.Fatalf("%v…%v: ticks %v", a.lo, a.hi, ticks)
			}
		}
		bytes := []int64{rng.Int64N(1 << (1 + rng.IntN(50))), rng.Int64N(1 << (1 + rng.IntN(50)))}
		_, ticks = newBytesAxis(bytes, 50, 508)
		for i := 1; i < len(ticks); i++ {
			if ticks[i].At-ticks[i-1].At < 60 || ticks[i-1].Label == ticks[i].Label {
				t.Fatalf("%v: ticks %v", bytes, ticks)
			}
		}
	}
	for _, c := range []struct {
		values []float64
		lo, hi float64
		log    bool
	}{
		{nil, 0, 1, false},
		{[]float64{0, 0}, 0, 1, false},
		{[]float64{1, 3}, 1, 3, false},
		{[]float64{0.03, 4}, 0.02, 5, true},
		{[]float64{0, 0.03, 4}, 0.02, 5, true},
		{[]float64{-1, 100}, -50, 100, false},
	} {
		if a := newAxis(c.values, 0, 1); math.Abs(a.lo-c.lo) > 1e-9 || math.Abs(a.hi-c.hi) > 1e-9 || a.log != c.log {
			t.Errorf("%v: %v…%v, logarithmic %v", c.values, a.lo, a.hi, a.log)
		}
	}
}

// TestLevelNames orders levels by the share of the gene's largest.
func TestLevelNames(t *testing.T) {
	if diff := cmp.Diff([]string{"dropped", "3 bits", "kept"}, levelNames(smallSearch().Genes)); diff != "" {
		t.Error(diff)
	}
}

// Finalists' distances in order have a column; a baseline that cannot run has no row.
func TestSearchInOrder(t *testing.T) {
	s := &record.Search{
		Method: "evopress", Fitness: "kl", Unit: "tokens",
		Genes: []record.SearchGene{{Name: "a", Layers: []string{"a"}, Levels: []record.SearchLevel{{Name: "2 bits", Bytes: 5}, {Name: "3 bits", Bytes: 7}}}},
	}
	nearest, other := 0.125, 0.25
	s.Results = []record.SearchResult{{
		Asked: "9B", Budget: 9, Bytes: 7, Levels: []int{1}, Fitness: 0.5, InOrder: &nearest, Samples: 3,
		Baselines: []record.SearchBaseline{
			{Name: "uniform", Bytes: 7, Levels: []int{1}, Fitness: -1}, {Name: "dp", Bytes: 5, Levels: []int{0}, Fitness: 0.4, InOrder: &other},
		},
	}}
	v := newSearchView(s)
	if !v.InOrder || len(v.Methods) != 2 || *v.Methods[0].InOrder != nearest || *v.Methods[1].InOrder != other {
		t.Errorf("methods %+v", v.Methods)
	}
	var page bytes.Buffer
	if err := HTML(&page, &record.Run{Version: record.Version, Search: s}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"In order", "0.1250", "0.2500"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}
