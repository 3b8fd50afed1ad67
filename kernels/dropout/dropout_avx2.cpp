#include "kernels/dropout/dropout_avx2.h"

#include "kernels/simd/avx2.h"

namespace xsr::kernels {

void dropout_forward_f32_avx2(const float* x, int64_t x_stride, int32_t first, int32_t last,
                              int32_t C, const Dropout& dropout, const float* residual,
                              int64_t residual_stride, float* out, int64_t out_stride) {
  const __m256 scale = _mm256_set1_ps(dropout.scale);
  __m256i words[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                      _mm256_setzero_si256()};
  for (int32_t i = first; i < last; ++i) {
    for (int32_t c = 0; c < C; c += 32) {
      if (dropout.threshold > 0) dropout_words(dropout, i, c, words);
      for (int32_t j = 0; j < 4 && c + 8 * j < C; ++j) {
        const int32_t column = c + 8 * j, count = C - column;
        const __m256 kept = _mm256_and_ps(load_up_to_8(x + i * x_stride + column, count),
                                          dropout_kept(words[j], dropout));
        __m256 value = _mm256_mul_ps(kept, scale);
        if (residual != nullptr)
          value =
              _mm256_add_ps(value, load_up_to_8(residual + i * residual_stride + column, count));
        store_up_to_8(out + i * out_stride + column, count, value);
      }
    }
  }
}

}  // namespace xsr::kernels
