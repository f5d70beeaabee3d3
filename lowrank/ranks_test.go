package lowrank

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/layer"
)

func gain(spectra []Spectrum, ranks []int) (sum float64, bytes int64) {
	for l, r := range ranks {
		for _, v := range spectra[l].Values[:r] {
			sum += v
		}
		bytes += int64(r) * spectra[l].Bytes
	}
	return sum, bytes
}

// bruteForce tries all ranks of all layers.
func bruteForce(spectra []Spectrum, budget int64) float64 {
	ranks := make([]int, len(spectra))
	best := 0.0
	for {
		if sum, bytes := gain(spectra, ranks); bytes <= budget {
			best = max(best, sum)
		}
		l := 0
		for ; l < len(ranks); l++ {
			if ranks[l]++; ranks[l] <= len(spectra[l].Values) {
				break
			}
			ranks[l] = 0
		}
		if l == len(ranks) {
			return best
		}
	}
}

func TestRanksAgainstBruteForce(t *testing.T) {
	exact := 0
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 0))
		equal := seed%2 == 0
		spectra := make([]Spectrum, 1+rng.IntN(4))
		for l := range spectra {
			spectra[l].Bytes = 10
			if !equal {
				spectra[l].Bytes = 5 + rng.Int64N(20)
			}
			for range rng.IntN(6) {
				spectra[l].Values = append(spectra[l].Values, rng.ExpFloat64())
			}
			slices.Sort(spectra[l].Values)
			slices.Reverse(spectra[l].Values)
		}
		budget := rng.Int64N(200)
		ranks := Ranks(spectra, budget)
		got, bytes := gain(spectra, ranks)
		if bytes > budget {
			t.Fatalf("seed %d: %d bytes of %d", seed, bytes, budget)
		}
		// The most that a component left out takes off bounds the loss.
		most := 0.0
		for l, r := range ranks {
			if r < len(spectra[l].Values) {
				most = max(most, spectra[l].Values[r])
			}
		}
		best := bruteForce(spectra, budget)
		if equal && got < best-1e-12 || got < best-most {
			t.Errorf("seed %d: ranks %v take off %g, the best %g", seed, ranks, got, best)
		}
		if got >= best-1e-12 {
			exact++
		}
	}
	t.Logf("optimal in %d of 400", exact)
}

func TestRanksByHand(t *testing.T) {
	spectra := []Spectrum{
		{Values: []float64{8, 4, 0}, Bytes: 2},
		{Values: []float64{9, 9}, Bytes: 3},
		{Values: []float64{0}, Bytes: 1},
	}
	for _, c := range []struct {
		budget int64
		want   []int
	}{
		{0, []int{0, 0, 0}},
		{1, []int{0, 0, 0}},
		{2, []int{1, 0, 0}},
		{5, []int{1, 1, 0}},
		{7, []int{2, 1, 0}},
		{8, []int{1, 2, 0}},
		{10, []int{2, 2, 0}},
		{1000, []int{2, 2, 0}},
	} {
		if got := Ranks(spectra, c.budget); !slices.Equal(got, c.want) {
			t.Errorf("budget %d: ranks %v, want %v", c.budget, got, c.want)
		}
	}
}

func TestSpectrumIsWhatRanksTakeOff(t *testing.T) {
	ctx := context.Background()
	for seed, sh := range shapes {
		dw, s := draw(uint64(seed), sh.out, sh.in, sh.samples)
		for _, o := range []Options{{}, {Budget: 1 << 20, Bits: 4}} {
			sp, err := NewSpectrum(ctx, nil, "fc", dw, zeros(dw), s, 6, o)
			if err != nil {
				t.Fatal(err)
			}
			n := min(6, sh.out, sh.in)
			if len(sp.Values) != n || sp.Layer != "fc" || sp.Bytes != o.ComponentBytes(sh.out, sh.in) {
				t.Fatalf("%v: %+v", sh, sp)
			}
			left := sp.Trace
			for i, v := range sp.Values {
				left -= v
				_, res := solve(t, dw, s, Options{Rank: i + 1, FactorType: dtype.F32})
				near(t, "trace", sp.Trace, res.Before, 1e-12*res.Before)
				near(t, "what is left", left, res.After, 1e-11*res.Before)
			}
		}
		// A baseline's spectrum is in its own metric.
		sp, err := NewSpectrum(ctx, nil, "fc", dw, zeros(dw), s, 2, Options{Method: SVD})
		if err != nil {
			t.Fatal(err)
		}
		near(t, "trace", sp.Trace, plain(dw, identity(sh.in), nil, nil), 1e-12*sp.Trace)
	}
	dw, s := draw(1, 4, 3, 9)
	var e *OptionError
	if _, err := NewSpectrum(ctx, nil, "fc", dw, dw, s, 0, Options{}); !errors.As(err, &e) || e.Field != "Rank" {
		t.Errorf("no rank: %v", err)
	}
	var in *layer.InputError
	if _, err := NewSpectrum(ctx, nil, "fc", dw, s, s, 1, Options{}); !errors.As(err, &in) {
		t.Errorf("shapes: %v", err)
	}
}
