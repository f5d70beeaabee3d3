package blas

import "testing"

func BenchmarkGather(b *testing.B) {
	g := Patches{Channels: 16, Height: 32, Width: 32, KernelH: 3, KernelW: 3, StrideH: 1, StrideW: 1, PadH: 1, PadW: 1, DilationH: 1, DilationW: 1, Groups: 1}
	image, dst := make([]float32, 16*1024), make([]float32, 1024*144)
	b.SetBytes(int64(4 * len(dst)))
	for b.Loop() {
		g.Gather(dst, 144, image, 0, 0, 1024)
	}
}
