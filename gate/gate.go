// Package gate turns budgets into a verdict on an output folder of fettle.
//
// It reads the record, the manifest and the headers of weight files, never
// tensor data, so that checking a folder of any size takes milliseconds; the
// weight files' own digests are therefore not checked. Sizes are of the files
// on disk. A folder whose record, manifest and files contradict each
// other is an error, not a verdict.
package gate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/fettle-dev/fettle/record"
)

// The names of the budgets, as they stand in verdicts and on command lines.
const (
	maxSize            = "max-size"
	maxRatio           = "max-ratio"
	maxAccuracyDrop    = "max-accuracy-drop"
	maxLossIncrease    = "max-loss-increase"
	maxPerplexityRatio = "max-perplexity-ratio"
	maxKL              = "max-kl"
	maxOutputError     = "max-output-error"
	maxRelativeError   = "max-relative-error"
	maxFallbacks       = "max-fallbacks"
)

// Budgets are upper limits. A figure equal to its limit is within it.
type Budgets struct {
	MaxSize         int64    // bytes of the weight files; 0 for no limit
	MaxRatio        float64  // those bytes over the source's; 0 for no limit
	MaxAccuracyDrop *float64 // points of top-1, original minus compressed; of classifiers

	// Of language models: nats per token, compressed minus original loss; and
	// compressed over original perplexity.
	MaxLossIncrease    *float64
	MaxPerplexityRatio *float64

	// Nats, mean over samples or tokens of KL(original ‖ compressed). Where the
	// record holds bounds, the upper one counts.
	MaxKL *float64

	// Relative squared error of the outputs, of models whose outputs are features.
	MaxOutputError *float64

	MaxRelativeError *float64 // of the worst layer, on the calibration data
	MaxFallbacks     *int     // over all layers
}

// Verdict is the outcome of one budget.
type Verdict struct {
	Name        string  `json:"name"` // e.g. "max-size"
	Pass        bool    `json:"pass"`
	Limit       string  `json:"limit"`        // for people, with its unit
	Actual      string  `json:"actual"`       // for people, with its unit
	LimitValue  float64 `json:"limit_value"`  // bytes, a ratio, points, nats or a count
	ActualValue float64 `json:"actual_value"` // in the same unit
	Detail      string  `json:"detail,omitempty"`
}

// String formats the verdict as one line.
func (v Verdict) String() string {
	status, joint, detail := "FAIL", ", limit ", ""
	if v.Pass {
		status = "PASS"
	}
	if v.Name == maxSize {
		joint = " of "
	}
	if v.Detail != "" {
		detail = " (" + v.Detail + ")"
	}
	return fmt.Sprintf("%s  %-20s  %s%s%s%s", status, v.Name, v.Actual, joint, v.Limit, detail)
}

// ErrNoBudget says that there was nothing to check.
var ErrNoBudget = errors.New("no budget given: set at least one limit, such as a largest size")

// BudgetError says that a budget cannot be checked: its limit makes no sense,
// or the record does not hold the figure that it limits.
type BudgetError struct {
	Budget string // e.g. "max-kl"
	Reason string // what is wrong and what to do
}

func (e *BudgetError) Error() string { return e.Budget + ": " + e.Reason }

// InputError says that the folder cannot be judged: a file is missing or
// malformed, or the record contradicts what is on disk.
type InputError struct {
	Path string
	Err  error
}

func (e *InputError) Error() string { return fmt.Sprintf("%s: %v", printable(e.Path), e.Err) }

func (e *InputError) Unwrap() error { return e.Err }

// Check holds the output folder at path against the budgets and returns one
// verdict for each that is set, in the order of Budgets' fields.
//
// Errors are ErrNoBudget, *BudgetError, *InputError, and ctx's. With an error
// there are no verdicts.
func Check(ctx context.Context, path string, b Budgets) ([]Verdict, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	f, err := openFolder(ctx, path)
	if err != nil {
		return nil, err
	}
	var verdicts []Verdict
	add := func(v Verdict, e error) {
		verdicts = append(verdicts, v)
		err = errors.Join(err, e)
	}
	if b.MaxSize != 0 {
		add(checkSize(f, b.MaxSize), nil)
	}
	if b.MaxRatio != 0 {
		add(checkRatio(f, b.MaxRatio))
	}
	if b.MaxAccuracyDrop != nil {
		add(checkAccuracy(f, *b.MaxAccuracyDrop))
	}
	if b.MaxLossIncrease != nil {
		add(checkLoss(f, *b.MaxLossIncrease))
	}
	if b.MaxPerplexityRatio != nil {
		add(checkPerplexity(f, *b.MaxPerplexityRatio))
	}
	if b.MaxKL != nil {
		add(checkKL(f, *b.MaxKL))
	}
	if b.MaxOutputError != nil {
		add(checkOutputError(f, *b.MaxOutputError))
	}
	if b.MaxRelativeError != nil {
		add(checkRelativeError(f.run, *b.MaxRelativeError))
	}
	if b.MaxFallbacks != nil {
		add(checkFallbacks(f.run, *b.MaxFallbacks), nil)
	}
	if err != nil {
		return nil, err
	}
	return verdicts, nil
}

// check reports limits that no figure can be held against.
func (b Budgets) check() error {
	if b == (Budgets{}) {
		return ErrNoBudget
	}
	if b.MaxSize < 0 {
		return &BudgetError{maxSize, fmt.Sprintf("limit of %d bytes, want more than 0", b.MaxSize)}
	}
	if b.MaxRatio < 0 || !finite(b.MaxRatio) {
		return &BudgetError{maxRatio, fmt.Sprintf("limit of %v, want more than 0", b.MaxRatio)}
	}
	// A negative drop or increase is a gain, and a gain can be asked for.
	if d := b.MaxAccuracyDrop; d != nil && !finite(*d) {
		return &BudgetError{maxAccuracyDrop, fmt.Sprintf("limit of %v points, want a number", *d)}
	}
	if x := b.MaxLossIncrease; x != nil && !finite(*x) {
		return &BudgetError{maxLossIncrease, fmt.Sprintf("limit of %v nats per token, want a number", *x)}
	}
	if r := b.MaxPerplexityRatio; r != nil && (*r <= 0 || !finite(*r)) {
		return &BudgetError{maxPerplexityRatio, fmt.Sprintf("limit of %v, want more than 0, such as 1.05", *r)}
	}
	if kl := b.MaxKL; kl != nil && (*kl < 0 || !finite(*kl)) {
		return &BudgetError{maxKL, fmt.Sprintf("limit of %v nats, want 0 or more", *kl)}
	}
	if e := b.MaxOutputError; e != nil && (*e < 0 || !finite(*e)) {
		return &BudgetError{maxOutputError, fmt.Sprintf("limit of %v, want 0 or more", *e)}
	}
	if e := b.MaxRelativeError; e != nil && (*e < 0 || !finite(*e)) {
		return &BudgetError{maxRelativeError, fmt.Sprintf("limit of %v, want 0 or more", *e)}
	}
	if n := b.MaxFallbacks; n != nil && *n < 0 {
		return &BudgetError{maxFallbacks, fmt.Sprintf("limit of %d, want 0 or more", *n)}
	}
	return nil
}

func checkSize(f *folder, limit int64) Verdict {
	detail := fmt.Sprintf("%.0f %%", 100*float64(f.weightBytes)/float64(limit))
	if f.weightBytes > limit {
		detail += ", over by " + formatSize(f.weightBytes-limit)
	}
	return Verdict{
		Name:        maxSize,
		Pass:        f.weightBytes <= limit,
		Limit:       formatSize(limit),
		Actual:      formatSize(f.weightBytes),
		LimitValue:  float64(limit),
		ActualValue: float64(f.weightBytes),
		Detail:      detail,
	}
}

func checkRatio(f *folder, limit float64) (Verdict, error) {
	source := f.run.Source.Bytes
	if source <= 0 {
		return Verdict{}, &InputError{f.recordPath(), fmt.Errorf("source of %d bytes: the record has no size to compare with; compress again", source)}
	}
	v := newVerdict(maxRatio, float64(f.weightBytes)/float64(source), limit, "", 3)
	v.Detail = join(v.Detail, fmt.Sprintf("%s of the source's %s", formatSize(f.weightBytes), formatSize(source)))
	return v, nil
}

// accuracyTolerance is how far, in points, the record's drop may stand from
// its own counts of correct samples.
const accuracyTolerance = 1e-6

func checkAccuracy(f *folder, limit float64) (Verdict, error) {
	e := f.run.Evaluation
	if e != nil && e.Language != nil {
		return Verdict{}, &BudgetError{maxAccuracyDrop, "the record is of a language model, which has no accuracy: use " + maxLossIncrease + " or " + maxPerplexityRatio}
	}
	if e != nil && e.Outputs != nil {
		return Verdict{}, otherOutputs(maxAccuracyDrop, e.Outputs)
	}
	if e == nil || e.Samples <= 0 {
		return Verdict{}, notEvaluated(maxAccuracyDrop)
	}
	// One division of whole numbers, so that a drop of 5 in 1,000 equals a
	// limit of 0.5; the difference of two rounded percentages may not.
	drop := 100 * float64(e.Original.Correct-e.Compressed.Correct) / float64(e.Samples)
	if math.Abs(drop-e.AccuracyDrop) > accuracyTolerance {
		return Verdict{}, &InputError{f.recordPath(), fmt.Errorf(
			"accuracy drop of %v points, but %d and then %d correct of %d make %v; compress again",
			e.AccuracyDrop, e.Original.Correct, e.Compressed.Correct, e.Samples, drop)}
	}
	v := newVerdict(maxAccuracyDrop, drop, limit, " points", 2)
	if e.Tied {
		v.Detail = join(v.Detail, fmt.Sprintf("tied, 95 %% interval %.2f to %.2f", e.Interval[0], e.Interval[1]))
	}
	return v, nil
}

func checkKL(f *folder, limit float64) (Verdict, error) {
	e := f.run.Evaluation
	switch {
	case e == nil:
		return Verdict{}, notEvaluated(maxKL)
	case e.Language != nil:
		return checkLanguageKL(f, limit)
	case e.Outputs != nil && e.Outputs.KL == nil:
		return Verdict{}, otherOutputs(maxKL, e.Outputs)
	case e.Outputs != nil:
		v := newVerdict(maxKL, *e.Outputs.KL, limit, " nats", 4)
		v.Detail = join(v.Detail, fmt.Sprintf("%s of both models are compared", outputNames[e.Outputs.Task]))
		return v, nil
	}
	return newVerdict(maxKL, e.KL, limit, " nats", 4), nil
}

// outputNames says what outputs are, by the record's task.
var outputNames = map[string]string{
	"token_classes": "the logits at each token", "sequence_classes": "the logits of each sequence", "features": "features",
}

// otherOutputs says that a budget is not of the outputs that a record compares.
func otherOutputs(budget string, o *record.OutputEvaluation) error {
	use := maxKL
	if o.KL == nil {
		use = maxOutputError
	}
	return &BudgetError{budget, fmt.Sprintf("the record compares two models by %s, with no labels or next tokens: use %s", outputNames[o.Task], use)}
}

func checkOutputError(f *folder, limit float64) (Verdict, error) {
	e := f.run.Evaluation
	switch {
	case e == nil:
		return Verdict{}, notEvaluated(maxOutputError)
	case e.Outputs == nil || e.Outputs.RelativeError == nil:
		return Verdict{}, &BudgetError{maxOutputError, "the record is of a model whose outputs are logits: use " + maxKL}
	}
	return newVerdict(maxOutputError, *e.Outputs.RelativeError, limit, "", 4), nil
}

func notEvaluated(budget string) error {
	return &BudgetError{budget, "the record holds no evaluation: give the recipe an evaluation data set and compress again"}
}

func checkRelativeError(run *record.Run, limit float64) (Verdict, error) {
	if len(run.Layers) == 0 {
		return Verdict{}, &BudgetError{maxRelativeError, "the record holds no compressed layer: check the recipe's rules"}
	}
	worst := 0
	for i, l := range run.Layers {
		if l.RelativeError == nil {
			return Verdict{}, &BudgetError{maxRelativeError, fmt.Sprintf(
				"the error of layer %s was not measured: give the recipe calibration data on which the layer has any output, and compress again", printable(l.Name))}
		}
		if *l.RelativeError > *run.Layers[worst].RelativeError {
			worst = i
		}
	}
	v := newVerdict(maxRelativeError, *run.Layers[worst].RelativeError, limit, "", 4)
	v.Detail = join(v.Detail, "worst layer "+printable(run.Layers[worst].Name))
	return v, nil
}

func checkFallbacks(run *record.Run, limit int) Verdict {
	total, layers, first := 0, 0, ""
	for _, l := range run.Layers {
		total += len(l.Fallbacks)
		if len(l.Fallbacks) == 0 {
			continue
		}
		layers++
		if first == "" {
			first = printable(l.Name)
		}
	}
	v := Verdict{
		Name:        maxFallbacks,
		Pass:        total <= limit,
		Limit:       strconv.Itoa(limit),
		Actual:      strconv.Itoa(total),
		LimitValue:  float64(limit),
		ActualValue: float64(total),
	}
	switch {
	case layers == 1:
		v.Detail = "in layer " + first
	case layers > 1:
		v.Detail = fmt.Sprintf("in %d layers, first %s", layers, first)
	}
	return v
}

// newVerdict compares a figure with its limit. Numbers have the given digits
// after the point, and more where the two would look the same or vanish.
func newVerdict(name string, actual, limit float64, unit string, digits int) Verdict {
	v := Verdict{
		Name:        name,
		Pass:        actual <= limit,
		LimitValue:  limit,
		ActualValue: actual,
	}
	v.Actual, v.Limit = formatPair(actual, limit, digits)
	if !v.Pass {
		v.Detail = "over by " + formatNumber(actual-limit, digits)
	}
	v.Actual += unit
	return v
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
