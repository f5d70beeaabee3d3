#!/usr/bin/env python3
"""Writes stories, trains a small Llama on them and writes this folder.

    python3 testmodels/lm/generate.py [FOLDER]

Needs numpy and PyTorch (the files here come from PyTorch 1.13, one thread, a
few minutes). All random numbers are seeded: the same machine and versions give
the same bytes.
"""
import json
import math
import re
import struct
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

TRAIN, CALIBRATION, TEST = 24000, 128, 200  # stories
VOCABULARY, HIDDEN, INNER, LAYERS, HEADS, KEYS = 176, 64, 64, 3, 4, 2
DIM, THETA, EPS, CONTEXT = HIDDEN // HEADS, 10000.0, 1e-5, 256
STEPS, BATCH, RATE = 2500, 16, 3e-3
UNKNOWN, BEGIN, END = 0, 1, 2


# --- The stories ----------------------------------------------------------
# People with things walk about and give; questions ask what holds by then. To
# answer, a model has to look back.

PEOPLE = "Mia Tom Ada Ben Lea Max Zoe Sam".split()
PLACES = "garden kitchen attic harbour market forest".split()
THINGS = "ball cup book lamp coin kite drum bell".split()
COLOURS = "red blue green black white".split()


def story(rng):
    """One story as text."""
    def pick(items, n=1):
        return [items[i] for i in rng.choice(len(items), n, replace=False)]

    people = pick(PEOPLE, rng.integers(2, 4))
    place, has = {}, {}
    lines = []
    for who, thing, colour in zip(people, pick(THINGS, len(people)), pick(COLOURS, len(people))):
        place[who], has[who] = pick(PLACES)[0], [f"{colour} {thing}"]
        where, what = place[who], has[who][0]
        lines.append([f"{who} is in the {where} with a {what}.",
                      f"In the {where} stands {who}, who has a {what}."][rng.integers(2)])
    for _ in range(rng.integers(1, 4)):
        who = pick(people)[0]
        near = [p for p in people if p != who and place[p] == place[who]]
        if near and has[who]:
            other, what = pick(near)[0], has[who].pop()
            has[other].append(what)
            lines.append(f"{who} gives the {what} to {other}.")
        else:
            to = pick([p for p in PLACES if p != place[who]])[0]
            lines.append(f"{who} {['walks', 'runs'][rng.integers(2)]} from the {place[who]} to the {to}.")
            place[who] = to
        for who in pick(people, 2):
            if rng.integers(2):
                lines.append(f"Where is {who}? In the {place[who]}.")
            else:
                lines.append(f"What has {who}? " + (f"A {has[who][-1]}." if has[who] else "Nothing."))
    return " ".join(lines)


def stories(count, seed):
    rng = np.random.Generator(np.random.PCG64(seed))
    return [story(rng) for _ in range(count)]


# --- The tokenizer: byte-pair merges within words, a space before its word ---

def words(text):
    return re.findall(r" ?[A-Za-z]+| ?[^A-Za-z ]", text)


def merge(parts, pair):
    out = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return tuple(out)


def learn(texts):
    """The vocabulary and the merges, most frequent pair first."""
    count = Counter(w for text in texts for w in words(text))
    split = {w: tuple(w) for w in count}
    vocabulary = ["<unk>", "<s>", "</s>"] + sorted(set("".join(count)))
    merges = []
    while len(vocabulary) < VOCABULARY:
        pairs = Counter()
        for w, parts in split.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += count[w]
        pair = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(pair)
        vocabulary.append(pair[0] + pair[1])
        split = {w: merge(parts, pair) for w, parts in split.items()}
    return vocabulary, merges


def encode(texts, vocabulary, merges):
    index = {token: i for i, token in enumerate(vocabulary)}
    cache = {}
    out = []
    for text in texts:
        ids = [BEGIN]
        for w in words(text):
            if w not in cache:
                parts = tuple(w)
                for pair in merges:
                    parts = merge(parts, pair)
                cache[w] = [index[p] for p in parts]
            ids += cache[w]
        out.append(ids + [END])
    return out


def tokenizer_json(vocabulary, merges):
    special = [{"id": i, "content": vocabulary[i], "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for i in (UNKNOWN, BEGIN, END)]
    piece = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
             {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": piece, "pair": piece + [{"Sequence": {"id": "B", "type_id": 0}}],
                           "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in (("<s>", BEGIN), ("</s>", END))}},
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": {token: i for i, token in enumerate(vocabulary)},
                  "merges": [list(pair) for pair in merges]},
    }


# --- The model --------------------------------------------------------------

class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x):
        return self.weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS)


def rotate(x):
    """x is [batch, heads, tokens, DIM]."""
    angle = torch.outer(torch.arange(x.shape[2]).float(), THETA ** (-torch.arange(0, DIM, 2).float() / DIM))
    cos, sin = angle.cos(), angle.sin()
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * DIM, bias=False)
        self.k_proj = nn.Linear(HIDDEN, KEYS * DIM, bias=False)
        self.v_proj = nn.Linear(HIDDEN, KEYS * DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * DIM, HIDDEN, bias=False)

    def forward(self, x, mask):
        batch, tokens, _ = x.shape
        q, k, v = (p(x).view(batch, tokens, -1, DIM).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q), rotate(k)
        k, v = (t.repeat_interleave(HEADS // KEYS, 1) for t in (k, v))
        y = F.softmax(q @ k.transpose(2, 3) / math.sqrt(DIM) + mask, -1) @ v
        return self.o_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, INNER, bias=False)
        self.up_proj = nn.Linear(HIDDEN, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
        self.self_attn, self.mlp = Attention(), MLP()

    def forward(self, x, mask):
        x = x + self.self_attn(self.input_layernorm(x), mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm()
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, 0, .08)

    def forward(self, ids):
        mask = torch.full((ids.shape[1],) * 2, -math.inf).triu(1)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x) @ self.embed_tokens.weight.T


def pad(docs):
    """Ids [docs, longest], and targets that are −100 where there are none."""
    longest = max(map(len, docs))
    ids = torch.tensor([d + [END] * (longest - len(d)) for d in docs])
    targets = torch.tensor([d[1:] + [-100] * (longest - len(d) + 1) for d in docs])
    return ids, targets


def train(model, docs):
    """AdamW, the rate falling as a half cosine, on stories in random order."""
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": .05}, {"params": rest, "weight_decay": 0.}],
                                  RATE, betas=(.9, .98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 100, .02 + .98 * (1 + math.cos(math.pi * s / STEPS)) / 2))
    order = torch.cat([torch.randperm(len(docs)) for _ in range(STEPS * BATCH // len(docs) + 1)])
    for step, batch in enumerate(order[: STEPS * BATCH].split(BATCH)):
        ids, targets = pad([docs[i] for i in batch])
        loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == STEPS - 1:
            print(f"step {step}: {loss.item():.4f}", flush=True)


def evaluate(model, docs):
    """Nats a token, over all tokens but each story's first."""
    total, count = 0., 0
    with torch.no_grad():
        for at in range(0, len(docs), 50):
            ids, targets = pad(docs[at:at + 50])
            total += float(F.cross_entropy(model(ids).double().flatten(0, 1), targets.flatten(), reduction="sum"))
            count += int((targets >= 0).sum())
    return total / count


# --- Nearest rounding, to know what a method has to beat --------------------

def nearest(w, bits, group):
    """w on an asymmetric min-max grid for each run of group inputs of a row."""
    runs = w.view(-1, group)
    lo, hi = -2 ** (bits - 1), 2 ** (bits - 1) - 1
    small, large = runs.min(1, True)[0].clamp(max=0), runs.max(1, True)[0].clamp(min=0)
    scale = ((large - small) / (hi - lo)).clamp(min=1e-12)
    zero = (lo - small / scale).round().clamp(lo, hi)
    return (scale * (((runs / scale).round() + zero).clamp(lo, hi) - zero)).view_as(w)


def rounded_loss(model, docs, bits, group):
    """The loss with every layer of the blocks rounded, embedding and head kept."""
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if "_proj" in name:
            parameter.data = nearest(parameter.data, bits, group or parameter.shape[1])
    loss = evaluate(model, docs)
    model.load_state_dict(kept)
    return loss


# --- Files ------------------------------------------------------------------

def write_safetensors(path, tensors):
    """8 bytes of header length, the header as JSON, the tensors."""
    header, blobs, end = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [end, end + len(blob)]}
        blobs.append(blob)
        end += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_json(path, value, **options):
    path.write_text(json.dumps(value, **options) + "\n")


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(7)
    begun = time.process_time()
    texts = stories(TRAIN, seed=1)
    vocabulary, merges = learn(texts[:2000])
    docs = encode(texts, vocabulary, merges)
    data = {"calibration": stories(CALIBRATION, seed=2), "test": stories(TEST, seed=3)}
    for name, some in data.items():
        data[name] = encode(some, vocabulary, merges)
        (folder / f"{name}.u16").write_bytes(np.concatenate(data[name]).astype("<u2").tobytes())
        write_json(folder / f"{name}.lengths.json", [len(d) for d in data[name]], separators=(",", ":"))
    write_json(folder / "tokenizer.json", tokenizer_json(vocabulary, merges), separators=(",", ":"))
    longest = max(len(d) for d in docs + data["calibration"] + data["test"])
    print(f"{sum(map(len, docs))} tokens, at most {longest} a story; {texts[0]!r} is {docs[0]}")
    assert longest <= CONTEXT

    model = Llama()
    train(model, docs)
    write_safetensors(folder / "model.safetensors", {"model." + k: v.numpy() for k, v in model.state_dict().items()})
    write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": BEGIN, "eos_token_id": END,
        "head_dim": DIM, "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "max_position_embeddings": CONTEXT, "mlp_bias": False, "model_type": "llama", "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS, "num_key_value_heads": KEYS, "rms_norm_eps": EPS, "rope_scaling": None,
        "rope_theta": THETA, "tie_word_embeddings": True, "torch_dtype": "float32", "vocab_size": VOCABULARY}, indent=1)

    test = data["test"]
    with torch.no_grad():
        logits = model(torch.tensor([test[0]]))[0]
    expected = {
        "data": "test.u16", "documents": TEST, "tokens": sum(len(d) - 1 for d in test), "loss": evaluate(model, test),
        "parameters": sum(p.numel() for p in model.parameters()), "text": stories(1, seed=3)[0], "ids": test[0],
        "logits_last_of_first": [round(v, 5) for v in logits[len(test[0]) - 2].tolist()],
        "nearest_loss": {str(bits): {"channel": rounded_loss(model, test, bits, 0), "group32": rounded_loss(model, test, bits, 32)}
                         for bits in (2, 3, 4, 8)},
    }
    write_json(folder / "EXPECTED.json", expected, indent=1)
    print({k: v for k, v in expected.items() if k not in ("ids", "logits_last_of_first")})
    print(f"{time.process_time() - begun:.0f} s of processor time")


if __name__ == "__main__":
    main()
