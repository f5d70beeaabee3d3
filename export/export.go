// Package export owns what fettle writes: its exact size beforehand, the
// writing, and reading it back.
//
// # Compressed output
//
// A folder with model.safetensors and config.json in the layouts of
// compressed-tensors; a model whose tensors take more bytes than one shard may is
// divided as below. A weight tensor NAME whose codes form an out×in matrix
// [rows, cols] becomes, on an integer grid (pack-quantized),
//
//	NAME_packed      int32 [rows, ⌈cols·bits/32⌉], see package pack
//	NAME_scale       scale type; [1] for a tensor, [rows, 1] for channels,
//	                 [rows, ⌈cols/group size⌉] for groups
//	NAME_shape       int64, the weight's own shape: [2] for a linear layer,
//	                 [4] for a convolution
//	NAME_zero_point  only when asymmetric: int32 packed along dimension 0,
//	                 [⌈rows·bits/32⌉, scales per row]; int8 [1] for a tensor
//
// as FP8 (naive-quantized)
//
//	NAME             F8_E4M3, of the weight's own shape, [rows, cols] where the
//	                 checkpoint stores it as in×out
//	NAME_scale       as above
//
// and as NVFP4 (nvfp4-pack-quantized) or MXFP4 (mxfp4-pack-quantized)
//
//	NAME_packed        uint8 [rows, cols/2], two E2M1 values to a byte, that of
//	                   the even column in the low nibble
//	NAME_scale         NVFP4: F8_E4M3 [rows, cols/16]; MXFP4: uint8 [rows, cols/32],
//	                   exponents of two with bias 127 (E8M0)
//	NAME_global_scale  NVFP4: float32 [1]; values are E2M1 · (scale / global scale)
//
// so that P.weight becomes P.weight_packed and so on. NAME is the checkpoint's
// own name, and a name that does not end in ".weight" is treated in the same
// way. Every other tensor is kept under its name with its bytes; a tensor that
// the checkpoint has under two names is kept under both.
//
// config.json names the scheme of each weight, and "mixed-precision" at the top
// where layouts differ. Its targets are module names: P for P.weight, and the
// tensor's whole name where it does not end in ".weight". The rare checkpoint
// whose names do not read back unambiguously is refused. The safetensors metadata
// is the source's own, with "format": "pt" where it had none; the key
// "fettle.dtypes" tells the original dtype of compressed weights whose scales are
// of another, "fettle.transposed" names the weights that the checkpoint stores as
// in×out (their codes are out×in like all others), and "fettle.shapes" tells the
// shapes of NVFP4 and MXFP4 weights that are no matrices.
//
// # Pruned weights
//
// Where only the n survivors of a weight are stored, they stand row after row in one
// line, without a gap between rows, and beside them a mask. What else a weight of
// codes has (scales, zero points, global scale) is that of all its rows; NAME_shape
// is left out. The survivors are
//
//	NAME_packed   codes: int32 [⌈n·bits/32⌉] on an integer grid, packed like one row
//	              above; F8_E4M3 [n]; uint8 [⌈n/2⌉] for E2M1, the first in the low
//	              nibble
//	NAME_values   values: [n] of their type
//
// and the mask is one of
//
//	NAME_bitmask  uint8 [rows, ⌈cols/8⌉]: column c of a row survives if bit c%8 of
//	              byte c/8 is set
//	NAME_pattern  uint8 [rows, ⌈groups·w/8⌉] for an N:M pattern: of each group of M
//	              inputs the number of its set of survivors among all sets of N, in
//	              w = ⌈log2 (M over N)⌉ bits, least significant first. Sets are
//	              numbered from 0 as their masks are ordered as binary numbers: of
//	              2:4, in 3 bits, {0,1} {0,2} {1,2} {0,3} {1,3} {2,3}. A row's last
//	              group of k < M inputs has ⌈N·k/M⌉ survivors, and sets of its own.
//	NAME_columns, NAME_counts
//	              the column of each survivor, and the survivors of each row: uint8,
//	              uint16 or uint32, whichever is the first to hold cols
//
// Values of a linear layer P.weight under a bitmask have compressed-tensors'
// layouts and names instead: sparse-bitmask,
//
//	P.compressed   [n], as above      P.bitmask  as above
//	P.row_offsets  int64 [rows], the survivors before each row
//	P.shape        int64 [2]
//
// or, where the spec names the pattern 2:4, sparse-24-bitmask: P.compressed is
// [rows, cols/2], P.shape [2, 1], and there is no P.row_offsets.
//
// Weights that are pruned and stored in full (MaskNone) look like others; pruned are
// those that are 0, which survivors may be too. Values stored in full keep their
// name and the checkpoint's shape.
//
// # Low-rank terms
//
// B·A, which is to be added to the weight, stands beside it under LoRA's names with
// scaling 1, P being the whole NAME where that does not end in ".weight":
//
//	P.lora_A.weight  [rank, cols]; [rank, in, height, width] for a convolution
//	P.lora_B.weight  [rows, rank]; [rows, rank, 1, 1] for a convolution
//
// Factors of codes, which have one scale for each component and no zero points, are
//
//	P.lora_A.weight_packed  int32 [rank, ⌈cols·bits/32⌉], packed as above
//	P.lora_A.weight_scale   [rank, 1]
//	P.lora_B.weight_packed  int32 [rank, ⌈rows·bits/32⌉], that is transposed: one row
//	                        for each component
//	P.lora_B.weight_scale   [rank, 1]
//
// The sum is that of layer.Solution.Weight. Values stored in full may have the term
// merged into them (LowRank.Merged): then they are the sum, rounded once to their
// type, and there are no factors.
//
// # What config.json tells of them
//
// The format of a config group whose weights are stored as survivors is that of all
// weights with "sparse-" before it, which no other reader knows and so refuses.
// sparsity_config is filled in where all weights in compressed-tensors' own sparse
// layouts have the same one. Everything else, and whatever is not a plain weight of
// codes, stands under the key "fettle", by weight: the dtype of values, the mask's
// layout, the exact number of survivors, the pattern [N, M], the shape of a weight
// stored as survivors, and rank, type and bits of the factors. A reader that ignores
// that key takes a weight with factors for one without.
//
// # What is compressed already
//
// Weights that the checkpoint holds compressed (Input.Source) keep their tensors, bytes
// and config group. Layouts of compressed-tensors that fettle does not write itself, and
// those of GPTQ and AWQ, are read too: see Open and Decode. The group of a weight in the
// latter has a format that no other reader knows: "gptq" (zero points stored less one),
// "gptq_v2" (as they are) or "awq". Only where nothing else is compressed or has a layout
// of its own is the source's quantization_config written as it came.
//
// # Dense output
//
// One safetensors or PyTorch file with the original's names, shapes and dtypes,
// in which compressed weights are dequantized. A safetensors file is divided
// like the compressed one.
//
// # Shards
//
// Tensors of more than Input.ShardSize bytes go into several files in the
// checkpoint's order, as Hugging Face's tools write and read them:
// model-00001-of-00003.safetensors and so on, with the index
// model.safetensors.index.json, which says where each tensor is. The tensors
// that replace a weight stay in one file, and every file has the whole metadata.
// The index is written last, so a folder that has it has all shards.
//
// No NaN or infinity is written, and files are whole or absent. At most one
// tensor and one solution are held at a time. The bytes depend on the input
// alone.
package export

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"reflect"

	"github.com/fettle-dev/fettle/internal/atomicfile"
	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/record"
)

// The names of the files that are written.
const (
	ModelName  = "model.safetensors"
	IndexName  = "model.safetensors.index.json" // of shards, in place of ModelName
	ConfigName = "config.json"
)

// What is wrong with a tensor or a file; test with errors.Is.
var (
	ErrNotFinite   = errors.New("NaN or infinity")
	ErrInput       = errors.New("does not fit the checkpoint")
	ErrUnsupported = errors.New("cannot be written")
	ErrCorrupt     = errors.New("malformed")
	ErrMismatch    = errors.New("reads back differently from what was to be written")
)

// TensorError names the tensor that an error is about.
type TensorError struct {
	Tensor string
	Index  int // of the element, row-major; -1 where the tensor as a whole is meant
	Err    error
}

// Error names the tensor and the index.
func (e *TensorError) Error() string {
	if e.Index < 0 {
		return fmt.Sprintf("tensor %s: %v", e.Tensor, e.Err)
	}
	return fmt.Sprintf("tensor %s, index %d: %v", e.Tensor, e.Index, e.Err)
}

// Unwrap returns the error without the tensor.
func (e *TensorError) Unwrap() error { return e.Err }

// bad returns a TensorError about a whole tensor: kind with an explanation.
func bad(tensor string, kind error, format string, args ...any) error {
	return badAt(tensor, -1, kind, format, args...)
}

func badAt(tensor string, index int, kind error, format string, args ...any) error {
	return &TensorError{Tensor: tensor, Index: index, Err: fmt.Errorf("%w: %s", kind, fmt.Sprintf(format, args...))}
}

// Input is what is written.
type Input struct {
	Checkpoint *loader.Checkpoint

	// Source is what the checkpoint is a view of where some of its weights are stored
	// compressed already (Model.View); those are written as they are stored, unless
	// they are in Specs or Replaced. nil: none is.
	Source *Model

	// Specs says which weights are compressed and how, by tensor name.
	Specs map[string]Spec

	// Solution returns the solution of a weight in Specs, which it must fit. It
	// is called when the weight is written or verified, for one weight at a time,
	// and what it returns is not kept, so it may well read from disk; it may be
	// called again for the same weight. Its Bias is not written: whoever folds
	// that into a bias or a BN β puts the outcome into Replaced.
	Solution func(name string) (*layer.Solution, error)

	// Replaced are tensors that are written with other values, row-major, in
	// their own dtype (F64, F32, F16 or BF16).
	Replaced map[string][]float32

	// Config is the config.json that came with the checkpoint, whose keys are
	// kept; nil where there was none.
	Config []byte

	// ShardSize is the most bytes of tensors, without headers, that go into one
	// safetensors file; 0 means DefaultShardSize.
	ShardSize int64

	Architecture string // fettle's name of the architecture, for config.json
	Tool         string // what wrote it, for config.json; nothing that varies by machine
}

// check reports the first thing that keeps the input from being written, as far
// as can be told without solutions.
func (in Input) check() error {
	if in.ShardSize < 0 {
		return fmt.Errorf("shards of %d bytes: %w; want at least 1, or 0 for %d", in.ShardSize, ErrUnsupported, int64(DefaultShardSize))
	}
	if err := checkReadable(in.Checkpoint); err != nil {
		return err
	}
	seen := 0
	for _, t := range in.Checkpoint.Tensors() {
		spec, compressed := in.Specs[t.Name]
		values, replaced := in.Replaced[t.Name]
		switch {
		case compressed && replaced:
			return bad(t.Name, ErrInput, "is both compressed and replaced")
		case compressed:
			if err := spec.fits(t); err != nil {
				return err
			}
			seen++
		case replaced:
			if int64(len(values)) != t.Elements() {
				return bad(t.Name, ErrInput, "%d replaced values for %d elements", len(values), t.Elements())
			}
			if !writable(t.DType) {
				return bad(t.Name, ErrUnsupported, "values of dtype %s cannot be replaced", t.DType)
			}
			seen++
		}
	}
	if seen == len(in.Specs)+len(in.Replaced) {
		return nil
	}
	for name := range in.Specs {
		if _, ok := in.Checkpoint.Lookup(name); !ok {
			return bad(name, ErrInput, "the checkpoint has no such tensor to compress")
		}
	}
	for name := range in.Replaced {
		if _, ok := in.Checkpoint.Lookup(name); !ok {
			return bad(name, ErrInput, "the checkpoint has no such tensor to replace")
		}
	}
	return nil
}

// checkReadable refuses a checkpoint of which a tensor would be left out.
func checkReadable(ckpt *loader.Checkpoint) error {
	for _, s := range ckpt.Skipped() {
		return bad(s.Name, ErrUnsupported, "the checkpoint's tensor cannot be read (%s) and would be lost", s.Reason)
	}
	return nil
}

// checkSolution reports the first thing that keeps a solution from being stored
// as its spec says.
func checkSolution(spec Spec, s *layer.Solution) error {
	if s == nil {
		return bad(spec.Name, ErrInput, "solution is nil")
	}
	got := SpecOf(spec.Name, spec.Shape, s)
	got.Pruned, got.LowRank = spec.Pruned, spec.LowRank // which are looked at below
	if !reflect.DeepEqual(got, spec) {
		return bad(spec.Name, ErrInput, "solution is %+v, its spec says %+v", got, spec)
	}
	for i, v := range s.Values {
		if !finite(v) {
			return badAt(spec.Name, i, ErrNotFinite, "value %v", v)
		}
	}
	for i, v := range s.Grid.Scales {
		if !finite(v) || !finite(v*spec.limit()) {
			return badAt(spec.Name, i, ErrNotFinite, "scale %v", v)
		}
	}
	if err := s.Check(); err != nil {
		return badSolution(spec.Name, ErrInput, err)
	}
	if err := spec.checkMask(s.Mask); err != nil {
		return bad(spec.Name, ErrInput, "%v", err)
	}
	if err := spec.LowRank.fits(s.LowRank); err != nil {
		return bad(spec.Name, ErrInput, "%v", err)
	}
	return nil
}

// badSolution returns what layer finds wrong with a solution as a TensorError.
func badSolution(name string, kind, err error) error {
	if one := (*layer.WeightError)(nil); errors.As(err, &one) {
		return badAt(name, one.Index, kind, "%s", one.Reason)
	}
	return bad(name, kind, "%v", err)
}

// writable reports whether computed values can be written as d.
func writable(d dtype.DType) bool {
	return d == dtype.F64 || d == dtype.F32 || d == dtype.F16 || d == dtype.BF16
}

func finite(v float32) bool { return v-v == 0 }

// source hands out the bytes of the tensors to write, one at a time.
type source struct {
	Input
	ctx    context.Context
	raw    []byte
	values []float32

	last   *layer.Solution // the last one fetched, of the weight lastOf; may be nil
	lastOf string
}

// solution returns the checked solution of a compressed weight. It keeps the
// last one, because most tensors of a weight stand beside each other in a file.
func (s *source) solution(name string) (*layer.Solution, error) {
	if err := s.ctx.Err(); err != nil {
		return nil, err
	}
	if s.last != nil && s.lastOf == name {
		return s.last, nil
	}
	s.last = nil // so that it can go before the next one comes
	if s.Solution == nil {
		return nil, bad(name, ErrInput, "the input has a spec, but no Solution to ask")
	}
	solution, err := s.Solution(name)
	if err != nil {
		return nil, &TensorError{Tensor: name, Index: -1, Err: err}
	}
	if err := checkSolution(s.Specs[name], solution); err != nil {
		return nil, err
	}
	s.last, s.lastOf = solution, name
	return solution, nil
}

// kept returns the bytes of a tensor that is not compressed. They are valid
// until the next call of kept or dense.
func (s *source) kept(t loader.Tensor) ([]byte, error) {
	if err := s.ctx.Err(); err != nil {
		return nil, err
	}
	s.raw = grow(s.raw, int(t.Bytes()))
	values, replaced := s.Replaced[t.Name]
	if replaced {
		return s.raw, s.convert(t, values)
	}
	if err := s.Checkpoint.ReadBytes(t.Name, s.raw); err != nil {
		return nil, fmt.Errorf("tensor %s: %w", t.Name, err)
	}
	return s.raw, checkFinite(t.Name, t.DType, s.raw)
}

// dense returns the bytes of any tensor in the original's dtype, compressed
// weights dequantized. They are valid until the next call of kept or dense.
func (s *source) dense(t loader.Tensor) ([]byte, error) {
	if _, ok := s.Specs[t.Name]; !ok {
		return s.kept(t)
	}
	solution, err := s.solution(t.Name)
	if err != nil {
		return nil, err
	}
	s.raw = grow(s.raw, int(t.Bytes()))
	s.values = grow(s.values, solution.Rows*solution.Cols)
	solution.Weight(s.values)
	return s.raw, s.convert(t, s.values)
}

// convert writes values to s.raw in the tensor's dtype.
func (s *source) convert(t loader.Tensor, values []float32) error {
	for i, v := range values {
		if !finite(v) {
			return badAt(t.Name, i, ErrNotFinite, "value %v", v)
		}
	}
	if err := t.DType.FromFloat32(s.raw, values); err != nil {
		return bad(t.Name, ErrUnsupported, "%v", err)
	}
	return checkFinite(t.Name, t.DType, s.raw) // a half may overflow
}

func grow[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// checkFinite returns an error for the first NaN or infinity in the bytes of a
// tensor. Integers have none.
func checkFinite(name string, d dtype.DType, raw []byte) error {
	if i := firstNotFinite(d, raw); i >= 0 {
		return badAt(name, i, ErrNotFinite, "in %s", d)
	}
	return nil
}

// firstNotFinite looks for an exponent of all ones at the top of an element,
// which in every type with 8 or more exponent bits, and in F16 and F8_E5M2,
// means NaN or infinity.
func firstNotFinite(d dtype.DType, raw []byte) int {
	size, hi, lo := d.Size(), byte(0), byte(0) // masks for the last two bytes
	switch d {
	case dtype.F64:
		hi, lo = 0x7f, 0xf0
	case dtype.F32, dtype.BF16:
		hi, lo = 0x7f, 0x80
	case dtype.C64:
		size, hi, lo = 4, 0x7f, 0x80
	case dtype.F16:
		hi = 0x7c
	case dtype.F8E5M2:
		hi = 0x7c
	case dtype.F8E4M3:
		hi = 0x7f
	case dtype.F8E8M0:
		hi = 0xff
	default:
		return -1
	}
	for i := size - 1; i < len(raw); i += size {
		if raw[i]&hi == hi && (lo == 0 || raw[i-1]&lo == lo) {
			return i / d.Size()
		}
	}
	return -1
}

// writeFile writes a file of the output folder, whole or not at all.
func writeFile(dir, name, role string, write func(io.Writer) error) (record.File, error) {
	path := filepath.Join(dir, name)
	sum := sha256.New()
	var size counter
	err := atomicfile.Write(path, func(f io.Writer) error {
		buffered := bufio.NewWriterSize(f, 1<<20)
		if err := write(io.MultiWriter(buffered, sum, &size)); err != nil {
			return err
		}
		return buffered.Flush()
	})
	if err != nil {
		return record.File{}, fmt.Errorf("write %s: %w", path, err)
	}
	return record.File{Name: name, Role: role, Bytes: int64(size), SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}

// counter counts the bytes written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// product multiplies dimensions; ok is false when one is negative or the
// product overflows an int.
func product(shape []int) (n int, ok bool) {
	n = 1
	for _, d := range shape {
		if d < 0 || (d > 0 && n > math.MaxInt/d) {
			return 0, false
		}
		n *= d
	}
	return n, true
}
