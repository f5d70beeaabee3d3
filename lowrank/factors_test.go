package lowrank

import (
	"context"
	"math"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/layer"
)

func TestFactorsAreWhatTheySay(t *testing.T) {
	for seed, sh := range shapes {
		dw, s := draw(uint64(seed), sh.out, sh.in, sh.samples)
		for _, typ := range []dtype.DType{dtype.F32, dtype.F16, dtype.BF16} {
			for _, bits := range []int{0, 8, 4} {
				term, res := solve(t, dw, s, Options{Rank: 5, FactorType: typ, Bits: bits})
				if term.Rank() != min(5, sh.out, sh.in) || term.Rank() != res.Rank {
					t.Fatalf("%v: rank %d, result's %d", sh, term.Rank(), res.Rank)
				}
				for cols, f := range map[int]*layer.Factor{sh.out: &term.B, -sh.in: &term.A} {
					if cols < 0 {
						cols = -cols
					}
					if f.Rows != term.Rank() || f.Cols != cols || f.Type != typ {
						t.Fatalf("%v: factor %d×%d of %v", sh, f.Rows, f.Cols, f.Type)
					}
					checkFactor(t, f, bits)
				}
			}
		}
	}
}

func checkFactor(t *testing.T, f *layer.Factor, bits int) {
	t.Helper()
	if bits == 0 {
		if f.Codes != nil || len(f.Values) != f.Rows*f.Cols {
			t.Fatal("a factor of values has codes, or too few values")
		}
		for _, v := range f.Values {
			if f.Type.Round(v) != v {
				t.Fatalf("%v is not exact in %v", v, f.Type)
			}
		}
		return
	}
	if f.Values != nil || len(f.Codes) != f.Rows*f.Cols || f.Grid.Bits != bits || f.Grid.ScaleType != f.Type {
		t.Fatalf("a factor of %d-bit codes has values, or another grid: %+v", bits, f.Grid)
	}
	if err := f.Grid.Check(f.Rows, f.Cols); err != nil {
		t.Fatal(err)
	}
	lo, hi := f.Grid.Range()
	for _, c := range f.Codes {
		if int(c) < lo || int(c) > hi {
			t.Fatalf("code %d outside %d…%d", c, lo, hi)
		}
	}
}

func TestRoundedErrors(t *testing.T) {
	refitted, nearest := 0.0, 0.0
	for seed := range uint64(20) {
		dw, s := draw(seed, 48, 40, 100)
		_, f32 := solve(t, dw, s, Options{Rank: 8})
		_, f16 := solve(t, dw, s, Options{Rank: 8, FactorType: dtype.F16})
		_, bits8 := solve(t, dw, s, Options{Rank: 8, Bits: 8})
		_, bits4 := solve(t, dw, s, Options{Rank: 8, Bits: 4})
		gain := f32.Before - f32.After
		near(t, "error with float32 factors", f32.Rounded, f32.After, 1e-9*gain)
		near(t, "error with float16 factors", f16.Rounded, f32.After, 1e-5*gain)
		near(t, "error with 8-bit factors", bits8.Rounded, f32.After, 2e-3*gain)
		near(t, "error with 4-bit factors", bits4.Rounded, f32.After, 0.2*gain)
		if bits4.Rounded < bits8.Rounded || bits8.Rounded < f32.After*(1-1e-9) {
			t.Errorf("seed %d: %g at 4 bits, %g at 8, %g unrounded", seed, bits4.Rounded, bits8.Rounded, f32.After)
		}
		refitted += (bits4.Rounded - f32.After) / gain
		atNearest := roundedToNearest(t, dw, s, Options{Method: EoRA, Rank: 8, Bits: 4, FactorType: dtype.F32})
		nearest += (atNearest - f32.After) / gain
	}
	if refitted > 0.95*nearest {
		t.Errorf("fitting leaves %g, nearest rounding of both factors %g", refitted/20, nearest/20)
	}
	t.Logf("4 bits: %.4f fitted, %.4f to nearest, of what the unrounded factors take off is lost", refitted/20, nearest/20)
}

func roundedToNearest(t *testing.T, dw, s blas64.General, o Options) float64 {
	t.Helper()
	bt, a, _ := route64(t, outside, dw, s, o)
	balance(bt, a)
	ctx := context.Background()
	w, err := newProblem(ctx, nil, "test", dw, zeros(dw), s, o)
	if err != nil {
		t.Fatal(err)
	}
	_, bt, err = w.store(ctx, bt)
	if err != nil {
		t.Fatal(err)
	}
	if _, a, err = w.store(ctx, a); err != nil {
		t.Fatal(err)
	}
	return plain(dw, s, &bt, &a)
}

// The baselines know of S no more than their metric, also when they are rounded:
// the SVD's factors are the same whatever S is.
func TestSVDIgnoresS(t *testing.T) {
	dw, s := draw(4, 20, 15, 40)
	for _, typ := range []dtype.DType{dtype.F32, dtype.BF16} {
		one, _ := solve(t, dw, s, Options{Method: SVD, Rank: 4, FactorType: typ})
		two, _ := solve(t, dw, identity(15), Options{Method: SVD, Rank: 4, FactorType: typ})
		p1, p2 := product(values(&one.B), values(&one.A)), product(values(&two.B), values(&two.A))
		for i := range p1.Data {
			near(t, "BA", p1.Data[i], p2.Data[i], 0)
		}
	}
}

func TestRefitsAreLeastSquares(t *testing.T) {
	ctx := context.Background()
	dw, s := draw(2, 14, 11, 30)
	w, err := newProblem(ctx, nil, "test", dw, zeros(dw), s, Options{Method: EoRA})
	if err != nil {
		t.Fatal(err)
	}
	bt, _ := draw(3, 4, 14, 1)
	a, _ := draw(4, 4, 11, 1)
	for _, c := range []struct {
		name string
		fit  func(context.Context, blas64.General, blas64.General) (blas64.General, error)
		isB  bool
	}{{"B", w.refitB, true}, {"A", w.refitA, false}} {
		x, err := c.fit(ctx, bt, a)
		if err != nil {
			t.Fatal(err)
		}
		e := func() float64 {
			if c.isB {
				return plain(dw, s, &x, &a)
			}
			return plain(dw, s, &bt, &x)
		}
		least := e()
		for i := range x.Data { // the error is quadratic: a minimum if no step along an axis helps
			old := x.Data[i]
			for _, step := range []float64{1e-3, -1e-3} {
				x.Data[i] = old + step
				if e() <= least {
					t.Errorf("%s: element %d moved by %g does not raise the error", c.name, i, step)
				}
			}
			x.Data[i] = old
		}
	}
	// Equal rows of A leave B open: it stays near, and fits as well.
	copy(linalg.Row(a, 1), linalg.Row(a, 0))
	clear(linalg.Row(a, 2))
	x, err := w.refitB(ctx, bt, a)
	if err != nil {
		t.Fatal(err)
	}
	for j, v := range linalg.Row(x, 2) {
		near(t, "row of a component without effect", v, linalg.Row(bt, 2)[j], 0)
	}
	for _, v := range x.Data {
		if math.Abs(v) > 10 {
			t.Errorf("the singular fit holds %g", v)
		}
	}
	if plain(dw, s, &x, &a) > plain(dw, s, &bt, &a) {
		t.Error("the singular fit is worse than its start")
	}
}

func TestBalance(t *testing.T) {
	bt, _ := draw(3, 3, 14, 1)
	a, _ := draw(4, 3, 11, 1)
	clear(linalg.Row(a, 2))
	for i := range 3 { // rows of length 1
		n := norm(linalg.Row(bt, i))
		for j := range linalg.Row(bt, i) {
			linalg.Row(bt, i)[j] /= n
		}
	}
	before := product(bt, a)
	lengths := norm(linalg.Row(a, 0))
	balance(bt, a)
	after := product(bt, a)
	for i := range before.Data {
		near(t, "BA", after.Data[i], before.Data[i], 1e-15)
	}
	near(t, "length of B's row", norm(linalg.Row(bt, 0)), math.Sqrt(lengths), 1e-14)
	near(t, "length of A's row", norm(linalg.Row(a, 0)), math.Sqrt(lengths), 1e-14)
	near(t, "length of a row without effect", norm(linalg.Row(bt, 2)), 0, 0)
}

func norm(x []float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += v * v
	}
	return math.Sqrt(sum)
}

func TestScales(t *testing.T) {
	for _, c := range []struct {
		x    []float64
		o    Options
		want float32
		ok   bool
	}{
		{[]float64{7, -3, 1, 0}, Options{Bits: 4, FactorType: dtype.F32}, 1, true},
		{[]float64{-127, 64}, Options{Bits: 8, FactorType: dtype.F32}, 1, true},
		{[]float64{0, 0}, Options{Bits: 8, FactorType: dtype.F16}, 1, true},
		{[]float64{1e-30, 0}, Options{Bits: 8, FactorType: dtype.F16}, 1, true},
		{[]float64{1e30, 0}, Options{Bits: 8, FactorType: dtype.F16}, 1, false},
	} {
		got, ok := findScale(c.x, c.o)
		if got != c.want || ok != c.ok {
			t.Errorf("%v: scale %v %v, want %v %v", c.x, got, ok, c.want, c.ok)
		}
	}
	m := linalg.NewGeneral(1, 2)
	m.Data[0] = 1e6
	w := &problem{layer: "x", o: Options{FactorType: dtype.F16}}
	if roundValues(make([]float32, 2), m.Data, w.o.FactorType) {
		t.Error("a million fits float16")
	}
}
