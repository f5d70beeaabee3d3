package export

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/record"
)

// DefaultShardSize is the shard size of an Input that names none, in bytes: that
// of Hugging Face's save_pretrained.
const DefaultShardSize = 5_000_000_000

const (
	modelStem   = "model"
	denseStem   = "dense"
	fileSuffix  = ".safetensors"
	indexSuffix = fileSuffix + ".index.json"
)

// layout says which tensors go into which safetensors file: one file, or shards
// with an index. It reads no tensor.
type layout struct {
	stem     string            // of the files' names
	metadata map[string]string // whole in each file, for a reader asks only one
	shards   [][]safetensors.Source
}

// divide fills shards with groups of tensors in their order. A shard holds at
// most size bytes of data, unless a single group has more: that has a shard of
// its own. Within a shard tensors stand as aligned puts them.
func divide(stem string, metadata map[string]string, groups [][]safetensors.Source, size int64) layout {
	l := layout{stem: stem, metadata: metadata, shards: [][]safetensors.Source{nil}}
	free := size
	for _, group := range groups {
		n := dataBytes(group)
		last := &l.shards[len(l.shards)-1]
		if n > free && len(*last) > 0 {
			l.shards = append(l.shards, nil)
			last, free = &l.shards[len(l.shards)-1], size
		}
		*last = append(*last, group...)
		free -= n
	}
	for _, shard := range l.shards {
		aligned(shard)
	}
	return l
}

// dataBytes returns the bytes of tensors without the file's header.
func dataBytes(tensors []safetensors.Source) int64 {
	var sum int64
	for _, t := range tensors {
		n := int64(t.DType.Size())
		for _, d := range t.Shape {
			n *= int64(d)
		}
		sum += n
	}
	return sum
}

func (l layout) sharded() bool { return len(l.shards) > 1 }

// fileName returns the name of shard i.
func (l layout) fileName(i int) string {
	if !l.sharded() {
		return l.stem + fileSuffix
	}
	return fmt.Sprintf("%s-%05d-of-%05d%s", l.stem, i+1, len(l.shards), fileSuffix)
}

// entry returns the name of the file that a reader opens: the only one, or the
// index.
func (l layout) entry() string {
	if l.sharded() {
		return l.stem + indexSuffix
	}
	return l.fileName(0)
}

// size returns the exact bytes of the safetensors files together, headers
// included and the index not.
func (l layout) size() (int64, error) {
	var sum int64
	for _, shard := range l.shards {
		n, err := safetensors.Size(shard, l.metadata)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// writeShards writes the safetensors files.
func (l layout) writeShards(out *output, role string) error {
	for i, shard := range l.shards {
		err := out.write(l.fileName(i), role, func(w io.Writer) error { return safetensors.Write(w, shard, l.metadata) })
		if err != nil {
			return err
		}
	}
	return nil
}

// writeIndex writes the index of shards, which a single file has none of. It
// goes last: a folder that has it has all shards.
func (l layout) writeIndex(out *output) error {
	if !l.sharded() {
		return nil
	}
	return out.write(l.entry(), "config", l.encodeIndex)
}

// encodeIndex writes the index in the form that transformers reads and writes.
func (l layout) encodeIndex(w io.Writer) error {
	type metadata struct {
		TotalSize int64 `json:"total_size"` // bytes of tensor data, without headers
	}
	index := struct {
		Metadata  metadata          `json:"metadata"`
		WeightMap map[string]string `json:"weight_map"`
	}{WeightMap: map[string]string{}}
	for i, shard := range l.shards {
		index.Metadata.TotalSize += dataBytes(shard)
		for _, t := range shard {
			index.WeightMap[t.Name] = l.fileName(i)
		}
	}
	return record.Encode(w, index) // sorts a map's keys
}

// verifyIndex compares the index in dir with the one that was to be written.
func (l layout) verifyIndex(dir string) error {
	if !l.sharded() {
		return nil
	}
	var want bytes.Buffer
	if err := l.encodeIndex(&want); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(dir, l.entry()))
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := io.ReadAll(io.LimitReader(f, int64(want.Len())+1))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want.Bytes()) {
		return fmt.Errorf("the index %w", ErrMismatch)
	}
	return nil
}

// output lists the files written into a folder, so that a failure can take them
// all back.
type output struct {
	dir   string
	files []record.File
}

func (o *output) write(name, role string, write func(io.Writer) error) error {
	file, err := writeFile(o.dir, name, role, write)
	if err == nil {
		o.files = append(o.files, file)
	}
	return err
}

// finish returns the files, or removes them all when err says that something
// failed.
func (o *output) finish(err error) ([]record.File, error) {
	if err == nil {
		return o.files, nil
	}
	for _, f := range o.files {
		_ = os.Remove(filepath.Join(o.dir, f.Name)) // the error that matters is the one returned
	}
	return nil, err
}
