package export

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pack"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/record"
)

// What config.json says of the layout.
const (
	quantMethod   = "compressed-tensors"
	layoutVersion = "0.17.0"
	mixedFormat   = "mixed-precision" // at the top, where groups' formats differ
)

// quantFormats are compressed-tensors' names of the layouts.
var quantFormats = map[layer.Format]string{
	layer.Integer: "pack-quantized",
	layer.FP8:     "naive-quantized",
	layer.NVFP4:   "nvfp4-pack-quantized",
	layer.MXFP4:   "mxfp4-pack-quantized",
}

// sparsePrefix goes before the name of a layout of which only the survivors of
// pruning are stored, a layout of fettle's own: readers that do not know it refuse
// the file by its format and not by a tensor's shape.
const sparsePrefix = "sparse-"

// noFormat stands at the top where no weight has codes.
const noFormat = "dense"

// formatName returns the name of a scheme's layout.
func (s scheme) formatName() string {
	if s.sparse {
		return sparsePrefix + quantFormats[s.format]
	}
	return quantFormats[s.format]
}

// formatOf is the inverse of quantFormats. FP8 with quantized activations has
// the same layout under a name of its own.
func formatOf(name string) (layer.Format, bool) {
	if name == "float-quantized" {
		return layer.FP8, true
	}
	for f, n := range quantFormats {
		if n == name {
			return f, true
		}
	}
	return "", false
}

// maxConfig is the largest config.json that is read.
const maxConfig = 64 << 20

const weightSuffix = ".weight"

// moduleOf returns the target that stands for a weight in config.json: the
// module's name, or the tensor's own where it is no module's weight.
func moduleOf(weight string) string {
	if module, ok := strings.CutSuffix(weight, weightSuffix); ok && module != "" {
		return module
	}
	return weight
}

// resolve is the inverse of moduleOf for a weight of a group, given the types of a
// file's tensors by name.
func resolve(target string, g configGroup, names map[string]dtype.DType) (weight string, err error) {
	has := func(weight string) bool {
		_, codes := names[g.codesName(weight)]
		_, scales := names[weight+scaleSuffix]
		return codes && (scales || g.codesName(weight) != weight)
	}
	ofModule, itself := has(target+weightSuffix), has(target)
	switch {
	case ofModule && itself:
		return "", fmt.Errorf("target %q could mean %s or %s", target, g.codesName(target+weightSuffix), g.codesName(target))
	case ofModule:
		return target + weightSuffix, nil
	case itself:
		return target, nil
	}
	return "", fmt.Errorf("target %q names no module with packed weights in the file", target)
}

// orphan returns the first weight whose codes and scales are among a file's
// tensors, given as types by name, though they belong to no compressed weight, or
// "".
func orphan(names map[string]dtype.DType, owned func(tensor string) bool) string {
	first := ""
	for name, d := range names {
		weight, packed := strings.CutSuffix(name, packedSuffix)
		if !packed && d != dtype.F8E4M3 {
			continue
		}
		_, ok := names[weight+scaleSuffix]
		if ok && !owned(name) && (first == "" || weight < first) {
			first = weight
		}
	}
	return first
}

// scheme is what weights of one config group share.
type scheme struct {
	format      layer.Format
	bits        int
	granularity layer.Granularity
	groupSize   int
	symmetric   bool
	sparse      bool // only survivors are stored
}

func (s Spec) scheme() scheme {
	return scheme{s.Format, s.Bits, s.Granularity, s.GroupSize, s.Symmetric, s.masked()}
}

func (s scheme) check() error {
	grouped := s.granularity == layer.PerGroup
	switch {
	case !s.format.Known():
		return fmt.Errorf("unknown format %q", s.format)
	case s.bits < pack.MinBits || s.bits > pack.MaxBits:
		return fmt.Errorf("%d bits, want %d to %d", s.bits, pack.MinBits, pack.MaxBits)
	case s.granularity != layer.PerTensor && s.granularity != layer.PerChannel && !grouped:
		return fmt.Errorf("unknown granularity %q", s.granularity)
	case s.groupSize < 0 || grouped != (s.groupSize > 0):
		return fmt.Errorf("granularity %q with group size %d", s.granularity, s.groupSize)
	case s.format == layer.Integer:
		return nil
	case s.bits != s.format.Bits():
		return fmt.Errorf("%d bits, %s has %d", s.bits, s.format, s.format.Bits())
	case !s.symmetric:
		return fmt.Errorf("zero points, which %s has not", s.format)
	case s.format.GroupSize() > 0 && s.groupSize != s.format.GroupSize():
		return fmt.Errorf("groups of %d, %s has %d", s.groupSize, s.format, s.format.GroupSize())
	}
	return nil
}

// tensorGroup is compressed-tensors' name of groups under a global scale.
const tensorGroup = "tensor_group"

// weights returns the scheme as compressed-tensors' QuantizationArgs, which
// allow no key beyond these.
func (s scheme) weights() map[string]any {
	m := map[string]any{
		"num_bits": s.bits, "type": "int", "symmetric": s.symmetric, "strategy": string(s.granularity),
		"group_size": nil, "block_structure": nil, "dynamic": false, "actorder": nil,
		"scale_dtype": nil, "zp_dtype": nil,
		"observer": "memoryless_minmax", "observer_kwargs": map[string]any{},
	}
	if s.granularity == layer.PerGroup {
		m["group_size"] = s.groupSize
	}
	if !s.symmetric {
		m["zp_dtype"] = "torch.int8"
	}
	if s.format != layer.Integer {
		m["type"] = "float"
	}
	switch s.format {
	case layer.NVFP4:
		m["strategy"], m["scale_dtype"] = tensorGroup, "torch.float8_e4m3fn"
	case layer.MXFP4:
		m["scale_dtype"] = "torch.uint8"
	}
	return m
}

// groupText returns the config group of a scheme without its targets, as canonical has
// it.
func (s scheme) groupText() (string, error) {
	return canonical(map[string]any{
		"format": s.formatName(), "weights": s.weights(), "input_activations": nil, "output_activations": nil,
	})
}

// groupText returns the config group of a weight, and the name of its layout; ok is
// false for a weight that is in none.
func (in Input) groupText(t loader.Tensor) (text, format string, ok bool, err error) {
	if weight, kept := in.keptAs(t); kept {
		g := in.Source.groups[weight]
		if g == nil {
			return "", "", false, nil
		}
		return g.text, g.format, true, nil
	}
	spec, ok := in.Specs[t.Name]
	if !ok || spec.valued() {
		return "", "", false, nil
	}
	text, err = spec.scheme().groupText()
	return text, spec.scheme().formatName(), true, err
}

// writeConfig writes config.json for the compressed tensors. Groups are numbered in the
// order in which the checkpoint first needs them.
func writeConfig(w io.Writer, in Input) error {
	config, err := in.sourceConfig()
	if err != nil {
		return err
	}
	if same := in.verbatim(); same != nil {
		config["quantization_config"] = same
	} else if config["quantization_config"], err = in.quantizationConfig(); err != nil {
		return err
	}
	delete(config, ownKey) // of a source that fettle wrote
	if own, ok := in.own(); ok {
		config[ownKey] = own
	}
	if in.Tool != "" {
		config["written_by"] = in.Tool
	}
	return record.Encode(w, config) // sorts a map's keys
}

func (in Input) quantizationConfig() (map[string]any, error) {
	targets := map[string][]string{}
	var texts, formats []string
	ignore := []string{}
	for _, t := range in.Checkpoint.Tensors() {
		text, format, ok, err := in.groupText(t)
		if err != nil {
			return nil, err
		}
		if !ok {
			if len(t.Shape) >= 2 && t.DType.IsFloat() && strings.HasSuffix(t.Name, weightSuffix) {
				ignore = append(ignore, moduleOf(t.Name))
			}
			continue
		}
		if targets[text] == nil {
			texts, formats = append(texts, text), append(formats, format)
		}
		targets[text] = append(targets[text], moduleOf(t.Name))
	}
	slices.Sort(ignore)
	groups := map[string]any{}
	for i, text := range texts {
		slices.Sort(targets[text])
		keys := map[string]any{}
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		if err := d.Decode(&keys); err != nil {
			return nil, err
		}
		keys["targets"] = targets[text]
		groups["group_"+strconv.Itoa(i)] = keys
	}
	return map[string]any{
		"quant_method": quantMethod, "version": layoutVersion, "format": overall(formats),
		"quantization_status": "compressed", "global_compression_ratio": nil, "kv_cache_scheme": nil,
		"ignore": ignore, "sparsity_config": in.sparsityConfig(), "transform_config": map[string]any{},
		"config_groups": groups,
	}, nil
}

// overall returns the format at the top of a config whose groups have the given
// ones.
func overall(formats []string) string {
	if len(formats) == 0 {
		return noFormat
	}
	for _, f := range formats {
		if f != formats[0] {
			return mixedFormat
		}
	}
	return formats[0]
}

// sourceConfig returns the keys that config.json starts from: those that came
// with the checkpoint, numbers as they are spelt, or the architecture's name.
func (in Input) sourceConfig() (map[string]any, error) {
	config := map[string]any{}
	if in.Config == nil {
		if in.Architecture != "" {
			config["architectures"], config["model_type"] = []string{in.Architecture}, in.Architecture
		}
		return config, nil
	}
	d := json.NewDecoder(bytes.NewReader(in.Config))
	d.UseNumber()
	if err := d.Decode(&config); err != nil {
		return nil, fmt.Errorf("%s of the source: %w: %w", ConfigName, ErrInput, err)
	}
	return config, nil
}

// carried are the files of a model's folder that go along as they are: what
// tokenizes, and what generates.
var carried = []string{
	"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
	"tokenizer.model", "vocab.json", "merges.txt", "generation_config.json", "chat_template.jinja",
}

// Carry copies the tokenizer's files and the generation settings of a model's
// folder, those that are there, into the existing folder dir.
func Carry(ctx context.Context, dir, source string) ([]record.File, error) {
	if info, err := os.Stat(source); err != nil || !info.IsDir() {
		return nil, err // a file has no companions
	}
	var files []record.File
	for _, name := range carried {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		in, err := os.Open(filepath.Join(source, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		file, err := writeFile(dir, name, "config", func(w io.Writer) error {
			_, err := io.Copy(w, in)
			return err
		})
		_ = in.Close() // only read from
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// readFile reads a config.json of bounded size.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxConfig {
		return nil, fmt.Errorf("%s: %w: larger than %d bytes", path, ErrCorrupt, maxConfig)
	}
	return data, nil
}

// olderThanDense reports whether a version of compressed-tensors lets no code
// cross a word.
func olderThanDense(version string) bool {
	part := strings.SplitN(version, ".", 3)
	if len(part) < 2 {
		return true
	}
	major, err1 := strconv.Atoi(part[0])
	minor, err2 := strconv.Atoi(part[1])
	return err1 != nil || err2 != nil || (major == 0 && minor < 17)
}
