package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/layer"
)

// floatInput is an input with a weight of each format, a convolution and a
// transposed weight in the 4-bit ones among them.
func floatInput(t *testing.T) solvedInput {
	t.Helper()
	rng := rand.New(rand.NewPCG(8, 9))
	ckpt := checkpoint(t, []tensor{
		floats(rng, "a.q.weight", dtype.BF16, 4, 32),
		floats(rng, "a.o.weight", dtype.BF16, 6, 5),
		floats(rng, "conv.weight", dtype.F32, 3, 4, 2, 2),
		floats(rng, "c_fc.weight", dtype.F16, 64, 5),
		floats(rng, "c_proj.weight", dtype.F32, 7, 3),
		floats(rng, "conv2.weight", dtype.F32, 3, 2, 3, 3),
		floats(rng, "int.weight", dtype.F32, 3, 7),
		floats(rng, "head.weight", dtype.F32, 3, 7),
		floats(rng, "norm.weight", dtype.F32, 7),
	}, nil)
	transposed := func(name string, f layer.Format) *layer.Solution {
		s := rounded(name, read(t, ckpt, name), lookup(t, ckpt, name).Shape[1], floatGrid(f))
		s.Transposed = true
		return s
	}
	in := inputOf(ckpt, map[string]*layer.Solution{
		"a.q.weight":    solve(t, ckpt, "a.q.weight", floatGrid(layer.NVFP4)),
		"a.o.weight":    solve(t, ckpt, "a.o.weight", floatGrid(layer.FP8)),
		"conv.weight":   solve(t, ckpt, "conv.weight", floatGrid(layer.NVFP4)),
		"c_fc.weight":   transposed("c_fc.weight", layer.MXFP4),
		"c_proj.weight": transposed("c_proj.weight", layer.FP8),
		"conv2.weight":  solve(t, ckpt, "conv2.weight", floatGrid(layer.FP8)),
		"int.weight":    solve(t, ckpt, "int.weight", channel(4, true)),
	})
	in.Architecture = "test"
	return in
}

func TestFloatRoundTrip(t *testing.T) {
	in := floatInput(t)
	dir := write(t, in)
	for _, format := range []DenseFormat{Safetensors, PyTorch} {
		if _, err := Dense(context.Background(), dir, format, in.Input); err != nil {
			t.Fatal(err)
		}
	}
	if err := Verify(context.Background(), dir, in.Input); err != nil {
		t.Fatal(err)
	}
	m, err := Open(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, x := range m.Tensors() {
		values := make([]float32, x.Elements())
		if err := m.ReadFloat32(x.Name, values); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(values, dense(t, in, x.Name)) {
			t.Errorf("%s reads back differently", x.Name)
		}
	}
	for name, want := range in.solutions {
		got, err := m.Solution(name)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want.Grid, got.Grid); d != "" || !slices.Equal(got.Codes, want.Codes) {
			t.Errorf("%s: codes or grid (-want +got):\n%s", name, d)
		}
	}
}

func TestFloatLayout(t *testing.T) {
	ckpt := open(t, filepath.Join(write(t, floatInput(t)), ModelName))
	got := map[string]string{}
	for _, x := range ckpt.Tensors() {
		got[x.Name] = fmt.Sprint(x.DType, x.Shape)
	}
	want := map[string]string{
		"a.q.weight_packed":        "U8 [4 16]",
		"a.q.weight_scale":         "F8_E4M3 [4 2]",
		"a.q.weight_global_scale":  "F32 [1]",
		"a.o.weight":               "F8_E4M3 [6 5]",
		"a.o.weight_scale":         "BF16 [6 1]",
		"conv.weight_packed":       "U8 [3 8]",
		"conv.weight_scale":        "F8_E4M3 [3 1]",
		"conv.weight_global_scale": "F32 [1]",
		"c_fc.weight_packed":       "U8 [5 32]",
		"c_fc.weight_scale":        "U8 [5 2]",
		"c_proj.weight":            "F8_E4M3 [3 7]",
		"c_proj.weight_scale":      "BF16 [3 1]",
		"conv2.weight":             "F8_E4M3 [3 2 3 3]",
		"conv2.weight_scale":       "BF16 [3 1]",
		"int.weight_packed":        "I32 [3 1]",
		"int.weight_scale":         "F32 [3 1]",
		"int.weight_shape":         "I64 [2]",
		"head.weight":              "F32 [3 7]",
		"norm.weight":              "F32 [7]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tensors (-want +got):\n%s", diff)
	}
	if meta := ckpt.Metadata(); meta[shapesKey] != `{"conv.weight":[3,4,2,2]}` || meta[transposedKey] != `["c_fc.weight","c_proj.weight"]` {
		t.Errorf("metadata %v", meta)
	}
}

// The config of each format, as compressed-tensors' presets have them, and of
// several together.
func TestFloatConfig(t *testing.T) {
	in := floatInput(t)
	got, err := os.ReadFile(filepath.Join(write(t, in), ConfigName))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/float.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("config.json (-want +got):\n%s", diff)
	}
	for format, name := range map[layer.Format]string{
		layer.Integer: "pack-quantized", layer.FP8: "naive-quantized", layer.NVFP4: "nvfp4-pack-quantized", layer.MXFP4: "mxfp4-pack-quantized",
	} {
		in := floatInput(t)
		for weight, spec := range in.Specs {
			if spec.Format != format {
				delete(in.Specs, weight)
			}
		}
		config, err := os.ReadFile(filepath.Join(write(t, in), ConfigName))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(config, []byte("\n    \"format\": \""+name+"\"")) {
			t.Errorf("%s: another format at the top of\n%s", name, config)
		}
	}
}

// TestGoldenBytes: one tiny weight of each format, worked out by hand.
func TestGoldenBytes(t *testing.T) {
	for _, c := range []struct {
		grid   layer.Grid
		weight []float32
		want   map[string][]byte
	}{
		{
			// The largest weight, 448·½, makes the scale ½ (BF16 0x3f00). Codes: 448 is
			// 0x7e, 1 is 0x38, −2 is 0xc0, 17 lies halfway between 16 and 18 and
			// becomes 16 with the even mantissa, 0x58.
			layer.Grid{Format: layer.FP8, Bits: 8, Granularity: layer.PerTensor, Symmetric: true, ScaleType: dtype.BF16},
			[]float32{224, 0.5, -1, 8.5, 0},
			map[string][]byte{
				"w.weight":       {0x7e, 0x38, 0xc0, 0x58, 0},
				"w.weight_scale": {0x00, 0x3f},
			},
		},
		{
			// The largest weight, 6, makes the global scale 2688/6 = 448 (F32 0x43e00000),
			// the first group's scale 448 (E4M3 0x7e), or 1; the second's, 448·1.5/6 =
			// 112 (0x6e), or ¼. Low nibbles are even columns.
			floatGrid(layer.NVFP4),
			[]float32{
				0.5, -6, 0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -5, 6, 3, -3, 1,
				1.5, -1.5, 0.125, 0.25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
			},
			map[string][]byte{
				"w.weight_packed": {
					0xf1, 0x00, 0x22, 0x44, 0x66, 0xe0, 0x57, 0x2d,
					0xf7, 0x21, 0, 0, 0, 0, 0, 0x60,
				},
				"w.weight_scale":        {0x7e, 0x6e},
				"w.weight_global_scale": {0x00, 0x00, 0xe0, 0x43},
			},
		},
		{
			// The largest weight of the first row makes the scale 3/6 = 2⁻¹, exponent
			// 126; of the second 24/6 = 2², exponent 129.
			floatGrid(layer.MXFP4),
			append(
				append([]float32{3, -3, 1, 0.25}, make([]float32, 28)...),
				append(make([]float32, 30), 24, -2)...),
			map[string][]byte{
				"w.weight_packed": append(
					append([]byte{0xf7, 0x14}, make([]byte, 14)...),
					append(make([]byte, 15), 0x97)...),
				"w.weight_scale": {126, 129},
			},
		},
	} {
		rows := 1
		if len(c.weight) == 64 {
			rows = 2
		}
		source := tensor{"w.weight", dtype.F32, []int{rows, len(c.weight) / rows}, encode(dtype.F32, c.weight)}
		ckpt := checkpoint(t, []tensor{source}, nil)
		in := inputOf(ckpt, map[string]*layer.Solution{"w.weight": solve(t, ckpt, "w.weight", c.grid)})
		written, _ := contents(t, filepath.Join(write(t, in), ModelName))
		got := map[string][]byte{}
		for name, x := range written {
			got[name] = x.raw
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.grid.Format, diff)
		}
	}
}

// Damage of floating-point weights is refused when the model is opened or read.
func TestOpenHostileFloat(t *testing.T) {
	only := func(name string, change func(x *tensor)) func(x *tensor) bool {
		return func(x *tensor) bool {
			if x.name == name {
				change(x)
			}
			return true
		}
	}
	without := func(name string) func(x *tensor) bool { return func(x *tensor) bool { return x.name != name } }
	for name, c := range map[string]struct {
		change func(x *tensor) bool
		more   []tensor
		kind   error
		tensor string
		index  int
	}{
		"no scale":        {without("a.q.weight_scale"), nil, ErrCorrupt, "a.q.weight_scale", -1},
		"no global":       {without("a.q.weight_global_scale"), nil, ErrCorrupt, "a.q.weight_global_scale", -1},
		"no FP8 scale":    {without("a.o.weight_scale"), nil, ErrCorrupt, "", 0},
		"no FP8 weight":   {without("a.o.weight"), nil, ErrCorrupt, "", 0},
		"dense too":       {nil, []tensor{integers("a.q.weight", dtype.I8, []int{1}, 1)}, ErrCorrupt, "a.q.weight", -1},
		"packed dtype":    {only("a.q.weight_packed", func(x *tensor) { x.dtype = dtype.I8 }), nil, ErrCorrupt, "a.q.weight_packed", -1},
		"packed rank":     {only("a.q.weight_packed", func(x *tensor) { x.shape = []int{64} }), nil, ErrCorrupt, "a.q.weight_packed", -1},
		"packed shape":    {only("a.q.weight_packed", func(x *tensor) { x.shape = []int{8, 8} }), nil, ErrCorrupt, "a.q.weight_scale", -1},
		"half a group":    {only("a.q.weight_packed", func(x *tensor) { x.shape = []int{16, 4} }), nil, ErrCorrupt, "a.q.weight", -1},
		"hidden shape":    {only("conv.weight_packed", func(x *tensor) { x.shape = []int{1, 24} }), nil, ErrCorrupt, "conv.weight_packed", -1},
		"FP8 dtype":       {only("a.o.weight", func(x *tensor) { x.dtype = dtype.F8E5M2 }), nil, ErrCorrupt, "a.o.weight", -1},
		"scale dtype":     {only("a.q.weight_scale", func(x *tensor) { x.dtype = dtype.U8 }), nil, ErrCorrupt, "a.q.weight_scale", -1},
		"FP8 scale dtype": {only("a.o.weight_scale", func(x *tensor) { x.dtype = dtype.I16 }), nil, ErrCorrupt, "a.o.weight", -1},
		"MX scale dtype":  {only("c_fc.weight_scale", func(x *tensor) { x.dtype = dtype.F8E8M0 }), nil, ErrCorrupt, "c_fc.weight_scale", -1},
		"code NaN":        {only("a.o.weight", func(x *tensor) { x.raw[7] = 0xff }), nil, ErrNotFinite, "a.o.weight", 7},
		"scale NaN":       {only("a.q.weight_scale", func(x *tensor) { x.raw[3] = 0x7f }), nil, ErrNotFinite, "a.q.weight_scale", 3},
		"scale zero":      {only("a.q.weight_scale", func(x *tensor) { x.raw[3] = 0 }), nil, ErrCorrupt, "a.q.weight_scale", 3},
		"scale negative":  {only("a.q.weight_scale", func(x *tensor) { x.raw[3] |= 0x80 }), nil, ErrCorrupt, "a.q.weight_scale", 3},
		"MX scale NaN":    {only("c_fc.weight_scale", func(x *tensor) { x.raw[2] = 255 }), nil, ErrNotFinite, "c_fc.weight_scale", 2},
		"MX scale huge":   {only("c_fc.weight_scale", func(x *tensor) { x.raw[2] = 254 }), nil, ErrNotFinite, "c_fc.weight_scale", 2},
		"global zero":     {only("a.q.weight_global_scale", func(x *tensor) { clear(x.raw) }), nil, ErrCorrupt, "a.q.weight_global_scale", 0},
		"global NaN":      {only("a.q.weight_global_scale", func(x *tensor) { x.raw[3], x.raw[2] = 0x7f, 0xff }), nil, ErrCorrupt, "a.q.weight_global_scale", 0},
		"global tiny":     {only("a.q.weight_global_scale", func(x *tensor) { copy(x.raw, []byte{1, 0, 0, 0}) }), nil, ErrNotFinite, "a.q.weight_scale", 0},
		"untargeted FP8":  {nil, []tensor{integers("b", dtype.F8E4M3, []int{1}, 1), integers("b_scale", dtype.I8, nil, 1)}, ErrCorrupt, "b", -1},
		"untargeted FP4":  {nil, []tensor{integers("b_packed", dtype.U8, nil, 1), integers("b_scale", dtype.U8, nil, 1)}, ErrCorrupt, "b", -1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, floatInput(t))
			rewrite(t, dir, c.change, c.more...)
			err := readAll(dir)
			var where *TensorError
			if !errors.Is(err, c.kind) {
				t.Fatalf("got %v", err)
			}
			if errors.As(err, &where) != (c.tensor != "") || where != nil && (where.Tensor != c.tensor || where.Index != c.index) {
				t.Errorf("wrong place: %v", err)
			}
		})
	}
}

func TestFloatConfigHostile(t *testing.T) {
	in := floatInput(t)
	good, err := os.ReadFile(filepath.Join(write(t, in), ConfigName))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]string{
		"one format at the top": {"\n    \"format\": \"mixed-precision\"", "\n    \"format\": \"pack-quantized\""},
		"mixed in a group":      {`"format": "nvfp4-pack-quantized"`, `"format": "mixed-precision"`},
		"another's layout":      {`"format": "nvfp4-pack-quantized"`, `"format": "mxfp4-pack-quantized"`},
		"packed FP8":            {`"format": "naive-quantized"`, `"format": "pack-quantized"`},
		"unknown":               {`"format": "naive-quantized"`, `"format": "mxfp8-quantized"`},
		"strategy":              {`"strategy": "tensor_group"`, `"strategy": "group"`},
		"group size":            {`"group_size": 16`, `"group_size": 32`},
		"bits":                  {`"num_bits": 4`, `"num_bits": 8`},
		"no zero points":        {`"symmetric": true`, `"symmetric": false`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, in)
			changed := strings.Replace(string(good), c[0], c[1], 1)
			if changed == string(good) {
				t.Fatalf("%s is not in config.json", c[0])
			}
			if err := os.WriteFile(filepath.Join(dir, ConfigName), []byte(changed), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := readAll(dir); !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v", err)
			}
		})
	}
	// The name of FP8 with quantized activations is read too.
	dir := write(t, in)
	changed := strings.ReplaceAll(string(good), "naive-quantized", "float-quantized")
	if err := os.WriteFile(filepath.Join(dir, ConfigName), []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := readAll(dir); err != nil {
		t.Error(err)
	}
}

// Hostile metadata about shapes.
func TestShapesHostile(t *testing.T) {
	for _, text := range []string{
		`[]`, `{"conv.weight":[]}`, `{"conv.weight":[-3,-16]}`, `{"conv.weight":[0,16]}`, `{"conv.weight":[48]}`,
		`{"conv.weight":[4611686018427387904,4]}`, `{"conv.weight":[3,4,2]}`, `{"conv.weight":"x"}`,
	} {
		in := floatInput(t)
		dir := write(t, in)
		path := filepath.Join(dir, ModelName)
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		good := `{\"conv.weight\":[3,4,2,2]}`
		changed := strings.ReplaceAll(text, `"`, `\"`)
		if !bytes.Contains(file, []byte(good)) {
			t.Fatalf("%s is not in the header", good)
		}
		// The header keeps its length: spaces follow.
		for len(changed) < len(good) {
			changed += " "
		}
		header := bytes.Replace(file, []byte(good), []byte(changed), 1)
		if len(header) != len(file) {
			header = grown(t, header, len(header)-len(file))
		}
		if err := os.WriteFile(path, header, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := readAll(dir); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// grown makes a file's header longer by n bytes.
func grown(t *testing.T, file []byte, n int) []byte {
	t.Helper()
	length := int(file[0]) | int(file[1])<<8
	length += n
	file[0], file[1] = byte(length), byte(length>>8)
	return file
}

// A weight that 4-bit formats cannot have is refused.
func TestFloatSizeRefused(t *testing.T) {
	in := floatInput(t)
	for name, change := range map[string]func(s *Spec){
		"format":     func(s *Spec) { s.Format = "fp6" },
		"bits":       func(s *Spec) { s.Bits = 8 },
		"scale type": func(s *Spec) { s.ScaleType = dtype.F32 },
		"asymmetric": func(s *Spec) { s.Symmetric = false },
		"group size": func(s *Spec) { s.GroupSize = 32 },
		"inputs":     func(s *Spec) { s.Name, s.Shape, s.Rows, s.Cols = "a.o.weight", []int{6, 5}, 6, 5 },
	} {
		s := in.Specs["a.q.weight"]
		change(&s)
		if _, err := CompressedTensorsSize(Input{Checkpoint: in.Checkpoint, Specs: map[string]Spec{s.Name: s}}); !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
		_ = s.Bytes() // must not panic
	}
}

// Verify names the tensor and the index of a difference.
func TestVerifyNamesFloat(t *testing.T) {
	for name, c := range map[string]struct {
		change func(in *solvedInput)
		tensor string
		index  int
	}{
		"FP8 code": {func(in *solvedInput) { in.solutions["a.o.weight"].Codes[3] /= 2 }, "a.o.weight", 3},
		"FP4 code": {func(in *solvedInput) { in.solutions["a.q.weight"].Codes[17] ^= 1 }, "a.q.weight_packed", 17},
		"global": {func(in *solvedInput) {
			g := &in.solutions["a.q.weight"].Grid
			g.Global *= 2
			for i := range g.Scales {
				g.Scales[i] /= 2
			}
		}, "a.q.weight_global_scale", 0},
		"MX scale": {func(in *solvedInput) { in.solutions["c_fc.weight"].Grid.Scales[5] *= 2 }, "c_fc.weight_scale", 5},
	} {
		in := floatInput(t)
		dir := write(t, in)
		c.change(&in)
		var where *TensorError
		err := Verify(context.Background(), dir, in.Input)
		if !errors.Is(err, ErrMismatch) || !errors.As(err, &where) || where.Tensor != c.tensor || where.Index != c.index {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// FuzzReadFloat changes bytes of a file of floating-point weights: reading it is
// an error, or gives finite values.
func FuzzReadFloat(f *testing.F) {
	f.Add(uint16(900), byte(0x7f), uint16(1200), byte(0xff))
	f.Add(uint16(9), byte('}'), uint16(40), byte(0))
	f.Fuzz(func(t *testing.T, at1 uint16, b1 byte, at2 uint16, b2 byte) {
		dir := write(t, floatInput(t))
		path := filepath.Join(dir, ModelName)
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		file[int(at1)%len(file)], file[int(at2)%len(file)] = b1, b2
		if err := os.WriteFile(path, file, 0o644); err != nil {
			t.Fatal(err)
		}
		m, err := Open(context.Background(), dir)
		if err != nil {
			return
		}
		defer m.Close()
		for _, s := range m.Specs() {
			values := make([]float32, s.Rows*s.Cols)
			if err := m.ReadFloat32(s.Name, values); err != nil {
				continue
			}
			for i, v := range values {
				if !finite(v) {
					t.Fatalf("%s holds %v at %d", s.Name, v, i)
				}
			}
		}
	})
}

// decodeFloat decodes an output's floating-point weights as compressed-tensors
// does, in float32, and compares them with the dense output.
const decodeFloat = `
import json, sys
import numpy as np

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "U8": "u1", "F8_E4M3": "u1", "I32": "<i4", "I64": "<i8"}

def load(path):
    raw = open(path, "rb").read()
    n = int.from_bytes(raw[:8], "little")
    header, data, out = json.loads(raw[8:8 + n]), raw[8 + n:], {}
    meta = header.pop("__metadata__")
    for name, t in header.items():
        part = data[slice(*t["data_offsets"])]
        if t["dtype"] == "BF16":
            x = (np.frombuffer(part, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            x = np.frombuffer(part, TYPES[t["dtype"]])
        out[name] = x.reshape(t["shape"])
    return out, meta

def e4m3(b):
    b = b.astype(np.int32)
    sign, exp, man = 1 - 2 * (b >> 7), b >> 3 & 15, b & 7
    return (sign * np.where(exp == 0, man * 2.0**-9, (8 + man) * 2.0**(exp - 10.0))).astype(np.float32)

E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6], np.float32)

def unpack(b):
    nibbles = np.stack((b & 15, b >> 4), axis=-1).reshape(b.shape[0], -1)
    return E2M1[nibbles & 7] * np.where(nibbles & 8, np.float32(-1), np.float32(1))

packed, meta = load(sys.argv[1] + "/model.safetensors")
dense, _ = load(sys.argv[1] + "/dense.safetensors")
config = json.load(open(sys.argv[1] + "/config.json"))["quantization_config"]
transposed, seen = json.loads(meta["fettle.transposed"]), 0
for group in config["config_groups"].values():
    for target in group["targets"]:
        name = target + ".weight"
        if group["format"] == "naive-quantized":
            q = e4m3(packed[name]).reshape(packed[name].shape[0], -1)
            scale = packed[name + "_scale"].astype(np.float32)
        elif group["format"] == "nvfp4-pack-quantized":
            q = unpack(packed[name + "_packed"])
            scale = e4m3(packed[name + "_scale"]) / packed[name + "_global_scale"]
        elif group["format"] == "mxfp4-pack-quantized":
            q = unpack(packed[name + "_packed"])
            scale = np.exp2(packed[name + "_scale"].astype(np.float32) - 127)
        else:
            continue
        w = q * np.repeat(scale, q.shape[1] // scale.shape[1], axis=1)
        want = dense[name]
        if name in transposed:
            w = w.T
        w = w.reshape(want.shape)
        if want.dtype == np.float16:
            w = w.astype(np.float16)
        assert w.dtype == want.dtype, (name, w.dtype, want.dtype)
        if name.startswith("a."):  # BF16: the dense output is rounded to it
            assert np.abs(w - want).max() <= np.abs(want).max() * 2.0**-8, name
        else:
            assert (w == want).all(), name
        seen += 1
assert seen == 6, seen
`

// TestPythonReadsFloat holds the layouts and the order of operations against a
// reader that shares no code with fettle.
func TestPythonReadsFloat(t *testing.T) {
	interpreter := python(t)
	if err := exec.Command(interpreter, "-c", "import numpy").Run(); err != nil {
		t.Skip("no NumPy here")
	}
	in := floatInput(t)
	dir := write(t, in)
	if _, err := Dense(context.Background(), dir, Safetensors, in.Input); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(interpreter, "-c", decodeFloat, dir).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
