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
	ShardSize  int64 // as in Input
	Limit      int64 // bytes of all files
}

// Frame returns what the files have beside tensors.
func (s Shares) Frame() (int64, error) {
	// Keys that come with some specs are counted as if they were there always.
	metadata := sourceMetadata(s.Checkpoint)
	for _, key := range []string{dtypesKey, shapesKey, transposedKey} {
		metadata[key] = "{}"
	}
	frame, err := safetensors.FrameSize(metadata)
	size := Input{ShardSize: s.ShardSize}.shardSize()
	return frame * (1 + 2*(s.Limit/size)), err // two neighbouring shards together are over size
}

// Kept returns what a tensor takes that is not compressed.
func (s Shares) Kept(t loader.Tensor) (int64, error) {
	entry, err := safetensors.EntrySize(safetensors.Source{Name: t.Name, DType: t.DType, Shape: t.Shape}, s.Limit)
	return t.Bytes() + entry, err
}

// Compressed returns what the tensors take that replace a weight of the checkpoint.
func (s Shares) Compressed(spec Spec) (int64, error) {
	list := spec.tensors(nil)
	sum := dataBytes(list)
	for _, t := range list {
		entry, err := safetensors.EntrySize(t, s.Limit)
		if err != nil {
			return 0, err
		}
		sum += entry
	}
	told, err := s.told(spec)
	return sum + told*(1+2*(s.Limit/Input{ShardSize: s.ShardSize}.shardSize())), err
}

// told returns at most what the metadata tell of a weight, in each file.
func (s Shares) told(spec Spec) (int64, error) {
	var n int64
	add := func(v any) error {
		inner, err := json.Marshal(v)
		if err != nil {
			return err
		}
		outer, err := json.Marshal(string(inner)) // escaped, as the file has it
		n += int64(len(outer))
		return err
	}
	if t, ok := s.Checkpoint.Lookup(spec.Name); ok && t.DType != spec.storedType() {
		if err := add(map[string]string{spec.Name: t.DType.String()}); err != nil {
			return 0, err
		}
	}
	if spec.Transposed {
		if err := add([]string{spec.Name}); err != nil {
			return 0, err
		}
	}
	if spec.hidesShape() {
		if err := add(map[string][]int{spec.Name: spec.Shape}); err != nil {
			return 0, err
		}
	}
	return n, nil
}
