package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"
)

// maxDepth bounds how deep components may nest.
const maxDepth = 16

// An object is a JSON object whose members are taken one by one. The first error
// stays; what is left in the end is an option that this package does not know.
type object struct {
	path   string
	fields map[string]json.RawMessage
	err    error
}

func newObject(path string, raw json.RawMessage) (*object, error) {
	o := &object{path: path}
	if err := json.Unmarshal(raw, &o.fields); err != nil || o.fields == nil {
		return nil, &FormatError{Where: path, Problem: "is not an object"}
	}
	return o, nil
}

func (o *object) fail(err error) {
	if o.err == nil {
		o.err = err
	}
}

func (o *object) failf(key, format string, args ...any) {
	o.fail(&FormatError{Where: o.path + "." + key, Problem: fmt.Sprintf(format, args...)})
}

// take removes a member. A null counts as absent.
func (o *object) take(key string) (json.RawMessage, bool) {
	raw, ok := o.fields[key]
	delete(o.fields, key)
	return raw, ok && !bytes.Equal(raw, []byte("null"))
}

// scan reads a member into to, which stays as it is where the member is absent.
func (o *object) scan(key, kind string, to any) bool {
	raw, ok := o.take(key)
	if !ok {
		return false
	}
	if err := json.Unmarshal(raw, to); err != nil {
		o.failf(key, "is not %s", kind)
		return false
	}
	return true
}

func (o *object) need(key, kind string, to any) {
	if _, ok := o.fields[key]; !ok {
		o.failf(key, "is missing")
		return
	}
	if !o.scan(key, kind, to) {
		o.failf(key, "is not %s", kind)
	}
}

func (o *object) str(key string) (s string)    { o.need(key, "a string", &s); return s }
func (o *object) boolean(key string) (b bool)  { o.need(key, "true or false", &b); return b }
func (o *object) count(key string) (n uint32)  { o.need(key, "a count", &n); return n }
func (o *object) array(key string) (a rawList) { o.need(key, "an array", &a); return a }

// boolOr is an optional truth value.
func (o *object) boolOr(key string, b bool) bool { o.scan(key, "true or false", &b); return b }

// char is a string of one character.
func (o *object) char(key string) string {
	s := o.str(key)
	if o.err == nil && utf8.RuneCountInString(s) != 1 {
		o.failf(key, "is not one character")
	}
	return s
}

type rawList = []json.RawMessage

// finish gives the first error, or an *UnsupportedError for a member that nobody
// took.
func (o *object) finish() error {
	if o.err != nil || len(o.fields) == 0 {
		return o.err
	}
	first := slices.Min(slices.Collect(maps.Keys(o.fields)))
	return &UnsupportedError{Where: o.path, What: fmt.Sprintf("the option %q", first)}
}

// A component is an object with a type.
func newComponent(path string, raw json.RawMessage, depth int) (*object, string, error) {
	if depth > maxDepth {
		return nil, "", &FormatError{Where: path, Problem: fmt.Sprintf("is nested more than %d deep", maxDepth)}
	}
	o, err := newObject(path, raw)
	if err != nil {
		return nil, "", err
	}
	kind := o.str("type")
	return o, kind, o.err
}

// A builder makes a component of one of the file's kinds of components.
type builder[T any] func(path string, raw json.RawMessage, depth int) (T, error)

// list builds the members of a Sequence.
func list[T any](o *object, key string, depth int, build builder[T]) []T {
	var out []T
	for i, raw := range o.array(key) {
		c, err := build(fmt.Sprintf("%s.%s[%d]", o.path, key, i), raw, depth+1)
		if err != nil {
			o.fail(err)
			return nil
		}
		out = append(out, c)
	}
	return out
}

// optional builds a top-level component that may be null.
func optional[T any](o *object, key string, build builder[T]) (c T) {
	raw, ok := o.take(key)
	if !ok || o.err != nil {
		return c
	}
	c, err := build(key, raw, 0)
	if err != nil {
		o.fail(err)
	}
	return c
}

// checkText refuses JSON whose strings encoding/json would change silently: bytes
// that are not UTF-8 and halves of surrogate pairs.
func checkText(data []byte) error {
	if !utf8.Valid(data) {
		return &FormatError{Problem: "is not UTF-8"}
	}
	high := false // the last escape was a high surrogate
	for i := 0; i < len(data); {
		if data[i] != '\\' {
			if high {
				break
			}
			i++
			continue
		}
		unit, size := escapedUnit(data[i:])
		low := unit >= 0xDC00 && unit <= 0xDFFF
		if low != high {
			return &FormatError{Problem: fmt.Sprintf("has half a surrogate pair before byte %d", i+size)}
		}
		high = unit >= 0xD800 && unit <= 0xDBFF
		i += size
	}
	if high {
		return &FormatError{Problem: "has half a surrogate pair"}
	}
	return nil
}

// escapedUnit reads the escape at the start of b: its UTF-16 unit, 0 if it is not
// a \u escape, and its length.
func escapedUnit(b []byte) (unit, size int) {
	if len(b) < 6 || b[1] != 'u' {
		return 0, min(2, len(b))
	}
	for _, c := range b[2:6] {
		d := bytes.IndexByte([]byte("0123456789abcdef"), c|0x20)
		if d < 0 || (c < '0') {
			return 0, 2
		}
		unit = unit<<4 | d
	}
	return unit, 6
}
