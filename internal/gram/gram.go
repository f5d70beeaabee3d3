// Package gram holds what every method needs of a value's H: damped, perhaps
// centred, factored once for all layers that read the value; a layer's target
// aligned to it; and the true errors of what methods find. All methods see the
// problem in the same form, to minimize (ŵ−w̃)ᵀ(H+λI)(ŵ−w̃) row by row.
package gram

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
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
	made    map[Kind][]Gram
}

// DefaultDamping is λ relative to the mean of H's diagonal where a recipe names none.
const DefaultDamping = 0.01

// Kind tells factorizations of the same H apart.
type Kind struct {
	Damping float64 // λ relative to the mean of H's diagonal
	Ordered bool    // inputs in the order of descending diag(H)
	Centred bool    // H of the inputs less their mean
}

// NewFactors returns the factors of moments, which may be nil, none made yet.
func NewFactors(m *layer.Moments) *Factors {
	return &Factors{moments: m, made: map[Kind][]Gram{}}
}

// Moments returns what the factors are of; nil for none.
func (f *Factors) Moments() *layer.Moments { return f.moments }

// Grams returns a factorization of H of each group, made on all of p's workers
// when first asked for; nil where there are no moments.
//
// Cost: n³/3 multiply-adds for n inputs, and n² float64s that are kept.
func (f *Factors) Grams(ctx context.Context, p *pool.Pool, kind Kind) ([]Gram, error) {
	if f.moments == nil {
		return nil, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if grams, ok := f.made[kind]; ok {
		return grams, nil
	}
	grams := make([]Gram, f.moments.Groups)
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

// Gram is H of one group, damped and factored: H + λI = unit·(UᵀU)⁻¹. The unit,
// a power of two near the mean of H's diagonal, keeps factorizations and float32
// copies away from extreme numbers. With Options.Centre H is that of the inputs
// less their mean, H − Σx̃·Σx̃ᵀ/rows.
type Gram struct {
	H       blas64.General // of the inputs as they are
	Sum     []float64      // Σx̃/√rows; nil where nothing is centred
	Unit    float64
	Lambda  float64        // λ/unit
	Damping float64        // λ relative to the mean of H's diagonal
	Order   []int          // the input at each of U's places; nil for 0, 1, …
	Upper   blas64.General // U
	Dead    bool           // H is zero: no input was ever used, and U is I
}

func newGram(ctx context.Context, p *pool.Pool, m *layer.Moments, group int, kind Kind) (Gram, error) {
	g := Gram{H: m.H[group], Unit: 1, Lambda: 1}
	n := g.H.Rows
	if kind.Centred {
		g.Sum = make([]float64, n)
		for i, v := range m.SumXt[group*n:][:n] {
			g.Sum[i] = v / math.Sqrt(float64(m.Rows))
		}
	}
	diagonal := make([]float64, n)
	mean := 0.0
	for i := range diagonal {
		diagonal[i] = max(g.at(i, i), 0) // below by rounding only
		mean += diagonal[i] / float64(n)
	}
	g.Upper = linalg.NewGeneral(n, n)
	if mean == 0 {
		g.Dead = true
		for i := range n {
			g.Upper.Data[i*n+i] = 1
		}
		return g, nil
	}
	_, exp := math.Frexp(mean)
	g.Unit = math.Ldexp(1, min(max(exp, -1000), 1000)) // it and its inverse are finite and normal
	if kind.Ordered {
		g.Order = Descending(diagonal)
	}
	lambda, grown, err := linalg.Damped(kind.Damping, mean/g.Unit, func(lambda float64) error {
		if err := g.fill(ctx, p, g.Upper, g.Order, lambda); err != nil {
			return err
		}
		return linalg.InverseUpper(ctx, p, g.Upper)
	})
	g.Lambda, g.Damping = lambda, kind.Damping*math.Pow10(grown)
	return g, err
}

// at returns an element of H.
func (g *Gram) at(i, j int) float64 {
	v := g.H.Data[i*g.H.Stride+j]
	if g.Sum != nil {
		v -= g.Sum[i] * g.Sum[j]
	}
	return v
}

// fill overwrites dst with H/unit + λI, its inputs in the given order.
func (g *Gram) fill(ctx context.Context, p *pool.Pool, dst blas64.General, order []int, lambda float64) error {
	const rows = 16
	n := dst.Rows
	return p.For(ctx, (n+rows-1)/rows, func(t int) error {
		for i := t * rows; i < min((t+1)*rows, n); i++ {
			from := i
			if order != nil {
				from = order[i]
			}
			row := linalg.Row(dst, i)
			Gather(row, linalg.Row(g.H, from), order)
			if g.Sum != nil {
				for j := range row {
					k := j
					if order != nil {
						k = order[j]
					}
					row[j] -= g.Sum[from] * g.Sum[k]
				}
			}
			for j := range row {
				row[j] /= g.Unit
			}
			row[i] += lambda
		}
		return nil
	})
}

// DampedH returns (H + λI)/unit.
func (g *Gram) DampedH(ctx context.Context, p *pool.Pool) (blas64.General, error) {
	a := linalg.NewGeneral(g.H.Rows, g.H.Rows)
	return a, g.fill(ctx, p, a, nil, g.Lambda)
}

// Solve overwrites each row b with b̃ = unit·(H + λI)⁻¹·b and writes b̃ᵀb to dst.
func (g *Gram) Solve(ctx context.Context, p *pool.Pool, rows blas64.General, dst []float64) error {
	return g.inOrder(ctx, p, rows, func(rows blas64.General) error {
		if err := linalg.MultiplyTriangular(ctx, p, gonum.Upper, blas.Trans, g.Upper, rows); err != nil {
			return err
		}
		squares(rows, dst)
		return linalg.MultiplyTriangular(ctx, p, gonum.Upper, blas.NoTrans, g.Upper, rows)
	})
}

// Energies overwrites the rows and writes dᵀ(H + λI)d/unit of each row d to dst.
func (g *Gram) Energies(ctx context.Context, p *pool.Pool, rows blas64.General, dst []float64) error {
	return g.inOrder(ctx, p, rows, func(rows blas64.General) error {
		if err := linalg.SolveTriangular(ctx, p, gonum.Right, gonum.Upper, blas.NoTrans, g.Upper, rows); err != nil {
			return err
		}
		squares(rows, dst)
		return nil
	})
}

// squares writes the sum of squares of each row to dst.
func squares(rows blas64.General, dst []float64) {
	for r := range rows.Rows {
		dst[r] = vec.Dot64(linalg.Row(rows, r), linalg.Row(rows, r))
	}
}

// inOrder calls do with the rows' inputs in the order of U.
func (g *Gram) inOrder(ctx context.Context, p *pool.Pool, rows blas64.General, do func(blas64.General) error) error {
	if g.Order == nil {
		return do(rows)
	}
	places := make([]int, len(g.Order))
	for i, c := range g.Order {
		places[c] = i
	}
	if err := permute(ctx, p, rows, g.Order); err != nil {
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
			row := linalg.Row(rows, r)
			copy(old, row)
			Gather(row, old, order)
		}
		return nil
	})
}

// Descending returns the inputs in the order of descending diagonal, equal ones
// in their own order.
func Descending(diagonal []float64) []int {
	order := make([]int, len(diagonal))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(diagonal[b], diagonal[a]) })
	return order
}

// Gather writes src in the given order to dst; nil is the order in which it is.
func Gather(dst, src []float64, order []int) {
	if order == nil {
		copy(dst, src)
		return
	}
	for i, c := range order {
		dst[i] = src[c]
	}
}
