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
  const int32_t rows = d < D ? end - first : 0;
  const auto wanted = [&](int32_t row) { return row < rows; };
  uint4 bits[kTileRows / kRows];
  if (kWhole) {  // all loads are under way before one is waited for
    const uint16_t* from = x + (first + lane_id() / kLanes) * stride + d;
    XSR_UNROLL
    for (int32_t i = 0; i < kTileRows / kRows; ++i) {
      bits[i] = make_uint4(0, 0, 0, 0);
      if (wanted(i * kRows + lane_id() / kLanes)) bits[i] = vector_at<const uint4>(from);
      from += kRows * stride;
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
    if (wanted(row)) {
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

/// fill_tile, of whole rows without a bias, by copies that run beside other work.
template <int32_t kD>
__device__ __forceinline__ void copy_tile_async(const uint16_t* x, int64_t stride, int32_t first,
                                                int32_t end, int32_t D, uint16_t* tile) {
  constexpr int32_t kLanes = kD / kEight, kRows = kWarp / kLanes;  // that share a row; at a time
  const int32_t d = lane_id() % kLanes * kEight, row = lane_id() / kLanes;
  const int32_t rows = d < D ? end - first : 0;
  const uint16_t* from = x + (first + row) * stride + d;
  uint16_t* const to = tile + row * TileShape<kD>::kStride + d;
  XSR_UNROLL
  for (int32_t r = 0; r < kTileRows; r += kRows) {
    const bool wanted = row + r < rows;
    copy_16_async(to + r * TileShape<kD>::kStride, wanted ? from : x, wanted);
    from += kRows * stride;
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

/// to[row .. end) ← a tile's sums, times factor: columns of this head, of which 8 divides D and the
/// stride. Neighbours exchange what they have, so that a row's four lanes write 32 bytes at once,
/// which are a whole piece of memory.
template <int32_t kD>
__device__ __forceinline__ void put_rows(const float (&sums)[kD / 8][4], float factor, int32_t row,
                                         int32_t end, int32_t D, uint16_t* to, int64_t stride) {
  const int32_t t = lane_id() % 4;
  const bool odd = t % 2 != 0;
  XSR_UNROLL
  for (int32_t r = 0; r < 2; ++r) {
    const int64_t i = row + lane_id() / 4 + r * 8;
    uint16_t* const mine = to + i * stride + (odd ? 6 + 2 * t : 2 * t);
    XSR_UNROLL
    for (int32_t n = 0; n < kD / 8; n += 2) {
      uint32_t pair[2];
      XSR_UNROLL
      for (int32_t k = 0; k < 2; ++k) {
        const float* const two = sums[n + k] + 2 * r;
        pair[k] = f32_to_bf16_pair(two[0] * factor, two[1] * factor);
      }
      const uint32_t other = __shfl_xor_sync(kAllLanes, odd ? pair[0] : pair[1], 1);
      if (i < end && (odd ? n * 8 + 8 : n * 8) < D) {
        vector_at<uint2>(mine + n * 8) =
            odd ? make_uint2(other, pair[1]) : make_uint2(pair[0], other);
      }
    }
  }
}

constexpr int32_t kKeyTiles = 2;                      // that attend() takes at a time
constexpr int32_t kForwardTiles = 1 + 2 * kKeyTiles;  // that it has of the shared memory

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
  constexpr int32_t kSize = TileShape<kD>::kSize;
  const int32_t g = lane_id() / 4, t = lane_id() % 4;
  uint16_t* const queries = warp_tiles<kD>(kForwardTiles);
  uint16_t* const keys = queries + kSize;
  uint16_t* const values = keys + kKeyTiles * kSize;
  const float scale = kLog2E / sqrtf((float)head.D);  // scores as exponents of 2
  // K and V, and at first Q, are under way together; V is waited for when the scores are there.
  const auto load = [&](int32_t which, int32_t key, uint16_t* to) {
    XSR_UNROLL
    for (int32_t s = 0; s < kKeyTiles; ++s) {
      const int32_t first = key + s * kTileRows;
      if (first >= tile.end) break;  // the same for the whole warp
      if constexpr (kWhole) {
        copy_tile_async<kD>(head.x + which * head.C, head.stride, first, tile.end, head.D,
                            to + s * kSize);
      } else {
        head.fill<kD, false>(which, first, tile.end, to + s * kSize);
      }
    }
    copy_commit();
  };

  float o[kD / 8][4];
  XSR_UNROLL
  for (int32_t n = 0; n < kD / 8; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
  float largest[2] = {-INFINITY, -INFINITY};  // of rows g and g + 8
  float sum[2] = {0, 0};                      // this lane's share, as the next
  float kept[2] = {0, 0};                     // the sum of what drop() left
  for (int32_t key = tile.begin; key < tile.end; key += kKeyTiles * kTileRows) {
    __syncwarp();  // the keys before have been read
    load(1, key, keys);
    load(2, key, values);
    if (key == tile.begin) head.fill<kD, kWhole>(0, tile.row, tile.end, queries);
    copy_wait<1>();
    __syncwarp();
    float p[kKeyTiles][2][4];  // scores, then probabilities
    float most[2] = {-INFINITY, -INFINITY};
    XSR_UNROLL
    for (int32_t s = 0; s < kKeyTiles; ++s) {
      const int32_t rest = tile.end - key - s * kTileRows;  // keys from here on
      if (rest <= 0) break;                                 // the same for the whole warp
      XSR_UNROLL
      for (int32_t n = 0; n < 2; ++n) p[s][n][0] = p[s][n][1] = p[s][n][2] = p[s][n][3] = 0;
      add_dots<kD>(queries, keys + s * kSize, p[s]);
      XSR_UNROLL
      for (int32_t e = 0; e < 8; ++e) {
        float& score = p[s][e / 4][e % 4];
        score = e / 4 * 8 + 2 * t + e % 2 < rest ? score * scale : -INFINITY;
        most[e % 4 / 2] = fmaxf(most[e % 4 / 2], score);
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
    copy_wait<0>();
    __syncwarp();
    XSR_UNROLL
    for (int32_t s = 0; s < kKeyTiles; ++s) {
      if (key + s * kTileRows >= tile.end) break;
      XSR_UNROLL
      for (int32_t e = 0; e < 8; ++e) {
        float& probability = p[s][e / 4][e % 4];
        probability = exp2_approximate(probability - largest[e % 4 / 2]);
        sum[e % 4 / 2] += probability;
      }
      drop(p[s], key + s * kTileRows - tile.begin);
      XSR_UNROLL
      for (int32_t e = 0; e < 8; ++e) kept[e % 4 / 2] += p[s][e / 4][e % 4];
      add_rows<kD>(p[s], values + s * kSize, o);
    }
  }
  float factors[2], of_bias[2];  // the latter is `factor` without drop()
  XSR_UNROLL
  for (int32_t r = 0; r < 2; ++r) {
    const float total = quad_sum(sum[r]);
    const int64_t row = tile.row + g + r * 8;
    factors[r] = factor / total;
    of_bias[r] = quad_sum(kept[r]) / total * factor;
    if (lse != nullptr && t == 0 && row < tile.end)
      lse[row * lse_stride] = largest[r] * kLn2 + logf(total);
  }
  const float* const bias = head.value_bias();
  XSR_UNROLL
  for (int32_t n = 0; n < kD / 8; ++n) {
    const int32_t d = n * 8 + 2 * t;
    float shift[2] = {0, 0};
    if (bias != nullptr) {
      XSR_UNROLL
      for (int32_t i = 0; i < 2; ++i) shift[i] = d + i < head.D ? bias[d + i] : 0;
    }
    XSR_UNROLL
    for (int32_t i = 0; i < 4; ++i)
      o[n][i] = o[n][i] * factors[i / 2] + shift[i % 2] * of_bias[i / 2];
  }
  if constexpr (kWhole) {
    put_rows<kD>(o, 1, tile.row, tile.end, head.D, out, out_stride);
  } else {
    XSR_UNROLL
    for (int32_t e = 0; e < kD / 2; ++e) {
      const int32_t d = e / 4 * 8 + 2 * t + e % 2;
      const int64_t row = tile.row + g + e % 4 / 2 * 8;
      if (row < tile.end && d < head.D) out[row * out_stride + d] = f32_to_bf16(o[e / 4][e % 4]);
    }
  }
}

}  // namespace xsr::cuda
