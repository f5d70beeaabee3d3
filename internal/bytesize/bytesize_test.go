package bytesize

import (
	"math"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for s, want := range map[string]int64{
		"180KB": 180_000, "180kb": 180_000, " 180 KB ": 180_000, "1.5MB": 1_500_000, "1.5 mb": 1_500_000,
		"120MiB": 120 << 20, "120MIB": 120 << 20, "512 B": 512, "512b": 512, "512": 512, "1": 1,
		"2GB": 2_000_000_000, "1TB": 1e12, "1KiB": 1024, "1GiB": 1 << 30, "0.5KiB": 512, "1TiB": 1 << 40,
		"0.001KB": 1, ".5KB": 500, "9223372036854775807": math.MaxInt64, "0.1KB": 100, "1.1MB": 1_100_000,
	} {
		if got, err := Parse(s); err != nil || got != want {
			t.Errorf("Parse(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for s, says := range map[string]string{
		"": "no number", "KB": "no number", "-5KB": "no number", "+5KB": "no number", "1.2.3": "no number", ".": "no number",
		"1e3": "unknown unit", "5 apples": "unknown unit", "180K": "unknown unit", "0x10": "unknown unit", "1/2": "unknown unit",
		"5 B B": "unknown unit", "1_000": "unknown unit", "1,5MB": "unknown unit", "NaN": "no number",
		"0": "more than 0", "0KB": "more than 0", "0.5": "whole number", "0.5B": "whole number", "1.0005KB": "whole number",
		"9223372036854775808": "too large", "9999999999TB": "too large", strings.Repeat("9", 1000): "too long",
	} {
		got, err := Parse(s)
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "180KB") {
			t.Errorf("Parse(%q) = %d, %v; want an error that says %q and what is allowed", s, got, err, says)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"180KB", "1.5 MB", "120MiB", "-1", "9e9", "..", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := Parse(s); (err == nil) != (n > 0) {
			t.Errorf("Parse(%q) = %d, %v", s, n, err)
		}
	})
}
