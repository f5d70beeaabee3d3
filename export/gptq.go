package export

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// The methods beside compressed-tensors that are read: GPTQ as AutoGPTQ and GPTQModel
// store it, AWQ in its gemm version.
const (
	gptqMethod = "gptq"
	awqMethod  = "awq"
)

// MethodError says that a checkpoint is quantized in a way that is not read.
type MethodError struct{ Method string }

func (e *MethodError) Error() string {
	what := fmt.Sprintf("the weights are quantized by %q, which is not known", e.Method)
	help := "give the model that it was made from, or save it dequantized"
	switch e.Method {
	case "":
		what, help = "quantization_config has no quant_method", "say which it is: compressed-tensors, gptq or awq"
	case "bitsandbytes":
		what, help = "the weights are stored by bitsandbytes (NF4, FP4 or LLM.int8), which is not read",
			"give the model that it was made from, or save it dequantized (model.dequantize(), then save_pretrained)"
	case "fp8", "fbgemm_fp8", "modelopt", "mxfp4", "torchao", "quanto", "hqq", "aqlm", "vptq", "eetq", "higgs", "spqr", "bitnet", "quark":
		what = fmt.Sprintf("the weights are stored in the layout of %s, which is not read", e.Method)
	case "auto-round", "auto_round":
		what, help = "the weights are stored in AutoRound's own layout, which is not read", "export it again with format auto_gptq, which is"
	}
	return fmt.Sprintf("%s: %s; fettle reads compressed-tensors, gptq and awq (gemm)", what, help)
}

// Unwrap returns ErrUnsupported.
func (e *MethodError) Unwrap() error { return ErrUnsupported }

// gptqConfig is the quantization_config of GPTQ and AWQ.
type gptqConfig struct {
	scheme  affineScheme
	dynamic []dynamicRule
}

// dynamicRule gives modules whose names match other options than the config's.
type dynamicRule struct {
	pattern *regexp.Regexp
	skip    bool // they are not quantized
	options gptqOptions
}

// gptqOptions are the keys that a layout depends on.
type gptqOptions struct {
	Bits      *int  `json:"bits"`
	GroupSize *int  `json:"group_size"`
	ActOrder  *bool `json:"desc_act"`
	Symmetric *bool `json:"sym"`
}

func (o gptqOptions) apply(s *affineScheme) error {
	if o.Bits != nil {
		s.bits = *o.Bits
	}
	if o.ActOrder != nil {
		s.actOrder = *o.ActOrder
	}
	if o.Symmetric != nil {
		s.symmetric = *o.Symmetric
	}
	if o.GroupSize != nil {
		s.strategy, s.groupSize = "group", *o.GroupSize
		if s.groupSize == -1 {
			s.strategy, s.groupSize = "channel", 0
		}
	}
	return s.check()
}

func parseGPTQ(method string, text []byte) (*gptqConfig, error) {
	var c struct {
		gptqOptions
		Format     string          `json:"format"`
		Checkpoint string          `json:"checkpoint_format"`
		Version    string          `json:"version"`
		ZeroPoint  *bool           `json:"zero_point"`
		Words      string          `json:"pack_dtype"`
		Dynamic    json.RawMessage `json:"dynamic"`
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("quantization_config: %w", err)
	}
	out := &gptqConfig{scheme: affineScheme{symmetric: method == gptqMethod, strategy: "channel"}}
	switch layout := cmp.Or(c.Checkpoint, c.Format); {
	case method == awqMethod && (c.Version != "" && !strings.EqualFold(c.Version, "gemm")):
		return nil, fmt.Errorf("AWQ's version %q is not supported; save the model in version gemm", c.Version)
	case method == awqMethod:
		out.scheme.layout = layoutAWQ
		if c.ZeroPoint != nil {
			out.scheme.symmetric = !*c.ZeroPoint
		}
	case c.Checkpoint != "" && c.Format != "" && c.Checkpoint != c.Format:
		return nil, fmt.Errorf("checkpoint_format %q contradicts format %q", c.Checkpoint, c.Format)
	case layout == "" || layout == layoutGPTQ:
		out.scheme.layout = layoutGPTQ
	case layout == layoutGPTQv2:
		out.scheme.layout = layoutGPTQv2
	default:
		return nil, fmt.Errorf("checkpoint_format %q is not supported; save the model in format gptq or gptq_v2", layout)
	}
	if c.Words != "" && c.Words != "int32" {
		return nil, fmt.Errorf("pack_dtype %q is not supported, want int32; save the model so", c.Words)
	}
	if c.Bits == nil {
		return nil, fmt.Errorf("quantization_config: bits is missing")
	}
	if err := c.apply(&out.scheme); err != nil {
		return nil, fmt.Errorf("quantization_config: %w", err)
	}
	var err error
	if out.dynamic, err = parseDynamics(c.Dynamic, out.scheme); err != nil {
		return nil, fmt.Errorf("quantization_config: dynamic: %w", err)
	}
	return out, nil
}

// parseDynamics reads rules in their order, in which the first that matches counts.
func parseDynamics(text []byte, s affineScheme) (rules []dynamicRule, err error) {
	if len(text) == 0 || string(text) == "null" || string(text) == "false" {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, fmt.Errorf("is no object of patterns")
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		var options json.RawMessage
		if err := d.Decode(&options); err != nil {
			return nil, err
		}
		rule, err := parseDynamic(key.(string), options, s) // keys of an object are text
		if err != nil {
			return nil, fmt.Errorf("%q: %w", key, err)
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

func parseDynamic(key string, text []byte, s affineScheme) (r dynamicRule, err error) {
	pattern, skip := strings.CutPrefix(key, "-:")
	r.skip = skip
	if r.pattern, err = regexp.Compile(`\A(?:` + strings.TrimPrefix(pattern, "+:") + `)`); err != nil || skip {
		return r, err
	}
	if err := json.Unmarshal(text, &r.options); err != nil {
		return r, err
	}
	return r, r.options.apply(&s)
}

// schemeOf returns the scheme of a module that is stored quantized.
func (c *gptqConfig) schemeOf(module string) (affineScheme, error) {
	s := c.scheme
	for _, rule := range c.dynamic {
		if !rule.pattern.MatchString(module) {
			continue
		}
		if rule.skip {
			return s, bad(module, ErrCorrupt, "is stored quantized, but dynamic says that it is not")
		}
		return s, rule.options.apply(&s)
	}
	return s, nil
}
