package model

import "github.com/fettle-dev/fettle/loader"

// mixtral is Mixtral 8x7B and 8x22B (Jiang et al. 2024): Mistral with experts in
// the place of each MLP. The weights of a token's experts sum to 1.
const mixtral = "mixtral"

func buildMixtral(tensors []loader.Tensor, o Options) (*Graph, error) {
	d := newDecoder(mixtral, "MixtralForCausalLM", "model.", tensors, o)
	d.c.preset("rope_theta", "1e6")
	d.c.preset("rms_norm_eps", "1e-5")
	window := 0
	if d.c.set("sliding_window") {
		window = d.c.count("sliding_window", 0)
	}
	inner := d.c.count("intermediate_size", 0)
	experts, r := d.c.routing("num_local_experts", 8, 2)
	r.Normalize = true
	return d.buildLlamaLike(llamaLike{
		window: func(int, string) int { return window },
		experts: func(_ int, block string, y int) (int, bool) {
			return d.mixture(block+"block_sparse_moe.", "gate", experts, r, y, -1, func(name string, x int) int {
				return d.gated(name, [3]string{"w1", "w3", "w2"}, x, inner, false)
			}), true
		},
	})
}

// routing reads how many experts there are and how many of them a token goes to,
// with the family's defaults. What routers get in training alone is passed over.
func (c *config) routing(key string, experts, topK int) (int, Routing) {
	for _, key := range []string{"output_router_logits", "router_aux_loss_coef", "router_jitter_noise"} {
		c.read[key] = true
	}
	n, r := c.count(key, experts), Routing{TopK: c.count("num_experts_per_tok", topK)}
	if r.TopK > n {
		c.fail("num_experts_per_tok", "%d experts a token of %d (%s)", r.TopK, n, key)
		r.TopK = 1
	}
	return n, r
}
