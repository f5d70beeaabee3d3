package loader

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fettle-dev/fettle/internal/safetensors"
)

// weightNames are the weight files of a folder, in the order of preference.
var weightNames = []string{
	"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
}

// weightEndings are those of files that may hold weights under other names, in
// the order of preference.
var weightEndings = []string{".safetensors", ".bin", ".pt", ".pth", ".th", ".ckpt"}

// companions are the files beside the weights that say how to use them.
var companions = []string{
	"config.json", "generation_config.json", "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json",
	"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "spiece.model",
	"sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt",
}

// indexEnding is that of the index of a sharded checkpoint.
const indexEnding = ".index.json"

// maxIndex bounds the index of a sharded checkpoint in bytes.
const maxIndex = 64 << 20

func (c *Checkpoint) open(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := os.Stat(c.path)
	if err != nil {
		return err
	}
	switch {
	case info.IsDir():
		return c.openFolder(ctx)
	case strings.HasSuffix(c.path, indexEnding):
		return c.openShards(ctx, c.path)
	}
	if parts := splitParts(c.path); parts != nil {
		return c.openSplit(ctx, parts)
	}
	return c.openFile(c.path)
}

func (c *Checkpoint) openFolder(ctx context.Context) error {
	name, err := chooseWeights(c.path)
	if err != nil {
		return err
	}
	for _, companion := range companions {
		info, err := os.Stat(filepath.Join(c.path, companion))
		if err == nil && info.Mode().IsRegular() {
			c.companions = append(c.companions, filepath.Join(c.path, companion))
		}
	}
	path := filepath.Join(c.path, name)
	if strings.HasSuffix(name, indexEnding) {
		return c.openShards(ctx, path)
	}
	if parts := splitParts(path); parts != nil {
		return c.openSplit(ctx, parts)
	}
	return c.openFile(path)
}

// chooseWeights returns the name of a folder's weight file or index: the first of
// the usual names, else the only file with a usual ending.
func chooseWeights(folder string) (string, error) {
	for _, name := range weightNames {
		_, err := os.Stat(filepath.Join(folder, name))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return name, err
		}
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return "", err
	}
	for _, ending := range weightEndings {
		var found []string
		for _, e := range entries {
			if !e.IsDir() && strings.HasSuffix(e.Name(), ending) {
				found = append(found, e.Name())
			}
		}
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return "", malformed("the folder holds %d files %s (%s, %s, …) and none of %s: name the file itself", len(found), ending, found[0], found[1], strings.Join(weightNames, ", "))
		}
	}
	if path, err := ggufIn(folder); err != nil || path != "" {
		return filepath.Base(path), err
	}
	return "", malformed("the folder holds none of %s, and no other weight file: name the checkpoint file itself", strings.Join(weightNames, ", "))
}

// openFile opens a single file of any format.
func (c *Checkpoint) openFile(path string) error {
	f, size, err := c.addFile(path)
	if err != nil {
		return err
	}
	return c.openReader(f, size, strings.HasSuffix(path, ".safetensors"))
}

// openReader tells the format from the first bytes, unless the file's name has
// told it.
func (c *Checkpoint) openReader(f io.ReaderAt, size int64, isSafetensors bool) error {
	head := make([]byte, min(size, 16))
	if err := readAt(f, head, 0); err != nil {
		return err
	}
	switch {
	case size == 0:
		return malformed("the file is empty")
	case isSafetensors || looksLikeSafetensors(head):
		return c.openSafetensors(f, size)
	case bytes.HasPrefix(head, []byte("PK\x03\x04")):
		return c.openZip(f, size)
	case bytes.HasPrefix(head, []byte(ggufMagic)):
		return c.openGGUF(f, size)
	case head[0] == 0x80 || head[0] == 'L': // PROTO, or protocol 1's decimal magic number
		return c.openLegacy(f, size)
	}
	return malformed("this is neither a safetensors or GGUF file nor a checkpoint that torch.save wrote")
}

// looksLikeSafetensors reports whether a file starts with a length below 4 GiB
// and a JSON object.
func looksLikeSafetensors(head []byte) bool {
	return len(head) > 8 && head[8] == '{' && bytes.Equal(head[4:8], []byte{0, 0, 0, 0})
}

// weightFile is an open file that may not change.
type weightFile struct {
	*os.File
	size     int64
	modified time.Time
}

// ReadAt fails when the file is not the one any more that was opened: what was
// learnt of it then says nothing of what it holds now.
func (f *weightFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	if err != nil {
		return n, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size() != f.size || !info.ModTime().Equal(f.modified) {
		return 0, malformed("the file has changed since it was opened: open it again")
	}
	return n, nil
}

// addFile opens a weight file and counts its size.
func (c *Checkpoint) addFile(path string) (*weightFile, int64, error) {
	f, info, err := openRegular(path)
	if err != nil {
		return nil, 0, err
	}
	file := &weightFile{f, info.Size(), info.ModTime()}
	c.files = append(c.files, file)
	c.size += info.Size()
	return file, info.Size(), nil
}

// openRegular opens a file. Only regular files are opened: a pipe would block,
// and cannot be read at an offset.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, &FormatError{path, "this is not a regular file"}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	if info, err = f.Stat(); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// openSafetensors adds the tensors of one file.
func (c *Checkpoint) openSafetensors(f io.ReaderAt, size int64) error {
	c.format = Safetensors
	h, err := safetensors.ReadHeader(f, size)
	if bad, ok := errors.AsType[*safetensors.Error](err); ok {
		return malformed("%s", bad.Reason)
	}
	if err != nil {
		return err
	}
	if len(c.tensors)+len(h.Tensors) > maxTensors {
		return malformed("there are more than %d tensors", maxTensors)
	}
	storages := make([]storage, len(h.Tensors))
	c.tensors = slices.Grow(c.tensors, len(h.Tensors))
	for i, t := range h.Tensors {
		storages[i] = storage{data: f, base: h.DataOffset + t.Begin, size: t.End - t.Begin}
		c.tensors = append(c.tensors, Tensor{
			Name: t.Name, DType: t.DType, Shape: t.Shape, storage: &storages[i], strides: denseStrides(t.Shape),
		})
	}
	for key, value := range h.Metadata {
		if c.metadata == nil {
			c.metadata = map[string]string{}
		}
		if _, taken := c.metadata[key]; !taken { // the first shard that has a key names it
			c.metadata[key] = value
		}
	}
	return nil
}

// openShards opens the shards that an index names, in the order of their names.
func (c *Checkpoint) openShards(ctx context.Context, index string) error {
	shardOf, shards, err := readShardIndex(index)
	if err != nil {
		return err
	}
	for _, shard := range shards {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := filepath.Join(filepath.Dir(index), shard)
		before := len(c.tensors)
		if err := c.openFile(path); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return malformed("the shard %s is missing: download it again", shard)
			}
			if bad, ok := errors.AsType[*FormatError](err); ok {
				bad.Path = path
			}
			return err
		}
		for _, t := range c.tensors[before:] {
			if shardOf[t.Name] != shard {
				return malformed("the shard %s holds tensor %q, which the index puts into %q", shard, t.Name, shardOf[t.Name])
			}
			delete(shardOf, t.Name)
		}
	}
	for _, s := range c.skipped {
		delete(shardOf, s.Name)
	}
	for name, shard := range shardOf {
		return malformed("the index puts tensor %q into %s, which does not hold it", name, shard)
	}
	return nil
}

// readShardIndex returns the file that holds each tensor, and the files in the
// order of their names, which all lie beside the index.
func readShardIndex(path string) (shardOf map[string]string, shards []string, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxIndex {
		return nil, nil, malformed("the index must be a regular file of at most %d bytes", int64(maxIndex))
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	shardOf, err = safetensors.ReadIndex(text)
	if bad, ok := errors.AsType[*safetensors.Error](err); ok {
		return nil, nil, malformed("%s", bad.Reason)
	}
	for _, shard := range shardOf {
		shards = append(shards, shard)
	}
	slices.Sort(shards)
	shards = slices.Compact(shards)
	for _, shard := range shards {
		if shard == "" || shard != filepath.Base(shard) || !filepath.IsLocal(shard) {
			return nil, nil, malformed("the index names the shard %q, which is not a file beside it", shorten(shard))
		}
	}
	return shardOf, shards, nil
}
