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
const EncodingVersion = 2

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

type solutionHead struct {
	Layer       string      `json:"layer"`
	Method      string      `json:"method"`
	Rows        int         `json:"rows"`
	Cols        int         `json:"cols"`
	Format      Format      `json:"format,omitempty"`
	Bits        int         `json:"bits"`
	Granularity Granularity `json:"granularity"`
	GroupSize   int         `json:"group_size"`
	Symmetric   bool        `json:"symmetric"`
	ScaleType   string      `json:"scale_type"`
	Global      float32     `json:"global_scale,omitempty"`
	Transposed  bool        `json:"transposed,omitempty"`
	Errors      Errors      `json:"errors"`
	Fallbacks   []Fallback  `json:"fallbacks,omitempty"`
}

// EncodeSolution writes s as a unit.
func EncodeSolution(w io.Writer, s *Solution) error {
	u := unitWriter{kind: "solution"}
	u.add("codes", dtype.I8, []int{s.Rows, s.Cols}, int8Bytes(s.Codes))
	u.add("scales", dtype.F32, []int{len(s.Grid.Scales)}, float32Bytes(s.Grid.Scales))
	if s.Grid.Zeros != nil {
		u.add("zeros", dtype.I8, []int{len(s.Grid.Zeros)}, int8Bytes(s.Grid.Zeros))
	}
	if s.Bias != nil {
		u.vector("bias", s.Bias)
	}
	if s.InputScale != nil {
		u.vector("input_scale", s.InputScale)
	}
	return u.write(w, solutionHead{
		Layer: s.Layer, Method: s.Method, Rows: s.Rows, Cols: s.Cols,
		Format: s.Grid.Format, Bits: s.Grid.Bits, Granularity: s.Grid.Granularity, GroupSize: s.Grid.GroupSize,
		Symmetric: s.Grid.Symmetric, ScaleType: s.Grid.ScaleType.String(), Global: s.Grid.Global, Transposed: s.Transposed,
		Errors: s.Errors, Fallbacks: s.Fallbacks,
	})
}

// DecodeSolution reads what EncodeSolution wrote, and checks that its grid fits
// and that every code is on it.
func DecodeSolution(r io.ReaderAt, size int64) (*Solution, error) {
	var head solutionHead
	u, err := openUnit(r, size, "solution", &head)
	if err != nil {
		return nil, err
	}
	scaleType, err := dtype.Parse(head.ScaleType)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnit, err)
	}
	s := &Solution{
		Layer: head.Layer, Method: head.Method, Rows: head.Rows, Cols: head.Cols,
		Grid: Grid{
			Format: head.Format, Bits: head.Bits, Granularity: head.Granularity, GroupSize: head.GroupSize,
			Symmetric: head.Symmetric, ScaleType: scaleType, Global: head.Global,
		},
		Transposed: head.Transposed, Errors: head.Errors, Fallbacks: head.Fallbacks,
	}
	scales, err := u.length("scales")
	if err != nil || s.Rows < 1 || s.Cols < 1 || s.Rows > math.MaxInt32 || s.Cols > math.MaxInt32 {
		return nil, fmt.Errorf("%w: no scales, or a %d×%d weight", ErrUnit, s.Rows, s.Cols)
	}
	s.Codes = int8s(u.bytes("codes", dtype.I8, s.Rows*s.Cols))
	s.Grid.Scales = make([]float32, scales)
	raw := u.bytes("scales", dtype.F32, scales)
	if u.err == nil {
		u.err = dtype.F32.ToFloat32(s.Grid.Scales, raw)
	}
	if !head.Symmetric {
		s.Grid.Zeros = int8s(u.bytes("zeros", dtype.I8, scales))
	}
	if _, ok := u.infos["bias"]; ok {
		s.Bias = u.floats("bias", s.Rows)
	}
	if _, ok := u.infos["input_scale"]; ok {
		s.InputScale = u.floats("input_scale", s.Cols)
	}
	if u.err != nil {
		return nil, u.err
	}
	return s, s.check()
}

func (s *Solution) check() error {
	if err := s.Grid.Check(s.Rows, s.Cols); err != nil {
		return fmt.Errorf("%w: %w", ErrUnit, err)
	}
	lo, hi := s.Grid.Range()
	for i, c := range s.Codes {
		if int(c) < lo || int(c) > hi {
			return fmt.Errorf("%w: code %d is %d, outside %d…%d", ErrUnit, i, c, lo, hi)
		}
	}
	return nil
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

func (u *unitReader) length(name string) (int, error) {
	info, ok := u.infos[name]
	if !ok || len(info.Shape) != 1 {
		return 0, fmt.Errorf("%w: no vector %q", ErrUnit, name)
	}
	return info.Shape[0], nil
}

// bytes reads a tensor that must have n elements of type d. The container has
// been checked, so a tensor that is there is no longer than the file.
func (u *unitReader) bytes(name string, d dtype.DType, n int) []byte {
	if u.err != nil {
		return nil
	}
	info, ok := u.infos[name]
	if !ok || info.DType != d || info.End-info.Begin != int64(n)*int64(d.Size()) {
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
