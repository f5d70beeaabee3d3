package report

import (
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/record"
)

// What was removed has a table of its own, and its bytes stand before but not
// after.
func TestRemoved(t *testing.T) {
	run := sample(t)
	if strings.Contains(render(t, run), `id="removed"`) {
		t.Error("a run that removed nothing has a table of it")
	}
	solved, plain := .0123, .0456
	run.Removed = []record.Removed{
		{Kind: "block", Name: "layer1.<b>", Units: 1, Bytes: 1234},
		{Kind: "channel", Name: "layer1.0.conv1", Kept: 12, Units: 16, Bytes: 5678, Score: "error", Repaired: true, RelativeError: &solved, PlainRelativeError: &plain},
	}
	run.RemovedBytes = 6000
	for _, layers := range [][]record.Layer{run.Layers, nil} {
		run.Layers = layers
		html := render(t, run)
		for _, want := range []string{
			`<section id="removed">`, "layer1.&lt;b&gt;", "0.0123", "0.0456", "6.0 KB of tensors removed",
			`<td class="number">12</td><td class="number">16</td><td class="number">` + count(int64(5678)) + `</td>`,
		} {
			if !strings.Contains(html, want) {
				t.Errorf("%d layers: no %s in the report", len(layers), want)
			}
		}
		if strings.Contains(html, "no layer compressed") {
			t.Error("a run that only removes is blamed for it")
		}
	}
}
