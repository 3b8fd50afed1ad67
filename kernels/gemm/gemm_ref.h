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

/// To the nearest whole number, ties to even; |x| < 2^22.
static inline float round_even(float x) {
  const float shift = 12582912.0f;  // 1.5 · 2^23: the unit of the sum is 1
  return (x + shift) - shift;
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

/// T is the type of what follows the integer sum; write(m, n, value) takes the results.
template <typename T, typename Write>
void gemm_quantized_ref(const uint8_t* a, int64_t a_stride, int32_t M, const QuantizedRow* rows,
                        const PackedMatrix& w, int32_t first_panel, int32_t last_panel,
                        const T* bias, Activation activation, const T* residual,
                        int64_t residual_stride, Write write) {
  const int32_t last = last_panel * kPanelColumns < w.N ? last_panel * kPanelColumns : w.N;
  const int8_t* weights = (const int8_t*)w.data;
  for (int32_t m = 0; m < M; ++m) {
    for (int32_t n = first_panel * kPanelColumns; n < last; ++n) {
      int32_t sum = 0;
      for (int32_t k = 0; k < w.K; ++k)
        sum += (a[m * a_stride + k] - rows[m].zero) * weights[packed_index(n, k, w.K, 4)];
      T value = T(sum) * T(rows[m].scale) * T(w.scales[n]);
      if (bias != nullptr) value += bias[n];
      value = activate_ref(value, activation);
      if (residual != nullptr) value += residual[m * residual_stride + n];
      write(m, n, value);
    }
  }
}

/// Scale and zero of a range; poison: NaN where the row is not finite.
static inline QuantizedRow quantized_row(float low, float high, float poison) {
  const float scale = high / 255 - low / 255;
  if (poison != poison) return {poison, 0};
  if (!(scale >= kLeastScaleI8)) return {0, 0};
  return {scale, (int32_t)round_even(-low * (1 / scale))};
}

/// inverse: 1 / scale
static inline uint8_t quantize_u8_ref(float x, float inverse, int32_t zero) {
  float steps = x * inverse;
  steps = steps < 255 ? steps : 255;  // what is further out saturates, and must not leave int32
  steps = steps > -255 ? steps : -255;
  const int32_t q = (int32_t)round_even(steps) + zero;
  return (uint8_t)(q < 0 ? 0 : q > 255 ? 255 : q);
}

/// Element (n, k) of a split matrix, hi (0) or lo (1).
static inline float split_element(const SplitMatrix& w, int32_t n, int32_t k, int32_t part) {
  const int64_t pair = (int64_t)(n / kPanelColumns) * (split_columns(w.K) / 2) + k / 2;
  return f32_from_bf16(w.data[((pair * 2 + part) * kPanelColumns + n % kPanelColumns) * 2 + k % 2]);
}

/// Σ of the three products of one row and one output.
template <typename T>
static inline T gemm_split_sum_ref(const uint16_t* a, const SplitMatrix& w, int32_t n) {
  const int32_t S = split_columns(w.K);
  T sum = 0;
  for (int32_t k = 0; k < w.K; ++k) {
    const T a_hi = T(f32_from_bf16(a[k])), a_lo = T(f32_from_bf16(a[S + k]));
    const T w_hi = T(split_element(w, n, k, 0)), w_lo = T(split_element(w, n, k, 1));
    sum += a_hi * w_hi;
    sum += a_lo * w_hi;
    sum += a_hi * w_lo;
  }
  return sum;
}

}  // namespace xsr::kernels
