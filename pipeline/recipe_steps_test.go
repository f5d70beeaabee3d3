package pipeline

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/lowrank"
	"github.com/fettle-dev/fettle/prune"
)

func stepsRecipe(steps string) string {
	return "version: 1\nrules: [{match: \"*\", steps: [" + steps + "]}]\n"
}

// TestStepsRecipe: what steps mean, with their defaults.
func TestStepsRecipe(t *testing.T) {
	admm := prune.DefaultADMM()
	slow := admm
	slow.Iterations, slow.Steps = 40, 30
	fast := prune.FastADMM()
	fast.Iterations, fast.Steps = 8, 7
	for steps, want := range map[string]prune.Options{
		"{prune: {sparsity: 0.7}}": {
			Method: prune.ByADMM, Scope: prune.PerRow, Align: true, Residual: true, Damping: 0.01, Polish: true, Swaps: 4, BiasCorrection: true, Centre: true, ADMM: admm,
		},
		"{prune: {pattern: '2:4'}}": {
			Method: prune.ByADMM, Pattern: prune.Pattern{Kind: prune.NofM, N: 2, M: 4}, Scope: prune.PerLayer, Align: true, Residual: true, Damping: 0.01,
			Polish: true, Swaps: 4, BiasCorrection: true, Centre: true, ADMM: admm,
		},
		"{prune: {sparsity: 0.5, polish: false, align: false, bias_correction: false, admm: {iterations: 40}}}": {
			Method: prune.ByADMM, Scope: prune.PerRow, Damping: 0.01, ADMM: slow,
		},
		"{prune: {sparsity: 0.5, polish: false, align: false, bias_correction: false, admm: {preset: fast, iterations: 8, steps: 7}}}": {
			Method: prune.ByADMM, Scope: prune.PerRow, Damping: 0.01, ADMM: fast,
		},
		"{prune: {method: sparsegpt, sparsity: 0.5}}":                               {Method: prune.BySparseGPT, Scope: prune.PerRow, Align: true, Damping: 0.01},
		"{prune: {method: wanda, sparsity: 0.5}}":                                   {Method: prune.ByWanda, Scope: prune.PerRow},
		"{prune: {method: wanda, sparsity: 0.5, polish: true, swaps: 4}}":           {Method: prune.ByWanda, Scope: prune.PerRow, Polish: true, Swaps: 4, Damping: 0.01},
		"{prune: {method: magnitude, sparsity: 0.5, scope: layer}}":                 {Method: prune.ByMagnitude, Scope: prune.PerLayer},
		"{prune: {method: magnitude, sparsity: 0.5, pattern: block 4x4}}":           {Method: prune.ByMagnitude, Scope: prune.PerLayer, Pattern: prune.Pattern{Kind: prune.Blocks, Rows: 4, Cols: 4}},
		"{prune: {method: sparsegpt, sparsity: 0.5, align: false, damping: 0.002}}": {Method: prune.BySparseGPT, Scope: prune.PerRow, Damping: 0.002},
	} {
		r, err := ParseRecipe([]byte(stepsRecipe(steps)), "")
		if err != nil {
			t.Fatalf("%s: %v", steps, err)
		}
		p, _, _ := r.Rules[0].steps()
		if got := fmt.Sprintf("%+v", p.options()); got != fmt.Sprintf("%+v", want) {
			t.Errorf("%s:\n got %s\nwant %+v", steps, got, want)
		}
	}
	for steps, want := range map[string]lowrank.Options{
		"rank: 8": {Method: lowrank.EoRA, Rank: 8, FactorType: dtype.F16},
		"budget: 2MB, factors: bf16, bits: 4, seed: 3":                {Method: lowrank.EoRA, Budget: 2e6, FactorType: dtype.BF16, Bits: 4, Seed: 3},
		"method: scaled-svd, rank: 1, factors: f32, alternations: 50": {Method: lowrank.ScaledSVD, Rank: 1, FactorType: dtype.F32, Alternations: 50},
	} {
		r, err := ParseRecipe([]byte(stepsRecipe("{quantize: {bits: 4}}, {compensate: {"+steps+"}}")), "")
		if err != nil {
			t.Fatalf("%s: %v", steps, err)
		}
		if _, _, c := r.Rules[0].steps(); c.options() != want {
			t.Errorf("%s:\n got %+v\nwant %+v", steps, c.options(), want)
		}
	}
}

// TestStepsRecipeErrors: each fault of a rule's steps is named with its place and
// with what would be right.
func TestStepsRecipeErrors(t *testing.T) {
	for steps, want := range map[string]string{
		// Order and kinds.
		"{}": `rules[0].steps[0]: is empty; say quantize: {method: …, bits: …}, prune: {…} or compensate: {…}`,
		"{quantize: {bits: 4}}, {prune: {sparsity: 0.5}}":                       `rules[0].steps[1]: comes too late; a layer's steps are prune, quantize, compensate, in this order and each once`,
		"{prune: {sparsity: 0.5}}, {prune: {sparsity: 0.5}}":                    `rules[0].steps[1]: comes too late`,
		"{quantize: {bits: 4}}, {compensate: {rank: 1}}, {quantize: {bits: 4}}": `rules[0].steps[2]: comes too late`,
		"{prune: {sparsity: 0.5}, quantize: {bits: 4}}":                         `rules[0].steps[0]: has two kinds of step in one; begin a new list entry for the second`,
		"{compensate: {rank: 1}}":                                               `rules[0].steps[0].compensate: has nothing to compensate; let a prune or quantize step come before it`,
		"{quantise: {bits: 4}}":                                                 `unknown key "quantise"; did you mean "quantize"?`,
		"{prune: {sparsity: 0.5}}, {quantize: {bits: 4, awq: true}}":            `rules[0].steps[1].quantize.awq: does not go with other steps`,
		"{quantize: {bits: 4, awq: true}}, {compensate: {rank: 1}}":             `rules[0].steps[0].quantize.awq: does not go with other steps`,
		// Pruning.
		"{prune: {}}":                                                        `steps[0].prune.sparsity: is missing; give the share of weights to remove, such as 0.5`,
		"{prune: {sparsty: 0.5}}":                                            `steps[0].prune: unknown key "sparsty"; did you mean "sparsity"?`,
		"{prune: {sparsity: half}}":                                          `"half" is not a number`,
		"{prune: {sparsity: 1}}":                                             `steps[0].prune.sparsity: is 1, want a share from 0 up to, not including, 1`,
		"{prune: {sparsity: -0.1}}":                                          `steps[0].prune.sparsity: is -0.1, want a share`,
		"{prune: {sparsity: .nan}}":                                          `steps[0].prune.sparsity: is NaN, want a share`,
		"{prune: {sparsity: 0.5, method: wonda}}":                            `steps[0].prune.method: "wonda" is not known; did you mean "wanda"? (one of admm, sparsegpt, saliency, wanda, magnitude)`,
		"{prune: {sparsity: 0.5, pattern: 4:2}}":                             `steps[0].prune.pattern: is "4:2", want 1 ≤ N < M`,
		"{prune: {sparsity: 0.5, pattern: diagonal}}":                        `steps[0].prune.pattern: is "diagonal", want "unstructured", N:M as in "2:4", or "block RxC" as in "block 4x4"`,
		"{prune: {sparsity: 0.5, pattern: block 1x1}}":                       `steps[0].prune.pattern: is "block 1x1", want unstructured`,
		"{prune: {sparsity: 0.6, pattern: '2:4'}}":                           `steps[0].prune.sparsity: is 0.6, want 0.5, or 0, with pattern 2:4`,
		"{prune: {pattern: '2:4', allocation: erk}}":                         `steps[0].prune.allocation: is "erk", want uniform with pattern 2:4, which prunes each layer alike`,
		"{prune: {pattern: '2:4', scope: row}}":                              `steps[0].prune.pattern: is "2:4 per row", want scope layer unless the pattern is unstructured`,
		"{prune: {sparsity: 0.5, scope: column}}":                            `steps[0].prune.scope: "column" is not known (one of layer, row)`,
		"{prune: {sparsity: 0.5, allocation: lampp}}":                        `steps[0].prune.allocation: "lampp" is not known; did you mean "lamp"?`,
		"{prune: {sparsity: 0.5, layout: pattern}}":                          `steps[0].prune.layout: is pattern, which only N:M patterns have`,
		"{prune: {sparsity: 0.5, layout: csr}}":                              `steps[0].prune.layout: "csr" is not known`,
		"{prune: {sparsity: 0.5, owl: {lambda: 0.1}}}":                       `steps[0].prune.owl: tunes an allocation that uniform is not; remove it`,
		"{prune: {sparsity: 0.5, allocation: owl, owl: {lambda: 2}}}":        `steps[0].prune.owl.lambda: is 2, want a share between 0 and 1`,
		"{prune: {sparsity: 0.5, allocation: owl, owl: {lamda: 0.1}}}":       `steps[0].prune.owl: unknown key "lamda"; did you mean "lambda"?`,
		"{prune: {sparsity: 0.5, samples: 5}}":                               `steps[0].prune.samples: is for allocation rate-distortion; remove it from uniform`,
		"{prune: {sparsity: 0.5, allocation: rate-distortion, samples: -1}}": `steps[0].prune.samples: is negative; give a count`,
		"{prune: {sparsity: 0.5, method: wanda, admm: {rho: 1}}}":            `steps[0].prune.admm: tunes a method that wanda does not use; remove it`,
		"{prune: {sparsity: 0.5, admm: {preset: fest}}}":                     `steps[0].prune.admm.preset: "fest" is not known; did you mean "fast"? (one of published, fast)`,
		"{prune: {sparsity: 0.5, admm: {rho: -1}}}":                          `steps[0].prune.admm.rho: is -1, want a positive number up to 1e6`,
		"{prune: {sparsity: 0.5, admm: {iterations: 5, steps: 7}}}":          `steps[0].prune.admm.iterations: is 5, want 1 to 1000000, and at least the steps less one`,
		"{prune: {sparsity: 0.5, method: wanda, damping: 0.1}}":              `steps[0].prune.damping: is 0.1, want 0 for wanda without align and polish, which does not use it`,
		"{prune: {sparsity: 0.5, method: wanda, swaps: 2}}":                  `steps[0].prune.swaps: is 2, want 0 without polish`,
		"{prune: {sparsity: 0.5, pattern: block 2x2, swaps: 2}}":             `steps[0].prune.swaps: is 2, want 0 for blocks, which are not swapped`,
		"{prune: {sparsity: 0.5, align: false, residual: true}}":             `steps[0].prune.residual: is true, want false without align`,
		"{prune: {sparsity: 0.5, method: sparsegpt, centre: true}}":          `steps[0].prune.centre: is true, want false without bias correction`,
		// Joint.
		"{prune: {sparsity: 0.5, joint: true}}":                                                                                                   `steps[0].prune.joint: needs method sparsegpt, whose pass rounds survivors; admm has none`,
		"{prune: {sparsity: 0.5, method: sparsegpt, joint: true}}":                                                                                `steps[0].prune.joint: needs a step quantize: {method: gptq, …} after it`,
		"{prune: {sparsity: 0.5, method: sparsegpt, joint: true}}, {quantize: {bits: 4}}":                                                         `steps[0].prune.joint: needs a step quantize: {method: gptq, …} after it`,
		"{prune: {sparsity: 0.5, method: sparsegpt, joint: true}}, {compensate: {rank: 1}}":                                                       `steps[0].prune.joint: needs a step quantize: {method: gptq, …} after it`,
		"{prune: {sparsity: 0.5, method: sparsegpt, joint: true, polish: true}}, {quantize: {method: gptq, bits: 4}}":                             `steps[0].prune.polish: moves survivors that joint has rounded; set polish: false`,
		"{prune: {sparsity: 0.5, method: sparsegpt, joint: true}}, {quantize: {method: gptq, bits: 4, act_order: true}}":                          `steps[0].prune.joint: rounds inputs in the order of the pattern; remove act_order from the quantize step`,
		"{prune: {sparsity: 0.5, method: sparsegpt, joint: true}}, {quantize: {method: gptq, bits: 4}}, {compensate: {rank: 1, alternations: 1}}": `steps[2].compensate.alternations: does not go with joint`,
		// Compensation.
		"{quantize: {bits: 4}}, {compensate: {}}":                                         `steps[1].compensate.rank: is 0, want at least 1, or a budget in its place`,
		"{quantize: {bits: 4}}, {compensate: {rank: -1}}":                                 `steps[1].compensate.rank: is -1, want at least 1`,
		"{quantize: {bits: 4}}, {compensate: {rank: 4, budget: 1MB}}":                     `steps[1].compensate.rank: is 4, want nothing with a budget, which gives each layer its rank`,
		"{quantize: {bits: 4}}, {compensate: {budget: 5XB}}":                              `steps[1].compensate.budget: size "5XB": unknown unit "XB"`,
		"{quantize: {bits: 4}}, {compensate: {budget: 0}}":                                `steps[1].compensate.budget: size "0": must be more than 0`,
		"{quantize: {bits: 4}}, {compensate: {rank: 1, method: eroa}}":                    `steps[1].compensate.method: "eroa" is not known; did you mean "eora"?`,
		"{quantize: {bits: 4}}, {compensate: {rank: 1, factors: f64}}":                    `steps[1].compensate.factors: "f64" is not known`,
		"{quantize: {bits: 4}}, {compensate: {rank: 1, bits: 3}}":                         `steps[1].compensate.bits: is 3, want 4 or 8, or 0 for factors of values`,
		"{quantize: {bits: 4}}, {compensate: {rank: 1, alternations: 101}}":               `steps[1].compensate.alternations: is 101, want 0 to 100`,
		"{quantize: {bits: 4}}, {compensate: {rank: 1, merge: true}}":                     `steps[1].compensate.merge: adds the term to the weight, which is codes here`,
		"{prune: {sparsity: 0.5, layout: bitmask}}, {compensate: {rank: 1, merge: true}}": `steps[1].compensate.merge: fills the places that were pruned; set layout: dense in the prune step`,
		"{prune: {sparsity: 0.5}}, {compensate: {budget: 1KB, merge: true}}":              `steps[1].compensate.budget: is for factors that are stored, and merge stores none; give a rank`,
		"{quantize: {bits: 4}}, {compensate: {rank: 1, alternation: 1}}":                  `steps[1].compensate: unknown key "alternation"; did you mean "alternations"?`,
	} {
		_, err := ParseRecipe([]byte(stepsRecipe(steps)), "r.yaml")
		var re *RecipeError
		if !errors.As(err, &re) || !strings.HasPrefix(err.Error(), "r.yaml:2: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n got %v\nwant %s", steps, err, want)
		}
	}
}
