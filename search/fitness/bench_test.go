package fitness

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/fettle-dev/fettle/dataset"
	"github.com/fettle-dev/fettle/internal/scratch"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/search"
)

// shared returns a path of ../shared/data, where it is.
func shared(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join("..", "..", "..", "shared", "data", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("../shared/data/%s is not here", name)
	}
	return path
}

// rounded makes levels of 3, 4 and 5 bits a weight, rounded to the nearest.
func (s *subject) rounded() {
	s.model.Level = func(_ context.Context, gene, level int) (Variant, error) {
		v := Variant{Tensors: map[string][]float32{}}
		for _, name := range s.model.Genes[gene].Tensors {
			w, err := s.model.Weights(name)
			if err != nil {
				return v, err
			}
			top := float32(0)
			for _, x := range w {
				top = max(top, float32(math.Abs(float64(x))))
			}
			step := top / float32(int(4)<<level)
			q := make([]float32, len(w))
			for i, x := range w {
				q[i] = step * float32(math.Round(float64(x/step)))
			}
			v.Tensors[name] = q
		}
		return v, nil
	}
	s.model.Genes = slices.DeleteFunc(s.model.Genes, func(g Gene) bool { return g.Tensors == nil })
}

func resnet20(t testing.TB) *subject {
	g, c := openModel(t, shared(t, "resnet-cifar10/resnet20-12fca82f.th"), model.Options{})
	s := newSubject("resnet20", g, c)
	for i := range g.Ops {
		if g.Ops[i].IsLayer() {
			s.model.Genes = append(s.model.Genes, Gene{Tensors: []string{g.Ops[i].Weight}})
		}
	}
	images, err := dataset.OpenImages(context.Background(), dataset.Options{
		Path: shared(t, "cifar10/train5085.bin"), Format: dataset.CIFAR10, Normalize: dataset.Normalize(g.Normalize), Samples: 2048,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.data.Images = images
	s.rounded()
	return s
}

func stories260K(t testing.TB) *subject {
	s := language(t, shared(t, "llm-stories260k"), "calib", 100, 512)
	s.name = "stories260k"
	s.rounded()
	return s
}

// generation goes through the stages of one generation of 16 mutants.
func generation(t testing.TB, e *Evaluator, parent search.Candidate, seed uint64, scale int) {
	r := rand.New(rand.NewPCG(seed, 1))
	var candidates []search.Candidate
	for range 16 {
		c := slices.Clone(parent)
		for range 1 + r.IntN(2) { // a switch lowers a gene and raises another
			for _, by := range []int{-1, 1} {
				gene := r.IntN(len(c))
				c[gene] = min(max(c[gene]+by, 0), 2)
			}
		}
		candidates = append(candidates, c)
	}
	for i, stage := range []search.Stage{{Survivors: 4, Samples: 256 * scale}, {Survivors: 1, Samples: 1024 * scale}} {
		if i == 1 {
			candidates = append(candidates, parent)
		}
		f := evaluated(t, e, candidates, search.Batch{Seed: r.Uint64(), Samples: stage.Samples, Survivors: stage.Survivors})
		var next []search.Candidate
		for _, c := range best(f, stage.Survivors) {
			next = append(next, candidates[c])
		}
		candidates = next
	}
}

// BenchmarkGeneration is one generation with and without shortcuts, of a parent at
// 4 bits; the original's answers are known.
func BenchmarkGeneration(b *testing.B) {
	for _, one := range []struct {
		open  func(testing.TB) *subject
		scale int
	}{{resnet20, 1}, {stories260K, 4}} {
		s := one.open(b)
		parent := make(search.Candidate, len(s.model.Genes))
		for i := range parent {
			parent[i] = 1
		}
		for _, plain := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/plain=%t", s.name, plain), func(b *testing.B) {
				space := scratch.New("", 0)
				defer space.Close()
				e := s.evaluator(b, 0, space, Options{Cache: 64 << 20, Plain: plain})
				evaluated(b, e, []search.Candidate{parent}, search.Batch{Samples: e.Samples()})
				before := e.Counters()
				b.ResetTimer()
				for i := range b.N {
					generation(b, e, parent, uint64(i), one.scale)
				}
				after := e.Counters()
				b.ReportMetric(float64(after.Operations-before.Operations)/float64(after.Alone-before.Alone), "ops-share")
				b.ReportMetric(float64(after.Stopped-before.Stopped)/float64(b.N), "stopped")
			})
		}
	}
}
