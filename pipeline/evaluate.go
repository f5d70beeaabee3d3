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

// evaluationBatch is how many images, and evaluationTokens about how many
// tokens, go through a model at once; headRows is how many tokens' logits exist
// at once. Results do not depend on them.
const (
	evaluationBatch  = 64
	evaluationTokens = 4096
	headRows         = 256
)

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
	switch data := r.evaluation.(type) {
	case imageSamples:
		return r.evaluateImages(ctx, data, written)
	case textSamples:
		done := func(n int) { r.clock.emit(Event{Done: n, Total: data.N}) }
		language, err := compareLanguage(ctx, r.pool, r.graph, data, done, model.Stored(r.ckpt), Dequantized(written))
		r.record.Evaluation = &record.Evaluation{Samples: data.N, Language: language}
		return err
	}
	return nil
}

func (r *run) evaluateImages(ctx context.Context, data imageSamples, written *export.Model) error {
	var sha string
	for _, f := range r.record.Output.Files {
		if f.Role == "weights" {
			sha += f.SHA256
		}
	}
	original, err := r.logits(ctx, data, r.record.Source.SHA256, model.Stored(r.ckpt), 0)
	if err != nil {
		return err
	}
	compressed, err := r.logits(ctx, data, sha, Dequantized(written), data.N)
	if err != nil {
		return err
	}
	r.record.Evaluation, err = evaluate.Classification(original, compressed, data.Labels())
	return err
}

// logits finds a model's outputs on the evaluation data on disk, or computes
// them. sha identifies the model's weights; before counts samples done, for
// progress over both models.
func (r *run) logits(ctx context.Context, data imageSamples, sha string, w model.Weights, before int) (blas32.General, error) {
	k, err := key("logits", blas.Path, sha, r.graph.Hash(), data.sha256())
	if err != nil {
		return blas32.General{}, err
	}
	out, found, err := unit(r.store, k, decodeLogits, encodeLogits, func() (blas32.General, error) {
		return Logits(ctx, r.pool, r.graph, w, data.Images, func(done int) {
			r.clock.emit(Event{Done: before + done, Total: 2 * data.N})
		})
	})
	if found {
		r.clock.emit(Event{Done: before + data.N, Total: 2 * data.N, Cached: true})
	}
	return out, err
}

// Logits runs a model on all samples: samples × classes. progress, if not nil,
// hears how many samples have been read. Each parameter is read once.
func Logits(ctx context.Context, p *pool.Pool, g *model.Graph, w model.Weights, data *dataset.Images, progress func(done int)) (blas32.General, error) {
	e := model.NewExecutor(g, p, readOnce(w))
	return e.Logits(ctx, data.N, evaluationBatch, func(dst []float32, from, n int) error {
		if progress != nil {
			progress(from)
		}
		return data.Read(dst, from, n)
	})
}

// readOnce keeps the parameters that it has read.
func readOnce(w model.Weights) model.Weights {
	kept := map[string][]float32{}
	return func(name string) ([]float32, error) {
		if v, ok := kept[name]; ok {
			return v, nil
		}
		v, err := w(name)
		if err == nil {
			kept[name] = v
		}
		return v, err
	}
}

// languageModel is a model as compareLanguage runs it.
type languageModel struct {
	exec   *model.Executor
	head   *model.Head
	hidden *model.Tensor // of the batch at hand
	logits blas32.General
}

// compareLanguage measures one language model, or an original and a compressed
// one beside it, on all sequences. done hears how many are finished.
func compareLanguage(ctx context.Context, p *pool.Pool, g *model.Graph, data textSamples, done func(int), weights ...model.Weights) (*record.LanguageEvaluation, error) {
	models := make([]languageModel, len(weights))
	for i, w := range weights {
		models[i].exec = model.NewExecutor(g, p, readOnce(w))
		head, err := models[i].exec.Head()
		if err != nil {
			return nil, err
		}
		models[i].head = head
		models[i].logits = blas32.General{Cols: head.Outputs, Stride: head.Outputs, Data: make([]float32, headRows*head.Outputs)}
	}
	l := evaluate.NewLanguage(models[0].head.Outputs)
	l.Bytes, l.Pool = data.Bytes(), p
	for from := 0; from < data.N; {
		n, tokens := 0, 0
		for from+n < data.N && (n == 0 || tokens+len(data.Tokens(from+n)) <= evaluationTokens) {
			tokens += len(data.Tokens(from + n))
			n++
		}
		if err := addSequences(ctx, l, models, data, from, n); err != nil {
			return nil, err
		}
		from += n
		done(from)
	}
	return l.Result()
}

// addSequences measures sequences from … from+n−1, a sequence a document.
func addSequences(ctx context.Context, l *evaluate.Language, models []languageModel, data textSamples, from, n int) error {
	x, err := data.batch(from, n)
	if err != nil {
		return err
	}
	for i := range models {
		if models[i].hidden, err = models[i].exec.Hidden(ctx, x); err != nil {
			return err
		}
	}
	row := 0
	for i := range n {
		targets := evaluate.NextTokens(data.Tokens(from + i))
		for len(targets) > 0 {
			take := min(headRows, len(targets))
			if err := addRows(ctx, l, models, row, targets[:take], from+i); err != nil {
				return err
			}
			row += take
			targets = targets[take:]
		}
	}
	return nil
}

func addRows(ctx context.Context, l *evaluate.Language, models []languageModel, row int, targets []int, document int) error {
	for i := range models {
		m := &models[i]
		width := m.head.Inputs
		hidden := blas32.General{Rows: len(targets), Cols: width, Stride: width, Data: m.hidden.Data[row*width:]}
		m.logits.Rows = len(targets)
		if err := m.head.Logits(ctx, hidden, m.logits); err != nil {
			return err
		}
	}
	var compressed blas32.General
	if len(models) > 1 {
		compressed = models[1].logits
	}
	return l.Add(models[0].logits, compressed, targets, document)
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
	config, err := written.SourceConfig()
	if err != nil {
		return nil, err
	}
	graph, err := buildGraph(written.Tensors(), recipe, config)
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
	data, err := openSamples(ctx, recipe, recipe.Evaluate, g)
	if err != nil {
		return nil, err
	}
	workers := pool.New(o.Workers)
	if text, ok := data.(textSamples); ok {
		l, err := compareLanguage(ctx, workers, g, text, func(int) {}, w)
		if err != nil {
			return nil, err
		}
		return &Measured{Samples: text.N, Language: &l.Original, Predicted: l.Tokens}, nil
	}
	images := data.(imageSamples).Images
	logits, err := Logits(ctx, workers, g, w, images, nil)
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
