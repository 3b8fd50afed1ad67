#pragma once
#include <math.h>

#include "kernels/pooling/pooling.h"

namespace xsr::kernels {

template <typename T>
void pooling_forward_ref(const T* x, int64_t x_stride, const int32_t* cu_seqlens, int32_t first,
                         int32_t last, int32_t C, Pooling pooling, T* out, int64_t out_stride) {
  for (int32_t b = first; b < last; ++b) {
    const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
    T* row = out + b * out_stride;
    for (int32_t c = 0; c < C; ++c) row[c] = begin < end ? x[begin * x_stride + c] : T(0);
    if (begin == end || pooling == Pooling::kCls) continue;
    for (int32_t i = begin + 1; i < end; ++i) {
      const T* token = x + i * x_stride;
      for (int32_t c = 0; c < C; ++c) {
        if (pooling == Pooling::kMean) {
          row[c] += token[c];
        } else if (token[c] > row[c]) {
          row[c] = token[c];
        }
      }
    }
    if (pooling == Pooling::kMean) {
      for (int32_t c = 0; c < C; ++c) row[c] /= T(end - begin);
    }
  }
}

template <typename T>
void l2_normalize_forward_ref(T* x, int64_t stride, int32_t first, int32_t last, int32_t C) {
  for (int32_t b = first; b < last; ++b) {
    T* row = x + b * stride;
    double squares = 0;
    for (int32_t c = 0; c < C; ++c) squares += (double)row[c] * (double)row[c];
    if (squares == 0) continue;
    const double scale = 1.0 / sqrt(squares);
    for (int32_t c = 0; c < C; ++c) row[c] = T((double)row[c] * scale);
  }
}

}  // namespace xsr::kernels
