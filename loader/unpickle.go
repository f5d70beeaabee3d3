package loader

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/nlpodyssey/gopickle/pickle"
	"github.com/nlpodyssey/gopickle/types"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// unpickler turns a checkpoint's pickle into Go values: gopickle's containers,
// tensors over storages whose place is settled by the container, and inert
// objects for everything else.
type unpickler struct {
	storages map[string]*pickledStorage
	unknown  map[string]bool
	cost     int64 // estimated bytes of the objects

	// resolve is called once for each new storage; nil allows none.
	resolve func(*pickledStorage) error
}

// pickledStorage is a storage as a pickle names it. view.size is what the
// pickle says; the container holds it against its own bytes.
type pickledStorage struct {
	key   string
	class *storageClass
	view  *storage
	first int64 // in bytes, for the part of a storage that old files can name
}

// pickledTensor is a tensor as a pickle holds it: without a name, and perhaps of
// a kind that cannot be read.
type pickledTensor struct {
	view       *Tensor
	unreadable string // the reason; then view is nil
}

// PySetState lets a tensor's subclass have attributes. They are of no use here.
func (t *pickledTensor) PySetState(any) error { return nil }

func newUnpickler() *unpickler {
	return &unpickler{storages: map[string]*pickledStorage{}, unknown: map[string]bool{}}
}

// load checks and reads the pickle at an offset of r, and returns the top
// object and where the pickle ends.
func (u *unpickler) load(r io.ReaderAt, off, size int64) (top any, end int64, err error) {
	stream, end, cost, err := checkPickle(r, off, size)
	if err != nil {
		return nil, 0, err
	}
	u.cost = cost
	// gopickle panics on some malformed input that the check lets pass.
	defer func() {
		if p := recover(); p != nil {
			err = malformed("the pickle is malformed: %s", shorten(fmt.Sprint(p)))
		}
	}()
	p := pickle.NewUnpickler(stream)
	p.FindClass = func(module, name string) (any, error) { return u.findClass(strings.TrimPrefix(module, ownPrefix), name) }
	p.PersistentLoad = u.persistentLoad
	top, err = p.Load()
	if stream.err != nil {
		return nil, 0, stream.err
	}
	if bad, ok := errors.AsType[*FormatError](err); ok {
		return nil, 0, bad
	}
	if err != nil {
		return nil, 0, malformed("the pickle is malformed: %s", shorten(err.Error()))
	}
	return top, end, nil
}

// shorten makes text from a file fit to be shown: one line, printable, short.
func shorten(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

func (u *unpickler) findClass(module, name string) (any, error) {
	full := canonical(module, name)
	if call, ok := rebuilders[full]; ok {
		return &function{full, call}, nil
	}
	module = strings.TrimSuffix(full, "."+name)
	if e, ok := storageTypes[name]; ok && storageModules[module] {
		return &storageClass{e}, nil
	}
	if e, ok := torchTypes[name]; ok && module == "torch" {
		return e, nil
	}
	if !isHarmless(full) {
		u.unknown[shorten(full)] = true
	}
	return &class{full}, nil
}

func (u *unpickler) unknownClasses() []string { return slices.Sorted(maps.Keys(u.unknown)) }

// persistentLoad answers a persistent id: a storage, a pair that the checking
// pass made of a STACK_GLOBAL, or a class with its source text, which old files
// keep.
func (u *unpickler) persistentLoad(id any) (any, error) {
	t, ok := id.(*types.Tuple)
	if !ok {
		return nil, malformed("the pickle has a persistent id that torch.save does not write")
	}
	parts := []any(*t)
	if len(parts) == 2 {
		module, isText := parts[0].(string)
		name, isText2 := parts[1].(string)
		if isText && isText2 {
			return u.findClass(module, name)
		}
	}
	if len(parts) >= 2 && parts[0] == any("module") {
		return parts[1], nil
	}
	if len(parts) < 5 || parts[0] != any("storage") || u.resolve == nil {
		return nil, malformed("the pickle has a persistent id that torch.save does not write")
	}
	return u.storage(parts)
}

// storage answers ("storage", class, key, location, elements) and, in old
// files, a sixth part: None or (view key, first element, elements).
func (u *unpickler) storage(parts []any) (any, error) {
	class, isClass := parts[1].(*storageClass)
	key, isKey := text(parts[2])
	n, isInt := parts[4].(int)
	if !isClass || !isKey || !isInt || n < 0 {
		return nil, malformed("the pickle names a storage of an unknown class or size")
	}
	size, ok := multiply(int64(n), int64(class.size))
	if !ok {
		return nil, malformed("the storage %q claims %d elements", key, n)
	}
	s := u.storages[key]
	if s == nil {
		s = &pickledStorage{key: key, class: class, view: &storage{size: size}}
		if err := u.resolve(s); err != nil {
			return nil, err
		}
		u.storages[key] = s
	}
	if s.class.elementType != class.elementType || s.view.size != size {
		return nil, malformed("the storage %q is named with two sizes or classes", key)
	}
	if len(parts) < 6 || parts[5] == nil {
		return s, nil
	}
	view, ok := parts[5].(*types.Tuple)
	if !ok || len(*view) != 3 {
		return nil, malformed("the storage %q has a malformed view", key)
	}
	first, isInt := (*view)[1].(int)
	count, isInt2 := (*view)[2].(int)
	if !isInt || !isInt2 || first < 0 || count < 0 || first > n || count > n-first {
		return nil, malformed("a view of storage %q reaches beyond it", key)
	}
	part := *s
	part.first = int64(first) * int64(class.size)
	return &part, nil
}

// text returns a key that may be a string or, in some files, an integer.
func text(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case int:
		return strconv.Itoa(v), true
	}
	return "", false
}

// rebuilders are PyTorch's functions that make tensors.
var rebuilders = map[string]func(args []any) (any, error){
	"torch._utils._rebuild_tensor":                 rebuildTensor,
	"torch._utils._rebuild_tensor_v2":              rebuildTensor,
	"torch._utils._rebuild_tensor_v3":              rebuildTensorV3,
	"torch._utils._rebuild_parameter":              rebuildParameter,
	"torch._utils._rebuild_parameter_with_state":   rebuildParameter,
	"torch.nn.parameter.Parameter":                 rebuildParameter,
	"torch.nn.parameter.Buffer":                    rebuildParameter,
	"torch.nn.Parameter":                           rebuildParameter,
	"torch.autograd.variable.Variable":             rebuildParameter,
	"torch._tensor._rebuild_from_type_v2":          rebuildTyped,
	"torch._utils._rebuild_qtensor":                rebuildQuantized,
	"torch._utils._rebuild_sparse_tensor":          cannotRead("a sparse tensor"),
	"torch._utils._rebuild_sparse_csr_tensor":      cannotRead("a sparse tensor"),
	"torch._utils._rebuild_nested_tensor":          cannotRead("a nested tensor"),
	"torch._utils._rebuild_meta_tensor_no_storage": cannotRead("a tensor without data, on the meta device"),
	"torch.Size": func(args []any) (any, error) { return only(args), nil },
}

func cannotRead(what string) func([]any) (any, error) {
	return func([]any) (any, error) { return &pickledTensor{unreadable: what}, nil }
}

// only returns the one argument of a call, or all of them as a tuple.
func only(args []any) any {
	if len(args) == 1 {
		return args[0]
	}
	return types.NewTupleFromSlice(args)
}

// rebuildTensor answers (storage, first element, sizes, strides, …); without
// strides the tensor is contiguous.
func rebuildTensor(args []any) (any, error) {
	if len(args) < 3 {
		return nil, malformed("a tensor is rebuilt from %d arguments, want 3 or more", len(args))
	}
	s, ok := args[0].(*pickledStorage)
	if !ok {
		return nil, malformed("a tensor is rebuilt from something that is not a storage")
	}
	return tensorOver(s, s.class.elementType, args)
}

// rebuildTensorV3 answers (storage, first element, sizes, strides,
// requires_grad, hooks, dtype, …) over an untyped storage.
func rebuildTensorV3(args []any) (any, error) {
	if len(args) < 7 {
		return nil, malformed("a tensor is rebuilt from %d arguments, want 7 or more", len(args))
	}
	s, isStorage := args[0].(*pickledStorage)
	e, isType := args[6].(elementType)
	if !isStorage || !isType {
		return nil, malformed("a tensor is rebuilt without a storage or a dtype")
	}
	return tensorOver(s, e, args)
}

func tensorOver(s *pickledStorage, e elementType, args []any) (any, error) {
	if e.dtype == dtype.Invalid {
		return &pickledTensor{unreadable: "a tensor of " + e.name + " elements"}, nil
	}
	offset, ok := args[1].(int)
	shape, ok2 := integers(args[2])
	if !ok || !ok2 {
		return nil, malformed("a tensor's offset or shape is not of integers")
	}
	strides := denseStrides(shape)
	if len(args) > 3 {
		if strides, ok = integers(args[3]); !ok {
			return nil, malformed("a tensor's strides are not integers")
		}
	}
	if s.first%int64(e.size) != 0 {
		return nil, malformed("a tensor starts inside an element of its storage")
	}
	first := s.first / int64(e.size)
	if offset < 0 || int64(offset) > s.view.size {
		return nil, malformed("a tensor starts at element %d, outside its storage", offset)
	}
	view, err := newView(s.view, e.dtype, first+int64(offset), shape, strides)
	if err != nil {
		return nil, err
	}
	return &pickledTensor{view: view}, nil
}

// integers returns a tuple or list of at most maxDims integers.
func integers(v any) ([]int, bool) {
	var items []any
	switch v := v.(type) {
	case *types.Tuple:
		items = *v
	case *types.List:
		items = *v
	default:
		return nil, false
	}
	if len(items) > maxDims {
		return nil, false
	}
	ints := make([]int, len(items))
	for i, item := range items {
		n, ok := item.(int)
		if !ok {
			return nil, false
		}
		ints[i] = n
	}
	return ints, true
}

// rebuildParameter answers (tensor, …).
func rebuildParameter(args []any) (any, error) {
	if len(args) > 0 && isTensor(args[0]) {
		return args[0], nil
	}
	return &object{class: "torch.nn.parameter.Parameter", args: args}, nil
}

// rebuildTyped answers (function, type, arguments, state) of a tensor subclass.
func rebuildTyped(args []any) (any, error) {
	if len(args) >= 3 {
		f, isFunction := args[0].(*function)
		inner, isTuple := args[2].(*types.Tuple)
		if isFunction && isTuple && f.name != "torch._tensor._rebuild_from_type_v2" {
			return f.call(*inner)
		}
	}
	return &object{class: "torch.Tensor", args: args}, nil
}
