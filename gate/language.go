package gate

import (
	"fmt"
	"math"

	"github.com/fettle-dev/fettle/record"
)

// lossTolerance is how far, in nats, the record's increase of the loss may
// stand from its own losses, relative to them where they are above 1.
const lossTolerance = 1e-6

// languageOf returns what the record says of a language model, for a budget
// that limits it.
func languageOf(f *folder, budget string) (*record.LanguageEvaluation, error) {
	e := f.run.Evaluation
	if e == nil {
		return nil, notEvaluated(budget)
	}
	l := e.Language
	switch {
	case e.Outputs != nil:
		return nil, otherOutputs(budget, e.Outputs)
	case l == nil:
		return nil, &BudgetError{budget, "the record is of a classifier, which has no loss per token: use " + maxAccuracyDrop}
	case l.Compressed == nil || l.Tokens <= 0:
		return nil, &BudgetError{budget, "the record does not compare the two models: compress again"}
	}
	before, after := l.Original.Loss, l.Compressed.Loss
	if math.Abs(after-before-l.LossIncrease) > lossTolerance*max(1, math.Abs(before), math.Abs(after)) {
		return nil, &InputError{f.recordPath(), fmt.Errorf(
			"loss increase of %v nats, but losses of %v and then %v; compress again", l.LossIncrease, before, after)}
	}
	return l, nil
}

func checkLoss(f *folder, limit float64) (Verdict, error) {
	l, err := languageOf(f, maxLossIncrease)
	if err != nil {
		return Verdict{}, err
	}
	v := newVerdict(maxLossIncrease, l.LossIncrease, limit, " nats per token", 4)
	v.Detail = join(v.Detail, tiedLoss(l))
	return v, nil
}

func checkPerplexity(f *folder, limit float64) (Verdict, error) {
	l, err := languageOf(f, maxPerplexityRatio)
	if err != nil {
		return Verdict{}, err
	}
	// From the losses, as the record's perplexities are cut at the largest
	// float64; so is the ratio, which JSON could not hold otherwise.
	ratio := min(math.Exp(l.LossIncrease), math.MaxFloat64)
	v := newVerdict(maxPerplexityRatio, ratio, limit, "", 4)
	v.Detail = join(v.Detail, fmt.Sprintf("perplexity %s, then %s",
		formatNumber(l.Original.Perplexity, 3), formatNumber(l.Compressed.Perplexity, 3)))
	v.Detail = join(v.Detail, tiedLoss(l))
	return v, nil
}

func tiedLoss(l *record.LanguageEvaluation) string {
	if !l.Tied || l.Interval == nil {
		return ""
	}
	return fmt.Sprintf("loss tied, 95 %% interval %.4f to %.4f nats", l.Interval[0], l.Interval[1])
}

// checkLanguageKL holds the most that KL can be against the limit.
func checkLanguageKL(f *folder, limit float64) (Verdict, error) {
	l, err := languageOf(f, maxKL)
	if err != nil {
		return Verdict{}, err
	}
	if l.KLBounds == nil {
		return newVerdict(maxKL, l.KL, limit, " nats", 4), nil
	}
	low, high := l.KLBounds[0], l.KLBounds[1]
	if low > high {
		return Verdict{}, &InputError{f.recordPath(), fmt.Errorf("KL between %v and %v nats, which is no interval; compress again", low, high)}
	}
	v := newVerdict(maxKL, high, limit, " nats", 4)
	v.Detail = join(v.Detail, fmt.Sprintf("the most it can be; at least %s, as only the original's likeliest tokens were kept", formatNumber(low, 4)))
	return v, nil
}
