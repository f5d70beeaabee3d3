package pipeline

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/quantize"
)

const goodRecipe = `version: 1
model:
  path: m.pt
  input: {mean: [0.5], std: [0.25]}
calibration: {data: c.bin, format: cifar10, samples: 10, seed: 0, subset: [0, 100]}
rules:
  - match: "conv1|linear"
    steps: [{quantize: {method: nearest, bits: 8}}]
  - match: "keep*"
  - match: "*"
    steps:
      - quantize:
          method: adaround
          bits: 4
          group_size: 32
          adaround: {steps: 10}
output: {dense: [pt]}
`

func TestParseRecipe(t *testing.T) {
	r, err := ParseRecipe([]byte(goodRecipe), "dir/r.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if r.Model.Path != filepath.Join("dir", "m.pt") || r.Calibration.Path != filepath.Join("dir", "c.bin") || r.Evaluate != nil {
		t.Errorf("paths %q, %q", r.Model.Path, r.Calibration.Path)
	}
	if r.Sequential != "value" || r.OnFallback != "warn" || r.Output.Format != "compressed-tensors" {
		t.Errorf("defaults: %+v", r)
	}
	for text, want := range map[string]int64{"": 0, "5GB": 5e9, "1KB": 1000, "1.5 MiB": 1572864, "4096": 4096} {
		r, err := ParseRecipe([]byte(strings.Replace(goodRecipe, "dense: [pt]", "shard_size: "+text, 1)), "")
		if err != nil || r.Output.shardSize != want {
			t.Errorf("shard_size %q: %v, %v", text, r, err)
		}
	}
	first := r.Rules[0].Steps[0].Quantize.options()
	if first.Align || first.Granularity != "channel" || first.NeedsMoments() {
		t.Errorf("nearest: %+v", first)
	}
	for step, want := range map[string]quantize.Options{
		"format: fp8":                       {Format: layer.FP8, Bits: 8, Granularity: layer.PerChannel, Symmetric: true},
		"format: fp8, group_size: 64":       {Format: layer.FP8, Bits: 8, Granularity: layer.PerGroup, GroupSize: 64, Symmetric: true},
		"format: nvfp4":                     {Format: layer.NVFP4, Bits: 4, Granularity: layer.PerGroup, GroupSize: 16, Symmetric: true},
		"format: mxfp4, bits: 4":            {Format: layer.MXFP4, Bits: 4, Granularity: layer.PerGroup, GroupSize: 32, Symmetric: true},
		"format: int, bits: 8":              {Bits: 8, Granularity: layer.PerChannel},
		"bits: 8, scales: power_of_two":     {Bits: 8, Granularity: layer.PerChannel, PowerOfTwo: true},
		"format: nvfp4, granularity: group": {Format: layer.NVFP4, Bits: 4, Granularity: layer.PerGroup, GroupSize: 16, Symmetric: true},
	} {
		r, err := ParseRecipe([]byte(strings.Replace(goodRecipe, "bits: 8", step, 1)), "")
		if err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		want.Method, want.Range = quantize.Nearest, quantize.MSE
		if got := r.Rules[0].Steps[0].Quantize.options(); got != want {
			t.Errorf("%s: %+v, want %+v", step, got, want)
		}
	}
	last := r.Rules[2].Steps[0].Quantize.options()
	if !last.Align || last.Granularity != "group" || last.AdaRound.Steps != 10 || last.Damping == 0 {
		t.Errorf("adaround: %+v", last)
	}
	r, err = ParseRecipe([]byte(strings.Replace(goodRecipe, "method: nearest", "awq: true, method: hqq", 1)), "")
	if err != nil {
		t.Fatal(err)
	}
	if o := r.Rules[0].Steps[0].Quantize.options(); o.Align || o.Range != "minmax" || o.NeedsMoments() || !r.Rules[0].Steps[0].Quantize.AWQ {
		t.Errorf("hqq: %+v", o)
	}
	for name, want := range map[string]int{"conv1": 0, "linear": 0, "conv10": 2, "keep.1.x": 1, "layer1.0.conv1": 2} {
		for i := range r.Rules {
			if r.Rules[i].matches(name) {
				if i != want {
					t.Errorf("%s matches rule %d, want %d", name, i, want)
				}
				break
			}
		}
	}
}

// TestRecipeErrors changes one line of a good recipe at a time: each fault is
// named with its line and with what would be right.
func TestRecipeErrors(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{"version: 1", "version: 2", `r.yaml:1: version: is 2; this fettle reads version 1`},
		{"version: 1\n", "", `version: is 0`},
		{"bits: 8", "bit: 8", `r.yaml:8: rules[0].steps[0].quantize: unknown key "bit"; did you mean "bits"?`},
		{"bits: 8", "bits: 9", `r.yaml:8: rules[0].steps[0].quantize.bits`},
		{"bits: 8", "bits: eight", `r.yaml:8: "eight" is not a whole number`},
		{", bits: 8", "", `r.yaml:8: rules[0].steps[0].quantize.bits: is missing; give 2 to 8`},
		{"bits: 8", "format: fp9", `r.yaml:8: rules[0].steps[0].quantize.format: "fp9" is not known; did you mean "fp8"?`},
		{"bits: 8", "bits: 4, format: fp8", `r.yaml:8: rules[0].steps[0].quantize.bits: is 4, want 8, or nothing, with format fp8`},
		{"bits: 8", "format: nvfp4, granularity: channel", `quantize.granularity: is "channel", want group, or nothing, with format nvfp4`},
		{"bits: 8", "format: mxfp4, group_size: 16", `quantize.group_size: is 16, want 32, or nothing, with format mxfp4`},
		{"bits: 8", "format: nvfp4, scale_type: f16", `quantize.scale_type: is "f16", but the scales of nvfp4 are F8_E4M3; remove it`},
		{"bits: 8", "format: fp8, scales: power_of_two", `quantize.scales: is for format int; fp8 has scales of its own`},
		{"bits: 8", "bits: 8, scales: pow2", `quantize.scales: "pow2" is not known`},
		{"method: nearest", "method: neerest", `r.yaml:8: rules[0].steps[0].quantize.method: "neerest" is not known; did you mean "nearest"?`},
		{"method: adaround", "method: hqqq", `"hqqq" is not known; did you mean "hqq"? (one of best, gptq, adaround, qronos, gpfq, spfq, hqq, nearest)`},
		{"method: adaround", "method: awq", `r.yaml:13: rules[2].steps[0].quantize.method: awq goes with a method: write method: nearest, awq: true, range: awq`},
		{"adaround: {steps: 10}", "adaround: {steps: 10, foo: 1}", `r.yaml:16: rules[2].steps[0].quantize.adaround: unknown key "foo"`},
		{"adaround: {steps: 10}", "adaround: {rows: 10}", `r.yaml:16: rules[2].steps[0].quantize.adaround.rows: is 10, want nothing without sample: true`},
		{"adaround: {steps: 10}", "adaround: {sample: true, rows: -1}", `r.yaml:16: rules[2].steps[0].quantize.adaround.rows: is -1, want 1 to 65536`},
		{"adaround: {steps: 10}", "adaround: {sample: 1}", `r.yaml:16: "1" is not true or false`},
		{"adaround: {steps: 10}", "adaround: {sample: true}\n          residual: true", `quantize.residual: is true, want false with a sample`},
		{"method: adaround", "method: gptq", `r.yaml:16: rules[2].steps[0].quantize.adaround: tunes a method that gptq does not use`},
		{"bits: 8", "bits: 8, range: max", `r.yaml:8: rules[0].steps[0].quantize.range: "max" is not known; did you mean "mse"? (one of mse, minmax, awq)`},
		{"method: nearest", "range: mse, method: hqq", `r.yaml:8: rules[0].steps[0].quantize.range: is "mse", want minmax with hqq`},
		{"method: nearest", "granularity: tensor, method: hqq", `r.yaml:8: rules[0].steps[0].quantize.granularity: is "tensor", want channel or group with hqq`},
		{"bits: 8", "bits: 8, awq: 1", `r.yaml:8: "1" is not true or false`},
		{"group_size: 32", "granularity: rows", `granularity: "rows" is not known`},
		{"group_size: 32", "granularity: group", `rules[2].steps[0].quantize.group_size`},
		{"format: cifar10", "format: cifar", `r.yaml:5: calibration.format: "cifar" is not known; did you mean "cifar10"?`},
		{"data: c.bin, ", "", `r.yaml:5: calibration.data: is missing`},
		{"subset: [0, 100]", "subset: [5, 5]", `r.yaml:5: calibration.subset`},
		{"samples: 10", "samples: -1", `r.yaml:5: calibration.samples`},
		{"dense: [pt]", "dense: [onnx]", `r.yaml:17: output.dense[0]: "onnx" is not known (one of safetensors, pt)`},
		{"dense: [pt]", "shard_size: 5XB", `r.yaml:17: output.shard_size: size "5XB": unknown unit "XB"; write it like`},
		{"dense: [pt]", "shard_size: 0", `r.yaml:17: output.shard_size: size "0": must be more than 0`},
		{"dense: [pt]", "shard_size: -1KB", `r.yaml:17: output.shard_size: size "-1KB": no number`},
		{"dense: [pt]", "shard_size: [1]", `r.yaml:17`},
		{"std: [0.25]", "std: []", `r.yaml:4: model.input: has 1 means and 0 stds`},
		{"rules:", "ruls:", `r.yaml:6: unknown key "ruls"; did you mean "rules"?`},
		{`match: "keep*"`, `match: "keep["`, `r.yaml:9: rules[1].match: pattern "keep[" is malformed`},
		{"version: 1", "version: 1\nversion: 1", `r.yaml:2`},
		{"version: 1", "version: [", "r.yaml:"},
	} {
		text := strings.Replace(goodRecipe, c.old, c.new, 1)
		if text == goodRecipe {
			t.Fatalf("%q is not in the recipe", c.old)
		}
		_, err := ParseRecipe([]byte(text), "r.yaml")
		var re *RecipeError
		if !errors.As(err, &re) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q for %q:\n got %v\nwant %s", c.new, c.old, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("more than one line: %v", err)
		}
	}
}

// TestRecipePaths: the keys of gpfq, spfq and qronos, their defaults and faults.
func TestRecipePaths(t *testing.T) {
	parse := func(step string) (*quantize.Options, error) {
		r, err := ParseRecipe([]byte("version: 1\nrules: [{match: \"*\", steps: [{quantize: {"+step+"}}]}]"), "")
		if err != nil {
			return nil, err
		}
		o := r.Rules[0].Steps[0].Quantize.options()
		return &o, nil
	}
	for step, want := range map[string]quantize.Options{
		"method: gpfq, bits: 3":                    {Method: "gpfq", Bits: 3},
		"method: gpfq, bits: 3, align: true":       {Method: "gpfq", Bits: 3, Align: true},
		"method: spfq, bits: 3, gpfq: {seed: 7}":   {Method: "spfq", Bits: 3, Align: true, GPFQ: quantize.GPFQOptions{Seed: 7}},
		"method: qronos, bits: 3, act_order: true": {Method: "qronos", Bits: 3, Align: true, ActOrder: true},
		"method: gpfq, alphabet: ternary":          {Method: "gpfq", Bits: 2, Alphabet: "ternary"},
		"method: spfq, alphabet: binary, bits: 2":  {Method: "spfq", Bits: 2, Alphabet: "binary", Align: true},
		"method: gpfq, alphabet: gpfq, bits: 4":    {Method: "gpfq", Bits: 4, Alphabet: "gpfq"},
		"method: gpfq, alphabet: gpfq, bits: 4, gpfq: {c: 1.8, quantile: 0.99, threshold: hard, lambda: 0.1}": {
			Method: "gpfq", Bits: 4, Alphabet: "gpfq", GPFQ: quantize.GPFQOptions{C: 1.8, Quantile: 0.99, Threshold: "hard", Lambda: 0.1},
		},
	} {
		if got, err := parse(step); err != nil || *got != want.WithDefaults() {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", step, got, err, want.WithDefaults())
		}
	}
	for step, want := range map[string]string{
		"method: gpfq":                                         `quantize.bits: is missing; give 2 to 8`,
		"method: gptq, bits: 4, alphabet: gpfq":                `quantize.alphabet: is "gpfq", want nothing unless the method is gpfq or spfq`,
		"method: gpfq, bits: 4, alphabet: gptq":                `quantize.alphabet: "gptq" is not known; did you mean "gpfq"?`,
		"method: gptq, bits: 4, gpfq: {c: 1}":                  `quantize.gpfq: tunes methods other than gptq; remove it`,
		"method: gpfq, bits: 8, alphabet: gpfq":                `quantize.bits: is 8, want 2 to 7 with alphabet gpfq`,
		"method: gpfq, alphabet: ternary, range: mse":          `quantize.range: is "mse", want nothing with an alphabet`,
		"method: gpfq, alphabet: ternary, gpfq: {lambda: 0.1}": `quantize.gpfq.lambda: is 0.1, want 0 without a threshold`,
		"method: gpfq, bits: 4, gpfq: {lamda: 0.1}":            `unknown key "lamda"; did you mean "lambda"?`,
		"method: qronos, bits: 4, align: false":                `quantize.align: is false, want true for qronos`,
		"method: gpfq, bits: 4, damping: 0.1":                  `quantize.damping: is 0.1, want 0 for gpfq without align`,
	} {
		var re *RecipeError
		if _, err := parse(step); !errors.As(err, &re) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n got %v\nwant %s", step, err, want)
		}
	}
}

func FuzzParseRecipe(f *testing.F) {
	f.Add([]byte(goodRecipe))
	f.Add([]byte("version: 1\nrules: [{match: a, steps: [{quantize: &a {method: gptq, bits: 3}}]}, {match: b, steps: [{quantize: *a}]}]"))
	f.Add([]byte(stepsRecipe("{prune: {sparsity: 0.5, allocation: owl, owl: {lambda: 0.1}}}, {quantize: {bits: 4}}, {compensate: {budget: 1MB, alternations: 2}}")))
	f.Add([]byte(stepsRecipe("{prune: {pattern: '2:4', method: sparsegpt, joint: true}}, {quantize: {method: gptq, bits: 3}}, {compensate: {rank: 2}}")))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ParseRecipe(text, "r.yaml")
		if (r == nil) == (err == nil) {
			t.Errorf("recipe %v, error %v", r, err)
		}
		var re *RecipeError
		if err != nil && !errors.As(err, &re) {
			t.Error(fmt.Errorf("untyped: %w", err))
		}
	})
}
