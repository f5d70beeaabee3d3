package export

import (
	"slices"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pack"
	"github.com/fettle-dev/fettle/loader"
)

// Layouts that fettle reads and does not write. Their names stand as a config group's
// format in a folder that fettle wrote of such a model; those of GPTQ and AWQ no other
// reader of compressed-tensors knows, and so refuses.
const (
	layoutGPTQ   = "gptq"    // zero points are stored less one
	layoutGPTQv2 = "gptq_v2" // zero points are stored as they are
	layoutAWQ    = "awq"     // AWQ's gemm version
	layoutInt    = "int-quantized"
	layoutNaive  = "naive-quantized" // integers, or floating point in blocks
	layoutFloat  = "float-quantized" // in blocks
	layoutPacked = "pack-quantized"  // in the order of activations
)

// affineScheme is what weights of one config group in such a layout share:
// value = (code − zero point)·scale.
type affineScheme struct {
	layout    string
	bits      int
	strategy  string // tensor, channel, group or block
	groupSize int    // inputs that share a scale; 0 where all of a row do
	block     [2]int // outputs and inputs that share a scale
	symmetric bool
	float     bool // codes are F8_E4M3
	actOrder  bool // groups are of any inputs, and a tensor says which
}

// packedByInputs reports whether the codes lie as in×out, as GPTQ and AWQ have them.
func (s affineScheme) packedByInputs() bool {
	return s.layout == layoutGPTQ || s.layout == layoutGPTQv2 || s.layout == layoutAWQ
}

// affine is a weight in such a layout.
type affine struct {
	affineScheme
	name       string
	rows, cols int
	transposed bool // the model has it as in×out
	tensors    []string
	scaleType  dtype.DType
	groups     int // scales of a row
	zeros      bool
	index      bool // the file says which group an input is of
}

// shape is the weight's as the model has it.
func (a *affine) shape() []int {
	if a.transposed {
		return []int{a.cols, a.rows}
	}
	return []int{a.rows, a.cols}
}

// part returns the name of a tensor of the weight.
func (a *affine) part(gptq, compressed string) string {
	if a.packedByInputs() {
		return moduleOf(a.name) + "." + gptq
	}
	return a.name + compressed
}

func (a *affine) codesName() string {
	if a.layout == layoutPacked {
		return a.name + packedSuffix
	}
	return a.part("qweight", "")
}
func (a *affine) scalesName() string { return a.part("scales", scaleSuffix) }
func (a *affine) zerosName() string  { return a.part("qzeros", zeroSuffix) }
func (a *affine) indexName() string {
	if a.packedByInputs() {
		return moduleOf(a.name) + ".g_idx"
	}
	return a.name + "_g_idx"
}

// readAffine holds the tensors of a weight against each other and its scheme.
func (m *Model) readAffine(name string, s affineScheme, transposed bool) (*affine, error) {
	a := &affine{affineScheme: s, name: name, transposed: transposed}
	codes, err := m.want(a.codesName())
	if err != nil {
		return nil, err
	}
	if len(codes.Shape) != 2 || codes.Shape[0] < 1 || codes.Shape[1] < 1 {
		return nil, bad(codes.Name, ErrCorrupt, "%v, want two dimensions", codes.Shape)
	}
	kind, err := a.size(m, codes)
	if err != nil {
		return nil, err
	}
	if codes.DType != kind {
		return nil, bad(codes.Name, ErrCorrupt, "%s, want %s", codes.DType, kind)
	}
	a.groups = a.countGroups()
	a.tensors = append(a.tensors, codes.Name)
	scales, err := m.want(a.scalesName())
	if err != nil {
		return nil, err
	}
	if a.scaleType = scales.DType; !writable(a.scaleType) {
		return nil, bad(scales.Name, ErrCorrupt, "scales of dtype %s", a.scaleType)
	}
	if want := a.scalesShape(); !slices.Equal(scales.Shape, want) && (s.strategy != "tensor" || len(scales.Shape) > 0) {
		return nil, bad(scales.Name, ErrCorrupt, "%v, want %v: %d inputs in groups of %d (group_size)", scales.Shape, want, a.cols, a.groupSize)
	}
	a.tensors = append(a.tensors, scales.Name)
	if err := a.checkZeros(m); err != nil {
		return nil, err
	}
	return a, a.checkIndex(m)
}

// size finds the weight's size from its codes, and the type that these must have.
func (a *affine) size(m *Model, codes loader.Tensor) (kind dtype.DType, err error) {
	a.rows, a.cols = codes.Shape[0], codes.Shape[1]
	switch {
	case a.layout == layoutAWQ:
		a.rows, a.cols = 8*codes.Shape[1], codes.Shape[0]
		return dtype.I32, nil
	case a.packedByInputs():
		words := codes.Shape[0]
		if words*32%a.bits != 0 {
			return kind, bad(codes.Name, ErrCorrupt, "%d words a column hold no whole number of codes of %d bits", words, a.bits)
		}
		a.rows, a.cols = codes.Shape[1], words*32/a.bits
		return dtype.I32, nil
	case a.layout == layoutPacked:
		shape, err := m.readShape(a.name + shapeSuffix)
		if err != nil {
			return kind, err
		}
		if len(shape) != 2 || shape[0] != codes.Shape[0] || pack.Words(shape[1], a.bits) != codes.Shape[1] {
			return kind, bad(codes.Name, ErrCorrupt, "%v holds no %d-bit codes of a weight of shape %v", codes.Shape, a.bits, shape)
		}
		a.cols, a.tensors = shape[1], append(a.tensors, a.name+shapeSuffix)
		return dtype.I32, nil
	case a.float:
		return dtype.F8E4M3, nil
	}
	return dtype.I8, nil
}

func (a *affine) countGroups() int {
	switch {
	case a.strategy == "block":
		return (a.cols-1)/a.block[1] + 1
	case a.strategy == "group" && a.groupSize > 0:
		return (a.cols-1)/a.groupSize + 1
	}
	return 1
}

// scaleRows returns how many rows of scales there are.
func (a *affine) scaleRows() int {
	switch a.strategy {
	case "tensor":
		return 1
	case "block":
		return (a.rows-1)/a.block[0] + 1
	}
	return a.rows
}

func (a *affine) scalesShape() []int {
	switch {
	case a.packedByInputs():
		return []int{a.groups, a.rows}
	case a.strategy == "tensor":
		return []int{1}
	}
	return []int{a.scaleRows(), a.groups}
}

// checkZeros finds the zero points, which GPTQ and AWQ store of symmetric weights too.
func (a *affine) checkZeros(m *Model) error {
	a.zeros = a.packedByInputs() || !a.symmetric
	name := a.zerosName()
	if !a.zeros {
		if t, ok := m.file.Lookup(name); ok {
			return bad(t.Name, ErrCorrupt, "zero points of a symmetric weight")
		}
		return nil
	}
	t, err := m.want(name)
	if err != nil {
		return err
	}
	kind, want := dtype.I8, a.scalesShape()
	switch {
	case a.packedByInputs():
		kind, want = dtype.I32, []int{a.groups, pack.Words(a.rows, a.bits)}
	case a.layout == layoutPacked:
		kind, want = dtype.I32, []int{pack.Words(a.rows, a.bits), a.groups}
	}
	if t.DType != kind || !slices.Equal(t.Shape, want) {
		return bad(name, ErrCorrupt, "%s %v, want %s %v", t.DType, t.Shape, kind, want)
	}
	a.tensors = append(a.tensors, name)
	return nil
}

// checkIndex finds the tensor that says which group an input is of.
func (a *affine) checkIndex(m *Model) error {
	t, ok := m.file.Lookup(a.indexName())
	switch {
	case !ok && a.actOrder:
		return bad(a.indexName(), ErrCorrupt, "is missing, and the config says that groups follow the order of activations")
	case !ok:
		return nil
	case t.DType != dtype.I32 || !slices.Equal(t.Shape, []int{a.cols}):
		return bad(t.Name, ErrCorrupt, "%s %v, want I32 [%d]", t.DType, t.Shape, a.cols)
	}
	a.index, a.tensors = true, append(a.tensors, t.Name)
	return nil
}

// want returns a tensor of the file that must be there.
func (m *Model) want(name string) (loader.Tensor, error) {
	t, ok := m.file.Lookup(name)
	if !ok {
		return t, bad(name, ErrCorrupt, "is missing")
	}
	return t, nil
}

// decodeAffine writes a weight's values to dst in the model's shape. Products are
// rounded to float32 once.
func (m *Model) decodeAffine(a *affine, dst []float32) error {
	if len(dst) != a.rows*a.cols {
		return bad(a.name, ErrInput, "%d values asked of %d elements", len(dst), a.rows*a.cols)
	}
	scales, err := m.affineScales(a)
	if err != nil {
		return err
	}
	zeros, err := m.affineZeros(a)
	if err != nil {
		return err
	}
	group, err := m.affineIndex(a)
	if err != nil {
		return err
	}
	codes, err := m.affineCodes(a)
	if err != nil {
		return err
	}
	for from := 0; from < a.rows; from += affineTile { // codes may lie by inputs
		for c := range a.cols {
			for r := from; r < min(from+affineTile, a.rows); r++ {
				i := a.scaleRow(r)*a.groups + group[c]
				v := (codes.at(r, c) - zeros[i]) * scales[i]
				if a.transposed {
					dst[c*a.rows+r] = v
				} else {
					dst[r*a.cols+c] = v
				}
			}
		}
	}
	return nil
}

// affineTile is how many outputs are decoded at a time.
const affineTile = 64

// scaleRow returns the row of scales that an output has.
func (a *affine) scaleRow(row int) int {
	switch a.strategy {
	case "tensor":
		return 0
	case "block":
		return row / a.block[0]
	}
	return row
}

// affineCodes are codes as out×in, integers or floating point.
type affineCodes struct {
	ints          []int8
	floats        []float32
	byRow, byCols int // from one output, and one input, to the next
}

func (c *affineCodes) at(row, col int) float32 {
	i := row*c.byRow + col*c.byCols
	if c.floats != nil {
		return c.floats[i]
	}
	return float32(c.ints[i])
}

// affineCodes reads the codes; unsigned ones less half their range.
func (m *Model) affineCodes(a *affine) (c *affineCodes, err error) {
	name := a.codesName()
	raw, err := m.read(name)
	if err != nil {
		return nil, err
	}
	n := a.rows * a.cols
	c = &affineCodes{byRow: a.cols, byCols: 1}
	if a.packedByInputs() {
		c.byRow, c.byCols = 1, a.rows
	}
	if a.float {
		if err := checkFinite(name, dtype.F8E4M3, raw); err != nil {
			return nil, err
		}
		c.floats = make([]float32, n)
		return c, dtype.F8E4M3.ToFloat32(c.floats, raw)
	}
	c.ints = make([]int8, n)
	switch {
	case a.layout == layoutAWQ:
		err = unpackAWQ(c.ints, raw, a.cols, a.rows)
	case a.packedByInputs():
		err = pack.UnpackColumns(c.ints, raw, a.cols, a.rows, a.bits)
	case a.layout == layoutPacked:
		err = pack.UnpackRows(c.ints, raw, a.rows, a.cols, a.bits)
	default:
		for i, b := range raw {
			c.ints[i] = int8(b)
		}
	}
	return c, badCodes(name, err)
}

// unpackAWQ unpacks rows of 4-bit codes, of which a word has those of columns 0, 2, 4,
// 6, 1, 3, 5 and 7 of its eight, the first in its lowest bits.
func unpackAWQ(codes []int8, raw []byte, rows, cols int) error {
	if err := pack.UnpackRows(codes, raw, rows, cols, 4); err != nil {
		return err
	}
	for word := range slices.Chunk(codes, 8) {
		was := [8]int8(word)
		for i, column := range [8]int{0, 2, 4, 6, 1, 3, 5, 7} {
			word[column] = was[i]
		}
	}
	return nil
}

// affineScales reads the scales, row by row.
func (m *Model) affineScales(a *affine) ([]float32, error) {
	name := a.scalesName()
	scales := make([]float32, a.scaleRows()*a.groups)
	if err := m.file.ReadFloat32(name, scales); err != nil {
		return nil, err
	}
	for i, v := range scales {
		if !finite(v) {
			return nil, badAt(name, i, ErrNotFinite, "scale %v", v)
		}
	}
	if a.packedByInputs() {
		scales = transposed(scales, a.groups, a.rows)
	}
	return scales, nil
}

// affineZeros reads the zero points, row by row, less half their range where the codes
// are.
func (m *Model) affineZeros(a *affine) ([]float32, error) {
	values := make([]float32, a.scaleRows()*a.groups)
	if !a.zeros {
		return values, nil
	}
	name := a.zerosName()
	raw, err := m.read(name)
	if err != nil {
		return nil, err
	}
	zeros := make([]int8, len(values))
	switch {
	case a.layout == layoutAWQ:
		err = unpackAWQ(zeros, raw, a.groups, a.rows)
	case a.packedByInputs():
		err = pack.UnpackRows(zeros, raw, a.groups, a.rows, a.bits)
	case a.layout == layoutPacked:
		err = pack.UnpackColumns(zeros, raw, a.rows, a.groups, a.bits)
	default:
		for i, b := range raw {
			zeros[i] = int8(b)
		}
	}
	if err != nil {
		return nil, bad(name, ErrCorrupt, "%v", err)
	}
	half := 1 << (a.bits - 1)
	for i, z := range zeros {
		if a.layout == layoutGPTQ { // 2^bits wraps to 0, as AutoGPTQ reads it
			z = int8((int(z)+half+1)&(2*half-1) - half)
		}
		if a.symmetric && z != 0 {
			return nil, badAt(name, i, ErrCorrupt, "zero point %d of a weight that the config calls symmetric, want %d; checkpoint_format (%s) says how they are stored",
				int(z)+half, half, a.layout)
		}
		values[i] = float32(z)
	}
	if a.packedByInputs() {
		values = transposed(values, a.groups, a.rows)
	}
	return values, nil
}

// affineIndex returns the group of each input.
func (m *Model) affineIndex(a *affine) ([]int, error) {
	group := make([]int, a.cols)
	if !a.index {
		size := a.groupSize
		if a.strategy == "block" {
			size = a.block[1]
		}
		for c := range group {
			if a.groups > 1 {
				group[c] = c / size
			}
		}
		return group, nil
	}
	name := a.indexName()
	raw, err := m.read(name)
	if err != nil {
		return nil, err
	}
	for c := range group {
		group[c] = int(int32(uint32(raw[4*c]) | uint32(raw[4*c+1])<<8 | uint32(raw[4*c+2])<<16 | uint32(raw[4*c+3])<<24))
		if group[c] < 0 || group[c] >= a.groups {
			return nil, badAt(name, c, ErrCorrupt, "group %d, of %d", group[c], a.groups)
		}
	}
	return group, nil
}
