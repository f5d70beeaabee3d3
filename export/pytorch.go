package export

import (
	"archive/zip"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/loader"
)

// storageClass names the class in module torch that holds elements of a type.
var storageClass = map[dtype.DType]string{
	dtype.F64: "DoubleStorage", dtype.F32: "FloatStorage", dtype.F16: "HalfStorage", dtype.BF16: "BFloat16Storage",
	dtype.I64: "LongStorage", dtype.I32: "IntStorage", dtype.I16: "ShortStorage", dtype.I8: "CharStorage",
	dtype.U8: "ByteStorage", dtype.Bool: "BoolStorage", dtype.C64: "ComplexFloatStorage",
}

// writePyTorch writes the zip format of PyTorch 1.6 and later: a pickle of the
// state dict, nested in one dict for each part of root, then one stored entry
// for each tensor's elements, each aligned to 64 bytes so that it can be
// mapped. The bytes depend on the arguments alone.
func writePyTorch(w io.Writer, root string, tensors []loader.Tensor, read func(loader.Tensor) ([]byte, error)) error {
	for _, t := range tensors {
		if t.Name == "" {
			return bad(t.Name, ErrUnsupported, "a state dict's tensor needs a name; write dense safetensors instead")
		}
		if storageClass[t.DType] == "" {
			return bad(t.Name, ErrUnsupported, "PyTorch files hold no %s here; write dense safetensors instead", t.DType)
		}
	}
	z := newArchive(w)
	if err := z.put("data.pkl", pickleStateDict(root, tensors)); err != nil {
		return err
	}
	for i, t := range tensors {
		raw, err := read(t)
		if err != nil {
			return err
		}
		if err := z.put("data/"+strconv.Itoa(i), raw); err != nil {
			return err
		}
	}
	if err := z.put("version", []byte("3\n")); err != nil {
		return err
	}
	return z.zip.Close()
}

// archive writes stored, aligned zip entries under the folder "archive".
type archive struct {
	zip    *zip.Writer
	offset counter // of the zip's bytes, up to date after Flush
}

func newArchive(w io.Writer) *archive {
	a := &archive{}
	a.zip = zip.NewWriter(io.MultiWriter(w, &a.offset))
	return a
}

const (
	zipAlignment = 64
	localHeader  = 30         // bytes of a zip entry's header before its name
	dosEpoch     = 1<<5 | 1   // 1 January 1980, the zip format's first day
	zipVersion   = 20         // the version of the zip format that stored entries need
	paddingField = "\x46\x42" // the extra field that PyTorch pads with
)

func (a *archive) put(name string, data []byte) error {
	if err := a.zip.Flush(); err != nil {
		return err
	}
	name = "archive/" + name
	start := int(a.offset) + localHeader + len(name) + 4
	padding := (zipAlignment - start%zipAlignment) % zipAlignment
	extra := binary.LittleEndian.AppendUint16([]byte(paddingField), uint16(padding))
	w, err := a.zip.CreateRaw(&zip.FileHeader{
		Name: name, Method: zip.Store, ModifiedDate: dosEpoch, //nolint:staticcheck // Modified would add a field to Extra
		CreatorVersion: zipVersion, ReaderVersion: zipVersion,
		CRC32:              crc32.ChecksumIEEE(data),
		CompressedSize64:   uint64(len(data)),
		UncompressedSize64: uint64(len(data)),
		Extra:              append(extra, strings.Repeat("Z", padding)...),
	})
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// pickler writes the few opcodes of pickle protocol 2 that a state dict needs.
// It writes to memory, so nothing fails.
type pickler struct{ out []byte }

func pickleStateDict(root string, tensors []loader.Tensor) []byte {
	p := &pickler{}
	p.op("\x80\x02") // PROTO 2
	depth := 0
	if root != "" {
		for part := range strings.SplitSeq(root, ".") {
			p.op("}") // EMPTY_DICT
			p.text(part)
			depth++
		}
	}
	p.emptyOrderedDict()
	p.op("(") // MARK
	for i, t := range tensors {
		p.text(t.Name)
		p.tensor(t, strconv.Itoa(i))
	}
	p.op("u")                        // SETITEMS
	p.op(strings.Repeat("s", depth)) // SETITEM of each outer dict
	p.op(".")                        // STOP
	return p.out
}

// tensor writes torch._utils._rebuild_tensor_v2(storage, offset, size, stride,
// requires_grad, hooks) for a contiguous tensor that fills its own storage.
func (p *pickler) tensor(t loader.Tensor, key string) {
	p.global("torch._utils", "_rebuild_tensor_v2")
	p.op("((") // MARK MARK
	p.text("storage")
	p.global("torch", storageClass[t.DType])
	p.text(key)
	p.text("cpu")
	p.integer(t.Elements())
	p.op("tQ") // TUPLE BINPERSID
	p.integer(0)
	p.integers(t.Shape)
	p.integers(contiguous(t.Shape))
	p.op("\x89") // NEWFALSE
	p.emptyOrderedDict()
	p.op("tR") // TUPLE REDUCE
}

// contiguous returns the strides of a row-major tensor as PyTorch counts them:
// an empty dimension counts as one.
func contiguous(shape []int) []int {
	strides := make([]int, len(shape))
	n := 1
	for i := len(shape) - 1; i >= 0; i-- {
		strides[i] = n
		n *= max(1, shape[i])
	}
	return strides
}

func (p *pickler) op(codes string) { p.out = append(p.out, codes...) }

func (p *pickler) emptyOrderedDict() {
	p.global("collections", "OrderedDict")
	p.op(")R") // EMPTY_TUPLE REDUCE
}

func (p *pickler) global(module, name string) { p.op("c" + module + "\n" + name + "\n") }

func (p *pickler) text(s string) {
	p.op("X") // BINUNICODE
	p.out = binary.LittleEndian.AppendUint32(p.out, uint32(len(s)))
	p.op(s)
}

func (p *pickler) integers(list []int) {
	p.op("(")
	for _, v := range list {
		p.integer(int64(v))
	}
	p.op("t")
}

func (p *pickler) integer(v int64) {
	switch {
	case v >= 0 && v <= math.MaxUint8:
		p.out = append(p.out, 'K', byte(v)) // BININT1
	case v >= 0 && v <= math.MaxInt32:
		p.op("J") // BININT
		p.out = binary.LittleEndian.AppendUint32(p.out, uint32(v))
	default:
		p.op("\x8a\x08") // LONG1 of 8 bytes
		p.out = binary.LittleEndian.AppendUint64(p.out, uint64(v))
	}
}
