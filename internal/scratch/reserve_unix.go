//go:build unix && !linux

package scratch

import "os"

// reserve gives a file its size and its blocks: writing to the mapping of a
// file whose disk is full would kill the process.
func reserve(f *os.File, size int64) error { return fill(f, size) }
