"""Writes ggml.gguf with ggml itself: python3 ggml.py LIBGGML_BASE_SO ggml.gguf

Each type has a tensor of its name, quantized by ggml from random values, or of
random bytes with sane scales (raw), and beside it NAME.values, F32, as ggml
dequantizes it. libggml-base.so comes with llama.cpp.
"""
import ctypes, random, struct, sys

lib = ctypes.CDLL(sys.argv[1])
c_float_p = ctypes.POINTER(ctypes.c_float)
# name, number, values and bytes of a block, where its half-precision scales are
TYPES = [
    ("Q4_0", 2, 32, 18, [0]), ("Q4_1", 3, 32, 20, [0, 2]), ("Q5_0", 6, 32, 22, [0]), ("Q5_1", 7, 32, 24, [0, 2]),
    ("Q8_0", 8, 32, 34, [0]), ("Q2_K", 10, 256, 84, [80, 82]), ("Q3_K", 11, 256, 110, [108]),
    ("Q4_K", 12, 256, 144, [0, 2]), ("Q5_K", 13, 256, 176, [0, 2]), ("Q6_K", 14, 256, 210, [208]),
    ("IQ4_NL", 20, 32, 18, [0]), ("IQ4_XS", 23, 256, 136, [0]), ("MXFP4", 39, 32, 17, None),
]
lib.ggml_quantize_chunk.restype = ctypes.c_size_t
lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, c_float_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, c_float_p]


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


for f in ("ggml_init", "gguf_init_empty", "ggml_new_tensor_2d", "ggml_set_name", "ggml_get_data"):
    getattr(lib, f).restype = ctypes.c_void_p
lib.ggml_init.argtypes = [InitParams]
lib.ggml_new_tensor_2d.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
lib.ggml_set_name.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
lib.ggml_get_data.argtypes = [ctypes.c_void_p]
lib.gguf_add_tensor.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
lib.gguf_write_to_file.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_bool]
lib.gguf_set_val_str.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
lib.gguf_set_val_u32.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]
lib.gguf_set_val_f32.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
lib.gguf_set_val_bool.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_bool]
lib.gguf_set_val_i8.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int8]
lib.gguf_set_arr_data.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
lib.gguf_set_arr_str.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p), ctypes.c_size_t]

ggml = lib.ggml_init(InitParams(16 << 20, None, False))
out = lib.gguf_init_empty()
lib.gguf_set_val_str(out, b"general.architecture", b"none")
lib.gguf_set_val_u32(out, b"general.file_type", 15)
lib.gguf_set_val_f32(out, b"test.float", 0.1)
lib.gguf_set_val_bool(out, b"test.bool", True)
lib.gguf_set_val_i8(out, b"test.negative", -3)
lib.gguf_set_arr_data(out, b"test.numbers", 5, (ctypes.c_int32 * 3)(16, -24, 0), 3)
lib.gguf_set_arr_str(out, b"test.strings", (ctypes.c_char_p * 2)(b"a", b"b c"), 2)
lib.gguf_set_arr_str(out, b"tokenizer.ggml.tokens", (ctypes.c_char_p * 1000)(*[b"token%d" % i for i in range(1000)]), 1000)


def tensor(name, number, cols, rows, data):
    t = lib.ggml_new_tensor_2d(ggml, number, cols, rows)
    lib.ggml_set_name(t, name.encode())
    ctypes.memmove(lib.ggml_get_data(t), bytes(data), len(data))
    lib.gguf_add_tensor(out, t)


random.seed(1)
for name, number, block, size, halves in TYPES:
    n = 256 // block  # two rows: one quantized by ggml, one of random bytes
    values = (ctypes.c_float * 256)(*[random.gauss(0, 0.1) for _ in range(256)])
    row = ctypes.create_string_buffer(n * size)
    lib.ggml_quantize_chunk(number, values, row, 0, 1, 256, None)
    noise = bytearray(random.randbytes(n * size))
    for i in range(n):
        for at in halves or []:
            noise[i * size + at : i * size + at + 2] = struct.pack("<e", random.gauss(0, 0.01))
        if halves is None:
            noise[i * size] = random.randrange(100, 130)
    raw = row.raw + bytes(noise)
    decode = getattr(lib, "dequantize_row_" + name.replace("Q", "q").replace("I", "i").replace("N", "n").replace("L", "l").replace("XS", "xs").replace("MXFP", "mxfp"))
    decode.argtypes = [ctypes.c_char_p, c_float_p, ctypes.c_int64]
    decoded = (ctypes.c_float * 512)()
    decode(raw, decoded, 512)
    tensor(name, number, 256, 2, raw)
    tensor(name + ".values", 0, 256, 2, bytes(decoded))
lib.gguf_write_to_file(out, sys.argv[2].encode(), False)
