package tokenizer

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A preTokenizer splits pieces further. Added tokens among them stay.
type preTokenizer func([]piece) ([]piece, error)

// A behavior is what becomes of the delimiters when a text is split.
type behavior string

const (
	removed            behavior = "Removed"
	isolated           behavior = "Isolated"
	mergedWithPrevious behavior = "MergedWithPrevious"
	mergedWithNext     behavior = "MergedWithNext"
	contiguous         behavior = "Contiguous"
)

func takeBehavior(o *object, otherwise behavior) behavior {
	s := string(otherwise)
	if otherwise == "" {
		s = o.str("behavior")
	} else {
		o.scan("behavior", "a string", &s)
	}
	switch b := behavior(s); b {
	case removed, isolated, mergedWithPrevious, mergedWithNext, contiguous:
		return b
	}
	if o.err == nil {
		o.fail(&UnsupportedError{Where: o.path, What: fmt.Sprintf("the behavior %q", s)})
	}
	return ""
}

func newPreTokenizer(path string, raw json.RawMessage, depth int) (preTokenizer, error) {
	o, kind, err := newComponent(path, raw, depth)
	if err != nil {
		return nil, err
	}
	t, ok := buildPreTokenizer(o, kind, depth)
	if !ok {
		return nil, &UnsupportedError{Where: path, What: fmt.Sprintf("the pre-tokenizer %q", kind)}
	}
	return t, o.finish()
}

func buildPreTokenizer(o *object, kind string, depth int) (preTokenizer, bool) {
	switch kind {
	case "Sequence":
		all := list(o, "pretokenizers", depth, newPreTokenizer)
		return func(pieces []piece) ([]piece, error) {
			for _, t := range all {
				var err error
				if pieces, err = t(pieces); err != nil {
					return nil, err
				}
			}
			return pieces, nil
		}, true
	case "ByteLevel":
		return newByteLevel(takeByteLevel(o)), true
	case "Split":
		pattern, how, invert := takePattern(o), takeBehavior(o, ""), o.boolean("invert")
		return each(func(out []piece, p piece) ([]piece, error) {
			found, err := pattern.find(p.text)
			if invert {
				for i := range found {
					found[i].match = !found[i].match
				}
			}
			return cut(out, p, found, how), err
		}), true
	case "Metaspace":
		return newMetaspace(takeMetaspace(o)), true
	case "Whitespace":
		return each(func(out []piece, p piece) ([]piece, error) {
			return splitWords(out, p), nil
		}), true
	case "WhitespaceSplit":
		return splitChars(unicode.IsSpace, removed), true
	case "BertPreTokenizer":
		words, marks := splitChars(unicode.IsSpace, removed), splitChars(isPunctuation, isolated)
		return func(pieces []piece) ([]piece, error) {
			pieces, err := words(pieces)
			if err != nil {
				return nil, err
			}
			return marks(pieces)
		}, true
	case "CharDelimiterSplit":
		delimiter, _ := utf8.DecodeRuneInString(o.char("delimiter"))
		return splitChars(func(r rune) bool { return r == delimiter }, removed), true
	case "UnicodeScripts":
		scripts := newScripts()
		return each(func(out []piece, p piece) ([]piece, error) { return scripts.split(out, p), nil }), true
	case "FixedLength":
		length := uint64(5)
		if o.scan("length", "a count", &length); length == 0 {
			o.failf("length", "is 0")
		}
		return each(func(out []piece, p piece) ([]piece, error) { return splitLengths(out, p, length), nil }), true
	case "Digits":
		how := contiguous
		if o.boolean("individual_digits") {
			how = isolated
		}
		return splitChars(isNumber, how), true
	case "Punctuation":
		return splitChars(isPunctuation, takeBehavior(o, isolated)), true
	}
	return nil, false
}

// each splits every piece that is no added token.
func each(split func(out []piece, p piece) ([]piece, error)) preTokenizer {
	return func(pieces []piece) ([]piece, error) {
		out := make([]piece, 0, len(pieces))
		for _, p := range pieces {
			if p.isToken {
				out = append(out, p)
				continue
			}
			var err error
			if out, err = split(out, p); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
}

// newByteLevel splits by GPT-2's pattern and spells bytes as characters.
func newByteLevel(addPrefixSpace, useRegex bool) preTokenizer {
	return each(func(out []piece, p piece) ([]piece, error) {
		if addPrefixSpace && !strings.HasPrefix(p.text, " ") {
			p = p.prepend(" ")
		}
		if !useRegex {
			return appendPiece(out, p.rewrite(toByteChars)), nil
		}
		for i := 0; i < len(p.text); {
			end := scanGPT2(p.text, i)
			out = append(out, p.slice(i, end).rewrite(toByteChars))
			i = end
		}
		return out, nil
	})
}

// A metaspace marks spaces with a character, in most files ▁.
type metaspace struct {
	mark   string
	scheme string // where a mark is put first: first, never, always
	split  bool
}

// takeMetaspace reads both forms of Metaspace: add_prefix_space of old files, and
// prepend_scheme.
func takeMetaspace(o *object) metaspace {
	m := metaspace{mark: o.char("replacement")}
	prefix := o.boolOr("add_prefix_space", true)
	given := o.scan("prepend_scheme", "a string", &m.scheme)
	if !given {
		m.scheme = "always"
		if !prefix {
			m.scheme = "never"
		}
	}
	m.split = o.boolOr("split", true)
	o.take("str_rep") // what replacement says, in some old files
	switch {
	case o.err != nil:
	case m.scheme != "first" && m.scheme != "never" && m.scheme != "always":
		o.fail(&UnsupportedError{Where: o.path, What: fmt.Sprintf("the prepend_scheme %q", m.scheme)})
	case !prefix && m.scheme != "never":
		o.failf("prepend_scheme", "contradicts add_prefix_space")
	}
	return m
}

func newMetaspace(m metaspace) preTokenizer {
	spaces := &pattern{literal: " "}
	return each(func(out []piece, p piece) ([]piece, error) {
		p, err := spaces.replace(p, m.mark)
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(p.text, m.mark) && (m.scheme == "always" || m.scheme == "first" && p.first()) {
			p = p.prepend(m.mark)
		}
		if !m.split {
			return appendPiece(out, p), nil
		}
		found, err := (&pattern{literal: m.mark}).find(p.text)
		return cut(out, p, found, mergedWithNext), err
	})
}

// splitChars splits at characters.
func splitChars(is func(rune) bool, how behavior) preTokenizer {
	return each(func(out []piece, p piece) ([]piece, error) {
		var found []span
		begin := 0
		for i, r := range p.text {
			if !is(r) {
				continue
			}
			if begin < i {
				found = append(found, span{begin, i, false})
			}
			begin = i + len(string(r))
			found = append(found, span{i, begin, true})
		}
		if begin < len(p.text) {
			found = append(found, span{begin, len(p.text), false})
		}
		return cut(out, p, found, how), nil
	})
}

// splitWords gives runs of word characters and runs of what is neither that nor
// white space: \w+|[^\w\s]+.
func splitWords(out []piece, p piece) []piece {
	const space, word, other = 0, 1, 2
	begin, in := 0, space
	for i, r := range p.text {
		kind := other
		switch {
		case unicode.IsSpace(r):
			kind = space
		case isWord(r):
			kind = word
		}
		if kind == in {
			continue
		}
		if in != space {
			out = append(out, p.slice(begin, i))
		}
		begin, in = i, kind
	}
	if in != space {
		out = append(out, p.slice(begin, len(p.text)))
	}
	return out
}

// splitLengths gives pieces of so many characters, and the rest.
func splitLengths(out []piece, p piece, length uint64) []piece {
	begin, n := 0, uint64(0)
	for i := range p.text {
		if n == length {
			out = append(out, p.slice(begin, i))
			begin, n = i, 0
		}
		n++
	}
	return appendPiece(out, p.slice(begin, len(p.text)))
}

// A span is a part of a text: a match of a pattern or what is between two.
type span struct {
	begin, end int
	match      bool
}

// cut splits a piece at spans that cover it; matches are the delimiters.
func cut(out []piece, p piece, found []span, how behavior) []piece {
	if how == mergedWithNext {
		return cutMergedWithNext(out, p, found)
	}
	var open span // not yet in out
	has, last := false, false
	for _, s := range found {
		var joins bool
		switch how {
		case removed:
			if s.match {
				continue
			}
		case contiguous:
			joins = s.match == last
		case mergedWithPrevious:
			joins = s.match && !last
		}
		last = s.match
		if joins && has {
			open.end = s.end
			continue
		}
		if has {
			out = appendPiece(out, p.slice(open.begin, open.end))
		}
		open, has = s, true
	}
	if has {
		out = appendPiece(out, p.slice(open.begin, open.end))
	}
	return out
}

// cutMergedWithNext gives each delimiter to what follows, seen from the end: of
// several in a row the last one.
func cutMergedWithNext(out []piece, p piece, found []span) []piece {
	for i := 0; i < len(found); i++ {
		s := found[i]
		if s.match && i+1 < len(found) && !found[i+1].match {
			i++
			s.end = found[i].end
		}
		out = appendPiece(out, p.slice(s.begin, s.end))
	}
	return out
}
