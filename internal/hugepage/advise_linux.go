package hugepage

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// size is that of a huge page.
const size = 2 << 20

// Advise asks for huge pages behind a slice of at least some of them.
func Advise[T any](s []T) {
	var zero T
	bytes := uintptr(len(s)) * unsafe.Sizeof(zero)
	if bytes < 4*size {
		return
	}
	begin := uintptr(unsafe.Pointer(unsafe.SliceData(s)))
	from := (begin + size - 1) &^ (size - 1)
	to := (begin + bytes) &^ (size - 1)
	raw := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(s)), from-begin)), to-from)
	_ = unix.Madvise(raw, unix.MADV_HUGEPAGE) // a hint
}
