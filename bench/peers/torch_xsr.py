"""XSR's training in PyTorch, two ways: as the released trainer works (padded), and as well as PyTorch goes (tuned).

The recipe is Mao et al. 2021: a post-norm encoder shared by both sides, mean pooling, UGT + 2 ALIGN + 2 SIM, Adam with
AMSGrad and L2 in the gradient. Parameters have the names of xsr-train's checkpoints.

Shapes: B pairs, T longest sentence, C hidden size, V vocabulary.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

LOSSES = ("ugt", "align", "sim")


class Batch:
    """One batch of a trace: ragged ids of both sides, and what is masked (side -1: nothing)."""

    def __init__(self, sentences, masked_id, masked_side):
        self.sentences = sentences  # B arrays of side 1, then B of side 2
        self.masked_id, self.masked_side = masked_id, masked_side
        self.pairs = len(masked_id)

    @property
    def tokens(self):
        return sum(map(len, self.sentences))


def pad(sentences):
    """-> ids [B, T], 0 where there is no token, and lengths [B]."""
    lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
    ids = np.zeros((len(sentences), lengths.max()), np.int64)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(sentences)
    return torch.from_numpy(ids), torch.from_numpy(lengths)


def bags(batch):
    """UGT's target as released, sparse: of each of the 2B sentences its (ids, masses)."""
    B, out = batch.pairs, []
    for side in (0, 1):
        for b in range(B):
            other = batch.sentences[(1 - side) * B + b]
            hidden = batch.masked_side[b] == side and batch.masked_id[b] >= 0
            ids = np.unique(other)
            masses = np.full(len(ids), (0.5 if hidden else 1.0) / len(other))
            if hidden and batch.masked_id[b] not in ids:  # a word that the other side has keeps its spread mass
                ids, masses = np.append(ids, batch.masked_id[b]), np.append(masses, 0.5)
            out.append((ids, masses))
    return out


class Encoder(torch.nn.Module):
    """ids [B, T] and lengths [B] -> u [B, C]; the generative head: u -> logits [B, V]."""

    def __init__(self, parameters, num_layers, num_heads, eps, dropout, position_offset, fused_attention):
        super().__init__()
        self.num_layers, self.num_heads, self.eps = num_layers, num_heads, eps
        self.dropout, self.position_offset, self.fused_attention = dropout, position_offset, fused_attention
        self.names = list(parameters)
        self.values = torch.nn.ParameterList(parameters.values())
        self.index = {name: i for i, name in enumerate(self.names)}

    def p(self, name):
        return self.values[self.index[name]]

    def drop(self, x):
        return F.dropout(x, self.dropout, self.training) if self.dropout > 0 else x

    def norm(self, x, name, weight="weight", bias="bias"):
        return F.layer_norm(x, x.shape[-1:], self.p(f"{name}.{weight}"), self.p(f"{name}.{bias}"), self.eps)

    def linear(self, x, name):
        return F.linear(x, self.p(name + ".weight"), self.p(name + ".bias"))

    def attend(self, q, k, v, mask):
        rate = self.dropout if self.training else 0.0
        if self.fused_attention:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return self.drop(scores.masked_fill(~mask, float("-inf")).softmax(-1)) @ v

    def forward(self, ids, lengths):
        B, T = ids.shape
        real = torch.arange(T, device=ids.device)[None, :] < lengths[:, None]
        x = F.embedding(ids, self.p("embedding.token"))
        x = x + self.p("embedding.position")[self.position_offset : self.position_offset + T]
        x = self.drop(self.norm(x, "embedding.norm"))
        for i in range(self.num_layers):
            at = f"layer.{i}."
            qkv = self.linear(x, at + "qkv").view(B, T, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            context = self.attend(*qkv, real[:, None, None, :]).transpose(1, 2).reshape(B, T, -1)
            x = self.norm(self.drop(self.linear(context, at + "attention_output")) + x, at + "attention_norm")
            h = F.silu(self.linear(x, at + "up"))
            x = self.norm(self.drop(self.linear(h, at + "down")) + x, at + "output_norm")
        wide = self.p("embedding.token").dtype
        return (x * real[..., None]).sum(1, dtype=wide) / lengths[:, None]

    def logits(self, u):
        t = self.norm(F.silu(self.linear(u, "head.transform")), "head.norm", "gamma", "beta")
        return F.linear(t, self.p("embedding.token"), self.p("head.output.bias"))


def pad_bags(bag, dtype):
    """-> ids [2B, K], masses [2B, K] (0 where there is none), and the constant sum of p log p over all."""
    width = max(len(ids) for ids, _ in bag)
    ids, masses = np.zeros((len(bag), width), np.int64), np.zeros((len(bag), width))
    for b, (i, m) in enumerate(bag):
        ids[b, : len(i)], masses[b, : len(m)] = i, m
    entropy = float(sum((m * np.log(m)).sum() for _, m in bag))
    return torch.from_numpy(ids), torch.from_numpy(masses).to(dtype), entropy


def dense_target(ids, masses, V):
    """The labels [B, V] that pad_bags has [B, K] of."""
    return torch.zeros(len(ids), V, dtype=masses.dtype, device=masses.device).scatter_add_(1, ids, masses)


def sparse_kl(logits, ids, masses):
    """sum p (log p - log q), but for the sum of p log p: mass * lse(z) - sum p z."""
    z = logits.gather(1, ids).to(masses.dtype)
    return (masses.sum(1) * torch.logsumexp(logits.to(masses.dtype), 1)).sum() - (masses * z).sum()


def align(u1, u2):
    S, diagonal = u1 @ u2.T, torch.arange(len(u1), device=u1.device)
    return F.cross_entropy(S, diagonal) + F.cross_entropy(S.T, diagonal)


def sim(u1, u2, min_cosine):
    d = (u1 @ u1.T).softmax(-1) - (u2 @ u2.T).softmax(-1)
    return -torch.log(torch.cos(d * (math.pi / 2)).clamp(min=min_cosine)).sum()


class Peer:
    """A model in training on a device. weights: those of LOSSES; clip: largest norm of the gradient, 0 = any."""

    def __init__(
        self,
        parameters,
        model,
        weights,
        min_cosine,
        clip,
        optimizer,
        dropout,
        tuned,
        bf16=False,
        compiled=False,
        device="cpu",
    ):
        self.tuned, self.bf16, self.weights, self.min_cosine, self.clip = tuned, bf16, weights, min_cosine, clip
        self.device = torch.device(device)
        parameters = {n: torch.nn.Parameter(torch.tensor(v, device=self.device)) for n, v in parameters.items()}
        self.dtype = next(iter(parameters.values())).dtype
        self.encoder = Encoder(
            parameters,
            model["num_layers"],
            model["num_heads"],
            model["layer_norm_eps"],
            dropout,
            model["position_offset"],
            fused_attention=tuned,
        )
        self.optimizer = torch.optim.Adam(
            self.encoder.parameters(),
            betas=(optimizer["beta1"], optimizer["beta2"]),
            eps=optimizer["eps"],
            weight_decay=optimizer["weight_decay"],
            amsgrad=optimizer["amsgrad"],
            fused=tuned or None,
        )
        compile_it = (lambda f: torch.compile(f, dynamic=True)) if compiled else (lambda f: f)
        self.forward_tuned = compile_it(self._tuned)

    def prepare(self, batch):
        """What a step reads of a batch, on the device: padded sentences, of each side or of both at once, and the
        targets as pad_bags gives them."""
        B = batch.pairs
        sides = [batch.sentences] if self.tuned else [batch.sentences[:B], batch.sentences[B:]]
        padded = [[tensor.to(self.device) for tensor in pad(side)] for side in sides]
        ids, masses, entropy = pad_bags(bags(batch), self.dtype)
        return B, padded, ids.to(self.device), masses.to(self.device), entropy

    def _padded(self, padded, ids, masses):
        """Each side by itself, labels for the whole vocabulary."""
        u, ugt = [], 0
        for side, own_ids, own_masses in zip(padded, ids.chunk(2), masses.chunk(2)):
            u.append(self.encoder(*side))
            logits = self.encoder.logits(u[-1])
            target = dense_target(own_ids, own_masses, logits.shape[1])
            ugt = ugt + F.kl_div(F.log_softmax(logits, -1), target, reduction="batchmean")
        return ugt, align(*u), sim(*u, self.min_cosine)

    def _tuned(self, ids, lengths, bag_ids, bag_masses):
        u = self.encoder(ids, lengths)
        ugt = sparse_kl(self.encoder.logits(u), bag_ids, bag_masses)
        # Their products saturate in bf16.
        with torch.autocast(self.device.type, enabled=False):
            u1, u2 = u.to(self.dtype).chunk(2)
            return ugt, align(u1, u2), sim(u1, u2, self.min_cosine)

    def losses(self, prepared):
        """The parts in the order of LOSSES, unweighted."""
        pairs, padded, ids, masses, entropy = prepared
        if not self.tuned:
            return self._padded(padded, ids, masses)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            ugt, *others = self.forward_tuned(*padded[0], ids, masses)
        return ((ugt + entropy) / pairs, *others)

    def backward(self, prepared):
        """-> the parts; gradients are in the parameters."""
        self.encoder.train()
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.losses(prepared)
        sum(w * part for w, part in zip(self.weights, parts)).backward()
        return [part.detach() for part in parts]

    def step(self, prepared, learning_rate):
        """-> (total, parts, norm of the gradient before clipping), of which nobody has waited for the device."""
        parts = self.backward(prepared)
        norm = torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), self.clip if self.clip > 0 else math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        return sum(w * p for w, p in zip(self.weights, parts)), parts, norm

    @torch.no_grad()
    def embed(self, sentences, block=256):
        """[n, C], without dropout, in f32 (or the parameters' type); sorted by length to pad little."""
        self.encoder.eval()
        order = np.argsort([len(s) for s in sentences], kind="stable")
        out = torch.empty(len(sentences), self.encoder.p("embedding.token").shape[1], dtype=self.dtype)
        out = out.to(self.device)
        for first in range(0, len(order), block):
            rows = order[first : first + block]
            padded = (tensor.to(self.device) for tensor in pad([sentences[r] for r in rows]))
            out[torch.from_numpy(rows).to(self.device)] = self.encoder(*padded).to(self.dtype)
        return out

    def gradients(self):
        return {n: v.grad for n, v in zip(self.encoder.names, self.encoder.values)}

    def parameters(self):
        return {n: v.detach() for n, v in zip(self.encoder.names, self.encoder.values)}


def retrieval(u1, u2):
    """P@1 by cosine in double, both ways; of equals the lower index."""
    u1, u2 = (F.normalize(u.double(), dim=-1, eps=1e-300) for u in (u1, u2))
    S, here = u1 @ u2.T, torch.arange(len(u1), device=u1.device)
    return [float((s.argmax(1) == here).double().mean()) for s in (S, S.T)]
