#pragma once
#include <math.h>

#include "kernels/gemm/gemm.h"
#include "kernels/optimizer/optimizer.h"

namespace xsr::kernels {

template <typename T>
void adam_update_ref(T* value, const T* gradient, T* first_moment, T* second_moment,
                     T* max_second_moment, uint16_t* narrow, int64_t first, int64_t last,
                     const AdamStep& step) {
  for (int64_t i = first; i < last; ++i) {
    const T g = gradient[i] * T(step.gradient_scale) + T(step.l2) * value[i];
    const T m = T(step.beta1) * first_moment[i] + T(step.one_minus_beta1) * g;
    const T v = T(step.beta2) * second_moment[i] + T(step.one_minus_beta2) * g * g;
    T w = v;
    if (max_second_moment != nullptr) {
      w = max_second_moment[i] > v ? max_second_moment[i] : v;
      max_second_moment[i] = w;
    }
    first_moment[i] = m;
    second_moment[i] = v;
    value[i] -= T(step.shrink) * value[i] +
                T(step.step_size) * m / (sqrt(w) * T(step.inverse_correction2) + T(step.eps));
    if (narrow != nullptr) narrow[i] = bf16_from_f32((float)value[i]);
  }
}

}  // namespace xsr::kernels
