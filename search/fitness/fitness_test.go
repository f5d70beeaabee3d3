package fitness

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/dataset"
	"github.com/fettle-dev/fettle/evaluate"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/scratch"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/search"
)

// levelCount is how many levels a gene of the tests has; a gene with a site has one
// more, which drops it.
const levelCount = 3

// subject is a model of the project with levels that are its weights, spoilt more
// and more.
type subject struct {
	name   string
	model  Model
	data   Data
	silent map[int][]string // by gene: tensors that, when zero, silence its site

	mu    sync.Mutex
	calls map[[2]int]int
}

// level spoils the gene's tensors: some of them in odd levels.
func (s *subject) level(_ context.Context, gene, level int) (Variant, error) {
	s.mu.Lock()
	s.calls[[2]int{gene, level}]++
	s.mu.Unlock()
	g := s.model.Genes[gene]
	if level == levelCount && g.Site != nil {
		return Variant{Dropped: true}, nil
	}
	if level >= levelCount {
		return Variant{}, errors.New("no such level")
	}
	v := Variant{Tensors: map[string][]float32{}}
	r := rand.New(rand.NewPCG(uint64(gene), uint64(level)))
	for k, name := range g.Tensors {
		if level == 1 && k > 0 {
			break
		}
		w, err := s.model.Weights(name)
		if err != nil {
			return v, err
		}
		w = slices.Clone(w)
		for i := range w {
			w[i] += float32(level+1) * .03 * float32(r.NormFloat64())
		}
		v.Tensors[name] = w
	}
	return v, nil
}

// oracle returns what a candidate's tensors are, sites silenced where they are
// dropped.
func (s *subject) oracle(t testing.TB, c search.Candidate) model.Weights {
	t.Helper()
	own := map[string][]float32{}
	for gene, level := range c {
		if level == Original {
			continue
		}
		v, err := s.level(t.Context(), gene, level)
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(own, v.Tensors)
		for _, name := range s.silent[gene] {
			if v.Dropped {
				w, err := s.model.Weights(name)
				if err != nil {
					t.Fatal(err)
				}
				own[name] = make([]float32, len(w))
			}
		}
	}
	return func(name string) ([]float32, error) {
		if w, ok := own[name]; ok {
			return w, nil
		}
		return s.model.Weights(name)
	}
}

func cached(w model.Weights) model.Weights {
	var mu sync.Mutex
	kept := map[string][]float32{}
	return func(name string) ([]float32, error) {
		mu.Lock()
		defer mu.Unlock()
		if v, ok := kept[name]; ok {
			return v, nil
		}
		v, err := w(name)
		kept[name] = v
		return v, err
	}
}

func openModel(t testing.TB, path string, o model.Options) (*model.Graph, *loader.Checkpoint) {
	t.Helper()
	c, err := loader.Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	g, err := model.Build(c.Tensors(), o)
	if err != nil {
		t.Fatal(err)
	}
	return g, c
}

func newSubject(name string, g *model.Graph, c *loader.Checkpoint) *subject {
	s := &subject{name: name, calls: map[[2]int]int{}, silent: map[int][]string{}}
	s.model = Model{Graph: g, Weights: cached(model.Stored(c)), Level: s.level}
	return s
}

// vision has a gene for each layer, with its bias and the shift of its
// normalization, and one for each residual block.
func vision(t testing.TB, name string) *subject {
	t.Helper()
	const folder = "../../testmodels"
	o := model.Options{InputShape: []int{1, 16, 16}}
	if name == "mlp" {
		o = model.Options{Architecture: "mlp", Activation: "relu"}
	}
	g, c := openModel(t, filepath.Join(folder, name+".safetensors"), o)
	s := newSubject(name, g, c)
	for i := range g.Ops {
		if !g.Ops[i].IsLayer() {
			continue
		}
		gene := Gene{Tensors: []string{g.Ops[i].Weight}}
		if g.Ops[i].Bias != "" {
			gene.Tensors = append(gene.Tensors, g.Ops[i].Bias)
		}
		if i+1 < len(g.Ops) && g.Ops[i+1].BatchNorm != nil {
			gene.Tensors = append(gene.Tensors, g.Ops[i+1].BatchNorm.Shift)
		}
		s.model.Genes = append(s.model.Genes, gene)
	}
	for _, one := range g.Sites() {
		if one.Kind != model.BlockSite {
			continue
		}
		for _, i := range one.Ops {
			if b := g.Ops[i].BatchNorm; b != nil {
				s.silent[len(s.model.Genes)] = []string{b.Scale, b.Shift} // of the last, in the end
			}
		}
		s.model.Genes = append(s.model.Genes, Gene{Site: one.Ops})
	}
	images, err := dataset.OpenImages(context.Background(), dataset.Options{
		Path: filepath.Join(folder, "glyphs-test.safetensors"), Format: dataset.Safetensors,
		Normalize: dataset.Normalize{Mean: []float32{.35}, Std: []float32{.24}}, Samples: 60,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.data.Images = images
	return s
}

// decoder has a gene for each fusion group or layer, the embedding with its tied
// head, and one for each sublayer.
func decoder(t testing.TB, folder string) *subject {
	t.Helper()
	config, err := os.ReadFile(filepath.Join(folder, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	g, c := openModel(t, folder, model.Options{Config: config})
	s := newSubject("language", g, c)
	s.model.Rows = c.ReadRowFloat32
	at := map[string]int{}
	for i := range g.Ops {
		o := &g.Ops[i]
		tensors := []string{o.Weight}
		if o.Weight == "" {
			if o.Embedding == nil {
				continue
			}
			tensors = []string{o.Embedding.Table}
		}
		group := o.Fusion
		if group == "" {
			group = tensors[0]
		}
		k, ok := at[group]
		if !ok {
			k = len(s.model.Genes)
			at[group] = k
			s.model.Genes = append(s.model.Genes, Gene{})
		}
		if gene := &s.model.Genes[k]; !slices.Contains(gene.Tensors, tensors[0]) {
			gene.Tensors = append(gene.Tensors, tensors...)
		}
	}
	for _, one := range g.Sites() {
		if one.Kind != model.AttentionSite && one.Kind != model.MLPSite && one.Kind != model.BlockSite {
			continue
		}
		for _, i := range one.Ops {
			sums := slices.ContainsFunc(g.Readers(g.Ops[i].Output), func(r int) bool {
				return slices.Contains([]model.OpKind{model.Add, model.Combine, model.ScaleRows}, g.Ops[r].Kind)
			})
			if sums && g.Ops[i].IsLayer() {
				s.silent[len(s.model.Genes)] = append(s.silent[len(s.model.Genes)], g.Ops[i].Weight)
			}
		}
		s.model.Genes = append(s.model.Genes, Gene{Site: one.Ops})
	}
	return s
}

// mixture is a mixture of experts with random sequences; a gene for its routers too.
func mixture(t testing.TB) *subject {
	s := decoder(t, "../../model/testdata/qwen2-moe")
	s.name = "mixture"
	r := rand.New(rand.NewPCG(5, 6))
	for range 12 {
		doc := make([]uint32, 2+r.IntN(20))
		for i := range doc {
			doc[i] = uint32(r.IntN(37))
		}
		s.data.Sequences = append(s.data.Sequences, doc)
	}
	return s
}

// language is a decoder with sequences from files.
func language(t testing.TB, folder string, stem string, documents, longest int) *subject {
	t.Helper()
	s := decoder(t, folder)
	raw, err := os.ReadFile(filepath.Join(folder, stem+".u16"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(folder, stem+".lengths.json"))
	if err != nil {
		t.Fatal(err)
	}
	var lengths []int
	if err := json.Unmarshal(text, &lengths); err != nil {
		t.Fatal(err)
	}
	for _, n := range lengths[:min(documents, len(lengths))] {
		doc := make([]uint32, n)
		for i := range doc {
			doc[i] = uint32(binary.LittleEndian.Uint16(raw[2*i:]))
		}
		raw = raw[2*n:]
		s.data.Sequences = append(s.data.Sequences, doc[:min(n, longest)])
	}
	return s
}

func story(t testing.TB) *subject {
	return language(t, "../../testmodels/lm", "test", 12, 40)
}

func subjects(t testing.TB) []*subject {
	return []*subject{vision(t, "mlp"), vision(t, "resnet8"), story(t), mixture(t)}
}

func (s *subject) evaluator(t testing.TB, workers int, space *scratch.Space, o Options) *Evaluator {
	t.Helper()
	e, err := New(pool.New(workers), space, s.model, s.data, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// mutants returns a parent and candidates that differ from it in some genes.
func (s *subject) mutants(r *rand.Rand, n int) []search.Candidate {
	draw := func(gene int) int {
		if s.model.Genes[gene].Tensors == nil {
			if r.IntN(3) == 0 {
				return levelCount // drops the site
			}
			return Original
		}
		return r.IntN(levelCount+1) - 1
	}
	parent := make(search.Candidate, len(s.model.Genes))
	for gene := range parent {
		parent[gene] = draw(gene)
	}
	all := []search.Candidate{parent}
	for len(all) < n {
		c := slices.Clone(parent)
		for range 1 + r.IntN(3) {
			gene := r.IntN(len(c))
			c[gene] = draw(gene)
		}
		all = append(all, c)
	}
	return all
}

func evaluated(t testing.TB, e *Evaluator, candidates []search.Candidate, b search.Batch) []float64 {
	t.Helper()
	f, err := e.Evaluate(t.Context(), candidates, b)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestShortcutsChangeNothing(t *testing.T) {
	for _, s := range subjects(t) {
		r := rand.New(rand.NewPCG(1, 2))
		for _, m := range []Measure{KL, TopKKL, Loss} {
			plain := s.evaluator(t, 2, nil, Options{Measure: m, TopK: 4, Plain: true})
			for round, workers := range []int{1, 2, 5} {
				e := s.evaluator(t, workers, scratch.New("", 1<<20), Options{Measure: m, TopK: 4, Cache: []int64{0, 30_000, 1 << 30}[round]})
				for range 2 {
					candidates := s.mutants(r, 7)
					batch := search.Batch{Seed: r.Uint64(), Samples: 1 + r.IntN(e.Samples())}
					want := evaluated(t, plain, candidates, batch)
					got := evaluated(t, e, candidates, batch)
					if !slices.Equal(got, want) {
						t.Fatalf("%s, %s, %d workers, %d samples:\n%v, alone\n%v", s.name, m, workers, batch.Samples, got, want)
					}
					if slices.ContainsFunc(got, func(v float64) bool { return math.IsInf(v, 0) || v < 0 }) {
						t.Errorf("%s: %v", s.name, got)
					}
					if alone := evaluated(t, e, candidates[3:4], batch); alone[0] != want[3] {
						t.Errorf("%s: %v without the others, %v with them", s.name, alone[0], want[3])
					}
				}
				if c := e.Counters(); c.Operations >= c.Alone || c.Operations == 0 {
					t.Errorf("%s: %+v: nothing was shared", s.name, c)
				}
			}
			if c := plain.Counters(); c.Operations != c.Alone {
				t.Errorf("%s: %+v", s.name, c)
			}
		}
	}
}

// The numbers are those of the executor and of package evaluate.
func TestAgainstForward(t *testing.T) {
	for _, s := range subjects(t) {
		r := rand.New(rand.NewPCG(3, 4))
		kl, loss := s.evaluator(t, 2, nil, Options{}), s.evaluator(t, 2, nil, Options{Measure: Loss})
		candidates := append(s.mutants(r, 5), original(s), nil)
		for gene := range s.model.Genes { // and one that drops all that can go
			level := Original
			if s.model.Genes[gene].Site != nil {
				level = levelCount
			}
			candidates[6] = append(candidates[6], level)
		}
		batch := search.Batch{Samples: kl.Samples()}
		divergences, losses := evaluated(t, kl, candidates, batch), evaluated(t, loss, candidates, batch)
		if divergences[5] != 0 {
			t.Errorf("%s: the original is %v from itself", s.name, divergences[5])
		}
		for i, c := range candidates {
			wantKL, wantLoss := s.measured(t, c)
			if math.Abs(divergences[i]-wantKL) > 1e-9*(1+wantKL) || math.Abs(losses[i]-wantLoss) > 1e-9*(1+wantLoss) {
				t.Errorf("%s, candidate %v: KL %v and loss %v, want %v and %v", s.name, c, divergences[i], losses[i], wantKL, wantLoss)
			}
		}
	}
}

func original(s *subject) search.Candidate {
	c := make(search.Candidate, len(s.model.Genes))
	for i := range c {
		c[i] = Original
	}
	return c
}

// measured runs a candidate on all samples.
func (s *subject) measured(t testing.TB, c search.Candidate) (kl, loss float64) {
	t.Helper()
	x := model.NewTokens(s.data.Sequences...)
	if d := s.data.Images; d != nil {
		shape := s.model.Graph.Values[s.model.Graph.Input].Shape
		x = &model.Tensor{Shape: append([]int{d.N}, shape...), Data: make([]float32, d.N*d.Shape[0]*d.Shape[1]*d.Shape[2])}
		if err := d.Read(x.Data, 0, d.N); err != nil {
			t.Fatal(err)
		}
	}
	var logits []blas32.General
	for _, w := range []model.Weights{s.model.Weights, s.oracle(t, c)} {
		y, err := model.NewExecutor(s.model.Graph, nil, w).Forward(t.Context(), x)
		if err != nil {
			t.Fatal(err)
		}
		logits = append(logits, blas32.General{Rows: y.Shape[0], Cols: y.Shape[1], Stride: y.Shape[1], Data: y.Data})
	}
	if s.data.Images != nil {
		e, err := evaluate.Classification(logits[0], logits[1], s.data.Images.Labels())
		if err != nil {
			t.Fatal(err)
		}
		return e.KL, e.Compressed.Loss
	}
	var targets []int
	for _, ids := range s.data.Sequences {
		targets = append(targets, evaluate.NextTokens(ids)...)
	}
	l := evaluate.NewLanguage(logits[0].Cols)
	if err := l.Add(logits[0], logits[1], targets, 0); err != nil {
		t.Fatal(err)
	}
	e, err := l.Result()
	if err != nil {
		t.Fatal(err)
	}
	return e.KL, e.Compressed.Loss
}

func TestTopKOfAllIsKL(t *testing.T) {
	for _, s := range subjects(t) {
		candidates := s.mutants(rand.New(rand.NewPCG(5, 6)), 4)
		batch := search.Batch{Samples: 30, Seed: 1}
		all := s.evaluator(t, 2, nil, Options{Measure: TopKKL, TopK: 1 << 20})
		want := evaluated(t, s.evaluator(t, 2, nil, Options{}), candidates, batch)
		if got := evaluated(t, all, candidates, batch); !slices.Equal(got, want) {
			t.Errorf("%s: %v over all outputs, KL %v", s.name, got, want)
		}
		few := s.evaluator(t, 2, nil, Options{Measure: TopKKL, TopK: all.data.outputs - 1})
		for i, v := range evaluated(t, few, candidates, batch) {
			if v == want[i] && want[i] != 0 || math.Abs(v-want[i]) > .1*want[i] {
				t.Errorf("%s: %v over all outputs but one, KL %v", s.name, v, want[i])
			}
		}
	}
}

// Stopping early never changes who survives, nor the survivors' numbers.
func TestStoppedCandidatesCannotSurvive(t *testing.T) {
	text := language(t, "../../testmodels/lm", "test", 60, 40)
	for _, s := range []*subject{vision(t, "mlp"), vision(t, "resnet8"), text} {
		r := rand.New(rand.NewPCG(7, 8))
		e := s.evaluator(t, 2, nil, Options{Cache: 1 << 30})
		rounds := 25
		if s == text {
			rounds = 6
		}
		for round := range rounds {
			candidates := s.mutants(r, 8)
			candidates[6] = slices.Clone(candidates[1]) // ties
			survivors := 1 + r.IntN(4)
			batch := search.Batch{Seed: r.Uint64(), Samples: e.Samples() * 2 / 3, Survivors: survivors}
			got := evaluated(t, e, candidates, batch)
			batch.Survivors = 0
			want := evaluated(t, e, candidates, batch)
			if a, b := best(got, survivors), best(want, survivors); !slices.Equal(a, b) {
				t.Fatalf("%s, round %d: %v survive, want %v\n%v\n%v", s.name, round, a, b, got, want)
			}
			for i := range got {
				if got[i] != want[i] && (!math.IsInf(got[i], 1) || slices.Contains(best(want, survivors), i)) {
					t.Fatalf("%s, round %d, candidate %d: %v, want %v", s.name, round, i, got[i], want[i])
				}
			}
		}
		if e.Counters().Stopped == 0 {
			t.Errorf("%s: none was stopped", s.name)
		}
	}
}

// best returns the lowest values' indices as package search chooses them.
func best(values []float64, n int) []int {
	order := make([]int, len(values))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case values[a] < values[b]:
			return -1
		case values[a] > values[b]:
			return 1
		}
		return 0
	})
	return slices.Sorted(slices.Values(order[:n]))
}

func TestDraw(t *testing.T) {
	s := story(t)
	e := s.evaluator(t, 1, nil, Options{})
	r := rand.New(rand.NewPCG(9, 10))
	for range 200 {
		n, seed := 1+r.IntN(e.Samples()), r.Uint64()
		items, err := e.data.draw(n, seed)
		if err != nil {
			t.Fatal(err)
		}
		again, _ := e.data.draw(n, seed)
		if !slices.Equal(items, again) {
			t.Fatal("another draw of the same seed")
		}
		counted := 0
		seen := map[int]bool{}
		for i, one := range items {
			length := len(e.data.sequences[one.index])
			if seen[one.index] || one.rows < 2 || one.whole != (one.rows == length) || (!one.whole && i+1 < len(items)) {
				t.Fatalf("%d samples: item %d of %d is %+v, of %d tokens", n, i, len(items), one, length)
			}
			seen[one.index] = true
			counted += one.rows - 1
		}
		if counted != n {
			t.Fatalf("%d tokens, want %d", counted, n)
		}
	}
	items, err := e.data.draw(e.Samples(), 77)
	if err != nil || !slices.IsSortedFunc(items, func(a, b item) int { return a.index - b.index }) || len(items) != len(s.data.Sequences) {
		t.Errorf("%v, %v: all samples should come in their order", items, err)
	}
	for _, n := range []int{0, -1, e.Samples() + 1} {
		var bad *SamplesError
		if _, err := e.Evaluate(t.Context(), nil, search.Batch{Samples: n}); !errors.As(err, &bad) || bad.Asked != n || bad.Available != e.Samples() {
			t.Errorf("%d samples: %v", n, err)
		}
	}
}

// A space holds nothing after Close: a buffer as large as its limit is in memory.
func TestMemoryIsFreed(t *testing.T) {
	const limit = 32 << 20
	for _, s := range subjects(t) {
		space := scratch.New(t.TempDir(), limit)
		e := s.evaluator(t, 2, space, Options{})
		candidates := s.mutants(rand.New(rand.NewPCG(11, 12)), 6)
		for _, n := range []int{e.Samples(), e.Samples() - 1} {
			evaluated(t, e, candidates, search.Batch{Samples: n, Survivors: 2})
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := e.Evaluate(ctx, candidates, search.Batch{Samples: e.Samples()}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want the context's error", s.name, err)
		}
		e.Close()
		before := space.FilePeak()
		if _, err := space.Floats(limit / 4); err != nil {
			t.Fatal(err)
		}
		if space.FilePeak() != before {
			t.Errorf("%s: some of the memory is still in use", s.name)
		}
		space.Close()
	}
}

// However little memory there is, and wherever a call fails, nothing else changes.
func TestSmallSpaceAndFailures(t *testing.T) {
	s := vision(t, "resnet8")
	candidates := s.mutants(rand.New(rand.NewPCG(13, 14)), 5)
	batch := search.Batch{Samples: 60}
	want := evaluated(t, s.evaluator(t, 2, nil, Options{}), candidates, batch)
	space := scratch.New(t.TempDir(), 1<<17)
	defer space.Close()
	if got := evaluated(t, s.evaluator(t, 3, space, Options{}), candidates, batch); !slices.Equal(got, want) {
		t.Errorf("%v in a small space, %v in a large one", got, want)
	}
	broken := errors.New("broken")
	good := s.model.Level
	s.model.Level = func(ctx context.Context, gene, level int) (Variant, error) {
		if gene == 2 {
			return Variant{}, broken
		}
		return good(ctx, gene, level)
	}
	candidates[3] = original(s)
	candidates[3][2] = 1
	e := s.evaluator(t, 2, nil, Options{})
	var bad *LevelError
	if _, err := e.Evaluate(t.Context(), candidates, batch); !errors.Is(err, broken) || !errors.As(err, &bad) || bad.Gene != 2 {
		t.Errorf("%v, want the level's error with its gene", err)
	}
}

func TestLogitsThatAreNotFinite(t *testing.T) {
	for _, s := range subjects(t) {
		good := s.model.Level
		last := 0
		for gene := range s.model.Genes {
			if s.model.Genes[gene].Tensors != nil {
				last = gene
			}
		}
		s.model.Level = func(ctx context.Context, gene, level int) (Variant, error) {
			v, err := good(ctx, gene, level)
			if gene == last && level == 2 {
				for _, w := range v.Tensors {
					w[0] = float32(math.Inf(1))
				}
			}
			return v, err
		}
		candidates := s.mutants(rand.New(rand.NewPCG(15, 16)), 4)
		for i := range candidates {
			for gene := range candidates[i] {
				if s.model.Genes[gene].Site != nil {
					candidates[i][gene] = Original // or nothing may read the last gene
				}
			}
			candidates[i][last] = i % 3
		}
		got := evaluated(t, s.evaluator(t, 2, nil, Options{}), candidates, search.Batch{Samples: 40})
		if !math.IsInf(got[2], 1) || slices.ContainsFunc(got, math.IsNaN) || slices.Min(got) == math.Inf(1) {
			t.Errorf("%s: %v, want +Inf for the third", s.name, got)
		}
	}
}

func TestLevelsAreReadOnce(t *testing.T) {
	s := story(t)
	candidates := s.mutants(rand.New(rand.NewPCG(17, 18)), 9)
	batch := search.Batch{Samples: 100}
	evaluated(t, s.evaluator(t, 2, nil, Options{}), candidates, batch)
	reads := map[[2]int]int{}
	for k, n := range s.calls {
		reads[k] = n
		if n > 2 { // the table is read at the first and at the last operation
			t.Errorf("level %v was read %d times", k, n)
		}
	}
	e := s.evaluator(t, 2, nil, Options{Cache: 1 << 30})
	clear(s.calls)
	for range 3 {
		evaluated(t, e, candidates, batch)
	}
	for k, n := range s.calls {
		if n != 1 {
			t.Errorf("level %v was read %d times into a cache", k, n)
		}
	}
	small := newLevels(s.model, 5000)
	for k := range reads {
		if k[1] == Original {
			continue
		}
		if _, err := small.get(t.Context(), key{gene: k[0], level: k[1]}); err != nil || small.bytes > 5000 || len(small.entries) != small.order.Len() {
			t.Fatalf("%v, %d bytes kept", err, small.bytes)
		}
	}
}

func TestBadInput(t *testing.T) {
	s := vision(t, "resnet8")
	text := story(t)
	e := s.evaluator(t, 1, nil, Options{})
	var bad *search.CandidateError
	for _, c := range []search.Candidate{{1}, slices.Concat(original(s)[1:], search.Candidate{-2})} {
		if _, err := e.Evaluate(t.Context(), []search.Candidate{c}, search.Batch{Samples: 3}); !errors.As(err, &bad) {
			t.Errorf("%v: %v", c, err)
		}
	}
	c := original(s)
	c[0] = 99
	var level *LevelError
	if _, err := e.Evaluate(t.Context(), []search.Candidate{c}, search.Batch{Samples: 3}); !errors.As(err, &level) || level.Gene != 0 || level.Level != 99 {
		t.Error(err)
	}
	with := func(change func(m *Model, d *Data, o *Options)) error {
		m, d, o := s.model, s.data, Options{}
		m.Genes = slices.Clone(m.Genes)
		change(&m, &d, &o)
		_, err := New(nil, nil, m, d, o)
		return err
	}
	for want, err := range map[string]error{
		"Measure":             with(func(_ *Model, _ *Data, o *Options) { o.Measure = "ppl" }),
		"TopK":                with(func(_ *Model, _ *Data, o *Options) { o.TopK = -1 }),
		"Cache":               with(func(_ *Model, _ *Data, o *Options) { o.Cache = -1 }),
		"either images or":    with(func(_ *Model, d *Data, _ *Options) { d.Images = nil }),
		"sequences of tokens": with(func(_ *Model, d *Data, _ *Options) { *d = text.data }),
		"images for a model":  with(func(m *Model, _ *Data, _ *Options) { *m = text.model }),
		"needs a graph":       with(func(m *Model, _ *Data, _ *Options) { m.Graph = nil }),
		"is of gene":          with(func(m *Model, _ *Data, _ *Options) { m.Genes = append(m.Genes, m.Genes[0]) }),
		"no operation reads":  with(func(m *Model, _ *Data, _ *Options) { m.Genes[0].Tensors = []string{"nothing"} }),
		"take the place":      with(func(m *Model, _ *Data, _ *Options) { m.Genes[0].Site = []int{0} }),
		"from within a site": with(func(m *Model, _ *Data, _ *Options) {
			site := m.Genes[len(m.Genes)-1].Site
			m.Genes[0].Site = []int{site[0] - 1, site[0]}
		}),
		"twice or outside": with(func(m *Model, _ *Data, _ *Options) { m.Genes[0].Site = []int{1000} }),
		"another tokenizer": with(func(m *Model, d *Data, _ *Options) {
			*m, *d = text.model, Data{Sequences: [][]uint32{{1, 1 << 30}}}
		}),
		"no token to predict": with(func(m *Model, d *Data, _ *Options) { *m, *d = text.model, Data{Sequences: [][]uint32{{1}}} }),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	wrong := s.model
	wrong.Level = func(context.Context, int, int) (Variant, error) { return Variant{Dropped: true}, nil }
	c[0] = 1
	e, err := New(nil, nil, wrong, s.data, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Evaluate(t.Context(), []search.Candidate{c}, search.Batch{Samples: 3}); !errors.As(err, &level) {
		t.Errorf("a level that drops a gene without a site: %v", err)
	}
}
