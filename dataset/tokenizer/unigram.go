package tokenizer

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sync"
	"unicode/utf8"
)

// unkPenalty is how much worse an unknown character is than the worst token.
const unkPenalty = 10

// A unigram is a unigram language model (Kudo 2018, section 3.2): of all ways to
// cut a piece into tokens it takes the one whose scores, log probabilities, have
// the largest sum. A character without a token of its own may be unknown, and
// unknown characters in a row are one unknown token, or their bytes.
type unigram struct {
	vocab        *vocabulary
	trie         *trie
	scores       []float64 // by id
	unk          int64     // −1: none
	unkScore     float64
	byteFallback bool
	bytes        [256]int64

	cache pieceCache
	paths sync.Pool // of *[]pathNode, for reuse
}

// A pathNode is the last token of the best cut of what comes before a position.
type pathNode struct {
	score float64 // of the whole cut
	begin int32   // where the token begins; −1: no cut ends here
	id    uint32
}

// A scoredToken is ["token", score].
type scoredToken struct {
	token string
	score float64
}

func (s *scoredToken) UnmarshalJSON(raw []byte) error {
	var token *string
	var score *float64
	pair := []any{&token, &score}
	if err := json.Unmarshal(raw, &pair); err != nil {
		return err
	}
	if len(pair) != 2 || token == nil || score == nil {
		return fmt.Errorf("not a token and a score")
	}
	s.token, s.score = *token, *score
	return nil
}

func newUnigram(o *object) (*namedModel, error) {
	u := &unigram{unk: -1}
	var tokens []scoredToken
	o.need("vocab", `an array of ["token", score]`, &tokens)
	var unk *uint32
	o.scan("unk_id", "an id", &unk)
	u.byteFallback = o.boolOr("byte_fallback", false)
	if err := o.finish(); err != nil {
		return nil, err
	}
	if unk != nil {
		if int(*unk) >= len(tokens) {
			return nil, &FormatError{Where: o.path + ".unk_id", Problem: fmt.Sprintf("is %d, and there are %d tokens", *unk, len(tokens))}
		}
		u.unk = int64(*unk)
	}
	u.vocab = &vocabulary{ids: make(map[string]uint32, len(tokens)), tokens: make(map[uint32]string, len(tokens))}
	u.scores = make([]float64, len(tokens))
	entries := make([]entry, len(tokens))
	worst := math.Inf(1)
	for i, t := range tokens {
		id := uint32(i)
		entries[i] = entry{t.token, id}
		u.vocab.ids[t.token], u.vocab.tokens[id] = id, t.token
		u.scores[i] = t.score
		worst = min(worst, t.score)
	}
	if err := checkTokens(o.path, entries); err != nil {
		return nil, err
	}
	u.unkScore = worst - unkPenalty
	u.trie = newTrie(entries)
	u.bytes = u.vocab.byteIDs()
	return &namedModel{u, u.vocab}, nil
}

// encode takes O(n·L) for tokens of at most L bytes.
func (u *unigram) encode(piece string, ids []uint32) ([]uint32, error) {
	if cached, ok := u.cache.get(piece); ok {
		return append(ids, cached...), nil
	}
	path, ok := u.paths.Get().(*[]pathNode)
	if !ok {
		path = new([]pathNode)
	}
	defer func() {
		if cap(*path) <= 1<<16 { // longer ones are not kept for the next piece
			u.paths.Put(path)
		}
	}()
	if cap(*path) < len(piece)+1 {
		*path = make([]pathNode, len(piece)+1)
	}
	best := (*path)[:len(piece)+1]
	if err := u.cut(piece, best); err != nil {
		return nil, err
	}
	begin := len(ids)
	ids = u.read(piece, best, ids)
	u.cache.put(piece, ids[begin:])
	return ids, nil
}

// cut finds the best cut up to each position (Viterbi). Of equal ones the one
// whose last token begins first stays.
func (u *unigram) cut(piece string, best []pathNode) error {
	for i := range best {
		best[i].begin = -1
	}
	best[0] = pathNode{}
	for at := 0; at < len(piece); {
		_, size := utf8.DecodeRuneInString(piece[at:])
		known := false
		node := int32(0)
		for end := at; end < len(piece); {
			if node = u.trie.child(node, piece[end]); node < 0 {
				break
			}
			end++
			if id := u.trie.ids[node]; id >= 0 {
				best[end].offer(best[at].score+u.scores[id], at, uint32(id))
				known = known || end == at+size
			}
		}
		if !known {
			if u.unk < 0 {
				return &TextError{Problem: fmt.Sprintf("%q has no token, and the vocabulary has no unknown token (unk_id)", piece[at:at+size])}
			}
			best[at+size].offer(best[at].score+u.unkScore, at, uint32(u.unk))
		}
		at += size
	}
	return nil
}

func (n *pathNode) offer(score float64, begin int, id uint32) {
	if n.begin < 0 || score > n.score {
		*n = pathNode{score, int32(begin), id}
	}
}

// read appends the ids of the best cut of the whole piece, which is known from its
// end.
func (u *unigram) read(piece string, best []pathNode, ids []uint32) []uint32 {
	first := len(ids)
	for end := len(piece); end > 0; {
		begin, id := int(best[end].begin), best[end].id
		if int64(id) != u.unk {
			ids = append(ids, id)
			end = begin
			continue
		}
		for begin > 0 && int64(best[begin].id) == u.unk {
			begin = int(best[begin].begin)
		}
		ids = u.appendUnknown(ids, piece[begin:end])
		end = begin
	}
	slices.Reverse(ids[first:])
	return ids
}

// appendUnknown appends, last first, the ids of unknown characters in a row: of the
// token that they make together (such as the unknown token's own spelling), of
// their bytes, or of the unknown token.
func (u *unigram) appendUnknown(ids []uint32, s string) []uint32 {
	if id, ok := u.vocab.ids[s]; ok {
		return append(ids, id)
	}
	all := u.byteFallback
	for i := 0; all && i < len(s); i++ {
		all = u.bytes[s[i]] >= 0
	}
	if !all {
		return append(ids, uint32(u.unk))
	}
	for i := len(s) - 1; i >= 0; i-- {
		ids = append(ids, uint32(u.bytes[s[i]]))
	}
	return ids
}
