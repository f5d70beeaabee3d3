package tokenizer

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// A normalizer changes a text before it is split.
type normalizer func(piece) (piece, error)

func newNormalizer(path string, raw json.RawMessage, depth int) (normalizer, error) {
	o, kind, err := newComponent(path, raw, depth)
	if err != nil {
		return nil, err
	}
	n, ok := buildNormalizer(o, kind, depth)
	if !ok {
		return nil, &UnsupportedError{Where: path, What: fmt.Sprintf("the normalizer %q", kind)}
	}
	return n, o.finish()
}

func buildNormalizer(o *object, kind string, depth int) (normalizer, bool) {
	switch kind {
	case "Sequence":
		all := list(o, "normalizers", depth, newNormalizer)
		return func(p piece) (piece, error) {
			for _, n := range all {
				var err error
				if p, err = n(p); err != nil {
					return p, err
				}
			}
			return p, nil
		}, true
	case "NFC":
		return rewriting(normalForm{form: norm.NFC, compose: true}.apply), true
	case "NFD":
		return rewriting(normalForm{form: norm.NFD, keep: newCanonical}.apply), true
	case "NFKC":
		return rewriting(normalForm{form: norm.NFKC, compose: true, keep: newCompatible}.apply), true
	case "NFKD":
		return rewriting(normalForm{form: norm.NFKD, keep: newCompatible}.apply), true
	case "Lowercase":
		return rewriting(lowercase), true
	case "StripAccents":
		return rewriting(stripAccents), true
	case "BertNormalizer":
		return rewriting(takeBert(o).apply), true
	case "Nmt":
		return rewriting(nmt), true
	case "ByteLevel":
		return rewriting(toByteChars), true
	case "Precompiled":
		return takeCharsmap(o).normalize, true
	case "Prepend":
		s := o.str("prepend")
		return func(p piece) (piece, error) { return p.prepend(s), nil }, true
	case "Strip":
		return newStrip(o.boolean("strip_left"), o.boolean("strip_right")), true
	case "Replace":
		pattern := takePattern(o)
		content := o.str("content")
		return func(p piece) (piece, error) { return pattern.replace(p, content) }, true
	}
	return nil, false
}

func rewriting(f func(string) string) normalizer {
	return func(p piece) (piece, error) { return p.rewrite(f), nil }
}

func newStrip(left, right bool) normalizer {
	return func(p piece) (piece, error) {
		if left {
			p = p.slice(len(p.text)-len(strings.TrimLeftFunc(p.text, unicode.IsSpace)), len(p.text))
		}
		if right {
			p = p.slice(0, len(strings.TrimRightFunc(p.text, unicode.IsSpace)))
		}
		return p, nil
	}
}

// lowercase maps characters one by one: a sigma at a word's end is σ.
func lowercase(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	for _, r := range s {
		if r == 'İ' { // the one whose full mapping has two characters
			b.WriteString("i\u0307")
			continue
		}
		b.WriteRune(lower(r))
	}
	return b.String()
}

func stripAccents(s string) string {
	return strings.Map(func(r rune) rune {
		if isAccent(r) {
			return -1
		}
		return r
	}, s)
}

// A bertNormalizer prepares text as BERT's own tokenizer does.
type bertNormalizer struct {
	clean, ideographs, accents, lower bool
}

func takeBert(o *object) bertNormalizer {
	n := bertNormalizer{clean: o.boolean("clean_text"), ideographs: o.boolean("handle_chinese_chars"), lower: o.boolean("lowercase")}
	n.accents = o.boolOr("strip_accents", n.lower)
	return n
}

func (n bertNormalizer) apply(s string) string {
	if n.clean {
		s = strings.Map(func(r rune) rune {
			switch {
			case isControl(r):
				return -1
			case unicode.IsSpace(r):
				return ' '
			}
			return r
		}, s)
	}
	if n.ideographs && strings.IndexFunc(s, isIdeograph) >= 0 {
		var b strings.Builder
		for _, r := range s {
			if !isIdeograph(r) {
				b.WriteRune(r)
				continue
			}
			b.WriteByte(' ')
			b.WriteRune(r)
			b.WriteByte(' ')
		}
		s = b.String()
	}
	if n.accents {
		s = normalForm{form: norm.NFD, keep: newCanonical}.apply(s)
		s = strings.Map(func(r rune) rune {
			if isNonspacing(r) {
				return -1
			}
			return r
		}, s)
	}
	if n.lower {
		s = lowercase(s)
	}
	return s
}

// nmt drops control characters and makes spaces of what looks like one, as
// SentencePiece's rules nmt_nfkc do before NFKC.
func nmt(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 0x01 && r <= 0x08, r == 0x0B, r >= 0x0E && r <= 0x1F, r == 0x7F, r == 0x8F, r == 0x9F:
			return -1
		case r == '\t', r == '\n', r == '\f', r == '\r', r == 0x1680, r >= 0x200B && r <= 0x200F,
			r == 0x2028, r == 0x2029, r == '▁', r == 0xFEFF, r == utf8.RuneError:
			return ' '
		}
		return r
	}, s)
}

// A normalForm is one of Unicode's (UAX #15).
type normalForm struct {
	form    norm.Form
	compose bool
	keep    ranges // characters without a decomposition in the reference's tables
}

func (n normalForm) apply(s string) string {
	if len(n.keep) == 0 || strings.IndexFunc(s, n.keep.has) < 0 {
		return n.plain(s)
	}
	var b strings.Builder
	begin := 0
	for i, r := range s {
		if n.keep.has(r) {
			b.WriteString(n.plain(s[begin:i]))
			b.WriteRune(r)
			begin = i + len(string(r))
		}
	}
	b.WriteString(n.plain(s[begin:]))
	return b.String()
}

// plain undoes what the library does beyond the standard's forms: after 30 marks
// in a row it puts a grapheme joiner ("stream-safe text").
func (n normalForm) plain(s string) string {
	const joiner = "\u034F"
	out := n.form.String(s)
	if strings.Count(out, joiner) == strings.Count(s, joiner) {
		return out
	}
	return n.long(s)
}

// long does the same for texts with long runs of marks, by the definition.
func (n normalForm) long(s string) string {
	type char struct {
		r     rune
		class uint8
	}
	var chars []char
	for _, r := range s {
		for _, d := range n.decomposed(r) {
			chars = append(chars, char{d, norm.NFD.PropertiesString(string(d)).CCC()})
		}
	}
	for i := 0; i < len(chars); {
		end := i + 1
		for end < len(chars) && chars[end].class != 0 {
			end++
		}
		run := chars[i:end]
		if run[0].class == 0 {
			run = run[1:]
		}
		slices.SortStableFunc(run, func(a, b char) int { return int(a.class) - int(b.class) })
		i = end
	}
	out := make([]rune, 0, len(chars))
	starter, last := -1, 0 // the last starter's place in out, the class of what came after it
	for _, c := range chars {
		if n.compose && starter >= 0 && (last < int(c.class) || last == 0 && starter == len(out)-1) {
			if r, ok := composed(out[starter], c.r); ok {
				out[starter] = r
				continue
			}
		}
		last = int(c.class)
		if c.class == 0 {
			starter = len(out)
		}
		out = append(out, c.r)
	}
	return string(out)
}

// decomposed gives a character's full decomposition.
func (n normalForm) decomposed(r rune) []rune {
	form := norm.NFD
	if n.form == norm.NFKC || n.form == norm.NFKD {
		form = norm.NFKD
	}
	return []rune(form.String(string(r)))
}

// composed gives the primary composite of two characters, if there is one.
func composed(a, b rune) (rune, bool) {
	pair := []rune(norm.NFC.String(string([]rune{a, b})))
	return pair[0], len(pair) == 1
}
