package linalg

import (
	"math"
	"math/rand/v2"
	"testing"

	gonum "gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

// holed returns a copy of a with an odd stride and NaN between its rows, and a
// check that they are still there.
func holed(rng *rand.Rand, a blas64.General) (blas64.General, func() bool) {
	h := blas64.General{Rows: a.Rows, Cols: a.Cols, Stride: a.Cols + 1 + rng.IntN(5)}
	h.Data = make([]float64, (a.Rows+1)*h.Stride)
	for i := range h.Data {
		h.Data[i] = math.NaN()
	}
	for i := range a.Rows {
		copy(Row(h, i), Row(a, i))
	}
	return h, func() bool {
		for i, v := range h.Data {
			if (i/h.Stride >= h.Rows || i%h.Stride >= h.Cols) && v == v {
				return false
			}
		}
		return true
	}
}

func TestSolveTriangular(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 7))
	for range 25 {
		n, m := rng.IntN(200), rng.IntN(150)
		for _, side := range []gonum.Side{gonum.Left, gonum.Right} {
			for _, uplo := range []gonum.Uplo{gonum.Lower, gonum.Upper} {
				for _, op := range []blas.Transpose{blas.NoTrans, blas.Trans} {
					// The factor, with NaN where it must not be read, and whole.
					a, whole := NewGeneral(n, n), NewGeneral(n, n)
					for i := range n {
						for j := range n {
							if i != j && (i < j) == (uplo == gonum.Lower) {
								a.Data[i*n+j] = math.NaN()
								continue
							}
							v := rng.NormFloat64() / math.Sqrt(float64(n))
							if i == j {
								v = 1 + rng.Float64()
							}
							a.Data[i*n+j], whole.Data[i*n+j] = v, v
						}
					}
					b := randomGeneral(rng, n, m)
					if side == gonum.Right {
						b = randomGeneral(rng, m, n)
					}
					x, intact := holed(rng, b)
					if err := SolveTriangular(ctx, pool.New(2), side, uplo, op, a, x); err != nil {
						t.Fatal(err)
					}
					if !intact() {
						t.Fatalf("%c%c%c %d, %d: wrote beside the matrix", side, uplo, op, n, m)
					}
					if side == gonum.Right {
						again, intact := holed(rng, x)
						if err := MultiplyTriangular(ctx, pool.New(2), uplo, op, a, again); err != nil {
							t.Fatal(err)
						}
						if !intact() {
							t.Fatalf("%c%c %d, %d: wrote beside the matrix", uplo, op, n, m)
						}
						for i := range again.Rows {
							for j, v := range Row(again, i) {
								if w := b.Data[i*b.Stride+j]; !(math.Abs(v-w) <= 1e-12*float64(n+1)) {
									t.Fatalf("%c%c %d, %d: (%d, %d) multiplied is %g, want %g", uplo, op, n, m, i, j, v, w)
								}
							}
						}
					}
					back, left := NewGeneral(b.Rows, b.Cols), whole
					right, tl, tr := x, op, blas.NoTrans
					if side == gonum.Right {
						left, right, tl, tr = x, whole, blas.NoTrans, op
					}
					if err := blas.Gemm64(ctx, nil, tl, tr, 1, left, right, 0, back); err != nil {
						t.Fatal(err)
					}
					for i, v := range back.Data {
						if !(math.Abs(v-b.Data[i]) <= 1e-12*float64(n+1)) {
							t.Fatalf("%c%c%c %d, %d: element %d of the product is %g, want %g", side, uplo, op, n, m, i, v, b.Data[i])
						}
					}
				}
			}
		}
	}
}

// A right-hand side's solution has the same bytes alone and among others.
func TestSolveTriangularOfOneRow(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 8))
	l, b := randomDefinite(rng, 150), randomGeneral(rng, 90, 150)
	if err := Cholesky(ctx, nil, l); err != nil {
		t.Fatal(err)
	}
	all := Clone(b)
	if err := SolveRows(ctx, nil, l, all); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 31, 32, 89} {
		one := Clone(sub(b, i, 0, 1, 150))
		if err := SolveRows(ctx, nil, l, one); err != nil {
			t.Fatal(err)
		}
		if !sameBytes(one.Data, Row(all, i)) {
			t.Errorf("row %d alone is another", i)
		}
	}
}

func TestRankUpdate(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 9))
	for range 30 {
		n, k := rng.IntN(300), rng.IntN(70)
		for _, uplo := range []gonum.Uplo{gonum.Lower, gonum.Upper} {
			for _, op := range []blas.Transpose{blas.NoTrans, blas.Trans} {
				a := randomGeneral(rng, n, k)
				if op == blas.Trans {
					a = randomGeneral(rng, k, n)
				}
				before := randomGeneral(rng, n, n)
				c, intact := holed(rng, before)
				if err := RankUpdate(ctx, pool.New(3), uplo, op, -2, a, 0.5, c); err != nil {
					t.Fatal(err)
				}
				if !intact() {
					t.Fatal("wrote beside the matrix")
				}
				whole := Clone(before)
				other := blas.Trans
				if op == blas.Trans {
					other = blas.NoTrans
				}
				if err := blas.Gemm64(ctx, nil, op, other, -2, a, a, 0.5, whole); err != nil {
					t.Fatal(err)
				}
				for i := range n {
					for j := range n {
						want := whole.Data[i*n+j]
						if i != j && (i < j) == (uplo == gonum.Lower) {
							want = before.Data[i*n+j]
							if c.Data[i*c.Stride+j] != want {
								t.Fatalf("%c: changed the other triangle", uplo)
							}
						}
						if math.Abs(c.Data[i*c.Stride+j]-want) > 1e-12*float64(k+1) {
							t.Fatalf("%c%c %d, %d: (%d, %d) is %g, want %g", uplo, op, n, k, i, j, c.Data[i*c.Stride+j], want)
						}
					}
				}
			}
		}
	}
	c := blas64.General{Rows: 2, Cols: 2, Stride: 2, Data: []float64{math.NaN(), 7, 8, math.NaN()}}
	if err := RankUpdate(ctx, nil, gonum.Upper, blas.NoTrans, 1, randomGeneral(rng, 2, 0), 0, c); err != nil {
		t.Fatal(err)
	}
	if c.Data[0] != 0 || c.Data[1] != 0 || c.Data[2] != 8 || c.Data[3] != 0 {
		t.Errorf("no columns: %v", c.Data)
	}
}

// The residual of Cholesky's factor is rounding, whatever the matrix's scale and
// grading.
func TestCholeskyResidual(t *testing.T) {
	for _, n := range []int{1, 2, 17, 64, 65, 129, 200, 300} {
		for _, power := range []float64{0, -140, 140} {
			for _, grading := range []float64{0, 6} {
				rng := rand.New(rand.NewPCG(4, uint64(n)))
				a := randomDefinite(rng, n)
				for i := range n {
					for j := range n {
						a.Data[i*n+j] *= math.Pow(10, power-grading*float64(i+j)/float64(n))
					}
				}
				l := Clone(a)
				if err := Cholesky(ctx, pool.New(2), l); err != nil {
					t.Fatalf("n=%d, 10^%g, graded %g: %v", n, power, grading, err)
				}
				scale(-1, l.Data)
				b := Clone(a)
				if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.Trans, -1, l, l, 1, b); err != nil {
					t.Fatal(err)
				}
				for i := range n {
					for j := range n {
						// |A − LLᵀ| ≤ c·n·ε·√(aᵢᵢaⱼⱼ), element by element.
						bound := 4 * float64(n+1) * epsilon * math.Sqrt(a.Data[i*n+i]*a.Data[j*n+j])
						if !(math.Abs(b.Data[i*n+j]) <= bound) {
							t.Fatalf("n=%d, 10^%g, graded %g: residual (%d, %d) is %g of %g", n, power, grading, i, j, b.Data[i*n+j], bound)
						}
					}
				}
			}
		}
	}
}

func TestEmptyMatrices(t *testing.T) {
	empty := NewGeneral(0, 0)
	inverse, err := Inverse(ctx, nil, empty)
	if err != nil || inverse.Rows != 0 {
		t.Error(err)
	}
	q, r, err := QR(ctx, nil, NewGeneral(5, 0))
	if err != nil || q.Rows != 5 || q.Cols != 0 || r.Rows != 0 {
		t.Error(q, r, err)
	}
	values, err := SymmetricEigen(ctx, nil, empty, true)
	if err != nil || len(values) != 0 {
		t.Error(err)
	}
	for _, err := range []error{Cholesky(ctx, nil, empty), InverseUpper(ctx, nil, empty), SolveRows(ctx, nil, empty, NewGeneral(3, 0))} {
		if err != nil {
			t.Error(err)
		}
	}
}
