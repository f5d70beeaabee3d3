package model

import "github.com/fettle-dev/fettle/loader"

// mistral is Mistral 7B and its kin (Jiang et al. 2023): Llama with a sliding
// window in every block.
const mistral = "mistral"

// defaultWindow is what Transformers takes where config.json has no
// sliding_window. null means that there is none.
const defaultWindow = 4096

func buildMistral(tensors []loader.Tensor, o Options) (*Graph, error) {
	d := newDecoder(mistral, "MistralForCausalLM", "model.", tensors, o)
	window := 0
	if d.c.set("sliding_window") || !d.c.has("sliding_window") {
		window = d.c.count("sliding_window", defaultWindow)
	}
	d.c.read["sliding_window"] = true
	return d.buildLlamaLike(llamaLike{window: func(int, string) int { return window }})
}
