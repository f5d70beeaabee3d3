package model

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"
)

// ConfigError says that config.json asks for what cannot be built, or lacks
// what is needed.
type ConfigError struct {
	Architecture string
	Key          string // with a dot where it is in an inner object
	Problem      string
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("model: as %s: config.json: %s: %s", e.Architecture, e.Key, e.Problem)
}

// chooseByConfig sets the architecture to config.json's model_type, unless it
// was asked for and needs no config. One that was asked for must be the same.
func (o *Options) chooseByConfig() error {
	if o.Config == nil {
		return nil
	}
	for _, b := range builders() {
		if b.name == o.Architecture && !b.config {
			return nil
		}
	}
	var head struct {
		ModelType *string `json:"model_type"`
	}
	if err := json.Unmarshal(o.Config, &head); err != nil {
		return &OptionError{o.Architecture, "config", fmt.Sprintf("config.json cannot be read: %v", err)}
	}
	if head.ModelType == nil {
		return nil
	}
	*head.ModelType = strings.TrimPrefix(*head.ModelType, ownPrefix)
	if o.Architecture != "" && o.Architecture != *head.ModelType {
		return &OptionError{o.Architecture, "architecture", fmt.Sprintf("config.json says %q", *head.ModelType)}
	}
	if !slices.Contains(Architectures(), *head.ModelType) {
		return &UnsupportedError{Architecture: *head.ModelType, Known: Architectures(), Help: "config.json's model_type names it"}
	}
	o.Architecture = *head.ModelType
	return nil
}

// checkConfigured checks the options of an architecture that config.json
// describes.
func (o *Options) checkConfigured(architecture string) error {
	switch {
	case o.Config == nil:
		return &OptionError{architecture, "config", "this architecture is described by its folder's config.json, which is missing"}
	case o.Activation != "":
		return &OptionError{architecture, "activation", "config.json says it: leave it out"}
	case o.InputShape != nil:
		return &OptionError{architecture, "input shape", "config.json says what the model reads: leave it out"}
	}
	return nil
}

// config hands out the keys of config.json and remembers which were read. Like
// tensorSet it keeps the first problem.
type config struct {
	architecture string
	path         string // of an inner object, with a dot
	raw          map[string]json.RawMessage
	read         map[string]bool
	err          error
}

func newConfig(architecture string, text []byte) *config {
	c := &config{architecture: architecture, read: make(map[string]bool)}
	if err := json.Unmarshal(text, &c.raw); err != nil {
		c.fail("{}", "is not a JSON object: %v", err)
	}
	return c
}

func (c *config) fail(key, format string, args ...any) {
	if c.err == nil {
		c.err = &ConfigError{c.architecture, c.path + key, fmt.Sprintf(format, args...)}
	}
}

// has reports whether a key stands in the file, null included.
func (c *config) has(key string) bool {
	_, ok := c.raw[key]
	return ok
}

// set reports whether a key has a value other than null.
func (c *config) set(key string) bool { return c.has(key) && string(c.raw[key]) != "null" }

// get returns a key's value, or absent where it has none.
func get[T any](c *config, key string, absent T) T {
	c.read[key] = true
	if !c.set(key) {
		return absent
	}
	var value T
	if err := json.Unmarshal(c.raw[key], &value); err != nil {
		c.fail(key, "cannot be %s", c.raw[key])
		return absent
	}
	return value
}

// maxCount bounds the numbers of a config, so that products of two do not
// overflow.
const maxCount = 1 << 24

// count returns a number from 1 on. Where absent is 0 the key must be there.
func (c *config) count(key string, absent int) int {
	if absent == 0 && !c.set(key) {
		c.read[key] = true
		c.fail(key, "is missing")
		return 1
	}
	n := get(c, key, absent)
	if n < 1 || n > maxCount {
		c.fail(key, "cannot be %d", n)
		return 1
	}
	return n
}

// preset gives a key that is not set a family's own default, in JSON.
func (c *config) preset(key, value string) {
	if !c.set(key) && c.raw != nil {
		c.raw[key] = json.RawMessage(value)
	}
}

// eps returns what a normalization adds to a variance.
func (c *config) eps(key string, absent float64) float64 {
	v := get(c, key, absent)
	if !(v >= 0 && v < 1) {
		c.fail(key, "cannot be %v", v)
	}
	return v
}

// only fails when a key has another value than want, which is also its default.
func only[T comparable](c *config, key string, want T) {
	if v := get(c, key, want); v != want {
		c.fail(key, "%v is not supported", v)
	}
}

// inner returns the object that a key holds, nil for none.
func (c *config) inner(key string) *config {
	raw := get[map[string]json.RawMessage](c, key, nil)
	if raw == nil {
		return nil
	}
	return &config{architecture: c.architecture, path: c.path + key + ".", raw: raw, read: make(map[string]bool), err: c.err}
}

// finish returns the first problem. A key that no one read is one, unless it is
// off: what it does to the model is unknown.
func (c *config) finish() error {
	var unread []string
	for key, value := range c.raw {
		off := slices.Contains([]string{"null", "false", `""`, "[]", "{}"}, string(value))
		if !c.read[key] && !off {
			unread = append(unread, key)
		}
	}
	sort.Strings(unread)
	if len(unread) > 0 {
		c.fail(unread[0], "is unknown for %s, and may change what the model computes; remove it if it does not", c.architecture)
	}
	return c.err
}

// common reads the keys that all families share, and passes over those that
// change nothing of the forward pass. class is what "architectures" must hold.
func (c *config) common(class string) {
	classes := get(c, "architectures", []string{class})
	if !slices.Contains(classes, class) {
		c.fail("architectures", "%s is not supported, want %s", strings.Join(classes, ", "), class)
	}
	if c.set("quantization_config") {
		c.fail("quantization_config", "the weights are stored compressed; package export's Decode gives a view of them to build from")
	}
	if c.set("auto_map") && c.architecture != falcon { // whose repositories still have the code that became Transformers' own
		c.fail("auto_map", "the model is defined by code of its own, which is not run")
	}
	only(c, "is_encoder_decoder", false)
	only(c, "add_cross_attention", false)
	for _, key := range harmless {
		c.read[key] = true
	}
}

// harmless are keys about training, generation, or how to compute.
var harmless = strings.Fields(`
	model_type _name_or_path name_or_path transformers_version torch_dtype dtype use_cache initializer_range
	attention_dropout hidden_dropout attn_pdrop embd_pdrop resid_pdrop pretraining_tp reorder_and_upcast_attn
	bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id forced_bos_token_id
	forced_eos_token_id is_decoder output_attentions output_hidden_states output_scores return_dict return_dict_in_generate
	torchscript gradient_checkpointing chunk_size_feed_forward id2label label2id num_labels problem_type finetuning_task
	task_specific_params tokenizer_class prefix use_bfloat16 max_length min_length do_sample early_stopping temperature
	top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
	num_beams num_beam_groups num_return_sequences diversity_penalty remove_invalid_values bad_words_ids
	suppress_tokens begin_suppress_tokens exponential_decay_length_penalty tf_legacy_loss
	_attn_implementation attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
	unsloth_version unsloth_fixed
	summary_type summary_activation summary_use_proj summary_proj_to_labels summary_first_dropout`)
