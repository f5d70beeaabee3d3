// Command gemm writes the assembly of internal/blas: micro-kernels of the
// matrix products for AVX2 and AVX-512 in float32 and float64, and the
// routines that pack panels.
//
// Run it in internal/asm: go run ./gemm
package main

import (
	"fmt"
	"go/format"
	"log"
	"os"
	"path/filepath"
	"strings"
)

// isa is a vector extension with an element type.
type isa struct {
	name    string // in symbols: f32x512
	reg     string // Z or Y
	bytes   int    // of a vector
	elem    int    // bytes of an element
	regs    int    // vector registers
	maxRows int    // of a tile of two vectors
	step    int    // elements between two k of a packed panel of rows
}

var (
	f32x512 = isa{"f32x512", "Z", 64, 4, 32, 14, 16}
	f64x512 = isa{"f64x512", "Z", 64, 8, 32, 14, 16}
	f32x256 = isa{"f32x256", "Y", 32, 4, 16, 6, 8}
	f64x256 = isa{"f64x256", "Y", 32, 8, 16, 6, 8}
)

func (a isa) v(i int) string { return fmt.Sprintf("%s%d", a.reg, i) }

// op gives a mnemonic its type: S for float32, D for float64.
func (a isa) op(name string) string {
	if a.elem == 8 {
		return strings.TrimSuffix(name, "S") + "D"
	}
	return name
}

// file is the assembly text being written, and the Go declarations beside it.
type file struct {
	strings.Builder
	decls strings.Builder
}

func (f *file) p(format string, args ...any) { fmt.Fprintf(f, "\t"+format+"\n", args...) }
func (f *file) label(name string)            { fmt.Fprintf(f, "%s:\n", name) }

func (f *file) text(name, params string, argBytes int, comment string) {
	fmt.Fprintf(f, "\n// func %s(%s)\nTEXT ·%s(SB), NOSPLIT, $0-%d\n", name, params, name, argBytes)
	fmt.Fprintf(&f.decls, "\n// %s\n//\n//go:noescape\nfunc %s(%s)\n", comment, name, params)
}

func main() {
	dir := filepath.Join("..", "blas")
	if _, err := os.Stat(dir); err != nil {
		log.Fatal("run this in internal/asm: ", err)
	}
	var decls strings.Builder
	for _, a := range []isa{f32x512, f64x512, f32x256, f64x256} {
		f := &file{}
		fmt.Fprintf(f, "// Written by internal/asm/gemm. DO NOT EDIT.\n\n//go:build !purego\n\n#include \"textflag.h\"\n#include \"go_asm.h\"\n")
		for _, s := range shapes(a) {
			kernel(f, a, s[0], s[1], false)
		}
		for _, s := range directShapes(a) {
			kernel(f, a, s[0], s[1], true)
		}
		copyPanel(f, a)
		copyPanels(f, a)
		transpose(f, a)
		if a.elem == 4 {
			addTile(f, a)
			window(f, a)
		}
		write(filepath.Join(dir, "kernels_"+a.name+"_amd64.s"), []byte(f.String()))
		decls.WriteString(f.decls.String())
		table(&decls, a)
	}
	write(filepath.Join("..", "bench", "blas", "peak", "fma_amd64.s"), []byte(peakLoops()))
	src := "// Written by internal/asm/gemm. DO NOT EDIT.\n\n//go:build !purego\n\npackage blas\n\nimport \"unsafe\"\n" + decls.String()
	out, err := format.Source([]byte(src))
	if err != nil {
		log.Fatal(err, src)
	}
	write(filepath.Join(dir, "kernels_amd64.go"), out)
}

func write(path string, data []byte) {
	if err := os.WriteFile(path, data, 0o644); err != nil {
		log.Fatal(err)
	}
}

// peakLoops returns loops of independent multiply-adds, which the benchmark
// takes for the processor's limit.
func peakLoops() string {
	f := &file{}
	fmt.Fprintf(f, "// Written by internal/asm/gemm. DO NOT EDIT.\n\n#include \"textflag.h\"\n")
	for _, a := range []isa{f32x256, f32x512} {
		n := a.regs * 3 / 4
		f.text("fma"+strings.TrimPrefix(a.name, "f32x"), "n int", 8, "")
		f.p("MOVQ n+0(FP), CX")
		for i := range n + 1 {
			f.p("VXORPS %[1]s, %[1]s, %[1]s", a.v(i))
		}
		f.label("loop")
		for i := range n {
			f.p("VFMADD231PS %[1]s, %[1]s, %[2]s", a.v(n), a.v(i))
		}
		f.p("DECQ CX")
		f.p("JNZ  loop")
		f.p("VZEROUPPER")
		f.p("RET")
	}
	return f.String()
}
