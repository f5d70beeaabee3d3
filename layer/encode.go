package layer

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
)

// Units on disk are safetensors files. Metadata "fettle.unit" names what is in
// one, "fettle.version" the version of its layout, and "fettle.head" holds, as
// JSON, what is not a matrix. Any safetensors reader can open them.

// EncodingVersion is the version of the units' layout.
const EncodingVersion = 3

// ErrUnit says that a file is not a unit of the wanted kind, or is damaged.
var ErrUnit = errors.New("not a readable unit")

type momentsHead struct {
	Rows   int64 `json:"rows"`
	Groups int   `json:"groups"`
	Inputs int   `json:"inputs"`
	Same   bool  `json:"same"` // G equals H and is not stored
}

// EncodeMoments writes m as a unit.
func EncodeMoments(w io.Writer, m *Moments) error {
	u := unitWriter{kind: "moments"}
	for g := range m.H {
		u.matrix("H."+strconv.Itoa(g), m.H[g])
	}
	for g := range m.G {
		u.matrix("G."+strconv.Itoa(g), m.G[g])
	}
	u.vector("sum_xt", m.SumXt)
	if m.G != nil {
		u.vector("sum_x", m.SumX)
	}
	for _, name := range slices.Sorted(maps.Keys(m.Energy)) {
		u.vector("energy."+name, m.Energy[name])
	}
	u.sample(m.Sample)
	return u.write(w, momentsHead{Rows: m.Rows, Groups: m.Groups, Inputs: m.Inputs, Same: m.G == nil})
}

// DecodeMoments reads what EncodeMoments wrote.
func DecodeMoments(r io.ReaderAt, size int64) (*Moments, error) {
	var head momentsHead
	u, err := openUnit(r, size, "moments", &head)
	if err != nil {
		return nil, err
	}
	n := head.Inputs
	if head.Groups < 1 || n < 1 || head.Rows < 0 {
		return nil, fmt.Errorf("%w: moments of %d groups × %d inputs", ErrUnit, head.Groups, n)
	}
	m := &Moments{Rows: head.Rows, Groups: head.Groups, Inputs: n, Energy: map[string][]float64{}}
	for g := range head.Groups {
		m.H = append(m.H, u.square("H."+strconv.Itoa(g), n))
		if !head.Same {
			m.G = append(m.G, u.square("G."+strconv.Itoa(g), n))
		}
		if u.err != nil {
			return nil, u.err // before a hostile count makes this loop long
		}
	}
	m.SumXt = u.floats("sum_xt", head.Groups*n)
	m.SumX = m.SumXt
	if !head.Same {
		m.SumX = u.floats("sum_x", head.Groups*n)
	}
	for name, info := range u.infos {
		if key, ok := strings.CutPrefix(name, "energy."); ok && len(info.Shape) == 1 {
			m.Energy[key] = u.floats(name, info.Shape[0])
		}
	}
	m.Sample = u.readSample(head)
	return m, u.err
}

// Vectors are numbers measured of each of some layers.
type Vectors struct{ Of [][]float64 }

// EncodeVectors writes v as a unit.
func EncodeVectors(w io.Writer, v *Vectors) error {
	u := unitWriter{kind: "vectors"}
	for i, of := range v.Of {
		u.vector(strconv.Itoa(i), of)
	}
	return u.write(w, struct{}{})
}

// DecodeVectors reads what EncodeVectors wrote.
func DecodeVectors(r io.ReaderAt, size int64) (*Vectors, error) {
	u, err := openUnit(r, size, "vectors", &struct{}{})
	if err != nil {
		return nil, err
	}
	v := &Vectors{Of: make([][]float64, len(u.infos))}
	for i := range v.Of {
		v.Of[i] = u.floats(strconv.Itoa(i), u.length(strconv.Itoa(i)))
	}
	return v, u.err
}

type solutionHead struct {
	Layer       string       `json:"layer"`
	Method      string       `json:"method"`
	Rows        int          `json:"rows"`
	Cols        int          `json:"cols"`
	Format      Format       `json:"format,omitempty"`
	Bits        int          `json:"bits"`
	Granularity Granularity  `json:"granularity"`
	GroupSize   int          `json:"group_size"`
	Symmetric   bool         `json:"symmetric"`
	ScaleType   string       `json:"scale_type"`
	Global      float32      `json:"global_scale,omitempty"`
	ValueType   string       `json:"value_type,omitempty"` // of values; none of codes
	Mask        bool         `json:"mask,omitempty"`
	LowRank     []factorHead `json:"low_rank,omitempty"` // B, then A
	Transposed  bool         `json:"transposed,omitempty"`
	Errors      Errors       `json:"errors"`
	Fallbacks   []Fallback   `json:"fallbacks,omitempty"`
}

type factorHead struct {
	Rank int    `json:"rank"`
	Type string `json:"type"`
	Bits int    `json:"bits,omitempty"` // of codes; none of values
}

// EncodeSolution writes s as a unit. It refuses what Solution.Check does, which a
// reader would refuse.
func EncodeSolution(w io.Writer, s *Solution) error {
	if err := s.Check(); err != nil {
		return fmt.Errorf("layer %s: %w", s.Layer, err)
	}
	u := unitWriter{kind: "solution"}
	head := solutionHead{
		Layer: s.Layer, Method: s.Method, Rows: s.Rows, Cols: s.Cols,
		Format: s.Grid.Format, Bits: s.Grid.Bits, Granularity: s.Grid.Granularity, GroupSize: s.Grid.GroupSize,
		Symmetric: s.Grid.Symmetric, ScaleType: s.Grid.ScaleType.String(), Global: s.Grid.Global,
		Mask: s.Mask != nil, Transposed: s.Transposed, Errors: s.Errors, Fallbacks: s.Fallbacks,
	}
	if s.Values != nil {
		head.ValueType = s.ValueType.String()
		if err := u.values("values", s.ValueType, []int{s.Rows, s.Cols}, s.Values); err != nil {
			return err
		}
	} else {
		u.add("codes", dtype.I8, []int{s.Rows, s.Cols}, int8Bytes(s.Codes))
		u.add("scales", dtype.F32, []int{len(s.Grid.Scales)}, float32Bytes(s.Grid.Scales))
	}
	if s.Grid.Zeros != nil {
		u.add("zeros", dtype.I8, []int{len(s.Grid.Zeros)}, int8Bytes(s.Grid.Zeros))
	}
	if s.Mask != nil {
		u.add("mask", dtype.U8, []int{s.Mask.Rows, (s.Mask.Cols + 7) / 8}, s.Mask.Bytes())
	}
	if s.LowRank != nil {
		for i, f := range []*Factor{&s.LowRank.B, &s.LowRank.A} {
			h, err := u.factor(factorNames[i], f)
			if err != nil {
				return err
			}
			head.LowRank = append(head.LowRank, h)
		}
	}
	if s.Bias != nil {
		u.vector("bias", s.Bias)
	}
	if s.InputScale != nil {
		u.vector("input_scale", s.InputScale)
	}
	return u.write(w, head)
}

// factorNames are the factors' names in a unit, in the order of the head.
var factorNames = [2]string{"low_rank.B", "low_rank.A"}

// factor adds a low-rank factor: values, or codes and scales.
func (u *unitWriter) factor(name string, f *Factor) (factorHead, error) {
	head := factorHead{Rank: f.Rows, Type: f.Type.String()}
	if f.Codes == nil {
		return head, u.values(name, f.Type, []int{f.Rows, f.Cols}, f.Values)
	}
	head.Bits = f.Grid.Bits
	u.add(name, dtype.I8, []int{f.Rows, f.Cols}, int8Bytes(f.Codes))
	u.add(name+".scales", dtype.F32, []int{len(f.Grid.Scales)}, float32Bytes(f.Grid.Scales))
	return head, nil
}

// DecodeSolution reads what EncodeSolution wrote, and checks it as
// Solution.Check does.
func DecodeSolution(r io.ReaderAt, size int64) (*Solution, error) {
	var head solutionHead
	u, err := openUnit(r, size, "solution", &head)
	if err != nil {
		return nil, err
	}
	if head.Rows < 1 || head.Cols < 1 || head.Rows > math.MaxInt32 || head.Cols > math.MaxInt32 {
		return nil, fmt.Errorf("%w: a %d×%d weight", ErrUnit, head.Rows, head.Cols)
	}
	s := &Solution{
		Layer: head.Layer, Method: head.Method, Rows: head.Rows, Cols: head.Cols,
		Transposed: head.Transposed, Errors: head.Errors, Fallbacks: head.Fallbacks,
	}
	if head.ValueType != "" {
		s.ValueType = u.dtype(head.ValueType)
		s.Values = u.values("values", s.ValueType, s.Rows*s.Cols)
	} else {
		u.codes(s, head)
	}
	if head.Mask {
		raw := u.bytes("mask", dtype.U8, s.Rows*((s.Cols+7)/8))
		if u.err == nil {
			s.Mask, u.err = MaskFromBytes(s.Rows, s.Cols, raw)
		}
	}
	switch len(head.LowRank) {
	case 0:
	case 2:
		s.LowRank = &LowRank{
			B: u.factor(factorNames[0], head.LowRank[0], s.Rows),
			A: u.factor(factorNames[1], head.LowRank[1], s.Cols),
		}
	default:
		return nil, fmt.Errorf("%w: %d low-rank factors", ErrUnit, len(head.LowRank))
	}
	if _, ok := u.infos["bias"]; ok {
		s.Bias = u.floats("bias", s.Rows)
	}
	if _, ok := u.infos["input_scale"]; ok {
		s.InputScale = u.floats("input_scale", s.Cols)
	}
	if u.err == nil {
		u.err = s.Check()
	}
	if u.err != nil && !errors.Is(u.err, ErrUnit) {
		u.err = fmt.Errorf("%w: %w", ErrUnit, u.err)
	}
	if u.err != nil {
		return nil, u.err
	}
	return s, nil
}

// codes reads a solution's codes and their grid.
func (u *unitReader) codes(s *Solution, head solutionHead) {
	s.Grid = Grid{
		Format: head.Format, Bits: head.Bits, Granularity: head.Granularity, GroupSize: head.GroupSize,
		Symmetric: head.Symmetric, ScaleType: u.dtype(head.ScaleType), Global: head.Global,
	}
	s.Codes = int8s(u.bytes("codes", dtype.I8, s.Rows*s.Cols))
	s.Grid.Scales = u.values("scales", dtype.F32, u.length("scales"))
	if !head.Symmetric {
		s.Grid.Zeros = int8s(u.bytes("zeros", dtype.I8, len(s.Grid.Scales)))
	}
}

// factor reads a low-rank factor of the given columns.
func (u *unitReader) factor(name string, head factorHead, cols int) Factor {
	f := Factor{Rows: head.Rank, Cols: cols, Type: u.dtype(head.Type)}
	if head.Rank < 1 || head.Rank > math.MaxInt32 {
		u.fail(fmt.Errorf("rank %d", head.Rank))
		return f
	}
	if head.Bits == 0 {
		f.Values = u.values(name, f.Type, f.Rows*cols)
		return f
	}
	f.Codes = int8s(u.bytes(name, dtype.I8, f.Rows*cols))
	f.Grid = Grid{Bits: head.Bits, Granularity: PerChannel, Symmetric: true, ScaleType: f.Type}
	f.Grid.Scales = u.values(name+".scales", dtype.F32, f.Rows)
	return f
}

// unitWriter collects the tensors of a unit.
type unitWriter struct {
	kind    string
	tensors []safetensors.Source
}

func (u *unitWriter) add(name string, d dtype.DType, shape []int, data []byte) {
	u.tensors = append(u.tensors, safetensors.Source{
		Name: name, DType: d, Shape: shape,
		Write: func(w io.Writer) error { _, err := w.Write(data); return err },
	})
}

// values adds values in the type that holds them exactly.
func (u *unitWriter) values(name string, d dtype.DType, shape []int, v []float32) error {
	raw := make([]byte, len(v)*d.Size())
	if err := d.FromFloat32(raw, v); err != nil {
		return err
	}
	u.add(name, d, shape, raw)
	return nil
}

func (u *unitWriter) vector(name string, v []float64) {
	u.matrix(name, blas64.General{Rows: 1, Cols: len(v), Stride: len(v), Data: v})
	u.tensors[len(u.tensors)-1].Shape = []int{len(v)}
}

// matrix adds a matrix, which is written row by row so that a large one needs
// no second copy.
func (u *unitWriter) matrix(name string, m blas64.General) {
	u.tensors = append(u.tensors, safetensors.Source{
		Name: name, DType: dtype.F64, Shape: []int{m.Rows, m.Cols},
		Write: func(w io.Writer) error {
			row := make([]byte, 8*m.Cols)
			for r := range m.Rows {
				for c, v := range m.Data[r*m.Stride:][:m.Cols] {
					binary.LittleEndian.PutUint64(row[8*c:], math.Float64bits(v))
				}
				if _, err := w.Write(row); err != nil {
					return err
				}
			}
			return nil
		},
	})
}

func (u *unitWriter) write(w io.Writer, head any) error {
	text, err := json.Marshal(head)
	if err != nil {
		return err
	}
	return safetensors.Write(w, u.tensors, map[string]string{
		"fettle.unit": u.kind, "fettle.version": strconv.Itoa(EncodingVersion), "fettle.head": string(text),
	})
}

// unitReader reads tensors of a unit and keeps the first error.
type unitReader struct {
	r     io.ReaderAt
	at    int64
	infos map[string]safetensors.Info
	err   error
}

func openUnit(r io.ReaderAt, size int64, kind string, head any) (*unitReader, error) {
	h, err := safetensors.ReadHeader(r, size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnit, err)
	}
	if h.Metadata["fettle.unit"] != kind || h.Metadata["fettle.version"] != strconv.Itoa(EncodingVersion) {
		return nil, fmt.Errorf("%w: holds %q version %q, want %s version %d",
			ErrUnit, h.Metadata["fettle.unit"], h.Metadata["fettle.version"], kind, EncodingVersion)
	}
	if err := json.Unmarshal([]byte(h.Metadata["fettle.head"]), head); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnit, err)
	}
	u := &unitReader{r: r, at: h.DataOffset, infos: map[string]safetensors.Info{}}
	for _, t := range h.Tensors {
		u.infos[t.Name] = t
	}
	return u, nil
}

// fail keeps the first error.
func (u *unitReader) fail(err error) {
	if u.err == nil {
		u.err = fmt.Errorf("%w: %w", ErrUnit, err)
	}
}

func (u *unitReader) dtype(name string) dtype.DType {
	d, err := dtype.Parse(name)
	if err != nil {
		u.fail(err)
	}
	return d
}

func (u *unitReader) length(name string) int {
	info, ok := u.infos[name]
	if !ok || len(info.Shape) != 1 {
		u.fail(fmt.Errorf("no vector %q", name))
		return 0
	}
	return info.Shape[0]
}

// values reads a tensor of n values of type d.
func (u *unitReader) values(name string, d dtype.DType, n int) []float32 {
	raw := u.bytes(name, d, n)
	if u.err != nil {
		return nil
	}
	v := make([]float32, n)
	if err := d.ToFloat32(v, raw); err != nil {
		u.fail(err)
	}
	return v
}

// bytes reads a tensor that must have n elements of type d. The container has
// been checked, so a tensor that is there is no longer than the file.
func (u *unitReader) bytes(name string, d dtype.DType, n int) []byte {
	if u.err != nil {
		return nil
	}
	info, ok := u.infos[name]
	if n := int64(n); !ok || info.DType != d || (info.End-info.Begin)%int64(d.Size()) != 0 || (info.End-info.Begin)/int64(d.Size()) != n {
		u.err = fmt.Errorf("%w: tensor %q is missing or has another shape", ErrUnit, name)
		return nil
	}
	data := make([]byte, info.End-info.Begin)
	if _, err := u.r.ReadAt(data, u.at+info.Begin); err != nil && !errors.Is(err, io.EOF) {
		u.err = fmt.Errorf("%w: %w", ErrUnit, err)
		return nil
	}
	return data
}

func (u *unitReader) floats(name string, n int) []float64 {
	data := u.bytes(name, dtype.F64, n)
	v := make([]float64, len(data)/8)
	for i := range v {
		v[i] = math.Float64frombits(binary.LittleEndian.Uint64(data[8*i:]))
	}
	return v
}

func (u *unitReader) square(name string, n int) blas64.General {
	if n > 1<<20 {
		u.err = fmt.Errorf("%w: %d inputs", ErrUnit, n)
		return blas64.General{}
	}
	return blas64.General{Rows: n, Cols: n, Stride: n, Data: u.floats(name, n*n)}
}

func int8Bytes(v []int8) []byte {
	b := make([]byte, len(v))
	for i, x := range v {
		b[i] = byte(x)
	}
	return b
}

func int8s(b []byte) []int8 {
	v := make([]int8, len(b))
	for i, x := range b {
		v[i] = int8(x)
	}
	return v
}

func float32Bytes(v []float32) []byte {
	b := make([]byte, 4*len(v))
	for i, x := range v {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(x))
	}
	return b
}
