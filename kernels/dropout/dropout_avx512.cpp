#include "kernels/dropout/dropout_avx512.h"

#include "kernels/simd/avx512.h"

namespace xsr::kernels {

void dropout_forward_f32_avx512(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                int32_t C, const Dropout& dropout, const float* residual,
                                int64_t residual_stride, float* out, int64_t out_stride) {
  const __m512 scale = _mm512_set1_ps(dropout.scale);
  __m512i words[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                      _mm512_setzero_si512()};
  for (int32_t i = first; i < last; ++i) {
    for (int32_t c = 0; c < C; c += 64) {
      if (dropout.threshold > 0) dropout_words(dropout, i, c, words);
      for (int32_t j = 0; j < 4 && c + 16 * j < C; ++j) {
        const int32_t column = c + 16 * j;
        const __mmask16 mask = tail_mask(C - column);
        __m512 value =
            _mm512_maskz_mul_ps(dropout_kept(words[j], dropout),
                                _mm512_maskz_loadu_ps(mask, x + i * x_stride + column), scale);
        if (residual != nullptr) {
          value = _mm512_add_ps(
              value, _mm512_maskz_loadu_ps(mask, residual + i * residual_stride + column));
        }
        _mm512_mask_storeu_ps(out + i * out_stride + column, mask, value);
      }
    }
  }
}

}  // namespace xsr::kernels
