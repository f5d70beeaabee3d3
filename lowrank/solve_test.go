package lowrank

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// inputs are a layer's, in the original model and in the compressed one.
type inputs struct{ x, xt blas64.General }

// newLayer draws a layer, its inputs and their moments.
func newLayer(seed uint64, out, in int, mismatch float64) (*layer.Problem, inputs) {
	rng := rand.New(rand.NewPCG(seed, 3))
	w := blas32.General{Rows: out, Cols: in, Stride: in, Data: make([]float32, out*in)}
	for i := range w.Data {
		w.Data[i] = float32(0.1 * rng.NormFloat64())
	}
	const samples = 120
	x := linalg.NewGeneral(samples, in)
	for i := range samples {
		shared := rng.NormFloat64()
		for j := range in {
			x.Data[i*in+j] = (0.2 + float64(j%4)) * (0.4 + shared + rng.NormFloat64())
		}
	}
	xt := linalg.Clone(x)
	for i := range xt.Data {
		xt.Data[i] += mismatch * rng.NormFloat64()
	}
	m := &layer.Moments{Rows: samples, Groups: 1, Inputs: in, SumX: make([]float64, in), SumXt: make([]float64, in)}
	m.H = []blas64.General{multiply(transpose(xt), transpose(xt), true)}
	if mismatch > 0 {
		m.G = []blas64.General{multiply(transpose(xt), transpose(x), true)}
	}
	for i := range samples {
		for j := range in {
			m.SumX[j] += x.Data[i*in+j]
			m.SumXt[j] += xt.Data[i*in+j]
		}
	}
	prob := &layer.Problem{Layer: "a", Kind: layer.Linear, Shape: []int{out, in}, Groups: 1, Weight: w, Type: dtype.F32, ScaleType: dtype.F32, Moments: m}
	energy := make([]float64, out)
	for r := range energy {
		for i := range samples {
			y := apply(w.Data[r*in:][:in], linalg.Row(x, i))
			energy[r] += y * y
		}
	}
	m.Energy = map[string][]float64{"a": energy}
	return prob, inputs{x, xt}
}

func transpose(a blas64.General) blas64.General {
	t := linalg.NewGeneral(a.Cols, a.Rows)
	for i := range a.Rows {
		for j, v := range linalg.Row(a, i) {
			t.Data[j*t.Stride+i] = v
		}
	}
	return t
}

func apply(w []float32, x []float64) (sum float64) {
	for i, v := range w {
		sum += float64(v) * x[i]
	}
	return sum
}

// direct is the error of a solution's weight, term included, from the data, less
// the outputs' means where centred, and the means.
func (d inputs) direct(prob *layer.Problem, s *layer.Solution, centred bool) (sum float64, means []float64) {
	n := s.Cols
	weight := make([]float32, s.Rows*n)
	s.Weight(weight)
	for r := range s.Rows {
		var square, mean float64
		for i := range d.x.Rows {
			e := apply(prob.Weight.Data[r*n:][:n], linalg.Row(d.x, i)) - apply(weight[r*n:][:n], linalg.Row(d.xt, i))
			square, mean = square+e*e, mean+e/float64(d.x.Rows)
		}
		means = append(means, mean)
		if sum += square; centred {
			sum -= mean * mean * float64(d.x.Rows)
		}
	}
	return sum, means
}

// coarse rounds a target to −s, 0 and s.
func coarse(ctx context.Context, target blas64.General) (*layer.Solution, error) {
	q, err := ternary(ctx, target)
	s := &layer.Solution{Layer: "a", Method: "coarse", Rows: q.Rows, Cols: q.Cols, ValueType: dtype.F32, Values: make([]float32, len(q.Data))}
	for i, v := range q.Data {
		s.Values[i] = float32(v)
	}
	return s, err
}

// TestSolve: a solution with a term has the errors and the bias of the data, of any
// aim, never more error in the metric of its damped problem than without, and not
// more with turns than with none.
func TestSolve(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(8) {
		for _, aim := range []Aim{{}, {Align: true}, {Align: true, Damping: 0.1, BiasCorrection: true}, {BiasCorrection: true, Centre: true}, {Align: true, BiasCorrection: true, Centre: true}} {
			prob, d := newLayer(seed, 14, 20, 0.2*float64(seed%2))
			f := gram.NewFactors(prob.Moments)
			var once, last float64
			for _, turns := range []int{0, 3} {
				start, _ := coarse(ctx, widened(prob.Weight))
				calls := 0
				again := func(ctx context.Context, target blas64.General) (*layer.Solution, error) {
					calls++
					return coarse(ctx, target)
				}
				s, res, err := Solve(ctx, pool.New(2), f, prob, start, aim, again, Options{Rank: 3, Alternations: turns})
				if err != nil {
					t.Fatal(err)
				}
				want, means := d.direct(prob, s, aim.Centre)
				near(t, "error", s.Errors.Solved, want, 1e-6*want)
				if (s.Bias != nil) != aim.BiasCorrection || s.LowRank.Rank() != 3 {
					t.Fatalf("aim %+v: bias %v, rank %d", aim, s.Bias, s.LowRank.Rank())
				}
				for r, b := range s.Bias {
					near(t, "bias", b, means[r], 1e-6)
				}
				if res.Rounded > res.Before || res.Alternations == 0 && s != start || turns == 0 && calls > 0 {
					t.Errorf("aim %+v: %+v after %d calls", aim, res, calls)
				}
				if turns == 0 {
					once = res.Rounded
				}
				last = res.Rounded
			}
			if last > once {
				t.Errorf("aim %+v: turns raise the error from %v to %v", aim, once, last)
			}
		}
	}
}

func widened(w blas32.General) blas64.General {
	m := linalg.NewGeneral(w.Rows, w.Cols)
	linalg.Widen(m.Data, w.Data)
	return m
}

// TestSolveRefuses: groups, moments of others and options each have their type, and
// again's error comes back.
func TestSolveRefuses(t *testing.T) {
	ctx := context.Background()
	prob, _ := newLayer(1, 6, 8, 0)
	s, _ := coarse(ctx, widened(prob.Weight))
	f := gram.NewFactors(prob.Moments)
	var groups *GroupsError
	grouped := *prob
	grouped.Groups = 2
	if _, _, err := Solve(ctx, nil, f, &grouped, s, Aim{}, nil, Options{Rank: 1}); !errors.As(err, &groups) {
		t.Errorf("groups: %v", err)
	}
	var input *layer.InputError
	if _, _, err := Solve(ctx, nil, gram.NewFactors(nil), prob, s, Aim{}, nil, Options{Rank: 1}); !errors.As(err, &input) {
		t.Errorf("other moments: %v", err)
	}
	var option *OptionError
	for _, o := range []Options{{}, {Rank: 1, Bits: 3}, {Budget: 5}, {Rank: 1, Alternations: -1}} {
		if _, _, err := Solve(ctx, nil, f, prob, s, Aim{}, nil, o); !errors.As(err, &option) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	boom := errors.New("boom")
	again := func(context.Context, blas64.General) (*layer.Solution, error) { return nil, boom }
	if _, _, err := Solve(ctx, nil, f, prob, s, Aim{}, again, Options{Rank: 1, Alternations: 1}); !errors.Is(err, boom) {
		t.Errorf("again fails: %v", err)
	}
}

// TestSpectrumOf: its trace is the damped error of the solution as it is, in the
// data's own units, and its values add up to no more.
func TestSpectrumOf(t *testing.T) {
	prob, d := newLayer(5, 10, 12, 0.3)
	ctx := context.Background()
	s, _ := coarse(ctx, widened(prob.Weight))
	sp, err := SpectrumOf(ctx, nil, gram.NewFactors(prob.Moments), prob, s, Aim{Align: true, Damping: 1e-9}, 4, Options{})
	if err != nil {
		t.Fatal(err)
	}
	// With next to no damping the error is the trace and what W̃ itself leaves.
	best := &layer.Solution{Layer: "a", Rows: 10, Cols: 12, Values: make([]float32, 120)}
	tgt, err := gram.NewFactors(prob.Moments).Target(ctx, pool.New(1), prob, gram.Kind{Damping: 1e-9}, false)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range tgt.Anchor.Data {
		best.Values[i] = float32(v)
	}
	whole, _ := d.direct(prob, s, false)
	floor, _ := d.direct(prob, best, false)
	near(t, "trace", sp.Trace, whole-floor, 1e-4*whole)
	sum := 0.0
	for i, v := range sp.Values {
		if sum += v; i > 0 && v > sp.Values[i-1] {
			t.Errorf("value %d is above the one before", i)
		}
	}
	if len(sp.Values) != 4 || sum > sp.Trace*(1+1e-9) || math.IsNaN(sum) {
		t.Errorf("spectrum %+v", sp)
	}
}
