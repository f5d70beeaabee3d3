package report

import (
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/record"
)

// Outputs that are no predictions are shown as what they are, without accuracy,
// loss or perplexity.
func TestOutputsShown(t *testing.T) {
	kl, agreement, relative := .01234, 97.5, .00345
	for name, c := range map[string]struct {
		outputs record.OutputEvaluation
		want    []string
	}{
		"tokens":    {record.OutputEvaluation{Task: "token_classes", Rows: 1234, KL: &kl, Agreement: &agreement}, []string{"KL 0.0123 nats from the original", "97.50 %", "mean over tokens", "1\u202f234 tokens"}},
		"sequences": {record.OutputEvaluation{Task: "sequence_classes", Rows: 50, KL: &kl, Agreement: &agreement}, []string{"mean over sequences", "50 sequences"}},
		"features":  {record.OutputEvaluation{Task: "features", Rows: 77, RelativeError: &relative}, []string{"relative error of the outputs 0.00345", "Error of the outputs", "77 rows"}},
	} {
		run := languageSample(t, 5)
		run.Evaluation = &record.Evaluation{Samples: 12, Outputs: &c.outputs}
		html := textOf(embedded.ReplaceAllString(render(t, run), ""))
		for _, want := range c.want {
			if !strings.Contains(html, want) {
				t.Errorf("%s: the report lacks %q", name, want)
			}
		}
		for _, not := range []string{"Top-1 tied", "erplexity", "Correct of", "loss not measured", "accuracy"} {
			if strings.Contains(html, not) {
				t.Errorf("%s: the report has %q", name, not)
			}
		}
	}
}
