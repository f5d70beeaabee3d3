package quantize

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// TestClipAgainstBruteForce: each piece of the grid has the least error, from the
// data, of all ten.
func TestClipAgainstBruteForce(t *testing.T) {
	d := newData(21, shape{out: 6, in: 16, groups: 2, samples: 40, mismatch: 0.2})
	clipped := 0
	for _, bits := range []int{2, 4} {
		for _, size := range []int{4, 16, 0} { // 16: one scale per row; 0: one for all
			for _, symmetric := range []bool{false, true} {
				o := Options{Method: Nearest, Bits: bits, Symmetric: symmetric, Range: AWQ}
				switch size {
				case 0:
					o.Granularity = layer.PerTensor
				case 4:
					o.Granularity, o.GroupSize = layer.PerGroup, size
				}
				s := solve(t, d.prob, o)
				f := integerRanger(bits, symmetric, AWQ, d.prob.ScaleType)
				pieces := piecesOf(d, size)
				if len(pieces) != len(s.Grid.Scales) {
					t.Fatalf("%d scales, want %d", len(s.Grid.Scales), len(pieces))
				}
				for at, p := range pieces {
					want, i := bestClip(d, f, p)
					if got := stepAt(&s.Grid, at); got != want {
						t.Errorf("%d bits, size %d, symmetric %v: piece %d has %v, want %v", bits, size, symmetric, at, got, want)
					}
					if i > 0 {
						clipped++
					}
				}
			}
		}
	}
	if clipped < 20 {
		t.Errorf("only %d pieces are clipped", clipped)
	}
}

// span is inputs from … from+len−1 of a row.
type span struct {
	row, from int
	w         []float32
}

func piecesOf(d data, size int) (pieces [][]span) {
	n := d.prob.Weight.Cols
	for r := range d.prob.Weight.Rows {
		row := rowOf32(d.prob.Weight, r)
		if size == 0 {
			if r == 0 {
				pieces = append(pieces, nil)
			}
			pieces[0] = append(pieces[0], span{r, 0, row})
			continue
		}
		for from := 0; from < n; from += size {
			pieces = append(pieces, []span{{r, from, row[from : from+size]}})
		}
	}
	return pieces
}

func bestClip(d data, f ranger, piece []span) (best step, at int) {
	lo, hi := 0.0, 0.0
	for _, p := range piece {
		lo, hi = min(lo, float64(slices.Min(p.w))), max(hi, float64(slices.Max(p.w)))
	}
	first, last := layer.CodeRange(f.bits)
	least := math.Inf(1)
	for i := range 10 {
		most := max(-lo, hi) * (1 - float64(i)/20)
		s := f.affine(max(lo, -most), min(hi, most))
		sum := 0.0
		for _, p := range piece {
			x := d.xt[d.prob.Group(p.row)]
			for r := range x.Rows {
				e := 0.0
				for j, w := range p.w {
					e += (float64(s.value(s.code(float64(w), first, last))) - float64(w)) * linalg.Row(x, r)[p.from+j]
				}
				sum += e * e
			}
		}
		if sum < least*(1-1e-12) {
			best, least, at = s, sum, i
		}
	}
	return best, at
}

// TestClipWithEveryMethod: hard inputs stay finite, and no data is refused.
func TestClipWithEveryMethod(t *testing.T) {
	for name, change := range map[string]func(d data){
		"plain": func(data) {}, "zero": func(d data) { clear(d.prob.Weight.Data) },
		"dead":    func(d data) { zeroInput(d, 0); zeroInput(d, 7) },
		"huge":    func(d data) { fill32(d.prob.Weight.Data, 1e30); d.prob.Weight.Data[1] *= -1 },
		"outlier": func(d data) { d.prob.Weight.Data[3] *= 1e6 },
	} {
		d := newData(22, shape{out: 5, in: 16, groups: 1, samples: 40, mismatch: 0.1})
		change(d)
		d.setMoments()
		everyOption(func(option string, o Options) {
			o.Range = AWQ
			s := solve(t, d.prob, quick(o))
			if want := d.directError(values(s)); math.Abs(s.Errors.Solved-want) > 1e-8*want+1e-12*s.Errors.Energy {
				t.Errorf("%s, %s: error %v, from the data %v", name, option, s.Errors.Solved, want)
			}
			moments := d.prob.Moments
			d.prob.Moments = nil
			if _, err := Solve(context.Background(), nil, d.prob, quick(o)); !errors.Is(err, ErrNoMoments) {
				t.Errorf("%s without moments: %v", option, err)
			}
			d.prob.Moments = moments
		})
	}
}

func TestClipSameBytes(t *testing.T) {
	d := newData(23, shape{out: 150, in: 72, groups: 2, samples: 90, mismatch: 0.1})
	everyOption(func(name string, o Options) {
		o = quick(o)
		o.Range, o.Align = AWQ, true
		want := solve(t, d.prob, o)
		for _, workers := range []int{1, 5} {
			got, err := Solve(context.Background(), pool.New(workers), d.prob, o)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %d workers change the solution: %v", name, workers, err)
			}
		}
	})
}

// TestInputScalesAgainstBruteForce computes all 20 errors from the data.
func TestInputScalesAgainstBruteForce(t *testing.T) {
	for _, mismatch := range []float64{0, 0.2} {
		for seed := range uint64(4) {
			d := newData(40+seed, shape{out: 12, in: 32, groups: 1, samples: 60, mismatch: mismatch})
			second := *d.prob
			second.Layer = "second"
			second.Weight = blas32.General{Rows: 7, Cols: 32, Stride: 32, Data: d.prob.Weight.Data[3*32 : 10*32]}
			d.prob.Moments.Energy["second"] = d.prob.Moments.Energy["test"][3:10]
			problems := []*layer.Problem{d.prob, &second}
			options := []Options{
				{Method: GPTQ, Bits: 3, Granularity: layer.PerGroup, GroupSize: 8},
				{Method: Nearest, Bits: 2, Symmetric: true},
			}
			for _, workers := range []int{1, 5} {
				got, err := InputScales(context.Background(), pool.New(workers), problems, options)
				if err != nil {
					t.Fatal(err)
				}
				want, alpha := bruteScales(t, d, problems, options)
				if !slices.EqualFunc(got, want, func(a, b float64) bool { return math.Abs(a-b) <= 1e-12*b }) {
					t.Errorf("mismatch %v, seed %d, %d workers: scales %v, want %v of α = %v", mismatch, seed, workers, got[:4], want[:4], alpha)
				}
			}
		}
	}
}

func bruteScales(t *testing.T, d data, problems []*layer.Problem, options []Options) (best []float64, alpha float64) {
	least := math.Inf(1)
	for a := range 20 {
		s := make([]float64, 32)
		for j := range s {
			square := 0.0
			for r := range d.xt[0].Rows {
				square += linalg.Row(d.xt[0], r)[j] * linalg.Row(d.xt[0], r)[j]
			}
			s[j] = max(1e-4, math.Pow(math.Sqrt(square/float64(d.xt[0].Rows)), float64(a)/20))
		}
		centre := math.Sqrt(slices.Max(s) * slices.Min(s))
		for j := range s {
			s[j] /= centre
		}
		sum := 0.0
		for i, prob := range problems {
			scaled := newProblem(prob.Weight.Rows, 32, 1)
			copy(scaled.Weight.Data, prob.Weight.Data)
			ScaleWeight(scaled.Weight, s)
			o := options[i]
			o.Method, o.Range = Nearest, MinMax
			v := values(solve(t, scaled, o))
			for k := range v {
				v[k] = float32(float64(v[k]) / s[k%32])
			}
			part := data{prob: prob, x: d.x, xt: d.xt}
			sum += part.directError(v)
		}
		if sum < least {
			best, least, alpha = s, sum, float64(a)/20
		}
	}
	return best, alpha
}

// TestScaledProblem: moments and weight scaled together have the errors of the
// data scaled.
func TestScaledProblem(t *testing.T) {
	for _, mismatch := range []float64{0, 0.2} {
		d := newData(50, shape{out: 5, in: 12, groups: 1, samples: 30, mismatch: mismatch})
		if mismatch == 0 {
			d.prob.Moments.SumX = d.prob.Moments.SumXt // as DecodeMoments has it
		}
		s := make([]float64, 12)
		for j := range s {
			s[j] = math.Exp2(float64(j%5 - 2)) // powers of two, so that nothing is rounded
		}
		ScaleMoments(d.prob.Moments, s)
		ScaleWeight(d.prob.Weight, s)
		got := d.prob.Moments
		d.x[0] = linalg.Clone(d.x[0])
		if mismatch == 0 {
			d.xt[0] = d.x[0]
		}
		for _, x := range []int{0, 1} {
			m := d.x[0]
			if x == 1 {
				if mismatch == 0 {
					break
				}
				m = d.xt[0]
			}
			for i := range m.Data {
				m.Data[i] /= s[i%12]
			}
		}
		d.setMoments()
		if want := d.prob.Moments; !reflect.DeepEqual(got, want) {
			t.Errorf("mismatch %v: moments differ", mismatch)
		}
	}
}

// TestInputScalesHelp: where few inputs are large, nearest rounding gains.
func TestInputScalesHelp(t *testing.T) {
	sum := map[bool]float64{}
	for seed := range uint64(6) {
		d := newData(60+seed, shape{out: 16, in: 64, groups: 1, samples: 100})
		o := Options{Method: Nearest, Bits: 3}
		sum[false] += solve(t, d.prob, o).Errors.Relative()
		s, err := InputScales(context.Background(), nil, []*layer.Problem{d.prob}, []Options{o})
		if err != nil {
			t.Fatal(err)
		}
		ScaleMoments(d.prob.Moments, s)
		ScaleWeight(d.prob.Weight, s)
		sum[true] += solve(t, d.prob, o).Errors.Relative()
	}
	t.Log(sum)
	if !(sum[true] < 0.95*sum[false]) {
		t.Errorf("relative errors %v with scales, %v without", sum[true], sum[false])
	}
}

func TestInputScalesRefusals(t *testing.T) {
	good := func() *layer.Problem { return newData(70, shape{out: 4, in: 6, groups: 1, samples: 20}).prob }
	for name, change := range map[string]func(p *layer.Problem, o *Options){
		"layer test: moments: AWQ's scales need them, the problem has none": func(p *layer.Problem, _ *Options) { p.Moments = nil },
		"layer test: weight, element 2: NaN is not finite":                  func(p *layer.Problem, _ *Options) { p.Weight.Data[2] = float32(math.NaN()) },
		`quantize: Bits is 1, want 2 to 8`:                                  func(_ *layer.Problem, o *Options) { o.Bits = 1 },
	} {
		p, o := good(), Options{Method: Nearest, Bits: 3}
		change(p, &o)
		if _, err := InputScales(context.Background(), nil, []*layer.Problem{p}, []Options{o}); fmt.Sprint(err) != name {
			t.Errorf("got %v\nwant %s", err, name)
		}
	}
	two := []*layer.Problem{good(), good()}
	if _, err := InputScales(context.Background(), nil, two, make([]Options, 2)); err == nil {
		t.Error("no options are accepted")
	}
	o := Options{Method: Nearest, Bits: 3}
	var bad *layer.InputError
	if _, err := InputScales(context.Background(), nil, two, []Options{o, o}); !errors.As(err, &bad) {
		t.Errorf("two moments: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := InputScales(ctx, nil, two[:1], []Options{o}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
