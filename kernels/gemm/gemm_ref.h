#pragma once
#include "kernels/activation/activation_ref.h"
#include "kernels/gemm/gemm.h"
#include "kernels/storage.h"

namespace xsr::kernels {

static inline int64_t packed_index(int32_t n, int32_t k, int32_t K, int32_t kp) {
  return (((int64_t)(n / kPanelColumns) * ((K + kp - 1) / kp) + k / kp) * kPanelColumns +
          n % kPanelColumns) *
             kp +
         k % kp;
}

template <typename T>
static inline T widen_ref(T value) {
  return value;
}
template <typename T>
static inline T widen_ref(uint16_t value) {
  return T(f32_from_bf16(value));
}

constexpr int32_t kRefRows = 8;  // a weight is unpacked once for so many rows

/// sums[r] = Σ_k a[r, k] · W[n, k] for up to kRefRows rows. A is T, or uint16_t for bf16
/// activations.
template <typename T, typename A>
static inline void gemm_element_ref(const A* a, int64_t a_stride, int32_t rows,
                                    const PackedMatrix& w, int32_t n, T* sums) {
  const int32_t kp = panel_group(w.storage);
  for (int32_t r = 0; r < rows; ++r) sums[r] = 0;
  for (int32_t k = 0; k < w.K; ++k) {
    const T weight = T(load_storage(w.data, w.storage, packed_index(n, k, w.K, kp)));
    for (int32_t r = 0; r < rows; ++r) sums[r] += widen_ref<T>(a[r * a_stride + k]) * weight;
  }
}

template <typename T, typename A = T>
void gemm_forward_ref(const A* a, int64_t a_stride, int32_t M, const PackedMatrix& w,
                      int32_t first_panel, int32_t last_panel, const T* bias, Activation activation,
                      const T* residual, int64_t residual_stride, T* out, int64_t out_stride) {
  const int32_t first = first_panel * kPanelColumns;
  const int32_t last = last_panel * kPanelColumns < w.N ? last_panel * kPanelColumns : w.N;
  for (int32_t m = 0; m < M; m += kRefRows) {
    const int32_t rows = M - m < kRefRows ? M - m : kRefRows;
    for (int32_t n = first; n < last; ++n) {
      T sums[kRefRows];
      gemm_element_ref(a + m * a_stride, a_stride, rows, w, n, sums);
      for (int32_t r = 0; r < rows; ++r) {
        T sum = sums[r];
        if (bias != nullptr) sum += bias[n];
        sum = activate_ref(sum, activation);
        if (residual != nullptr) sum += residual[(m + r) * residual_stride + n];
        out[(m + r) * out_stride + n] = sum;
      }
    }
  }
}

}  // namespace xsr::kernels
