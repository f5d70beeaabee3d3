package export

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/record"
)

// valued is a solution of values in a type.
func valued(name string, weight []float32, rows int, d dtype.DType) *layer.Solution {
	s := &layer.Solution{Layer: name, Rows: rows, Cols: len(weight) / rows, ValueType: d, Values: slices.Clone(weight)}
	for i, v := range s.Values {
		s.Values[i] = d.Round(v)
	}
	return s
}

// prune sets a solution's mask and what it prunes.
func prune(s *layer.Solution, survives func(r, c int) bool) {
	s.Mask = layer.NewMask(s.Rows, s.Cols)
	for r := range s.Rows {
		for c := range s.Cols {
			i := r*s.Cols + c
			switch {
			case survives(r, c):
				s.Mask.Set(r, c, true)
			case s.Values != nil:
				s.Values[i] = 0
			default:
				s.Codes[i] = int8(s.Grid.Zero(s.Grid.Index(r, c, s.Cols)))
			}
		}
	}
}

// prunePattern keeps a random choice of each group, fewer of a short last one.
func prunePattern(rng *rand.Rand, s *layer.Solution, keep, of int) {
	var kept []bool
	prune(s, func(_, c int) bool {
		if c%of == 0 {
			size := min(of, s.Cols-c)
			kept = make([]bool, size)
			for _, i := range rng.Perm(size)[:(keep*size+of-1)/of] {
				kept[i] = true
			}
		}
		return kept[c%of]
	})
}

// compensate adds random factors: values, or codes where bits are given.
func compensate(rng *rand.Rand, s *layer.Solution, rank int, d dtype.DType, bits int) {
	random := func(cols int) layer.Factor {
		f := layer.Factor{Rows: rank, Cols: cols, Type: d}
		if bits == 0 {
			f.Values = make([]float32, rank*cols)
			for i := range f.Values {
				f.Values[i] = d.Round(float32(rng.NormFloat64()))
			}
			return f
		}
		f.Grid = layer.Grid{Bits: bits, Granularity: layer.PerChannel, Symmetric: true, ScaleType: d}
		f.Codes = make([]int8, rank*cols)
		for i := range f.Codes {
			f.Codes[i] = int8(rng.IntN(1<<bits) - 1<<(bits-1))
		}
		for range rank {
			f.Grid.Scales = append(f.Grid.Scales, d.Round(float32(0.01+rng.Float64())))
		}
		return f
	}
	s.LowRank = &layer.LowRank{B: random(s.Rows), A: random(s.Cols)}
}

// sparseInput is an input with a weight in each layout.
func sparseInput(t *testing.T) solvedInput {
	t.Helper()
	rng := rand.New(rand.NewPCG(20, 21))
	shapes := []struct {
		name  string
		shape []int
	}{
		{"a.bits.weight", []int{6, 20}},
		{"a.half.weight", []int{4, 16}},
		{"a.int.weight", []int{5, 24}},
		{"a.asym.weight", []int{5, 22}},
		{"a.fp8.weight", []int{4, 20}},
		{"a.fp4.weight", []int{3, 32}},
		{"a.tall.weight", []int{12, 5}},
		{"conv.weight", []int{4, 3, 3, 3}},
		{"conv2.weight", []int{4, 3, 3, 3}},
		{"lora.weight", []int{6, 9}},
		{"lora8.weight", []int{5, 11}},
		{"merged.weight", []int{4, 6}},
		{"dense.weight", []int{3, 5}},
		{"proj", []int{4, 10}},
		{"wide.weight", []int{2, 300}},
	}
	var tensors []tensor
	for _, x := range shapes {
		tensors = append(tensors, floats(rng, x.name, dtype.F32, x.shape...))
	}
	tensors = append(tensors, floats(rng, "norm.weight", dtype.F32, 6), floats(rng, "head.weight", dtype.BF16, 3, 6))
	ckpt := checkpoint(t, tensors, nil)
	values := func(name string, d dtype.DType) *layer.Solution {
		return valued(name, read(t, ckpt, name), lookup(t, ckpt, name).Shape[0], d)
	}
	half := func(int, int) bool { return rng.IntN(2) == 0 }
	few := func(int, int) bool { return rng.IntN(20) == 0 }
	solutions := map[string]*layer.Solution{
		"a.bits.weight": values("a.bits.weight", dtype.F32),
		"a.half.weight": values("a.half.weight", dtype.BF16),
		"a.int.weight":  solve(t, ckpt, "a.int.weight", channel(4, true)),
		"a.asym.weight": solve(t, ckpt, "a.asym.weight", layer.Grid{Bits: 3, Granularity: layer.PerGroup, GroupSize: 8, ScaleType: dtype.F16}),
		"a.fp8.weight":  solve(t, ckpt, "a.fp8.weight", floatGrid(layer.FP8)),
		"a.fp4.weight":  solve(t, ckpt, "a.fp4.weight", floatGrid(layer.NVFP4)),
		"a.tall.weight": values("a.tall.weight", dtype.F16),
		"conv.weight":   values("conv.weight", dtype.F32),
		"conv2.weight":  solve(t, ckpt, "conv2.weight", channel(5, false)),
		"lora.weight":   solve(t, ckpt, "lora.weight", channel(4, true)),
		"lora8.weight":  values("lora8.weight", dtype.F32),
		"merged.weight": values("merged.weight", dtype.F32),
		"dense.weight":  values("dense.weight", dtype.F16),
		"proj":          values("proj", dtype.F32),
		"wide.weight":   solve(t, ckpt, "wide.weight", channel(8, true)),
	}
	tall := solutions["a.tall.weight"]
	tall.Rows, tall.Cols, tall.Transposed = 5, 12, true
	compensate(rng, solutions["conv.weight"], 2, dtype.F32, 0)
	compensate(rng, solutions["lora.weight"], 3, dtype.BF16, 0)
	compensate(rng, solutions["lora8.weight"], 2, dtype.F16, 6)
	compensate(rng, solutions["merged.weight"], 2, dtype.F32, 0)
	layouts := map[string]Sparsity{
		"a.bits.weight": {Layout: MaskBits}, "a.half.weight": {Layout: MaskBits, Keep: 2, Of: 4},
		"a.int.weight": {Layout: MaskPattern, Keep: 2, Of: 4}, "a.asym.weight": {Layout: MaskPattern, Keep: 3, Of: 8},
		"a.fp8.weight": {Layout: MaskBits}, "a.fp4.weight": {Layout: MaskBits}, "a.tall.weight": {Layout: MaskBits},
		"conv.weight": {Layout: MaskBits}, "conv2.weight": {Layout: MaskColumns}, "lora.weight": {}, "merged.weight": {},
		"proj": {Layout: MaskPattern, Keep: 1, Of: 5}, "wide.weight": {Layout: MaskColumns},
	}
	for _, x := range shapes {
		p, pruned := layouts[x.name]
		switch s := solutions[x.name]; {
		case !pruned:
		case p.Of > 0:
			prunePattern(rng, s, p.Keep, p.Of)
		case p.Layout == MaskColumns:
			prune(s, few)
		default:
			prune(s, half)
		}
	}
	in := inputOf(ckpt, solutions)
	for name, p := range layouts {
		spec := in.Specs[name]
		if spec.Pruned = p; p.Layout != MaskNone {
			spec.Pruned.Survivors = solutions[name].Mask.Survivors()
		}
		spec.LowRank.Merged = name == "merged.weight"
		in.Specs[name] = spec
	}
	in.Architecture = "test"
	return in
}

// The layouts on disk, spelt out.
func TestSparseLayout(t *testing.T) {
	in := sparseInput(t)
	dir := write(t, in)
	ckpt := open(t, filepath.Join(dir, ModelName))
	got := map[string]string{}
	for _, x := range ckpt.Tensors() {
		got[x.Name] = fmt.Sprint(x.DType, x.Shape)
	}
	n := func(name string) int { return in.Specs[name].Pruned.Survivors }
	want := map[string]string{
		"norm.weight": "F32 [6]", "head.weight": "BF16 [3 6]",
		"a.bits.compressed":  fmt.Sprintf("F32 [%d]", n("a.bits.weight")),
		"a.bits.bitmask":     "U8 [6 3]",
		"a.bits.row_offsets": "I64 [6]",
		"a.bits.shape":       "I64 [2]",
		"a.half.compressed":  "BF16 [4 8]",
		"a.half.bitmask":     "U8 [4 2]",
		"a.half.shape":       "I64 [2 1]",

		"a.int.weight_packed":      "I32 [8]", // 60·4/32
		"a.int.weight_pattern":     "U8 [5 3]",
		"a.int.weight_scale":       "F32 [5 1]",
		"a.asym.weight_packed":     "I32 [5]",  // 5·(3+3+3)·3/32
		"a.asym.weight_pattern":    "U8 [5 3]", // 3 groups of 6 bits
		"a.asym.weight_scale":      "F16 [5 3]",
		"a.asym.weight_zero_point": "I32 [1 3]",
		"a.fp8.weight_packed":      fmt.Sprintf("F8_E4M3 [%d]", n("a.fp8.weight")),
		"a.fp8.weight_bitmask":     "U8 [4 3]",
		"a.fp8.weight_scale":       "BF16 [4 1]",
		"a.fp4.weight_packed":      fmt.Sprintf("U8 [%d]", (n("a.fp4.weight")+1)/2),
		"a.fp4.weight_bitmask":     "U8 [3 4]",
		"a.fp4.weight_scale":       "F8_E4M3 [3 2]",

		"a.fp4.weight_global_scale": "F32 [1]",

		"a.tall.weight_values":    fmt.Sprintf("F16 [%d]", n("a.tall.weight")),
		"a.tall.weight_bitmask":   "U8 [5 2]",
		"conv.weight_values":      fmt.Sprintf("F32 [%d]", n("conv.weight")),
		"conv.weight_bitmask":     "U8 [4 4]",
		"conv.lora_A.weight":      "F32 [2 3 3 3]",
		"conv.lora_B.weight":      "F32 [4 2 1 1]",
		"conv2.weight_packed":     fmt.Sprintf("I32 [%d]", (n("conv2.weight")*5+31)/32),
		"conv2.weight_columns":    fmt.Sprintf("U8 [%d]", n("conv2.weight")),
		"conv2.weight_counts":     "U8 [4]",
		"conv2.weight_scale":      "F32 [4 1]",
		"conv2.weight_zero_point": "I32 [1 1]",
		"wide.weight_packed":      fmt.Sprintf("I32 [%d]", (n("wide.weight")+3)/4),
		"wide.weight_columns":     fmt.Sprintf("U16 [%d]", n("wide.weight")),
		"wide.weight_counts":      "U16 [2]",
		"wide.weight_scale":       "F32 [2 1]",
		"lora.weight_packed":      "I32 [6 2]",
		"lora.weight_scale":       "F32 [6 1]",
		"lora.weight_shape":       "I64 [2]",
		"lora.lora_A.weight":      "BF16 [3 9]",
		"lora.lora_B.weight":      "BF16 [6 3]",
		"lora8.weight":            "F32 [5 11]",

		"lora8.lora_A.weight_packed": "I32 [2 3]", // ⌈11·6/32⌉
		"lora8.lora_A.weight_scale":  "F16 [2 1]",
		"lora8.lora_B.weight_packed": "I32 [2 1]",
		"lora8.lora_B.weight_scale":  "F16 [2 1]",

		"merged.weight": "F32 [4 6]",
		"dense.weight":  "F16 [3 5]",
		"proj_values":   "F32 [8]",
		"proj_pattern":  "U8 [4 1]", // 2 groups of 3 bits
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tensors (-want +got):\n%s", diff)
	}
	golden(t, filepath.Join(dir, ConfigName), "testdata/sparse_config.json")
}

// golden compares a file with one that is kept; FETTLE_GOLDEN=1 writes that.
func golden(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("FETTLE_GOLDEN") != "" {
		if err := os.WriteFile(want, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(kept), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", want, diff)
	}
}

// Where all weights in compressed-tensors' own sparse layouts have one and the same,
// config.json says so.
func TestSparsityConfig(t *testing.T) {
	rng := rand.New(rand.NewPCG(26, 27))
	for _, c := range []struct {
		pruned Sparsity
		format string
		want   string
	}{
		{Sparsity{Layout: MaskBits, Survivors: 12}, "dense", `{"format": "sparse-bitmask", "global_sparsity": 0.5, "ignore": ["b", "head"], "sparsity_structure": "unstructured", "targets": ["a", "c"]}`},
		{Sparsity{Layout: MaskBits, Survivors: 12, Keep: 2, Of: 4}, "dense", `{"format": "sparse-24-bitmask", "global_sparsity": 0.5, "ignore": ["b", "head"], "sparsity_structure": "2:4", "targets": ["a", "c"]}`},
		{Sparsity{Layout: MaskPattern, Survivors: 12, Keep: 2, Of: 4}, "dense", `{}`},
	} {
		ckpt := checkpoint(t, []tensor{
			floats(rng, "a.weight", dtype.F32, 3, 8), floats(rng, "c.weight", dtype.F32, 3, 8),
			floats(rng, "b.weight", dtype.F32, 3, 8), floats(rng, "head.weight", dtype.F32, 3, 8),
		}, nil)
		solutions := map[string]*layer.Solution{}
		for _, name := range []string{"a.weight", "b.weight", "c.weight"} {
			solutions[name] = valued(name, read(t, ckpt, name), 3, dtype.F32)
			if name != "b.weight" {
				prunePattern(rng, solutions[name], 2, 4)
			}
		}
		in := inputOf(ckpt, solutions)
		for _, name := range []string{"a.weight", "c.weight"} {
			spec := in.Specs[name]
			spec.Pruned = c.pruned
			in.Specs[name] = spec
		}
		dir := write(t, in)
		if err := Verify(context.Background(), dir, in.Input); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, ConfigName))
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Q struct {
				Format   string         `json:"format"`
				Ignore   []string       `json:"ignore"`
				Sparsity map[string]any `json:"sparsity_config"`
			} `json:"quantization_config"`
		}
		var want map[string]any
		if err := errors.Join(json.Unmarshal(data, &got), json.Unmarshal([]byte(c.want), &want)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got.Q.Sparsity); diff != "" {
			t.Errorf("sparsity_config (-want +got):\n%s", diff)
		}
		if got.Q.Format != c.format || !slices.Equal(got.Q.Ignore, []string{"a", "b", "c", "head"}) {
			t.Errorf("format %q, ignore %q", got.Q.Format, got.Q.Ignore)
		}
	}
}

// Worked bytes of the masks and of what survives.
func TestSparseBytes(t *testing.T) {
	// Rows 1 0 2 0 | 0 0 and 0 3 0 4 | 0 5 of 6 inputs.
	weight := []float32{1, 0, 2, 0, 0, 0, 0, 3, 0, 4, 0, 5}
	nonzero := func(s *layer.Solution) {
		prune(s, func(r, c int) bool { return weight[r*6+c] != 0 })
	}
	codes := &layer.Solution{Rows: 2, Cols: 6, Grid: channel(4, true), Codes: []int8{1, 0, 2, 0, 0, 0, 0, 3, 0, 4, 0, 5}}
	codes.Grid.Scales = []float32{1, 1}
	nonzero(codes)
	values := valued("", weight, 2, dtype.F16)
	nonzero(values)
	// Two of each four and one of the two that are left: the pairs {0, 2} and {1, 3}
	// have the numbers 1 and 4, for {0,1} {0,2} {1,2} {0,3} {1,3} {2,3} are in order.
	pattern := valued("", weight, 2, dtype.F16)
	prune(pattern, func(r, c int) bool { return weight[r*6+c] != 0 || r == 0 && c == 4 })
	for name, c := range map[string]struct {
		s      *layer.Solution
		pruned Sparsity
		want   map[string][]byte // by what follows "a"
	}{
		"sparse-bitmask": {values, Sparsity{Layout: MaskBits, Survivors: 5}, map[string][]byte{
			".compressed":  {0, 0x3c, 0, 0x40, 0, 0x42, 0, 0x44, 0, 0x45},
			".bitmask":     {0b000101, 0b101010},
			".row_offsets": {0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0},
			".shape":       {2, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0},
		}},
		"codes": {codes, Sparsity{Layout: MaskBits, Survivors: 5}, map[string][]byte{
			".weight_packed":  {0xa9, 0xcb, 0x0d, 0}, // each code + 8
			".weight_bitmask": {0b000101, 0b101010},
		}},
		"columns": {codes, Sparsity{Layout: MaskColumns, Survivors: 5}, map[string][]byte{
			".weight_packed":  {0xa9, 0xcb, 0x0d, 0},
			".weight_columns": {0, 2, 1, 3, 5},
			".weight_counts":  {2, 3},
		}},
		"pattern": {pattern, Sparsity{Layout: MaskPattern, Survivors: 6, Keep: 2, Of: 4}, map[string][]byte{
			".weight_values":  {0, 0x3c, 0, 0x40, 0, 0, 0, 0x42, 0, 0x44, 0, 0x45},
			".weight_pattern": {0b000_001, 0b001_100},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			ckpt := checkpoint(t, []tensor{{"a.weight", dtype.F16, []int{2, 6}, encode(dtype.F16, weight)}}, nil)
			in := inputOf(ckpt, map[string]*layer.Solution{"a.weight": c.s})
			spec := in.Specs["a.weight"]
			spec.Pruned = c.pruned
			in.Specs["a.weight"] = spec
			dir := write(t, in)
			if err := Verify(context.Background(), dir, in.Input); err != nil {
				t.Fatal(err)
			}
			all, _ := contents(t, filepath.Join(dir, ModelName))
			for suffix, want := range c.want {
				if got := all["a"+suffix].raw; !bytes.Equal(got, want) {
					t.Errorf("%s is %x, want %x", suffix, got, want)
				}
			}
		})
	}
}

func TestSparseRoundTrip(t *testing.T) {
	in := sparseInput(t)
	dir := write(t, in)
	for _, format := range []DenseFormat{Safetensors, PyTorch} {
		if _, err := Dense(context.Background(), dir, format, in.Input); err != nil {
			t.Fatal(err)
		}
	}
	if err := Verify(context.Background(), dir, in.Input); err != nil {
		t.Fatal(err)
	}
	checkReadBack(t, dir, in)
	m, err := Open(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	config, err := m.SourceConfig()
	if err != nil || strings.Contains(string(config), ownKey+`"`) {
		t.Errorf("the source's config is %s, %v", config, err)
	}
	dense := open(t, filepath.Join(dir, "dense.safetensors"))
	for _, x := range in.Checkpoint.Tensors() {
		values := make([]float32, x.Elements())
		if err := m.ReadFloat32(x.Name, values); err != nil {
			t.Fatal(err)
		}
		for i, v := range values {
			values[i] = x.DType.Round(v)
		}
		if !slices.Equal(values, read(t, dense, x.Name)) {
			t.Errorf("%s differs between the outputs", x.Name)
		}
	}
}

// checkReadBack opens what was written and holds specs, solutions and weights
// against the input's.
func checkReadBack(t *testing.T, dir string, in solvedInput) {
	t.Helper()
	m, err := Open(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := verifyTensors(m.Tensors(), in.Checkpoint.Tensors()); err != nil {
		t.Error(err)
	}
	got := map[string]Spec{}
	for _, s := range m.Specs() {
		got[s.Name] = s
	}
	if diff := cmp.Diff(in.Specs, got); diff != "" {
		t.Errorf("specs (-want +got):\n%s", diff)
	}
	for name, want := range in.solutions {
		s, err := m.Solution(name)
		if err != nil {
			t.Fatal(err)
		}
		if spec := in.Specs[name]; !spec.LowRank.Merged {
			expected := *want
			expected.Layer, expected.Method = name, ""
			if !spec.masked() {
				expected.Mask = nil
			}
			if diff := cmp.Diff(&expected, s); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
		a, b := make([]float32, s.Rows*s.Cols), make([]float32, s.Rows*s.Cols)
		want.Weight(a)
		if in.Specs[name].LowRank.Merged {
			for i, v := range a {
				a[i] = in.Specs[name].ValueType.Round(v)
			}
		}
		if err := m.ReadFloat32(name, b); err != nil || !slices.Equal(a, b) {
			t.Errorf("%s reads back differently (%v)", name, err)
		}
	}
}

// randomSparse is a model of random shapes, kinds of storage and patterns.
func randomSparse(t *testing.T, rng *rand.Rand) solvedInput {
	t.Helper()
	types := []dtype.DType{dtype.F32, dtype.F16, dtype.BF16, dtype.F64}
	var tensors []tensor
	n := 1 + rng.IntN(5)
	for i := range n {
		shape := []int{1 + rng.IntN(20), randomCols(rng)}
		if rng.IntN(4) == 0 {
			shape = append(shape, 1+rng.IntN(3), 1+rng.IntN(3))
		}
		tensors = append(tensors, floats(rng, fmt.Sprintf("layer%d.weight", i), types[rng.IntN(4)], shape...))
	}
	ckpt, solutions := checkpoint(t, tensors, nil), map[string]*layer.Solution{}
	in := inputOf(ckpt, solutions)
	for _, x := range tensors {
		weight, rows := read(t, ckpt, x.name), x.shape[0]
		transposed := len(x.shape) == 2 && rng.IntN(4) == 0
		if transposed {
			rows = x.shape[1]
		}
		s := valued(x.name, weight, rows, types[rng.IntN(4)])
		if rng.IntN(2) == 0 {
			s = rounded(x.name, weight, rows, randomGrid(rng, len(weight)/rows))
		}
		s.Transposed = transposed
		keep, of := 0, 0
		switch density := rng.Float64(); rng.IntN(4) {
		case 0:
		case 1:
			of = 2 + rng.IntN(31)
			if rng.IntN(2) == 0 {
				of = 4
			}
			keep = 1 + rng.IntN(of-1)
			prunePattern(rng, s, keep, of)
		case 2:
			density *= 0.1
			fallthrough
		default:
			prune(s, func(int, int) bool { return rng.Float64() < density })
		}
		if rng.IntN(3) == 0 {
			compensate(rng, s, 1+rng.IntN(4), types[rng.IntN(3)], []int{0, 2 + rng.IntN(7)}[rng.IntN(2)])
		}
		solutions[x.name] = s
		in.specify(x.name)
		spec := in.Specs[x.name]
		if s.Mask != nil {
			spec.Pruned = Sparsity{Survivors: s.Mask.Survivors(), Keep: keep, Of: of}
			layouts := []MaskLayout{MaskNone, MaskBits, MaskPattern, MaskColumns}
			if spec = spec.Smallest(); rng.IntN(2) == 0 {
				spec.Pruned = Sparsity{Survivors: s.Mask.Survivors(), Keep: keep, Of: of}
				if spec = spec.Smallest(layouts[rng.IntN(4)]); spec.Pruned.Layout == MaskNone {
					spec.Pruned = Sparsity{} // or the layout that was drawn does not fit
				}
			}
		}
		if spec.plain() && s.LowRank != nil && rng.IntN(2) == 0 {
			spec.LowRank.Merged = true
		}
		in.Specs[x.name] = spec
	}
	return in
}

// Sizes foretold are sizes written, in one file and in shards, and all reads back.
func TestSparseSizeProperty(t *testing.T) {
	rng, ctx := rand.New(rand.NewPCG(22, 23)), context.Background()
	seen := map[string]int{}
	for range 60 {
		in := randomSparse(t, rng)
		if rng.IntN(3) == 0 {
			in.ShardSize = []int64{1, 200, 1000}[rng.IntN(3)]
		}
		size, err := CompressedTensorsSize(in.Input)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		files, err := CompressedTensors(ctx, dir, in.Input)
		if err != nil {
			t.Fatal(err)
		}
		var sum int64
		for _, f := range files {
			if f.Role == "weights" {
				sum += f.Bytes
			}
		}
		if sum != size {
			t.Fatalf("foretold %d bytes, wrote %d", size, sum)
		}
		if err := Verify(ctx, dir, in.Input); err != nil {
			t.Fatal(err)
		}
		checkReadBack(t, dir, in)
		var data int64
		for _, x := range in.Checkpoint.Tensors() {
			if s, ok := in.Specs[x.Name]; ok {
				data += s.Bytes()
			} else {
				data += x.Bytes()
			}
		}
		if got := tensorBytes(t, dir, files); got != data {
			t.Fatalf("specs foretell %d bytes of tensors, wrote %d", data, got)
		}
		for _, s := range in.Specs {
			seen[fmt.Sprintf("%s values=%v factors=%v", s.Pruned.Layout, s.valued(), s.LowRank.Rank > 0)]++
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	if len(seen) < 16 {
		t.Errorf("only %v", seen)
	}
}

// tensorBytes sums the bytes of tensors, without headers.
func tensorBytes(t *testing.T, dir string, files []record.File) (sum int64) {
	t.Helper()
	for _, f := range files {
		if f.Role == "weights" {
			for _, x := range open(t, filepath.Join(dir, f.Name)).Tensors() {
				sum += x.Bytes()
			}
		}
	}
	return sum
}

// Smallest is the smallest of what each layout takes in a file.
func TestSmallest(t *testing.T) {
	rng := rand.New(rand.NewPCG(24, 25))
	chosen := map[MaskLayout]int{}
	for range 200 {
		spec := Spec{Name: "a.weight", Rows: 1 + rng.IntN(64), Cols: 1 + rng.IntN(600), ValueType: dtype.BF16}
		if rng.IntN(2) == 0 {
			spec.ValueType = dtype.Invalid
			spec.Bits, spec.Granularity, spec.Symmetric, spec.ScaleType = 2+rng.IntN(7), layer.PerChannel, true, dtype.F16
		}
		spec.Shape = []int{spec.Rows, spec.Cols}
		if rng.IntN(2) == 0 {
			spec.Pruned.Of = []int{4, 8}[rng.IntN(2)]
			spec.Pruned.Keep = spec.Pruned.Of / 2
			spec.Pruned.Survivors = PatternSurvivors(spec.Rows, spec.Cols, spec.Pruned.Keep, spec.Pruned.Of)
		} else {
			spec.Pruned.Survivors = int(math.Pow(rng.Float64(), 3) * float64(spec.Rows*spec.Cols))
		}
		got := spec.Smallest()
		chosen[got.Pruned.Layout]++
		if err := got.check(ErrInput); err != nil {
			t.Fatal(err)
		}
		size := func(s Spec) int64 {
			n, err := safetensors.Size(s.tensors(nil), nil)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		for _, l := range []MaskLayout{MaskNone, MaskBits, MaskPattern, MaskColumns} {
			if other := spec.Smallest(l); other.Pruned.Layout == l && other.check(ErrInput) == nil && size(other) < size(got) {
				t.Errorf("%+v: %q takes %d bytes, %q %d", spec, got.Pruned.Layout, size(got), l, size(other))
			}
		}
	}
	if len(chosen) != 4 {
		t.Errorf("chosen: %v", chosen)
	}
}
