#include "kernels/layernorm/layernorm_ref.h"

#include "kernels/layernorm/layernorm.h"

namespace xsr::kernels {

void layernorm_forward_f32_ref(const float* x, int64_t x_stride, int32_t first, int32_t last,
                               int32_t C, const float* gamma, const float* beta, float eps,
                               float* out, int64_t out_stride) {
  layernorm_forward_ref(x, x_stride, first, last, C, gamma, beta, eps, out, out_stride);
}

}  // namespace xsr::kernels
