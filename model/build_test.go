package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/loader"
)

func float(name string, shape ...int) loader.Tensor {
	return loader.Tensor{Name: name, DType: dtype.F32, Shape: shape}
}

// resNetTensors lists a CIFAR ResNet's tensors with the given blocks a stage.
func resNetTensors(prefix string, width, channels, blocks, classes int, optionB bool) []loader.Tensor {
	var list []loader.Tensor
	bn := func(name string, n int) {
		for _, part := range []string{"weight", "bias", "running_mean", "running_var"} {
			list = append(list, float(prefix+name+"."+part, n))
		}
		list = append(list, loader.Tensor{Name: prefix + name + ".num_batches_tracked", DType: dtype.I64, Shape: []int{}})
	}
	list = append(list, float(prefix+"conv1.weight", width, channels, 3, 3))
	bn("bn1", width)
	in := width
	for stage := range 3 {
		out := width << stage
		for i := range blocks {
			name := fmt.Sprintf("layer%d.%d", stage+1, i)
			list = append(list, float(prefix+name+".conv1.weight", out, in, 3, 3))
			bn(name+".bn1", out)
			list = append(list, float(prefix+name+".conv2.weight", out, out, 3, 3))
			bn(name+".bn2", out)
			if optionB && in != out {
				list = append(list, float(prefix+name+".shortcut.0.weight", out, in, 1, 1))
				bn(name+".shortcut.1", out)
			}
			in = out
		}
	}
	return append(list, float(prefix+"linear.weight", classes, in), float(prefix+"linear.bias", classes))
}

func rename(list []loader.Tensor, from, to string) []loader.Tensor {
	out := slices.Clone(list)
	for i := range out {
		out[i].Name = strings.ReplaceAll(out[i].Name, from, to)
	}
	return out
}

func count(g *Graph, kind OpKind) int {
	n := 0
	for i := range g.Ops {
		if g.Ops[i].Kind == kind {
			n++
		}
	}
	return n
}

func TestBuildCIFARResNets(t *testing.T) {
	for blocks := 3; blocks <= 18; blocks += 5 {
		for _, prefix := range []string{"", "module.", "state_dict.module."} {
			for _, optionB := range []bool{false, true} {
				list := resNetTensors(prefix, 16, 3, blocks, 10, optionB)
				g, err := Build(list, Options{})
				if err != nil {
					t.Fatal(err)
				}
				wantConvs, wantPads := 6*blocks+1, 2
				if optionB {
					wantConvs, wantPads = wantConvs+2, 0
				}
				if n := count(g, Conv2D); n != wantConvs {
					t.Errorf("%d blocks: %d convolutions, want %d", blocks, n, wantConvs)
				}
				if n := count(g, SubsamplePad); n != wantPads {
					t.Errorf("%d blocks: %d shortcuts of option A, want %d", blocks, n, wantPads)
				}
				if !slices.Equal(g.Values[g.Input].Shape, []int{3, 32, 32}) || !slices.Equal(g.Values[g.Output].Shape, []int{10}) {
					t.Errorf("from %v to %v", g.Values[g.Input], g.Values[g.Output])
				}
				if len(g.Normalize.Mean) != 3 || g.Architecture != "cifar-resnet" {
					t.Errorf("%s normalizes with %v", g.Architecture, g.Normalize)
				}
				var known []string
				for _, x := range list {
					if !strings.HasSuffix(x.Name, "num_batches_tracked") {
						known = append(known, x.Name)
					}
				}
				read := g.Tensors()
				slices.Sort(known)
				slices.Sort(read)
				if !slices.Equal(known, read) {
					t.Error("the graph does not read each tensor once")
				}
			}
		}
	}
}

func TestBuildResNetVariants(t *testing.T) {
	list := resNetTensors("", 8, 1, 1, 12, true)
	list = rename(rename(list, "linear.", "fc."), ".shortcut.", ".downsample.")
	g, err := Build(list, Options{InputShape: []int{1, 16, 20}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(g.Values[g.Output].Shape, []int{12}) || g.Normalize.Mean != nil {
		t.Errorf("output %v, normalization %v", g.Values[g.Output], g.Normalize)
	}
	last := g.Ops[len(g.Ops)-2]
	if in := g.Values[last.Inputs[0]].Shape; last.Kind != GlobalAvgPool || !slices.Equal(in, []int{32, 4, 5}) {
		t.Errorf("%s of %v", last.Kind, in)
	}
}

// Whatever is taken away, added or changed is an error that names a tensor.
func TestResNetContradictions(t *testing.T) {
	for _, optionB := range []bool{false, true} {
		list := resNetTensors("module.", 8, 3, 2, 10, optionB)
		wantError := func(what string, list []loader.Tensor) {
			t.Helper()
			_, err := Build(list, Options{Architecture: "cifar-resnet"})
			if _, ok := errors.AsType[*TensorError](err); !ok {
				t.Errorf("%s: got %v", what, err)
			}
		}
		for i, x := range list {
			if strings.HasSuffix(x.Name, "num_batches_tracked") {
				continue
			}
			wantError("without "+x.Name, slices.Delete(slices.Clone(list), i, i+1))
			wantError("twice "+x.Name, append(slices.Clone(list), x))
			changed := slices.Clone(list)
			changed[i].DType = dtype.I8
			wantError("as I8 "+x.Name, changed)
			for axis := range x.Shape {
				changed := slices.Clone(list)
				changed[i].Shape = slices.Clone(x.Shape)
				changed[i].Shape[axis]++
				if x.Name == "module.conv1.weight" && axis == 1 {
					continue // other input channels are another network
				}
				wantError(fmt.Sprintf("axis %d of %s", axis, x.Name), changed)
			}
		}
		for _, extra := range []string{"module.layer4.0.conv1.weight", "module.layer1.0.conv3.weight", "module.conv1.bias", "module.layer1.5.conv1.weight", "other"} {
			wantError("with "+extra, append(slices.Clone(list), float(extra, 8)))
		}
	}
}

func TestResNetOptionAThatDoesNotFit(t *testing.T) {
	list := resNetTensors("", 8, 3, 1, 10, true)
	list = slices.DeleteFunc(list, func(x loader.Tensor) bool { return strings.Contains(x.Name, "layer2.0.shortcut") })
	if _, err := Build(list, Options{}); err != nil {
		t.Errorf("one shortcut of each option: %v", err)
	}
	list = resNetTensors("", 8, 3, 1, 10, false)
	for i, x := range list { // layer3.0 goes from 16 to 24 channels
		list[i].Shape = slices.Clone(x.Shape)
		for axis, n := range x.Shape {
			if n == 32 {
				list[i].Shape[axis] = 24
			}
		}
	}
	_, err := Build(list, Options{})
	if e, ok := errors.AsType[*TensorError](err); !ok || e.Tensor != "layer3.0.shortcut.0.weight" {
		t.Errorf("got %v", err)
	}
}

func TestOptionErrors(t *testing.T) {
	resnet, chain := resNetTensors("", 8, 3, 1, 10, false), []loader.Tensor{float("a.weight", 4, 6)}
	for _, c := range []struct {
		list []loader.Tensor
		o    Options
		want string
	}{
		{resnet, Options{InputShape: []int{1, 32, 32}}, "input shape"},
		{resnet, Options{InputShape: []int{3, 1024}}, "input shape"},
		{resnet, Options{InputShape: []int{3, 0, 32}}, "input shape"},
		{resnet, Options{Activation: "tanh"}, "activation"},
		{chain, Options{Architecture: "mlp", Activation: "gelu"}, "activation"},
		{chain, Options{Architecture: "mlp", InputShape: []int{1, 7}}, "input shape"},
		{nil, Options{Architecture: "mlp"}, "architecture"},
	} {
		_, err := Build(c.list, c.o)
		if e, ok := errors.AsType[*OptionError](err); !ok || e.Option != c.want {
			t.Errorf("%+v: got %v", c.o, err)
		}
	}
}

func TestUnsupported(t *testing.T) {
	for _, c := range []struct {
		list []loader.Tensor
		o    Options
		help string
	}{
		{nil, Options{}, "set the architecture"},
		{[]loader.Tensor{float("features.0.weight", 64, 3, 3, 3)}, Options{}, "set the architecture"},
		{[]loader.Tensor{float("fc1.weight", 128, 784), float("fc1.bias", 128), float("fc2.weight", 10, 128)}, Options{}, "architecture: mlp"},
		{append(resNetTensors("", 8, 3, 1, 10, false), float("layer4.0.conv1.weight", 8, 8, 3, 3)), Options{}, "set the architecture"},
		{resNetTensors("", 8, 3, 1, 10, false), Options{Architecture: "vgg"}, "known: cifar-resnet, mlp, "},
		{[]loader.Tensor{float("model.embed_tokens.weight", 8, 4), float("model.norm.weight", 4)}, Options{}, "config.json must be there"},
		{nil, Options{Config: []byte(`{"model_type": "mamba"}`)}, `architecture "mamba" is unknown`},
	} {
		_, err := Build(c.list, c.o)
		e, ok := errors.AsType[*UnsupportedError](err)
		if !ok || !slices.Equal(e.Known, Architectures()) || !strings.Contains(err.Error(), c.help) {
			t.Errorf("%+v: got %v", c.o, err)
		}
	}
}

func TestBuildMLP(t *testing.T) {
	for name, c := range map[string]struct {
		list  []loader.Tensor
		order []string
	}{
		"torch":         {[]loader.Tensor{float("fc1.weight", 5, 6), float("fc1.bias", 5), float("fc2.weight", 3, 5), float("fc2.bias", 3)}, []string{"fc1.weight", "fc2.weight"}},
		"sequential":    {[]loader.Tensor{float("0.weight", 5, 6), float("2.weight", 3, 5), float("2.bias", 3)}, []string{"0.weight", "2.weight"}},
		"by number":     {[]loader.Tensor{float("l.1.weight", 4, 4), float("l.10.weight", 4, 4), float("l.2.weight", 4, 4)}, []string{"l.1.weight", "l.2.weight", "l.10.weight"}},
		"as stored":     {[]loader.Tensor{float("in.weight", 4, 4), float("head.weight", 4, 4)}, []string{"in.weight", "head.weight"}},
		"without .bias": {[]loader.Tensor{float("w1", 5, 6), float("w2", 3, 5)}, []string{"w1", "w2"}},
	} {
		g, err := Build(c.list, Options{Architecture: "mlp", Activation: "leaky_relu"})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var order []string
		for i := range g.Ops {
			if g.Ops[i].IsLayer() {
				order = append(order, g.Ops[i].Weight)
			} else if g.Ops[i].Kind != LeakyReLU || g.Ops[i].Slope != 0.01 {
				t.Errorf("%s: found %v", name, g.Ops[i])
			}
		}
		if !slices.Equal(order, c.order) || count(g, LeakyReLU) != len(order)-1 {
			t.Errorf("%s: %v", name, g)
		}
	}
	g, err := Build([]loader.Tensor{float("a.weight", 5, 6)}, Options{Architecture: "mlp", InputShape: []int{1, 2, 3}})
	if err != nil || g.Ops[0].Kind != Flatten {
		t.Errorf("%v, %v", g, err)
	}
}

func TestMLPContradictions(t *testing.T) {
	for name, list := range map[string][]loader.Tensor{
		"widths":     {float("fc1.weight", 5, 6), float("fc2.weight", 3, 4)},
		"transposed": {float("fc1.weight", 784, 128), float("fc2.weight", 128, 10)},
		"bias":       {float("fc1.weight", 5, 6), float("fc1.bias", 6)},
		"a norm":     {float("fc1.weight", 5, 6), float("ln.weight", 5)},
		"lone bias":  {float("fc1.weight", 5, 6), float("fc2.bias", 5)},
		"integers":   {{Name: "fc1.weight", DType: dtype.I8, Shape: []int{5, 6}}},
		"empty":      {float("fc1.weight", 5, 0)},
	} {
		_, err := Build(list, Options{Architecture: "mlp"})
		if _, ok := errors.AsType[*TensorError](err); !ok {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestGraphIsData(t *testing.T) {
	g, err := Build(resNetTensors("", 8, 3, 2, 10, true), Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	var again Graph
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatal(err)
	}
	if err := again.Check(); err != nil || again.Hash() != g.Hash() {
		t.Errorf("after JSON: %v, hash %s, want %s", err, again.Hash(), g.Hash())
	}
	again.Ops[0].Conv.StrideH = 2
	if again.Hash() == g.Hash() {
		t.Error("another stride has the same hash")
	}
	if text := g.String(); strings.Count(text, "\n") != len(g.Ops)+2 || !strings.Contains(text, "layer2.0.shortcut.0.weight") {
		t.Errorf("the table is\n%s", text)
	}
}

func TestReadersAndLastUse(t *testing.T) {
	g, err := Build(resNetTensors("", 8, 3, 1, 10, false), Options{})
	if err != nil {
		t.Fatal(err)
	}
	last := g.LastUse()
	for v := range g.Values {
		readers := g.Readers(v)
		switch {
		case v == g.Output:
			if len(readers) != 0 || last[v] != len(g.Ops) {
				t.Errorf("the output is read by %v, last at %d", readers, last[v])
			}
		case len(readers) == 0 || last[v] != readers[len(readers)-1]:
			t.Errorf("value %d is read by %v, last at %d", v, readers, last[v])
		}
	}
	relu1 := g.Ops[2].Output // read by the first block's convolution and its shortcut
	if n := len(g.Readers(relu1)); g.Ops[2].Name != "relu1" || n != 2 {
		t.Errorf("%s is read %d times", g.Ops[2].Name, n)
	}
	twice := &Graph{Values: []Value{{}, {}}, Ops: []Op{{Kind: Add, Inputs: []int{0, 0}, Output: 1}}}
	if r := twice.Readers(0); !slices.Equal(r, []int{0}) {
		t.Errorf("x + x reads x in operations %v", r)
	}
}

func TestCheckFindsBrokenGraphs(t *testing.T) {
	fresh := func() *Graph {
		g, err := Build(resNetTensors("", 8, 3, 1, 10, false), Options{})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	for name, spoil := range map[string]func(g *Graph){
		"input":           func(g *Graph) { g.Input = -1 },
		"output":          func(g *Graph) { g.Output = len(g.Values) },
		"unwritten":       func(g *Graph) { g.Ops = g.Ops[:len(g.Ops)-1] },
		"order":           func(g *Graph) { g.Ops[0], g.Ops[1] = g.Ops[1], g.Ops[0] },
		"written twice":   func(g *Graph) { g.Ops[1].Output = g.Ops[0].Output },
		"shape":           func(g *Graph) { g.Values[3].Shape = []int{8, 32, 31} },
		"empty shape":     func(g *Graph) { g.Values[0].Shape = nil },
		"negative shape":  func(g *Graph) { g.Values[0].Shape = []int{3, -1, 32} },
		"huge shape":      func(g *Graph) { g.Values[0].Shape = []int{1 << 30, 1 << 30, 1 << 30} },
		"kind":            func(g *Graph) { g.Ops[2].Kind = "swish" },
		"no geometry":     func(g *Graph) { g.Ops[0].Conv = nil },
		"stride":          func(g *Graph) { g.Ops[0].Conv.StrideH = 0 },
		"window":          func(g *Graph) { g.Ops[0].Conv.KernelH = 99 },
		"overflow":        func(g *Graph) { g.Ops[0].Conv.PadH = 1 << 62 },
		"groups":          func(g *Graph) { g.Ops[0].Conv.Groups = 2 },
		"no outputs":      func(g *Graph) { g.Ops[0].Outputs = 0 },
		"no batchnorm":    func(g *Graph) { g.Ops[1].BatchNorm = nil },
		"relu's weight":   func(g *Graph) { g.Ops[2].Weight = "w" },
		"shared weight":   func(g *Graph) { g.Ops[3].Weight = g.Ops[0].Weight },
		"eps":             func(g *Graph) { g.Ops[1].BatchNorm.Eps = math.Inf(1) },
		"means":           func(g *Graph) { g.Normalize.Mean = g.Normalize.Mean[1:] },
		"deviation":       func(g *Graph) { g.Normalize.Std[0] = float32(math.NaN()) },
		"inputs":          func(g *Graph) { g.Ops[2].Inputs = nil },
		"input too large": func(g *Graph) { g.Ops[2].Inputs = []int{99} },
	} {
		g := fresh()
		spoil(g)
		if g.Check() == nil {
			t.Errorf("%s: not found", name)
		}
	}
}

// TestNormBefore: a normalization that alone reads its tensors, and whose value
// is not the output.
func TestNormBefore(t *testing.T) {
	norm := func(name, weight string, in, out int) Op {
		return Op{Kind: RMSNorm, Name: name, Inputs: []int{in}, Output: out, Norm: &Norm{Weight: weight}}
	}
	g := Graph{
		Values: make([]Value, 5), Output: 4,
		Ops: []Op{
			norm("a", "w", 0, 1), norm("b", "shared", 1, 2), norm("c", "shared", 2, 3), norm("d", "last", 3, 4),
		},
	}
	if op := g.NormBefore(1); op == nil || op.Name != "a" {
		t.Errorf("value 1: %v", op)
	}
	for _, value := range []int{0, 2, 3, 4} {
		if op := g.NormBefore(value); op != nil {
			t.Errorf("value %d: %s", value, op.Name)
		}
	}
}
