package lowrank

import (
	"context"
	"errors"
	"math"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/layer"
)

// ternary rounds each row to −s, 0 and s, s being the row's mean magnitude: a
// quantizer whose errors a term and another turn can make up for.
func ternary(_ context.Context, w blas64.General) (blas64.General, error) {
	q := linalg.Clone(w)
	for i := range q.Rows {
		mean := 0.0
		for _, v := range linalg.Row(q, i) {
			mean += math.Abs(v) / float64(q.Cols)
		}
		for j, v := range linalg.Row(q, i) {
			linalg.Row(q, i)[j] = 1.5 * mean * max(-1, min(1, math.RoundToEven(v/(1.5*mean))))
		}
	}
	return q, nil
}

func TestAlternate(t *testing.T) {
	ctx := context.Background()
	helped := 0
	for seed := range uint64(20) {
		target, s := draw(seed, 24, 32, 80)
		current, _ := ternary(ctx, target)
		o := Options{Rank: 3, FactorType: dtype.F32, Bits: 8}
		_, once, err := Compensate(ctx, nil, "a", target, current, s, o)
		if err != nil {
			t.Fatal(err)
		}
		o.Alternations = 6
		calls := 0
		w, term, res, err := Alternate(ctx, nil, "a", target, current, s, func(ctx context.Context, x blas64.General) (blas64.General, error) {
			calls++
			return ternary(ctx, x)
		}, o)
		if err != nil {
			t.Fatal(err)
		}
		if res.Rounded > once.Rounded || res.Before != once.Before {
			t.Errorf("seed %d: %+v after turns, %+v without", seed, res, once)
		}
		if res.Alternations == 0 && res != once || calls != min(6, res.Alternations+1) {
			t.Errorf("seed %d: %+v after %d calls", seed, res, calls)
		}
		if res.Alternations > 0 {
			helped++
		}
		// The weight and the term that are returned belong together.
		dw := linalg.Clone(target)
		for i, v := range w.Data {
			dw.Data[i] -= v
		}
		near(t, "error of what is returned", plainTerm(dw, s, term), res.Rounded, 1e-11*res.Before)
	}
	if helped < 10 {
		t.Errorf("turns helped in %d of 20 problems only", helped)
	}
}

func TestAlternateUndoesAndFails(t *testing.T) {
	ctx := context.Background()
	target, s := draw(1, 8, 6, 20)
	current, _ := ternary(ctx, target)
	o := Options{Rank: 1, Alternations: 3}
	worse := func(_ context.Context, x blas64.General) (blas64.General, error) {
		w := linalg.Clone(x)
		for i := range w.Data {
			w.Data[i] *= 10
		}
		return w, nil
	}
	w, _, res, err := Alternate(ctx, nil, "a", target, current, s, worse, o)
	if err != nil || res.Alternations != 0 || &w.Data[0] != &current.Data[0] {
		t.Errorf("a worse weight was taken: %+v, %v", res, err)
	}
	failure := errors.New("no grid")
	_, term, _, err := Alternate(ctx, nil, "a", target, current, s, func(context.Context, blas64.General) (blas64.General, error) {
		return blas64.General{}, failure
	}, o)
	if !errors.Is(err, failure) || term != nil {
		t.Errorf("error %v", err)
	}
	var in *layer.InputError
	_, _, _, err = Alternate(ctx, nil, "a", target, current, s, func(context.Context, blas64.General) (blas64.General, error) {
		return s, nil
	}, o)
	if !errors.As(err, &in) {
		t.Errorf("another shape: error %v", err)
	}
}
