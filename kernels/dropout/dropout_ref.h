#pragma once
#include "kernels/dropout/dropout.h"

namespace xsr::kernels {

static inline bool dropout_keeps(const Dropout& dropout, int32_t row, int32_t column) {
  const uint32_t counter[4] = {(uint32_t)column / 4, (uint32_t)row, dropout.stream, dropout.step};
  uint32_t words[4];
  philox4x32(counter, dropout.key, words);
  return words[column % 4] >= dropout.threshold;
}

template <typename T>
void dropout_forward_ref(const T* x, int64_t x_stride, int32_t first, int32_t last, int32_t C,
                         const Dropout& dropout, const T* residual, int64_t residual_stride, T* out,
                         int64_t out_stride) {
  for (int32_t i = first; i < last; ++i) {
    for (int32_t c = 0; c < C; ++c) {
      const T value = dropout_keeps(dropout, i, c) ? x[i * x_stride + c] * T(dropout.scale) : T(0);
      out[i * out_stride + c] =
          residual != nullptr ? value + residual[i * residual_stride + c] : value;
    }
  }
}

}  // namespace xsr::kernels
