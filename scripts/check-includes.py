#!/usr/bin/env python3
"""Checks the direction of the includes: a folder includes only what stands before it in

    kernels -> runtime -> input -> converter, corpus -> training -> bench -> tests, examples

and these besides:
- kernels/ includes C headers, intrinsics and kernels/ only: it knows libc and nothing else.
  ..._onednn files are another library behind the same contract, in a target of their own: they may include what it
  needs, and the rest of kernels/ may not include them.
  kernels/cuda/ is the CUDA device and the emulated one, in targets of their own: it may include what these need.
- The files of one ISA (..._avx2.cpp, ..._avx512.cpp) include no standard header that brings inline functions: such
  a function, compiled with that ISA's flags, can replace everybody's copy at link time.
- Nothing but tests/ and bench/peers/ includes training/.
- include/xsr/ and examples/ include the public headers only.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RANKS = [
    ["kernels"],
    ["runtime"],
    ["input"],
    ["converter", "corpus"],
    ["training"],
    ["bench"],
    ["tests", "examples"],
]
RANK = {folder: rank for rank, folders in enumerate(RANKS) for folder in folders}
SUFFIXES = {".c", ".h", ".cpp", ".hpp", ".inc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
ISA_FILE = re.compile(r"_(avx2|avx2_vnni|avx512|avx512_vnni|avx512_bf16|amx)\.cpp$")

C_NAMES = """assert ctype errno fenv float inttypes limits locale math setjmp signal stdarg stdbool stddef
    stdint stdio stdlib string time""".split()
C_HEADERS = {f"{name}.h" for name in C_NAMES} | {f"c{name}" for name in C_NAMES}
SYSTEM_HEADERS = {"immintrin.h", "cpuid.h", "x86intrin.h", "unistd.h", "sys/syscall.h"}
# Only types, macros and declarations of C functions; math.h, as C++ sees it, brings inline overloads.
ISA_HEADERS = {"assert.h", "cassert", "float.h", "cfloat", "limits.h", "climits", "stddef.h", "cstddef",
               "stdint.h", "cstdint", "string.h", "cstring", "immintrin.h"}


def resolve(file, name):
    """The project file that a quoted or angled include means, or None."""
    for base in (file.parent, ROOT, ROOT / "include"):
        candidate = (base / name).resolve()
        if candidate.is_file() and ROOT in candidate.parents:
            return candidate.relative_to(ROOT)
    return None


def complaint(file, bracket, name):
    relative = file.relative_to(ROOT)
    folder = relative.parts[0]
    target = resolve(file, name)
    if target is None:
        if bracket == '"':
            return None  # another project's header, or the compiler will complain
        if folder == "kernels" and not relative.stem.endswith("_onednn") and relative.parts[1] != "cuda":
            if ISA_FILE.search(relative.name):
                if name not in ISA_HEADERS:
                    return f"a file of one ISA may not include <{name}>; allowed: {', '.join(sorted(ISA_HEADERS))}"
            elif name not in C_HEADERS | SYSTEM_HEADERS:
                return f"kernels/ includes C headers and intrinsics only, found <{name}>"
        return None
    to = target.parts[0]
    if to == "include":
        return "kernels/ knows nothing of the public API" if folder == "kernels" else None
    if folder == "include" or (folder == "examples" and to != "examples"):
        return f"{folder}/ includes the public headers only, found {target}"
    if folder == "kernels" and target.stem.endswith("_onednn") and not relative.stem.endswith("_onednn"):
        return f"kernels/ must do without oneDNN, found {target}"
    if to == folder:
        return None
    if to not in RANK:
        return f"{to}/ has no place in the order of the folders (scripts/check-includes.py)"
    if to == "training" and folder != "tests" and relative.parts[:2] != ("bench", "peers"):
        return "nothing includes training/ but its tests and the race against other trainers in bench/peers/"
    if RANK[to] >= RANK[folder]:
        return f"{folder}/ may not include {target}: {to}/ does not stand before {folder}/"
    return None


def main():
    wrong = checked = 0
    for folder in ["include", *RANK]:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix not in SUFFIXES or not file.is_file():
                continue
            checked += 1
            for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                match = INCLUDE.match(line)
                message = match and complaint(file, *match.groups())
                if message:
                    print(f"{file.relative_to(ROOT)}:{number}: {message}", file=sys.stderr)
                    wrong += 1
    if checked == 0:
        sys.exit("check-includes: found no files")
    print(f"check-includes: {checked} files, {wrong} wrong includes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
