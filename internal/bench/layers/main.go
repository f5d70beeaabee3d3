// Command layers measures the time that methods take for one layer of random
// weights and correlated inputs, beside the products that they cannot avoid.
//
//	go run ./internal/bench/layers [-shapes 1024x1024,4096x11008] [-methods 'GPTQ=method: gptq, bits: 4'] [-workers 1,2]
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/bench/methods"
	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/quantize"
)

func main() {
	shapes := flag.String("shapes", "256x256,512x512,1024x1024,2048x2048,4096x4096", "outputs x inputs of layers, divided by commas")
	list := flag.String("methods", "nearest=method: nearest, bits: 4;GPTQ, aligned=method: gptq, bits: 4;best=bits: 4;GPTQ, aligned, groups of 128=method: gptq, bits: 4, group_size: 128;best, groups of 128=bits: 4, group_size: 128",
		"entries of label=keys of the quantize step, divided by ;")
	workers := flag.String("workers", "1,2", "numbers of workers")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := bench(ctx, *shapes, *list, *workers); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, shapes, list, workers string) error {
	columns, err := methods.Parse(list)
	if err != nil {
		return err
	}
	fmt.Println("| layer | method | workers | seconds | products that alignment and GPTQ's pass need s | multiple | relative error |")
	fmt.Println("|---|---|---|---|---|---|---|")
	for shape := range strings.SplitSeq(shapes, ",") {
		var out, in int
		if _, err := fmt.Sscanf(shape, "%dx%d", &out, &in); err != nil || out < 1 || in < 1 {
			return fmt.Errorf("shape %q: want outputs x inputs, such as 1024x4096", shape)
		}
		prob, err := problem(ctx, out, in)
		if err != nil {
			return err
		}
		for text := range strings.SplitSeq(workers, ",") {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 {
				return fmt.Errorf("workers %q", text)
			}
			p := pool.New(n)
			rate, err := rate64(ctx, p)
			if err != nil {
				return err
			}
			least := (2./3*float64(in) + 5*float64(out)) * float64(in) * float64(in) / rate
			for _, m := range columns {
				o, err := pipeline.ParseOptions(m.Step)
				if err != nil {
					return fmt.Errorf("%s: %w", m.Label, err)
				}
				o.BiasCorrection, o.Centre = false, false // the layer has no bias
				began := time.Now()
				s, err := quantize.Solve(ctx, p, prob, o)
				if err != nil {
					return err
				}
				seconds := time.Since(began).Seconds()
				fmt.Printf("| %s | %s | %d | %.3f | %.3f | %.1f | %.5f |\n", shape, m.Label, n, seconds, least, seconds/least, s.Errors.Relative())
			}
		}
	}
	return nil
}

// rate64 is the float64 operations a second of a product of 1024³.
func rate64(ctx context.Context, p *pool.Pool) (float64, error) {
	const n = 1024
	a, b, c := linalg.NewGeneral(n, n), linalg.NewGeneral(n, n), linalg.NewGeneral(n, n)
	for i := range a.Data {
		a.Data[i], b.Data[i] = float64(i%7), float64(i%5)
	}
	var best float64
	for range 5 {
		began := time.Now()
		if err := blas.Gemm64(ctx, p, blas.NoTrans, blas.NoTrans, 1, a, b, 0, c); err != nil {
			return 0, err
		}
		best = max(best, 2*n*n*n/time.Since(began).Seconds())
	}
	return best, nil
}

// problem has inputs of unequal size that follow each other, of which the
// compressed stream's differ by a tenth.
func problem(ctx context.Context, out, in int) (*layer.Problem, error) {
	r := rand.New(rand.NewPCG(uint64(out), uint64(in)))
	p := pool.New(0)
	m := &layer.Moments{Groups: 1, Inputs: in, Energy: map[string][]float64{"layer": make([]float64, out)}}
	h, g := linalg.NewGeneral(in, in), linalg.NewGeneral(in, in)
	m.H, m.G = []blas64.General{h}, []blas64.General{g}
	m.SumX, m.SumXt = make([]float64, in), make([]float64, in)
	w := blas32.General{Rows: out, Cols: in, Stride: in, Data: make([]float32, out*in)}
	for i := range w.Data {
		w.Data[i] = float32(r.NormFloat64())
	}
	size := make([]float32, in)
	for i := range size {
		size[i] = float32(0.2 + r.ExpFloat64())
	}
	x := blas32.General{Rows: blas.GramRows, Cols: in, Stride: in, Data: make([]float32, blas.GramRows*in)}
	xt := blas32.General{Rows: blas.GramRows, Cols: in, Stride: in, Data: make([]float32, blas.GramRows*in)}
	y := blas32.General{Rows: blas.GramRows, Cols: out, Stride: out, Data: make([]float32, blas.GramRows*out)}
	for m.Rows < int64(2*in) {
		for i := range x.Rows {
			last := 0.0
			for j := range in {
				last = 0.8*last + 0.6*r.NormFloat64()
				v := size[j] * float32(last)
				x.Data[i*in+j], xt.Data[i*in+j] = v, v+0.1*size[j]*float32(r.NormFloat64())
			}
		}
		if err := blas.AddGramUpper(ctx, p, xt, h); err != nil {
			return nil, err
		}
		if err := blas.AddGram(ctx, p, xt, x, g); err != nil {
			return nil, err
		}
		if err := blas.Gemm(ctx, p, blas.NoTrans, blas.Trans, 1, x, w, 0, y); err != nil {
			return nil, err
		}
		for i, v := range y.Data {
			m.Energy["layer"][i%out] += float64(v) * float64(v)
		}
		m.Rows += int64(x.Rows)
	}
	blas.Mirror(h)
	return &layer.Problem{
		Layer: "layer", Kind: layer.Linear, Shape: []int{out, in}, Groups: 1, Weight: w, ScaleType: dtype.F16, Moments: m,
	}, nil
}
