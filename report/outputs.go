package report

import "github.com/fettle-dev/fettle/record"

// outputsHeadline is what the headline says of outputs that only the original's
// can be held against. Whether that is good no data says.
func outputsHeadline(o *record.OutputEvaluation) string {
	switch {
	case o.RelativeError != nil:
		return "relative error of the outputs " + significant(*o.RelativeError)
	case o.KL != nil:
		return "KL " + nats(*o.KL) + " nats from the original's outputs"
	}
	return "outputs not compared"
}

// outputRows are the words for what outputs are of, one and many.
func outputRows(o *record.OutputEvaluation) string {
	switch o.Task {
	case "token_classes":
		return "tokens"
	case "sequence_classes":
		return "sequences"
	}
	return "rows"
}

// outputsNote says in a sentence what was compared.
func outputsNote(o *record.OutputEvaluation) string {
	if o.RelativeError != nil {
		return "The models give features, not logits: the squared error of the compressed model's, over the energy of the original's, in " + count(o.Rows) + " rows."
	}
	return "The models' logits are compared with each other, for each of " + count(o.Rows) + " " + outputRows(o) + ": neither labels nor next tokens play a part."
}
