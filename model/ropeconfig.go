package model

// rope reads the rotation's settings, either way of writing them: rope_theta
// beside rope_scaling, or both in rope_parameters.
func (c *config) rope(headDim int) *Rope {
	r := &Rope{Theta: get(c, "rope_theta", 10000.0), Dims: headDim}
	only(c, "partial_rotary_factor", 1.0)
	settings := c.inner("rope_scaling")
	if p := c.inner("rope_parameters"); p != nil {
		if settings != nil {
			c.fail("rope_scaling", "stands beside rope_parameters: remove one")
		}
		settings = p
	}
	if headDim%2 != 0 {
		c.fail("head_dim", "%d numbers cannot be turned in pairs", headDim)
	}
	if settings != nil {
		settings.ropeSettings(r)
		if c.err == nil {
			c.err = settings.finish()
		}
	}
	if !(r.Theta > 0) {
		c.fail("rope_theta", "cannot be %v", r.Theta)
	}
	return r
}

// ropeSettings reads rope_scaling or rope_parameters into r.
func (c *config) ropeSettings(r *Rope) {
	r.Theta = get(c, "rope_theta", r.Theta)
	only(c, "partial_rotary_factor", 1.0)
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
