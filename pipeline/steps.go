package pipeline

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/internal/bytesize"
	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/lowrank"
	"github.com/fettle-dev/fettle/prune"
)

// Step is one thing to do to a layer. A layer's steps stand in the order prune,
// quantize, compensate.
type Step struct {
	Prune      *Prune      `yaml:"prune"`
	Quantize   *Quantize   `yaml:"quantize"`
	Compensate *Compensate `yaml:"compensate"`
}

// Prune asks for weights to be removed. The layers of a rule share its sparsity as
// the allocation says. Other fields are those of prune.Options.
type Prune struct {
	Method     string  `yaml:"method"` // admm (default), sparsegpt, saliency, wanda, magnitude
	Sparsity   float64 `yaml:"sparsity"`
	Pattern    string  `yaml:"pattern"`    // unstructured (default), N:M, block RxC
	Scope      string  `yaml:"scope"`      // of an unstructured pattern: row (default) or layer
	Allocation string  `yaml:"allocation"` // uniform (default), uniform+, erk, global, lamp, owl, rate-distortion
	OWL        *OWL    `yaml:"owl"`
	Samples    int     `yaml:"samples"` // rate-distortion: calibration samples whose outputs are compared

	Polish *bool `yaml:"polish"`
	Swaps  *int  `yaml:"swaps"`
	// Joint quantizes survivors in sparsegpt's own pass, so that it makes up for
	// their rounding too: with a quantize step of method gptq after it.
	Joint bool `yaml:"joint"`

	Align          *bool   `yaml:"align"`
	Residual       *bool   `yaml:"residual"`
	Damping        float64 `yaml:"damping"`
	BiasCorrection *bool   `yaml:"bias_correction"`
	Centre         *bool   `yaml:"centre"`
	ADMM           *ADMM   `yaml:"admm"`

	Layout string `yaml:"layout"` // smallest (default), dense, bitmask, pattern, columns
}

// OWL tunes that allocation.
type OWL struct {
	Threshold float64 `yaml:"threshold"`
	Lambda    float64 `yaml:"lambda"`
}

// ADMM tunes that method.
type ADMM struct {
	Preset     string  `yaml:"preset"` // published (default), fast: where the other keys begin
	Iterations int     `yaml:"iterations"`
	Steps      *int    `yaml:"steps"`
	Rho        float64 `yaml:"rho"`
}

// Compensate asks for a low-rank term. Fields are those of lowrank.Options.
type Compensate struct {
	Method       string `yaml:"method"` // eora (default), svd, scaled-svd
	Rank         int    `yaml:"rank"`
	Budget       string `yaml:"budget"`  // in place of rank: bytes of all factors of the rule's layers
	Factors      string `yaml:"factors"` // f16 (default), bf16, f32: type of the factors, or of their scales
	Bits         int    `yaml:"bits"`    // 8 or 4: factors as codes
	Alternations int    `yaml:"alternations"`
	Seed         uint64 `yaml:"seed"`
	Merge        bool   `yaml:"merge"` // add the term to the weight, which is stored dense then
	budget       int64
}

// The methods of prune steps, the default first.
var pruneMethods = []string{"admm", "sparsegpt", "saliency", "wanda", "magnitude"}

// checkSteps fills in defaults and returns the first fault of a rule's steps: where
// within the rule, and what.
func checkSteps(steps []Step) (where, reason string) {
	last := -1
	for i := range steps {
		s := &steps[i]
		at := fmt.Sprintf(".steps[%d]", i)
		kinds := []bool{s.Prune != nil, s.Quantize != nil, s.Compensate != nil}
		kind := slices.Index(kinds, true)
		switch {
		case kind < 0:
			return at, "is empty; say quantize: {method: …, bits: …}, prune: {…} or compensate: {…}"
		case slices.Contains(kinds[kind+1:], true):
			return at, "has two kinds of step in one; begin a new list entry for the second"
		case kind <= last:
			return at, "comes too late; a layer's steps are prune, quantize, compensate, in this order and each once"
		}
		last = kind
		switch {
		case s.Prune != nil:
			where, reason = s.Prune.check(steps[i+1:])
			where = at + ".prune" + where
		case s.Quantize != nil:
			where, reason = s.Quantize.check()
			if reason == "" && s.Quantize.AWQ && len(steps) > 1 {
				where, reason = ".awq", "does not go with other steps, whose layers would no longer be those that the scales were found for; remove it"
			}
			where = at + ".quantize" + where
		default:
			if i == 0 {
				return at + ".compensate", "has nothing to compensate; let a prune or quantize step come before it"
			}
			where, reason = s.Compensate.check(steps[:i])
			where = at + ".compensate" + where
		}
		if reason != "" {
			return where, reason
		}
	}
	return "", ""
}

func (s *Prune) check(after []Step) (where, reason string) {
	if reason := oneOf(&s.Method, pruneMethods...); reason != "" {
		return ".method", reason
	}
	if s.Pattern == "" {
		s.Pattern = "unstructured"
	}
	pattern, err := prune.ParsePattern(s.Pattern)
	if err != nil {
		var bad *prune.PatternError
		if errors.As(err, &bad) {
			return ".pattern", fmt.Sprintf("is %q, want %s", s.Pattern, bad.Allowed)
		}
		return ".pattern", err.Error()
	}
	if s.Scope == "" && pattern.Kind == prune.Unstructured {
		s.Scope = "row"
	}
	for _, c := range []struct {
		key     string
		value   *string
		allowed []string
	}{
		{".scope", &s.Scope, []string{"layer", "row"}},
		{".allocation", &s.Allocation, []string{"uniform", "uniform+", "erk", "global", "lamp", "owl", "rate-distortion"}},
		{".layout", &s.Layout, []string{"smallest", "dense", "bitmask", "pattern", "columns"}},
	} {
		if reason := oneOf(c.value, c.allowed...); reason != "" {
			return c.key, reason
		}
	}
	switch {
	case pattern.Kind != prune.NofM && s.Sparsity == 0:
		return ".sparsity", "is missing; give the share of weights to remove, such as 0.5"
	case s.OWL != nil && s.Allocation != "owl":
		return ".owl", fmt.Sprintf("tunes an allocation that %s is not; remove it", s.Allocation)
	case s.Samples != 0 && s.Allocation != "rate-distortion":
		return ".samples", fmt.Sprintf("is for allocation rate-distortion; remove it from %s", s.Allocation)
	case s.Samples < 0:
		return ".samples", "is negative; give a count"
	case s.ADMM != nil && oneOf(&s.ADMM.Preset, "published", "fast") != "":
		return ".admm.preset", oneOf(&s.ADMM.Preset, "published", "fast")
	case s.ADMM != nil && s.Method != "admm":
		return ".admm", fmt.Sprintf("tunes a method that %s does not use; remove it", s.Method)
	case s.Layout == "pattern" && pattern.Kind != prune.NofM:
		return ".layout", "is pattern, which only N:M patterns have"
	case s.Joint && s.Method != "sparsegpt":
		return ".joint", fmt.Sprintf("needs method sparsegpt, whose pass rounds survivors; %s has none", s.Method)
	case s.Joint && (len(after) == 0 || after[0].Quantize == nil || after[0].Quantize.Method != "gptq"):
		return ".joint", "needs a step quantize: {method: gptq, …} after it"
	case s.Joint && after[0].Quantize.ActOrder:
		return ".joint", "rounds inputs in the order of the pattern; remove act_order from the quantize step"
	case s.Joint && s.options().Polish:
		return ".polish", "moves survivors that joint has rounded; set polish: false"
	}
	a := s.allocation()
	var badAllocation *prune.AllocationError
	if err := firstError(a.Check(), a.CheckPattern(pattern)); errors.As(err, &badAllocation) {
		return optionKey(strings.Replace(badAllocation.Field, "Method", "Allocation", 1)), fmt.Sprintf("is %v, want %s", badAllocation.Value, badAllocation.Allowed)
	}
	err = s.options().Check()
	var bad *prune.OptionError
	var badPattern *prune.PatternError
	switch {
	case errors.As(err, &bad):
		return optionKey(bad.Field), fmt.Sprintf("is %v, want %s", bad.Value, bad.Allowed)
	case errors.As(err, &badPattern):
		return ".pattern", fmt.Sprintf("is %q, want %s", badPattern.Pattern, badPattern.Allowed)
	}
	return "", ""
}

// firstError returns the first error that is not nil.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Prune) pattern() prune.Pattern {
	p, _ := prune.ParsePattern(s.Pattern) // checked
	return p
}

// allocation resolves what the rule's layers share.
func (s *Prune) allocation() prune.AllocationOptions {
	a := prune.AllocationOptions{Method: prune.Allocation(s.Allocation), Sparsity: s.Sparsity}
	if p := s.pattern(); p.Kind == prune.NofM && s.Sparsity == 0 {
		a.Sparsity = float64(p.M-p.N) / float64(p.M)
	}
	if s.OWL != nil {
		a.OWL = prune.OWLOptions{Threshold: s.OWL.Threshold, Lambda: s.OWL.Lambda}
	}
	return a.WithDefaults()
}

// swapRounds is Swaps where a recipe does not say: on the last 200 calibration
// documents of stories260k at half, and on the last 1,017 training images of
// ResNet-20 at 80 %, four rounds took a fortieth and a tenth off.
const swapRounds = 4

// options resolves what was asked for. ADMM and SparseGPT align unless told not
// to; ADMM takes all that lowers the error.
func (s *Prune) options() prune.Options {
	m := prune.Method(s.Method)
	o := prune.Options{Method: m, Pattern: s.pattern(), Scope: prune.Scope(s.Scope), Damping: s.Damping}
	full := m == prune.ByADMM
	o.Align = or(s.Align, m == prune.ByADMM || m == prune.BySparseGPT)
	o.Polish = or(s.Polish, full)
	o.Residual = or(s.Residual, o.Align && full)
	o.BiasCorrection = or(s.BiasCorrection, full)
	o.Centre = or(s.Centre, full && o.BiasCorrection)
	switch {
	case s.Swaps != nil:
		o.Swaps = *s.Swaps
	case full && o.Polish && o.Pattern.Kind != prune.Blocks:
		o.Swaps = swapRounds
	}
	if a := s.ADMM; a != nil {
		o.ADMM = prune.DefaultADMM()
		if a.Preset == "fast" {
			o.ADMM = prune.FastADMM()
		}
		if a.Iterations != 0 {
			o.ADMM.Iterations = a.Iterations
			o.ADMM.Steps = a.Iterations * 3 / 4
		}
		if a.Steps != nil {
			o.ADMM.Steps = *a.Steps
		}
		if a.Rho != 0 {
			o.ADMM.Rho = a.Rho
		}
	}
	return o.WithDefaults()
}

func (s *Compensate) check(before []Step) (where, reason string) {
	if reason := oneOf(&s.Method, "eora", "svd", "scaled-svd"); reason != "" {
		return ".method", reason
	}
	if reason := oneOf(&s.Factors, "f16", "bf16", "f32"); reason != "" {
		return ".factors", reason
	}
	if s.Budget != "" {
		var err error
		if s.budget, err = bytesize.Parse(s.Budget); err != nil {
			return ".budget", err.Error()
		}
	}
	quantized := slices.ContainsFunc(before, func(b Step) bool { return b.Quantize != nil })
	switch {
	case s.Merge && quantized:
		return ".merge", "adds the term to the weight, which is codes here; remove it, or the quantize step"
	case s.Merge && before[0].Prune.Layout != "dense" && before[0].Prune.Layout != "smallest":
		return ".merge", "fills the places that were pruned; set layout: dense in the prune step"
	case s.Merge && s.Budget != "":
		return ".budget", "is for factors that are stored, and merge stores none; give a rank"
	case s.Alternations > 0 && before[0].Prune != nil && before[0].Prune.Joint:
		return ".alternations", "does not go with joint"
	}
	var bad *lowrank.OptionError
	if err := s.options().Check(); errors.As(err, &bad) {
		return optionKey(strings.Replace(bad.Field, "FactorType", "Factors", 1)), fmt.Sprintf("is %v, want %s", bad.Value, bad.Allowed)
	}
	return "", ""
}

func (s *Compensate) options() lowrank.Options {
	types := map[string]dtype.DType{"f16": dtype.F16, "bf16": dtype.BF16, "f32": dtype.F32}
	return lowrank.Options{
		Method: lowrank.Method(s.Method), Rank: s.Rank, Budget: s.budget, FactorType: types[s.Factors], Bits: s.Bits,
		Alternations: s.Alternations, Seed: s.Seed,
	}.WithDefaults()
}

// steps are those of a rule, each nil where there is none.
func (rule *Rule) steps() (*Prune, *Quantize, *Compensate) { return sorted(rule.Steps) }

// sorted tells steps by what they are.
func sorted(steps []Step) (p *Prune, q *Quantize, c *Compensate) {
	for _, s := range steps {
		switch {
		case s.Prune != nil:
			p = s.Prune
		case s.Quantize != nil:
			q = s.Quantize
		default:
			c = s.Compensate
		}
	}
	return p, q, c
}
