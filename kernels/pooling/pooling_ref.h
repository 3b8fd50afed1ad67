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

template <typename T>
void pooling_backward_ref(const T* x, int64_t x_stride, const T* dy, int64_t dy_stride,
                          const int32_t* cu_seqlens, int32_t first, int32_t last, int32_t C,
                          Pooling pooling, T* dx, int64_t dx_stride) {
  for (int32_t b = first; b < last; ++b) {
    const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
    const T* gradient = dy + b * dy_stride;
    for (int32_t c = 0; c < C; ++c) {
      int32_t chosen = begin;
      for (int32_t i = begin + 1; pooling == Pooling::kMax && i < end; ++i) {
        if (x[i * x_stride + c] > x[chosen * x_stride + c]) chosen = i;
      }
      for (int32_t i = begin; i < end; ++i) {
        dx[i * dx_stride + c] = pooling == Pooling::kMean ? gradient[c] / T(end - begin)
                                : i == chosen             ? gradient[c]
                                                          : T(0);
      }
    }
  }
}

template <typename T>
void l2_normalize_backward_ref(const T* x, int64_t x_stride, const T* dy, int64_t dy_stride,
                               int32_t first, int32_t last, int32_t C, T* dx, int64_t dx_stride) {
  for (int32_t b = first; b < last; ++b) {
    const T* row = x + b * x_stride;
    const T* gradient = dy + b * dy_stride;
    double squares = 0, dot = 0;
    for (int32_t c = 0; c < C; ++c) {
      squares += (double)row[c] * (double)row[c];
      dot += (double)row[c] * (double)gradient[c];
    }
    const double scale = squares == 0 ? 0 : 1.0 / sqrt(squares);
    const double along = dot * scale * scale;
    for (int32_t c = 0; c < C; ++c)
      dx[b * dx_stride + c] = T(((double)gradient[c] - (double)row[c] * along) * scale);
  }
}

}  // namespace xsr::kernels
