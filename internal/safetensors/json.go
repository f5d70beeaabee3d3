package safetensors

import (
	"bytes"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// maxText bounds a string: what is read is copied.
const maxText = 1 << 20

// maxNesting is how deep values may nest, as in the reference implementation.
const maxNesting = 127

// jsonReader reads JSON value by value from memory. encoding/json would let pass
// what the format forbids (duplicate keys, halves of surrogate pairs), is several
// times slower, and takes memory for what is skipped. Text must be UTF-8.
type jsonReader struct {
	what string // that is read, for errors
	text []byte
	at   int
}

func (r *jsonReader) bad(what string) error {
	return invalid("the %s is not valid JSON at byte %d: %s", r.what, r.at, what)
}

// peek returns the next byte that is no space, 0 at the end.
func (r *jsonReader) peek() byte {
	for ; r.at < len(r.text); r.at++ {
		switch c := r.text[r.at]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// take reads the next byte that is no space if it is c.
func (r *jsonReader) take(c byte) bool {
	if r.peek() != c {
		return false
	}
	r.at++
	return true
}

// word reads a literal.
func (r *jsonReader) word(w string) bool {
	r.peek()
	if !bytes.HasPrefix(r.text[r.at:], []byte(w)) {
		return false
	}
	r.at += len(w)
	return true
}

// object reads an object and calls value after each key; value reads what belongs
// to it.
func (r *jsonReader) object(value func(key string) error) error {
	if !r.take('{') {
		return r.bad("an object is wanted")
	}
	if r.take('}') {
		return nil
	}
	for {
		key, err := r.string()
		if err != nil {
			return err
		}
		if !r.take(':') {
			return r.bad("a colon is wanted")
		}
		if err := value(key); err != nil {
			return err
		}
		if r.take('}') {
			return nil
		}
		if !r.take(',') {
			return r.bad("a comma or a brace is wanted")
		}
	}
}

// list reads an array and calls value for each element; value reads it.
func (r *jsonReader) list(value func() error) error {
	if !r.take('[') {
		return r.bad("a list is wanted")
	}
	if r.take(']') {
		return nil
	}
	for {
		if err := value(); err != nil {
			return err
		}
		if r.take(']') {
			return nil
		}
		if !r.take(',') {
			return r.bad("a comma or a bracket is wanted")
		}
	}
}

// rawString reads a string and returns what stands between its quotes.
func (r *jsonReader) rawString() (raw []byte, escaped bool, err error) {
	if !r.take('"') {
		return nil, false, r.bad("a string is wanted")
	}
	start := r.at
	for ; r.at < len(r.text); r.at++ {
		switch c := r.text[r.at]; {
		case r.at-start > maxText:
			return nil, false, r.bad("a string has more than a MiB")
		case c == '"':
			r.at++
			return r.text[start : r.at-1], escaped, nil
		case c < ' ':
			return nil, false, r.bad("a string has a control character")
		case c == '\\':
			escaped = true
			r.at++
		}
	}
	return nil, false, r.bad("a string has no end")
}

func (r *jsonReader) string() (string, error) {
	raw, escaped, err := r.rawString()
	if err != nil || !escaped {
		return string(raw), err
	}
	return r.unquote(raw)
}

// unquote undoes the escapes of a string.
func (r *jsonReader) unquote(raw []byte) (string, error) {
	b := make([]byte, 0, len(raw))
	for len(raw) > 0 {
		c, n := raw[0], 1
		if c == '\\' {
			var v rune
			if v, n = escape(raw); n == 0 {
				return "", r.bad("a string has a malformed escape, or half of a surrogate pair")
			}
			b = utf8.AppendRune(b, v)
		} else {
			b = append(b, c)
		}
		raw = raw[n:]
	}
	return string(b), nil
}

// escape returns the character that an escape stands for and its bytes in raw; 0
// where it is malformed.
func escape(raw []byte) (v rune, n int) {
	if len(raw) < 2 {
		return 0, 0
	}
	if i := bytes.IndexByte([]byte(`"\/bfnrt`), raw[1]); i >= 0 {
		return rune("\"\\/\b\f\n\r\t"[i]), 2
	}
	v, ok := unit(raw)
	if !ok {
		return 0, 0
	}
	if !utf16.IsSurrogate(v) {
		return v, 6
	}
	low, _ := unit(raw[6:])
	if v = utf16.DecodeRune(v, low); v == utf8.RuneError {
		return 0, 0
	}
	return v, 12
}

// unit reads a \u escape.
func unit(raw []byte) (rune, bool) {
	if len(raw) < 6 || raw[0] != '\\' || raw[1] != 'u' || raw[2] == '+' {
		return 0, false
	}
	v, err := strconv.ParseUint(string(raw[2:6]), 16, 16)
	return rune(v), err == nil
}

// number reads a number and returns its text.
func (r *jsonReader) number() ([]byte, error) {
	r.peek()
	start := r.at
	digits := func() bool {
		from := r.at
		for r.at < len(r.text) && r.text[r.at] >= '0' && r.text[r.at] <= '9' {
			r.at++
		}
		return r.at > from
	}
	has := func(set string) bool {
		if r.at < len(r.text) && bytes.IndexByte([]byte(set), r.text[r.at]) >= 0 {
			r.at++
			return true
		}
		return false
	}
	has("-")
	ok := has("0") || digits()
	if ok && has(".") {
		ok = digits()
	}
	if ok && has("eE") {
		has("+-")
		ok = digits()
	}
	if !ok {
		return nil, r.bad("a value is wanted")
	}
	return r.text[start:r.at], nil
}

// skip reads any value inside depth others.
func (r *jsonReader) skip(depth int) error {
	if depth > maxNesting {
		return r.bad("values nest too deep")
	}
	switch r.peek() {
	case '{':
		return r.object(func(string) error { return r.skip(depth + 1) })
	case '[':
		return r.list(func() error { return r.skip(depth + 1) })
	case '"':
		raw, escaped, err := r.rawString()
		if escaped && err == nil {
			_, err = r.unquote(raw)
		}
		return err
	case 't':
		if r.word("true") {
			return nil
		}
	case 'f':
		if r.word("false") {
			return nil
		}
	case 'n':
		if r.word("null") {
			return nil
		}
	}
	_, err := r.number()
	return err
}
