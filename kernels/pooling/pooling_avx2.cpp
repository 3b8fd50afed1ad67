#include "kernels/pooling/pooling.h"

#include "kernels/simd/avx2.h"

namespace xsr::kernels {

void pooling_forward_f32_avx2(const float* x, int64_t x_stride, const int32_t* cu_seqlens,
                              int32_t first, int32_t last, int32_t C, Pooling pooling, float* out,
                              int64_t out_stride) {
  for (int32_t b = first; b < last; ++b) {
    const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
    const __m256 count = _mm256_set1_ps((float)(end - begin));
    for (int32_t c = 0; c < C; c += 8) {
      const __m256i mask = tail_mask8(C - c);
      __m256 value =
          begin < end ? _mm256_maskload_ps(x + begin * x_stride + c, mask) : _mm256_setzero_ps();
      if (pooling == Pooling::kMean && begin < end) {
        for (int32_t i = begin + 1; i < end; ++i) {
          value = _mm256_add_ps(value, _mm256_maskload_ps(x + i * x_stride + c, mask));
        }
        value = _mm256_div_ps(value, count);
      } else if (pooling == Pooling::kMax) {
        for (int32_t i = begin + 1; i < end; ++i) {
          value = _mm256_max_ps(_mm256_maskload_ps(x + i * x_stride + c, mask), value);
        }
      }
      _mm256_maskstore_ps(out + b * out_stride + c, mask, value);
    }
  }
}

void l2_normalize_forward_f32_avx2(float* x, int64_t stride, int32_t first, int32_t last,
                                   int32_t C) {
  for (int32_t b = first; b < last; ++b) {
    float* row = x + b * stride;
    __m256d sums[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
    for (int32_t c = 0; c < C; c += 8) {
      const __m256 value = _mm256_maskload_ps(row + c, tail_mask8(C - c));
      const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(value));
      const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1));
      sums[0] = _mm256_fmadd_pd(low, low, sums[0]);
      sums[1] = _mm256_fmadd_pd(high, high, sums[1]);
    }
    const __m256d sum = _mm256_add_pd(sums[0], sums[1]);
    const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(sum), _mm256_extractf128_pd(sum, 1));
    const double squares = _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
    if (squares == 0) continue;
    const __m256d scale =
        _mm256_set1_pd(1.0 / _mm_cvtsd_f64(_mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(squares))));
    for (int32_t c = 0; c < C; c += 8) {
      const __m256i mask = tail_mask8(C - c);
      const __m256 value = _mm256_maskload_ps(row + c, mask);
      const __m128 low =
          _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(value)), scale));
      const __m128 high =
          _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(value, 1)), scale));
      _mm256_maskstore_ps(row + c, mask, _mm256_set_m128(high, low));
    }
  }
}

}  // namespace xsr::kernels
