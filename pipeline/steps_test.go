package pipeline_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/prune"
	"github.com/fettle-dev/fettle/record"
)

// stepped returns a recipe for one of the project's models (resnet8, mlp, lm), all
// of whose layers take the steps.
func stepped(t *testing.T, name, steps, more string) *pipeline.Recipe {
	t.Helper()
	return ruled(t, name, `rules: [{match: "*", steps: [`+steps+`]}]
`+more)
}

// ruled is stepped for any rules.
func ruled(t *testing.T, name, rules string) *pipeline.Recipe {
	t.Helper()
	images := `calibration: {data: glyphs-calibration.safetensors, format: safetensors, samples: 16}
evaluate: {data: glyphs-test.safetensors, format: safetensors, samples: 20}
`
	head := map[string]string{
		"resnet8": "model: {path: resnet8.th, input: {shape: [1, 16, 16], mean: [0.35], std: [0.24]}}\n" + images,
		"mlp":     "model: {path: mlp.pt, architecture: mlp, activation: relu, input: {mean: [0.35], std: [0.24]}}\n" + images,
		"lm":      "model: {path: lm}\ncalibration: {data: lm/calibration.u16, format: u16, samples: 3}\nevaluate: {data: lm/test.u16, format: u16, samples: 1}\n",
	}[name]
	r, err := pipeline.ParseRecipe([]byte("version: 1\n"+head+rules), models+"recipe.yaml")
	if err != nil {
		t.Fatalf("%s: %v", rules, err)
	}
	r.Output.Path = filepath.Join(t.TempDir(), "out")
	return r
}

// TestSteps runs compositions of steps on the project's models, and holds of each
// what must hold of all: see checkSteps.
func TestSteps(t *testing.T) {
	cases := []struct{ model, steps string }{
		{"resnet8", "{prune: {sparsity: 0.7, admm: {iterations: 20}}}"},
		{"resnet8", "{prune: {method: sparsegpt, sparsity: 0.6, scope: layer, allocation: erk, layout: bitmask}}"},
		{"resnet8", "{prune: {method: magnitude, sparsity: 0.8, scope: layer, allocation: lamp, layout: columns}}, {quantize: {method: nearest, bits: 4}}"},
		{"resnet8", "{prune: {method: wanda, sparsity: 0.5, allocation: owl, owl: {lambda: 0.1}}}, {quantize: {method: gptq, bits: 4}}"},
		{"resnet8", "{prune: {method: magnitude, sparsity: 0.6, allocation: rate-distortion, samples: 5, scope: layer}}"},
		{"resnet8", "{prune: {method: magnitude, sparsity: 0.5, pattern: block 4x3}}, {quantize: {method: nearest, bits: 5}}"},
		{"resnet8", "{prune: {method: sparsegpt, pattern: '2:4', joint: true}}, {quantize: {method: gptq, bits: 4, group_size: 9, act_order: false}}"},
		{"resnet8", "{prune: {method: wanda, sparsity: 0.5, polish: true, swaps: 2, allocation: uniform+, layout: dense}}, {quantize: {method: adaround, bits: 4, adaround: {steps: 20}}}"},
		{"mlp", "{prune: {method: sparsegpt, sparsity: 0.9, allocation: global}}, {quantize: {bits: 4}}, {compensate: {rank: 2, alternations: 2}}"},
		{"mlp", "{prune: {method: magnitude, sparsity: 0.8, scope: layer}}, {compensate: {rank: 3, merge: true, method: svd}}"},
		{"lm", "{prune: {pattern: '2:4', admm: {iterations: 15}, layout: pattern}}, {quantize: {method: gptq, bits: 4, group_size: 32}}, {compensate: {rank: 4, bits: 8}}"},
		{"lm", "{prune: {method: sparsegpt, sparsity: 0.5, allocation: owl, joint: true}}, {quantize: {method: gptq, bits: 3, group_size: 32, bias_correction: false}}, {compensate: {budget: 20KB, factors: bf16}}"},
		{"lm", "{quantize: {method: nearest, bits: 3}}, {compensate: {method: scaled-svd, budget: 9KB, bits: 4, alternations: 1}}"},
		{"mlp", "{prune: {method: wanda, sparsity: 0.5}}, {quantize: {method: gpfq, bits: 4}}"},
		{"mlp", "{prune: {sparsity: 0.6, allocation: rate-distortion}}, {quantize: {method: gpfq, bits: 4}}, {compensate: {rank: 1}}"},
		{"lm", "{prune: {method: magnitude, pattern: '2:4'}}, {quantize: {method: nearest, format: nvfp4}}"},
	}
	for _, c := range cases {
		t.Run(c.model+" "+c.steps, func(t *testing.T) {
			checkSteps(t, func() *pipeline.Recipe { return stepped(t, c.model, c.steps, "") })
		})
	}
}

// checkSteps runs a recipe with one worker, with three and a cache, and with that
// cache once more. The digests are equal, the last run computes nothing, the plan
// foretells bytes and survivors, the record is filled in and finite, and the folder
// opens and gives the figures of the record.
func checkSteps(t *testing.T, recipe func() *pipeline.Recipe) *record.Run {
	t.Helper()
	ctx := context.Background()
	r := recipe()
	first := mustRun(t, r, pipeline.Options{Workers: 1})
	cache := t.TempDir()
	if second := mustRun(t, recipe(), pipeline.Options{Workers: 3, Cache: cache}); second.Output.ManifestSHA256 != first.Output.ManifestSHA256 {
		t.Error("another digest with three workers and a cache")
	}
	third := mustRun(t, recipe(), pipeline.Options{Cache: cache})
	if third.Output.ManifestSHA256 != first.Output.ManifestSHA256 || third.Units.Computed != 0 {
		t.Errorf("again: digest equal %v, %+v", third.Output.ManifestSHA256 == first.Output.ManifestSHA256, third.Units)
	}
	plan, err := pipeline.MakePlan(ctx, recipe(), pipeline.Options{Cache: cache})
	if err != nil {
		t.Fatal(err)
	}
	written, err := export.Open(ctx, r.Output.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer written.Close()
	if len(plan.Layers) != len(first.Layers) {
		t.Fatalf("%d layers planned, %d compressed", len(plan.Layers), len(first.Layers))
	}
	var factors int64
	budget := false
	for i := range plan.Layers {
		p, l := &plan.Layers[i], &first.Layers[i]
		checkLayer(t, p, l, written)
		if l.Compensate != nil {
			factors += l.Compensate.Bytes
		}
		budget = budget || p.Compensate != nil && p.Compensate.Rank == 0
	}
	if budget {
		checkBudget(t, recipe(), first, factors)
	} else if plan.WeightBytes != first.Output.WeightBytes {
		t.Errorf("%d bytes planned, %d written", plan.WeightBytes, first.Output.WeightBytes)
	}
	again := recipe()
	again.Model.Path, again.Evaluate.Targets = r.Output.Path, 0
	m, err := pipeline.Evaluate(ctx, again, pipeline.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if e := first.Evaluation; e.Language != nil && m.Language.Loss != e.Language.Compressed.Loss || e.Language == nil && m.Metrics != e.Compressed {
		t.Errorf("the folder gives %+v, the record says %+v", m, e)
	}
	return first
}

// checkLayer holds a layer's plan, its record and what is in the folder together.
func checkLayer(t *testing.T, p *pipeline.PlanLayer, l *record.Layer, written *export.Model) {
	t.Helper()
	var numbers []*float64
	numbers = append(numbers, l.RelativeError, l.NearestRelativeError)
	if (p.Prune != nil) != (l.Prune != nil) || (p.Quantize != nil) != (l.Method != "") {
		t.Fatalf("%s: planned %+v, recorded %+v", l.Name, p, l)
	}
	s, err := written.Solution(l.Weight)
	if err != nil {
		t.Fatal(err)
	}
	if l.Prune != nil {
		r := l.Prune
		if r.Survivors != int64(p.Prune.Survivors) || r.Sparsity != p.Sparsity() || r.Method == "" || r.Pattern != p.Prune.Pattern.String() || r.Allocation == "" {
			t.Errorf("%s: planned %+v, recorded %+v", l.Name, p.Prune, r)
		}
		if string(p.Spec.Pruned.Layout) != l.Layout || (l.Layout != "") != (s.Mask != nil) {
			t.Errorf("%s: layout %q planned, %q recorded", l.Name, p.Spec.Pruned.Layout, l.Layout)
		}
		if s.Mask != nil && s.Mask.Survivors() != p.Prune.Survivors {
			t.Errorf("%s: %d weights in the file, %d planned", l.Name, s.Mask.Survivors(), p.Prune.Survivors)
		}
		base, left := make([]float32, s.Rows*s.Cols), 0
		s.Base(base)
		for _, v := range base {
			if v != 0 {
				left++
			}
		}
		if merged := l.Compensate != nil && l.Compensate.Merged; left > p.Prune.Survivors && !merged || left == 0 {
			t.Errorf("%s: %d weights are not 0, %d were to survive", l.Name, left, p.Prune.Survivors)
		}
		if l.Method != "" && !p.Prune.Joint {
			numbers = append(numbers, r.RelativeError)
		}
	}
	if c := l.Compensate; c != nil {
		numbers = append(numbers, c.RelativeError)
		if c.Method == "" || c.Factors == "" || c.Rank < 1 || (c.Bytes == 0) != c.Merged || !c.Merged && s.LowRank.Rank() != c.Rank {
			t.Errorf("%s: term %+v", l.Name, c)
		}
		if c.RelativeError != nil && c.Method == "eora" && *c.RelativeError < *l.RelativeError*(1-1e-3) {
			t.Errorf("%s: relative error %v without the term, %v with it", l.Name, *c.RelativeError, *l.RelativeError)
		}
	}
	for i, v := range numbers {
		if v == nil || math.IsNaN(*v) || math.IsInf(*v, 0) || *v < 0 {
			t.Errorf("%s: error %d of the record is %v", l.Name, i, v)
		}
	}
}

// checkBudget: factors take no more than their budget, and their next component
// would not have fitted.
func checkBudget(t *testing.T, r *pipeline.Recipe, run *record.Run, factors int64) {
	t.Helper()
	budget := int64(0)
	for _, s := range r.Rules[0].Steps {
		if s.Compensate != nil {
			if _, err := fmt.Sscanf(strings.ToUpper(s.Compensate.Budget), "%dKB", &budget); err != nil {
				t.Fatal(err)
			}
			budget *= 1000
		}
	}
	largest := int64(0)
	for _, l := range run.Layers {
		if c := l.Compensate; c != nil {
			largest = max(largest, c.Bytes/int64(c.Rank))
		}
	}
	if factors > budget || factors <= budget-largest {
		t.Errorf("factors take %d of %d bytes, a component up to %d", factors, budget, largest)
	}
}

// TestStepKeys changes one thing of the steps at a time, with one cache: the result
// is that of a run without one.
func TestStepKeys(t *testing.T) {
	cache := t.TempDir()
	const base = "{prune: {method: sparsegpt, sparsity: 0.7}}, {quantize: {method: gptq, bits: 3}}, {compensate: {rank: 2}}"
	mustRun(t, stepped(t, "mlp", base, ""), pipeline.Options{Cache: cache})
	for _, c := range [][2]string{
		{"sparsity: 0.7", "sparsity: 0.7, scope: layer"},
		{"sparsity: 0.7", "sparsity: 0.7, polish: true"},
		{"sparsity: 0.7", "sparsity: 0.7, joint: true"},
		{"sparsity: 0.7", "sparsity: 0.7, allocation: owl, owl: {threshold: 2}"},
		{"sparsity: 0.7", "sparsity: 0.7, allocation: rate-distortion, samples: 4"},
		{"method: sparsegpt, sparsity: 0.7", "sparsity: 0.7"},
		{"method: sparsegpt, sparsity: 0.7", "sparsity: 0.7, admm: {iterations: 9}"},
		{"method: sparsegpt, sparsity: 0.7", "sparsity: 0.7, admm: {rho: 0.1}"},
		{"method: sparsegpt, sparsity: 0.7", "sparsity: 0.7, admm: {preset: fast}"},
		{"rank: 2", "rank: 2, bits: 8"},
		{"rank: 2", "rank: 2, alternations: 1"},
		{"rank: 2", "rank: 2, method: svd"},
		{"rank: 2", "budget: 3KB"},
	} {
		changed := strings.Replace(base, c[0], c[1], 1)
		kept := mustRun(t, stepped(t, "mlp", changed, ""), pipeline.Options{Cache: cache})
		if fresh := mustRun(t, stepped(t, "mlp", changed, ""), pipeline.Options{}); kept.Output.ManifestSHA256 != fresh.Output.ManifestSHA256 {
			t.Errorf("%s: a filled cache changes the result", c[1])
		}
	}
}

// TestStepsRefused: what cannot be done is said before anything is written.
func TestStepsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		model, rules string
		options      pipeline.Options
		target       any
		want         string
	}{
		"no data to allocate on": {"mlp", "rules: [{match: '*', steps: [{prune: {method: magnitude, sparsity: 0.5, allocation: owl}}]}]", pipeline.Options{}, new(*pipeline.RecipeError), "recipe.yaml: calibration: is missing, and allocation owl measures on data"},
		"no data to compensate":  {"mlp", "rules: [{match: '*', steps: [{quantize: {method: nearest, bits: 4}}, {compensate: {rank: 1}}]}]", pipeline.Options{}, new(*pipeline.RecipeError), "(nearest, eora) needs data"},
		"too sparse":             {"mlp", "rules: [{match: '*', steps: [{prune: {method: magnitude, sparsity: 0.99999}}]}]", pipeline.Options{}, new(*prune.ImpossibleError), "rules[0]: prune: uniform: sparsity 0.99999 leaves"},
		"blocks":                 {"resnet8", "rules: [{match: conv1, steps: [{prune: {method: magnitude, sparsity: 0.5, pattern: block 16x16}}]}]\non_fallback: fail", pipeline.Options{}, new(*pipeline.FallbackError), "layer conv1 cannot have pattern block 16x16"},
		"layout":                 {"resnet8", "rules: [{match: linear, steps: [{prune: {method: magnitude, pattern: '36:72', layout: pattern}}]}]\non_fallback: fail", pipeline.Options{}, new(*pipeline.FallbackError), "cannot have layout pattern: it cannot hold what pattern 36:72 leaves of 32 inputs"},
		"rescued":                {"resnet8", "rules: [{match: '*', steps: [{prune: {method: magnitude, sparsity: 0.9995, scope: layer, allocation: global}}]}]\non_fallback: fail", pipeline.Options{}, new(*pipeline.FallbackError), "cannot have allocation global: it would have left the layer nothing"},
		"memory":                 {"mlp", "rules: [{match: '*', steps: [{prune: {method: magnitude, sparsity: 0.5, allocation: rate-distortion}}]}]", pipeline.Options{Memory: 1e6}, new(*pipeline.MemoryError), "the ceiling is 1 MB"},
	} {
		r := ruled(t, c.model, c.rules)
		if strings.HasPrefix(name, "no data") {
			r.Calibration = nil
		}
		_, err := pipeline.Run(context.Background(), r, c.options)
		if err == nil || !errors.As(err, c.target) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s:\n got %v\nwant %s", name, err, c.want)
		}
		if left, err := os.ReadDir(filepath.Dir(r.Output.Path)); err != nil || len(left) > 0 {
			t.Errorf("%s: left behind %v, %v", name, left, err)
		}
	}
}

// TestFallbacksOnce: a layer that two steps cannot give the same thing says so once,
// in one warning.
func TestFallbacksOnce(t *testing.T) {
	r := stepped(t, "lm", "{prune: {method: wanda, sparsity: 0.5, bias_correction: true}}, {quantize: {method: gptq, bits: 4, bias_correction: true}}", "")
	warnings := map[string]int{}
	run := mustRun(t, r, pipeline.Options{Events: func(e pipeline.Event) {
		if e.Warning != "" {
			warnings[e.Warning]++
		}
	}})
	for _, l := range run.Layers {
		if len(l.Fallbacks) != 1 || l.Fallbacks[0].Asked != "bias correction" {
			t.Errorf("%s: %v", l.Name, l.Fallbacks)
		}
	}
	for w, n := range warnings {
		if n != 1 {
			t.Errorf("%d times: %s", n, w)
		}
	}
	if len(warnings) < len(run.Layers) {
		t.Errorf("%d warnings of %d layers", len(warnings), len(run.Layers))
	}
}

// TestBudgetAccounts: the pass that finds what components are worth counts once in
// the record's times, and the record keeps what was foretold of memory.
func TestBudgetAccounts(t *testing.T) {
	run := mustRun(t, stepped(t, "mlp", "{quantize: {bits: 3}}, {compensate: {budget: 3KB}}", ""), pipeline.Options{})
	sum := 0.0
	for _, s := range run.Stages {
		sum += s.Seconds
	}
	if sum > run.Seconds*1.001 || run.Memory.Activations == 0 {
		t.Errorf("stages take %.3f of %.3f seconds; memory %+v", sum, run.Seconds, run.Memory)
	}
	plan, err := pipeline.MakePlan(context.Background(), stepped(t, "mlp", "{quantize: {bits: 3}}, {compensate: {budget: 3KB}}", ""), pipeline.Options{})
	if err != nil || plan.Budget != 3000 {
		t.Errorf("a budget of %d is planned, %v", plan.Budget, err)
	}
}

// TestMeasuringKeepsCeiling: allocations that run the model keep their values where
// --memory has them, and give the same result.
func TestMeasuringKeepsCeiling(t *testing.T) {
	recipe := func() *pipeline.Recipe {
		r := stepped(t, "resnet8", "{prune: {method: magnitude, sparsity: 0.5, allocation: rate-distortion, samples: 200}}", "")
		r.Calibration.Samples = 400
		r.Rules[0].Match = "layer3.0.conv2|linear"
		return r
	}
	free := mustRun(t, recipe(), pipeline.Options{})
	bound := mustRun(t, recipe(), pipeline.Options{Memory: free.Memory.Fixed + 17<<20})
	if bound.Output.ManifestSHA256 != free.Output.ManifestSHA256 {
		t.Errorf("another digest under a ceiling; memory %+v", bound.Memory)
	}
}

// TestTransposedSteps: all steps on a GPT-2, whose layers are stored as in×out.
func TestTransposedSteps(t *testing.T) {
	ids := filepath.Join(t.TempDir(), "ids.u16")
	raw := make([]byte, 2*40)
	for i := 0; i < len(raw); i += 2 {
		raw[i] = byte(i * i % 19)
	}
	if err := os.WriteFile(ids, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	data := "data: " + ids + ", format: u16, text: {mode: packed, length: 8}}\n"
	for _, steps := range []string{
		"{prune: {method: sparsegpt, sparsity: 0.05, allocation: rate-distortion}}, {quantize: {method: gptq, bits: 8}}, {compensate: {rank: 2, factors: f32}}",
		"{prune: {method: wanda, sparsity: 0.05, allocation: owl, polish: true}}, {compensate: {rank: 2, merge: true}}",
		"{prune: {method: magnitude, sparsity: 0.05, allocation: lamp, scope: layer, layout: columns}}",
	} {
		run := checkSteps(t, func() *pipeline.Recipe {
			r, err := pipeline.ParseRecipe([]byte("version: 1\ncalibration: {"+data+"evaluate: {"+data+"rules: [{match: '*', steps: ["+steps+"]}]\n"), "")
			if err != nil {
				t.Fatal(err)
			}
			r.Model.Path, r.Output.Path = "../model/testdata/gpt2", filepath.Join(t.TempDir(), "out")
			return r
		})
		if l := run.Evaluation.Language; l.KL > 2e-2 {
			t.Errorf("%s: KL %v", steps, l.KL)
		}
	}
}

// TestStoredTypes: values that are to stay values must be of a type that can be
// written again; the plan says so, not the end of the run.
func TestStoredTypes(t *testing.T) {
	var file bytes.Buffer
	err := safetensors.Write(&file, []safetensors.Source{{
		Name: "fc1.weight", DType: dtype.F8E4M3, Shape: []int{10, 256},
		Write: func(w io.Writer) error { _, err := w.Write(make([]byte, 2560)); return err },
	}}, nil)
	path := filepath.Join(t.TempDir(), "bytes.safetensors")
	if err := errors.Join(err, os.WriteFile(path, file.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	r := stepped(t, "mlp", "{prune: {method: magnitude, sparsity: 0.5}}", "")
	r.Model.Path = path
	_, err = pipeline.MakePlan(context.Background(), r, pipeline.Options{})
	var re *pipeline.RecipeError
	if !errors.As(err, &re) || !strings.Contains(err.Error(), "rules[0].steps.prune: the weight of layer ") || !strings.Contains(err.Error(), " is stored as F8_E4M3, which cannot be pruned; add a quantize step") {
		t.Error(err)
	}
}
