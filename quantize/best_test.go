package quantize

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// errorOfRow is the damped error of a row's solution, over H's unit, from its
// definition.
func errorOfRow(t *testing.T, s *solver, r int, value func(col int) float64) float64 {
	t.Helper()
	g := &s.Grams[s.Problem.Group(r)]
	h, err := g.DampedH(context.Background(), s.Pool)
	if err != nil {
		t.Fatal(err)
	}
	d := make([]float64, s.target.Cols)
	for c := range d {
		d[c] = value(c) - linalg.Row(s.target, r)[c]
	}
	return quadForm(h, d)
}

// TestBestIsALocalOptimum: for random shapes, no single code and no fit of a
// step lowers a row's damped error, and aligned GPTQ has no lower one.
func TestBestIsALocalOptimum(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 1))
	for trial := range 40 {
		groups := 1 + rng.IntN(2)
		sh := shape{out: groups * (1 + rng.IntN(5)), in: 1 + rng.IntN(40), groups: groups, samples: 1 + rng.IntN(80), mismatch: 0.2 * float64(rng.IntN(2))}
		d := newData(uint64(trial), sh)
		o := Options{Method: Best, Bits: 2 + rng.IntN(3), Align: true, Symmetric: rng.IntN(2) == 0}.WithDefaults()
		o.BiasCorrection = rng.IntN(2) == 0
		o.Centre = o.BiasCorrection
		s := factored(t, d.prob, o)
		if err := s.round(context.Background()); err != nil {
			t.Fatal(err)
		}
		o.Method, o.ActOrder = GPTQ, true
		other := factored(t, d.prob, o)
		if err := other.round(context.Background()); err != nil {
			t.Fatal(err)
		}
		n, grid := sh.in, &s.solution.Grid
		lo, hi := grid.Range()
		for r := range sh.out {
			codes, st := s.solution.Codes[r*n:][:n], stepAt(grid, r)
			cost := errorOfRow(t, s, r, func(c int) float64 { return float64(st.value(int(codes[c]))) })
			tolerance := 1e-6*cost + 1e-12
			old := stepAt(&other.solution.Grid, r)
			if gptq := errorOfRow(t, other, r, func(c int) float64 { return float64(old.value(int(other.solution.Codes[r*n+c]))) }); cost > gptq+tolerance {
				t.Errorf("trial %d, row %d: %v, GPTQ %v", trial, r, cost, gptq)
			}
			for c := range n {
				for code := lo; code <= hi; code++ {
					moved := errorOfRow(t, s, r, func(j int) float64 {
						if j == c {
							return float64(st.value(code))
						}
						return float64(st.value(int(codes[j])))
					})
					if moved < cost-tolerance {
						t.Fatalf("trial %d, row %d: code %d as %d gives %v, less than %v", trial, r, c, code, moved, cost)
					}
				}
			}
			for _, scale := range []float32{st.scale * 0.99, st.scale * 1.01} {
				at := step{scale: scale, zero: st.zero}
				if moved := errorOfRow(t, s, r, func(c int) float64 { return float64(at.value(int(codes[c]))) }); moved < cost-tolerance {
					t.Errorf("trial %d, row %d: scale %v instead of %v gives %v, less than %v", trial, r, scale, st.scale, moved, cost)
				}
			}
		}
	}
}

// TestBestNearOptimum: for few inputs, close to the best of all codes and of
// many grids, by brute force.
func TestBestNearOptimum(t *testing.T) {
	const n = 5
	var found, optimum float64
	for trial := range 30 {
		d := newData(uint64(trial), shape{out: 1, in: n, groups: 1, samples: 8})
		o := Options{Method: Best, Bits: 2}.WithDefaults()
		s := factored(t, d.prob, o)
		if err := s.round(context.Background()); err != nil {
			t.Fatal(err)
		}
		st := stepAt(&s.solution.Grid, 0)
		found += errorOfRow(t, s, 0, func(c int) float64 { return float64(st.value(int(s.solution.Codes[c]))) })
		optimum += bruteForce(t, s)
	}
	if found > 1.15*optimum {
		t.Errorf("error %v, optimum %v over 30 problems", found, optimum)
	}
}

// bruteForce tries all codes of 2 bits and all zero points, each with its best
// scale.
func bruteForce(t *testing.T, s *solver) float64 {
	t.Helper()
	h, err := s.Grams[0].DampedH(context.Background(), s.Pool)
	if err != nil {
		t.Fatal(err)
	}
	n := s.target.Cols
	w := linalg.Row(s.target, 0)
	hw := make([]float64, n)
	for i := range hw {
		hw[i] = vec.Dot64(linalg.Row(h, i), w)
	}
	ww := vec.Dot64(w, hw)
	least := ww
	a := make([]float64, n)
	for zero := -2; zero <= 1; zero++ {
		for k := range 1 << (2 * n) {
			for j := range a {
				a[j] = float64(k>>(2*j)&3 - 2 - zero)
			}
			aw := vec.Dot64(a, hw)
			if aa := quadForm(h, a); aa > 0 && aw > 0 {
				least = min(least, ww-aw*aw/aa)
			}
		}
	}
	return least
}

// TestResidualTarget: errors with a residual target, with and without a bias,
// are those of the data.
func TestResidualTarget(t *testing.T) {
	for _, mismatch := range []float64{0, 0.2} {
		for _, method := range []Method{Nearest, GPTQ, AdaRound, Best} {
			for _, corrected := range []bool{false, true} {
				name := fmt.Sprintf("%s, mismatch %v, bias %v", method, mismatch, corrected)
				d := newData(11, shape{out: 6, in: 20, groups: 2, samples: 50, mismatch: mismatch})
				lost := addResidual(d, 12)
				s := solve(t, d.prob, quick(Options{Method: method, Bits: 3, Align: true, Residual: true, BiasCorrection: corrected, Centre: corrected}))
				want, v := 0.0, values(s)
				for r := range 6 {
					g := d.prob.Group(r)
					for i := range d.x[g].Rows {
						e := dot32(rowOf32(d.prob.Weight, r), linalg.Row(d.x[g], i)) + lost.Data[i*6+r] - dot32(v[r*20:][:20], linalg.Row(d.xt[g], i))
						if corrected {
							e -= s.Bias[r]
						}
						want += e * e
					}
				}
				if math.Abs(s.Errors.Solved-want) > 1e-8*want {
					t.Errorf("%s: error %v, from the data %v", name, s.Errors.Solved, want)
				}
				plain := solve(t, d.prob, quick(Options{Method: method, Bits: 3, Align: true, BiasCorrection: corrected, Centre: corrected}))
				if method != Nearest && !(s.Errors.Solved < plainError(d, plain, lost, corrected)) {
					t.Errorf("%s: no better than without the residual target", name)
				}
			}
		}
	}
}

func plainError(d data, s *layer.Solution, lost matrix64, corrected bool) float64 {
	sum, v := 0.0, values(s)
	for r := range s.Rows {
		g := d.prob.Group(r)
		for i := range d.x[g].Rows {
			e := dot32(rowOf32(d.prob.Weight, r), linalg.Row(d.x[g], i)) + lost.Data[i*s.Rows+r] - dot32(v[r*s.Cols:][:s.Cols], linalg.Row(d.xt[g], i))
			if corrected {
				e -= s.Bias[r]
			}
			sum += e * e
		}
	}
	return sum
}

type matrix64 = struct{ Data []float64 }

// addResidual gives the problem a residual target that its inputs can partly
// make up for, and returns R − R̃, samples × outputs.
func addResidual(d data, seed uint64) matrix64 {
	rng := rand.New(rand.NewPCG(seed, 1))
	w, m := d.prob.Weight, d.prob.Moments
	samples, out := d.x[0].Rows, w.Rows
	lost := make([]float64, samples*out)
	energy := make([]float64, out)
	res := &layer.Residual{Sum: make([]float64, out), Energy: energy}
	for range d.x {
		res.Cross = append(res.Cross, linalg.NewGeneral(out/len(d.x), w.Cols))
	}
	for r := range out {
		g := d.prob.Group(r)
		first, _ := d.prob.GroupRows(g)
		for i := range samples {
			x := linalg.Row(d.xt[g], i)
			v := 0.3*x[r%w.Cols] + 0.02*rng.NormFloat64() + 0.01
			lost[i*out+r] = v
			res.Sum[r] += v
			vec.Axpy64(v, x, linalg.Row(res.Cross[g], r-first))
			y := dot32(rowOf32(w, r), linalg.Row(d.x[g], i)) + v
			energy[r] += y * y
		}
	}
	m.Residual = map[string]*layer.Residual{d.prob.Layer: res}
	return matrix64{lost}
}
