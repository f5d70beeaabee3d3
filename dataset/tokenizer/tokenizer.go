// Package tokenizer reads Hugging Face's tokenizer.json and turns text into
// token ids and back, to the id as the reference implementation does.
//
// It knows byte-level BPE (GPT-2, Llama 3, Qwen2 and their kin), BPE over
// SentencePiece pieces with byte fallback (Llama 2, Mistral), Unigram (T5, XLM-R,
// ALBERT), WordPiece (BERT) and WordLevel, with every normalizer, pre-tokenizer,
// post-processor and decoder of the reference (tokenizers 0.23). What it does not
// know it refuses: a component, an option or a piece of regular expression
// syntax without an exact counterpart here gives an [UnsupportedError] that
// names it when the file is opened, never other ids.
//
// Character classes are Unicode 16's, which is what the reference has. The
// normal forms NFC, NFD, NFKC and NFKD, StripAccents and Punctuation follow the
// reference's older tables where a single character shows the difference.
package tokenizer

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

const (
	maxFileBytes = 256 << 20 // the largest known tokenizer.json has about 35 MB
	maxTextBytes = 1<<30 - 1 // positions in a text are int32, and spelling bytes as characters doubles it
)

// An UnsupportedError says that a tokenizer.json uses something that this
// package does not know.
type UnsupportedError struct {
	Where string // path of the component in the file, such as pre_tokenizer.pretokenizers[0]
	What  string // what is there
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("tokenizer: %s: %s is not supported; tokenize with another program and give fettle the ids (.u16, .u32, .npy)", e.Where, e.What)
}

// A FormatError says that a tokenizer.json, or another file of the vocabulary, is
// broken.
type FormatError struct {
	File    string // its name; empty: tokenizer.json
	Where   string // path in the file; empty for the file itself
	Problem string
}

func (e *FormatError) Error() string {
	file := e.File
	if file == "" {
		file = "tokenizer.json"
	}
	if e.Where == "" {
		return "tokenizer: " + file + " " + e.Problem
	}
	return fmt.Sprintf("tokenizer: %s: %s %s", file, e.Where, e.Problem)
}

// A TextError says that a text or a list of ids has no encoding or decoding with
// this tokenizer.
type TextError struct {
	Problem string
}

func (e *TextError) Error() string { return "tokenizer: " + e.Problem }

func tooLong(size int) error {
	return &TextError{Problem: fmt.Sprintf("a text of %d bytes, or one that becomes so when normalized, is too long; split it into documents", size)}
}

// A Tokenizer turns text into token ids and back. It is safe for concurrent use.
// The file's truncation and padding are settings of a call in the reference, not
// of the vocabulary, and are ignored.
type Tokenizer struct {
	hash        string
	added       *addedTokens
	normalize   normalizer   // nil: text stays as it is
	preTokenize preTokenizer // nil: one piece
	model       model
	vocab       *vocabulary
	template    template
	decode      decoder // nil: tokens joined by spaces
	bare        bool    // puts nothing before a text
}

// Open reads a tokenizer.json, or the one in a folder. A folder without one may
// have BERT's vocab.txt, or vocab.json and merges.txt as GPT-2, RoBERTa and Qwen2
// have them, with tokenizer_config.json or config.json saying whose they are; Hash is
// then that of the tokenizer.json that fettle makes of them.
//
// Errors: those of the file system, *FormatError, *UnsupportedError.
func Open(path string) (*Tokenizer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	var t *Tokenizer
	if info.IsDir() {
		t, err = openFolder(path)
	} else {
		var data []byte
		if data, err = readFile(path); err == nil {
			t, err = Parse(data)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// Parse reads the bytes of a tokenizer.json and does not keep them. Memory is
// proportional to len(json).
//
// Errors: *FormatError, *UnsupportedError.
func Parse(json []byte) (*Tokenizer, error) {
	if len(json) > maxFileBytes {
		return nil, &FormatError{Problem: fmt.Sprintf("has more than %d bytes", maxFileBytes)}
	}
	t, err := parseTokenizer(json)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(json)
	t.hash = hex.EncodeToString(sum[:])
	return t, nil
}

// WithoutPrefix gives the same tokenizer, but one that puts nothing before a text:
// no space or ▁ by Prepend, Metaspace or ByteLevel's add_prefix_space. Some models
// were trained so although their tokenizer.json says otherwise. Hash does not tell
// the two apart.
func (t *Tokenizer) WithoutPrefix() *Tokenizer {
	bare := *t
	bare.bare = true
	return &bare
}

// Encode gives the ids of a text, with the special tokens that the template puts
// around it if addSpecial is set. Added tokens that stand in the text become
// their ids either way. Bytes that are not UTF-8 count as U+FFFD, one for each
// maximal part of a sequence, as decoders do (Unicode 16, section 3.9).
//
// It takes O(n log n) time and memory proportional to the text.
//
// Errors: *TextError for a text over 1 GiB (normalized, too), a character without a token in a
// vocabulary without an unknown token, and a regular expression of the file that
// takes too long.
func (t *Tokenizer) Encode(text string, addSpecial bool) ([]uint32, error) {
	if len(text) > maxTextBytes {
		return nil, tooLong(len(text))
	}
	pieces, err := t.split(lossyUTF8(text))
	if err != nil {
		return nil, err
	}
	ids := make([]uint32, 0, len(text)/3+4)
	if addSpecial {
		ids = append(ids, t.template.before...)
	}
	for _, p := range pieces {
		if p.isToken {
			ids = append(ids, p.id)
			continue
		}
		if ids, err = t.model.encode(p.text, ids); err != nil {
			return nil, err
		}
	}
	if addSpecial {
		ids = append(ids, t.template.after...)
	}
	return ids, nil
}

// split gives the pieces of a text that the model encodes one by one, and the
// added tokens between them.
func (t *Tokenizer) split(text string) ([]piece, error) {
	pieces := t.added.plain.split(nil, newPiece(text, t.bare))
	tokens := &t.added.normalized
	if t.bare {
		tokens = &t.added.bare
	}
	if t.normalize != nil || tokens.some() {
		var out []piece
		total := 0
		for _, p := range pieces {
			if p.isToken {
				out = append(out, p)
				continue
			}
			if t.normalize != nil {
				var err error
				if p, err = t.normalize(p); err != nil {
					return nil, err
				}
			}
			if total += len(p.text); total > maxTextBytes {
				return nil, tooLong(total)
			}
			out = tokens.split(out, p)
		}
		pieces = out
	}
	if t.preTokenize == nil {
		return pieces, nil
	}
	return t.preTokenize(pieces)
}

// Decode gives the text of ids; with skipSpecial, without special tokens. Bytes
// that do not make UTF-8 become U+FFFD.
//
// Errors: *TextError for an id that no token has.
func (t *Tokenizer) Decode(ids []uint32, skipSpecial bool) (string, error) {
	tokens := make([]string, 0, len(ids))
	for i, id := range ids {
		token, ok := t.Token(id)
		if !ok {
			return "", &TextError{Problem: fmt.Sprintf("id %d at position %d is no token of this vocabulary", id, i)}
		}
		if skipSpecial && t.added.special[id] {
			continue
		}
		tokens = append(tokens, token)
	}
	if t.decode == nil {
		return strings.Join(tokens, " "), nil
	}
	tokens, err := t.decode(tokens)
	if err != nil {
		return "", err
	}
	return strings.Join(tokens, ""), nil
}

// VocabSize is the number of tokens, with added tokens. A model's embedding may
// have more rows.
func (t *Tokenizer) VocabSize() int {
	return len(t.vocab.tokens) + t.added.extra
}

// ID gives a token's id: an added token's, else one of the vocabulary.
func (t *Tokenizer) ID(token string) (uint32, bool) {
	if id, ok := t.added.ids[token]; ok {
		return id, true
	}
	id, ok := t.vocab.ids[token]
	return id, ok
}

// Token gives the token of an id as the file spells it.
func (t *Tokenizer) Token(id uint32) (string, bool) {
	if token, ok := t.added.contents[id]; ok {
		return token, true
	}
	token, ok := t.vocab.tokens[id]
	return token, ok
}

// Hash is the hex SHA-256 of the file, for records.
func (t *Tokenizer) Hash() string { return t.hash }
