package prune

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// best tries all choices of levels.
func bestLevels(costs [][]int, values [][]float64, budget int) float64 {
	best := math.Inf(1)
	var try func(i, left int, sum float64)
	try = func(i, left int, sum float64) {
		if i == len(costs) {
			best = min(best, sum)
			return
		}
		for d, cost := range costs[i] {
			if cost <= left {
				try(i+1, left-cost, sum+values[i][d])
			}
		}
	}
	try(0, budget, 0)
	return best
}

func TestCheapestAgainstAllChoices(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 3))
	for range 500 {
		costs, values := make([][]int, 1+rng.IntN(4)), [][]float64(nil)
		for i := range costs {
			n := 1 + rng.IntN(6)
			costs[i] = make([]int, n)
			curve := make([]float64, n)
			for d := range n {
				costs[i][d] = rng.IntN(30)
				curve[d] = rng.ExpFloat64()
				if rng.IntN(6) == 0 {
					curve[d] = math.Inf(1)
				}
			}
			values = append(values, curve)
		}
		budget := rng.IntN(90)
		levels, err := cheapest(t.Context(), costs, values, budget)
		if err != nil {
			t.Fatal(err)
		}
		want := bestLevels(costs, values, budget)
		if levels == nil {
			if !math.IsInf(want, 1) {
				t.Fatalf("nothing found, %v is possible", want)
			}
			continue
		}
		sum, cost := 0.0, 0
		for i, d := range levels {
			sum += values[i][d]
			cost += costs[i][d]
		}
		if cost > budget || math.Abs(sum-want) > 1e-12 {
			t.Fatalf("levels %v cost %d of %d and give %v, want %v", levels, cost, budget, sum, want)
		}
	}
}

// With as many buckets as survivors, no choice of levels that fits is better than
// what Allocate finds, and what it fills up is what the choice left over.
func TestRateDistortionIsOptimal(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 3))
	for range 200 {
		var layers []LayerInfo
		var curves, values [][]float64
		var costs [][]int
		total := 0
		for range 1 + rng.IntN(4) {
			l := LayerInfo{Shape: []int{1 + rng.IntN(9), 1 + rng.IntN(9)}}
			layers, total = append(layers, l), total+l.Weights()
			curve := []float64{0}
			for range 1 + rng.IntN(5) {
				curve = append(curve, curve[len(curve)-1]+rng.ExpFloat64())
			}
			curves = append(curves, curve)
			var cost []int
			for d := range curve {
				cost = append(cost, max(1, l.Weights()-Pruned(l.Weights(), float64(d)/float64(len(curve)-1))))
			}
			costs, values = append(costs, cost), append(values, curve)
		}
		o := AllocationOptions{Method: RateDistortion, Sparsity: rng.Float64()}
		shares, err := Allocate(t.Context(), layers, o, AllocationInput{Curves: curves})
		if errors.Is(err, ErrImpossible) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		checkShares(t, layers, o, shares)
		// The highest level whose survivors each share has, at least, costs no more than
		// the optimum.
		sum := 0.0
		for i, s := range shares {
			d := slices.IndexFunc(costs[i], func(c int) bool { return c <= s.Survivors })
			sum += values[i][d]
		}
		if want := bestLevels(costs, values, total-Pruned(total, o.Sparsity)); sum > want+1e-12 {
			t.Fatalf("distortion %v, %v is possible", sum, want)
		}
	}
}

func TestRateDistortionWithBuckets(t *testing.T) {
	// Two million weights, so buckets of 100: the layer that hurts ten times as much
	// keeps more, and the sum is exact.
	layers := linear([]int{1000, 1000}, []int{1000, 1001})
	curves := make([][]float64, 2)
	for d := range 101 {
		x := float64(d) / 100
		curves[0], curves[1] = append(curves[0], 10*x*x), append(curves[1], x*x)
	}
	o := AllocationOptions{Method: RateDistortion, Sparsity: 0.5}
	shares, err := Allocate(t.Context(), layers, o, AllocationInput{Curves: curves})
	if err != nil {
		t.Fatal(err)
	}
	checkShares(t, layers, o, shares)
	// 10·x₀² + x₁² with x₀ + x₁ = 1: x₀ = 1/11.
	if s := shares[0].Sparsity(); math.Abs(s-1./11) > 0.011 {
		t.Errorf("%+v", shares)
	}
}

func TestRateDistortionForbids(t *testing.T) {
	layers := linear([]int{10, 10}, []int{10, 10})
	inf := math.Inf(1)
	curves := [][]float64{{0, 5, inf}, {0, 1, 2}}
	o := AllocationOptions{Method: RateDistortion, Sparsity: 0.7}
	shares, err := Allocate(t.Context(), layers, o, AllocationInput{Curves: curves})
	if err != nil {
		t.Fatal(err)
	}
	checkShares(t, layers, o, shares)
	if shares[0].Survivors < 50 {
		t.Errorf("%+v goes where the curve does not", shares[0])
	}
	o.Sparsity = 0.8 // 50 + 1 weights are the least that the curves allow
	var impossible *ImpossibleError
	if _, err := Allocate(t.Context(), layers, o, AllocationInput{Curves: curves}); !errors.As(err, &impossible) || impossible.Needed != 51 {
		t.Errorf("%v", err)
	}
	for _, bad := range [][][]float64{{{0, 1}}, {{0, 1}, {0}}, {{0, 1}, {0, math.NaN()}}, {{0, 1}, {inf, 0}}} {
		if _, err := Allocate(t.Context(), layers, o, AllocationInput{Curves: bad}); err == nil {
			t.Errorf("curves %v passed", bad)
		}
	}
}

func TestCurve(t *testing.T) {
	scores := matrix(2, 2, 3, 1, 2, 0)
	curve, err := Curve(t.Context(), scores, 4)
	if err != nil || !slices.Equal(curve, []float64{0, 0, 1, 5, 5}) { // the last weight stays
		t.Errorf("%v, %v", curve, err)
	}
	if _, err := Curve(t.Context(), matrix(1, 2, 1, -1), 4); !errors.As(err, new(*ValueError)) {
		t.Errorf("a negative score: %v", err)
	}
	if _, err := Curve(t.Context(), scores, 0); !errors.As(err, new(*AllocationError)) {
		t.Errorf("no levels: %v", err)
	}
}
