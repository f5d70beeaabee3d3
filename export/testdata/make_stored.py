#!/usr/bin/env python3
"""Writes tiny random language models whose weights are stored as other programs store
them, and what they compute, into the folder "stored" beside this file.

    python3 export/testdata/make_stored.py [FOLDER]

Needs PyTorch (these files come from 1.13), and the forward passes of
model/testdata/make_lm.py. Codes, scales and zero points are random numbers; the weights
follow from them, and the files from the definition of each layout: a row or column of
codes is one long little-endian number, written here as such. Each model is a Hugging
Face folder with expected.json: the SHA-256 of each weight's dequantized values as
little-endian float32, and the logits of some sequences.
"""
import hashlib
import json
import math
import struct
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "model" / "testdata"))
import make_lm  # noqa: E402

DTYPES = {"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64", "int8": "I8", "uint8": "U8"}


class F8:
    """Bytes of float8_e4m3fn."""

    def __init__(self, raw):
        self.raw = raw

    def values(self):
        out = np.zeros(self.raw.shape)
        for i, b in np.ndenumerate(self.raw):
            sign, exponent, mantissa = int(b) >> 7, int(b) >> 3 & 15, int(b) & 7
            out[i] = (-1) ** sign * (2 ** (exponent - 7) * (1 + mantissa / 8) if exponent else 2 ** -6 * mantissa / 8)
        return out


def write_safetensors(path, tensors):
    header, blobs, end = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in tensors.items():
        kind = "F8_E4M3" if isinstance(array, F8) else DTYPES[str(array.dtype)]
        array = array.raw if isinstance(array, F8) else array
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [end, end + len(blob)]}
        blobs.append(blob)
        end += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def words(codes, bits):
    """The words of a list of codes without sign, the first in the lowest bits."""
    number = sum(int(code) << i * bits for i, code in enumerate(codes))
    count = (len(codes) * bits + 31) // 32
    return np.frombuffer(number.to_bytes(4 * count, "little"), np.int32)


def rows(codes, bits):
    return np.stack([words(row, bits) for row in codes])


def columns(codes, bits):
    return rows(codes.T, bits).T


class Model:
    """Tensors as stored, and the weights that they stand for."""

    def __init__(self, seed, dense):
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self.stored = {k: v.astype(np.float16) for k, v in dense.items()}
        self.values = {k: v.astype(np.float64) for k, v in self.stored.items()}
        self.hashes = {}

    def put(self, name, parts, values, transposed=False):
        """values is out × in, in float32; parts replace the weight."""
        del self.stored[name]
        self.stored.update(parts)
        values = np.ascontiguousarray(values.T if transposed else values)
        assert values.dtype == np.float32 and values.shape == self.values[name].shape
        self.values[name] = values.astype(np.float64)
        self.hashes[name] = hashlib.sha256(values.tobytes()).hexdigest()

    def scales(self, shape, bits, inputs):
        """Such that weights have the size of make_lm's."""
        size = 1.2 / math.sqrt(inputs) / (2 ** bits / math.sqrt(12))
        return (size * self.rng.uniform(.6, 1.4, shape)).astype(np.float16)

    def codes(self, bits, shape):
        return self.rng.integers(0, 2 ** bits, shape)

    def gptq(self, name, bits, group, symmetric, v2=False, order=False, index=True, transposed=False):
        outputs, inputs = self.values[name].shape[::-1] if transposed else self.values[name].shape
        group = inputs if group == -1 else group
        groups = inputs // group
        of = np.arange(inputs) // group
        if order:
            of = self.rng.permutation(of)
        q = self.codes(bits, (inputs, outputs))
        z = np.full((groups, outputs), 2 ** (bits - 1)) if symmetric else self.codes(bits, (groups, outputs))
        s = self.scales((groups, outputs), bits, inputs)
        stored = z if v2 else (z - 1) % 2 ** bits
        module = name[: -len(".weight")]
        parts = {module + ".qweight": columns(q, bits), module + ".qzeros": rows(stored, bits), module + ".scales": s}
        if index:
            parts[module + ".g_idx"] = of.astype(np.int32)
        values = (q - z[of]).astype(np.float32) * s[of].astype(np.float32)
        self.put(name, parts, values.T, transposed)

    def awq(self, name, group):
        outputs, inputs = self.values[name].shape
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        q, z = self.codes(4, (inputs, outputs)), self.codes(4, (inputs // group, outputs))
        s = self.scales(z.shape, 4, inputs)

        def packed(codes):
            return rows(codes.reshape(len(codes), -1, 8)[:, :, order].reshape(codes.shape), 4)

        module = name[: -len(".weight")]
        of = np.arange(inputs) // group
        values = (q - z[of]).astype(np.float32) * s[of].astype(np.float32)
        self.put(name, {module + ".qweight": packed(q), module + ".qzeros": packed(z), module + ".scales": s}, values.T)

    def packed(self, name, bits, group, symmetric, order=False):
        """compressed-tensors' pack-quantized: signed codes plus half their range."""
        outputs, inputs = self.values[name].shape
        groups = inputs // group
        of = np.arange(inputs) // group
        if order:
            of = self.rng.permutation(of)
        q = self.codes(bits, (outputs, inputs))
        z = np.full((outputs, groups), 2 ** (bits - 1)) if symmetric else self.codes(bits, (outputs, groups))
        s = self.scales(z.shape, bits, inputs)
        parts = {name + "_packed": rows(q, bits), name + "_scale": s, name + "_shape": np.array([outputs, inputs], np.int64)}
        if not symmetric:
            parts[name + "_zero_point"] = columns(z, bits)
        if order:
            parts[name + "_g_idx"] = of.astype(np.int32)
        self.put(name, parts, (q - z[:, of]).astype(np.float32) * s[:, of].astype(np.float32))

    def integers(self, name, symmetric, strategy, shape):
        """compressed-tensors' int-quantized: signed bytes; shape is that of the scales."""
        outputs, inputs = self.values[name].shape
        q = self.rng.integers(-128, 128, (outputs, inputs))
        s = self.scales(shape, 8, inputs)
        z = np.zeros(shape, np.int64) if symmetric else self.rng.integers(-20, 21, shape)
        parts = {name: q.astype(np.int8), name + "_scale": s}
        if not symmetric:
            parts[name + "_zero_point"] = z.astype(np.int8)
        wide, zero = self.spread(s, q.shape, strategy), self.spread(z, q.shape, strategy)
        self.put(name, parts, (q - zero).astype(np.float32) * wide.astype(np.float32))

    def floats(self, name, strategy, shape, static=False):
        """compressed-tensors' float-quantized."""
        outputs, inputs = self.values[name].shape
        raw = self.rng.integers(0, 256, (outputs, inputs)).astype(np.uint8)
        raw[(raw & 127 == 127) | (raw == 128)] = 0  # NaN, and -0, whose sign is lost
        s = (self.scales(shape, 8, inputs) / 2).astype(np.float16)
        parts = {name: F8(raw), name + "_scale": s}
        if static:
            parts[name[: -len("weight")] + "input_scale"] = np.array([.5], np.float32)
        wide = self.spread(s, raw.shape, strategy)
        self.put(name, parts, F8(raw).values().astype(np.float32) * wide.astype(np.float32))

    def survivors(self, name, of_four):
        """compressed-tensors' sparse-bitmask, and sparse-24-bitmask for 2 of each 4."""
        values = self.stored[name].copy()
        if of_four:
            order = self.rng.permuted(np.tile(np.arange(4), (values.size // 4, 1)), axis=1)
            keep = (order < 2).reshape(values.shape)
        else:
            keep = self.rng.random(values.shape) < .4
        values[~keep] = 0
        module, shape = name[: -len(".weight")], np.array(values.shape, np.int64)
        parts = {module + ".compressed": values[keep], module + ".bitmask": np.packbits(keep, axis=1, bitorder="little"),
                 module + ".shape": shape}
        if of_four:
            parts[module + ".compressed"] = values[keep].reshape(len(values), -1)
            parts[module + ".shape"] = shape.reshape(2, 1)
        else:
            counts = keep.sum(1)
            parts[module + ".row_offsets"] = (np.cumsum(counts) - counts).astype(np.int64)
        self.put(name, parts, values.astype(np.float32))

    @staticmethod
    def spread(v, shape, strategy):
        if strategy == "tensor":
            return np.broadcast_to(v, shape)
        down, across = -(-shape[0] // v.shape[0]), -(-shape[1] // v.shape[1])
        return np.repeat(np.repeat(v, down, 0), across, 1)[: shape[0], : shape[1]]


def write(folder, name, config, model, forward, beside=None):
    out = folder / name
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if beside:
        (out / "quantize_config.json").write_text(json.dumps(beside, indent=1) + "\n")
    rng = np.random.Generator(np.random.PCG64(len(name)))
    t = {k: torch.tensor(v) for k, v in model.values.items()}
    cases = []
    for n in [1, 9]:
        ids = rng.integers(0, make_lm.VOCABULARY, n)
        logits = forward(t, torch.tensor(ids))
        cases.append({"ids": ids.tolist(), "logits": [[round(v, 5) for v in row] for row in logits.tolist()]})
    expected = {"sha256": model.hashes, "cases": cases}
    (out / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    write_safetensors(out / "model.safetensors", model.stored)
    size = max(abs(v) for case in cases for row in case["logits"] for v in row)
    print(f"{name}: {sum(f.stat().st_size for f in out.iterdir())} bytes, largest logit {size:.2f}")


def group(targets, kind, bits, symmetric, strategy, size=None, format=None, inputs=None, **more):
    weights = {"num_bits": bits, "type": kind, "symmetric": symmetric, "strategy": strategy, "group_size": size,
               "block_structure": None, "dynamic": False, "actorder": None, "observer": "minmax", "observer_kwargs": {}, **more}
    return {"targets": targets, "format": format, "weights": weights, "input_activations": inputs, "output_activations": None}


def compressed(format, groups, ignore):
    return {"quant_method": "compressed-tensors", "version": "0.17.0", "format": format, "quantization_status": "compressed",
            "global_compression_ratio": None, "kv_cache_scheme": None, "ignore": ignore, "sparsity_config": {},
            "transform_config": {}, "config_groups": {f"group_{i}": g for i, g in enumerate(groups)}}


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "stored"
    torch.set_num_threads(1)
    llama = {"vocab_size": make_lm.VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 4, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
             "torch_dtype": "float16", "tie_word_embeddings": False, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    attention = [f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkvo"]
    mlp = [f"model.layers.0.mlp.{p}_proj.weight" for p in ("gate", "up", "down")]

    def forward(t, ids):
        return make_lm.llama_like(llama, t, ids, lambda i: None)

    def fresh(seed):
        return Model(seed, make_lm.llama_weights(llama, seed))

    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True, "lm_head": False}

    # Symmetric, zero points less one; no word of the format.
    m = fresh(1)
    for name in attention + mlp:
        m.gptq(name, 4, 16, True)
    write(folder, "gptq", {**llama, "quantization_config": gptq}, m, forward)

    # Groups of any inputs, zero points as they are.
    m = fresh(2)
    for name in attention + mlp:
        m.gptq(name, 4, 16, False, v2=True, order=True)
    write(folder, "gptq-act-order", {**llama, "quantization_config": {**gptq, "sym": False, "desc_act": True, "checkpoint_format": "gptq_v2"}}, m, forward)

    # 3 bits that cross words, one group, no index, and the config in a file of its own.
    m = fresh(3)
    for name in attention + mlp:
        m.gptq(name, 3, -1, False, index=False)
    write(folder, "gptq-3bit", llama, m, forward, {"bits": 3, "group_size": -1, "desc_act": False, "sym": False, "damp_percent": .01})

    # 8 bits, and 2 for some; a layer that is not quantized.
    m = fresh(4)
    for name in attention + mlp[:2]:
        m.gptq(name, 2 if ".q_" in name or ".k_" in name else 8, 32 if ".q_" in name else 16, False)
    dynamic = {"-:.*down_proj": {}, "+:.*q_proj": {"bits": 2, "group_size": 32}, r".*\.k_proj": {"bits": 2}, ".*_proj": {}}
    write(folder, "gptq-dynamic", {**llama, "quantization_config": {**gptq, "bits": 8, "sym": False, "dynamic": dynamic}}, m, forward)

    # GPT-2, whose layers are inputs × outputs in the dense checkpoint alone.
    gpt = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": make_lm.VOCABULARY, "n_embd": 32,
           "n_layer": 1, "n_head": 4, "n_positions": 32, "n_ctx": 32, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}
    m = Model(5, make_lm.gpt2_weights(gpt, 5, "", False))
    for name in [f"h.0.{part}.weight" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]:
        m.gptq(name, 4, 16, True, transposed=True)
    write(folder, "gptq-gpt2", {**gpt, "quantization_config": gptq}, m, lambda t, ids: make_lm.gpt2(gpt, t, ids, ""))

    m = fresh(6)
    for name in attention + mlp:
        m.awq(name, 16)
    write(folder, "awq", {**llama, "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm", "modules_to_not_convert": None}}, m, forward)

    # A class of modules, a pattern before it, and what is ignored; with zero points,
    # and with groups of any inputs.
    m = fresh(7)
    for name in attention:
        m.packed(name, 4, 16, False)
    for name in mlp:
        m.packed(name, 8, 32, True, order=True)
    groups = [group(["Linear"], "int", 4, False, "group", 16), group(["re:.*mlp.*"], "int", 8, True, "group", 32, actorder="group")]
    write(folder, "pack-quantized", {**llama, "quantization_config": compressed("pack-quantized", groups, ["lm_head"])}, m, forward)

    # Bytes by channel, tensor, group and block; activations quantized as the model runs.
    m = fresh(8)
    for name in attention[:2]:
        m.integers(name, True, "channel", (32, 1))
    m.integers(attention[2], False, "tensor", (1,))
    m.integers(attention[3], False, "group", (32, 2))
    for name in mlp[:2]:
        m.integers(name, True, "block", (4, 3))
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    groups = [group(["re:.*[qk]_proj"], "int", 8, True, "channel", inputs=inputs),
              group(["model.layers.0.self_attn.v_proj"], "int", 8, False, "tensor", inputs=inputs),
              group(["model.layers.0.self_attn.o_proj"], "int", 8, False, "group", 16, inputs=inputs),
              group(["Linear"], "int", 8, True, "block", inputs=inputs, block_structure=[16, 11])]
    write(folder, "int-quantized", {**llama, "quantization_config": compressed("int-quantized", groups, ["re:.*down_proj$", "lm_head"])}, m, forward)

    # FP8 by channel, by tensor with a scale of the inputs, and in blocks.
    m = fresh(9)
    for name in attention[:2]:
        m.floats(name, "channel", (32, 1))
    for name in attention[2:]:
        m.floats(name, "tensor", (1,), static=True)
    for name in mlp:
        m.floats(name, "block", (2, 1) if "down" in name else (4, 1))
    static = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
    groups = [group(["re:.*[qk]_proj"], "float", 8, True, "channel", inputs={**static, "strategy": "token", "dynamic": True}),
              group(["re:.*[vo]_proj"], "float", 8, True, "tensor", inputs=static),
              group(["Linear"], "float", 8, True, "block", block_structure=[16, 64])]
    write(folder, "float-quantized", {**llama, "quantization_config": compressed("float-quantized", groups, ["lm_head"])}, m, forward)

    # What pruning leaves, and a mask.
    for seed, format in enumerate(["sparse-bitmask", "sparse-24-bitmask"], 10):
        m = fresh(seed)
        for name in attention[:2] + mlp:
            m.survivors(name, "24" in format)
        config = compressed("dense", [], [])
        config["sparsity_config"] = {"format": format, "targets": ["Linear"], "ignore": ["lm_head"], "global_sparsity": .5,
                                     "sparsity_structure": "2:4" if "24" in format else "unstructured"}
        write(folder, format, {**llama, "quantization_config": config}, m, forward)


if __name__ == "__main__":
    main()
