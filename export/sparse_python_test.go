package export

import (
	"context"
	"os/exec"
	"testing"
)

// decodeSparse decodes an output's pruned and compensated weights and compares them
// with the dense output: compressed-tensors' layouts as its own code does it.
const decodeSparse = `
import itertools, json, math, sys
import numpy as np

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "U8": "u1", "U16": "<u2", "F8_E4M3": "u1", "I32": "<u4", "I64": "<i8"}

def load(path):
    raw = open(path, "rb").read()
    n = int.from_bytes(raw[:8], "little")
    header, data, out = json.loads(raw[8:8 + n]), raw[8 + n:], {}
    meta = header.pop("__metadata__")
    for name, t in header.items():
        part = data[slice(*t["data_offsets"])]
        if t["dtype"] == "BF16":
            x = (np.frombuffer(part, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            x = np.frombuffer(part, TYPES[t["dtype"]])
        out[name] = x.reshape(t["shape"])
    return out, meta

def e4m3(b):
    b = b.astype(np.int32)
    sign, exp, man = 1 - 2 * (b >> 7), b >> 3 & 15, b & 7
    return (sign * np.where(exp == 0, man * 2.0**-9, (8 + man) * 2.0**(exp - 10.0))).astype(np.float32)

E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6], np.float32)

def bits(x):  # a stream of bits, least significant first
    return np.unpackbits(x.reshape(-1).view(np.uint8), bitorder="little")

def fields(x, width, n):
    return bits(x)[:n * width].reshape(n, width) @ (1 << np.arange(width))

def codes(words, width, n):
    return fields(words, width, n).astype(np.int64) - (1 << (width - 1))

f, meta = load(sys.argv[1] + "/model.safetensors")
dense, _ = load(sys.argv[1] + "/dense.safetensors")
config = json.load(open(sys.argv[1] + "/config.json"))
groups = {t: g for g in config["quantization_config"]["config_groups"].values() for t in g["targets"]}
transposed, seen = json.loads(meta["fettle.transposed"]), 0

def mask(name, e, rows, cols):
    module = name.removesuffix(".weight")
    for bitmask in (module + ".bitmask", name + "_bitmask"):
        if bitmask in f:
            return np.unpackbits(f[bitmask], axis=-1, count=cols, bitorder="little").astype(bool)
    m = np.zeros((rows, cols), bool)
    if name + "_pattern" in f:
        keep, of = e["pattern"]
        width = (math.comb(of, keep) - 1).bit_length()
        for r in range(rows):
            for g, number in enumerate(fields(f[name + "_pattern"][r], width, -(-cols // of))):
                size = min(of, cols - g * of)
                sets = itertools.combinations(range(size), -(-keep * size // of))
                chosen = sorted(sets, key=lambda s: sum(1 << i for i in s))[number]
                m[r, [g * of + i for i in chosen]] = True
        return m
    at = 0
    for r, n in enumerate(f[name + "_counts"]):
        m[r, f[name + "_columns"][at:at + n]] = True
        at += n
    return m

for name, e in config["fettle"]["weights"].items():
    module, want = name.removesuffix(".weight"), dense[name]
    rows, cols = want.shape[0], want.size // want.shape[0]
    if name in transposed:
        rows, cols = cols, rows
    m = mask(name, e, rows, cols) if "mask" in e else np.ones((rows, cols), bool)
    n = int(m.sum())
    assert n == e.get("survivors", n), name
    w = np.zeros((rows, cols), np.float32)
    if "values" in e:
        for stored in (module + ".compressed", name + "_values", name):
            if stored in f:
                w[m] = f[stored].reshape(-1)
                break
        if module + ".row_offsets" in f:
            assert (f[module + ".row_offsets"] == np.cumsum(m.sum(-1)) - m.sum(-1)).all()
    else:
        args = groups[module]["weights"]
        scale, packed = f[name + "_scale"], f[name + "_packed"]
        if args["type"] == "int" and "mask" in e:
            q = codes(packed, args["num_bits"], n)
        elif args["type"] == "int":
            q = np.stack([codes(row, args["num_bits"], cols) for row in packed]).reshape(-1)
        elif args["num_bits"] == 8:
            q = e4m3(packed)
        else:
            nibbles = np.stack((packed & 15, packed >> 4), axis=-1).reshape(-1)[:n]
            q = E2M1[nibbles & 7] * np.where(nibbles & 8, np.float32(-1), np.float32(1))
            scale = e4m3(scale) / f[name + "_global_scale"]
        span = args["group_size"] or (16 if args["strategy"] == "tensor_group" else cols)
        column = np.arange(cols) // span
        if name + "_zero_point" in f:
            words = f[name + "_zero_point"]
            zero = np.stack([codes(np.ascontiguousarray(c), args["num_bits"], rows) for c in words.T], axis=-1)
            q = q - zero[:, column][m]
        w[m] = q.astype(np.float32) * scale.astype(np.float32)[:, column][m]
    if "rank" in e and not e.get("merged"):
        a, b = module + ".lora_A.weight", module + ".lora_B.weight"
        if e.get("factor_bits"):
            a, b = (np.stack([codes(row, e["factor_bits"], k) for row in f[x + "_packed"]]) * f[x + "_scale"].astype(np.float32)
                    for x, k in ((a, cols), (b, rows)))
            b = b.T
        else:
            a, b = f[a].reshape(e["rank"], cols), f[b].reshape(rows, e["rank"])
        w = w.astype(np.float64) + b.astype(np.float64) @ a.astype(np.float64)
    if name in transposed:
        w = w.T
    assert np.allclose(w.reshape(want.shape), want, rtol=1e-5, atol=1e-6), name
    assert "rank" in e or (w.reshape(want.shape) == want).all(), name
    seen += 1
assert seen == 15, seen
`

// TestPythonReadsSparse holds the layouts against a reader that shares no code with
// fettle.
func TestPythonReadsSparse(t *testing.T) {
	interpreter := python(t)
	if err := exec.Command(interpreter, "-c", "import numpy").Run(); err != nil {
		t.Skip("no NumPy here")
	}
	in := sparseInput(t)
	dir := write(t, in)
	if _, err := Dense(context.Background(), dir, Safetensors, in.Input); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(interpreter, "-c", decodeSparse, dir).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
