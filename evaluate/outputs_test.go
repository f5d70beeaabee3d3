package evaluate

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
)

func TestOutputsWorkedByHand(t *testing.T) {
	l2, l3 := float32(math.Log(2)), float32(math.Log(3))
	o := NewOutputs(2, true)
	// (1/2, 1/2) beside (3/4, 1/4): KL = ln 2 − ln 3/2; and two equal rows.
	err := o.Add(blas32.General{Rows: 2, Cols: 2, Stride: 2, Data: []float32{0, 0, l2, 0}}, blas32.General{Rows: 2, Cols: 2, Stride: 2, Data: []float32{l3, 0, l2 + 1, 1}})
	if err != nil {
		t.Fatal(err)
	}
	e, err := o.Result("token_classes")
	if err != nil {
		t.Fatal(err)
	}
	if want := (math.Ln2 - math.Log(3)/2) / 2; math.Abs(*e.KL-want) > 1e-6 || *e.Agreement != 100 || e.Rows != 2 || e.RelativeError != nil {
		t.Errorf("got %+v, KL %v, want %v", e, *e.KL, want)
	}
	f := NewOutputs(2, false)
	err = f.Add(blas32.General{Rows: 1, Cols: 2, Stride: 2, Data: []float32{3, 4}}, blas32.General{Rows: 1, Cols: 2, Stride: 2, Data: []float32{3, 5}})
	if err != nil {
		t.Fatal(err)
	}
	if e, err = f.Result("features"); err != nil || *e.RelativeError != .04 || e.KL != nil || e.Agreement != nil {
		t.Errorf("got %+v, %v; want 0.04", e, err)
	}
}

func TestOutputsBytesDoNotDependOnBlocks(t *testing.T) {
	for _, logits := range []bool{true, false} {
		r := rand.New(rand.NewPCG(1, 2))
		a, b := random(r, 37, 11, 1), random(r, 37, 11, 1)
		whole := NewOutputs(11, logits)
		if err := whole.Add(a, b); err != nil {
			t.Fatal(err)
		}
		parts := NewOutputs(11, logits)
		parts.Pool = pool.New(3)
		for from := 0; from < 37; from += 5 {
			n := min(5, 37-from)
			cut := func(m blas32.General) blas32.General {
				return blas32.General{Rows: n, Cols: 11, Stride: m.Stride, Data: m.Data[from*m.Stride:]}
			}
			if err := parts.Add(cut(a), cut(b)); err != nil {
				t.Fatal(err)
			}
		}
		x, err1 := whole.Result("")
		y, err2 := parts.Result("")
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if logits && (*x.KL != *y.KL || *x.Agreement != *y.Agreement) || !logits && *x.RelativeError != *y.RelativeError {
			t.Errorf("logits %v: other bytes", logits)
		}
	}
}

func TestOutputsErrors(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	a := random(r, 4, 3, 1)
	bad := random(r, 4, 3, 1)
	bad.Data[2*bad.Stride+1] = float32(math.NaN())
	o := NewOutputs(3, false)
	err := o.Add(a, bad)
	if e, ok := errors.AsType[*Error](err); !ok || e.Model != "compressed" || e.Sample != 2 {
		t.Errorf("a NaN: %v", err)
	}
	if _, err := o.Result(""); err == nil {
		t.Error("no rows: no error")
	}
	if err := o.Add(a, random(r, 3, 3, 1)); err == nil {
		t.Error("4 and 3 rows: no error")
	}
	zero := blas32.General{Rows: 1, Cols: 3, Stride: 3, Data: make([]float32, 3)}
	if err := o.Add(zero, zero); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Result(""); err == nil {
		t.Error("outputs of 0: no error")
	}
}
