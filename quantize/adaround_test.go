package quantize

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// adaOnGrid runs AdaRound for rows of w on a given grid, undamped.
func adaOnGrid(t *testing.T, h, w blas64.General, grid layer.Grid) []int8 {
	t.Helper()
	o := Options{Method: AdaRound, Bits: grid.Bits}.WithDefaults()
	order := gram.Descending(diagonal(h))
	u := reordered(h, order)
	if err := linalg.InverseUpper(context.Background(), nil, u); err != nil {
		t.Fatal(err)
	}
	s := &solver{
		Target: &gram.Target{
			Pool: pool.New(1), Problem: newProblem(w.Rows, w.Cols, 1),
			Grams: []gram.Gram{{H: h, Unit: 1, Upper: u, Order: order}},
		},
		o: o, target: w,
		solution: &layer.Solution{Grid: grid, Codes: make([]int8, w.Rows*w.Cols)},
	}
	if err := s.adaRound(context.Background()); err != nil {
		t.Fatal(err)
	}
	return s.solution.Codes
}

func TestAdaRoundHandExample(t *testing.T) {
	if got := adaOnGrid(t, pairH, pairW, unitGrid(1, 4)); !slices.Equal(got, []int8{1, 0}) {
		t.Errorf("%v, want [1 0]", got)
	}
}

func relaxationOf(t *testing.T, h, w blas64.General, grid *layer.Grid) (*relaxation, *choices) {
	t.Helper()
	c := newChoices(w, grid, 0, nil)
	e, err := newGramForm(context.Background(), c, h, unitDiagonal32(h))
	if err != nil {
		t.Fatal(err)
	}
	return newRelaxation(c, e), c
}

// TestV0: the start reproduces the weights, so its error is 0.
func TestV0(t *testing.T) {
	grid := unitGrid(1, 4)
	h := randomH(rand.New(rand.NewPCG(1, 1)), 4, 4)
	x, c := relaxationOf(t, h, matrix([]float64{0.5, 0.25, 3, -1.25}), &grid)
	for k, want := range []float64{0, -0.887303, -2.397895, 0.887303} {
		if math.Abs(float64(x.v[k])-want) > 1e-6 {
			t.Errorf("V₀ of fraction %v is %v, want %v", x.start[k], x.v[k], want)
		}
		if soft := c.down[k] + float64(x.hv[k]); math.Abs(soft-c.target.Data[k]) > 1e-6 {
			t.Errorf("relaxed weight is %v, want %v", soft, c.target.Data[k])
		}
	}
	if v := -math.Log((zeta-gamma)/(1-gamma) - 1); math.Abs(v-2.397895) > 1e-6 {
		t.Errorf("V₀ towards fraction 1 is %v, want 2.397895", v)
	}
	if err := x.differentiate(context.Background(), 0, 0, 20); err != nil {
		t.Fatal(err)
	}
	for k, g := range x.gradient {
		if math.Abs(float64(g)) > 1e-5 {
			t.Errorf("gradient %d at V₀ is %v", k, g)
		}
	}
}

// objective is the relaxation's in float64, from the definition.
func objective(c *choices, h blas64.General, v []float64, lambda, beta float64) float64 {
	n, sum := c.target.Cols, 0.0
	mean := linalg.MeanDiagonal(h)
	for r := range c.target.Rows {
		d := make([]float64, n)
		for j := range d {
			k := r*n + j
			soft := c.down[k]
			if _, free := c.fraction(k); free {
				hv := min(max((zeta-gamma)/(1+math.Exp(-v[k]))+gamma, 0), 1)
				soft += hv * (c.up[k] - c.down[k])
				sum += lambda * (1 - math.Pow(math.Abs(2*hv-1), beta))
			}
			d[j] = (soft - c.target.Data[k]) / c.rowStep(r)
		}
		sum += quadForm(h, d) / mean
	}
	return sum
}

// TestGradient compares with finite differences: reconstruction, β-term, masks
// of rectified h and of weights outside the grid, groups of different steps.
func TestGradient(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 1))
	const rows, n = 3, 8
	for _, lambda := range []float64{0, 0.3} {
		for _, beta := range []float64{20, 5.5, 2} {
			h := randomH(rng, n, n)
			w := linalg.NewGeneral(rows, n)
			for i := range w.Data {
				w.Data[i] = rng.NormFloat64()
			}
			grid := layer.Grid{Bits: 2, Granularity: layer.PerGroup, GroupSize: 4, Symmetric: true}
			for range rows * 2 {
				grid.Scales = append(grid.Scales, float32(0.3+rng.Float64()))
			}
			x, c := relaxationOf(t, h, w, &grid)
			v := make([]float64, rows*n)
			fixed, saturated := 0, 0
			for k := range v {
				x.v[k] += float32(2 * rng.NormFloat64())
				v[k] = float64(x.v[k])
			}
			x.relax()
			if err := x.differentiate(context.Background(), 0, lambda, beta); err != nil {
				t.Fatal(err)
			}
			for k := range v {
				const e = 1e-5
				at := v[k]
				v[k] = at + e
				above := objective(c, h, v, lambda, beta)
				v[k] = at - e
				below := objective(c, h, v, lambda, beta)
				v[k] = at
				want := (above - below) / (2 * e)
				if math.Abs(float64(x.gradient[k])-want) > 1e-4*(1+math.Abs(want)) {
					t.Errorf("λ=%v β=%v: gradient %d is %v, want %v", lambda, beta, k, x.gradient[k], want)
				}
				switch {
				case !x.free[k]:
					fixed++
				case x.hv[k] == 0 || x.hv[k] == 1:
					saturated++
				default:
					continue
				}
				if x.gradient[k] != 0 {
					t.Errorf("gradient %d of a fixed or saturated weight is %v", k, x.gradient[k])
				}
			}
			if fixed == 0 || saturated == 0 {
				t.Errorf("%d fixed and %d saturated weights: the masks were not tested", fixed, saturated)
			}
		}
	}
}

// TestBruteForce compares the methods on 300 random 6-dimensional problems of
// rank 3 and noise with the best of all 64 up/down choices.
func TestBruteForce(t *testing.T) {
	const trials, n = 300, 6
	var rtn, gptq, ada, best float64
	notWorse, excess := 0, 0.0
	for seed := range uint64(trials) {
		rng := rand.New(rand.NewPCG(seed, 11))
		x := linalg.NewGeneral(40, n)
		mix := linalg.NewGeneral(3, n)
		for i := range mix.Data {
			mix.Data[i] = rng.NormFloat64()
		}
		for r := range x.Rows {
			f := []float64{rng.NormFloat64(), rng.NormFloat64(), rng.NormFloat64()}
			for j := range n {
				x.Data[r*n+j] = 0.3 * rng.NormFloat64()
				for k, v := range f {
					x.Data[r*n+j] += v * mix.Data[k*n+j]
				}
			}
		}
		h := product(x, x)
		w := linalg.NewGeneral(1, n)
		for i := range w.Data {
			w.Data[i] = 2 * rng.NormFloat64()
		}
		grid := unitGrid(1, 6)
		floors := make([]int8, n)
		near := make([]int8, n)
		for i, v := range w.Data {
			floors[i], near[i] = int8(math.Floor(v)), int8(math.RoundToEven(v))
		}
		optimum := math.Inf(1)
		for bits := range 1 << n {
			codes := slices.Clone(floors)
			for i := range codes {
				codes[i] += int8(bits >> i & 1)
			}
			optimum = min(optimum, unitCost(h, w.Data, codes))
		}
		learned := adaOnGrid(t, h, w, grid)
		for i, c := range learned {
			if d := c - floors[i]; d != 0 && d != 1 {
				t.Fatalf("seed %d: code %d for a floor of %d", seed, c, floors[i])
			}
		}
		costRTN := unitCost(h, w.Data, near)
		costGPTQ := unitCost(h, w.Data, gptqOnGrid(t, h, w, &grid, nil))
		costAda := unitCost(h, w.Data, learned)
		if costAda < optimum*(1-1e-9) || costAda > costRTN*(1+1e-9) {
			t.Fatalf("seed %d: AdaRound %v, optimum %v, nearest %v", seed, costAda, optimum, costRTN)
		}
		if costAda <= costGPTQ*(1+1e-9) {
			notWorse++
		}
		excess += costAda/optimum - 1
		rtn, gptq, ada, best = rtn+costRTN, gptq+costGPTQ, ada+costAda, best+optimum
	}
	t.Logf("means: RTN %.3f, GPTQ %.3f, AdaRound %.3f, best up/down %.3f; AdaRound over best %.2f %%, no worse than GPTQ in %d of %d",
		rtn/trials, gptq/trials, ada/trials, best/trials, 100*excess/trials, notWorse, trials)
	if !(rtn > gptq && gptq > ada && ada >= best) {
		t.Error("the order of the methods is not RTN > GPTQ > AdaRound ≥ best")
	}
	if ada > 1.05*best || excess/trials > 0.10 {
		t.Error("AdaRound is too far from the best")
	}
	if notWorse < trials*9/10 {
		t.Error("AdaRound is too often worse than GPTQ")
	}
}

// TestSearchIsLocallyOptimal: no single flip improves, and the change returned
// is the error's.
func TestSearchIsLocallyOptimal(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 1))
	const n = 40
	h := randomH(rng, n, 10)
	w := linalg.NewGeneral(1, n)
	for i := range w.Data {
		w.Data[i] = 3 * rng.NormFloat64()
	}
	grid := unitGrid(1, 4)
	codes := adaOnGrid(t, h, w, grid)
	c := newChoices(w, &grid, 0, nil)
	cost := unitCost(h, w.Data, codes)
	for k := range codes {
		other := slices.Clone(codes)
		other[k] = c.floors[k] + c.ceils[k] - codes[k]
		if unitCost(h, w.Data, other) < cost*(1-1e-9) {
			t.Errorf("flipping input %d improves", k)
		}
	}
	d, hd := make([]float64, n), make([]float64, n)
	ups := make([]bool, n)
	for i := range d {
		d[i] = c.down[i] - w.Data[i]
	}
	for i := range hd {
		hd[i] = vec.Dot64(d, linalg.Row(h, i))
	}
	before := unitCost(h, w.Data, c.floors)
	change := newTabu(h).search(context.Background(), c.down, c.up, ups, hd)
	if want := unitCost(h, w.Data, codesOf(c, ups)); math.Abs(before+change-want) > 1e-9*want {
		t.Errorf("search ends at %v, want %v", before+change, want)
	}
}

func codesOf(c *choices, ups []bool) []int8 {
	codes := slices.Clone(c.floors)
	for k, up := range ups {
		if up {
			codes[k] = c.ceils[k]
		}
	}
	return codes
}

// TestAdaRoundPermutes: permuting the columns of W and H permutes the codes.
func TestAdaRoundPermutes(t *testing.T) {
	d := newData(6, shape{out: 6, in: 30, groups: 1, samples: 80, mismatch: 0.1})
	o := Options{Method: AdaRound, Bits: 3, Align: true}
	want := solve(t, d.prob, o)
	order := rand.New(rand.NewPCG(1, 2)).Perm(30)
	got := solve(t, permuteData(d, order).prob, o)
	for r := range 6 {
		for i, c := range order {
			if got.Codes[r*30+i] != want.Codes[r*30+c] {
				t.Fatalf("row %d, input %d differs", r, c)
			}
		}
	}
}

// TestAdaRoundNeverWorseThanNearest, row by row, on its own grid and in the
// damped error that it works on; and codes are floor or floor + 1.
func TestAdaRoundNeverWorseThanNearest(t *testing.T) {
	d := newData(7, shape{out: 20, in: 48, groups: 1, samples: 100, mismatch: 0.1})
	for _, bits := range []int{2, 4, 8} {
		o := Options{Method: AdaRound, Bits: bits, AdaRound: AdaRoundOptions{Steps: 50}}.WithDefaults()
		s := factored(t, d.prob, o)
		if err := s.round(context.Background()); err != nil {
			t.Fatal(err)
		}
		damped, err := s.Grams[0].DampedH(context.Background(), s.Pool)
		if err != nil {
			t.Fatal(err)
		}
		c := newChoices(s.target, &s.solution.Grid, 0, nil)
		cost := func(codes []int8, r int) float64 {
			row, e := make([]float32, 48), make([]float64, 48)
			s.solution.Grid.Dequantize(row, codes[r*48:][:48], r)
			for i := range e {
				e[i] = float64(row[i]) - s.target.Data[r*48+i]
			}
			return quadForm(damped, e)
		}
		near := codesOf(c, c.nearest)
		for r := range 20 {
			if got, limit := cost(s.solution.Codes, r), cost(near, r); got > limit*(1+1e-9) {
				t.Errorf("%d bits, row %d: %v, nearest %v", bits, r, got, limit)
			}
		}
		for k, code := range s.solution.Codes {
			if code != c.floors[k] && code != c.ceils[k] {
				t.Fatalf("code %d is %d, neither %d nor %d", k, code, c.floors[k], c.ceils[k])
			}
		}
	}
}
