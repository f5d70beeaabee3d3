package quantize

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// withSample gives the problem all its rows as a sample.
func (d data) withSample() data {
	narrow := func(list []blas64.General) (rows []blas32.General) {
		for _, a := range list {
			b := blas32.General{Rows: a.Rows, Cols: a.Cols, Stride: a.Cols}
			for i := range a.Rows {
				for _, v := range linalg.Row(a, i) {
					b.Data = append(b.Data, float32(v))
				}
			}
			rows = append(rows, b)
		}
		return rows
	}
	s := &layer.Sample{Xt: narrow(d.xt)}
	if d.prob.Moments.G != nil {
		s.X = narrow(d.x)
	}
	d.prob.Moments.Sample = s
	return d
}

// withAfter puts an activation behind the layer, and a normalization that turns
// some signs and switches one output off.
func (d data) withAfter(rng *rand.Rand, f layer.Activation) data {
	a := &layer.After{Activation: f, Slope: 0.1}
	for r := range d.prob.Weight.Rows {
		a.Scale = append(a.Scale, float32(rng.NormFloat64()))
		a.Shift = append(a.Shift, float32(0.3*rng.NormFloat64()))
		if r == 1 {
			a.Scale[r] = 0
		}
	}
	d.prob.After = a
	return d
}

// function is f of an activation, and how far from z it has a kink (math.Inf for
// none).
func function(a *layer.After, z float64) float64 {
	if a == nil {
		return z
	}
	switch a.Activation {
	case layer.ReLU:
		return max(z, 0)
	case layer.LeakyReLU:
		return max(z, float64(a.Slope)*z)
	case layer.Sigmoid:
		return 1 / (1 + math.Exp(-z))
	case layer.Tanh:
		return math.Tanh(z)
	case layer.GELU:
		return z / 2 * math.Erfc(-z/math.Sqrt2)
	default:
		return z / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(z+0.044715*z*z*z)))
	}
}

var everyActivation = []layer.Activation{layer.ReLU, layer.LeakyReLU, layer.Sigmoid, layer.Tanh, layer.GELU, layer.GELUTanh}

func TestActivationSlopes(t *testing.T) {
	for _, f := range everyActivation {
		a := &layer.After{Activation: f, Slope: 0.1}
		for _, at := range []float64{-9, -2.5, -1, -0.2, 0.1, 0.7, 3, 9} {
			z, slope := []float32{float32(at)}, []float32{0}
			activate(a, z, slope)
			at = float64(float32(at))
			const e = 1e-5
			want := (function(a, at+e) - function(a, at-e)) / (2 * e)
			if math.Abs(float64(z[0])-function(a, at)) > 1e-6*(1+math.Abs(at)) || math.Abs(float64(slope[0])-want) > 1e-5 {
				t.Errorf("%s at %v: %v with slope %v, want %v with %v", f, at, z[0], slope[0], function(a, at), want)
			}
		}
		z, slope := []float32{0}, []float32{9}
		activate(a, z, slope)
		if want := map[layer.Activation]float32{layer.ReLU: 0, layer.LeakyReLU: 0.1, layer.Sigmoid: 0.25, layer.Tanh: 1}; slope[0] != or(want[f], map[bool]float32{true: 0.5}[f == layer.GELU || f == layer.GELUTanh]) {
			t.Errorf("%s: slope %v at 0", f, slope[0])
		}
	}
}

// sampledOf returns the sampled form of a problem's first rows.
func sampledOf(t *testing.T, prob *layer.Problem, o Options) (*solver, *choices, *sampled) {
	t.Helper()
	o.Method, o.AdaRound.Sample = AdaRound, true
	o = o.WithDefaults()
	s := factored(t, prob, o)
	grid, err := s.grid.newGrid(context.Background(), s.Pool, s.target, s.o.Granularity, s.o.GroupSize)
	if err != nil {
		t.Fatal(err)
	}
	s.solution.Grid = grid
	b := s.Blocks(adaRows)[0]
	c := newChoices(linalg.Rows(s.target, b.From, b.To), &s.solution.Grid, b.From, s.mask)
	e, err := s.newSampled(context.Background(), c, b, s.newSample())
	if err != nil {
		t.Fatal(err)
	}
	return s, c, e
}

// sampledObjective is the objective in float64 from the definition, over rows
// from ≤ i < to of the sample.
func (d data) sampledObjective(s *solver, c *choices, e *sampled, v []float64, from, to int, lambda, beta float64) float64 {
	w, sum := d.prob.Weight, 0.0
	x, xt := d.x[0], d.xt[0]
	if !s.o.Align {
		x = xt
	}
	size := 0.0
	for _, q := range xt.Data {
		size += q * q / float64(len(xt.Data))
	}
	for r := range w.Rows {
		a, shift := 1.0, 0.0
		if d.prob.After != nil {
			a, shift = float64(d.prob.After.Scale[r]), float64(d.prob.After.Shift[r])
		}
		soft := make([]float64, w.Cols)
		for j := range soft {
			k := r*w.Cols + j
			soft[j] = c.down[k]
			if _, free := c.fraction(k); free {
				h := min(max((zeta-gamma)/(1+math.Exp(-v[k]))+gamma, 0), 1)
				soft[j] += h * (c.up[k] - c.down[k])
				sum += lambda * (1 - math.Pow(math.Abs(2*h-1), beta))
			}
		}
		seen, lost := 0.0, 0.0
		for i := range x.Rows {
			wanted := a*dot32(rowOf32(w, r), linalg.Row(x, i)) + shift
			const tiny = 1e-4
			slope := (function(d.prob.After, wanted+tiny) - function(d.prob.After, wanted-tiny)) / (2 * tiny)
			seen += slope * slope / float64(x.Rows)
			if i < from || i >= to {
				continue
			}
			y := 0.0
			for j, q := range linalg.Row(xt, i) {
				y += soft[j] * q
			}
			diff := function(d.prob.After, wanted) - function(d.prob.After, a*y+shift)
			lost += diff * diff / float64(to-from)
		}
		step := a * c.rowStep(r)
		if a != 0 {
			sum += lost / (step * step * size * max(seen, 1/float64(x.Rows)))
		}
	}
	return sum
}

// TestSampledGradient compares with finite differences: activations and their
// masks, the normalization's scale (negative and 0 too), the β-term, the masks of
// rectified h and of weights outside the grid, and batches.
func TestSampledGradient(t *testing.T) {
	for i, f := range append(everyActivation, "") {
		rng := rand.New(rand.NewPCG(uint64(i), 1))
		samples := 60
		if i == 0 {
			samples = sampleBatch + 101 // two batches
		}
		d := newData(uint64(i), shape{out: 4, in: 6, groups: 1, samples: samples, mismatch: 0.3}).withSample()
		if f != "" {
			d = d.withAfter(rng, f)
		}
		s, c, e := sampledOf(t, d.prob, Options{Bits: 2, Align: i%2 == 0, Granularity: layer.PerGroup, GroupSize: 3})
		x := newRelaxation(c, e)
		v := make([]float64, len(x.v))
		fixed, saturated := 0, 0
		for k := range v {
			x.v[k] += float32(1.2 * rng.NormFloat64())
			v[k] = float64(x.v[k])
		}
		x.relax()
		for step := range 2 {
			for _, reg := range [][2]float64{{0, 20}, {0.3, 5.5}, {0.3, 2}} {
				if err := x.differentiate(context.Background(), step, reg[0], reg[1]); err != nil {
					t.Fatal(err)
				}
				from, to := 0, samples
				if samples > sampleBatch {
					from, to = step*samples/2, (step+1)*samples/2
				}
				for k, at := range v {
					const h = 1e-6
					v[k] = at + h
					above := d.sampledObjective(s, c, e, v, from, to, reg[0], reg[1])
					v[k] = at - h
					below := d.sampledObjective(s, c, e, v, from, to, reg[0], reg[1])
					v[k] = at
					want := (above - below) / (2 * h)
					if math.Abs(float64(x.gradient[k])-want) > 1e-3*(1+math.Abs(want)) {
						t.Errorf("%s, step %d, %v: gradient %d is %v, want %v", f, step, reg, k, x.gradient[k], want)
					}
				}
			}
		}
		for k := range v {
			if !x.free[k] {
				fixed++
			} else if x.hv[k] == 0 || x.hv[k] == 1 {
				saturated++
			}
		}
		if f == layer.ReLU && (saturated == 0 || fixed == 0) {
			t.Errorf("%d fixed, %d saturated weights: the masks were not tested", fixed, saturated)
		}
	}
}

// TestSampledIsTheGramForm: without an activation and over all rows the two forms
// have one objective and one derivative.
func TestSampledIsTheGramForm(t *testing.T) {
	ctx := context.Background()
	d := newData(3, shape{out: 5, in: 12, groups: 1, samples: 300}).withSample()
	_, c, e := sampledOf(t, d.prob, Options{Bits: 3})
	h := d.prob.Moments.H[0]
	g, err := newGramForm(ctx, c, h, unitDiagonal32(h))
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	moved := blas32.General{Rows: 5, Cols: 12, Stride: 12, Data: make([]float32, 60)}
	for k := range moved.Data {
		if c.floors[k] != c.ceils[k] {
			moved.Data[k] = float32(rng.Float64() - 0.5)
		}
	}
	one, other := blas32.General{Rows: 5, Cols: 12, Stride: 12, Data: make([]float32, 60)}, blas32.General{Rows: 5, Cols: 12, Stride: 12, Data: make([]float32, 60)}
	if err := errors.Join(e.derive(ctx, 0, moved, one), g.derive(ctx, 0, moved, other)); err != nil {
		t.Fatal(err)
	}
	for k, want := range other.Data {
		if math.Abs(float64(one.Data[k]-want)) > 1e-4*(1+math.Abs(float64(want))) {
			t.Errorf("derivative %d: %v over the sample, %v from H", k, one.Data[k], want)
		}
	}
	ups := make([]bool, 60)
	for k := range ups {
		ups[k] = rng.IntN(2) == 1
	}
	z, err := e.hard(ctx, ups)
	if err != nil {
		t.Fatal(err)
	}
	for r := range z.Rows {
		got := e.lost(r, rowOf32(z, r))
		off := make([]float64, 12)
		for j := range off {
			k := r*12 + j
			off[j] = c.down[k] - c.target.Data[k]
			if ups[k] {
				off[j] = c.up[k] - c.target.Data[k]
			}
		}
		if want := quadForm(h, off); math.Abs(got-want) > 1e-5*want {
			t.Errorf("row %d: error %v over the sample, %v from H", r, got, want)
		}
	}
}

// hardError is ‖f(a·y* + c) − f(a·X̃ŵ + c)‖² of each row from the data, for
// targets of the original stream; with a bias correction the mean is put back.
func (d data) hardError(values []float32, centre bool) []float64 {
	w := d.prob.Weight
	sums := make([]float64, w.Rows)
	for r := range sums {
		g := d.prob.Group(r)
		mean := 0.0
		if centre {
			for i := range d.x[g].Rows {
				mean += (dot32(rowOf32(w, r), linalg.Row(d.x[g], i)) - dot32(values[r*w.Cols:][:w.Cols], linalg.Row(d.xt[g], i))) / float64(d.x[g].Rows)
			}
		}
		for i := range d.x[g].Rows {
			a, shift := float64(d.prob.After.Scale[r]), float64(d.prob.After.Shift[r])
			wanted := a*dot32(rowOf32(w, r), linalg.Row(d.x[g], i)) + shift
			got := a*(dot32(values[r*w.Cols:][:w.Cols], linalg.Row(d.xt[g], i))+mean) + shift
			e := function(d.prob.After, wanted) - function(d.prob.After, got)
			sums[r] += e * e
		}
	}
	return sums
}

// TestSampledNeverWorse: row by row no worse than nearest rounding on its own
// grid in its own objective, in groups and centred too, and far better in all; no
// worse in it than the Gram form, which searches longer but knows no activation.
// Codes are the same for any number of workers.
func TestSampledNeverWorse(t *testing.T) {
	for _, centre := range []bool{false, true} {
		rng := rand.New(rand.NewPCG(5, 5))
		d := newData(8, shape{out: 36, in: 20, groups: 2, samples: 700, mismatch: 0.1}).withSample().withAfter(rng, layer.ReLU)
		o := Options{Method: AdaRound, Bits: 3, Align: true, BiasCorrection: centre, Centre: centre, AdaRound: AdaRoundOptions{Sample: true}}.WithDefaults()
		s := factored(t, d.prob, o)
		if err := s.round(context.Background()); err != nil {
			t.Fatal(err)
		}
		learned := make([]float32, 36*20)
		s.solution.Weight(learned)
		near := make([]float32, 36*20)
		c := newChoices(s.target, &s.solution.Grid, 0, nil)
		other := *s.solution
		other.Codes = codesOf(c, c.nearest)
		other.Weight(near)
		gram := solve(t, d.prob, Options{Method: AdaRound, Bits: 3, Align: true, BiasCorrection: centre, Centre: centre})
		var total, nearest, blind float64
		gramErrors := d.hardError(values(gram), centre)
		for r, got := range d.hardError(learned, centre) {
			limit := d.hardError(near, centre)[r]
			if got > limit*(1+1e-4)+1e-9 {
				t.Errorf("centre %v, row %d: %v, nearest %v", centre, r, got, limit)
			}
			total, nearest, blind = total+got, nearest+limit, blind+gramErrors[r]
		}
		t.Logf("centre %v: learned %.4g, nearest %.4g, Gram form %.4g", centre, total, nearest, blind)
		if total > 0.8*nearest || total > 1.01*blind {
			t.Errorf("centre %v: learned %v, nearest %v, Gram form %v", centre, total, nearest, blind)
		}
		for _, workers := range []int{1, 2, 5} {
			again, err := Solve(context.Background(), pool.New(workers), d.prob, o)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(again.Codes, s.solution.Codes) || again.Errors.Soft <= 0 {
				t.Errorf("%d workers: other codes, or no error of relaxed weights", workers)
			}
		}
	}
}

// TestSampledRefuses what it cannot work with.
func TestSampledRefuses(t *testing.T) {
	o := Options{Method: AdaRound, Bits: 3, AdaRound: AdaRoundOptions{Sample: true}}
	run := func(prob *layer.Problem) error {
		_, err := Solve(context.Background(), nil, prob, o)
		return err
	}
	d := newData(8, shape{out: 2, in: 4, groups: 1, samples: 20})
	var bad *layer.InputError
	if err := run(d.prob); !errors.As(err, &bad) {
		t.Errorf("no sample: %v", err)
	}
	for name, spoil := range map[string]func(){
		"a scale too few": func() { d.prob.After.Scale = d.prob.After.Scale[:1] },
		"a shift of NaN":  func() { d.prob.After.Shift[0] = float32(math.NaN()) },
		"a function":      func() { d.prob.After.Activation = "step" },
		"a row too short": func() { d.prob.Moments.Sample.Xt[0].Cols-- },
		"an infinity":     func() { d.prob.Moments.Sample.Xt[0].Data[3] = float32(math.Inf(1)) },
		"no rows":         func() { d.prob.Moments.Sample.Xt[0].Rows = 0 },
		"no X̃":           func() { d.prob.Moments.Sample.Xt = nil },
	} {
		d = newData(8, shape{out: 2, in: 4, groups: 1, samples: 20}).withSample().withAfter(rand.New(rand.NewPCG(1, 1)), layer.ReLU)
		if err := run(d.prob); err != nil {
			t.Fatal(err)
		}
		spoil()
		if err := run(d.prob); !errors.As(err, &bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSampleIsScaled: AWQ's scales leave the sampled outputs as they are, in both
// streams.
func TestSampleIsScaled(t *testing.T) {
	d := newData(9, shape{out: 3, in: 5, groups: 1, samples: 30, mismatch: 0.2}).withSample()
	outputs := func() (y []float64) {
		for _, x := range []blas32.General{d.prob.Moments.Sample.X[0], d.prob.Moments.Sample.Xt[0]} {
			for i := range x.Rows {
				for r := range d.prob.Weight.Rows {
					y = append(y, dot32(rowOf32(d.prob.Weight, r), float64s(rowOf32(x, i))))
				}
			}
		}
		return y
	}
	before := outputs()
	scales := []float64{0.5, 3, 1, 0.1, 20}
	ScaleWeight(d.prob.Weight, scales)
	ScaleMoments(d.prob.Moments, scales)
	for i, y := range outputs() {
		if math.Abs(y-before[i]) > 1e-5*(1+math.Abs(before[i])) {
			t.Fatalf("output %d is %v, was %v", i, y, before[i])
		}
	}
}
