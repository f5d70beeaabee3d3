package quantize

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"testing"
	"time"

	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/mat"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// quick keeps AdaRound short where its quality is not what a test is about.
func quick(o Options) Options {
	if o.Method == AdaRound {
		o.AdaRound.Steps = 20
	}
	return o
}

// TestErrorsMatchData: the errors from the moments are those of the data.
func TestErrorsMatchData(t *testing.T) {
	for _, mismatch := range []float64{0, 0.2} {
		d := newData(1, shape{out: 6, in: 20, groups: 2, samples: 50, mismatch: mismatch})
		everyOption(func(name string, o Options) {
			o.Align = o.Method != Nearest
			s := solve(t, d.prob, quick(o))
			if want := d.directError(values(s)); math.Abs(s.Errors.Solved-want) > 1e-9*want {
				t.Errorf("%s: error %v, from the data %v", name, s.Errors.Solved, want)
			}
			o = Options{Method: Nearest, Bits: o.Bits, Granularity: o.Granularity, GroupSize: o.GroupSize, Symmetric: o.Symmetric, Range: MinMax}
			want := d.directError(values(solve(t, d.prob, o)))
			if math.Abs(s.Errors.Nearest-want) > 1e-9*want {
				t.Errorf("%s: nearest error %v, from the data %v", name, s.Errors.Nearest, want)
			}
			if (s.Errors.Soft > 0) != (s.Method == string(AdaRound)) {
				t.Errorf("%s: soft error %v", name, s.Errors.Soft)
			}
			if want := d.directError(make([]float32, 6*20)); math.Abs(s.Errors.Energy-want) > 1e-9*want {
				t.Errorf("%s: energy %v, want %v", name, s.Errors.Energy, want)
			}
		})
	}
}

// TestOrthogonalSplit: ‖Xw−X̃q‖² + λ‖w−q‖² − (w̃−q)ᵀ(H+λI)(w̃−q) is the same for
// any q, and w̃ solves (H+λI)w̃ = (G+λI)w.
func TestOrthogonalSplit(t *testing.T) {
	d := newData(2, shape{out: 4, in: 70, groups: 2, samples: 90, mismatch: 0.2})
	s := factored(t, d.prob, Options{Method: GPTQ, Bits: 4, Align: true, Damping: 0.03}.WithDefaults())
	for r := range 4 {
		g := d.prob.Group(r)
		h, cross := linalg.Clone(d.prob.Moments.H[g]), linalg.Clone(d.prob.Moments.G[g])
		lambda := 0.03 * linalg.MeanDiagonal(h)
		for i := range 70 {
			h.Data[i*70+i] += lambda
			cross.Data[i*70+i] += lambda
		}
		var rhs, want mat.VecDense
		rhs.MulVec(mat.NewDense(70, 70, cross.Data), mat.NewVecDense(70, float64s(rowOf32(d.prob.Weight, r))))
		if err := want.SolveVec(mat.NewDense(70, 70, h.Data), &rhs); err != nil {
			t.Fatal(err)
		}
		for i, v := range linalg.Row(s.target, r) {
			if math.Abs(v-want.AtVec(i)) > 1e-9 {
				t.Fatalf("row %d: w̃ of input %d is %v, want %v", r, i, v, want.AtVec(i))
			}
		}
	}
	split := func(scale float32) float64 {
		q, sum := make([]float32, 4*70), 0.0
		for i, w := range d.prob.Weight.Data {
			q[i] = scale*w + 0.01*float32(i%7)
		}
		for r := range 4 {
			g := d.prob.Group(r)
			h := linalg.Clone(d.prob.Moments.H[g])
			lambda := 0.03 * linalg.MeanDiagonal(h)
			for i := range 70 {
				h.Data[i*70+i] += lambda
			}
			e := slices.Clone(linalg.Row(s.target, r))
			for i := range e {
				e[i] -= float64(q[r*70+i])
			}
			sum += quadForm(h, e)
		}
		return d.dampedError(q, 0.03) - sum
	}
	a, b := split(1), split(-0.7)
	if math.Abs(a-b) > 1e-9*d.directError(make([]float32, 4*70)) {
		t.Errorf("the split's constant is %v for one q, %v for another", a, b)
	}
}

// TestDiagonalH: without correlation all methods round to nearest.
func TestDiagonalH(t *testing.T) {
	d := newData(3, shape{out: 10, in: 24, groups: 1, samples: 10})
	h := linalg.NewGeneral(24, 24)
	for i := range 24 {
		h.Data[i*24+i] = math.Exp(float64(i%5) - 2)
	}
	h.Data[0] = 0 // a dead input is rounded to nearest as well
	setH(d.prob, h)
	everyOption(func(name string, o Options) {
		if o.Method == Best {
			return // it has grids of its own
		}
		if o.Method == Nearest {
			return
		}
		got := solve(t, d.prob, quick(o))
		o.Method = Nearest
		want := solve(t, d.prob, o)
		if !slices.Equal(got.Codes, want.Codes) || !reflect.DeepEqual(got.Grid, want.Grid) {
			t.Errorf("%s differs from nearest", name)
		}
	})
}

// TestOrderings on random layers: nearest > GPTQ > AdaRound on the same grid and
// aligned ≤ unaligned in the damped error that alignment minimises.
func TestOrderings(t *testing.T) {
	sums := map[string]float64{}
	const trials = 12
	for seed := range uint64(trials) {
		d := newData(seed, shape{out: 8, in: 48, groups: 1, samples: 200, mismatch: 0.15})
		energy := d.directError(make([]float32, 8*48))
		for _, method := range methods {
			for _, align := range []bool{false, true} {
				s := solve(t, d.prob, Options{Method: method, Bits: 3, Align: align})
				sums[fmt.Sprint(method, align)] += d.dampedError(values(s), DefaultDamping) / energy / trials
			}
		}
	}
	t.Log(sums)
	for _, order := range [][2]string{
		{"gptqfalse", "nearestfalse"},
		{"gptqtrue", "nearesttrue"},
		{"adaroundfalse", "gptqfalse"},
		{"adaroundtrue", "gptqtrue"},
		{"nearesttrue", "nearestfalse"},
		{"gptqtrue", "gptqfalse"},
		{"adaroundtrue", "adaroundfalse"},
	} {
		if !(sums[order[0]] <= sums[order[1]]) {
			t.Errorf("%s: %v, more than %s: %v", order[0], sums[order[0]], order[1], sums[order[1]])
		}
	}
}

// TestSameBytes: one, two and five workers and none.
func TestSameBytes(t *testing.T) {
	d := newData(4, shape{out: 150, in: 72, groups: 2, samples: 90, mismatch: 0.1})
	everyOption(func(name string, o Options) {
		o = quick(o)
		o.Align, o.BiasCorrection = true, true
		want := solve(t, d.prob, o)
		for _, workers := range []int{1, 2, 5} {
			got, err := Solve(context.Background(), pool.New(workers), d.prob, o)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %d workers change the solution", name, workers)
			}
		}
	})
}

// TestGroupedConvolution: its groups are separate problems.
func TestGroupedConvolution(t *testing.T) {
	const out, in = 6, 12
	d := newData(5, shape{out: 3 * out, in: in, groups: 3, samples: 60, mismatch: 0.1})
	everyOption(func(name string, o Options) {
		if o.Granularity == layer.PerTensor {
			return // one scale couples the groups
		}
		o = quick(o)
		o.Align, o.BiasCorrection = true, true
		whole := solve(t, d.prob, o)
		var codes []int8
		var scales []float32
		var bias []float64
		sum := 0.0
		for g := range 3 {
			part := data{prob: newProblem(out, in, 1), x: d.x[g : g+1], xt: d.xt[g : g+1]}
			copy(part.prob.Weight.Data, d.prob.Weight.Data[g*out*in:])
			part.setMoments()
			s := solve(t, part.prob, o)
			codes, scales, bias = append(codes, s.Codes...), append(scales, s.Grid.Scales...), append(bias, s.Bias...)
			sum += s.Errors.Solved
		}
		if !slices.Equal(codes, whole.Codes) || !slices.Equal(scales, whole.Grid.Scales) || !slices.Equal(bias, whole.Bias) {
			t.Errorf("%s: the whole differs from its parts", name)
		}
		if math.Abs(sum-whole.Errors.Solved) > 1e-9*sum {
			t.Errorf("%s: error %v, of the parts %v", name, whole.Errors.Solved, sum)
		}
	})
}

// TestBias is the mean error of the outputs.
func TestBias(t *testing.T) {
	d := newData(6, shape{out: 4, in: 10, groups: 2, samples: 30, mismatch: 0.3})
	s := solve(t, d.prob, Options{Method: Nearest, Bits: 2, BiasCorrection: true})
	v := values(s)
	for r := range 4 {
		g, mean := d.prob.Group(r), 0.0
		for i := range 30 {
			mean += (dot32(rowOf32(d.prob.Weight, r), linalg.Row(d.x[g], i)) - dot32(v[r*10:][:10], linalg.Row(d.xt[g], i))) / 30
		}
		if math.Abs(s.Bias[r]-mean) > 1e-12 {
			t.Errorf("bias %d is %v, want %v", r, s.Bias[r], mean)
		}
	}
}

// TestHardInputs: weights and moments at the edges give finite solutions that
// are not worse than they must be.
func TestHardInputs(t *testing.T) {
	const out, in = 5, 16
	base := func() data { return newData(8, shape{out: out, in: in, groups: 1, samples: 40, mismatch: 0.1}) }
	cases := map[string]func(d data){
		"zero weights":  func(d data) { clear(d.prob.Weight.Data) },
		"zero row":      func(d data) { clear(d.prob.Weight.Data[in : 2*in]) },
		"zero group":    func(d data) { clear(d.prob.Weight.Data[4:8]) },
		"constant rows": func(d data) { fill32(d.prob.Weight.Data, -0.7) },
		"outliers":      func(d data) { d.prob.Weight.Data[3] *= 1e6; d.prob.Weight.Data[40] = -1e5 },
		"denormals":     func(d data) { fill32(d.prob.Weight.Data, 0x1p-149); d.prob.Weight.Data[1] = -0x1p-148 },
		"huge":          func(d data) { fill32(d.prob.Weight.Data, math.MaxFloat32); d.prob.Weight.Data[1] *= -1 },
		"dead inputs":   func(d data) { zeroInput(d, 0); zeroInput(d, 7) },
		"near-dead":     func(d data) { scaleInput(d, 3, 1e-12); scaleInput(d, 4, 1e-200) },
		"all dead": func(d data) {
			for j := range in {
				zeroInput(d, j)
			}
		},
		"large inputs": func(d data) {
			for j := range in {
				scaleInput(d, j, 1e60)
			}
		},
		"small inputs": func(d data) {
			for j := range in {
				scaleInput(d, j, 1e-100)
			}
		},
		"one sample": func(d data) {
			d.x[0], d.xt[0] = linalg.Rows(d.x[0], 0, 1), linalg.Rows(d.xt[0], 0, 1)
		},
		"F16 scales":  func(d data) { d.prob.ScaleType = dtype.F16; scale32(d.prob.Weight.Data, 1e-7) },
		"F16 large":   func(d data) { d.prob.ScaleType = dtype.F16; scale32(d.prob.Weight.Data, 1e30) },
		"BF16 scales": func(d data) { d.prob.ScaleType = dtype.BF16 },
		"BF16 tiny":   func(d data) { d.prob.ScaleType = dtype.BF16; scale32(d.prob.Weight.Data, 1e-39) },
	}
	for name, change := range cases {
		d := base()
		change(d)
		d.setMoments()
		everyOption(func(option string, o Options) {
			o = quick(o)
			for _, align := range []bool{false, true} {
				o.Align = align
				s := solve(t, d.prob, o)
				for i, scale := range s.Grid.Scales {
					if d.prob.ScaleType.Round(scale) != scale {
						t.Errorf("%s, %s: scale %d, %v, is not exact in %s", name, option, i, scale, d.prob.ScaleType)
					}
				}
				if want := o.Align || o.Method != Nearest; (s.Errors.Damping != 0) != want || want && s.Errors.Damping != DefaultDamping {
					t.Errorf("%s, %s: damping %v", name, option, s.Errors.Damping)
				}
				if e := s.Errors; !finite(e.Solved) || e.Solved < 0 || e.Nearest < 0 || e.Soft < 0 {
					t.Errorf("%s, %s: errors %+v", name, option, e)
				}
				if name == "zero weights" && (s.Errors.Solved != 0 || s.Grid.Scales[0] != 1) {
					t.Errorf("%s, %s: error %v, scale %v", name, option, s.Errors.Solved, s.Grid.Scales[0])
				}
				if dead := name == "all dead" && o.Method != Nearest; dead != (len(s.Fallbacks) > 0) {
					t.Errorf("%s, %s: fallbacks %v", name, option, s.Fallbacks)
				}
			}
		})
	}
}

// TestDeadInputsKeepTheirWeight: it is rounded to nearest, not set to 0.
func TestDeadInputsKeepTheirWeight(t *testing.T) {
	d := newData(9, shape{out: 4, in: 12, groups: 1, samples: 40, mismatch: 0.1})
	zeroInput(d, 5)
	d.setMoments()
	for _, method := range methods {
		s := solve(t, d.prob, quick(Options{Method: method, Bits: 4, Align: true}))
		v := values(s)
		for r := range 4 {
			w, scale := rowOf32(d.prob.Weight, r)[5], s.Grid.Scales[r]
			code := stepAt(&s.Grid, r).code(float64(w), -8, 7)
			if int(s.Codes[r*12+5]) != code {
				t.Errorf("%s, row %d: %v becomes %v on a step of %v", method, r, w, v[r*12+5], scale)
			}
		}
	}
}

func TestShapes(t *testing.T) {
	for _, s := range []shape{{1, 1, 1, 3, 0.1}, {1, 40, 1, 50, 0.1}, {40, 1, 1, 50, 0.1}, {3, 70, 1, 20, 0}, {130, 3, 1, 20, 0.2}, {4, 1, 4, 9, 0.1}, {33, 129, 1, 64, 0.1}} {
		d := newData(10, s)
		everyOption(func(_ string, o Options) {
			o.Align = true
			sol := solve(t, d.prob, quick(o))
			if want := s.in > 4 && s.in%4 == 0; o.GroupSize > 0 && (len(sol.Fallbacks) == 0) != want {
				t.Errorf("%v: fallbacks %v", s, sol.Fallbacks)
			}
		})
	}
}

func TestGroupSizeFallsBack(t *testing.T) {
	d := newData(11, shape{out: 3, in: 27, groups: 1, samples: 40})
	for size, reason := range map[int]string{
		4: "4 does not divide a row's 27 inputs", 27: "a row has 27 inputs", 128: "a row has 27 inputs",
	} {
		for _, method := range methods {
			o := quick(Options{Method: method, Bits: 4, Granularity: layer.PerGroup, GroupSize: size})
			got := solve(t, d.prob, o)
			want := []layer.Fallback{{Asked: fmt.Sprintf("group size %d", size), Got: "one scale per channel", Reason: reason}}
			if !slices.Equal(got.Fallbacks, want) {
				t.Errorf("%+v, want %+v", got.Fallbacks, want)
			}
			o.Granularity, o.GroupSize = layer.PerChannel, 0
			if !slices.Equal(got.Codes, solve(t, d.prob, o).Codes) {
				t.Errorf("%s, size %d: codes differ from per-channel", method, size)
			}
		}
	}
}

func TestDampingFallback(t *testing.T) {
	prob := newProblem(1, 2, 1)
	copy(prob.Weight.Data, []float32{0.3, -0.8})
	setH(prob, matrix([]float64{1, 3}, []float64{3, 1}))
	s := solve(t, prob, Options{Method: GPTQ, Bits: 4})
	if math.Abs(s.Errors.Damping-10) > 1e-9 || len(s.Fallbacks) != 1 || s.Fallbacks[0].Got != "damping 10" {
		t.Errorf("damping %v, fallbacks %+v", s.Errors.Damping, s.Fallbacks)
	}
	setH(prob, matrix([]float64{1, 1e9}, []float64{1e9, 1}))
	var pivot *linalg.PivotError
	if _, err := Solve(context.Background(), nil, prob, Options{Method: GPTQ, Bits: 4}); !errors.As(err, &pivot) {
		t.Errorf("%v, want a pivot error", err)
	}
}

func TestRefusals(t *testing.T) {
	good := func() *layer.Problem {
		return newData(12, shape{out: 4, in: 6, groups: 2, samples: 20, mismatch: 0.1}).prob
	}
	nan, inf := math.NaN(), math.Inf(1)
	cases := map[string]func(p *layer.Problem){
		"layer test: weight, element 7: NaN is not finite":                         func(p *layer.Problem) { p.Weight.Data[7] = float32(nan) },
		"layer test: H of group 1, element 8: +Inf is not finite":                  func(p *layer.Problem) { p.Moments.H[1].Data[8] = inf },
		"layer test: G of group 0, element 35: NaN is not finite":                  func(p *layer.Problem) { p.Moments.G[0].Data[35] = nan },
		"layer test: H of group 0, element 7: -1 on the diagonal of a Gram matrix": func(p *layer.Problem) { p.Moments.H[0].Data[7] = -1 },
		"layer test: Σx, element 3: NaN is not finite":                             func(p *layer.Problem) { p.Moments.SumX[3] = nan },
		"layer test: Σx̃: 2 values, want 12":                                       func(p *layer.Problem) { p.Moments.SumXt = p.Moments.SumXt[:2] },
		"layer test: target energy, element 2: +Inf is not finite":                 func(p *layer.Problem) { p.Energy()[2] = inf },
		"layer test: H: 1 matrices for 2 groups":                                   func(p *layer.Problem) { p.Moments.H = p.Moments.H[:1] },
		"layer test: moments: they sum 0 rows, want at least one":                  func(p *layer.Problem) { p.Moments.Rows = 0 },
		"layer test: H of group 0: 5×6 matrix with stride 6 and 36 values, want 6×6": func(p *layer.Problem) {
			p.Moments.H[0].Rows = 5
		},
		"layer test: scale type: I8, want F32, F16, BF16 or F64":                           func(p *layer.Problem) { p.ScaleType = dtype.I8 },
		"layer test: adaround: the method needs calibration moments, the problem has none": func(p *layer.Problem) { p.Moments = nil },
		"layer test: moments: too large: float64 overflows": func(p *layer.Problem) {
			for i := range p.Energy() {
				p.Energy()[i] = math.MaxFloat64
			}
		},
	}
	for want, spoil := range cases {
		p := good()
		spoil(p)
		_, err := Solve(context.Background(), nil, p, quick(Options{Method: AdaRound, Bits: 4, BiasCorrection: true}))
		if err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
		var input *layer.InputError
		if !errors.As(err, &input) && !errors.Is(err, ErrNoMoments) {
			t.Errorf("%v is not typed", err)
		}
	}
	p := good()
	p.Moments.Inputs = 7
	if _, err := Solve(context.Background(), nil, p, Options{Method: Nearest, Bits: 4}); err == nil {
		t.Error("ill-formed problem accepted")
	}
	p = good()
	p.Moments = nil
	s := solve(t, p, Options{Method: Nearest, Bits: 4})
	if s.Errors != (layer.Errors{}) || s.Bias != nil {
		t.Errorf("errors without moments: %+v", s.Errors)
	}
}

func TestOptions(t *testing.T) {
	good := Options{Method: AdaRound, Bits: 4}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	resolved := good.WithDefaults()
	if resolved != resolved.WithDefaults() || resolved.Range != MSE || resolved.Granularity != layer.PerChannel ||
		resolved.Damping != DefaultDamping || resolved.AdaRound != defaultAdaRound {
		t.Errorf("resolved: %+v", resolved)
	}
	if o := (Options{Method: Nearest, Bits: 4}).WithDefaults(); o.NeedsMoments() || o.Damping != 0 || o.AdaRound != (AdaRoundOptions{}) {
		t.Errorf("nearest resolved: %+v", o)
	}
	for _, o := range []Options{{Method: GPTQ}, {Method: AdaRound}, {Method: Nearest, Align: true}, {Method: Nearest, BiasCorrection: true}} {
		if !o.NeedsMoments() {
			t.Errorf("%+v needs no moments", o)
		}
	}
	bad := map[string]func(o *Options){
		"Method":                func(o *Options) { o.Method = "awq" },
		"Bits":                  func(o *Options) { o.Bits = 9 },
		"Granularity":           func(o *Options) { o.Granularity = "row" },
		"GroupSize":             func(o *Options) { o.Granularity = layer.PerGroup },
		"Range":                 func(o *Options) { o.Range = "max" },
		"Damping":               func(o *Options) { o.Damping = -1 },
		"ActOrder":              func(o *Options) { o.ActOrder = true },
		"AdaRound":              func(o *Options) { o.Method = GPTQ; o.AdaRound.Steps = 3 },
		"AdaRound.Steps":        func(o *Options) { o.AdaRound.Steps = -1 },
		"AdaRound.LearningRate": func(o *Options) { o.AdaRound.LearningRate = math.NaN() },
		"AdaRound.Lambda":       func(o *Options) { o.AdaRound.Lambda = math.Inf(1) },
		"AdaRound.Warmup":       func(o *Options) { o.AdaRound.Warmup = 1 },
		"AdaRound.BetaStart":    func(o *Options) { o.AdaRound.BetaStart = 1.5 },
		"AdaRound.BetaEnd":      func(o *Options) { o.AdaRound.BetaEnd = 0.5 },
	}
	for field, spoil := range bad {
		o := good
		spoil(&o)
		var e *OptionError
		if err := o.Check(); !errors.As(err, &e) || e.Field != field {
			t.Errorf("%s: %v", field, err)
		}
		if _, err := Solve(context.Background(), nil, newProblem(2, 2, 1), o); !errors.As(err, &e) {
			t.Errorf("%s: Solve returns %v", field, err)
		}
	}
	o := Options{Method: Nearest, Bits: 4, GroupSize: 32}
	if err := o.Check(); err == nil {
		t.Error("a group size without granularity group has no effect and was accepted")
	}
	o = Options{Method: Nearest, Bits: 4, Damping: 0.1}
	if err := o.Check(); err == nil {
		t.Error("damping without effect was accepted")
	}
}

// TestProblemIsReadOnly: Solve changes nothing of the problem, and a weight with
// a stride is read as it should be.
func TestProblemIsReadOnly(t *testing.T) {
	d := newData(13, shape{out: 4, in: 12, groups: 2, samples: 30, mismatch: 0.1})
	encode := func() []byte { return fmt.Appendf(nil, "%v %v", *d.prob, *d.prob.Moments) }
	before := encode()
	for _, method := range methods {
		o := quick(Options{Method: method, Bits: 3, Align: true, BiasCorrection: true})
		want := solve(t, d.prob, o)
		if !bytes.Equal(encode(), before) {
			t.Fatalf("%s changed the problem", method)
		}
		wide := *d.prob
		wide.Weight.Stride = 15
		wide.Weight.Data = make([]float32, 4*15)
		fill32(wide.Weight.Data, float32(math.NaN()))
		for r := range 4 {
			copy(rowOf32(wide.Weight, r), rowOf32(d.prob.Weight, r))
		}
		if !reflect.DeepEqual(solve(t, &wide, o), want) {
			t.Errorf("%s: the stride changes the solution", method)
		}
	}
}

func TestCancelled(t *testing.T) {
	d := newData(14, shape{out: 64, in: 256, groups: 1, samples: 20, mismatch: 0.1})
	for _, method := range methods {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := Solve(ctx, pool.New(2), d.prob, Options{Method: method, Bits: 4, Align: true}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", method, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	o := Options{Method: AdaRound, Bits: 4, AdaRound: AdaRoundOptions{Steps: 1e6, Lambda: 1e-6}}
	_, err := Solve(ctx, pool.New(2), d.prob, o)
	if late := time.Since(start) - 100*time.Millisecond; !errors.Is(err, context.DeadlineExceeded) || late > time.Second {
		t.Errorf("%v, %v after the deadline", err, late)
	}
}

func fill32(a []float32, v float32) {
	for i := range a {
		a[i] = v
	}
}

func scale32(a []float32, by float32) {
	for i := range a {
		a[i] *= by
	}
}

func scaleInput(d data, j int, by float64) {
	for _, x := range []blas64.General{d.x[0], d.xt[0]} {
		for r := range x.Rows {
			x.Data[r*x.Stride+j] *= by
		}
	}
}

func zeroInput(d data, j int) { scaleInput(d, j, 0) }
