package model

import (
	"slices"

	"github.com/fettle-dev/fettle/loader"
)

// qwen2MoE is Qwen1.5-MoE and Qwen2-57B-A14B (Yang et al. 2024, section 2.2.2):
// Qwen2 with many small experts in some blocks, and one more that every token goes
// to, times a sigmoid of its own.
const qwen2MoE = "qwen2_moe"

func buildQwen2MoE(tensors []loader.Tensor, o Options) (*Graph, error) {
	d := newDecoder(qwen2MoE, "Qwen2MoeForCausalLM", "model.", tensors, o)
	c := d.c
	experts, r := c.routing("num_experts", 60, 4)
	r.Normalize = get(c, "norm_topk_prob", false)
	inner, shared := c.count("moe_intermediate_size", 1408), c.count("shared_expert_intermediate_size", 5632)
	step, dense := c.count("decoder_sparse_step", 1), get[[]int](c, "mlp_only_layers", nil)
	for _, i := range dense {
		if layers := c.count("num_hidden_layers", 0); i < 0 || i >= layers {
			c.fail("mlp_only_layers", "there is no block %d of %d", i, layers)
		}
	}
	return d.buildLlamaLike(llamaLike{
		qkvBias: get(c, "qkv_bias", true),
		window:  d.qwen2Window(),
		experts: func(i int, block string, y int) (int, bool) {
			if slices.Contains(dense, i) || (i+1)%step != 0 {
				return 0, false
			}
			block += "mlp."
			gate := d.linear(block+"shared_expert_gate", y, 1, false, "")
			gate = d.add(Op{Kind: Sigmoid, Name: block + "shared_expert_sigmoid", Inputs: []int{gate}})
			base := d.gatedMLP(block+"shared_expert.", y, shared, false)
			base = d.add(Op{Kind: ScaleRows, Name: block + "shared_expert_scaled", Inputs: []int{base, gate}})
			return d.mixture(block, "gate", experts, r, y, base, func(name string, x int) int {
				return d.gatedMLP(name, x, inner, false)
			}), true
		},
	})
}
