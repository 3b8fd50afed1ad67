#include "kernels/gemm/gemm_backward_ref.h"

namespace xsr::kernels {

void gemm_backward_weight_f32_ref(const float* dy, int64_t dy_stride, const float* x,
                                  int64_t x_stride, int32_t M, int32_t first, int32_t last,
                                  int32_t K, bool accumulate, float* dw, int64_t dw_stride,
                                  float*) {
  gemm_backward_weight_ref(dy, dy_stride, x, x_stride, M, first, last, K, accumulate, dw,
                           dw_stride);
}

void gemm_backward_weight_bf16_ref(const uint16_t* dy, int64_t dy_stride, const uint16_t* x,
                                   int64_t x_stride, int32_t M, int32_t first, int32_t last,
                                   int32_t K, bool accumulate, float* dw, int64_t dw_stride,
                                   float*) {
  gemm_backward_weight_ref(dy, dy_stride, x, x_stride, M, first, last, K, accumulate, dw,
                           dw_stride);
}

void quantize_columns_i8_ref(const float* x, int64_t x_stride, int32_t M, int32_t C, int32_t zero,
                             uint32_t* lanes, int64_t lane_stride, float* scales, int32_t* sums) {
  for (int32_t c = 0; c < C; ++c) {
    float largest = 0, poison = 0;
    for (int32_t m = 0; m < M; ++m) {
      const float value = x[m * x_stride + c], magnitude = value < 0 ? -value : value;
      largest = magnitude > largest ? magnitude : largest;
      poison += value - value;
    }
    const bool empty = poison != poison || !(largest / 127 >= kLeastScaleI8);
    const float inverse = empty ? 0 : 1 / (largest / 127);
    scales[c] = poison != poison ? poison : empty ? 0 : largest / 127;
    int32_t sum = 0;
    for (int32_t m = 0; m < M; m += 4) {
      uint32_t lane = 0;
      for (int32_t j = 0; j < 4; ++j) {
        const bool there = m + j < M && !empty;
        const int32_t q = there ? (int32_t)round_even(x[(m + j) * x_stride + c] * inverse) : 0;
        sum += q;
        lane |= (uint32_t)((q + zero) & 0xff) << 8 * j;
      }
      lanes[m / 4 * lane_stride + c] = lane;
    }
    if (sums != nullptr) sums[c] = sum;
  }
}

void gemm_backward_weight_i8_ref(const uint32_t* dy, int64_t dy_stride, const float* dy_scales,
                                 const uint32_t* x, int64_t x_stride, const float* x_scales,
                                 const int32_t*, int32_t M, int32_t first, int32_t last, int32_t K,
                                 bool accumulate, float* dw, int64_t dw_stride, float*) {
  const int32_t steps = (M + 3) / 4;
  for (int32_t n = first; n < last; ++n) {
    for (int32_t k = 0; k < K; ++k) {
      int32_t sum = 0;
      for (int32_t step = 0; step < steps; ++step) {
        const uint32_t gradients = dy[step * dy_stride + n], inputs = x[step * x_stride + k];
        for (int32_t shift = 0; shift < 32; shift += 8)
          sum += ((int32_t)(gradients >> shift & 0xff) - 128) * (int8_t)(inputs >> shift);
      }
      float* out = dw + n * dw_stride + k;
      *out = __builtin_fmaf((float)sum * dy_scales[n], x_scales[k], accumulate ? *out : 0.0f);
    }
  }
}

void column_sum_f32_ref(const float* dy, int64_t dy_stride, int32_t M, int32_t first, int32_t last,
                        bool accumulate, float* sum) {
  column_sum_ref(dy, dy_stride, M, first, last, accumulate, sum);
}

}  // namespace xsr::kernels
