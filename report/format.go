package report

import (
	"cmp"
	"fmt"
	"html/template"
	"math"
	"path"
	"strconv"
	"strings"

	"github.com/fettle-dev/fettle/record"
)

const (
	thin    = "\u202f" // between thousands: narrow and never a line's end
	minus   = "\u2212"
	unknown = "–"
)

// functions are what the template calls to format figures.
var functions = template.FuncMap{
	"bits":        func(x float64) string { return fixed(x, 2) },
	"count":       count[int64],
	"countInt":    count[int],
	"fitness":     fitness,
	"fixed":       func(digits int, x float64) string { return fixed(x, digits) },
	"grid":        formatGrid,
	"percent":     percent,
	"perplexity":  perplexity,
	"plural":      plural,
	"relative":    relative,
	"samples":     samples,
	"seconds":     seconds,
	"shape":       shape,
	"size":        size,
	"full":        full,
	"lossNote":    lossNote,
	"nats":        nats,
	"outputRows":  outputRows,
	"outputsNote": outputsNote,
	"significant": significant,
	"times":       times,
	"share":       share[int],
}

// count formats a whole number with thin spaces between thousands.
func count[T int | int64](n T) string {
	s := strconv.FormatInt(int64(n), 10)
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = minus, s[1:]
	}
	return sign + thousands(s)
}

func thousands(digits string) string {
	var b strings.Builder
	for i, r := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteString(thin)
		}
		b.WriteRune(r)
	}
	return b.String()
}

// fixed formats x with the given digits after the point. Sums may overflow;
// those are not known.
func fixed(x float64, digits int) string {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return unknown
	}
	if math.Abs(x) >= 1e15 {
		return strings.ReplaceAll(strconv.FormatFloat(x, 'g', 3, 64), "-", minus)
	}
	s := strconv.FormatFloat(math.Abs(x), 'f', digits, 64)
	whole, rest, found := strings.Cut(s, ".")
	s = thousands(whole)
	if found {
		s += "." + rest
	}
	if x < 0 && strings.Trim(s, "0.") != "" {
		s = minus + s
	}
	return s
}

// significant formats x with three significant digits.
func significant(x float64) string { return rounded(x, 3) }

// fitness formats a fitness with four significant digits: those of good candidates
// are close together.
func fitness(x float64) string { return rounded(x, 4) }

// rounded formats x with the given number of significant digits.
func rounded(x float64, digits int) string {
	if x == 0 {
		return "0"
	}
	exponent := int(math.Floor(math.Log10(math.Abs(x))))
	switch {
	case exponent < -4 || exponent > 14:
		s := strconv.FormatFloat(x, 'e', digits-1, 64)
		mantissa, power, _ := strings.Cut(s, "e")
		n, _ := strconv.Atoi(power)
		return strings.ReplaceAll(mantissa, "-", minus) + "e" + strings.ReplaceAll(strconv.Itoa(n), "-", minus)
	default:
		return fixed(x, max(0, digits-1-exponent))
	}
}

// relative formats a relative error, or a dash where none was measured.
func relative(x *float64) string {
	if x == nil {
		return unknown
	}
	return significant(*x)
}

// full returns a figure with all its digits, as scripts read it; nothing where
// there is none.
func full(x *float64) string {
	if x == nil {
		return ""
	}
	return strconv.FormatFloat(*x, 'g', -1, 64)
}

// size formats bytes in units of 1,000.
func size(n int64) string {
	x := float64(n)
	switch {
	case n < 1e3:
		return count(n) + " B"
	case n < 1e6:
		return fixed(x/1e3, 1) + " KB"
	case n < 1e9:
		return fixed(x/1e6, 2) + " MB"
	default:
		return fixed(x/1e9, 2) + " GB"
	}
}

// seconds formats a duration.
func seconds(s float64) string {
	switch {
	case s >= 3600:
		return fmt.Sprintf("%s h %02d min", fixed(math.Floor(s/3600), 0), int(math.Mod(s, 3600)/60))
	case s >= 60:
		return fmt.Sprintf("%d min %02d s", int(s/60), int(math.Mod(s, 60)))
	case s >= 1:
		return fixed(s, 2) + " s"
	default:
		return fixed(s, 3) + " s"
	}
}

// percent formats a share of 1.
func percent(x float64) string {
	if x > 0 && x < 0.00005 {
		return "< 0.01 %"
	}
	if x > 0 && x < 0.0995 {
		return fixed(100*x, 2) + " %"
	}
	return fixed(100*x, 1) + " %"
}

// times formats a factor, such as 8.97×.
func times(x float64) string {
	if x == 0 {
		return unknown
	}
	return significant(x) + "×"
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(n) + " " + many
}

func shape(s []int) string {
	if len(s) == 0 {
		return "scalar"
	}
	parts := make([]string, len(s))
	for i, n := range s {
		parts[i] = strconv.Itoa(n)
	}
	return strings.Join(parts, "×")
}

// formatGrid says which weights share a scale.
func formatGrid(l record.Layer) string {
	if l.GroupSize > 0 {
		return l.Granularity + " " + strconv.Itoa(l.GroupSize)
	}
	return cmp.Or(l.Granularity, unknown)
}

// share returns a/b within 0…1; 0 where b is 0.
func share[T int | int64 | float64](a, b T) float64 {
	if b <= 0 || a <= 0 {
		return 0
	}
	return min(1, float64(a)/float64(b))
}

// ratio returns a/b, or 0 where b is 0.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// baseName returns the last part of a path of any system.
func baseName(p string) string {
	p = strings.TrimRight(strings.ReplaceAll(p, `\`, "/"), "/")
	if p == "" {
		return "model"
	}
	return path.Base(p)
}

// shortNames drops from the names what all of them start with, up to a dot,
// and ".weight" at their ends: charts have little room.
func shortNames(names []string) []string {
	out := make([]string, len(names))
	prefix := ""
	if len(names) > 1 {
		prefix = parent(names[0])
	}
	for _, n := range names {
		for !strings.HasPrefix(n, prefix) {
			prefix = parent(strings.TrimSuffix(prefix, "."))
		}
	}
	for i, n := range names {
		out[i] = cmp.Or(strings.TrimSuffix(n[len(prefix):], ".weight"), n)
	}
	return out
}

// abbreviate drops from a dotted name the parts that tell little: those without
// a digit, before the last that is more than a number. For example
// model.layers.0.self_attn.q_proj becomes 0…q_proj, and layer1.0.conv2 stays.
func abbreviate(name string) string {
	parts := strings.Split(name, ".")
	last := len(parts) - 1
	for last > 0 && isNumber(parts[last]) {
		last--
	}
	var b strings.Builder
	joint := ""
	for i, part := range parts {
		if i < last && !strings.ContainsAny(part, "0123456789") {
			if b.Len() > 0 {
				joint = "…"
			}
			continue
		}
		b.WriteString(joint + part)
		joint = "."
	}
	return b.String()
}

// fit shortens a layer's name to at most n runes.
func fit(name string, n int) string {
	if len([]rune(name)) > n {
		name = abbreviate(name)
	}
	return clip(name, n)
}

// isNumber says whether s is digits alone.
func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// lastPart returns what follows a layer name's last dot, without ".weight".
func lastPart(name string) string {
	name = strings.TrimSuffix(name, ".weight")
	return name[strings.LastIndex(name, ".")+1:]
}

// parent returns a name up to and including its last dot.
func parent(name string) string { return name[:strings.LastIndex(name, ".")+1] }

// clip shortens s to at most n runes, from its middle: names differ at both
// ends.
func clip(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	head := (n - 1) / 2
	return string(r[:head]) + "…" + string(r[len(r)-(n-1-head):])
}

// shellQuote quotes an argument for a POSIX shell where that is needed.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+=:,@%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 && s[0] != '-' {
		return s
	}
	if strings.HasPrefix(s, "-") {
		s = "./" + s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
