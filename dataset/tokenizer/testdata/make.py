#!/usr/bin/env python3
"""Writes the tokenizers of the tests: small vocabularies, trained here on the text
below, in the configurations of well-known models.

    models.json   models by name (the "model" part of a tokenizer.json)
    configs.json  the other parts by name, and which model they go with
    texts.json    what is encoded; {"base64": ...} where it is not UTF-8

Then `FETTLE_UPDATE=1 FETTLE_NODE_MODULES=... go test -run TestAgainstJudge` asks the
reference for the ids and writes expected.json.gz.
Only the standard library is needed; the same input gives the same files.
"""
import base64
import collections
import json
import math
import os
import re
import struct

HERE = os.path.dirname(os.path.abspath(__file__))

CORPUS = """
The tokenizer reads a file and turns the text into numbers. It isn't hard, but it's
easy to get wrong: spaces, newlines and accents all count. We'll test that they're
right, that I'd see it if it weren't, and that you've read this. The cat sat on the
mat; the dog didn't. In 1984 there were 365 days, in 2024 there were 366. 3.14159 is
near pi. Call me at 555-0199 or write to someone@example.com, https://example.com/a?b=c.

def main(argc: int) -> None:
    for i in range(10):
        if i % 2 == 0:
            print("even", i)
        else:
            return None
func (t *Tokenizer) Encode(text string) ([]uint32, error) {
\tif len(text) == 0 {
\t\treturn nil, nil
\t}
\treturn t.model.encode(text)
}
Il était une fois une forêt où les élèves étudiaient. Ça va très bien, merci. Größe,
Straße, Übung und schöne Grüße. El niño comió piñas en España. Příliš žluťoučký kůň.
Быстрая лиса прыгает через ленивую собаку. Это простой текст на русском языке.
Η γρήγορη αλεπού. Όλα καλά σήμερα. 敏捷的棕色狐狸跳过了懒狗。这是一个测试。 今日は良い天気ですね。
テストです。 안녕하세요 세계. 오늘 날씨가 좋습니다. مرحبا بالعالم. هذا نص قصير. שלום עולם.
नमस्ते दुनिया। यह एक परीक्षण है। สวัสดีชาวโลก Ⅳ ½ ٣٤ 😀 👍 ❤️ € £ → ∑ “quotes” — dash…
The model learns from the text, the text comes from the people, and the people read
the text that the model writes. There is nothing new under the sun, they say; there
is always something new under the sun, we say.
"""

GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA3 = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CLIP = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
O200K = "|".join([
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+"""])


def byte_chars():
    table, extra = {}, 0x100
    for b in range(256):
        if 0x21 <= b <= 0x7E or 0xA1 <= b <= 0xAC or b >= 0xAE:
            table[b] = chr(b)
        else:
            table[b] = chr(extra)
            extra += 1
    return table


BYTES = byte_chars()


def spell(s):
    return "".join(BYTES[b] for b in s.encode())


def train(words, count):
    """Merges of the commonest pair, ties by spelling."""
    words = [[list(w), n] for w, n in sorted(words.items())]
    merges = []
    while len(merges) < count:
        pairs = collections.Counter()
        for w, n in words:
            for p in zip(w, w[1:]):
                pairs[p] += n
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        for item in words:
            w, out, i = item[0], [], 0
            while i < len(w):
                if i + 1 < len(w) and (w[i], w[i + 1]) == best:
                    out.append(w[i] + w[i + 1])
                    i += 2
                else:
                    out.append(w[i])
                    i += 1
            item[0] = out
    return merges


def vocabulary(first, merges, join=lambda a, b: a + b):
    vocab = {}
    for token in list(first) + [join(a, b) for a, b in merges]:
        vocab.setdefault(token, len(vocab))
    return vocab


def bpe(vocab, merges, pairs, **options):
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    model.update(options)
    model["vocab"] = vocab
    model["merges"] = [list(m) for m in merges] if pairs else [a + " " + b for a, b in merges]
    return model


def models():
    out = {}
    # Words with the space before them, roughly as GPT-2's pattern cuts.
    words = collections.Counter(spell(w) for w in re.findall(r" ?\w+| ?[^\w\s]+|\s+", CORPUS))
    merges = train(words, 420)
    alphabet = sorted(BYTES.values())
    vocab = vocabulary(alphabet, merges)
    out["bytes"] = bpe(vocab, merges, False, unk_token="", continuing_subword_prefix="", end_of_word_suffix="")
    # With words that no merge makes, for ignore_merges.
    more = dict(vocab)
    for w in ["Ġtokenizer", "Ġnothing", "ĊĊĊ", "Ġ365", "365"]:
        more.setdefault(w, len(more))
    out["bytes_ignore_merges"] = bpe(more, merges, True, ignore_merges=True)
    # Pieces with ▁ for the space, characters first and bytes for the rest.
    pieces = collections.Counter("▁" + w for w in CORPUS.split())
    pieces.update({"▁" * 16: 40, "\n\n": 5, "s▁the": 3})
    chars = collections.Counter("".join(CORPUS.split()))
    chars = sorted(c for c in chars if chars[c] > 1 and ord(c) < 0x3000) + ["▁"]
    kept = collections.Counter({w: n for w, n in pieces.items() if all(c in chars for c in w)})
    merges = train(kept, 380)
    control = ["<unk>", "<s>", "</s>"]
    byte_tokens = ["<0x%02X>" % b for b in range(256)]
    vocab = vocabulary(control + byte_tokens + chars, merges)
    out["pieces"] = bpe(vocab, merges, True, unk_token="<unk>", fuse_unk=True, byte_fallback=True, ignore_merges=False)
    # The same without some of the bytes: there the unknown token comes in.
    some = [t for t in vocab if not re.match("<0x[C-E].>", t)]
    some = {t: i for i, t in enumerate(some)}
    out["pieces_unk"] = bpe(some, merges, False, unk_token="<unk>", fuse_unk=False, byte_fallback=True)
    out["pieces_fuse"] = bpe({t: i for i, t in enumerate(x for x in vocab if not x.startswith("<0x"))}, merges, False,
                             unk_token="<unk>", fuse_unk=True, byte_fallback=False)
    out["pieces_drop"] = bpe({t: i for i, t in enumerate(x for x in vocab if not x.startswith("<"))}, merges, False)
    # Words of bytes that end in </w>, as in CLIP.
    low = re.findall(r"[^\W\d_]+|\d|[^\w\s]+", CORPUS.lower())
    words = collections.Counter(tuple(list(spell(w)[:-1]) + [spell(w)[-1] + "</w>"]) for w in low)
    merges = train(words, 300)
    vocab = vocabulary(alphabet + [c + "</w>" for c in alphabet], merges)
    for t in ["<|startoftext|>", "<|endoftext|>"]:
        vocab[t] = len(vocab)
    out["suffix"] = bpe(vocab, merges, False, unk_token="<|endoftext|>", continuing_subword_prefix="", end_of_word_suffix="</w>")
    # Characters inside a word with ## before them.
    words = collections.Counter(tuple([w[0]] + ["##" + c for c in w[1:]]) for w in re.findall("[a-z]+", CORPUS.lower()))
    merged = []
    items = [[list(w), n] for w, n in sorted(words.items())]
    while len(merged) < 120:
        pairs = collections.Counter()
        for w, n in items:
            for p in zip(w, w[1:]):
                pairs[p] += n
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merged.append(best)
        for item in items:
            w, new, i = item[0], [], 0
            while i < len(w):
                if i + 1 < len(w) and (w[i], w[i + 1]) == best:
                    new.append(w[i] + w[i + 1][2:])
                    i += 2
                else:
                    new.append(w[i])
                    i += 1
            item[0] = new
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocab = vocabulary(["[UNK]"] + list(letters) + ["##" + c for c in letters], merged, lambda a, b: a + b[2:])
    out["prefix"] = bpe(vocab, merged, False, unk_token="[UNK]", continuing_subword_prefix="##")
    return out


def scored(words):
    """Tokens with log probabilities: substrings by how often they come. Rounded, so
    that cuts tie."""
    counts = collections.Counter()
    for w, n in words.items():
        for i in range(len(w)):
            for j in range(i + 1, min(len(w), i + 8) + 1):
                counts[w[i:j]] += n
    total = sum(counts.values())
    kept = [t for t in counts if len(t) == 1 and counts[t] > 1 or counts[t] > 3]
    return [[t, round(math.log(counts[t] / total), 1)] for t in sorted(kept, key=lambda t: (-counts[t] * len(t), t))[:700]]


def unigrams():
    out = {}
    words = collections.Counter("▁" + w for w in CORPUS.split())
    tokens = [t for t in scored(words) if ord(max(t[0])) < 0x3000]
    names = ["<0x%02X>" % b for b in range(256)]

    def unigram(first, unk, more=(), **options):
        model = {"type": "Unigram", "unk_id": unk}
        model.update(options)
        model["vocab"] = [[t, 0.0] for t in first] + tokens + [[t, s] for t, s in more]
        return model

    extra = [["<extra_id_%d>" % i, 0.0] for i in range(3)]
    out["unigram_t5"] = unigram(["<pad>", "</s>", "<unk>"], 2, extra)
    out["unigram_xlmr"] = unigram(["<s>", "<pad>", "</s>", "<unk>"], 3, [["<mask>", 0.0]], byte_fallback=False)
    out["unigram_albert"] = unigram(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], 1)
    out["unigram_bytes"] = unigram(["<unk>", "<s>", "</s>"], 0, [[t, -20.0] for t in names], byte_fallback=True)
    # Without some of the bytes, and with a token twice.
    out["unigram_some"] = unigram(["<unk>"], 0, [[t, 0.0] for t in names if not re.match("<0x[C-E].>", t)] + [["the", -1.5]],
                                  byte_fallback=True)
    # Every token as good as every other, and the longer ones worse than the sum.
    ties = ["<unk>", "a", "b", "c", "ab", "bc", "abc", "aa", "aaa", "the", "th", "he", "t", "h", "e", " ", "  ", "é", "😀"]
    out["unigram_ties"] = {"type": "Unigram", "unk_id": 0, "vocab": [[t, -1.0] for t in ties], "byte_fallback": False}
    out["unigram_sums"] = {"type": "Unigram", "unk_id": 0, "vocab": [[t, -1.0 * len(t)] for t in ties], "byte_fallback": False}
    return out


def wordpieces():
    out = {}
    for name, text in [("lower", CORPUS.lower()), ("cased", CORPUS)]:
        words = collections.Counter(re.findall(r"\w+|[^\w\s]", text))
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        whole = sorted(w for w in words if words[w] > 1)
        chars = sorted({c for w in words for c in w if ord(c) < 0x3000 or words[c] > 0})
        parts = collections.Counter()
        for w, n in words.items():
            for size in (2, 3, 4):
                for i in range(len(w) - size + 1):
                    parts[("##" if i else "") + w[i:i + size]] += n
        parts = sorted(t for t in parts if parts[t] > 3)
        vocab = {}
        for t in tokens + chars + ["##" + c for c in chars] + whole + parts:
            vocab.setdefault(t, len(vocab))
        out["wordpiece_" + name] = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                                    "max_input_chars_per_word": 100, "vocab": vocab}
    short = {t.replace("##", "__"): i for t, i in out["wordpiece_lower"]["vocab"].items()}
    out["wordpiece_short"] = dict(out["wordpiece_lower"], max_input_chars_per_word=6, continuing_subword_prefix="__", vocab=short)
    bare = {}
    for t in ["[UNK]"] + [c for c in "abcdefghijklmnopqrstuvwxyz .,"] + ["th", "the", "in", "ing", "er", "##a"]:
        bare[t] = len(bare)
    out["wordpiece_bare"] = dict(out["wordpiece_lower"], continuing_subword_prefix="", vocab=bare)
    words = collections.Counter(re.findall(r"\w+|[^\w\s]+", CORPUS))
    level = {"<unk>": 0}
    for w in sorted(words):
        level.setdefault(w, len(level))
    out["wordlevel"] = {"type": "WordLevel", "vocab": level, "unk_token": "<unk>"}
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|"] + list("ETAOINHSRDLUMWCFGYPBVK'XJQZ")
    out["wordlevel_letters"] = {"type": "WordLevel", "vocab": {t: i for i, t in enumerate(letters)}, "unk_token": "<unk>"}
    return out


def charsmap(rules):
    """SentencePiece's compiled rules: a double array of UTF-8 strings (the format of
    Darts-clone) and the replacements."""
    blob, places = b"", {}
    for r in sorted(set(rules.values())):
        places[r] = len(blob)
        blob += r.encode() + b"\0"
    trie = {}
    for k, r in rules.items():
        node = trie
        for b in k.encode():
            node = node.setdefault(b, {})
        node[0] = places[r]
    units, used = {}, set()

    def put(node, at):
        """Lays out the children of the node whose unit is at a place."""
        base = 1
        while (base ^ at) >= 1 << 21 or base in used or any((base ^ b) in units for b in node):
            base += 1
        used.add(base)
        for b in node:
            units[base ^ b] = 0
        for b, child in node.items():
            units[base ^ b] = child | 1 << 31 if b == 0 else b
        offset = base ^ at
        units[at] |= offset << 10 | (1 << 8 if 0 in node else 0)
        for b, child in node.items():
            if b:
                put(child, base ^ b)

    units[0] = 0
    put(trie, 0)
    size = (max(units) // 256 + 1) * 256
    array = [units.get(i, 0) for i in range(size)]
    return base64.b64encode(struct.pack("<I", 4 * size) + struct.pack("<%dI" % size, *array) + blob).decode()


# What SentencePiece's nmt_nfkc has for a few characters, and rules that a shorter
# one hides or that a cluster takes as a whole.
RULES = {"\t": " ", "\n": " ", "\r": " ", "\x01": "", "\x7f": "", "\u00a0": " ", "\u3000": " ", "\u200b": " ", "\u200d": " ", "\ufeff": "",
         "ﬁ": "fi", "①": "1", "½": "1⁄2", "…": "...", "Å": "Å", "\u212a": "K", "ａ": "a", "ｶ": "カ", "e\u0301": "é", "a\u0308": "ä",
         "가": "ga", "ﷺ": "صلى الله عليه وسلم", "ab": "X", "q": "", "²": "2", "\u0e33": "ํา", "\r\n": "|", "e\u0301\u0323": "E"}


def added(content, special=True, normalized=False, single_word=False, lstrip=False, rstrip=False):
    return {"content": content, "single_word": single_word, "lstrip": lstrip, "rstrip": rstrip,
            "normalized": normalized, "special": special}


def template(*names):
    """Special tokens before the text; their ids are set below."""
    single = [{"SpecialToken": {"id": n, "type_id": 0}} for n in names] + [{"Sequence": {"id": "A", "type_id": 0}}]
    pair = single + [{"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair,
            "special_tokens": {n: {"id": n, "ids": [n], "tokens": [n]} for n in names}}


def byte_level(prefix=False, regex=True):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


PIECES_DECODER = sequence("decoders", {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                          {"type": "ByteFallback"}, {"type": "Fuse"},
                          {"type": "Strip", "content": " ", "start": 1, "stop": 0})
LLAMA2_NORMALIZER = sequence("normalizers", {"type": "Prepend", "prepend": "▁"},
                             {"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
CONTROL = [added("<unk>"), added("<s>"), added("</s>")]


def configs():
    out = []

    def add(name, model, normalizer=None, pre_tokenizer=None, post_processor=None, decoder=None, tokens=(), known=False):
        out.append({"name": name, "model": model, "known": known, "added_tokens": list(tokens), "normalizer": normalizer,
                    "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": decoder})

    level = byte_level(regex=False)
    # Those of well-known models. The port to JavaScript gives equal ids for these.
    add("gpt2", "bytes", None, byte_level(), byte_level(prefix=True), byte_level(prefix=True),
        [added("<|endoftext|>", normalized=True)], known=True)
    add("llama3", "bytes_ignore_merges", None, sequence("pretokenizers", split(LLAMA3), level),
        sequence("processors", byte_level(prefix=True), template("<|begin_of_text|>")), byte_level(prefix=True),
        [added(t) for t in ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]],
        known=True)
    add("qwen2", "bytes", {"type": "NFC"}, sequence("pretokenizers", split(QWEN2), level), byte_level(), byte_level(),
        [added(t) for t in ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]] + [added("<tool_call>", special=False)], known=True)
    add("llama2", "pieces", LLAMA2_NORMALIZER, None, template("<s>"), PIECES_DECODER, CONTROL, known=True)
    add("mistral", "pieces", None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        template("<s>"), PIECES_DECODER, CONTROL + [added("[INST]"), added("[/INST]")], known=True)
    # Each component and option beside these.
    add("o200k", "bytes_ignore_merges", None, sequence("pretokenizers", split(O200K), level), None, byte_level())
    add("roberta_space", "bytes", None, byte_level(prefix=True), byte_level(prefix=True), byte_level(),
        [added("<mask>", normalized=False, lstrip=True), added("<pad>", normalized=True)])
    add("metaspace_old", "pieces", None, {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True},
        None, {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}, CONTROL)
    add("metaspace_always", "pieces", {"type": "NFKC"},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}, CONTROL)
    add("metaspace_never", "pieces", None,
        {"type": "Metaspace", "replacement": "▁", "add_prefix_space": False, "prepend_scheme": "never", "split": True},
        None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}, CONTROL)
    add("metaspace_first_split", "pieces", {"type": "Strip", "strip_left": True, "strip_right": False},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}, None, None, CONTROL)
    add("words_then_first", "pieces", {"type": "Prepend", "prepend": "x y"},
        sequence("pretokenizers", {"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}))
    add("some_bytes", "pieces_unk", LLAMA2_NORMALIZER, None, None, PIECES_DECODER, CONTROL[:1])
    add("no_bytes", "pieces_fuse", LLAMA2_NORMALIZER, None, None, PIECES_DECODER, CONTROL)
    add("no_unk", "pieces_drop", LLAMA2_NORMALIZER, None, None, PIECES_DECODER)
    add("normalized_control", "pieces", LLAMA2_NORMALIZER, None, template("<s>"), PIECES_DECODER,
        [added("<unk>", normalized=True), added("<s>", normalized=True), added("</s>", normalized=True)])
    add("clip", "suffix", sequence("normalizers", {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "Lowercase"}),
        sequence("pretokenizers", split(CLIP, "Removed", True), byte_level()), None, byte_level(),
        [added("<|startoftext|>", normalized=True), added("<|endoftext|>")])
    add("prefix", "prefix", sequence("normalizers", {"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}), {"type": "Whitespace"}, None, None,
        [added("[UNK]")])
    add("nfkd_strip", "pieces", sequence("normalizers", {"type": "Strip", "strip_left": False, "strip_right": True}, {"type": "NFKD"}), {"type": "WhitespaceSplit"})
    add("digits_each", "bytes", None, sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, byte_level()))
    add("digits_runs", "bytes", None, sequence("pretokenizers", {"type": "Digits", "individual_digits": False}, level))
    add("punctuation", "bytes", None, sequence("pretokenizers", {"type": "Punctuation"}, level))
    add("punctuation_contiguous", "bytes", None, sequence("pretokenizers", {"type": "Punctuation", "behavior": "Contiguous"}, level))
    for behavior in ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]:
        for invert in [False, True]:
            add("split_%s_%s" % (behavior, invert), "bytes", None,
                sequence("pretokenizers", split(r"[aeiou]|\d+|\.", behavior, invert), level))
    add("split_string", "bytes", None, sequence("pretokenizers", split("the", "MergedWithPrevious", False, "String"), level))
    add("split_words", "bytes", None, sequence("pretokenizers", split(r"\b\w+\b|[\w]+(?=\W)", "Isolated"), level))
    add("split_lines", "bytes", None, sequence("pretokenizers", split(r"^.{1,4}|.$|(?i:the|sk)++|\D{3}+\P{L}", "Isolated"), level))
    add("flags", "bytes", {"type": "Lowercase"}, byte_level(), None, byte_level(), [
        added("<plain>"), added("<Norm>", normalized=True), added("<left>", lstrip=True), added("<right>", rstrip=True),
        added("<both>", lstrip=True, rstrip=True), added("word", single_word=True), added("<|a|>"), added("<|a|>b"),
        added("NORMLEFT", special=False, normalized=True, lstrip=True, rstrip=True), added("  ", special=False)])
    unigram_configs(add)
    wordpiece_configs(add)
    return out


def metaspace(scheme, cut=True):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}


def template_around(before, after):
    single = [{"SpecialToken": {"id": n, "type_id": 0}} for n in before] + [{"Sequence": {"id": "A", "type_id": 0}}]
    single += [{"SpecialToken": {"id": n, "type_id": 0}} for n in after]
    return {"type": "TemplateProcessing", "single": single, "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {n: {"id": n, "ids": [n], "tokens": [n]} for n in before + after}}


def unigram_configs(add):
    rules = {"type": "Precompiled", "precompiled_charsmap": charsmap(RULES)}
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    words = {"type": "WhitespaceSplit"}
    special = [added(t) for t in ["<pad>", "</s>", "<unk>"]]
    add("t5", "unigram_t5", rules, sequence("pretokenizers", words, metaspace("always")), template_around([], ["</s>"]), metaspace("always"),
        special + [added("<extra_id_%d>" % i) for i in range(3)])
    add("t5_new", "unigram_t5", sequence("normalizers", rules, {"type": "Strip", "strip_left": False, "strip_right": True}, spaces),
        metaspace("always"), template_around([], ["</s>"]), metaspace("always"), special)
    add("xlmr", "unigram_xlmr", rules, sequence("pretokenizers", words, metaspace("always")), template_around(["<s>"], ["</s>"]),
        metaspace("always"), [added(t) for t in ["<s>", "<pad>", "</s>", "<unk>"]] + [added("<mask>", lstrip=True)])
    add("albert", "unigram_albert",
        sequence("normalizers", {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
                 {"type": "Replace", "pattern": {"String": "''"}, "content": '"'}, {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
                 rules, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}),
        sequence("pretokenizers", words, metaspace("always")), template_around(["[CLS]"], ["[SEP]"]), metaspace("always"),
        [added(t) for t in ["<pad>", "<unk>", "[CLS]", "[SEP]"]] + [added("[MASK]", lstrip=True)])
    add("unigram_bytes", "unigram_bytes", None, metaspace("first", False), None, PIECES_DECODER, CONTROL)
    add("unigram_some", "unigram_some", {"type": "Nmt"}, metaspace("first"), None, PIECES_DECODER)
    add("unigram_old", "unigram_t5", {"type": "NFKC"}, {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "str_rep": "▁"},
        None, {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "str_rep": "▁"}, known=True)
    add("unigram_rules_first", "unigram_bytes", rules, metaspace("first"), None, metaspace("first"))
    add("unigram_ties", "unigram_ties", known=True)
    add("unigram_sums", "unigram_sums", {"type": "NFC"}, {"type": "UnicodeScripts"}, None, {"type": "Fuse"})
    add("unigram_scripts", "unigram_bytes", None, sequence("pretokenizers", {"type": "UnicodeScripts"}, metaspace("always")), None, PIECES_DECODER)


def wordpiece_configs(add):
    special = [added(t) for t in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]]

    def bert(clean=True, chinese=True, accents=None, lower=True):
        return {"type": "BertNormalizer", "clean_text": clean, "handle_chinese_chars": chinese, "strip_accents": accents, "lowercase": lower}

    def ends(cls, sep, **more):
        return dict(more, cls=cls, sep=sep)

    words = {"type": "BertPreTokenizer"}
    pieces = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    add("bert", "wordpiece_lower", bert(), words, template_around(["[CLS]"], ["[SEP]"]), pieces, special, known=True)
    add("bert_cased", "wordpiece_cased", bert(lower=False), words, ends("[CLS]", "[SEP]", type="BertProcessing"), pieces, special, known=True)
    add("bert_none", "wordpiece_cased", bert(False, False, False, False), words, None, dict(pieces, cleanup=False))
    add("bert_accents", "wordpiece_cased", bert(False, True, True, False), words, None, dict(pieces, prefix="#"))
    add("bert_lower", "wordpiece_lower", bert(True, False, False, True), words)
    add("wordpiece_short", "wordpiece_short", bert(), {"type": "Whitespace"}, None, dict(pieces, prefix="__"), special[1:2])
    add("wordpiece_bare", "wordpiece_bare", {"type": "Lowercase"}, {"type": "FixedLength", "length": 7}, None, dict(pieces, prefix=""))
    add("fixed_default", "wordpiece_lower", None, {"type": "FixedLength"}, None, {"type": "Fuse"})
    add("levels", "wordlevel", None, {"type": "Whitespace"}, None, None, [added("<unk>")])
    add("delimiter", "wordlevel", {"type": "ByteLevel"}, {"type": "CharDelimiterSplit", "delimiter": "e"}, None, byte_level())
    add("ctc", "wordlevel_letters", {"type": "Replace", "pattern": {"String": " "}, "content": "|"}, split("", "Isolated", False, "Regex"), None,
        {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}, [added("<pad>"), added("<s>")])
    add("ctc_raw", "wordlevel_letters", {"type": "Replace", "pattern": {"String": " "}, "content": "|"}, split(".", "Isolated", False, "Regex"), None,
        {"type": "CTC", "pad_token": "<unk>", "word_delimiter_token": "|", "cleanup": False})
    add("roberta", "bytes", None, byte_level(), ends("!", '"', type="RobertaProcessing", trim_offsets=True, add_prefix_space=False),
        byte_level(), [added("<mask>", lstrip=True)], known=True)
    add("bpe_decoder", "suffix", {"type": "Lowercase"}, byte_level(), None, {"type": "BPEDecoder", "suffix": "</w>"})


TEXTS = [
    "", " ", "Hello world", " Hello  world ", "The tokenizer reads a file.", "\n", "\n\n", " \n \n ", "a\r\nb\r\n\r\nc",
    "\t\ttabs\t and   spaces      at the end   ", "I'd say it's fine, we'll see: you're IT'S DON'T I'LL 'S 'ſ 'Re '", "don't 'tis ' s",
    "1 12 123 1234 12345 1234567890 3.14159 ٣٤٥ Ⅳ½²", "x=1;y = 22+333*(4444)", "    if (a[i] != b[j]) {\n\t\treturn \"x\";\n    }\n",
    "Il était une fois, où ça? Größe Straße", "e\u0301 e\u0323\u0301 \u1e69 s\u0323\u0307 ﬁ ① Å \u212b", "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Быстрая лиса — это ОЧЕНЬ быстро", "Όλα καλά ΣΑΣ σας", "敏捷的棕色狐狸，跳过了懒狗。12月31日", "今日はテストですね。ｶﾀｶﾅ", "안녕하세요 세계 \u1112\u1161\u11ab",
    "مرحبا بالعالم ‏هذا", "שָׁלוֹם עולם", "नमस्ते दुनिया। क्षत्रिय", "สวัสดีชาวโลก", "😀👍🏽 👩‍👩‍👧‍👦 🇩🇪 ❤️ ☝🏿",
    "Z̷̢̛͙a̴͑l̶g̵o̴̡", "\u200b\u200d\ufeff\u00a0\u2003\u2028x\u0085y\u3000z", "\u0378 \u05ff \U0001ffff \ue000 \uffff \U00010d40\U0001e5d0a\U0002ebf0\u1c89",
    "<|endoftext|>", "a<|endoftext|>b <|im_start|>user\nhi<|im_end|>\n", "<s>[INST] hi [/INST]</s> <unk>x", "<|begin_of_text|><|start_header_id|>x<|end_header_id|>\n\nok<|eot_id|>",
    "<tool_call>{\"a\": 1}</tool_call>", "<0x41><0xE2>", "▁ ▁▁ a▁b", "Ġ Ċ ġĠ", "the nothing\n\n\n365 365 tokenizer",
    "a" * 300, "ab" * 100 + " " * 70 + "\n" * 40 + "é" * 60, "Pneumonoultramicroscopicsilicovolcanoconiosis" * 4,
    "\0\x01\x7f\x1b[0m", "foo_bar__baz fooBar XMLHttpRequest", "https://example.com/a?b=c&d=%20#x", "...!!!???---===", "“quotes” ‘single’ — … ¿qué?",
    "  <left>  <right>  <both>  x<both>y <plain> z<plain>  ", "word words sword word. wordword wörd word_ word", "<norm><Norm> <NORM> <|a|>b<|a|>c <|A|>",
    " normleft  NORMLEFT normleft\n x", "<mask> a <mask>b<pad>  <pad>", "İSTANBUL ŞEHİR ẞ ǅ", "a b", "    x", "x    ", "\u3000x  y", "the thethe ThE then\nthe\n",
    "Mostly kind sky SKI sk ſk \u212a", "a.b.c 12.5e10 aeiou xyz.", "K\u0301\u0301" + "\u0323" * 40 + "b", "abc\n", "abc\n\ndef\n\n", "\ufffd?",
    "It is n't , do not ' you 've . ? !", "[CLS] a[SEP]b [MASK] [PAD][UNK]", "<pad> a</s> <extra_id_0>b <extra_id_1> <mask>c", "aaaaabcabcaab thethe  hehe",
    "\uff41\u0301 a\u0308 qab \u0e33 \r\n ﷺ ½… ①② e\u0301\u0323", "ＡＢＣ ｶﾞ ﾊﾟ \u3099か\u3099", "漢字kanjiかなカナー한글 русский", "``quoted'' `x'", "HELLO|THERE EE", "xxyyzz" * 20,
    "\u0897\u0628\u0897 \u0600\u0661 \u0600x \u093f\u0915\u093f", "\u1734\u0859\u08e2\u0890a\u110cd \u00adb\u2060c\ue000", "🇩🇪🇫🇷🇺 \u200d👩\u200d👧 ©\ufe0f™\ufe0f",
]
RAW = [b"a\xffb\xfe", b"\xe2\x82 x \xe2\x28 \xf0\x9f\x98 \xed\xa0\x80 \xc0\xaf \xf4\x90\x80\x80", b"\x80\xbf ok \xc3"]


def main():
    made = models()
    made.update(unigrams())
    made.update(wordpieces())
    cs = configs()
    for c in cs:
        vocab = made[c["model"]]["vocab"]
        if isinstance(vocab, list):
            vocab = {t: i for i, (t, _) in enumerate(vocab)}
        extra = 0
        for t in c["added_tokens"]:
            if t["content"] in vocab:
                t["id"] = vocab[t["content"]]
            else:
                t["id"] = len(vocab) + extra
                extra += 1
        ids = {t["content"]: t["id"] for t in c["added_tokens"]}
        post = c["post_processor"] or {}
        for p in post.get("processors", [post]):
            for t in p.get("special_tokens", {}).values():
                t["ids"] = [ids.get(n, n) for n in t["ids"]]
            for end in ["cls", "sep"]:
                if end in p:
                    p[end] = [p[end], vocab[p[end]]]
    texts = [{"text": t} for t in TEXTS] + [{"base64": base64.b64encode(r).decode()} for r in RAW]
    for name, value in [("models", made), ("configs", cs), ("texts", texts)]:
        with open(os.path.join(HERE, name + ".json"), "w", encoding="utf-8") as f:
            json.dump(value, f, ensure_ascii=True if name == "texts" else False, separators=(",", ":"))
            f.write("\n")


if __name__ == "__main__":
    main()
