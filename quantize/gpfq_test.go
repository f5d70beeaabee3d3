package quantize

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// follow runs the pass on given matrices and a given grid, and returns the codes
// and Σ diag·ε². The streams are the same where g has no rows.
func follow(t *testing.T, h, g, w blas64.General, grid *layer.Grid, order []int, round rounding) ([]int8, []float64) {
	t.Helper()
	p := path{h: reordered(h, order), order: order, grid: grid, round: round, seed: 1}
	p.diag = make([]float64, h.Rows)
	for i := range p.diag {
		p.diag[i] = p.h.Data[i*h.Rows+i]
	}
	rows, carry := linalg.NewGeneral(w.Rows, w.Cols), linalg.NewGeneral(w.Rows, w.Cols)
	if g.Rows == 0 {
		for r := range w.Rows {
			gram.Gather(linalg.Row(rows, r), linalg.Row(w, r), order)
		}
	} else { // T, plainly
		g = reordered(g, order)
		for r := range w.Rows {
			sorted := make([]float64, w.Cols)
			gram.Gather(sorted, linalg.Row(w, r), order)
			for i := range w.Cols {
				for j := range i + 1 {
					carry.Data[r*w.Cols+i] += g.Data[i*w.Cols+j] * sorted[j]
				}
			}
		}
	}
	codes, sums := make([]int8, w.Rows*w.Cols), make([]float64, w.Rows)
	if err := p.run(context.Background(), rows, carry, 0, codes, sums); err != nil {
		t.Fatal(err)
	}
	return codes, sums
}

// dataForm is GPFQ as its authors write it, on the data: u ← u + w_tX_t, v =
// ⟨X̃_t,u⟩/‖X̃_t‖², u ← u − qX̃_t. It returns the codes and the last ‖u‖².
func dataForm(x, xt blas64.General, w []float64, at func(i int) step, code func(v float64, s step) int) ([]int8, float64) {
	u, codes := make([]float64, x.Rows), make([]int8, len(w))
	for i := range w {
		dot, square := 0.0, 0.0
		for r := range u {
			u[r] += w[i] * x.Data[r*x.Stride+i]
			dot += xt.Data[r*xt.Stride+i] * u[r]
			square += xt.Data[r*xt.Stride+i] * xt.Data[r*xt.Stride+i]
		}
		v := 0.0
		if square > 0 {
			v = dot / square
		}
		c := code(v, at(i))
		codes[i] = int8(c)
		for r := range u {
			u[r] -= float64(at(i).value(c)) * xt.Data[r*xt.Stride+i]
		}
	}
	sum := 0.0
	for _, v := range u {
		sum += v * v
	}
	return codes, sum
}

// TestGPFQMatchesDataForm bit for bit on small integers, whose moments are
// exact: the codes on ordinary grids and on alphabets, across blocks.
func TestGPFQMatchesDataForm(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 11))
		rows, n := 3+rng.IntN(20), 1+rng.IntN(300)
		x, xt := linalg.NewGeneral(rows, n), linalg.NewGeneral(rows, n)
		for i := range x.Data {
			x.Data[i] = float64(rng.IntN(7) - 3)
			xt.Data[i] = x.Data[i] + float64(rng.IntN(3)-1)
		}
		for r := range rows { // a dead input
			xt.Data[r*n] = 0
		}
		w := linalg.NewGeneral(2, n)
		for i := range w.Data {
			w.Data[i] = float64(rng.IntN(65)-32) / 8
		}
		grid := unitGrid(2, 4)
		grid.Scales[1] = 0.5
		for name, o := range map[string]Options{
			"grid": {Method: GPFQ, Bits: 4}, "ternary": {Method: GPFQ, Alphabet: AlphabetTernary}, "levels": {Method: GPFQ, Bits: 3, Alphabet: AlphabetGPFQ},
			"soft": {Method: GPFQ, Bits: 3, Alphabet: AlphabetGPFQ, GPFQ: GPFQOptions{C: 1, Threshold: SoftThreshold, Lambda: 0.25}},
			"hard": {Method: GPFQ, Bits: 3, Alphabet: AlphabetGPFQ, GPFQ: GPFQOptions{C: 1, Threshold: HardThreshold, Lambda: 0.3}},
		} {
			round := o.WithDefaults().rounding()
			codes, _ := follow(t, product(xt, xt), product(xt, x), w, &grid, nil, round)
			same, sums := follow(t, product(xt, xt), blas64.General{}, w, &grid, nil, round)
			for r := range 2 {
				at := func(int) step { return stepAt(&grid, r) }
				code := func(v float64, s step) int { return round.code(v, s, nil) }
				want, _ := dataForm(x, xt, linalg.Row(w, r), at, code)
				if got := codes[r*n:][:n]; !slices.Equal(got, want) {
					t.Fatalf("seed %d, %s, row %d: codes %v, want %v", seed, name, r, got, want)
				}
				want, residual := dataForm(xt, xt, linalg.Row(w, r), at, code)
				if got := same[r*n:][:n]; !slices.Equal(got, want) {
					t.Fatalf("seed %d, %s, row %d, one stream: codes %v, want %v", seed, name, r, got, want)
				}
				if residual > sums[r]*(1+1e-12) {
					t.Fatalf("seed %d, %s: residual %v is more than its bound %v", seed, name, residual, sums[r])
				}
			}
		}
	}
}

// TestGPFQSolveMatchesDataForm on random data, whose residual is the error found
// from the moments.
func TestGPFQSolveMatchesDataForm(t *testing.T) {
	for _, mismatch := range []float64{0, 0.3} {
		for _, o := range []Options{
			{Method: GPFQ, Bits: 3},
			{Method: GPFQ, Bits: 4, Symmetric: true, Granularity: layer.PerTensor},
			{Method: GPFQ, Bits: 2, Granularity: layer.PerGroup, GroupSize: 35},
			{Method: GPFQ, Bits: 3, Alphabet: AlphabetGPFQ},
			{Method: GPFQ, Alphabet: AlphabetTernary, GPFQ: GPFQOptions{C: 0.7, Quantile: 0.9}},
			{Method: GPFQ, Alphabet: AlphabetBinary, GPFQ: GPFQOptions{C: 1, Quantile: 0.5}},
			{Method: GPFQ, Bits: 3, ActOrder: true},
		} {
			d := newData(21, shape{out: 6, in: 140, groups: 2, samples: 200, mismatch: mismatch})
			s := solve(t, d.prob, o)
			residual := 0.0
			for r := range 6 {
				g, w := d.prob.Group(r), float64s(rowOf32(d.prob.Weight, r))
				x, xt, order := d.x[g], d.xt[g], []int(nil)
				if o.ActOrder {
					order = gram.Descending(diagonal(d.prob.Moments.H[g]))
					x, xt = reorderedColumns(x, order), reorderedColumns(xt, order)
					sorted := make([]float64, len(w))
					gram.Gather(sorted, w, order)
					w = sorted
				}
				col := func(i int) int {
					if order != nil {
						return order[i]
					}
					return i
				}
				round := o.WithDefaults().rounding()
				want, sum := dataForm(x, xt, w, func(i int) step { return stepAt(&s.Grid, s.Grid.Index(r, col(i), 140)) },
					func(v float64, st step) int { return round.code(v, st, nil) })
				residual += sum
				for i, c := range want {
					if s.Codes[r*140+col(i)] != c {
						t.Fatalf("%+v, row %d: code %d is %d, want %d", o, r, i, s.Codes[r*140+col(i)], c)
					}
				}
			}
			if math.Abs(residual-s.Errors.Solved) > 1e-9*residual {
				t.Errorf("%+v: error %v, residual of the data %v", o, s.Errors.Solved, residual)
			}
			if s.Errors.Bound < s.Errors.Solved {
				t.Errorf("%+v: error %v is more than its bound %v", o, s.Errors.Solved, s.Errors.Bound)
			}
		}
	}
}

// TestAlignedGPFQMatchesDataForm: it is the data form of W̃ on X̃ alone, with the
// damping's rows √λ·I below, which is what they add to the squares.
func TestAlignedGPFQMatchesDataForm(t *testing.T) {
	const n = 140
	d := newData(35, shape{out: 6, in: n, groups: 2, samples: 200, mismatch: 0.3})
	o := Options{Method: GPFQ, Bits: 3, Align: true}.WithDefaults()
	sol, s := solve(t, d.prob, o), factored(t, d.prob, o)
	for r := range 6 {
		g := d.prob.Group(r)
		damped := linalg.NewGeneral(200+n, n)
		copy(damped.Data, d.xt[g].Data)
		for i := range n {
			damped.Data[(200+i)*n+i] = math.Sqrt(DefaultDamping * linalg.MeanDiagonal(d.prob.Moments.H[g]))
		}
		want, _ := dataForm(damped, damped, linalg.Row(s.target, r), func(int) step { return stepAt(&sol.Grid, r) },
			func(v float64, st step) int { return st.code(v, -4, 3) })
		if got := sol.Codes[r*n:][:n]; !slices.Equal(got, want) {
			t.Fatalf("row %d: codes %v, want %v", r, got, want)
		}
	}
}

func reorderedColumns(x blas64.General, order []int) blas64.General {
	y := linalg.Clone(x)
	for r := range x.Rows {
		gram.Gather(linalg.Row(y, r), linalg.Row(x, r), order)
	}
	return y
}

func TestGPFQWorkedValues(t *testing.T) {
	grid, round, none := unitGrid(1, 4), Options{Method: GPFQ, Bits: 4}.rounding(), blas64.General{}
	if got, _ := follow(t, pairH, none, pairW, &grid, nil, round); !slices.Equal(got, []int8{0, 1}) {
		t.Errorf("natural order: %v, want [0 1]", got)
	}
	if got, _ := follow(t, pairH, none, pairW, &grid, []int{1, 0}, round); !slices.Equal(got, []int8{1, 0}) {
		t.Errorf("reversed order: %v, want [1 0]", got)
	}
	h := matrix([]float64{1, .9, .5}, []float64{.9, 1, .8}, []float64{.5, .8, 1})
	w := matrix([]float64{.1, .4, .1})
	got, sums := follow(t, h, none, w, &grid, nil, round)
	if cost := unitCost(h, w.Data, got); !slices.Equal(got, []int8{0, 0, 0}) || math.Abs(cost-.326) > 1e-12 {
		t.Errorf("%v cost %v, want [0 0 0] cost .326", got, cost)
	}
	if want := .75 * roundOff * roundOff; math.Abs(sums[0]-want) > 1e-12 { // three inputs, a quarter each
		t.Errorf("bound %v, want %v", sums[0], want)
	}
}

// TestGPFQIsSigmaDelta: with H all ones, q_t = round(w_t + u), |Σ(w−q)| ≤ δ/2 at
// every input. With AR(1) it is GPTQ.
func TestGPFQIsSigmaDelta(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 11))
	const n, rho = 300, 0.7
	ones, ar := linalg.NewGeneral(n, n), linalg.NewGeneral(n, n)
	for i := range n {
		for j := range n {
			ones.Data[i*n+j] = 1
			ar.Data[i*n+j] = math.Pow(rho, math.Abs(float64(i-j)))
		}
	}
	w := linalg.NewGeneral(2, n)
	for i := range w.Data {
		w.Data[i] = 3 * rng.NormFloat64()
	}
	grid, round := unitGrid(2, 8), Options{Method: GPFQ, Bits: 8}.rounding()
	codes, _ := follow(t, ones, blas64.General{}, w, &grid, nil, round)
	for r := range 2 {
		u := 0.0
		for i, v := range linalg.Row(w, r) {
			u += v - float64(codes[r*n+i])
			if math.Abs(u) > 0.5+1e-9 {
				t.Fatalf("row %d, input %d: the sum of errors is %v", r, i, u)
			}
		}
	}
	codes, _ = follow(t, ar, blas64.General{}, w, &grid, nil, round)
	if want := gptqOnGrid(t, ar, w, &grid, nil); !slices.Equal(codes, want) {
		t.Error("AR(1): differs from GPTQ")
	}
}

// TestSPFQRounding: over many draws the mean of a level is what was rounded, its
// variance at most a quarter of the levels' distance squared.
func TestSPFQRounding(t *testing.T) {
	draw := rand.NewPCG(1, 2)
	for _, o := range []Options{{Method: SPFQ, Bits: 4}, {Method: SPFQ, Bits: 3, Alphabet: AlphabetGPFQ}, {Method: SPFQ, Alphabet: AlphabetTernary}, {Method: SPFQ, Alphabet: AlphabetBinary}} {
		round := o.WithDefaults().rounding()
		width := 1.0
		if o.Alphabet == AlphabetBinary {
			width = 2
		}
		for _, v := range []float64{0, 0.1, -0.37, 0.5, 0.999, -0.5} {
			const trials = 20000
			s := step{scale: 0.5}
			sum, squares := 0.0, 0.0
			for range trials {
				q := float64(s.value(round.code(v*0.5, s, draw))) / 0.5
				if math.Abs(q-v) > width {
					t.Fatalf("%+v: %v becomes %v", o, v, q)
				}
				sum += q
				squares += (q - v) * (q - v)
			}
			if mean := sum / trials; math.Abs(mean-v) > 5*width/2/math.Sqrt(trials) {
				t.Errorf("%+v: mean of %v is %v", o, v, mean)
			}
			if variance := squares / trials; variance > width*width/4*1.03 {
				t.Errorf("%+v: variance of %v is %v", o, v, variance)
			}
		}
	}
}

// TestSPFQSeeds: the draws depend on the seed, the layer's name and the row.
func TestSPFQSeeds(t *testing.T) {
	d := newData(22, shape{out: 40, in: 30, groups: 1, samples: 60, mismatch: 0.1})
	for r := range 40 { // rows alike, so that only the draws differ
		copy(rowOf32(d.prob.Weight, r), rowOf32(d.prob.Weight, 0))
	}
	d.setMoments()
	o := Options{Method: SPFQ, Bits: 3, Align: true}
	one := solve(t, d.prob, o)
	for r := range 40 {
		for q := range r {
			if slices.Equal(one.Codes[r*30:][:30], one.Codes[q*30:][:30]) {
				t.Errorf("rows %d and %d draw alike", q, r)
			}
		}
	}
	if !reflect.DeepEqual(solve(t, d.prob, o), one) {
		t.Error("the same seed gives other codes")
	}
	o.GPFQ.Seed = 1
	if slices.Equal(solve(t, d.prob, o).Codes, one.Codes) {
		t.Error("the seed changes nothing")
	}
	o.GPFQ.Seed = 0
	d.prob.Moments.Energy["other"] = d.prob.Energy()
	d.prob.Layer = "other"
	if slices.Equal(solve(t, d.prob, o).Codes, one.Codes) {
		t.Error("the layer's name changes nothing")
	}
}

// TestSPFQMean: the mean of many solutions' errors is at most a quarter of a
// step squared times the trace of H, the theory's expectation.
func TestSPFQMean(t *testing.T) {
	d := newData(23, shape{out: 2, in: 24, groups: 1, samples: 60})
	fill32(d.prob.Weight.Data, 0.3)
	d.setMoments()
	o := Options{Method: SPFQ, Bits: 6, Alphabet: AlphabetGPFQ, GPFQ: GPFQOptions{C: 8}} // wide: nothing clips
	mean := 0.0
	for seed := range uint64(300) {
		o.GPFQ.Seed = seed + 1
		s := solve(t, d.prob, o)
		mean += s.Errors.Solved / 300
		if s.Errors.Solved > s.Errors.Bound {
			t.Fatalf("error %v, bound %v", s.Errors.Solved, s.Errors.Bound)
		}
		if expected := s.Errors.Bound / 4; seed == 299 && mean > expected {
			t.Errorf("mean error %v, more than %v", mean, expected)
		}
	}
}

// TestAlphabets: levels, step and stored bits.
func TestAlphabets(t *testing.T) {
	d := newData(24, shape{out: 5, in: 40, groups: 1, samples: 60, mismatch: 0.1})
	rad := 0.0
	for r := range 5 {
		rad += absQuantile(float64s(rowOf32(d.prob.Weight, r)), 1) / 5
	}
	for bits := 2; bits <= 7; bits++ {
		for _, method := range []Method{GPFQ, SPFQ} {
			o := Options{Method: method, Bits: bits, Alphabet: AlphabetGPFQ, GPFQ: GPFQOptions{C: 1.3}}
			s := solve(t, d.prob, o)
			m := 1 << (bits - 1)
			if got, want := float64(s.Grid.Scales[0])*float64(m), 1.3*rad; math.Abs(got-want) > 1e-6*want {
				t.Errorf("%d bits: top symbol %v, want %v", bits, got, want)
			}
			if s.Grid.Bits != bits+1 || o.StoredBits() != bits+1 || len(s.Grid.Scales) != 1 || !s.Grid.Symmetric {
				t.Errorf("%d bits: %+v", bits, s.Grid)
			}
			for _, c := range s.Codes {
				if int(c) < -m || int(c) > m {
					t.Fatalf("%d bits: code %d", bits, c)
				}
			}
		}
	}
	for _, method := range []Method{GPFQ, SPFQ} {
		for alphabet, levels := range map[Alphabet][]int8{AlphabetTernary: {-1, 0, 1}, AlphabetBinary: {-1, 1}} {
			s := solve(t, d.prob, Options{Method: method, Alphabet: alphabet, GPFQ: GPFQOptions{Quantile: 0.5}})
			used := slices.Clone(s.Codes)
			slices.Sort(used)
			if used = slices.Compact(used); !slices.Equal(used, levels) || s.Grid.Bits != 2 {
				t.Errorf("%s, %s: codes %v of %d bits", method, alphabet, used, s.Grid.Bits)
			}
		}
	}
	for p, want := range map[float64]float64{1: 4, 0.5: 2.5, 0.25: 1.75, 1e-9: 1} {
		if got := absQuantile([]float64{-4, 1, -2, 3}, p); math.Abs(got-want) > 1e-6 {
			t.Errorf("quantile %v is %v, want %v", p, got, want)
		}
	}
}

// TestThresholds: a vanishing λ is plain GPFQ, a larger one gives more zeros,
// and the hard one's top symbol stays C·rad.
func TestThresholds(t *testing.T) {
	d := newData(25, shape{out: 6, in: 60, groups: 1, samples: 90, mismatch: 0.1})
	plain := solve(t, d.prob, Options{Method: GPFQ, Bits: 4, Alphabet: AlphabetGPFQ})
	for _, threshold := range []Threshold{SoftThreshold, HardThreshold} {
		zeros := zeroCodes(plain)
		for _, lambda := range []float64{1e-12, 0.1, 0.3} {
			o := Options{Method: GPFQ, Bits: 4, Alphabet: AlphabetGPFQ, GPFQ: GPFQOptions{Threshold: threshold, Lambda: lambda}}
			s := solve(t, d.prob, o)
			if lambda < 1e-9 {
				if !slices.Equal(s.Codes, plain.Codes) || !reflect.DeepEqual(s.Grid, plain.Grid) {
					t.Errorf("%s: λ = 0 is not plain GPFQ", threshold)
				}
				continue
			}
			if n := zeroCodes(s); n <= zeros {
				t.Errorf("%s: λ = %v leaves %d zeros, less left %d", threshold, lambda, n, zeros)
			} else {
				zeros = n
			}
			if threshold != HardThreshold {
				continue
			}
			round := o.WithDefaults().rounding()
			top, want := float64(s.Grid.Scales[0])*float64(round.hi), float64(plain.Grid.Scales[0])*8
			if math.Abs(top-want) > 1e-6*want || round.hi-round.hard != 8 || s.Grid.Bits != o.StoredBits() {
				t.Errorf("λ = %v: top symbol %v, want %v; %+v", lambda, top, want, round)
			}
			if moved := float64(s.Grid.Scales[0]) * float64(round.hard) / (want / 1.16); math.Abs(moved-lambda) > float64(s.Grid.Scales[0])/(want/1.16)/2*1.01 {
				t.Errorf("λ = %v is moved to %v, more than half a step", lambda, moved)
			}
			for _, c := range s.Codes {
				if size := max(c, -c); size > 0 && int(size) < round.hard {
					t.Fatalf("λ = %v: code %d below the threshold %d", lambda, c, round.hard)
				}
			}
		}
	}
	r := rounding{alphabet: AlphabetGPFQ, lo: -7, hi: 7, hard: 3}
	for v, want := range map[float64]int{0: 0, 3: 0, -3: 0, 3.2: 3, 3.5: 4, -4.4: -4, 6.5: 7, 100: 7, -100: -7} {
		if got := r.code(v, step{scale: 1}, nil); got != want {
			t.Errorf("hard: code of %v is %d, want %d", v, got, want)
		}
	}
	r = rounding{alphabet: AlphabetGPFQ, lo: -4, hi: 4, soft: 0.75}
	for v, want := range map[float64]int{0: 0, 0.7: 0, 1.2: 0, 1.25: 1, -1.25: -1, -3.3: -3, 9: 4} {
		if got := r.code(v, step{scale: 1}, nil); got != want {
			t.Errorf("soft: code of %v is %d, want %d", v, got, want)
		}
	}
}

func zeroCodes(s *layer.Solution) int {
	n := 0
	for _, c := range s.Codes {
		if c == 0 {
			n++
		}
	}
	return n
}

// TestQronos: one stream makes it GPTQ; with two, the first input is the best
// level while the later weights stay, and the later ones are GPTQ's on what is
// left: their least-squares weights given the first.
func TestQronos(t *testing.T) {
	for _, actOrder := range []bool{false, true} {
		d := newData(26, shape{out: 4, in: 50, groups: 2, samples: 80})
		o := Options{Method: Qronos, Bits: 3, Align: true, ActOrder: actOrder}
		got := solve(t, d.prob, o)
		o.Method = GPTQ
		want := solve(t, d.prob, o)
		if !slices.Equal(got.Codes, want.Codes) {
			t.Error("one stream: differs from GPTQ")
		}

		d = newData(27, shape{out: 4, in: 50, groups: 2, samples: 80, mismatch: 0.3})
		o.Method = Qronos
		got = solve(t, d.prob, o)
		for r := range 4 {
			g := d.prob.Group(r)
			h, cross := linalg.Clone(d.prob.Moments.H[g]), linalg.Clone(d.prob.Moments.G[g])
			lambda := DefaultDamping * linalg.MeanDiagonal(h)
			for i := range 50 {
				h.Data[i*51] += lambda
				cross.Data[i*51] += lambda
			}
			order := []int(nil)
			if actOrder {
				order = gram.Descending(diagonal(h))
			}
			h, cross = reordered(h, order), reordered(cross, order)
			w, codes := make([]float64, 50), make([]int8, 50)
			gram.Gather(w, float64s(rowOf32(d.prob.Weight, r)), order)
			for i := range codes {
				codes[i] = got.Codes[r*50+i]
				if order != nil {
					codes[i] = got.Codes[r*50+order[i]]
				}
			}
			s := stepAt(&got.Grid, r)
			v := 0.0
			for j := range w {
				v += cross.Data[j] * w[j]
				if j > 0 {
					v -= h.Data[j] * w[j]
				}
			}
			first := s.code(v/h.Data[0], -4, 3)
			if int(codes[0]) != first {
				t.Fatalf("row %d: first code %d, want %d", r, codes[0], first)
			}
			// The rest, explicitly: H₁v = (G+λI)₁w − H₁₀q₀, then GPTQ.
			q0 := float64(s.value(first))
			rest, h1 := linalg.NewGeneral(1, 49), linalg.NewGeneral(49, 49)
			for i := range 49 {
				copy(linalg.Row(h1, i), h.Data[(i+1)*50+1:][:49])
				rest.Data[i] = -h.Data[(i+1)*50] * q0
				for j := range w {
					rest.Data[i] += cross.Data[(i+1)*50+j] * w[j]
				}
			}
			l := linalg.Clone(h1)
			if err := linalg.Cholesky(context.Background(), nil, l); err != nil {
				t.Fatal(err)
			}
			if err := linalg.SolveRows(context.Background(), nil, l, rest); err != nil {
				t.Fatal(err)
			}
			grid := layer.Grid{Bits: 3, Granularity: layer.PerChannel, ScaleType: dtype.F32, Scales: got.Grid.Scales[r : r+1], Zeros: got.Grid.Zeros[r : r+1]}
			if want := gptqOnGrid(t, h1, rest, &grid, nil); !slices.Equal(codes[1:], want) {
				t.Errorf("row %d: later codes %v, want %v", r, codes[1:], want)
			}
		}
	}
}

// pathOptions calls f with options of GPFQ, SPFQ and Qronos crossed.
func pathOptions(f func(name string, o Options)) {
	for _, align := range []bool{false, true} {
		for _, actOrder := range []bool{false, true} {
			for _, o := range []Options{
				{Method: GPFQ, Bits: 3},
				{Method: GPFQ, Bits: 4, Range: MinMax, Symmetric: true},
				{Method: GPFQ, Bits: 2, Granularity: layer.PerTensor},
				{Method: GPFQ, Bits: 3, Granularity: layer.PerGroup, GroupSize: 4},
				{Method: SPFQ, Bits: 3},
				{Method: SPFQ, Bits: 8, Granularity: layer.PerGroup, GroupSize: 4},
				{Method: GPFQ, Bits: 4, Alphabet: AlphabetGPFQ},
				{Method: SPFQ, Bits: 7, Alphabet: AlphabetGPFQ},
				{Method: GPFQ, Alphabet: AlphabetTernary},
				{Method: SPFQ, Alphabet: AlphabetBinary},
				{Method: GPFQ, Alphabet: AlphabetBinary, GPFQ: GPFQOptions{C: 2, Quantile: 0.5}},
				{Method: GPFQ, Bits: 4, Alphabet: AlphabetGPFQ, GPFQ: GPFQOptions{Threshold: HardThreshold, Lambda: 0.4}},
				{Method: GPFQ, Bits: 4, Alphabet: AlphabetGPFQ, GPFQ: GPFQOptions{Threshold: SoftThreshold, Lambda: 0.4}},
				{Method: Qronos, Bits: 3},
				{Method: Qronos, Bits: 4, Granularity: layer.PerGroup, GroupSize: 4},
			} {
				if o.Align, o.ActOrder = align, actOrder; o.Method == Qronos && !align {
					continue
				}
				f(fmt.Sprintf("%+v", o), o)
			}
		}
	}
}

// TestPathHardInputs: whatever the weights and moments, what is solved is finite
// and on its grid, its error is the data's, and the bound holds.
func TestPathHardInputs(t *testing.T) {
	cases := map[string]func(d data){
		"plain":         func(data) {},
		"zero weights":  func(d data) { clear(d.prob.Weight.Data) },
		"zero rows":     func(d data) { clear(d.prob.Weight.Data[:16]) },
		"constant rows": func(d data) { fill32(d.prob.Weight.Data, -0.7) },
		"outliers":      func(d data) { d.prob.Weight.Data[0] *= 1e6; d.prob.Weight.Data[len(d.prob.Weight.Data)-1] = -1e5 },
		"denormals":     func(d data) { fill32(d.prob.Weight.Data, 0x1p-149); d.prob.Weight.Data[0] = -0x1p-148 },
		"huge":          func(d data) { fill32(d.prob.Weight.Data, math.MaxFloat32); d.prob.Weight.Data[0] *= -1 },
		"dead inputs":   func(d data) { zeroInput(d, 0); zeroInput(d, d.prob.Weight.Cols-1) },
		"near-dead":     func(d data) { scaleInput(d, 0, 1e-12); scaleInput(d, d.prob.Weight.Cols-1, 1e-170) },
		"large inputs":  func(d data) { scaleAll(d, 1e60) },
		"small inputs":  func(d data) { scaleAll(d, 1e-100) },
		"all dead":      func(d data) { scaleAll(d, 0) },
		"rank one": func(d data) {
			for g := range d.x {
				d.x[g], d.xt[g] = linalg.Rows(d.x[g], 0, 1), linalg.Rows(d.xt[g], 0, 1)
			}
		},
		"F16": func(d data) { d.prob.ScaleType = dtype.F16; scale32(d.prob.Weight.Data, 1e-7) },
	}
	for name, change := range cases {
		for i, s := range []shape{
			{5, 16, 1, 40, 0.1},
			{4, 16, 2, 40, 0},
			{1, 1, 1, 3, 0.1},
			{1, 40, 1, 50, 0.1},
			{40, 1, 1, 50, 0.1},
			{3, 70, 1, 20, 0.2},
			{130, 3, 1, 20, 0.2},
			{4, 1, 4, 9, 0.1},
			{6, 9, 6, 64, 0.1},
		} {
			d := newData(30, s)
			if name == "zero rows" && s.in != 16 {
				continue
			}
			change(d)
			d.setMoments()
			live, dead := 0, 0
			for _, h := range d.prob.Moments.H {
				if linalg.MeanDiagonal(h) == 0 {
					dead++
				} else {
					live++
				}
			}
			pathOptions(func(option string, o Options) {
				if i >= 2 && o.ActOrder && o.Align {
					return // enough
				}
				sol := solve(t, d.prob, o)
				e := sol.Errors
				what := fmt.Sprintf("%s, %v, %s", name, s, option)
				if !finite(e.Solved) || e.Solved < 0 || (e.Bound > 0) && e.Solved > e.Bound*(1+1e-9)+1e-12*e.Energy {
					t.Errorf("%s: errors %+v", what, e)
				}
				if e.Bound == 0 && o.followsPath() && live > 0 {
					t.Errorf("%s: no bound", what)
				}
				if (dead > 0) != (len(fallbacksWithoutGroups(sol)) > 0) {
					t.Errorf("%s: fallbacks %v", what, sol.Fallbacks)
				}
				if name == "dead inputs" && o.followsPath() && o.Alphabet != AlphabetBinary {
					for r := range sol.Rows / d.prob.Groups { // of group 0, whose inputs are dead
						if v := sol.Grid.Zero(sol.Grid.Index(r, 0, sol.Cols)); int(sol.Codes[r*sol.Cols]) != v {
							t.Errorf("%s: a dead input has code %d, zero is %d", what, sol.Codes[r*sol.Cols], v)
						}
					}
				}
				if name == "zero weights" && o.Method == GPFQ && o.Alphabet != AlphabetBinary && e.Solved != 0 {
					t.Errorf("%s: error %v", what, e.Solved)
				}
			})
		}
	}
}

func fallbacksWithoutGroups(s *layer.Solution) []layer.Fallback {
	return slices.DeleteFunc(slices.Clone(s.Fallbacks), func(f layer.Fallback) bool { return f.Got == "one scale per channel" })
}

func scaleAll(d data, by float64) {
	for g := range d.x {
		for i := range d.x[g].Data {
			d.x[g].Data[i] *= by
			if &d.x[g].Data[0] != &d.xt[g].Data[0] {
				d.xt[g].Data[i] *= by
			}
		}
	}
}

// TestBoundHolds over random problems of all ranks and mismatches, and is half a
// step squared times the trace of H where nothing clips and the streams agree.
func TestBoundHolds(t *testing.T) {
	tight := 0.0
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 13))
		d := newData(seed, shape{out: 1 + rng.IntN(5), in: 1 + rng.IntN(60), groups: 1, samples: 1 + rng.IntN(80), mismatch: float64(seed%3) * 0.4})
		pathOptions(func(name string, o Options) {
			s := solve(t, d.prob, o)
			if !o.followsPath() {
				if s.Errors.Bound != 0 {
					t.Errorf("%s has a bound", name)
				}
				return
			}
			direct := d.directError(values(s))
			if direct > s.Errors.Bound*(1+1e-9) || s.Errors.Bound == 0 {
				t.Errorf("seed %d, %s: error %v, bound %v", seed, name, direct, s.Errors.Bound)
			}
			if s.Errors.Bound > 0 {
				tight = max(tight, direct/s.Errors.Bound)
			}
		})
		if seed%3 != 0 {
			continue
		}
		s := solve(t, d.prob, Options{Method: GPFQ, Bits: 7, Alphabet: AlphabetGPFQ, GPFQ: GPFQOptions{C: 20}})
		trace := float64(d.prob.Weight.Cols) * linalg.MeanDiagonal(d.prob.Moments.H[0])
		want := float64(d.prob.Weight.Rows) * math.Pow(float64(s.Grid.Scales[0])*roundOff/2, 2) * trace
		if math.Abs(s.Errors.Bound-want) > 1e-9*want {
			t.Errorf("seed %d: bound %v, want %v", seed, s.Errors.Bound, want)
		}
	}
	t.Logf("largest share of a bound: %v", tight)
	if tight < 0.5 {
		t.Error("no problem comes near its bound")
	}
}

// TestPathSameBytes for any number of workers, and whatever the row blocks.
func TestPathSameBytes(t *testing.T) {
	d := newData(31, shape{out: 70, in: 148, groups: 2, samples: 90, mismatch: 0.1})
	pathOptions(func(name string, o Options) {
		o.BiasCorrection = true
		want := solve(t, d.prob, o)
		for _, workers := range []int{2, 5} {
			got, err := Solve(context.Background(), pool.New(workers), d.prob, o)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %d workers change the solution", name, workers)
			}
		}
		mean, row := 0.0, 47
		g, v := d.prob.Group(row), values(want)[row*148:][:148]
		for i := range d.x[g].Rows {
			mean += (dot32(rowOf32(d.prob.Weight, row), linalg.Row(d.x[g], i)) - dot32(v, linalg.Row(d.xt[g], i))) / 90
		}
		if math.Abs(want.Bias[row]-mean) > 1e-9*(1+math.Abs(mean)) {
			t.Errorf("%s: bias %v, want %v", name, want.Bias[row], mean)
		}
	})
}

// TestOrthogonalColumns: without correlation GPFQ and Qronos round to nearest.
func TestOrthogonalColumns(t *testing.T) {
	d := newData(33, shape{out: 10, in: 200, groups: 1, samples: 10})
	h := linalg.NewGeneral(200, 200)
	for i := range 200 {
		h.Data[i*201] = math.Exp(float64(i%5) - 2)
	}
	setH(d.prob, h)
	for _, granularity := range []layer.Granularity{layer.PerTensor, layer.PerChannel, layer.PerGroup} {
		for _, method := range []Method{GPFQ, Qronos} {
			o := Options{Method: method, Bits: 3, Align: true, Granularity: granularity}
			if granularity == layer.PerGroup {
				o.GroupSize = 20
			}
			got := solve(t, d.prob, o)
			o.Method, o.Align = Nearest, false
			want := solve(t, d.prob, o)
			if !slices.Equal(got.Codes, want.Codes) || !reflect.DeepEqual(got.Grid, want.Grid) {
				t.Errorf("%s, %s differs from nearest", method, granularity)
			}
		}
	}
}

// TestUnitOrderings: mean costs on 300 random problems of six inputs, rank three
// and a little noise.
func TestUnitOrderings(t *testing.T) {
	var nearest, gpfq, gptq float64
	rng := rand.New(rand.NewPCG(34, 11))
	grid, round := unitGrid(1, 8), Options{Method: GPFQ, Bits: 8}.rounding()
	for range 300 {
		h, w, near := randomH(rng, 6, 3), linalg.NewGeneral(1, 6), make([]int8, 6)
		for i := range w.Data {
			w.Data[i] = 3 * rng.NormFloat64()
			near[i] = int8(math.RoundToEven(w.Data[i]))
		}
		codes, _ := follow(t, h, blas64.General{}, w, &grid, nil, round)
		nearest += unitCost(h, w.Data, near)
		gpfq += unitCost(h, w.Data, codes)
		gptq += unitCost(h, w.Data, gptqOnGrid(t, h, w, &grid, nil))
	}
	if !(nearest > gpfq && gpfq > gptq) {
		t.Errorf("nearest %v, GPFQ %v, GPTQ %v", nearest, gpfq, gptq)
	}
}

// TestPathOrderings: on correlated data nearest > GPFQ > GPTQ, and the prefix's
// errors of the other stream are worth correcting.
func TestPathOrderings(t *testing.T) {
	sums := map[string]float64{}
	for seed := range uint64(40) {
		d := newData(seed, shape{out: 8, in: 48, groups: 1, samples: 200, mismatch: 0.15})
		for name, o := range map[string]Options{
			"nearest": {Method: Nearest, Bits: 3}, "gpfq": {Method: GPFQ, Bits: 3}, "gpfq aligned": {Method: GPFQ, Bits: 3, Align: true},
			"gptq aligned": {Method: GPTQ, Bits: 3, Align: true}, "qronos": {Method: Qronos, Bits: 3, Align: true}, "spfq": {Method: SPFQ, Bits: 3, Align: true},
		} {
			sums[name] += solve(t, d.prob, o).Errors.Relative() / 40
		}
	}
	t.Log(sums)
	for _, order := range [][2]string{{"gpfq", "nearest"}, {"gptq aligned", "gpfq aligned"}, {"qronos", "gpfq"}, {"gpfq aligned", "spfq"}} {
		if sums[order[0]] >= sums[order[1]] {
			t.Errorf("%s: %v, not less than %s: %v", order[0], sums[order[0]], order[1], sums[order[1]])
		}
	}
}

func TestPathOptionErrors(t *testing.T) {
	levels := Options{Method: GPFQ, Bits: 4, Alphabet: AlphabetGPFQ}
	for _, c := range []struct {
		field string
		o     Options
		spoil func(o *Options)
	}{
		{"Align", Options{Method: Qronos, Bits: 4}, func(*Options) {}},
		{"Alphabet", levels, func(o *Options) { o.Alphabet = "quinary" }},
		{"Alphabet", levels, func(o *Options) { o.Method = GPTQ }},
		{"Alphabet", levels, func(o *Options) { o.Method = AdaRound }},
		{"GPFQ", Options{Method: AdaRound, Bits: 4}, func(o *Options) { o.GPFQ.Seed = 1 }},
		{"GPFQ", Options{Method: GPFQ, Bits: 4}, func(o *Options) { o.GPFQ.C = 1 }},
		{"GPFQ.Seed", levels, func(o *Options) { o.GPFQ.Seed = 1 }},
		{"GPFQ.C", levels, func(o *Options) { o.GPFQ.C = math.NaN() }},
		{"GPFQ.Quantile", levels, func(o *Options) { o.GPFQ.Quantile = 1.5 }},
		{"GPFQ.Threshold", levels, func(o *Options) { o.GPFQ.Threshold = "l1"; o.GPFQ.Lambda = 0.1 }},
		{"GPFQ.Threshold", levels, func(o *Options) {
			o.Method, o.GPFQ.Threshold, o.GPFQ.Lambda = SPFQ, SoftThreshold, 0.1
		}},
		{"GPFQ.Threshold", Options{Method: GPFQ, Alphabet: AlphabetBinary}, func(o *Options) { o.GPFQ.Threshold, o.GPFQ.Lambda = HardThreshold, 0.1 }},
		{"GPFQ.Lambda", levels, func(o *Options) { o.GPFQ.Lambda = 0.1 }},
		{"GPFQ.Lambda", levels, func(o *Options) { o.GPFQ.Threshold = SoftThreshold }},
		{"GPFQ.Lambda", levels, func(o *Options) { o.GPFQ.Threshold = SoftThreshold; o.GPFQ.Lambda = 1.16 }},
		{"GPFQ.Lambda", levels, func(o *Options) { o.GPFQ.Threshold = HardThreshold; o.GPFQ.Lambda = 1.15 }},
		{"Bits", levels, func(o *Options) { o.Bits = 8 }},
		{"Bits", Options{Method: GPFQ, Alphabet: AlphabetTernary}, func(o *Options) { o.Bits = 3 }},
		{"Granularity", levels, func(o *Options) { o.Granularity = layer.PerChannel }},
		{"Range", levels, func(o *Options) { o.Range = MSE }},
		{"Damping", levels, func(o *Options) { o.Damping = 0.1 }},
	} {
		o := c.o
		c.spoil(&o)
		var e *OptionError
		if err := o.Check(); !errors.As(err, &e) || e.Field != c.field {
			t.Errorf("%+v: %v, want one of %s", o, err, c.field)
		}
	}
	pathOptions(func(name string, o Options) {
		if err := o.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := o.WithDefaults(); d != d.WithDefaults() || d.StoredBits() != o.StoredBits() {
			t.Errorf("%s resolves to %+v", name, d)
		}
	})
	if _, err := Solve(context.Background(), nil, newProblem(2, 2, 1), levels); !errors.Is(err, ErrNoMoments) {
		t.Errorf("without moments: %v", err)
	}
}

func TestPathCancelled(t *testing.T) {
	d := newData(32, shape{out: 64, in: 256, groups: 1, samples: 20, mismatch: 0.1})
	for _, method := range []Method{GPFQ, SPFQ, Qronos} {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := Solve(ctx, pool.New(2), d.prob, Options{Method: method, Bits: 4, Align: method == Qronos}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", method, err)
		}
	}
}
