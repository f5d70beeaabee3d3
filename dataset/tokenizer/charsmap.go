package tokenizer

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rivo/uniseg"
)

const (
	maxCluster     = 6    // bytes; longer grapheme clusters are not replaced as a whole (exclusive)
	maxReplacement = 1024 // bytes; the longest of SentencePiece's own rules has 33
)

// A charsmap holds the rules of a SentencePiece model's normalization: a trie of
// what is replaced, as a double array of 32-bit units (Darts-clone's format, after
// Aoe 1989), and the replacements, each up to a zero byte.
//
// The units of a node's children are where the node's unit says, XOR the byte that
// leads to the child. A unit has the byte (bits 0–7), whether a token ends there
// (bit 8), and where its children are, relative to it (from bit 10; times 256 if
// bit 9 is set). A unit with bit 31 is no node but the place of a replacement.
type charsmap struct {
	units        []uint32
	replacements string
}

func unitOffset(u uint32) int { return int(u >> 10 << (u & (1 << 9) >> 6)) }

const (
	unitEnds  = 1 << 8
	unitValue = 1 << 31
)

func takeCharsmap(o *object) *charsmap {
	const key = "precompiled_charsmap"
	encoded := o.str(key)
	if o.err != nil {
		return nil
	}
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		o.failf(key, "is not base64: %v", err)
		return nil
	}
	m, problem := newCharsmap(raw)
	if problem != "" {
		o.failf(key, "%s", problem)
	}
	return m
}

// newCharsmap reads the bytes of a charsmap: the length of the double array in
// bytes, the array, the replacements. It says what is wrong with bad ones. What it
// takes, apply cannot leave.
func newCharsmap(raw []byte) (*charsmap, string) {
	if len(raw) < 4 {
		return nil, fmt.Sprintf("has %d bytes; it needs at least a length", len(raw))
	}
	size := binary.LittleEndian.Uint32(raw)
	raw = raw[4:]
	if size < 4 || uint64(size) > uint64(len(raw)) || size%4 != 0 {
		return nil, fmt.Sprintf("has a trie of %d bytes in the %d that are there", size, len(raw))
	}
	m := &charsmap{units: make([]uint32, size/4), replacements: string(raw[size:])}
	if !utf8.ValidString(m.replacements) {
		return nil, "has replacements that are not UTF-8"
	}
	for i := range m.units {
		m.units[i] = binary.LittleEndian.Uint32(raw[4*i:])
	}
	if m.units[0]&unitValue != 0 {
		return nil, "has a trie without a root"
	}
	for i, u := range m.units {
		if u&unitValue != 0 {
			continue
		}
		// Units that no node leads to have offset 0 and pass.
		children := i ^ unitOffset(u)
		if children|0xFF >= len(m.units) {
			return nil, fmt.Sprintf("has a trie whose unit %d points to unit %d of %d", i, children|0xFF, len(m.units))
		}
		if u&unitEnds == 0 {
			continue
		}
		at := m.units[children] &^ unitValue
		if uint64(at) > uint64(len(m.replacements)) || int(at) < len(m.replacements) && !utf8.RuneStart(m.replacements[at]) {
			return nil, fmt.Sprintf("has a trie whose unit %d points to byte %d of the %d of its replacements", i, at, len(m.replacements))
		}
		if len(m.replacement(at)) > maxReplacement {
			return nil, fmt.Sprintf("has a replacement of more than %d bytes at byte %d", maxReplacement, at)
		}
	}
	return m, ""
}

// replacement gives the one at a byte, or its start where it is too long.
func (m *charsmap) replacement(at uint32) string {
	r := m.replacements[at:]
	r = r[:min(len(r), maxReplacement+1)]
	if end := strings.IndexByte(r, 0); end >= 0 {
		r = r[:end]
	}
	return r
}

// find gives the replacement of the shortest start of s that has one.
func (m *charsmap) find(s string) (string, bool) {
	node := unitOffset(m.units[0])
	for i := 0; i < len(s) && s[i] != 0; i++ {
		node ^= int(s[i])
		u := m.units[node]
		if u&(unitValue|0xFF) != uint32(s[i]) {
			break
		}
		node ^= unitOffset(u)
		if u&unitEnds != 0 {
			return m.replacement(m.units[node] &^ unitValue), true
		}
	}
	return "", false
}

// normalize replaces short grapheme clusters (UAX #29) as a whole where a rule fits
// their start, and characters one by one elsewhere: what the reference does, and
// not quite SentencePiece, which takes the longest rule at each place.
func (m *charsmap) normalize(p piece) (piece, error) {
	var b strings.Builder
	b.Grow(len(p.text))
	zero := 0
	for rest, state := p.text, -1; rest != ""; {
		at := len(p.text) - len(rest)
		var unit string
		unit, rest, state = cutCluster(rest, state)
		if !m.replaceCluster(&b, unit) {
			m.replaceChars(&b, unit)
		}
		if b.Len() > maxTextBytes {
			return p, tooLong(b.Len())
		}
		// What comes from the first character; if that is nothing, the reference
		// takes what comes next for it.
		if at < p.zero || p.zero > 0 && zero == 0 {
			zero = b.Len()
		}
	}
	p.text, p.zero = b.String(), zero
	return p, nil
}

// cutCluster cuts a text after its first grapheme cluster.
func cutCluster(s string, state int) (cluster, rest string, next int) {
	// Between two ASCII characters, but for \r\n, clusters always end.
	if s[0] < utf8.RuneSelf && s[0] != '\r' && (len(s) == 1 || s[1] < utf8.RuneSelf) {
		return s[:1], s[1:], -1
	}
	cluster, rest, _, next = uniseg.FirstGraphemeClusterInString(s, state)
	for rest != "" && len(cluster) < maxCluster {
		// Marks of Unicode 16 belong to what is before them, unless that is a
		// control character.
		r, _ := utf8.DecodeRuneInString(rest)
		last, _ := utf8.DecodeLastRuneInString(cluster)
		if r < utf8.RuneSelf || !unicode16["M"].has(r) || unicode.In(last, unicode.Cc, unicode.Zl, unicode.Zp) {
			break
		}
		var more string
		more, rest, _, next = uniseg.FirstGraphemeClusterInString(rest, next)
		cluster = s[:len(cluster)+len(more)]
	}
	return cluster, rest, next
}

func (m *charsmap) replaceCluster(b *strings.Builder, s string) bool {
	if len(s) >= maxCluster {
		return false
	}
	r, ok := m.find(s)
	b.WriteString(r)
	return ok
}

// replaceChars replaces the characters of s one by one.
func (m *charsmap) replaceChars(b *strings.Builder, s string) {
	for i := 0; i < len(s); {
		_, size := utf8.DecodeRuneInString(s[i:])
		char := s[i : i+size]
		if r, ok := m.find(char); ok {
			char = r
		}
		b.WriteString(char)
		i += size
	}
}
