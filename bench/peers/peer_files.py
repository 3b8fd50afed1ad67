"""What the scripts of this folder share: their virtual environments, files of tensors, what a form must reach, the CPU's name."""

import json
import os
import pathlib
import struct
import subprocess
import sys

# Cosine to xsr f32 on the processor that each sentence of a form must reach before it is timed.
LEAST_COSINE = {"f32": 0.99999, "bf16x3": 0.99999, "bf16": 0.99, "int8": 0.9}

# The C library gives large blocks back to the system and fetches new pages for the next ones. The peers keep what they have
# freed, on huge pages.
PEERS_MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# As in tests/support/paths.h: corpora and golden tensors that are too large for the repository.
SHARED = pathlib.Path(os.environ.get("XSR_SHARED") or ROOT.parent / "shared")
GOLDEN = pathlib.Path(os.environ.get("XSR_GOLDEN") or SHARED / "golden")


def enter_venv(venv, requirements, script):
    """Runs script again with the virtual environment's Python, after making it if need be, and with PEERS_MALLOC."""
    python = venv / "bin" / "python"
    if pathlib.Path(sys.prefix).resolve() == venv.resolve() and "GLIBC_TUNABLES" in os.environ:
        return
    os.environ.setdefault("GLIBC_TUNABLES", PEERS_MALLOC)
    stamp, wanted = venv / "peers-requirements.txt", requirements.read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"{script.stem}: installing {requirements.name} into", venv, file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)
        stamp.write_text(wanted)
    os.execv(python, [str(python), str(script), *sys.argv[1:]])


def reason(error):
    """Of an exception in one line: its type and first line, and the next where that one only announces it."""
    lines = [line for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def own_environment():
    """Of a program of xsr's: as its users run it, without PEERS_MALLOC."""
    return {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}


def write_safetensors(path, tensors):
    """NumPy float32 tensors by name."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


def read_safetensors(path):
    """(tensors by name, mapped and read-only; metadata)."""
    import numpy as np

    types = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "<u1"}
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    data = np.memmap(path, np.uint8, "r", offset=8 + size)
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        tensors[name] = data[first:last].view(types[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


def xsr_tensors(data):
    """(name, storage type, float32 values in row-major order) of each tensor of a .xsr file's bytes; docs/FORMAT.md, unverified."""
    import numpy as np

    table_at, _, names_at = struct.unpack_from("<3Q", data, 48)
    for i in range(struct.unpack_from("<I", data, 128)[0]):
        at = table_at + 128 * i
        name_offset, name_size, dtype, layout, rank = struct.unpack_from("<5I", data, at)
        dims = struct.unpack_from("<4Q", data, at + 24)[:rank]
        offset, size, scales, scales_size = struct.unpack_from("<4Q", data, at + 56)
        raw = np.frombuffer(data, {0: "<f4", 1: "<f2", 2: "<u2", 3: "i1"}[dtype], size // (4, 2, 2, 1)[dtype], offset)
        if layout == 1:
            kp = (1, 2, 2, 4)[dtype]
            panels, depth = -(-dims[0] // 32), -(-dims[1] // kp)
            raw = raw.reshape(panels, depth, 32, kp).transpose(0, 2, 1, 3).reshape(panels * 32, depth * kp)
            raw = raw[: dims[0], : dims[1]]
        raw = raw.reshape(dims)
        value = (raw.astype(np.uint32) << 16).view(np.float32) if dtype == 2 else raw.astype(np.float32)
        if dtype == 3:
            value *= np.frombuffer(data, "<f4", scales_size // 4, scales).reshape(-1, *[1] * (rank - 1))
        name = data[names_at + name_offset : names_at + name_offset + name_size].decode()
        yield name, ("f32", "f16", "bf16", "i8")[dtype], np.ascontiguousarray(value)


def read_xsr(path):
    """(config, float32 tensors by name in row-major order, tokenizer bytes) of a .xsr file; docs/FORMAT.md, unverified."""
    data = pathlib.Path(path).read_bytes()
    if data[:8] != b"\x89XSR\r\n\x1a\n" or struct.unpack_from("<I", data, 8) != (1,):
        raise ValueError(f"{path}: no .xsr file of version 1")
    (config_at,), (tokenizer_at, tokenizer_size) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<2Q", data, 96)
    names = (
        "family num_layers hidden_size num_heads intermediate_size vocab_size num_positions position_offset"
        " num_token_types max_seq_len embedding_size activation norm_placement pooling pooler_activation flags"
    ).split()
    config = dict(zip(names, struct.unpack_from("<I14iI", data, config_at)))
    (config["layer_norm_eps"],) = struct.unpack_from("<d", data, config_at + 64)
    tensors = {name: value for name, _, value in xsr_tensors(data)}
    return config, tensors, data[tokenizer_at : tokenizer_at + tokenizer_size]


def cpu_model():
    """Name, family and model, since a virtual machine's name often tells neither: "AMD EPYC (family 25, model 1)"."""
    with open("/proc/cpuinfo") as file:
        return cpu_model_of(file)


def cpu_model_of(cpuinfo):
    """The same of the lines of another /proc/cpuinfo."""
    fields = {}
    for line in cpuinfo:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    name = fields.get("model name", "unknown")
    if "cpu family" in fields and "model" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def cpu_flags():
    with open("/proc/cpuinfo") as file:
        return next((set(line.split(": ")[1].split()) for line in file if line.startswith("flags")), set())
