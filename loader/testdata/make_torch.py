"""Writes checkpoints of many kinds with PyTorch, and what they hold.

    python3 make_torch.py FOLDER

expected.json has for each file the path of the state dict ("root"), and for
each tensor its dtype, shape and values as PyTorch gives them; of a quantized
tensor the dtype of its codes, the axis of its scales, and what dequantize says.
"""
import argparse, collections, json, math, os, sys, types, zipfile
import torch
from torch import nn

out = sys.argv[1]
os.makedirs(out, exist_ok=True)
torch.manual_seed(0)
expected = {}


def describe(t):
    t = t.detach()
    e = {"shape": list(t.shape)}
    if t.is_quantized:
        e["dtype"] = "float32"
        e["codes"] = str(t.dtype).replace("torch.", "")
        e["axis"] = t.q_per_channel_axis() if "channel" in str(t.qscheme()) else -1
        t = t.dequantize()
    else:
        e["dtype"] = str(t.dtype).replace("torch.", "")
    if t.is_complex():
        t = torch.view_as_real(t)
    e["values"] = [v if math.isfinite(v) else str(v) for v in t.contiguous().reshape(-1).to(torch.float64).tolist()]
    return e


def save(name, obj, tensors, root="", skipped=(), **how):
    for suffix, zipped in (("zip", True), ("legacy", False)):
        torch.save(obj, f"{out}/{name}_{suffix}.pt", _use_new_zipfile_serialization=zipped, **how)
        expect(f"{name}_{suffix}.pt", tensors, root, skipped)


def expect(file, tensors, root="", skipped=()):
    expected[file] = {"root": root, "skipped": sorted(skipped), "tensors": {k: describe(v) for k, v in tensors.items()}}


# --- Views, kinds and sizes ---
base = torch.arange(24.0).reshape(4, 6)
views = {
    "base": base, "transposed": base.t(), "column": base[:, 2], "every_other": base[::2, 1::2], "row": base[3],
    "expanded": base[1:2].expand(3, 6), "scalar_expanded": torch.tensor(2.5).expand(2, 2),
    "empty": torch.empty(0, 3), "empty_inside": torch.empty(2, 0, 3), "scalar": torch.tensor(7.0), "one": torch.ones(1, 1, 1),
    "channels_last": torch.arange(48.0).reshape(2, 3, 2, 4).contiguous(memory_format=torch.channels_last),
}
save("views", views, views)
kinds = {
    str(d).replace("torch.", ""): torch.tensor([[0, 1, 2], [3, 4, 100]]).to(d)
    for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
}
kinds["complex64"] = torch.tensor([1 + 2j, -3.5j])
kinds["special"] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
save("kinds", kinds, kinds)
parameter = nn.Parameter(torch.arange(3.0))
save("parameters", {"p": parameter, "tied": parameter, "b": torch.zeros(2)}, {"p": parameter, "tied": parameter, "b": torch.zeros(2)})

# --- Quantized tensors ---
x = torch.randn(3, 4) * 3
w4 = torch.randn(2, 3, 2, 2)
scales, zeros = torch.tensor([0.1, 0.03, 0.2], dtype=torch.float64), torch.tensor([0, -3, 5])
per_channel = torch.quantize_per_channel(x, scales, zeros, 0, torch.qint8)
quantized = {
    "qint8": torch.quantize_per_tensor(x, 0.05, 3, torch.qint8),
    "quint8": torch.quantize_per_tensor(x, 0.05, 100, torch.quint8),
    "qint32": torch.quantize_per_tensor(x, 1e-5, 0, torch.qint32),
    "channel0": per_channel,
    "channel1": torch.quantize_per_channel(x.t().contiguous(), scales, zeros.clamp(min=0), 1, torch.quint8),
    "channels_last": torch.quantize_per_channel(w4.contiguous(memory_format=torch.channels_last), scales[:2], zeros[:2], 0, torch.qint8),
    "float_zeros": torch.quantize_per_channel(x, scales.float(), torch.tensor([0.5, -1.25, 2.0]), 0, torch.quint8),
    "transposed": torch.quantize_per_tensor(x, 0.05, 3, torch.qint8).t(),
    "plain": x,
}
quantized_out = dict(quantized)
save("quantized", quantized, quantized_out)
four_bits = {"q": torch.quantize_per_channel(x, scales.float(), torch.tensor([0.5, 1.25, 2.0]), 0, torch.quint4x2), "w": x}
save("quantized4", four_bits, {"w": x}, skipped=["q"])

torch.backends.quantized.engine = "qnnpack"
float_net = nn.Sequential(collections.OrderedDict(conv=nn.Conv2d(1, 2, 3), relu=nn.ReLU(), flat=nn.Flatten(), fc=nn.Linear(8, 3)))
float_net = nn.Sequential(torch.ao.quantization.QuantStub(), float_net, torch.ao.quantization.DeQuantStub()).eval()
float_net.qconfig = torch.ao.quantization.get_default_qconfig("qnnpack")
prepared = torch.ao.quantization.prepare(float_net)
prepared(torch.randn(4, 1, 4, 4))
qnet = torch.ao.quantization.convert(prepared)
state = qnet.state_dict()
flat = {}
for k, v in state.items():
    if isinstance(v, torch.Tensor):
        flat[k] = v
    elif isinstance(v, tuple):
        for i, part in enumerate(v):
            if isinstance(part, torch.Tensor):
                flat[f"{k}.{i}"] = part
save("quantized_state", state, flat)

# --- Whole modules ---


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, bias=False)])
        self.table = nn.ParameterDict({"a": nn.Parameter(torch.randn(2))})
        self.embed = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(2, dtype=torch.bool))
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_parameter("none", None)
        self.note = torch.tensor([9.0])  # no parameter: state_dict leaves it out

    def forward(self, x):
        return self.head(self.layers[1](self.layers[0](self.embed(x))))


net = Net()
save("module", net, net.state_dict())
save("module_parallel", nn.DataParallel(net), nn.DataParallel(net).state_dict())
normed = nn.utils.weight_norm(nn.Linear(2, 3))
save("module_hooks", nn.Sequential(normed), nn.Sequential(normed).state_dict())
save("module_in_dict", {"epoch": 3, "model": net, "lr": 0.1}, net.state_dict(), root="model")

# --- Training checkpoints ---
small = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
adam = torch.optim.Adam(small.parameters(), lr=0.1)
schedule = torch.optim.lr_scheduler.StepLR(adam, 2)
for _ in range(2):
    adam.zero_grad()
    small(torch.randn(4, 2)).sum().backward()
    adam.step()
    schedule.step()
arguments = argparse.Namespace(lr=0.1, layers=[1, 2], name="x", device=torch.device("cpu"), dtype=torch.float16)
save("training", {
    "epoch": 7, "arch": "small", "args": arguments, "best": torch.tensor(0.25), "optimizer": adam.state_dict(),
    "scheduler": schedule.state_dict(), "rng": torch.get_rng_state(), "state_dict": small.state_dict(),
}, small.state_dict(), root="state_dict")
save("training_model", {"model_state_dict": small.state_dict(), "optimizer_state_dict": adam.state_dict(), "loss": 0.5}, small.state_dict(), root="model_state_dict")
averaged = torch.optim.swa_utils.AveragedModel(small).state_dict()
save("averaged", {"ema_state_dict": averaged, "step": 3}, averaged, root="ema_state_dict")

# PyTorch Lightning's layout, with its class of hyper parameters.
parsing = types.ModuleType("pytorch_lightning.utilities.parsing")


class AttributeDict(dict):
    pass


AttributeDict.__module__ = parsing.__name__
parsing.AttributeDict = AttributeDict
for m in ("pytorch_lightning", "pytorch_lightning.utilities"):
    sys.modules[m] = types.ModuleType(m)
sys.modules[parsing.__name__] = parsing
lightning = {
    "epoch": 1, "global_step": 10, "pytorch-lightning_version": "1.9.0",
    "state_dict": collections.OrderedDict(("model." + k, v) for k, v in small.state_dict().items()),
    "loops": {"fit_loop": {"state_dict": {}, "epoch_loop.state_dict": {"_batches_that_stepped": 10}}},
    "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "best_k_models": {}}},
    "optimizer_states": [adam.state_dict()], "lr_schedulers": [schedule.state_dict()],
    "hparams_name": "kwargs", "hyper_parameters": AttributeDict(lr=0.1, hidden=3),
}
save("lightning", lightning, lightning["state_dict"], root="state_dict")

# --- TorchScript ---


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 2)])
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("steps", torch.tensor(5))
        self.tag = "x"
        self.sizes = [1, 2]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) + torch.tensor([1.0, 2.0])


scripted = Scripted().eval()
torch.jit.script(scripted).save(f"{out}/torchscript_script.pt")
expect("torchscript_script.pt", scripted.state_dict())
torch.jit.trace(scripted, torch.randn(1, 2)).save(f"{out}/torchscript_trace.pt")
expect("torchscript_trace.pt", scripted.state_dict())

# --- Containers ---
plain = collections.OrderedDict(small.state_dict())


def rewrite(name, method, order=None):
    torch.save(plain, f"{out}/tmp.pt")
    with zipfile.ZipFile(f"{out}/tmp.pt") as src, zipfile.ZipFile(f"{out}/{name}", "w", method) as dst:
        for i in src.infolist():
            data = src.read(i)
            if order == "big" and "/data/" in i.filename:
                size = 8 if len(data) == 8 else 4
                data = b"".join(data[k:k + size][::-1] for k in range(0, len(data), size))
            dst.writestr(i.filename, data)
        folder = src.namelist()[0].split("/")[0]
        if order:
            dst.writestr(folder + "/byteorder", order)
        dst.writestr(folder + "/.data/serialization_id", "0123456789")
    os.remove(f"{out}/tmp.pt")
    expect(name, plain)


rewrite("container_deflated.pt", zipfile.ZIP_DEFLATED)
rewrite("container_little.pt", zipfile.ZIP_STORED, "little")
rewrite("container_big.pt", zipfile.ZIP_STORED, "big")
for protocol in (2, 3, 4, 5):
    torch.save(plain, f"{out}/container_protocol{protocol}.pt", pickle_protocol=protocol)
    expect(f"container_protocol{protocol}.pt", plain)

# --- Shards ---
folder = f"{out}/sharded"
os.makedirs(folder, exist_ok=True)
names = list(plain)
weight_map = {}
for i, part in enumerate((names[:3], names[3:])):
    file = f"pytorch_model-{i + 1:05}-of-00002.bin"
    torch.save({n: plain[n] for n in part}, f"{folder}/{file}")
    weight_map.update({n: file for n in part})
with open(f"{folder}/pytorch_model.bin.index.json", "w") as f:
    json.dump({"metadata": {"total_size": 100}, "weight_map": weight_map}, f)
expect("sharded", plain)

with open(f"{out}/expected.json", "w") as f:
    json.dump(expected, f, indent=0, sort_keys=True)
