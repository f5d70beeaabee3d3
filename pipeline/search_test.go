package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
	"github.com/fettle-dev/fettle/search"
)

// searched returns a recipe for the project's own ResNet or language model whose
// evaluation data are its calibration data, so that what a search measured can be held
// against what a run measures.
func searched(t *testing.T, name, rule, keys, more string) *pipeline.Recipe {
	t.Helper()
	head, dir := "", models
	switch name {
	case "resnet8":
		head = `model: {path: resnet8.th, input: {shape: [1, 16, 16], mean: [0.35], std: [0.24]}}
calibration: {data: glyphs-calibration.safetensors, format: safetensors, samples: 96}
evaluate: {data: glyphs-calibration.safetensors, format: safetensors, samples: 96}
`
	case "lm":
		dir += "lm/"
		head = `model: {path: .}
calibration: {data: calibration.u16, format: u16, samples: 24}
evaluate: {data: calibration.u16, format: u16, samples: 24}
`
	}
	r, err := pipeline.ParseRecipe(fmt.Appendf(nil, "version: 1\n%srules: [{match: \"*\", %s}]\nsearch: {%s}\n%s", head, rule, keys, more), dir+"recipe.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustFind(t *testing.T, r *pipeline.Recipe, o pipeline.Options) *pipeline.Found {
	t.Helper()
	found, err := pipeline.Find(context.Background(), r, o)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

const nearestLevels = "steps: [{quantize: {method: nearest}}], levels: [{bits: [2, 3, 4, 5]}]"

// TestSearchEndToEnd: files of a search are no larger than asked, the model that they
// hold is as far from the original as the search measured, no baseline was better, and
// the recipe that was found does the same by itself.
func TestSearchEndToEnd(t *testing.T) {
	const few = ", generations: 6, offspring: 6, stages: [{survivors: 2, samples: 32}, {survivors: 1, samples: 96}]"
	const mixed = "steps: [{quantize: {method: gptq}}], levels: [{bits: [2, 4]}, {bits: [3, 4], sparsity: [0.5]}, {bits: [2, 3], rank: [2]}, {bits: [4], pattern: ['2:4']}, {keep: true}]"
	for name, r := range map[string]*pipeline.Recipe{
		"bits":     searched(t, "resnet8", nearestLevels, "fit: 2.7 bits"+few, "sequential: none\n"),
		"fitted":   searched(t, "resnet8", "levels: [{bits: [2, 3, 4]}]", "fit: 3 bits, fitness: topk-kl, top_k: 20"+few, "sequential: none\n"),
		"sparsity": searched(t, "resnet8", "steps: [{prune: {method: magnitude}}], levels: [{sparsity: [0.2, 0.4, 0.6, 0.8]}]", "fit: 55%"+few, "sequential: none\n"),
		"mixed":    searched(t, "resnet8", mixed, "fit: 20%"+few, "sequential: none\n"),
		"blocks":   searched(t, "resnet8", "steps: [{quantize: {method: nearest}}], levels: [{bits: [3, 5]}, {drop: block}]", "fit: 4 bits"+few, "sequential: none\n"),
		"tokens":   searched(t, "lm", nearestLevels, "fit: 3.1 bits"+few, "sequential: none\n"),
		"sublayers": searched(t, "lm", "steps: [{quantize: {method: nearest}}], levels: [{bits: [4]}, {keep: true}, {drop: sublayer}]",
			"fit: 60%, switch: kind"+few, "sequential: none\n"),
		"depth": searched(t, "lm", "levels: [{keep: true}, {drop: sublayer}]", "fit: 70%"+few, "sequential: none\n"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := pipeline.Options{Cache: t.TempDir()}
			found := mustFind(t, r, o)
			result := found.Record.Results[0]
			if result.Bytes > result.Budget {
				t.Errorf("%d bytes, %d are allowed", result.Bytes, result.Budget)
			}
			for _, b := range result.Baselines {
				if b.Fitness >= 0 && b.Fitness < result.Fitness {
					t.Errorf("fitness %g, %s has %g", result.Fitness, b.Name, b.Fitness)
				}
				if b.Bytes > result.Budget {
					t.Errorf("%s takes %d bytes, %d are allowed", b.Name, b.Bytes, result.Budget)
				}
			}
			found.Recipes[0].Output.Path = filepath.Join(t.TempDir(), "out")
			run, err := found.Run(context.Background(), 0, o)
			if err != nil {
				t.Fatal(err)
			}
			var bits float64
			if n, _ := fmt.Sscanf(result.Asked, "%f bits", &bits); n == 1 && !strings.Contains(name, "blocks") && run.Output.AverageBits > bits {
				t.Errorf("%.4f bits on average, %g are allowed", run.Output.AverageBits, bits)
			}
			if run.Output.WeightBytes != result.Bytes {
				t.Errorf("%d bytes of weights, the search said %d", run.Output.WeightBytes, result.Bytes)
			}
			kl := 0.0
			if l := run.Evaluation.Language; l != nil {
				kl = l.KL
			} else {
				kl = run.Evaluation.KL
			}
			if name != "fitted" && math.Abs(kl-result.Fitness) > 1e-5*result.Fitness+1e-9 {
				t.Errorf("the model's KL is %g, the search measured %g", kl, result.Fitness)
			}
			dir := t.TempDir()
			text, err := found.Recipes[0].TextIn(dir)
			if err != nil {
				t.Fatal(err)
			}
			again, err := pipeline.ParseRecipe([]byte(text), filepath.Join(dir, "found.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			again.Output.Path = filepath.Join(t.TempDir(), "again")
			if twice := mustRun(t, again, o); twice.Output.WeightBytes != run.Output.WeightBytes || weights(twice) != weights(run) {
				t.Error("the recipe that was found gives other weights")
			}
		})
	}
}

// weights are the hashes of a run's weight files.
func weights(run *record.Run) (all string) {
	for _, f := range run.Output.Files {
		if f.Role == "weights" {
			all += f.SHA256
		}
	}
	return all
}

// TestSearchIsTheSame for any number of workers, and when it is stopped and goes on.
func TestSearchIsTheSame(t *testing.T) {
	ask := func(generations int) *pipeline.Recipe {
		return searched(t, "resnet8", nearestLevels, fmt.Sprintf(
			"fit: [2.5 bits, 3.2 bits], generations: %d, offspring: 8, stages: [{survivors: 3, samples: 24}, {survivors: 1, samples: 60}], seed: 7", generations), "")
	}
	plain := func(s *record.Search) *record.Search {
		s.Seconds = 0
		for i := range s.Results {
			for k := range s.Results[i].Generations {
				s.Results[i].Generations[k].Seconds = 0
			}
			for k := range s.Results[i].Evaluations { // which candidates are stopped early may differ
				s.Results[i].Evaluations[k].Fitness = 0
			}
		}
		return s
	}
	want := plain(mustFind(t, ask(8), pipeline.Options{Cache: t.TempDir()}).Record)
	for _, workers := range []int{1, 5} {
		got := plain(mustFind(t, ask(8), pipeline.Options{Workers: workers}).Record)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%d workers find something else:\n%s", workers, d)
		}
	}
	cache := t.TempDir()
	for stop := 1; stop < 6; stop += 2 {
		ctx, cancel := context.WithCancel(context.Background())
		_, err := pipeline.Find(ctx, ask(8), pipeline.Options{Cache: cache, Events: func(e pipeline.Event) {
			if e.Search != nil && e.Search.Generation == stop {
				cancel()
			}
		}})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("a stopped search returns %v", err)
		}
	}
	if d := cmp.Diff(want, plain(mustFind(t, ask(8), pipeline.Options{Cache: cache}).Record)); d != "" {
		t.Errorf("a search that was stopped finds something else:\n%s", d)
	}
	// A longer search goes on from the shorter one.
	longer := plain(mustFind(t, ask(10), pipeline.Options{Cache: cache}).Record)
	for i, r := range want.Results {
		if d := cmp.Diff(r.Generations, longer.Results[i].Generations[:len(r.Generations)]); d != "" {
			t.Errorf("a longer search began in another way:\n%s", d)
		}
	}
}

// TestSearchCannot: sizes that cannot be met, stages without samples, levels that
// cannot be had.
func TestSearchCannot(t *testing.T) {
	for _, c := range []struct{ rule, keys, want string }{
		{nearestLevels, "fit: 1KB", "and the smallest that the levels allow is "},
		{nearestLevels, "fit: 60KB", "and all layers at their dearest levels take "},
		{nearestLevels, "fit: 2MB", "is more than the model takes as it is"},
		{nearestLevels, "fit: 3 bits, stages: [{survivors: 1, samples: 97}]", "search.stages[0]: wants 97 images, and the data have 96"},
	} {
		_, err := pipeline.Find(context.Background(), searched(t, "resnet8", c.rule, c.keys, ""), pipeline.Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.keys, err, c.want)
		}
	}
	_, err := pipeline.Find(context.Background(), searched(t, "resnet8", nearestLevels, "fit: 1KB", ""), pipeline.Options{})
	var budget *search.BudgetError
	if !errors.Is(err, search.ErrBudgetTooSmall) || !errors.As(err, &budget) || budget.Smallest < 1000 {
		t.Errorf("a small budget: %v", err)
	}
	// 2:4 of a convolution whose inputs are no multiple of four leaves groups that are
	// not whole; a block pattern that does not divide a layer cannot be had.
	r := searched(t, "resnet8", "steps: [{prune: {method: magnitude}}], levels: [{sparsity: [0.25, 0.5]}, {steps: [{prune: {method: magnitude, sparsity: 0.5, pattern: block 7x7}}]}]",
		"fit: 70%, generations: 1", "on_fallback: fail\n")
	s := mustFind(t, r, pipeline.Options{}).Record
	left := 0
	for _, g := range s.Genes {
		for _, l := range g.Levels {
			if l.LeftOut != "" {
				left++
				if !strings.Contains(l.LeftOut, "blocks do not divide") {
					t.Errorf("%s, %s is left out: %s", g.Name, l.Name, l.LeftOut)
				}
			}
		}
	}
	if left != len(s.Genes) {
		t.Errorf("%d of %d genes leave the block pattern out", left, len(s.Genes))
	}
}

// TestSearchRecord: a run of a recipe with a search has it in its record, which is
// whole.
func TestSearchRecord(t *testing.T) {
	r := searched(t, "resnet8", nearestLevels, "fit: 3 bits, generations: 3, offspring: 4, stages: [{survivors: 1, samples: 40}]", "")
	r.Output.Path = filepath.Join(t.TempDir(), "out")
	run := mustRun(t, r, pipeline.Options{})
	if run.Search == nil || len(run.Search.Results) != 1 || run.Recipe.Text == "" || strings.Contains(run.Recipe.Text, "search:") {
		t.Fatalf("the record has %+v, recipe %s", run.Search, run.Recipe.Text)
	}
	result := run.Search.Results[0]
	if len(result.Generations) != 4 || len(result.Evaluations) < 3*5 {
		t.Errorf("%d generations and %d evaluations are in the record", len(result.Generations), len(result.Evaluations))
	}
	for _, e := range result.Evaluations {
		if len(e.Levels) != len(run.Search.Genes) || e.Bytes > result.Budget || e.Samples != 40 {
			t.Fatalf("evaluation %+v", e)
		}
	}
	info, err := os.Stat(filepath.Join(r.Output.Path, export.ModelName))
	if err != nil || info.Size() > result.Budget {
		t.Errorf("%v bytes, %d are allowed (%v)", info, result.Budget, err)
	}
	if _, err := pipeline.Run(context.Background(), searched(t, "resnet8", nearestLevels, "fit: [3 bits, 4 bits]", ""), pipeline.Options{}); err == nil || !strings.Contains(err.Error(), "has 2 sizes") {
		t.Errorf("two sizes for one folder: %v", err)
	}
}
