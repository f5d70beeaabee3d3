package export

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"weak"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/record"
)

// randomModel is a model of a few layers with random shapes, dtypes and grids,
// some of them transposed.
func randomModel(t *testing.T, rng *rand.Rand) solvedInput {
	t.Helper()
	types := []dtype.DType{dtype.F32, dtype.F16, dtype.BF16, dtype.F64}
	var tensors []tensor
	n := 1 + rng.IntN(6)
	for i := range n {
		shape := []int{1 + rng.IntN(40), randomCols(rng)}
		tensors = append(tensors,
			floats(rng, fmt.Sprintf("layer%d.weight", i), types[rng.IntN(4)], shape...),
			floats(rng, fmt.Sprintf("layer%d.bias", i), types[rng.IntN(4)], rng.IntN(20)))
	}
	ckpt, solutions := checkpoint(t, tensors, map[string]string{"origin": "test"}), map[string]*layer.Solution{}
	for i := range n {
		name := fmt.Sprintf("layer%d.weight", i)
		shape := lookup(t, ckpt, name).Shape
		switch rng.IntN(4) {
		case 0: // kept
		case 1:
			solutions[name] = rounded(name, read(t, ckpt, name), shape[1], randomGrid(rng, shape[0]))
			solutions[name].Transposed = true
		default:
			solutions[name] = solve(t, ckpt, name, randomGrid(rng, shape[1]))
		}
	}
	return inputOf(ckpt, solutions)
}

// contents reads all tensors and the metadata of a checkpoint.
func contents(t *testing.T, path string) (map[string]tensor, map[string]string) {
	t.Helper()
	ckpt := open(t, path)
	all := map[string]tensor{}
	for _, x := range ckpt.Tensors() {
		raw := make([]byte, x.Bytes())
		if err := ckpt.ReadBytes(x.Name, raw); err != nil {
			t.Fatal(err)
		}
		all[x.Name] = tensor{x.Name, x.DType, slices.Clone(x.Shape), raw}
	}
	return all, ckpt.Metadata()
}

// readIndex reads an index strictly: it has these fields and no others.
func readIndex(t *testing.T, path string) (total int64, weightMap map[string]string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var index struct {
		Metadata struct {
			TotalSize *int64 `json:"total_size"`
		} `json:"metadata"`
		WeightMap map[string]string `json:"weight_map"`
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&index); err != nil || index.Metadata.TotalSize == nil {
		t.Fatalf("index %s: %v", data, err)
	}
	return *index.Metadata.TotalSize, index.WeightMap
}

// checkShards holds the files of one output against what shards are to be.
func checkShards(t *testing.T, dir, stem, role string, size int64, files []record.File, in Input) {
	t.Helper()
	weights := slices.DeleteFunc(slices.Clone(files), func(f record.File) bool { return f.Role != role })
	index := stem + ".safetensors.index.json"
	if len(weights) == 1 {
		if weights[0].Name != stem+".safetensors" {
			t.Errorf("one file named %s", weights[0].Name)
		}
		if _, err := os.Stat(filepath.Join(dir, index)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("an index of one file: %v", err)
		}
		return
	}
	if last := files[len(files)-1]; last.Name != index || last.Role != "config" {
		t.Errorf("the last file is %+v", last)
	}
	total, weightMap := readIndex(t, filepath.Join(dir, index))
	var sum int64
	homes := map[string]string{}
	for i, f := range weights {
		if want := fmt.Sprintf("%s-%05d-of-%05d.safetensors", stem, i+1, len(weights)); f.Name != want {
			t.Errorf("shard %s, want %s", f.Name, want)
		}
		var data int64
		sources := map[string]bool{} // tensors of the checkpoint that are here
		all, metadata := contents(t, filepath.Join(dir, f.Name))
		for name, x := range all {
			data += int64(len(x.raw))
			homes[name] = f.Name
			for _, suffix := range []string{packedSuffix, globalSuffix, scaleSuffix, shapeSuffix, zeroSuffix} {
				name = strings.TrimSuffix(name, suffix)
			}
			sources[name] = true
		}
		if metadata["format"] != "pt" || metadata["origin"] != "test" {
			t.Errorf("%s has metadata %v", f.Name, metadata)
		}
		if data > size && len(sources) > 1 {
			t.Errorf("%s has %d bytes of %d tensors, more than %d", f.Name, data, len(sources), size)
		}
		sum += data
	}
	if diff := cmp.Diff(homes, weightMap); diff != "" || sum != total {
		t.Errorf("total_size %d, want %d; weight_map (-want +got):\n%s", total, sum, diff)
	}
	for name, spec := range in.Specs {
		for _, suffix := range []string{scaleSuffix, shapeSuffix, zeroSuffix, globalSuffix} {
			if home, ok := homes[name+suffix]; role == "weights" && ok && home != homes[spec.codesName()] {
				t.Errorf("%s is in %s, %s in %s", name+suffix, home, spec.codesName(), homes[spec.codesName()])
			}
		}
	}
}

// Shards hold what one file holds, tensor by tensor, for any shard size; sizes
// foretold are sizes written; what was written verifies.
func TestShardsProperty(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	ctx, most := context.Background(), 0
	for range 25 {
		in := randomModel(t, rng)
		whole := write(t, in)
		if _, err := Dense(ctx, whole, Safetensors, in.Input); err != nil {
			t.Fatal(err)
		}
		size := []int64{1, 200, 1000, 5000}[rng.IntN(4)]
		in.ShardSize = size
		foretold, err := CompressedTensorsSize(in.Input)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		files, err := CompressedTensors(ctx, dir, in.Input)
		if err != nil {
			t.Fatal(err)
		}
		dense, err := Dense(ctx, dir, Safetensors, in.Input)
		if err != nil {
			t.Fatal(err)
		}
		checkShards(t, dir, "model", "weights", size, files, in.Input)
		checkShards(t, dir, "dense", "dense", size, dense, in.Input)
		if err := Verify(ctx, dir, in.Input); err != nil {
			t.Fatal(err)
		}
		var written int64
		for _, f := range files {
			if f.Role == "weights" {
				written += f.Bytes
			}
		}
		m, err := Open(ctx, dir)
		if err != nil {
			t.Fatal(err)
		}
		if m.Size() != written || foretold != written {
			t.Errorf("foretold %d bytes, wrote %d, opened %d", foretold, written, m.Size())
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		for _, stem := range []string{"model", "dense"} {
			want, wantMeta := contents(t, filepath.Join(whole, stem+fileSuffix))
			entry := filepath.Join(dir, stem+indexSuffix)
			if _, err := os.Stat(entry); err != nil {
				entry = filepath.Join(dir, stem+fileSuffix)
			}
			got, gotMeta := contents(t, entry)
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(tensor{})) + cmp.Diff(wantMeta, gotMeta); diff != "" {
				t.Errorf("%s in shards of %d (-want +got):\n%s", stem, size, diff)
			}
		}
		most = max(most, len(files))
	}
	if most < 8 {
		t.Errorf("at most %d files: the shards were too large to test anything", most)
	}
}

func TestDivide(t *testing.T) {
	group := func(sizes ...int) (list []safetensors.Source) {
		for _, n := range sizes {
			list = append(list, safetensors.Source{DType: dtype.I8, Shape: []int{n}})
		}
		return list
	}
	for _, c := range []struct {
		groups [][]safetensors.Source
		want   []int64 // bytes of each shard
	}{
		{nil, []int64{0}},
		{[][]safetensors.Source{group(10)}, []int64{10}},
		{[][]safetensors.Source{group(4), group(6)}, []int64{10}},
		{[][]safetensors.Source{group(4), group(3, 4)}, []int64{4, 7}},
		{[][]safetensors.Source{group(11), group(0), group(1)}, []int64{11, 1}}, // larger than a shard
		{[][]safetensors.Source{group(1), group(6, 6), group(10), group(0)}, []int64{1, 12, 10}},
	} {
		var got []int64
		for _, shard := range divide("x", nil, c.groups, 10).shards {
			got = append(got, dataBytes(shard))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("got %v, want %v", got, c.want)
		}
	}
}

// Each weight's solution is asked for once per file set where the order of its
// tensors allows it, and no other is held at that time.
func TestSolutionsOneAtATime(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	var tensors []tensor
	for i := range 8 {
		tensors = append(tensors, floats(rng, fmt.Sprintf("l%d.weight", i), dtype.F32, 16, 16))
	}
	ckpt, solutions := checkpoint(t, tensors, nil), map[string]*layer.Solution{}
	for i, x := range tensors {
		g := channel(4, false)
		if i%2 == 1 {
			g.ScaleType = dtype.F16 // stands behind all tensors of 4 bytes
		}
		solutions[x.name] = solve(t, ckpt, x.name, g)
	}
	in := inputOf(ckpt, solutions)
	var handed []weak.Pointer[layer.Solution]
	in.Solution = func(name string) (*layer.Solution, error) {
		in.fetched[name]++
		runtime.GC()
		for _, p := range handed {
			if p.Value() != nil {
				t.Errorf("%s is still held when %s is asked for", p.Value().Layer, name)
			}
		}
		s := *solutions[name]
		handed = append(handed, weak.Make(&s))
		return &s, nil
	}
	for _, size := range []int64{0, 700} {
		in.ShardSize = size
		dir := t.TempDir()
		for what, do := range map[string]func() error{
			"write": func() error { _, err := CompressedTensors(context.Background(), dir, in.Input); return err },
			"dense": func() error { _, err := Dense(context.Background(), t.TempDir(), Safetensors, in.Input); return err },
		} {
			checkFetches(t, in, what, do)
		}
		checkFetches(t, in, "verify", func() error { return Verify(context.Background(), dir, in.Input) })
		checkFetches(t, in, "size", func() error { _, err := CompressedTensorsSize(in.Input); return err })
	}
}

func checkFetches(t *testing.T, in solvedInput, what string, do func() error) {
	t.Helper()
	clear(in.fetched)
	if err := do(); err != nil {
		t.Fatal(err)
	}
	for name, s := range in.solutions {
		want := 1
		switch {
		case what == "size":
			want = 0
		case what == "write" && s.Grid.ScaleType.Size() < 4:
			want = 2 // the codes, and later the scales
		}
		if got := in.fetched[name]; got > want || got == 0 && want > 0 {
			t.Errorf("%s asked %d times for %s, want %d", what, got, name, want)
		}
	}
}

// A failure at any file leaves no file behind.
func TestShardsFail(t *testing.T) {
	ctx := context.Background()
	in := small(t)
	in.ShardSize = 100
	names := func(dir string) (all []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, e.Name())
		}
		return all
	}
	for _, blocked := range []string{ConfigName, IndexName, "dense.safetensors.index.json"} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, blocked, "x"), 0o755); err != nil {
			t.Fatal(err)
		}
		write := func() error { _, err := CompressedTensors(ctx, dir, in.Input); return err }
		if strings.HasPrefix(blocked, "dense") {
			write = func() error { _, err := Dense(ctx, dir, Safetensors, in.Input); return err }
		}
		if err := write(); err == nil {
			t.Errorf("wrote %s over a folder", blocked)
		}
		if left := names(dir); !slices.Equal(left, []string{blocked}) {
			t.Errorf("%s: left behind %v", blocked, left)
		}
	}
	solution := in.Solution
	for fails := range 3 {
		calls := 0
		in.Solution = func(name string) (*layer.Solution, error) {
			if calls++; calls > fails {
				return nil, io.ErrUnexpectedEOF
			}
			return solution(name)
		}
		dir := t.TempDir()
		if _, err := CompressedTensors(ctx, dir, in.Input); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("solution %d: %v", fails, err)
		}
		calls = 0
		if _, err := Dense(ctx, dir, Safetensors, in.Input); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("dense solution %d: %v", fails, err)
		}
		if left := names(dir); len(left) > 0 {
			t.Errorf("solution %d: left behind %v", fails, left)
		}
	}
	in.ShardSize = -1
	if _, err := CompressedTensorsSize(in.Input); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a negative shard size: %v", err)
	}
}

// Verify finds what is wrong with shards and their index.
func TestVerifyShards(t *testing.T) {
	edit := func(name, before, after string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			path := filepath.Join(dir, name)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.Replace(string(data), before, after, 1)
			if changed == string(data) {
				t.Fatalf("no %q in %s", before, name)
			}
			if err := os.WriteFile(path, []byte(changed), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	var format *loader.FormatError
	for name, c := range map[string]struct {
		damage func(t *testing.T, dir string)
		want   error // nil for a *loader.FormatError
	}{
		"total":          {edit(IndexName, `"total_size": `, `"total_size": 1`), ErrMismatch},
		"dense total":    {edit("dense.safetensors.index.json", `"total_size": `, `"total_size": 1`), ErrMismatch},
		"one more field": {edit(IndexName, `"total_size": `, `"x": 1, "total_size": `), ErrMismatch},
		"other shard":    {edit(IndexName, `model-00002-of`, `model-00001-of`), nil},
		"missing shard": {func(t *testing.T, dir string) {
			matches, err := filepath.Glob(filepath.Join(dir, "model-00002-of-*"))
			if err != nil || len(matches) != 1 {
				t.Fatal(matches, err)
			}
			if err := os.Remove(matches[0]); err != nil {
				t.Fatal(err)
			}
		}, nil},
		"a single file beside": {func(t *testing.T, dir string) {
			whole, err := os.ReadFile(filepath.Join(write(t, small(t)), ModelName))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, ModelName), whole, 0o644); err != nil {
				t.Fatal(err)
			}
		}, ErrMismatch},
		"no index": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, IndexName)); err != nil {
				t.Fatal(err)
			}
		}, os.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			in := small(t)
			in.ShardSize = 100
			dir := write(t, in)
			if _, err := Dense(context.Background(), dir, Safetensors, in.Input); err != nil {
				t.Fatal(err)
			}
			if err := Verify(context.Background(), dir, in.Input); err != nil {
				t.Fatal(err)
			}
			c.damage(t, dir)
			err := Verify(context.Background(), dir, in.Input)
			if c.want == nil && !errors.As(err, &format) || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}
