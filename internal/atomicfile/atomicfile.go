// Package atomicfile writes files that are either whole or absent.
package atomicfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Write creates or replaces the file at path with what write produces. The
// bytes go to a temporary file in the same folder, are synced, and take the
// name at the end; on any error nothing is left behind and an older file at
// path is untouched.
func Write(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // the error that matters is the one returned
			_ = os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Folder is a folder under construction: its files are written to a temporary
// folder beside the final one, which appears only at Commit.
type Folder struct{ Temp, final string }

// NewFolder starts a folder that will stand at path. It fails with fs.ErrExist
// when something is already there. Missing parents are created.
func NewFolder(path string) (*Folder, error) {
	path = filepath.Clean(path)
	if _, err := os.Lstat(path); err == nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	parent := filepath.Dir(path)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	temp, err := os.MkdirTemp(parent, "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return nil, err
	}
	return &Folder{Temp: temp, final: path}, nil
}

// Commit gives the folder its final name.
func (f *Folder) Commit() error {
	if err := os.Chmod(f.Temp, 0o755); err != nil {
		return err
	}
	if err := syncDir(f.Temp); err != nil {
		return err
	}
	if _, err := os.Lstat(f.final); err == nil {
		return &fs.PathError{Op: "rename", Path: f.final, Err: fs.ErrExist}
	}
	if err := os.Rename(f.Temp, f.final); err != nil {
		return err
	}
	f.Temp = ""
	return syncDir(filepath.Dir(f.final))
}

// Discard removes the folder unless it was committed. It is safe to defer.
func (f *Folder) Discard() error {
	if f.Temp == "" {
		return nil
	}
	return os.RemoveAll(f.Temp)
}

// syncDir makes a folder's entries durable where the system can.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	_ = d.Sync() // not every system can sync a folder
	return nil
}
