#pragma once
// Vector helpers of the AVX-512 files. `static inline` only: nothing here may be shared with a
// baseline object. The polynomials come from scripts/fit-activations.py.
#include <immintrin.h>
#include <stdint.h>

#include "kernels/activation/activation.h"
#include "kernels/types.h"

namespace xsr::kernels {

/// The first n of 16 lanes; n may be 0 or beyond 16.
static inline __mmask16 tail_mask(int64_t n) {
  return n >= 16 ? (__mmask16)0xffff : n <= 0 ? (__mmask16)0 : (__mmask16)((1u << n) - 1u);
}

/// body(c, mask) for the vectors of C columns, without a mask but for the last.
template <typename Body>
static inline __attribute__((always_inline)) void for_each_vector(int32_t C, const Body& body) {
  int32_t c = 0;
  for (; c + 16 <= C; c += 16) body(c, (__mmask16)0xffff);
  if (c < C) body(c, tail_mask(C - c));
}

/// rows[j] lane i  →  rows[i] lane j.
static inline void transpose_16x16(__m512 (&rows)[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  __m512 u[16];
  for (int i = 0; i < 16; i += 4) {
    for (int half = 0; half < 2; ++half) {
      const __m512d low = _mm512_castps_pd(t[i + half]), high = _mm512_castps_pd(t[i + 2 + half]);
      u[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      u[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  // u[4 g + c] holds, in 128-bit lane l, column 4 l + c of rows 4 g … 4 g + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512 a = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88),
                 b = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd),
                 e = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
    rows[c] = _mm512_shuffle_f32x4(a, b, 0x88);
    rows[8 + c] = _mm512_shuffle_f32x4(a, b, 0xdd);
    rows[4 + c] = _mm512_shuffle_f32x4(d, e, 0x88);
    rows[12 + c] = _mm512_shuffle_f32x4(d, e, 0xdd);
  }
}

/// e^x. Overflows to infinity, underflows through the subnormals to 0, passes NaN on.
static inline __m512 exp_f32(__m512 x) {
  // min/max give their second operand when either is NaN. The bounds lie beyond the largest and
  // smallest results.
  x = _mm512_min_ps(_mm512_set1_ps(89.0f), x);
  x = _mm512_max_ps(_mm512_set1_ps(-104.5f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // ln 2 in two parts: n · hi is exact for |n| < 2^9
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(0.0013926184f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.00836317893f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.0416665561f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.166665763f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
  return _mm512_scalef_ps(_mm512_add_ps(p, _mm512_set1_ps(1.0f)), n);
}

static inline __m512 negate_f32(__m512 x) { return _mm512_xor_ps(x, _mm512_set1_ps(-0.0f)); }

/// x / (1 + e^-y)
static inline __m512 times_sigmoid_f32(__m512 x, __m512 y) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(x, _mm512_add_ps(one, exp_f32(negate_f32(y))));
}

/// Φ(x), the normal distribution, and e^(-x²/2).
static inline __m512 normal_distribution_f32(__m512 x, __m512* bell) {
  // Φ(-|x|) = ½ erfc(t), t = |x|/√2, erfc(t) = e^(-t²) P(q)/(1 + 2t), q = (t - 2)/(t +
  // 2).
  const __m512 one = _mm512_set1_ps(1.0f), two = _mm512_set1_ps(2.0f);
  const __m512 magnitude = _mm512_abs_ps(x);
  // e^(-t²) = e^(-x²/2): the square's rounding error e is put back as a factor 1 - e/2, or the tail
  // would lose digits.
  const __m512 bounded = _mm512_min_ps(_mm512_set1_ps(16.0f),
                                       magnitude);  // e^-128 is 0; keeps all that follows finite
  const __m512 t = _mm512_mul_ps(bounded, _mm512_set1_ps(0.707106781f));
  const __m512 square = _mm512_mul_ps(bounded, bounded);
  const __m512 error = _mm512_fmsub_ps(bounded, bounded, square);
  const __m512 half = _mm512_set1_ps(0.5f);
  __m512 tail = exp_f32(_mm512_mul_ps(square, _mm512_set1_ps(-0.5f)));
  tail = _mm512_fnmadd_ps(_mm512_mul_ps(error, half), tail, tail);
  const __m512 q = _mm512_div_ps(_mm512_sub_ps(t, two), _mm512_add_ps(t, two));
  __m512 p = _mm512_set1_ps(2.4303632e-05f);
  p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(-0.000367562025f));
  p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(-0.00125057867f));
  p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(0.00127791159f));
  p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(0.00863755774f));
  p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(-0.00804677512f));
  p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(-0.0542051159f));
  p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(0.164053544f));
  p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(-0.166031346f));
  p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(-0.0927639157f));
  p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(1.27697837f));
  const __m512 scaled = _mm512_div_ps(p, _mm512_fmadd_ps(two, t, one));
  const __m512 lower = _mm512_mul_ps(_mm512_mul_ps(half, tail), scaled);  // Φ(-|x|)
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  *bell = tail;
  return _mm512_mask_mov_ps(_mm512_sub_ps(one, lower), negative, lower);
}

static inline __m512 gelu_erf_f32(__m512 x) {
  __m512 bell;
  return _mm512_mul_ps(x, normal_distribution_f32(x, &bell));
}

static inline __m512 gelu_tanh_f32(__m512 x) {
  const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
  const __m512 u = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.0713548163f),
                                   _mm512_mul_ps(x, _mm512_set1_ps(1.59576912f)));
  return times_sigmoid_f32(x, u);  // u is doubled: 2 √(2/π) (x + 0.044715 x³)
}

static inline __m512 tanh_f32(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), two = _mm512_set1_ps(2.0f);
  const __m512 magnitude = _mm512_abs_ps(x);
  const __m512 s = _mm512_mul_ps(x, x);
  __m512 p = _mm512_set1_ps(0.00229274482f);
  p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-0.00834394526f));
  p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(0.0217689183f));
  p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-0.0539592579f));
  p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(0.133333042f));
  p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-0.333333343f));
  const __m512 small = _mm512_fmadd_ps(_mm512_mul_ps(p, s), x, x);
  const __m512 e = exp_f32(_mm512_mul_ps(two, magnitude));
  const __m512 large = _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(e, one)));
  const __m512 sign = _mm512_and_ps(x, _mm512_set1_ps(-0.0f));
  const __mmask16 is_large = _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(0.625f), _CMP_GT_OQ);
  return _mm512_mask_or_ps(small, is_large, large, sign);
}

static inline __m512 relu_f32(__m512 x) {
  return _mm512_max_ps(_mm512_setzero_ps(), x);  // the second operand when x is NaN: NaN stays NaN
}

static inline __m512 activate_f32(__m512 x, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kSwish:
      return times_sigmoid_f32(x, x);
    case Activation::kGeluErf:
      return gelu_erf_f32(x);
    case Activation::kGeluTanh:
      return gelu_tanh_f32(x);
    case Activation::kRelu:
      return relu_f32(x);
    case Activation::kTanh:
      return tanh_f32(x);
  }
  return x;
}

/// 16 elements from index i of a table, widened; lanes outside the mask are 0 and not read.
static inline __m512 load_f32(const void* data, Storage storage, int64_t i, __mmask16 mask) {
  if (storage == Storage::kF32) return _mm512_maskz_loadu_ps(mask, (const float*)data + i);
  const __m256i narrow = _mm256_maskz_loadu_epi16(mask, (const uint16_t*)data + i);
  if (storage == Storage::kF16) return _mm512_cvtph_ps(narrow);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

/// Rounded to bf16, to nearest even; NaN stays NaN.
static inline __m256i bf16_from_lanes(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

/// 16 integers, as floats; lanes outside the mask are 0 and not read.
static inline __m512 load_i8(const int8_t* data, __mmask16 mask) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, data)));
}

/// The same; where AVX512_BF16 does it, subnormals become 0.
static inline __m256i narrowed(__m512 x) {
#if defined(__AVX512BF16__)
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  return bf16_from_lanes(x);
#endif
}

/// A pair of bf16 in every lane, for a product in bf16. clang 16 comes to no end over such lanes
/// where it sees that they are all the same.
static inline __m512i pair_lanes(__m512i pair) {
#if defined(__clang__) && __clang_major__ == 16 && !defined(XSR_EMULATE_ISA)
  asm("" : "+v"(pair));
#endif
  return pair;
}

static inline void store_narrow(uint16_t* out, __mmask16 mask, __m512 value) {
  _mm256_mask_storeu_epi16(out, mask, narrowed(value));
}

/// 16 values split in two bf16 (split_bf16 of kernels/gemm/gemm.h).
static inline void store_split(uint16_t* hi, uint16_t* lo, __m512 value) {
  const __m256i upper = narrowed(value);
  const __m512 rounded = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
  const __m512 rest = _mm512_sub_ps(value, rounded);
  const __mmask16 finite =
      _mm512_cmp_ps_mask(_mm512_abs_ps(rest), _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
  _mm256_storeu_si256((__m256i*)hi, upper);
  _mm256_storeu_si256((__m256i*)lo, narrowed(_mm512_maskz_mov_ps(finite, rest)));
}

}  // namespace xsr::kernels
