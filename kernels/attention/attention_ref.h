#pragma once
#include <math.h>
#include <stdint.h>

namespace xsr::kernels {

/// scratch: as many elements of T as the longest sentence of the range has tokens.
template <typename T>
void attention_forward_ref(const T* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                           int32_t first, int32_t last, int32_t first_head, int32_t last_head,
                           int32_t H, int32_t D, T* out, int64_t out_stride, T* lse, T* scratch) {
  const T scale = T(1) / sqrt(T(D));
  for (int32_t b = first; b < last; ++b) {
    const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
    for (int32_t h = first_head; h < last_head; ++h) {
      for (int32_t i = begin; i < end; ++i) {
        const T* q = qkv + i * qkv_stride + h * D;
        T largest = -INFINITY;
        for (int32_t j = begin; j < end; ++j) {
          const T* k = qkv + j * qkv_stride + (H + h) * D;
          T dot = 0;
          for (int32_t d = 0; d < D; ++d) dot += q[d] * k[d];
          scratch[j - begin] = dot * scale;
          if (scratch[j - begin] > largest) largest = scratch[j - begin];
        }
        T sum = 0;
        for (int32_t j = begin; j < end; ++j) {
          scratch[j - begin] = exp(scratch[j - begin] - largest);
          sum += scratch[j - begin];
        }
        T* row = out + i * out_stride + h * D;
        for (int32_t d = 0; d < D; ++d) {
          T value = 0;
          for (int32_t j = begin; j < end; ++j) {
            value += scratch[j - begin] * qkv[j * qkv_stride + (2 * H + h) * D + d];
          }
          row[d] = value / sum;
        }
        if (lse != nullptr) lse[(int64_t)i * H + h] = largest + log(sum);
      }
    }
  }
}

}  // namespace xsr::kernels
