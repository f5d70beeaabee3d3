package evaluate

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"
)

func logits(rows ...[]float32) blas32.General {
	m := blas32.General{Rows: len(rows), Cols: len(rows[0]), Stride: len(rows[0])}
	for _, r := range rows {
		m.Data = append(m.Data, r...)
	}
	return m
}

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-12*(1+math.Abs(b)) }

func TestMetricsByHand(t *testing.T) {
	ln := func(v float64) float32 { return float32(math.Log(v)) }
	m, err := Metrics(logits(
		[]float32{0, 0, 0, 0},         // ties: class 0, right; loss ln 4
		[]float32{-1000, 0, 0, -1000}, // tie of 1 and 2: class 1, wrong; loss ln 2
		[]float32{1000, -1000, 0, 0},  // right without a loss; exp(1000) overflows
		[]float32{0, 0, 500, 0},       // wrong; loss 500
	), []int{0, 2, 0, 3})
	if err != nil {
		t.Fatal(err)
	}
	if want := (math.Log(4) + math.Log(2) + 0 + 500) / 4; m.Correct != 2 || m.Top1 != 50 || !near(m.Loss, want) {
		t.Errorf("got %+v, want loss %v", m, want)
	}
	// Probabilities 1/10, 2/10, 3/10, 4/10; float32 logits carry 7 digits.
	m, err = Metrics(logits([]float32{ln(1), ln(2), ln(3), ln(4)}), []int{1})
	if err != nil || math.Abs(m.Loss-math.Log(5)) > 1e-6 {
		t.Errorf("loss %v, %v", m.Loss, err)
	}
}

func TestStrideIsHeeded(t *testing.T) {
	m := blas32.General{Rows: 2, Cols: 2, Stride: 3, Data: []float32{1, 0, 9, 0, 1}}
	got, err := Metrics(m, []int{0, 1})
	if err != nil || got.Correct != 2 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestClassificationByHand(t *testing.T) {
	a := logits([]float32{2, 0}, []float32{0, 2}, []float32{2, 0}, []float32{0, 2})
	b := logits([]float32{2, 0}, []float32{2, 0}, []float32{0, 2}, []float32{0, 2})
	e, err := Classification(a, b, []int{0, 1, 1, 1})
	if err != nil {
		t.Fatal(err)
	}
	// Sample 1 gets worse, sample 2 better. Where the logits are exchanged, KL
	// is (p − q)·2 with p = 1/(1+e⁻²), q = 1−p.
	p := 1 / (1 + math.Exp(-2))
	want := 2 * (2*p - 1) * 2 / 4
	if e.Samples != 4 || e.Original.Correct != 3 || e.Compressed.Correct != 3 || e.Changed != 2 || e.AccuracyDrop != 0 || !e.Tied || !near(e.KL, want) {
		t.Errorf("got %+v, want KL %v", e, want)
	}
}

func TestKLProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		p, q := make([]float32, 7), make([]float32, 7)
		for i := range p {
			p[i], q[i] = float32(20*r.NormFloat64()), float32(20*r.NormFloat64())
		}
		if kl := divergence(p, p); kl != 0 {
			t.Fatalf("KL(p, p) = %v", kl)
		}
		shifted := slices.Clone(p)
		for i := range shifted {
			shifted[i] = float32(math.Round(float64(p[i])*16)/16) + 64 // exact sums
			p[i] = shifted[i] - 64
		}
		if kl := divergence(p, shifted); kl > 1e-12 {
			t.Fatalf("a shift of all logits gives KL %v", kl)
		}
		var want, sp, sq float64
		for i := range p {
			sp += math.Exp(float64(p[i]))
			sq += math.Exp(float64(q[i]))
		}
		for i := range p {
			a, b := math.Exp(float64(p[i]))/sp, math.Exp(float64(q[i]))/sq
			want += a * math.Log(a/b)
		}
		if kl := divergence(p, q); kl < 0 || math.Abs(kl-want) > 1e-9*(1+want) {
			t.Fatalf("KL = %v, want %v", kl, want)
		}
	}
}

func TestErrors(t *testing.T) {
	good := logits([]float32{1, 0}, []float32{0, 1})
	nan := logits([]float32{1, 0}, []float32{0, float32(math.NaN())})
	inf := logits([]float32{1, 0}, []float32{float32(math.Inf(-1)), 0})
	for name, c := range map[string]struct {
		a, b   blas32.General
		labels []int
		model  string
		sample int
	}{
		"NaN":            {good, nan, []int{0, 1}, "compressed", 1},
		"NaN original":   {nan, good, []int{0, 1}, "original", 1},
		"Inf":            {inf, good, []int{0, 1}, "original", 1},
		"label":          {good, good, []int{2, 1}, "original", 0},
		"negative label": {good, good, []int{0, -1}, "original", 1},
		"label count":    {good, good, []int{0}, "original", -1},
		"classes":        {good, logits([]float32{1}, []float32{2}), []int{0, 0}, "", -1},
		"samples":        {good, logits([]float32{1, 2}), []int{0, 0}, "compressed", -1},
		"nothing":        {blas32.General{}, blas32.General{}, nil, "original", -1},
		"too short":      {blas32.General{Rows: 2, Cols: 2, Stride: 2, Data: []float32{1, 2, 3}}, good, []int{0, 0}, "original", -1},
		"stride":         {blas32.General{Rows: 2, Cols: 2, Stride: 1, Data: []float32{1, 2, 3}}, good, []int{0, 0}, "original", -1},
	} {
		got, err := Classification(c.a, c.b, c.labels)
		e, ok := errors.AsType[*Error](err)
		if !ok || got != nil || e.Model != c.model || e.Sample != c.sample {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Metrics(nan, []int{0, 0}); err == nil {
		t.Error("Metrics of a NaN gives no error")
	}
}

// The fast bootstrap must have the distribution of the one by definition,
// which draws samples one by one.
func TestBootstrapIsTheBruteForceOne(t *testing.T) {
	for _, c := range []struct{ n, worse, better int }{{1, 1, 0}, {10, 3, 1}, {50, 0, 2}, {200, 20, 15}, {400, 300, 100}, {1017, 40, 12}, {300, 0, 300}} {
		got := bootstrap(c.n, c.worse, c.better)
		differences := make([]int, c.n)
		for i := range c.worse {
			differences[i] = 1
		}
		for i := range c.better {
			differences[c.worse+i] = -1
		}
		r := rand.New(rand.NewPCG(3, 4))
		drops := make([]int, 4000)
		for i := range drops {
			for range c.n {
				drops[i] += differences[r.IntN(c.n)]
			}
		}
		slices.Sort(drops)
		want := [2]float64{points(drops[len(drops)/40], c.n), points(drops[len(drops)-1-len(drops)/40], c.n)}
		p := float64(c.worse-c.better) / float64(c.n)
		deviation := math.Sqrt((float64(c.worse+c.better)/float64(c.n) - p*p) / float64(c.n))
		tolerance := 100 * (1/float64(c.n) + deviation*0.12) // a step of the grid, and noise of both quantiles
		for side := range 2 {
			if math.Abs(got[side]-want[side]) > tolerance {
				t.Errorf("%+v: got %v, want %v within %v", c, got, want, tolerance)
			}
		}
		if got != bootstrap(c.n, c.worse, c.better) {
			t.Errorf("%+v: another interval the second time", c)
		}
		if mirrored := bootstrap(c.n, c.better, c.worse); math.Abs(got[0]+mirrored[1]) > tolerance || math.Abs(got[1]+mirrored[0]) > tolerance {
			t.Errorf("%+v: %v, mirrored %v", c, got, mirrored)
		}
	}
	if got := bootstrap(500, 0, 0); got != [2]float64{} {
		t.Errorf("no difference gives %v", got)
	}
}

func TestTied(t *testing.T) {
	for _, c := range []struct {
		worse int
		tied  bool
	}{{0, true}, {1, true}, {30, false}} {
		var a, b [][]float32
		labels := make([]int, 100)
		for i := range 100 {
			a = append(a, []float32{1, 0})
			b = append(b, []float32{1, 0})
			if i < c.worse {
				b[i] = []float32{0, 1}
			}
		}
		e, err := Classification(logits(a...), logits(b...), labels)
		if err != nil {
			t.Fatal(err)
		}
		if e.Tied != c.tied || e.AccuracyDrop != float64(c.worse) {
			t.Errorf("%d worse: %+v", c.worse, e)
		}
	}
}

func TestBinomialIsPascals(t *testing.T) {
	const n, p = 6, 0.3
	cdf := binomial(n, p)
	choose, sum := 1.0, 0.0
	for k := range n + 1 {
		sum += choose * math.Pow(p, float64(k)) * math.Pow(1-p, float64(n-k))
		if !near(cdf[k], sum) {
			t.Errorf("P(≤%d) = %v, want %v", k, cdf[k], sum)
		}
		choose *= float64(n-k) / float64(k+1)
	}
}

func ExampleMetrics() {
	m, _ := Metrics(blas32.General{Rows: 2, Cols: 2, Stride: 2, Data: []float32{3, 1, 0, 2}}, []int{0, 0})
	fmt.Printf("%d right, %.0f %%\n", m.Correct, m.Top1)
	// Output: 1 right, 50 %
}
