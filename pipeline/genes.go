package pipeline

import (
	"fmt"
	"slices"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/search"
)

// gene is what gets one level: a layer, layers that runtimes join into one, or all
// layers of a part that may be dropped.
type gene struct {
	name   string
	rule   int
	site   *model.Site // what goes at the level that drops it; nil where none does
	layers [][]int     // by level: indices of plan.Layers, in the order of the data
	levels []level     // the rule's; one that has no steps of its own where it has none
	others []string    // tensors of the site beside the layers' weights
	usable []string    // by level: why it cannot be chosen; "" where it can
}

// fixedLevel is the name of the only level of a rule without levels.
const fixedLevel = "as the rule says"

// findGenes divides the planned layers into genes.
func (r *run) findGenes() ([]gene, error) {
	var genes []gene
	at := map[string]int{}
	sites := r.dropSites()
	for first := 0; first < len(r.plan.Layers); {
		l := &r.plan.Layers[first]
		rule := &r.recipe.Rules[l.rule]
		n := max(1, len(rule.levels))
		site := sites[l.op]
		name := l.Name
		switch {
		case rule.drops() == nil && l.Fusion != "" && r.recipe.Search.Genes == "fused":
			name = l.Fusion
		case rule.drops() != nil && site != nil:
			name = site.Name
		default:
			site = nil
		}
		if rule.drops() == nil {
			site = nil
		}
		id := fmt.Sprintf("%d %s", l.rule, name)
		k, ok := at[id]
		if !ok {
			k = len(genes)
			at[id] = k
			g := gene{name: name, rule: l.rule, site: site, levels: rule.levels, layers: make([][]int, n), usable: make([]string, n)}
			if len(g.levels) == 0 {
				g.levels = []level{{name: fixedLevel, kind: fixedLevel, steps: rule.Steps}}
			}
			genes = append(genes, g)
		}
		g := &genes[k]
		for i := range n {
			g.layers[i] = append(g.layers[i], first+i)
			if reason := r.plan.Layers[first+i].leftOut; reason != "" && g.usable[i] == "" {
				g.usable[i] = reason
			}
		}
		first += n
	}
	names := map[string]bool{}
	for i := range genes {
		g := &genes[i]
		if names[g.name] { // the same fusion under two rules
			g.name = r.plan.Layers[g.layers[0][0]].Name
		}
		names[g.name] = true
		r.finishGene(g)
	}
	return genes, nil
}

// finishGene finds what goes with a gene's site, and whether that can be dropped.
func (r *run) finishGene(g *gene) {
	for i, l := range g.levels {
		if l.drop != "" && g.site == nil {
			g.usable[i] = "it is part of nothing that adds to a residual sum and can be taken away"
		}
	}
	if g.site == nil {
		return
	}
	_, err := model.Remove(r.graph, r.ckpt.Tensors(), r.recipe.modelOptions(r.config), []model.Removal{{Kind: g.site.Kind, Site: g.site.Name}})
	for i, l := range g.levels {
		if l.drop != "" && err != nil {
			g.usable[i] = err.Error()
		}
	}
	weights := map[string]bool{}
	for _, i := range g.layers[0] {
		weights[r.plan.Layers[i].Weight] = true
	}
	for _, op := range g.site.Ops {
		for _, name := range tensorsOf(&r.graph.Ops[op]) {
			if !weights[name] && !slices.Contains(g.others, name) {
				g.others = append(g.others, name)
			}
		}
	}
}

// dropSites returns by operation the part that a rule's levels may drop it with: one
// whose layers all are of that rule.
func (r *run) dropSites() map[int]*model.Site {
	rules := map[int]int{}
	for _, l := range r.plan.Layers {
		rules[l.op] = l.rule
	}
	sites := map[int]*model.Site{}
	for _, s := range r.graph.Sites() {
		rule := -1
		for _, op := range s.Ops {
			if !r.graph.Ops[op].IsLayer() {
				continue
			}
			of, planned := rules[op]
			if !planned || (rule >= 0 && of != rule) {
				rule = -1
				break
			}
			rule = of
		}
		if rule < 0 || !slices.Contains(r.recipe.Rules[rule].drops(), s.Kind) {
			continue
		}
		for _, op := range s.Ops {
			if r.graph.Ops[op].IsLayer() {
				sites[op] = &s
			}
		}
	}
	return sites
}

// sizes are what genes' levels take in the weight files, and what does not depend on
// them, for files of at most limit bytes.
type sizes struct {
	rest   int64
	levels [][]int64 // by gene and level; −1 for one that cannot be chosen
	least  int64     // of headers at any levels, for average bits
}

func (r *run) sizesOf(genes []gene, limit int64) (s sizes, err error) {
	shares := export.Shares{Checkpoint: r.ckpt, Source: r.original.stored, ShardSize: r.recipe.Output.shardSize, Limit: limit}
	if s.rest, err = shares.Frame(); err != nil {
		return s, err
	}
	chosen := map[string]bool{}
	for i := range genes {
		g := &genes[i]
		levels, header, err := r.levelBytes(g, shares)
		if err != nil {
			return s, err
		}
		s.levels = append(s.levels, levels)
		s.least += header
		for _, l := range g.layers[0] {
			chosen[r.plan.Layers[l].Weight] = true
		}
		for _, name := range g.others {
			chosen[name] = true
		}
	}
	for _, t := range r.ckpt.Tensors() {
		if chosen[t.Name] {
			continue
		}
		n, err := shares.Kept(t)
		if err != nil {
			return s, err
		}
		s.rest += n
	}
	return s, nil
}

// levelBytes returns what each level of a gene takes, and the least that headers and
// tensors beside its weights take of that.
func (r *run) levelBytes(g *gene, shares export.Shares) (levels []int64, header int64, err error) {
	header = -1
	for k, level := range g.levels {
		if g.usable[k] != "" {
			levels = append(levels, -1)
			continue
		}
		var total, weights int64
		if level.drop == "" {
			for _, name := range g.others {
				t, _ := r.ckpt.Lookup(name)
				n, err := shares.Kept(t)
				if err != nil {
					return nil, 0, err
				}
				total += n
			}
			for _, i := range g.layers[k] {
				l := &r.plan.Layers[i]
				n, of, err := r.layerBytes(l, shares)
				if err != nil {
					return nil, 0, err
				}
				total += n
				weights += of
			}
		}
		levels = append(levels, total)
		if header < 0 || total-weights < header {
			header = total - weights
		}
	}
	return levels, max(header, 0), nil
}

// layerBytes returns what a layer takes at its level, and how much of that is no
// header.
func (r *run) layerBytes(l *PlanLayer, shares export.Shares) (total, weights int64, err error) {
	if !l.solvable() {
		t, _ := r.ckpt.Lookup(l.Weight)
		total, err = shares.Kept(t)
		return total, keptBytes(t), err
	}
	total, err = shares.Compressed(l.Spec)
	return total, l.Spec.Bytes(), err
}

// weightCount returns how many weights the genes' layers have.
func (r *run) weightCount(genes []gene) (n int64) {
	for i := range genes {
		for _, k := range genes[i].layers[0] {
			l := &r.plan.Layers[k]
			n += int64(l.Spec.Rows) * int64(l.Spec.Cols)
		}
	}
	return n
}

// budget turns a size into bytes of the weight files.
func (r *run) budget(genes []gene, z size) (int64, error) {
	switch {
	case z.bytes > 0:
		return z.bytes, nil
	case z.ratio > 0:
		return int64(z.ratio * float64(r.original.ckpt.Size())), nil
	}
	// Offsets have as many digits as the size that comes out.
	bytes := r.original.ckpt.Size()
	for range 2 {
		s, err := r.sizesOf(genes, bytes)
		if err != nil {
			return 0, err
		}
		bytes = s.rest + s.least + int64(z.bits*float64(r.weightCount(genes))/8)
	}
	return bytes, nil
}

// waste is the share of a budget that candidates may leave unused where a step fits.
// What headers are bounded from above comes on top; together that stays under .5 %.
const waste = 0.003

// spaceOf is what a search chooses from within so many bytes. What tensors take in the
// files is bounded from above; where exact is asked for, the bound comes down to near
// the exact size of uniform levels, so that others may come out a few bytes above it.
func (r *run) spaceOf(genes []gene, bytes int64, exact bool) (*search.Space, error) {
	s, err := r.sizesOf(genes, bytes)
	if err != nil {
		return nil, err
	}
	out := make([]search.Gene, len(genes))
	for i, g := range genes {
		out[i].Name = g.name
		switch r.recipe.Search.Switch {
		case "size":
			out[i].Group = fmt.Sprint(r.geneWeights(&g))
		case "kind":
			if g.site != nil {
				out[i].Group = string(g.site.Kind)
			}
		}
		for k, l := range g.levels {
			out[i].Levels = append(out[i].Levels, search.Level{Name: l.name, Kind: l.kind, Bytes: max(s.levels[i][k], 0), Unusable: g.usable[k]})
		}
	}
	space, err := search.NewSpace(out, search.Budget{Bytes: bytes, Rest: s.rest, Waste: waste})
	if err != nil || !exact {
		return space, err
	}
	uniform := space.Uniform()
	size, ok, err := r.exactSize(genes, uniform)
	if err != nil || !ok {
		return space, err
	}
	rest := s.rest - (space.Cost(uniform)-size)*4/5
	near, err := search.NewSpace(out, search.Budget{Bytes: bytes, Rest: rest, Waste: waste})
	if err != nil { // there is nothing left to choose
		return space, nil
	}
	return near, nil
}

// exactSize returns the bytes of the weight files at some levels; ok is false where one
// of them drops a part.
func (r *run) exactSize(genes []gene, levels []int) (size int64, ok bool, err error) {
	specs := map[string]export.Spec{}
	for i, k := range levels {
		if genes[i].levels[k].drop != "" {
			return 0, false, nil
		}
		for _, n := range genes[i].layers[k] {
			if l := &r.plan.Layers[n]; l.solvable() {
				specs[l.Weight] = l.Spec
			}
		}
	}
	size, err = export.CompressedTensorsSize(export.Input{Checkpoint: r.ckpt, Source: r.original.stored, Specs: specs, ShardSize: r.recipe.Output.shardSize})
	return size, true, err
}

func (r *run) geneWeights(g *gene) (n int64) {
	for _, k := range g.layers[0] {
		n += int64(r.plan.Layers[k].Spec.Rows) * int64(r.plan.Layers[k].Spec.Cols)
	}
	return n
}
