package pipeline

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/calibrate"
	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
)

// captured are the second moments of layers' inputs, or these themselves, in a file
// that something else made than fettle: what Recipe.Moments names. Its tensors are
// NAME.part, NAME being a layer's; groups are a convolution's and may be left out
// where there is one.
//
//	H       groups × inputs × inputs   X̃ᵀX̃, a sum over rows
//	n       one number                 how many rows
//	sum     groups × inputs            Σx̃; without it no bias is corrected
//	G       groups × inputs × inputs   X̃ᵀX; without it the layers before were as in the original
//	sum_x   groups × inputs            Σx, where there are G and sum
//	energy  outputs                    ‖Xwᵢ‖², where there is G
//
// or rows, from which all of these follow:
//
//	x       groups × rows × inputs     of the original model
//	xt      groups × rows × inputs     of the compressed one; without it the same
type captured struct {
	path   string
	ckpt   *loader.Checkpoint
	sha    string
	layers map[string]map[string]loader.Tensor // by name and part
}

// capturedParts are what a layer may have in a file of moments.
var capturedParts = []string{"H", "n", "sum", "G", "sum_x", "energy", "x", "xt"}

// MomentsError says what is wrong with a file of moments.
type MomentsError struct {
	Path   string
	Tensor string // or layer
	Reason string
}

func (e *MomentsError) Error() string { return fmt.Sprintf("%s: %s: %s", e.Path, e.Tensor, e.Reason) }

// openCaptured opens a file of moments, in any format of checkpoints.
func openCaptured(ctx context.Context, path string) (*captured, error) {
	ckpt, err := loader.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	c := &captured{path: path, ckpt: ckpt, layers: map[string]map[string]loader.Tensor{}}
	err = c.index()
	if err == nil {
		c.sha, err = ckpt.SHA256(ctx)
	}
	if err != nil {
		_ = ckpt.Close() // only read from
		return nil, err
	}
	return c, nil
}

func (c *captured) close() {
	if c != nil {
		_ = c.ckpt.Close() // only read from
	}
}

func (c *captured) fail(tensor, format string, args ...any) error {
	return &MomentsError{c.path, tensor, fmt.Sprintf(format, args...)}
}

// index sorts the file's tensors by layer and looks at which go together.
func (c *captured) index() error {
	for _, t := range c.ckpt.Tensors() {
		at := strings.LastIndexByte(t.Name, '.')
		if at < 1 || !slices.Contains(capturedParts, t.Name[at+1:]) {
			return c.fail("tensor "+t.Name, "is no part of a layer's moments; want NAME.part, where part is one of %s", strings.Join(capturedParts, ", "))
		}
		name, part := t.Name[:at], t.Name[at+1:]
		if c.layers[name] == nil {
			c.layers[name] = map[string]loader.Tensor{}
		}
		c.layers[name][part] = t
	}
	for _, name := range slices.Sorted(maps.Keys(c.layers)) {
		parts := c.layers[name]
		has := func(part string) bool { _, ok := parts[part]; return ok }
		var reason string
		switch {
		case !has("x") && !has("H"):
			reason = "has neither H, the sum of its inputs' products, nor x, its inputs"
		case has("x") && (has("H") || has("n") || has("sum") || has("G") || has("sum_x") || has("energy")):
			reason = "has x beside moments, which follow from it: leave one of them out"
		case has("x"):
		case has("xt"):
			reason = "has xt without x, the same rows in the original model"
		case !has("n"):
			reason = "has H, but not n, the number of rows that it is a sum of"
		case has("G") && !has("energy"):
			reason = "has G, but not energy, the squares of its original outputs' sums, which do not follow from H and G: give both, or x and xt"
		case has("G") && has("sum") != has("sum_x"):
			reason = "has G, and only one of sum and sum_x: give both, or neither"
		case !has("G") && (has("sum_x") || has("energy")):
			reason = "has sum_x or energy without G; without it they follow from the rest: leave them out"
		}
		if reason != "" {
			return c.fail("layer "+name, "%s", reason)
		}
	}
	return nil
}

// groups returns the groups of convolutions that tensors of three axes tell.
func (c *captured) groups() map[string]int {
	groups := map[string]int{}
	for name, parts := range c.layers {
		for _, part := range []string{"H", "x"} {
			if t, ok := parts[part]; ok && len(t.Shape) == 3 {
				groups[name] = t.Shape[0]
			}
		}
	}
	return groups
}

// sums reports whether the means of a layer's inputs are known.
func (c *captured) sums(name string) bool {
	parts := c.layers[name]
	_, rows := parts["x"]
	_, sum := parts["sum"]
	return rows || sum
}

// shape returns the form of a layer's part without an axis of one group, which
// stands in front.
func (c *captured) shape(name, part string, groups, inputs int) error {
	t := c.layers[name][part]
	want := []int{groups, inputs, inputs}
	switch part {
	case "sum", "sum_x":
		want = []int{groups, inputs}
	case "x", "xt":
		want[1] = -1
	}
	shape := t.Shape
	if len(shape) == len(want)-1 && groups == 1 {
		want = want[1:]
	}
	ok := len(shape) == len(want)
	for i := range want {
		ok = ok && (shape[i] == want[i] || want[i] < 0 && shape[i] > 0)
	}
	if ok {
		return nil
	}
	text := strings.ReplaceAll(fmt.Sprint(want), "-1", "rows")
	return c.fail("tensor "+t.Name, "has shape %v, but layer %s reads %d inputs in %d groups: want %s", shape, name, inputs, groups, text)
}

// numbers reads a part, in the precision in which it is stored.
func (c *captured) numbers(name, part string) ([]float64, error) {
	t := c.layers[name][part]
	v := make([]float64, t.Elements())
	switch t.DType {
	case dtype.F64, dtype.I64:
		raw := make([]byte, t.Bytes())
		if err := c.ckpt.ReadBytes(t.Name, raw); err != nil {
			return nil, err
		}
		for i := range v {
			bits := binary.LittleEndian.Uint64(raw[8*i:])
			if v[i] = math.Float64frombits(bits); t.DType == dtype.I64 {
				v[i] = float64(int64(bits))
			}
		}
	default:
		single, err := c.rows(name, part)
		if err != nil {
			return nil, err
		}
		for i := range v {
			v[i] = float64(single[i])
		}
	}
	for i, x := range v {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return nil, &NonFiniteError{Tensor: c.path + ": " + t.Name, Index: i, Value: x}
		}
	}
	return v, nil
}

// rows reads a part in float32.
func (c *captured) rows(name, part string) ([]float32, error) {
	t := c.layers[name][part]
	if t.DType == dtype.C64 {
		return nil, c.fail("tensor "+t.Name, "is complex, want real numbers")
	}
	v := make([]float32, t.Elements())
	if err := c.ckpt.ReadFloat32(t.Name, v); err != nil {
		return nil, err
	}
	if part == "x" || part == "xt" {
		return v, finite(c.path+": "+t.Name, v)
	}
	return v, nil
}

// of returns the moments of what a layer reads; nil where the file does not have
// them. weight is the layer's as out×in.
func (c *captured) of(ctx context.Context, p *pool.Pool, prob *layer.Problem, name string) (*layer.Moments, error) {
	parts, ok := c.layers[name]
	if !ok {
		return nil, nil
	}
	groups, inputs := prob.Groups, prob.Weight.Cols
	for _, part := range []string{"H", "G", "sum", "sum_x", "x", "xt"} {
		if _, ok := parts[part]; !ok {
			continue
		}
		if err := c.shape(name, part, groups, inputs); err != nil {
			return nil, err
		}
	}
	var m *layer.Moments
	var squares []blas64.General // XᵀX of each group, from which the energies follow
	var err error
	if _, ok := parts["x"]; ok {
		m, squares, err = c.fromRows(ctx, p, name, groups, inputs)
	} else {
		m, squares, err = c.fromSums(name, groups, inputs)
	}
	if err != nil {
		return nil, err
	}
	if squares == nil {
		energy, err := c.numbers(name, "energy")
		if err != nil {
			return nil, err
		}
		if len(energy) != prob.Weight.Rows || slices.Min(energy) < 0 {
			return nil, c.fail("tensor "+name+".energy", "has %d numbers, the least of them %v; want one for each of %d outputs, none negative", len(energy), slices.Min(energy), prob.Weight.Rows)
		}
		m.Energy = map[string][]float64{prob.Layer: energy}
		return m, nil
	}
	energy, err := energies(ctx, p, prob, squares)
	m.Energy = map[string][]float64{prob.Layer: energy}
	return m, err
}

// fromSums reads moments. squares are those of the original's inputs, nil where the
// file does not tell them.
func (c *captured) fromSums(name string, groups, inputs int) (m *layer.Moments, squares []blas64.General, err error) {
	n, err := c.numbers(name, "n")
	if err != nil {
		return nil, nil, err
	}
	if len(n) != 1 || n[0] < 1 || n[0] > 1<<53 || n[0] != math.Trunc(n[0]) {
		return nil, nil, c.fail("tensor "+name+".n", "holds %v, want one whole number of rows, at least 1", n)
	}
	m = &layer.Moments{Rows: int64(n[0]), Groups: groups, Inputs: inputs}
	if m.H, err = c.matrices(name, "H", groups, inputs); err != nil {
		return nil, nil, err
	}
	if err := c.checkGram(name, m.H); err != nil {
		return nil, nil, err
	}
	m.SumXt = make([]float64, groups*inputs)
	if c.sums(name) {
		if m.SumXt, err = c.numbers(name, "sum"); err != nil {
			return nil, nil, err
		}
		if err := c.checkSum(name, m); err != nil {
			return nil, nil, err
		}
	}
	m.SumX = m.SumXt
	if _, ok := c.layers[name]["G"]; !ok {
		return m, m.H, nil
	}
	if c.sums(name) {
		if m.SumX, err = c.numbers(name, "sum_x"); err != nil {
			return nil, nil, err
		}
	}
	m.G, err = c.matrices(name, "G", groups, inputs)
	return m, nil, err
}

func (c *captured) matrices(name, part string, groups, inputs int) ([]blas64.General, error) {
	v, err := c.numbers(name, part)
	if err != nil {
		return nil, err
	}
	var list []blas64.General
	for g := range groups {
		list = append(list, blas64.General{Rows: inputs, Cols: inputs, Stride: inputs, Data: v[g*inputs*inputs:][:inputs*inputs]})
	}
	return list, nil
}

// symmetric is how far elements across the diagonal of H may be from each other, by
// the root of the diagonal's product: what sums in float32 lose.
const symmetric = 1e-4

// checkGram looks whether H may be a sum of products of rows, and makes it exactly
// symmetric.
func (c *captured) checkGram(name string, h []blas64.General) error {
	tensor := "tensor " + name + ".H"
	for g := range h {
		for i := range h[g].Rows {
			if d := h[g].Data[i*h[g].Stride+i]; d < 0 {
				return c.fail(tensor, "holds %v on its diagonal, at input %d of group %d; a sum of squares is not negative", d, i, g)
			}
		}
		for i := range h[g].Rows {
			for j := range i {
				a, b := &h[g].Data[i*h[g].Stride+j], &h[g].Data[j*h[g].Stride+i]
				most := math.Sqrt(h[g].Data[i*h[g].Stride+i]) * math.Sqrt(h[g].Data[j*h[g].Stride+j])
				if math.Abs(*a-*b) > symmetric*most {
					return c.fail(tensor, "is not symmetric: %v at %d, %d and %v at %d, %d of group %d", *a, i, j, *b, j, i, g)
				}
				*a = (*a + *b) / 2
				*b = *a
				if math.Abs(*a) > (1+symmetric)*most {
					return c.fail(tensor, "holds %v at inputs %d and %d of group %d, more than the root of their squares' product, %v: it is no sum of products of rows", *a, i, j, g, most)
				}
			}
		}
	}
	return nil
}

// checkSum looks whether sums may be of the same rows as H: (Σx)² ≤ n·Σx².
func (c *captured) checkSum(name string, m *layer.Moments) error {
	for g, h := range m.H {
		for i := range m.Inputs {
			s, most := m.SumXt[g*m.Inputs+i], float64(m.Rows)*h.Data[i*h.Stride+i]
			if s*s > (1+symmetric)*most {
				return c.fail("tensor "+name+".sum", "holds %v at input %d of group %d; rows of such a sum have squares of at least %v, and H has %v: sums of all rows are wanted, not means", s, i, g, s*s/float64(m.Rows), h.Data[i*h.Stride+i])
			}
		}
	}
	return nil
}

// fromRows sums a layer's inputs.
func (c *captured) fromRows(ctx context.Context, p *pool.Pool, name string, groups, inputs int) (m *layer.Moments, squares []blas64.General, err error) {
	x, err := c.rows(name, "x")
	if err != nil {
		return nil, nil, err
	}
	xt, same := x, true
	if _, ok := c.layers[name]["xt"]; ok {
		same = false
		if xt, err = c.rows(name, "xt"); err != nil {
			return nil, nil, err
		}
		if len(x) != len(xt) {
			return nil, nil, c.fail("tensor "+name+".xt", "has %d numbers, and x %d: want the same rows", len(xt), len(x))
		}
	}
	n := len(x) / groups
	m = &layer.Moments{Rows: int64(n / inputs), Groups: groups, Inputs: inputs}
	for g := range groups {
		a, b := x[g*n:][:n], xt[g*n:][:n]
		one, err := sumRows(ctx, p, inputs, a, b, same)
		if err != nil {
			return nil, nil, err
		}
		m.H, m.SumXt = append(m.H, one.H...), append(m.SumXt, one.SumXt...)
		if same {
			continue
		}
		m.G, m.SumX = append(m.G, one.G...), append(m.SumX, one.SumX...)
		original, err := sumRows(ctx, p, inputs, a, a, true)
		if err != nil {
			return nil, nil, err
		}
		squares = append(squares, original.H...)
	}
	if same {
		m.SumX, squares = m.SumXt, m.H
	}
	return m, squares, nil
}

func sumRows(ctx context.Context, p *pool.Pool, inputs int, x, xt []float32, same bool) (*layer.Moments, error) {
	acc := calibrate.New(p, calibrate.Rows(inputs, inputs), same)
	if err := acc.Add(ctx, x, xt); err != nil {
		return nil, err
	}
	return acc.Moments(ctx)
}

// energies returns ‖Xwᵢ‖² = wᵢᵀ·XᵀX·wᵢ of each output.
func energies(ctx context.Context, p *pool.Pool, prob *layer.Problem, squares []blas64.General) ([]float64, error) {
	var energy []float64
	for g, h := range squares {
		from, to := prob.GroupRows(g)
		w, wh := linalg.NewGeneral(to-from, h.Rows), linalg.NewGeneral(to-from, h.Rows)
		for r := range w.Rows {
			linalg.Widen(linalg.Row(w, r), prob.Weight.Data[(from+r)*prob.Weight.Stride:][:h.Rows])
		}
		if err := blas.Gemm64(ctx, p, blas.NoTrans, blas.NoTrans, 1, w, h, 0, wh); err != nil {
			return nil, err
		}
		for r := range w.Rows {
			energy = append(energy, max(dot(linalg.Row(w, r), linalg.Row(wh, r)), 0))
		}
	}
	return energy, nil
}

func dot(a, b []float64) (sum float64) {
	for i, v := range a {
		sum += v * b[i]
	}
	return sum
}

// white are the moments of inputs that are independent and of size 1: what a
// term that looks at weights alone is found in.
func white(prob *layer.Problem) *layer.Moments {
	n := prob.Weight.Cols
	m := &layer.Moments{Rows: 1, Groups: prob.Groups, Inputs: n, SumXt: make([]float64, prob.Groups*n)}
	for range prob.Groups {
		h := linalg.NewGeneral(n, n)
		for i := range n {
			h.Data[i*h.Stride+i] = 1
		}
		m.H = append(m.H, h)
	}
	m.SumX = m.SumXt
	energy := make([]float64, prob.Weight.Rows)
	for r := range energy {
		for _, v := range prob.Weight.Data[r*prob.Weight.Stride:][:n] {
			energy[r] += float64(v) * float64(v)
		}
	}
	m.Energy = map[string][]float64{prob.Layer: energy}
	return m
}

// checkCaptured holds the plan against the file of moments: layers that need them
// must have them there, and do without bias corrections where it has no sums.
func (r *run) checkCaptured() error {
	for i := range r.plan.Layers {
		l := &r.plan.Layers[i]
		if _, ok := r.captured.layers[l.Name]; !ok && l.needsMoments() {
			reason := "is not in the file, and " + l.method() + " needs its moments"
			if near := r.captured.nearest(l.Name); near != "" {
				reason += "; the file has " + near + ": names must be the model's"
			}
			return r.captured.fail("layer "+l.Name, "%s", reason)
		}
		if l.sampleRows() > 0 {
			return &RecipeError{File: r.recipe.file, Where: fmt.Sprintf("rules[%d].steps.quantize.adaround.sample", l.rule), Reason: "needs calibration with the model itself: leave it out, and adaround learns from the moments"}
		}
		if err := r.withoutSums(l); err != nil {
			return err
		}
	}
	return nil
}

// withoutSums takes bias corrections from a layer whose inputs' means are not
// known.
func (r *run) withoutSums(l *PlanLayer) error {
	if _, ok := r.captured.layers[l.Name]; !ok || r.captured.sums(l.Name) {
		return nil
	}
	took := false
	if o := l.Quantize; o != nil && o.BiasCorrection {
		o.BiasCorrection, o.Centre, took = false, false, true
	}
	if o := l.Prune; o != nil && o.BiasCorrection {
		o.BiasCorrection, o.Centre, took = false, false, true
	}
	if !took {
		return nil
	}
	f := layer.Fallback{Asked: "bias correction", Got: "none", Reason: fmt.Sprintf("%s has no %s.sum", r.captured.path, l.Name)}
	l.fallBack(f)
	if r.recipe.OnFallback == "fail" {
		return &FallbackError{Layer: l.Name, Fallback: f}
	}
	return nil
}

// nearest returns a name in the file that may stand for a layer's: one that ends
// in it or that it ends in, or one that is spelt nearly so.
func (c *captured) nearest(name string) string {
	names := slices.Sorted(maps.Keys(c.layers))
	for _, n := range names {
		if strings.HasSuffix(n, "."+name) || strings.HasSuffix(name, "."+n) {
			return n
		}
	}
	return nearest(name, names)
}

// ForwardError says that something needs a forward pass that is not known.
type ForwardError struct {
	Path string
	Need string // what needs it
	Err  error  // why it is not known; nil where it was not looked for
}

func (e *ForwardError) Error() string {
	why := "only its weights are looked at (architecture: " + model.WeightsAlone + ")"
	if e.Err != nil {
		why = e.Err.Error()
		if _, ok := errors.AsType[*model.UnsupportedError](e.Err); ok { // which says the ways
			return fmt.Sprintf("%s: %s needs to run the model: %s", e.Path, e.Need, why)
		}
	}
	return fmt.Sprintf("%s: %s needs to run the model, and %s; %s", e.Path, e.Need, why, model.Ways)
}

func (e *ForwardError) Unwrap() error { return e.Err }
