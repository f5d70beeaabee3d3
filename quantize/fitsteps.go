package quantize

import (
	"context"
	"math"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// fit moves the steps of each row to the least squares fit of its codes in
// H + λI, zero points to whole codes, where that lowers the error. With a_k the
// codes (on a floating-point grid: their values) that share step k, and ŵ = Σ s_k·a_k − t_k·1_k, the error is a quadratic
// of s and t whose matrices follow from one product with H for each step: it is
// solved for both; then, with the zero points t/s rounded, for s alone. Where
// weights are pruned, zero points stay: a_k are the codes less them then.
func (t *bestTask) fit(ctx context.Context, rows []*bestRow) error {
	for _, row := range rows {
		row.fitted = false
	}
	if t.o.Granularity == layer.PerTensor {
		return nil // its step is not the row's to change
	}
	if _, groups := t.span(); groups == 1 {
		for _, row := range rows {
			t.fitOne(row)
		}
		return nil
	}
	fits, err := t.stepFits(ctx, rows)
	if err != nil {
		return err
	}
	for i, row := range rows {
		fits[i].improve(t, row)
	}
	return nil
}

// fitOne fits a row's only step. H·ŵ is there already, so that no product is
// needed: H·a = H·ŵ/s + z·H·1.
func (t *bestTask) fitOne(row *bestRow) {
	old := row.steps[0]
	zero := float64(old.zero)
	if t.mask != nil {
		zero = 0 // a is the codes less the zero point
	}
	f := stepFit{
		aa: linalg.NewGeneral(1, 1), a1: linalg.NewGeneral(1, 1), ones: t.q.ones,
		aw: make([]float64, 1), w1: []float64{vec.Sum64(row.hw)}, ww: vec.Dot64(row.target, row.hw),
	}
	for j, c := range row.codes {
		a := old.level(int(c))
		if t.mask != nil {
			a -= float64(old.zero)
		}
		f.aw[0] += a * row.hw[j]
		f.a1.Data[0] += a * t.q.sums[j]
		f.aa.Data[0] += a * ((row.hd[j]+row.hw[j])/float64(old.scale) + zero*t.q.sums[j])
	}
	f.improve(t, row)
	if !row.fitted {
		return
	}
	now := row.steps[0]
	ratio := float64(now.scale) / float64(old.scale)
	shift := float64(now.scale) * float64(old.zero-now.zero)
	for j, hw := range row.hw {
		row.hd[j] = ratio*(row.hd[j]+hw) + shift*t.q.sums[j] - hw
	}
}

// stepFit is the error of one row as a function of its steps.
type stepFit struct {
	aa   blas64.General // a_kᵀ·H·a_l
	a1   blas64.General // a_kᵀ·H·1_l
	aw   []float64      // a_kᵀ·H·w̃
	w1   []float64      // 1_kᵀ·H·w̃
	ww   float64        // w̃ᵀ·H·w̃
	ones blas64.General
}

func (t *bestTask) stepFits(ctx context.Context, rows []*bestRow) ([]stepFit, error) {
	span, groups := t.span()
	n := t.target.Cols
	fits := make([]stepFit, len(rows))
	codes := linalg.NewGeneral(len(rows), n)
	for i, row := range rows {
		a := linalg.Row(codes, i)
		for j, c := range row.codes {
			a[j] = row.steps[j/span].level(int(c))
			if t.mask != nil {
				a[j] -= float64(row.steps[j/span].zero)
			}
		}
		f := &fits[i]
		*f = stepFit{
			aa: linalg.NewGeneral(groups, groups), a1: linalg.NewGeneral(groups, groups), ones: t.q.ones,
			aw: make([]float64, groups), w1: make([]float64, groups), ww: vec.Dot64(row.target, row.hw),
		}
		for k := range groups {
			f.aw[k] = vec.Dot64(a[k*span:][:span], row.hw[k*span:])
			f.w1[k] = vec.Sum64(row.hw[k*span:][:span])
		}
	}
	ha := linalg.NewGeneral(len(rows), n)
	for k := range groups {
		part := blas64.General{Rows: len(rows), Cols: span, Stride: n, Data: codes.Data[k*span:]}
		below := linalg.Rows(t.q.h, k*span, (k+1)*span)
		if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, part, below, 0, ha); err != nil {
			return nil, err
		}
		for i := range rows {
			a, h := linalg.Row(codes, i), linalg.Row(ha, i)
			for l := range groups {
				fits[i].aa.Data[k*groups+l] = vec.Dot64(a[l*span:][:span], h[l*span:])
				fits[i].a1.Data[k*groups+l] = vec.Sum64(h[l*span:][:span])
			}
		}
	}
	return fits, nil
}

// improve sets the row's steps to better ones.
func (f *stepFit) improve(t *bestTask, row *bestRow) {
	zeros := make([]int, len(row.steps))
	for k, s := range row.steps {
		zeros[k] = s.zero
	}
	if t.mask != nil {
		f.try(t, row, make([]int, len(zeros)), zeros)
		return
	}
	f.try(t, row, zeros, zeros)
	if t.o.Symmetric {
		return
	}
	if free, ok := f.free(t); ok {
		f.try(t, row, free, free)
	}
}

// try fits the scales for given zero points and takes them where the error with
// the scales as stored is lower. zeros are what is still to be taken from the
// codes, keep the steps' zero points.
func (f *stepFit) try(t *bestTask, row *bestRow, zeros, keep []int) {
	n := len(zeros)
	uu, uw := linalg.NewGeneral(n, n), make([]float64, n)
	for k := range n {
		zk := float64(zeros[k])
		for l := range n {
			zl := float64(zeros[l])
			uu.Data[k*n+l] = f.aa.Data[k*n+l] - zl*f.a1.Data[k*n+l] - zk*f.a1.Data[l*n+k] + zk*zl*f.ones.Data[k*n+l]
		}
		uw[k] = f.aw[k] - zk*f.w1[k]
	}
	scales, ok := solveSmall(uu, uw)
	if !ok {
		return
	}
	steps := make([]step, n)
	for k, s := range scales {
		if !(s > 0) {
			return
		}
		steps[k] = row.steps[k]
		steps[k].scale, steps[k].zero = t.grid.nearScale(s), keep[k]
		scales[k] = float64(steps[k].scale)
	}
	cost := f.ww
	for k, s := range scales {
		cost += s * (vec.Dot64(linalg.Row(uu, k), scales) - 2*uw[k])
	}
	if cost < row.cost*(1-leastGain) {
		copy(row.steps, steps)
		row.cost, row.fitted = cost, true
	}
}

// free fits scales and zero points and returns the zero points, rounded.
func (f *stepFit) free(t *bestTask) (zeros []int, ok bool) {
	n := len(f.aw)
	m, b := linalg.NewGeneral(2*n, 2*n), make([]float64, 2*n)
	for k := range n {
		for l := range n {
			m.Data[k*2*n+l] = f.aa.Data[k*n+l]
			m.Data[k*2*n+n+l] = -f.a1.Data[k*n+l]
			m.Data[(n+l)*2*n+k] = -f.a1.Data[k*n+l]
			m.Data[(n+k)*2*n+n+l] = f.ones.Data[k*n+l]
		}
		b[k], b[n+k] = f.aw[k], -f.w1[k]
	}
	x, ok := solveSmall(m, b)
	if !ok {
		return nil, false
	}
	lo, hi := t.solution.Grid.Range()
	for k := range n {
		zero := math.RoundToEven(x[n+k] / x[k])
		if !(x[k] > 0) || !(zero >= float64(lo) && zero <= float64(hi)) {
			return nil, false
		}
		zeros = append(zeros, int(zero))
	}
	return zeros, true
}

// solveSmall solves m·x = b for a symmetric m that should be positive definite,
// after scaling its diagonal to ones. ok is false where it is not: codes of a
// group that are all equal, say.
func solveSmall(m blas64.General, b []float64) (x []float64, ok bool) {
	n := m.Rows
	size := make([]float64, n)
	for i := range size {
		d := m.Data[i*n+i]
		if !(d > 0) {
			return nil, false
		}
		size[i] = 1 / math.Sqrt(d)
	}
	l := linalg.NewGeneral(n, n)
	x = make([]float64, n)
	for i := range n {
		x[i] = b[i] * size[i]
		for j := range i + 1 {
			sum := m.Data[i*n+j]*size[i]*size[j] - vec.Dot64(l.Data[i*n:][:j], l.Data[j*n:])
			if i != j {
				l.Data[i*n+j] = sum / l.Data[j*n+j]
				continue
			}
			if !(sum > 1e-10) {
				return nil, false
			}
			l.Data[i*n+i] = math.Sqrt(sum)
		}
	}
	for i := range n {
		x[i] = (x[i] - vec.Dot64(l.Data[i*n:][:i], x)) / l.Data[i*n+i]
	}
	for i := n - 1; i >= 0; i-- {
		for j := i + 1; j < n; j++ {
			x[i] -= l.Data[j*n+i] * x[j]
		}
		x[i] /= l.Data[i*n+i]
	}
	for i := range x {
		x[i] *= size[i]
	}
	return x, true
}
