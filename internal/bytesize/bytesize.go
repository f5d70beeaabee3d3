// Package bytesize reads sizes as people write them.
package bytesize

import (
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// units are the suffixes that a size may have, and their bytes.
var units = map[string]int64{
	"": 1, "b": 1,
	"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}

// Parse reads a size in bytes such as "180KB" (180,000 bytes), "1.5 MB",
// "120MiB" (120·1,048,576 bytes) or "512". KB, MB, GB and TB are powers of
// 1,000, KiB to TiB of 1,024; case does not matter. The size must be a whole
// number of bytes, more than none.
func Parse(s string) (int64, error) {
	size, err := parse(strings.TrimSpace(s))
	if err != nil {
		return 0, fmt.Errorf("size %q: %w; write it like 180KB, 1.5MB or 120MiB (B; KB, MB, GB, TB of 1,000; KiB, MiB, GiB, TiB of 1,024)", s, err)
	}
	return size, nil
}

func parse(s string) (int64, error) {
	end := strings.IndexFunc(s, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if end < 0 {
		end = len(s)
	}
	number, suffix := s[:end], strings.TrimSpace(s[end:])
	if len(number) > 30 {
		return 0, errors.New("too long a number")
	}
	// The check on characters and length above keeps big's exponents out.
	value, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, errors.New("no number")
	}
	unit, ok := units[strings.ToLower(suffix)]
	if !ok {
		return 0, fmt.Errorf("unknown unit %q", suffix)
	}
	value.Mul(value, new(big.Rat).SetInt64(unit))
	switch {
	case value.Sign() == 0:
		return 0, errors.New("must be more than 0")
	case !value.IsInt():
		return 0, errors.New("not a whole number of bytes")
	case !value.Num().IsInt64():
		return 0, errors.New("too large")
	}
	return value.Num().Int64(), nil
}
