package prune

import (
	"cmp"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/loader"
)

// model is some layers with their weights.
type model struct {
	layers  []LayerInfo
	weights []blas32.General
	reads   int
}

func newModel(weights ...blas32.General) *model {
	m := &model{weights: weights}
	for i, w := range weights {
		m.layers = append(m.layers, LayerInfo{Name: string(rune('a' + i)), Shape: []int{w.Rows, w.Cols}})
	}
	return m
}

func (m *model) read(_ context.Context, i int) (blas32.General, error) {
	m.reads++
	return m.weights[i], nil
}

func (m *model) allocate(t *testing.T, o AllocationOptions) ([]Share, error) {
	t.Helper()
	return Allocate(t.Context(), m.layers, o, AllocationInput{Layers: m.read})
}

func survivorsIn(shares []Share) []int {
	var out []int
	for _, s := range shares {
		out = append(out, s.Survivors)
	}
	return out
}

// checkShares checks what holds for every allocation.
func checkShares(t *testing.T, layers []LayerInfo, o AllocationOptions, shares []Share) {
	t.Helper()
	total, kept := 0, 0
	for i, s := range shares {
		if s.Layer != layers[i].Name || s.Weights != layers[i].Weights() || s.Survivors < 1 || s.Survivors > s.Weights {
			t.Fatalf("%s: share %+v of layer %+v", o.Method, s, layers[i])
		}
		total += s.Weights
		kept += s.Survivors
	}
	if want := total - int(math.RoundToEven(o.Sparsity*float64(total))); kept != want {
		t.Fatalf("%s at %v: %d survive of %d, want %d", o.Method, o.Sparsity, kept, total, want)
	}
}

func linear(sizes ...[]int) []LayerInfo {
	var out []LayerInfo
	for i, s := range sizes {
		out = append(out, LayerInfo{Name: string(rune('a' + i)), Shape: s})
	}
	return out
}

func TestUniform(t *testing.T) {
	for _, c := range []struct {
		layers   []LayerInfo
		sparsity float64
		want     []int
	}{
		{linear([]int{10, 10}, []int{4, 5}), 0.5, []int{50, 10}},
		{linear([]int{3, 1}, []int{3, 1}, []int{2, 1}), 0.5, []int{2, 1, 1}}, // 1.5 1.5 1: the earlier layer
	} {
		o := AllocationOptions{Method: Uniform, Sparsity: c.sparsity}
		shares, err := Allocate(t.Context(), c.layers, o, AllocationInput{})
		if err != nil || !slices.Equal(survivorsIn(shares), c.want) {
			t.Errorf("%v at %v: %v, want %v (%v)", c.layers, c.sparsity, survivorsIn(shares), c.want, err)
		}
	}
	o := AllocationOptions{Method: Uniform, Sparsity: 0.999}
	_, err := Allocate(t.Context(), linear([]int{1000, 1}, []int{1, 1}), o, AllocationInput{})
	if !errors.Is(err, ErrImpossible) || !strings.Contains(err.Error(), "at most 0.998") {
		t.Errorf("one survivor for two layers: %v", err)
	}
	o.Sparsity = 0.99
	shares, err := Allocate(t.Context(), linear([]int{100, 100}, []int{2, 2}), o, AllocationInput{})
	if err != nil || shares[1].Survivors != 1 || !shares[1].Rescued || shares[0].Rescued {
		t.Errorf("a layer too small for its share: %+v, %v", shares, err)
	}
}

func TestUniformPlus(t *testing.T) {
	layers := []LayerInfo{
		{Name: "stem", Shape: []int{4, 3, 3, 3}}, // 108
		{Name: "body", Shape: []int{40, 20}},     // 800
		{Name: "wide", Shape: []int{20, 20}},     // 400
		{Name: "head", Shape: []int{10, 10}},     // 100
	}
	// 1408 weights; 90 % go: 1267, so 141 survive, 108 + 20 of them at the ends, and 13
	// for 1200 others: 8.67 and 4.33.
	o := AllocationOptions{Method: UniformPlus, Sparsity: 0.9}
	shares, err := Allocate(t.Context(), layers, o, AllocationInput{})
	if err != nil {
		t.Fatal(err)
	}
	checkShares(t, layers, o, shares)
	if got := survivorsIn(shares); !slices.Equal(got, []int{108, 9, 4, 20}) {
		t.Errorf("at 0.9: %v", got)
	}
	// At a half the last layer keeps more than its fifth: 704 − 108 = 596 for 1300.
	o.Sparsity = 0.5
	shares, err = Allocate(t.Context(), layers, o, AllocationInput{})
	if got := survivorsIn(shares); err != nil || !slices.Equal(got, []int{108, 367, 183, 46}) {
		t.Errorf("at 0.5: %v, %v", got, err)
	}
	o.Sparsity = 0.95 // 70 survive
	var impossible *ImpossibleError
	if _, err := Allocate(t.Context(), layers, o, AllocationInput{}); !errors.As(err, &impossible) || impossible.Needed != 130 {
		t.Fatalf("at 0.95: %v", err)
	}
	// What the error says would do, does.
	o.Sparsity = 0.9076
	if !strings.Contains(impossible.Error(), "at most 0.9076") {
		t.Error(impossible)
	}
	if _, err := Allocate(t.Context(), layers, o, AllocationInput{}); err != nil {
		t.Error(err)
	}
}

func TestERKByHand(t *testing.T) {
	// Sums of dimensions 20 and 110 for 100 and 1000 weights: of 130 survivors, 20 and
	// 110. Of 880, the first layer's 135 are more than it has.
	layers := linear([]int{10, 10}, []int{100, 10})
	for sparsity, want := range map[float64][]int{1 - 130./1100: {20, 110}, 0.2: {100, 780}} {
		shares, err := Allocate(t.Context(), layers, AllocationOptions{Method: ERK, Sparsity: sparsity}, AllocationInput{})
		if err != nil || !slices.Equal(survivorsIn(shares), want) {
			t.Errorf("at %v: %v, want %v (%v)", sparsity, shares, want, err)
		}
	}
	// A convolution's kernel counts: 8+4+3+3 = 18 against 16+2.
	conv := []LayerInfo{{Name: "conv", Shape: []int{8, 4, 3, 3}}, {Name: "head", Shape: []int{16, 2}}}
	shares, err := Allocate(t.Context(), conv, AllocationOptions{Method: ERK, Sparsity: 1 - 40./320}, AllocationInput{})
	if err != nil || !slices.Equal(survivorsIn(shares), []int{20, 20}) {
		t.Errorf("convolution: %v, %v", shares, err)
	}
}

// The authors' loop: make the layer dense that is overfull most, and start again.
func TestERKAgainstTheLoop(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		var layers []LayerInfo
		total := 0
		for range 1 + rng.IntN(8) {
			l := LayerInfo{Shape: []int{1 + rng.IntN(60), 1 + rng.IntN(60)}}
			if rng.IntN(2) == 0 {
				l.Shape = append(l.Shape, 3, 3)
			}
			layers = append(layers, l)
			total += l.Weights()
		}
		o := AllocationOptions{Method: ERK, Sparsity: 0.9 * rng.Float64()}
		shares, err := Allocate(t.Context(), layers, o, AllocationInput{})
		if err != nil {
			continue // too few weights for so many layers
		}
		checkShares(t, layers, o, shares)
		dense, want := make([]bool, len(layers)), make([]float64, len(layers))
		for again := true; again; {
			left, sums := float64(total-Pruned(total, o.Sparsity)), 0.0
			for i, l := range layers {
				if dense[i] {
					left -= float64(l.Weights())
					continue
				}
				for _, d := range l.Shape {
					sums += float64(d)
				}
			}
			worst, ratio := -1, 1.0
			for i, l := range layers {
				want[i] = float64(l.Weights())
				if dense[i] {
					continue
				}
				sum := 0.0
				for _, d := range l.Shape {
					sum += float64(d)
				}
				want[i] = left * sum / sums
				if r := want[i] / float64(l.Weights()); r > ratio+1e-12 {
					worst, ratio = i, r
				}
			}
			if again = worst >= 0; again {
				dense[worst] = true
			}
		}
		if slices.Min(want) < 1 {
			continue // the bound of one weight plays a part
		}
		for i, s := range shares {
			if math.Abs(float64(s.Survivors)-want[i]) > 1+1e-6 {
				t.Fatalf("%v at %v: %v, the loop says %v", layers, o.Sparsity, survivorsIn(shares), want)
			}
		}
	}
}

// bruteForce keeps each layer's best weight and the best of the others, by sorting.
func bruteForce(scores [][]float64, keep int) []int {
	type item struct {
		score        float64
		layer, index int
	}
	survivors := make([]int, len(scores))
	var all []item
	for i, list := range scores {
		best := 0
		for j, v := range list {
			if v >= list[best] {
				best = j
			}
		}
		survivors[i] = 1
		for j, v := range list {
			if j != best {
				all = append(all, item{v, i, j})
			}
		}
	}
	slices.SortFunc(all, func(a, b item) int {
		switch {
		case a.score != b.score && a.score < b.score:
			return 1
		case a.score != b.score:
			return -1
		case a.layer != b.layer:
			return b.layer - a.layer
		}
		return b.index - a.index
	})
	for _, it := range all[:keep-len(scores)] {
		survivors[it.layer]++
	}
	return survivors
}

func TestGlobalAndLAMPAgainstSorting(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	for trial := range 150 {
		var weights []blas32.General
		total := 0
		for range 1 + rng.IntN(5) {
			w := gaussian(rng, 1+rng.IntN(30), 1+rng.IntN(40))
			if trial%3 == 0 { // ties
				for i, v := range w.Data {
					w.Data[i] = float32(math.Round(2 * float64(v)))
				}
			}
			if rng.IntN(8) == 0 {
				clear(w.Data)
			}
			weights = append(weights, w)
			total += len(w.Data)
		}
		m := newModel(weights...)
		keep := len(weights) + rng.IntN(total-len(weights)+1)
		if trial%5 == 0 {
			keep = len(weights)
		}
		for _, method := range []Allocation{Global, LAMP} {
			o := AllocationOptions{Method: method, Sparsity: float64(total-keep) / float64(total)}
			m.reads = 0
			shares, err := m.allocate(t, o)
			if err != nil {
				t.Fatal(err)
			}
			if m.reads != 2*len(weights) {
				t.Fatalf("%d reads of %d layers", m.reads, len(weights))
			}
			checkShares(t, m.layers, o, shares)
			var scores [][]float64
			for _, w := range weights {
				s := matrix(w.Rows, w.Cols)
				if method == LAMP {
					if err := LAMPScores(t.Context(), s, w); err != nil {
						t.Fatal(err)
					}
				} else {
					for i, v := range w.Data {
						s.Data[i] = float32(math.Abs(float64(v)))
					}
				}
				scores = append(scores, flat(s))
			}
			if got, want := survivorsIn(shares), bruteForce(scores, keep); !slices.Equal(got, want) {
				t.Fatalf("%s, %d of %d: %v, want %v", method, keep, total, got, want)
			}
		}
	}
}

func TestGlobalRescuesALayer(t *testing.T) {
	m := newModel(matrix(1, 3, 0.1, -0.2, 0.05), matrix(2, 2, 5, 6, -7, 8))
	shares, err := m.allocate(t, AllocationOptions{Method: Global, Sparsity: 4. / 7})
	if err != nil || !slices.Equal(survivorsIn(shares), []int{1, 2}) || !shares[0].Rescued || shares[1].Rescued {
		t.Errorf("%+v, %v", shares, err)
	}
	shares, err = m.allocate(t, AllocationOptions{Method: Global})
	if err != nil || !slices.Equal(survivorsIn(shares), []int{3, 4}) || shares[0].Rescued || shares[1].Rescued {
		t.Errorf("at sparsity 0: %+v, %v", shares, err)
	}
}

func TestLAMPWorkedValues(t *testing.T) {
	layers := []blas32.General{matrix(1, 3, 1, -2, 3), matrix(1, 2, 10, 1)}
	want := [][]float64{{1. / 14, 4. / 13, 1}, {1, 1. / 101}}
	for i, w := range layers {
		dst := matrix(w.Rows, w.Cols)
		if err := LAMPScores(t.Context(), dst, w); err != nil {
			t.Fatal(err)
		}
		for j, v := range want[i] {
			if dst.Data[j] != float32(v) {
				t.Errorf("layer %d: %v, want %v", i, dst.Data, want[i])
			}
		}
	}
	for keep, want := range map[int][]int{4: {3, 1}, 3: {2, 1}, 2: {1, 1}} {
		shares, err := newModel(layers...).allocate(t, AllocationOptions{Method: LAMP, Sparsity: float64(5-keep) / 5})
		if err != nil || !slices.Equal(survivorsIn(shares), want) {
			t.Errorf("%d survivors: %+v, want %v (%v)", keep, shares, want, err)
		}
	}
	if _, err := newModel(layers...).allocate(t, AllocationOptions{Method: LAMP, Sparsity: 0.8}); !errors.Is(err, ErrImpossible) {
		t.Errorf("one survivor for two layers: %v", err)
	}
	zeros := matrix(1, 3)
	if err := LAMPScores(t.Context(), zeros, zeros); err != nil || zeros.Data[2] != 0 {
		t.Errorf("zeros: %v, %v", zeros.Data, err)
	}
}

// Equal magnitudes have different scores: the later index the higher.
func TestLAMPTies(t *testing.T) {
	w := matrix(1, 4, 1, -1, 1, 1)
	dst := matrix(1, 4)
	if err := LAMPScores(t.Context(), dst, w); err != nil {
		t.Fatal(err)
	}
	for i, want := range []float32{1. / 4, 1. / 3, 1. / 2, 1} {
		if dst.Data[i] != want {
			t.Errorf("%v", dst.Data)
		}
	}
}

func TestLAMPOfManyWeights(t *testing.T) {
	w := gaussian(rand.New(rand.NewPCG(2, 5)), 200, 1000)
	scores := matrix(200, 1000)
	if err := LAMPScores(t.Context(), scores, w); err != nil {
		t.Fatal(err)
	}
	order := make([]int, len(w.Data))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		return cmp.Or(cmp.Compare(math.Abs(float64(w.Data[i])), math.Abs(float64(w.Data[j]))), cmp.Compare(i, j))
	})
	for k, i := range order[1:] {
		if scores.Data[i] < scores.Data[order[k]] {
			t.Fatal("a larger weight has a lower score")
		}
	}
	if s := scores.Data[order[len(order)-1]]; s != 1 {
		t.Errorf("the largest weight's score is %v, want 1", s)
	}
}

func TestLAMPIgnoresScale(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	a, b := gaussian(rng, 20, 30), gaussian(rng, 50, 5)
	for i := range a.Data {
		a.Data[i] *= a.Data[i]
	}
	o := AllocationOptions{Method: LAMP, Sparsity: 0.8}
	before, err := newModel(a, b).allocate(t, o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b.Data {
		b.Data[i] *= -128 // exact
	}
	after, err := newModel(a, b).allocate(t, o)
	if err != nil || !slices.Equal(before, after) {
		t.Errorf("%v, and with one layer times −128 %v (%v)", before, after, err)
	}
	o.Method = Global
	if shares, err := newModel(a, b).allocate(t, o); err != nil || slices.Equal(shares, after) {
		t.Errorf("a global threshold cannot ignore scale: %v, %v", shares, err)
	}
}

func TestSortKeys(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	for _, n := range []int{0, 1, 511, 512, 5000, 100_000} {
		for _, distinct := range []int{1, 3, 300, 1 << 31} {
			keys := make([]uint32, n)
			for i := range keys {
				keys[i] = uint32(rng.IntN(distinct)) * uint32(1+rng.IntN(2))
			}
			want := slices.Clone(keys)
			slices.Sort(want)
			if sortKeys(keys, 24); !slices.Equal(keys, want) {
				t.Errorf("%d keys of %d values are not sorted", n, distinct)
			}
		}
	}
}

func TestOWL(t *testing.T) {
	// Means 1.9 and 1; with M = 5 one of ten scores of the first layer is an outlier.
	first, second := matrix(2, 5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 10), matrix(2, 5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
	m := newModel(first, second)
	shares, err := m.allocate(t, AllocationOptions{Method: OWL, Sparsity: 0.5, OWL: OWLOptions{Lambda: 0.2}})
	if err != nil || !slices.Equal(survivorsIn(shares), []int{7, 3}) {
		t.Errorf("%+v, %v", shares, err)
	}
	// λ of 0.2 is more than the room that 10 % leave.
	shares, err = m.allocate(t, AllocationOptions{Method: OWL, Sparsity: 0.1, OWL: OWLOptions{Lambda: 0.2}})
	if err != nil || !slices.Equal(survivorsIn(shares), []int{10, 8}) {
		t.Errorf("%+v, %v", shares, err)
	}
	// No outliers at M = 6: uniform.
	shares, err = m.allocate(t, AllocationOptions{Method: OWL, Sparsity: 0.5, OWL: OWLOptions{Threshold: 6, Lambda: 0.2}})
	if err != nil || !slices.Equal(survivorsIn(shares), []int{5, 5}) {
		t.Errorf("%+v, %v", shares, err)
	}
	// Layers of one block are alike.
	m = newModel(first, second, second, second)
	m.layers[0].Block, m.layers[2].Block = "x", "x"
	shares, err = m.allocate(t, AllocationOptions{Method: OWL, Sparsity: 0.5, OWL: OWLOptions{Lambda: 0.2}})
	if err != nil || !slices.Equal(survivorsIn(shares), []int{7, 3, 7, 3}) {
		t.Errorf("blocks: %+v, %v", shares, err)
	}
}

func TestOWLStaysWithinLambda(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	for range 100 {
		var scores []blas32.General
		for range 2 + rng.IntN(5) {
			s := gaussian(rng, 20+rng.IntN(30), 20+rng.IntN(30))
			power := 1 + 2*rng.Float64()
			for i, v := range s.Data {
				s.Data[i] = float32(math.Pow(math.Abs(float64(v)), power))
			}
			scores = append(scores, s)
		}
		m := newModel(scores...)
		o := AllocationOptions{Method: OWL, Sparsity: 0.1 + 0.8*rng.Float64()}
		shares, err := m.allocate(t, o)
		if err != nil {
			t.Fatal(err)
		}
		checkShares(t, m.layers, o, shares)
		farthest := 0.0
		for _, s := range shares {
			farthest = max(farthest, math.Abs(s.Sparsity()-o.Sparsity))
		}
		if math.Abs(farthest-0.08) > 1./400+1e-9 {
			t.Fatalf("the farthest layer is %v from %v, want 0.08: %+v", farthest, o.Sparsity, shares)
		}
	}
}

func TestAllocationsOverRandomShapes(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	for range 60 {
		var weights []blas32.General
		for range 1 + rng.IntN(6) {
			rows, cols := 1+rng.IntN(40), 1+rng.IntN(40)
			switch rng.IntN(5) {
			case 0:
				rows = 1
			case 1:
				cols = 1
			}
			weights = append(weights, gaussian(rng, rows, cols))
		}
		m := newModel(weights...)
		for _, sparsity := range []float64{0, rng.Float64(), 0.5, 0.97} {
			for _, method := range allAllocations {
				o := AllocationOptions{Method: method, Sparsity: sparsity}
				in := AllocationInput{Layers: m.read}
				if method == RateDistortion {
					for _, w := range weights {
						curve, err := Curve(t.Context(), absolute(w), 20)
						if err != nil {
							t.Fatal(err)
						}
						in.Curves = append(in.Curves, curve)
					}
				}
				shares, err := Allocate(t.Context(), m.layers, o, in)
				if errors.Is(err, ErrImpossible) {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				checkShares(t, m.layers, o, shares)
				if sparsity == 0 && slices.ContainsFunc(shares, func(s Share) bool { return s.Sparsity() != 0 || s.Rescued }) {
					t.Fatalf("%s at sparsity 0: %+v", method, shares)
				}
			}
		}
	}
}

func absolute(w blas32.General) blas32.General {
	out := matrix(w.Rows, w.Cols)
	for i, v := range w.Data {
		out.Data[i] = float32(math.Abs(float64(v)))
	}
	return out
}

func TestAllocateRefuses(t *testing.T) {
	good := newModel(matrix(1, 2, 1, 2), matrix(1, 2, 3, 4))
	half := AllocationOptions{Method: LAMP, Sparsity: 0.5}
	broken := errors.New("broken disk")
	for name, c := range map[string]struct {
		layers []LayerInfo
		o      AllocationOptions
		in     AllocationInput
		is     func(error) bool
	}{
		"no layers":    {nil, half, AllocationInput{Layers: good.read}, isA[*AllocationError]},
		"no reader":    {good.layers, half, AllocationInput{}, isA[*AllocationError]},
		"no curves":    {good.layers, AllocationOptions{Method: RateDistortion, Sparsity: 0.5}, AllocationInput{}, isA[*AllocationError]},
		"a vector":     {[]LayerInfo{{Shape: []int{3}}}, half, AllocationInput{Layers: good.read}, isA[*AllocationError]},
		"no weights":   {[]LayerInfo{{Shape: []int{3, 0}}}, half, AllocationInput{Layers: good.read}, isA[*AllocationError]},
		"too many":     {[]LayerInfo{{Shape: []int{1 << 40, 1 << 40}}}, half, AllocationInput{Layers: good.read}, isA[*AllocationError]},
		"other shape":  {[]LayerInfo{{Shape: []int{3, 3}}}, half, AllocationInput{Layers: good.read}, isA[*ShapeError]},
		"not a number": {newModel(matrix(1, 2)).layers, half, AllocationInput{Layers: newModel(matrix(1, 2, 1, float32(math.NaN()))).read}, isA[*ValueError]},
		"reader fails": {good.layers, half, AllocationInput{Layers: func(context.Context, int) (blas32.General, error) {
			return blas32.General{}, broken
		}}, func(err error) bool { return errors.Is(err, broken) }},
		"option": {good.layers, AllocationOptions{Method: "lam", Sparsity: 0.5}, AllocationInput{}, isA[*AllocationError]},
	} {
		if _, err := Allocate(t.Context(), c.layers, c.o, c.in); err == nil || !c.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func isA[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

// Where λ takes a layer's last weights, one stays.
func TestOWLRescuesALayer(t *testing.T) {
	m := newModel(matrix(2, 5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 10), matrix(2, 5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1))
	shares, err := m.allocate(t, AllocationOptions{Method: OWL, Sparsity: 0.8, OWL: OWLOptions{Lambda: 0.3}})
	if err != nil || !slices.Equal(survivorsIn(shares), []int{3, 1}) || !shares[1].Rescued || shares[0].Rescued {
		t.Errorf("%+v, %v", shares, err)
	}
}

// A trained network, read layer by layer: allocation, then masks with its counts,
// which Global's and LAMP's masks of the whole would have too.
func TestAllocateATrainedNetwork(t *testing.T) {
	file, err := loader.Open(t.Context(), "../testmodels/resnet8.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	m := &model{}
	for _, tensor := range file.Tensors() {
		if len(tensor.Shape) < 2 {
			continue
		}
		rows := tensor.Shape[0]
		w := matrix(rows, int(tensor.Elements())/rows)
		if err := file.ReadFloat32(tensor.Name, w.Data); err != nil {
			t.Fatal(err)
		}
		m.layers = append(m.layers, LayerInfo{Name: tensor.Name, Shape: tensor.Shape})
		m.weights = append(m.weights, w)
	}
	for _, method := range []Allocation{Uniform, UniformPlus, ERK, Global, LAMP, OWL} {
		o := AllocationOptions{Method: method, Sparsity: 0.9}
		shares, err := m.allocate(t, o)
		if err != nil {
			t.Fatal(err)
		}
		checkShares(t, m.layers, o, shares)
		lowest := math.Inf(1)   // score of all that survive
		highest := math.Inf(-1) // of all that go
		for i, s := range shares {
			w := m.weights[i]
			mask, rescued, err := Select(t.Context(), pool.New(2), absolute(w), Selection{Survivors: s.Survivors})
			if err != nil || rescued != 0 || mask.Survivors() != s.Survivors {
				t.Fatalf("%s, %s: %d survive, want %d (%v)", method, s.Layer, mask.Survivors(), s.Survivors, err)
			}
			scores := absolute(w)
			if method == LAMP {
				if err := LAMPScores(t.Context(), scores, w); err != nil {
					t.Fatal(err)
				}
			}
			for at, survives := range maskBools(mask) {
				if score := float64(scores.Data[at]); survives {
					lowest = min(lowest, score)
				} else {
					highest = max(highest, score)
				}
			}
		}
		if (method == Global || method == LAMP) && highest > lowest {
			t.Errorf("%s: a score of %v goes, one of %v stays", method, highest, lowest)
		}
	}
}
