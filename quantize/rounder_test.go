package quantize

import (
	"errors"
	"math"
	"testing"

	"github.com/fettle-dev/fettle/layer"
)

// TestRounder: rounding every weight of the target, in any order, is nearest
// rounding on its grids; what is pruned is 0; errors and bias are those of the data.
func TestRounder(t *testing.T) {
	ctx := t.Context()
	for n, o := range []Options{
		{Bits: 3},
		{Bits: 4, Symmetric: true},
		{Bits: 3, Align: true},
		{Bits: 2, Granularity: layer.PerGroup, GroupSize: 8, Align: true},
		{Format: layer.NVFP4},
		{Format: layer.FP8, Align: true, BiasCorrection: true},
		{Bits: 4, BiasCorrection: true, Range: MinMax},
	} {
		d := newData(uint64(n), shape{out: 8, in: 32, groups: 1 + n%2, samples: 150, mismatch: 0.05})
		near := o
		near.Method, o.Method = Nearest, GPTQ
		want := solve(t, d.prob, near)
		r, err := NewFactors(d.prob.Moments).NewRounder(ctx, nil, d.prob, o)
		if err != nil {
			t.Fatal(err)
		}
		whole := layer.NewMask(8, 32)
		for row := 7; row >= 0; row-- {
			for col := range 32 {
				whole.Set(row, col, true)
				v := r.s.target.Data[row*32+col]
				if q := r.Round(row, col, v); math.IsNaN(q) || math.Abs(q-v) > 2*math.Abs(v)+1 {
					t.Fatalf("%+v: %v becomes %v", o, v, q)
				}
			}
		}
		s, err := r.Finish(ctx, whole)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range s.Codes {
			if c != want.Codes[i] {
				t.Fatalf("%+v: code %d is %d, nearest has %d", o, i, c, want.Codes[i])
			}
		}
		if s.Method != string(GPTQ) || s.Errors.Solved != want.Errors.Solved {
			t.Errorf("%+v: %s, error %v, nearest has %v", o, s.Method, s.Errors.Solved, want.Errors.Solved)
		}

		half := prunedStart(d.prob, 3).Mask
		if s, err = r.Finish(ctx, half); err != nil {
			t.Fatal(err)
		}
		weight := make([]float32, 8*32)
		s.Weight(weight)
		for i, v := range weight {
			if !half.At(i/32, i%32) && v != 0 {
				t.Fatalf("%+v: pruned weight %d is %v", o, i, v)
			}
		}
		if e := d.directError(weight); math.Abs(s.Errors.Solved-e) > 1e-6*e {
			t.Errorf("%+v: error %v, the data's is %v", o, s.Errors.Solved, e)
		}
		if (s.Bias != nil) != o.BiasCorrection {
			t.Errorf("%+v: bias %v", o, s.Bias)
		}
	}
	d := newData(1, shape{out: 4, in: 8, groups: 1, samples: 20})
	var option *OptionError
	if _, err := NewFactors(d.prob.Moments).NewRounder(ctx, nil, d.prob, Options{Method: GPTQ, Bits: 1}); !errors.As(err, &option) {
		t.Errorf("1 bit: %v", err)
	}
}
