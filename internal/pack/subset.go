package pack

import (
	"fmt"
	"math/bits"
)

// MaxSet is the largest set whose subsets are numbered.
const MaxSet = 32

// binomial holds n over k.
var binomial = pascal()

func pascal() (b [MaxSet + 1][MaxSet + 1]uint32) {
	for n := range b {
		b[n][0] = 1
		for k := 1; k <= n; k++ {
			b[n][k] = b[n-1][k-1] + b[n-1][k]
		}
	}
	return b
}

// SubsetBits returns the bits that the numbers of the subsets of n of m elements
// take: ⌈log2(m over n)⌉, for 1 ≤ n < m ≤ MaxSet.
func SubsetBits(n, m int) int { return bits.Len32(binomial[m][n] - 1) }

// SubsetRank returns the number of a subset, given as bits, among those of as many
// elements: Σ (pᵢ over i) over its elements p₁ < p₂ < …, the combinatorial number
// system (Knuth, The Art of Computer Programming 4A, §7.2.1.3).
func SubsetRank(set uint32) (rank uint32) {
	for i := 1; set != 0; i++ {
		rank += binomial[bits.TrailingZeros32(set)][i]
		set &= set - 1
	}
	return rank
}

// Subset is the inverse of SubsetRank for subsets of n of m elements, n ≤ m ≤
// MaxSet. ok is false for a rank that none has.
func Subset(rank uint32, n, m int) (set uint32, ok bool) {
	if rank >= binomial[m][n] {
		return 0, false
	}
	for p := m - 1; n > 0; p-- {
		if b := binomial[p][n]; b <= rank {
			rank -= b
			set |= 1 << p
			n--
		}
	}
	return set, true
}

// FieldBytes returns the bytes that n unsigned fields of the given bits take.
func FieldBytes(n, bits int) int { return n/8*bits + (n%8*bits+7)/8 }

// Fields packs unsigned fields of 1 to 32 bits into dst, which must be
// FieldBytes(len(fields), bits) long: one after another without a gap, least
// significant bit first, the bits after the last one zero.
func Fields(dst []byte, fields []uint32, bits int) error {
	if err := checkFields(dst, fields, bits); err != nil {
		return err
	}
	var held uint64
	n, at := 0, 0
	for i, f := range fields {
		if uint64(f)>>bits != 0 {
			return fmt.Errorf("%w: field %d is %d, in %d bits", ErrLength, i, f, bits)
		}
		held |= uint64(f) << n
		for n += bits; n >= 8; n -= 8 {
			dst[at] = byte(held)
			held >>= 8
			at++
		}
	}
	if n > 0 {
		dst[at] = byte(held)
	}
	return nil
}

// UnpackFields is the inverse of Fields. It ignores the bits after the last field.
func UnpackFields(fields []uint32, src []byte, bits int) error {
	if err := checkFields(src, fields, bits); err != nil {
		return err
	}
	var held uint64
	n, at := 0, 0
	for i := range fields {
		for ; n < bits; n += 8 {
			held |= uint64(src[at]) << n
			at++
		}
		fields[i] = uint32(held & (1<<bits - 1))
		held >>= bits
		n -= bits
	}
	return nil
}

func checkFields(packed []byte, fields []uint32, bits int) error {
	if bits < 1 || bits > 32 || len(packed) != FieldBytes(len(fields), bits) {
		return fmt.Errorf("%w: %d bytes for %d fields of %d bits", ErrLength, len(packed), len(fields), bits)
	}
	return nil
}
