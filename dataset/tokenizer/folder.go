package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A folder is that of a model that has no tokenizer.json: a vocabulary, and
// tokenizer_config.json and config.json where they are there.
type folder struct {
	path   string
	config map[string]json.RawMessage // tokenizer_config.json
	kind   string                     // bert, gpt2, roberta, qwen2
}

// kinds are the classes of tokenizer_config.json, without Fast, and the model types
// of config.json, with what tokenizers they have.
var kinds = map[string]string{
	"BertTokenizer": "bert", "DistilBertTokenizer": "bert", "ElectraTokenizer": "bert", "MobileBertTokenizer": "bert", "RetriBertTokenizer": "bert",
	"bert": "bert", "distilbert": "bert", "electra": "bert", "mobilebert": "bert",
	"GPT2Tokenizer": "gpt2", "gpt2": "gpt2",
	"RobertaTokenizer": "roberta", "BartTokenizer": "roberta", "LongformerTokenizer": "roberta", "roberta": "roberta", "bart": "roberta",
	"Qwen2Tokenizer": "qwen2", "qwen2": "qwen2",
}

// openFolder reads a folder's tokenizer.json, or makes what would stand there of
// vocab.txt or of vocab.json and merges.txt, as the reference does.
func openFolder(path string) (*Tokenizer, error) {
	data, err := readFile(filepath.Join(path, "tokenizer.json"))
	if !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return nil, err
		}
		return Parse(data)
	}
	missing := err
	f := &folder{path: path}
	if f.config, err = f.object("tokenizer_config.json"); err != nil {
		return nil, err
	}
	var words, ids []byte
	if words, err = readFile(filepath.Join(path, "vocab.txt")); err == nil {
		err = f.find("bert")
	} else if errors.Is(err, fs.ErrNotExist) {
		if ids, err = readFile(filepath.Join(path, "vocab.json")); errors.Is(err, fs.ErrNotExist) {
			return nil, missing
		}
		if err == nil {
			err = f.find("gpt2", "roberta", "qwen2")
		}
	}
	if err != nil {
		return nil, err
	}
	var file map[string]any
	if f.kind == "bert" {
		file, err = f.bert(words)
	} else {
		file, err = f.byteLevel(ids)
	}
	if err != nil {
		return nil, err
	}
	data, err = json.Marshal(file)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	return Parse(data)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err == nil && len(data) > maxFileBytes {
		return nil, &FormatError{File: filepath.Base(path), Problem: fmt.Sprintf("has more than %d bytes", maxFileBytes)}
	}
	if err != nil {
		return nil, fmt.Errorf("tokenizer: reading %s: %w", path, err)
	}
	return data, nil
}

// object reads a JSON file of the folder, empty where there is none.
func (f *folder) object(name string) (map[string]json.RawMessage, error) {
	data, err := readFile(filepath.Join(f.path, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var o map[string]json.RawMessage
	if err := json.Unmarshal(data, &o); err != nil {
		return nil, &FormatError{File: name, Problem: "is not a JSON object"}
	}
	return o, nil
}

// find says whose vocabulary it is.
func (f *folder) find(among ...string) error {
	where := "tokenizer_config.json"
	name, err := f.text("tokenizer_class", "")
	if err != nil {
		return err
	}
	if name == "" {
		where = "config.json"
		config, err := f.object(where)
		if err != nil {
			return err
		}
		_ = json.Unmarshal(config["model_type"], &name) // the same as none
	}
	f.kind = kinds[strings.TrimSuffix(name, "Fast")]
	if !slices.Contains(among, f.kind) {
		return f.unsupported(where, fmt.Sprintf("the tokenizer of %q", name))
	}
	if _, err := os.Stat(filepath.Join(f.path, "added_tokens.json")); err == nil && f.config["added_tokens_decoder"] == nil {
		return f.unsupported("added_tokens.json", "a list of added tokens without what they do (added_tokens_decoder of tokenizer_config.json)")
	}
	return nil
}

func (f *folder) unsupported(where, what string) error {
	return &UnsupportedError{Where: where, What: what + " without a tokenizer.json (save_pretrained of Transformers' AutoTokenizer writes one)"}
}

// text is a string of the configuration, or a token's content.
func (f *folder) text(key, otherwise string) (string, error) {
	raw, ok := f.config[key]
	if !ok || bytes.Equal(raw, []byte("null")) {
		return otherwise, nil
	}
	var s string
	var token struct{ Content *string }
	if json.Unmarshal(raw, &s) == nil {
		return s, nil
	}
	if json.Unmarshal(raw, &token) == nil && token.Content != nil {
		return *token.Content, nil
	}
	return "", f.broken(key, "neither a string nor a token")
}

func (f *folder) broken(key, problem string) error {
	return &FormatError{File: "tokenizer_config.json", Where: key, Problem: "is " + problem}
}

// flag is a truth value of the configuration, or null.
func (f *folder) flag(key string, otherwise any) (any, error) {
	raw, ok := f.config[key]
	if !ok {
		return otherwise, nil
	}
	var b *bool
	if err := json.Unmarshal(raw, &b); err != nil {
		return nil, f.broken(key, "neither true, false nor null")
	}
	if b == nil {
		return nil, nil
	}
	return *b, nil
}

// bert makes BERT's tokenizer of vocab.txt, a token a line.
func (f *folder) bert(words []byte) (map[string]any, error) {
	vocab := map[string]uint32{}
	lines := strings.Split(strings.TrimSuffix(string(words), "\n"), "\n")
	if !utf8.Valid(words) {
		return nil, &FormatError{File: "vocab.txt", Problem: "is not UTF-8"}
	}
	for i, line := range lines {
		token := strings.TrimSuffix(line, "\r")
		if j, ok := vocab[token]; ok {
			return nil, &FormatError{File: "vocab.txt", Problem: fmt.Sprintf("has the token %q in line %d and in line %d", token, j+1, i+1)}
		}
		vocab[token] = uint32(i)
	}
	for _, key := range []string{"do_basic_tokenize", "never_split"} {
		if v, err := f.flag(key, nil); v != true && v != nil || err != nil {
			return nil, f.unsupported("tokenizer_config.json", "the option "+strconv.Quote(key))
		}
	}
	normalizer := map[string]any{"type": "BertNormalizer", "clean_text": true}
	var err error
	for _, o := range []struct {
		to, from  string
		otherwise any
	}{{"lowercase", "do_lower_case", true}, {"handle_chinese_chars", "tokenize_chinese_chars", true}, {"strip_accents", "strip_accents", nil}} {
		if normalizer[o.to], err = f.flag(o.from, o.otherwise); err != nil {
			return nil, err
		}
	}
	special, err := f.special("pad_token", "[PAD]", "unk_token", "[UNK]", "cls_token", "[CLS]", "sep_token", "[SEP]", "mask_token", "[MASK]")
	if err != nil {
		return nil, err
	}
	added, err := f.added(vocab, special, "")
	if err != nil {
		return nil, err
	}
	ends, err := f.ends(vocab, special["cls_token"], special["sep_token"], "BertProcessing")
	return map[string]any{
		"version": "1.0", "added_tokens": added, "normalizer": normalizer, "post_processor": ends,
		"pre_tokenizer": map[string]any{"type": "BertPreTokenizer"},
		"decoder":       map[string]any{"type": "WordPiece", "prefix": "##", "cleanup": true},
		"model": map[string]any{
			"type": "WordPiece", "unk_token": special["unk_token"], "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab,
		},
	}, err
}

// byteLevel makes a byte-level BPE of vocab.json and merges.txt.
func (f *folder) byteLevel(ids []byte) (map[string]any, error) {
	var vocab map[string]uint32
	if err := json.Unmarshal(ids, &vocab); err != nil {
		return nil, &FormatError{File: "vocab.json", Problem: "is not an object of ids"}
	}
	text, err := readFile(filepath.Join(f.path, "merges.txt"))
	if err != nil {
		return nil, err
	}
	merges := []string{}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimRight(line, "\r\n"); line != "" && !strings.HasPrefix(line, "#version") {
			merges = append(merges, line)
		}
	}
	space, err := f.flag("add_prefix_space", false)
	if err != nil {
		return nil, err
	}
	level := func(regex bool) map[string]any {
		return map[string]any{"type": "ByteLevel", "add_prefix_space": space == true, "trim_offsets": true, "use_regex": regex}
	}
	file := map[string]any{
		"version": "1.0", "pre_tokenizer": level(true), "decoder": level(true),
		"model": map[string]any{"type": "BPE", "vocab": vocab, "merges": merges},
	}
	names := []string{"bos_token", "<|endoftext|>", "eos_token", "<|endoftext|>", "unk_token", "<|endoftext|>"}
	switch f.kind {
	case "qwen2":
		names = []string{"eos_token", "<|endoftext|>", "pad_token", "<|endoftext|>"}
		file["normalizer"] = map[string]any{"type": "NFC"}
		split := map[string]any{"type": "Split", "pattern": map[string]any{"Regex": qwen2Pattern}, "behavior": "Isolated", "invert": false}
		file["pre_tokenizer"] = map[string]any{"type": "Sequence", "pretokenizers": []any{split, level(false)}}
	case "roberta":
		names = []string{"bos_token", "<s>", "eos_token", "</s>", "unk_token", "<unk>", "pad_token", "<pad>", "cls_token", "<s>", "sep_token", "</s>", "mask_token", "<mask>"}
	}
	special, err := f.special(names...)
	if err != nil {
		return nil, err
	}
	if f.kind == "roberta" {
		if file["post_processor"], err = f.ends(vocab, special["cls_token"], special["sep_token"], "RobertaProcessing"); err != nil {
			return nil, err
		}
	}
	if bos, err := f.flag("add_bos_token", false); bos == true || err != nil {
		return nil, f.unsupported("tokenizer_config.json", `the option "add_bos_token"`)
	}
	file["added_tokens"], err = f.added(vocab, special, special["mask_token"])
	return file, err
}

// special gives special tokens by their keys, which come with what they are
// otherwise.
func (f *folder) special(keys ...string) (map[string]string, error) {
	out := map[string]string{}
	for i := 0; i < len(keys); i += 2 {
		var err error
		if out[keys[i]], err = f.text(keys[i], keys[i+1]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (f *folder) ends(vocab map[string]uint32, cls, sep, kind string) (map[string]any, error) {
	for _, token := range []string{cls, sep} {
		if _, ok := vocab[token]; !ok {
			return nil, &FormatError{File: "tokenizer_config.json", Problem: fmt.Sprintf("has the special token %q, which is not in the vocabulary", token)}
		}
	}
	return map[string]any{"type": kind, "cls": []any{cls, vocab[cls]}, "sep": []any{sep, vocab[sep]}}, nil
}

// added gives the added tokens: those of added_tokens_decoder, or else the special
// tokens that the vocabulary has; mask takes the white space before it.
func (f *folder) added(vocab map[string]uint32, special map[string]string, mask string) ([]map[string]any, error) {
	out := []map[string]any{}
	if raw, ok := f.config["added_tokens_decoder"]; ok {
		var byID map[uint32]map[string]any
		if err := json.Unmarshal(raw, &byID); err != nil {
			return nil, f.broken("added_tokens_decoder", "not an object of tokens by id")
		}
		for _, id := range slices.Sorted(maps.Keys(byID)) {
			token := byID[id]
			if token == nil {
				return nil, f.broken("added_tokens_decoder", "not an object of tokens by id")
			}
			token["id"] = id
			out = append(out, token)
		}
		return out, nil
	}
	for _, token := range slices.Compact(slices.Sorted(maps.Values(special))) {
		if id, ok := vocab[token]; ok {
			out = append(out, map[string]any{
				"id": id, "content": token, "single_word": false, "lstrip": token == mask, "rstrip": false, "normalized": false, "special": true,
			})
		}
	}
	return out, nil
}
