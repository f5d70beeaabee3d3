package quantize

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/mat"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/layer"
)

// unitGrid has step 1 and zero point 0 for each row.
func unitGrid(rows, bits int) layer.Grid {
	g := layer.Grid{Bits: bits, Granularity: layer.PerChannel, Symmetric: true, ScaleType: dtype.F32}
	for range rows {
		g.Scales = append(g.Scales, 1)
	}
	return g
}

// gptqOnGrid runs the recursion on a given grid, undamped.
func gptqOnGrid(t *testing.T, h, w blas64.General, grid *layer.Grid, order []int) []int8 {
	t.Helper()
	u := reordered(h, order)
	if err := linalg.InverseUpper(context.Background(), nil, u); err != nil {
		t.Fatal(err)
	}
	codes := make([]int8, w.Rows*w.Cols)
	q := recursion{upper: u, order: order, grid: grid}
	ordered := linalg.Clone(w)
	q.order64(ordered, w)
	if err := q.run(context.Background(), ordered, 0, codes); err != nil {
		t.Fatal(err)
	}
	return codes
}

func unitCost(h blas64.General, w []float64, codes []int8) float64 {
	d := make([]float64, len(w))
	for i := range d {
		d[i] = float64(codes[i]) - w[i]
	}
	return quadForm(h, d)
}

// pair is the hand example of ALGORITHMS: its four costs are .6865, .0765,
// .0665 and 1.2565 for (0,0), (0,1), (1,0) and (1,1).
var pairH, pairW = matrix([]float64{1, .9}, []float64{.9, 1}), matrix([]float64{.45, .40})

func TestGPTQWorkedValues(t *testing.T) {
	grid := unitGrid(1, 4)
	for _, c := range []struct {
		codes []int8
		cost  float64
	}{{[]int8{0, 0}, .6865}, {[]int8{0, 1}, .0765}, {[]int8{1, 0}, .0665}, {[]int8{1, 1}, 1.2565}} {
		if got := unitCost(pairH, pairW.Data, c.codes); math.Abs(got-c.cost) > 1e-12 {
			t.Errorf("cost of %v is %v, want %v", c.codes, got, c.cost)
		}
	}
	if got := gptqOnGrid(t, pairH, pairW, &grid, nil); !slices.Equal(got, []int8{0, 1}) {
		t.Errorf("natural order: %v, want [0 1]", got)
	}
	if got := gptqOnGrid(t, pairH, pairW, &grid, []int{1, 0}); !slices.Equal(got, []int8{1, 0}) {
		t.Errorf("reversed order: %v, want [1 0]", got)
	}
	h := matrix([]float64{1, .9, .5}, []float64{.9, 1, .8}, []float64{.5, .8, 1})
	w := matrix([]float64{.1, .4, .1})
	got := gptqOnGrid(t, h, w, &grid, nil)
	if cost := unitCost(h, w.Data, got); !slices.Equal(got, []int8{0, 1, 0}) || math.Abs(cost-.186) > 1e-12 {
		t.Errorf("%v cost %v, want [0 1 0] cost .186", got, cost)
	}
}

// TestGPTQMatchesSubSolves: after each rounding the later weights are the exact
// minimiser of the error given the codes so far, and Σe² is that error.
func TestGPTQMatchesSubSolves(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 7))
		n := 2 + rng.IntN(12)
		h := randomH(rng, n, n)
		w := linalg.NewGeneral(1, n)
		for i := range w.Data {
			w.Data[i] = 2 * rng.NormFloat64()
		}
		grid := unitGrid(1, 8)
		codes := gptqOnGrid(t, h, w, &grid, nil)

		u := linalg.Clone(h)
		if err := linalg.InverseUpper(context.Background(), nil, u); err != nil {
			t.Fatal(err)
		}
		full := mat.NewSymDense(n, slices.Clone(h.Data))
		current, squares := slices.Clone(w.Data), 0.0
		fixed := make([]float64, n) // w − q of the inputs rounded so far
		for i := range n {
			want := math.RoundToEven(current[i])
			if float64(codes[i]) != want {
				t.Fatalf("seed %d: code %d is %d, want %v", seed, i, codes[i], want)
			}
			e := (current[i] - want) / u.Data[i*n+i]
			squares += e * e
			fixed[i] = w.Data[i] - want
			rest := n - i - 1
			if rest == 0 {
				break
			}
			// Minimise dᵀHd over the later entries of d: H_rr d_r = −H_rf d_f.
			rhs := mat.NewVecDense(rest, nil)
			for a := range rest {
				for b := range i + 1 {
					rhs.SetVec(a, rhs.AtVec(a)-h.Data[(i+1+a)*n+b]*fixed[b])
				}
			}
			var solved mat.VecDense
			if err := solved.SolveVec(full.SliceSym(i+1, n), rhs); err != nil {
				t.Fatal(err)
			}
			for a := range rest {
				current[i+1+a] = w.Data[i+1+a] - solved.AtVec(a)
			}
		}
		if cost := unitCost(h, w.Data, codes); math.Abs(cost-squares) > 1e-9*cost {
			t.Errorf("seed %d: Σe² = %v, error %v", seed, squares, cost)
		}
	}
}

// randomH is a Gram matrix of the given rank plus a little of the identity.
func randomH(rng *rand.Rand, n, rank int) blas64.General {
	x := linalg.NewGeneral(rank, n)
	for i := range x.Data {
		x.Data[i] = rng.NormFloat64()
	}
	h := product(x, x)
	for i := range n {
		h.Data[i*n+i] += 0.05
	}
	return h
}

// TestGPTQOnAR1: with H = ρ^|i−j| it is the β-recursion u ← ρu + w, q = round(u).
func TestGPTQOnAR1(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 7))
	const n, rho = 300, 0.7
	h, w := linalg.NewGeneral(n, n), linalg.NewGeneral(2, n)
	for i := range n {
		for j := range n {
			h.Data[i*n+j] = math.Pow(rho, math.Abs(float64(i-j)))
		}
	}
	for i := range w.Data {
		w.Data[i] = 3 * rng.NormFloat64()
	}
	grid := unitGrid(2, 8)
	codes := gptqOnGrid(t, h, w, &grid, nil)
	for r := range 2 {
		u := 0.0
		for i := range n {
			v := rho*u + w.Data[r*n+i]
			want := math.RoundToEven(v)
			if float64(codes[r*n+i]) != want {
				t.Fatalf("row %d, input %d: %d, want %v", r, i, codes[r*n+i], want)
			}
			u = v - want
		}
	}
}

// TestGPTQGroups: the steps of groups come from the weights as the errors before
// have left them, whatever the block that a group lies in.
func TestGPTQGroups(t *testing.T) {
	for _, size := range []int{4, 30, 48, 60, 160} {
		d := newData(uint64(size), shape{out: 3, in: 480, groups: 1, samples: 40})
		o := Options{Method: GPTQ, Bits: 3, Granularity: layer.PerGroup, GroupSize: size, Range: MinMax}
		got := solve(t, d.prob, o)

		s := factored(t, d.prob, o.WithDefaults())
		u, n := s.Grams[0].Upper, 480
		for r := range 3 {
			w := float64s(rowOf32(d.prob.Weight, r))
			var at step
			for i := range n {
				if i%size == 0 {
					at = s.grid.step(w[i : i+size])
					if k := got.Grid.Index(r, i, n); stepAt(&got.Grid, k) != at {
						t.Fatalf("size %d, row %d: step at input %d is %v, want %v", size, r, i, stepAt(&got.Grid, k), at)
					}
				}
				code := at.code(w[i], -4, 3)
				if int(got.Codes[r*n+i]) != code {
					t.Fatalf("size %d, row %d: code at input %d is %d, want %d", size, r, i, got.Codes[r*n+i], code)
				}
				e := (w[i] - float64(at.value(code))) / u.Data[i*n+i]
				for j := i + 1; j < n; j++ {
					w[j] -= e * u.Data[i*n+j]
				}
			}
		}
	}
}

// TestGPTQActOrder: with static groups, the result is that of the permuted
// problem in natural order.
func TestGPTQActOrder(t *testing.T) {
	d := newData(5, shape{out: 4, in: 40, groups: 1, samples: 60, mismatch: 0.1})
	o := Options{Method: GPTQ, Bits: 3, ActOrder: true, Align: true}
	got := solve(t, d.prob, o)
	order := gram.Descending(diagonal(d.prob.Moments.H[0]))
	if slices.IsSorted(order) {
		t.Fatal("the problem needs no reordering")
	}
	permuted := permuteData(d, order)
	o.ActOrder = false
	want := solve(t, permuted.prob, o)
	for r := range 4 {
		for i, c := range order {
			if got.Codes[r*40+c] != want.Codes[r*40+i] {
				t.Fatalf("row %d, input %d differs", r, c)
			}
		}
	}
	o.Granularity, o.GroupSize, o.ActOrder = layer.PerGroup, 10, true
	if s := solve(t, d.prob, o); len(s.Grid.Scales) != 16 || s.Errors.Solved > s.Errors.Nearest {
		t.Errorf("static groups: %d scales, error %v, nearest %v", len(s.Grid.Scales), s.Errors.Solved, s.Errors.Nearest)
	}
}

// permute returns the problem with its inputs in the given order.
func permuteData(d data, order []int) data {
	w := d.prob.Weight
	out := data{prob: newProblem(w.Rows, w.Cols, d.prob.Groups)}
	for r := range w.Rows {
		for i, c := range order {
			out.prob.Weight.Data[r*w.Cols+i] = rowOf32(w, r)[c]
		}
	}
	reorder := func(x blas64.General) blas64.General {
		y := linalg.Clone(x)
		for r := range x.Rows {
			gram.Gather(linalg.Row(y, r), linalg.Row(x, r), order)
		}
		return y
	}
	for g := range d.x {
		x := reorder(d.x[g])
		xt := x
		if d.prob.Moments.G != nil {
			xt = reorder(d.xt[g])
		}
		out.x, out.xt = append(out.x, x), append(out.xt, xt)
	}
	out.setMoments()
	return out
}
