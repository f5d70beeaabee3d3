package quantize

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// long is how many times as many problems the random tests take.
func long() uint64 {
	if os.Getenv("FETTLE_LONG") == "1" {
		return 10
	}
	return 1
}

func pick[T any](rng *rand.Rand, list ...T) T { return list[rng.IntN(len(list))] }

// randomOptions draws options of a method that pass Check.
func randomOptions(rng *rand.Rand, method Method) Options {
	for {
		half := func() bool { return rng.IntN(2) == 0 }
		o := Options{
			Method: method, Bits: 2 + rng.IntN(7), Symmetric: half(), Align: half() || method == Qronos, BiasCorrection: half(),
			Granularity: pick(rng, "", layer.PerTensor, layer.PerChannel, layer.PerGroup), Range: pick(rng, "", MinMax, MSE, AWQ),
		}
		if o.Granularity == layer.PerGroup {
			o.GroupSize = pick(rng, 1, 2, 4, 8, 16, 40)
		}
		if o.Format = pick(rng, layer.Integer, layer.Integer, layer.FP8, layer.NVFP4, layer.MXFP4); o.Format != layer.Integer {
			o.Bits = 0
		}
		if o.Format.GroupSize() > 0 {
			o.Granularity, o.GroupSize = "", 0
		}
		o.PowerOfTwo, o.ActOrder = rng.IntN(4) == 0, rng.IntN(3) == 0
		o.Residual, o.Centre = o.Align && half(), o.BiasCorrection && half()
		if rng.IntN(4) == 0 && o.usesDamping() {
			o.Damping = pick(rng, 1e-6, 0.1, 10)
		}
		if o.followsPath() && half() {
			o.Alphabet, o.Granularity, o.GroupSize, o.Range = pick(rng, AlphabetGPFQ, AlphabetTernary, AlphabetBinary), "", 0, ""
			if o.Alphabet != AlphabetGPFQ {
				o.Bits = 0
			}
			if half() {
				o.GPFQ.C, o.GPFQ.Quantile = 0.5+2*rng.Float64(), 0.5+rng.Float64()/2
			}
			if half() {
				o.GPFQ.Threshold, o.GPFQ.Lambda = pick(rng, SoftThreshold, HardThreshold), 0.4*rng.Float64()
			}
		}
		if method == SPFQ {
			o.GPFQ.Seed = rng.Uint64()
		}
		if method == AdaRound {
			o.AdaRound.Steps = 20
		}
		if o.Check() == nil {
			return o
		}
	}
}

// hardenings change a problem's weights or data, before its moments are taken.
var hardenings = []struct {
	name  string
	apply func(rng *rand.Rand, d data)
}{
	{"plain", func(*rand.Rand, data) {}},
	{"dead inputs", func(rng *rand.Rand, d data) { zeroInput(d, rng.IntN(d.prob.Weight.Cols)) }},
	{"near-dead input", func(rng *rand.Rand, d data) { scaleInput(d, rng.IntN(d.prob.Weight.Cols), 1e-9) }},
	{"large input", func(rng *rand.Rand, d data) { scaleInput(d, rng.IntN(d.prob.Weight.Cols), 1e4) }},
	{"zero row", func(rng *rand.Rand, d data) {
		clear(rowOf32(d.prob.Weight, rng.IntN(d.prob.Weight.Rows)))
	}},
	{"zero weights", func(_ *rand.Rand, d data) { clear(d.prob.Weight.Data) }},
	{"zero group", func(_ *rand.Rand, d data) { clear(rowOf32(d.prob.Weight, 0)[:(d.prob.Weight.Cols+1)/2]) }},
	{"constant rows", func(rng *rand.Rand, d data) { fill32(d.prob.Weight.Data, float32(rng.NormFloat64())) }},
	{"outlier", func(rng *rand.Rand, d data) { d.prob.Weight.Data[rng.IntN(len(d.prob.Weight.Data))] *= 1e6 }},
	{"denormals", func(_ *rand.Rand, d data) {
		for i := range d.prob.Weight.Data {
			d.prob.Weight.Data[i] = float32(i%7-3) * 0x1p-149
		}
	}},
	{"one sample", func(_ *rand.Rand, d data) {
		for g := range d.x {
			d.x[g], d.xt[g] = linalg.Rows(d.x[g], 0, 1), linalg.Rows(d.xt[g], 0, 1)
		}
	}},
	{"inputs alike", func(_ *rand.Rand, d data) { // rank 1, and all correlated to the full
		for g := range d.x {
			for _, x := range []blas64.General{d.x[g], d.xt[g]} {
				for r := range x.Rows {
					for j := range x.Cols {
						x.Data[r*x.Stride+j] = x.Data[r*x.Stride]
					}
				}
			}
		}
	}},
}

// randomData draws a layer: any shape, one row or one column among them, plain,
// grouped or depthwise, with as few samples as one, changed by a hardening, and
// with what the options can make use of.
func randomData(seed uint64, o Options) (d data, lost []float64, name string) {
	rng := rand.New(rand.NewPCG(seed, 17))
	s := pick(rng,
		shape{out: 1 + rng.IntN(12), in: 1 + rng.IntN(40), groups: 1},
		shape{out: 1, in: 32 * (1 + rng.IntN(3)), groups: 1},
		shape{out: 1 + rng.IntN(40), in: 1, groups: 1},
		shape{out: 3 * (1 + rng.IntN(4)), in: 8 * (1 + rng.IntN(4)), groups: 3}, // a convolution of three groups
		shape{out: 6, in: 9, groups: 6},                                         // depthwise 3×3
		shape{out: 4, in: 160, groups: 1},                                       // more than one block of GPTQ's
	)
	s.samples, s.mismatch = 1+rng.IntN(2*s.in+8), pick(rng, 0, 0.1, 0.5)
	d = newData(seed, s)
	hard := hardenings[rng.IntN(len(hardenings))]
	hard.apply(rng, d)
	d.prob.ScaleType = pick(rng, dtype.F32, dtype.F16, dtype.BF16, dtype.F64)
	d.setMoments()
	if o.Residual && rng.IntN(3) > 0 {
		lost = addResidual(d, seed).Data
	}
	if rng.IntN(3) == 0 && o.Alphabet != AlphabetBinary {
		d.prob.Start = prunedStart(d.prob, seed)
		hard.name += ", pruned"
	}
	return d, lost, fmt.Sprintf("seed %d, %v, %s: %+v", seed, s, hard.name, o)
}

// TestRandomProblems: every method with every kind of options on every kind of
// layer gives a sound solution, see checkSolution.
func TestRandomProblems(t *testing.T) {
	for i, method := range allMethods {
		for k := range 40 * long() {
			seed := uint64(i)<<32 + k
			o := randomOptions(rand.New(rand.NewPCG(seed, 19)), method)
			d, lost, name := randomData(seed, o)
			s := solve(t, d.prob, o)
			checkSolution(t, name, d, lost, o, s)
			for _, workers := range []int{2, 5} {
				again, err := Solve(context.Background(), pool.New(workers), d.prob, o)
				if err != nil || !reflect.DeepEqual(again, s) {
					t.Errorf("%s: %d workers change the solution: %v", name, workers, err)
				}
			}
			if method == AdaRound || method == Best {
				checkNotWorse(t, name, d, o)
			}
		}
	}
}

// checkSolution: the error is that of the data and within its bound, pruned
// weights are 0, what is written is read again, also of a transposed weight.
func checkSolution(t *testing.T, name string, d data, lost []float64, o Options, s *layer.Solution) {
	t.Helper()
	v := values(s)
	want, size := 0.0, 0.0 // size is that of the terms whose difference the error is
	for r := range s.Rows {
		g := d.prob.Group(r)
		unit := linalg.MeanDiagonal(d.prob.Moments.H[g])
		if unit == 0 {
			unit = 1
		}
		for c, w := range rowOf32(d.prob.Weight, r) {
			size += unit * (float64(w)*float64(w) + float64(v[r*s.Cols+c])*float64(v[r*s.Cols+c]))
		}
		for i := range d.x[g].Rows {
			y := dot32(rowOf32(d.prob.Weight, r), linalg.Row(d.x[g], i))
			if lost != nil {
				y += lost[i*s.Rows+r]
			}
			e := y - dot32(v[r*s.Cols:][:s.Cols], linalg.Row(d.xt[g], i))
			if o.Centre {
				e -= s.Bias[r]
			}
			want += e * e
			size += y * y
		}
	}
	if e := s.Errors; math.Abs(e.Solved-want) > 1e-8*want+1e-11*size {
		t.Errorf("%s: error %v, from the data %v, terms of %v", name, e.Solved, want, size)
	}
	if e := s.Errors; e.Bound > 0 && want > e.Bound*(1+1e-8)+1e-11*size {
		t.Errorf("%s: error %v, bound %v", name, want, e.Bound)
	}
	if start := d.prob.Start; start != nil {
		for i, w := range v {
			if !start.Mask.At(i/s.Cols, i%s.Cols) && w != 0 {
				t.Fatalf("%s: pruned weight %d is %v", name, i, w)
			}
		}
		return // masks are written with what is pruned and not quantized
	}
	s.Transposed = true
	var unit bytes.Buffer
	if err := layer.EncodeSolution(&unit, s); err != nil {
		t.Fatal(err)
	}
	read, err := layer.DecodeSolution(bytes.NewReader(unit.Bytes()), int64(unit.Len()))
	if err != nil || !reflect.DeepEqual(read, s) {
		t.Errorf("%s: what is read is not what was written: %v", name, err)
	}
	for i, w := range values(s) {
		if r, c := i%s.Rows, i/s.Rows; w != v[r*s.Cols+c] {
			t.Fatalf("%s: transposed weight %d is %v, want %v", name, i, w, v[r*s.Cols+c])
		}
	}
	s.Transposed = false
}

// checkNotWorse: no row has a larger damped error than nearest rounding: of
// AdaRound on its own grid, of Best on the grid that the range search finds. (Wide
// layers may; GPTQ, Qronos, GPFQ and SPFQ may anywhere.)
func checkNotWorse(t *testing.T, name string, d data, o Options) {
	t.Helper()
	o = o.WithDefaults()
	near := o
	near.Method, near.AdaRound = Nearest, AdaRoundOptions{}
	near.Centre = false
	costs := func(run Options) (list, sizes []float64) {
		// The factors are those of the method that is tested.
		target, err := NewFactors(d.prob.Moments).Target(context.Background(), pool.New(1), d.prob, o.kind(), o.Residual)
		if err != nil {
			t.Fatal(err)
		}
		s := newSolver(target, run)
		if err := s.round(context.Background()); err != nil {
			t.Fatal(err)
		}
		aim := s.aim
		if o.Method == AdaRound {
			aim = s.target
		}
		row, e := make([]float32, aim.Cols), make([]float64, aim.Cols)
		for r := range aim.Rows {
			h, err := s.Grams[d.prob.Group(r)].DampedH(context.Background(), s.Pool)
			if err != nil {
				t.Fatal(err)
			}
			s.values(r, row)
			for c := range e {
				e[c] = float64(row[c]) - aim.Data[r*aim.Stride+c]
			}
			list, sizes = append(list, quadForm(h, e)), append(sizes, quadForm(h, linalg.Row(aim, r)))
		}
		return list, sizes
	}
	got, sizes := costs(o)
	limit, _ := costs(near)
	for r, size := range sizes { // the square of what float32 loses is no error
		if got[r] > limit[r]*(1+1e-9)+size*0x1p-44 {
			t.Errorf("%s: row %d has damped error %v, nearest %v, of %v", name, r, got[r], limit[r], size)
		}
	}
}

// TestBestNotWorseThanNearest on layers where GPTQ's pass can be: of few inputs,
// or of one sample.
func TestBestNotWorseThanNearest(t *testing.T) {
	for seed := range 300 * long() {
		rng := rand.New(rand.NewPCG(seed, 23))
		s := shape{out: 12, in: 1 + rng.IntN(9), groups: 1, samples: 1 + rng.IntN(3), mismatch: pick(rng, 0, 0.3)}
		o := Options{Method: Best, Bits: 2 + rng.IntN(7), Symmetric: rng.IntN(2) == 0, PowerOfTwo: rng.IntN(2) == 0, Granularity: pick(rng, layer.PerTensor, layer.PerChannel)}
		d := newData(seed, s)
		if rng.IntN(3) == 0 {
			d.prob.Start = prunedStart(d.prob, seed)
		}
		checkNotWorse(t, fmt.Sprintf("seed %d, %v: %+v", seed, s, o), d, o)
	}
}

// TestPrunedBound: what GPFQ's error cannot exceed holds for a pruned start too,
// or is not given.
func TestPrunedBound(t *testing.T) {
	for seed := range uint64(20) {
		d := newData(seed, shape{out: 4, in: 24, groups: 1, samples: 60, mismatch: 0.2 * float64(seed%2)})
		d.prob.Start = prunedStart(d.prob, seed)
		for _, method := range []Method{GPFQ, SPFQ} {
			for _, align := range []bool{false, true} {
				s := solve(t, d.prob, Options{Method: method, Bits: 8, Align: align})
				if e := s.Errors; e.Bound > 0 && e.Solved > e.Bound {
					t.Fatalf("seed %d, %s, align %v: error %v, bound %v", seed, method, align, e.Solved, e.Bound)
				}
			}
		}
	}
}

// TestBestKnowsItsCosts: the cost of an attempt after descent and fitting is its
// damped error to 3 %, also where that is a millionth of the weights' energy or less.
func TestBestKnowsItsCosts(t *testing.T) {
	for seed := range uint64(40) {
		for _, pruned := range []bool{false, true} {
			d := newData(seed, shape{out: 6, in: 2 + int(seed%7), groups: 1, samples: 1 + int(seed%3)})
			if pruned {
				d.prob.Start = prunedStart(d.prob, seed)
			}
			ctx, o := context.Background(), Options{Method: Best, Bits: 8}.WithDefaults()
			s := factored(t, d.prob, o)
			if err := s.round(ctx); err != nil {
				t.Fatal(err)
			}
			h, err := s.Grams[0].DampedH(ctx, s.Pool)
			if err != nil {
				t.Fatal(err)
			}
			q := newQuadratic(h, s.target.Cols)
			task := bestTask{solver: s, q: &q, gram: &s.Grams[0], target: s.target, aim: s.aim}
			kept, err := task.passes(ctx)
			if err != nil {
				t.Fatal(err)
			}
			hw := product(transposed(s.aim), h)
			if err := task.improve(ctx, kept, hw); err != nil {
				t.Fatal(err)
			}
			for r, list := range kept {
				for _, a := range list {
					again := &bestRow{attempt: &attempt{steps: a.steps, codes: a.codes}, target: linalg.Row(s.aim, r)}
					if err := task.multiply(ctx, []*bestRow{again}); err != nil {
						t.Fatal(err)
					}
					if size := quadForm(h, linalg.Row(s.aim, r)); math.Abs(a.cost-again.cost) > 0.03*again.cost+1e-12*size {
						t.Errorf("seed %d, pruned %v, row %d: cost %v is %v, of %v", seed, pruned, r, a.cost, again.cost, size)
					}
				}
			}
		}
	}
}

func transposed(a blas64.General) blas64.General {
	b := linalg.NewGeneral(a.Cols, a.Rows)
	for r := range a.Rows {
		for c, v := range linalg.Row(a, r) {
			b.Data[c*a.Rows+r] = v
		}
	}
	return b
}
