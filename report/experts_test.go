package report

import (
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/record"
)

// What experts saw has a table of its own, one line for each mixture.
func TestExperts(t *testing.T) {
	run := sample(t)
	if strings.Contains(render(t, run), `id="experts"`) {
		t.Error("a model without experts has a table of them")
	}
	run.Experts = &record.Experts{
		PerInput: 4, Fallback: "nearest",
		Mixtures: []record.Mixture{
			{Name: "layers.0.<b>", Block: 0, Tokens: []int64{1200, 0, 30, 44}},
			{Name: "layers.1.mlp", Block: 1, Tokens: make([]int64, 60)},
			{Name: "layers.2.mlp", Block: 2},
		},
		Layers: []record.ExpertLayer{
			{Layer: "layers.0.<b>.experts.1.gate_proj", Fallback: record.Fallback{Asked: "gptq", Got: "nearest", Reason: "few"}},
			{Layer: "layers.0.<b>.experts.1.down_proj", Fallback: record.Fallback{Asked: "gptq", Got: "nearest", Reason: "few"}},
			{Layer: "layers.0.<b>.experts.10.down_proj", Fallback: record.Fallback{Asked: "gptq", Got: "nearest", Reason: "few"}},
		},
	}
	html := render(t, run)
	for _, want := range []string{
		`<section id="experts">`, "layers.0.&lt;b&gt;", "4 tokens for each of a layer&#39;s inputs", "3 layers saw fewer and got nearest rounding",
		`<td class="number">0</td><td class="number">30</td><td class="number">` + count(int64(1200)) + `</td><td class="number">1</td><td class="number">1</td>`,
		`<rect class="starved" x="7" y="22" width="6" height="0"><title>expert 1: 0, too few</title>`, count(int64(1200)) + ", 0, 30, 44",
	} {
		if !strings.Contains(html, want) {
			t.Errorf("no %s in the report", want)
		}
	}
	run.Experts.MinTokens, run.Experts.Fallback, run.Experts.Layers = 1, "keep", nil
	if html := render(t, run); !strings.Contains(html, "was to see 1 token, and all did.") {
		t.Error("no word of one token")
	}
}
