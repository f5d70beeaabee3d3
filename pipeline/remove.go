package pipeline

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/prune"
)

// Remove asks for a part of the model to go, so that what is left is a smaller
// dense model. It names one of Blocks, Attention, MLP, Heads and Channels; what
// comes after these tunes Heads and Channels alone. The first entry that matches
// a part counts.
type Remove struct {
	Blocks    []string `yaml:"blocks"`    // numbers, or globs over the blocks' names
	Attention string   `yaml:"attention"` // globs over sublayers' names, divided by |
	MLP       string   `yaml:"mlp"`
	Heads     *float64 `yaml:"heads"`    // share of the heads that goes; 0 spares them
	Channels  *float64 `yaml:"channels"` // share of an MLP's channels or of a convolution's filters

	Match      string  `yaml:"match"`      // globs over names; default "*"
	Of         string  `yaml:"of"`         // of heads: groups (default: keys with their queries), queries
	Score      string  `yaml:"score"`      // error (default), energy, magnitude
	Rounds     int     `yaml:"rounds"`     // of score error
	Repair     *bool   `yaml:"repair"`     // default true
	Damping    float64 `yaml:"damping"`    // default 0.01
	Allocation string  `yaml:"allocation"` // uniform (default), global
}

// share returns the share of units that goes; nil where parts go as a whole.
func (e *Remove) share() *float64 { return cmp.Or(e.Heads, e.Channels) }

// kind says what sites the entry is about.
func (e *Remove) kind() model.SiteKind {
	switch {
	case len(e.Blocks) > 0:
		return model.BlockSite
	case e.Attention != "":
		return model.AttentionSite
	case e.MLP != "":
		return model.MLPSite
	case e.Channels != nil:
		return model.ChannelSite
	case e.Of == "queries":
		return model.QueryHeadSite
	}
	return model.KVGroupSite
}

// key is the recipe's word for what the entry removes.
func (e *Remove) key() string {
	switch e.kind() {
	case model.BlockSite:
		return "blocks"
	case model.AttentionSite:
		return "attention"
	case model.MLPSite:
		return "mlp"
	case model.ChannelSite:
		return "channels"
	}
	return "heads"
}

// check fills in defaults and returns the first fault: where in the entry, and
// what.
func (e *Remove) check() (where, reason string) {
	said := 0
	for _, yes := range []bool{len(e.Blocks) > 0, e.Attention != "", e.MLP != "", e.Heads != nil, e.Channels != nil} {
		if yes {
			said++
		}
	}
	if said != 1 {
		return "", fmt.Sprintf("names %d of blocks, attention, mlp, heads and channels; name one, such as {channels: 0.25}, and begin a new list entry for the next", said)
	}
	if e.share() != nil {
		where, reason = e.checkShare()
	} else if stray := e.stray(); stray != "" {
		return "." + stray, fmt.Sprintf("is for heads and channels; %s go as a whole: remove it", e.key())
	}
	if reason != "" {
		return where, reason
	}
	for _, pattern := range e.patterns() {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			return "." + e.patternKey(), fmt.Sprintf("pattern %q is malformed", pattern)
		}
	}
	return "", ""
}

// stray returns the first key that tunes shares, "" where none is there.
func (e *Remove) stray() string {
	for _, c := range []struct {
		key  string
		said bool
	}{
		{"match", e.Match != ""},
		{"of", e.Of != ""},
		{"score", e.Score != ""},
		{"rounds", e.Rounds != 0},
		{"repair", e.Repair != nil},
		{"damping", e.Damping != 0},
		{"allocation", e.Allocation != ""},
	} {
		if c.said {
			return c.key
		}
	}
	return ""
}

func (e *Remove) checkShare() (where, reason string) {
	if e.Match == "" {
		e.Match = "*"
	}
	if e.Heads == nil && e.Of != "" {
		return ".of", "is for heads; remove it"
	}
	for _, c := range []struct {
		key     string
		value   *string
		allowed []string
	}{
		{".of", &e.Of, []string{"groups", "queries"}},
		{".score", &e.Score, []string{"error", "energy", "magnitude"}},
		{".allocation", &e.Allocation, []string{"uniform", "global"}},
	} {
		if reason := oneOf(c.value, c.allowed...); reason != "" {
			return c.key, reason
		}
	}
	switch s := *e.share(); {
	case !(s >= 0):
		return "." + e.key(), fmt.Sprintf("is %v, want a share from 0 to less than 1, such as 0.25", s)
	case s >= 1:
		return "." + e.key(), fmt.Sprintf("is %v, which leaves nothing; give the share that goes, less than 1, or remove all with attention: …, mlp: … or blocks: […]", s)
	case e.Rounds < 0:
		return ".rounds", "is negative; give a count"
	case e.Rounds > 0 && e.Score != "error":
		return ".rounds", fmt.Sprintf("is for score error; remove it from %s", e.Score)
	case e.Allocation == "global" && e.Score == "magnitude":
		return ".allocation", "is global, which compares errors; magnitudes of different layers do not compare: use score error or energy"
	case e.Damping < 0 || e.Damping > 1e6 || e.Damping != e.Damping:
		return ".damping", fmt.Sprintf("is %v, want a positive number", e.Damping)
	}
	return "", ""
}

// patternKey is the key that holds the entry's globs.
func (e *Remove) patternKey() string {
	if e.share() != nil {
		return "match"
	}
	return e.key()
}

// patterns are the entry's globs and numbers.
func (e *Remove) patterns() []string {
	if len(e.Blocks) > 0 {
		return e.Blocks
	}
	return strings.Split(cmp.Or(e.Attention, e.MLP, e.Match), "|")
}

// repair reports whether what stays is to make up for what goes.
func (e *Remove) repair() bool { return e.share() != nil && or(e.Repair, true) }

// needsMoments reports whether the choice of units depends on data.
func (e *Remove) needsMoments() bool {
	return e.share() != nil && *e.share() > 0 && (e.Score != "magnitude" || e.repair())
}

// options are those of a site that keeps so many units.
func (e *Remove) options(keep int) prune.UnitOptions {
	return prune.UnitOptions{Score: prune.UnitScore(e.Score), Keep: keep, Rounds: e.Rounds, Repair: e.repair(), Damping: e.Damping}
}

// cut is a site that loses something.
type cut struct {
	site  model.Site
	entry *Remove
	at    int // of the entry in the recipe
	count int // units that stay; 0 where the whole site goes
	keep  []int
}

// removal is the cut as package model knows it. Before units are chosen it keeps
// the first ones of each run: sizes do not depend on which.
func (c *cut) removal() model.Removal {
	keep := c.keep
	if !c.site.Whole() && keep == nil {
		each := c.count / (c.site.Units / c.site.Run)
		for first := 0; first < c.site.Units; first += c.site.Run {
			for u := range each {
				keep = append(keep, first+u)
			}
		}
	}
	return model.Removal{Kind: c.site.Kind, Site: c.site.Name, Keep: keep}
}

func removals(cuts []cut) []model.Removal {
	list := make([]model.Removal, len(cuts))
	for i := range cuts {
		list[i] = cuts[i].removal()
	}
	return list
}

// cuts finds what the recipe's entries mean for a graph: what goes as a whole,
// then sites that lose units, in the order of the layers that read them. Sites
// within what goes as a whole are left out.
func (r *Recipe) cuts(g *model.Graph) ([]cut, error) {
	sites := g.Sites()
	var all []cut
	taken := map[string]bool{}
	for at := range r.Remove {
		e := &r.Remove[at]
		for _, pattern := range e.patterns() {
			found := false
			for _, s := range sites {
				if s.Kind != e.kind() || !named(g, &s, pattern) {
					continue
				}
				found = true
				if name := e.key() + " " + s.Name; !taken[name] {
					taken[name] = true
					all = append(all, cut{site: s, entry: e, at: at})
				}
			}
			if !found {
				return nil, &RecipeError{File: r.file, Where: fmt.Sprintf("remove[%d].%s", at, e.patternKey()), Reason: e.unmatched(g, sites, pattern)}
			}
		}
	}
	gone := map[int]bool{}
	for _, c := range all {
		if c.site.Kind == model.BlockSite {
			mark(gone, c.site.Ops)
		}
	}
	all = slices.DeleteFunc(all, func(c cut) bool { // sublayers of blocks
		return c.site.Whole() && c.site.Kind != model.BlockSite && gone[c.site.Ops[0]]
	})
	for _, c := range all {
		mark(gone, c.site.Ops)
	}
	all = slices.DeleteFunc(all, func(c cut) bool { return !c.site.Whole() && (gone[c.site.Consumers[0].Op] || *c.entry.share() == 0) })
	for i := range all {
		if c := &all[i]; !c.site.Whole() {
			c.count = prune.UnitCount(c.site.Units, c.site.Run, *c.entry.share())
		}
	}
	all = slices.DeleteFunc(all, func(c cut) bool {
		return !c.site.Whole() && c.count == c.site.Units && c.entry.Allocation != "global"
	})
	slices.SortStableFunc(all, func(a, b cut) int { return cmp.Compare(a.reader(), b.reader()) })
	return all, nil
}

// reader is the first operation that reads a site's units; −1 where the whole
// site goes.
func (c *cut) reader() int {
	if c.site.Whole() {
		return -1
	}
	return c.site.Consumers[0].Op
}

func mark(set map[int]bool, list []int) {
	for _, i := range list {
		set[i] = true
	}
}

// named reports whether a pattern means a site: its name, its block's number, or
// the name of a layer that writes its units.
func named(g *model.Graph, s *model.Site, pattern string) bool {
	if n, err := strconv.Atoi(pattern); err == nil {
		return s.Kind == model.BlockSite && s.Block == n
	}
	if ok, _ := path.Match(pattern, s.Name); ok {
		return true
	}
	if s.Kind != model.ChannelSite {
		return false
	}
	for i := range g.Ops {
		op := &g.Ops[i]
		reads := slices.ContainsFunc(s.Consumers, func(c model.Consumer) bool { return c.Op == i })
		writes := op.IsLayer() && !reads && slices.ContainsFunc(s.Slices, func(sl model.Slice) bool { return sl.Tensor == op.Weight })
		if ok, _ := path.Match(pattern, op.Name); ok && writes {
			return true
		}
	}
	return false
}

// unmatched says why a pattern means no site.
func (e *Remove) unmatched(g *model.Graph, sites []model.Site, pattern string) string {
	var names []string
	for _, s := range sites {
		if s.Kind == e.kind() {
			names = append(names, s.Name)
		}
	}
	what := map[model.SiteKind]string{
		model.BlockSite: "block", model.AttentionSite: "attention", model.MLPSite: "MLP", model.ChannelSite: "layer with channels",
		model.KVGroupSite: "attention", model.QueryHeadSite: "attention whose queries share keys",
	}[e.kind()]
	if why := e.refusal(g, pattern); why != nil {
		return why.Error()
	}
	reason := fmt.Sprintf("%q matches no %s of the model that could go", pattern, what)
	switch near := nearest(pattern, names); {
	case len(names) == 0:
		return reason + "; it has none"
	case near != "":
		return reason + fmt.Sprintf("; did you mean %q?", near)
	case len(names) > 6:
		names = append(append(names[:3:3], "…"), names[len(names)-2:]...)
	}
	return reason + fmt.Sprintf(" (there are %s)", strings.Join(names, ", "))
}

// refusal says why what a pattern names, and the model has, cannot go; nil where
// it has no such thing.
func (e *Remove) refusal(g *model.Graph, pattern string) *model.RemovalError {
	for i := range g.Ops {
		op := &g.Ops[i]
		name := op.Name
		switch e.kind() {
		case model.BlockSite:
			if name = pattern; op.Kind != model.Add || !strings.HasPrefix(op.Name, name+".") {
				continue
			}
		case model.ChannelSite:
			if !op.IsLayer() {
				continue
			}
		default:
			if op.Attention == nil {
				continue
			}
		}
		if ok, _ := path.Match(pattern, name); !ok {
			continue
		}
		var why *model.RemovalError
		if _, err := g.Site(e.kind(), name); errors.As(err, &why) {
			return why
		}
	}
	return nil
}

// removesOnData reports whether how much of the model stays depends on data.
func (r *Recipe) removesOnData() bool {
	return slices.ContainsFunc(r.Remove, func(e Remove) bool { return e.share() != nil && e.Allocation == "global" })
}

// sharesByValues reports whether how a rule's sparsity is shared out depends on
// the weights' values.
func (r *Recipe) sharesByValues() bool {
	for i := range r.Rules {
		if p, _, _ := r.Rules[i].steps(); p != nil {
			switch p.allocation().Method {
			case prune.Global, prune.LAMP, prune.OWL, prune.RateDistortion:
				return true
			}
		}
	}
	return false
}
