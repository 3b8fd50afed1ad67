#pragma once
// What the kernels of attention on the tensor cores are made of. A warp works by itself, on tiles
// of 16 rows of one head in shared memory, which it reads as the fragments of mma_m16n8k16.
#include "kernels/attention/attention_cuda.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/eight.h"

namespace xsr::cuda {

// kD, below, is D rounded up to 32, 64 or 128. kWhole: D and every row stride are multiples of 8,
// so that columns are moved 16 bytes at a time. Rows of a tile stand so far apart that eight of
// them, as ldmatrix reads them, fall into all banks.
template <int32_t kD>
struct TileShape {
  // Blocks of four warps that a multiprocessor must hold: without it ptxas aims at more, and
  // spills.
  static constexpr int32_t kBlocks = kD <= 64 ? 4 : 2;
  static constexpr int32_t kStride = kD + 8, kSize = kTileRows * kStride;
};

template <int32_t kD>
static constexpr size_t tile_bytes(int32_t warps, int32_t tiles) {
  return sizeof(uint16_t) * (size_t)(warps * tiles * TileShape<kD>::kSize);
}

/// body(Constant<kD>())
template <typename Body>
static inline Status with_head_dim(int32_t D, Body&& body) {
  return D <= 32 ? body(Constant<32>()) : D <= 64 ? body(Constant<64>()) : body(Constant<128>());
}

/// This warp's share of the shared memory, of `tiles` tiles.
template <int32_t kD>
__device__ __forceinline__ uint16_t* warp_tiles(int32_t tiles) {
  return shared_memory<uint16_t>() + (int32_t)threadIdx.x / kWarp * tiles * TileShape<kD>::kSize;
}

/// tile ← 16 rows of x from `first` on, each plus bias, rounded to bf16; zeros from row `end` and
/// column D on. bias may be null. The whole warp; the tile is there after a __syncwarp().
template <int32_t kD, bool kWhole>
__device__ __forceinline__ void fill_tile(const uint16_t* x, int64_t stride, const float* bias,
                                          int32_t first, int32_t end, int32_t D, uint16_t* tile) {
  constexpr int32_t kLanes = kD / kEight, kRows = kWarp / kLanes;  // that share a row; at a time
  const int32_t d = lane_id() % kLanes * kEight;
  const auto wanted = [&](int32_t row) { return row < end && d < D; };
  uint4 bits[kTileRows / kRows];
  if (kWhole) {  // all loads are under way before one is waited for
    XSR_UNROLL
    for (int32_t i = 0; i < kTileRows / kRows; ++i) {
      const int32_t row = first + i * kRows + lane_id() / kLanes;
      bits[i] = make_uint4(0, 0, 0, 0);
      if (wanted(row)) bits[i] = vector_at<const uint4>(x + row * stride + d);
    }
  }
  float shift[kEight] = {};
  if (bias != nullptr && d < D) load_eight(bias + d, kWhole, D - d, shift);
  XSR_UNROLL
  for (int32_t i = 0; i < kTileRows / kRows; ++i) {
    const int32_t row = i * kRows + lane_id() / kLanes;
    uint16_t* const to = tile + row * TileShape<kD>::kStride + d;
    // As it stands: to widen it, add nothing and round it again was a quarter of a kernel's work.
    if (kWhole && bias == nullptr) {
      vector_at<uint4>(to) = bits[i];
      continue;
    }
    float values[kEight] = {};
    if (wanted(first + row)) {
      if (kWhole) {
        widen_eight(bits[i], values);
      } else {
        load_eight(x + (first + row) * stride + d, false, D - d, values);
      }
      XSR_UNROLL
      for (int32_t e = 0; e < kEight; ++e) values[e] += shift[e];
    }
    store_eight(to, true, kEight, values);
  }
}

/// What this lane gives load_matrix_x4 for the 16 columns from d on.
template <int32_t kD>
__device__ __forceinline__ const uint16_t* lane_row(const uint16_t* tile, int32_t d) {
  return tile + lane_id() % 16 * TileShape<kD>::kStride + d + lane_id() / 16 * 8;
}

/// c [16, 16] += a · bᵀ, c as two fragments of 8 columns.
template <int32_t kD>
__device__ __forceinline__ void add_dots(const uint16_t* a, const uint16_t* b, float (&c)[2][4]) {
  XSR_UNROLL
  for (int32_t d = 0; d < kD; d += 16) {
    uint32_t rows[4], columns[4];
    load_matrix_x4(rows, lane_row<kD>(a, d));
    load_matrix_x4(columns, lane_row<kD>(b, d));
    const uint32_t first[2] = {columns[0], columns[2]}, second[2] = {columns[1], columns[3]};
    mma_m16n8k16(c[0], rows, first);
    mma_m16n8k16(c[1], rows, second);
  }
}

/// Two fragments of 8 columns, rounded to bf16, as the `a` of an mma.
__device__ __forceinline__ void round_fragments(const float (&c)[2][4], uint32_t (&a)[4]) {
  XSR_UNROLL
  for (int32_t n = 0; n < 2; ++n) {
    a[2 * n] = f32_to_bf16_pair(c[n][0], c[n][1]);
    a[2 * n + 1] = f32_to_bf16_pair(c[n][2], c[n][3]);
  }
}

/// sums [16, kD] += a · b, a [16, 16].
template <int32_t kD>
__device__ __forceinline__ void add_rows(const uint32_t (&a)[4], const uint16_t* b,
                                         float (&sums)[kD / 8][4]) {
  XSR_UNROLL
  for (int32_t n = 0; n < kD / 16; ++n) {
    uint32_t columns[4];
    load_matrix_x4_transposed(columns, lane_row<kD>(b, n * 16));
    const uint32_t first[2] = {columns[0], columns[1]}, second[2] = {columns[2], columns[3]};
    mma_m16n8k16(sums[2 * n], a, first);
    mma_m16n8k16(sums[2 * n + 1], a, second);
  }
}
/// The same of weights as two fragments, which it rounds.
template <int32_t kD>
__device__ __forceinline__ void add_rows(const float (&weights)[2][4], const uint16_t* b,
                                         float (&sums)[kD / 8][4]) {
  uint32_t a[4];
  round_fragments(weights, a);
  add_rows<kD>(a, b, sums);
}

/// Over the four lanes that share the rows of a fragment.
__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}
__device__ __forceinline__ float quad_sum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

/// One head's columns of qkv, and its bias or null.
///
/// Q alone is given its bias before it is multiplied. K's adds the same to all scores of a query,
/// so no probability has any of it; V's passes through the probabilities, and is added in f32
/// behind them. To add it to V would round it: a bf16 and a constant make a bf16 with an error that
/// is that of the constant in most rows, and so does not average out over them.
struct HeadRows {
  const uint16_t* x;  // Q; K and V stand C and 2 C behind
  int64_t stride;
  const float* bias;
  int32_t C, D;
  /// Rows of Q, K or V (0, 1, 2) as fill_tile.
  template <int32_t kD, bool kWhole>
  __device__ __forceinline__ void fill(int32_t which, int32_t first, int32_t end,
                                       uint16_t* tile) const {
    fill_tile<kD, kWhole>(x + which * C, stride, which == 0 ? bias : nullptr, first, end, D, tile);
  }
  __device__ __forceinline__ const float* value_bias() const {
    return bias == nullptr ? nullptr : bias + 2 * C;
  }
};
__device__ __forceinline__ HeadRows head_rows(const uint16_t* qkv, int64_t stride,
                                              const float* bias, int32_t H, int32_t D, int32_t h) {
  return {qkv + h * D, stride, bias == nullptr ? nullptr : bias + h * D, H * D, D};
}

/// to[0 .. D) ← this lane's columns of row g (half 0) or g + 8 (half 1) of sums, times factor, plus
/// those of shift times shift_factor; shift may be null. kWhole: to is 4-byte aligned.
template <int32_t kD, bool kWhole>
__device__ __forceinline__ void put_row(const float (&sums)[kD / 8][4], int32_t half, float factor,
                                        const float* shift, float shift_factor, int32_t D,
                                        uint16_t* to) {
  XSR_UNROLL
  for (int32_t n = 0; n < kD / 8; ++n) {
    const int32_t d = n * 8 + 2 * (lane_id() % 4);
    float low = sums[n][2 * half] * factor, high = sums[n][2 * half + 1] * factor;
    if (shift != nullptr && d < D) low += shift[d] * shift_factor;
    if (shift != nullptr && d + 1 < D) high += shift[d + 1] * shift_factor;
    if (kWhole) {
      if (d < D) vector_at<uint32_t>(to + d) = f32_to_bf16_pair(low, high);
    } else {
      if (d < D) to[d] = f32_to_bf16(low);
      if (d + 1 < D) to[d + 1] = f32_to_bf16(high);
    }
  }
}

constexpr int32_t kForwardTiles = 2;  // that attend() takes of the shared memory

/// The attention of a tile's rows to all rows of their sentence, 32 keys at a time; one warp.
///
/// drop(p, key)  may change p, probabilities (before their division by their sum, in which they
///               count all the same) of 16 keys from the sentence's `key` on, as two fragments
/// factor        what the result is multiplied by
/// out, lse      columns of this head; lse may be null
template <int32_t kD, bool kWhole, typename Drop>
__device__ __forceinline__ void attend(const HeadRows& head, const AttentionTile& tile,
                                       float factor, Drop&& drop, uint16_t* out, int64_t out_stride,
                                       float* lse, int64_t lse_stride) {
  constexpr int32_t kKeys = 32;
  const int32_t g = lane_id() / 4, t = lane_id() % 4;
  uint16_t* const queries = warp_tiles<kD>(kForwardTiles);
  uint16_t* const rows = queries + TileShape<kD>::kSize;
  const float scale = kLog2E / sqrtf((float)head.D);  // scores as exponents of 2
  head.fill<kD, kWhole>(0, tile.row, tile.end, queries);

  float o[kD / 8][4];
  XSR_UNROLL
  for (int32_t n = 0; n < kD / 8; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
  float largest[2] = {-INFINITY, -INFINITY};  // of rows g and g + 8
  float sum[2] = {0, 0};                      // this lane's share, as the next
  float kept[2] = {0, 0};                     // the sum of what drop() left
  for (int32_t key = tile.begin; key < tile.end; key += kKeys) {
    float p[kKeys / 16][2][4];  // scores, then probabilities
    float most[2] = {-INFINITY, -INFINITY};
    XSR_UNROLL
    for (int32_t s = 0; s < kKeys / 16; ++s) {
      XSR_UNROLL
      for (int32_t n = 0; n < 2; ++n) p[s][n][0] = p[s][n][1] = p[s][n][2] = p[s][n][3] = 0;
      if (key + s * 16 < tile.end) {  // the same for the whole warp
        __syncwarp();
        head.fill<kD, kWhole>(1, key + s * 16, tile.end, rows);
        __syncwarp();
        add_dots<kD>(queries, rows, p[s]);
      }
      XSR_UNROLL
      for (int32_t n = 0; n < 2; ++n) {
        XSR_UNROLL
        for (int32_t i = 0; i < 4; ++i) {
          const bool there = key + s * 16 + n * 8 + 2 * t + i % 2 < tile.end;
          p[s][n][i] = there ? p[s][n][i] * scale : -INFINITY;
          most[i / 2] = fmaxf(most[i / 2], p[s][n][i]);
        }
      }
    }
    float shrink[2];
    XSR_UNROLL
    for (int32_t r = 0; r < 2; ++r) {
      const float before = largest[r];
      largest[r] = fmaxf(before, quad_max(most[r]));
      shrink[r] = exp2_approximate(before - largest[r]);
    }
    if (key != tile.begin) {  // else all are 0
      XSR_UNROLL
      for (int32_t r = 0; r < 2; ++r) sum[r] *= shrink[r], kept[r] *= shrink[r];
      XSR_UNROLL
      for (int32_t n = 0; n < kD / 8; ++n) {
        XSR_UNROLL
        for (int32_t i = 0; i < 4; ++i) o[n][i] *= shrink[i / 2];
      }
    }
    XSR_UNROLL
    for (int32_t s = 0; s < kKeys / 16; ++s) {
      if (key + s * 16 >= tile.end) continue;  // the same for the whole warp
      XSR_UNROLL
      for (int32_t n = 0; n < 2; ++n) {
        XSR_UNROLL
        for (int32_t i = 0; i < 4; ++i) {
          p[s][n][i] = exp2_approximate(p[s][n][i] - largest[i / 2]);
          sum[i / 2] += p[s][n][i];
        }
      }
      drop(p[s], key + s * 16 - tile.begin);
      XSR_UNROLL
      for (int32_t e = 0; e < 8; ++e) kept[e % 4 / 2] += p[s][e / 4][e % 4];
      __syncwarp();
      head.fill<kD, kWhole>(2, key + s * 16, tile.end, rows);
      __syncwarp();
      add_rows<kD>(p[s], rows, o);
    }
  }
  XSR_UNROLL
  for (int32_t r = 0; r < 2; ++r) {
    const float total = quad_sum(sum[r]), share = quad_sum(kept[r]) / total;  // 1 without drop()
    const int64_t row = tile.row + g + r * 8;
    if (row >= tile.end) continue;
    put_row<kD, kWhole>(o, r, factor / total, head.value_bias(), share * factor, head.D,
                        out + row * out_stride);
    if (lse != nullptr && t == 0) lse[row * lse_stride] = largest[r] * kLn2 + logf(total);
  }
}

}  // namespace xsr::cuda
