package tokenizer

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"sync"
	"unicode/utf8"
)

const (
	maxCachedPiece = 256     // bytes; longer pieces seldom come again
	maxCacheBytes  = 8 << 20 // of pieces and ids; beyond it the cache starts anew
)

// A bpe is a byte-pair encoding (Sennrich et al. 2016, section 3.2): a piece
// starts as its characters, and the adjacent pair of lowest rank is merged until
// no pair of the table is left.
type bpe struct {
	*vocabulary
	merges map[pair]merge
	bytes  [256]int64 // ids of <0x00> to <0xFF>; −1: absent

	unk            *string // the unknown token
	unkID          int64   // −1: not in the vocabulary
	prefix, suffix string  // of characters inside a word, of its last character
	fuseUnk        bool
	byteFallback   bool
	ignoreMerges   bool

	cache pieceCache
	words sync.Pool // of *word, for reuse
}

type pair struct{ left, right uint32 }

type merge struct{ rank, id uint32 }

func newBPE(o *object) (*namedModel, error) {
	path := o.path
	var dropout float64
	if o.scan("dropout", "a number", &dropout) && dropout != 0 {
		o.fail(&UnsupportedError{Where: path, What: "dropout (random merges)"})
	}
	m := &bpe{unkID: -1}
	o.scan("unk_token", "a string", &m.unk)
	o.scan("continuing_subword_prefix", "a string", &m.prefix)
	o.scan("end_of_word_suffix", "a string", &m.suffix)
	m.fuseUnk = o.boolOr("fuse_unk", false)
	m.byteFallback = o.boolOr("byte_fallback", false)
	m.ignoreMerges = o.boolOr("ignore_merges", false)
	ids := takeVocab(o)
	merges := o.array("merges")
	if err := o.finish(); err != nil {
		return nil, err
	}
	if len(m.prefix)+len(m.suffix) > maxCachedPiece {
		return nil, &UnsupportedError{Where: path, What: "a prefix and suffix of words over 256 bytes"}
	}
	var err error
	if m.vocabulary, err = newVocabulary(path, ids); err != nil {
		return nil, err
	}
	m.bytes = m.byteIDs()
	if m.unk != nil {
		m.unkID = m.id(*m.unk)
	}
	return &namedModel{m, m.vocabulary}, m.setMerges(path, merges)
}

// setMerges reads merges as "a b" or ["a", "b"], all of one kind.
func (m *bpe) setMerges(path string, raw rawList) error {
	m.merges = make(map[pair]merge, len(raw))
	asPairs := len(raw) > 0 && len(raw[0]) > 0 && raw[0][0] == '['
	rank := uint32(0)
	for i, r := range raw {
		fail := func(format string, args ...any) error {
			return &FormatError{Where: fmt.Sprintf("%s.merges[%d]", path, i), Problem: fmt.Sprintf(format, args...)}
		}
		var parts []string
		if asPairs {
			if err := json.Unmarshal(r, &parts); err != nil || len(parts) != 2 {
				return fail("is not a pair of strings")
			}
		} else {
			var line string
			if err := json.Unmarshal(r, &line); err != nil {
				return fail("is not a string")
			}
			if strings.HasPrefix(line, "#version") {
				continue
			}
			if parts = strings.Split(line, " "); len(parts) != 2 {
				return fail("is not two tokens with a space between")
			}
		}
		left, right := m.id(parts[0]), m.id(parts[1])
		if left < 0 || right < 0 || len(parts[1]) < len(m.prefix) {
			return fail("has a token that is not in the vocabulary")
		}
		id := m.id(parts[0] + parts[1][len(m.prefix):])
		if id < 0 {
			return fail("makes a token that is not in the vocabulary")
		}
		m.merges[pair{uint32(left), uint32(right)}] = merge{rank, uint32(id)}
		rank++
	}
	return nil
}

// encode appends the ids of a piece.
func (m *bpe) encode(piece string, ids []uint32) ([]uint32, error) {
	if piece == "" {
		return ids, nil
	}
	if m.ignoreMerges {
		if id, ok := m.ids[piece]; ok {
			return append(ids, id), nil
		}
	}
	if cached, ok := m.cache.get(piece); ok {
		return append(ids, cached...), nil
	}
	w, ok := m.words.Get().(*word)
	if !ok {
		w = new(word)
	}
	defer m.words.Put(w)
	if err := m.start(w, piece); err != nil {
		return nil, err
	}
	w.merge(m.merges)
	begin := len(ids)
	ids = w.appendIDs(ids)
	m.cache.put(piece, ids[begin:])
	if cap(w.symbols) > 1<<16 { // not kept for the next piece
		*w = word{}
	}
	return ids, nil
}

// start lays out the characters of a piece as symbols. The order in which byte
// tokens and a pending unknown token come is the reference's.
func (m *bpe) start(w *word, piece string) error {
	w.symbols = w.symbols[:0]
	pending := false // an unknown token, not yet laid out
	for i := 0; i < len(piece); {
		_, size := utf8.DecodeRuneInString(piece[i:])
		s := piece[i : i+size]
		if i > 0 && m.prefix != "" {
			s = m.prefix + s
		}
		i += size
		if i == len(piece) && m.suffix != "" {
			s += m.suffix
		}
		if id, ok := m.ids[s]; ok {
			if pending {
				w.add(uint32(m.unkID))
				pending = false
			}
			w.add(id)
			continue
		}
		if m.byteFallback && m.fallBack(w, s) {
			continue
		}
		if m.unk == nil {
			continue // the reference drops such a character
		}
		if m.unkID < 0 {
			return &TextError{Problem: fmt.Sprintf("%q has no token, and the unknown token %q is not in the vocabulary", s, *m.unk)}
		}
		if pending && !m.fuseUnk {
			w.add(uint32(m.unkID))
		}
		pending = true
	}
	if pending {
		w.add(uint32(m.unkID))
	}
	return nil
}

// fallBack lays out byte tokens, if all of them exist.
func (m *bpe) fallBack(w *word, s string) bool {
	for i := range len(s) {
		if m.bytes[s[i]] < 0 {
			return false
		}
	}
	for i := range len(s) {
		w.add(uint32(m.bytes[s[i]]))
	}
	return true
}

// A word is a piece while it is merged: symbols in a doubly linked list and a
// heap of possible merges, ordered by rank, then position.
type word struct {
	symbols []symbol
	heap    []candidate
}

// A symbol's prev and next are positions in the word, −1 at its ends; next is
// gone once the symbol was merged into the one on its left.
type symbol struct {
	id         uint32
	prev, next int32
}

const gone = math.MinInt32

type candidate struct {
	rank uint32
	pos  int32
	id   uint32 // of the merged token
}

func (c candidate) before(d candidate) bool {
	return c.rank < d.rank || c.rank == d.rank && c.pos < d.pos
}

func (w *word) add(id uint32) {
	n := int32(len(w.symbols))
	if n > 0 {
		w.symbols[n-1].next = n
	}
	w.symbols = append(w.symbols, symbol{id: id, prev: n - 1, next: -1})
}

// merge merges pairs, lowest rank first, leftmost first, in O(n log n).
func (w *word) merge(merges map[pair]merge) {
	w.heap = w.heap[:0]
	for i := 0; i+1 < len(w.symbols); i++ {
		if m, ok := merges[pair{w.symbols[i].id, w.symbols[i+1].id}]; ok {
			w.heap = append(w.heap, candidate{m.rank, int32(i), m.id})
		}
	}
	for i := len(w.heap)/2 - 1; i >= 0; i-- {
		w.sink(i)
	}
	for len(w.heap) > 0 {
		top := w.pop()
		left := &w.symbols[top.pos]
		if left.next < 0 { // the last symbol, or one that is gone
			continue
		}
		right := &w.symbols[left.next]
		// A stale candidate's pair has changed, and then makes another token.
		if m, ok := merges[pair{left.id, right.id}]; !ok || m.id != top.id {
			continue
		}
		left.id, left.next, right.next = top.id, right.next, gone
		if left.next >= 0 {
			w.symbols[left.next].prev = top.pos
			w.offer(merges, top.pos)
		}
		if left.prev >= 0 {
			w.offer(merges, left.prev)
		}
	}
}

// offer adds the merge of the symbol at pos and the next one, if there is one.
func (w *word) offer(merges map[pair]merge, pos int32) {
	s := w.symbols[pos]
	m, ok := merges[pair{s.id, w.symbols[s.next].id}]
	if !ok {
		return
	}
	w.heap = append(w.heap, candidate{m.rank, pos, m.id})
	for i := len(w.heap) - 1; i > 0; {
		parent := (i - 1) / 2
		if !w.heap[i].before(w.heap[parent]) {
			break
		}
		w.heap[i], w.heap[parent] = w.heap[parent], w.heap[i]
		i = parent
	}
}

func (w *word) pop() candidate {
	top, n := w.heap[0], len(w.heap)-1
	w.heap[0] = w.heap[n]
	w.heap = w.heap[:n]
	w.sink(0)
	return top
}

func (w *word) sink(i int) {
	for {
		c := 2*i + 1
		if c >= len(w.heap) {
			return
		}
		if c+1 < len(w.heap) && w.heap[c+1].before(w.heap[c]) {
			c++
		}
		if !w.heap[c].before(w.heap[i]) {
			return
		}
		w.heap[i], w.heap[c] = w.heap[c], w.heap[i]
		i = c
	}
}

func (w *word) appendIDs(ids []uint32) []uint32 {
	for _, s := range w.symbols {
		if s.next != gone {
			ids = append(ids, s.id)
		}
	}
	return ids
}

// A pieceCache holds the ids of short pieces. Words come again and again, and a
// lookup is some ten times faster than merging.
type pieceCache struct {
	mu   sync.RWMutex
	ids  map[string][]uint32
	size int
}

func (c *pieceCache) get(piece string) ([]uint32, bool) {
	if len(piece) > maxCachedPiece {
		return nil, false
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	ids, ok := c.ids[piece]
	return ids, ok
}

func (c *pieceCache) put(piece string, ids []uint32) {
	if len(piece) > maxCachedPiece {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	size := 64 + len(piece) + 4*len(ids) // with what a map entry takes, roughly
	if c.ids == nil || c.size+size > maxCacheBytes {
		c.ids, c.size = map[string][]uint32{}, 0
	}
	c.ids[strings.Clone(piece)] = append([]uint32(nil), ids...)
	c.size += size
}
