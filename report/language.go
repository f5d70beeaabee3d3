package report

import (
	"math"

	"github.com/fettle-dev/fettle/record"
)

// lossHeadline is what the headline says of a language model, and its status.
func lossHeadline(l *record.LanguageEvaluation) (text, status string) {
	if l.Compressed == nil {
		return "loss of the original alone", "plain"
	}
	perplexities := ", perplexity " + perplexity(l.Original.Perplexity) + " → " + perplexity(l.Compressed.Perplexity)
	switch {
	case l.Tied:
		return "loss tied with the original's", "good"
	case l.LossIncrease > 0:
		return "loss rose by " + nats(l.LossIncrease) + " nats per token" + perplexities, "warn"
	case l.LossIncrease < 0 && l.Interval != nil:
		return "loss fell by " + nats(-l.LossIncrease) + " nats per token" + perplexities, "good"
	default: // nothing says how far the figure is from chance
		return "loss did not rise, measured without an interval", "plain"
	}
}

// lossNote says in a sentence by how much the loss rose, and how sure that is.
func lossNote(l *record.LanguageEvaluation) string {
	note := nats(l.LossIncrease) + " nats per token added; "
	if l.Interval == nil {
		return note + "no interval, which takes two documents"
	}
	note += "95 % paired interval over documents " + nats(l.Interval[0]) + " to " + nats(l.Interval[1])
	if l.Tied {
		return note + ", which holds 0"
	}
	return note + ", without 0"
}

// nats formats a loss or a difference of losses with four digits after the
// point, and small ones with three digits that say something.
func nats(x float64) string {
	if a := math.Abs(x); a > 0 && a < 0.001 {
		return significant(x)
	}
	return fixed(x, 4)
}

// perplexity formats a perplexity. The record caps it at the largest float64.
func perplexity(x float64) string {
	switch {
	case x >= math.MaxFloat64:
		return "over 1e308"
	case x >= 1000:
		return significant(x)
	default:
		return fixed(x, 3)
	}
}
