package quantize

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// data is a random problem with the inputs that its moments sum, so that a test
// can compute an error from the data itself.
type data struct {
	prob *layer.Problem
	x    []blas64.General // inputs of each group in the original model
	xt   []blas64.General // in the compressed one; the same matrices when the streams are
}

type shape struct {
	out, in, groups, samples int
	mismatch                 float64 // size of X̃ − X relative to X; 0 for G = nil
}

// newData draws correlated, non-negative inputs of unequal size, as ReLU layers
// see them, and heavy-tailed weights.
func newData(seed uint64, s shape) data {
	rng := rand.New(rand.NewPCG(seed, 1))
	d := data{prob: newProblem(s.out, s.in, s.groups)}
	for i := range d.prob.Weight.Data {
		v := rng.NormFloat64()
		d.prob.Weight.Data[i] = float32(0.1 * v * math.Abs(v))
	}
	for range s.groups {
		x := linalg.NewGeneral(s.samples, s.in)
		size := make([]float64, s.in)
		for j := range size {
			size[j] = math.Exp(rng.NormFloat64())
		}
		for r := range x.Rows {
			shared, last := rng.NormFloat64(), 0.0
			for j := range s.in {
				last = 0.8*last + 0.6*rng.NormFloat64()
				x.Data[r*s.in+j] = size[j] * max(0, last+0.5*shared+0.3)
			}
		}
		xt := x
		if s.mismatch > 0 {
			xt = linalg.Clone(x)
			for i := range xt.Data {
				xt.Data[i] = xt.Data[i]*(1+s.mismatch*rng.NormFloat64()) + 0.3*s.mismatch*rng.NormFloat64()
			}
		}
		d.x, d.xt = append(d.x, x), append(d.xt, xt)
	}
	d.setMoments()
	return d
}

func newProblem(out, in, groups int) *layer.Problem {
	return &layer.Problem{
		Layer: "test", Kind: layer.Linear, Shape: []int{out, in}, Groups: groups, ScaleType: dtype.F32,
		Weight: blas32.General{Rows: out, Cols: in, Stride: in, Data: make([]float32, out*in)},
	}
}

// setMoments computes the moments of the data, all in float64.
func (d data) setMoments() {
	w := d.prob.Weight
	m := &layer.Moments{Rows: int64(d.x[0].Rows), Groups: len(d.x), Inputs: w.Cols, Energy: map[string][]float64{}}
	for g := range d.x {
		m.H = append(m.H, product(d.xt[g], d.xt[g]))
		if &d.x[g].Data[0] != &d.xt[g].Data[0] {
			m.G = append(m.G, product(d.xt[g], d.x[g]))
		}
		m.SumX = append(m.SumX, columnSums(d.x[g])...)
		m.SumXt = append(m.SumXt, columnSums(d.xt[g])...)
	}
	energy := make([]float64, w.Rows)
	for r := range energy {
		x := d.x[d.prob.Group(r)]
		for i := range x.Rows {
			y := dot32(rowOf32(w, r), linalg.Row(x, i))
			energy[r] += y * y
		}
	}
	m.Energy[d.prob.Layer] = energy
	d.prob.Moments = m
}

// setH gives a problem one symmetric H for both streams.
func setH(prob *layer.Problem, h blas64.General) {
	m := &layer.Moments{
		Rows: 1, Groups: 1, Inputs: h.Rows, H: []blas64.General{h}, Energy: map[string][]float64{},
		SumX: make([]float64, h.Rows), SumXt: make([]float64, h.Rows),
	}
	energy := make([]float64, prob.Weight.Rows)
	for r := range energy {
		w := float64s(rowOf32(prob.Weight, r))
		energy[r] = quadForm(h, w)
	}
	m.Energy[prob.Layer] = energy
	prob.Moments = m
}

// product returns AᵀB, plainly.
func product(a, b blas64.General) blas64.General {
	c := linalg.NewGeneral(a.Cols, b.Cols)
	for r := range a.Rows {
		for i, v := range linalg.Row(a, r) {
			for j, u := range linalg.Row(b, r) {
				c.Data[i*c.Stride+j] += v * u
			}
		}
	}
	return c
}

func columnSums(a blas64.General) []float64 {
	s := make([]float64, a.Cols)
	for r := range a.Rows {
		for j, v := range linalg.Row(a, r) {
			s[j] += v
		}
	}
	return s
}

func dot32(w []float32, x []float64) float64 {
	s := 0.0
	for i, v := range w {
		s += float64(v) * x[i]
	}
	return s
}

func float64s(a []float32) []float64 {
	b := make([]float64, len(a))
	for i, v := range a {
		b[i] = float64(v)
	}
	return b
}

func matrix(rows ...[]float64) blas64.General {
	a := linalg.NewGeneral(len(rows), len(rows[0]))
	for i, r := range rows {
		copy(linalg.Row(a, i), r)
	}
	return a
}

func quadForm(h blas64.General, d []float64) float64 {
	s := 0.0
	for i, v := range d {
		for j, u := range linalg.Row(h, i) {
			s += v * u * d[j]
		}
	}
	return s
}

// directError is ‖XWᵀ − X̃Ŵᵀ‖² from the data.
func (d data) directError(values []float32) float64 {
	w, sum := d.prob.Weight, 0.0
	for r := range w.Rows {
		g := d.prob.Group(r)
		for i := range d.x[g].Rows {
			e := dot32(rowOf32(w, r), linalg.Row(d.x[g], i)) - dot32(values[r*w.Cols:][:w.Cols], linalg.Row(d.xt[g], i))
			sum += e * e
		}
	}
	return sum
}

// dampedError is the error with λ‖w − ŵ‖² of each group added.
func (d data) dampedError(values []float32, damping float64) float64 {
	w, sum := d.prob.Weight, d.directError(values)
	for r := range w.Rows {
		lambda := damping * linalg.MeanDiagonal(d.prob.Moments.H[d.prob.Group(r)])
		for c, v := range rowOf32(w, r) {
			e := float64(v) - float64(values[r*w.Cols+c])
			sum += lambda * e * e
		}
	}
	return sum
}

func solve(t testing.TB, prob *layer.Problem, o Options) *layer.Solution {
	t.Helper()
	s, err := Solve(context.Background(), nil, prob, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Grid.Check(s.Rows, s.Cols); err != nil {
		t.Fatal(err)
	}
	lo, hi := s.Grid.Range()
	for i, c := range s.Codes {
		if int(c) < lo || int(c) > hi {
			t.Fatalf("code %d is %d, outside %d…%d", i, c, lo, hi)
		}
	}
	for i, v := range values(s) {
		if !finite(float64(v)) {
			t.Fatalf("value %d is %v", i, v)
		}
	}
	return s
}

func values(s *layer.Solution) []float32 {
	v := make([]float32, len(s.Codes))
	s.Weight(v)
	return v
}

// methods are those whose every option the general tests cross.
var methods = []Method{Nearest, GPTQ, AdaRound, Best}

// everyOption calls f with methods, granularities, symmetry and range search
// crossed.
func everyOption(f func(name string, o Options)) {
	for _, method := range methods {
		for _, granularity := range []layer.Granularity{layer.PerTensor, layer.PerChannel, layer.PerGroup} {
			for _, symmetric := range []bool{false, true} {
				for _, search := range []Range{MinMax, MSE} {
					o := Options{Method: method, Bits: 3, Granularity: granularity, Symmetric: symmetric, Range: search}
					if granularity == layer.PerGroup {
						o.GroupSize = 4
					}
					f(fmt.Sprintf("%s/%s/symmetric=%v/%s", method, granularity, symmetric, search), o)
				}
			}
		}
	}
}

// factored returns a solver at the point where methods take over.
func factored(t *testing.T, prob *layer.Problem, o Options) *solver {
	t.Helper()
	target, err := NewFactors(prob.Moments).Target(context.Background(), pool.New(1), prob, o.kind(), o.Residual)
	if err != nil {
		t.Fatal(err)
	}
	s := newSolver(target, o)
	return s
}

func diagonal(h blas64.General) []float64 {
	d := make([]float64, h.Rows)
	for i := range d {
		d[i] = h.Data[i*h.Stride+i]
	}
	return d
}

// reordered returns a copy of h with its rows and columns in the given order.
func reordered(h blas64.General, order []int) blas64.General {
	return inOrderOf(h, nil, nil, order)
}
