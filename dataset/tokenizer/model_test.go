package tokenizer

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func mustJSON(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// randomTokens gives different tokens of a few characters.
func randomTokens(rng *rand.Rand, n int) []string {
	var out []string
	for len(out) < n {
		var b strings.Builder
		for range 1 + rng.IntN(4) {
			b.WriteString([]string{"a", "b", "é", "中", "😀"}[rng.IntN(5)])
		}
		if !slices.Contains(out, b.String()) {
			out = append(out, b.String())
		}
	}
	return out
}

// The best of all cuts, by trying them.
func TestUnigramAgainstBruteForce(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		tokens := randomTokens(rng, 3+rng.IntN(10))
		vocab := [][]any{{"<unk>", 0.0}}
		scores := map[string]float64{}
		worst := 0.0
		for _, s := range tokens {
			scores[s] = -float64(rng.IntN(20)) // sums are exact
			worst = min(worst, scores[s])
			vocab = append(vocab, []any{s, scores[s]})
		}
		tok := parse(t, tiny(map[string]string{"model": fmt.Sprintf(`{"type":"Unigram","unk_id":0,"vocab":%s}`, mustJSON(vocab))}))
		for range 20 {
			text := strings.Join(randomTokens(rng, 1+rng.IntN(3)), "")
			chars := []rune(text)
			var best func(end int) (float64, []string)
			best = func(end int) (float64, []string) {
				if end == 0 {
					return 0, nil
				}
				top, cut := math.Inf(-1), []string(nil)
				for begin := range end {
					s := string(chars[begin:end])
					score, ok := scores[s]
					if !ok && end > begin+1 {
						continue
					}
					if !ok {
						s, score = "", worst-10
					}
					if rest, head := best(begin); score+rest > top {
						top, cut = score+rest, append(slices.Clone(head), s)
					}
				}
				return top, cut
			}
			_, cut := best(len(chars))
			var want []uint32
			for i, s := range cut {
				switch {
				case s != "":
					want = append(want, uint32(1+slices.Index(tokens, s)))
				case i == 0 || cut[i-1] != "":
					want = append(want, 0)
				}
			}
			compare(t, tok, text, want)
		}
	}
}

// The longest token at each place, by trying all.
func TestWordPieceAgainstBruteForce(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 300 {
		prefix := []string{"##", "", "a"}[rng.IntN(3)]
		vocab := map[string]uint32{"[UNK]": 0}
		for _, s := range randomTokens(rng, 3+rng.IntN(15)) {
			if rng.IntN(2) == 0 {
				s = prefix + s
			}
			if _, ok := vocab[s]; !ok {
				vocab[s] = uint32(len(vocab))
			}
		}
		limit := 2 + rng.IntN(12)
		tok := parse(t, tiny(map[string]string{"model": fmt.Sprintf(
			`{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":%q,"max_input_chars_per_word":%d,"vocab":%s}`, prefix, limit, mustJSON(vocab))}))
		for range 20 {
			text := strings.Join(randomTokens(rng, 1+rng.IntN(4)), "")
			var want []uint32
			for at := 0; at < len(text); {
				end := len(text)
				for ; end > at; end-- {
					s := text[at:end]
					if at > 0 {
						s = prefix + s
					}
					if id, ok := vocab[s]; ok {
						want = append(want, id)
						break
					}
				}
				if end == at {
					want = []uint32{0}
					break
				}
				at = end
			}
			if len([]rune(text)) > limit {
				want = []uint32{0}
			}
			compare(t, tok, text, want)
		}
	}
}

// A word of any length takes time in proportion to it.
func TestWordPieceLongWord(t *testing.T) {
	tok := parse(t, tiny(map[string]string{"model": fmt.Sprintf(
		`{"type":"WordPiece","unk_token":"u","continuing_subword_prefix":"##","max_input_chars_per_word":18446744073709551615,"vocab":{"u":0,"a":1,"##a":2,"##%sb":3}}`,
		strings.Repeat("a", 100))}))
	begin := time.Now()
	ids, err := tok.Encode(strings.Repeat("a", 1<<20), false)
	if err != nil || len(ids) != 1<<20 {
		t.Fatalf("%d ids, %v", len(ids), err)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}

// charsmapOf puts a double array and replacements together.
func charsmapOf(units []uint32, replacements string) string {
	raw := binary.LittleEndian.AppendUint32(nil, uint32(4*len(units)))
	for _, u := range units {
		raw = binary.LittleEndian.AppendUint32(raw, u)
	}
	return base64.StdEncoding.EncodeToString(append(raw, replacements...))
}

func TestBrokenCharsmaps(t *testing.T) {
	block := func(set map[int]uint32) []uint32 {
		units := make([]uint32, 256)
		for i, u := range set {
			units[i] = u
		}
		return units
	}
	for name, c := range map[string]struct{ encoded, problem string }{
		"empty":             {"", "0 bytes"},
		"no base64":         {"a*b=", "not base64"},
		"length beyond":     {base64.StdEncoding.EncodeToString([]byte{0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0}), "trie of 4294967295 bytes"},
		"odd length":        {base64.StdEncoding.EncodeToString([]byte{3, 0, 0, 0, 0, 0, 0, 0}), "trie of 3 bytes"},
		"no units":          {base64.StdEncoding.EncodeToString([]byte{0, 0, 0, 0}), "trie of 0 bytes"},
		"short block":       {charsmapOf(make([]uint32, 10), ""), "points to unit 255 of 10"},
		"offset beyond":     {charsmapOf(block(map[int]uint32{0: 1 << 9, 5: 9<<10 | 1<<9 | 'a'}), ""), "points to unit"},
		"root is a value":   {charsmapOf(block(map[int]uint32{0: 1 << 31}), ""), "without a root"},
		"value beyond":      {charsmapOf(block(map[int]uint32{'a': 1<<8 | 'a'<<10 | 'a', 0: 0x80000005}), "xy\x00"), "without a root"},
		"replacement off":   {charsmapOf(block(map[int]uint32{0: 1 << 10, 'a' ^ 1: 2<<10 | 1<<8 | 'a', 'a' ^ 3: 0x80000005}), "xy\x00"), "byte 5 of the 3"},
		"inside a letter":   {charsmapOf(block(map[int]uint32{0: 1 << 10, 'a' ^ 1: 2<<10 | 1<<8 | 'a', 'a' ^ 3: 0x80000001}), "é\x00"), "byte 1 of the 3"},
		"long replacement":  {charsmapOf(block(map[int]uint32{0: 1 << 10, 'a' ^ 1: 2<<10 | 1<<8 | 'a', 'a' ^ 3: 0x80000000}), strings.Repeat("x", 2000)), "more than 1024 bytes"},
		"replacement bytes": {charsmapOf(make([]uint32, 256), "\xff"), "not UTF-8"},
	} {
		_, err := Parse(tiny(map[string]string{"normalizer": fmt.Sprintf(`{"type":"Precompiled","precompiled_charsmap":%q}`, c.encoded)}))
		var format *FormatError
		if !errors.As(err, &format) || format.Where != "normalizer.precompiled_charsmap" || !strings.Contains(format.Problem, c.problem) {
			t.Errorf("%s: %v, want %q", name, err, c.problem)
		}
	}
	good := charsmapOf(block(map[int]uint32{0: 1 << 10, 'a' ^ 1: 2<<10 | 1<<8 | 'a', 'a' ^ 3: 0x80000001}), "ybb\x00")
	tok := parse(t, tiny(map[string]string{"normalizer": fmt.Sprintf(`{"type":"Precompiled","precompiled_charsmap":%q}`, good)}))
	compare(t, tok, "a b", []uint32{1, 1, 3, 1})
}

func TestBrokenModels(t *testing.T) {
	long := strings.Repeat("x", 2000)
	for _, c := range []struct{ json, problem string }{
		{`{"type":"Unigram"}`, "is missing"},
		{`{"type":"Unigram","vocab":[["a"]]}`, "is not an array"},
		{`{"type":"Unigram","vocab":[["a",1,2]]}`, "is not an array"},
		{`{"type":"Unigram","vocab":[["a",null]]}`, "is not an array"},
		{`{"type":"Unigram","vocab":[[1,"a"]]}`, "is not an array"},
		{`{"type":"Unigram","vocab":[["a",1e999]]}`, "is not an array"},
		{`{"type":"Unigram","vocab":{"a":0}}`, "is not an array"},
		{`{"type":"Unigram","vocab":[["a",0]],"unk_id":1}`, "is 1, and there are 1 tokens"},
		{`{"type":"Unigram","vocab":[["a",0]],"unk_id":-1}`, "is not an id"},
		{`{"type":"Unigram","vocab":[["` + long + `",0]]}`, "token of 2000 bytes"},
		{`{"type":"WordPiece","unk_token":"u","continuing_subword_prefix":"##","max_input_chars_per_word":9,"vocab":{"` + long + `":0}}`, "token of 2000 bytes"},
		{`{"type":"WordPiece","unk_token":"u","continuing_subword_prefix":"##","max_input_chars_per_word":-9,"vocab":{}}`, "is not a count"},
		{`{"type":"WordPiece","unk_token":"u","continuing_subword_prefix":"##","vocab":{}}`, "is missing"},
		{`{"type":"WordPiece","unk_token":"u","continuing_subword_prefix":"##","max_input_chars_per_word":9,"vocab":{"a":1,"b":1}}`, "gives id 1"},
		{`{"type":"WordLevel","vocab":{"a":1}}`, "is missing"},
		{`{"type":"WordLevel","unk_token":"u","vocab":{"a":1,"b":1}}`, "gives id 1"},
	} {
		_, err := Parse(tiny(map[string]string{"model": c.json}))
		var format *FormatError
		if !errors.As(err, &format) || !strings.Contains(format.Error(), c.problem) {
			t.Errorf("%.100s: %v, want %q", c.json, err, c.problem)
		}
	}
	for _, model := range []string{
		`{"type":"Unigram","vocab":[["a",0]]}`,
		`{"type":"WordPiece","unk_token":"u","continuing_subword_prefix":"##","max_input_chars_per_word":9,"vocab":{"a":0}}`,
		`{"type":"WordLevel","unk_token":"u","vocab":{"a":0}}`,
	} {
		_, err := parse(t, tiny(map[string]string{"model": model})).Encode("x", false)
		var text *TextError
		if !errors.As(err, &text) || !strings.Contains(err.Error(), `"x" has no token`) {
			t.Errorf("%s: %v", model, err)
		}
	}
}

// Text without spaces takes time in proportion to its length.
func BenchmarkModels(b *testing.B) {
	for _, name := range []string{"t5", "xlmr", "unigram_bytes", "bert", "wordpiece_short", "gpt2", "llama2"} {
		tok := testTokenizer(b, name)
		for _, text := range []struct{ name, part string }{
			{"words", "The tokenizer reads a file, and there is nothing new under the sun: élèves, straße, 敏捷的. "}, {"run", "thetokenizerreads"},
		} {
			b.Run(name+"/"+text.name, func(b *testing.B) {
				full := strings.Repeat(text.part, 1<<20/len(text.part))
				b.SetBytes(int64(len(full)))
				for b.Loop() {
					if _, err := tok.Encode(full, false); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
