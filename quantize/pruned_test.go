package quantize

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/fettle-dev/fettle/layer"
)

// prunedStart keeps half of the problem's weights, at random.
func prunedStart(prob *layer.Problem, seed uint64) *layer.Solution {
	w := prob.Weight
	start := &layer.Solution{Mask: layer.NewMask(w.Rows, w.Cols), Values: make([]float32, w.Rows*w.Cols)}
	draw := rand.New(rand.NewPCG(seed, 0))
	for r := range w.Rows {
		for c := range w.Cols {
			if draw.IntN(2) == 0 {
				start.Mask.Set(r, c, true)
				start.Values[r*w.Cols+c] = rowOf32(w, r)[c]
			}
		}
	}
	return start
}

// TestPruned: every method leaves pruned weights at 0 and rounds the others to
// the grid; and those that make up for errors come closer than nearest does.
func TestPruned(t *testing.T) {
	d := newData(3, shape{out: 12, in: 32, groups: 1, samples: 200, mismatch: 0.05})
	d.prob.Start = prunedStart(d.prob, 1)
	var all []Options
	for _, method := range allMethods {
		align := method == Qronos // which has no other form
		all = append(all, Options{Method: method, Bits: 4, Align: align},
			Options{Method: method, Bits: 3, Symmetric: true, Align: align},
			Options{Method: method, Bits: 3, Granularity: layer.PerGroup, GroupSize: 8, Align: align})
		if !method.dataFree() {
			all = append(all, Options{Method: method, Bits: 3, Align: true, BiasCorrection: true, Centre: true})
		}
	}
	all = append(all, Options{Method: GPTQ, Format: layer.NVFP4}, Options{Method: Best, Format: layer.FP8}, Options{Method: GPFQ, Alphabet: AlphabetTernary})
	nearest := map[Options]float64{}
	for _, o := range all {
		plain := o
		plain.Method = ""
		s := solve(t, d.prob, o)
		weight := make([]float32, 12*32)
		s.Weight(weight)
		for i, v := range weight {
			if !d.prob.Start.Mask.At(i/32, i%32) && v != 0 {
				t.Fatalf("%+v: pruned weight %d is %v", o, i, v)
			}
		}
		if s.Mask != d.prob.Start.Mask {
			t.Errorf("%+v: the solution does not say what was pruned", o)
		}
		if o.Method == Nearest {
			nearest[plain] = s.Errors.Solved
		}
	}
	for _, o := range all {
		if o.Method != Best && o.Method != AdaRound {
			continue
		}
		plain := o
		plain.Method = ""
		if base, ok := nearest[plain]; ok && solve(t, d.prob, o).Errors.Solved > base {
			t.Errorf("%+v: worse than nearest", o)
		}
	}
}

func TestPrunedRefused(t *testing.T) {
	d := newData(3, shape{out: 4, in: 8, groups: 1, samples: 20})
	d.prob.Start = prunedStart(d.prob, 1)
	var option *OptionError
	if _, err := Solve(t.Context(), nil, d.prob, Options{Method: GPFQ, Alphabet: AlphabetBinary}); !errors.As(err, &option) {
		t.Errorf("binary alphabet: %v", err)
	}
	d.prob.Start.Values = d.prob.Start.Values[1:]
	var input *layer.InputError
	if _, err := Solve(t.Context(), nil, d.prob, Options{Method: GPTQ, Bits: 4}); !errors.As(err, &input) {
		t.Errorf("too few values: %v", err)
	}
}

// TestPrunedOfAll: with all weights there and the values W, the result is that of
// no start.
func TestPrunedOfAll(t *testing.T) {
	d := newData(5, shape{out: 6, in: 24, groups: 1, samples: 100})
	for _, method := range allMethods {
		o := Options{Method: method, Bits: 3, Align: method == Qronos}
		want := solve(t, d.prob, o)
		prob := *d.prob
		prob.Start = &layer.Solution{Values: prob.Weight.Data}
		got := solve(t, &prob, o)
		for i, c := range got.Codes {
			if c != want.Codes[i] {
				t.Fatalf("%s: code %d is %d, want %d", method, i, c, want.Codes[i])
			}
		}
	}
}
