package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/record"
)

// sample reads testdata/record.json. Its figures are made up: they have the
// shapes and sizes of a ResNet-20, but no run measured them.
func sample(t testing.TB) *record.Run {
	t.Helper()
	f, err := os.Open("testdata/record.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	run, err := record.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func render(t testing.TB, run *record.Run) string {
	t.Helper()
	var b bytes.Buffer
	if err := HTML(&b, run); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// variants are records of runs that lack things, or have too many.
func variants(t testing.TB) map[string]*record.Run {
	noEvaluation := sample(t)
	noEvaluation.Evaluation = nil

	noData := sample(t)
	noData.Evaluation, noData.Data = nil, nil
	for i := range noData.Layers {
		l := &noData.Layers[i]
		l.Method, l.Damping, l.Aligned = "nearest", 0, false
		l.RelativeError, l.NearestRelativeError, l.SoftRelativeError = nil, nil, nil
	}

	noLayers := sample(t)
	noLayers.Layers = nil

	one := sample(t)
	one.Layers, one.Kept = one.Layers[:1], nil

	many := sample(t)
	many.Layers = nil
	for i := range 500 {
		l := sample(t).Layers[i%20]
		l.Name = fmt.Sprintf("model.%s.layers.%d.weight", strings.Repeat("long_name.", 20), i)
		many.Layers = append(many.Layers, l)
	}

	zero := sample(t)
	for i := range zero.Layers {
		zero.Layers[i].RelativeError, zero.Layers[i].NearestRelativeError = new(float64), new(float64)
	}

	gaps := sample(t)
	for i := range gaps.Layers {
		if i%3 == 0 {
			gaps.Layers[i].RelativeError = nil
		}
	}

	extreme := sample(t)
	for i := range extreme.Layers {
		l := &extreme.Layers[i]
		tiny, huge := math.SmallestNonzeroFloat64, math.MaxFloat64
		l.RelativeError, l.NearestRelativeError, l.Seconds, l.Damping = &tiny, &huge, huge, -huge
		l.Bytes, l.SourceBytes, l.Parameters, l.Bits = math.MaxInt64, math.MinInt64, math.MaxInt64, math.MinInt
	}
	extreme.Seconds, extreme.Source.Bytes = math.MaxFloat64, 0
	extreme.Stages[0].Seconds = -math.MaxFloat64

	all := map[string]*record.Run{
		"sample": sample(t), "no evaluation": noEvaluation, "no data": noData, "no layers": noLayers,
		"one layer": one, "500 layers": many, "zero errors": zero, "gaps": gaps, "extreme": extreme,
		"nothing": {Version: record.Version},
	}
	maps.Copy(all, languageVariants(t))
	maps.Copy(all, prunedVariants(t))
	maps.Copy(all, searchVariants(t))
	return all
}

var (
	embedded = regexp.MustCompile(`(?s)<script type="application/json" id="fettle-record">(.*?)</script>`)
	scripts  = regexp.MustCompile(`(?s)<(script|style)[^>]*>.*?</(script|style)>`)
	void     = regexp.MustCompile(`<((?:meta|link|br)\b[^>]*?)/?>`)
	loading  = regexp.MustCompile(`(?i)\b(?:src|srcset|href|xlink:href|action|data|poster|background)\s*=\s*["']?([^"'\s>]*)`)
)

// wellFormed checks that tags are closed in order and attributes quoted.
func wellFormed(t *testing.T, html string) {
	t.Helper()
	html = void.ReplaceAllString(scripts.ReplaceAllString(html, ""), "<$1/>")
	d := xml.NewDecoder(strings.NewReader(html))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			line, column := d.InputPos()
			t.Fatalf("line %d, column %d: %v", line, column, err)
		}
	}
}

func TestVariants(t *testing.T) {
	number := regexp.MustCompile(`NaN|[^a-z]Inf\b|%!`)
	for name, run := range variants(t) {
		t.Run(name, func(t *testing.T) {
			html := render(t, run)
			wellFormed(t, html)
			if bad := number.FindString(scripts.ReplaceAllString(html, "")); bad != "" {
				t.Errorf("page holds %q", bad)
			}
			for _, l := range run.Layers {
				if !strings.Contains(html, `<span class="name" title="`+l.Weight+`">`+l.Name+`</span>`) {
					t.Errorf("layer %s is not named", l.Name)
				}
			}
			checkEmbedded(t, html, run)
		})
	}
}

func checkEmbedded(t *testing.T, html string, want *record.Run) {
	t.Helper()
	m := embedded.FindStringSubmatch(html)
	if m == nil {
		t.Fatal("no embedded record")
	}
	got, err := record.Decode(strings.NewReader(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("embedded record differs (-want +got):\n%s", diff)
	}
}

func TestLoadsNothing(t *testing.T) {
	html := render(t, sample(t))
	for _, s := range []string{"http://", "https://", "url(", "@import", "xlink", "<img", "<iframe"} {
		if strings.Contains(html, s) {
			t.Errorf("page holds %q", s)
		}
	}
	for _, m := range loading.FindAllStringSubmatch(embedded.ReplaceAllString(html, ""), -1) {
		if !strings.HasPrefix(m[1], "#") && m[1] != "data:," {
			t.Errorf("page refers to %q", m[0])
		}
	}
}

// TestAnchors checks that each link within the page leads somewhere.
func TestAnchors(t *testing.T) {
	for name, run := range variants(t) {
		html := render(t, run)
		for _, m := range regexp.MustCompile(`href="#([^"]+)"`).FindAllStringSubmatch(html, -1) {
			if !strings.Contains(html, `id="`+m[1]+`"`) {
				t.Errorf("%s: link to #%s leads nowhere", name, m[1])
			}
		}
	}
}

func TestAccessible(t *testing.T) {
	html := render(t, paretoSample(t))
	for _, s := range []string{
		`<html lang="en">`, `<title>resnet20-12fca82f.th: fettle report</title>`,
		`name="viewport"`, `scope="col"`, `scope="row"`, `prefers-color-scheme: dark`, `@media print`,
	} {
		if !strings.Contains(html, s) {
			t.Errorf("page lacks %q", s)
		}
	}
	for _, svg := range regexp.MustCompile(`<svg[^>]*>`).FindAllString(html, -1) {
		nested := strings.HasPrefix(svg, `<svg x=`) // a treemap's cell, titled
		if !nested && !strings.Contains(svg, "aria-hidden") && !strings.Contains(svg, `role="img" aria-label="`) {
			t.Errorf("%s has no text in its place", svg)
		}
	}
}

// TestFirstScreen holds what the summary says against the record.
func TestFirstScreen(t *testing.T) {
	run := sample(t)
	summary, _, _ := strings.Cut(render(t, run), "<nav")
	summary = regexp.MustCompile(`<[^>]*>`).ReplaceAllString(summary, "")
	for _, s := range []string{
		"8.97× smaller; top-1 tied with the original; 2 fallbacks.",
		"1.10 MB → 122.5 KB", "1\u202f099\u202f231 → 122\u202f492 bytes", "11.1 % of the source",
		"91.64 % → 91.45 %", "0.20 points lost; 95 % paired interval −0.79 to 1.18, which holds 0",
		"0.0264 nats", "41 of 1\u202f017", "4.03 %", "2.91",
	} {
		if !strings.Contains(summary, s) {
			t.Errorf("first screen lacks %q:\n%s", s, summary)
		}
	}
}

func TestHeadline(t *testing.T) {
	for _, c := range []struct {
		name, text, status string
		change             func(*record.Run)
	}{
		{"good", "8.97× smaller; top-1 tied with the original; no fallbacks", "good", func(*record.Run) {}},
		{"lost", "8.97× smaller; 0.61 points of top-1 lost; no fallbacks", "warn", func(r *record.Run) {
			r.Evaluation.Tied, r.Evaluation.AccuracyDrop = false, 0.61
		}},
		{"gained", "8.97× smaller; 0.40 points of top-1 gained; no fallbacks", "good", func(r *record.Run) {
			r.Evaluation.Tied, r.Evaluation.AccuracyDrop = false, -0.4
		}},
		{"not measured", "8.97× smaller; accuracy not measured; no fallbacks", "plain", func(r *record.Run) { r.Evaluation = nil }},
		{"fallback", "8.97× smaller; top-1 tied with the original; 1 fallback", "warn", func(r *record.Run) {
			r.Layers[0].Fallbacks = []record.Fallback{{Asked: "a", Got: "b", Reason: "c"}}
		}},
		{"larger", "not smaller than the source; top-1 tied with the original; no fallbacks", "warn", func(r *record.Run) {
			r.Output.WeightBytes = r.Source.Bytes
		}},
	} {
		run := sample(t)
		for i := range run.Layers {
			run.Layers[i].Fallbacks = nil
		}
		c.change(run)
		p, err := newPage(run)
		if err != nil {
			t.Fatal(err)
		}
		if want := (headline{c.text, c.status}); p.Headline != want {
			t.Errorf("%s: %q, want %q", c.name, p.Headline, want)
		}
	}
}

var (
	tableRow = regexp.MustCompile(`(?s)<tr>(.*?)</tr>`)
	cellText = regexp.MustCompile(`(?s)<t[hd]([^>]*)>(.*?)</t[hd]>`)
	anyTag   = regexp.MustCompile(`<[^>]*>`)
)

// TestLayerFigures reads the table of layers back and compares each figure
// with the record's.
func TestLayerFigures(t *testing.T) {
	run := sample(t)
	_, table, _ := strings.Cut(render(t, run), `<table class="layers sortable">`)
	_, table, _ = strings.Cut(table, "<tbody>")
	table, _, _ = strings.Cut(table, "</tbody>")
	rows := tableRow.FindAllStringSubmatch(table, -1)
	if len(rows) != len(run.Layers) {
		t.Fatalf("%d rows for %d layers", len(rows), len(run.Layers))
	}
	for i, row := range rows {
		l := run.Layers[i]
		var cells, values []string
		for _, m := range cellText.FindAllStringSubmatch(row[1], -1) {
			text := anyTag.ReplaceAllString(m[2], "")
			cells = append(cells, strings.NewReplacer(thin, "", minus, "-", "×", "x").Replace(text))
			values = append(values, strings.TrimSuffix(strings.TrimPrefix(m[1][strings.LastIndex(m[1], " ")+1:], `data-v="`), `"`))
		}
		want := []string{
			strconv.Itoa(i + 1), l.Name, l.Kind, strings.ReplaceAll(shape(l.Shape), "×", "x"), fmt.Sprint(l.Parameters),
			l.Method, strconv.Itoa(l.Bits), l.Granularity, fmt.Sprint(l.SourceBytes), fmt.Sprint(l.Bytes),
		}
		got := append([]string(nil), cells[:len(want)]...)
		got[1] = strings.TrimSuffix(got[1], " !")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("row %d (-want +got):\n%s", i, diff)
		}
		for column, x := range map[int]float64{11: *l.RelativeError, 12: *l.NearestRelativeError, 14: 0} {
			if column == 14 {
				if yes := cells[column] == "yes"; yes != l.Cached {
					t.Errorf("row %d: cached %q", i, cells[column])
				}
				continue
			}
			shown, err := strconv.ParseFloat(cells[column], 64)
			if err != nil || math.Abs(shown-x) > 0.005*x {
				t.Errorf("row %d: error shown as %q, want %v", i, cells[column], x)
			}
			if values[column] != strconv.FormatFloat(x, 'g', -1, 64) {
				t.Errorf("row %d: sorted by %q, want %v", i, values[column], x)
			}
		}
		if damping, err := strconv.ParseFloat(cells[13], 64); err != nil || damping != l.Damping {
			t.Errorf("row %d: damping %q, want %v", i, cells[13], l.Damping)
		}
	}
}

// TestEverythingShown looks for all that the record says of the run as a whole.
func TestEverythingShown(t *testing.T) {
	run := sample(t)
	html := embedded.ReplaceAllString(render(t, run), "")
	want := []string{
		run.Source.SHA256, run.Recipe.SHA256, run.Output.ManifestSHA256, run.Tool.Version, run.Tool.Go,
		run.Tool.Kernels, "143.21 MB", "6 reused, 34 computed",
		"fettle compress checkpoints/resnet20-12fca82f.th --recipe &#39;recipes/resnet20 small.yaml&#39; --calibration data/train5085.bin --evaluate data/test1017.bin --out OUT",
	}
	for _, d := range run.Data {
		want = append(want, d.Path, d.SHA256)
	}
	for _, f := range run.Output.Files {
		want = append(want, f.Name, f.SHA256)
	}
	for _, s := range run.Stages {
		want = append(want, s.Name, seconds(s.Seconds))
	}
	for _, k := range run.Kept {
		want = append(want, k.Name)
	}
	for _, l := range run.Layers {
		for _, f := range l.Fallbacks {
			want = append(want, f.Asked, f.Got, f.Reason[:20])
		}
	}
	for _, line := range strings.Split(run.Recipe.Text, "\n") {
		want = append(want, strings.ReplaceAll(line, `"`, "&#34;"))
	}
	for _, s := range want {
		if !strings.Contains(html, strings.ReplaceAll(s, "+", "&#43;")) {
			t.Errorf("page lacks %q", s)
		}
	}
}

const hostile = `</title></style></script><script>alert("1")</script><img src=x onerror=alert(1)>'"><!--{{.}}` + "\u2028`${x}`"

// fill puts the hostile text into every string that v holds.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(hostile)
	case reflect.Pointer:
		if !v.IsNil() {
			fill(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			fill(v.Index(i))
		}
	}
}

func TestHostileNames(t *testing.T) {
	hostileNames(t, sample(t))
	hostileNames(t, languageSample(t, 80))
	hostileNames(t, prunedSample(t))
	hostileNames(t, paretoSample(t))
}

func hostileNames(t *testing.T, run *record.Run) {
	t.Helper()
	run.Source.UnknownClasses = []string{"a.b"}
	fill(reflect.ValueOf(run))
	if run.Layers[3].Name != hostile || run.Kept[0].DType != hostile {
		t.Fatal("not filled")
	}
	html := render(t, run)
	wellFormed(t, html)
	if n := strings.Count(html, "<script"); n != 2 {
		t.Errorf("%d script elements, want the record and the page's own", n)
	}
	for _, s := range []string{"<img", "<!--"} {
		if strings.Contains(html, s) {
			t.Errorf("page holds %q", s)
		}
	}
	checkEmbedded(t, html, run)
}

func TestNotFinite(t *testing.T) {
	run := sample(t)
	run.Evaluation.KL = math.NaN()
	var unsupported *json.UnsupportedValueError
	if err := HTML(io.Discard, run); !errors.As(err, &unsupported) {
		t.Errorf("got %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestWriterFails(t *testing.T) {
	if err := HTML(failing{}, sample(t)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
}

func TestSameBytes(t *testing.T) {
	if a, b := render(t, sample(t)), render(t, sample(t)); a != b {
		t.Error("two reports of one record differ")
	}
}

// TestSquarify checks on random areas that the rectangles have them, stay in
// the box and do not overlap.
func TestSquarify(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		n := 1 + rng.IntN(40)
		areas := make([]float64, n)
		total := 0.0
		for i := range areas {
			areas[i] = math.Exp(4 * rng.NormFloat64())
			total += areas[i]
		}
		for i := range areas {
			areas[i] *= treemapWidth * treemapHeight / total
		}
		// squarify wants the largest first.
		for i := range areas {
			for j := i + 1; j < n; j++ {
				if areas[j] > areas[i] {
					areas[i], areas[j] = areas[j], areas[i]
				}
			}
		}
		const slack = 1e-6
		rects := squarify(areas, rect{0, 0, treemapWidth, treemapHeight})
		if len(rects) != n {
			t.Fatalf("%d rectangles for %d areas", len(rects), n)
		}
		for i, r := range rects {
			if math.Abs(r.w*r.h-areas[i]) > slack*(1+areas[i]) {
				t.Fatalf("rectangle %d has area %v, want %v", i, r.w*r.h, areas[i])
			}
			if r.x < -slack || r.y < -slack || r.x+r.w > treemapWidth+slack || r.y+r.h > treemapHeight+slack {
				t.Fatalf("rectangle %d is outside: %v", i, r)
			}
			for _, o := range rects[:i] {
				w := min(r.x+r.w, o.x+o.w) - max(r.x, o.x)
				h := min(r.y+r.h, o.y+o.h) - max(r.y, o.y)
				if w > slack && h > slack {
					t.Fatalf("%v and %v overlap", r, o)
				}
			}
		}
	}
}

func depthOf(layers []layerRow) depthChart { return newDepthChart(layers, newColumns(layers)) }

// TestDepth checks places on the logarithmic scale.
func TestDepth(t *testing.T) {
	layers := newLayerRows(sample(t))
	lo, hi := errorDecades(layers)
	if lo != -6 || hi != 0 {
		t.Fatalf("decades %d to %d, want -6 to 0", lo, hi)
	}
	for e, want := range map[float64]px{1: depthTop, 1e-3: depthTop + depthPlot/2, 1e-6: depthTop + depthPlot, 0: depthTop + depthPlot} {
		if got := depthY(e, lo, hi); math.Abs(float64(got-want)) > 1e-9 {
			t.Errorf("depthY(%v) = %v, want %v", e, got, want)
		}
	}
	layers[5].RelativeError = nil
	if c := depthOf(layers); len(c.Solved) != 2 || len(c.Nearest) != 1 {
		t.Errorf("%d and %d lines, want 2 around the gap and 1", len(c.Solved), len(c.Nearest))
	}
}

func TestFormat(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{count(0), "0"},
		{count(999), "999"},
		{count(1000), "1\u202f000"},
		{count(-1234567), "−1\u202f234\u202f567"},
		{count(int64(math.MinInt64)), "−9\u202f223\u202f372\u202f036\u202f854\u202f775\u202f808"},
		{fixed(1234.5, 1), "1\u202f234.5"},
		{fixed(-0.001, 2), "0.00"},
		{fixed(-0.5, 1), "−0.5"},
		{fixed(1e300, 2), "1e+300"},
		{significant(0), "0"},
		{significant(0.012345), "0.0123"},
		{significant(0.00012), "0.000120"},
		{significant(0.0000456789), "4.57e−5"},
		{significant(0.5), "0.500"},
		{significant(12.34), "12.3"},
		{significant(123.4), "123"},
		{significant(5e-324), "4.94e−324"},
		{significant(-0.25), "−0.250"},
		{size(0), "0 B"},
		{size(999), "999 B"},
		{size(180000), "180.0 KB"},
		{size(1099231), "1.10 MB"},
		{size(2e9), "2.00 GB"},
		{percent(0.111434), "11.1 %"},
		{percent(0.0403), "4.03 %"},
		{percent(0), "0.0 %"},
		{percent(1e-9), "< 0.01 %"},
		{seconds(0.024), "0.024 s"},
		{seconds(9.412), "9.41 s"},
		{seconds(192), "3 min 12 s"},
		{seconds(3660), "1 h 01 min"},
		{times(8.974), "8.97×"},
		{times(0), "–"},
		{shape([]int{64, 32, 3, 3}), "64×32×3×3"},
		{shape(nil), "scalar"},
		{clip("layer3.0.conv2", 14), "layer3.0.conv2"},
		{clip("layer3.0.conv2", 9), "laye…onv2"},
		{baseName(`C:\models\a.th`), "a.th"},
		{baseName("out/"), "out"},
		{baseName(""), "model"},
		{shellQuote("recipe.yaml"), "recipe.yaml"},
		{shellQuote("a b"), "'a b'"},
		{shellQuote("it's"), `'it'\''s'`},
		{shellQuote("-rf"), "'./-rf'"},
		{shellQuote("$(x)"), "'$(x)'"},
		{shellQuote(""), "''"},
		{px(math.NaN()).String(), "0"},
		{px(math.Inf(1)).String(), "0"},
		{px(1.005).String(), "1"},
		{px(12.346).String(), "12.35"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestShortNames(t *testing.T) {
	for _, c := range []struct{ in, want []string }{
		{nil, []string{}},
		{[]string{"module.conv1.weight"}, []string{"module.conv1"}},
		{[]string{"module.layer1.0.conv1.weight", "module.layer1.1.conv1.weight"}, []string{"0.conv1", "1.conv1"}},
		{[]string{"a.weight", "b"}, []string{"a", "b"}},
		{[]string{"a.b", "a."}, []string{"b", "a."}},
		{[]string{"", "."}, []string{"", "."}},
	} {
		if diff := cmp.Diff(c.want, shortNames(c.in)); diff != "" {
			t.Errorf("%q: %s", c.in, diff)
		}
	}
}

// FuzzHTML feeds the report whatever decodes as a record.
func FuzzHTML(f *testing.F) {
	data, err := os.ReadFile("testdata/record.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":1,"data":[{"sequences":-1,"length":1}],"evaluation":{"language":{"compressed":{"perplexity":-1},"kl_bounds":[1,-1],"original":{"bits_per_byte":1}}}}`))
	f.Add([]byte(`{"version":1,"layers":[{"name":".","bits":-3,"bytes":-1,"relative_error":1e308}],"seconds":-1,"stages":[{}]}`))
	f.Add([]byte(`{"version":1,"layers":[{"bits":0,"prune":{"sparsity":-1e308,"survivors":-1,"relative_error":0},"compensate":{"rank":-1,"merged":true},"format":"fp8 x","layout":"<","bound_relative_error":1},{"bits":4}],"kept":[{"changed":true}]}`))
	f.Add([]byte(`{"version":1,"search":{"chosen":0,"genes":[{"name":"a","levels":[{"bytes":-1}]}],"results":[{"bytes":9223372036854775807,"budget_bytes":1,"levels":[-1],"fitness":1e308,"baselines":[{"name":"uniform","fitness":-1e308,"levels":[0]}],"generations":[{"generation":-9,"fitness":5e-324}],"evaluations":[{"n":1,"f":0}]}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		run, err := record.Decode(bytes.NewReader(data))
		if err != nil {
			return
		}
		html := render(t, run)
		if strings.Count(html, "<script") != 2 {
			t.Error("script elements that are not the page's")
		}
	})
}
