#pragma once
#include <math.h>
#include <stdint.h>

namespace xsr::kernels {

/// One row: out = (x - mean) / sqrt(var + eps) · gamma + beta. out may be x. Returns 1 / sqrt(var +
/// eps).
template <typename T, typename W>
static inline T layernorm_row_ref(const T* x, int32_t C, const W* gamma, const W* beta, T eps,
                                  T* out) {
  T sum = 0;
  for (int32_t c = 0; c < C; ++c) sum += x[c];
  const T mean = sum / T(C);
  T squares = 0;
  for (int32_t c = 0; c < C; ++c) squares += (x[c] - mean) * (x[c] - mean);
  const T scale = T(1) / sqrt(squares / T(C) + eps);
  for (int32_t c = 0; c < C; ++c) out[c] = (x[c] - mean) * scale * T(gamma[c]) + T(beta[c]);
  return scale;
}

template <typename T, typename W>
void layernorm_forward_ref(const T* x, int64_t x_stride, int32_t first, int32_t last, int32_t C,
                           const W* gamma, const W* beta, T eps, T* out, int64_t out_stride) {
  for (int32_t i = first; i < last; ++i) {
    layernorm_row_ref(x + i * x_stride, C, gamma, beta, eps, out + i * out_stride);
  }
}

}  // namespace xsr::kernels
