#include "kernels/activation/activation.h"
#include "kernels/simd/avx2.h"

namespace xsr::kernels {

/// f'(x); the formulas are in activation.h
static inline __m256 activation_slope(__m256 x, Activation activation) {
  const __m256 one = _mm256_set1_ps(1.0f);
  switch (activation) {
    case Activation::kNone:
      return one;
    case Activation::kSwish: {
      const __m256 s = times_sigmoid_f32(one, x);
      return _mm256_fmadd_ps(_mm256_mul_ps(x, s), _mm256_sub_ps(one, s), s);
    }
    case Activation::kGeluErf: {
      __m256 bell;
      const __m256 distribution = normal_distribution_f32(x, &bell);
      return _mm256_fmadd_ps(_mm256_mul_ps(x, _mm256_set1_ps(0.398942280f)), bell, distribution);
    }
    case Activation::kGeluTanh: {
      // 0 or 1 beyond 20, where x³ may overflow. min/max pass a NaN in their second operand on.
      x = _mm256_max_ps(_mm256_set1_ps(-20.0f), _mm256_min_ps(_mm256_set1_ps(20.0f), x));
      const __m256 square = _mm256_mul_ps(x, x);
      const __m256 u = _mm256_fmadd_ps(_mm256_mul_ps(square, x), _mm256_set1_ps(0.0713548163f),
                                       _mm256_mul_ps(x, _mm256_set1_ps(1.59576912f)));  // doubled
      const __m256 slope =
          _mm256_fmadd_ps(square, _mm256_set1_ps(0.214064449f), _mm256_set1_ps(1.59576912f));
      const __m256 s = times_sigmoid_f32(one, u);
      return _mm256_fmadd_ps(_mm256_mul_ps(s, _mm256_sub_ps(one, s)), _mm256_mul_ps(x, slope), s);
    }
    case Activation::kRelu:
      return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LE_OQ), one);
    case Activation::kTanh: {
      const __m256 e =
          exp_f32(_mm256_mul_ps(_mm256_set1_ps(-2.0f), _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x)));
      const __m256 sum = _mm256_add_ps(one, e);
      return _mm256_div_ps(_mm256_mul_ps(_mm256_set1_ps(4.0f), e), _mm256_mul_ps(sum, sum));
    }
  }
  return one;
}

void activation_forward_f32_avx2(const float* x, int64_t n, Activation activation, float* out) {
  for (int64_t i = 0; i < n; i += 8) {
    store_up_to_8(out + i, n - i, activate_f32(load_up_to_8(x + i, n - i), activation));
  }
}

void activation_backward_f32_avx2(const float* x, const float* dy, int64_t n, Activation activation,
                                  float* dx) {
  for (int64_t i = 0; i < n; i += 8) {
    const __m256 slope = activation_slope(load_up_to_8(x + i, n - i), activation);
    store_up_to_8(dx + i, n - i, _mm256_mul_ps(load_up_to_8(dy + i, n - i), slope));
  }
}

}  // namespace xsr::kernels
