package model

import "github.com/fettle-dev/fettle/loader"

// qwen2 is Qwen 1.5 to 2.5 (Yang et al. 2024): Llama with biases in q, k and v,
// and a sliding window, where it is used, from a block on.
const qwen2 = "qwen2"

func buildQwen2(tensors []loader.Tensor, o Options) (*Graph, error) {
	d := newDecoder(qwen2, "Qwen2ForCausalLM", "model.", tensors, o)
	return d.buildLlamaLike(llamaLike{qkvBias: true, window: d.qwen2Window()})
}

// qwen2Window reads which blocks have a window.
func (d *decoder) qwen2Window() func(i int, kind string) int {
	use := get(d.c, "use_sliding_window", false)
	window, from := get(d.c, "sliding_window", defaultWindow), get(d.c, "max_window_layers", 28)
	if use && d.c.has("sliding_window") && !d.c.set("sliding_window") {
		use = false // null: none
	}
	if use && (window < 1 || window > maxCount) {
		d.c.fail("sliding_window", "cannot be %d", window)
	}
	return func(i int, kind string) int {
		if !use || kind == "full_attention" || (kind == "" && i < from) {
			return 0
		}
		return window
	}
}
