#include "kernels/activation/activation_ref.h"

namespace xsr::kernels {

void activation_forward_f32_ref(const float* x, int64_t n, Activation activation, float* out) {
  activation_forward_ref(x, n, activation, out);
}

void activation_backward_f32_ref(const float* x, const float* dy, int64_t n, Activation activation,
                                 float* dx) {
  activation_backward_ref(x, dy, n, activation, dx);
}

}  // namespace xsr::kernels
