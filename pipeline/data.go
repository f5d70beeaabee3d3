package pipeline

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/dataset"
	"github.com/fettle-dev/fettle/dataset/tokenizer"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/record"
)

// InputError says that data does not fit the model, or is missing.
type InputError struct {
	Path   string
	Reason string
}

func (e *InputError) Error() string { return e.Path + ": " + e.Reason }

// samples are data in the form in which a graph takes them: images, or
// sequences of token ids.
type samples interface {
	count() int
	rows() int64 // of activations: images, or tokens
	sha256() string
	// batch returns samples from … from+n−1 as the graph's input.
	batch(from, n int) (*model.Tensor, error)
	record(role string, d *Data) record.Data
}

// imageSamples are images of the shape that a graph takes, or flattened to it.
type imageSamples struct {
	*dataset.Images
	shape []int
}

func (s imageSamples) count() int     { return s.N }
func (s imageSamples) rows() int64    { return int64(s.N) }
func (s imageSamples) sha256() string { return s.SHA256() }

func (s imageSamples) batch(from, n int) (*model.Tensor, error) {
	shape := append([]int{n}, s.shape...)
	x := &model.Tensor{Shape: shape, Data: make([]float32, elements(shape))}
	return x, s.Read(x.Data, from, n)
}

func (s imageSamples) record(role string, d *Data) record.Data {
	return record.Data{Role: role, Path: d.Path, Format: d.Format, Samples: s.N, Of: s.Of, Seed: d.Seed, SHA256: s.SHA256()}
}

// textSamples are sequences of a language model's token ids.
type textSamples struct {
	*dataset.Sequences
	length, stride int    // of windows over long documents; stride 0 for none
	tokenizer      string // SHA-256 of the tokenizer's file; "" for ids
}

func (s textSamples) count() int     { return s.N }
func (s textSamples) rows() int64    { return int64(s.Total()) }
func (s textSamples) sha256() string { return s.SHA256() }

func (s textSamples) batch(from, n int) (*model.Tensor, error) {
	sequences := make([][]uint32, n)
	for i := range sequences {
		sequences[i] = s.Tokens(from + i)
	}
	return model.NewTokens(sequences...), nil
}

func (s textSamples) record(role string, d *Data) record.Data {
	return record.Data{
		Role: role, Path: d.Path, Format: d.Format, Samples: s.N, Of: s.Of, Seed: d.Seed, SHA256: s.SHA256(),
		Sequences: s.N, Tokens: int64(s.Total()), Length: s.longest(), Stride: s.stride, TokenizerSHA256: s.tokenizer,
	}
}

// longest returns the tokens of the longest sequence.
func (s textSamples) longest() int {
	n := 0
	for i := range s.N {
		n = max(n, len(s.Tokens(i)))
	}
	return n
}

// isLanguage reports whether a graph takes token ids.
func isLanguage(g *model.Graph) bool { return len(g.Ops) > 0 && g.Ops[0].Kind == model.Embed }

// openData opens the calibration and evaluation data and checks them against
// the graph's input.
func (r *run) openData(ctx context.Context) (err error) {
	if r.recipe.Calibration == nil && r.captured == nil {
		for _, c := range r.cuts {
			if c.entry.needsMoments() {
				return &RecipeError{
					File: r.recipe.file, Where: "calibration",
					Reason: fmt.Sprintf("is missing, and remove[%d] (%s) needs data; name some there or with --calibration, or use score: magnitude with repair: false", c.at, c.entry.key()),
				}
			}
		}
		for _, l := range r.plan.Layers {
			if l.needsMoments() && r.graph.Detached {
				return r.forwardError(fmt.Sprintf("layer %s (%s)", l.Name, l.method()))
			}
			if l.needsMoments() {
				return &RecipeError{
					File: r.recipe.file, Where: "calibration",
					Reason: fmt.Sprintf("is missing, and layer %s (%s) needs data; name some there or with --calibration, or moments (--moments), or use method nearest or hqq without align, awq and range awq", l.Name, l.method()),
				}
			}
		}
	}
	if r.calibration, err = openSamples(ctx, r.recipe, r.recipe.Calibration, r.graph); err != nil {
		return err
	}
	if r.evaluation, err = openSamples(ctx, r.recipe, r.recipe.Evaluate, r.graph); err != nil {
		return err
	}
	if overlap(r.recipe.Calibration, r.recipe.Evaluate) {
		r.clock.emit(Event{Warning: "evaluation samples come from the same part of the same file as calibration samples; figures will flatter the result"})
	}
	return nil
}

// dataHash is the hash of what moments come from, "" for nothing.
func (r *run) dataHash() string {
	switch {
	case r.captured != nil:
		return r.captured.sha
	case r.calibration != nil:
		return r.calibration.sha256()
	}
	return ""
}

// openSamples opens data for a graph; nil where none is named.
func openSamples(ctx context.Context, r *Recipe, d *Data, g *model.Graph) (samples, error) {
	if d == nil {
		return nil, nil
	}
	if isLanguage(g) {
		samples, err := openText(ctx, r, d, g)
		if err != nil {
			return nil, err
		}
		if d.Targets > 0 && g.Task != "" {
			return nil, &InputError{Path: d.Path, Reason: "targets keeps predictions of next tokens, which the model does not make; leave it out"}
		}
		if d.Text.Stride > 0 && g.Task != "" {
			return nil, &InputError{Path: d.Path, Reason: "text.stride divides texts for the prediction of next tokens, which the model does not make; leave it out"}
		}
		if d.Text.Stride > 0 {
			samples.length, samples.stride = textLength(d, g), d.Text.Stride
		}
		return samples, nil
	}
	images, err := OpenImages(ctx, d, g, r.Model.Input)
	if err != nil {
		return nil, err
	}
	return imageSamples{images, g.Values[g.Input].Shape}, nil
}

// OpenImages opens samples for a graph: normalized as input says, or else as
// the architecture is used to, and of the graph's input shape.
func OpenImages(ctx context.Context, d *Data, g *model.Graph, input Input) (*dataset.Images, error) {
	if !slices.Contains(imageFormats, d.Format) {
		return nil, &InputError{Path: d.Path, Reason: fmt.Sprintf("format %s is not one of images (%s), which the model takes", d.Format, strings.Join(imageFormats, ", "))}
	}
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
	if !flat && !slices.Equal(withoutOnes(images.Shape), withoutOnes(want)) {
		return nil, &InputError{Path: d.Path, Reason: fmt.Sprintf("samples are %v and the model takes %v; use the data that it was trained for, or say its size with model: {input: {shape: …}}", images.Shape, want)}
	}
	return images, nil
}

// withoutOnes returns a shape without axes of one, such as the height of sound.
func withoutOnes(shape []int) []int {
	return slices.DeleteFunc(slices.Clone(shape), func(n int) bool { return n == 1 })
}

// openText opens text, by the tokenizer in the model's folder, or token ids.
func openText(ctx context.Context, r *Recipe, d *Data, g *model.Graph) (s textSamples, err error) {
	if !slices.Contains(textFormats, d.Format) {
		return s, &InputError{Path: d.Path, Reason: fmt.Sprintf("format %s is not one of a language model (%s)", d.Format, strings.Join(textFormats, ", "))}
	}
	t := d.Text
	o := dataset.TextOptions{
		Path: d.Path, Format: d.Format, Field: t.Field, Separator: t.Separator, Lengths: t.Lengths,
		MinChars: t.MinChars, Strip: t.Strip, Samples: d.Samples, Seed: d.Seed, Mode: t.Mode, Length: t.Length,
		SkipLong: t.SkipLong, BOS: t.BOS, EOS: t.EOS, Vocabulary: g.Ops[0].Embedding.Rows,
	}
	o.Length = textLength(d, g)
	if t.Stride > 0 {
		o.Length = 0 // windows go over whole documents
	}
	if len(d.Subset) == 2 {
		o.Subset = [2]int(d.Subset)
	}
	if d.Format != "text" && d.Format != "jsonl" && d.Format != "builtin" {
		s.Sequences, err = dataset.OpenText(ctx, o, nil)
		return s, err
	}
	path := filepath.Join(r.Model.Path, tokenizerName)
	file, err := os.ReadFile(path)
	if err != nil {
		return s, &InputError{Path: d.Path, Reason: fmt.Sprintf("is text, and the model's folder %s has no %s that can be read; put it there, or give token ids (format u16, u32, npy or safetensors)", r.Model.Path, tokenizerName)}
	}
	s.tokenizer = fmt.Sprintf("%x", sha256.Sum256(file))
	tok, err := tokenizer.Open(path)
	if err != nil {
		return s, err
	}
	if t.Prefix != nil && !*t.Prefix {
		tok = tok.WithoutPrefix()
	}
	special := t.BOS == nil && t.EOS == nil
	if t.Special != nil {
		special = *t.Special
	}
	o.Decode = func(ids []uint32) (string, error) { return tok.Decode(ids, true) }
	s.Sequences, err = dataset.OpenText(ctx, o, func(text string) ([]uint32, error) { return tok.Encode(text, special) })
	return s, err
}

// tokenizerName is the file of a model's folder that says how text becomes ids.
const tokenizerName = "tokenizer.json"

// textLength returns the most tokens of a sequence: as asked for, or as many as
// the model has positions for.
func textLength(d *Data, g *model.Graph) int {
	if d.Text.Length > 0 {
		return d.Text.Length
	}
	return g.Context
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

func dataRecord(role string, d *Data, s samples) []record.Data {
	if s == nil {
		return nil
	}
	return []record.Data{s.record(role, d)}
}
