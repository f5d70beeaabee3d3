package fitness

import (
	"context"
	"math"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/evaluate"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
)

// reference is what candidates' logits of some rows are held against.
type reference struct {
	measure Measure
	targets []int // by row, for Loss
	rows    []referenceRow
}

// referenceRow is the original's answer.
type referenceRow struct {
	logits     []float32 // of all outputs, or of top
	top        []int     // the likeliest outputs, for TopKKL
	normalizer float64   // log Σ e^logits
}

// fewRows is how many rows a task measures.
const fewRows = 8

func eachRow(ctx context.Context, p *pool.Pool, n int, do func(row int) error) error {
	return p.For(ctx, (n+fewRows-1)/fewRows, func(part int) error {
		for i := part * fewRows; i < min(n, (part+1)*fewRows); i++ {
			if err := do(i); err != nil {
				return err
			}
		}
		return nil
	})
}

// newReference takes the original's logits, which must stay as they are, unless the
// measure is Loss.
func newReference(ctx context.Context, p *pool.Pool, o Options, logits blas32.General, targets []int) (*reference, error) {
	r := &reference{measure: o.Measure, targets: targets}
	if o.Measure == Loss {
		return r, nil
	}
	r.rows = make([]referenceRow, logits.Rows)
	err := eachRow(ctx, p, logits.Rows, func(i int) error {
		z := row(logits, i)
		if !evaluate.Finite(z) {
			return problem("the original model has a logit that is NaN or infinite: check its weights and its input")
		}
		one := referenceRow{logits: z}
		if o.Measure == TopKKL && o.TopK < len(z) {
			one.top = evaluate.MostLikely(z, o.TopK)
			one.logits = make([]float32, len(one.top))
			gather(one.logits, z, one.top)
		}
		one.normalizer = vec.LogSumExp(one.logits)
		r.rows[i] = one
		return nil
	})
	return r, err
}

// measureRows writes what a candidate's logits add for each row: NaN where one is
// not finite.
func (r *reference) measureRows(ctx context.Context, p *pool.Pool, logits blas32.General, dst []float64) error {
	return eachRow(ctx, p, logits.Rows, func(i int) error {
		dst[i] = r.of(i, row(logits, i))
		return nil
	})
}

func (r *reference) of(i int, y []float32) float64 {
	if !evaluate.Finite(y) {
		return math.NaN()
	}
	if r.measure == Loss {
		return max(vec.LogSumExp(y)-float64(y[r.targets[i]]), 0)
	}
	original := &r.rows[i]
	if original.top != nil {
		kept := make([]float32, len(original.top))
		gather(kept, y, original.top)
		y = kept
	}
	return evaluate.Divergence(original.logits, y, original.normalizer, vec.LogSumExp(y))
}

func gather(dst, src []float32, ids []int) {
	for k, id := range ids {
		dst[k] = src[id]
	}
}

func row(m blas32.General, i int) []float32 { return m.Data[i*m.Stride:][:m.Cols] }
