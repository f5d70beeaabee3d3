package prune_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/calibrate"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/prune"
)

// shrink is a model whose sites are cut one after another.
type shrink struct {
	t        *testing.T
	ckpt     *loader.Checkpoint
	options  model.Options
	graph    *model.Graph
	input    *model.Tensor // for calibration
	removals []model.Removal
	data     map[string][]float32 // values that are no longer the checkpoint's
	how      prune.UnitOptions
	share    float64
}

// build returns the smaller model.
func (s *shrink) build() (*model.Graph, *loader.Checkpoint) {
	s.t.Helper()
	m, err := model.Remove(s.graph, s.ckpt.Tensors(), s.options, s.removals)
	if err != nil {
		s.t.Fatal(err)
	}
	for i, p := range m.Parts {
		if values, ok := s.data[p.From]; ok {
			var raw bytes.Buffer
			if err := binary.Write(&raw, binary.LittleEndian, values); err != nil {
				s.t.Fatal(err)
			}
			m.Parts[i].Data = bytes.NewReader(raw.Bytes())
		}
	}
	view, err := s.ckpt.View(m.Parts)
	if err != nil {
		s.t.Fatal(err)
	}
	return m.Graph, view
}

// value computes the input and the output of an operation.
func (s *shrink) value(g *model.Graph, w model.Weights, op int) (in, out *model.Tensor) {
	s.t.Helper()
	e := model.NewExecutor(g, pool.New(2), w)
	values := make([]*model.Tensor, len(g.Values))
	values[g.Input] = s.input
	for i := range op + 1 {
		var reads []*model.Tensor
		for _, v := range g.Ops[i].Inputs {
			reads = append(reads, values[v])
		}
		y, err := e.Step(context.Background(), i, reads)
		if err != nil {
			s.t.Fatal(err)
		}
		values[g.Ops[i].Output] = y
	}
	return values[g.Ops[op].Inputs[0]], values[g.Ops[op].Output]
}

func (s *shrink) read(name string) []float32 {
	s.t.Helper()
	w, err := model.Stored(s.ckpt)(name)
	if err != nil {
		s.t.Fatal(err)
	}
	return w
}

// cut takes units of one site away and repairs the layer that reads them.
func (s *shrink) cut(site model.Site) {
	s.t.Helper()
	ctx := context.Background()
	prob := &prune.UnitProblem{Units: site.Units, Run: site.Run, Squares: make([]float64, site.Units)}
	reader := site.Consumers[0]
	op := &s.graph.Ops[reader.Op]
	for _, sl := range site.Slices {
		t, _ := s.ckpt.Lookup(sl.Tensor)
		if sl.Tensor == op.Weight || len(t.Shape) < 2 {
			continue
		}
		if err := prune.AddSquares(prob.Squares, s.read(sl.Tensor), t.Shape, sl.Axis, sl.Offset, sl.Size); err != nil {
			s.t.Fatal(err)
		}
	}

	small, view := s.build()
	x, y := s.value(s.graph, model.Stored(s.ckpt), reader.Op)
	xt, _ := s.value(small, model.Stored(view), reader.Op)
	shape := s.graph.Values[op.Inputs[0]].Shape
	reading := calibrate.Rows(shape[len(shape)-1], shape[0])
	area := 1
	if op.Conv != nil {
		reading, area = calibrate.Convolution(*op.Conv), op.Conv.Rows()
	}
	acc := calibrate.New(pool.New(2), reading, false)
	if err := acc.Add(ctx, x.Data, xt.Data); err != nil {
		s.t.Fatal(err)
	}
	moments, err := acc.Moments(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	energy, err := calibrate.Energy(ctx, pool.New(2), y.Data, op.Outputs, area, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	moments.Energy = map[string][]float64{op.Name: energy}
	weight := s.read(op.Weight)
	cols := len(weight) / op.Outputs
	var norm *model.BatchNorm
	if next := s.graph.Readers(op.Output); len(next) == 1 {
		norm = s.graph.Ops[next[0]].BatchNorm
	}
	prob.Readers = []prune.UnitReader{{
		Columns: reader.Columns, Centre: norm != nil,
		Problem: &layer.Problem{Layer: op.Name, Groups: 1, Moments: moments, Weight: blas32.General{Rows: op.Outputs, Cols: cols, Stride: cols, Data: weight}},
	}}
	o := s.how
	o.Keep = prune.UnitCount(site.Units, site.Run, s.share)
	solved, err := prune.SelectUnits(ctx, pool.New(2), prob, o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.removals = append(s.removals, model.Removal{Kind: site.Kind, Site: site.Name, Keep: solved.Keep})
	done := solved.Readers[0]
	s.data[op.Weight] = done.Weight.Data
	if done.Bias != nil { // the normalization's shift takes it
		scale, shift, variance := s.read(norm.Scale), s.read(norm.Shift), s.read(norm.Var)
		for i, b := range done.Bias {
			shift[i] += float32(float64(scale[i]) / math.Sqrt(float64(variance[i])+norm.Eps) * b)
		}
		s.data[norm.Shift] = shift
	}
}

// divergence is the mean KL divergence of the smaller model from the original.
func (s *shrink) divergence(x *model.Tensor) float64 {
	s.t.Helper()
	var logits [2]*model.Tensor
	small, view := s.build()
	for i, e := range []*model.Executor{
		model.NewExecutor(s.graph, pool.New(2), model.Stored(s.ckpt)), model.NewExecutor(small, pool.New(2), model.Stored(view)),
	} {
		var err error
		if logits[i], err = e.Forward(context.Background(), x); err != nil {
			s.t.Fatal(err)
		}
	}
	n, classes := logits[0].Shape[0], logits[0].Shape[1]
	sum := 0.0
	for i := range n {
		p, q := logProbabilities(logits[0].Data[i*classes:][:classes]), logProbabilities(logits[1].Data[i*classes:][:classes])
		for k := range p {
			sum += math.Exp(p[k]) * (p[k] - q[k])
		}
	}
	return sum / float64(n)
}

func logProbabilities(logits []float32) []float64 {
	top, sum := float64(slices.Max(logits)), 0.0
	for _, v := range logits {
		sum += math.Exp(float64(v) - top)
	}
	out := make([]float64, len(logits))
	for i, v := range logits {
		out[i] = float64(v) - top - math.Log(sum)
	}
	return out
}

func pictures(t *testing.T, name string, n int) *model.Tensor {
	t.Helper()
	c, err := loader.Open(context.Background(), "../testmodels/"+name)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	all, _ := c.Lookup("images")
	data := make([]float32, all.Elements())
	if err := c.ReadFloat32("images", data); err != nil {
		t.Fatal(err)
	}
	data = data[:n*256]
	for i, v := range data {
		data[i] = (v/255 - .35) / .24
	}
	return &model.Tensor{Shape: []int{n, 1, 16, 16}, Data: data}
}

func texts(t *testing.T, name string, n int) *model.Tensor {
	t.Helper()
	raw, err := os.ReadFile("../testmodels/lm/" + name + ".u16")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../testmodels/lm/" + name + ".lengths.json")
	if err != nil {
		t.Fatal(err)
	}
	var lengths []int
	if err := json.Unmarshal(text, &lengths); err != nil {
		t.Fatal(err)
	}
	var docs [][]uint32
	at := 0
	for _, length := range lengths[:min(n, len(lengths))] {
		var doc []uint32
		for range length {
			doc = append(doc, uint32(binary.LittleEndian.Uint16(raw[at:])))
			at += 2
		}
		docs = append(docs, doc)
	}
	return model.NewTokens(docs...)
}

// On trained models repair helps, and so does choosing by the growth of the
// error, against outputs on data that were not used to choose.
func TestStructuredOnTrainedModels(t *testing.T) {
	for _, c := range []struct {
		path    string
		kind    model.SiteKind
		share   float64
		options model.Options
		x, test func() *model.Tensor
	}{
		{
			"resnet8.safetensors", model.ChannelSite, .25,
			model.Options{InputShape: []int{1, 16, 16}},
			func() *model.Tensor { return pictures(t, "glyphs-calibration.safetensors", 256) },
			func() *model.Tensor { return pictures(t, "glyphs-test.safetensors", 300) },
		},
		{
			"lm", model.ChannelSite, .25,
			model.Options{},
			func() *model.Tensor { return texts(t, "calibration", 40) }, func() *model.Tensor { return texts(t, "test", 40) },
		},
		{
			"lm", model.KVGroupSite, .5,
			model.Options{},
			func() *model.Tensor { return texts(t, "calibration", 40) }, func() *model.Tensor { return texts(t, "test", 40) },
		},
	} {
		ckpt, err := loader.Open(context.Background(), "../testmodels/"+c.path)
		if err != nil {
			t.Fatal(err)
		}
		defer ckpt.Close()
		if config, err := os.ReadFile("../testmodels/" + c.path + "/config.json"); err == nil {
			c.options.Config = config
		}
		g, err := model.Build(ckpt.Tensors(), c.options)
		if err != nil {
			t.Fatal(err)
		}
		test := c.test()
		measure := func(how prune.UnitOptions) float64 {
			s := &shrink{t: t, ckpt: ckpt, options: c.options, graph: g, input: c.x(), data: map[string][]float32{}, how: how, share: c.share}
			for _, site := range g.Sites() {
				if site.Kind == c.kind {
					s.cut(site)
				}
			}
			return s.divergence(test)
		}
		magnitude := measure(prune.UnitOptions{Score: prune.UnitMagnitude})
		energy := measure(prune.UnitOptions{Score: prune.UnitEnergy})
		repaired := measure(prune.UnitOptions{Score: prune.UnitEnergy, Repair: true})
		best := measure(prune.UnitOptions{Score: prune.UnitError, Repair: true})
		t.Logf("%s, %v of each %s: KL by magnitude %.4f, energy %.4f, energy repaired %.4f, error repaired %.4f", c.path, c.share, c.kind, magnitude, energy, repaired, best)
		if !(best < magnitude && best < energy && best < 1.1*repaired) {
			t.Error("choosing by the error and repairing does not help")
		}
	}
}
