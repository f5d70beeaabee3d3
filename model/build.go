package model

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/loader"
)

// Options say what tensors alone do not.
type Options struct {
	// Architecture names the builder; "" recognises it from the tensors.
	Architecture string
	// Activation stands between the layers of an "mlp": relu (the default),
	// leaky_relu, sigmoid or tanh.
	Activation string
	// InputShape is one sample's shape, such as that of the data set to come;
	// nil means the architecture's usual one.
	InputShape []int
	// Config is a Hugging Face folder's config.json, nil where there is none.
	// Its model_type names the builder of a language model.
	Config []byte
	// Network describes a network that neither names nor a config tell.
	Network []Node
	// Groups are those of convolutions, by layer, where only a "weights" graph can
	// be built and something else knows them.
	Groups map[string]int
}

// A builder makes the graph of one architecture.
type builder struct {
	name string
	// matches reports whether the names and shapes are of this architecture;
	// nil when they cannot tell, and it must be asked for.
	matches func(tensors []loader.Tensor) bool
	build   func(tensors []loader.Tensor, o Options) (*Graph, error)
	// config says that the builder needs Options.Config.
	config bool
	// help returns advice for tensors that may be of this architecture though
	// it did not match; "" for none. nil means the same.
	help func(tensors []loader.Tensor) string
}

func builders() []builder {
	return []builder{
		{name: cifarResNet, matches: isCIFARResNet, build: buildCIFARResNet},
		{name: mlp, build: buildMLP, help: helpMLP},
		{name: network, build: buildNetwork},
		{name: WeightsAlone, build: buildWeights},
		{name: llama, config: true, build: buildLlama, help: helpDecoder},
		{name: mistral, config: true, build: buildMistral},
		{name: qwen2, config: true, build: buildQwen2},
		{name: gpt2, config: true, build: buildGPT2},
		{name: opt, config: true, build: buildOPT},
		{name: gptNeoX, config: true, build: buildGPTNeoX},
		{name: falcon, config: true, build: buildFalcon},
		{name: bloom, config: true, build: buildBLOOM},
		{name: gptJ, config: true, build: buildGPTJ},
		{name: phi, config: true, build: buildPhi},
		{name: stableLM, config: true, build: buildStableLM},
		{name: bert, config: true, build: buildBERT, help: helpEncoder},
		{name: roberta, config: true, build: buildRoBERTa},
		{name: xlmRoberta, config: true, build: buildXLMRoBERTa},
		{name: electra, config: true, build: buildELECTRA},
		{name: distilbert, config: true, build: buildDistilBERT},
		{name: vit, config: true, build: buildViT},
		{name: whisper, config: true, build: buildWhisper},
		{name: mixtral, config: true, build: buildMixtral},
		{name: qwen2MoE, config: true, build: buildQwen2MoE},
	}
}

// Architectures returns the names that Options.Architecture may have.
func Architectures() []string {
	var names []string
	for _, b := range builders() {
		names = append(names, b.name)
	}
	return names
}

// UnsupportedError says that no builder knows what the tensors are of.
type UnsupportedError struct {
	Architecture string   // as asked for; "" when it was to be recognised
	Known        []string // the architectures that can be built
	Help         string   // what would help, "" when nothing is known to
}

// Ways are what is open to a model that no builder knows.
const Ways = "describe the network in the recipe (`model: {network: …}` or --network FILE), take the moments of its inputs where it runs (`moments:` or --moments FILE), " +
	"or use steps that need no data (nearest, hqq, fp8, magnitude, svd), without calibration and evaluate: see docs/recipes.md"

func (e *UnsupportedError) Error() string {
	what := "the tensors' names and shapes are of no architecture that can be recognised"
	if e.Architecture != "" {
		what = fmt.Sprintf("architecture %q is unknown", e.Architecture)
	}
	text := fmt.Sprintf("model: %s (known: %s)", what, strings.Join(e.Known, ", "))
	if e.Help != "" {
		text += "; " + e.Help
	}
	return text + "; or " + Ways
}

// TensorError says that a checkpoint does not fit its architecture: a tensor
// is missing, is not known, or contradicts the others.
type TensorError struct {
	Architecture string
	Tensor       string
	Problem      string
}

func (e *TensorError) Error() string {
	return fmt.Sprintf("model: as %s: tensor %s: %s", e.Architecture, e.Tensor, e.Problem)
}

// OptionError says that an option does not fit the architecture.
type OptionError struct {
	Architecture string
	Option       string // architecture, activation, input shape or config
	Problem      string
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("model: as %s: %s: %s", e.Architecture, e.Option, e.Problem)
}

// Build makes the graph of a checkpoint's tensors, which it does not read. It
// fails with *UnsupportedError when no builder takes them, and with
// *TensorError, *OptionError or *ConfigError when the architecture is known and
// they do not fit it. The graph passes Check.
func Build(tensors []loader.Tensor, o Options) (*Graph, error) {
	if err := o.chooseNetwork(); err != nil {
		return nil, err
	}
	if err := o.chooseByConfig(); err != nil {
		return nil, err
	}
	for _, b := range builders() {
		if o.Architecture != b.name && (o.Architecture != "" || b.matches == nil || !b.matches(tensors)) {
			continue
		}
		if b.config {
			if err := o.checkConfigured(b.name); err != nil {
				return nil, err
			}
		}
		g, err := b.build(tensors, o)
		if err != nil {
			return nil, err
		}
		return g, g.Check()
	}
	e := &UnsupportedError{Architecture: o.Architecture, Known: Architectures()}
	for _, b := range builders() {
		if b.help != nil && e.Help == "" {
			e.Help = b.help(tensors)
		}
	}
	if e.Help == "" && o.Architecture == "" {
		e.Help = "set the architecture if it is one of these under other names"
	}
	return nil, e
}

// chooseNetwork sets the architecture where there is a description.
func (o *Options) chooseNetwork() error {
	if o.Network == nil {
		return nil
	}
	if o.Architecture != "" && o.Architecture != network {
		return &OptionError{o.Architecture, "architecture", "stands beside a description of the network: leave one of them out"}
	}
	o.Architecture = network
	return nil
}

// tensorSet hands out tensors by name and remembers which were taken. The
// first problem sticks, so that builders need not check each step.
type tensorSet struct {
	architecture string
	byName       map[string]loader.Tensor
	order        []string
	taken        map[string]bool
	err          error
}

func newTensorSet(architecture string, tensors []loader.Tensor) *tensorSet {
	s := &tensorSet{architecture: architecture, byName: make(map[string]loader.Tensor), taken: make(map[string]bool)}
	for _, t := range tensors {
		if _, ok := s.byName[t.Name]; ok {
			s.fail(t.Name, "stands in the checkpoint twice")
		}
		s.byName[t.Name] = t
		s.order = append(s.order, t.Name)
	}
	return s
}

func (s *tensorSet) fail(name, format string, args ...any) {
	if s.err == nil {
		s.err = &TensorError{Architecture: s.architecture, Tensor: name, Problem: fmt.Sprintf(format, args...)}
	}
}

func (s *tensorSet) has(name string) bool {
	_, ok := s.byName[name]
	return ok
}

// take returns the shape of a tensor of real numbers, which must be as want
// says: −1 stands for any length. After a problem it returns want with ones.
func (s *tensorSet) take(name string, want ...int) []int {
	dummy := make([]int, len(want))
	for i, w := range want {
		dummy[i] = max(w, 1)
	}
	t, ok := s.byName[name]
	if !ok {
		s.fail(name, "is missing")
		return dummy
	}
	s.taken[name] = true
	if !t.DType.IsFloat() {
		s.fail(name, "has type %s, want floating point", t.DType)
		return dummy
	}
	fits := len(t.Shape) == len(want) && size(t.Shape) > 0
	for i := 0; fits && i < len(want); i++ {
		fits = want[i] < 0 || t.Shape[i] == want[i]
	}
	if !fits {
		s.fail(name, "has shape %v, want %s", t.Shape, describeShape(want))
		return dummy
	}
	return t.Shape
}

// ignore marks a tensor that the forward pass does not read.
func (s *tensorSet) ignore(name string) { s.taken[name] = true }

// finish returns the first problem; a tensor that no one took is one.
func (s *tensorSet) finish() error {
	for _, name := range s.order {
		if !s.taken[name] {
			s.fail(name, "has no place in this architecture (shape %v)", s.byName[name].Shape)
		}
	}
	return s.err
}

func describeShape(want []int) string {
	text := make([]string, len(want))
	for i, w := range want {
		text[i] = "any"
		if w >= 0 {
			text[i] = fmt.Sprint(w)
		}
	}
	return "[" + strings.Join(text, " ") + "]"
}

// graphBuilder appends operations. Like tensorSet it keeps the first problem.
type graphBuilder struct {
	g     *Graph
	block int // given to operations, −1 outside transformer blocks
	err   error
}

// newGraphBuilder starts a graph whose input is value 0.
func newGraphBuilder(architecture string, input []int) *graphBuilder {
	return &graphBuilder{block: -1, g: &Graph{Architecture: architecture, Values: []Value{{Name: "input", Shape: slices.Clone(input)}}}}
}

// add appends an operation and returns the value that it writes, which bears
// the operation's name.
func (b *graphBuilder) add(op Op) int {
	in := make([][]int, len(op.Inputs))
	for i, v := range op.Inputs {
		in[i] = b.g.Values[v].Shape
	}
	shape, err := op.outputShape(in)
	if err != nil {
		if b.err == nil {
			b.err = fmt.Errorf("model: as %s: %s: %w", b.g.Architecture, op.Name, err)
		}
		shape = in[0]
	}
	op.Output, op.Block = len(b.g.Values), b.block
	b.g.Values = append(b.g.Values, Value{Name: op.Name, Shape: slices.Clone(shape)})
	b.g.Ops = append(b.g.Ops, op)
	return op.Output
}

// conv appends a square convolution without dilation or groups.
func (b *graphBuilder) conv(name string, x int, weight string, outputs, kernel, stride, pad int) int {
	c := blas.Patches{
		KernelH: kernel, KernelW: kernel, StrideH: stride, StrideW: stride,
		PadH: pad, PadW: pad, DilationH: 1, DilationW: 1, Groups: 1,
	}
	if s := b.g.Values[x].Shape; len(s) == 3 {
		c.Channels, c.Height, c.Width = s[0], s[1], s[2]
	}
	return b.add(Op{Kind: Conv2D, Name: name, Inputs: []int{x}, Weight: weight, Outputs: outputs, Conv: &c})
}

// finish returns the graph with the given output.
func (b *graphBuilder) finish(output int) (*Graph, error) {
	b.g.Output = output
	return b.g, b.err
}
