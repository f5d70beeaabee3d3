package pipeline_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
)

// mixtureTokens are what make_moe.py counts in the forward passes of its sequences
// of more than one token, which are those that a data set has: tokens of each expert,
// by mixture.
var mixtureTokens = map[string][][]int64{
	"mixtral":          {{25, 20, 0, 21}, {0, 5, 28, 33}},
	"mixtral-top1":     {{21, 12, 0}, {33, 0, 0}},
	"qwen2-moe":        {{24, 28, 9, 7, 31}, {13, 23, 1, 29, 33}},
	"qwen2-moe-sparse": {{33, 1, 4, 28}},
}

// mixtureRecipe is a recipe for a tiny model, calibrated and evaluated on the
// sequences of its expected.json, so many times over.
func mixtureRecipe(t testing.TB, name, rest string, times int) *pipeline.Recipe {
	t.Helper()
	folder := filepath.Join("..", "model", "testdata", name)
	text, err := os.ReadFile(filepath.Join(folder, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct{ IDs []uint16 }
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	var raw []byte
	var lengths []int
	for range times {
		for _, c := range cases {
			lengths = append(lengths, len(c.IDs))
			for _, id := range c.IDs {
				raw = binary.LittleEndian.AppendUint16(raw, id)
			}
		}
	}
	dir := t.TempDir()
	list, _ := json.Marshal(lengths)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "ids.u16"), raw, 0o600), os.WriteFile(filepath.Join(dir, "ids.lengths.json"), list, 0o600)); err != nil {
		t.Fatal(err)
	}
	data := "{data: " + filepath.Join(dir, "ids.u16") + ", format: u16}"
	r, err := pipeline.ParseRecipe([]byte("version: 1\ncalibration: "+data+"\nevaluate: "+data+"\n"+rest), "")
	if err != nil {
		t.Fatal(err)
	}
	r.Model.Path, r.Output.Path = folder, filepath.Join(dir, "out")
	return r
}

const mixtureRules = `
rules:
  - {match: "*down_proj|*w2", steps: [{prune: {method: sparsegpt, sparsity: 0.3}}, {quantize: {method: gptq, bits: 4, group_size: 2}}, {compensate: {rank: 1}}]}
  - {match: "*shared_expert*|*v_proj", steps: [{prune: {sparsity: 0.4}}]}
  - {match: "*", steps: [{quantize: {bits: 4}}]}
`

// TestMixtures takes each tiny model through the whole of a run: the tokens that
// experts see are those of the forward pass in PyTorch, what is written is read back
// and evaluated, routers stay, and experts without enough tokens get what the recipe
// says.
func TestMixtures(t *testing.T) {
	for name, tokens := range mixtureTokens {
		r := mixtureRecipe(t, name, "experts: {min_tokens: 6}"+mixtureRules, 1)
		plan, err := pipeline.MakePlan(context.Background(), r, pipeline.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var warnings []string
		run := mustRun(t, r, pipeline.Options{Workers: 2, Events: func(e pipeline.Event) {
			if strings.Contains(e.Warning, "experts") {
				warnings = append(warnings, e.Warning)
			}
		}})
		if len(run.Experts.Mixtures) != len(tokens) || run.Experts.MinTokens != 6 || run.Experts.Fallback != "nearest" {
			t.Fatalf("%s: %+v", name, run.Experts)
		}
		if plan.WeightBytes != run.Output.WeightBytes {
			t.Errorf("%s: %d bytes were planned without data, %d written", name, plan.WeightBytes, run.Output.WeightBytes)
		}
		starved := 0
		for i, m := range run.Experts.Mixtures {
			if !slices.Equal(m.Tokens, tokens[i]) {
				t.Errorf("%s: %s: tokens %v, PyTorch counts %v", name, m.Name, m.Tokens, tokens[i])
			}
			for _, n := range tokens[i] {
				if n < 6 {
					starved++
				}
			}
		}
		if len(run.Experts.Layers) != 3*starved {
			t.Errorf("%s: %d layers of %d experts fall back", name, len(run.Experts.Layers), starved)
		}
		fell := map[string]bool{}
		for _, f := range run.Experts.Layers {
			fell[f.Layer] = true
		}
		for _, l := range run.Layers {
			if strings.HasSuffix(l.Name, "gate") {
				t.Errorf("%s: %s is compressed", name, l.Name)
			}
			switch {
			case fell[l.Name] && (l.RelativeError != nil || len(l.Fallbacks) == 0 || l.Method != "nearest" || l.Bits != 4):
				t.Errorf("%s: %+v", name, l)
			case !fell[l.Name] && (l.RelativeError == nil || *l.RelativeError > .5):
				t.Errorf("%s: %s has no error, or %v", name, l.Name, l.RelativeError)
			}
		}
		// One warning for all routers, one for each mixture with starved experts.
		mixtures := 0
		for _, counts := range tokens {
			if slices.Min(counts) < 6 {
				mixtures++
			}
		}
		if len(warnings) != 1+mixtures {
			t.Errorf("%s: warnings %q", name, warnings)
		}
		if l := run.Evaluation.Language; l.KL > 1 || l.KL <= 0 {
			t.Errorf("%s: KL %v", name, l.KL)
		}
		if m, err := export.Open(context.Background(), r.Output.Path); err != nil {
			t.Error(err)
		} else {
			_ = m.Close()
		}
		file, err := os.Open(filepath.Join(r.Output.Path, record.FileName))
		if err != nil {
			t.Fatal(err)
		}
		if back, err := record.Decode(file); err != nil || len(back.Experts.Mixtures) != len(tokens) {
			t.Errorf("%s: record: %v", name, err)
		}
		_ = file.Close()
	}
}

// TestMixturesSameBytes: any number of workers, a run whose units are on disk, and
// one without a cache write the same.
func TestMixturesSameBytes(t *testing.T) {
	cache, want := t.TempDir(), ""
	for i, o := range []pipeline.Options{{Workers: 1}, {Workers: 3, Cache: cache}, {Workers: 2, Cache: cache}} {
		r := mixtureRecipe(t, "qwen2-moe", "experts: {min_tokens: 10}"+mixtureRules, 2)
		run := mustRun(t, r, o)
		got := ""
		for _, f := range run.Output.Files {
			if f.Role == "weights" {
				got += f.SHA256
			}
		}
		if want == "" {
			want = got
		}
		if got != want {
			t.Errorf("run %d writes other bytes", i)
		}
		if i == 2 && run.Units.Computed != 0 {
			t.Errorf("%d units are computed again", run.Units.Computed)
		}
	}
}

// TestMixtureEightBits: at 8 bits of all layers the compressed model's own
// routing is nearly the original's, and so are its answers.
func TestMixtureEightBits(t *testing.T) {
	for name := range mixtureTokens {
		r := mixtureRecipe(t, name, `experts: {min_tokens: 1}
rules: [{match: "*", steps: [{quantize: {method: gptq, bits: 8}}]}]`, 1)
		run := mustRun(t, r, pipeline.Options{})
		if l := run.Evaluation.Language; l.KL > 2e-2 || l.Agreement < 85 {
			t.Errorf("%s: KL %v, %v %% agree", name, l.KL, l.Agreement)
		}
	}
}

// TestExpertsKept: with fallback keep, starved experts' weights are copied, and a
// plan knows it to the byte.
func TestExpertsKept(t *testing.T) {
	r := mixtureRecipe(t, "mixtral", "experts: {min_tokens: 6, fallback: keep}"+mixtureRules, 1)
	plan, err := pipeline.MakePlan(context.Background(), r, pipeline.Options{})
	if err != nil {
		t.Fatal(err)
	}
	run := mustRun(t, r, pipeline.Options{})
	if plan.WeightBytes != run.Output.WeightBytes || len(run.Experts.Layers) != 9 {
		t.Errorf("%d bytes were planned, %d written; %d layers are kept", plan.WeightBytes, run.Output.WeightBytes, len(run.Experts.Layers))
	}
	kept := map[string]bool{}
	for _, k := range run.Kept {
		kept[k.Name] = true
	}
	for _, l := range run.Experts.Layers {
		if !kept["model."+l.Layer+".weight"] || l.Got != "the weight as it was" {
			t.Errorf("%+v is not kept", l)
		}
	}
}

// TestGatesNamed: a rule that names routers reaches them, and others do not.
func TestGatesNamed(t *testing.T) {
	for match, want := range map[string]int{"*": 0, "*gate*": 0, "*.gate": 2, "layers.1.mlp.gate": 1, "*.shared_expert_gate": 2, "*.mlp.*": 0} {
		r := mixtureRecipe(t, "qwen2-moe", `rules: [{match: "`+match+`", steps: [{quantize: {method: nearest, bits: 8}}]}, {match: "*.q_proj", steps: [{quantize: {method: nearest, bits: 8}}]}]`, 1)
		plan, err := pipeline.MakePlan(context.Background(), r, pipeline.Options{})
		if err != nil {
			t.Fatal(err)
		}
		got, noted := 0, false
		for _, l := range plan.Layers {
			if strings.HasSuffix(l.Name, "gate") {
				got++
			}
		}
		for _, n := range plan.Notes {
			noted = noted || strings.Contains(n, "choose and weigh experts")
		}
		if got != want || noted != (want == 0) {
			t.Errorf("%s reaches %d gates, want %d; notes %q", match, got, want, plan.Notes)
		}
	}
	r := mixtureRecipe(t, "mixtral", `rules: [{match: "*.gate", steps: [{quantize: {bits: 8}}]}]`, 1)
	if run := mustRun(t, r, pipeline.Options{}); len(run.Layers) != 2 || run.Layers[0].RelativeError == nil {
		t.Errorf("%+v", run.Layers)
	}
}

// TestExpertsFail: on_fallback: fail refuses starved experts before any work.
func TestExpertsFail(t *testing.T) {
	r := mixtureRecipe(t, "mixtral", "on_fallback: fail\nexperts: {min_tokens: 1}"+`
rules: [{match: "*", steps: [{quantize: {method: gptq, bits: 4}}]}]`, 1)
	_, err := pipeline.Run(context.Background(), r, pipeline.Options{})
	if bad, ok := errors.AsType[*pipeline.FallbackError](err); !ok || !strings.Contains(bad.Layer, "experts.2") || !strings.Contains(err.Error(), "0 calibration tokens, fewer than 1") {
		t.Errorf("%v", err)
	}
	for text, want := range map[string]string{
		"experts: {min_tokens: -1}":     "experts.min_tokens: is negative",
		"experts: {fallback: neareset}": `did you mean "nearest"?`,
		"experts: {tokens: 3}":          "tokens",
	} {
		if _, err := pipeline.ParseRecipe([]byte("version: 1\n"+text+mixtureRules), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestMixtureMethods: each method gets through a mixture, whatever rank H has: that of
// an expert that sees one token has rank 1.
func TestMixtureMethods(t *testing.T) {
	methods := []string{
		"{quantize: {method: best, bits: 3}}", "{quantize: {method: adaround, bits: 4, adaround: {steps: 20}}}",
		"{quantize: {method: adaround, bits: 4, adaround: {steps: 20, sample: true}}}",
		"{quantize: {method: qronos, bits: 4, act_order: true}}", "{quantize: {method: gpfq, bits: 4}}",
		"{quantize: {method: spfq, alphabet: ternary}}", "{quantize: {method: hqq, bits: 4}}",
		"{quantize: {method: gptq, format: mxfp4}}", "{quantize: {method: nearest, bits: 4, awq: true, range: awq}}",
		"{prune: {sparsity: 0.5, allocation: owl}}", "{prune: {sparsity: 0.5, allocation: lamp, method: wanda}}",
		"{prune: {pattern: \"2:4\"}}, {compensate: {rank: 2}}", "{prune: {sparsity: 0.5, method: sparsegpt, joint: true}}, {quantize: {method: gptq, bits: 4}}",
		"{quantize: {method: gptq, bits: 3}}, {compensate: {budget: 1KB}}",
	}
	// Three methods a run: of gate, up and down.
	for i := 0; i < len(methods); i += 3 {
		for _, least := range []string{"1", "12"} {
			rules := "experts: {min_tokens: " + least + "}\nrules:\n"
			for k, layers := range []string{"*.gate_proj", "*.up_proj", "*.down_proj"} {
				rules += "  - {match: \"" + layers + "\", steps: [" + methods[(i+k)%len(methods)] + "]}\n"
			}
			r := mixtureRecipe(t, "qwen2-moe-sparse", rules, 1)
			if run, err := pipeline.Run(context.Background(), r, pipeline.Options{}); err != nil {
				t.Errorf("%s: %v", rules, err)
			} else if run.Evaluation.Language.KL <= 0 {
				t.Errorf("%s: KL %v", rules, run.Evaluation.Language.KL)
			}
		}
	}
}

// TestMixtureRemoved: heads, MLPs and blocks go from mixtures too, with repair.
func TestMixtureRemoved(t *testing.T) {
	for _, s := range []struct{ name, remove string }{
		{"mixtral", `{heads: 0.5}`},
		{"mixtral-top1", `{mlp: "layers.1.*"}`},
		{"qwen2-moe", `{mlp: "layers.1.*"}, {blocks: [0]}`},
		{"qwen2-moe-sparse", `{mlp: "layers.3.*"}, {heads: 0.5}`},
		{"qwen2-moe-sparse", `{blocks: [2]}, {channels: 0.5}`},
	} {
		r := mixtureRecipe(t, s.name, "remove: ["+s.remove+`]
rules: [{match: "*down_proj|*.w2|*o_proj", steps: [{quantize: {method: gptq, bits: 8}}]}]`, 2)
		run := mustRun(t, r, pipeline.Options{})
		if len(run.Removed) == 0 || run.Evaluation.Language.KL <= 0 {
			t.Errorf("%s: %s: %+v", s.name, s.remove, run.Removed)
		}
	}
}

// TestMixtureSearched: a search chooses levels of experts and may drop mixtures.
func TestMixtureSearched(t *testing.T) {
	r := mixtureRecipe(t, "mixtral", `experts: {min_tokens: 6}
search: {fit: 28000, generations: 3, offspring: 4}
rules:
  - {match: "*.experts.*", steps: [{quantize: {method: gptq, bits: 8}}], levels: [{bits: [3, 8]}]}
  - {match: "*", steps: [{quantize: {method: gptq, bits: 8}}]}
`, 2)
	run := mustRun(t, r, pipeline.Options{Workers: 2})
	if run.Search == nil || run.Output.WeightBytes > 28000 || run.Experts == nil || !strings.Contains(run.Recipe.Text, "min_tokens: 6") {
		t.Errorf("%d bytes, %s", run.Output.WeightBytes, run.Recipe.Text)
	}
}
