#include "kernels/dropout/dropout_avx512.h"

#include "kernels/simd/avx512.h"

namespace xsr::kernels {

void dropout_forward_f32_avx512(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                int32_t C, const Dropout& dropout, const float* residual,
                                int64_t residual_stride, float* out, int64_t out_stride) {
  const __m512 scale = _mm512_set1_ps(dropout.scale);
  const auto drop = [&](int32_t i, int32_t column, __m512i word, __mmask16 mask) {
    __m512 value = _mm512_maskz_mul_ps(
        dropout_kept(word, dropout), _mm512_maskz_loadu_ps(mask, x + i * x_stride + column), scale);
    if (residual != nullptr) {
      value = _mm512_add_ps(value,
                            _mm512_maskz_loadu_ps(mask, residual + i * residual_stride + column));
    }
    _mm512_mask_storeu_ps(out + i * out_stride + column, mask, value);
  };
  __m512i words[8];
  for (__m512i& word : words) word = _mm512_setzero_si512();
  for (int32_t i = first; i < last; ++i) {
    int32_t c = 0;
    for (; c + 128 <= C; c += 128) {
      if (dropout.threshold > 0) dropout_words(dropout, i, c, words);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) drop(i, c + 16 * j, words[j], 0xffff);
    }
    for (; c < C; c += 128) {
      if (dropout.threshold > 0) dropout_words(dropout, i, c, words);
      for (int32_t j = 0; c + 16 * j < C; ++j)
        drop(i, c + 16 * j, words[j], tail_mask(C - c - 16 * j));
    }
  }
}

}  // namespace xsr::kernels
