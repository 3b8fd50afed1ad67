#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace xsr::cuda {

/// Operands whose product shows in which order it was summed. Inputs go in pairs that undo each
/// other, spread over K at random, so the exact result is 0 for every row and output, and what
/// comes out is rounding alone: another order, another step of K, parts of it on their own or
/// operands that are rounded in another way leave other bits in most places, in bf16 too, from K of
/// kLeastK on. Sizes span 2^8.
class SummationProbe {
 public:
  static constexpr int32_t kLeastK = 128;

  /// significand: bits of a value, 8 for operands in bf16, 24 in f32.
  SummationProbe(int32_t K, int significand) : mask_(~0u << (24 - significand)), inputs_(K) {
    for (int32_t k = 0; k < K; ++k) inputs_[k] = k;
    uint64_t x = 1;
    for (int32_t k = K - 1; k > 0; --k) {  // Fisher and Yates
      x = mixed(x + 1);
      std::swap(inputs_[k], inputs_[x % (static_cast<uint64_t>(k) + 1)]);
    }
    places_.resize(inputs_.size());
    for (int32_t i = 0; i < K; ++i) places_[inputs_[i]] = i;
  }

  float a(int32_t m, int32_t k) const { return value(m, places_[k] / 2, kRows); }
  float b(int32_t n, int32_t k) const {
    const int32_t place = places_[k];
    if (place % 2 == 0 && static_cast<size_t>(place) + 1 == places_.size()) return 0;  // no partner
    const float x = value(n, place / 2, kOutputs);
    return place % 2 == 0 ? x : -x;
  }
  /// Of the size of what comes out, and with all bits of an f32, so that it shows, too, in which
  /// order bias and c join the sum.
  static float addend(int64_t i) {
    const uint64_t x = mixed(kAddends + static_cast<uint64_t>(i));
    const float size = static_cast<float>(1 << 23 | (x & 0x7fffff)) * 0x1p-20f;  // from 8 to 16
    return (x >> 23 & 1) != 0 ? -size * static_cast<float>(1 << (x >> 24 & 7))
                              : size * static_cast<float>(1 << (x >> 24 & 7));
  }

 private:
  static constexpr uint64_t kRows = 0x9E3779B97F4A7C15, kOutputs = 0xC2B2AE3D27D4EB4F,
                            kAddends = 0x165667B19E3779F9;
  static uint64_t mixed(uint64_t x) {  // splitmix64
    x += kRows;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    return x ^ x >> 31;
  }
  float value(int32_t row, int32_t pair, uint64_t salt) const {
    const uint64_t x =
        mixed(salt ^ (static_cast<uint64_t>(row) << 32 | static_cast<uint32_t>(pair)));
    const uint32_t significand = (1u << 23 | static_cast<uint32_t>(x & 0x7fffff)) & mask_;
    const float size = static_cast<float>(significand) * 0x1p-16f *  // from 128 to 256
                       static_cast<float>(1 << (x >> 24 & 7));
    return (x >> 32 & 1) != 0 ? -size : size;
  }

  uint32_t mask_;
  std::vector<int32_t> inputs_, places_;  // of a pair's inputs, next to each other; the reverse
};

}  // namespace xsr::cuda
