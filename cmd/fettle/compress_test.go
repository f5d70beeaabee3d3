package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/record"
)

// TestSummaryOfSteps checks the lines on pruning and low-rank terms, which
// stand only where there are any.
func TestSummaryOfSteps(t *testing.T) {
	pruned := record.Layer{Name: "a", Parameters: 100, Prune: &record.Prune{Survivors: 50}}
	both := record.Layer{
		Name: "b", Parameters: 100, Bits: 4, Prune: &record.Prune{Survivors: 75},
		Compensate: &record.Compensate{Bytes: 1536},
	}
	plain := record.Layer{Name: "c", Parameters: 300, Bits: 4}
	for _, c := range []struct {
		layers []record.Layer
		want   []string
	}{
		{[]record.Layer{plain}, nil},
		{[]record.Layer{pruned}, []string{"pruned     50.0 % of the compressed layers' weights, in 1 of 1 layers"}},
		{[]record.Layer{pruned, both, plain}, []string{
			"pruned     15.0 % of the compressed layers' weights, in 2 of 3 layers",
			"low-rank   terms in 1 of 3 layers, 1.5 KB of factors",
		}},
		{[]record.Layer{{Prune: &record.Prune{}}}, nil}, // a record that knows no weights
	} {
		var out bytes.Buffer
		if err := printSummary(&out, &record.Run{Layers: c.layers}, "OUT"); err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(out.String()) {
			if strings.HasPrefix(line, "pruned") || strings.HasPrefix(line, "low-rank") {
				got = append(got, strings.TrimSuffix(line, "\n"))
			}
		}
		if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}
