package evaluate

import (
	"fmt"
	"iter"
)

// NextTokens returns the targets of a sequence that is predicted whole: for
// each token the one after it, −1 for the last.
func NextTokens(ids []uint32) []int {
	targets := make([]int, len(ids))
	for i := range targets {
		targets[i] = -1
		if i+1 < len(ids) {
			targets[i] = int(ids[i+1])
		}
	}
	return targets
}

// Window is a piece of a long text as a model with a limited context reads it.
type Window struct {
	From    int      // where it begins in the text
	IDs     []uint32 // shares the text's memory
	Targets []int    // for each row what it predicts; −1 for what is not counted here
}

// Windows divides a long text for strided perplexity, as Hugging Face's guide
// "Perplexity of fixed-length models" does: windows of length ids begin every
// stride ids, the last ends with the text, and each counts the tokens that no
// window before it held. So every token but the first is predicted once, all
// but the first window's with at least length − stride tokens before it. With
// stride = length nothing overlaps, and the first token of every window counts
// nowhere. The cost is length/stride passes over the text.
//
// It fails with *Error where there is nothing to predict, and where length is
// under 2 or stride not in 1…length.
func Windows(ids []uint32, length, stride int) (iter.Seq[Window], error) {
	if length < 2 || stride < 1 || stride > length {
		return nil, &Error{Sample: -1, Problem: fmt.Sprintf("windows of %d tokens every %d: give at least 2, and a stride from 1 to that", length, stride)}
	}
	if len(ids) < 2 {
		return nil, &Error{Sample: -1, Problem: fmt.Sprintf("a text of %d tokens has none to predict", len(ids))}
	}
	return func(yield func(Window) bool) {
		counted := 0 // tokens before this one are behind us
		for from := 0; ; from += stride {
			to := min(from+length, len(ids))
			w := Window{From: from, IDs: ids[from:to:to], Targets: NextTokens(ids[from:to])}
			for i := range w.Targets {
				if from+i+1 < counted {
					w.Targets[i] = -1
				}
			}
			if !yield(w) || to == len(ids) {
				return
			}
			counted = to
		}
	}, nil
}
