package model

// rope reads the rotation's settings, either way of writing them: rope_theta
// beside rope_scaling, or both in rope_parameters.
func (c *config) rope(headDim int) *Rope {
	only(c, "partial_rotary_factor", 1.0)
	return c.partialRope(headDim, get(c, "rope_theta", 10000.0), 1)
}

// partialRope is rope where the keys beside rope_scaling are a family's own: what
// they say of theta, and of the share of a head's numbers that turn.
func (c *config) partialRope(headDim int, theta, share float64) *Rope {
	r := &Rope{Theta: theta}
	settings := c.inner("rope_scaling")
	if p := c.inner("rope_parameters"); p != nil {
		if settings != nil {
			c.fail("rope_scaling", "stands beside rope_parameters: remove one")
		}
		settings = p
	}
	if settings != nil {
		share = get(settings, "partial_rotary_factor", share)
		settings.ropeSettings(r)
		if c.err == nil {
			c.err = settings.finish()
		}
	}
	if !(share > 0 && share <= 1) {
		c.fail("partial_rotary_factor", "cannot be %v", share)
		share = 1
	}
	if r.Dims = int(float64(headDim) * share); r.Dims%2 != 0 || r.Dims < 2 {
		c.fail("head_dim", "%d of %d numbers cannot be turned in pairs", r.Dims, headDim)
	}
	if !(r.Theta > 0) {
		c.fail("rope_theta", "cannot be %v", r.Theta)
	}
	return r
}

// ropeSettings reads rope_scaling or rope_parameters into r.
func (c *config) ropeSettings(r *Rope) {
	r.Theta = get(c, "rope_theta", r.Theta)
	old := get(c, "type", "default") // the older name of rope_type
	s := RopeScaling{Type: get(c, "rope_type", old)}
	if c.set("type") && s.Type != old {
		c.fail("type", "%q contradicts rope_type %q", old, s.Type)
	}
	positive := func(key string) float64 {
		v := get(c, key, 0.0)
		if !(v > 0) {
			c.fail(key, "must be there and above 0")
		}
		return v
	}
	switch s.Type {
	case "default":
		return
	case ropeLinear:
		s.Factor = positive("factor")
		get(c, "original_max_position_embeddings", 0) // says what the factor was found from
	case ropeLlama3:
		s.Factor, s.LowFreq, s.HighFreq = positive("factor"), positive("low_freq_factor"), positive("high_freq_factor")
		s.OriginalLength = c.count("original_max_position_embeddings", 0)
		if s.LowFreq >= s.HighFreq {
			c.fail("low_freq_factor", "%v must be below high_freq_factor %v", s.LowFreq, s.HighFreq)
		}
	default:
		c.fail("rope_type", "%q is not supported, want default, linear or llama3", s.Type)
	}
	r.Scaling = &s
}

// slidingAttention marks a block with a window in "layer_types".
const slidingAttention = "sliding_attention"

// layerTypes returns what "layer_types" says of each block, nil where there is
// no such key.
func (c *config) layerTypes(layers int) []string {
	types := get[[]string](c, "layer_types", nil)
	if types != nil && len(types) != layers {
		c.fail("layer_types", "has %d entries for %d layers", len(types), layers)
	}
	for _, t := range types {
		if t != slidingAttention && t != "full_attention" {
			c.fail("layer_types", "%q is not supported", t)
		}
	}
	return types
}
