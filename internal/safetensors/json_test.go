package safetensors

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var jsonTexts = []string{
	`{}`, `[]`, `[1,-2.5e+3,0,1E9,0.5]`, `"a\"\\\/\b\f\n\r\t\u00e9"`, `{"a":{"b":[true,false,null]},"c":""}`, ` { "a" : [ ] } `,
	`"\ud83d\ude00"`, "\"é\u2028\"", `[[[[]]]]`, `{"a":1,"a":2}`, `-0`, `"\\\\ud800"`,
	``, `{`, `{"a"}`, `{"a":}`, `{a:1}`, `[1,]`, `[,1]`, `{,}`, `01`, `+1`, `.5`, `1.`, `1e`, `-`, `"a`, `"\x"`, `"\u12"`, `"\u+123"`,
	"\"\t\"", `nul`, `truefalse`, `[1 2]`, `{"a" 1}`, `{}{}`, `'a'`, `//`,
}

// valid reports whether jsonReader takes text, and nothing behind it.
func valid(text []byte) bool {
	r := &jsonReader{what: "text", text: text}
	return r.skip(0) == nil && r.peek() == 0 && r.at == len(text)
}

// TestSkipAgainstEncodingJSON holds what is skipped against encoding/json, which
// differs in halves of surrogate pairs and in depth alone.
func TestSkipAgainstEncodingJSON(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	check := func(text []byte) {
		if !utf8.Valid(text) || strings.Contains(string(text), `\u`) && strings.ContainsAny(string(text), "dD") {
			return
		}
		if got, want := valid(text), json.Valid(text); got != want {
			t.Fatalf("%q: %v, want %v", text, got, want)
		}
	}
	for _, text := range jsonTexts {
		check([]byte(text))
	}
	for range 100_000 {
		text := []byte(jsonTexts[rng.IntN(len(jsonTexts))])
		for range 1 + rng.IntN(3) {
			const bytes = `{}[]",:\utrnf0123456789.eE+- a`
			c := bytes[rng.IntN(len(bytes))]
			switch at := rng.IntN(len(text) + 1); {
			case at == len(text) || rng.IntN(2) == 0:
				text = append(text[:at], append([]byte{c}, text[at:]...)...)
			case rng.IntN(2) == 0:
				text[at] = c
			default:
				text = append(text[:at], text[at+1:]...)
			}
		}
		check(text)
	}
}

func TestStrings(t *testing.T) {
	for text, want := range map[string]string{
		`""`: "", `"a"`: "a", `"\"\\\/\b\f\n\r\t"`: "\"\\/\b\f\n\r\t", `"\u00e9é"`: "éé", `"\ud83d\ude00"`: "😀", `"\u0000"`: "\x00", `"\\u0041"`: `\u0041`,
	} {
		r := &jsonReader{text: []byte(text)}
		if got, err := r.string(); err != nil || got != want || r.at != len(text) {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{`"\ud800"`, `"\udc00"`, `"\ud800\u0041"`, `"\ud800x"`, `"\u00g0"`, `"\`, `"\u"`, `"` + strings.Repeat("x", maxText+1) + `"`} {
		r := &jsonReader{text: []byte(text)}
		if got, err := r.string(); err == nil {
			t.Errorf("%.40s: read as %.40q", text, got)
		}
	}
}

// TestLikeTheReference has what the reference implementation takes or refuses
// and others may see differently.
func TestLikeTheReference(t *testing.T) {
	const a = `"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]`
	for header, good := range map[string]bool{
		`{"__metadata__":null,` + a + `}}`: true,
		`{` + a + `,"x":1,"x":2}}`:         true, // fields that it does not know
		`{` + a + `,"x":` + strings.Repeat("[", 120) + strings.Repeat("]", 120) + `}}`: true,
		`{` + a + `,"x":` + strings.Repeat("[", 130) + strings.Repeat("]", 130) + `}}`: false,
		`{` + a + `,"x":"\ud800"}}`:      false,
		`{` + a + `,"x":tru}}`:           false,
		"{\"a\nb\":" + a[4:] + "}}":      false,
		`{` + a + `,}}`:                  false,
		`{"__metadata__":[],` + a + `}}`: false,
	} {
		if _, err := read(file(header, 4)); (err == nil) != good {
			t.Errorf("%.80s: error %v", header, err)
		}
	}
}

func TestReadIndex(t *testing.T) {
	got, err := ReadIndex([]byte(`{"metadata":{"total_size":3,"x":[1]},"weight_map":{"a":"1","b":"2","c":"1"}} `))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"a": "1", "b": "2", "c": "1"}, got); diff != "" {
		t.Error(diff)
	}
	for _, text := range []string{
		``, `{}`, `[]`, `{"weight_map":{}}`, `{"weight_map":[]}`, `{"weight_map":{"a":1}}`, `{"weight_map":{"a":"1","a":"2"}}`,
		`{"weight_map":{"a":"1"}}x`, `{"weight_map":{"a":"1"},"weight_map":{"b":"1"}}`, "{\"weight_map\":{\"\xff\":\"1\"}}",
	} {
		var bad *Error
		if _, err := ReadIndex([]byte(text)); !errors.As(err, &bad) {
			t.Errorf("%s: error %v, want an *Error", text, err)
		}
	}
}

func FuzzReadIndex(f *testing.F) {
	f.Add([]byte(`{"metadata":{"total_size":3},"weight_map":{"a\n":"1","b":"2"}}`))
	for _, text := range jsonTexts {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := ReadIndex(text)
		if err != nil {
			return
		}
		var all map[string]json.RawMessage
		var want map[string]string
		if err := errors.Join(json.Unmarshal(text, &all), json.Unmarshal(all["weight_map"], &want)); err != nil {
			t.Fatalf("encoding/json refuses it: %v", err)
		}
		for name, file := range got {
			if want[name] != file {
				t.Fatalf("%q is in %q, want %q", name, file, want[name])
			}
		}
	})
}
