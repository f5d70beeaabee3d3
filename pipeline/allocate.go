package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/calibrate"
	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/prune"
)

// LayerPrune is what is pruned of a layer.
type LayerPrune struct {
	prune.Options
	Allocation prune.Allocation
	Joint      bool // rounded in the pass that prunes

	layout export.MaskLayout
	any    bool // the smallest layout, whichever that is
}

// Sparsity returns the share of the layer's weights that go.
func (l *PlanLayer) Sparsity() float64 {
	if l.Prune == nil {
		return 0
	}
	return 1 - float64(l.Prune.Survivors)/float64(l.Spec.Rows*l.Spec.Cols)
}

// planPrune returns what of a layer is pruned, without the number of survivors.
func (l *PlanLayer) planPrune(s *Prune, g *model.Graph) {
	o := s.options()
	if rows, cols := l.Spec.Rows, l.Spec.Cols; o.Pattern.Kind == prune.Blocks && (rows/g.Ops[l.op].Groups()%o.Pattern.Rows != 0 || cols%o.Pattern.Cols != 0) {
		l.Fallbacks = append(l.Fallbacks, layer.Fallback{
			Asked: "pattern " + o.Pattern.String(), Got: "unstructured", Reason: fmt.Sprintf("blocks do not divide the %d×%d weight", rows, cols),
		})
		o.Pattern = prune.Pattern{}
	}
	if o.BiasCorrection && biasHolder(g, l.op) == "" {
		o.BiasCorrection, o.Centre = false, false
		if s.BiasCorrection != nil { // asked for, not just the method's default
			l.fallBack(noBias)
		}
	}
	l.Prune = &LayerPrune{Options: o, Allocation: s.allocation().Method, Joint: s.Joint, any: s.Layout == "smallest"}
	if !l.Prune.any && s.Layout != "dense" {
		l.Prune.layout = export.MaskLayout(s.Layout)
	}
}

// setSurvivors makes a share of an allocation what the layer's pattern can have of
// it, and chooses how the weight is stored.
func (l *PlanLayer) setSurvivors(share prune.Share, merged bool) {
	p := l.Prune
	p.Survivors = share.Survivors
	if share.Rescued {
		l.fallBack(layer.Fallback{
			Asked: fmt.Sprintf("allocation %s", p.Allocation), Got: "one weight more", Reason: "it would have left the layer nothing",
		})
	}
	rows, cols := l.Spec.Rows, l.Spec.Cols
	switch p.Pattern.Kind {
	case prune.NofM:
		p.Survivors = p.Pattern.Survivors(rows, cols, 0)
	case prune.Blocks:
		size := p.Pattern.Rows * p.Pattern.Cols
		blocks := rows * cols / size
		pruned := min(prune.Pruned(blocks, share.Sparsity()), blocks-1)
		p.Survivors = (blocks - pruned) * size
	}
	p.Survivors = max(p.Survivors, 1)
	l.Spec.Pruned = export.Sparsity{Survivors: p.Survivors}
	if p.Pattern.Kind == prune.NofM {
		l.Spec.Pruned.Keep, l.Spec.Pruned.Of = p.Pattern.N, p.Pattern.M
	}
	switch {
	case merged:
		l.Spec = l.Spec.Smallest(export.MaskNone)
	case p.any:
		l.Spec = l.Spec.Smallest()
	default:
		asked := l.Spec.Smallest(p.layout)
		if asked.Pruned.Layout != p.layout {
			asked = l.Spec.Smallest()
			l.fallBack(layer.Fallback{
				Asked: fmt.Sprintf("layout %s", p.layout), Got: cmp.Or(string(asked.Pruned.Layout), "dense"),
				Reason: fmt.Sprintf("it cannot hold what pattern %s leaves of %d inputs", p.Pattern, cols),
			})
		}
		l.Spec = asked
	}
}

// allocate shares each rule's sparsity out among its layers; d measures what some
// allocations need of data.
func (p *Plan) allocate(ctx context.Context, r *Recipe, w *weights, d *measurer) error {
	for k := range p.Layers {
		if l := &p.Layers[k]; len(r.Rules[l.rule].levels) > 0 && l.Prune != nil && l.leftOut == "" {
			if err := p.allocateLevel(ctx, r, l, w); err != nil {
				return err
			}
		}
	}
	for i := range r.Rules {
		step, _, term := r.Rules[i].steps()
		if step == nil || len(r.Rules[i].levels) > 0 {
			continue
		}
		var layers []*PlanLayer
		for k := range p.Layers {
			if p.Layers[k].rule == i {
				layers = append(layers, &p.Layers[k])
			}
		}
		if len(layers) == 0 {
			continue
		}
		shares, err := allocateRule(ctx, layers, step, w, d)
		if err != nil {
			return fmt.Errorf("rules[%d]: %w", i, err)
		}
		for k, l := range layers {
			l.setSurvivors(shares[k], term != nil && term.Merge)
			if len(l.Fallbacks) > 0 && r.OnFallback == "fail" {
				return &FallbackError{Layer: l.Name, Fallback: l.Fallbacks[0]}
			}
		}
	}
	return nil
}

// allocateLevel gives one level of a layer its survivors.
func (p *Plan) allocateLevel(ctx context.Context, r *Recipe, l *PlanLayer, w *weights) error {
	step, _, term := r.stepsOf(l)
	shares, err := allocateRule(ctx, []*PlanLayer{l}, step, w, nil)
	switch {
	case errors.Is(err, prune.ErrImpossible):
		l.leftOut = err.Error()
		return nil
	case err != nil:
		return fmt.Errorf("rules[%d]: %w", l.rule, err)
	}
	l.setSurvivors(shares[0], term != nil && term.Merge)
	if len(l.Fallbacks) > 0 && r.OnFallback == "fail" {
		l.leftOut = (&FallbackError{Layer: l.Name, Fallback: l.Fallbacks[0]}).Error()
	}
	return nil
}

func allocateRule(ctx context.Context, layers []*PlanLayer, step *Prune, w *weights, d *measurer) ([]prune.Share, error) {
	o := step.allocation()
	infos := make([]prune.LayerInfo, len(layers))
	for k, l := range layers {
		infos[k] = prune.LayerInfo{Name: l.Name, Shape: l.Shape, Block: l.block}
	}
	in := prune.AllocationInput{Layers: func(_ context.Context, k int) (blas32.General, error) {
		data, err := w.original(layers[k].Weight)
		if err != nil {
			return blas32.General{}, err
		}
		return l32(data, layers[k]), nil
	}}
	switch o.Method {
	case prune.OWL:
		diagonals, err := d.diagonals(ctx, layers)
		if err != nil {
			return nil, err
		}
		read := in.Layers
		in.Layers = func(ctx context.Context, k int) (blas32.General, error) {
			m, err := read(ctx, k)
			if err != nil {
				return m, err
			}
			return m, prune.WandaScores(ctx, d.run.pool, m, m, diagonals[k])
		}
	case prune.RateDistortion:
		curves, err := d.curves(ctx, layers, step.Samples)
		if err != nil {
			return nil, err
		}
		in.Curves = curves
	}
	return prune.Allocate(ctx, infos, o, in)
}

// l32 is a layer's weight as an out×in matrix.
func l32(data []float32, l *PlanLayer) blas32.General {
	if l.Spec.Transposed {
		data = transposed(data, l.Spec.Cols, l.Spec.Rows)
	}
	return blas32.General{Rows: l.Spec.Rows, Cols: l.Spec.Cols, Stride: l.Spec.Cols, Data: data}
}

// measurer measures on the original model what allocations ask for. Values lie in
// the run's space and are freed when no operation has yet to read them.
type measurer struct{ run *run }

// check refuses an allocation that has no data to measure on.
func (d *measurer) check(layers []*PlanLayer) error {
	if d.run.calibration != nil {
		return nil
	}
	return &RecipeError{File: d.run.recipe.file, Where: "calibration", Reason: fmt.Sprintf("is missing, and allocation %s measures on data; name some there or with --calibration", layers[0].Prune.Allocation)}
}

// kept returns what a measurement gives for each layer, a unit on disk.
func (d *measurer) kept(ctx context.Context, kind string, layers []*PlanLayer, more []any, compute func() (*layer.Vectors, error)) ([][]float64, error) {
	sha, err := d.run.ckpt.SHA256(ctx)
	if err != nil {
		return nil, err
	}
	parts := []any{kind, layer.EncodingVersion, prune.Version, blas.Path, sha, d.run.graph.Hash(), d.run.calibration.sha256()}
	for _, l := range layers {
		parts = append(parts, l.Weight)
	}
	k, err := key(append(parts, more...)...)
	if err != nil {
		return nil, err
	}
	v, _, err := unit(d.run.store, k, layer.DecodeVectors, layer.EncodeVectors, compute)
	if err != nil {
		return nil, err
	}
	return v.Of, nil
}

// diagonals returns diag(H) of each layer in the original model, one per group of
// a convolution.
func (d *measurer) diagonals(ctx context.Context, layers []*PlanLayer) ([][][]float64, error) {
	if err := d.check(layers); err != nil {
		return nil, err
	}
	flat, err := d.kept(ctx, "diagonals", layers, nil, func() (*layer.Vectors, error) {
		s, free, err := d.stream(d.run.calibration.count())
		if err != nil {
			return nil, err
		}
		defer free()
		v := &layer.Vectors{Of: make([][]float64, len(layers))}
		for i := range d.run.graph.Ops {
			at := slices.IndexFunc(layers, func(l *PlanLayer) bool { return l.op == i })
			if at >= 0 {
				if v.Of[at], err = d.diagonal(ctx, s, i, layers, v.Of[:at]); err != nil {
					return nil, err
				}
			}
			if err := s.step(ctx, i); err != nil {
				return nil, err
			}
		}
		return v, nil
	})
	if err != nil {
		return nil, err
	}
	all := make([][][]float64, len(layers))
	for k, l := range layers {
		for part := range slices.Chunk(flat[k], l.Spec.Cols) {
			if l.starved { // the weight alone counts
				part = slices.Repeat([]float64{1}, l.Spec.Cols)
			}
			all[k] = append(all[k], part)
		}
	}
	return all, nil
}

// diagonal returns diag(H) of the value that an operation reads, group after group:
// that of a layer before it which reads the value in the same way, where there is
// one.
func (d *measurer) diagonal(ctx context.Context, s *stream, op int, layers []*PlanLayer, before [][]float64) (diagonal []float64, err error) {
	g := d.run.graph
	value, reading := g.Ops[op].Inputs[0], readingOf(g, op)
	for k, known := range before {
		if other := layers[k].op; known != nil && g.Ops[other].Inputs[0] == value && sameReading(readingOf(g, other), reading) {
			return known, nil
		}
	}
	acc := calibrate.New(d.run.pool, reading, true)
	if err := acc.Add(ctx, s.values[value].Data, s.values[value].Data); err != nil {
		return nil, err
	}
	m, err := acc.Moments(ctx)
	if err != nil {
		return nil, err
	}
	for _, h := range m.H {
		for j := range h.Rows {
			diagonal = append(diagonal, h.Data[j*h.Stride+j])
		}
	}
	return diagonal, finiteMoments(m, g.Values[value].Name)
}

// Of a curve: into how many parts a layer's weights are divided, and how many
// samples are measured on.
const (
	curveLevels  = 32
	curveSamples = 128
)

// curves returns for each layer the mean over samples of the squared change of the
// model's outputs when the layer alone loses 0, 1/32, 2/32 … of its weights, the
// smallest ones (arXiv 2308.10438, §3). A candidate is computed from its layer on.
// To lose all is not allowed. The cost is that of 31 forward passes from each layer on
// and of the weights that they read; for large models take fewer samples, or another
// allocation.
func (d *measurer) curves(ctx context.Context, layers []*PlanLayer, samples int) ([][]float64, error) {
	if err := d.check(layers); err != nil {
		return nil, err
	}
	if samples == 0 {
		samples = curveSamples
	}
	samples = min(samples, d.run.calibration.count())
	curves, err := d.kept(ctx, "curves", layers, []any{samples, curveLevels}, func() (*layer.Vectors, error) {
		g := d.run.graph
		s, free, err := d.stream(samples)
		if err != nil {
			return nil, err
		}
		defer free()
		whole, freeWhole := d.fork(s, nil)
		defer freeWhole()
		if err := whole.finishFrom(ctx, 0); err != nil {
			return nil, err
		}
		want, found := whole.values[g.Output].Data, 0
		if err := finite("output "+g.Values[g.Output].Name, want); err != nil {
			return nil, err
		}
		v := &layer.Vectors{Of: make([][]float64, len(layers))}
		for i := range g.Ops {
			if at := slices.IndexFunc(layers, func(l *PlanLayer) bool { return l.op == i }); at >= 0 {
				if v.Of[at], err = d.curve(ctx, s, layers[at], want, samples); err != nil {
					return nil, err
				}
				found++
				d.run.clock.emit(Event{Done: found, Total: len(layers)})
			}
			if err := s.step(ctx, i); err != nil {
				return nil, err
			}
		}
		return v, nil
	})
	if err != nil {
		return nil, err
	}
	for k := range curves {
		curves[k] = append(curves[k], math.Inf(1))
	}
	return curves, nil
}

func (d *measurer) curve(ctx context.Context, s *stream, l *PlanLayer, want []float32, samples int) ([]float64, error) {
	w, err := d.run.weights.original(l.Weight)
	if err != nil {
		return nil, err
	}
	matrix := blas32.General{Rows: 1, Cols: len(w), Stride: len(w), Data: w}
	scores := blas32.General{Rows: 1, Cols: len(w), Stride: len(w), Data: make([]float32, len(w))}
	if err := prune.MagnitudeScores(ctx, d.run.pool, scores, matrix); err != nil {
		return nil, err
	}
	curve := []float64{0}
	for level := 1; level < curveLevels; level++ {
		keep := len(w) - prune.Pruned(len(w), float64(level)/curveLevels)
		mask, _, err := prune.Select(ctx, d.run.pool, scores, prune.Selection{Survivors: keep})
		if err != nil {
			return nil, err
		}
		pruned := slices.Clone(w)
		for c := range pruned {
			if !mask.At(0, c) {
				pruned[c] = 0
			}
		}
		sum, err := d.change(ctx, s, l, pruned, want)
		if err != nil {
			return nil, err
		}
		curve = append(curve, sum/float64(samples))
	}
	return curve, nil
}

// change returns the squared change of the model's outputs when a layer alone has
// other weights; +Inf where they overflow.
func (d *measurer) change(ctx context.Context, s *stream, l *PlanLayer, weight, want []float32) (sum float64, err error) {
	f, free := d.fork(s, map[string][]float32{l.Weight: weight})
	defer free()
	if err := f.finishFrom(ctx, l.op); err != nil {
		return 0, err
	}
	for i, y := range f.values[d.run.graph.Output].Data {
		off := float64(y) - float64(want[i])
		sum += off * off
	}
	if math.IsNaN(sum) {
		sum = math.Inf(1)
	}
	return sum, nil
}

// stream is one of the original model over the first samples. free gives back what it
// still holds.
func (d *measurer) stream(samples int) (s *stream, free func(), err error) {
	d.run.clock.enter(StageAllocate)
	input, err := d.run.calibration.batch(0, samples)
	if err != nil {
		return nil, nil, err
	}
	s = newStream(d.run.graph, d.run.pool, d.run.weights.original, input)
	return s, d.own(s), nil
}

// fork returns a stream that goes on from where s is with other weights. free gives
// back what is its own.
func (d *measurer) fork(s *stream, replaced map[string][]float32) (f *stream, free func()) {
	forked := *s
	f = &forked
	f.exec = model.NewExecutor(s.graph, d.run.pool, func(name string) ([]float32, error) {
		if w, ok := replaced[name]; ok {
			return w, nil
		}
		return d.run.weights.original(name)
	})
	f.values, f.ran, f.readers = slices.Clone(s.values), slices.Clone(s.ran), slices.Clone(s.readers)
	return f, d.own(f)
}

// own lets a stream's next values lie in the run's space.
func (d *measurer) own(s *stream) (free func()) {
	space, owned := d.run.space, map[*model.Tensor]bool{}
	s.exec.AllocateWith(space)
	s.exec.ReadRows(d.run.ckpt.ReadRowFloat32)
	s.hold = func(t *model.Tensor) { owned[t] = true }
	s.drop = func(t *model.Tensor) {
		if owned[t] {
			delete(owned, t)
			space.Free(t.Data)
		}
	}
	return func() {
		for t := range owned {
			space.Free(t.Data)
		}
	}
}

// finishFrom runs all operations from one on.
func (s *stream) finishFrom(ctx context.Context, op int) error {
	for i := op; i < len(s.graph.Ops); i++ {
		if err := s.step(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// allocatesOnData reports whether an allocation of the recipe measures on data.
func (r *Recipe) allocatesOnData() bool {
	for i := range r.Rules {
		if p, _, _ := r.Rules[i].steps(); p != nil {
			if m := p.allocation().Method; m == prune.OWL || m == prune.RateDistortion {
				return true
			}
		}
	}
	return false
}
