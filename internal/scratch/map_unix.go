//go:build unix

package scratch

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fettle-dev/fettle/internal/hugepage"
)

const mappable = true

func mapped(dir string, size int64, file bool) ([]byte, error) {
	if !file {
		raw, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err == nil {
			hugepage.Advise(raw)
		}
		return raw, err
	}
	f, err := os.CreateTemp(dir, "fettle-*")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	if err := reserve(f, size); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

func unmap(raw []byte) { _ = unix.Munmap(raw) } // fails only for what is not mapped

func floatsOf(raw []byte, n int) []float32 {
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(raw))), n)
}
