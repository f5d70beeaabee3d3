"""A Llama's forward pass in plain PyTorch, the peer of internal/bench/forward.

The first line of stdin is JSON: the model's config, its tensors' names and
shapes in the order of the file of raw float32 weights, and the token ids. Then
each line asks for a pass, "hidden" or "logits", and gets its seconds; with a
path after it, the result is written there as raw float32 too.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F


class Llama:
    def __init__(self, config, weights):
        self.w = weights
        self.blocks = config["num_hidden_layers"]
        self.heads = config["num_attention_heads"]
        self.kv = config["num_key_value_heads"]
        self.dim = config["hidden_size"] // self.heads
        self.eps = config["rms_norm_eps"]
        length = config["max_position_embeddings"]
        steps = torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim
        angles = torch.outer(torch.arange(length, dtype=torch.float64), config["rope_theta"] ** -steps)
        self.cos, self.sin = angles.cos().float(), angles.sin().float()
        self.mask = torch.full((length, length), float("-inf")).triu(1)

    def linear(self, x, name):
        return F.linear(x, self.w[name + ".weight"])

    def norm(self, x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.w[name + ".weight"]

    def split(self, x, heads):
        return x.view(x.shape[0], x.shape[1], heads, self.dim).transpose(1, 2)

    def turn(self, x):
        a, b = x.chunk(2, -1)
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def attention(self, x, name):
        n, t, _ = x.shape
        q = self.turn(self.split(self.linear(x, name + "q_proj"), self.heads)).mul_(self.dim**-0.5)
        k = self.turn(self.split(self.linear(x, name + "k_proj"), self.kv))
        v = self.split(self.linear(x, name + "v_proj"), self.kv)
        # Queries that share a key go through one product, so no key is repeated.
        q = q.view(n, self.kv, self.heads // self.kv * t, self.dim)
        scores = (q @ k.transpose(2, 3)).view(n, self.heads, t, t).add_(self.mask[:t, :t])
        y = F.softmax(scores, -1).view(n, self.kv, -1, t) @ v
        y = y.view(n, self.heads, t, self.dim).transpose(1, 2).reshape(n, t, -1)
        return self.linear(y, name + "o_proj")

    def hidden(self, ids):
        x = F.embedding(ids, self.w["model.embed_tokens.weight"])
        for i in range(self.blocks):
            name = f"model.layers.{i}."
            x = x + self.attention(self.norm(x, name + "input_layernorm"), name + "self_attn.")
            y = self.norm(x, name + "post_attention_layernorm")
            y = F.silu(self.linear(y, name + "mlp.gate_proj")).mul_(self.linear(y, name + "mlp.up_proj"))
            x = x + self.linear(y, name + "mlp.down_proj")
        return self.norm(x, "model.norm")

    def logits(self, ids):
        return self.linear(self.hidden(ids), "model.embed_tokens")


def read(path, tensors):
    weights = {}
    with open(path, "rb") as f:
        for t in tensors:
            w = torch.empty(t["shape"])
            f.readinto(w.numpy())
            weights[t["name"]] = w
    return weights


def main():
    start = json.loads(sys.stdin.readline())
    torch.set_num_threads(start["threads"])
    model = Llama(start["config"], read(start["weights"], start["tensors"]))
    ids = torch.tensor(start["ids"])
    print("ready", flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            what, *path = line.rstrip("\n").split(" ", 1)
            begin = time.perf_counter()
            y = getattr(model, what)(ids)
            seconds = time.perf_counter() - begin
            if path:
                y.numpy().tofile(path[0])
            del y
            print(seconds, flush=True)


main()
