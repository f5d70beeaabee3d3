// Command linalg measures the factorizations of internal/linalg and prints a
// Markdown table. With LAPACK as OpenBLAS has it (libopenblas-dev) beside it,
// alternating in the same process:
//
//	go run -tags openblas ./internal/bench/linalg [-threads 2] [-repeat 5] [-only cholesky]
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	gblas "gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
)

// A lapack does a task of the table on a copy of its input in place.
type lapack struct {
	threads                              func(n int)
	cholesky, inverseLower, inverseUpper func(a blas64.General) error
	eigen                                func(a blas64.General) error
	qr                                   func(a blas64.General) error
	gemm                                 func(a, b, c blas64.General) error
}

// peer is set where the program is built with LAPACK.
var peer *lapack

type benchmark struct {
	name string
	// prepare makes a run's input, which is not timed.
	prepare func() blas64.General
	ours    func(a blas64.General) error
	theirs  func(a blas64.General) error
}

func main() {
	threads := flag.Int("threads", runtime.GOMAXPROCS(0), "workers, and LAPACK's threads")
	repeat := flag.Int("repeat", 5, "pairs of runs of each line")
	only := flag.String("only", "", "only lines whose name holds this")
	cpu := flag.Bool("cpu", false, "count the process's processor time, for a machine that others use")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *threads, *repeat, *only, *cpu); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, threads, repeat int, only string, cpu bool) error {
	p := pool.New(threads)
	if peer == nil {
		peer = &lapack{}
		fmt.Println("| task | fettle ms |")
		fmt.Println("|---|---:|")
	} else {
		peer.threads(threads)
		fmt.Println("| task | fettle ms | LAPACK ms | LAPACK's time / fettle's | range |")
		fmt.Println("|---|---:|---:|---:|---|")
	}
	for _, b := range benchmarks(ctx, p) {
		if !strings.Contains(b.name, only) {
			continue
		}
		if err := b.run(ctx, repeat, cpu); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
	}
	return nil
}

// run times pairs of runs, the order in a pair alternating.
func (b benchmark) run(ctx context.Context, repeat int, cpu bool) error {
	input := b.prepare()
	timed := func(task func(a blas64.General) error) (float64, error) {
		a := linalg.Clone(input)
		runtime.GC()
		now := func() float64 { return float64(time.Now().UnixNano()) }
		if cpu {
			now = processorTime
		}
		start := now()
		err := task(a)
		return (now() - start) / 1e6, err
	}
	var ours, theirs, ratios []float64
	for i := range repeat + 1 {
		if err := ctx.Err(); err != nil {
			return err
		}
		tasks := []func(a blas64.General) error{b.ours}
		if b.theirs != nil {
			tasks = append(tasks, b.theirs)
		}
		took := make([]float64, 2)
		for j := range tasks {
			t := (i + j) % len(tasks)
			var err error
			if took[t], err = timed(tasks[t]); err != nil {
				return err
			}
		}
		if i == 0 && repeat > 1 { // warms up
			continue
		}
		ours, theirs, ratios = append(ours, took[0]), append(theirs, took[1]), append(ratios, took[1]/took[0])
	}
	if b.theirs == nil {
		fmt.Printf("| %s | %.1f |\n", b.name, median(ours))
		return nil
	}
	fmt.Printf("| %s | %.1f | %.1f | %.2f | %.2f–%.2f |\n", b.name, median(ours), median(theirs), median(ratios), slices.Min(ratios), slices.Max(ratios))
	return nil
}

// processorTime returns the nanoseconds that the process has computed for.
func processorTime() float64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // fails for a wrong argument only
	return float64(u.Utime.Nano() + u.Stime.Nano())
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return (x[len(x)/2] + x[(len(x)-1)/2]) / 2
}

func benchmarks(ctx context.Context, p *pool.Pool) []benchmark {
	var list []benchmark
	add := func(name string, prepare func() blas64.General, ours, theirs func(a blas64.General) error) {
		list = append(list, benchmark{name, prepare, ours, theirs})
	}
	for _, n := range []int{1024, 2048, 4096} {
		definite := func() blas64.General { return definite(n) }
		add(fmt.Sprintf("cholesky %d", n), definite,
			func(a blas64.General) error { return linalg.Cholesky(ctx, p, a) }, peer.cholesky)
		add(fmt.Sprintf("triangular inverse %d", n), func() blas64.General { return lower(n) },
			func(a blas64.General) error { return linalg.InverseLower(ctx, p, a) }, peer.inverseLower)
		add(fmt.Sprintf("upper of inverse %d", n), definite,
			func(a blas64.General) error { return linalg.InverseUpper(ctx, p, a) }, peer.inverseUpper)
	}
	for _, n := range []int{256, 512, 1024, 2048} {
		add(fmt.Sprintf("eigen %d", n), func() blas64.General { return definite(n) },
			func(a blas64.General) error { _, err := linalg.SymmetricEigen(ctx, p, a, true); return err }, peer.eigen)
	}
	add("qr 4096×288", func() blas64.General { return random(4096, 288) },
		func(a blas64.General) error { _, _, err := linalg.QR(ctx, p, a); return err }, peer.qr)
	for _, n := range []int{1024, 4096} {
		out := linalg.NewGeneral(n, n)
		add(fmt.Sprintf("f64 product %d", n), func() blas64.General { return random(n, n) },
			func(a blas64.General) error {
				return blas.Gemm64(ctx, p, gblas.NoTrans, gblas.NoTrans, 1, a, a, 0, out)
			},
			peerProduct(out))
	}
	dw := sync.OnceValue(func() blas32.General { return narrow(random(4096, 4096)) })
	for _, iterations := range []int{1, 2} {
		add(fmt.Sprintf("leading 256 of 4096, f32 products, %d iterations", iterations), func() blas64.General { dw(); return definite(4096) },
			func(s blas64.General) error {
				apply, err := linalg.ErrorOperator32(ctx, p, dw(), s)
				if err != nil {
					return err
				}
				_, _, err = linalg.LeadingEigen(ctx, p, 4096, apply, 256, 32, iterations, 1)
				return err
			}, nil)
	}
	return list
}

func peerProduct(out blas64.General) func(a blas64.General) error {
	if peer.gemm == nil {
		return nil
	}
	return func(a blas64.General) error { return peer.gemm(a, a, out) }
}

func random(rows, cols int) blas64.General {
	rng := rand.New(rand.NewPCG(uint64(rows), uint64(cols)))
	a := linalg.NewGeneral(rows, cols)
	for i := range a.Data {
		a.Data[i] = rng.NormFloat64()
	}
	return a
}

// definite returns a symmetric matrix with a dominant diagonal.
func definite(n int) blas64.General {
	a := random(n, n)
	for i := range n {
		for j := range i {
			a.Data[i*n+j] = a.Data[j*n+i]
		}
		a.Data[i*n+i] += 3 * float64(n)
	}
	return a
}

// lower returns a well-conditioned lower triangular matrix.
func lower(n int) blas64.General {
	a := random(n, n)
	for i := range n {
		clear(a.Data[i*n+i+1:][:n-i-1])
		a.Data[i*n+i] = float64(n)
	}
	return a
}

func narrow(a blas64.General) blas32.General {
	b := blas32.General{Rows: a.Rows, Cols: a.Cols, Stride: a.Stride, Data: make([]float32, len(a.Data))}
	for i, v := range a.Data {
		b.Data[i] = float32(v)
	}
	return b
}
