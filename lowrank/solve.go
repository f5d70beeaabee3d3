package lowrank

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// Aim says what a layer's weight and its term are to give together: fields as in
// package quantize, and those of the step that made the solution.
type Aim struct {
	Align, Residual        bool
	Damping                float64 // 0: 0.01
	BiasCorrection, Centre bool
}

// Again compresses the layer for another target (out×in), as it was compressed
// before.
type Again func(ctx context.Context, target blas64.General) (*layer.Solution, error)

// Solve adds a low-rank term to the solution of a layer of one group: the term, the
// errors and the bias are those of both together. The problem's moments must be
// those of the factors, and there must be some. again is called for
// Options.Alternations only; the solution returned is s itself, changed, or one
// that again returned.
//
// Errors: *OptionError, *layer.InputError, *GroupsError, and again's. Cost: that of
// Compensate, 2·out·in² for alignment where the streams differ, and out·in² to
// measure.
func Solve(ctx context.Context, p *pool.Pool, f *gram.Factors, prob *layer.Problem, s *layer.Solution, aim Aim, again Again, o Options) (*layer.Solution, Result, error) {
	if p == nil {
		p = pool.New(1)
	}
	t, target, h, err := system(ctx, p, f, prob, aim)
	if err != nil {
		return nil, Result{}, err
	}
	last := s
	requantize := func(ctx context.Context, target blas64.General) (blas64.General, error) {
		next, err := again(ctx, target)
		if err != nil {
			return blas64.General{}, err
		}
		last = next
		return base(next), nil
	}
	var res Result
	var term *layer.LowRank
	if o.Alternations == 0 {
		term, res, err = Compensate(ctx, p, prob.Layer, target, base(s), h, o)
	} else {
		solutions := []*layer.Solution{s}
		_, term, res, err = Alternate(ctx, p, prob.Layer, target, base(s), h, func(ctx context.Context, target blas64.General) (blas64.General, error) {
			w, err := requantize(ctx, target)
			solutions = append(solutions, last)
			return w, err
		}, o)
		s = solutions[res.Alternations]
	}
	if err != nil {
		return nil, res, err
	}
	s.LowRank = term
	return s, res, measure(ctx, t, s, aim)
}

// system returns a layer's target, what its weight aims at, and H + λI.
func system(ctx context.Context, p *pool.Pool, f *gram.Factors, prob *layer.Problem, aim Aim) (*gram.Target, blas64.General, blas64.General, error) {
	var none blas64.General
	if err := CheckGroups(prob.Layer, prob.Groups); err != nil {
		return nil, none, none, err
	}
	if prob.Moments == nil || prob.Moments != f.Moments() {
		return nil, none, none, &layer.InputError{Layer: prob.Layer, What: "moments", Index: -1, Reason: "there are none, or not those of the factors"}
	}
	kind := gram.Kind{Damping: aim.Damping, Centred: aim.Centre}
	if kind.Damping == 0 {
		kind.Damping = gram.DefaultDamping
	}
	t, err := f.Target(ctx, p, prob, kind, aim.Residual)
	if err != nil {
		return nil, none, none, fmt.Errorf("layer %s: %w", prob.Layer, err)
	}
	target := t.Anchor
	if !aim.Align && t.Crossed() {
		target = t.Original()
	}
	h, err := t.Grams[0].DampedH(ctx, p)
	return t, target, h, err
}

// base returns the solution's weight without a term.
func base(s *layer.Solution) blas64.General {
	w, row := linalg.NewGeneral(s.Rows, s.Cols), make([]float32, s.Cols)
	for r := range s.Rows {
		s.BaseRow(r, row)
		linalg.Widen(linalg.Row(w, r), row)
	}
	return w
}

// measure makes the solution's error and bias those with the term.
func measure(ctx context.Context, t *gram.Target, s *layer.Solution, aim Aim) error {
	weight := make([]float32, s.Rows*s.Cols)
	write := s.RowWriter()
	for r := range s.Rows {
		write(r, weight[r*s.Cols:][:s.Cols])
	}
	rows := func(r int, dst []float32) { copy(dst, weight[r*s.Cols:]) }
	sums, err := t.Errors(ctx, nil, rows)
	if err != nil {
		return err
	}
	s.Errors.Solved = sums[0]
	if aim.BiasCorrection {
		s.Bias = t.Bias(rows)
	}
	for _, v := range append([]float64{s.Errors.Solved}, s.Bias...) {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return &layer.InputError{Layer: s.Layer, What: "moments", Index: -1, Reason: "too large: float64 overflows"}
		}
	}
	return nil
}

// SpectrumOf returns what components of a term would take off the error of a
// layer's solution, at most of the ranks 1 to most; see NewSpectrum. Its Values and
// Trace are those of the layer's true, damped error.
func SpectrumOf(ctx context.Context, p *pool.Pool, f *gram.Factors, prob *layer.Problem, s *layer.Solution, aim Aim, most int, o Options) (Spectrum, error) {
	if p == nil {
		p = pool.New(1)
	}
	t, target, h, err := system(ctx, p, f, prob, aim)
	if err != nil {
		return Spectrum{}, err
	}
	spectrum, err := NewSpectrum(ctx, p, prob.Layer, target, base(s), h, most, o)
	for i := range spectrum.Values {
		spectrum.Values[i] *= t.Grams[0].Unit
	}
	spectrum.Trace *= t.Grams[0].Unit
	return spectrum, err
}
