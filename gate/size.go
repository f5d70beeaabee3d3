package gate

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// formatSize returns a size for people, in units of 1,000.
func formatSize(n int64) string {
	x := float64(n)
	switch {
	case n < 1e3:
		return fmt.Sprintf("%d B", n)
	case n < 1e6:
		return fmt.Sprintf("%.1f KB", x/1e3)
	case n < 1e9:
		return fmt.Sprintf("%.2f MB", x/1e6)
	default:
		return fmt.Sprintf("%.2f GB", x/1e9)
	}
}

// formatNumber returns x with the given digits after the point, or with its
// three leading digits where those would show nothing of it.
func formatNumber(x float64, digits int) string {
	s := strconv.FormatFloat(x, 'f', digits, 64)
	if x != 0 && strings.Trim(s, "-0.") == "" || len(s) > 20 {
		return strconv.FormatFloat(x, 'g', 3, 64)
	}
	return s
}

// formatPair formats two numbers alike, in full where they differ by less than
// the digits show.
func formatPair(a, b float64, digits int) (string, string) {
	x, y := formatNumber(a, digits), formatNumber(b, digits)
	if x == y && a != b {
		return strconv.FormatFloat(a, 'g', -1, 64), strconv.FormatFloat(b, 'g', -1, 64)
	}
	return x, y
}

// printable returns a name from a file as it is, or quoted where it holds
// anything that could move a terminal's cursor or break the line.
func printable(name string) string {
	for _, r := range name {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return strconv.QuoteToGraphic(name)
		}
	}
	return name
}
