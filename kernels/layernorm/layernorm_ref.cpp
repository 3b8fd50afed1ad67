#include "kernels/layernorm/layernorm_ref.h"

#include "kernels/layernorm/layernorm.h"

namespace xsr::kernels {

void layernorm_forward_f32_ref(const float* x, int64_t x_stride, int32_t first, int32_t last,
                               int32_t C, const float* gamma, const float* beta, float eps,
                               float* out, int64_t out_stride) {
  layernorm_forward_ref(x, x_stride, first, last, C, gamma, beta, eps, out, out_stride);
}

void layernorm_backward_f32_ref(const float* x, int64_t x_stride, const float* dy,
                                int64_t dy_stride, int32_t N, int32_t first_block,
                                int32_t last_block, int32_t C, const float* gamma, float eps,
                                float* dx, int64_t dx_stride, float* dgamma_parts,
                                float* dbeta_parts) {
  layernorm_backward_ref(x, x_stride, dy, dy_stride, N, first_block, last_block, C, gamma, eps, dx,
                         dx_stride, dgamma_parts, dbeta_parts);
}

}  // namespace xsr::kernels
