# The recipe of arXiv 2401.02938 in PyTorch: unit diagonal, damping of 0.1, one
# inverse, 20 iterations of which 15 choose the mask, over the whole layer, on the
# cubic schedule. Each line on stdin runs it once; the answer is its seconds. The
# weights are written to the path on the line, if there is one.
import json, sys, time

import numpy, torch

start = json.loads(sys.stdin.readline())
torch.set_num_threads(start["threads"])
rows, cols, sparsity = start["rows"], start["cols"], start["sparsity"]
gram = torch.from_numpy(numpy.fromfile(start["gram"], dtype=numpy.float32).reshape(cols, cols))
weight = torch.from_numpy(numpy.fromfile(start["weight"], dtype=numpy.float32).reshape(rows, cols))


def prune(gram, weight):
    norm = gram.diagonal().sqrt() + 1e-8
    xx = gram / norm / norm[:, None]
    w = (weight * norm).T.contiguous()
    diagonal = torch.arange(cols)
    xx[diagonal, diagonal] += 0.1 * xx.diagonal().mean()
    xy = xx @ w
    xx[diagonal, diagonal] += 1
    inverse = torch.inverse(xx)
    u = torch.zeros_like(w)
    for i in range(20):
        v = w + u
        if i < 15:
            k = int(w.numel() * (sparsity - sparsity * (1 - (i + 1) / 15) ** 3))
            size = v.abs()
            mask = size > size.flatten().kthvalue(max(k, 1)).values
        z = v * mask
        u = v - z
        w = inverse @ (xy + (z - u))
    return ((w + u) * mask).T / norm


print("ready", flush=True)
with torch.no_grad():
    for line in sys.stdin:
        began = time.perf_counter()
        result = prune(gram, weight)
        seconds = time.perf_counter() - began
        if line.strip():
            result.contiguous().numpy().tofile(line.strip())
        print(seconds, flush=True)
