package pipeline_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/gate"
	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
)

// writeIDs writes ids of a vocabulary of 37 as u16.
func writeIDs(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ids.u16")
	rng := rand.New(rand.NewPCG(5, 6))
	var raw []byte
	for range n {
		raw = binary.LittleEndian.AppendUint16(raw, uint16(rng.IntN(37)))
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// writeNPY writes random features as NumPy does.
func writeNPY(t *testing.T, shape ...int) string {
	t.Helper()
	text := "("
	n := 1
	for _, d := range shape {
		text += fmt.Sprint(d, ", ")
		n *= d
	}
	header := fmt.Sprintf("{'descr': '<f4', 'fortran_order': False, 'shape': %s), }", strings.TrimSuffix(text, " "))
	header += strings.Repeat(" ", 63-(10+len(header))%64) + "\n"
	var b bytes.Buffer
	b.WriteString("\x93NUMPY\x01\x00")
	b.Write(binary.LittleEndian.AppendUint16(nil, uint16(len(header))))
	b.WriteString(header)
	rng := rand.New(rand.NewPCG(7, 8))
	for range n {
		b.Write(binary.LittleEndian.AppendUint32(nil, math.Float32bits(float32(rng.NormFloat64()))))
	}
	path := filepath.Join(t.TempDir(), "features.npy")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// writeImages writes random images with labels below classes.
func writeImages(t *testing.T, classes int, shape ...int) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(9, 10))
	n := 1
	for _, d := range shape {
		n *= d
	}
	pixels, labels := make([]byte, n), make([]byte, shape[0])
	for i := range pixels {
		pixels[i] = byte(rng.IntN(256))
	}
	for i := range labels {
		labels[i] = byte(rng.IntN(classes))
	}
	path := filepath.Join(t.TempDir(), "images.safetensors")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	source := func(name string, shape []int, data []byte) safetensors.Source {
		return safetensors.Source{Name: name, DType: dtype.U8, Shape: shape, Write: func(w io.Writer) error {
			_, err := w.Write(data)
			return err
		}}
	}
	if err := safetensors.Write(f, []safetensors.Source{source("images", shape, pixels), source("labels", shape[:1], labels)}, nil); err != nil {
		t.Fatal(err)
	}
	return path
}

// encoderData returns data that the tiny encoder of a folder reads.
func encoderData(t *testing.T, folder string) string {
	t.Helper()
	switch folder {
	case "vit":
		return "{data: " + writeImages(t, 4, 64, 2, 12, 8) + ", format: safetensors}"
	case "vit-classes":
		return "{data: " + writeImages(t, 4, 64, 3, 8, 8) + ", format: safetensors}"
	case "whisper":
		return "{data: " + writeNPY(t, 40, 6, 22) + ", format: npy}"
	}
	return "{data: " + writeIDs(t, 1500) + ", format: u16, text: {mode: packed, length: 30}}"
}

func encoderRun(t *testing.T, folder, data, steps string) (*pipeline.Recipe, *record.Run) {
	t.Helper()
	r, err := pipeline.ParseRecipe([]byte("version: 1\ncalibration: "+data+"\nevaluate: "+data+"\n"+steps+"\noutput: {dense: [safetensors]}\n"), "")
	if err != nil {
		t.Fatal(err)
	}
	r.Model.Path = "../model/testdata/" + folder
	r.Output.Path = filepath.Join(t.TempDir(), "out")
	return r, mustRun(t, r, pipeline.Options{})
}

// Every family of encoders goes through compression, is written, read back and
// measured by what its outputs are.
func TestEncodersAreCompressed(t *testing.T) {
	const quantized = `rules: [{match: "*", steps: [{quantize: {method: best, bits: 4, group_size: 4}}]}]`
	const both = `rules: [{match: "*dense|*lin*|*fc*|*intermediate*", steps: [{prune: {method: sparsegpt, sparsity: 0.4}}, {quantize: {method: gptq, bits: 8}}]}, {match: "*", steps: [{quantize: {method: gptq, bits: 8}}]}]`
	for folder, task := range map[string]string{
		"bert": "features", "bert-masked": "token_classes", "bert-classes": "sequence_classes", "bert-answers": "features",
		"roberta-masked": "token_classes", "roberta-classes": "sequence_classes", "xlm-roberta-tokens": "token_classes",
		"electra-masked": "token_classes", "electra-discriminator": "features", "electra-classes": "sequence_classes",
		"distilbert-masked": "token_classes", "distilbert-classes": "sequence_classes",
		"vit": "features", "vit-classes": "", "whisper": "features",
	} {
		data := encoderData(t, folder)
		for what, steps := range map[string]string{"4 bits": quantized, "pruned": both} {
			if what == "4 bits" && strings.Contains(folder, "-") && folder != "bert-masked" {
				continue // one of each family, but for its heads
			}
			r, run := encoderRun(t, folder, data, steps)
			e := run.Evaluation
			if task == "" {
				if e.Outputs != nil || e.Language != nil || e.Original.Loss == 0 || e.KL > .5 {
					t.Errorf("%s, %s: %+v", folder, what, e)
				}
			} else if e.Outputs == nil || e.Language != nil || e.Outputs.Task != task || e.Outputs.Rows == 0 {
				t.Errorf("%s, %s: evaluated as %+v", folder, what, e.Outputs)
			} else if task == "features" && !(*e.Outputs.RelativeError > 0 && *e.Outputs.RelativeError < .1) {
				t.Errorf("%s, %s: relative error %v", folder, what, *e.Outputs.RelativeError)
			} else if task != "features" && !(*e.Outputs.KL > 0 && *e.Outputs.KL < .3) {
				t.Errorf("%s, %s: KL %v, %v %% agree", folder, what, *e.Outputs.KL, *e.Outputs.Agreement)
			}
			for _, l := range run.Layers {
				if l.RelativeError == nil || *l.RelativeError > .3 {
					t.Errorf("%s, %s: layer %s has error %v", folder, what, l.Name, l.RelativeError)
				}
			}
			m, err := export.Open(context.Background(), r.Output.Path)
			if err != nil {
				t.Errorf("%s, %s: %v", folder, what, err)
				continue
			}
			_ = m.Close()
		}
	}
}

// Of a whole Whisper the decoder is kept to the byte.
func TestWhisperKeepsItsDecoder(t *testing.T) {
	_, run := encoderRun(t, "whisper", encoderData(t, "whisper"), `rules: [{match: "*", steps: [{quantize: {method: nearest, bits: 4}}]}]`)
	kept := 0
	for _, k := range run.Kept {
		if strings.HasPrefix(k.Name, "model.decoder.") {
			kept++
			if k.Changed {
				t.Errorf("%s changed", k.Name)
			}
		}
	}
	if kept != 19 {
		t.Errorf("%d tensors of the decoder are kept, want 19", kept)
	}
	for _, l := range run.Layers {
		if !strings.HasPrefix(l.Weight, "model.encoder.") {
			t.Errorf("layer %s is compressed", l.Weight)
		}
	}
}

// AWQ's scales go into normalizations that stand before the sublayers, not into
// those behind a sum, which the next sum reads too.
func TestEncodersAreScaled(t *testing.T) {
	for folder, scaled := range map[string]bool{"vit-classes": true, "whisper": true, "bert-masked": false} {
		_, run := encoderRun(t, folder, encoderData(t, folder), `rules: [{match: "*query|*key|*value|*q_proj|*k_proj|*v_proj|*intermediate.dense|*fc1", steps: [{quantize: {method: gptq, bits: 8, awq: true}}]}]`)
		for _, l := range run.Layers {
			if l.Scaled != scaled || scaled == (len(l.Fallbacks) > 0) {
				t.Errorf("%s: %s: scaled %v, %v", folder, l.Name, l.Scaled, l.Fallbacks)
			}
		}
		if o := run.Evaluation.Outputs; folder == "whisper" && *o.RelativeError > 1e-3 || folder == "vit-classes" && run.Evaluation.KL > 1e-2 {
			t.Errorf("%s: %+v", folder, run.Evaluation)
		}
	}
}

func TestEncodersLoseParts(t *testing.T) {
	for folder, remove := range map[string]string{
		"bert-masked":        `[{heads: 0.5}, {channels: 0.3}]`,
		"bert":               `[{mlp: encoder.layer.1.output}]`,
		"distilbert-masked":  `[{blocks: [0]}, {heads: 0.5}, {channels: 0.3}]`,
		"roberta-classes":    `[{attention: encoder.layer.0.attention.output}]`,
		"distilbert-classes": `[{channels: 0.3}]`,
		"vit-classes":        `[{blocks: [1]}]`,
		"vit":                `[{channels: 0.3}, {heads: 0.25}]`,
		"whisper":            `[{blocks: [0]}, {heads: 0.5, match: "layers.1*"}]`,
	} {
		_, run := encoderRun(t, folder, encoderData(t, folder), "remove: "+remove+"\n"+`rules: [{match: "*", steps: [{quantize: {method: gptq, bits: 8}}]}]`)
		if len(run.Removed) == 0 || run.RemovedBytes <= 0 || run.Evaluation == nil {
			t.Errorf("%s: removed %+v", folder, run.Removed)
		}
	}
}

// Budgets apply to what was compared, and others say which do.
func TestEncoderBudgets(t *testing.T) {
	ctx := context.Background()
	limit := 1.0
	for folder, fits := range map[string]bool{"bert": false, "bert-masked": true} {
		r, _ := encoderRun(t, folder, encoderData(t, folder), `rules: [{match: "*", steps: [{quantize: {method: nearest, bits: 8}}]}]`)
		for what, b := range map[string]gate.Budgets{"max-kl": {MaxKL: &limit}, "max-output-error": {MaxOutputError: &limit}} {
			v, err := gate.Check(ctx, r.Output.Path, b)
			if ok := fits == (what == "max-kl"); ok != (err == nil) || ok && !v[0].Pass {
				t.Errorf("%s: %s: %v, %v", folder, what, v, err)
			}
		}
		for _, b := range []gate.Budgets{{MaxAccuracyDrop: &limit}, {MaxLossIncrease: &limit}, {MaxPerplexityRatio: &limit}} {
			if _, err := gate.Check(ctx, r.Output.Path, b); err == nil || !strings.Contains(err.Error(), "use max-") {
				t.Errorf("%s: a budget of predictions: %v", folder, err)
			}
		}
		if _, err := pipeline.Evaluate(ctx, r, pipeline.Options{}); err == nil || !strings.Contains(err.Error(), "measured alone") {
			t.Errorf("%s alone: %v", folder, err)
		}
	}
}

// Data that an encoder cannot take is named.
func TestEncoderDataErrors(t *testing.T) {
	for _, s := range []struct{ folder, data, want string }{
		{"whisper", "{data: " + writeNPY(t, 4, 6, 20) + ", format: npy}", "samples are [6 20]"},
		{"vit-classes", "{data: " + writeNPY(t, 4, 3, 8, 8) + ", format: npy}", "no labels"},
		{"bert-masked", "{data: " + writeIDs(t, 100) + ", format: u16, text: {length: 20, stride: 10}}", "stride"},
		{"bert-masked", "{data: " + writeIDs(t, 100) + ", format: u16, targets: 5}", "targets"},
		{"bert-masked", "{data: " + writeNPY(t, 4, 3) + ", format: npy}", "<f4"},
		{"vit", encoderData(t, "bert"), "not one of images"},
	} {
		r, err := pipeline.ParseRecipe([]byte("version: 1\nevaluate: "+s.data+"\nrules: [{match: \"*\", steps: [{quantize: {method: nearest, bits: 4}}]}]\n"), "")
		if err != nil {
			t.Fatal(err)
		}
		r.Model.Path, r.Output.Path = "../model/testdata/"+s.folder, filepath.Join(t.TempDir(), "out")
		if _, err = pipeline.Run(context.Background(), r, pipeline.Options{}); err == nil || !strings.Contains(err.Error(), s.want) {
			t.Errorf("%s with %s: %v", s.folder, s.data, err)
		}
	}
}

// Results have the same bytes for any number of workers.
func TestEncodersDoNotDependOnWorkers(t *testing.T) {
	for _, folder := range []string{"bert-masked", "vit", "whisper"} {
		data := encoderData(t, folder)
		var digests []string
		for _, workers := range []int{1, 3} {
			r, err := pipeline.ParseRecipe([]byte("version: 1\ncalibration: "+data+"\nevaluate: "+data+"\nrules: [{match: \"*\", steps: [{quantize: {method: gptq, bits: 4}}]}]\n"), "")
			if err != nil {
				t.Fatal(err)
			}
			r.Model.Path, r.Output.Path = "../model/testdata/"+folder, filepath.Join(t.TempDir(), "out")
			run := mustRun(t, r, pipeline.Options{Workers: workers})
			o := run.Evaluation.Outputs
			digests = append(digests, fmt.Sprint(run.Output.ManifestSHA256, o.Rows, deref(o.KL), deref(o.RelativeError)))
		}
		if digests[0] != digests[1] {
			t.Errorf("%s: %v", folder, digests)
		}
	}
}

func deref(p *float64) float64 {
	if p == nil {
		return 0
	}
	return *p
}

// Searches measure masked language models and classifiers of images, whose levels
// may drop blocks.
func TestSearchesOfEncoders(t *testing.T) {
	for _, folder := range []string{"bert-masked", "vit-classes"} {
		data := encoderData(t, folder)
		r, err := pipeline.ParseRecipe([]byte("version: 1\ncalibration: "+data+"\nevaluate: "+data+`
rules: [{match: "encoder.layer.*", steps: [{quantize: {method: nearest}}], levels: [{bits: [2, 3, 4, 8]}, {drop: block}]}]
search: {fit: 70%, generations: 3, offspring: 4, stages: [{survivors: 1, samples: 32}]}
`), "")
		if err != nil {
			t.Fatal(err)
		}
		r.Model.Path, r.Output.Path = "../model/testdata/"+folder, filepath.Join(t.TempDir(), "out")
		run := mustRun(t, r, pipeline.Options{})
		if run.Search == nil || len(run.Search.Results) != 1 || run.Output.WeightBytes > run.Search.Results[0].Budget || run.Evaluation == nil {
			t.Errorf("%s: %+v", folder, run.Search)
		}
	}
}
