package pipeline

import (
	"context"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/record"
)

// Run compresses the model as found for the i-th size.
func (f *Found) Run(ctx context.Context, i int, o Options) (*record.Run, error) {
	rec := *f.Record
	rec.Chosen = i
	return runRecipe(ctx, f.Recipes[i], o, &rec)
}

// found returns the recipe with a rule for each choice in place of levels, and
// without the search. Its text has the values of flags too.
func (r *run) found(genes []gene, levels []int) (*Recipe, error) {
	recipe := *r.recipe
	recipe.Search, recipe.Rules = nil, nil
	recipe.Remove = slices.Clone(recipe.Remove)
	for i := range r.recipe.Rules {
		old := &r.recipe.Rules[i]
		if len(old.levels) == 0 {
			recipe.Rules = append(recipe.Rules, *old)
			continue
		}
		for k, l := range old.levels {
			var names []string
			for g := range genes {
				if genes[g].rule != i || levels[g] != k {
					continue
				}
				if l.drop != "" {
					recipe.Remove = append(recipe.Remove, dropped(genes[g].site))
					continue
				}
				for _, n := range genes[g].layers[k] {
					names = append(names, literal(r.plan.Layers[n].Name))
				}
			}
			if p, _, _ := sorted(l.steps); p == nil && len(names) > 0 {
				names = []string{strings.Join(names, "|")}
			}
			for _, name := range names { // a sparsity is shared out over a rule's layers
				recipe.Rules = append(recipe.Rules, Rule{Match: name, Steps: l.steps, Requantize: old.Requantize})
			}
		}
	}
	if !slices.ContainsFunc(recipe.Rules, func(rule Rule) bool { return len(rule.Steps) > 0 }) {
		recipe.Rules = nil // what is left stays as it is
	}
	text, err := recipe.TextIn(filepath.Dir(recipe.file))
	if err != nil {
		return nil, err
	}
	recipe.text = text
	if _, err := ParseRecipe([]byte(text), ""); err != nil {
		return nil, fmt.Errorf("the recipe that was found cannot be read (%w); please report this", err)
	}
	return &recipe, nil
}

// TextIn returns the recipe as YAML with paths relative to a folder that its file is
// to lie in, as its fields are now.
func (r *Recipe) TextIn(dir string) (string, error) {
	c := *r
	c.Calibration, c.Evaluate = copied(r.Calibration), copied(r.Evaluate)
	from, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for _, p := range c.paths() {
		if *p == "" {
			continue
		}
		to, err := filepath.Abs(*p)
		if err != nil {
			return "", err
		}
		if *p, err = filepath.Rel(from, to); err != nil {
			*p = to // on another drive
		}
		*p = filepath.ToSlash(*p)
	}
	text, err := yaml.Marshal(asYAML(reflect.ValueOf(c)))
	return string(text), err
}

// dropped is the entry that takes a site away.
func dropped(s *model.Site) Remove {
	switch s.Kind {
	case model.AttentionSite:
		return Remove{Attention: literal(s.Name)}
	case model.MLPSite:
		return Remove{MLP: literal(s.Name)}
	}
	return Remove{Blocks: []string{literal(s.Name)}}
}

// literal is the pattern that matches a name alone.
func literal(name string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(name)
}

// asYAML returns what a part of a recipe says, without what is left at its zero value.
func asYAML(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Pointer:
		return asYAML(v.Elem())
	case reflect.Struct:
		out := yaml.MapSlice{}
		t := v.Type()
		for i := range t.NumField() {
			key := t.Field(i).Tag.Get("yaml")
			if key == "" || v.Field(i).IsZero() {
				continue
			}
			out = append(out, yaml.MapItem{Key: key, Value: asYAML(v.Field(i))})
		}
		return out
	case reflect.Slice:
		out := make([]any, v.Len())
		for i := range out {
			out[i] = asYAML(v.Index(i))
		}
		return out
	}
	return v.Interface()
}
