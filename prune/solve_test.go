package prune

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// data is a random layer with the inputs that its moments sum.
type data struct {
	prob  *layer.Problem
	x, xt []blas64.General // of each group, in the original and the compressed model
}

// newData draws a layer whose streams differ by mismatch, 0 for not at all.
func newData(seed uint64, out, in, groups int, d dtype.DType, mismatch float64) data {
	rng := rand.New(rand.NewPCG(seed, 2))
	v := data{prob: &layer.Problem{
		Layer: "test", Kind: layer.Linear, Shape: []int{out, in}, Groups: groups, Type: d, ScaleType: d,
		Weight: blas32.General{Rows: out, Cols: in, Stride: in, Data: make([]float32, out*in)},
	}}
	w := v.prob.Weight
	for i := range w.Data {
		w.Data[i] = d.Round(float32(0.2 * rng.NormFloat64()))
	}
	samples := 3*in + 5
	m := &layer.Moments{Rows: int64(samples), Groups: groups, Inputs: in, Energy: map[string][]float64{}}
	energy := make([]float64, out)
	for g := range groups {
		x := linalg.NewGeneral(samples, in)
		for r := range samples {
			last := 0.4
			for j := range in {
				last = 0.8*last + 0.6*rng.NormFloat64()
				x.Data[r*in+j] = (0.3 + float64(j%5)) * max(0, last+0.3)
			}
		}
		xt := x
		if mismatch > 0 {
			xt = linalg.Clone(x)
			for i := range xt.Data {
				xt.Data[i] += mismatch * rng.NormFloat64()
			}
			m.G = append(m.G, textbook(xt, x))
		}
		v.x, v.xt = append(v.x, x), append(v.xt, xt)
		m.H = append(m.H, textbook(xt, xt))
		for j := range in {
			var a, b float64
			for r := range samples {
				a, b = a+x.Data[r*in+j], b+xt.Data[r*in+j]
			}
			m.SumX, m.SumXt = append(m.SumX, a), append(m.SumXt, b)
		}
		from, to := v.prob.GroupRows(g)
		for r := from; r < to; r++ {
			for i := range samples {
				y := dot(w.Data[r*in:][:in], x.Data[i*in:][:in])
				energy[r] += y * y
			}
		}
	}
	m.Energy["test"] = energy
	v.prob.Moments = m
	return v
}

// textbook returns AᵀB.
func textbook(a, b blas64.General) blas64.General {
	c := linalg.NewGeneral(a.Cols, b.Cols)
	for r := range a.Rows {
		for i := range a.Cols {
			for j := range b.Cols {
				c.Data[i*c.Stride+j] += a.Data[r*a.Stride+i] * b.Data[r*b.Stride+j]
			}
		}
	}
	return c
}

func dot(w []float32, x []float64) (sum float64) {
	for i, v := range w {
		sum += float64(v) * x[i]
	}
	return sum
}

// direct is the error from the data, less each output's mean where centred, and
// the mean itself, plus damping·mean(diag H)·‖Ŵ−W‖² of each group.
func (d data) direct(values []float32, centred bool, damping float64) (sum float64, means []float64) {
	w := d.prob.Weight
	for r := range w.Rows {
		g := d.prob.Group(r)
		x, xt := d.x[g], d.xt[g]
		var square, mean float64
		for i := range x.Rows {
			e := dot(w.Data[r*w.Cols:][:w.Cols], x.Data[i*x.Cols:][:w.Cols]) - dot(values[r*w.Cols:][:w.Cols], xt.Data[i*x.Cols:][:w.Cols])
			square, mean = square+e*e, mean+e/float64(x.Rows)
		}
		means = append(means, mean)
		if sum += square; centred {
			sum -= mean * mean * float64(x.Rows)
		}
		lambda := damping * linalg.MeanDiagonal(d.prob.Moments.H[g])
		for c := range w.Cols {
			off := float64(values[r*w.Cols+c]) - float64(w.Data[r*w.Cols+c])
			sum += lambda * off * off
		}
	}
	return sum, means
}

func solveLayer(t *testing.T, workers int, prob *layer.Problem, o Options) *layer.Solution {
	t.Helper()
	s, err := Solve(background, pool.New(workers), gram.NewFactors(prob.Moments), prob, o)
	if err != nil {
		t.Fatalf("%+v: %v", o, err)
	}
	return s
}

func encoded(t *testing.T, s *layer.Solution) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := layer.EncodeSolution(&b, s); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// solveCases are all methods, patterns and scopes, with settings that rotate.
func solveCases() (all []Options) {
	patterns := []Pattern{{}, {Kind: NofM, N: 2, M: 4}, {Kind: NofM, N: 1, M: 3}, {Kind: Blocks, Rows: 2, Cols: 3}}
	for _, method := range allMethods {
		for _, p := range patterns {
			for _, scope := range []Scope{PerLayer, PerRow} {
				if scope.Check(p) != nil {
					continue
				}
				for k := range 5 {
					o := Options{Method: method, Pattern: p, Scope: scope}
					switch k {
					case 1:
						o.Align, o.Residual = true, true
					case 2:
						o.Polish = true
						o.BiasCorrection, o.Centre = true, true
					case 3:
						o.Polish, o.Align = true, true
						if p.Kind != Blocks {
							o.Swaps = 3
						}
					case 4:
						o.BiasCorrection = true
					}
					if o.Check() == nil {
						all = append(all, o)
					}
				}
			}
		}
	}
	return all
}

// TestSolve: of every method, pattern, scope and setting, on plain, grouped and
// depthwise layers: exact counts, the pattern in each group, exact values, errors
// and biases as the data give them, and the same bytes for any number of workers.
func TestSolve(t *testing.T) {
	shapes := []struct{ out, in, groups int }{{8, 12, 1}, {6, 13, 1}, {12, 9, 3}, {6, 9, 6}}
	types := []dtype.DType{dtype.F32, dtype.F16, dtype.BF16}
	for n, o := range solveCases() {
		for k, shape := range shapes {
			d := newData(uint64(k), shape.out, shape.in, shape.groups, types[(n+k)%3], 0.1*float64((n/3+k)%2))
			if o.Pattern.Kind == Blocks && (shape.in%3 != 0 || shape.out/shape.groups%2 != 0) {
				continue
			}
			for _, sparsity := range []float64{0.5, 0.93} {
				o.Survivors = o.Pattern.Survivors(shape.out, shape.in, sparsity)
				if o.Pattern.Kind == Blocks {
					blocks := shape.out * shape.in / 6
					o.Survivors = 6 * max(1, blocks-Pruned(blocks, sparsity))
				}
				checkSolution(t, d, o, solveLayer(t, 1, d.prob, o))
				if sparsity > 0.5 {
					continue
				}
				want := encoded(t, solveLayer(t, 1, d.prob, o))
				for _, workers := range []int{2, 5} {
					if !bytes.Equal(encoded(t, solveLayer(t, workers, d.prob, o)), want) {
						t.Errorf("%+v, %+v: other bytes with %d workers", shape, o, workers)
					}
				}
			}
		}
	}
}

func checkSolution(t *testing.T, d data, o Options, s *layer.Solution) {
	t.Helper()
	w := d.prob.Weight
	what := fmt.Sprintf("%d×%d in %d groups, %s, %+v", w.Rows, w.Cols, d.prob.Groups, d.prob.Type, o)
	if got := s.Mask.Survivors(); got != o.Survivors || len(s.Fallbacks) > 0 {
		t.Errorf("%s: %d survivors, fallbacks %v", what, got, s.Fallbacks)
	}
	for g := range d.prob.Groups {
		from, to := d.prob.GroupRows(g)
		checkMask(t, what, o.Pattern, maskRows(s.Mask, from, to))
	}
	exact := (o.Method == ByMagnitude || o.Method == ByWanda) && !o.Polish && !o.Align
	for i, v := range s.Values {
		switch kept := s.Mask.At(i/w.Cols, i%w.Cols); {
		case !kept && v != 0 || v != d.prob.Type.Round(v):
			t.Fatalf("%s: value %d is %v", what, i, v)
		case kept && exact && v != w.Data[i]:
			t.Fatalf("%s: survivor %d is %v, want %v", what, i, v, w.Data[i])
		}
	}
	sum, means := d.direct(s.Values, o.Centre, 0)
	if e := s.Errors; math.Abs(e.Solved-sum) > 1e-9*e.Energy || e.Nearest <= 0 {
		t.Errorf("%s: errors %+v, the data's is %v", what, e, sum)
	}
	if (s.Bias != nil) != o.BiasCorrection {
		t.Fatalf("%s: bias %v", what, s.Bias)
	}
	for r, b := range s.Bias {
		if math.Abs(b-means[r]) > 1e-9 {
			t.Errorf("%s: bias %d is %v, want %v", what, r, b, means[r])
		}
	}
}

// checkMask reports a group's mask that does not have the pattern.
func checkMask(t *testing.T, what string, p Pattern, m *layer.Mask) {
	t.Helper()
	for r := range m.Rows {
		for c := range m.Cols {
			switch {
			case p.Kind == Blocks && m.At(r, c) != m.At(r/p.Rows*p.Rows, c/p.Cols*p.Cols):
				t.Fatalf("%s: a block is divided at %d, %d", what, r, c)
			case p.Kind == NofM && c%p.M == 0:
				n := 0
				for k := c; k < min(c+p.M, m.Cols); k++ {
					if m.At(r, k) {
						n++
					}
				}
				if n != p.kept(min(p.M, m.Cols-c)) {
					t.Fatalf("%s: %d survivors in the group at %d, %d", what, n, r, c)
				}
			}
		}
	}
}

// TestSolvePolish: neither polish nor swaps raise the damped error.
func TestSolvePolish(t *testing.T) {
	for seed := range uint64(6) {
		d := newData(seed, 10, 16, 1+int(seed%2), dtype.F32, 0.1*float64(seed/3))
		for _, method := range allMethods {
			last := math.Inf(1)
			for _, o := range []Options{{}, {Polish: true}, {Polish: true, Swaps: 5}} {
				o.Method, o.Align, o.Survivors = method, true, 80
				e, _ := d.direct(solveLayer(t, 2, d.prob, o).Values, false, 0.01)
				if e > last*(1+1e-6) {
					t.Errorf("seed %d, %s: damped error %v after %v", seed, method, e, last)
				}
				last = e
			}
		}
	}
}

// TestSolveNothing: a layer asked for no survivors keeps one weight or block, and
// says so.
func TestSolveNothing(t *testing.T) {
	for _, groups := range []int{1, 3} {
		d := newData(1, 6, 12, groups, dtype.F32, 0)
		for _, method := range allMethods {
			for _, p := range []Pattern{{}, {Kind: Blocks, Rows: 2, Cols: 4}} {
				s := solveLayer(t, 1, d.prob, Options{Method: method, Pattern: p})
				want := max(1, p.Rows*p.Cols)
				if s.Mask.Survivors() != want || len(s.Fallbacks) != 1 || s.Fallbacks[0].Asked != "no survivors" {
					t.Errorf("%s, %s, %d groups: %d survivors, fallbacks %v", method, p, groups, s.Mask.Survivors(), s.Fallbacks)
				}
			}
		}
	}
}

// TestSolveDataFree: magnitude needs no moments; all else says that it does.
func TestSolveDataFree(t *testing.T) {
	d := newData(1, 4, 8, 2, dtype.F16, 0)
	d.prob.Moments = nil
	s := solveLayer(t, 1, d.prob, Options{Method: ByMagnitude, Survivors: 10})
	if s.Mask.Survivors() != 10 || s.Errors != (layer.Errors{}) {
		t.Errorf("%d survivors, errors %+v", s.Mask.Survivors(), s.Errors)
	}
	for _, o := range []Options{{}, {Method: ByWanda}, {Method: BySparseGPT}, {Method: ByMagnitude, Polish: true}, {Method: ByMagnitude, BiasCorrection: true}, {Method: ByMagnitude, Align: true}} {
		if _, err := Solve(background, nil, gram.NewFactors(nil), d.prob, o); !errors.Is(err, ErrNoMoments) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// TestSolveRefuses: what is wrong with options or problem has a type.
func TestSolveRefuses(t *testing.T) {
	var option *OptionError
	var pattern *PatternError
	var input *layer.InputError
	for name, c := range map[string]struct {
		target any
		o      Options
		change func(d *data)
	}{
		"method":         {&option, Options{Method: "magnetude"}, nil},
		"survivors":      {&option, Options{Survivors: 33}, nil},
		"negative":       {&option, Options{Survivors: -1}, nil},
		"rho":            {&option, Options{ADMM: ADMMOptions{Iterations: 5, Rho: -1}}, nil},
		"damping":        {&option, Options{Damping: math.NaN()}, nil},
		"unused damping": {&option, Options{Method: ByWanda, Damping: 0.1}, nil},
		"swaps":          {&option, Options{Swaps: 1}, nil},
		"residual":       {&option, Options{Residual: true}, nil},
		"centre":         {&option, Options{Centre: true}, nil},
		"round":          {&option, Options{Round: func(int, int, float64) float64 { return 0 }}, nil},
		"pattern":        {&pattern, Options{Pattern: Pattern{Kind: NofM, N: 4, M: 4}}, nil},
		"scope":          {&pattern, Options{Pattern: Pattern{Kind: NofM, N: 2, M: 4}, Scope: PerRow}, nil},
		"type":           {&input, Options{}, func(d *data) { d.prob.Type = dtype.I8 }},
		"weight":         {&input, Options{}, func(d *data) { d.prob.Weight.Data[3] = float32(math.NaN()) }},
		"other moments":  {&input, Options{}, func(d *data) { m := *d.prob.Moments; d.prob.Moments = &m }},
		"moments":        {&input, Options{}, func(d *data) { d.prob.Moments.H[0].Data[1] = math.Inf(1) }},
		"overflow": {&input, Options{Survivors: 16}, func(d *data) {
			d.prob.Type = dtype.F16
			for i := range d.prob.Weight.Data {
				d.prob.Weight.Data[i] *= 1e7
			}
		}},
	} {
		d := newData(1, 4, 8, 1, dtype.F32, 0)
		f := gram.NewFactors(d.prob.Moments)
		if c.change != nil {
			c.change(&d)
		}
		if _, err := Solve(background, nil, f, d.prob, c.o); err == nil || !errors.As(err, c.target) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
