package loader

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"path"
	"strings"
	"sync"
)

// Limits of a zip container.
const (
	maxDirectory = 64 << 20 // bytes of the central directory
	maxInflated  = 1 << 30  // bytes of one compressed entry when inflated
	deflateRatio = 1032     // the best that deflate can do
)

// archive is a zip that torch.save wrote.
type archive struct {
	data      io.ReaderAt
	size      int64
	entries   map[string]*zip.File
	folder    string // of data.pkl, with a slash at its end, or ""
	bigEndian bool
}

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
	if pickled.size > maxPickle {
		return malformed("data.pkl has %d bytes, more than the %d that are allowed", pickled.size, int64(maxPickle))
	}
	u := newUnpickler()
	u.resolve = func(s *pickledStorage) error {
		data, err := a.open("data/" + s.key)
		if err != nil {
			return err
		}
		if data.size < s.view.size {
			return malformed("the storage %q has %d bytes, want %d: the file is damaged", s.key, data.size, s.view.size)
		}
		s.view.data, s.view.base, s.view.bigEndian = data.data, data.base, a.bigEndian
		return nil
	}
	top, _, err := u.load(io.NewSectionReader(pickled.data, pickled.base, pickled.size), 0, pickled.size)
	if err != nil {
		return err
	}
	return c.addPickled(top, u)
}

// newArchive reads the zip's directory and finds the folder of data.pkl.
func newArchive(r io.ReaderAt, size int64) (*archive, error) {
	if err := checkDirectory(r, size); err != nil {
		return nil, err
	}
	z, err := zip.NewReader(r, size)
	if err != nil {
		return nil, malformed("the zip cannot be read: %v", err)
	}
	a := &archive{data: r, size: size, entries: make(map[string]*zip.File, len(z.File))}
	var pickles []string
	for _, f := range z.File {
		if _, taken := a.entries[f.Name]; taken {
			return nil, malformed("the zip has two entries %q", f.Name)
		}
		a.entries[f.Name] = f
		if folder, name := path.Split(f.Name); name == "data.pkl" && strings.Count(folder, "/") <= 1 {
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

// open returns the bytes of an entry of the archive's folder. Stored entries
// are read in place, compressed ones are inflated when they are first read.
func (a *archive) open(name string) (*storage, error) {
	f := a.entries[a.folder+name]
	if f == nil {
		return nil, malformed("the zip has no entry %q: the file is damaged", a.folder+name)
	}
	if f.Flags&(1|1<<13) != 0 {
		return nil, malformed("the zip entry %q is encrypted", f.Name)
	}
	off, err := f.DataOffset()
	if err != nil {
		return nil, malformed("the zip entry %q cannot be read: %v", f.Name, err)
	}
	packed, size := f.CompressedSize64, f.UncompressedSize64
	if off < 0 || off > a.size || packed > uint64(a.size-off) {
		return nil, malformed("the zip entry %q reaches beyond the file: it is cut short", f.Name)
	}
	switch {
	case f.Method == zip.Store && packed == size:
		return &storage{data: a.data, base: off, size: int64(size)}, nil
	case f.Method == zip.Deflate && size <= maxInflated && size/deflateRatio <= packed+1:
		return &storage{data: &inflated{file: f}, size: int64(size)}, nil
	case f.Method == zip.Deflate:
		return nil, malformed("the compressed zip entry %q claims %d bytes, at most %d can be inflated: store it uncompressed", f.Name, size, int64(maxInflated))
	}
	return nil, malformed("the zip entry %q has compression method %d and sizes %d and %d: only stored and deflated entries can be read", f.Name, f.Method, packed, size)
}

// inflated is a compressed entry, inflated when it is first read.
type inflated struct {
	file *zip.File
	once sync.Once
	data []byte
	err  error
}

func (z *inflated) ReadAt(p []byte, off int64) (int, error) {
	z.once.Do(z.inflate)
	if z.err != nil {
		return 0, z.err
	}
	return bytes.NewReader(z.data).ReadAt(p, off)
}

func (z *inflated) inflate() {
	r, err := z.file.Open()
	if err == nil {
		data := make([]byte, z.file.UncompressedSize64)
		_, err = io.ReadFull(r, data)
		if err == nil {
			_, err = r.Read(make([]byte, 1)) // the end is where the checksum is compared
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		z.data = data
		err = errors.Join(err, r.Close())
	}
	if err != nil {
		z.err = malformed("the compressed zip entry %q cannot be inflated: %v", z.file.Name, err)
	}
}

// Layout of the records at a zip's end.
const (
	endSize       = 22
	locatorSize   = 20
	end64Size     = 56
	maxComment    = math.MaxUint16
	unknownUint32 = math.MaxUint32
)

// checkDirectory refuses what archive/zip would let pass or would spend much
// memory on: bytes behind the zip's end, and a huge directory.
func checkDirectory(r io.ReaderAt, size int64) error {
	tail := make([]byte, min(size, endSize+maxComment))
	start := size - int64(len(tail))
	if err := readAt(r, tail, start); err != nil {
		return err
	}
	i := bytes.LastIndex(tail, []byte("PK\x05\x06"))
	if i < 0 || len(tail)-i < endSize {
		return malformed("the zip has no directory at its end: the file is cut short")
	}
	le := binary.LittleEndian
	end := tail[i:]
	if after := len(end) - endSize - int(le.Uint16(end[20:])); after > 0 {
		return malformed("%d bytes follow the zip's end", after)
	} else if after < 0 {
		return malformed("the zip's end is %d bytes short: the file is cut short", -after)
	}
	length, offset := uint64(le.Uint32(end[12:])), uint64(le.Uint32(end[16:]))
	if length == unknownUint32 || offset == unknownUint32 {
		var err error
		if length, offset, err = directory64(r, start+int64(i)-locatorSize, size); err != nil {
			return err
		}
	}
	endAt := uint64(start) + uint64(i)
	if offset > endAt || length > endAt-offset {
		return malformed("the zip's directory lies beyond the file: it is cut short")
	}
	if endAt-offset > maxDirectory {
		return malformed("the zip's directory has %d bytes, more than the %d that are allowed", endAt-offset, int64(maxDirectory))
	}
	return nil
}

// directory64 reads the length and the offset of a zip64 directory.
func directory64(r io.ReaderAt, locator, size int64) (length, offset uint64, err error) {
	cut := malformed("the zip64 directory lies beyond the file: it is cut short")
	if locator < 0 {
		return 0, 0, cut
	}
	var l [locatorSize]byte
	if err := readAt(r, l[:], locator); err != nil {
		return 0, 0, err
	}
	at := binary.LittleEndian.Uint64(l[8:])
	if !bytes.HasPrefix(l[:], []byte("PK\x06\x07")) || at > uint64(size) || uint64(size)-at < end64Size {
		return 0, 0, cut
	}
	var e [end64Size]byte
	if err := readAt(r, e[:], int64(at)); err != nil {
		return 0, 0, err
	}
	if !bytes.HasPrefix(e[:], []byte("PK\x06\x06")) {
		return 0, 0, cut
	}
	return binary.LittleEndian.Uint64(e[40:]), binary.LittleEndian.Uint64(e[48:]), nil
}
