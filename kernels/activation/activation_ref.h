#pragma once
#include <math.h>

#include "kernels/activation/activation.h"
#include "kernels/host_device.h"

namespace xsr::kernels {

template <typename T>
XSR_HOST_DEVICE static inline T activate_ref(T x, Activation activation) {
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

/// f'(x)
template <typename T>
XSR_HOST_DEVICE static inline T activation_slope_ref(T x, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return T(1);
    case Activation::kSwish: {
      const T s = T(1) / (T(1) + exp(-x));
      return s + x * s * (T(1) - s);
    }
    case Activation::kGeluErf:
      return T(0.5) * erfc(-x * T(0.70710678118654752440)) +
             x * T(0.39894228040143267794) * exp(T(-0.5) * x * x);
    case Activation::kGeluTanh: {
      x = x < T(-20) ? T(-20) : x > T(20) ? T(20) : x;  // 0 or 1 beyond; x³ would overflow
      const T u = T(0.79788456080286535588) * (x + T(0.044715) * x * x * x);
      const T slope = T(0.79788456080286535588) * (T(1) + T(0.134145) * x * x);
      const T s = T(1) / (T(1) + exp(T(-2) * u));
      return s + s * (T(1) - s) * (T(2) * x * slope);
    }
    case Activation::kRelu:
      return x <= T(0) ? T(0) : T(1);
    case Activation::kTanh: {  // 1 - tanh² would cancel
      const T e = exp(T(-2) * fabs(x));
      return T(4) * e / ((T(1) + e) * (T(1) + e));
    }
  }
  return T(1);
}

template <typename T>
void activation_backward_ref(const T* x, const T* dy, int64_t n, Activation activation, T* dx) {
  for (int64_t i = 0; i < n; ++i) dx[i] = dy[i] * activation_slope_ref(x[i], activation);
}

}  // namespace xsr::kernels
