// Command gpfq measures GPFQ in Gram form, which fettle uses, beside the data
// form in which its authors state it (Lybrand and Saab, arXiv 2010.11189, §2).
//
//	go run ./internal/bench/gpfq [-shapes 64x576,256x1024] [-rows 1024,16384] [-workers 1]
//
// The data form walks over all rows of the data for each weight, so its time
// grows with them; in Gram form only the sums H and G do, once for all outputs.
// The Gram form's time includes making H and G from the data, the target's
// energy, and all else that quantize.Solve does: the bound, and the errors of the
// result and of nearest rounding. The data form is given the data column by
// column, the alphabet's step and the columns' squares, and measures no more than
// its last residual. Codes may differ where a value lies between two levels:
// H and G sum 384 products at a time in float32.
package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/quantize"
)

const (
	bits   = 4
	levels = 1 << (bits - 1) // of the alphabet on either side of 0

	// residualBytes is how much of the residuals of some outputs stays in a
	// core's second cache while the columns go by.
	residualBytes = 512 << 10
)

func main() {
	shapes := flag.String("shapes", "64x576,256x1024,1024x1024", "outputs x inputs of layers, divided by commas")
	rows := flag.String("rows", "1024,4096,16384", "rows of the data, divided by commas")
	workers := flag.Int("workers", 1, "number of workers")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := bench(ctx, *shapes, *rows, *workers); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, shapes, rows string, workers int) error {
	p := pool.New(workers)
	fmt.Println("| layer | rows of data | H and G s | Gram form s | data form, float32 s | multiple | other codes | data form, float64 s | multiple | other codes | errors differ by |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|")
	for shape := range strings.SplitSeq(shapes, ",") {
		var out, in int
		if _, err := fmt.Sscanf(shape, "%dx%d", &out, &in); err != nil || out < 1 || in < 1 {
			return fmt.Errorf("shape %q: want outputs x inputs, such as 256x1024", shape)
		}
		for text := range strings.SplitSeq(rows, ",") {
			m, err := strconv.Atoi(text)
			if err != nil || m < 1 {
				return fmt.Errorf("rows %q: want a positive number", text)
			}
			if err := compare(ctx, p, shape, newTask(out, in, m)); err != nil {
				return err
			}
		}
	}
	return nil
}

// task is a layer and the data that it reads in both streams, m×in.
type task struct {
	weight, x, xt blas32.General
}

// newTask draws inputs of unequal size that follow each other, of which the
// compressed stream's differ by a tenth.
func newTask(out, in, m int) task {
	r := rand.New(rand.NewPCG(uint64(out), uint64(in)))
	t := task{weight: matrix(out, in), x: matrix(m, in), xt: matrix(m, in)}
	for i := range t.weight.Data {
		t.weight.Data[i] = float32(r.NormFloat64())
	}
	size := make([]float32, in)
	for i := range size {
		size[i] = float32(0.2 + r.ExpFloat64())
	}
	for i := range m {
		last := 0.0
		for j := range in {
			last = 0.8*last + 0.6*r.NormFloat64()
			v := size[j] * float32(last)
			t.x.Data[i*in+j], t.xt.Data[i*in+j] = v, v+0.1*size[j]*float32(r.NormFloat64())
		}
	}
	return t
}

// compare prints one row of the table.
func compare(ctx context.Context, p *pool.Pool, shape string, t task) error {
	var gram, sums float64
	var s *layer.Solution
	for range 3 { // the first grows the heap
		began := time.Now()
		problem, err := t.problem(ctx, p)
		if err != nil {
			return err
		}
		made := time.Since(began).Seconds()
		s, err = quantize.Solve(ctx, p, problem, quantize.Options{Method: quantize.GPFQ, Bits: bits, Alphabet: quantize.AlphabetGPFQ})
		if err != nil {
			return err
		}
		if took := time.Since(began).Seconds(); gram == 0 || took < gram {
			gram, sums = took, made
		}
	}
	single, double := kernels[float32]{vec.Dot, vec.Axpy}, kernels[float64]{vec.Dot64, vec.Axpy64}
	codes32, _, seconds32, err := run(ctx, p, t, single, s.Grid.Scales[0])
	if err != nil {
		return err
	}
	codes64, residual, seconds64, err := run(ctx, p, t, double, s.Grid.Scales[0])
	if err != nil {
		return err
	}
	fmt.Printf("| %s | %d | %.3f | %.3f | %.3f | %.1f | %d of %d | %.3f | %.1f | %d | %.0e |\n", shape, t.x.Rows, sums, gram,
		seconds32, seconds32/gram, different(codes32, s.Codes), len(s.Codes),
		seconds64, seconds64/gram, different(codes64, s.Codes), math.Abs(residual-s.Errors.Solved)/s.Errors.Solved)
	return nil
}

func different(a, b []int8) int {
	n := 0
	for i, c := range a {
		if c != b[i] {
			n++
		}
	}
	return n
}

// problem makes the moments of the data.
func (t task) problem(ctx context.Context, p *pool.Pool) (*layer.Problem, error) {
	out, in := t.weight.Rows, t.weight.Cols
	h, g := linalg.NewGeneral(in, in), linalg.NewGeneral(in, in)
	energy := make([]float64, out)
	m := &layer.Moments{
		Rows: int64(t.x.Rows), Groups: 1, Inputs: in, H: []blas64.General{h}, G: []blas64.General{g},
		SumX: make([]float64, in), SumXt: make([]float64, in), Energy: map[string][]float64{"layer": energy},
	}
	for from := 0; from < t.x.Rows; from += blas.GramRows {
		x, xt := part(t.x, from), part(t.xt, from)
		if err := blas.AddGramUpper(ctx, p, xt, h); err != nil {
			return nil, err
		}
		if err := blas.AddGram(ctx, p, xt, x, g); err != nil {
			return nil, err
		}
		y := matrix(x.Rows, out)
		if err := blas.Gemm(ctx, p, blas.NoTrans, blas.Trans, 1, x, t.weight, 0, y); err != nil {
			return nil, err
		}
		for i, v := range y.Data {
			energy[i%out] += float64(v) * float64(v)
		}
		blas.AddColumns(m.SumX, x)
		blas.AddColumns(m.SumXt, xt)
	}
	blas.Mirror(h)
	return &layer.Problem{
		Layer: "layer", Kind: layer.Linear, Shape: []int{out, in}, Groups: 1, Weight: t.weight, ScaleType: dtype.F32, Moments: m,
	}, nil
}

func part(a blas32.General, from int) blas32.General {
	n := min(blas.GramRows, a.Rows-from)
	return blas32.General{Rows: n, Cols: a.Cols, Stride: a.Stride, Data: a.Data[from*a.Stride:]}
}

func matrix(rows, cols int) blas32.General {
	return blas32.General{Rows: rows, Cols: cols, Stride: cols, Data: make([]float32, rows*cols)}
}

// kernels are what the data form consists of.
type kernels[T float32 | float64] struct {
	dot  func(x, y []T) T
	axpy func(a T, x, y []T)
}

// columns returns the columns of a matrix, one after the other.
func columns[T float32 | float64](a blas32.General) [][]T {
	list := make([][]T, a.Cols)
	for j := range list {
		list[j] = make([]T, a.Rows)
		for i := range list[j] {
			list[j][i] = T(a.Data[i*a.Stride+j])
		}
	}
	return list
}

// run times the data form, and returns its codes and Σ‖u‖². The best of three
// times counts, unless one takes a second or more.
func run[T float32 | float64](ctx context.Context, p *pool.Pool, t task, k kernels[T], step float32) (codes []int8, residual, seconds float64, err error) {
	d := dataForm[T]{
		kernels: k, weight: t.weight, x: columns[T](t.x), xt: columns[T](t.xt), squares: make([]T, t.x.Cols),
		step: step, codes: make([]int8, t.weight.Rows*t.weight.Cols), residuals: make([]float64, t.weight.Rows),
	}
	for i, column := range d.xt {
		d.squares[i] = k.dot(column, column)
	}
	seconds = math.Inf(1)
	for range 3 {
		began := time.Now()
		if err := d.solve(ctx, p, t.x.Rows); err != nil {
			return nil, 0, 0, err
		}
		if seconds = min(seconds, time.Since(began).Seconds()); seconds >= 1 {
			break
		}
	}
	for _, v := range d.residuals {
		residual += v
	}
	return d.codes, residual, seconds, nil
}

// dataForm is GPFQ as its authors state it: for each output u = 0, then for each
// input in turn
//
//	u += w_t·X_t,  v = ⟨X̃_t, u⟩/‖X̃_t‖²,  q_t = Q(v),  u −= q_t·X̃_t
type dataForm[T float32 | float64] struct {
	kernels[T]
	weight  blas32.General
	x, xt   [][]T // columns of the data
	squares []T   // ‖X̃_t‖²
	step    float32

	codes     []int8
	residuals []float64 // ‖u‖² of each output
}

// solve takes as many outputs at a time as leave their u in the cache.
func (d *dataForm[T]) solve(ctx context.Context, p *pool.Pool, m int) error {
	out, in := d.weight.Rows, d.weight.Cols
	block := max(1, residualBytes/(m*int(unsafe.Sizeof(d.squares[0]))))
	return p.For(ctx, (out+block-1)/block, func(b int) error {
		first := b * block
		u := make([][]T, min(block, out-first))
		for r := range u {
			u[r] = make([]T, m)
		}
		for i := range in {
			if err := ctx.Err(); err != nil {
				return err
			}
			for r := range u {
				at := (first+r)*in + i
				d.axpy(T(d.weight.Data[at]), d.x[i], u[r])
				code := nearest(float64(d.dot(d.xt[i], u[r])/d.squares[i]), d.step)
				d.axpy(-T(d.step*float32(code)), d.xt[i], u[r])
				d.codes[at] = int8(code)
			}
		}
		for r := range u {
			d.residuals[first+r] = float64(d.dot(u[r], u[r]))
		}
		return nil
	})
}

// nearest returns the alphabet's code of v.
func nearest(v float64, step float32) int {
	size := min(math.Round(math.Abs(v/float64(step))), levels)
	if v < 0 {
		return -int(size)
	}
	return int(size)
}
