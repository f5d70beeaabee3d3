package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/record"
)

// expertsView is what experts saw of the calibration data.
type expertsView struct {
	Wanted   string // how many tokens, in words
	Fallback string // what the others got, in words
	Starved  int    // layers that got it
	Rows     []mixtureRow
}

// mixtureRow is a router with its experts.
type mixtureRow struct {
	Name                string
	Experts, Unseen     int
	Least, Median, Most int64
	Starved             int    // experts with layers that fell back
	Figures             string // all tokens, where they are few
	Bars                []expertBar
	BarsWidth           px
}

// expertBar is an expert in the strip of a mixture, whose height is 22.
type expertBar struct {
	Expert  int
	Tokens  int64
	Starved bool
	X, Y, H px
}

// mostFigures is how many experts' tokens are written out in one line.
const mostFigures = 16

// newExpertsView returns nil for a model without experts.
func newExpertsView(run *record.Run) *expertsView {
	e := run.Experts
	if e == nil {
		return nil
	}
	v := &expertsView{Wanted: plural(e.MinTokens, "token", "tokens"), Fallback: "nearest rounding, and other steps that need no data", Starved: len(e.Layers)}
	if e.MinTokens == 0 {
		v.Wanted = plural(e.PerInput, "token", "tokens") + " for each of a layer's inputs"
	}
	if e.Fallback == "keep" {
		v.Fallback = "their weights as they were"
	}
	for _, m := range e.Mixtures {
		v.Rows = append(v.Rows, newMixtureRow(m, e.Layers))
	}
	return v
}

func newMixtureRow(m record.Mixture, fell []record.ExpertLayer) mixtureRow {
	const width, height = 7, 22
	row := mixtureRow{Name: m.Name, Experts: len(m.Tokens), BarsWidth: px(width * len(m.Tokens))}
	if len(m.Tokens) == 0 {
		return row
	}
	sorted := slices.Clone(m.Tokens)
	slices.Sort(sorted)
	row.Least, row.Median, row.Most = sorted[0], sorted[(len(sorted)-1)/2], sorted[len(sorted)-1]
	var figures []string
	for i, n := range m.Tokens {
		stem := fmt.Sprintf("%s.experts.%d.", m.Name, i)
		starved := slices.ContainsFunc(fell, func(f record.ExpertLayer) bool { return strings.HasPrefix(f.Layer, stem) })
		if starved {
			row.Starved++
		}
		if n == 0 {
			row.Unseen++
		}
		figures = append(figures, count(n))
		h := px(height * share(n, cmp.Or(row.Most, 1)))
		row.Bars = append(row.Bars, expertBar{Expert: i, Tokens: n, Starved: starved, X: px(width * i), Y: height - h, H: h})
	}
	if len(figures) <= mostFigures {
		row.Figures = strings.Join(figures, ", ")
	}
	return row
}
