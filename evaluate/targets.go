package evaluate

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"sync"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/internal/vec"
)

// A cache of the original's answers is a safetensors file with one tensor,
// targets: U8, rows × bytes of a row. A row is one predicted token, all of it
// little-endian:
//
//	f64  log Σ eᶻ
//	f64  r: the probability of all tokens that are not kept
//	f64  Σ p·log p over them
//	f32  the logit of the token that came next
//	u32  that token
//	f32  × k: the logits of the k most likely tokens, falling, equal ones by id
//	u16 or u32  × k: their ids; u32 where the vocabulary has more than 65,536
//
// Where k is the vocabulary all logits stand in the order of their ids, and
// there are no ids: comparisons then give the same bytes as without the cache.
const (
	targetsUnit    = "targets"
	targetsVersion = "1"
	targetsHead    = 8 + 8 + 8 + 4 + 4
)

// Most of a vocabulary of at most fullVocabulary tokens is kept whole by
// default, of larger ones the defaultKept most likely.
const (
	fullVocabulary = 4096
	defaultKept    = 256
)

// ErrTargets says that a file is no cache of a model's answers, or damaged.
var ErrTargets = errors.New("not a readable cache of a model's answers")

// layout is the shape of a cache.
type layout struct{ vocab, kept int }

func newLayout(vocab, kept int) (layout, error) {
	if kept == 0 {
		kept = defaultKept
		if vocab <= fullVocabulary {
			kept = vocab
		}
	}
	if vocab < 1 || int64(vocab) > math.MaxUint32 || kept < 1 || kept > vocab {
		return layout{}, &Error{Sample: -1, Problem: fmt.Sprintf("the %d most likely of %d tokens cannot be kept", kept, vocab)}
	}
	return layout{vocab, kept}, nil
}

func (l layout) full() bool { return l.kept == l.vocab }

// idSize returns the bytes of an id, 0 where none are stored.
func (l layout) idSize() int {
	switch {
	case l.full():
		return 0
	case l.vocab <= 1<<16:
		return 2
	default:
		return 4
	}
}

func (l layout) rowSize() int { return targetsHead + l.kept*(4+l.idSize()) }

// TargetsWriter writes a cache of a model's answers, a block of rows at a
// time. Its bytes do not depend on the blocks or on the number of workers.
type TargetsWriter struct {
	Pool *pool.Pool // as Language's

	layout
	w       io.Writer
	left    int64 // rows to come
	scratch sync.Pool
}

// NewTargetsWriter begins a cache of the given number of rows, which are the
// tokens that will be predicted. kept says how many of the most likely tokens
// are kept of each: 0 is all of a vocabulary up to 4,096, and 256 of a larger
// one. A row takes 32 bytes and 4 to 8 for each token kept.
func NewTargetsWriter(w io.Writer, rows int64, vocab, kept int) (*TargetsWriter, error) {
	l, err := newLayout(vocab, kept)
	if err != nil {
		return nil, err
	}
	if rows < 1 || rows > math.MaxInt/int64(l.rowSize()) {
		return nil, &Error{Sample: -1, Problem: fmt.Sprintf("a cache of %d rows", rows)}
	}
	header, err := l.header(rows)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(header); err != nil {
		return nil, err
	}
	return &TargetsWriter{layout: l, w: w, left: rows}, nil
}

// header returns what comes before the rows.
func (l layout) header(rows int64) ([]byte, error) {
	headerIsDone := errors.New("the header is done")
	var b bytes.Buffer
	err := safetensors.Write(&b, []safetensors.Source{{
		Name: targetsUnit, DType: dtype.U8, Shape: []int{int(rows), l.rowSize()},
		Write: func(io.Writer) error { return headerIsDone }, // the rows are not there yet
	}}, map[string]string{
		"fettle.unit": targetsUnit, "fettle.version": targetsVersion,
		"fettle.vocabulary": strconv.Itoa(l.vocab), "fettle.kept": strconv.Itoa(l.kept),
	})
	if !errors.Is(err, headerIsDone) {
		return nil, err
	}
	return b.Bytes(), nil
}

// Add writes the rows of logits (rows × vocabulary) that have a target, as
// Language.Add takes them. It fails as that does, before it writes anything.
func (t *TargetsWriter) Add(logits blas32.General, targets []int) error {
	l := Language{vocab: t.vocab}
	if err := l.check("", logits, targets, -1); err != nil {
		return err
	}
	places, rows := placesOf(targets)
	if int64(rows) > t.left {
		return &Error{Sample: -1, Problem: fmt.Sprintf("%d rows for a cache with room for %d more", rows, t.left)}
	}
	size := t.rowSize()
	b := make([]byte, rows*size)
	err := eachRow(t.Pool, targets, func(i int) error {
		z := row(logits, i)
		lz, err := normalizer("", z, i, -1)
		if err == nil {
			t.put(b[places[i]*size:][:size], z, lz, targets[i])
		}
		return err
	})
	if err != nil {
		return err
	}
	if _, err := t.w.Write(b); err != nil {
		return err
	}
	t.left -= int64(rows)
	return nil
}

// Close fails with *Error unless all rows have been written. It does not close
// the writer that it was given.
func (t *TargetsWriter) Close() error {
	if t.left != 0 {
		return &Error{Sample: -1, Problem: fmt.Sprintf("a cache lacks %d of its rows", t.left)}
	}
	return nil
}

// placesOf returns where each row with a target stands among those, and how
// many there are.
func placesOf(targets []int) (places []int, rows int) {
	places = make([]int, len(targets))
	for i, t := range targets {
		places[i] = rows
		if t >= 0 {
			rows++
		}
	}
	return places, rows
}

// put encodes a row.
func (t *TargetsWriter) put(b []byte, z []float32, lz float64, target int) {
	le := binary.LittleEndian
	var rest, entropy float64
	kept := z
	var ids []int
	if !t.full() {
		ids = MostLikely(z, t.kept)
		kept = make([]float32, len(ids))
		for i, id := range ids {
			kept[i] = z[id]
		}
		rest, entropy = remainder(&t.scratch, z, ids, lz)
	}
	le.PutUint64(b, math.Float64bits(lz))
	le.PutUint64(b[8:], math.Float64bits(rest))
	le.PutUint64(b[16:], math.Float64bits(entropy))
	le.PutUint32(b[24:], math.Float32bits(z[target]))
	le.PutUint32(b[28:], uint32(target))
	vec.ToF32(b[targetsHead:], kept)
	b = b[targetsHead+4*t.kept:]
	for i, id := range ids {
		if t.idSize() == 2 {
			le.PutUint16(b[2*i:], uint16(id))
		} else {
			le.PutUint32(b[4*i:], uint32(id))
		}
	}
}

// MostLikely returns the k tokens with the largest logits, falling, equal ones
// by id. It keeps up to 2k candidates, so that most tokens cost one comparison.
func MostLikely(z []float32, k int) []int {
	order := func(a, b int) int { return cmp.Or(cmp.Compare(z[b], z[a]), a-b) }
	found := make([]int, 0, 2*k)
	least := float32(math.Inf(-1)) // what a token must exceed to be among the k
	for id, v := range z {
		if !(v > least) {
			continue
		}
		if found = append(found, id); len(found) == 2*k {
			slices.SortFunc(found, order)
			found = found[:k]
			least = z[found[k-1]]
		}
	}
	slices.SortFunc(found, order)
	return found[:k]
}

// without calls work with a copy of z, in a slice of scratch, in which ids have
// the logit −Inf.
func without(scratch *sync.Pool, z []float32, ids []int, work func([]float32)) {
	p, ok := scratch.Get().(*[]float32)
	if !ok {
		p = new([]float32)
	}
	defer scratch.Put(p)
	*p = append((*p)[:0], z...)
	for _, id := range ids {
		(*p)[id] = float32(math.Inf(-1))
	}
	work(*p)
}

// remainder returns Σ p and Σ p·log p over the tokens that are not in ids.
func remainder(scratch *sync.Pool, z []float32, ids []int, lz float64) (mass, entropy float64) {
	without(scratch, z, ids, func(rest []float32) {
		var p, d [256]float64
		for at := 0; at < len(rest); at += len(p) {
			n := min(len(p), len(rest)-at)
			vec.ExpSub64(p[:n], rest[at:at+n], lz)
			for i := range n {
				d[i] = float64(z[at+i]) - lz
			}
			mass += vec.Sum64(p[:n])
			entropy += vec.Dot64(p[:n], d[:n])
		}
	})
	return mass, entropy
}

// Targets is an open cache of a model's answers.
type Targets struct {
	Rows        int64
	Vocab, Kept int

	layout
	r       io.ReaderAt
	offset  int64
	scratch sync.Pool
}

// OpenTargets opens a cache of the given size. It reads the header alone. A
// file that is none fails with ErrTargets.
func OpenTargets(r io.ReaderAt, size int64) (*Targets, error) {
	h, err := safetensors.ReadHeader(r, size)
	if err != nil {
		return nil, fmt.Errorf("evaluate: %w: %w", ErrTargets, err)
	}
	bad := func(problem string) error { return fmt.Errorf("evaluate: %w: %s", ErrTargets, problem) }
	if h.Metadata["fettle.unit"] != targetsUnit || h.Metadata["fettle.version"] != targetsVersion {
		return nil, bad(fmt.Sprintf("unit %q of version %q", h.Metadata["fettle.unit"], h.Metadata["fettle.version"]))
	}
	vocab, err1 := strconv.Atoi(h.Metadata["fettle.vocabulary"])
	kept, err2 := strconv.Atoi(h.Metadata["fettle.kept"])
	if err := errors.Join(err1, err2); err != nil || kept < 1 {
		return nil, bad("its metadata do not say what is kept")
	}
	l, err := newLayout(vocab, kept)
	if err != nil {
		return nil, bad(err.Error())
	}
	if len(h.Tensors) != 1 || h.Tensors[0].Name != targetsUnit || h.Tensors[0].DType != dtype.U8 ||
		len(h.Tensors[0].Shape) != 2 || h.Tensors[0].Shape[1] != l.rowSize() {
		return nil, bad("its tensor is not what its metadata say")
	}
	return &Targets{Rows: int64(h.Tensors[0].Shape[0]), Vocab: vocab, Kept: kept, layout: l, r: r, offset: h.DataOffset}, nil
}

// AddCached is Add with the original's answers from a cache: row from on, one
// for each row of the compressed model's that has a target. With all of the
// vocabulary kept the result is Add's to the byte. Otherwise the losses,
// intervals and agreement are, and KL lies between two bounds. With P the
// tokens kept, r and s what the two models leave to all others together,
//
//	KL ≥ Σ_P p·log(p/q) + r·log(r/s)                     (log sum inequality)
//	KL ≤ Σ_P p·log(p/q) + Σ_rest p·log p − r·log min_rest q
//
// The first is reached where the compressed model shares out s as the original
// does r, the second where r is on its least likely token.
//
// It fails as Add does, with ErrTargets where the cache is damaged, and with
// *Error where it is of other tokens.
func (l *Language) AddCached(t *Targets, from int64, compressed blas32.General, targets []int, document int) error {
	fail := func(format string, args ...any) error {
		return &Error{Sample: document, Problem: fmt.Sprintf(format, args...)}
	}
	if err := l.check("compressed", compressed, targets, document); err != nil {
		return err
	}
	if t.Vocab != l.vocab {
		return fail("the cache is of %d tokens, the model of %d", t.Vocab, l.vocab)
	}
	places, n := placesOf(targets)
	if from < 0 || from > t.Rows || int64(n) > t.Rows-from {
		return fail("rows %d…%d of a cache of %d", from, from+int64(n), t.Rows)
	}
	size := t.rowSize()
	b := make([]byte, n*size)
	if read, err := t.r.ReadAt(b, t.offset+from*int64(size)); read < len(b) {
		return fmt.Errorf("evaluate: %w: %w", ErrTargets, err)
	}
	is := bounded
	if t.full() {
		is = compared
	}
	return l.add(is, targets, document, func(i int) (answer, error) {
		var k kept
		if err := t.get(b[places[i]*size:][:size], &k); err != nil {
			return answer{}, err
		}
		if k.target != targets[i] {
			return answer{}, fail("row %d: token %d comes next, in the cache %d: it is of other data", i, targets[i], k.target)
		}
		if t.full() {
			return compare(k.logits, row(compressed, i), targets[i], i, document)
		}
		return k.compare(&t.scratch, row(compressed, i), i, document)
	})
}

// kept is a decoded row.
type kept struct {
	lz, rest, entropy float64
	target            int
	logit             float32 // of the target
	logits            []float32
	ids               []int // nil where all are kept
}

// get decodes a row.
func (l layout) get(b []byte, k *kept) error {
	le := binary.LittleEndian
	k.lz = math.Float64frombits(le.Uint64(b))
	k.rest = math.Float64frombits(le.Uint64(b[8:]))
	k.entropy = math.Float64frombits(le.Uint64(b[16:]))
	k.logit = math.Float32frombits(le.Uint32(b[24:]))
	k.target = int(le.Uint32(b[28:]))
	k.logits = make([]float32, l.kept)
	vec.FromF32(k.logits, b[targetsHead:])
	finite := func(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
	// A sum of numbers that are finite and not too many is finite too.
	if !finite(k.lz) || !finite(k.entropy) || !finite(float64(k.logit)) || !finite(vec.Sum(k.logits)) || !(k.rest >= 0 && k.rest <= 2) || k.target >= l.vocab {
		return fmt.Errorf("evaluate: %w: a row holds what no answer is", ErrTargets)
	}
	b = b[targetsHead+4*l.kept:]
	if l.full() {
		return nil
	}
	k.ids = make([]int, l.kept)
	for i := range k.ids {
		if l.idSize() == 2 {
			k.ids[i] = int(le.Uint16(b[2*i:]))
		} else {
			k.ids[i] = int(le.Uint32(b[4*i:]))
		}
		if k.ids[i] >= l.vocab {
			return fmt.Errorf("evaluate: %w: a row keeps token %d of %d", ErrTargets, k.ids[i], l.vocab)
		}
	}
	return nil
}

// compare measures a row of which not all tokens are kept; see AddCached.
func (k *kept) compare(scratch *sync.Pool, y []float32, i, document int) (answer, error) {
	ly, err := normalizer("compressed", y, i, document)
	if err != nil {
		return answer{}, err
	}
	theirs := make([]float32, len(k.ids))
	for j, id := range k.ids {
		theirs[j] = y[id]
	}
	mass, difference := weigh(k.logits, theirs, k.lz)
	shared := difference - (k.lz-ly)*mass
	atLeast, atMost := shared, shared
	if k.rest > 0 {
		without(scratch, y, k.ids, func(rest []float32) {
			atLeast += k.rest * (math.Log(k.rest) - (vec.LogSumExp(rest) - ly))
			least := math.Inf(1)
			for _, v := range rest {
				if f := float64(v); f < least && !math.IsInf(f, -1) {
					least = f
				}
			}
			atMost += k.entropy - k.rest*(least-ly)
		})
	}
	atLeast = max(atLeast, 0) // rounding can make what is nearly 0 negative
	return answer{
		same:     k.ids[0] == vec.Argmax(y),
		original: k.lz - float64(k.logit), compressed: ly - float64(y[k.target]),
		kl: atLeast, klAtMost: max(atMost, atLeast),
	}, nil
}
