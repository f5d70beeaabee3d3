package export

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/pack"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/layer"
)

// MaskLayout says how a pruned weight's mask is stored. All but MaskNone store the
// survivors alone, row after row in one line; see the package comment.
type MaskLayout string

// The mask layouts, in the order in which Smallest prefers those of one size.
const (
	MaskNone    MaskLayout = ""        // all weights are stored, the pruned ones as 0; the mask is not
	MaskBits    MaskLayout = "bitmask" // a bit for each weight
	MaskPattern MaskLayout = "pattern" // a number for each group of an N:M pattern
	MaskColumns MaskLayout = "columns" // each survivor's column, each row's number of survivors
)

// Sparsity says what of a pruned weight is stored.
type Sparsity struct {
	Layout    MaskLayout
	Survivors int // exactly; 0 with MaskNone

	// Keep and Of are the N and M of a pattern that each row follows: of each Of
	// inputs, exactly Keep survive, and of a shorter last group of k inputs
	// ⌈Keep·k/Of⌉. Both are 0 where there is none.
	Keep, Of int
}

// maxColumnsSpread bounds what a reader makes of a small file of column indices: a
// weight has at most so many elements for each survivor and row.
const maxColumnsSpread = 256

// check reports what keeps a rows×cols weight from being stored so.
func (p Sparsity) check(rows, cols int) error {
	switch p.Layout {
	case MaskNone:
		if p != (Sparsity{}) {
			return fmt.Errorf("survivors or a pattern without a layout of the mask")
		}
		return nil
	case MaskBits, MaskPattern, MaskColumns:
	default:
		return fmt.Errorf("unknown layout %q of the mask", p.Layout)
	}
	if p.Survivors < 0 || p.Survivors > rows*cols {
		return fmt.Errorf("%d survivors of %d weights", p.Survivors, rows*cols)
	}
	if p.Of == 0 && p.Keep == 0 && p.Layout != MaskPattern {
		return p.checkSpread(rows, cols)
	}
	if p.Keep < 1 || p.Keep >= p.Of || p.Of > pack.MaxSet {
		return fmt.Errorf("pattern %d:%d, want N:M with 1 ≤ N < M ≤ %d", p.Keep, p.Of, pack.MaxSet)
	}
	if want := PatternSurvivors(rows, cols, p.Keep, p.Of); p.Survivors != want {
		return fmt.Errorf("%d survivors, the pattern %d:%d leaves %d", p.Survivors, p.Keep, p.Of, want)
	}
	return p.checkSpread(rows, cols)
}

func (p Sparsity) checkSpread(rows, cols int) error {
	if p.Layout == MaskColumns && rows*cols/maxColumnsSpread > rows+p.Survivors {
		return fmt.Errorf("%d survivors of %d×%d weights are too few for column indices; use a bitmask", p.Survivors, rows, cols)
	}
	return nil
}

// groupKeep returns how many of a group of size inputs survive.
func (p Sparsity) groupKeep(size int) int { return (p.Keep*size + p.Of - 1) / p.Of }

func (p Sparsity) rowSurvivors(cols int) int {
	return cols/p.Of*p.Keep + p.groupKeep(cols%p.Of)
}

// PatternSurvivors returns how many weights of a rows×cols matrix the pattern
// keep:of leaves; all of them where of is not positive.
func PatternSurvivors(rows, cols, keep, of int) int {
	if of < 1 {
		return rows * cols
	}
	return rows * Sparsity{Keep: keep, Of: of}.rowSurvivors(cols)
}

func (p Sparsity) groupsPerRow(cols int) int { return (cols-1)/p.Of + 1 }

// Smallest returns the spec of a pruned weight, whose Pruned.Survivors are known
// and Pruned.Keep and Of where there is a pattern, with the layout that takes the
// fewest bytes in a file, headers' entries included: of the given layouts, or of
// all that fit; where none does it is s itself, which cannot be written. With MaskNone the rest of Pruned is cleared.
func (s Spec) Smallest(among ...MaskLayout) Spec {
	if len(among) == 0 {
		among = []MaskLayout{MaskNone, MaskBits, MaskPattern, MaskColumns}
	}
	best, fewest := s, int64(-1)
	for _, l := range among {
		candidate := s
		if candidate.Pruned.Layout = l; l == MaskNone {
			candidate.Pruned = Sparsity{}
		}
		if candidate.Pruned.check(s.Rows, s.Cols) != nil {
			continue
		}
		size, err := safetensors.Size(candidate.tensors(nil), nil)
		if err == nil && (fewest < 0 || size < fewest) {
			best, fewest = candidate, size
		}
	}
	return best
}

// The suffixes of the tensors of a pruned weight, beside those of others.
const (
	valuesSuffix  = "_values"
	bitmaskSuffix = "_bitmask"
	patternSuffix = "_pattern"
	columnsSuffix = "_columns"
	countsSuffix  = "_counts"
)

// compressed-tensors' names in sparse-bitmask and sparse-24-bitmask, in place of
// ".weight".
const (
	ctCompressed = ".compressed"
	ctBitmask    = ".bitmask"
	ctOffsets    = ".row_offsets"
	ctShape      = ".shape"
)

// compressedTensorsSparse returns compressed-tensors' name of the layout that the
// weight is stored in, or "" where it is one of fettle's own: codes, weights that
// are no module's or no matrices as they stand, and other masks than bitmasks.
func (s Spec) compressedTensorsSparse() string {
	switch {
	case !s.valued() || s.Pruned.Layout != MaskBits || s.Transposed || len(s.Shape) != 2 || moduleOf(s.Name) == s.Name:
		return ""
	case s.Pruned.Keep == 2 && s.Pruned.Of == 4 && s.Cols%4 == 0:
		return "sparse-24-bitmask"
	}
	return "sparse-bitmask"
}

// survivorsSource is the tensor of what survives.
func (s Spec) survivorsSource() safetensors.Source {
	n := s.Pruned.Survivors
	t := safetensors.Source{Name: s.codesName(), Shape: []int{n}}
	switch {
	case s.valued():
		t.DType = s.ValueType
		if s.compressedTensorsSparse() == "sparse-24-bitmask" {
			t.Shape = []int{s.Rows, s.Cols / 2}
		}
	case s.Format == layer.Integer:
		t.DType, t.Shape = dtype.I32, []int{pack.Words(n, s.Bits)}
	case s.Format == layer.FP8:
		t.DType = dtype.F8E4M3
	default:
		t.DType, t.Shape = dtype.U8, []int{n/2 + n%2}
	}
	return t
}

// maskSources are the tensors of the mask.
func (s Spec) maskSources(from func(func(io.Writer, *layer.Solution) error) func(io.Writer) error) []safetensors.Source {
	bitmask := safetensors.Source{
		Name: s.Name + bitmaskSuffix, DType: dtype.U8, Shape: []int{s.Rows, (s.Cols-1)/8 + 1},
		Write: from(func(w io.Writer, f *layer.Solution) error { _, err := w.Write(f.Mask.Bytes()); return err }),
	}
	switch s.Pruned.Layout {
	case MaskBits:
		known := s.compressedTensorsSparse()
		if known == "" {
			return []safetensors.Source{bitmask}
		}
		module := moduleOf(s.Name)
		bitmask.Name = module + ctBitmask
		shape := safetensors.Source{Name: module + ctShape, DType: dtype.I64, Shape: []int{2}, Write: s.writeShape}
		if known == "sparse-24-bitmask" {
			shape.Shape = []int{2, 1}
			return []safetensors.Source{bitmask, shape}
		}
		return []safetensors.Source{bitmask, shape, {
			Name: module + ctOffsets, DType: dtype.I64, Shape: []int{s.Rows},
			Write: from(func(w io.Writer, f *layer.Solution) error { _, err := w.Write(rowOffsets(f.Mask)); return err }),
		}}
	case MaskPattern:
		return []safetensors.Source{{
			Name: s.Name + patternSuffix, DType: dtype.U8, Shape: []int{s.Rows, s.patternRowBytes()},
			Write: from(s.writePattern),
		}}
	case MaskColumns:
		d := indexType(s.Cols)
		return []safetensors.Source{
			{Name: s.Name + columnsSuffix, DType: d, Shape: []int{s.Pruned.Survivors}, Write: from(s.writeColumns)},
			{Name: s.Name + countsSuffix, DType: d, Shape: []int{s.Rows}, Write: from(s.writeCounts)},
		}
	}
	return nil
}

// indexType is the smallest type that holds 0 … cols.
func indexType(cols int) dtype.DType {
	switch {
	case cols <= math.MaxUint8:
		return dtype.U8
	case cols <= math.MaxUint16:
		return dtype.U16
	default:
		return dtype.U32
	}
}

func appendIndex(raw []byte, d dtype.DType, v int) []byte {
	switch d {
	case dtype.U8:
		return append(raw, byte(v))
	case dtype.U16:
		return binary.LittleEndian.AppendUint16(raw, uint16(v))
	default:
		return binary.LittleEndian.AppendUint32(raw, uint32(v))
	}
}

func indexAt(raw []byte, d dtype.DType, i int) int {
	switch d {
	case dtype.U8:
		return int(raw[i])
	case dtype.U16:
		return int(binary.LittleEndian.Uint16(raw[2*i:]))
	default:
		return int(binary.LittleEndian.Uint32(raw[4*i:]))
	}
}

// rowOffsets are the number of survivors before each row, as int64.
func rowOffsets(m *layer.Mask) []byte {
	raw := make([]byte, 0, 8*m.Rows)
	sum := 0
	for r := range m.Rows {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(sum))
		sum += rowCount(m, r)
	}
	return raw
}

func rowCount(m *layer.Mask, r int) int {
	row := layer.Mask{Rows: 1, Cols: m.Cols, Bits: m.Row(r)}
	return row.Survivors()
}

func (s Spec) patternRowBytes() int {
	p := s.Pruned
	if p.Keep < 1 || p.Keep >= p.Of || p.Of > pack.MaxSet {
		return 0 // a spec that check refuses
	}
	return pack.FieldBytes(p.groupsPerRow(s.Cols), pack.SubsetBits(p.Keep, p.Of))
}

func (s Spec) writePattern(w io.Writer, from *layer.Solution) error {
	p := s.Pruned
	ranks := make([]uint32, p.groupsPerRow(s.Cols))
	raw := make([]byte, s.patternRowBytes())
	for r := range s.Rows {
		for g := range ranks {
			ranks[g] = pack.SubsetRank(groupOf(from.Mask, r, g*p.Of, min(p.Of, s.Cols-g*p.Of)))
		}
		if err := pack.Fields(raw, ranks, pack.SubsetBits(p.Keep, p.Of)); err != nil {
			return &TensorError{Tensor: s.Name + patternSuffix, Index: -1, Err: err}
		}
		if _, err := w.Write(raw); err != nil {
			return err
		}
	}
	return nil
}

// groupOf returns the mask of n ≤ 32 inputs of a row from a column on.
func groupOf(m *layer.Mask, row, from, n int) uint32 {
	words := m.Row(row)
	v := words[from/64] >> (from % 64)
	if from%64+n > 64 {
		v |= words[from/64+1] << (64 - from%64)
	}
	return uint32(v & (1<<n - 1))
}

func (s Spec) writeColumns(w io.Writer, from *layer.Solution) error {
	d := indexType(s.Cols)
	var raw []byte
	for r := range s.Rows {
		raw = raw[:0]
		for c := range s.Cols {
			if from.Mask.At(r, c) {
				raw = appendIndex(raw, d, c)
			}
		}
		if _, err := w.Write(raw); err != nil {
			return err
		}
	}
	return nil
}

func (s Spec) writeCounts(w io.Writer, from *layer.Solution) error {
	var raw []byte
	for r := range s.Rows {
		raw = appendIndex(raw, indexType(s.Cols), rowCount(from.Mask, r))
	}
	_, err := w.Write(raw)
	return err
}

// writeSurvivors writes the codes or the values that survive.
func (s Spec) writeSurvivors(w io.Writer, from *layer.Solution) error {
	if s.valued() {
		return s.writeValues(w, gather(from.Mask, from.Values))
	}
	codes := gather(from.Mask, from.Codes)
	t := s.survivorsSource()
	raw := make([]byte, t.Shape[0]*t.DType.Size())
	var err error
	switch s.Format {
	case layer.Integer:
		err = pack.Rows(raw, codes, 1, len(codes), s.Bits)
	case layer.FP8:
		err = pack.FP8(raw, codes)
	default:
		err = pack.FP4(raw, append(codes, 0)[:2*len(raw)])
	}
	if err != nil {
		return &TensorError{Tensor: s.Name, Index: -1, Err: err}
	}
	_, err = w.Write(raw)
	return err
}

// writeValues writes finite values in their type.
func (s Spec) writeValues(w io.Writer, values []float32) error {
	raw := make([]byte, len(values)*s.ValueType.Size())
	if err := s.ValueType.FromFloat32(raw, values); err != nil {
		return bad(s.Name, ErrUnsupported, "%v", err)
	}
	if err := checkFinite(s.Name, s.ValueType, raw); err != nil { // a merged sum may overflow
		return err
	}
	_, err := w.Write(raw)
	return err
}

// writePlain writes all values in the checkpoint's shape: the base, or the whole
// weight where the low-rank term is merged.
func (s Spec) writePlain(w io.Writer, from *layer.Solution) error {
	values := make([]float32, s.Rows*s.Cols)
	if s.LowRank.Merged {
		from.Weight(values)
	} else {
		from.Base(values)
	}
	return s.writeValues(w, values)
}

// gather returns the survivors of all, row by row.
func gather[T any](m *layer.Mask, all []T) []T {
	some := make([]T, 0, m.Survivors()+1) // FP4 may add one
	for r := range m.Rows {
		for c, v := range all[r*m.Cols:][:m.Cols] {
			if m.At(r, c) {
				some = append(some, v)
			}
		}
	}
	return some
}

// scatter is the inverse of gather. It leaves the others as they are.
func scatter[T any](m *layer.Mask, all, some []T) {
	for r := range m.Rows {
		row := all[r*m.Cols:][:m.Cols]
		for c := range row {
			if m.At(r, c) {
				row[c], some = some[0], some[1:]
			}
		}
	}
}

// checkMask reports what keeps a solution's mask from being stored as the spec
// says.
func (s Spec) checkMask(m *layer.Mask) error {
	p := s.Pruned
	if p.Layout == MaskNone {
		return nil
	}
	if m == nil {
		return fmt.Errorf("no mask, its spec says %d survivors", p.Survivors)
	}
	if n := m.Survivors(); n != p.Survivors {
		return fmt.Errorf("%d weights survive, its spec says %d", n, p.Survivors)
	}
	if p.Of == 0 {
		return nil
	}
	for r := range s.Rows {
		for from := 0; from < s.Cols; from += p.Of {
			size := min(p.Of, s.Cols-from)
			group := layer.Mask{Rows: 1, Cols: size, Bits: []uint64{uint64(groupOf(m, r, from, size))}}
			if n := group.Survivors(); n != p.groupKeep(size) {
				return fmt.Errorf("%d of the inputs %d to %d of row %d survive, the pattern %d:%d leaves %d",
					n, from, from+size-1, r, p.Keep, p.Of, p.groupKeep(size))
			}
		}
	}
	return nil
}

// readMask reads the mask of a pruned weight and holds it against the survivors
// that config.json tells of.
func (m *Model) readMask(s Spec) (mask *layer.Mask, err error) {
	switch s.Pruned.Layout {
	case MaskNone:
		return nil, nil
	case MaskBits:
		mask, err = m.readBitmask(s)
	case MaskPattern:
		mask, err = m.readPattern(s)
	case MaskColumns:
		mask, err = m.readColumns(s)
	}
	if err != nil {
		return nil, err
	}
	if err := s.checkMask(mask); err != nil {
		return nil, bad(s.Name, ErrCorrupt, "%v", err)
	}
	return mask, nil
}

func (m *Model) readBitmask(s Spec) (*layer.Mask, error) {
	known, name := s.compressedTensorsSparse(), s.Name+bitmaskSuffix
	if known != "" {
		name = moduleOf(s.Name) + ctBitmask
	}
	raw, err := m.read(name)
	if err != nil {
		return nil, err
	}
	mask, err := layer.MaskFromBytes(s.Rows, s.Cols, raw)
	if err != nil {
		return nil, bad(name, ErrCorrupt, "%v", err)
	}
	if known != "sparse-bitmask" {
		return mask, nil
	}
	offsets := moduleOf(s.Name) + ctOffsets
	if raw, err = m.read(offsets); err != nil {
		return nil, err
	}
	if !slices.Equal(raw, rowOffsets(mask)) {
		return nil, bad(offsets, ErrCorrupt, "are not those of the bitmask")
	}
	return mask, nil
}

func (m *Model) readPattern(s Spec) (*layer.Mask, error) {
	p, name := s.Pruned, s.Name+patternSuffix
	raw, err := m.read(name)
	if err != nil {
		return nil, err
	}
	mask := layer.NewMask(s.Rows, s.Cols)
	ranks := make([]uint32, p.groupsPerRow(s.Cols))
	n := s.patternRowBytes()
	for r := range s.Rows {
		if err := pack.UnpackFields(ranks, raw[r*n:][:n], pack.SubsetBits(p.Keep, p.Of)); err != nil {
			return nil, bad(name, ErrCorrupt, "%v", err)
		}
		for g, rank := range ranks {
			from := g * p.Of
			size := min(p.Of, s.Cols-from)
			set, ok := pack.Subset(rank, p.groupKeep(size), size)
			if !ok {
				return nil, bad(name, ErrCorrupt, "row %d, group %d holds %d, which numbers no %d of %d inputs", r, g, rank, p.groupKeep(size), size)
			}
			for c := range size {
				if set>>c&1 != 0 {
					mask.Set(r, from+c, true)
				}
			}
		}
	}
	return mask, nil
}

func (m *Model) readColumns(s Spec) (*layer.Mask, error) {
	name, d := s.Name+columnsSuffix, indexType(s.Cols)
	columns, err := m.read(name)
	if err != nil {
		return nil, err
	}
	counts, err := m.read(s.Name + countsSuffix)
	if err != nil {
		return nil, err
	}
	mask := layer.NewMask(s.Rows, s.Cols)
	at := 0
	for r := range s.Rows {
		count := indexAt(counts, d, r)
		if count > s.Pruned.Survivors-at {
			return nil, badAt(s.Name+countsSuffix, r, ErrCorrupt, "%d survivors, of which the file holds %d", count, s.Pruned.Survivors-at)
		}
		last := -1
		for ; count > 0; count-- {
			c := indexAt(columns, d, at)
			if c <= last || c >= s.Cols {
				return nil, badAt(name, at, ErrCorrupt, "column %d after %d, of %d", c, last, s.Cols)
			}
			mask.Set(r, c, true)
			last = c
			at++
		}
	}
	return mask, nil
}

// readValues reads a weight that is stored as values, out×in.
func (m *Model) readValues(s Spec, mask *layer.Mask) ([]float32, error) {
	name := s.codesName()
	t, ok := m.file.Lookup(name)
	if !ok {
		return nil, bad(name, ErrCorrupt, "is missing")
	}
	stored := make([]float32, t.Elements())
	if err := m.file.ReadFloat32(name, stored); err != nil {
		return nil, err
	}
	for i, v := range stored {
		if !finite(v) {
			return nil, badAt(name, i, ErrNotFinite, "value %v", v)
		}
	}
	if mask == nil && !s.Transposed {
		return stored, nil
	}
	values := make([]float32, s.Rows*s.Cols)
	if mask != nil {
		scatter(mask, values, stored)
		return values, nil
	}
	for i, v := range stored { // the checkpoint has it as in×out
		values[i%s.Rows*s.Cols+i/s.Rows] = v
	}
	return values, nil
}

// readCodes reads a weight's codes; those of pruned weights stand for 0.
func (m *Model) readCodes(s Spec, grid *layer.Grid, mask *layer.Mask) ([]int8, error) {
	name := s.codesName()
	packed, err := m.read(name)
	if err != nil {
		return nil, err
	}
	codes := make([]int8, s.Rows*s.Cols)
	if mask == nil {
		return codes, badCodes(name, s.unpack(codes, packed))
	}
	n := s.Pruned.Survivors
	some := make([]int8, n, n+1)
	switch s.Format {
	case layer.Integer:
		err = pack.UnpackRows(some, packed, 1, n, s.Bits)
	case layer.FP8:
		err = pack.UnpackFP8(some, packed)
	default:
		err = pack.UnpackFP4(some[:2*len(packed)], packed)
	}
	if err != nil {
		return nil, badCodes(name, err)
	}
	for i := range codes {
		codes[i] = int8(grid.Zero(grid.Index(i/s.Cols, i%s.Cols, s.Cols)))
	}
	scatter(mask, codes, some)
	return codes, nil
}

// badCodes returns what package pack finds wrong with a file's codes as a
// TensorError.
func badCodes(name string, err error) error {
	var nan *pack.NaNError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &nan):
		return badAt(name, nan.Index, ErrNotFinite, "in %s", dtype.F8E4M3)
	}
	return bad(name, ErrCorrupt, "%v", err)
}

// sparsityConfig returns what compressed-tensors reads of weights in its own sparse
// layouts: nothing, unless all have one and the same.
func (in Input) sparsityConfig() map[string]any {
	targets, ignore := []string{}, []string{}
	format, structure := "", "unstructured"
	survivors, weights := 0, 0
	for _, t := range in.Checkpoint.Tensors() {
		spec, ok := in.specOf(t)
		found := ""
		if ok {
			found = spec.compressedTensorsSparse()
		}
		switch {
		case found == "":
			if len(t.Shape) >= 2 && t.DType.IsFloat() && strings.HasSuffix(t.Name, weightSuffix) {
				ignore = append(ignore, moduleOf(t.Name))
			}
			continue
		case format != "" && found != format:
			return map[string]any{}
		}
		format = found
		targets = append(targets, moduleOf(t.Name))
		survivors += spec.Pruned.Survivors
		weights += spec.Rows * spec.Cols
	}
	if format == "" {
		return map[string]any{}
	}
	if format == "sparse-24-bitmask" {
		structure = "2:4"
	}
	slices.Sort(targets)
	slices.Sort(ignore)
	return map[string]any{
		"format": format, "targets": targets, "ignore": ignore,
		"global_sparsity": 1 - float64(survivors)/float64(weights), "sparsity_structure": structure,
	}
}
