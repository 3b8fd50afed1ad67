#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_backward.h"
#include "kernels/simd/avx2.h"

namespace xsr::kernels {
namespace {

/// Eight q of a row, as 32-bit lanes not yet bounded to 0 … 255. Only what is too large needs the
/// bound: beyond 2^31 the conversion gives the smallest integer, which is right for what is too
/// small.
inline __m256i quantize8(__m256 x, __m256 inverse, __m256i zero) {
  const __m256 steps = _mm256_min_ps(_mm256_mul_ps(x, inverse), _mm256_set1_ps(255));
  return _mm256_add_epi32(_mm256_cvtps_epi32(steps), zero);
}

inline float reduce_min(__m256 x) { return -reduce_max(negate_f32(x)); }

}  // namespace

void quantize_forward_u8_avx2(const float* x, int64_t x_stride, int32_t first, int32_t last,
                              int32_t K, const InputRange* range, uint8_t* out, int64_t out_stride,
                              QuantizedRow* rows) {
  const int32_t padded = (K + 3) / 4 * 4;
  for (int32_t i = first; i < last; ++i) {
    const float* row = x + i * x_stride;
    uint8_t* codes = out + i * out_stride;
    __m256 lows = _mm256_setzero_ps(), highs = lows, poison = lows;
    for (int32_t k = 0; k < K; k += 8) {
      const __m256 value = load_up_to_8(row + k, K - k);
      lows = _mm256_min_ps(value, lows);  // a NaN leaves lows as it is, and shows in poison
      highs = _mm256_max_ps(value, highs);
      poison = _mm256_add_ps(poison, _mm256_sub_ps(value, value));
    }
    const float low = range != nullptr ? range->low : reduce_min(lows);
    const float high = range != nullptr ? range->high : reduce_max(highs);
    const float sum = reduce_add(poison);
    const float scale = high / 255 - low / 255;
    QuantizedRow& quantized = rows[i];
    if (sum != sum || !(scale >= kLeastScaleI8)) {
      quantized = {sum != sum ? sum : 0.0f, 0};
      for (int32_t k = 0; k < padded; ++k) codes[k] = 0;
      continue;
    }
    const float inverse = 1 / scale;
    quantized = {scale, _mm_cvtss_si32(_mm_set_ss(-low * inverse))};
    const __m256 factor = _mm256_set1_ps(inverse);
    const __m256i zero = _mm256_set1_epi32(quantized.zero);
    int32_t k = 0;
    for (; k + 16 <= K; k += 16) {
      const __m256i q = _mm256_packs_epi32(quantize8(_mm256_loadu_ps(row + k), factor, zero),
                                           quantize8(_mm256_loadu_ps(row + k + 8), factor, zero));
      // packs works within 128-bit lanes: columns 0-3, 8-11, 4-7, 12-15
      const __m256i ordered = _mm256_permute4x64_epi64(q, 0xd8);
      _mm_storeu_si128(
          (__m128i*)(codes + k),
          _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
    }
    for (; k < padded; k += 8) {
      const __m256 value = _mm256_maskload_ps(row + k, tail_mask8(K - k));
      const __m256i q = quantize8(value, factor, zero);
      const __m128i words =
          _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
      uint8_t copy[8];
      _mm_storel_epi64((__m128i*)copy, _mm_packus_epi16(words, words));
      for (int32_t j = 0; j < 8 && k + j < padded; ++j) codes[k + j] = k + j < K ? copy[j] : 0;
    }
  }
}

void quantize_columns_i8_avx2(const float* x, int64_t x_stride, int32_t M, int32_t C, int32_t zero,
                              uint32_t* lanes, int64_t lane_stride, float* scales, int32_t* sums) {
  const __m256i byte = _mm256_set1_epi32(0xff),
                flip = _mm256_set1_epi32((int32_t)(0x01010101u * (uint32_t)zero));
  const __m256i infinity = _mm256_set1_epi32(0x7f800000);
  for (int32_t c = 0; c < C; c += 8) {
    const int64_t count = C - c;
    // As integers, magnitudes have the order they have as numbers; a NaN is above all.
    __m256i largest = _mm256_setzero_si256(), sum = largest;
    for (int32_t m = 0; m < M; ++m) {
      const __m256i value = _mm256_castps_si256(load_up_to_8(x + m * x_stride + c, count));
      largest = _mm256_max_epi32(largest, _mm256_and_si256(value, _mm256_set1_epi32(0x7fffffff)));
    }
    const __m256i finite = _mm256_cmpgt_epi32(infinity, largest);
    const __m256 scale = _mm256_div_ps(_mm256_castsi256_ps(largest), _mm256_set1_ps(127));
    const __m256 filled =
        _mm256_and_ps(_mm256_castsi256_ps(finite),
                      _mm256_cmp_ps(scale, _mm256_set1_ps(kLeastScaleI8), _CMP_GE_OQ));
    const __m256 nan = _mm256_set1_ps(__builtin_nanf(""));
    store_up_to_8(scales + c, count,
                  _mm256_blendv_ps(nan, _mm256_and_ps(scale, filled), _mm256_castsi256_ps(finite)));
    const __m256 inverse = _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(1), scale), filled);
    for (int32_t m = 0; m < M; m += 4) {
      __m256i lane = _mm256_setzero_si256();
      for (int32_t j = 0; j < 4; ++j) {
        __m256i q = _mm256_setzero_si256();
        if (m + j < M) {
          const __m256 value = load_up_to_8(x + (m + j) * x_stride + c, count);
          q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_and_ps(value, filled), inverse));
        }
        sum = _mm256_add_epi32(sum, q);
        lane = _mm256_or_si256(
            lane, _mm256_sll_epi32(_mm256_and_si256(q, byte), _mm_cvtsi32_si128(8 * j)));
      }
      store_up_to_8((float*)lanes + m / 4 * lane_stride + c, count,
                    _mm256_castsi256_ps(_mm256_xor_si256(lane, flip)));
    }
    if (sums != nullptr) store_up_to_8((float*)sums + c, count, _mm256_castsi256_ps(sum));
  }
}

}  // namespace xsr::kernels
