package evaluate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
)

func count(targets []int) (n int64) {
	for _, t := range targets {
		if t >= 0 {
			n++
		}
	}
	return n
}

// cache writes rows in blocks.
func cache(t testing.TB, m blas32.General, targets []int, kept, block, workers int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewTargetsWriter(&b, count(targets), m.Cols, kept)
	if err != nil {
		t.Fatal(err)
	}
	w.Pool = pool.New(workers)
	for at := 0; at < m.Rows; at += block {
		n := min(block, m.Rows-at)
		if err := w.Add(piece(m, at, n), targets[at:at+n]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func openTargets(t testing.TB, b []byte) *Targets {
	t.Helper()
	c, err := OpenTargets(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// With all tokens kept a comparison through the cache has the bytes of one
// without; with fewer kept all but KL has, and KL lies within its bounds.
func TestTargetsAgainstExact(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	for trial := range 60 {
		rows, vocab := 1+r.IntN(30), 2+r.IntN(400)
		a := random(r, rows, vocab, 1+4*r.Float64())
		b := perturbed(r, a, []float64{0, .02, 1, 5}[trial%4])
		targets := randomTargets(r, rows, vocab)
		kept := 1 + r.IntN(vocab)
		if trial%3 == 0 {
			kept = 0 // all, for so small a vocabulary
		}
		exact, cached := NewLanguage(vocab), NewLanguage(vocab)
		cached.Pool = pool.New(2)
		c := openTargets(t, cache(t, a, targets, kept, 1+r.IntN(9), 1+trial%2))
		add(t, exact, a, b, targets, 3)
		from := int64(0)
		for at := 0; at < rows; {
			n := min(1+r.IntN(9), rows-at)
			if err := cached.AddCached(c, from, piece(b, at, n), targets[at:at+n], 3); err != nil {
				t.Fatal(err)
			}
			from += count(targets[at : at+n])
			at += n
		}
		if from != c.Rows {
			t.Fatalf("%d of %d rows", from, c.Rows)
		}
		want, got := result(t, exact), result(t, cached)
		if kept != 0 && kept != vocab {
			low, high := got.KLBounds[0], got.KLBounds[1]
			const rounding = 1e-11
			if got.KL != low || !(low <= want.KL+rounding) || !(want.KL <= high+rounding) {
				t.Fatalf("%d of %d kept: KL %v, bounds %v", kept, vocab, want.KL, *got.KLBounds)
			}
			got.KL, got.KLBounds = want.KL, nil
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("%d of %d kept: %s", kept, vocab, d)
		}
	}
}

// The bounds are reached where their formulas say so.
func TestTargetsBoundsAreTight(t *testing.T) {
	logs := func(p ...float64) blas32.General {
		z := make([]float32, len(p))
		for i, v := range p {
			z[i] = float32(math.Log(v))
		}
		return logits(z)
	}
	kl := func(p, q []float64) (v float64) {
		for i := range p {
			v += p[i] * math.Log(p[i]/q[i])
		}
		return v
	}
	p := []float64{.5, .3, .1, .06, .04}
	q := []float64{.2, .4, .2, .12, .08} // shares out .4 as p does .2
	c := openTargets(t, cache(t, logs(p...), []int{1}, 2, 1, 1))
	l := NewLanguage(5)
	if err := l.AddCached(c, 0, logs(q...), []int{1}, 0); err != nil {
		t.Fatal(err)
	}
	e := result(t, l)
	wantNear(t, "lower bound", e.KL, kl(p, q), 1e-6)
	rest := .1*math.Log(.1) + .06*math.Log(.06) + .04*math.Log(.04) - .2*math.Log(.08)
	wantNear(t, "upper bound", e.KLBounds[1], kl(p[:2], q[:2])+rest, 1e-6)
	wantNear(t, "loss", e.Original.Loss, -math.Log(.3), 1e-6)
	wantNear(t, "compressed loss", e.Compressed.Loss, -math.Log(.4), 1e-6)
	if e.Agreement != 0 {
		t.Errorf("agreement %v", e.Agreement)
	}
}

func TestMostLikely(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	for range 500 {
		z := make([]float32, 1+r.IntN(50))
		for i := range z {
			z[i] = float32(r.IntN(12)) - 5 // many ties
		}
		k := 1 + r.IntN(len(z))
		order := make([]int, len(z))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int {
			switch {
			case z[a] > z[b]:
				return -1
			case z[a] < z[b]:
				return 1
			}
			return 0
		})
		if got := MostLikely(z, k); !slices.Equal(got, order[:k]) {
			t.Fatalf("%d of %v: %v, want %v", k, z, got, order[:k])
		}
	}
}

func TestTargetsBytes(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 16))
	const rows = 23
	for _, c := range []struct{ vocab, kept, row int }{
		{100, 0, 32 + 100*4}, {100, 7, 32 + 7*6}, {4097, 0, 32 + 256*6}, {70000, 5, 32 + 5*8},
	} {
		m := random(r, rows, c.vocab, 2)
		targets := randomTargets(r, rows, c.vocab)
		want := cache(t, m, targets, c.kept, rows, 1)
		if left := len(want) - int(count(targets))*c.row; left <= 0 || left > 512 {
			t.Errorf("%+v: %d bytes besides the rows", c, left)
		}
		for _, block := range []int{1, 6} {
			if !bytes.Equal(want, cache(t, m, targets, c.kept, block, 3)) {
				t.Errorf("%+v: other bytes in blocks of %d", c, block)
			}
		}
		o := openTargets(t, want)
		if o.Rows != count(targets) || o.Vocab != c.vocab {
			t.Errorf("%+v: opened as %d rows of %d", c, o.Rows, o.Vocab)
		}
	}
}

func TestTargetsRefuse(t *testing.T) {
	for _, c := range []struct {
		rows        int64
		vocab, kept int
	}{{0, 5, 0}, {-1, 5, 0}, {1, 0, 0}, {1, 5, 6}, {1, 5, -1}, {math.MaxInt64, 5, 5}} {
		var bad *Error
		if _, err := NewTargetsWriter(io.Discard, c.rows, c.vocab, c.kept); !errors.As(err, &bad) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	m := logits([]float32{1, 2, 3}, []float32{3, 2, 1})
	w, err := NewTargetsWriter(io.Discard, 2, 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	var bad *Error
	for what, err := range map[string]error{
		"targets": w.Add(m, []int{0}),
		"target":  w.Add(m, []int{0, 3}),
		"NaN":     w.Add(logits([]float32{1, float32(math.NaN()), 0}), []int{0}),
		"missing": w.Close(),
	} {
		if !errors.As(err, &bad) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := w.Add(m, []int{0, 1}); err != nil {
		t.Fatal(err)
	}
	if err := w.Add(m, []int{0, -1}); !errors.As(err, &bad) {
		t.Errorf("one row too many: %v", err)
	}

	c := openTargets(t, cache(t, m, []int{0, 1}, 2, 2, 1))
	l := NewLanguage(3)
	for what, err := range map[string]error{
		"other data": l.AddCached(c, 0, m, []int{0, 2}, 0),
		"past end":   l.AddCached(c, 1, m, []int{1, 1}, 0),
		"negative":   l.AddCached(c, -1, m, []int{1, 1}, 0),
		"vocabulary": NewLanguage(2).AddCached(c, 0, logits([]float32{1, 2}), []int{0}, 0),
	} {
		if !errors.As(err, &bad) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := l.AddCached(c, 0, m, []int{0, 1}, 0); err != nil {
		t.Fatal(err)
	}
	if err := l.Add(m, m, []int{0, 1}, 0); !errors.As(err, &bad) {
		t.Errorf("bounds and exact values in one: %v", err)
	}
}

func TestDamagedTargets(t *testing.T) {
	m := logits([]float32{1, 2, 3}, []float32{3, 2, 1})
	good := cache(t, m, []int{0, 1}, 2, 2, 1)
	for what, b := range map[string][]byte{
		"empty":   nil,
		"cut":     good[:len(good)-1],
		"version": bytes.Replace(good, []byte(`"fettle.version":"1"`), []byte(`"fettle.version":"2"`), 1),
		"kept":    bytes.Replace(good, []byte(`"fettle.kept":"2"`), []byte(`"fettle.kept":"1"`), 1),
		"default": bytes.Replace(good, []byte(`"fettle.kept":"2"`), []byte(`"fettle.kept":"0"`), 1),
	} {
		if _, err := OpenTargets(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrTargets) {
			t.Errorf("%s: %v", what, err)
		}
	}
	begin := len(good) - 2*(32+2*6)
	nan := binary.LittleEndian.AppendUint64(nil, math.Float64bits(math.NaN()))
	for what, damage := range map[string]func([]byte){
		"normalizer": func(b []byte) { copy(b, nan) },
		"rest":       func(b []byte) { copy(b[8:], nan) },
		"entropy":    func(b []byte) { copy(b[16:], nan) },
		"target":     func(b []byte) { b[28] = 3 },
		"logit":      func(b []byte) { copy(b[32:], []byte{0, 0, 0x80, 0x7f}) },
		"id":         func(b []byte) { b[40] = 3 },
	} {
		b := slices.Clone(good)
		damage(b[begin:])
		if err := NewLanguage(3).AddCached(openTargets(t, b), 0, m, []int{0, 1}, 0); !errors.Is(err, ErrTargets) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzTargets(f *testing.F) {
	m := logits([]float32{1, 2, 3}, []float32{3, 2, 1})
	f.Add(cache(f, m, []int{0, 1}, 2, 2, 1))
	f.Add(cache(f, m, []int{0, 1}, 3, 2, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := OpenTargets(bytes.NewReader(b), int64(len(b)))
		if err != nil || c.Vocab > 1000 {
			return
		}
		l := NewLanguage(c.Vocab)
		y := blas32.General{Rows: 1, Cols: c.Vocab, Stride: c.Vocab, Data: make([]float32, c.Vocab)}
		for target := range min(c.Vocab, 3) {
			if l.AddCached(c, 0, y, []int{target}, 0) == nil {
				if _, err := l.Result(); err != nil {
					t.Error(err)
				}
			}
		}
	})
}
