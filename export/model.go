package export

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pack"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
)

// Model is an opened output of CompressedTensors. It looks like the dense
// checkpoint: the original's names, shapes and dtypes. Tensors are read on
// demand, so opening costs the headers alone. It is safe for concurrent use.
type Model struct {
	file         *loader.Checkpoint
	architecture string
	tensors      []loader.Tensor
	specs        map[string]Spec
}

// Open opens a folder that CompressedTensors wrote, or its model.safetensors or
// index of shards with config.json beside it. What is there is not trusted: missing tensors,
// shapes that do not agree and schemes that fettle does not know are an error
// that is ErrCorrupt.
func Open(ctx context.Context, path string) (*Model, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	dir := path
	if info.IsDir() {
		path = modelFile(dir)
	} else {
		dir = filepath.Dir(path)
	}
	architecture, targets, err := readConfig(filepath.Join(dir, ConfigName))
	if err != nil {
		return nil, err
	}
	file, err := loader.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	m := &Model{file: file, architecture: architecture, specs: map[string]Spec{}}
	if err := m.arrange(targets); err != nil {
		_ = file.Close() // the error that matters is the one returned
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// modelFile returns what is to be opened in a folder: ModelName, unless only the
// index of shards is there.
func modelFile(dir string) string {
	model, index := filepath.Join(dir, ModelName), filepath.Join(dir, IndexName)
	if _, err := os.Stat(model); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(index); err == nil {
			return index
		}
	}
	return model
}

// arrange finds the compressed weights and lists all tensors as if dense.
func (m *Model) arrange(targets map[string]scheme) error {
	names := map[string]bool{}
	for _, t := range m.file.Tensors() {
		names[t.Name] = true
	}
	dtypes, err := m.originalDTypes()
	if err != nil {
		return err
	}
	transposed, err := m.transposedWeights()
	if err != nil {
		return err
	}
	companion := map[string]bool{}
	for _, target := range slices.Sorted(maps.Keys(targets)) {
		weight, err := resolve(target, names)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if _, ok := m.specs[weight]; ok || names[weight] {
			return bad(weight, ErrCorrupt, "stands there twice")
		}
		spec, err := m.readSpec(weight, targets[target], transposed[weight])
		if err != nil {
			return err
		}
		m.specs[weight] = spec
		for _, t := range spec.tensors(nil) {
			companion[t.Name] = true
		}
	}
	if name := orphan(names, func(name string) bool { _, ok := m.specs[name]; return ok }); name != "" {
		return bad(name, ErrCorrupt, "is stored compressed but no config group targets %q", moduleOf(name))
	}
	for _, t := range m.file.Tensors() {
		if !companion[t.Name] {
			m.tensors = append(m.tensors, t)
		} else if weight := t.Name[:max(0, len(t.Name)-len(packedSuffix))]; weight+packedSuffix == t.Name {
			if spec, ok := m.specs[weight]; ok {
				m.tensors = append(m.tensors, spec.denseTensor(dtypes))
			}
		}
	}
	return nil
}

func (s Spec) denseTensor(dtypes map[string]dtype.DType) loader.Tensor {
	t := loader.Tensor{Name: s.Name, DType: s.ScaleType, Shape: s.Shape}
	if d, ok := dtypes[s.Name]; ok {
		t.DType = d
	}
	return t
}

// originalDTypes reads the metadata key that names the original dtypes where
// they are not the scales'.
func (m *Model) originalDTypes() (map[string]dtype.DType, error) {
	text, ok := m.file.Metadata()[dtypesKey]
	if !ok {
		return nil, nil
	}
	var named map[string]string
	if err := json.Unmarshal([]byte(text), &named); err != nil {
		return nil, fmt.Errorf("metadata %s: %w: %w", dtypesKey, ErrCorrupt, err)
	}
	dtypes := make(map[string]dtype.DType, len(named))
	for name, text := range named {
		d, err := dtype.Parse(text)
		if err != nil || !d.IsFloat() {
			return nil, bad(name, ErrCorrupt, "original dtype %q", text)
		}
		dtypes[name] = d
	}
	return dtypes, nil
}

// transposedWeights reads the metadata key that names the weights which the
// checkpoint stores as in×out.
func (m *Model) transposedWeights() (map[string]bool, error) {
	text, ok := m.file.Metadata()[transposedKey]
	if !ok {
		return nil, nil
	}
	var names []string
	if err := json.Unmarshal([]byte(text), &names); err != nil {
		return nil, fmt.Errorf("metadata %s: %w: %w", transposedKey, ErrCorrupt, err)
	}
	set := make(map[string]bool, len(names))
	for _, name := range names {
		set[name] = true
	}
	return set, nil
}

// maxDims is more dimensions than any layer's weight has.
const maxDims = 8

// readSpec reads a compressed weight's shape and holds all its tensors against
// it.
func (m *Model) readSpec(name string, s scheme, transposed bool) (Spec, error) {
	spec := Spec{Name: name, Transposed: transposed, Bits: s.bits, Granularity: s.granularity, GroupSize: s.groupSize, Symmetric: s.symmetric}
	shape, ok := m.file.Lookup(name + shapeSuffix)
	if !ok {
		return spec, bad(name+shapeSuffix, ErrCorrupt, "is missing")
	}
	if shape.DType != dtype.I64 || len(shape.Shape) != 1 || shape.Shape[0] < 1 || shape.Shape[0] > maxDims {
		return spec, bad(shape.Name, ErrCorrupt, "%s %v, want I64 with 1 to %d dimensions", shape.DType, shape.Shape, maxDims)
	}
	raw := make([]byte, 8*shape.Shape[0])
	if err := m.file.ReadBytes(shape.Name, raw); err != nil {
		return spec, err
	}
	for i := 0; i < len(raw); i += 8 {
		d := int64(binary.LittleEndian.Uint64(raw[i:]))
		if d < 1 || int64(int(d)) != d {
			return spec, badAt(shape.Name, i/8, ErrCorrupt, "dimension %d", d)
		}
		spec.Shape = append(spec.Shape, int(d))
	}
	n, ok := product(spec.Shape)
	if !ok {
		return spec, bad(shape.Name, ErrCorrupt, "%v is too large", spec.Shape)
	}
	spec.Rows, spec.Cols = spec.Shape[0], n/spec.Shape[0]
	if transposed {
		spec.Rows, spec.Cols = spec.Cols, spec.Rows
	}
	scale, ok := m.file.Lookup(name + scaleSuffix)
	if !ok {
		return spec, bad(name+scaleSuffix, ErrCorrupt, "is missing")
	}
	spec.ScaleType = scale.DType
	if err := spec.check(ErrCorrupt); err != nil {
		return spec, err
	}
	return spec, m.checkTensors(spec)
}

func (m *Model) checkTensors(spec Spec) error {
	for _, want := range spec.tensors(nil) {
		got, ok := m.file.Lookup(want.Name)
		if !ok {
			return bad(want.Name, ErrCorrupt, "is missing")
		}
		if got.DType != want.DType || !slices.Equal(got.Shape, want.Shape) {
			return bad(want.Name, ErrCorrupt, "%s %v, want %s %v", got.DType, got.Shape, want.DType, want.Shape)
		}
	}
	if spec.Symmetric {
		if t, ok := m.file.Lookup(spec.Name + zeroSuffix); ok {
			return bad(t.Name, ErrCorrupt, "zero points of a symmetric weight")
		}
	}
	return nil
}

// SourceConfig returns config.json as it came with the checkpoint: without what
// tells of the compression.
func (m *Model) SourceConfig() ([]byte, error) {
	data, err := readFile(filepath.Join(filepath.Dir(m.file.Path()), ConfigName))
	if err != nil {
		return nil, err
	}
	config, err := Input{Config: data}.sourceConfig()
	if err != nil {
		return nil, err
	}
	delete(config, "quantization_config")
	delete(config, "written_by")
	return json.Marshal(config)
}

// Architecture returns fettle's name of the architecture, from config.json.
func (m *Model) Architecture() string { return m.architecture }

// Tensors lists the tensors as if dense: the original's names, shapes and
// dtypes, in the order of the files.
func (m *Model) Tensors() []loader.Tensor { return slices.Clone(m.tensors) }

// Specs returns how each compressed weight is stored, by name.
func (m *Model) Specs() []Spec {
	var specs []Spec
	for _, name := range slices.Sorted(maps.Keys(m.specs)) {
		specs = append(specs, m.specs[name])
	}
	return specs
}

// Size returns the bytes of the safetensors files.
func (m *Model) Size() int64 { return m.file.Size() }

// Close releases the files.
func (m *Model) Close() error { return m.file.Close() }

// ReadRowFloat32 reads one row of a kept tensor of two dimensions, as
// loader.Checkpoint.ReadRowFloat32 does.
func (m *Model) ReadRowFloat32(name string, row int, dst []float32) error {
	if _, ok := m.specs[name]; ok {
		return bad(name, ErrUnsupported, "is compressed: read all of it")
	}
	return m.file.ReadRowFloat32(name, row, dst)
}

// ReadFloat32 reads a tensor's values, row-major, dequantized where it is
// compressed, into dst, which must have as many elements.
func (m *Model) ReadFloat32(name string, dst []float32) error {
	spec, ok := m.specs[name]
	if !ok {
		return m.file.ReadFloat32(name, dst)
	}
	if len(dst) != spec.Rows*spec.Cols {
		return bad(name, ErrInput, "%d values asked of %d elements", len(dst), spec.Rows*spec.Cols)
	}
	s, err := m.Solution(name)
	if err != nil {
		return err
	}
	s.Weight(dst)
	return nil
}

// Solution reads the codes and the grid of a compressed weight. What the file
// does not hold (method, bias, errors) is zero.
func (m *Model) Solution(name string) (*layer.Solution, error) {
	spec, ok := m.specs[name]
	if !ok {
		return nil, bad(name, ErrInput, "is not compressed")
	}
	s := &layer.Solution{Layer: name, Rows: spec.Rows, Cols: spec.Cols, Transposed: spec.Transposed, Grid: layer.Grid{
		Bits: spec.Bits, Granularity: spec.Granularity, GroupSize: spec.GroupSize,
		Symmetric: spec.Symmetric, ScaleType: spec.ScaleType,
	}}
	var err error
	if s.Grid.Scales, err = m.readScales(spec); err != nil {
		return nil, err
	}
	if s.Grid.Zeros, err = m.readZeros(spec); err != nil {
		return nil, err
	}
	packed, err := m.read(name + packedSuffix)
	if err != nil {
		return nil, err
	}
	s.Codes = make([]int8, spec.Rows*spec.Cols)
	if err := pack.UnpackRows(s.Codes, packed, spec.Rows, spec.Cols, spec.Bits); err != nil {
		return nil, bad(name+packedSuffix, ErrCorrupt, "%v", err)
	}
	return s, nil
}

func (m *Model) readScales(spec Spec) ([]float32, error) {
	name := spec.Name + scaleSuffix
	n, _ := product(spec.scaleShape())
	scales := make([]float32, n)
	if err := m.file.ReadFloat32(name, scales); err != nil {
		return nil, err
	}
	for i, v := range scales {
		if !finite(v * (1 << 8)) { // the largest weight is below scale·2⁸
			return nil, badAt(name, i, ErrNotFinite, "scale %v", v)
		}
		if v <= 0 {
			return nil, badAt(name, i, ErrCorrupt, "scale %v is not positive", v)
		}
	}
	return scales, nil
}

func (m *Model) readZeros(spec Spec) ([]int8, error) {
	if spec.Symmetric {
		return nil, nil
	}
	name := spec.Name + zeroSuffix
	raw, err := m.read(name)
	if err != nil {
		return nil, err
	}
	if spec.Granularity == layer.PerTensor {
		zero := int8(raw[0])
		if lo, hi := layer.CodeRange(spec.Bits); int(zero) < lo || int(zero) > hi {
			return nil, badAt(name, 0, ErrCorrupt, "zero point %d outside %d…%d", zero, lo, hi)
		}
		return []int8{zero}, nil
	}
	zeros := make([]int8, spec.Rows*spec.scalesPerRow())
	if err := pack.UnpackColumns(zeros, raw, spec.Rows, spec.scalesPerRow(), spec.Bits); err != nil {
		return nil, bad(name, ErrCorrupt, "%v", err)
	}
	return zeros, nil
}

// read returns the bytes of a tensor of the file.
func (m *Model) read(name string) ([]byte, error) {
	t, ok := m.file.Lookup(name)
	if !ok {
		return nil, bad(name, ErrCorrupt, "is missing")
	}
	raw := make([]byte, t.Bytes())
	return raw, m.file.ReadBytes(name, raw)
}
