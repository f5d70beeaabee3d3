package prune

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

var background = context.Background()

func keepFirst() *layer.Mask {
	m := layer.NewMask(1, 2)
	m.Set(0, 0, true)
	return m
}

// TestADMMWorkedValues: two inputs of correlation ½, the first kept, without and
// with a damping of 0.1 (which makes the diagonal 1.1, so that ρ is 1/1.1 of it).
func TestADMMWorkedValues(t *testing.T) {
	for _, damped := range []bool{false, true} {
		a := blas64.General{Rows: 2, Cols: 2, Stride: 2, Data: []float64{1, 0.5, 0.5, 1}}
		rho, want := 1.0, map[int]float64{0: 1, 1: 1.16, 2: 1.24, 19: 1.29999968}
		if damped {
			a.Data[0], a.Data[3] = 1.1, 1.1
			rho, want = 1/1.1, map[int]float64{0: 1, 1: 1.144231, 2: 1.216346, 19: 1.27272716}
		}
		for iterations, v := range want {
			w := blas64.General{Rows: 1, Cols: 2, Stride: 2, Data: []float64{1, 0.6}}
			if _, err := ADMM(background, nil, a, w, Selection{}, ADMMOptions{Iterations: iterations, Rho: rho, Mask: keepFirst()}); err != nil {
				t.Fatal(err)
			}
			near(t, fmt.Sprintf("Z after %d products", iterations), w.Data[0], v, 6e-7)
			if w.Data[1] != 0 {
				t.Errorf("pruned weight is %v", w.Data[1])
			}
		}
	}
}

func TestExperiment(t *testing.T) {
	if os.Getenv("EXP") == "" {
		t.Skip()
	}
	n := 1024
	fmt.Sscan(os.Getenv("EXP"), &n)
	p := pool.New(0)
	a, w := correlated(rand.New(rand.NewPCG(1, 2)), n, n, 2*n, 0.01)
	zero := linalg.NewGeneral(n, n)
	energy := loss(t, a, w, zero)
	began := time.Now()
	u := linalg.Clone(a)
	if err := linalg.InverseUpper(background, p, u); err != nil {
		t.Fatal(err)
	}
	fmt.Println("factor", time.Since(began))
	for _, perRow := range []bool{false, true} {
		for _, sp := range []float64{0.5, 0.7} {
			c := half(Pattern{}, map[bool]Scope{true: PerRow, false: PerLayer}[perRow], n, n, sp)
			if os.Getenv("NM") != "" {
				c = half(Pattern{Kind: NofM, N: 2, M: 4}, PerLayer, n, n, 0)
			}
			g := linalg.Clone(w)
			began = time.Now()
			if _, _, err := SparseGPT(background, p, u, nil, g, c, SparseGPTOptions{}); err != nil {
				t.Fatal(err)
			}
			fmt.Printf("row %v s %.1f sparsegpt %.3fs %.6f\n", perRow, sp, time.Since(began).Seconds(), loss(t, a, w, g)/energy)
			for _, o := range []ADMMOptions{{20, 0, 1, nil}, {20, 15, 1, nil}, {15, 15, 1, nil}, {10, 10, 1, nil}, {8, 8, 1, nil}, {6, 6, 1, nil}, {5, 5, 1, nil}, {4, 4, 1, nil}, {10, 10, .5, nil}, {8, 8, .5, nil}, {6, 6, 0.5, nil}, {5, 5, 0.5, nil}, {4, 4, 0.5, nil}, {5, 5, .3, nil}, {20, 15, .5, nil}} {
				z := linalg.Clone(w)
				began = time.Now()
				m, err := ADMM(background, p, a, z, c, o)
				if err != nil {
					t.Fatal(err)
				}
				ta := time.Since(began).Seconds()
				e := loss(t, a, w, z)
				began = time.Now()
				line := fmt.Sprintf("  ADMM %v %.3fs %.6f sparsity %.5f |", o, ta, e/energy, m.Sparsity())
				for _, it := range []int{2, 4, 6, 100} {
					z := linalg.Clone(z)
					began = time.Now()
					if _, err := Polish(background, p, a, w, z, m, PolishOptions{1e-3, it}); err != nil {
						t.Fatal(err)
					}
					line += fmt.Sprintf(" %d: %.3fs %.6f", it, time.Since(began).Seconds(), loss(t, a, w, z)/energy)
				}
				fmt.Println(line)
			}
		}
	}
}

func half(c Pattern, scope Scope, rows, cols int, sparsity float64) Selection {
	return Selection{Pattern: c, Scope: scope, Survivors: c.Survivors(rows, cols, sparsity)}
}
