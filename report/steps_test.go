package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/record"
)

// prunedSample is a record with a layer of each kind. Its figures are made up.
func prunedSample(t testing.TB) *record.Run {
	run := sample(t)
	prune := func(i int, method, pattern, scope, allocation string, sparsity float64, stored string) *record.Layer {
		l := &run.Layers[i]
		survivors := int64(math.Round((1 - sparsity) * float64(l.Parameters)))
		l.Prune = &record.Prune{
			Method: method, Pattern: pattern, Scope: scope, Allocation: allocation, Survivors: survivors,
			Sparsity: 1 - float64(survivors)/float64(l.Parameters), RelativeError: pointer(0.4 * *l.RelativeError),
		}
		l.Layout = stored
		return l
	}
	only := func(l *record.Layer) {
		l.Method, l.Bits, l.Granularity, l.GroupSize, l.Damping = "", 0, "", 0, 0
		l.NearestRelativeError, l.SoftRelativeError = nil, nil
		l.Bytes = 4*l.Prune.Survivors + l.Parameters/8
		if l.Layout == "" {
			l.Bytes = l.SourceBytes
		}
	}
	only(prune(1, "admm", "unstructured", "row", "lamp", 0.5, "bitmask"))
	only(prune(2, "magnitude", "block 4x4", "", "uniform", 0.25, ""))
	run.Layers[2].RelativeError, run.Layers[2].Prune.RelativeError = nil, nil
	prune(3, "sparsegpt", "2:4", "", "", 0.5, "bitmask")
	prune(4, "wanda", "unstructured", "layer", "erk", 0.875, "bitmask")
	for i, format := range []string{"fp8", "nvfp4", "mxfp4"} {
		l := &run.Layers[6+i]
		l.Format, l.Bits, l.Granularity, l.GroupSize, l.Symmetric = format, []int{8, 4, 4}[i], "group", []int{128, 16, 32}[i], true
	}
	run.Layers[7].Compensate = &record.Compensate{Method: "eora", Rank: 8, Factors: "F16", Bytes: 1536, RelativeError: pointer(0.0321)}
	run.Layers[8].Compensate = &record.Compensate{Method: "svd", Rank: 4, Merged: true}
	l := prune(9, "sparsegpt", "2:4", "", "", 0.5, "bitmask")
	l.Compensate = &record.Compensate{Method: "scaled-svd", Rank: 16, Factors: "4 bits", Bytes: 1024, RelativeError: pointer(0.21)}
	run.Layers[10].BoundRelativeError = pointer(0.987)
	run.Layers[11].Scaled = true
	run.Kept[1].Changed = true
	return run
}

func pointer(x float64) *float64 { return &x }

// prunedVariants are records of pruned models that lack things, or have too
// many.
func prunedVariants(t testing.TB) map[string]*record.Run {
	onlyPruned := sample(t)
	for i := range onlyPruned.Layers {
		l := &onlyPruned.Layers[i]
		l.Method, l.Bits, l.Granularity, l.GroupSize = "", 0, "", 0
		l.Damping, l.NearestRelativeError, l.SoftRelativeError = 0, nil, nil
		l.Prune = &record.Prune{Method: "wanda", Pattern: "unstructured", Scope: "row", Survivors: l.Parameters / 2, Sparsity: 0.5, RelativeError: l.RelativeError}
		l.Bytes = l.SourceBytes
	}
	noData := prunedSample(t)
	noData.Data, noData.Evaluation = nil, nil
	for i := range noData.Layers {
		l := &noData.Layers[i]
		l.RelativeError, l.NearestRelativeError, l.SoftRelativeError, l.BoundRelativeError = nil, nil, nil, nil
		if l.Prune != nil {
			l.Prune.RelativeError = nil
		}
		if l.Compensate != nil {
			l.Compensate.RelativeError = nil
		}
	}
	extreme := prunedSample(t)
	for i := range extreme.Layers {
		l := &extreme.Layers[i]
		l.Prune = &record.Prune{Survivors: math.MinInt64, Sparsity: math.MaxFloat64 * float64(1-2*(i%2)), RelativeError: pointer(-math.MaxFloat64)}
		l.Compensate = &record.Compensate{Rank: math.MinInt, Bytes: math.MaxInt64, RelativeError: pointer(math.SmallestNonzeroFloat64)}
		l.BoundRelativeError, l.Format, l.Bits = pointer(-1), "fp8 b4", -i
	}
	empty := sample(t)
	empty.Layers = []record.Layer{{Name: "a", Weight: "a.weight", Prune: &record.Prune{}}, {Name: "b", Weight: "b.weight"}, {Name: "c", Weight: "c.weight", Bits: 4, Compensate: &record.Compensate{}}}

	language := languageSample(t, 40)
	for i := range language.Layers {
		l := &language.Layers[i]
		sparsity := 0.3 + 0.4*float64(i)/float64(len(language.Layers))
		l.Prune = &record.Prune{Method: "sparsegpt", Pattern: "unstructured", Scope: "row", Survivors: int64((1 - sparsity) * float64(l.Parameters)), Sparsity: sparsity}
	}
	return map[string]*record.Run{
		"pruned": prunedSample(t), "pruned only": onlyPruned, "pruned without data": noData,
		"pruned, extreme": extreme, "pruned, empty": empty, "pruned language": language,
	}
}

// table returns the text of all rows of a table, the head first, cell by cell.
func table(t *testing.T, html, start string) [][]string {
	t.Helper()
	_, body, found := strings.Cut(embedded.ReplaceAllString(html, ""), start)
	if !found {
		t.Fatalf("page lacks %q", start)
	}
	body, _, _ = strings.Cut(body, "</table>")
	var rows [][]string
	for _, row := range tableRow.FindAllStringSubmatch(body, -1) {
		var cells []string
		for _, c := range cellText.FindAllStringSubmatch(row[1], -1) {
			text := strings.ReplaceAll(c[2], "<br>", " ")
			cells = append(cells, strings.ReplaceAll(textOf(text), thin, ""))
		}
		rows = append(rows, cells)
	}
	return rows
}

const layersTable = `<table class="layers sortable">`

// TestStepColumns reads back what the table says of a layer of each kind.
func TestStepColumns(t *testing.T) {
	run := prunedSample(t)
	rows := table(t, render(t, run), layersTable)
	head := rows[0]
	for i, row := range rows {
		if len(row) != len(head) {
			t.Fatalf("row %d has %d cells, the head %d", i, len(row), len(head))
		}
	}
	columns := []string{
		"Pruned", "Survivors", "Sparsity", "Method", "Bits", "Format", "Grid", "Scaled", "Low-rank term", "Rank",
		"Bytes of factors", "Stored", "Error", "Bound", "Pruned&#39;s", "Without term", "Nearest&#39;s",
	}
	get := func(row []string) []string {
		var out []string
		for _, c := range columns {
			at := slices.Index(head, strings.ReplaceAll(c, "&#39;", "'"))
			if at < 0 {
				t.Fatalf("no column %q in %q", c, head)
			}
			out = append(out, row[at])
		}
		return out
	}
	l := run.Layers
	e := func(x *float64) string { return relative(x) }
	for i, want := range map[int][]string{
		0:  {"–", "–", "–", "gptq, aligned", "8", "int", "channel, asym.", "–", "–", "–", "–", "dense", e(l[0].RelativeError), "–", "–", "–", e(l[0].NearestRelativeError)},
		1:  {"admm, unstructured per row, lamp, aligned", "1152", "50.0 %", "–", "–", "–", "–", "–", "–", "–", "–", "bitmask", e(l[1].RelativeError), "–", e(l[1].Prune.RelativeError), "–", "–"},
		2:  {"magnitude, block 4x4, uniform, aligned", "1728", "25.0 %", "–", "–", "–", "–", "–", "–", "–", "–", "dense", "–", "–", "–", "–", "–"},
		4:  {"wanda, unstructured per layer, erk", "288", "87.5 %", "gptq, aligned", "4", "int", "channel, asym.", "–", "–", "–", "–", "bitmask", e(l[4].RelativeError), "–", e(l[4].Prune.RelativeError), "–", e(l[4].NearestRelativeError)},
		6:  {"–", "–", "–", "gptq, aligned", "8", "fp8", "group 128, sym.", "–", "–", "–", "–", "dense", e(l[6].RelativeError), "–", "–", "–", e(l[6].NearestRelativeError)},
		7:  {"–", "–", "–", "adaround, aligned", "4", "nvfp4", "group 16, sym.", "–", "eora, F16", "8", "1536", "dense", e(l[7].RelativeError), "–", "–", "0.0321", e(l[7].NearestRelativeError)},
		8:  {"–", "–", "–", "adaround, aligned", "4", "mxfp4", "group 32, sym.", "–", "svd, merged into the weight", "4", "0", "dense", e(l[8].RelativeError), "–", "–", "–", e(l[8].NearestRelativeError)},
		10: {"–", "–", "–", "adaround, aligned", "3", "int", "channel, asym.", "–", "–", "–", "–", "dense", e(l[10].RelativeError), "0.987", "–", "–", e(l[10].NearestRelativeError)},
		11: {"–", "–", "–", "adaround, aligned", "3", "int", "channel, asym.", "yes", "–", "–", "–", "dense", e(l[11].RelativeError), "–", "–", "–", e(l[11].NearestRelativeError)},
	} {
		if diff := cmp.Diff(want, get(rows[1+i])); diff != "" {
			t.Errorf("layer %d (-want +got):\n%s", i, diff)
		}
	}
	pruned, weights := Pruned(run)
	total := get(rows[len(rows)-1])
	if diff := cmp.Diff([]string{fmt.Sprint(weights - pruned), percent(float64(pruned) / float64(weights))}, total[1:3]); diff != "" {
		t.Errorf("totals (-want +got):\n%s", diff)
	}
	if total[10] != "2560" {
		t.Errorf("%s bytes of factors in all, want 2560", total[10])
	}
}

// TestColumnsAppear checks that a run has no columns and words of what no layer
// of it has.
func TestColumnsAppear(t *testing.T) {
	plain := table(t, render(t, sample(t)), layersTable)[0]
	want := []string{
		"#", "Layer", "Kind", "Shape", "Parameters", "Method", "Bits", "Grid", "Bytes before", "Bytes after", "Smaller",
		"Error", "Nearest's", "Damping", "Cached", "Seconds",
	}
	if diff := cmp.Diff(want, plain); diff != "" {
		t.Errorf("plain run (-want +got):\n%s", diff)
	}
	text := textOf(scripts.ReplaceAllString(render(t, sample(t)), ""))
	for _, s := range []string{"parsity", "runed", "ow-rank", "mask", "Bound"} {
		if strings.Contains(text, s) {
			t.Errorf("plain run's page holds %q", s)
		}
	}
	for name, c := range map[string]struct {
		change func(*record.Layer)
		column []string
	}{
		"format":            {func(l *record.Layer) { l.Format = "fp8" }, []string{"Format"}},
		"scaled":            {func(l *record.Layer) { l.Scaled = true }, []string{"Scaled"}},
		"layout":            {func(l *record.Layer) { l.Layout = "bitmask" }, []string{"Stored"}},
		"bound":             {func(l *record.Layer) { l.BoundRelativeError = pointer(1) }, []string{"Bound"}},
		"prune":             {func(l *record.Layer) { l.Prune = &record.Prune{} }, []string{"Pruned", "Survivors", "Sparsity"}},
		"prune, with error": {func(l *record.Layer) { l.Prune = &record.Prune{RelativeError: pointer(1)} }, []string{"Pruned", "Survivors", "Sparsity", "Pruned's"}},
		"term":              {func(l *record.Layer) { l.Compensate = &record.Compensate{} }, []string{"Low-rank term", "Rank", "Bytes of factors"}},
		"term, with error": {
			func(l *record.Layer) { l.Compensate = &record.Compensate{RelativeError: pointer(1)} },
			[]string{"Low-rank term", "Rank", "Bytes of factors", "Without term"},
		},
	} {
		run := sample(t)
		c.change(&run.Layers[5])
		var more []string
		for _, h := range table(t, render(t, run), layersTable)[0] {
			if !slices.Contains(plain, h) {
				more = append(more, h)
			}
		}
		if diff := cmp.Diff(c.column, more); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestSparsityShown(t *testing.T) {
	run := prunedSample(t)
	pruned, weights := Pruned(run)
	want := 1152 + 576 + 1152 + 2016 + run.Layers[9].Parameters/2
	if pruned != want {
		t.Fatalf("%d weights pruned, want %d", pruned, want)
	}
	overall := percent(float64(pruned) / float64(weights))
	html := render(t, run)
	summary, _, _ := strings.Cut(html, "<nav")
	for _, s := range []string{
		"8.97× smaller; " + overall + " of weights pruned; top-1 tied with the original; 2 fallbacks.",
		overall + "\n      of the compressed layers' weights pruned, in 5 of 20 layers",
		"with scales, zero points, masks and low-rank factors",
	} {
		if !strings.Contains(textOf(summary), s) {
			t.Errorf("first screen lacks %q:\n%s", s, textOf(summary))
		}
	}
	kept := table(t, html, `aria-label="Kept tensors">`)
	if kept[1][4] != "–" || kept[2][4] != "changed" {
		t.Errorf("kept tensors: %q", kept[:3])
	}
	if !strings.Contains(html, "Bytes after are codes, values of layers that are not quantized, scales, zero points, masks, low-rank factors and shape.") {
		t.Error("page does not say what bytes are")
	}
}

// TestGroups holds the groups against the layers they are of.
func TestGroups(t *testing.T) {
	p, err := newPage(prunedSample(t))
	if err != nil {
		t.Fatal(err)
	}
	var names, classes []string
	layers, parameters, pruned := 0, int64(0), int64(0)
	for _, g := range p.Groups {
		names, classes = append(names, g.Name), append(classes, g.Class)
		layers, parameters, pruned = layers+g.Layers, parameters+g.Parameters, pruned+g.Pruned
	}
	want := []string{
		"2 bits", "3 bits", "3 bits, pruned", "4 bits", "4 bits mxfp4", "4 bits nvfp4", "4 bits, pruned",
		"8 bits", "8 bits fp8", "pruned only", "not compressed", "headers and the rest",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	want = []string{"b2", "b3", "b3 pale", "b4", "mxfp4", "nvfp4", "b4 pale", "b8", "fp8", "pruned", "kept", "rest"}
	if diff := cmp.Diff(want, classes); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if layers != len(p.Layers) || parameters != p.Totals.Parameters || pruned != p.PrunedWeights {
		t.Errorf("groups of %d layers, %d weights, %d pruned; want %d, %d, %d", layers, parameters, pruned, len(p.Layers), p.Totals.Parameters, p.PrunedWeights)
	}
	if g := p.Groups[9]; g.Layers != 2 || g.Sparsity != 0.375 {
		t.Errorf("pruned only: %d layers of sparsity %v, want 2 and 0.375", g.Layers, g.Sparsity)
	}
}

func TestWorstOfPruned(t *testing.T) {
	run := prunedSample(t)
	run.Layers[1].RelativeError = pointer(3)
	worst := worstLayers(newLayerRows(run))
	if len(worst) != topN || worst[0].Name != run.Layers[1].Name || worst[0].Precision() != "pruned only" || worst[0].Bar != 100 {
		t.Errorf("worst: %+v", worst[0])
	}
	for _, l := range worst {
		if l.Name == run.Layers[2].Name {
			t.Error("a layer without a measured error is among the worst")
		}
	}
	for _, l := range largestTensors(run) {
		if strings.Contains(l.As, "0 bits") {
			t.Errorf("%s as %q", l.Name, l.As)
		}
	}
}

// TestSparsityBars checks the bars under the chart, with errors and without.
func TestSparsityBars(t *testing.T) {
	for name, height := range map[string]px{"pruned": depthPlot, "pruned without data": 0, "sample": depthPlot} {
		run := sample(t)
		if name != "sample" {
			run = prunedVariants(t)[name]
		}
		c := depthOf(newLayerRows(run))
		if c.Bottom-c.Top != height || (len(c.Ticks) > 0) != (height > 0) {
			t.Errorf("%s: plot of height %v with %d ticks", name, c.Bottom-c.Top, len(c.Ticks))
		}
		if (c.SparsityH > 0) != (name != "sample") {
			t.Errorf("%s: bars of height %v", name, c.SparsityH)
		}
		for i, p := range c.Points {
			want := px(0)
			if prune := run.Layers[i].Prune; prune != nil {
				want = depthBars * px(prune.Sparsity)
			}
			if math.Abs(float64(p.SparsityH-want)) > 1e-9 || want > 0 && math.Abs(float64(p.SparsityY+p.SparsityH-c.SparsityY-c.SparsityH)) > 1e-9 {
				t.Errorf("%s, layer %d: bar of %v, want %v", name, i, p.SparsityH, want)
			}
		}
		if strings.Contains(c.Summary, "Sparsity of 5 pruned layers: from 25.0 % to 87.5 %.") != (name != "sample") {
			t.Errorf("%s: %s", name, c.Summary)
		}
		html := render(t, run)
		if n := strings.Count(html, `<rect class="sparsity" x=`); name != "sample" && n != 5 || name == "sample" && n != 0 {
			t.Errorf("%s: %d bars", name, n)
		}
	}
	only := depthOf(newLayerRows(prunedVariants(t)["pruned only"]))
	if strings.Contains(only.Summary, "nearest") {
		t.Errorf("no layer was rounded: %s", only.Summary)
	}
}

func TestUniform(t *testing.T) {
	for _, c := range []struct {
		layers []record.Layer
		want   string
	}{
		{nil, ""},
		{[]record.Layer{{Bits: 4, Aligned: true}, {Bits: 0, Symmetric: true, Aligned: true}}, "All grids are asymmetric. All targets are aligned."},
		{[]record.Layer{{Bits: 0}, {Bits: 4, Symmetric: true}}, "All grids are symmetric. No target is aligned."},
		{[]record.Layer{{Bits: 0}, {Bits: 4, Aligned: true}}, ""},
		{[]record.Layer{{Bits: 3}, {Bits: 4, Symmetric: true}}, ""},
		{[]record.Layer{{Aligned: true}}, "All targets are aligned."},
	} {
		p, err := newPage(&record.Run{Layers: c.layers})
		if err != nil {
			t.Fatal(err)
		}
		if p.Uniform != c.want {
			t.Errorf("%+v: %q, want %q", c.layers, p.Uniform, c.want)
		}
	}
}
