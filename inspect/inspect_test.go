package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
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
	"github.com/fettle-dev/fettle/loader"
)

type tensor struct {
	name   string
	dtype  dtype.DType
	shape  []int
	values []float32
}

// checkpoint writes a safetensors file.
func checkpoint(t *testing.T, tensors ...tensor) string {
	t.Helper()
	var b bytes.Buffer
	var sources []safetensors.Source
	for _, s := range tensors {
		raw := make([]byte, len(s.values)*s.dtype.Size())
		if s.dtype.IsFloat() {
			if err := s.dtype.FromFloat32(raw, s.values); err != nil {
				t.Fatal(err)
			}
		}
		sources = append(sources, safetensors.Source{Name: s.name, DType: s.dtype, Shape: s.shape, Write: func(w io.Writer) error {
			_, err := w.Write(raw)
			return err
		}})
	}
	if err := safetensors.Write(&b, sources, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "m.safetensors")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func zeros(n int) []float32 { return make([]float32, n) }

func small(t *testing.T) string {
	return checkpoint(t,
		tensor{"h.0.b.weight", dtype.F32, []int{2, 3}, zeros(6)},
		tensor{"h.10.b.weight", dtype.F16, []int{2}, zeros(2)},
		tensor{"h.0.a.weight", dtype.F32, []int{5}, zeros(5)},
		tensor{"v2.1x", dtype.I64, nil, zeros(1)},
	)
}

func mustInspect(t *testing.T, path string, o Options) *Report {
	t.Helper()
	r, err := Checkpoint(context.Background(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTotals(t *testing.T) {
	r := mustInspect(t, small(t), Options{})
	if want := (Total{Tensors: 4, Elements: 14, Bytes: 56, Share: 1}); r.All != want || r.Listed != want {
		t.Errorf("all %+v, listed %+v", r.All, r.Listed)
	}
	groups := []Total{
		{Name: "h.*.b", Tensors: 2, Elements: 8, Bytes: 28, Share: .5},
		{Name: "h.*.a", Tensors: 1, Elements: 5, Bytes: 20, Share: 20. / 56},
		{Name: "v2", Tensors: 1, Elements: 1, Bytes: 8, Share: 8. / 56},
	}
	if diff := cmp.Diff(groups, r.Groups); diff != "" {
		t.Error(diff)
	}
	types := []Total{
		{Name: "F32", Tensors: 2, Elements: 11, Bytes: 44, Share: 44. / 56},
		{Name: "I64", Tensors: 1, Elements: 1, Bytes: 8, Share: 8. / 56},
		{Name: "F16", Tensors: 1, Elements: 2, Bytes: 4, Share: 4. / 56},
	}
	if diff := cmp.Diff(types, r.DTypes); diff != "" {
		t.Error(diff)
	}
	if r.Architecture != "" || r.Format != "safetensors" || r.Written != nil || len(r.Notes) > 0 {
		t.Errorf("%+v", r)
	}
}

func TestSortAndFilter(t *testing.T) {
	path := small(t)
	for _, c := range []struct {
		o    Options
		want []string
	}{
		{Options{Sort: ByName}, []string{"h.0.a.weight", "h.0.b.weight", "h.10.b.weight", "v2.1x"}},
		{Options{Sort: BySize}, []string{"h.0.b.weight", "h.0.a.weight", "v2.1x", "h.10.b.weight"}},
		{Options{Sort: ByDType}, []string{"h.10.b.weight", "h.0.b.weight", "h.0.a.weight", "v2.1x"}},
		{Options{Filter: "h.*.b.*", Sort: ByName}, []string{"h.0.b.weight", "h.10.b.weight"}},
		{Options{Filter: "v2.1x"}, []string{"v2.1x"}},
	} {
		r := mustInspect(t, path, c.o)
		var names []string
		for _, entry := range r.Tensors {
			names = append(names, entry.Name)
		}
		if diff := cmp.Diff(c.want, names); diff != "" {
			t.Errorf("%+v: %s", c.o, diff)
		}
		if r.All.Tensors != 4 || r.Listed.Tensors != len(c.want) {
			t.Errorf("%+v: all %+v, listed %+v", c.o, r.All, r.Listed)
		}
	}
	for _, o := range []Options{{Sort: "x"}, {Filter: "["}, {Filter: "nothing"}} {
		_, err := Checkpoint(context.Background(), path, o)
		var bad *OptionError
		if !errors.As(err, &bad) {
			t.Errorf("%+v: error %v", o, err)
		}
	}
	var bad *loader.FormatError
	if _, err := Checkpoint(context.Background(), t.TempDir(), Options{}); !errors.As(err, &bad) {
		t.Errorf("empty folder: %v", err)
	}
}

// TestStats holds the moments against sums over all values in two passes.
func TestStats(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	draw := func(n int, mean, std float64) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(mean + std*random.NormFloat64())
		}
		return v
	}
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	for name, values := range map[string][]float32{
		"one":        {-3},
		"two":        {1, 5},
		"constant":   slices.Repeat([]float32{7}, 10_000),
		"normal":     draw(300_000, 0, 1),
		"far":        draw(100_000, 1000, .01),
		"tiny":       draw(10_000, 0, 1e-30),
		"huge":       draw(10_000, 0, 1e37),
		"outlier":    append(draw(9_999, 0, 1), 500),
		"zeros":      append(zeros(5_000), draw(5_000, 2, 1)...),
		"not finite": append(draw(20_000, 3, 1), nan, inf, -inf, nan, nan),
		"none":       {nan, -inf},
		"empty":      {},
	} {
		path := checkpoint(t, tensor{"t", dtype.F32, []int{len(values)}, values}, tensor{"i", dtype.I8, []int{3}, zeros(3)})
		r := mustInspect(t, path, Options{Stats: true})
		by := map[string]*Stats{}
		for _, entry := range r.Tensors {
			by[entry.Name] = entry.Stats
		}
		if by["i"] != nil || by["t"] == nil {
			t.Fatalf("%s: statistics of %v", name, by)
		}
		got, want := *by["t"], slow(values)
		if got.Finite != want.Finite || got.NaN != want.NaN || got.Inf != want.Inf || got.Min != want.Min || got.Max != want.Max || got.Zeros != want.Zeros {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
		for _, pair := range [][2]float64{{got.Mean, want.Mean}, {got.Std, want.Std}, {got.Kurtosis, want.Kurtosis}, {got.Peak, want.Peak}} {
			if math.Abs(pair[0]-pair[1]) > 1e-9*math.Abs(pair[1])+1e-12*math.Abs(want.Std) {
				t.Errorf("%s: %+v, want %+v", name, got, want)
			}
		}
	}
}

func slow(values []float32) (s Stats) {
	var finite []float64
	for _, v := range values {
		switch w := float64(v); {
		case math.IsNaN(w):
			s.NaN++
		case math.IsInf(w, 0):
			s.Inf++
		default:
			finite = append(finite, w)
		}
	}
	s.Finite = int64(len(finite))
	n := float64(len(finite))
	if n == 0 {
		return s
	}
	s.Min, s.Max = slices.Min(finite), slices.Max(finite)
	for _, w := range finite {
		s.Mean += w
		if w == 0 {
			s.Zeros++
		}
	}
	s.Mean /= n
	s.Zeros /= n
	var m2, m4 float64
	for _, w := range finite {
		d := w - s.Mean
		m2 += d * d / n
		m4 += d * d * d * d / n
	}
	if s.Std = math.Sqrt(m2); s.Std > 0 {
		s.Kurtosis = m4 / m2 / m2
		s.Peak = max(s.Max-s.Mean, s.Mean-s.Min) / s.Std
	}
	return s
}

// TestSameBytes holds the JSON for several numbers of workers against each other.
func TestSameBytes(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	var tensors []tensor
	for i := range 40 {
		v := make([]float32, random.IntN(20_000))
		for j := range v {
			v[j] = float32(random.NormFloat64())
		}
		tensors = append(tensors, tensor{"layers." + strings.Repeat("1", i+1) + ".w", dtype.BF16, []int{len(v)}, v})
	}
	path := checkpoint(t, tensors...)
	var first []byte
	for _, workers := range []int{1, 2, 7, 0} {
		text, err := json.Marshal(mustInspect(t, path, Options{Stats: true, Workers: workers}))
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = text
		}
		if !bytes.Equal(first, text) {
			t.Errorf("%d workers give other bytes", workers)
		}
	}
}

// TestTied lists both names of one tensor and counts it once.
func TestTied(t *testing.T) {
	const path = "../../shared/data/torture/gen-torch113/tied_zip.pt"
	if _, err := os.Stat(path); err != nil {
		t.Skip("needs ", path)
	}
	r := mustInspect(t, path, Options{Stats: true})
	tied, sum := 0, int64(0)
	for _, entry := range r.Tensors {
		if entry.TiedTo == "" {
			sum += entry.Bytes
			continue
		}
		tied++
		i := slices.IndexFunc(r.Tensors, func(e Tensor) bool { return e.Name == entry.TiedTo })
		if entry.Share != 0 || i < 0 || entry.Stats == nil || *entry.Stats != *r.Tensors[i].Stats {
			t.Errorf("%+v", entry)
		}
	}
	if tied == 0 || sum != r.All.Bytes || r.All.Tensors != len(r.Tensors) {
		t.Errorf("%d tied, %d bytes, all %+v", tied, sum, r.All)
	}
}

func TestArchitecture(t *testing.T) {
	for path, want := range map[string]string{
		"../testmodels/resnet8.th": "cifar-resnet", "../testmodels/lm": "llama", "../testmodels/mlp.safetensors": "",
	} {
		if r := mustInspect(t, path, Options{}); r.Architecture != want || len(r.Notes) > 0 {
			t.Errorf("%s: %q, %v", path, r.Architecture, r.Notes)
		}
	}
	dir := filepath.Dir(small(t))
	if err := os.Rename(filepath.Join(dir, "m.safetensors"), filepath.Join(dir, "model.safetensors")); err != nil {
		t.Fatal(err)
	}
	for config, want := range map[string]string{
		`{"model_type": "mamba"}`: "mamba: fettle cannot run this architecture",
		`{"model_type": 7}`:       ": model: as : config: config.json cannot be read",
		`{}`:                      ":",
	} {
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		r := mustInspect(t, dir, Options{})
		if got := r.Architecture + ": " + strings.Join(r.Notes, "; "); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
	}
}
