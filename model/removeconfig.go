package model

import (
	"encoding/json"
	"fmt"
	"strings"
)

// sizeKeys are the config keys of a family of decoders that say how large its
// parts are; "" where it has none. After a space stands another name of the key.
type sizeKeys struct{ blocks, heads, kvHeads, headDim, channels string }

// familyKeys returns the keys of a decoder, nil for other architectures.
func familyKeys(architecture string) *sizeKeys {
	switch architecture {
	case llama, mistral, qwen2, mixtral, qwen2MoE:
		return &sizeKeys{"num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"}
	case gpt2, gptJ:
		return &sizeKeys{blocks: "n_layer", heads: "n_head", channels: "n_inner"}
	case opt:
		return &sizeKeys{blocks: "num_hidden_layers", heads: "num_attention_heads", channels: "ffn_dim"}
	case gptNeoX, phi, stableLM:
		return &sizeKeys{blocks: "num_hidden_layers", heads: "num_attention_heads", channels: "intermediate_size"}
	case falcon:
		return &sizeKeys{blocks: "num_hidden_layers n_layer", heads: "num_attention_heads n_head", channels: "ffn_hidden_size"}
	case bloom:
		return &sizeKeys{blocks: "n_layer num_hidden_layers", heads: "n_head num_attention_heads"}
	case bert, roberta, xlmRoberta, electra, vit:
		return &sizeKeys{blocks: "num_hidden_layers", heads: "num_attention_heads", channels: "intermediate_size"}
	case distilbert:
		return &sizeKeys{blocks: "n_layers", heads: "n_heads", channels: "hidden_dim"}
	case whisper:
		return &sizeKeys{blocks: "encoder_layers", heads: "encoder_attention_heads", channels: "encoder_ffn_dim"}
	}
	return nil
}

// in returns the keys by the names that a config has.
func (k *sizeKeys) in(c *config) *sizeKeys {
	found := *k
	for _, key := range []*string{&found.blocks, &found.heads} {
		if name, other, ok := strings.Cut(*key, " "); ok {
			*key = c.either(name, other)
		}
	}
	return &found
}

// numbered reports whether what a block computes depends on its number, so that
// blocks must keep theirs, and how many blocks a decoder has.
func (r *remover) numbered() (fixed bool, layers int, err error) {
	keys := familyKeys(r.g.Architecture)
	if keys == nil {
		return false, 0, nil
	}
	c := newConfig(r.g.Architecture, r.options.Config)
	keys = keys.in(c)
	fixed = get(c, "scale_attn_by_inverse_layer_idx", false) ||
		get(c, "decoder_sparse_step", 1) > 1 || len(get[[]int](c, "mlp_only_layers", nil)) > 0
	layers = c.count(keys.blocks, 0)
	return fixed, layers, c.err
}

// shapesLeft returns the shape of each block that stays. One with experts has the
// given channels.
func (r *remover) shapesLeft(channels int) []BlockShape {
	shapes := make([]BlockShape, len(r.keep))
	place := map[int]int{}
	for i, block := range r.keep {
		place[block] = i
	}
	for i := range r.g.Ops {
		op := &r.g.Ops[i]
		at, ok := place[op.Block]
		if !ok || r.gone[i] {
			continue
		}
		if a := op.Attention; a != nil {
			shapes[at].Heads, shapes[at].KVHeads = a.Heads-r.lostInputs(op.Output)/a.HeadDim, a.KVHeads-r.lostKV[op.Block]
		}
		if op.Kind != Add {
			continue
		}
		if s, err := r.g.sublayerSite(i); err == nil && s.Kind == MLPSite {
			last := &r.g.Ops[s.Ops[len(s.Ops)-2]]
			if last.Kind == Combine { // experts stay as wide as the config says
				shapes[at].Channels = channels
				continue
			}
			inner := last.Inputs[0] // of the layer that the sum adds
			shape := r.g.Values[inner].Shape
			shapes[at].Channels = shape[len(shape)-1] - r.lostInputs(inner)
		}
	}
	return shapes
}

// lostInputs returns how many of a value's numbers the layers that read it lose.
func (r *remover) lostInputs(value int) int {
	for _, i := range r.g.Readers(value) {
		if op := &r.g.Ops[i]; op.IsLayer() {
			return len(r.lost[op.Weight][op.inputAxis()])
		}
	}
	return 0
}

// config returns config.json for what is left, and why other readers cannot have
// it.
func (r *remover) config() (text []byte, own string, err error) {
	keys := familyKeys(r.g.Architecture)
	if keys == nil {
		return r.options.Config, "", nil
	}
	c := newConfig(r.g.Architecture, r.options.Config)
	if keys = keys.in(c); c.err != nil {
		return nil, "", c.err
	}
	put := func(key string, value any) {
		raw, e := json.Marshal(value)
		c.raw[key] = raw
		if err == nil {
			err = e
		}
	}
	layers := c.count(keys.blocks, 0)
	put(keys.blocks, len(r.keep))
	if types := get[[]string](c, "layer_types", nil); types != nil {
		left := []string{}
		for _, block := range r.keep {
			left = append(left, types[block])
		}
		put("layer_types", left)
	}
	if (r.g.Architecture == qwen2 || r.g.Architecture == qwen2MoE) && len(r.keep) < layers {
		// Blocks from max_window_layers on have a window: count those before it.
		from := get(c, "max_window_layers", 28)
		before := 0
		for _, block := range r.keep {
			if block < from {
				before++
			}
		}
		put("max_window_layers", before)
	}

	channels := 0
	if c.set(keys.channels) {
		channels = c.count(keys.channels, 0)
	}
	shapes := r.shapesLeft(channels)
	heads, headDim := c.count(keys.heads, 0), 0
	for i := range r.g.Ops {
		if a := r.g.Ops[i].Attention; a != nil {
			headDim = a.HeadDim
		}
	}
	own = r.uneven(shapes, keys, heads)
	modelType := strings.TrimPrefix(get(c, "model_type", r.g.Architecture), ownPrefix)
	delete(c.raw, shapesKey)
	if own != "" {
		put("model_type", ownPrefix+modelType)
		put(shapesKey, shapes)
	} else {
		put("model_type", modelType)
		all := shapes[0]
		if keys.kvHeads != "" {
			if all.Heads != heads && !c.set(keys.headDim) {
				put(keys.headDim, headDim)
			}
			put(keys.heads, all.Heads)
			put(keys.kvHeads, all.KVHeads)
		}
		if keys.channels != "" {
			put(keys.channels, all.Channels)
		}
	}
	if err != nil {
		return nil, "", err
	}
	text, err = json.MarshalIndent(c.raw, "", "  ")
	return text, own, err
}

// uneven says why the family's keys cannot describe the blocks; "" where they
// can.
func (r *remover) uneven(shapes []BlockShape, keys *sizeKeys, heads int) string {
	for i, s := range shapes {
		switch {
		case s.Heads == 0 && s.Channels == 0:
			return fmt.Sprintf("block %d has neither attention nor MLP, but keeps its number or its normalizations", i)
		case s.Heads == 0:
			return fmt.Sprintf("block %d has no attention", i)
		case s.Channels == 0:
			return fmt.Sprintf("block %d has no MLP", i)
		case s != shapes[0]:
			return fmt.Sprintf("block %d has %d heads to %d and %d channels, block 0 has %d to %d and %d",
				i, s.Heads, s.KVHeads, s.Channels, shapes[0].Heads, shapes[0].KVHeads, shapes[0].Channels)
		case keys.headDim == "" && s.Heads != heads:
			return fmt.Sprintf("a config.json of %s cannot say that there are fewer heads of the same size", r.g.Architecture)
		case keys.channels == "" && s.Channels != 4*r.g.Ops[0].Embedding.Width: // BLOOM, its MLPs as they were
			return fmt.Sprintf("a config.json of %s cannot say how many channels an MLP has", r.g.Architecture)
		}
	}
	return ""
}
