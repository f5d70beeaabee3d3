package export

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/layer"
)

func TestSparseSpecRefused(t *testing.T) {
	in := sparseInput(t)
	for name, c := range map[string]struct {
		of     string
		change func(s *Spec)
	}{
		"layout":        {"a.bits.weight", func(s *Spec) { s.Pruned.Layout = "runs" }},
		"no layout":     {"a.bits.weight", func(s *Spec) { s.Pruned.Layout = MaskNone }},
		"negative":      {"a.bits.weight", func(s *Spec) { s.Pruned.Survivors = -1 }},
		"more":          {"a.bits.weight", func(s *Spec) { s.Pruned.Survivors = 121 }},
		"no pattern":    {"a.bits.weight", func(s *Spec) { s.Pruned.Layout = MaskPattern }},
		"wide pattern":  {"a.int.weight", func(s *Spec) { s.Pruned.Keep, s.Pruned.Of = 12, 33 }},
		"all kept":      {"a.int.weight", func(s *Spec) { s.Pruned.Keep = 4 }},
		"none kept":     {"a.int.weight", func(s *Spec) { s.Pruned.Keep = 0 }},
		"pattern count": {"a.int.weight", func(s *Spec) { s.Pruned.Survivors-- }},
		"value type":    {"a.bits.weight", func(s *Spec) { s.ValueType = dtype.F8E4M3 }},
		"values, bits":  {"a.bits.weight", func(s *Spec) { s.Bits = 4 }},
		"neither":       {"a.bits.weight", func(s *Spec) { s.ValueType = dtype.Invalid }},
		"rank":          {"lora.weight", func(s *Spec) { s.LowRank.Rank = 0 }},
		"negative rank": {"lora.weight", func(s *Spec) { s.LowRank.Rank = -1 }},
		"factor type":   {"lora.weight", func(s *Spec) { s.LowRank.Type = dtype.I8 }},
		"factor bits":   {"lora.weight", func(s *Spec) { s.LowRank.Bits = 9 }},
		"merged codes":  {"lora.weight", func(s *Spec) { s.LowRank.Merged = true }},
		"merged mask":   {"conv.weight", func(s *Spec) { s.LowRank.Merged = true }},
		"few columns": {"wide.weight", func(s *Spec) {
			s.Shape, s.Rows, s.Cols, s.Pruned.Survivors = []int{2, 1 << 20}, 2, 1<<20, 5
		}},
	} {
		s := in.Specs[c.of]
		c.change(&s)
		if err := s.check(ErrInput); !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
		_ = s.Bytes() // must not panic
		_ = s.Smallest()
	}
}

// A solution that its spec does not describe is refused by name.
func TestSparseSolutionRefused(t *testing.T) {
	for name, c := range map[string]struct {
		of     string
		change func(s *layer.Solution)
		kind   error
		index  int
	}{
		"no mask":       {"a.bits.weight", func(s *layer.Solution) { s.Mask = nil }, ErrInput, -1},
		"one more":      {"a.bits.weight", func(s *layer.Solution) { s.Mask.Bits[0] = 1<<20 - 1 }, ErrInput, -1},
		"value":         {"a.bits.weight", func(s *layer.Solution) { clear(s.Mask.Bits) }, ErrInput, 1},
		"NaN":           {"a.bits.weight", func(s *layer.Solution) { s.Values[7] = float32(math.NaN()) }, ErrNotFinite, 7},
		"inexact":       {"dense.weight", func(s *layer.Solution) { s.Values[3] = 0.1 }, ErrInput, 3},
		"other type":    {"a.half.weight", func(s *layer.Solution) { s.ValueType = dtype.F32 }, ErrInput, -1},
		"other pattern": {"a.int.weight", func(s *layer.Solution) { s.Mask.Bits[0] = 0b0111_0001_0011_0011_0011_0011; clear(s.Codes) }, ErrInput, -1},
		"no factors":    {"lora.weight", func(s *layer.Solution) { s.LowRank = nil }, ErrInput, -1},
		"other rank": {"lora.weight", func(s *layer.Solution) {
			s.LowRank.A.Rows, s.LowRank.B.Rows = 2, 2
			s.LowRank.A.Values, s.LowRank.B.Values = s.LowRank.A.Values[:18], s.LowRank.B.Values[:12]
		}, ErrInput, -1},
		"mixed types":    {"lora.weight", func(s *layer.Solution) { s.LowRank.B.Type = dtype.F32 }, ErrInput, -1},
		"factor NaN":     {"lora.weight", func(s *layer.Solution) { s.LowRank.A.Values[0] = float32(math.NaN()) }, ErrInput, -1},
		"factors beside": {"dense.weight", func(s *layer.Solution) { compensate(rand.New(rand.NewPCG(1, 1)), s, 1, dtype.F32, 0) }, ErrInput, -1},
		"overflow": {"merged.weight", func(s *layer.Solution) {
			s.LowRank.A.Values[0], s.LowRank.B.Values[0] = 3e38, 3e38
		}, ErrNotFinite, 0},
	} {
		t.Run(name, func(t *testing.T) {
			in := sparseInput(t)
			c.change(in.solutions[c.of])
			_, err := CompressedTensors(context.Background(), t.TempDir(), in.Input)
			var where *TensorError
			if !errors.Is(err, c.kind) || !errors.As(err, &where) || where.Tensor != c.of || where.Index != c.index {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Damage is found when a folder is opened, read or verified.
func TestSparseHostile(t *testing.T) {
	in := sparseInput(t)
	set := func(name string, change func(raw []byte)) func(*tensor) bool {
		return func(x *tensor) bool {
			if x.name == name {
				change(x.raw)
			}
			return true
		}
	}
	for name, c := range map[string]struct {
		change func(*tensor) bool
		tensor string
	}{
		"bitmask":     {set("a.fp8.weight_bitmask", func(raw []byte) { raw[0] ^= 1 }), "a.fp8.weight"},
		"past":        {set("a.fp8.weight_bitmask", func(raw []byte) { raw[2] |= 0x10 }), "a.fp8.weight_bitmask"},
		"offsets":     {set("a.bits.row_offsets", func(raw []byte) { raw[8]++ }), "a.bits.row_offsets"},
		"shape":       {set("a.bits.shape", func(raw []byte) { raw[0]-- }), "a.bits.shape"},
		"shape 2:4":   {set("a.half.shape", func(raw []byte) { raw[8]++ }), "a.half.shape"},
		"not 2:4":     {set("a.half.bitmask", func(raw []byte) { raw[0], raw[1] = 0xf3, 0x30 }), "a.half.weight"},
		"number":      {set("a.int.weight_pattern", func(raw []byte) { raw[0] |= 7 }), "a.int.weight_pattern"},
		"columns":     {set("wide.weight_columns", func(raw []byte) { raw[1] = 0xff }), "wide.weight_columns"},
		"descending":  {set("wide.weight_columns", func(raw []byte) { copy(raw, raw[2:4]) }), "wide.weight_columns"},
		"counts":      {set("conv2.weight_counts", func(raw []byte) { raw[0] = 27 }), ""},
		"fewer":       {set("conv2.weight_counts", func(raw []byte) { clear(raw) }), "conv2.weight"},
		"value":       {set("a.bits.compressed", func(raw []byte) { copy(raw, []byte{0, 0, 0x80, 0x7f}) }), "a.bits.compressed"},
		"factor":      {set("lora.lora_A.weight", func(raw []byte) { raw[0], raw[1] = 0x80, 0x7f }), "lora.weight"},
		"factor step": {set("lora8.lora_A.weight_scale", func(raw []byte) { clear(raw) }), "lora8.weight"},
		"no mask":     {func(x *tensor) bool { return x.name != "a.fp8.weight_bitmask" }, "a.fp8.weight_bitmask"},
		"no factor":   {func(x *tensor) bool { return x.name != "lora.lora_B.weight" }, "lora.lora_B.weight"},
		"no values":   {func(x *tensor) bool { return x.name != "dense.weight" }, "dense.weight"},
		"no packed":   {func(x *tensor) bool { return x.name != "conv2.weight_packed" }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, in)
			rewrite(t, dir, c.change)
			err := readAll(dir)
			var where *TensorError
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotFinite) || c.tensor != "" && (!errors.As(err, &where) || where.Tensor != c.tensor) {
				t.Errorf("got %v", err)
			}
		})
	}
	dir := write(t, in)
	rewrite(t, dir, nil, integers("a.bits.weight", dtype.I8, []int{1}, 1))
	if err := readAll(dir); !errors.Is(err, ErrCorrupt) {
		t.Errorf("twice: %v", err)
	}
}

func TestSparseConfigHostile(t *testing.T) {
	in := sparseInput(t)
	dir := write(t, in)
	path := filepath.Join(dir, ConfigName)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	type weights = map[string]any
	at := func(w weights, name string) weights { return w[name].(weights) }
	for name, change := range map[string]func(w weights){
		"no entry":        func(w weights) { delete(w, "a.int.weight") },
		"no values":       func(w weights) { delete(at(w, "a.bits.weight"), "values") },
		"value type":      func(w weights) { at(w, "a.bits.weight")["values"] = "F8_E4M3" },
		"other type":      func(w weights) { at(w, "a.bits.weight")["values"] = "BF16" },
		"no type":         func(w weights) { at(w, "a.bits.weight")["values"] = "X" },
		"layout":          func(w weights) { at(w, "a.int.weight")["mask"] = "runs" },
		"other layout":    func(w weights) { at(w, "a.int.weight")["mask"] = "bitmask" },
		"survivors":       func(w weights) { at(w, "a.fp8.weight")["survivors"] = 3 },
		"huge":            func(w weights) { at(w, "a.fp8.weight")["survivors"] = 1 << 60 },
		"negative":        func(w weights) { at(w, "a.fp8.weight")["survivors"] = -1 },
		"pattern":         func(w weights) { at(w, "a.int.weight")["pattern"] = []int{4, 2} },
		"no pattern":      func(w weights) { delete(at(w, "a.int.weight"), "pattern") },
		"odd pattern":     func(w weights) { at(w, "a.int.weight")["pattern"] = []int{-2, -4} },
		"shape":           func(w weights) { at(w, "a.int.weight")["shape"] = []int{24, 5} },
		"no shape":        func(w weights) { delete(at(w, "a.int.weight"), "shape") },
		"huge shape":      func(w weights) { at(w, "conv2.weight")["shape"] = []int{4, 1 << 50} },
		"overflow":        func(w weights) { at(w, "conv2.weight")["shape"] = []int{1 << 40, 1 << 40} },
		"zero":            func(w weights) { at(w, "conv2.weight")["shape"] = []int{0, 0} },
		"dimensions":      func(w weights) { at(w, "conv2.weight")["shape"] = []int{4, 27, 1, 1, 1, 1, 1, 1, 1} },
		"shape and plain": func(w weights) { at(w, "dense.weight")["shape"] = []int{3, 5} },
		"rank":            func(w weights) { at(w, "lora.weight")["rank"] = 4 },
		"huge rank":       func(w weights) { at(w, "lora.weight")["rank"] = 1 << 60 },
		"factor type":     func(w weights) { at(w, "lora.weight")["factor_type"] = "I8" },
		"no factor type":  func(w weights) { at(w, "lora.weight")["factor_type"] = "none" },
		"factor bits":     func(w weights) { at(w, "lora8.weight")["factor_bits"] = 5 },
		"merged":          func(w weights) { at(w, "lora.weight")["merged"] = true },
		"both":            func(w weights) { at(w, "a.int.weight")["values"] = "F32" },
		"other weight":    func(w weights) { w["norm"] = weights{"rank": 1} },
		"absent weight":   func(w weights) { w["x.weight"] = weights{"values": "F32"} },
	} {
		t.Run(name, func(t *testing.T) {
			var config weights
			if err := json.Unmarshal(good, &config); err != nil {
				t.Fatal(err)
			}
			change(config[ownKey].(weights)["weights"].(weights))
			changed, err := json.Marshal(config)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, changed, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := readAll(dir); !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A flipped bit of any byte is found, unless it is padding.
func TestSparseVerifyFindsFlippedBits(t *testing.T) {
	in := sparseInput(t)
	dir := write(t, in)
	path := filepath.Join(dir, ModelName)
	padding := map[string]bool{ // the last words of codes that do not fill them
		"wide.weight_packed": true, "conv2.weight_packed": true, "a.asym.weight_packed": true, "a.asym.weight_pattern": true,
		"a.int.weight_packed": true, "a.int.weight_pattern": true,
		"a.asym.weight_zero_point": true, "conv2.weight_zero_point": true, "a.fp4.weight_packed": true, "proj_pattern": true,
		"lora8.lora_A.weight_packed": true, "lora8.lora_B.weight_packed": true, "lora.weight_packed": true,
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	info, _ := f.Stat()
	header, err := safetensors.ReadHeader(f, info.Size())
	_ = f.Close()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	step := int64(3)
	if os.Getenv("FETTLE_LONG") == "" {
		step = 7
	}
	for _, x := range header.Tensors {
		missed := 0
		for at := header.DataOffset + x.Begin; at < header.DataOffset+x.End; at += step {
			file[at] ^= 0x10
			if err := os.WriteFile(path, file, 0o644); err != nil {
				t.Fatal(err)
			}
			file[at] ^= 0x10
			var where *TensorError
			if err := Verify(context.Background(), dir, in.Input); err == nil {
				missed++
			} else if !errors.As(err, &where) {
				t.Errorf("%s: %v", x.Name, err)
			}
		}
		if missed > 0 && !padding[x.Name] {
			t.Errorf("%s: missed %d", x.Name, missed)
		}
	}
}

// FuzzReadSparse changes bytes of a file and a piece of its config.json: reading is
// an error, or gives finite values.
func FuzzReadSparse(f *testing.F) {
	f.Add(uint16(900), byte(0x7f), uint16(1200), byte(0xff), uint16(40), "")
	f.Add(uint16(5000), byte('}'), uint16(40), byte(0), uint16(3000), "9")
	f.Fuzz(func(t *testing.T, at1 uint16, b1 byte, at2 uint16, b2 byte, at3 uint16, text string) {
		dir := write(t, sparseInput(t))
		file, err1 := os.ReadFile(filepath.Join(dir, ModelName))
		config, err2 := os.ReadFile(filepath.Join(dir, ConfigName))
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		file[int(at1)%len(file)], file[int(at2)%len(file)] = b1, b2
		copy(config[int(at3)%len(config):], text)
		err1 = os.WriteFile(filepath.Join(dir, ModelName), file, 0o644)
		err2 = os.WriteFile(filepath.Join(dir, ConfigName), config, 0o644)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		m, err := Open(context.Background(), dir)
		if err != nil {
			return
		}
		defer m.Close()
		for _, s := range m.Specs() {
			if got, err := m.Solution(s.Name); err == nil {
				if err := got.Check(); err != nil {
					t.Fatal(err)
				}
				got.Weight(make([]float32, s.Rows*s.Cols))
			}
		}
	})
}
