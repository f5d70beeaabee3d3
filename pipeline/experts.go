package pipeline

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/lowrank"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/prune"
	"github.com/fettle-dev/fettle/quantize"
	"github.com/fettle-dev/fettle/record"
)

// Experts says what the layers of an expert get that sees too few calibration
// tokens to learn from.
type Experts struct {
	MinTokens int    `yaml:"min_tokens"` // 0: tokensPerInput for each input of a layer
	Fallback  string `yaml:"fallback"`   // nearest (default) or keep
}

// tokensPerInput is how many tokens a layer wants for each of its inputs, as
// TestTokensThatLayersWant measures it: with 2, methods are still worse on other
// tokens than nearest rounding.
const tokensPerInput = 4

func (e *Experts) check() (where, reason string) {
	if e.MinTokens < 0 {
		return ".min_tokens", "is negative; give a count from 1 on, or leave it out for four for each input of a layer"
	}
	return ".fallback", oneOf(&e.Fallback, "nearest", "keep")
}

// minTokens is how many tokens an expert's layer of so many inputs wants.
func (r *Recipe) minTokens(inputs int) int64 {
	if r.Experts.MinTokens > 0 {
		return int64(r.Experts.MinTokens)
	}
	return tokensPerInput * int64(inputs)
}

// names reports whether a pattern of the rule ends in the last part of a layer's
// name, as "*.gate" does. No other pattern reaches a layer that decides which
// experts a token goes to: an error there is not one of a sum, but another expert.
func (rule *Rule) names(name string) bool {
	last := name[strings.LastIndex(name, ".")+1:]
	for pattern := range strings.SplitSeq(rule.Match, "|") {
		if ok, _ := path.Match(pattern, name); ok && (pattern == last || strings.HasSuffix(pattern, "."+last)) {
			return true
		}
	}
	return false
}

// noteExperts notes that the recipe speaks of experts and the model has none, or the
// gates that a rule would have reached.
func (p *Plan) noteExperts(r *Recipe, g *model.Graph) {
	if said := r.Experts.MinTokens > 0 || r.Experts.Fallback == "keep"; said && !hasExperts(g) {
		p.Notes = append(p.Notes, "the recipe's experts change nothing: the model has none")
	}
	var patterns []string
	for i := range g.Ops {
		name := g.Ops[i].Name
		reached := slices.ContainsFunc(r.Rules, func(rule Rule) bool { return rule.matches(name) })
		named := slices.ContainsFunc(r.Rules, func(rule Rule) bool { return rule.names(name) })
		pattern := "*." + name[strings.LastIndex(name, ".")+1:]
		if reached && !named && g.Gates(i) && !slices.Contains(patterns, pattern) {
			patterns = append(patterns, pattern)
		}
	}
	if len(patterns) > 0 {
		p.Notes = append(p.Notes, fmt.Sprintf("layers %s stay as they are: they choose and weigh experts, and are small; rules reach them by these very patterns", strings.Join(patterns, " and ")))
	}
}

func hasExperts(g *model.Graph) bool {
	return slices.ContainsFunc(g.Ops, func(o model.Op) bool { return o.Kind == model.Route })
}

// routing is what a mixture's experts see of the calibration data.
type routing struct {
	name   string // of the mixture
	block  int
	tokens []int64 // by expert
}

// countExperts finds how many of the calibration tokens each expert sees in the
// original model: one forward pass up to the last router, kept as a unit on disk.
func (r *run) countExperts(ctx context.Context) error {
	r.routings = map[int]*routing{}
	last := -1
	for i := range r.graph.Ops {
		if op := &r.graph.Ops[i]; op.Kind == model.Route {
			r.routings[op.Output] = &routing{name: op.Name[:max(strings.LastIndex(op.Name, "."), 0)], block: op.Block}
			last = i
		}
	}
	if last < 0 || r.calibration == nil {
		r.routings = nil
		return nil
	}
	sha, err := r.ckpt.SHA256(ctx)
	if err != nil {
		return err
	}
	k, err := key("experts", layer.EncodingVersion, blas.Path, sha, r.graph.Hash(), r.calibration.sha256())
	if err != nil {
		return err
	}
	v, _, err := unit(r.store, k, layer.DecodeVectors, layer.EncodeVectors, func() (*layer.Vectors, error) { return r.runRouters(ctx, last) })
	if err != nil {
		return err
	}
	at := 0
	for i := range r.graph.Ops {
		route := r.routings[r.graph.Ops[i].Output]
		if route == nil {
			continue
		}
		if at == len(v.Of) || len(v.Of[at]) != r.graph.Values[r.graph.Ops[i].Output].Shape[0] {
			return fmt.Errorf("counts of %d mixtures' tokens, want another number; please report this", len(v.Of))
		}
		for _, n := range v.Of[at] {
			route.tokens = append(route.tokens, int64(n))
		}
		at++
	}
	return nil
}

// runRouters runs the original model up to an operation and counts each router's
// choices.
func (r *run) runRouters(ctx context.Context, last int) (*layer.Vectors, error) {
	s, free, err := (&measurer{r}).stream(r.calibration.count())
	if err != nil {
		return nil, err
	}
	defer free()
	r.clock.enter(StageOriginal)
	v := &layer.Vectors{}
	for i := range last + 1 {
		if err := s.step(ctx, i); err != nil {
			return nil, err
		}
		op := &r.graph.Ops[i]
		if op.Kind != model.Route {
			continue
		}
		weights := s.values[op.Output]
		tokens := make([]float64, weights.Shape[1])
		for j, w := range weights.Data {
			if w != 0 {
				tokens[j%len(tokens)]++
			}
		}
		v.Of = append(v.Of, tokens)
	}
	return v, nil
}

// fallBackExperts gives the layers of experts that see too few tokens what the
// recipe says.
func (r *run) fallBackExperts() error {
	if r.routings == nil {
		return nil
	}
	dispatch := r.graph.Experts()
	var left []PlanLayer
	few := map[int][]int{} // experts, by router
	for _, l := range r.plan.Layers {
		at := dispatch[l.op]
		if at < 0 {
			left = append(left, l)
			continue
		}
		op := &r.graph.Ops[at]
		route := r.routings[op.Inputs[1]]
		tokens, want := route.tokens[op.Expert], r.recipe.minTokens(l.Spec.Cols)
		if tokens >= want {
			left = append(left, l)
			continue
		}
		if !slices.Contains(few[op.Inputs[1]], op.Expert) {
			few[op.Inputs[1]] = append(few[op.Inputs[1]], op.Expert)
		}
		if r.recipe.Experts.Fallback == "keep" {
			t, ok := r.ckpt.Lookup(l.Weight)
			if !ok {
				return fmt.Errorf("%w: %s", loader.ErrNotFound, l.Weight)
			}
			r.plan.Kept = append(r.plan.Kept, t)
		}
		asked := l.method()
		l.withoutData()
		f := layer.Fallback{Asked: asked, Got: l.method(), Reason: fmt.Sprintf("the expert sees %d calibration tokens, fewer than %d", tokens, want)}
		if r.recipe.Experts.Fallback == "keep" {
			f.Got = "the weight as it was"
		}
		if f.Asked != f.Got {
			if r.recipe.OnFallback == "fail" {
				return &FallbackError{Layer: l.Name, Fallback: f}
			}
			l.fewTokens = &f
			if one := (fewTokens{layer: l.Name, fallback: f}); !slices.Contains(r.fewTokens, one) { // levels have it once each
				r.fewTokens = append(r.fewTokens, one)
			}
		}
		if r.recipe.Experts.Fallback != "keep" {
			left = append(left, l)
		}
	}
	r.plan.Layers = left
	for i := range r.graph.Ops {
		value := r.graph.Ops[i].Output
		if experts := few[value]; len(experts) > 0 && r.recipe.OnFallback == "warn" {
			r.plan.Notes = append(r.plan.Notes, fmt.Sprintf("%s: %d of %d experts see too few calibration tokens (%s) and get what experts.fallback says; more data would reach more of them",
				r.routings[value].name, len(experts), len(r.routings[value].tokens), listed(experts)))
		}
	}
	if len(left) == 0 && len(r.cuts) == 0 && len(r.recipe.Rules) > 0 {
		return fmt.Errorf("%w that has enough calibration tokens; give more data, or experts: {fallback: nearest}", ErrNothingToDo)
	}
	return nil
}

// fewTokens is what an expert's layer did not get.
type fewTokens struct {
	layer    string
	fallback layer.Fallback
}

// listed returns the first of some numbers as text.
func listed(numbers []int) string {
	const most = 8
	text := strings.Trim(fmt.Sprint(numbers[:min(most, len(numbers))]), "[]")
	if len(numbers) > most {
		text += " …"
	}
	return text
}

// withoutData makes the layer's steps ones that need no data, of the same size in
// the file.
func (l *PlanLayer) withoutData() {
	l.starved, l.Scaled = true, false
	if o := l.Quantize; o != nil {
		fixed := quantize.Options{
			Method: quantize.Nearest, Format: o.Format, Bits: o.Bits, PowerOfTwo: o.PowerOfTwo,
			Granularity: o.Granularity, GroupSize: o.GroupSize, Symmetric: o.Symmetric, Range: o.Range,
		}
		if o.Alphabet != "" { // a grid of the same bits, which are stored alike
			fixed.Bits = o.StoredBits()
		}
		if fixed.Range == quantize.AWQ {
			fixed.Range = ""
		}
		if o.Method != quantize.HQQ || o.NeedsMoments() {
			fixed = fixed.WithDefaults()
			l.Quantize = &fixed
		}
	}
	if p := l.Prune; p != nil && p.NeedsMoments() {
		plain := *p
		plain.Options = prune.Options{Method: prune.ByMagnitude, Pattern: p.Pattern, Scope: p.Scope, Survivors: p.Survivors}.WithDefaults()
		plain.Joint = false
		l.Prune = &plain
	}
	if t := l.Compensate; t != nil {
		plain := *t
		plain.Method = lowrank.SVD
		l.Compensate = &plain
	}
}

// white are the moments of a stop's inputs where nothing is known of them: none is
// larger than another, and none goes with another. A term found with them is the
// best of the weight itself.
func (c *compression) white(s *stop) (*layer.Moments, error) {
	inputs := s.reading.Inputs
	h, sums := linalg.NewGeneral(inputs, inputs), make([]float64, inputs)
	for i := range inputs {
		h.Data[i*h.Stride+i] = 1
	}
	m := &layer.Moments{Groups: 1, Inputs: inputs, Rows: int64(inputs), H: []blas64.General{h}, SumXt: sums, SumX: sums, Energy: map[string][]float64{}}
	for _, l := range s.layers {
		prob, err := c.problem(l, m)
		if err != nil {
			return nil, err
		}
		energy := make([]float64, prob.Weight.Rows)
		for r := range energy {
			energy[r] = vec.SumSquares(prob.Weight.Data[r*inputs:][:inputs])
		}
		m.Energy[l.Weight] = energy
	}
	return m, nil
}

// recordExperts tells what each expert saw, and what became of those that saw too
// little.
func (r *run) recordExperts() {
	if r.routings == nil {
		return
	}
	e := &record.Experts{MinTokens: r.recipe.Experts.MinTokens, PerInput: tokensPerInput, Fallback: r.recipe.Experts.Fallback}
	if e.MinTokens > 0 {
		e.PerInput = 0
	}
	for i := range r.graph.Ops {
		if route := r.routings[r.graph.Ops[i].Output]; route != nil {
			e.Mixtures = append(e.Mixtures, record.Mixture{Name: route.name, Block: route.block, Tokens: route.tokens})
		}
	}
	for _, f := range r.fewTokens {
		e.Layers = append(e.Layers, record.ExpertLayer{Layer: f.layer, Fallback: record.Fallback(f.fallback)})
	}
	r.record.Experts = e
}
