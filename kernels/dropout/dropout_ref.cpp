#include "kernels/dropout/dropout_ref.h"

namespace xsr::kernels {

void dropout_forward_f32_ref(const float* x, int64_t x_stride, int32_t first, int32_t last,
                             int32_t C, const Dropout& dropout, const float* residual,
                             int64_t residual_stride, float* out, int64_t out_stride) {
  dropout_forward_ref(x, x_stride, first, last, C, dropout, residual, residual_stride, out,
                      out_stride);
}

}  // namespace xsr::kernels
