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

void column_sum_f32_ref(const float* dy, int64_t dy_stride, int32_t M, int32_t first, int32_t last,
                        bool accumulate, float* sum) {
  column_sum_ref(dy, dy_stride, M, first, last, accumulate, sum);
}

}  // namespace xsr::kernels
