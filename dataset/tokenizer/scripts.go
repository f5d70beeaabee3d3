package tokenizer

import (
	"slices"
	"unicode"
)

// A scriptTable gives the script of characters as SentencePiece's trainer has it.
type scriptTable []scriptRange // in order and apart from each other

type scriptRange struct {
	runeRange
	script string
}

// anyScript goes with each script: the space, and characters that have none.
const anyScript = ""

func newScripts() scriptTable {
	var t scriptTable
	for name, table := range unicode.Scripts {
		if name == "Hiragana" || name == "Katakana" {
			name = "Han" // words mix them
		}
		for _, r := range table.R16 {
			t.add(rune(r.Lo), rune(r.Hi), rune(r.Stride), name)
		}
		for _, r := range table.R32 {
			t.add(rune(r.Lo), rune(r.Hi), rune(r.Stride), name)
		}
	}
	slices.SortFunc(t, func(a, b scriptRange) int { return int(a.lo - b.lo) })
	return t
}

func (t *scriptTable) add(lo, hi, stride rune, script string) {
	if stride == 1 {
		*t = append(*t, scriptRange{runeRange{lo, hi}, script})
		return
	}
	for r := lo; r <= hi; r += stride {
		*t = append(*t, scriptRange{runeRange{r, r}, script})
	}
}

func (t scriptTable) of(r rune) string {
	switch {
	case r == ' ':
		return anyScript
	case r == 'ー': // a long vowel, in either kana
		return "Han"
	case r > unicode.MaxLatin1 && scriptless.has(r):
		return anyScript
	}
	for _, m := range movedScripts {
		if m.has(r) {
			return m.script
		}
	}
	i, ok := slices.BinarySearchFunc(t, r, func(a scriptRange, r rune) int {
		switch {
		case a.hi < r:
			return -1
		case a.lo > r:
			return 1
		}
		return 0
	})
	if !ok {
		return anyScript
	}
	return t[i].script
}

// split cuts where the script changes. What stands before the first character with
// a script is lost, as in the reference.
func (t scriptTable) split(out []piece, p piece) []piece {
	begin, last := -1, anyScript
	for i, r := range p.text {
		script := t.of(r)
		if script == anyScript || script == last {
			continue
		}
		if begin >= 0 {
			out = append(out, p.slice(begin, i))
		}
		begin, last = i, script
	}
	if begin < 0 {
		return out
	}
	return append(out, p.slice(begin, len(p.text)))
}
