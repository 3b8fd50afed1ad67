#pragma once
#include <math.h>

#include "kernels/gemm/gemm.h"
#include "kernels/host_device.h"
#include "kernels/loss/loss.h"
#include "kernels/storage.h"

namespace xsr::kernels {

/// x − x: 0, and NaN where x is not finite, which max and exp would let pass.
template <typename T>
XSR_HOST_DEVICE static inline T zero_if_finite(T x) {
  return x - x;
}

template <typename T>
void vocabulary_softmax_forward_ref(const T* z, int64_t z_stride, int32_t R, const T* bias,
                                    int32_t first, int32_t last, T* max, T* sum, T* e,
                                    int64_t e_stride, uint16_t* narrow, int64_t narrow_stride) {
  for (int32_t b = first; b < last; ++b) {
    const auto logit = [&](int32_t v) {
      return z[v * z_stride + b] + (bias != nullptr ? bias[v] : T(0));
    };
    T peak = -T(INFINITY), total = 0;
    for (int32_t v = 0; v < R; ++v) peak = logit(v) > peak ? logit(v) : peak;
    for (int32_t v = 0; v < R; ++v) {
      const T value = exp(logit(v) - peak);
      total += value + zero_if_finite(logit(v));
      if (e != nullptr) e[v * e_stride + b] = value;
      if (narrow != nullptr) narrow[v * narrow_stride + b] = bf16_from_f32((float)value);
    }
    max[b] = peak;
    sum[b] = total;
  }
}

template <typename T>
void vocabulary_softmax_backward_ref(const T* e, int64_t e_stride, int32_t R, int32_t N,
                                     const T* factor, T* dz, int64_t dz_stride, T* dbias) {
  for (int32_t v = 0; v < R; ++v) {
    T total = 0;
    for (int32_t b = 0; b < N; ++b) {
      dz[v * dz_stride + b] = e[v * e_stride + b] * factor[b];
      total += dz[v * dz_stride + b];
    }
    if (dbias != nullptr) dbias[v] += total;
  }
}

template <typename T>
void softmax_forward_ref(const T* s, int64_t s_stride, int32_t first, int32_t last, int32_t N,
                         T gain, T* p, int64_t p_stride, T* max, T* sum) {
  for (int32_t i = first; i < last; ++i) {
    const T* row = s + i * s_stride;
    T* out = p + i * p_stride;
    T peak = -T(INFINITY), total = 0;
    for (int32_t j = 0; j < N; ++j) peak = row[j] > peak ? row[j] : peak;
    for (int32_t j = 0; j < N; ++j) {
      const T x = row[j];  // out may be s
      out[j] = exp(x - peak);
      total += out[j] + zero_if_finite(x);
    }
    for (int32_t j = 0; j < N; ++j) out[j] *= gain / total;
    max[i] = peak;
    sum[i] = total;
  }
}

/// −log cos x and tan x of SIM, in double. Most cells of a batch have a small x, where the
/// series are exact to double and several times cheaper; larger ones take 1 − sin² for cos², since
/// the logarithm of a cosine near 1 has lost the digits of x.
XSR_HOST_DEVICE static inline void log_cos_tan(double x, double* minus_log_cos, double* tangent) {
  const double u = x * x;
  if (u < 1.0 / 1024) {
    *minus_log_cos =
        u * (1.0 / 2 + u * (1.0 / 12 + u * (1.0 / 45 + u * (17.0 / 2520 + u * (31.0 / 14175)))));
    *tangent =
        x * (1 + u * (1.0 / 3 + u * (2.0 / 15 + u * (17.0 / 315 +
                                                     u * (62.0 / 2835 + u * (1382.0 / 155925))))));
    return;
  }
  const double sine = sin(x);
  *minus_log_cos = u < 0.5 ? -0.5 * log1p(-sine * sine) : -log(cos(x));
  *tangent = tan(x);
}

/// One cell of SIM: − log max(cos x, min_cosine), and its gradient for p1.
XSR_HOST_DEVICE static inline double sim_cell(double p1, double p2, double argument,
                                              double min_cosine, double gain, double* value) {
  double tangent;
  log_cos_tan(argument * (p1 - p2), value, &tangent);
  if (min_cosine > 0) {
    // Written so that a NaN, from an argument beyond π/2 too, stays one unless there is a bound.
    const double bound = -log(min_cosine);
    if (*value > bound || (*value != *value && p1 == p1 && p2 == p2)) {
      *value = bound;
      return 0;
    }
  }
  return gain * argument * tangent;
}

template <typename T>
void sim_forward_backward_ref(T* p1, T* p2, int64_t stride, int32_t first, int32_t last, int32_t N,
                              double argument, double min_cosine, double gain, double* loss) {
  for (int32_t i = first; i < last; ++i) {
    T *row1 = p1 + i * stride, *row2 = p2 + i * stride;
    const auto gradient = [&](int32_t j, double* value) {
      return sim_cell((double)row1[j], (double)row2[j], argument, min_cosine, gain, value);
    };
    double total = 0, dot1 = 0, dot2 = 0;
    for (int32_t j = 0; j < N; ++j) {
      double value;
      const double g = gradient(j, &value);
      total += value;
      dot1 += (double)row1[j] * g;
      dot2 += (double)row2[j] * g;
    }
    for (int32_t j = 0; j < N; ++j) {
      double value;
      const double g = gradient(j, &value);
      row1[j] = T((double)row1[j] * (g - dot1));
      row2[j] = T((double)row2[j] * (dot2 - g));
    }
    loss[i] = total;
  }
}

}  // namespace xsr::kernels
