package tokenizer

import (
	"encoding/base64"
	"errors"
	"testing"
	"unicode/utf8"
)

// FuzzScanners holds the scanners to their patterns.
func FuzzScanners(f *testing.F) {
	for _, text := range testTexts(f) {
		f.Add(text)
	}
	var engines []*pattern
	exprs := []string{gpt2Pattern, llama3Pattern, qwen2Pattern}
	for _, expr := range exprs {
		re, err := compile("pattern", expr)
		if err != nil {
			f.Fatal(err)
		}
		engines = append(engines, &pattern{re: re})
	}
	f.Fuzz(func(t *testing.T, text string) {
		text = lossyUTF8(text)
		for i, expr := range exprs {
			want, err := engines[i].find(text)
			if err != nil {
				t.Fatal(err)
			}
			got, err := (&pattern{scan: scannerFor(expr)}).find(text)
			if err != nil {
				t.Fatal(err)
			}
			for j := range max(len(got), len(want)) {
				if j >= len(got) || j >= len(want) || got[j] != want[j] {
					t.Fatalf("%q: %s: scanned %v, matched %v", text, expr, got, want)
				}
			}
		}
	})
}

// FuzzParse feeds broken files, and texts to what still parses.
func FuzzParse(f *testing.F) {
	f.Add(tiny(nil), "ab A")
	for _, part := range []struct{ key, json string }{
		{"normalizer", `{"type":"Sequence","normalizers":[{"type":"NFKC"},{"type":"Lowercase"},{"type":"StripAccents"},{"type":"Strip","strip_left":true,"strip_right":true},{"type":"Prepend","prepend":"b"},{"type":"Replace","pattern":{"Regex":"a+?"},"content":""}]}`},
		{"pre_tokenizer", `{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:a|[^b-d\\s])++(?=x)"},"behavior":"MergedWithNext","invert":true},{"type":"Digits","individual_digits":true},{"type":"ByteLevel","add_prefix_space":true}]}`},
		{"pre_tokenizer", `{"type":"Metaspace","replacement":"b","prepend_scheme":"first","split":true}`},
		{"decoder", `{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":2},{"type":"Metaspace","replacement":"a"}]}`},
		{"post_processor", `{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"a","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"a":{"id":"a","ids":[0],"tokens":["a"]}}}`},
		{"added_tokens", `[{"id":5,"content":"abb","single_word":true,"lstrip":true,"rstrip":true,"normalized":true,"special":true}]`},
		{"model", `{"type":"BPE","unk_token":"a","fuse_unk":true,"byte_fallback":true,"continuing_subword_prefix":"b","end_of_word_suffix":"/","vocab":{"a":0,"ba":1,"aa":2,"<0x41>":3},"merges":[["a","ba"]]}`},
		{"model", `{"type":"Unigram","unk_id":0,"byte_fallback":true,"vocab":[["<unk>",0],["a",-1.5],["ab",-2],["<0x62>",0]]}`},
		{"model", `{"type":"WordPiece","unk_token":"a","continuing_subword_prefix":"b","max_input_chars_per_word":5,"vocab":{"a":0,"ba":1,"bb":2}}`},
		{"model", `{"type":"WordLevel","unk_token":"a","vocab":{"a":0,"b":1}}`},
		{"normalizer", `{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true}`},
		{"normalizer", `{"type":"Precompiled","precompiled_charsmap":"` + charsmapOf(append([]uint32{1 << 10}, make([]uint32, 255)...), "x\x00") + `"}`},
		{"normalizer", `{"type":"Sequence","normalizers":[{"type":"Nmt"},{"type":"ByteLevel"}]}`},
		{"pre_tokenizer", `{"type":"Sequence","pretokenizers":[{"type":"BertPreTokenizer"},{"type":"CharDelimiterSplit","delimiter":"a"},{"type":"UnicodeScripts"},{"type":"FixedLength","length":3}]}`},
		{"post_processor", `{"type":"Sequence","processors":[{"type":"ByteLevel"},{"type":"BertProcessing","cls":["a",0],"sep":["b",1]}]}`},
		{"post_processor", `{"type":"RobertaProcessing","cls":["a",0],"sep":["b",1],"trim_offsets":true,"add_prefix_space":true}`},
		{"decoder", `{"type":"Sequence","decoders":[{"type":"WordPiece","prefix":"b","cleanup":true},{"type":"CTC","pad_token":"a","word_delimiter_token":"","cleanup":true},{"type":"BPEDecoder","suffix":""}]}`},
	} {
		f.Add(tiny(map[string]string{part.key: part.json}), "ab A\u0301 12\xff")
	}
	f.Fuzz(func(t *testing.T, file []byte, text string) {
		tok, err := Parse(file)
		if err != nil {
			var format *FormatError
			var unsupported *UnsupportedError
			var inText *TextError // of an added token's normalization
			if !errors.As(err, &format) && !errors.As(err, &unsupported) && !errors.As(err, &inText) {
				t.Fatalf("%v has no type", err)
			}
			return
		}
		if len(text) > 1000 {
			return
		}
		ids, err := tok.Encode(text, true)
		if err != nil {
			var inText *TextError
			if !errors.As(err, &inText) {
				t.Fatalf("%v has no type", err)
			}
			return
		}
		for _, skip := range []bool{false, true} {
			var inText *TextError
			decoded, err := tok.Decode(ids, skip)
			if err != nil && !errors.As(err, &inText) {
				t.Fatalf("%v has no type", err)
			}
			if !utf8.ValidString(decoded) {
				t.Fatalf("decoded to %q", decoded)
			}
		}
	})
}

// FuzzCharsmap feeds broken charsmaps, and texts to those that are none.
func FuzzCharsmap(f *testing.F) {
	raw, err := base64.StdEncoding.DecodeString(charsmapOf(append([]uint32{1 << 10}, make([]uint32, 255)...), "x\x00"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, "a\u0301")
	f.Add([]byte{4, 0, 0, 0, 0, 0, 0, 0}, "")
	f.Fuzz(func(t *testing.T, raw []byte, text string) {
		m, problem := newCharsmap(raw)
		if problem != "" {
			return
		}
		p, err := m.normalize(newPiece(lossyUTF8(text), false))
		if err != nil || !utf8.ValidString(p.text) || p.zero > len(p.text) {
			t.Fatalf("%q, %d, %v", p.text, p.zero, err)
		}
	})
}

// FuzzEncode looks for texts that the well-known kinds trip over. The byte-level
// ones give back what went in.
func FuzzEncode(f *testing.F) {
	for _, text := range testTexts(f) {
		f.Add(text)
	}
	toks := map[string]*Tokenizer{}
	for _, name := range []string{"gpt2", "o200k", "qwen2", "llama2", "mistral", "clip", "flags", "metaspace_first_split",
		"t5", "albert", "unigram_bytes", "unigram_rules_first", "bert", "bert_cased", "levels", "ctc", "bpe_decoder", "delimiter"} {
		toks[name] = testTokenizer(f, name)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for name, tok := range toks {
			ids, err := tok.Encode(text, true)
			if err != nil {
				t.Fatal(err)
			}
			got, err := tok.Decode(ids, false)
			if err != nil {
				t.Fatal(err)
			}
			if (name == "gpt2" || name == "o200k") && got != lossyUTF8(text) {
				t.Fatalf("%s: %q came back as %q", name, text, got)
			}
		}
	})
}
