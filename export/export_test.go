package export

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
)

// tensor is a tensor of a test's checkpoint.
type tensor struct {
	name  string
	dtype dtype.DType
	shape []int
	raw   []byte
}

// checkpoint writes tensors as safetensors and opens them.
func checkpoint(t *testing.T, tensors []tensor, metadata map[string]string) *loader.Checkpoint {
	t.Helper()
	var list []safetensors.Source
	for _, x := range tensors {
		list = append(list, safetensors.Source{Name: x.name, DType: x.dtype, Shape: x.shape, Write: func(w io.Writer) error {
			_, err := w.Write(x.raw)
			return err
		}})
	}
	var file bytes.Buffer
	if err := safetensors.Write(&file, list, metadata); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "source.safetensors")
	if err := os.WriteFile(path, file.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return open(t, path)
}

func open(t *testing.T, path string) *loader.Checkpoint {
	t.Helper()
	ckpt, err := loader.Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ckpt.Close() })
	return ckpt
}

// floats is a tensor of random values.
func floats(rng *rand.Rand, name string, d dtype.DType, shape ...int) tensor {
	n, _ := product(shape)
	values := make([]float32, n)
	for i := range values {
		values[i] = float32(rng.NormFloat64())
	}
	return tensor{name, d, shape, encode(d, values)}
}

func encode(d dtype.DType, values []float32) []byte {
	raw := make([]byte, len(values)*d.Size())
	if err := d.FromFloat32(raw, values); err != nil {
		panic(err)
	}
	return raw
}

func integers(name string, d dtype.DType, shape []int, values ...int64) tensor {
	var raw []byte
	for _, v := range values {
		raw = append(raw, binary.LittleEndian.AppendUint64(nil, uint64(v))[:d.Size()]...)
	}
	return tensor{name, d, shape, raw}
}

// rounded rounds a weight to the nearest code of a min-max grid.
func rounded(name string, weight []float32, rows int, grid layer.Grid) *layer.Solution {
	if grid.Format != layer.Integer {
		return roundedFloat(name, weight, rows, grid)
	}
	cols := len(weight) / rows
	s := &layer.Solution{Layer: name, Method: "nearest", Rows: rows, Cols: cols, Grid: grid, Codes: make([]int8, len(weight))}
	n := max(1, rows*grid.GroupsPerRow(cols))
	least, most := make([]float64, n), make([]float64, n)
	for i, v := range weight {
		at := grid.Index(i/cols, i%cols, cols)
		least[at], most[at] = min(least[at], float64(v)), max(most[at], float64(v))
	}
	lo, hi := grid.Range()
	s.Grid.Scales = make([]float32, n)
	if !grid.Symmetric {
		s.Grid.Zeros = make([]int8, n)
	}
	clamp := func(v float64) int8 {
		return int8(min(max(math.RoundToEven(v), float64(lo)), float64(hi)))
	}
	for at := range n {
		span := max(most[at]-least[at], 1e-3)
		if grid.Symmetric {
			span = max(2*max(most[at], -least[at]), 1e-3)
		}
		s.Grid.Scales[at] = grid.ScaleType.Round(float32(span / float64(hi-lo)))
		if !grid.Symmetric {
			s.Grid.Zeros[at] = clamp(float64(lo) - least[at]/float64(s.Grid.Scales[at]))
		}
	}
	for i, v := range weight {
		at := grid.Index(i/cols, i%cols, cols)
		s.Codes[i] = clamp(float64(v)/float64(s.Grid.Scales[at]) + float64(s.Grid.Zero(at)))
	}
	return s
}

// roundedFloat is rounded for a floating-point grid, its scales from the largest
// weights.
func roundedFloat(name string, weight []float32, rows int, grid layer.Grid) *layer.Solution {
	cols := len(weight) / rows
	float := grid.Format.Float()
	s := &layer.Solution{Layer: name, Method: "nearest", Rows: rows, Cols: cols, Grid: grid, Codes: make([]int8, len(weight))}
	largest := make([]float64, max(1, rows*grid.GroupsPerRow(cols)))
	for i, v := range weight {
		at := grid.Index(i/cols, i%cols, cols)
		largest[at] = max(largest[at], math.Abs(float64(v)), 1e-3)
	}
	s.Grid.Scales = make([]float32, len(largest))
	if grid.Format == layer.NVFP4 {
		s.Grid.Global = float32(2688 / slices.Max(largest))
	}
	for at, v := range largest {
		scale := v / float.Largest()
		if grid.Format == layer.NVFP4 {
			s.Grid.Scales[at] = layer.LocalScale(scale*float64(s.Grid.Global)) / s.Grid.Global
		} else {
			s.Grid.Scales[at] = grid.ScaleType.Round(float32(scale))
		}
	}
	for i, v := range weight {
		at := grid.Index(i/cols, i%cols, cols)
		s.Codes[i] = int8(float.Nearest(float64(v) / float64(s.Grid.Scales[at])))
	}
	return s
}

// floatGrid is a grid of a floating-point format; FP8's is per channel.
func floatGrid(f layer.Format) layer.Grid {
	g := layer.Grid{Format: f, Bits: f.Bits(), Granularity: layer.PerChannel, Symmetric: true, ScaleType: f.ScaleType(dtype.BF16)}
	if size := f.GroupSize(); size > 0 {
		g.Granularity, g.GroupSize = layer.PerGroup, size
	}
	return g
}

// randomGrid is a grid that a weight of the given inputs per row can have.
func randomGrid(rng *rand.Rand, cols int) layer.Grid {
	types := []dtype.DType{dtype.F32, dtype.F16, dtype.BF16}
	g := layer.Grid{Bits: 2 + rng.IntN(7), Symmetric: rng.IntN(2) == 0, ScaleType: types[rng.IntN(3)]}
	if format := []layer.Format{layer.Integer, layer.FP8, layer.NVFP4, layer.MXFP4}[rng.IntN(4)]; format != layer.Integer {
		if size := format.GroupSize(); size > 0 && cols%size == 0 {
			return floatGrid(format)
		}
		g.Format, g.Bits, g.Symmetric = layer.FP8, 8, true
	}
	g.Granularity = []layer.Granularity{layer.PerTensor, layer.PerChannel, layer.PerGroup}[rng.IntN(3)]
	if g.Granularity == layer.PerGroup {
		g.GroupSize = 1 + rng.IntN(50)
	}
	return g
}

// randomCols is a number of inputs, often one that 4-bit formats can have.
func randomCols(rng *rand.Rand) int {
	if rng.IntN(2) == 0 {
		return 16 * (1 + rng.IntN(4))
	}
	return 1 + rng.IntN(40)
}

func solve(t *testing.T, ckpt *loader.Checkpoint, name string, grid layer.Grid) *layer.Solution {
	t.Helper()
	return rounded(name, read(t, ckpt, name), lookup(t, ckpt, name).Shape[0], grid)
}

func lookup(t *testing.T, ckpt *loader.Checkpoint, name string) loader.Tensor {
	t.Helper()
	x, ok := ckpt.Lookup(name)
	if !ok {
		t.Fatalf("no tensor %s", name)
	}
	return x
}

func read(t *testing.T, ckpt *loader.Checkpoint, name string) []float32 {
	t.Helper()
	values := make([]float32, lookup(t, ckpt, name).Elements())
	if err := ckpt.ReadFloat32(name, values); err != nil {
		t.Fatal(err)
	}
	return values
}

func channel(bits int, symmetric bool) layer.Grid {
	return layer.Grid{Bits: bits, Granularity: layer.PerChannel, Symmetric: symmetric, ScaleType: dtype.F32}
}

// solvedInput is an input whose solutions are in memory, where a test can change
// them.
type solvedInput struct {
	Input
	solutions map[string]*layer.Solution
	fetched   map[string]int // how often each was asked for
}

func inputOf(ckpt *loader.Checkpoint, solutions map[string]*layer.Solution) solvedInput {
	in := solvedInput{Input{Checkpoint: ckpt, Specs: map[string]Spec{}}, solutions, map[string]int{}}
	for name := range solutions {
		in.specify(name)
	}
	in.Solution = func(name string) (*layer.Solution, error) {
		in.fetched[name]++
		return solutions[name], nil
	}
	return in
}

// specify sets a weight's spec from its solution.
func (in solvedInput) specify(name string) {
	x, _ := in.Checkpoint.Lookup(name)
	in.Specs[name] = SpecOf(name, x.Shape, in.solutions[name])
}

// small is an input with a convolution, two linear layers, batch
// normalization, and a tensor of every dtype.
func small(t *testing.T) solvedInput {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 4))
	ckpt := checkpoint(t, []tensor{
		floats(rng, "module.conv1.weight", dtype.F32, 8, 3, 3, 3),
		floats(rng, "module.bn1.weight", dtype.F32, 8),
		floats(rng, "module.bn1.bias", dtype.F32, 8),
		integers("module.bn1.num_batches_tracked", dtype.I64, nil, 1<<40),
		floats(rng, "module.fc.weight", dtype.F16, 5, 8),
		floats(rng, "module.fc.bias", dtype.F16, 5),
		floats(rng, "module.attn.in_proj_weight", dtype.BF16, 6, 10),
		floats(rng, "module.head.weight", dtype.F64, 4, 7),
		integers("mask", dtype.Bool, []int{3}, 1, 0, 1),
		integers("i8", dtype.I8, []int{2}, -128, 127),
		integers("u8", dtype.U8, []int{1}, 255),
		integers("i16", dtype.I16, []int{2, 1}, -2, 3),
		integers("i32", dtype.I32, []int{1, 1, 1}, -1<<31),
		floats(rng, "empty", dtype.F32, 0, 4),
		integers("c64", dtype.C64, []int{1}, 0x3f8000003f000000),
	}, map[string]string{"format": "pt", "tied": "<fc & head>"})
	group := layer.Grid{Bits: 5, Granularity: layer.PerGroup, GroupSize: 4, ScaleType: dtype.F16}
	tensorwise := layer.Grid{Bits: 2, Granularity: layer.PerTensor, ScaleType: dtype.BF16}
	in := inputOf(ckpt, map[string]*layer.Solution{
		"module.conv1.weight":        solve(t, ckpt, "module.conv1.weight", channel(3, false)),
		"module.fc.weight":           solve(t, ckpt, "module.fc.weight", group),
		"module.attn.in_proj_weight": solve(t, ckpt, "module.attn.in_proj_weight", tensorwise),
	})
	in.Replaced = map[string][]float32{
		"module.bn1.bias": {0, 1, 2, 3, 4, 5, 6, 1e-40},
		"module.fc.bias":  {-1, 65504, 0.1, 2, 3},
	}
	in.Architecture, in.Tool = "resnet-cifar", "fettle test"
	return in
}

// dense is what the tensors of an output must read as.
func dense(t *testing.T, in solvedInput, name string) []float32 {
	t.Helper()
	if s, ok := in.solutions[name]; ok {
		values := make([]float32, len(s.Codes))
		s.Weight(values)
		return values
	}
	d := lookup(t, in.Checkpoint, name).DType
	if values, ok := in.Replaced[name]; ok {
		values = slices.Clone(values)
		for i, v := range values {
			values[i] = d.Round(v)
		}
		return values
	}
	return read(t, in.Checkpoint, name)
}

func write(t *testing.T, in solvedInput) (dir string) {
	t.Helper()
	dir = t.TempDir()
	files, err := CompressedTensors(context.Background(), dir, in.Input)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := os.Stat(filepath.Join(dir, f.Name))
		if err != nil || info.Size() != f.Bytes {
			t.Fatalf("%s: %v, recorded as %d bytes", f.Name, err, f.Bytes)
		}
	}
	return dir
}

func TestCompressedRoundTrip(t *testing.T) {
	in := small(t)
	dir := write(t, in)
	if err := Verify(context.Background(), dir, in.Input); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, ModelName)} {
		m, err := Open(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if m.Architecture() != in.Architecture {
			t.Errorf("architecture %q", m.Architecture())
		}
		if err := verifyTensors(m.Tensors(), in.Checkpoint.Tensors()); err != nil {
			t.Error(err)
		}
		want := in.Specs
		if got := m.Specs(); len(got) != len(want) {
			t.Errorf("%d specs, want %d", len(got), len(want))
		} else {
			for _, s := range got {
				if diff := cmp.Diff(want[s.Name], s); diff != "" {
					t.Errorf("spec of %s (-want +got):\n%s", s.Name, diff)
				}
			}
		}
		for _, x := range m.Tensors() {
			if x.DType == dtype.C64 {
				continue
			}
			values := make([]float32, x.Elements())
			if err := m.ReadFloat32(x.Name, values); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(values, dense(t, in, x.Name)) {
				t.Errorf("%s reads back differently", x.Name)
			}
		}
	}
}

// The layout on disk, spelled out: names, dtypes, shapes, alignment, metadata.
func TestLayout(t *testing.T) {
	in := small(t)
	ckpt := open(t, filepath.Join(write(t, in), ModelName))
	got := map[string]string{}
	for _, x := range ckpt.Tensors() {
		got[x.Name] = fmt.Sprint(x.DType, x.Shape)
	}
	want := map[string]string{
		"module.conv1.weight_packed":            "I32 [8 3]", // ⌈27·3/32⌉
		"module.conv1.weight_scale":             "F32 [8 1]",
		"module.conv1.weight_shape":             "I64 [4]",
		"module.conv1.weight_zero_point":        "I32 [1 1]", // ⌈8·3/32⌉
		"module.fc.weight_packed":               "I32 [5 2]",
		"module.fc.weight_scale":                "F16 [5 2]",
		"module.fc.weight_shape":                "I64 [2]",
		"module.fc.weight_zero_point":           "I32 [1 2]",
		"module.attn.in_proj_weight_packed":     "I32 [6 1]",
		"module.attn.in_proj_weight_scale":      "BF16 [1]",
		"module.attn.in_proj_weight_shape":      "I64 [2]",
		"module.attn.in_proj_weight_zero_point": "I8 [1]",
	}
	for _, x := range in.Checkpoint.Tensors() {
		if _, ok := in.Specs[x.Name]; !ok {
			want[x.Name] = fmt.Sprint(x.DType, x.Shape)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tensors (-want +got):\n%s", diff)
	}
	meta := map[string]string{"format": "pt", "tied": "<fc & head>"}
	if diff := cmp.Diff(meta, ckpt.Metadata()); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	f, err := os.Open(ckpt.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	header, err := safetensors.ReadHeader(f, ckpt.Size())
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range header.Tensors {
		if (header.DataOffset+x.Begin)%int64(x.DType.Size()) != 0 {
			t.Errorf("%s of %s starts at byte %d", x.Name, x.DType, header.DataOffset+x.Begin)
		}
	}
}

func TestConfig(t *testing.T) {
	in := small(t)
	got, err := os.ReadFile(filepath.Join(write(t, in), ConfigName))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/config.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("config.json (-want +got):\n%s", diff)
	}
}

// The bytes depend on the input alone: two writings are equal.
func TestDeterministic(t *testing.T) {
	in := small(t)
	a, b := write(t, in), write(t, in)
	for _, dir := range []string{a, b} {
		for _, format := range []DenseFormat{Safetensors, PyTorch} {
			if _, err := Dense(context.Background(), dir, format, in.Input); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{ModelName, ConfigName, "dense.safetensors", "dense.pt"} {
		x, err1 := os.ReadFile(filepath.Join(a, name))
		y, err2 := os.ReadFile(filepath.Join(b, name))
		if err1 != nil || err2 != nil || !bytes.Equal(x, y) {
			t.Errorf("%s differs between two runs (%v, %v)", name, err1, err2)
		}
	}
}

// Sizes foretold equal the files written, and what was written verifies, over
// random shapes, bits, granularities and dtypes.
func TestSizeProperty(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	types := []dtype.DType{dtype.F32, dtype.F16, dtype.BF16, dtype.F64}
	for range 60 {
		var tensors []tensor
		grids := map[string]layer.Grid{}
		for i := range 1 + rng.IntN(5) {
			name := fmt.Sprintf("layer%d.weight", i)
			shape := []int{1 + rng.IntN(40), randomCols(rng)}
			if rng.IntN(2) == 0 {
				shape = append(shape, 1+rng.IntN(3), 1+rng.IntN(3))
			}
			cols, _ := product(shape[1:])
			tensors = append(tensors,
				floats(rng, name, types[rng.IntN(4)], shape...),
				floats(rng, fmt.Sprintf("layer%d.bias", i), types[rng.IntN(4)], shape[0]))
			if rng.IntN(4) == 0 {
				continue
			}
			grids[name] = randomGrid(rng, cols)
		}
		ckpt, solutions := checkpoint(t, tensors, nil), map[string]*layer.Solution{}
		for name, g := range grids {
			solutions[name] = solve(t, ckpt, name, g)
		}
		in := inputOf(ckpt, solutions)
		size, err := CompressedTensorsSize(in.Input)
		if err != nil {
			t.Fatal(err)
		}
		dir := write(t, in)
		info, err := os.Stat(filepath.Join(dir, ModelName))
		if err != nil || info.Size() != size {
			t.Fatalf("foretold %d bytes, wrote %d (%v)", size, info.Size(), err)
		}
		if err := Verify(context.Background(), dir, in.Input); err != nil {
			t.Fatal(err)
		}
		written := open(t, filepath.Join(dir, ModelName))
		for _, s := range in.Specs {
			var sum int64
			for _, part := range []string{"", packedSuffix, scaleSuffix, shapeSuffix, zeroSuffix, globalSuffix} {
				if x, ok := written.Lookup(s.Name + part); ok {
					sum += x.Bytes()
				}
			}
			if s.Bytes() != sum {
				t.Fatalf("%+v foretells %d bytes, wrote %d", s, s.Bytes(), sum)
			}
		}
	}
}

func TestSizeRefused(t *testing.T) {
	in := small(t)
	good := in.Specs["module.fc.weight"]
	for name, change := range map[string]func(s *Spec){
		"name":        func(s *Spec) { s.Name = "other" },
		"integer":     func(s *Spec) { s.Name, s.Shape, s.Rows, s.Cols = "i16", []int{2, 1}, 2, 1 },
		"empty":       func(s *Spec) { s.Name, s.Shape, s.Rows, s.Cols = "empty", []int{0, 4}, 0, 4 },
		"shape":       func(s *Spec) { s.Shape = []int{8, 5} },
		"matrix":      func(s *Spec) { s.Rows, s.Cols = 8, 5 },
		"bits":        func(s *Spec) { s.Bits = 9 },
		"granularity": func(s *Spec) { s.Granularity = "block" },
		"group size":  func(s *Spec) { s.GroupSize = 0 },
		"scale type":  func(s *Spec) { s.ScaleType = dtype.I8 },
	} {
		s := good
		change(&s)
		in := Input{Checkpoint: in.Checkpoint, Specs: map[string]Spec{s.Name: s}}
		var where *TensorError
		if _, err := CompressedTensorsSize(in); !errors.Is(err, ErrInput) || !errors.As(err, &where) || where.Tensor != s.Name {
			t.Errorf("%s: %v", name, err)
		}
		_ = s.Bytes() // must not panic
	}
	in.Specs["module.head.weight"] = good
	if _, err := CompressedTensorsSize(in.Input); !errors.Is(err, ErrInput) {
		t.Errorf("another weight's spec: %v", err)
	}
}

// Each unfit input is refused by name and index before a file appears.
func TestInputRefused(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	for name, c := range map[string]struct {
		change func(in *solvedInput)
		kind   error
		tensor string
		index  int
	}{
		"NaN scale":      {func(in *solvedInput) { in.solutions["module.conv1.weight"].Grid.Scales[3] = nan }, ErrNotFinite, "module.conv1.weight", 3},
		"huge scale":     {func(in *solvedInput) { in.solutions["module.conv1.weight"].Grid.Scales[7] = 3e38 }, ErrNotFinite, "module.conv1.weight", 7},
		"negative scale": {func(in *solvedInput) { in.solutions["module.conv1.weight"].Grid.Scales[3] = -1 }, ErrInput, "module.conv1.weight", -1},
		"code":           {func(in *solvedInput) { in.solutions["module.conv1.weight"].Codes[100] = 4 }, ErrInput, "module.conv1.weight", 100},
		"few codes":      {func(in *solvedInput) { s := in.solutions["module.fc.weight"]; s.Codes = s.Codes[1:] }, ErrInput, "module.fc.weight", -1},
		"nil":            {func(in *solvedInput) { in.solutions["module.fc.weight"] = nil }, ErrInput, "module.fc.weight", -1},
		"no solutions":   {func(in *solvedInput) { in.Solution = nil }, ErrInput, "", -1},
		"other bits":     {func(in *solvedInput) { in.solutions["module.fc.weight"].Grid.Bits = 4 }, ErrInput, "module.fc.weight", -1},
		"cannot be read": {func(in *solvedInput) {
			in.Solution = func(string) (*layer.Solution, error) { return nil, io.ErrUnexpectedEOF }
		}, io.ErrUnexpectedEOF, "", -1},
		"matrix":           {func(in *solvedInput) { s := in.solutions["module.fc.weight"]; s.Rows, s.Cols = s.Cols, s.Rows }, ErrInput, "module.fc.weight", -1},
		"unknown":          {func(in *solvedInput) { in.Specs["x"] = in.Specs["module.fc.weight"] }, ErrInput, "x", -1},
		"replaced unknown": {func(in *solvedInput) { in.Replaced["x"] = nil }, ErrInput, "x", -1},
		"both":             {func(in *solvedInput) { in.Replaced["module.fc.weight"] = make([]float32, 40) }, ErrInput, "module.fc.weight", -1},
		"replaced length":  {func(in *solvedInput) { in.Replaced["module.bn1.bias"] = make([]float32, 7) }, ErrInput, "module.bn1.bias", -1},
		"replaced dtype":   {func(in *solvedInput) { in.Replaced["i16"] = make([]float32, 2) }, ErrUnsupported, "i16", -1},
		"replaced Inf":     {func(in *solvedInput) { in.Replaced["module.bn1.bias"][2] = inf }, ErrNotFinite, "module.bn1.bias", 2},
		"half overflow":    {func(in *solvedInput) { in.Replaced["module.fc.bias"][4] = 65520 }, ErrNotFinite, "module.fc.bias", 4},
	} {
		t.Run(name, func(t *testing.T) {
			in := small(t)
			c.change(&in)
			dir := t.TempDir()
			for what, err := range map[string]error{
				"CompressedTensors": func() error { _, err := CompressedTensors(context.Background(), dir, in.Input); return err }(),
				"Dense":             func() error { _, err := Dense(context.Background(), dir, Safetensors, in.Input); return err }(),
				"Dense pt":          func() error { _, err := Dense(context.Background(), dir, PyTorch, in.Input); return err }(),
			} {
				var where *TensorError
				if !errors.Is(err, c.kind) || !errors.As(err, &where) || c.tensor != "" && where.Tensor != c.tensor || where.Index != c.index {
					t.Errorf("%s: got %v", what, err)
				}
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// A kept tensor with a NaN or an infinity is refused, whatever its type.
func TestKeptNotFinite(t *testing.T) {
	for d, bits := range map[dtype.DType][]uint64{
		dtype.F64:    {0x7ff0000000000000, 0xfff8000000000000},
		dtype.F32:    {0x7f800000, 0xffc00001},
		dtype.F16:    {0x7c00, 0xfe00},
		dtype.BF16:   {0x7f80, 0xffc0},
		dtype.F8E5M2: {0x7c, 0xff},
		dtype.F8E4M3: {0x7f, 0xff},
		dtype.F8E8M0: {0xff},
		dtype.C64:    {0x7f800000, 0x7fc0000000000000},
	} {
		for _, b := range bits {
			x := integers("x", d, []int{3}, 0, int64(b), 0)
			if got := firstNotFinite(d, x.raw); got != 1 {
				t.Errorf("%s %x: index %d", d, b, got)
			}
			in := Input{Checkpoint: checkpoint(t, []tensor{x}, nil)}
			var where *TensorError
			if _, err := CompressedTensors(context.Background(), t.TempDir(), in); !errors.Is(err, ErrNotFinite) || !errors.As(err, &where) || where.Index != 1 {
				t.Errorf("%s %x: %v", d, b, err)
			}
		}
	}
	for d, largest := range map[dtype.DType]int64{
		dtype.F64: 0x7fefffffffffffff, dtype.F32: 0x7f7fffff, dtype.F16: 0x7bff, dtype.BF16: 0x7f7f,
		dtype.F8E5M2: 0x7b, dtype.F8E4M3: 0x7e, dtype.F8E8M0: 0xfe, dtype.I16: -1, dtype.C64: 0x7f7fffff7f7fffff,
	} {
		if i := firstNotFinite(d, integers("x", d, []int{1}, largest).raw); i != -1 {
			t.Errorf("the largest %s is called not finite", d)
		}
	}
}

// Names that would not read back are refused; odd ones that do are not.
func TestNames(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for name, c := range map[string]struct {
		compress []string
		keep     []string
		ok       bool
	}{
		"plain":                 {[]string{"a.weight"}, []string{"a.bias"}, true},
		"no suffix":             {[]string{"a", "weight", ".weight"}, nil, true},
		"suffix of a kept name": {[]string{"a.weight"}, []string{"b_packed"}, true},
		"taken":                 {[]string{"a.weight"}, []string{"a.weight_scale"}, false},
		"module and tensor":     {[]string{"a.weight", "a"}, nil, false},
		"kept module's":         {[]string{"a"}, []string{"a.weight_packed"}, false},
		"packed already":        {[]string{"a.weight"}, []string{"b_packed", "b_scale", "b_shape"}, false},
		"pattern":               {[]string{"re:a.weight"}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			var tensors []tensor
			for _, n := range slices.Concat(c.compress, c.keep) {
				tensors = append(tensors, floats(rng, n, dtype.F32, 3, 4))
			}
			ckpt, solutions := checkpoint(t, tensors, nil), map[string]*layer.Solution{}
			for _, n := range c.compress {
				solutions[n] = solve(t, ckpt, n, channel(4, true))
			}
			in := inputOf(ckpt, solutions)
			dir := t.TempDir()
			_, err := CompressedTensors(context.Background(), dir, in.Input)
			if !c.ok {
				if !errors.Is(err, ErrInput) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := Verify(context.Background(), dir, in.Input); err != nil {
				t.Error(err)
			}
		})
	}
}

// An error in the middle of writing leaves nothing and keeps its cause.
func TestWriteFails(t *testing.T) {
	in := small(t)
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	dir := t.TempDir()
	if _, err := CompressedTensors(cancelled, dir, in.Input); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := Dense(cancelled, dir, PyTorch, in.Input); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := CompressedTensors(context.Background(), filepath.Join(dir, "absent"), in.Input); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if _, err := Dense(context.Background(), dir, "onnx", in.Input); !errors.Is(err, ErrUnsupported) {
		t.Errorf("unknown format: %v", err)
	}
	// config.json cannot be written: model.safetensors goes too.
	if err := os.MkdirAll(filepath.Join(dir, ConfigName, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := CompressedTensors(context.Background(), dir, in.Input); err == nil {
		t.Error("wrote config.json over a folder")
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	for _, limit := range []int{0, 100, 5000} {
		w := &fullDisk{left: limit}
		src := source{Input: in.Input, ctx: context.Background()}
		if err := writePyTorch(w, "", in.Checkpoint.Tensors(), src.dense); !errors.Is(err, errFull) {
			t.Errorf("full after %d bytes: %v", limit, err)
		}
	}
}

var errFull = errors.New("disk is full")

type fullDisk struct{ left int }

func (d *fullDisk) Write(p []byte) (int, error) {
	if n := d.left; len(p) > n {
		d.left = 0
		return n, errFull
	}
	d.left -= len(p)
	return len(p), nil
}
