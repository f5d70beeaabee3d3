package lowrank

import (
	"cmp"
	"context"
	"slices"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
)

// Spectrum says what each further component of a layer's term is worth.
type Spectrum struct {
	Layer string

	// Values are what the components take off the error, the largest first: the
	// leading eigenvalues of ΔW·M·ΔWᵀ in the method's metric M. To weigh layers
	// against each other, multiply Values and Trace by the layer's weight.
	Values []float64
	Trace  float64 // the error without a term, in the same metric
	Bytes  int64   // of one component in both factors
}

// NewSpectrum returns the leading values of a layer's spectrum: those of the ranks
// 1 to most, or to the smaller side of the weight. Input, errors and cost are
// those of Compensate with rank most; o.Rank and o.Budget are not read.
func NewSpectrum(ctx context.Context, p *pool.Pool, name string, target, current, s blas64.General, most int, o Options) (Spectrum, error) {
	o = o.WithDefaults().WithRank(most)
	if err := o.checkLayer(); err != nil {
		return Spectrum{}, err
	}
	w, err := newProblem(ctx, p, name, target, current, s, o)
	if err != nil {
		return Spectrum{}, err
	}
	out, in := target.Rows, target.Cols
	r := min(most, out, in)
	bt, a, err := w.factors(ctx, chooseRoute(out, in, r), r)
	if err != nil {
		return Spectrum{}, err
	}
	u, err := w.mul(ctx, blas.NoTrans, blas.NoTrans, bt, w.weighted)
	if err != nil {
		return Spectrum{}, err
	}
	sp := Spectrum{Layer: name, Values: make([]float64, r), Bytes: o.ComponentBytes(out, in)}
	for i := range r {
		sp.Values[i] = max(0, vec.Dot64(linalg.Row(u, i), linalg.Row(a, i)))
	}
	// An iteration's vectors need not come in the very order of their values.
	slices.SortFunc(sp.Values, func(a, b float64) int { return cmp.Compare(b, a) })
	for i := range out {
		sp.Trace += vec.Dot64(linalg.Row(w.dw, i), linalg.Row(w.weighted, i))
	}
	sp.Trace = max(0, sp.Trace)
	return sp, nil
}

// Ranks divides a budget in bytes among layers: it returns the rank of each, 0 for
// a layer that is better left without a term. Components are taken in the order of
// what they take off the error per byte; a layer is done with when its next one
// does not fit, and when that would take off nothing. The sum of the errors is
// then above the least possible by less than the first component that did not fit
// takes off. A layer gets no more components than its spectrum has values.
func Ranks(spectra []Spectrum, budget int64) []int {
	type component struct {
		layer int
		worth float64
	}
	var all []component
	for l, s := range spectra {
		for _, v := range s.Values {
			if v > 0 && s.Bytes > 0 {
				all = append(all, component{l, v / float64(s.Bytes)})
			}
		}
	}
	// Stable, so that equals go to the first layer.
	slices.SortStableFunc(all, func(a, b component) int { return cmp.Compare(b.worth, a.worth) })
	ranks := make([]int, len(spectra))
	for _, c := range all {
		if bytes := spectra[c.layer].Bytes; bytes <= budget {
			budget -= bytes
			ranks[c.layer]++
		}
	}
	return ranks
}
