#pragma once
// Eight neighbouring elements at a time: 16 bytes of bf16, as a thread best reads and writes them.
#include <stdint.h>

#include "kernels/cuda/device.h"

namespace xsr::cuda {

constexpr int32_t kEight = 8;

/// Eight bf16 of the bits of four pairs.
__device__ __forceinline__ void widen_eight(const uint4& bits, float (&to)[kEight]) {
  const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
  XSR_UNROLL
  for (int32_t i = 0; i < 4; ++i) {
    to[2 * i] = bits_to_f32(pairs[i] << 16);
    to[2 * i + 1] = bits_to_f32(pairs[i] & 0xffff0000u);
  }
}

/// to ← from[0 .. min(count, 8)), zeros behind. whole: all eight are wanted, and from is 16-byte
/// aligned; the same for the whole warp where that can be.
__device__ __forceinline__ void load_eight(const uint16_t* from, bool whole, int32_t count,
                                           float (&to)[kEight]) {
  if (whole) {
    widen_eight(vector_at<const uint4>(from), to);
    return;
  }
  XSR_UNROLL
  for (int32_t e = 0; e < kEight; ++e) to[e] = e < count ? bf16_to_f32(from[e]) : 0.0f;
}
__device__ __forceinline__ void load_eight(const float* from, bool whole, int32_t count,
                                           float (&to)[kEight]) {
  if (whole) {
    XSR_UNROLL
    for (int32_t i = 0; i < 2; ++i) {
      const float4 four = vector_at<const float4>(from + 4 * i);
      to[4 * i] = four.x, to[4 * i + 1] = four.y, to[4 * i + 2] = four.z, to[4 * i + 3] = four.w;
    }
    return;
  }
  XSR_UNROLL
  for (int32_t e = 0; e < kEight; ++e) to[e] = e < count ? from[e] : 0.0f;
}

/// to[0 .. min(count, 8)) ← values, rounded to bf16; whole as above.
__device__ __forceinline__ void store_eight(uint16_t* to, bool whole, int32_t count,
                                            const float (&values)[kEight]) {
  if (whole) {
    vector_at<uint4>(to) =
        make_uint4(f32_to_bf16_pair(values[0], values[1]), f32_to_bf16_pair(values[2], values[3]),
                   f32_to_bf16_pair(values[4], values[5]), f32_to_bf16_pair(values[6], values[7]));
    return;
  }
  XSR_UNROLL
  for (int32_t e = 0; e < kEight; ++e) {
    if (e < count) to[e] = f32_to_bf16(values[e]);
  }
}

}  // namespace xsr::cuda
