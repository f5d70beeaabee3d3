package evaluate

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/record"
)

// Language measures language models by their logits, a block of rows at a
// time, so that the logits of all tokens never exist at once. A row is the
// answer at one token of a sequence: what it thinks of the next.
//
// Sums are float64 in the order of a document's rows, and then of the
// documents' numbers: the result has the same bytes for any division into
// blocks and any number of workers.
type Language struct {
	// Bytes of UTF-8 text behind the predicted tokens; 0 leaves bits per byte
	// out.
	Bytes int64
	// Pool's workers measure the rows of a block; nil leaves them to the caller.
	Pool *pool.Pool

	vocab     int
	kind      kind
	documents map[int]*sums
}

// kind is what was added so far; one result cannot mix them.
type kind int

const (
	nothing kind = iota
	alone
	compared
	bounded // compared with a cache of the most likely tokens
)

// sums are one document's.
type sums struct {
	tokens, same                       int64
	original, compressed, kl, klAtMost float64
}

// answer is what a row adds to them.
type answer struct {
	same                               bool
	original, compressed, kl, klAtMost float64
}

// NewLanguage returns a measurement of models with the given number of token
// ids.
func NewLanguage(vocab int) *Language {
	return &Language{vocab: vocab, documents: map[int]*sums{}}
}

// Add measures rows of logits (rows × vocabulary) of one document: the
// original model's and, unless it is the zero General in every call, the
// compressed model's of the same rows. targets holds for each row the token
// that came next, −1 where none is to be predicted: at the end of a sequence,
// or where windows overlap. Such rows are not looked at.
//
// Document is the number under which the rows are counted. A long text has no
// bootstrap interval unless its windows count as documents.
//
// It fails with *Error, whose Sample is the document, on a NaN or infinite
// logit, on a target that is no token, and on shapes that do not fit; the
// measurement is then as it was before.
func (l *Language) Add(original, compressed blas32.General, targets []int, document int) error {
	is := compared
	if compressed.Rows == 0 && compressed.Data == nil {
		is = alone
	}
	if err := l.check("original", original, targets, document); err != nil {
		return err
	}
	if is == compared {
		if err := l.check("compressed", compressed, targets, document); err != nil {
			return err
		}
	}
	return l.add(is, targets, document, func(i int) (answer, error) {
		z := row(original, i)
		if is == alone {
			lz, err := normalizer("original", z, i, document)
			return answer{original: lz - float64(z[targets[i]])}, err
		}
		return compare(z, row(compressed, i), targets[i], i, document)
	})
}

// check holds a block's shape and targets against the vocabulary.
func (l *Language) check(model string, m blas32.General, targets []int, document int) error {
	fail := func(format string, args ...any) error {
		return &Error{Model: model, Sample: document, Problem: fmt.Sprintf(format, args...)}
	}
	if m.Cols != l.vocab || l.vocab < 1 {
		return fail("%d logits a row for a vocabulary of %d", m.Cols, l.vocab)
	}
	if m.Rows != len(targets) {
		return fail("%d rows for %d targets", m.Rows, len(targets))
	}
	if m.Rows > 0 && (m.Stride < m.Cols || len(m.Data) < (m.Rows-1)*m.Stride+m.Cols) {
		return fail("%d numbers with stride %d do not hold %d×%d logits", len(m.Data), m.Stride, m.Rows, m.Cols)
	}
	for i, t := range targets {
		if t < -1 || t >= l.vocab {
			return fail("row %d: the target %d is no token of a vocabulary of %d: check that the data are tokenized for this model", i, t, l.vocab)
		}
	}
	return nil
}

// add measures the rows that have a target, and adds them up in their order.
func (l *Language) add(is kind, targets []int, document int, measure func(row int) (answer, error)) error {
	if l.kind != nothing && l.kind != is {
		return &Error{Sample: document, Problem: "rows of the original alone, of both models, and from a cache of the most likely tokens do not go into one result"}
	}
	answers := make([]answer, len(targets))
	err := eachRow(l.Pool, targets, func(i int) (err error) {
		answers[i], err = measure(i)
		return err
	})
	if err != nil {
		return err
	}
	l.kind = is
	s := l.documents[document]
	if s == nil {
		s = &sums{}
		l.documents[document] = s
	}
	for i, t := range targets {
		if t < 0 {
			continue
		}
		a := &answers[i]
		s.tokens++
		if a.same {
			s.same++
		}
		s.original += a.original
		s.compressed += a.compressed
		s.kl += a.kl
		s.klAtMost += a.klAtMost
	}
	return nil
}

// eachRow calls task for every row with a target, a few rows at a time on p's
// workers.
func eachRow(p *pool.Pool, targets []int, task func(row int) error) error {
	const few = 8
	if p == nil {
		p = pool.New(1)
	}
	return p.For(context.Background(), (len(targets)+few-1)/few, func(part int) error {
		for i := part * few; i < min(len(targets), (part+1)*few); i++ {
			if targets[i] < 0 {
				continue
			}
			if err := task(i); err != nil {
				return err
			}
		}
		return nil
	})
}

// compare measures one row of two models.
func compare(z, y []float32, target, i, document int) (answer, error) {
	lz, err := normalizer("original", z, i, document)
	if err != nil {
		return answer{}, err
	}
	ly, err := normalizer("compressed", y, i, document)
	if err != nil {
		return answer{}, err
	}
	kl := Divergence(z, y, lz, ly)
	return answer{
		same:     vec.Argmax(z) == vec.Argmax(y),
		original: lz - float64(z[target]), compressed: ly - float64(y[target]),
		kl: kl, klAtMost: kl,
	}, nil
}

// normalizer returns log Σ eᶻ, and fails where a logit is not finite.
func normalizer(model string, z []float32, i, document int) (float64, error) {
	if !Finite(z) {
		for id, v := range z {
			if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
				return 0, &Error{Model: model, Sample: document, Problem: fmt.Sprintf("row %d: the logit of token %d is %v: check the model's weights", i, id, v)}
			}
		}
	}
	return vec.LogSumExp(z), nil
}

// Finite reports whether a row of logits has neither NaN nor infinity.
func Finite(z []float32) bool {
	s := vec.Sum(z) // no sum of finite float32 overflows float64
	return !math.IsNaN(s) && !math.IsInf(s, 0)
}

// Divergence returns KL(softmax(z) ‖ softmax(y)) in nats of two rows of finite
// logits as long as each other, given lz = log Σ eᶻ and ly = log Σ eʸ of
// vec.LogSumExp. It is at least 0, and 0 for equal rows.
func Divergence(z, y []float32, lz, ly float64) float64 {
	_, difference := weigh(z, y, lz)
	return max(difference-(lz-ly), 0) // rounding can make what is nearly 0 negative
}

// weigh returns Σ p and Σ p·(z − y) with p = e^(z − lz).
func weigh(z, y []float32, lz float64) (mass, difference float64) {
	var p, d [256]float64
	for at := 0; at < len(z); at += len(p) {
		n := min(len(p), len(z)-at)
		vec.ExpSub64(p[:n], z[at:at+n], lz)
		for i := range n {
			d[i] = float64(z[at+i]) - float64(y[at+i])
		}
		mass += vec.Sum64(p[:n])
		difference += vec.Dot64(p[:n], d[:n])
	}
	return mass, difference
}

// Result returns what was measured. It fails with *Error where no token was
// predicted.
func (l *Language) Result() (*record.LanguageEvaluation, error) {
	var all sums
	var documents []*sums // those with tokens, in the order of their numbers
	var originals, compresseds float64
	for _, number := range slices.Sorted(maps.Keys(l.documents)) {
		s := l.documents[number]
		if s.tokens == 0 {
			continue
		}
		documents = append(documents, s)
		all.tokens += s.tokens
		all.same += s.same
		all.original += s.original
		all.compressed += s.compressed
		all.kl += s.kl
		all.klAtMost += s.klAtMost
		originals += s.original / float64(s.tokens)
		compresseds += s.compressed / float64(s.tokens)
	}
	if all.tokens == 0 {
		return nil, &Error{Sample: -1, Problem: "no token was predicted: give sequences of at least two"}
	}
	n := float64(all.tokens)
	e := &record.LanguageEvaluation{
		Documents: len(documents), Tokens: all.tokens, Bytes: l.Bytes,
		Original: l.metrics(all.original, n, originals/float64(len(documents))),
	}
	if l.kind == alone {
		return e, nil
	}
	m := l.metrics(all.compressed, n, compresseds/float64(len(documents)))
	e.Compressed = &m
	e.KL = all.kl / n
	if l.kind == bounded {
		e.KLBounds = &[2]float64{e.KL, all.klAtMost / n}
	}
	e.Agreement = 100 * float64(all.same) / n
	e.LossIncrease = (all.compressed - all.original) / n
	if len(documents) > 1 {
		interval := documentBootstrap(documents)
		e.Interval = &interval
		e.Tied = interval[0] <= 0 && interval[1] >= 0
	}
	return e, nil
}

func (l *Language) metrics(nats, tokens, documentLoss float64) record.LanguageMetrics {
	m := record.LanguageMetrics{Loss: nats / tokens, DocumentLoss: documentLoss}
	m.Perplexity = min(math.Exp(m.Loss), math.MaxFloat64)
	if l.Bytes > 0 {
		m.BitsPerByte = nats / math.Ln2 / float64(l.Bytes)
	}
	return m
}

// documentBootstrap returns the 95 % percentile interval of the increase of
// the loss: documents are drawn with replacement, each with both models'
// losses and its tokens, and the increase is the mean over the tokens drawn.
func documentBootstrap(documents []*sums) [2]float64 {
	r := rand.New(rand.NewPCG(bootstrapSeed, 1))
	increases := make([]float64, resamples)
	for i := range increases {
		var nats float64
		var tokens int64
		for range documents {
			s := documents[r.IntN(len(documents))]
			nats += s.compressed - s.original
			tokens += s.tokens
		}
		increases[i] = nats / float64(tokens)
	}
	slices.Sort(increases)
	const tail = resamples / 40 // 2.5 % on each side
	return [2]float64{increases[tail], increases[resamples-1-tail]}
}
