#pragma once
#include <stdint.h>

namespace xsr::kernels {

/// The numbers are those of the .xsr file.
enum class Activation : uint32_t {
  kNone = 0,
  kSwish = 1,
  kGeluErf = 2,
  kGeluTanh = 3,
  kRelu = 4,
  kTanh = 5
};

/// out[i] = f(x[i]), i < n:
///
///     swish      x / (1 + e^-x)                                       Ramachandran et al. 2017
///     gelu erf   x Φ(x), Φ the normal distribution                    Hendrycks & Gimpel 2016
///     gelu tanh  x / (1 + e^-2u), u = √(2/π) (x + 0.044715 x³)        the same, as ½x(1 + tanh u)
///     relu       max(x, 0)
///     tanh       tanh x
///
/// x, out [n], any alignment; out may be x, no other overlap. NaN gives NaN.
/// Largest errors over all finite floats are asserted by tests/activation_test.cpp and stated in
/// kernels/README.md. Pure: no allocation, no threads, no globals.
using activation_forward_f32_t = void(const float* x, int64_t n, Activation activation, float* out);

activation_forward_f32_t activation_forward_f32_ref, activation_forward_f32_avx2,
    activation_forward_f32_avx512;

/// dx[i] = dy[i] · f'(x[i]), i < n, from the input of activation_forward_f32:
///
///     swish      σ + x σ (1 - σ)             σ = 1 / (1 + e^-x)
///     gelu erf   Φ + x φ                     φ = e^(-x²/2) / √(2π)
///     gelu tanh  σ + x σ (1 - σ) · 2 u'      σ = 1 / (1 + e^-2u), u' = √(2/π) (1 + 0.134145 x²)
///     relu       0 for x ≤ 0, else 1
///     tanh       1 / cosh² x
///
/// x, dy, dx [n], any alignment; dx (=) may be dy or x, no other overlap. x is finite.
/// Error against the double reference ≤ 3× that of the f32 reference. Pure: no allocation, no
/// threads, no globals.
using activation_backward_f32_t = void(const float* x, const float* dy, int64_t n,
                                       Activation activation, float* dx);

activation_backward_f32_t activation_backward_f32_ref, activation_backward_f32_avx2,
    activation_backward_f32_avx512;

}  // namespace xsr::kernels
