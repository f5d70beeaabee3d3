package pipeline

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"sort"
	"strings"
	"syscall"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// document remembers where each part of a recipe stands.
type document struct{ lines map[string]int }

// line returns the line of a path such as rules[0].steps[0].quantize.bits, or
// of the nearest part around it that is there.
func (d *document) line(where string) int {
	for where != "" {
		if n, ok := d.lines[where]; ok {
			return n
		}
		cut := strings.LastIndexAny(where, ".[")
		if cut < 0 {
			break
		}
		where = where[:cut]
	}
	return 0
}

// parseStrict decodes one YAML document into v, a pointer to a struct. Every
// key must be one of the struct's.
func parseStrict(text []byte, v any) (*document, *RecipeError) {
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, yamlError(err)
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		return nil, &RecipeError{Reason: fmt.Sprintf("holds %d YAML documents, want one", len(file.Docs))}
	}
	doc := &document{lines: map[string]int{}}
	body := file.Docs[0].Body
	if err := doc.walk(body, reflect.TypeOf(v).Elem(), ""); err != nil {
		return nil, err
	}
	if err := yaml.NodeToValue(body, v, yaml.Strict()); err != nil {
		return nil, yamlError(err)
	}
	return doc, nil
}

// walk records the lines of a node and of what is in it, and finds keys that
// the type does not have.
func (d *document) walk(node ast.Node, t reflect.Type, where string) *RecipeError {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if tk := node.GetToken(); where != "" && tk != nil {
		if _, ok := d.lines[where]; !ok {
			d.lines[where] = tk.Position.Line
		}
	}
	switch n := node.(type) {
	case *ast.AnchorNode:
		return d.walk(n.Value, t, where)
	case *ast.MappingNode:
		for _, kv := range n.Values {
			if err := d.walkPair(kv, t, where); err != nil {
				return err
			}
		}
	case *ast.MappingValueNode:
		return d.walkPair(n, t, where)
	case *ast.SequenceNode:
		for i, item := range n.Values {
			if t.Kind() != reflect.Slice {
				break // decoding says what is wrong
			}
			if err := d.walk(item, t.Elem(), fmt.Sprintf("%s[%d]", where, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *document) walkPair(kv *ast.MappingValueNode, t reflect.Type, where string) *RecipeError {
	if t.Kind() != reflect.Struct {
		return nil
	}
	key, tk := kv.Key.String(), kv.Key.GetToken()
	if tk != nil {
		key = tk.Value
	}
	keys, types := fieldsOf(t)
	inside := strings.TrimPrefix(where+"."+key, ".")
	if tk != nil {
		d.lines[inside] = tk.Position.Line
	}
	field, ok := types[key]
	if !ok {
		hint := ""
		if near := nearest(key, keys); near != "" {
			hint = fmt.Sprintf("; did you mean %q?", near)
		}
		return &RecipeError{
			Line: d.line(inside), Where: where,
			Reason: fmt.Sprintf("unknown key %q%s (known: %s)", key, hint, strings.Join(keys, ", ")),
		}
	}
	return d.walk(kv.Value, field, inside)
}

// fieldsOf returns the YAML keys of a struct, in order, and their types.
func fieldsOf(t reflect.Type) (keys []string, types map[string]reflect.Type) {
	types = map[string]reflect.Type{}
	for i := range t.NumField() {
		if key := t.Field(i).Tag.Get("yaml"); key != "" {
			keys = append(keys, key)
			types[key] = t.Field(i).Type
		}
	}
	return keys, types
}

func yamlError(err error) *RecipeError {
	e := &RecipeError{Reason: err.Error()}
	var y yaml.Error
	if !errors.As(err, &y) {
		return e
	}
	e.Reason = y.GetMessage()
	var wrongType *yaml.TypeError
	if errors.As(err, &wrongType) && wrongType.Token != nil {
		e.Reason = fmt.Sprintf("%q is not %s", wrongType.Token.Value, kindName(wrongType.DstType))
	}
	if tk := y.GetToken(); tk != nil {
		e.Line = position(tk)
	}
	return e
}

func position(tk *token.Token) int {
	if tk.Position == nil {
		return 0
	}
	return tk.Position.Line
}

func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list"
	case reflect.Struct, reflect.Pointer:
		return "a mapping of keys"
	default:
		return "a " + t.Kind().String()
	}
}

// nearest returns the candidate that is likely meant by a misspelt word, or "".
func nearest(word string, candidates []string) string {
	type scored struct {
		word     string
		distance int
	}
	var all []scored
	for _, c := range candidates {
		all = append(all, scored{c, distance(strings.ToLower(word), c)})
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].distance < all[j].distance })
	if len(all) == 0 || all[0].distance > max(2, len(word)/3) {
		return ""
	}
	return all[0].word
}

// distance is the Levenshtein distance of two short words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// errText drops what a message for people does not need from file errors.
func errText(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return "no such file"
		case errors.Is(err, fs.ErrPermission):
			return "no permission"
		case errors.Is(err, syscall.EISDIR):
			return "is a folder"
		}
		return p.Err.Error()
	}
	return err.Error()
}
