package record

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRoundTrip decodes a whole record, encodes it and finds the same bytes
// again: no field is lost or renamed.
func TestRoundTrip(t *testing.T) {
	text, err := os.ReadFile("../report/testdata/record.json")
	if err != nil {
		t.Fatal(err)
	}
	run, err := Decode(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Encode(&b, run); err != nil {
		t.Fatal(err)
	}
	again, err := Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(run, again); d != "" {
		t.Error(d)
	}
	if len(run.Layers) == 0 || run.Layers[0].RelativeError == nil || run.Evaluation == nil || run.Output.WeightBytes == 0 {
		t.Error("the record does not show what a run measures")
	}
}

func TestDecodeRefuses(t *testing.T) {
	if _, err := Decode(strings.NewReader(`{"version": 2}`)); !errors.Is(err, ErrVersion) {
		t.Errorf("another version: %v", err)
	}
	for _, text := range []string{"", "{", `{"version": 1} {}`, `{"version": "1"}`, "[]"} {
		if _, err := Decode(strings.NewReader(text)); err == nil {
			t.Errorf("%q passed", text)
		}
	}
}

// What came with language models stays out of other models' records.
func TestLanguageFields(t *testing.T) {
	run := &Run{Version: Version, Data: []Data{{Role: "evaluation"}}, Evaluation: &Evaluation{}}
	var b bytes.Buffer
	if err := Encode(&b, run); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"language", "sequences", "tokens", "length"} {
		if strings.Contains(b.String(), `"`+key+`"`) {
			t.Errorf("a record without language models has %q", key)
		}
	}
	run.Data[0] = Data{Sequences: 3, Tokens: 40, Length: 16}
	run.Evaluation.Language = &LanguageEvaluation{
		Documents: 3, Tokens: 37, Bytes: 90,
		Original:   LanguageMetrics{Loss: 1, DocumentLoss: 1.5, Perplexity: 2.7, BitsPerByte: .6},
		Compressed: &LanguageMetrics{Loss: 2},
		KL:         .5, KLBounds: &[2]float64{.5, .6}, Agreement: 80, LossIncrease: 1, Interval: &[2]float64{-1, 2}, Tied: true,
	}
	b.Reset()
	if err := Encode(&b, run); err != nil {
		t.Fatal(err)
	}
	again, err := Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(run, again); d != "" {
		t.Error(d)
	}
}
