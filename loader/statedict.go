package loader

import (
	"fmt"
	"iter"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/nlpodyssey/gopickle/types"
)

// Limits on what one checkpoint lists, against objects that refer to each
// other so often that the paths to their tensors have no end.
const (
	maxTensors = 1 << 18
	maxSteps   = 1 << 21 // values that are looked at
	maxRoot    = 8       // keys on the path to the state dict
	costListed = 448     // estimated bytes that a tensor takes in the list, without its name
)

// stateDictKeys are the keys under which training scripts keep the state dict,
// the likeliest first.
var stateDictKeys = []string{
	"state_dict", "model_state_dict", "model_state", "model", "module", "net", "network",
	"weights", "params", "ema", "model_ema", "ema_state_dict", "params_ema",
}

// addPickled lists the tensors of a pickle's state dict.
//
// The state dict is the top object itself where all tensors are its values.
// Otherwise it is what stands under a well-known key, or the one value with the
// most tensors among those that are state dicts or modules. Where there is none
// of these, every tensor is listed under its dotted path.
func (c *Checkpoint) addPickled(top any, u *unpickler) error {
	c.unknown = slices.Compact(slices.Sorted(slices.Values(append(c.unknown, u.unknownClasses()...))))
	if s, ok := top.(*pickledStorage); ok { // torch.save of a bare storage
		if d := s.class.elementType; d.dtype.Size() > 0 {
			n := int(s.view.size) / d.size
			top = &pickledTensor{view: &Tensor{DType: d.dtype, Shape: []int{n}, storage: s.view, strides: []int{1}}}
		}
	}
	w := &walker{c: c, counts: map[any]int{}, open: map[any]bool{}, names: map[string]bool{}, cost: u.cost}
	if _, err := w.count(top, 0); err != nil {
		return err
	}
	root, stateDict := w.find(top)
	c.root = strings.Join(root, ".")
	return w.list(stateDict, "", 0)
}

// child is a value inside another, under the name that it adds to the path.
type child struct {
	name  string
	value any
}

// walker finds and lists tensors. Objects may be shared, so that a short pickle
// has a tree without end: count looks at each object once, and everything else
// counts its steps.
type walker struct {
	c      *Checkpoint
	counts map[any]int  // tensors below a container
	open   map[any]bool // containers on the path of list
	names  map[string]bool
	steps  int
	cost   int64 // estimated bytes of the objects and of the list
}

func isTensor(v any) bool {
	_, ok := v.(*pickledTensor)
	return ok
}

// isContainer reports whether v is one of the pointers that hold values.
func isContainer(v any) bool {
	switch v.(type) {
	case *types.Dict, *types.List, *types.Tuple, *object:
		return true
	}
	return false
}

// count returns how many tensors are below v, each container counted once for
// each reference to it, and checks the nesting. Containers that contain
// themselves count from one end only.
func (w *walker) count(v any, depth int) (int, error) {
	if isTensor(v) {
		return 1, nil
	}
	if !isContainer(v) {
		return 0, nil
	}
	if n, known := w.counts[v]; known {
		return n, nil
	}
	if depth > maxNesting {
		return 0, malformed("the pickle nests its objects more than %d levels deep", maxNesting)
	}
	w.counts[v] = 0
	n := 0
	for inner := range held(v) {
		k, err := w.count(inner, depth+1)
		if err != nil {
			return 0, err
		}
		n = min(n+k, maxTensors+1)
	}
	w.counts[v] = n
	return n, nil
}

// held yields the values that a container refers to.
func held(v any) iter.Seq[any] {
	return func(yield func(any) bool) {
		var lists [][]any
		var entries []types.DictEntry
		switch v := v.(type) {
		case *types.Dict:
			entries = *v
		case *types.List:
			lists = [][]any{*v}
		case *types.Tuple:
			lists = [][]any{*v}
		case *object:
			entries, lists = v.entries, [][]any{v.args, v.states, v.items}
		}
		for _, e := range entries {
			if !yield(e.Value) {
				return
			}
		}
		for _, list := range lists {
			for _, inner := range list {
				if !yield(inner) {
					return
				}
			}
		}
	}
}

// tensorsIn returns what count found.
func (w *walker) tensorsIn(v any) int {
	if isTensor(v) {
		return 1
	}
	if !isContainer(v) {
		return 0
	}
	return w.counts[v]
}

// find returns the state dict below v and the keys that lead to it.
func (w *walker) find(v any) (path []string, stateDict any) {
	for range maxRoot {
		entries, ok := mapping(v)
		if !ok || w.isFlat(v) {
			break
		}
		next, found := w.wellKnown(entries)
		if !found && len(path) == 0 {
			next, found = w.largest(entries)
		}
		if !found {
			break
		}
		path = append(path, next.name)
		v = next.value
	}
	return path, v
}

// isFlat reports whether v is a dict that has tensors, and none of them in
// deeper containers.
func (w *walker) isFlat(v any) bool {
	if w.steps > maxSteps {
		return false // list will say so
	}
	entries, ok := mapping(v)
	w.steps += len(entries)
	found := false
	for _, e := range entries {
		if isTensor(e.value) {
			found = true
		} else if w.tensorsIn(e.value) > 0 {
			return false
		}
	}
	return ok && found
}

// isModule reports whether v is a whole torch.nn.Module.
func (w *walker) isModule(v any) bool {
	if w.steps > maxSteps {
		return false
	}
	state, ok := moduleState(v)
	w.steps += len(state)
	return ok
}

func (w *walker) wellKnown(entries []child) (child, bool) {
	for _, key := range stateDictKeys {
		for _, e := range entries {
			if e.name != key || w.tensorsIn(e.value) == 0 {
				continue
			}
			if _, isDict := mapping(e.value); isDict || w.isModule(e.value) {
				return e, true
			}
		}
	}
	return child{}, false
}

// largest returns the one state dict or module with the most tensors; none
// where two have as many, or where the tensors beside it are as many.
func (w *walker) largest(entries []child) (best child, found bool) {
	most := 0
	for _, e := range entries {
		if isTensor(e.value) {
			most++
		}
	}
	for _, e := range entries {
		n := w.tensorsIn(e.value)
		if n == 0 || n < most || !w.isModule(e.value) && !w.isFlat(e.value) {
			continue
		}
		best, found = e, n > most
		most = n
	}
	return best, found
}

// list adds the tensors below v.
func (w *walker) list(v any, prefix string, depth int) error {
	if w.steps++; w.steps > maxSteps || depth > maxNesting {
		return malformed("the pickle's objects refer to each other too often to be listed")
	}
	if t, ok := v.(*pickledTensor); ok {
		return w.add(t, prefix)
	}
	if w.tensorsIn(v) == 0 || w.open[v] {
		return nil
	}
	w.open[v] = true
	defer delete(w.open, v)
	inside := children(v)
	if state, ok := moduleState(v); ok {
		inside = moduleChildren(state)
	}
	w.steps += len(inside)
	for _, ch := range inside {
		name := ch.name
		if prefix != "" {
			name = prefix + "." + name
		}
		if err := w.list(ch.value, name, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// add lists a tensor. The name of a bare one is "tensor".
func (w *walker) add(p *pickledTensor, name string) error {
	if name == "" {
		name = "tensor"
	}
	w.cost += costListed + int64(len(name))
	if len(w.c.tensors)+len(w.c.skipped) >= maxTensors || w.cost > maxObjects {
		return malformed("the pickle lists more tensors than %d, or than %d bytes hold with their names", maxTensors, int64(maxObjects))
	}
	reason := p.unreadable
	if reason == "" && w.names[name] {
		reason = "another tensor has the same name"
	}
	if reason != "" {
		w.c.skipped = append(w.c.skipped, Skipped{name, reason})
		return nil
	}
	w.names[name] = true
	t := *p.view
	t.Name = name
	w.c.tensors = append(w.c.tensors, t)
	return nil
}

// children returns the values directly inside a container, in stored order.
func children(v any) []child {
	switch v := v.(type) {
	case *types.Dict:
		return dictChildren(*v)
	case *types.List:
		return numbered(*v)
	case *types.Tuple:
		return numbered(*v)
	case *object:
		if entries, ok := mapping(v); ok {
			return append(entries, attributes(v)...)
		}
		all := append(attributes(v), numbered(v.items)...)
		return append(all, numbered(v.args)...)
	}
	return nil
}

// mapping returns the entries of a dict or of an object that stands for one:
// one whose items were set, or that was called with pairs, as Python 2 wrote an
// OrderedDict.
func mapping(v any) ([]child, bool) {
	switch v := v.(type) {
	case *types.Dict:
		return dictChildren(*v), true
	case *object:
		if len(v.entries) > 0 {
			return dictChildren(v.entries), true
		}
		if v.class != "collections.OrderedDict" && v.class != "collections.defaultdict" {
			return nil, false
		}
		return dictChildren(pairs(v.args)), true
	}
	return nil, false
}

// pairs returns the entries of the first argument that is a list of pairs or a
// dict.
func pairs(args []any) []types.DictEntry {
	for _, arg := range args {
		switch arg := arg.(type) {
		case *types.Dict:
			return *arg
		case *types.List:
			var entries []types.DictEntry
			for _, item := range *arg {
				pair := sequence(item)
				if len(pair) == 2 {
					entries = append(entries, types.DictEntry{Key: pair[0], Value: pair[1]})
				}
			}
			return entries
		}
	}
	return nil
}

func sequence(v any) []any {
	switch v := v.(type) {
	case *types.Tuple:
		return *v
	case *types.List:
		return *v
	}
	return nil
}

// dictChildren names a dict's values by their keys. A key that is set again
// keeps its place and takes the last value, as in Python.
func dictChildren(entries []types.DictEntry) []child {
	all := make([]child, 0, len(entries))
	at := make(map[any]int, len(entries))
	for i, e := range entries {
		name, ok := keyName(e.Key)
		var id any
		switch key := e.Key.(type) {
		case string, int, bool, float64, nil:
			id = key // 1 and "1" are different keys
		default:
			id = [2]string{fmt.Sprintf("%T", key), name}
		}
		if !ok {
			name = strconv.Itoa(i)
			id = [1]int{i} // no two such keys are the same
		}
		if j, again := at[id]; again {
			all[j].value = e.Value
			continue
		}
		at[id] = len(all)
		all = append(all, child{name, e.Value})
	}
	return all
}

// keyName returns a dict key as Python's str shows it; false for one that is
// not a plain value.
func keyName(key any) (string, bool) {
	switch key := key.(type) {
	case string:
		return key, true
	case []byte:
		return string(key), true
	case int:
		return strconv.Itoa(key), true
	case *big.Int:
		return key.String(), true
	case float64:
		return strconv.FormatFloat(key, 'g', -1, 64), true
	case bool:
		if key {
			return "True", true
		}
		return "False", true
	case nil:
		return "None", true
	}
	return "", false
}

func numbered(items []any) []child {
	all := make([]child, len(items))
	for i, item := range items {
		all[i] = child{strconv.Itoa(i), item}
	}
	return all
}

// attributes returns what was given to an object as its state. A state that is
// a pair of dicts, either of which may be None, is (attributes, slots).
func attributes(o *object) []child {
	var all []child
	for _, state := range o.states {
		parts := []any{state}
		if pair, ok := state.(*types.Tuple); ok && len(*pair) == 2 && isDictOrNone((*pair)[0]) && isDictOrNone((*pair)[1]) {
			parts = *pair
		}
		for _, part := range parts {
			if d, ok := part.(*types.Dict); ok {
				all = append(all, dictChildren(*d)...)
			} else {
				all = append(all, child{"state", part})
			}
		}
	}
	return all
}

func isDictOrNone(v any) bool {
	_, isDict := v.(*types.Dict)
	return isDict || v == nil
}

// moduleState returns the attributes of a whole torch.nn.Module.
func moduleState(v any) (map[string]any, bool) {
	o, ok := v.(*object)
	if !ok {
		return nil, false
	}
	state := map[string]any{}
	for _, a := range attributes(o) {
		state[a.name] = a.value
	}
	_, hasParameters := state["_parameters"]
	_, hasModules := state["_modules"]
	return state, hasParameters && hasModules
}

// moduleChildren returns a module's parameters, buffers and submodules in the
// order of its state_dict, without the buffers that it leaves out.
func moduleChildren(state map[string]any) []child {
	all, _ := mapping(state["_parameters"])
	left := map[string]bool{}
	leaveOut(left, state["_non_persistent_buffers_set"])
	buffers, _ := mapping(state["_buffers"])
	for _, b := range buffers {
		if !left[b.name] {
			all = append(all, b)
		}
	}
	modules, _ := mapping(state["_modules"])
	return append(all, modules...)
}

// leaveOut adds the strings of a set: a list here, or a call with one.
func leaveOut(names map[string]bool, set any) {
	items := sequence(set)
	if o, ok := set.(*object); ok {
		items = o.items
		for _, arg := range o.args {
			items = append(items, sequence(arg)...)
		}
	}
	for _, item := range items {
		if name, ok := item.(string); ok {
			names[name] = true
		}
	}
}
