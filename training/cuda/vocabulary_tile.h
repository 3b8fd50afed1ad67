#pragma once
#include <algorithm>
#include <cstdint>

namespace xsr::training {

/// Logits that fit beside everything else: 512 MB in f32, and half as much in bf16. Fewer would be
/// computed twice and stay in no cache for that: 2^24 of them are 64 MB, more than any L2.
inline constexpr int64_t kManyLogits = int64_t{1} << 27;

/// Words whose logits exist at a time, for S sentences and a vocabulary of V: `wanted`, or where it
/// is 0 as many as make about kManyLogits. At batch 1,024 and 50,000 words that is all of them, so
/// that none is computed twice; at batch 4,096 they are a third. A multiple of 16.
inline int32_t vocabulary_tile(int32_t wanted, int32_t S, int32_t V) {
  constexpr int64_t kLeast = 1024;
  const int64_t all = (int64_t{V} + 15) / 16 * 16;
  const int64_t some = std::max(kLeast, kManyLogits / std::max(S, 1) / 16 * 16);
  return static_cast<int32_t>(std::min(all, wanted != 0 ? wanted : some));
}

/// The most logits that exist at a time for up to S sentences.
inline int64_t most_logits(int32_t wanted, int32_t S, int32_t V) {
  const int64_t with_most = int64_t{S} * vocabulary_tile(wanted, S, V);
  const int64_t all = (int64_t{V} + 15) / 16 * 16 * S;
  return wanted != 0 ? with_most : std::max(with_most, std::min(all, kManyLogits));
}

}  // namespace xsr::training
