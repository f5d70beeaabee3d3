package scratch

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestSpace(t *testing.T) {
	if !mappable {
		t.Skip("no mmap here: all buffers come from the heap")
	}
	dir := t.TempDir()
	const n = 1 << 18 // 1 MiB
	s := New(dir, 5<<19)
	defer s.Close()
	var buffers [][]float32
	for i := range 4 {
		b, err := s.Floats(n)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range b {
			if v != 0 {
				t.Fatalf("buffer %d, element %d is %v", i, k, v)
			}
			b[k] = float32(i*n + k)
		}
		buffers = append(buffers, b)
	}
	if s.FilePeak() != 2<<20 || s.memory != 2<<20 {
		t.Errorf("%d bytes in files, %d in memory, want two buffers in each", s.FilePeak(), s.memory)
	}
	for i, b := range buffers {
		for k, v := range b {
			if v != float32(i*n+k) {
				t.Fatalf("buffer %d, element %d became %v", i, k, v)
			}
		}
	}
	if names, _ := os.ReadDir(dir); len(names) != 0 {
		t.Errorf("%v stand in the folder; the files should have no name", names)
	}
	s.Free(buffers[0])
	b, err := s.Floats(n)
	if err != nil || s.memory != 2<<20 || b[7] != 0 {
		t.Errorf("%v, %d bytes in memory: what was freed should serve again, as zeros", err, s.memory)
	}
	s.Free(make([]float32, n)) // of someone else: nothing happens
	s.Free(nil)
	if small, err := s.Floats(10); err != nil || len(small) != 10 {
		t.Errorf("%v, %d floats, want 10", err, len(small))
	}
}

func TestNoFolder(t *testing.T) {
	if !mappable {
		t.Skip("no mmap here")
	}
	s := New(filepath.Join(t.TempDir(), "absent"), 1)
	_, err := s.Floats(1 << 20)
	var bad *Error
	if !errors.As(err, &bad) || !bad.File || bad.Bytes != 4<<20 || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want the folder's absence", err)
	}
}
