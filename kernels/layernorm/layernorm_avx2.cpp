#include "kernels/layernorm/layernorm_avx2.h"

#include "kernels/layernorm/layernorm.h"

namespace xsr::kernels {

void layernorm_forward_f32_avx2(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                int32_t C, const float* gamma, const float* beta, float eps,
                                float* out, int64_t out_stride) {
  for (int32_t i = first; i < last; ++i) {
    layernorm_row_avx2(x + i * x_stride, C, gamma, beta, eps, out + i * out_stride);
  }
}

}  // namespace xsr::kernels
