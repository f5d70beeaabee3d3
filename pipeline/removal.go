package pipeline

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/scratch"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/prune"
	"github.com/fettle-dev/fettle/record"
)

// original is the model as it came.
type original struct {
	files  *loader.Checkpoint
	stored *export.Model      // of files, where weights are stored compressed; else nil
	ckpt   *loader.Checkpoint // files, or the view in which such weights are decoded
	graph  *model.Graph
	config []byte // its config.json, without what tells of compression; nil where there is none
	sha    string // of ckpt, once it is known
}

// hash returns the SHA-256 of the checkpoint, which is read once.
func (o *original) hash(ctx context.Context) (string, error) {
	var err error
	if o.sha == "" {
		o.sha, err = o.ckpt.SHA256(ctx)
	}
	return o.sha, err
}

// PlanRemoved is a part of the model that goes before anything is compressed.
type PlanRemoved struct {
	Kind        model.SiteKind
	Name        string
	Keep, Units int   // Keep is 0 where the part goes as a whole
	Bytes       int64 // of the tensors' parts that go with it, if it went alone
}

// shrink makes what cuts leave the run's model. from holds the original's tensors,
// some of them repaired.
func (r *run) shrink(cuts []cut, from *loader.Checkpoint) error {
	o := r.recipe.modelOptions(r.original.config)
	small, err := model.Remove(r.original.graph, r.original.ckpt.Tensors(), o, removals(cuts))
	if err != nil {
		return err
	}
	if r.ckpt, err = from.View(small.Parts); err != nil {
		return err
	}
	r.cutStored, r.shares = map[string]string{}, map[string]int64{}
	for i, t := range r.ckpt.Tensors() {
		was, _ := r.original.ckpt.Lookup(cmp.Or(small.Parts[i].From, t.Name))
		r.shares[t.Name] = int64(float64(was.SourceBytes()) * float64(t.Elements()) / float64(max(was.Elements(), 1)))
		if d := was.Decoded(); d != nil && t.Decoded() == nil {
			r.cutStored[t.Name] = d.Encoding
		}
	}
	r.graph, r.config, r.own = small.Graph, small.Config, small.Own
	return nil
}

// sourceBytes returns the bytes of the source's files that became a tensor of the run's
// model.
func (r *run) sourceBytes(t loader.Tensor) int64 {
	if n, ok := r.shares[t.Name]; ok {
		return n
	}
	return t.SourceBytes()
}

// planRemoved says what cuts take away.
func (r *run) planRemoved(cuts []cut) (list []PlanRemoved) {
	for i := range cuts {
		c := &cuts[i]
		p := PlanRemoved{Kind: c.site.Kind, Name: c.site.Name, Keep: c.count, Units: c.site.Units}
		if c.site.Whole() {
			for _, op := range c.site.Ops {
				for _, name := range tensorsOf(&r.original.graph.Ops[op]) {
					t, _ := r.original.ckpt.Lookup(name)
					p.Bytes += t.SourceBytes()
				}
			}
		} else {
			p.Bytes = int64(c.site.Units-c.count) * r.unitBytes(&c.site)
		}
		list = append(list, p)
	}
	return list
}

// unitBytes is what one unit of a site has of tensors.
func (r *run) unitBytes(s *model.Site) int64 {
	var n int64
	for _, sl := range s.Slices {
		t, _ := r.original.ckpt.Lookup(sl.Tensor)
		n += t.SourceBytes() / int64(t.Shape[sl.Axis]) * int64(sl.Size)
	}
	return n
}

// tensorsOf lists the parameters that an operation reads.
func tensorsOf(op *model.Op) []string {
	var names []string
	for _, name := range []string{op.Weight, op.Bias} {
		if name != "" {
			names = append(names, name)
		}
	}
	if b := op.BatchNorm; b != nil {
		names = append(names, b.Scale, b.Shift, b.Mean, b.Var)
	}
	if n := op.Norm; n != nil {
		for _, name := range []string{n.Weight, n.Bias} {
			if name != "" {
				names = append(names, name)
			}
		}
	}
	return names
}

// removal chooses units in the original model, one site after the other in the
// order of the layers that read them. Its compressed stream is the model so far:
// still of the original's graph, with zeros in the place of what has gone.
type removal struct {
	*compression
	cuts  []cut
	found []unitChoice // by cut

	size   int64                        // of the run's file
	filed  map[string]*io.SectionReader // whole tensors in it, in the checkpoint's types
	zero   map[string]bool              // tensors that count as zeros: of what goes as a whole
	repair map[string]bool              // tensors whose values in the file are written
}

// unitChoice is what is kept on disk of a site.
type unitChoice struct {
	keep    []int
	readers []unitReader
}

type unitReader struct {
	errors [3]float64 // solved, without repair, energy
	bias   []float64  // to be added to the outputs; nil for none
	weight []float32  // out × the columns that stay
}

// removeUnits chooses what the cuts keep and makes what is left the run's model.
func (r *run) removeUnits(ctx context.Context) (err error) {
	for i := range r.cuts {
		if !r.cuts[i].together(r.original.graph) {
			return &model.RemovalError{Kind: r.cuts[i].site.Kind, Site: r.cuts[i].site.Name, Problem: "layers read its units in different places"}
		}
	}
	if r.recipe.removesOnData() {
		if err := r.inOriginal(func(m *removal) error { return m.allocate(ctx) }); err != nil {
			return err
		}
		r.cuts = slices.DeleteFunc(r.cuts, func(c cut) bool { return !c.site.Whole() && c.count == c.site.Units })
	}
	if r.file, err = os.CreateTemp("", "fettle-*"); err != nil {
		return err
	}
	_ = os.Remove(r.file.Name()) // where an open file can go; close removes it elsewhere
	return r.inOriginal(func(m *removal) error {
		if err := m.start(); err != nil {
			return err
		}
		for i := range m.cuts {
			if err := m.cut(ctx, i); err != nil {
				return fmt.Errorf("remove %s: %w", m.cuts[i].site.Name, err)
			}
		}
		repaired, err := m.repaired()
		if err != nil {
			return err
		}
		r.chosen = m.found
		return r.shrink(m.cuts, repaired)
	})
}

// inOriginal lets a removal work on the original model.
func (r *run) inOriginal(do func(m *removal) error) error {
	m := r.newRemoval()
	defer func() {
		m.space.Close()
		r.clock.current, r.clock.since, r.clock.order = m.clock.current, m.clock.since, m.clock.order
	}()
	if err := m.plan.checkMemory(r.options.Memory); err != nil {
		return err
	}
	return do(m)
}

func (r *run) newRemoval() *removal {
	trial := *r
	trial.ckpt, trial.graph = r.original.ckpt, r.original.graph
	trial.plan = &Plan{Layers: r.readers()}
	trial.plan.Memory = trial.plan.fixedMemory(trial.graph)
	trial.weights = newWeights(trial.ckpt, r.store, trial.plan)
	m := &removal{
		compression: newCompression(&trial), cuts: r.cuts, found: make([]unitChoice, len(r.cuts)),
		filed: map[string]*io.SectionReader{}, zero: map[string]bool{}, repair: map[string]bool{},
	}
	m.weights.made = m.made
	m.space = scratch.New("", activationLimit(m.options.Memory-m.plan.Memory.Fixed))
	return m
}

// together reports whether one value holds what all layers read of the units.
func (c *cut) together(g *model.Graph) bool {
	for _, reader := range c.site.Consumers {
		if g.Ops[reader.Op].Inputs[0] != g.Ops[c.reader()].Inputs[0] {
			return false
		}
	}
	return true
}

// readers describes the layers that read units as layers to prune.
func (r *run) readers() (list []PlanLayer) {
	for i := range r.cuts {
		c := &r.cuts[i]
		for _, reader := range c.site.Consumers {
			op := &r.original.graph.Ops[reader.Op]
			t, _ := r.original.ckpt.Lookup(op.Weight)
			l := PlanLayer{Name: op.Name, Weight: op.Weight, Shape: t.Shape, op: reader.Op}
			l.Spec.Rows, l.Spec.Cols, l.Spec.Transposed = op.Outputs, int(t.Elements())/op.Outputs, op.Transposed
			l.Prune = &LayerPrune{Options: prune.Options{Method: prune.BySparseGPT, Residual: true}}
			list = append(list, l)
		}
	}
	return list
}

// layers returns a site's readers among the planned layers.
func (m *removal) layers(c *cut) []*PlanLayer {
	var list []*PlanLayer
	for _, reader := range c.site.Consumers {
		at := slices.IndexFunc(m.plan.Layers, func(l PlanLayer) bool { return l.op == reader.Op })
		list = append(list, &m.plan.Layers[at])
	}
	return list
}

// start takes away what goes as a whole.
func (m *removal) start() (err error) {
	for i := range m.cuts {
		c := &m.cuts[i]
		if !c.site.Whole() {
			continue
		}
		if m.recipe.Sequential == "none" {
			continue // the stream stays the original's
		}
		if m.upstream, err = key(m.upstream, c.site.Kind, c.site.Name); err != nil {
			return err
		}
		if last := c.site.Ops[len(c.site.Ops)-1]; m.graph.Ops[last].Norm != nil { // no zeros make it pass on what it reads
			in, _, _ := m.graph.Through(c.site.Ops)
			m.passes[last], m.changed[last] = in, true
			continue
		}
		for _, sum := range c.site.Ops {
			switch m.graph.Ops[sum].Kind {
			case model.Add, model.Combine, model.ScaleRows:
				m.silence(c.site.Ops, sum)
			}
		}
	}
	return nil
}

// silence makes what some operations write into a sum zero.
func (m *removal) silence(ops []int, sum int) {
	for _, i := range ops {
		op := &m.graph.Ops[i]
		if op.Kind == model.Add || !slices.Contains(m.graph.Ops[sum].Inputs, op.Output) {
			continue
		}
		names := tensorsOf(op)
		if b := op.BatchNorm; b != nil {
			names = []string{b.Scale, b.Shift}
		}
		for _, name := range names {
			m.zero[name] = true
			m.changed[i] = true
		}
	}
}

// made returns the values of a tensor that are not the original's.
func (m *removal) made(name string) ([]float32, bool, error) {
	t, ok := m.ckpt.Lookup(name)
	if !ok {
		return nil, false, nil
	}
	if m.zero[name] {
		return make([]float32, t.Elements()), true, nil
	}
	section, ok := m.filed[name]
	if !ok {
		return nil, false, nil
	}
	raw, values := make([]byte, t.Bytes()), make([]float32, t.Elements())
	if _, err := section.ReadAt(raw, 0); err != nil {
		return nil, true, err
	}
	return values, true, t.DType.ToFloat32(values, raw)
}

// cut chooses the units of one site, and lets the stream go on without the rest.
func (m *removal) cut(ctx context.Context, i int) error {
	c := &m.cuts[i]
	if c.site.Whole() {
		m.tell(i, false)
		return nil
	}
	k, err := m.key(ctx, "units", c, c.entry.options(c.count), m.upstream)
	if err != nil {
		return err
	}
	decode := func(r io.ReaderAt, size int64) (unitChoice, error) { return m.decode(c, r, size) }
	choice, found, err := unit(m.store, k, decode, encodeChoice, func() (unitChoice, error) { return m.choose(ctx, c) })
	if err != nil {
		return err
	}
	c.keep, m.found[i] = choice.keep, choice
	for n, l := range m.layers(c) {
		if err := m.pass(c, l, choice, n); err != nil {
			return err
		}
		m.found[i].readers[n].weight = nil // it lies in the file
	}
	if m.recipe.Sequential != "none" {
		if m.upstream, err = key(m.upstream, k); err != nil {
			return err
		}
	}
	m.tell(i, found)
	return nil
}

// key is of all that a site's units depend on.
func (m *removal) key(ctx context.Context, kind string, c *cut, o prune.UnitOptions, upstream string) (string, error) {
	sha, err := m.original.hash(ctx)
	if err != nil {
		return "", err
	}
	data := ""
	if m.calibration != nil {
		data = m.calibration.sha256()
	}
	return key(kind, layer.EncodingVersion, prune.Version, blas.Path, sha, m.graph.Hash(), data, c.site.Kind, c.site.Name, o, upstream)
}

// tell reports that a site is done.
func (m *removal) tell(i int, cached bool) {
	m.clock.enter(StageRemove)
	c := &m.cuts[i]
	e := Event{Layer: c.site.Name, Cached: cached, Done: i + 1, Total: len(m.cuts), RelativeError: -1}
	if solved, _ := m.found[i].relative(); solved != nil {
		e.RelativeError = *solved
	}
	m.clock.emit(e)
}

// relative returns the readers' error and what it is without repair, relative to
// the energy of their original outputs; nil without data.
func (u *unitChoice) relative() (solved, plain *float64) {
	var sum [3]float64
	for _, r := range u.readers {
		for i, v := range r.errors {
			sum[i] += v
		}
	}
	if sum[2] == 0 {
		return nil, nil
	}
	s, p := sum[0]/sum[2], sum[1]/sum[2]
	return &s, &p
}

// problem describes the choice among a site's units.
func (m *removal) problem(ctx context.Context, c *cut) (*prune.UnitProblem, error) {
	prob := &prune.UnitProblem{Units: c.site.Units, Run: c.site.Run}
	layers := m.layers(c)
	if c.entry.Score == "magnitude" {
		prob.Squares = make([]float64, c.site.Units)
		for _, sl := range c.site.Slices {
			t, _ := m.ckpt.Lookup(sl.Tensor)
			if len(t.Shape) < 2 || slices.ContainsFunc(layers, func(l *PlanLayer) bool { return l.Weight == sl.Tensor }) {
				continue
			}
			w, err := m.weights.original(sl.Tensor)
			if err != nil {
				return nil, err
			}
			if err := prune.AddSquares(prob.Squares, w, t.Shape, sl.Axis, sl.Offset, sl.Size); err != nil {
				return nil, err
			}
		}
	}
	for i, l := range layers {
		var moments *layer.Moments
		var err error
		if m.calibration != nil {
			if moments, err = m.takeMoments(ctx, &stop{value: m.graph.Ops[l.op].Inputs[0], reading: readingOf(m.graph, l.op), layers: []*PlanLayer{l}}); err != nil {
				return nil, err
			}
		}
		one := prune.UnitReader{Columns: c.site.Consumers[i].Columns, Centre: c.entry.repair() && biasHolder(m.graph, l.op) != ""}
		if one.Problem, err = m.compression.problem(l, moments); err != nil {
			return nil, err
		}
		prob.Readers = append(prob.Readers, one)
	}
	m.clock.enter(StageRemove)
	return prob, nil
}

func (m *removal) choose(ctx context.Context, c *cut) (u unitChoice, err error) {
	prob, err := m.problem(ctx, c)
	if err != nil {
		return u, err
	}
	s, err := prune.SelectUnits(ctx, m.pool, prob, c.entry.options(c.count))
	if err != nil {
		return u, err
	}
	u.keep = s.Keep
	for _, r := range s.Readers {
		u.readers = append(u.readers, unitReader{[3]float64{r.Errors.Solved, r.Errors.Nearest, r.Errors.Energy}, r.Bias, r.Weight.Data})
	}
	return u, nil
}

// pass writes the weight of a site's reader n, with zeros for the units that
// went, and corrects the bias.
func (m *removal) pass(c *cut, l *PlanLayer, u unitChoice, n int) error {
	one, columns := u.readers[n], c.site.Consumers[n].Columns
	full := make([]float32, l.Spec.Rows*l.Spec.Cols)
	kept := len(u.keep) * columns
	for row := range l.Spec.Rows {
		for k, unit := range u.keep {
			copy(full[row*l.Spec.Cols+unit*columns:][:columns], one.weight[row*kept+k*columns:])
		}
	}
	if l.Spec.Transposed {
		full = transposed(full, l.Spec.Rows, l.Spec.Cols)
	}
	if err := finite(l.Weight, full); err != nil {
		return err
	}
	if one.bias != nil {
		if err := m.correctBias(l, one.bias); err != nil {
			return err
		}
	}
	m.repair[l.Weight] = c.entry.repair()
	m.changed[l.op] = m.recipe.Sequential != "none"
	return m.append(l.Weight, full)
}

// append writes a tensor's values to the file.
func (m *removal) append(name string, values []float32) error {
	t, _ := m.ckpt.Lookup(name)
	raw := make([]byte, t.Bytes())
	if err := t.DType.FromFloat32(raw, values); err != nil {
		return fmt.Errorf("tensor %s: %w", name, err)
	}
	if _, err := m.file.WriteAt(raw, m.size); err != nil {
		return err
	}
	m.filed[name] = io.NewSectionReader(m.file, m.size, t.Bytes())
	m.size += t.Bytes()
	return nil
}

// repaired is the original with the tensors that make up for what goes.
func (m *removal) repaired() (*loader.Checkpoint, error) {
	for name, values := range m.weights.replaced {
		m.repair[name] = true
		if err := m.append(name, values); err != nil {
			return nil, err
		}
	}
	var parts []loader.Part
	for _, t := range m.ckpt.Tensors() {
		p := loader.Part{Name: t.Name}
		if m.repair[t.Name] {
			p.Data = m.filed[t.Name]
		}
		parts = append(parts, p)
	}
	return m.ckpt.View(parts)
}

func encodeChoice(w io.Writer, u unitChoice) error {
	v := &layer.Vectors{Of: [][]float64{make([]float64, len(u.keep))}}
	for i, unit := range u.keep {
		v.Of[0][i] = float64(unit)
	}
	for _, r := range u.readers {
		weight := make([]float64, len(r.weight))
		for i, x := range r.weight {
			weight[i] = float64(x)
		}
		v.Of = append(v.Of, append(r.errors[:], r.bias...), weight)
	}
	return layer.EncodeVectors(w, v)
}

// decode reads what encodeChoice wrote for a site.
func (m *removal) decode(c *cut, r io.ReaderAt, size int64) (u unitChoice, err error) {
	v, err := layer.DecodeVectors(r, size)
	if err != nil {
		return u, err
	}
	damaged := fmt.Errorf("not the units of %s", c.site.Name)
	layers := m.layers(c)
	if len(v.Of) != 1+2*len(layers) || len(v.Of[0]) != c.count {
		return u, damaged
	}
	for i, f := range v.Of[0] {
		if u.keep = append(u.keep, int(f)); f < 0 || f >= float64(c.site.Units) || (i > 0 && u.keep[i] <= u.keep[i-1]) {
			return u, damaged
		}
	}
	for i, l := range layers {
		head, weight := v.Of[1+2*i], v.Of[2+2*i]
		if (len(head) != 3 && len(head) != 3+l.Spec.Rows) || len(weight) != l.Spec.Rows*c.count*c.site.Consumers[i].Columns {
			return u, damaged
		}
		one := unitReader{errors: [3]float64(head), weight: make([]float32, len(weight))}
		if len(head) > 3 {
			one.bias = head[3:]
		}
		for k, x := range weight {
			one.weight[k] = float32(x)
		}
		u.readers = append(u.readers, one)
	}
	return u, nil
}

// recordRemoved tells what was removed.
func (r *run) recordRemoved() {
	if len(r.cuts) == 0 {
		return
	}
	var before, after int64
	for _, t := range r.original.ckpt.Tensors() {
		before += t.SourceBytes()
	}
	for _, t := range r.ckpt.Tensors() {
		after += r.sourceBytes(t)
	}
	r.record.RemovedBytes = before - after
	for i, p := range r.plan.Removed {
		one := record.Removed{Kind: string(p.Kind), Name: p.Name, Kept: p.Keep, Units: p.Units, Bytes: p.Bytes}
		if c := &r.cuts[i]; !c.site.Whole() {
			one.Score, one.Repaired = c.entry.Score, c.entry.repair()
			one.RelativeError, one.PlainRelativeError = r.chosen[i].relative()
		}
		r.record.Removed = append(r.record.Removed, one)
	}
}
