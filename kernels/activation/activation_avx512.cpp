#include "kernels/activation/activation.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

void activation_forward_f32_avx512(const float* x, int64_t n, Activation activation, float* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask = tail_mask(n - i);
    _mm512_mask_storeu_ps(out + i, mask,
                          activate_f32(_mm512_maskz_loadu_ps(mask, x + i), activation));
  }
}

}  // namespace xsr::kernels
