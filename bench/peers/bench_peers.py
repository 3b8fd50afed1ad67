#!/usr/bin/env python3
"""xsr beside other engines: the same random weights, one core, ids to sentence vector, by turns in one process.

    bench/peers/bench_peers.py --build build/release

Makes its own virtual environment (.venv/ of the repository) on the first run. README.md says how each engine is set up.
"""

import argparse
import ctypes
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from peer_files import HERE, ROOT, cpu_model, enter_venv, write_safetensors

MAX_TOKENS = 200
EPS = 1e-12


def make_weights(np, layers, C, F, V):
    """Tensors by the names of the released trainer's checkpoints (weights [outputs, inputs])."""
    random = np.random.default_rng(1)

    def normal(*shape, mean=0.0, deviation=1.0):
        return (mean + deviation * random.standard_normal(shape)).astype(np.float32)

    def norm(weights, name):
        weights[name + ".weight"] = normal(C, mean=1.0, deviation=0.1)
        weights[name + ".bias"] = normal(C, deviation=0.1)

    def dense(weights, name, outputs, inputs):
        weights[name + ".weight"] = normal(outputs, inputs, deviation=inputs**-0.5)
        weights[name + ".bias"] = normal(outputs, deviation=0.1)

    w = {}
    w["model.bert.embedding.word_embedding.embedding.weight"] = normal(V, C)
    w["model.bert.embedding.position_embedding.position_embeddings.weight"] = normal(MAX_TOKENS + 1, C)
    norm(w, "model.bert.embedding.layer_norm")
    for i in range(layers):
        at = f"model.bert.encoder.layer.{i}."
        for part in ("query", "key", "value"):
            dense(w, f"{at}attention.self_attention.{part}", C, C)
        dense(w, at + "attention.output.dense", C, C)
        norm(w, at + "attention.output.LayerNorm")
        dense(w, at + "intermediate.dense", F, C)
        dense(w, at + "output.dense", C, F)
        norm(w, at + "output.LayerNorm")
    return w


class Layer:
    """The tensors of one layer under short names; weights [inputs, outputs] for engines that multiply from the left."""

    def __init__(self, np, w, i):
        at = f"model.bert.encoder.layer.{i}."
        parts = [f"{at}attention.self_attention.{part}" for part in ("query", "key", "value")]
        self.qkv_weight = np.concatenate([w[p + ".weight"] for p in parts])
        self.qkv_bias = np.concatenate([w[p + ".bias"] for p in parts])
        names = {
            "attention_output": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm",
            "up": "intermediate.dense",
            "down": "output.dense",
            "output_norm": "output.LayerNorm",
        }
        for short, long in names.items():
            setattr(self, short + "_weight", w[at + long + ".weight"])
            setattr(self, short + "_bias", w[at + long + ".bias"])


class Xsr:
    """libxsr.so through ctypes."""

    def __init__(self, np, build, model_path, isa, qkv_table):
        self.name = "xsr with QKV table" if qkv_table else "xsr"
        self.np = np
        lib = self.lib = ctypes.CDLL(str(build / "runtime" / "libxsr.so"))
        lib.xsr_version_string.restype = ctypes.c_char_p
        lib.xsr_isa_string.restype = ctypes.c_char_p
        lib.xsr_session_get_error.restype = ctypes.c_char_p
        lib.xsr_session_get_error.argtypes = [ctypes.c_void_p]
        lib.xsr_session_get_isa.argtypes = [ctypes.c_void_p]
        lib.xsr_session_embed_ids.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_size_t] + [ctypes.c_void_p] * 2

        class SessionOptions(ctypes.Structure):
            _fields_ = [("size", ctypes.c_size_t)] + [
                (name, ctypes.c_int32) for name in (
                    "device",
                    "isa",
                    "num_threads",
                    "normalize",
                    "max_batch_tokens",
                    "compute",
                    "qkv_table",
                )
            ]

        detail = ctypes.create_string_buffer(512)
        self.model, self.session = ctypes.c_void_p(), ctypes.c_void_p()
        if lib.xsr_model_open(str(model_path).encode(), None, ctypes.byref(self.model), detail, ctypes.c_size_t(512)):
            sys.exit("bench_peers: " + detail.value.decode())
        options = SessionOptions(
            ctypes.sizeof(SessionOptions), 0, {"auto": 0, "ref": 1, "avx2": 2, "avx512": 3}[isa], 1, 0, 0, 0, int(qkv_table)
        )
        if lib.xsr_session_create(
            self.model, ctypes.byref(options), ctypes.byref(self.session), detail, ctypes.c_size_t(512)
        ):
            sys.exit("bench_peers: " + detail.value.decode())
        self.isa = lib.xsr_isa_string(lib.xsr_session_get_isa(self.session)).decode()
        self.version = f"{lib.xsr_version_string().decode()} ({self.isa})"
        self.dim = None

    def prepare(self, ids, dim):
        np = self.np
        self.ids = np.ascontiguousarray(ids, dtype=np.int32)
        self.offsets = np.array([0, len(ids)], dtype=np.uintp)
        self.out = np.empty(dim, dtype=np.float32)
        self.pointers = (self.ids.ctypes.data, self.offsets.ctypes.data, 1, self.out.ctypes.data, None)

    def embed(self):
        if self.lib.xsr_session_embed_ids(self.session, *self.pointers):
            sys.exit("bench_peers: xsr: " + self.lib.xsr_session_get_error(self.session).decode())
        return self.out


class OnnxRuntime:
    """The graph that onnxruntime's own transformers optimizer fuses a BERT into, written down directly."""

    name = "ONNX Runtime"

    def __init__(self, np, w, layers, heads):
        import onnx
        import onnxruntime

        self.np, self.version = np, onnxruntime.__version__
        helper, numpy_helper = onnx.helper, onnx.numpy_helper
        nodes, constants = [], []

        def constant(name, value):
            constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
            return name

        def node(op, inputs, outputs, domain="com.microsoft", **attributes):
            nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
            return outputs[0]

        embedding = "model.bert.embedding."
        x = node(
            "EmbedLayerNormalization",
            [
                "input_ids",
                "",
                constant("token", w[embedding + "word_embedding.embedding.weight"]),
                # Positions begin at row 1 of the table, row 0 is padding's.
                constant("position", w[embedding + "position_embedding.position_embeddings.weight"][1:]),
                "",
                constant("embedding.gamma", w[embedding + "layer_norm.weight"]),
                constant("embedding.beta", w[embedding + "layer_norm.bias"]),
            ],
            ["embedded", "unused_mask_index"],
            epsilon=EPS,
        )
        for i in range(layers):
            layer = Layer(np, w, i)

            def product(x, part, output):
                return node("MatMul", [x, constant(f"{i}.{part}", getattr(layer, part + "_weight").T)], [output], "")

            def skip_norm(x, skip, norm, dense, output):
                return node(
                    "SkipLayerNormalization",
                    [
                        x,
                        skip,
                        constant(f"{i}.{norm}.gamma", getattr(layer, norm + "_weight")),
                        constant(f"{i}.{norm}.beta", getattr(layer, norm + "_bias")),
                        constant(f"{i}.{dense}.bias", getattr(layer, dense + "_bias")),
                    ],
                    [output],
                    epsilon=EPS,
                )

            context = node(
                "Attention",
                [x, constant(f"{i}.qkv", layer.qkv_weight.T), constant(f"{i}.qkv.bias", layer.qkv_bias)],
                [f"{i}.context"],
                num_heads=heads,
            )
            x = skip_norm(
                product(context, "attention_output", f"{i}.attended"), x, "attention_norm", "attention_output", f"{i}.x"
            )
            h = node("Add", [product(x, "up", f"{i}.h"), constant(f"{i}.up.bias", layer.up_bias)], [f"{i}.hb"], "")
            h = node("QuickGelu", [h], [f"{i}.swish"], alpha=1.0)
            x = skip_norm(product(h, "down", f"{i}.down_out"), x, "output_norm", "down", f"{i}.y")
        node("ReduceMean", [x], ["embedding"], "", axes=[1], keepdims=0)
        graph = helper.make_graph(
            nodes,
            "encoder",
            [helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT32, [1, "tokens"])],
            [helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, [1, None])],
            constants,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=9
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def prepare(self, ids, dim):
        self.feed = {"input_ids": self.np.array([ids], dtype=self.np.int32)}

    def embed(self):
        return self.session.run(None, self.feed)[0][0]


class CTranslate2:
    """A TransformerEncoder with post-norm, LayerNorm after the embeddings and swish; the mean is NumPy's."""

    name = "CTranslate2"

    def __init__(self, np, w, layers, heads, folder):
        import ctranslate2
        from ctranslate2.specs import common_spec, transformer_spec

        self.np, self.ct2, self.version = np, ctranslate2, ctranslate2.__version__
        encoder = transformer_spec.TransformerEncoderSpec(
            layers, heads, pre_norm=False, activation=common_spec.Activation.SWISH, layernorm_embedding=True
        )
        spec = transformer_spec.TransformerEncoderModelSpec(encoder)

        def norm(target, gamma, beta):
            target.gamma, target.beta = gamma, beta

        def linear(target, weight, bias):
            target.weight, target.bias = np.ascontiguousarray(weight), bias

        embedding = "model.bert.embedding."
        encoder.scale_embeddings = False
        encoder.embeddings[0].weight = w[embedding + "word_embedding.embedding.weight"]
        encoder.position_encodings.encodings = np.ascontiguousarray(
            w[embedding + "position_embedding.position_embeddings.weight"][1:]
        )
        norm(encoder.layernorm_embedding, w[embedding + "layer_norm.weight"], w[embedding + "layer_norm.bias"])
        for i in range(layers):
            layer, target = Layer(np, w, i), encoder.layer[i]
            linear(target.self_attention.linear[0], layer.qkv_weight, layer.qkv_bias)
            linear(target.self_attention.linear[1], layer.attention_output_weight, layer.attention_output_bias)
            norm(target.self_attention.layer_norm, layer.attention_norm_weight, layer.attention_norm_bias)
            linear(target.ffn.linear_0, layer.up_weight, layer.up_bias)
            linear(target.ffn.linear_1, layer.down_weight, layer.down_bias)
            norm(target.ffn.layer_norm, layer.output_norm_weight, layer.output_norm_bias)
        tokens = [f"t{i}" for i in range(encoder.embeddings[0].weight.shape[0])]
        spec.register_vocabulary(tokens)
        spec.config.unk_token, spec.config.layer_norm_epsilon = tokens[1], EPS
        spec.validate()
        folder.mkdir()
        spec.save(str(folder))
        self.encoder = ctranslate2.Encoder(
            str(folder), device="cpu", compute_type="float32", inter_threads=1, intra_threads=1
        )

    def prepare(self, ids, dim):
        np = self.np
        self.ids = np.array([ids], dtype=np.int32)
        self.lengths = np.array([len(ids)], dtype=np.int32)

    def embed(self):
        view = self.ct2.StorageView.from_array
        result = self.encoder.forward_batch(view(self.ids), view(self.lengths))
        return self.np.asarray(result.last_hidden_state)[0].mean(axis=0)


def time_by_turns(engines, tokens, args, np, vocab_size, dim):
    """Medians and 10th percentiles of the engines, in µs, from blocks of calls by turns."""
    random = np.random.default_rng(tokens)
    times = {engine.name: [] for engine in engines}
    deadline = time.perf_counter() + args.seconds * len(engines)
    while time.perf_counter() < deadline or min(map(len, times.values())) < 30:
        for engine in engines:
            for call in range(args.block + 1):
                engine.prepare(random.integers(3, vocab_size, tokens), dim)
                start = time.perf_counter_ns()
                engine.embed()
                if call > 0:  # the first finds its weights pushed out by the engine before
                    times[engine.name].append((time.perf_counter_ns() - start) / 1000)
    return {
        name: {"p50_us": statistics.median(sample), "p10_us": statistics.quantiles(sample, n=10)[0], "calls": len(sample)}
        for name, sample in times.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release", help="build folder of xsr")
    parser.add_argument("--shape", default="2,512,8,1024,50000", help="layers,hidden,heads,intermediate,vocabulary")
    parser.add_argument("--tokens", default="1,5,10,20,50,100")
    parser.add_argument("--isa", default="auto", choices=["auto", "ref", "avx2", "avx512"], help="of xsr")
    parser.add_argument("--cpu", type=int, help="the core to run on; default: the last one allowed")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for each length and engine")
    parser.add_argument("--block", type=int, default=10, help="timed calls of one engine before the next has its turn")
    parser.add_argument("--markdown", type=pathlib.Path, help="also write the table here")
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures here")
    args = parser.parse_args()

    # Before any engine is loaded: they count the processors when they start.
    cpu = args.cpu if args.cpu is not None else max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    os.environ["OMP_NUM_THREADS"] = "1"
    import numpy as np

    layers, C, heads, F, V = map(int, args.shape.split(","))
    weights = make_weights(np, layers, C, F, V)
    with tempfile.TemporaryDirectory(prefix="bench_peers.") as folder:
        folder = pathlib.Path(folder)
        write_safetensors(folder / "model.safetensors", weights)
        convert = args.build / "converter" / "xsr-convert"
        command = [convert, folder / "model.safetensors", "-o", folder / "model.xsr", "--heads", heads]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bench_peers: xsr-convert failed:\n{done.stderr}")
        engines = [
            Xsr(np, args.build, folder / "model.xsr", args.isa, False),
            Xsr(np, args.build, folder / "model.xsr", args.isa, True),
            OnnxRuntime(np, weights, layers, heads),
            CTranslate2(np, weights, layers, heads, folder / "ct2"),
        ]
    lengths = [int(t) for t in args.tokens.split(",")]

    worst = {}
    random = np.random.default_rng(0)
    for tokens in lengths:
        ids = random.integers(3, V, tokens)
        vectors = []
        for engine in engines:
            engine.prepare(ids, C)
            vectors.append(np.array(engine.embed(), dtype=np.float64))
        for engine, vector in zip(engines[1:], vectors[1:]):
            cosine = vector @ vectors[0] / np.linalg.norm(vector) / np.linalg.norm(vectors[0])
            worst[engine.name] = min(worst.get(engine.name, 1.0), float(cosine))
            if not cosine > 0.99999:
                sys.exit(f"bench_peers: {engine.name} and xsr disagree at {tokens} tokens: cosine {cosine}; not timed")

    results = {tokens: time_by_turns(engines, tokens, args, np, V, C) for tokens in lengths}

    own, peers = engines[:2], engines[2:]
    lines = [
        f"{cpu_model()}, one core (CPU {cpu}), f32, shape {args.shape}, {datetime.date.today()}.",
        "ids to sentence vector, median µs of calls by turns; in brackets the peer's time over xsr's, without and with its",
        "table of the first layer's Q, K and V.",
        "",
        "| tokens | xsr " + engines[0].version + " | with QKV table | " + " | ".join(f"{p.name} {p.version}" for p in peers)
        + " |",
        "| ---: | ---: | ---: |" + " ---: |" * len(peers),
    ]
    for tokens, row in results.items():
        times = [row[engine.name]["p50_us"] for engine in own]
        cells = [f"{t:.0f}" for t in times]
        for p in peers:
            t = row[p.name]["p50_us"]
            cells.append(f"{t:.0f} ({t / times[0]:.2f}×, {t / times[1]:.2f}×)")
        lines.append(f"| {tokens} | " + " | ".join(cells) + " |")
    lines += ["", "Smallest cosine to xsr: " + ", ".join(f"{n} {c:.9f}" for n, c in worst.items()) + "."]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if args.markdown:
        args.markdown.write_text(text)
    if args.json:
        figures = {
            "cpu": cpu_model(),
            "pinned_cpu": cpu,
            "dtype": "f32",
            "threads": 1,
            "isa": engines[0].isa,
            "shape": args.shape,
            "versions": {engine.name: engine.version for engine in engines},
            "smallest_cosine": worst,
            "latency": [
                {
                    "tokens": tokens,
                    "engines": row,
                    "ratios": {
                        x.name: {p.name: row[p.name]["p50_us"] / row[x.name]["p50_us"] for p in peers} for x in own
                    },
                }
                for tokens, row in results.items()
            ],
        }
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    enter_venv(ROOT / ".venv", HERE / "requirements.txt", pathlib.Path(__file__).resolve())
    main()
