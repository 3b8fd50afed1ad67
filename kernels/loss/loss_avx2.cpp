#include "kernels/loss/loss.h"

#include "kernels/simd/avx2.h"

namespace xsr::kernels {
namespace {

/// Lanes that are not finite in either become NaN; the others keep value.
inline __m256 nan_unless_finite(__m256 value, __m256 low, __m256 high) {
  const __m256 zero = _mm256_add_ps(_mm256_sub_ps(low, low), _mm256_sub_ps(high, high));
  return _mm256_add_ps(value, zero);
}

/// kVectors · 8 columns from column b on, of which `count` exist.
template <int kVectors>
inline void vocabulary_columns(const float* z, int64_t z_stride, int32_t R, const float* bias,
                               int64_t count, float* max, float* sum, float* e, int64_t e_stride,
                               uint16_t* narrow, int64_t narrow_stride) {
  __m256 low[kVectors], high[kVectors], total[kVectors];
  for (int i = 0; i < kVectors; ++i) {
    low[i] = _mm256_set1_ps(__builtin_inff());
    high[i] = _mm256_set1_ps(-__builtin_inff());
    total[i] = _mm256_setzero_ps();
  }
  for (int32_t v = 0; v < R; ++v) {
    const __m256 shift = _mm256_set1_ps(bias != nullptr ? bias[v] : 0.0f);
    for (int i = 0; i < kVectors; ++i) {
      const __m256 x = _mm256_add_ps(load_up_to_8(z + v * z_stride + 8 * i, count - 8 * i), shift);
      low[i] = _mm256_min_ps(x, low[i]);  // NaN is left to the exponential
      high[i] = _mm256_max_ps(x, high[i]);
    }
  }
  for (int32_t v = 0; v < R; ++v) {
    const __m256 shift = _mm256_set1_ps(bias != nullptr ? bias[v] : 0.0f);
    for (int i = 0; i < kVectors; ++i) {
      const __m256 x = _mm256_add_ps(load_up_to_8(z + v * z_stride + 8 * i, count - 8 * i), shift);
      const __m256 value = exp_f32(_mm256_sub_ps(x, high[i]));
      total[i] = _mm256_add_ps(total[i], value);
      if (e != nullptr) store_up_to_8(e + v * e_stride + 8 * i, count - 8 * i, value);
      if (narrow != nullptr) store_bf16(narrow + v * narrow_stride + 8 * i, value, count - 8 * i);
    }
  }
  for (int i = 0; i < kVectors; ++i) {
    if (R > 0) total[i] = nan_unless_finite(total[i], low[i], high[i]);
    store_up_to_8(max + 8 * i, count - 8 * i, high[i]);
    store_up_to_8(sum + 8 * i, count - 8 * i, total[i]);
  }
}

}  // namespace

void vocabulary_softmax_forward_f32_avx2(const float* z, int64_t z_stride, int32_t R,
                                         const float* bias, int32_t first, int32_t last, float* max,
                                         float* sum, float* e, int64_t e_stride, uint16_t* narrow,
                                         int64_t narrow_stride) {
  int32_t b = first;
  const auto columns = [&](auto walk) {
    walk(z + b, z_stride, R, bias, last - b, max + b, sum + b, e == nullptr ? nullptr : e + b,
         e_stride, narrow == nullptr ? nullptr : narrow + b, narrow_stride);
  };
  for (; b + 24 < last; b += 32) columns(vocabulary_columns<4>);
  for (; b < last; b += 8) columns(vocabulary_columns<1>);
}

void vocabulary_softmax_backward_f32_avx2(const float* e, int64_t e_stride, int32_t R, int32_t N,
                                          const float* factor, float* dz, int64_t dz_stride,
                                          float* dbias) {
  for (int32_t v = 0; v < R; ++v) {
    __m256 total = _mm256_setzero_ps();
    for (int32_t b = 0; b < N; b += 8) {
      const __m256 value =
          _mm256_mul_ps(load_up_to_8(e + v * e_stride + b, N - b), load_up_to_8(factor + b, N - b));
      store_up_to_8(dz + v * dz_stride + b, N - b, value);
      total = _mm256_add_ps(total, value);
    }
    if (dbias != nullptr) dbias[v] += reduce_add(total);
  }
}

void vocabulary_softmax_backward_bf16_avx2(const uint16_t* e, int64_t e_stride, int32_t R,
                                           int32_t N, const float* factor, uint16_t* dz,
                                           int64_t dz_stride, float* dbias) {
  for (int32_t v = 0; v < R; ++v) {
    __m256 total = _mm256_setzero_ps();
    for (int32_t b = 0; b < N; b += 8) {
      const __m256 value = _mm256_mul_ps(load_f32(e + v * e_stride, Storage::kBF16, b, N - b),
                                         load_up_to_8(factor + b, N - b));
      store_bf16(dz + v * dz_stride + b, value, N - b);
      total = _mm256_add_ps(total, value);
    }
    if (dbias != nullptr) dbias[v] += reduce_add(total);
  }
}

void softmax_forward_f32_avx2(const float* s, int64_t s_stride, int32_t first, int32_t last,
                              int32_t N, float gain, float* p, int64_t p_stride, float* max,
                              float* sum) {
  const __m256 minus_infinity = _mm256_set1_ps(-__builtin_inff());
  for (int32_t i = first; i < last; ++i) {
    const float* row = s + i * s_stride;
    float* out = p + i * p_stride;
    __m256 high = minus_infinity, low = minus_infinity;  // low: of −x
    for (int32_t j = 0; j < N; j += 8) {
      const __m256i mask = tail_mask8(N - j);
      const __m256 x = load_up_to_8(row + j, N - j);
      const __m256 lanes = _mm256_castsi256_ps(mask);
      high = _mm256_max_ps(_mm256_blendv_ps(minus_infinity, x, lanes), high);
      low = _mm256_max_ps(_mm256_blendv_ps(minus_infinity, negate_f32(x), lanes), low);
    }
    const float peak = reduce_max(high), trough = -reduce_max(low);
    const __m256 peaks = _mm256_set1_ps(peak);
    __m256 totals = _mm256_setzero_ps();
    for (int32_t j = 0; j < N; j += 8) {
      const __m256i mask = tail_mask8(N - j);
      const __m256 x = load_up_to_8(row + j, N - j);
      const __m256 value =
          _mm256_and_ps(exp_f32(_mm256_sub_ps(x, peaks)), _mm256_castsi256_ps(mask));
      store_up_to_8(out + j, N - j, value);
      totals = _mm256_add_ps(totals, value);
    }
    const float total = reduce_add(totals) + ((trough - trough) + (peak - peak));
    const __m256 share = _mm256_set1_ps(gain / total);
    for (int32_t j = 0; j < N; j += 8) {
      store_up_to_8(out + j, N - j, _mm256_mul_ps(load_up_to_8(out + j, N - j), share));
    }
    max[i] = peak;
    sum[i] = total;
  }
}

}  // namespace xsr::kernels
