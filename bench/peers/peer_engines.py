"""The engines of bench_peers.py: one class each, all with the weights of one .xsr file.

An engine is made for `threads` threads a call and `streams` calls at once, and turns right-padded ids [B, T] with
lengths [B] into embeddings [B, C]. What it needs on disk it builds in `folder` when it is not there yet.
Shapes: B sentences, T longest sentence, C hidden size.
"""

import concurrent.futures
import ctypes
import os
import pathlib
import threading

import numpy as np
from peer_files import cpu_flags, read_xsr


class Unavailable(Exception):
    """A form that this machine, or this build, cannot run; the text says why."""


class Weights:
    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.config, self.tensors, self.tokenizer = read_xsr(path)
        c = self.config
        self.layers, self.heads, self.dim = c["num_layers"], c["num_heads"], c["hidden_size"]
        self.vocab_size, self.max_tokens, self.eps = c["vocab_size"], c["max_seq_len"], c["layer_norm_eps"]
        self.lowercase = bool(c["flags"] & 4)
        plain = c["activation"] == 1 and c["norm_placement"] == 0 and c["pooling"] == 0 and c["flags"] & ~4 == 0
        if not plain or c["num_token_types"] or not self.tokenizer:
            raise Unavailable(f"{path}: the peers are set up for post-norm, swish, mean pooling and a tokenizer only")

    def __getitem__(self, name):
        return self.tensors[name]

    @property
    def positions(self):
        """The position rows from a sentence's first token on."""
        return np.ascontiguousarray(self["embedding.position"][self.config["position_offset"] :])

    def tokenize(self, texts, threads=1):
        """Lists of ids, by SentencePiece's own library."""
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_proto=self.tokenizer)
        if self.lowercase:
            texts = [text.lower() for text in texts]
        return [ids[: self.max_tokens] for ids in processor.encode(texts, num_threads=threads)]


def pad(sentences):
    """-> ids [B, T] int32, 0 where there is no token, and lengths [B] int32."""
    lengths = np.fromiter(map(len, sentences), np.int32, len(sentences))
    ids = np.zeros((len(sentences), lengths.max()), np.int32)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(sentences)
    return ids, lengths


class Engine:
    streams = 1

    def close(self):
        """Ends the processes of its own, if it has any."""

    def embed(self, ids, lengths):
        raise NotImplementedError

    def embed_batch(self, ids, lengths):
        """The same for a batch of a corpus, which may be of one sentence too."""
        return self.embed(ids, lengths)

    def corpus(self, sentences, batch):
        """[n, C] for n sentences: sorted by length, longest first, in batches; `streams` of them at once."""
        order = np.argsort([-len(s) for s in sentences], kind="stable")
        out = None

        def one(rows):
            return rows, self.embed_batch(*pad([sentences[i] for i in rows]))

        chunks = [order[i : i + batch] for i in range(0, len(order), batch)]
        if self.streams > 1:
            with concurrent.futures.ThreadPoolExecutor(self.streams) as pool:
                done = list(pool.map(one, chunks))
        else:
            done = map(one, chunks)
        for rows, vectors in done:
            if out is None:
                out = np.empty((len(sentences), vectors.shape[1]), np.float32)
            out[rows] = vectors
        return out


class Xsr(Engine):
    """libxsr.so through ctypes. It batches and spreads over threads itself: a corpus is one call."""

    COMPUTE = {"f32": 0, "bf16": 1, "bf16x3": 2, "int8": 3}

    def __init__(self, weights, folder, threads, streams, dtype, build, table=False):
        path = pathlib.Path(build) / "runtime" / "libxsr.so"
        lib = self.lib = ctypes.CDLL(str(path))
        for name in ("xsr_version_string", "xsr_isa_string", "xsr_session_get_error"):
            getattr(lib, name).restype = ctypes.c_char_p
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        lib.xsr_session_get_error.argtypes = lib.xsr_session_get_isa.argtypes = [pointer]
        lib.xsr_session_embed_ids.argtypes = [pointer, pointer, pointer, size, pointer, pointer]

        class Text(ctypes.Structure):
            _fields_ = [("data", ctypes.c_char_p), ("size", size)]

        self.Text = Text
        lib.xsr_session_tokenize.argtypes = [pointer, Text, pointer, size, pointer, pointer]

        class SessionOptions(ctypes.Structure):
            _fields_ = [("size", size)] + [
                (name, ctypes.c_int32)
                for name in ("device", "isa", "num_threads", "normalize", "max_batch_tokens", "compute", "qkv_table")
            ]

        detail = ctypes.create_string_buffer(512)
        self.model, self.session = pointer(), pointer()
        if lib.xsr_model_open(str(weights.path).encode(), None, ctypes.byref(self.model), detail, size(512)):
            raise Unavailable(detail.value.decode())
        options = SessionOptions(ctypes.sizeof(SessionOptions), 0, 0, threads * streams, 1, 0, self.COMPUTE[dtype], int(table))
        if lib.xsr_session_create(self.model, ctypes.byref(options), ctypes.byref(self.session), detail, size(512)):
            raise Unavailable(detail.value.decode())
        self.isa = lib.xsr_isa_string(lib.xsr_session_get_isa(self.session)).decode()
        self.version, self.dim, self.max_tokens = f"{lib.xsr_version_string().decode()} ({self.isa})", weights.dim, weights.max_tokens

    def check(self, status):
        if status:
            raise RuntimeError("xsr: " + self.lib.xsr_session_get_error(self.session).decode())

    def embed_packed(self, ids, offsets):
        out = np.empty((len(offsets) - 1, self.dim), np.float32)
        self.check(
            self.lib.xsr_session_embed_ids(
                self.session, ids.ctypes.data, offsets.ctypes.data, len(offsets) - 1, out.ctypes.data, None
            )
        )
        return out

    def embed(self, ids, lengths):
        packed = ids if len(ids) == 1 else ids[np.arange(ids.shape[1]) < lengths[:, None]]
        return self.embed_packed(packed, np.concatenate(([0], np.cumsum(lengths))).astype(np.uintp))

    def corpus(self, sentences, batch):
        offsets = np.cumsum([0, *map(len, sentences)]).astype(np.uintp)
        return self.embed_packed(np.concatenate(sentences).astype(np.int32, copy=False), offsets)

    def tokenize(self, text):
        data = text.encode()
        ids, count = np.empty(self.max_tokens, np.int32), ctypes.c_size_t()
        self.check(
            self.lib.xsr_session_tokenize(
                self.session, self.Text(data, len(data)), ids.ctypes.data, len(ids), ctypes.byref(count), None
            )
        )
        return ids[: count.value].tolist()


def pack(sentences):
    """-> ids, positions and sentences [tokens] int32, the sentences' ends [B + 1] int64 and the longest one's length."""
    lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
    ends = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.repeat(np.arange(len(sentences), dtype=np.int32), lengths)
    positions = (np.arange(ends[-1]) - ends[rows]).astype(np.int32)
    return np.concatenate(sentences), positions, rows, ends, int(lengths.max())


def torch_encoder(weights, packed=False):
    """The model as torch.nn layers, in eval mode: forward(ids) for sentences of one length, forward(ids, lengths); packed:
    forward(*pack(sentences)), where nothing is padded."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    def tensor(name):
        return torch.from_numpy(weights[name])

    def dense(name):
        layer = nn.Linear(*weights[name + ".weight"].shape[::-1])
        layer.weight.data, layer.bias.data = tensor(name + ".weight"), tensor(name + ".bias")
        return layer

    def norm(name):
        layer = nn.LayerNorm(weights.dim, eps=weights.eps)
        layer.weight.data, layer.bias.data = tensor(name + ".weight"), tensor(name + ".bias")
        return layer

    class Layer(nn.Module):
        def __init__(self, at):
            super().__init__()
            self.qkv, self.attention_output = dense(at + "qkv"), dense(at + "attention_output")
            self.up, self.down = dense(at + "up"), dense(at + "down")
            self.attention_norm, self.output_norm = norm(at + "attention_norm"), norm(at + "output_norm")

        def forward(self, x, attend):
            qkv = self.qkv(x).unflatten(-1, (3, weights.heads, weights.dim // weights.heads))
            context = attend(*qkv.unbind(-3)).flatten(-2)
            x = self.attention_norm(self.attention_output(context) + x)
            return self.output_norm(self.down(F.silu(self.up(x))) + x)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Embedding.from_pretrained(tensor("embedding.token"))
            self.position = nn.Parameter(torch.from_numpy(weights.positions), requires_grad=False)
            self.norm = norm("embedding.norm")
            self.layer = nn.ModuleList(Layer(f"layer.{i}.") for i in range(weights.layers))

        def forward(self, ids, lengths=None):
            x = self.norm(self.token(ids) + self.position[: ids.shape[1]])
            real = None if lengths is None else torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]

            def attend(*qkv):  # [B, T, heads, head]
                mask = None if real is None else real[:, None, None, :]
                return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv), attn_mask=mask).transpose(1, 2)

            for layer in self.layer:
                x = layer(x, attend)
            if real is None:
                return x.float().mean(1)
            return (x.float() * real[..., None]).sum(1) / lengths[:, None]

    class Packed(Encoder):
        def forward(self, ids, positions, sentences, ends, longest):
            x = self.norm(self.token(ids) + self.position[positions])

            def jagged(x):  # [tokens, heads, head] -> [B, heads, its tokens, head]
                x = x if x.is_cuda else x.contiguous()  # the processor's attention of nested tensors takes no views
                return torch.nested.nested_tensor_from_jagged(x, ends, min_seqlen=1, max_seqlen=longest).transpose(1, 2)

            def attend(*qkv):
                return F.scaled_dot_product_attention(*map(jagged, qkv)).transpose(1, 2).values()

            for layer in self.layer:
                x = layer(x, attend)
            sums = torch.zeros(len(ends) - 1, x.shape[1], device=x.device).index_add(0, sentences, x.float())
            return sums / ends.diff()[:, None]

    return (Packed() if packed else Encoder()).eval().requires_grad_(False)


class PyTorch(Engine):
    """torch.nn and scaled_dot_product_attention, inference_mode; compiled: torch.compile with weights frozen."""

    def __init__(self, weights, folder, threads, streams, dtype, compiled=False):
        import torch

        if dtype == "bf16" and not cpu_flags() & {"avx512_bf16", "amx_bf16"}:
            raise Unavailable("this CPU has no bf16 products")
        torch.set_num_threads(threads)
        self.torch, self.version, self.streams = torch, torch.__version__, streams
        module = torch_encoder(weights)
        module = module.bfloat16() if dtype == "bf16" else module
        self.eager = self.single = self.batch = module
        if compiled:
            import torch._inductor.config

            torch._inductor.config.freezing = True  # constant weights, packed for the products
            # One sentence at a time: a graph of its own for each length, its products chosen by trying. Batches: one graph
            # for all shapes, where trying chooses nothing faster and takes a minute.
            self.single = torch.compile(module, dynamic=False, mode="max-autotune-no-cudagraphs")
            self.batch = torch.compile(module, dynamic=True)

    def embed(self, ids, lengths):
        return self.run(self.single if len(ids) == 1 else self.batch, ids, lengths)

    def embed_batch(self, ids, lengths):
        # One sentence that is left over is nothing to compile for.
        return self.run(self.eager if len(ids) == 1 else self.batch, ids, lengths)

    def run(self, module, ids, lengths):
        mask = () if lengths.min() == ids.shape[1] else (self.torch.from_numpy(lengths),)
        with self.torch.inference_mode():
            return module(self.torch.from_numpy(ids), *mask).numpy()


class OnnxRuntime(Engine):
    """The graph that onnxruntime's transformers optimizer fuses a BERT into, written down directly; int8: its dynamic
    quantisation by channel."""

    def __init__(self, weights, folder, threads, streams, dtype):
        import onnxruntime

        self.version, self.streams = onnxruntime.__version__, streams
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.sessions = []
        for masked in (False, True):
            path = folder / f"encoder{'-masked' if masked else ''}.{dtype}.onnx"
            if not path.exists():
                self.build(weights, path, masked, dtype)
            self.sessions.append(
                onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            )

    def build(self, weights, path, masked, dtype):
        import onnx
        from onnxruntime import quantization

        model = self.graph(onnx, weights, masked)
        if dtype == "f32":
            onnx.save(model, path)
            return
        plain = path.with_suffix(".plain")
        onnx.save(model, plain)
        # Without VNNI the 8-bit products add pairs in 16 bits, which 8-bit weights overflow: 7 bits then.
        vnni = bool(cpu_flags() & {"avx512_vnni", "avx_vnni"})
        quantization.quantize_dynamic(
            plain,
            path,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=not vnni,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # the fused operators infer no types
        )

    @staticmethod
    def graph(onnx, weights, masked):
        helper, nodes, constants = onnx.helper, [], []

        def constant(name, value=None):
            value = weights[name] if value is None else value
            constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
            return name

        def node(op, inputs, output, domain="com.microsoft", more=(), **attributes):
            nodes.append(helper.make_node(op, inputs, [output, *more], domain=domain, **attributes))
            return output

        def product(x, name, output):
            return node("MatMul", [x, constant(name + ".weight", weights[name + ".weight"].T)], output, "")

        def skip_norm(x, skip, norm, dense, output):
            inputs = [x, skip, constant(norm + ".weight"), constant(norm + ".bias"), constant(dense + ".bias")]
            return node("SkipLayerNormalization", inputs, output, epsilon=weights.eps)

        tables = [constant("embedding.token"), constant("embedding.position", weights.positions), ""]
        norm = [constant("embedding.norm.weight"), constant("embedding.norm.bias")]
        x = node("EmbedLayerNormalization", ["ids", "", *tables, *norm], "x", more=["unused"], epsilon=weights.eps)
        for i in range(weights.layers):
            at = f"layer.{i}."
            qkv = constant(at + "qkv.weight", weights[at + "qkv.weight"].T)
            inputs = [x, qkv, constant(at + "qkv.bias")] + (["lengths"] if masked else [])
            context = node("Attention", inputs, at + "context", num_heads=weights.heads)
            dense = at + "attention_output"
            x = skip_norm(product(context, dense, at + "attended"), x, at + "attention_norm", dense, at + "x")
            h = node("Add", [product(x, at + "up", at + "h"), constant(at + "up.bias")], at + "hb", "")
            h = node("QuickGelu", [h], at + "swish", alpha=1.0)
            x = skip_norm(product(h, at + "down", at + "down_out"), x, at + "output_norm", at + "down", at + "y")
        if masked:  # shares [B, 1, T]: 1 / length where there is a token
            node("MatMul", ["shares", x], "pooled", "")
            node("Squeeze", ["pooled", constant("axis", np.array([1], np.int64))], "embedding", "")
        else:
            node("ReduceMean", [x], "embedding", "", axes=[1], keepdims=0)
        info, types = helper.make_tensor_value_info, onnx.TensorProto
        inputs = [info("ids", types.INT32, ["batch", "tokens"])]
        if masked:
            inputs += [info("lengths", types.INT32, ["batch"]), info("shares", types.FLOAT, ["batch", 1, "tokens"])]
        outputs = [info("embedding", types.FLOAT, ["batch", weights.dim])]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(
            helper.make_graph(nodes, "encoder", inputs, outputs, constants), opset_imports=opsets, ir_version=9
        )

    def embed(self, ids, lengths):
        if lengths.min() == ids.shape[1]:
            return self.sessions[0].run(None, {"ids": ids})[0]
        shares = (np.arange(ids.shape[1]) < lengths[:, None]) / lengths[:, None].astype(np.float32)
        feed = {"ids": ids, "lengths": lengths, "shares": shares.astype(np.float32)[:, None]}
        return self.sessions[1].run(None, feed)[0]


class CTranslate2(Engine):
    """A TransformerEncoder with post-norm, LayerNorm after the embeddings and swish; the mean is NumPy's."""

    def __init__(self, weights, folder, threads, streams, dtype):
        import ctranslate2

        self.ct2, self.version, self.streams = ctranslate2, ctranslate2.__version__, streams
        path = folder / "ctranslate2"
        if not path.exists():
            self.build(weights, path)
        compute_type = {"f32": "float32", "int8": "int8_float32"}[dtype]
        self.encoder = ctranslate2.Encoder(
            str(path), device="cpu", compute_type=compute_type, inter_threads=streams, intra_threads=threads
        )

    def build(self, weights, path):
        from ctranslate2.specs import common_spec, transformer_spec

        encoder = transformer_spec.TransformerEncoderSpec(
            weights.layers, weights.heads, pre_norm=False, activation=common_spec.Activation.SWISH, layernorm_embedding=True
        )
        spec = transformer_spec.TransformerEncoderModelSpec(encoder)

        def norm(target, name):
            target.gamma, target.beta = weights[name + ".weight"], weights[name + ".bias"]

        def dense(target, name):
            target.weight, target.bias = weights[name + ".weight"], weights[name + ".bias"]

        encoder.scale_embeddings = False
        encoder.embeddings[0].weight = weights["embedding.token"]
        encoder.position_encodings.encodings = weights.positions
        norm(encoder.layernorm_embedding, "embedding.norm")
        for i in range(weights.layers):
            at, target = f"layer.{i}.", encoder.layer[i]
            dense(target.self_attention.linear[0], at + "qkv")
            dense(target.self_attention.linear[1], at + "attention_output")
            norm(target.self_attention.layer_norm, at + "attention_norm")
            dense(target.ffn.linear_0, at + "up")
            dense(target.ffn.linear_1, at + "down")
            norm(target.ffn.layer_norm, at + "output_norm")
        tokens = [f"t{i}" for i in range(weights.vocab_size)]
        spec.register_vocabulary(tokens)
        spec.config.unk_token, spec.config.layer_norm_epsilon = tokens[1], weights.eps
        spec.validate()
        path.mkdir()
        spec.save(str(path))

    def embed(self, ids, lengths):
        view = self.ct2.StorageView.from_array
        states = np.asarray(self.encoder.forward_batch(view(ids), view(lengths)).last_hidden_state)
        if lengths.min() == ids.shape[1]:
            return states.mean(axis=1)
        real = np.arange(ids.shape[1]) < lengths[:, None]
        return np.einsum("btc,bt->bc", states, real / lengths[:, None].astype(np.float32), dtype=np.float32)


class OpenVino(Engine):
    """The PyTorch module through openvino.convert_model; f32 and bf16: the precision hint; int8: NNCF's post-training
    quantisation for transformers, calibrated on sentences of the corpus."""

    def __init__(self, weights, folder, threads, streams, dtype):
        import openvino

        if dtype == "bf16" and not cpu_flags() & {"avx512_bf16", "amx_bf16"}:
            raise Unavailable("this CPU has no bf16 products")
        self.version, self.streams = openvino.__version__.split("-")[0], streams
        core = openvino.Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads * streams,
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bf16" else "f32",
        }
        self.models, self.local = [], threading.local()
        for masked in (False, True):
            path = folder / f"openvino{'-masked' if masked else ''}.{'int8' if dtype == 'int8' else 'f32'}.xml"
            if not path.exists():
                self.build(weights, folder, path, masked, dtype)
            self.models.append(core.compile_model(str(path), "CPU", settings))

    @staticmethod
    def build(weights, folder, path, masked, dtype):
        import openvino
        import torch

        ids, lengths = torch.ones(2, 5, dtype=torch.int32), torch.tensor([5, 3], dtype=torch.int32)
        example = (ids, lengths) if masked else (ids,)
        shapes = [openvino.PartialShape([-1, -1])] + ([openvino.PartialShape([-1])] if masked else [])
        model = openvino.convert_model(torch_encoder(weights), example_input=example, input=shapes)
        if dtype == "int8":
            import nncf

            sentences = np.load(folder / "calibration.npy", allow_pickle=True)
            batches = [pad(sentences[i : i + 2]) if masked else (pad(sentences[i : i + 1])[0],) for i in range(0, len(sentences), 2)]
            model = nncf.quantize(
                model, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches)
            )
        openvino.save_model(model, path, compress_to_fp16=False)

    def embed(self, ids, lengths):
        masked = lengths.min() < ids.shape[1]
        if not hasattr(self.local, "requests"):
            self.local.requests = [model.create_infer_request() for model in self.models]
        return self.local.requests[int(masked)].infer((ids, lengths) if masked else (ids,))[0]


class SentenceTransformers(Engine):
    """SentenceTransformer.encode over a module with the same weights and tokenizer; texts in, vectors out. Streams are the processes
    of its own pool."""

    def __init__(self, weights, folder, threads, streams, dtype):
        import sentence_transformers

        self.version, self.pool = sentence_transformers.__version__, None
        module = sentence_transformer_module(weights, threads)
        self.model = sentence_transformers.SentenceTransformer(modules=[module], device="cpu")
        if streams > 1:
            self.pool = self.model.start_multi_process_pool(["cpu"] * streams)

    def encode(self, texts, batch):
        return self.model.encode(texts, batch_size=batch, show_progress_bar=False, convert_to_numpy=True, pool=self.pool)

    def close(self):
        if self.pool:
            self.model.stop_multi_process_pool(self.pool)


def read_sentence_transformer_module(path, threads):
    """The same in a process of the pool, which reads the file itself."""
    import tqdm

    tqdm.tqdm.set_lock(threading.RLock())  # its own is a semaphore too, which the end of the pool would leave behind
    return sentence_transformer_module(Weights(path), threads)


def sentence_transformer_module(weights, threads):
    import sentencepiece
    import torch
    from sentence_transformers.models import Module

    torch.set_num_threads(threads)

    class XsrModule(Module):
        """ids and lengths as features in, sentence_embedding out."""

        def __init__(self):
            super().__init__()
            self.encoder = torch_encoder(weights)
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=weights.tokenizer)

        def __reduce__(self):
            return read_sentence_transformer_module, (weights.path, threads)

        def tokenize(self, texts, **kwargs):
            texts = [text.lower() if weights.lowercase else text for text in texts]
            ids, lengths = pad([s[: weights.max_tokens] for s in self.processor.encode(texts, num_threads=threads)])
            return {"input_ids": torch.from_numpy(ids), "lengths": torch.from_numpy(lengths)}

        preprocess = tokenize

        def forward(self, features, **kwargs):
            ids, lengths = features["input_ids"], features["lengths"]
            mask = () if bool((lengths == ids.shape[1]).all()) else (lengths,)
            features["sentence_embedding"] = self.encoder(ids, *mask)
            return features

        def get_sentence_embedding_dimension(self):
            return weights.dim

        def save(self, output_path, *args, **kwargs):
            raise NotImplementedError("this module is for a race only")

    return XsrModule()


class Form:
    """One engine in one precision, as a row of the table."""

    def __init__(self, key, name, engine, make, dtype, **settings):
        self.key, self.name, self.engine, self.make, self.dtype = key, name, engine, make, dtype
        self.settings = settings
        self.kind = "xsr" if make is Xsr else "peer"
        self.texts_only = make is SentenceTransformers

    def create(self, weights, folder, threads, streams, build):
        extra = dict(self.settings, build=build) if self.make is Xsr else self.settings
        return self.make(weights, folder, threads, streams, self.dtype, **extra)


FORMS = [
    *(Form(f"xsr-{d}", f"xsr {d}", "xsr", Xsr, d) for d in ("f32", "bf16x3", "bf16", "int8")),
    *(Form(f"xsr-{d}-table", f"xsr {d} + QKV table", "xsr", Xsr, d, table=True) for d in ("f32", "bf16", "int8")),
    *(Form(f"torch-{d}", f"PyTorch {d}", "PyTorch", PyTorch, d) for d in ("f32", "bf16")),
    *(Form(f"torch-compiled-{d}", f"PyTorch {d} compiled", "PyTorch", PyTorch, d, compiled=True) for d in ("f32", "bf16")),
    Form("sentence-transformers", "sentence-transformers", "sentence-transformers", SentenceTransformers, "f32"),
    *(Form(f"onnxruntime-{d}", f"ONNX Runtime {d}", "ONNX Runtime", OnnxRuntime, d) for d in ("f32", "int8")),
    *(Form(f"ctranslate2-{d}", f"CTranslate2 {d}", "CTranslate2", CTranslate2, d) for d in ("f32", "int8")),
    *(Form(f"openvino-{d}", f"OpenVINO {d}", "OpenVINO", OpenVino, d) for d in ("f32", "bf16", "int8")),
]
FORM = {form.key: form for form in FORMS}
