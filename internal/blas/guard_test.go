//go:build unix

package blas

import (
	"context"
	"math/rand/v2"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"
)

// fenced returns n numbers that end where a page begins that may be neither
// read nor written; with before set they begin where one ends.
func fenced[T number](t *testing.T, n int, before bool) []T {
	t.Helper()
	page := unix.Getpagesize()
	size := n * int(unsafe.Sizeof(T(0)))
	inner := ceil(max(size, 1), page) * page
	mem, err := unix.Mmap(-1, 0, inner+2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	for _, fence := range [][]byte{mem[:page], mem[page+inner:]} {
		if err := unix.Mprotect(fence, unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	at := page
	if !before {
		at += inner - size
	}
	s := unsafe.Slice((*T)(unsafe.Pointer(&mem[at])), n)
	for i := range s {
		s[i] = T(i % 7)
	}
	return s
}

// TestNothingIsTouchedOutside would die of a fault.
func TestNothingIsTouchedOutside(t *testing.T) {
	ctx := context.Background()
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(20, 21))
		for i := range 60 {
			m, n, k := 1+randomSize(rng, 70), 1+randomSize(rng, 90), 1+randomSize(rng, 60)
			if i%10 == 0 {
				k += 384
			}
			before := i%2 == 0
			for _, tA := range []Transpose{NoTrans, Trans} {
				for _, tB := range []Transpose{NoTrans, Trans} {
					fencedGemm[float32](t, tA, tB, m, n, k, before)
					fencedGemm[float64](t, tA, tB, m, n, k, before)
				}
			}
			x := blas32.General{Rows: k, Cols: n, Stride: n, Data: fenced[float32](t, k*n, before)}
			h := blas64.General{Rows: n, Cols: n, Stride: n, Data: fenced[float64](t, n*n, before)}
			if err := AddGramUpper(ctx, nil, x, h); err != nil {
				t.Fatal(err)
			}
			if err := AddGram(ctx, nil, x, x, h); err != nil {
				t.Fatal(err)
			}
			g, ok := randomPatches(rng, 20)
			if !ok {
				continue
			}
			conv, err := NewConv(g, g.Groups, fenced[float32](t, g.Groups*g.Inputs(), before), fenced[float32](t, g.Groups, before))
			if err != nil {
				t.Fatal(err)
			}
			image := fenced[float32](t, g.Channels*g.Height*g.Width, before)
			if err := conv.Forward(ctx, nil, image, fenced[float32](t, g.Groups*g.Rows(), before)); err != nil {
				t.Fatal(err)
			}
			g.Gather(fenced[float32](t, g.Rows()*g.Inputs(), before), g.Inputs(), image, 0, 0, g.Rows())
		}
	})
}

func fencedGemm[T number](t *testing.T, tA, tB Transpose, m, n, k int, before bool) {
	t.Helper()
	mat := func(tr Transpose, r, c int) matrix[T] {
		if tr == Trans {
			r, c = c, r
		}
		return matrix[T]{Rows: r, Cols: c, Stride: c, Data: fenced[T](t, r*c, before)}
	}
	a, b, c := mat(tA, m, k), mat(tB, k, n), mat(NoTrans, m, n)
	if err := gemm(context.Background(), nil, tA, tB, 1, a, b, 1, c); err != nil {
		t.Fatal(err)
	}
}
