#pragma once
#include <cstdint>

namespace xsr::cuda {

/// Operands whose product shows in which order it was summed. Input k + K/2 undoes input k, so the
/// exact result is 0 for every row and output, and what comes out is rounding alone: another order,
/// another step of K or parts of it on their own leave other bits nearly everywhere, in bf16 too.
/// Values are exact in bf16; their sizes span 2^8.
struct SummationProbe {
  int32_t K;

  float a(int32_t m, int32_t k) const { return value(m, folded(k), 0x9E3779B97F4A7C15); }
  float b(int32_t n, int32_t k) const {
    const float x = value(n, folded(k), 0xC2B2AE3D27D4EB4F);
    return k < K / 2 ? x : k < K / 2 * 2 ? -x : 0;
  }

 private:
  int32_t folded(int32_t k) const { return k < K / 2 ? k : k - K / 2; }
  static float value(int32_t row, int32_t k, uint64_t salt) {
    uint64_t x = salt * ((static_cast<uint64_t>(row) << 32 | static_cast<uint32_t>(k)) + 1);
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9;
    x ^= x >> 32;
    const float size = static_cast<float>(128 + (x & 127)) * static_cast<float>(1 << (x >> 7 & 7));
    return (x >> 10 & 1) != 0 ? -size : size;
  }
};

}  // namespace xsr::cuda
