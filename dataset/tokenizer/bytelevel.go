package tokenizer

import "strings"

// Byte-level tokenizers spell each byte as a printable character (GPT-2's table):
// printable Latin-1 stands for itself, the other bytes are U+0100 and on, in order.
var byteChars, charBytes = byteTable()

func byteTable() (chars [256]string, bytes map[rune]byte) {
	bytes = map[rune]byte{}
	next := rune(0x100)
	for b := range chars {
		r := rune(b)
		if b < '!' || b > '~' && b < 0xA1 || b == 0xAD {
			r = next
			next++
		}
		chars[b] = string(r)
		bytes[r] = byte(b)
	}
	return chars, bytes
}

// toByteChars spells a text's bytes as characters.
func toByteChars(s string) string {
	var b strings.Builder
	b.Grow(len(s) + len(s)/4)
	for i := range len(s) {
		b.WriteString(byteChars[s[i]])
	}
	return b.String()
}

// appendBytes appends the bytes that a token's characters stand for, or the token
// itself where one stands for none, as in many added tokens.
func appendBytes(out []byte, token string) []byte {
	n := len(out)
	for _, r := range token {
		b, ok := charBytes[r]
		if !ok {
			return append(out[:n], token...)
		}
		out = append(out, b)
	}
	return out
}

// takeByteLevel reads the options that ByteLevel has in each of its places.
func takeByteLevel(o *object) (addPrefixSpace, useRegex bool) {
	addPrefixSpace = o.boolOr("add_prefix_space", true)
	o.boolOr("trim_offsets", true) // offsets are not kept
	return addPrefixSpace, o.boolOr("use_regex", true)
}
