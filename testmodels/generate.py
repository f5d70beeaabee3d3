#!/usr/bin/env python3
"""Draws the glyphs, trains the two test models on them and writes this folder.

    python3 testmodels/generate.py [FOLDER]

Needs numpy and PyTorch (the files here come from PyTorch 1.13, one thread, a
few minutes). All random numbers are seeded: the same machine and versions give
the same tensors. Only the .th files' bytes differ from run to run, because
PyTorch's legacy format names storages by their memory addresses.
"""
import json
import struct
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

SIZE, CLASSES = 16, 10
TRAIN, CALIBRATION, TEST = 40000, 512, 1000
MEAN, STD = 0.35, 0.24  # of images/255, for both models
TURN, SHIFT, NOISE = 10, 1.5, .15  # degrees, pixels, share of full light


# --- The glyphs -----------------------------------------------------------

def arc(cx, cy, rx, ry, start, end, steps=10):
    """Points of an ellipse from angle start to end, in degrees; y points down."""
    a = np.radians(np.linspace(start, end, steps + 1))
    return np.stack([cx + rx * np.cos(a), cy + ry * np.sin(a)], 1)


# The ten digits as pen strokes in a box of ±0.6 by ±1.
STROKES = [
    [arc(0, 0, .6, 1, 0, 360, 16)],
    [[(-.35, -.6), (.05, -1), (.05, 1)]],
    [np.concatenate([arc(0, -.45, .55, .55, 180, 390), [(-.6, 1), (.6, 1)]])],
    [arc(-.05, -.5, .55, .5, 200, 450), arc(-.05, .5, .6, .5, 270, 520)],
    [[(.25, 1), (.25, -1), (-.6, .4), (.6, .4)]],
    [np.concatenate([[(.5, -1), (-.45, -1), (-.5, -.1)], arc(-.05, .35, .6, .65, 230, 500)])],
    [np.concatenate([[(.3, -1), (-.4, -.1)], arc(0, .4, .55, .6, 200, 560, 14)])],
    [[(-.6, -1), (.6, -1), (-.1, 1)]],
    [arc(0, -.5, .45, .5, 0, 360, 12), arc(0, .5, .58, .5, 0, 360, 12)],
    [np.concatenate([[(-.3, 1), (.4, .1)], arc(0, -.4, .55, .6, 20, 380, 14)])],
]


def segments(digit):
    """The digit's straight pieces, [pieces, 2 ends, x y]."""
    lines = [np.asarray(s, dtype=np.float64) for s in STROKES[digit]]
    return np.concatenate([np.stack([s[:-1], s[1:]], 1) for s in lines])


def ink(segs, thickness):
    """Coverage of each pixel by pieces [n, k, 2, 2] given in pixels."""
    axis = np.arange(SIZE) + .5
    pixel = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    a, d = segs[:, :, None, 0], segs[:, :, None, 1] - segs[:, :, None, 0]
    to = pixel - a
    along = np.clip((to * d).sum(-1) / np.maximum((d * d).sum(-1), 1e-9), 0, 1)
    distance = np.sqrt(((to - along[..., None] * d) ** 2).sum(-1)).min(1)
    return np.clip(thickness[:, None] / 2 - distance + .5, 0, 1)


def draw_digit(rng, digit, n):
    """n pictures of a digit, [n, SIZE·SIZE] in 0…1 or a little outside."""
    turn = rng.normal(0, np.radians(TURN), n)
    sx, sy = rng.uniform(3.0, 6.2, n), rng.uniform(3.6, 6.8, n)
    shear = rng.normal(0, .16, n)
    # Each end of each stroke trembles on its own.
    pieces = segments(digit)[None] + rng.normal(0, .06, (n, 1, 2, 2))
    x, y = pieces[..., 0] + shear[:, None, None] * pieces[..., 1], pieces[..., 1]
    x, y = x * sx[:, None, None], y * sy[:, None, None]
    c, s = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
    shift = SIZE / 2 + rng.uniform(-SHIFT, SHIFT, (n, 2))
    placed = np.stack([c * x - s * y, s * x + c * y], -1) + shift[:, None, None, :]
    glyph = ink(placed, rng.uniform(.9, 2.4, n))
    # One stray line a picture, fainter than the glyph.
    stray = ink(rng.uniform(0, SIZE, (n, 1, 2, 2)), rng.uniform(.6, 1.6, n))
    light = rng.uniform(.35, .8, (n, 1))
    picture = np.maximum(glyph * light, stray * light * rng.uniform(.3, .95, (n, 1)))
    return rng.uniform(.1, .4, (n, 1)) + picture + rng.normal(0, NOISE, (n, SIZE * SIZE))


def draw(count, seed):
    """count images U8 [count, 1, SIZE, SIZE] and their labels U8 [count]."""
    rng = np.random.Generator(np.random.PCG64(seed))
    labels = rng.permutation(np.arange(count) % CLASSES).astype(np.uint8)
    images = np.zeros((count, SIZE * SIZE))
    for digit in range(CLASSES):
        at = np.flatnonzero(labels == digit)
        for from_ in range(0, len(at), 100):  # a hundred at a time stays in the cache
            some = at[from_:from_ + 100]
            images[some] = draw_digit(rng, digit, len(some))
    images = np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)
    return images.reshape(count, 1, SIZE, SIZE), labels


# --- The models -----------------------------------------------------------

class Block(nn.Module):
    """Two convolutions and a shortcut without parameters (option A)."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad = (outputs - inputs) // 2
        self.stride = stride

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.pad:
            x = F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class ResNet(nn.Module):
    """The CIFAR ResNet of He et al. (2016), section 4.2, with n blocks a stage."""

    def __init__(self, n=1, widths=(8, 16, 32)):
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        for stage, outputs in enumerate(widths, 1):
            blocks = []
            for i in range(n):
                blocks.append(Block(inputs, outputs, 2 if stage > 1 and i == 0 else 1))
                inputs = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, CLASSES)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class MLP(nn.Module):
    """Three fully connected layers with ReLU between them."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(SIZE * SIZE, 48)
        self.fc2 = nn.Linear(48, 32)
        self.fc3 = nn.Linear(32, CLASSES)

    def forward(self, x):
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


def normalize(images):
    """The models' input: images/255, minus MEAN, over STD."""
    return (torch.tensor(images).float() / 255 - MEAN) / STD


def train(model, images, labels, epochs, rate, decay):
    """SGD with Nesterov momentum, the rate falling as a half cosine."""
    x, y = normalize(images), torch.tensor(labels.astype(np.int64))
    steps = epochs * (len(x) // 128)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=.9, nesterov=True, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x))[: len(x) // 128 * 128].split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def evaluate(model, images, labels):
    """Logits, images that are classified right, and the mean cross-entropy."""
    with torch.no_grad():
        logits = model(normalize(images))
    y = torch.tensor(labels.astype(np.int64))
    return logits, int((logits.argmax(1) == y).sum()), float(F.cross_entropy(logits, y))


# --- Nearest rounding, to know what a method has to beat --------------------

def nearest(w, bits, shrinks):
    """w on a per-channel asymmetric grid; of the shrunken min-max ranges, each
    channel takes the one with the least squared error."""
    rows = w.flatten(1)
    lo, hi = -2 ** (bits - 1), 2 ** (bits - 1) - 1
    small, large = rows.min(1, True)[0].clamp(max=0), rows.max(1, True)[0].clamp(min=0)
    best, least = None, None
    for shrink in shrinks:
        scale = (large - small) * shrink / (hi - lo)
        zero = (lo - small * shrink / scale).round().clamp(lo, hi)
        q = scale * (((rows / scale).round() + zero).clamp(lo, hi) - zero)
        error = ((q - rows) ** 2).sum(1, True)
        if best is None:
            best, least = q, error
        best, least = torch.where(error < least, q, best), torch.minimum(error, least)
    return best.view_as(w)


def quantized_accuracy(model, images, labels, bits, shrinks):
    """Right answers with every weight matrix, first and last included, rounded."""
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = nearest(parameter.data, bits, shrinks)
    _, correct, _ = evaluate(model, images, labels)
    model.load_state_dict(kept)
    return correct


# --- Files ------------------------------------------------------------------

DTYPES = {"float32": "F32", "int64": "I64", "uint8": "U8"}


def write_safetensors(path, tensors):
    """8 bytes of header length, the header as JSON, the tensors."""
    header, blobs, end = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": DTYPES[str(array.dtype)], "shape": list(array.shape),
                        "data_offsets": [end, end + len(blob)]}
        blobs.append(blob)
        end += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_model(folder, name, model, wrap):
    """The same tensors as legacy .th, zip .pt and safetensors. With wrap the
    .th is a training checkpoint: {"state_dict", "best_prec1"}, keys with
    DataParallel's prefix."""
    state = OrderedDict((k, v.detach().clone()) for k, v in model.state_dict().items())
    legacy = state
    if wrap is not None:
        legacy = {"state_dict": OrderedDict(("module." + k, v) for k, v in state.items()), "best_prec1": wrap}
    torch.save(legacy, folder / f"{name}.th", _use_new_zipfile_serialization=False)
    torch.save(state, folder / f"{name}.pt")
    write_safetensors(folder / f"{name}.safetensors", {k: v.numpy() for k, v in state.items()})


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    images, labels = draw(TRAIN, seed=1)
    calibration = draw(CALIBRATION, seed=2)
    test = draw(TEST, seed=3)
    print(f"mean {images.mean() / 255:.4f}, std {images.std() / 255:.4f} of the training images")
    for name, (x, y) in (("calibration", calibration), ("test", test)):
        write_safetensors(folder / f"glyphs-{name}.safetensors", {"images": x, "labels": y})

    expected = {"data": "glyphs-test.safetensors", "samples": TEST, "classes": CLASSES,
                "mean": [MEAN], "std": [STD], "models": {}}
    for name, make, epochs, rate, decay in (
        ("resnet8", ResNet, 8, .1, 5e-4),
        ("mlp", MLP, 40, .05, 1e-3),
    ):
        begun = time.time()
        torch.manual_seed(7)
        model = make()
        train(model, images, labels, epochs, rate, decay)
        logits, correct, loss = evaluate(model, *test)
        top = logits.topk(2)[0]
        entry = {"correct": correct, "top1": 100 * correct / TEST, "loss": loss,
                 "smallest_margin": float((top[:, 0] - top[:, 1]).min()),
                 "parameters": sum(p.numel() for p in model.parameters()),
                 "predictions_first16": logits[:16].argmax(1).tolist(),
                 "logits_first4": logits[:4].tolist(),
                 "nearest_correct": {}}
        for bits in (2, 3, 4, 8):
            entry["nearest_correct"][str(bits)] = {
                "min_max": quantized_accuracy(model, *test, bits, [1.0]),
                "mse": quantized_accuracy(model, *test, bits, np.linspace(1, .3, 15)),
            }
        expected["models"][name] = entry
        write_model(folder, name, model, 100 * correct / TEST if name == "resnet8" else None)
        print(name, f"{time.time() - begun:.0f} s", {k: v for k, v in entry.items() if k != "logits_first4"})
    (folder / "EXPECTED.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
