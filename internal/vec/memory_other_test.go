//go:build !linux && !darwin

package vec

import "testing"

func newMemory(_ *testing.T, size int, atEnd bool) *memory {
	m := &memory{block: make([]byte, size), atEnd: atEnd}
	m.reset()
	return m
}
