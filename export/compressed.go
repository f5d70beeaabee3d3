package export

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/record"
)

// CompressedTensorsSize returns the exact bytes of the model.safetensors that
// CompressedTensors will write when the weights of the checkpoint are stored
// as the specs say. It reads no tensor.
func CompressedTensorsSize(ckpt *loader.Checkpoint, specs []Spec) (int64, error) {
	if err := checkReadable(ckpt); err != nil {
		return 0, err
	}
	byName := make(map[string]Spec, len(specs))
	for _, s := range specs {
		t, ok := ckpt.Lookup(s.Name)
		if !ok {
			return 0, bad(s.Name, ErrInput, "the checkpoint has no such tensor to compress")
		}
		if err := s.fits(t); err != nil {
			return 0, err
		}
		if _, ok := byName[s.Name]; ok {
			return 0, bad(s.Name, ErrInput, "has two specs")
		}
		byName[s.Name] = s
	}
	src := source{Input: Input{Checkpoint: ckpt}}
	list, err := src.outline(byName)
	if err != nil {
		return 0, err
	}
	meta, err := metadata(ckpt, byName)
	if err != nil {
		return 0, err
	}
	return safetensors.Size(list, meta)
}

// CompressedTensors writes model.safetensors and config.json into the existing
// folder dir, in the layout of the package comment, and returns the two files
// in this order. On an error neither is left behind. It holds at most one
// tensor beside the solutions.
func CompressedTensors(ctx context.Context, dir string, in Input) ([]record.File, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	src := source{Input: in, ctx: ctx}
	specs := in.specs()
	list, err := src.outline(specs)
	if err != nil {
		return nil, err
	}
	meta, err := metadata(in.Checkpoint, specs)
	if err != nil {
		return nil, err
	}
	model, err := writeFile(dir, ModelName, "weights", func(w io.Writer) error {
		return safetensors.Write(w, list, meta)
	})
	if err != nil {
		return nil, err
	}
	config, err := writeFile(dir, ConfigName, "config", func(w io.Writer) error {
		return writeConfig(w, in, specs)
	})
	if err != nil {
		_ = os.Remove(filepath.Join(dir, ModelName)) // the error that matters is the one returned
		return nil, err
	}
	return []record.File{model, config}, nil
}

// DenseFormat is a container for dense output.
type DenseFormat string

// The dense formats: safetensors, and PyTorch's zip format from 1.6 on.
const (
	Safetensors DenseFormat = "safetensors"
	PyTorch     DenseFormat = "pt"
)

// FileName returns the name of the file that Dense writes.
func (f DenseFormat) FileName() string { return "dense." + string(f) }

// Dense writes dense.safetensors or dense.pt into the existing folder dir: the
// original's tensors under their names, shapes and dtypes, compressed weights
// dequantized in float32 and rounded to their dtype. In the PyTorch format the
// state dict stands where the original's stood (Checkpoint.Root), every tensor
// with a storage of its own; what else the original file held is left out.
func Dense(ctx context.Context, dir string, format DenseFormat, in Input) (record.File, error) {
	if err := in.check(); err != nil {
		return record.File{}, err
	}
	src := source{Input: in, ctx: ctx}
	var write func(io.Writer) error
	switch format {
	case Safetensors:
		var list []safetensors.Source
		for _, t := range in.Checkpoint.Tensors() {
			list = append(list, streamed(t, src.dense))
		}
		write = func(w io.Writer) error {
			return safetensors.Write(w, aligned(list), sourceMetadata(in.Checkpoint))
		}
	case PyTorch:
		write = func(w io.Writer) error {
			return writePyTorch(w, in.Checkpoint.Root(), in.Checkpoint.Tensors(), src.dense)
		}
	default:
		return record.File{}, fmt.Errorf("dense format %q: %w; want %s or %s", format, ErrUnsupported, Safetensors, PyTorch)
	}
	return writeFile(dir, format.FileName(), "dense", write)
}
