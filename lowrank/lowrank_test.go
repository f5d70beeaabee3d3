package lowrank

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// solve compensates the error dw with factors in float32.
func solve(t *testing.T, dw, s blas64.General, o Options) (*layer.LowRank, Result) {
	t.Helper()
	if o.FactorType == dtype.Invalid {
		o.FactorType = dtype.F32
	}
	term, res, err := Compensate(context.Background(), nil, "test", dw, zeros(dw), s, o)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "Before", res.Before, plain(dw, s, nil, nil), 1e-12*res.Before)
	near(t, "Rounded", res.Rounded, plainTerm(dw, s, term), 1e-11*res.Before)
	return term, res
}

// By routes, with the same shapes of factors as compensate.
func route64(t *testing.T, by route, dw, s blas64.General, o Options) (bt, a blas64.General, e float64) {
	t.Helper()
	ctx := context.Background()
	w, err := newProblem(ctx, nil, "test", dw, zeros(dw), s, o.WithDefaults())
	if err != nil {
		t.Fatal(err)
	}
	if bt, a, err = w.factors(ctx, by, min(o.Rank, dw.Rows, dw.Cols)); err != nil {
		t.Fatal(err)
	}
	if e, err = w.error(ctx, bt, a); err != nil {
		t.Fatal(err)
	}
	near(t, fmt.Sprintf("error by route %d", by), e, plain(dw, s, &bt, &a), 1e-11*w.energy)
	return bt, a, e
}

func TestDiagonalByHand(t *testing.T) {
	dw, s := matrix([]float64{1, 0}, []float64{0, 2}), matrix([]float64{16, 0}, []float64{0, 1})
	for _, c := range []struct {
		method   Method
		kept     int
		leftover float64
	}{{EoRA, 0, 4}, {SVD, 1, 16}, {ScaledSVD, 0, 4}} {
		term, res := solve(t, dw, s, Options{Method: c.method, Rank: 1})
		near(t, string(c.method)+" before", res.Before, 20, 1e-12)
		near(t, string(c.method)+" after", res.After, c.leftover, 1e-12)
		b, a := make([]float32, 2), make([]float32, 2)
		term.B.Row(b, 0)
		term.A.Row(a, 0)
		near(t, "kept", float64(b[c.kept]*a[c.kept]), dw.Data[3*c.kept], 1e-6)
		near(t, "dropped", float64(b[1-c.kept]*a[1-c.kept]), 0, 1e-6)
	}
}

func TestThreeByTwoByHand(t *testing.T) {
	dw := matrix([]float64{1, .5}, []float64{.2, 1}, []float64{0, .3})
	s := matrix([]float64{4, 1}, []float64{1, 1})
	want := matrix([]float64{.876017, .816499}, []float64{.433467, .404017}, []float64{.086088, .080239})
	for by := outside; by <= random; by++ {
		bt, a, e := route64(t, by, dw, s, Options{Rank: 1})
		near(t, "error", e, .418218, 1e-6)
		for i := range 3 {
			for j := range 2 {
				near(t, "BA", bt.Data[i]*a.Data[j], want.Data[i*2+j], 1e-6)
			}
		}
	}
	_, res := solve(t, dw, s, Options{Rank: 1})
	near(t, "tr Γ", res.Before, 6.9, 1e-12)
	near(t, "λ₁", res.Before-res.After, 6.481782, 1e-6)
	_, res = solve(t, dw, s, Options{Method: SVD, Rank: 1})
	near(t, "plain SVD", res.After, .870697, 1e-6)
	_, res = solve(t, dw, identity(2), Options{Method: SVD, Rank: 1})
	near(t, "plain SVD, Frobenius", res.After, .474109, 1e-6)
}

var shapes = []struct{ out, in, samples int }{
	{24, 24, 60},
	{40, 12, 30},
	{12, 40, 90},
	{30, 20, 8},
	{16, 30, 10},
	{1, 20, 50},
	{20, 1, 50},
	{1, 1, 5},
	{7, 9, 1},
}

// The eigenvectors of Γ, those of the inside with either root, and the official
// formula U_rΣ_r·V_rᵀ·Λ^{−1/2}Qᵀ, where S is regular, give the same term.
func TestRoutesAgree(t *testing.T) {
	for seed, sh := range shapes {
		dw, s := draw(uint64(seed), sh.out, sh.in, sh.samples)
		for _, m := range []Method{EoRA, SVD, ScaledSVD} {
			for _, r := range []int{1, 3, 7} {
				o := Options{Method: m, Rank: r}
				before := plain(dw, s, nil, nil)
				b1, a1, e1 := route64(t, outside, dw, s, o)
				b2, a2, e2 := route64(t, inside, dw, s, o)
				near(t, fmt.Sprintf("%v %s rank %d: inside", sh, m, r), e2, e1, 1e-9*before)
				if m == EoRA && sh.samples < sh.in { // directions that S does not see are free
					continue
				}
				p1, p2 := product(b1, a1), product(b2, a2)
				for i := range p1.Data {
					near(t, fmt.Sprintf("%v %s rank %d: BA", sh, m, r), p2.Data[i], p1.Data[i], 1e-9)
				}
				if m == EoRA {
					official := officialTerm(t, dw, s, min(r, sh.out, sh.in))
					for i := range p1.Data {
						near(t, fmt.Sprintf("%v rank %d: official BA", sh, r), official.Data[i], p1.Data[i], 1e-9)
					}
				}
			}
		}
	}
}

func product(bt, a blas64.General) blas64.General {
	c := linalg.NewGeneral(bt.Cols, a.Cols)
	for k := range bt.Rows {
		for i := range c.Rows {
			for j := range c.Cols {
				c.Data[i*c.Stride+j] += bt.Data[k*bt.Stride+i] * a.Data[k*a.Stride+j]
			}
		}
	}
	return c
}

// officialTerm is the authors' way: S = QΛQᵀ, [ΔW·QΛ^{1/2}]_r·Λ^{−1/2}Qᵀ.
func officialTerm(t *testing.T, dw, s blas64.General, r int) blas64.General {
	t.Helper()
	ctx := context.Background()
	q := linalg.Clone(s)
	lambda, err := linalg.SymmetricEigen(ctx, nil, q, true)
	if err != nil {
		t.Fatal(err)
	}
	m := multiply(dw, q, false)
	for i := range m.Rows {
		for j := range m.Cols {
			m.Data[i*m.Stride+j] *= math.Sqrt(lambda[j])
		}
	}
	mm := multiply(m, m, true)
	if _, err := linalg.SymmetricEigen(ctx, nil, mm, true); err != nil {
		t.Fatal(err)
	}
	u := last(mm, r)
	ut := linalg.NewGeneral(r, u.Rows)
	for i := range u.Rows {
		for k := range r {
			ut.Data[k*u.Rows+i] = u.Data[i*r+k]
		}
	}
	right := multiply(ut, m, false)
	for k := range r {
		for j := range right.Cols {
			right.Data[k*right.Stride+j] /= math.Sqrt(lambda[j])
		}
	}
	return product(ut, multiply(right, q, true))
}

func TestIdentityGivesSVD(t *testing.T) {
	for seed, sh := range shapes {
		dw, _ := draw(uint64(seed), sh.out, sh.in, 3)
		eora, eres := solve(t, dw, identity(sh.in), Options{Rank: 4})
		svd, sres := solve(t, dw, identity(sh.in), Options{Method: SVD, Rank: 4})
		near(t, "error", eres.After, sres.After, 1e-12*eres.Before)
		p1, p2 := product(values(&eora.B), values(&eora.A)), product(values(&svd.B), values(&svd.A))
		for i := range p1.Data {
			near(t, "BA", p1.Data[i], p2.Data[i], 1e-6)
		}
	}
}

func TestEoRAIsBest(t *testing.T) {
	for seed := range 200 {
		out, in := 2+seed%13, 2+seed*7%17
		dw, s := draw(uint64(seed), out, in, 1+seed%40)
		o := Options{Rank: 1 + seed%5}
		_, _, best := route64(t, chooseRoute(out, in, o.Rank), dw, s, o)
		for _, m := range []Method{SVD, ScaledSVD} {
			o.Method = m
			if _, _, e := route64(t, outside, dw, s, o); best > e+1e-11*plain(dw, s, nil, nil) {
				t.Errorf("seed %d: EoRA leaves %g, %s %g", seed, best, m, e)
			}
		}
	}
}

func TestErrorFallsWithRankToNothing(t *testing.T) {
	for seed, sh := range shapes {
		for _, full := range []bool{true, false} {
			dw, s := draw(uint64(seed), sh.out, sh.in, sh.samples)
			if !full { // of rank 3 at most: it is gone at rank 3, whatever S is
				left, _ := draw(uint64(seed)+20, sh.out, 3, 4)
				right, _ := draw(uint64(seed)+50, 3, sh.in, 4)
				dw = multiply(left, right, false)
			}
			for by := outside; by <= random; by++ {
				before := plain(dw, s, nil, nil)
				previous := before
				for r := 1; r <= min(sh.out, sh.in); r++ {
					_, _, e := route64(t, by, dw, s, Options{Rank: r})
					if e > previous+1e-11*before {
						t.Errorf("%v route %d: rank %d leaves %g, the one before %g", sh, by, r, e, previous)
					}
					previous = e
					if !full && r >= 3 {
						near(t, fmt.Sprintf("%v route %d: error at rank %d of 3", sh, by, r), e, 0, 1e-11*before)
					}
				}
				near(t, fmt.Sprintf("%v route %d: error at full rank", sh, by), previous, 0, 1e-11*before)
			}
		}
	}
}

func TestSingularS(t *testing.T) {
	dw, s := draw(3, 9, 6, 2)
	// Two inputs that no row uses, and one that equals another.
	for _, dead := range []int{1, 4} {
		for j := range 6 {
			s.Data[dead*6+j], s.Data[j*6+dead] = 0, 0
		}
	}
	for j := range 6 {
		s.Data[5*6+j] = s.Data[j]
	}
	for j := range 6 {
		s.Data[j*6+5] = s.Data[j*6]
	}
	for _, by := range []route{outside, inside, random} {
		_, _, e := route64(t, by, dw, s, Options{Rank: 2})
		near(t, "error with S of rank 2", e, 0, 1e-11*plain(dw, s, nil, nil))
	}
	term, res := solve(t, dw, s, Options{Rank: 4, Bits: 8})
	checkFinite(t, term)
	if res.Rounded > 1e-4*res.Before {
		t.Errorf("8 bits leave %g of %g", res.Rounded, res.Before)
	}
	// S = 0: nothing matters and nothing breaks.
	term, res = solve(t, dw, zeros(s), Options{Rank: 2, Bits: 4})
	checkFinite(t, term)
	if res.Before != 0 || res.Rounded != 0 {
		t.Errorf("errors %g and %g without inputs", res.Before, res.Rounded)
	}
	// ΔW = 0.
	term, res = solve(t, zeros(dw), s, Options{Rank: 2, Bits: 4})
	checkFinite(t, term)
	if res.Before != 0 || res.Rounded != 0 {
		t.Errorf("errors %g and %g of a perfect weight", res.Before, res.Rounded)
	}
}

func checkFinite(t *testing.T, term *layer.LowRank) {
	t.Helper()
	for _, f := range []*layer.Factor{&term.A, &term.B} {
		for _, v := range values(f).Data {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				t.Fatal("a factor is not finite")
			}
		}
	}
}

func TestRandomizedIsClose(t *testing.T) {
	for seed, sh := range []struct{ out, in, r int }{{300, 200, 16}, {180, 320, 40}, {256, 256, 8}} {
		dw, s := draw(uint64(seed), sh.out, sh.in, 500)
		before := plain(dw, s, nil, nil)
		o := Options{Rank: sh.r}
		_, _, exact := route64(t, outside, dw, s, o)
		_, _, e := route64(t, random, dw, s, o) // holds the error against its definition
		if e < exact-1e-11*before || e-exact > 1e-4*(before-exact) {
			t.Errorf("%v: randomized leaves %g, exact %g of %g", sh, e, exact, before)
		}
		o.Method = SVD
		_, _, exact = route64(t, outside, dw, identity(sh.in), o)
		_, _, e = route64(t, random, dw, identity(sh.in), o)
		frobenius := plain(dw, identity(sh.in), nil, nil)
		if e < exact-1e-11*frobenius || e-exact > 1e-2*(frobenius-exact) {
			t.Errorf("%v: randomized SVD leaves %g, exact %g of %g", sh, e, exact, frobenius)
		}
	}
}

func TestRoutesChosen(t *testing.T) {
	for _, c := range []struct {
		out, in, r int
		want       route
	}{
		{256, 256, 32, outside},
		{1024, 1024, 128, outside},
		{1024, 256, 32, inside},
		{4096, 4096, 128, random},
		{4096, 14336, 64, random},
		{14336, 4096, 64, random},
		{4096, 4096, 4096, outside},
		{50000, 64, 32, inside},
		{64, 50000, 32, outside},
	} {
		if got := chooseRoute(c.out, c.in, c.r); got != c.want {
			t.Errorf("%d×%d, rank %d: route %d, want %d", c.out, c.in, c.r, got, c.want)
		}
	}
}

func TestSameBytesForAnyWorkers(t *testing.T) {
	dw, s := draw(1, 150, 90, 200)
	ctx := context.Background()
	for _, bits := range []int{0, 4} {
		var want *layer.LowRank
		var wantRes Result
		for _, workers := range []int{1, 2, 5} {
			term, res, err := Compensate(ctx, pool.New(workers), "a", dw, zeros(dw), s, Options{Rank: 20, Bits: bits})
			if err != nil {
				t.Fatal(err)
			}
			if want == nil {
				want, wantRes = term, res
			}
			if !reflect.DeepEqual(term, want) || res != wantRes {
				t.Errorf("%d workers give other bytes", workers)
			}
		}
	}
	var first blas64.General
	for _, workers := range []int{1, 2, 5} {
		w, err := newProblem(ctx, pool.New(workers), "a", dw, zeros(dw), s, Options{Method: EoRA, Seed: 3})
		if err != nil {
			t.Fatal(err)
		}
		for _, by := range []route{inside, random} {
			u, err := w.leading(ctx, by, 20)
			if err != nil {
				t.Fatal(err)
			}
			if by == random && first.Data == nil {
				first = u
			}
			if by == random && !reflect.DeepEqual(u, first) {
				t.Errorf("%d workers give another random basis", workers)
			}
		}
	}
	if seed(3, "a") == seed(3, "b") || seed(3, "a") == seed(4, "a") {
		t.Error("layers or seeds share random numbers")
	}
}

func TestErrorsOfInput(t *testing.T) {
	ctx := context.Background()
	dw, s := draw(1, 4, 3, 9)
	bad := linalg.Clone(dw)
	bad.Data[5] = math.NaN()
	huge := linalg.Clone(dw)
	huge.Data[0] = 1e200
	negative := linalg.Clone(s)
	for i := range negative.Data {
		negative.Data[i] *= -1
	}
	nanS := linalg.Clone(s)
	nanS.Data[2] = math.NaN()
	short := dw
	short.Data = short.Data[:7]
	large := linalg.Clone(dw)
	for i := range large.Data {
		large.Data[i] *= 1e13
	}
	for name, c := range map[string]struct{ target, current, s blas64.General }{
		"shape of current": {dw, s, s},
		"shape of S":       {dw, dw, dw},
		"empty":            {blas64.General{}, blas64.General{}, s},
		"short":            {short, dw, s},
		"NaN":              {bad, dw, s},
		"NaN in current":   {dw, bad, s},
		"NaN in S":         {dw, zeros(dw), nanS},
		"too large":        {huge, dw, s},
		"negative S":       {dw, zeros(dw), negative},
		"factors' range":   {large, dw, s},
	} {
		_, _, err := Compensate(ctx, nil, "conv1", c.target, c.current, c.s, Options{Rank: 1})
		var in *layer.InputError
		if !errors.As(err, &in) || in.Layer != "conv1" {
			t.Errorf("%s: error %v", name, err)
		}
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, _, err := Compensate(cancelled, nil, "a", dw, dw, s, Options{Rank: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	var groups *GroupsError
	if err := CheckGroups("dw", 32); !errors.As(err, &groups) || groups.Groups != 32 || CheckGroups("fc", 1) != nil {
		t.Errorf("groups: %v", err)
	}
}

func TestOptions(t *testing.T) {
	for field, o := range map[string]Options{
		"Method":       {Method: "pca", Rank: 1},
		"Rank":         {},
		"Budget":       {Budget: -1},
		"FactorType":   {Rank: 1, FactorType: dtype.I8},
		"Bits":         {Rank: 1, Bits: 3},
		"Alternations": {Rank: 1, Alternations: -1},
	} {
		var e *OptionError
		if err := o.Check(); !errors.As(err, &e) || e.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	var e *OptionError
	if err := (Options{Rank: 2, Budget: 9}).Check(); !errors.As(err, &e) || e.Field != "Rank" {
		t.Errorf("rank and budget: %v", err)
	}
	dw, s := draw(1, 4, 3, 9)
	for field, o := range map[string]Options{"Budget": {Budget: 100}, "Alternations": {Rank: 1, Alternations: 1}} {
		if _, _, err := Compensate(context.Background(), nil, "a", dw, dw, s, o); !errors.As(err, &e) || e.Field != field {
			t.Errorf("Compensate with %s: %v", field, err)
		}
	}
	if err := (Options{Budget: 100}).Check(); err != nil {
		t.Error(err)
	}
	if o := (Options{Budget: 100}).WithRank(3); o.Check() != nil || o.Rank != 3 {
		t.Errorf("WithRank: %+v", o)
	}
	for _, c := range []struct {
		o    Options
		want int64
	}{{Options{}, 2 * 12}, {Options{FactorType: dtype.F32}, 4 * 12}, {Options{Bits: 8}, 12 + 4}, {Options{Bits: 4, FactorType: dtype.F32}, 4 + 3 + 8}} {
		if got := c.o.ComponentBytes(7, 5); got != c.want {
			t.Errorf("%+v: a component takes %d bytes, want %d", c.o, got, c.want)
		}
	}
}

func TestStrides(t *testing.T) {
	dw, s := draw(5, 6, 4, 9)
	wide := func(a blas64.General) blas64.General {
		b := blas64.General{Rows: a.Rows, Cols: a.Cols, Stride: a.Cols + 3, Data: make([]float64, a.Rows*(a.Cols+3))}
		for i := range b.Data {
			b.Data[i] = math.NaN()
		}
		for i := range a.Rows {
			copy(linalg.Row(b, i), linalg.Row(a, i))
		}
		return b
	}
	for _, m := range []Method{EoRA, SVD, ScaledSVD} {
		o := Options{Method: m, Rank: 2, Bits: 8}
		want, res := solve(t, dw, s, o)
		o.FactorType = dtype.F32
		got, res2, err := Compensate(context.Background(), nil, "test", wide(dw), wide(zeros(dw)), wide(s), o)
		if err != nil || res != res2 || !reflect.DeepEqual(got, want) {
			t.Errorf("%s with strides: %v, %+v, want %+v", m, err, res2, res)
		}
	}
}

func BenchmarkRank128Of4096(b *testing.B) {
	const n = 4096
	ctx, p := context.Background(), pool.New(0)
	dw, s := decaying(n)
	var res Result
	var err error
	for b.Loop() {
		if _, res, err = Compensate(ctx, p, "bench", dw, zeros(dw), s, Options{Rank: 128}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(res.After/res.Before, "left")
}
