#pragma once
// Activations whose results are rounded to bf16.
#include "kernels/activation/activation_ref.h"
#include "kernels/cuda/device.h"

namespace xsr::cuda {

/// 1 / (1 + e^-x), off by some 2^-21 of itself where |x| < 16.
__device__ __forceinline__ float sigmoid_approximate(float x) {
  return reciprocal_approximate(1 + exp2_approximate(-kLog2E * x));
}

/// Swish by two instructions that are made for it instead of a division and an exponential to the
/// last bit, which were four fifths of a kernel's work; the others as they are.
__device__ __forceinline__ float activate_for_bf16(float x, kernels::Activation activation) {
  if (activation == kernels::Activation::kSwish) return x * sigmoid_approximate(x);
  return kernels::activate_ref(x, activation);
}

/// The derivative, likewise.
__device__ __forceinline__ float slope_for_bf16(float x, kernels::Activation activation) {
  if (activation == kernels::Activation::kSwish) {
    const float s = sigmoid_approximate(x);
    return s + x * s * (1 - s);
  }
  return kernels::activation_slope_ref(x, activation);
}

}  // namespace xsr::cuda
