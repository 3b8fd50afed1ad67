#!/usr/bin/env python3
"""xsr beside other engines: the same trained weights and the same sentences, by turns in one run.

    bench/peers/bench_peers.py --build build/release --markdown peers.md --json peers.json --svg peers.svg

Makes its own virtual environment (.venv/peers of the repository) on the first run. README.md says what is raced and how.
"""

import argparse
import contextlib
import datetime
import json
import math
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import traceback

import peer_report
from peer_files import HERE, LEAST_COSINE, ROOT, SHARED, cpu_model, enter_venv, own_environment


def work(pipe, key, args, folder, cpus, streams_allowed):
    """A worker process: one form on the given processors; answers (True, result) or (False, reason) to each command."""
    os.setpgid(0, 0)
    os.sched_setaffinity(0, cpus)
    os.environ["OMP_NUM_THREADS"] = str(len(cpus))
    import numpy as np
    import peer_engines

    np.random.seed(0)
    threads, state = len(cpus), {}
    modes = [(threads, 1)] + ([(1, threads)] if streams_allowed and threads > 1 else [])
    form = peer_engines.FORM[key]

    def engine(mode):
        if state.get("mode") != mode:
            if "engine" in state:
                state["engine"].close()
            state["engine"], state["mode"] = form.create(weights, folder, *mode, args.build), mode
        return state["engine"]

    def run(sentences, mode, batch):
        e = engine(mode)
        return e.encode(sentences, batch) if form.texts_only else e.corpus(sentences, batch)

    def latency(calls, seed):
        e, random, times, vectors = engine(modes[0]), np.random.default_rng(seed), [], []
        for call in range(calls + 1):
            ids = random.integers(3, weights.vocab_size, (1, args.tokens), dtype=np.int32)
            lengths = np.array([args.tokens], np.int32)
            start = time.perf_counter_ns()
            vector = e.embed(ids, lengths)
            if call:  # the first finds its weights pushed out by the engine before
                times.append((time.perf_counter_ns() - start) / 1000)
            vectors.append(np.array(vector[0]))
        return times, np.stack(vectors)

    def search(sentences):
        """Times on a sample for each way to spread and each batch size, the better of two; the best becomes the setting."""
        found = []
        own = form.kind == "xsr"
        for mode in modes[:1] if own else modes:
            seconds = {batch: math.inf for batch in ([0] if own else args.batches)}
            for batch in seconds:
                run(sentences[: max(2 * batch, 64)], mode, batch)  # untimed: kernels are made or chosen now
            for batch in [*seconds] * (1 if args.quick else 2):
                start = time.perf_counter()
                run(sentences, mode, batch)
                seconds[batch] = min(seconds[batch], time.perf_counter() - start)
            found += [{"threads": mode[0], "streams": mode[1], "batch": b, "seconds": t} for b, t in seconds.items()]
        best = min(found, key=lambda f: f["seconds"])
        state["best"] = (best["threads"], best["streams"]), best["batch"]
        return {"best": best, "tried": found}

    def embed(sentences):
        return run(sentences, modes[0], 32)

    def corpus_vectors(sentences):
        return run(sentences, *state["best"])

    def corpus(sentences):
        mode, batch = state["best"]
        engine(mode)
        start = time.perf_counter()
        run(sentences, mode, batch)
        return time.perf_counter() - start

    def tokenize(texts):
        return [engine(modes[0]).tokenize(text) for text in texts]

    commands = {f.__name__: f for f in (latency, search, embed, corpus_vectors, corpus, tokenize)}
    try:
        weights = peer_engines.Weights(args.model)
        pipe.send((True, engine(modes[0]).version))
        while True:
            name, *values = pipe.recv()
            if name == "end":
                state["engine"].close()
                return
            pipe.send((True, commands[name](*values)))
    except EOFError:
        return
    except peer_engines.Unavailable as reason:
        pipe.send((False, str(reason)))
    except Exception as reason:  # whatever an engine throws: its row says so, the others race on
        traceback.print_exc()
        pipe.send((False, f"{type(reason).__name__}: {reason}".splitlines()[0]))


def kill_group(process):
    """Of a process that leads a group: those it started, too."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # none is left, or it has not come to make one
        process.kill()


class Worker:
    """The process of one form. One that is silent for `--timeout` seconds is killed."""

    def __init__(self, key, args, folder, cpus, streams_allowed=True):
        context = multiprocessing.get_context("spawn")
        self.timeout = args.timeout
        self.pipe, other = context.Pipe()
        # No daemon: those may not have processes of their own, and an engine may.
        self.process = context.Process(target=work, args=(other, key, args, folder, cpus, streams_allowed))
        self.process.start()
        other.close()

    def answer(self):
        try:
            if self.pipe.poll(self.timeout):
                good, value = self.pipe.recv()
            else:
                kill_group(self.process)
                good, value = False, f"killed: no answer within {self.timeout} s (--timeout)"
        except EOFError:
            self.process.join()
            good, value = False, f"its process ended with status {self.process.exitcode}"
        if not good:
            raise RuntimeError(value)
        return value

    def ask(self, *command):
        self.pipe.send(command)
        return self.answer()

    def end(self):
        try:
            self.pipe.send(("end",))
        except OSError:
            pass
        self.process.join(10)
        if self.process.exitcode is None:
            kill_group(self.process)
            self.process.join()


def read_texts(path):
    """Non-blank sentences of a text file; each column of a .tsv; .zst is unpacked."""
    if path.suffix == ".zst":
        import zstandard

        with open(path, "rb") as file:
            data = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(file).read().decode()
    else:
        data = path.read_text(encoding="utf-8")
    tsv = ".tsv" in path.suffixes
    cells = (c.strip() for line in data.split("\n") for c in (line.split("\t") if tsv else [line]))
    return [c for c in cells if c]


def default_text():
    best = [SHARED / f"data/train/en-{language}.tsv.zst" for language in ("fr", "de", "es", "it")]
    return [path for path in best if path.exists()] or [ROOT / "examples/data/tatoeba.en-fr.tsv"]


def precision_at_1(np, a, b):
    """Share of rows of a whose nearest row of b by cosine is their own; ties go to the lower index."""
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (a, b))
    return float(((a @ b.T).argmax(1) == np.arange(len(a))).mean())


def cosines(np, a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def parse(arguments=None):
    """The command line, checked as far as that can be done before anything is installed or run; exits with 2 if it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release", help="build folder of xsr")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/xsr-multi.xsr")
    parser.add_argument("--text", type=pathlib.Path, nargs="+", default=default_text(), metavar="FILE",
                        help="sentences: text, .tsv, or either as .zst (default: data/train/en-{fr,de,es,it}.tsv.zst of the folder"
                        " XSR_SHARED, else the 800 sentences of examples/data)")
    parser.add_argument("--sentences", type=int, help="of the race text → .npy (default 100000; --quick 400)")
    parser.add_argument("--corpus", type=int, help="sentences of the races ids → vectors (default 5000; --quick 200)")
    parser.add_argument("--pairs", type=pathlib.Path, default=ROOT / "examples/data/tatoeba.en-fr.tsv")
    parser.add_argument("--tokens", type=int, default=20, help="of the latency race")
    parser.add_argument("--rounds", type=int, help="of each race (default 5; --quick 1); of latency five times as many, of text 3 at most")
    parser.add_argument("--forms", help="only these, by comma; xsr-f32 always runs")
    parser.add_argument("--races", default=",".join(peer_report.RACES), help="only these, by comma (default %(default)s)")
    parser.add_argument("--cpu", type=int, help="the core of the one-core races; default: the last one allowed")
    parser.add_argument("--timeout", type=float, default=3600, metavar="SECONDS", help="a form that takes longer for one step of a race is dropped"
                        " (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="some minutes: all but the compiled forms run once, figures mean little")
    parser.add_argument("--markdown", type=pathlib.Path, help="also write the table here")
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures here")
    parser.add_argument("--svg", type=pathlib.Path, help="also draw speed against quality here")
    args = parser.parse_args(arguments)
    args.races = args.races.split(",")
    unknown = set(args.races) - set(peer_report.RACES)
    if unknown:
        parser.error(f"--races: no race is named {', '.join(sorted(unknown))}; there are {', '.join(peer_report.RACES)}")
    if args.svg and args.races == ["latency"]:
        parser.error("--svg draws sentences/s: it needs a race other than latency")
    missing = [path for path in [*args.text, args.pairs, args.model, args.build / "runtime/libxsr.so"] if not path.exists()]
    if missing:
        parser.error(f"not found: {', '.join(map(str, missing))}")
    args.sentences = args.sentences or (400 if args.quick else 100_000)
    args.corpus = args.corpus or (200 if args.quick else 5_000)
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.batches = [32] if args.quick else [2, 4, 8, 16, 32, 64, 128]
    args.build, args.model = args.build.resolve(), args.model.resolve()
    return args


def main(args):
    races = args.races
    os.environ["OPENBLAS_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))

    import numpy as np
    import peer_engines

    unknown = set(args.forms.split(",") if args.forms else ()) - set(peer_engines.FORM)
    if unknown:
        print(f"bench_peers: --forms: no form is named {', '.join(sorted(unknown))}; there are", *peer_engines.FORM, file=sys.stderr)
        sys.exit(2)
    forms = [f for f in peer_engines.FORMS if not args.forms or f.key in args.forms.split(",") or f.key == "xsr-f32"]
    left_out = [f for f in forms if args.quick and not args.forms and "compiled" in f.key]
    forms = [f for f in forms if f not in left_out]
    weights = peer_engines.Weights(args.model)
    everything = os.sched_getaffinity(0)
    one = {args.cpu if args.cpu is not None else max(everything)}

    texts = list(dict.fromkeys(text for path in args.text for text in read_texts(path)))
    np.random.default_rng(1).shuffle(texts)
    texts = texts[: args.sentences]
    ids = weights.tokenize(texts, len(everything))
    texts = [text for text, s in zip(texts, ids) if s]  # those without tokens have no vector to compare
    sample = [np.array(s, np.int32) for s in ids if s][: args.corpus]
    num_tokens = sum(map(len, sample))
    pairs = [line.split("\t")[:2] for line in args.pairs.read_text(encoding="utf-8").splitlines()]
    sides = [[p[i] for p in pairs] for i in (0, 1)]
    side_ids = [[np.array(s, np.int32) for s in weights.tokenize(side)] for side in sides]
    probe_texts = [t for side in sides for t in side]
    probe_ids = side_ids[0] + side_ids[1]

    rows, raw, wanted = {}, {}, {}
    not_run = {f.key: "left out by --quick: compiling takes longer than all the rest; --forms can name it" for f in left_out}
    workers = {}

    def end_workers():
        for worker in workers.values():
            worker.end()
        workers.clear()

    with tempfile.TemporaryDirectory(prefix="bench_peers.") as folder, contextlib.ExitStack() as stack:
        stack.callback(end_workers)
        folder = pathlib.Path(folder)
        np.save(folder / "calibration.npy", np.array(sample[:256] + [None], object)[:-1], allow_pickle=True)

        def drop(key, reason):
            not_run[key] = str(reason)
            print(f"bench_peers: {key}: {reason}", file=sys.stderr)
            rows.pop(key, None)
            if key in workers:
                workers.pop(key).end()
            if key == "xsr-f32":
                sys.exit("bench_peers: without xsr f32 there is nothing to hold the others against")

        def each(keys, what):
            """what(key) for each, dropping those that fail; the results by key."""
            done = {}
            for key in list(keys):
                try:
                    done[key] = what(key)
                except (RuntimeError, OSError) as reason:
                    drop(key, reason)
            return done

        def hold(key, vectors, what):
            """Cosines to the vectors of xsr f32, which come first. A form that one of them is too small for is not timed."""
            if key == "xsr-f32":
                wanted[what] = vectors
            cosine = cosines(np, vectors, wanted[what])
            if not cosine.min() > LEAST_COSINE[peer_engines.FORM[key].dtype]:
                raise RuntimeError(f"not timed: {what}: least cosine to xsr f32 is {cosine.min():.6f}")
            return {"min": float(cosine.min()), "mean": float(cosine.mean())}

        def race(name, keys, what, rounds):
            """Rounds by turns; the times of those that came through all of them, by key."""
            times = {key: [] for key in keys}
            for r in range(rounds):
                print(f"bench_peers: {name}, round {r + 1} of {rounds}", file=sys.stderr)
                for key, t in each([k for k in times if k not in not_run], lambda key: what(key, r)).items():
                    times[key].append(t)
            return {key: t for key, t in times.items() if key not in not_run}

        def enter(name, times, figures):
            """Puts a race's figures and ratios into the rows; times by key, one a round."""
            for key, t in times.items():
                rows[key][name] = figures(key)
            for key, t in times.items():
                base = peer_report.base_of(rows[key], list(rows.values()), name)
                rows[key][name] |= {"ratio": peer_report.ratio(t, times[base["key"]]), "against": base["key"]}
            raw[name] = times

        # Output first: every form against xsr f32 on the pairs, and its P@1. What a form needs on disk is built here.
        def first(key):
            workers[key] = Worker(key, args, folder, one)
            form = peer_engines.FORM[key]
            version = workers[key].answer()
            vectors = workers[key].ask("embed", probe_texts if form.texts_only else probe_ids)
            a, b = vectors[: len(pairs)], vectors[len(pairs) :]
            row = {"key": key, "name": form.name, "engine": form.engine, "dtype": form.dtype, "kind": form.kind}
            row |= {"version": version, "table": "table" in form.settings, "settings": {}}
            row["cosine"] = hold(key, vectors, "pairs")
            row["p1"] = {"forward": precision_at_1(np, a, b), "backward": precision_at_1(np, b, a)}
            rows[key] = row

        for form in forms:
            each([form.key], first)
            if form.key == "xsr-f32":
                own = workers[form.key].ask("tokenize", probe_texts)
                differing = sum(x != y.tolist() for x, y in zip(own, probe_ids))
                if differing:
                    sys.exit(f"bench_peers: {differing} texts have other ids in xsr than in SentencePiece")

        def by_ids():
            return [key for key in rows if not peer_engines.FORM[key].texts_only]

        if "latency" in races:
            calls = {}

            def block(key, r):
                times, vectors = workers[key].ask("latency", 10 if args.quick else 50, r)
                hold(key, vectors, f"latency, round {r + 1}")
                calls.setdefault(key, []).extend(times)
                return peer_report.summary(times)["p50"]

            each(by_ids(), lambda key: hold(key, workers[key].ask("latency", 10, 10**6)[1], "latency"))
            times = race("latency", by_ids(), block, 5 * args.rounds)

            def figures(key):
                s = peer_report.summary(calls[key])
                return {"p50_us": s["p50"], "p10_us": s["p10"], "calls": len(calls[key])}

            enter("latency", times, figures)

        def corpus_race(name):
            keys = by_ids() if name == "corpus_1" or "text" not in races else list(rows)
            searched = each(
                keys,
                lambda key: workers[key].ask(
                    "search", texts[: args.corpus // 5] if peer_engines.FORM[key].texts_only else sample[: args.corpus // 5]
                ),
            )
            for key, found in searched.items():
                rows[key]["settings"][name] = found
            # Untimed once: compiled graphs and kernels for the chosen setting and all shapes are made now, and give equal vectors.
            each(by_ids(), lambda key: hold(key, workers[key].ask("corpus_vectors", sample), name))
            times = race(name, by_ids(), lambda key, r: workers[key].ask("corpus", sample), args.rounds)

            def figures(key):
                s = peer_report.summary(times[key])
                return {"p50_s": s["p50"], "p10_s": s["p10"], "tokens_per_s": num_tokens / s["p50"],
                        "sentences_per_s": len(sample) / s["p50"]}

            enter(name, times, figures)

        if "corpus_1" in races:
            corpus_race("corpus_1")
        end_workers()

        if "corpus_all" in races or "text" in races:
            def again(key):
                workers[key] = Worker(key, args, folder, everything)
                workers[key].answer()

            each(list(rows), again)
            corpus_race("corpus_all")
            end_workers()

        if "text" in races:
            text = folder / "sentences.txt"
            text.write_text("\n".join(texts) + "\n", encoding="utf-8")
            embed = args.build / "corpus" / "xsr-embed"
            usage = subprocess.run([embed, "--help"], capture_output=True, text=True).stdout

            def whole(key, r):
                form, output = peer_engines.FORM[key], folder / f"{key}.npy"
                if form.kind == "xsr":
                    command = [embed, "-m", args.model, "-i", text, "-o", output, "--compute", form.dtype, "-q"]
                    command += ["--qkv-table"] if rows[key]["table"] else []
                else:
                    best = rows[key]["settings"]["corpus_all"]["best"]
                    command = [sys.executable, HERE / "peer_embed.py", key, args.model, text, output, folder,
                               best["batch"], best["threads"], best["streams"]]
                start = time.perf_counter()
                process = subprocess.Popen(
                    list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
                    env=own_environment() if form.kind == "xsr" else None,
                )
                try:
                    said = process.communicate(timeout=args.timeout)[1]
                except subprocess.TimeoutExpired:
                    kill_group(process)
                    process.communicate()
                    raise RuntimeError(f"killed: not done within {args.timeout} s (--timeout)") from None
                seconds = time.perf_counter() - start
                if process.returncode:
                    raise RuntimeError((said.strip().splitlines() or ["failed without a word"])[-1])
                if r == 0:
                    rows[key]["text_cosine"] = hold(key, np.load(output), "text → .npy")
                output.unlink()
                return seconds

            keys = [k for k in rows if rows[k]["kind"] == "peer" or rows[k]["dtype"] in usage]
            times = race("text → .npy", keys, whole, min(args.rounds, 3))

            def figures(key):
                s = peer_report.summary(times[key])
                return {"p50_s": s["p50"], "p10_s": s["p10"], "sentences_per_s": len(texts) / s["p50"]}

            enter("text", times, figures)

    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    speed = "text" if "text" in races else "corpus_all" if "corpus_all" in races else "corpus_1"
    corpus = f"ids → vectors, {len(sample):,} sentences, {num_tokens:,} tokens, longest {max(map(len, sample))}"
    words = {
        "latency": f"ids → vector, one sentence of {args.tokens} random tokens, other ids every call, one core (CPU {min(one)})",
        "corpus_1": f"{corpus}, one core (CPU {min(one)})",
        "corpus_all": f"{corpus}, all cores",
        "text": f"{len(texts):,} distinct sentences of {', '.join(path.name for path in args.text)}, text → .npy, whole processes, all cores",
    }
    report = {
        "heading": f"{cpu_model()}, {len(everything)} processors, {args.model.name}, {datetime.date.today()}."
        + (" A quick run: figures mean little." if args.quick else ""),
        "plot_title": f"{args.model.name}: speed ({speed}, {'one core' if speed == 'corpus_1' else 'all cores'}) against quality,"
        f" {cpu_model()}",
        "cpu": cpu_model(),
        "cores": len(everything),
        "commit": commit.stdout.strip(),
        "load_average": os.getloadavg(),
        "tokens": args.tokens,
        "rounds": args.rounds,
        "pairs": {"file": args.pairs.name, "count": len(pairs), "forward": "→", "backward": "←"},
        "races": {name: words[name] for name in peer_report.RACES if name in raw},
        "rows": list(rows.values()),
        "not_run": not_run,
        "times_by_round": raw,
    }
    table = peer_report.markdown(report)
    print(table, end="")
    if args.markdown:
        args.markdown.write_text(table, encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.svg:
        args.svg.write_text(peer_report.svg(report, speed), encoding="utf-8")


if __name__ == "__main__":
    arguments = parse()
    enter_venv(ROOT / ".venv/peers", HERE / "requirements-peers.txt", pathlib.Path(__file__).resolve())
    main(arguments)
