package pipeline_test

import (
	"context"
	"math"
	"os"
	"strings"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/calibrate"
	"github.com/fettle-dev/fettle/dataset"
	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/quantize"
)

// TestTokensThatLayersWant measures on layers of a real model's MLPs how many tokens
// a method must learn from, for each input of a layer, before it is better than
// nearest rounding on tokens that it has not seen. docs/recipes.md has the table.
func TestTokensThatLayersWant(t *testing.T) {
	const folder = "../../shared/data/llm-stories260k"
	if _, err := os.Stat(folder); err != nil {
		t.Skipf("%s is not here", folder)
	}
	if os.Getenv("FETTLE_LONG") == "" {
		t.Skip("FETTLE_LONG=1 measures this")
	}
	ctx, p := context.Background(), pool.New(2)
	ckpt, err := loader.Open(ctx, folder)
	if err != nil {
		t.Fatal(err)
	}
	defer ckpt.Close()
	config, err := os.ReadFile(folder + "/config.json")
	if err != nil {
		t.Fatal(err)
	}
	g, err := model.Build(ckpt.Tensors(), model.Options{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	text, err := dataset.OpenText(ctx, dataset.TextOptions{Path: folder + "/valid.u16", Format: "u16", Samples: 60, Vocabulary: 512, Length: 256}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var sequences [][]uint32
	for i := range text.N {
		sequences = append(sequences, text.Tokens(i))
	}
	exec := model.NewExecutor(g, p, model.Stored(ckpt))
	values := make([]*model.Tensor, len(g.Values))
	values[g.Input] = model.NewTokens(sequences...)
	shares := []float64{.125, .25, .5, 1, 2, 4, 8}
	type result struct{ gptq, best []float64 }
	sums, layers := map[int]*result{}, map[int]int{}
	for i := range g.Ops {
		op := &g.Ops[i]
		var in []*model.Tensor
		for _, v := range op.Inputs {
			in = append(in, values[v])
		}
		if op.Kind == model.Linear && strings.Contains(op.Name, "mlp.") {
			x := in[0]
			n := x.Shape[1]
			if sums[n] == nil {
				sums[n] = &result{make([]float64, len(shares)), make([]float64, len(shares))}
			}
			w, err := model.Stored(ckpt)(op.Weight)
			if err != nil {
				t.Fatal(err)
			}
			half := x.Shape[0] / 2
			unseen := moments(t, p, x.Data[half*n:], n)
			plain := outputError(t, p, w, op.Outputs, n, nil, unseen, quantize.Options{Method: quantize.Nearest, Bits: 4})
			for k, share := range shares {
				rows := int(share * float64(n))
				seen := moments(t, p, x.Data[:rows*n], n)
				for _, one := range []struct {
					method quantize.Method
					sum    []float64
				}{{quantize.GPTQ, sums[n].gptq}, {quantize.Best, sums[n].best}} {
					e := outputError(t, p, w, op.Outputs, n, seen, unseen, quantize.Options{Method: one.method, Bits: 4})
					one.sum[k] += math.Log(e / plain)
				}
			}
			layers[n]++
		}
		if values[op.Output], err = exec.Step(ctx, i, in); err != nil {
			t.Fatal(err)
		}
	}
	for n, r := range sums {
		for k, share := range shares {
			t.Logf("%d inputs, %5.3f tokens for each: gptq %.3f, best %.3f of nearest's error", n, share,
				math.Exp(r.gptq[k]/float64(layers[n])), math.Exp(r.best[k]/float64(layers[n])))
		}
		if r.gptq[5] > 0 || r.best[5] > 0 { // pipeline's tokensPerInput
			t.Errorf("%d inputs: with %v tokens for each, methods are worse than nearest rounding", n, shares[5])
		}
	}
}

func moments(t *testing.T, p *pool.Pool, rows []float32, n int) *layer.Moments {
	t.Helper()
	a := calibrate.New(p, calibrate.Rows(n, n), true)
	if err := a.Add(context.Background(), rows, rows); err != nil {
		t.Fatal(err)
	}
	m, err := a.Moments(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// outputError quantizes a weight with some moments and returns its error on others.
func outputError(t *testing.T, p *pool.Pool, w []float32, rows, n int, seen, unseen *layer.Moments, o quantize.Options) float64 {
	t.Helper()
	if seen != nil {
		seen.Energy = map[string][]float64{"w": make([]float64, rows)}
	}
	prob := &layer.Problem{
		Layer: "w", Kind: layer.Linear, Shape: []int{rows, n}, Groups: 1, Type: dtype.F32, ScaleType: dtype.F32,
		Weight: blas32.General{Rows: rows, Cols: n, Stride: n, Data: w}, Moments: seen,
	}
	s, err := quantize.NewFactors(seen).Solve(context.Background(), p, prob, o.WithDefaults())
	if err != nil {
		t.Fatal(err)
	}
	got := make([]float32, rows*n)
	s.Weight(got)
	h, sum := unseen.H[0], 0.0
	for r := range rows {
		for i := range n {
			di := float64(got[r*n+i]) - float64(w[r*n+i])
			for j := range n {
				sum += di * h.Data[i*h.Stride+j] * (float64(got[r*n+j]) - float64(w[r*n+j]))
			}
		}
	}
	return sum
}
