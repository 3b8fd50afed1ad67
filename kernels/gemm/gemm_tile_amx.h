#pragma once
// What the AMX files of products share: how tiles are used, and a step of a block.
//
// Tiles 0 to 3 hold the sums of up to 32 rows × 32 columns, 4 and 5 the rows, 6 and 7 a panel: 16
// lines of a 32-bit lane for each of its 32 columns.
#include "kernels/simd/amx.h"

namespace xsr::kernels {

static constexpr int32_t kBlockRows = 2 * kTileRows;
static constexpr int64_t kPanelRowBytes = 128;  // a 32-bit lane for each of 32 columns

/// For blocks of `rows` rows, 1 to 32; zeroes all tiles.
static inline void configure_tiles(int32_t rows) {
  const int32_t upper = rows < kTileRows ? rows : kTileRows, lower = rows - upper;
  TileConfig config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    const bool weights = tile >= 6, of_lower = tile == 2 || tile == 3 || tile == 5;
    const int32_t count = weights ? kTileRows : of_lower ? lower : upper;
    config.rows[tile] = (uint8_t)count;
    config.row_bytes[tile] = count > 0 ? kTileBytes : 0;
  }
  load_tile_config(config);
}

/// The sums of a block: of 32 rows, or of 16 unless kTwo, times 32 columns.
template <bool kTwo>
static inline void zero_sums() {
  tile_zero<0>();
  tile_zero<1>();
  if (!kTwo) return;
  tile_zero<2>();
  tile_zero<3>();
}

/// to: 32-bit lanes, `stride` lanes a row.
template <bool kTwo>
static inline void store_sums(float* to, int64_t stride) {
  tile_store<0>(to, 4 * stride);
  tile_store<1>(to + 16, 4 * stride);
  if (!kTwo) return;
  tile_store<2>(to + kTileRows * stride, 4 * stride);
  tile_store<3>(to + kTileRows * stride + 16, 4 * stride);
}

/// One step of 64 bytes of every row: the products of both halves of the panel's columns.
template <bool kInt8, bool kTwo, bool kStreamRows>
static inline void multiply_step(const char* a, int64_t a_stride, const char* w) {
  tile_load<6, !kStreamRows>(w, kPanelRowBytes);
  tile_load<7, !kStreamRows>(w + kTileBytes, kPanelRowBytes);
  tile_load<4, kStreamRows>(a, a_stride);
  tile_product<kInt8, 0, 4, 6>();
  tile_product<kInt8, 1, 4, 7>();
  if (!kTwo) return;
  tile_load<5, kStreamRows>(a + kTileRows * a_stride, a_stride);
  tile_product<kInt8, 2, 5, 6>();
  tile_product<kInt8, 3, 5, 7>();
}

}  // namespace xsr::kernels
