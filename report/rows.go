package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/record"
)

// topN is how many tensors the lists of the largest and the worst show.
const topN = 10

// sizes are the bytes of the whole model, before and after.
type sizes struct {
	Ratio   float64 // after over before; 0 where the source's size is not known
	Smaller float64 // before over after
	Bar     px      // after, in percent of the larger of the two
	BarOf   px      // before, likewise
}

func newSizes(run *record.Run) sizes {
	before, after := run.Source.Bytes, run.Output.WeightBytes
	larger := max(before, after)
	return sizes{
		Ratio:   ratio(float64(after), float64(before)),
		Smaller: ratio(float64(before), float64(after)),
		Bar:     px(100 * share(after, larger)),
		BarOf:   px(100 * share(before, larger)),
	}
}

// headline is the run in one line. Status is good, warn or plain, where plain
// says that nothing was measured which could be either.
type headline struct{ Text, Status string }

func newHeadline(p *page) headline {
	status := "good"
	var parts []string
	switch {
	case p.Size.Ratio == 0:
		parts, status = append(parts, "size not known"), "warn"
	case p.Size.Ratio < 1:
		parts = append(parts, times(p.Size.Smaller)+" smaller")
	default:
		parts, status = append(parts, "not smaller than the source"), "warn"
	}
	if removed := p.Run.RemovedBytes; removed > 0 {
		parts = append(parts, size(removed)+" of tensors removed")
	}
	if p.Has.Pruned {
		parts = append(parts, percent(p.Sparsity)+" of weights pruned")
	}
	switch e := p.Run.Evaluation; {
	case e != nil && e.Outputs != nil:
		parts, status = append(parts, outputsHeadline(e.Outputs)), worse(status, "plain")
	case e == nil && p.Language:
		parts, status = append(parts, "loss not measured"), worse(status, "plain")
	case e == nil:
		parts, status = append(parts, "accuracy not measured"), worse(status, "plain")
	case e.Language != nil:
		text, s := lossHeadline(e.Language)
		parts, status = append(parts, text), worse(status, s)
	case e.Tied:
		parts = append(parts, "top-1 tied with the original")
	case e.AccuracyDrop > 0:
		parts, status = append(parts, fixed(e.AccuracyDrop, 2)+" points of top-1 lost"), "warn"
	default:
		parts = append(parts, fixed(-e.AccuracyDrop, 2)+" points of top-1 gained")
	}
	if len(p.Fallbacks) == 0 {
		parts = append(parts, "no fallbacks")
	} else {
		parts, status = append(parts, plural(len(p.Fallbacks), "fallback", "fallbacks")), "warn"
	}
	if len(p.Layers) == 0 && len(p.Run.Removed) == 0 {
		parts, status = append(parts, "no layer compressed"), "warn"
	}
	return headline{strings.Join(parts, "; "), status}
}

func worse(a, b string) string {
	if a == "warn" {
		return a
	}
	return b
}

// layerRow is a layer in the table.
type layerRow struct {
	record.Layer
	Index   int     // from 1, in the order of the data
	Smaller float64 // bytes before over after
	Bar     px      // of the error, in percent of the worst layer's
}

// Precision is what the weights are, in words.
func (l layerRow) Precision() string { return precision(l.Layer) }

// DampingFigure is the damping as the template formats it.
func (l layerRow) DampingFigure() *float64 { return &l.Damping }

func newLayerRows(run *record.Run) []layerRow {
	rows := make([]layerRow, len(run.Layers))
	for i, l := range run.Layers {
		rows[i] = layerRow{Layer: l, Index: i + 1, Smaller: ratio(float64(l.SourceBytes), float64(l.Bytes))}
	}
	return rows
}

// uniform says in words of which sort all grids are and whether all targets
// are aligned, so that the table need not repeat it; nothing where the layers
// differ.
func uniform(p *page) string {
	if len(p.Layers) == 0 || p.Has.UnevenGrids || p.Has.UnevenAim {
		return ""
	}
	targets := "No target is aligned."
	if p.Layers[0].Aligned {
		targets = "All targets are aligned."
	}
	for _, l := range p.Layers {
		switch {
		case l.Bits == 0: // has no grid
		case l.Symmetric:
			return "All grids are symmetric. " + targets
		default:
			return "All grids are asymmetric. " + targets
		}
	}
	return targets
}

func totalRow(p *page) layerRow {
	var t layerRow
	for _, l := range p.Layers {
		t.Parameters += l.Parameters
		t.SourceBytes += l.SourceBytes
		t.Bytes += l.Bytes
		t.Seconds += l.Seconds
		if l.Compensate != nil {
			if t.Compensate == nil {
				t.Compensate = &record.Compensate{}
			}
			t.Compensate.Bytes += l.Compensate.Bytes
		}
	}
	if p.Has.Pruned {
		t.Prune = &record.Prune{Survivors: t.Parameters - p.PrunedWeights, Sparsity: p.Sparsity}
	}
	t.Smaller = ratio(float64(t.SourceBytes), float64(t.Bytes))
	return t
}

type fallbackRow struct {
	record.Fallback
	Layer string
}

// groupRow is what all layers of one precision weigh, or the kept tensors, or
// the rest of the files.
type groupRow struct {
	Name          string
	Class         string // of the colour
	Layers        int
	Parameters    int64
	Pruned        int64 // weights
	Sparsity      float64
	Before, After int64
	Smaller       float64
	Share         float64 // of the bytes after
	LayerBar      px
	ParameterBar  px

	// Where the group's part of the two stacked bars starts and how long it
	// is, in percent of the larger file.
	BeforeX, BeforeW px
	AfterX, AfterW   px

	bits int
}

func newGroupRows(p *page) []groupRow {
	byName := map[string]*groupRow{}
	var groups []*groupRow
	for _, l := range p.Layers {
		name := precision(l.Layer)
		g := byName[name]
		if g == nil {
			g = &groupRow{Name: name, Class: precisionClass(l.Layer), bits: l.Bits}
			byName[name] = g
			groups = append(groups, g)
		}
		g.Layers++
		g.Parameters += l.Parameters
		g.Pruned += prunedWeights(l.Layer)
		g.Before += l.SourceBytes
		g.After += l.Bytes
	}
	slices.SortFunc(groups, func(a, b *groupRow) int {
		return cmp.Or(cmp.Compare(a.order(), b.order()), cmp.Compare(a.Name, b.Name))
	})
	var rows []groupRow
	for _, g := range groups {
		rows = append(rows, *g)
	}
	kept, restBefore, restAfter := remainders(p.Run)
	if len(p.Run.Kept) > 0 {
		name := "kept as they were"
		if p.HasChanged || len(p.Run.Removed) > 0 {
			name = "not compressed"
		}
		rows = append(rows, groupRow{Name: name, Class: "kept", Before: kept, After: kept})
	}
	if removed := p.Run.RemovedBytes; removed > 0 {
		rows = append(rows, groupRow{Name: "removed", Class: "removed", Before: removed})
	}
	rows = append(rows, groupRow{Name: "headers and the rest", Class: "rest", Before: restBefore, After: restAfter})
	finishGroups(rows, p)
	return rows
}

// order is by bits, with layers that are not quantized last.
func (g *groupRow) order() int {
	if g.bits == 0 {
		return math.MaxInt
	}
	return g.bits
}

// finishGroups fills in what follows from all rows together.
func finishGroups(rows []groupRow, p *page) {
	larger := max(p.Run.Source.Bytes, p.Run.Output.WeightBytes)
	layers, parameters := 0, int64(0)
	for _, g := range rows {
		layers, parameters = max(layers, g.Layers), max(parameters, g.Parameters)
	}
	var before, after px
	for i := range rows {
		g := &rows[i]
		g.Smaller = ratio(float64(g.Before), float64(g.After))
		g.Share = share(g.After, p.Run.Output.WeightBytes)
		g.Sparsity = share(g.Pruned, g.Parameters)
		g.LayerBar = px(100 * share(g.Layers, layers))
		g.ParameterBar = px(100 * share(g.Parameters, parameters))
		g.BeforeX, g.BeforeW = before, px(100*share(g.Before, larger))
		g.AfterX, g.AfterW = after, px(100*share(g.After, larger))
		before += g.BeforeW
		after += g.AfterW
	}
}

// remainders returns the bytes of kept tensors and what the two files hold
// beside tensors.
func remainders(run *record.Run) (kept, before, after int64) {
	before, after = run.Source.Bytes, run.Output.WeightBytes
	for _, t := range run.Kept {
		kept += t.Bytes
	}
	for _, l := range run.Layers {
		before -= l.SourceBytes
		after -= l.Bytes
	}
	return kept, max(0, before-kept-run.RemovedBytes), max(0, after-kept)
}

// bitsClass names the colour of a bit width; 2 to 8 have one each.
func bitsClass(bits int) string {
	if bits < 2 || bits > 8 {
		return "rest"
	}
	return fmt.Sprintf("b%d", bits)
}

// tensorRow is one of the largest tensors of the output.
type tensorRow struct {
	Name  string
	As    string // precision or element type
	Bytes int64
	Share float64 // of the weight files
	Bar   px
}

func largestTensors(run *record.Run) []tensorRow {
	var rows []tensorRow
	for _, l := range run.Layers {
		rows = append(rows, tensorRow{Name: cmp.Or(l.Weight, l.Name), As: precision(l), Bytes: l.Bytes})
	}
	for _, t := range run.Kept {
		rows = append(rows, tensorRow{Name: t.Name, As: cmp.Or(t.Stored, t.DType), Bytes: t.Bytes})
	}
	slices.SortStableFunc(rows, func(a, b tensorRow) int { return cmp.Compare(b.Bytes, a.Bytes) })
	rows = rows[:min(topN, len(rows))]
	for i := range rows {
		rows[i].Share = share(rows[i].Bytes, run.Output.WeightBytes)
		rows[i].Bar = px(100 * share(rows[i].Bytes, rows[0].Bytes))
	}
	return rows
}

// worstLayers returns the layers of the largest relative errors.
func worstLayers(layers []layerRow) []layerRow {
	var rows []layerRow
	for _, l := range layers {
		if l.RelativeError != nil {
			rows = append(rows, l)
		}
	}
	slices.SortStableFunc(rows, func(a, b layerRow) int { return cmp.Compare(*b.RelativeError, *a.RelativeError) })
	rows = rows[:min(topN, len(rows))]
	for i := range rows {
		rows[i].Bar = px(100 * share(*rows[i].RelativeError, *rows[0].RelativeError))
	}
	return rows
}

// stageRow is a part of the run's time.
type stageRow struct {
	record.Stage
	Share float64
	Bar   px
}

func newStageRows(run *record.Run) []stageRow {
	rest := run.Seconds
	longest := 0.0
	var rows []stageRow
	for _, s := range run.Stages {
		rows = append(rows, stageRow{Stage: s})
		rest -= s.Seconds
		longest = max(longest, s.Seconds)
	}
	if rest > 0.0005 && len(rows) > 0 {
		rows = append(rows, stageRow{Stage: record.Stage{Name: "between stages", Seconds: rest}})
		longest = max(longest, rest)
	}
	for i := range rows {
		rows[i].Share = share(rows[i].Seconds, run.Seconds)
		rows[i].Bar = px(100 * share(rows[i].Seconds, longest))
	}
	return rows
}

// command is the line of a shell that runs the recipe again on the same files.
func command(run *record.Run) string {
	args := []string{"fettle compress", shellQuote(run.Source.Path), "--recipe", shellQuote(cmp.Or(run.Recipe.Path, "recipe.yaml"))}
	flags := map[string]string{"calibration": "--calibration", "evaluation": "--evaluate"}
	for _, d := range run.Data {
		if flag := flags[d.Role]; flag != "" {
			args = append(args, flag, shellQuote(d.Path))
		}
	}
	return strings.Join(append(args, "--out OUT"), " ")
}
