package gate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/record"
)

const weightsName = "model.safetensors"

// output is an output folder in the making. Its figures are made up.
type output struct {
	run      record.Run
	manifest record.Manifest
	weights  int64 // whole bytes of the weight file
}

func newOutput() *output {
	const weights = 148_200
	files := []record.File{
		{Name: weightsName, Role: "weights", Bytes: weights, SHA256: "aa"},
		{Name: "config.json", Role: "config", Bytes: 2, SHA256: "bb"},
	}
	return &output{
		weights: weights,
		run: record.Run{
			Version: record.Version,
			Source:  record.Source{Bytes: 1_482_000, SHA256: "source"},
			Recipe:  record.Recipe{SHA256: "recipe"},
			Layers: []record.Layer{
				{Name: "conv1.weight", RelativeError: ptr(0.002)},
				{Name: "layer1.weight", RelativeError: ptr(0.0423), Fallbacks: []record.Fallback{{Asked: "a", Got: "b", Reason: "c"}}},
				{Name: "linear.weight", RelativeError: ptr(0.01)},
			},
			Output: record.Output{Files: files, WeightBytes: weights},
			Evaluation: &record.Evaluation{
				Samples: 1000, Original: record.Metrics{Correct: 916}, Compressed: record.Metrics{Correct: 911},
				KL: 0.026, AccuracyDrop: 91.6 - 91.1, Interval: [2]float64{-0.2, 1.2}, Tied: true,
			},
		},
		manifest: record.Manifest{Version: record.Version, Source: "source", Recipe: "recipe", Files: append([]record.File(nil), files...)},
	}
}

// languageOutput is a folder of a language model.
func languageOutput() *output {
	o := newOutput()
	o.run.Evaluation = &record.Evaluation{Samples: 200, Language: &record.LanguageEvaluation{
		Documents: 200, Tokens: 73_100,
		Original:   record.LanguageMetrics{Loss: 1.25, Perplexity: math.Exp(1.25)},
		Compressed: &record.LanguageMetrics{Loss: 1.5, Perplexity: math.Exp(1.5)},
		KL:         0.28, Agreement: 75, LossIncrease: 0.25, Interval: &[2]float64{0.24, 0.26},
	}}
	return o
}

func ptr[T any](x T) *T { return &x }

// weightFile returns the first bytes of a safetensors file of the given size.
func weightFile(size int64) []byte {
	header := func(n int64) string {
		return fmt.Sprintf(`{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}`, n, n)
	}
	text := header(size - 8)
	for int64(8+len(text)) > size || !strings.Contains(text, fmt.Sprintf("[%d]", size-8-int64(len(text)))) {
		text = header(size - 8 - int64(len(text)))
	}
	return append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...)
}

// write puts the folder on disk and the manifest's digest in the record.
func (o *output) write(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var manifest, run bytes.Buffer
	if err := record.Encode(&manifest, o.manifest); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(manifest.Bytes())
	o.run.Output.ManifestSHA256 = hex.EncodeToString(sum[:])
	if err := record.Encode(&run, o.run); err != nil {
		t.Fatal(err)
	}
	put(t, dir, record.ManifestName, manifest.Bytes())
	put(t, dir, record.FileName, run.Bytes())
	put(t, dir, "config.json", []byte("{}"))
	put(t, dir, weightsName, weightFile(o.weights))
	if err := os.Truncate(filepath.Join(dir, weightsName), o.weights); err != nil {
		t.Fatal(err)
	}
	return dir
}

func put(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCheck(t *testing.T) {
	dir := newOutput().write(t)
	for _, c := range []struct {
		name    string
		budgets Budgets
		want    string
	}{
		{"size passes", Budgets{MaxSize: 180_000}, "PASS  max-size              148.2 KB of 180.0 KB (82 %)"},
		{"size equal", Budgets{MaxSize: 148_200}, "PASS  max-size              148.2 KB of 148.2 KB (100 %)"},
		{"size fails", Budgets{MaxSize: 148_199}, "FAIL  max-size              148.2 KB of 148.2 KB (100 %, over by 1 B)"},
		{"ratio passes", Budgets{MaxRatio: 0.25}, "PASS  max-ratio             0.100, limit 0.250 (148.2 KB of the source's 1.48 MB)"},
		{"ratio equal", Budgets{MaxRatio: 0.1}, "PASS  max-ratio             0.100, limit 0.100 (148.2 KB of the source's 1.48 MB)"},
		{"ratio fails", Budgets{MaxRatio: 0.08}, "FAIL  max-ratio             0.100, limit 0.080 (over by 0.020; 148.2 KB of the source's 1.48 MB)"},
		{"ratio fails narrowly", Budgets{MaxRatio: 0.09999}, "FAIL  max-ratio             0.1, limit 0.09999 (over by 1e-05; 148.2 KB of the source's 1.48 MB)"},
		{"drop passes", Budgets{MaxAccuracyDrop: ptr(1.0)}, "PASS  max-accuracy-drop     0.50 points, limit 1.00 (tied, 95 % interval -0.20 to 1.20)"},
		{"drop equal", Budgets{MaxAccuracyDrop: ptr(0.5)}, "PASS  max-accuracy-drop     0.50 points, limit 0.50 (tied, 95 % interval -0.20 to 1.20)"},
		{"drop fails", Budgets{MaxAccuracyDrop: ptr(0.39)}, "FAIL  max-accuracy-drop     0.50 points, limit 0.39 (over by 0.11; tied, 95 % interval -0.20 to 1.20)"},
		{"gain asked for", Budgets{MaxAccuracyDrop: ptr(-0.1)}, "FAIL  max-accuracy-drop     0.50 points, limit -0.10 (over by 0.60; tied, 95 % interval -0.20 to 1.20)"},
		{"kl passes", Budgets{MaxKL: ptr(0.03)}, "PASS  max-kl                0.0260 nats, limit 0.0300"},
		{"kl equal", Budgets{MaxKL: ptr(0.026)}, "PASS  max-kl                0.0260 nats, limit 0.0260"},
		{"kl fails", Budgets{MaxKL: ptr(0.0)}, "FAIL  max-kl                0.0260 nats, limit 0.0000 (over by 0.0260)"},
		{"error passes", Budgets{MaxRelativeError: ptr(0.05)}, "PASS  max-relative-error    0.0423, limit 0.0500 (worst layer layer1.weight)"},
		{"error equal", Budgets{MaxRelativeError: ptr(0.0423)}, "PASS  max-relative-error    0.0423, limit 0.0423 (worst layer layer1.weight)"},
		{"error fails", Budgets{MaxRelativeError: ptr(0.04)}, "FAIL  max-relative-error    0.0423, limit 0.0400 (over by 0.0023; worst layer layer1.weight)"},
		{"fallbacks equal", Budgets{MaxFallbacks: ptr(1)}, "PASS  max-fallbacks         1, limit 1 (in layer layer1.weight)"},
		{"fallbacks fail", Budgets{MaxFallbacks: ptr(0)}, "FAIL  max-fallbacks         1, limit 0 (in layer layer1.weight)"},
	} {
		got, err := Check(context.Background(), dir, c.budgets)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if len(got) != 1 || got[0].String() != c.want {
			t.Errorf("%s:\ngot  %v\nwant %s", c.name, got, c.want)
		}
		if got[0].Pass != (got[0].ActualValue <= got[0].LimitValue) {
			t.Errorf("%s: pass %v for %v of %v", c.name, got[0].Pass, got[0].ActualValue, got[0].LimitValue)
		}
	}
}

func TestCheckLanguage(t *testing.T) {
	tied := func(l *record.LanguageEvaluation) {
		l.Compressed.Loss, l.Compressed.Perplexity = 1.25, math.Exp(1.25)
		l.LossIncrease, l.Interval, l.Tied = 0, &[2]float64{-0.01, 0.02}, true
	}
	bounds := func(l *record.LanguageEvaluation) { l.KLBounds = &[2]float64{0.28, 0.31} }
	far := func(l *record.LanguageEvaluation) {
		l.Compressed = &record.LanguageMetrics{Loss: 1001.25, Perplexity: math.MaxFloat64}
		l.LossIncrease, l.Interval = 1000, nil
	}
	for _, c := range []struct {
		name    string
		change  func(*record.LanguageEvaluation)
		budgets Budgets
		want    string
	}{
		{"loss passes", nil, Budgets{MaxLossIncrease: ptr(0.3)}, "PASS  max-loss-increase     0.2500 nats per token, limit 0.3000"},
		{"loss equal", nil, Budgets{MaxLossIncrease: ptr(0.25)}, "PASS  max-loss-increase     0.2500 nats per token, limit 0.2500"},
		{"loss fails", nil, Budgets{MaxLossIncrease: ptr(0.2)}, "FAIL  max-loss-increase     0.2500 nats per token, limit 0.2000 (over by 0.0500)"},
		{"gain asked for", nil, Budgets{MaxLossIncrease: ptr(-0.1)}, "FAIL  max-loss-increase     0.2500 nats per token, limit -0.1000 (over by 0.3500)"},
		{"loss tied", tied, Budgets{MaxLossIncrease: ptr(0.0)}, "PASS  max-loss-increase     0.0000 nats per token, limit 0.0000 (loss tied, 95 % interval -0.0100 to 0.0200 nats)"},
		{"perplexity passes", nil, Budgets{MaxPerplexityRatio: ptr(1.3)}, "PASS  max-perplexity-ratio  1.2840, limit 1.3000 (perplexity 3.490, then 4.482)"},
		{"perplexity fails", nil, Budgets{MaxPerplexityRatio: ptr(1.05)}, "FAIL  max-perplexity-ratio  1.2840, limit 1.0500 (over by 0.2340; perplexity 3.490, then 4.482)"},
		{"perplexity equal", tied, Budgets{MaxPerplexityRatio: ptr(1.0)}, "PASS  max-perplexity-ratio  1.0000, limit 1.0000 (perplexity 3.490, then 3.490; loss tied, 95 % interval -0.0100 to 0.0200 nats)"},
		{"perplexity cut", far, Budgets{MaxPerplexityRatio: ptr(2.0)}, "FAIL  max-perplexity-ratio  1.8e+308, limit 2.0000 (over by 1.8e+308; perplexity 3.490, then 1.8e+308)"},
		{"kl passes", nil, Budgets{MaxKL: ptr(0.3)}, "PASS  max-kl                0.2800 nats, limit 0.3000"},
		{"kl fails", nil, Budgets{MaxKL: ptr(0.1)}, "FAIL  max-kl                0.2800 nats, limit 0.1000 (over by 0.1800)"},
		{"kl between its bounds", bounds, Budgets{MaxKL: ptr(0.3)}, "FAIL  max-kl                0.3100 nats, limit 0.3000 (over by 0.0100; the most it can be; at least 0.2800, as only the original's likeliest tokens were kept)"},
		{"kl's upper bound passes", bounds, Budgets{MaxKL: ptr(0.31)}, "PASS  max-kl                0.3100 nats, limit 0.3100 (the most it can be; at least 0.2800, as only the original's likeliest tokens were kept)"},
	} {
		o := languageOutput()
		if c.change != nil {
			c.change(o.run.Evaluation.Language)
		}
		got, err := Check(context.Background(), o.write(t), c.budgets)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if len(got) != 1 || got[0].String() != c.want {
			t.Errorf("%s:\ngot  %v\nwant %s", c.name, got, c.want)
		}
		if _, err := json.Marshal(got); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestCheckAll(t *testing.T) {
	all := Budgets{MaxSize: 1e6, MaxRatio: 1, MaxAccuracyDrop: ptr(1.0), MaxKL: ptr(1.0), MaxRelativeError: ptr(1.0), MaxFallbacks: ptr(9)}
	got, err := Check(context.Background(), newOutput().write(t), all)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, v := range got {
		names = append(names, v.Name)
	}
	want := "max-size max-ratio max-accuracy-drop max-kl max-relative-error max-fallbacks"
	if strings.Join(names, " ") != want {
		t.Errorf("got %v, want %s", names, want)
	}
	data, err := json.Marshal(got[0])
	if err != nil {
		t.Fatal(err)
	}
	const text = `{"name":"max-size","pass":true,"limit":"1.00 MB","actual":"148.2 KB","limit_value":1000000,"actual_value":148200,"detail":"15 %"}`
	if string(data) != text {
		t.Errorf("got %s", data)
	}
}

// TestEqualDrop checks that a drop of k samples equals the limit of as many
// points for every count.
func TestEqualDrop(t *testing.T) {
	for k := range 1000 {
		f := &folder{run: &record.Run{Evaluation: &record.Evaluation{
			Samples: 1000, Original: record.Metrics{Correct: 1000}, Compressed: record.Metrics{Correct: 1000 - k},
			AccuracyDrop: 100 - float64(1000-k)/10,
		}}}
		v, err := checkAccuracy(f, float64(k)/10)
		if err != nil || !v.Pass {
			t.Errorf("%d of 1,000: %v, %v", k, v, err)
		}
	}
}

func TestSharded(t *testing.T) {
	o := newOutput()
	second := record.File{Name: "second.safetensors", Role: "weights", Bytes: 1000}
	o.run.Output.Files = append(o.run.Output.Files, second)
	o.manifest.Files = append(o.manifest.Files, second)
	o.run.Output.WeightBytes += 1000
	dir := o.write(t)
	put(t, dir, second.Name, append(weightFile(1000), make([]byte, 1000-len(weightFile(1000)))...))
	got, err := Check(context.Background(), dir, Budgets{MaxSize: 149_200})
	if err != nil || !got[0].Pass || got[0].ActualValue != 149_200 {
		t.Errorf("%v, %v", got, err)
	}
}

// TestReadsHeadersOnly would run for minutes if tensor data were read.
func TestReadsHeadersOnly(t *testing.T) {
	o := newOutput()
	o.weights = 1 << 40
	o.run.Output.WeightBytes, o.run.Output.Files[0].Bytes, o.manifest.Files[0].Bytes = o.weights, o.weights, o.weights
	probe := filepath.Join(t.TempDir(), "probe")
	f, err := os.Create(probe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(o.weights); err != nil {
		t.Skip("no sparse files here: ", err)
	}
	got, err := Check(context.Background(), o.write(t), Budgets{MaxSize: 1 << 40})
	if err != nil || !got[0].Pass {
		t.Errorf("%v, %v", got, err)
	}
}

func TestInputErrors(t *testing.T) {
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	overwrite := func(name, text string) func(*testing.T, string) {
		return func(t *testing.T, dir string) { put(t, dir, name, []byte(text)) }
	}
	for _, c := range []struct {
		name   string
		change func(*output)            // before it is written
		damage func(*testing.T, string) // afterwards
		is     error                    // when not nil
		says   string
	}{
		{"no record", nil, remove(record.FileName), fs.ErrNotExist, record.FileName},
		{"no manifest", nil, remove(record.ManifestName), fs.ErrNotExist, record.ManifestName},
		{"no weights", nil, remove(weightsName), fs.ErrNotExist, weightsName},
		{"no config", nil, remove("config.json"), fs.ErrNotExist, "config.json"},
		{"empty record", nil, overwrite(record.FileName, ""), nil, "not JSON"},
		{"corrupt record", nil, overwrite(record.FileName, `{"version":1,`), nil, "not JSON"},
		{"more than one value", nil, overwrite(record.FileName, `{"version":1}{}`), nil, "not JSON"},
		{"wrong type", nil, overwrite(record.FileName, `{"version":1,"layers":7}`), nil, "layers"},
		{"deep nesting", nil, overwrite(record.FileName, strings.Repeat("[", 1<<20)), nil, "not JSON"},
		{"huge number", nil, overwrite(record.FileName, `{"version":1e999}`), nil, "number"},
		{"null record", nil, overwrite(record.FileName, `null`), record.ErrVersion, "version"},
		{"wrong version", func(o *output) { o.run.Version = 2 }, nil, record.ErrVersion, "found 2, this fettle reads 1"},
		{"wrong manifest version", func(o *output) { o.manifest.Version = 2 }, nil, record.ErrVersion, "found 2"},
		{"digest mismatch", nil, func(t *testing.T, dir string) {
			data, err := os.ReadFile(filepath.Join(dir, record.ManifestName))
			if err != nil {
				t.Fatal(err)
			}
			put(t, dir, record.ManifestName, append(data, '\n'))
		}, nil, "SHA-256"},
		{"size differs", nil, func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, weightsName), 148_199); err != nil {
				t.Fatal(err)
			}
		}, nil, "holds 148199 bytes, the manifest says 148200"},
		{"config differs", nil, overwrite("config.json", "{} "), nil, "config.json"},
		{"record's size differs", func(o *output) { o.run.Output.WeightBytes-- }, nil, nil, "148199"},
		{"other source", func(o *output) { o.manifest.Source = "x" }, nil, nil, "another source"},
		{"other recipe", func(o *output) { o.manifest.Recipe = "x" }, nil, nil, "another recipe"},
		{"other digest of a file", func(o *output) { o.manifest.Files[0].SHA256 = "x" }, nil, nil, "otherwise"},
		{"file only in the record", func(o *output) { o.manifest.Files = o.manifest.Files[:1] }, nil, nil, "lacks 1"},
		{"file twice", func(o *output) {
			o.run.Output.Files = append(o.run.Output.Files, o.run.Output.Files[0])
		}, nil, nil, "twice"},
		{"file twice in the manifest", func(o *output) {
			o.manifest.Files = append(o.manifest.Files, o.manifest.Files[0])
		}, nil, nil, "twice"},
		{"no weight file", func(o *output) {
			o.manifest.Files[0].Role, o.run.Output.Files[0].Role = "dense", "dense"
		}, nil, nil, "no weight file"},
		{"name outside", func(o *output) {
			o.manifest.Files[0].Name, o.run.Output.Files[0].Name = "../x", "../x"
		}, nil, nil, "inside the folder"},
		{"negative size", func(o *output) {
			o.manifest.Files[0].Bytes, o.run.Output.Files[0].Bytes = -1, -1
		}, nil, nil, "negative"},
		{"folder as weights", nil, func(t *testing.T, dir string) {
			remove(weightsName)(t, dir)
			if err := os.Mkdir(filepath.Join(dir, weightsName), 0o700); err != nil {
				t.Fatal(err)
			}
		}, nil, "regular"},
		{"bad header", nil, func(t *testing.T, dir string) {
			put(t, dir, weightsName, bytes.Repeat([]byte{0xff}, 148_200))
		}, nil, "safetensors"},
		{"header of another length", nil, func(t *testing.T, dir string) {
			put(t, dir, weightsName, weightFile(148_201))
			if err := os.Truncate(filepath.Join(dir, weightsName), 148_200); err != nil {
				t.Fatal(err)
			}
		}, nil, "safetensors"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := newOutput()
			if c.change != nil {
				c.change(o)
			}
			dir := o.write(t)
			if c.damage != nil {
				c.damage(t, dir)
			}
			got, err := Check(context.Background(), dir, Budgets{MaxSize: 1e6})
			var input *InputError
			if !errors.As(err, &input) || got != nil {
				t.Fatalf("got %v, %v; want an *InputError", got, err)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v is not %v", err, c.is)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not say %q", err, c.says)
			}
			if c.says == "safetensors" && !errors.As(err, new(*safetensors.Error)) {
				t.Errorf("%v is no *safetensors.Error", err)
			}
		})
	}
}

// TestContradictions covers figures of the record that only one budget needs.
func TestContradictions(t *testing.T) {
	var input *InputError
	o := newOutput()
	o.run.Evaluation.AccuracyDrop = 0.1
	if _, err := Check(context.Background(), o.write(t), Budgets{MaxAccuracyDrop: ptr(1.0)}); !errors.As(err, &input) {
		t.Errorf("drop against its counts: %v", err)
	}
	o = newOutput()
	o.run.Source.Bytes = 0
	if _, err := Check(context.Background(), o.write(t), Budgets{MaxRatio: 1}); !errors.As(err, &input) {
		t.Errorf("no source size: %v", err)
	}
	o = languageOutput()
	o.run.Evaluation.Language.LossIncrease = 0.1
	for _, b := range []Budgets{{MaxLossIncrease: ptr(1.0)}, {MaxPerplexityRatio: ptr(2.0)}, {MaxKL: ptr(1.0)}} {
		if _, err := Check(context.Background(), o.write(t), b); !errors.As(err, &input) {
			t.Errorf("increase against its losses: %v", err)
		}
	}
	o = languageOutput()
	o.run.Evaluation.Language.KLBounds = &[2]float64{0.3, 0.2}
	if _, err := Check(context.Background(), o.write(t), Budgets{MaxKL: ptr(1.0)}); !errors.As(err, &input) {
		t.Errorf("bounds the wrong way round: %v", err)
	}
}

func TestBudgetErrors(t *testing.T) {
	without := func(change func(*record.Run)) string {
		o := newOutput()
		change(&o.run)
		return o.write(t)
	}
	whole := without(func(*record.Run) {})
	bare := without(func(r *record.Run) { r.Evaluation = nil })
	language, alone := languageOutput(), languageOutput()
	alone.run.Evaluation.Language.Compressed = nil
	for _, c := range []struct {
		dir     string
		budgets Budgets
		says    string
	}{
		{bare, Budgets{MaxLossIncrease: ptr(1.0)}, "evaluation data"},
		{bare, Budgets{MaxPerplexityRatio: ptr(1.0)}, "evaluation data"},
		{language.write(t), Budgets{MaxAccuracyDrop: ptr(1.0)}, "language model, which has no accuracy: use max-loss-increase"},
		{whole, Budgets{MaxLossIncrease: ptr(1.0)}, "classifier, which has no loss per token: use max-accuracy-drop"},
		{whole, Budgets{MaxPerplexityRatio: ptr(1.0)}, "use max-accuracy-drop"},
		{alone.write(t), Budgets{MaxLossIncrease: ptr(1.0)}, "does not compare"},
		{alone.write(t), Budgets{MaxKL: ptr(1.0)}, "does not compare"},
		{whole, Budgets{MaxLossIncrease: ptr(math.NaN())}, "want a number"},
		{whole, Budgets{MaxPerplexityRatio: ptr(0.0)}, "more than 0"},
		{whole, Budgets{MaxPerplexityRatio: ptr(math.Inf(1))}, "more than 0"},
		{bare, Budgets{MaxAccuracyDrop: ptr(1.0)}, "evaluation data"},
		{bare, Budgets{MaxKL: ptr(1.0)}, "evaluation data"},
		{without(func(r *record.Run) { r.Layers[2].RelativeError = nil }), Budgets{MaxRelativeError: ptr(1.0)}, "linear.weight was not measured"},
		{without(func(r *record.Run) { r.Layers = nil }), Budgets{MaxRelativeError: ptr(1.0)}, "no compressed layer"},
		{whole, Budgets{MaxSize: -1}, "more than 0"},
		{whole, Budgets{MaxRatio: -1}, "more than 0"},
		{whole, Budgets{MaxRatio: math.NaN()}, "more than 0"},
		{whole, Budgets{MaxAccuracyDrop: ptr(math.Inf(1))}, "want a number"},
		{whole, Budgets{MaxKL: ptr(math.NaN())}, "0 or more"},
		{whole, Budgets{MaxRelativeError: ptr(-0.1)}, "0 or more"},
		{whole, Budgets{MaxFallbacks: ptr(-1)}, "0 or more"},
	} {
		got, err := Check(context.Background(), c.dir, c.budgets)
		var budget *BudgetError
		if !errors.As(err, &budget) || !strings.Contains(err.Error(), c.says) || got != nil {
			t.Errorf("got %v, %v; want a *BudgetError that says %q", got, err, c.says)
		}
	}
	if _, err := Check(context.Background(), whole, Budgets{}); !errors.Is(err, ErrNoBudget) {
		t.Errorf("no budget: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Check(ctx, newOutput().write(t), Budgets{MaxSize: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestHostileNames checks that a name cannot break the line or reach the
// terminal's controls.
func TestHostileNames(t *testing.T) {
	o := newOutput()
	o.run.Layers[1].Name = "a\x1b[2J\nPASS  max-size"
	got, err := Check(context.Background(), o.write(t), Budgets{MaxRelativeError: ptr(1.0), MaxFallbacks: ptr(0)})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range got {
		if strings.ContainsAny(v.String(), "\x1b\n") {
			t.Errorf("%q", v)
		}
	}
}

// FuzzRecord puts any bytes in the record's place.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"output":{"files":[{"name":"..","role":"weights"}]}}`))
	f.Add([]byte(`{"version":1,"layers":[{"relative_error":1e308}],"evaluation":{"samples":-1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		put(t, dir, record.FileName, data)
		put(t, dir, record.ManifestName, []byte(`{"version":1}`))
		_, err := Check(context.Background(), dir, Budgets{MaxSize: 1})
		var input *InputError
		if !errors.As(err, &input) {
			t.Errorf("got %v", err)
		}
	})
}
