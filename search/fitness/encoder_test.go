package fitness

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/evaluate"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/scratch"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/search"
)

func encoder(t *testing.T, name string) *subject {
	t.Helper()
	folder := filepath.Join("..", "..", "model", "testdata", name)
	config, err := os.ReadFile(filepath.Join(folder, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	g, c := openModel(t, folder, model.Options{Config: config})
	s := newSubject(name, g, c)
	for i := range g.Ops {
		if o := &g.Ops[i]; o.Weight != "" && !g.Tied(i) {
			s.model.Genes = append(s.model.Genes, Gene{Tensors: []string{o.Weight}})
		}
	}
	r := rand.New(rand.NewPCG(7, 7))
	for _, n := range []int{1, 9, 30, 17} {
		ids := make([]uint32, n)
		for i := range ids {
			ids[i] = r.Uint32N(37)
		}
		s.data.Sequences = append(s.data.Sequences, ids)
	}
	return s
}

// The outputs at all tokens of a masked language model and of a classifier of tokens
// count, the last of a sequence too.
func TestTokensOfEncoders(t *testing.T) {
	for _, name := range []string{"bert-masked", "xlm-roberta-tokens"} {
		s := encoder(t, name)
		e := s.evaluator(t, 2, scratch.New("", 1<<20), Options{Cache: 1 << 20})
		if e.Samples() != 57 {
			t.Errorf("%s: %d samples, want 57", name, e.Samples())
		}
		r := rand.New(rand.NewPCG(3, 4))
		candidates := s.mutants(r, 5)
		got := evaluated(t, e, candidates, search.Batch{Samples: 57})
		x := model.NewTokens(s.data.Sequences...)
		original, err := model.NewExecutor(s.model.Graph, nil, s.model.Weights).Forward(t.Context(), x)
		if err != nil {
			t.Fatal(err)
		}
		for k, c := range candidates {
			y, err := model.NewExecutor(s.model.Graph, nil, s.oracle(t, c)).Forward(t.Context(), x)
			if err != nil {
				t.Fatal(err)
			}
			sum, width := 0.0, original.Shape[1]
			for row := range 57 {
				a, b := original.Data[row*width:][:width], y.Data[row*width:][:width]
				sum += evaluate.Divergence(a, b, vec.LogSumExp(a), vec.LogSumExp(b))
			}
			if math.Abs(got[k]-sum/57) > 1e-9*(1+sum) {
				t.Errorf("%s: candidate %d: %v, want %v", name, k, got[k], sum/57)
			}
		}
		plain := s.evaluator(t, 3, nil, Options{Plain: true})
		for _, n := range []int{1, 20, 40} {
			batch := search.Batch{Seed: uint64(n), Samples: n}
			if a, b := evaluated(t, e, candidates, batch), evaluated(t, plain, candidates, batch); !slices.Equal(a, b) {
				t.Errorf("%s: %d samples: %v, alone %v", name, n, a, b)
			}
		}
	}
}

func TestEncodersThatCannotBeMeasured(t *testing.T) {
	for name, want := range map[string]string{"bert": "features", "bert-classes": "sequence_classes"} {
		s := encoder(t, name)
		if _, err := New(pool.New(1), nil, s.model, s.data, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := encoder(t, "bert-masked")
	if _, err := New(pool.New(1), nil, s.model, s.data, Options{Measure: Loss}); err == nil || !strings.Contains(err.Error(), "no loss") {
		t.Errorf("the loss of a masked language model: %v", err)
	}
}
