package model

import (
	"context"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/fettle-dev/fettle/internal/pool"
)

// BenchmarkAttention has the heads of a Llama of 1.1B parameters, 4 sequences
// of 512 tokens.
func BenchmarkAttention(b *testing.B) {
	a := &Attention{Heads: 32, KVHeads: 4, HeadDim: 64, Scale: .125, Causal: true, Rope: &Rope{Theta: 1e4, Dims: 64}}
	x := batch(rand.New(rand.NewPCG(1, 1)), 4*512, 2560)
	x.Lengths = []int{512, 512, 512, 512}
	g := &Graph{
		Values: []Value{{"qkv", []int{2560}}, {"y", []int{2048}}},
		Ops:    []Op{{Kind: Attend, Name: "attention", Inputs: []int{0}, Output: 1, Attention: a}}, Output: 1,
	}
	e := NewExecutor(g, pool.New(1), nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Step(context.Background(), 0, []*Tensor{x}); err != nil {
			b.Fatal(err)
		}
	}
	// Half of each square of scores, twice.
	flops := 4 * 32 * 64 * 2 * 512 * 512 * 2. / 2
	b.ReportMetric(flops*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
}

// BenchmarkStories is tokens a second of a model so small that all but its
// products counts.
func BenchmarkStories(b *testing.B) {
	folder := moduleFile(b, "../shared/data/llm-stories260k")
	_, e := languageModel(b, folder, 1)
	x := NewTokens(documents(b, folder+"/valid")[:16]...)
	for b.Loop() {
		forward(b, e, x)
	}
	b.ReportMetric(math.Round(float64(len(x.Tokens)*b.N)/b.Elapsed().Seconds()), "tokens/s")
}
