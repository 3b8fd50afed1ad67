#include "kernels/activation/activation_ref.h"

namespace xsr::kernels {

void activation_forward_f32_ref(const float* x, int64_t n, Activation activation, float* out) {
  activation_forward_ref(x, n, activation, out);
}

}  // namespace xsr::kernels
