package export

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pack"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
)

// Model is an opened checkpoint whose weights are compressed, some of them or all: an
// output of CompressedTensors, or another program's in a layout of compressed-tensors,
// GPTQ or AWQ. It looks like the dense checkpoint: the original's names, shapes and
// dtypes. Tensors are read on demand, so opening costs the headers alone. It is safe
// for concurrent use.
type Model struct {
	file    *loader.Checkpoint
	config  declared
	text    []byte // of config.json; nil where there is none
	notes   notes
	tensors []loader.Tensor

	// The compressed weights: those in layouts that fettle writes, and others.
	specs       map[string]Spec
	affines     map[string]*affine
	groups      map[string]*configGroup // of both, where they have codes and a config group
	activations map[string][]string     // their activations' scales, which go along
}

// Open opens a folder of a compressed checkpoint, or its weight file or index of shards
// with config.json beside it. What is there is not trusted: missing tensors,
// shapes that do not agree and schemes that fettle does not know are an error
// that is ErrCorrupt. Other methods are a *MethodError.
func Open(ctx context.Context, path string) (*Model, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if info.IsDir() {
		path = modelFile(path)
	}
	file, err := loader.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	m, err := Decode(file)
	if err == nil && m == nil {
		err = notCompressed(filepath.Join(filepath.Dir(path), ConfigName))
	}
	if err != nil {
		_ = file.Close() // the error that matters is the one returned
		return nil, err
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

// notCompressed says why a config.json tells of no compressed weights.
func notCompressed(path string) error {
	text, err := readFile(path)
	if err == nil {
		_, err = parseConfig(text, nil)
		err = fmt.Errorf("%s: %w: %w", path, ErrCorrupt, err)
	}
	return err
}

// quantizeName is where GPTQ's early programs put their config.
const quantizeName = "quantize_config.json"

// Decode returns an open checkpoint as one of weights that are compressed; nil where
// the config.json beside it says of none. It reads headers and small tensors alone.
// Of a file of another name than Hugging Face's that looks uncompressed, what lies
// beside it says nothing. The checkpoint must stay open; Close closes it. Errors are those of Open.
func Decode(file *loader.Checkpoint) (*Model, error) {
	dir, name := file.Path(), ModelName
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		dir, name = filepath.Split(dir)
	}
	if name != ModelName && name != IndexName && !looksCompressed(file) {
		return nil, nil // a file of its own, such as what Dense writes
	}
	text, err := readFile(filepath.Join(dir, ConfigName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	gptq, err := readFile(filepath.Join(dir, quantizeName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if !says(text) && gptq == nil {
		return nil, missingConfig(file)
	}
	config, err := parseConfig(text, gptq)
	if unknown := (*MethodError)(nil); errors.As(err, &unknown) {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, ConfigName), err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", filepath.Join(dir, ConfigName), ErrCorrupt, err)
	}
	m := &Model{
		file: file, config: config, text: text, specs: map[string]Spec{}, affines: map[string]*affine{},
		groups: map[string]*configGroup{}, activations: map[string][]string{},
	}
	if err := m.arrange(); err != nil {
		return nil, fmt.Errorf("%s: %w", file.Path(), err)
	}
	return m, nil
}

// looksCompressed reports whether a file has tensors that only compressed weights have.
func looksCompressed(file *loader.Checkpoint) bool {
	return slices.ContainsFunc(file.Tensors(), func(t loader.Tensor) bool {
		return slices.ContainsFunc([]string{packedSuffix, scaleSuffix, ".qweight", ctCompressed}, func(end string) bool { return strings.HasSuffix(t.Name, end) })
	})
}

// says reports whether a config.json says that weights are compressed. One that cannot
// be read says nothing here.
func says(text []byte) bool {
	var c config
	err := json.Unmarshal(text, &c)
	return err == nil && (c.Quantization != nil && string(c.Quantization) != "null")
}

// missingConfig returns an error where tensors are GPTQ's or AWQ's all the same.
func missingConfig(file *loader.Checkpoint) error {
	for _, t := range file.Tensors() {
		if module, ok := strings.CutSuffix(t.Name, ".qweight"); ok {
			if _, scaled := file.Lookup(module + ".scales"); scaled {
				return fmt.Errorf("%s: %w", file.Path(), bad(t.Name, ErrCorrupt,
					"is GPTQ's or AWQ's, but no %s or %s beside the weights says how it is stored: put it there", ConfigName, quantizeName))
			}
		}
	}
	return nil
}

// arranging is the state of arrange.
type arranging struct {
	*Model
	names    map[string]dtype.DType
	weightOf map[string]string // the weight that a tensor belongs to
}

// arrange finds the compressed weights and lists all tensors as if dense.
func (m *Model) arrange() (err error) {
	a := arranging{Model: m, names: map[string]dtype.DType{}, weightOf: map[string]string{}}
	for _, t := range m.file.Tensors() {
		a.names[t.Name] = t.DType
	}
	if m.notes, err = m.readNotes(); err != nil {
		return err
	}
	if m.config.gptq != nil {
		err = a.addGPTQ()
	} else {
		err = a.addTargets()
	}
	if err != nil {
		return err
	}
	for _, t := range m.file.Tensors() {
		weight, ok := a.weightOf[t.Name]
		switch {
		case !ok:
			m.tensors = append(m.tensors, t)
		case t.Name == m.codesOf(weight):
			m.tensors = append(m.tensors, m.denseTensor(weight))
		}
	}
	return nil
}

// codesOf returns the tensor of a compressed weight that stands for it in lists.
func (m *Model) codesOf(weight string) string {
	if a := m.affines[weight]; a != nil {
		return a.codesName()
	}
	return m.specs[weight].codesName()
}

func (m *Model) denseTensor(weight string) loader.Tensor {
	a := m.affines[weight]
	if a == nil {
		return m.specs[weight].denseTensor(m.notes.dtypes)
	}
	return loader.Tensor{Name: weight, DType: a.scaleType, Shape: a.shape()}
}

// addGPTQ finds the weights of GPTQ and AWQ.
func (a *arranging) addGPTQ() error {
	for _, name := range slices.Sorted(maps.Keys(a.names)) {
		module, ok := strings.CutSuffix(name, ".qweight")
		if !ok || module == "" {
			continue
		}
		s, err := a.config.gptq.schemeOf(module)
		if err != nil {
			return err
		}
		text, err := s.groupText()
		if err != nil {
			return err
		}
		// GPT-2's layers are in×out, and GPTQ's programs turn them round.
		transposed := a.config.modelType == "gpt2" && strings.Contains(module, ".c_") || a.notes.transposed[module+weightSuffix]
		g := &configGroup{affine: &s, format: s.layout, text: text}
		if err := a.addAffine(module+weightSuffix, g, transposed); err != nil {
			return err
		}
	}
	return nil
}

func (a *arranging) addAffine(weight string, g *configGroup, transposed bool) error {
	found, err := a.readAffine(weight, *g.affine, transposed)
	if err != nil {
		return err
	}
	a.affines[weight], a.groups[weight] = found, g
	return a.own(weight, found.tensors)
}

// addTargets finds the weights that config groups target, and those that config.json's
// key of fettle's own tells of.
func (a *arranging) addTargets() error {
	for i := range a.config.groups {
		g := &a.config.groups[i]
		for _, target := range g.targets {
			if strings.HasPrefix(target, "re:") {
				continue
			}
			weight, err := resolve(target, *g, a.names)
			if err != nil && isClass(target) {
				continue
			}
			if err != nil {
				return fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			if err := a.add(weight, g); err != nil {
				return err
			}
		}
	}
	for _, weight := range slices.Sorted(maps.Keys(a.config.weights)) {
		if a.has(weight) {
			continue // a target's
		}
		entry := a.config.weights[weight]
		if entry.Values == "" {
			return bad(weight, ErrCorrupt, "has codes by %s's key %q, but no config group targets %q", ConfigName, ownKey, moduleOf(weight))
		}
		if err := a.add(weight, &configGroup{scheme: scheme{sparse: entry.Mask != MaskNone}}); err != nil {
			return err
		}
		delete(a.groups, weight)
	}
	if err := a.addSurvivors(); err != nil {
		return err
	}
	owned := func(name string) bool { _, ok := a.weightOf[name]; return ok }
	for _, weight := range stems(a.names, owned) {
		if owned(weight + packedSuffix) {
			continue
		}
		if err := a.addMatched(weight); err != nil {
			return err
		}
	}
	return nil
}

// addMatched adds a weight that no target names exactly.
func (a *arranging) addMatched(weight string) error {
	module, dims := moduleOf(weight), 2
	for _, name := range []string{weight, weight + packedSuffix} {
		if t, ok := a.file.Lookup(name); ok {
			dims = len(t.Shape)
		}
	}
	if t, ok := a.file.Lookup(weight + shapeSuffix); ok && len(t.Shape) == 1 {
		dims = t.Shape[0]
	}
	ignored, err := a.config.ignored(module, dims)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if ignored {
		return bad(weight, ErrCorrupt, "is stored compressed, but %s says to ignore %q", ConfigName, module)
	}
	g, err := a.config.groupFor(module, dims)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if g == nil {
		return bad(weight, ErrCorrupt, "is stored compressed but no config group targets %q", module)
	}
	return a.add(weight, g)
}

// addSurvivors finds weights that another program has stored in compressed-tensors'
// sparse layouts.
func (a *arranging) addSurvivors() error {
	if a.config.sparse != "sparse-bitmask" && a.config.sparse != "sparse-24-bitmask" {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(a.names)) {
		module, ok := strings.CutSuffix(name, ctCompressed)
		weight := module + weightSuffix
		if _, owned := a.weightOf[name]; !ok || owned {
			continue
		}
		t, _ := a.file.Lookup(name)
		shape, err := a.readShape(module + ctShape)
		if err != nil {
			return err
		}
		entry := storage{Values: t.DType.String(), Mask: MaskBits, Survivors: int(t.Elements()), Shape: shape}
		if a.config.sparse == "sparse-24-bitmask" {
			entry.Pattern = &[2]int{2, 4}
		}
		if a.config.weights == nil {
			a.config.weights = map[string]storage{}
		}
		a.config.weights[weight] = entry
		if err := a.add(weight, &configGroup{scheme: scheme{sparse: true}}); err != nil {
			return err
		}
		delete(a.groups, weight)
	}
	return nil
}

func (m *Model) has(weight string) bool {
	_, ok := m.specs[weight]
	return ok || m.affines[weight] != nil
}

// add adds a weight of a config group.
func (a *arranging) add(weight string, g *configGroup) error {
	if a.has(weight) {
		return bad(weight, ErrCorrupt, "stands there twice")
	}
	if g.affine != nil {
		if err := a.addAffine(weight, g, a.notes.transposed[weight]); err != nil {
			return err
		}
	} else {
		spec, err := a.readSpec(weight, g.scheme, a.config.weights[weight], a.notes)
		if err != nil {
			return err
		}
		a.specs[weight], a.groups[weight] = spec, g
		var names []string
		for _, t := range spec.tensors(nil) {
			names = append(names, t.Name)
		}
		if err := a.own(weight, names); err != nil {
			return err
		}
	}
	if _, dense := a.names[weight]; dense && a.weightOf[weight] != weight {
		return bad(weight, ErrCorrupt, "stands there twice")
	}
	return nil
}

// activationParts are the tensors of a module that tell how its activations are
// quantized when it runs.
var activationParts = []string{"input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point"}

// own notes which tensors belong to a weight.
func (a *arranging) own(weight string, tensors []string) error {
	if g := a.groups[weight]; g != nil && moduleOf(weight) != weight {
		for _, part := range activationParts {
			name := moduleOf(weight) + "." + part
			if _, ok := a.names[name]; ok {
				a.activations[weight] = append(a.activations[weight], name)
			}
		}
	}
	for _, name := range append(slices.Clone(tensors), a.activations[weight]...) {
		if _, taken := a.weightOf[name]; taken {
			return bad(name, ErrCorrupt, "belongs to two weights")
		}
		a.weightOf[name] = weight
	}
	return nil
}

func (s Spec) denseTensor(dtypes map[string]dtype.DType) loader.Tensor {
	t := loader.Tensor{Name: s.Name, DType: s.storedType(), Shape: s.Shape}
	if !writable(t.DType) {
		t.DType = dtype.F32 // of scales in 8 bits; the metadata knows better
	}
	if d, ok := dtypes[s.Name]; ok {
		t.DType = d
	}
	return t
}

// notes is what the metadata tells of weights, by name.
type notes struct {
	dtypes     map[string]dtype.DType // original ones, where they are not the scales'
	shapes     map[string][]int       // where the tensors do not tell them
	transposed map[string]bool        // the checkpoint stores them as in×out
}

func (m *Model) readNotes() (n notes, err error) {
	var dtypes map[string]string
	var transposed []string
	for key, value := range map[string]any{dtypesKey: &dtypes, shapesKey: &n.shapes, transposedKey: &transposed} {
		text, ok := m.file.Metadata()[key]
		if !ok {
			continue
		}
		if err := json.Unmarshal([]byte(text), value); err != nil {
			return n, fmt.Errorf("metadata %s: %w: %w", key, ErrCorrupt, err)
		}
	}
	n.dtypes = make(map[string]dtype.DType, len(dtypes))
	for name, text := range dtypes {
		d, err := dtype.Parse(text)
		if err != nil || !d.IsFloat() {
			return n, bad(name, ErrCorrupt, "original dtype %q", text)
		}
		n.dtypes[name] = d
	}
	n.transposed = make(map[string]bool, len(transposed))
	for _, name := range transposed {
		n.transposed[name] = true
	}
	return n, nil
}

// maxDims is more dimensions than any layer's weight has.
const maxDims = 8

// readSpec reads a compressed weight's shape and holds all its tensors against
// it.
func (m *Model) readSpec(name string, s scheme, entry storage, notes notes) (spec Spec, err error) {
	spec = Spec{
		Name: name, Transposed: notes.transposed[name],
		Format: s.format, Bits: s.bits, Granularity: s.granularity, GroupSize: s.groupSize, Symmetric: s.symmetric,
	}
	if err := entry.apply(&spec); err != nil {
		return spec, bad(name, ErrCorrupt, "%v", err)
	}
	if spec.masked() != s.sparse {
		return spec, bad(name, ErrCorrupt, "mask layout %q, its config group's format %q", entry.Mask, s.formatName())
	}
	switch {
	case spec.masked():
	case spec.valued():
		spec.Shape, err = m.plainShape(name)
	case s.format == layer.Integer:
		spec.Shape, err = m.readShape(name + shapeSuffix)
	default:
		spec.Shape, err = m.codesShape(spec, notes.shapes[name])
	}
	if err != nil {
		return spec, err
	}
	n, ok := product(spec.Shape)
	if !ok || len(spec.Shape) == 0 || spec.Shape[0] < 1 {
		return spec, bad(name+shapeSuffix, ErrCorrupt, "%v is no shape of a weight", spec.Shape)
	}
	spec.Rows, spec.Cols = spec.Shape[0], n/spec.Shape[0]
	if spec.Transposed {
		spec.Rows, spec.Cols = spec.Cols, spec.Rows
	}
	if !spec.valued() {
		scale, ok := m.file.Lookup(name + scaleSuffix)
		if !ok {
			return spec, bad(name+scaleSuffix, ErrCorrupt, "is missing")
		}
		spec.ScaleType = spec.Format.ScaleType(scale.DType)
	}
	if err := spec.check(ErrCorrupt); err != nil {
		return spec, err
	}
	return spec, m.checkTensors(spec)
}

// readShape reads a tensor that holds a weight's shape.
func (m *Model) readShape(name string) (shape []int, err error) {
	t, ok := m.file.Lookup(name)
	if !ok {
		return nil, bad(name, ErrCorrupt, "is missing")
	}
	if t.DType != dtype.I64 || len(t.Shape) < 1 || t.Elements() != int64(t.Shape[0]) || t.Shape[0] < 1 || t.Shape[0] > maxDims {
		return nil, bad(name, ErrCorrupt, "%s %v, want I64 with 1 to %d dimensions", t.DType, t.Shape, maxDims)
	}
	raw := make([]byte, 8*t.Shape[0])
	if err := m.file.ReadBytes(name, raw); err != nil {
		return nil, err
	}
	for i := 0; i < len(raw); i += 8 {
		d := int64(binary.LittleEndian.Uint64(raw[i:]))
		if d < 1 || int64(int(d)) != d {
			return nil, badAt(name, i/8, ErrCorrupt, "dimension %d", d)
		}
		shape = append(shape, int(d))
	}
	return shape, nil
}

// plainShape returns the shape of a weight whose values stand under its own name.
func (m *Model) plainShape(name string) ([]int, error) {
	t, ok := m.file.Lookup(name)
	if !ok {
		return nil, bad(name, ErrCorrupt, "is missing")
	}
	return slices.Clone(t.Shape), nil
}

// codesShape returns the shape of a floating-point weight from that of its
// codes, or as the metadata tells it.
func (m *Model) codesShape(spec Spec, told []int) ([]int, error) {
	if told != nil {
		return told, nil
	}
	codes, ok := m.file.Lookup(spec.codesName())
	if !ok {
		return nil, bad(spec.codesName(), ErrCorrupt, "is missing")
	}
	shape := slices.Clone(codes.Shape)
	if spec.Format != layer.FP8 {
		if len(shape) != 2 || shape[1] > math.MaxInt/2 {
			return nil, bad(codes.Name, ErrCorrupt, "%v, want two dimensions", shape)
		}
		shape[1] *= 2
	}
	if spec.Transposed {
		slices.Reverse(shape)
	}
	return shape, nil
}

// checkShape compares a tensor that holds a shape with the shape.
func (m *Model) checkShape(name string, want []int) error {
	raw, err := m.read(name)
	if err != nil {
		return err
	}
	for i, d := range want {
		if got := binary.LittleEndian.Uint64(raw[8*i:]); got != uint64(d) {
			return badAt(name, i, ErrCorrupt, "dimension %d, want %d", int64(got), d)
		}
	}
	return nil
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
	if known := spec.compressedTensorsSparse(); known != "" {
		if err := m.checkShape(moduleOf(spec.Name)+ctShape, spec.Shape); err != nil {
			return err
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
// tells of the compression; nil where there is none.
func (m *Model) SourceConfig() ([]byte, error) {
	if m.text == nil {
		return nil, nil
	}
	config, err := Input{Config: m.text}.sourceConfig()
	if err != nil {
		return nil, err
	}
	delete(config, "quantization_config")
	delete(config, ownKey)
	delete(config, "written_by")
	return json.Marshal(config)
}

// Architecture returns fettle's name of the architecture, from config.json.
func (m *Model) Architecture() string { return m.config.architecture }

// Tensors lists the tensors as if dense: the original's names, shapes and
// dtypes, in the order of the files.
func (m *Model) Tensors() []loader.Tensor { return slices.Clone(m.tensors) }

// Specs returns how each compressed weight is stored, by name, of those in layouts
// that fettle writes.
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
	if m.has(name) {
		return bad(name, ErrUnsupported, "is compressed: read all of it")
	}
	return m.file.ReadRowFloat32(name, row, dst)
}

// ReadFloat32 reads a tensor's values, row-major, dequantized where it is
// compressed, into dst, which must have as many elements.
func (m *Model) ReadFloat32(name string, dst []float32) error {
	if a := m.affines[name]; a != nil {
		return m.decodeAffine(a, dst)
	}
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

// Solution reads the codes and the grid of a compressed weight, or its values, its
// mask where that is stored, and its low-rank factors, unless they are merged into
// the values. What the file does not hold (method, bias, errors) is zero.
func (m *Model) Solution(name string) (*layer.Solution, error) {
	spec, ok := m.specs[name]
	if !ok {
		return nil, bad(name, ErrInput, "is not compressed")
	}
	s := &layer.Solution{Layer: name, Rows: spec.Rows, Cols: spec.Cols, Transposed: spec.Transposed, ValueType: spec.ValueType}
	var err error
	if s.Mask, err = m.readMask(spec); err != nil {
		return nil, err
	}
	if s.LowRank, err = m.readLowRank(spec); err != nil {
		return nil, err
	}
	if spec.valued() {
		s.Values, err = m.readValues(spec, s.Mask)
	} else {
		err = m.readOnGrid(s, spec)
	}
	if err != nil {
		return nil, err
	}
	if err := s.Check(); err != nil {
		return nil, badSolution(name, ErrCorrupt, err)
	}
	return s, nil
}

// readOnGrid reads a solution's grid and its codes.
func (m *Model) readOnGrid(s *layer.Solution, spec Spec) (err error) {
	s.Grid = layer.Grid{
		Format: spec.Format, Bits: spec.Bits, Granularity: spec.Granularity, GroupSize: spec.GroupSize,
		Symmetric: spec.Symmetric, ScaleType: spec.ScaleType,
	}
	if s.Grid.Scales, s.Grid.Global, err = m.readScales(spec); err != nil {
		return err
	}
	if s.Grid.Zeros, err = m.readZeros(spec); err != nil {
		return err
	}
	if err := s.Grid.Check(spec.Rows, spec.Cols); err != nil {
		return bad(spec.Name, ErrCorrupt, "%v", err)
	}
	s.Codes, err = m.readCodes(spec, &s.Grid, s.Mask)
	return err
}

// readScales reads a weight's scales, NVFP4's as layer.Grid has them, and its
// global scale.
func (m *Model) readScales(spec Spec) (scales []float32, global float32, err error) {
	name := spec.Name + scaleSuffix
	raw, err := m.read(name)
	if err != nil {
		return nil, 0, err
	}
	n, _ := product(spec.scaleShape())
	scales = make([]float32, n)
	if err := spec.ScaleType.ToFloat32(scales, raw); err != nil {
		return nil, 0, bad(name, ErrCorrupt, "%v", err)
	}
	if spec.Format == layer.NVFP4 {
		one := make([]float32, 1)
		if err := m.file.ReadFloat32(spec.Name+globalSuffix, one); err != nil {
			return nil, 0, err
		}
		if global = one[0]; !(global > 0) || !finite(global) {
			return nil, 0, badAt(spec.Name+globalSuffix, 0, ErrCorrupt, "global scale %v is not positive and finite", global)
		}
	}
	for i, v := range scales {
		if global != 0 {
			v /= global
			scales[i] = v
		}
		if !finite(v * spec.limit()) {
			return nil, 0, badAt(name, i, ErrNotFinite, "scale %v", v)
		}
		if v <= 0 {
			return nil, 0, badAt(name, i, ErrCorrupt, "scale %v is not positive", v)
		}
	}
	return scales, global, nil
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
