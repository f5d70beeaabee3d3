package dataset

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func cifarRows(n int) []byte {
	b := make([]byte, n*cifarRow)
	for i := range n {
		row := b[i*cifarRow:][:cifarRow]
		row[0] = byte(i % 10)
		for j := range row[1:] {
			row[1+j] = byte(i*7 + j)
		}
	}
	return b
}

func idx(shape []int, content []byte) []byte {
	b := []byte{0, 0, 8, byte(len(shape))}
	for _, n := range shape {
		b = binary.BigEndian.AppendUint32(b, uint32(n))
	}
	return append(b, content...)
}

func zipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func write(t testing.TB, dir, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// safetensorsFile holds n images of 2×3×4 and labels 0, 1, 2, …
func safetensorsFile(n int, labelType string) []byte {
	const per = 2 * 3 * 4
	width := map[string]int{"I64": 8, "U8": 1}[labelType]
	header := fmt.Sprintf(`{"images":{"dtype":"U8","shape":[%d,2,3,4],"data_offsets":[0,%d]},"labels":{"dtype":%q,"shape":[%d],"data_offsets":[%d,%d]}}`,
		n, n*per, labelType, n, n*per, n*(per+width))
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	b = append(b, header...)
	for i := range n * per {
		b = append(b, byte(i))
	}
	for i := range n {
		b = append(b, byte(i))
		b = append(b, make([]byte, width-1)...)
	}
	return b
}

func open(t testing.TB, o Options) *Images {
	t.Helper()
	d, err := OpenImages(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestCIFAR10(t *testing.T) {
	path := write(t, t.TempDir(), "batch.bin", cifarRows(12))
	mean, std := []float32{.1, .2, .3}, []float32{.5, .25, 2}
	d := open(t, Options{Path: path, Format: CIFAR10, Subset: [2]int{2, 12}, Samples: 4, Normalize: Normalize{mean, std}})
	if d.N != 4 || d.Of != 12 || !slices.Equal(d.Shape, []int{3, 32, 32}) || !slices.Equal(d.Labels(), []int{2, 3, 4, 5}) {
		t.Errorf("got %d of %d, shape %v, labels %v", d.N, d.Of, d.Shape, d.Labels())
	}
	got := make([]float32, 2*cifarPixels)
	if err := d.Read(got, 1, 2); err != nil {
		t.Fatal(err)
	}
	for i, v := range got {
		sample, j := 3+i/cifarPixels, i%cifarPixels
		want := (float32(byte(sample*7+j))/255 - mean[j/1024]) / std[j/1024]
		if v != want {
			t.Fatalf("number %d of sample %d is %v, want %v", j, sample, v, want)
		}
	}
}

func TestIDXRawAndGzip(t *testing.T) {
	pixels := make([]byte, 5*3*4)
	for i := range pixels {
		pixels[i] = byte(i * 4)
	}
	images, labels := idx([]int{5, 3, 4}, pixels), idx([]int{5}, []byte{9, 8, 7, 6, 5})
	dir := t.TempDir()
	raw := write(t, dir, "raw-images-idx3-ubyte", images)
	write(t, dir, "raw-labels-idx1-ubyte", labels)
	packed := write(t, dir, "packed-images-idx3-ubyte.gz", zipped(t, images))
	write(t, dir, "packed-labels-idx1-ubyte", labels) // one packed, one not
	other := write(t, dir, "y", zipped(t, labels))

	var sums []string
	for _, o := range []Options{{Path: raw}, {Path: packed}, {Path: raw, Labels: other}} {
		o.Format, o.Subset = IDX, [2]int{1, 4}
		d := open(t, o)
		if d.N != 3 || d.Of != 5 || !slices.Equal(d.Shape, []int{1, 3, 4}) || !slices.Equal(d.Labels(), []int{8, 7, 6}) {
			t.Errorf("got %d of %d, shape %v, labels %v", d.N, d.Of, d.Shape, d.Labels())
		}
		got := make([]float32, 12)
		if err := d.Read(got, 2, 1); err != nil {
			t.Fatal(err)
		}
		for i, v := range got {
			if want := float32(pixels[36+i]) / 255; v != want {
				t.Fatalf("pixel %d is %v, want %v", i, v, want)
			}
		}
		sums = append(sums, d.SHA256())
	}
	if sums[0] != sums[1] || sums[0] != sums[2] {
		t.Error("the same samples have other hashes when they are packed")
	}
}

func TestSafetensors(t *testing.T) {
	for _, labelType := range []string{"I64", "U8"} {
		path := write(t, t.TempDir(), "data.safetensors", safetensorsFile(6, labelType))
		d := open(t, Options{Path: path, Format: Safetensors, Samples: 5})
		if d.N != 5 || d.Of != 6 || !slices.Equal(d.Shape, []int{2, 3, 4}) || !slices.Equal(d.Labels(), []int{0, 1, 2, 3, 4}) {
			t.Errorf("got %d of %d, shape %v, labels %v", d.N, d.Of, d.Shape, d.Labels())
		}
		got := make([]float32, 24)
		if err := d.Read(got, 4, 1); err != nil {
			t.Fatal(err)
		}
		for i, v := range got {
			if want := float32(96+i) / 255; v != want {
				t.Fatalf("number %d is %v, want %v", i, v, want)
			}
		}
	}
}

func TestDraws(t *testing.T) {
	path := write(t, t.TempDir(), "batch.bin", cifarRows(100))
	draw := func(seed int64, samples int, subset [2]int) *Images {
		return open(t, Options{Path: path, Format: CIFAR10, Seed: &seed, Samples: samples, Subset: subset})
	}
	places := func(o Options) []int {
		which, err := choose(100, o)
		if err != nil {
			t.Fatal(err)
		}
		return which
	}
	seed := int64(7)
	all := places(Options{Seed: &seed})
	if sorted := slices.Sorted(slices.Values(all)); slices.Equal(all, sorted) || sorted[0] != 0 || len(slices.Compact(sorted)) != 100 {
		t.Errorf("no permutation: %v", all)
	}
	if few := places(Options{Seed: &seed, Samples: 10}); !slices.Equal(few, all[:10]) {
		t.Errorf("10 samples are %v, want the first of %v", few, all)
	}
	for _, i := range places(Options{Seed: &seed, Subset: [2]int{20, 30}}) {
		if i < 20 || i >= 30 {
			t.Errorf("sample %d is outside of 20…30", i)
		}
	}
	// What a seed draws is part of every record: it must never change.
	if want := []int{19, 88, 9, 86, 90, 79, 44, 54}; !slices.Equal(all[:8], want) {
		t.Errorf("seed 7 draws %v, want %v", all[:8], want)
	}

	a, b := draw(7, 10, [2]int{}), draw(7, 10, [2]int{})
	if a.SHA256() != b.SHA256() || a.SHA256() == draw(8, 10, [2]int{}).SHA256() || a.SHA256() == draw(7, 9, [2]int{}).SHA256() {
		t.Error("hashes do not follow the samples")
	}
	for i, l := range a.Labels() {
		if l != all[i]%10 {
			t.Errorf("label %d is %d, want that of sample %d", i, l, all[i])
		}
		got := make([]float32, cifarPixels)
		if err := a.Read(got, i, 1); err != nil {
			t.Fatal(err)
		}
		if want := float32(byte(all[i]*7)) / 255; got[0] != want {
			t.Errorf("sample %d begins with %v, want %v", i, got[0], want)
		}
	}
	before := a.SHA256()
	if err := a.SetNormalize(Normalize{[]float32{0, 0, 0}, []float32{1, 1, 1}}); err != nil || a.SHA256() == before {
		t.Errorf("the normalization is not in the hash (%v)", err)
	}
}

// Each pair of places must be drawn about as often as any other.
func TestDrawsAreUniform(t *testing.T) {
	const n, trials = 5, 20_000
	counts := make(map[[2]int]int)
	for seed := range int64(trials) {
		all := []int{0, 1, 2, 3, 4}
		shuffle(all, 2, seed)
		counts[[2]int{all[0], all[1]}]++
	}
	for pair, c := range counts {
		if c < 880 || c > 1120 { // 1,000 ± 4 deviations
			t.Errorf("%v was drawn %d times of %d", pair, c, trials)
		}
	}
	if len(counts) != n*(n-1) {
		t.Errorf("%d pairs were drawn, want %d", len(counts), n*(n-1))
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	pixels := make([]byte, 2*3*4)
	cifar := write(t, dir, "cifar.bin", cifarRows(3))
	images := write(t, dir, "images", idx([]int{2, 3, 4}, pixels))
	labels := write(t, dir, "labels", idx([]int{2}, []byte{1, 2}))
	bad := cifarRows(3)
	bad[cifarRow] = 10
	packed := zipped(t, idx([]int{2, 3, 4}, pixels))
	st := safetensorsFile(3, "I64")
	negative := slices.Clone(st)
	negative[len(negative)-1] = 0xff
	seed := int64(1)

	for name, o := range map[string]Options{
		"no format":               {Path: cifar},
		"unknown format":          {Path: cifar, Format: "png"},
		"no file":                 {Path: filepath.Join(dir, "none"), Format: CIFAR10},
		"a folder":                {Path: dir, Format: CIFAR10},
		"cifar10: empty":          {Path: write(t, dir, "empty", nil), Format: CIFAR10},
		"cifar10: cut short":      {Path: write(t, dir, "short", cifarRows(1)[1:]), Format: CIFAR10},
		"cifar10: label":          {Path: write(t, dir, "label", bad), Format: CIFAR10},
		"subset beyond":           {Path: cifar, Format: CIFAR10, Subset: [2]int{0, 4}},
		"subset backwards":        {Path: cifar, Format: CIFAR10, Subset: [2]int{2, 1}},
		"subset empty":            {Path: cifar, Format: CIFAR10, Subset: [2]int{2, 2}},
		"subset negative":         {Path: cifar, Format: CIFAR10, Subset: [2]int{-1, 2}},
		"samples beyond":          {Path: cifar, Format: CIFAR10, Samples: 4},
		"samples beyond subset":   {Path: cifar, Format: CIFAR10, Subset: [2]int{1, 3}, Samples: 3, Seed: &seed},
		"samples negative":        {Path: cifar, Format: CIFAR10, Samples: -1},
		"one mean":                {Path: cifar, Format: CIFAR10, Normalize: Normalize{[]float32{1}, []float32{1}}},
		"means only":              {Path: cifar, Format: CIFAR10, Normalize: Normalize{Mean: []float32{1, 1, 1}}},
		"std of 0":                {Path: cifar, Format: CIFAR10, Normalize: Normalize{[]float32{1, 1, 1}, []float32{1, 0, 1}}},
		"idx: cifar":              {Path: cifar, Format: IDX, Labels: labels},
		"idx: exchanged":          {Path: labels, Format: IDX, Labels: images},
		"idx: no labels named":    {Path: write(t, dir, "x", idx([]int{2, 3, 4}, pixels)), Format: IDX},
		"idx: no labels found":    {Path: write(t, dir, "a-images-idx3", idx([]int{2, 3, 4}, pixels)), Format: IDX},
		"idx: labels missing":     {Path: images, Format: IDX, Labels: filepath.Join(dir, "none")},
		"idx: other count":        {Path: images, Format: IDX, Labels: write(t, dir, "l3", idx([]int{3}, []byte{1, 2, 3}))},
		"idx: cut short":          {Path: write(t, dir, "i", idx([]int{2, 3, 4}, pixels[1:])), Format: IDX, Labels: labels},
		"idx: too long":           {Path: write(t, dir, "j", idx([]int{2, 3, 4}, append(pixels, 0))), Format: IDX, Labels: labels},
		"idx: no samples":         {Path: write(t, dir, "k", idx([]int{0, 3, 4}, nil)), Format: IDX, Labels: labels},
		"idx: huge":               {Path: write(t, dir, "h", idx([]int{1<<32 - 1, 1<<32 - 1, 1<<32 - 1}, pixels)), Format: IDX, Labels: labels},
		"idx: header only":        {Path: write(t, dir, "m", idx([]int{2, 3, 4}, nil)[:9]), Format: IDX, Labels: labels},
		"idx: gzip cut short":     {Path: write(t, dir, "n.gz", packed[:len(packed)-5]), Format: IDX, Labels: labels},
		"safetensors: not":        {Path: cifar, Format: Safetensors},
		"safetensors: other type": {Path: write(t, dir, "s1", bytes.Replace(st, []byte(`"U8","shape":[3,2`), []byte(`"I8","shape":[3,2`), 1)), Format: Safetensors},
		"safetensors: no labels":  {Path: write(t, dir, "s2", bytes.Replace(st, []byte(`"labels"`), []byte(`"labelz"`), 1)), Format: Safetensors},
		"safetensors: axes":       {Path: write(t, dir, "s3", bytes.Replace(st, []byte(`[3,2,3,4]`), []byte(`[3,24,01]`), 1)), Format: Safetensors},
		"safetensors: label < 0":  {Path: write(t, dir, "s4", negative), Format: Safetensors},
		"safetensors: none":       {Path: write(t, dir, "s5", safetensorsFile(0, "U8")), Format: Safetensors},
	} {
		d, err := OpenImages(context.Background(), o)
		e, ok := errors.AsType[*Error](err)
		if !ok || d != nil || e.Path == "" || !strings.Contains(err.Error(), e.Problem) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := OpenImages(context.Background(), Options{Path: filepath.Join(dir, "none"), Format: CIFAR10}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file gives %v", err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := OpenImages(cancelled, Options{Path: cifar, Format: CIFAR10}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context gives %v", err)
	}
}

func TestReadErrors(t *testing.T) {
	d := open(t, Options{Path: write(t, t.TempDir(), "c", cifarRows(3)), Format: CIFAR10})
	dst := make([]float32, 3*cifarPixels)
	for _, c := range [][2]int{{-1, 1}, {0, 4}, {3, 1}, {4, 0}, {0, -1}} {
		if _, ok := errors.AsType[*Error](d.Read(dst, c[0], c[1])); !ok {
			t.Errorf("%v: no error", c)
		}
	}
	if err := d.Read(dst[1:], 0, 3); err == nil {
		t.Error("a short buffer gives no error")
	}
	if err := d.Read(nil, 3, 0); err != nil {
		t.Error(err)
	}
}

func memory(b []byte) *source {
	s := &source{path: "memory", size: int64(len(b)), open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
	return s
}

// fuzzed draws all samples of a file that was accepted and holds it against
// the bytes that it must have had.
func fuzzed(t *testing.T, f *file, err error) *Images {
	if err != nil {
		if _, ok := errors.AsType[*Error](err); !ok {
			t.Fatalf("untyped error %v", err)
		}
		return nil
	}
	d, err := draw(context.Background(), f, Options{Path: "memory"})
	if err != nil {
		if _, ok := errors.AsType[*Error](err); !ok {
			t.Fatalf("untyped error %v", err)
		}
		return nil
	}
	if len(d.labels) != d.N || len(d.pixels) != d.N*d.Shape[0]*d.Shape[1]*d.Shape[2] {
		t.Fatalf("%d labels and %d pixels for %d samples of %v", len(d.labels), len(d.pixels), d.N, d.Shape)
	}
	return d
}

func FuzzCIFAR10(f *testing.F) {
	f.Add(cifarRows(2))
	f.Add(cifarRows(1)[:100])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		parsed, err := parseCIFAR10(memory(b))
		if d := fuzzed(t, parsed, err); d != nil && d.N*cifarRow != len(b) {
			t.Fatalf("%d samples of %d bytes", d.N, len(b))
		}
	})
}

func FuzzIDX(f *testing.F) {
	f.Add(idx([]int{2, 2, 2}, make([]byte, 8)), idx([]int{2}, []byte{1, 2}))
	f.Add(zipped(f, idx([]int{2, 2, 2}, make([]byte, 8))), zipped(f, idx([]int{2}, []byte{1, 2})))
	f.Add(idx([]int{1 << 31, 1 << 31, 1 << 31}, nil), idx([]int{1 << 31}, nil))
	f.Fuzz(func(t *testing.T, images, labels []byte) {
		sources := make([]*source, 2)
		for i, b := range [][]byte{images, labels} {
			sources[i] = memory(b)
			if isGzip(b) {
				var err error
				if sources[i], err = sources[i].unpacked(context.Background()); err != nil {
					return
				}
			}
		}
		parsed, err := parseIDX(sources[0], sources[1])
		if d := fuzzed(t, parsed, err); d != nil && (int64(len(d.pixels))+16 != sources[0].size || int64(d.N)+8 != sources[1].size) {
			t.Fatalf("%d samples of %d and %d bytes", d.N, sources[0].size, sources[1].size)
		}
	})
}

func TestFeatures(t *testing.T) {
	write := func(descr, shape string, raw []byte) string {
		header := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': %s, }\n", descr, shape)
		b := append([]byte(npyMagic+"\x01\x00"), byte(len(header)), byte(len(header)>>8))
		path := filepath.Join(t.TempDir(), "x.npy")
		if err := os.WriteFile(path, append(append(b, header...), raw...), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var raw []byte
	for i := range 12 {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(float32(i)-2.5))
	}
	seed := int64(3)
	d, err := OpenImages(t.Context(), Options{Path: write("<f4", "(3, 2, 2)", raw), Format: NPY, Samples: 2, Seed: &seed, Normalize: Normalize{Mean: []float32{1}, Std: []float32{2}}})
	if err != nil {
		t.Fatal(err)
	}
	if d.N != 2 || d.Of != 3 || !slices.Equal(d.Shape, []int{2, 2}) || d.Labels() != nil {
		t.Errorf("got %+v", d)
	}
	got := make([]float32, 4)
	for s := range 2 {
		if err := d.Read(got, s, 1); err != nil {
			t.Fatal(err)
		}
		if first := got[0] + 2.5; int(first)%4 != 0 || !slices.Equal(got, []float32{first - 2.5, first - 1.5, first - .5, first + .5}) {
			t.Errorf("sample %d is %v", s, got)
		}
	}
	if err := d.Read(got, 1, 2); err == nil {
		t.Error("sample 2 of 2: no error")
	}
	for what, path := range map[string]string{
		"integers": write("<i4", "(3, 4)", raw), "one axis": write("<f4", "(12,)", raw), "too short": write("<f4", "(4, 4)", raw),
		"five axes": write("<f4", "(3, 2, 1, 1, 2)", raw), "no array": "dataset_test.go", "no file": "none.npy",
	} {
		if _, err := OpenImages(t.Context(), Options{Path: path, Format: NPY}); err == nil {
			t.Errorf("%s: no error", what)
		} else if _, ok := errors.AsType[*Error](err); !ok {
			t.Errorf("%s: %v", what, err)
		}
	}
}
