package tokenizer

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxAddedToken bounds an added token: finding tokens takes, at worst, the
// text's length times the longest token's.
const maxAddedToken = 1024

// addedTokens are the tokens that are found in a text before the model sees it:
// plain ones in the text as it is, then normalized ones in the normalized text.
type addedTokens struct {
	ids               map[string]uint32
	contents          map[uint32]string
	special           map[uint32]bool
	extra             int // those that are not in the model's vocabulary
	plain, normalized finder
	bare              finder // normalized, with nothing put before a token
}

// An addedToken's flags: it stands as a word of its own, takes the white space on
// its left, on its right.
type addedToken struct {
	id                         uint32
	singleWord, lstrip, rstrip bool
}

func newAddedTokens(raw rawList, m *vocabulary, n normalizer) (*addedTokens, error) {
	a := &addedTokens{
		ids: map[string]uint32{}, contents: map[uint32]string{}, special: map[uint32]bool{},
	}
	for i, r := range raw {
		o, err := newObject(fmt.Sprintf("added_tokens[%d]", i), r)
		if err != nil {
			return nil, err
		}
		if err := a.add(o, m, n); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (a *addedTokens) add(o *object, m *vocabulary, n normalizer) error {
	t := addedToken{id: o.count("id"), singleWord: o.boolean("single_word"), lstrip: o.boolean("lstrip"), rstrip: o.boolean("rstrip")}
	content, normalized, special := o.str("content"), o.boolean("normalized"), o.boolean("special")
	if err := o.finish(); err != nil {
		return err
	}
	fail := func(format string, args ...any) error {
		return &FormatError{Where: o.path, Problem: fmt.Sprintf("(%.40q) ", content) + fmt.Sprintf(format, args...)}
	}
	if content == "" {
		return nil // the reference skips it
	}
	if _, ok := a.ids[content]; ok {
		return fail("comes twice")
	}
	// The reference goes by the vocabulary and the order, its port to JavaScript by
	// the id in the file. Where they would differ, neither is right for sure.
	want := uint32(len(m.tokens) + a.extra)
	inVocab := false
	if id, ok := m.ids[content]; ok {
		want, inVocab = id, true
	}
	if t.id != want {
		return fail("has id %d, and its place in the vocabulary gives %d", t.id, want)
	}
	if other, ok := m.tokens[t.id]; ok && other != content {
		return fail("has id %d, which is %q in the vocabulary", t.id, other)
	}
	if !inVocab {
		a.extra++
	}
	a.ids[content], a.contents[t.id], a.special[t.id] = t.id, content, special
	if !normalized {
		return a.plain.put(o.path, content, t)
	}
	form, bare := newPiece(content, false), newPiece(content, true)
	if n != nil {
		var err error
		if form, err = n(form); err != nil {
			return err
		}
		if bare, err = n(bare); err != nil {
			return err
		}
	}
	if err := a.normalized.put(o.path, form.text, t); err != nil {
		return err
	}
	return a.bare.put(o.path, bare.text, t)
}

// A finder finds tokens in a text: leftmost first, and the longest of those that
// begin at one place.
type finder struct {
	first  [256]bool      // bytes that tokens begin with
	next   map[edge]int32 // a trie's edges
	leaves map[int32]addedToken
}

type edge struct {
	node int32
	b    byte
}

func (f *finder) some() bool { return len(f.leaves) > 0 }

// put adds a token as it is found in a text.
func (f *finder) put(path, text string, t addedToken) error {
	switch {
	case text == "":
		return &FormatError{Where: path, Problem: "is empty when normalized"}
	case len(text) > maxAddedToken:
		return &FormatError{Where: path, Problem: fmt.Sprintf("has more than %d bytes", maxAddedToken)}
	case f.next == nil:
		f.next, f.leaves = map[edge]int32{}, map[int32]addedToken{}
	}
	f.first[text[0]] = true
	node := int32(0)
	for i := range len(text) {
		e := edge{node, text[i]}
		child, ok := f.next[e]
		if !ok {
			child = int32(len(f.next) + 1)
			f.next[e] = child
		}
		node = child
	}
	if _, ok := f.leaves[node]; ok {
		return &FormatError{Where: path, Problem: "is the same as another added token when normalized"}
	}
	f.leaves[node] = t
	return nil
}

// longest gives the longest token at the start of a text.
func (f *finder) longest(text string) (t addedToken, size int) {
	if !f.first[text[0]] {
		return t, 0
	}
	node := int32(0)
	for i := range len(text) {
		child, ok := f.next[edge{node, text[i]}]
		if !ok {
			break
		}
		node = child
		if leaf, ok := f.leaves[node]; ok {
			t, size = leaf, i+1
		}
	}
	return t, size
}

// split appends the parts of a piece: tokens and what is between them.
func (f *finder) split(out []piece, p piece) []piece {
	if !f.some() {
		return appendPiece(out, p)
	}
	text, done := p.text, 0
	spaces := 0 // where the white space that was looked at last ends
	for at := 0; at < len(text); {
		t, size := f.longest(text[at:])
		if size == 0 {
			at++
			continue
		}
		start, stop := at, at+size
		at = stop // even if what follows gives the token up or makes it longer
		if t.singleWord && (endsInWord(text[:start]) || startsWithWord(text[stop:])) {
			continue
		}
		if t.lstrip {
			from := min(done, start)
			start = max(done, from+len(strings.TrimRightFunc(text[from:start], unicode.IsSpace)))
		}
		if t.rstrip {
			if stop >= spaces {
				spaces = len(text) - len(strings.TrimLeftFunc(text[stop:], unicode.IsSpace))
			}
			stop = spaces
		}
		if done < start {
			out = appendPiece(out, p.slice(done, start))
		}
		out = append(out, piece{isToken: true, id: t.id})
		done = stop
	}
	if done < len(text) {
		out = appendPiece(out, p.slice(done, len(text)))
	}
	return out
}

func endsInWord(s string) bool {
	r, size := utf8.DecodeLastRuneInString(s)
	return size > 0 && isWord(r)
}

func startsWithWord(s string) bool {
	r, size := utf8.DecodeRuneInString(s)
	return size > 0 && isWord(r)
}
