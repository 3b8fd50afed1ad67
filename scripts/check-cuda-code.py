#!/usr/bin/env python3
"""check-cuda-code.py LIBRARY...: what nvcc made of the kernels, as cuobjdump disassembles it.
check-cuda-code.py --ptx: the second to fifth of the following of the PTX that nvcc makes of kernels/, for machines without
cuobjdump or libraries.

- Each library holds machine code for sm_80 and sm_90a, and PTX for devices to come.
- Every attention_*bf16_kernel multiplies on the tensor cores (HMMA); each library must have some.
- The attention in bf16 copies past the registers (cp.async, LDGSTS), so that its loads are under way together.
- Swish in bf16 divides by one instruction and not by ten (div, FCHK).
- What training moves four floats at a time (the update, activations, dropout, LayerNorm, logits, the embedding's
  gradient) is loaded by 128 bits; the second library, that of training, must have some.
- No kernel of the first library touches local memory (LDL, STL): nothing spills. (In training cos takes some; ptxas
  warns where registers spill, and a warning ends the build.)

Both tools are looked for on the PATH, in the bin folder of $CUDA_PATH, $CUDA_HOME and /usr/local/cuda, and where
install-deps.sh puts them; without one the exit status is 77.
"""
import collections
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys

ARCHITECTURES = {"sm_80", "sm_90a"}
ON_TENSOR_CORES = re.compile(r"attention_\w*bf16_kernel")
PAST_REGISTERS = re.compile(r"attention_(backward_\w*|training_forward_)bf16_kernel|attention_forward_bf16_kernelILi\d+ELb1E")
WITHOUT_DIVISION = re.compile(r"activation_(forward|backward)_bf16_kernelI(Lb1E)+E")  # of swish, eight columns at a time
FOUR_AT_ONCE = re.compile(  # with the file in front, for sessions have kernels of the same names
    r"(optimizer|dropout|training|loss|embedding_backward)_cuda_cu_\w*(adam_update|sum_of_squares|narrow_forward|dropout_forward"
    r"|activation_forward|activation_backward|layernorm_forward|layernorm_backward|layernorm_backward_rows|vocabulary_tile_forward"
    r"|vocabulary_tile_backward|embedding_backward)_kernel"
)
HEADER = re.compile(r"^\s*(arch = |Function : )(\S+)")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(\S*)")


ROOT = pathlib.Path(__file__).resolve().parent.parent
ENTRY = re.compile(r"\.entry (\w+)")


def find_tool(name):
    folders = [os.path.join(os.environ[variable], "bin") for variable in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(variable)]
    folders += ["/usr/local/cuda/bin", str(ROOT / ".deps" / "cuda-tools")]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def kernels(sass):
    """{(architecture, function): Counter of opcodes}"""
    found, architecture, opcodes = {}, None, None
    for line in sass.splitlines():
        if header := HEADER.match(line):
            if header.group(1).startswith("arch"):
                architecture, opcodes = header.group(2), None
            else:
                opcodes = found.setdefault((architecture, header.group(2)), collections.Counter())
        elif opcodes is not None and (instruction := INSTRUCTION.match(line)):
            opcodes[instruction.group(1)] += 1
            opcodes["128 bits"] += instruction.group(1) == "LDG" and ".128" in instruction.group(2)
    return found


def check_ptx():
    nvcc = find_tool("nvcc")
    if nvcc is None:
        print("check-cuda-code: skipped: there is no nvcc")
        return 77
    options = ["-std=c++17", "-O3", f"-I{ROOT}", f"-I{ROOT / 'include'}", "-arch=compute_80", "-ptx", "-o", "-"]
    sources = sorted(ROOT.glob("kernels/*/*_cuda.cu"))
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        texts = list(pool.map(lambda source: run(nvcc, *options, str(source)), sources))
    wrong, tensor, past, without, four = [], 0, 0, 0, 0
    for text in texts:
        pieces = ENTRY.split(text)  # what is in front of the first kernel, then names and bodies by turns
        for function, body in zip(pieces[1::2], pieces[2::2]):
            if ON_TENSOR_CORES.search(function):
                tensor += 1
                if "mma.sync" not in body:
                    wrong.append(f"{function}: no mma.sync, so not on the tensor cores")
            if PAST_REGISTERS.search(function):
                past += 1
                if "cp.async" not in body:
                    wrong.append(f"{function}: no cp.async, so it waits for each load")
            if WITHOUT_DIVISION.search(function):
                without += 1
                if "\tdiv." in body:
                    wrong.append(f"{function}: a division of ten instructions")
            if FOUR_AT_ONCE.search(function):
                four += 1
                if not re.search(r"ld\.global(\.\w+)*\.v4", body):
                    wrong.append(f"{function}: loads nothing by 128 bits")
    if 0 in (tensor, past, without, four):
        wrong.append("no kernel is on the tensor cores, copies past the registers, is swish in bf16, or moves four floats at a time")
    print(f"check-cuda-code: PTX of {len(sources)} files: {tensor} kernels of attention on the tensor cores, {four} by four floats")
    return report(wrong)


def report(wrong):
    for line in wrong:
        print(f"check-cuda-code: {line}", file=sys.stderr)
    return 1 if wrong else 0


def main(libraries):
    cuobjdump = find_tool("cuobjdump")
    if cuobjdump is None:
        print("check-cuda-code: skipped: there is no cuobjdump")
        return 77
    if not libraries:
        sys.exit("usage: check-cuda-code.py LIBRARY...")
    wrong = []
    for number, library in enumerate(libraries):
        name = os.path.basename(library)
        found = kernels(run(cuobjdump, "-sass", library))
        missing = ARCHITECTURES - {architecture for architecture, _ in found}
        if missing:
            wrong.append(f"{name} has no code for {', '.join(sorted(missing))}")
        if not run(cuobjdump, "-lptx", library).strip():
            wrong.append(f"{name} has no PTX")
        tensor = past = without = four = 0
        for (architecture, function), opcodes in found.items():
            if sum(opcodes.values()) < 2:
                wrong.append(f"{name}: {function} for {architecture}: not understood")
            for opcode in ("LDL", "STL"):
                if number == 0 and opcodes[opcode]:
                    wrong.append(f"{name}: {function} for {architecture}: {opcodes[opcode]} {opcode}: it spills")
            if ON_TENSOR_CORES.search(function):
                tensor += 1
                if not opcodes["HMMA"]:
                    wrong.append(f"{name}: {function} for {architecture}: no HMMA, so not on the tensor cores")
            if PAST_REGISTERS.search(function):
                past += 1
                if not opcodes["LDGSTS"]:
                    wrong.append(f"{name}: {function} for {architecture}: no LDGSTS, so it waits for each load")
            if WITHOUT_DIVISION.search(function):
                without += 1
                if opcodes["FCHK"]:
                    wrong.append(f"{name}: {function} for {architecture}: {opcodes['FCHK']} FCHK: divisions of ten instructions")
            if FOUR_AT_ONCE.search(function):
                four += 1
                if not opcodes["128 bits"]:
                    wrong.append(f"{name}: {function} for {architecture}: loads nothing by 128 bits")
        if 0 in (tensor, past, without):
            wrong.append(f"{name} has no kernel on the tensor cores, that copies past the registers, or of swish in bf16")
        if number == 1 and four == 0:
            wrong.append(f"{name} has none of the kernels that move four floats at a time")
        print(
            f"check-cuda-code: {name}: {len(found)} kernels, {tensor} of attention on the tensor cores, "
            f"{four} by four floats at a time"
        )
    return report(wrong)


if __name__ == "__main__":
    sys.exit(check_ptx() if sys.argv[1:] == ["--ptx"] else main(sys.argv[1:]))
