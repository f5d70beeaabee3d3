#!/usr/bin/env python3
"""Writes tiny random encoders and what they compute into this folder.

    python3 model/testdata/make_encoders.py [FOLDER]

As make_lm.py, whose definitions it shares: a Hugging Face folder each, with
expected.json. Encoders of text have sequences of ids and the output, a row for
each token or each sequence; those of images and sound have inputs and a row for
each token, or one. The forward passes are written from the papers and from the
definition of the keys of config.json, in float64.
"""
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

from make_lm import LENGTHS, VOCABULARY, Random, affine, layer_norm, write_safetensors


# --- Definitions --------------------------------------------------------------

def activate(kind, y):
    if kind == "gelu":
        return y * (1 + torch.erf(y / math.sqrt(2))) / 2
    if kind == "gelu_new":
        return y / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + .044715 * y ** 3)))
    if kind == "relu":
        return torch.clamp(y, min=0)
    raise ValueError(kind)


def norm(x, t, name, eps):
    weight = t.get(name + ".weight", t.get(name + ".gamma"))
    return layer_norm(x, weight, t[name + ".bias" if name + ".bias" in t else name + ".beta"], eps)


def attend_all(q, k, v, heads):
    """Every token sees every token: [tokens, heads·dim] each."""
    out = []
    for a, b, c in zip(*(m.chunk(heads, 1) for m in (q, k, v))):
        out.append(torch.softmax(a @ b.T / math.sqrt(a.shape[1]), -1) @ c)
    return torch.cat(out, 1)


class Names:
    """What a family calls a block's parts."""

    def __init__(self, stem, q, k, v, o, first, inner, outer, second):
        self.stem, self.q, self.k, self.v, self.o = stem, q, k, v, o
        self.first, self.inner, self.outer, self.second = first, inner, outer, second


BERT = Names("encoder.layer.", *("attention.self." + p for p in ("query", "key", "value")), "attention.output.dense",
             "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")
DISTIL = Names("transformer.layer.", *(f"attention.{p}_lin" for p in ("q", "k", "v", "out")),
               "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm")
VIT = Names("encoder.layer.", *("attention.attention." + p for p in ("query", "key", "value")), "attention.output.dense",
            "layernorm_before", "intermediate.dense", "output.dense", "layernorm_after")
WHISPER = Names("layers.", *(f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")),
                "self_attn_layer_norm", "fc1", "fc2", "final_layer_norm")


def post_norm_blocks(x, t, prefix, n, blocks, heads, act, eps):
    for i in range(blocks):
        at = f"{prefix}{n.stem}{i}."
        y = attend_all(*(affine(x, t, at + p) for p in (n.q, n.k, n.v)), heads)
        x = norm(x + affine(y, t, at + n.o), t, at + n.first, eps)
        y = affine(activate(act, affine(x, t, at + n.inner)), t, at + n.outer)
        x = norm(x + y, t, at + n.second, eps)
    return x


def pre_norm_blocks(x, t, prefix, n, blocks, heads, act, eps):
    for i in range(blocks):
        at = f"{prefix}{n.stem}{i}."
        y = norm(x, t, at + n.first, eps)
        x = x + affine(attend_all(*(affine(y, t, at + p) for p in (n.q, n.k, n.v)), heads), t, at + n.o)
        y = norm(x, t, at + n.second, eps)
        x = x + affine(activate(act, affine(y, t, at + n.inner)), t, at + n.outer)
    return x


def embed(t, prefix, ids, pad, eps):
    """pad: RoBERTa's, whose positions count the tokens that are not padding, from
    pad + 1 on; padding itself has position pad."""
    positions = list(range(len(ids)))
    if pad is not None:
        count = 0
        for i, one in enumerate(ids.tolist()):
            count += one != pad
            positions[i] = pad + count if one != pad else pad
    x = t[prefix + "embeddings.word_embeddings.weight"][ids] + t[prefix + "embeddings.position_embeddings.weight"][positions]
    types = prefix + "embeddings.token_type_embeddings.weight"
    if types in t:
        x = x + t[types][0]
    return norm(x, t, prefix + "embeddings.LayerNorm", eps)


# --- Families -----------------------------------------------------------------

def bert_like(config, t, ids, prefix, pad=None):
    eps = config["layer_norm_eps"]
    x = embed(t, prefix, ids, pad, eps)
    if prefix + "embeddings_project.weight" in t:
        x = affine(x, t, prefix + "embeddings_project")
    return post_norm_blocks(x, t, prefix, BERT, config["num_hidden_layers"], config["num_attention_heads"], config["hidden_act"], eps)


def distil(config, t, ids, prefix):
    x = embed(t, prefix, ids, None, 1e-12)
    return post_norm_blocks(x, t, prefix, DISTIL, config["n_layers"], config["n_heads"], config["activation"], 1e-12)


def masked(x, t, dense, act, ln, eps, table, bias):
    x = norm(activate(act, affine(x, t, dense)), t, ln, eps)
    return x @ t[table].T + t[bias]


def pooled(x, t, prefix):
    return torch.tanh(affine(x[:1], t, prefix + "pooler.dense"))


def vit(config, t, image, prefix):
    """The patches are cut out one by one."""
    (height, width) = config["patch_size"] if isinstance(config["patch_size"], list) else [config["patch_size"]] * 2
    weight = t[prefix + "embeddings.patch_embeddings.projection.weight"].flatten(1)
    rows = [t[prefix + "embeddings.cls_token"].flatten()]
    for r in range(0, image.shape[1], height):
        for c in range(0, image.shape[2], width):
            patch = image[:, r:r + height, c:c + width].flatten()
            rows.append(weight @ patch + t[prefix + "embeddings.patch_embeddings.projection.bias"])
    x = torch.stack(rows) + t[prefix + "embeddings.position_embeddings"][0]
    eps = config["layer_norm_eps"]
    x = pre_norm_blocks(x, t, prefix, VIT, config["num_hidden_layers"], config["num_attention_heads"], config["hidden_act"], eps)
    return norm(x, t, prefix + "layernorm", eps)


def whisper(config, t, features, prefix):
    """features [bins, frames]. A convolution's output frame f is the sum over three
    frames around stride·f, those outside being 0."""
    x = features.T
    for name, stride in ("conv1", 1), ("conv2", 2):
        padded = torch.cat([torch.zeros_like(x[:1]), x, torch.zeros_like(x[:1])])
        weight, bias = t[prefix + name + ".weight"], t[prefix + name + ".bias"]
        x = torch.stack([sum(weight[:, :, k] @ padded[f + k] for k in range(3)) + bias for f in range(0, len(x), stride)])
        x = activate("gelu", x)
    x = x + t[prefix + "embed_positions.weight"]
    x = pre_norm_blocks(x, t, prefix, WHISPER, config["encoder_layers"], config["encoder_attention_heads"], config["activation_function"], 1e-5)
    return norm(x, t, prefix + "layer_norm", 1e-5)


# --- Random weights -----------------------------------------------------------

class Weights(Random):
    def layer(self, name, outputs, inputs, bias=True):
        self.matrix(name + ".weight", outputs, inputs)
        if bias:
            self.vector(name + ".bias", outputs, 0, .5)

    def norm(self, name, n, old=False):
        self.vector(name + (".gamma" if old else ".weight"), n, 1, .3)
        self.vector(name + (".beta" if old else ".bias"), n, 0, .3)

    def blocks(self, prefix, names, blocks, hidden, inner, old=False, q_bias=True, k_bias=True):
        for i in range(blocks):
            at = f"{prefix}{names.stem}{i}."
            self.layer(at + names.q, hidden, hidden, q_bias)
            self.layer(at + names.k, hidden, hidden, k_bias)
            self.layer(at + names.v, hidden, hidden, q_bias)
            self.layer(at + names.o, hidden, hidden)
            self.norm(at + names.first, hidden, old)
            self.layer(at + names.inner, inner, hidden)
            self.layer(at + names.outer, hidden, inner)
            self.norm(at + names.second, hidden, old)

    def embeddings(self, prefix, width, positions, types, old=False):
        self.matrix(prefix + "embeddings.word_embeddings.weight", VOCABULARY, width, 1.44)
        self.matrix(prefix + "embeddings.position_embeddings.weight", positions, width, 1.44)
        if types:
            self.matrix(prefix + "embeddings.token_type_embeddings.weight", types, width, 1.44)
        self.norm(prefix + "embeddings.LayerNorm", width, old)


# --- Files --------------------------------------------------------------------

def folder_of(root, name, config, tensors, cases):
    out = root / name
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (out / "expected.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")
    write_safetensors(out / "model.safetensors", tensors)
    print(f"{name}: {sum(f.stat().st_size for f in out.iterdir())} bytes")


def rounded(rows):
    return [[round(v, 5) for v in row] for row in rows.tolist()]


def write_text(root, name, config, tensors, forward, lengths=LENGTHS, beside=None, pad=None):
    """beside: what is computed beside the output; pad: an id that sequences hold."""
    rng = np.random.Generator(np.random.PCG64(len(name)))
    t = {k: torch.tensor(v).double() for k, v in tensors.items()}
    cases = []
    for n in lengths:
        ids = torch.tensor(rng.integers(0, VOCABULARY, n))
        if pad is not None and n > 2:
            ids[n // 2] = pad
        case = {"ids": ids.tolist(), "logits": rounded(forward(t, ids))}
        if beside:
            case["beside"] = rounded(beside(t, ids))
        cases.append(case)
    folder_of(root, name, config, tensors, cases)


def write_dense(root, name, config, tensors, shape, forward, beside=None):
    rng = np.random.Generator(np.random.PCG64(len(name)))
    t = {k: torch.tensor(v).double() for k, v in tensors.items()}
    cases = []
    for _ in range(2):
        x = torch.tensor(np.round(rng.standard_normal(shape), 3))
        case = {"input": x.flatten().tolist(), "logits": rounded(forward(t, x))}
        if beside:
            case["beside"] = rounded(beside(t, x))
        cases.append(case)
    folder_of(root, name, config, tensors, cases)


def main():
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    torch.set_num_threads(1)
    hidden, inner, blocks, positions = 16, 20, 2, 32
    base = {"vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": blocks,
            "num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": positions,
            "type_vocab_size": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
            "pad_token_id": 0, "position_embedding_type": "absolute", "use_cache": True, "classifier_dropout": None,
            "torch_dtype": "float32", "transformers_version": "4.41.2"}

    # BertModel as old checkpoints have it: no prefix, gamma and beta; with a pooler.
    config = {**base, "architectures": ["BertModel"], "model_type": "bert", "layer_norm_eps": 1e-3}
    r = Weights(11)
    r.embeddings("", hidden, positions, 2, old=True)
    r.blocks("", BERT, blocks, hidden, inner, old=True)
    r.layer("pooler.dense", hidden, hidden)
    write_text(root, "bert", config, r.tensors, lambda t, ids: bert_like(config, t, ids, ""),
               beside=lambda t, ids: pooled(bert_like(config, t, ids, ""), t, ""))

    # What BERT was trained with: tensors of the other task and buffers lie beside,
    # decoder and bias a second time.
    config2 = {**base, "architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_act": "gelu_new"}
    r = Weights(12)
    r.embeddings("bert.", hidden, positions, 2)
    r.tensors["bert.embeddings.position_ids"] = np.zeros((1, positions), np.uint8)
    r.blocks("bert.", BERT, blocks, hidden, inner)
    r.layer("bert.pooler.dense", hidden, hidden)
    r.layer("cls.predictions.transform.dense", hidden, hidden)
    r.norm("cls.predictions.transform.LayerNorm", hidden)
    r.vector("cls.predictions.bias", VOCABULARY, 0, .5)
    r.tensors["cls.predictions.decoder.weight"] = r.tensors["bert.embeddings.word_embeddings.weight"]
    r.tensors["cls.predictions.decoder.bias"] = r.tensors["cls.predictions.bias"]
    r.layer("cls.seq_relationship", 2, hidden)
    write_text(root, "bert-masked", config2, r.tensors,
               lambda t, ids: masked(bert_like(config2, t, ids, "bert."), t, "cls.predictions.transform.dense", "gelu_new",
                                     "cls.predictions.transform.LayerNorm", 1e-12, "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"))

    config3 = {**base, "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_act": "relu",
               "id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    r = Weights(13)
    r.embeddings("bert.", hidden, positions, 2)
    r.blocks("bert.", BERT, blocks, hidden, inner)
    r.layer("bert.pooler.dense", hidden, hidden)
    r.layer("classifier", 3, hidden)
    write_text(root, "bert-classes", config3, r.tensors,
               lambda t, ids: affine(pooled(bert_like(config3, t, ids, "bert."), t, "bert."), t, "classifier"))

    # RoBERTa counts positions from 2 on; sequences hold padding's id 1. The decoder
    # is a layer of its own.
    roberta = {**base, "model_type": "roberta", "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
               "max_position_embeddings": positions + 2}
    config4 = {**roberta, "architectures": ["RobertaForMaskedLM"], "hidden_act": "relu", "tie_word_embeddings": False}
    r = Weights(14)
    r.embeddings("roberta.", hidden, positions + 2, 1)
    r.blocks("roberta.", BERT, blocks, hidden, inner)
    r.layer("lm_head.dense", hidden, hidden)
    r.norm("lm_head.layer_norm", hidden)
    r.matrix("lm_head.decoder.weight", VOCABULARY, hidden)
    r.vector("lm_head.bias", VOCABULARY, 0, .5)
    write_text(root, "roberta-masked", config4, r.tensors,
               lambda t, ids: masked(bert_like(config4, t, ids, "roberta.", 1), t, "lm_head.dense", "gelu",
                                     "lm_head.layer_norm", 1e-5, "lm_head.decoder.weight", "lm_head.bias"), lengths=[1, 7, 26, 32])

    config5 = {**roberta, "architectures": ["RobertaForSequenceClassification"]}
    r = Weights(15)
    r.embeddings("roberta.", hidden, positions + 2, 1)
    r.blocks("roberta.", BERT, blocks, hidden, inner)
    r.layer("classifier.dense", hidden, hidden)
    r.layer("classifier.out_proj", 3, hidden)

    def roberta_classes(t, ids):
        x = bert_like(config5, t, ids, "roberta.", 1)[:1]
        return affine(torch.tanh(affine(x, t, "classifier.dense")), t, "classifier.out_proj")

    write_text(root, "roberta-classes", config5, r.tensors, roberta_classes)

    config6 = {**roberta, "model_type": "xlm-roberta", "architectures": ["XLMRobertaForTokenClassification"]}
    r = Weights(16)
    r.embeddings("roberta.", hidden, positions + 2, 1)
    r.blocks("roberta.", BERT, blocks, hidden, inner)
    r.layer("classifier", 5, hidden)
    write_text(root, "xlm-roberta-tokens", config6, r.tensors,
               lambda t, ids: affine(bert_like(config6, t, ids, "roberta.", 1), t, "classifier"), pad=1)

    # ELECTRA's generator has a narrow embedding, and so has its head; tied.
    electra = {**base, "model_type": "electra", "embedding_size": 12, "summary_type": "first", "summary_use_proj": True}
    config7 = {**electra, "architectures": ["ElectraForMaskedLM"], "hidden_act": "relu", "layer_norm_eps": 1e-3}
    r = Weights(17)
    r.embeddings("electra.", 12, positions, 2)
    r.layer("electra.embeddings_project", hidden, 12)
    r.blocks("electra.", BERT, blocks, hidden, inner)
    r.layer("generator_predictions.dense", 12, hidden)
    r.norm("generator_predictions.LayerNorm", 12)
    r.vector("generator_lm_head.bias", VOCABULARY, 0, .5)
    write_text(root, "electra-masked", config7, r.tensors,
               lambda t, ids: masked(bert_like(config7, t, ids, "electra."), t, "generator_predictions.dense", "gelu",
                                     "generator_predictions.LayerNorm", 1e-3, "electra.embeddings.word_embeddings.weight", "generator_lm_head.bias"))

    config8 = {**electra, "architectures": ["ElectraForPreTraining"], "embedding_size": hidden, "hidden_act": "relu"}
    r = Weights(18)
    r.embeddings("electra.", hidden, positions, 2)
    r.blocks("electra.", BERT, blocks, hidden, inner)
    r.layer("discriminator_predictions.dense", hidden, hidden)
    r.layer("discriminator_predictions.dense_prediction", 1, hidden)
    write_text(root, "electra-discriminator", config8, r.tensors,
               lambda t, ids: affine(activate("relu", affine(bert_like(config8, t, ids, "electra."), t, "discriminator_predictions.dense")),
                                     t, "discriminator_predictions.dense_prediction"))

    config9 = {**electra, "architectures": ["ElectraForSequenceClassification"], "hidden_act": "relu"}
    r = Weights(19)
    r.embeddings("electra.", 12, positions, 2)
    r.layer("electra.embeddings_project", hidden, 12)
    r.blocks("electra.", BERT, blocks, hidden, inner)
    r.layer("classifier.dense", hidden, hidden)
    r.layer("classifier.out_proj", 2, hidden)
    write_text(root, "electra-classes", config9, r.tensors,
               lambda t, ids: affine(activate("gelu", affine(bert_like(config9, t, ids, "electra.")[:1], t, "classifier.dense")), t, "classifier.out_proj"))

    distilbert = {"model_type": "distilbert", "vocab_size": VOCABULARY, "dim": hidden, "hidden_dim": inner, "n_layers": blocks,
                  "n_heads": 4, "activation": "gelu", "max_position_embeddings": positions, "sinusoidal_pos_embds": False,
                  "dropout": 0.1, "attention_dropout": 0.1, "qa_dropout": 0.1, "seq_classif_dropout": 0.2,
                  "initializer_range": 0.02, "pad_token_id": 0, "tie_weights_": True}
    config10 = {**distilbert, "architectures": ["DistilBertForMaskedLM"], "activation": "relu"}
    r = Weights(20)
    r.embeddings("distilbert.", hidden, positions, 0)
    r.blocks("distilbert.", DISTIL, blocks, hidden, inner)
    r.layer("vocab_transform", hidden, hidden)
    r.norm("vocab_layer_norm", hidden)
    r.vector("vocab_projector.bias", VOCABULARY, 0, .5)
    write_text(root, "distilbert-masked", config10, r.tensors,
               lambda t, ids: masked(distil(config10, t, ids, "distilbert."), t, "vocab_transform", "relu", "vocab_layer_norm",
                                     1e-12, "distilbert.embeddings.word_embeddings.weight", "vocab_projector.bias"))

    config11 = {**distilbert, "architectures": ["DistilBertForSequenceClassification"]}
    r = Weights(21)
    r.embeddings("distilbert.", hidden, positions, 0)
    r.blocks("distilbert.", DISTIL, blocks, hidden, inner)
    r.layer("pre_classifier", hidden, hidden)
    r.layer("classifier", 2, hidden)
    write_text(root, "distilbert-classes", config11, r.tensors,
               lambda t, ids: affine(activate("relu", affine(distil(config11, t, ids, "distilbert.")[:1], t, "pre_classifier")), t, "classifier"))

    config12 = {**base, "architectures": ["BertForQuestionAnswering"], "model_type": "bert"}
    r = Weights(22)
    r.embeddings("bert.", hidden, positions, 2)
    r.blocks("bert.", BERT, blocks, hidden, inner)
    r.layer("qa_outputs", 2, hidden)
    write_text(root, "bert-answers", config12, r.tensors,
               lambda t, ids: affine(bert_like(config12, t, ids, "bert."), t, "qa_outputs"))

    # Images.
    image = {"model_type": "vit", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": blocks,
             "num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 8, "patch_size": 4,
             "num_channels": 3, "qkv_bias": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
             "encoder_stride": 16, "initializer_range": 0.02}

    def vit_weights(seed, prefix, channels, patch, tokens, bias):
        r = Weights(seed)
        r.matrix(prefix + "embeddings.cls_token", 1, hidden, 1.44)
        r.tensors[prefix + "embeddings.cls_token"] = r.tensors[prefix + "embeddings.cls_token"].reshape(1, 1, hidden)
        r.matrix(prefix + "embeddings.position_embeddings", tokens, hidden, 1.44)
        r.tensors[prefix + "embeddings.position_embeddings"] = r.tensors[prefix + "embeddings.position_embeddings"].reshape(1, tokens, hidden)
        name = prefix + "embeddings.patch_embeddings.projection"
        r.layer(name, hidden, channels * patch[0] * patch[1])
        r.tensors[name + ".weight"] = r.tensors[name + ".weight"].reshape(hidden, channels, *patch)
        r.blocks(prefix, VIT, blocks, hidden, inner, q_bias=bias, k_bias=bias)
        r.norm(prefix + "layernorm", hidden)
        return r

    # Images and patches that are not square, no biases in attention, a pooler.
    config13 = {**image, "architectures": ["ViTModel"], "image_size": [12, 8], "patch_size": [4, 2], "num_channels": 2, "qkv_bias": False,
                "hidden_act": "gelu_new", "layer_norm_eps": 1e-3}
    r = vit_weights(23, "", 2, (4, 2), 13, False)
    r.layer("pooler.dense", hidden, hidden)
    write_dense(root, "vit", config13, r.tensors, (2, 12, 8), lambda t, x: vit(config13, t, x, ""),
                beside=lambda t, x: pooled(vit(config13, t, x, ""), t, ""))

    config14 = {**image, "architectures": ["ViTForImageClassification"]}
    r = vit_weights(24, "vit.", 3, (4, 4), 5, True)
    r.layer("classifier", 4, hidden)
    write_dense(root, "vit-classes", config14, r.tensors, (3, 8, 8), lambda t, x: affine(vit(config14, t, x, "vit.")[:1], t, "classifier"))

    # Sound: a whole model, of which the encoder is run.
    config15 = {"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "d_model": hidden, "num_mel_bins": 6,
                "max_source_positions": 11, "encoder_layers": blocks, "encoder_attention_heads": 4, "encoder_ffn_dim": inner,
                "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": inner, "max_target_positions": 16,
                "activation_function": "gelu", "vocab_size": VOCABULARY, "num_hidden_layers": blocks, "scale_embedding": False,
                "is_encoder_decoder": True, "dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.02,
                "decoder_layerdrop": 0.0, "encoder_layerdrop": 0.0, "begin_suppress_tokens": [3], "suppress_tokens": None,
                "forced_decoder_ids": [[1, 2]], "max_length": 16}
    r = Weights(25)
    for name, inputs in ("conv1", 6), ("conv2", hidden):
        r.layer("model.encoder." + name, hidden, 3 * inputs)
        r.tensors[f"model.encoder.{name}.weight"] = r.tensors[f"model.encoder.{name}.weight"].reshape(hidden, inputs, 3)
    r.matrix("model.encoder.embed_positions.weight", 11, hidden, 1.44)
    r.blocks("model.encoder.", WHISPER, blocks, hidden, inner, k_bias=False)
    r.norm("model.encoder.layer_norm", hidden)
    r.matrix("model.decoder.embed_tokens.weight", VOCABULARY, hidden)
    r.matrix("model.decoder.embed_positions.weight", 16, hidden)
    r.blocks("model.decoder.", WHISPER, 1, hidden, inner, k_bias=False)
    r.norm("model.decoder.layer_norm", hidden)
    write_dense(root, "whisper", config15, r.tensors, (6, 22), lambda t, x: whisper(config15, t, x, "model.encoder."))


if __name__ == "__main__":
    main()
