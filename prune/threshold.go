package prune

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// blockSize returns the outputs and inputs of a unit, which is what goes or stays
// as a whole: a weight, or a block.
func (p Pattern) blockSize() (rows, cols int) { return max(p.Rows, 1), max(p.Cols, 1) }

// span returns how many inputs of a row belong together.
func (p Pattern) span() int { return max(p.Cols, p.M, 1) }

// units returns how many units stand below and beside each other.
func (p Pattern) units(rows, cols int) (int, int) {
	h, w := p.blockSize()
	return (rows + h - 1) / h, (cols + w - 1) / w
}

// checkFor reports a selection that does not fit a rows×cols weight.
func (s Selection) checkFor(rows, cols int) error {
	if err := s.Pattern.Check(); err != nil {
		return err
	}
	if err := s.Scope.Check(s.Pattern); err != nil {
		return err
	}
	own := s.Pattern.Survivors(rows, cols, 0)
	if s.Survivors < 0 || s.Survivors > rows*cols || s.Pattern.Kind == NofM && s.Survivors != own {
		return &ShapeError{fmt.Sprintf("%d survivors of %d×%d weights in pattern %s", s.Survivors, rows, cols, s.Pattern)}
	}
	return nil
}

// losses returns how many units of a rows×cols weight go. One stays at least.
func (s Selection) losses(rows, cols int) int {
	size, pruned := rows*cols, rows*cols-s.Survivors
	if s.Pattern.Kind == Blocks {
		share := float64(pruned) / float64(size)
		rows, cols = s.Pattern.units(rows, cols)
		size = rows * cols
		pruned = Pruned(size, share)
	}
	return min(pruned, size-1)
}

// share returns what part r of n equal parts of k has, so that all have k.
func share(k, r, n int) int { return (r+1)*k/n - r*k/n }

// pinned is the key of a unit that must stay. Keys of others are the bits of a
// finite float32 that is not negative, which are ordered as the numbers are.
const pinned = 1<<31 - 1

// threshold says what goes: keys below pivot, and the first ties of those equal.
type threshold struct {
	pivot uint32
	ties  int
}

// A threshold is found digit by digit: how often each highest digit stands in the keys
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

// thresholdOf returns that under which the k least keys go.
func thresholdOf(keys []uint32, k int) threshold {
	if k <= 0 {
		return threshold{}
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
	return threshold{pivot, place + 1}
}

// thresholdsOf is thresholdOf for keys in rows of cols, whose rows the pool shares. It
// returns one for each chunk of rows.
func thresholdsOf(ctx context.Context, p *pool.Pool, keys []uint32, cols, chunk, k int) ([]threshold, error) {
	rows := len(keys) / cols
	chunks := (rows + chunk - 1) / chunk
	thresholds := make([]threshold, chunks)
	if k <= 0 {
		return thresholds, nil
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
	for t := range thresholds {
		thresholds[t] = threshold{pivot, min(ties, int(counts[t][bin]))}
		ties -= thresholds[t].ties
	}
	return thresholds, nil
}

// selector chooses units by their sizes, again and again.
type selector struct {
	Selection
	keys []uint32
}

// choose writes the survivors among v to the mask's columns col … col+v.Cols−1.
// k units go; with scope PerRow ofRow(r) of row r. Of N:M's groups only what is not
// among the largest goes, and k counts these in all rows. Sizes are |v|, those of
// blocks root mean squares. Of units of one size those that come first go first.
func (s *selector) choose(ctx context.Context, p *pool.Pool, v blas32.General, mask *layer.Mask, col, k int, ofRow func(r int) int) error {
	h, _ := s.Pattern.blockSize()
	rows, cols := s.Pattern.units(v.Rows, v.Cols)
	if s.keys == nil {
		s.keys = make([]uint32, rows*cols)
	}
	s.keys = s.keys[:rows*cols]
	err := forRows(ctx, p, rows, h*v.Cols, func(u int) error {
		keys := s.keys[u*cols:][:cols]
		s.measure(keys, v, u*h)
		if s.Scope == PerRow {
			t := thresholdOf(keys, ofRow(u))
			s.mark(mask, keys, u*h, col, v.Cols, &t)
		}
		return nil
	})
	if err != nil || s.Scope == PerRow {
		return err
	}
	chunk := max(1, 1<<16/cols)
	thresholds, err := thresholdsOf(ctx, p, s.keys, cols, chunk, k)
	if err != nil {
		return err
	}
	return p.For(ctx, len(thresholds), func(t int) error {
		for u := t * chunk; u < min((t+1)*chunk, rows); u++ {
			s.mark(mask, s.keys[u*cols:][:cols], u*h, col, v.Cols, &thresholds[t])
		}
		return nil
	})
}

// measure writes the keys of the row of units that begins at row r of v.
func (s *selector) measure(keys []uint32, v blas32.General, r int) {
	h, w := s.Pattern.blockSize()
	if s.Pattern.Kind == Blocks {
		h = min(h, v.Rows-r)
		for u := range keys {
			from, to := u*w, min((u+1)*w, v.Cols)
			sum := 0.0
			for i := range h {
				sum += vec.SumSquares(matrixRow(v, r+i)[from:to])
			}
			keys[u] = scoreKey(float32(math.Sqrt(sum / float64(h*(to-from)))))
		}
		return
	}
	for i, x := range matrixRow(v, r) {
		keys[i] = math.Float32bits(x) &^ (1 << 31)
	}
	if m := s.Pattern.M; m > 0 {
		for g := 0; g < len(keys); g += m {
			group := keys[g:min(g+m, len(keys))]
			pinLargest(group, s.Pattern.kept(len(group)))
		}
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
func (s *selector) mark(mask *layer.Mask, keys []uint32, r, col, cols int, c *threshold) {
	h, w := s.Pattern.blockSize()
	if h == 1 && w == 1 && col%64 == 0 {
		row := mask.Row(r)[col/64:]
		for i := 0; i < len(keys); i += 64 {
			row[i/64] = survivors(keys[i:min(i+64, len(keys))], c)
		}
		return
	}
	for u := range keys {
		survives := survivors(keys[u:u+1], c) != 0
		for i := r; i < min(r+h, mask.Rows); i++ {
			for j := u * w; j < min((u+1)*w, cols); j++ {
				mask.Set(i, col+j, survives)
			}
		}
	}
}

// survivors returns bit i for each key i that stays, and counts the ties used. It
// does not branch on the mask, which is as good as random.
func survivors(keys []uint32, c *threshold) (word uint64) {
	for i, k := range keys {
		goes := (k - c.pivot) >> 31 // neither has a bit 31
		if k == c.pivot && c.ties > 0 {
			goes, c.ties = 1, c.ties-1
		}
		word |= uint64(goes^1) << i
	}
	return word
}
