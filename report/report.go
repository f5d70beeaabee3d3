// Package report turns a run's record into one HTML file that needs nothing
// else: no network, no script and no font. The record is embedded in it as
// JSON, so that another viewer can read it back from the file; the evaluations of
// a long search are left out there.
package report

import (
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"

	"github.com/fettle-dev/fettle/record"
)

//go:embed assets
var assets embed.FS

var pageTemplate = template.Must(template.New("page.html").Funcs(functions).ParseFS(assets, "assets/*"))

// HTML writes the report of a run to w. The output depends on the record
// alone. It fails where w does, and for a record that holds a number which is
// not finite.
func HTML(w io.Writer, run *record.Run) error {
	p, err := newPage(run)
	if err != nil {
		return err
	}
	if err := pageTemplate.Execute(w, p); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// page is what the template shows beside the record itself.
type page struct {
	Run      *record.Run
	Title    string // the model's name
	Headline headline
	Language bool // the model is known to predict tokens
	Size     sizes

	Layers []layerRow
	Totals layerRow
	Has    columns

	// Of all compressed layers' weights.
	PrunedWeights int64
	PrunedLayers  int
	Sparsity      float64

	HasSequences bool   // some data were sequences of tokens
	HasLength    bool   // and the most tokens of one are known
	HasChanged   bool   // some kept tensor's values changed
	Uniform      string // what holds for all layers; empty where they differ

	Fallbacks []fallbackRow
	FellBack  int // layers with fallbacks

	Groups  []groupRow
	Before  treemap
	After   treemap
	Depth   depthChart
	Largest []tensorRow
	Worst   []layerRow
	Experts *expertsView // nil for a model without
	Search  *searchView  // nil where no search was made
	Stages  []stageRow
	Command string // of a shell, runs the recipe again

	JSON template.JS
	// WithoutEvaluations says that JSON lacks the search's.
	WithoutEvaluations bool
}

func newPage(run *record.Run) (*page, error) {
	search := newSearchView(run.Search)
	embedded, cut := run, search != nil && search.Evaluations > mostPoints
	if cut {
		embedded = withoutEvaluations(run)
	}
	// Marshal escapes <, >, & and the line separators, so that no name ends
	// the script element that holds the record.
	data, err := json.Marshal(embedded)
	if err != nil {
		return nil, fmt.Errorf("report: record cannot be embedded: %w", err)
	}
	p := &page{
		Run:     run,
		Title:   baseName(run.Source.Path),
		Size:    newSizes(run),
		Layers:  newLayerRows(run),
		Experts: newExpertsView(run),
		Search:  search,
		Stages:  newStageRows(run),
		Command: command(run),
		JSON:    template.JS(data), //nolint:gosec // escaped by Marshal, see above

		WithoutEvaluations: cut,
	}
	for _, d := range run.Data {
		p.HasSequences = p.HasSequences || d.Sequences > 0
		p.HasLength = p.HasLength || d.Length > 0
	}
	p.Language = p.HasSequences && (run.Evaluation == nil || run.Evaluation.Outputs == nil) || run.Evaluation != nil && run.Evaluation.Language != nil
	for _, k := range run.Kept {
		p.HasChanged = p.HasChanged || k.Changed
	}
	p.Has = newColumns(p.Layers)
	pruned, weights := Pruned(run)
	p.PrunedWeights, p.Sparsity = pruned, share(pruned, weights)
	p.Totals = totalRow(p)
	for _, l := range p.Layers {
		if l.Prune != nil {
			p.PrunedLayers++
		}
		for _, f := range l.Fallbacks {
			p.Fallbacks = append(p.Fallbacks, fallbackRow{f, l.Name})
		}
		if len(l.Fallbacks) > 0 {
			p.FellBack++
		}
	}
	p.Uniform = uniform(p)
	p.Headline = newHeadline(p)
	p.Groups = newGroupRows(p)
	p.Before, p.After = newTreemaps(p)
	p.Depth = newDepthChart(p.Layers, p.Has)
	p.Largest = largestTensors(run)
	p.Worst = worstLayers(p.Layers)
	return p, nil
}
