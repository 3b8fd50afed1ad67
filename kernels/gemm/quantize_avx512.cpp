#include "kernels/gemm/gemm.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

void quantize_forward_u8_avx512(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                int32_t K, const InputRange* range, uint8_t* out,
                                int64_t out_stride, QuantizedRow* rows) {
  const int32_t padded = (K + 3) / 4 * 4;
  for (int32_t i = first; i < last; ++i) {
    const float* row = x + i * x_stride;
    uint8_t* codes = out + i * out_stride;
    __m512 lows = _mm512_setzero_ps(), highs = lows, poison = lows;
    for (int32_t k = 0; k < K; k += 16) {
      const __m512 value = _mm512_maskz_loadu_ps(tail_mask(K - k), row + k);
      lows = _mm512_min_ps(value, lows);  // a NaN leaves lows as it is, and shows in poison
      highs = _mm512_max_ps(value, highs);
      poison = _mm512_add_ps(poison, _mm512_sub_ps(value, value));
    }
    const float low = range != nullptr ? range->low : _mm512_reduce_min_ps(lows);
    const float high = range != nullptr ? range->high : _mm512_reduce_max_ps(highs);
    const float sum = _mm512_reduce_add_ps(poison);
    const float scale = high / 255 - low / 255;
    const bool empty = sum != sum || !(scale >= kLeastScaleI8);
    const float inverse = empty ? 0 : 1 / scale;
    QuantizedRow& quantized = rows[i];
    quantized = {sum != sum ? sum : 0.0f, 0};
    if (!empty) quantized = {scale, _mm_cvtss_si32(_mm_set_ss(-low * inverse))};
    const __m512 factor = _mm512_set1_ps(inverse);
    const __m512i zero = _mm512_set1_epi32(quantized.zero);
    for (int32_t k = 0; k < padded; k += 16) {
      const __mmask16 filled = empty ? (__mmask16)0 : tail_mask(K - k);
      const __m512 value = _mm512_maskz_loadu_ps(filled, row + k);
      __m512 steps = _mm512_min_ps(_mm512_mul_ps(value, factor), _mm512_set1_ps(255));
      steps = _mm512_max_ps(steps, _mm512_set1_ps(-255));
      __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(steps), zero);
      q = _mm512_maskz_max_epi32(filled, q, _mm512_setzero_si512());
      _mm_mask_storeu_epi8(codes + k, tail_mask(padded - k), _mm512_cvtusepi32_epi8(q));
    }
  }
}

}  // namespace xsr::kernels
