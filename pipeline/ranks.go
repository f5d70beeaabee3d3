package pipeline

import (
	"context"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/lowrank"
	"github.com/fettle-dev/fettle/prune"
	"github.com/fettle-dev/fettle/quantize"
	"github.com/fettle-dev/fettle/record"
)

// chooseRanks divides the budgets of compensate steps among their layers. What
// components are worth is measured on a model that is compressed without them,
// once; the ranks are a unit on disk.
func (r *run) chooseRanks(ctx context.Context) error {
	budgets := false
	for i := range r.plan.Layers {
		budgets = budgets || r.plan.Layers[i].hasBudget(r.recipe)
	}
	if !budgets {
		return nil
	}
	k, err := r.ranksKey()
	if err != nil {
		return err
	}
	v, _, err := unit(r.store, k, layer.DecodeVectors, layer.EncodeVectors, func() (*layer.Vectors, error) { return r.measureRanks(ctx) })
	if err != nil {
		return err
	}
	for i := range r.plan.Layers {
		if l := &r.plan.Layers[i]; l.hasBudget(r.recipe) {
			l.setRank(int(v.Of[0][i]))
			l.ranked = true
		}
	}
	return r.plan.foretell(r.recipe, r.ckpt, r.original.stored)
}

// hasBudget reports whether the layer's rank comes from a budget.
func (l *PlanLayer) hasBudget(r *Recipe) bool {
	_, _, term := r.stepsOf(l)
	return l.Compensate != nil && term != nil && term.budget > 0
}

// ranksKey is of all that the ranks depend on.
func (r *run) ranksKey() (string, error) {
	parts := []any{"ranks", layer.EncodingVersion, quantize.Version, prune.Version, lowrank.Version, blas.Path, r.sha, r.graph.Hash(), r.recipe.Sequential, r.dataHash()}
	for i := range r.plan.Layers {
		l := &r.plan.Layers[i]
		_, _, term := r.recipe.Rules[l.rule].steps()
		parts = append(parts, l.Weight, l.Quantize, l.Prune, l.Compensate, l.Spec.ScaleType, l.rule)
		if term != nil {
			parts = append(parts, term.budget)
		}
	}
	return key(parts...)
}

// measureRanks returns the rank of each planned layer.
func (r *run) measureRanks(ctx context.Context) (*layer.Vectors, error) {
	trial := *r
	trial.record = &record.Run{Source: r.record.Source}
	trial.weights = newWeights(r.ckpt, r.kept, r.plan)
	trial.clock.events = func(e Event) {
		if e.Layer == "" && e.Warning == "" { // the run's own layers and warnings follow
			r.clock.events(e)
		}
	}
	c := newCompression(&trial)
	c.spectra = map[string]lowrank.Spectrum{}
	err := c.solveAll(ctx)
	c.streams.free()
	trial.clock.events = r.clock.events
	r.clock = trial.clock
	if err != nil {
		return nil, err
	}
	ranks := make([]float64, len(r.plan.Layers))
	for rule := range r.recipe.Rules {
		_, _, term := r.recipe.Rules[rule].steps()
		if term == nil || term.budget == 0 {
			continue
		}
		var spectra []lowrank.Spectrum
		var at []int
		for i := range r.plan.Layers {
			if l := &r.plan.Layers[i]; l.rule == rule && l.Compensate != nil {
				spectra, at = append(spectra, c.spectra[l.Weight]), append(at, i)
			}
		}
		for k, rank := range lowrank.Ranks(spectra, term.budget) {
			ranks[at[k]] = float64(rank)
		}
	}
	return &layer.Vectors{Of: [][]float64{ranks}}, nil
}
