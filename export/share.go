package export

import (
	"encoding/json"

	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/loader"
)

// Shares tells what parts of a model take in weight files of a limited size, so that
// the size of many combinations can be added up. A sum of Kept or Compressed for each
// tensor, and Frame, is never less than what CompressedTensorsSize returns for them
// together where that is at most the limit, and more by a few bytes for each tensor
// in the first tenth of the files.
type Shares struct {
	Checkpoint *loader.Checkpoint
	Source     *Model // as in Input
	ShardSize  int64  // as in Input
	Limit      int64  // bytes of all files
}

// Frame returns what the files have beside tensors.
func (s Shares) Frame() (int64, error) {
	// Keys that come with some specs are counted as if they were there always.
	metadata := sourceMetadata(s.Checkpoint)
	for _, key := range []string{dtypesKey, shapesKey, transposedKey} {
		metadata[key] = "{}"
	}
	frame, err := safetensors.FrameSize(metadata)
	return frame * s.copies(), err
}

// Kept returns what a tensor takes that is not compressed, or that is kept as it is
// stored.
func (s Shares) Kept(t loader.Tensor) (int64, error) {
	src := source{Input: Input{Checkpoint: s.Checkpoint, Source: s.Source}}
	list := []safetensors.Source{{Name: t.Name, DType: t.DType, Shape: t.Shape}}
	weight, stored := src.keptAs(t)
	if stored {
		list = src.keptSources(t, weight)
	}
	sum, err := s.entries(list)
	if !stored || err != nil {
		return sum, err
	}
	var told weightNotes
	if d, ok := s.Source.notes.dtypes[weight]; ok {
		told.dtypes = map[string]string{t.Name: d.String()}
	}
	spec, ok := src.keptSpec(t)
	if ok && spec.Transposed || !ok && s.Source.affines[weight].transposed {
		told.transposed = []string{t.Name}
	}
	if ok && spec.hidesShape() {
		told.shapes = map[string][]int{t.Name: spec.Shape}
	}
	n, err := told.bytes()
	return sum + n*s.copies(), err
}

// copies is at most how many files the metadata stand in: two neighbouring shards
// together are over size.
func (s Shares) copies() int64 {
	return 1 + 2*(s.Limit/Input{ShardSize: s.ShardSize}.shardSize())
}

// entries returns what tensors take with their headers' entries.
func (s Shares) entries(list []safetensors.Source) (int64, error) {
	sum := dataBytes(list)
	for _, t := range list {
		entry, err := safetensors.EntrySize(t, s.Limit)
		if err != nil {
			return 0, err
		}
		sum += entry
	}
	return sum, nil
}

// Compressed returns what the tensors take that replace a weight of the checkpoint.
func (s Shares) Compressed(spec Spec) (int64, error) {
	sum, err := s.entries(spec.tensors(nil))
	if err != nil {
		return 0, err
	}
	told, err := s.told(spec)
	return sum + told*s.copies(), err
}

// told returns at most what the metadata tell of a weight, in each file.
func (s Shares) told(spec Spec) (int64, error) {
	var n weightNotes
	if t, ok := s.Checkpoint.Lookup(spec.Name); ok && t.DType != spec.storedType() {
		n.dtypes = map[string]string{spec.Name: t.DType.String()}
	}
	if spec.Transposed {
		n.transposed = []string{spec.Name}
	}
	if spec.hidesShape() {
		n.shapes = map[string][]int{spec.Name: spec.Shape}
	}
	return n.bytes()
}

// weightNotes is what the metadata tell of one weight.
type weightNotes struct {
	dtypes     map[string]string
	shapes     map[string][]int
	transposed []string
}

// bytes returns at most what they take in a header.
func (k weightNotes) bytes() (n int64, err error) {
	add := func(entries int, v any) {
		if entries == 0 || err != nil {
			return
		}
		var inner, outer []byte
		if inner, err = json.Marshal(v); err == nil {
			outer, err = json.Marshal(string(inner)) // escaped, as the file has it
		}
		n += int64(len(outer))
	}
	add(len(k.dtypes), k.dtypes)
	add(len(k.shapes), k.shapes)
	add(len(k.transposed), k.transposed)
	return n, err
}
