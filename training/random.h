#pragma once
#include <cstdint>

#include "kernels/dropout/dropout.h"

namespace xsr::training {

/// Four random words, a pure function of the seed and the counter {a (64 bits), b, c}.
struct RandomWords {
  uint32_t at[4];
  uint64_t both() const { return static_cast<uint64_t>(at[1]) << 32 | at[0]; }
};

inline RandomWords random_words(uint64_t seed, uint64_t a, uint32_t b, uint32_t c) {
  const uint32_t counter[4] = {static_cast<uint32_t>(a), static_cast<uint32_t>(a >> 32), b, c};
  const uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  RandomWords words;
  kernels::philox4x32(counter, key, words.at);
  return words;
}

}  // namespace xsr::training
