package loader

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"
)

// tracer follows the strings of a pickle over its stack and memo, so that the
// names that STACK_GLOBAL takes from there are known without running anything.
// It relies on the checker, which has held every operation against the stack.
type tracer struct {
	texts []string // by the number that stands for each from 1
	stack []int32  // such numbers, and 0 for all that is no string
	marks []int    // sizes of the stack
	memo  map[uint64]int32

	// found is called for each global that the pickle names, with the place of the
	// operation. A name that the pickle computes is not known.
	found func(module, name string, known bool, at int64)
}

func (t *tracer) top(below int) int32 { return t.stack[len(t.stack)-1-below] }

// text returns the string that stands for a number.
func (t *tracer) text(item int32) (string, bool) {
	if item == 0 {
		return "", false
	}
	return t.texts[item-1], true
}

// step applies an operation that stands at a place of the stream and uses a key
// of the memo.
func (t *tracer) step(op byte, o opcode, arg []byte, key uint64, at int64) error {
	var item int32 // what the operation leaves
	switch op {
	case '(':
		t.marks = append(t.marks, len(t.stack))
		return nil
	case '0':
		if n := len(t.marks); n > 0 && t.marks[n-1] == len(t.stack) {
			t.marks = t.marks[:n-1]
			return nil
		}
	case '2':
		t.stack = append(t.stack, t.top(0))
		return nil
	case 'p', 'q', 'r', 0x94:
		if item = t.top(0); item == 0 {
			delete(t.memo, key)
		} else {
			t.memo[key] = item
		}
		return nil
	case 0x98:
		return nil
	case 'g', 'h', 'j':
		item = t.memo[key]
	case 'c', 'i':
		lines := bytes.SplitN(arg, []byte{'\n'}, 3)
		t.found(string(lines[0]), string(lines[1]), true, at)
	case 0x93:
		module, known := t.text(t.top(1))
		name, known2 := t.text(t.top(0))
		t.found(module, name, known && known2, at)
	case 0x82, 0x83, 0x84:
		t.found("", "", false, at)
	default:
		if text, ok := textOf(op, arg); ok {
			t.texts = append(t.texts, text)
			item = int32(len(t.texts))
		}
	}
	if o.mark {
		n := len(t.marks) - 1
		t.stack, t.marks = t.stack[:t.marks[n]], t.marks[:n]
	}
	t.stack = t.stack[:len(t.stack)-o.pop]
	for range o.push {
		t.stack = append(t.stack, item)
	}
	return nil
}

// textOf returns the string that an operation puts on the stack, false where it
// puts none. The escapes of protocol 0 are undone: they would hide a name.
func textOf(op byte, arg []byte) (string, bool) {
	switch op {
	case 'X', 'T', 'U', 0x8c, 0x8d:
		return string(arg[opcodes[op].size:]), true
	case 'V':
		return unescape(string(arg[:len(arg)-1]), "uU"), true
	case 'S':
		s := strings.Trim(string(arg[:len(arg)-1]), " \t\r")
		if len(s) < 2 || s[0] != s[len(s)-1] || s[0] != '"' && s[0] != '\'' {
			return "", false
		}
		return unescape(s[1:len(s)-1], `xabfnrtv\'"01234567`), true
	}
	return "", false
}

// unescape undoes Python's escapes of the kinds given; others stay as they are.
func unescape(s, kinds string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		if s[i] != '\\' || i+1 == len(s) || !strings.ContainsRune(kinds, rune(s[i+1])) {
			b.WriteByte(s[i])
			i++
			continue
		}
		kind := s[i+1]
		i += 2
		switch kind {
		case 'x', 'u', 'U':
			i += writeCode(&b, kind, s[i:], map[byte]int{'x': 2, 'u': 4, 'U': 8}[kind], 16)
		case '0', '1', '2', '3', '4', '5', '6', '7':
			n := 1
			for n < 3 && i-1+n < len(s) && s[i-1+n] >= '0' && s[i-1+n] <= '7' {
				n++
			}
			i += writeCode(&b, kind, s[i-1:], n, 8) - 1
		default:
			if at := strings.IndexByte("abfnrtv", kind); at >= 0 {
				kind = "\a\b\f\n\r\t\v"[at]
			}
			b.WriteByte(kind)
		}
	}
	return b.String()
}

// writeCode writes the character of a number of n digits and returns how many
// bytes of s it took; a malformed one is written as it stands.
func writeCode(b *strings.Builder, kind byte, s string, n, base int) int {
	if n <= len(s) {
		if v, err := strconv.ParseUint(s[:n], base, 32); err == nil && v <= utf8.MaxRune {
			b.WriteRune(rune(v))
			return n
		}
	}
	b.WriteByte('\\')
	b.WriteByte(kind)
	return 0
}
