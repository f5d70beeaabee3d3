package gate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/record"
)

// maxJSON is the largest record or manifest that is read; one of a thousand
// layers takes under a megabyte.
const maxJSON = 256 << 20

// folder is an output folder whose record, manifest and files agree.
type folder struct {
	path        string
	run         *record.Run
	weightBytes int64 // on disk, of the files that the manifest calls weights
}

func (f *folder) recordPath() string { return filepath.Join(f.path, record.FileName) }

// openFolder reads the record and the manifest at path and holds them against
// each other and against the files on disk.
func openFolder(ctx context.Context, path string) (*folder, error) {
	f := &folder{path: path}
	if err := f.readRecord(); err != nil {
		return nil, &InputError{f.recordPath(), err}
	}
	manifestPath := filepath.Join(path, record.ManifestName)
	manifest, err := f.readManifest(manifestPath)
	if err != nil {
		return nil, &InputError{manifestPath, err}
	}
	weights := 0
	for _, file := range manifest.Files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		filePath := filepath.Join(path, file.Name)
		if err := checkFile(filePath, file); err != nil {
			return nil, &InputError{filePath, err}
		}
		if file.Role == roleWeights {
			weights++
			f.weightBytes += file.Bytes
		}
	}
	if weights == 0 {
		return nil, &InputError{manifestPath, errors.New("names no weight file; compress again")}
	}
	if f.weightBytes != f.run.Output.WeightBytes {
		return nil, &InputError{f.recordPath(), fmt.Errorf("says %d bytes of weights, the files hold %d; compress again",
			f.run.Output.WeightBytes, f.weightBytes)}
	}
	return f, nil
}

// roleWeights is the role of files that count as the compressed model.
const roleWeights = "weights"

func (f *folder) readRecord() error {
	data, err := readJSON(f.recordPath())
	if err != nil {
		return err
	}
	f.run, err = record.Decode(bytes.NewReader(data))
	return err
}

// readManifest reads the manifest and checks that the record speaks of it.
func (f *folder) readManifest(path string) (*record.Manifest, error) {
	data, err := readJSON(path)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	if got := hex.EncodeToString(sum[:]); got != f.run.Output.ManifestSHA256 {
		return nil, fmt.Errorf("is not the manifest that the record speaks of: its SHA-256 is %s, the record has %q; compress again",
			got, f.run.Output.ManifestSHA256)
	}
	var m record.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	switch {
	case m.Version != record.Version:
		return nil, fmt.Errorf("%w: found %d, this fettle reads %d", record.ErrVersion, m.Version, record.Version)
	case m.Source != f.run.Source.SHA256:
		return nil, errors.New("has another source than the record; compress again")
	case m.Recipe != f.run.Recipe.SHA256:
		return nil, errors.New("has another recipe than the record; compress again")
	}
	return &m, sameFiles(m.Files, f.run.Output.Files)
}

// sameFiles checks that the manifest and the record list the same files, each
// once, by names that stay inside the folder.
func sameFiles(manifest, recorded []record.File) error {
	left := map[string]record.File{}
	for _, f := range recorded {
		left[f.Name] = f
	}
	if len(left) != len(recorded) {
		return errors.New("the record lists a file twice; compress again")
	}
	for _, f := range manifest {
		if !filepath.IsLocal(f.Name) || f.Bytes < 0 {
			return fmt.Errorf("lists file %q of %d bytes, want a name inside the folder and no negative size", f.Name, f.Bytes)
		}
		if left[f.Name] != f {
			return fmt.Errorf("lists file %q otherwise than the record, or twice; compress again", f.Name)
		}
		delete(left, f.Name)
	}
	if len(left) > 0 {
		return fmt.Errorf("lacks %d files of the record; compress again", len(left))
	}
	return nil
}

// checkFile compares a file on disk with what the manifest says of it. Of
// weight files in safetensors the header is checked, too.
func checkFile(path string, want record.File) error {
	f, size, err := open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if size != want.Bytes {
		return fmt.Errorf("holds %d bytes, the manifest says %d: it changed after compression; compress again", size, want.Bytes)
	}
	if want.Role == roleWeights && strings.HasSuffix(want.Name, ".safetensors") {
		_, err = safetensors.ReadHeader(f, size)
	}
	return err
}

// readJSON reads a file that must be one JSON value.
func readJSON(path string) ([]byte, error) {
	f, size, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > maxJSON {
		return nil, fmt.Errorf("holds %d bytes, more than the %d of any record", size, int64(maxJSON))
	}
	data, err := io.ReadAll(io.LimitReader(f, maxJSON))
	if err != nil {
		return nil, err
	}
	if !json.Valid(data) {
		return nil, errors.New("is not JSON; compress again")
	}
	return data, nil
}

// open opens a regular file and returns its size. Others, such as a pipe that
// would block, are refused unopened.
func open(path string) (*os.File, int64, error) {
	info, err := os.Stat(path)
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return nil, 0, pe.Err // the callers name the path
	}
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, errors.New("is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	return f, info.Size(), nil
}
