package blas

import (
	"os"
	"unsafe"
)

// number is the type of a product's elements.
type number interface{ float32 | float64 }

// A tile is one call of a micro-kernel: C = mode(α·AB) for a few rows and a
// few vectors of columns. Strides are in bytes.
type tile struct {
	a, b       unsafe.Pointer // packed rows; rows of B, packed or not
	c          unsafe.Pointer
	in         unsafe.Pointer // what the modes add
	ahead      unsafe.Pointer // rows to ask the memory for meanwhile, nil for none
	offsets    unsafe.Pointer // direct kernels: *int32, where each row of B is
	next       unsafe.Pointer // what to ask the second-level cache for, byte nextStep·l at step l
	nextStep   int
	k          int
	lda        int
	ldb        int
	ldc        int
	ldin       int
	ldahead    int
	aheadBytes int
	mode       int
	alpha64    float64
	alpha32    float32
}

// What a kernel does with a finished product.
const (
	overwrite = iota // C = α·AB
	addMatrix        // C = α·AB + in, whose row stride may be 0
	addColumn        // C = α·AB + in, one number for each row
)

// Every chain of additions over k has at most so many links before it is added
// to C. The constants are part of the results.
const kc32, kc64 = 384, 256

type tileTable map[[2]int]func(*tile)

// kernels is a set of micro-kernels for one element type.
type kernels struct {
	kc        int // kc32 or kc64
	rows      int // most rows of a tile
	cols      int // columns of a tile
	half      int // columns of a narrow tile, for what is left at the end
	step      int // elements between two k of a packed panel of rows
	lanes     int // elements of a vector
	square    int // rows that transpose takes at once
	tiles     [][]func(*tile)
	direct    []func(*tile)
	copyPanel func(dst, src unsafe.Pointer, ld, k, words, vectors int)
	// copyPanels is nil where panels are copied one by one.
	copyPanels func(dst unsafe.Pointer, ldp int, src unsafe.Pointer, ld, k int, at *int32, panels, vectors int)
	transpose  func(dst unsafe.Pointer, ldd int, rows *unsafe.Pointer, from, k int)
}

// widest returns the vectors of the widest tile of so many rows.
func (k *kernels) widest(rows int) int {
	v := len(k.tiles[rows]) - 1
	for k.tiles[rows][v] == nil {
		v--
	}
	return v
}

// wideTile returns the widest kernel for so many rows that is at most so many
// vectors wide, and its width in vectors.
func (k *kernels) wideTile(rows, vectors int) (func(*tile), int) {
	v := min(vectors, k.widest(rows))
	for k.tiles[rows][v] == nil {
		v--
	}
	return k.tiles[rows][v], v
}

func newTiles(t tileTable) [][]func(*tile) {
	rows, vectors := 0, 0
	for s := range t {
		rows, vectors = max(rows, s[0]), max(vectors, s[1])
	}
	out := make([][]func(*tile), rows+1)
	for r := range out {
		out[r] = make([]func(*tile), vectors+1)
		for v := range out[r] {
			out[r][v] = t[[2]int{r, v}]
		}
	}
	return out
}

// set is what a path consists of.
type set struct {
	name    string
	f32     *kernels
	f64     *kernels
	addTile func(dst unsafe.Pointer, ldd int, src unsafe.Pointer, lds, rows, cols int)
	// window is nil where images are read without it.
	window func(dst unsafe.Pointer, ldd int, image, offsets unsafe.Pointer, k int, runs *[4]run)
}

// use is the set in use. Tests replace it.
var use = choose(os.Getenv("FETTLE_KERNELS"))

// choose returns the set of the given name, or the best that the processor has.
func choose(name string) *set {
	all := available() // best first
	for _, s := range all {
		if s.name == name {
			return s
		}
	}
	return all[0]
}

// Kernels names the kernels in use: avx512, avx2 or generic. The environment
// variable FETTLE_KERNELS chooses among those that the processor has.
var Kernels = use.name

// Path names the arithmetic of the kernels in use. It stands in records and in
// the keys of cached units: two paths may round differently, and kernels of
// one path do not.
var Path = arithmetic(use)

func arithmetic(s *set) string {
	if s.name == generic.name {
		return "generic"
	}
	return "fma"
}

func kernelsOf[T number](s *set) *kernels {
	if unsafe.Sizeof(T(0)) == 8 {
		return s.f64
	}
	return s.f32
}
