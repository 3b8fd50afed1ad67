#include "kernels/pooling/pooling.h"

#include "kernels/simd/avx2.h"

namespace xsr::kernels {
namespace {

/// 8 · kVectors columns of rows [begin, end), of which `count` exist; all where there are several
/// vectors.
template <int kVectors>
inline void pool_columns(const float* x, int64_t x_stride, int32_t begin, int32_t end,
                         Pooling pooling, int64_t count, float* out) {
  const auto load = [&](int32_t row, int j) {
    const float* at = x + row * x_stride + 8 * j;
    return kVectors > 1 ? _mm256_loadu_ps(at) : load_up_to_8(at, count);
  };
  __m256 value[kVectors];
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) value[j] = begin < end ? load(begin, j) : _mm256_setzero_ps();
  if (pooling == Pooling::kMean && begin < end) {
    for (int32_t i = begin + 1; i < end; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) value[j] = _mm256_add_ps(value[j], load(i, j));
    }
    const __m256 rows = _mm256_set1_ps((float)(end - begin));
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) value[j] = _mm256_div_ps(value[j], rows);
  } else if (pooling == Pooling::kMax) {
    for (int32_t i = begin + 1; i < end; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) value[j] = _mm256_max_ps(load(i, j), value[j]);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    kVectors > 1 ? _mm256_storeu_ps(out + 8 * j, value[j]) : store_up_to_8(out, count, value[j]);
  }
}

}  // namespace

void pooling_forward_f32_avx2(const float* x, int64_t x_stride, const int32_t* cu_seqlens,
                              int32_t first, int32_t last, int32_t C, Pooling pooling, float* out,
                              int64_t out_stride) {
  for (int32_t b = first; b < last; ++b) {
    const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
    float* row = out + b * out_stride;
    int32_t c = 0;
    for (; c + 32 <= C; c += 32) pool_columns<4>(x + c, x_stride, begin, end, pooling, 32, row + c);
    for (; c < C; c += 8) pool_columns<1>(x + c, x_stride, begin, end, pooling, C - c, row + c);
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
    const double squares = reduce_add(_mm256_add_pd(sums[0], sums[1]));
    if (squares == 0) continue;
    const __m256d scale =
        _mm256_set1_pd(1.0 / _mm_cvtsd_f64(_mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(squares))));
    for (int32_t c = 0; c < C; c += 8) {
      const __m256 value = load_up_to_8(row + c, C - c);
      const __m128 low =
          _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(value)), scale));
      const __m128 high =
          _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(value, 1)), scale));
      store_up_to_8(row + c, C - c, _mm256_set_m128(high, low));
    }
  }
}

void pooling_backward_f32_avx2(const float* x, int64_t x_stride, const float* dy, int64_t dy_stride,
                               const int32_t* cu_seqlens, int32_t first, int32_t last, int32_t C,
                               Pooling pooling, float* dx, int64_t dx_stride) {
  for (int32_t b = first; b < last; ++b) {
    const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
    if (begin == end) continue;
    for (int32_t c = 0; c < C; c += 8) {
      const __m256 gradient = load_up_to_8(dy + b * dy_stride + c, C - c);
      if (pooling == Pooling::kMean) {
        const __m256 share = _mm256_div_ps(gradient, _mm256_set1_ps((float)(end - begin)));
        for (int32_t i = begin; i < end; ++i) store_up_to_8(dx + i * dx_stride + c, C - c, share);
        continue;
      }
      __m256i chosen = _mm256_set1_epi32(begin);
      if (pooling == Pooling::kMax) {
        __m256 peak = load_up_to_8(x + begin * x_stride + c, C - c);
        for (int32_t i = begin + 1; i < end; ++i) {
          const __m256 value = load_up_to_8(x + i * x_stride + c, C - c);
          const __m256 higher = _mm256_cmp_ps(value, peak, _CMP_GT_OQ);
          peak = _mm256_blendv_ps(peak, value, higher);
          chosen = _mm256_blendv_epi8(chosen, _mm256_set1_epi32(i), _mm256_castps_si256(higher));
        }
      }
      for (int32_t i = begin; i < end; ++i) {
        const __m256i here = _mm256_cmpeq_epi32(chosen, _mm256_set1_epi32(i));
        store_up_to_8(dx + i * dx_stride + c, C - c,
                      _mm256_and_ps(gradient, _mm256_castsi256_ps(here)));
      }
    }
  }
}

void l2_normalize_backward_f32_avx2(const float* x, int64_t x_stride, const float* dy,
                                    int64_t dy_stride, int32_t first, int32_t last, int32_t C,
                                    float* dx, int64_t dx_stride) {
  for (int32_t b = first; b < last; ++b) {
    const float* row = x + b * x_stride;
    const float* gradient = dy + b * dy_stride;
    __m256d squares[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
    __m256d dots[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
    for (int32_t c = 0; c < C; c += 8) {
      const __m256 value = load_up_to_8(row + c, C - c), d = load_up_to_8(gradient + c, C - c);
      const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(value));
      const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1));
      squares[0] = _mm256_fmadd_pd(low, low, squares[0]);
      squares[1] = _mm256_fmadd_pd(high, high, squares[1]);
      dots[0] = _mm256_fmadd_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(d)), dots[0]);
      dots[1] = _mm256_fmadd_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(d, 1)), dots[1]);
    }
    const double length_squared = reduce_add(_mm256_add_pd(squares[0], squares[1]));
    const double inverse =
        length_squared == 0
            ? 0
            : 1.0 / _mm_cvtsd_f64(_mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(length_squared)));
    const double along = reduce_add(_mm256_add_pd(dots[0], dots[1])) * inverse * inverse;
    const __m256d scale = _mm256_set1_pd(inverse), projection = _mm256_set1_pd(along);
    for (int32_t c = 0; c < C; c += 8) {
      const __m256 value = load_up_to_8(row + c, C - c), d = load_up_to_8(gradient + c, C - c);
      const __m256d low = _mm256_fnmadd_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(value)),
                                           projection, _mm256_cvtps_pd(_mm256_castps256_ps128(d)));
      const __m256d high =
          _mm256_fnmadd_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(value, 1)), projection,
                           _mm256_cvtps_pd(_mm256_extractf128_ps(d, 1)));
      store_up_to_8(dx + b * dx_stride + c, C - c,
                    _mm256_set_m128(_mm256_cvtpd_ps(_mm256_mul_pd(high, scale)),
                                    _mm256_cvtpd_ps(_mm256_mul_pd(low, scale))));
    }
  }
}

}  // namespace xsr::kernels
