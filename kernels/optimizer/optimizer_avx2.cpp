#include "kernels/optimizer/optimizer.h"

#include "kernels/simd/avx2.h"

namespace xsr::kernels {

void adam_update_f32_avx2(float* value, const float* gradient, float* first_moment,
                          float* second_moment, float* max_second_moment, uint16_t* narrow,
                          int64_t first, int64_t last, const AdamStep& step) {
  const __m256 scale = _mm256_set1_ps(step.gradient_scale), l2 = _mm256_set1_ps(step.l2),
               shrink = _mm256_set1_ps(step.shrink), beta1 = _mm256_set1_ps(step.beta1),
               rest1 = _mm256_set1_ps(step.one_minus_beta1), beta2 = _mm256_set1_ps(step.beta2),
               rest2 = _mm256_set1_ps(step.one_minus_beta2), size = _mm256_set1_ps(step.step_size),
               correction2 = _mm256_set1_ps(step.inverse_correction2),
               eps = _mm256_set1_ps(step.eps);
  for (int64_t i = first; i < last; i += 8) {
    const int64_t count = last - i;
    const __m256 old = load_up_to_8(value + i, count);
    const __m256 g =
        _mm256_fmadd_ps(load_up_to_8(gradient + i, count), scale, _mm256_mul_ps(l2, old));
    const __m256 m =
        _mm256_fmadd_ps(beta1, load_up_to_8(first_moment + i, count), _mm256_mul_ps(rest1, g));
    const __m256 v = _mm256_fmadd_ps(beta2, load_up_to_8(second_moment + i, count),
                                     _mm256_mul_ps(_mm256_mul_ps(rest2, g), g));
    __m256 w = v;
    if (max_second_moment != nullptr) {
      w = _mm256_max_ps(load_up_to_8(max_second_moment + i, count), v);
      store_up_to_8(max_second_moment + i, count, w);
    }
    store_up_to_8(first_moment + i, count, m);
    store_up_to_8(second_moment + i, count, v);
    const __m256 change =
        _mm256_div_ps(_mm256_mul_ps(size, m), _mm256_fmadd_ps(_mm256_sqrt_ps(w), correction2, eps));
    const __m256 updated = _mm256_sub_ps(old, _mm256_fmadd_ps(shrink, old, change));
    store_up_to_8(value + i, count, updated);
    if (narrow != nullptr) store_bf16(narrow + i, updated, count);
  }
}

double sum_of_squares_f32_avx2(const float* x, int64_t n) {
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  for (int64_t i = 0; i < n; i += 8) {
    const __m256 value = load_up_to_8(x + i, n - i);
    const __m256d a = _mm256_cvtps_pd(_mm256_castps256_ps128(value));
    const __m256d b = _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1));
    low = _mm256_fmadd_pd(a, a, low);  // the square of a float is exact in double
    high = _mm256_fmadd_pd(b, b, high);
  }
  const __m256d four = _mm256_add_pd(low, high);
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

}  // namespace xsr::kernels
