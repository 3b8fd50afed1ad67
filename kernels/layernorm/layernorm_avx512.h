#pragma once
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

/// Gives the mean of a row and returns 1 / sqrt(var + eps). Two passes over a row that
/// stands in L1; four sums hide the latency of the adds.
static inline float layernorm_statistics_avx512(const float* x, int32_t C, float eps,
                                                float* mean_out) {
  const float count = (float)C;
  __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                   _mm512_setzero_ps()};
  int32_t c = 0;
  for (; c + 64 <= C; c += 64) {
    for (int j = 0; j < 4; ++j) sum[j] = _mm512_add_ps(sum[j], _mm512_loadu_ps(x + c + 16 * j));
  }
  for (; c < C; c += 16)
    sum[0] = _mm512_add_ps(sum[0], _mm512_maskz_loadu_ps(tail_mask(C - c), x + c));
  const float mean = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]),
                                                        _mm512_add_ps(sum[2], sum[3]))) /
                     count;
  const __m512 means = _mm512_set1_ps(mean);
  for (int j = 0; j < 4; ++j) sum[j] = _mm512_setzero_ps();
  for (c = 0; c + 64 <= C; c += 64) {
    for (int j = 0; j < 4; ++j) {
      const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(x + c + 16 * j), means);
      sum[j] = _mm512_fmadd_ps(centred, centred, sum[j]);
    }
  }
  for (; c < C; c += 16) {
    const __mmask16 mask = tail_mask(C - c);
    const __m512 centred = _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, x + c), means);
    sum[0] = _mm512_fmadd_ps(centred, centred, sum[0]);
  }
  const float squares = _mm512_reduce_add_ps(
      _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
  const __m128 root = _mm_sqrt_ss(_mm_set_ss(squares / count + eps));
  *mean_out = mean;
  return 1.0f / _mm_cvtss_f32(root);
}

/// One row of C floats; out may be x. Returns 1 / sqrt(var + eps).
static inline float layernorm_row_avx512(const float* x, int32_t C, const float* gamma,
                                         const float* beta, float eps, float* out) {
  float mean;
  const float inverse = layernorm_statistics_avx512(x, C, eps, &mean);
  const __m512 means = _mm512_set1_ps(mean);
  const __m512 scale = _mm512_set1_ps(inverse);
  for_each_vector(C, [&](int32_t c, __mmask16 mask) {
    const __m512 centred = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + c), means);
    const __m512 value =
        _mm512_fmadd_ps(_mm512_mul_ps(centred, scale), _mm512_maskz_loadu_ps(mask, gamma + c),
                        _mm512_maskz_loadu_ps(mask, beta + c));
    _mm512_mask_storeu_ps(out + c, mask, value);
  });
  return inverse;
}

}  // namespace xsr::kernels
