package tokenizer

import (
	"fmt"
	"unicode/utf8"
)

// A wordPiece cuts a word into the longest tokens from left to right (Wu et al.
// 2016, section 4.1); tokens inside a word have a prefix. A word that cannot be cut
// so, or that has too many characters, is the unknown token.
type wordPiece struct {
	trie     *trie
	inside   int32 // the trie's node of the prefix; −1: no token has it
	maxChars int
	unk      unknown
}

// An unknown is the token for what is not in a vocabulary.
type unknown struct {
	token string
	id    int64 // −1: not in the vocabulary
}

func (u unknown) append(ids []uint32, piece string) ([]uint32, error) {
	if u.id < 0 {
		return nil, &TextError{Problem: fmt.Sprintf("%.40q has no token, and the unknown token %q is not in the vocabulary", piece, u.token)}
	}
	return append(ids, uint32(u.id)), nil
}

func newWordPiece(o *object) (*namedModel, error) {
	w := &wordPiece{unk: unknown{token: o.str("unk_token")}}
	prefix := o.str("continuing_subword_prefix")
	var maxChars uint64
	o.need("max_input_chars_per_word", "a count", &maxChars)
	w.maxChars = int(min(maxChars, maxTextBytes))
	ids := takeVocab(o)
	if err := o.finish(); err != nil {
		return nil, err
	}
	vocab, err := newVocabulary(o.path, ids)
	if err != nil {
		return nil, err
	}
	entries := make([]entry, 0, len(ids))
	for token, id := range ids {
		entries = append(entries, entry{token, id})
	}
	if err := checkTokens(o.path, entries); err != nil {
		return nil, err
	}
	w.unk.id = vocab.id(w.unk.token)
	w.trie = newTrie(entries)
	w.inside = w.trie.walk(0, prefix)
	return &namedModel{w, vocab}, nil
}

// encode takes O(n·L) for tokens of at most L bytes.
func (w *wordPiece) encode(piece string, ids []uint32) ([]uint32, error) {
	if len(piece) > w.maxChars && utf8.RuneCountInString(piece) > w.maxChars {
		return w.unk.append(ids, piece)
	}
	first := len(ids)
	for at, node := 0, int32(0); at < len(piece); node = w.inside {
		id, end := int64(-1), at
		for i := at; i < len(piece) && node >= 0; i++ {
			if node = w.trie.child(node, piece[i]); node >= 0 && w.trie.ids[node] >= 0 {
				id, end = w.trie.ids[node], i+1
			}
		}
		if id < 0 {
			return w.unk.append(ids[:first], piece)
		}
		ids = append(ids, uint32(id))
		at = end
	}
	return ids, nil
}

// A wordLevel has a token for each word, or the unknown token.
type wordLevel struct {
	*vocabulary
	unk unknown
}

func newWordLevel(o *object) (*namedModel, error) {
	w := &wordLevel{unk: unknown{token: o.str("unk_token")}}
	ids := takeVocab(o)
	if err := o.finish(); err != nil {
		return nil, err
	}
	var err error
	if w.vocabulary, err = newVocabulary(o.path, ids); err != nil {
		return nil, err
	}
	w.unk.id = w.id(w.unk.token)
	return &namedModel{w, w.vocabulary}, nil
}

func (w *wordLevel) encode(piece string, ids []uint32) ([]uint32, error) {
	if id, ok := w.ids[piece]; ok {
		return append(ids, id), nil
	}
	return w.unk.append(ids, piece)
}
