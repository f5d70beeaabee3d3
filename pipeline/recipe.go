package pipeline

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/fettle-dev/fettle/internal/bytesize"
	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/quantize"
)

// RecipeVersion is the version of recipes that this fettle reads.
const RecipeVersion = 1

// Recipe says what to do with a model. Its YAML form is strict: an unknown key
// or value is an error. Paths in a recipe are relative to the recipe's folder.
type Recipe struct {
	Version     int      `yaml:"version"`
	Model       Model    `yaml:"model"`
	Calibration *Data    `yaml:"calibration"`
	Moments     string   `yaml:"moments"`    // in place of calibration: a file of them, see captured
	Sequential  string   `yaml:"sequential"` // value (default) or none
	Remove      []Remove `yaml:"remove"`     // before the rules
	Rules       []Rule   `yaml:"rules"`
	Experts     Experts  `yaml:"experts"`
	Search      *Search  `yaml:"search"`
	OnFallback  string   `yaml:"on_fallback"` // fail, warn (default) or allow
	Output      Output   `yaml:"output"`
	Evaluate    *Data    `yaml:"evaluate"`
	file        string   // path as given, for messages; may be empty
	text        string   // the YAML, whole
	lines       *document
}

// Model names the checkpoint and says what its tensors cannot.
type Model struct {
	Path         string `yaml:"path"`
	Architecture string `yaml:"architecture"` // "" recognises it from names and shapes
	Activation   string `yaml:"activation"`   // of an mlp
	Input        Input  `yaml:"input"`
	Network      []Node `yaml:"network"` // of a network that names cannot tell
}

// Input is what the model expects of its samples.
type Input struct {
	Shape []int     `yaml:"shape"` // channels, height, width
	Mean  []float32 `yaml:"mean"`  // of values in 0…1, one per channel
	Std   []float32 `yaml:"std"`
}

// Data is a set of samples: labelled images, or text or token ids for a
// language model, whose samples are documents.
type Data struct {
	Path    string `yaml:"data"`
	Format  string `yaml:"format"`
	Labels  string `yaml:"labels"` // idx: the labels file, when its name does not follow from the images'
	Subset  []int  `yaml:"subset"` // half-open range of the file's samples; default all
	Samples int    `yaml:"samples"`
	Seed    *int64 `yaml:"seed"` // draws Samples of the subset at random; default: the first ones
	Text    Text   `yaml:"text"`

	// Targets, of a language model's evaluation, keeps that many of the original
	// model's most likely tokens at each place in the cache, so that it need not
	// run again; KL is then known between two bounds. 0 runs it each time.
	Targets int `yaml:"targets"`
}

// Text says how documents become sequences of token ids. Its fields are those
// of dataset.TextOptions.
type Text struct {
	Field     string  `yaml:"field"`
	Separator string  `yaml:"separator"`
	Lengths   string  `yaml:"lengths"`
	MinChars  int     `yaml:"min_chars"`
	Strip     bool    `yaml:"strip"`
	Mode      string  `yaml:"mode"` // documents (default) or packed
	Length    int     `yaml:"length"`
	SkipLong  bool    `yaml:"skip_long"` // leave documents out that are longer, in place of cutting them
	Stride    int     `yaml:"stride"`    // evaluate: cover long documents by windows of Length tokens, one every Stride
	BOS       *uint32 `yaml:"bos"`
	EOS       *uint32 `yaml:"eos"`
	// Special lets the tokenizer put its special tokens around each document;
	// default true, unless BOS or EOS is given.
	Special *bool `yaml:"special"`
	// Prefix lets the tokenizer put its prefix (a space or ▁) before each
	// document, where it has one; default true.
	Prefix *bool `yaml:"prefix"`
}

// Formats of data: of images, and of language models' text and ids.
var (
	imageFormats = []string{"cifar10", "idx", "npy", "safetensors"}
	textFormats  = []string{"text", "jsonl", "u16", "u32", "npy", "safetensors", "builtin"}
)

// Rule gives layers their steps. The first rule whose pattern matches a layer
// counts; a layer that none matches stays as it is.
type Rule struct {
	Match string `yaml:"match"` // globs over the layer's name, divided by |
	Steps []Step `yaml:"steps"` // none: the layer stays as it is
	// Levels are what a search chooses among, in place of the steps alone.
	Levels []Levels `yaml:"levels"`
	// Requantize lets the steps compress layers that are stored compressed already, from
	// their dequantized values; without it those stay as they are stored.
	Requantize bool `yaml:"requantize"`

	levels []level
}

// Quantize asks for codes on a grid. Its fields are those of
// quantize.Options; what is left out has its default.
type Quantize struct {
	Method         string    `yaml:"method"`
	Format         string    `yaml:"format"` // int (default), fp8, nvfp4, mxfp4
	Scales         string    `yaml:"scales"` // of an int format: any (default), power_of_two
	Bits           int       `yaml:"bits"`
	Granularity    string    `yaml:"granularity"`
	GroupSize      int       `yaml:"group_size"`
	Symmetric      bool      `yaml:"symmetric"`
	Range          string    `yaml:"range"`
	ScaleType      string    `yaml:"scale_type"`
	Align          *bool     `yaml:"align"`
	Residual       *bool     `yaml:"residual"`
	Damping        float64   `yaml:"damping"`
	ActOrder       bool      `yaml:"act_order"`
	BiasCorrection *bool     `yaml:"bias_correction"`
	Centre         *bool     `yaml:"centre"`
	AWQ            bool      `yaml:"awq"` // scale what the layer reads, see PlanLayer.Scaled
	AdaRound       *AdaRound `yaml:"adaround"`
	Alphabet       string    `yaml:"alphabet"`
	GPFQ           *GPFQ     `yaml:"gpfq"`
}

// GPFQ tunes gpfq and spfq.
type GPFQ struct {
	C         float64 `yaml:"c"`
	Quantile  float64 `yaml:"quantile"`
	Threshold string  `yaml:"threshold"` // soft or hard
	Lambda    float64 `yaml:"lambda"`
	Seed      uint64  `yaml:"seed"`
}

// The methods of quantize steps, the default first.
var quantizeMethods = []string{"best", "gptq", "adaround", "qronos", "gpfq", "spfq", "hqq", "nearest"}

// AdaRound tunes that method.
type AdaRound struct {
	Sample       bool    `yaml:"sample"` // learn from rows of inputs, the activation included
	Rows         int     `yaml:"rows"`   // of the sample
	Steps        int     `yaml:"steps"`
	LearningRate float64 `yaml:"learning_rate"`
	Lambda       float64 `yaml:"lambda"`
	Warmup       float64 `yaml:"warmup"`
	BetaStart    float64 `yaml:"beta_start"`
	BetaEnd      float64 `yaml:"beta_end"`
}

// Output says what to write beside the compressed weights.
type Output struct {
	Path   string   `yaml:"path"`
	Format string   `yaml:"format"` // compressed-tensors
	Dense  []string `yaml:"dense"`  // safetensors, pt: the dequantized model too
	// ShardSize is the most bytes of tensors in a safetensors file, e.g. 2GiB;
	// "" means 5GB.
	ShardSize string `yaml:"shard_size"`
	shardSize int64  // the same in bytes; 0 means the default
}

// RecipeError is a fault of a recipe.
type RecipeError struct {
	File   string // may be empty
	Line   int    // 0 where no line is to blame
	Where  string // e.g. rules[0].steps[0].quantize.bits
	Reason string // what is wrong and what would be right
}

func (e *RecipeError) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.File == "" {
		b.WriteString("recipe")
	}
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	b.WriteString(": ")
	if e.Where != "" {
		b.WriteString(e.Where + ": ")
	}
	b.WriteString(e.Reason)
	return b.String()
}

// ReadRecipe reads a recipe from a file. Relative paths in it become relative
// to the file's folder.
func ReadRecipe(file string) (*Recipe, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, &RecipeError{File: file, Reason: "cannot be read: " + errText(err)}
	}
	return ParseRecipe(text, file)
}

// ParseRecipe reads a recipe from its text. file names it in messages, and its
// folder is what relative paths are relative to; it may be empty.
func ParseRecipe(text []byte, file string) (*Recipe, error) {
	r := &Recipe{file: file, text: string(text)}
	doc, err := parseStrict(text, r)
	if err != nil {
		err.File = file
		return nil, err
	}
	r.lines = doc
	if where, reason := r.check(); reason != "" {
		return nil, &RecipeError{File: file, Line: doc.line(where), Where: where, Reason: reason}
	}
	dir := filepath.Dir(file)
	for _, p := range r.paths() {
		if *p != "" && !filepath.IsAbs(*p) && file != "" {
			*p = filepath.Join(dir, filepath.FromSlash(*p))
		}
	}
	return r, nil
}

func (r *Recipe) paths() []*string {
	paths := []*string{&r.Model.Path, &r.Moments, &r.Output.Path}
	data := []*Data{r.Calibration, r.Evaluate}
	if r.Search != nil {
		data = append(data, r.Search.Data)
	}
	for _, d := range data {
		if d != nil {
			paths = append(paths, &d.Path, &d.Labels, &d.Text.Lengths)
		}
	}
	return paths
}

// SHA256 returns the hash of the recipe's text.
func (r *Recipe) SHA256() string {
	sum := sha256.Sum256([]byte(r.text))
	return hex.EncodeToString(sum[:])
}

// check fills in defaults and returns the first fault: where and what.
func (r *Recipe) check() (where, reason string) {
	if r.Version != RecipeVersion {
		return "version", fmt.Sprintf("is %d; this fettle reads version %d", r.Version, RecipeVersion)
	}
	if reason := oneOf(&r.Sequential, "value", "none"); reason != "" {
		return "sequential", reason
	}
	for i := range r.Model.Network {
		if reason := r.Model.Network[i].check(); reason != "" {
			return fmt.Sprintf("model.network[%d]", i), reason
		}
	}
	if reason := oneOf(&r.OnFallback, "warn", "fail", "allow"); reason != "" {
		return "on_fallback", reason
	}
	if reason := oneOf(&r.Output.Format, "compressed-tensors"); reason != "" {
		return "output.format", reason
	}
	for i := range r.Output.Dense {
		if reason := oneOf(&r.Output.Dense[i], "safetensors", "pt"); reason != "" {
			return fmt.Sprintf("output.dense[%d]", i), reason
		}
		if slices.Contains(r.Output.Dense[:i], r.Output.Dense[i]) {
			return fmt.Sprintf("output.dense[%d]", i), "is there twice"
		}
	}
	if text := r.Output.ShardSize; text != "" {
		var err error
		if r.Output.shardSize, err = bytesize.Parse(text); err != nil {
			return "output.shard_size", err.Error()
		}
	}
	if len(r.Model.Input.Mean) != len(r.Model.Input.Std) {
		return "model.input", fmt.Sprintf("has %d means and %d stds; give one of each per channel", len(r.Model.Input.Mean), len(r.Model.Input.Std))
	}
	if reason := r.checkMoments(); reason != "" {
		return "moments", reason
	}
	for name, d := range map[string]*Data{"calibration": r.Calibration, "evaluate": r.Evaluate} {
		if d == nil {
			continue
		}
		if where, reason := d.check(); reason != "" {
			return strings.TrimSuffix(name+"."+where, "."), reason
		}
	}
	if c := r.Calibration; c != nil && (c.Text.Stride != 0 || c.Targets != 0) {
		return "calibration", "has text.stride or targets, which are for evaluate alone"
	}
	if len(r.Rules) == 0 && len(r.Remove) == 0 {
		return "rules", `is missing; give at least one rule, such as {match: "*", steps: [{quantize: {bits: 4}}]}`
	}
	if where, reason := r.Experts.check(); reason != "" {
		return "experts" + where, reason
	}
	for i := range r.Remove {
		if where, reason := r.Remove[i].check(); reason != "" {
			return fmt.Sprintf("remove[%d]%s", i, where), reason
		}
	}
	for i := range r.Rules {
		if where, reason := r.Rules[i].check(); reason != "" {
			return fmt.Sprintf("rules[%d]%s", i, where), reason
		}
	}
	return r.checkSearch()
}

// SetMoments puts a file of moments in place of the recipe's, and of its calibration.
func (r *Recipe) SetMoments(path string) error {
	r.Moments, r.Calibration = path, nil
	if reason := r.checkMoments(); reason != "" {
		return &RecipeError{File: r.file, Where: "moments", Reason: reason}
	}
	return nil
}

// checkMoments says what does not go with a file of moments.
func (r *Recipe) checkMoments() string {
	switch {
	case r.Moments == "":
		return ""
	case r.Calibration != nil:
		return "stand in place of calibration; leave one of the two out"
	case r.Search != nil:
		return "do not go with a search, which runs the model on calibration data"
	case len(r.Remove) > 0:
		return "do not go with remove, which runs the model on calibration data, and without score and repair needs none; compress what it leaves in a second run"
	}
	for i := range r.Rules {
		if _, q, _ := r.Rules[i].steps(); q != nil && q.AWQ {
			return fmt.Sprintf("do not go with rules[%d].steps.quantize.awq, whose scales belong to all layers that read a value; leave it out", i)
		}
	}
	return ""
}

// checkSearch returns the first fault of a search, and of a recipe that has levels
// and none.
func (r *Recipe) checkSearch() (where, reason string) {
	at := slices.IndexFunc(r.Rules, func(rule Rule) bool { return len(rule.Levels) > 0 })
	switch {
	case r.Search == nil && at >= 0:
		return fmt.Sprintf("rules[%d].levels", at), "need a search that chooses among them; say how large the model may be: search: {fit: 120KB}"
	case r.Search == nil:
		return "", ""
	case at < 0:
		return "search", "has nothing to choose; give a rule levels, such as levels: [{bits: [2, 3, 4]}]"
	}
	for i := range r.Rules {
		_, q, c := r.Rules[i].steps()
		switch {
		case len(r.Rules[i].levels) > 0: // which are checked
		case c != nil && c.Budget != "":
			return fmt.Sprintf("rules[%d].steps.compensate.budget", i), "does not go with a search, whose size would not count it; give a rank"
		case q != nil && q.AWQ:
			return fmt.Sprintf("rules[%d].steps.quantize.awq", i), "does not go with a search, whose levels see the original's inputs; remove it"
		}
	}
	drops := slices.ContainsFunc(r.Rules, func(rule Rule) bool { return rule.drops() != nil })
	if drops && len(r.Remove) > 0 {
		return "remove", "does not go with levels that drop; compress in two runs, or let the search drop alone"
	}
	where, reason = r.Search.check()
	return "search" + where, reason
}

func (d *Data) check() (where, reason string) {
	if d.Path == "" && d.Format != "builtin" {
		return "data", "is missing; name the file of samples"
	}
	formats := slices.Clone(imageFormats)
	for _, f := range textFormats {
		if !slices.Contains(formats, f) {
			formats = append(formats, f)
		}
	}
	if d.Format == "" {
		return "format", "is missing; it is one of " + strings.Join(formats, ", ")
	}
	if reason := oneOf(&d.Format, formats...); reason != "" {
		return "format", reason
	}
	if reason := oneOf(&d.Text.Mode, "documents", "packed"); reason != "" {
		return "text.mode", reason
	}
	if d.Text.Stride < 0 || (d.Text.Stride > 0 && (d.Text.Mode != "documents" || d.Text.SkipLong || (d.Text.Length > 0 && d.Text.Stride > d.Text.Length))) {
		return "text.stride", "must be positive, at most text.length, and goes with mode documents without skip_long"
	}
	if d.Targets < 0 || d.Targets > 1<<16 {
		return "targets", "must be 0, or how many of the most likely tokens to keep, up to 65536"
	}
	if d.Samples < 0 {
		return "samples", "is negative; give a count, or leave it out for all"
	}
	if n := len(d.Subset); n != 0 && (n != 2 || d.Subset[0] < 0 || d.Subset[0] >= d.Subset[1]) {
		return "subset", "must be [first, end) with 0 ≤ first < end"
	}
	return "", ""
}

func (rule *Rule) check() (where, reason string) {
	if rule.Match == "" {
		return ".match", `is missing; "*" matches every layer`
	}
	for pattern := range strings.SplitSeq(rule.Match, "|") {
		if _, err := path.Match(pattern, ""); err != nil {
			return ".match", fmt.Sprintf("pattern %q is malformed", pattern)
		}
	}
	if len(rule.Levels) > 0 {
		return rule.resolveLevels()
	}
	return checkSteps(rule.Steps)
}

// matches reports whether a layer's name fits one of the rule's globs. A star
// spans dots.
func (rule *Rule) matches(name string) bool {
	for pattern := range strings.SplitSeq(rule.Match, "|") {
		if ok, _ := path.Match(pattern, name); ok {
			return true
		}
	}
	return false
}

func (q *Quantize) check() (where, reason string) {
	if q.Method == "awq" {
		return ".method", "awq goes with a method: write method: nearest, awq: true, range: awq"
	}
	if reason := oneOf(&q.Method, quantizeMethods...); reason != "" {
		return ".method", reason
	}
	if reason := oneOf(&q.Format, "int", "fp8", "nvfp4", "mxfp4"); reason != "" {
		return ".format", reason
	}
	if q.Bits == 0 && q.Format == "int" && q.Alphabet != "ternary" && q.Alphabet != "binary" {
		return ".bits", "is missing; give 2 to 8"
	}
	if q.Granularity == "" && (q.GroupSize > 0 || q.format().GroupSize() > 0) {
		q.Granularity = "group"
	}
	if q.Range == "" && q.Method == "hqq" {
		q.Range = "minmax"
	}
	if own := q.format().ScaleType(dtype.Invalid); own != dtype.Invalid && q.ScaleType != "" && q.ScaleType != "model" {
		return ".scale_type", fmt.Sprintf("is %q, but the scales of %s are %s; remove it", q.ScaleType, q.Format, own)
	}
	for _, c := range []struct {
		key     string
		value   *string
		allowed []string
	}{
		{".granularity", &q.Granularity, []string{"channel", "tensor", "group"}},
		{".scales", &q.Scales, []string{"any", "power_of_two"}},
		{".range", &q.Range, []string{"mse", "minmax", "awq"}},
		{".scale_type", &q.ScaleType, []string{"model", "f32", "f16", "bf16"}},
		{".alphabet", &q.Alphabet, []string{"gpfq", "ternary", "binary"}},
	} {
		if *c.value == "" {
			continue // the default depends on the other keys
		}
		if reason := oneOf(c.value, c.allowed...); reason != "" {
			return c.key, reason
		}
	}
	if q.GPFQ != nil && q.Method != "gpfq" && q.Method != "spfq" {
		return ".gpfq", fmt.Sprintf("tunes methods other than %s; remove it", q.Method)
	}
	if q.Scales == "power_of_two" && q.Format != "int" {
		return ".scales", fmt.Sprintf("is for format int; %s has scales of its own", q.Format)
	}
	if q.AdaRound != nil && q.Method != "adaround" {
		return ".adaround", fmt.Sprintf("tunes a method that %s does not use; remove it", q.Method)
	}
	var bad *quantize.OptionError
	if err := q.options().Check(); errors.As(err, &bad) {
		return optionKey(bad.Field), fmt.Sprintf("is %v, want %s", bad.Value, bad.Allowed)
	}
	return "", ""
}

// optionKey turns a field of quantize.Options into its key: GroupSize into
// .group_size, AdaRound.Steps into .adaround.steps.
func optionKey(field string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(strings.NewReplacer("AdaRound", "Adaround", "GPFQ", "Gpfq", "ADMM", "Admm", "OWL", "Owl").Replace(field), ".") {
		for i, r := range part {
			switch {
			case i == 0:
				b.WriteByte('.')
			case unicode.IsUpper(r):
				b.WriteByte('_')
			}
			b.WriteRune(unicode.ToLower(r))
		}
	}
	return b.String()
}

// options resolves what was asked for. Methods align unless told not to: it
// costs nothing and corrects what earlier layers lost. Nearest rounding and HQQ
// should be plain, and GPFQ corrects what they lost by itself.
func (q *Quantize) options() quantize.Options {
	o := quantize.Options{
		Method: quantize.Method(q.Method), Format: q.format(), Bits: q.Bits, PowerOfTwo: q.Scales == "power_of_two",
		Granularity: granularity(q.Granularity), GroupSize: q.GroupSize, Symmetric: q.Symmetric,
		Range: quantize.Range(q.Range), Damping: q.Damping, ActOrder: q.ActOrder,
		Align:    q.Method != "nearest" && q.Method != "hqq" && q.Method != "gpfq",
		Alphabet: quantize.Alphabet(q.Alphabet),
	}
	o.Align = or(q.Align, o.Align)
	o.Residual = or(q.Residual, o.Align && o.Method == quantize.Best)
	o.BiasCorrection = or(q.BiasCorrection, o.Method == quantize.Best)
	o.Centre = or(q.Centre, o.Method == quantize.Best && o.BiasCorrection)
	if a := q.AdaRound; a != nil {
		o.AdaRound = quantize.AdaRoundOptions{
			Sample: a.Sample, Rows: a.Rows,
			Steps: a.Steps, LearningRate: a.LearningRate, Lambda: a.Lambda,
			Warmup: a.Warmup, BetaStart: a.BetaStart, BetaEnd: a.BetaEnd,
		}
	}
	if g := q.GPFQ; g != nil {
		o.GPFQ = quantize.GPFQOptions{
			C: g.C, Quantile: g.Quantile, Threshold: quantize.Threshold(g.Threshold), Lambda: g.Lambda, Seed: g.Seed,
		}
	}
	return o.WithDefaults()
}

// or returns what a recipe says, or else the default.
func or(said *bool, otherwise bool) bool {
	if said != nil {
		return *said
	}
	return otherwise
}

func (q *Quantize) format() layer.Format {
	if q.Format == "int" {
		return layer.Integer
	}
	return layer.Format(q.Format)
}

// oneOf gives an empty value its default, the first allowed one, and says what
// is wrong with a value that is not allowed.
func oneOf(value *string, allowed ...string) string {
	if *value == "" {
		*value = allowed[0]
		return ""
	}
	for _, a := range allowed {
		if *value == a {
			return ""
		}
	}
	hint := ""
	if near := nearest(*value, allowed); near != "" {
		hint = fmt.Sprintf("; did you mean %q?", near)
	}
	if len(allowed) == 1 {
		return fmt.Sprintf("%q is not known; it can only be %q", *value, allowed[0])
	}
	return fmt.Sprintf("%q is not known%s (one of %s)", *value, hint, strings.Join(allowed, ", "))
}

// ParseOptions reads the keys of a recipe's quantize step, such as "method: gptq,
// bits: 4", as the options of package quantize.
func ParseOptions(step string) (quantize.Options, error) {
	r, err := ParseRecipe(fmt.Appendf(nil, "version: 1\nrules: [{match: \"*\", steps: [{quantize: {%s}}]}]\n", step), "")
	if err != nil {
		return quantize.Options{}, err
	}
	return r.Rules[0].Steps[0].Quantize.options(), nil
}
