#include "kernels/activation/activation.h"
#include "kernels/simd/avx2.h"

namespace xsr::kernels {

void activation_forward_f32_avx2(const float* x, int64_t n, Activation activation, float* out) {
  for (int64_t i = 0; i < n; i += 8) {
    const __m256i mask = tail_mask8(n - i);
    _mm256_maskstore_ps(out + i, mask, activate_f32(_mm256_maskload_ps(x + i, mask), activation));
  }
}

}  // namespace xsr::kernels
