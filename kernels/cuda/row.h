#pragma once
// A row of up to 1024 columns in the registers of one warp: lane l holds columns 4 l to 4 l + 3,
// then those 128 further on, and so on.
#include "kernels/cuda/device.h"

namespace xsr::cuda {

constexpr int32_t kMostRowColumns = 1024;

/// Calls body(Constant) with the least number of columns a lane must hold for rows of C;
/// body returns a Status. Rows beyond kMostRowColumns: 1 (cudaErrorInvalidValue).
template <typename Body>
static inline Status with_columns(int32_t C, Body&& body) {
  if (C <= 128) return body(Constant<4>());
  if (C <= 256) return body(Constant<8>());
  if (C <= 512) return body(Constant<16>());
  if (C <= kMostRowColumns) return body(Constant<32>());
  return 1;
}

/// Whether pointers and strides let a row be moved four elements at a time, where 4 divides C.
static inline bool starts_whole(const float* p, int64_t stride) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % 4 == 0;
}
static inline bool starts_whole(const uint16_t* p, int64_t stride) {
  return reinterpret_cast<uintptr_t>(p) % 8 == 0 && stride % 4 == 0;
}

/// Blocks for one warp a row, four warps a block.
constexpr int32_t kRowThreads = 128;
static inline dim3 row_blocks(int32_t rows) {
  return dim3((unsigned)((rows + kRowThreads / kWarp - 1) / (kRowThreads / kWarp)));
}

template <int32_t kColumns>
struct Row {
  float value[kColumns];

  /// Element i's column.
  static __device__ __forceinline__ int32_t column(int32_t i) {
    return 4 * (i / 4 * kWarp + lane_id()) + i % 4;
  }
  /// get(c) for the columns c < C, 0 beyond. kWhole: 4 divides C, and get(c) gives a Quad of the
  /// columns from c on.
  template <bool kWhole, typename Get>
  __device__ __forceinline__ void fill(int32_t C, Get&& get) {
    if constexpr (kWhole) {
      XSR_UNROLL
      for (int32_t i = 0; i < kColumns; i += 4) {
        const Quad four = column(i) < C ? get(column(i)) : Quad{};
        XSR_UNROLL
        for (int32_t e = 0; e < 4; ++e) value[i + e] = four.value[e];
      }
    } else {
      XSR_UNROLL
      for (int32_t i = 0; i < kColumns; ++i) value[i] = column(i) < C ? get(column(i)) : 0.0f;
    }
  }
  /// use(c, value) for the columns c < C; kWhole: use(c, Quad).
  template <bool kWhole, typename Use>
  __device__ __forceinline__ void each(int32_t C, Use&& use) const {
    if constexpr (kWhole) {
      XSR_UNROLL
      for (int32_t i = 0; i < kColumns; i += 4) {
        if (column(i) < C)
          use(column(i), Quad{{value[i], value[i + 1], value[i + 2], value[i + 3]}});
      }
    } else {
      XSR_UNROLL
      for (int32_t i = 0; i < kColumns; ++i) {
        if (column(i) < C) use(column(i), value[i]);
      }
    }
  }

  /// out, narrow ← (value − mean) · rstd · gamma + beta; out and narrow may be null, and so may
  /// gamma, with beta, for 1 and 0. kWhole: where they start and end is a multiple of 4 elements.
  template <bool kWhole>
  __device__ __forceinline__ void put(int32_t C, float mean, float rstd, const float* gamma,
                                      const float* beta, float* out, uint16_t* narrow) const {
    if constexpr (kWhole) {
      each<true>(C, [&](int32_t c, Quad four) {
        if (gamma != nullptr) {
          const Quad scale = load_quad(gamma + c), shift = load_quad(beta + c);
          XSR_UNROLL
          for (int32_t e = 0; e < 4; ++e)
            four.value[e] = (four.value[e] - mean) * rstd * scale.value[e] + shift.value[e];
        }
        if (out != nullptr) store_quad(out + c, four);
        if (narrow != nullptr) store_quad(narrow + c, four);
      });
    } else {
      each<false>(C, [&](int32_t c, float x) {
        const float y = gamma == nullptr ? x : (x - mean) * rstd * gamma[c] + beta[c];
        if (out != nullptr) out[c] = y;
        if (narrow != nullptr) narrow[c] = f32_to_bf16(y);
      });
    }
  }

  /// Sets *mean and returns 1 / sqrt(var + eps), in two passes.
  __device__ __forceinline__ float statistics(int32_t C, float eps, float* mean) const {
    float sum = 0;
    XSR_UNROLL
    for (int32_t i = 0; i < kColumns; ++i) sum += value[i];
    *mean = warp_sum(sum) / (float)C;
    float squares = 0;
    each<false>(C, [&](int32_t, float v) { squares += (v - *mean) * (v - *mean); });
    return 1.0f / sqrtf(warp_sum(squares) / (float)C + eps);
  }
};

}  // namespace xsr::cuda
