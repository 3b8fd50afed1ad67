#!/usr/bin/env python3
"""check-cuda-code.py LIBRARY...: what nvcc made of the kernels, as cuobjdump disassembles it.

- Each library holds machine code for sm_80 and sm_90a, and PTX for devices to come.
- Every attention_*bf16_kernel multiplies on the tensor cores (HMMA); each library must have some.
- What training moves four floats at a time (the update, activations, dropout, LayerNorm, logits, the embedding's
  gradient) is loaded by 128 bits; the second library, that of training, must have some.
- No kernel of the first library touches local memory (LDL, STL): nothing spills. (In training cos takes some; ptxas
  warns where registers spill, and a warning ends the build.)

cuobjdump is looked for on the PATH and in the bin folder of $CUDA_PATH, $CUDA_HOME and /usr/local/cuda; without one the
exit status is 77.
"""
import collections
import os
import re
import shutil
import subprocess
import sys

ARCHITECTURES = {"sm_80", "sm_90a"}
ON_TENSOR_CORES = re.compile(r"attention_\w*bf16_kernel")
FOUR_AT_ONCE = re.compile(  # with the file in front, for sessions have kernels of the same names
    r"(optimizer|dropout|training|loss|embedding_backward)_cuda_cu_\w*(adam_update|sum_of_squares|narrow_forward|dropout_forward"
    r"|activation_forward|activation_backward|layernorm_forward|layernorm_backward_rows|vocabulary_tile_forward"
    r"|vocabulary_tile_backward|embedding_backward)_kernel"
)
HEADER = re.compile(r"^\s*(arch = |Function : )(\S+)")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(\S*)")


def find_cuobjdump():
    folders = [os.path.join(os.environ[name], "bin") for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=os.pathsep.join([*folders, "/usr/local/cuda/bin"]))


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


def main(libraries):
    cuobjdump = find_cuobjdump()
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
        tensor = four = 0
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
            if FOUR_AT_ONCE.search(function):
                four += 1
                if not opcodes["128 bits"]:
                    wrong.append(f"{name}: {function} for {architecture}: loads nothing by 128 bits")
        if tensor == 0:
            wrong.append(f"{name} has no kernel of attention on the tensor cores")
        if number == 1 and four == 0:
            wrong.append(f"{name} has none of the kernels that move four floats at a time")
        print(
            f"check-cuda-code: {name}: {len(found)} kernels, {tensor} of attention on the tensor cores, "
            f"{four} by four floats at a time"
        )
    for line in wrong:
        print(f"check-cuda-code: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
