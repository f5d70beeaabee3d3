package tokenizer

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A decoder turns tokens into parts of a text, step by step.
type decoder func([]string) ([]string, error)

func newDecoder(path string, raw json.RawMessage, depth int) (decoder, error) {
	o, kind, err := newComponent(path, raw, depth)
	if err != nil {
		return nil, err
	}
	d, ok := buildDecoder(o, kind, depth)
	if !ok {
		return nil, &UnsupportedError{Where: path, What: fmt.Sprintf("the decoder %q", kind)}
	}
	return d, o.finish()
}

func buildDecoder(o *object, kind string, depth int) (decoder, bool) {
	switch kind {
	case "Sequence":
		all := list(o, "decoders", depth, newDecoder)
		return func(tokens []string) ([]string, error) {
			for _, d := range all {
				var err error
				if tokens, err = d(tokens); err != nil {
					return nil, err
				}
			}
			return tokens, nil
		}, true
	case "ByteLevel":
		takeByteLevel(o)
		return func(tokens []string) ([]string, error) {
			var b []byte
			for _, t := range tokens {
				b = appendBytes(b, t)
			}
			return []string{lossyUTF8(string(b))}, nil
		}, true
	case "ByteFallback":
		return decodeByteTokens, true
	case "Fuse":
		return func(tokens []string) ([]string, error) {
			return []string{strings.Join(tokens, "")}, nil
		}, true
	case "Replace":
		pattern := takePattern(o)
		content := o.str("content")
		return eachToken(func(_ int, t string) (string, error) {
			p, err := pattern.replace(piece{text: t}, content)
			return p.text, err
		}), true
	case "Strip":
		content, start, stop := o.char("content"), o.count("start"), o.count("stop")
		return eachToken(func(_ int, t string) (string, error) {
			return stripChars(t, content, start, stop), nil
		}), true
	case "WordPiece":
		prefix, clean := o.str("prefix"), o.boolean("cleanup")
		return eachToken(func(i int, t string) (string, error) {
			if i > 0 {
				var inside bool
				if t, inside = strings.CutPrefix(t, prefix); !inside {
					t = " " + t
				}
			}
			if clean {
				t = cleanUp(t)
			}
			return t, nil
		}), true
	case "BPEDecoder":
		suffix := o.str("suffix")
		return func(tokens []string) ([]string, error) {
			out := make([]string, len(tokens))
			for i, t := range tokens {
				space := " "
				if i == len(tokens)-1 {
					space = ""
				}
				out[i] = strings.ReplaceAll(t, suffix, space)
			}
			return out, nil
		}, true
	case "CTC":
		return newCTC(o.str("pad_token"), o.str("word_delimiter_token"), o.boolean("cleanup")), true
	case "Metaspace":
		m := takeMetaspace(o)
		return eachToken(func(i int, t string) (string, error) {
			if i == 0 && m.scheme != "never" {
				return strings.ReplaceAll(t, m.mark, ""), nil
			}
			return strings.ReplaceAll(t, m.mark, " "), nil
		}), true
	}
	return nil, false
}

func eachToken(f func(i int, token string) (string, error)) decoder {
	return func(tokens []string) ([]string, error) {
		out := make([]string, len(tokens))
		for i, t := range tokens {
			var err error
			if out[i], err = f(i, t); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
}

// newCTC joins what connectionist temporal classification says (Graves et al. 2006,
// section 3.1): equal tokens in a row are one, and the blank goes.
func newCTC(blank, space string, clean bool) decoder {
	return func(tokens []string) ([]string, error) {
		var out []string
		for i, t := range tokens {
			if i > 0 && t == tokens[i-1] {
				continue
			}
			t = strings.ReplaceAll(t, blank, "")
			if clean {
				t = strings.ReplaceAll(cleanUp(t), space, " ")
			}
			if t != "" {
				out = append(out, t)
			}
		}
		return out, nil
	}
}

// cleanUp takes away the spaces that English does not have. The pairs are taken
// one after the other, each over the whole of a token.
func cleanUp(t string) string {
	if !strings.Contains(t, " ") {
		return t
	}
	for _, c := range [...][2]string{
		{" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"},
		{" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
	} {
		t = strings.ReplaceAll(t, c[0], c[1])
	}
	return t
}

// stripChars takes up to start times a character off the left and stop times off
// the right.
func stripChars(t, char string, start, stop uint32) string {
	for ; start > 0 && strings.HasPrefix(t, char); start-- {
		t = t[len(char):]
	}
	for ; stop > 0 && strings.HasSuffix(t, char); stop-- {
		t = t[:len(t)-len(char)]
	}
	return t
}

// decodeByteTokens joins runs of <0x00> to <0xFF> to UTF-8; a run that is none
// becomes a U+FFFD for each byte.
func decodeByteTokens(tokens []string) ([]string, error) {
	var out []string
	var run []byte
	flush := func() {
		if utf8.Valid(run) {
			out = append(out, string(run))
		} else {
			for range run {
				out = append(out, "\uFFFD")
			}
		}
		run = run[:0]
	}
	for _, t := range tokens {
		if b, ok := byteToken(t); ok {
			run = append(run, b)
			continue
		}
		if len(run) > 0 {
			flush()
		}
		out = append(out, t)
	}
	if len(run) > 0 {
		flush()
	}
	return out, nil
}

func byteToken(t string) (byte, bool) {
	if len(t) != 6 || !strings.HasPrefix(t, "<0x") || t[5] != '>' {
		return 0, false
	}
	b, err := strconv.ParseUint(t[3:5], 16, 8)
	return byte(b), err == nil
}
