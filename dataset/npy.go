package dataset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// NumPy's format is "\x93NUMPY", two bytes of version, the length of the
// header (2 bytes in version 1, 4 later), a header that is a Python dictionary,
// and the elements.

const (
	npyMagic     = "\x93NUMPY"
	maxNPYHeader = 1 << 16 // far more than one or two axes need
)

var npyTypes = map[string]dtype.DType{"<u2": dtype.U16, "<u4": dtype.U32, "<i4": dtype.I32, "<i8": dtype.I64}

// npyFloats are the types of features.
var npyFloats = map[string]dtype.DType{"<f2": dtype.F16, "<f4": dtype.F32, "<f8": dtype.F64}

// parseNPY finds the elements of a file of the given size. It accepts what
// NumPy writes for integers of the types above with one or two axes in C order,
// and nothing else.
func parseNPY(r io.ReaderAt, size int64) (*array, error) { return parseNPYOf(r, size, npyTypes, 2) }

// parseNPYOf is parseNPY for other types and axes.
func parseNPYOf(r io.ReaderAt, size int64, types map[string]dtype.DType, axes int) (*array, error) {
	prefix := make([]byte, 12)
	n, err := r.ReadAt(prefix, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	prefix = prefix[:n]
	if len(prefix) < 10 || string(prefix[:6]) != npyMagic {
		return nil, errors.New("it does not begin as one")
	}
	begin, length := int64(10), int64(binary.LittleEndian.Uint16(prefix[8:]))
	if major := prefix[6]; major < 1 || major > 3 || prefix[7] != 0 {
		return nil, fmt.Errorf("version %d.%d is unknown", major, prefix[7])
	} else if major > 1 {
		if len(prefix) < 12 {
			return nil, errors.New("it ends inside its header")
		}
		begin, length = 12, int64(binary.LittleEndian.Uint32(prefix[8:]))
	}
	if length > maxNPYHeader || length > size-begin {
		return nil, fmt.Errorf("its header claims %d bytes", length)
	}
	text := make([]byte, length)
	if n, err := r.ReadAt(text, begin); n < len(text) {
		return nil, fmt.Errorf("its header cannot be read: %w", err)
	}
	a, err := parseNPYHeader(string(text), types)
	if err != nil {
		return nil, err
	}
	if len(a.shape) < 1 || len(a.shape) > axes {
		return nil, fmt.Errorf("it has %d axes", len(a.shape))
	}
	a.begin = begin + length
	return a, a.fits(size - a.begin)
}

// fits checks that the shape's elements take exactly the bytes that are there.
func (a *array) fits(content int64) error {
	left := content / int64(a.element.Size())
	for _, n := range a.shape {
		if n == 0 || int64(n) > left {
			return fmt.Errorf("its shape is %v, and %d bytes follow the header", a.shape, content)
		}
		left /= int64(n)
	}
	total := int64(a.element.Size())
	for _, n := range a.shape {
		total *= int64(n)
	}
	if total != content {
		return fmt.Errorf("its shape is %v, and %d bytes follow the header", a.shape, content)
	}
	return nil
}

// parseNPYHeader reads {'descr': '<u2', 'fortran_order': False, 'shape': (5,), }.
func parseNPYHeader(text string, types map[string]dtype.DType) (*array, error) {
	p := literal{rest: text}
	a := &array{}
	var seen []string
	p.take("{")
	for p.err == nil && !p.next("}") {
		key := p.quoted()
		p.take(":")
		if slices.Contains(seen, key) {
			return nil, fmt.Errorf("its header has %q twice", key)
		}
		seen = append(seen, key)
		switch key {
		case "descr":
			descr := p.quoted()
			var ok bool
			if a.element, ok = types[descr]; p.err == nil && !ok {
				return nil, fmt.Errorf("its elements are %q", descr)
			}
		case "fortran_order":
			if !p.next("False") {
				return nil, errors.New("it is not in C order")
			}
		case "shape":
			a.shape = p.tuple()
		default:
			return nil, fmt.Errorf("its header has the key %q", key)
		}
		if !p.next(",") {
			p.take("}")
			break
		}
	}
	if p.skip(); p.err == nil && p.rest != "" {
		return nil, fmt.Errorf("%d bytes follow its header's dictionary", len(p.rest))
	}
	if p.err != nil {
		return nil, p.err
	}
	if len(seen) != 3 {
		return nil, errors.New("its header lacks one of descr, fortran_order and shape")
	}
	return a, nil
}

// literal reads a Python literal; after an error it reads nothing.
type literal struct {
	rest string
	err  error
}

func (p *literal) skip() { p.rest = strings.TrimLeft(p.rest, " \t\r\n") }

// next reports whether s comes next, and moves past it.
func (p *literal) next(s string) bool {
	p.skip()
	rest, ok := strings.CutPrefix(p.rest, s)
	if ok && p.err == nil {
		p.rest = rest
	}
	return ok && p.err == nil
}

func (p *literal) take(s string) {
	if !p.next(s) && p.err == nil {
		p.err = fmt.Errorf("its header has no %q where one must be", s)
	}
}

// quoted reads a string without escapes.
func (p *literal) quoted() string {
	mark := "'"
	if p.next(`"`) {
		mark = `"`
	} else {
		p.take(mark)
	}
	s, rest, ok := strings.Cut(p.rest, mark)
	if p.err == nil && (!ok || strings.ContainsAny(s, "\\\n")) {
		p.err = errors.New("its header has a string that does not end")
	}
	if p.err != nil {
		return ""
	}
	p.rest = rest
	return s
}

// tuple reads numbers in parentheses.
func (p *literal) tuple() []int {
	var all []int
	p.take("(")
	for p.err == nil && !p.next(")") {
		p.skip()
		digits := len(p.rest) - len(strings.TrimLeft(p.rest, "0123456789"))
		v, err := strconv.ParseInt(p.rest[:digits], 10, 0)
		if err != nil {
			p.err = fmt.Errorf("its shape: %w", err)
			return nil
		}
		p.rest = p.rest[digits:]
		if all = append(all, int(v)); !p.next(",") {
			p.take(")")
			break
		}
	}
	return all
}
