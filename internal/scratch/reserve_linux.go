package scratch

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserve gives a file its size and its blocks: writing to the mapping of a
// file whose disk is full would kill the process.
func reserve(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fill(f, size)
	}
	return err
}
