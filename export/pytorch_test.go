package export

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
)

func TestDense(t *testing.T) {
	in := small(t)
	for _, format := range []DenseFormat{Safetensors, PyTorch} {
		t.Run(string(format), func(t *testing.T) {
			dir := t.TempDir()
			files, err := Dense(context.Background(), dir, format, in.Input)
			if err != nil || len(files) != 1 {
				t.Fatal(files, err)
			}
			file := files[0]
			path := filepath.Join(dir, file.Name)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if sum := sha256.Sum256(data); file.Bytes != int64(len(data)) || file.SHA256 != hex.EncodeToString(sum[:]) || file.Role != "dense" {
				t.Errorf("recorded as %+v, is %d bytes %x", file, len(data), sum)
			}
			if err := VerifyDense(context.Background(), dir, format, in.Input); err != nil {
				t.Error(err)
			}
			ckpt := open(t, path)
			for _, x := range in.Checkpoint.Tensors() {
				if x.DType == dtype.C64 {
					continue
				}
				want := dense(t, in, x.Name)
				for i, v := range want {
					want[i] = x.DType.Round(v)
				}
				if got := read(t, ckpt, x.Name); !slices.Equal(got, want) {
					t.Errorf("%s reads back differently", x.Name)
				}
			}
			in.Replaced["module.bn1.bias"][3]++
			err = VerifyDense(context.Background(), dir, format, in.Input)
			var where *TensorError
			if !errors.Is(err, ErrMismatch) || !errors.As(err, &where) || where.Tensor != "module.bn1.bias" || where.Index != 3 {
				t.Errorf("a difference: %v", err)
			}
			in.Replaced["module.bn1.bias"][3]--
		})
	}
}

// Entries are stored, aligned to 64 bytes and carry no time.
func TestPyTorchZip(t *testing.T) {
	in := small(t)
	dir := t.TempDir()
	if _, err := Dense(context.Background(), dir, PyTorch, in.Input); err != nil {
		t.Fatal(err)
	}
	z, err := zip.OpenReader(filepath.Join(dir, "dense.pt"))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	if want := len(in.Checkpoint.Tensors()) + 2; len(z.File) != want {
		t.Errorf("%d entries, want %d", len(z.File), want)
	}
	for _, f := range z.File {
		offset, err := f.DataOffset()
		if err != nil {
			t.Fatal(err)
		}
		if offset%64 != 0 || f.Method != zip.Store || f.ModifiedDate != 33 || f.ModifiedTime != 0 || f.Flags != 0 || !strings.HasPrefix(f.Name, "archive/") {
			t.Errorf("%s at %d: %+v", f.Name, offset, f.FileHeader)
		}
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil { // checks the CRC
			t.Errorf("%s: %v", f.Name, err)
		}
	}
	in.Checkpoint = checkpoint(t, []tensor{integers("x", dtype.F8E4M3, []int{1}, 1)}, nil)
	in.Specs, in.Replaced = nil, nil
	if _, err := Dense(context.Background(), dir, PyTorch, in.Input); !errors.Is(err, ErrUnsupported) {
		t.Errorf("F8 in a PyTorch file: %v", err)
	}
}

// withTorch finds an interpreter that has PyTorch, once, for importing it is
// slow.
var withTorch = sync.OnceValue(func() string {
	for _, name := range []string{os.Getenv("FETTLE_PYTHON"), "python3", "/usr/bin/python3"} {
		if name != "" && exec.Command(name, "-c", "import torch").Run() == nil {
			return name
		}
	}
	return ""
})

// python returns an interpreter that has PyTorch, or skips the test.
func python(t *testing.T) string {
	t.Helper()
	if withTorch() == "" {
		t.Skip("no Python with PyTorch; FETTLE_PYTHON may name one")
	}
	return withTorch()
}

// dump prints each tensor of a PyTorch file below a root as JSON.
const dump = `
import hashlib, json, sys, torch
state = torch.load(sys.argv[1])
for part in filter(None, sys.argv[2].split(".")):
    assert list(state) == [part], list(state)
    state = state[part]
assert type(state).__name__ == "OrderedDict", type(state)
out = []
for name, t in state.items():
    assert not t.requires_grad and t.is_contiguous() and t.device.type == "cpu"
    raw = bytes(t.storage().untyped().tolist()) if t.numel() else b""
    out.append([name, str(t.dtype), list(t.shape), hashlib.sha256(raw).hexdigest()])
json.dump(out, sys.stdout)
`

var torchName = map[dtype.DType]string{
	dtype.F64: "float64", dtype.F32: "float32", dtype.F16: "float16", dtype.BF16: "bfloat16", dtype.I64: "int64", dtype.I32: "int32",
	dtype.I16: "int16", dtype.I8: "int8", dtype.U8: "uint8", dtype.Bool: "bool", dtype.C64: "complex64",
}

// checkTorch loads dense.pt with PyTorch and compares names in their order,
// dtypes, shapes and bytes.
func checkTorch(t *testing.T, in Input) {
	t.Helper()
	interpreter := python(t)
	dir := t.TempDir()
	if _, err := Dense(context.Background(), dir, PyTorch, in); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(interpreter, "-c", dump, filepath.Join(dir, "dense.pt"), in.Checkpoint.Root())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var got, want [][4]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	src := source{Input: in, ctx: context.Background()}
	for _, x := range in.Checkpoint.Tensors() {
		raw, err := src.dense(x)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(raw)
		shape := []any{}
		for _, d := range x.Shape {
			shape = append(shape, float64(d))
		}
		want = append(want, [4]any{x.Name, "torch." + torchName[x.DType], shape, hex.EncodeToString(sum[:])})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("PyTorch reads (-want +got):\n%s", diff)
	}
}

func TestPyTorchLoads(t *testing.T) { checkTorch(t, small(t).Input) }

// A state dict read back by PyTorch fits a module strictly.
func TestPyTorchLoadStateDict(t *testing.T) {
	interpreter := python(t)
	rng := rand.New(rand.NewPCG(9, 10))
	ckpt := checkpoint(t, []tensor{
		floats(rng, "0.weight", dtype.F32, 8, 3, 3, 3),
		floats(rng, "1.weight", dtype.F32, 8), floats(rng, "1.bias", dtype.F32, 8),
		floats(rng, "1.running_mean", dtype.F32, 8), floats(rng, "1.running_var", dtype.F32, 8),
		integers("1.num_batches_tracked", dtype.I64, nil, 7),
		floats(rng, "2.weight", dtype.F32, 10, 300), floats(rng, "2.bias", dtype.F32, 10),
	}, nil)
	in := inputOf(ckpt, map[string]*layer.Solution{"2.weight": solve(t, ckpt, "2.weight", channel(4, false))})
	dir := t.TempDir()
	if _, err := Dense(context.Background(), dir, PyTorch, in.Input); err != nil {
		t.Fatal(err)
	}
	const script = `
import sys, torch
from torch import nn
m = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Linear(300, 10))
m.load_state_dict(torch.load(sys.argv[1]), strict=True)
assert m[1].num_batches_tracked.item() == 7
`
	if out, err := exec.Command(interpreter, "-c", script, filepath.Join(dir, "dense.pt")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestContiguous(t *testing.T) {
	for _, c := range []struct{ shape, want []int }{
		{nil, []int{}}, {[]int{5}, []int{1}}, {[]int{2, 3, 4}, []int{12, 4, 1}}, {[]int{2, 0, 3}, []int{3, 3, 1}},
	} {
		if diff := cmp.Diff(c.want, contiguous(c.shape)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", c.shape, diff)
		}
	}
}

// Numbers around the limits of the opcodes, as PyTorch reads them, stand in a
// pickle of their own.
func TestPickleIntegers(t *testing.T) {
	interpreter := python(t)
	list := []int{0, 255, 256, 65535, 65536, 1<<31 - 1, 1 << 31, 1 << 40, 1<<63 - 1}
	p := &pickler{}
	p.op("\x80\x02")
	p.integers(list)
	p.op(".")
	path := filepath.Join(t.TempDir(), "p")
	if err := os.WriteFile(path, p.out, 0o644); err != nil {
		t.Fatal(err)
	}
	text, err := exec.Command(interpreter, "-c", "import json,pickle,sys; print(json.dumps(pickle.load(open(sys.argv[1],'rb'))))", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	if err := json.Unmarshal(text, &got); err != nil || !slices.Equal(got, list) {
		t.Errorf("%v: got %v, want %v", err, got, list)
	}
}

// sharedData returns the path of real files beside the module, or skips.
func sharedData(t *testing.T, name string) string {
	t.Helper()
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil || root == filepath.Dir(root) {
			break
		}
		root = filepath.Dir(root)
	}
	path := filepath.Join(root, "..", "shared", "data", filepath.FromSlash(name))
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no ../shared/data/%s", name)
	}
	return path
}

// resnet opens the real ResNet-20 and rounds all its layers to 4 bits.
func resnet(t *testing.T) solvedInput {
	t.Helper()
	path := sharedData(t, "resnet-cifar10/resnet20-12fca82f.th")
	ckpt, solutions := open(t, path), map[string]*layer.Solution{}
	for _, x := range ckpt.Tensors() {
		if len(x.Shape) > 1 {
			solutions[x.Name] = solve(t, ckpt, x.Name, channel(4, false))
		}
	}
	in := inputOf(ckpt, solutions)
	in.Architecture = "resnet-cifar"
	return in
}

func TestResNet(t *testing.T) {
	in := resnet(t)
	dir := write(t, in)
	if err := Verify(context.Background(), dir, in.Input); err != nil {
		t.Error(err)
	}
	m, err := Open(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	size, err := CompressedTensorsSize(in.Input)
	if err != nil || size != m.Size() {
		t.Errorf("foretold %d bytes, wrote %d (%v)", size, m.Size(), err)
	}
	t.Logf("%d tensors, %d compressed, %d bytes → %d", len(m.Tensors()), len(m.Specs()), in.Checkpoint.Size(), size)
	for _, format := range []DenseFormat{Safetensors, PyTorch} {
		if _, err := Dense(context.Background(), dir, format, in.Input); err != nil {
			t.Fatal(err)
		}
	}
	if err := Verify(context.Background(), dir, in.Input); err != nil { // now of all three
		t.Error(err)
	}
	again, err := loader.Open(context.Background(), filepath.Join(dir, "dense.pt"))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Root() != in.Checkpoint.Root() || again.Root() == "" {
		t.Errorf("root %q, want %q", again.Root(), in.Checkpoint.Root())
	}
	checkTorch(t, in.Input)
}

// Whatever odd checkpoint opens (views, tied tensors, other byte orders, empty
// tensors) is written in each format and verifies, or is refused by name.
func TestOddCheckpoints(t *testing.T) {
	written := 0
	err := filepath.WalkDir(sharedData(t, "torture"), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && entry.Name() == "gopickle" && os.Getenv("FETTLE_LONG") == "" {
			return fs.SkipDir // a hundred small files of the same kinds
		}
		if err != nil || entry.IsDir() {
			return err
		}
		ckpt, err := loader.Open(context.Background(), path)
		if err != nil {
			return nil // the loader's to test
		}
		defer ckpt.Close()
		in, dir := Input{Checkpoint: ckpt}, t.TempDir()
		_, err = CompressedTensors(context.Background(), dir, in)
		for _, format := range []DenseFormat{Safetensors, PyTorch} {
			if err == nil {
				_, err = Dense(context.Background(), dir, format, in)
			}
		}
		if err == nil {
			written++
			err = Verify(context.Background(), dir, in)
		}
		var where *TensorError
		if errors.As(err, &where) && (errors.Is(err, ErrNotFinite) || errors.Is(err, ErrUnsupported)) {
			t.Logf("%s: %v", entry.Name(), err)
		} else if err != nil {
			t.Errorf("%s: %v", entry.Name(), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d written", written)
}
