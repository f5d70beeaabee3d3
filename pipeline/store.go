package pipeline

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/fettle-dev/fettle/internal/atomicfile"
)

// store keeps units on disk, each under the hash of what it depends on. With
// an empty folder it keeps nothing.
type store struct {
	dir              string
	reused, computed int
}

// key is the hex hash of the JSON of its parts.
func key(parts ...any) (string, error) {
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(parts); err != nil {
		return "", fmt.Errorf("key of a unit: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (s *store) path(key string) string {
	return filepath.Join(s.dir, key[:2], key+".safetensors")
}

// unit finds the unit of a key on disk, or computes and keeps it. A damaged
// file counts as absent and is replaced. found says which it was.
func unit[T any](s *store, key string, decode func(io.ReaderAt, int64) (T, error), encode func(io.Writer, T) error, compute func() (T, error)) (v T, found bool, err error) {
	if v, ok := load(s, key, decode); ok {
		s.reused++
		return v, true, nil
	}
	v, err = compute()
	if err != nil {
		return v, false, err
	}
	s.computed++
	return v, false, save(s, key, v, encode)
}

func load[T any](s *store, key string, decode func(io.ReaderAt, int64) (T, error)) (v T, ok bool) {
	if s.dir == "" {
		return v, false
	}
	f, err := os.Open(s.path(key))
	if err != nil {
		return v, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return v, false
	}
	v, err = decode(f, info.Size())
	return v, err == nil
}

func save[T any](s *store, key string, v T, encode func(io.Writer, T) error) error {
	if s.dir == "" {
		return nil
	}
	path := s.path(key)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return &CacheError{Dir: s.dir, Err: err}
	}
	if err := atomicfile.Write(path, func(w io.Writer) error { return encode(w, v) }); err != nil {
		return &CacheError{Dir: s.dir, Err: err}
	}
	return nil
}

// errLostUnit says that a unit that was there is there no more.
var errLostUnit = errors.New("a finished layer that was kept there is gone or damaged; run again to compute it again")

// CacheError says that a unit could not be kept.
type CacheError struct {
	Dir string
	Err error
}

func (e *CacheError) Error() string {
	if errors.Is(e.Err, errLostUnit) {
		return fmt.Sprintf("cache folder %s: %s", e.Dir, e.Err)
	}
	return fmt.Sprintf("cache folder %s: %s; free some space, name another with --cache, or use --no-cache", e.Dir, errText(e.Err))
}

func (e *CacheError) Unwrap() error { return e.Err }
