#pragma once
#include <math.h>

#include "kernels/activation/activation.h"

namespace xsr::kernels {

template <typename T>
static inline T activate_ref(T x, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kSwish:
      return x / (T(1) + exp(-x));
    case Activation::kGeluErf:  // erfc keeps the digits that 1 + erf loses for negative x
      return T(0.5) * x * erfc(-x * T(0.70710678118654752440));
    case Activation::kGeluTanh: {
      const T u = T(0.79788456080286535588) * (x + T(0.044715) * x * x * x);
      return x / (T(1) + exp(T(-2) * u));
    }
    case Activation::kRelu:
      return x < T(0) ? T(0) : x;  // written so that NaN stays NaN
    case Activation::kTanh:
      return tanh(x);
  }
  return x;
}

template <typename T>
void activation_forward_ref(const T* x, int64_t n, Activation activation, T* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = activate_ref(x[i], activation);
}

}  // namespace xsr::kernels
