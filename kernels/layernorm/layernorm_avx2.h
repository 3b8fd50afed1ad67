#pragma once
#include "kernels/simd/avx2.h"

namespace xsr::kernels {

/// Gives the mean of a row and returns 1 / sqrt(var + eps).
static inline float layernorm_statistics_avx2(const float* x, int32_t C, float eps,
                                              float* mean_out) {
  const float count = (float)C;
  __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                   _mm256_setzero_ps()};
  int32_t c = 0;
  for (; c + 32 <= C; c += 32) {
    for (int j = 0; j < 4; ++j) sum[j] = _mm256_add_ps(sum[j], _mm256_loadu_ps(x + c + 8 * j));
  }
  for (; c < C; c += 8)
    sum[0] = _mm256_add_ps(sum[0], _mm256_maskload_ps(x + c, tail_mask8(C - c)));
  const float mean =
      reduce_add(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3]))) /
      count;
  const __m256 means = _mm256_set1_ps(mean);
  for (int j = 0; j < 4; ++j) sum[j] = _mm256_setzero_ps();
  for (c = 0; c + 32 <= C; c += 32) {
    for (int j = 0; j < 4; ++j) {
      const __m256 centred = _mm256_sub_ps(_mm256_loadu_ps(x + c + 8 * j), means);
      sum[j] = _mm256_fmadd_ps(centred, centred, sum[j]);
    }
  }
  for (; c < C; c += 8) {
    const __m256i mask = tail_mask8(C - c);
    const __m256 centred = _mm256_and_ps(_mm256_sub_ps(_mm256_maskload_ps(x + c, mask), means),
                                         _mm256_castsi256_ps(mask));
    sum[0] = _mm256_fmadd_ps(centred, centred, sum[0]);
  }
  const float squares =
      reduce_add(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
  const __m128 root = _mm_sqrt_ss(_mm_set_ss(squares / count + eps));
  *mean_out = mean;
  return 1.0f / _mm_cvtss_f32(root);
}

/// One row of C floats; out may be x. Returns 1 / sqrt(var + eps).
static inline float layernorm_row_avx2(const float* x, int32_t C, const float* gamma,
                                       const float* beta, float eps, float* out) {
  float mean;
  const float inverse = layernorm_statistics_avx2(x, C, eps, &mean);
  const __m256 means = _mm256_set1_ps(mean);
  const __m256 scale = _mm256_set1_ps(inverse);
  for (int32_t c = 0; c < C; c += 8) {
    const __m256 centred = _mm256_sub_ps(load_up_to_8(x + c, C - c), means);
    const __m256 value =
        _mm256_fmadd_ps(_mm256_mul_ps(centred, scale), load_up_to_8(gamma + c, C - c),
                        load_up_to_8(beta + c, C - c));
    store_up_to_8(out + c, C - c, value);
  }
  return inverse;
}

}  // namespace xsr::kernels
