package tokenizer

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/dlclark/regexp2"
)

const (
	maxPattern     = 16 << 10         // bytes of a regular expression
	patternTimeout = 10 * time.Second // for one match; real patterns take microseconds
)

// A pattern finds a literal string, or what a scanner or a regular expression
// matches; one of the three.
type pattern struct {
	literal string
	scan    scanner
	re      *regexp2.Regexp
}

// takePattern reads {"String": s} or {"Regex": s}.
func takePattern(o *object) *pattern {
	var raw json.RawMessage
	if o.need("pattern", "an object", &raw); o.err != nil {
		return nil
	}
	path := o.path + ".pattern"
	p, err := newPattern(path, raw)
	if err != nil {
		o.fail(err)
	}
	return p
}

func newPattern(path string, raw json.RawMessage) (*pattern, error) {
	o, err := newObject(path, raw)
	if err != nil {
		return nil, err
	}
	var literal, expr string
	if o.scan("String", "a string", &literal) {
		if literal == "" {
			return nil, &UnsupportedError{Where: path, What: "an empty string"}
		}
		return &pattern{literal: literal}, o.finish()
	}
	expr = o.str("Regex")
	if err := o.finish(); err != nil {
		return nil, err
	}
	if scan := scannerFor(expr); scan != nil {
		return &pattern{scan: scan}, nil
	}
	re, err := compile(path, expr)
	return &pattern{re: re}, err
}

// compile makes a regular expression of one in Oniguruma's syntax.
func compile(path, expr string) (*regexp2.Regexp, error) {
	if len(expr) > maxPattern {
		return nil, &FormatError{Where: path, Problem: fmt.Sprintf("has more than %d bytes", maxPattern)}
	}
	translated, err := translate(path, expr)
	if err != nil {
		return nil, err
	}
	re, err := regexp2.Compile(translated, regexp2.None)
	if err != nil {
		return nil, &FormatError{Where: path, Problem: fmt.Sprintf("(%.200q) is no regular expression: %v", expr, err)}
	}
	re.MatchTimeout = patternTimeout
	return re, nil
}

// find gives the matches and what is between them, in order, together all of the
// text.
func (p *pattern) find(text string) ([]span, error) {
	switch {
	case p.scan != nil:
		var found []span
		for i := 0; i < len(text); {
			end := p.scan(text, i)
			found = append(found, span{i, end, true})
			i = end
		}
		return found, nil
	case p.re != nil:
		return p.findRegexp(text)
	}
	var found []span
	for i := 0; i < len(text); {
		at := strings.Index(text[i:], p.literal)
		if at < 0 {
			return append(found, span{i, len(text), false}), nil
		}
		if at > 0 {
			found = append(found, span{i, i + at, false})
		}
		i += at + len(p.literal)
		found = append(found, span{i - len(p.literal), i, true})
	}
	return found, nil
}

// findRegexp steps over matches as Oniguruma's users do: an empty match right
// after another match does not count.
func (p *pattern) findRegexp(text string) ([]span, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > math.MaxInt32 {
		return nil, tooLong(len(text))
	}
	runes := make([]rune, 0, len(text))
	offsets := make([]int32, 0, len(text)+1) // of runes in text
	for i, r := range text {
		runes = append(runes, r)
		offsets = append(offsets, int32(i))
	}
	offsets = append(offsets, int32(len(text)))
	var found []span
	last := -1 // where the last match ended
	done := 0  // bytes in found
	for from := 0; from <= len(runes); {
		m, err := p.re.FindRunesMatchStartingAt(runes, from)
		if err != nil {
			return nil, &TextError{Problem: fmt.Sprintf("a regular expression of tokenizer.json takes more than %v on this text; split it into shorter documents", patternTimeout)}
		}
		if m == nil {
			break
		}
		begin, end := m.Index, m.Index+m.Length
		if begin == end && end == last {
			from++
			continue
		}
		from, last = end, end
		if at := int(offsets[begin]); done < at {
			found = append(found, span{done, at, false})
		}
		done = int(offsets[end])
		found = append(found, span{int(offsets[begin]), done, true})
	}
	if done < len(text) {
		found = append(found, span{done, len(text), false})
	}
	return found, nil
}

// replace puts content in the place of each match.
func (p *pattern) replace(in piece, content string) (piece, error) {
	found, err := p.find(in.text)
	if err != nil {
		return in, err
	}
	size := 0
	for _, s := range found {
		if s.match {
			size += len(content)
		} else {
			size += s.end - s.begin
		}
	}
	if size > maxTextBytes {
		return in, tooLong(size)
	}
	var b strings.Builder
	b.Grow(size)
	zero := 0
	for _, s := range found {
		n := 0
		switch {
		case !s.match:
			b.WriteString(in.text[s.begin:s.end])
			n = min(max(in.zero-s.begin, 0), s.end-s.begin)
		default:
			b.WriteString(content)
			if s.end <= in.zero { // all that it stands for comes from the first character
				n = len(content)
			}
		}
		zero += n
	}
	in.text, in.zero = b.String(), zero
	return in, nil
}
