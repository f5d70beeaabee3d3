package loader

import (
	"bytes"
	"cmp"
	"compress/flate"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"path"
	"slices"
	"strings"
	"sync"
)

// Limits of a zip container.
const (
	maxDirectory = 64 << 20 // bytes of the central directory
	maxEntries   = 1 << 18
	deflateRatio = 1032 // the best that deflate can do
)

// archive is a zip that torch.save wrote.
type archive struct {
	data      io.ReaderAt
	entries   map[string]*zipEntry
	folder    string // of data.pkl, with a slash at its end, or ""
	bigEndian bool
}

// zipEntry is an entry of a zip's directory.
type zipEntry struct {
	name         string
	flags        uint16
	method       uint16
	sum          uint32 // CRC-32 of the contents
	packed, size int64
	at           int64 // of the entry's own header
	end          int64 // where the next header or the directory begins
}

// Methods and flags of an entry.
const (
	stored         = 0
	deflated       = 8
	encryptedFlags = 1 | 1<<13
)

// openZip lists the tensors of a file of PyTorch 1.6 or later, or of a
// TorchScript archive.
func (c *Checkpoint) openZip(f io.ReaderAt, size int64) error {
	c.format = PyTorchZip
	a, err := newArchive(f, size)
	if err != nil {
		return err
	}
	pickled, err := a.open("data.pkl")
	if err != nil {
		return err
	}
	u := newUnpickler()
	u.resolve = func(s *pickledStorage) error {
		data, err := a.open("data/" + s.key)
		if err != nil {
			return err
		}
		if data.size < s.view.size {
			return malformed("the storage %q has %d bytes, want %d: the file is damaged", shorten(s.key), data.size, s.view.size)
		}
		s.view.data, s.view.base, s.view.bigEndian = data.data, data.base, a.bigEndian
		return nil
	}
	top, _, err := u.load(pickled.section(), 0, pickled.size)
	if err != nil {
		return err
	}
	return c.addPickled(top, u)
}

// newArchive reads the zip's directory and finds the folder of data.pkl.
func newArchive(r io.ReaderAt, size int64) (*archive, error) {
	entries, err := readDirectory(r, size)
	if err == nil {
		err = checkEntries(entries)
	}
	if err != nil {
		return nil, err
	}
	a := &archive{data: r, entries: make(map[string]*zipEntry, len(entries))}
	var pickles []string
	for i := range entries {
		e := &entries[i]
		a.entries[e.name] = e
		if folder, name := path.Split(e.name); name == "data.pkl" && strings.Count(folder, "/") <= 1 {
			pickles = append(pickles, folder)
		}
	}
	switch len(pickles) {
	case 1:
		a.folder = pickles[0]
	case 0:
		return nil, malformed("the zip has no data.pkl: torch.save did not write it")
	default:
		return nil, malformed("the zip has %d files data.pkl, want one", len(pickles))
	}
	return a, a.readByteOrder()
}

func (a *archive) readByteOrder() error {
	if a.entries[a.folder+"byteorder"] == nil {
		return nil // written before PyTorch 2.1: little-endian, as every common machine is
	}
	s, err := a.open("byteorder")
	if err != nil {
		return err
	}
	order := make([]byte, min(s.size, 16))
	if err := readAt(s.data, order, s.base); err != nil {
		return err
	}
	switch strings.TrimSpace(string(order)) {
	case "little":
	case "big":
		a.bigEndian = true
	default:
		return malformed("the byte order is %q, want little or big", order)
	}
	return nil
}

// open returns the bytes of an entry of the archive's folder.
func (a *archive) open(name string) (*storage, error) {
	e := a.entries[a.folder+name]
	if e == nil {
		return nil, malformed("the zip has no entry %q: the file is damaged", shorten(a.folder+name))
	}
	return e.open(a.data)
}

// open returns the bytes of an entry. Stored entries are read in place,
// compressed ones are inflated as they are read.
func (e *zipEntry) open(r io.ReaderAt) (*storage, error) {
	name := shorten(e.name)
	if e.flags&encryptedFlags != 0 {
		return nil, malformed("the zip entry %q is encrypted", name)
	}
	body, err := e.body(r)
	if err != nil {
		return nil, err
	}
	if body > e.end || e.packed > e.end-body {
		return nil, malformed("the zip entry %q reaches into the next one: the file is damaged", name)
	}
	switch {
	case e.method == stored && e.packed == e.size:
		return &storage{data: r, base: body, size: e.size}, nil
	case e.method == deflated && e.size/deflateRatio <= e.packed+1:
		return &storage{data: &inflated{entry: e, packed: io.NewSectionReader(r, body, e.packed)}, size: e.size}, nil
	case e.method == deflated:
		return nil, malformed("the compressed zip entry %q claims %d bytes, more than %d can inflate to", name, e.size, e.packed)
	}
	return nil, malformed("the zip entry %q has compression method %d and sizes %d and %d: only stored and deflated entries can be read", name, e.method, e.packed, e.size)
}

// body reads the entry's own header and returns where its bytes begin. The
// header must say what the directory says, or another program would read
// something else.
func (e *zipEntry) body(r io.ReaderAt) (int64, error) {
	if e.end-e.at < localSize+int64(len(e.name)) {
		return 0, malformed("the zip entry %q is cut short", shorten(e.name))
	}
	h := make([]byte, localSize+len(e.name))
	if err := readAt(r, h, e.at); err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	if !bytes.HasPrefix(h, []byte("PK\x03\x04")) || int(le.Uint16(h[26:])) != len(e.name) || string(h[localSize:]) != e.name ||
		le.Uint16(h[8:]) != e.method || le.Uint16(h[6:])&encryptedFlags != 0 {
		return 0, malformed("the zip entry %q has another header than the directory says: the file is damaged", shorten(e.name))
	}
	return e.at + int64(len(h)) + int64(le.Uint16(h[28:])), nil
}

// inflated is a compressed entry. It inflates as it is read, from the front:
// reading what lies before the last read begins again.
type inflated struct {
	entry  *zipEntry
	packed *io.SectionReader

	mu     sync.Mutex
	stream io.Reader // nil before the first read and after an error
	at     int64     // in the inflated bytes
	sum    uint32    // of those before at
}

func (z *inflated) ReadAt(p []byte, off int64) (int, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if off < 0 || off > z.entry.size {
		return 0, io.EOF
	}
	wanted := len(p)
	p = p[:min(int64(len(p)), z.entry.size-off)]
	n, err := z.read(p, off)
	if err != nil {
		z.stream = nil
		return 0, malformed("the compressed zip entry %q cannot be inflated: %v", shorten(z.entry.name), err)
	}
	if n < wanted {
		return n, io.EOF
	}
	return n, nil
}

func (z *inflated) read(p []byte, off int64) (int, error) {
	if z.stream == nil || off < z.at {
		z.stream = flate.NewReader(io.NewSectionReader(z.packed, 0, z.packed.Size()))
		z.at, z.sum = 0, 0
	}
	skipped := make([]byte, min(off-z.at, 1<<16))
	for z.at < off {
		if _, err := z.next(skipped[:min(off-z.at, int64(len(skipped)))]); err != nil {
			return 0, err
		}
	}
	return z.next(p)
}

// next fills p. At the end it compares the checksum.
func (z *inflated) next(p []byte) (int, error) {
	n, err := io.ReadFull(z.stream, p)
	z.at += int64(n)
	z.sum = crc32.Update(z.sum, crc32.IEEETable, p[:n])
	if err != nil || z.at < z.entry.size {
		return n, err
	}
	if more, _ := z.stream.Read(make([]byte, 1)); more > 0 {
		return n, errors.New("it has more bytes than the directory says")
	}
	if z.sum != z.entry.sum {
		return n, errors.New("its checksum differs")
	}
	return n, nil
}

// readDirectory returns the entries of a zip in the order of its directory.
func readDirectory(r io.ReaderAt, size int64) ([]zipEntry, error) {
	d, err := findDirectory(r, size)
	if err != nil {
		return nil, err
	}
	if d.count > maxEntries {
		return nil, malformed("the zip has %d entries, more than the %d that are allowed", d.count, maxEntries)
	}
	var b strings.Builder // names are parts of its string, and not copied
	b.Grow(int(d.length))
	if _, err := io.Copy(&b, io.NewSectionReader(r, d.offset, d.length)); err != nil {
		return nil, err
	}
	text := b.String()
	if int64(len(text)) < d.length {
		return nil, malformed("the zip's directory is cut short")
	}
	entries := make([]zipEntry, 0, min(d.count, uint64(len(text)/centralSize)))
	for len(text) > 0 && uint64(len(entries)) < d.count {
		e, n := parseEntry(text)
		if n == 0 || e.at < 0 || e.packed < 0 || e.size < 0 {
			return nil, malformed("the zip's directory is damaged at entry %d", len(entries))
		}
		entries, text = append(entries, e), text[n:]
	}
	if len(text) > 0 || uint64(len(entries)) != d.count {
		return nil, malformed("the zip's directory does not hold the %d entries that it should", d.count)
	}
	return entries, placeEntries(entries, d.offset)
}

// parseEntry reads the directory's next entry, and returns its length there; 0
// where it is malformed.
func parseEntry(text string) (e zipEntry, length int) {
	if len(text) < centralSize || !strings.HasPrefix(text, "PK\x01\x02") {
		return e, 0
	}
	le, h := binary.LittleEndian, []byte(text[:centralSize])
	nameEnd := centralSize + int(le.Uint16(h[28:]))
	extraEnd := nameEnd + int(le.Uint16(h[30:]))
	length = extraEnd + int(le.Uint16(h[32:]))
	if length > len(text) {
		return e, 0
	}
	e = zipEntry{
		name: text[centralSize:nameEnd], flags: le.Uint16(h[8:]), method: le.Uint16(h[10:]), sum: le.Uint32(h[16:]),
		packed: int64(le.Uint32(h[20:])), size: int64(le.Uint32(h[24:])), at: int64(le.Uint32(h[42:])),
	}
	// What does not fit into 32 bits stands in an extra field, in this order.
	var large []*int64
	for _, v := range []*int64{&e.size, &e.packed, &e.at} {
		if *v == unknownUint32 {
			large = append(large, v)
		}
	}
	if len(large) == 0 {
		return e, length
	}
	for extra := []byte(text[nameEnd:extraEnd]); len(extra) >= 4; {
		n := int(le.Uint16(extra[2:]))
		if n > len(extra)-4 {
			return e, 0
		}
		if le.Uint16(extra) == 1 { // zip64
			for field := extra[4 : 4+n]; len(field) >= 8 && len(large) > 0; field = field[8:] {
				*large[0] = int64(le.Uint64(field))
				large = large[1:]
			}
			break
		}
		extra = extra[4+n:]
	}
	return e, length
}

// placeEntries finds where each entry must end, and refuses those that overlap.
func placeEntries(entries []zipEntry, directory int64) error {
	order := make([]*zipEntry, len(entries))
	for i := range entries {
		order[i] = &entries[i]
	}
	slices.SortFunc(order, func(a, b *zipEntry) int { return cmp.Compare(a.at, b.at) })
	for i, e := range order {
		e.end = directory
		if i+1 < len(order) {
			e.end = order[i+1].at
		}
		if e.at > directory {
			return malformed("the zip entry %q begins behind the directory: the file is damaged", shorten(e.name))
		}
		if header := localSize + int64(len(e.name)); e.packed > e.end-e.at-header {
			return malformed("the zip entry %q overlaps another, or the directory: the file is damaged", shorten(e.name))
		}
	}
	return nil
}

// checkEntries refuses names that two programs could take for different files.
func checkEntries(entries []zipEntry) error {
	names := make(map[string]struct{}, len(entries))
	for i := range entries {
		name := entries[i].name
		if _, taken := names[name]; taken {
			return malformed("the zip has two entries %q", shorten(name))
		}
		names[name] = struct{}{}
		if strings.HasPrefix(name, "/") || strings.ContainsAny(name, "\\\x00") || slices.Contains(strings.Split(name, "/"), "..") {
			return malformed("the zip entry %q has a name that leads out of the archive", shorten(name))
		}
	}
	return nil
}

// Layout of a zip's records.
const (
	endSize       = 22
	locatorSize   = 20
	end64Size     = 56
	centralSize   = 46 // an entry of the directory, without its name
	localSize     = 30 // the header before an entry's bytes, without its name
	maxComment    = math.MaxUint16
	unknownUint32 = math.MaxUint32
)

// directory is where a zip's directory lies.
type directory struct {
	offset, length int64
	count          uint64
}

// findDirectory finds the directory from the zip's end. It refuses bytes between
// the directory and the end, or behind it.
func findDirectory(r io.ReaderAt, size int64) (d directory, err error) {
	tail := make([]byte, min(size, endSize+maxComment))
	start := size - int64(len(tail))
	if err := readAt(r, tail, start); err != nil {
		return d, err
	}
	i := bytes.LastIndex(tail, []byte("PK\x05\x06"))
	if i < 0 || len(tail)-i < endSize {
		return d, malformed("the zip has no directory at its end: the file is cut short")
	}
	le := binary.LittleEndian
	end, endAt := tail[i:], start+int64(i)
	if after := len(end) - endSize - int(le.Uint16(end[20:])); after > 0 {
		return d, malformed("%d bytes follow the zip's end", after)
	} else if after < 0 {
		return d, malformed("the zip's end is %d bytes short: the file is cut short", -after)
	}
	d = directory{int64(le.Uint32(end[16:])), int64(le.Uint32(end[12:])), uint64(le.Uint16(end[10:]))}
	large, largeAt, err := directory64(r, endAt-locatorSize, size)
	switch {
	case err != nil:
		return d, err
	case largeAt > 0:
		if d.offset != unknownUint32 && d.offset != large.offset || d.length != unknownUint32 && d.length != large.length {
			return d, malformed("the zip's two directories differ: the file is damaged")
		}
		d, endAt = large, largeAt
	case d.length == unknownUint32 || d.offset == unknownUint32:
		return d, malformed("the zip64 directory is missing: the file is damaged")
	}
	if d.offset < 0 || d.length < 0 || d.offset > endAt || d.length != endAt-d.offset {
		return d, malformed("the zip's directory does not lie right before its end: the file is damaged or cut short")
	}
	if d.length > maxDirectory {
		return d, malformed("the zip's directory has %d bytes, more than the %d that are allowed", d.length, int64(maxDirectory))
	}
	return d, nil
}

// directory64 reads the place of a zip64 directory, and where its end record is;
// 0 where there is none.
func directory64(r io.ReaderAt, locator, size int64) (d directory, endAt int64, err error) {
	if locator < 0 {
		return d, 0, nil
	}
	var l [locatorSize]byte
	if err := readAt(r, l[:], locator); err != nil {
		return d, 0, err
	}
	if !bytes.HasPrefix(l[:], []byte("PK\x06\x07")) {
		return d, 0, nil
	}
	cut := malformed("the zip64 directory lies beyond the file: it is cut short")
	le := binary.LittleEndian
	endAt = int64(le.Uint64(l[8:]))
	if endAt <= 0 || endAt > size-end64Size {
		return d, 0, cut
	}
	var e [end64Size]byte
	if err := readAt(r, e[:], endAt); err != nil {
		return d, 0, err
	}
	d = directory{int64(le.Uint64(e[48:])), int64(le.Uint64(e[40:])), le.Uint64(e[32:])}
	if !bytes.HasPrefix(e[:], []byte("PK\x06\x06")) || d.offset < 0 || d.length < 0 {
		return d, 0, cut
	}
	return d, endAt, nil
}
