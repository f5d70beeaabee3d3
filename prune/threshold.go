package prune

import (
	"context"
	"math"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// choice says which units of a weight go together and where they are counted. A
// unit is one weight, or a block of blockRows × blockCols.
type choice struct {
	sparsity             float64
	perRow               bool // each row of units loses the same number
	keep, of             int  // N:M along a row; 0 where there is none
	blockRows, blockCols int  // 0 is 1
}

func (c choice) blockSize() (rows, cols int) { return max(c.blockRows, 1), max(c.blockCols, 1) }

// units returns how many units stand below and beside each other.
func (c choice) units(rows, cols int) (int, int) {
	br, bc := c.blockSize()
	return (rows + br - 1) / br, (cols + bc - 1) / bc
}

// count returns how many of n units go in the end.
func (c choice) count(n int) int {
	return min(max(int(math.Floor(c.sparsity*float64(n)+1e-9)), 0), n)
}

// groupKeep returns how many weights of an N:M group of size weights survive;
// the last group of a row may be short.
func (c choice) groupKeep(size int) int { return (c.keep*size + c.of - 1) / c.of }

// losses returns how many weights of a row of cols weights N:M takes.
func (c choice) losses(cols int) int {
	n := cols / c.of * (c.of - c.keep)
	if rest := cols % c.of; rest > 0 {
		n += rest - c.groupKeep(rest)
	}
	return n
}

// pinned is the key of a unit that must stay. Keys of others are the bits of a
// finite float32 that is not negative, which are ordered as the numbers are.
const pinned = 1<<31 - 1

// cut is a threshold: keys below pivot go, and the first ties of those equal.
type cut struct {
	pivot uint32
	ties  int
}

// A cut is found digit by digit: how often each highest digit stands in the keys
// says in which bin the threshold lies, the next digit where in that bin.
var digits = [...]struct{ shift, above uint }{{20, 31}, {9, 20}, {0, 9}}

const bins = 1 << 11

// tally counts digit d of the keys whose higher digits are prefix's.
func tally(counts *[bins]int32, keys []uint32, d int, prefix uint32) {
	shift, above := digits[d].shift, digits[d].above
	mask := uint32(1)<<(above-shift) - 1
	for _, k := range keys {
		if k>>above == prefix>>above {
			counts[k>>shift&mask]++
		}
	}
}

// find returns the bin that holds number k (from 0) of those counted, and k's
// place within it.
func find(counts *[bins]int32, k int) (bin uint32, place int) {
	for b, n := range counts {
		if k < int(n) {
			return uint32(b), k
		}
		k -= int(n)
	}
	return bins - 1, k
}

// cutAfter returns the cut under which the k least keys go.
func cutAfter(keys []uint32, k int) cut {
	if k <= 0 {
		return cut{}
	}
	var pivot uint32
	place := k - 1
	for d := range digits {
		var counts [bins]int32
		tally(&counts, keys, d, pivot)
		var bin uint32
		bin, place = find(&counts, place)
		pivot |= bin << digits[d].shift
	}
	return cut{pivot, place + 1}
}

// cutsAfter is cutAfter for keys in rows of cols, whose rows the pool shares. It
// returns a cut for each chunk of rows.
func cutsAfter(ctx context.Context, p *pool.Pool, keys []uint32, cols, chunk, k int) ([]cut, error) {
	rows := len(keys) / cols
	chunks := (rows + chunk - 1) / chunk
	cuts := make([]cut, chunks)
	if k <= 0 {
		return cuts, nil
	}
	counts := make([][bins]int32, chunks)
	var pivot, bin uint32
	place := k - 1
	for d := range digits {
		err := p.For(ctx, chunks, func(t int) error {
			counts[t] = [bins]int32{}
			tally(&counts[t], keys[t*chunk*cols:min((t+1)*chunk*cols, len(keys))], d, pivot)
			return nil
		})
		if err != nil {
			return nil, err
		}
		var all [bins]int32
		for t := range counts {
			for b, n := range counts[t] {
				all[b] += n
			}
		}
		bin, place = find(&all, place)
		pivot |= bin << digits[d].shift
	}
	ties := place + 1
	for t := range cuts {
		cuts[t] = cut{pivot, min(ties, int(counts[t][bin]))}
		ties -= cuts[t].ties
	}
	return cuts, nil
}

// selector chooses units by their keys, again and again.
type selector struct {
	choice
	keys []uint32
}

// rowChunk is how many rows of so many numbers make a task.
func rowChunk(cols int) int { return max(1, 1<<16/max(cols, 1)) }

// choose writes the survivors among v to the mask's columns col … col+v.Cols−1.
// k units go: of each row of units with perRow, else of all of them. Of N:M's
// groups only what is not among the largest goes, and k counts these in all rows.
// A unit's size is its largest-to-smallest order by |v|, of a block by Σv². Of
// units of one size those that come first go first.
func (s *selector) choose(ctx context.Context, p *pool.Pool, v blas32.General, mask *layer.Mask, col, k int) error {
	br, _ := s.blockSize()
	rows, cols := s.units(v.Rows, v.Cols)
	if need := rows * cols; cap(s.keys) < need {
		s.keys = make([]uint32, need)
	} else {
		s.keys = s.keys[:need]
	}
	chunk := rowChunk(cols)
	chunks := (rows + chunk - 1) / chunk
	perRow := s.perRow && s.of == 0
	err := p.For(ctx, chunks, func(t int) error {
		for u := t * chunk; u < min((t+1)*chunk, rows); u++ {
			keys := s.keys[u*cols:][:cols]
			s.measure(keys, v, u*br)
			if perRow {
				c := cutAfter(keys, k)
				s.mark(mask, keys, u*br, col, v.Cols, &c)
			}
		}
		return nil
	})
	if err != nil || perRow {
		return err
	}
	cuts, err := cutsAfter(ctx, p, s.keys, cols, chunk, k)
	if err != nil {
		return err
	}
	return p.For(ctx, chunks, func(t int) error {
		for u := t * chunk; u < min((t+1)*chunk, rows); u++ {
			s.mark(mask, s.keys[u*cols:][:cols], u*br, col, v.Cols, &cuts[t])
		}
		return nil
	})
}

// measure writes the keys of the row of units that begins at row r of v.
func (s *selector) measure(keys []uint32, v blas32.General, r int) {
	br, bc := s.blockSize()
	if br == 1 && bc == 1 {
		for i, x := range v.Data[r*v.Stride:][:v.Cols] {
			keys[i] = math.Float32bits(x) &^ (1 << 31)
		}
		if s.of > 0 {
			for g := 0; g < len(keys); g += s.of {
				group := keys[g:min(g+s.of, len(keys))]
				pinLargest(group, s.groupKeep(len(group)))
			}
		}
		return
	}
	for u := range keys {
		sum := 0.0
		for i := r; i < min(r+br, v.Rows); i++ {
			for _, x := range v.Data[i*v.Stride+u*bc : i*v.Stride+min((u+1)*bc, v.Cols)] {
				sum += float64(x) * float64(x)
			}
		}
		keys[u] = math.Float32bits(float32(math.Sqrt(sum)))
	}
}

// pinLargest pins the n largest keys, of equal ones the last.
func pinLargest(keys []uint32, n int) {
	for range n {
		best := -1
		for i, k := range keys {
			if k != pinned && (best < 0 || k >= keys[best]) {
				best = i
			}
		}
		keys[best] = pinned
	}
}

// mark writes the survivors of a row of units to the mask's rows from r on.
func (s *selector) mark(mask *layer.Mask, keys []uint32, r, col, cols int, c *cut) {
	br, bc := s.blockSize()
	if br == 1 && bc == 1 && col%64 == 0 {
		row := mask.Row(r)[col/64:]
		for i := 0; i < len(keys); i += 64 {
			row[i/64] = survivors(keys[i:min(i+64, len(keys))], c)
		}
		return
	}
	for u := range keys {
		survives := survivors(keys[u:u+1], c) != 0
		for i := r; i < min(r+br, mask.Rows); i++ {
			for j := u * bc; j < min((u+1)*bc, cols); j++ {
				mask.Set(i, col+j, survives)
			}
		}
	}
}

// survivors returns bit i for each key i that stays, and counts the ties used. It
// does not branch on the mask, which is as good as random.
func survivors(keys []uint32, c *cut) (word uint64) {
	for i, k := range keys {
		goes := (k - c.pivot) >> 31 // neither has a bit 31
		if k == c.pivot && c.ties > 0 {
			goes, c.ties = 1, c.ties-1
		}
		word |= uint64(goes^1) << i
	}
	return word
}
