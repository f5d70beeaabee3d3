package pipeline

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/fettle-dev/fettle/internal/bytesize"
	"github.com/fettle-dev/fettle/search"
)

// Search lets fettle choose the levels of layers, by measuring the whole model, so
// that it fits a size.
type Search struct {
	// Fit is one size or a list of them: bytes of the weight files (120MiB), a share
	// of the source's (25%), or average bits of all layers that rules match, scales,
	// masks and factors included (3 bits).
	Fit Sizes `yaml:"fit"`

	// Data are what candidates are measured on; default the calibration data, which
	// levels have been fitted to.
	Data *Data `yaml:"data"`

	Method string `yaml:"method"` // evopress (default), dp, greedy, random, uniform
	Start  string `yaml:"start"`  // of evopress: best (default) of these: dp, greedy, random, uniform
	Errors string `yaml:"errors"` // of dp and greedy: output (default), layer

	Fitness string `yaml:"fitness"` // kl (default), topk-kl, loss
	TopK    int    `yaml:"top_k"`

	// Preset has the published numbers; those beside it come before them. Default is
	// what fits the calibration data.
	Preset      string        `yaml:"preset"` // quantization, sparsity, depth, super-fast
	Generations int           `yaml:"generations"`
	Offspring   int           `yaml:"offspring"`
	Stages      []SearchStage `yaml:"stages"`
	Random      int           `yaml:"random"`    // candidates beside the start
	Samples     int           `yaml:"samples"`   // that errors and results are measured on; default up to 131,072 tokens or 4,096 images
	Finalists   int           `yaml:"finalists"` // that are compressed in order to choose among; default 3, with sequential: none 1
	Switch      string        `yaml:"switch"`    // between which layers: any (default), size, kind

	// Genes says what gets one level: fused (default), layers that runtimes join
	// into one; or each layer.
	Genes string `yaml:"genes"`
	Seed  uint64 `yaml:"seed"`
}

// SearchStage is a round of selection: tokens or images, and how many candidates go on.
type SearchStage struct {
	Survivors int `yaml:"survivors"`
	Samples   int `yaml:"samples"`
}

// Sizes are one or more sizes.
type Sizes []string

// UnmarshalYAML reads one size or a list.
func (s *Sizes) UnmarshalYAML(read func(any) error) error {
	var many []string
	if err := read(&many); err == nil {
		*s = many
		return nil
	}
	var one string
	if err := read(&one); err != nil {
		return err
	}
	*s = Sizes{one}
	return nil
}

var _ yaml.InterfaceUnmarshaler = (*Sizes)(nil)

// size is a parsed Fit: one of its fields is set.
type size struct {
	bytes int64
	ratio float64
	bits  float64
}

// checkFit refuses a search without a size, which a recipe may leave to the command
// line.
func (r *Recipe) checkFit() error {
	if r.Search == nil {
		return &RecipeError{File: r.file, Where: "search", Reason: "is missing; say how large the model may be: search: {fit: 120KB}"}
	}
	if len(r.Search.Fit) == 0 {
		return &RecipeError{File: r.file, Where: "search.fit", Reason: "is missing; say how large the model may be, such as 120KB, 25% or 3 bits, there or with --fit, or give a list of sizes"}
	}
	return nil
}

// parseSize reads a size as Search.Fit has it.
func parseSize(text string) (size, error) {
	number := func(suffix string) (float64, bool) {
		t, ok := strings.CutSuffix(strings.TrimSpace(text), suffix)
		if !ok {
			return 0, false
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(t), 64)
		return v, err == nil && v > 0 && !math.IsInf(v, 0)
	}
	for _, suffix := range []string{"bits", "bit"} {
		if v, ok := number(suffix); ok && v <= 64 {
			return size{bits: v}, nil
		}
	}
	if v, ok := number("%"); ok && v <= 100 {
		return size{ratio: v / 100}, nil
	}
	n, err := bytesize.Parse(text)
	if err != nil {
		return size{}, fmt.Errorf("%w; or as a share of the source, 25%%, or average bits, 3 bits", err)
	}
	return size{bytes: n}, nil
}

// searchMethods and their like: the default first.
var (
	searchMethods = []string{"evopress", "dp", "greedy", "random", "uniform"}
	searchStarts  = []string{"best", "dp", "greedy", "random", "uniform"}
	searchFitness = []string{"kl", "topk-kl", "loss"}
	searchPresets = []string{"quantization", "sparsity", "depth", "super-fast"}
)

func (s *Search) check() (where, reason string) {
	for i, text := range s.Fit {
		if _, err := parseSize(text); err != nil {
			return ".fit", err.Error()
		}
		if slices.Contains(s.Fit[:i], text) {
			return ".fit", fmt.Sprintf("has %s twice", text)
		}
	}
	for _, c := range []struct {
		key     string
		value   *string
		allowed []string
	}{
		{".method", &s.Method, searchMethods},
		{".start", &s.Start, searchStarts},
		{".errors", &s.Errors, []string{"output", "layer"}},
		{".fitness", &s.Fitness, searchFitness},
		{".switch", &s.Switch, []string{"any", "size", "kind"}},
		{".genes", &s.Genes, []string{"fused", "layer"}},
	} {
		if reason := oneOf(c.value, c.allowed...); reason != "" {
			return c.key, reason
		}
	}
	if s.Preset != "" {
		if reason := oneOf(&s.Preset, searchPresets...); reason != "" {
			return ".preset", reason
		}
	}
	if d := s.Data; d != nil {
		if where, reason := d.check(); reason != "" {
			return strings.TrimSuffix(".data."+where, "."), reason
		}
		if d.Text.Stride != 0 || d.Targets != 0 {
			return ".data", "has text.stride or targets, which are for evaluate alone"
		}
	}
	switch {
	case s.TopK != 0 && s.Fitness != "topk-kl":
		return ".top_k", fmt.Sprintf("is for fitness topk-kl; remove it from %s", s.Fitness)
	case s.TopK < 0 || s.TopK == 1:
		return ".top_k", "must be at least 2"
	case s.Samples < 0:
		return ".samples", "is negative; give a count"
	case s.Generations < 0 || s.Offspring < 0 || s.Random < 0 || s.Finalists < 0:
		return "", "has a negative count among generations, offspring, random and finalists"
	}
	var bad *search.OptionError
	if err := s.options(64, 2).Check(); errors.As(err, &bad) {
		if strings.Contains(bad.Field, "last stage") {
			return ".stages", fmt.Sprintf("leave %v survivors at the end, want %s", bad.Value, bad.Allowed)
		}
		return "." + strings.ToLower(bad.Field), fmt.Sprintf("is %v, want %s", bad.Value, bad.Allowed)
	}
	return "", ""
}

// SetFit makes these the sizes of a recipe's search.
func (r *Recipe) SetFit(sizes ...string) error {
	if r.Search == nil {
		return &RecipeError{File: r.file, Where: "search", Reason: "is missing, and levels for it to choose among; a rule has them in place of plain steps: levels: [{bits: [2, 3, 4]}]"}
	}
	r.Search.Fit = sizes
	if where, reason := r.checkSearch(); reason != "" {
		return &RecipeError{File: r.file, Where: where, Reason: reason}
	}
	return nil
}

// options resolves the search's numbers for so many samples and genes.
func (s *Search) options(samples, genes int) search.Options {
	var o search.Options
	switch s.Preset {
	case "quantization":
		o = search.Quantization()
	case "sparsity":
		o = search.Sparsity()
	case "depth":
		o = search.Depth(genes, max(1, genes/4))
	case "super-fast":
		o = search.SuperFast()
	default:
		o = fitted(samples, genes)
	}
	o.Seed = s.Seed
	if s.Generations > 0 {
		o.Generations = s.Generations
	}
	if s.Offspring > 0 {
		o.Offspring = s.Offspring
	}
	if len(s.Stages) > 0 {
		o.Stages = nil
		for _, stage := range s.Stages {
			o.Stages = append(o.Stages, search.Stage(stage))
		}
	}
	if s.Random > 0 {
		o.Random = s.Random
	}
	o.RandomSamples = 0
	if o.Random > 0 {
		o.RandomSamples = o.Stages[0].Samples
	}
	return o
}

// fitted returns options for so many samples: sixteen mutants on a sixteenth of
// them, of which four go on to a quarter, and four generations for each gene up to
// 200.
func fitted(samples, genes int) search.Options {
	return search.Options{
		Generations: min(max(4*genes, 40), 200), Offspring: 16,
		Stages: []search.Stage{{Survivors: 4, Samples: max(1, samples/16)}, {Survivors: 1, Samples: max(1, samples/4)}},
	}
}
