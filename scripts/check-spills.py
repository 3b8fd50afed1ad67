#!/usr/bin/env python3
"""check-spills.py OBJECT...: no micro-kernel keeps a vector on the stack in its inner loop.

Disassembles the objects and takes every innermost loop whose only floating-point arithmetic is fused multiply-adds,
or that multiplies and adds integers: that is a sum over K, while the loops of an epilogue also multiply, add, round or compare. Fails where such a loop moves
an xmm, ymm or zmm register through the stack pointer (or the frame pointer, where there is one), and where an object
has no such loop at all.
"""
import re
import subprocess
import sys

FUNCTION = re.compile(r"^([0-9a-f]+) <(.+)>:$")
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t(?:\{vex\} )?(\S+)\s*(.*)$")
VECTOR = re.compile(r"%[xyz]mm")
OTHER_ARITHMETIC = re.compile(r"v(add|sub|mul|div|max|min|round|rndscale|scalef|sqrt|rcp|cmp|getexp)\w*[ps][sd]$")
JUMP_TARGET = re.compile(r"^([0-9a-f]+)\b")


def functions(path):
    text = subprocess.run(["objdump", "-d", "-C", "--no-show-raw-insn", path], check=True, capture_output=True,
                          text=True).stdout
    name, body = None, []
    for line in text.splitlines():
        if match := FUNCTION.match(line):
            if name:
                yield name, body
            name, body = match.group(2), []
        elif match := INSTRUCTION.match(line):
            body.append((int(match.group(1), 16), match.group(2), match.group(3)))
    if name:
        yield name, body


def innermost_loops(body):
    """Loops as (first, last) addresses of a backward jump's target and the jump; those without a loop inside."""
    loops = set()
    start = body[0][0]
    for address, mnemonic, operands in body:
        if mnemonic.startswith("j") and (match := JUMP_TARGET.match(operands)):
            target = int(match.group(1), 16)
            if start <= target <= address:
                loops.add((target, address))
    return [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]


def main(paths):
    if not paths:
        sys.exit("usage: check-spills.py OBJECT...")
    checked = failed = 0
    for path in paths:
        in_object = 0
        for name, body in functions(path):
            framed = any(m.startswith("mov") and o == "%rsp,%rbp" for _, m, o in body)
            stack = re.compile(r"\((%rsp|%rbp)[,)]" if framed else r"\(%rsp[,)]")
            for first, last in innermost_loops(body):
                loop = [i for i in body if first <= i[0] <= last]
                multiply_adds = sum(m.startswith(("vfmadd", "vfnmadd", "vdpbf16", "vpdpbusd", "vpmaddwd")) for _, m, _ in loop)
                if multiply_adds < 2 or any(OTHER_ARITHMETIC.match(m) for _, m, _ in loop):
                    continue
                in_object += 1
                spills = [f"{a:x}: {m} {o}" for a, m, o in loop if stack.search(o) and VECTOR.search(o)]
                if spills:
                    failed += 1
                    print(f"{path}: {name}\n  the loop {first:x}..{last:x} ({multiply_adds} fused multiply-adds) touches "
                          f"the stack {len(spills)} times, first at {spills[0]}", file=sys.stderr)
        if in_object == 0:
            print(f"{path}: found no loop of fused multiply-adds", file=sys.stderr)
            failed += 1
        checked += in_object
    print(f"check-spills: {checked} inner loops in {len(paths)} objects, {failed} complaints")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
