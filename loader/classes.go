package loader

import (
	"strings"

	"github.com/nlpodyssey/gopickle/types"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// class is a Python class or function. Calling it makes an inert object, and
// nothing else happens.
type class struct{ name string }

func (c *class) Call(args ...any) (any, error)  { return &object{class: c.name, args: args}, nil }
func (c *class) PyNew(args ...any) (any, error) { return c.Call(args...) }

// maxStates bounds how often the state of one object is set; pickles do it once.
const maxStates = 16

// object is what an unpickled object leaves behind: everything that was given
// to it. It can stand for a dict or a list, and it can be called, since Python
// allows that of any object.
type object struct {
	class   string
	args    []any
	states  []any             // one for each BUILD
	entries []types.DictEntry // for each item that was set
	items   []any             // for each item that was appended
}

func (o *object) Call(args ...any) (any, error) {
	return &object{class: o.class, args: append([]any{o}, args...)}, nil
}
func (o *object) PyNew(args ...any) (any, error) { return o.Call(args...) }
func (o *object) Set(key, value any) {
	o.entries = append(o.entries, types.DictEntry{Key: key, Value: value})
}
func (o *object) Append(v any) { o.items = append(o.items, v) }
func (o *object) PySetState(state any) error {
	if len(o.states) == maxStates {
		return malformed("the pickle sets the state of one object more than %d times", maxStates)
	}
	o.states = append(o.states, state)
	return nil
}

// function is a function of PyTorch that has a counterpart here.
type function struct {
	name string
	call func(args []any) (any, error)
}

func (f *function) Call(args ...any) (any, error)  { return f.call(args) }
func (f *function) PyNew(args ...any) (any, error) { return f.call(args) }

// elementType is a torch.dtype or what a typed storage holds.
type elementType struct {
	name  string
	dtype DType // Invalid where fettle has no such type
	size  int   // bytes of an element
	codes DType // of a type of quantized elements, what they are stored as
}

func element(d DType) elementType { return elementType{name: d.String(), dtype: d, size: d.Size()} }

// other is a type of elements that fettle lacks.
func other(name string, size int) elementType { return elementType{name: name, size: size} }

// storageClass is a class of storages.
type storageClass struct{ elementType }

// storageTypes are PyTorch's storage classes by name. An untyped storage counts
// bytes; its tensors say their own type.
var storageTypes = map[string]elementType{
	"DoubleStorage": element(dtype.F64), "FloatStorage": element(dtype.F32),
	"HalfStorage": element(dtype.F16), "BFloat16Storage": element(dtype.BF16),
	"LongStorage": element(dtype.I64), "IntStorage": element(dtype.I32),
	"ShortStorage": element(dtype.I16), "CharStorage": element(dtype.I8),
	"ByteStorage": element(dtype.U8), "BoolStorage": element(dtype.Bool),
	"ComplexFloatStorage":  element(dtype.C64),
	"ComplexDoubleStorage": other("complex128", 16),
	"QInt8Storage":         {"qint8", dtype.Invalid, 1, dtype.I8},
	"QUInt8Storage":        {"quint8", dtype.Invalid, 1, dtype.U8},
	"QInt32Storage":        {"qint32", dtype.Invalid, 4, dtype.I32},
	// Two or four elements to a byte.
	"QUInt4x2Storage": other("quint4x2", 1), "QUInt2x4Storage": other("quint2x4", 1),
	"UntypedStorage": element(dtype.U8), "_UntypedStorage": element(dtype.U8),
}

// storageModules are the modules that storage classes come from.
var storageModules = map[string]bool{"torch": true, "torch.cuda": true, "torch.storage": true}

// torchTypes are PyTorch's dtypes by name.
var torchTypes = map[string]elementType{
	"float64": element(dtype.F64), "double": element(dtype.F64),
	"float32": element(dtype.F32), "float": element(dtype.F32),
	"float16": element(dtype.F16), "half": element(dtype.F16), "bfloat16": element(dtype.BF16),
	"float8_e4m3fn": element(dtype.F8E4M3), "float8_e5m2": element(dtype.F8E5M2), "float8_e8m0fnu": element(dtype.F8E8M0),
	"int64": element(dtype.I64), "long": element(dtype.I64), "int32": element(dtype.I32), "int": element(dtype.I32),
	"int16": element(dtype.I16), "short": element(dtype.I16), "int8": element(dtype.I8),
	"uint64": element(dtype.U64), "uint32": element(dtype.U32), "uint16": element(dtype.U16), "uint8": element(dtype.U8),
	"bool": element(dtype.Bool), "complex64": element(dtype.C64), "cfloat": element(dtype.C64),
	"complex32":  other("complex32", 4),
	"complex128": other("complex128", 16), "cdouble": other("complex128", 16),
	"float8_e4m3fnuz": other("float8_e4m3fnuz", 1), "float8_e5m2fnuz": other("float8_e5m2fnuz", 1),
	"qint8": other("qint8", 1), "quint8": other("quint8", 1), "qint32": other("qint32", 4),
}

// harmless are the classes and functions that common checkpoints name and that
// are nothing but data. They become inert objects like any other; being listed
// only keeps them out of UnknownClasses.
var harmless = listed(map[string]string{
	"builtins":    "object set frozenset list dict tuple complex bytearray bytes int long float str unicode bool slice range xrange",
	"collections": "OrderedDict defaultdict Counter deque namedtuple",
	"copyreg":     "_reconstructor",
	"_codecs":     "encode",
	"argparse":    "Namespace",
	"types":       "SimpleNamespace",
	"datetime":    "datetime date time timedelta timezone",
	"pathlib":     "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
	"numpy":       "dtype ndarray float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool_",

	"numpy.core.multiarray":  "scalar _reconstruct",
	"numpy._core.multiarray": "scalar _reconstruct",

	"torch":               "device Tensor Generator per_tensor_affine per_channel_affine per_tensor_symmetric per_channel_symmetric strided sparse_coo sparse_csr contiguous_format channels_last preserve_format",
	"torch.torch_version": "TorchVersion",
	"torch.serialization": "_get_layout",
	"torch.storage":       "TypedStorage _TypedStorage",
	"torch.jit._pickle":   "build_intlist build_tensorlist build_doublelist build_boollist restore_type_tag",
})

func listed(modules map[string]string) map[string]bool {
	names := map[string]bool{}
	for module, members := range modules {
		for _, member := range strings.Fields(members) {
			names[module+"."+member] = true
		}
	}
	return names
}

// isHarmless reports whether a name is on the list, or is a layer of
// torch.nn or a class that TorchScript compiled. Layers are told from functions
// by their capital.
func isHarmless(name string) bool {
	if harmless[name] || strings.HasPrefix(name, "__torch__.") {
		return true
	}
	dot := strings.LastIndexByte(name, '.')
	if !strings.HasPrefix(name, "torch.nn.modules.") || strings.ContainsFunc(name[:dot], func(r rune) bool { return r >= 'A' && r <= 'Z' }) {
		return false
	}
	return dot+1 < len(name) && name[dot+1] >= 'A' && name[dot+1] <= 'Z' && strings.Count(name, ".") == 4
}

// canonical returns the Python 3 name of a class.
func canonical(module, name string) string {
	switch module {
	case "__builtin__":
		module = "builtins"
	case "copy_reg":
		module = "copyreg"
	case "commands":
		module = "subprocess"
	case "cPickle":
		module = "pickle"
	}
	return module + "." + name
}
