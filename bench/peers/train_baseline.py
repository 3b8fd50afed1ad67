#!/usr/bin/env python3
"""xsr-train beside PyTorch: the same model, initial values, batches, masks and learning rates.

    bench/peers/train_baseline.py check  --golden FOLDER
    bench/peers/train_baseline.py follow --config FILE.toml
    bench/peers/train_baseline.py speed  --config FILE.toml --markdown FILE --json FILE
    bench/peers/train_baseline.py learn  --config FILE.toml --pairs N --every N --output FOLDER

Makes its own virtual environment (.venv/train of the repository) on the first run; with `follow` or `speed` --device cuda it takes
the Python it is run with. README.md explains.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from peer_files import GOLDEN, HERE, ROOT, cpu_model, enter_venv, own_environment, read_safetensors, reason

# form: arguments of Peer
FORMS = {
    "padded-f32": dict(tuned=False),
    "tuned-f32": dict(tuned=True),
    "tuned-f32-compiled": dict(tuned=True, compiled=True),
    "tuned-bf16": dict(tuned=True, bf16=True),
    "tuned-bf16-compiled": dict(tuned=True, bf16=True, compiled=True),
}


FORMS_BY_DEFAULT = {"cpu": ",".join(FORMS), "cuda": "padded-f32,tuned-bf16,tuned-bf16-compiled"}


def device_name(args):
    import torch

    return cpu_model() if args.device == "cpu" else torch.cuda.get_device_name()


def make_up(args, folder):
    """The settings of xsr-train for --made-up: pairs of random words, enough of them for the config's vocabulary."""
    if not args.made_up:
        return []
    import numpy as np

    random, words, pairs = np.random.default_rng(1), 60_000, 40_000
    syllables = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]
    n = len(syllables)
    text = ["".join(syllables[i // n**k % n] for k in range(3)) for i in random.choice(n**3, words, replace=False)]
    frequency = np.arange(1, words + 1) ** -0.8
    # Log-normal, as sentences of a corpus; a word is mostly one token.
    lengths = np.exp(random.normal(np.log(22) - 0.5 * 0.6**2, 0.6, 2 * pairs)).round().clip(1, 90).astype(int)
    ids = random.choice(words, lengths.sum(), p=frequency / frequency.sum())
    sentences = [" ".join(text[i] for i in s) for s in np.split(ids, np.cumsum(lengths)[:-1])]
    path = folder / "made-up.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in zip(sentences[::2], sentences[1::2])))
    return [f"data.train={path}", "data.dev_pairs=100"]


class Trace:
    """What xsr-train-steps wrote: the batches of a run's first steps, and all that a trainer needs beside them."""

    def __init__(self, path):
        self.tensors, metadata = read_safetensors(path)
        self.model, self.objective, self.optimizer, self.dropout = (
            json.loads(metadata[key]) for key in ("model", "objective", "optimizer", "dropout")
        )
        for what, wanted, found in (
            ("model.activation", "swish", self.model["activation"]),
            ("model.pooling", "mean", self.model["pooling"]),
            ("optimizer.decoupled_decay", False, self.optimizer["decoupled_decay"]),
            ("objectives beside ugt, align and sim", 0, self.objective["other_weights"]),
            ("objective switches as released", True, self.objective["as_released"]),
        ):
            if found != wanted:
                sys.exit(f"train_baseline: the config has {what} {found}; the baseline has {wanted} alone")
        self.learning_rates = self.tensors["learning_rate"]
        self.batches = self._read_batches()

    def _sentences(self, name):
        import numpy as np

        lengths = self.tensors[name + ".lengths"]
        return np.split(self.tensors[name + ".token_ids"], np.cumsum(lengths)[:-1])

    def _read_batches(self):
        from torch_xsr import Batch

        sentences, batches, first = self._sentences("batch"), [], 0
        for pairs in self.tensors["batch.pairs"]:
            masked = slice(first, first + pairs)
            batches.append(
                Batch(
                    sentences[2 * first : 2 * (first + pairs)],
                    self.tensors["batch.masked_id"][masked],
                    self.tensors["batch.masked_side"][masked],
                )
            )
            first += pairs
        return batches

    def dev(self):
        """{part: (sentences of side 1, of side 2)}"""
        out = {}
        for key in self.tensors:
            if key.startswith("dev.") and key.endswith(".lengths"):
                name = key.removesuffix(".lengths")
                sentences = self._sentences(name)
                out[name.removeprefix("dev.")] = sentences[: len(sentences) // 2], sentences[len(sentences) // 2 :]
        return out

    def peer(self, **form):
        from torch_xsr import Peer

        values = {n.removeprefix("value."): v for n, v in self.tensors.items() if n.startswith("value.")}
        return Peer(
            values,
            self.model,
            self.objective["weights"],
            self.objective["sim_min_cosine"],
            self.optimizer["clip_norm"],
            self.optimizer,
            self.dropout,
            **form,
        )


class Xsr:
    """xsr-train-steps: it writes the trace, then makes steps when told to and sleeps otherwise."""

    def __init__(self, args, folder, steps, settings=()):
        self.trace_path, self.device = folder / "trace.safetensors", args.device
        command = [args.build / "bench" / "xsr-train-steps", "--steps", steps, "-o", self.trace_path]
        command += ["--config", args.config] if args.config else []
        for setting in [f"run={folder / 'run'}", f"device={args.device}", *args.set, *settings]:
            command += ["--set", setting]
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own_environment()
        )
        self.about = self._answer()
        self.trace = Trace(self.trace_path)

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit("train_baseline: xsr-train-steps ended (its message stands above)")
        return json.loads(line)

    def _ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def step(self, count):
        return self._ask(f"step {count}")

    def evaluate(self):
        return self._ask("evaluate")

    def roofline(self):
        return self._ask("roofline")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Torch:
    """One form of the baseline, driven as Xsr is."""

    def __init__(self, trace, device="cpu", **form):
        self.trace, self.peer, self.next = trace, trace.peer(device=device, **form), 0
        # On a device they are there beforehand: nothing but the steps is timed.
        self.prepared = [self.peer.prepare(batch) for batch in trace.batches] if device != "cpu" else None

    def synchronize(self):
        if self.peer.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.peer.device)

    def step(self, count):
        steps, pairs, tokens = [], 0, 0
        self.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            at = self.next % len(self.trace.batches)
            batch, self.next = self.trace.batches[at], self.next + 1
            prepared = self.prepared[at] if self.prepared else self.peer.prepare(batch)
            steps.append(self.peer.step(prepared, float(self.trace.learning_rates[at])))
            pairs += batch.pairs
            tokens += batch.tokens
        self.synchronize()
        seconds = time.perf_counter() - start
        return {
            "loss": [float(total) for total, _, _ in steps],
            "parts": [[float(part) for part in parts] for _, parts, _ in steps],
            "gradient_norm": [float(norm) for _, _, norm in steps],
            "pairs": pairs,
            "tokens": tokens,
            "seconds": seconds,
        }

    def evaluate(self):
        from torch_xsr import retrieval

        return {name: retrieval(*map(self.peer.embed, sides)) for name, sides in self.trace.dev().items()}


def relative(a, b):
    return abs(a - b) / max(abs(b), 1e-30)


# ---- check: the baseline against the golden tensors ----


def golden_peer(tensors, config, dtype, **form):
    """A Peer with the parameters of a golden file, and gradients and parameters back under its names."""
    import numpy as np
    from torch_xsr import Peer

    at, bert = "parameter.", "model.bert."
    renamed = {
        "embedding.token": [bert + "embedding.word_embedding.embedding.weight"],
        "embedding.position": [bert + "embedding.position_embedding.position_embeddings.weight"],
        "head.output.bias": ["model.decoder.bias"],
    }
    for kind in ("weight", "bias"):
        renamed["embedding.norm." + kind] = [bert + "embedding.layer_norm." + kind]
        renamed["head.transform." + kind] = ["model.transform.dense." + kind]
        renamed["head.norm." + {"weight": "gamma", "bias": "beta"}[kind]] = ["model.transform.LayerNorm." + kind]
        for i in range(config["num_layers"]):
            own, theirs = f"layer.{i}.", f"{bert}encoder.layer.{i}."
            renamed[f"{own}qkv.{kind}"] = [
                f"{theirs}attention.self_attention.{part}.{kind}" for part in ("query", "key", "value")
            ]
            renamed[f"{own}attention_output.{kind}"] = [f"{theirs}attention.output.dense.{kind}"]
            renamed[f"{own}attention_norm.{kind}"] = [f"{theirs}attention.output.LayerNorm.{kind}"]
            renamed[f"{own}up.{kind}"] = [f"{theirs}intermediate.dense.{kind}"]
            renamed[f"{own}down.{kind}"] = [f"{theirs}output.dense.{kind}"]
            renamed[f"{own}output_norm.{kind}"] = [f"{theirs}output.LayerNorm.{kind}"]

    def gather(prefix):
        return {own: np.concatenate([tensors[prefix + n] for n in names]) for own, names in renamed.items()}

    used = {n for names in renamed.values() for n in names}
    assert used == {n.removeprefix(at) for n in tensors if n.startswith(at)}, "a parameter is left out"
    model = dict(config, position_offset=1)
    optimizer = dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=1e-5, amsgrad=True)
    values = {n: v.astype(dtype) for n, v in gather(at).items()}
    return Peer(values, model, (1, 2, 2), 0.0, 0.0, optimizer, 0.0, **form), gather


def check(args):
    """Losses, gradients and the optimiser's path of both forms against the golden tensors, in float64 and float32."""
    import numpy as np
    import torch
    from torch_xsr import Batch, align, sim

    failures = 0

    def expect(what, found, bound):
        nonlocal failures
        failures += not found <= bound
        print(f"{'ok' if found <= bound else 'FAILED'}: {what}: relative error {found:.2e}, bound {bound:.0e}")

    if not (args.golden / "losses.safetensors").exists():
        sys.exit(f"train_baseline: no golden tensors in {args.golden}; --golden or XSR_GOLDEN names their folder")
    tensors, metadata = read_safetensors(args.golden / "losses.safetensors")
    values = json.loads(metadata["losses"])
    for name, loss in (("xsr_align", align), ("xsr_sim", lambda x, y: sim(x, y, 0.0))):
        x, y = (torch.tensor(tensors[n]).requires_grad_() for n in "xy")
        found = loss(0.2 * x, 0.2 * y)
        found.backward()
        expect(name, relative(float(found.detach()), values[name]["value"]), 1e-12)
        for side, v in (("x", x), ("y", y)):
            wanted = tensors[f"gradient.{name}.{side}"]
            expect(f"{name}, gradient of {side}", np.abs(v.grad.numpy() - wanted).max() / np.abs(wanted).max(), 1e-12)

    for file in ("xsr-tiny", "xsr-odd", "xsr-256"):
        tensors, metadata = read_safetensors(args.golden / f"{file}.safetensors")
        config, losses = json.loads(metadata["config"]), json.loads(metadata["losses"])
        sentences = [
            row[:n] for side in "12" for row, n in zip(tensors["ids" + side], tensors["len" + side])
        ]
        batch = Batch(sentences, tensors["masked_id"], tensors["masked_side"] - 1)
        # xsr-256 is stored in float32, though computed in float64 from values that were then rounded.
        for dtype, bound in ((np.float64, 1e-6 if file == "xsr-256" else 1e-11), (np.float32, 1e-5)):
            for form in FORMS:
                if form.startswith("tuned-bf16") or ("compiled" in form and not args.compiled):
                    continue
                what = f"{file} {form} in {np.dtype(dtype).name}"
                peer, gather = golden_peer(tensors, config, dtype, **FORMS[form])
                parts = map(float, peer.backward(peer.prepare(batch)))
                for name, part in zip(("ugt", "align", "sim"), parts):
                    # SIM of xsr-256 is the small remainder of cosines near 1.
                    loose = bound if name != "sim" or dtype == np.float64 else 10 * bound
                    expect(f"{what}, {name}", relative(part, losses[name]), loose)
                wanted = gather("gradient.total.")
                worst = max(
                    (np.abs(g.numpy() - wanted[n]).max() / np.abs(wanted[n]).max(), n) for n, g in peer.gradients().items()
                    if np.abs(wanted[n]).max() > 1e-9  # the key's bias has none
                )
                expect(f"{what}, gradients (worst: {worst[1]})", worst[0], bound)
                if "adam_amsgrad_losses" in metadata and dtype == np.float64:
                    peer, gather = golden_peer(tensors, config, dtype, **FORMS[form])
                    path = json.loads(metadata["adam_amsgrad_losses"])
                    prepared = peer.prepare(batch)
                    rates = [1e-3 * min(1, t * (1 - 0.999) / 2) for t in range(1, len(path) + 1)]
                    found = [float(peer.step(prepared, rate)[0]) for rate in rates]
                    expect(f"{what}, {len(path)} steps", max(map(relative, found, path)), 1e-10)
                    after = gather("after.")
                    worst = max(np.abs(v.numpy() - after[n]).max() for n, v in peer.parameters().items())
                    expect(f"{what}, parameters after them", worst, 1e-8)
    if failures:
        sys.exit(f"train_baseline: {failures} checks failed")


# ---- follow: xsr-train and the baseline step by step ----


def follow(args):
    """The losses of both on the same steps, without dropout."""
    with tempfile.TemporaryDirectory(prefix="train_baseline.") as folder:
        made_up = make_up(args, pathlib.Path(folder))
        xsr = Xsr(args, pathlib.Path(folder), args.steps, [*made_up, "model.dropout=0", "precision=f32"])
        wanted, failed = xsr.step(args.steps), False
        for form in ("padded-f32", "tuned-f32"):
            found = Torch(xsr.trace, args.device, **FORMS[form]).step(args.steps)
            worst = max(map(relative, wanted["loss"], found["loss"]))
            norms = max(map(relative, wanted["gradient_norm"], found["gradient_norm"]))
            failed |= not worst < args.bound
            print(
                f"{args.steps} steps of {form}: loss {found['loss'][0]:.6g} to {found['loss'][-1]:.6g}; largest relative "
                f"difference from xsr-train {worst:.2e} (bound {args.bound:.0e}), of the gradient's norm {norms:.2e}"
            )
        xsr.close()
    if failed:
        sys.exit("train_baseline: xsr-train and the baseline do not follow each other")


# ---- speed ----


def warm_ups(args):
    """Turns that are not counted. On a device xsr-train runs a shape as it stands, then captures it, then has a graph."""
    return 1 if args.device == "cpu" else 3


def leave_out(left_out, name, error):
    left_out[name] = reason(error)
    print(f"train_baseline: {name} is left out: {left_out[name]}", file=sys.stderr)


def block_rates(engines, args, left_out):
    """pairs/s of every block of steps, the engines by turns, and the share of the roofline of each part of xsr-train's steps
    on the processor. Adds to left_out why a form is left out."""
    rates, blocks = {name: [] for name in engines}, {}
    for turn in range(warm_ups(args) + args.turns):
        counts = turn >= warm_ups(args)
        for name, engine in list(engines.items()):
            try:
                block = engine.step(args.block)
            except Exception as error:  # whatever a form dies of, the others go on
                leave_out(left_out, name, error)
                del engines[name], rates[name]
                continue
            if counts:
                rates[name].append(block["pairs"] / block["seconds"])
            if isinstance(engine, Xsr) and engine.device == "cpu":
                engine.roofline()
                if counts:
                    blocks.setdefault(name, []).append(block)
            rate = block["pairs"] / block["seconds"]
            print(f"{name}: {rate:.1f} pairs/s{'' if counts else ' (warm-up)'}", file=sys.stderr)
    return rates, {name: part_shares(blocks[name], engines[name].roofline()) for name in blocks}


def part_shares(blocks, machine):
    """{part: its share of the step's time, and the share of its time that the roofline asks for}, medians of the blocks"""
    peak = {part: machine["peak_gflops"] for part in ("forward", "backward")}
    peak["objectives"] = machine["objectives_peak_gflops"]
    floors = [
        {part: flop / (1e9 * peak[part]) for part, flop in block["part_flop"].items()}
        | {"update": block["update_bytes"] / (1e9 * machine["read_gb_per_s"])}
        for block in blocks
    ]
    parts = {
        part: {
            "of_step": statistics.median(b["part_seconds"][part] / b["seconds"] for b in blocks),
            "of_roofline": statistics.median(f[part] / b["part_seconds"][part] for f, b in zip(floors, blocks)),
        }
        for part in floors[0]
    }
    whole = statistics.median(sum(f.values()) / b["seconds"] for f, b in zip(floors, blocks))
    return {"roofline": machine, "parts": parts | {"whole step": {"of_step": 1.0, "of_roofline": whole}}}


def threads_of(args):
    return args.threads or len(os.sched_getaffinity(0))


def speed(args):
    import torch

    torch.set_num_threads(threads_of(args))
    forms = [f for f in (args.forms or FORMS_BY_DEFAULT[args.device]).split(",") if f]
    results, about = {}, {}
    figures = {
        "device": device_name(args),
        "cpu": cpu_model(),
        "date": str(datetime.date.today()),
        "threads": threads_of(args),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "xsr": about,
        "block_steps": args.block,
        "results": results,
    }
    # The padded form takes the batches in the order of a shuffled corpus, as the released trainer; the tuned one pairs of
    # like length. xsr-train is timed on both.
    for kind, pool in (("padded", 1), ("tuned", args.pool_batches)):
        here = [f for f in forms if f.startswith(kind)]
        if not here:
            continue
        with tempfile.TemporaryDirectory(prefix="train_baseline.") as folder, contextlib.ExitStack() as stack:
            # On a device the same batches come every turn, as the shapes of a long run do.
            steps = args.block * (args.turns + 1 if args.device == "cpu" else 1)
            made_up, engines = make_up(args, pathlib.Path(folder)), {}
            for precision in args.precisions.split(","):
                at = pathlib.Path(folder) / precision
                at.mkdir()
                settings = [f"precision={precision}", f"data.pool_batches={pool}", f"threads={threads_of(args)}"]
                settings += made_up
                engine = Xsr(args, at, steps, settings)
                stack.callback(engine.close)
                engines[f"xsr-train {precision}"] = engine
                about[f"xsr-train {precision}"] = engine.about
                trace = engine.trace
            left_out = {}
            for form in here:
                try:
                    engines[form] = Torch(trace, args.device, **FORMS[form])
                except Exception as error:
                    leave_out(left_out, form, error)
            rates, shares = block_rates(engines, args, left_out)
            tokens = sum(b.tokens for b in trace.batches) / sum(b.pairs for b in trace.batches)
            results[kind] = {
                "pool_batches": pool,
                "tokens_per_pair": tokens,
                "batch_pairs": trace.batches[0].pairs,
                "vocabulary": int(trace.tensors["value.embedding.token"].shape[0]),
                "hidden_size": int(trace.tensors["value.embedding.token"].shape[1]),
                "num_layers": trace.model["num_layers"],
                "shares": shares,
                "left_out": left_out,
                "engines": {
                    name: {
                        "pairs_per_second": statistics.median(sample),
                        "lowest": min(sample),
                        "highest": max(sample),
                        "blocks": len(sample),
                    }
                    for name, sample in rates.items()
                },
            }
        if args.json:
            args.json.write_text(json.dumps(figures, indent=2) + "\n")
    text = speed_as_markdown(results, args, torch.__version__)
    print(text, end="")
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    if not any(form in result["engines"] for form in forms for result in results.values()):
        sys.exit("train_baseline: no form of PyTorch ran")


def speed_as_markdown(results, args, version):
    any_kind = next(iter(results.values()))
    lines = [
        f"{device_name(args)}, {threads_of(args)} threads, PyTorch {version}, {datetime.date.today()}. {any_kind['num_layers']} "
        f"layers of {any_kind['hidden_size']}, vocabulary {any_kind['vocabulary']}, batches of {any_kind['batch_pairs']}.",
        f"Median of {args.turns} blocks of {args.block} steps by turns, lowest and highest in brackets.",
        "",
    ]
    for kind, result in results.items():
        engines = result["engines"]
        own = [name for name in engines if name.startswith("xsr-train")]
        lines += [
            f"Batches {'in the order they come' if kind == 'padded' else 'sorted by length'} (pool of "
            f"{result['pool_batches']}), {result['tokens_per_pair']:.1f} tokens a pair:",
            "",
            "| | pairs/s | " + " | ".join(f"{name} over it" for name in own) + " |",
            "| --- | ---: |" + " ---: |" * len(own),
        ]
        for name, figures in engines.items():
            rate = figures["pairs_per_second"]
            ratios = [f"{engines[o]['pairs_per_second'] / rate:.2f}×" for o in own]
            lines.append(
                f"| {name} | {rate:.1f} ({figures['lowest']:.1f}–{figures['highest']:.1f}) | " + " | ".join(ratios) + " |"
            )
        lines.append("")
        for name, share in result["shares"].items():
            machine = share["roofline"]
            encoder, objectives = (f"{machine[key]:.0f} GFLOP/s" for key in ("peak_gflops", "objectives_peak_gflops"))
            peaks = encoder if encoder == objectives else f"{encoder} (objectives: {objectives})"
            lines += [
                f"{name} on these, beside {peaks} on registers and {machine['read_gb_per_s']:.1f} GB/s from beyond L2:",
                "",
                "| part | of the step's time | of the roofline |",
                "| --- | ---: | ---: |",
            ]
            lines += [
                f"| {part} | {100 * figures['of_step']:.0f} % | {figures['of_roofline']:.2f} |"
                for part, figures in share["parts"].items()
            ]
            lines.append("")
    return "\n".join(lines)


# ---- learn ----


def learn(args):
    """Trains all on the same batches and writes P@1 on every dev part at the same points."""
    import numpy as np
    import torch

    torch.set_num_threads(threads_of(args))
    steps = args.pairs // args.batch_pairs
    engines = {}
    for precision in args.precisions.split(","):
        folder = args.output / precision
        folder.mkdir(parents=True, exist_ok=True)
        settings = [f"threads={threads_of(args)}", f"precision={precision}", f"data.batch_pairs={args.batch_pairs}"]
        engines[f"xsr-train {precision}"] = Xsr(args, folder, steps, settings)
    ours = list(engines.values())
    xsr = ours[0]
    for other in ours[1:]:
        for name, tensor in xsr.trace.tensors.items():
            if not np.array_equal(tensor, other.trace.tensors[name]):
                sys.exit(f"train_baseline: {name} is not the same for {args.precisions}")
    if args.form != "none":
        engines[args.form] = Torch(xsr.trace, **FORMS[args.form])
    every = max(1, args.every // args.batch_pairs)
    curve = {name: [] for name in engines}
    done = 0
    while done < steps:
        count = min(every, steps - done)
        for name, engine in engines.items():
            block = engine.step(count)
            point = {
                "pairs": (done + count) * args.batch_pairs,
                "loss": statistics.fmean(block["loss"]),
                "seconds": block["seconds"],
                "p1": engine.evaluate(),
            }
            curve[name].append(point)
            shown = ", ".join(f"{n} {100 * a:.1f} {100 * b:.1f}" for n, (a, b) in point["p1"].items())
            print(f"{name}: {point['pairs']} pairs, loss {point['loss']:.4f}, P@1 {shown}", file=sys.stderr)
        done += count
        record = {
            "torch": torch.__version__,
            "form": args.form,
            "xsr": [engine.about for engine in ours],
            "batch_pairs": args.batch_pairs,
            "dev_pairs": {name: len(sides[0]) for name, sides in xsr.trace.dev().items()},
            "curves": curve,
        }
        (args.output / "curve.json").write_text(json.dumps(record, indent=2) + "\n")
        (args.output / "curve.svg").write_text(curves_as_svg(record))
    for engine in ours:
        engine.close()
        engine.trace_path.unlink()


def curves_as_svg(record):
    """One panel a dev part: mean P@1 of both directions over pairs seen, one standard error shaded."""
    width, height, left, bottom = 420, 280, 48, 40
    colours = ["#0b62a4", "#c4501b", "#3c8d2f", "#7b3fa0"]
    parts = list(record["dev_pairs"])
    last = max(p["pairs"] for curve in record["curves"].values() for p in curve)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * len(parts)}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for panel, part in enumerate(parts):
        x0, y0, w, h = panel * width + left, height - bottom, width - left - 16, height - bottom - 36

        def at(pairs, share):
            return f"{x0 + w * pairs / last:.1f},{y0 - h * share:.1f}"

        out.append(f'<text x="{x0}" y="20">P@1 on {part} ({record["dev_pairs"][part]} pairs), %</text>')
        for share in (0, 0.25, 0.5, 0.75, 1):
            y = y0 - h * share
            out.append(f'<path d="M{x0} {y:.1f}h{w}" stroke="#ddd"/>')
            out.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * share:.0f}</text>')
        out.append(f'<text x="{x0 + w}" y="{y0 + 28}" text-anchor="end">{last:,} pairs</text>')
        for i, (name, curve) in enumerate(record["curves"].items()):
            means = [(p["pairs"], sum(p["p1"][part]) / 2) for p in curve]
            n = record["dev_pairs"][part]
            errors = [(m * (1 - m) / n) ** 0.5 for _, m in means]
            band = [at(x, min(1, m + e)) for (x, m), e in zip(means, errors)]
            band += [at(x, max(0, m - e)) for (x, m), e in reversed(list(zip(means, errors)))]
            out.append(f'<polygon points="{" ".join(band)}" fill="{colours[i]}" opacity="0.15"/>')
            line = " ".join(at(x, m) for x, m in means)
            out.append(f'<polyline points="{line}" fill="none" stroke="{colours[i]}" stroke-width="1.5"/>')
            out.append(f'<text x="{x0 + 8 + 130 * i}" y="{y0 + 28}" fill="{colours[i]}">{name}</text>')
    return "\n".join([*out, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(function, name, with_xsr=True):
        sub = commands.add_parser(name, help=function.__doc__)
        sub.set_defaults(function=function)
        if with_xsr:
            sub.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release", help="build folder of xsr")
            sub.add_argument("--config", type=pathlib.Path, help="of xsr-train (TOML)")
            sub.add_argument("--set", action="append", default=[], help="KEY=VALUE over the config, any number of them")
            sub.add_argument("--threads", type=int, default=0, help="of either; 0: the processors allowed")
            sub.set_defaults(device="cpu", made_up=False)
        return sub

    sub = command(check, "check", with_xsr=False)
    sub.add_argument("--golden", type=pathlib.Path, default=GOLDEN, help="golden tensors (default: XSR_GOLDEN)")
    sub.add_argument("--compiled", action="store_true", help="the compiled form too, which takes minutes")
    def on_a_device(sub):
        sub.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: of this Python's PyTorch")
        sub.add_argument("--made-up", action="store_true", help="train on made-up pairs in place of the config's")

    sub = command(follow, "follow")
    on_a_device(sub)
    sub.add_argument("--steps", type=int, default=20)
    sub.add_argument("--bound", type=float, default=1e-4, help="largest relative difference of a step's loss")
    sub = command(speed, "speed")
    on_a_device(sub)
    sub.add_argument("--forms", help="default: all on the processor, padded-f32 and the tuned-bf16 ones on a device")
    sub.add_argument("--precisions", default="f32,bf16", help="of xsr-train")
    sub.add_argument("--pool-batches", type=int, default=64, help="for the tuned forms: sorted by length within so many")
    sub.add_argument("--block", type=int, default=4, help="steps of one trainer before the next has its turn")
    sub.add_argument("--turns", type=int, default=7, help="blocks of each that count")
    sub.add_argument("--markdown", type=pathlib.Path, help="also write the tables here")
    sub.add_argument("--json", type=pathlib.Path, help="also write the figures here")
    sub = command(learn, "learn")
    sub.add_argument("--pairs", type=int, default=1_000_000)
    sub.add_argument("--every", type=int, default=100_000, help="pairs between evaluations")
    sub.add_argument("--batch-pairs", type=int, default=128)
    sub.add_argument("--precisions", default="f32", help="of xsr-train")
    sub.add_argument("--form", default="tuned-f32", choices=[*FORMS, "none"])
    sub.add_argument("--output", type=pathlib.Path, required=True, help="folder for curve.json and curve.svg")
    args = parser.parse_args()
    # A GPU machine may have no network, and has a PyTorch for its driver.
    if getattr(args, "device", "cpu") == "cpu":
        enter_venv(ROOT / ".venv/train", HERE / "requirements-train.txt", pathlib.Path(__file__).resolve())
    else:
        import torch

        if not torch.cuda.is_available():
            sys.exit("train_baseline: PyTorch sees no CUDA device here")
        torch.backends.cuda.matmul.allow_tf32 = False  # some machines' environment allows it
    args.function(args)


if __name__ == "__main__":
    main()
