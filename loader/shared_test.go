package loader

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// shared returns a path in the folder of real files, and skips the test where
// it is absent.
func shared(t *testing.T, path string) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	path = filepath.Join(dir, "..", "shared", "data", path)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%s is absent", path)
	}
	return path
}

func sharedFiles(t *testing.T, dir, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(shared(t, dir), pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	return files
}

func openPath(t *testing.T, path string) *Checkpoint {
	t.Helper()
	c, err := Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// expectation is what PyTorch said of a tensor.
type expectation struct {
	Shape  []int     `json:"shape"`
	DType  string    `json:"dtype"`
	Stride []int     `json:"stride"`
	First  []float64 `json:"first"`
	Sum    *float64  `json:"sum"`
}

// expectations flattens an entry of EXPECTED.json into dotted names. Values
// that are no tensors are left out.
func expectations(t *testing.T, v json.RawMessage, name string, into map[string]expectation) {
	t.Helper()
	var object map[string]json.RawMessage
	var list []json.RawMessage
	join := func(key string) string {
		if name == "" {
			return key
		}
		return name + "." + key
	}
	switch {
	case json.Unmarshal(v, &object) == nil:
		if object["dtype"] != nil && object["shape"] != nil {
			var e expectation
			if err := json.Unmarshal(v, &e); err != nil {
				t.Fatal(err)
			}
			if name == "" {
				name = "tensor"
			}
			into[name] = e
			return
		}
		for key, inner := range object {
			expectations(t, inner, join(key), into)
		}
	case json.Unmarshal(v, &list) == nil:
		for i, inner := range list {
			expectations(t, inner, join(strconv.Itoa(i)), into)
		}
	}
}

// specials turns what Python writes for infinities and NaN, which is not JSON,
// into numbers that no tensor of the files holds.
func specials(text []byte) []byte {
	text = regexp.MustCompile(`-Infinity\b`).ReplaceAll(text, []byte("-1e300"))
	text = regexp.MustCompile(`\bInfinity\b`).ReplaceAll(text, []byte("1e300"))
	return regexp.MustCompile(`\bNaN\b`).ReplaceAll(text, []byte("1e301"))
}

func sameNumber(got float32, want float64) bool {
	switch want {
	case 1e300, -1e300:
		return math.IsInf(float64(got), int(math.Copysign(1, want)))
	case 1e301:
		return got != got
	}
	return math.Float32bits(got) == math.Float32bits(float32(want))
}

var torchNames = map[DType]string{
	dtype.F64: "float64", dtype.F32: "float32", dtype.F16: "float16", dtype.BF16: "bfloat16",
	dtype.I64: "int64", dtype.I32: "int32", dtype.I16: "int16", dtype.I8: "int8", dtype.U8: "uint8",
	dtype.Bool: "bool", dtype.C64: "complex64",
}

func TestTorture113(t *testing.T) {
	dir := shared(t, "torture/gen-torch113")
	text, err := os.ReadFile(filepath.Join(dir, "EXPECTED.json"))
	if err != nil {
		t.Fatal(err)
	}
	var files map[string]json.RawMessage
	if err := json.Unmarshal(specials(text), &files); err != nil {
		t.Fatal(err)
	}
	for _, path := range sharedFiles(t, "torture/gen-torch113", "*.pt") {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(name, "bad_") {
				c, err := Open(context.Background(), path)
				if _, ok := errors.AsType[*FormatError](err); !ok {
					t.Errorf("opened as %v with error %v, want a *FormatError", c, err)
				}
				return
			}
			entry, ok := files[name]
			if !ok {
				entry, ok = files["state_dict_zip.pt"], strings.HasPrefix(name, "crafted_")
			}
			if !ok {
				t.Fatal("not in EXPECTED.json")
			}
			want := map[string]expectation{}
			expectations(t, entry, "", want)
			checkExpected(t, openPath(t, path), want)
		})
	}
}

// checkExpected holds the tensors of a checkpoint against what is known of
// them. What is known may have the path to the state dict before its names, and
// tensors outside it.
func checkExpected(t *testing.T, c *Checkpoint, want map[string]expectation) {
	t.Helper()
	prefix := c.Root()
	if prefix != "" {
		prefix += "."
	} else if _, isModule := want["state.0.weight"]; isModule {
		prefix = "state." // a whole module, whose state dict EXPECTED.json has
	}
	skipped := map[string]bool{}
	for _, s := range c.Skipped() {
		skipped[s.Name] = true
	}
	seen := 0
	for name, e := range want {
		short, inside := strings.CutPrefix(name, prefix)
		if !inside {
			continue
		}
		seen++
		if skipped[short] {
			continue
		}
		info, ok := c.Lookup(short)
		if !ok {
			t.Errorf("no tensor %.80q", short)
			continue
		}
		if info.Quantized != nil && "q"+torchNames[info.Quantized.Codes] == e.DType && slices.Equal(info.Shape, e.Shape) {
			continue // values are in testdata/torch
		}
		if torchNames[info.DType] != e.DType || !slices.Equal(info.Shape, e.Shape) || !slices.Equal(info.strides, e.Stride) {
			t.Errorf("%.80s: %s of shape %v, strides %v; want %s, %v, %v", short, info.DType, info.Shape, info.strides, e.DType, e.Shape, e.Stride)
			continue
		}
		checkValues(t, c, info, e)
	}
	if n := len(c.Tensors()) + len(skipped); n != seen && len(want) > 0 {
		t.Errorf("%d tensors, want %d: %v", n, seen, names(c))
	}
}

func checkValues(t *testing.T, c *Checkpoint, info Tensor, e expectation) {
	t.Helper()
	var got []float32
	if info.DType == dtype.C64 { // real and imaginary parts
		raw := make([]byte, info.Bytes())
		if err := c.ReadBytes(info.Name, raw); err != nil {
			t.Fatal(err)
		}
		got = make([]float32, 2*info.Elements())
		if err := dtype.F32.ToFloat32(got, raw); err != nil {
			t.Fatal(err)
		}
	} else {
		got = mustRead(t, c, info.Name)
	}
	sum := 0.0
	for i, v := range got {
		if i < len(e.First) && !sameNumber(v, e.First[i]) {
			t.Errorf("%s[%d] = %v, want %v", info.Name, i, v, e.First[i])
		}
		sum += float64(v)
	}
	if e.Sum != nil && math.Abs(sum-*e.Sum) > 1e-6*(1+math.Abs(*e.Sum)) {
		t.Errorf("%s: sum %v, want %v", info.Name, sum, *e.Sum)
	}
}

func TestGopickleFixtures(t *testing.T) {
	files := sharedFiles(t, "torture/gopickle", "*.pt")
	if len(files) != 90 && len(files) != 100 {
		t.Errorf("%d files", len(files))
	}
	want := map[string][]float32{
		"float64": {1.2, -3.4, 5.6, -7.8}, "float32": {1.2, -3.4, 5.6, -7.8},
		"float16": {1.2001953, -3.4003906, 5.6015625, -7.8007812}, "bfloat16": {1.203125, -3.40625, 5.59375, -7.8125},
		"int64": {1, -2, 3, -4}, "int32": {1, -2, 3, -4}, "int16": {1, -2, 3, -4}, "int8": {1, -2, 3, -4},
		"uint8": {1, 10, 100, 255}, "bool": {1, 0, 1, 0},
	}
	for _, path := range files {
		name := strings.Split(filepath.Base(path), "_")[1]
		c := openPath(t, path)
		if got := mustRead(t, c, "tensor"); !cmp.Equal(got, want[name]) {
			t.Errorf("%s: %v, want %v", filepath.Base(path), got, want[name])
		}
		if info, _ := c.Lookup("tensor"); torchNames[info.DType] != name {
			t.Errorf("%s: %s", filepath.Base(path), info.DType)
		}
	}
}

func TestCandle(t *testing.T) {
	dir := shared(t, "torture/candle")
	c := openPath(t, filepath.Join(dir, "fortran_tensor_3d.pth"))
	var want []float32
	for i := range 24 {
		want = append(want, float32(i+1))
	}
	if diff := cmp.Diff(want, mustRead(t, c, "tensor_fortran")); diff != "" {
		t.Error(diff)
	}
	c = openPath(t, filepath.Join(dir, "test_with_key.pt"))
	if c.Root() != "model_state_dict" || !cmp.Equal(mustRead(t, c, "test"), want[:8]) {
		t.Errorf("root %q, test = %v", c.Root(), mustRead(t, c, "test"))
	}
	c = openPath(t, filepath.Join(dir, "test.pt"))
	if !cmp.Equal(mustRead(t, c, "test"), want[:8]) {
		t.Errorf("test = %v", mustRead(t, c, "test"))
	}
}

func TestTorchScript(t *testing.T) {
	for _, path := range sharedFiles(t, "torture/tch-rs", "*.pt") {
		c := openPath(t, path)
		if c.UnknownClasses() != nil {
			t.Errorf("%s: unknown classes %v", filepath.Base(path), c.UnknownClasses())
		}
		if filepath.Base(path) == "foo.pt" {
			if v := mustRead(t, c, "value"); v[0] != 42 {
				t.Errorf("value = %v", v)
			}
		}
	}
}

func TestResNets(t *testing.T) {
	dir := shared(t, "resnet-cifar10")
	for name, want := range map[string]struct {
		tensors    int
		parameters int64 // all elements, running statistics included
		first      []float32
	}{
		"resnet20-12fca82f.th": {97, 271_098, []float32{-0.13818146, -0.16241768, 0.8207383, -0.3417643}},
		"resnet56-4bfd9763.th": {277, 857_082, []float32{-0.21604876, -0.5368963, -0.5563121, -0.20289008}},
	} {
		c := openPath(t, filepath.Join(dir, name))
		if c.Format() != PyTorchLegacy || c.Root() != "state_dict" || c.UnknownClasses() != nil {
			t.Errorf("%s: %s, root %q, unknown %v", name, c.Format(), c.Root(), c.UnknownClasses())
		}
		var parameters int64
		for _, info := range c.Tensors() {
			parameters += info.Elements()
			if !strings.HasPrefix(info.Name, "module.") || info.DType != dtype.F32 {
				t.Errorf("%s: %s of %s", name, info.Name, info.DType)
			}
			for _, v := range mustRead(t, c, info.Name) {
				if v != v || math.IsInf(float64(v), 0) {
					t.Fatalf("%s: %s holds %v", name, info.Name, v)
				}
			}
		}
		if len(c.Tensors()) != want.tensors || parameters != want.parameters {
			t.Errorf("%s: %d tensors, %d elements", name, len(c.Tensors()), parameters)
		}
		if v := mustRead(t, c, "module.conv1.weight")[:4]; !cmp.Equal(v, want.first) {
			t.Errorf("%s: conv1 starts with %v", name, v)
		}
	}
}

func TestShardedModelEqualsCopies(t *testing.T) {
	dir := shared(t, "torture/gen-safetensors")
	whole := openPath(t, filepath.Join(dir, "tinystories656k-sharded"))
	for _, file := range []string{"tinystories656k_bf16.safetensors", "tinystories656k_f16.safetensors"} {
		c := openPath(t, filepath.Join(dir, file))
		if len(c.Tensors()) != len(whole.Tensors()) {
			t.Errorf("%s: %d tensors, want %d", file, len(c.Tensors()), len(whole.Tensors()))
		}
		for _, info := range c.Tensors() {
			want := mustRead(t, whole, info.Name)
			for i, v := range mustRead(t, c, info.Name) {
				if v != info.DType.Round(want[i]) {
					t.Fatalf("%s: %s[%d] = %v, want %v rounded", file, info.Name, i, v, want[i])
				}
			}
		}
	}
}

func TestSafetensorsFolders(t *testing.T) {
	for _, dir := range []string{"llm-stories260k", "llm-tinystories-656k"} {
		c := openPath(t, shared(t, dir))
		if c.Format() != Safetensors || len(c.Tensors()) == 0 {
			t.Errorf("%s: %s with %d tensors", dir, c.Format(), len(c.Tensors()))
		}
	}
}
