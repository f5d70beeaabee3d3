package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
)

// grouped is the network of testdata/capture.py.
const grouped = `network: [
  {conv: stem, stride: 2, pad: 1}, relu,
  {conv: grouped, pad: 2, dilation: 2, groups: 4}, {batchnorm: bn}, relu,
  {conv: depthwise, stride: 2, pad: 1, groups: 12}, {conv: point}, relu,
  global_avg_pool, {linear: head}], input: {shape: [1, 16, 16]}`

// TestCapturedMoments runs the hook of docs/recipes.md in PyTorch and holds what
// comes of its moments, with the network known and not, against fettle's own
// calibration.
func TestCapturedMoments(t *testing.T) {
	interpreter := python(t)
	dir := t.TempDir()
	source, moments := filepath.Join(dir, "model.pt"), filepath.Join(dir, "moments.pt")
	cmd := exec.Command(interpreter, "testdata/capture.py", "../docs/recipes.md", models+"glyphs-calibration.safetensors", source, moments)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	steps := map[string]string{
		"gptq":   "{quantize: {method: gptq, bits: 4}}",
		"best":   "{quantize: {bits: 3}}",
		"pruned": "{prune: {sparsity: 0.5}}, {quantize: {bits: 4}}",
		"term":   "{quantize: {method: gptq, bits: 3}}, {compensate: {rank: 1}}",
	}
	for name, list := range steps {
		t.Run(name, func(t *testing.T) {
			compress := func(model, data string) (*record.Run, *export.Model) {
				r, err := pipeline.ParseRecipe([]byte("version: 1\nmodel: {path: "+source+model+"}\n"+data+"\nrules: [{match: '*', steps: ["+list+"]}]\n"), "")
				if err != nil {
					t.Fatal(err)
				}
				r.Output.Path = filepath.Join(t.TempDir(), "out")
				run := mustRun(t, r, pipeline.Options{Workers: 2})
				written, err := export.Open(context.Background(), r.Output.Path)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = written.Close() })
				return run, written
			}
			own, want := compress(", "+grouped, "sequential: none\ncalibration: {data: "+models+"glyphs-calibration.safetensors, format: safetensors, samples: 96}")
			for label, model := range map[string]string{"network": ", " + grouped, "weights": ""} {
				run, got := compress(model, "moments: "+moments)
				for i, l := range run.Layers {
					at := layerOf(own, l.Name)
					if at == nil || l.RelativeError == nil {
						t.Fatalf("%s: layer %d, %s: %+v", label, i, l.Name, l)
					}
					// A weight that no batch normalization is known of takes no correction.
					if label == "weights" && l.Name == "grouped" && name != "gptq" && name != "term" {
						continue
					}
					if !near(*l.RelativeError, *at.RelativeError, 2e-3) || !near(*l.NearestRelativeError, *at.NearestRelativeError, 1e-4) {
						t.Errorf("%s: %s: errors %v and %v of nearest, want %v and %v", label, l.Name, *l.RelativeError, *l.NearestRelativeError, *at.RelativeError, *at.NearestRelativeError)
					}
					if other := differing(t, got, want, l.Weight); other > .01 {
						t.Errorf("%s: %s: %.1f %% of the weights differ", label, l.Name, 100*other)
					}
				}
				if len(run.Layers) != 5 {
					t.Errorf("%s: %d layers", label, len(run.Layers))
				}
			}
		})
	}
}

func layerOf(run *record.Run, name string) *record.Layer {
	for i := range run.Layers {
		if run.Layers[i].Name == name {
			return &run.Layers[i]
		}
	}
	return nil
}

func near(a, b, tolerance float64) bool { return math.Abs(a-b) <= tolerance*math.Max(a, b) }

// differing returns the share of a weight's numbers that are not nearly the same.
func differing(t *testing.T, a, b *export.Model, name string) float64 {
	t.Helper()
	var both [2][]float32
	for i, m := range []*export.Model{a, b} {
		for _, info := range m.Tensors() {
			if info.Name == name {
				both[i] = make([]float32, info.Elements())
			}
		}
		if err := m.ReadFloat32(name, both[i]); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for i, v := range both[0] {
		if d := math.Abs(float64(v - both[1][i])); d > 1e-3*math.Abs(float64(v))+1e-5 {
			n++
		}
	}
	return float64(n) / float64(len(both[0]))
}

// part is a tensor of a file of moments.
type part struct {
	name   string
	shape  []int
	values []float32
}

func writeParts(t *testing.T, path string, parts ...part) {
	t.Helper()
	var sources []safetensors.Source
	for _, p := range parts {
		raw := make([]byte, 4*len(p.values))
		if err := dtype.F32.FromFloat32(raw, p.values); err != nil {
			t.Fatal(err)
		}
		sources = append(sources, safetensors.Source{Name: p.name, DType: dtype.F32, Shape: p.shape, Write: writeRaw(raw)})
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := safetensors.Write(f, sources, nil); err != nil {
		t.Fatal(err)
	}
}

func writeRaw(raw []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(raw)
		return err
	}
}

// alone writes a model of two layers and a table that no builder knows, and reads a
// recipe for it.
func alone(t *testing.T, steps, more string) *pipeline.Recipe {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "model.safetensors")
	rng := rand.New(rand.NewPCG(3, 4))
	random := func(name string, shape ...int) part {
		n := 1
		for _, d := range shape {
			n *= d
		}
		p := part{name: name, shape: shape, values: make([]float32, n)}
		for i := range p.values {
			p.values[i] = float32(rng.NormFloat64())
		}
		return p
	}
	writeParts(t, path, random("a.weight", 8, 4), random("a.bias", 8), random("b.weight", 8, 2, 3, 3), random("wte.weight", 9, 4), random("norm.weight", 4))
	r, err := pipeline.ParseRecipe([]byte("version: 1\nmodel: {path: "+path+"}\nrules: [{match: '*', steps: ["+steps+"]}]\n"+more), "")
	if err != nil {
		t.Fatal(err)
	}
	r.Output.Path = filepath.Join(dir, "out")
	return r
}

// TestWithoutForward compresses what no builder knows by methods that need no data,
// and holds the errors of the weights against the written ones.
func TestWithoutForward(t *testing.T) {
	for _, steps := range []string{
		"{quantize: {method: nearest, bits: 4}}",
		"{quantize: {method: hqq, bits: 3}}",
		"{quantize: {method: nearest, format: fp8}}",
		"{quantize: {method: nearest, format: mxfp4}}",
		"{prune: {method: magnitude, sparsity: 0.5}}",
		"{prune: {method: magnitude, pattern: '2:4'}}, {quantize: {method: nearest, bits: 4}}",
		"{quantize: {method: nearest, bits: 2}}, {compensate: {method: svd, rank: 2}}",
		"{quantize: {method: nearest, bits: 2}}, {compensate: {method: svd, rank: 2, bits: 8, alternations: 3}}",
		"{prune: {method: magnitude, sparsity: 0.5}}, {compensate: {method: svd, rank: 1, merge: true}}",
		"{quantize: {method: nearest, bits: 2}}, {compensate: {method: svd, budget: 100B}}",
	} {
		r := alone(t, steps, "")
		run := mustRun(t, r, pipeline.Options{})
		if len(run.Layers) != 2 || len(run.Kept) != 3 || run.Evaluation != nil || run.Source.Architecture != model.WeightsAlone {
			t.Fatalf("%s: %d layers, %d kept, %s", steps, len(run.Layers), len(run.Kept), run.Source.Architecture)
		}
		ctx := context.Background()
		written, err := export.Open(ctx, r.Output.Path)
		if err != nil {
			t.Fatal(err)
		}
		source, err := loader.Open(ctx, r.Model.Path)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range run.Layers {
			w, v := make([]float32, l.Parameters), make([]float32, l.Parameters)
			if err := errors.Join(source.ReadFloat32(l.Weight, w), written.ReadFloat32(l.Weight, v)); err != nil {
				t.Fatal(err)
			}
			var off, all float64
			for i := range w {
				off += math.Pow(float64(w[i]-v[i]), 2)
				all += math.Pow(float64(w[i]), 2)
			}
			if l.RelativeError != nil || l.RelativeWeightError == nil || !near(*l.RelativeWeightError, off/all, 1e-5) || off == 0 || off > all {
				t.Errorf("%s: %s: error %v, want %v", steps, l.Name, l.RelativeWeightError, off/all)
			}
		}
		if err := errors.Join(written.Close(), source.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTermOfWeights looks whether a term without data takes off what it should: that
// of full rank takes off all.
func TestTermOfWeights(t *testing.T) {
	var before float64 = 1
	for rank := 1; rank <= 4; rank++ {
		r := alone(t, fmt.Sprintf("{quantize: {method: nearest, bits: 2}}, {compensate: {method: svd, factors: f32, rank: %d}}", rank), "")
		e := *layerOf(mustRun(t, r, pipeline.Options{}), "a").RelativeWeightError
		if e >= before {
			t.Errorf("rank %d leaves %v, one less %v", rank, e, before)
		}
		before = e
	}
	if before > 1e-12 {
		t.Errorf("full rank leaves %v", before)
	}
}

// TestNeedsForward looks what a user of an unknown model is told who asks for more
// than weights can give.
func TestNeedsForward(t *testing.T) {
	const plain = "{quantize: {method: nearest, bits: 4}}"
	data := "{data: " + models + "glyphs-test.safetensors, format: safetensors}\n"
	for name, c := range map[string]struct{ steps, more, want string }{
		"method":      {"{quantize: {method: gptq, bits: 4}}", "", "layer a (gptq) needs to run the model"},
		"calibration": {plain, "calibration: " + data, "calibration needs to run the model"},
		"evaluate":    {plain, "evaluate: " + data, "evaluate needs to run the model"},
		"remove":      {plain, "remove: [{blocks: [1]}]", "remove needs to run the model"},
		"allocation":  {"{prune: {method: magnitude, sparsity: 0.5, allocation: rate-distortion}}", "", "an allocation that looks at data needs to run the model"},
	} {
		_, err := pipeline.Run(context.Background(), alone(t, c.steps, c.more), pipeline.Options{})
		_, forward := errors.AsType[*pipeline.ForwardError](err)
		_, unsupported := errors.AsType[*model.UnsupportedError](err)
		if !forward || !unsupported || !strings.Contains(err.Error(), c.want) || strings.Count(err.Error(), model.Ways) != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
	asked := alone(t, "{quantize: {method: gptq, bits: 4}}", "")
	asked.Model.Architecture = model.WeightsAlone
	if _, err := pipeline.Run(context.Background(), asked, pipeline.Options{}); err == nil || !strings.Contains(err.Error(), "only its weights are looked at") || !strings.Contains(err.Error(), model.Ways) {
		t.Errorf("asked for: %v", err)
	}
	written := alone(t, plain, "")
	mustRun(t, written, pipeline.Options{})
	again := alone(t, plain, "evaluate: "+data)
	again.Model.Path = written.Output.Path
	if _, err := pipeline.Evaluate(context.Background(), again, pipeline.Options{}); err == nil || !strings.Contains(err.Error(), model.Ways) {
		t.Errorf("evaluate what was written: %v", err)
	}
}

// TestMomentsFile goes through what may be wrong with a file of moments, and what
// may be left out.
func TestMomentsFile(t *testing.T) {
	eye := func(n int, d float32) []float32 {
		v := make([]float32, n*n)
		for i := range n {
			v[i*n+i] = d
		}
		return v
	}
	h := part{"a.H", []int{4, 4}, eye(4, 10)}
	n := part{"a.n", []int{1}, []float32{10}}
	sum := part{"a.sum", []int{1, 4}, []float32{1, 2, 3, 4}}
	with := func(p part, at int, v float32) part {
		p.values = slices.Clone(p.values)
		p.values[at] = v
		return p
	}
	energy := part{"a.energy", []int{8}, []float32{99, 99, 99, 99, 99, 99, 99, 99}}
	cross, sumX := part{"a.G", []int{4, 4}, eye(4, 9)}, part{"a.sum_x", []int{4}, []float32{1, 2, 3, 4}}
	rows := part{"a.x", []int{6, 4}, make([]float32, 24)}
	for i := range rows.values {
		rows.values[i] = float32(i%5) - 2
	}
	shifted := part{"a.xt", []int{6, 4}, slices.Clone(rows.values)}
	shifted.values[3] += .5
	nan := float32(math.NaN())
	convolution := []part{{"b.H", []int{4, 18, 18}, slices.Concat(eye(18, 1), eye(18, 2), eye(18, 3), eye(18, 4))}, {"b.n", nil, []float32{7}}}

	const a = "rules: [{match: a, steps: [{quantize: {method: gptq, bits: 3, bias_correction: true}}]}]\n"
	run := func(rules string, parts ...part) (*record.Run, error) {
		r := alone(t, "{quantize: {bits: 4}}", "")
		path := filepath.Join(t.TempDir(), "moments.safetensors")
		writeParts(t, path, parts...)
		own, err := pipeline.ParseRecipe([]byte("version: 1\nmodel: {path: "+r.Model.Path+"}\nmoments: "+path+"\n"+rules), "")
		if err != nil {
			t.Fatal(err)
		}
		own.Output.Path = r.Output.Path
		return pipeline.Run(context.Background(), own, pipeline.Options{})
	}
	for name, parts := range map[string][]part{
		"sums":         {h, n, sum},
		"streams":      {h, n, sum, cross, sumX, energy},
		"rows":         {rows},
		"both rows":    {rows, shifted},
		"other layers": append([]part{h, n, sum, {"elsewhere.H", []int{2, 2}, eye(2, 1)}, {"elsewhere.n", nil, []float32{1}}}, convolution...),
	} {
		got, err := run(a, parts...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if l := got.Layers[0]; l.RelativeError == nil || *l.RelativeError <= 0 || len(l.Fallbacks) != 0 || got.Data[0].Role != "moments" {
			t.Errorf("%s: %+v", name, l)
		}
	}
	// The two forms say the same.
	squares := part{"a.H", []int{1, 4, 4}, make([]float32, 16)}
	sums := part{"a.sum", []int{4}, make([]float32, 4)}
	for r := range 6 {
		for i := range 4 {
			sums.values[i] += rows.values[4*r+i]
			for j := range 4 {
				squares.values[4*i+j] += rows.values[4*r+i] * rows.values[4*r+j]
			}
		}
	}
	x, errX := run(a, rows)
	s, errS := run(a, squares, sums, part{"a.n", nil, []float32{6}})
	if err := errors.Join(errX, errS); err != nil {
		t.Fatal(err)
	}
	if *x.Layers[0].RelativeError != *s.Layers[0].RelativeError || x.Output.ManifestSHA256 == "" {
		t.Errorf("rows give %v, their sums %v", *x.Layers[0].RelativeError, *s.Layers[0].RelativeError)
	}
	// Without sums there is no correction, and the record says so.
	got, err := run(a, h, n)
	if err != nil {
		t.Fatal(err)
	}
	if f := got.Layers[0].Fallbacks; len(f) != 1 || f[0].Asked != "bias correction" || !strings.Contains(f[0].Reason, "a.sum") {
		t.Errorf("without sums: %+v", f)
	}
	if _, err := run(a+"on_fallback: fail\n", h, n); err == nil {
		t.Error("a missing sum passes on_fallback: fail")
	}
	// A convolution's groups come from the file: a term does not fit it then.
	const b = "rules: [{match: b, steps: [{quantize: {method: gptq, bits: 3}}, {compensate: {rank: 1}}]}]\n"
	if got, err = run(b, convolution...); err != nil {
		t.Fatal(err)
	}
	if f := got.Layers[0].Fallbacks; len(f) != 1 || !strings.Contains(f[0].Reason, "4 groups") {
		t.Errorf("groups: %+v", f)
	}

	for name, c := range map[string]struct {
		parts []part
		want  string
	}{
		"part":         {[]part{h, n, {"a.gram", nil, []float32{1}}}, "tensor a.gram: is no part of a layer's moments; want NAME.part, where part is one of H, n, sum"},
		"no rows":      {[]part{h}, "layer a: has H, but not n"},
		"no H":         {[]part{n, sum}, "neither H"},
		"both forms":   {[]part{h, n, rows}, "has x beside moments"},
		"xt alone":     {[]part{h, n, shifted}, "has xt without x"},
		"no energy":    {[]part{h, n, cross}, "has G, but not energy"},
		"one sum":      {[]part{h, n, sum, cross, energy}, "only one of sum and sum_x"},
		"energy alone": {[]part{h, n, energy}, "without G"},
		"shape":        {[]part{{"a.H", []int{3, 3}, eye(3, 1)}, n}, "tensor a.H: has shape [3 3], but layer a reads 4 inputs in 1 groups: want [4 4]"},
		"rows' shape":  {[]part{{"a.x", []int{4, 6}, rows.values}}, "want [rows 4]"},
		"rows differ":  {[]part{rows, {"a.xt", []int{5, 4}, shifted.values[:20]}}, "want the same rows"},
		"energies":     {[]part{h, n, cross, {"a.energy", []int{4}, []float32{1, 1, 1, 1}}}, "one for each of 8 outputs"},
		"negative":     {[]part{with(h, 5, -1), n}, "holds -1 on its diagonal"},
		"asymmetric":   {[]part{with(h, 1, 3), n}, "is not symmetric"},
		"too large":    {[]part{with(with(h, 1, 11), 4, 11), n}, "no sum of products"},
		"NaN":          {[]part{with(h, 2, nan), n}, "a.H holds NaN at index 2"},
		"NaN in rows":  {[]part{with(rows, 2, nan)}, "a.x holds NaN"},
		"half a row":   {[]part{h, {"a.n", []int{1}, []float32{1.5}}}, "one whole number of rows"},
		"means":        {[]part{h, {"a.n", nil, []float32{1}}, with(sum, 1, 9)}, "sums of all rows are wanted, not means"},
		"groups":       {[]part{{"a.H", []int{2, 4, 4}, append(eye(4, 1), eye(4, 1)...)}, n}, "in 1 groups"},
		"name":         {[]part{{"model.a.H", []int{4, 4}, h.values}, {"model.a.n", nil, []float32{1}}}, "layer a: is not in the file, and gptq needs its moments; the file has model.a"},
	} {
		if _, err := run(a, c.parts...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	for more, want := range map[string]string{
		"calibration: {data: x, format: idx}\n": "leave one of the two out",
		"remove: [{blocks: [1]}]\n":             "do not go with remove",
	} {
		if _, err := pipeline.ParseRecipe([]byte("version: 1\nmoments: m.pt\n"+a+more), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", more, err)
		}
	}
}
