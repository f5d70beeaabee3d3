package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/fettle-dev/fettle/dataset"
	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
)

const models = "../testmodels/"

// glyphs returns a recipe for the project's own ResNet. step is what the
// quantize step holds.
func glyphs(t *testing.T, step, more string) *pipeline.Recipe {
	t.Helper()
	r, err := pipeline.ParseRecipe([]byte(`version: 1
model: {path: resnet8.th, input: {shape: [1, 16, 16], mean: [0.35], std: [0.24]}}
calibration: {data: glyphs-calibration.safetensors, format: safetensors, samples: 100}
rules: [{match: "*", steps: [{quantize: {`+step+`}}]}]
evaluate: {data: glyphs-test.safetensors, format: safetensors, samples: 200}
`+more), models+"recipe.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r.Output.Path = filepath.Join(t.TempDir(), "out")
	return r
}

func mustRun(t *testing.T, r *pipeline.Recipe, o pipeline.Options) *record.Run {
	t.Helper()
	run, err := pipeline.Run(context.Background(), r, o)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// TestRecordedErrorsAgainstTheModels runs both models from their files over
// the calibration samples, value by value, and holds each layer's output error
// against the one that the loop found from moments.
func TestRecordedErrorsAgainstTheModels(t *testing.T) {
	for _, r := range []*pipeline.Recipe{
		glyphs(t, "method: gptq, bits: 3, align: true", ""), glyphs(t, "method: gptq, bits: 3, align: true", "sequential: none\n"),
		stepped(t, "resnet8", "{prune: {method: sparsegpt, sparsity: 0.6}}, {quantize: {method: gptq, bits: 3}}, {compensate: {rank: 2, bits: 8, alternations: 1}}", ""),
	} {
		run := mustRun(t, r, pipeline.Options{})
		ctx := context.Background()
		ckpt, err := loader.Open(ctx, r.Model.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer ckpt.Close()
		written, err := export.Open(ctx, r.Output.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer written.Close()
		graph, err := model.Build(ckpt.Tensors(), model.Options{InputShape: []int{1, 16, 16}})
		if err != nil {
			t.Fatal(err)
		}
		images, err := pipeline.OpenImages(ctx, r.Calibration, graph, r.Model.Input)
		if err != nil {
			t.Fatal(err)
		}
		in := imageInput(t, images)
		x := everyValue(t, graph, model.Stored(ckpt), in, nil)
		var same []*model.Tensor
		if r.Sequential == "none" {
			same = x // without propagation, layers see the original's inputs
		}
		xt := everyValue(t, graph, pipeline.Dequantized(written), in, same)
		layers := map[string]record.Layer{}
		for _, l := range run.Layers {
			layers[l.Name] = l
		}
		for i := range graph.Ops {
			op := &graph.Ops[i]
			if !op.IsLayer() {
				continue
			}
			bias := make([]float32, op.Outputs)
			if op.Bias != "" {
				if err := ckpt.ReadFloat32(op.Bias, bias); err != nil {
					t.Fatal(err)
				}
			}
			want := relativeError(x[op.Output], xt[op.Output], bias)
			got := *layers[op.Name].RelativeError
			if math.Abs(got-want) > 1e-3*want+1e-9 {
				t.Errorf("%s %s: relative error %v from moments, %v from the models' outputs", r.Sequential, op.Name, got, want)
			}
		}
	}
}

// TestRecordedErrorsOfResidualTargets: with residual targets and corrected
// biases, a layer's error is that of the sum it writes into, or of the
// normalization behind it, over that one's factor.
func TestRecordedErrorsOfResidualTargets(t *testing.T) {
	ctx := context.Background()
	r := glyphs(t, "bits: 3", "")
	run := mustRun(t, r, pipeline.Options{})
	ckpt, err := loader.Open(ctx, r.Model.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer ckpt.Close()
	written, err := export.Open(ctx, r.Output.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer written.Close()
	graph, err := model.Build(ckpt.Tensors(), model.Options{InputShape: []int{1, 16, 16}})
	if err != nil {
		t.Fatal(err)
	}
	images, err := pipeline.OpenImages(ctx, r.Calibration, graph, r.Model.Input)
	if err != nil {
		t.Fatal(err)
	}
	x := everyValue(t, graph, model.Stored(ckpt), imageInput(t, images), nil)
	xt := everyValue(t, graph, pipeline.Dequantized(written), imageInput(t, images), nil)
	layers := map[string]record.Layer{}
	for _, l := range run.Layers {
		layers[l.Name] = l
	}
	sums := 0
	for i := range graph.Ops {
		op := &graph.Ops[i]
		if op.Conv == nil {
			continue
		}
		norm := &graph.Ops[graph.Readers(op.Output)[0]]
		at := norm.Output
		if next := &graph.Ops[graph.Readers(at)[0]]; next.Kind == model.Add {
			at = next.Output
			sums++
		}
		scale, variance := make([]float32, op.Outputs), make([]float32, op.Outputs)
		if err := errors.Join(ckpt.ReadFloat32(norm.BatchNorm.Scale, scale), ckpt.ReadFloat32(norm.BatchNorm.Var, variance)); err != nil {
			t.Fatal(err)
		}
		area := len(x[at].Data) / x[at].Shape[0] / op.Outputs
		var lost, energy float64
		for k, v := range x[at].Data {
			c := k / area % op.Outputs
			d := float64(v-xt[at].Data[k]) / float64(scale[c]) * math.Sqrt(float64(variance[c])+norm.BatchNorm.Eps)
			lost += d * d
			energy += float64(x[op.Output].Data[k]) * float64(x[op.Output].Data[k])
		}
		if got, want := *layers[op.Name].RelativeError, lost/energy; math.Abs(got-want) > 2e-3*want {
			t.Errorf("%s: relative error %v from moments, %v from the models' values", op.Name, got, want)
		}
	}
	if sums == 0 {
		t.Error("no layer writes into a sum")
	}
}

// imageInput reads all images.
func imageInput(t *testing.T, images *dataset.Images) *model.Tensor {
	t.Helper()
	shape := append([]int{images.N}, images.Shape...)
	in := &model.Tensor{Shape: shape, Data: make([]float32, images.N*images.Shape[0]*images.Shape[1]*images.Shape[2])}
	if err := images.Read(in.Data, 0, images.N); err != nil {
		t.Fatal(err)
	}
	return in
}

// everyValue computes all values of the graph, each from its inputs in inputs
// where given, else from those computed before.
func everyValue(t *testing.T, g *model.Graph, w model.Weights, in *model.Tensor, inputs []*model.Tensor) []*model.Tensor {
	t.Helper()
	values := make([]*model.Tensor, len(g.Values))
	values[g.Input] = in
	if inputs == nil {
		inputs = values
	}
	e := model.NewExecutor(g, nil, w)
	for i := range g.Ops {
		var args []*model.Tensor
		for _, v := range g.Ops[i].Inputs {
			args = append(args, inputs[v])
		}
		out, err := e.Step(context.Background(), i, args)
		if err != nil {
			t.Fatal(err)
		}
		values[g.Ops[i].Output] = out
	}
	return values
}

func relativeError(y, yt *model.Tensor, bias []float32) float64 {
	area := len(y.Data) / (y.Shape[0] * len(bias))
	var sum, energy float64
	for i := range y.Data {
		d := float64(y.Data[i]) - float64(yt.Data[i])
		e := float64(y.Data[i]) - float64(bias[i/area%len(bias)])
		sum += d * d
		energy += e * e
	}
	return sum / energy
}

// TestSameBytes holds the output of one recipe against itself with other
// workers, with a cold and a warm cache, and after a run that was cut short.
func TestSameBytes(t *testing.T) {
	t.Run("moments", func(t *testing.T) {
		testSameBytes(t, "method: adaround, bits: 3, bias_correction: true, adaround: {steps: 30}")
	})
	t.Run("sample", func(t *testing.T) {
		testSameBytes(t, "method: adaround, bits: 3, adaround: {sample: true, rows: 300, steps: 20}")
	})
}

func testSameBytes(t *testing.T, step string) {
	want := mustRun(t, glyphs(t, step, ""), pipeline.Options{Workers: 1}).Output.ManifestSHA256
	for _, workers := range []int{2, 5} {
		if got := mustRun(t, glyphs(t, step, ""), pipeline.Options{Workers: workers}).Output.ManifestSHA256; got != want {
			t.Errorf("%d workers: another digest", workers)
		}
	}

	cache := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	cut := glyphs(t, step, "")
	_, err := pipeline.Run(ctx, cut, pipeline.Options{Cache: cache, Events: func(e pipeline.Event) {
		if e.Done == 4 && e.Layer != "" {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("cut short: %v", err)
	}
	if _, err := os.Stat(cut.Output.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a run that was cut short left an output folder")
	}
	resumed := mustRun(t, glyphs(t, step, ""), pipeline.Options{Cache: cache})
	if resumed.Output.ManifestSHA256 != want || resumed.Units.Reused < 4 || !resumed.Layers[3].Cached || resumed.Layers[4].Cached {
		t.Errorf("resumed: digest equal %v, %+v", resumed.Output.ManifestSHA256 == want, resumed.Units)
	}
	warm := mustRun(t, glyphs(t, step, ""), pipeline.Options{Cache: cache})
	if warm.Output.ManifestSHA256 != want || warm.Units.Computed != 0 {
		t.Errorf("warm: digest equal %v, %+v", warm.Output.ManifestSHA256 == want, warm.Units)
	}

	for _, l := range warm.Layers {
		if l.SoftRelativeError == nil || *l.RelativeError > *l.NearestRelativeError {
			t.Errorf("layer %s: error %v, nearest %v, relaxed %v", l.Name, *l.RelativeError, *l.NearestRelativeError, l.SoftRelativeError)
		}
	}

	// Damaged units are replaced, not believed.
	damage(t, cache)
	mended := mustRun(t, glyphs(t, step, ""), pipeline.Options{Cache: cache})
	if mended.Output.ManifestSHA256 != want || mended.Units.Reused != 0 {
		t.Errorf("damaged: digest equal %v, %+v", mended.Output.ManifestSHA256 == want, mended.Units)
	}
	if again := mustRun(t, glyphs(t, step, ""), pipeline.Options{Cache: cache}); again.Units.Computed != 0 {
		t.Errorf("not mended: %+v", again.Units)
	}
}

func damage(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return os.Truncate(path, info.Size()-1)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestKeysTellRunsApart changes one thing at a time: units of another recipe
// must not be taken for this one's.
func TestKeysTellRunsApart(t *testing.T) {
	cache := t.TempDir()
	base := "method: gptq, bits: 4"
	first := mustRun(t, glyphs(t, base, ""), pipeline.Options{Cache: cache})
	layers := len(first.Layers)
	for name, r := range map[string]*pipeline.Recipe{
		"bits":       glyphs(t, "method: gptq, bits: 3", ""),
		"align":      glyphs(t, base+", align: false", ""),
		"symmetric":  glyphs(t, base+", symmetric: true", ""),
		"damping":    glyphs(t, base+", damping: 0.02", ""),
		"scale type": glyphs(t, base+", scale_type: f16", ""),
		"sample":     glyphs(t, "method: adaround, bits: 4, adaround: {sample: true, rows: 50, steps: 5}", ""),
		"rows":       glyphs(t, "method: adaround, bits: 4, adaround: {sample: true, rows: 60, steps: 5}", ""),
	} {
		run := mustRun(t, r, pipeline.Options{Cache: cache})
		fresh := mustRun(t, r2(t, r), pipeline.Options{})
		if run.Output.ManifestSHA256 != fresh.Output.ManifestSHA256 {
			t.Errorf("%s: a filled cache changes the result", name)
		}
		for _, l := range run.Layers {
			if l.Cached {
				t.Errorf("%s: layer %s was taken from another recipe", name, l.Name)
			}
		}
	}
	// Other samples, other order of advance: nothing but the first layer's
	// solution under the same moments may be found again.
	r := glyphs(t, base, "sequential: none\n")
	if run := mustRun(t, r, pipeline.Options{Cache: cache}); !run.Layers[0].Cached || run.Layers[layers-1].Cached {
		t.Error("sequential: none shares the first value's units, and only those")
	}
	r = glyphs(t, base, "")
	r.Calibration.Samples = 99
	for _, l := range mustRun(t, r, pipeline.Options{Cache: cache}).Layers {
		if l.Cached {
			t.Errorf("layer %s of other samples was found", l.Name)
		}
	}
}

// r2 is the same recipe with an output folder of its own.
func r2(t *testing.T, r *pipeline.Recipe) *pipeline.Recipe {
	copied := *r
	copied.Output.Path = filepath.Join(t.TempDir(), "out")
	return &copied
}

// TestAlignmentPays holds the end-to-end effect of alignment and of better
// rounding on held-out samples.
func TestAlignmentPays(t *testing.T) {
	kl := func(step string) float64 {
		return mustRun(t, glyphs(t, step, ""), pipeline.Options{}).Evaluation.KL
	}
	nearest := kl("method: nearest, bits: 2")
	plain := kl("method: gptq, bits: 2, align: false")
	aligned := kl("method: gptq, bits: 2, align: true")
	if !(aligned < plain && plain < nearest) {
		t.Errorf("KL at 2 bits: nearest %.3f, GPTQ %.3f, aligned %.3f", nearest, plain, aligned)
	}
}

// TestPathsEndToEnd: path-following methods and alphabets reach the files with
// the sizes foretold (a run that finds another size fails), their errors within
// the bounds that the record holds.
func TestPathsEndToEnd(t *testing.T) {
	for step, bits := range map[string]int{
		"method: gpfq, bits: 3": 3, "method: spfq, bits: 4, bias_correction: true": 4, "method: qronos, bits: 3": 3,
		"method: gpfq, bits: 3, alphabet: gpfq": 4, "method: gpfq, alphabet: ternary": 2, "method: spfq, alphabet: binary": 2,
		"method: gpfq, bits: 4, alphabet: gpfq, gpfq: {threshold: hard, lambda: 0.3}": 5,
	} {
		run := mustRun(t, glyphs(t, step, ""), pipeline.Options{})
		for _, l := range run.Layers {
			bounded := l.BoundRelativeError != nil
			if l.Bits != bits || bounded == (l.Method == "qronos") || bounded && *l.RelativeError > *l.BoundRelativeError {
				t.Errorf("%s: layer %+v", step, l)
			}
		}
	}
}

func TestOutputIsNotTouched(t *testing.T) {
	r := glyphs(t, "method: nearest, bits: 4", "")
	boom := errors.New("boom")
	_, err := pipeline.Run(context.Background(), r, pipeline.Options{Finish: func(string, *record.Run) error { return boom }})
	if !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	entries, err := os.ReadDir(filepath.Dir(r.Output.Path))
	if err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// Compress a checkpoint from Go: a recipe, a run, its record.
func Example() {
	dir, err := os.MkdirTemp("", "fettle")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)

	recipe, err := pipeline.ReadRecipe("../testmodels/demo.yaml")
	if err != nil {
		panic(err)
	}
	recipe.Model.Path = "../testmodels/resnet8.th"
	recipe.Output.Path = filepath.Join(dir, "out")
	run, err := pipeline.Run(context.Background(), recipe, pipeline.Options{})
	if err != nil {
		panic(err)
	}
	fmt.Printf("%d layers, %d → %d bytes\n", len(run.Layers), run.Source.Bytes, run.Output.WeightBytes)
	fmt.Println("lost less than a point:", run.Evaluation.AccuracyDrop < 1)
	// Output:
	// 8 layers, 83123 → 16120 bytes
	// lost less than a point: true
}
