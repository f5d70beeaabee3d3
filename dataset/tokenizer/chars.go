package tokenizer

import (
	"slices"
	"unicode"
	"unicode/utf8"
)

// A runeRange is a range of characters, both ends included.
type runeRange struct{ lo, hi rune }

// ranges are in order and apart from each other.
type ranges []runeRange

func (rs ranges) has(r rune) bool {
	_, ok := slices.BinarySearchFunc(rs, r, func(a runeRange, r rune) int {
		switch {
		case a.hi < r:
			return -1
		case a.lo > r:
			return 1
		}
		return 0
	})
	return ok
}

// isLetter is \p{L}.
func isLetter(r rune) bool {
	return unicode.IsLetter(r) || r > unicode.MaxLatin1 && unicode16["L"].has(r)
}

// isNumber16 is \p{N}.
func isNumber16(r rune) bool {
	return unicode.IsNumber(r) || r > unicode.MaxLatin1 && unicode16["N"].has(r)
}

// isNumber is what Digits splits at.
func isNumber(r rune) bool {
	return unicode.IsNumber(r) || newNumbers.has(r)
}

// isWord is \w as Whitespace and single_word have it: Alphabetic, M, Nd, Pc and
// Join_Control (UTS #18, annex C).
func isWord(r rune) bool {
	return unicode.In(r, unicode.L, unicode.M, unicode.Nd, unicode.Nl, unicode.Pc, unicode.Other_Alphabetic) ||
		r == 0x200C || r == 0x200D || newWords.has(r)
}

// isPunctuation is what Punctuation splits at: P, and ASCII's symbols.
func isPunctuation(r rune) bool {
	if r < 0x80 {
		return unicode.IsPunct(r) || unicode.IsSymbol(r)
	}
	return unicode.IsPunct(r) && !newPunctuation.has(r) || oldPunctuation.has(r)
}

// isAccent is what StripAccents takes away.
func isAccent(r rune) bool {
	return unicode.IsMark(r) && !newMarks.has(r) || oldMarks.has(r)
}

// isNonspacing is what BertNormalizer takes for an accent: Mn.
func isNonspacing(r rune) bool {
	return r >= 0x300 && (unicode.Is(unicode.Mn, r) && !newMarks.has(r) && !newNonspacing.has(r) || oldNonspacing.has(r))
}

// isControl is what BertNormalizer cleans away: Cc, Cf, Co and U+FFFD, but not
// what it takes for white space.
func isControl(r rune) bool {
	switch {
	case r == '\t' || r == '\n' || r == '\r':
		return false
	case r == utf8.RuneError:
		return true
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co) && !newFormats.has(r)
}

// isIdeograph is what BertNormalizer puts spaces around: the blocks of Han
// characters that BERT's own tokenizer names.
func isIdeograph(r rune) bool {
	return r >= 0x3400 && ideographs.has(r)
}

var ideographs = ranges{
	{0x3400, 0x4DBF}, {0x4E00, 0x9FFF}, {0xF900, 0xFAFF},
	{0x20000, 0x2A6DF}, {0x2A700, 0x2B81F}, {0x2B920, 0x2CEAF}, {0x2F800, 0x2FA1F},
}

func lower(r rune) rune {
	if l := unicode.ToLower(r); l != r || r < 0x1C89 {
		return l
	}
	for _, c := range newCapitals {
		if r >= c.lo && r <= c.hi {
			return r + c.distance
		}
	}
	return r
}
