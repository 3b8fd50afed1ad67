#pragma once
#include "kernels/gemm/gemm_backward.h"
#include "kernels/gemm/gemm_ref.h"

namespace xsr::kernels {

/// A: T, or uint16_t for bf16 operands.
template <typename T, typename A = T>
void gemm_backward_weight_ref(const A* dy, int64_t dy_stride, const A* x, int64_t x_stride,
                              int32_t M, int32_t first, int32_t last, int32_t K, bool accumulate,
                              T* dw, int64_t dw_stride) {
  constexpr int32_t kColumns = 16;  // an element of dy is read once for so many sums
  for (int32_t n = first; n < last; ++n) {
    for (int32_t k = 0; k < K; k += kColumns) {
      const int32_t columns = K - k < kColumns ? K - k : kColumns;
      T sums[kColumns] = {};
      for (int32_t m = 0; m < M; ++m) {
        const T gradient = widen_ref<T>(dy[m * dy_stride + n]);
        for (int32_t c = 0; c < columns; ++c)
          sums[c] += gradient * widen_ref<T>(x[m * x_stride + k + c]);
      }
      T* row = dw + n * dw_stride + k;
      for (int32_t c = 0; c < columns; ++c) row[c] = accumulate ? row[c] + sums[c] : sums[c];
    }
  }
}

template <typename T>
void column_sum_ref(const T* dy, int64_t dy_stride, int32_t M, int32_t first, int32_t last,
                    bool accumulate, T* sum) {
  for (int32_t n = first; n < last; ++n) {
    T total = 0;
    for (int32_t m = 0; m < M; ++m) total += dy[m * dy_stride + n];
    sum[n] = accumulate ? sum[n] + total : total;
  }
}

}  // namespace xsr::kernels
