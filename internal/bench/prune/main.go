// Command prune measures the solvers of package prune on one layer of random
// weights and correlated inputs, beside the published recipe of ADMM in PyTorch,
// where a python3 has that.
//
//	go run ./internal/bench/prune [-shapes 1024x1024,4096x11008] [-sparsity 0.5] [-workers 2] [-rounds 3] [-only fast]
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/prune"
)

func main() {
	shapes := flag.String("shapes", "512x512,1024x1024,2048x2048,4096x4096,4096x11008", "outputs x inputs of layers, divided by commas")
	sparsity := flag.Float64("sparsity", 0.5, "share of weights to prune, over the whole layer")
	workers := flag.Int("workers", 2, "workers, and PyTorch's threads")
	rounds := flag.Int("rounds", 3, "runs of each solver, in turns; the median counts")
	only := flag.String("only", "", "run only solvers whose label has this part")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := bench(ctx, *shapes, *only, *sparsity, *workers, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// solver prunes w, the copy of a layer's weight.
type solver struct {
	label   string
	run     func(w blas64.General) error
	seconds []float64
	error   float64
}

func bench(ctx context.Context, shapes, only string, sparsity float64, workers, rounds int) error {
	python, version := findPython(ctx)
	if python == "" {
		fmt.Println("No python3 here has torch: its rows are left out.")
	} else {
		fmt.Printf("Peer: PyTorch %s, %d threads. Kernels: %s.\n", version, workers, blas.Kernels)
	}
	fmt.Println("\n| layer | solver | seconds | of PyTorch's time | damped error, relative |")
	fmt.Println("|---|---|---|---|---|")
	for shape := range strings.SplitSeq(shapes, ",") {
		var out, in int
		if _, err := fmt.Sscanf(shape, "%dx%d", &out, &in); err != nil || out < 1 || in < 1 {
			return fmt.Errorf("shape %q: want outputs x inputs, such as 1024x4096", shape)
		}
		if err := measure(ctx, shape, only, out, in, sparsity, workers, rounds, python); err != nil {
			return err
		}
	}
	return nil
}

func measure(ctx context.Context, shape, only string, out, in int, sparsity float64, workers, rounds int, python string) error {
	p := pool.New(workers)
	h, w, err := problem(ctx, p, out, in)
	if err != nil {
		return err
	}
	a := linalg.Clone(h) // as the recipe damps: a tenth of each input's own diagonal
	for i := range in {
		a.Data[i*(in+1)] *= 1.1
	}
	selection := prune.Selection{Survivors: out*in - prune.Pruned(out*in, sparsity)}
	admm := func(o prune.ADMMOptions, polish *prune.PolishOptions) func(blas64.General) error {
		return func(got blas64.General) error {
			mask, err := prune.ADMM(ctx, p, a, got, selection, o)
			if err == nil && polish != nil {
				_, err = prune.Polish(ctx, p, a, w, got, mask, *polish)
			}
			return err
		}
	}
	full := prune.DefaultPolish()
	var solvers []*solver
	published := "ADMM as published, PyTorch"
	peer := python != "" && strings.Contains(published, only)
	if peer {
		other, err := startPeer(ctx, python, workers, h, w, sparsity)
		if err != nil {
			return err
		}
		defer other.stop()
		s := &solver{label: published}
		s.run = func(got blas64.General) error {
			seconds, err := other.prune(got)
			s.seconds = append(s.seconds, seconds)
			return err
		}
		solvers = append(solvers, s)
	}
	solvers = append(solvers,
		&solver{label: "SparseGPT, with its factorization", run: func(got blas64.General) error {
			upper := linalg.Clone(a)
			if err := linalg.InverseUpper(ctx, p, upper); err != nil {
				return err
			}
			_, _, err := prune.SparseGPT(ctx, p, upper, nil, got, selection, prune.SparseGPTOptions{})
			return err
		}},
		&solver{label: "ADMM, fast", run: admm(prune.FastADMM(), nil)},
		&solver{label: "ADMM", run: admm(prune.DefaultADMM(), nil)},
		&solver{label: "ADMM, polished", run: admm(prune.DefaultADMM(), &full)},
	)
	solvers = slices.DeleteFunc(solvers, func(s *solver) bool { return !strings.Contains(s.label, only) })
	energy, err := loss(ctx, p, a, w, linalg.NewGeneral(out, in))
	if err != nil {
		return err
	}
	for range rounds {
		for i, s := range solvers {
			got := linalg.Clone(w)
			began := time.Now()
			if err := s.run(got); err != nil {
				return err
			}
			if !peer || i > 0 {
				s.seconds = append(s.seconds, time.Since(began).Seconds())
			}
			if s.error == 0 {
				if s.error, err = loss(ctx, p, a, w, got); err != nil {
					return err
				}
			}
		}
	}
	for _, s := range solvers {
		slices.Sort(s.seconds)
		ratio := "–"
		if peer {
			ratio = fmt.Sprintf("%.2f", median(s.seconds)/median(solvers[0].seconds))
		}
		fmt.Printf("| %s | %s | %.3f | %s | %.6f |\n", shape, s.label, median(s.seconds), ratio, s.error/energy)
	}
	return nil
}

func median(sorted []float64) float64 { return sorted[len(sorted)/2] }

// loss returns tr((W−Ŵ)A(W−Ŵ)ᵀ).
func loss(ctx context.Context, p *pool.Pool, a, w, got blas64.General) (float64, error) {
	d, product := linalg.Clone(w), linalg.NewGeneral(w.Rows, w.Cols)
	vec.Axpy64(-1, got.Data, d.Data)
	err := blas.Gemm64(ctx, p, blas.NoTrans, blas.NoTrans, 1, d, a, 0, product)
	return vec.Dot64(d.Data, product.Data), err
}

// problem returns H of inputs of unequal size that follow each other, and random
// weights. Both are exact in float32, which PyTorch reads.
func problem(ctx context.Context, p *pool.Pool, out, in int) (h, w blas64.General, err error) {
	r := rand.New(rand.NewPCG(uint64(out), uint64(in)))
	h, w = linalg.NewGeneral(in, in), linalg.NewGeneral(out, in)
	for i := range w.Data {
		w.Data[i] = float64(float32(r.NormFloat64()))
	}
	size := make([]float64, in)
	for i := range size {
		size[i] = 0.2 + r.ExpFloat64()
	}
	x := blas32.General{Rows: blas.GramRows, Cols: in, Stride: in, Data: make([]float32, blas.GramRows*in)}
	for rows := 0; rows < 2*in; rows += x.Rows {
		for i := range x.Rows {
			last := 0.0
			for j := range in {
				last = 0.8*last + 0.6*r.NormFloat64()
				x.Data[i*in+j] = float32(size[j] * last)
			}
		}
		if err := blas.AddGramUpper(ctx, p, x, h); err != nil {
			return h, w, err
		}
	}
	blas.Mirror(h)
	for i, v := range h.Data {
		h.Data[i] = float64(float32(v))
	}
	return h, w, nil
}
