package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/fettle-dev/fettle/dataset"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/record"
)

// InputError says that data does not fit the model, or is missing.
type InputError struct {
	Path   string
	Reason string
}

func (e *InputError) Error() string { return e.Path + ": " + e.Reason }

// openData opens the calibration and evaluation data and checks them against
// the graph's input.
func (r *run) openData(ctx context.Context) (err error) {
	if r.recipe.Calibration == nil {
		for _, l := range r.plan.Layers {
			if l.Options.NeedsMoments() {
				return &RecipeError{
					File: r.recipe.file, Where: "calibration",
					Reason: fmt.Sprintf("is missing, and layer %s (%s) needs data; name some there or with --calibration, or use method nearest without align", l.Name, l.Options.Method),
				}
			}
		}
	}
	if r.calibration, err = r.openImages(ctx, r.recipe.Calibration); err != nil {
		return err
	}
	if r.evaluation, err = r.openImages(ctx, r.recipe.Evaluate); err != nil {
		return err
	}
	if overlap(r.recipe.Calibration, r.recipe.Evaluate) {
		r.clock.emit(Event{Warning: "evaluation samples come from the same part of the same file as calibration samples; figures will flatter the result"})
	}
	return nil
}

func (r *run) openImages(ctx context.Context, d *Data) (*dataset.Images, error) {
	if d == nil {
		return nil, nil
	}
	return OpenImages(ctx, d, r.graph, r.recipe.Model.Input)
}

// OpenImages opens samples for a graph: normalized as input says, or else as
// the architecture is used to, and of the graph's input shape.
func OpenImages(ctx context.Context, d *Data, g *model.Graph, input Input) (*dataset.Images, error) {
	o := dataset.Options{
		Path: d.Path, Format: d.Format, Labels: d.Labels, Samples: d.Samples, Seed: d.Seed,
		Normalize: dataset.Normalize(g.Normalize),
	}
	if len(input.Mean) > 0 {
		o.Normalize = dataset.Normalize{Mean: input.Mean, Std: input.Std}
	}
	if len(d.Subset) == 2 {
		o.Subset = [2]int(d.Subset)
	}
	images, err := dataset.OpenImages(ctx, o)
	if err != nil {
		return nil, err
	}
	want := g.Values[g.Input].Shape
	flat := len(want) == 1 && want[0] == elements(images.Shape)
	if !flat && !slices.Equal(images.Shape, want) {
		return nil, &InputError{Path: d.Path, Reason: fmt.Sprintf("samples are %v and the model takes %v; use the data that it was trained for, or say its size with model: {input: {shape: …}}", images.Shape, want)}
	}
	return images, nil
}

// overlap reports whether two data sets may share samples.
func overlap(a, b *Data) bool {
	if a == nil || b == nil {
		return false
	}
	x, errX := os.Stat(a.Path)
	y, errY := os.Stat(b.Path)
	if errors.Join(errX, errY) != nil || !os.SameFile(x, y) {
		return false
	}
	if len(a.Subset) != 2 || len(b.Subset) != 2 {
		return true
	}
	return a.Subset[0] < b.Subset[1] && b.Subset[0] < a.Subset[1]
}

func dataRecord(role string, d *Data, images *dataset.Images) []record.Data {
	if images == nil {
		return nil
	}
	return []record.Data{{
		Role: role, Path: d.Path, Format: d.Format, Samples: images.N, Of: images.Of, Seed: d.Seed, SHA256: images.SHA256(),
	}}
}
