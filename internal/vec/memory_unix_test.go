//go:build linux || darwin

package vec

import (
	"syscall"
	"testing"
)

// newMemory returns a block between two pages that may not be touched.
func newMemory(t *testing.T, size int, atEnd bool) *memory {
	t.Helper()
	page := syscall.Getpagesize()
	size = (size + page - 1) / page * page
	b, err := syscall.Mmap(-1, 0, size+2*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Munmap(b) })
	for _, guard := range [][]byte{b[:page], b[page+size:]} {
		if err := syscall.Mprotect(guard, syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	m := &memory{block: b[page : page+size], atEnd: atEnd}
	m.reset()
	return m
}
