package pipeline

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/dataset"
	"github.com/fettle-dev/fettle/evaluate"
	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/internal/atomicfile"
	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/internal/scratch"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/record"
)

// evaluationBatch is how many images go through a model at once, unless one of
// its values would then have more than evaluationBytes. Results do not depend on
// it.
const (
	evaluationBatch = 64
	evaluationBytes = 128 << 20
)

func batchOf(g *model.Graph) int {
	largest := 1
	for _, v := range g.Values {
		largest = max(largest, elements(v.Shape))
	}
	return min(max(evaluationBytes/4/largest, 1), evaluationBatch)
}

// evaluate runs the original and what was written, read back from its files,
// on the evaluation data.
func (r *run) evaluate(ctx context.Context, dir string) error {
	if r.evaluation == nil {
		return nil
	}
	r.clock.enter(StageEvaluate)
	written, err := export.Open(ctx, dir)
	if err != nil {
		return err
	}
	defer written.Close()
	if r.original.graph.Task != "" {
		return r.evaluateOutputs(ctx, written)
	}
	switch data := r.evaluation.(type) {
	case imageSamples:
		return r.evaluateImages(ctx, data, written)
	case textSamples:
		language, err := r.evaluateLanguage(ctx, data, written)
		r.record.Evaluation = &record.Evaluation{Samples: data.N, Language: language}
		return err
	}
	return nil
}

// evaluateLanguage measures the written language model beside the original: its
// logits, or what is kept of them.
func (r *run) evaluateLanguage(ctx context.Context, data textSamples, written *export.Model) (*record.LanguageEvaluation, error) {
	l, err := newLanguageRun(r.pool, data, r.space)
	if err != nil {
		return nil, err
	}
	models, done := 2, 0
	l.done = func(share int) {
		r.clock.emit(Event{Done: (1000*done + share) * data.N / (1000 * models), Total: data.N})
		if share == 1000 {
			done++
		}
	}
	original := stored(r.original.ckpt, r.original.graph)
	compressed, err := dequantized(written, r.graph)
	if err != nil {
		return nil, err
	}
	if r.recipe.Evaluate.Targets == 0 {
		return l.measure(ctx, original, compressed)
	}
	k, err := key("targets", blas.Path, r.original.sha, r.original.graph.Hash(), data.sha256(), data.length, data.stride, r.recipe.Evaluate.Targets)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(r.kept.path(k)); err == nil {
		r.store.reused++
		models = 1
	} else {
		r.store.computed++
		err := save(r.kept, k, original, func(w io.Writer, s source) error { return l.writeTargets(ctx, w, r.recipe.Evaluate.Targets, s) })
		if err != nil {
			return nil, err
		}
	}
	return l.measureCached(ctx, r.kept.path(k), compressed)
}

// stored is a checkpoint as a model to run.
func stored(c *loader.Checkpoint, g *model.Graph) source {
	return source{graph: g, weights: model.Stored(c), rows: c.ReadRowFloat32}
}

// dequantized is a written model as one to run.
func dequantized(m *export.Model, g *model.Graph) (source, error) {
	view, err := m.View()
	if err != nil {
		return source{}, err
	}
	return source{graph: g, weights: Dequantized(m), rows: view.ReadRowFloat32}, nil
}

func (r *run) evaluateImages(ctx context.Context, data imageSamples, written *export.Model) error {
	if err := checkLabels(r.recipe.Evaluate, data.Images); err != nil {
		return err
	}
	var sha string
	for _, f := range r.record.Output.Files {
		if f.Role == "weights" {
			sha += f.SHA256
		}
	}
	original, err := r.logits(ctx, data, r.original.sha, r.original.graph, model.Stored(r.original.ckpt), 0)
	if err != nil {
		return err
	}
	compressed, err := r.logits(ctx, data, sha, r.graph, Dequantized(written), data.N)
	if err != nil {
		return err
	}
	r.record.Evaluation, err = evaluate.Classification(original, compressed, data.Labels())
	return err
}

// logits finds a model's outputs on the evaluation data on disk, or computes
// them. sha identifies the model's weights; before counts samples done, for
// progress over both models.
func (r *run) logits(ctx context.Context, data imageSamples, sha string, g *model.Graph, w model.Weights, before int) (blas32.General, error) {
	k, err := key("logits", blas.Path, sha, g.Hash(), data.sha256())
	if err != nil {
		return blas32.General{}, err
	}
	out, found, err := unit(r.store, k, decodeLogits, encodeLogits, func() (blas32.General, error) {
		return Logits(ctx, r.pool, g, w, data.Images, func(done int) {
			r.clock.emit(Event{Done: before + done, Total: 2 * data.N})
		})
	})
	if found {
		r.clock.emit(Event{Done: before + data.N, Total: 2 * data.N, Cached: true})
	}
	return out, err
}

// checkLabels refuses samples that a classifier's answers cannot be held against.
func checkLabels(d *Data, images *dataset.Images) error {
	if images.Labels() != nil {
		return nil
	}
	return &InputError{Path: d.Path, Reason: "has no labels, by which a classifier is measured; give it as safetensors with the tensors images and labels"}
}

// Logits runs a model on all samples: samples × classes. progress, if not nil,
// hears how many samples have been read. Each parameter is read once.
func Logits(ctx context.Context, p *pool.Pool, g *model.Graph, w model.Weights, data *dataset.Images, progress func(done int)) (blas32.General, error) {
	kept := &blockWeights{read: w, kept: map[string][]float32{}}
	e := model.NewExecutor(g, p, kept.get)
	return e.Logits(ctx, data.N, batchOf(g), func(dst []float32, from, n int) error {
		if progress != nil {
			progress(from)
		}
		return data.Read(dst, from, n)
	})
}

// Dequantized gives an executor the weights of a written model.
func Dequantized(m *export.Model) model.Weights {
	size := map[string]int64{}
	for _, t := range m.Tensors() {
		size[t.Name] = t.Elements()
	}
	return func(name string) ([]float32, error) {
		n, ok := size[name]
		if !ok {
			return nil, fmt.Errorf("%w: %s", loader.ErrNotFound, name)
		}
		data := make([]float32, n)
		if err := m.ReadFloat32(name, data); err != nil {
			return nil, err
		}
		return data, finite(name, data)
	}
}

// Measured is what Evaluate found.
type Measured struct {
	Samples int
	Metrics record.Metrics // of a classifier

	// Language is of a language model, and nil for others; Predicted are its
	// predicted tokens.
	Language  *record.LanguageMetrics
	Predicted int64
}

// Evaluate measures one model on the recipe's evaluation data: a checkpoint, some of
// whose weights may be stored compressed, by Run or another program: they are dequantized
// as they are read.
// The recipe's rules play no part.
func Evaluate(ctx context.Context, recipe *Recipe, options Options) (*Measured, error) {
	if recipe.Evaluate == nil {
		return nil, &RecipeError{File: recipe.file, Where: "evaluate", Reason: "is missing; name the data: evaluate: {data: …, format: …}"}
	}
	o, err := openModel(ctx, recipe)
	if err != nil {
		return nil, err
	}
	defer o.files.Close()
	if err := recipe.wantForward(o.ckpt.Tensors(), o.graph, o.config, "evaluate"); err != nil {
		return nil, err
	}
	return measure(ctx, recipe, options, stored(o.ckpt, o.graph))
}

func measure(ctx context.Context, recipe *Recipe, o Options, from source) (*Measured, error) {
	if task := from.graph.Task; task != "" {
		return nil, &RecipeError{File: recipe.file, Where: "evaluate", Reason: fmt.Sprintf("one model's %s cannot be measured alone, only beside another's; compress with this evaluate, and the record compares the two", taskNames[task])}
	}
	data, err := openSamples(ctx, recipe, recipe.Evaluate, from.graph)
	if err != nil {
		return nil, err
	}
	workers := pool.New(o.Workers)
	if text, ok := data.(textSamples); ok {
		space := scratch.New("", activationLimit(o.Memory))
		defer space.Close()
		run, err := newLanguageRun(workers, text, space)
		if err != nil {
			return nil, err
		}
		l, err := run.measure(ctx, from)
		if err != nil {
			return nil, err
		}
		return &Measured{Samples: text.N, Language: &l.Original, Predicted: l.Tokens}, nil
	}
	images := data.(imageSamples).Images
	if err := checkLabels(recipe.Evaluate, images); err != nil {
		return nil, err
	}
	logits, err := Logits(ctx, workers, from.graph, from.weights, images, nil)
	if err != nil {
		return nil, err
	}
	m, err := evaluate.Metrics(logits, images.Labels())
	return &Measured{Samples: images.N, Metrics: m}, err
}

func encodeLogits(w io.Writer, m blas32.General) error {
	return safetensors.Write(w, []safetensors.Source{{
		Name: "logits", DType: dtype.F32, Shape: []int{m.Rows, m.Cols},
		Write: func(w io.Writer) error {
			row := make([]byte, 4*m.Cols)
			for r := range m.Rows {
				if err := dtype.F32.FromFloat32(row, m.Data[r*m.Stride:][:m.Cols]); err != nil {
					return err
				}
				if _, err := w.Write(row); err != nil {
					return err
				}
			}
			return nil
		},
	}}, map[string]string{"fettle.unit": "logits"})
}

func decodeLogits(r io.ReaderAt, size int64) (blas32.General, error) {
	h, err := safetensors.ReadHeader(r, size)
	if err != nil {
		return blas32.General{}, err
	}
	if len(h.Tensors) != 1 || h.Tensors[0].DType != dtype.F32 || len(h.Tensors[0].Shape) != 2 {
		return blas32.General{}, fmt.Errorf("not a unit of logits")
	}
	t := h.Tensors[0]
	raw := make([]byte, t.End-t.Begin)
	if _, err := io.ReadFull(io.NewSectionReader(r, h.DataOffset+t.Begin, t.End-t.Begin), raw); err != nil {
		return blas32.General{}, err
	}
	m := blas32.General{Rows: t.Shape[0], Cols: t.Shape[1], Stride: t.Shape[1], Data: make([]float32, len(raw)/4)}
	return m, dtype.F32.ToFloat32(m.Data, raw)
}

func writeRecord(dir string, run *record.Run) error {
	return atomicfile.Write(filepath.Join(dir, record.FileName), func(w io.Writer) error { return record.Encode(w, run) })
}
