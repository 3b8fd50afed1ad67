#include "kernels/optimizer/optimizer.h"

#include "kernels/simd/avx512.h"

namespace xsr::kernels {

void adam_update_f32_avx512(float* value, const float* gradient, float* first_moment,
                            float* second_moment, float* max_second_moment, uint16_t* narrow,
                            int64_t first, int64_t last, const AdamStep& step) {
  const __m512 scale = _mm512_set1_ps(step.gradient_scale), l2 = _mm512_set1_ps(step.l2),
               shrink = _mm512_set1_ps(step.shrink), beta1 = _mm512_set1_ps(step.beta1),
               rest1 = _mm512_set1_ps(step.one_minus_beta1), beta2 = _mm512_set1_ps(step.beta2),
               rest2 = _mm512_set1_ps(step.one_minus_beta2), size = _mm512_set1_ps(step.step_size),
               correction2 = _mm512_set1_ps(step.inverse_correction2),
               eps = _mm512_set1_ps(step.eps);
  for (int64_t i = first; i < last; i += 16) {
    const __mmask16 mask = tail_mask(last - i);
    const __m512 old = _mm512_maskz_loadu_ps(mask, value + i);
    const __m512 g =
        _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, gradient + i), scale, _mm512_mul_ps(l2, old));
    const __m512 m = _mm512_fmadd_ps(beta1, _mm512_maskz_loadu_ps(mask, first_moment + i),
                                     _mm512_mul_ps(rest1, g));
    const __m512 v = _mm512_fmadd_ps(beta2, _mm512_maskz_loadu_ps(mask, second_moment + i),
                                     _mm512_mul_ps(_mm512_mul_ps(rest2, g), g));
    __m512 w = v;
    if (max_second_moment != nullptr) {
      w = _mm512_max_ps(_mm512_maskz_loadu_ps(mask, max_second_moment + i), v);
      _mm512_mask_storeu_ps(max_second_moment + i, mask, w);
    }
    _mm512_mask_storeu_ps(first_moment + i, mask, m);
    _mm512_mask_storeu_ps(second_moment + i, mask, v);
    const __m512 change =
        _mm512_div_ps(_mm512_mul_ps(size, m), _mm512_fmadd_ps(_mm512_sqrt_ps(w), correction2, eps));
    const __m512 updated = _mm512_sub_ps(old, _mm512_fmadd_ps(shrink, old, change));
    _mm512_mask_storeu_ps(value + i, mask, updated);
    if (narrow != nullptr) {
      _mm256_mask_storeu_epi16(narrow + i, mask, bf16_from_lanes(updated));
    }
  }
}

double sum_of_squares_f32_avx512(const float* x, int64_t n) {
  __m512d sums = _mm512_setzero_pd();
  for (int64_t i = 0; i < n; i += 8) {
    const __mmask8 mask = (__mmask8)tail_mask(n - i < 8 ? n - i : 8);
    const __m512d value = _mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, x + i));
    sums = _mm512_fmadd_pd(value, value, sums);  // the square of a float is exact in double
  }
  const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(sums), _mm512_extractf64x4_pd(sums, 1));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

}  // namespace xsr::kernels
