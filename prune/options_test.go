package prune

import (
	"encoding/json"
	"errors"
	"testing"
)

func TestPatternText(t *testing.T) {
	for _, text := range []string{"unstructured", "2:4", "1:4", "4:8", "7:16", "block 4x4", "block 1x8", "block 16x1"} {
		p, err := ParsePattern(text)
		if err != nil || p.String() != text {
			t.Errorf("%q: %v, %v", text, p, err)
		}
		encoded, err := json.Marshal(map[string]Pattern{"pattern": p})
		var back map[string]Pattern
		if err != nil || json.Unmarshal(encoded, &back) != nil || back["pattern"] != p {
			t.Errorf("%q: JSON %s, %v", text, encoded, err)
		}
	}
	for _, text := range []string{
		"", "2:2", "4:2", "0:4", "-1:4", "2:4 ", " 2:4", "2:04", "2", "2:", ":4", "2:4:8", "2:99999999999999999999",
		"block", "block 4", "block 4x", "block 1x1", "block 0x4", "block 4x-4", "block  4x4", "Block 4x4", "4x4", "none",
	} {
		if p, err := ParsePattern(text); !errors.As(err, new(*PatternError)) {
			t.Errorf("%q was read as %v (%v)", text, p, err)
		}
	}
}

func FuzzParsePattern(f *testing.F) {
	for _, text := range []string{"unstructured", "2:4", "block 4x4", "block 4x", "+2:4", "2:4x"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePattern(text)
		if err == nil && (p.String() != text || p.Check() != nil || p.Survivors(3, 100, 0.5) < 1) {
			t.Errorf("%q was read as %+v", text, p)
		}
	})
}

func TestPatternSurvivors(t *testing.T) {
	for _, c := range []struct {
		text       string
		rows, cols int
		sparsity   float64
		want       int
	}{
		{"2:4", 3, 8, 0, 12},
		{"2:4", 3, 9, 0.9, 15}, // a tail of one keeps ⌈2·1/4⌉ = 1
		{"2:4", 3, 11, 0, 18},  // of three ⌈6/4⌉ = 2
		{"1:4", 1, 3, 0, 1},
		{"unstructured", 1, 5, 0.5, 3}, // 2.5 go: 2, half to even
		{"unstructured", 1, 7, 0.5, 3}, // 3.5 go: 4
		{"unstructured", 10, 10, 0.999, 1},
		{"unstructured", 10, 10, 0, 100},
		{"block 4x4", 8, 8, 0.5, 32},
	} {
		p, err := ParsePattern(c.text)
		if got := p.Survivors(c.rows, c.cols, c.sparsity); err != nil || got != c.want {
			t.Errorf("%s of %d×%d at %v: %d, want %d", c.text, c.rows, c.cols, c.sparsity, got, c.want)
		}
	}
}

func TestAllocationOptionsCheck(t *testing.T) {
	for _, o := range []AllocationOptions{
		{Method: Uniform},
		{Method: LAMP, Sparsity: 0.99},
		{Method: OWL, Sparsity: 0.5},
		{Method: OWL, OWL: OWLOptions{Threshold: 7, Lambda: 0.15}},
		{Method: RateDistortion, Buckets: 20_000},
	} {
		if err := o.Check(); err != nil {
			t.Error(err)
		}
	}
	for field, o := range map[string]AllocationOptions{
		"Method":        {Method: "best"},
		"Sparsity":      {Method: Uniform, Sparsity: 1},
		"OWL":           {Method: LAMP, OWL: OWLOptions{Lambda: 0.1}},
		"OWL.Threshold": {Method: OWL, OWL: OWLOptions{Threshold: -1}},
		"OWL.Lambda":    {Method: OWL, OWL: OWLOptions{Lambda: 1}},
		"Buckets":       {Method: RateDistortion, Buckets: 100},
	} {
		if e := (*AllocationError)(nil); !errors.As(o.Check(), &e) || e.Field != field {
			t.Errorf("%+v: %v, want an error about %s", o, o.Check(), field)
		}
	}
	if err := (AllocationOptions{Method: OWL}).WithDefaults().OWL; err != (OWLOptions{5, 0.08}) {
		t.Errorf("defaults of OWL: %+v", err)
	}
	twoOfFour := Pattern{Kind: NofM, N: 2, M: 4}
	for _, c := range []struct {
		o    AllocationOptions
		p    Pattern
		fits bool
	}{
		{AllocationOptions{Method: Uniform, Sparsity: 0.5}, twoOfFour, true},
		{AllocationOptions{Method: Uniform}, twoOfFour, true},
		{AllocationOptions{Method: Uniform, Sparsity: 0.6}, twoOfFour, false},
		{AllocationOptions{Method: ERK, Sparsity: 0.5}, twoOfFour, false},
		{AllocationOptions{Method: ERK, Sparsity: 0.7}, Pattern{}, true},
		{AllocationOptions{Method: ERK, Sparsity: 0.7}, Pattern{Kind: Blocks, Rows: 2, Cols: 2}, true},
		{AllocationOptions{Method: ERK, Sparsity: 0.7}, Pattern{Kind: NofM}, false},
	} {
		if err := c.o.CheckPattern(c.p); (err == nil) != c.fits {
			t.Errorf("%+v with %s: %v", c.o, c.p, err)
		}
	}
}
