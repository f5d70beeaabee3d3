package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/scratch"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/lowrank"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/quantize"
)

// Plan says which layer gets what, and what the result weighs, before any work
// is done.
type Plan struct {
	Architecture string
	Removed      []PlanRemoved // before anything else; shapes and sizes below are of what is left
	Layers       []PlanLayer   // in the order of the data
	Kept         []loader.Tensor
	SourceBytes  int64
	WeightBytes  int64    // of the compressed weight files, exactly; an index of shards is not counted
	Budget       int64    // bytes of low-rank factors that are still to be divided, not counted above
	Memory       Memory   // Activations are known once the data are open
	Notes        []string // what a user should know of layers that stay as they are

	removing Memory // that the choice of units takes
}

// PlanLayer is one layer to compress.
type PlanLayer struct {
	Name   string // the layer's name, which rules match
	Weight string // its weight tensor's name
	Shape  []int
	Fusion string // layers of the same one must have one format, see model.Op

	Prune      *LayerPrune       // nil where nothing is pruned
	Quantize   *quantize.Options // nil where values stay values
	Compensate *LayerTerm        // nil where nothing is added

	Spec export.Spec
	// Fallbacks are what the layer's shape alone rules out, and the allocation.
	Fallbacks []layer.Fallback
	// Scaled says that AWQ's scales multiply the weight, and that the
	// normalization before the layer is divided by them.
	Scaled bool

	op   int
	rule int // of the recipe
	// level is the index of the rule's level that this is the layer at, and leftOut why
	// it cannot have it; "" where it can.
	level   int
	leftOut string
	// ranked says that a budget has given the layer its rank.
	ranked bool
	// starved says that the layer is an expert's that sees too few tokens, so that it
	// gets what needs no data; fewTokens is what it does not get for that.
	starved   bool
	fewTokens *layer.Fallback
	block     string // of a transformer, which OWL prunes alike; "" for none
}

// hasTerm reports whether a low-rank term is added to the layer.
func (l *PlanLayer) hasTerm() bool { return l.Compensate != nil && l.Compensate.Rank > 0 }

// fallBack notes what the layer cannot have, once.
func (l *PlanLayer) fallBack(f layer.Fallback) {
	if !slices.Contains(l.Fallbacks, f) {
		l.Fallbacks = append(l.Fallbacks, f)
	}
}

// LayerTerm is the low-rank term of a layer.
type LayerTerm struct {
	lowrank.Options
	Merge bool
}

// needsMoments reports whether the layer's solution depends on data.
func (l *PlanLayer) needsMoments() bool {
	return !l.starved && l.learns()
}

// learns reports whether the layer's steps learn from data.
func (l *PlanLayer) learns() bool {
	term := l.Compensate != nil && l.Compensate.Method != lowrank.SVD
	return l.Scaled || term || (l.Quantize != nil && l.Quantize.NeedsMoments()) || (l.Prune != nil && l.Prune.NeedsMoments())
}

// method names the layer's methods, for messages.
func (l *PlanLayer) method() string {
	var names []string
	if l.Prune != nil {
		names = append(names, string(l.Prune.Method))
	}
	if l.Quantize != nil {
		names = append(names, string(l.Quantize.Method))
	}
	if l.Compensate != nil {
		names = append(names, string(l.Compensate.Method))
	}
	return strings.Join(names, ", ")
}

// aim is what the layer's last step before a term aims at.
func (l *PlanLayer) aim() lowrank.Aim {
	if o := l.Quantize; o != nil {
		return lowrank.Aim{Align: o.Align, Residual: o.Residual, Damping: o.Damping, BiasCorrection: o.BiasCorrection, Centre: o.Centre}
	}
	o := l.Prune
	return lowrank.Aim{Align: o.Align, Residual: o.Residual, Damping: o.Damping, BiasCorrection: o.BiasCorrection, Centre: o.Centre}
}

// sampleRows is how many rows of the layer's inputs its method wants to see.
func (l *PlanLayer) sampleRows() int {
	if l.Quantize == nil {
		return 0
	}
	return l.Quantize.SampleRows()
}

// residual reports whether a step asks for a residual target.
func (l *PlanLayer) residual() bool {
	return l.Quantize != nil && l.Quantize.Residual || l.Prune != nil && l.Prune.Residual
}

// AverageBits is the mean number of bits of a compressed layer's weight, scales
// and zero points included.
func (p *Plan) AverageBits() float64 {
	var bytes, weights int64
	for _, l := range p.Layers {
		bytes += l.Spec.Bytes()
		weights += int64(l.Spec.Rows) * int64(l.Spec.Cols)
	}
	if weights == 0 {
		return 0
	}
	return 8 * float64(bytes) / float64(weights)
}

// ErrNothingToDo says that no rule matches any layer.
var ErrNothingToDo = errors.New("no rule matches a layer of the model")

// FallbackError says that a layer cannot have what the recipe asks for, and
// that the recipe forbids anything else.
type FallbackError struct {
	Layer    string
	Fallback layer.Fallback
}

func (e *FallbackError) Error() string {
	return fmt.Sprintf("layer %s cannot have %s: %s; change its rule, or set on_fallback: warn to accept %s",
		e.Layer, e.Fallback.Asked, e.Fallback.Reason, e.Fallback.Got)
}

// MakePlan opens the recipe's model and says what Run would do with it. Allocations
// that look at data run the original model on them. Units are chosen only where
// sizes depend on which of them go.
//
// A recipe with a search has no plan before that: see MakeSpace.
func MakePlan(ctx context.Context, recipe *Recipe, o Options) (*Plan, error) {
	if recipe.Search != nil {
		return nil, &RecipeError{File: recipe.file, Where: "search", Reason: "leaves open what layers get until it has run"}
	}
	r := newRun(recipe, o)
	choose := recipe.removesOnData() || len(recipe.Remove) > 0 && recipe.sharesByValues()
	if err := r.makePlan(ctx, recipe.allocatesOnData() || choose, choose); err != nil {
		return nil, err
	}
	r.space.Close()
	return r.plan, r.close()
}

// makePlan opens the model, and data where asked to, and plans. choose says whether
// to find the units that are removed, which changes no size but those that depend on
// values. On an error nothing stays open.
func (r *run) makePlan(ctx context.Context, data, choose bool) (err error) {
	var groups map[string]int
	if r.recipe.Moments != "" {
		if r.captured, err = openCaptured(ctx, r.recipe.Moments); err != nil {
			return err
		}
		groups = r.captured.groups()
	}
	if r.original, err = openWith(ctx, r.recipe, groups); err != nil {
		r.captured.close()
		return err
	}
	r.ckpt, r.graph, r.config = r.original.ckpt, r.original.graph, r.original.config
	defer func() {
		if err != nil {
			_ = r.close() // only read from
		}
	}()
	if err := r.checkDetached(); err != nil {
		return err
	}
	if r.cuts, err = r.recipe.cuts(r.graph); err != nil {
		return err
	}
	if len(r.cuts) > 0 { // what is wrong with them shows before any work
		if err := r.shrink(r.cuts, r.original.ckpt); err != nil {
			return err
		}
	}
	if err := r.planLayers(); err != nil {
		return err
	}
	if r.captured != nil {
		if err := r.checkCaptured(); err != nil {
			return err
		}
	}
	keeps := r.recipe.Experts.Fallback == "keep" && r.recipe.Calibration != nil && hasExperts(r.graph)
	if data || keeps { // which layers stay as they are depends on data
		if err := r.openData(ctx); err != nil {
			return err
		}
	}
	if choose && len(r.cuts) > 0 {
		if err := r.removeUnits(ctx); err != nil {
			return err
		}
		if err := r.planLayers(); err != nil {
			return err
		}
	}
	if r.calibration != nil {
		r.plan.Memory.Activations = activationMemory(r.original.graph, r.calibration.rows())
	}
	r.plan.foretellMemory(r.graph)
	if err := r.plan.checkMemory(r.options.Memory); err != nil {
		return err
	}
	r.space = scratch.New("", activationLimit(r.options.Memory-r.plan.Memory.Fixed))
	defer func() {
		if err != nil {
			r.space.Close()
		}
	}()
	r.weights = newWeights(r.ckpt, nil, r.plan)
	if err := r.countExperts(ctx); err != nil {
		return err
	}
	if err := r.fallBackExperts(); err != nil {
		return err
	}
	if err := r.plan.allocate(ctx, r.recipe, r.weights, &measurer{r}); err != nil {
		return err
	}
	return r.plan.foretell(r.recipe, r.ckpt, r.original.stored)
}

func openModel(ctx context.Context, r *Recipe) (*original, error) { return openWith(ctx, r, nil) }

// openWith opens the recipe's model; a file of moments may tell the groups of
// convolutions. Weights that are stored compressed are tensors that are decoded as they
// are read.
func openWith(ctx context.Context, r *Recipe, groups map[string]int) (*original, error) {
	if r.Model.Path == "" {
		return nil, &RecipeError{File: r.file, Where: "model.path", Reason: "is missing; name the checkpoint there or on the command line"}
	}
	files, err := loader.Open(ctx, r.Model.Path)
	if err != nil {
		return nil, err
	}
	o := &original{files: files, ckpt: files, config: sourceConfig(r.Model.Path)}
	if err := o.build(r, groups); err != nil {
		_ = files.Close() // only read from
		return nil, err
	}
	return o, nil
}

// build finds how the files store weights, and the graph.
func (o *original) build(r *Recipe, groups map[string]int) (err error) {
	if o.stored, err = export.Decode(o.files); err != nil {
		return err
	}
	if o.stored != nil {
		if o.ckpt, err = o.stored.View(); err != nil {
			return err
		}
		if o.config, err = o.stored.SourceConfig(); err != nil {
			return err
		}
	}
	o.graph, err = buildWith(o.ckpt.Tensors(), r, o.config, groups)
	return err
}

// sourceConfig returns the config.json of a model's folder; nil for a file, and
// where there is none. The builder says when it needs one.
func sourceConfig(path string) []byte {
	config, err := os.ReadFile(filepath.Join(path, export.ConfigName))
	if err != nil {
		return nil
	}
	return config
}

// modelOptions says how to build the model's graph, given its config.json.
func (r *Recipe) modelOptions(config []byte) model.Options {
	return model.Options{
		Architecture: r.Model.Architecture, Activation: r.Model.Activation, InputShape: r.Model.Input.Shape, Config: config,
		Network: r.Model.nodes(),
	}
}

// buildWith builds the model's graph. Where no builder knows the model, and the
// recipe names none, it is one of layers alone.
func buildWith(tensors []loader.Tensor, r *Recipe, config []byte, groups map[string]int) (*model.Graph, error) {
	o := r.modelOptions(config)
	o.Groups = groups
	graph, err := model.Build(tensors, o)
	if _, ok := errors.AsType[*model.UnsupportedError](err); ok && o.Architecture == "" {
		o.Architecture = model.WeightsAlone
		if alone, e := model.Build(tensors, o); e == nil {
			return alone, nil
		}
	}
	if bad, ok := errors.AsType[*model.NetworkError](err); ok {
		where := fmt.Sprintf("model.network[%d]", bad.Node)
		return nil, &RecipeError{File: r.file, Line: r.lines.line(where), Where: where, Reason: bad.Name + ": " + bad.Problem}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Model.Path, err)
	}
	return graph, nil
}

// checkDetached refuses what needs a forward pass where none is known.
func (r *run) checkDetached() error {
	need := ""
	switch {
	case !r.graph.Detached:
		return nil
	case r.recipe.Calibration != nil:
		need = "calibration"
	case r.recipe.Evaluate != nil:
		need = "evaluate"
	case r.recipe.Search != nil:
		need = "search"
	case len(r.recipe.Remove) > 0:
		need = "remove"
	case r.recipe.allocatesOnData():
		need = "an allocation that looks at data"
	}
	if need == "" {
		return nil
	}
	return r.forwardError(need)
}

// forwardError says that something needs a forward pass, and why none is known.
func (r *run) forwardError(need string) error {
	return r.recipe.wantForward(r.ckpt.Tensors(), r.graph, r.config, need)
}

// wantForward fails for a graph of layers alone.
func (r *Recipe) wantForward(tensors []loader.Tensor, g *model.Graph, config []byte, need string) error {
	if !g.Detached {
		return nil
	}
	_, err := model.Build(tensors, r.modelOptions(config))
	return &ForwardError{Path: r.Model.Path, Need: need, Err: err}
}

// planLayers plans for what removals leave.
func (r *run) planLayers() (err error) {
	if r.plan, err = planLayers(r.recipe, r.ckpt, r.graph, r.original.stored); err != nil {
		return err
	}
	if err := r.checkCutStored(); err != nil {
		return err
	}
	r.plan.Removed = r.planRemoved(r.cuts)
	if len(r.cuts) > 0 {
		readers := Plan{Layers: r.readers()}
		r.plan.removing = readers.fixedMemory(r.original.graph)
	}
	if r.graph.Detached {
		r.plan.Notes = append(r.plan.Notes, "layers are found by names and shapes, and the model is not run: errors are those of the layers alone, and nothing is evaluated")
	}
	if r.own != "" {
		r.plan.Notes = append(r.plan.Notes, fmt.Sprintf("only fettle can read what is left of the model: %s", r.own))
	}
	return nil
}

// planLayers says what each layer is to get, but for how much of it is pruned.
// stored is what ckpt is a view of where weights are stored compressed; else nil.
func planLayers(r *Recipe, ckpt *loader.Checkpoint, graph *model.Graph, stored *export.Model) (*Plan, error) {
	p := &Plan{Architecture: graph.Architecture, SourceBytes: ckpt.Size()}
	planned := map[string]bool{}
	var asked []string // layers that a rule matches and that stay as they are stored
	for i := range graph.Ops {
		if asks, stays := keepsStored(r, ckpt, &graph.Ops[i]); stays {
			asked = append(asked, asks)
			continue
		}
		list, err := planLayer(r, ckpt, graph, i, stored)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			continue
		}
		name, weight := list[0].Name, list[0].Weight
		if graph.Tied(i) {
			p.Notes = append(p.Notes, fmt.Sprintf("layer %s stays as it is: its weight is the embedding's too", name))
			continue
		}
		if planned[weight] {
			return nil, fmt.Errorf("layer %s: its weight %s is another layer's too", name, weight)
		}
		p.Layers = append(p.Layers, list...)
		planned[weight] = true
	}
	if len(p.Layers) == 0 && len(asked) > 0 {
		return nil, fmt.Errorf("%w that is not compressed already: layer %s is stored as %s; give its rule requantize: true to compress it again",
			ErrNothingToDo, asked[0], storedAs(ckpt, graph, asked[0]))
	}
	if len(p.Layers) == 0 && len(r.Rules) > 0 {
		return nil, fmt.Errorf("%w (layers: %s)", ErrNothingToDo, layerNames(graph))
	}
	if err := p.checkScaled(r, graph); err != nil {
		return nil, err
	}
	for _, t := range ckpt.Tensors() {
		if !planned[t.Name] {
			p.Kept = append(p.Kept, t)
		}
	}
	p.noteExperts(r, graph)
	p.noteStored(graph, asked, stored)
	if r.Search == nil {
		p.noteFusions()
	}
	return p, nil
}

// foretell fills in the size of a plan that is else complete.
func (p *Plan) foretell(r *Recipe, ckpt *loader.Checkpoint, stored *export.Model) (err error) {
	if r.Search != nil {
		return nil // it depends on what the search chooses
	}
	in := export.Input{Checkpoint: ckpt, Source: stored, Specs: p.specs(), ShardSize: r.Output.shardSize}
	if p.WeightBytes, err = export.CompressedTensorsSize(in); err != nil {
		return err
	}
	if note := "only fettle can read the result: no config of another reader has both GPTQ's or AWQ's layers and others; requantize: true in a rule for them all gives a folder that others read"; in.OnlyFettle() && !slices.Contains(p.Notes, note) {
		p.Notes = append(p.Notes, note)
	}
	p.Budget = 0
	for i := range r.Rules {
		_, _, term := r.Rules[i].steps()
		waits := func(l PlanLayer) bool { return l.rule == i && l.hasBudget(r) && !l.ranked }
		if slices.ContainsFunc(p.Layers, waits) {
			p.Budget += term.budget
		}
	}
	return err
}

// noteFusions notes the first pair of layers that runtimes join into one and
// that get different formats.
func (p *Plan) noteFusions() {
	first := map[string]*PlanLayer{}
	for i := range p.Layers {
		l := &p.Layers[i]
		if l.Fusion == "" {
			continue
		}
		other, ok := first[l.Fusion]
		if !ok {
			first[l.Fusion] = l
			continue
		}
		a, b := other.Spec, l.Spec
		if a.Format != b.Format || a.ValueType != b.ValueType || a.Bits != b.Bits || a.Granularity != b.Granularity || a.GroupSize != b.GroupSize || a.Symmetric != b.Symmetric {
			p.Notes = append(p.Notes, fmt.Sprintf("layers %s and %s get different formats, and runtimes join them into one: give them the same format, bits and granularity", other.Name, l.Name))
			return
		}
	}
}

// specs returns how each compressed weight will be stored, by name.
func (p *Plan) specs() map[string]export.Spec {
	specs := make(map[string]export.Spec, len(p.Layers))
	for _, l := range p.Layers {
		specs[l.Weight] = l.Spec
	}
	return specs
}

// planLayer returns what operation i is to get, at each of its rule's levels where it
// has such; nil when it stays as it is.
func planLayer(r *Recipe, ckpt *loader.Checkpoint, graph *model.Graph, i int, stored *export.Model) ([]PlanLayer, error) {
	op := &graph.Ops[i]
	if !op.IsLayer() {
		return nil, nil
	}
	matches := (*Rule).matches
	if graph.Gates(i) {
		matches = (*Rule).names
	}
	at := slices.IndexFunc(r.Rules, func(rule Rule) bool { return matches(&rule, op.Name) })
	if at < 0 || len(r.Rules[at].Steps)+len(r.Rules[at].levels) == 0 {
		return nil, nil
	}
	t, ok := ckpt.Lookup(op.Weight)
	if !ok {
		return nil, fmt.Errorf("%w: %s", loader.ErrNotFound, op.Weight)
	}
	plain := PlanLayer{
		Name: op.Name, Weight: op.Weight, Shape: t.Shape, Fusion: op.Fusion, op: i, rule: at,
		Spec: export.Spec{
			Name: op.Weight, Shape: t.Shape, Rows: op.Outputs, Cols: int(t.Elements()) / op.Outputs, Transposed: op.Transposed,
		},
	}
	if op.Block >= 0 {
		plain.block = strconv.Itoa(op.Block)
	}
	if len(r.Rules[at].levels) == 0 {
		err := plain.planSteps(r, graph, typeOf(t, stored))
		return []PlanLayer{plain}, err
	}
	var list []PlanLayer
	for k := range r.Rules[at].levels {
		l := plain
		l.level = k
		if err := l.planSteps(r, graph, typeOf(t, stored)); err != nil {
			l.leftOut = err.Error()
		}
		list = append(list, l)
	}
	return list, nil
}

// planSteps says what the layer, stored as d, gets of its rule or level.
func (l *PlanLayer) planSteps(r *Recipe, graph *model.Graph, d dtype.DType) error {
	prune, quantize, term := r.stepsOf(l)
	switch {
	case prune == nil && quantize == nil:
		return nil // the level keeps or drops the layer
	case quantize == nil:
		if !slices.Contains([]dtype.DType{dtype.F64, dtype.F32, dtype.F16, dtype.BF16}, d) {
			return &RecipeError{File: r.file, Where: fmt.Sprintf("rules[%d].steps.prune", l.rule), Reason: fmt.Sprintf("the weight of layer %s is stored as %s, which cannot be pruned; add a quantize step", l.Name, d)}
		}
		l.Spec.ValueType = d
	default:
		if err := l.planQuantize(quantize, graph, d); err != nil {
			return &RecipeError{File: r.file, Where: fmt.Sprintf("rules[%d].steps.quantize.scale_type", l.rule), Reason: err.Error()}
		}
	}
	if prune != nil {
		l.planPrune(prune, graph)
	}
	if term != nil {
		l.planTerm(term, graph.Ops[l.op].Groups())
	}
	if len(l.Fallbacks) > 0 && r.OnFallback == "fail" {
		return &FallbackError{Layer: l.Name, Fallback: l.Fallbacks[0]}
	}
	return nil
}

// solvable reports whether there is something to do to the layer.
func (l *PlanLayer) solvable() bool {
	return l.leftOut == "" && (l.Prune != nil || l.Quantize != nil)
}

// stepsOf returns the steps of a layer's rule, or of its level.
func (r *Recipe) stepsOf(l *PlanLayer) (*Prune, *Quantize, *Compensate) {
	rule := &r.Rules[l.rule]
	if len(rule.levels) > 0 {
		return sorted(rule.levels[l.level].steps)
	}
	return rule.steps()
}

// noBias says that a layer cannot have a bias correction.
var noBias = layer.Fallback{
	Asked: "bias correction", Got: "none", Reason: "the layer has no bias, and no batch normalization after it that could hold one",
}

// planQuantize says which codes a layer stored as d gets.
func (l *PlanLayer) planQuantize(q *Quantize, graph *model.Graph, d dtype.DType) error {
	options, fallbacks := q.options().Fit(l.Spec.Cols)
	l.Fallbacks = append(l.Fallbacks, fallbacks...)
	if options.BiasCorrection && biasHolder(graph, l.op) == "" {
		options.BiasCorrection, options.Centre = false, false
		if q.BiasCorrection != nil { // asked for, not just the method's default
			l.fallBack(noBias)
		}
	}
	scaleType, err := q.scaleType(d)
	if err != nil {
		return err
	}
	l.Quantize, l.Scaled = &options, q.AWQ
	s := &l.Spec
	s.Format, s.Bits, s.Granularity, s.GroupSize = options.Format, options.StoredBits(), options.Granularity, options.GroupSize
	s.Symmetric, s.ScaleType = options.Symmetric, options.Format.ScaleType(scaleType)
	return nil
}

// planTerm says which low-rank term a layer of so many groups gets. Its rank is 0
// as long as a budget has not given it one.
func (l *PlanLayer) planTerm(c *Compensate, groups int) {
	if err := lowrank.CheckGroups(l.Name, groups); err != nil {
		l.Fallbacks = append(l.Fallbacks, layer.Fallback{Asked: "compensation " + c.Method, Got: "none", Reason: fmt.Sprintf("the weight of a convolution of %d groups is no one matrix", groups)})
		return
	}
	o := c.options()
	l.Compensate = &LayerTerm{Options: o.WithRank(min(o.Rank, l.Spec.Rows, l.Spec.Cols)), Merge: c.Merge}
	l.setRank(l.Compensate.Rank)
}

// setRank gives the layer's term a rank; 0 takes the term away.
func (l *PlanLayer) setRank(rank int) {
	o := l.Compensate
	o.Rank = rank
	l.Spec.LowRank = export.LowRank{}
	if rank > 0 {
		l.Spec.LowRank = export.LowRank{Rank: rank, Type: o.FactorType, Bits: o.Bits, Merged: o.Merge}
	}
}

// scaleType is the type of the scales of a weight stored as d.
func (q *Quantize) scaleType(d dtype.DType) (dtype.DType, error) {
	switch q.ScaleType {
	case "f32":
		return dtype.F32, nil
	case "f16":
		return dtype.F16, nil
	case "bf16":
		return dtype.BF16, nil
	}
	switch d {
	case dtype.F32, dtype.F16, dtype.BF16:
		return d, nil
	case dtype.F64:
		return dtype.F32, nil
	}
	return dtype.Invalid, fmt.Errorf("the weight is stored as %s; name a scale type", d)
}

// biasHolder returns the tensor that can take a correction of an operation's
// bias: its own bias, or the shift of the batch normalization that alone reads
// its output. "" when there is none.
func biasHolder(g *model.Graph, i int) string {
	op := &g.Ops[i]
	if op.Bias != "" {
		if slices.ContainsFunc(g.Copies, func(c model.Copy) bool { return c.Of == op.Bias }) {
			return "" // its copy would stay as it is
		}
		return op.Bias
	}
	if bn := onlyBatchNorm(g, op.Output); bn != nil {
		return bn.Shift
	}
	return ""
}

func onlyBatchNorm(g *model.Graph, value int) *model.BatchNorm {
	readers := g.Readers(value)
	if len(readers) != 1 || value == g.Output {
		return nil
	}
	return g.Ops[readers[0]].BatchNorm
}

func layerNames(g *model.Graph) string {
	var names []string
	for i := range g.Ops {
		if g.Ops[i].IsLayer() {
			names = append(names, g.Ops[i].Name)
		}
	}
	if len(names) > 6 {
		names = append(append(names[:3:3], "…"), names[len(names)-2:]...)
	}
	return fmt.Sprint(names)
}

func granularity(s string) layer.Granularity { return layer.Granularity(s) }
