#include "kernels/gemm/gemm_backward.h"
#include "kernels/gemm/gemm_backward_tile_avx512.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {
namespace {

struct CoreF32 {
  using Element = float;
  static constexpr int32_t kStepRows = 1;
  static inline __m512 load(const float* row, int64_t, int32_t, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, row);
  }
  static inline __m512 multiply_add(__m512 sum, __m512 a, __m512 b) {
    return _mm512_fmadd_ps(a, b, sum);
  }
};

}  // namespace

void gemm_backward_weight_f32_avx512(const float* dy, int64_t dy_stride, const float* x,
                                     int64_t x_stride, int32_t M, int32_t first, int32_t last,
                                     int32_t K, bool accumulate, float* dw, int64_t dw_stride,
                                     float* scratch) {
  backward_weight<CoreF32>(dy, dy_stride, x, x_stride, M, first, last, K, accumulate, dw, dw_stride,
                           scratch);
}

void column_sum_f32_avx512(const float* dy, int64_t dy_stride, int32_t M, int32_t first,
                           int32_t last, bool accumulate, float* sum) {
  constexpr int kVectors = 8;  // 512 bytes of a row at a time
  for (int32_t n = first; n < last; n += 16 * kVectors) {
    __m512 acc[kVectors];
    __mmask16 mask[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      acc[v] = _mm512_setzero_ps();
      mask[v] = tail_mask(last - n - 16 * v);
    }
    const float* row = dy + n;
    for (int32_t m = 0; m < M; ++m, row += dy_stride) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        acc[v] = _mm512_add_ps(acc[v], _mm512_maskz_loadu_ps(mask[v], row + 16 * v));
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      float* out = sum + n + 16 * v;
      if (accumulate) acc[v] = _mm512_add_ps(_mm512_maskz_loadu_ps(mask[v], out), acc[v]);
      _mm512_mask_storeu_ps(out, mask[v], acc[v]);
    }
  }
}

}  // namespace xsr::kernels
