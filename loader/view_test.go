package loader

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// keepSome returns some of 0 … n−1 in order, at least one; nil for all at times.
func keepSome(r *rand.Rand, n int) []int {
	if r.IntN(3) == 0 {
		return nil
	}
	list := r.Perm(n)[:1+r.IntN(n)]
	slices.Sort(list)
	return list
}

// taken returns the elements of a dense tensor that stay, one by one.
func taken(data []byte, shape []int, keep [][]int) []byte {
	if len(shape) == 0 {
		return data
	}
	var out []byte
	inner := len(data) / shape[0]
	for i := range shape[0] {
		if keep[0] == nil || slices.Contains(keep[0], i) {
			out = append(out, taken(data[i*inner:][:inner], shape[1:], keep[1:])...)
		}
	}
	return out
}

// TestViewCuts holds cuts of random tensors, also strided ones and cuts of cuts,
// against element by element copies.
func TestViewCuts(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		d := []DType{dtype.F64, dtype.F32, dtype.BF16}[r.IntN(3)]
		shape := make([]int, 1+r.IntN(4))
		for i := range shape {
			shape[i] = 1 + r.IntN(7)
		}
		if r.IntN(6) == 0 { // more than a chunk
			shape[r.IntN(len(shape))] += chunk / d.Size() / 3000
		}
		strides := denseStrides(shape)
		if len(shape) > 1 && r.IntN(3) == 0 { // stored with two axes swapped
			stored := slices.Clone(shape)
			stored[0], stored[1] = stored[1], stored[0]
			strides = denseStrides(stored)
			strides[0], strides[1] = strides[1], strides[0]
		}
		elements, _ := product(shape)
		raw := make([]byte, elements*int64(d.Size()))
		for i := range raw {
			raw[i] = byte(r.IntN(100)) // finite in all types
		}
		whole := Tensor{Name: "w", DType: d, Shape: shape, strides: strides, storage: &storage{data: bytes.NewReader(raw), size: int64(len(raw))}}
		c := &Checkpoint{tensors: []Tensor{whole}, index: map[string]int{"w": 0}}
		want := make([]byte, len(raw))
		if err := c.ReadBytes("w", want); err != nil {
			t.Fatal(err)
		}
		at := shape
		for range 1 + r.IntN(2) {
			keep := make([][]int, len(at))
			for i, n := range at {
				keep[i] = keepSome(r, n)
			}
			var err error
			if c, err = c.View([]Part{{Name: "w", Keep: keep}}); err != nil {
				t.Fatal(err)
			}
			want = taken(want, at, keep)
			at = c.Tensors()[0].Shape
		}
		got := make([]byte, c.Tensors()[0].Bytes())
		if err := c.ReadBytes("w", got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%s of shape %v, strides %v, cut to %v differs", d, shape, strides, at)
		}
		values, expected := make([]float32, len(want)/d.Size()), make([]float32, len(want)/d.Size())
		if err := c.ReadFloat32("w", values); err != nil {
			t.Fatal(err)
		}
		if err := d.ToFloat32(expected, want); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(values, expected) {
			t.Fatalf("values of shape %v cut to %v differ", shape, at)
		}
		if len(at) == 2 {
			row := make([]float32, at[1])
			for i := range at[0] {
				if err := c.ReadRowFloat32("w", i, row); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(row, expected[i*at[1]:][:at[1]]) {
					t.Fatalf("row %d of shape %v cut to %v differs", i, shape, at)
				}
			}
		}
	}
}

func viewSource(t *testing.T) *Checkpoint {
	t.Helper()
	pickle := pickled(pDict(
		pStr("a"), pTensor("0", 6, []int{2, 3}, []int{3, 1}),
		pStr("b"), pTensor("0", 6, []int{3, 2}, []int{1, 3}), // a transposed, in the same storage
	))
	return mustOpen(t, torchZip(t, pickle, []float32{1, 2, 3, 4, 5, 6}))
}

func TestViewRenamesAndReplaces(t *testing.T) {
	ctx := context.Background()
	c := viewSource(t)
	v, err := c.View([]Part{
		{Name: "x", From: "b", Keep: [][]int{{0, 2}, nil}},
		{Name: "a", Keep: [][]int{{1}, {0, 1}}, Data: bytes.NewReader(floats(8, 9))},
		{Name: "again", From: "a"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := names(v); !slices.Equal(got, []string{"x", "a", "again"}) {
		t.Fatalf("names %v", got)
	}
	for name, want := range map[string][]float32{"x": {1, 4, 3, 6}, "a": {8, 9}, "again": {1, 2, 3, 4, 5, 6}} {
		if got := mustRead(t, v, name); !slices.Equal(got, want) {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, c, "a"); len(got) != 6 {
		t.Errorf("the source after its view is closed: %v", got)
	}
	if v.Size() != c.Size() || v.Format() != c.Format() || v.Path() != c.Path() {
		t.Error("size, format and path are not the source's")
	}
	if err := v.ReadFloat32("b", make([]float32, 6)); !errors.Is(err, ErrNotFound) {
		t.Errorf("reading what the view leaves out: %v", err)
	}

	// The hash depends on all that the view's content does.
	hashes := map[string]bool{}
	for _, parts := range [][]Part{
		{{Name: "a"}},
		{{Name: "z", From: "a"}},
		{{Name: "a", Keep: [][]int{{0}, nil}}},
		{{Name: "a", Keep: [][]int{nil, {0}}}},
		{{Name: "a", Data: bytes.NewReader(floats(1, 2, 3, 4, 5, 6))}},
		{{Name: "a", Data: bytes.NewReader(floats(1, 2, 3, 4, 5, 7))}},
	} {
		for range 2 { // reading twice gives the same
			v, err := c.View(parts)
			if err != nil {
				t.Fatal(err)
			}
			h, err := v.SHA256(ctx)
			if err != nil {
				t.Fatal(err)
			}
			hashes[h] = true
		}
	}
	if len(hashes) != 6 {
		t.Errorf("%d hashes of 6 views", len(hashes))
	}
}

func TestViewErrors(t *testing.T) {
	c := viewSource(t)
	for what, parts := range map[string][]Part{
		"axes":      {{Name: "a", Keep: [][]int{{0}}}},
		"empty":     {{Name: "a", Keep: [][]int{{}, nil}}},
		"range":     {{Name: "a", Keep: [][]int{{2}, nil}}},
		"negative":  {{Name: "a", Keep: [][]int{{-1}, nil}}},
		"order":     {{Name: "a", Keep: [][]int{{1, 0}, nil}}},
		"twice":     {{Name: "a", Keep: [][]int{{1, 1}, nil}}},
		"name":      {{Name: "a"}, {Name: "a", From: "b"}},
		"no name":   {{Name: "", From: "a"}},
		"all right": {{Name: "a", Keep: [][]int{nil, nil}}},
	} {
		_, err := c.View(parts)
		bad, ok := errors.AsType[*ViewError](err)
		if ok != (what != "all right") || (ok && bad.Error() == "") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := c.View([]Part{{Name: "a", From: "nothing"}}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a part that is not there: %v", err)
	}
	v, err := c.View([]Part{{Name: "a", Data: bytes.NewReader(floats(1))}})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.ReadFloat32("a", make([]float32, 6)); err == nil {
		t.Error("values that end too early are read")
	}
}
