"""Loads a dense .pt that fettle wrote into a CIFAR ResNet, strictly, and prints
how many images it gets right.

    python3 strict.py DENSE.pt N WIDTHS CHANNELS MEAN STD IMAGES

N blocks a stage; WIDTHS, MEAN and STD with commas between; IMAGES is a
CIFAR-10 binary file or a safetensors file with images and labels.
"""
import json
import sys

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad, self.stride = (outputs - inputs) // 2, stride

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class ResNet(nn.Module):
    def __init__(self, n, widths, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs, stages = widths[0], []
        for stage, outputs in enumerate(widths):
            blocks = []
            for i in range(n):
                blocks.append(Block(inputs, outputs, 2 if stage and not i else 1))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(inputs, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def images(path):
    raw = open(path, "rb").read()
    if not path.endswith(".safetensors"):
        rows = np.frombuffer(raw, np.uint8).reshape(-1, 3073)
        return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]
    n = int.from_bytes(raw[:8], "little")
    head, data = json.loads(raw[8:8 + n]), raw[8 + n:]
    part = lambda k: np.frombuffer(data[slice(*head[k]["data_offsets"])], np.uint8).reshape(head[k]["shape"])
    return part("images"), part("labels")


def main():
    dense, n, widths, channels, mean, std, path = sys.argv[1:]
    numbers = lambda s: [float(v) for v in s.split(",")]
    model = ResNet(int(n), [int(w) for w in widths.split(",")], int(channels))
    state = torch.load(dense)
    if "state_dict" in state:  # wrapped, and saved from DataParallel, like the original
        state = state["state_dict"]
        model = nn.DataParallel(model)
    model.load_state_dict(state, strict=True)
    model.eval()
    x, y = images(path)
    x = torch.tensor(x.astype(np.float32) / 255)
    x = (x - torch.tensor(numbers(mean)).view(1, -1, 1, 1)) / torch.tensor(numbers(std)).view(1, -1, 1, 1)
    with torch.no_grad():
        logits = torch.cat([model(x[i:i + 128]) for i in range(0, len(x), 128)])
    print(int((logits.argmax(1) == torch.tensor(y.astype(np.int64))).sum()))


main()
