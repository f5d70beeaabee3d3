package quantize

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/mat"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// everyGrid calls f with grids of all formats, shapes and searches crossed. The
// method is left open.
func everyGrid(f func(name string, o Options)) {
	for _, o := range []Options{
		{Bits: 3}, {Bits: 4, Symmetric: true}, {Bits: 2, PowerOfTwo: true}, {Bits: 8}, {Format: layer.FP8},
	} {
		for _, granularity := range []layer.Granularity{layer.PerTensor, layer.PerChannel, layer.PerGroup} {
			for _, search := range []Range{MinMax, MSE} {
				if o.Granularity, o.GroupSize, o.Range = granularity, 0, search; granularity == layer.PerGroup {
					o.GroupSize = 8
				}
				f(fmt.Sprintf("%+v", o), o)
			}
		}
	}
	for _, o := range []Options{{Format: layer.NVFP4}, {Format: layer.MXFP4}} {
		for _, search := range []Range{MinMax, MSE} {
			o.Range = search
			f(fmt.Sprintf("%+v", o), o)
		}
	}
}

// on returns the options with a method, and false where it cannot have them.
func (o Options) on(method Method) (Options, bool) {
	o.Method, o.Align = method, o.Align || method == Qronos
	return quick(o), o.Check() == nil
}

// diagonalMoments are those of uncorrelated inputs of unequal size.
func diagonalMoments(d data) {
	m := d.prob.Moments
	for g := range m.H {
		clear(m.H[g].Data)
		for i := range m.Inputs {
			m.H[g].Data[i*(m.Inputs+1)] = math.Exp(float64((3*i+g)%7) - 3)
		}
	}
}

// TestNearestWithoutCorrelation: with diagonal H, RTN = GPFQ = GPTQ = Qronos =
// AdaRound on every grid and in groups of a convolution, and Best where it has
// no grids of its own.
func TestNearestWithoutCorrelation(t *testing.T) {
	for _, s := range []shape{{out: 6, in: 64, groups: 1, samples: 9}, {out: 8, in: 32, groups: 4, samples: 9}} {
		d := newData(41, s)
		diagonalMoments(d)
		everyGrid(func(name string, o Options) {
			o.Method = Nearest
			want := solve(t, d.prob, o)
			for _, method := range []Method{GPFQ, GPTQ, Qronos, AdaRound, Best} {
				m, ok := o.on(method)
				if !ok || method == Best && o.Granularity != layer.PerTensor {
					continue
				}
				if got := solve(t, d.prob, m); !slices.Equal(got.Codes, want.Codes) || !reflect.DeepEqual(got.Grid, want.Grid) {
					t.Errorf("%v, %s: %s differs from nearest", s, name, method)
				}
			}
		})
	}
}

// TestBetaRecursion: for H = ρ^|i−j| GPFQ and GPTQ are both u ← ρu + w,
// q = Q(u), u ← u − q, whatever ρ and the grid, across blocks.
func TestBetaRecursion(t *testing.T) {
	const n = 290
	rng := rand.New(rand.NewPCG(42, 1))
	for _, rho := range []float64{-0.9, -0.4, 0, 0.3, 0.6, 0.95} {
		h, w := linalg.NewGeneral(n, n), linalg.NewGeneral(3, n)
		for i := range n {
			for j := range n {
				h.Data[i*n+j] = math.Pow(rho, math.Abs(float64(i-j)))
			}
		}
		for i := range w.Data {
			w.Data[i] = 2 * rng.NormFloat64()
		}
		grid := unitGrid(3, 5)
		grid.Symmetric, grid.Scales, grid.Zeros = false, []float32{1, 0.25, 0.6}, []int8{0, 3, -5}
		codes, _ := follow(t, h, blas64.General{}, w, &grid, nil, Options{Method: GPFQ, Bits: 5}.rounding())
		if again := gptqOnGrid(t, h, w, &grid, nil); !slices.Equal(codes, again) {
			t.Errorf("ρ = %v: GPFQ and GPTQ differ", rho)
		}
		for r := range 3 {
			u, s := 0.0, stepAt(&grid, r)
			for i, v := range linalg.Row(w, r) {
				u = rho*u + v
				want := s.code(u, -16, 15)
				if int(codes[r*n+i]) != want {
					t.Fatalf("ρ = %v, row %d, input %d: code %d, want %d", rho, r, i, codes[r*n+i], want)
				}
				u -= float64(s.value(want))
			}
		}
	}
}

// TestSigmaDelta: inputs that are all alike make GPFQ first-order ΣΔ, whose error
// sums stay below half a step; through Solve, on the grids that it finds.
func TestSigmaDelta(t *testing.T) {
	const n = 200
	d := newData(43, shape{out: 5, in: n, groups: 1, samples: 4})
	fill(d.x[0].Data, 0.5)
	d.setMoments()
	for _, o := range []Options{
		{Method: GPFQ, Bits: 4},
		{Method: GPFQ, Bits: 3, Symmetric: true, Range: MinMax},
		{Method: GPFQ, Bits: 4, Granularity: layer.PerTensor},
		{Method: GPFQ, Bits: 4, Alphabet: AlphabetGPFQ},
	} {
		s := solve(t, d.prob, o)
		lo, hi := s.Grid.Range()
		if o.Alphabet != "" {
			lo, hi = -8, 8
		}
		for r := range 5 {
			u, st := 0.0, stepAt(&s.Grid, s.Grid.Index(r, 0, n))
			for i, w := range rowOf32(d.prob.Weight, r) {
				u += float64(w)
				code := st.code(u, lo, hi)
				if int(s.Codes[r*n+i]) != code {
					t.Fatalf("%+v, row %d, input %d: code %d, want %d", o, r, i, s.Codes[r*n+i], code)
				}
				u -= float64(st.value(code))
				clipped := code == lo || code == hi
				if !clipped && math.Abs(u) > float64(st.scale)/2*(1+1e-6) {
					t.Fatalf("%+v, row %d, input %d: the errors sum to %v on steps of %v", o, r, i, u, st.scale)
				}
			}
		}
	}
}

func fill(a []float64, v float64) {
	for i := range a {
		a[i] = v
	}
}

// TestOptimumOfThree: the best codes of the example on which GPTQ and GPFQ
// differ, (1,−1,1) with .106, by brute force.
func TestOptimumOfThree(t *testing.T) {
	h := matrix([]float64{1, .9, .5}, []float64{.9, 1, .8}, []float64{.5, .8, 1})
	w := []float64{.1, .4, .1}
	least, best := math.Inf(1), []int8(nil)
	for k := range 8 * 8 * 8 {
		codes := []int8{int8(k&7) - 4, int8(k>>3&7) - 4, int8(k>>6) - 4}
		if cost := unitCost(h, w, codes); cost < least {
			least, best = cost, codes
		}
	}
	if math.Abs(least-.106) > 1e-12 || !slices.Equal(best, []int8{1, -1, 1}) {
		t.Errorf("%v costs %v", best, least)
	}
}

// TestGPTQMatchesElimination: the blocked recursion is optimal brain
// quantization in a fixed order, which eliminates one input after the other from
// H⁻¹, and Σe² is the error; for more inputs than a block has, and any order.
func TestGPTQMatchesElimination(t *testing.T) {
	for _, n := range []int{1, 31, 33, 129, 260} {
		rng := rand.New(rand.NewPCG(uint64(n), 44))
		h, w := randomH(rng, n, n/2+1), linalg.NewGeneral(2, n)
		for i := range n {
			h.Data[i*(n+1)] += 0.1
		}
		for i := range w.Data {
			w.Data[i] = 2 * rng.NormFloat64()
		}
		for _, order := range [][]int{nil, rng.Perm(n)} {
			grid := unitGrid(2, 6)
			u, codes := reordered(h, order), make([]int8, 2*n)
			if err := linalg.InverseUpper(context.Background(), nil, u); err != nil {
				t.Fatal(err)
			}
			q := recursion{upper: u, order: order, grid: &grid, damped: make([]float64, 2)}
			rows := linalg.Clone(w)
			q.order64(rows, w)
			if err := q.run(context.Background(), rows, 0, codes); err != nil {
				t.Fatal(err)
			}
			sorted := reordered(h, order)
			for r := range 2 {
				want := eliminate(t, sorted, linalg.Row(w, r), order)
				if got := codes[r*n:][:n]; !slices.Equal(got, want) {
					t.Fatalf("%d inputs, row %d: codes %v, want %v", n, r, got, want)
				}
				if cost := unitCost(h, linalg.Row(w, r), want); math.Abs(cost-q.damped[r]) > 1e-9*cost {
					t.Errorf("%d inputs, row %d: Σe² = %v, error %v", n, r, q.damped[r], cost)
				}
			}
		}
	}
}

// eliminate rounds the inputs of a row in the given order, in which h has them.
func eliminate(t *testing.T, h blas64.General, w []float64, order []int) []int8 {
	n := len(w)
	var inverse mat.Dense
	if err := inverse.Inverse(mat.NewDense(n, n, slices.Clone(h.Data))); err != nil {
		t.Fatal(err)
	}
	a, left, codes := inverse.RawMatrix().Data, make([]float64, n), make([]int8, n)
	gram.Gather(left, w, order)
	for i := range n {
		at := i
		if order != nil {
			at = order[i]
		}
		code := min(max(math.RoundToEven(left[i]), -32), 31)
		codes[at] = int8(code)
		e := (left[i] - code) / a[i*n+i]
		for j := i + 1; j < n; j++ {
			left[j] -= e * a[i*n+j]
			f := a[j*n+i] / a[i*n+i]
			for k := i + 1; k < n; k++ {
				a[j*n+k] -= f * a[i*n+k]
			}
		}
	}
	return codes
}

// TestDampedErrorInPassing: what GPTQ sums on its way is the damped error, on all
// grids, also those found on the way, and with alignment.
func TestDampedErrorInPassing(t *testing.T) {
	d := newData(45, shape{out: 6, in: 160, groups: 2, samples: 90, mismatch: 0.2})
	for _, o := range []Options{
		{Method: GPTQ, Bits: 3},
		{Method: GPTQ, Bits: 3, Align: true, ActOrder: true},
		{Method: GPTQ, Bits: 4, Align: true, Granularity: layer.PerGroup, GroupSize: 20},
		{Method: GPTQ, Align: true, Format: layer.NVFP4},
		{Method: Qronos, Bits: 3, Align: true},
		{Method: GPTQ, Bits: 2, Align: true, BiasCorrection: true, Centre: true},
	} {
		s := factored(t, d.prob, o.WithDefaults())
		if err := s.round(context.Background()); err != nil {
			t.Fatal(err)
		}
		if (s.damped != nil) != o.Align {
			t.Fatalf("%+v: damped errors %v", o, s.damped)
		}
		for r, got := range s.damped {
			h, err := s.Grams[d.prob.Group(r)].DampedH(context.Background(), pool.New(1))
			if err != nil {
				t.Fatal(err)
			}
			row, e := make([]float32, 160), make([]float64, 160)
			s.values(r, row)
			for c := range e {
				e[c] = float64(row[c]) - s.target.Data[r*160+c]
			}
			if want := quadForm(h, e); math.Abs(got-want) > 1e-9*want {
				t.Errorf("%+v, row %d: %v, want %v", o, r, got, want)
			}
		}
	}
}

// equivariant are options of all methods for the tests of symmetry below.
func equivariant(f func(o Options)) {
	for _, method := range allMethods {
		everyGrid(func(_ string, o Options) {
			if o.Range == MSE && o.Granularity == layer.PerTensor {
				return // enough
			}
			if o, ok := o.on(method); ok {
				f(o)
			}
			if o.Align = true; method == GPFQ || method == GPTQ {
				o.ActOrder = true
				if o, ok := o.on(method); ok {
					f(o)
				}
			}
		})
	}
	for _, alphabet := range []Alphabet{AlphabetGPFQ, AlphabetTernary, AlphabetBinary} {
		for _, method := range []Method{GPFQ, SPFQ} {
			o := Options{Method: method, Alphabet: alphabet}
			if alphabet == AlphabetGPFQ {
				o.Bits = 3
			}
			f(o)
		}
	}
}

// TestScaleEquivariance: powers of two times the weights change the scales alone,
// and times the data nothing but the errors. Only HQQ's norm knows the weights'
// size, and NVFP4's local scales its own, which the global one makes up for.
func TestScaleEquivariance(t *testing.T) {
	d := newData(46, shape{out: 5, in: 32, groups: 1, samples: 40, mismatch: 0.2})
	wide := newData(46, shape{out: 5, in: 32, groups: 1, samples: 40, mismatch: 0.2})
	scale32(wide.prob.Weight.Data, 0x1p9)
	wide.setMoments()
	loud := newData(46, shape{out: 5, in: 32, groups: 1, samples: 40, mismatch: 0.2})
	scaleAll(loud, 0x1p-7)
	loud.setMoments()
	equivariant(func(o Options) {
		want := solve(t, d.prob, o)
		if o.Method != HQQ {
			got := solve(t, wide.prob, o)
			if !slices.Equal(got.Codes, want.Codes) || !slices.Equal(got.Grid.Zeros, want.Grid.Zeros) || got.Errors.Solved != want.Errors.Solved*0x1p18 {
				t.Errorf("%+v: larger weights have other codes", o)
			}
			for i, s := range got.Grid.Scales {
				if s != want.Grid.Scales[i]*0x1p9 {
					t.Errorf("%+v: scale %d is %v, was %v", o, i, s, want.Grid.Scales[i])
				}
			}
		}
		got := solve(t, loud.prob, o)
		if !slices.Equal(got.Codes, want.Codes) || !reflect.DeepEqual(got.Grid, want.Grid) || got.Errors.Solved != want.Errors.Solved*0x1p-14 {
			t.Errorf("%+v: smaller inputs give other codes", o)
		}
	})
}

// TestRowsAreIndependent: rows in another order have the same codes, and a row
// alone has those that it has among others; but for SPFQ, whose draws follow the
// row, and where rows share a step.
func TestRowsAreIndependent(t *testing.T) {
	const out, in = 6, 32
	d := newData(47, shape{out: out, in: in, groups: 1, samples: 40, mismatch: 0.2})
	d.prob.FusedMax = float64(largestOf(d.prob.Weight)) // one global scale for all parts
	turned := data{prob: newProblem(out, in, 1), x: d.x, xt: d.xt}
	turned.prob.FusedMax = d.prob.FusedMax
	for r := range out {
		copy(rowOf32(turned.prob.Weight, r), rowOf32(d.prob.Weight, out-1-r))
	}
	turned.setMoments()
	alone := data{prob: newProblem(1, in, 1), x: d.x, xt: d.xt}
	alone.prob.FusedMax = d.prob.FusedMax
	copy(alone.prob.Weight.Data, rowOf32(d.prob.Weight, 2))
	alone.setMoments()
	equivariant(func(o Options) {
		if o.Method == SPFQ {
			return
		}
		want, got := solve(t, d.prob, o), solve(t, turned.prob, o)
		for r := range out {
			if !slices.Equal(got.Codes[r*in:][:in], want.Codes[(out-1-r)*in:][:in]) {
				t.Errorf("%+v: row %d differs where rows are turned", o, r)
			}
		}
		if want.Grid.Granularity == layer.PerTensor {
			return
		}
		if got := solve(t, alone.prob, o); !slices.Equal(got.Codes, want.Codes[2*in:][:in]) {
			t.Errorf("%+v: a row alone differs", o)
		}
	})
}

// TestInputsPermute: with their groups kept together, inputs in another order
// have the same codes by methods that have no order or one that follows H.
func TestInputsPermute(t *testing.T) {
	const out, in = 5, 32
	d := newData(48, shape{out: out, in: in, groups: 1, samples: 60, mismatch: 0.2})
	rng := rand.New(rand.NewPCG(48, 2))
	within, free := make([]int, 0, in), rng.Perm(in)
	for from := 0; from < in; from += 8 {
		for _, i := range rng.Perm(8) {
			within = append(within, from+i)
		}
	}
	equivariant(func(o Options) {
		switch o.Method {
		case Best, SPFQ:
			return // descent goes by the inputs' order, draws follow it
		case GPTQ, GPFQ, Qronos:
			o.ActOrder = true
		}
		order := free
		if o.Format.GroupSize() > 0 {
			return
		} else if o.GroupSize > 0 {
			order = within
		}
		want, got := solve(t, d.prob, o), solve(t, permuteData(d, order).prob, o)
		for r := range out {
			for i, c := range order {
				if got.Codes[r*in+i] != want.Codes[r*in+c] {
					t.Fatalf("%+v: row %d, input %d differs", o, r, c)
				}
			}
		}
	})
}

// TestSigns: the negative weight has the negative codes on grids that are the
// same below and above 0.
func TestSigns(t *testing.T) {
	d := newData(49, shape{out: 5, in: 32, groups: 1, samples: 60, mismatch: 0.2})
	opposite := newData(49, shape{out: 5, in: 32, groups: 1, samples: 60, mismatch: 0.2})
	scale32(opposite.prob.Weight.Data, -1)
	equivariant(func(o Options) {
		if o.Format == layer.Integer && o.Alphabet == "" || o.Method == SPFQ || o.Method == AdaRound {
			return // AdaRound may raise a weight that is a level already, never lower it
		}
		want, got := solve(t, d.prob, o), solve(t, opposite.prob, o)
		for i, c := range want.Codes {
			if got.Codes[i] != -c {
				t.Fatalf("%+v: code %d is %d, of the other sign %d", o, i, got.Codes[i], c)
			}
		}
	})
}

// TestOrderingsByBruteForce: over 200 random layers, on one grid and against the
// best of all up/down choices, the means are nearest > GPFQ > GPTQ > AdaRound ≥
// up/down, AdaRound is within 5 % of it, and Best, which has grids of its own,
// is below AdaRound.
func TestOrderingsByBruteForce(t *testing.T) {
	const trials, out = 200, 2
	sums, notWorse := map[string]float64{}, 0
	for seed := range uint64(trials) {
		in := 6 + 2*int(seed%5) // 6 … 14
		d := newData(seed, shape{out: out, in: in, groups: 1, samples: 4 * in})
		d.prob.ScaleType = dtype.F32
		relative := func(o Options) (*layer.Solution, float64) {
			s := solve(t, d.prob, o)
			return s, s.Errors.Relative()
		}
		o := Options{Method: Nearest, Bits: 3, Range: MSE}
		nearest, rtn := relative(o)
		o.Method = GPFQ
		_, gpfq := relative(o)
		o.Damping = 1e-9
		o.Method = GPTQ
		_, gptq := relative(o)
		o.Method, o.AdaRound.Steps = AdaRound, 100
		_, ada := relative(o)
		o.Method, o.AdaRound.Steps = Best, 0
		_, best := relative(o)
		upDown := 0.0
		for r := range out {
			upDown += bestUpDown(d.prob.Moments.H[0], float64s(rowOf32(d.prob.Weight, r)), stepAt(&nearest.Grid, r), 3)
		}
		upDown /= nearest.Errors.Energy
		if ada > rtn*(1+1e-6) || ada < upDown*(1-1e-6) {
			t.Errorf("seed %d: AdaRound %v, up/down %v, nearest %v", seed, ada, upDown, rtn)
		}
		if ada <= max(gptq, upDown)*(1+1e-6) {
			notWorse++
		}
		for name, v := range map[string]float64{"nearest": rtn, "gpfq": gpfq, "gptq": gptq, "adaround": ada, "up/down": upDown, "best": best} {
			sums[name] += v / trials
		}
	}
	t.Logf("%v; AdaRound no worse than GPTQ, where up/down is not, in %d of %d", sums, notWorse, trials)
	for _, pair := range [][2]string{{"nearest", "gpfq"}, {"gpfq", "gptq"}, {"gptq", "adaround"}, {"adaround", "best"}} {
		if !(sums[pair[0]] > sums[pair[1]]) {
			t.Errorf("%s: %v, not more than %s: %v", pair[0], sums[pair[0]], pair[1], sums[pair[1]])
		}
	}
	if sums["adaround"] > 1.05*sums["up/down"] || notWorse < trials*9/10 {
		t.Error("AdaRound is too far from the best, or too often worse than GPTQ, which is not bound to up and down")
	}
}

// bestUpDown is the least error of all choices of the values below and above
// each weight, one flip at a time in Gray's order.
func bestUpDown(h blas64.General, w []float64, s step, bits int) float64 {
	n := len(w)
	lo, hi := layer.CodeRange(bits)
	d, delta, hd := make([]float64, n), make([]float64, n), make([]float64, n)
	for j, v := range w {
		floor := int(min(max(s.floor(v), float64(lo)), float64(hi)))
		ceil := min(max(int(s.floor(v))+1, lo), hi)
		d[j], delta[j] = float64(s.value(floor))-v, float64(s.value(ceil))-float64(s.value(floor))
	}
	for i := range hd {
		for j, v := range linalg.Row(h, i) {
			hd[i] += v * d[j]
		}
	}
	cost := quadForm(h, d)
	least := cost
	for k := 1; k < 1<<n; k++ {
		j := 0
		for k>>j&1 == 0 {
			j++
		}
		cost += delta[j] * (2*hd[j] + delta[j]*h.Data[j*n+j])
		for i := range hd {
			hd[i] += delta[j] * h.Data[i*n+j]
		}
		delta[j] = -delta[j]
		least = min(least, cost)
	}
	return least
}
