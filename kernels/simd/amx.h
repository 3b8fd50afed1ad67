#pragma once
// AMX tiles for the files of the ISA amx. The instructions are asm: gcc 12's _tile_loadconfig
// declares 8 of the 64 bytes it reads and its _tile_loadd none, so stores before them may vanish or
// move. No compiler uses tile registers of its own accord. Builds for tests with XSR_EMULATE_ISA
// have the intrinsics from their own header.
#include <stdint.h>

#include "kernels/simd/avx512.h"

namespace xsr::kernels {

static constexpr int32_t kTileRows = 16, kTileBytes = 64;  // of a row

/// The memory operand of ldtilecfg, palette 1.
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

/// Zeroes all tiles.
static inline void load_tile_config(const TileConfig& config) {
#if defined(XSR_EMULATE_ISA)
  _tile_loadconfig(&config);
#else
  __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
#endif
}

static inline void release_tiles() {
#if defined(XSR_EMULATE_ISA)
  _tile_release();
#else
  __asm__ volatile("tilerelease" ::: "memory");
#endif
}

template <int kTile>
static inline void tile_zero() {
#if defined(XSR_EMULATE_ISA)
  _tile_zero(kTile);
#else
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile) : "memory");
#endif
}

/// kStreamed is for the operand that passes through once: it does not push the other out of L1.
template <int kTile, bool kStreamed = false>
static inline void tile_load(const void* base, int64_t stride) {
#if defined(XSR_EMULATE_ISA)
  kStreamed ? _tile_stream_loadd(kTile, base, stride) : _tile_loadd(kTile, base, stride);
#else
  if (kStreamed) {
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(base), "r"(stride), "i"(kTile)
                     : "memory");
  } else {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(base), "r"(stride), "i"(kTile)
                     : "memory");
  }
#endif
}

template <int kTile>
static inline void tile_store(void* base, int64_t stride) {
#if defined(XSR_EMULATE_ISA)
  _tile_stored(kTile, base, stride);
#else
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(base), "r"(stride), "i"(kTile)
                   : "memory");
#endif
}

/// sums += rows · weights: pairs of bf16, or fours of u8 and s8.
template <bool kInt8, int kSums, int kRows, int kWeights>
static inline void tile_product() {
#if defined(XSR_EMULATE_ISA)
  kInt8 ? _tile_dpbusd(kSums, kRows, kWeights) : _tile_dpbf16ps(kSums, kRows, kWeights);
#else
  if (kInt8) {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kWeights)
                     : "memory");
  } else {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows),
                     "i"(kWeights)
                     : "memory");
  }
#endif
}

}  // namespace xsr::kernels
