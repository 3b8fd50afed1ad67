#pragma once
// Vector helpers of the AVX2 files. `static inline` only: nothing here may be shared with a
// baseline object. The polynomials come from scripts/fit-activations.py.
#include <immintrin.h>
#include <stdint.h>

#include "kernels/activation/activation.h"
#include "kernels/types.h"

namespace xsr::kernels {

/// All bits set in the first n of 8 lanes; n may be ≤ 0 or beyond 8.
static inline __m256i tail_mask8(int64_t n) {
  const int32_t count = n >= 8 ? 8 : n <= 0 ? 0 : (int32_t)n;
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/// The first `count` of 8 floats, the others 0; what is beyond them is neither read nor written.
/// The masked store costs many times the plain one on Zen, hence the branch.
static inline __m256 load_up_to_8(const float* x, int64_t count) {
  return count >= 8 ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, tail_mask8(count));
}
static inline void store_up_to_8(float* x, int64_t count, __m256 value) {
  if (count >= 8)
    _mm256_storeu_ps(x, value);
  else if (count > 0)
    _mm256_maskstore_ps(x, tail_mask8(count), value);
}

static inline float reduce_add(__m256 x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

static inline double reduce_add(__m256d x) {
  const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
  return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}

static inline float reduce_max(__m256 x) {
  __m128 peak = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  peak = _mm_max_ps(peak, _mm_movehl_ps(peak, peak));
  return _mm_cvtss_f32(_mm_max_ss(peak, _mm_movehdup_ps(peak)));
}

/// 2^n for whole n in [-126, 127]
static inline __m256 power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

/// e^x. Overflows to infinity, underflows through the subnormals to 0, passes NaN on.
static inline __m256 exp_f32(__m256 x) {
  // min/max give their second operand when either is NaN. The bounds lie beyond the largest and
  // smallest results.
  x = _mm256_min_ps(_mm256_set1_ps(89.0f), x);
  x = _mm256_max_ps(_mm256_set1_ps(-104.5f), x);
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // ln 2 in two parts: n · hi is exact for |n| < 2^9
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(0.0013926184f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.00836317893f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.0416665561f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.166665763f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
  p = _mm256_add_ps(p, _mm256_set1_ps(1.0f));
  // 2^n in two steps, since n reaches beyond the exponents of normal floats on both sides
  const __m256i whole = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  return _mm256_mul_ps(_mm256_mul_ps(p, power_of_two(half)),
                       power_of_two(_mm256_sub_epi32(whole, half)));
}

static inline __m256 negate_f32(__m256 x) { return _mm256_xor_ps(x, _mm256_set1_ps(-0.0f)); }

/// x / (1 + e^-y)
static inline __m256 times_sigmoid_f32(__m256 x, __m256 y) {
  const __m256 one = _mm256_set1_ps(1.0f);
  return _mm256_div_ps(x, _mm256_add_ps(one, exp_f32(negate_f32(y))));
}

/// Φ(x), the normal distribution, and e^(-x²/2).
static inline __m256 normal_distribution_f32(__m256 x, __m256* bell) {
  // The same formula as in avx512.h, where it is explained.
  const __m256 one = _mm256_set1_ps(1.0f), two = _mm256_set1_ps(2.0f), half = _mm256_set1_ps(0.5f);
  const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
  const __m256 bounded = _mm256_min_ps(_mm256_set1_ps(16.0f), magnitude);
  const __m256 t = _mm256_mul_ps(bounded, _mm256_set1_ps(0.707106781f));
  const __m256 square = _mm256_mul_ps(bounded, bounded);
  const __m256 error = _mm256_fmsub_ps(bounded, bounded, square);
  __m256 tail = exp_f32(_mm256_mul_ps(square, _mm256_set1_ps(-0.5f)));
  tail = _mm256_fnmadd_ps(_mm256_mul_ps(error, half), tail, tail);
  const __m256 q = _mm256_div_ps(_mm256_sub_ps(t, two), _mm256_add_ps(t, two));
  __m256 p = _mm256_set1_ps(2.4303632e-05f);
  p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(-0.000367562025f));
  p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(-0.00125057867f));
  p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(0.00127791159f));
  p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(0.00863755774f));
  p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(-0.00804677512f));
  p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(-0.0542051159f));
  p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(0.164053544f));
  p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(-0.166031346f));
  p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(-0.0927639157f));
  p = _mm256_fmadd_ps(p, q, _mm256_set1_ps(1.27697837f));
  const __m256 scaled = _mm256_div_ps(p, _mm256_fmadd_ps(two, t, one));
  const __m256 lower = _mm256_mul_ps(_mm256_mul_ps(half, tail), scaled);
  *bell = tail;
  return _mm256_blendv_ps(_mm256_sub_ps(one, lower), lower, x);
}

static inline __m256 gelu_erf_f32(__m256 x) {
  __m256 bell;
  return _mm256_mul_ps(x, normal_distribution_f32(x, &bell));
}

static inline __m256 gelu_tanh_f32(__m256 x) {
  const __m256 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
  const __m256 u = _mm256_fmadd_ps(cube, _mm256_set1_ps(0.0713548163f),
                                   _mm256_mul_ps(x, _mm256_set1_ps(1.59576912f)));
  return times_sigmoid_f32(x, u);
}

static inline __m256 tanh_f32(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f), two = _mm256_set1_ps(2.0f),
               sign_bit = _mm256_set1_ps(-0.0f);
  const __m256 magnitude = _mm256_andnot_ps(sign_bit, x);
  const __m256 s = _mm256_mul_ps(x, x);
  __m256 p = _mm256_set1_ps(0.00229274482f);
  p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(-0.00834394526f));
  p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(0.0217689183f));
  p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(-0.0539592579f));
  p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(0.133333042f));
  p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(-0.333333343f));
  const __m256 small = _mm256_fmadd_ps(_mm256_mul_ps(p, s), x, x);
  const __m256 e = exp_f32(_mm256_mul_ps(two, magnitude));
  const __m256 large = _mm256_sub_ps(one, _mm256_div_ps(two, _mm256_add_ps(e, one)));
  const __m256 is_large = _mm256_cmp_ps(magnitude, _mm256_set1_ps(0.625f), _CMP_GT_OQ);
  return _mm256_blendv_ps(small, _mm256_or_ps(large, _mm256_and_ps(x, sign_bit)), is_large);
}

static inline __m256 relu_f32(__m256 x) {
  return _mm256_max_ps(_mm256_setzero_ps(), x);  // the second operand when x is NaN: NaN stays NaN
}

static inline __m256 activate_f32(__m256 x, Activation activation) {
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

/// 8 elements from index i of a table, widened; lanes from `count` on are 0 and not read.
static inline __m256 load_f32(const void* data, Storage storage, int64_t i, int64_t count) {
  if (storage == Storage::kF32)
    return _mm256_maskload_ps((const float*)data + i, tail_mask8(count));
  const uint16_t* narrow = (const uint16_t*)data + i;
  __m128i values;
  if (count >= 8) {
    values = _mm_loadu_si128((const __m128i*)narrow);
  } else {
    uint16_t copy[8] = {0};
    for (int64_t j = 0; j < count; ++j) copy[j] = narrow[j];
    values = _mm_loadu_si128((const __m128i*)copy);
  }
  if (storage == Storage::kF16) return _mm256_cvtph_ps(values);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(values), 16));
}

/// Rounded to bf16, to nearest even, in the low 16 bits of each lane's 32.
static inline __m256i bf16_bits(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet =
      _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));  // stays NaN
  const __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan));
}

/// bf16_bits side by side.
static inline __m128i packed_bf16(__m256i bits) {
  return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
}

/// Stores the first `count` of 8 lanes as bf16; count may be beyond 8.
static inline void store_bf16(uint16_t* out, __m256 x, int64_t count) {
  const __m128i narrow = packed_bf16(bf16_bits(x));
  if (count >= 8) {
    _mm_storeu_si128((__m128i*)out, narrow);
    return;
  }
  uint16_t copy[8];
  _mm_storeu_si128((__m128i*)copy, narrow);
  for (int64_t j = 0; j < count; ++j) out[j] = copy[j];
}

/// 8 integers, as floats; lanes from `count` on are 0 and not read.
static inline __m256 load_i8(const int8_t* data, int64_t count) {
  int8_t copy[8] = {0};
  __builtin_memcpy(copy, data, count >= 8 ? 8 : (uint64_t)count);
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)copy)));
}

}  // namespace xsr::kernels
