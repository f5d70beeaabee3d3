package pipeline

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func levelsRecipe(rule, search string) string {
	return "version: 1\nrules: [{match: \"*\", " + rule + "}]\nsearch: {" + search + "}\n"
}

// TestLevels: what lists of a level mean.
func TestLevels(t *testing.T) {
	for rule, want := range map[string][]string{
		"levels: [{bits: [2, 3]}]":                                                       {"2 bits", "3 bits"},
		"levels: [{bits: [4], group_size: [0, 32]}]":                                     {"4 bits", "4 bits g32"},
		"levels: [{bits: [2, 4], sparsity: [0, 0.5]}]":                                   {"2 bits", "50 % pruned, 2 bits", "4 bits", "50 % pruned, 4 bits"},
		"levels: [{sparsity: [0.25]}, {pattern: ['2:4']}, {keep: true}]":                 {"25 % pruned", "2:4", "kept"},
		"levels: [{bits: [3], rank: [0, 4]}]":                                            {"3 bits", "3 bits, rank 4"},
		"levels: [{keep: true}, {drop: block}]":                                          {"kept", "dropped"},
		"steps: [{quantize: {method: gptq, symmetric: true}}], levels: [{bits: [3, 4]}]": {"3 bits symmetric", "4 bits symmetric"},
		"levels: [{bits: [3]}, {steps: [{quantize: {bits: 3, method: gptq}}]}]":          {"3 bits best", "3 bits gptq"},
		"steps: [{quantize: {bits: 4}}], levels: [{sparsity: [0.5]}, {steps: [{quantize: {format: nvfp4}}]}]": {
			"50 % pruned, 4 bits", "nvfp4 g16",
		},
	} {
		r, err := ParseRecipe([]byte(levelsRecipe(rule, "fit: 1KB")), "")
		if err != nil {
			t.Errorf("%s: %v", rule, err)
			continue
		}
		var got []string
		for _, l := range r.Rules[0].levels {
			got = append(got, l.name)
		}
		if rule == "steps: [{quantize: {bits: 4}}], levels: [{sparsity: [0.5]}, {steps: [{quantize: {format: nvfp4}}]}]" {
			got[1] = strings.TrimSuffix(got[1], " g16") + " g16" // the format has its own group
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: levels %q, want %q", rule, got, want)
		}
	}
}

// TestLevelsAreCopies: levels do not share their steps.
func TestLevelsAreCopies(t *testing.T) {
	r, err := ParseRecipe([]byte(levelsRecipe("steps: [{quantize: {method: gptq}}], levels: [{bits: [2, 3]}, {steps: [{quantize: {bits: 8}}]}]", "fit: 1KB")), "")
	if err != nil {
		t.Fatal(err)
	}
	var bits []int
	for _, l := range r.Rules[0].levels {
		bits = append(bits, l.steps[0].Quantize.Bits)
	}
	if !slices.Equal(bits, []int{2, 3, 8}) || r.Rules[0].Steps[0].Quantize.Bits != 0 {
		t.Errorf("bits %v, the rule's own %d", bits, r.Rules[0].Steps[0].Quantize.Bits)
	}
}

// TestSearchRefused: what is wrong with a search is said where it stands.
func TestSearchRefused(t *testing.T) {
	for _, c := range []struct{ rule, search, want string }{
		{"levels: [{bits: [2, 3]}]", "fit: 12 apples", "search.fit: size \"12 apples\""},
		{"levels: [{bits: [2, 3]}]", "fit: [1KB, 1KB]", "has 1KB twice"},
		{"levels: [{bits: [2, 3]}]", "fit: 120%", "unknown unit"},
		{"levels: [{bits: [2, 3]}]", "fit: -3 bits", "search.fit"},
		{"levels: [{bits: [2, 3]}]", "fit: 1KB, method: evopres", "did you mean \"evopress\"?"},
		{"levels: [{bits: [2, 3]}]", "fit: 1KB, top_k: 5", "is for fitness topk-kl"},
		{"levels: [{bits: [2, 3]}]", "fit: 1KB, stages: [{survivors: 2, samples: 8}]", "search.stages: leave 2 survivors"},
		{"levels: [{bits: [2, 3]}]", "fit: 1KB, preset: depht", "did you mean \"depth\"?"},
		{"levels: [{bits: [2, 2]}]", "fit: 1KB", "rules[0].levels[0]: has \"2 bits best\", which is there already"},
		{"levels: [{bits: [2]}, {bits: [1]}]", "fit: 1KB", "rules[0].levels[1].steps[0].quantize.bits"},
		{"levels: [{}]", "fit: 1KB", "rules[0].levels[0]: is empty"},
		{"levels: [{sparsity: [0]}]", "fit: 1KB", "does nothing to a layer"},
		{"levels: [{keep: true, bits: [2]}]", "fit: 1KB", "beside other keys"},
		{"levels: [{drop: head}]", "fit: 1KB", "\"head\" is not known"},
		{"levels: [{drop: block}, {drop: sublayer}]", "fit: 1KB", "is there twice"},
		{"levels: [{sparsity: [0.5], pattern: ['2:4']}]", "fit: 1KB", "stands beside sparsity"},
		{"levels: [{rank: [4]}]", "fit: 1KB", "has nothing to compensate"},
		{"steps: [{prune: {sparsity: 0.5, allocation: lamp}}], levels: [{bits: [4]}]", "fit: 1KB", "which the search does by itself"},
		{"steps: [{quantize: {method: nearest, awq: true, range: awq}}], levels: [{bits: [4]}]", "fit: 1KB", "awq"},
		{"steps: [{quantize: {bits: 4}}]", "fit: 1KB", "search: has nothing to choose"},
	} {
		_, err := ParseRecipe([]byte(levelsRecipe(c.rule, c.search)), "")
		var bad *RecipeError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %s: %v, want %q", c.rule, c.search, err, c.want)
		}
	}
	for step, want := range map[string]string{
		"{quantize: {bits: 4}}, {compensate: {budget: 2KB}}":            "rules[0].steps.compensate.budget: does not go with a search",
		"{quantize: {method: nearest, bits: 4, awq: true, range: awq}}": "rules[0].steps.quantize.awq: does not go with a search",
	} {
		_, err := ParseRecipe([]byte("version: 1\nrules: [{match: a, steps: ["+step+"]}, {match: \"*\", levels: [{bits: [2, 3]}]}]\nsearch: {fit: 1KB}\n"), "")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s beside levels: %v", step, err)
		}
	}
	_, err := ParseRecipe([]byte("version: 1\nrules: [{match: \"*\", levels: [{bits: [2, 3]}]}]\n"), "")
	if err == nil || !strings.Contains(err.Error(), "rules[0].levels: need a search") {
		t.Errorf("levels without a search: %v", err)
	}
}

// TestSizes: the three ways to write a size.
func TestSizes(t *testing.T) {
	for text, want := range map[string]size{
		"120MiB": {bytes: 120 << 20}, "97000": {bytes: 97000}, "25%": {ratio: 0.25}, "12.5 %": {ratio: 0.125},
		"3 bits": {bits: 3}, "2.25bits": {bits: 2.25}, "1 bit": {bits: 1},
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
}
