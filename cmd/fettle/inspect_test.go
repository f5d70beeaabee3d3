package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/x448/float16"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/inspect"
	"github.com/fettle-dev/fettle/loader"
)

// ggufOf writes a checkpoint as GGUF, weights of whole blocks as Q8_0.
func ggufOf(t *testing.T, from, to string) {
	t.Helper()
	c, err := loader.Open(context.Background(), from)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var head, data []byte
	put := func(values ...any) {
		for _, v := range values {
			if head, err = binary.Append(head, binary.LittleEndian, v); err != nil {
				t.Fatal(err)
			}
		}
	}
	put([]byte("GGUF"), uint32(3), uint64(len(c.Tensors())), uint64(0))
	for _, info := range c.Tensors() {
		values := make([]float32, info.Elements())
		if err := c.ReadFloat32(info.Name, values); err != nil {
			t.Fatal(err)
		}
		data = append(data, make([]byte, -len(data)&31)...)
		put(uint64(len(info.Name)), []byte(info.Name), uint32(len(info.Shape)))
		for _, n := range slices.Backward(info.Shape) {
			put(uint64(n))
		}
		if len(info.Shape) < 2 || info.Shape[1]%32 != 0 {
			put(uint32(0), uint64(len(data)))
			if data, err = binary.Append(data, binary.LittleEndian, values); err != nil {
				t.Fatal(err)
			}
			continue
		}
		put(uint32(8), uint64(len(data)))
		for block := range slices.Chunk(values, 32) {
			most := float32(0)
			for _, v := range block {
				most = max(most, v, -v)
			}
			d := float16.Fromfloat32(most / 127)
			data = binary.LittleEndian.AppendUint16(data, d.Bits())
			for _, v := range block {
				data = append(data, byte(int8(math.Round(float64(v/d.Float32())))))
			}
		}
	}
	head = append(head, make([]byte, -len(head)&31)...)
	if err := os.WriteFile(to, append(head, data...), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCompressGGUF prunes and quantizes a model whose weights are stored in blocks,
// and keeps others: all are as they are in float32.
func TestCompressGGUF(t *testing.T) {
	dir := t.TempDir()
	source, out, recipe := filepath.Join(dir, "mlp.gguf"), filepath.Join(dir, "out"), filepath.Join(dir, "r.yaml")
	ggufOf(t, "../../testmodels/mlp.safetensors", source)
	text := `version: 1
model: {architecture: mlp, input: {shape: [1, 16, 16]}}
rules:
  - {match: fc1, steps: [{prune: {method: magnitude, sparsity: 0.5}}]}
  - {match: fc2, steps: [{quantize: {method: nearest, bits: 4}}]}
`
	if err := os.WriteFile(recipe, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	command := func(args ...string) string {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if code := run(context.Background(), append([]string{"fettle"}, args...), &stdout, &stderr); code != exitOK {
			t.Fatalf("%v: exit code %d\n%s", args, code, stderr.String())
		}
		return stdout.String()
	}
	command("plan", source, "--recipe", recipe)
	command("compress", source, "--recipe", recipe, "--out", out, "--no-cache", "--dense", "pt")
	written, err := export.Open(context.Background(), out)
	if err != nil {
		t.Fatal(err)
	}
	defer written.Close()
	c, err := loader.Open(context.Background(), source)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for name, kept := range map[string]float64{"fc1.weight": .5, "fc3.weight": 1, "fc3.bias": 1} {
		info, _ := c.Lookup(name)
		want, got := make([]float32, info.Elements()), make([]float32, info.Elements())
		if err := c.ReadFloat32(name, want); err != nil {
			t.Fatal(err)
		}
		if err := written.ReadFloat32(name, got); err != nil {
			t.Fatal(err)
		}
		same := 0
		for i := range want {
			if got[i] == want[i] {
				same++
			} else if got[i] != 0 {
				t.Fatalf("%s: value %d is %v, want %v", name, i, got[i], want[i])
			}
		}
		if share := float64(same) / float64(len(want)); math.Abs(share-kept) > .02 { // some of the pruned are 0 anyway
			t.Errorf("%s: %.3f of the values stay, want %.3f", name, share, kept)
		}
	}
	var r inspect.Report
	if err := json.Unmarshal([]byte(command("inspect", source, "--json")), &r); err != nil {
		t.Fatal(err)
	}
	if r.Format != "gguf" || r.Tensors[0].DType != "Q8_0" || r.Tensors[0].Bytes != 48*256/32*34 {
		t.Errorf("%+v", r.Tensors[0])
	}
}
