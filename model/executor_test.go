package model

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
)

func random(r *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return v
}

// oneOp returns a graph of one operation on one input, its output shape
// derived.
func oneOp(t *testing.T, op Op, input []int) *Graph {
	t.Helper()
	op.Name, op.Inputs, op.Output = string(op.Kind), []int{0}, 1
	out, err := op.outputShape([][]int{input})
	if err != nil {
		t.Fatal(err)
	}
	return &Graph{Architecture: "test", Values: []Value{{"x", input}, {"y", slices.Clone(out)}}, Ops: []Op{op}, Output: 1}
}

// step runs a graph of one operation on inputs of its first values' shapes and
// checks that it leaves them alone.
func step(t *testing.T, g *Graph, w map[string][]float32, in ...*Tensor) *Tensor {
	t.Helper()
	before := make([][]float32, len(in))
	for i, x := range in {
		before[i] = slices.Clone(x.Data)
	}
	y, err := NewExecutor(g, pool.New(2), fixed(w)).Step(context.Background(), 0, in)
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range in {
		same := func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }
		if !slices.EqualFunc(before[i], x.Data, same) {
			t.Errorf("input %d was overwritten", i)
		}
	}
	return y
}

func fixed(w map[string][]float32) Weights {
	return func(name string) ([]float32, error) {
		v, ok := w[name]
		if !ok {
			return nil, errors.New("no tensor " + name)
		}
		return v, nil
	}
}

func batch(r *rand.Rand, n int, shape ...int) *Tensor {
	return &Tensor{Shape: append([]int{n}, shape...), Data: random(r, n*size(shape))}
}

func wantClose(t *testing.T, what string, got []float32, want []float64, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d numbers, want %d", what, len(got), len(want))
	}
	for i, v := range want {
		if d := math.Abs(float64(got[i]) - v); !(d <= tolerance*(1+math.Abs(v))) {
			t.Fatalf("%s: number %d is %v, want %v", what, i, got[i], v)
		}
	}
}

// directConv is the definition of a convolution, one output at a time.
func directConv(c blas.Patches, outputs int, x, w, bias []float32) []float64 {
	in, out := c.Channels/c.Groups, outputs/c.Groups
	y := make([]float64, 0, outputs*c.Rows())
	for o := range outputs {
		for oy := range c.OutH() {
			for ox := range c.OutW() {
				sum := float64(bias[o])
				for i := range in {
					for ky := range c.KernelH {
						for kx := range c.KernelW {
							iy, ix := oy*c.StrideH-c.PadH+ky*c.DilationH, ox*c.StrideW-c.PadW+kx*c.DilationW
							if iy < 0 || iy >= c.Height || ix < 0 || ix >= c.Width {
								continue
							}
							channel := o/out*in + i
							sum += float64(x[(channel*c.Height+iy)*c.Width+ix]) * float64(w[((o*in+i)*c.KernelH+ky)*c.KernelW+kx])
						}
					}
				}
				y = append(y, sum)
			}
		}
	}
	return y
}

func TestConvIsItsDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for trial := 0; trial < 150; {
		groups := 1 + r.IntN(3)
		c := blas.Patches{
			Channels: groups * (1 + r.IntN(3)), Height: 1 + r.IntN(12), Width: 1 + r.IntN(12),
			KernelH: 1 + r.IntN(4), KernelW: 1 + r.IntN(4), StrideH: 1 + r.IntN(3), StrideW: 1 + r.IntN(3),
			PadH: r.IntN(3), PadW: r.IntN(3), DilationH: 1 + r.IntN(3), DilationW: 1 + r.IntN(3), Groups: groups,
		}
		op := Op{Kind: Conv2D, Weight: "w", Bias: "b", Outputs: groups * (1 + r.IntN(4)), Conv: &c}
		if _, err := op.outputShape([][]int{{c.Channels, c.Height, c.Width}}); err != nil {
			continue // the window does not fit
		}
		trial++
		n := 1 + r.IntN(3)
		x := batch(r, n, c.Channels, c.Height, c.Width)
		w := map[string][]float32{"w": random(r, op.Outputs*c.Inputs()), "b": random(r, op.Outputs)}
		y := step(t, oneOp(t, op, x.Shape[1:]), w, x)
		for s := range n {
			want := directConv(c, op.Outputs, sample(x, s), w["w"], w["b"])
			wantClose(t, fmt.Sprintf("%+v, sample %d", c, s), sample(y, s), want, 1e-5)
		}
	}
}

// A window of many inputs is summed in several chains.
func TestConvOfManyBlocks(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 1))
	c := blas.Patches{Channels: 120, Height: 13, Width: 11, KernelH: 3, KernelW: 3, StrideH: 1, StrideW: 1, PadH: 1, PadW: 1, DilationH: 1, DilationW: 1, Groups: 1}
	x := batch(r, 2, c.Channels, c.Height, c.Width)
	w := map[string][]float32{"w": random(r, 3*c.Inputs())}
	y := step(t, oneOp(t, Op{Kind: Conv2D, Weight: "w", Outputs: 3, Conv: &c}, x.Shape[1:]), w, x)
	wantClose(t, "conv", sample(y, 1), directConv(c, 3, sample(x, 1), w["w"], make([]float32, 3)), 1e-4)
}

func TestLinearIsItsDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	for range 30 {
		n, in, out := 1+r.IntN(80), 1+r.IntN(200), 1+r.IntN(150)
		x := batch(r, n, in)
		w := map[string][]float32{"w": random(r, out*in), "b": random(r, out)}
		y := step(t, oneOp(t, Op{Kind: Linear, Weight: "w", Bias: "b", Outputs: out}, []int{in}), w, x)
		var want []float64
		for s := range n {
			for o := range out {
				sum := float64(w["b"][o])
				for i := range in {
					sum += float64(x.Data[s*in+i]) * float64(w["w"][o*in+i])
				}
				want = append(want, sum)
			}
		}
		wantClose(t, "linear", y.Data, want, 1e-5)
	}
}

func TestLinearOverTheLastAxis(t *testing.T) {
	x := &Tensor{Shape: []int{1, 2, 2}, Data: []float32{1, 2, 3, 4}}
	y := step(t, oneOp(t, Op{Kind: Linear, Weight: "w", Outputs: 1}, []int{2, 2}), map[string][]float32{"w": {10, 1}}, x)
	if !slices.Equal(y.Shape, []int{1, 2, 1}) || !slices.Equal(y.Data, []float32{12, 34}) {
		t.Errorf("got %v", y)
	}
}

func TestBatchNormIsItsDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 1))
	x := batch(r, 3, 5, 4, 3)
	w := map[string][]float32{"scale": random(r, 5), "shift": random(r, 5), "mean": random(r, 5), "var": {1, .5, 1e-6, 0, 3}}
	bn := &BatchNorm{Scale: "scale", Shift: "shift", Mean: "mean", Var: "var", Eps: 1e-5}
	y := step(t, oneOp(t, Op{Kind: BatchNorm2D, BatchNorm: bn}, []int{5, 4, 3}), w, x)
	want := make([]float64, len(x.Data))
	for i, v := range x.Data {
		c := i / 12 % 5
		want[i] = (float64(v)-float64(w["mean"][c]))/math.Sqrt(float64(w["var"][c])+1e-5)*float64(w["scale"][c]) + float64(w["shift"][c])
	}
	// The float32 shift cancels where the variance is tiny and the scale large.
	wantClose(t, "batchnorm", y.Data, want, 1e-4)
}

func TestElementwise(t *testing.T) {
	x := []float32{-2, -0.5, 0, 0.5, 2, float32(math.Inf(1)), -30}
	for _, c := range []struct {
		op   Op
		want func(v float64) float64
	}{
		{Op{Kind: ReLU}, func(v float64) float64 { return math.Max(v, 0) }},
		{Op{Kind: LeakyReLU, Slope: 0.25}, func(v float64) float64 { return math.Max(v, v/4) }},
		{Op{Kind: Sigmoid}, func(v float64) float64 { return 1 / (1 + math.Exp(-v)) }},
		{Op{Kind: Tanh}, math.Tanh},
		{Op{Kind: Flatten}, func(v float64) float64 { return v }},
	} {
		y := step(t, oneOp(t, c.op, []int{len(x)}), nil, &Tensor{Shape: []int{1, len(x)}, Data: x})
		for i, v := range x {
			if want := float32(c.want(float64(v))); y.Data[i] != want {
				t.Errorf("%s(%v) = %v, want %v", c.op.Kind, v, y.Data[i], want)
			}
		}
	}
	nan := &Tensor{Shape: []int{1, 1}, Data: []float32{float32(math.NaN())}}
	for _, kind := range []OpKind{ReLU, LeakyReLU, Sigmoid, Tanh} {
		if y := step(t, oneOp(t, Op{Kind: kind, Slope: 1}, []int{1}), nil, nan); y.Data[0] == y.Data[0] {
			t.Errorf("%s hides a NaN", kind)
		}
	}
}

func TestAdd(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 1))
	a, b := batch(r, 2, 3, 2), batch(r, 2, 3, 2)
	shape := []int{3, 2}
	g := &Graph{
		Values: []Value{{"a", shape}, {"b", shape}, {"y", shape}},
		Ops:    []Op{{Kind: ReLU, Inputs: []int{0}, Output: 1}, {Kind: Add, Inputs: []int{0, 1}, Output: 2}},
		Output: 2,
	}
	e := NewExecutor(g, nil, nil)
	y, err := e.Step(context.Background(), 1, []*Tensor{a, b})
	if err != nil {
		t.Fatal(err)
	}
	for i := range y.Data {
		if y.Data[i] != a.Data[i]+b.Data[i] {
			t.Fatalf("number %d is %v", i, y.Data[i])
		}
	}
	if _, err := e.Step(context.Background(), 1, []*Tensor{a, batch(r, 3, 3, 2)}); err == nil {
		t.Error("batches of 2 and 3 give no error")
	}
}

func TestSubsamplePad(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 1))
	for range 30 {
		c, h, w, pad, stride := 1+r.IntN(4), 1+r.IntN(7), 1+r.IntN(7), r.IntN(3), 1+r.IntN(3)
		x := batch(r, 2, c, h, w)
		y := step(t, oneOp(t, Op{Kind: SubsamplePad, Stride: stride, PadChannels: pad}, []int{c, h, w}), nil, x)
		oh, ow := (h+stride-1)/stride, (w+stride-1)/stride
		if !slices.Equal(y.Shape, []int{2, c + 2*pad, oh, ow}) {
			t.Fatalf("shape %v", y.Shape)
		}
		for i, v := range y.Data {
			s, ch, row, col := i/((c+2*pad)*oh*ow), i/(oh*ow)%(c+2*pad)-pad, i/ow%oh, i%ow
			want := float32(0)
			if ch >= 0 && ch < c {
				want = x.Data[((s*c+ch)*h+row*stride)*w+col*stride]
			}
			if v != want {
				t.Fatalf("sample %d channel %d at %d,%d is %v, want %v", s, ch, row, col, v, want)
			}
		}
	}
}

func TestGlobalAvgPool(t *testing.T) {
	x := &Tensor{Shape: []int{1, 2, 2, 2}, Data: []float32{1, 2, 3, 4, -1, 0, 0, 0}}
	y := step(t, oneOp(t, Op{Kind: GlobalAvgPool}, []int{2, 2, 2}), nil, x)
	if !slices.Equal(y.Shape, []int{1, 2}) || !slices.Equal(y.Data, []float32{2.5, -0.25}) {
		t.Errorf("got %v", y)
	}
}

// tinyResNet is a CIFAR ResNet of one block a stage with random weights.
func tinyResNet(t *testing.T, shape []int) (*Graph, map[string][]float32) {
	t.Helper()
	tensors := resNetTensors("", 4, shape[0], 1, 7, false)
	g, err := Build(tensors, Options{InputShape: shape})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(7, 1))
	w := make(map[string][]float32)
	for _, x := range tensors {
		v := random(r, max(1, size(x.Shape)))
		if strings.HasSuffix(x.Name, "running_var") {
			for i := range v {
				v[i] = v[i]*v[i] + .5
			}
		}
		w[x.Name] = v
	}
	return g, w
}

func TestSameBytesForAnyBatchAndWorkers(t *testing.T) {
	ctx := context.Background()
	g, w := tinyResNet(t, []int{3, 9, 8})
	const n = 13
	x := batch(rand.New(rand.NewPCG(8, 1)), n, 3, 9, 8)
	per := len(x.Data) / n
	load := func(dst []float32, from, count int) error {
		copy(dst, x.Data[from*per:(from+count)*per])
		return nil
	}
	want, err := NewExecutor(g, nil, fixed(w)).Forward(ctx, x)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(want.Shape, []int{n, 7}) {
		t.Fatalf("shape %v", want.Shape)
	}
	for _, workers := range []int{1, 2, 5} {
		e := NewExecutor(g, pool.New(workers), fixed(w))
		for _, size := range []int{1, 2, 5, 13, 64} {
			got, err := e.Logits(ctx, n, size, load)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got.Data, want.Data) {
				t.Errorf("%d workers, batches of %d: other bytes", workers, size)
			}
		}
	}
}

func TestForwardIsStepByStep(t *testing.T) {
	ctx := context.Background()
	g, w := tinyResNet(t, []int{3, 8, 8})
	e := NewExecutor(g, pool.New(2), fixed(w))
	values := make([]*Tensor, len(g.Values))
	values[g.Input] = batch(rand.New(rand.NewPCG(9, 1)), 2, 3, 8, 8)
	for i, op := range g.Ops {
		var in []*Tensor
		for _, v := range op.Inputs {
			in = append(in, values[v])
		}
		y, err := e.Step(ctx, i, in)
		if err != nil {
			t.Fatal(err)
		}
		values[op.Output] = y
	}
	got, err := e.Forward(ctx, values[g.Input])
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Data, values[g.Output].Data) {
		t.Error("other bytes")
	}
}

func TestExecutorErrors(t *testing.T) {
	ctx := context.Background()
	g, w := tinyResNet(t, []int{3, 8, 8})
	e := NewExecutor(g, nil, fixed(w))
	good := batch(rand.New(rand.NewPCG(9, 1)), 2, 3, 8, 8)
	for name, in := range map[string][]*Tensor{
		"no input":           nil,
		"two inputs":         {good, good},
		"nil":                {nil},
		"another order":      {{Shape: []int{2, 8, 8, 3}, Data: good.Data}},
		"too few numbers":    {{Shape: good.Shape, Data: good.Data[1:]}},
		"a negative batch":   {{Shape: []int{-1, 3, 8, 8}}},
		"shape without data": {{Shape: good.Shape}},
	} {
		if _, err := e.Step(ctx, 0, in); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, op := range []int{-1, len(g.Ops)} {
		if _, err := e.Step(ctx, op, []*Tensor{good}); err == nil {
			t.Errorf("operation %d: no error", op)
		}
	}
	if y, err := e.Forward(ctx, &Tensor{Shape: []int{0, 3, 8, 8}}); err != nil || len(y.Data) != 0 {
		t.Errorf("an empty batch gives %v, %v", y, err)
	}
	w["conv1.weight"] = w["conv1.weight"][1:]
	if _, err := e.Forward(ctx, good); err == nil || !strings.Contains(err.Error(), "conv1.weight") {
		t.Errorf("a short weight gives %v", err)
	}
	delete(w, "conv1.weight")
	if _, err := e.Forward(ctx, good); err == nil {
		t.Error("a missing weight gives no error")
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := NewExecutor(oneOp(t, Op{Kind: ReLU}, []int{3}), nil, nil).Step(cancelled, 0, []*Tensor{{Shape: []int{1, 3}, Data: make([]float32, 3)}}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context gives %v", err)
	}
	broken := *g
	broken.Output = 99
	if _, err := NewExecutor(&broken, nil, fixed(w)).Forward(ctx, good); err == nil {
		t.Error("a broken graph gives no error")
	}
}

func TestLogitsErrors(t *testing.T) {
	g, w := tinyResNet(t, []int{3, 8, 8})
	e := NewExecutor(g, nil, fixed(w))
	stop := errors.New("stop")
	load := func([]float32, int, int) error { return stop }
	if _, err := e.Logits(context.Background(), 3, 2, load); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
	if _, err := e.Logits(context.Background(), 3, 0, load); err == nil || errors.Is(err, stop) {
		t.Errorf("batches of 0 give %v", err)
	}
	if m, err := e.Logits(context.Background(), 0, 2, load); err != nil || m.Rows != 0 || m.Cols != 7 {
		t.Errorf("no samples give %v, %v", m, err)
	}
}
