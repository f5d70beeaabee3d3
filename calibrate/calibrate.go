// Package calibrate accumulates the second moments of what layers read.
//
// It is told how a layer reads a value (as rows, or as the patches of a
// convolution) and is fed the value's samples from both activation streams.
// Blocks of at most blas.GramRows rows are multiplied in float32 and added to
// float64 masters; where blocks begin and end depends on the order of the rows
// alone, so the moments have the same bytes for any batch size and any number
// of workers.
package calibrate

import (
	"context"
	"fmt"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// Reading is how layers read a value. Layers with equal readings of a value
// share its moments.
type Reading struct {
	Inputs  int           `json:"inputs"`            // width of a row, when Patches is nil
	Patches *blas.Patches `json:"patches,omitempty"` // a convolution's windows, else nil
	Size    int           `json:"size"`              // values of one sample
}

// Rows returns the reading of a linear layer: a sample of size values is
// size/inputs rows.
func Rows(inputs, size int) Reading { return Reading{Inputs: inputs, Size: size} }

// Convolution returns the reading of a convolution.
func Convolution(g blas.Patches) Reading {
	return Reading{Inputs: g.Inputs(), Patches: &g, Size: g.Channels * g.Height * g.Width}
}

func (r Reading) groups() int {
	if r.Patches == nil {
		return 1
	}
	return r.Patches.Groups
}

func (r Reading) rowsPerSample() int {
	if r.Patches == nil {
		return r.Size / r.Inputs
	}
	return r.Patches.Rows()
}

// gather writes n rows of one group of a sample, beginning at row from.
func (r Reading) gather(dst blas32.General, at int, sample []float32, group, from, n int) {
	if r.Patches != nil {
		r.Patches.Gather(dst.Data[at*dst.Stride:], dst.Stride, sample, group, from, n)
		return
	}
	for i := range n {
		copy(dst.Data[(at+i)*dst.Stride:][:r.Inputs], sample[(from+i)*r.Inputs:][:r.Inputs])
	}
}

// Accumulator sums the moments of one value in one reading. It is not safe for
// concurrent use; its own work is spread over the pool.
type Accumulator struct {
	reading Reading
	pool    *pool.Pool
	moments *layer.Moments
	same    bool // the streams are, here
	filled  int  // rows waiting in the blocks
	x, xt   []blas32.General
}

// New returns an accumulator. When same is true the two streams are the same
// at this value: one is read, and G is left nil.
func New(p *pool.Pool, r Reading, same bool) *Accumulator {
	n, groups := r.Inputs, r.groups()
	m := &layer.Moments{Groups: groups, Inputs: n, H: squares(groups, n), SumXt: make([]float64, groups*n)}
	a := &Accumulator{reading: r, pool: p, moments: m, same: same}
	if same {
		m.SumX = m.SumXt
		return a
	}
	m.G, m.SumX = squares(groups, n), make([]float64, groups*n)
	return a
}

func squares(groups, n int) []blas64.General {
	s := make([]blas64.General, groups)
	for g := range s {
		s[g] = linalg.NewGeneral(n, n)
	}
	return s
}

func blocks(groups, n int) []blas32.General {
	s := make([]blas32.General, groups)
	for g := range s {
		s[g] = blas32.General{Rows: blas.GramRows, Cols: n, Stride: n, Data: make([]float32, blas.GramRows*n)}
	}
	return s
}

// Add takes whole samples of the original stream (x) and of the compressed one
// (xt). With same streams only xt is read.
func (a *Accumulator) Add(ctx context.Context, x, xt []float32) error {
	size := a.reading.Size
	if len(xt)%size != 0 || (!a.same && len(x) != len(xt)) {
		return fmt.Errorf("calibrate: %d and %d values are not samples of %d", len(x), len(xt), size)
	}
	perSample := a.reading.rowsPerSample()
	total := len(xt) / size * perSample
	for row := 0; row < total; {
		n := min(blas.GramRows-a.filled, total-row)
		if n == blas.GramRows && a.reading.Patches == nil {
			// A whole block of rows, as they stand.
			if err := a.sum(ctx, n, a.view(xt, row), a.view(x, row)); err != nil {
				return err
			}
			row += n
			continue
		}
		if err := a.gatherRows(ctx, x, xt, row, n); err != nil {
			return err
		}
		row += n
		if a.filled == blas.GramRows {
			if err := a.flush(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// view returns rows row … of samples that are read as rows.
func (a *Accumulator) view(samples []float32, row int) []blas32.General {
	n := a.reading.Inputs
	if len(samples) == 0 {
		return nil
	}
	return []blas32.General{{Rows: blas.GramRows, Cols: n, Stride: n, Data: samples[row*n:]}}
}

// gatherRows copies rows row … row+n−1 behind those that wait in the blocks.
func (a *Accumulator) gatherRows(ctx context.Context, x, xt []float32, row, n int) error {
	if a.xt == nil {
		a.xt = blocks(a.moments.Groups, a.reading.Inputs)
		if !a.same {
			a.x = blocks(a.moments.Groups, a.reading.Inputs)
		}
	}
	if err := a.fill(ctx, a.xt, xt, row, n); err != nil {
		return err
	}
	if !a.same {
		if err := a.fill(ctx, a.x, x, row, n); err != nil {
			return err
		}
	}
	a.filled += n
	return nil
}

// fill copies rows row … row+n−1 of the samples to the blocks.
func (a *Accumulator) fill(ctx context.Context, dst []blas32.General, samples []float32, row, n int) error {
	const chunk = 256
	perSample, size := a.reading.rowsPerSample(), a.reading.Size
	chunks := (n + chunk - 1) / chunk
	return a.pool.For(ctx, chunks*len(dst), func(task int) error {
		group, i := task/chunks, task%chunks*chunk
		for end := min(i+chunk, n); i < end; {
			sample, from := (row+i)/perSample, (row+i)%perSample
			take := min(end-i, perSample-from)
			a.reading.gather(dst[group], a.filled+i, samples[sample*size:][:size], group, from, take)
			i += take
		}
		return nil
	})
}

// flush sums the waiting rows and empties the blocks.
func (a *Accumulator) flush(ctx context.Context) error {
	n := a.filled
	a.filled = 0
	return a.sum(ctx, n, a.xt, a.x)
}

// sum adds the products of n rows of each group.
func (a *Accumulator) sum(ctx context.Context, n int, xts, xs []blas32.General) error {
	if n == 0 {
		return nil
	}
	for g, xt := range xts {
		xt.Rows = n
		if err := blas.AddGramUpper(ctx, a.pool, xt, a.moments.H[g]); err != nil {
			return err
		}
		blas.AddColumns(a.moments.SumXt[g*xt.Cols:], xt)
		if a.same {
			continue
		}
		x := xs[g]
		x.Rows = n
		if err := blas.AddGram(ctx, a.pool, xt, x, a.moments.G[g]); err != nil {
			return err
		}
		blas.AddColumns(a.moments.SumX[g*x.Cols:], x)
	}
	a.moments.Rows += int64(n)
	return nil
}

// Moments finishes the sums. The accumulator must not be used afterwards.
func (a *Accumulator) Moments(ctx context.Context) (*layer.Moments, error) {
	if err := a.flush(ctx); err != nil {
		return nil, err
	}
	for _, h := range a.moments.H {
		blas.Mirror(h)
	}
	return a.moments, nil
}

// energyChannels is how many channels one task sums, of rows of channels.
const energyChannels = 64

// Energy returns Σ(y−b)² for each channel of a layer's outputs, over samples
// and positions. Outputs are samples × channels × area; bias may be nil.
func Energy(ctx context.Context, p *pool.Pool, outputs []float32, channels, area int, bias []float32) ([]float64, error) {
	if bias == nil {
		bias = make([]float32, channels)
	}
	energy := make([]float64, channels)
	samples := len(outputs) / (channels * area)
	tasks := (channels + energyChannels - 1) / energyChannels
	err := p.For(ctx, tasks, func(t int) error {
		from, to := t*energyChannels, min((t+1)*energyChannels, channels)
		for s := range samples {
			sample := outputs[s*channels*area:][:channels*area]
			for c := from; c < to; c++ {
				sum := energy[c]
				for _, y := range sample[c*area:][:area] {
					d := float64(y - bias[c])
					sum += d * d
				}
				energy[c] = sum
			}
		}
		return nil
	})
	return energy, err
}
