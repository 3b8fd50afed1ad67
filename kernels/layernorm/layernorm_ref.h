#pragma once
#include <math.h>
#include <stdint.h>

#include "kernels/layernorm/layernorm.h"

namespace xsr::kernels {

/// Gives the mean of a row and returns 1 / sqrt(var + eps).
template <typename T>
static inline T layernorm_statistics_ref(const T* x, int32_t C, T eps, T* mean_out) {
  T sum = 0;
  for (int32_t c = 0; c < C; ++c) sum += x[c];
  const T mean = sum / T(C);
  T squares = 0;
  for (int32_t c = 0; c < C; ++c) squares += (x[c] - mean) * (x[c] - mean);
  *mean_out = mean;
  return T(1) / sqrt(squares / T(C) + eps);
}

/// One row: out = (x - mean) / sqrt(var + eps) · gamma + beta. out may be x. Returns 1 / sqrt(var +
/// eps).
template <typename T, typename W>
static inline T layernorm_row_ref(const T* x, int32_t C, const W* gamma, const W* beta, T eps,
                                  T* out) {
  T mean;
  const T scale = layernorm_statistics_ref(x, C, eps, &mean);
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

template <typename T>
void layernorm_backward_ref(const T* x, int64_t x_stride, const T* dy, int64_t dy_stride, int32_t N,
                            int32_t first_block, int32_t last_block, int32_t C, const T* gamma,
                            T eps, T* dx, int64_t dx_stride, T* dgamma_parts, T* dbeta_parts) {
  for (int32_t k = first_block; k < last_block; ++k) {
    T* dgamma = dgamma_parts + (int64_t)k * C;
    T* dbeta = dbeta_parts + (int64_t)k * C;
    for (int32_t c = 0; c < C; ++c) dgamma[c] = dbeta[c] = 0;
    for (int32_t i = k * kLayernormBlockRows; i < N && i < (k + 1) * kLayernormBlockRows; ++i) {
      const T* row = x + i * x_stride;
      const T* gradient = dy + i * dy_stride;
      T mean;
      const T rstd = layernorm_statistics_ref(row, C, eps, &mean);
      T sum = 0, sum_normalized = 0;  // of g and of g · x̂
      for (int32_t c = 0; c < C; ++c) {
        const T normalized = (row[c] - mean) * rstd, g = gradient[c] * gamma[c];
        sum += g;
        sum_normalized += g * normalized;
        dgamma[c] += gradient[c] * normalized;
        dbeta[c] += gradient[c];
      }
      const T mean_g = sum / T(C), mean_normalized = sum_normalized / T(C);
      for (int32_t c = 0; c < C; ++c) {
        const T normalized = (row[c] - mean) * rstd;
        dx[i * dx_stride + c] =
            rstd * (gradient[c] * gamma[c] - mean_g - normalized * mean_normalized);
      }
    }
  }
}

}  // namespace xsr::kernels
