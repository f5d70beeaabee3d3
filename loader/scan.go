package loader

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/internal/safetensors"
)

// Scanned is what Scan found.
type Scanned struct {
	Files []ScannedFile // in the order of their paths
}

// ScannedFile is a file that holds pickles, or that was named to Scan itself.
type ScannedFile struct {
	Path    string
	Pickles int      // that it holds; 0 for a file of another format
	Globals []Global // that they name: dangerous ones first, then by name

	// Problem says why the file could not be followed to its end; "" when it could.
	// Python runs a pickle while it reads it, so what stands before a fault counts.
	Problem string
}

// Global is a class or function that a file's pickles name.
type Global struct {
	Name   string // as Python 3 calls it
	Class  NameClass
	Pickle string // the zip entry that names it first; "" in files that are no zip
	Offset int64  // in bytes, in that entry or file, of the operation that names it first
	Count  int    // operations that name it
}

// computedName stands for a name that a pickle computes while it runs.
const computedName = "(computed by the pickle)"

// Count returns how many globals of a class the files name, each once a file.
func (s *Scanned) Count(class NameClass) int {
	n := 0
	for _, f := range s.Files {
		for _, g := range f.Globals {
			if g.Class == class {
				n++
			}
		}
	}
	return n
}

// Scan lists the classes and functions that pickles name, and runs none of them.
// It takes any file: what torch.save wrote, in both formats, other pickles one
// after another, any zip that holds pickles; of a folder all files below it, of
// an index the shards that it names. A file that holds no pickle has none.
//
// A fault of a file's content stands in its Problem. The error is that of a path
// that cannot be read. Memory is bounded as for Open, whatever a file holds.
func Scan(ctx context.Context, path string) (*Scanned, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	var s Scanned
	switch {
	case info.IsDir():
		err = s.folder(ctx, path)
	case strings.HasSuffix(path, indexEnding):
		err = s.shards(ctx, path)
	default:
		err = s.file(ctx, path, true)
	}
	if err != nil {
		return nil, err
	}
	return &s, nil
}

func (s *Scanned) folder(ctx context.Context, root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := os.Stat(path) // of what a link leads to
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		return s.file(ctx, path, false)
	})
}

func (s *Scanned) shards(ctx context.Context, index string) error {
	_, shards, err := readShardIndex(index)
	if bad, ok := errors.AsType[*FormatError](err); ok {
		s.Files = append(s.Files, ScannedFile{Path: index, Problem: bad.Reason})
		return nil
	}
	for _, shard := range shards {
		if err == nil {
			err = s.file(ctx, filepath.Join(filepath.Dir(index), shard), true)
		}
	}
	return err
}

// file adds what a file holds. One that was not named itself is left out unless
// it is a pickle or looks like one by its name.
func (s *Scanned) file(ctx context.Context, path string, named bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, info, err := openRegular(path)
	if err != nil {
		if bad, ok := errors.AsType[*FormatError](err); ok {
			s.Files = append(s.Files, ScannedFile{Path: path, Problem: bad.Reason})
			return nil
		}
		return err
	}
	defer func() { _ = f.Close() }() // only read from
	found := scanner{globals: map[string]*Global{}}
	sure, err := found.scan(f, info.Size())
	out := ScannedFile{Path: path, Pickles: found.pickles, Globals: found.sorted()}
	if bad, ok := errors.AsType[*FormatError](err); ok {
		out.Problem = bad.Reason
	} else if err != nil {
		return err
	}
	dangerous := len(out.Globals) > 0 && out.Globals[0].Class == Dangerous
	if named || dangerous || sure && (out.Pickles > 0 || out.Problem != "") || hasPickleName(path) && out.Problem != "" {
		s.Files = append(s.Files, out)
	}
	return nil
}

// scanner collects the globals of one file.
type scanner struct {
	globals map[string]*Global
	pickles int
	entry   string // of a zip
}

// scan reads a file of any format. sure says that it is certainly one that may
// hold pickles.
func (s *scanner) scan(f io.ReaderAt, size int64) (sure bool, err error) {
	head := make([]byte, min(size, 64))
	if err := readAt(f, head, 0); err != nil {
		return true, err
	}
	if size == 0 {
		return false, malformed("the file is empty")
	}
	if bytes.HasPrefix(head, []byte("PK\x03\x04")) {
		return true, s.zip(f, size, "")
	}
	if isTar, err := s.tar(f, size); isTar {
		return true, err
	}
	// After the first pickle more may follow; a legacy file has five, then data.
	least := 1
	if bytes.Contains(head, []byte(legacyBytes)) || bytes.Contains(head, []byte(legacyDigits)) {
		least = 5
	}
	end, err := s.pickle(f, 0, size)
	for err == nil && (s.pickles < least || startsPickle(f, end, size)) {
		if end, err = s.pickle(f, end, size); err != nil && s.pickles > least {
			s.pickles--
			return true, nil // data that begins like a pickle
		}
	}
	if err != nil && len(s.globals) == 0 && isOtherFormat(f, head, size) {
		s.pickles = 0
		return true, nil
	}
	return err == nil || startsPickle(f, 0, size), err
}

// What a legacy file's first pickle holds, its magic number, in bytes and as
// protocol 1 writes it.
const (
	legacyBytes  = "l\xfc\x9cF\xf9 j\xa8P\x19"
	legacyDigits = "119547037146038801333356"
)

// tar reads the members of the format before PyTorch 0.1.10, which torch.load
// still takes. Each may be a pickle.
func (s *scanner) tar(f io.ReaderAt, size int64) (isTar bool, err error) {
	in := io.NewSectionReader(f, 0, size)
	members := tar.NewReader(in)
	for {
		header, err := members.Next()
		if err != nil {
			if isTar && !errors.Is(err, io.EOF) {
				return true, malformed("the tar file cannot be read: %s", shorten(err.Error()))
			}
			return isTar, nil
		}
		isTar = true
		at, err := in.Seek(0, io.SeekCurrent)
		if err != nil {
			return true, err
		}
		s.entry = shorten(header.Name)
		before := len(s.globals)
		end := min(size, at+max(header.Size, 0))
		if _, err := s.pickle(f, at, end); err != nil && len(s.globals) == before {
			s.pickles-- // data
		}
	}
}

// startsPickle reports whether the bytes at an offset are the first of a pickle
// of protocol 2 or later.
func startsPickle(f io.ReaderAt, off, size int64) bool {
	var p [2]byte
	return size-off >= 2 && readAt(f, p[:], off) == nil && p[0] == 0x80 && p[1] >= 2 && p[1] <= 5
}

// isOtherFormat reports whether a file is of a format without pickles. It is
// asked last: a file may be made to be two things at once.
func isOtherFormat(f io.ReaderAt, head []byte, size int64) bool {
	if looksLikeSafetensors(head) {
		_, err := safetensors.ReadHeader(f, size)
		return err == nil
	}
	return bytes.HasPrefix(head, []byte("GGUF"))
}

// zip reads the entries whose names are those of pickles, and archives inside. The
// prefix is that of the names of the archive's entries.
func (s *scanner) zip(f io.ReaderAt, size int64, prefix string) error {
	entries, err := readDirectory(f, size)
	if err != nil {
		return err
	}
	for i := range entries {
		e := &entries[i]
		if !hasPickleName(e.name) {
			continue
		}
		data, err := e.open(f)
		if err != nil {
			return err
		}
		name := prefix + shorten(e.name)
		head := make([]byte, min(data.size, 4))
		if err := readAt(data.data, head, data.base); err != nil {
			return err
		}
		switch isZip := string(head) == "PK\x03\x04"; {
		case isZip && (e.method != stored || strings.Count(prefix, "!") > 2):
			return malformed("the zip entry %q is an archive itself: unpack it", name)
		case isZip:
			err = s.zip(data.section(), data.size, name+"!")
		default:
			s.entry = name
			_, err = s.pickle(data.section(), 0, data.size)
		}
		if err != nil {
			return err
		}
	}
	return checkEntries(entries)
}

// hasPickleName reports whether a file's name is one that pickles have.
func hasPickleName(name string) bool {
	switch ext := strings.ToLower(filepath.Ext(name)); ext {
	case ".pkl", ".pickle", ".debug_pkl", ".pck", ".pcl", ".p", ".pt", ".pth", ".th", ".ckpt", ".joblib", ".pt2", ".ptl":
		return true
	}
	return false
}

// pickle follows one pickle, and returns where it ends.
func (s *scanner) pickle(r io.ReaderAt, off, size int64) (end int64, err error) {
	c := newChecker(r, off, size)
	c.trace = &tracer{memo: map[uint64]int32{}, found: s.found}
	s.pickles++
	err = c.run()
	return c.pos, err
}

func (s *scanner) found(module, name string, known bool, at int64) {
	full, class := computedName, Dangerous
	if known {
		full, class = shorten(canonical(module, name)), classify(module, name)
	}
	g := s.globals[full]
	if g == nil {
		g = &Global{Name: full, Class: class, Pickle: s.entry, Offset: at}
		s.globals[full] = g
	}
	if class == Dangerous { // two long names may be cut to one
		g.Class = Dangerous
	}
	g.Count++
}

func (s *scanner) sorted() []Global {
	order := map[NameClass]int{Dangerous: 0, Unknown: 1, Known: 2}
	var all []Global
	for _, g := range slices.SortedFunc(maps.Values(s.globals), func(a, b *Global) int {
		return cmp.Or(cmp.Compare(order[a.Class], order[b.Class]), cmp.Compare(a.Name, b.Name))
	}) {
		all = append(all, *g)
	}
	return all
}
