package evaluate

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/record"
)

// random returns rows of logits with the given spread; every third row has a
// few tied logits.
func random(r *rand.Rand, rows, vocab int, spread float64) blas32.General {
	m := blas32.General{Rows: rows, Cols: vocab, Stride: vocab + r.IntN(3)}
	m.Data = make([]float32, rows*m.Stride)
	for i := range m.Data {
		m.Data[i] = float32(spread * r.NormFloat64())
	}
	for i := 0; i < rows; i += 3 {
		z := row(m, i)
		z[r.IntN(vocab)] = slices.Max(z)
	}
	return m
}

// perturbed returns m with noise.
func perturbed(r *rand.Rand, m blas32.General, noise float64) blas32.General {
	p := m
	p.Data = slices.Clone(m.Data)
	for i := range p.Data {
		p.Data[i] += float32(noise * r.NormFloat64())
	}
	return p
}

func randomTargets(r *rand.Rand, rows, vocab int) []int {
	t := make([]int, rows)
	for i := range t {
		t[i] = r.IntN(vocab+1) - 1
	}
	t[0] = 0 // so that something is predicted
	return t
}

// piece returns n rows of m.
func piece(m blas32.General, from, n int) blas32.General {
	m.Rows = n
	m.Data = m.Data[from*m.Stride:]
	if n > 0 {
		m.Data = m.Data[:(n-1)*m.Stride+m.Cols]
	}
	return m
}

func result(t *testing.T, l *Language) *record.LanguageEvaluation {
	t.Helper()
	e, err := l.Result()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func add(t *testing.T, l *Language, a, b blas32.General, targets []int, document int) {
	t.Helper()
	if err := l.Add(a, b, targets, document); err != nil {
		t.Fatal(err)
	}
}

func wantNear(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance*(1+math.Abs(want))) {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

func TestLanguageByHand(t *testing.T) {
	l := NewLanguage(4)
	l.Bytes = 10
	uniform := []float32{7, 7, 7, 7}          // loss ln 4 whatever the target
	half := []float32{0, 0, -1000, -1000}     // two of equal chance
	sure := []float32{-1000, -1000, 1000, 0}  // e^1000 overflows
	third := []float32{-1000, 50, -1000, -50} // wrong by 100 where 3 comes next
	// Document 5: KL(uniform ‖ uniform) = 0; KL(half ‖ uniform) = ln 2.
	add(t, l, logits(uniform, half, sure), logits(uniform, uniform, half), []int{3, 1, -1}, 5)
	// Document 2: KL(third ‖ third) = 0.
	add(t, l, logits(third), logits(third), []int{3}, 2)
	e := result(t, l)
	ln2, ln4 := math.Log(2), math.Log(4)
	if e.Documents != 2 || e.Tokens != 3 || e.Bytes != 10 {
		t.Errorf("%+v", e)
	}
	wantNear(t, "loss", e.Original.Loss, (ln4+ln2+100)/3, 1e-12)
	wantNear(t, "compressed loss", e.Compressed.Loss, (ln4+ln4+100)/3, 1e-12)
	wantNear(t, "document loss", e.Original.DocumentLoss, ((ln4+ln2)/2+100)/2, 1e-12)
	wantNear(t, "perplexity", e.Original.Perplexity, math.Exp((ln4+ln2+100)/3), 1e-12)
	wantNear(t, "bits per byte", e.Original.BitsPerByte, (2+1+100/ln2)/10, 1e-12)
	wantNear(t, "KL", e.KL, ln2/3, 1e-12)
	wantNear(t, "increase", e.LossIncrease, ln2/3, 1e-12)
	// Among equal logits the lowest is the answer: half and uniform agree.
	wantNear(t, "agreement", e.Agreement, 100, 0)
	// Resamples are documents (2,2), (2,5), (5,2) and (5,5).
	if want := [2]float64{0, ln2 / 2}; math.Abs(e.Interval[0]-want[0]) > 1e-12 || math.Abs(e.Interval[1]-want[1]) > 1e-12 || !e.Tied {
		t.Errorf("interval %v, want %v", *e.Interval, want)
	}
	if e.KLBounds != nil {
		t.Error("bounds where KL is exact")
	}
}

func TestLanguageAlone(t *testing.T) {
	l := NewLanguage(2)
	add(t, l, logits([]float32{0, 0}), blas32.General{}, []int{1}, 0)
	e := result(t, l)
	want := &record.LanguageEvaluation{Documents: 1, Tokens: 1, Original: record.LanguageMetrics{Loss: math.Ln2, DocumentLoss: math.Ln2, Perplexity: 2}}
	wantNear(t, "loss", e.Original.Loss, math.Ln2, 1e-15)
	e.Original = want.Original
	if d := cmp.Diff(want, e); d != "" {
		t.Error(d)
	}
	var bad *Error
	if err := l.Add(logits([]float32{0, 0}), logits([]float32{0, 0}), []int{1}, 0); !errors.As(err, &bad) {
		t.Errorf("two models after one: %v", err)
	}
	// A loss of 2,000 nats has no perplexity that JSON could say.
	l = NewLanguage(2)
	add(t, l, logits([]float32{2000, 0}), blas32.General{}, []int{1}, 0)
	if e := result(t, l); e.Original.Perplexity != math.MaxFloat64 {
		t.Errorf("perplexity %v", e.Original.Perplexity)
	}
}

// naive computes everything from the definitions.
func naive(a, b blas32.General, targets []int, documents []int) *record.LanguageEvaluation {
	type doc struct{ n, a, b float64 }
	docs := map[int]*doc{}
	e := &record.LanguageEvaluation{Compressed: &record.LanguageMetrics{}}
	softmax := func(z []float32) []float64 {
		p, s := make([]float64, len(z)), 0.0
		for i, v := range z {
			p[i] = math.Exp(float64(v))
			s += p[i]
		}
		for i := range p {
			p[i] /= s
		}
		return p
	}
	for i, t := range targets {
		if t < 0 {
			continue
		}
		p, q := softmax(row(a, i)), softmax(row(b, i))
		d := docs[documents[i]]
		if d == nil {
			d = &doc{}
			docs[documents[i]] = d
		}
		d.n++
		d.a -= math.Log(p[t])
		d.b -= math.Log(q[t])
		for c := range p {
			e.KL += p[c] * math.Log(p[c]/q[c])
		}
		if slices.Index(row(a, i), slices.Max(row(a, i))) == slices.Index(row(b, i), slices.Max(row(b, i))) {
			e.Agreement++
		}
	}
	var n float64
	for _, d := range docs {
		n += d.n
		e.Original.Loss += d.a
		e.Compressed.Loss += d.b
		e.Original.DocumentLoss += d.a / d.n / float64(len(docs))
		e.Compressed.DocumentLoss += d.b / d.n / float64(len(docs))
	}
	e.Documents, e.Tokens = len(docs), int64(n)
	e.Original.Loss /= n
	e.Compressed.Loss /= n
	e.KL /= n
	e.Agreement *= 100 / n
	e.LossIncrease = e.Compressed.Loss - e.Original.Loss
	return e
}

func TestLanguageAgainstNaive(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 40 {
		rows, vocab := 1+r.IntN(60), 2+r.IntN(700)
		a := random(r, rows, vocab, 3)
		b := perturbed(r, a, []float64{0, .01, 1}[r.IntN(3)])
		targets := randomTargets(r, rows, vocab)
		documents := make([]int, rows)
		l := NewLanguage(vocab)
		for i := range rows {
			documents[i] = r.IntN(4)
			add(t, l, piece(a, i, 1), piece(b, i, 1), targets[i:i+1], documents[i])
		}
		got, want := result(t, l), naive(a, b, targets, documents)
		if got.Documents != want.Documents || got.Tokens != want.Tokens || got.Agreement != want.Agreement && math.Abs(got.Agreement-want.Agreement) > 1e-9 {
			t.Fatalf("got %+v, want %+v", got, want)
		}
		wantNear(t, "loss", got.Original.Loss, want.Original.Loss, 1e-12)
		wantNear(t, "loss", got.Compressed.Loss, want.Compressed.Loss, 1e-12)
		wantNear(t, "document loss", got.Original.DocumentLoss, want.Original.DocumentLoss, 1e-12)
		wantNear(t, "document loss", got.Compressed.DocumentLoss, want.Compressed.DocumentLoss, 1e-12)
		wantNear(t, "KL", got.KL, want.KL, 1e-12)
		wantNear(t, "increase", got.LossIncrease, want.LossIncrease, 1e-12)
	}
}

// The same bytes for any division into blocks and any workers.
func TestLanguageBlocks(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	const documents, rows, vocab = 5, 37, 301
	var a, b [documents]blas32.General
	var targets [documents][]int
	for d := range documents {
		a[d] = random(r, rows, vocab, 2)
		b[d] = perturbed(r, a[d], .1)
		targets[d] = randomTargets(r, rows, vocab)
	}
	var want *record.LanguageEvaluation
	for _, block := range []int{rows, 1, 5, 16, 0} {
		for _, workers := range []int{0, 1, 4} {
			l := NewLanguage(vocab)
			if workers > 0 {
				l.Pool = pool.New(workers)
			}
			at := [documents]int{}
			for done := 0; done < documents; {
				done = 0
				for k := range documents {
					d := documents - 1 - k // documents in turn, and not in their order
					n := block
					if block == 0 {
						n = r.IntN(9)
					}
					n = min(n, rows-at[d])
					add(t, l, piece(a[d], at[d], n), piece(b[d], at[d], n), targets[d][at[d]:at[d]+n], d)
					if at[d] += n; at[d] == rows {
						done++
					}
				}
			}
			got := result(t, l)
			if want == nil {
				want = got
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("blocks of %d on %d workers: %s", block, workers, d)
			}
		}
	}
}

func TestDocumentBootstrap(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	var same, worse, noisy []*sums
	var mean, square float64
	const n = 300
	for range n {
		tokens := int64(50 + r.IntN(300))
		same = append(same, &sums{tokens: tokens, original: 3, compressed: 3})
		worse = append(worse, &sums{tokens: tokens, compressed: .25 * float64(tokens)})
		d := .02 + .3*r.NormFloat64()
		noisy = append(noisy, &sums{tokens: 100, compressed: 100 * d})
		mean += d / n
		square += d * d / n
	}
	if got := documentBootstrap(same); got != [2]float64{} {
		t.Errorf("the same: %v", got)
	}
	if got := documentBootstrap(worse); math.Abs(got[0]-.25) > 1e-12 || math.Abs(got[1]-.25) > 1e-12 {
		t.Errorf("all worse by .25 a token: %v", got)
	}
	// Of many documents with equal weights the interval is the normal one.
	half := 1.96 * math.Sqrt((square-mean*mean)/n)
	got := documentBootstrap(noisy)
	if math.Abs(got[0]-(mean-half)) > .08*half || math.Abs(got[1]-(mean+half)) > .08*half {
		t.Errorf("%v, want about %v ± %v", got, mean, half)
	}
	if got != documentBootstrap(noisy) {
		t.Error("it is not the same twice")
	}
}

func TestLanguageRefuses(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(-1))
	good := logits([]float32{1, 2, 3}, []float32{4, 5, 6})
	for name, c := range map[string]struct {
		a, b    blas32.General
		targets []int
	}{
		"NaN":                  {logits([]float32{1, nan, 2}, []float32{1, 2, 3}), good, []int{1, 1}},
		"infinite":             {good, logits([]float32{1, 2, 2}, []float32{1, inf, 3}), []int{1, 1}},
		"target":               {good, good, []int{0, 3}},
		"negative target":      {good, good, []int{0, -2}},
		"number of targets":    {good, good, []int{0}},
		"vocabulary":           {good, logits([]float32{1, 2}, []float32{1, 2}), []int{0, 0}},
		"short data":           {good, blas32.General{Rows: 2, Cols: 3, Stride: 3, Data: make([]float32, 5)}, []int{0, 0}},
		"compressed rows":      {good, piece(good, 0, 1), []int{0, 0}},
		"compressed is absent": {good, blas32.General{}, []int{0, 0}},
	} {
		l := NewLanguage(3)
		add(t, l, piece(good, 0, 1), piece(good, 1, 1), []int{2}, 0)
		before := result(t, l)
		var bad *Error
		if err := l.Add(c.a, c.b, c.targets, 7); !errors.As(err, &bad) || bad.Sample != 7 {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(before, result(t, l)); d != "" {
			t.Errorf("%s: the refused rows count: %s", name, d)
		}
	}
	// What has no target is not looked at.
	l := NewLanguage(3)
	bad := logits([]float32{1, nan, 2}, []float32{1, 2, 3})
	add(t, l, bad, bad, []int{-1, 0}, 0)
	var e *Error
	if _, err := NewLanguage(3).Result(); !errors.As(err, &e) {
		t.Errorf("nothing: %v", err)
	}
}

func TestNextTokens(t *testing.T) {
	if got := NextTokens([]uint32{5, 6, 7}); !slices.Equal(got, []int{6, 7, -1}) {
		t.Error(got)
	}
	if got := NextTokens(nil); len(got) != 0 {
		t.Error(got)
	}
}

func TestWindowsByHand(t *testing.T) {
	type window struct {
		From    int
		Targets []int
	}
	ids := []uint32{10, 11, 12, 13, 14, 15, 16}
	for _, c := range []struct {
		n, length, stride int
		want              []window
	}{
		{7, 4, 2, []window{{0, []int{11, 12, 13, -1}}, {2, []int{-1, 14, 15, -1}}, {4, []int{-1, 16, -1}}}},
		{7, 4, 1, []window{{0, []int{11, 12, 13, -1}}, {1, []int{-1, -1, 14, -1}}, {2, []int{-1, -1, 15, -1}}, {3, []int{-1, -1, 16, -1}}}},
		// Nothing overlaps: 14 is the first of its window.
		{7, 4, 4, []window{{0, []int{11, 12, 13, -1}}, {4, []int{15, 16, -1}}}},
		{7, 3, 3, []window{{0, []int{11, 12, -1}}, {3, []int{14, 15, -1}}, {6, []int{-1}}}},
		{4, 4, 2, []window{{0, []int{11, 12, 13, -1}}}},
		{3, 9, 4, []window{{0, []int{11, 12, -1}}}},
		{2, 2, 1, []window{{0, []int{11, -1}}}},
		{3, 2, 1, []window{{0, []int{11, -1}}, {1, []int{12, -1}}}},
	} {
		seq, err := Windows(ids[:c.n], c.length, c.stride)
		if err != nil {
			t.Fatal(err)
		}
		var got []window
		for w := range seq {
			got = append(got, window{w.From, w.Targets})
			if !slices.Equal(w.IDs, ids[w.From:][:len(w.IDs)]) || len(w.IDs) != len(w.Targets) {
				t.Errorf("ids %v from %d", w.IDs, w.From)
			}
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%d ids in windows of %d every %d: %s", c.n, c.length, c.stride, d)
		}
		for range seq {
			break // a caller may stop
		}
	}
	for _, c := range [][3]int{{5, 1, 1}, {5, 4, 0}, {5, 4, 5}, {1, 4, 2}, {0, 4, 2}} {
		var bad *Error
		if _, err := Windows(ids[:c[0]], c[1], c[2]); !errors.As(err, &bad) {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// The loop of the guide, word for word in its bookkeeping: labels before the
// last trg_len of a window are −100, and a label at place j is predicted at
// j − 1.
func TestWindowsAgainstTheGuide(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 1))
	for range 300 {
		n, length := 2+r.IntN(60), 2+r.IntN(20)
		stride := 1 + r.IntN(length)
		ids := make([]uint32, n)
		for i := range ids {
			ids[i] = uint32(i)
		}
		var want, got [][]int
		prevEnd := 0
		for begin := 0; begin < n; begin += stride {
			end := min(begin+length, n)
			trgLen := end - prevEnd
			labels := make([]int, end-begin)
			for j := range labels {
				labels[j] = -1
				if j >= len(labels)-trgLen {
					labels[j] = begin + j
				}
			}
			want = append(want, append(labels[1:], -1))
			if prevEnd = end; end == n {
				break
			}
		}
		seq, err := Windows(ids, length, stride)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[int]int{}
		for w := range seq {
			got = append(got, w.Targets)
			for _, id := range w.Targets {
				seen[id]++
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("%d ids, windows of %d every %d: %s", n, length, stride, d)
		}
		for id := 1; id < n && stride < length; id++ {
			if seen[id] != 1 {
				t.Fatalf("%d ids, windows of %d every %d: id %d is predicted %d times", n, length, stride, id, seen[id])
			}
		}
	}
}
