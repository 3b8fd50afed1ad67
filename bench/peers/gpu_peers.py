#!/usr/bin/env python3
"""xsr beside PyTorch on one GPU: the same weights and token ids, passes over a corpus by turns.

    bench/peers/gpu_peers.py --build build/cuda --json gpu-peers.json

Takes the Python it is run with, which needs PyTorch and NumPy: a GPU machine may have no network. README.md explains.
"""

import argparse
import datetime
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

try:
    import numpy as np
except ImportError:
    sys.exit("gpu_peers: this Python has no NumPy; install torch and numpy, or run another Python")
from peer_engines import Weights, Xsr, pack, pad, torch_encoder
from peer_files import LEAST_COSINE, ROOT, reason

DTYPES = ("f32", "bf16")


class Torch:
    """A module of PyTorch's, with its batches on the device beforehand."""

    def __init__(self, torch, module, device, sentences, order, batch, arrange):
        self.torch, self.module, self.device = torch, module, device
        self.rows = [order[i : i + batch] for i in range(0, len(order), batch)]
        self.batches = [
            [
                torch.from_numpy(part).to(device) if isinstance(part, np.ndarray) else part
                for part in arrange([sentences[i] for i in rows])
            ]
            for rows in self.rows
        ]

    def synchronize(self):
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)

    def run(self):
        """Seconds of a pass whose vectors stay on the device, and the vectors."""
        with self.torch.inference_mode():
            self.synchronize()
            start = time.perf_counter()
            out = [self.module(*batch) for batch in self.batches]
            self.synchronize()
            return time.perf_counter() - start, out

    def embeddings(self, count, dim):
        out = np.empty((count, dim), np.float32)
        for rows, vectors in zip(self.rows, self.run()[1]):
            out[rows] = vectors.float().cpu().numpy()
        return out


def log_normal_sentences(weights, count, seed=1):
    """Random ids; lengths as xsr-bench draws them: log-normal, mean 24.9, at most 195."""
    random = np.random.default_rng(seed)
    lengths = np.exp(random.normal(np.log(24.9) - 0.5 * 0.7**2, 0.7, count)).round().astype(int)
    lengths = np.clip(lengths, 1, min(weights.max_tokens, 195))
    return [random.integers(3, weights.vocab_size, n, dtype=np.int32) for n in lengths]


def least_cosine(a, b):
    return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def bench_xsr(args, dtype, ids_file, folder):
    """tokens/s of xsr-bench on the ids, resident on a device, and its whole report."""
    to = folder / "xsr.json"
    command = [args.build / "bench/xsr-bench", "--model", args.model, "--corpus-ids", ids_file, "--dtype", dtype]
    command += ["--device", args.device, "--threads", "0", "--tokens", "1", "--seconds", "0.001", "--yardstick", "none"]
    if subprocess.run([*map(str, command), "--json", str(to)], stdout=subprocess.DEVNULL).returncode != 0:
        sys.exit(f"gpu_peers: xsr-bench --dtype {dtype} failed (its message stands above)")
    report = json.loads(to.read_text())
    key = "resident_tokens_per_s" if args.device == "cuda" else "tokens_per_s"
    if key not in report["corpus"]:
        sys.exit("gpu_peers: xsr-bench did not get through the corpus in its time; give fewer --sentences")
    return report["corpus"][key], report


def engines_of(rates, about):
    """Of each form the medians of its rounds: its rate, and that of xsr in its type over it."""
    engines = {}
    for form, sample in rates.items():
        own = rates["xsr-" + form.rsplit("-", 1)[1]]
        engines[form] = {
            "tokens_per_s": statistics.median(sample),
            "xsr_over_it": statistics.median(xsr / rate for xsr, rate in zip(own, sample)),
            "rounds": sample,
            **about.get(form, {}),
        }
    return engines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/cuda", help="build folder of xsr")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/xsr-multi.xsr")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try the script itself")
    parser.add_argument("--sentences", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5, help="passes of each that count")
    parser.add_argument("--batches", default="128,1024", help="sentences of a batch; each form takes its best")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("gpu_peers: this Python has no PyTorch; install torch and numpy, or run another Python")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_peers: PyTorch sees no CUDA device here")
    device = torch.device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    # Beyond its limit of recompilations a form would go on uncompiled, and say nothing.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    weights = Weights(args.model)
    sentences = log_normal_sentences(weights, args.sentences)
    tokens = sum(map(len, sentences))
    checked = sentences[:256]
    report = {
        "device": "unknown",
        "xsr": {},
        "torch": torch.__version__,
        "date": str(datetime.date.today()),
        "sentences": len(sentences),
        "tokens": tokens,
        "left_out": {},
        "engines": {},
    }

    def save():
        if args.json:
            args.json.write_text(json.dumps(report, indent=2) + "\n")

    def leave_out(form, error):
        report["left_out"][form] = reason(error)
        print(f"gpu_peers: {form} is left out: {reason(error)}", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="gpu_peers.") as folder:
        folder = pathlib.Path(folder)
        ids_file = folder / "ids"
        ids_file.write_text("".join(" ".join(map(str, s.tolist())) + "\n" for s in sentences))
        # Not counted, and before PyTorch compiles for minutes: what xsr cannot do is told at once.
        for dtype in DTYPES:
            found = bench_xsr(args, dtype, ids_file, folder)[1]
            report["device"], report["xsr"] = found["device"], found["build"]
        truth = Xsr(weights, folder, 0, 1, "f32", args.build).corpus(checked, 0)
        by_length = np.argsort([-len(s) for s in sentences], kind="stable")
        as_they_come = np.arange(len(sentences))
        ways = {
            "padded-eager": (as_they_come, pad),
            "sorted-compiled": (by_length, pad),
            "packed-compiled": (as_they_come, pack),
        }
        forms, about = {}, {}
        for dtype in DTYPES:
            for name, (order, arrange) in ways.items():
                form = f"{name}-{dtype}"
                try:
                    # One for all batch sizes: what they compile to is the same.
                    module = torch_encoder(weights, packed=arrange is pack).to(device)
                    module = module.bfloat16() if dtype == "bf16" else module
                    module = torch.compile(module, dynamic=True) if name.endswith("compiled") else module
                    few = order[order < len(checked)]
                    found = Torch(torch, module, device, sentences, few, 64, arrange).embeddings(len(checked), weights.dim)
                    cosine = least_cosine(found, truth)
                    if not cosine >= LEAST_COSINE[dtype]:
                        raise RuntimeError(f"a sentence has a cosine of {cosine:.6f} to xsr's")
                    made = {
                        batch: Torch(torch, module, device, sentences, order, batch, arrange)
                        for batch in map(int, args.batches.split(","))
                    }
                    for engine in made.values():
                        engine.run()
                    best = min(made, key=lambda batch: made[batch].run()[0])
                    forms[form], about[form] = made[best], {"batch": best, "least_cosine": cosine}
                except Exception as error:  # whatever a form dies of, the others go on
                    leave_out(form, error)
        rates = {name: [] for name in [*(f"xsr-{dtype}" for dtype in DTYPES), *forms]}
        for _ in range(args.rounds):
            for dtype in DTYPES:
                rates[f"xsr-{dtype}"].append(bench_xsr(args, dtype, ids_file, folder)[0])
            for form, engine in list(forms.items()):
                try:
                    rates[form].append(tokens / engine.run()[0])
                except Exception as error:
                    leave_out(form, error)
                    del forms[form], rates[form]
            report["engines"] = engines_of(rates, about)
            save()
    for form, engine in report["engines"].items():
        rate, ratio = engine["tokens_per_s"], engine["xsr_over_it"]
        print(f"{form:24} {rate:14,.0f} tokens/s   xsr {ratio:6.2f} times it")
    if not forms:
        sys.exit("gpu_peers: no form of PyTorch ran")


if __name__ == "__main__":
    main()
