package model

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/fettle-dev/fettle/internal/blas"
)

// Value is an activation of the graph: what one operation writes and others
// read. Shape is one sample's, without the batch. A language model's sample is
// a token: its value is the vector of one token, and the input's is [1], an id.
type Value struct {
	Name  string `json:"name"`
	Shape []int  `json:"shape"`
}

// OpKind says what an operation computes.
type OpKind string

// The operations, each on one sample x.
const (
	Conv2D        OpKind = "conv2d"        // 2-D cross-correlation with Weight, plus Bias
	Linear        OpKind = "linear"        // x·Weightᵀ plus Bias, over the last axis
	BatchNorm2D   OpKind = "batchnorm2d"   // (x − mean)/√(var + eps)·scale + shift for each channel
	ReLU          OpKind = "relu"          // max(x, 0)
	LeakyReLU     OpKind = "leaky_relu"    // x, times Slope where negative
	Sigmoid       OpKind = "sigmoid"       // 1/(1 + e⁻ˣ)
	Tanh          OpKind = "tanh"          // hyperbolic tangent
	Add           OpKind = "add"           // sum of two values
	SubsamplePad  OpKind = "subsample_pad" // every Stride-th row and column, PadChannels zero channels on each side
	GlobalAvgPool OpKind = "globalavgpool" // mean of each channel
	Flatten       OpKind = "flatten"       // the same numbers as one axis

	// Those of language models, each on one token, but for attention, which
	// also reads the tokens before it.
	Embed     OpKind = "embedding" // the table's row of the token's id, plus that of its position
	RMSNorm   OpKind = "rmsnorm"   // x/√(mean(x²) + eps)·weight
	LayerNorm OpKind = "layernorm" // (x − mean)/√(var + eps)·weight + bias
	Attend    OpKind = "attention" // Σ softmax(scale·q·kᵀ)·v for each head
	SiLUMul   OpKind = "silu_mul"  // a/(1 + e⁻ᵃ)·b
	GELU      OpKind = "gelu"      // x·Φ(x), Φ being the normal distribution
	GELUTanh  OpKind = "gelu_tanh" // x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))

	// Those of encoders. Values of tokens × width hold a whole sequence, and
	// linear layers, normalizations and attention take both.
	ToTokens   OpKind = "tokens"      // the positions of an image as tokens, after those of Sequence, plus positions
	FirstToken OpKind = "first_token" // the first token of each sequence

	// Those of mixtures of experts. An expert's values have the rows of its own
	// tokens only, in their order; there may be none.
	Route     OpKind = "route"      // logits of the experts to their weights, 0 for all but some
	Dispatch  OpKind = "dispatch"   // of x and the weights: x of the tokens that go to Expert
	Combine   OpKind = "combine"    // of the weights and each expert's y: Σ weight·y, plus one further value if there is one
	ScaleRows OpKind = "scale_rows" // x times one number for each token
)

// Op is one operation of a graph. Inputs and Output are indices into
// Graph.Values.
type Op struct {
	Kind   OpKind `json:"kind"`
	Name   string `json:"name"`
	Inputs []int  `json:"inputs"`
	Output int    `json:"output"`

	// Weight and Bias name the tensors of a Conv2D or Linear; Bias "" means
	// none. A weight is Outputs × inputs of a group (× kernel height × width);
	// Transposed says that a Linear's is stored as inputs × Outputs.
	Weight     string `json:"weight,omitempty"`
	Bias       string `json:"bias,omitempty"`
	Outputs    int    `json:"outputs,omitempty"` // output channels or features
	Transposed bool   `json:"transposed,omitempty"`

	// Block is the transformer block that the operation is part of, −1 where
	// it is part of none. Layers of the same Fusion, unless that is "", read
	// the same value, and runtimes join them into one: their formats must agree.
	Block  int    `json:"block"`
	Fusion string `json:"fusion,omitempty"`

	Conv        *blas.Patches `json:"conv,omitempty"`         // Conv2D: how it reads its input
	BatchNorm   *BatchNorm    `json:"batchnorm,omitempty"`    // BatchNorm2D
	Slope       float32       `json:"slope,omitempty"`        // LeakyReLU
	Stride      int           `json:"stride,omitempty"`       // SubsamplePad
	PadChannels int           `json:"pad_channels,omitempty"` // SubsamplePad
	Embedding   *Embedding    `json:"embedding,omitempty"`    // Embed
	Norm        *Norm         `json:"norm,omitempty"`         // RMSNorm, LayerNorm
	Attention   *Attention    `json:"attention,omitempty"`    // Attend
	Sequence    *Sequence     `json:"sequence,omitempty"`     // ToTokens
	Routing     *Routing      `json:"routing,omitempty"`      // Route
	Expert      int           `json:"expert,omitempty"`       // Dispatch: which expert's tokens
}

// BatchNorm names the tensors of a batch normalization in inference, one
// number per channel each (Ioffe and Szegedy 2015, algorithm 2).
type BatchNorm struct {
	Scale string  `json:"scale"` // γ, "weight" in PyTorch
	Shift string  `json:"shift"` // β, "bias" in PyTorch
	Mean  string  `json:"mean"`
	Var   string  `json:"var"`
	Eps   float64 `json:"eps"`
}

// IsLayer reports whether the operation has a weight that can be compressed.
func (o *Op) IsLayer() bool { return o.Weight != "" }

// Groups returns a convolution's groups, else 1.
func (o *Op) Groups() int {
	if o.Conv == nil {
		return 1
	}
	return o.Conv.Groups
}

// Tensors lists the tensors that the operation reads.
func (o *Op) Tensors() []string {
	names := appendNamed(nil, o.Weight, o.Bias)
	if b := o.BatchNorm; b != nil {
		names = append(names, b.Scale, b.Shift, b.Mean, b.Var)
	}
	if t := o.Embedding; t != nil {
		names = appendNamed(names, t.Table, t.Positions, t.Types)
	}
	if s := o.Sequence; s != nil {
		names = append(names, s.tensors()...)
	}
	if n := o.Norm; n != nil {
		names = appendNamed(names, n.Weight, n.Bias)
	}
	return names
}

// appendNamed appends those names that are not "".
func appendNamed(names []string, more ...string) []string {
	for _, name := range more {
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}

// Normalize says how image inputs in 0…1 become the graph's input:
// (x − Mean)/Std for each channel. Empty means that they go in as they are.
type Normalize struct {
	Mean []float32 `json:"mean,omitempty"`
	Std  []float32 `json:"std,omitempty"`
}

func (n Normalize) check(channels int) error {
	if len(n.Mean) != len(n.Std) || (len(n.Mean) != 0 && len(n.Mean) != channels) {
		return fmt.Errorf("graph: normalization of %d means and %d deviations for %d channels", len(n.Mean), len(n.Std), channels)
	}
	for c := range n.Mean {
		mean, std := float64(n.Mean[c]), float64(n.Std[c])
		if math.IsNaN(mean) || math.IsInf(mean, 0) || !(std > 0) || math.IsInf(std, 0) {
			return fmt.Errorf("graph: normalization of channel %d by mean %v and deviation %v", c, mean, std)
		}
	}
	return nil
}

// Graph is a network: Ops in an order in which each comes after those whose
// values it reads.
type Graph struct {
	Architecture string    `json:"architecture"`
	Values       []Value   `json:"values"`
	Ops          []Op      `json:"ops"`
	Input        int       `json:"input"`  // the value that samples are given as
	Output       int       `json:"output"` // the logits, or what Task says
	Normalize    Normalize `json:"normalize"`

	// Task says what the output is, where it is neither an image's logits nor
	// those of a next token.
	Task Task `json:"task,omitempty"`
	// Detached says that the layers stand each for itself, as nothing is known of
	// what connects them: no operation writes what they read, and the graph cannot
	// be run.
	Detached bool `json:"detached,omitempty"`

	// Context is the longest sequence that a language model was made for, in
	// tokens; 0 for other models.
	Context int `json:"context,omitempty"`
	// Copies lists tensors that the checkpoint stores a second time for a tied
	// head, and that no operation reads. CheckCopies compares them.
	Copies []Copy `json:"copies,omitempty"`
}

// Check reports the first thing that makes the graph ill-formed: an index out
// of range, a value read before it is written or written twice, or a shape
// that does not follow from the operation.
func (g *Graph) Check() error {
	if !g.has(g.Input) || !g.has(g.Output) {
		return fmt.Errorf("graph: input %d and output %d of %d values", g.Input, g.Output, len(g.Values))
	}
	for _, v := range g.Values {
		if len(v.Shape) == 0 || size(v.Shape) <= 0 {
			return fmt.Errorf("graph: value %s has shape %v", v.Name, v.Shape)
		}
	}
	if err := g.Normalize.check(g.Values[g.Input].Shape[0]); err != nil {
		return err
	}
	written, rows := make([]bool, len(g.Values)), make([]routedRows, len(g.Values))
	written[g.Input] = true
	for i := range g.Ops {
		for _, v := range g.Ops[i].Inputs {
			if g.Detached && g.has(v) {
				written[v] = true
			}
		}
	}
	layers := make(map[string]bool)
	for i := range g.Ops {
		err := g.checkOp(i, written)
		if err == nil {
			err = g.checkRows(&g.Ops[i], rows)
		}
		if err != nil {
			return fmt.Errorf("graph: operation %d (%s): %w", i, g.Ops[i].Name, err)
		}
		if w := g.Ops[i].Weight; w != "" {
			if layers[w] {
				return fmt.Errorf("graph: operation %d (%s): weight %s belongs to an earlier layer", i, g.Ops[i].Name, w)
			}
			layers[w] = true
		}
	}
	if !written[g.Output] {
		return fmt.Errorf("graph: no operation writes the output %s", g.Values[g.Output].Name)
	}
	if rows[g.Output].routed {
		return fmt.Errorf("graph: the output %s is of one expert's tokens", g.Values[g.Output].Name)
	}
	return nil
}

func (g *Graph) has(value int) bool { return value >= 0 && value < len(g.Values) }

func (g *Graph) checkOp(i int, written []bool) error {
	op := &g.Ops[i]
	in := make([][]int, len(op.Inputs))
	for j, v := range op.Inputs {
		if !g.has(v) || !written[v] {
			return fmt.Errorf("reads value %d before it is written", v)
		}
		in[j] = g.Values[v].Shape
	}
	if !g.has(op.Output) || written[op.Output] {
		return fmt.Errorf("cannot write value %d", op.Output)
	}
	written[op.Output] = true
	out, err := op.outputShape(in)
	if err != nil {
		return err
	}
	if v := g.Values[op.Output]; !slices.Equal(v.Shape, out) {
		return fmt.Errorf("value %s has shape %v, the operation gives %v", v.Name, v.Shape, out)
	}
	return nil
}

// Readers returns the operations that read a value, in order.
func (g *Graph) Readers(value int) []int {
	var readers []int
	for i := range g.Ops {
		for _, v := range g.Ops[i].Inputs {
			if v == value {
				readers = append(readers, i)
				break
			}
		}
	}
	return readers
}

// LastUse returns for each value the last operation that reads it, after which
// it can be freed: −1 where none does, len(Ops) for the graph's output.
func (g *Graph) LastUse() []int {
	last := make([]int, len(g.Values))
	for v := range last {
		last[v] = -1
	}
	for i := range g.Ops {
		for _, v := range g.Ops[i].Inputs {
			last[v] = i
		}
	}
	if g.has(g.Output) {
		last[g.Output] = len(g.Ops)
	}
	return last
}

// Segment is a run of operations, From … To−1.
type Segment struct{ From, To int }

// HasHead reports whether the last operation of a model of text is a linear layer
// that gives the output.
func (g *Graph) HasHead() bool {
	last := len(g.Ops) - 1
	return last > 0 && g.Ops[0].Kind == Embed && g.Ops[last].Kind == Linear && g.Ops[last].Output == g.Output
}

// Segments cuts the graph where its blocks begin and end, and where experts do, so
// that a caller who runs all batches through one segment before the next needs the
// weights of one block, or one expert, at a time. The last operation of a language
// model, its head, is in none:
// see Head.
func (g *Graph) Segments() []Segment {
	end := len(g.Ops)
	if g.HasHead() {
		end--
	}
	var segments []Segment
	for from := 0; from < end; {
		to := from + 1
		for to < end && g.Ops[to].Block == g.Ops[from].Block && g.Ops[to].Kind != Dispatch {
			to++
		}
		segments = append(segments, Segment{from, to})
		from = to
	}
	return segments
}

// Tensors returns the names of all tensors that the graph reads, in the order
// of the operations, each once.
func (g *Graph) Tensors() []string {
	var names []string
	seen := make(map[string]bool)
	for i := range g.Ops {
		for _, name := range g.Ops[i].Tensors() {
			if !seen[name] {
				names = append(names, name)
			}
			seen[name] = true
		}
	}
	return names
}

// Tied reports whether the weight of layer i is read by another operation too,
// as a head's is that shares the embedding's table. To change it is to change
// both.
func (g *Graph) Tied(i int) bool {
	weight := g.Ops[i].Weight
	for j := range g.Ops {
		o := &g.Ops[j]
		if j == i || o.Embedding == nil && o.BatchNorm == nil && o.Norm == nil && o.Weight != weight && o.Bias != weight {
			continue // without a list: a model with many experts has many operations
		}
		if slices.Contains(o.Tensors(), weight) {
			return true
		}
	}
	return false
}

// NormBefore returns the normalization over a token's vector that writes a value,
// has a weight, and whose tensors no other operation reads, so that a factor for each channel
// of the value can go into them; nil where there is none, and for the output.
func (g *Graph) NormBefore(value int) *Op {
	at := slices.IndexFunc(g.Ops, func(o Op) bool { return o.Output == value })
	if at < 0 || g.Ops[at].Norm == nil || g.Ops[at].Norm.Weight == "" || value == g.Output {
		return nil
	}
	for j := range g.Ops {
		for _, name := range g.Ops[j].Tensors() {
			if j != at && slices.Contains(g.Ops[at].Tensors(), name) {
				return nil
			}
		}
	}
	return &g.Ops[at]
}

// Hash returns the hex SHA-256 of the graph's JSON, whose fields have a fixed
// order. Graphs that pass Check and have the same hash compute the same function
// of their weights.
func (g *Graph) Hash() string {
	b, err := json.Marshal(g)
	if err != nil { // a number that is not finite, which Check refuses
		b = fmt.Appendf(nil, "%v: %+v", err, *g)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// String returns a table of the operations.
func (g *Graph) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s → %s\n", g.Architecture, g.label(g.Input), g.label(g.Output))
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "op\tkind\treads\twrites\tweight\tdetail") // a strings.Builder does not fail
	for i := range g.Ops {
		op := &g.Ops[i]
		reads := make([]string, len(op.Inputs))
		for j, v := range op.Inputs {
			reads[j] = g.label(v)
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", op.Name, op.Kind,
			strings.Join(reads, ", "), g.label(op.Output), op.Weight, op.detail())
	}
	_ = w.Flush()
	return b.String()
}

func (g *Graph) label(value int) string {
	if !g.has(value) {
		return fmt.Sprintf("value %d", value)
	}
	return fmt.Sprintf("%s %v", g.Values[value].Name, g.Values[value].Shape)
}

func (o *Op) detail() string {
	switch {
	case o.Conv != nil:
		c := o.Conv
		return fmt.Sprintf("%d×%d, stride %d×%d, padding %d×%d, dilation %d×%d, groups %d", c.KernelH, c.KernelW,
			c.StrideH, c.StrideW, c.PadH, c.PadW, c.DilationH, c.DilationW, c.Groups)
	case o.Kind == LeakyReLU:
		return fmt.Sprintf("slope %v", o.Slope)
	case o.Kind == SubsamplePad:
		return fmt.Sprintf("stride %d, %d zero channels on each side", o.Stride, o.PadChannels)
	case o.BatchNorm != nil:
		return fmt.Sprintf("eps %v", o.BatchNorm.Eps)
	case o.Norm != nil:
		return fmt.Sprintf("eps %v", o.Norm.Eps)
	case o.Embedding != nil:
		return o.Embedding.String()
	case o.Attention != nil:
		return o.Attention.String()
	case o.Sequence != nil:
		return o.Sequence.String()
	case o.Routing != nil:
		return o.Routing.String()
	case o.Kind == Dispatch:
		return fmt.Sprintf("tokens of expert %d", o.Expert)
	case o.Transposed:
		return "stored as inputs × outputs"
	}
	return ""
}
