package pipeline_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
)

// storedFolder is one of those that another program would have written.
func storedFolder(name string) string {
	return filepath.Join("..", "export", "testdata", "stored", name)
}

// idsFile is a file of token ids for models of 37 words.
func idsFile(t *testing.T) string {
	t.Helper()
	var raw []byte
	for i := range 512 {
		raw = binary.LittleEndian.AppendUint16(raw, uint16((i*i*7+i/5)%37))
	}
	path := filepath.Join(t.TempDir(), "ids.u16")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// storedRecipe compresses a model of such a folder; rules is YAML.
func storedRecipe(t *testing.T, path, rest string) *pipeline.Recipe {
	t.Helper()
	ids := idsFile(t)
	r, err := pipeline.ParseRecipe([]byte(`version: 1
calibration: {data: `+ids+`, format: u16, text: {mode: packed, length: 16}}
evaluate: {data: `+ids+`, format: u16, text: {mode: packed, length: 16}}
`+rest), "")
	if err != nil {
		t.Fatal(err)
	}
	r.Model.Path, r.Output.Path = path, filepath.Join(t.TempDir(), "out")
	return r
}

// rawTensors returns the bytes of all tensors in a folder's files.
func rawTensors(t *testing.T, dir string) map[string]string {
	t.Helper()
	ckpt, err := loader.Open(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer ckpt.Close()
	all := map[string]string{}
	for _, x := range ckpt.Tensors() {
		raw := make([]byte, x.Bytes())
		if err := ckpt.ReadBytes(x.Name, raw); err != nil {
			t.Fatal(err)
		}
		all[x.Name] = x.DType.String() + string(raw)
	}
	return all
}

// TestCompressedTwice: half of a model in each of fettle's layouts, then the other half:
// the first stays bit by bit, whatever the number of workers, and stands in the record.
func TestCompressedTwice(t *testing.T) {
	const model = "../testmodels/lm"
	data := "calibration: {data: ../testmodels/lm/calibration.u16, format: u16, samples: 8, text: {lengths: ../testmodels/lm/calibration.lengths.json}}\n" +
		"evaluate: {data: ../testmodels/lm/test.u16, format: u16, samples: 4, text: {lengths: ../testmodels/lm/test.lengths.json}}\n"
	recipe := func(path, rules string) *pipeline.Recipe {
		r, err := pipeline.ParseRecipe([]byte("version: 1\n"+data+rules), "")
		if err != nil {
			t.Fatal(err)
		}
		r.Model.Path, r.Output.Path = path, filepath.Join(t.TempDir(), "out")
		return r
	}
	first := recipe(model, `rules:
  - {match: "*q_proj", steps: [{quantize: {method: nearest, bits: 4, group_size: 8}}]}
  - {match: "*k_proj", steps: [{quantize: {method: nearest, format: nvfp4}}]}
  - {match: "*v_proj", steps: [{quantize: {method: nearest, format: mxfp4}}]}
  - {match: "*o_proj", steps: [{quantize: {method: gptq, format: fp8, granularity: channel}}, {compensate: {method: eora, rank: 2, bits: 4}}]}
  - {match: "*layers.0.mlp.gate_proj", steps: [{prune: {method: magnitude, pattern: "2:4"}}]}
  - {match: "*layers.1.mlp.gate_proj", steps: [{prune: {method: wanda, sparsity: .6, layout: columns}}, {quantize: {bits: 3, method: gptq}}]}
`)
	one := mustRun(t, first, pipeline.Options{})
	before := rawTensors(t, first.Output.Path)
	measured, err := pipeline.Evaluate(context.Background(), recipe(first.Output.Path, "rules: [{match: \"*\"}]\n"), pipeline.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := measured.Language.Loss, one.Evaluation.Language.Compressed.Loss; got != want {
		t.Errorf("the folder has loss %v, the run found %v", got, want)
	}

	digest := ""
	for _, workers := range []int{1, 2} {
		second := recipe(first.Output.Path, `rules: [{match: "*", steps: [{quantize: {method: gptq, bits: 5}}]}]
output: {dense: [safetensors]}
`)
		plan, err := pipeline.MakePlan(context.Background(), second, pipeline.Options{})
		if err != nil {
			t.Fatal(err)
		}
		two := mustRun(t, second, pipeline.Options{Workers: workers})
		if plan.WeightBytes != two.Output.WeightBytes {
			t.Errorf("plan of %d bytes, %d written", plan.WeightBytes, two.Output.WeightBytes)
		}
		if digest == "" {
			digest = two.Output.ManifestSHA256
		}
		if two.Output.ManifestSHA256 != digest {
			t.Errorf("another digest with %d workers", workers)
		}
		checkCompressedTwice(t, one, two, plan, before, second.Output.Path)
	}
}

func checkCompressedTwice(t *testing.T, one, two *record.Run, plan *pipeline.Plan, before map[string]string, out string) {
	t.Helper()
	stored := map[string]record.Tensor{}
	for _, k := range two.Kept {
		if k.Stored != "" {
			stored[k.Name] = k
		}
	}
	for _, l := range one.Layers {
		k, ok := stored[l.Weight]
		if !ok || k.Bytes != l.Bytes {
			t.Errorf("%s: kept %+v of %d bytes", l.Weight, k, l.Bytes)
		}
	}
	for _, l := range two.Layers {
		if _, ok := stored[l.Weight]; ok || l.Bits != 5 {
			t.Errorf("%s is compressed again, or in %d bits", l.Weight, l.Bits)
		}
	}
	if len(stored) != len(one.Layers) || len(two.Layers) == 0 {
		t.Errorf("%d layers kept as they are stored, %d compressed", len(stored), len(two.Layers))
	}
	notes := strings.Join(plan.Notes, "\n")
	for _, want := range []string{"kept: already quantized, pack-quantized 4 bits g8: 3 layers (", "NVFP4 g16", "MXFP4 g32", "FP8 per channel, rank 2", "already pruned, values in F32, 50 % pruned", "requantize: true"} {
		if !strings.Contains(notes, want) {
			t.Errorf("notes lack %q:\n%s", want, notes)
		}
	}
	after, same := rawTensors(t, out), 0
	compressed := map[string]bool{}
	for _, l := range two.Layers {
		compressed[l.Weight] = true
	}
	for name, raw := range before {
		if compressed[name] {
			continue
		}
		if after[name] != raw {
			t.Errorf("%s is not as it was", name)
		}
		same++
	}
	if same < 20 {
		t.Errorf("only %d tensors stayed", same)
	}
	if two.Source.Bytes != one.Output.WeightBytes || two.Source.SHA256 != one.Output.Files[0].SHA256 {
		t.Errorf("source of %d bytes, %s", two.Source.Bytes, two.Source.SHA256)
	}
	if two.Evaluation.Language.Original.Loss != one.Evaluation.Language.Compressed.Loss {
		t.Errorf("the original's loss is %v, was %v", two.Evaluation.Language.Original.Loss, one.Evaluation.Language.Compressed.Loss)
	}
}

// TestStoredByOthers: each layout goes through a run in which the head is compressed, is
// evaluated, and once more with everything compressed again.
func TestStoredByOthers(t *testing.T) {
	entries, err := os.ReadDir(storedFolder(""))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Run(e.Name(), func(t *testing.T) {
			path := storedFolder(e.Name())
			before := rawTensors(t, path)
			ckpt, err := loader.Open(context.Background(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer ckpt.Close()
			m, err := export.Decode(ckpt)
			if err != nil {
				t.Fatal(err)
			}
			view, err := m.View()
			if err != nil {
				t.Fatal(err)
			}
			dense := map[string]bool{"lm_head": true}
			if e.Name() == "gptq-gpt2" { // whose head is tied
				dense = nil
			}
			if dense != nil {
				r := storedRecipe(t, path, `rules: [{match: "*", steps: [{quantize: {method: gptq, bits: 4}}]}]`)
				run := mustRun(t, r, pipeline.Options{})
				after := rawTensors(t, r.Output.Path)
				for name, raw := range before {
					if now, ok := after[name]; ok && now != raw {
						t.Errorf("%s is not as it was", name)
					} else if !ok && !slices.ContainsFunc(run.Layers, func(l record.Layer) bool { return l.Weight == name }) {
						t.Errorf("%s is lost", name)
					}
				}
				if !slices.ContainsFunc(run.Layers, func(l record.Layer) bool { return dense[l.Name] }) {
					t.Error("the head is not compressed")
				}
			}
			again := storedRecipe(t, path, `rules: [{match: "*", requantize: true, steps: [{quantize: {method: gptq, bits: 8}}]}]`)
			run := mustRun(t, again, pipeline.Options{})
			if l := run.Evaluation.Language; len(run.Layers) < 4 || l.KL > 1e-3 {
				t.Errorf("compressed again: %d layers, KL %v", len(run.Layers), l.KL)
			}
			for _, l := range run.Layers {
				was, _ := view.Lookup(l.Weight)
				if l.Bits != 8 || l.SourceBytes != was.StoredBytes() || (was.Decoded() == nil) != (l.SourceBytes == 2*l.Parameters) {
					t.Errorf("%s: %d bits, %d bytes in the source", l.Name, l.Bits, l.SourceBytes)
				}
			}
			if slices.ContainsFunc(run.Kept, func(k record.Tensor) bool { return k.Stored != "" }) {
				t.Error("something is kept as it is stored")
			}
		})
	}
}

// TestStoredRefused: nothing to do, and cuts through what is stored.
func TestStoredRefused(t *testing.T) {
	path := storedFolder("gptq")
	r := storedRecipe(t, path, `rules: [{match: "*_proj", steps: [{quantize: {bits: 4}}]}]`)
	if _, err := pipeline.MakePlan(context.Background(), r, pipeline.Options{}); !errors.Is(err, pipeline.ErrNothingToDo) || !strings.Contains(err.Error(), "GPTQ 4 bits g16") || !strings.Contains(err.Error(), "requantize: true") {
		t.Errorf("got %v", err)
	}
	const cut = `remove: [{channels: 0.5, match: "layers.0.mlp.up_proj", score: magnitude}]
`
	r = storedRecipe(t, path, cut+`rules: [{match: lm_head, steps: [{quantize: {bits: 4}}]}]`)
	var bad *pipeline.RecipeError
	if _, err := pipeline.MakePlan(context.Background(), r, pipeline.Options{}); !errors.As(err, &bad) || !strings.Contains(err.Error(), "requantize: true") {
		t.Errorf("got %v", err)
	}
	r = storedRecipe(t, path, cut+`rules: [{match: "*mlp*", requantize: true, steps: [{quantize: {bits: 8}}]}]`)
	run := mustRun(t, r, pipeline.Options{})
	if len(run.Layers) != 3 || run.RemovedBytes <= 0 || run.RemovedBytes > 3*32*32 {
		t.Errorf("%d layers, %d bytes removed", len(run.Layers), run.RemovedBytes)
	}
}

// TestStoredRemoved: a whole part goes, and what is left is the source's own, and its
// config.
func TestStoredRemoved(t *testing.T) {
	r := storedRecipe(t, storedFolder("gptq"), `remove: [{mlp: layers.0.mlp}]`)
	run := mustRun(t, r, pipeline.Options{})
	before, after := rawTensors(t, storedFolder("gptq")), rawTensors(t, r.Output.Path)
	kept := 0
	for name, raw := range after {
		if before[name] != raw {
			t.Errorf("%s is not as it was", name)
		}
		if strings.HasSuffix(name, ".qweight") {
			kept++
		}
	}
	config, err := os.ReadFile(filepath.Join(r.Output.Path, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if kept != 4 || len(run.Layers) != 0 || !strings.Contains(string(config), `"quant_method": "gptq"`) {
		t.Errorf("%d weights kept, %d compressed; %s", kept, len(run.Layers), config)
	}
}

// TestStoredSearch: a search among what is not stored compressed, which counts what is,
// and one that may compress it again.
func TestStoredSearch(t *testing.T) {
	r := storedRecipe(t, storedFolder("pack-quantized"), `rules: [{match: "*", steps: [{quantize: {method: nearest}}], levels: [{bits: [3, 4, 8]}]}]
search: {fit: 17KB, method: dp}
`)
	run := mustRun(t, r, pipeline.Options{})
	if len(run.Layers) != 1 || run.Layers[0].Name != "lm_head" || run.Output.WeightBytes > 17000 {
		t.Errorf("%d layers, %d bytes", len(run.Layers), run.Output.WeightBytes)
	}
	r = storedRecipe(t, storedFolder("pack-quantized"), `rules: [{match: "*", requantize: true, steps: [{quantize: {method: nearest}}], levels: [{keep: true}, {bits: [2, 3, 4, 8]}]}]
search: {fit: 13KB, method: dp}
`)
	run = mustRun(t, r, pipeline.Options{})
	kept := 0
	for _, k := range run.Kept {
		if k.Stored != "" {
			kept++
		}
	}
	if kept == 0 || len(run.Layers) < 2 || run.Output.WeightBytes > 13000 {
		t.Errorf("%d layers kept, %d compressed, %d bytes", kept, len(run.Layers), run.Output.WeightBytes)
	}
}
