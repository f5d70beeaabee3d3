package export

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
)

// storedModels are the folders of testdata/make_stored.py, with what is said of their
// weights.
var storedModels = map[string][]string{
	"gptq":              {"GPTQ 4 bits g16"},
	"gptq-act-order":    {"GPTQ 4 bits g16 act-order"},
	"gptq-3bit":         {"GPTQ 3 bits per channel"},
	"gptq-dynamic":      {"GPTQ 2 bits g16", "GPTQ 2 bits g32", "GPTQ 8 bits g16"},
	"gptq-gpt2":         {"GPTQ 4 bits g16"},
	"awq":               {"AWQ 4 bits g16"},
	"pack-quantized":    {"pack-quantized 4 bits g16", "pack-quantized 8 bits g32 act-order"},
	"int-quantized":     {"int-quantized 8 bits g16", "int-quantized 8 bits in blocks of 16×11", "int-quantized 8 bits per channel", "int-quantized 8 bits per tensor"},
	"sparse-bitmask":    nil, // as each says how much is pruned
	"sparse-24-bitmask": {"values in F16, 50 % pruned (bitmask)"},
	"float-quantized":   {"FP8 in blocks of 16×64", "FP8 per channel", "FP8 per tensor"},
}

// copyStored copies such a folder, so that it can be changed.
func copyStored(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "stored", name))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// openStored opens a folder as a view of decoded weights.
func openStored(dir string) (*Model, *loader.Checkpoint, error) {
	ckpt, err := loader.Open(context.Background(), dir)
	if err != nil {
		return nil, nil, err
	}
	m, err := Decode(ckpt)
	if err != nil {
		return nil, nil, errors.Join(err, ckpt.Close())
	}
	view, err := m.View()
	return m, view, err
}

type storedExpected struct {
	SHA256 map[string]string
	Cases  []struct {
		IDs    []uint32
		Logits [][]float64
	}
}

// checkStored compares every dequantized value and the logits with what the script
// found.
func checkStored(t *testing.T, m *Model, view *loader.Checkpoint, expected string) {
	t.Helper()
	text, err := os.ReadFile(expected)
	if err != nil {
		t.Fatal(err)
	}
	var want storedExpected
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	for _, x := range view.Tensors() {
		sum, quantized := want.SHA256[x.Name]
		if (x.Decoded() != nil) != quantized {
			t.Errorf("%s: quantized %v", x.Name, quantized)
		}
		raw := make([]byte, x.Bytes())
		if err := view.ReadBytes(x.Name, raw); err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(raw); quantized && hex.EncodeToString(got[:]) != sum {
			t.Errorf("%s: the values are others", x.Name)
		}
	}
	config, err := m.SourceConfig()
	if err != nil {
		t.Fatal(err)
	}
	graph, err := model.Build(view.Tensors(), model.Options{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range want.Cases {
		y, err := model.NewExecutor(graph, pool.New(1), model.Stored(view)).Forward(context.Background(), model.NewTokens(c.IDs))
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range slices.Concat(c.Logits...) {
			if !(math.Abs(float64(y.Data[i])-v) <= 1e-4) {
				t.Fatalf("logit %d is %v, want %v", i, y.Data[i], v)
			}
		}
	}
}

func TestStored(t *testing.T) {
	for name, encodings := range storedModels {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join("testdata", "stored", name)
			m, view, err := openStored(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			checkStored(t, m, view, filepath.Join(dir, "expected.json"))
			var got []string
			var bytes int64
			for _, x := range view.Tensors() {
				if x.Decoded() != nil {
					got = append(got, x.Encoding())
				}
				bytes += x.StoredBytes()
			}
			slices.Sort(got)
			if got = slices.Compact(got); encodings != nil && !slices.Equal(got, encodings) {
				t.Errorf("weights are said to be %q, want %q", got, encodings)
			}
			var all int64
			for _, x := range m.file.Tensors() {
				all += x.Bytes()
			}
			if bytes != all {
				t.Errorf("tensors take %d bytes, the file has %d", bytes, all)
			}
		})
	}
}

// TestStoredInPieces: rows, pieces and cuts of a decoded tensor are those of all of it.
func TestStoredInPieces(t *testing.T) {
	m, view, err := openStored(filepath.Join("testdata", "stored", "gptq-act-order"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	const name = "model.layers.0.mlp.up_proj.weight"
	whole, row := make([]float32, 64*32), make([]float32, 32)
	if err := view.ReadFloat32(name, whole); err != nil {
		t.Fatal(err)
	}
	if err := view.ReadRowFloat32(name, 5, row); err != nil || !slices.Equal(row, whole[5*32:6*32]) {
		t.Errorf("row 5: %v", err)
	}
	cut, err := view.View([]loader.Part{{Name: "part", From: name, Keep: [][]int{{1, 5}, {0, 3, 31}}}, {Name: "all", From: name}})
	if err != nil {
		t.Fatal(err)
	}
	some := make([]float32, 6)
	if err := cut.ReadFloat32("part", some); err != nil {
		t.Fatal(err)
	}
	if want := []float32{whole[32], whole[35], whole[63], whole[160], whole[163], whole[191]}; !slices.Equal(some, want) {
		t.Errorf("cut: %v, want %v", some, want)
	}
	a, _ := cut.Lookup("part")
	b, _ := cut.Lookup("all")
	if a.Decoded() != nil || b.Decoded() == nil || b.SourceBytes() != b.Decoded().Bytes || a.SourceBytes() != b.Decoded().Bytes*6/2048 {
		t.Errorf("cut: %v of %d bytes; whole: %v of %d", a.Decoded(), a.SourceBytes(), b.Decoded(), b.SourceBytes())
	}
}

// TestStoredKept: what is stored goes to the output byte for byte, also under another
// name, beside a layer that is compressed anew or alone, and means the same there.
func TestStoredKept(t *testing.T) {
	for name := range storedModels {
		t.Run(name, func(t *testing.T) {
			m, view, err := openStored(filepath.Join("testdata", "stored", name))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			config, err := m.SourceConfig()
			if err != nil {
				t.Fatal(err)
			}
			for _, anew := range []bool{false, true} {
				in := Input{Checkpoint: view, Source: m, Config: config, Tool: "fettle"}
				if anew {
					only := map[string]bool{"lm_head.weight": true, "wpe.weight": true}
					in = pick(t, in, only)
				}
				keptRoundTrip(t, in, m, filepath.Join("testdata", "stored", name, "expected.json"), !anew)
			}
		})
	}
}

// pick compresses some tensors of the input beside what is there.
func pick(t *testing.T, in Input, names map[string]bool) Input {
	t.Helper()
	list := map[string]*layer.Solution{}
	in.Specs = map[string]Spec{}
	for _, x := range in.Checkpoint.Tensors() {
		if names[x.Name] {
			list[x.Name] = solve(t, in.Checkpoint, x.Name, channel(4, true))
			in.Specs[x.Name] = SpecOf(x.Name, x.Shape, list[x.Name])
		}
	}
	in.Solution = func(name string) (*layer.Solution, error) { return list[name], nil }
	return in
}

func keptRoundTrip(t *testing.T, in Input, source *Model, expected string, same bool) {
	t.Helper()
	ctx, dir := context.Background(), t.TempDir()
	files, err := CompressedTensors(ctx, dir, in)
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(ctx, dir, in); err != nil {
		t.Fatal(err)
	}
	if size, err := CompressedTensorsSize(in); err != nil || size != files[0].Bytes {
		t.Errorf("%d bytes foretold (%v), %d written", size, err, files[0].Bytes)
	}
	m, view, err := openStored(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for weight := range source.groups {
		for _, name := range source.tensorsOf(weight) {
			want, err := source.read(name)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := m.read(name); err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: is not the source's (%v)", name, err)
			}
		}
	}
	if same {
		checkStored(t, m, view, expected)
	}
	gptq := source.config.gptq != nil
	if in.OnlyFettle() != (gptq && !same) || (m.config.method == source.config.method) != (same || !gptq) {
		t.Errorf("only fettle's: %v; method %s of %s", in.OnlyFettle(), m.config.method, source.config.method)
	}
	if m.Activations() != source.Activations() {
		t.Errorf("quantized activations: %v, were %v", m.Activations(), source.Activations())
	}

	// Once more, what is kept and what was new: both are kept.
	again := Input{Checkpoint: view, Source: m, Config: in.Config, Tool: "fettle"}
	second := t.TempDir()
	if _, err := CompressedTensors(ctx, second, again); err != nil {
		t.Fatal(err)
	}
	if err := Verify(ctx, second, again); err != nil {
		t.Error(err)
	}
	first, err := os.ReadFile(filepath.Join(dir, ConfigName))
	if err != nil {
		t.Fatal(err)
	}
	if then, err := os.ReadFile(filepath.Join(second, ConfigName)); err != nil || string(first) != string(then) {
		t.Errorf("%s differs when it is written again (%v)", ConfigName, err)
	}

	// Renamed.
	var parts []loader.Part
	for _, x := range view.Tensors() {
		parts = append(parts, loader.Part{Name: strings.Replace(x.Name, "layers.0", "layers.7", 1), From: x.Name})
	}
	if again.Checkpoint, err = view.View(parts); err != nil {
		t.Fatal(err)
	}
	third := t.TempDir()
	if _, err := CompressedTensors(ctx, third, again); err != nil {
		t.Fatal(err)
	}
	if err := Verify(ctx, third, again); err != nil {
		t.Error(err)
	}
}

// TestStoredHostile: files that contradict their config are refused with one error that
// names the tensor.
func TestStoredHostile(t *testing.T) {
	const up = "model.layers.0.mlp.up_proj"
	only := func(name string, do func(x *tensor)) func(x *tensor) bool {
		return func(x *tensor) bool {
			if x.name == name {
				do(x)
			}
			return true
		}
	}
	without := func(name string) func(x *tensor) bool { return func(x *tensor) bool { return x.name != name } }
	for what, c := range map[string]struct {
		model  string
		from   string // of config.json
		to     string
		change func(x *tensor) bool
		want   string
	}{
		"group size":       {"gptq", `"group_size": 16`, `"group_size": 32`, nil, "want [2 32]: 64 inputs in groups of 32 (group_size)"},
		"bits":             {"gptq", `"bits": 4`, `"bits": 5`, nil, "GPTQ packs 2, 3, 4 or 8"},
		"other bits":       {"gptq", `"bits": 4`, `"bits": 8`, nil, "scales"},
		"bits of 3":        {"gptq", `"bits": 4`, `"bits": 3`, nil, "no whole number of codes of 3 bits"},
		"no bits":          {"gptq", `"bits": 4`, `"bits": null`, nil, "bits is missing"},
		"format":           {"gptq", `"bits": 4`, `"bits": 4, "checkpoint_format": "marlin"`, nil, "save the model in format gptq"},
		"two formats":      {"gptq", `"bits": 4`, `"bits": 4, "checkpoint_format": "gptq", "format": "gptq_v2"`, nil, "contradicts"},
		"zero points":      {"gptq", `"bits": 4`, `"bits": 4, "checkpoint_format": "gptq_v2"`, nil, "zero point 7 of a weight that the config calls symmetric, want 8"},
		"words":            {"gptq", `"bits": 4`, `"bits": 4, "pack_dtype": "int16"`, nil, "pack_dtype"},
		"bitsandbytes":     {"gptq", `"quant_method": "gptq"`, `"quant_method": "bitsandbytes"`, nil, "save it dequantized"},
		"no method":        {"gptq", `"quant_method": "gptq"`, `"x": 1`, nil, "no quant_method"},
		"no scales":        {"gptq", "", "", without(up + ".scales"), up + ".scales: malformed: is missing"},
		"no zero points":   {"gptq", "", "", without(up + ".qzeros"), up + ".qzeros: malformed: is missing"},
		"index":            {"gptq", "", "", only(up+".g_idx", func(x *tensor) { x.raw[8] = 2 }), up + ".g_idx, index 2: malformed: group 2, of 2"},
		"index below 0":    {"gptq", "", "", only(up+".g_idx", func(x *tensor) { x.raw[3] = 0x80 }), "group -2147483648"},
		"no index":         {"gptq-act-order", "", "", without(up + ".g_idx"), up + ".g_idx: malformed: is missing"},
		"short index":      {"gptq", "", "", only(up+".g_idx", func(x *tensor) { x.shape, x.raw = []int{31}, x.raw[:124] }), "want I32 [32]"},
		"NaN":              {"gptq", "", "", only(up+".scales", func(x *tensor) { x.raw[1] = 0x7e }), up + ".scales, index 0: NaN"},
		"integer scales":   {"gptq", "", "", only(up+".scales", func(x *tensor) { x.dtype = dtype.I16 }), "scales of dtype I16"},
		"float codes":      {"gptq", "", "", only(up+".qweight", func(x *tensor) { x.dtype = dtype.F32 }), "want I32"},
		"flat codes":       {"gptq", "", "", only(up+".qweight", func(x *tensor) { x.shape = []int{256} }), "two dimensions"},
		"skipped":          {"gptq-dynamic", `"-:.*down_proj"`, `"-:.*up_proj"`, nil, "dynamic says that it is not"},
		"dynamic bits":     {"gptq-dynamic", `"bits": 2,`, `"bits": 5,`, nil, "5 bits"},
		"dynamic pattern":  {"gptq-dynamic", `"-:.*down_proj"`, `"-:(?=down)"`, nil, "dynamic"},
		"AWQ version":      {"awq", `"gemm"`, `"gemv"`, nil, "version gemm"},
		"AWQ bits":         {"awq", `"bits": 4`, `"bits": 8`, nil, "AWQ packs 4"},
		"ignored":          {"pack-quantized", `"lm_head"`, `"re:.*up_proj"`, nil, "says to ignore"},
		"no target":        {"pack-quantized", `"Linear"`, `"Conv2d"`, nil, "no config group targets"},
		"actorder":         {"pack-quantized", `"actorder": "group"`, `"actorder": "any"`, nil, `actorder "any"`},
		"shape":            {"pack-quantized", "", "", only(up+".weight_shape", func(x *tensor) { x.raw[8] = 99 }), "of a weight of shape [64 99]"},
		"no packed scale":  {"pack-quantized", "", "", without("model.layers.0.self_attn.q_proj.weight_scale"), "weight_scale: malformed: is missing"},
		"block":            {"int-quantized", `11`, `0`, nil, "block_structure"},
		"other block":      {"int-quantized", `11`, `8`, nil, "scale"},
		"cache":            {"int-quantized", `"kv_cache_scheme": null`, `"kv_cache_scheme": {"num_bits": 8}`, nil, "kv_cache_scheme"},
		"transforms":       {"int-quantized", `"transform_config": {}`, `"transform_config": {"a": 1}`, nil, "transform_config"},
		"zero of symmetry": {"int-quantized", `"symmetric": false`, `"symmetric": true`, nil, "zero points of a symmetric weight"},
		"NaN code":         {"float-quantized", "", "", only(up+".weight", func(x *tensor) { x.raw[7] = 0xff }), up + ".weight, index 7: NaN"},
	} {
		t.Run(what, func(t *testing.T) {
			dir := copyStored(t, c.model)
			if c.change != nil {
				rewrite(t, dir, c.change)
			}
			if c.from != "" {
				path := filepath.Join(dir, ConfigName)
				text, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				changed := strings.Replace(string(text), c.from, c.to, 1)
				if changed == string(text) {
					t.Fatalf("%s is not in the config", c.from)
				}
				if err := os.WriteFile(path, []byte(changed), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			err := readStored(dir)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotFinite) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("%v is of no kind", err)
			}
		})
	}
	dir := copyStored(t, "gptq-3bit")
	if err := os.Remove(filepath.Join(dir, quantizeName)); err != nil {
		t.Fatal(err)
	}
	if err := readStored(dir); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), quantizeName) {
		t.Errorf("without a config: %v", err)
	}
}

// readStored opens a folder and reads all of the view.
func readStored(dir string) error {
	m, view, err := openStored(dir)
	if err != nil {
		return err
	}
	defer m.Close()
	for _, x := range view.Tensors() {
		if err := view.ReadFloat32(x.Name, make([]float32, x.Elements())); err != nil {
			return err
		}
	}
	return nil
}

// FuzzStored: whatever config and tensors there are, opening and reading give values or
// an error.
func FuzzStored(f *testing.F) {
	for _, quantization := range []string{
		`{"quant_method":"gptq","bits":4,"group_size":8,"sym":false}`,
		`{"quant_method":"gptq","bits":3,"group_size":-1,"desc_act":true,"checkpoint_format":"gptq_v2"}`,
		`{"quant_method":"awq","bits":4,"group_size":8,"zero_point":true}`,
		`{"quant_method":"compressed-tensors","format":"int-quantized","config_groups":{"a":{"targets":["a"],"weights":{"num_bits":8,"type":"int","strategy":"group","group_size":4,"symmetric":false}}}}`,
		`{"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{"a":{"targets":["re:a"],"weights":{"num_bits":4,"type":"int","strategy":"group","group_size":4,"actorder":"group","symmetric":true}}}}`,
	} {
		f.Add(quantization, []byte("\x04\x08\x08\x01\x02\x08\x08\x20\x00\x00"))
	}
	f.Fuzz(func(t *testing.T, quantization string, shape []byte) {
		if len(shape) < 10 {
			return
		}
		dims := func(i int) []int { return []int{int(shape[i] % 40), int(shape[i+1] % 40)} }
		var tensors []tensor
		put := func(name string, d dtype.DType, shape []int) {
			n := d.Size()
			for _, k := range shape {
				n *= k
			}
			raw := make([]byte, n)
			for i := range raw {
				raw[i] = byte(i * 37 & 59)
			}
			tensors = append(tensors, tensor{name, d, shape, raw})
		}
		put("a.scales", dtype.F16, dims(2))
		put("a.weight_scale", dtype.F16, dims(2))
		put("a.qzeros", dtype.I32, dims(4))
		put("a.weight_zero_point", dtype.I8, dims(4))
		put("a.g_idx", dtype.I32, dims(6)[:1])
		put("a.weight_g_idx", dtype.I32, dims(6)[:1])
		switch shape[8] % 3 {
		case 0:
			put("a.qweight", dtype.I32, dims(0))
		case 1:
			put("a.weight", dtype.I8, dims(0))
		case 2:
			put("a.weight_packed", dtype.I32, dims(0))
			put("a.weight_shape", dtype.I64, []int{2})
			tensors[len(tensors)-1].raw = []byte{shape[6], 0, 0, 0, 0, 0, 0, 0, shape[7], 0, 0, 0, 0, 0, 0, shape[9]}
		}
		ckpt := checkpoint(t, tensors, nil)
		if err := os.WriteFile(filepath.Join(filepath.Dir(ckpt.Path()), ConfigName), []byte(`{"quantization_config":`+quantization+`}`), 0o644); err != nil {
			t.Fatal(err)
		}
		m, err := Decode(ckpt)
		if err != nil || m == nil {
			return
		}
		view, err := m.View()
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range view.Tensors() {
			if err := view.ReadFloat32(x.Name, make([]float32, x.Elements())); err == nil && x.Decoded() != nil && x.Elements() == 0 {
				t.Errorf("%s has no elements", x.Name)
			}
		}
	})
}

// TestStoredFile: a file alone is read by the config beside it, but not one of plain
// weights under another name.
func TestStoredFile(t *testing.T) {
	dir := copyStored(t, "gptq")
	odd := filepath.Join(dir, "gptq_model-4bit-16g.safetensors")
	if err := os.Rename(filepath.Join(dir, ModelName), odd); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, odd} {
		if err := readStored(path); err != nil {
			t.Error(err)
		}
	}
	m, _, err := openStored(odd)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	view, err := m.View()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Dense(context.Background(), dir, Safetensors, Input{Checkpoint: view, Source: m}); err != nil {
		t.Fatal(err)
	}
	dense := open(t, filepath.Join(dir, Safetensors.FileName()))
	if found, err := Decode(dense); found != nil || err != nil {
		t.Errorf("the dense file: %v, %v", found, err)
	}
	const up = "model.layers.0.mlp.up_proj.weight"
	if !slices.Equal(read(t, dense, up), read(t, view, up)) {
		t.Error("the dense file has other values")
	}
}

// TestStoredShares: what parts of a size are said to take is at least the size, and
// little more.
func TestStoredShares(t *testing.T) {
	for name := range storedModels {
		m, view, err := openStored(filepath.Join("testdata", "stored", name))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		size, err := CompressedTensorsSize(Input{Checkpoint: view, Source: m})
		if err != nil {
			t.Fatal(err)
		}
		shares := Shares{Checkpoint: view, Source: m, Limit: size}
		sum, err := shares.Frame()
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range view.Tensors() {
			n, err := shares.Kept(x)
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
		if sum < size || sum > size+size/50+400 {
			t.Errorf("%s: shares of %d bytes in sum, %d written", name, sum, size)
		}
	}
}
