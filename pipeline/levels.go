package pipeline

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/model"
)

// Levels are ways to compress a rule's layers that a search may choose among: the
// rule's steps, changed as each combination of the lists says. A step that the rule
// does not have comes with its defaults.
type Levels struct {
	Bits      []int     `yaml:"bits"`       // of the quantize step
	GroupSize []int     `yaml:"group_size"` // of the quantize step; 0 for none
	Sparsity  []float64 `yaml:"sparsity"`   // of the prune step; 0 does not prune
	Pattern   []string  `yaml:"pattern"`    // of the prune step
	Rank      []int     `yaml:"rank"`       // of the compensate step; 0 adds no term
	Steps     []Step    `yaml:"steps"`      // in place of the rule's

	// Keep leaves the layers as they are. Drop takes away what they are part of and
	// adds to a residual sum: sublayer (attention or MLP) or block. All of its layers
	// then get one level together.
	Keep bool   `yaml:"keep"`
	Drop string `yaml:"drop"`
}

// level is one of a rule's levels, resolved.
type level struct {
	name  string // the same in all rules
	kind  string // the same for levels that differ in bits, or else in sparsity, alone
	steps []Step // nil for kept and dropped
	drop  model.SiteKind
}

// Names of levels without steps.
const (
	keptLevel    = "kept"
	droppedLevel = "dropped"
)

// dropKinds are the values of Levels.Drop.
var dropKinds = []string{"sublayer", "block"}

// resolveLevels fills in the rule's levels and returns the first fault: where within
// the rule, and what.
func (rule *Rule) resolveLevels() (where, reason string) {
	drops := ""
	var entries []int // by level
	for i := range rule.Levels {
		e := &rule.Levels[i]
		at := fmt.Sprintf(".levels[%d]", i)
		all, where, reason := e.resolve(rule.Steps)
		if reason != "" {
			return at + where, reason
		}
		if e.Drop != "" && drops != "" {
			return at + ".drop", "is there twice; a rule drops sublayers or blocks"
		}
		drops += e.Drop
		rule.levels = append(rule.levels, all...)
		for range all {
			entries = append(entries, i)
		}
	}
	if rule.nameLevels(false) < 0 {
		return "", ""
	}
	if i := rule.nameLevels(true); i >= 0 {
		return fmt.Sprintf(".levels[%d]", entries[i]), fmt.Sprintf("has %q, which is there already; remove one of them, or let them differ in bits, group_size, sparsity, pattern, rank or method", rule.levels[i].name)
	}
	return "", ""
}

// nameLevels names the levels, by their methods too where asked to, and returns the
// first whose name is taken; −1 for none.
func (rule *Rule) nameLevels(methods bool) int {
	seen := map[string]bool{}
	for i := range rule.levels {
		l := &rule.levels[i]
		if l.steps != nil {
			l.name, l.kind = levelNames(l.steps, methods)
		}
		if seen[l.name] {
			return i
		}
		seen[l.name] = true
	}
	return -1
}

// resolve returns the combinations of an entry.
func (e *Levels) resolve(base []Step) (all []level, where, reason string) {
	lists := len(e.Bits) + len(e.GroupSize) + len(e.Sparsity) + len(e.Pattern) + len(e.Rank) + len(e.Steps)
	if e.Keep || e.Drop != "" {
		if lists > 0 || (e.Keep && e.Drop != "") {
			return nil, "", "says keep or drop beside other keys; give it an entry of its own, such as - {keep: true}"
		}
		if e.Keep {
			return []level{{name: keptLevel, kind: keptLevel}}, "", ""
		}
		if reason := oneOf(&e.Drop, dropKinds...); reason != "" {
			return nil, ".drop", reason
		}
		drop := model.BlockSite
		if e.Drop == "sublayer" {
			drop = model.MLPSite // and AttentionSite
		}
		return []level{{name: droppedLevel, kind: droppedLevel, drop: drop}}, "", ""
	}
	if lists == 0 {
		return nil, "", "is empty; say which bits, sparsity, pattern, rank or steps there are, keep: true, or drop: sublayer"
	}
	if len(e.Sparsity) > 0 && len(e.Pattern) > 0 {
		return nil, ".pattern", "stands beside sparsity; give patterns such as 2:4 an entry of their own"
	}
	steps := base
	if len(e.Steps) > 0 {
		steps = e.Steps
	}
	for _, bits := range orNone(e.Bits) {
		for _, group := range orNone(e.GroupSize) {
			for _, sparsity := range orNone(e.Sparsity) {
				for _, pattern := range orNone(e.Pattern) {
					for _, rank := range orNone(e.Rank) {
						l := level{steps: changed(steps, bits, group, sparsity, pattern, rank)}
						if len(l.steps) == 0 {
							return nil, "", "does nothing to a layer; say keep: true for that"
						}
						if where, reason := checkSteps(l.steps); reason != "" {
							return nil, where, reason
						}
						if where, reason := checkLevel(l.steps); reason != "" {
							return nil, where, reason
						}
						all = append(all, l)
					}
				}
			}
		}
	}
	return all, "", ""
}

// orNone returns pointers to values, or one nil where there are none.
func orNone[T any](values []T) []*T {
	if len(values) == 0 {
		return []*T{nil}
	}
	var out []*T
	for i := range values {
		out = append(out, &values[i])
	}
	return out
}

// changed returns a copy of steps with other numbers; nil leaves one as it is.
func changed(base []Step, bits, group *int, sparsity *float64, pattern *string, rank *int) []Step {
	p, q, c := sorted(base)
	p, q, c = copied(p), copied(q), copied(c)
	if bits != nil || group != nil {
		if q == nil {
			q = &Quantize{}
		}
		if bits != nil {
			q.Bits = *bits
		}
		if group != nil {
			q.GroupSize = *group
			q.Granularity = ""
			if *group == 0 {
				q.Granularity = "channel"
			}
		}
	}
	if sparsity != nil || pattern != nil {
		if p == nil {
			p = &Prune{}
		}
		switch {
		case pattern != nil:
			p.Pattern, p.Scope, p.Sparsity = *pattern, "", 0
		case *sparsity == 0:
			p = nil
		default:
			p.Sparsity = *sparsity
		}
	}
	if rank != nil {
		if c == nil {
			c = &Compensate{}
		}
		if c.Rank = *rank; *rank == 0 {
			c = nil
		}
	}
	var steps []Step
	if p != nil {
		steps = append(steps, Step{Prune: p})
	}
	if q != nil {
		steps = append(steps, Step{Quantize: q})
	}
	if c != nil {
		steps = append(steps, Step{Compensate: c})
	}
	return steps
}

func copied[T any](v *T) *T {
	if v == nil {
		return nil
	}
	c := *v
	return &c
}

// checkLevel refuses what a level cannot have: what depends on other layers than its
// own is the search's to choose.
func checkLevel(steps []Step) (where, reason string) {
	for i, s := range steps {
		at := fmt.Sprintf(".steps[%d]", i)
		switch {
		case s.Prune != nil && s.Prune.Allocation != "uniform":
			return at + ".prune.allocation", "shares a sparsity among layers, which the search does by itself; remove it and give several sparsities"
		case s.Quantize != nil && s.Quantize.AWQ:
			return at + ".quantize.awq", "changes the normalization that other layers read too, and so cannot be a layer's own level; remove it"
		case s.Compensate != nil && s.Compensate.Budget != "":
			return at + ".compensate.budget", "shares bytes among layers, which the search does by itself; give ranks"
		}
	}
	return "", ""
}

// levelNames names a level by what it does, and the kind of levels that differ from
// it in degree only.
func levelNames(steps []Step, methods bool) (name, kind string) {
	var names, kinds []string
	for _, s := range steps {
		switch {
		case s.Prune != nil:
			text := s.Prune.Pattern
			if s.Prune.Pattern == "unstructured" {
				text = fmt.Sprintf("%g %% pruned", 100*s.Prune.Sparsity)
			} else if s.Prune.Sparsity != 0 {
				text += fmt.Sprintf(" %g %%", 100*s.Prune.Sparsity)
			}
			if methods {
				text += " by " + s.Prune.Method
			}
			names = append(names, text)
			if len(steps) > 1 {
				kinds = append(kinds, text)
			} else {
				kinds = append(kinds, "pruned, "+s.Prune.Pattern)
			}
		case s.Quantize != nil:
			q := s.Quantize
			text := fmt.Sprintf("%d bits", q.Bits)
			var more string
			if q.Format != "int" {
				text = q.Format
			}
			if q.Alphabet == "ternary" || q.Alphabet == "binary" {
				text = q.Alphabet
			}
			if q.GroupSize > 0 {
				more += fmt.Sprintf(" g%d", q.GroupSize)
			}
			if q.Granularity == "tensor" {
				more += " per tensor"
			}
			if q.Symmetric {
				more += " symmetric"
			}
			if methods {
				more += " " + q.Method
			}
			names = append(names, text+more)
			kinds = append(kinds, "codes"+more)
		default:
			c := s.Compensate
			text := fmt.Sprintf("rank %d", c.Rank)
			if c.Bits > 0 {
				text += fmt.Sprintf(" of %d bits", c.Bits)
			}
			names, kinds = append(names, text), append(kinds, text)
		}
	}
	return strings.Join(names, ", "), strings.Join(kinds, ", ")
}

// drops returns the kinds of sites that a rule's levels may drop; nil for none.
func (rule *Rule) drops() []model.SiteKind {
	i := slices.IndexFunc(rule.levels, func(l level) bool { return l.drop != "" })
	switch {
	case i < 0:
		return nil
	case rule.levels[i].drop == model.BlockSite:
		return []model.SiteKind{model.BlockSite}
	}
	return []model.SiteKind{model.AttentionSite, model.MLPSite}
}
