// Package loader opens checkpoints: safetensors and GGUF files, and what torch.save
// wrote, both as a zip and in the older format before PyTorch 1.6, TorchScript
// archives included; single, in shards under an index, or in a folder.
//
// Opening reads headers and pickles, never tensor data. ReadFloat32 and
// ReadBytes fetch one tensor at a time into the caller's memory; what is converted
// or gathered goes through a buffer of 256 KB. Files are read with ReadAt, not
// mapped: a file that is cut short or written to while it is open then gives an
// error, where a mapping would kill the process.
//
// # What is listed
//
// The tensors of the state dict, under the names that PyTorch's state_dict gives
// them, also where the file holds a whole module or a training checkpoint (see
// Root); with no state dict to be found, all tensors under their dotted paths. Of a
// TorchScript archive those of its modules, not the constants of its code. Tied and
// shared tensors are one storage with several names (see Shared). Types are those
// that are stored.
//
// The exception are quantized tensors (torch.quantize_per_tensor and per_channel to
// 8 or 32 bits). They are listed as F32 and read as their values, scale · (code −
// zero point): codes alone mean nothing to whoever copies, measures or compresses
// them. Tensor.Quantized says what is stored. Complex128, sparse, nested and 4-bit
// tensors cannot be read; Skipped lists them.
//
// # Hostile files
//
// A pickle is a program. This package runs none of it: a checking pass bounds
// what its operations may ask for, classes outside a short list become inert
// objects that only hold their arguments, and their names are reported by
// UnknownClasses. Tensors that such objects hold can still be listed and read.
// Scan reports every name of every pickle in a file or folder, with what is known
// of it.
//
// Whatever a file holds, opening or scanning it takes about a second at most, and
// less than 100 MB beside its header (the JSON, the pickle, or the directory of the
// zip). So a pickle of more than some 30,000 tensors, and a safetensors file of more
// than 131,072, is refused.
package loader

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// DType is the type of a tensor's elements.
type DType = dtype.DType

// Format says how a checkpoint is stored.
type Format string

// The formats.
const (
	Safetensors   Format = "safetensors"
	PyTorchZip    Format = "pytorch-zip"
	PyTorchLegacy Format = "pytorch-legacy"
)

// ErrNotFound says that a checkpoint has no tensor of a name.
var ErrNotFound = errors.New("no such tensor")

// FormatError says that a file is malformed, cut short, or no checkpoint.
// Reason says what is wrong and, where something helps, what to do.
type FormatError struct{ Path, Reason string }

func (e *FormatError) Error() string {
	if e.Path == "" {
		return e.Reason
	}
	return e.Path + ": " + e.Reason
}

// malformed returns a FormatError; Open adds the path.
func malformed(format string, args ...any) error {
	return &FormatError{Reason: fmt.Sprintf(format, args...)}
}

// Skipped is a tensor that the checkpoint holds but that cannot be read.
type Skipped struct{ Name, Reason string }

// Checkpoint is an open checkpoint. It is safe for concurrent use.
type Checkpoint struct {
	path       string
	format     Format
	files      []*weightFile
	companions []string
	size       int64
	tensors    []Tensor
	skipped    []Skipped
	index      map[string]int
	ties       map[string]int // further names of tensors
	metadata   map[string]string
	root       string
	unknown    []string
	view       *viewOf // nil unless this is a view of another checkpoint
}

// Open opens the checkpoint at path: a file, an index of shards, or a folder. Of a
// folder it takes the first that is there of model.safetensors,
// model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json,
// or else the only weight file; a GGUF file may be split. It reads no tensor data.
// The error is a *FormatError where the content is at fault.
func Open(ctx context.Context, path string) (*Checkpoint, error) {
	c := &Checkpoint{path: path, index: map[string]int{}}
	err := c.open(ctx)
	if err == nil {
		err = c.buildIndex()
	}
	if err != nil {
		_ = c.Close() // the error that matters is the one returned
		if bad, ok := errors.AsType[*FormatError](err); ok && bad.Path == "" {
			bad.Path = path
		}
		return nil, err
	}
	return c, nil
}

func (c *Checkpoint) buildIndex() error {
	for i, t := range c.tensors {
		if _, taken := c.index[t.Name]; taken {
			return malformed("two tensors have the name %q", t.Name)
		}
		c.index[t.Name] = i
	}
	c.addTies()
	return nil
}

// Path returns the path that was given to Open.
func (c *Checkpoint) Path() string { return c.path }

// Format returns how the checkpoint is stored.
func (c *Checkpoint) Format() Format { return c.format }

// WeightFiles returns the paths of the files that hold the tensors, in the order
// in which SHA256 takes them.
func (c *Checkpoint) WeightFiles() []string {
	if c.view != nil {
		return c.view.source.WeightFiles()
	}
	paths := make([]string, len(c.files))
	for i, f := range c.files {
		paths[i] = f.Name()
	}
	return paths
}

// Companions returns the paths of the files in a folder that say how to use its
// weights and are there: config.json, tokenizer.json and the like. It is empty for
// a checkpoint that was opened by its file.
func (c *Checkpoint) Companions() []string { return slices.Clone(c.companions) }

// Size returns the bytes of the weight files.
func (c *Checkpoint) Size() int64 { return c.size }

// Tensors returns the state dict's tensors in stored order. Their shapes must
// not be modified.
func (c *Checkpoint) Tensors() []Tensor { return slices.Clone(c.tensors) }

// Skipped returns the tensors of the state dict that are of a kind that cannot
// be read (sparse, complex128, quantized to 4 bits, …), with the reason.
func (c *Checkpoint) Skipped() []Skipped { return slices.Clone(c.skipped) }

// Lookup returns the tensor of a name. By a name that the metadata of a
// safetensors file ties to a tensor, it returns that tensor, with its own name.
func (c *Checkpoint) Lookup(name string) (Tensor, bool) {
	i, ok := c.index[name]
	if !ok {
		i, ok = c.ties[name]
	}
	if !ok {
		return Tensor{}, false
	}
	return c.tensors[i], true
}

// Metadata returns a safetensors file's __metadata__, nil where it has none, and a
// GGUF file's keys with their values as text, but not long arrays and strings.
func (c *Checkpoint) Metadata() map[string]string { return maps.Clone(c.metadata) }

// Root returns where a pickle's state dict was found: the dotted path from the
// top object, e.g. "state_dict", and "" where that object is the state dict.
func (c *Checkpoint) Root() string { return c.root }

// UnknownClasses returns the classes and functions that a pickle names and that
// are not on the list of known, harmless ones, sorted. None of them was run.
func (c *Checkpoint) UnknownClasses() []string { return slices.Clone(c.unknown) }

// Close closes the files. Reads fail from then on.
func (c *Checkpoint) Close() error {
	var errs []error
	for _, f := range c.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// SHA256 returns the SHA-256 of the weight file in hex. Of several files it is
// the SHA-256 of their binary hashes, one after the other in the order of the
// files' names. It reads the files whole. That of a view is of the source's and of
// what the view takes of it.
func (c *Checkpoint) SHA256(ctx context.Context) (string, error) {
	if c.view != nil {
		return c.view.sha256(ctx, c)
	}
	sums := sha256.New()
	for _, f := range c.files {
		h := sha256.New()
		if err := hashReader(ctx, h, f); err != nil {
			return "", err
		}
		if len(c.files) == 1 {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		sums.Write(h.Sum(nil))
	}
	return hex.EncodeToString(sums.Sum(nil)), nil
}

// hashReader reads through ReadAt, so that calls do not share a file position.
func hashReader(ctx context.Context, h hash.Hash, f io.ReaderAt) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.ReadAt(buf, off)
		h.Write(buf[:n])
		off += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
