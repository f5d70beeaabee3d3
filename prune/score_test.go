package prune

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
)

func matrix(rows, cols int, data ...float32) blas32.General {
	if data == nil {
		data = make([]float32, rows*cols)
	}
	return blas32.General{Rows: rows, Cols: cols, Stride: cols, Data: data}
}

func TestScores(t *testing.T) {
	p, w := pool.New(2), matrix(2, 3, 1, -2, 3, -4, 0, 6)
	check := func(name string, err error, got blas32.General, want ...float32) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range want {
			if got.Data[i] != v {
				t.Errorf("%s: %v, want %v", name, got.Data, want)
				break
			}
		}
	}
	dst := matrix(2, 3)
	check("magnitude", MagnitudeScores(t.Context(), p, dst, w), dst, 1, 2, 3, 4, 0, 6)
	check("wanda", WandaScores(t.Context(), p, dst, w, [][]float64{{4, 9, 0}}), dst, 2, 6, 0, 8, 0, 0)
	check("wanda, two groups", WandaScores(t.Context(), p, dst, w, [][]float64{{4, 9, 0}, {1, 1, 4}}), dst, 2, 6, 0, 4, 0, 12)
	check("saliency", SaliencyScores(t.Context(), p, dst, w, [][]float64{{0.25, 4, 1}}), dst, 2, 1, 3, 8, 0, 6)
	if w.Data[1] != -2 {
		t.Error("the weight was overwritten")
	}
	check("in place", MagnitudeScores(t.Context(), p, w, w), w, 1, 2, 3, 4, 0, 6)
}

// The saliency of a weight is the least error of the row without it.
func TestSaliencyIsTheErrorAfterCompensation(t *testing.T) {
	// H = [[2 1] [1 2]], so [H⁻¹]_jj = 2/3. Without w_0, w_1 becomes w_1 + w_0/2.
	w := matrix(1, 2, 3, 1)
	dst := matrix(1, 2)
	if err := SaliencyScores(t.Context(), pool.New(1), dst, w, [][]float64{{2. / 3, 2. / 3}}); err != nil {
		t.Fatal(err)
	}
	dw := []float64{-3, 1.5}
	want := 2*dw[0]*dw[0] + 2*dw[0]*dw[1] + 2*dw[1]*dw[1]
	if got := float64(dst.Data[0]) * float64(dst.Data[0]); math.Abs(got-want) > 1e-5 {
		t.Errorf("saliency %v, want %v", got, want)
	}
}

func TestScoresRefuse(t *testing.T) {
	p, w := pool.New(1), matrix(2, 2, 1, 2, 3, 4)
	nan, inf := math.NaN(), math.Inf(1)
	for _, diag := range [][]float64{{1, nan}, {1, inf}, {1, -1}} {
		if err := WandaScores(t.Context(), p, w, w, [][]float64{diag}); !errors.As(err, new(*ValueError)) {
			t.Errorf("wanda with diagonal %v: %v", diag, err)
		}
		if err := SaliencyScores(t.Context(), p, w, w, [][]float64{diag}); !errors.As(err, new(*ValueError)) {
			t.Errorf("saliency with diagonal %v: %v", diag, err)
		}
	}
	if err := SaliencyScores(t.Context(), p, w, w, [][]float64{{1, 0}}); !errors.As(err, new(*ValueError)) {
		t.Errorf("saliency with a zero: %v", err)
	}
	for _, groups := range [][][]float64{nil, {{1}}, {{1, 1}, {1, 1}, {1, 1}}} {
		if err := WandaScores(t.Context(), p, w, w, groups); !errors.As(err, new(*ShapeError)) {
			t.Errorf("wanda with diagonals %v: %v", groups, err)
		}
	}
	bad := matrix(1, 2, 1, float32(nan))
	if e := (*ValueError)(nil); !errors.As(MagnitudeScores(t.Context(), p, matrix(1, 2), bad), &e) || e.Col != 1 {
		t.Errorf("a weight that is no number: %v", e)
	}
	if err := WandaScores(t.Context(), p, matrix(1, 1), matrix(1, 1, 1e38), [][]float64{{1e10}}); !errors.As(err, new(*ValueError)) {
		t.Errorf("a score over float32: %v", err)
	}
	if err := MagnitudeScores(t.Context(), p, matrix(1, 2), w); !errors.As(err, new(*ShapeError)) {
		t.Errorf("scores of another shape: %v", err)
	}
}

func gaussian(rng *rand.Rand, rows, cols int) blas32.General {
	w := matrix(rows, cols)
	for i := range w.Data {
		w.Data[i] = float32(rng.NormFloat64())
	}
	return w
}
