package pipeline

import (
	"context"
	"fmt"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/lowrank"
	"github.com/fettle-dev/fettle/prune"
	"github.com/fettle-dev/fettle/quantize"
)

// prepare makes what a layer's steps need of the factors, on all workers.
func (c *compression) prepare(ctx context.Context, l *PlanLayer, f quantize.Factors) error {
	if l.Prune != nil && l.Prune.NeedsMoments() {
		if err := prune.Prepare(ctx, c.pool, f.Factors, l.Prune.Options); err != nil {
			return err
		}
	}
	if l.Quantize == nil {
		return nil
	}
	return f.Prepare(ctx, c.pool, *l.Quantize)
}

// solve takes one layer, its inputs divided by scale unless that is nil, through
// its steps.
func (c *compression) solve(ctx context.Context, l *PlanLayer, f quantize.Factors, m *layer.Moments, scale []float64, fusedMax float64) (*layer.Solution, error) {
	prob, err := c.problem(l, m)
	if err != nil {
		return nil, err
	}
	prob.FusedMax = fusedMax
	if l.sampleRows() > 0 {
		if prob.After, err = c.after(l.op); err != nil {
			return nil, err
		}
	}
	if scale != nil {
		quantize.ScaleWeight(prob.Weight, scale)
	}
	s, err := c.compressLayer(ctx, l, f, prob)
	if err != nil {
		return nil, err
	}
	of, in := f, *prob // as a term sees them
	if m == nil && l.Compensate != nil {
		in.Moments = white(prob)
		of = quantize.NewFactors(in.Moments)
	}
	if l.hasTerm() {
		before := s.Errors
		again := func(ctx context.Context, target blas64.General) (*layer.Solution, error) {
			next := *prob
			next.Aim = target
			return c.compressLayer(ctx, l, f, &next)
		}
		if s, _, err = lowrank.Solve(ctx, c.pool, of.Factors, &in, s, l.aim(), again, l.Compensate.Options); err != nil {
			return nil, err
		}
		if m == nil {
			s.Errors = before // those of white inputs are none of the layer's
		} else { // a turn's own figures are of weights that a term belongs to
			e := &s.Errors
			e.Base, e.Pruned, e.Soft, e.Bound = before.Solved, before.Pruned, before.Soft, 0
			if l.Quantize == nil {
				e.Pruned = before.Solved
			}
		}
	}
	if l.starved { // what was measured is no error on data
		s.Errors = layer.Errors{Damping: s.Errors.Damping}
	}
	if c.spectra != nil && l.hasBudget(c.recipe) && !l.starved {
		if err := c.addSpectrum(ctx, l, of, &in, s); err != nil {
			return nil, err
		}
	}
	if s.Mask != nil && s.Mask.Survivors() != l.Prune.Survivors {
		return nil, fmt.Errorf("layer %s: %d weights survive, %d were planned; please report this", l.Name, s.Mask.Survivors(), l.Prune.Survivors)
	}
	s.Transposed, s.InputScale = l.Spec.Transposed, scale
	return s, nil
}

// compressLayer prunes and quantizes.
func (c *compression) compressLayer(ctx context.Context, l *PlanLayer, f quantize.Factors, prob *layer.Problem) (*layer.Solution, error) {
	if l.Prune == nil {
		return f.Solve(ctx, c.pool, prob, *l.Quantize)
	}
	if l.Prune.Joint {
		return c.joint(ctx, l, f, prob)
	}
	pruned, err := prune.Solve(ctx, c.pool, f.Factors, prob, l.Prune.Options)
	if err != nil || l.Quantize == nil {
		return pruned, err
	}
	next := *prob
	next.Start = pruned
	s, err := f.Solve(ctx, c.pool, &next, *l.Quantize)
	if err != nil {
		return nil, err
	}
	s.Errors.Pruned = pruned.Errors.Solved
	s.Fallbacks = append(pruned.Fallbacks, s.Fallbacks...)
	return s, nil
}

// joint prunes and quantizes in one pass of SparseGPT.
func (c *compression) joint(ctx context.Context, l *PlanLayer, f quantize.Factors, prob *layer.Problem) (*layer.Solution, error) {
	rounder, err := f.NewRounder(ctx, c.pool, prob, *l.Quantize)
	if err != nil {
		return nil, err
	}
	o := l.Prune.Options
	o.Round = rounder.Round
	pruned, err := prune.Solve(ctx, c.pool, f.Factors, prob, o)
	if err != nil {
		return nil, err
	}
	s, err := rounder.Finish(ctx, pruned.Mask)
	if err == nil {
		s.Fallbacks = append(pruned.Fallbacks, s.Fallbacks...)
	}
	return s, err
}

func (c *compression) problem(l *PlanLayer, m *layer.Moments) (*layer.Problem, error) {
	op := &c.graph.Ops[l.op]
	w, err := c.weights.original(l.Weight)
	if err != nil {
		return nil, err
	}
	kind := layer.Linear
	if op.Conv != nil {
		kind = layer.Conv2D
	}
	if op.Transposed {
		w = transposed(w, l.Spec.Cols, l.Spec.Rows)
	}
	t, _ := c.ckpt.Lookup(l.Weight) // it was just read
	return &layer.Problem{
		Layer: l.Weight, Kind: kind, Shape: l.Shape, Groups: op.Groups(),
		Weight: blas32.General{Rows: l.Spec.Rows, Cols: l.Spec.Cols, Stride: l.Spec.Cols, Data: w},
		Type:   t.DType, ScaleType: l.Spec.ScaleType,
		Moments: m,
	}, nil
}

// mostRank is the highest rank that a budget gives a layer.
const mostRank = 256

// addSpectrum notes what components of a term would be worth to a layer.
func (c *compression) addSpectrum(ctx context.Context, l *PlanLayer, f quantize.Factors, prob *layer.Problem, s *layer.Solution) error {
	spectrum, err := lowrank.SpectrumOf(ctx, c.pool, f.Factors, prob, s, l.aim(), min(mostRank, l.Spec.Rows, l.Spec.Cols), l.Compensate.Options)
	if err != nil {
		return err
	}
	c.spectraLock.Lock()
	defer c.spectraLock.Unlock()
	c.spectra[l.Weight] = spectrum
	return nil
}
