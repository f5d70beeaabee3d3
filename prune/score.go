package prune

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
)

// ValueError names a number that cannot be scored, selected or allocated by.
type ValueError struct {
	What     string // e.g. "weight", "score", "diagonal of group 0"
	Row, Col int    // its place; Row is −1 for a vector
	Value    float64
	Want     string
}

func (e *ValueError) Error() string {
	at := fmt.Sprintf("element %d", e.Col)
	if e.Row >= 0 {
		at = fmt.Sprintf("row %d, column %d", e.Row, e.Col)
	}
	return fmt.Sprintf("prune: %s at %s is %v, want %s", e.What, at, e.Value, e.Want)
}

// ShapeError says which sizes do not fit together.
type ShapeError struct{ Reason string }

func (e *ShapeError) Error() string { return "prune: " + e.Reason }

// MagnitudeScores writes |w| of each weight of w to dst, which has w's shape and may
// be w itself. Weights must be finite, else the error is a *ValueError.
func MagnitudeScores(ctx context.Context, p *pool.Pool, dst, w blas32.General) error {
	return writeScores(ctx, p, dst, w, nil)
}

// WandaScores writes |w_ij|·‖x_j‖₂ to dst, which has w's shape and may be w itself
// (Sun et al., arXiv 2306.11695, eq. 1). diag holds the diagonal of H = XᵀX, that
// is ‖x_j‖₂², for each group of a convolution: one slice of w.Cols values for each
// w.Rows/len(diag) rows, and one slice in all for other layers. H may have any
// positive scale.
func WandaScores(ctx context.Context, p *pool.Pool, dst, w blas32.General, diag [][]float64) error {
	norms, err := mapDiagonal(diag, "a finite number, at least 0", func(d float64) (float64, bool) {
		return math.Sqrt(d), d >= 0
	})
	if err != nil {
		return err
	}
	return writeScores(ctx, p, dst, w, norms)
}

// SaliencyScores writes |w_ij|/√[H⁻¹]_jj to dst, which has w's shape and may be w
// itself: the root of the error w²/[H⁻¹]_jj that pruning this weight alone causes
// when all others make up for it (Hassibi and Stork 1992; Frantar and Alistarh,
// arXiv 2208.11580, eq. 3). The root has the same order and, as all scores, a
// weight's scale. inverse holds the diagonal of H⁻¹ for each group, as WandaScores
// has that of H.
func SaliencyScores(ctx context.Context, p *pool.Pool, dst, w blas32.General, inverse [][]float64) error {
	factors, err := mapDiagonal(inverse, "a finite positive number", func(d float64) (float64, bool) {
		return 1 / math.Sqrt(d), d > 0
	})
	if err != nil {
		return err
	}
	return writeScores(ctx, p, dst, w, factors)
}

func mapDiagonal(groups [][]float64, want string, f func(float64) (v float64, ok bool)) ([][]float64, error) {
	if len(groups) == 0 {
		return nil, &ShapeError{"no diagonal, want one for each group of rows"}
	}
	out := make([][]float64, len(groups))
	for g, diag := range groups {
		out[g] = make([]float64, len(diag))
		for j, d := range diag {
			v, ok := f(d)
			if !ok || math.IsInf(d, 0) {
				return nil, &ValueError{fmt.Sprintf("diagonal of group %d", g), -1, j, d, want}
			}
			out[g][j] = v
		}
	}
	return out, nil
}

// writeScores multiplies |w_ij| by the factor of input j in the row's group, or by 1
// where there are no factors.
func writeScores(ctx context.Context, p *pool.Pool, dst, w blas32.General, factors [][]float64) error {
	if err := checkMatrix("weight", w); err != nil {
		return err
	}
	if err := checkMatrix("scores", dst); err != nil {
		return err
	}
	if dst.Rows != w.Rows || dst.Cols != w.Cols {
		return &ShapeError{fmt.Sprintf("scores of %d×%d for a weight of %d×%d", dst.Rows, dst.Cols, w.Rows, w.Cols)}
	}
	if factors != nil && w.Rows%len(factors) != 0 {
		return &ShapeError{fmt.Sprintf("%d rows in %d groups", w.Rows, len(factors))}
	}
	for g, f := range factors {
		if len(f) != w.Cols {
			return &ShapeError{fmt.Sprintf("diagonal of group %d has %d values for %d inputs", g, len(f), w.Cols)}
		}
	}
	return forRows(ctx, p, w.Rows, w.Cols, func(r int) error {
		var factor []float64
		if factors != nil {
			factor = factors[r/(w.Rows/len(factors))]
		}
		out := matrixRow(dst, r)
		for c, v := range matrixRow(w, r) {
			if !(math.Abs(float64(v)) <= math.MaxFloat32) {
				return &ValueError{"weight", r, c, float64(v), "a finite number"}
			}
			score := math.Abs(float64(v))
			if factor != nil {
				score *= factor[c]
			}
			if score > math.MaxFloat32 {
				return &ValueError{"score", r, c, score, "at most 3.4e38: divide the moments by their rows"}
			}
			out[c] = float32(score)
		}
		return nil
	})
}

// forRows calls task for each of the rows, some 64 Ki values per piece of work.
func forRows(ctx context.Context, p *pool.Pool, rows, cols int, task func(r int) error) error {
	step := max(1, (1<<16)/cols)
	return p.For(ctx, (rows+step-1)/step, func(i int) error {
		for r := i * step; r < min(rows, (i+1)*step); r++ {
			if err := task(r); err != nil {
				return err
			}
		}
		return nil
	})
}

func checkMatrix(what string, a blas32.General) error {
	if a.Rows < 1 || a.Cols < 1 || a.Stride < a.Cols || len(a.Data) < (a.Rows-1)*a.Stride+a.Cols {
		return &ShapeError{fmt.Sprintf("%s: %d values with stride %d do not hold %d×%d", what, len(a.Data), a.Stride, a.Rows, a.Cols)}
	}
	return nil
}

func matrixRow(a blas32.General, r int) []float32 { return a.Data[r*a.Stride:][:a.Cols] }
