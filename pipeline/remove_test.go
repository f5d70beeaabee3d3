package pipeline_test

import (
	"testing"

	"github.com/fettle-dev/fettle/pipeline"
)

func TestTry(t *testing.T) {
	for _, c := range []struct{ remove, rules string }{
		{"[{channels: 0.25}]", ""},
		{"[{channels: 0.25, score: magnitude, repair: false}]", ""},
		{"[{channels: 0.25, score: energy, allocation: global}]", ""},
		{"[{channels: 0.25, allocation: global}]", ""},
		{"[{channels: 0.25}]", "rules: [{match: \"*\", steps: [{quantize: {bits: 4}}]}]\n"},
		{"[]", "rules: [{match: \"*\", steps: [{quantize: {bits: 4}}]}]\n"},
	} {
		r, err := pipeline.ParseRecipe([]byte(`version: 1
model: {path: resnet8.th, input: {shape: [1, 16, 16], mean: [0.35], std: [0.24]}}
calibration: {data: glyphs-calibration.safetensors, format: safetensors, samples: 256}
evaluate: {data: glyphs-test.safetensors, format: safetensors, samples: 1000}
remove: `+c.remove+"\n"+c.rules), models+"recipe.yaml")
		if err != nil {
			t.Fatal(err)
		}
		r.Output.Path = t.TempDir() + "/out"
		run := mustRun(t, r, pipeline.Options{Workers: 2})
		t.Log(c, run.Output.WeightBytes, run.Source.Bytes, run.Evaluation.KL, run.Evaluation.Compressed.Top1)
		for _, one := range run.Removed {
			e, p := -1.0, -1.0
			if one.RelativeError != nil { e, p = *one.RelativeError, *one.PlainRelativeError }
			t.Log(one, e, p)
		}
	}
}
func TestTryLM(t *testing.T) {
	for _, c := range []struct{ remove, rules string }{
		{"[{channels: 0.25, allocation: uniform}, {heads: 0.5}]", ""},
		{"[{channels: 0.25, allocation: global}]", ""},
		{"[{channels: 0.25, allocation: uniform}]", ""},
		{"[{channels: 0.25, score: energy, repair: false}]", ""},
		{"[{heads: 0.5, of: queries}]", ""},
		{"[{blocks: [1]}, {channels: 0.25}]", ""},
		{"[{blocks: [1]}]", ""},
		{"[{attention: layers.0.self_attn}, {mlp: layers.2.*}]", ""},
		{"[{channels: 0.25}]", "rules: [{match: \"*\", steps: [{quantize: {bits: 4}}]}]\n"},
	} {
		r, err := pipeline.ParseRecipe([]byte(`version: 1
model: {path: lm}
calibration: {data: lm/calibration.u16, format: u16, samples: 80}
evaluate: {data: lm/test.u16, format: u16, samples: 60}
remove: `+c.remove+"\n"+c.rules), models+"recipe.yaml")
		if err != nil {
			t.Fatal(err)
		}
		r.Output.Path = t.TempDir() + "/out"
		run := mustRun(t, r, pipeline.Options{Workers: 2})
		t.Log(c, run.Output.WeightBytes, run.Source.Bytes, run.Evaluation.Language.KL, run.Evaluation.Language.LossIncrease)
		for _, one := range run.Removed {
			e, p := -1.0, -1.0
			if one.RelativeError != nil { e, p = *one.RelativeError, *one.PlainRelativeError }
			t.Log(one, e, p)
		}
	}
}
