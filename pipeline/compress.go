package pipeline

import (
	"context"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/fettle-dev/fettle/calibrate"
	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/lowrank"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/prune"
	"github.com/fettle-dev/fettle/quantize"
	"github.com/fettle-dev/fettle/record"
)

// compression is the loop's state: which layers are solved, and how far the
// streams have come. The streams begin when moments are first needed that are
// not on disk, so that a run whose every solution is there computes nothing.
type compression struct {
	*run
	streams  *streams // nil until needed
	changed  []bool   // by operation: computes with compressed weights
	upstream string   // hash of the keys of all solutions that the streams have passed
	done     int

	// spectra are what low-rank terms would be worth, by weight; nil unless they are
	// asked for.
	spectra     map[string]lowrank.Spectrum
	spectraLock sync.Mutex

	passes map[int]int // of the compressed stream, see stream

	folded map[string][]float32 // normalizations' tensors with AWQ's scales in them
	divide map[int][]float32    // see streams
}

// stop is a place where the streams stop: planned layers that read one value in
// the same way.
type stop struct {
	value   int
	reading calibrate.Reading
	layers  []*PlanLayer
	key     string   // of the moments; "" when no data is used
	keys    []string // of the solutions

	scale []float64 // AWQ's, of the layers' inputs; nil until known, and without
}

// scaled reports whether AWQ scales what the layers read.
func (s *stop) scaled() bool { return s.layers[0].Scaled }

// starved reports whether the layers are an expert's that sees too few tokens.
func (s *stop) starved() bool { return s.layers[0].starved }

// compress solves every planned layer in the order of the data.
func (r *run) compress(ctx context.Context) error {
	if err := r.chooseRanks(ctx); err != nil {
		return err
	}
	return newCompression(r).solveAll(ctx)
}

func newCompression(r *run) *compression {
	return &compression{run: r, changed: make([]bool, len(r.graph.Ops)), folded: map[string][]float32{}, passes: map[int]int{}, divide: map[int][]float32{}}
}

func (c *compression) solveAll(ctx context.Context) error {
	for _, value := range c.stopValues() {
		stops := c.stopsAt(value)
		for _, s := range stops {
			if err := c.solveStop(ctx, s); err != nil {
				return err
			}
		}
		// Layers that read the same value in different ways must not see each
		// other's weights: the upstream of the next value grows only now.
		if c.recipe.Sequential == "none" || c.captured != nil {
			continue // the streams stay the same throughout, or there are none
		}
		for _, s := range stops {
			if err := c.pass(ctx, s); err != nil {
				return err
			}
		}
	}
	maps.Copy(c.weights.replaced, c.folded)
	return nil
}

// pass lets the compressed stream go on with the weights of a stop's layers.
func (c *compression) pass(ctx context.Context, s *stop) (err error) {
	for i, l := range s.layers {
		c.changed[l.op] = true
		if c.upstream, err = key(c.upstream, l.Weight, s.keys[i]); err != nil {
			return err
		}
	}
	return c.passScaled(ctx, s)
}

// stopValues lists the values that planned layers read, in order.
func (c *compression) stopValues() []int {
	var values []int
	seen := map[int]bool{}
	for i := range c.plan.Layers {
		v := c.graph.Ops[c.plan.Layers[i].op].Inputs[0]
		if !seen[v] {
			seen[v] = true
			values = append(values, v)
		}
	}
	return values
}

func (c *compression) stopsAt(value int) []*stop {
	var stops []*stop
	for i := range c.plan.Layers {
		l := &c.plan.Layers[i]
		if c.graph.Ops[l.op].Inputs[0] != value {
			continue
		}
		reading := readingOf(c.graph, l.op)
		at := -1
		for j, s := range stops {
			if c.captured == nil && sameReading(s.reading, reading) {
				at = j
			}
		}
		if at < 0 {
			at = len(stops)
			stops = append(stops, &stop{value: value, reading: reading})
		}
		stops[at].layers = append(stops[at].layers, l)
	}
	return stops
}

func readingOf(g *model.Graph, i int) calibrate.Reading {
	op := &g.Ops[i]
	if op.Conv != nil {
		return calibrate.Convolution(*op.Conv)
	}
	shape := g.Values[op.Inputs[0]].Shape
	return calibrate.Rows(shape[len(shape)-1], elements(shape))
}

func sameReading(a, b calibrate.Reading) bool {
	if (a.Patches == nil) != (b.Patches == nil) {
		return false
	}
	if a.Patches != nil && *a.Patches != *b.Patches {
		return false
	}
	return a.Inputs == b.Inputs && a.Size == b.Size
}

// solveStop finds the solutions of a stop's layers: on disk, or by solving.
func (c *compression) solveStop(ctx context.Context, s *stop) error {
	if err := c.setKeys(s); err != nil {
		return err
	}
	c.clock.enter(StageUnits)
	solutions := make([]*layer.Solution, len(s.layers))
	seconds := make([]float64, len(s.layers))
	var missing []int
	for i, l := range s.layers {
		sol, ok := load(c.kept, s.keys[i], layer.DecodeSolution)
		if ok && c.spectra == nil && sol.Rows == l.Spec.Rows && sol.Cols == l.Spec.Cols {
			solutions[i], s.scale = sol, sol.InputScale
			c.store.reused++
		} else {
			missing = append(missing, i)
		}
	}
	if err := c.solveMissing(ctx, s, missing, solutions, seconds); err != nil {
		return err
	}
	c.clock.enter(StageUnits)
	runtime.GC() // as above: moments and factors
	for _, i := range missing {
		c.store.computed++
		if err := save(c.kept, s.keys[i], solutions[i], layer.EncodeSolution); err != nil {
			return err
		}
	}
	for i, l := range s.layers {
		if err := c.accept(l, s.keys[i], solutions[i], !slices.Contains(missing, i), seconds[i]); err != nil {
			return err
		}
	}
	return c.fold(s)
}

// solveMissing solves some of a stop's layers and writes to solutions and
// seconds.
func (c *compression) solveMissing(ctx context.Context, s *stop, missing []int, solutions []*layer.Solution, seconds []float64) error {
	if len(missing) == 0 {
		return nil
	}
	moments, err := c.moments(ctx, s)
	if err != nil {
		return err
	}
	c.clock.enter(StageSolve)
	if err := c.scale(ctx, s, moments); err != nil {
		return err
	}
	runtime.GC() // the weights that targets were computed with are large, and dropped
	factors := quantize.NewFactors(moments)
	for _, i := range missing {
		if err := c.prepare(ctx, s.layers[i], factors); err != nil {
			return fmt.Errorf("layer %s: %w", s.layers[i].Name, err)
		}
	}
	fused, err := c.fusedMaxima(s.layers)
	if err != nil {
		return err
	}
	return c.pool.For(ctx, len(missing), func(n int) (err error) {
		i, began := missing[n], time.Now()
		solutions[i], err = c.solve(ctx, s.layers[i], factors, moments, s.scale, fused[s.layers[i].Fusion])
		seconds[i] = time.Since(began).Seconds()
		return err
	})
}

// setKeys sets the keys of a stop's moments and solutions. Moments depend on
// the original model, the samples, the reading, and everything that was
// compressed before; a solution on its moments, its weight and its options.
func (c *compression) setKeys(s *stop) (err error) {
	if c.calibration != nil && !s.starved() {
		parts := []any{
			"moments", layer.EncodingVersion, blas.Path, c.sha, c.graph.Hash(),
			c.calibration.sha256(), c.graph.Values[s.value].Name, s.reading, c.upstream,
		}
		if rows := s.sampleRows(); rows > 0 {
			parts = append(parts, "sample", rows) // others' moments stay the same
		}
		s.key, err = key(parts...)
		if err != nil {
			return err
		}
	}
	if _, ok := c.capturedAt(s); ok {
		if s.key, err = key("captured", layer.EncodingVersion, blas.Path, c.captured.sha, s.layers[0].Name); err != nil {
			return err
		}
	}
	var all []any // AWQ's scales depend on all layers that read the value
	if s.scaled() {
		for _, l := range s.layers {
			all = append(all, l.Weight, l.Quantize, l.Spec.ScaleType)
		}
	}
	s.keys = make([]string, len(s.layers))
	for i, l := range s.layers {
		s.keys[i], err = key(append([]any{
			"solution", layer.EncodingVersion, quantize.Version, blas.Path, c.sha,
			s.key, l.Weight, l.Quantize, l.Spec.ScaleType, l.Prune, prune.Version, l.Compensate, lowrank.Version,
		}, all...)...)
		if err != nil {
			return err
		}
	}
	return nil
}

// moments finds a stop's moments on disk, or brings both streams up to the
// stop and takes them. It returns nil when no data is used.
//
// Moments that depend on layers compressed before are not kept: they serve no
// other recipe, and a run that is killed and resumed has to bring the streams to
// the stop again anyway. Those of a large model are tens of gigabytes.
func (c *compression) moments(ctx context.Context, s *stop) (*layer.Moments, error) {
	if l, ok := c.capturedAt(s); ok {
		c.clock.enter(StageMoments)
		prob, err := c.problem(l, nil)
		if err != nil {
			return nil, err
		}
		return c.captured.of(ctx, c.pool, prob, l.Name)
	}
	if s.starved() && slices.ContainsFunc(s.layers, func(l *PlanLayer) bool { return l.Compensate != nil }) {
		return c.white(s)
	}
	if c.calibration == nil || s.starved() {
		return nil, nil
	}
	if c.upstream != "" {
		return c.takeMoments(ctx, s)
	}
	c.clock.enter(StageUnits)
	m, _, err := unit(c.store, s.key, layer.DecodeMoments, layer.EncodeMoments, func() (*layer.Moments, error) {
		return c.takeMoments(ctx, s)
	})
	return m, err
}

// capturedAt returns the one layer of a stop whose moments are in a file.
func (c *compression) capturedAt(s *stop) (*PlanLayer, bool) {
	if c.captured == nil {
		return nil, false
	}
	l := s.layers[0]
	_, ok := c.captured.layers[l.Name]
	return l, ok
}

func (c *compression) takeMoments(ctx context.Context, s *stop) (*layer.Moments, error) {
	if err := c.startStreams(ctx); err != nil {
		return nil, err
	}
	if err := c.streams.catchUp(ctx, c.producer(s.value)+1, c.changed); err != nil {
		return nil, err
	}
	c.clock.enter(StageMoments)
	runtime.GC() // as above: the weights that the streams went through
	same := c.streams.sameValue(s.value)
	acc := calibrate.New(c.pool, s.reading, same)
	xt := c.streams.compressed.values[s.value]
	x := xt
	if !same {
		x = c.streams.original.values[s.value]
	}
	if err := acc.Add(ctx, x.Data, xt.Data); err != nil {
		return nil, err
	}
	m, err := acc.Moments(ctx)
	if err != nil {
		return nil, err
	}
	if err := finiteMoments(m, c.graph.Values[s.value].Name); err != nil {
		return nil, err
	}
	if rows := s.sampleRows(); rows > 0 {
		originals := x.Data
		if same {
			originals = nil
		}
		if m.Sample, err = s.reading.Sample(ctx, c.pool, originals, xt.Data, rows, c.graph.Values[s.value].Name); err != nil {
			return nil, err
		}
	}
	if m.Energy, err = c.energies(ctx, s); err != nil {
		return nil, err
	}
	m.Residual, err = c.residuals(ctx, s)
	c.clock.enter(StageUnits)
	return m, err
}

// producer returns the operation that writes a value, -1 for the input.
func (c *compression) producer(value int) int {
	return slices.IndexFunc(c.graph.Ops, func(op model.Op) bool { return op.Output == value })
}

// energies runs the layers that read a value this way in the original stream
// and returns the energy of their outputs. Layers that stay as they are count
// too: another recipe may share these moments.
func (c *compression) energies(ctx context.Context, s *stop) (map[string][]float64, error) {
	energy := map[string][]float64{}
	for _, i := range c.graph.Readers(s.value) {
		op := &c.graph.Ops[i]
		if !op.IsLayer() || !sameReading(readingOf(c.graph, i), s.reading) {
			continue
		}
		if err := c.streams.stepOriginal(ctx, i); err != nil {
			return nil, err
		}
		c.clock.enter(StageMoments)
		var bias []float32
		if op.Bias != "" {
			var err error
			if bias, err = c.weights.original(op.Bias); err != nil {
				return nil, err
			}
		}
		area := 1
		if shape := c.graph.Values[op.Output].Shape; op.Conv != nil {
			area = elements(shape[1:])
		}
		e, err := calibrate.Energy(ctx, c.pool, c.streams.original.values[op.Output].Data, op.Outputs, area, bias)
		if err != nil {
			return nil, err
		}
		energy[op.Weight] = e
	}
	return energy, nil
}

// startStreams loads the calibration samples into both streams, once.
func (c *compression) startStreams(ctx context.Context) error {
	if c.streams != nil {
		return nil
	}
	c.clock.enter(StageOriginal)
	input, err := c.calibration.batch(0, c.calibration.count())
	if err != nil {
		return err
	}
	c.streams = newStreams(c.graph, c.pool, c.weights, input, c.space, c.clock.enter)
	c.streams.divide = c.divide
	c.streams.compressed.pass(c.passes)
	return ctx.Err()
}

func elements(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

// fusedMaxima returns max|w| over the original weights of all layers of each
// fusion that some of the given layers are part of, where these need it: NVFP4's
// global scale is then the same in all, as runtimes that join them want it. All
// layers of a fusion count, compressed or not, so that a solution depends on the
// model and its own options alone.
func (c *compression) fusedMaxima(layers []*PlanLayer) (map[string]float64, error) {
	maxima := map[string]float64{}
	for _, l := range layers {
		if _, known := maxima[l.Fusion]; known || l.Fusion == "" || l.Spec.Format != layer.NVFP4 {
			continue
		}
		largest := float32(0)
		for i := range c.graph.Ops {
			op := &c.graph.Ops[i]
			if op.Fusion != l.Fusion || !op.IsLayer() {
				continue
			}
			w, err := c.weights.original(op.Weight)
			if err != nil {
				return nil, err
			}
			largest = max(largest, slices.Max(w), -slices.Min(w))
		}
		maxima[l.Fusion] = float64(largest)
	}
	return maxima, nil
}

// transposed returns the cols×rows transpose of a rows×cols matrix.
func transposed(m []float32, rows, cols int) []float32 {
	t := make([]float32, len(m))
	for r := range rows {
		for c := range cols {
			t[c*rows+r] = m[r*cols+c]
		}
	}
	return t
}

// accept puts a solution into the compressed model and into the record.
func (c *compression) accept(l *PlanLayer, key string, s *layer.Solution, cached bool, seconds float64) error {
	fallbacks := append(l.Fallbacks[:len(l.Fallbacks):len(l.Fallbacks)], s.Fallbacks...)
	for _, f := range fallbacks {
		if c.recipe.OnFallback == "fail" {
			return &FallbackError{Layer: l.Name, Fallback: f}
		}
		if c.recipe.OnFallback == "warn" {
			c.clock.emit(Event{Warning: fmt.Sprintf("layer %s: %s instead of %s: %s", l.Name, f.Got, f.Asked, f.Reason)})
		}
	}
	c.weights.keys[l.Weight] = key
	if s.Bias != nil {
		if err := c.correctBias(l, s.Bias); err != nil {
			return err
		}
	}
	if l.fewTokens != nil { // the plan's notes have told of it, once for all of a block
		fallbacks = append(fallbacks, *l.fewTokens)
	}
	entry, err := c.layerRecord(l, s, fallbacks)
	if err != nil {
		return err
	}
	entry.Cached, entry.Seconds = cached, seconds
	c.record.Layers = append(c.record.Layers, entry)
	c.done++
	event := Event{Layer: l.Name, Cached: cached, Done: c.done, Total: len(c.plan.Layers), RelativeError: -1}
	if entry.RelativeError != nil {
		event.RelativeError = *entry.RelativeError
	}
	c.clock.emit(event)
	return nil
}

// correctBias adds a correction of a layer's outputs to the tensor that holds it.
func (c *compression) correctBias(l *PlanLayer, correction []float64) error {
	name, corrected, err := c.correctedBias(l, correction)
	if err != nil {
		return err
	}
	c.weights.replaced[name] = corrected
	return finite(name, corrected)
}

// correctedBias returns the tensor that holds a correction of a layer's outputs,
// corrected: the layer's bias, or β of the batch normalization behind it, scaled as
// the normalization scales the outputs.
func (c *compression) correctedBias(l *PlanLayer, correction []float64) (name string, corrected []float32, err error) {
	name = biasHolder(c.graph, l.op)
	t, ok := c.ckpt.Lookup(name)
	if !ok {
		return "", nil, fmt.Errorf("%w: %s", loader.ErrNotFound, name)
	}
	old, err := c.weights.original(name)
	if err != nil {
		return "", nil, err
	}
	corrected = make([]float32, len(old))
	for i := range corrected {
		corrected[i] = float32(correction[i])
	}
	if op := &c.graph.Ops[l.op]; op.Bias == "" {
		factor, err := c.normFactor(onlyBatchNorm(c.graph, op.Output))
		if err != nil {
			return "", nil, err
		}
		for i := range corrected {
			corrected[i] *= factor[i]
		}
	}
	for i := range corrected {
		corrected[i] = t.DType.Round(old[i] + corrected[i])
	}
	return name, corrected, nil
}

func (c *compression) layerRecord(l *PlanLayer, s *layer.Solution, fallbacks []layer.Fallback) (record.Layer, error) {
	var err error
	t, ok := c.ckpt.Lookup(l.Weight)
	if !ok {
		return record.Layer{}, fmt.Errorf("%w: %s", loader.ErrNotFound, l.Weight)
	}
	kind := layer.Linear
	if c.graph.Ops[l.op].Conv != nil {
		kind = layer.Conv2D
	}
	entry := record.Layer{
		Name: l.Name, Weight: l.Weight, Kind: string(kind), Shape: l.Shape, Parameters: t.Elements(), Fusion: l.Fusion,
		Aligned: l.aim().Align, Damping: s.Errors.Damping, Layout: string(l.Spec.Pruned.Layout),
		Scaled: l.Scaled, SourceBytes: c.sourceBytes(t), Bytes: l.Spec.Bytes(),
	}
	if l.Quantize != nil {
		entry.Method, entry.Format, entry.Bits = s.Method, string(s.Grid.Format), s.Grid.Bits
		entry.Granularity, entry.GroupSize, entry.Symmetric = string(s.Grid.Granularity), s.Grid.GroupSize, s.Grid.Symmetric
	}
	if p := l.Prune; p != nil {
		entry.Prune = &record.Prune{
			Method: string(p.Method), Pattern: p.Pattern.String(), Allocation: string(p.Allocation),
			Survivors: int64(p.Survivors), Sparsity: l.Sparsity(),
		}
		if !p.Joint && (l.Quantize != nil || l.hasTerm()) {
			entry.Prune.RelativeError = relative(s.Errors.Pruned, s.Errors.Energy)
		}
		if p.Pattern.Kind == prune.Unstructured {
			entry.Prune.Scope = string(p.Scope)
		}
	}
	if t := l.Compensate; l.hasTerm() {
		factors := t.FactorType.String()
		if t.Bits > 0 {
			factors = fmt.Sprintf("%d bits", t.Bits)
		}
		bare := l.Spec
		bare.LowRank = export.LowRank{}
		entry.Compensate = &record.Compensate{
			Method: string(t.Method), Rank: t.Rank, Factors: factors, Bytes: l.Spec.Bytes() - bare.Bytes(), Merged: t.Merge,
			RelativeError: relative(s.Errors.Base, s.Errors.Energy),
		}
	}
	if s.Errors.Energy == 0 {
		if entry.RelativeWeightError, err = c.weightError(l, s); err != nil {
			return record.Layer{}, err
		}
	}
	if s.Errors.Energy > 0 {
		solved, nearest := s.Errors.Relative(), s.Errors.NearestRelative()
		entry.RelativeError, entry.NearestRelativeError = &solved, &nearest
		if s.Errors.Soft > 0 {
			soft := s.Errors.Soft / s.Errors.Energy
			entry.SoftRelativeError = &soft
		}
		if bound := s.Errors.BoundRelative(); bound > 0 {
			entry.BoundRelativeError = &bound
		}
	}
	for _, f := range fallbacks {
		entry.Fallbacks = append(entry.Fallbacks, record.Fallback(f))
	}
	return entry, nil
}

// weightError returns ‖W − Ŵ‖²/‖W‖², nil for a weight of zeros.
func (c *compression) weightError(l *PlanLayer, s *layer.Solution) (*float64, error) {
	w, err := c.weights.original(l.Weight)
	if err != nil {
		return nil, err
	}
	rebuilt := make([]float32, len(w))
	s.Weight(rebuilt)
	var off, all float64
	for i, v := range w {
		d := float64(v) - float64(rebuilt[i])
		off += d * d
		all += float64(v) * float64(v)
	}
	return relative(off, all), nil
}

// relative returns a pointer to an error over the energy; nil where there is none.
func relative(e, energy float64) *float64 {
	if energy == 0 {
		return nil
	}
	e /= energy
	return &e
}

// finiteMoments refuses moments of activations that overflowed.
func finiteMoments(m *layer.Moments, value string) error {
	for _, v := range m.SumXt {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return &NonFiniteError{Tensor: "activation " + value, Value: v}
		}
	}
	return nil
}
