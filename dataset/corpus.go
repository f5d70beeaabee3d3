package dataset

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// maxDocument bounds what is held of a file at once.
const maxDocument = 1 << 28

// corpus is the documents of a set of files: where each stands, and how it
// becomes ids.
type corpus struct {
	options   *TextOptions
	encode    Encode
	files     []textFile
	documents []document

	open    readerAtCloser // of file at, to read the next document from too
	at      int
	scratch []byte
}

type readerAtCloser interface {
	io.ReaderAt
	io.Closer
}

// textFile is one of the corpus's files.
type textFile struct {
	path    string
	size    int64
	open    func() (readerAtCloser, error)
	element dtype.DType // of ids; Invalid for text
}

// document is the bytes of a file from begin to end.
type document struct {
	file       int
	begin, end int64
}

// encoded is a document's ids.
type encoded struct {
	ids  []uint32
	text int // bytes of its text
	// whole says that the ids are all of a text, the first of them put before it.
	whole bool
}

// openCorpus finds the documents of all files.
func openCorpus(ctx context.Context, o TextOptions, encode Encode) (*corpus, error) {
	c := &corpus{options: &o, encode: encode, at: -1}
	if o.Format == Embedded {
		text := BuiltIn()
		c.files = []textFile{{path: Embedded, size: int64(len(text)), open: func() (readerAtCloser, error) {
			return struct {
				io.ReaderAt
				io.Closer
			}{strings.NewReader(text), io.NopCloser(nil)}, nil
		}}}
	} else if err := c.find(); err != nil {
		return nil, err
	}
	defer c.close()
	for i := range c.files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := c.index(ctx, i); err != nil {
			return nil, err
		}
	}
	if len(c.documents) == 0 {
		return nil, o.fail("has no documents", "check the path, the separator and the least number of characters")
	}
	return c, nil
}

// find lists the files.
func (c *corpus) find() error {
	o := c.options
	info, err := os.Stat(o.Path)
	if err != nil {
		return &Error{Path: o.Path, Problem: "cannot be opened", Err: err}
	}
	if !info.IsDir() {
		return c.addFile(o.Path)
	}
	if o.Lengths != "" {
		return o.fail("one list of lengths is given for a folder", "name the lists x.lengths.json, beside x"+idFormats[o.Format])
	}
	entries, err := os.ReadDir(o.Path) // sorted by name
	if err != nil {
		return &Error{Path: o.Path, Problem: "cannot be read", Err: err}
	}
	ending := textFormats[o.Format] + idFormats[o.Format]
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ending || e.IsDir() {
			continue
		}
		if err := c.addFile(filepath.Join(o.Path, e.Name())); err != nil {
			return err
		}
	}
	if len(c.files) == 0 {
		return o.fail("the folder has no file whose name ends in "+ending, "check the path and the format")
	}
	return nil
}

func (c *corpus) addFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return &Error{Path: path, Problem: "cannot be opened", Err: err}
	}
	if !info.Mode().IsRegular() {
		return &Error{Path: path, Problem: "is not a file", Help: "give the path of the data file itself"}
	}
	if info.Size() == 0 {
		return &Error{Path: path, Problem: "is empty", Help: "check that the file is whole"}
	}
	c.files = append(c.files, textFile{path: path, size: info.Size(), open: func() (readerAtCloser, error) { return os.Open(path) }})
	return nil
}

// index appends a file's documents.
func (c *corpus) index(ctx context.Context, file int) error {
	f := &c.files[file]
	r, err := c.reader(file)
	if err != nil {
		return err
	}
	switch c.options.Format {
	case Text:
		return c.indexText(ctx, file, r, c.options.Separator)
	case Embedded:
		return c.indexText(ctx, file, r, BuiltInSeparator)
	case JSONL:
		return c.indexText(ctx, file, r, "\n")
	}
	a, err := openArray(f, r, c.options.Format)
	if err != nil {
		return err
	}
	f.element = a.element
	return c.indexIDs(file, a)
}

// indexText appends the documents of a text, or the lines of a JSONL.
func (c *corpus) indexText(ctx context.Context, file int, r io.ReaderAt, separator string) error {
	f := &c.files[file]
	head := make([]byte, 2)
	if n, _ := r.ReadAt(head, 0); isGzip(head[:n]) {
		return &Error{Path: f.path, Problem: "is gzip", Help: "unpack it first"}
	}
	s := bufio.NewScanner(&contextReader{ctx, io.NewSectionReader(r, 0, f.size)})
	s.Buffer(make([]byte, 1<<16), maxDocument+len(separator))
	s.Split(divide([]byte(separator)))
	begin, pieces := int64(0), 0
	for ; s.Scan(); pieces++ {
		b := s.Bytes()
		if bad := notUTF8(b); bad >= 0 {
			return &Error{Path: f.path, Problem: fmt.Sprintf("byte %d is not UTF-8", begin+int64(bad)), Help: "convert the file to UTF-8"}
		}
		text, err := c.text(b, pieces)
		if err != nil {
			err.Path = f.path
			return err
		}
		if n := utf8.RuneCountInString(strings.TrimSpace(text)); n >= max(1, c.options.MinChars) {
			c.documents = append(c.documents, document{file, begin, begin + int64(len(b))})
		}
		begin += int64(len(b) + len(separator))
	}
	switch err := s.Err(); {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, bufio.ErrTooLong):
		return &Error{Path: f.path, Problem: fmt.Sprintf("the document at byte %d has more than %d bytes", begin, maxDocument), Help: "divide the file into documents, with a separator for text"}
	default:
		return &Error{Path: f.path, Problem: "cannot be read", Err: err}
	}
}

// divide returns a split function for pieces between separators; without one
// all is one piece.
func divide(separator []byte) bufio.SplitFunc {
	return func(data []byte, atEOF bool) (int, []byte, error) {
		if i := bytes.Index(data, separator); i >= 0 && len(separator) > 0 {
			return i + len(separator), data[:i], nil
		}
		if atEOF && len(data) > 0 {
			return len(data), data, nil
		}
		return 0, nil, nil
	}
}

// notUTF8 returns the place of the first byte that is not UTF-8, or −1.
func notUTF8(b []byte) int {
	if utf8.Valid(b) {
		return -1
	}
	at := 0
	for {
		r, n := utf8.DecodeRune(b[at:])
		if r == utf8.RuneError && n <= 1 {
			return at
		}
		at += n
	}
}

// text returns the text of a document's bytes, which for JSONL are line number
// line, counted from 0; "" for a line of white space. The error is without the
// path.
func (c *corpus) text(b []byte, line int) (string, *Error) {
	text := string(b)
	if c.options.Format == JSONL {
		if len(bytes.TrimSpace(b)) == 0 {
			return "", nil
		}
		var err *Error
		if text, err = field(b, c.options.Field, line+1); err != nil {
			return "", err
		}
	}
	if c.options.Strip {
		text = strings.TrimSpace(text)
	}
	return text, nil
}

// field returns a string field of a JSON object.
func field(b []byte, name string, line int) (string, *Error) {
	if name == "" {
		name = "text"
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &fields); err != nil || fields == nil {
		return "", &Error{Problem: fmt.Sprintf("line %d is not a JSON object", line), Help: "give a file with one object a line", Err: err}
	}
	raw, ok := fields[name]
	if !ok {
		have := strings.Join(slices.Sorted(maps.Keys(fields)), ", ")
		return "", &Error{Problem: fmt.Sprintf("line %d has no field %q", line, name), Help: "set field to one of those it has: " + have}
	}
	var text string
	if raw[0] != '"' || json.Unmarshal(raw, &text) != nil {
		return "", &Error{Problem: fmt.Sprintf("the field %q of line %d is not a string", name, line), Help: "set field to the one with the text"}
	}
	return text, nil
}

// reader returns an open file, which close closes.
func (c *corpus) reader(file int) (io.ReaderAt, error) {
	if c.at == file {
		return c.open, nil
	}
	c.close()
	r, err := c.files[file].open()
	if err != nil {
		return nil, &Error{Path: c.files[file].path, Problem: "cannot be opened", Err: err}
	}
	c.open, c.at = r, file
	return r, nil
}

func (c *corpus) close() {
	if c.at >= 0 {
		_ = c.open.Close() // it was only read
		c.open, c.at = nil, -1
	}
}

// encoded reads document i and returns its ids, with BOS and EOS.
func (c *corpus) encoded(ctx context.Context, i int) (encoded, error) {
	if err := ctx.Err(); err != nil {
		return encoded{}, err
	}
	d, o := c.documents[i], c.options
	f := &c.files[d.file]
	bad := func(problem, help string, err error) (encoded, error) {
		return encoded{}, &Error{Path: f.path, Problem: fmt.Sprintf("document %d (at byte %d): %s", i, d.begin, problem), Help: help, Err: err}
	}
	r, err := c.reader(d.file)
	if err != nil {
		return encoded{}, err
	}
	b := slices.Grow(c.scratch[:0], int(d.end-d.begin))[:d.end-d.begin]
	c.scratch = b
	if n, err := r.ReadAt(b, d.begin); n < len(b) {
		return bad("cannot be read", "", err)
	}
	out := encoded{whole: f.element == dtype.Invalid && o.BOS != nil}
	if o.BOS != nil {
		out.ids = append(out.ids, *o.BOS)
	}
	first := len(out.ids)
	if f.element != dtype.Invalid {
		if out.ids, err = appendIDs(out.ids, b, f.element); err != nil {
			return bad(err.Error(), "check that the format is the file's", nil)
		}
	} else {
		text, problem := c.text(b, i)
		if problem != nil {
			return bad("has changed since it was first read", "", problem)
		}
		ids, err := c.encode(text)
		if err != nil {
			return bad("the tokenizer cannot encode it", "", err)
		}
		out.ids, out.text = append(out.ids, ids...), len(text)
	}
	for at, id := range out.ids[first:] {
		if o.Vocabulary > 0 && int64(id) >= int64(o.Vocabulary) {
			return bad(fmt.Sprintf("id %d at position %d is not below the vocabulary's %d", id, at, o.Vocabulary), "use the model's own tokenizer", nil)
		}
	}
	if o.EOS != nil {
		out.ids = append(out.ids, *o.EOS)
	}
	return out, nil
}

// count returns how many ids document i has, with BOS and EOS.
func (c *corpus) count(ctx context.Context, i int) (int64, error) {
	d, o := c.documents[i], c.options
	if element := c.files[d.file].element; element != dtype.Invalid {
		n := (d.end - d.begin) / int64(element.Size())
		for _, id := range []*uint32{o.BOS, o.EOS} {
			if id != nil {
				n++
			}
		}
		return n, nil
	}
	e, err := c.encoded(ctx, i)
	return int64(len(e.ids)), err
}

// predictedBytes returns the bytes of the text that all ids but the first
// stand for, −1 where that is not known.
func (c *corpus) predictedBytes(d encoded) (int64, error) {
	switch o := c.options; {
	case d.whole:
		return int64(d.text), nil
	case o.Decode == nil:
		return -1, nil
	default:
		all, err := o.Decode(d.ids)
		if err != nil {
			return 0, &Error{Path: o.Path, Problem: "the tokenizer cannot decode its ids", Err: err}
		}
		first, err := o.Decode(d.ids[:1])
		if err != nil {
			return 0, &Error{Path: o.Path, Problem: "the tokenizer cannot decode its ids", Err: err}
		}
		return int64(len(all) - len(first)), nil
	}
}
