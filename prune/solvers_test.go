package prune

import (
	"context"
	"errors"
	"fmt"
	"math"
	mathbits "math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

var background = context.Background()

func keepFirst() *layer.Mask {
	m := layer.NewMask(1, 2)
	m.Set(0, 0, true)
	return m
}

// TestADMMWorkedValues: two inputs of correlation ½, the first kept, without and
// with a damping of 0.1 (which makes the diagonal 1.1, so that ρ is 1/1.1 of it).
func TestADMMWorkedValues(t *testing.T) {
	for _, damped := range []bool{false, true} {
		a := blas64.General{Rows: 2, Cols: 2, Stride: 2, Data: []float64{1, 0.5, 0.5, 1}}
		rho, want := 1.0, map[int]float64{0: 1, 1: 1.16, 2: 1.24, 19: 1.29999968}
		if damped {
			a.Data[0], a.Data[3] = 1.1, 1.1
			rho, want = 1/1.1, map[int]float64{0: 1, 1: 1.144231, 2: 1.216346, 19: 1.27272716}
		}
		for iterations, v := range want {
			w := blas64.General{Rows: 1, Cols: 2, Stride: 2, Data: []float64{1, 0.6}}
			if _, err := ADMM(background, nil, a, w, Selection{}, ADMMOptions{Iterations: iterations, Rho: rho, Mask: keepFirst()}); err != nil {
				t.Fatal(err)
			}
			near(t, fmt.Sprintf("Z after %d products", iterations), w.Data[0], v, 6e-7)
			if w.Data[1] != 0 {
				t.Errorf("pruned weight is %v", w.Data[1])
			}
		}
	}
}

// selection is one of a pattern at a sparsity.
func selection(p Pattern, scope Scope, rows, cols int, sparsity float64) Selection {
	return Selection{Pattern: p, Scope: scope, Survivors: p.Survivors(rows, cols, sparsity)}
}

// restricted returns the weights with the least damped error under a mask, solved
// row by row from the definition.
func restricted(t *testing.T, a, w blas64.General, mask *layer.Mask) blas64.General {
	t.Helper()
	got := linalg.NewGeneral(w.Rows, w.Cols)
	for r := range w.Rows {
		var in []int
		for j := range w.Cols {
			if mask.At(r, j) {
				in = append(in, j)
			}
		}
		sub, b := linalg.NewGeneral(len(in), len(in)), linalg.NewGeneral(1, len(in))
		for i, s := range in {
			for j, t := range in {
				sub.Data[i*len(in)+j] = a.Data[s*a.Stride+t]
			}
			for j := range w.Cols {
				b.Data[i] += a.Data[s*a.Stride+j] * w.Data[r*w.Stride+j]
			}
		}
		if err := linalg.Cholesky(background, nil, sub); err != nil {
			t.Fatal(err)
		}
		if err := linalg.SolveRows(background, nil, sub, b); err != nil {
			t.Fatal(err)
		}
		for i, j := range in {
			got.Data[r*got.Stride+j] = b.Data[i]
		}
	}
	return got
}

func masked(w blas64.General, mask *layer.Mask) blas64.General {
	got := linalg.Clone(w)
	for r := range w.Rows {
		for j := range w.Cols {
			if !mask.At(r, j) {
				got.Data[r*got.Stride+j] = 0
			}
		}
	}
	return got
}

func randomMask(rng *rand.Rand, rows, cols int) *layer.Mask {
	m := layer.NewMask(rows, cols)
	for r := range rows {
		for c := range cols {
			m.Set(r, c, rng.IntN(2) == 0)
		}
	}
	return m
}

func upperOf(t testing.TB, a blas64.General) blas64.General {
	t.Helper()
	u := linalg.Clone(a)
	if err := linalg.InverseUpper(background, nil, u); err != nil {
		t.Fatal(err)
	}
	return u
}

func admmOf(t testing.TB, a, w blas64.General, s Selection, o ADMMOptions) (blas64.General, *layer.Mask) {
	t.Helper()
	got := linalg.Clone(w)
	mask, err := ADMM(background, nil, a, got, s, o)
	if err != nil {
		t.Fatal(err)
	}
	return got, mask
}

func polished(t testing.TB, a, w, from blas64.General, mask *layer.Mask, o PolishOptions) blas64.General {
	t.Helper()
	got := linalg.Clone(from)
	errors, err := Polish(background, nil, a, w, got, mask, o)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, e := range errors {
		sum += e
	}
	if d, start := loss(t, a, w, got), loss(t, a, w, from); math.Abs(sum-d) > 1e-9*(1+d)+1e-4*(start-d) {
		t.Errorf("Polish says an error of %v, which is %v", sum, d)
	}
	return got
}

var exact = PolishOptions{Tolerance: 1e-8, Iterations: 400}

// TestADMMReachesLeastSquares: with a fixed mask, and long enough.
func TestADMMReachesLeastSquares(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	for _, shape := range [][2]int{{5, 12}, {1, 7}, {9, 3}, {4, 1}} {
		a, w := correlated(rng, shape[0], shape[1], 40, 0.01)
		mask := randomMask(rng, shape[0], shape[1])
		best := loss(t, a, w, restricted(t, a, w, mask))
		got, _ := admmOf(t, a, w, Selection{}, ADMMOptions{Iterations: 200, Rho: 0.2, Mask: mask})
		near(t, "ADMM's error over the optimum", loss(t, a, w, got)/max(best, 1e-9), best/max(best, 1e-9), 1e-6)
		near(t, "error polished over the optimum", loss(t, a, w, polished(t, a, w, masked(w, mask), mask, exact))/max(best, 1e-9), best/max(best, 1e-9), 1e-9)
	}
}

// TestADMMLimits: nothing to prune leaves W̃; a damping that drowns the inputs
// leaves the survivors as they were.
func TestADMMLimits(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 1))
	a, w := correlated(rng, 6, 20, 50, 0.01)
	full := layer.NewMask(6, 20)
	for i := range full.Bits {
		full.Bits[i] = 1<<20 - 1
	}
	for iterations := range 8 {
		for _, o := range []ADMMOptions{{Iterations: iterations, Rho: 1, Mask: full}, {Iterations: iterations, Steps: iterations, Rho: 1}} {
			got, mask := admmOf(t, a, w, Selection{Survivors: 120}, o)
			if d := difference(got, w); d > 1e-6 || mask.Survivors() != 120 {
				t.Errorf("weights change by %v after %d iterations with nothing to prune", d, iterations)
			}
		}
	}
	for i := range a.Rows {
		a.Data[i*(a.Stride+1)] += 1e9
	}
	got, mask := admmOf(t, a, w, Selection{Survivors: 60}, DefaultADMM())
	if d := difference(got, masked(w, mask)); d > 1e-5 {
		t.Errorf("under infinite damping survivors change by %v", d)
	}
}

func difference(a, b blas64.General) float64 {
	d := 0.0
	for i, v := range a.Data {
		d = max(d, math.Abs(v-b.Data[i]))
	}
	return d
}

// TestPatternsAndCounts: every pattern is kept exactly, in every solver, for shapes
// that groups and blocks do not divide too.
func TestPatternsAndCounts(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 1))
	patterns := []Pattern{{}, {Kind: NofM, N: 2, M: 4}, {Kind: NofM, N: 4, M: 8}, {Kind: NofM, N: 1, M: 4}, {Kind: NofM, N: 5, M: 200}, {Kind: NofM, N: 2, M: 3}, {Kind: Blocks, Rows: 4, Cols: 4}, {Kind: Blocks, Rows: 1, Cols: 8}, {Kind: Blocks, Rows: 3, Cols: 50}}
	for _, shape := range [][2]int{{16, 64}, {1, 300}, {5, 301}, {300, 3}, {7, 1}, {33, 130}} {
		rows, cols := shape[0], shape[1]
		a, w := correlated(rng, rows, cols, 2*cols, 0.05)
		for i := range 20 {
			w.Data[i%len(w.Data)] = 0 // ties
		}
		upper := upperOf(t, a)
		for _, p := range patterns {
			for _, scope := range []Scope{PerLayer, PerRow} {
				if scope.Check(p) != nil {
					continue
				}
				for _, sparsity := range []float64{0, 0.37, 0.5, 0.9, 1} {
					s := selection(p, scope, rows, cols, sparsity)
					what := fmt.Sprintf("%s %s %v of %v", p, scope, sparsity, shape)
					got, mask := admmOf(t, a, w, s, ADMMOptions{Iterations: 4, Steps: 3, Rho: 1})
					checkPattern(t, "ADMM "+what, s, mask, got)
					got = linalg.Clone(w)
					mask, _, err := SparseGPT(background, nil, upper, nil, got, s, SparseGPTOptions{})
					if err != nil {
						t.Fatal(what, err)
					}
					checkPattern(t, "SparseGPT "+what, s, mask, got)
					if p.Kind == Blocks {
						continue
					}
					before := loss(t, a, w, got)
					if _, _, err = Swap(background, nil, a, w, got, mask, p, SwapOptions{Rounds: 2, Exact: cols % 2 * 1000, Polish: DefaultPolish()}); err != nil {
						t.Fatal(what, err)
					}
					checkPattern(t, "Swap "+what, s, mask, got)
					if after := loss(t, a, w, got); after > before*(1+1e-12) {
						t.Errorf("Swap %s raises the error from %v to %v", what, before, after)
					}
				}
			}
		}
	}
}

func checkPattern(t *testing.T, what string, s Selection, mask *layer.Mask, w blas64.General) {
	t.Helper()
	for r := range w.Rows {
		n := 0
		for c := range w.Cols {
			if mask.At(r, c) {
				n++
			} else if w.Data[r*w.Stride+c] != 0 {
				t.Fatalf("%s: pruned weight %d, %d is %v", what, r, c, w.Data[r*w.Stride+c])
			}
			if m := s.Pattern.M; m > 0 && (c%m == m-1 || c == w.Cols-1) {
				if n != s.Pattern.kept(c%m+1) {
					t.Fatalf("%s: %d survivors in row %d's group that ends at %d", what, n, r, c)
				}
				n = 0
			}
			if p := s.Pattern; p.Kind == Blocks && mask.At(r, c) != mask.At(r/p.Rows*p.Rows, c/p.Cols*p.Cols) {
				t.Fatalf("%s: block of %d, %d is torn", what, r, c)
			}
		}
		if want := w.Cols - share(w.Rows*w.Cols-max(1, s.Survivors), r, w.Rows); s.Scope == PerRow && n != want {
			t.Fatalf("%s: row %d keeps %d, want %d", what, r, n, want)
		}
	}
	if got := mask.Survivors(); s.Pattern.Kind != Blocks && got != max(1, s.Survivors) {
		t.Fatalf("%s: %d survivors, want %d", what, got, s.Survivors)
	}
	if p := s.Pattern; p.Kind == Blocks {
		rows, cols := p.units(w.Rows, w.Cols)
		kept := 0
		for i := range rows {
			for j := range cols {
				if mask.At(i*p.Rows, j*p.Cols) {
					kept++
				}
			}
		}
		if kept != rows*cols-s.losses(w.Rows, w.Cols) {
			t.Fatalf("%s: %d blocks of %d×%d survive", what, kept, rows, cols)
		}
	}
}

// TestRescaledInputs: no solver sees the scale of A, or of a power of two of W̃.
func TestRescaledInputs(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 1))
	a, w := correlated(rng, 12, 40, 100, 0.01)
	s := Selection{Survivors: 240}
	got, mask := admmOf(t, a, w, s, DefaultADMM())
	for _, factor := range []float64{1e-30, 0.3, 4, 7e40} {
		b, v := linalg.Clone(a), linalg.Clone(w)
		for i := range b.Data {
			b.Data[i] *= factor
		}
		for i := range v.Data {
			v.Data[i] *= 0x1p-90
		}
		again, other := admmOf(t, b, v, s, DefaultADMM())
		for i := range again.Data {
			again.Data[i] *= 0x1p90
		}
		if d := difference(got, again); d > 1e-5 || !slices.Equal(mask.Bits, other.Bits) {
			t.Errorf("A times %v changes weights by %v", factor, d)
		}
	}
}

// TestOrderings: means over many problems. For one mask: leaving the survivors as
// they are, SparseGPT's pass, ADMM, least squares; and each is above the next with
// masks of their own, too.
func TestOrderings(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 1))
	var maskOnly, sparseGPT, sparseGPTOwn, admm, own, best, swapped float64
	const n, rows = 24, 4
	for range 200 {
		a, w := correlated(rng, rows, n, 60, 0.01)
		scale := 1 / loss(t, a, w, linalg.NewGeneral(rows, n))
		s := Selection{Survivors: rows * n / 2}
		upper := upperOf(t, a)
		_, mask := admmOf(t, a, w, s, ADMMOptions{Iterations: 0, Rho: 1})
		e0 := loss(t, a, w, masked(w, mask))
		got := linalg.Clone(w)
		if _, _, err := SparseGPT(background, nil, upper, nil, got, Selection{}, SparseGPTOptions{Mask: mask}); err != nil {
			t.Fatal(err)
		}
		e1 := loss(t, a, w, got)
		got, _ = admmOf(t, a, w, Selection{}, ADMMOptions{Iterations: 20, Rho: 1, Mask: mask})
		e2 := loss(t, a, w, got)
		e3 := loss(t, a, w, restricted(t, a, w, mask))
		e4 := loss(t, a, w, polished(t, a, w, got, mask, exact))
		if e3 > min(e0, e1, e2)*(1+1e-9) || math.Abs(e4-e3) > 1e-9*e3 {
			t.Errorf("errors %v, %v, %v, least squares %v, polished %v", e0, e1, e2, e3, e4)
		}
		maskOnly, sparseGPT, admm, best = maskOnly+e0*scale, sparseGPT+e1*scale, admm+e2*scale, best+e3*scale

		got = linalg.Clone(w)
		if _, _, err := SparseGPT(background, nil, upper, nil, got, s, SparseGPTOptions{}); err != nil {
			t.Fatal(err)
		}
		sparseGPTOwn += loss(t, a, w, got) * scale
		got, mask = admmOf(t, a, w, s, DefaultADMM())
		own += loss(t, a, w, got) * scale
		before := loss(t, a, w, polished(t, a, w, got, mask, DefaultPolish()))
		if _, _, err := Swap(background, nil, a, w, got, mask, Pattern{}, DefaultSwap()); err != nil {
			t.Fatal(err)
		}
		if e := loss(t, a, w, got); e > before {
			t.Errorf("swaps raise an error from %v to %v", before, e)
		} else {
			swapped += e * scale
		}
	}
	t.Logf("mask only %.4f > SparseGPT %.4f > ADMM %.4f > least squares %.4f; own masks: SparseGPT %.4f > ADMM %.4f > swaps %.4f",
		maskOnly/200, sparseGPT/200, admm/200, best/200, sparseGPTOwn/200, own/200, swapped/200)
	if !(maskOnly > sparseGPT && sparseGPT > admm && admm > best && sparseGPTOwn > own && best > own && own > swapped) {
		t.Error("not in this order")
	}
}

// TestAgainstAllMasks: single rows, each with the best of all masks of its size.
func TestAgainstAllMasks(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 1))
	var gaps [3]float64 // of ADMM, of swaps that leave the others as they are, of exact ones
	const n, keep, problems = 10, 5, 60
	for range problems {
		a, w := correlated(rng, 1, n, 30, 0.01)
		best := math.Inf(1)
		for bits := range uint64(1 << n) {
			if mathbits.OnesCount64(bits) == keep {
				mask := &layer.Mask{Rows: 1, Cols: n, Bits: []uint64{bits}}
				best = min(best, loss(t, a, w, restricted(t, a, w, mask)))
			}
		}
		got, mask := admmOf(t, a, w, Selection{Survivors: keep}, DefaultADMM())
		start := loss(t, a, w, polished(t, a, w, got, mask, exact))
		gaps[0] += start/best - 1
		for i, o := range []SwapOptions{{Rounds: 5, Polish: exact}, {Rounds: 5, Exact: n, Polish: exact}} {
			swapped, m := linalg.Clone(got), *mask
			m.Bits = slices.Clone(m.Bits)
			if _, _, err := Swap(background, nil, a, w, swapped, &m, Pattern{}, o); err != nil {
				t.Fatal(err)
			}
			e := loss(t, a, w, swapped)
			if e < best*(1-1e-9) || e > start*(1+1e-12) {
				t.Errorf("swaps give %v, between %v and the optimum %v", e, start, best)
			}
			gaps[i+1] += e/best - 1
		}
	}
	for i := range gaps {
		gaps[i] /= problems
	}
	t.Logf("above the best of all masks: ADMM %.3f, swaps %.3f, exact swaps %.3f", gaps[0], gaps[1], gaps[2])
	if gaps[2] > 0.05 || gaps[1] > gaps[0] || gaps[2] > gaps[1] {
		t.Errorf("above the best of all masks: ADMM %.3f, swaps %.3f, exact swaps %.3f", gaps[0], gaps[1], gaps[2])
	}
}

// TestPolishNeverRaises: from any start, rows that are done already included.
func TestPolishNeverRaises(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 1))
	for trial := range 200 {
		rows, n := 1+rng.IntN(9), 1+rng.IntN(40)
		a, w := correlated(rng, rows, n, 1+rng.IntN(2*n), math.Pow(10, -float64(trial%9)))
		mask := randomMask(rng, rows, n)
		start := masked(w, mask)
		switch trial % 3 {
		case 1:
			start = restricted(t, a, w, mask)
		case 2:
			for i, v := range start.Data {
				start.Data[i] = v * rng.NormFloat64()
			}
		}
		got := polished(t, a, w, start, mask, PolishOptions{Tolerance: 1e-6, Iterations: trial % 30})
		for r := range rows {
			one := func(m blas64.General) float64 {
				return loss(t, a, blas64.General{Rows: 1, Cols: n, Stride: n, Data: w.Data[r*n:][:n]}, blas64.General{Rows: 1, Cols: n, Stride: n, Data: m.Data[r*n:][:n]})
			}
			if before, after := one(start), one(got); after > before*(1+1e-9)+1e-18 {
				t.Errorf("trial %d, row %d: error %v becomes %v", trial, r, before, after)
			}
		}
		if d := difference(got, masked(got, mask)); d != 0 {
			t.Errorf("trial %d: a pruned weight is %v", trial, d)
		}
	}
}

// TestSparseGPTIsOBS: with a given mask, each input is set while all later ones
// take their best values, from the definition.
func TestSparseGPTIsOBS(t *testing.T) {
	rng := rand.New(rand.NewPCG(10, 1))
	for _, n := range []int{1, 6, 40, 150} {
		a, w := correlated(rng, 3, n, 2*n, 0.01)
		mask := randomMask(rng, 3, n)
		round := func(_, _ int, v float64) float64 { return math.RoundToEven(v*4) / 4 }
		for _, o := range []SparseGPTOptions{{Mask: mask}, {Mask: mask, Round: round}} {
			got := linalg.Clone(w)
			kept, damped, err := SparseGPT(background, nil, upperOf(t, a), nil, got, Selection{}, o)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(kept.Bits, mask.Bits) {
				t.Error("the mask is another")
			}
			sum := 0.0
			for _, e := range damped {
				sum += e
			}
			near(t, "Σe² over the damped error", sum/loss(t, a, w, got), 1, 1e-9)
			if n <= 40 {
				want := subSolves(t, a, w, mask, o.Round)
				if d := difference(want, got); d > 1e-8 {
					t.Errorf("%d inputs: the recursion differs from solving anew by %v", n, d)
				}
			}
		}
	}
}

// subSolves fixes one input after another and solves for all later ones.
func subSolves(t *testing.T, a, w blas64.General, mask *layer.Mask, round func(r, c int, v float64) float64) blas64.General {
	got := linalg.Clone(w)
	n := w.Cols
	for i := range n {
		for r := range w.Rows {
			v := &got.Data[r*n+i]
			if !mask.At(r, i) {
				*v = 0
			} else if round != nil {
				*v = round(r, i, *v)
			}
		}
		rest := n - i - 1
		if rest == 0 {
			break
		}
		sub, b := linalg.NewGeneral(rest, rest), linalg.NewGeneral(w.Rows, rest)
		for j := range rest {
			copy(sub.Data[j*rest:][:rest], a.Data[(i+1+j)*n+i+1:])
			for r := range w.Rows {
				for k := range i + 1 {
					b.Data[r*rest+j] += (w.Data[r*n+k] - got.Data[r*n+k]) * a.Data[k*n+i+1+j]
				}
			}
		}
		if err := linalg.Cholesky(background, nil, sub); err != nil {
			t.Fatal(err)
		}
		if err := linalg.SolveRows(background, nil, sub, b); err != nil {
			t.Fatal(err)
		}
		for r := range w.Rows {
			for j := range rest {
				got.Data[r*n+i+1+j] = w.Data[r*n+i+1+j] + b.Data[r*rest+j]
			}
		}
	}
	return got
}

// TestSparseGPTOrder: the pass in an order is the pass over inputs that were put in
// that order before.
func TestSparseGPTOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 1))
	const n, rows = 150, 5
	a, w := correlated(rng, rows, n, 200, 0.01)
	order := rng.Perm(n)
	b, v := linalg.NewGeneral(n, n), linalg.NewGeneral(rows, n)
	for i, from := range order {
		for j, col := range order {
			b.Data[i*n+j] = a.Data[from*n+col]
		}
		for r := range rows {
			v.Data[r*n+i] = w.Data[r*n+from]
		}
	}
	upper, s := upperOf(t, b), Selection{Survivors: rows * n / 3}
	mask, _, err := SparseGPT(background, nil, upper, order, w, s, SparseGPTOptions{})
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := SparseGPT(background, nil, upper, nil, v, s, SparseGPTOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i, from := range order {
		for r := range rows {
			if v.Data[r*n+i] != w.Data[r*n+from] || mask.At(r, from) != other.At(r, i) {
				t.Fatalf("input %d of row %d differs", from, r)
			}
		}
	}
	var shape *ShapeError
	s = selection(Pattern{Kind: NofM, N: 2, M: 4}, "", rows, n, 0)
	if _, _, err := SparseGPT(background, nil, upper, order, w, s, SparseGPTOptions{}); !errors.As(err, &shape) {
		t.Errorf("an order that tears groups gives %v", err)
	}
}

// TestSolversSameBytes: for any number of workers.
func TestSolversSameBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(12, 1))
	const rows, n = 300, 260
	a, w := correlated(rng, rows, n, 2*n, 0.01)
	upper := upperOf(t, a)
	for _, s := range []Selection{{Survivors: 20_001}, {Survivors: 20_001, Scope: PerRow}, selection(Pattern{Kind: NofM, N: 2, M: 4}, "", rows, n, 0)} {
		var first []float64
		for _, workers := range []int{1, 3} {
			p := pool.New(workers)
			got := linalg.Clone(w)
			if _, _, err := SparseGPT(background, p, upper, nil, got, s, SparseGPTOptions{}); err != nil {
				t.Fatal(err)
			}
			all := slices.Clone(got.Data)
			got = linalg.Clone(w)
			mask, err := ADMM(background, p, a, got, s, ADMMOptions{Iterations: 5, Steps: 4, Rho: 1})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, got.Data...)
			damped, _, err := Swap(background, p, a, w, got, mask, s.Pattern, SwapOptions{Rounds: 2, Polish: DefaultPolish()})
			if err != nil {
				t.Fatal(err)
			}
			all = append(append(all, got.Data...), damped...)
			if first == nil {
				first = all
			} else if !slices.Equal(first, all) {
				t.Errorf("%v: %d workers give other bytes", s, workers)
			}
		}
	}
}

// TestRankOne: inputs that are all multiples of one, but for the damping.
func TestRankOne(t *testing.T) {
	const n = 12
	a, w := linalg.NewGeneral(n, n), linalg.NewGeneral(2, n)
	for i := range n {
		for j := range n {
			a.Data[i*n+j] = float64(1+i) * float64(1+j)
		}
		a.Data[i*n+i] += 1e-3
		w.Data[i], w.Data[n+i] = 1, float64(i%3)-1
	}
	got, mask := admmOf(t, a, w, Selection{Survivors: 4, Scope: PerRow}, DefaultADMM())
	got = polished(t, a, w, got, mask, exact)
	if _, _, err := Swap(background, nil, a, w, got, mask, Pattern{}, DefaultSwap()); err != nil {
		t.Fatal(err)
	}
	if e, all := loss(t, a, w, got), loss(t, a, w, linalg.NewGeneral(2, n)); !(e < 1e-4*all) {
		t.Errorf("error %v of %v with one direction to keep", e, all)
	}
}

// TestSolversRefuse: what cannot be solved, with errors that can be told apart.
func TestSolversRefuse(t *testing.T) {
	a := blas64.General{Rows: 2, Cols: 2, Stride: 2, Data: []float64{1, 0.5, 0.5, 1}}
	w := func() blas64.General {
		return blas64.General{Rows: 1, Cols: 2, Stride: 2, Data: []float64{1, 0.6}}
	}
	var shape *ShapeError
	var value *ValueError
	var pattern *PatternError
	var pivot *linalg.PivotError
	for name, c := range map[string]struct {
		as any
		do func() error
	}{
		"other inputs": {&shape, func() error {
			_, err := ADMM(background, nil, a, blas64.General{Rows: 1, Cols: 3, Stride: 3, Data: make([]float64, 3)}, Selection{}, DefaultADMM())
			return err
		}},
		"NaN": {&value, func() error {
			v := w()
			v.Data[1] = math.NaN()
			_, err := Polish(background, nil, a, w(), v, keepFirst(), DefaultPolish())
			return err
		}},
		"dead input": {&value, func() error {
			b := linalg.Clone(a)
			b.Data[3] = 0
			_, err := ADMM(background, nil, b, w(), Selection{}, DefaultADMM())
			return err
		}},
		"indefinite": {&pivot, func() error {
			b := linalg.Clone(a)
			b.Data[1], b.Data[2] = 9, 9
			_, err := ADMM(background, nil, b, w(), Selection{}, DefaultADMM())
			return err
		}},
		"survivors": {&shape, func() error {
			_, err := ADMM(background, nil, a, w(), Selection{Survivors: 3}, DefaultADMM())
			return err
		}},
		"blocks": {&pattern, func() error {
			_, _, err := Swap(background, nil, a, w(), w(), keepFirst(), Pattern{Kind: Blocks, Rows: 1, Cols: 2}, DefaultSwap())
			return err
		}},
		"no mask": {&shape, func() error {
			_, err := Polish(background, nil, a, w(), w(), nil, DefaultPolish())
			return err
		}},
		"mask": {&shape, func() error {
			_, _, err := SparseGPT(background, nil, a, nil, w(), Selection{}, SparseGPTOptions{Mask: layer.NewMask(2, 2)})
			return err
		}},
	} {
		if err := c.do(); !errors.As(err, c.as) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var option *OptionError
	if _, err := ADMM(background, nil, a, w(), Selection{}, ADMMOptions{Iterations: 2, Steps: 4, Rho: 1}); !errors.As(err, &option) {
		t.Errorf("too many steps give %v", err)
	}
	gone, stop := context.WithCancel(background)
	stop()
	if _, err := ADMM(gone, nil, a, w(), Selection{}, DefaultADMM()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestFastADMM: seven over-relaxed updates end at the error of the published twenty,
// for inputs that follow each other more or less, at every sparsity.
func TestFastADMM(t *testing.T) {
	rng := rand.New(rand.NewPCG(65, 1))
	const n = 384
	for i, damping := range []float64{0.1, 0.01} {
		a, w := correlated(rng, n, n, n+64+i*n, damping)
		for _, sparsity := range []float64{0.5, 0.7, 0.9} {
			sel := selection(Pattern{}, PerLayer, n, n, sparsity)
			published, _ := admmOf(t, a, w, sel, DefaultADMM())
			fast, mask := admmOf(t, a, w, sel, FastADMM())
			if mask.Survivors() != sel.Survivors {
				t.Errorf("%d survive, want %d", mask.Survivors(), sel.Survivors)
			}
			if got, want := loss(t, a, w, fast), loss(t, a, w, published); got > 1.01*want {
				t.Errorf("damping %v, sparsity %v: error %v, published %v", damping, sparsity, got, want)
			}
		}
	}
}

// TestADMMRelaxation: over-relaxed updates of a fixed mask go to the same optimum,
// and settings out of range are refused by name.
func TestADMMRelaxation(t *testing.T) {
	rng := rand.New(rand.NewPCG(66, 1))
	a, w := correlated(rng, 5, 24, 80, 0.01)
	mask := randomMask(rng, 5, 24)
	best := loss(t, a, w, restricted(t, a, w, mask))
	for _, relaxation := range []float64{0.7, 1, 1.8} {
		got, _ := admmOf(t, a, w, Selection{}, ADMMOptions{Iterations: 400, Rho: 0.2, Relaxation: relaxation, Mask: mask})
		near(t, "error over the optimum", loss(t, a, w, got)/best, 1, 1e-6)
	}
	for field, o := range map[string]ADMMOptions{
		"ADMM.Relaxation": {Iterations: 3, Rho: 1, Relaxation: 2.1},
		"ADMM.Last":       {Iterations: 3, Rho: 1, Last: -1},
		"ADMM.Rho":        {Iterations: 3, Rho: math.NaN()},
		"ADMM.Iterations": {Iterations: 3, Rho: 1, Steps: 5},
	} {
		var bad *OptionError
		if _, err := ADMM(background, nil, a, linalg.Clone(w), Selection{Survivors: 60}, o); !errors.As(err, &bad) || bad.Field != field {
			t.Errorf("%s: got %v", field, err)
		}
	}
}
