package tokenizer

import (
	"encoding/json"
	"fmt"
	"slices"
)

// maxToken bounds a token of the models that look for tokens in a text: finding
// them takes, at worst, the text's length times the longest token's.
const maxToken = 1024

// A model turns a piece of text into ids.
type model interface {
	// encode appends the ids of a piece, in time that is nearly linear in its length.
	encode(piece string, ids []uint32) ([]uint32, error)
}

// A vocabulary is a model's tokens.
type vocabulary struct {
	ids    map[string]uint32
	tokens map[uint32]string
}

// newVocabulary takes the ids of tokens, each of which one token has.
func newVocabulary(path string, ids map[string]uint32) (*vocabulary, error) {
	v := &vocabulary{ids: ids, tokens: make(map[uint32]string, len(ids))}
	for token, id := range ids {
		if other, ok := v.tokens[id]; ok {
			return nil, &FormatError{Where: path + ".vocab", Problem: fmt.Sprintf("gives id %d to %q and to %q", id, min(token, other), max(token, other))}
		}
		v.tokens[id] = token
	}
	return v, nil
}

// takeVocab reads a vocabulary of tokens with their ids.
func takeVocab(o *object) (ids map[string]uint32) {
	o.need("vocab", "an object of ids", &ids)
	return ids
}

// id is a token's id, −1 where there is none.
func (v *vocabulary) id(token string) int64 {
	if id, ok := v.ids[token]; ok {
		return int64(id)
	}
	return -1
}

// byteIDs are the ids of <0x00> to <0xFF>, −1 for those that are not there.
func (v *vocabulary) byteIDs() (ids [256]int64) {
	for b := range ids {
		ids[b] = v.id(fmt.Sprintf("<0x%02X>", b))
	}
	return ids
}

// A namedModel is a model and its tokens.
type namedModel struct {
	model
	vocab *vocabulary
}

func newModel(path string, raw json.RawMessage, depth int) (*namedModel, error) {
	o, kind, err := newComponent(path, raw, depth)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "BPE":
		return newBPE(o)
	case "Unigram":
		return newUnigram(o)
	case "WordPiece":
		return newWordPiece(o)
	case "WordLevel":
		return newWordLevel(o)
	}
	return nil, &UnsupportedError{Where: path, What: fmt.Sprintf("the model %q", kind)}
}

// A trie finds the tokens that a text begins with. Node 0 is the root; the
// children of a node lie together, in order of their bytes.
type trie struct {
	first  []int32 // a node's first child; the next node's first child ends them
	labels []byte  // the byte that leads to a node
	ids    []int64 // of the token that ends at a node; −1: none
}

// An entry is a token of a trie.
type entry struct {
	token string
	id    uint32
}

// newTrie builds a trie in O(n log n) of the tokens' bytes. Of two equal tokens
// the later one counts. Empty tokens are left out.
func newTrie(entries []entry) *trie {
	entries = slices.Clone(entries)
	slices.SortStableFunc(entries, func(a, b entry) int {
		switch {
		case a.token < b.token:
			return -1
		case a.token > b.token:
			return 1
		}
		return 0
	})
	// A node is a range of entries with a common start, laid out level by level.
	type span struct{ begin, end, depth int }
	t := &trie{labels: []byte{0}}
	queue := []span{{0, len(entries), 0}}
	for i := 0; i < len(queue); i++ {
		n := queue[i]
		id := int64(-1)
		at := n.begin
		for ; at < n.end && len(entries[at].token) == n.depth; at++ {
			if n.depth > 0 {
				id = int64(entries[at].id)
			}
		}
		t.ids = append(t.ids, id)
		t.first = append(t.first, int32(len(queue)))
		for at < n.end {
			b := entries[at].token[n.depth]
			begin := at
			for at < n.end && entries[at].token[n.depth] == b {
				at++
			}
			t.labels = append(t.labels, b)
			queue = append(queue, span{begin, at, n.depth + 1})
		}
	}
	t.first = append(t.first, int32(len(queue)))
	return t
}

// child is the node that a byte leads to, −1 where there is none.
func (t *trie) child(node int32, b byte) int32 {
	lo, hi := t.first[node], t.first[node+1]
	for lo < hi {
		mid := (lo + hi) / 2
		switch c := t.labels[mid]; {
		case c == b:
			return mid
		case c < b:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return -1
}

// walk follows a string down from a node; −1 where it leaves the trie.
func (t *trie) walk(node int32, s string) int32 {
	for i := 0; i < len(s) && node >= 0; i++ {
		node = t.child(node, s[i])
	}
	return node
}

// checkTokens refuses tokens that are too long to look for.
func checkTokens(path string, entries []entry) error {
	for _, e := range entries {
		if len(e.token) > maxToken {
			return &FormatError{Where: path + ".vocab", Problem: fmt.Sprintf("has a token of %d bytes (%.40q), and more than %d cannot be looked for in a text", len(e.token), e.token, maxToken)}
		}
	}
	return nil
}
