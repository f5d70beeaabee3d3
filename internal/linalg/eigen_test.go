package linalg

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/mat"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

// symmetric makes a's lower triangle that of its upper one.
func symmetric(a blas64.General) blas64.General {
	blas.Mirror(a)
	return a
}

// withSpectrum returns QΛQᵀ of a random orthogonal Q.
func withSpectrum(t *testing.T, rng *rand.Rand, values []float64) blas64.General {
	t.Helper()
	n := len(values)
	q, _, err := QR(ctx, nil, randomGeneral(rng, n, n))
	if err != nil {
		t.Fatal(err)
	}
	ql, a := Clone(q), NewGeneral(n, n)
	for i := range n {
		for j, v := range values {
			ql.Data[i*n+j] *= v
		}
	}
	if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.Trans, 1, ql, q, 0, a); err != nil {
		t.Fatal(err)
	}
	return symmetric(a)
}

// spectra returns eigenvalues of every difficulty for divide & conquer.
func spectra(rng *rand.Rand, n int) map[string][]float64 {
	list := map[string][]float64{}
	add := func(name string, value func(i int) float64) {
		v := make([]float64, n)
		for i := range v {
			v[i] = value(i)
		}
		list[name] = v
	}
	add("all equal", func(int) float64 { return 3 })
	add("two values", func(i int) float64 { return float64(i % 2) })
	add("rank 5", func(i int) float64 { return float64(max(0, 5-i)) })
	add("clusters", func(i int) float64 { return float64(i%4) + 1e-14*rng.Float64() })
	add("one large", func(i int) float64 { return 1 + 1e12*float64(max(0, 1-i)) })
	add("geometric", func(i int) float64 { return math.Pow(10, -20*float64(i)/float64(n)) })
	add("arithmetic", func(i int) float64 { return float64(i) / float64(n) })
	add("both signs", func(i int) float64 { return float64(i%2*2-1) * rng.Float64() })
	return list
}

// special returns matrices that are not made of a spectrum.
func special(rng *rand.Rand, n int) map[string]blas64.General {
	list := map[string]blas64.General{"zero": NewGeneral(n, n), "random": symmetric(randomGeneral(rng, n, n))}
	fill := func(name string, element func(i, j int) float64) {
		a := NewGeneral(n, n)
		for i := range n {
			for j := i; j < n; j++ {
				a.Data[i*n+j] = element(i, j)
			}
		}
		list[name] = symmetric(a)
	}
	tridiagonal := func(d, e func(i int) float64) func(i, j int) float64 {
		return func(i, j int) float64 {
			switch j - i {
			case 0:
				return d(i)
			case 1:
				return e(i)
			}
			return 0
		}
	}
	one := func(int) float64 { return 1 }
	fill("identity", tridiagonal(one, func(int) float64 { return 0 }))
	fill("1 2 1", tridiagonal(func(int) float64 { return 2 }, one))
	// Pairs of eigenvalues that agree to working precision.
	fill("Wilkinson", tridiagonal(func(i int) float64 { return math.Abs(float64(i) - float64(n-1)/2) }, one))
	fill("glued Wilkinson", tridiagonal(func(i int) float64 { return math.Abs(float64(i%21) - 10) },
		func(i int) float64 {
			if i%21 == 20 {
				return 1e-8
			}
			return 1
		}))
	fill("zero diagonal, tiny couplings", tridiagonal(func(int) float64 { return 0 }, func(i int) float64 { return math.Pow(10, -float64(i%100)*3) }))
	fill("negative couplings", tridiagonal(func(i int) float64 { return float64(i % 3) }, func(i int) float64 { return -1 - float64(i%2) }))
	fill("ones", func(i, j int) float64 { return 1 })
	fill("graded", func(i, j int) float64 { return rng.NormFloat64() * math.Pow(10, -15*float64(i+j)/float64(n)) })
	list["tiny"], list["huge"] = Clone(list["random"]), Clone(list["random"])
	scale(0x1p-1020, list["tiny"].Data)
	scale(0x1p1000, list["huge"].Data)
	return list
}

// checkEigen holds values and vectors against A, in units of n·ε·‖A‖.
func checkEigen(t *testing.T, name string, a blas64.General) []float64 {
	t.Helper()
	n := a.Rows
	size, v := 0.0, Clone(a)
	for _, x := range a.Data {
		size = max(size, math.Abs(x))
	}
	for i := range n {
		for j := range i {
			v.Data[i*n+j] = math.NaN() // must not be read
		}
	}
	other := Clone(v)
	values, err := SymmetricEigen(ctx, pool.New(2), v, true)
	if err != nil {
		t.Fatalf("%s %d: %v", name, n, err)
	}
	if !slices.IsSorted(values) || len(values) != n {
		t.Fatalf("%s %d: values are not ascending: %v", name, n, values)
	}
	if o := orthonormality(t, v); !(o <= 8*float64(n+4)*epsilon) {
		t.Errorf("%s %d: VᵀV − I is %g", name, n, o)
	}
	// A·V − V·Λ, of A scaled to 1.
	factor := safeScale(size)
	scaled, r := Clone(a), NewGeneral(n, n)
	scale(factor, scaled.Data)
	if err := blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, scaled, v, 0, r); err != nil {
		t.Fatal(err)
	}
	worst := 0.0
	for i := range n {
		for j := range n {
			d := math.Abs(r.Data[i*n+j] - v.Data[i*n+j]*(values[j]*factor))
			if !(d <= worst) {
				worst = d
			}
		}
	}
	spread := max(math.Abs(values[0]), math.Abs(values[n-1]), size)
	if !(worst <= 8*float64(n+4)*epsilon*spread*factor) {
		t.Errorf("%s %d: AV − VΛ is %g, A %g", name, n, worst, spread*factor)
	}
	alone, err := SymmetricEigen(ctx, nil, other, false)
	if err != nil {
		t.Fatalf("%s %d, values: %v", name, n, err)
	}
	for i := range alone {
		if !(math.Abs(alone[i]-values[i]) <= 8*float64(n+4)*epsilon*spread) {
			t.Errorf("%s %d: value %d is %g alone, %g with vectors", name, n, i, alone[i], values[i])
			break
		}
	}
	return values
}

func TestEigen(t *testing.T) {
	sizes := []int{1, 2, 3, 7, 31, 32, 33, 34, 63, 64, 65, 66, 97, 130, 200}
	if os.Getenv("FETTLE_LONG") != "" {
		sizes = append(sizes, 511, 1024, 1500)
	}
	for _, n := range sizes {
		rng := rand.New(rand.NewPCG(7, uint64(n)))
		for name, spectrum := range spectra(rng, n) {
			got := checkEigen(t, name, withSpectrum(t, rng, spectrum))
			slices.Sort(spectrum)
			size := max(math.Abs(spectrum[0]), math.Abs(spectrum[n-1]))
			for i, want := range spectrum {
				if !(math.Abs(got[i]-want) <= 16*float64(n+4)*epsilon*size) {
					t.Errorf("%s %d: value %d is %g, want %g", name, n, i, got[i], want)
					break
				}
			}
		}
		for name, a := range special(rng, n) {
			checkEigen(t, name, a)
		}
	}
	if testing.Short() {
		return
	}
	rng := rand.New(rand.NewPCG(7, 7))
	for range 20 {
		n := 1 + rng.IntN(300)
		checkEigen(t, "random", symmetric(randomGeneral(rng, n, n)))
	}
}

func TestEigenAgainstGonum(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	for _, n := range []int{1, 2, 10, 50, 120} {
		a := symmetric(randomGeneral(rng, n, n))
		var e mat.EigenSym
		if !e.Factorize(mat.NewSymDense(n, Clone(a).Data), true) {
			t.Fatal("gonum fails")
		}
		var vectors mat.Dense
		e.VectorsTo(&vectors)
		values, err := SymmetricEigen(ctx, nil, a, true)
		if err != nil {
			t.Fatal(err)
		}
		for j, want := range e.Values(nil) {
			if math.Abs(values[j]-want) > 1e-12*float64(n) {
				t.Fatalf("n=%d: value %d is %g, gonum's %g", n, j, values[j], want)
			}
			cosine := 0.0
			for i := range n {
				cosine += a.Data[i*n+j] * vectors.At(i, j)
			}
			if math.Abs(math.Abs(cosine)-1) > 1e-8 {
				t.Errorf("n=%d: vector %d is another than gonum's: cosine %g", n, j, cosine)
			}
		}
	}
}

// In D + ρzzᵀ with a root extremely near each pole, and with many equal gaps.
func TestSecularRoots(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	for trial := range 200 {
		k := 1 + rng.IntN(60)
		s := secularProblem{d: make([]float64, k), z: make([]float64, k), rho: math.Exp(8 * rng.NormFloat64()), values: make([]float64, k), column: make([]int, k), rows: NewGeneral(k, k)}
		for i := range k {
			gap := 1 / float64(k)
			if trial%3 == 1 {
				gap *= math.Pow(10, -13*rng.Float64())
			}
			if i > 0 {
				s.d[i] = s.d[i-1] + gap
			}
			s.z[i] = rng.NormFloat64()
			if trial%2 == 1 {
				s.z[i] *= math.Pow(10, -15*rng.Float64())
			}
			s.column[i] = i
		}
		scale(1/norm(s.z), s.z)
		if err := s.solve(ctx, nil); err != nil {
			t.Fatal(err)
		}
		sum := s.rho
		for i, v := range s.values {
			sum += s.d[i] - v
			if v < s.d[i] || i+1 < k && v > s.d[i+1] {
				t.Fatalf("trial %d: root %d is %g, not above %g", trial, i, v, s.d[i])
			}
		}
		size := max(s.rho, 1)
		if !(math.Abs(sum) <= 16*float64(k)*epsilon*size*float64(k)) {
			t.Errorf("trial %d: the trace is off by %g of %g", trial, sum, size)
		}
		if o := orthonormality(t, s.rows); o > 8*float64(k+4)*epsilon {
			t.Errorf("trial %d: vectors of %d are orthonormal to %g", trial, k, o)
		}
	}
}

// allResults returns the results of every factorization, in one row.
func allResults(t *testing.T, p *pool.Pool) []float64 {
	t.Helper()
	rng := rand.New(rand.NewPCG(2, 2))
	const n = 230
	a, b := randomDefinite(rng, n), randomGeneral(rng, 100, n)
	l, u, x := Clone(a), Clone(a), Clone(b)
	for _, err := range []error{Cholesky(ctx, p, l), InverseUpper(ctx, p, u), SolveRows(ctx, p, l, x)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	inverse, err := Inverse(ctx, p, l)
	if err != nil {
		t.Fatal(err)
	}
	q, r, err := QR(ctx, p, randomGeneral(rng, 1200, 70))
	if err != nil {
		t.Fatal(err)
	}
	vectors := symmetric(randomGeneral(rng, 301, 301))
	alone := Clone(vectors)
	values, err := SymmetricEigen(ctx, p, vectors, true)
	if err != nil {
		t.Fatal(err)
	}
	valuesAlone, err := SymmetricEigen(ctx, p, alone, false)
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Concat(l.Data, u.Data, x.Data, inverse.Data, q.Data, r.Data, vectors.Data, values, valuesAlone)
	dw := new32(80, n)
	for i := range dw.Data {
		dw.Data[i] = float32(rng.NormFloat64())
	}
	apply, err := ErrorOperator32(ctx, p, dw, a)
	if err != nil {
		t.Fatal(err)
	}
	leading, values, err := LeadingEigen(ctx, p, 80, apply, 9, 8, 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(all, leading.Data, values)
}

func TestEverythingHasTheSameBytesForAnyWorkers(t *testing.T) {
	want := allResults(t, nil)
	for _, workers := range []int{1, 2, 5} {
		if !sameBytes(allResults(t, pool.New(workers)), want) {
			t.Errorf("%d workers change the result", workers)
		}
	}
}

// Cancelled at any moment, everything ends soon with the context's error.
func TestCancelledMidway(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	a := randomDefinite(rng, 300)
	apply, err := ErrorOperator(nil, a, a)
	if err != nil {
		t.Fatal(err)
	}
	for name, run := range map[string]func(ctx context.Context, p *pool.Pool) error{
		"Cholesky":     func(ctx context.Context, p *pool.Pool) error { return Cholesky(ctx, p, Clone(a)) },
		"InverseUpper": func(ctx context.Context, p *pool.Pool) error { return InverseUpper(ctx, p, Clone(a)) },
		"QR":           func(ctx context.Context, p *pool.Pool) error { _, _, err := QR(ctx, p, a); return err },
		"eigen": func(ctx context.Context, p *pool.Pool) error {
			_, err := SymmetricEigen(ctx, p, Clone(a), true)
			return err
		},
		"values": func(ctx context.Context, p *pool.Pool) error {
			_, err := SymmetricEigen(ctx, p, Clone(a), false)
			return err
		},
		"leading": func(ctx context.Context, p *pool.Pool) error {
			_, _, err := LeadingEigen(ctx, p, 300, apply, 20, 8, 2, 1)
			return err
		},
	} {
		for _, p := range []*pool.Pool{nil, pool.New(2)} {
			done, cancel := context.WithCancel(ctx)
			cancel()
			if err := run(done, p); !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", name, err)
			}
			soon, cancel := context.WithTimeout(ctx, time.Duration(rng.IntN(3000))*time.Microsecond)
			if err := run(soon, p); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", name, err)
			}
			cancel()
		}
	}
}
