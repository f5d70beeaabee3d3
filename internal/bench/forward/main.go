// Command forward times a Llama's forward pass in float32 against PyTorch's,
// written by hand in forward.py, where python3 or /usr/bin/python3 has torch:
// with the same random weights, alternating, by the median of paired ratios.
//
//	go run ./internal/bench/forward [-shape 1.1B] [-threads 2] [-pairs 7] [-plain]
//
// A ratio above 1 says that fettle is faster. The rate of fettle's product of
// 2048³, measured between the pairs, stands for what the processor can do.
package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/scratch"
	"github.com/fettle-dev/fettle/model"
)

var shapes = []shape{
	{"1.1B's", 2048, 5632, 32, 4, 32000, 4, 512},
	{"small", 288, 768, 6, 6, 4096, 16, 256},
}

// passes are a model's, by the names that forward.py has for them.
var passes = []string{"hidden", "logits"}

// rest is the time after which threads of OpenBLAS and OpenMP, which wait for
// work by spinning, and Go's collector leave the processors to the other.
const rest = 150 * time.Millisecond

func main() {
	match := flag.String("shape", "", "only shapes whose name holds this")
	threads := flag.Int("threads", 0, "only this number of threads; default 1 and 2")
	pairs := flag.Int("pairs", 7, "pairs of passes for each line")
	plain := flag.Bool("plain", false, "leave PyTorch's way to wait and to allocate as it is by default, which is slower")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := bench(ctx, *match, *threads, *pairs, *plain); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, match string, threads, pairs int, plain bool) error {
	if pairs < 1 || threads < 0 {
		return fmt.Errorf("%d pairs on %d threads: want 1 or more", pairs, threads)
	}
	counts := []int{1, 2}
	if threads > 0 {
		counts = []int{threads}
	}
	p, other := findPython(ctx), "no python3 with torch and numpy was found, so fettle runs alone"
	if p.path != "" {
		if plain {
			p.environment = nil
		}
		other = strings.TrimSpace(fmt.Sprintf("PyTorch %s of %s %s", p.version, p.path, strings.Join(p.environment, " ")))
	}
	fmt.Printf("fettle's kernels: %s; %s; %d processors, %s/%s, %s\n\n", blas.Kernels, other, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	for _, s := range shapes {
		fmt.Printf("%s: %d blocks, hidden %d, intermediate %d, %d heads, %d of keys, vocabulary %d, %d × %d tokens\n",
			s.name, blocks, s.hidden, s.inner, s.heads, s.kvHeads, s.vocabulary, s.sequences, s.length)
	}
	fmt.Println("\n| shape | pass | threads | fettle tokens/s | PyTorch tokens/s | ratio | least–most | fettle of GEMM 2048³ | PyTorch | GEMM 2048³ GFLOP/s | largest difference |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|")
	for _, s := range shapes {
		if !strings.Contains(s.name, match) {
			continue
		}
		if err := benchShape(ctx, s, p, counts, pairs); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func benchShape(ctx context.Context, s shape, p python, counts []int, pairs int) error {
	n, err := newNetwork(s)
	if err != nil {
		return err
	}
	folder, err := os.MkdirTemp("", "fettle-bench-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	weights := filepath.Join(folder, "weights")
	if p.path != "" {
		if err := n.write(weights); err != nil {
			return err
		}
	}
	for _, threads := range counts {
		c := newContest(n, threads, folder)
		if p.path != "" {
			if c.peer, err = startPeer(ctx, p, n, weights, threads); err != nil {
				return err
			}
		}
		for _, what := range passes {
			if err = c.row(ctx, what, pairs); err != nil {
				break
			}
		}
		if c.peer != nil {
			c.peer.stop()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// contest is a network that fettle and its peer, nil for none, run on the same
// number of threads.
type contest struct {
	network  *network
	threads  int
	folder   string // for files between the two
	pool     *pool.Pool
	space    *scratch.Space
	executor *model.Executor
	input    *model.Tensor
	peer     *peer
	a, b, c  blas32.General // of the product that is the measure
}

const gemmSize = 2048

func newContest(n *network, threads int, folder string) *contest {
	runtime.GOMAXPROCS(threads)
	p := pool.New(threads)
	kept := func(name string) ([]float32, error) {
		w, ok := n.weights[name]
		if !ok {
			return nil, fmt.Errorf("no weight %s", name)
		}
		return w, nil
	}
	matrix := func(seed uint64) blas32.General {
		return blas32.General{Rows: gemmSize, Cols: gemmSize, Stride: gemmSize, Data: random(seed, []int{gemmSize, gemmSize})}
	}
	executor := model.NewExecutor(n.graph, p, kept)
	space := scratch.New("", 0) // as the pipeline's executors have it
	executor.AllocateWith(space)
	return &contest{
		network: n, threads: threads, folder: folder, pool: p,
		executor: executor, space: space, input: model.NewTokens(n.sequences...),
		a: matrix(1), b: matrix(2), c: matrix(3),
	}
}

func (c *contest) pass(ctx context.Context, what string) (*model.Tensor, error) {
	if what == "hidden" {
		return c.executor.Hidden(ctx, c.input)
	}
	return c.executor.Forward(ctx, c.input)
}

// gemm returns the rate of the product that is the measure, in operations a
// second.
func (c *contest) gemm(ctx context.Context) (float64, error) {
	begin := time.Now()
	err := blas.Gemm(ctx, c.pool, blas.NoTrans, blas.NoTrans, 1, c.a, c.b, 0, c.c)
	return 2 * gemmSize * gemmSize * gemmSize / time.Since(begin).Seconds(), err
}

// row measures one pass and prints its row of the table.
func (c *contest) row(ctx context.Context, what string, pairs int) error {
	difference, err := c.compare(ctx, what) // which warms both up
	if err != nil {
		return err
	}
	if _, err := c.gemm(ctx); err != nil {
		return err
	}
	var ours, theirs, ratios, rates []float64
	for range pairs {
		time.Sleep(rest)
		rate, err := c.gemm(ctx)
		if err != nil {
			return err
		}
		begin := time.Now()
		y, err := c.pass(ctx, what)
		if err != nil {
			return err
		}
		x := time.Since(begin).Seconds()
		c.space.Free(y.Data)
		ours, rates = append(ours, x), append(rates, rate)
		if c.peer == nil {
			continue
		}
		time.Sleep(rest)
		d, err := c.peer.pass(what, "")
		if err != nil {
			return err
		}
		theirs, ratios = append(theirs, d.Seconds()), append(ratios, d.Seconds()/x)
	}
	tokens, peak := float64(c.network.shape.tokens()), median(rates)
	share := func(seconds []float64) float64 {
		return 100 * c.network.flops(what == "logits") / median(seconds) / peak
	}
	fmt.Printf("| %s | %s | %d | %.0f |", c.network.shape.name, what, c.threads, tokens/median(ours))
	if c.peer == nil {
		fmt.Printf(" | | | %.0f %% | | %.1f | |\n", share(ours), peak/1e9)
		return nil
	}
	fmt.Printf(" %.0f | %.2f | %.2f–%.2f | %.0f %% | %.0f %% | %.1f | %.1e of %.3g |\n",
		tokens/median(theirs), median(ratios), slices.Min(ratios), slices.Max(ratios),
		share(ours), share(theirs), peak/1e9, difference.most, difference.of)
	return nil
}

// difference is the largest between two results, and the largest value of one.
type difference struct{ most, of float64 }

// tolerance is of difference.most/difference.of, for sums in another order.
const tolerance = 1e-4

// compare runs a pass on both sides and compares what they compute.
func (c *contest) compare(ctx context.Context, what string) (difference, error) {
	var d difference
	y, err := c.pass(ctx, what)
	if err != nil {
		return d, err
	}
	defer c.space.Free(y.Data)
	if c.peer == nil {
		return d, nil
	}
	other, err := c.peer.result(what, c.folder)
	if err != nil {
		return d, err
	}
	if len(other) != len(y.Data) {
		return d, fmt.Errorf("PyTorch's %s has %d numbers, fettle's %d", what, len(other), len(y.Data))
	}
	for i, v := range y.Data {
		d.most = max(d.most, math.Abs(float64(v)-float64(other[i])))
		d.of = max(d.of, math.Abs(float64(v)))
	}
	if !(d.most <= tolerance*d.of) {
		return d, fmt.Errorf("PyTorch's %s differs by up to %g where the largest value is %g", what, d.most, d.of)
	}
	return d, nil
}

// median returns the middle value, the mean of two where their number is even.
func median(s []float64) float64 {
	s = slices.Sorted(slices.Values(s))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
