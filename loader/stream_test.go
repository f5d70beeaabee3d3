package loader

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestStream holds pieces of every size against the whole, of dense, transposed,
// repeated and cut tensors.
func TestStream(t *testing.T) {
	values := make([]float32, 60)
	for i := range values {
		values[i] = float32(i)
	}
	s := pStorage("0", 60)
	c := mustOpen(t, torchZip(t, pickled(pDict(
		pStr("dense"), pView(s, 0, []int{3, 4, 5}, []int{20, 5, 1}),
		pStr("turned"), pView(s, 0, []int{5, 4, 3}, []int{1, 5, 20}),
		pStr("repeated"), pView(s, 7, []int{6, 2}, []int{0, 1}),
		pStr("scalar"), pView(s, 9, nil, nil),
		pStr("empty"), pView(s, 0, []int{3, 0}, []int{1, 1}),
	)), values))
	v, err := c.View([]Part{
		{Name: "dense"},
		{Name: "turned"},
		{Name: "repeated"},
		{Name: "scalar"},
		{Name: "empty"},
		{Name: "rows", From: "dense", Keep: [][]int{{0, 2}, {1, 3}, nil}},
		{Name: "columns", From: "dense", Keep: [][]int{nil, nil, {0, 1, 4}}},
		{Name: "both", From: "turned", Keep: [][]int{{1, 2, 4}, nil, {0, 2}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range v.Tensors() {
		want := mustRead(t, v, info.Name)
		for size := 1; size <= 61; size++ {
			got := []float32{}
			err := info.stream(make([]float32, size), func(piece Tensor, buf []float32) error {
				defer func() { got = append(got, buf...) }()
				return piece.readFloat32(buf)
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("%s, %d at a time: %s", info.Name, size, diff)
			}
		}
		got := []float32{}
		err := v.StreamFloat32(context.Background(), info.Name, func(values []float32) error {
			got = append(got, values...)
			return nil
		})
		if err != nil || !cmp.Equal(want, got) {
			t.Errorf("%s: %v, %v", info.Name, got, err)
		}
	}
	own := errors.New("enough")
	if err := v.StreamFloat32(context.Background(), "dense", func([]float32) error { return own }); !errors.Is(err, own) {
		t.Errorf("error %v", err)
	}
	if err := v.StreamFloat32(context.Background(), "x", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := v.StreamFloat32(ctx, "dense", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestTied(t *testing.T) {
	s := pStorage("0", 4)
	c := mustOpen(t, torchZip(t, pickled(pDict(
		pStr("a"), pView(s, 0, []int{2, 2}, []int{2, 1}),
		pStr("turned"), pView(s, 0, []int{2, 2}, []int{1, 2}),
		pStr("half"), pView(s, 0, []int{2}, []int{1}),
		pStr("b"), pView(s, 0, []int{2, 2}, []int{2, 1}),
		pStr("other"), pView(pStorage("1", 4), 0, []int{2, 2}, []int{2, 1}),
		pStr("empty"), pView(s, 0, []int{0}, []int{1}),
		pStr("void"), pView(s, 0, []int{0}, []int{1}),
	)), []float32{1, 2, 3, 4}, []float32{1, 2, 3, 4}))
	if diff := cmp.Diff(map[string]string{"b": "a"}, c.Tied()); diff != "" {
		t.Error(diff)
	}
}
