package pipeline

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"

	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/quantize"
	"github.com/fettle-dev/fettle/record"
	"github.com/fettle-dev/fettle/search/fitness"
)

// database holds every layer at every level, as units on disk. They are the solutions
// that a run with sequential: none would find: each sees what the original model
// gives, so a level does not depend on those of other layers.
type database struct {
	*compression
	keys   []string  // by plan layer, of solutions; "" for what is not solved
	errors []float64 // relative ones; −1 where they are not known
}

// build solves what is not on disk. A level that fails is left out, with its reason in
// the plan's layer.
func (r *run) build(ctx context.Context) (*database, error) {
	trial := *r
	trial.plan = &Plan{Memory: r.plan.Memory}
	var at []int // in r.plan.Layers
	for i := range r.plan.Layers {
		if r.plan.Layers[i].solvable() {
			trial.plan.Layers = append(trial.plan.Layers, r.plan.Layers[i])
			at = append(at, i)
		}
	}
	trial.record = &record.Run{}
	d := &database{compression: newCompression(&trial), keys: make([]string, len(r.plan.Layers)), errors: make([]float64, len(r.plan.Layers))}
	for i := range d.errors {
		d.errors[i] = -1
	}
	defer d.streams.free()
	index := map[*PlanLayer]int{}
	for i := range trial.plan.Layers {
		index[&trial.plan.Layers[i]] = at[i]
	}
	for _, value := range d.stopValues() {
		for _, s := range d.stopsAt(value) {
			if err := d.solveLevels(ctx, s); err != nil {
				return nil, err
			}
			for i, l := range s.layers {
				to := index[l]
				d.keys[to] = s.keys[i]
				r.plan.Layers[to].leftOut = l.leftOut
			}
		}
	}
	r.clock = trial.clock
	d.run = r
	for i := range r.plan.Layers {
		if d.keys[i] == "" || r.plan.Layers[i].leftOut != "" {
			continue
		}
		if e, ok := d.noted(d.keys[i]); ok {
			d.errors[i] = e
		}
	}
	return d, nil
}

// solveLevels finds the solutions of a stop's layers, level after level, so that no
// more is in memory than when one is solved.
func (d *database) solveLevels(ctx context.Context, s *stop) error {
	if err := d.setKeys(s); err != nil {
		return err
	}
	var missing []int
	for i := range s.layers {
		if _, ok := d.noted(s.keys[i]); ok {
			d.tell(s.layers[i], true)
		} else {
			missing = append(missing, i)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	moments, err := d.moments(ctx, s)
	if err != nil {
		return err
	}
	d.clock.enter(StageLevels)
	factors := quantize.NewFactors(moments)
	for len(missing) > 0 {
		level := s.layers[missing[0]].level
		n := slices.IndexFunc(missing, func(i int) bool { return s.layers[i].level != level })
		if n < 0 {
			n = len(missing)
		}
		if err := d.solveLevel(ctx, s, missing[:n], factors, moments); err != nil {
			return err
		}
		for _, i := range missing[:n] {
			d.tell(s.layers[i], false)
		}
		missing = missing[n:]
	}
	runtime.GC() // moments and factors
	return nil
}

func (d *database) tell(l *PlanLayer, cached bool) {
	d.done++
	if cached {
		d.store.reused++
	} else {
		d.store.computed++
	}
	name := l.Name
	if levels := d.recipe.Rules[l.rule].levels; len(levels) > 0 {
		name += " at " + levels[l.level].name
	}
	d.clock.emit(Event{Layer: name, Cached: cached, Done: d.done, Total: len(d.plan.Layers), RelativeError: -1})
}

// solveLevel solves some layers of a stop and keeps what it finds.
func (d *database) solveLevel(ctx context.Context, s *stop, layers []int, factors quantize.Factors, moments *layer.Moments) error {
	fails := func(l *PlanLayer, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.leftOut = err.Error()
		d.clock.emit(Event{Warning: fmt.Sprintf("layer %s: a level is left out: %v", l.Name, err)})
		return nil
	}
	fused, err := d.fusedMaxima(s.layers)
	if err != nil {
		return err
	}
	var ready []int
	for _, i := range layers {
		if err := d.prepare(ctx, s.layers[i], factors); err != nil {
			if err := fails(s.layers[i], err); err != nil {
				return err
			}
			continue
		}
		ready = append(ready, i)
	}
	failed := make([]error, len(ready))
	err = d.pool.For(ctx, len(ready), func(n int) error {
		l := s.layers[ready[n]]
		solution, err := d.solve(ctx, l, factors, moments, nil, fused[l.Fusion])
		if err != nil {
			failed[n] = err
			return nil
		}
		return d.keep(s.keys[ready[n]], solution)
	})
	if err != nil {
		return err
	}
	for n, err := range failed {
		if err != nil {
			if err := fails(s.layers[ready[n]], err); err != nil {
				return err
			}
		}
	}
	return nil
}

// keep puts a solution on disk, and then its error beside it: a solution with a note
// is whole.
func (d *database) keep(k string, s *layer.Solution) error {
	if err := save(d.kept, k, s, layer.EncodeSolution); err != nil {
		return err
	}
	note, err := noteKey(k)
	if err != nil {
		return err
	}
	e := -1.0
	if s.Errors.Energy > 0 {
		e = s.Errors.Relative()
	}
	return save(d.kept, note, &layer.Vectors{Of: [][]float64{{e}}}, layer.EncodeVectors)
}

// noted returns the relative error of a solution that is on disk.
func (d *database) noted(k string) (float64, bool) {
	note, err := noteKey(k)
	if err != nil {
		return 0, false
	}
	v, ok := load(d.kept, note, layer.DecodeVectors)
	if !ok || len(v.Of) != 1 || len(v.Of[0]) != 1 {
		return 0, false
	}
	_, err = os.Stat(d.kept.path(k))
	return v.Of[0][0], err == nil
}

func noteKey(solution string) (string, error) { return key("error", solution) }

// variant reads what a gene's level makes of its tensors.
func (d *database) variant(g *gene, level int) (v fitness.Variant, err error) {
	if g.levels[level].drop != "" {
		return fitness.Variant{Dropped: true}, nil
	}
	v.Tensors = map[string][]float32{}
	for _, i := range g.layers[level] {
		l := &d.plan.Layers[i]
		if !l.solvable() {
			continue
		}
		s, ok := load(d.kept, d.keys[i], layer.DecodeSolution)
		if !ok {
			return v, &CacheError{Dir: d.kept.dir, Err: errLostUnit}
		}
		data := make([]float32, s.Rows*s.Cols)
		s.Weight(data)
		if l.Compensate != nil && l.Compensate.Merge {
			for j := range data {
				data[j] = l.Spec.ValueType.Round(data[j])
			}
		}
		if err := finite(l.Weight, data); err != nil {
			return v, err
		}
		v.Tensors[l.Weight] = data
		if s.Bias != nil {
			name, corrected, err := d.correctedBias(l, s.Bias)
			if err != nil {
				return v, err
			}
			if err := finite(name, corrected); err != nil {
				return v, err
			}
			v.Tensors[name] = corrected
		}
	}
	return v, nil
}

// tensors lists what levels of a gene may change.
func (d *database) tensors(g *gene) []string {
	var names []string
	for _, i := range g.layers[0] {
		l := &d.plan.Layers[i]
		names = append(names, l.Weight)
		if name := biasHolder(d.graph, l.op); name != "" {
			names = append(names, name)
		}
	}
	return names
}
