package report

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/record"
)

var projections = []string{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}

// languageSample is the record of a Llama of the given blocks. Its figures are
// made up.
func languageSample(t testing.TB, blocks int) *record.Run {
	run := sample(t)
	layers := run.Layers
	run.Source.Path, run.Source.Architecture = "models/story", "llama"
	run.Layers = nil
	for b := range blocks {
		for i, name := range projections {
			l := layers[i]
			l.Name = fmt.Sprintf("model.layers.%d.%s", b, name)
			l.Weight, l.Kind, l.Shape, l.Fallbacks = l.Name+".weight", "linear", []int{64, 64}, nil
			run.Layers = append(run.Layers, l)
		}
	}
	head := layers[0]
	head.Name, head.Weight = "lm_head", "lm_head.weight"
	run.Layers = append(run.Layers, head)
	for i := range run.Data {
		d := &run.Data[i]
		d.Format, d.Samples, d.Sequences, d.Tokens = "u16", 128+i, 1201+i, 47_363+int64(i)
	}
	run.Evaluation = &record.Evaluation{Samples: 129, Language: &record.LanguageEvaluation{
		Documents: 200, Tokens: 73_100,
		Original:   record.LanguageMetrics{Loss: 1.3052, DocumentLoss: 1.2871, Perplexity: 3.68847},
		Compressed: &record.LanguageMetrics{Loss: 1.5945, DocumentLoss: 1.5711, Perplexity: 4.92574},
		KL:         0.28068, Agreement: 74.829, LossIncrease: 0.2893, Interval: &[2]float64{0.2805, 0.2978},
	}}
	return run
}

func languageVariants(t testing.TB) map[string]*record.Run {
	bytes := languageSample(t, 5)
	bytes.Data[0].Length = 512
	l := bytes.Evaluation.Language
	l.Bytes, l.Original.BitsPerByte, l.Compressed.BitsPerByte = 271_234, 0.5075, 0.62
	l.KLBounds = &[2]float64{0.28068, 0.2931}

	alone := languageSample(t, 5)
	alone.Evaluation.Language = &record.LanguageEvaluation{Documents: 1, Tokens: 3, Original: record.LanguageMetrics{Loss: 800, Perplexity: math.MaxFloat64}}

	document := languageSample(t, 5)
	document.Evaluation.Language.Interval, document.Evaluation.Language.Documents = nil, 1

	noEvaluation := languageSample(t, 5)
	noEvaluation.Evaluation = nil

	experts := languageSample(t, 5)
	layers := experts.Layers
	for i := range 200 {
		l := layers[4]
		l.Name = fmt.Sprintf("model.layers.%d.mlp.experts.%d.up_proj", i/40, i%40)
		l.Weight = l.Name + ".weight"
		experts.Layers = append(experts.Layers[:i:i], l)
	}
	return map[string]*record.Run{
		"language": languageSample(t, 5), "language in bytes": bytes, "original alone": alone, "one document": document,
		"language without evaluation": noEvaluation, "80 blocks": languageSample(t, 80), "experts": experts,
	}
}

// textOf returns what a part of the page says, without its tags.
func textOf(html string) string { return anyTag.ReplaceAllString(html, "") }

func TestLanguageShown(t *testing.T) {
	html := embedded.ReplaceAllString(render(t, languageSample(t, 5)), "")
	first, rest, _ := strings.Cut(html, "<nav")
	_, data, _ := strings.Cut(rest, `<section id="data">`)
	data, _, _ = strings.Cut(data, "</section>")
	for _, s := range []string{
		"loss rose by 0.2893 nats per token, perplexity 3.688 → 4.926; no fallbacks.",
		"1.3052 → 1.5945 nats per token", "0.2893 nats per token added; 95 % paired interval over documents 0.2805 to 0.2978, without 0",
		"3.688 → 4.926", "73\u202f100 tokens of 200 documents", "0.2807 nats", "74.83 %", "higher",
	} {
		if !strings.Contains(textOf(first), s) {
			t.Errorf("first screen lacks %q:\n%s", s, textOf(first))
		}
	}
	for _, s := range []string{
		"Sequences", "Tokens", "1\u202f201", "47\u202f363", "1\u202f202", "47\u202f364",
		"1.305200", "1.287100", "1.594500", "1.571100", "0.280680 nats", "200 documents, 73\u202f100 predicted tokens",
	} {
		if !strings.Contains(textOf(data), s) {
			t.Errorf("data section lacks %q:\n%s", s, textOf(data))
		}
	}
	if s := "what these cost together is the loss, 0.2893 nats per token more"; !strings.Contains(html, s) {
		t.Errorf("errors of layers stand without %q", s)
	}
	for _, s := range []string{"Changed predictions", "points lost", "Correct of", "Accuracy", "predicted classes"} {
		if strings.Contains(html, s) {
			t.Errorf("a language model's page holds %q", s)
		}
	}
	for _, s := range []string{"Bits per byte", ">Length<", "at most"} {
		if strings.Contains(html, s) {
			t.Errorf("page holds %q, which is not known", s)
		}
	}
}

func TestLanguageVariants(t *testing.T) {
	runs := languageVariants(t)
	for name, want := range map[string][]string{
		"language in bytes": {
			"Bits per byte", "0.5075 → 0.6200", "271.2 KB of text", "271\u202f234 bytes of text", "Length", "512",
			"≥ 0.2807", "at most 0.2931", "between 0.280680 and 0.293100 nats",
		},
		"original alone":              {"loss of the original alone", "over 1e308", "compares no compressed model", "3 tokens of 1 document"},
		"one document":                {"loss rose by 0.2893", "no interval, which takes two documents"},
		"language without evaluation": {"loss not measured", "Loss\n      not measured"},
	} {
		text := textOf(embedded.ReplaceAllString(render(t, runs[name]), ""))
		for _, s := range want {
			if !strings.Contains(text, s) {
				t.Errorf("%s: page lacks %q", name, s)
			}
		}
	}
	if html := render(t, sample(t)); strings.Contains(html, "nats per token") || strings.Contains(html, "Sequences") {
		t.Error("a classifier's page speaks of tokens")
	}
}

func TestLossHeadline(t *testing.T) {
	interval := &[2]float64{-0.001, 0.002}
	metrics := record.LanguageMetrics{Loss: 1, Perplexity: math.E}
	for _, c := range []struct {
		l            record.LanguageEvaluation
		text, status string
	}{
		{record.LanguageEvaluation{Compressed: &metrics, Interval: interval, LossIncrease: 0.1}, "loss rose by 0.1000 nats per token, perplexity 2.718 → 2.718", "warn"},
		{record.LanguageEvaluation{Compressed: &metrics, LossIncrease: 0.00012}, "loss rose by 0.000120 nats per token, perplexity 2.718 → 2.718", "warn"},
		{record.LanguageEvaluation{Compressed: &metrics, Interval: interval, LossIncrease: 0.001, Tied: true}, "loss tied with the original's", "good"},
		{record.LanguageEvaluation{Compressed: &metrics, Interval: interval, LossIncrease: -0.1}, "loss fell by 0.1000 nats per token, perplexity 2.718 → 2.718", "good"},
		{record.LanguageEvaluation{Compressed: &metrics, LossIncrease: -0.1}, "loss did not rise, measured without an interval", "plain"},
		{record.LanguageEvaluation{}, "loss of the original alone", "plain"},
	} {
		c.l.Original = metrics
		if text, status := lossHeadline(&c.l); text != c.text || status != c.status {
			t.Errorf("%q %s, want %q %s", text, status, c.text, c.status)
		}
	}
}

func TestBlockNumbers(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []int
	}{
		{"layers.0.q layers.0.k layers.1.q layers.1.k lm_head", []int{0, 0, 1, 1, -1}},
		{"embed h.3.a h.3.b h.7.a h.7.b", []int{-1, 3, 3, 7, 7}},
		{"layer1.0.a layer1.0.b layer2.0.a layer2.0.b", nil}, // other prefixes
		{"h.1.a h.1.b h.0.a h.0.b", nil},                     // not in order
		{"0.weight 2.weight 4.weight", nil},                  // layers, not blocks
		{"h.0.a h.0.b", nil},                                 // one block tells nothing
		{"h.99999999999999999999.a h.+1.a", nil},
		{"", nil},
	} {
		if diff := cmp.Diff(c.want, blockNumbers(strings.Split(c.in, " "))); diff != "" {
			t.Errorf("%s: %s", c.in, diff)
		}
	}
}

// TestDeepChart checks the axis and the lines of models with many blocks.
func TestDeepChart(t *testing.T) {
	c := depthOf(newLayerRows(languageSample(t, 80)))
	if len(c.Blocks) != 16 || c.Blocks[1].Label != "5" {
		t.Errorf("%d blocks marked, want every fifth of 80: %v", len(c.Blocks), c.Blocks)
	}
	if len(c.Solved) != 7 || len(c.Nearest) != 7 || len(c.Ends) != 7 {
		t.Errorf("%d and %d lines with %d names, want 7 each", len(c.Solved), len(c.Nearest), len(c.Ends))
	}
	for i, e := range c.Ends {
		if e.Y > c.Bottom || i > 0 && e.Y < c.Ends[i-1].Y+10 {
			t.Errorf("name %d at %v lies on another, or outside: %v", i, e.Y, c.Ends)
		}
	}
	for _, p := range c.Points {
		if p.Label != "" {
			t.Fatalf("layer named %q where blocks are", p.Label)
		}
	}
	small := depthOf(newLayerRows(languageSample(t, 5)))
	if len(small.Blocks) != 5 || len(small.Solved) != 1 || small.Many {
		t.Errorf("5 blocks: %d marked, %d lines", len(small.Blocks), len(small.Solved))
	}
	experts := depthOf(newLayerRows(languageVariants(t)["experts"]))
	if len(experts.Blocks) != 5 || len(experts.Solved) != 1 || len(experts.Ends) != 0 {
		t.Errorf("experts: %d blocks marked, %d lines with %d names", len(experts.Blocks), len(experts.Solved), len(experts.Ends))
	}
}

func TestFit(t *testing.T) {
	for _, c := range []struct {
		name string
		n    int
		want string
	}{
		{"model.layers.0.self_attn.q_proj", 40, "model.layers.0.self_attn.q_proj"},
		{"model.layers.0.self_attn.q_proj", 20, "0…q_proj"},
		{"transformer.h.11.attn.c_attn", 11, "11…c_attn"},
		{"layer1.0.downsample.0", 10, "laye…ple.0"}, // nothing to drop but letters
		{"model.embed_tokens", 12, "embed_tokens"},
		{"12.34", 3, "1…4"},
		{"", 3, ""},
	} {
		if got := fit(c.name, c.n); got != c.want {
			t.Errorf("fit(%q, %d) = %q, want %q", c.name, c.n, got, c.want)
		}
	}
}

func TestLossFormats(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{nats(0), "0.0000"},
		{nats(1.30521), "1.3052"},
		{nats(-0.0123), "−0.0123"},
		{nats(0.00012), "0.000120"},
		{perplexity(3.68847), "3.688"},
		{perplexity(12345.6), "12\u202f346"},
		{perplexity(1e100), "1.00e100"},
		{perplexity(math.MaxFloat64), "over 1e308"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
