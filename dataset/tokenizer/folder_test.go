package tokenizer

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// slowFiles are the files that a tokenizer.json of the tests was once made of.
func slowFiles(t *testing.T, name string) map[string]string {
	t.Helper()
	var file struct {
		Model struct {
			Vocab  map[string]uint32
			Merges []string
		}
		Added []map[string]any `json:"added_tokens"`
	}
	raw := testFile(t, name)
	var pairs struct{ Model struct{ Merges [][]string } }
	if err := json.Unmarshal(raw, &file); err != nil {
		if err := json.Unmarshal(raw, &pairs); err != nil {
			t.Fatal(err)
		}
	}
	tokens := slices.SortedFunc(maps.Keys(file.Model.Vocab), func(a, b string) int {
		return int(file.Model.Vocab[a]) - int(file.Model.Vocab[b])
	})
	added := map[uint32]map[string]any{}
	for _, a := range file.Added {
		added[uint32(a["id"].(float64))] = a
		delete(a, "id")
	}
	return map[string]string{
		"vocab.txt":  strings.Join(tokens, "\n") + "\n",
		"vocab.json": mustJSON(file.Model.Vocab),
		"merges.txt": "#version: 0.2\n" + strings.Join(file.Model.Merges, "\n") + "\n",
		"added":      mustJSON(added),
	}
}

// Folders without a tokenizer.json give the ids of the tokenizer.json.
func TestFolders(t *testing.T) {
	for _, c := range []struct{ name, config string }{
		{"bert", `{}`},
		{"bert", `{"tokenizer_class":"BertTokenizerFast","do_lower_case":true,"cls_token":{"content":"[CLS]"},"strip_accents":null}`},
		{"bert_cased", `{"tokenizer_class":"DistilBertTokenizer","do_lower_case":false,"tokenize_chinese_chars":true,"never_split":null}`},
		{"gpt2", `{"tokenizer_class":"GPT2Tokenizer","added_tokens_decoder":ADDED}`},
		{"roberta", `{"tokenizer_class":"RobertaTokenizer","bos_token":"!","eos_token":"\"","cls_token":"!","sep_token":{"content":"\""},"added_tokens_decoder":ADDED}`},
		{"qwen2", `{"tokenizer_class":"Qwen2TokenizerFast","added_tokens_decoder":ADDED}`},
	} {
		files := slowFiles(t, c.name)
		files["tokenizer_config.json"] = strings.ReplaceAll(c.config, "ADDED", files["added"])
		if strings.HasPrefix(c.name, "bert") {
			delete(files, "vocab.json")
		} else {
			delete(files, "vocab.txt")
		}
		files["config.json"] = `{"model_type":"bert"}`
		tok, err := Open(writeFiles(t, files))
		if err != nil {
			t.Errorf("%s %s: %v", c.name, c.config, err)
			continue
		}
		want := testTokenizer(t, c.name)
		for _, text := range testTexts(t) {
			ids, err := want.Encode(text, true)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, tok, text, ids)
			decoded, err := want.Decode(ids, true)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := tok.Decode(ids, true); err != nil || got != decoded {
				t.Errorf("%s: decoded %q, %v; want %q", c.name, got, err, decoded)
			}
		}
		if tok.Hash() == "" {
			t.Error("no hash")
		}
	}
}

func TestBrokenFolders(t *testing.T) {
	bert := "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n"
	for _, c := range []struct {
		files       map[string]string
		unsupported bool
		problem     string
	}{
		{map[string]string{"vocab.txt": bert}, true, `config.json: the tokenizer of "" without a tokenizer.json`},
		{map[string]string{"vocab.txt": bert, "config.json": `{"model_type":"esm"}`}, true, `the tokenizer of "esm"`},
		{map[string]string{"vocab.txt": bert, "config.json": `[]`}, false, "config.json is not a JSON object"},
		{map[string]string{"vocab.txt": bert, "tokenizer_config.json": `{"tokenizer_class":"GPT2Tokenizer"}`}, true, `"GPT2Tokenizer"`},
		{map[string]string{"vocab.txt": bert, "tokenizer_config.json": `{"tokenizer_class":7}`}, false, "tokenizer_class is neither"},
		{map[string]string{"vocab.txt": bert, "tokenizer_config.json": `{"tokenizer_class":"BertTokenizer","do_basic_tokenize":false}`}, true, "do_basic_tokenize"},
		{map[string]string{"vocab.txt": bert, "tokenizer_config.json": `{"tokenizer_class":"BertTokenizer","never_split":["a"]}`}, true, "never_split"},
		{map[string]string{"vocab.txt": bert, "tokenizer_config.json": `{"tokenizer_class":"BertTokenizer","cls_token":"<c>"}`}, false, `"<c>", which is not in the vocabulary`},
		{map[string]string{"vocab.txt": bert, "tokenizer_config.json": `{"tokenizer_class":"BertTokenizer","do_lower_case":"yes"}`}, false, "do_lower_case is neither"},
		{map[string]string{"vocab.txt": bert + "a\n", "config.json": `{"model_type":"bert"}`}, false, `"a" in line 5 and in line 6`},
		{map[string]string{"vocab.txt": bert + "\xff\n", "config.json": `{"model_type":"bert"}`}, false, "not UTF-8"},
		{map[string]string{"vocab.txt": bert, "config.json": `{"model_type":"bert"}`, "added_tokens.json": `{"x":9}`}, true, "added_tokens_decoder"},
		{map[string]string{"vocab.txt": bert, "tokenizer_config.json": `{"tokenizer_class":"BertTokenizer","added_tokens_decoder":{"5":null}}`}, false, "added_tokens_decoder is not"},
		{map[string]string{"vocab.json": `{"a":0}`, "merges.txt": "a b\n", "config.json": `{"model_type":"gpt2"}`}, false, "merges[0]"},
		{map[string]string{"vocab.json": `["a"]`, "merges.txt": "", "config.json": `{"model_type":"gpt2"}`}, false, "vocab.json is not an object of ids"},
		{map[string]string{"vocab.json": `{"a":0}`, "merges.txt": "", "config.json": `{"model_type":"whisper"}`}, true, `"whisper"`},
		{map[string]string{"vocab.json": `{"a":0}`, "merges.txt": "", "tokenizer_config.json": `{"tokenizer_class":"GPT2Tokenizer","add_bos_token":true}`}, true, "add_bos_token"},
	} {
		_, err := Open(writeFiles(t, c.files))
		var format *FormatError
		var unsupported *UnsupportedError
		if !errors.As(err, &format) && !errors.As(err, &unsupported) || (unsupported != nil) != c.unsupported || !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%v: %v, want %q", c.files, err, c.problem)
		}
	}
	if _, err := Open(writeFiles(t, map[string]string{"vocab.json": "{}", "config.json": `{"model_type":"gpt2"}`})); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no merges.txt: %v", err)
	}
}
