package tokenizer

import (
	"unicode"
	"unicode/utf8"
)

// The patterns that most models split by, found by scanning instead of a regular
// expression engine. Each is held equal to its pattern by a fuzz target.
const (
	gpt2Pattern   = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	llama3Pattern = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	qwen2Pattern  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

// A scanner gives the end of the match that begins at byte i. Its patterns match
// at every place of a text.
type scanner func(s string, i int) int

func scannerFor(pattern string) scanner {
	switch pattern {
	case gpt2Pattern:
		return scanGPT2
	case llama3Pattern:
		return func(s string, i int) int { return scanLlama3(s, i, 3) }
	case qwen2Pattern:
		return func(s string, i int) int { return scanLlama3(s, i, 1) }
	}
	return nil
}

// A charKind is what the patterns tell apart.
type charKind uint8

const (
	otherChar charKind = iota
	letter
	number
	space
	newline  // \r and \n
	endOfAll // after the text
)

var asciiKinds = func() (kinds [utf8.RuneSelf]charKind) {
	for c := range kinds {
		kinds[c] = slowKind(rune(c))
	}
	return kinds
}()

func slowKind(r rune) charKind {
	switch {
	case r == '\r' || r == '\n':
		return newline
	case unicode.IsSpace(r):
		return space
	case isLetter(r):
		return letter
	case isNumber16(r):
		return number
	}
	return otherChar
}

func kindAt(s string, i int) (kind charKind, size int) {
	if i >= len(s) {
		return endOfAll, 0
	}
	if s[i] < utf8.RuneSelf {
		return asciiKinds[s[i]], 1
	}
	r, size := utf8.DecodeRuneInString(s[i:])
	return slowKind(r), size
}

// skip gives the end of at most limit characters of a kind; limit 0: any number.
func skip(s string, i int, kind charKind, limit int) int {
	for n := 0; limit == 0 || n < limit; n++ {
		k, size := kindAt(s, i)
		if k != kind {
			return i
		}
		i += size
	}
	return i
}

// skipSpace gives the end of a run of white space, and the ends of its last line
// break and of what precedes its last character, −1 where there is none.
func skipSpace(s string, i int) (end, lastBreak, butOne int) {
	lastBreak, butOne = -1, -1
	end = i
	for {
		k, size := kindAt(s, end)
		if k != space && k != newline {
			return end, lastBreak, butOne
		}
		if end > i {
			butOne = end
		}
		end += size
		if k == newline {
			lastBreak = end
		}
	}
}

// contraction gives the length of 's, 't, 're, 've, 'm, 'll or 'd at the start of
// s, 0 if there is none; folded: in any case, and with ſ, which folds to s.
func contraction(s string, folded bool) int {
	if len(s) < 2 || s[0] != '\'' {
		return 0
	}
	at := func(i int) byte {
		if i >= len(s) {
			return 0
		}
		if c := s[i]; folded && c >= 'A' && c <= 'Z' {
			return c + 'a' - 'A'
		}
		return s[i]
	}
	switch a, b := at(1), at(2); {
	case a == 's', a == 't', a == 'm', a == 'd':
		return 2
	case a == 'r' && b == 'e', a == 'v' && b == 'e', a == 'l' && b == 'l':
		return 3
	case folded && len(s) >= 3 && s[1:3] == "ſ":
		return 3
	}
	return 0
}

func scanGPT2(s string, i int) int {
	if n := contraction(s[i:], false); n > 0 {
		return i + n
	}
	kind, size := kindAt(s, i)
	begin := i
	if s[i] == ' ' {
		kind, size = kindAt(s, i+1)
		begin = i + 1
	}
	if kind == letter || kind == number || kind == otherChar {
		return skip(s, begin+size, kind, 0)
	}
	return scanSpace(s, i)
}

// scanSpace is \s+(?!\S)|\s+.
func scanSpace(s string, i int) int {
	end, _, butOne := skipSpace(s, i)
	if end < len(s) && butOne > 0 {
		return butOne
	}
	return end
}

func scanLlama3(s string, i, digits int) int {
	if n := contraction(s[i:], true); n > 0 {
		return i + n
	}
	kind, size := kindAt(s, i)
	switch kind {
	case letter:
		return skip(s, i+size, letter, 0)
	case number:
		return skip(s, i, number, digits)
	case otherChar, space:
		if k, n := kindAt(s, i+size); k == letter {
			return skip(s, i+size+n, letter, 0)
		}
	}
	begin := i
	if s[i] == ' ' {
		kind, size = kindAt(s, i+1)
		begin = i + 1
	}
	if kind == otherChar {
		return skip(s, skip(s, begin+size, otherChar, 0), newline, 0)
	}
	if _, lastBreak, _ := skipSpace(s, i); lastBreak > 0 {
		return lastBreak
	}
	return scanSpace(s, i)
}
