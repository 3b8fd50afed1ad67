#include "kernels/pooling/pooling.h"

#include "kernels/simd/avx512.h"

namespace xsr::kernels {

void pooling_forward_f32_avx512(const float* x, int64_t x_stride, const int32_t* cu_seqlens,
                                int32_t first, int32_t last, int32_t C, Pooling pooling, float* out,
                                int64_t out_stride) {
  for (int32_t b = first; b < last; ++b) {
    const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
    const __m512 count = _mm512_set1_ps((float)(end - begin));
    for (int32_t c = 0; c < C; c += 16) {
      const __mmask16 mask = tail_mask(C - c);
      __m512 value =
          begin < end ? _mm512_maskz_loadu_ps(mask, x + begin * x_stride + c) : _mm512_setzero_ps();
      if (pooling == Pooling::kMean && begin < end) {
        for (int32_t i = begin + 1; i < end; ++i) {
          value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, x + i * x_stride + c));
        }
        value = _mm512_div_ps(value, count);
      } else if (pooling == Pooling::kMax) {
        for (int32_t i = begin + 1; i < end; ++i) {
          value = _mm512_max_ps(_mm512_maskz_loadu_ps(mask, x + i * x_stride + c), value);
        }
      }
      _mm512_mask_storeu_ps(out + b * out_stride + c, mask, value);
    }
  }
}

void l2_normalize_forward_f32_avx512(float* x, int64_t stride, int32_t first, int32_t last,
                                     int32_t C) {
  for (int32_t b = first; b < last; ++b) {
    float* row = x + b * stride;
    __m512d sums[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
    for (int32_t c = 0; c < C; c += 16) {
      const __m512 value = _mm512_maskz_loadu_ps(tail_mask(C - c), row + c);
      const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(value));
      const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1));
      sums[0] = _mm512_fmadd_pd(low, low, sums[0]);
      sums[1] = _mm512_fmadd_pd(high, high, sums[1]);
    }
    const double squares = _mm512_reduce_add_pd(_mm512_add_pd(sums[0], sums[1]));
    if (squares == 0) continue;
    const __m512d scale =
        _mm512_set1_pd(1.0 / _mm_cvtsd_f64(_mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(squares))));
    for (int32_t c = 0; c < C; c += 16) {
      const __mmask16 mask = tail_mask(C - c);
      const __m512 value = _mm512_maskz_loadu_ps(mask, row + c);
      const __m256 low =
          _mm512_cvtpd_ps(_mm512_mul_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(value)), scale));
      const __m256 high =
          _mm512_cvtpd_ps(_mm512_mul_pd(_mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1)), scale));
      _mm512_mask_storeu_ps(row + c, mask,
                            _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1));
    }
  }
}

void pooling_backward_f32_avx512(const float* x, int64_t x_stride, const float* dy,
                                 int64_t dy_stride, const int32_t* cu_seqlens, int32_t first,
                                 int32_t last, int32_t C, Pooling pooling, float* dx,
                                 int64_t dx_stride) {
  for (int32_t b = first; b < last; ++b) {
    const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
    if (begin == end) continue;
    for (int32_t c = 0; c < C; c += 16) {
      const __mmask16 mask = tail_mask(C - c);
      const __m512 gradient = _mm512_maskz_loadu_ps(mask, dy + b * dy_stride + c);
      if (pooling == Pooling::kMean) {
        const __m512 share = _mm512_div_ps(gradient, _mm512_set1_ps((float)(end - begin)));
        for (int32_t i = begin; i < end; ++i)
          _mm512_mask_storeu_ps(dx + i * dx_stride + c, mask, share);
        continue;
      }
      __m512i chosen = _mm512_set1_epi32(begin);
      if (pooling == Pooling::kMax) {
        __m512 peak = _mm512_maskz_loadu_ps(mask, x + begin * x_stride + c);
        for (int32_t i = begin + 1; i < end; ++i) {
          const __m512 value = _mm512_maskz_loadu_ps(mask, x + i * x_stride + c);
          const __mmask16 higher = _mm512_cmp_ps_mask(value, peak, _CMP_GT_OQ);
          peak = _mm512_mask_mov_ps(peak, higher, value);
          chosen = _mm512_mask_mov_epi32(chosen, higher, _mm512_set1_epi32(i));
        }
      }
      for (int32_t i = begin; i < end; ++i) {
        const __mmask16 here = _mm512_cmpeq_epi32_mask(chosen, _mm512_set1_epi32(i));
        _mm512_mask_storeu_ps(dx + i * dx_stride + c, mask, _mm512_maskz_mov_ps(here, gradient));
      }
    }
  }
}

void l2_normalize_backward_f32_avx512(const float* x, int64_t x_stride, const float* dy,
                                      int64_t dy_stride, int32_t first, int32_t last, int32_t C,
                                      float* dx, int64_t dx_stride) {
  for (int32_t b = first; b < last; ++b) {
    const float* row = x + b * x_stride;
    const float* gradient = dy + b * dy_stride;
    __m512d squares = _mm512_setzero_pd(), dots = _mm512_setzero_pd();
    for (int32_t c = 0; c < C; c += 8) {
      const __mmask8 mask = (__mmask8)tail_mask(C - c);
      const __m512d value = _mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, row + c));
      squares = _mm512_fmadd_pd(value, value, squares);
      dots =
          _mm512_fmadd_pd(value, _mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, gradient + c)), dots);
    }
    const double length_squared = _mm512_reduce_add_pd(squares);
    const double inverse =
        length_squared == 0
            ? 0
            : 1.0 / _mm_cvtsd_f64(_mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(length_squared)));
    const __m512d scale = _mm512_set1_pd(inverse);
    const __m512d projection = _mm512_set1_pd(_mm512_reduce_add_pd(dots) * inverse * inverse);
    for (int32_t c = 0; c < C; c += 8) {
      const __mmask8 mask = (__mmask8)tail_mask(C - c);
      const __m512d across =
          _mm512_fnmadd_pd(_mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, row + c)), projection,
                           _mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, gradient + c)));
      _mm256_mask_storeu_ps(dx + b * dx_stride + c, mask,
                            _mm512_cvtpd_ps(_mm512_mul_pd(across, scale)));
    }
  }
}

}  // namespace xsr::kernels
