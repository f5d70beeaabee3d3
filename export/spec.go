package export

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"io"
	"maps"
	"slices"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pack"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
)

// Spec says how a layer's weight is stored, without its codes: enough for
// exact sizes.
type Spec struct {
	Name        string // the weight tensor's name, e.g. module.conv1.weight
	Shape       []int  // its shape as stored in the checkpoint
	Rows, Cols  int    // of its out×in matrix
	Transposed  bool   // the checkpoint stores it as in×out
	Bits        int
	Granularity layer.Granularity
	GroupSize   int // 0 unless PerGroup
	Symmetric   bool
	ScaleType   dtype.DType
}

// SpecOf returns how a solution will be stored.
func SpecOf(name string, shape []int, s *layer.Solution) Spec {
	return Spec{
		Name: name, Shape: shape, Rows: s.Rows, Cols: s.Cols,
		Bits: s.Grid.Bits, Granularity: s.Grid.Granularity, GroupSize: s.Grid.GroupSize,
		Symmetric: s.Grid.Symmetric, ScaleType: s.Grid.ScaleType, Transposed: s.Transposed,
	}
}

// Bytes returns the bytes of the tensors that replace the weight: codes,
// scales, zero points and shape, without the file's header.
func (s Spec) Bytes() int64 {
	return dataBytes(s.tensors(nil))
}

// The suffixes of the tensors that replace a weight.
const (
	packedSuffix = "_packed"
	scaleSuffix  = "_scale"
	shapeSuffix  = "_shape"
	zeroSuffix   = "_zero_point"
)

// tensors lists what replaces the weight. The solution is asked for when one of
// them is written; nil will do for all else.
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
	list := []safetensors.Source{
		{
			Name: s.Name + packedSuffix, DType: dtype.I32, Shape: []int{s.Rows, pack.Words(s.Cols, s.Bits)},
			Write: from(s.writeCodes),
		},
		{
			Name: s.Name + scaleSuffix, DType: s.ScaleType, Shape: s.scaleShape(),
			Write: from(s.writeScales),
		},
		{
			Name: s.Name + shapeSuffix, DType: dtype.I64, Shape: []int{len(s.Shape)},
			Write: s.writeShape,
		},
	}
	if !s.Symmetric {
		zero := safetensors.Source{Name: s.Name + zeroSuffix, Write: from(s.writeZeros)}
		zero.DType, zero.Shape = s.zeroLayout()
		list = append(list, zero)
	}
	return list
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
	rowBytes := 4 * pack.Words(s.Cols, s.Bits)
	block := max(1, 1<<16/rowBytes)
	buf := make([]byte, min(block, s.Rows)*rowBytes)
	for row := 0; row < s.Rows; row += block {
		n := min(block, s.Rows-row)
		if err := pack.Rows(buf[:n*rowBytes], from.Codes[row*s.Cols:][:n*s.Cols], n, s.Cols, s.Bits); err != nil {
			return &TensorError{Tensor: s.Name, Index: -1, Err: err}
		}
		if _, err := w.Write(buf[:n*rowBytes]); err != nil {
			return err
		}
	}
	return nil
}

func (s Spec) writeScales(w io.Writer, from *layer.Solution) error {
	scales := from.Grid.Scales
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
	if err := s.scheme().check(); err != nil {
		return bad(s.Name, kind, "%v", err)
	}
	n, ok := product(s.Shape)
	switch {
	case !writable(s.ScaleType):
		return bad(s.Name, kind, "scales of dtype %s", s.ScaleType)
	case !ok || n == 0 || len(s.Shape) == 0:
		return bad(s.Name, kind, "a weight of shape %v cannot be compressed", s.Shape)
	case s.Transposed && (len(s.Shape) != 2 || s.Cols != s.Shape[0] || s.Rows != s.Shape[1]):
		return bad(s.Name, kind, "shape %v is not that of a transposed %d×%d matrix", s.Shape, s.Rows, s.Cols)
	case !s.Transposed && (s.Rows != s.Shape[0] || s.Cols != n/s.Rows):
		return bad(s.Name, kind, "shape %v is not that of a %d×%d matrix", s.Shape, s.Rows, s.Cols)
	}
	return nil
}

// compressed lists the tensors of the compressed output, file by file.
func (s *source) compressed() (layout, error) {
	var groups [][]safetensors.Source
	for _, t := range s.Checkpoint.Tensors() {
		if spec, ok := s.Specs[t.Name]; ok {
			groups = append(groups, spec.tensors(s.solution))
		} else {
			groups = append(groups, []safetensors.Source{streamed(t, s.kept)})
		}
	}
	if err := checkNames(slices.Concat(groups...), s.Specs); err != nil {
		return layout{}, err
	}
	meta, err := metadata(s.Checkpoint, s.Specs)
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
func checkNames(list []safetensors.Source, specs map[string]Spec) error {
	names := make(map[string]bool, len(list))
	for _, t := range list {
		if names[t.Name] {
			return bad(t.Name, ErrInput, "the compressed tensors would take a name that the checkpoint uses already")
		}
		names[t.Name] = true
	}
	for name := range specs {
		if weight, err := resolve(moduleOf(name), names); err != nil || weight != name {
			return bad(name, ErrInput, "the names of the checkpoint would make it ambiguous which tensor is compressed")
		}
	}
	if name := orphan(names, func(name string) bool { _, ok := specs[name]; return ok }); name != "" {
		return bad(name, ErrInput, "the checkpoint holds this weight compressed already")
	}
	return nil
}

// dtypesKey is the metadata key of the original dtypes of compressed weights.
const dtypesKey = "fettle.dtypes"

// transposedKey is the metadata key of the weights that the checkpoint stores
// as in×out; their codes are out×in like all others.
const transposedKey = "fettle.transposed"

// metadata is what a compressed file says of itself: the source's own metadata,
// and the dtypes and the transposed weights that cannot be seen elsewhere.
func metadata(ckpt *loader.Checkpoint, specs map[string]Spec) (map[string]string, error) {
	m := sourceMetadata(ckpt)
	dtypes := map[string]string{}
	var transposed []string
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		if t, _ := ckpt.Lookup(name); t.DType != specs[name].ScaleType {
			dtypes[name] = t.DType.String()
		}
		if specs[name].Transposed {
			transposed = append(transposed, name)
		}
	}
	if len(dtypes) > 0 {
		text, err := json.Marshal(dtypes) // keys come out sorted
		if err != nil {
			return nil, err
		}
		m[dtypesKey] = string(text)
	}
	if len(transposed) > 0 {
		text, err := json.Marshal(transposed)
		if err != nil {
			return nil, err
		}
		m[transposedKey] = string(text)
	}
	return m, nil
}

func sourceMetadata(ckpt *loader.Checkpoint) map[string]string {
	m := map[string]string{"format": "pt"}
	maps.Copy(m, ckpt.Metadata())
	delete(m, dtypesKey)
	delete(m, transposedKey)
	return m
}
