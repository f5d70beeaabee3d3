package export

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/layer"
)

// config is what is read of config.json.
type config struct {
	Own           own             `json:"fettle"` // under ownKey
	Architectures []string        `json:"architectures"`
	ModelType     string          `json:"model_type"`
	Quantization  json.RawMessage `json:"quantization_config"`
}

// quantization is what is read of compressed-tensors' quantization_config.
type quantization struct {
	Version    string                     `json:"version"`
	Format     string                     `json:"format"`
	Ignore     []string                   `json:"ignore"`
	Groups     map[string]json.RawMessage `json:"config_groups"`
	Cache      any                        `json:"kv_cache_scheme"`
	Transforms map[string]any             `json:"transform_config"`
	Sparsity   struct {
		Format string `json:"format"`
	} `json:"sparsity_config"`
}

type group struct {
	Targets []string `json:"targets"`
	Format  *string  `json:"format"` // that at the top, where it is not given
	Weights *struct {
		Bits      int     `json:"num_bits"`
		Type      string  `json:"type"`
		Symmetric bool    `json:"symmetric"`
		Strategy  string  `json:"strategy"`
		GroupSize *int    `json:"group_size"`
		Block     []int   `json:"block_structure"`
		ActOrder  *string `json:"actorder"`
	} `json:"weights"`
	Inputs any `json:"input_activations"`
}

// declared is what a checkpoint's config says of how its weights are stored.
type declared struct {
	architecture, modelType string
	quantization            json.RawMessage // as it came
	method                  string          // its quant_method
	weights                 map[string]storage

	gptq *gptqConfig // of GPTQ and AWQ

	// Of compressed-tensors.
	groups []configGroup
	ignore []string
	sparse string // format of weights that are stored as survivors
}

// configGroup is what weights of one scheme share.
type configGroup struct {
	name        string
	targets     []string
	scheme      scheme        // of a layout that fettle writes
	affine      *affineScheme // of another one; nil else
	format      string        // the name of the layout, as the config has it
	text        string        // all of the group but its targets, as JSON
	activations bool          // are quantized when the model runs
}

// codesName returns the name of the tensor that holds the codes of a weight of the
// group, "" where a weight of its name can have none.
func (g configGroup) codesName(weight string) string {
	switch {
	case g.affine == nil:
		return codesName(weight, g.scheme)
	case g.affine.packedByInputs() && moduleOf(weight) == weight:
		return ""
	}
	return (&affine{affineScheme: *g.affine, name: weight}).codesName()
}

// parseConfig reads a config.json; quantize, where it is not nil, is GPTQ's own file
// beside it, which counts where config.json says nothing.
func parseConfig(data, quantize []byte) (d declared, err error) {
	var c config
	if data != nil {
		if err := json.Unmarshal(data, &c); err != nil {
			return d, err
		}
	}
	if len(c.Architectures) > 0 {
		d.architecture = c.Architectures[0]
	}
	d.modelType, d.weights, d.quantization = c.ModelType, c.Own.Weights, c.Quantization
	var head struct {
		Method *string `json:"quant_method"`
	}
	if string(d.quantization) == "null" {
		d.quantization = nil
	}
	if d.quantization == nil && quantize != nil {
		if d.quantization, err = named(quantize); err != nil {
			return d, fmt.Errorf("%s: %w", quantizeName, err)
		}
	}
	if d.quantization == nil {
		return d, fmt.Errorf("no quantization_config")
	}
	if err := json.Unmarshal(d.quantization, &head); err != nil {
		return d, fmt.Errorf("quantization_config: %w", err)
	}
	if head.Method != nil {
		d.method = *head.Method
	}
	switch d.method {
	case quantMethod:
		return d, d.parseGroups()
	case gptqMethod, awqMethod:
		d.gptq, err = parseGPTQ(d.method, d.quantization)
		return d, err
	}
	return d, &MethodError{Method: d.method}
}

// named returns GPTQ's config with its method, which early versions do not name.
func named(quantize []byte) ([]byte, error) {
	keys := map[string]json.RawMessage{}
	if err := json.Unmarshal(quantize, &keys); err != nil {
		return nil, err
	}
	if _, ok := keys["quant_method"]; !ok && keys != nil {
		keys["quant_method"] = json.RawMessage(`"` + gptqMethod + `"`)
	}
	return json.Marshal(keys)
}

// parseGroups reads compressed-tensors' quantization_config.
func (d *declared) parseGroups() error {
	var q quantization
	if err := json.Unmarshal(d.quantization, &q); err != nil {
		return err
	}
	switch {
	case q.Cache != nil:
		return fmt.Errorf("kv_cache_scheme: a cache of quantized keys and values cannot be kept; set it to null and remove the tensors of its scales")
	case len(q.Transforms) > 0:
		return fmt.Errorf("transform_config: weights that are stored rotated cannot be read; give the model without transforms")
	}
	d.ignore, d.sparse = q.Ignore, q.Sparsity.Format
	exact := map[string]bool{}
	var formats []string
	for _, name := range slices.Sorted(maps.Keys(q.Groups)) {
		g, err := parseGroup(name, q.Groups[name], q.Format)
		if err != nil {
			return fmt.Errorf("config group %q: %w", name, err)
		}
		formats = append(formats, g.format)
		if g.affine == nil && g.scheme.format == layer.Integer && 32%g.scheme.bits != 0 && olderThanDense(q.Version) {
			return fmt.Errorf("version %q packs %d bits in another way than %s and later, which fettle reads; save the model anew with a later version of compressed-tensors", q.Version, g.scheme.bits, layoutVersion)
		}
		for _, t := range g.targets {
			if exact[t] {
				return fmt.Errorf("target %q stands there twice", t)
			}
			exact[t] = true
		}
		d.groups = append(d.groups, g)
	}
	if want := overall(formats); q.Format != want && q.Format != q.Sparsity.Format {
		return fmt.Errorf("format is %q, want %q", q.Format, want)
	}
	return nil
}

func parseGroup(name string, text json.RawMessage, format string) (c configGroup, err error) {
	var g group
	if err := json.Unmarshal(text, &g); err != nil {
		return c, err
	}
	if g.Weights == nil {
		return c, fmt.Errorf("has no weights, and activations alone are not read; remove the group")
	}
	c = configGroup{name: name, targets: g.Targets, activations: g.Inputs != nil}
	keys := map[string]any{}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&keys); err != nil {
		return c, err
	}
	if g.Format != nil {
		format = *g.Format
	}
	c.format = format
	delete(keys, "targets")
	keys["format"] = format
	if c.text, err = canonical(keys); err != nil {
		return c, err
	}
	if c.affine, err = g.affine(format); err != nil || c.affine != nil {
		return c, err
	}
	c.scheme, err = g.scheme(format)
	return c, err
}

// canonical returns the JSON of a config group, which is the same for the same group.
func canonical(keys map[string]any) (string, error) {
	text, err := json.Marshal(keys) // sorts them
	return string(text), err
}

// scheme returns the scheme of a layout that fettle writes, given its name.
func (g group) scheme(format string) (scheme, error) {
	w := g.Weights
	name, sparse := strings.CutPrefix(format, sparsePrefix)
	f, known := formatOf(name)
	s := scheme{format: f, bits: w.Bits, granularity: layer.Granularity(w.Strategy), symmetric: w.Symmetric, sparse: sparse}
	if f == layer.NVFP4 && w.Strategy == tensorGroup {
		s.granularity = layer.PerGroup
	}
	if w.GroupSize != nil && *w.GroupSize != -1 {
		s.groupSize = *w.GroupSize
	}
	switch {
	case !known:
		return s, fmt.Errorf("format %q is not supported; fettle reads %s, %s and those of GPTQ and AWQ", format,
			strings.Join(slices.Sorted(maps.Values(quantFormats)), ", "), layoutInt)
	case w.Type != s.weights()["type"] || w.Strategy != s.weights()["strategy"]:
		return s, fmt.Errorf("weights of type %q and strategy %q, which %s has not", w.Type, w.Strategy, format)
	}
	return s, s.check()
}

// affine returns the scheme of a layout that fettle reads alone; nil where it is
// another.
func (g group) affine(format string) (*affineScheme, error) {
	w := g.Weights
	s := &affineScheme{layout: format, bits: w.Bits, strategy: w.Strategy, symmetric: w.Symmetric, float: w.Type == "float"}
	if w.GroupSize != nil && *w.GroupSize > 0 {
		s.groupSize = *w.GroupSize
	}
	if len(w.Block) == 2 {
		s.block = [2]int{w.Block[0], w.Block[1]}
	}
	order := cmp.Or(value(w.ActOrder), "static")
	switch order {
	case "static", "weight": // which change no layout
	case "group", "dynamic":
		s.actOrder = true
	default:
		return nil, fmt.Errorf("actorder %q is not known, want group or static", order)
	}
	switch {
	case s.packedByInputs():
		return s, s.check()
	case format == layoutInt, (format == layoutNaive || format == layoutFloat) && (!s.float || w.Strategy == "block"):
		return s, s.check()
	case s.actOrder && format == layoutPacked:
		return s, s.check()
	case s.actOrder:
		return nil, fmt.Errorf("actorder %q with %s, which has no place for it", order, format)
	}
	return nil, nil
}

func (s affineScheme) check() error {
	least, most := 2, 8
	switch {
	case s.float && (s.bits != 8 || !s.symmetric):
		return fmt.Errorf("floating-point codes of %d bits, want 8, symmetric", s.bits)
	case s.layout == layoutAWQ && s.bits != 4:
		return fmt.Errorf("%d bits; AWQ packs 4", s.bits)
	case s.bits < least || s.bits > most:
		return fmt.Errorf("%d bits, want %d to %d", s.bits, least, most)
	case s.packedByInputs() && !slices.Contains([]int{2, 3, 4, 8}, s.bits):
		return fmt.Errorf("%d bits; GPTQ packs 2, 3, 4 or 8", s.bits)
	}
	switch s.strategy {
	case "tensor", "channel":
		if s.groupSize > 0 {
			return fmt.Errorf("group_size %d with strategy %q", s.groupSize, s.strategy)
		}
	case "group":
		if s.groupSize < 1 {
			return fmt.Errorf("strategy group needs a group_size of 1 or more")
		}
	case "block":
		if s.block[0] < 1 || s.block[1] < 1 || s.packedByInputs() {
			return fmt.Errorf("strategy block needs a block_structure of two sizes")
		}
	default:
		return fmt.Errorf("strategy %q is not supported, want tensor, channel, group or block", s.strategy)
	}
	if s.packedByInputs() && s.strategy == "tensor" {
		return fmt.Errorf("strategy tensor, which %s has not", s.layout)
	}
	return nil
}

// groupText returns the config group of an affine scheme that no config group was read
// of.
func (s affineScheme) groupText() (string, error) {
	w := scheme{format: layer.Integer, bits: s.bits, granularity: layer.Granularity(s.strategy), groupSize: s.groupSize, symmetric: s.symmetric}.weights()
	if s.actOrder {
		w["actorder"] = "group"
	}
	return canonical(map[string]any{"format": s.layout, "weights": w, "input_activations": nil, "output_activations": nil})
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// isClass reports whether a target is a class of modules and not a module's name.
func isClass(target string) bool {
	return !strings.Contains(target, ".") && target != "" && target[0] >= 'A' && target[0] <= 'Z'
}

// matches reports whether a target that is no exact name means a module whose weight
// has so many dimensions.
func matches(target, module string, dims int) (bool, error) {
	if pattern, ok := strings.CutPrefix(target, "re:"); ok {
		re, err := regexp.Compile(`\A(?:` + pattern + `)`)
		if err != nil {
			return false, fmt.Errorf("target %q cannot be read: %w", target, err)
		}
		return re.MatchString(module), nil
	}
	switch target {
	case "Linear":
		return dims == 2, nil
	case "Conv2d":
		return dims == 4, nil
	}
	return target == module, nil
}

// groupFor returns the group of a module that no target names exactly: that of the
// first pattern, else of the first class.
func (d *declared) groupFor(module string, dims int) (*configGroup, error) {
	for _, classes := range []bool{false, true} {
		for i := range d.groups {
			for _, t := range d.groups[i].targets {
				if isClass(t) != classes {
					continue
				}
				if ok, err := matches(t, module, dims); ok || err != nil {
					return &d.groups[i], err
				}
			}
		}
	}
	return nil, nil
}

// ignored reports whether the config says that a module is not compressed.
func (d *declared) ignored(module string, dims int) (bool, error) {
	for _, t := range d.ignore {
		if ok, err := matches(t, module, dims); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// stems returns the weights that look compressed and that no one owns, in order.
func stems(names map[string]dtype.DType, owned func(tensor string) bool) (list []string) {
	for name, d := range names {
		weight, packed := strings.CutSuffix(name, packedSuffix)
		_, scaled := names[weight+scaleSuffix]
		if owned(name) || !packed && (!scaled || d != dtype.F8E4M3 && d != dtype.I8) || packed && !scaled && !strings.HasSuffix(weight, weightSuffix) {
			continue
		}
		list = append(list, weight)
	}
	slices.Sort(list)
	return slices.Compact(list)
}
