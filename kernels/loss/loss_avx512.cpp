#include "kernels/loss/loss.h"

#include "kernels/simd/avx512.h"

namespace xsr::kernels {
namespace {

/// Lanes that are not finite in either become NaN; the others keep value.
inline __m512 nan_unless_finite(__m512 value, __m512 low, __m512 high) {
  const __m512 zero = _mm512_add_ps(_mm512_sub_ps(low, low), _mm512_sub_ps(high, high));
  return _mm512_add_ps(value, zero);
}

/// kVectors · 16 columns from column b on, of which `count` exist.
template <int kVectors>
inline void vocabulary_columns(const float* z, int64_t z_stride, int32_t R, const float* bias,
                               int64_t count, float* max, float* sum, float* e, int64_t e_stride,
                               uint16_t* narrow, int64_t narrow_stride) {
  __mmask16 mask[kVectors];
  __m512 low[kVectors], high[kVectors], total[kVectors];
  for (int i = 0; i < kVectors; ++i) {
    mask[i] = tail_mask(count - 16 * i);
    low[i] = _mm512_set1_ps(__builtin_inff());
    high[i] = _mm512_set1_ps(-__builtin_inff());
    total[i] = _mm512_setzero_ps();
  }
  for (int32_t v = 0; v < R; ++v) {
    const __m512 shift = _mm512_set1_ps(bias != nullptr ? bias[v] : 0.0f);
    for (int i = 0; i < kVectors; ++i) {
      const __m512 x =
          _mm512_add_ps(_mm512_maskz_loadu_ps(mask[i], z + v * z_stride + 16 * i), shift);
      low[i] = _mm512_min_ps(x, low[i]);  // NaN is left to the exponential
      high[i] = _mm512_max_ps(x, high[i]);
    }
  }
  for (int32_t v = 0; v < R; ++v) {
    const __m512 shift = _mm512_set1_ps(bias != nullptr ? bias[v] : 0.0f);
    for (int i = 0; i < kVectors; ++i) {
      const __m512 x =
          _mm512_add_ps(_mm512_maskz_loadu_ps(mask[i], z + v * z_stride + 16 * i), shift);
      const __m512 value = exp_f32(_mm512_sub_ps(x, high[i]));
      total[i] = _mm512_add_ps(total[i], value);
      if (e != nullptr) _mm512_mask_storeu_ps(e + v * e_stride + 16 * i, mask[i], value);
      if (narrow != nullptr) {
        _mm256_mask_storeu_epi16(narrow + v * narrow_stride + 16 * i, mask[i],
                                 bf16_from_lanes(value));
      }
    }
  }
  for (int i = 0; i < kVectors; ++i) {
    if (R > 0) total[i] = nan_unless_finite(total[i], low[i], high[i]);
    _mm512_mask_storeu_ps(max + 16 * i, mask[i], high[i]);
    _mm512_mask_storeu_ps(sum + 16 * i, mask[i], total[i]);
  }
}

}  // namespace

void vocabulary_softmax_forward_f32_avx512(const float* z, int64_t z_stride, int32_t R,
                                           const float* bias, int32_t first, int32_t last,
                                           float* max, float* sum, float* e, int64_t e_stride,
                                           uint16_t* narrow, int64_t narrow_stride) {
  int32_t b = first;
  const auto columns = [&](auto walk) {
    walk(z + b, z_stride, R, bias, last - b, max + b, sum + b, e == nullptr ? nullptr : e + b,
         e_stride, narrow == nullptr ? nullptr : narrow + b, narrow_stride);
  };
  for (; b + 48 < last; b += 64) columns(vocabulary_columns<4>);
  for (; b < last; b += 16) columns(vocabulary_columns<1>);
}

void vocabulary_softmax_backward_f32_avx512(const float* e, int64_t e_stride, int32_t R, int32_t N,
                                            const float* factor, float* dz, int64_t dz_stride,
                                            float* dbias) {
  for (int32_t v = 0; v < R; ++v) {
    __m512 total = _mm512_setzero_ps();
    for (int32_t b = 0; b < N; b += 16) {
      const __mmask16 mask = tail_mask(N - b);
      const __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, e + v * e_stride + b),
                                         _mm512_maskz_loadu_ps(mask, factor + b));
      _mm512_mask_storeu_ps(dz + v * dz_stride + b, mask, value);
      total = _mm512_add_ps(total, value);
    }
    if (dbias != nullptr) dbias[v] += _mm512_reduce_add_ps(total);
  }
}

void vocabulary_softmax_backward_bf16_avx512(const uint16_t* e, int64_t e_stride, int32_t R,
                                             int32_t N, const float* factor, uint16_t* dz,
                                             int64_t dz_stride, float* dbias) {
  for (int32_t v = 0; v < R; ++v) {
    __m512 total = _mm512_setzero_ps();
    for (int32_t b = 0; b < N; b += 16) {
      const __mmask16 mask = tail_mask(N - b);
      const __m512 value = _mm512_mul_ps(load_f32(e + v * e_stride, Storage::kBF16, b, mask),
                                         _mm512_maskz_loadu_ps(mask, factor + b));
      _mm256_mask_storeu_epi16(dz + v * dz_stride + b, mask, bf16_from_lanes(value));
      total = _mm512_add_ps(total, value);
    }
    if (dbias != nullptr) dbias[v] += _mm512_reduce_add_ps(total);
  }
}

void softmax_forward_f32_avx512(const float* s, int64_t s_stride, int32_t first, int32_t last,
                                int32_t N, float gain, float* p, int64_t p_stride, float* max,
                                float* sum) {
  for (int32_t i = first; i < last; ++i) {
    const float* row = s + i * s_stride;
    float* out = p + i * p_stride;
    __m512 high = _mm512_set1_ps(-__builtin_inff()), low = _mm512_set1_ps(__builtin_inff());
    for (int32_t j = 0; j < N; j += 16) {
      const __mmask16 mask = tail_mask(N - j);
      const __m512 x = _mm512_maskz_loadu_ps(mask, row + j);
      high = _mm512_mask_max_ps(high, mask, x, high);
      low = _mm512_mask_min_ps(low, mask, x, low);
    }
    const float peak = _mm512_reduce_max_ps(high), trough = _mm512_reduce_min_ps(low);
    const __m512 peaks = _mm512_set1_ps(peak);
    __m512 totals = _mm512_setzero_ps();
    for (int32_t j = 0; j < N; j += 16) {
      const __mmask16 mask = tail_mask(N - j);
      const __m512 x = _mm512_maskz_loadu_ps(mask, row + j);
      const __m512 value = _mm512_maskz_mov_ps(mask, exp_f32(_mm512_sub_ps(x, peaks)));
      _mm512_mask_storeu_ps(out + j, mask, value);
      totals = _mm512_add_ps(totals, value);
    }
    const float total = _mm512_reduce_add_ps(totals) + ((trough - trough) + (peak - peak));
    const __m512 share = _mm512_set1_ps(gain / total);
    for (int32_t j = 0; j < N; j += 16) {
      const __mmask16 mask = tail_mask(N - j);
      _mm512_mask_storeu_ps(out + j, mask,
                            _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, out + j), share));
    }
    max[i] = peak;
    sum[i] = total;
  }
}

}  // namespace xsr::kernels
