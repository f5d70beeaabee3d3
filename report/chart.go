package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// px is a length or a place in a drawing. It prints with two digits at most,
// and never as something that is no number.
type px float64

func (p px) String() string {
	x := math.Round(100*float64(p)) / 100
	if math.IsNaN(x) || math.IsInf(x, 0) {
		x = 0
	}
	return strconv.FormatFloat(x, 'f', -1, 64)
}

// treemap shows bytes as areas. Places are in percent of the drawing, so that
// text keeps its size on any screen.
type treemap struct {
	Cells   []cell
	Summary string // for those who do not see it
}

type cell struct {
	X, Y, W, H px
	Class      string
	Label      string // empty where there is no room
	Size       string // likewise
	Title      string
	bytes      int64
}

// The size in pixels that a treemap is laid out for: half a page. On narrow
// screens the style makes its letters smaller.
const treemapWidth, treemapHeight = 560, 280

// newTreemaps returns the bytes of layers, of all kept tensors together, and
// of the rest, before and after.
func newTreemaps(p *page) (before, after treemap) {
	names := make([]string, len(p.Layers))
	for i, l := range p.Layers {
		names[i] = l.Name
	}
	names = shortNames(names)
	var b, a []cell
	for i, l := range p.Layers {
		c := cell{Class: precisionClass(l.Layer), Label: names[i], Title: l.Name}
		b = append(b, c.of(l.SourceBytes))
		a = append(a, c.of(l.Bytes))
	}
	kept, restBefore, restAfter := remainders(p.Run)
	k := cell{Class: "kept", Label: "kept", Title: plural(len(p.Run.Kept), "kept tensor", "kept tensors")}
	r := cell{Class: "rest", Label: "headers", Title: "headers and the rest of the file"}
	gone := cell{Class: "removed", Label: "removed", Title: "removed"}
	return newTreemap(append(b, k.of(kept), gone.of(p.Run.RemovedBytes), r.of(restBefore))), newTreemap(append(a, k.of(kept), r.of(restAfter)))
}

func (c cell) of(bytes int64) cell {
	c.bytes = bytes
	return c
}

// newTreemap places the cells. Those without bytes are left out.
func newTreemap(cells []cell) treemap {
	cells = slices.DeleteFunc(cells, func(c cell) bool { return c.bytes <= 0 })
	slices.SortStableFunc(cells, func(a, b cell) int { return cmp.Compare(b.bytes, a.bytes) })
	total := 0.0
	for _, c := range cells {
		total += float64(c.bytes)
	}
	areas := make([]float64, len(cells))
	for i, c := range cells {
		areas[i] = float64(c.bytes) / total * treemapWidth * treemapHeight
	}
	var largest []string
	for i, r := range squarify(areas, rect{0, 0, treemapWidth, treemapHeight}) {
		c := &cells[i]
		c.X, c.W = px(100*r.x/treemapWidth), px(100*r.w/treemapWidth)
		c.Y, c.H = px(100*r.y/treemapHeight), px(100*r.h/treemapHeight)
		c.Title += fmt.Sprintf(": %s, %s", size(c.bytes), percent(float64(c.bytes)/total))
		if i < 3 {
			largest = append(largest, c.Title)
		}
		c.label(r)
	}
	summary := "Nothing to show."
	if len(cells) > 0 {
		summary = "Largest: " + strings.Join(largest, "; ") + ". The table of layers lists every one."
	}
	return treemap{cells, summary}
}

// label decides what of the cell's texts fits.
func (c *cell) label(r rect) {
	const letter, line, padding, readable = 6, 14, 5, 11
	room := int((r.w - 2*padding) / letter)
	if room < min(readable, len([]rune(abbreviate(c.Label)))) || r.h < line+padding {
		c.Label = ""
		return
	}
	c.Label = fit(c.Label, room)
	if s := size(c.bytes); r.h >= 2*line+padding && len([]rune(s)) <= room {
		c.Size = s
	}
}

type rect struct{ x, y, w, h float64 }

// squarify cuts the box into one rectangle for each area, largest first, and
// keeps them close to squares (Bruls, Huizing and van Wijk, "Squarified
// Treemaps", 2000, section 3). The areas add up to the box's.
func squarify(areas []float64, box rect) []rect {
	out := make([]rect, 0, len(areas))
	for len(areas) > 0 {
		side := min(box.w, box.h)
		if side <= 0 { // rounding has eaten the rest of the box
			return append(out, make([]rect, len(areas))...)
		}
		n, sum := 1, areas[0]
		for n < len(areas) && worstAspect(areas[0], areas[n], sum+areas[n], side) <= worstAspect(areas[0], areas[n-1], sum, side) {
			sum += areas[n]
			n++
		}
		depth := min(sum/side, max(box.w, box.h))
		at := 0.0
		for _, a := range areas[:n] {
			length := side * a / sum
			if box.w >= box.h {
				out = append(out, rect{box.x, box.y + at, depth, length})
			} else {
				out = append(out, rect{box.x + at, box.y, length, depth})
			}
			at += length
		}
		if box.w >= box.h {
			box.x, box.w = box.x+depth, box.w-depth
		} else {
			box.y, box.h = box.y+depth, box.h-depth
		}
		areas = areas[n:]
	}
	return out
}

// worstAspect returns the largest ratio of sides in a row of rectangles along
// a side, from the largest and the smallest area in it and their sum.
func worstAspect(largest, smallest, sum, side float64) float64 {
	return max(side*side*largest/(sum*sum), sum*sum/(side*side*smallest))
}

// depthChart shows relative errors in the order of the data, on a logarithmic
// scale, and under them each layer's precision and sparsity. Where no error was
// measured its plot has no height.
type depthChart struct {
	Width, Height            px
	Left, Right, Top, Bottom px // of the plot
	StripY                   px // of the strip of bit widths
	SparsityY, SparsityH     px // of the bars of sparsity; no height where nothing is pruned
	LabelY                   px
	Ticks                    []tick
	Points                   []depthPoint
	Solved, Nearest          []string    // points of lines; a gap starts a new one
	Blocks                   []blockMark // empty where the labels tell enough, or names tell no blocks
	Ends                     []lineEnd   // where each sort of layer has its own line
	Radius                   px
	Many                     bool // marks and lines are thin
	Summary                  string
}

type tick struct {
	Y     px
	Label string
	Minor bool
}

type depthPoint struct {
	X, Column, ColumnWidth px
	Y, NearestY            px
	HasSolved, HasNearest  bool
	Zero                   bool // the error is 0, which has no place on the scale
	Class                  string
	SparsityY, SparsityH   px     // of the layer's bar
	Label                  string // under the axis; empty where there is no room
	Title                  string
}

// lineEnd is the name of a line at its right end.
type lineEnd struct {
	Y            px
	Label        string
	FromX, FromY px   // what is named, where a thin line leads to it
	Strong       bool // it is the one that counts
}

// LeaderY is the middle of the letters.
func (e lineEnd) LeaderY() px { return e.Y - 4 }

// blockMark is a block of a deep model under the axis.
type blockMark struct {
	X, LabelX px // of its left edge and its middle
	Label     string
}

const (
	depthWidth  = 1160
	depthLeft   = 52
	depthPlot   = 230 // height
	depthTop    = 10
	depthStrip  = 9   // height of the strip of bit widths
	depthBars   = 36  // height of a sparsity of 1
	namedLayers = 30  // more layers are numbered, not named
	manyLayers  = 120 // more layers have small marks, and lines by their sort
	endWidth    = 100 // of the names of lines
	mostSorts   = 16  // more sorts of layers have one line in the order of the data
)

func newDepthChart(layers []layerRow, has columns) depthChart {
	lo, hi := errorDecades(layers)
	c := depthChart{
		Width: depthWidth, Left: depthLeft, Right: depthWidth - 14,
		Top: depthTop, Bottom: depthTop,
		Radius: 3.2,
	}
	if has.Error {
		c.Bottom, c.Ticks = depthTop+depthPlot, newTicks(lo, hi)
	}
	c.StripY = c.Bottom + 4
	c.SparsityY = c.StripY + depthStrip
	if has.Pruned {
		c.SparsityY, c.SparsityH = c.SparsityY+6, depthBars
	}
	c.LabelY = c.SparsityY + c.SparsityH + 15
	c.Height = c.LabelY + 12
	named := len(layers) <= namedLayers
	names := make([]string, len(layers))
	for i, l := range layers {
		names[i] = l.Name
	}
	var blocks []int
	if !named {
		blocks = blockNumbers(names)
	}
	sorts := [][]int{nil} // layers that a line joins
	for i := range layers {
		sorts[0] = append(sorts[0], i)
	}
	if c.Many = len(layers) > manyLayers; c.Many {
		c.Radius = 1.6
		if s := sortLayers(names, blocks); s != nil {
			sorts, c.Right = s, depthWidth-endWidth
		}
	}
	width := (c.Right - c.Left) / px(max(1, len(layers)))
	c.Blocks = newBlocks(blocks, c.Left, width)
	names = shortNames(names)
	step := labelStep(len(layers))
	for i, l := range layers {
		p := depthPoint{
			X: c.Left + (px(i)+0.5)*width, Column: c.Left + px(i)*width, ColumnWidth: width,
			Class: precisionClass(l.Layer),
			Title: fmt.Sprintf("%d. %s, %s: error %s, nearest %s", l.Index, l.Name,
				l.Precision(), relative(l.RelativeError), relative(l.NearestRelativeError)),
		}
		if l.Prune != nil {
			p.SparsityH = c.SparsityH * px(share(l.Prune.Sparsity, 1))
			p.SparsityY = c.SparsityY + c.SparsityH - p.SparsityH
			p.Title += "; sparsity " + percent(l.Prune.Sparsity)
		}
		if p.HasSolved = l.RelativeError != nil; p.HasSolved {
			p.Y, p.Zero = depthY(*l.RelativeError, lo, hi), *l.RelativeError <= 0
		}
		if p.HasNearest = l.NearestRelativeError != nil; p.HasNearest {
			p.NearestY = depthY(*l.NearestRelativeError, lo, hi)
		}
		if named {
			p.Label = fit(names[i], 20)
			// The letters are 6 wide and the labels drawn at 45 degrees.
			c.Height = max(c.Height, c.LabelY+px(4.3*float64(len([]rune(p.Label))))+8)
		} else if len(c.Blocks) == 0 && (l.Index == 1 || l.Index%step == 0) {
			p.Label = strconv.Itoa(l.Index)
		}
		c.Points = append(c.Points, p)
	}
	for _, sort := range sorts {
		points := make([]depthPoint, len(sort))
		for i, layer := range sort {
			points[i] = c.Points[layer]
		}
		c.Solved = append(c.Solved, lines(points, func(p depthPoint) (px, bool) { return p.Y, p.HasSolved })...)
		c.Nearest = append(c.Nearest, lines(points, func(p depthPoint) (px, bool) { return p.NearestY, p.HasNearest })...)
		if n := len(points); len(sorts) > 1 && n > 1 && points[n-1].HasSolved {
			c.Ends = append(c.Ends, lineEnd{Y: points[n-1].Y, Label: clip(lastPart(layers[sort[n-1]].Name), 14)})
		}
	}
	spreadEnds(c.Ends, c.Bottom)
	c.Summary = depthSummary(layers)
	return c
}

// Named says whether labels are names, which are drawn slanted.
func (c depthChart) Named() bool { return len(c.Points) <= namedLayers }

// EndX is where names of lines start.
func (c depthChart) EndX() px { return c.Right + 6 }

// TickX is where labels of the scale end.
func (c depthChart) TickX() px { return c.Left - 6 }

// ColumnHeight is the height of the plot and the strips under it.
func (c depthChart) ColumnHeight() px { return c.SparsityY + c.SparsityH - c.Top }

// PlotWidth is the width of all columns together.
func (c depthChart) PlotWidth() px { return c.Right - c.Left }

// SparsityLabelY is the baseline of the name of the bars of sparsity.
func (c depthChart) SparsityLabelY() px { return c.SparsityY + c.SparsityH/2 + 4 }

// LabelY is the baseline of the tick's label.
func (t tick) LabelY() px { return t.Y + 4 }

// Triangle draws the mark of an error of 0, which points at the edge below.
func (p depthPoint) Triangle() string {
	return fmt.Sprintf("M%s %sh8l-4 8z", p.X-4, p.Y-8)
}

// errorDecades returns the powers of ten that hold every positive error.
func errorDecades(layers []layerRow) (lo, hi int) {
	smallest, largest := math.Inf(1), 0.0
	for _, l := range layers {
		for _, e := range []*float64{l.RelativeError, l.NearestRelativeError} {
			if e != nil && *e > 0 {
				smallest, largest = min(smallest, *e), max(largest, *e)
			}
		}
	}
	if largest == 0 {
		return -3, 0
	}
	lo, hi = int(math.Floor(math.Log10(smallest))), int(math.Ceil(math.Log10(largest)))
	return lo, max(hi, lo+1)
}

// depthY returns the height of an error; those of 0 lie on the bottom edge.
func depthY(e float64, lo, hi int) px {
	if e <= 0 {
		return depthTop + depthPlot
	}
	return px(depthTop + depthPlot*(float64(hi)-math.Log10(e))/float64(hi-lo))
}

// newTicks returns a tick for each power of ten, fewer where they would crowd,
// and ticks at 2 and 5 where there is room.
func newTicks(lo, hi int) []tick {
	step := (hi-lo)/8 + 1
	var ticks []tick
	for e := lo; e <= hi; e += step {
		value := math.Pow10(e)
		ticks = append(ticks, tick{Y: depthY(value, lo, hi), Label: powerLabel(e)})
		if e == hi || hi-lo > 3 {
			continue
		}
		for _, m := range []float64{2, 5} {
			ticks = append(ticks, tick{Y: depthY(m*value, lo, hi), Minor: true})
		}
	}
	return ticks
}

// powerLabel writes a power of ten.
func powerLabel(e int) string {
	if e == 0 {
		return "1"
	}
	superscript := strings.NewReplacer("-", "⁻", "0", "⁰", "1", "¹", "2", "²", "3", "³", "4", "⁴",
		"5", "⁵", "6", "⁶", "7", "⁷", "8", "⁸", "9", "⁹")
	return "10" + superscript.Replace(strconv.Itoa(e))
}

// sortLayers groups the layers of deep models by what their names say after
// the block's number: one line through all layers that there are would go up
// and down within each block. It returns nil where blocks are not known or the
// sorts are too many, as with experts.
func sortLayers(names []string, blocks []int) [][]int {
	if blocks == nil {
		return nil
	}
	at := map[string]int{}
	var sorts [][]int
	for i, name := range names {
		if prefix, b := blockOf(name); b >= 0 {
			_, name, _ = strings.Cut(name[len(prefix):], ".")
			name = "." + name // apart from layers outside of blocks
		}
		sort, ok := at[name]
		if !ok {
			sort = len(sorts)
			at[name] = sort
			sorts = append(sorts, nil)
		}
		sorts[sort] = append(sorts[sort], i)
	}
	if len(sorts) > mostSorts {
		return nil
	}
	return sorts
}

// spreadEnds moves names of lines apart, so that none lies on another, and
// leaves them in order from the highest to the lowest, above the bottom.
func spreadEnds(ends []lineEnd, bottom px) {
	const line = 12
	slices.SortStableFunc(ends, func(a, b lineEnd) int { return cmp.Compare(a.Y, b.Y) })
	for i := range ends {
		ends[i].Y += 4 // from the middle of the letters to their baseline
		if i > 0 {
			ends[i].Y = max(ends[i].Y, ends[i-1].Y+line)
		}
	}
	for i := range ends {
		lowest := bottom - px(line*(len(ends)-1-i))
		ends[i].Y = min(ends[i].Y, lowest)
	}
}

// newBlocks marks the layers' blocks, every few where there are many. Columns
// have the given width and start at left.
func newBlocks(blocks []int, left, width px) []blockMark {
	var starts []int // layers that open a block
	for i, b := range blocks {
		if b >= 0 && (i == 0 || blocks[i-1] != b) {
			starts = append(starts, i)
		}
	}
	step := labelStep(len(starts))
	var marks []blockMark
	for _, first := range starts {
		b, end := blocks[first], first+1
		for end < len(blocks) && blocks[end] == b {
			end++
		}
		if b%step == 0 {
			x := left + px(first)*width
			marks = append(marks, blockMark{X: x, LabelX: x + px(end-first)*width/2, Label: strconv.Itoa(b)})
		}
	}
	return marks
}

// blockNumbers returns the block of each layer: the first part of its name that
// is a number, such as 3 of model.layers.3.mlp.up_proj, or −1 for a layer such
// as lm_head. It returns nil where these are no blocks in their order: where
// what stands before the number differs, a number falls, or few share one.
func blockNumbers(names []string) []int {
	blocks := make([]int, len(names))
	prefix, last := "", -1
	count, inside := 0, 0
	for i, name := range names {
		p, b := blockOf(name)
		blocks[i] = b
		if b < 0 {
			continue
		}
		if inside > 0 && (p != prefix || b < last) {
			return nil
		}
		if b != last {
			count++
		}
		prefix, last = p, b
		inside++
	}
	if count < 2 || inside < 2*count {
		return nil
	}
	return blocks
}

// blockOf returns the first part of a name that is a number, and what stands
// before it; −1 where there is none.
func blockOf(name string) (prefix string, block int) {
	at := 0
	for part := range strings.SplitSeq(name, ".") {
		if n, err := strconv.Atoi(part); err == nil && isNumber(part) {
			return name[:at], n
		}
		at += len(part) + 1
	}
	return "", -1
}

// labelStep returns every how many layers a number stands under the axis.
func labelStep(layers int) int {
	for step := 1; ; step *= 10 {
		for _, m := range []int{1, 2, 5} {
			if layers <= 30*step*m {
				return step * m
			}
		}
	}
}

// lines joins neighbouring points that have a height.
func lines(points []depthPoint, height func(depthPoint) (px, bool)) []string {
	var out []string
	var line []string
	flush := func() {
		if len(line) > 1 {
			out = append(out, strings.Join(line, " "))
		}
		line = nil
	}
	for _, p := range points {
		y, ok := height(p)
		if !ok {
			flush()
			continue
		}
		line = append(line, p.X.String()+","+y.String())
	}
	flush()
	return out
}

// depthSummary says in words what the chart shows.
func depthSummary(layers []layerRow) string {
	measured, compared, lower := 0, 0, 0
	var best, worst *layerRow
	for i := range layers {
		l := &layers[i]
		if l.RelativeError == nil {
			continue
		}
		measured++
		if l.NearestRelativeError != nil {
			compared++
			if *l.RelativeError < *l.NearestRelativeError {
				lower++
			}
		}
		if best == nil || *l.RelativeError < *best.RelativeError {
			best = l
		}
		if worst == nil || *l.RelativeError > *worst.RelativeError {
			worst = l
		}
	}
	if measured == 0 {
		return "No layer's error was measured." + sparsitySummary(layers)
	}
	s := fmt.Sprintf("Relative error of %s in the order of the data, logarithmic scale: from %s (%s) to %s (%s)",
		plural(measured, "layer", "layers"), relative(best.RelativeError), best.Name,
		relative(worst.RelativeError), worst.Name)
	switch {
	case compared == measured:
		s += fmt.Sprintf(", below that of nearest rounding in %s of them", count(lower))
	case compared > 0:
		s += fmt.Sprintf(", below that of nearest rounding in %s of %s with one", count(lower), count(compared))
	}
	return s + "." + sparsitySummary(layers)
}

// sparsitySummary says in a sentence what the bars of sparsity show; nothing
// where no layer is pruned.
func sparsitySummary(layers []layerRow) string {
	n, lo, hi := 0, math.Inf(1), math.Inf(-1)
	for _, l := range layers {
		if l.Prune != nil {
			n++
			lo, hi = min(lo, l.Prune.Sparsity), max(hi, l.Prune.Sparsity)
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" Sparsity of %s: from %s to %s.", plural(n, "pruned layer", "pruned layers"), percent(lo), percent(hi))
}
