package export

import (
	"context"
	"fmt"
	"io"

	"github.com/fettle-dev/fettle/record"
)

// CompressedTensorsSize returns the exact bytes of the safetensors files that
// CompressedTensors will write, headers included; the index of shards is not
// counted. It reads no tensor and asks for no solution.
func CompressedTensorsSize(in Input) (int64, error) {
	if err := in.check(); err != nil {
		return 0, err
	}
	src := source{Input: in}
	files, err := src.compressed()
	if err != nil {
		return 0, err
	}
	return files.size()
}

// CompressedTensors writes the model's safetensors files and config.json into
// the existing folder dir, which should hold no other model, in the layout of
// the package comment. It returns the files in the order in which they were
// written: those of role weights, config.json, then the index if there are
// shards, of role config like the former. On an error none is left behind. It
// holds at most one tensor and one solution.
func CompressedTensors(ctx context.Context, dir string, in Input) ([]record.File, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	src := source{Input: in, ctx: ctx}
	files, err := src.compressed()
	if err != nil {
		return nil, err
	}
	out := &output{dir: dir}
	err = files.writeShards(out, "weights")
	if err == nil {
		err = out.write(ConfigName, "config", func(w io.Writer) error { return writeConfig(w, in) })
	}
	if err == nil {
		err = files.writeIndex(out)
	}
	return out.finish(err)
}

// DenseFormat is a container for dense output.
type DenseFormat string

// The dense formats: safetensors, and PyTorch's zip format from 1.6 on.
const (
	Safetensors DenseFormat = "safetensors"
	PyTorch     DenseFormat = "pt"
)

// FileName returns the name of the file that Dense writes when it writes one.
func (f DenseFormat) FileName() string { return denseStem + "." + string(f) }

// Dense writes dense.safetensors or dense.pt into the existing folder dir: the
// original's tensors under their names, shapes and dtypes, compressed weights
// dequantized in float32 and rounded to their dtype. Safetensors may come in
// shards with an index, the index last and of role config; PyTorch's format is
// one file always. In it the state dict stands where the original's stood
// (Checkpoint.Root), every tensor with a storage of its own; what else the
// original file held is left out. On an error nothing is left behind.
func Dense(ctx context.Context, dir string, format DenseFormat, in Input) ([]record.File, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	src := source{Input: in, ctx: ctx}
	out := &output{dir: dir}
	var err error
	switch format {
	case Safetensors:
		files := src.denseFiles()
		if err = files.writeShards(out, "dense"); err == nil {
			err = files.writeIndex(out)
		}
	case PyTorch:
		err = out.write(format.FileName(), "dense", func(w io.Writer) error {
			return writePyTorch(w, in.Checkpoint.Root(), in.Checkpoint.Tensors(), src.dense)
		})
	default:
		err = fmt.Errorf("dense format %q: %w; want %s or %s", format, ErrUnsupported, Safetensors, PyTorch)
	}
	return out.finish(err)
}
