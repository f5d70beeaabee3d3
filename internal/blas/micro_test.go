package blas

import (
	"fmt"
	"slices"
	"testing"
	"unsafe"

	"github.com/fettle-dev/fettle/internal/bench/blas/peak"
	"golang.org/x/sys/unix"
)

func cpuT() float64 {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

func TestMicro(t *testing.T) {
	buf := make([]float32, 1<<20)
	c := make([]float32, 1<<20)
	run := func(kn, panelsA, rows, v int) float64 {
		kr := use.f32
		f := kr.tiles[rows][v]
		var tl tile
		tl.k = kn
		tl.alpha32 = 1
		tl.ldb = v * 64
		tl.ldc = 4096
		reps := 0
		start := cpuT()
		for reps < 40000000/(kn*rows*v) {
			for p := range panelsA {
				tl.a = unsafe.Pointer(&buf[(p%4096)*kn*16])
				tl.b = unsafe.Pointer(&buf[1<<19])
				tl.c = unsafe.Pointer(&c[p*14*1024])
				f(&tl)
				reps++
			}
		}
		return float64(reps) * float64(kn*rows*v*32) / (cpuT() - start) / 1e9
	}
	for _, s := range [][4]int{{128, 1, 14, 2}, {384, 1, 14, 2}, {384, 16, 14, 2}, {128, 32, 14, 2}, {384, 16, 12, 2}, {384, 16, 8, 2}, {144, 2, 8, 2}, {384, 16, 6, 2}, {384, 16, 4, 2}} {
		var r []float64
		for range 15 {
			pk := peak.GFLOPS(false, true, cpuT)
			x := run(s[0], s[1], s[2], s[3])
			r = append(r, x/pk)
		}
		slices.Sort(r)
		fmt.Println(s, fmt.Sprintf("%.3f %.3f %.3f", r[3], r[7], r[11]))
	}
}
