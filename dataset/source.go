package dataset

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
)

// source is bytes that can be read from their start more than once: a file,
// unpacked where it is gzip.
type source struct {
	path string
	size int64 // after unpacking
	open func() (io.ReadCloser, error)
}

// openSource opens a file. One that is gzip is unpacked once to learn its
// size, which its own trailer cannot be trusted for, and again by each reader,
// so that no more than the samples drawn is ever held.
func openSource(ctx context.Context, path string) (*source, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &Error{Path: path, Problem: "cannot be opened", Err: err}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, &Error{Path: path, Problem: "cannot be opened", Err: err}
	}
	if !info.Mode().IsRegular() {
		return nil, &Error{Path: path, Problem: "is not a file", Help: "give the path of the data file itself"}
	}
	s := &source{path: path, size: info.Size(), open: func() (io.ReadCloser, error) { return os.Open(path) }}
	magic := make([]byte, 2)
	if _, err := io.ReadFull(f, magic); err == nil && isGzip(magic) {
		return s.unpacked(ctx)
	}
	return s, nil
}

func isGzip(b []byte) bool { return bytes.HasPrefix(b, []byte{0x1f, 0x8b}) }

// unpacked returns the source of what s, which is gzip, holds.
func (s *source) unpacked(ctx context.Context) (*source, error) {
	u := &source{path: s.path, open: func() (io.ReadCloser, error) {
		f, err := s.open()
		if err != nil {
			return nil, err
		}
		z, err := gzip.NewReader(bufio.NewReader(f))
		if err != nil {
			_ = f.Close() // the error that matters is the one returned
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{z, f}, nil
	}}
	r, err := u.open()
	if err == nil {
		defer r.Close()
		u.size, err = io.Copy(io.Discard, &contextReader{ctx, r})
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, &Error{Path: s.path, Problem: "is damaged gzip", Help: "fetch the file again", Err: err}
	}
	return u, nil
}

type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

// head returns the first n bytes, fewer when there are fewer.
func (s *source) head(n int64) ([]byte, error) {
	r, err := s.open()
	if err != nil {
		return nil, &Error{Path: s.path, Problem: "cannot be read", Err: err}
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, n))
	if err != nil {
		return nil, &Error{Path: s.path, Problem: "cannot be read", Err: err}
	}
	return b, nil
}

// records are equal pieces of a source: record i stands at base + i·stride and
// has size bytes.
type records struct {
	source       *source
	base, stride int64
	size         int
}

// read returns the given records one after the other in the order asked for.
// It goes through the source once, from front to back.
func (r records) read(ctx context.Context, which []int) ([]byte, error) {
	in, err := r.source.open()
	if err != nil {
		return nil, &Error{Path: r.source.path, Problem: "cannot be read", Err: err}
	}
	defer in.Close()
	buffered := bufio.NewReaderSize(in, 1<<16)
	dst := make([]byte, len(which)*r.size)
	places := make([]int, len(which))
	for i := range places {
		places[i] = i
	}
	slices.SortFunc(places, func(a, b int) int { return which[a] - which[b] })
	at := int64(0)
	for _, p := range places {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		want := r.base + int64(which[p])*r.stride
		if _, err = io.CopyN(io.Discard, buffered, want-at); err == nil {
			_, err = io.ReadFull(buffered, dst[p*r.size:][:r.size])
		}
		if err != nil {
			return nil, &Error{Path: r.source.path, Problem: fmt.Sprintf("sample %d cannot be read", which[p]), Err: err}
		}
		at = want + int64(r.size)
	}
	return dst, nil
}
