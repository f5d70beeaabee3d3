#!/usr/bin/env python3
"""Writes tiny random language models and what they compute into this folder.

    python3 model/testdata/make_lm.py [FOLDER]

Needs PyTorch (these files come from 1.13) and nothing else. Each model is a
Hugging Face folder, config.json and model.safetensors, with expected.json: some
sequences of token ids and the logits after each token. The forward passes below
were written from the papers and from the definition of the keys of config.json:
one function per family, in float64, a whole L×L matrix per head. They share
nothing with the Go code that they judge.
"""
import json
import math
import struct
import sys
from pathlib import Path

import numpy as np
import torch

VOCABULARY = 37
LENGTHS = [1, 7, 26]


# --- Definitions --------------------------------------------------------------

def rms(x, weight, eps):
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / torch.sqrt((centred ** 2).mean(-1, keepdim=True) + eps) + bias


def angles(dim, theta, scaling):
    """Radians a token for each pair of a head."""
    out = []
    for pair in range(dim // 2):
        angle = 1 / theta ** (2 * pair / dim)
        kind = scaling.get("rope_type", scaling.get("type")) if scaling else None
        if kind == "linear":
            angle /= scaling["factor"]
        elif kind == "llama3":
            length = scaling["original_max_position_embeddings"]
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            wavelength = 2 * math.pi / angle
            if wavelength > length / low:
                angle /= scaling["factor"]
            elif wavelength >= length / high:
                smooth = (length / wavelength - low) / (high - low)
                angle = (1 - smooth) * angle / scaling["factor"] + smooth * angle
        out.append(angle)
    return torch.tensor(out, dtype=torch.float64)


def rotate(x, rates):
    """x is [tokens, heads, dim]; numbers i and i + dim/2 of a head are the real
    and the imaginary part of one complex number."""
    half = x.shape[-1] // 2
    z = torch.complex(x[..., :half], x[..., half:])
    turn = torch.outer(torch.arange(x.shape[0], dtype=torch.float64), rates)
    z = z * torch.polar(torch.ones_like(turn), turn)[:, None, :]
    return torch.cat([z.real, z.imag], -1)


def attend(q, k, v, scale, window):
    """q [tokens, heads, dim], k and v [tokens, fewer heads, dim]. Token i sees
    token j if j ≤ i and, with a window, i − j < window."""
    share = q.shape[1] // k.shape[1]
    out = torch.zeros_like(q)
    for head in range(q.shape[1]):
        scores = scale * q[:, head] @ k[:, head // share].T
        for i in range(len(scores)):
            for j in range(len(scores)):
                if j > i or (window is not None and i - j >= window):
                    scores[i, j] = -math.inf
        out[:, head] = torch.softmax(scores, -1) @ v[:, head // share]
    return out.flatten(1)


def affine(x, t, name):
    y = x @ t[name + ".weight"].T
    return y + t[name + ".bias"] if name + ".bias" in t else y


# --- Families -----------------------------------------------------------------

def llama_like(config, t, ids, window_of):
    heads = config["num_attention_heads"]
    dim = config.get("head_dim", config["hidden_size"] // heads)
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    theta = (config.get("rope_parameters") or config).get("rope_theta", 10000.0)
    rates = angles(dim, theta, rope)
    eps = config["rms_norm_eps"]
    table = t.get("model.embed_tokens.weight", t.get("lm_head.weight"))
    x = table[ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        y = rms(x, t[at + "input_layernorm.weight"], eps)
        q, k, v = (affine(y, t, at + f"self_attn.{p}_proj").view(len(ids), -1, dim) for p in "qkv")
        y = attend(rotate(q, rates), rotate(k, rates), v, dim ** -.5, window_of(layer))
        x = x + affine(y, t, at + "self_attn.o_proj")
        y = rms(x, t[at + "post_attention_layernorm.weight"], eps)
        gate = affine(y, t, at + "mlp.gate_proj")
        x = x + affine(gate * torch.sigmoid(gate) * affine(y, t, at + "mlp.up_proj"), t, at + "mlp.down_proj")
    x = rms(x, t["model.norm.weight"], eps)
    return x @ (table if config["tie_word_embeddings"] else t["lm_head.weight"]).T


def gpt2(config, t, ids, prefix):
    t = {k[len(prefix):] if k.startswith(prefix) else k: v for k, v in t.items()}
    heads, eps = config["n_head"], config["layer_norm_epsilon"]
    dim = config["n_embd"] // heads
    x = t["wte.weight"][ids] + t["wpe.weight"][: len(ids)]
    for layer in range(config["n_layer"]):
        at = f"h.{layer}."
        y = layer_norm(x, t[at + "ln_1.weight"], t[at + "ln_1.bias"], eps)
        # Conv1D stores inputs × outputs.
        y = y @ t[at + "attn.c_attn.weight"] + t[at + "attn.c_attn.bias"]
        q, k, v = (part.view(len(ids), heads, dim) for part in y.split(config["n_embd"], 1))
        scale = dim ** -.5 if config.get("scale_attn_weights", True) else 1.0
        if config.get("scale_attn_by_inverse_layer_idx"):
            scale /= layer + 1
        y = attend(q, k, v, scale, None)
        x = x + y @ t[at + "attn.c_proj.weight"] + t[at + "attn.c_proj.bias"]
        y = layer_norm(x, t[at + "ln_2.weight"], t[at + "ln_2.bias"], eps)
        y = y @ t[at + "mlp.c_fc.weight"] + t[at + "mlp.c_fc.bias"]
        if config["activation_function"] == "gelu":
            y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        else:
            y = y / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + .044715 * y ** 3)))
        x = x + y @ t[at + "mlp.c_proj.weight"] + t[at + "mlp.c_proj.bias"]
    x = layer_norm(x, t["ln_f.weight"], t["ln_f.bias"], eps)
    return x @ (t["wte.weight"] if config.get("tie_word_embeddings", True) else t["lm_head.weight"]).T


# --- Random weights -----------------------------------------------------------

class Random:
    """Tensors in float32; matrices are so large that scores and gates matter."""

    def __init__(self, seed):
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self.tensors = {}

    def matrix(self, name, rows, cols, inputs=None):
        std = 1.2 / math.sqrt(inputs or cols)
        self.tensors[name] = (self.rng.standard_normal((rows, cols)) * std).astype(np.float32)

    def vector(self, name, n, mean, std):
        self.tensors[name] = (mean + std * self.rng.standard_normal(n)).astype(np.float32)


def llama_weights(config, seed, qkv_bias=False, out_bias=False, mlp_bias=False, prefix="model."):
    r = Random(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    dim = config.get("head_dim", hidden // heads)
    keys = config.get("num_key_value_heads", heads) * dim

    def layer(name, outputs, inputs, bias):
        r.matrix(name + ".weight", outputs, inputs)
        if bias:
            r.vector(name + ".bias", outputs, 0, .5)

    r.matrix(prefix + "embed_tokens.weight", VOCABULARY, hidden, 1.44)
    for i in range(config["num_hidden_layers"]):
        at = f"{prefix}layers.{i}."
        r.vector(at + "input_layernorm.weight", hidden, 1, .3)
        r.vector(at + "post_attention_layernorm.weight", hidden, 1, .3)
        layer(at + "self_attn.q_proj", heads * dim, hidden, qkv_bias)
        layer(at + "self_attn.k_proj", keys, hidden, qkv_bias)
        layer(at + "self_attn.v_proj", keys, hidden, qkv_bias)
        layer(at + "self_attn.o_proj", hidden, heads * dim, out_bias)
        layer(at + "mlp.gate_proj", inner, hidden, mlp_bias)
        layer(at + "mlp.up_proj", inner, hidden, mlp_bias)
        layer(at + "mlp.down_proj", hidden, inner, mlp_bias)
    r.vector(prefix + "norm.weight", hidden, 1, .3)
    if not config["tie_word_embeddings"]:
        r.matrix("lm_head.weight", VOCABULARY, hidden)
    return r.tensors


def gpt2_weights(config, seed, prefix, masks):
    r = Random(seed)
    hidden, inner = config["n_embd"], config.get("n_inner") or 4 * config["n_embd"]

    def layer(name, outputs, inputs):
        r.matrix(name + ".weight", inputs, outputs, inputs)
        r.vector(name + ".bias", outputs, 0, .5)

    def norm(name):
        r.vector(name + ".weight", hidden, 1, .3)
        r.vector(name + ".bias", hidden, 0, .3)

    r.matrix(prefix + "wte.weight", VOCABULARY, hidden, 1.44)
    r.matrix(prefix + "wpe.weight", config["n_positions"], hidden, 1.44)
    for i in range(config["n_layer"]):
        at = f"{prefix}h.{i}."
        norm(at + "ln_1")
        layer(at + "attn.c_attn", 3 * hidden, hidden)
        if masks:
            n = config["n_positions"]
            r.tensors[at + "attn.bias"] = np.tril(np.ones((1, 1, n, n), np.uint8))
            r.tensors[at + "attn.masked_bias"] = np.array(-1e4, np.float32)
        layer(at + "attn.c_proj", hidden, hidden)
        norm(at + "ln_2")
        layer(at + "mlp.c_fc", inner, hidden)
        layer(at + "mlp.c_proj", hidden, inner)
    norm(prefix + "ln_f")
    if not config.get("tie_word_embeddings", True):
        r.matrix("lm_head.weight", VOCABULARY, hidden)
    return r.tensors


# --- Files --------------------------------------------------------------------

def write_safetensors(path, tensors):
    header, blobs, end = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": {"float32": "F32", "uint8": "U8"}[str(array.dtype)], "shape": list(array.shape),
                        "data_offsets": [end, end + len(blob)]}
        blobs.append(blob)
        end += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write(folder, name, config, tensors, forward):
    out = folder / name
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    rng = np.random.Generator(np.random.PCG64(len(name)))
    t = {k: torch.tensor(v).double() for k, v in tensors.items()}
    cases = []
    for n in LENGTHS:
        ids = rng.integers(0, VOCABULARY, n)
        logits = forward(t, torch.tensor(ids))
        cases.append({"ids": ids.tolist(), "logits": [[round(v, 5) for v in row] for row in logits.tolist()]})
    (out / "expected.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")
    write_safetensors(out / "model.safetensors", tensors)
    size = max(abs(v) for case in cases for row in case["logits"] for v in row)
    print(f"{name}: {sum(f.stat().st_size for f in out.iterdir())} bytes, largest logit {size:.2f}")


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    torch.set_num_threads(1)
    base = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
            "num_attention_heads": 4, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
            "torch_dtype": "float32", "initializer_range": 0.02, "attention_dropout": 0.0, "bos_token_id": 1,
            "eos_token_id": 2, "use_cache": True, "transformers_version": "4.41.2"}
    llama = {**base, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "pretraining_tp": 1}

    # Biases everywhere, heads that do not fill the hidden size, a head of its
    # own, the older way of writing a rope.
    config = {**llama, "num_key_value_heads": 2, "head_dim": 6, "attention_bias": True, "mlp_bias": True,
              "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.5}, "tie_word_embeddings": False}
    write(folder, "llama-linear", config, llama_weights(config, 1, True, True, True),
          lambda t, ids: llama_like(config, t, ids, lambda i: None))

    # Llama 3's scaling with pairs that are slow, between and fast; tied.
    config2 = {**llama, "num_key_value_heads": 1, "head_dim": 12, "rope_theta": 10000.0, "tie_word_embeddings": True,
               "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 32}}
    write(folder, "llama-llama3", config2, llama_weights(config2, 2),
          lambda t, ids: llama_like(config2, t, ids, lambda i: None))

    # A window in every block; the newer way of writing a rope.
    config3 = {**base, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_key_value_heads": 2,
               "head_dim": 8, "sliding_window": 5, "tie_word_embeddings": False,
               "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}
    write(folder, "mistral", config3, llama_weights(config3, 3),
          lambda t, ids: llama_like(config3, t, ids, lambda i: 5))

    # Biases in q, k and v; a window from the second of three blocks on.
    config4 = {**base, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_hidden_layers": 3,
               "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1,
               "rope_theta": 1000000.0, "tie_word_embeddings": True}
    write(folder, "qwen2", config4, llama_weights(config4, 4, qkv_bias=True),
          lambda t, ids: llama_like(config4, t, ids, lambda i: 4 if i >= 1 else None))

    # GPT-2 as old versions stored it, with masks.
    gpt = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 16,
           "n_layer": 2, "n_head": 4, "n_positions": 32, "n_ctx": 32, "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1,
           "embd_pdrop": 0.1, "attn_pdrop": 0.1, "summary_type": "cls_index", "activation_function": "gelu_new"}
    write(folder, "gpt2", gpt, gpt2_weights(gpt, 5, "", True), lambda t, ids: gpt2(gpt, t, ids, "transformer."))

    # All options turned over: prefix, inner width, head of its own, scales.
    gpt5 = {**gpt, "n_inner": 24, "activation_function": "gelu", "scale_attn_by_inverse_layer_idx": True,
            "scale_attn_weights": False, "tie_word_embeddings": False}
    write(folder, "gpt2-options", gpt5, gpt2_weights(gpt5, 6, "transformer.", False),
          lambda t, ids: gpt2(gpt5, t, ids, "transformer."))


if __name__ == "__main__":
    main()
