package pipeline

import (
	"context"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/evaluate"
	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/record"
)

// taskNames are what models give that predict neither an image's class nor the next
// token.
var taskNames = map[model.Task]string{
	model.TokenClasses: "logits at each token", model.SequenceClasses: "logits of each sequence", model.Features: "features",
}

// evaluateOutputs compares the outputs of the original and of what was written,
// where these are no predictions that data can judge: a masked language model's
// and a token classifier's logits at each token, a sequence classifier's for each
// sequence, the features of all others.
func (r *run) evaluateOutputs(ctx context.Context, written *export.Model) (err error) {
	e := &record.Evaluation{}
	original := stored(r.original.ckpt, r.original.graph)
	compressed, err := dequantized(written, r.graph)
	if err != nil {
		return err
	}
	switch data := r.evaluation.(type) {
	case imageSamples:
		e.Samples = data.N
		e.Outputs, err = r.imageOutputs(ctx, data, original, compressed)
	case textSamples:
		e.Samples = data.N
		e.Outputs, err = r.textOutputs(ctx, data, original, compressed)
	}
	if err == nil {
		r.record.Evaluation = e
	}
	return err
}

func (r *run) textOutputs(ctx context.Context, data textSamples, models ...source) (*record.OutputEvaluation, error) {
	l, err := newLanguageRun(r.pool, data, r.space)
	if err != nil {
		return nil, err
	}
	var all []*answers
	defer func() {
		for _, a := range all {
			l.free(a)
		}
	}()
	for i, m := range models {
		l.done = func(share int) {
			r.clock.emit(Event{Done: (1000*i + share) * data.N / (1000 * len(models)), Total: data.N})
		}
		a, err := l.run(ctx, m)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	task := models[0].graph.Task
	o := evaluate.NewOutputs(all[0].width, task != model.Features)
	o.Pool = r.pool
	for b := range l.batches {
		rows := all[0].hidden[b].Shape[0]
		for row := 0; row < rows; row += headRows {
			n := min(headRows, rows-row)
			var outputs [2]blas32.General
			for i, a := range all {
				if outputs[i], err = a.of(ctx, b, row, n); err != nil {
					return nil, err
				}
			}
			if err := o.Add(outputs[0], outputs[1]); err != nil {
				return nil, err
			}
		}
	}
	return o.Result(string(task))
}

func (r *run) imageOutputs(ctx context.Context, data imageSamples, models ...source) (*record.OutputEvaluation, error) {
	var execs []*model.Executor
	for _, m := range models {
		kept := &blockWeights{read: m.weights, kept: map[string][]float32{}}
		execs = append(execs, model.NewExecutor(m.graph, r.pool, kept.get))
	}
	g := models[0].graph
	shape := g.Values[g.Output].Shape
	width := shape[len(shape)-1]
	o := evaluate.NewOutputs(width, g.Task != model.Features)
	o.Pool = r.pool
	batch := batchOf(g)
	for from := 0; from < data.N; from += batch {
		r.clock.emit(Event{Done: from, Total: data.N})
		x, err := data.batch(from, min(batch, data.N-from))
		if err != nil {
			return nil, err
		}
		var outputs [2]blas32.General
		for i, e := range execs {
			y, err := e.Forward(ctx, x)
			if err != nil {
				return nil, err
			}
			outputs[i] = blas32.General{Rows: len(y.Data) / width, Cols: width, Stride: width, Data: y.Data}
		}
		if err := o.Add(outputs[0], outputs[1]); err != nil {
			return nil, err
		}
	}
	return o.Result(string(g.Task))
}
