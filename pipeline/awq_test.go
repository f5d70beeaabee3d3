package pipeline_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
)

// stories returns a recipe for the project's own language model. step is what
// the quantize step holds.
func stories(t *testing.T, step, more string) *pipeline.Recipe {
	t.Helper()
	r, err := pipeline.ParseRecipe([]byte(`version: 1
calibration: {data: calibration.u16, format: u16, samples: 12}
rules: [{match: "*", steps: [{quantize: {`+step+`}}]}]
evaluate: {data: test.u16, format: u16, samples: 20}
`+more), models+"lm/recipe.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r.Model.Path = models + "lm"
	r.Output.Path = filepath.Join(t.TempDir(), "out")
	return r
}

// storyTokens reads the first samples of the model's calibration data.
func storyTokens(t *testing.T, samples int) *model.Tensor {
	t.Helper()
	raw, err := os.ReadFile(models + "lm/calibration.u16")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(models + "lm/calibration.lengths.json")
	if err != nil {
		t.Fatal(err)
	}
	var lengths []int
	if err := json.Unmarshal(text, &lengths); err != nil {
		t.Fatal(err)
	}
	var sequences [][]uint32
	for _, n := range lengths[:samples] {
		s := make([]uint32, n)
		for i := range s {
			s[i] = uint32(binary.LittleEndian.Uint16(raw[2*i:]))
		}
		raw, sequences = raw[2*n:], append(sequences, s)
	}
	return model.NewTokens(sequences...)
}

// TestAWQRecordedErrorsAgainstTheModels holds what the loop found with moments of
// scaled inputs against the models run from their files, in whose compressed one
// the normalizations are divided.
func TestAWQRecordedErrorsAgainstTheModels(t *testing.T) {
	for _, step := range []string{"method: nearest, bits: 3, group_size: 32, range: awq", "method: gptq, bits: 3", "method: hqq, bits: 4"} {
		r := stories(t, step+", awq: true", "")
		run := mustRun(t, r, pipeline.Options{})
		original, written, graph := openBoth(t, r)
		in := storyTokens(t, 12)
		x := everyValue(t, graph, model.Stored(original), in, nil)
		xt := everyValue(t, graph, pipeline.Dequantized(written), in, nil)
		layers := map[string]record.Layer{}
		for _, l := range run.Layers {
			layers[l.Name] = l
		}
		for i := range graph.Ops {
			op := &graph.Ops[i]
			l, ok := layers[op.Name]
			if !ok {
				continue
			}
			want := relativeError(x[op.Output], xt[op.Output], make([]float32, op.Outputs))
			if got := *l.RelativeError; math.Abs(got-want) > 1e-3*want+1e-9 {
				t.Errorf("%s, %s: relative error %v from moments, %v from the models' outputs", step, op.Name, got, want)
			}
			folds := !strings.Contains(op.Name, "o_proj") && !strings.Contains(op.Name, "down_proj")
			if folds != (len(l.Fallbacks) == 0) || !folds && l.Fallbacks[0].Asked != "awq scaling" {
				t.Errorf("%s: fallbacks %+v", op.Name, l.Fallbacks)
			}
		}
	}
}

func openBoth(t *testing.T, r *pipeline.Recipe) (*loader.Checkpoint, *export.Model, *model.Graph) {
	t.Helper()
	ctx := context.Background()
	original, err := loader.Open(ctx, r.Model.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = original.Close() })
	written, err := export.Open(ctx, r.Output.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = written.Close() })
	config, err := os.ReadFile(filepath.Join(r.Model.Path, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	graph, err := model.Build(original.Tensors(), model.Options{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	return original, written, graph
}

// TestAWQKeepsTheFunction: with the normalizations as written and each layer's
// own weight times what they were divided by, the model is the original; and the
// written weights are these, rounded to 8 bits. A Llama has RMSNorms, a GPT-2
// LayerNorms with biases and weights that are stored transposed.
func TestAWQKeepsTheFunction(t *testing.T) {
	ids := filepath.Join(t.TempDir(), "ids.u16")
	raw := make([]byte, 2*64)
	for i := range 64 {
		raw[2*i] = byte(i * i % 19)
	}
	if err := os.WriteFile(ids, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	gpt2 := stories(t, "method: nearest, bits: 8, range: minmax, awq: true", "")
	gpt2.Model.Path = "../model/testdata/gpt2"
	for _, d := range []*pipeline.Data{gpt2.Calibration, gpt2.Evaluate} {
		d.Path, d.Samples, d.Text.Mode, d.Text.Length = ids, 0, "packed", 8
	}
	for _, c := range []struct {
		r     *pipeline.Recipe
		in    *model.Tensor
		maxKL float64
	}{
		{stories(t, "method: nearest, bits: 8, range: minmax, awq: true", "sequential: none\n"), storyTokens(t, 3), 1e-4},
		{gpt2, model.NewTokens([]uint32{1, 2, 3, 4, 5}, []uint32{7, 8}), 1e-2},
	} {
		run := mustRun(t, c.r, pipeline.Options{})
		if kl := run.Evaluation.Language.KL; kl > c.maxKL {
			t.Errorf("%s: KL %v at 8 bits", c.r.Model.Path, kl)
		}
		original, written, graph := openBoth(t, c.r)
		stored, rebuilt := model.Stored(original), pipeline.Dequantized(written)
		read := func(w model.Weights, name string) []float32 {
			v, err := w(name)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		weights := map[string][]float32{}
		scaled := 0
		for i := range graph.Ops {
			norm := graph.Ops[i].Norm
			if norm == nil {
				continue
			}
			before, after := read(stored, norm.Weight), read(rebuilt, norm.Weight)
			weights[norm.Weight] = after
			if norm.Bias != "" {
				weights[norm.Bias] = read(rebuilt, norm.Bias)
			}
			for _, j := range graph.Readers(graph.Ops[i].Output) {
				op := &graph.Ops[j]
				w := read(stored, op.Weight)
				rows, cols := op.Outputs, len(w)/op.Outputs
				most, off := 0.0, 0.0
				q := read(rebuilt, op.Weight)
				for k := range w {
					input := k % cols
					if op.Transposed {
						input = k / rows
					}
					if before[input] != after[input] {
						scaled++
					}
					w[k] = float32(float64(w[k]) * float64(before[input]) / float64(after[input]))
					most, off = max(most, math.Abs(float64(w[k]))), max(off, math.Abs(float64(w[k]-q[k])))
				}
				if off > most/200 {
					t.Errorf("%s: a weight is off by %v of %v", op.Name, off, most)
				}
				weights[op.Weight] = w
			}
		}
		if scaled == 0 {
			t.Errorf("%s: nothing is scaled", c.r.Model.Path)
		}
		mixed := func(name string) ([]float32, error) {
			if w, ok := weights[name]; ok {
				return w, nil
			}
			return stored(name)
		}
		want := everyValue(t, graph, stored, c.in, nil)[graph.Output]
		got := everyValue(t, graph, mixed, c.in, nil)[graph.Output]
		for i, v := range want.Data {
			if math.Abs(float64(got.Data[i]-v)) > 2e-5*max(1, math.Abs(float64(v))) {
				t.Fatalf("%s: logit %d is %v, want %v", c.r.Model.Path, i, got.Data[i], v)
			}
		}
	}
}

// TestAWQSameBytes: workers, caches, and a run that was cut between the layers
// that share scales.
func TestAWQSameBytes(t *testing.T) {
	const step = "method: gptq, bits: 3, group_size: 16, range: awq, awq: true"
	want := mustRun(t, stories(t, step, ""), pipeline.Options{Workers: 1}).Output.ManifestSHA256
	if got := mustRun(t, stories(t, step, ""), pipeline.Options{Workers: 5}).Output.ManifestSHA256; got != want {
		t.Error("5 workers: another digest")
	}
	cache := t.TempDir()
	for _, layers := range []int{2, 9} {
		ctx, cancel := context.WithCancel(context.Background())
		_, err := pipeline.Run(ctx, stories(t, step, ""), pipeline.Options{Cache: cache, Events: func(e pipeline.Event) {
			if e.Done == layers && e.Layer != "" {
				cancel()
			}
		}})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("cut short: %v", err)
		}
	}
	lost := false // one of the units of layers that share scales
	for _, name := range []string{"resumed", "warm", "one lost"} {
		run := mustRun(t, stories(t, step, ""), pipeline.Options{Cache: cache})
		if run.Output.ManifestSHA256 != want || (name == "warm") != (run.Units.Computed == 0) {
			t.Errorf("%s: digest equal %v, %+v", name, run.Output.ManifestSHA256 == want, run.Units)
		}
		if name == "warm" {
			lost = loseUnit(t, cache, "layers.1.self_attn.k_proj.weight")
		}
	}
	if !lost {
		t.Error("no unit of k_proj was found")
	}
}

// loseUnit deletes the solution of a weight.
func loseUnit(t *testing.T, dir, weight string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		unit, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(unit), `\"layer\":\"model.`+weight) {
			return err
		}
		found = true
		return os.Remove(path)
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestAWQKeys: scales depend on all layers that read the value.
func TestAWQKeys(t *testing.T) {
	cache := t.TempDir()
	const step = "method: nearest, bits: 3, awq: true"
	mustRun(t, stories(t, step, ""), pipeline.Options{Cache: cache})
	r := stories(t, step, "")
	first := r.Rules[0]
	other := *first.Steps[0].Quantize
	other.Bits = 2
	r.Rules = append([]pipeline.Rule{{Match: "*layers.0.self_attn.v_proj", Steps: []pipeline.Step{{Quantize: &other}}}}, first)
	run := mustRun(t, r, pipeline.Options{Cache: cache})
	for _, l := range run.Layers[:3] {
		if l.Cached {
			t.Errorf("%s is found again, though v_proj's bits have changed", l.Name)
		}
	}
	if fresh := mustRun(t, r2(t, r), pipeline.Options{}); fresh.Output.ManifestSHA256 != run.Output.ManifestSHA256 {
		t.Error("a filled cache changes the result")
	}
}

// TestAWQCannotScale: without all readers, on a network without such
// normalizations, or without data.
func TestAWQCannotScale(t *testing.T) {
	r := stories(t, "method: nearest, bits: 4, awq: true", "")
	r.Rules = append([]pipeline.Rule{{Match: "*layers.0.self_attn.v_proj"}}, r.Rules...)
	plan, err := pipeline.MakePlan(context.Background(), r, pipeline.Options{})
	if err != nil {
		t.Fatal(err)
	}
	q := plan.Layers[0]
	if q.Scaled || len(q.Fallbacks) != 1 || q.Fallbacks[0].Reason != "layers.0.self_attn.v_proj reads the same value and is not scaled" {
		t.Errorf("%s: %+v", q.Name, q.Fallbacks)
	}
	scaled := 0
	for _, l := range plan.Layers {
		if l.Scaled {
			scaled++
		}
	}
	if scaled != 2+3+2+3+2 {
		t.Errorf("%d layers are scaled", scaled)
	}

	image := glyphs(t, "method: nearest, bits: 4, awq: true", "on_fallback: fail\n")
	var fell *pipeline.FallbackError
	if _, err := pipeline.MakePlan(context.Background(), image, pipeline.Options{}); !errors.As(err, &fell) || fell.Fallback.Asked != "awq scaling" {
		t.Errorf("on_fallback: fail: %v", err)
	}

	for _, step := range []string{"method: nearest, bits: 4, awq: true", "method: nearest, bits: 4, range: awq"} {
		r = stories(t, step, "")
		r.Calibration = nil
		var bad *pipeline.RecipeError
		if _, err := pipeline.Run(context.Background(), r, pipeline.Options{}); !errors.As(err, &bad) || bad.Where != "calibration" {
			t.Errorf("%s without data: %v", step, err)
		}
	}
	r = stories(t, "method: hqq, bits: 4", "")
	r.Calibration = nil
	if run := mustRun(t, r, pipeline.Options{}); run.Layers[0].Method != "hqq" || run.Evaluation.Language.KL > 0.1 {
		t.Errorf("hqq without data: %+v", run.Evaluation.Language)
	}
}
