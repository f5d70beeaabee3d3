// Package scratch gives out large buffers of float32 outside Go's heap: in
// memory up to a limit, over it in files that are mapped and have no name, so
// that nothing stays behind when the process is killed. A buffer's memory goes
// back to the system when it is freed, not at some later collection.
//
// On systems without mmap all buffers come from the heap.
package scratch

import (
	"fmt"
	"sync"
)

// small is the size in bytes below which a buffer comes from the heap. Freed
// buffers of at most spare bytes, and of that together, wait for the next one of
// their size: fresh memory costs the system more than clearing it.
const (
	small = 1 << 16
	spare = 64 << 20
)

// Space is a set of buffers. It is safe for concurrent use. A nil
// space takes all buffers from the heap.
type Space struct {
	dir     string
	limit   int64 // bytes in memory; 0 for no limit
	mu      sync.Mutex
	buffers map[*float32]buffer
	memory  int64 // bytes of buffers in memory
	peak    int64 // most bytes of buffers in files at once
	filed   int64 // bytes of buffers in files
	spares  map[int64][][]byte
	spared  int64 // bytes of spares
}

type buffer struct {
	raw  []byte
	file bool
}

// New returns a space whose buffers lie in memory up to limit bytes, 0 for no
// limit, and then in files in dir, "" for the system's folder of temporary
// files.
func New(dir string, limit int64) *Space { return &Space{dir: dir, limit: limit} }

// Limit returns how many bytes lie in memory at most, 0 where there is no limit.
func (s *Space) Limit() int64 {
	if s == nil {
		return 0
	}
	return s.limit
}

// Error says that no buffer could be had.
type Error struct {
	Bytes int64
	File  bool
	Err   error
}

func (e *Error) Error() string {
	where := "of memory"
	if e.File {
		where = "in a temporary file (TMPDIR names the folder)"
	}
	return fmt.Sprintf("%d bytes %s for activations cannot be had: %v", e.Bytes, where, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Floats returns n zeros. The buffer must not be used after Free or Close. It
// fails with *Error.
func (s *Space) Floats(n int) ([]float32, error) {
	size := int64(n) * 4
	if s == nil || size < small || !mappable {
		return make([]float32, n), nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	file := s.limit > 0 && s.memory+size > s.limit
	var raw []byte
	if !file {
		raw = s.takeSpare(size)
	}
	if raw == nil {
		if s.limit > 0 && !file && s.memory+s.spared+size > s.limit {
			s.dropSpares()
		}
		var err error
		if raw, err = mapped(s.dir, size, file); err != nil {
			return nil, &Error{size, file, err}
		}
	}
	if s.buffers == nil {
		s.buffers = map[*float32]buffer{}
	}
	floats := floatsOf(raw, n)
	s.buffers[&floats[0]] = buffer{raw, file}
	if file {
		s.filed += size
		s.peak = max(s.peak, s.filed)
	} else {
		s.memory += size
	}
	return floats, nil
}

// Free gives back a buffer. One that Floats did not make is left to the
// collector.
func (s *Space) Free(floats []float32) {
	if s == nil || len(floats) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.buffers[&floats[0]]; ok {
		s.free(&floats[0], b)
	}
}

func (s *Space) free(at *float32, b buffer) {
	delete(s.buffers, at)
	size := int64(len(b.raw))
	if b.file {
		s.filed -= size
		unmap(b.raw)
		return
	}
	s.memory -= size
	if s.spared+size > spare || (s.limit > 0 && s.memory+s.spared+size > s.limit) {
		unmap(b.raw)
		return
	}
	if s.spares == nil {
		s.spares = map[int64][][]byte{}
	}
	s.spares[size] = append(s.spares[size], b.raw)
	s.spared += size
}

// takeSpare returns a cleared buffer that waits; nil where none does.
func (s *Space) takeSpare(size int64) []byte {
	waiting := s.spares[size]
	if len(waiting) == 0 {
		return nil
	}
	raw := waiting[len(waiting)-1]
	s.spares[size] = waiting[:len(waiting)-1]
	s.spared -= size
	clear(raw)
	return raw
}

// Close frees all buffers. The space can be used again.
func (s *Space) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, b := range s.buffers {
		s.free(at, b)
	}
	s.dropSpares()
}

func (s *Space) dropSpares() {
	for _, waiting := range s.spares {
		for _, raw := range waiting {
			unmap(raw)
		}
	}
	s.spares, s.spared = nil, 0
}

// FilePeak returns the most bytes that lay in files at once.
func (s *Space) FilePeak() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peak
}
