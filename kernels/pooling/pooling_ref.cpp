#include "kernels/pooling/pooling_ref.h"

namespace xsr::kernels {

void pooling_forward_f32_ref(const float* x, int64_t x_stride, const int32_t* cu_seqlens,
                             int32_t first, int32_t last, int32_t C, Pooling pooling, float* out,
                             int64_t out_stride) {
  pooling_forward_ref(x, x_stride, cu_seqlens, first, last, C, pooling, out, out_stride);
}

void l2_normalize_forward_f32_ref(float* x, int64_t stride, int32_t first, int32_t last,
                                  int32_t C) {
  l2_normalize_forward_ref(x, stride, first, last, C);
}

void pooling_backward_f32_ref(const float* x, int64_t x_stride, const float* dy, int64_t dy_stride,
                              const int32_t* cu_seqlens, int32_t first, int32_t last, int32_t C,
                              Pooling pooling, float* dx, int64_t dx_stride) {
  pooling_backward_ref(x, x_stride, dy, dy_stride, cu_seqlens, first, last, C, pooling, dx,
                       dx_stride);
}

void l2_normalize_backward_f32_ref(const float* x, int64_t x_stride, const float* dy,
                                   int64_t dy_stride, int32_t first, int32_t last, int32_t C,
                                   float* dx, int64_t dx_stride) {
  l2_normalize_backward_ref(x, x_stride, dy, dy_stride, first, last, C, dx, dx_stride);
}

}  // namespace xsr::kernels
