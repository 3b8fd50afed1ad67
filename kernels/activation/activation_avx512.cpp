#include "kernels/activation/activation.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

/// f'(x); the formulas are in activation.h
static inline __m512 activation_slope(__m512 x, Activation activation) {
  const __m512 one = _mm512_set1_ps(1.0f);
  switch (activation) {
    case Activation::kNone:
      return one;
    case Activation::kSwish: {
      const __m512 s = times_sigmoid_f32(one, x);
      return _mm512_fmadd_ps(_mm512_mul_ps(x, s), _mm512_sub_ps(one, s), s);
    }
    case Activation::kGeluErf: {
      __m512 bell;
      const __m512 distribution = normal_distribution_f32(x, &bell);
      return _mm512_fmadd_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.398942280f)), bell, distribution);
    }
    case Activation::kGeluTanh: {
      // 0 or 1 beyond 20, where x³ may overflow. min/max pass a NaN in their second operand on.
      x = _mm512_max_ps(_mm512_set1_ps(-20.0f), _mm512_min_ps(_mm512_set1_ps(20.0f), x));
      const __m512 square = _mm512_mul_ps(x, x);
      const __m512 u = _mm512_fmadd_ps(_mm512_mul_ps(square, x), _mm512_set1_ps(0.0713548163f),
                                       _mm512_mul_ps(x, _mm512_set1_ps(1.59576912f)));  // doubled
      const __m512 slope =
          _mm512_fmadd_ps(square, _mm512_set1_ps(0.214064449f), _mm512_set1_ps(1.59576912f));
      const __m512 s = times_sigmoid_f32(one, u);
      return _mm512_fmadd_ps(_mm512_mul_ps(s, _mm512_sub_ps(one, s)), _mm512_mul_ps(x, slope), s);
    }
    case Activation::kRelu:
      return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NLE_UQ), one);
    case Activation::kTanh: {
      const __m512 e = exp_f32(_mm512_mul_ps(_mm512_set1_ps(-2.0f), _mm512_abs_ps(x)));
      const __m512 sum = _mm512_add_ps(one, e);
      return _mm512_div_ps(_mm512_mul_ps(_mm512_set1_ps(4.0f), e), _mm512_mul_ps(sum, sum));
    }
  }
  return one;
}

void activation_forward_f32_avx512(const float* x, int64_t n, Activation activation, float* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask = tail_mask(n - i);
    _mm512_mask_storeu_ps(out + i, mask,
                          activate_f32(_mm512_maskz_loadu_ps(mask, x + i), activation));
  }
}

void activation_backward_f32_avx512(const float* x, const float* dy, int64_t n,
                                    Activation activation, float* dx) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask = tail_mask(n - i);
    const __m512 slope = activation_slope(_mm512_maskz_loadu_ps(mask, x + i), activation);
    _mm512_mask_storeu_ps(dx + i, mask, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, dy + i), slope));
  }
}

}  // namespace xsr::kernels
