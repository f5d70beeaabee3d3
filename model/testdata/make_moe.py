#!/usr/bin/env python3
"""Writes tiny random mixtures of experts and what they compute into this folder.

    python3 model/testdata/make_moe.py [FOLDER]

As make_lm.py, whose pieces it shares: written from the papers and from the
definition of config.json's keys. A token's experts are found by sorting, and each
token is taken through its experts alone, one after the other; nothing is gathered.
"""
import sys
from pathlib import Path

import torch

import make_lm as lm


def gated(y, t, gate, up, down):
    g = y @ t[gate + ".weight"].T
    return (g * torch.sigmoid(g) * (y @ t[up + ".weight"].T)) @ t[down + ".weight"].T


def experts(y, t, router, names, top, normalize):
    """y [tokens, hidden]; names(e) are expert e's gate, up and down."""
    out, seen = torch.zeros_like(y), {}
    for i in range(len(y)):
        p = torch.softmax(y[i] @ t[router + ".weight"].T, -1).tolist()
        chosen = sorted(range(len(p)), key=lambda e: (-p[e], e))[:top]
        total = sum(p[e] for e in chosen) if normalize else 1
        for e in chosen:
            out[i] += p[e] / total * gated(y[i:i + 1], t, *names(e))[0]
            seen[e] = seen.get(e, 0) + 1
    return out, seen


def forward(config, t, ids, feed, window_of, seen):
    """Llama's blocks with feed(y, i) in the place of the MLP."""
    heads = config["num_attention_heads"]
    dim = config.get("head_dim", config["hidden_size"] // heads)
    rates = lm.angles(dim, config["rope_theta"], None)
    eps = config["rms_norm_eps"]
    table = t["model.embed_tokens.weight"]
    x = table[ids]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        y = lm.rms(x, t[at + "input_layernorm.weight"], eps)
        q, k, v = (lm.affine(y, t, at + f"self_attn.{p}_proj").view(len(ids), -1, dim) for p in "qkv")
        y = lm.attend(lm.rotate(q, rates), lm.rotate(k, rates), v, dim ** -.5, window_of(i))
        x = x + lm.affine(y, t, at + "self_attn.o_proj")
        y, count = feed(lm.rms(x, t[at + "post_attention_layernorm.weight"], eps), i)
        for e, n in count.items() if len(ids) > 1 else ():  # a sequence of one token predicts nothing
            seen.setdefault(i, {}).setdefault(e, 0)
            seen[i][e] += n
        x = x + y
    x = lm.rms(x, t["model.norm.weight"], eps)
    return x @ (table if config["tie_word_embeddings"] else t["lm_head.weight"]).T


def mixtral(config, t, ids, seen):
    def feed(y, i):
        at = f"model.layers.{i}.block_sparse_moe."
        names = lambda e: [f"{at}experts.{e}.{w}" for w in ("w1", "w3", "w2")]
        return experts(y, t, at + "gate", names, config["num_experts_per_tok"], True)
    return forward(config, t, ids, feed, lambda i: config["sliding_window"], seen)


def qwen2_moe(config, t, ids, seen):
    def feed(y, i):
        at = f"model.layers.{i}.mlp."
        names = lambda of: [f"{at}{of}{p}_proj" for p in ("gate", "up", "down")]
        if i in config["mlp_only_layers"] or (i + 1) % config["decoder_sparse_step"] != 0:
            return gated(y, t, *names("")), {}
        out, count = experts(y, t, at + "gate", lambda e: names(f"experts.{e}."), config["num_experts_per_tok"], config["norm_topk_prob"])
        share = torch.sigmoid(y @ t[at + "shared_expert_gate.weight"].T)
        return out + share * gated(y, t, *names("shared_expert.")), count
    window = lambda i: config["sliding_window"] if config["use_sliding_window"] and i >= config["max_window_layers"] else None
    return forward(config, t, ids, feed, window, seen)


def weights(config, seed, feed, qkv_bias=False):
    """As llama_weights, with feed(r, i, hidden) for what stands where the MLP was.
    Channel 0 of the embedding is the same for all tokens, so that a router can be
    made to prefer an expert."""
    r = lm.Random(seed)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    dim = config.get("head_dim", hidden // heads)
    keys = config["num_key_value_heads"] * dim
    r.matrix("model.embed_tokens.weight", lm.VOCABULARY, hidden, 1.44)
    r.tensors["model.embed_tokens.weight"][:, 0] = 4
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        r.vector(at + "input_layernorm.weight", hidden, 1, .3)
        r.vector(at + "post_attention_layernorm.weight", hidden, 1, .3)
        for name, rows in ("q", heads * dim), ("k", keys), ("v", keys):
            r.matrix(f"{at}self_attn.{name}_proj.weight", rows, hidden)
            if qkv_bias:
                r.vector(f"{at}self_attn.{name}_proj.bias", rows, 0, .5)
        r.matrix(at + "self_attn.o_proj.weight", hidden, heads * dim)
        feed(r, i, hidden)
    r.vector("model.norm.weight", hidden, 1, .3)
    if not config["tie_word_embeddings"]:
        r.matrix("lm_head.weight", lm.VOCABULARY, hidden)
    return r.tensors


def mlp(r, names, hidden, inner):
    gate, up, down = names
    r.matrix(gate + ".weight", inner, hidden)
    r.matrix(up + ".weight", inner, hidden)
    r.matrix(down + ".weight", hidden, inner)


def write(folder, name, config, tensors, family):
    seen = {}
    lm.write(folder, name, config, tensors, lambda t, ids: family(config, t, ids, seen))
    print("   ", {i: dict(sorted(n.items())) for i, n in seen.items()})


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    torch.set_num_threads(1)
    base = {"vocab_size": lm.VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
            "rope_theta": 1000.0, "torch_dtype": "float32", "initializer_range": 0.02, "attention_dropout": 0.0,
            "use_cache": True, "output_router_logits": False, "router_aux_loss_coef": 0.02, "transformers_version": "4.41.2"}
    mixtral_base = {**base, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "router_jitter_noise": 0.0}

    def mixtral_feed(config, spoil):
        def feed(r, i, hidden):
            at = f"model.layers.{i}.block_sparse_moe."
            r.matrix(at + "gate.weight", config["num_local_experts"], hidden)
            spoil(r.tensors[at + "gate.weight"], i)
            for e in range(config["num_local_experts"]):
                mlp(r, [f"{at}experts.{e}.{w}" for w in ("w1", "w3", "w2")], hidden, config["intermediate_size"])
        return feed

    # Two of four; block 0 sends no token to expert 2, block 1 most to expert 3.
    def uneven(router, i):
        router[:, 0] = 0
        router[2 if i == 0 else 3, 0] = -30 if i == 0 else 3

    config = {**mixtral_base, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 12,
              "sliding_window": 6, "tie_word_embeddings": False}
    write(folder, "mixtral", config, weights(config, 21, mixtral_feed(config, uneven)), mixtral)

    # One of three, with ties: experts 1 and 2 have equal routers in block 0, all
    # three in block 1. No window, tied embeddings, heads of another size.
    def ties(router, i):
        router[2] = router[1]
        if i == 1:
            router[:] = 0

    config2 = {**mixtral_base, "num_local_experts": 3, "num_experts_per_tok": 1, "intermediate_size": 12, "head_dim": 6,
               "sliding_window": None, "tie_word_embeddings": True}
    write(folder, "mixtral-top1", config2, weights(config2, 22, mixtral_feed(config2, ties)), mixtral)

    qwen_base = {**base, "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "max_window_layers": 1}

    def qwen_feed(config, spoil):
        def feed(r, i, hidden):
            at = f"model.layers.{i}.mlp."
            names = lambda of: [f"{at}{of}{p}_proj" for p in ("gate", "up", "down")]
            if i in config["mlp_only_layers"] or (i + 1) % config["decoder_sparse_step"] != 0:
                return mlp(r, names(""), hidden, config["intermediate_size"])
            r.matrix(at + "gate.weight", config["num_experts"], hidden)
            spoil(r.tensors[at + "gate.weight"], i)
            for e in range(config["num_experts"]):
                mlp(r, names(f"experts.{e}."), hidden, config["moe_intermediate_size"])
            mlp(r, names("shared_expert."), hidden, config["shared_expert_intermediate_size"])
            r.matrix(at + "shared_expert_gate.weight", 1, hidden)
        return feed

    def level(router, i):
        router[:, 0] = 0

    # Three of five in each block, whose weights sum to what they sum to; windows.
    config3 = {**qwen_base, "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 8, "intermediate_size": 20,
               "shared_expert_intermediate_size": 12, "norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": [],
               "use_sliding_window": True, "sliding_window": 5, "tie_word_embeddings": False}
    write(folder, "qwen2-moe", config3, weights(config3, 23, qwen_feed(config3, level), True), qwen2_moe)

    # Four blocks, of which only the last has experts: the step leaves out 0 and 2,
    # the list 1. Two of four, whose weights sum to 1.
    config4 = {**qwen_base, "num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
               "intermediate_size": 10, "shared_expert_intermediate_size": 6, "norm_topk_prob": True, "decoder_sparse_step": 2,
               "mlp_only_layers": [1], "use_sliding_window": False, "sliding_window": 4, "tie_word_embeddings": True}
    write(folder, "qwen2-moe-sparse", config4, weights(config4, 24, qwen_feed(config4, uneven), True), qwen2_moe)


if __name__ == "__main__":
    main()
