package prune

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// unitCase is a random reader with the data that its moments are of.
type unitCase struct {
	problem UnitReader
	x, xt   blas64.General // rows × inputs
	extra   blas64.General // rows × outputs, R − R̃; empty for none
}

func randomMatrix(r *rand.Rand, rows, cols int) blas64.General {
	m := linalg.NewGeneral(rows, cols)
	for i := range m.Data {
		m.Data[i] = r.NormFloat64()
	}
	return m
}

func newUnitCase(r *rand.Rand, rows, units, columns, outputs int, twoStreams, centre, residual bool) unitCase {
	n := units * columns
	mix, x := randomMatrix(r, n, n), linalg.NewGeneral(rows, n)
	for i := range rows {
		z := randomMatrix(r, 1, n)
		for j := range n {
			x.Data[i*n+j] = .5 + .6*r.NormFloat64()
			for k := range n {
				x.Data[i*n+j] += .4 * z.Data[k] * mix.Data[k*n+j]
			}
		}
	}
	c := unitCase{x: x, xt: x}
	m := &layer.Moments{Rows: int64(rows), Groups: 1, Inputs: n, SumX: make([]float64, n), SumXt: make([]float64, n), Energy: map[string][]float64{}}
	gram := func(a, b blas64.General) blas64.General {
		g := linalg.NewGeneral(a.Cols, b.Cols)
		for i := range rows {
			for j, v := range unitLine(a, i) {
				for k, u := range unitLine(b, i) {
					g.Data[j*g.Stride+k] += v * u
				}
			}
		}
		return g
	}
	if twoStreams {
		c.xt = linalg.Clone(x)
		for i := range c.xt.Data {
			c.xt.Data[i] += .3 * r.NormFloat64()
		}
		m.G = []blas64.General{gram(c.xt, x)}
	}
	m.H = []blas64.General{gram(c.xt, c.xt)}
	for i := range rows {
		for j := range n {
			m.SumX[j] += x.Data[i*n+j]
			m.SumXt[j] += c.xt.Data[i*n+j]
		}
	}
	w := blas32.General{Rows: outputs, Cols: n, Stride: n, Data: make([]float32, outputs*n)}
	for i := range w.Data {
		w.Data[i] = float32(r.NormFloat64())
	}
	c.problem = UnitReader{Columns: columns, Centre: centre, Problem: &layer.Problem{Layer: "l", Kind: layer.Linear, Groups: 1, Weight: w, Moments: m}}
	m.Energy["l"] = make([]float64, outputs)
	target := c.target()
	if residual {
		c.extra = randomMatrix(r, rows, outputs)
		cross := gram(c.extra, c.xt)
		res := &layer.Residual{Cross: []blas64.General{cross}, Sum: make([]float64, outputs), Energy: make([]float64, outputs)}
		for i := range rows {
			for k := range outputs {
				v := c.extra.Data[i*outputs+k]
				res.Sum[k] += v
				res.Energy[k] += (target.Data[i*outputs+k] + v) * (target.Data[i*outputs+k] + v)
			}
		}
		m.Residual = map[string]*layer.Residual{"l": res}
	}
	for i := range rows {
		for k := range outputs {
			m.Energy["l"][k] += target.Data[i*outputs+k] * target.Data[i*outputs+k]
		}
	}
	return c
}

// target is Y*, rows × outputs.
func (c unitCase) target() blas64.General {
	w := c.problem.Problem.Weight
	y := linalg.NewGeneral(c.x.Rows, w.Rows)
	for i := range c.x.Rows {
		for k := range w.Rows {
			for j, v := range unitLine(c.x, i) {
				y.Data[i*w.Rows+k] += v * float64(w.Data[k*w.Stride+j])
			}
			if c.extra.Rows > 0 {
				y.Data[i*w.Rows+k] += c.extra.Data[i*w.Rows+k]
			}
		}
	}
	return y
}

// lossOf is ‖Y* − X̃_K·Ŵᵀ − b‖² from the data.
func (c unitCase) lossOf(done UnitResult, keep []int, centre bool) float64 {
	y := c.target()
	sum := 0.0
	for k := range y.Cols {
		left := make([]float64, y.Rows)
		mean := 0.0
		for i := range left {
			left[i] = y.Data[i*y.Cols+k]
			at := 0
			for _, u := range keep {
				for j := range c.problem.Columns {
					left[i] -= c.xt.Data[i*c.xt.Cols+u*c.problem.Columns+j] * float64(done.Weight.Data[k*done.Weight.Cols+at])
					at++
				}
			}
			if done.Bias != nil {
				left[i] -= done.Bias[k]
			}
			mean += left[i] / float64(y.Rows)
		}
		for _, v := range left {
			if centre && done.Bias == nil { // the error is that after a correction
				v -= mean
			}
			sum += v * v
		}
	}
	return sum
}

// The errors that are told are those of the data, and no weights near the
// repaired ones have a smaller one.
func TestUnitRepairAgainstData(t *testing.T) {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(1, 1))
	for round := range 40 {
		units, columns, outputs := 2+r.IntN(5), 1+r.IntN(3), 1+r.IntN(4)
		two, centre, residual := r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0
		c := newUnitCase(r, 40+r.IntN(30), units, columns, outputs, two, centre, residual)
		prob := &UnitProblem{Units: units, Run: units, Readers: []UnitReader{c.problem}}
		for _, score := range []UnitScore{UnitMagnitude, UnitEnergy, UnitError} {
			o := UnitOptions{Score: score, Keep: 1 + r.IntN(units), Repair: true, Damping: 1e-9}
			s, err := SelectUnits(ctx, pool.New(2), prob, o)
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Keep) != o.Keep || !slices.IsSorted(s.Keep) || len(s.Order) != units-o.Keep {
				t.Fatalf("keeps %v, and %v went", s.Keep, s.Order)
			}
			done := s.Readers[0]
			what := fmt.Sprint(round, score, two, centre, residual)
			want := c.lossOf(done, s.Keep, centre)
			if math.Abs(done.Errors.Solved-want) > 1e-6*(1+want) {
				t.Errorf("%s: error %v, the data have %v", what, done.Errors.Solved, want)
			}
			for i := range done.Weight.Data {
				for _, step := range []float32{-.01, .01} {
					near := done
					near.Weight.Data = slices.Clone(done.Weight.Data)
					near.Weight.Data[i] += step
					if c.lossOf(near, s.Keep, centre) < want-1e-5*(1+want) {
						t.Errorf("%s: weight %d%+v is better", what, i, step)
					}
				}
			}
			if (done.Bias != nil) != centre {
				t.Errorf("%s: bias %v", what, done.Bias)
			}

			o.Repair = false
			if s, err = SelectUnits(ctx, nil, prob, o); err != nil {
				t.Fatal(err)
			}
			done = s.Readers[0]
			if want := c.lossOf(done, s.Keep, centre); math.Abs(done.Errors.Solved-want) > 1e-6*(1+want) || done.Errors.Solved < s.Readers[0].Errors.Nearest-1e-6*(1+want) {
				t.Errorf("%s: without repair: error %v, the data have %v", what, done.Errors.Solved, want)
			}
			w := c.problem.Problem.Weight
			for k := range outputs {
				for i, u := range s.Keep {
					if !slices.Equal(done.Weight.Data[k*done.Weight.Cols+i*columns:][:columns], w.Data[k*w.Cols+u*columns:][:columns]) {
						t.Fatalf("%s: without repair, weights changed", what)
					}
				}
			}
		}
	}
}

// dampedLoss is the least damped error that some units leave, all readers
// together, by a plain solver.
func dampedLoss(t *testing.T, prob *UnitProblem, keep []int, damping float64) float64 {
	t.Helper()
	sum := 0.0
	for _, one := range prob.Readers {
		r := &unitSystem{UnitReader: one}
		if err := r.prepare(context.Background(), nil, damping); err != nil {
			t.Fatal(err)
		}
		cols := r.columns(keep)
		_, w, err := r.solve(context.Background(), nil, cols)
		if err != nil {
			t.Fatal(err)
		}
		// The least of ŵᵀAŵ − 2ŵᵀb is −ŵᵀb at ŵ = A⁻¹b.
		for i := range w.Rows {
			for k, v := range unitLine(w, i) {
				sum -= v * r.want.Data[i*r.want.Stride+cols[k]]
			}
		}
	}
	return sum
}

// A score of UnitError is by how much the least error grows; the one that goes
// first is the best of all.
func TestUnitErrorIsTheGrowth(t *testing.T) {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(2, 2))
	for range 30 {
		units := 3 + r.IntN(5)
		prob := &UnitProblem{Units: units, Run: units}
		for range 1 + r.IntN(2) {
			c := newUnitCase(r, 60, units, 1+r.IntN(3), 1+r.IntN(4), r.IntN(2) == 0, r.IntN(2) == 0, false)
			prob.Readers = append(prob.Readers, c.problem)
		}
		s, err := SelectUnits(ctx, nil, prob, UnitOptions{Score: UnitError, Keep: 1})
		if err != nil {
			t.Fatal(err)
		}
		var left []int
		for u := range units {
			left = append(left, u)
		}
		before := dampedLoss(t, prob, left, .01)
		for i, gone := range s.Order {
			best := math.Inf(1)
			var after float64
			for _, u := range left {
				without := slices.DeleteFunc(slices.Clone(left), func(v int) bool { return v == u })
				loss := dampedLoss(t, prob, without, .01)
				best = min(best, loss)
				if u == gone {
					after = loss
				}
			}
			if math.Abs(after-before-s.Scores[i]) > 1e-7*(1+math.Abs(before)) || after > best+1e-9*(1+math.Abs(best)) {
				t.Fatalf("unit %d raises the error by %v, scored %v; best %v, got %v", gone, after-before, s.Scores[i], best, after)
			}
			left = slices.DeleteFunc(left, func(v int) bool { return v == gone })
			before = after
		}
		if !slices.Equal(left, s.Keep) {
			t.Errorf("%v stay, want %v", s.Keep, left)
		}
	}
}

// Runs keep the same number each, and the choice has the same bytes for any
// number of workers.
func TestUnitRunsAndWorkers(t *testing.T) {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(3, 3))
	for range 20 {
		runs, run := 1+r.IntN(4), 1+r.IntN(4)
		c := newUnitCase(r, 80, runs*run, 1+r.IntN(2), 3, true, true, false)
		prob := &UnitProblem{Units: runs * run, Run: run, Readers: []UnitReader{c.problem}}
		each := 1 + r.IntN(run)
		o := UnitOptions{Score: []UnitScore{UnitEnergy, UnitError}[r.IntN(2)], Keep: runs * each, Rounds: r.IntN(3), Repair: true}
		s, err := SelectUnits(ctx, pool.New(1), prob, o)
		if err != nil {
			t.Fatal(err)
		}
		count := make([]int, runs)
		for _, u := range s.Keep {
			count[u/run]++
		}
		for _, n := range count {
			if n != each {
				t.Errorf("runs of %d keep %v, want %d", run, count, each)
			}
		}
		again, err := SelectUnits(ctx, pool.New(3), prob, o)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(again.Keep, s.Keep) || !slices.Equal(again.Scores, s.Scores) || !slices.Equal(again.Readers[0].Weight.Data, s.Readers[0].Weight.Data) {
			t.Error("other bytes with other workers")
		}
	}
}

// With moments of orthogonal inputs, energy and error are the same, and a unit
// that says what another does is free to go.
func TestUnitScoresWorked(t *testing.T) {
	ctx := context.Background()
	h := linalg.NewGeneral(3, 3)
	copy(h.Data, []float64{4, 0, 0, 0, 1, 0, 0, 0, 9})
	p := &layer.Problem{
		Layer: "l", Groups: 1, Weight: blas32.General{Rows: 2, Cols: 3, Stride: 3, Data: []float32{1, 5, 1, 0, 0, 1}},
		Moments: &layer.Moments{Rows: 3, Groups: 1, Inputs: 3, H: []blas64.General{h}, SumX: make([]float64, 3), SumXt: make([]float64, 3), Energy: map[string][]float64{"l": {38, 9}}},
	}
	prob := &UnitProblem{Units: 3, Run: 3, Readers: []UnitReader{{Problem: p, Columns: 1}}}
	for score, want := range map[UnitScore][]float64{UnitMagnitude: {1, 2}, UnitEnergy: {4, 18}, UnitError: {4, 18}} {
		s, err := SelectUnits(ctx, nil, prob, UnitOptions{Score: score, Keep: 1, Damping: 1e-12})
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range want {
			if math.Abs(s.Scores[i]-v) > 1e-9 || !slices.Equal(s.Order, []int{0, 2}) {
				t.Errorf("%s: %v went with %v, want %v", score, s.Order, s.Scores, want)
			}
		}
	}
	prob.Squares = []float64{10, 0, 0} // of the weights that write them
	s, err := SelectUnits(ctx, nil, prob, UnitOptions{Score: UnitMagnitude, Keep: 2})
	if err != nil || !slices.Equal(s.Order, []int{2}) {
		t.Errorf("%v went, %v", s.Order, err)
	}

	copy(h.Data, []float64{4, 4, 0, 4, 4, 0, 0, 0, 9}) // inputs 0 and 1 are the same
	s, err = SelectUnits(ctx, nil, prob, UnitOptions{Score: UnitError, Keep: 2, Repair: true, Damping: 1e-9})
	if err != nil {
		t.Fatal(err)
	}
	if w := s.Readers[0].Weight.Data; !slices.Equal(s.Keep, []int{1, 2}) || math.Abs(float64(w[0])-6) > 1e-5 {
		t.Errorf("keeps %v with %v", s.Keep, w)
	}
}

func TestAddSquares(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	for range 50 {
		shape := []int{1 + r.IntN(4), 1 + r.IntN(4), 1 + r.IntN(4)}
		units, size, axis, offset := 1+r.IntN(3), 1+r.IntN(3), r.IntN(3), r.IntN(3)
		shape[axis] = offset + units*size + r.IntN(2)
		values := make([]float32, shape[0]*shape[1]*shape[2])
		want := make([]float64, units)
		for i := range values {
			values[i] = float32(r.IntN(9))
			at := []int{i / (shape[1] * shape[2]), i / shape[2] % shape[1], i % shape[2]}[axis] - offset
			if at >= 0 && at < units*size {
				want[at/size] += float64(values[i]) * float64(values[i])
			}
		}
		got := make([]float64, units)
		if err := AddSquares(got, values, shape, axis, offset, size); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	if _, ok := errors.AsType[*UnitInputError](AddSquares(make([]float64, 2), make([]float32, 3), []int{3}, 0, 0, 2)); !ok {
		t.Error("units beyond the axis are taken")
	}
}

func TestUnitCount(t *testing.T) {
	for _, c := range []struct {
		units, run int
		share      float64
		want       int
	}{{8, 8, 0, 8}, {8, 8, .25, 6}, {8, 8, 1, 1}, {8, 4, .5, 4}, {8, 4, .4, 4}, {8, 2, .5, 4}, {8, 2, .9, 4}, {10, 10, .25, 8}, {4, 1, .9, 4}} {
		if got := UnitCount(c.units, c.run, c.share); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

func TestUnitErrors(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	fresh := func() (*UnitProblem, UnitOptions) {
		c := newUnitCase(r, 20, 4, 1, 2, false, false, false)
		return &UnitProblem{Units: 4, Run: 2, Readers: []UnitReader{c.problem}}, UnitOptions{Score: UnitError, Keep: 2, Repair: true}
	}
	for what, spoil := range map[string]func(p *UnitProblem, o *UnitOptions){
		"no units":     func(p *UnitProblem, _ *UnitOptions) { p.Units = 0 },
		"uneven runs":  func(p *UnitProblem, _ *UnitOptions) { p.Run = 3 },
		"none stays":   func(_ *UnitProblem, o *UnitOptions) { o.Keep = 0 },
		"too many":     func(_ *UnitProblem, o *UnitOptions) { o.Keep = 6 },
		"uneven":       func(_ *UnitProblem, o *UnitOptions) { o.Keep = 3 },
		"score":        func(_ *UnitProblem, o *UnitOptions) { o.Score = "best" },
		"rounds":       func(_ *UnitProblem, o *UnitOptions) { o.Rounds = -1 },
		"damping":      func(_ *UnitProblem, o *UnitOptions) { o.Damping = math.NaN() },
		"squares":      func(p *UnitProblem, _ *UnitOptions) { p.Squares = []float64{1} },
		"no readers":   func(p *UnitProblem, _ *UnitOptions) { p.Readers = nil },
		"columns":      func(p *UnitProblem, _ *UnitOptions) { p.Readers[0].Columns = 2 },
		"no moments":   func(p *UnitProblem, _ *UnitOptions) { p.Readers[0].Problem.Moments = nil },
		"no rows":      func(p *UnitProblem, _ *UnitOptions) { p.Readers[0].Problem.Moments.Rows = 0 },
		"other inputs": func(p *UnitProblem, _ *UnitOptions) { p.Readers[0].Problem.Moments.Inputs = 5 },
		"not finite": func(p *UnitProblem, o *UnitOptions) {
			p.Readers[0].Problem.Weight.Data[0] = float32(math.NaN())
			o.Score = UnitEnergy
		},
	} {
		p, o := fresh()
		spoil(p, &o)
		if _, err := SelectUnits(context.Background(), nil, p, o); err == nil {
			t.Errorf("%s is taken", what)
		} else if _, ok := errors.AsType[*UnitInputError](err); !ok {
			t.Errorf("%s: %T %v", what, err, err)
		}
	}
	p, o := fresh()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := SelectUnits(ctx, nil, p, o); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// Inputs that are never other than zero are no fault.
	p, o = fresh()
	clear(p.Readers[0].Problem.Moments.H[0].Data)
	clear(p.Readers[0].Problem.Energy())
	if s, err := SelectUnits(context.Background(), nil, p, o); err != nil || s.Readers[0].Errors.Solved != 0 {
		t.Errorf("dead inputs: %v", err)
	}
}

func TestChooseCountsIsExact(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	for range 200 {
		sites := make([][]UnitChoice, 1+r.IntN(4))
		for i := range sites {
			for range 1 + r.IntN(4) {
				sites[i] = append(sites[i], UnitChoice{Cost: int64(r.IntN(20)), Loss: float64(r.IntN(30)) / 4})
			}
		}
		budget := int64(r.IntN(60))
		best, cheapest := math.Inf(1), int64(0)
		var try func(i int, cost int64, loss float64)
		try = func(i int, cost int64, loss float64) {
			if i == len(sites) {
				if cost <= budget && (loss < best || (loss == best && cost < cheapest)) {
					best, cheapest = loss, cost
				}
				return
			}
			for _, c := range sites[i] {
				try(i+1, cost+c.Cost, loss+c.Loss)
			}
		}
		try(0, 0, 0)
		picked, err := ChooseCounts(sites, budget)
		if (err != nil) != math.IsInf(best, 1) {
			t.Fatalf("error %v, best %v", err, best)
		}
		if err != nil {
			continue
		}
		cost, loss := int64(0), 0.0
		for i, k := range picked {
			cost, loss = cost+sites[i][k].Cost, loss+sites[i][k].Loss
		}
		if loss != best || cost != cheapest {
			t.Errorf("loss %v at cost %d, best %v at %d", loss, cost, best, cheapest)
		}
	}
	for what, sites := range map[string][][]UnitChoice{"none": {{}}, "negative": {{{Cost: -1}}}, "not a number": {{{Loss: math.NaN()}}}} {
		if _, err := ChooseCounts(sites, 10); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}
