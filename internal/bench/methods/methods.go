// Package methods reads the list of methods that a benchmark is to compare.
package methods

import (
	"fmt"
	"strings"
)

// Default is what tables compare unless told otherwise.
const Default = "nearest=method: nearest;" +
	"GPTQ=method: gptq, align: false;" +
	"GPTQ, aligned=method: gptq;" +
	"AdaRound=method: adaround, align: false;" +
	"AdaRound, aligned=method: adaround;" +
	"best=method: best"

// Method is a column of a table.
type Method struct {
	Label string
	Step  string // keys of the quantize step beside bits and granularity
}

// Parse reads entries of label=keys, divided by semicolons.
func Parse(list string) ([]Method, error) {
	var all []Method
	for entry := range strings.SplitSeq(list, ";") {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		label, step, found := strings.Cut(entry, "=")
		if !found {
			return nil, fmt.Errorf("method %q: want label=keys of the quantize step", entry)
		}
		all = append(all, Method{strings.TrimSpace(label), strings.TrimSpace(step)})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no methods in %q", list)
	}
	return all, nil
}
