#pragma once
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

/// Rows that layernorm_rows_avx512 takes at a time; they stay in L1.
static constexpr int32_t kLayernormRows = 4;

static inline float sum_of_four_avx512(const __m512 (&sum)[4]) {
  return _mm512_reduce_add_ps(
      _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}

/// Four sums hide the latency of the adds.
static inline float layernorm_mean_avx512(const float* x, int32_t C) {
  __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                   _mm512_setzero_ps()};
  int32_t c = 0;
  for (; c + 64 <= C; c += 64) {
    for (int j = 0; j < 4; ++j) sum[j] = _mm512_add_ps(sum[j], _mm512_loadu_ps(x + c + 16 * j));
  }
  for (; c < C; c += 16)
    sum[0] = _mm512_add_ps(sum[0], _mm512_maskz_loadu_ps(tail_mask(C - c), x + c));
  return sum_of_four_avx512(sum) / (float)C;
}

/// 1 / sqrt(var + eps)
static inline float layernorm_rstd_avx512(const float* x, int32_t C, float mean, float eps) {
  const __m512 means = _mm512_set1_ps(mean);
  __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                   _mm512_setzero_ps()};
  int32_t c = 0;
  for (; c + 64 <= C; c += 64) {
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
  const __m128 root = _mm_sqrt_ss(_mm_set_ss(sum_of_four_avx512(sum) / (float)C + eps));
  return 1.0f / _mm_cvtss_f32(root);
}

/// Up to kLayernormRows rows of C floats; out may be x. rstd: 1 / sqrt(var + eps) of each, null =
/// not wanted. Pass by pass over all of them: the next row's loads hide a row's reduction and its
/// root.
static inline void layernorm_rows_avx512(const float* x, int64_t x_stride, int32_t rows, int32_t C,
                                         const float* gamma, const float* beta, float eps,
                                         float* out, int64_t out_stride, float* rstd) {
  float mean[kLayernormRows], inverse[kLayernormRows];
  for (int32_t i = 0; i < rows; ++i) mean[i] = layernorm_mean_avx512(x + i * x_stride, C);
  for (int32_t i = 0; i < rows; ++i)
    inverse[i] = layernorm_rstd_avx512(x + i * x_stride, C, mean[i], eps);
  for (int32_t i = 0; i < rows; ++i) {
    const float* row = x + i * x_stride;
    float* to = out + i * out_stride;
    const __m512 means = _mm512_set1_ps(mean[i]), scale = _mm512_set1_ps(inverse[i]);
    for_each_vector(C, [&](int32_t c, __mmask16 mask) {
      const __m512 centred = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, row + c), means);
      const __m512 value =
          _mm512_fmadd_ps(_mm512_mul_ps(centred, scale), _mm512_maskz_loadu_ps(mask, gamma + c),
                          _mm512_maskz_loadu_ps(mask, beta + c));
      _mm512_mask_storeu_ps(to + c, mask, value);
    });
    if (rstd != nullptr) rstd[i] = inverse[i];
  }
}

}  // namespace xsr::kernels
