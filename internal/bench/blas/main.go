// Command blas times fettle's matrix products against gonum's and, when built
// with -tags openblas, against OpenBLAS: in one run, alternating, by the median
// of paired ratios.
//
//	go run -tags openblas ./internal/bench/blas
//
// A ratio above 1 says that fettle is faster. The spread is that of the middle
// half of the pairs. The limit is what the processor's multiply-add units were
// measured to do in a loop without memory, so many times as there are threads.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"slices"
	"time"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/bench/blas/peak"
	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

// peer is another library.
type peer struct {
	name    string
	threads func(n int)
	gemm    func(tA, tB blas.Transpose, a, b, c blas32.General)
	gemm64  func(tA, tB blas.Transpose, a, b, c blas64.General)
	syrk    func(a, c blas32.General) // C = AᵀA, upper triangle
	idle    time.Duration             // after which its threads no longer spin
	only    func(l line) bool
}

// peers is filled by files with build tags.
var peers []peer

// line is one row of the table: a product of m×n×k, or the Gram of k×n.
type line struct {
	name    string
	m, n, k int
	tA, tB  blas.Transpose
	gram    bool
	f64     bool
}

func (l line) flops() float64 {
	f := 2 * float64(l.m) * float64(l.n) * float64(l.k)
	if l.gram {
		f /= 2
	}
	return f
}

func lines() []line {
	var out []line
	for _, n := range []int{512, 1024, 2048, 4096} {
		out = append(out, line{name: fmt.Sprintf("%d³", n), m: n, n: n, k: n, tA: blas.NoTrans, tB: blas.NoTrans})
	}
	gemm := func(m, n, k int, tA, tB blas.Transpose, note string) {
		name := fmt.Sprintf("%d×%d×%d", m, n, k)
		if tB == blas.Trans {
			name += " ABᵀ"
		}
		if tA == blas.Trans {
			name += " AᵀB"
		}
		out = append(out, line{name: name + note, m: m, n: n, k: k, tA: tA, tB: tB})
	}
	gemm(1024, 1024, 1024, blas.NoTrans, blas.Trans, "")
	gemm(1024, 1024, 1024, blas.Trans, blas.NoTrans, "")
	gemm(2048, 288, 768, blas.NoTrans, blas.Trans, "")
	gemm(2048, 768, 288, blas.NoTrans, blas.Trans, "")
	gemm(64, 4096, 4096, blas.NoTrans, blas.NoTrans, "")
	gemm(64, 4096, 4096, blas.NoTrans, blas.Trans, "")
	for _, m := range []int{1, 4, 8} {
		gemm(m, 4096, 4096, blas.NoTrans, blas.NoTrans, "")
		gemm(m, 4096, 4096, blas.NoTrans, blas.Trans, "")
	}
	for _, s := range [][2]int{{2048, 144}, {2048, 288}, {2048, 576}, {4096, 1024}, {16384, 576}, {4096, 4096}} {
		out = append(out, line{name: fmt.Sprintf("Gram %d×%d", s[0], s[1]), m: s[1], n: s[1], k: s[0], gram: true})
	}
	for _, n := range []int{256, 1024, 2048} {
		out = append(out, line{name: fmt.Sprintf("f64 %d³", n), m: n, n: n, k: n, tA: blas.NoTrans, tB: blas.NoTrans, f64: true})
	}
	// The products that convolutions are: outputs × positions × inputs.
	for _, s := range [][3]int{{16, 1024, 144}, {32, 256, 288}, {64, 64, 576}} {
		gemm(s[0], s[1], s[2], blas.NoTrans, blas.NoTrans, " ResNet-20")
	}
	for _, s := range [][3]int{
		{64, 12544, 147},
		{64, 3136, 576},
		{128, 784, 1152},
		{256, 196, 2304},
		{512, 49, 4608},
		{64, 3136, 256},
		{256, 3136, 64},
		{512, 784, 128},
		{1024, 196, 256},
		{2048, 49, 512},
	} {
		gemm(s[0], s[1], s[2], blas.NoTrans, blas.NoTrans, " ResNet-50")
	}
	return out
}

func random[T float32 | float64](n int) []T {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	s := make([]T, n)
	for i := range s {
		s[i] = T(rng.Float64() - 0.5)
	}
	return s
}

func mat(rows, cols int) blas32.General {
	return blas32.General{Rows: rows, Cols: cols, Stride: cols, Data: random[float32](rows * cols)}
}

func mat64(rows, cols int) blas64.General {
	return blas64.General{Rows: rows, Cols: cols, Stride: cols, Data: random[float64](rows * cols)}
}

func shape(t blas.Transpose, rows, cols int) (int, int) {
	if t == blas.Trans {
		return cols, rows
	}
	return rows, cols
}

// contest returns the two functions that compete on a line.
func contest(l line, p *pool.Pool, other peer) (ours, theirs func()) {
	ctx := context.Background()
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	switch {
	case l.gram:
		a, c, m := mat(l.k, l.n), mat(l.n, l.n), mat64(l.n, l.n)
		return func() { must(blas.AddGramUpper(ctx, p, a, m)) }, func() { other.syrk(a, c) }
	case l.f64:
		a, b, c := mat64(shape(l.tA, l.m, l.k)), mat64(shape(l.tB, l.k, l.n)), mat64(l.m, l.n)
		return func() { must(blas.Gemm64(ctx, p, l.tA, l.tB, 1, a, b, 0, c)) }, func() { other.gemm64(l.tA, l.tB, a, b, c) }
	}
	a, b, c := mat(shape(l.tA, l.m, l.k)), mat(shape(l.tB, l.k, l.n)), mat(l.m, l.n)
	return func() { must(blas.Gemm(ctx, p, l.tA, l.tB, 1, a, b, 0, c)) }, func() { other.gemm(l.tA, l.tB, a, b, c) }
}

// clock is the time that passes, or with -cpu the processor time that the
// process gets, which on a busy machine still tells something of one thread.
var clock = wall

var began = time.Now()

func wall() float64 { return time.Since(began).Seconds() }

// timed runs f so many times and returns seconds for one.
func timed(f func(), times int) float64 {
	start := clock()
	for range times {
		f()
	}
	return (clock() - start) / float64(times)
}

func quantile(s []float64, q float64) float64 {
	s = slices.Sorted(slices.Values(s))
	return s[int(q*float64(len(s)-1)+0.5)]
}

func main() {
	match := flag.String("lines", "", "only lines that match this regular expression")
	least := flag.Duration("time", 30*time.Millisecond, "least time of one measurement")
	pairs := flag.Int("pairs", 11, "pairs of measurements for each line")
	most := flag.Int("threads", 2, "most threads")
	cpu := flag.Bool("cpu", false, "measure processor time, and one thread only")
	flag.Parse()
	if *cpu {
		clock, *most = cpuTime, 1
	}
	only, err := regexp.Compile(*match)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	fmt.Printf("fettle's kernels: %s; %d processors, %s/%s, %s\n\n", blas.Kernels, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	fmt.Println("| product (m×n×k) | threads | peer | ratio | spread | fettle GFLOP/s | peer GFLOP/s | of the limit |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	for _, l := range lines() {
		if !only.MatchString(l.name) {
			continue
		}
		for threads := 1; threads <= *most; threads++ {
			for _, other := range peers {
				if other.only != nil && !other.only(l) {
					continue
				}
				measure(l, threads, other, *least, *pairs)
			}
		}
	}
}

func measure(l line, threads int, other peer, least time.Duration, pairs int) {
	runtime.GOMAXPROCS(threads)
	if other.threads != nil {
		other.threads(threads)
	}
	ours, theirs := contest(l, pool.New(threads), other)
	ours()
	theirs()
	a, b := int(least.Seconds()/timed(ours, 1))+1, int(least.Seconds()/timed(theirs, 1))+1
	var ratio, us, them, limit []float64
	for range pairs {
		if threads > 1 {
			time.Sleep(other.idle)
		}
		ours() // after the pause, and below after the other's turn
		x := timed(ours, a)
		limit = append(limit, peak.GFLOPS(l.f64, blas.Kernels == "avx512", clock))
		theirs()
		y := timed(theirs, b)
		ratio, us, them = append(ratio, y/x), append(us, x), append(them, y)
	}
	rate := func(s []float64) float64 { return l.flops() / quantile(s, 0.5) / 1e9 }
	fmt.Printf("| %s | %d | %s | %.2f | %.2f–%.2f | %.1f | %.1f | %.0f %% |\n", l.name, threads, other.name,
		quantile(ratio, 0.5), quantile(ratio, 0.25), quantile(ratio, 0.75), rate(us), rate(them),
		100*rate(us)/quantile(limit, 0.5)/float64(threads))
}
