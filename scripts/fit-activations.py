#!/usr/bin/env python3
"""Fits the polynomials of kernels/. Needs mpmath; prints coefficients, constant term first, as float32.

Each fit is Chebyshev interpolation at 60 digits (near-minimax), then rounded to float32. What the rounded polynomial
costs in ULP over the whole range is measured by tests/activation_test.cpp, not here.
"""
import struct

import mpmath as mp

mp.mp.dps = 60


def f32(x):
    return struct.unpack("f", struct.pack("f", float(x)))[0]


def show(name, f, interval, degree, even=False):
    coefficients = mp.chebyfit(f, interval, degree + 1)[::-1]
    print(name, "[%s, %s]" % tuple(mp.nstr(mp.mpf(v), 6) for v in interval))
    for c in coefficients:
        print("   %.9gf" % f32(c))


half_ln2 = mp.log(2) / 2
# e^r = 1 + r + r^2 P(r)
show("exp", lambda r: (mp.exp(r) - 1 - r) / r**2 if r else mp.mpf(1) / 2, [-half_ln2 * 1.0001, half_ln2 * 1.0001], 4)


# tanh(x) = x + x s P(s), s = x^2, |x| <= 0.625
def tanh_rest(s):
    if s < mp.mpf("1e-12"):
        return -mp.mpf(1) / 3 + 2 * s / 15
    x = mp.sqrt(s)
    return (mp.tanh(x) - x) / (x * s)


show("tanh", tanh_rest, [mp.mpf(0), mp.mpf("0.625") ** 2], 5)


# erfcx(t) = P(q) / (1 + 2 t), q = (t - 2) / (t + 2), t >= 0 (up to 10.2, where float32 erfc has underflowed)
def erfcx_scaled(q):
    t = 2 * (1 + q) / (1 - q)
    return (1 + 2 * t) * mp.exp(t * t) * mp.erfc(t)


show("erfcx", erfcx_scaled, [mp.mpf(-1), mp.mpf("8.3") / mp.mpf("12.3")], 10)

# 2^r of kernels/attention/attention_avx512_bf16.cpp, for results that are rounded to bf16
show("exp2", lambda r: mp.mpf(2) ** r, [mp.mpf(-1) / 2, mp.mpf(1) / 2], 4)


# f(x) = max(x, 0) + P(|x|) of kernels/activation/activation_pieces_avx512.h: P in four cubics an octave of v = 1 + scale u, u = |x|
# up to the bound, four octaves. The first has no constant, so that its error shrinks with u. Rows of a table, by v's exponent and first two bits of
# mantissa, as they stand in the bits of a float: [2, 4), [4, 8), [8, 16), [1, 2).
def show_pieces(name, f, bound):
    scale = mp.mpf(15) / bound
    pieces = []
    for octave in (1, 2, 3, 0):
        for quarter in range(4):
            first, last = ((2**octave * (1 + mp.mpf(q) / 4) - 1) / scale for q in (quarter, quarter + 1))
            if first == 0:
                pieces.append([mp.mpf(0)] + mp.chebyfit(lambda u: f(u) / u if u else -mp.mpf(1) / 2, [first, last], 3)[::-1])
            else:
                pieces.append(mp.chebyfit(f, [first, last], 4)[::-1])
    print(name, "scale %.9gf" % f32(scale), "bound", mp.nstr(mp.mpf(bound), 6))
    for degree in range(4):
        print("   {%s}" % ", ".join("%.9gf" % f32(piece[degree]) for piece in pieces))


show_pieces("swish", lambda u: -u / (1 + mp.exp(u)), mp.mpf(15))
show_pieces("gelu erf", lambda u: -u * mp.erfc(u / mp.sqrt(2)) / 2, mp.mpf("5.5"))
show_pieces("gelu tanh", lambda u: -u / (1 + mp.exp(2 * mp.sqrt(2 / mp.pi) * (u + mp.mpf("0.044715") * u**3))), mp.mpf("5.5"))
