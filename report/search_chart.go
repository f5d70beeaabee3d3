package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/fettle-dev/fettle/record"
)

// plot is the frame of a chart of half a page.
type plot struct {
	Width, Height            px
	Left, Right, Top, Bottom px
	XTicks, YTicks           []axisTick
	XLabelY                  px
	Ends                     []lineEnd
	Summary                  string // for those who do not see it
}

func newPlot() plot {
	return plot{Width: 600, Height: 320, Left: 66, Right: 508, Top: 27, Bottom: 278, XLabelY: 294}
}

// TickX is where labels of the upright scale end, and EndX where names start.
func (p plot) TickX() px   { return p.Left - 6 }
func (p plot) EndX() px    { return p.Right + 10 }
func (p plot) LeaderX() px { return p.Right + 7 }
func (p plot) MiddleX() px { return (p.Left + p.Right) / 2 }
func (p plot) TitleY() px  { return p.XLabelY + 16 }

// LabelY is the baseline of the label of an upright scale's tick.
func (t axisTick) LabelY() px { return t.At + 4 }

// frontChart shows what was tried and found: bytes to the right, fitness upwards.
type frontChart struct {
	plot
	Cloud     string // a path of points: evaluations
	Drawn     int    // points of it
	Of        int    // evaluations that could be drawn
	Rest      int    // others: on fewer samples, or stopped early
	Most      []int  // samples that those drawn were measured on
	Budgets   []budgetMark
	Lines     []markLine
	Marks     []mark
	Log, Zero bool // Zero: some fitness of 0 has no place on the logarithmic scale
}

// budgetMark is a size that was asked for.
type budgetMark struct {
	X     px
	Label string // empty where there is no room
	Title string
}

// markLine joins one method's marks over several sizes.
type markLine struct{ Class, Points string }

// mark is a result or a baseline.
type mark struct {
	X, Y  px
	Class string
	Path  string // the shape, around X and Y
	Title string
}

func resultMark(x, y px) mark {
	return mark{X: x, Y: y, Class: "solved", Path: fmt.Sprintf("M%s %sa5 5 0 1 0 10 0a5 5 0 1 0 -10 0z", x-5, y)}
}

// baselineMark has a shape for each baseline, so that colours alone tell nothing.
func baselineMark(name string, x, y px) mark {
	m := mark{X: x, Y: y, Class: "baseline"}
	switch name {
	case "uniform":
		m.Path = fmt.Sprintf("M%s %sh9v9h-9z", x-4.5, y-4.5)
	case "dp":
		m.Path = fmt.Sprintf("M%s %sl6 6l-6 6l-6 -6z", x, y-6)
	case "greedy":
		m.Path = fmt.Sprintf("M%s %sl6 10h-12z", x, y-6)
	default:
		m.Path = fmt.Sprintf("M%s %sl8 8m0 -8l-8 8", x-4, y-4)
	}
	return m
}

// finished returns the result's evaluations on the most samples that were run to
// their end.
func finished(r record.SearchResult) (evaluations []record.SearchEvaluation, samples int) {
	for _, e := range r.Evaluations {
		if stopped(e.Fitness) || e.Samples < samples {
			continue
		}
		if e.Samples > samples {
			evaluations, samples = evaluations[:0], e.Samples
		}
		evaluations = append(evaluations, e)
	}
	return evaluations, samples
}

// stopped says that a fitness was not measured.
func stopped(fitness float64) bool { return fitness == -1 }

// thinOut returns at most n of the elements, evenly spread, with the first and the last.
func thinOut[T any](all []T, n int) []T {
	if len(all) <= n {
		return all
	}
	some := make([]T, n)
	for i := range some {
		some[i] = all[i*(len(all)-1)/(n-1)]
	}
	return some
}

func newFrontChart(s *record.Search) frontChart {
	c := frontChart{plot: newPlot()}
	var evaluations []record.SearchEvaluation
	total := 0
	for _, r := range s.Results {
		e, most := finished(r)
		evaluations = append(evaluations, e...)
		if len(e) > 0 && !slices.Contains(c.Most, most) {
			c.Most = append(c.Most, most)
		}
		total += len(r.Evaluations)
	}
	c.Of, c.Rest = len(evaluations), total-len(evaluations)
	evaluations = thinOut(evaluations, mostPoints)
	c.Drawn = len(evaluations)

	var bytes []int64
	var values []float64
	for _, e := range evaluations {
		bytes, values = append(bytes, e.Bytes), append(values, e.Fitness)
	}
	for _, r := range s.Results {
		bytes, values = append(bytes, r.Bytes), append(values, r.Fitness)
		if r.Budget > 0 {
			bytes = append(bytes, r.Budget)
		}
		for _, b := range r.Baselines {
			if !runs(&b) {
				continue
			}
			bytes, values = append(bytes, b.Bytes), append(values, b.Fitness)
		}
	}
	x, ticks := newBytesAxis(bytes, c.Left, c.Right)
	y := newAxis(values, c.Bottom, c.Top)
	c.XTicks, c.YTicks, c.Log = ticks, y.ticks(), y.log
	for _, v := range values {
		c.Zero = c.Zero || y.log && v <= 0
	}
	var cloud strings.Builder
	for _, e := range evaluations {
		fmt.Fprintf(&cloud, "M%s %sh0", tenth(x.at(float64(e.Bytes))), tenth(y.at(e.Fitness)))
	}
	c.Cloud = cloud.String()
	c.Budgets = newBudgetMarks(s, x)
	c.mark(s, x, y)
	spreadEnds(c.Ends, c.Bottom)
	c.Summary = frontSummary(s)
	return c
}

// tenth rounds a place so that many of them stay short.
func tenth(p px) px { return px(math.Round(10*float64(p)) / 10) }

// newBudgetMarks labels the budgets from the left while labels have room.
func newBudgetMarks(s *record.Search, x axis) []budgetMark {
	var marks []budgetMark
	for _, r := range s.Results {
		if r.Budget > 0 {
			marks = append(marks, budgetMark{
				X: x.at(float64(r.Budget)), Label: clip(cmp.Or(r.Asked, size(r.Budget)), 14),
				Title: "budget: " + count(r.Budget) + " bytes",
			})
		}
	}
	if len(marks) == 1 {
		marks[0].Label = "budget"
	}
	slices.SortStableFunc(marks, func(a, b budgetMark) int { return cmp.Compare(a.X, b.X) })
	free := px(0)
	for i := range marks {
		half := px(3*len([]rune(marks[i].Label)) + 4)
		if marks[i].X-half < free {
			marks[i].Label = ""
			continue
		}
		free = marks[i].X + half
	}
	return marks
}

// mark places results and baselines, joins those of one method over the sizes and
// names each method once, at its largest size.
func (c *frontChart) mark(s *record.Search, x, y axis) {
	type method struct {
		name  string
		marks []mark
	}
	methods := []method{{name: "result"}}
	add := func(name string, m mark, asked string, bytes int64, value float64) {
		m.Title = fmt.Sprintf("%s for %s: %s bytes, fitness %s", name, asked, count(bytes), fitness(value))
		for i := range methods {
			if methods[i].name == name {
				methods[i].marks = append(methods[i].marks, m)
				return
			}
		}
		methods = append(methods, method{name, []mark{m}})
	}
	for i, r := range s.Results {
		asked := cmp.Or(r.Asked, count(r.Budget)+" bytes")
		m := resultMark(x.at(float64(r.Bytes)), y.at(r.Fitness))
		if len(s.Results) > 1 && i != s.Chosen {
			m.Class = "other"
		}
		add("result", m, asked, r.Bytes, r.Fitness)
		for _, b := range r.Baselines {
			if !runs(&b) {
				continue
			}
			add(b.Name, baselineMark(b.Name, x.at(float64(b.Bytes)), y.at(b.Fitness)), asked, b.Bytes, b.Fitness)
		}
	}
	for _, m := range methods {
		if len(m.marks) == 0 {
			continue
		}
		slices.SortStableFunc(m.marks, func(a, b mark) int { return cmp.Compare(a.X, b.X) })
		last := m.marks[len(m.marks)-1]
		if len(c.Ends) < mostSorts {
			c.Ends = append(c.Ends, lineEnd{Y: last.Y, Label: clip(m.name, 12), FromX: last.X, FromY: last.Y, Strong: m.name == "result"})
		}
		if len(m.marks) > 1 {
			class := "baseline"
			if m.name == "result" {
				class = "solved"
			}
			c.Lines = append(c.Lines, markLine{class, points(m.marks)})
		}
	}
	// The results last, over all else.
	for _, m := range slices.Backward(methods) {
		c.Marks = append(c.Marks, m.marks...)
	}
}

func points(marks []mark) string {
	parts := make([]string, len(marks))
	for i, m := range marks {
		parts[i] = m.X.String() + "," + m.Y.String()
	}
	return strings.Join(parts, " ")
}

func frontSummary(s *record.Search) string {
	if len(s.Results) == 0 {
		return "The search has no result."
	}
	var parts []string
	for _, r := range thinOut(s.Results, 6) {
		parts = append(parts, fmt.Sprintf("%s bytes with fitness %s", count(r.Bytes), fitness(r.Fitness)))
	}
	return "Fitness over bytes of the weight files: " + strings.Join(parts, "; ") + ". The table above holds results and baselines."
}

// progressChart shows the parent's fitness by generation.
type progressChart struct {
	plot
	Lines     []progressLine
	Improved  []mark // in the chosen result's line
	Count     int    // generations of the chosen result in which it improved
	Log, Zero bool
	Thinned   bool // not every generation is drawn
}

// DotRadius is that of the dots, smaller where many lie side by side.
func (c progressChart) DotRadius() px {
	if len(c.Improved) > 60 {
		return 1.8
	}
	return 3
}

type progressLine struct {
	Points []string // of polylines; a generation without a measure is a gap
	Chosen bool
}

func newProgressChart(s *record.Search) progressChart {
	c := progressChart{plot: newPlot()}
	var values []float64
	last := 0
	for _, r := range s.Results {
		for _, g := range r.Generations {
			last = max(last, g.Generation)
			if !stopped(g.Fitness) {
				values = append(values, g.Fitness)
			}
		}
	}
	if len(values) == 0 {
		return c
	}
	x, ticks := newCountAxis(last, c.Left, c.Right)
	y := newAxis(values, c.Bottom, c.Top)
	c.XTicks, c.YTicks, c.Log = ticks, y.ticks(), y.log
	for _, v := range values {
		c.Zero = c.Zero || y.log && v <= 0
	}
	for i, r := range s.Results {
		c.addLine(r, i == s.Chosen, len(s.Results), x, y)
	}
	// The chosen one last, over all others.
	slices.SortStableFunc(c.Lines, func(a, b progressLine) int {
		return cmp.Compare(strconv.FormatBool(a.Chosen), strconv.FormatBool(b.Chosen))
	})
	spreadEnds(c.Ends, c.Bottom)
	c.Summary = progressSummary(s, c.Count)
	return c
}

func (c *progressChart) addLine(r record.SearchResult, chosen bool, results int, x, y axis) {
	generations := thinOut(r.Generations, mostPoints/results+2)
	c.Thinned = c.Thinned || len(generations) < len(r.Generations)
	all := make([]depthPoint, len(generations))
	end := lineEnd{Label: clip(cmp.Or(r.Asked, size(r.Budget)), 12), Strong: chosen}
	for i, g := range generations {
		p := &all[i]
		p.X, p.Y, p.HasSolved = x.at(float64(g.Generation)), y.at(g.Fitness), !stopped(g.Fitness)
		if !p.HasSolved {
			continue
		}
		end.FromX, end.FromY, end.Y = p.X, p.Y, p.Y
		if chosen && g.Improved {
			m := resultMark(p.X, p.Y)
			m.Title = fmt.Sprintf("generation %s: %s, %s bytes", count(g.Generation), fitness(g.Fitness), count(g.Bytes))
			c.Improved = append(c.Improved, m)
		}
	}
	if chosen {
		for _, g := range r.Generations {
			if g.Improved {
				c.Count++
			}
		}
	}
	c.Lines = append(c.Lines, progressLine{lines(all, func(p depthPoint) (px, bool) { return p.Y, p.HasSolved }), chosen})
	if results > 1 && end.FromX > 0 && (chosen || results <= mostSorts) {
		c.Ends = append(c.Ends, end)
	}
}

func progressSummary(s *record.Search, improved int) string {
	if s.Chosen < 0 || s.Chosen >= len(s.Results) {
		return "Fitness of the parent by generation."
	}
	measured := slices.DeleteFunc(slices.Clone(s.Results[s.Chosen].Generations), func(g record.SearchGeneration) bool { return stopped(g.Fitness) })
	if len(measured) == 0 {
		return "Fitness of the parent by generation; none of the result that was chosen."
	}
	first, last := measured[0], measured[len(measured)-1]
	return fmt.Sprintf("Fitness of the parent by generation, each on its own samples: %s in generation %s, %s in generation %s; it was replaced in %s.",
		fitness(first.Fitness), count(first.Generation), fitness(last.Fitness), count(last.Generation), plural(improved, "generation", "generations"))
}

// levelChart shows the level of each gene in the model's order, one bar each. Rows are
// levels, the cheapest at the bottom.
type levelChart struct {
	Width, Height            px
	Left, Right, Top, Bottom px
	LabelY                   px
	Rows                     []levelRow
	Bars                     []levelBar
	Uniform                  string // a path: the tops that bars of the uniform baseline would have
	Blocks                   []blockMark
	Summary                  string
}

type levelRow struct {
	Y, LineY px // baseline of the label, and upper edge
	Label    string
	Genes    int // that have the level
}

type levelBar struct {
	X, Y, W, H             px
	Column, ColumnW, Label px
	Name                   string // under the axis; empty where there is no room
	Title                  string
}

// Named says whether the labels of genes are names, which are drawn slanted.
func (c levelChart) Named() bool { return len(c.Bars) <= namedLayers }

// PlotHeight is that of a column, TickX where the names of levels end.
func (c levelChart) PlotHeight() px { return c.Bottom - c.Top }
func (c levelChart) TickX() px      { return c.Left - 6 }

const (
	levelRowHeight = 18
	levelLeft      = 124 // for names of 18 letters
	mostLevelRows  = 16  // more names are shares of the gene's largest level instead
)

func newLevelChart(s *record.Search, genes []geneRow) levelChart {
	c := levelChart{Width: depthWidth, Left: levelLeft, Right: depthWidth - 8, Top: 8}
	names := levelNames(s.Genes)
	byName := len(names) <= mostLevelRows
	if byName {
		for i, name := range names {
			row := levelRow{Label: clip(name, 18), LineY: c.Top + px(levelRowHeight*(len(names)-1-i))}
			row.Y = row.LineY + 13
			for _, g := range genes {
				if g.Level != nil && g.Level.Name == name {
					row.Genes++
				}
			}
			c.Rows = append(c.Rows, row)
		}
		c.Bottom = c.Top + px(levelRowHeight*max(1, len(names)))
	} else {
		c.Bottom = c.Top + 160
		for i, label := range []string{"25 %", "50 %", "75 %", "largest level"} {
			y := c.Bottom - px(40*(i+1))
			c.Rows = append(c.Rows, levelRow{Y: y + 4, LineY: y, Label: label})
		}
	}
	top := func(g geneRow, l *record.SearchLevel) px {
		if byName {
			return c.Bottom - px(levelRowHeight*(1+slices.Index(names, l.Name)))
		}
		return c.Bottom - (c.Bottom-c.Top)*px(byteShare(g.SearchGene, *l))
	}
	c.LabelY = c.Bottom + 15
	c.Height = c.LabelY + 12
	width := (c.Right - c.Left) / px(max(1, len(genes)))
	c.addBars(genes, width, top)
	c.Summary = levelSummary(c, byName, len(genes))
	return c
}

func (c *levelChart) addBars(genes []geneRow, width px, top func(geneRow, *record.SearchLevel) px) {
	labels := make([]string, len(genes))
	for i, g := range genes {
		labels[i] = g.Name
	}
	named := len(genes) <= namedLayers
	if !named {
		c.Blocks = newBlocks(blockNumbers(labels), c.Left, width)
	}
	labels = shortNames(labels)
	step := labelStep(len(genes))
	gap := min(2, width/5)
	var uniform strings.Builder
	for i, g := range genes {
		b := levelBar{X: c.Left + px(i)*width + gap/2, W: width - gap, Y: c.Bottom, Column: c.Left + px(i)*width, ColumnW: width}
		b.Label = b.Column + width/2
		b.Title = fmt.Sprintf("%s. %s: ", count(g.Index), g.Name)
		if g.Level != nil {
			b.Y = top(g, g.Level)
			b.H = c.Bottom - b.Y
			b.Title += g.Level.Name + ", " + count(g.Level.Bytes) + " bytes"
		} else {
			b.Title += "level not known"
		}
		if g.Uniform != nil {
			b.Title += "; uniform: " + g.Uniform.Name
			fmt.Fprintf(&uniform, "M%s %sh%s", tenth(b.Column), tenth(top(g, g.Uniform)), tenth(width))
		}
		if named {
			b.Name = fit(labels[i], 20)
			c.Height = max(c.Height, c.LabelY+px(4.3*float64(len([]rune(b.Name))))+8)
		} else if len(c.Blocks) == 0 && (g.Index == 1 || g.Index%step == 0) {
			b.Name = strconv.Itoa(g.Index)
		}
		c.Bars = append(c.Bars, b)
	}
	c.Uniform = uniform.String()
}

// levelNames returns the names of all levels from the cheapest to the dearest, by the
// mean over genes of their share of the gene's largest level.
func levelNames(genes []record.SearchGene) []string {
	type sum struct {
		name   string
		shares float64
		n      int
	}
	var sums []sum
	at := map[string]int{}
	for _, g := range genes {
		for _, l := range g.Levels {
			i, ok := at[l.Name]
			if !ok {
				i = len(sums)
				at[l.Name] = i
				sums = append(sums, sum{name: l.Name})
			}
			sums[i].shares += byteShare(g, l)
			sums[i].n++
		}
	}
	slices.SortStableFunc(sums, func(a, b sum) int {
		return cmp.Compare(a.shares/float64(a.n), b.shares/float64(b.n))
	})
	names := make([]string, len(sums))
	for i, s := range sums {
		names[i] = s.name
	}
	return names
}

// byteShare returns a level's bytes over those of the gene's largest.
func byteShare(g record.SearchGene, l record.SearchLevel) float64 {
	most := int64(0)
	for _, other := range g.Levels {
		most = max(most, other.Bytes)
	}
	return share(l.Bytes, most)
}

func levelSummary(c levelChart, byName bool, genes int) string {
	s := "Level of each of " + plural(genes, "gene", "genes") + " in the model's order"
	if byName {
		var parts []string
		for _, r := range c.Rows {
			if r.Genes > 0 {
				parts = append(parts, r.Label+" for "+count(r.Genes))
			}
		}
		if len(parts) > 0 {
			s += ": " + strings.Join(parts, ", ")
		}
	}
	return s + ". The table below lists every one."
}
