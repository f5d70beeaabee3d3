package export

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pack"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
)

// Spec says how a layer's weight is stored, without its codes: enough for
// exact sizes.
type Spec struct {
	Name       string // the weight tensor's name, e.g. module.conv1.weight
	Shape      []int  // its shape as stored in the checkpoint
	Rows, Cols int    // of its out×in matrix
	Transposed bool   // the checkpoint stores it as in×out

	// How its codes are stored; all zero where the weight is stored as values.
	Format      layer.Format
	Bits        int
	Granularity layer.Granularity
	GroupSize   int // 0 unless PerGroup
	Symmetric   bool
	ScaleType   dtype.DType

	// ValueType is the type of a weight that is stored as values; Invalid for codes.
	ValueType dtype.DType

	Pruned  Sparsity // the zero value for a weight that is not pruned
	LowRank LowRank  // the zero value for a weight without a low-rank term
}

// valued reports whether the weight is stored as values and not as codes.
func (s Spec) valued() bool { return s.ValueType != dtype.Invalid }

// masked reports whether only survivors are stored.
func (s Spec) masked() bool { return s.Pruned.Layout != MaskNone }

// plain reports whether the weight keeps its name and shape, with other values.
func (s Spec) plain() bool { return s.valued() && !s.masked() }

// SpecOf returns how a solution will be stored: in the smallest layout where it is
// pruned, without a look for a pattern, and its low-rank term as factors.
func SpecOf(name string, shape []int, s *layer.Solution) Spec {
	spec := Spec{
		Name: name, Shape: shape, Rows: s.Rows, Cols: s.Cols,
		Format: s.Grid.Format, Bits: s.Grid.Bits, Granularity: s.Grid.Granularity, GroupSize: s.Grid.GroupSize,
		Symmetric: s.Grid.Symmetric, ScaleType: s.Grid.ScaleType, Transposed: s.Transposed,
		ValueType: s.ValueType, LowRank: lowRankOf(s.LowRank),
	}
	if s.Mask != nil {
		spec.Pruned.Survivors = s.Mask.Survivors()
		return spec.Smallest()
	}
	return spec
}

// Bytes returns the bytes of the tensors that replace the weight: codes or values,
// mask, scales, zero points or global scale, shape, and low-rank factors, without
// the file's header.
func (s Spec) Bytes() int64 {
	return dataBytes(s.tensors(nil))
}

// The suffixes of the tensors that replace a weight.
const (
	packedSuffix = "_packed"
	scaleSuffix  = "_scale"
	shapeSuffix  = "_shape"
	zeroSuffix   = "_zero_point"
	globalSuffix = "_global_scale"
)

// tensors lists what replaces the weight, its codes first. The solution is asked
// for when one of them is written; nil will do for all else.
func (s Spec) tensors(solution func(name string) (*layer.Solution, error)) []safetensors.Source {
	from := func(write func(io.Writer, *layer.Solution) error) func(io.Writer) error {
		return func(w io.Writer) error {
			found, err := solution(s.Name)
			if err != nil {
				return err
			}
			return write(w, found)
		}
	}
	list := []safetensors.Source{s.weightSource(from)}
	list = append(list, s.maskSources(from)...)
	if !s.valued() {
		list = append(list, s.gridSources(from)...)
	}
	return append(list, s.lowRankSources(from)...)
}

// weightSource is the tensor of the codes or the values.
func (s Spec) weightSource(from func(func(io.Writer, *layer.Solution) error) func(io.Writer) error) safetensors.Source {
	if s.masked() {
		t := s.survivorsSource()
		t.Write = from(s.writeSurvivors)
		return t
	}
	t := safetensors.Source{Name: s.codesName(), Write: from(s.writeCodes)}
	if s.plain() {
		t.DType, t.Shape, t.Write = s.ValueType, s.Shape, from(s.writePlain)
	} else {
		t.DType, t.Shape = s.codesLayout()
	}
	return t
}

// gridSources are the tensors of the codes' grid, and of their shape.
func (s Spec) gridSources(from func(func(io.Writer, *layer.Solution) error) func(io.Writer) error) []safetensors.Source {
	list := []safetensors.Source{{
		Name: s.Name + scaleSuffix, DType: s.storedScaleType(), Shape: s.scaleShape(),
		Write: from(s.writeScales),
	}}
	if s.Format == layer.NVFP4 {
		list = append(list, safetensors.Source{
			Name: s.Name + globalSuffix, DType: dtype.F32, Shape: []int{1},
			Write: from(s.writeGlobal),
		})
	}
	if s.Format == layer.Integer && !s.masked() {
		list = append(list, safetensors.Source{
			Name: s.Name + shapeSuffix, DType: dtype.I64, Shape: []int{len(s.Shape)},
			Write: s.writeShape,
		})
	}
	if !s.Symmetric {
		zero := safetensors.Source{Name: s.Name + zeroSuffix, Write: from(s.writeZeros)}
		zero.DType, zero.Shape = s.zeroLayout()
		list = append(list, zero)
	}
	return list
}

// codesName returns the name of the tensor that holds the codes or the values.
func (s Spec) codesName() string {
	switch {
	case s.plain():
		return s.Name
	case s.compressedTensorsSparse() != "":
		return moduleOf(s.Name) + ctCompressed
	case s.valued():
		return s.Name + valuesSuffix
	}
	return codesName(s.Name, s.scheme())
}

func codesName(weight string, s scheme) string {
	if s.format == layer.FP8 && !s.sparse {
		return weight
	}
	return weight + packedSuffix
}

func (s Spec) codesLayout() (dtype.DType, []int) {
	switch {
	case s.Format == layer.Integer:
		return dtype.I32, []int{s.Rows, pack.Words(s.Cols, s.Bits)}
	case s.Format != layer.FP8:
		return dtype.U8, []int{s.Rows, s.Cols / 2}
	case s.Transposed:
		return dtype.F8E4M3, []int{s.Rows, s.Cols}
	default:
		return dtype.F8E4M3, s.Shape
	}
}

// storedScaleType is the type of the scales' tensor: E8M0 is written as U8.
func (s Spec) storedScaleType() dtype.DType {
	if s.ScaleType == dtype.F8E8M0 {
		return dtype.U8
	}
	return s.ScaleType
}

// limit is at least the largest value of a grid of scale 1.
func (s Spec) limit() float32 {
	if f := s.Format.Float(); f != nil {
		return float32(f.Largest())
	}
	return 1 << 8
}

// scaleShape is the shape of the scales, and of the zero points unpacked.
func (s Spec) scaleShape() []int {
	if s.Granularity == layer.PerTensor {
		return []int{1}
	}
	return []int{s.Rows, s.scalesPerRow()}
}

func (s Spec) scalesPerRow() int {
	if s.Granularity == layer.PerGroup && s.GroupSize > 0 {
		return 1 + (s.Cols-1)/s.GroupSize
	}
	return 1
}

func (s Spec) zeroLayout() (dtype.DType, []int) {
	if s.Granularity == layer.PerTensor {
		return dtype.I8, []int{1}
	}
	return dtype.I32, []int{pack.Words(s.Rows, s.Bits), s.scalesPerRow()}
}

// writeCodes packs a block of rows at a time, so that the packed tensor need
// not be held beside the codes.
func (s Spec) writeCodes(w io.Writer, from *layer.Solution) error {
	rowBytes := s.rowBytes()
	block := max(1, 1<<16/rowBytes)
	buf := make([]byte, min(block, s.Rows)*rowBytes)
	for row := 0; row < s.Rows; row += block {
		n := min(block, s.Rows-row)
		if err := s.pack(buf[:n*rowBytes], from.Codes[row*s.Cols:][:n*s.Cols], n); err != nil {
			return &TensorError{Tensor: s.Name, Index: -1, Err: err}
		}
		if _, err := w.Write(buf[:n*rowBytes]); err != nil {
			return err
		}
	}
	return nil
}

// rowBytes returns the bytes of a row of packed codes.
func (s Spec) rowBytes() int {
	switch s.Format {
	case layer.Integer:
		return 4 * pack.Words(s.Cols, s.Bits)
	case layer.FP8:
		return s.Cols
	default:
		return s.Cols / 2
	}
}

func (s Spec) pack(dst []byte, codes []int8, rows int) error {
	switch s.Format {
	case layer.Integer:
		return pack.Rows(dst, codes, rows, s.Cols, s.Bits)
	case layer.FP8:
		return pack.FP8(dst, codes)
	default:
		return pack.FP4(dst, codes)
	}
}

// unpack is the inverse of pack for all rows.
func (s Spec) unpack(codes []int8, src []byte) error {
	switch s.Format {
	case layer.Integer:
		return pack.UnpackRows(codes, src, s.Rows, s.Cols, s.Bits)
	case layer.FP8:
		return pack.UnpackFP8(codes, src)
	default:
		return pack.UnpackFP4(codes, src)
	}
}

func (s Spec) writeScales(w io.Writer, from *layer.Solution) error {
	scales := make([]float32, len(from.Grid.Scales))
	for i := range scales {
		scales[i] = from.Grid.Stored(i)
	}
	raw := make([]byte, len(scales)*s.ScaleType.Size())
	if err := s.ScaleType.FromFloat32(raw, scales); err != nil {
		return bad(s.Name, ErrUnsupported, "%v", err)
	}
	if err := checkFinite(s.Name+scaleSuffix, s.ScaleType, raw); err != nil {
		return err
	}
	_, err := w.Write(raw)
	return err
}

func (s Spec) writeGlobal(w io.Writer, from *layer.Solution) error {
	_, err := w.Write(binary.LittleEndian.AppendUint32(nil, math.Float32bits(from.Grid.Global)))
	return err
}

func (s Spec) writeShape(w io.Writer) error {
	var raw []byte
	for _, d := range s.Shape {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(d))
	}
	_, err := w.Write(raw)
	return err
}

func (s Spec) writeZeros(w io.Writer, from *layer.Solution) error {
	zeros := from.Grid.Zeros
	raw := []byte{byte(zeros[0])}
	if s.Granularity != layer.PerTensor {
		raw = make([]byte, 4*pack.Words(s.Rows, s.Bits)*s.scalesPerRow())
		if err := pack.Columns(raw, zeros, s.Rows, s.scalesPerRow(), s.Bits); err != nil {
			return &TensorError{Tensor: s.Name + zeroSuffix, Index: -1, Err: err}
		}
	}
	_, err := w.Write(raw)
	return err
}

// fits reports the first thing that keeps the tensor from being stored so.
func (s Spec) fits(t loader.Tensor) error {
	if s.Name != t.Name {
		return bad(t.Name, ErrInput, "has the spec of %s", s.Name)
	}
	if !t.DType.IsFloat() {
		return bad(s.Name, ErrInput, "a weight of dtype %s cannot be compressed", t.DType)
	}
	if !slices.Equal(s.Shape, t.Shape) {
		return bad(s.Name, ErrInput, "shape %v, the checkpoint has %v", s.Shape, t.Shape)
	}
	return s.check(ErrInput)
}

// check reports what makes the spec inconsistent in itself, as an error of the
// given kind.
func (s Spec) check(kind error) error {
	if err := s.checkWeights(); err != nil {
		return bad(s.Name, kind, "%v", err)
	}
	n, ok := product(s.Shape)
	switch {
	case s.Format.GroupSize() > 0 && s.Cols%s.Format.GroupSize() != 0:
		return bad(s.Name, kind, "%d inputs are not groups of %d, as %s has them", s.Cols, s.Format.GroupSize(), s.Format)
	case !ok || n == 0 || len(s.Shape) == 0:
		return bad(s.Name, kind, "a weight of shape %v cannot be compressed", s.Shape)
	case s.Transposed && (len(s.Shape) != 2 || s.Cols != s.Shape[0] || s.Rows != s.Shape[1]):
		return bad(s.Name, kind, "shape %v is not that of a transposed %d×%d matrix", s.Shape, s.Rows, s.Cols)
	case !s.Transposed && (s.Rows != s.Shape[0] || s.Cols != n/s.Rows):
		return bad(s.Name, kind, "shape %v is not that of a %d×%d matrix", s.Shape, s.Rows, s.Cols)
	}
	if err := s.Pruned.check(s.Rows, s.Cols); err != nil {
		return bad(s.Name, kind, "%v", err)
	}
	if err := s.LowRank.check(s); err != nil {
		return bad(s.Name, kind, "%v", err)
	}
	return nil
}

// checkWeights reports what is wrong with the kind of the codes or values.
func (s Spec) checkWeights() error {
	if s.valued() {
		switch {
		case !writable(s.ValueType):
			return fmt.Errorf("values of dtype %s", s.ValueType)
		case s.scheme() != scheme{sparse: s.masked()} || s.ScaleType != dtype.Invalid:
			return fmt.Errorf("both values and a grid of codes")
		}
		return nil
	}
	if err := s.scheme().check(); err != nil {
		return err
	}
	if s.ScaleType != s.Format.ScaleType(s.ScaleType) || (s.Format.ScaleType(dtype.Invalid) == dtype.Invalid && !writable(s.ScaleType)) {
		return fmt.Errorf("scales of dtype %s", s.ScaleType)
	}
	return nil
}

// compressed lists the tensors of the compressed output, file by file.
func (s *source) compressed() (layout, error) {
	var groups [][]safetensors.Source
	for _, t := range s.Checkpoint.Tensors() {
		if spec, ok := s.Specs[t.Name]; ok {
			groups = append(groups, spec.tensors(s.solution))
		} else if weight, ok := s.keptAs(t); ok {
			groups = append(groups, s.keptSources(t, weight))
		} else {
			groups = append(groups, []safetensors.Source{streamed(t, s.kept)})
		}
	}
	if err := s.checkNames(slices.Concat(groups...)); err != nil {
		return layout{}, err
	}
	meta, err := s.metadata()
	if err != nil {
		return layout{}, err
	}
	return divide(modelStem, meta, groups, s.shardSize()), nil
}

// denseFiles lists the tensors of dense safetensors output, file by file.
func (s *source) denseFiles() layout {
	var groups [][]safetensors.Source
	for _, t := range s.Checkpoint.Tensors() {
		groups = append(groups, []safetensors.Source{streamed(t, s.dense)})
	}
	return divide(denseStem, sourceMetadata(s.Checkpoint), groups, s.shardSize())
}

func (in Input) shardSize() int64 { return cmp.Or(in.ShardSize, DefaultShardSize) }

// aligned orders tensors by the size of their elements, the largest first and
// else as they were, so that each begins at a multiple of it.
func aligned(list []safetensors.Source) {
	slices.SortStableFunc(list, func(a, b safetensors.Source) int { return cmp.Compare(b.DType.Size(), a.DType.Size()) })
}

// streamed is a tensor whose bytes are asked for when they are written.
func streamed(t loader.Tensor, read func(loader.Tensor) ([]byte, error)) safetensors.Source {
	return safetensors.Source{Name: t.Name, DType: t.DType, Shape: t.Shape, Write: func(w io.Writer) error {
		raw, err := read(t)
		if err != nil {
			return err
		}
		_, err = w.Write(raw)
		return err
	}}
}

// checkNames refuses tensors that would not read back under their names.
func (s *source) checkNames(list []safetensors.Source) error {
	names := make(map[string]dtype.DType, len(list))
	for _, t := range list {
		if _, ok := names[t.Name]; ok {
			return bad(t.Name, ErrInput, "the compressed tensors would take a name that the checkpoint uses already")
		}
		names[t.Name] = t.DType
	}
	owned := map[string]bool{}
	for _, t := range s.Checkpoint.Tensors() {
		name := t.Name
		if weight, ok := s.keptAs(t); ok {
			for _, tensor := range s.Source.tensorsOf(weight) {
				owned[renamed(tensor, weight, name)] = true
			}
		}
		spec, ok := s.specOf(t)
		if !ok {
			continue
		}
		for _, t := range spec.tensors(nil) {
			owned[t.Name] = true
		}
		if spec.valued() {
			continue // config.json names the tensor itself
		}
		if weight, err := resolve(moduleOf(name), configGroup{scheme: spec.scheme()}, names); err != nil || weight != name || strings.HasPrefix(name, "re:") {
			return bad(name, ErrInput, "the names of the checkpoint would make it ambiguous which tensor is compressed")
		}
	}
	if name := orphan(names, func(name string) bool { return owned[name] }); name != "" {
		return bad(name, ErrInput, "the checkpoint holds this weight compressed already")
	}
	return nil
}

// storedType is the type of the weight's values or scales, which is the original
// weight's where the metadata tells of no other.
func (s Spec) storedType() dtype.DType {
	if s.valued() {
		return s.ValueType
	}
	return s.ScaleType
}

// dtypesKey is the metadata key of the original dtypes of compressed weights.
const dtypesKey = "fettle.dtypes"

// transposedKey is the metadata key of the weights that the checkpoint stores
// as in×out; their codes are out×in like all others.
const transposedKey = "fettle.transposed"

// shapesKey is the metadata key of the shapes of weights whose packed codes do
// not tell them: those of convolutions in 4-bit floating-point formats.
const shapesKey = "fettle.shapes"

// hidesShape reports whether nothing but the metadata tells the weight's shape.
func (s Spec) hidesShape() bool {
	return (s.Format == layer.NVFP4 || s.Format == layer.MXFP4) && len(s.Shape) != 2 && !s.masked()
}

// metadata is what a compressed file says of itself: the source's own metadata,
// and the dtypes, shapes and transposed weights that cannot be seen elsewhere.
func (s *source) metadata() (map[string]string, error) {
	m := sourceMetadata(s.Checkpoint)
	dtypes, shapes := map[string]string{}, map[string][]int{}
	var transposed []string
	for _, t := range s.Checkpoint.Tensors() {
		spec, ok := s.specOf(t)
		weight, kept := s.keptAs(t)
		if kept {
			if d, told := s.Source.notes.dtypes[weight]; told {
				dtypes[t.Name] = d.String()
			}
		} else if ok && t.DType != spec.storedType() {
			dtypes[t.Name] = t.DType.String()
		}
		if ok && spec.Transposed || kept && !ok && s.Source.affines[weight].transposed {
			transposed = append(transposed, t.Name)
		}
		if ok && spec.hidesShape() {
			shapes[t.Name] = spec.Shape
		}
	}
	slices.Sort(transposed)
	put := func(key string, entries int, value any) error {
		if entries == 0 {
			return nil
		}
		text, err := json.Marshal(value) // keys come out sorted
		m[key] = string(text)
		return err
	}
	return m, errors.Join(
		put(dtypesKey, len(dtypes), dtypes),
		put(shapesKey, len(shapes), shapes),
		put(transposedKey, len(transposed), transposed))
}

func sourceMetadata(ckpt *loader.Checkpoint) map[string]string {
	m := map[string]string{"format": "pt"}
	maps.Copy(m, ckpt.Metadata())
	delete(m, dtypesKey)
	delete(m, shapesKey)
	delete(m, transposedKey)
	return m
}
