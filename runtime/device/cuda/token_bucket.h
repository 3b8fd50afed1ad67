#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>

namespace xsr::cuda {

/// Tokens of a batch rounded up so that few shapes come up: to a multiple of `least` and of a
/// sixteenth of the power of two below.
inline int32_t token_bucket(int32_t num_tokens, uint32_t least) {
  const uint32_t tokens = static_cast<uint32_t>(std::max(num_tokens, 1));
  const uint32_t grain = std::max(least, std::bit_floor(tokens) / 16);
  return static_cast<int32_t>((tokens + grain - 1) / grain * grain);
}

}  // namespace xsr::cuda
