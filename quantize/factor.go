package quantize

import (
	"context"
	"fmt"
	"math"
	"sync"

	gonum "gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// Factors are what the methods need of one value's H, made when first asked
// for. Layers that read the same value share them. It is safe for concurrent
// use.
type Factors struct {
	moments *layer.Moments // nil when the layers have none
	mu      sync.Mutex
	made    map[factorKind][]gram
}

// factorKind tells factorizations of the same H apart.
type factorKind struct {
	damping float64
	ordered bool // inputs in the order of descending diag(H)
	centred bool // H of the inputs less their mean
}

// NewFactors returns the factors of moments, which may be nil, none made yet.
func NewFactors(m *layer.Moments) *Factors {
	return &Factors{moments: m, made: map[factorKind][]gram{}}
}

// Prepare makes what Solve with these options needs, on all of p's workers.
// Without it the first Solve does so, and Solves beside it wait.
//
// Cost: n³/3 multiply-adds for n inputs, and n² float64s that are kept.
func (f *Factors) Prepare(ctx context.Context, p *pool.Pool, o Options) error {
	_, err := f.grams(ctx, p, o.WithDefaults())
	return err
}

func (f *Factors) grams(ctx context.Context, p *pool.Pool, o Options) ([]gram, error) {
	if f.moments == nil {
		return nil, nil
	}
	kind := factorKind{or(o.Damping, DefaultDamping), o.ActOrder || o.Method == AdaRound || o.Method == Best, o.Centre}
	f.mu.Lock()
	defer f.mu.Unlock()
	if grams, ok := f.made[kind]; ok {
		return grams, nil
	}
	grams := make([]gram, f.moments.Groups)
	err := p.For(ctx, len(grams), func(g int) (err error) {
		grams[g], err = newGram(ctx, p, f.moments, g, kind)
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("H of group %d: %w", g, err)
		}
		return err
	})
	if err == nil {
		f.made[kind] = grams
	}
	return grams, err
}

// gram is H of one group, damped and factored: H + λI = unit·(UᵀU)⁻¹. The unit,
// a power of two near the mean of H's diagonal, keeps factorizations and float32
// copies away from extreme numbers. With Options.Centre H is that of the inputs
// less their mean, H − Σx̃·Σx̃ᵀ/rows.
type gram struct {
	h       blas64.General // of the inputs as they are
	sum     []float64      // Σx̃/√rows; nil where nothing is centred
	unit    float64
	lambda  float64        // λ/unit
	damping float64        // λ relative to the mean of H's diagonal
	order   []int          // the input at each of U's places; nil for 0, 1, …
	upper   blas64.General // U
	dead    bool           // H is zero: no input was ever used, and U is I
}

func newGram(ctx context.Context, p *pool.Pool, m *layer.Moments, group int, kind factorKind) (gram, error) {
	g := gram{h: m.H[group], unit: 1, lambda: 1}
	n := g.h.Rows
	if kind.centred {
		g.sum = make([]float64, n)
		for i, v := range m.SumXt[group*n:][:n] {
			g.sum[i] = v / math.Sqrt(float64(m.Rows))
		}
	}
	diagonal := make([]float64, n)
	mean := 0.0
	for i := range diagonal {
		diagonal[i] = max(g.at(i, i), 0) // below by rounding only
		mean += diagonal[i] / float64(n)
	}
	g.upper = linalg.NewGeneral(n, n)
	if mean == 0 {
		g.dead = true
		for i := range n {
			g.upper.Data[i*n+i] = 1
		}
		return g, nil
	}
	_, exp := math.Frexp(mean)
	g.unit = math.Ldexp(1, min(max(exp, -1000), 1000)) // it and its inverse are finite and normal
	if kind.ordered {
		g.order = descending(diagonal)
	}
	lambda, grown, err := linalg.Damped(kind.damping, mean/g.unit, func(lambda float64) error {
		if err := g.fill(ctx, p, g.upper, g.order, lambda); err != nil {
			return err
		}
		return linalg.InverseUpper(ctx, p, g.upper)
	})
	g.lambda, g.damping = lambda, kind.damping*math.Pow10(grown)
	return g, err
}

// at returns an element of H.
func (g *gram) at(i, j int) float64 {
	v := g.h.Data[i*g.h.Stride+j]
	if g.sum != nil {
		v -= g.sum[i] * g.sum[j]
	}
	return v
}

// fill overwrites dst with H/unit + λI, its inputs in the given order.
func (g *gram) fill(ctx context.Context, p *pool.Pool, dst blas64.General, order []int, lambda float64) error {
	const rows = 16
	n := dst.Rows
	return p.For(ctx, (n+rows-1)/rows, func(t int) error {
		for i := t * rows; i < min((t+1)*rows, n); i++ {
			from := i
			if order != nil {
				from = order[i]
			}
			row := rowOf64(dst, i)
			gather(row, rowOf64(g.h, from), order)
			if g.sum != nil {
				for j := range row {
					k := j
					if order != nil {
						k = order[j]
					}
					row[j] -= g.sum[from] * g.sum[k]
				}
			}
			for j := range row {
				row[j] /= g.unit
			}
			row[i] += lambda
		}
		return nil
	})
}

// damped returns (H + λI)/unit.
func (g *gram) damped(ctx context.Context, p *pool.Pool) (blas64.General, error) {
	a := linalg.NewGeneral(g.h.Rows, g.h.Rows)
	return a, g.fill(ctx, p, a, nil, g.lambda)
}

// solve overwrites each row b with b̃ = unit·(H + λI)⁻¹·b and writes b̃ᵀb to dst.
func (g *gram) solve(ctx context.Context, p *pool.Pool, rows blas64.General, dst []float64) error {
	return g.inOrder(ctx, p, rows, func(rows blas64.General) error {
		if err := linalg.MultiplyTriangular(ctx, p, gonum.Upper, blas.Trans, g.upper, rows); err != nil {
			return err
		}
		squares(rows, dst)
		return linalg.MultiplyTriangular(ctx, p, gonum.Upper, blas.NoTrans, g.upper, rows)
	})
}

// energies overwrites the rows and writes dᵀ(H + λI)d/unit of each row d to dst.
func (g *gram) energies(ctx context.Context, p *pool.Pool, rows blas64.General, dst []float64) error {
	return g.inOrder(ctx, p, rows, func(rows blas64.General) error {
		if err := linalg.SolveTriangular(ctx, p, gonum.Right, gonum.Upper, blas.NoTrans, g.upper, rows); err != nil {
			return err
		}
		squares(rows, dst)
		return nil
	})
}

// squares writes the sum of squares of each row to dst.
func squares(rows blas64.General, dst []float64) {
	for r := range rows.Rows {
		dst[r] = vec.Dot64(rowOf64(rows, r), rowOf64(rows, r))
	}
}

// inOrder calls do with the rows' inputs in the order of U.
func (g *gram) inOrder(ctx context.Context, p *pool.Pool, rows blas64.General, do func(blas64.General) error) error {
	if g.order == nil {
		return do(rows)
	}
	places := make([]int, len(g.order))
	for i, c := range g.order {
		places[c] = i
	}
	if err := permute(ctx, p, rows, g.order); err != nil {
		return err
	}
	if err := do(rows); err != nil {
		return err
	}
	return permute(ctx, p, rows, places)
}

// permute brings the columns into the given order.
func permute(ctx context.Context, p *pool.Pool, rows blas64.General, order []int) error {
	const chunk = 32
	return p.For(ctx, (rows.Rows+chunk-1)/chunk, func(t int) error {
		old := make([]float64, rows.Cols)
		for r := t * chunk; r < min((t+1)*chunk, rows.Rows); r++ {
			row := rowOf64(rows, r)
			copy(old, row)
			gather(row, old, order)
		}
		return nil
	})
}
