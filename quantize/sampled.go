package quantize

import (
	"context"
	"math"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// sample is what the sampled form of AdaRound reads of a layer: for each group,
// the m rows that targets are computed from and those that the weights read.
type sample struct {
	wanted, read []blas32.General // m×inputs
	columns      []blas32.General // read, transposed
	diagonal     []float64        // mean square of an input that is read

	// Added to wanted and read outputs, by row of the weight; nil for 0. Inputs
	// that are centred leave it to the bias to put the original's mean back.
	wantedMean, readMean []float64
}

// newSample takes the first rows of the problem's sample. Without Align targets
// are X̃Wᵀ, as they are for all methods.
func (s *solver) newSample() *sample {
	m := s.Problem.Moments
	n := min(s.o.AdaRound.Rows, m.Sample.Rows())
	p := &sample{}
	for g := range m.Groups {
		xt := m.Sample.Xt[g]
		xt.Rows = n
		if s.o.Centre {
			xt = centred(xt, m.SumXt[g*m.Inputs:][:m.Inputs], m.Rows)
		}
		x := m.Sample.Original(g)
		x.Rows = n
		if !s.o.Align {
			x = xt
		}
		p.wanted, p.read, p.columns = append(p.wanted, x), append(p.read, xt), append(p.columns, transposed32(xt))
		p.diagonal = append(p.diagonal, vec.SumSquares(xt.Data[:n*xt.Stride])/float64(n*m.Inputs))
	}
	if !s.o.Centre {
		return p
	}
	p.readMean = make([]float64, s.target.Rows)
	for r := range p.readMean {
		mean := m.SumX[s.Problem.Group(r)*m.Inputs:][:m.Inputs]
		for j, w := range rowOf32(s.Problem.Weight, r) {
			p.readMean[r] += float64(w) * mean[j] / float64(m.Rows)
		}
	}
	if !s.o.Align {
		p.wantedMean = p.readMean
	}
	return p
}

func transposed32(a blas32.General) blas32.General {
	t := blas32.General{Rows: a.Cols, Cols: a.Rows, Stride: a.Rows, Data: make([]float32, a.Rows*a.Cols)}
	for i := range a.Rows {
		for j, v := range rowOf32(a, i) {
			t.Data[j*t.Stride+i] = v
		}
	}
	return t
}

// centred returns a copy of rows less sum/count.
func centred(rows blas32.General, sum []float64, count int64) blas32.General {
	c := blas32.General{Rows: rows.Rows, Cols: rows.Cols, Stride: rows.Cols, Data: make([]float32, rows.Rows*rows.Cols)}
	for i := range c.Rows {
		for j, v := range rowOf32(rows, i) {
			c.Data[i*c.Stride+j] = float32(float64(v) - sum[j]/float64(count))
		}
	}
	return c
}

// sampleBatch is about how many rows a step reads.
const sampleBatch = 512

// sampled is the reconstruction error of some rows of a weight over a sample,
// what follows the layer included (AdaRound, eq. 25):
//
//	Σ_rows 1/m·‖f(a·y* + c) − f(a·X̃ŵ + c)‖²
//
// In the relaxation each row's is divided by (a·step)², the inputs' mean square
// and the mean of f′² at the target. So λ means the same in every layer and row,
// and for f(z) = z the same as in the Gram form.
type sampled struct {
	c            *choices
	after        *layer.After   // nil: f(z) = z
	x            blas32.General // what the weights read, m×n
	columns      blas32.General // the same, transposed
	scale, shift []float32      // of each row
	wanted       blas32.General // f(a·y* + c), rows×m
	start        blas32.General // a·X̃ŵ + c at V₀, rows×m
	width        []float32      // a·step
	weight       []float32      // what a row's error is multiplied by, times width

	z     []float32 // rows×batch
	slope []float32 // f′ of one row
}

func (s *solver) newSampled(ctx context.Context, c *choices, b gram.Block, p *sample) (*sampled, error) {
	rows, x := c.target.Rows, p.read[b.Group]
	e := &sampled{
		c: c, after: s.Problem.After, x: x, columns: p.columns[b.Group], scale: make([]float32, rows), shift: make([]float32, rows),
		width: make([]float32, rows), weight: make([]float32, rows),
		z: make([]float32, rows*min(x.Rows, sampleBatch)), slope: make([]float32, x.Rows),
	}
	w := s.Problem.Weight
	w.Rows, w.Data = rows, w.Data[b.From*w.Stride:]
	for r := range rows {
		e.scale[r] = 1
		if e.after != nil && e.after.Scale != nil {
			e.scale[r] = e.after.Scale[b.From+r]
		}
		if e.after != nil && e.after.Shift != nil {
			e.shift[r] = e.after.Shift[b.From+r]
		}
	}
	var err error
	if e.wanted, err = e.outputs(ctx, p.wanted[b.Group], w, meansOf(p.wantedMean, b)); err != nil {
		return nil, err
	}
	if p.readMean != nil { // from here on, in the shift
		for r, mean := range meansOf(p.readMean, b) {
			e.shift[r] += float32(float64(e.scale[r]) * mean)
		}
	}
	at := blas32.General{Rows: rows, Cols: w.Cols, Stride: w.Cols, Data: make([]float32, rows*w.Cols)}
	for k := range at.Data {
		frac, _ := c.fraction(k)
		at.Data[k] = float32(c.down[k] + frac*(c.up[k]-c.down[k]))
	}
	if e.start, err = e.outputs(ctx, x, at, nil); err != nil {
		return nil, err
	}
	for r := range rows {
		wanted := rowOf32(e.wanted, r)
		activate(e.after, wanted, e.slope)
		width := float64(e.scale[r]) * c.rowStep(r)
		seen := max(vec.SumSquares(e.slope)/float64(x.Rows), 1/float64(x.Rows))
		e.width[r] = float32(width)
		if by := float32(1 / (width * p.diagonal[b.Group] * seen)); finite(float64(by)) {
			e.weight[r] = by
		}
	}
	return e, nil
}

// meansOf returns the means of a block's rows; nil of nil.
func meansOf(means []float64, b gram.Block) []float64 {
	if means == nil {
		return nil
	}
	return means[b.From:b.To]
}

// outputs returns a·(xw + mean) + c of each row of w (rows×n) and x (m×n).
func (e *sampled) outputs(ctx context.Context, x, w blas32.General, mean []float64) (blas32.General, error) {
	z := blas32.General{Rows: w.Rows, Cols: x.Rows, Stride: x.Rows, Data: make([]float32, w.Rows*x.Rows)}
	if err := blas.Gemm(ctx, nil, blas.NoTrans, blas.Trans, 1, w, x, 0, z); err != nil {
		return z, err
	}
	for r := range z.Rows {
		shift := float64(e.shift[r])
		if mean != nil {
			shift += float64(e.scale[r]) * mean[r]
		}
		vec.ScaleShift(rowOf32(z, r), rowOf32(z, r), e.scale[r], float32(shift))
	}
	return z, nil
}

// derive takes one batch: the sample is cut into batches of equal size, which
// come in turn. Its rows are in random order already.
func (e *sampled) derive(ctx context.Context, t int, moved, dst blas32.General) error {
	m := e.x.Rows
	batches := (m + sampleBatch - 1) / sampleBatch
	from, to := t%batches*m/batches, (t%batches+1)*m/batches
	x := blas32.General{Rows: to - from, Cols: e.x.Cols, Stride: e.x.Stride, Data: e.x.Data[from*e.x.Stride:]}
	z := blas32.General{Rows: moved.Rows, Cols: x.Rows, Stride: x.Rows, Data: e.z[:moved.Rows*x.Rows]}
	if err := blas.Gemm(ctx, nil, blas.NoTrans, blas.Trans, 1, moved, x, 0, z); err != nil {
		return err
	}
	for r := range z.Rows {
		row, slope := rowOf32(z, r), e.slope[:z.Cols]
		vec.Scale(row, row, e.width[r])
		vec.Add(row, row, rowOf32(e.start, r)[from:to])
		activate(e.after, row, slope)
		vec.Axpy(-1, rowOf32(e.wanted, r)[from:to], row)
		vec.Mul(row, row, slope)
		vec.Scale(row, row, 2*e.weight[r]/float32(z.Cols))
	}
	return blas.Gemm(ctx, nil, blas.NoTrans, blas.NoTrans, 1, z, x, 0, dst)
}

// hard returns a·X̃ŵ + c of each row of the choices, rows×m.
func (e *sampled) hard(ctx context.Context, ups []bool) (blas32.General, error) {
	rows, n := e.c.target.Rows, e.c.target.Cols
	w := blas32.General{Rows: rows, Cols: n, Stride: n, Data: make([]float32, rows*n)}
	for k, up := range ups {
		w.Data[k] = float32(e.c.value(k, up))
	}
	return e.outputs(ctx, e.x, w, nil)
}

// lost returns Σ(f(a·y* + c) − f(z))² of row r and overwrites z.
func (e *sampled) lost(r int, z []float32) float64 {
	activate(e.after, z, nil)
	vec.Axpy(-1, rowOf32(e.wanted, r), z)
	return vec.SumSquares(z)
}

// sweeps is how often a descent goes over all weights at most; later ones find
// little.
const sweeps = 4

// descend improves a row's choices by single flips, each that lowers the error
// by more than rounding, in the order of the inputs, until none does or the sweeps
// are done. z are the row's outputs, which it keeps up to date.
//
// Cost: m·n values of f for each sweep.
func (e *sampled) descend(ctx context.Context, r int, ups []bool, z []float32) {
	n := e.c.target.Cols
	try := make([]float32, len(z))
	copy(try, z)
	least := e.lost(r, try)
	for range sweeps {
		changed := false
		for j := range n {
			k := r*n + j
			if e.c.floors[k] == e.c.ceils[k] {
				continue
			}
			delta := float32(float64(e.scale[r]) * (e.c.value(k, !ups[k]) - e.c.value(k, ups[k])))
			copy(try, z)
			vec.Axpy(delta, rowOf32(e.columns, j), try)
			if sum := e.lost(r, try); sum < least*(1-tie) {
				least, changed, ups[k] = sum, true, !ups[k]
				vec.Axpy(delta, rowOf32(e.columns, j), z)
			}
		}
		if !changed || ctx.Err() != nil {
			return
		}
	}
}

// best writes for each row the codes of the candidate with the least error, the
// first of equals, after descent from there.
func (e *sampled) best(ctx context.Context, candidates [][]bool, codes []int8) error {
	rows, n, m := e.c.target.Rows, e.c.target.Cols, e.x.Rows
	least, ups := make([]float64, rows), make([]bool, rows*n)
	outputs, try := make([]float32, rows*m), make([]float32, m)
	for i, candidate := range candidates {
		z, err := e.hard(ctx, candidate)
		if err != nil {
			return err
		}
		for r := range rows {
			copy(try, rowOf32(z, r))
			if sum := e.lost(r, try); i == 0 || sum < least[r] {
				least[r] = sum
				copy(ups[r*n:(r+1)*n], candidate[r*n:])
				copy(outputs[r*m:], rowOf32(z, r))
			}
		}
	}
	for r := range rows {
		e.descend(ctx, r, ups, outputs[r*m:(r+1)*m])
	}
	e.c.write(codes, ups, 0, rows*n)
	return ctx.Err()
}

// activate overwrites z with f(z), and writes f′(z) to slope unless that is nil.
func activate(after *layer.After, z, slope []float32) {
	if after == nil {
		for i := range slope {
			slope[i] = 1
		}
		return
	}
	for i := range slope {
		slope[i] = z[i]
	}
	switch after.Activation {
	case layer.ReLU:
		vec.ReLU(z, z)
		steps(slope, 0)
	case layer.LeakyReLU:
		for i, v := range z {
			if v < 0 {
				z[i] = v * after.Slope
			}
		}
		steps(slope, after.Slope)
	case layer.Sigmoid:
		vec.Sigmoid(z, z)
		for i := range slope {
			slope[i] = z[i] * (1 - z[i])
		}
	case layer.Tanh:
		vec.Tanh(z, z)
		for i := range slope {
			slope[i] = 1 - z[i]*z[i]
		}
	case layer.GELU:
		vec.GELU(z, z)
		for i, x := range slope {
			slope[i] = share(z[i], x) + x*float32(math.Exp(-float64(x)*float64(x)/2)/math.Sqrt(2*math.Pi))
		}
	case layer.GELUTanh: // z·σ(2u), u = √(2/π)·(z + 0.044715·z³)
		vec.GELUTanh(z, z)
		for i, x := range slope {
			sigmoid := share(z[i], x)
			slope[i] = sigmoid
			if sigmoid > 0 && sigmoid < 1 {
				slope[i] += x * sigmoid * (1 - sigmoid) * float32(2*math.Sqrt(2/math.Pi)) * (1 + 3*0.044715*x*x)
			}
		}
	}
}

// share returns y/x, the part of x that a gate at ½ in 0 lets through.
func share(y, x float32) float32 {
	if x == 0 {
		return 0.5
	}
	return y / x
}

// steps overwrites z with 1 where it is positive and below elsewhere.
func steps(z []float32, below float32) {
	for i, v := range z {
		z[i] = below
		if v > 0 {
			z[i] = 1
		}
	}
}
