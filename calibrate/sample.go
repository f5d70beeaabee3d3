package calibrate

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// Sample draws n rows, or all where there are fewer, of all samples of the
// original stream (x) and of the compressed one (xt), the same of both. x is nil
// where the two are the same. The draw depends on seed and the number of rows
// alone, and the rows of a smaller draw are the first of a larger one.
//
// Cost: n rows are copied; n×Inputs float32s for each stream and group.
func (r Reading) Sample(ctx context.Context, p *pool.Pool, x, xt []float32, n int, seed string) (*layer.Sample, error) {
	if len(xt)%r.Size != 0 || (x != nil && len(x) != len(xt)) || n < 1 {
		return nil, fmt.Errorf("calibrate: %d rows of %d and %d values of samples of %d", n, len(x), len(xt), r.Size)
	}
	rows := draw(seed, len(xt)/r.Size*r.rowsPerSample(), n)
	s := &layer.Sample{}
	var err error
	if s.Xt, err = r.rows(ctx, p, xt, rows); err != nil || x == nil {
		return s, err
	}
	s.X, err = r.rows(ctx, p, x, rows)
	return s, err
}

// rows copies some rows of the samples.
func (r Reading) rows(ctx context.Context, p *pool.Pool, samples []float32, rows []int) ([]blas32.General, error) {
	const chunk = 64
	list := make([]blas32.General, r.groups())
	for g := range list {
		list[g] = blas32.General{Rows: len(rows), Cols: r.Inputs, Stride: r.Inputs, Data: make([]float32, len(rows)*r.Inputs)}
	}
	chunks, perSample := (len(rows)+chunk-1)/chunk, r.rowsPerSample()
	return list, p.For(ctx, chunks*len(list), func(task int) error {
		group, from := task/chunks, task%chunks*chunk
		for i := from; i < min(from+chunk, len(rows)); i++ {
			r.gather(list[group], i, samples[rows[i]/perSample*r.Size:][:r.Size], group, rows[i]%perSample, 1)
		}
		return nil
	})
}

// draw returns the first n of a random order of 0 … total−1: Fisher and Yates'
// shuffle, of which only the places that were touched are kept.
func draw(seed string, total, n int) []int {
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(seed))                            // does not fail
	rng := rand.New(rand.NewPCG(hash.Sum64(), 0x73616d706c65)) // the second word separates these draws from other users of the seed
	moved := map[int]int{}
	at := func(i int) int {
		if v, ok := moved[i]; ok {
			return v
		}
		return i
	}
	rows := make([]int, min(n, total))
	for i := range rows {
		j := i + rng.IntN(total-i)
		rows[i], moved[j] = at(j), at(i)
	}
	return rows
}
