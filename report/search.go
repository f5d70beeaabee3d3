package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/record"
)

// mostPoints is how many evaluations, or generations of a line, a chart draws at most.
const mostPoints = 1500

// searchView is the section on the search.
type searchView struct {
	*record.Search
	Genes    []geneRow
	Result   *record.SearchResult // what the model has; nil where the record does not say
	Sentence string
	Methods  []methodRow // of Result
	Names    []string    // of baselines, in all results
	Sizes    []sizeRow   // of all results, where they are several
	Front    frontChart
	Progress progressChart
	Levels   levelChart
	LeftOut  int // levels
	// Uniform says that the baseline of one level for all has levels to compare with.
	Uniform bool

	Evaluations, Generations int

	InOrder bool // finalists were compressed in the order of the data
}

// newSearchView returns nil where no search was made.
func newSearchView(s *record.Search) *searchView {
	if s == nil {
		return nil
	}
	v := &searchView{Search: s}
	if s.Chosen >= 0 && s.Chosen < len(s.Results) {
		v.Result = &s.Results[s.Chosen]
	}
	for _, r := range s.Results {
		v.Evaluations += len(r.Evaluations)
		v.Generations = max(v.Generations, lastGeneration(r))
		for _, b := range r.Baselines {
			if !slices.Contains(v.Names, b.Name) {
				v.Names = append(v.Names, b.Name)
			}
		}
	}
	if len(s.Results) > 1 {
		v.Sizes = newSizeRows(v)
	}
	v.Genes = newGeneRows(s, v.Result)
	if v.Result != nil {
		v.Sentence = searchSentence(s, v.Result)
		v.Methods = newMethodRows(s, v.Result)
		v.InOrder = slices.ContainsFunc(v.Methods, func(row methodRow) bool { return row.InOrder != nil })
		v.Levels = newLevelChart(s, v.Genes)
		v.Uniform = v.Levels.Uniform != ""
	}
	for _, g := range s.Genes {
		for _, l := range g.Levels {
			if l.LeftOut != "" {
				v.LeftOut++
			}
		}
	}
	v.Front = newFrontChart(s)
	v.Progress = newProgressChart(s)
	return v
}

func lastGeneration(r record.SearchResult) int {
	last := 0
	for _, g := range r.Generations {
		last = max(last, g.Generation)
	}
	return last
}

// FitnessName says what the numbers of candidates are.
func (v *searchView) FitnessName() string { return fitnessName(v.Search) }

// Budget says how much of a size that was asked for is used, for the first screen.
func (v *searchView) Budget() string {
	if v.Result == nil || v.Result.Budget <= 0 {
		return ""
	}
	return "budget of the search " + count(v.Result.Budget) + " bytes, " + unused(*v.Result)
}

func fitnessName(s *record.Search) string {
	switch {
	case s.Fitness == "kl":
		return "KL divergence from the original"
	case s.Fitness == "topk-kl" && s.TopK > 0:
		return "KL divergence over the original's " + count(s.TopK) + " likeliest outputs"
	case s.Fitness == "topk-kl":
		return "KL divergence over the original's likeliest outputs"
	default:
		return cmp.Or(s.Fitness, "fitness")
	}
}

// methodNote says in plain words how a method chooses levels.
func methodNote(name string) string {
	switch name {
	case "evopress":
		return "EvoPress: random changes of levels, kept where the whole model measures no worse"
	case "uniform":
		return "one level for all, then raised in order while it fits"
	case "dp":
		return "dynamic programming: the least sum of the layers' own errors"
	case "greedy":
		return "the most error saved per byte, one step after another"
	case "random":
		return "levels drawn at random within the budget"
	default:
		return ""
	}
}

// unused says which share of the budget a result leaves, or that it leaves none.
func unused(r record.SearchResult) string {
	switch {
	case r.Bytes > r.Budget:
		return percent(float64(r.Bytes)/float64(r.Budget)-1) + " over it"
	case r.Bytes == r.Budget:
		return "all used"
	}
	return percent(1-share(r.Bytes, r.Budget)) + " unused"
}

// searchSentence says what was asked and what was found.
func searchSentence(s *record.Search, r *record.SearchResult) string {
	var b strings.Builder
	asked := cmp.Or(r.Asked, count(r.Budget)+" bytes")
	if r.Budget > 0 {
		fmt.Fprintf(&b, "Asked for %s, found %s of %s bytes, %s.", asked, count(r.Bytes), count(r.Budget), unused(*r))
	} else {
		fmt.Fprintf(&b, "Asked for %s, found %s bytes.", asked, count(r.Bytes))
	}
	fmt.Fprintf(&b, " The %s is %s", fitnessName(s), fitness(r.Fitness))
	best, uniform := bestBaseline(r), uniformBaseline(r)
	if best != nil {
		b.WriteString(", " + against(r.Fitness, best.Fitness) + " of the best baseline (" + best.Name + ")")
	}
	if uniform != nil && uniform != best {
		b.WriteString(" and " + against(r.Fitness, uniform.Fitness) + " of uniform levels")
	}
	if best != nil {
		b.WriteString(", all on the same " + samples(r.Samples, s.Unit))
	} else {
		b.WriteString(", on " + samples(r.Samples, s.Unit))
	}
	return b.String() + "."
}

func samples(n int, unit string) string {
	return count(n) + " " + cmp.Or(unit, "samples")
}

// against compares a fitness with another, such as "1.42× below the 0.0175".
func against(own, other float64) string {
	is := " the " + fitness(other)
	switch {
	case own == other:
		return "the same as" + is
	case own <= 0 || other <= 0: // no factor
		if own < other {
			return "below" + is
		}
		return "above" + is
	case own < other:
		return times(other/own) + " below" + is
	default:
		return times(own/other) + " above" + is
	}
}

func bestBaseline(r *record.SearchResult) *record.SearchBaseline {
	var best *record.SearchBaseline
	for i := range r.Baselines {
		if b := &r.Baselines[i]; runs(b) && (best == nil || b.Fitness < best.Fitness) {
			best = b
		}
	}
	return best
}

// runs reports whether a baseline's model can run.
func runs(b *record.SearchBaseline) bool { return b.Fitness != -1 }

func uniformBaseline(r *record.SearchResult) *record.SearchBaseline {
	return baseline(r, "uniform")
}

func baseline(r *record.SearchResult, name string) *record.SearchBaseline {
	for i := range r.Baselines {
		if r.Baselines[i].Name == name {
			return &r.Baselines[i]
		}
	}
	return nil
}

// methodRow is the result, or a baseline beside it.
type methodRow struct {
	Name, Note string
	Mark       mark
	Bytes      int64
	Fitness    float64
	InOrder    *float64
	Bar        px      // of the fitness, in percent of the highest
	Factor     float64 // uniform's fitness over this; 0 where there is none
	Result     bool
	Best       bool // no fitness is lower
}

func newMethodRows(s *record.Search, r *record.SearchResult) []methodRow {
	rows := []methodRow{{Name: "result", Note: methodNote(s.Method), Mark: resultMark(10, 8), Bytes: r.Bytes, Fitness: r.Fitness, InOrder: r.InOrder, Result: true}}
	for _, b := range r.Baselines {
		if !runs(&b) {
			continue
		}
		rows = append(rows, methodRow{Name: b.Name, Note: methodNote(b.Name), Mark: baselineMark(b.Name, 10, 8), Bytes: b.Bytes, Fitness: b.Fitness, InOrder: b.InOrder})
	}
	lowest, highest := rows[0].Fitness, rows[0].Fitness
	for _, row := range rows {
		lowest, highest = min(lowest, row.Fitness), max(highest, row.Fitness)
	}
	for i := range rows {
		row := &rows[i]
		row.Factor = overUniform(r, row.Fitness)
		row.Bar = px(100 * share(row.Fitness, highest))
		row.Best = row.Fitness == lowest
	}
	return rows
}

// overUniform returns how many times a fitness goes into uniform's; 0 where one of
// them is no positive number.
func overUniform(r *record.SearchResult, fitness float64) float64 {
	if u := uniformBaseline(r); u != nil && u.Fitness > 0 && fitness > 0 {
		return u.Fitness / fitness
	}
	return 0
}

// sizeRow is one of several results.
type sizeRow struct {
	*record.SearchResult
	Chosen    bool
	Unused    string
	Factor    float64  // as a methodRow's
	Baselines []string // fitness, in the order of searchView.Names
}

func newSizeRows(v *searchView) []sizeRow {
	var rows []sizeRow
	for i := range v.Results {
		r := &v.Results[i]
		row := sizeRow{SearchResult: r, Chosen: i == v.Chosen, Unused: unknown, Factor: overUniform(r, r.Fitness)}
		if r.Budget > 0 {
			row.Unused = unused(*r)
		}
		for _, name := range v.Names {
			text := unknown
			if b := baseline(r, name); b != nil && runs(b) {
				text = fitness(b.Fitness)
			}
			row.Baselines = append(row.Baselines, text)
		}
		rows = append(rows, row)
	}
	return rows
}

// geneRow is what a gene was given.
type geneRow struct {
	record.SearchGene
	Index   int // from 1, in the model's order
	Level   *record.SearchLevel
	Uniform *record.SearchLevel // what the baseline of that name gave it
	LeftOut []record.SearchLevel
}

func newGeneRows(s *record.Search, r *record.SearchResult) []geneRow {
	var chosen, uniform []int
	if r != nil {
		chosen = r.Levels
		if u := uniformBaseline(r); u != nil {
			uniform = u.Levels
		}
	}
	rows := make([]geneRow, len(s.Genes))
	for i, g := range s.Genes {
		rows[i] = geneRow{SearchGene: g, Index: i + 1, Level: levelOf(g, chosen, i), Uniform: levelOf(g, uniform, i)}
		for _, l := range g.Levels {
			if l.LeftOut != "" {
				rows[i].LeftOut = append(rows[i].LeftOut, l)
			}
		}
	}
	return rows
}

// levelOf returns the level that a choice by gene has for the i-th; nil where it has
// none.
func levelOf(g record.SearchGene, levels []int, i int) *record.SearchLevel {
	if i >= len(levels) || levels[i] < 0 || levels[i] >= len(g.Levels) {
		return nil
	}
	return &g.Levels[levels[i]]
}

// withoutEvaluations returns the run for embedding: a long search's evaluations would
// make up nearly all of the page.
func withoutEvaluations(run *record.Run) *record.Run {
	short, search := *run, *run.Search
	search.Results = slices.Clone(search.Results)
	for i := range search.Results {
		search.Results[i].Evaluations = nil
	}
	short.Search = &search
	return &short
}
