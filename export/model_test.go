package export

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/loader"
)

// rewrite changes the tensors of a written model.safetensors. A change returns
// false for a tensor that goes.
func rewrite(t *testing.T, dir string, change func(x *tensor) bool, more ...tensor) {
	t.Helper()
	path := filepath.Join(dir, ModelName)
	ckpt, err := loader.Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	var tensors []tensor
	for _, x := range ckpt.Tensors() {
		raw := make([]byte, x.Bytes())
		if err := ckpt.ReadBytes(x.Name, raw); err != nil {
			t.Fatal(err)
		}
		changed := tensor{x.Name, x.DType, slices.Clone(x.Shape), raw}
		if change == nil || change(&changed) {
			tensors = append(tensors, changed)
		}
	}
	metadata := ckpt.Metadata()
	if err := ckpt.Close(); err != nil {
		t.Fatal(err)
	}
	var list []safetensors.Source
	for _, x := range append(tensors, more...) {
		list = append(list, safetensors.Source{Name: x.name, DType: x.dtype, Shape: x.shape, Write: func(w io.Writer) error {
			_, err := w.Write(x.raw)
			return err
		}})
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := safetensors.Write(f, list, metadata); err != nil {
		t.Fatal(err)
	}
}

// Damage that contradicts itself is refused when the model is opened or read.
func TestOpenHostile(t *testing.T) {
	only := func(name string, change func(x *tensor)) func(x *tensor) bool {
		return func(x *tensor) bool {
			if x.name == name {
				change(x)
			}
			return true
		}
	}
	without := func(name string) func(x *tensor) bool { return func(x *tensor) bool { return x.name != name } }
	const conv, fc, proj = "module.conv1.weight", "module.fc.weight", "module.attn.in_proj_weight"
	for name, c := range map[string]struct {
		change func(x *tensor) bool
		more   []tensor
		kind   error
		tensor string
		index  int
	}{
		"no scale":      {without(conv + "_scale"), nil, ErrCorrupt, conv + "_scale", -1},
		"no shape":      {without(conv + "_shape"), nil, ErrCorrupt, conv + "_shape", -1},
		"no zero point": {without(conv + "_zero_point"), nil, ErrCorrupt, conv + "_zero_point", -1},
		"no packed":     {without(conv + "_packed"), nil, ErrCorrupt, "", 0},
		"twice":         {nil, []tensor{integers(conv, dtype.I8, []int{1}, 1)}, ErrCorrupt, conv, -1},
		"untargeted": {nil, []tensor{
			integers("a_packed", dtype.I8, nil, 1), integers("a_scale", dtype.I8, nil, 1),
			integers("a_shape", dtype.I8, nil, 1),
		}, ErrCorrupt, "a", -1},
		"packed dtype":   {only(conv+"_packed", func(x *tensor) { x.dtype = dtype.U32 }), nil, ErrCorrupt, conv + "_packed", -1},
		"packed shape":   {only(conv+"_packed", func(x *tensor) { x.shape = []int{3, 8} }), nil, ErrCorrupt, conv + "_packed", -1},
		"scale dtype":    {only(conv+"_scale", func(x *tensor) { x.dtype = dtype.I32 }), nil, ErrCorrupt, conv, -1},
		"scale shape":    {only(conv+"_scale", func(x *tensor) { x.shape = []int{8} }), nil, ErrCorrupt, conv + "_scale", -1},
		"zero shape":     {only(fc+"_zero_point", func(x *tensor) { x.shape = []int{2, 1} }), nil, ErrCorrupt, fc + "_zero_point", -1},
		"shape dtype":    {only(fc+"_shape", func(x *tensor) { x.dtype = dtype.F64 }), nil, ErrCorrupt, fc + "_shape", -1},
		"shape rank":     {only(fc+"_shape", func(x *tensor) { x.shape = []int{2, 1} }), nil, ErrCorrupt, fc + "_shape", -1},
		"shape scalar":   {only(fc+"_shape", func(x *tensor) { x.shape, x.raw = nil, x.raw[:8] }), nil, ErrCorrupt, fc + "_shape", -1},
		"shape empty":    {only(fc+"_shape", func(x *tensor) { x.shape, x.raw = []int{0}, nil }), nil, ErrCorrupt, fc + "_shape", -1},
		"shape zero":     {only(fc+"_shape", func(x *tensor) { clear(x.raw[8:]) }), nil, ErrCorrupt, fc + "_shape", 1},
		"shape negative": {only(fc+"_shape", func(x *tensor) { x.raw[7] = 0xff }), nil, ErrCorrupt, fc + "_shape", 0},
		"shape overflow": {only(fc+"_shape", func(x *tensor) { x.raw[6], x.raw[14] = 0x7f, 0x7f }), nil, ErrCorrupt, fc + "_shape", -1},
		"shape huge":     {only(fc+"_shape", func(x *tensor) { x.raw[7] = 0x0f }), nil, ErrCorrupt, fc + "_packed", -1},
		"shape other":    {only(conv+"_shape", func(x *tensor) { x.raw[0] = 9 }), nil, ErrCorrupt, conv + "_packed", -1},
		"scale NaN": {only(conv+"_scale", func(x *tensor) {
			binary.LittleEndian.PutUint32(x.raw[8:], math.Float32bits(float32(math.NaN())))
		}), nil, ErrNotFinite, conv + "_scale", 2},
		"scale huge": {only(conv+"_scale", func(x *tensor) {
			binary.LittleEndian.PutUint32(x.raw[28:], math.Float32bits(math.MaxFloat32))
		}), nil, ErrNotFinite, conv + "_scale", 7},
		"scale zero":     {only(conv+"_scale", func(x *tensor) { clear(x.raw[:4]) }), nil, ErrCorrupt, conv + "_scale", 0},
		"scale negative": {only(proj+"_scale", func(x *tensor) { x.raw[1] |= 0x80 }), nil, ErrCorrupt, proj + "_scale", 0},
		"zero range":     {only(proj+"_zero_point", func(x *tensor) { x.raw[0] = 2 }), nil, ErrCorrupt, proj + "_zero_point", 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, small(t))
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

// readAll opens an output and reads every tensor.
func readAll(dir string) error {
	m, err := Open(context.Background(), dir)
	if err != nil {
		return err
	}
	defer m.Close()
	for _, x := range m.Tensors() {
		if x.DType == dtype.C64 {
			continue
		}
		if err := m.ReadFloat32(x.Name, make([]float32, x.Elements())); err != nil {
			return err
		}
	}
	return nil
}

func TestConfigHostile(t *testing.T) {
	in := small(t)
	good, err := os.ReadFile(filepath.Join(write(t, in), ConfigName))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]string{
		"not JSON":        {`{`, `[`},
		"no quantization": {`"quantization_config"`, `"quantization"`},
		"method":          {`"quant_method": "compressed-tensors"`, `"quant_method": "gptq"`},
		"format":          {"\n    \"format\": \"pack-quantized\"", "\n    \"format\": \"mixed-precision\""},
		"old version":     {`"version": "0.17.0"`, `"version": "0.16.9"`},
		"odd version":     {`"version": "0.17.0"`, `"version": "new"`},
		"bits":            {`"num_bits": 3`, `"num_bits": 9`},
		"other bits":      {`"num_bits": 3`, `"num_bits": 2`},
		"fraction":        {`"num_bits": 3`, `"num_bits": 3.5`},
		"type":            {`"type": "int"`, `"type": "float"`},
		"strategy":        {`"strategy": "channel"`, `"strategy": "block"`},
		"group size":      {`"group_size": 4`, `"group_size": null`},
		"negative group":  {`"group_size": 4`, `"group_size": -4`},
		"other group":     {`"group_size": 4`, `"group_size": 2`},
		"act-order":       {`"actorder": null`, `"actorder": "group"`},
		"symmetric":       {`"symmetric": false`, `"symmetric": true`},
		"class target":    {`"module.conv1"`, `"Linear"`},
		"pattern target":  {`"module.conv1"`, `"re:(?!conv1)"`},
		"target twice":    {`"module.conv1"`, `"module.fc"`},
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
	dir := write(t, in)
	if err := os.Remove(filepath.Join(dir, ConfigName)); err != nil {
		t.Fatal(err)
	}
	if err := readAll(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no config: %v", err)
	}
	if err := readAll(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}

// Any single changed byte of the data is either found by Verify or lies in
// padding bits, which no reader looks at.
func TestVerifyFindsFlippedBits(t *testing.T) {
	in := small(t)
	dir := write(t, in)
	path := filepath.Join(dir, ModelName)
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	header := int(binary.LittleEndian.Uint64(file)) + 8
	missed := 0
	for at := header; at < len(file); at += 7 {
		file[at] ^= 0x10
		if err := os.WriteFile(path, file, 0o644); err != nil {
			t.Fatal(err)
		}
		file[at] ^= 0x10
		err := Verify(context.Background(), dir, in.Input)
		var where *TensorError
		if err == nil {
			missed++
		} else if !errors.As(err, &where) {
			t.Errorf("byte %d: %v", at, err)
		}
	}
	if tries := (len(file) - header) / 7; missed > tries/4 {
		t.Errorf("missed %d of %d", missed, tries)
	}
}

// Verify names the tensor and the index of a difference.
func TestVerifyNames(t *testing.T) {
	for name, c := range map[string]struct {
		change func(in *solvedInput)
		tensor string
		index  int
	}{
		"code":     {func(in *solvedInput) { c := in.solutions["module.conv1.weight"].Codes; c[28] ^= 1 }, "module.conv1.weight_packed", 28},
		"scale":    {func(in *solvedInput) { in.solutions["module.conv1.weight"].Grid.Scales[5] *= 2 }, "module.conv1.weight_scale", 5},
		"zero":     {func(in *solvedInput) { z := in.solutions["module.fc.weight"].Grid.Zeros; z[9] ^= 1 }, "module.fc.weight_zero_point", 9},
		"replaced": {func(in *solvedInput) { in.Replaced["module.bn1.bias"][6] = 9 }, "module.bn1.bias", 6},
		"kept":     {func(in *solvedInput) { delete(in.Replaced, "module.bn1.bias") }, "module.bn1.bias", 0},
		"scheme": {func(in *solvedInput) {
			in.solutions["module.conv1.weight"].Grid.Bits = 4
			in.specify("module.conv1.weight")
		}, "module.conv1.weight", -1},
		"dense": {func(in *solvedInput) { delete(in.Specs, "module.fc.weight") }, "module.fc.weight", -1},
		"more": {func(in *solvedInput) {
			s := *in.solutions["module.conv1.weight"]
			s.Rows, s.Cols, s.Codes = 4, 7, s.Codes[:28]
			s.Grid.Scales, s.Grid.Zeros = s.Grid.Scales[:4], s.Grid.Zeros[:4]
			in.solutions["module.head.weight"] = &s
			in.specify("module.head.weight")
		}, "module.head.weight", -1},
	} {
		t.Run(name, func(t *testing.T) {
			in := small(t)
			dir := write(t, in)
			c.change(&in)
			var where *TensorError
			err := Verify(context.Background(), dir, in.Input)
			if !errors.Is(err, ErrMismatch) || !errors.As(err, &where) || where.Tensor != c.tensor || where.Index != c.index {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("tensors", func(t *testing.T) {
		in := small(t)
		dir := write(t, in)
		rewrite(t, dir, func(x *tensor) bool { return x.name != "i32" })
		if err := Verify(context.Background(), dir, in.Input); !errors.Is(err, ErrMismatch) {
			t.Errorf("missing: %v", err)
		}
		dir = write(t, in)
		rewrite(t, dir, nil, integers("more", dtype.I8, nil, 1))
		if err := Verify(context.Background(), dir, in.Input); !errors.Is(err, ErrMismatch) {
			t.Errorf("one more: %v", err)
		}
	})
}

// Verify reads dense files beside the compressed one as well.
func TestVerifyReadsDense(t *testing.T) {
	in := small(t)
	dir := write(t, in)
	if _, err := Dense(context.Background(), dir, Safetensors, in.Input); err != nil {
		t.Fatal(err)
	}
	if err := Verify(context.Background(), dir, in.Input); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, Safetensors.FileName())
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file[len(file)-1] ^= 1
	if err := os.WriteFile(path, file, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Verify(context.Background(), dir, in.Input); !errors.Is(err, ErrMismatch) {
		t.Errorf("a damaged dense file: %v", err)
	}
}

func FuzzConfig(f *testing.F) {
	data, err := os.ReadFile("testdata/config.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"quantization_config":{"config_groups":{"a":{"weights":{}}}}}`))
	f.Add([]byte(`{"quantization_config":{"quant_method":"gptq","bits":4,"group_size":32,"desc_act":true,"dynamic":{"-:a":{},"b.*":{"bits":8}}}}`))
	f.Add([]byte(`{"quantization_config":{"quant_method":"compressed-tensors","format":"int-quantized","config_groups":{"a":{"targets":["re:.*q_proj","Linear"],"weights":{"num_bits":8,"type":"int","strategy":"block","block_structure":[2,2]}}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, beside := range [][]byte{nil, data} {
			config, err := parseConfig(data, beside)
			if err != nil {
				continue
			}
			if config.gptq != nil {
				s, err := config.gptq.schemeOf("b.0")
				if err == nil {
					err = s.check()
				}
				if err != nil && !errors.Is(err, ErrCorrupt) {
					t.Error(err)
				}
			}
			for _, g := range config.groups {
				err := g.scheme.check()
				if g.affine != nil {
					err = g.affine.check()
				}
				if err != nil {
					t.Errorf("%s: %v", g.name, err)
				}
			}
			_, _ = config.groupFor("a.b", 2) // patterns may be no regular expressions
		}
	})
}
