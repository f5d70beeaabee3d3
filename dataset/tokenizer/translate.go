package tokenizer

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxGroups = 64   // that may nest in a regular expression
	maxRepeat = 1000 // in {n,m}
)

// translate rewrites a regular expression of Oniguruma's syntax, which the
// reference uses, in that of regexp2. It knows the parts that mean the same in
// both and those that can be spelled out; for others it gives an
// *UnsupportedError.
func translate(path, expr string) (string, error) {
	t := &translator{path: path, expr: expr}
	if strings.HasPrefix(expr, "(?i)") {
		t.at, t.fold = 4, true
	}
	out := t.alternatives(0)
	if t.err == nil && t.at < len(expr) {
		t.unsupported("an unmatched )")
	}
	return out, t.err
}

// A translator stands at a byte of an expression. Its first error stays, and then
// it does not move on.
type translator struct {
	path, expr string
	at         int
	fold       bool // case does not count
	err        error
}

func (t *translator) unsupported(format string, args ...any) {
	if t.err == nil {
		t.err = &UnsupportedError{Where: t.path, What: fmt.Sprintf(format, args...) + fmt.Sprintf(" (byte %d of %.200q)", t.at, t.expr)}
	}
}

// more says that there is something left to read and no error.
func (t *translator) more() bool { return t.err == nil && t.at < len(t.expr) }

func (t *translator) rest() string { return t.expr[t.at:] }

// accept moves over s if it comes next.
func (t *translator) accept(s string) bool {
	if t.err != nil || !strings.HasPrefix(t.rest(), s) {
		return false
	}
	t.at += len(s)
	return true
}

func (t *translator) rune() rune {
	r, size := utf8.DecodeRuneInString(t.rest())
	t.at += size
	return r
}

// alternatives reads up to the end of a group.
func (t *translator) alternatives(depth int) string {
	if depth > maxGroups {
		t.unsupported("a group nested more than %d deep", maxGroups)
		return ""
	}
	var b strings.Builder
	last := "" // the literal letters just before, in a folded part
	for t.more() && t.rest()[0] != ')' {
		if t.accept("|") {
			b.WriteByte('|')
			last = ""
			continue
		}
		begin := t.at
		atom := t.atom(depth)
		if t.fold {
			last = t.checkFold(last, t.expr[begin:t.at])
		}
		b.WriteString(t.repeated(atom))
	}
	return b.String()
}

// checkFold refuses neighbours that one character folds to, such as ß for ss.
func (t *translator) checkFold(last, atom string) string {
	atom = strings.ToLower(atom)
	switch last + atom {
	case "ss", "st", "ff", "fi", "fl":
		t.unsupported("%q without regard to case", last+atom)
	}
	if len(atom) != 1 {
		return ""
	}
	return atom
}

// repeated reads what says how often an atom comes.
func (t *translator) repeated(atom string) string {
	if !t.more() {
		return atom
	}
	switch c := t.rest()[0]; c {
	case '*', '+', '?':
		t.at++
		switch {
		case t.accept("+"): // possessive
			atom = "(?>" + atom + string(c) + ")"
		case t.accept("?"):
			atom += string(c) + "?"
		default:
			atom += string(c)
		}
	case '{':
		atom = t.interval(atom)
	default:
		return atom
	}
	if t.more() && strings.ContainsRune("*+?{", rune(t.rest()[0])) {
		t.unsupported("a repetition of a repetition")
	}
	return atom
}

// interval reads {n}, {n,}, {,m} and {n,m}. A + after it repeats it all, unlike
// elsewhere.
func (t *translator) interval(atom string) string {
	body, _, ok := strings.Cut(t.rest()[1:], "}")
	from, to, ranged := strings.Cut(body, ",")
	n, err := repeatCount(from, ranged && to != "")
	m, err2 := repeatCount(to, true)
	if !ok || err != nil || err2 != nil || n > maxRepeat || m > maxRepeat || ranged && to != "" && m < n {
		t.unsupported("the repetition {%.20s}", body)
		return ""
	}
	t.at += len(body) + 2
	switch {
	case !ranged:
		atom += fmt.Sprintf("{%d}", n)
	case to == "":
		atom += fmt.Sprintf("{%d,}", n)
	default:
		atom += fmt.Sprintf("{%d,%d}", n, m)
	}
	switch {
	case t.accept("+"):
		return "(?:" + atom + ")+"
	case t.accept("?"):
		if !ranged { // {n}? is the optional {n}
			return "(?:" + atom + ")?"
		}
		return atom + "?"
	}
	return atom
}

func repeatCount(s string, optional bool) (uint64, error) {
	if s == "" && optional {
		return 0, nil
	}
	return strconv.ParseUint(s, 10, 16)
}

// atom reads one character, class, group or assertion.
func (t *translator) atom(depth int) string {
	switch {
	case t.accept("("):
		return t.group(depth)
	case t.accept("["):
		return t.set(depth).String()
	case t.accept("."):
		return `[^\n]`
	case t.accept("^"): // of each line, but not after a line break that ends the text
		return `(?:\A|(?<=\n)(?!\z))`
	case t.accept("$"): // of each line
		return `(?:(?=\n)|\z)`
	case t.accept(`\`):
		return t.escape()
	}
	r := t.rune()
	if strings.ContainsRune("*+?{])", r) {
		t.at--
		t.unsupported("%q as a character", r)
		return ""
	}
	return t.char(r)
}

// char spells one character.
func (t *translator) char(r rune) string {
	if t.fold {
		if r >= utf8.RuneSelf {
			t.unsupported("%q without regard to case", r)
			return ""
		}
		if folds := foldsOf(r); len(folds) > 1 {
			return charSet{items: folds}.String()
		}
	}
	return quote(r)
}

// foldsOf gives what an ASCII character is equal to when case does not count.
func foldsOf(r rune) ranges {
	var out ranges
	if unicode.IsLetter(r) {
		out = ranges{{unicode.ToUpper(r), unicode.ToUpper(r)}, {unicode.ToLower(r), unicode.ToLower(r)}}
	} else {
		out = ranges{{r, r}}
	}
	switch unicode.ToLower(r) {
	case 's':
		out = append(out, runeRange{'ſ', 'ſ'})
	case 'k':
		out = append(out, runeRange{'\u212A', '\u212A'})
	}
	return out
}

func quote(r rune) string {
	switch {
	case r < ' ' || r == 0x7F || !utf8.ValidRune(r):
		return fmt.Sprintf(`\u%04X`, r)
	case r < utf8.RuneSelf && !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '_':
		return `\` + string(r)
	}
	return string(r)
}

// group reads a group after its parenthesis. Groups that capture need not, as
// nothing refers to them.
func (t *translator) group(depth int) string {
	fold, open := t.fold, "(?:"
	switch {
	case t.accept("?:"), t.rest() != "" && t.rest()[0] != '?':
	case t.accept("?i:"):
		t.fold = true
	case t.accept("?-i:"):
		t.fold = false
	case t.accept("?="), t.accept("?!"), t.accept("?<="), t.accept("?<!"), t.accept("?>"):
		open = "(" + t.expr[strings.LastIndexByte(t.expr[:t.at], '?'):t.at]
	default:
		t.unsupported("the group (%.4s", t.rest())
		return ""
	}
	body := t.alternatives(depth + 1)
	if !t.accept(")") {
		t.unsupported("an open group")
	}
	t.fold = fold
	return open + body + ")"
}

// escape reads what follows a backslash outside of a class.
func (t *translator) escape() string {
	if !t.more() {
		t.unsupported("a backslash at the end")
		return ""
	}
	switch c := t.rest()[0]; c {
	case 'A', 'z':
		t.at++
		return `\` + string(c)
	case 'Z':
		t.at++
		return `(?=\n?\z)`
	case 'b', 'B':
		t.at++
		w := outsideWords.String()
		if c == 'b' {
			return "(?:(?<=" + w + ")(?!" + w + ")|(?<!" + w + ")(?=" + w + "))"
		}
		return "(?:(?<=" + w + ")(?=" + w + ")|(?<!" + w + ")(?!" + w + "))"
	case 'w', 'W':
		t.at++
		if t.fold {
			t.unsupported(`\%c without regard to case`, c)
		}
		set := outsideWords
		set.negated = c == 'W'
		return set.String()
	}
	set, r := t.classEscape()
	if set != nil {
		return set.String()
	}
	return t.char(r)
}

// classEscape reads what may follow a backslash in a class as well: a set, or a
// character.
func (t *translator) classEscape() (*charSet, rune) {
	if !t.more() {
		t.unsupported("a backslash at the end")
		return nil, 0
	}
	r := t.rune()
	switch r {
	case 's', 'S':
		return &charSet{named: `\s`, tables: []*unicode.RangeTable{unicode.White_Space}, negated: r == 'S'}, 0
	case 'd', 'D':
		return t.property("Nd", r == 'D'), 0
	case 'h', 'H':
		return &charSet{items: ranges{{'0', '9'}, {'A', 'F'}, {'a', 'f'}}, negated: r == 'H'}, 0
	case 'w', 'W':
		if t.fold {
			t.unsupported(`\%c without regard to case`, r)
		}
		set := innerWords
		set.negated = r == 'W'
		return &set, 0
	case 'p', 'P':
		name, _, ok := strings.Cut(t.rest(), "}")
		if !ok || !strings.HasPrefix(name, "{") {
			t.unsupported(`\%c without {}`, r)
			return nil, 0
		}
		t.at += len(name) + 1
		name, not := strings.CutPrefix(name[1:], "^")
		if t.fold && name != "N" && name != "Nd" && name != "Zs" {
			t.unsupported(`\p{%s} without regard to case`, name)
		}
		return t.property(name, not != (r == 'P')), 0
	case 'n':
		return nil, '\n'
	case 'r':
		return nil, '\r'
	case 't':
		return nil, '\t'
	case 'f':
		return nil, '\f'
	case 'v':
		return nil, '\v'
	case 'a':
		return nil, '\a'
	case 'e':
		return nil, 0x1B
	case 'u':
		return nil, t.hex(4)
	case 'x':
		if t.accept("{") {
			n := strings.IndexByte(t.rest(), '}')
			r := t.hex(n)
			t.accept("}")
			return nil, r
		}
		if r := t.hex(2); r < utf8.RuneSelf {
			return nil, r
		}
		t.unsupported(`\x for a byte of a character`)
		return nil, 0
	}
	if r >= utf8.RuneSelf || unicode.IsLetter(r) || unicode.IsDigit(r) {
		t.unsupported(`the escape \%c`, r)
	}
	return nil, r
}

func (t *translator) hex(digits int) rune {
	if digits < 1 || digits > 8 || digits > len(t.rest()) {
		t.unsupported("a broken character code")
		return 0
	}
	n, err := strconv.ParseUint(t.rest()[:digits], 16, 32)
	if err != nil || n > unicode.MaxRune || !utf8.ValidRune(rune(n)) {
		t.unsupported("the character code %s", t.rest()[:digits])
		return 0
	}
	t.at += digits
	return rune(n)
}

// property is the set of a general category or script.
func (t *translator) property(name string, not bool) *charSet {
	extra, ok := unicode16[name]
	if !ok {
		t.unsupported(`\p{%.40s}`, name)
		return nil
	}
	if name == "Mn" { // U+1171E became Mc in Unicode 16: spelled out without it
		set := charSet{tables: []*unicode.RangeTable{unicode.Mn}, items: extra}
		others := charSet{items: append(set.complement(), runeRange{0x1171E, 0x1171E})}
		return &charSet{items: others.complement(), negated: not}
	}
	return &charSet{named: `\p{` + name + `}`, tables: []*unicode.RangeTable{tableOf(name)}, items: extra, negated: not}
}

func tableOf(name string) *unicode.RangeTable {
	if c, ok := unicode.Categories[name]; ok {
		return c
	}
	return unicode.Scripts[name]
}

// set reads a class after its bracket.
func (t *translator) set(depth int) *charSet {
	out := &charSet{negated: t.accept("^")}
	if depth > maxGroups {
		t.unsupported("a class nested more than %d deep", maxGroups)
	}
	for first := true; t.more(); first = false {
		switch {
		case t.accept("]"):
			if first {
				t.unsupported("a class that begins with ]")
			}
			return out
		case strings.HasPrefix(t.rest(), "&&"), strings.HasPrefix(t.rest(), "[:"):
			t.unsupported("%.2s in a class", t.rest())
		case t.accept("["):
			t.join(out, t.set(depth+1))
		default:
			t.setItem(out)
		}
	}
	t.unsupported("an open class")
	return out
}

// setItem reads a character, a range or a named set.
func (t *translator) setItem(out *charSet) {
	lo, set := t.setChar()
	if set != nil {
		t.join(out, set)
		if strings.HasPrefix(t.rest(), "-") && !strings.HasPrefix(t.rest(), "-]") {
			t.unsupported("a range from a set")
		}
		return
	}
	hi := lo
	if rest := t.rest(); len(rest) >= 2 && rest[0] == '-' && rest[1] != ']' {
		t.at++
		if hi, set = t.setChar(); set != nil || rest[1] == '[' || hi < lo {
			t.unsupported("a broken range")
			return
		}
	}
	if !t.fold {
		out.items = append(out.items, runeRange{lo, hi})
		return
	}
	if hi >= utf8.RuneSelf {
		t.unsupported("%q without regard to case", hi)
		return
	}
	for r := lo; r <= hi; r++ {
		out.items = append(out.items, foldsOf(r)...)
	}
}

func (t *translator) setChar() (rune, *charSet) {
	if !t.accept(`\`) {
		return t.rune(), nil
	}
	if t.accept("b") {
		return '\b', nil
	}
	set, r := t.classEscape()
	return r, set
}

// join adds a set's characters to another's.
func (t *translator) join(out, set *charSet) {
	switch {
	case set == nil:
	case set.negated:
		out.items = append(out.items, set.complement()...)
	default:
		out.named += set.named
		out.tables = append(out.tables, set.tables...)
		out.items = append(out.items, set.items...)
	}
}

// A charSet is a set of characters: those that regexp2 has a name for and ranges
// beside them, or all others.
type charSet struct {
	named   string
	tables  []*unicode.RangeTable // what named means
	items   ranges
	negated bool
}

// String spells a set for regexp2.
func (s charSet) String() string {
	var b strings.Builder
	b.WriteByte('[')
	if s.negated {
		b.WriteByte('^')
	}
	b.WriteString(s.named)
	for _, r := range s.items {
		b.WriteString(quote(r.lo))
		if r.hi > r.lo {
			b.WriteString("-" + quote(r.hi))
		}
	}
	b.WriteByte(']')
	return b.String()
}

// complement gives the characters that are not in a set before it is negated.
func (s charSet) complement() ranges {
	all := slices.Clone(s.items)
	for _, table := range s.tables {
		for _, r := range table.R16 {
			for c := rune(r.Lo); c <= rune(r.Hi); c += rune(r.Stride) {
				all = append(all, runeRange{c, c})
			}
		}
		for _, r := range table.R32 {
			for c := rune(r.Lo); c <= rune(r.Hi); c += rune(r.Stride) {
				all = append(all, runeRange{c, c})
			}
		}
	}
	slices.SortFunc(all, func(a, b runeRange) int { return int(a.lo) - int(b.lo) })
	var out ranges
	next := rune(0)
	for _, r := range all {
		if next < r.lo {
			out = append(out, runeRange{next, r.lo - 1})
		}
		next = max(next, r.hi+1)
	}
	if next <= unicode.MaxRune {
		out = append(out, runeRange{next, unicode.MaxRune})
	}
	return out
}

// Oniguruma's word characters: in a class Alphabetic, M, Nd and Pc; elsewhere also
// the superscript digits and fractions of Latin-1.
var (
	innerWords = charSet{
		named:  `\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\p{Other_Alphabetic}`,
		tables: []*unicode.RangeTable{unicode.L, unicode.M, unicode.Nd, unicode.Nl, unicode.Pc, unicode.Other_Alphabetic},
		items:  newWords,
	}
	outsideWords = charSet{
		named: innerWords.named,
		items: append(slices.Clone(newWords), runeRange{0xB2, 0xB3}, runeRange{0xB9, 0xB9}, runeRange{0xBC, 0xBE}),
	}
)
