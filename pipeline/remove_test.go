package pipeline_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
)

// removing returns a recipe that takes parts of a model away. base says which
// model, on which data.
func removing(t testing.TB, base, remove, more string) *pipeline.Recipe {
	t.Helper()
	r, err := pipeline.ParseRecipe([]byte("version: 1\n"+base+"remove: "+remove+"\n"+more), models+"recipe.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r.Output.Path = filepath.Join(t.TempDir(), "out")
	return r
}

const (
	ofResNet = `model: {path: resnet8.th, input: {shape: [1, 16, 16], mean: [0.35], std: [0.24]}}
calibration: {data: glyphs-calibration.safetensors, format: safetensors, samples: 120}
evaluate: {data: glyphs-test.safetensors, format: safetensors, samples: 300}
`
	ofMLP = `model: {path: mlp.safetensors, architecture: mlp, activation: relu, input: {mean: [0.35], std: [0.24]}}
calibration: {data: glyphs-calibration.safetensors, format: safetensors, samples: 120}
evaluate: {data: glyphs-test.safetensors, format: safetensors, samples: 300}
`
	ofLM = `model: {path: lm}
calibration: {data: lm/calibration.u16, format: u16, samples: 30}
evaluate: {data: lm/test.u16, format: u16, samples: 10}
`
	fourBits = `rules: [{match: "*", steps: [{quantize: {bits: 4, method: gptq}}]}]
`
)

func TestRemoveRecipeErrors(t *testing.T) {
	for _, c := range []struct{ entry, want string }{
		{"{}", "remove[0]: names 0 of blocks, attention, mlp, heads and channels"},
		{"{heads: 0.5, channels: 0.5}", "remove[0]: names 2 of"},
		{"{chanels: 0.5}", `remove[0]: unknown key "chanels"; did you mean "channels"?`},
		{"{channels: 1}", "remove[0].channels: is 1, which leaves nothing"},
		{"{channels: -0.1}", "remove[0].channels: is -0.1, want a share"},
		{"{heads: half}", `"half" is not a number`},
		{"{channels: 0.5, score: size}", `remove[0].score: "size" is not known (one of error, energy, magnitude)`},
		{"{channels: 0.5, of: queries}", "remove[0].of: is for heads"},
		{"{heads: 0.5, of: heads}", `remove[0].of: "heads" is not known`},
		{"{channels: 0.5, score: magnitude, allocation: global}", "remove[0].allocation: is global, which compares errors"},
		{"{channels: 0.5, score: energy, rounds: 3}", "remove[0].rounds: is for score error"},
		{"{channels: 0.5, rounds: -3}", "remove[0].rounds: is negative"},
		{"{channels: 0.5, damping: -1}", "remove[0].damping: is -1"},
		{"{channels: 0.5, match: \"[\"}", "remove[0].match: pattern"},
		{"{blocks: [1], score: error}", "remove[0].score: is for heads and channels; blocks go as a whole"},
		{"{mlp: x, match: \"*\"}", "remove[0].match: is for heads and channels"},
		{"{blocks: 1}", "sequence is expected"},
		{"{attention: \"a|\"}", "remove[0].attention: pattern"},
	} {
		_, err := pipeline.ParseRecipe([]byte("version: 1\nremove:\n  - "+c.entry+"\n"), "r.yaml")
		var bad *pipeline.RecipeError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.want) || bad.Line != 3 {
			t.Errorf("%s: %v, want %s", c.entry, err, c.want)
		}
	}
	r, err := pipeline.ParseRecipe([]byte("version: 1\nremove: [{channels: 0.5}, {heads: 0.25}, {blocks: [3, layer1.*]}]\n"), "")
	if err != nil {
		t.Fatal(err)
	}
	if e := r.Remove[0]; e.Match != "*" || e.Score != "error" || e.Allocation != "uniform" || r.Remove[1].Of != "groups" || !slices.Equal(r.Remove[2].Blocks, []string{"3", "layer1.*"}) {
		t.Errorf("defaults: %+v", r.Remove)
	}
}

// Faults of entries that a model shows, before any work.
func TestRemoveSiteErrors(t *testing.T) {
	for _, c := range []struct{ base, entry, want string }{
		{ofResNet, "{channels: 0.5, match: conv1}", "flow into the residual stream"},
		{ofResNet, "{channels: 0.5, match: layer1.0.conv*|layer9.*}", `"layer9.*" matches no layer with channels`},
		{ofResNet, "{blocks: [layer2.0]}", "layer2.0: its shortcut has operations of its own"},
		{ofResNet, "{blocks: [layer1.0]}", "each stage must keep one"},
		{ofResNet, "{blocks: [1]}", `remove[0].blocks: "1" matches no block of the model that could go (there are layer1.0)`},
		{ofResNet, "{heads: 0.5}", "that could go; it has none"},
		{ofLM, "{blocks: [3]}", `"3" matches no block of the model that could go (there are layers.0, layers.1, layers.2)`},
		{ofLM, "{blocks: [layers.*]}", "no block would stay"},
		{ofLM, "{attention: layers.0.selfattn}", `did you mean "layers.0.self_attn"?`},
		{ofLM, "{channels: 0.5, match: layers.1.mlp.down_proj}", "flow into the residual stream"},
		{ofMLP, "{channels: 0.5, match: fc3}", "they are the model's outputs"},
	} {
		_, err := pipeline.MakePlan(t.Context(), removing(t, c.base, "["+c.entry+"]", ""), pipeline.Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.entry, err, c.want)
		}
	}
	noData := strings.Replace(ofResNet, "calibration:", "#", 1)
	for _, entry := range []string{"{channels: 0.5}", "{channels: 0.5, score: magnitude}", "{channels: 0.5, score: energy, repair: false}"} {
		_, err := pipeline.Run(t.Context(), removing(t, noData, "["+entry+"]", ""), pipeline.Options{})
		if err == nil || !strings.Contains(err.Error(), "calibration: is missing, and remove[0] (channels) needs data") {
			t.Errorf("%s: %v", entry, err)
		}
	}
	run := mustRun(t, removing(t, noData, "[{channels: 0.5, score: magnitude, repair: false}]", ""), pipeline.Options{})
	if len(run.Removed) != 3 || run.Removed[0].RelativeError != nil || run.Removed[0].Kept != 4 {
		t.Errorf("removed without data: %+v", run.Removed)
	}
}

// The first entry that matches counts, what is within a block goes with it, and
// what loses nothing is left out.
func TestRemoveFirstMatchCounts(t *testing.T) {
	plan, err := pipeline.MakePlan(t.Context(), removing(t, ofLM,
		"[{channels: 0, match: layers.0.*}, {channels: 0.5, match: layers.1.mlp.up_proj}, {channels: 0.25}, {heads: 0.1}, {blocks: [2]}, {mlp: layers.2.mlp}]", ""), pipeline.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range plan.Removed {
		got = append(got, fmt.Sprintf("%s %s %d/%d", r.Kind, r.Name, r.Keep, r.Units))
	}
	if want := []string{"block layers.2 0/1", "channel layers.1.mlp.gate_proj 32/64"}; !slices.Equal(got, want) {
		t.Errorf("removed %v, want %v", got, want)
	}
	if len(plan.Notes) != 1 || !strings.Contains(plan.Notes[0], "only fettle can read") {
		t.Errorf("notes %q", plan.Notes)
	}
}

// compareRemoved holds the recorded errors against the models: the smaller one as
// its files hold it, against the original on the calibration data. An error counts
// behind the sum that the layer writes into, over what a normalization between
// multiplies channels by.
func compareRemoved(t *testing.T, r *pipeline.Recipe, run *record.Run, o model.Options, in *model.Tensor) {
	t.Helper()
	ctx := context.Background()
	ckpt, err := loader.Open(ctx, r.Model.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer ckpt.Close()
	whole, err := model.Build(ckpt.Tensors(), o)
	if err != nil {
		t.Fatal(err)
	}
	written, err := export.Open(ctx, r.Output.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer written.Close()
	small := o
	if o.Config != nil {
		if small.Config, err = written.SourceConfig(); err != nil {
			t.Fatal(err)
		}
	}
	graph, err := model.Build(written.Tensors(), small)
	if err != nil {
		t.Fatal(err)
	}
	x := everyValue(t, whole, model.Stored(ckpt), in, nil)
	xt := everyValue(t, graph, pipeline.Dequantized(written), in, nil)
	read := func(name string, n int) []float32 {
		data := make([]float32, n)
		if name != "" {
			if err := ckpt.ReadFloat32(name, data); err != nil {
				t.Fatal(err)
			}
		}
		return data
	}
	compared := 0
	for _, removed := range run.Removed {
		site, err := whole.Site(model.SiteKind(removed.Kind), removed.Name)
		if err != nil {
			t.Fatal(err)
		}
		i := site.Consumers[0].Op
		op := &whole.Ops[i]
		at, factor := op.Output, func(int) float64 { return 1 }
		if readers := whole.Readers(at); len(readers) == 1 && whole.Ops[readers[0]].BatchNorm != nil {
			next := &whole.Ops[readers[0]]
			scale, variance := read(next.BatchNorm.Scale, op.Outputs), read(next.BatchNorm.Var, op.Outputs)
			factor = func(c int) float64 { return float64(scale[c]) / math.Sqrt(float64(variance[c])+next.BatchNorm.Eps) }
			at = next.Output
		}
		if readers := whole.Readers(at); len(readers) == 1 && whole.Ops[readers[0]].Kind == model.Add {
			at = whole.Ops[readers[0]].Output
		}
		if len(x[at].Data) != len(xt[at].Data) {
			continue // it loses outputs of its own
		}
		bias := read(op.Bias, op.Outputs)
		area := 1
		if op.Conv != nil {
			area = len(x[at].Data) / x[at].Shape[0] / op.Outputs
		}
		var lost, energy float64
		for k, v := range x[at].Data {
			c := k / area % op.Outputs
			d := float64(v-xt[at].Data[k]) / factor(c)
			lost += d * d
		}
		for k, v := range x[op.Output].Data {
			e := float64(v - bias[k/area%op.Outputs])
			energy += e * e
		}
		compared++
		if got, want := *removed.RelativeError, lost/energy; math.Abs(got-want) > 2e-3*want+1e-7 {
			t.Errorf("%s %s: relative error %v from moments, %v from the models", removed.Kind, removed.Name, got, want)
		}
		if !(*removed.RelativeError <= *removed.PlainRelativeError*(1+1e-6)) {
			t.Errorf("%s %s: relative error %v, %v without repair", removed.Kind, removed.Name, *removed.RelativeError, *removed.PlainRelativeError)
		}
	}
	if compared == 0 {
		t.Error("nothing was compared")
	}
}

func TestRemovedErrorsAgainstTheModels(t *testing.T) {
	for base, o := range map[string]model.Options{ofResNet: {InputShape: []int{1, 16, 16}}, ofMLP: {Architecture: "mlp", Activation: "relu"}} {
		for _, how := range []string{"score: error", "score: energy, repair: false", "score: magnitude", "allocation: global", "rounds: 1"} {
			r := removing(t, base, "[{channels: 0.3, "+how+"}]", "")
			run := mustRun(t, r, pipeline.Options{})
			ckpt, err := loader.Open(t.Context(), r.Model.Path)
			if err != nil {
				t.Fatal(err)
			}
			graph, err := model.Build(ckpt.Tensors(), o)
			if err != nil {
				t.Fatal(err)
			}
			images, err := pipeline.OpenImages(t.Context(), r.Calibration, graph, r.Model.Input)
			if err != nil {
				t.Fatal(err)
			}
			in := imageInput(t, images)
			if o.Architecture == "mlp" {
				in.Shape = []int{in.Shape[0], 256}
			}
			compareRemoved(t, r, run, o, in)
			_ = ckpt.Close() // only read from
		}
	}
}

// families are tiny random models of each family of decoders.
var families = []string{"llama-linear", "llama-llama3", "mistral", "qwen2", "gpt2", "gpt2-options"}

// ofFamily returns a family's folder with random ids to calibrate and evaluate on.
func ofFamily(t *testing.T, name string) (base string, config []byte, in *model.Tensor) {
	t.Helper()
	folder := filepath.Join("..", "model", "testdata", name)
	config, err := os.ReadFile(filepath.Join(folder, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Vocabulary int `json:"vocab_size"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	var raw []byte
	var lengths []int
	var sequences [][]uint32
	for range 24 {
		ids := make([]uint32, 7)
		for i := range ids {
			ids[i] = r.Uint32N(uint32(c.Vocabulary))
			raw = binary.LittleEndian.AppendUint16(raw, uint16(ids[i]))
		}
		sequences, lengths = append(sequences, ids), append(lengths, len(ids))
	}
	dir := t.TempDir()
	text, err := json.Marshal(lengths)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"x.u16": raw, "x.lengths.json": text} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data := fmt.Sprintf("{data: '%s', format: u16}", filepath.Join(dir, "x.u16"))
	return fmt.Sprintf("model: {path: %s}\ncalibration: %s\nevaluate: %s\n", filepath.Join("..", folder[len("../"):]), data, data), config, model.NewTokens(sequences...)
}

func TestRemoveFromFamilies(t *testing.T) {
	for _, name := range families {
		if os.Getenv("FETTLE_LONG") == "" && (name == "mistral" || name == "gpt2-options") {
			continue
		}
		base, config, in := ofFamily(t, name)
		for _, c := range []struct {
			remove, more string
			compare      bool
		}{
			{"[{channels: 0.3}, {heads: 0.5}]", "", true},
			{"[{channels: 0.3, score: energy, allocation: global}]", "", true},
			{"[{blocks: [0]}, {channels: 0.5}]", "", false},
			{"[{attention: '*.0.*'}, {mlp: '*.1.*'}]", "", false},
			{"[{attention: '*.1.*'}, {heads: 0.5}, {channels: 0.5, score: magnitude}]", fourBits, false},
		} {
			if strings.HasPrefix(name, "llama-llama3") {
				c.remove = strings.ReplaceAll(c.remove, "heads: 0.5", "heads: 0.5, of: queries") // it has one group
			}
			r := removing(t, base, c.remove, "output: {dense: [pt, safetensors]}\n"+c.more)
			plan, err := pipeline.MakePlan(t.Context(), r, pipeline.Options{})
			if err != nil {
				t.Fatalf("%s, %s: %v", name, c.remove, err)
			}
			run := mustRun(t, r, pipeline.Options{})
			if plan.WeightBytes != run.Output.WeightBytes || len(run.Removed) == 0 || run.RemovedBytes == 0 {
				t.Errorf("%s, %s: %d bytes planned, %d written; removed %+v", name, c.remove, plan.WeightBytes, run.Output.WeightBytes, run.Removed)
			}
			if c.compare {
				compareRemoved(t, r, run, model.Options{Config: config}, in)
			}
			if !c.compare {
				sameOnReading(t, r, run)
			}
		}
	}
}

// Errors of what goes of encoders are those of the models.
func TestRemoveFromEncoders(t *testing.T) {
	for _, name := range []string{"bert-masked", "roberta-classes"} {
		base, config, in := ofFamily(t, name)
		r := removing(t, base, "[{channels: 0.3}, {heads: 0.5}]", "")
		compareRemoved(t, r, mustRun(t, r, pipeline.Options{}), model.Options{Config: config}, in)
	}
}

// sameOnReading evaluates what a run wrote: the compressed folder, and its dense
// files with its config.json, must give what the run found.
func sameOnReading(t *testing.T, r *pipeline.Recipe, run *record.Run) {
	t.Helper()
	again := *r
	for _, file := range []string{"", "dense.safetensors", "dense.pt"} {
		again.Model.Path = r.Output.Path
		if file != "" {
			// A folder of its own, with the dense model's part of config.json.
			again.Model.Path = t.TempDir()
			written, err := export.Open(t.Context(), r.Output.Path)
			if err != nil {
				t.Fatal(err)
			}
			config, err := written.SourceConfig()
			if err := errors.Join(err, written.Close()); err != nil {
				t.Fatal(err)
			}
			weights, err := os.ReadFile(filepath.Join(r.Output.Path, file))
			if err != nil {
				t.Fatal(err)
			}
			name := map[string]string{"dense.safetensors": "model.safetensors", "dense.pt": "pytorch_model.bin"}[file]
			if err := errors.Join(os.WriteFile(filepath.Join(again.Model.Path, "config.json"), config, 0o600), os.WriteFile(filepath.Join(again.Model.Path, name), weights, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		got, err := pipeline.Evaluate(t.Context(), &again, pipeline.Options{})
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if got.Language.Loss != run.Evaluation.Language.Compressed.Loss {
			t.Errorf("%s%s: loss %v, the run found %v", r.Model.Path, file, got.Language.Loss, run.Evaluation.Language.Compressed.Loss)
		}
	}
}

// The same bytes for any number of workers, from a cache, from a damaged one, and
// after a run that was cut short.
func TestRemoveSameBytes(t *testing.T) {
	for _, c := range []struct{ base, remove, more string }{
		{ofResNet, "[{channels: 0.3, allocation: global}]", fourBits},
		{ofLM, "[{blocks: [1]}, {channels: 0.25}, {heads: 0.5}]", fourBits},
		{ofLM, "[{blocks: [0]}, {channels: 0.5, score: energy}]", "sequential: none\n"},
	} {
		c.base = strings.Replace(c.base, "evaluate:", "#", 1)
		want := mustRun(t, removing(t, c.base, c.remove, c.more), pipeline.Options{Workers: 1}).Output.ManifestSHA256
		for _, workers := range []int{2, 5} {
			if got := mustRun(t, removing(t, c.base, c.remove, c.more), pipeline.Options{Workers: workers}).Output.ManifestSHA256; got != want {
				t.Errorf("%s, %d workers: another digest", c.remove, workers)
			}
		}
		cache := t.TempDir()
		ctx, cancel := context.WithCancel(context.Background())
		_, err := pipeline.Run(ctx, removing(t, c.base, c.remove, c.more), pipeline.Options{Cache: cache, Events: func(e pipeline.Event) {
			if e.Stage == pipeline.StageRemove && e.Done == 2 {
				cancel()
			}
		}})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("cut short: %v", err)
		}
		resumed := mustRun(t, removing(t, c.base, c.remove, c.more), pipeline.Options{Cache: cache})
		if resumed.Output.ManifestSHA256 != want || resumed.Units.Reused == 0 {
			t.Errorf("%s: resumed with another digest, or nothing reused of %+v", c.remove, resumed.Units)
		}
		warm := mustRun(t, removing(t, c.base, c.remove, c.more), pipeline.Options{Cache: cache})
		if warm.Output.ManifestSHA256 != want || warm.Units.Computed != 0 {
			t.Errorf("%s: warm cache, another digest or units computed: %+v", c.remove, warm.Units)
		}
		err = filepath.WalkDir(cache, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			return os.Truncate(path, 40)
		})
		if err != nil {
			t.Fatal(err)
		}
		if mustRun(t, removing(t, c.base, c.remove, c.more), pipeline.Options{Cache: cache}).Output.ManifestSHA256 != want {
			t.Errorf("%s: damaged cache, another digest", c.remove)
		}
	}
}

// Shares that are shared out over all sites take no more bytes than uniform ones.
func TestRemoveGlobally(t *testing.T) {
	for _, base := range []string{ofResNet, ofLM} {
		uniform := mustRun(t, removing(t, base, "[{channels: 0.25}]", ""), pipeline.Options{})
		r := removing(t, base, "[{channels: 0.25, allocation: global}]", "")
		plan, err := pipeline.MakePlan(t.Context(), r, pipeline.Options{})
		if err != nil {
			t.Fatal(err)
		}
		global := mustRun(t, r, pipeline.Options{})
		if global.RemovedBytes < uniform.RemovedBytes || plan.WeightBytes != global.Output.WeightBytes || len(plan.Removed) != len(global.Removed) {
			t.Errorf("%d bytes removed globally, %d uniformly; %d bytes planned, %d written", global.RemovedBytes, uniform.RemovedBytes, plan.WeightBytes, global.Output.WeightBytes)
		}
	}
}

// Repair and choosing by the error help a whole model.
func TestRemoveHelps(t *testing.T) {
	kl := func(base, how string) float64 {
		run := mustRun(t, removing(t, base, "[{channels: 0.25, "+how+"}]", ""), pipeline.Options{})
		if run.Evaluation.Language != nil {
			return run.Evaluation.Language.KL
		}
		return run.Evaluation.KL
	}
	for _, base := range []string{ofResNet, ofLM} {
		best, energy, magnitude := kl(base, "score: error"), kl(base, "score: energy, repair: false"), kl(base, "score: magnitude, repair: false")
		t.Logf("KL %.4f, by energy without repair %.4f, by magnitude %.4f", best, energy, magnitude)
		if !(best < energy && best < magnitude) {
			t.Error("choosing by the error and repair do not help")
		}
	}
}
