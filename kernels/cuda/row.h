#pragma once
// A row of up to 1024 columns in the registers of one warp: lane l holds columns l, l + 32, ...
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

/// Blocks for one warp a row, four warps a block.
constexpr int32_t kRowThreads = 128;
static inline dim3 row_blocks(int32_t rows) {
  return dim3((unsigned)((rows + kRowThreads / kWarp - 1) / (kRowThreads / kWarp)));
}

template <int32_t kColumns>
struct Row {
  float value[kColumns];

  /// get(c) for the columns c < C, 0 beyond.
  template <typename Get>
  __device__ __forceinline__ void fill(int32_t C, Get&& get) {
    XSR_UNROLL
    for (int32_t i = 0; i < kColumns; ++i) {
      const int32_t c = lane_id() + i * kWarp;
      value[i] = c < C ? get(c) : 0.0f;
    }
  }
  /// use(c, value) for the columns c < C.
  template <typename Use>
  __device__ __forceinline__ void each(int32_t C, Use&& use) const {
    XSR_UNROLL
    for (int32_t i = 0; i < kColumns; ++i) {
      const int32_t c = lane_id() + i * kWarp;
      if (c < C) use(c, value[i]);
    }
  }

  /// Sets *mean and returns 1 / sqrt(var + eps), in two passes.
  __device__ __forceinline__ float statistics(int32_t C, float eps, float* mean) const {
    float sum = 0;
    XSR_UNROLL
    for (int32_t i = 0; i < kColumns; ++i) sum += value[i];
    *mean = warp_sum(sum) / (float)C;
    float squares = 0;
    each(C, [&](int32_t, float v) { squares += (v - *mean) * (v - *mean); });
    return 1.0f / sqrtf(warp_sum(squares) / (float)C + eps);
  }
};

}  // namespace xsr::cuda
