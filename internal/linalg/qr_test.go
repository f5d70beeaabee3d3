package linalg

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/mat"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

// orthonormality returns the largest element of QᵀQ − I.
func orthonormality(t *testing.T, q blas64.General) float64 {
	t.Helper()
	g := NewGeneral(q.Cols, q.Cols)
	if err := blas.Gemm64(ctx, nil, blas.Trans, blas.NoTrans, 1, q, q, 0, g); err != nil {
		t.Fatal(err)
	}
	most := 0.0
	for i := range g.Rows {
		g.Data[i*g.Stride+i]--
	}
	for _, v := range g.Data {
		if !(math.Abs(v) <= most) {
			most = math.Abs(v)
		}
	}
	return most
}

// tall returns inputs of every difficulty.
func tall(rng *rand.Rand, m, n int) map[string]blas64.General {
	list := map[string]blas64.General{"random": randomGeneral(rng, m, n), "zero": NewGeneral(m, n)}
	list["tiny"], list["huge"] = Clone(list["random"]), Clone(list["random"])
	scale(0x1p-1040, list["tiny"].Data)
	scale(0x1p1000, list["huge"].Data)
	near := Clone(list["random"]) // columns that differ in the last bits only
	for i := range m {
		for j := 1; j < n; j++ {
			near.Data[i*n+j] = near.Data[i*n] * (1 + 0x1p-52*float64(rng.IntN(4)))
		}
	}
	list["nearly dependent"] = near
	low, graded := NewGeneral(m, n), Clone(list["random"])
	if k := min(3, m, n); k > 0 {
		if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, randomGeneral(rng, m, k), randomGeneral(rng, k, n), 0, low); err != nil {
			panic(err)
		}
	}
	list["rank 3"] = low
	for i := range m {
		for j := range n {
			graded.Data[i*n+j] *= math.Pow(10, -30*float64(j)/float64(n))
		}
	}
	list["graded"] = graded
	return list
}

func TestQR(t *testing.T) {
	for _, shape := range [][2]int{{1, 1}, {2, 1}, {1, 2}, {5, 5}, {33, 32}, {40, 33}, {33, 40}, {64, 64}, {200, 70}, {333, 150}, {70, 200}} {
		m, n := shape[0], shape[1]
		k := min(m, n)
		rng := rand.New(rand.NewPCG(uint64(m), uint64(n)))
		for name, a := range tall(rng, m, n) {
			before, _ := holed(rng, a)
			q, r, err := QR(ctx, pool.New(2), before)
			if err != nil {
				t.Fatalf("%s %d×%d: %v", name, m, n, err)
			}
			if o := orthonormality(t, q); !(o <= 4*float64(m)*epsilon) {
				t.Errorf("%s %d×%d: QᵀQ − I is %g", name, m, n, o)
			}
			for i := range k {
				for j := range i {
					if r.Data[i*n+j] != 0 {
						t.Fatalf("%s %d×%d: R is not triangular", name, m, n)
					}
				}
			}
			if !sameBytes(Clone(before).Data, a.Data) {
				t.Fatal("the input was changed")
			}
			// Column by column: R's scale may be near an end of float64's range.
			for j := range n {
				rj, aj := make([]float64, k), make([]float64, m)
				for i := range k {
					rj[i] = r.Data[i*n+j]
				}
				length := 0.0
				for i := range m {
					aj[i] = a.Data[i*n+j]
				}
				length = norm(aj)
				for i := range m {
					aj[i] -= dot(rj, Row(q, i))
				}
				if !(norm(aj) <= 8*float64(m)*epsilon*length+0x1p-1060) {
					t.Fatalf("%s %d×%d: A − QR is %g of %g in column %d", name, m, n, norm(aj), length, j)
				}
			}
		}
	}
}

func TestQRAgainstGonum(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	a := randomGeneral(rng, 60, 40)
	_, r, err := QR(ctx, nil, a)
	if err != nil {
		t.Fatal(err)
	}
	var want mat.QR
	want.Factorize(dense(a))
	var w mat.Dense
	want.RTo(&w)
	for i := range 40 {
		for j := range 40 {
			if math.Abs(math.Abs(r.Data[i*40+j])-math.Abs(w.At(i, j))) > 1e-12 {
				t.Fatalf("R(%d, %d) is %g, gonum's %g", i, j, r.Data[i*40+j], w.At(i, j))
			}
		}
	}
}

func TestNotFinite(t *testing.T) {
	for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		a := randomDefinite(rand.New(rand.NewPCG(6, 6)), 70)
		a.Data[20*70+33] = bad
		var e *NotFiniteError
		if _, _, err := QR(ctx, nil, a); !errors.As(err, &e) || e.Row != 20 || e.Col != 33 {
			t.Errorf("QR of %g: %v", bad, err)
		}
		for _, vectors := range []bool{false, true} {
			if _, err := SymmetricEigen(ctx, pool.New(2), Clone(a), vectors); !errors.As(err, &e) || e.Row != 20 || e.Col != 33 {
				t.Errorf("eigen of %g: %v", bad, err)
			}
		}
		if _, err := ErrorOperator32(ctx, nil, new32(10, 70), a); !errors.As(err, &e) {
			t.Errorf("S with %g: %v", bad, err)
		}
		dw := new32(70, 70)
		dw.Data[71] = float32(bad)
		if _, err := ErrorOperator32(ctx, nil, dw, randomDefinite(rand.New(rand.NewPCG(6, 6)), 70)); !errors.As(err, &e) || e.Row != 1 || e.Col != 1 {
			t.Errorf("ΔW with %g: %v", bad, err)
		}
		apply, err := ErrorOperator(nil, a, a)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := LeadingEigen(ctx, nil, 70, apply, 3, 2, 1, 1); !errors.As(err, &e) {
			t.Errorf("leading of %g: %v", bad, err)
		}
	}
}
