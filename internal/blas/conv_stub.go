package blas

import "context"

type run struct {
	from int
	mask int
}
type unfolded struct{}

func packPatches(w any, dst []float32, u *unfolded, at, cols, width, k0, k int) {}

func (p *product[T]) direct() bool { return false }
func (p *product[T]) runDirect(ctx context.Context, n int, each func(context.Context, int, func(int) error) error) error {
	return nil
}
