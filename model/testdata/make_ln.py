#!/usr/bin/env python3
"""Writes tiny random decoders with LayerNorm and what they compute into this
folder, as make_lm.py does for the others.

    python3 model/testdata/make_ln.py [FOLDER]
"""
import math
import sys
from pathlib import Path

import numpy as np
import torch

from make_lm import VOCABULARY, Random, affine, angles, layer_norm, write


# --- Definitions --------------------------------------------------------------

def norm(x, t, name, eps):
    if name + ".weight" in t:
        return layer_norm(x, t[name + ".weight"], t[name + ".bias"], eps)
    one = torch.ones(x.shape[-1], dtype=x.dtype)
    return layer_norm(x, one, 0 * one, eps)


def activation(name, x):
    if name == "relu":
        return x * (x > 0)
    if name == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    if name == "silu":
        return x * torch.sigmoid(x)
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + .044715 * x ** 3)))


def turn(x, rates, neighbours=False):
    """x is [tokens, heads, dim]; the first 2·len(rates) numbers of a head turn, in
    pairs of neighbours or of the two halves."""
    n = 2 * len(rates)
    part, rest = x[..., :n], x[..., n:]
    a, b = (part[..., 0::2], part[..., 1::2]) if neighbours else (part[..., :n // 2], part[..., n // 2:])
    angle = torch.outer(torch.arange(x.shape[0], dtype=torch.float64), rates)[:, None, :]
    c, s = a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()
    part = torch.stack([c, s], -1).flatten(-2) if neighbours else torch.cat([c, s], -1)
    return torch.cat([part, rest], -1)


def slopes(heads):
    """As the ALiBi paper has them: a geometric series that begins at its own ratio;
    a number of heads between two powers of two takes from both series."""
    if heads & (heads - 1) == 0:
        return [2 ** (-8 * (i + 1) / heads) for i in range(heads)]
    lower = 2 ** int(math.log2(heads))
    return slopes(lower) + slopes(2 * lower)[0::2][:heads - lower]


def attend(q, k, v, scale, bias=None):
    """q [tokens, heads, dim], k and v [tokens, fewer heads, dim]; bias [heads, keys]
    is added to scale·q·k."""
    share, n = q.shape[1] // k.shape[1], q.shape[0]
    hidden = torch.ones(n, n).triu(1).bool()
    out = torch.zeros_like(q)
    for head in range(q.shape[1]):
        scores = scale * q[:, head] @ k[:, head // share].T
        if bias is not None:
            scores = scores + bias[head]
        out[:, head] = torch.softmax(scores.masked_fill(hidden, -math.inf), -1) @ v[:, head // share]
    return out.flatten(1)


def split_grouped(fused, kv, share, dim):
    """One head of keys after the other: its queries, the key, the value."""
    groups = fused.view(len(fused), kv, share + 2, dim)
    return groups[:, :, :share].flatten(1, 2), groups[:, :, share], groups[:, :, share + 1]


# --- Families -----------------------------------------------------------------

def opt(config, t, ids, at):
    heads = config["num_attention_heads"]
    dim = config["hidden_size"] // heads
    before, act = config["do_layer_norm_before"], config["activation_function"]
    x = t[at + "embed_tokens.weight"][ids]
    if at + "project_in.weight" in t:
        x = affine(x, t, at + "project_in")
    x = x + t[at + "embed_positions.weight"][2:2 + len(ids)]
    for i in range(config["num_hidden_layers"]):
        b = f"{at}layers.{i}."
        y = norm(x, t, b + "self_attn_layer_norm", 1e-5) if before else x
        q, k, v = (affine(y, t, b + f"self_attn.{p}_proj").view(len(ids), heads, dim) for p in "qkv")
        x = x + affine(attend(q, k, v, dim ** -.5), t, b + "self_attn.out_proj")
        if not before:
            x = norm(x, t, b + "self_attn_layer_norm", 1e-5)
        y = norm(x, t, b + "final_layer_norm", 1e-5) if before else x
        x = x + affine(activation(act, affine(y, t, b + "fc1")), t, b + "fc2")
        if not before:
            x = norm(x, t, b + "final_layer_norm", 1e-5)
    if before and not config["_remove_final_layer_norm"]:
        x = norm(x, t, at + "final_layer_norm", 1e-5)
    if at + "project_out.weight" in t:
        x = affine(x, t, at + "project_out")
    return x @ t["lm_head.weight" if "lm_head.weight" in t else at + "embed_tokens.weight"].T


def gpt_neox(config, t, ids):
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    dim = config["hidden_size"] // heads
    new = config.get("rope_parameters", {})
    turned = int(dim * new.get("partial_rotary_factor", config.get("rotary_pct")))
    rates = angles(turned, new.get("rope_theta", config.get("rotary_emb_base")), config.get("rope_scaling"))
    x = t["gpt_neox.embed_in.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        b = f"gpt_neox.layers.{i}."
        fused = affine(norm(x, t, b + "input_layernorm", eps), t, b + "attention.query_key_value")
        q, k, v = split_grouped(fused, heads, 1, dim)
        a = affine(attend(turn(q, rates), turn(k, rates), v, dim ** -.5), t, b + "attention.dense")
        y = norm(x if config["use_parallel_residual"] else x + a, t, b + "post_attention_layernorm", eps)
        y = activation(config["hidden_act"], affine(y, t, b + "mlp.dense_h_to_4h"))
        x = x + a + affine(y, t, b + "mlp.dense_4h_to_h")
    x = norm(x, t, "gpt_neox.final_layer_norm", eps)
    return x @ t["gpt_neox.embed_in.weight" if config["tie_word_embeddings"] else "embed_out.weight"].T


def falcon(config, t, ids, at):
    heads, eps = config["num_attention_heads"], config["layer_norm_epsilon"]
    dim, n = config["hidden_size"] // heads, len(ids)
    x = t[at + "word_embeddings.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        b = f"{at}h.{i}."
        if b + "ln_attn.weight" in t:
            ya, ym = norm(x, t, b + "ln_attn", eps), norm(x, t, b + "ln_mlp", eps)
        else:
            ya = ym = norm(x, t, b + "input_layernorm", eps)
        fused = affine(ya, t, b + "self_attention.query_key_value")
        if config["new_decoder_architecture"]:
            kv = config["num_kv_heads"]
            q, k, v = split_grouped(fused, kv, heads // kv, dim)
        elif config["multi_query"]:
            q, k, v = (p.view(n, -1, dim) for p in fused.split([heads * dim, dim, dim], 1))
        else:
            q, k, v = split_grouped(fused, heads, 1, dim)
        if config["alibi"]:
            bias = torch.tensor(slopes(heads)).bfloat16()[:, None] * torch.arange(n)
            assert bias.dtype == torch.bfloat16
            a = attend(q, k, v, dim ** -.5, bias.double() * dim ** -.5)
        else:
            rates = angles(dim, config.get("rope_theta", 10000.0), config.get("rope_scaling"))
            a = attend(turn(q, rates), turn(k, rates), v, dim ** -.5)
        a = affine(a, t, b + "self_attention.dense")
        if not config["parallel_attn"]:
            ym = norm(x + a, t, b + "post_attention_layernorm", eps)
        y = activation(config.get("activation", "gelu"), affine(ym, t, b + "mlp.dense_h_to_4h"))
        x = x + a + affine(y, t, b + "mlp.dense_4h_to_h")
    x = norm(x, t, at + "ln_f", eps)
    return x @ t["lm_head.weight" if "lm_head.weight" in t else at + "word_embeddings.weight"].T


def bloom(config, t, ids, at):
    hidden, heads, eps = config["n_embed"], config["num_attention_heads"], config["layer_norm_epsilon"]
    dim, n = hidden // heads, len(ids)
    bias = torch.tensor(slopes(heads), dtype=torch.float64)[:, None] * torch.arange(n)
    x = norm(t[at + "word_embeddings.weight"][ids], t, at + "word_embeddings_layernorm", eps)
    for i in range(config["n_layer"]):
        b = f"{at}h.{i}."
        y = norm(x, t, b + "input_layernorm", eps)
        start = y if config["apply_residual_connection_post_layernorm"] else x
        q, k, v = split_grouped(affine(y, t, b + "self_attention.query_key_value"), heads, 1, dim)
        x = start + affine(attend(q, k, v, dim ** -.5, bias), t, b + "self_attention.dense")
        y = norm(x, t, b + "post_attention_layernorm", eps)
        start = y if config["apply_residual_connection_post_layernorm"] else x
        x = start + affine(activation("tanh", affine(y, t, b + "mlp.dense_h_to_4h")), t, b + "mlp.dense_4h_to_h")
    x = norm(x, t, at + "ln_f", eps)
    return x @ t["lm_head.weight" if "lm_head.weight" in t else at + "word_embeddings.weight"].T


def gptj(config, t, ids):
    heads, eps = config["n_head"], config["layer_norm_epsilon"]
    dim = config["n_embd"] // heads
    rates = angles(config["rotary_dim"], 10000.0, None)
    x = t["transformer.wte.weight"][ids]
    for i in range(config["n_layer"]):
        b = f"transformer.h.{i}."
        y = norm(x, t, b + "ln_1", eps)
        q, k, v = (affine(y, t, b + f"attn.{p}_proj").view(len(ids), heads, dim) for p in "qkv")
        a = attend(turn(q, rates, True), turn(k, rates, True), v, dim ** -.5)
        m = activation(config["activation_function"], affine(y, t, b + "mlp.fc_in"))
        x = x + affine(a, t, b + "attn.out_proj") + affine(m, t, b + "mlp.fc_out")
    return affine(norm(x, t, "transformer.ln_f", eps), t, "lm_head")


def phi(config, t, ids):
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    dim = config["hidden_size"] // heads
    rates = angles(int(dim * config["partial_rotary_factor"]), config["rope_theta"], config["rope_scaling"])
    x = t["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        b = f"model.layers.{i}."
        y = norm(x, t, b + "input_layernorm", eps)
        q, k, v = (affine(y, t, b + f"self_attn.{p}_proj").view(len(ids), -1, dim) for p in "qkv")
        a = attend(turn(q, rates), turn(k, rates), v, dim ** -.5)
        m = activation(config["hidden_act"], affine(y, t, b + "mlp.fc1"))
        x = x + affine(a, t, b + "self_attn.dense") + affine(m, t, b + "mlp.fc2")
    return affine(norm(x, t, "model.final_layernorm", eps), t, "lm_head")


def stablelm(config, t, ids):
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    dim = config["hidden_size"] // heads
    rates = angles(int(dim * config["partial_rotary_factor"]), config["rope_theta"], None)
    x = t["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        b = f"model.layers.{i}."
        y = norm(x, t, b + "input_layernorm", eps)
        q, k, v = (affine(y, t, b + f"self_attn.{p}_proj").view(len(ids), -1, dim) for p in "qkv")
        a = affine(attend(turn(q, rates), turn(k, rates), v, dim ** -.5), t, b + "self_attn.o_proj")
        if not config["use_parallel_residual"]:
            y = norm(x + a, t, b + "post_attention_layernorm", eps)
        m = activation("silu", affine(y, t, b + "mlp.gate_proj")) * affine(y, t, b + "mlp.up_proj")
        x = x + a + affine(m, t, b + "mlp.down_proj")
    x = norm(x, t, "model.norm", eps)
    return x @ t["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"].T


# --- Random weights -----------------------------------------------------------

class Weights(Random):
    def layer(self, name, outputs, inputs, bias=True):
        self.matrix(name + ".weight", outputs, inputs)
        if bias:
            self.vector(name + ".bias", outputs, 0, .5)

    def norm(self, name, n):
        self.vector(name + ".weight", n, 1, .3)
        self.vector(name + ".bias", n, 0, .3)

    def table(self, name, width, rows=VOCABULARY):
        self.matrix(name + ".weight", rows, width, 1.44)


def opt_weights(c, seed, at):
    r, hidden, bias = Weights(seed), c["hidden_size"], c.get("enable_bias", True)
    width = c["word_embed_proj_dim"]
    r.table(at + "embed_tokens", width)
    r.table(at + "embed_positions", hidden, c["max_position_embeddings"] + 2)
    norms = []
    for i in range(c["num_hidden_layers"]):
        b = f"{at}layers.{i}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            r.layer(b + "self_attn." + part, hidden, hidden, bias)
        r.layer(b + "fc1", c["ffn_dim"], hidden, bias)
        r.layer(b + "fc2", hidden, c["ffn_dim"], bias)
        norms += [b + "self_attn_layer_norm", b + "final_layer_norm"]
    if c["do_layer_norm_before"] and not c["_remove_final_layer_norm"]:
        norms.append(at + "final_layer_norm")
    for name in norms if c.get("layer_norm_elementwise_affine", True) else []:
        r.norm(name, hidden)
    if width != hidden:
        r.layer(at + "project_in", hidden, width, False)
        r.layer(at + "project_out", width, hidden, False)
    if not c.get("tie_word_embeddings", True):
        r.matrix("lm_head.weight", VOCABULARY, width)
    return r.tensors


def fused_weights(seed, blocks, hidden, heads, fused, inner, norms, embed, last, bias=True, mlp_bias=True, head=None,
                  attention="self_attention", first=None, masks=0):
    """The weights of families whose q, k and v are one layer."""
    r = Weights(seed)
    r.table(embed, hidden)
    if first:
        r.norm(first, hidden)
    for b in blocks:
        for name in norms:
            r.norm(b + name, hidden)
        r.layer(b + attention + ".query_key_value", fused, hidden, bias)
        if masks:
            r.tensors[b + attention + ".bias"] = np.tril(np.ones((1, 1, masks, masks), np.uint8))
            r.tensors[b + attention + ".masked_bias"] = np.array(-1e9, np.float32)
            r.tensors[b + attention + ".rotary_emb.inv_freq"] = np.ones(2, np.float32)
        r.layer(b + attention + ".dense", hidden, hidden, bias)
        r.layer(b + "mlp.dense_h_to_4h", inner, hidden, mlp_bias)
        r.layer(b + "mlp.dense_4h_to_h", hidden, inner, mlp_bias)
    r.norm(last, hidden)
    if head:
        r.matrix(head + ".weight", VOCABULARY, hidden)
    return r.tensors


def split_weights(seed, blocks, hidden, dim, heads, kv, inner, norms, embed, last, qkv_bias, out, out_bias, attention,
                  mlp, mlp_bias, head_bias=False, head=True):
    """The weights of families with layers for q, k and v. mlp are the layers that
    read the hidden state, then the one that writes it."""
    r = Weights(seed)
    r.table(embed, hidden)
    for b in blocks:
        for name in norms:
            r.norm(b + name, hidden)
        for part, n in (("q_proj", heads), ("k_proj", kv), ("v_proj", kv)):
            r.layer(f"{b}{attention}.{part}", n * dim, hidden, qkv_bias)
        r.layer(f"{b}{attention}.{out}", hidden, heads * dim, out_bias)
        for name in mlp[:-1]:
            r.layer(b + name, inner, hidden, mlp_bias)
        r.layer(b + mlp[-1], hidden, inner, mlp_bias)
    r.norm(last, hidden)
    if head:
        r.layer("lm_head", VOCABULARY, hidden, head_bias)
    return r.tensors


# --- Folders ------------------------------------------------------------------

def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    torch.set_num_threads(1)
    common = {"vocab_size": VOCABULARY, "torch_dtype": "float32", "use_cache": True, "transformers_version": "4.41.2"}

    def blocks(at, n):
        return [f"{at}{i}." for i in range(n)]

    # OPT as in 125M; as in 350M, normalizations after the sums and narrow token
    # vectors; and with all that an OPT may lack.
    base = {**common, "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": 16, "ffn_dim": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32, "word_embed_proj_dim": 16,
            "do_layer_norm_before": True, "_remove_final_layer_norm": False, "activation_function": "relu",
            "dropout": .1, "attention_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0, "init_std": .02,
            "prefix": "</s>"}
    post = {**base, "do_layer_norm_before": False, "word_embed_proj_dim": 12, "activation_function": "gelu"}
    bare = {**base, "enable_bias": False, "layer_norm_elementwise_affine": False, "_remove_final_layer_norm": True,
            "tie_word_embeddings": False, "word_embed_proj_dim": 20}
    for name, config, seed, at in (("opt", base, 11, "model.decoder."), ("opt-post", post, 12, "decoder."),
                                   ("opt-bare", bare, 13, "model.decoder.")):
        write(folder, name, config, opt_weights(config, seed, at),
              lambda t, ids, c=config, at=at: opt(c, t, ids, at))

    # GPT-NeoX with old buffers, half of each head turned, scaled; and all turned over.
    neox = {**common, "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 16,
            "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu",
            "rotary_pct": .5, "rotary_emb_base": 500, "max_position_embeddings": 32, "layer_norm_eps": 1e-5,
            "use_parallel_residual": True, "tie_word_embeddings": False, "classifier_dropout": .1,
            "rope_scaling": {"type": "linear", "factor": 2.0}}
    write(folder, "gpt-neox", neox,
          fused_weights(14, blocks("gpt_neox.layers.", 2), 16, 2, 48, 24, ["input_layernorm", "post_attention_layernorm"],
                        "gpt_neox.embed_in", "gpt_neox.final_layer_norm", head="embed_out", attention="attention", masks=32),
          lambda t, ids: gpt_neox(neox, t, ids))
    drop = ("rotary_pct", "rotary_emb_base", "rope_scaling", "classifier_dropout")
    row = {**{k: v for k, v in neox.items() if k not in drop}, "use_parallel_residual": False, "attention_bias": False,
           "tie_word_embeddings": True, "hidden_act": "gelu_new",
           "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": .75}}
    write(folder, "gpt-neox-row", row,
          fused_weights(15, blocks("gpt_neox.layers.", 2), 16, 2, 48, 24, ["input_layernorm", "post_attention_layernorm"],
                        "gpt_neox.embed_in", "gpt_neox.final_layer_norm", bias=False, attention="attention"),
          lambda t, ids: gpt_neox(row, t, ids))

    # Falcon as in 7B, 40B, 11B and RW 1B.
    base = {**common, "architectures": ["FalconForCausalLM"], "model_type": "falcon", "hidden_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 4, "layer_norm_epsilon": 1e-5, "alibi": False, "bias": False,
            "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "hidden_dropout": 0.0,
            "apply_residual_connection_post_layernorm": False}
    seven = {**base, "ffn_hidden_size": 24, "auto_map": {"AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM"}}
    forty = {**base, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "ffn_hidden_size": 24,
             "activation": "gelu_pytorch_tanh", "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.5},
             "tie_word_embeddings": False}
    eleven = {**base, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1,
              "ffn_hidden_size": 24, "max_position_embeddings": 64}
    rw = {**base, "hidden_size": 32, "num_attention_heads": 16, "alibi": True, "multi_query": False,
          "parallel_attn": False, "bias": True, "ffn_hidden_size": 12}
    two = ["ln_attn", "ln_mlp"]
    one = ["input_layernorm"]
    for name, config, seed, at, fused, norms in (
            ("falcon", seven, 16, "transformer.", 24, one), ("falcon-grouped", forty, 17, "transformer.", 32, two),
            ("falcon-one-norm", eleven, 18, "transformer.", 32, one),
            ("falcon-alibi", rw, 19, "", 96, one + ["post_attention_layernorm"])):
        hidden = config["hidden_size"]
        write(folder, name, config,
              fused_weights(seed, blocks(at + "h.", 2), hidden, config["num_attention_heads"], fused,
                            config["ffn_hidden_size"], norms, at + "word_embeddings", at + "ln_f", config["bias"],
                            config["bias"], None if config.get("tie_word_embeddings", True) else "lm_head"),
              lambda t, ids, c=config, at=at: falcon(c, t, ids, at))

    # BLOOM, its heads a power of two; and not, with sums that begin at the norms.
    base = {**common, "architectures": ["BloomForCausalLM"], "model_type": "bloom", "n_embed": 16, "n_layer": 2,
            "num_attention_heads": 4, "layer_norm_epsilon": 1e-5, "apply_residual_connection_post_layernorm": False,
            "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "masked_softmax_fusion": True,
            "offset_alibi": 100, "pretraining_tp": 2, "skip_bias_add": True, "slow_but_exact": False, "seq_length": 64,
            "hidden_dropout": 0.0, "attention_dropout": 0.0}
    other = {**base, "n_embed": 18, "num_attention_heads": 6, "apply_residual_connection_post_layernorm": True,
             "tie_word_embeddings": False}
    for name, config, seed, at in (("bloom", base, 20, ""), ("bloom-options", other, 21, "transformer.")):
        hidden = config["n_embed"]
        write(folder, name, config,
              fused_weights(seed, blocks(at + "h.", 2), hidden, config["num_attention_heads"], 3 * hidden, 4 * hidden,
                            ["input_layernorm", "post_attention_layernorm"], at + "word_embeddings", at + "ln_f",
                            head=None if config.get("tie_word_embeddings", True) else "lm_head",
                            first=at + "word_embeddings_layernorm"),
              lambda t, ids, c=config, at=at: bloom(c, t, ids, at))

    j = {**common, "architectures": ["GPTJForCausalLM"], "model_type": "gptj", "n_embd": 16, "n_layer": 2, "n_head": 2,
         "n_positions": 32, "rotary": True, "rotary_dim": 6, "n_inner": 24, "activation_function": "gelu_new",
         "layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "tie_word_embeddings": False}
    write(folder, "gptj", j,
          split_weights(22, blocks("transformer.h.", 2), 16, 8, 2, 2, 24, ["ln_1"], "transformer.wte", "transformer.ln_f",
                        False, "out_proj", False, "attn", ["mlp.fc_in", "mlp.fc_out"], True, head_bias=True),
          lambda t, ids: gptj(j, t, ids))

    base = {**common, "hidden_size": 32, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "layer_norm_eps": 1e-5, "max_position_embeddings": 32, "partial_rotary_factor": .5,
            "rope_theta": 400.0, "tie_word_embeddings": False}
    p = {**base, "architectures": ["PhiForCausalLM"], "model_type": "phi", "hidden_act": "gelu_new",
         "qk_layernorm": False, "rope_scaling": {"type": "linear", "factor": 1.5}}
    write(folder, "phi", p,
          split_weights(23, blocks("model.layers.", 2), 32, 8, 4, 2, 12, ["input_layernorm"], "model.embed_tokens",
                        "model.final_layernorm", True, "dense", True, "self_attn", ["mlp.fc1", "mlp.fc2"], True,
                        head_bias=True),
          lambda t, ids: phi(p, t, ids))
    s = {**base, "architectures": ["StableLmForCausalLM"], "model_type": "stablelm", "hidden_act": "silu",
         "use_qkv_bias": True, "use_parallel_residual": False, "qk_layernorm": False}
    beside = {**s, "use_qkv_bias": False, "use_parallel_residual": True, "tie_word_embeddings": True}
    gated = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    for name, config, seed, norms in (("stablelm", s, 24, ["input_layernorm", "post_attention_layernorm"]),
                                      ("stablelm-parallel", beside, 25, ["input_layernorm"])):
        write(folder, name, config,
              split_weights(seed, blocks("model.layers.", 2), 32, 8, 4, 2, 12, norms, "model.embed_tokens", "model.norm",
                            config["use_qkv_bias"], "o_proj", False, "self_attn", gated, False,
                            head=not config["tie_word_embeddings"]),
              lambda t, ids, c=config: stablelm(c, t, ids))


if __name__ == "__main__":
    main()
