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
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/record"
)

// evaluationBatch is how many samples go through a model at once. Results do
// not depend on it.
const evaluationBatch = 64

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
	var sha string
	for _, f := range r.record.Output.Files {
		if f.Role == "weights" {
			sha += f.SHA256
		}
	}
	original, err := r.logits(ctx, r.record.Source.SHA256, model.Stored(r.ckpt), 0)
	if err != nil {
		return err
	}
	compressed, err := r.logits(ctx, sha, Dequantized(written), r.evaluation.N)
	if err != nil {
		return err
	}
	r.record.Evaluation, err = evaluate.Classification(original, compressed, r.evaluation.Labels())
	return err
}

// logits finds a model's outputs on the evaluation data on disk, or computes
// them. sha identifies the model's weights; before counts samples done, for
// progress over both models.
func (r *run) logits(ctx context.Context, sha string, w model.Weights, before int) (blas32.General, error) {
	k, err := key("logits", blas.Path, sha, r.graph.Hash(), r.evaluation.SHA256())
	if err != nil {
		return blas32.General{}, err
	}
	out, found, err := unit(r.store, k, decodeLogits, encodeLogits, func() (blas32.General, error) {
		return Logits(ctx, r.pool, r.graph, w, r.evaluation, func(done int) {
			r.clock.emit(Event{Done: before + done, Total: 2 * r.evaluation.N})
		})
	})
	if found {
		r.clock.emit(Event{Done: before + r.evaluation.N, Total: 2 * r.evaluation.N, Cached: true})
	}
	return out, err
}

// Logits runs a model on all samples: samples × classes. progress, if not nil,
// hears how many samples have been read. Each parameter is read once.
func Logits(ctx context.Context, p *pool.Pool, g *model.Graph, w model.Weights, data *dataset.Images, progress func(done int)) (blas32.General, error) {
	kept := map[string][]float32{}
	once := func(name string) ([]float32, error) {
		if v, ok := kept[name]; ok {
			return v, nil
		}
		v, err := w(name)
		kept[name] = v
		return v, err
	}
	e := model.NewExecutor(g, p, once)
	return e.Logits(ctx, data.N, evaluationBatch, func(dst []float32, from, n int) error {
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
	record.Metrics
}

// Evaluate measures one model on the recipe's evaluation data: a checkpoint,
// or a folder that Run wrote, whose weights are dequantized as they are read.
// The recipe's rules play no part.
func Evaluate(ctx context.Context, recipe *Recipe, o Options) (*Measured, error) {
	if recipe.Evaluate == nil {
		return nil, &RecipeError{File: recipe.file, Where: "evaluate", Reason: "is missing; name the data: evaluate: {data: …, format: …}"}
	}
	written, err := openWritten(ctx, recipe.Model.Path)
	if err != nil {
		return nil, err
	}
	if written == nil {
		ckpt, graph, err := openModel(ctx, recipe)
		if err != nil {
			return nil, err
		}
		defer ckpt.Close()
		return measure(ctx, recipe, o, graph, model.Stored(ckpt))
	}
	defer written.Close()
	graph, err := buildGraph(written.Tensors(), recipe)
	if err != nil {
		return nil, err
	}
	return measure(ctx, recipe, o, graph, Dequantized(written))
}

// openWritten opens a folder that Run wrote; nil when path is something else.
func openWritten(ctx context.Context, path string) (*export.Model, error) {
	if _, err := os.Stat(filepath.Join(path, record.ManifestName)); err != nil {
		return nil, nil
	}
	return export.Open(ctx, path)
}

func measure(ctx context.Context, recipe *Recipe, o Options, g *model.Graph, w model.Weights) (*Measured, error) {
	data, err := OpenImages(ctx, recipe.Evaluate, g, recipe.Model.Input)
	if err != nil {
		return nil, err
	}
	logits, err := Logits(ctx, pool.New(o.Workers), g, w, data, nil)
	if err != nil {
		return nil, err
	}
	m, err := evaluate.Metrics(logits, data.Labels())
	return &Measured{Samples: data.N, Metrics: m}, err
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
