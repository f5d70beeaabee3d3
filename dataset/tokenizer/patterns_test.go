package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// testPatterns are regular expressions of each kind that translate knows, and a
// general category or script each.
func testPatterns() []string {
	patterns := []string{
		`\w+|[^\w\s]+`, `[\w]+`, `\W+`, `\bt`, `t\b`, `\B.`, `^.`, `.$`, `\A.`, `.\z`, `.\Z`, `$`, `^`, `\s*$`, `x*`, `(?=a)`, `(?<=a)b`,
		`(?<!a)b`, `[^\S\n]+`, `[\D]+`, `[\P{L}]+`, `\P{L}+`, `\p{^L}+`, `[^\p{Lu}\P{N}]`, `(?i:k)+`, `(?i:[sdmt]|ll|ve|re)`, `(?i)the|K`,
		`'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s`,
		`\p{Han}+|\p{Hiragana}|\p{Katakana}`, `[a[bc]]+`, `[^a[^b]]`, `[\-a\]]`, `[a-]`, `[-a]`, `[\[\]{}]`, `\x{e9}|\u0301|\x41`, `\h+`, `\H+`,
		`[\h]`, `a{2}`, `a{2}?`, `a{1,2}+`, `a{,2}b`, `(?>a+)b`, `a??b`, `a+?`, `.+`, `(a)|(b)`, `[\s\S]`, `[\x{1F600}-\x{1F64F}]`, `\p{M}+`,
		`\p{Mn}`, `\p{P}`, `\p{S}`, `[\p{L}\p{M}]+`, `\p{Lu}\p{Ll}*`, `\p{Latin}+`, `\p{Cyrillic}`, `[\t\f\v\a\e]`, `[^\W]`, `}`, `a|`, `|a`,
		`(|a)b`, `\p{Zs}`, `\p{Arabic}+`, `\p{Nl}`, `(?i:')`, `(?i:\p{N}a)`, `[ \n]`, ` `, `#`, `(?-i:A)`, `\p{Thai}+`, `\p{Cc}`, `\p{Cf}`,
		`\p{Co}`, `\D`, `[^\d]`, `\S`, `[\S]`, `[^\s\S]`, `\d{1,3}(?=(\d{3})*\b)`, `\p{Nd}{1,3}(?=(?:\p{Nd}{3})*(?:\P{Nd}|$))`, `[^\n]+|\n`,
		`[\b]`, `\n^`, `\n$`, `$\n`, `\s+^`, `\s+$`, `a^|^a`, `\s+\Z`, `\s\z`, `[\W]`, `[\W_]+`, `[^\W_]+`, `[\S\n]`, `[a[^\w\s]]+`,
		`[^[^\p{L}]\n]`, `[\H]`, `[\Da]`, `[^\D]`, `(?i:[\P{N}])`, `(?i:[^a-d])`, `(?i:[x-z\s]+)`,
	}
	for _, name := range slices.Sorted(maps.Keys(unicode16)) {
		if name != "Cs" { // no character of a text is one
			patterns = append(patterns, `\p{`+name+`}+`)
		}
	}
	return patterns
}

// patternTexts are the tests' texts, some that are told apart by few patterns, and
// all ends of what newer versions of Unicode added.
func patternTexts(t testing.TB) []string {
	t.Helper()
	texts := testTexts(t)
	for i := range texts {
		texts[i] = lossyUTF8(texts[i])
	}
	texts = append(texts, "²³¹¼½¾ a²b", "ⒶⒷ a", "a\n", "\n", "\na\n\nb\n", "éÉ", "aab", "K k s S ſ", "𝐀 𖥀", "a_b\u200db")
	for _, name := range slices.Sorted(maps.Keys(unicode16)) {
		var b strings.Builder
		for _, r := range unicode16[name] {
			for _, c := range []rune{r.lo - 1, r.lo, r.hi, r.hi + 1} {
				b.WriteRune(c)
			}
		}
		texts = append(texts, b.String())
	}
	return texts
}

// cutAll gives the pieces that a pattern cuts each text in.
func cutAll(t *testing.T, expr string, texts []string) [][]string {
	t.Helper()
	re, err := compile("pattern", expr)
	if err != nil {
		t.Errorf("%s: %v", expr, err)
		return nil
	}
	out := make([][]string, len(texts))
	for i, text := range texts {
		found, err := (&pattern{re: re}).find(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range cut(nil, newPiece(text, false), found, isolated) {
			out[i] = append(out[i], p.text)
		}
	}
	return out
}

func digest(pieces [][]string) string {
	h := fnv.New64a()
	for _, text := range pieces {
		_, _ = fmt.Fprintf(h, "%q\n", text)
	}
	return fmt.Sprintf("%016x", h.Sum64())
}

// TestPatterns holds what patterns match against digests of what they match in the
// reference's engine.
func TestPatterns(t *testing.T) {
	var want map[string]string
	readJSON(t, "testdata/patterns.json", &want)
	texts := patternTexts(t)
	for _, expr := range testPatterns() {
		if got := digest(cutAll(t, expr, texts)); got != want[expr] {
			t.Errorf("%s: digest %s, want %s; TestPatternsAgainstJudge shows what differs", expr, got, want[expr])
		}
	}
}

// TestPatternsAgainstJudge asks the reference.
func TestPatternsAgainstJudge(t *testing.T) {
	texts, patterns := patternTexts(t), testPatterns()
	pieces := judge(t, []job{{File: json.RawMessage("null"), Texts: texts, Patterns: patterns}})[0].Pieces
	if pieces == nil {
		t.Skip("needs the reference's own binding")
	}
	want := map[string]string{}
	for i, expr := range patterns {
		want[expr] = digest(pieces[i])
		got := cutAll(t, expr, texts)
		for j := range texts {
			if got != nil && !slices.Equal(got[j], pieces[i][j]) {
				t.Errorf("%s on %.200q:\n got %.300q\nwant %.300q", expr, texts[j], got[j], pieces[i][j])
			}
		}
	}
	if os.Getenv("FETTLE_UPDATE") == "" {
		return
	}
	raw, err := json.MarshalIndent(want, "", " ")
	if err == nil {
		err = os.WriteFile("testdata/patterns.json", append(raw, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestPatternsRefused(t *testing.T) {
	for _, expr := range []string{
		`(?i:[\Wa])`, `(?i:\b\w)`, `(?i:é)`, `(?i:[à-é])`, `(?i:st)`, `\xe9`, `\x{d800}`, `\x{110000}`, `a**`, `a{1001}`, `a{2,1}`, `a{`, `a{,}{2}`, `*a`,
		`[]a]`, `[z-a]`, `[a-\d]`, `[\d-z]`, `[a`, `(a`, `a)`, `\`, `[\`, `\p{L`, `\pL`, `\p{Alphabetic}`, `\G`, `\K`, `\R`, `\k<a>`, `(?<a>b)`,
		`(?#a)`, `(?x: a)`, `(*FAIL)`, `\Q`, `\0`, `\u12`, strings.Repeat("(", 100) + strings.Repeat(")", 100), strings.Repeat("[", 100) + "a" + strings.Repeat("]", 100),
	} {
		_, err := compile("pattern", expr)
		var unsupported *UnsupportedError
		if !errors.As(err, &unsupported) {
			t.Errorf("%.40s: %v, want an UnsupportedError", expr, err)
		}
	}
}

// A set and its complement are all there is.
func TestComplement(t *testing.T) {
	for _, name := range []string{"L", "Lu", "Nd", "Han", "Zl"} {
		set := (&translator{}).property(name, false)
		not := set.complement()
		for r := rune(0); r <= 0x10FFFF; r++ {
			in := unicode16[name].has(r)
			for _, table := range set.tables {
				in = in || unicode.Is(table, r)
			}
			if in == not.has(r) {
				t.Fatalf("%s: %U is in both or in none", name, r)
			}
		}
	}
}
