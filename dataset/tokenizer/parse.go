package tokenizer

import (
	"encoding/json"
	"fmt"
)

func parseTokenizer(data []byte) (*Tokenizer, error) {
	if !json.Valid(data) {
		return nil, &FormatError{Problem: "is not JSON"}
	}
	if err := checkText(data); err != nil {
		return nil, err
	}
	o, err := newObject("the file", data)
	if err != nil {
		return nil, err
	}
	if v := o.str("version"); o.err == nil && v != "1.0" {
		return nil, &UnsupportedError{Where: "version", What: fmt.Sprintf("%q", v)}
	}
	o.take("truncation")
	o.take("padding")
	t := &Tokenizer{}
	t.normalize = optional(o, "normalizer", newNormalizer)
	t.preTokenize = optional(o, "pre_tokenizer", newPreTokenizer)
	t.decode = optional(o, "decoder", newDecoder)
	if special := optional(o, "post_processor", newPostProcessor); special != nil {
		t.template = *special
	}
	model := optional(o, "model", newModel)
	if o.err == nil && model == nil {
		o.failf("model", "is missing")
	}
	var added rawList
	o.scan("added_tokens", "an array", &added)
	if err := o.finish(); err != nil {
		return nil, err
	}
	t.model, t.vocab = model.model, model.vocab
	t.added, err = newAddedTokens(added, t.vocab, t.normalize)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// A template is the special tokens before and after a text.
type template struct {
	before, after []uint32
}

// newPostProcessor reads what is put around the text; nil: nothing.
func newPostProcessor(path string, raw json.RawMessage, depth int) (*template, error) {
	o, kind, err := newComponent(path, raw, depth)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "ByteLevel": // moves offsets, not ids
		takeByteLevel(o)
		return nil, o.finish()
	case "TemplateProcessing":
		return newTemplate(o)
	case "BertProcessing":
		return newEnds(o)
	case "RobertaProcessing":
		o.boolOr("trim_offsets", true) // offsets are not kept
		o.boolOr("add_prefix_space", true)
		return newEnds(o)
	case "Sequence":
		var found *template
		for _, t := range list(o, "processors", depth, newPostProcessor) {
			if t != nil && found != nil {
				// The reference takes the first one's pieces for a pair of texts.
				o.fail(&UnsupportedError{Where: path, What: "a second post-processor with special tokens"})
			}
			if t != nil {
				found = t
			}
		}
		return found, o.finish()
	}
	return nil, &UnsupportedError{Where: path, What: fmt.Sprintf("the post-processor %q", kind)}
}

// newEnds reads what BertProcessing and RobertaProcessing put before and after a
// text: cls and sep, each ["token", id].
func newEnds(o *object) (*template, error) {
	end := func(key string) []uint32 {
		var token *string
		var id *uint32
		pair := []any{&token, &id}
		if o.need(key, `["token", id]`, &pair); o.err != nil {
			return nil
		}
		if len(pair) != 2 || token == nil || id == nil {
			o.failf(key, `is not ["token", id]`)
			return nil
		}
		return []uint32{*id}
	}
	t := &template{before: end("cls"), after: end("sep")}
	return t, o.finish()
}

// newTemplate reads TemplateProcessing. Its pair form is not used here.
func newTemplate(o *object) (*template, error) {
	single := o.array("single")
	o.take("pair")
	var special map[string]json.RawMessage
	o.need("special_tokens", "an object", &special)
	if err := o.finish(); err != nil {
		return nil, err
	}
	t, texts := &template{}, 0
	for i, raw := range single {
		text, ids, err := newTemplatePiece(fmt.Sprintf("%s.single[%d]", o.path, i), raw, o.path, special)
		switch {
		case err != nil:
			return nil, err
		case text:
			texts++
		case texts == 0:
			t.before = append(t.before, ids...)
		default:
			t.after = append(t.after, ids...)
		}
	}
	if texts != 1 {
		return nil, &UnsupportedError{Where: o.path + ".single", What: fmt.Sprintf("a template with the text %d times", texts)}
	}
	return t, nil
}

// newTemplatePiece reads one piece: the text, or the ids of special tokens.
func newTemplatePiece(path string, raw json.RawMessage, parent string, special map[string]json.RawMessage) (text bool, ids []uint32, err error) {
	o, err := newObject(path, raw)
	if err != nil {
		return false, nil, err
	}
	var body json.RawMessage
	if text = o.scan("Sequence", "an object", &body); !text {
		o.need("SpecialToken", "an object", &body)
	}
	if err := o.finish(); err != nil {
		return false, nil, err
	}
	if o, err = newObject(path, body); err != nil {
		return false, nil, err
	}
	id := o.str("id")
	o.count("type_id")
	if err := o.finish(); err != nil {
		return false, nil, err
	}
	if text {
		if id != "A" {
			return false, nil, &FormatError{Where: path, Problem: fmt.Sprintf("has sequence %q in the template of a single text", id)}
		}
		return true, nil, nil
	}
	where := fmt.Sprintf("%s.special_tokens[%q]", parent, id)
	token, ok := special[id]
	if !ok {
		return false, nil, &FormatError{Where: where, Problem: "is missing"}
	}
	if o, err = newObject(where, token); err != nil {
		return false, nil, err
	}
	o.take("id")
	o.take("tokens")
	o.need("ids", "an array of ids", &ids)
	return false, ids, o.finish()
}
