package loader

import (
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// pW is a state dict's entry "w" of two elements, over storage 0.
var pW = pStr("w") + pTensor("0", 2, []int{2}, []int{1})

func TestPickleVariants(t *testing.T) {
	orderedDict := pGlobal("collections", "OrderedDict")
	tests := map[string]struct {
		pickle  string
		names   []string
		root    string
		unknown []string
	}{
		"dict":           {pDict(pW), []string{"w"}, "", nil},
		"ordered dict":   {orderedDict + ")R(" + pW + "u", []string{"w"}, "", nil},
		"Python 2":       {pCall(orderedDict, "](]("+pW+"ee"), []string{"w"}, "", nil},
		"subclass":       {pGlobal("my", "Dict") + ")\x81(" + pW + "u", []string{"w"}, "", []string{"my.Dict"}},
		"state dict":     {pDict(pStr("epoch"), pInt(3), pStr("state_dict"), pDict(pW)), []string{"w"}, "state_dict", nil},
		"two levels":     {pDict(pStr("model"), pDict(pStr("state_dict"), pDict(pW))), []string{"w"}, "model.state_dict", nil},
		"tie":            {pDict(pStr("mine"), pDict(pW), pStr("step"), pTensor("0", 2, nil, nil)), []string{"mine.w", "step"}, "", nil},
		"largest":        {pDict(pStr("a"), pDict(pW), pStr("b"), pDict(pW, pStr("x"), pTensor("0", 2, nil, nil))), []string{"w", "x"}, "b", nil},
		"equals":         {pDict(pStr("a"), pDict(pW), pStr("b"), pDict(pW)), []string{"a.w", "b.w"}, "", nil},
		"a list":         {"](" + pTensor("0", 2, nil, nil) + "N" + pTensor("0", 2, nil, nil) + "e", []string{"0", "2"}, "", nil},
		"bare":           {pTensor("0", 2, []int{2}, []int{1}), []string{"tensor"}, "", nil},
		"bare parameter": {pCall(pGlobal("torch._utils", "_rebuild_parameter"), pTensor("0", 2, nil, nil), "\x88", "N"), []string{"tensor"}, "", nil},
		"bare storage":   {pStorage("0", 2), []string{"tensor"}, "", nil},
		"os.system": {
			pDict(pW, pStr("x"), pCall(pGlobal("posix", "system"), pStr("touch /tmp/fettle-was-run"))),
			[]string{"w"},
			"",
			[]string{"posix.system"},
		},
		"eval around a tensor": {
			pDict(pStr("x"), pCall(pGlobal("__builtin__", "eval"), pTensor("0", 2, nil, nil))),
			[]string{"x.0"},
			"",
			[]string{"builtins.eval"},
		},
		"result called again": {pDict(pW, pStr("x"), pCall(pCall(pGlobal("a", "b")), pInt(1))), []string{"w"}, "", []string{"a.b"}},
		"stack global":        {pDict(pW, pStr("x"), pCall("\x8c\x02os\x8c\x06system\x93", pInt(1))), []string{"w"}, "", []string{"os.system"}},
		"inst":                {pDict(pW, pStr("x"), "("+pInt(1)+"ios\nsystem\n"), []string{"w"}, "", []string{"os.system"}},
		"obj":                 {pDict(pW, pStr("x"), "("+pGlobal("os", "system")+pInt(1)+"o"), []string{"w"}, "", []string{"os.system"}},
		"known classes": {
			pDict(pW, pStr("args"), pGlobal("argparse", "Namespace")+")\x81"+pDict(pStr("lr"), pInt(1))+"b",
				pStr("size"), pCall(pGlobal("torch", "Size"), pInts(1, 2)), pStr("d"), pGlobal("torch", "float32")),
			[]string{"w"},
			"", nil,
		},
		"state with a tensor": {pGlobal("my", "Thing") + ")\x81" + pDict(pW) + "b", []string{"w"}, "", []string{"my.Thing"}},
		"NEWOBJ_EX":           {pGlobal("my", "Thing") + ")" + pDict(pW) + "\x92", []string{"1.w"}, "", []string{"my.Thing"}},
		"empty integer":       {pDict(pW, pStr("zero"), "\x8a\x00", pStr("long"), "\x8b\x00\x00\x00\x00"), []string{"w"}, "", nil},
		"sets":                {pDict(pW, pStr("s"), "\x8f(C\x01a]\x90", pStr("f"), "(C\x01a\x91"), []string{"w"}, "", nil},
		"bytearray":           {pDict(pW, pStr("b"), "\x96\x01\x00\x00\x00\x00\x00\x00\x00x\x98"), []string{"w"}, "", nil},
		"deque":               {pDict(pW, pStr("d"), pGlobal("collections", "deque")+")R]a"), []string{"w"}, "", nil},
		"keys that are no strings": {
			"}(" + "\x88" + pTensor("0", 2, nil, nil) + "N" + pTensor("0", 2, nil, nil) + "C\x01b" + pTensor("0", 2, nil, nil) +
				"G\x3f\xe0\x00\x00\x00\x00\x00\x00" + pTensor("0", 2, nil, nil) + "\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01" + pTensor("0", 2, nil, nil) +
				")" + pTensor("0", 2, nil, nil) + "\x89" + pTensor("0", 2, nil, nil) + "u",
			[]string{"True", "None", "b", "0.5", "18446744073709551616", "5", "False"},
			"", nil,
		},
		"1 and \"1\" are two keys": {pDict(pInt(1), pTensor("0", 2, nil, nil), pStr("1"), "N"), []string{"1"}, "", nil},
		"tensor subclass": {pCall(pGlobal("torch._tensor", "_rebuild_from_type_v2"), pGlobal("torch._utils", "_rebuild_tensor_v2"), pGlobal("my", "Tensor"),
			"("+pStorage("0", 2)+pInt(0)+pInts()+pInts()+"\x89Nt", "}"), []string{"tensor"}, "", []string{"my.Tensor"}},
		"tensor subclass of itself": {pCall(pGlobal("torch._tensor", "_rebuild_from_type_v2"), pGlobal("torch._tensor", "_rebuild_from_type_v2"), "N",
			"("+pTensor("0", 2, nil, nil)+"t", "}"), []string{"2.0"}, "", nil},
		"tensor with attributes": {pTensor("0", 2, nil, nil) + "}b", []string{"tensor"}, "", nil},
		"NEWOBJ of a parameter":  {pGlobal("torch.nn.parameter", "Parameter") + pTensor("0", 2, nil, nil) + "\x85\x81", []string{"tensor"}, "", nil},
		"slots":                  {pGlobal("my", "Thing") + ")\x81N" + pDict(pW) + "\x86b", []string{"w"}, "", []string{"my.Thing"}},
		"other state":            {pGlobal("my", "Thing") + ")\x81" + pTensor("0", 2, nil, nil) + "b", []string{"state"}, "", []string{"my.Thing"}},
		"a pair for a state":     {pGlobal("my", "Thing") + ")\x81" + pTensor("0", 2, nil, nil) + pTensor("0", 2, nil, nil) + "\x86b", []string{"state.0", "state.1"}, "", []string{"my.Thing"}},
		"key set twice":          {pDict(pStr("w"), pTensor("0", 2, []int{1}, []int{1}), pW), []string{"w"}, "", nil},
		"integer keys":           {pDict(pInt(1), pTensor("0", 2, nil, nil), pInt(-2), pTensor("0", 2, nil, nil)), []string{"1", "-2"}, "", nil},
		"contains itself":        {"]q\x00(h\x00" + pTensor("0", 2, nil, nil) + "e", []string{"1"}, "", nil},
		"shared containers":      {"](" + pDict(pW) + "q\x01h\x01h\x01e", []string{"0.w", "1.w", "2.w"}, "", nil},
		"frames":                 {"\x95\x01\x00\x00\x00\x00\x00\x00\x00N0\x95\x00\x00\x00\x00\x00\x00\x00\x00" + pDict(pW), []string{"w"}, "", nil},
		"protocol 1 words":       {pDict(pW, pStr("t"), "I01\n", pStr("f"), "F1.5\n", pStr("l"), "L12L\n", pStr("s"), "S'x'\n"), []string{"w"}, "", nil},
	}
	for name, tt := range tests {
		for format, content := range map[string][]byte{
			"zip":    torchZip(t, pickled(tt.pickle), []float32{1.5, -2}),
			"legacy": torchLegacy(pickled(tt.pickle), []float32{1.5, -2}),
		} {
			c, err := openBytes(t, content)
			if err != nil {
				t.Errorf("%s, %s: %v", name, format, err)
				continue
			}
			if diff := cmp.Diff(tt.names, names(c)); diff != "" {
				t.Errorf("%s, %s: names: %s", name, format, diff)
			}
			if c.Root() != tt.root {
				t.Errorf("%s, %s: root %q, want %q", name, format, c.Root(), tt.root)
			}
			if diff := cmp.Diff(tt.unknown, c.UnknownClasses()); diff != "" {
				t.Errorf("%s, %s: unknown classes: %s", name, format, diff)
			}
			for _, n := range names(c) {
				if v := mustRead(t, c, n); v[0] != 1.5 {
					t.Errorf("%s, %s: %s = %v, want 1.5 …", name, format, n, v)
				}
			}
		}
	}
}

// module is a whole torch.nn.Module.
func module(class string, parameters, buffers, modules, rest string) string {
	odict := pGlobal("collections", "OrderedDict") + ")R("
	return pGlobal("torch.nn.modules.x", class) + ")\x81" +
		pDict(pStr("_parameters"), odict+parameters+"u", pStr("_buffers"), odict+buffers+"u", pStr("_modules"), odict+modules+"u", rest) + "b"
}

func TestWholeModule(t *testing.T) {
	one := pTensor("0", 1, nil, nil)
	inner := module("BatchNorm2d", pStr("weight")+one+pStr("bias")+"N", pStr("mean")+one+pStr("ids")+one, "",
		pStr("_non_persistent_buffers_set")+pCall(pGlobal("__builtin__", "set"), "]("+pStr("ids")+"e")+pStr("not_a_buffer")+one)
	c := mustOpen(t, torchZip(t, pickled(module("Net", pStr("w")+one, "", pStr("0")+inner+pStr("1")+"N", "")), []float32{1}))
	if diff := cmp.Diff([]string{"w", "0.weight", "0.mean"}, names(c)); diff != "" {
		t.Error(diff)
	}
	if c.UnknownClasses() != nil {
		t.Errorf("unknown classes %v", c.UnknownClasses())
	}
	c = mustOpen(t, torchZip(t, pickled(pDict(pStr("epoch"), pInt(1), pStr("model"), module("Net", pStr("w")+one, "", "", ""))), []float32{1}))
	if c.Root() != "model" || !cmp.Equal(names(c), []string{"w"}) {
		t.Errorf("root %q, names %v", c.Root(), names(c))
	}
}

func TestUnreadableTensorsAreSkipped(t *testing.T) {
	four := "(" + pStr("storage") + pGlobal("torch", "QUInt4x2Storage") + pStr("0") + pStr("cpu") + pInt(4) + "tQ"
	quantizer := "(" + pGlobal("torch", "per_tensor_affine") + pInt(1) + pInt(0) + "t"
	c := mustOpen(t, torchZip(t, pickled(pDict(
		pStr("w"), pTensor("1", 1, nil, nil),
		pStr("q"), pCall(pGlobal("torch._utils", "_rebuild_qtensor"), four, pInt(0), pInts(4), pInts(1), quantizer),
	)), []float32{1}, []float32{2}))
	if diff := cmp.Diff([]string{"w"}, names(c)); diff != "" {
		t.Error(diff)
	}
	if s := c.Skipped(); len(s) != 1 || s[0].Name != "q" || !strings.Contains(s[0].Reason, "quantized") {
		t.Errorf("skipped %v", s)
	}
	if err := c.ReadFloat32("q", make([]float32, 4)); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("reading a skipped tensor: %v", err)
	}
}

func TestRebuildV3(t *testing.T) {
	untyped := "(" + pStr("storage") + pGlobal("torch.storage", "UntypedStorage") + pStr("0") + pStr("cpu") + pInt(4) + "tQ"
	c := mustOpen(t, torchZip(t, pickled(pDict(pStr("w"),
		pCall(pGlobal("torch._utils", "_rebuild_tensor_v3"), untyped, pInt(1), pInts(1), pInts(1), "\x89", "N", pGlobal("torch", "uint16")),
	)), []float32{1}))
	if v := mustRead(t, c, "w"); v[0] != 0x3f80 { // the high half of 1.0
		t.Errorf("w = %v", v)
	}
}

// pCodes names an int8 storage of n elements.
func pCodes(n int) string {
	return "(" + pStr("storage") + pGlobal("torch", "QInt8Storage") + pStr("0") + pStr("cpu") + pInt(n) + "tQ"
}

// quantizedPickle is a dict with a quantized tensor of one axis.
func quantizedPickle(storage string, n int, scheme string, quantizer ...string) string {
	q := "(" + pGlobal("torch", scheme) + cat(quantizer...) + "t"
	return pDict(pStr("q"), pCall(pGlobal("torch._utils", "_rebuild_qtensor"), storage, pInt(0), pInts(n), pInts(1), q))
}

func TestQuantized(t *testing.T) {
	scales := pTensor("1", 2, []int{2}, []int{1})
	for name, c := range map[string]struct {
		pickle string
		want   []float32
		axis   int
	}{
		"tensor":  {quantizedPickle(pCodes(2), 2, "per_tensor_affine", "G\x3f\xe0\x00\x00\x00\x00\x00\x00", "K\x02"), []float32{-1, .5}, -1},
		"lists":   {quantizedPickle(pCodes(2), 2, "per_channel_affine", "](K\x02K\x03e", "](K\x00K\x01e", "K\x00"), []float32{0, 6}, 0},
		"tensors": {quantizedPickle(pCodes(2), 2, "per_channel_affine_float_qparams", scales, scales, "K\x00"), []float32{-.25, 1.5 * 1.5}, 0},
	} {
		f := mustOpen(t, zipOf(t, entry{"a/data.pkl", []byte(pickled(c.pickle))}, entry{"a/data/0", []byte{0, 3}}, entry{"a/data/1", floats(.5, 1.5)}))
		if got := mustRead(t, f, "q"); !cmp.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		info, _ := f.Lookup("q")
		if q := info.Quantized; q == nil || q.Codes != dtype.I8 || q.Axis != c.axis {
			t.Errorf("%s: %+v", name, q)
		}
	}
	unknown := mustOpen(t, torchZip(t, pickled(quantizedPickle(pCodes(2), 2, "other", "K\x01", "K\x00")), []float32{1}))
	if s := unknown.Skipped(); len(s) != 1 {
		t.Errorf("skipped %v", s)
	}
}

func TestShared(t *testing.T) {
	c := mustOpen(t, torchZip(t, pickled(pDict(
		pW, pStr("b"), pTensor("1", 2, []int{2}, []int{1}), pStr("tied"), pTensor("0", 2, []int{2}, []int{1}), pStr("part"), pView(pStorage("0", 2), 1, []int{1}, []int{1}),
	)), []float32{1, 2}, []float32{3, 4}))
	if diff := cmp.Diff([][]string{{"w", "tied", "part"}}, c.Shared()); diff != "" {
		t.Error(diff)
	}
	tied := openPath(t, shared(t, "llm-tinystories-656k"))
	if diff := cmp.Diff([][]string{{"lm_head.weight", "model.embed_tokens.weight"}}, tied.Shared()); diff != "" {
		t.Error(diff)
	}
	if t1, ok := tied.Lookup("model.embed_tokens.weight"); !ok || t1.Name != "lm_head.weight" {
		t.Errorf("the tied name is %v, %v", t1.Name, ok)
	}
	row := make([]float32, 128)
	if err := tied.ReadRowFloat32("model.embed_tokens.weight", 5, row); err != nil || row[0] == 0 {
		t.Errorf("row %v, %v", row[:3], err)
	}
}

func TestBadPickles(t *testing.T) {
	wide := func(shape, strides []int, offset int) string {
		return pDict(pStr("w"), pView(pStorage("0", 2), offset, shape, strides))
	}
	const huge = 1<<31 - 1
	bad := map[string]string{
		"empty":                     "",
		"opcode 0xff":               "\xff",
		"extension":                 "\x82\x01",
		"out-of-band buffer":        "\x97",
		"textual persistent id":     "Px\n",
		"protocol 6":                "\x80\x06N",
		"no stop":                   "N",
		"stack underflow":           "0",
		"underflow below a mark":    "N(0a",
		"no mark":                   "Nt",
		"odd dict":                  "}(Nu",
		"odd dict from a mark":      "(Nd",
		"object without a class":    "(o",
		"memo never stored":         "h\x05",
		"bad memo key":              "Np-1\n",
		"memo of nothing":           "q\x00",
		"string of 4 GiB":           "X\xff\xff\xff\xff",
		"negative string":           "T\xff\xff\xff\xff",
		"string of 2^64":            "\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
		"bytes of 2^62":             "\x8e\x00\x00\x00\x00\x00\x00\x00\x40",
		"bytearray of 2^62":         "\x96\x00\x00\x00\x00\x00\x00\x00\x40",
		"frame of 2^62":             "\x95\x00\x00\x00\x00\x00\x00\x00\x40",
		"negative integer length":   "\x8b\xff\xff\xff\xff",
		"long integer":              "\x8b\x00\x10\x00\x00" + strings.Repeat("x", 4096),
		"many digits":               "I" + strings.Repeat("9", 2000) + "\n",
		"frame inside a frame":      "\x95\x20\x00\x00\x00\x00\x00\x00\x00\x95\x01\x00\x00\x00\x00\x00\x00\x00N" + strings.Repeat("N", 40),
		"argument leaves its frame": "\x95\x02\x00\x00\x00\x00\x00\x00\x00J\x00\x00\x00\x00",
		"marks":                     strings.Repeat("(", maxMarks+2),
		"nesting":                   strings.Repeat("]", 2000) + strings.Repeat("a", 1999),
		"calling a string":          pCall(pStr("x")),
		"arguments not a tuple":     pGlobal("a", "b") + "NR",
		"build on None":             "N}b",
		"append to None":            "NNa",
		"set on a list":             "](NNu",
		"storage of no class":       "(" + pStr("storage") + pStr("x") + pStr("0") + pStr("cpu") + pInt(2) + "tQ",
		"storage without elements":  "(" + pStr("storage") + pGlobal("torch", "FloatStorage") + pStr("0") + pStr("cpu") + "NtQ",
		"negative storage":          pStorage("0", -1),
		"persistent id of a list":   "]Q",
		"two sizes of one storage":  "](" + pStorage("0", 2) + pStorage("0", 1) + "e",
		"missing storage":           pDict(pStr("w"), pTensor("7", 2, nil, nil)),
		"storage too short":         pDict(pStr("w"), pTensor("0", 3, nil, nil)),
		"beyond the storage":        wide([]int{3}, []int{1}, 0),
		"offset beyond":             wide([]int{1}, []int{1}, 2),
		"negative offset":           wide([]int{1}, []int{1}, -1),
		"negative size":             wide([]int{-1}, []int{1}, 0),
		"two negative sizes":        wide([]int{-1, -2}, []int{1, 1}, 0),
		"negative stride":           wide([]int{2}, []int{-1}, 1),
		"stride beyond":             wide([]int{2}, []int{2}, 0),
		"product overflows":         wide([]int{huge, huge, huge}, []int{0, 0, 0}, 0),
		"span overflows":            wide([]int{huge, huge, huge}, []int{huge, huge, huge}, 0),
		"expanded beyond memory":    wide([]int{1 << 30}, []int{0}, 0),
		"fewer strides":             wide([]int{1, 1}, []int{1}, 0),
		"65 dimensions":             wide(make([]int, 65), make([]int, 65), 0),
		"tensor without storage":    pCall(pGlobal("torch._utils", "_rebuild_tensor_v2"), "N", pInt(0), pInts(1), pInts(1), "\x89", "N"),
		"tensor of nothing":         pCall(pGlobal("torch._utils", "_rebuild_tensor_v2")),
		"shape of strings":          pCall(pGlobal("torch._utils", "_rebuild_tensor_v2"), pStorage("0", 2), pInt(0), pStr("x"), pInts(1), "\x89", "N"),
		"quantized, no quantizer":   pCall(pGlobal("torch._utils", "_rebuild_qtensor"), pStorage("0", 2), pInt(0), pInts(2), pInts(1)),
		"quantized, no storage":     quantizedPickle("N", 2, "per_tensor_affine", "K\x01", "K\x00"),
		"quantized beyond":          quantizedPickle(pCodes(9), 9, "per_tensor_affine", "K\x01", "K\x00"),
		"scale is a string":         quantizedPickle(pCodes(2), 2, "per_tensor_affine", pStr("x"), "K\x00"),
		"scales too few":            quantizedPickle(pCodes(2), 2, "per_channel_affine", "]K\x01a", "]K\x00a", "K\x00"),
		"axis beyond":               quantizedPickle(pCodes(2), 2, "per_channel_affine", "]K\x01a", "]K\x00a", "K\x01"),
		"scales are a storage":      quantizedPickle(pCodes(2), 2, "per_channel_affine", pStorage("1", 2), "]K\x00a", "K\x00"),
		"shape of huge integers": pCall(pGlobal("torch._utils", "_rebuild_tensor_v2"), pStorage("0", 2), pInt(0),
			"(\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01t", pInts(1), "\x89", "N"),
		"state set without end": pGlobal("a", "b") + ")\x81" + strings.Repeat("}b", 20),
	}
	for name, body := range bad {
		p := "\x80\x02" + body + "."
		if name == "no stop" {
			p = "\x80\x02N"
		}
		if name == "empty" {
			p = ""
		}
		for format, content := range map[string][]byte{
			"zip":    torchZip(t, p, []float32{1, 2}),
			"legacy": torchLegacy(p, []float32{1, 2}),
		} {
			_, err := openBytes(t, content)
			var e *FormatError
			if !errors.As(err, &e) {
				t.Errorf("%s, %s: error %v, want a *FormatError", name, format, err)
			} else if e.Path == "" || len(e.Reason) > 500 || strings.Contains(e.Reason, "\n") {
				t.Errorf("%s, %s: path %q, reason %q", name, format, e.Path, e.Reason)
			}
		}
	}
}

// TestSharedObjectsDoNotExplode holds short pickles with huge trees against
// time and memory.
func TestSharedObjectsDoNotExplode(t *testing.T) {
	// 40 lists, each with the one before twice: 2^40 paths to the tensor.
	laughs := "](" + pTensor("0", 1, nil, nil) + "e"
	for i := range 40 {
		laughs += "q" + string(rune(i+1)) + "](h" + string(rune(i+1)) + "h" + string(rune(i+1)) + "e"
	}
	// The same without a tensor at the end is harmless.
	empty := "]"
	for i := range 40 {
		empty += "q" + string(rune(i+1)) + "](h" + string(rune(i+1)) + "h" + string(rune(i+1)) + "e"
	}
	// Lists that all contain each other: factorially many simple paths.
	clique := "("
	for i := range 40 {
		clique += "]q" + string(rune(i+1))
	}
	clique += "1"
	for i := range 40 {
		clique += "h" + string(rune(i+1)) + "("
		for j := range 40 {
			clique += "h" + string(rune(j+1))
		}
		if i == 39 {
			clique += pTensor("0", 1, nil, nil)
		}
		clique += "e"
	}
	clique = "](" + clique + "e"

	// Many objects with one large state.
	states := "(" + pDict(strings.Repeat("K\x01N", 10_000)) + "q\x01" + pGlobal("a", "b") + "q\x021](" +
		strings.Repeat("h\x02)\x81h\x01b", 10_000) + "e"

	for name, tt := range map[string]struct {
		pickle string
		bad    bool
	}{"laughs": {laughs, true}, "no tensors": {empty, false}, "clique": {clique, true}, "states": {states, false}} {
		start := time.Now()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := openBytes(t, torchZip(t, pickled(tt.pickle), []float32{1}))
		runtime.ReadMemStats(&after)
		if (err != nil) != tt.bad {
			t.Errorf("%s: error %v", name, err)
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("%s: took %v", name, d)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 2<<30 {
			t.Errorf("%s: allocated %d MB", name, n>>20)
		}
	}
}

func TestSameNameTwice(t *testing.T) {
	one := pTensor("0", 1, nil, nil)
	c := mustOpen(t, torchZip(t, pickled("}("+pStr("a.b")+one+pStr("a")+pDict(pStr("b"), one)+"u"), []float32{1}))
	if s := c.Skipped(); !cmp.Equal(names(c), []string{"a.b"}) || len(s) != 1 || s[0].Name != "a.b" {
		t.Errorf("names %v, skipped %v", names(c), s)
	}
}

func TestClassNamesAreFitToShow(t *testing.T) {
	c := mustOpen(t, torchZip(t, pickled(pDict(pW, pStr("x"), pGlobal("a\x1b[31m", strings.Repeat("b", 1000)))), []float32{1, 2}))
	name := c.UnknownClasses()[0]
	if strings.ContainsRune(name, '\x1b') || len(name) > 250 {
		t.Errorf("class name %q", name)
	}
}

func FuzzPickle(f *testing.F) {
	f.Add([]byte(pickled(pDict(pW))))
	f.Add([]byte(pickled("\x8f(K\x01\x90\x94(K\x02\x910h\x00")))
	f.Add([]byte(pickled(pGlobal("a", "b") + ")}\x92}b")))
	f.Add([]byte(pickled("\x8c\x02os\x8c\x06system\x93)R")))
	f.Add([]byte(pickled("(lp1\nI01\nag1\n0L5L\n\x85.")))
	f.Add([]byte(pickled(module("Net", pW, "", "", ""))))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = openFuzzed(t, torchZip(t, string(b), []float32{1, 2})) // it fails t when the error is not one that Open may give
	})
}
