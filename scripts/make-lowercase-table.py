#!/usr/bin/env python3
"""Writes runtime/text/lowercase_table.inc and tests/data/lowercase_golden.txt from this Python's str.lower.

The table is what str.lower does: the simple mapping as a difference, U+0130 aside (its lower case is two code points),
and the two properties of the final-sigma rule. Python does not show Cased and Case_Ignorable, so they are read off
str.lower's own treatment of U+03A3:
    c + sigma      ends in a final sigma  <=>  c is cased and not case-ignorable
    A + c + sigma  ends in a final sigma  <=>  c is cased or case-ignorable
A letter that is both is passed over as case-ignorable, so it need not be told apart.

Run it from anywhere; the outputs depend on Python's Unicode version alone (unicodedata.unidata_version).
"""
import pathlib
import random
import unicodedata

ROOT = pathlib.Path(__file__).resolve().parent.parent
CASED, CASE_IGNORABLE = 1, 2
FINAL_SIGMA = "\u03c2"


def code_points():
    return (c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF)


def record(c):
    lower = chr(c).lower()
    if c == 0x130:
        assert lower == "i\u0307"
        delta = 0  # the code handles it
    else:
        assert len(lower) == 1, f"U+{c:04X} has a lower case of {len(lower)} code points: teach lowercase.cpp"
        delta = ord(lower) - c
    alone = (chr(c) + "\u03a3").lower()[-1] == FINAL_SIGMA
    behind = ("A" + chr(c) + "\u03a3").lower()[-1] == FINAL_SIGMA
    assert behind or not alone
    flags = CASED if alone else CASE_IGNORABLE if behind else 0
    return delta, flags


def blocks_of(index, shift):
    size = 1 << shift
    unique, blocks = {}, []
    for start in range(0, len(index), size):
        block = tuple(index[start:start + size])
        blocks.append(unique.setdefault(block, len(unique)))
    return list(unique), blocks


def wrapped(numbers):
    lines, line = [], "   "
    for n in numbers:
        if len(line) + len(f" {n},") > 100:
            lines.append(line)
            line = "   "
        line += f" {n},"
    return "\n".join(lines + [line])


def write_table():
    records, index = {(0, 0): 0}, [0] * 0x110000
    for c in code_points():
        index[c] = records.setdefault(record(c), len(records))
    assert len(records) <= 256
    end = max(c for c in range(0x110000) if index[c]) + 1
    best = None
    for shift in range(4, 10):
        padded = index[:(end + (1 << shift) - 1) >> shift << shift]
        unique, blocks = blocks_of(padded, shift)
        size = (len(unique) << shift) + len(blocks)
        if len(unique) <= 256 and (best is None or size < best[0]):
            best = (size, shift, unique, blocks)
    _, shift, unique, blocks = best
    with open(ROOT / "runtime/text/lowercase_table.inc", "w", encoding="ascii", newline="\n") as f:
        f.write(f"""// Written by scripts/make-lowercase-table.py from Python's str.lower, Unicode {unicodedata.unidata_version}. Do not edit.
// A code point below kLowercaseEnd has record kLowercaseRecords[kLowercaseIndex[b << kLowercaseShift | low bits]] with
// b = kLowercaseBlocks[code point >> kLowercaseShift]; every other one has record 0.
// clang-format off
#define XSR_LOWERCASE_UNICODE_VERSION "{unicodedata.unidata_version}"
constexpr char32_t kLowercaseEnd = 0x{len(blocks) << shift:X};
constexpr int kLowercaseShift = {shift};
constexpr CaseRecord kLowercaseRecords[] = {{
""")
        for delta, flags in records:
            f.write(f"    {{{delta}, {flags}}},\n")
        f.write("};\nconstexpr uint8_t kLowercaseBlocks[] = {\n" + wrapped(blocks) + "\n};\n")
        f.write("constexpr uint8_t kLowercaseIndex[] = {\n" + wrapped(n for b in unique for n in b) + "\n};\n")
        f.write("// clang-format on\n")


def hexadecimal(text):
    return " ".join(f"{ord(c):04X}" for c in text)


def write_golden():
    rng = random.Random(3)
    interesting = ["\u03a3", "\u03a3", "\u03a3", "A", "a", "\u03b1", "\u0391", " ", ".", "'", "\u00ad", "\u0301", "\u02b0",
                   "\u0345", "\u2160", "\u01c5", "1", "\u05d0", "\u4e2d", "\U00010400", "\U000e0001", "\u0130", "\u00aa", "\n"]
    with open(ROOT / "tests/data/lowercase_golden.txt", "w", encoding="ascii", newline="\n") as f:
        f.write(f"# Written by scripts/make-lowercase-table.py from Python's str.lower, Unicode {unicodedata.unidata_version}.\n"
                "# Code points in hexadecimal: text > its lower case. Every code point that stands in no one-letter\n"
                "# line is its own lower case. Then texts around the final-sigma rule.\n")
        for c in code_points():
            if chr(c).lower() != chr(c):
                f.write(f"{c:04X} > {hexadecimal(chr(c).lower())}\n")
        for _ in range(600):
            text = "".join(rng.choice(interesting) for _ in range(rng.randint(2, 9)))
            f.write(f"{hexadecimal(text)} > {hexadecimal(text.lower())}\n")


write_table()
write_golden()
