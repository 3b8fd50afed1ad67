#!/usr/bin/env python3
"""xsr-train against a second implementation: random small runs, every step computed again in double by PyTorch.

    tests/oracle/train_oracle.py --texts PAIRS.tsv OTHER-PAIRS.tsv --configs 300 --seed 1

The encoder, objectives, optimiser and schedules are written from the papers (docs/methods.md names them), the order of pairs,
masks and dropout from docs/methods.md and docs/decisions/0011, the choice of held-out pairs from training/data/held_out.h; nothing is
shared with the C++ but names of keys and files, and XXH3.
A configuration is trained twice by xsr-train: once as drawn, and once with the weights of every step kept, from which each
step is computed again: losses, gradient norm, rate, moments, weights, dev scores. The drawn run has to agree with the second
bit for bit. Allowed is a multiple of what PyTorch's own f32 is off; of some 500 configurations three or four, whose settings let the
weights explode, differ by more. Run by hand. Needs torch and sentencepiece (those of .venv/peers do), and libxxhash.
"""

import argparse
import copy
import ctypes
import ctypes.util
import json
import math
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unicodedata

try:
    import numpy as np
    import sentencepiece as spm
    import torch
    import torch.nn.functional as F

    xxhash = ctypes.CDLL(ctypes.util.find_library("xxhash") or "libxxhash.so.0")
except (ImportError, OSError) as error:
    print(f"train_oracle: skipped: {error}", file=sys.stderr)
    sys.exit(77)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench/peers"))
sys.dont_write_bytecode = True
from peer_files import read_safetensors, write_safetensors, xsr_tensors

MASK = "<MASK>"
ACTIVATIONS = {
    "none": lambda x: x,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}


# ---- random numbers and the order of pairs ----


def philox(seed, c0, c1, c2, c3):
    """Philox-4x32-10; counters are arrays of one shape. [4, ...]"""
    c = [np.asarray(x, np.uint64) & 0xFFFFFFFF for x in np.broadcast_arrays(c0, c1, c2, c3)]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> shift) ^ c[1] ^ np.uint64(k0), p1 & low, (p0 >> shift) ^ c[3] ^ np.uint64(k1), p0 & low]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c)


def words64(seed, a, b, c):
    w = philox(seed, a & 0xFFFFFFFF, a >> 32, b, c)
    return int(w[1]) << 32 | int(w[0])


def shuffled(key, n):
    """Where each of [0, n) goes: a Feistel network of eight rounds with cycle walking."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    at, going = np.arange(n, dtype=np.uint64), np.arange(n)
    while going.size:
        left, right = at[going] >> np.uint64(half), at[going] & mask
        for r in range(8):
            w = philox(key, right, 0, r, 0)
            left, right = right, left ^ ((w[1] << np.uint64(32) | w[0]) & mask)
        at[going] = left << np.uint64(half) | right
        going = going[at[going] >= n]
    return at.astype(int)


def first_batch(k, lengths):
    """How many things of these lengths in tokens are a batch."""
    many = min(len(lengths), k["data.batch_pairs"])
    if k["data.batch_tokens"]:
        while many > 1 and sum(lengths[:many]) > k["data.batch_tokens"]:
            many -= 1
    return many


class Order:
    """Batches of (part, pair, visits before), epoch after epoch."""

    def __init__(self, k, parts):
        self.k, self.parts = k, parts
        sizes = [len(p.train) for p in parts]
        weights = k["data.weights"] or [n ** (1 / k["data.temperature"]) for n in sizes]
        pairs = sum(n for n, w in zip(sizes, weights) if w > 0)
        plain = not k["data.weights"] and k["data.temperature"] == 1
        self.draws = [
            0 if w == 0 else n if plain else max(1, math.floor(pairs * w / sum(weights) + 0.5))
            for n, w in zip(sizes, weights)
        ]

    def epoch(self, e):
        k, seed, size, pool = self.k, self.k["seed"], self.k["data.batch_pairs"], self.k["data.pool_batches"]
        tokens = k["data.batch_tokens"]
        length = lambda d: sum(map(len, self.parts[d[0]].pairs[d[1]]))
        total = sum(self.draws)
        where, walks, draws = shuffled(words64(seed, e, 0, 1), total), {}, []
        for slot in where[: total - total % size if k["data.drop_last"] else total]:
            part = 0
            while slot >= self.draws[part]:
                slot, part = slot - self.draws[part], part + 1
            n = len(self.parts[part].train)
            visit, place = divmod(e * self.draws[part] + int(slot), n)
            if (part, visit) not in walks:
                walks[part, visit] = shuffled(words64(seed, visit, part, 2), n)
            draws.append((part, self.parts[part].train[walks[part, visit][place]], visit))
        batches, pool_pairs = [], size * pool
        if tokens:
            everything = [length((p, i)) for p, part in enumerate(self.parts) for i in range(len(part.pairs))]
            pool_pairs = max(1, min(size, tokens * len(everything) // sum(everything))) * max(16, pool)
        for p, first in enumerate(range(0, len(draws), pool_pairs)):
            some, cut = draws[first : first + pool_pairs], []
            if pool > 1:
                some.sort(key=length)
            while some:
                many = first_batch(k, [length(d) for d in some])
                cut, some = cut + [some[:many]], some[many:]
            if tokens and len(cut) > 1:  # the last two share evenly, where that fits
                both = cut[-2] + cut[-1]
                half = both[(len(both) + 1) // 2 :]
                if len(half) > len(cut[-1]) and sum(map(length, half)) <= tokens:
                    cut[-2:] = [both[: len(both) - len(half)], half]
            order = shuffled(words64(seed, e, p, 3), len(cut)) if pool > 1 else range(len(cut))
            batches += [cut[i] for i in order]
        return batches


# ---- text ----


class Tokenizer:
    def __init__(self, path):
        self.path, self.sp = path, spm.SentencePieceProcessor(model_file=str(path))
        self.size, self.pad = self.sp.vocab_size(), self.sp.pad_id()
        self.mask = self.sp.piece_to_id(MASK) if MASK in (self.sp.id_to_piece(i) for i in range(self.size)) else -1

    def maskable(self, i):
        def separates(c):
            return unicodedata.category(c)[0] in "PZ" or c == "▁" or (ord(c) < 256 and unicodedata.category(c)[0] == "S")

        if i in (self.mask, self.pad) or self.sp.is_control(i) or self.sp.is_unused(i):
            return False
        return self.sp.is_unknown(i) or not all(map(separates, self.sp.id_to_piece(i)))

    def encode(self, text, k):
        return self.sp.encode(text.lower() if k["model.lowercase"] else text)[: k["model.max_seq_len"]]


def xxh3(data, seed=0):
    xxhash.XXH3_64bits_withSeed.restype = ctypes.c_uint64
    return xxhash.XXH3_64bits_withSeed(data, ctypes.c_size_t(len(data)), ctypes.c_uint64(seed))


class Part:
    """A language pair: its pairs of token ids, their numbers in the corpus, and the places of those that are trained on."""

    def __init__(self, k, tokenizer, path, first_pair):
        self.pairs, self.first_pair, c = [], first_pair, k["data.columns"]
        for line in path.read_text().split("\n")[:-1]:
            columns = [x.strip() for x in line.split("\t")]
            sides = [tokenizer.encode(columns[i - 1], {**k, "model.max_seq_len": 10**9}) for i in c]
            cut = [s[: k["model.max_seq_len"]] for s in sides]
            (short, long), ratio, most = sorted(map(len, cut)), k["data.max_ratio"], k["data.max_tokens"]
            if short < k["data.min_tokens"] or (most and max(map(len, sides)) > most) or (ratio and long > ratio * short):
                continue
            self.pairs.append(cut)
        self.numbers = range(first_pair, first_pair + len(self.pairs))

    def held_out(self, k):
        """The pairs for dev: of the distinct sentences of side 1 the first by a hash, where side 2 is new too."""
        rank = lambda ids: xxh3(struct.pack("<Q", xxh3(np.array(ids, "<u2").tobytes())), k["seed"])
        first, chosen, wanted = {}, {}, min(k["data.dev_pairs"], len(self.pairs) // 2)
        for i, (side1, _) in enumerate(self.pairs):
            first.setdefault(tuple(side1), i)
        for side1 in sorted(first, key=rank)[: 2 * wanted]:
            if len(chosen) < wanted:
                chosen.setdefault(tuple(self.pairs[first[side1]][1]), first[side1])
        part, places = copy.copy(self), sorted(chosen.values())
        part.pairs, part.numbers = [self.pairs[i] for i in places], [self.numbers[i] for i in places]
        return part


class Batch:
    """Sentences [2B] of ids as the encoder reads them; masked: per pair (side, id) or None."""

    def __init__(self, k, tokenizer, draws):
        self.pairs, self.masked, self.clean = len(draws), [], [[list(ids) for ids in pair] for _, pair, _ in draws]
        self.sides = [[list(ids) for ids in pair] for _, pair, _ in draws]
        for sides, (number, _, visit) in zip(self.sides, draws):
            self.masked.append(None)
            w = philox(k["seed"], number, 0, visit, 0)
            chosen = int(w[0]) >> 31
            for side in (chosen, 1 - chosen) if k["objective.mask"] else ():
                places = [i for i, t in enumerate(sides[side]) if tokenizer.maskable(t)]
                if places:
                    at = places[len(places) * int(w[1]) >> 32]
                    self.masked[-1] = side, sides[side][at]
                    sides[side][at] = tokenizer.mask
                    break
        self.sentences = [s[0] for s in self.sides] + [s[1] for s in self.sides]


# ---- the model ----


def dropout(k, x, rows, columns, step, stream):
    """rows, columns: integer arrays that broadcast to x's shape."""
    if k["model.dropout"] == 0 or step is None:
        return x
    w = philox(k["seed"], columns // 4, rows, stream, step)
    word = np.take_along_axis(w, np.broadcast_to(columns % 4, w.shape[1:])[None], 0)[0]
    keep = torch.from_numpy(word >= math.floor(k["model.dropout"] * 2**32))
    return torch.where(keep, x / (1 - k["model.dropout"]), torch.zeros_like(x))


def encode(k, w, sentences, pad, step=None):
    """[S, C]; step: that whose dropout there is, or None."""
    C, H, eps = k["model.hidden_size"], k["model.num_heads"], k["model.layer_norm_eps"]
    S, T = len(sentences), max(map(len, sentences))
    lengths = np.array([len(s) for s in sentences])
    ids = torch.tensor([s + [0] * (T - len(s)) for s in sentences])
    real = torch.tensor(np.arange(T) < lengths[:, None])
    rows = (np.cumsum(lengths) - lengths)[:, None] + np.arange(T)  # packed; beyond a sentence's end unused
    norm = lambda x, name: F.layer_norm(x, (C,), w[name + ".weight"], w[name + ".bias"], eps)
    linear = lambda x, name: F.linear(x, w[name + ".weight"], w[name + ".bias"])
    drop = lambda x, stream: dropout(k, x, rows[..., None], np.arange(C), step, stream)
    x = F.embedding(ids, w["embedding.token"], pad if pad >= 0 else None) + w["embedding.position"][1 : T + 1]
    x = drop(norm(x, "embedding.norm"), 0)
    for i in range(k["model.num_layers"]):
        at, stream = f"layer.{i}.", 1 + i * (H + 2)
        q, key, v = linear(x, at + "qkv").view(S, T, 3, H, C // H).permute(2, 0, 3, 1, 4)
        scores = (q @ key.transpose(-1, -2) / math.sqrt(C // H)).masked_fill(~real[:, None, None], -math.inf)
        heads = stream + np.arange(H)[:, None, None]
        p = dropout(k, scores.softmax(-1), rows[:, None, :, None], np.arange(T), step, heads)
        context = (p @ v).transpose(1, 2).reshape(S, T, C)
        x = norm(x + drop(linear(context, at + "attention_output"), stream + H), at + "attention_norm")
        hidden = ACTIVATIONS[k["model.activation"]](linear(x, at + "up"))
        x = norm(x + drop(linear(hidden, at + "down"), stream + H + 1), at + "output_norm")
    if k["model.pooling"] == "cls":
        return x[:, 0]
    if k["model.pooling"] == "max":
        return x.masked_fill(~real[..., None], -math.inf).amax(1)
    return (x * real[..., None]).sum(1) / torch.tensor(lengths)[:, None]


def spread(ids, count_weighted):
    """An XTR target: {id: mass} of a side's ids."""
    return {v: (ids.count(v) if count_weighted else 1) / len(ids) for v in set(ids)}


def target(k, kind, batch, vocab):
    p = torch.zeros(2 * batch.pairs, vocab, dtype=torch.float64)
    for b in range(batch.pairs):
        for side in (0, 1):
            other = (batch.clean if k["objective.clean_ids"] else batch.sides)[b][1 - side]
            mine = batch.masked[b] if batch.masked[b] and batch.masked[b][0] == side else None
            bag = {} if kind == "smlm" else spread(other, k["objective.count_weighted"])
            if kind == "ugt" and mine:
                bag = {v: m / 2 for v, m in bag.items()}
                bag[mine[1]] = bag.get(mine[1], 0) + 0.5 if k["objective.add_masses"] else bag.get(mine[1], 0.5)
            if kind == "smlm" and mine:
                bag = {mine[1]: 1.0}
            for v, m in bag.items():
                p[b + side * batch.pairs, v] = m
    return p


def contrastive(k, name, a, b):
    cosine, mean = k[f"objective.{name}_cosine"], k[f"objective.{name}_mean"]
    s = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T if cosine else a @ b.T
    s = (s - k[f"objective.{name}_margin"] * torch.eye(len(a))) / k[f"objective.{name}_temperature"]
    diagonal = torch.arange(len(a))
    return (F.cross_entropy(s, diagonal) + F.cross_entropy(s.T, diagonal)) / (2 if mean else 1)


def sim(k, a, b):
    x = k["objective.sim_argument"] * ((a @ a.T).softmax(1).double() - (b @ b.T).softmax(1).double())
    cos, least = x.cos(), k["objective.sim_min_cosine"]
    cos = torch.where(cos < least, torch.full_like(cos, least), cos) if least else cos
    return -cos.log().sum() / (max(1, len(a) - 1) ** 2 if k["objective.sim_divide"] else 1)


def losses(k, w, batch, tokenizer, step=None):
    """{name: loss} of the objectives whose weight is not 0, total among them."""
    u = encode(k, w, batch.sentences, tokenizer.pad, step)
    u1, u2, out = u[: batch.pairs], u[batch.pairs :], {}
    weights = {n: k[f"objective.{n}_weight"] for n in ("xtr", "ugt", "smlm", "align", "sim", "info_nce")}
    for name in (n for n in ("xtr", "ugt", "smlm") if weights[n] > 0):
        t = F.silu(F.linear(u, w["head.transform.weight"], w["head.transform.bias"]))
        t = F.layer_norm(t, t.shape[1:], w["head.norm.gamma"], w["head.norm.beta"], k["model.layer_norm_eps"])
        log_q = F.linear(t, w["embedding.token"], w["head.output.bias"]).log_softmax(1)
        p = target(k, name, batch, tokenizer.size).to(u.dtype)
        out[name] = (torch.special.xlogy(p, p) - p * log_q).sum() / batch.pairs
    for name in (n for n in ("align", "sim", "info_nce") if weights[n] > 0):
        out[name] = sim(k, u1, u2) if name == "sim" else contrastive(k, name, u1, u2)
    out["total"] = sum(weights[n] * loss for n, loss in out.items())
    return out


class Adam:
    def __init__(self, k):
        self.k, self.t, self.m, self.v, self.top, self.gain = k, 0, {}, {}, {}, {}

    def step(self, w, g, rate):
        """The new weights, in double, and the norm."""
        o = {n.removeprefix("optimizer."): v for n, v in self.k.items() if n.startswith("optimizer.")}
        norm = math.sqrt(sum(float((x.double() ** 2).sum()) for x in g.values()))
        scale = min(1.0, o["clip_norm"] / (norm + 1e-6)) if o["clip_norm"] > 0 else 1.0
        self.t += 1
        new, decay, (b1, b2) = {}, o["weight_decay"], (o["beta1"], o["beta2"])
        for n, x in w.items():
            x, d = x.double(), g[n].double() * scale
            if decay and not o["decoupled_decay"]:
                d = d + decay * x
            self.m[n] = b1 * self.m.get(n, 0) + (1 - b1) * d
            self.v[n] = b2 * self.v.get(n, 0) + (1 - b2) * d * d
            v = self.v[n]
            if o["amsgrad"]:
                v = self.top[n] = torch.maximum(self.top.get(n, torch.zeros_like(v)), v)
            denominator = (v / (1 - b2**self.t)).sqrt() + o["eps"]
            self.gain[n] = scale * rate / (1 - b1**self.t) / denominator
            x = x * (1 - rate * decay) if o["decoupled_decay"] else x
            new[n] = x - rate * self.m[n] / (1 - b1**self.t) / denominator
        return new, norm


def learning_rate(k, t, epoch, steps):
    s = {n.removeprefix("schedule."): v for n, v in k.items() if n.startswith("schedule.")}
    rate = s["learning_rate"]
    if s["warmup"] == "linear":
        rate *= min(1, t / s["warmup_steps"])
    elif s["warmup"] == "untuned_linear":
        rate *= min(1, t / (2 / (1 - k["optimizer.beta2"])))
    if s["decay"] == "step":
        rate *= s["step_factor"] ** (sum(e <= epoch for e in s["step_epochs"]) + sum(t > u for u in s["step_updates"]))
    elif s["decay"] == "cosine":
        low = s["final_fraction"]
        rate *= low + (1 - low) / 2 * (1 + math.cos(math.pi * min(1, (t - 1) / steps)))
    return rate


def hits(a, b, ids_a, ids_b):
    """(fewest, most) hits from a to b that rounding allows; of equal sentences the first counts."""
    s, few, many = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T, 0, 0
    for i in range(len(a)):
        rivals = [j for j in range(len(b)) if j != i and ids_b[j] != ids_b[i]]
        best = max((float(s[i, j]) for j in rivals), default=-2.0)
        if ids_b.index(ids_b[i]) < i:
            continue
        few += float(s[i, i]) > best + 1e-5
        many += float(s[i, i]) > best - 1e-5
    return few, many


# ---- files ----


def read_tensors(path):
    return {name: torch.from_numpy(x.copy()) for name, x in read_safetensors(path)[0].items()}


def parameters(k, vocab):
    """Shapes by name."""
    C, I, L = k["model.hidden_size"], k["model.intermediate_size"], k["model.num_layers"]
    shapes = {"embedding.token": (vocab, C), "embedding.position": (k["model.max_seq_len"] + 1, C)}
    linear = lambda name, n, inputs: {name + ".weight": (n, inputs), name + ".bias": (n,)}
    norm = lambda name: {name + ".weight": (C,), name + ".bias": (C,)}
    shapes |= norm("embedding.norm")
    for at in (f"layer.{i}." for i in range(L)):
        shapes |= linear(at + "qkv", 3 * C, C) | linear(at + "attention_output", C, C) | norm(at + "attention_norm")
        shapes |= linear(at + "up", I, C) | linear(at + "down", C, I) | norm(at + "output_norm")
    shapes |= linear("head.transform", C, C) | {"head.norm.gamma": (C,), "head.norm.beta": (C,)}
    return shapes | {"head.output.bias": (vocab,)}


def released_names(w):
    """The same weights under the names of the authors' checkpoints."""
    out = {}
    fixed = {
        "embedding.token": "bert.embedding.word_embedding.embedding.weight",
        "embedding.position": "bert.embedding.position_embedding.position_embeddings.weight",
        "head.transform.weight": "transform.dense.weight",
        "head.transform.bias": "transform.dense.bias",
        "head.norm.gamma": "transform.LayerNorm.weight",
        "head.norm.beta": "transform.LayerNorm.bias",
        "head.output.bias": "decoder.bias",
    }
    inner = {
        "attention_output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "output_norm": "output.LayerNorm",
    }
    for name, t in w.items():
        parts = name.split(".")
        if name in fixed:
            out["model." + fixed[name]] = t
        elif parts[0] == "embedding":
            out[f"model.bert.embedding.layer_norm.{parts[2]}"] = t
        elif parts[2] == "qkv":
            for which, part in zip(("query", "key", "value"), t.chunk(3)):
                at = f"model.bert.encoder.layer.{parts[1]}.attention.self_attention."
                out[f"{at}{which}.{parts[3]}"] = part.contiguous()
        else:
            out[f"model.bert.encoder.layer.{parts[1]}.{inner[parts[2]]}.{parts[3]}"] = t
    out["model.target_embedding.weight"] = out["model.decoder.decoder.weight"] = w["embedding.token"]
    return out


def random_weights(k, vocab, r):
    g = torch.Generator().manual_seed(r.randrange(2**31))
    scale = r.choice([0.5, 1, 2])
    out = {}
    for name, shape in parameters(k, vocab).items():
        x = torch.randn(shape, generator=g)
        if "norm" in name:
            x = 0.2 * x + (name.endswith(("weight", "gamma")))
        elif len(shape) == 1:
            x = 0.3 * x
        elif not name.startswith("embedding."):
            x = x * scale / math.sqrt(shape[1])
        out[name] = x
    out["embedding.token"] *= r.choice([0.1, 1])
    return out


# ---- configurations ----


def log_uniform(r, low, high):
    return math.exp(r.uniform(math.log(low), math.log(high)))


def draw(r, k, texts, tokenizers, no_mask_tokenizer, large):
    """k: all keys at their defaults. Gives keys, tokenizer, and paths."""
    k = dict(k)
    heads = r.choice([1, 2, 3, 4, 5, 7])
    k["seed"] = r.choice([1, r.randrange(2**32), r.randrange(2**52)])
    k["model.num_layers"] = r.choice([0, 1, 2, 2, 2, 3])
    k["model.num_heads"], k["model.hidden_size"] = heads, heads * r.randint(max(1, 6 // heads), max(2, 48 // heads))
    k["model.intermediate_size"] = r.randint(3, 70)
    if large:  # beyond the blocks that the work is cut into
        k["model.hidden_size"], k["model.intermediate_size"] = heads * r.randint(64 // heads + 1, 200 // heads), r.randint(65, 300)
    if k["device"] != "cpu":  # sizes that 4 divides
        k["model.hidden_size"], k["model.intermediate_size"] = heads * 4 * r.randint(1, 3), 4 * r.randint(1, 17)
    k["model.max_seq_len"] = r.choice([40, 100, 200] if large else [5, 12, 25, 60])
    k["model.activation"] = r.choice(list(ACTIVATIONS))
    k["model.pooling"] = r.choice(["mean", "mean", "max", "cls"])
    k["model.lowercase"] = r.random() < 0.6
    k["model.layer_norm_eps"] = r.choice([1e-12, 1e-12, 1e-6, 1e-3, 0.05, 0.0])
    k["model.dropout"] = r.choice([0.0, 0.0, 0.1, 0.5])
    names = ["xtr", "ugt", "smlm", "align", "sim", "info_nce"]
    if r.random() < 0.25:
        k["objective.mask"], names = False, ["xtr", "align", "sim", "info_nce"]
    for name in ("xtr", "ugt", "smlm", "align", "sim", "info_nce"):
        k[f"objective.{name}_weight"] = 0.0
    for name in r.sample(names, r.choice([1, 1, 2, 3, len(names)])):
        k[f"objective.{name}_weight"] = r.choice([1.0, 2.0, round(log_uniform(r, 0.01, 10), 3)])
    for key in "count_weighted clean_ids add_masses align_cosine align_mean sim_divide info_nce_cosine info_nce_mean".split():
        k["objective." + key] = r.random() < 0.5
    for name in ("align", "info_nce"):
        k[f"objective.{name}_temperature"] = r.choice([1.0, 0.1, 0.05, 3.0])
        k[f"objective.{name}_margin"] = r.choice([0.0, 0.3, 2.5])
    k["objective.sim_argument"] = r.choice([math.pi / 2, math.pi, 1.0, 0.1])
    k["objective.sim_min_cosine"] = r.choice([0.0, 0.001, 0.5]) if k["objective.sim_argument"] < 3 else 0.01
    k["optimizer.amsgrad"], k["optimizer.decoupled_decay"] = r.random() < 0.5, r.random() < 0.5
    k["optimizer.beta1"], k["optimizer.beta2"] = r.choice([0.9, 0.5, 0.0]), r.choice([0.999, 0.98, 0.5, 0.0])
    k["optimizer.eps"] = r.choice([1e-8, 1e-6, 1e-3, 0.1])
    k["optimizer.weight_decay"] = r.choice([0.0, 1e-5, 0.01, 0.5])
    k["optimizer.clip_norm"] = r.choice([0.0, 1.0, 0.05, 1000.0])
    k["schedule.learning_rate"] = log_uniform(r, 1e-4, 2e-2)
    k["schedule.warmup"] = r.choice(["none", "linear", "untuned_linear"])
    k["schedule.warmup_steps"] = r.choice([1, 3, 50])
    k["schedule.decay"] = r.choice(["constant", "step", "cosine"])
    k["schedule.step_factor"] = r.choice([0.1, 0.5, 1.0])
    k["schedule.step_epochs"] = r.choice([[], [1], [0, 2], [1, 1, 3]])
    k["schedule.step_updates"] = r.choice([[], [2, 5], [0, 7]])
    k["schedule.final_fraction"] = r.choice([0.0, 0.1, 1.0])
    k["data.columns"] = r.choice([[1, 2], [2, 1], [1, 3], [3, 2]])
    k["data.batch_pairs"] = r.choice([1, 2, 5, 8, 17, 40])
    if all(k[f"objective.{n}_weight"] == 0 for n in ("xtr", "ugt", "smlm")):
        k["data.batch_pairs"] = max(2, k["data.batch_pairs"])
    if k["model.num_layers"] == 0 and k["model.pooling"] == "cls":
        k["model.pooling"] = "max"
    if large:
        k["data.batch_pairs"] = r.choice([33, 70, 130, 257])
    k["data.pool_batches"] = r.choice([1, 1, 3])
    k["data.drop_last"] = r.random() < 0.5
    if not large and r.random() < 0.3:  # at least what the longest pair has
        k["data.batch_tokens"] = (2 * k["model.max_seq_len"]) * r.choice([1, 2, 5])
        k["data.drop_last"] = False
    k["data.min_tokens"] = r.choice([1, 1, 4])
    k["data.max_tokens"] = r.choice([0, 0, k["model.max_seq_len"]])
    k["data.max_ratio"] = r.choice([0.0, 0.0, 1.5])
    k["data.temperature"] = r.choice([1.0, 1.0, 3.0])
    parts = r.choice([1, 1, 2])
    if parts == 2 and r.random() < 0.5:
        k["data.weights"] = r.choice([[1.0, 1.0], [0.2, 3.0], [0.0, 1.0]])
    k["threads"], k["isa"] = r.choice([1, 2]), r.choice(["auto", "auto", "ref"])
    k["train.steps"] = r.choice([0, r.randint(4, 16)])
    k["train.epochs"] = r.randint(1, 4)
    k["train.log_every"] = r.choice([1, 3, 50])
    k["train.eval_every"] = r.choice([0, 1, 2, 3])
    k["train.dev_dropout"] = r.random() < 0.3
    k["train.select"] = r.choice(["retrieval", "loss"])
    k["train.patience"] = r.choice([0, 0, 1, 3])
    k["train.average"] = r.choice([0, 0, 1, 3])
    k["train.dtype"] = r.choice(["f32", "f16", "bf16"])
    if large:
        k["train.steps"], k["train.eval_every"] = r.randint(2, 4), 2
    size = max(1, k["data.batch_pairs"]) * r.randint(1, 5) + r.randint(0, 3)
    lines = [r.sample(t, min(len(t), size + 20)) + t[-5:] for t in r.sample(texts, parts)]
    return k, r.choice(tokenizers if k["objective.mask"] else tokenizers + [no_mask_tokenizer]), lines


def toml(k):
    text, section = "", ""
    for key in sorted(k, key=lambda key: ("." in key, key)):
        head, _, name = key.rpartition(".")
        text += f"[{head}]\n" if head != section else ""
        section, text = head, text + f"{name} = {json.dumps(k[key])}\n"
    return text


# ---- comparing ----


class Finding(Exception):
    pass


def near(what, found, expected, noise, scale=None):
    """noise: what f32 was off elsewhere."""
    found, expected = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (found, expected))
    error = float((found - expected).norm())
    allowed = 20 * float(noise) + 2e-6 * float(expected.norm() if scale is None else scale) + 1e-30
    if not error <= allowed:
        raise Finding(f"{what}: {error:.3g} off, allowed {allowed:.3g}; found {found.flatten()[:4].tolist()}, "
                      f"expected {expected.flatten()[:4].tolist()}")


def same(what, found, expected):
    if found != expected:
        raise Finding(f"{what}: found {found}, expected {expected}")


def split(w):
    """Q, K and V apart: K's bias has no gradient but noise."""
    for name, t in w.items():
        if ".qkv." in name:
            yield from ((f"{name}[{which}]", part) for which, part in zip("qkv", t.chunk(3)))
        else:
            yield name, t


def joined(first, *others):
    return ((n, (x, *(other[n] for other in others))) for n, x in first.items())


class Oracle:
    def __init__(self, bin_folder, work, seed, device, large):
        self.bin, self.work, self.seed, self.device, self.large = bin_folder, work, seed, device, large
        self.noise = torch.Generator().manual_seed(1)
        self.train_tool = bin_folder / "training" / "xsr-train"

    def tool(self, *args):
        done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    def train(self, folder, k):
        folder.mkdir()
        given = {**k, "run": str(folder / "run"), "device": self.device}
        if given.pop("held out", False):
            given["data.dev"] = []
        if given.pop("no dev", False):
            given |= {"data.dev": [], "data.dev_pairs": 0}
        (folder / "given.toml").write_text(toml(given))
        status, _, err = self.tool(self.train_tool, "--config", folder / "given.toml", "-q")
        metrics = folder / "run" / "metrics.jsonl"
        lines = [json.loads(x) for x in metrics.read_text().splitlines()] if metrics.exists() else []
        by_kind = {kind: {m["step"]: m for m in lines if m["kind"] == kind} for kind in ("train", "dev")}
        return status, err, by_kind, folder / "run"

    def gradients(self, k, w, batch, tokenizer, step, dtype):
        w = {n: t.to(dtype, copy=True).requires_grad_() for n, t in w.items()}
        torch.set_default_dtype(dtype)
        loss = losses(k, w, batch, tokenizer, step)
        torch.set_default_dtype(torch.float32)
        loss["total"].backward()
        grads = {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in w.items()}
        return {n: float(x.detach()) for n, x in loss.items()}, {n: g.detach() for n, g in grads.items()}

    def shaken(self, k, w, batch, tokenizer, step):
        """Losses and gradients with weights that are off by about f32's rounding."""
        w = {n: x.double() * (1 + 3e-7 * torch.randn(x.shape, generator=self.noise)) for n, x in w.items()}
        return self.gradients(k, w, batch, tokenizer, step, torch.float64)

    def evaluate(self, k, w, dev, tokenizer, step, dtype):
        """(losses, vectors and ids of the sides by part)"""
        total, pairs, sides = {}, 0, {}
        torch.set_default_dtype(dtype)
        w = {n: t.to(dtype) for n, t in w.items()}
        with torch.no_grad():
            for name, part in dev:
                left = list(zip(part.numbers, part.pairs))
                while left:
                    many = first_batch(k, [sum(map(len, p)) for _, p in left])
                    some, left = left[:many], left[many:]
                    batch = Batch(k, tokenizer, [(number, p, 0) for number, p in some])
                    loss = losses(k, w, batch, tokenizer, step if k["train.dev_dropout"] else None)
                    for n, x in loss.items():
                        total[n] = total.get(n, 0) + float(x) * len(some)
                    pairs += len(some)
                ids = [[p[side] for p in part.pairs] for side in (0, 1)]
                sides[name] = [encode(k, w, side, tokenizer.pad) for side in ids], ids
        torch.set_default_dtype(torch.float32)
        return {n: x / pairs for n, x in total.items()}, sides

    def check_dev(self, what, k, w, dev, tokenizer, step, record):
        loss64, sides = self.evaluate(k, w, dev, tokenizer, step, torch.float64)
        loss32, _ = self.evaluate(k, w, dev, tokenizer, step, torch.float32)
        same(what + ": names", list(record["loss"]), ["total"] + [n for n in loss64 if n != "total"])
        for n, x in loss64.items():
            near(f"{what}: loss {n}", record["loss"][n], x, abs(loss32[n] - x), 5 * max(1, abs(x)))
        shares = []
        for name, ((a, b), (ids_a, ids_b)) in sides.items():
            for direction, (few, many) in (("forward", hits(a, b, ids_a, ids_b)), ("backward", hits(b, a, ids_b, ids_a))):
                share = record["p1"][name][direction]
                if not few <= round(share * len(a)) <= many:
                    raise Finding(f"{what}: {name} {direction} {share} of {len(a)}, expected {few} to {many}")
                same(f"{what}: share", share, round(share * len(a)) / len(a))
                shares.append(share)
        near(f"{what}: mean", record["p1"]["mean"], sum(shares) / len(shares), 0)

    def initial_weights(self, folder, k, vocab):
        """What xsr-train begins with by itself: after one step that is too small to change it."""
        tiny = {"train.steps": 1, "train.average": 1, "schedule.learning_rate": 1e-12, "optimizer.decoupled_decay": False}
        status, err, _, run = self.train(folder / "tiny", {**k, **tiny, "optimizer.eps": 1.0, "no dev": False})
        same("initial: status " + err, status, 0)
        w = {n.removeprefix("value."): x for n, x in read_tensors(run / "weights-1.safetensors").items()}
        for name, x in w.items():
            same("initial: layers are copies", float((x - w[re.sub(r"^layer\.\d+", "layer.0", name)]).norm()) < 1e-9, True)
            if name in ("embedding.token", "embedding.position"):
                bound, mean, deviation, x = math.inf, 0, 1, x[1:]
                same("initial: row 0", float(w[name][0].abs().max()) < 1e-9, True)
            elif "norm" in name or name == "head.output.bias":
                bound, mean, deviation = 1.001, name.endswith(("weight", "gamma")), 0
            else:
                bound = w[name.replace("bias", "weight")].shape[1] ** -0.5
                mean, deviation = 0, bound / math.sqrt(3)
            near(f"initial: {name}: mean", x.mean(), mean, deviation / math.sqrt(x.numel()) / 4, 1)
            near(f"initial: {name}: deviation", x.std(correction=0), deviation, deviation / math.sqrt(x.numel()) / 4, 1)
            same(f"initial: {name}: bound", float(x.abs().max()) < bound * 1.000001, True)
        return w

    def configuration(self, number, defaults, texts, tokenizers, no_mask):
        r = random.Random(f"{self.seed} {number}")
        k, tokenizer, lines = draw(r, {**defaults, "device": self.device}, texts, tokenizers, no_mask, self.large)
        folder = self.work / str(number)
        folder.mkdir()
        # Files. Some pairs of dev, or one side of them, are pairs of the training data too.
        train_parts, dev_parts, first = [], [], [0, 0]
        k["data.train"], k["data.dev"] = [], []
        for i, some in enumerate(lines):
            name = f"p{i}"
            dev_lines, train_lines = some[:20][: r.choice([1, 7, 20])], some[20:]
            if r.random() < 0.5 and len(train_lines) > 3:
                a, b = dev_lines[0].split("\t"), train_lines[0].split("\t")
                train_lines[1] = "\t".join(r.choice([a, [a[0], b[1], a[2]], [b[0], a[1], b[2]]]))
            if r.random() < 0.3:
                dev_lines += dev_lines[:2]
            for what, text in (("train", train_lines), ("dev", dev_lines)):
                text = ["\t".join(line.split("\t")[: max(k["data.columns"])]) for line in text]
                path = folder / f"{name}.{what}.tsv"
                path.write_text("".join(line + "\n" for line in text))
                k["data." + what].append(str(path))
            train_parts.append(Part(k, tokenizer, folder / f"{name}.train.tsv", first[0]))
            dev_parts.append((name, Part(k, tokenizer, folder / f"{name}.dev.tsv", first[1])))
            first = [first[0] + len(train_parts[-1].pairs), first[1] + len(dev_parts[-1][1].pairs)]
        k["held out"] = r.random() < 0.3
        if k["held out"]:
            k["data.dev_pairs"] = r.choice([1, 3, 10, 1000])
            dev_parts = [(name, part.held_out(k)) for (name, _), part in zip(dev_parts, train_parts)]
        if not all(p.pairs for p in train_parts + [p for _, p in dev_parts]):
            return "no pairs"
        seen = [{tuple(p[side]) for _, part in dev_parts for p in part.pairs} for side in (0, 1)]
        for part in train_parts:
            part.train = [i for i, p in enumerate(part.pairs) if not any(tuple(p[s]) in seen[s] for s in (0, 1))]
        if not all(p.train for p in train_parts):
            return "no pairs"
        k["no dev"] = not k["held out"] and r.random() < 0.2 and all(len(p.train) == len(p.pairs) for p in train_parts)
        if k["no dev"]:
            k["train.patience"] = k["train.average"] = 0
        order = Order(k, train_parts)
        if k["data.drop_last"] and sum(order.draws) < k["data.batch_pairs"]:
            return "less than a batch"

        k["tokenizer.model"] = str(tokenizer.path)
        if k["model.num_layers"] > 0 and r.random() < 0.8:
            w, k["model.init"] = random_weights(k, tokenizer.size, r), str(folder / "init.safetensors")
            write_safetensors(folder / "init.safetensors", {n: x.numpy() for n, x in released_names(w).items()})
        else:
            w = self.initial_weights(folder, k, tokenizer.size)
        kept = {"train.eval_every": 1, "train.average": 1000, "train.log_every": 1, "train.patience": 0, "train.dtype": "f32"}
        status, err, metrics, run = self.train(folder / "kept", {**k, **kept, "no dev": False})
        adam64, adam32 = Adam(k), Adam(k)
        batches = lambda: ((e, b) for e in range(10**6) for b in order.epoch(e))
        steps = k["train.steps"] or sum(len(order.epoch(e)) for e in range(k["train.epochs"]))
        planned = k["train.steps"] or k["train.epochs"] * len(order.epoch(0))  # by tokens, epochs may differ in their batches
        weights, epochs, pairs, off = {0: w}, {}, 0, {}
        for t, (epoch, batch) in zip(range(1, steps + 1), batches()):
            draws = [(train_parts[p].first_pair + i, train_parts[p].pairs[i], visit) for p, i, visit in batch]
            pairs, epochs[t] = pairs + len(draws), epoch
            batch = Batch(k, tokenizer, draws)
            loss64, g64 = self.gradients(k, w, batch, tokenizer, t, torch.float64)
            finite = all(map(math.isfinite, loss64.values())) and all(bool(g.isfinite().all()) for g in g64.values())
            if t not in metrics["train"]:
                if status == 1 and "is not finite" in err and not finite:
                    return "not finite"
                raise Finding(f"step {t} is missing, status {status}: {err}")
            record = metrics["train"][t]
            loss32, g32 = self.gradients(k, w, batch, tokenizer, t, torch.float32)
            shaken, shaken_g = self.shaken(k, w, batch, tokenizer, t)
            for n, x in loss64.items():
                near(f"step {t}: loss {n}", record["loss"][n], x, abs(loss32[n] - x) + abs(shaken[n] - x), 5 * max(1, abs(x)))
            rate = learning_rate(k, t, epoch, planned)
            near(f"step {t}: learning rate", record["learning_rate"], rate, 0)
            same(f"step {t}: epoch, pairs", (record["epoch"], record["pairs"]), (epoch, pairs))
            (w64, norm64), (w32, norm32) = adam64.step(w, g64, rate), adam32.step(w, g32, rate)
            noise = sum(float(((x[n] - g) ** 2).sum()) for x in (g32, shaken_g) for n, g in g64.items()) ** 0.5
            near(f"step {t}: gradient norm", record["gradient_norm"], norm64, max(noise, abs(norm32 - norm64)))
            new = {n.removeprefix("value."): x for n, x in read_tensors(run / f"weights-{t}.safetensors").items()}
            same("parameters", {n: tuple(x.shape) for n, x in new.items()}, parameters(k, tokenizer.size))
            parts = (dict(split(x)) for x in (new, w64, w32, w, g64, g32, shaken_g, adam64.gain))
            for n, (found, x, x32, before, g, other, third, gain) in joined(*parts):
                # What a gradient as far off as that in f32 may do to the update.
                more = 2e-6 * norm64 if "bias[k]" in n else 1e-6 * float(g.abs().max())
                off[n] = max(off.get(n, 0), 20 * float((other - g).abs().max() + (third - g).abs().max()) + more)
                update = (x - before).abs()
                excess = (found - x).abs() - 5e-7 * (x.abs() + update) - 3 * off[n] * gain * (1 + update / rate)
                if not float(excess.detach().max()) <= 0:
                    at = int(excess.argmax())
                    what = [float(y.flatten()[at]) for y in (found, x, x32, before, g, gain)]
                    raise Finding(f"step {t}: {n}[{at}]: found, expected, f32, before, gradient, gain {what}")
            w = weights[t] = new
            if None in metrics["dev"][t]["loss"].values():  # weights that exploded
                return "not finite"
            self.check_dev(f"dev at {t}", k, w, dev_parts, tokenizer, t, metrics["dev"][t])
        same("status and steps", (status, len(metrics["train"])), (0, steps))
        checkpoint = read_tensors(run / "checkpoint.safetensors")
        for prefix, m64, m32 in (("moment1.", adam64.m, adam32.m), ("moment2.", adam64.v, adam32.v),
                                 ("max_moment2.", adam64.top, adam32.top)):
            found = {n.removeprefix(prefix): x for n, x in checkpoint.items() if n.startswith(prefix)}
            same(prefix, set(found), set(m64))
            for n, values in joined(*(dict(split(x)) for x in (found, m64, m32))):
                x, y, y32 = (v.double() if prefix == "moment1." else v.double().sqrt() for v in values)
                near(prefix + n, x, y, (y32 - y).norm() + 1e-19, (1e9 if "bias[k]" in n else 5) * y.norm())
        self.check_drawn_run(k, folder, metrics, weights, epochs, steps, dev_parts, tokenizer)
        return "agrees"

    def check_drawn_run(self, k, folder, kept, weights, epochs, steps, dev_parts, tokenizer):
        """The run as drawn: which steps it logs, evaluates, keeps, averages; its model.xsr and that model's vectors."""
        status, err, metrics, run = self.train(folder / "drawn", k)
        same("drawn: status " + err, status, 0)
        evaluated, best, worse, last = [], None, 0, steps
        for t in range(1, steps + 1):
            due = t % k["train.eval_every"] == 0 if k["train.eval_every"] else epochs.get(t + 1, epochs[t]) != epochs[t]
            if (due or t == steps) and not k["no dev"]:
                evaluated.append(t)
                dev = kept["dev"][t]
                same(f"drawn: dev at {t}", {**metrics["dev"].get(t, {}), "time": 0}, {**dev, "time": 0})
                score = dev["p1"]["mean"] if k["train.select"] == "retrieval" else -dev["loss"]["total"]
                best, worse = ((score, t), 0) if best is None or score > best[0] else (best, worse + 1)
                if k["train.patience"] and worse >= k["train.patience"]:
                    last = t
                    break
        same("drawn: dev steps", list(metrics["dev"]), evaluated)
        logged = [t for t in range(1, last + 1) if t % k["train.log_every"] == 0 or t == last]
        same("drawn: logged steps", list(metrics["train"]), logged)
        for before, t in zip([0] + logged, logged):
            interval = [kept["train"][i] for i in range(before + 1, t + 1)]
            for n in interval[0]["loss"]:
                near(f"drawn: mean {n}", metrics["train"][t]["loss"][n], np.mean([m["loss"][n] for m in interval]), 0)
            near("drawn: norm", metrics["train"][t]["gradient_norm"], np.mean([m["gradient_norm"] for m in interval]), 0)
            same("drawn: rate", metrics["train"][t]["learning_rate"], interval[-1]["learning_rate"])
            same("drawn: epoch, pairs", [metrics["train"][t][n] for n in ("epoch", "pairs")],
                 [interval[-1][n] for n in ("epoch", "pairs")])
        of = evaluated[-k["train.average"] :] if k["train.average"] else [best[1] if best else last]
        model = {n: torch.stack([weights[t][n].double() for t in of]).mean(0).float() for n in weights[1]}
        manifest = json.loads((run / "manifest.json").read_text())
        same("steps", (manifest["steps"], manifest["stopped_early"]), (last, last < steps))
        if best:
            same("best step", manifest["best_step"], best[1])
            self.check_dev("manifest", k, model, dev_parts, tokenizer, last, manifest["dev"])
        read = list(xsr_tensors((run / "model.xsr").read_bytes()))
        tensors, dtypes = {n: torch.from_numpy(x) for n, _, x in read}, {n: dtype for n, dtype, _ in read}
        same("model.xsr", set(tensors), {n for n in model if not n.startswith("head.")})
        for n, x in tensors.items():
            same(n + ": type", dtypes[n], k["train.dtype"] if x.dim() == 2 else "f32")
            to = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtypes[n]]
            same(n + ": bits", torch.equal(x, model[n].to(to).float()), True)

        lines = [c for p in k["data.dev"] for line in pathlib.Path(p).read_text().splitlines() for c in line.split("\t")]
        lines += ["", "  ", "ÀÉ Übung ß İstanbul", "a " * 100, "x", "<MASK> word", "\U0001f600", " a  b "]
        (folder / "lines.txt").write_text("".join(line + "\n" for line in lines))
        status, _, err = self.tool(self.bin / "corpus/xsr-embed", "-m", run / "model.xsr", "-i", folder / "lines.txt",
                                   "-o", folder / "out.npy", "-q", "--threads", 1)
        same("xsr-embed: " + err, status, 0)
        found = torch.from_numpy(np.load(folder / "out.npy"))
        ids = [tokenizer.encode(line, k) for line in lines]
        some = [i for i, x in enumerate(ids) if x]
        with torch.no_grad():
            expected = torch.zeros(found.shape, dtype=torch.float64)
            expected[some] = encode(k, {n: x.double() for n, x in tensors.items()}, [ids[i] for i in some], tokenizer.pad)
            f32 = encode(k, tensors, [ids[i] for i in some], tokenizer.pad)
        near("xsr-embed", found, expected, (f32 - expected[some]).norm())
        if k["data.columns"] == [1, 2]:
            status, _, err = self.tool(self.train_tool, "score", run / "model.xsr", "d=" + k["data.dev"][0], "--json",
                                       folder / "score.json")
            same("score: " + err, status, 0)
            sides = zip(*(line.split("\t") for line in pathlib.Path(k["data.dev"][0]).read_text().split("\n")[:-1]))
            ids = [[tokenizer.encode(x.strip(), k) for x in side] for side in sides]
            a, b = (encode(k, {n: x.double() for n, x in tensors.items()}, side, tokenizer.pad) for side in ids)
            score = json.loads((folder / "score.json").read_text())[0]
            for key, (few, many) in (("p1_forward", hits(a, b, *ids)), ("p1_backward", hits(b, a, *ids[::-1]))):
                same(f"score: {key} {score}, {few} to {many}", few <= round(score[key] * len(a)) <= many, True)


def write_tokenizers(folder, times, text):
    (folder / "text.txt").write_text(text + text.lower())
    out = []
    for name, kind, size, more in (
        ("bpe", "bpe", 300, dict(pad_id=0, unk_id=1, user_defined_symbols=[MASK])),
        ("unigram", "unigram", 450, dict(pad_id=5, unk_id=0, user_defined_symbols=["<x>", MASK])),
        ("no-mask", "bpe", 220, dict(pad_id=-1, unk_id=0)),
    ):
        spm.SentencePieceTrainer.train(input=str(folder / "text.txt"), model_prefix=str(folder / name), model_type=kind,
                                       vocab_size=size * times, bos_id=-1, eos_id=-1, minloglevel=2, num_threads=1, **more)
        out.append(Tokenizer(folder / f"{name}.model"))
    return out[:-1], out[-1]


def main():
    import tomllib

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=pathlib.Path, default="build/release", help="build folder")
    parser.add_argument("--texts", type=pathlib.Path, nargs="+", required=True, help="pairs, TAB between; the first lines are read")
    parser.add_argument("--configs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="of xsr-train")
    parser.add_argument("--large", action="store_true", help="few steps of larger models")
    parser.add_argument("--only", type=int, help="one configuration; its files stay")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = pathlib.Path(tempfile.mkdtemp(prefix="train-oracle-"))
    texts = [[f"{x}\t{x.split(chr(9))[0][::-1]}" for x in p.read_text().split("\n")[: 4000 if args.large else 400] if x.count("\t") == 1] for p in args.texts]
    odd = ["HÉ, ÀÉ  \tİ Übung ß", "<MASK> a\t<MASK>", "😀 ?\t!!", "ab\t" + "cd, efg " * 30, "...\t—"]
    texts = [t + [x + "\tthird" for x in odd] for t in texts]
    tokenizers, no_mask = write_tokenizers(work, 10 if args.large else 1, "\n".join("\n".join(t) for t in texts).replace("\t", "\n"))
    oracle = Oracle(args.bin, work, args.seed, args.device, args.large)
    _, config, _ = oracle.tool(oracle.train_tool, "--print-config")
    defaults = {}
    for section, value in tomllib.loads(config).items():
        defaults |= {f"{section}.{n}": v for n, v in value.items()} if isinstance(value, dict) else {section: value}
    ends, failed = {}, 0
    for number in range(args.configs) if args.only is None else [args.only]:
        try:
            end = oracle.configuration(number, defaults, texts, tokenizers, no_mask)
        except Finding as finding:
            failed += 1
            print(f"configuration {number} of seed {args.seed}: {finding}", flush=True)
            end = "differs"
        ends[end] = ends.get(end, 0) + 1
        if args.only is None:
            shutil.rmtree(work / str(number), ignore_errors=True)
    print(", ".join(f"{n} {end}" for end, n in ends.items()), "" if args.only is None else work)
    if args.only is None:
        shutil.rmtree(work)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
