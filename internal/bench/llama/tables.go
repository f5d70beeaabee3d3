package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/record"
)

// shapes are what the products of a Llama follow from.
type shapes struct {
	Hidden       int64 `json:"hidden_size"`
	Intermediate int64 `json:"intermediate_size"`
	Layers       int64 `json:"num_hidden_layers"`
	Heads        int64 `json:"num_attention_heads"`
	KVHeads      int64 `json:"num_key_value_heads"`
}

// value is one that layers read: its width and the outputs of those layers.
type value struct{ inputs, outputs int64 }

func (s shapes) values() []value {
	kv := s.Hidden / s.Heads * s.KVHeads
	return []value{
		{s.Hidden, s.Hidden + 2*kv}, {s.Hidden, s.Hidden}, {s.Hidden, 2 * s.Intermediate}, {s.Intermediate, s.Hidden},
	}
}

// products are the floating-point operations of a stage that no
// implementation of the method can leave out, a multiply-add being two.
type products struct {
	stage  string // as in the record
	what   string
	single float64 // in float32
	double float64 // in float64
}

func (s shapes) products(tokens int64) []products {
	var forward, grams, factors, solving float64
	for _, v := range s.values() {
		n, out := float64(v.inputs), float64(v.outputs)
		forward += 2 * float64(tokens) * n * out
		grams += (1 + 2) * float64(tokens) * n * n // H by half, G
		factors += 2. / 3 * n * n * n              // Cholesky, and the inverse of its factor
		// W·Gᵀ, two triangular products for W̃, GPTQ's pass.
		solving += (2 + 2 + 1) * out * n * n
	}
	blocks := float64(s.Layers)
	return []products{
		{"original", "forward, original", blocks * forward, 0},
		{"compressed", "forward, compressed", blocks * forward, 0},
		{"moments", "H and G", blocks * grams, 0},
		{"solve", "factors, alignment, GPTQ's pass", 0, blocks * (factors + solving)},
	}
}

// peaks are the operations a second of products of 2048³ on all workers, the
// medians of some.
func peaks(ctx context.Context) (single, double float64, err error) {
	const n = 2048
	p := pool.New(0)
	a, b, c := make([]float32, n*n), make([]float32, n*n), make([]float32, n*n)
	x, y, z := make([]float64, n*n), make([]float64, n*n), make([]float64, n*n)
	for i := range a {
		a[i], b[i] = float32(i%7), float32(i%5)
		x[i], y[i] = float64(i%7), float64(i%5)
	}
	of := func(d []float32) blas32.General { return blas32.General{Rows: n, Cols: n, Stride: n, Data: d} }
	of64 := func(d []float64) blas64.General { return blas64.General{Rows: n, Cols: n, Stride: n, Data: d} }
	rate := func(do func() error) (float64, error) {
		var seconds []float64
		for range 7 {
			began := time.Now()
			if err := do(); err != nil {
				return 0, err
			}
			seconds = append(seconds, time.Since(began).Seconds())
		}
		slices.Sort(seconds)
		return 2 * n * n * n / seconds[len(seconds)/2], nil
	}
	single, err = rate(func() error { return blas.Gemm(ctx, p, blas.NoTrans, blas.NoTrans, 1, of(a), of(b), 0, of(c)) })
	if err != nil {
		return 0, 0, err
	}
	double, err = rate(func() error { return blas.Gemm64(ctx, p, blas.NoTrans, blas.NoTrans, 1, of64(x), of64(y), 0, of64(z)) })
	return single, double, err
}

// mustHold is what no run can do without at once, at the value where that is
// most: a block's weights in float32, H and G in float64, and the activations:
// the residual stream and the value, of both streams.
func (s shapes) mustHold(tokens int64) (weights, moments, activations int64) {
	for _, v := range s.values() {
		weights += 4 * v.inputs * v.outputs
		moments = max(moments, 2*8*v.inputs*v.inputs)
		activations = max(activations, 2*4*tokens*(s.Hidden+v.inputs))
	}
	return weights, moments, activations
}

func printTables(ctx context.Context, run *record.Run, before [2]float64, folder string, tokens int64) error {
	text, err := os.ReadFile(filepath.Join(folder, "config.json"))
	if err != nil {
		return err
	}
	var s shapes
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	single, double, err := peaks(ctx)
	if err != nil {
		return err
	}
	single, double = (single+before[0])/2, (double+before[1])/2
	fmt.Printf("%d parameters, %d blocks, %d tokens; %d workers, %s; products of 2048³ at %.0f GFLOPS (float32) and %.0f (float64)\n\n",
		run.Source.Parameters, s.Layers, tokens, run.Tool.Workers, run.Tool.Kernels, single/1e9, double/1e9)
	seconds := map[string]float64{}
	for _, stage := range run.Stages {
		seconds[stage.Name] = stage.Seconds
	}
	fmt.Println("| stage | products | GFLOP f32 / f64 | at that rate s | taken s | ratio |")
	fmt.Println("|---|---|---|---|---|---|")
	least := 0.0
	for _, p := range s.products(tokens) {
		at := p.single/single + p.double/double
		least += at
		fmt.Printf("| %s | %s | %.0f / %.0f | %.1f | %.1f | %.2f |\n", p.stage, p.what, p.single/1e9, p.double/1e9, at, seconds[p.stage], seconds[p.stage]/at)
		delete(seconds, p.stage)
	}
	for _, stage := range run.Stages {
		if rest, ok := seconds[stage.Name]; ok {
			fmt.Printf("| %s | | | | %.1f | |\n", stage.Name, rest)
		}
	}
	fmt.Printf("| whole run | | | %.1f | %.1f | %.2f |\n\n", least, run.Seconds, run.Seconds/least)
	weights, moments, activations := s.mustHold(tokens)
	held := weights + moments + activations
	fmt.Printf("peak memory %.0f MB; a block %.0f MB, moments %.0f MB, activations %.0f MB: together %.0f MB, ratio %.2f\n",
		float64(run.PeakRSS)/1e6, float64(weights)/1e6, float64(moments)/1e6, float64(activations)/1e6, float64(held)/1e6, float64(run.PeakRSS)/float64(held))
	return nil
}
