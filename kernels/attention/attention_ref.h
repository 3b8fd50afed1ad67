#pragma once
#include <math.h>
#include <stdint.h>

#include "kernels/dropout/dropout_ref.h"

namespace xsr::kernels {

/// What dropout makes of probability (row, column) of head h: 0, scale, or 1 where nothing drops.
static inline float attention_multiplier_ref(Dropout dropout, int32_t h, int32_t row,
                                             int32_t column) {
  if (dropout.threshold == 0) return 1;
  dropout.stream += (uint32_t)h;
  return dropout_keeps(dropout, row, column) ? dropout.scale : 0;
}

/// factor(x): the number that a product takes for x, one of qkv or e^(score - largest).
/// write(row, column, value) takes the results.
/// scratch: as many elements of T as the longest sentence of the range has tokens.
template <typename Element, typename T, typename Factor, typename Write>
void attention_forward_factors_ref(const Element* qkv, int64_t qkv_stride,
                                   const int32_t* cu_seqlens, int32_t first, int32_t last,
                                   int32_t first_head, int32_t last_head, int32_t H, int32_t D,
                                   Factor factor, Write write, T* lse, T* scratch,
                                   const Dropout& dropout) {
  const T scale = T(1) / sqrt(T(D));
  for (int32_t b = first; b < last; ++b) {
    const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
    for (int32_t h = first_head; h < last_head; ++h) {
      for (int32_t i = begin; i < end; ++i) {
        const Element* q = qkv + i * qkv_stride + h * D;
        T largest = -INFINITY;
        for (int32_t j = begin; j < end; ++j) {
          const Element* k = qkv + j * qkv_stride + (H + h) * D;
          T dot = 0;
          for (int32_t d = 0; d < D; ++d) dot += factor(q[d]) * factor(k[d]);
          scratch[j - begin] = dot * scale;
          if (scratch[j - begin] > largest) largest = scratch[j - begin];
        }
        T sum = 0;
        for (int32_t j = begin; j < end; ++j) {
          scratch[j - begin] = factor(exp(scratch[j - begin] - largest));
          sum += scratch[j - begin];
        }
        if (lse != nullptr) lse[(int64_t)i * H + h] = largest + log(sum);
        for (int32_t j = 0; j < end - begin; ++j)
          scratch[j] *= attention_multiplier_ref(dropout, h, i, j);
        for (int32_t d = 0; d < D; ++d) {
          T value = 0;
          for (int32_t j = begin; j < end; ++j) {
            value += scratch[j - begin] * factor(qkv[j * qkv_stride + (2 * H + h) * D + d]);
          }
          write(i, h * D + d, value / sum);
        }
      }
    }
  }
}

template <typename T>
void attention_forward_ref(const T* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                           int32_t first, int32_t last, int32_t first_head, int32_t last_head,
                           int32_t H, int32_t D, T* out, int64_t out_stride, T* lse, T* scratch,
                           const Dropout& dropout = {}) {
  const auto write = [&](int64_t row, int32_t column, T value) {
    out[row * out_stride + column] = value;
  };
  attention_forward_factors_ref(
      qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, [](T x) { return x; },
      write, lse, scratch, dropout);
}

/// scratch: three times as many elements of T as the longest sentence of the range has tokens.
template <typename T>
void attention_backward_ref(const T* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                            int32_t first, int32_t last, int32_t first_head, int32_t last_head,
                            int32_t H, int32_t D, const T* lse, const Dropout& dropout,
                            const T* dout, int64_t dout_stride, T* dqkv, int64_t dqkv_stride,
                            T* scratch) {
  const T scale = T(1) / sqrt(T(D));
  for (int32_t b = first; b < last; ++b) {
    const int32_t begin = cu_seqlens[b], length = cu_seqlens[b + 1] - begin;
    if (length == 0) continue;  // the pointers may be null
    T *p = scratch, *dp = scratch + length, *dropped = scratch + 2 * length;
    for (int32_t h = first_head; h < last_head; ++h) {
      const T* q = qkv + begin * qkv_stride + h * D;
      const T *k = q + H * D, *v = k + H * D;
      T* dq = dqkv + begin * dqkv_stride + h * D;
      T *dk = dq + H * D, *dv = dk + H * D;
      for (int32_t i = 0; i < length; ++i) {
        for (int32_t d = 0; d < D; ++d)
          dq[i * dqkv_stride + d] = dk[i * dqkv_stride + d] = dv[i * dqkv_stride + d] = 0;
      }
      for (int32_t i = 0; i < length; ++i) {
        const T* gradient = dout + (begin + i) * dout_stride + h * D;
        T sum = 0, delta = 0;  // of e^(S - lse), and Σ_j P ∘ dP
        for (int32_t j = 0; j < length; ++j) {
          T score = 0, dot = 0;
          for (int32_t d = 0; d < D; ++d) {
            score += q[i * qkv_stride + d] * k[j * qkv_stride + d];
            dot += gradient[d] * v[j * qkv_stride + d];
          }
          const T multiplier = attention_multiplier_ref(dropout, h, begin + i, j);
          p[j] = exp(score * scale - lse[(int64_t)(begin + i) * H + h]);
          dropped[j] = p[j] * multiplier;
          dp[j] = dot * multiplier;
          sum += p[j];
          delta += p[j] * dp[j];
        }
        const T factor = 1 / sum;
        delta *= factor;
        for (int32_t j = 0; j < length; ++j) {
          const T ds = p[j] * factor * (dp[j] - delta) * scale;
          for (int32_t d = 0; d < D; ++d) {
            dq[i * dqkv_stride + d] += ds * k[j * qkv_stride + d];
            dk[j * dqkv_stride + d] += ds * q[i * qkv_stride + d];
            dv[j * dqkv_stride + d] += dropped[j] * factor * gradient[d];
          }
        }
      }
    }
  }
}

}  // namespace xsr::kernels
