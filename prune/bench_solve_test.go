package prune

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// BenchmarkSolvers: one layer, half of its weights pruned.
func BenchmarkSolvers(b *testing.B) {
	p := pool.New(0)
	for _, n := range []int{256, 1024, 2048} {
		a, w := correlated(rand.New(rand.NewPCG(1, 2)), n, n, n+64, 0.1)
		upper := linalg.Clone(a)
		if err := linalg.InverseUpper(b.Context(), p, upper); err != nil {
			b.Fatal(err)
		}
		c := Selection{Survivors: n * n / 2}
		var mask *layer.Mask
		var pruned blas64.General
		run := func(name string, from *blas64.General, do func(w blas64.General) error) {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				for b.Loop() {
					if err := do(linalg.Clone(*from)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		run("SparseGPT", &w, func(w blas64.General) error {
			_, _, err := SparseGPT(b.Context(), p, upper, nil, w, c, SparseGPTOptions{})
			return err
		})
		run("ADMM", &w, func(w blas64.General) (err error) {
			pruned = w
			mask, err = ADMM(b.Context(), p, a, w, c, DefaultADMM())
			return err
		})
		run("Polish", &pruned, func(got blas64.General) error {
			_, err := Polish(b.Context(), p, a, w, got, mask, DefaultPolish())
			return err
		})
	}
}
