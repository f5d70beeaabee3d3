package tokenizer

import (
	"slices"
	"unicode"
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
