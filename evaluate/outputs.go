package evaluate

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/record"
)

// Outputs compares two models whose outputs are neither an image's classes nor a
// prediction of the next token, row by row: a row is what they give for a token,
// a sequence or an image. Logits are compared by KL(original ‖ compressed) and by
// their largest; other numbers by the squared error of the compressed model's,
// relative to the energy of the original's.
//
// Sums are float64 in the order of the rows: the result has the same bytes for
// any division into blocks and any number of workers.
type Outputs struct {
	// Pool's workers measure the rows of a block; nil leaves them to the caller.
	Pool *pool.Pool

	logits     bool
	width      int
	rows, same int64
	kl         float64
	squares    float64 // of the differences
	energy     float64
}

// NewOutputs returns a measurement of rows of width numbers, which are logits or
// not.
func NewOutputs(width int, logits bool) *Outputs { return &Outputs{width: width, logits: logits} }

// Add measures rows of both models. It fails with *Error, whose Sample is the row,
// on a number that is not finite and on shapes that do not fit; the measurement is
// then as it was before.
func (o *Outputs) Add(original, compressed blas32.General) error {
	if original.Rows != compressed.Rows || original.Cols != o.width || compressed.Cols != o.width || o.width < 1 {
		return &Error{Sample: -1, Problem: fmt.Sprintf("%d×%d outputs beside %d×%d of rows of %d",
			original.Rows, original.Cols, compressed.Rows, compressed.Cols, o.width)}
	}
	for _, m := range []blas32.General{original, compressed} {
		if m.Rows > 0 && (m.Stride < m.Cols || len(m.Data) < (m.Rows-1)*m.Stride+m.Cols) {
			return &Error{Sample: -1, Problem: fmt.Sprintf("%d numbers with stride %d do not hold %d×%d outputs", len(m.Data), m.Stride, m.Rows, m.Cols)}
		}
	}
	type answer struct {
		same                bool
		kl, squares, energy float64
	}
	answers := make([]answer, original.Rows)
	p := o.Pool
	if p == nil {
		p = pool.New(1)
	}
	err := p.For(context.Background(), original.Rows, func(i int) error {
		z, y := row(original, i), row(compressed, i)
		at := int(o.rows) + i
		if err := finiteOutputs("original", z, at); err != nil {
			return err
		}
		if err := finiteOutputs("compressed", y, at); err != nil {
			return err
		}
		a := &answers[i]
		if o.logits {
			a.same = vec.Argmax(z) == vec.Argmax(y)
			a.kl = Divergence(z, y, vec.LogSumExp(z), vec.LogSumExp(y))
			return nil
		}
		for c, v := range z {
			d := float64(v) - float64(y[c])
			a.squares += d * d
			a.energy += float64(v) * float64(v)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, a := range answers {
		o.rows++
		if a.same {
			o.same++
		}
		o.kl += a.kl
		o.squares += a.squares
		o.energy += a.energy
	}
	return nil
}

func finiteOutputs(model string, z []float32, at int) error {
	if Finite(z) {
		return nil
	}
	for c, v := range z {
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return &Error{Model: model, Sample: at, Problem: fmt.Sprintf("output %d is %v: check the model's weights and its input", c, v)}
		}
	}
	return nil
}

// Result returns what was measured, under the name of the task. It fails with *Error where
// there was no row, and where all of the original's numbers are 0, to which no
// error is relative.
func (o *Outputs) Result(task string) (*record.OutputEvaluation, error) {
	if o.rows == 0 {
		return nil, &Error{Sample: -1, Problem: "no output was compared: give samples"}
	}
	e := &record.OutputEvaluation{Task: task, Rows: o.rows}
	if o.logits {
		kl, agreement := o.kl/float64(o.rows), 100*float64(o.same)/float64(o.rows)
		e.KL, e.Agreement = &kl, &agreement
		return e, nil
	}
	if o.energy == 0 {
		return nil, &Error{Model: "original", Sample: -1, Problem: "all outputs are 0: no error is relative to them"}
	}
	relative := o.squares / o.energy
	e.RelativeError = &relative
	return e, nil
}
