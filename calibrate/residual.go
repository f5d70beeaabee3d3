package calibrate

import (
	"context"
	"fmt"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// Sum is a residual sum that a layer of Outputs channels writes into. Y, R and RT
// have the layer's output shape over all samples: samples × Outputs × positions of
// a convolution, rows × Outputs of a linear layer.
type Sum struct {
	Outputs int
	Y       []float32 // the layer's outputs in the original model
	Bias    []float32 // that Y contains; nil for none
	R, RT   []float32 // the sum's other term, in the original and the compressed stream
	Factor  []float32 // what a normalization multiplies the layer's outputs by; nil for 1
}

// Residual returns the residual target of a layer that reads the compressed
// stream's samples xt. A channel whose factor is 0 has none: nothing that the
// layer does reaches the sum there. The cost is a product of xt's rows with
// Outputs columns, and memory two blocks of blas.GramRows rows.
func (r Reading) Residual(ctx context.Context, p *pool.Pool, xt []float32, s Sum) (*layer.Residual, error) {
	perSample, groups := r.rowsPerSample(), r.groups()
	samples := len(xt) / r.Size
	if len(xt)%r.Size != 0 || len(s.Y) != samples*perSample*s.Outputs || len(s.R) != len(s.Y) || len(s.RT) != len(s.Y) || s.Outputs%groups != 0 {
		return nil, fmt.Errorf("calibrate: %d, %d and %d values of %d outputs beside %d samples of %d", len(s.Y), len(s.R), len(s.RT), s.Outputs, samples, r.Size)
	}
	each := s.Outputs / groups
	out := &layer.Residual{Sum: make([]float64, s.Outputs), Energy: make([]float64, s.Outputs)}
	for range groups {
		out.Cross = append(out.Cross, linalg.NewGeneral(each, r.Inputs))
	}
	rows := blas32.General{Cols: s.Outputs, Stride: s.Outputs, Data: make([]float32, blas.GramRows*s.Outputs)}
	a := &Accumulator{reading: r, pool: p, moments: &layer.Moments{Groups: groups}, xt: blocks(groups, r.Inputs)}
	area := perSample
	if r.Patches == nil {
		area = 1 // outputs stand beside each other
	}
	for row := 0; row < samples*perSample; row += rows.Rows {
		rows.Rows = min(blas.GramRows, samples*perSample-row)
		if err := s.gather(ctx, p, rows, row, area, out); err != nil {
			return nil, err
		}
		if err := a.fill(ctx, a.xt, xt, row, rows.Rows); err != nil {
			return nil, err
		}
		blas.AddColumns(out.Sum, rows)
		for g := range groups {
			x := a.xt[g]
			x.Rows = rows.Rows
			d := blas32.General{Rows: rows.Rows, Cols: each, Stride: rows.Stride, Data: rows.Data[g*each:]}
			if err := blas.AddGram(ctx, p, d, x, out.Cross[g]); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// gather writes (R − R̃)/factor of rows row … to dst, and adds the targets'
// energies.
func (s Sum) gather(ctx context.Context, p *pool.Pool, dst blas32.General, row, area int, out *layer.Residual) error {
	tasks := (s.Outputs + energyChannels - 1) / energyChannels
	return p.For(ctx, tasks, func(t int) error {
		for c := t * energyChannels; c < min((t+1)*energyChannels, s.Outputs); c++ {
			var bias float32
			if s.Bias != nil {
				bias = s.Bias[c]
			}
			factor := float32(1)
			if s.Factor != nil {
				factor = s.Factor[c]
			}
			energy := out.Energy[c]
			for i := range dst.Rows {
				at := ((row+i)/area*s.Outputs+c)*area + (row+i)%area
				d := float32(0)
				if factor != 0 {
					d = (s.R[at] - s.RT[at]) / factor
				}
				dst.Data[i*dst.Stride+c] = d
				y := float64(s.Y[at]-bias) + float64(d)
				energy += y * y
			}
			out.Energy[c] = energy
		}
		return nil
	})
}
