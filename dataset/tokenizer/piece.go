package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// A piece is a part of a text on its way through the tokenizer, or an added token
// that was found in it.
type piece struct {
	text string
	// zero is the number of bytes at the start of text that come from the first
	// character of the whole text. Metaspace asks for it: only a piece that begins
	// there is the first one.
	zero int
	bare bool // nothing is to be put before it

	isToken bool
	id      uint32
}

// newPiece is a whole text.
func newPiece(text string, bare bool) piece {
	_, size := utf8.DecodeRuneInString(text)
	return piece{text: text, zero: size, bare: bare}
}

// slice is the part of a piece from byte a to byte b.
func (p piece) slice(a, b int) piece {
	p.text, p.zero = p.text[a:b], min(max(p.zero-a, 0), b-a)
	return p
}

// first says that a piece begins where the whole text begins.
func (p piece) first() bool { return p.zero > 0 }

// prepend puts s before a piece; it comes from where the first character does.
func (p piece) prepend(s string) piece {
	if p.text == "" || p.bare {
		return p
	}
	if p.first() {
		p.zero += len(s)
	}
	p.text = s + p.text
	return p
}

// rewrite maps a piece's text by a function of text that works on characters one
// by one or nearly so.
func (p piece) rewrite(f func(string) string) piece {
	p.zero = len(f(p.text[:p.zero]))
	p.text = f(p.text)
	p.zero = min(p.zero, len(p.text))
	return p
}

// appendPiece leaves out empty pieces, as the reference does.
func appendPiece(out []piece, p piece) []piece {
	if p.text == "" {
		return out
	}
	return append(out, p)
}

// lossyUTF8 replaces each maximal part of a broken sequence by U+FFFD (Unicode 16,
// section 3.9, "U+FFFD Substitution of Maximal Subparts").
func lossyUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		if r != utf8.RuneError || size > 1 {
			b.WriteString(s[:size])
			s = s[size:]
			continue
		}
		b.WriteRune(utf8.RuneError)
		s = s[brokenPart(s):]
	}
	return b.String()
}

// brokenPart is the length of the longest start of a broken sequence that some
// sequence has.
func brokenPart(s string) int {
	lo, hi, more := byte(0x80), byte(0xBF), 0
	switch c := s[0]; {
	case c >= 0xE0 && c <= 0xEF:
		more = 1
	case c >= 0xF0 && c <= 0xF4:
		more = 2
	}
	switch s[0] {
	case 0xE0:
		lo = 0xA0
	case 0xED:
		hi = 0x9F
	case 0xF0:
		lo = 0x90
	case 0xF4:
		hi = 0x8F
	}
	n := 1
	for ; n <= more && n < len(s) && s[n] >= lo && s[n] <= hi; n++ {
		lo, hi = 0x80, 0xBF
	}
	return n
}
