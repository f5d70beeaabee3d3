package loader

import (
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// torchFile is what testdata/make_torch.py says of a checkpoint.
type torchFile struct {
	Root    string                 `json:"root"`
	Skipped []string               `json:"skipped"`
	Tensors map[string]torchTensor `json:"tensors"`
}

type torchTensor struct {
	Shape  []int  `json:"shape"`
	DType  string `json:"dtype"`
	Codes  string `json:"codes"`
	Axis   int    `json:"axis"`
	Values []any  `json:"values"` // numbers, or the names of those that JSON lacks
}

// TestTorchFiles opens what PyTorch 1.13 wrote. Files of whole modules in the
// legacy format are not there: they hold PyTorch's source.
func TestTorchFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/torch/*.pt")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	checkTorchFiles(t, "testdata/torch", append(files, "testdata/torch/sharded"))
}

// TestTorchWrites opens what the PyTorch of this machine writes.
func TestTorchWrites(t *testing.T) {
	python := ""
	for _, name := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(name, "-c", "import torch").Run() == nil {
			python = name
			break
		}
	}
	if python == "" {
		t.Skip("no python3 has torch")
	}
	dir := t.TempDir()
	if out, err := exec.Command(python, "testdata/make_torch.py", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.pt"))
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	checkTorchFiles(t, dir, append(files, filepath.Join(dir, "sharded")))
}

func checkTorchFiles(t *testing.T, dir string, files []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var expected map[string]torchFile
	if err := json.Unmarshal(text, &expected); err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			want, ok := expected[name]
			if !ok {
				t.Fatal("not in expected.json")
			}
			checkTorchFile(t, path, want)
		})
	}
}

func checkTorchFile(t *testing.T, path string, want torchFile) {
	c := openPath(t, path)
	if c.Root() != want.Root {
		t.Errorf("root %q, want %q", c.Root(), want.Root)
	}
	skipped := []string{}
	for _, s := range c.Skipped() {
		skipped = append(skipped, s.Name)
	}
	if !slices.Equal(skipped, want.Skipped) {
		t.Errorf("skipped %v, want %v", skipped, want.Skipped)
	}
	if len(c.Tensors()) != len(want.Tensors) {
		t.Errorf("%d tensors, want %d: %v", len(c.Tensors()), len(want.Tensors), names(c))
	}
	for name, w := range want.Tensors {
		info, ok := c.Lookup(name)
		if !ok {
			t.Errorf("no tensor %q in %v", name, names(c))
			continue
		}
		if torchNames[info.DType] != w.DType || !cmp.Equal(info.Shape, w.Shape) {
			t.Errorf("%s: %s of shape %v, want %s of %v", name, info.DType, info.Shape, w.DType, w.Shape)
			continue
		}
		if q := info.Quantized; (q != nil) != (w.Codes != "") || q != nil && ("q"+torchNames[q.Codes] != w.Codes || q.Axis != w.Axis) {
			t.Errorf("%s: quantization %+v, want %q by axis %d", name, q, w.Codes, w.Axis)
		}
		got := readDoubles(t, c, info)
		if len(got) != len(w.Values) {
			t.Errorf("%s: %d values, want %d", name, len(got), len(w.Values))
			continue
		}
		for i, v := range got {
			if !sameDouble(v, w.Values[i], info.Quantized != nil) {
				t.Errorf("%s[%d] = %v, want %v", name, i, v, w.Values[i])
			}
		}
	}
	s := scanBytes(t, mustReadFile(t, path))
	if s.Problem != "" || len(s.Globals) > 0 && s.Globals[0].Class == Dangerous {
		t.Errorf("scan: problem %q, %v", s.Problem, summary(s))
	}
}

// mustReadFile returns the content of a file, or of a folder's first shard.
func mustReadFile(t *testing.T, path string) []byte {
	if filepath.Ext(path) == "" {
		path = filepath.Join(path, "pytorch_model-00001-of-00002.bin")
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// readDoubles reads a tensor without rounding; a complex element as two values.
func readDoubles(t *testing.T, c *Checkpoint, info Tensor) []float64 {
	t.Helper()
	raw := make([]byte, info.Bytes())
	if err := c.ReadBytes(info.Name, raw); err != nil {
		t.Fatal(err)
	}
	d, n := info.DType, info.Elements()
	if d == dtype.C64 {
		d, n = dtype.F32, 2*n
	}
	narrow := make([]float32, n)
	if err := d.ToFloat32(narrow, raw); err != nil {
		t.Fatal(err)
	}
	if info.DType != dtype.C64 {
		direct := mustRead(t, c, info.Name)
		for i, v := range direct {
			if math.Float32bits(v) != math.Float32bits(narrow[i]) {
				t.Errorf("%s[%d] is %v as float32, %v by its bytes", info.Name, i, v, narrow[i])
			}
		}
	}
	values := make([]float64, n)
	for i, v := range narrow {
		values[i] = float64(v)
	}
	return values
}

func sameDouble(got float64, want any, rounded bool) bool {
	switch want := want.(type) {
	case string:
		return map[string]bool{"nan": got != got, "inf": math.IsInf(got, 1), "-inf": math.IsInf(got, -1)}[want]
	case float64:
		if rounded { // PyTorch's own kernels differ in the last digit
			return math.Abs(got-want) <= 1e-6*math.Abs(want)
		}
		return got == float64(float32(want)) && math.Signbit(got) == math.Signbit(want)
	}
	return false
}
